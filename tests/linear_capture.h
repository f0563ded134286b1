/* linear_capture.h - captures whose layers follow from each other by known linear maps. */
#ifndef VQKVC_TESTS_LINEAR_CAPTURE_H
#define VQKVC_TESTS_LINEAR_CAPTURE_H

#include "capture/capture.h"
#include "plan_toy.h"

enum { N = 512, LAYERS = 3, HEADS = 2, DIM = 8, D = HEADS * DIM };

/* How one layer follows from the one below. */
typedef enum links {
    LINKED,     /* any channel from all channels */
    LINKED_TWO, /* the same, through two directions only */
    LINKED_HEAD /* a head from the same head */,
    UNLINKED
} links;

/* A random map [D, D] that keeps lengths about as they are. */
static inline void random_map(links how, uint64_t stream, double *map)
{
    vqkvc_rng rng = vqkvc_rng_make(5, stream);
    double left[2 * D], right[2 * D];
    for (int i = 0; i < 2 * D; i++) {
        left[i] = vqkvc_rng_normal(&rng);
        right[i] = vqkvc_rng_normal(&rng);
    }
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) {
            double v = vqkvc_rng_normal(&rng);
            if (how == LINKED_TWO)
                v = (left[i] * right[j] + left[D + i] * right[D + j]) / sqrt(2);
            else if (how == LINKED_HEAD)
                v = i / DIM == j / DIM ? v * sqrt(HEADS) : 0;
            map[i * D + j] = v / sqrt(D);
        }
}

/* next [N, D] = below map + constant + a little noise; without links only noise of length 1. */
static inline void next_layer(links how, uint64_t stream, const double *below, double *next)
{
    double map[D * D];
    vqkvc_rng rng = vqkvc_rng_make(6, stream);
    random_map(how, stream, map);
    for (int t = 0; t < N; t++)
        for (int j = 0; j < D; j++) {
            double sum = 0.3 * (j % 3) + vqkvc_rng_normal(&rng) * (how == UNLINKED ? 1 : 0.1);
            for (int i = 0; how != UNLINKED && i < D; i++)
                sum += below[t * D + i] * map[i * D + j];
            next[t * D + j] = sum;
        }
}

/* K of a layer follows from K below; V from K of the same layer, or, with two links, from the sum
 * of that and V below. */
static inline void make_linear(vqkvc_capture *c, links how, int two, vqkvc_rope_layout rope)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(LAYERS, HEADS, DIM);
    g.rope_layout = rope;
    g.n_rot = rope == VQKVC_ROPE_NONE ? 0 : g.n_rot;
    cr_assert_eq(vqkvc_capture_alloc(c, &g, N, &err), VQKVC_OK, "%s", err.msg);
    c->n_sample = N;
    c->n_tokens = N;
    double *k = need((size_t)N * D, sizeof *k), *v = need((size_t)N * D, sizeof *v);
    double *both = need((size_t)N * D, sizeof *both);
    next_layer(UNLINKED, 100, k, k);
    next_layer(UNLINKED, 101, v, v);
    for (int layer = 0; layer < LAYERS; layer++) {
        if (layer > 0) {
            next_layer(how, (uint64_t)(2 * layer), k, both);
            memcpy(k, both, (size_t)N * D * sizeof *k);
            for (int i = 0; i < N * D; i++)
                both[i] = two ? (k[i] + v[i]) / sqrt(2) : v[i];
            next_layer(how, (uint64_t)(2 * layer + 1), both, v);
        }
        for (int i = 0; i < N * D; i++) {
            c->sample[VQKVC_KEY][layer][i] = vqkvc_f32_to_f16((float)k[i]);
            c->sample[VQKVC_VALUE][layer][i] = vqkvc_f32_to_f16((float)v[i]);
        }
    }
    for (int t = 0; t < N; t++)
        c->pos[t] = t;
    free(k);
    free(v);
    free(both);
}

/* Sampled values of one part of one layer: x [N, D]. */
static inline void read_layer(const vqkvc_capture *c, vqkvc_part part, int layer, double *x)
{
    const uint16_t *from = c->sample[part == VQKVC_PART_K ? VQKVC_KEY : VQKVC_VALUE][layer];
    for (int i = 0; i < N * D; i++)
        x[i] = (double)vqkvc_f16_to_f32(from[i]);
}

/* ---- the methods, as their papers write them ---- */

/* Ridge regression with intercept (papers of AQUA-KV): w [dx + 1, dy] by Gaussian elimination. */
static inline void plain_ridge(int n, int dx, const double *x, int dy, const double *y, double *w)
{
    int m = dx + 1, cols = m + dy;
    double *a = need((size_t)m * cols, sizeof *a), mean = 0;
    for (int t = 0; t < n; t++)
        for (int i = 0; i < m; i++) {
            double xi = i < dx ? x[t * dx + i] : 1;
            for (int j = 0; j < m; j++)
                a[i * cols + j] += xi * (j < dx ? x[t * dx + j] : 1);
            for (int j = 0; j < dy; j++)
                a[i * cols + m + j] += xi * y[t * dy + j];
        }
    for (int i = 0; i < m; i++)
        mean += a[i * cols + i] / m;
    for (int i = 0; i < m; i++)
        a[i * cols + i] += 1e-3 * mean;
    for (int p = 0; p < m; p++)
        for (int i = 0; i < m; i++) {
            double factor = i == p ? 0 : a[i * cols + p] / a[p * cols + p];
            for (int j = p; j < cols && i != p; j++)
                a[i * cols + j] -= factor * a[p * cols + j];
        }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < dy; j++)
            w[i * dy + j] = a[i * cols + m + j] / a[i * cols + i];
    free(a);
}

static inline double plain_half(double x)
{
    return (double)vqkvc_f16_to_f32(vqkvc_f32_to_f16((float)x));
}

/* HIGGS of one vector of `dim` channels: z = H x / |x| with H of +-1, each group of `width` to the
 * nearest point of the grid (table [1, width * n_codes]), x^ = H (|x| * point) / dim. The gain is
 * kept as binary16(unit |x| / sqrt(dim)) / unit. */
static inline void plain_higgs(const vqkvc_table *grid, int width, double unit, int dim,
                               const double *x, double *x_hat)
{
    int n_codes = grid->cols / width;
    double norm = 0, z[D], point[D];
    for (int i = 0; i < dim; i++)
        norm += x[i] * x[i];
    norm = plain_half(unit * sqrt(norm / dim)) / unit * sqrt(dim);
    for (int i = 0; i < dim; i++) {
        z[i] = 0;
        for (int j = 0; j < dim; j++)
            z[i] += (__builtin_parity((unsigned)(i & j)) ? -x[j] : x[j]) / norm;
    }
    for (int g = 0; g < dim; g += width) {
        double least = INFINITY;
        for (int c = 0; c < n_codes; c++) {
            double distance = 0;
            for (int i = 0; i < width; i++) {
                double e = z[g + i] - (double)vqkvc_f16_to_f32(grid->f16[i * n_codes + c]);
                distance += e * e;
            }
            if (distance >= least)
                continue;
            least = distance;
            for (int i = 0; i < width; i++)
                point[g + i] = (double)vqkvc_f16_to_f32(grid->f16[i * n_codes + c]);
        }
    }
    for (int i = 0; i < dim; i++) {
        x_hat[i] = 0;
        for (int j = 0; j < dim; j++)
            x_hat[i] += (__builtin_parity((unsigned)(i & j)) ? -norm : norm) * point[j] / dim;
    }
}

#endif
