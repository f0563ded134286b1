/* Properties of ridge regression and of its reduced rank form. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/matrix.h"
#include "base/rng.h"
#include "fit/fit.h"

enum { N = 1300, DX = 7, DY = 5, M = DX + 1 };

/* y = x A + 3 + noise, columns of x around 2. */
static void make_pair(int n, int dx, int dy, double noise, float *x, float *y)
{
    vqkvc_rng rng = vqkvc_rng_make(11, 0), map = vqkvc_rng_make(11, 1);
    static double a[512 * 512];
    for (int i = 0; i < dx * dy; i++)
        a[i] = vqkvc_rng_normal(&map);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < dx; j++)
            x[i * dx + j] = (float)(2 + vqkvc_rng_normal(&rng));
        for (int j = 0; j < dy; j++) {
            double v = 3 + noise * vqkvc_rng_normal(&rng);
            for (int k = 0; k < dx; k++)
                v += x[i * dx + k] * a[k * dy + j];
            y[i * dy + j] = (float)v;
        }
    }
}

/* w [M, DY] by Gaussian elimination of the normal equations with pivoting. */
static void solve_plainly(const float *x, const float *y, double ridge, double *w)
{
    double g[M][M + DY] = {{0}}, mean = 0;
    for (int i = 0; i < N; i++)
        for (int r = 0; r < M; r++) {
            double v = r < DX ? x[i * DX + r] : 1;
            for (int c = 0; c < M; c++)
                g[r][c] += v * (c < DX ? x[i * DX + c] : 1);
            for (int c = 0; c < DY; c++)
                g[r][M + c] += v * y[i * DY + c];
        }
    for (int r = 0; r < M; r++)
        mean += g[r][r] / M;
    for (int r = 0; r < M; r++)
        g[r][r] += ridge * mean;
    for (int p = 0; p < M; p++)
        for (int r = 0; r < M; r++) {
            double f = g[r][p] / g[p][p];
            for (int c = p; r != p && c < M + DY; c++)
                g[r][c] -= f * g[p][c];
        }
    for (int r = 0; r < M; r++)
        for (int c = 0; c < DY; c++)
            w[r * DY + c] = g[r][M + c] / g[r][r];
}

/* |Y - X~W|^2 / |Y - mean Y|^2, the long way. */
static double relative_error(const float *x, const float *y, const double *w)
{
    double error = 0, spread = 0;
    for (int j = 0; j < DY; j++) {
        double mean = 0;
        for (int i = 0; i < N; i++)
            mean += y[i * DY + j] / (double)N;
        for (int i = 0; i < N; i++) {
            double e = y[i * DY + j] - w[DX * DY + j];
            for (int k = 0; k < DX; k++)
                e -= x[i * DX + k] * w[k * DY + j];
            error += e * e;
            spread += (y[i * DY + j] - mean) * (y[i * DY + j] - mean);
        }
    }
    return error / spread;
}

TestSuite(ridge, .init = vqkvc_matrix_init);

Test(ridge, solves_the_normal_equations)
{
    static float x[N * DX], y[N * DY], out[N * DY];
    double w[M * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 1, x, y);
    solve_plainly(x, y, 1e-3, w);
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, 0, &p, &err), VQKVC_OK, "%s", err.msg);
    for (int i = 0; i < M * DY; i++)
        cr_assert_float_eq(p.w[i], w[i], 1e-9);
    cr_assert_float_eq(p.relative_mse, relative_error(x, y, w), 1e-9);
    cr_assert_null(p.left);
    vqkvc_predict(&p, N, x, out);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < DY; j++) {
            double v = w[DX * DY + j];
            for (int k = 0; k < DX; k++)
                v += x[i * DX + k] * w[k * DY + j];
            cr_assert_float_eq(out[i * DY + j], v, 1e-5);
        }
    vqkvc_predictor_free(&p);
}

Test(ridge, linear_data_is_predicted_and_the_intercept_found)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 0, x, y);
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-12, 0, &p, &err), VQKVC_OK);
    cr_assert_lt(p.relative_mse, 1e-12);
    for (int j = 0; j < DY; j++)
        cr_assert_float_eq(p.w[DX * DY + j], 3, 1e-4);
    vqkvc_predictor_free(&p);
}

Test(ridge, reduced_rank_keeps_the_best_directions)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor full, p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 1, x, y);
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, 0, &full, &err), VQKVC_OK);
    double last = INFINITY;
    for (int rank = 1; rank <= DY; rank++) {
        cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, rank, &p, &err), VQKVC_OK);
        cr_assert_lt(p.relative_mse, last);
        cr_assert_geq(p.relative_mse, full.relative_mse * (1 - 1e-3));
        last = p.relative_mse;
        cr_assert_eq(p.rank, rank < DY ? rank : 0);
        if (rank == DY) {
            cr_assert_eq(memcmp(p.w, full.w, M * DY * sizeof *p.w), 0, "rank dy is full rank");
            vqkvc_predictor_free(&p);
            continue;
        }
        for (int i = 0; i < M; i++)
            for (int j = 0; j < DY; j++) {
                double product = 0, projected = 0;
                for (int r = 0; r < rank; r++) {
                    double along = 0;
                    product += p.left[i * rank + r] * p.right[r * DY + j];
                    for (int c = 0; c < DY; c++)
                        along += full.w[i * DY + c] * p.right[r * DY + c];
                    projected += along * p.right[r * DY + j];
                }
                cr_assert_float_eq(p.w[i * DY + j], product, 1e-12);
                cr_assert_float_eq(p.w[i * DY + j], projected, 1e-9, "not a projection of W");
            }
        vqkvc_predictor_free(&p);
    }
    vqkvc_predictor_free(&full);
}

Test(ridge, low_rank_data_loses_nothing)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 0, x, y);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < DY; j++) /* two directions: (1, 1, ...) and (1, -1, 1, ...) */
            y[i * DY + j] = x[i * DX] + (j % 2 ? -2 : 2) * x[i * DX + 1];
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-12, 1, &p, &err), VQKVC_OK);
    cr_assert_gt(p.relative_mse, 0.01);
    vqkvc_predictor_free(&p);
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-12, 2, &p, &err), VQKVC_OK);
    cr_assert_lt(p.relative_mse, 1e-10);
    vqkvc_predictor_free(&p);
}

Test(ridge, collinear_columns_need_the_ridge)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 0, x, y);
    for (int i = 0; i < N; i++) {
        x[i * DX + 1] = x[i * DX]; /* twice the same, and one that is always zero */
        x[i * DX + 2] = 0;
        for (int j = 0; j < DY; j++)
            y[i * DY + j] = 4 * x[i * DX] + x[i * DX + 3];
    }
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-6, 0, &p, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_lt(p.relative_mse, 1e-6);
    cr_assert_float_eq(p.w[0], 2, 1e-2, "the ridge shares between equal columns");
    cr_assert_float_eq(p.w[DY], 2, 1e-2);
    vqkvc_predictor_free(&p);
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 0, 0, &p, &err), VQKVC_E_NUMERIC);
    cr_assert_null(p.w);
}

Test(ridge, constant_targets_count_as_unexplained)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 0, x, y);
    for (int i = 0; i < N * DY; i++)
        y[i] = 0.1f;
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, 0, &p, &err), VQKVC_OK);
    cr_assert_eq(p.relative_mse, 1);
    vqkvc_predictor_free(&p);
}

Test(ridge, wide_shapes_and_any_number_of_threads_agree)
{
    enum { ROWS = 600, WX = 290, WY = 270 };
    static float x[ROWS * WX], y[ROWS * WY], out[3][ROWS * WY];
    vqkvc_predictor p[3];
    vqkvc_err err = {0};
    make_pair(ROWS, WX, WY, 1, x, y);
    for (int t = 0; t < 3; t++) {
        omp_set_num_threads(t + 1);
        cr_assert_eq(vqkvc_fit_ridge(ROWS, WX, x, WY, y, 1e-3, 32, &p[t], &err), VQKVC_OK);
        vqkvc_predict(&p[t], ROWS, x, out[t]);
        cr_assert_eq(memcmp(p[0].w, p[t].w, (WX + 1) * WY * sizeof(double)), 0);
        cr_assert_eq(memcmp(out[0], out[t], sizeof out[0]), 0);
        cr_assert_eq(p[0].relative_mse, p[t].relative_mse);
    }
    for (int i = 0; i < ROWS; i += 37)
        for (int j = 0; j < WY; j++) {
            double v = p[0].w[WX * WY + j];
            for (int k = 0; k < WX; k++)
                v += x[i * WX + k] * p[0].w[k * WY + j];
            cr_assert_float_eq(out[0][i * WY + j], v, 1e-4);
        }
    for (int t = 0; t < 3; t++)
        vqkvc_predictor_free(&p[t]);
}

Test(ridge, unusable_input_is_refused_with_its_place)
{
    static float x[N * DX], y[N * DY];
    vqkvc_predictor p;
    vqkvc_err err = {0};
    make_pair(N, DX, DY, 0, x, y);
    y[9 * DY + 4] = INFINITY;
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, 0, &p, &err), VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "targets: row 9, column 4"));
    err = (vqkvc_err){0};
    x[3 * DX + 2] = NAN;
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, 1e-3, 0, &p, &err), VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "inputs: row 3, column 2"));
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_fit_ridge(N, DX, x, DY, y, -1, 0, &p, &err), VQKVC_E_USAGE);
}
