#include "capture/capture.h"

#include <string.h>

#include "base/half.h"
#include "capture/stats.h"

int vqkvc_kind_width(const vqkvc_geometry *g, vqkvc_kind kind)
{
    return (kind == VQKVC_QUERY ? g->n_heads : g->n_kv_heads) * g->head_dim;
}

const char *vqkvc_kind_name(vqkvc_kind kind)
{
    static const char *const names[] = {"key", "value", "query"};
    return names[kind];
}

vqkvc_code vqkvc_capture_init(vqkvc_capture *c, const vqkvc_geometry *g, int cap_sample,
                              vqkvc_err *err)
{
    size_t layers = (size_t)g->n_layers, cap = (size_t)cap_sample;
    *c = (vqkvc_capture){.geometry = *g, .cap_sample = cap_sample};
    c->pos = vqkvc_arena_alloc(&c->arena, cap, sizeof *c->pos, err);
    c->doc = vqkvc_arena_alloc(&c->arena, cap, sizeof *c->doc, err);
    for (int kind = 0; kind < 3; kind++) {
        c->stats[kind] = vqkvc_arena_alloc(&c->arena, layers, sizeof *c->stats[kind], err);
        c->sample[kind] = vqkvc_arena_alloc(&c->arena, layers, sizeof *c->sample[kind], err);
    }
    return err->code;
}

int vqkvc_capture_has(const vqkvc_capture *c, vqkvc_kind kind, int layer)
{
    return c->stats[kind][layer].moment != NULL;
}

vqkvc_code vqkvc_capture_alloc_layer(vqkvc_capture *c, vqkvc_kind kind, int layer, vqkvc_err *err)
{
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind);
    vqkvc_stats *s = &c->stats[kind][layer];
    if (vqkvc_capture_has(c, kind, layer))
        return VQKVC_OK;
    s->mean = vqkvc_arena_alloc(&c->arena, width, sizeof(double), err);
    s->moment = vqkvc_arena_alloc(&c->arena, vqkvc_stats_moment_size(&c->geometry, kind),
                                  sizeof(double), err);
    if (kind != VQKVC_QUERY)
        c->sample[kind][layer] =
            vqkvc_arena_alloc(&c->arena, (size_t)c->cap_sample * width, sizeof(uint16_t), err);
    return err->code;
}

vqkvc_code vqkvc_capture_alloc(vqkvc_capture *c, const vqkvc_geometry *g, int cap_sample,
                               vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_capture_init(c, g, cap_sample, err));
    for (int kind = 0; kind < 3; kind++)
        for (int layer = 0; layer < g->n_layers; layer++)
            VQKVC_TRY(vqkvc_capture_alloc_layer(c, (vqkvc_kind)kind, layer, err));
    return VQKVC_OK;
}

static int same_geometry(const vqkvc_geometry *a, const vqkvc_geometry *b)
{
    return a->n_layers == b->n_layers && a->n_heads == b->n_heads &&
           a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim &&
           strcmp(a->weights_hash.hex, b->weights_hash.hex) == 0;
}

static vqkvc_code merge_layer(vqkvc_capture *dst, const vqkvc_capture *src, vqkvc_kind kind,
                              int layer, vqkvc_err *err)
{
    size_t width = (size_t)vqkvc_kind_width(&dst->geometry, kind);
    if (dst->n_tokens != 0 &&
        vqkvc_capture_has(dst, kind, layer) != vqkvc_capture_has(src, kind, layer))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "captures differ: only one has vectors of layer %d, %s", layer,
                          vqkvc_kind_name(kind));
    if (!vqkvc_capture_has(src, kind, layer))
        return VQKVC_OK;
    VQKVC_TRY(vqkvc_capture_alloc_layer(dst, kind, layer, err));
    vqkvc_stats_merge(&dst->stats[kind][layer], &src->stats[kind][layer], &dst->geometry, kind);
    if (kind != VQKVC_QUERY)
        memcpy(dst->sample[kind][layer] + (size_t)dst->n_sample * width, src->sample[kind][layer],
               (size_t)src->n_sample * width * sizeof(uint16_t));
    return VQKVC_OK;
}

static vqkvc_code merge_residual(vqkvc_capture *dst, const vqkvc_capture *src, vqkvc_err *err)
{
    size_t layers = (size_t)dst->geometry.n_layers;
    if (dst->n_tokens != 0 && (dst->residual_ms == NULL) != (src->residual_ms == NULL))
        return vqkvc_fail(err, VQKVC_E_USAGE, "captures differ: only one has residual_ms");
    if (src->residual_ms == NULL)
        return VQKVC_OK;
    if (dst->residual_ms == NULL) {
        dst->residual_ms = vqkvc_arena_alloc(&dst->arena, layers, sizeof(float), err);
        if (dst->residual_ms == NULL)
            return err->code;
    }
    double part = (double)src->n_tokens / (double)(dst->n_tokens + src->n_tokens);
    for (size_t i = 0; i < layers; i++) {
        double mean = dst->residual_ms[i];
        dst->residual_ms[i] = (float)(mean + ((double)src->residual_ms[i] - mean) * part);
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_capture_merge(vqkvc_capture *dst, const vqkvc_capture *src, vqkvc_err *err)
{
    if (!same_geometry(&dst->geometry, &src->geometry))
        return vqkvc_fail(err, VQKVC_E_USAGE, "captures are of different models: '%s' and '%s'",
                          dst->geometry.name, src->geometry.name);
    if (src->n_sample > dst->cap_sample - dst->n_sample)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "no room for %d more sampled tokens behind %d of at most %d",
                          src->n_sample, dst->n_sample, dst->cap_sample);
    if (src->n_tokens == 0)
        return VQKVC_OK;
    for (int kind = 0; kind < 3; kind++)
        for (int layer = 0; layer < dst->geometry.n_layers; layer++)
            VQKVC_TRY(merge_layer(dst, src, (vqkvc_kind)kind, layer, err));
    VQKVC_TRY(merge_residual(dst, src, err));
    memcpy(dst->pos + dst->n_sample, src->pos, (size_t)src->n_sample * sizeof *src->pos);
    memcpy(dst->doc + dst->n_sample, src->doc, (size_t)src->n_sample * sizeof *src->doc);
    dst->n_sample += src->n_sample;
    dst->n_tokens += src->n_tokens;
    return VQKVC_OK;
}

void vqkvc_capture_read(const vqkvc_capture *c, vqkvc_kind kind, int layer, int first, int n,
                        float *dst)
{
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind);
    const uint16_t *src = c->sample[kind][layer];
    if (src == NULL) {
        memset(dst, 0, (size_t)n * width * sizeof(float));
        return;
    }
    src += (size_t)first * width;
    for (size_t i = 0; i < (size_t)n * width; i++)
        dst[i] = vqkvc_f16_to_f32(src[i]);
}

void vqkvc_capture_free(vqkvc_capture *c)
{
    vqkvc_arena_free(&c->arena);
    *c = (vqkvc_capture){0};
}
