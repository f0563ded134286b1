/* predict.h - fits, applies and judges the predictions of a plan (plan.h), on samples. */
#ifndef VQKVC_PLAN_PREDICT_H
#define VQKVC_PLAN_PREDICT_H

#include "plan/fit_stream.h"
#include "plan/plan.h"

/* How much of one part of one layer is known from what came before. */
typedef struct vqkvc_explained {
    vqkvc_part part;
    int layer;
    int n_sources; /* 0: nothing predicts it */
    vqkvc_prediction_source sources[2];
    double relative_mse; /* squared error of the prediction over the variance; 1 without one */
} vqkvc_explained;

/* Bits a value that the prediction is worth: -log(relative_mse) / log 4, by which the rate of a
 * Gaussian source falls with its variance. */
double vqkvc_explained_bits(const vqkvc_explained *e);
/* "K 3: 87.1 % explained by K 2, 1.48 bits gained" into dst [size]. */
void vqkvc_explained_text(const vqkvc_explained *e, char *dst, size_t size);

/* Ridge of all predictions: 1e-3 (papers.md, AQUA-KV), relative to the mean diagonal. */
extern const double vqkvc_predict_ridge;

/* Adds a prediction with the target, the sources and per_head of `shape`, fitted by ridge
 * regression to n samples: x [n, n_sources * d], the reconstructions of the sources joined, and y
 * [n, d], the exact target; d = n_kv_heads * head_dim. rank 0 or d: full; not with per_head.
 * Tables are looked up in and put into the store, and noted as a parent of the plan. */
vqkvc_code vqkvc_fit_prediction(vqkvc_plan *plan, const vqkvc_prediction *shape, int rank, int n,
                                const float *x, const float *y, const vqkvc_fit_store *store,
                                vqkvc_err *err);

/* y_hat [n, d] = what p, with the binary16 tables of the plan, says from x [n, n_sources * d]; sums
 * in float. */
vqkvc_code vqkvc_predict_apply(const vqkvc_plan *plan, const vqkvc_prediction *p, int n,
                               const float *x, float *y_hat, vqkvc_err *err);

/* Squared errors of predictions, summed over the parts of one target. Starts as {0}. */
typedef struct vqkvc_unexplained {
    double left, spread, energy; /* |Y - Y^|^2, |Y - mean Y|^2, |Y|^2 */
} vqkvc_unexplained;

/* Adds y and y_hat [n, d], rows at distance ld. */
void vqkvc_unexplained_add(vqkvc_unexplained *u, int n, int d, size_t ld, const float *y,
                           const float *y_hat);
/* left / spread; 1 where Y does not vary. */
double vqkvc_relative_mse(const vqkvc_unexplained *u);

#endif
