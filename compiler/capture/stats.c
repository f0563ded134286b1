#include "capture/stats.h"

#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"

enum { COLUMNS = 256 /* of one thread */ };

/* Moments are of blocks of a vector: one block of all KV heads, or one of each query head. */
static int block_width(const vqkvc_geometry *g, vqkvc_kind kind)
{
    return kind == VQKVC_QUERY ? g->head_dim : vqkvc_kind_width(g, kind);
}

static int block_count(const vqkvc_geometry *g, vqkvc_kind kind)
{
    return kind == VQKVC_QUERY ? g->n_heads : 1;
}

size_t vqkvc_stats_moment_size(const vqkvc_geometry *g, vqkvc_kind kind)
{
    size_t d = (size_t)block_width(g, kind);
    return d * d * (size_t)block_count(g, kind);
}

vqkvc_code vqkvc_stats_scratch_alloc(vqkvc_stats_scratch *s, const vqkvc_geometry *g,
                                     vqkvc_err *err)
{
    size_t widest = (size_t)vqkvc_kind_width(g, VQKVC_QUERY); /* n_heads >= n_kv_heads */
    s->wide = vqkvc_alloc(VQKVC_STATS_CHUNK * widest, sizeof(double), err);
    return err->code;
}

void vqkvc_stats_scratch_free(vqkvc_stats_scratch *s)
{
    free(s->wide);
    *s = (vqkvc_stats_scratch){0};
}

void vqkvc_stats_add(vqkvc_stats *s, const vqkvc_geometry *g, vqkvc_kind kind, int n,
                     const float *x, const vqkvc_stats_scratch *scratch)
{
    size_t width = (size_t)vqkvc_kind_width(g, kind);
    int d = block_width(g, kind);
    size_t block = (size_t)d * (size_t)d;
    int blocks = block_count(g, kind);
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < width; first += COLUMNS) {
        size_t end = width - first < COLUMNS ? width : first + COLUMNS;
        for (size_t i = 0; i < (size_t)n; i++)
            for (size_t j = first; j < end; j++) {
                scratch->wide[i * width + j] = x[i * width + j];
                s->mean[j] += x[i * width + j];
            }
    }
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int b = 0; b < blocks; b++)
        vqkvc_dgemm_gram_add(d, n, scratch->wide + (size_t)b * (size_t)d, width,
                             s->moment + (size_t)b * block, (size_t)d);
    s->n += (uint64_t)n;
}

void vqkvc_stats_finish(vqkvc_stats *s, const vqkvc_geometry *g, vqkvc_kind kind)
{
    if (s->n == 0)
        return;
    double n = (double)s->n;
    size_t d = (size_t)block_width(g, kind);
    for (int i = 0; i < vqkvc_kind_width(g, kind); i++)
        s->mean[i] /= n;
    for (int b = 0; b < block_count(g, kind); b++) {
        double *m = s->moment + (size_t)b * d * d;
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++)
                m[i * d + j] = m[j * d + i] = m[i * d + j] / n;
    }
}

/* dst = the mean over both, `part` being src's share of the tokens. */
static void merge_means(double *dst, const double *src, size_t n, double part)
{
    for (size_t i = 0; i < n; i++)
        dst[i] += (src[i] - dst[i]) * part;
}

void vqkvc_stats_merge(vqkvc_stats *dst, const vqkvc_stats *src, const vqkvc_geometry *g,
                       vqkvc_kind kind)
{
    size_t width = (size_t)vqkvc_kind_width(g, kind);
    size_t moment = vqkvc_stats_moment_size(g, kind);
    if (src->n == 0)
        return;
    if (dst->n == 0) {
        memcpy(dst->mean, src->mean, width * sizeof(double));
        memcpy(dst->moment, src->moment, moment * sizeof(double));
    } else {
        double part = (double)src->n / (double)(dst->n + src->n);
        merge_means(dst->mean, src->mean, width, part);
        merge_means(dst->moment, src->moment, moment, part);
    }
    dst->n += src->n;
}

vqkvc_code vqkvc_value_metric(const vqkvc_geometry *g, const float *wo, float *metric,
                              vqkvc_err *err)
{
    int hd = g->head_dim, group = g->n_heads / g->n_kv_heads;
    size_t ld = (size_t)g->n_heads * (size_t)hd, block = (size_t)hd * (size_t)hd;
    float *gram = vqkvc_alloc(block, sizeof(float), err);
    if (gram == NULL)
        return err->code;
    memset(metric, 0, (size_t)g->n_kv_heads * block * sizeof(float));
    for (int h = 0; h < g->n_heads; h++) {
        const float *columns = wo + (size_t)h * (size_t)hd;
        float *sum = metric + (size_t)(h / group) * block;
        vqkvc_sgemm_tn(hd, hd, g->d_model, columns, ld, columns, ld, gram, (size_t)hd);
        for (size_t i = 0; i < block; i++)
            sum[i] += gram[i] / (float)group;
    }
    free(gram);
    return VQKVC_OK;
}
