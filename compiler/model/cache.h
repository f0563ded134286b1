/* cache.h - the key-value cache as the forward pass sees it.
 *
 * Implementations: the exact one in fp32 or fp16 (cache_exact.c), and an emitted header loaded as a
 * shared object (eval/). Several sequences live in one cache; positions of a sequence count from
 * 0 without gaps. One forward step appends to and attends in layer 0, then layer 1, and so on. */
#ifndef VQKVC_MODEL_CACHE_H
#define VQKVC_MODEL_CACHE_H

#include <stddef.h>

#include "base/geometry.h"
#include "base/status.h"

typedef struct vqkvc_cache {
    void *self;
    /* Appends n tokens at positions pos .. pos + n - 1 of one sequence.
     * k: [n, n_kv_heads, head_dim] rotated; v: [n, n_kv_heads, head_dim]. */
    vqkvc_code (*append)(void *self, int seq, int layer, int pos, int n, const float *k,
                         const float *v, vqkvc_err *err);
    /* Causal attention of the queries at positions pos .. pos + n - 1, whose keys are appended.
     * q: [n, n_heads, head_dim] rotated; out: the same shape. Scores are multiplied by scale.
     * Called from several threads at once, never for the same seq. */
    vqkvc_code (*attend)(void *self, int seq, int layer, int pos, int n, const float *q, float *out,
                         float scale, vqkvc_err *err);
    /* Forgets the tokens of a sequence from position n_keep on. */
    vqkvc_code (*trim)(void *self, int seq, int n_keep, vqkvc_err *err);
    /* Bytes that the tokens held now take in all sequences, everything counted. */
    size_t (*bytes)(void *self);
    void (*free)(void *self);
} vqkvc_cache;

/* The exact cache, fp32, for n_seq sequences of at most n_ctx tokens; attention in fp32 with fp64
 * softmax sums. Memory: 8 * n_seq * n_ctx * n_layers * n_kv_heads * head_dim bytes. */
vqkvc_code vqkvc_cache_exact(vqkvc_cache *cache, const vqkvc_geometry *g, int n_seq, int n_ctx,
                             vqkvc_err *err);

/* The same in binary16, as engines keep it, half the memory; attention by attend_f16.h, with which
 * compressed caches are compared. */
vqkvc_code vqkvc_cache_f16(vqkvc_cache *cache, const vqkvc_geometry *g, int n_seq, int n_ctx,
                           vqkvc_err *err);

#endif
