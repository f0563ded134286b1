/* aqua.h - the published scheme AQUA-KV (arXiv 2501.19392): K and V of a layer are predicted
 * linearly from what the cache holds of the layer below, and only what is left is coded, by HIGGS.
 *
 *     layer 0   no prediction; a grid of 4 bits a value
 *     layer l   K from K^ of layer l - 1; V from K^ of layer l and V^ of layer l - 1
 *
 * Keys are un-rotated, all KV heads joined. Predictors are ridge regressions with intercept, fitted
 * in a closed loop: their inputs are the reconstructions that the cache will hold, with the tables
 * in binary16 as they are baked in, their targets are exact. The last eighth of the sample is held
 * out, as published, and is what the report is about. The first 4 tokens stay exact, and a buffer
 * of 128 is coded whole when it is full.
 *
 * Not as published: where n_kv_heads * head_dim is no power of two, or above 1024, each Hadamard
 * block (and its gain) is the largest power of two of KV heads that divides them all; the grids are
 * our own k-means (d = 2: n = 16, 64, 256; d = 4: n = 256), and the first layer always has d = 2,
 * n = 256. Reduced rank ranks directions as published, about 0: the mean of a target takes one.
 *
 * Explained is counted about the mean, so that the intercept alone explains nothing. Of ref7m,
 * calibrated on books: K 51 to 77 %, V 85 to 95 %. Its keys have long means (12 to 70 % of their
 * energy is variance), which HIGGS alone would have to code; of the energy 4 to 22 % of K is left.
 * Through emitted headers, 6 windows of 1024 tokens of other books, 2.375 bits a value: KL
 * divergence 0.0020, with the grid of 4 channels 0.0016. */
#ifndef VQKVC_PLAN_AQUA_H
#define VQKVC_PLAN_AQUA_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/plan.h"
#include "plan/predict.h"

/* What a command line should offer: --bits, --grid, --rank and --per-head. */
typedef struct vqkvc_aqua_params {
    int bits;                /* a value, of all layers but the first: 2, 3 or 4; 0: 2 */
    int grid;                /* channels that share a code: 2, or 4 with 2 bits; 0: 2 */
    int rank;                /* of predictors; 0, or as many as there are channels: full */
    int per_head;            /* a head is predicted from the same head only; no rank then */
    vqkvc_window window;     /* defaults: 4 sinks, 1 recent, blocks of 128 */
    vqkvc_explained *report; /* NULL, or [n_layers * 2] out: by layer, K before V; on tokens that
                                predictors were not fitted to */
} vqkvc_aqua_params;

/* Refuses what vqkvc_plan_aqua() would, as far as it can be told before a capture; g NULL: the
 * model is not known yet either. */
vqkvc_code vqkvc_aqua_check(const vqkvc_aqua_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err);

/* Fits and freezes a plan from a capture; *plan is overwritten, and empty after a failure. Fitted
 * predictors are looked up in and put into db (may be NULL). parent: the recipe hash of the
 * capture. */
vqkvc_code vqkvc_plan_aqua(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_aqua_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err);

#endif
