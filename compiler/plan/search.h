/* search.h - which layers share, and how many nibbles every stream gets: a closed-form search.
 *
 * Candidates are compared without fitting a codebook: spectra give each shared stream's error per
 * channel (allocate.h), that error turned back into the layers' own channels gives the spectra of
 * what own streams have to code, and so their curves. */
#ifndef VQKVC_PLAN_SEARCH_H
#define VQKVC_PLAN_SEARCH_H

#include "plan/auto.h"
#include "plan/calibration.h"

/* A scope: one head of one part in layers first .. first + n - 1. */
typedef struct vqkvc_scope {
    vqkvc_part part;
    int head, first, n_layers;
    int shared;     /* nibbles of the shared stream, 0: none */
    const int *own; /* [n_layers] nibbles of each layer's own stream */
} vqkvc_scope;

typedef struct vqkvc_design {
    int layers_shared;
    int n_scopes;
    vqkvc_scope *scopes;
    double loss;       /* predicted, in the units of the metrics */
    double bits, scan; /* a value */
} vqkvc_design;

enum { VQKVC_GAIN_BITS = 8 };

/* The design of least predicted loss within params->bits and params->max_scan. Lives in arena. */
vqkvc_code vqkvc_search(const vqkvc_capture *c, const vqkvc_auto_params *params,
                        const vqkvc_metrics *metrics, vqkvc_arena *arena, const vqkvc_log *log,
                        vqkvc_design *best, vqkvc_err *err);

#endif
