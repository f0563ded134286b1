/* calibrate.h - times every layer of one cache by itself: what the cost model is fitted to. */
#ifndef VQKVC_EVAL_CALIBRATE_H
#define VQKVC_EVAL_CALIBRATE_H

#include <stdint.h>

#include "base/log.h"
#include "eval/cache_header.h"

/* Zero means the default. */
typedef struct vqkvc_calibration {
    int context;          /* tokens; 16384, as `vqkvc bench` has it */
    int rounds;           /* of all layers; 120 */
    vqkvc_isa isa;        /* of the codec */
    uint64_t seed;        /* of the synthetic keys, values and queries */
    const vqkvc_log *log; /* for progress */
} vqkvc_calibration;

/* Nanoseconds per cached token and KV head of each layer of n codecs, one query token, one thread:
 * ns [n][n_layers] out. The least processor time of all calls: other work on the machine only ever
 * adds. All layers of all codecs take turns, so that no layer's codes wait in cache, and what else
 * the machine does meets all alike. Memory: all caches at once. */
vqkvc_code vqkvc_calibrate(int n, const vqkvc_geometry *const *g, const vqkvc_codec *codecs,
                           const vqkvc_calibration *options, double *const *ns, vqkvc_err *err);

#endif
