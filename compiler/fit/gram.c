#include "fit/gram.h"

#include "base/matrix.h"

void vqkvc_gram_add(int rows, int m, int n, const double *a, const double *b, double *scratch,
                    double *sum)
{
    vqkvc_dgemm_tn(m, n, rows, a, (size_t)m, b, (size_t)n, scratch, (size_t)n);
    for (size_t i = 0; i < (size_t)m * (size_t)n; i++)
        sum[i] += scratch[i];
}

void vqkvc_symmetrise(int n, double *a)
{
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t j = 0; j < i; j++) {
            double mean = 0.5 * (a[i * (size_t)n + j] + a[j * (size_t)n + i]);
            a[i * (size_t)n + j] = a[j * (size_t)n + i] = mean;
        }
}
