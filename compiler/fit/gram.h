/* gram.h - sums of products over samples, in double, over fixed chunks added in order. */
#ifndef VQKVC_FIT_GRAM_H
#define VQKVC_FIT_GRAM_H

/* Rows of one chunk: part of the result, since it fixes the order of additions. */
enum { VQKVC_GRAM_ROWS = 512 };

/* sum [m, n] += A' B for one chunk a [rows, m], b [rows, n]; scratch [m, n]. */
void vqkvc_gram_add(int rows, int m, int n, const double *a, const double *b, double *scratch,
                    double *sum);

/* a [n, n] = (a + a') / 2: products that are symmetric on paper only nearly are in floats. */
void vqkvc_symmetrise(int n, double *a);

#endif
