/* higgs.h - the quantizer of HIGGS (arXiv 2411.17525) as streams of a plan: the Hadamard transform
 * of joined heads, one gain a token, and a fixed grid for Gaussian vectors. */
#ifndef VQKVC_PLAN_HIGGS_H
#define VQKVC_PLAN_HIGGS_H

#include "plan/plan.h"

enum { VQKVC_HIGGS_MAX_IN = 1024 }; /* channels of one Hadamard block at most */

/* A grid of 2^bits points for `width` channels: bits / width bits a value. */
typedef struct vqkvc_higgs_grid {
    int width, bits;
    int book; /* table [1, width * 2^bits] of the plan */
} vqkvc_higgs_grid;

/* Adds the table of a grid, or finds it; grid->book is its index. */
vqkvc_code vqkvc_higgs_add_grid(vqkvc_plan *plan, vqkvc_higgs_grid *grid, vqkvc_err *err);

/* KV heads that are joined into one Hadamard block: the largest power of two that divides them all
 * and keeps to VQKVC_HIGGS_MAX_IN channels; *heads out. VQKVC_E_UNSUPPORTED where head_dim is no
 * power of two or not a multiple of `width`. */
vqkvc_code vqkvc_higgs_heads(const vqkvc_geometry *g, int width, int *heads, vqkvc_err *err);

/* Gives a stream a gain of 16 bits over all its latents and one run over the grid. */
vqkvc_code vqkvc_higgs_code(vqkvc_plan *plan, vqkvc_stream *s, const vqkvc_higgs_grid *grid,
                            vqkvc_err *err);

/* Adds a stream over KV heads first .. first + n - 1 of one part of one layer, frame POST; NULL
 * with *err. */
vqkvc_stream *vqkvc_higgs_add_stream(vqkvc_plan *plan, vqkvc_part part, int layer, int first, int n,
                                     const vqkvc_higgs_grid *grid, vqkvc_err *err);

#endif
