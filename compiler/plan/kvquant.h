/* kvquant.h - the published scheme KVQuant (arXiv 2401.18079): keys before rotation in non-uniform
 * levels of each channel; values in non-uniform levels of each layer, between the smallest and the
 * largest of a token; and, if asked for, the largest part of every token's values kept exact.
 *
 * The first token is exact, as published (its attention sink). Levels come from k-means over the
 * calibration's sample without outliers. The paper weighs samples by Fisher information, the
 * squared gradient of the loss at each value of each token, which takes a backward pass. The
 * closed-form stand-in that we have, the second moments of the queries that meet a channel, is the
 * same for all of a channel's samples and so leaves its k-means as it is. Three more differences:
 * the paper has one set of levels a layer for keys, scaled to each channel, where each channel has
 * its own here (2^bits binary16 each, counted as tables); outliers of keys are those that are
 * farthest from their channel's mean in units of its deviation, a fixed number in every token,
 * where the paper has a threshold for each channel; and its sparse storage takes 32 bits for an
 * outlier and its place, where ours takes 24 (32 above 256 channels). */
#ifndef VQKVC_PLAN_KVQUANT_H
#define VQKVC_PLAN_KVQUANT_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/plan.h"

typedef struct vqkvc_kvquant_params {
    int bits;            /* of a code, a value: 1 to 8; 0: 2 */
    double outliers;     /* percent of a token's values; 0: none, else one at least */
    vqkvc_window window; /* defaults: 1 sink, 32 recent, blocks of 64 */
    uint64_t seed;
} vqkvc_kvquant_params;

/* Fits and freezes a plan from a capture; *plan is overwritten, and empty after a failure. Fitted
 * levels are looked up in and put into db (may be NULL). parent: the recipe hash of the capture. */
vqkvc_code vqkvc_plan_kvquant(vqkvc_plan *plan, const vqkvc_capture *capture,
                              const vqkvc_kvquant_params *params, kvdb *db,
                              const vqkvc_hash *parent, const vqkvc_log *log, vqkvc_err *err);

#endif
