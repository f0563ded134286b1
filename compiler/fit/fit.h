/* fit.h - the fitting primitives: bases, codebooks, predictors, grids.
 *
 * All are deterministic: the same inputs give the same bits for any number of OpenMP threads (sums
 * over samples run over fixed chunks and are added in order). Matrices are row-major. Inputs with a
 * NaN or an infinity are refused with VQKVC_E_NUMERIC naming row and column. */
#ifndef VQKVC_FIT_FIT_H
#define VQKVC_FIT_FIT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* ---- bases (pca.c) ---- */

/* A learned basis of d channels in a metric M (symmetric positive semi-definite, [d, d]): the
 * orthonormal eigenvectors U of M^1/2 Cov M^1/2, so that the expected weighted error
 * E (x - x^)' M (x - x^) of dropping or quantizing latents is the sum of their squared errors.
 *   latents z = enc' (x - mean),   x^ = mean + dec z^. */
typedef struct vqkvc_basis {
    int d, n;       /* channels in, latents kept, n <= d */
    double *enc;    /* [d, n] = M^1/2 U */
    double *dec;    /* [d, n] = M^-1/2 U */
    double *lambda; /* [d] variance of every latent, descending, kept or not */
} vqkvc_basis;

/* cov [d, d] centred covariance; metric [d, d] or NULL for the identity. Directions that the metric
 * sees less than ridge (relative to its mean eigenvalue, for example 1e-3) are lifted to that
 * level, so that M^-1/2 stays bounded. The caller frees with vqkvc_basis_free(). */
vqkvc_code vqkvc_fit_basis(int d, int n, const double *cov, const double *metric, double ridge,
                           vqkvc_basis *basis, vqkvc_err *err);
void vqkvc_basis_free(vqkvc_basis *basis);

/* The spectrum of vqkvc_fit_basis() for a metric in blocks along its diagonal, metric[i] [block,
 * block] at channel i * block (d a multiple of block), without its maps, in less time: cov [d, d]
 * becomes U, the eigenvectors in its rows; lambda [d]. */
vqkvc_code vqkvc_fit_spectrum(int d, int block, double *cov, const double *const *metric,
                              double ridge, double *lambda, vqkvc_err *err);

/* Mean [d] and centred covariance [d, d] of x [n, d], weights [n] or NULL; fixed chunks, double. */
vqkvc_code vqkvc_fit_moments(int n, int d, const float *x, size_t ldx, const float *weights,
                             double *mean, double *cov, vqkvc_err *err);

/* ---- codebooks (kmeans.c) ---- */

typedef struct vqkvc_kmeans_params {
    int k;            /* centroids, >= 1 */
    int max_iters;    /* Lloyd iterations, 0: 25 */
    int restarts;     /* k-means++ seedings, the best objective is kept; 0: 1 */
    double tolerance; /* stop when the objective falls by less than this fraction; 0: 1e-4 */
    uint64_t seed;
    int seed_by_rows; /* start from k rows of x, spread evenly, instead of k-means++, which for
                         thousands of centroids takes longer than the iterations */
} vqkvc_kmeans_params;

/* x [n, d] rows at distance ldx, weights [n] or NULL. centroids [k, d] out; assign [n] out or NULL;
 * *objective: weighted mean of squared distances. Seeding is k-means++; distances are BLAS products
 * in float refined in double for the objective; an empty cluster takes the point farthest from its
 * centroid. With fewer distinct points than k the surplus centroids repeat points. */
vqkvc_code vqkvc_fit_kmeans(int n, int d, const float *x, size_t ldx, const float *weights,
                            const vqkvc_kmeans_params *params, float *centroids, int32_t *assign,
                            double *objective, vqkvc_err *err);

/* The nearest centroid of each row: ties go to the lower index. */
void vqkvc_kmeans_assign(int n, int d, const float *x, size_t ldx, int k, const float *centroids,
                         int32_t *assign);

/* ---- codebooks in stages (residual.c) ---- */

typedef struct vqkvc_residual_params {
    int stages, bits; /* of one code: 1..16 */
    int sweeps;       /* at most so many joint refinements */
    uint64_t seed;
} vqkvc_residual_params;

/* Residual k-means of x [n, d]: stage after stage on what the ones before have left, then joint
 * refinements: each stage's codewords become the means of what all other stages leave of their
 * points, and the points are coded afresh. books [stages, d, 2^bits] out, binary16, channel by
 * channel as plans have them; objective [stages + 1 + sweeps] out: the mean squared norm of what
 * greedy coding leaves of the sample before any stage, after each of them, and after each
 * refinement; it never rises from the last stage on, because a refinement that does not help is
 * given up, and with it the rest. */
vqkvc_code vqkvc_fit_residual(int n, int d, const float *x, const vqkvc_residual_params *params,
                              uint16_t *books, double *objective, vqkvc_err *err);

/* ---- predictors (ridge.c) ---- */

/* Ridge regression with intercept of y [n, dy] on x [n, dx] (papers.md, AQUA-KV):
 * X~ = [X, 1]; G = X~'X~; G_ii += ridge * mean|diag G|; W = G^-1 X~'Y [dx + 1, dy], the intercept
 * last. rank > 0 and < dy: reduced rank, W = left [dx + 1, rank] * right [rank, dy] with right the
 * top eigenvectors of Y'X G^-1 X'Y; then w holds their product. */
typedef struct vqkvc_predictor {
    int dx, dy, rank;    /* rank 0: full */
    double *w;           /* [dx + 1, dy] */
    double *left;        /* [dx + 1, rank] or NULL */
    double *right;       /* [rank, dy] or NULL */
    double relative_mse; /* on the fitting samples: |Y - X~W|^2 / |Y - mean Y|^2; 1 where Y is
                          * constant */
} vqkvc_predictor;

vqkvc_code vqkvc_fit_ridge(int n, int dx, const float *x, int dy, const float *y, double ridge,
                           int rank, vqkvc_predictor *p, vqkvc_err *err);
void vqkvc_predictor_free(vqkvc_predictor *p);
/* y^ [n, dy] = [x, 1] W */
void vqkvc_predict(const vqkvc_predictor *p, int n, const float *x, float *y);

/* ---- grids (grid.c) ---- */

/* The fixed grid of n points for d-dimensional standard normal vectors that HIGGS-like codecs use:
 * k-means on seeded Gaussian samples for d > 1, Lloyd-Max for d == 1. Scalar grids are ascending
 * and symmetric under sign; others are not, because that costs up to 1.5 % (figures in grid.c).
 * points [n, d], d <= 64, n <= 65536; *distortion: mean squared error per dimension, on fresh
 * samples for d > 1 and by integration for d == 1. */
vqkvc_code vqkvc_fit_gaussian_grid(int d, int n, uint64_t seed, float *points, double *distortion,
                                   vqkvc_err *err);

#endif
