/* bands.h - latents of two kinds in one stream: steady ones in front, turning ones behind. */
#ifndef VQKVC_PLAN_BANDS_H
#define VQKVC_PLAN_BANDS_H

#include <stdint.h>

#include "plan/allocate.h"

enum { VQKVC_BAND_RUNS = 2 * VQKVC_LAYOUT_RUNS };

typedef struct vqkvc_bands {
    int n_runs;
    vqkvc_layout_run runs[VQKVC_BAND_RUNS]; /* steady, then turning; each by falling rate */
    int *order;                             /* [n_channels] which latent becomes the i-th */
} vqkvc_bands;

/* Hands the groups of a layout over latents of falling variance, turning [d] of each, to latents
 * of one kind each: a group goes to the kind whose next latent is stronger. Only where neither has
 * enough left for a group does it mix them, and counts as turning. Caller frees bands->order. */
vqkvc_code vqkvc_make_bands(const vqkvc_layout *layout, int d, const uint8_t *turning,
                            vqkvc_bands *bands, vqkvc_err *err);

#endif
