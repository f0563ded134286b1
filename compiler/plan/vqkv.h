/* vqkv.h - the published scheme VQKV (arXiv 2603.16435): each head's key, rotated by its position,
 * and each head's value is a sum of codewords, one of each stage of a residual stack; no transform,
 * no mean, no gain. Attended through tables and bins, without rebuilding a vector.
 *
 * Published for a head_dim of 128: 56 stages of 1024 codewords for keys, 16 of 512 for values:
 * 4.375 and 1.125 bits a value, 2.75 together; for the smaller Llama-3.2-3B 10 of 65536 for values
 * (1.25 bits), which stages and bits give here. For another head_dim the number of stages follows,
 * so that the bits a value stay the same. The first 4 tokens are exact and, as published, the
 * latest 1024; here the latest 32 unless asked otherwise, so that schemes are compared alike.
 *
 * An earlier version codes keys in two branches by RoPE frequency, each with its own stack. Its
 * index sets are not published; here the pairs of a head are ordered by frequency, the faster half
 * of them (rounded down) is one branch, the slower half and what is not rotated the other, and the
 * slower branch has the stage that is left over where their number is odd. A branch is a stream of
 * the head over a basis of zeros and ones, which takes the branch's channels in their order. Key
 * codebooks take half as many bytes so. Fitted to 8192 tokens that the bundled model sampled, and
 * evaluated on 3 windows of 512 others: KL 0.0118 in two branches, 0.0106 in one, at equal bits.
 *
 * Not published: how many vectors share codebooks, which is a parameter here, and how they are
 * trained but for the objective; here residual k-means with joint refinement.
 *
 * Codebooks are shared over the model unless asked otherwise, for two reasons. Bytes: one set takes
 * 4.2 MB at a head_dim of 64, 12 MB of header, and every layer or head would add as much. Samples:
 * 8192 tokens give one layer of the bundled model 16 vectors a codeword. Behind 10 stages of keys,
 * 4 of values, layers 0 and 1, the squared error left of fitted and of held-out tokens was 0.076
 * and 0.096 (keys), 0.27 and 0.29 (values) with codebooks of the model, 0.016 and 0.076, 0.065 and
 * 0.11 with those of a layer: better still, but most of what more stages would learn is noise. */
#ifndef VQKVC_PLAN_VQKV_H
#define VQKVC_PLAN_VQKV_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/plan.h"

/* Which vectors of one part, K or V, share codebooks. */
typedef enum vqkvc_share { VQKVC_SHARE_MODEL, VQKVC_SHARE_LAYER, VQKVC_SHARE_HEAD } vqkvc_share;

typedef struct vqkvc_vqkv_params {
    int stages[2], bits[2]; /* by part, K and V; 0: as published, stages for the head_dim */
    vqkvc_share share;
    int beam;       /* candidates from stage to stage when coding; 0 or 1: greedy, as published */
    int branches;   /* of keys: 0 or 1: none; 2: by RoPE frequency */
    int sweeps;     /* joint refinements at most; 0: 1, negative: none */
    int max_points; /* vectors that codebooks are fitted to; 0: 65536 */
    vqkvc_window window;
    uint64_t seed;
} vqkvc_vqkv_params;

/* Refuses what vqkvc_plan_vqkv() would, as far as it can be told before a capture; g NULL: the
 * model is not known yet either. */
vqkvc_code vqkvc_vqkv_check(const vqkvc_vqkv_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err);

/* Fits and freezes a plan from a capture; *plan is overwritten, and empty after a failure. Fitted
 * codebooks are looked up in and put into db (may be NULL). parent: the recipe hash of the capture.
 */
vqkvc_code vqkvc_plan_vqkv(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_vqkv_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err);

#endif
