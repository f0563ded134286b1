/* run.h - runs a model over a source and fills a capture, shard by shard.
 *
 * A shard is `shard` sequences (of self-sampling: `batch`); each is captured by itself and merged
 * into the whole in order, so a capture that was interrupted and goes on from stored shards ends
 * with the same bytes. */
#ifndef VQKVC_CAPTURE_RUN_H
#define VQKVC_CAPTURE_RUN_H

#include "capture/source.h"

/* Fills *c, which the caller frees, after a failure too. Asks vqkvc_interrupted() before each
 * forward step; shards done until then have been handed to shard_done. Apart from the capture,
 * memory holds an exact cache: of one window for text and ids, of `batch` windows for
 * self-sampling (see vqkvc_cache_exact()).
 * Which tokens are kept: n_sample of those at position n_skip or later, uniformly without
 * replacement: vqkvc_choose(seed, VQKVC_STREAM_SAMPLE, ...) over them in token order. */
vqkvc_code vqkvc_capture_run(vqkvc_model *model, const vqkvc_source *source,
                             const vqkvc_capture_params *params, const vqkvc_log *log,
                             vqkvc_capture *c, vqkvc_err *err);

/* The text that names a capture, or with shard >= 0 one of its shards: equal recipes, equal bytes.
 * Lives in arena. */
const char *vqkvc_capture_recipe(const vqkvc_model *model, const vqkvc_source *source,
                                 const vqkvc_capture_params *params, int shard, vqkvc_arena *arena,
                                 vqkvc_err *err);

#endif
