/* kmeans_impl.h - what the files of k-means share; callers use fit.h. */
#ifndef VQKVC_FIT_KMEANS_IMPL_H
#define VQKVC_FIT_KMEANS_IMPL_H

#include <stddef.h>
#include <stdint.h>

#include "base/rng.h"
#include "base/status.h"

/* Eight floats at once, whatever the machine has: the compiler splits them as needed, and the
 * order of every addition stays the same. */
enum { VQKVC_LANES = 8, VQKVC_TILE = 64 };
typedef float vqkvc_lanes __attribute__((vector_size(4 * VQKVC_LANES)));
typedef int32_t vqkvc_lanes_i __attribute__((vector_size(4 * VQKVC_LANES)));
typedef double vqkvc_lanes_d __attribute__((vector_size(8 * VQKVC_LANES)));

/* Compiled for several instruction sets, chosen when the program loads. Without contraction to
 * fused multiply-adds all of them give the same bits. */
#if defined(__x86_64__) && defined(__ELF__)
#define VQKVC_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define VQKVC_CLONES
#endif

typedef struct vqkvc_points {
    int n, d;
    const float *x;       /* [n, d], rows at distance ldx */
    size_t ldx;           /* floats */
    const float *weights; /* [n] or NULL */
    double total;         /* sum of weights */
} vqkvc_points;

/* tile [d, VQKVC_TILE], aligned to 32 bytes = rows begin .. begin + rows of x, transposed; the
 * columns past the last row are zero. */
void vqkvc_kmeans_tile(int rows, int d, const float *x, size_t ldx, float *tile);

/* k-means++ (Arthur and Vassilvitskii 2007), in its greedy form with a few trials a centroid:
 * centroids [k, d] out. */
vqkvc_code vqkvc_kmeans_seed(const vqkvc_points *points, int k, vqkvc_rng *rng, float *centroids,
                             vqkvc_err *err);

/* Lloyd's iterations from centroids [k, d], in place; assign [n] out belongs to the centroids that
 * are returned, as does *objective. */
vqkvc_code vqkvc_kmeans_lloyd(const vqkvc_points *points, int k, int max_iters, double tolerance,
                              float *centroids, int32_t *assign, double *objective, vqkvc_err *err);

#endif
