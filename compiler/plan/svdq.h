/* svdq.h - the published scheme SVDq (arXiv 2502.15304): keys before rotation, all KV heads of a
 * layer joined, in the basis of their singular vectors; eight groups of latents in the order of
 * their variance, each with codes of its own width; every latent in uniform levels between the
 * smallest and the largest of a group of tokens. Groups of 0 bits are dropped. Values are those of
 * another preset, exact as published.
 *
 * Here the basis is that of the model, from a calibration; the paper takes that of each prompt,
 * which would be stored with the cache. How many tokens share a range is not published; 32 is what
 * a port has. A range is two binary16: 32 / group bits for every latent that is kept, which the
 * paper's rates do not count and this one's do. */
#ifndef VQKVC_PLAN_SVDQ_H
#define VQKVC_PLAN_SVDQ_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/plan.h"

enum { VQKVC_SVDQ_GROUPS = 8 };

/* Keys of one layer on the calibration's sample: what a claim of the paper comes to. Squared errors
 * are over the squared distances from the mean; per_channel is that of uniform levels for each
 * channel of the keys as they are, at the same average bits and tokens a range, interpolated in
 * the logarithm between whole numbers of bits. */
typedef struct vqkvc_svdq_claim {
    double bits; /* of codes, a value of K */
    double error, per_channel;
} vqkvc_svdq_claim;

typedef struct vqkvc_svdq_params {
    const char *schedule;     /* bits of the groups, "4,2,2,1,1,0,0,0"; NULL: that, 1.25 bits */
    const char *values;       /* a preset whose streams of V are taken; NULL: "f16" */
    int group;                /* tokens that share a range; 0: 32; divides the block */
    vqkvc_window window;      /* defaults: 4 sinks, 32 recent, blocks of 64 */
    vqkvc_svdq_claim *claims; /* NULL, or [n_layers] out */
} vqkvc_svdq_params;

/* Reads a schedule into bits [VQKVC_SVDQ_GROUPS], 0 to 8 each, not all of them 0. */
vqkvc_code vqkvc_svdq_schedule(const char *text, uint8_t *bits, vqkvc_err *err);

/* "K 3: 1.25 bits leave 4.10 % of the variance, ..." into dst [size]. */
void vqkvc_svdq_claim_text(const vqkvc_svdq_claim *claim, int layer, char *dst, size_t size);

/* Refuses what vqkvc_plan_svdq() would, as far as it can be told before a capture; g NULL: the
 * model is not known yet either. */
vqkvc_code vqkvc_svdq_check(const vqkvc_svdq_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err);

/* Fits and freezes a plan from a capture, and says on the log how the paper's claim holds layer by
 * layer; *plan is overwritten, and empty after a failure. Bases are looked up in and put into db
 * (may be NULL). parent: the recipe hash of the capture. */
vqkvc_code vqkvc_plan_svdq(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_svdq_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err);

#endif
