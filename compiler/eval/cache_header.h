/* cache_header.h - a loaded codec behind the cache interface of the forward pass. */
#ifndef VQKVC_EVAL_CACHE_HEADER_H
#define VQKVC_EVAL_CACHE_HEADER_H

#include "base/geometry.h"
#include "base/isa.h"
#include "base/status.h"
#include "eval/load.h"
#include "model/cache.h"

/* A cache for n_seq sequences of n_ctx tokens, max_batch tokens an append at most. The codec is
 * borrowed and must outlive it; so is `name` (the scheme or the file), which begins every message.
 * The codec is checked against *g. Attends may run on as many threads as OpenMP has now: each has a
 * scratch of its own. Queries must be those of the latest tokens, as the header's API wants it. */
vqkvc_code vqkvc_cache_header(vqkvc_cache *cache, const vqkvc_codec *codec, const char *name,
                              const vqkvc_geometry *g, int n_seq, int n_ctx, int max_batch,
                              vqkvc_isa isa, vqkvc_err *err);

/* Has its attention choose so many of the coded tokens; 0: all. Fails with E_USAGE where the codec
 * has no landmarks. */
vqkvc_code vqkvc_cache_header_choose(vqkvc_cache *cache, int top_tokens, vqkvc_err *err);

/* Has it keep a copy of what is appended (8 bytes a value of K and V together), for errors();
 * before the first token. */
vqkvc_code vqkvc_cache_header_watch(vqkvc_cache *cache, vqkvc_err *err);
/* Of all that it holds, read back: the worst |x - x^| / |x|, x being binary16, and the part of the
 * vectors in blocks that is on the exact list. */
vqkvc_code vqkvc_cache_header_errors(vqkvc_cache *cache, double *worst, double *kept_rate,
                                     vqkvc_err *err);

/* Bytes that such a cache takes in all, used or not. */
vqkvc_code vqkvc_cache_header_size(const vqkvc_codec *codec, const char *name, int n_seq, int n_ctx,
                                   int max_batch, size_t *bytes, vqkvc_err *err);

/* Bits a value that a coded token takes in the pool, block table included: the growth of
 * bytes_used by one block, but for vectors on the exact list, whose number depends on the text.
 * Exact for every codec, whether or not its plan is at hand. */
vqkvc_code vqkvc_stored_bits(const vqkvc_codec *codec, const char *name, const vqkvc_geometry *g,
                             double *bits, vqkvc_err *err);

#endif
