/* anchor.h - the scheme `anchor`, ours: AQUA-KV without a chain and without rebuilding a vector.
 *
 * Every n-th layer is an anchor with streams of its own. The layers up to the next anchor, its
 * followers, are predicted linearly from the anchor's reconstruction in the block frame (keys carry
 * the rotation by their offset in the block alone, so that one matrix serves all positions about
 * equally well), and only what is left of them is coded. A prediction of V takes V of the anchor.
 *
 * No prediction of the plan (plan.h) is needed: anchor and followers are one shared stream whose
 * latents are the anchor's, x^_a = m + H z. Encoding sees the anchor alone (the rows of followers
 * in `enc` are 0), decoding gives every follower its prediction W x^_a + b (its rows of `dec` are
 * W H, of `mean` W m + b). Streams of the followers code the rest. Everything is absorbed in
 * queries and outputs as for any shared stream; a follower's attention reads the anchor's codes
 * besides its own.
 *
 * Measured through emitted headers (ref7m, calibrated on books, 2 windows of 1024 tokens of other
 * books, blocks of 64, followers of 2 bits; stored bits a value and KL divergence): no followers
 * 2.125, 0.0105; every 2 layers with anchors of 2 and 3 bits 2.125, 0.0057 and 2.625, 0.0016; every
 * 4 with 2, 3 and 4 bits 2.125, 0.0058, 2.375, 0.0024 and 2.625, 0.0021 (by head: 2.75, 0.0042);
 * every 8 with 4 bits 2.375, 0.0064. HIGGS: 2.125, 0.0151. */
#ifndef VQKVC_PLAN_ANCHOR_H
#define VQKVC_PLAN_ANCHOR_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/plan.h"
#include "plan/predict.h"

/* What a command line should offer: --anchor-every, --bits, --anchor-bits and --per-head. */
typedef struct vqkvc_anchor_params {
    int every;               /* layers from anchor to anchor; 0: 4; 1: no followers */
    int bits;                /* a value, of followers: 2, 3 or 4; 0: 2 */
    int anchor_bits;         /* the same of anchors; 0: one more, but 4 at most */
    int per_head;            /* a head is predicted from, and coded with, the same head only:
                                less to read, more gains */
    vqkvc_window window;     /* defaults: 4 sinks, 32 recent, blocks of 64 */
    uint64_t seed;           /* of the offsets that sampled keys are turned by */
    vqkvc_explained *report; /* NULL, or [n_layers * 2] out: by layer, K before V; on tokens that
                                predictors were not fitted to */
} vqkvc_anchor_params;

/* Refuses what vqkvc_plan_anchor() would, as far as it can be told before a capture. */
vqkvc_code vqkvc_anchor_check(const vqkvc_anchor_params *params, vqkvc_err *err);

/* Fits and freezes a plan from a capture; *plan is overwritten, and empty after a failure. Fitted
 * streams are looked up in and put into db (may be NULL). parent: the recipe hash of the capture.
 */
vqkvc_code vqkvc_plan_anchor(vqkvc_plan *plan, const vqkvc_capture *capture,
                             const vqkvc_anchor_params *params, kvdb *db, const vqkvc_hash *parent,
                             const vqkvc_log *log, vqkvc_err *err);

#endif
