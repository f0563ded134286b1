/* search.h - which layers and heads share, and how many nibbles every stream gets: a closed-form
 * search.
 *
 * Candidates are compared without fitting a codebook: spectra give each shared stream's error per
 * channel (allocate.h), that error turned back into the layers' own channels gives the spectra of
 * what own streams have to code, and so their curves. */
#ifndef VQKVC_PLAN_SEARCH_H
#define VQKVC_PLAN_SEARCH_H

#include "plan/auto.h"
#include "plan/calibration.h"

/* A scope: heads head .. head + n_heads - 1 of one part in layers first .. first + n_layers - 1.
 * Its members are ordered by layer, then head. */
typedef struct vqkvc_scope {
    vqkvc_part part;
    int head, n_heads, first, n_layers;
    int shared;           /* nibbles of the shared stream, 0: none */
    int own_heads;        /* neighbouring members that one own stream codes: 1 or n_heads */
    const int *own;       /* [vqkvc_scope_own()] nibbles of each own stream, 0: none */
    const int *universal; /* the same: 0: in a basis of its own, else 1 + its code (universal.h) */
} vqkvc_scope;

/* Members of a scope, and its own streams: stream i has the own_heads members from i * own_heads
 * on. */
static inline int vqkvc_scope_members(const vqkvc_scope *s)
{
    return s->n_layers * s->n_heads;
}

static inline int vqkvc_scope_own(const vqkvc_scope *s)
{
    return vqkvc_scope_members(s) / s->own_heads;
}

/* members [vqkvc_scope_members()] */
void vqkvc_scope_list(const vqkvc_scope *s, vqkvc_member *members);

typedef struct vqkvc_design {
    int layers_shared, heads_shared;
    int n_scopes;
    vqkvc_scope *scopes;
    double loss;       /* predicted, in the units of the metrics */
    double bits, scan; /* a value */
    double ns;         /* of attention per cached token and KV head; 0: no cost model is given */
} vqkvc_design;

enum {
    VQKVC_GAIN_BITS = 8,
    /* Channels of a shared stream. Time grows with the cube, memory and tables with the square: at
     * the size of Llama-3.1-8B 2048 would take hours, and a header of hundreds of megabytes. */
    VQKVC_MOST_JOINED = 1024
};

/* The design of least predicted loss within params->bits, params->max_scan and params->max_ns;
 * fails with VQKVC_E_INFEASIBLE if none keeps them. Lives in arena. */
vqkvc_code vqkvc_search(const vqkvc_capture *c, const vqkvc_auto_params *params,
                        const vqkvc_metrics *metrics, vqkvc_arena *arena, const vqkvc_log *log,
                        vqkvc_design *best, vqkvc_err *err);

#endif
