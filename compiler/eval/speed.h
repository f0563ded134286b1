/* speed.h - how long attention takes over a filled cache, next to what cannot be beaten (reading
 * the bytes) and to what is in use today (an fp16 cache). */
#ifndef VQKVC_EVAL_SPEED_H
#define VQKVC_EVAL_SPEED_H

#include <stdint.h>

#include "base/log.h"
#include "eval/measure.h"

/* Zero means the default. */
typedef struct vqkvc_speed_options {
    int context;          /* tokens; 16384 */
    int repeats;          /* of which the median counts; 15, at least 9 */
    int workers;          /* threads that attend, each to layers of its own; 1 */
    vqkvc_isa isa;        /* of the codecs */
    uint64_t seed;        /* of the synthetic keys, values and queries */
    const vqkvc_log *log; /* for progress */
} vqkvc_speed_options;

/* Nanoseconds per cached token and KV head: K and V, all query heads of the group, all workers
 * together. */
typedef struct vqkvc_timing {
    double ns, ns_min, ns_max; /* median, least and most of the repeats */
    double floor_ns;           /* scanned bytes / bandwidth; 0: scanned bytes are not known */
    double prefill_ns; /* a query token, when the latest 32 attend at once, causally; in tree
                          without the mask; least of three, layer 0; 0: a shorter context */
} vqkvc_timing;

typedef struct vqkvc_speed {
    int context, repeats;
    double bandwidth; /* bytes a second that the workers read from memory: the quickest repeat */
    /* The in-tree attention over fp16 and over the block formats; these are 0 where head_dim is no
     * multiple of their blocks. */
    vqkvc_timing f16, q8_0, q4_0;
    const char *f16_isa;
} vqkvc_speed;

/* Times n codecs, one decoded token against `context` cached ones: a repeat attends each layer in
 * turn (so that no layer's codes wait in cache), every codec, the in-tree attentions and the
 * bandwidth loop once; then the next repeat. scan_bits [n]: bits that a layer's scan reads, a value
 * (of the plan's cost), 0 where not known. timings [n] out. Memory: all caches at once, a copy in
 * fp16, one in q8_0 and one in q4_0, and 256 MB for the bandwidth loop. */
vqkvc_code vqkvc_speed_measure(const vqkvc_geometry *g, int n, const vqkvc_subject *subjects,
                               const double *scan_bits, const vqkvc_speed_options *options,
                               vqkvc_timing *timings, vqkvc_speed *speed, vqkvc_err *err);

#endif
