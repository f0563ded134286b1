/* collect.h - vectors in, one capture out: checks them, keeps the sampled ones in fp16 and feeds
 * the statistics in chunks. Shared by the run of a model and the import of a dump. */
#ifndef VQKVC_CAPTURE_COLLECT_H
#define VQKVC_CAPTURE_COLLECT_H

#include "capture/capture.h"
#include "capture/stats.h"

/* Where one token stands: for the sample and for messages. */
typedef struct vqkvc_where {
    int slot;     /* of the sample, or -1: not kept */
    int doc, pos; /* sequence, position in it */
} vqkvc_where;

typedef struct vqkvc_collector {
    vqkvc_capture *capture; /* borrowed; filled */
    vqkvc_stats_scratch scratch;
    vqkvc_arena arena;
    float **pending[3]; /* [kind][layer] -> [VQKVC_STATS_CHUNK, width] or NULL before first use */
    int *n_pending[3];  /* [kind][layer] */
} vqkvc_collector;

/* c is allocated by vqkvc_capture_init() or _alloc() and outlives the collector. Release with
 * vqkvc_collector_free(), after a failure too. */
vqkvc_code vqkvc_collector_begin(vqkvc_collector *col, vqkvc_capture *c, vqkvc_err *err);
/* Starts over with another capture of the same geometry; what is pending is dropped. */
void vqkvc_collector_next(vqkvc_collector *col, vqkvc_capture *c);

/* n vectors x [n, width], whose tokens are where [n]. Fails with VQKVC_E_NUMERIC naming layer,
 * kind, head and token if a value is not finite or does not fit fp16 (65504). Tokens must come in
 * the same order for the same bytes. */
vqkvc_code vqkvc_collector_put(vqkvc_collector *col, vqkvc_kind kind, int layer, int n,
                               const vqkvc_where *where, const float *x, vqkvc_err *err);

/* Counts pending tokens and closes the statistics. */
void vqkvc_collector_finish(vqkvc_collector *col);
void vqkvc_collector_free(vqkvc_collector *col);

#endif
