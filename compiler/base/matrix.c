#include "base/matrix.h"

#include <math.h>
#include <stdlib.h>

#include <cblas.h>
#include <lapacke.h>

/* A tile of C: big enough to keep BLAS busy, small enough to share among threads. */
enum { TILE_ROWS = 128, TILE_COLS = 256 };

void vqkvc_matrix_init(void)
{
    openblas_set_num_threads(1);
}

/* One definition for both precisions; `ta` and `tb` say which operand is transposed. */
#define DEFINE_GEMM(name, type, gemm)                                                              \
    static void name##_tiled(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k,          \
                             const type *a, size_t lda, const type *b, size_t ldb, type *c,        \
                             size_t ldc)                                                           \
    {                                                                                              \
        int tile_rows = (m + TILE_ROWS - 1) / TILE_ROWS;                                           \
        int tile_cols = (n + TILE_COLS - 1) / TILE_COLS;                                           \
        int tiles = tile_rows * tile_cols;                                                         \
        _Pragma("omp parallel for schedule(dynamic) if (tiles > 1)") for (int t = 0; t < tiles;    \
                                                                          t++)                     \
        {                                                                                          \
            int i = t / tile_cols * TILE_ROWS, j = t % tile_cols * TILE_COLS;                      \
            int rows = m - i < TILE_ROWS ? m - i : TILE_ROWS;                                      \
            int cols = n - j < TILE_COLS ? n - j : TILE_COLS;                                      \
            const type *a_tile = a + (ta == CblasTrans ? (size_t)i : (size_t)i * lda);             \
            const type *b_tile = b + (tb == CblasTrans ? (size_t)j * ldb : (size_t)j);             \
            gemm(CblasRowMajor, ta, tb, rows, cols, k, 1, a_tile, (int)lda, b_tile, (int)ldb, 0,   \
                 c + (size_t)i * ldc + j, (int)ldc);                                               \
        }                                                                                          \
    }                                                                                              \
    void name##_nn(int m, int n, int k, const type *a, size_t lda, const type *b, size_t ldb,      \
                   type *c, size_t ldc)                                                            \
    {                                                                                              \
        name##_tiled(CblasNoTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, c, ldc);                 \
    }                                                                                              \
    void name##_nt(int m, int n, int k, const type *a, size_t lda, const type *b, size_t ldb,      \
                   type *c, size_t ldc)                                                            \
    {                                                                                              \
        name##_tiled(CblasNoTrans, CblasTrans, m, n, k, a, lda, b, ldb, c, ldc);                   \
    }                                                                                              \
    void name##_tn(int m, int n, int k, const type *a, size_t lda, const type *b, size_t ldb,      \
                   type *c, size_t ldc)                                                            \
    {                                                                                              \
        name##_tiled(CblasTrans, CblasNoTrans, m, n, k, a, lda, b, ldb, c, ldc);                   \
    }

DEFINE_GEMM(vqkvc_sgemm, float, cblas_sgemm)
DEFINE_GEMM(vqkvc_dgemm, double, cblas_dgemm)

void vqkvc_dgemm_gram_add(int n, int k, const double *a, size_t lda, double *c, size_t ldc)
{
    int tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
#pragma omp parallel for collapse(2) schedule(dynamic) if (tiles > 1)
    for (int i = 0; i < tiles; i++)
        for (int j = 0; j < tiles; j++) {
            size_t row = (size_t)i * TILE_ROWS, column = (size_t)j * TILE_ROWS;
            int rows = n - (int)row < TILE_ROWS ? n - (int)row : TILE_ROWS;
            int columns = n - (int)column < TILE_ROWS ? n - (int)column : TILE_ROWS;
            if (j >= i)
                cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rows, columns, k, 1, a + row,
                            (int)lda, a + column, (int)lda, 1, c + row * ldc + column, (int)ldc);
        }
}

/* Eigenvectors are unique up to sign; fixing it keeps outputs stable. */
static void fix_sign(int n, double *v)
{
    int largest = 0;
    for (int i = 1; i < n; i++)
        if (fabs(v[i]) > fabs(v[largest]))
            largest = i;
    if (v[largest] < 0)
        for (int i = 0; i < n; i++)
            v[i] = -v[i];
}

vqkvc_code vqkvc_eigen_symmetric(int n, double *a, double *w, vqkvc_err *err)
{
    /* Column-major LAPACK sees the transpose of a symmetric matrix, which is itself, and leaves
     * eigenvectors in columns: rows for us. It orders them ascending; we turn both round. */
    int info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', n, a, n, w);
    if (info != 0)
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "dsyevd of a %d x %d matrix failed (info %d)", n, n,
                          info);
    for (int i = 0, j = n - 1; i < j; i++, j--) {
        double t = w[i];
        w[i] = w[j];
        w[j] = t;
        for (int c = 0; c < n; c++) {
            t = a[(size_t)i * n + c];
            a[(size_t)i * n + c] = a[(size_t)j * n + c];
            a[(size_t)j * n + c] = t;
        }
    }
    for (int i = 0; i < n; i++)
        fix_sign(n, a + (size_t)i * n);
    return VQKVC_OK;
}

vqkvc_code vqkvc_eigenvalues_symmetric(int n, double *a, double *w, vqkvc_err *err)
{
    /* The upper triangle of rows is the lower one of columns. */
    int info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'N', 'L', n, a, n, w);
    if (info != 0)
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "dsyevd of a %d x %d matrix failed (info %d)", n, n,
                          info);
    for (int i = 0, j = n - 1; i < j; i++, j--) {
        double t = w[i];
        w[i] = w[j];
        w[j] = t;
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_solve_spd(int n, int m, double *a, double *b, vqkvc_err *err)
{
    int info = LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', n, m, a, n, b, m);
    if (info != 0)
        return vqkvc_fail(err, VQKVC_E_NUMERIC,
                          "dposv of a %d x %d matrix failed (info %d: not positive definite)", n, n,
                          info);
    return VQKVC_OK;
}
