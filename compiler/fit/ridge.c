/* ridge.c - linear predictors by ridge regression, full or of reduced rank. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/matrix.h"
#include "base/memory.h"
#include "fit/checks.h"
#include "fit/fit.h"
#include "fit/gram.h"

/* Prediction runs in blocks that fit the stack, so that it needs no memory and cannot fail. */
enum { BLOCK_ROWS = 32, BLOCK_COLS = 128, BLOCK_DEPTH = 128 };

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* acc [rows, BLOCK_COLS] = [x, 1] W for the columns col .. col + cols of W; x [rows, dx]. */
static void predict_block(const vqkvc_predictor *p, int rows, const float *x, int col, int cols,
                          double *acc)
{
    double in[BLOCK_ROWS * BLOCK_DEPTH], out[BLOCK_ROWS * BLOCK_COLS];
    const double *w = p->w + col;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            acc[i * BLOCK_COLS + j] = w[(size_t)p->dx * (size_t)p->dy + (size_t)j];
    for (int k = 0; k < p->dx; k += BLOCK_DEPTH) {
        int depth = least(p->dx - k, BLOCK_DEPTH);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < depth; j++)
                in[i * BLOCK_DEPTH + j] = x[(size_t)i * (size_t)p->dx + (size_t)(k + j)];
        vqkvc_dgemm_nn(rows, cols, depth, in, BLOCK_DEPTH, w + (size_t)k * (size_t)p->dy,
                       (size_t)p->dy, out, BLOCK_COLS);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++)
                acc[i * BLOCK_COLS + j] += out[i * BLOCK_COLS + j];
    }
}

void vqkvc_predict(const vqkvc_predictor *p, int n, const float *x, float *y)
{
    int blocks = n / BLOCK_ROWS + (n % BLOCK_ROWS != 0);
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < blocks; b++) {
        double acc[BLOCK_ROWS * BLOCK_COLS];
        int begin = b * BLOCK_ROWS, rows = least(n - begin, BLOCK_ROWS);
        for (int col = 0; col < p->dy; col += BLOCK_COLS) {
            int cols = least(p->dy - col, BLOCK_COLS);
            predict_block(p, rows, x + (size_t)begin * (size_t)p->dx, col, cols, acc);
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < cols; j++)
                    y[(size_t)(begin + i) * (size_t)p->dy + (size_t)(col + j)] =
                        (float)acc[i * BLOCK_COLS + j];
        }
    }
}

/* |y - [x, 1] W|^2 over one block of rows. */
static double block_residual(const vqkvc_predictor *p, int rows, const float *x, const float *y)
{
    double acc[BLOCK_ROWS * BLOCK_COLS], sum = 0;
    for (int col = 0; col < p->dy; col += BLOCK_COLS) {
        int cols = least(p->dy - col, BLOCK_COLS);
        predict_block(p, rows, x, col, cols, acc);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++) {
                double e = y[(size_t)i * (size_t)p->dy + (size_t)(col + j)];
                e -= acc[i * BLOCK_COLS + j];
                sum += e * e;
            }
    }
    return sum;
}

/* |Y - X~W|^2; the sums of blocks are added in order. */
static vqkvc_code residual(const vqkvc_predictor *p, int n, const float *x, const float *y,
                           double *sum, vqkvc_err *err)
{
    int blocks = n / BLOCK_ROWS + (n % BLOCK_ROWS != 0);
    double *partial = vqkvc_alloc((size_t)blocks, sizeof *partial, err);
    if (!partial)
        return err->code;
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < blocks; b++) {
        size_t begin = (size_t)b * BLOCK_ROWS;
        int rows = least(n - b * BLOCK_ROWS, BLOCK_ROWS);
        partial[b] = block_residual(p, rows, x + begin * (size_t)p->dx, y + begin * (size_t)p->dy);
    }
    *sum = 0;
    for (int b = 0; b < blocks; b++)
        *sum += partial[b];
    free(partial);
    return VQKVC_OK;
}

/* spread: |Y - mean Y|^2; energy: |Y|^2. mean [dy] is scratch. */
static void target_spread(int n, int dy, const float *y, double *mean, double *spread,
                          double *energy)
{
    for (int j = 0; j < dy; j++)
        mean[j] = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < dy; j++)
            mean[j] += (double)y[(size_t)i * (size_t)dy + (size_t)j] / n;
    *spread = *energy = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < dy; j++) {
            double v = y[(size_t)i * (size_t)dy + (size_t)j], e = v - mean[j];
            *spread += e * e;
            *energy += v * v;
        }
}

/* relative_mse; a target that does not vary has nothing to explain and counts as unexplained. */
static vqkvc_code measure(vqkvc_predictor *p, int n, const float *x, const float *y, vqkvc_err *err)
{
    double sum = 0, spread, energy;
    double *mean = vqkvc_alloc((size_t)p->dy, sizeof *mean, err);
    if (!mean)
        return err->code;
    target_spread(n, p->dy, y, mean, &spread, &energy);
    free(mean);
    VQKVC_TRY(residual(p, n, x, y, &sum, err));
    p->relative_mse = spread > 1e-24 * energy ? sum / spread : 1;
    return VQKVC_OK;
}

/* The sums behind a regression, and room for one chunk. */
typedef struct normal_equations {
    double *gram;    /* [dx + 1, dx + 1] X~'X~ with the ridge */
    double *cross;   /* [dx + 1, dy] X~'Y */
    double *xs, *ys; /* [VQKVC_GRAM_ROWS, dx + 1], [VQKVC_GRAM_ROWS, dy] */
    double *scratch; /* [dx + 1, max(dx + 1, dy)] */
} normal_equations;

static void equations_free(normal_equations *eq)
{
    free(eq->gram);
    free(eq->cross);
    free(eq->xs);
    free(eq->ys);
    free(eq->scratch);
}

static vqkvc_code equations_alloc(normal_equations *eq, int dx, int dy, vqkvc_err *err)
{
    size_t m = (size_t)dx + 1, k = (size_t)dy;
    eq->gram = vqkvc_alloc(m * m, sizeof(double), err);
    eq->cross = vqkvc_alloc(m * k, sizeof(double), err);
    eq->xs = vqkvc_alloc(VQKVC_GRAM_ROWS * m, sizeof(double), err);
    eq->ys = vqkvc_alloc(VQKVC_GRAM_ROWS * k, sizeof(double), err);
    eq->scratch = vqkvc_alloc(m * (m > k ? m : k), sizeof(double), err);
    return err->code;
}

static void sum_equations(normal_equations *eq, int n, int dx, const float *x, int dy,
                          const float *y)
{
    int m = dx + 1;
    for (int begin = 0; begin < n; begin += VQKVC_GRAM_ROWS) {
        int rows = least(n - begin, VQKVC_GRAM_ROWS);
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < dx; j++)
                eq->xs[(size_t)i * m + j] = x[(size_t)(begin + i) * dx + j];
            eq->xs[(size_t)i * m + dx] = 1;
            for (int j = 0; j < dy; j++)
                eq->ys[(size_t)i * dy + j] = y[(size_t)(begin + i) * dy + j];
        }
        vqkvc_gram_add(rows, m, m, eq->xs, eq->xs, eq->scratch, eq->gram);
        vqkvc_gram_add(rows, m, dy, eq->xs, eq->ys, eq->scratch, eq->cross);
    }
}

static void add_ridge(int m, double *gram, double ridge)
{
    double mean = 0;
    for (int i = 0; i < m; i++)
        mean += fabs(gram[(size_t)i * m + i]) / m;
    for (int i = 0; i < m; i++)
        gram[(size_t)i * m + i] += ridge * mean;
}

/* Replaces p->w [dx + 1, dy] by its projection on the top eigenvectors of Y'X G^-1 X'Y, which is
 * cross' w. */
static vqkvc_code reduce_rank(vqkvc_predictor *p, const double *cross, vqkvc_err *err)
{
    int m = p->dx + 1;
    size_t dy = (size_t)p->dy, rank = (size_t)p->rank;
    double *explained = vqkvc_alloc(dy * dy, sizeof *explained, err);
    double *power = vqkvc_alloc(dy, sizeof *power, err);
    p->left = vqkvc_alloc((size_t)m * rank, sizeof *p->left, err);
    p->right = vqkvc_alloc(rank * dy, sizeof *p->right, err);
    if (explained && power && p->left && p->right) {
        vqkvc_dgemm_tn(p->dy, p->dy, m, cross, dy, p->w, dy, explained, dy);
        vqkvc_symmetrise(p->dy, explained);
        if (vqkvc_eigen_symmetric(p->dy, explained, power, err) == VQKVC_OK) {
            for (size_t i = 0; i < rank * dy; i++)
                p->right[i] = explained[i];
            vqkvc_dgemm_nt(m, p->rank, p->dy, p->w, dy, p->right, dy, p->left, rank);
            vqkvc_dgemm_nn(m, p->dy, p->rank, p->left, rank, p->right, dy, p->w, dy);
        }
    }
    free(explained);
    free(power);
    return err->code;
}

static vqkvc_code fit_into(vqkvc_predictor *p, normal_equations *eq, int n, const float *x,
                           const float *y, double ridge, vqkvc_err *err)
{
    int m = p->dx + 1;
    size_t size = (size_t)m * (size_t)p->dy;
    VQKVC_TRY(equations_alloc(eq, p->dx, p->dy, err));
    p->w = vqkvc_alloc(size, sizeof *p->w, err);
    if (!p->w)
        return err->code;
    sum_equations(eq, n, p->dx, x, p->dy, y);
    add_ridge(m, eq->gram, ridge);
    for (size_t i = 0; i < size; i++)
        p->w[i] = eq->cross[i];
    VQKVC_TRY(vqkvc_solve_spd(m, p->dy, eq->gram, p->w, err));
    if (p->rank > 0)
        VQKVC_TRY(reduce_rank(p, eq->cross, err));
    return measure(p, n, x, y, err);
}

vqkvc_code vqkvc_fit_ridge(int n, int dx, const float *x, int dy, const float *y, double ridge,
                           int rank, vqkvc_predictor *p, vqkvc_err *err)
{
    *p = (vqkvc_predictor){.dx = dx, .dy = dy, .rank = rank < dy ? rank : 0};
    if (n < 1 || dx < 1 || dy < 1 || rank < 0 || !(ridge >= 0) || isinf(ridge))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "ridge regression of %d on %d columns, %d samples, rank %d, ridge %g", dy,
                          dx, n, rank, ridge);
    VQKVC_TRY(vqkvc_check_f32("predictor inputs", n, dx, x, (size_t)dx, FLT_MAX, err));
    VQKVC_TRY(vqkvc_check_f32("predictor targets", n, dy, y, (size_t)dy, FLT_MAX, err));
    normal_equations eq = {0};
    vqkvc_code code = fit_into(p, &eq, n, x, y, ridge, err);
    equations_free(&eq);
    if (code != VQKVC_OK)
        vqkvc_predictor_free(p);
    return code;
}

void vqkvc_predictor_free(vqkvc_predictor *p)
{
    free(p->w);
    free(p->left);
    free(p->right);
    *p = (vqkvc_predictor){0};
}
