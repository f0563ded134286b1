/* calibration.h - calibration samples in a stream's frame, and the metrics in which errors count.
 */
#ifndef VQKVC_PLAN_CALIBRATION_H
#define VQKVC_PLAN_CALIBRATION_H

#include "capture/capture.h"
#include "fit/fit.h"
#include "plan/frame.h"

/* Ridge of bases and spectra in a metric, as a share of its mean eigenvalue. The search predicts
 * what the fit then does and probes weigh the latents that both see: all three take the same. */
#define VQKVC_METRIC_RIDGE 1e-3

/* The sampled vectors of n_members heads of one part, joined: x [n_sample, n_members * head_dim].
 * Keys are put into the frame: BLOCK turns each by seeded offsets into its spans, POST by its
 * position; every key carries rope_mscale as the cache will see it. */
vqkvc_code vqkvc_sample_members(const vqkvc_capture *c, const vqkvc_member *members, int n_members,
                                const vqkvc_key_frame *frame, uint64_t seed, float *x,
                                vqkvc_err *err);

/* Metrics of all heads: squared errors in them add up to a loss over the whole model.
 * Values: Wo'Wo, alike in all layers, since every layer adds to the same residual stream (dividing
 * by the stream's mean square at the layer made the KL divergence 6.5 times worse, see SPEED.md).
 * Keys: an error e moves a score by scale * q . e; to first order the output moves by that times
 * the spread of the values about their mean, so E[q q'] counts times scale^2 tr(Wo'Wo Cov v)
 * (without that factor: 26 times worse; four times or a quarter of it: 1.3 to 1.5 times). Queries
 * are turned by distances up to the trained context, as they meet keys in every frame. k, v:
 * [n_layers * n_kv_heads] matrices [head_dim, head_dim], in arena. */
typedef struct vqkvc_metrics {
    double **k, **v;
} vqkvc_metrics;

vqkvc_code vqkvc_sample_metrics(const vqkvc_capture *c, vqkvc_arena *arena, vqkvc_metrics *m,
                                vqkvc_err *err);

/* What errors of each head cost, as probes measured it (eval/sensitivity.h): the latents of a
 * head's own basis, vqkvc_head_basis(), in `groups` groups of neighbours, by falling variance. */
typedef struct vqkvc_sensitivity {
    int groups;       /* 1: one figure a head */
    const double *at; /* [2, n_layers, n_kv_heads, groups] nats of KL divergence a unit of squared
                         error in the metric; by part */
} vqkvc_sensitivity;

/* The first latent of a group of `groups` in dim; of group `groups` it is dim. */
int vqkvc_sensitivity_first(int dim, int groups, int group);

/* Basis of one head by itself, all latents, keys un-rotated, in its metric of m. The caller frees
 * with vqkvc_basis_free(). */
vqkvc_code vqkvc_head_basis(const vqkvc_capture *c, vqkvc_member member, const vqkvc_metrics *m,
                            uint64_t seed, vqkvc_basis *basis, vqkvc_err *err);

/* Sensitivities for caches that are much longer than the probes' windows: none below the geometric
 * mean of its part. Where attention has thousands of tokens to choose from, errors of heads that
 * hardly mattered do: on the bundled model KL at 4096 and 8192 tokens is half of what it is
 * otherwise, at 1024 a third more (SPEED.md). raised: as s.at. */
void vqkvc_sensitivity_raise(const vqkvc_geometry *g, vqkvc_sensitivity s, double *raised);

/* Scales every metric of m, in place, by its measured sensitivities: losses are then in nats. */
vqkvc_code vqkvc_metrics_weigh(const vqkvc_capture *c, const vqkvc_sensitivity *sensitivity,
                               uint64_t seed, vqkvc_metrics *m, vqkvc_err *err);

/* Every metric becomes the identity times its mean eigenvalue, in place. */
void vqkvc_metrics_level(const vqkvc_capture *c, vqkvc_metrics *m);

/* Turns the metrics of un-rotated keys into those of keys in a frame, in place: BLOCK averages over
 * the offsets in its spans, POST over positions of the sample. */
vqkvc_code vqkvc_metrics_turn(const vqkvc_capture *c, const vqkvc_key_frame *frame,
                              vqkvc_metrics *m, vqkvc_err *err);

#endif
