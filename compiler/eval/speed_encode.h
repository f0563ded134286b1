/* speed_encode.h - how long a cache takes to write: append in decoding and in prefill. */
#ifndef VQKVC_EVAL_SPEED_ENCODE_H
#define VQKVC_EVAL_SPEED_ENCODE_H

#include <stdint.h>

#include "eval/measure.h"

/* Microseconds of one thread, the least of some repeats: all KV heads, K and V, rows of fp32 with
 * their rotation, encoding included. */
typedef struct vqkvc_encode_timing {
    double decode;  /* a token and layer, one token a call */
    double prefill; /* the same, 256 tokens a call */
    double worst;   /* the longest call of decoding: it encodes a block of all layers */
} vqkvc_encode_timing;

/* Times one codec on normal numbers; a cache of 1024 tokens is made and freed. */
vqkvc_code vqkvc_speed_encode(const vqkvc_geometry *g, const vqkvc_subject *subject, vqkvc_isa isa,
                              uint64_t seed, vqkvc_encode_timing *timing, vqkvc_err *err);

#endif
