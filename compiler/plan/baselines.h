/* baselines.h - baselines of others that need no calibration, as streams of a plan whose geometry
 * and window are set. `bits` are those of a code a value; vqkvc_plan_preset() calls them by name.
 */
#ifndef VQKVC_PLAN_BASELINES_H
#define VQKVC_PLAN_BASELINES_H

#include "plan/plan.h"

/* KIVI (arXiv 2402.02750): keys, rotated by their position, in one range a channel and 32 tokens;
 * values in one range a token and 32 channels; asymmetric uniform codes of 1 to 8 bits. A range is
 * two binary16 for 32 values: `bits` + 1 bits a value. The latest 128 tokens exact, no sinks. As
 * published, keys leave their window 128 at a time; here a block at a time. */
vqkvc_code vqkvc_build_kivi(vqkvc_plan *plan, int bits, vqkvc_err *err);

/* TurboQuant (arXiv 2504.19874), the variant of least squared error: each head, keys rotated by
 * their position, turned by one random orthogonal matrix, divided by its root mean square, and
 * every channel rounded to the Lloyd-Max levels of a normal distribution. `bits` + 16 / head_dim
 * bits a value. The paper takes the levels of a coordinate on the sphere, which for head_dim
 * channels is close to normal; its second variant, a bit a channel of a sketch of what is left,
 * does without bias of scores and is not built. The matrix is the same for all heads. */
vqkvc_code vqkvc_build_turbo(vqkvc_plan *plan, int bits, vqkvc_err *err);

/* NSNQuant: each head's tokens divided by their root mean square, the mean over a block's tokens
 * taken off, divided by the root mean square again, Hadamard transform, and one codebook for
 * Gaussian vectors. Turning before or after the normalisations is the same but for rounding, since
 * the transform is linear and keeps lengths; here it comes first. The paper's codebook is for 8
 * channels; searching all 2^16 codewords of 2 bits a channel takes too long at append, so here 4
 * channels share a code of 8 bits: a mean squared error of 0.097 in place of some 0.09. 2 bits a
 * value, 32 / head_dim for the gains and 16 / block for the means. */
vqkvc_code vqkvc_build_nsn(vqkvc_plan *plan, int bits, vqkvc_err *err);

#endif
