/* pca.c - moments of samples, and bases that are orthonormal in a metric. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "base/memory.h"
#include "fit/checks.h"
#include "fit/fit.h"
#include "fit/gram.h"

/* ---- moments ---- */

static double weight_of(const float *weights, int i)
{
    return weights ? weights[i] : 1.0;
}

/* mean [d] = sum of w x / total; partial [d] is scratch for one chunk's sum. */
static void weighted_mean(int n, int d, const float *x, size_t ldx, const float *weights,
                          double total, double *partial, double *mean)
{
    memset(mean, 0, (size_t)d * sizeof *mean);
    for (int begin = 0; begin < n; begin += VQKVC_GRAM_ROWS) {
        int end = n - begin < VQKVC_GRAM_ROWS ? n : begin + VQKVC_GRAM_ROWS;
        memset(partial, 0, (size_t)d * sizeof *partial);
        for (int i = begin; i < end; i++)
            for (int j = 0; j < d; j++)
                partial[j] += weight_of(weights, i) * x[(size_t)i * ldx + j];
        for (int j = 0; j < d; j++)
            mean[j] += partial[j];
    }
    for (int j = 0; j < d; j++)
        mean[j] /= total;
}

/* chunk [rows, d] = sqrt(w) (x - mean): the root makes chunk' chunk a weighted covariance. */
static void centre_chunk(int begin, int rows, int d, const float *x, size_t ldx,
                         const float *weights, const double *mean, double *chunk)
{
    for (int i = 0; i < rows; i++) {
        double root = sqrt(weight_of(weights, begin + i));
        const float *row = x + (size_t)(begin + i) * ldx;
        for (int j = 0; j < d; j++)
            chunk[(size_t)i * d + j] = root * (row[j] - mean[j]);
    }
}

vqkvc_code vqkvc_fit_moments(int n, int d, const float *x, size_t ldx, const float *weights,
                             double *mean, double *cov, vqkvc_err *err)
{
    if (n < 1 || d < 1 || ldx < (size_t)d)
        return vqkvc_fail(err, VQKVC_E_USAGE, "moments of a %d x %d sample", n, d);
    VQKVC_TRY(vqkvc_check_f32("samples", n, d, x, ldx, FLT_MAX, err));
    double total;
    VQKVC_TRY(vqkvc_check_weights(n, weights, &total, err));

    size_t dd = (size_t)d * (size_t)d;
    double *chunk = vqkvc_alloc((size_t)VQKVC_GRAM_ROWS * (size_t)d, sizeof *chunk, err);
    if (chunk) {
        weighted_mean(n, d, x, ldx, weights, total, chunk, mean);
        memset(cov, 0, dd * sizeof *cov);
        for (int begin = 0; begin < n; begin += VQKVC_GRAM_ROWS) {
            int rows = n - begin < VQKVC_GRAM_ROWS ? n - begin : VQKVC_GRAM_ROWS;
            centre_chunk(begin, rows, d, x, ldx, weights, mean, chunk);
            vqkvc_dgemm_gram_add(d, rows, chunk, (size_t)d, cov, (size_t)d);
        }
        for (size_t i = 0; i < (size_t)d; i++)
            for (size_t j = i; j < (size_t)d; j++)
                cov[i * (size_t)d + j] = cov[j * (size_t)d + i] = cov[i * (size_t)d + j] / total;
    }
    free(chunk);
    return err->code;
}

/* ---- bases ---- */

/* Eigenvalues w [d] may be negative by rounding only. */
static vqkvc_code check_semi_definite(const char *what, int d, const double *w, vqkvc_err *err)
{
    if (w[d - 1] < -1e-6 * fmax(w[0], 0))
        return vqkvc_fail(err, VQKVC_E_NUMERIC,
                          "the %s is not positive semi-definite: eigenvalues from %g to %g", what,
                          w[d - 1], w[0]);
    return VQKVC_OK;
}

/* out [d, d] = V' diag(w^exponent) V with eigenvectors in the rows of v; scratch [d, d]. */
static void spectral_power(int d, const double *v, const double *w, double exponent,
                           double *scratch, double *out)
{
    size_t ld = (size_t)d;
    for (size_t i = 0; i < ld; i++) {
        double scale = pow(w[i], exponent);
        for (size_t j = 0; j < ld; j++)
            scratch[i * ld + j] = scale * v[i * ld + j];
    }
    vqkvc_dgemm_tn(d, d, d, v, ld, scratch, ld, out, ld);
    vqkvc_symmetrise(d, out);
}

/* root = M^1/2 and inverse = M^-1/2 [d, d] after lifting small eigenvalues; scratch [2, d, d]. */
static vqkvc_code metric_roots(int d, const double *metric, double ridge, double *root,
                               double *inverse, double *scratch, double *w, vqkvc_err *err)
{
    size_t dd = (size_t)d * (size_t)d;
    double *v = scratch + dd, mean = 0;
    VQKVC_TRY(vqkvc_check_f64("metric", d, d, metric, (size_t)d, DBL_MAX, err));
    memcpy(v, metric, dd * sizeof *v);
    vqkvc_symmetrise(d, v);
    VQKVC_TRY(vqkvc_eigen_symmetric(d, v, w, err));
    VQKVC_TRY(check_semi_definite("metric", d, w, err));
    for (int i = 0; i < d; i++)
        mean += w[i] / d;
    if (!(w[0] > 0))
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "the metric is zero: it weighs no direction");
    /* Without a ridge, what rounding alone can tell from zero still bounds the inverse. */
    double lowest = fmax(ridge * mean, DBL_EPSILON * d * w[0]);
    for (int i = 0; i < d; i++)
        w[i] = fmax(w[i], lowest);
    spectral_power(d, v, w, 0.5, scratch, root);
    spectral_power(d, v, w, -0.5, scratch, inverse);
    return VQKVC_OK;
}

/* u [d, d] = eigenvectors in rows of root cov root (of cov, without a root), lambda [d]. */
static vqkvc_code whitened_eigen(int d, const double *cov, const double *root, double *scratch,
                                 double *u, double *lambda, vqkvc_err *err)
{
    size_t ld = (size_t)d;
    memcpy(u, cov, ld * ld * sizeof *u);
    if (root) {
        vqkvc_dgemm_nn(d, d, d, root, ld, cov, ld, scratch, ld);
        vqkvc_dgemm_nn(d, d, d, scratch, ld, root, ld, u, ld);
    }
    vqkvc_symmetrise(d, u);
    VQKVC_TRY(vqkvc_eigen_symmetric(d, u, lambda, err));
    VQKVC_TRY(check_semi_definite("covariance", d, lambda, err));
    for (int i = 0; i < d; i++)
        lambda[i] = fmax(lambda[i], 0);
    return VQKVC_OK;
}

/* out [d, n] = map times the first n rows of u [d, d] as columns; map NULL is the identity. */
static void keep_latents(int d, int n, const double *map, const double *u, double *out)
{
    size_t ld = (size_t)d;
    if (map) {
        vqkvc_dgemm_nt(d, n, d, map, ld, u, ld, out, (size_t)n);
        return;
    }
    for (size_t i = 0; i < ld; i++)
        for (size_t j = 0; j < (size_t)n; j++)
            out[i * (size_t)n + j] = u[j * ld + i];
}

/* work [5, d, d]: M^1/2, M^-1/2, U and two of scratch. */
static vqkvc_code fit_into(const double *cov, const double *metric, double ridge, double *work,
                           vqkvc_basis *b, vqkvc_err *err)
{
    size_t dd = (size_t)b->d * (size_t)b->d;
    double *root = work, *inverse = work + dd, *u = work + 2 * dd, *scratch = work + 3 * dd;
    if (metric)
        VQKVC_TRY(metric_roots(b->d, metric, ridge, root, inverse, scratch, b->lambda, err));
    VQKVC_TRY(whitened_eigen(b->d, cov, metric ? root : NULL, scratch, u, b->lambda, err));
    keep_latents(b->d, b->n, metric ? root : NULL, u, b->enc);
    keep_latents(b->d, b->n, metric ? inverse : NULL, u, b->dec);
    return VQKVC_OK;
}

vqkvc_code vqkvc_fit_basis(int d, int n, const double *cov, const double *metric, double ridge,
                           vqkvc_basis *basis, vqkvc_err *err)
{
    *basis = (vqkvc_basis){.d = d, .n = n};
    if (d < 1 || n < 1 || n > d || !(ridge >= 0) || isinf(ridge))
        return vqkvc_fail(err, VQKVC_E_USAGE, "a basis of %d latents of %d channels, ridge %g", n,
                          d, ridge);
    VQKVC_TRY(vqkvc_check_f64("covariance", d, d, cov, (size_t)d, DBL_MAX, err));

    size_t dd = (size_t)d * (size_t)d;
    double *work = vqkvc_alloc(5 * dd, sizeof *work, err);
    basis->enc = vqkvc_alloc((size_t)d * (size_t)n, sizeof *basis->enc, err);
    basis->dec = vqkvc_alloc((size_t)d * (size_t)n, sizeof *basis->dec, err);
    basis->lambda = vqkvc_alloc((size_t)d, sizeof *basis->lambda, err);
    vqkvc_code code = VQKVC_E_MEMORY;
    if (work && basis->enc && basis->dec && basis->lambda)
        code = fit_into(cov, metric, ridge, work, basis, err);
    free(work);
    if (code != VQKVC_OK)
        vqkvc_basis_free(basis);
    return code;
}

/* root [blocks][block, block] = square roots of the blocks of a metric, small eigenvalues lifted;
 * v: eigenvectors on entry; scratch [block, block]. */
static vqkvc_code block_roots(int d, int block, const double *const *metric, double ridge,
                              double *root, double *v, double *w, double *scratch, vqkvc_err *err)
{
    size_t size = (size_t)block * (size_t)block;
    double mean = 0, largest = 0;
    for (int b = 0; b < d / block; b++) {
        double *vectors = v + (size_t)b * size;
        VQKVC_TRY(vqkvc_check_f64("metric", block, block, metric[b], (size_t)block, DBL_MAX, err));
        memcpy(vectors, metric[b], size * sizeof *vectors);
        vqkvc_symmetrise(block, vectors);
        VQKVC_TRY(vqkvc_eigen_symmetric(block, vectors, w + b * block, err));
        VQKVC_TRY(check_semi_definite("metric", block, w + b * block, err));
        for (int i = b * block; i < (b + 1) * block; i++) {
            mean += w[i] / d;
            largest = fmax(largest, w[i]);
        }
    }
    if (!(largest > 0))
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "the metric is zero: it weighs no direction");
    double lowest = fmax(ridge * mean, DBL_EPSILON * d * largest);
    for (int i = 0; i < d; i++)
        w[i] = fmax(w[i], lowest);
    for (int b = 0; b < d / block; b++)
        spectral_power(block, v + (size_t)b * size, w + b * block, 0.5, scratch,
                       root + (size_t)b * size);
    return VQKVC_OK;
}

/* cov = root cov root for a root in blocks; product [block, d]. */
static void whiten_blocks(int d, int block, const double *root, double *cov, double *product)
{
    size_t ld = (size_t)d, n = (size_t)block;
    for (size_t at = 0; at < ld; at += n) { /* rows */
        vqkvc_dgemm_nn(block, d, block, root + at * n, n, cov + at * ld, ld, product, ld);
        memcpy(cov + at * ld, product, n * ld * sizeof *cov);
    }
    for (size_t at = 0; at < ld; at += n) { /* columns */
        vqkvc_dgemm_nn(d, block, block, cov + at, ld, root + at * n, n, product, n);
        for (size_t i = 0; i < ld; i++)
            memcpy(cov + i * ld + at, product + i * n, n * sizeof *cov);
    }
    vqkvc_symmetrise(d, cov);
}

vqkvc_code vqkvc_fit_spectrum(int d, int block, double *cov, const double *const *metric,
                              double ridge, double *lambda, vqkvc_err *err)
{
    size_t n = (size_t)d * (size_t)block;
    if (d < 1 || block < 1 || d % block != 0 || !(ridge >= 0) || isinf(ridge))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "the spectrum of %d channels, a metric in blocks of %d, ridge %g", d,
                          block, ridge);
    VQKVC_TRY(vqkvc_check_f64("covariance", d, d, cov, (size_t)d, DBL_MAX, err));
    double *root = vqkvc_alloc(n, sizeof *root, err);
    double *work = vqkvc_alloc(n, 2 * sizeof *work, err);
    if (root != NULL && work != NULL &&
        block_roots(d, block, metric, ridge, root, work, lambda, work + n, err) == VQKVC_OK) {
        whiten_blocks(d, block, root, cov, work);
        if (vqkvc_eigen_symmetric(d, cov, lambda, err) == VQKVC_OK)
            check_semi_definite("covariance", d, lambda, err);
        for (int i = 0; i < d; i++)
            lambda[i] = fmax(lambda[i], 0);
    }
    free(root);
    free(work);
    return err->code;
}

void vqkvc_basis_free(vqkvc_basis *basis)
{
    free(basis->enc);
    free(basis->dec);
    free(basis->lambda);
    *basis = (vqkvc_basis){0};
}
