/* Properties of moments and of bases in a metric. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/matrix.h"
#include "base/rng.h"
#include "fit/fit.h"

enum { D = 6, N = 3000 };

/* x [n, d]: mixed normal channels around an offset. */
static void make_samples(int n, int d, uint64_t seed, float *x)
{
    vqkvc_rng rng = vqkvc_rng_make(seed, 0);
    for (int i = 0; i < n; i++) {
        double carried = 0;
        for (int j = 0; j < d; j++) {
            carried = 0.6 * carried + (j + 1) * vqkvc_rng_normal(&rng);
            x[i * d + j] = (float)(carried + 5 * j);
        }
    }
}

/* m [d, d] = A A' with A [d, rank] random: singular for rank < d. */
static void make_metric(int d, int rank, uint64_t seed, double *m)
{
    vqkvc_rng rng = vqkvc_rng_make(seed, 1);
    double a[D * D];
    for (int i = 0; i < d * rank; i++)
        a[i] = vqkvc_rng_normal(&rng);
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) {
            m[i * d + j] = 0;
            for (int k = 0; k < rank; k++)
                m[i * d + j] += a[i * rank + k] * a[j * rank + k];
        }
}

/* Eigenvalues w [d], descending, by Jacobi rotations: slow, plain, and unlike LAPACK. */
static void jacobi(int d, double *a, double *w)
{
    for (int sweep = 0; sweep < 60; sweep++)
        for (int p = 0; p < d; p++)
            for (int q = p + 1; q < d; q++) {
                double t = 0.5 * atan2(2 * a[p * d + q], a[q * d + q] - a[p * d + p]);
                double c = cos(t), s = sin(t);
                for (int k = 0; k < d; k++) {
                    double x = a[k * d + p], y = a[k * d + q];
                    a[k * d + p] = c * x - s * y;
                    a[k * d + q] = s * x + c * y;
                }
                for (int k = 0; k < d; k++) {
                    double x = a[p * d + k], y = a[q * d + k];
                    a[p * d + k] = c * x - s * y;
                    a[q * d + k] = s * x + c * y;
                }
            }
    for (int i = 0; i < d; i++)
        w[i] = a[i * d + i];
    for (int i = 0; i < d; i++)
        for (int j = i + 1; j < d; j++)
            if (w[j] > w[i]) {
                double t = w[i];
                w[i] = w[j];
                w[j] = t;
            }
}

/* Mean of (x - x^)' m (x - x^) with the latents of b kept exactly. */
static double weighted_error(int n, const float *x, const double *mean, const double *m,
                             const vqkvc_basis *b)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double e[D] = {0}, z;
        for (int j = 0; j < b->d; j++)
            e[j] = x[i * b->d + j] - mean[j];
        double left[D];
        memcpy(left, e, sizeof left);
        for (int l = 0; l < b->n; l++) {
            z = 0;
            for (int j = 0; j < b->d; j++)
                z += b->enc[j * b->n + l] * e[j];
            for (int j = 0; j < b->d; j++)
                left[j] -= b->dec[j * b->n + l] * z;
        }
        for (int j = 0; j < b->d; j++)
            for (int k = 0; k < b->d; k++)
                sum += left[j] * m[j * b->d + k] * left[k];
    }
    return sum / n;
}

/* |a' b - I| at most, for a, b [d, n]. */
static double far_from_identity(const vqkvc_basis *s, const double *a, const double *b)
{
    double worst = 0;
    for (int i = 0; i < s->n; i++)
        for (int j = 0; j < s->n; j++) {
            double v = i == j ? -1 : 0;
            for (int k = 0; k < s->d; k++)
                v += a[k * s->n + i] * b[k * s->n + j];
            worst = fmax(worst, fabs(v));
        }
    return worst;
}

TestSuite(pca, .init = vqkvc_matrix_init);

Test(pca, dropped_latents_cost_their_variance_in_the_metric)
{
    static float x[N * D];
    double mean[D], cov[D * D], m[D * D], m_dec[D * D];
    vqkvc_err err = {0};
    make_samples(N, D, 1, x);
    make_metric(D, D, 2, m);
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    for (int n = 1; n <= D; n++) {
        vqkvc_basis b;
        cr_assert_eq(vqkvc_fit_basis(D, n, cov, m, 1e-9, &b, &err), VQKVC_OK, "%s", err.msg);
        double dropped = 0, all = 0;
        for (int i = 0; i < D; i++) {
            all += b.lambda[i];
            dropped += i >= n ? b.lambda[i] : 0;
        }
        cr_assert_float_eq(weighted_error(N, x, mean, m, &b), dropped, 1e-9 * all);
        cr_assert_lt(far_from_identity(&b, b.enc, b.dec), 1e-10);
        for (int i = 0; i < D; i++)
            for (int l = 0; l < n; l++) {
                m_dec[i * n + l] = 0;
                for (int k = 0; k < D; k++)
                    m_dec[i * n + l] += m[i * D + k] * b.dec[k * n + l];
            }
        cr_assert_lt(far_from_identity(&b, b.dec, m_dec), 1e-8, "dec' M dec is not I");
        vqkvc_basis_free(&b);
    }
}

Test(pca, identity_metric_is_plain_pca)
{
    static float x[N * D];
    double mean[D], cov[D * D], identity[D * D] = {0}, w[D], copy[D * D];
    vqkvc_err err = {0};
    vqkvc_basis plain, metric;
    make_samples(N, D, 3, x);
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    for (int i = 0; i < D; i++)
        identity[i * D + i] = 1;
    cr_assert_eq(vqkvc_fit_basis(D, D, cov, NULL, 0, &plain, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_fit_basis(D, D, cov, identity, 0, &metric, &err), VQKVC_OK);
    memcpy(copy, cov, sizeof copy);
    jacobi(D, copy, w);
    for (int i = 0; i < D; i++) {
        cr_assert_float_eq(plain.lambda[i], w[i], 1e-10 * w[0]);
        cr_assert_float_eq(metric.lambda[i], w[i], 1e-10 * w[0]);
        for (int j = 0; j < D; j++) {
            double v = -w[i] * plain.dec[j * D + i];
            for (int k = 0; k < D; k++)
                v += cov[j * D + k] * plain.dec[k * D + i];
            cr_assert_lt(fabs(v), 1e-10 * w[0], "not an eigenvector");
            cr_assert_float_eq(metric.enc[j * D + i], plain.enc[j * D + i], 1e-8);
        }
    }
    vqkvc_basis_free(&plain);
    vqkvc_basis_free(&metric);
}

Test(pca, singular_metric_is_lifted_to_the_ridge)
{
    static float x[N * D];
    double mean[D], cov[D * D], m[D * D], trace = 0, ridge = 1e-3;
    vqkvc_err err = {0};
    vqkvc_basis b;
    make_samples(N, D, 4, x);
    make_metric(D, 2, 5, m);
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_fit_basis(D, D, cov, m, ridge, &b, &err), VQKVC_OK, "%s", err.msg);
    for (int i = 0; i < D; i++)
        trace += m[i * D + i];
    cr_assert_lt(far_from_identity(&b, b.enc, b.dec), 1e-9);
    /* dec = M^-1/2 U: no entry beyond 1 / sqrt(floor). */
    for (int i = 0; i < D * D; i++)
        cr_assert_leq(fabs(b.dec[i]), 1.0001 / sqrt(ridge * trace / D));
    /* All latents together reconstruct even what the metric does not see. */
    cr_assert_lt(weighted_error(N, x, mean, m, &b), 1e-12 * trace * b.lambda[0]);
    vqkvc_basis_free(&b);
}

Test(pca, constant_channels_have_no_variance)
{
    static float x[N * D];
    double mean[D], cov[D * D];
    vqkvc_err err = {0};
    vqkvc_basis b;
    make_samples(N, D, 6, x);
    for (int i = 0; i < N; i++)
        x[i * D + 2] = 0.3f, x[i * D + 4] = -7;
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_fit_basis(D, D, cov, NULL, 1e-3, &b, &err), VQKVC_OK);
    cr_assert_gt(b.lambda[3], 0.01);
    cr_assert_lt(b.lambda[4], 1e-12);
    cr_assert_geq(b.lambda[5], 0);
    vqkvc_basis_free(&b);
    for (int i = 0; i < N * D; i++)
        x[i] = 1;
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_fit_basis(D, 1, cov, NULL, 1e-3, &b, &err), VQKVC_OK);
    cr_assert_eq(b.lambda[0], 0);
    vqkvc_basis_free(&b);
}

Test(pca, moments_match_plain_sums_and_weights_repeat_samples)
{
    enum { FEW = 700 };
    static float x[FEW * D], twice[3 * FEW * D], w[FEW];
    double mean[D], cov[D * D], mean2[D], cov2[D * D];
    vqkvc_err err = {0};
    int rows = 0;
    make_samples(FEW, D, 7, x);
    for (int i = 0; i < FEW; i++) {
        w[i] = (float)(i % 4);
        for (int r = 0; r < i % 4 && rows < 3 * FEW; r++, rows++)
            memcpy(twice + rows * D, x + i * D, D * sizeof *x);
    }
    cr_assert_eq(vqkvc_fit_moments(FEW, D, x, D, w, mean, cov, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_fit_moments(rows, D, twice, D, NULL, mean2, cov2, &err), VQKVC_OK);
    for (int j = 0; j < D; j++) {
        double sum = 0, product = 0;
        for (int i = 0; i < rows; i++)
            sum += twice[i * D + j];
        for (int i = 0; i < rows; i++)
            product += (twice[i * D + j] - sum / rows) * (twice[i * D] - mean2[0]);
        cr_assert_float_eq(mean[j], mean2[j], 1e-12 * fabs(mean2[j]) + 1e-13);
        cr_assert_float_eq(mean2[j], sum / rows, 1e-11);
        cr_assert_float_eq(cov2[j], product / rows, 1e-9);
    }
    for (int i = 0; i < D * D; i++)
        cr_assert_float_eq(cov[i], cov2[i], 1e-9);
}

Test(pca, moments_do_not_depend_on_the_number_of_threads)
{
    enum { WIDE = 300, ROWS = 1500 };
    static float x[ROWS * WIDE];
    static double mean[3][WIDE], cov[3][WIDE * WIDE];
    vqkvc_err err = {0};
    make_samples(ROWS, WIDE, 8, x);
    for (int t = 0; t < 3; t++) {
        omp_set_num_threads(t + 1);
        cr_assert_eq(vqkvc_fit_moments(ROWS, WIDE, x, WIDE, NULL, mean[t], cov[t], &err), VQKVC_OK);
        cr_assert_eq(memcmp(mean[0], mean[t], sizeof mean[0]), 0);
        cr_assert_eq(memcmp(cov[0], cov[t], sizeof cov[0]), 0);
    }
}

/* A metric in blocks gives the spectrum of the same metric written out, and the same
 * eigenvectors U: enc = M^1/2 U' and dec = M^-1/2 U', so their products over a block are U's. */
Test(pca, spectrum_of_a_metric_in_blocks_is_that_of_the_whole)
{
    enum { BLOCK = 2 };
    static float x[N * D];
    double mean[D], cov[D * D], u[D * D], lambda[D], full[D * D] = {0}, blocks[3][BLOCK * BLOCK];
    const double *metric[] = {blocks[0], blocks[1], blocks[2]};
    vqkvc_basis b;
    vqkvc_err err = {0};
    make_samples(N, D, 9, x);
    cr_assert_eq(vqkvc_fit_moments(N, D, x, D, NULL, mean, cov, &err), VQKVC_OK);
    for (int i = 0; i < 3; i++) {
        make_metric(BLOCK, i == 1 ? 1 : BLOCK, (uint64_t)(20 + i), blocks[i]); /* one is singular */
        for (int j = 0; j < BLOCK * BLOCK; j++)
            full[(i * BLOCK + j / BLOCK) * D + i * BLOCK + j % BLOCK] = blocks[i][j];
    }
    memcpy(u, cov, sizeof u);
    cr_assert_eq(vqkvc_fit_basis(D, D, cov, full, 1e-3, &b, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_fit_spectrum(D, BLOCK, u, metric, 1e-3, lambda, &err), VQKVC_OK, "%s",
                 err.msg);
    for (int i = 0; i < D; i++) {
        cr_assert_float_eq(lambda[i], b.lambda[i], 1e-9 * b.lambda[0]);
        for (int at = 0; at < D; at += BLOCK) { /* enc . dec = U . U within a block */
            double rebuilt = 0, own = 0;
            for (int r = 0; r < BLOCK; r++) {
                own += u[i * D + at + r] * u[i * D + at + r];
                rebuilt += b.enc[(at + r) * D + i] * b.dec[(at + r) * D + i];
            }
            cr_assert_float_eq(rebuilt, own, 1e-6, "latent %d, channel %d: %g, not %g", i, at,
                               rebuilt, own);
        }
    }
    vqkvc_basis_free(&b);
    cr_assert_eq(vqkvc_fit_spectrum(D, 4, u, metric, 1e-3, lambda, &err), VQKVC_E_USAGE);
}

Test(pca, unusable_input_is_refused_with_its_place)
{
    float x[4 * 3] = {0};
    double mean[3], cov[9], bad[9] = {1, 0, 0, 0, -1, 0, 0, 0, 1}, zero[9] = {0};
    double good[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    vqkvc_basis b;
    vqkvc_err err = {0};
    x[2 * 3 + 1] = NAN;
    cr_assert_eq(vqkvc_fit_moments(4, 3, x, 3, NULL, mean, cov, &err), VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "row 2, column 1"));
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_fit_basis(3, 2, bad, NULL, 0, &b, &err), VQKVC_E_NUMERIC);
    cr_assert_null(b.enc);
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_fit_basis(3, 2, good, zero, 1e-3, &b, &err), VQKVC_E_NUMERIC);
    err = (vqkvc_err){0};
    good[5] = INFINITY;
    cr_assert_eq(vqkvc_fit_basis(3, 2, good, NULL, 0, &b, &err), VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "row 1, column 2"));
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_fit_basis(3, 4, good, NULL, 0, &b, &err), VQKVC_E_USAGE);
}
