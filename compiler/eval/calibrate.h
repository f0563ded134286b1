/* calibrate.h - times every layer of one cache by itself: what the cost model is fitted to. */
#ifndef VQKVC_EVAL_CALIBRATE_H
#define VQKVC_EVAL_CALIBRATE_H

#include <stdint.h>

#include "base/log.h"
#include "eval/cache_header.h"

/* Zero means the default. */
typedef struct vqkvc_calibration {
    int context;          /* tokens; 16384, as `vqkvc bench` has it */
    int rounds;           /* of all layers; 40 */
    vqkvc_isa isa;        /* of the codec */
    uint64_t seed;        /* of the synthetic keys, values and queries */
    const vqkvc_log *log; /* for progress */
} vqkvc_calibration;

/* Nanoseconds per cached token and KV head of each layer, one query token, one thread: ns
 * [n_layers] out. The least of all rounds: other work on the machine only ever adds. Layers take
 * turns, so that no layer's codes wait in cache. */
vqkvc_code vqkvc_calibrate(const vqkvc_geometry *g, const vqkvc_codec *codec,
                           const vqkvc_calibration *options, double *ns, vqkvc_err *err);

#endif
