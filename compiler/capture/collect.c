#include "capture/collect.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

vqkvc_code vqkvc_collector_begin(vqkvc_collector *col, vqkvc_capture *c, vqkvc_err *err)
{
    size_t layers = (size_t)c->geometry.n_layers;
    *col = (vqkvc_collector){.capture = c};
    VQKVC_TRY(vqkvc_stats_scratch_alloc(&col->scratch, &c->geometry, err));
    for (int kind = 0; kind < 3; kind++) {
        col->pending[kind] = vqkvc_arena_alloc(&col->arena, layers, sizeof(float *), err);
        col->n_pending[kind] = vqkvc_arena_alloc(&col->arena, layers, sizeof(int), err);
    }
    return err->code;
}

void vqkvc_collector_next(vqkvc_collector *col, vqkvc_capture *c)
{
    col->capture = c;
    for (int kind = 0; kind < 3; kind++)
        memset(col->n_pending[kind], 0, (size_t)c->geometry.n_layers * sizeof(int));
}

static vqkvc_code check_values(const vqkvc_geometry *g, vqkvc_kind kind, int layer, int n,
                               const vqkvc_where *where, const float *x, vqkvc_err *err)
{
    size_t width = (size_t)vqkvc_kind_width(g, kind);
    for (size_t i = 0; i < (size_t)n * width; i++) {
        if (fabsf(x[i]) < 65520.0f) /* false for a NaN; larger values round to infinity in fp16 */
            continue;
        const vqkvc_where *w = &where[i / width];
        int channel = (int)(i % width);
        return vqkvc_fail(err, VQKVC_E_NUMERIC,
                          "layer %d: %s of head %d, channel %d, at token %d of sequence %d is %g, "
                          "which fp16 cannot hold",
                          layer, vqkvc_kind_name(kind), channel / g->head_dim,
                          channel % g->head_dim, w->pos, w->doc, (double)x[i]);
    }
    return VQKVC_OK;
}

static void keep(vqkvc_capture *c, vqkvc_kind kind, int layer, const vqkvc_where *where,
                 const float *x)
{
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind);
    uint16_t *dst = c->sample[kind][layer] + (size_t)where->slot * width;
    for (size_t i = 0; i < width; i++)
        dst[i] = vqkvc_f32_to_f16(x[i]);
    c->pos[where->slot] = where->pos;
    c->doc[where->slot] = where->doc;
}

static void flush(vqkvc_collector *col, vqkvc_kind kind, int layer)
{
    vqkvc_stats_add(&col->capture->stats[kind][layer], &col->capture->geometry, kind,
                    col->n_pending[kind][layer], col->pending[kind][layer], &col->scratch);
    col->n_pending[kind][layer] = 0;
}

vqkvc_code vqkvc_collector_put(vqkvc_collector *col, vqkvc_kind kind, int layer, int n,
                               const vqkvc_where *where, const float *x, vqkvc_err *err)
{
    vqkvc_capture *c = col->capture;
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind);
    float **pending = &col->pending[kind][layer];
    int *n_pending = &col->n_pending[kind][layer];
    VQKVC_TRY(check_values(&c->geometry, kind, layer, n, where, x, err));
    VQKVC_TRY(vqkvc_capture_alloc_layer(c, kind, layer, err));
    if (*pending == NULL) {
        *pending = vqkvc_arena_alloc(&col->arena, VQKVC_STATS_CHUNK * width, sizeof(float), err);
        if (*pending == NULL)
            return err->code;
    }
    for (int i = 0; i < n; i++) {
        const float *vector = x + (size_t)i * width;
        if (where[i].slot >= 0 && kind != VQKVC_QUERY)
            keep(c, kind, layer, &where[i], vector);
        memcpy(*pending + (size_t)*n_pending * width, vector, width * sizeof(float));
        if (++*n_pending == VQKVC_STATS_CHUNK)
            flush(col, kind, layer);
    }
    return VQKVC_OK;
}

void vqkvc_collector_finish(vqkvc_collector *col)
{
    const vqkvc_geometry *g = &col->capture->geometry;
    for (int kind = 0; kind < 3; kind++) {
        for (int layer = 0; layer < g->n_layers; layer++) {
            if (col->n_pending[kind][layer] > 0)
                flush(col, (vqkvc_kind)kind, layer);
            vqkvc_stats_finish(&col->capture->stats[kind][layer], g, (vqkvc_kind)kind);
        }
    }
}

void vqkvc_collector_free(vqkvc_collector *col)
{
    vqkvc_stats_scratch_free(&col->scratch);
    vqkvc_arena_free(&col->arena);
    *col = (vqkvc_collector){0};
}
