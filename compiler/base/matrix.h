/* matrix.h - dense algebra over BLAS and LAPACK, the same bits for any number of threads.
 *
 * All matrices are row-major; ld* is the distance between rows in elements. Work is cut into tiles
 * whose size depends on the shape alone; a tile is one single-threaded BLAS call, and OpenMP
 * distributes tiles. Call vqkvc_matrix_init() once before anything else (it pins BLAS to one thread
 * a call). */
#ifndef VQKVC_BASE_MATRIX_H
#define VQKVC_BASE_MATRIX_H

#include <stddef.h>

#include "base/status.h"

void vqkvc_matrix_init(void);

/* C [m, n] = A [m, k] * B [k, n] */
void vqkvc_sgemm_nn(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb,
                    float *c, size_t ldc);
/* C [m, n] = A [m, k] * B' with B [n, k] */
void vqkvc_sgemm_nt(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb,
                    float *c, size_t ldc);
/* C [m, n] = A' * B with A [k, m] and B [k, n]: Gram and cross-covariance sums over k samples */
void vqkvc_sgemm_tn(int m, int n, int k, const float *a, size_t lda, const float *b, size_t ldb,
                    float *c, size_t ldc);
/* The same three in double. */
void vqkvc_dgemm_nn(int m, int n, int k, const double *a, size_t lda, const double *b, size_t ldb,
                    double *c, size_t ldc);
void vqkvc_dgemm_nt(int m, int n, int k, const double *a, size_t lda, const double *b, size_t ldb,
                    double *c, size_t ldc);
void vqkvc_dgemm_tn(int m, int n, int k, const double *a, size_t lda, const double *b, size_t ldb,
                    double *c, size_t ldc);

/* C [n, n] += A' A with A [k, n], but only the tiles on and above the diagonal: the entries below
 * it are left without meaning where their tile was not touched. */
void vqkvc_dgemm_gram_add(int n, int k, const double *a, size_t lda, double *c, size_t ldc);

/* Eigenvalues (descending) and eigenvectors of the symmetric a [n, n]; on return row i of a is the
 * unit eigenvector of w[i], signed so that its entry of largest magnitude is positive. */
vqkvc_code vqkvc_eigen_symmetric(int n, double *a, double *w, vqkvc_err *err);

/* Eigenvalues (descending) alone, several times faster; a [n, n] is destroyed, and read on and
 * above its diagonal only. */
vqkvc_code vqkvc_eigenvalues_symmetric(int n, double *a, double *w, vqkvc_err *err);

/* Solves A X = B for symmetric positive definite a [n, n] (destroyed) and b [n, m] (becomes X). */
vqkvc_code vqkvc_solve_spd(int n, int m, double *a, double *b, vqkvc_err *err);

#endif
