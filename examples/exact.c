/* An fp16 cache behind the reference reader's cache interface, on the in-tree attention that
 * codecs are timed against: one thread, as the compressed cache has here. */
#include "exact.h"

#include <stdlib.h>

#include "base/half.h"
#include "base/memory.h"
#include "eval/attend_f16.h"

typedef struct exact {
    const vqkvc_geometry *g;
    int n_ctx, n_tokens; /* of the layer that holds most */
    uint16_t *k, *v;     /* [n_layers, n_kv_heads, n_ctx, head_dim] */
    float *scratch;
} exact;

/* Where token t of one head lies in k and v. */
static size_t place(const exact *c, int layer, int head, int t)
{
    return (((size_t)layer * c->g->n_kv_heads + head) * c->n_ctx + t) * c->g->head_dim;
}

static vqkvc_code check_place(const exact *c, int seq, int pos, int n, vqkvc_err *err)
{
    if (seq != 0 || pos < 0 || n < 0 || n > c->n_ctx - pos)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "exact cache: %d tokens at %d of sequence %d: it has "
                          "room for %d of one",
                          n, pos, seq, c->n_ctx);
    return VQKVC_OK;
}

static vqkvc_code exact_append(void *self, int seq, int layer, int pos, int n, const float *k,
                               const float *v, vqkvc_err *err)
{
    exact *c = self;
    int dim = c->g->head_dim, heads = c->g->n_kv_heads;
    VQKVC_TRY(check_place(c, seq, pos, n, err));
    for (int t = 0; t < n; t++)
        for (int h = 0; h < heads; h++) {
            size_t to = place(c, layer, h, pos + t), from = ((size_t)t * heads + h) * dim;
            for (int i = 0; i < dim; i++) {
                c->k[to + i] = vqkvc_f32_to_f16(k[from + i]);
                c->v[to + i] = vqkvc_f32_to_f16(v[from + i]);
            }
        }
    c->n_tokens = pos + n > c->n_tokens ? pos + n : c->n_tokens;
    return VQKVC_OK;
}

static vqkvc_code exact_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                               float *out, float scale, vqkvc_err *err)
{
    const exact *c = self;
    const vqkvc_geometry *g = c->g;
    int group = g->n_heads / g->n_kv_heads;
    VQKVC_TRY(check_place(c, seq, pos, n, err));
    for (int t = 0; t < n; t++)
        for (int h = 0; h < g->n_kv_heads; h++) {
            size_t row = ((size_t)t * g->n_heads + (size_t)h * group) * g->head_dim;
            int last = pos + t + 1, window = g->sliding_window;
            int first = window > 0 && last > window ? last - window : 0;
            size_t from = place(c, layer, h, first);
            vqkvc_attend_f16(c->k + from, c->v + from, last - first, group, g->head_dim, q + row,
                             out + row, scale, VQKVC_ISA_AUTO, c->scratch);
        }
    return VQKVC_OK;
}

static vqkvc_code exact_trim(void *self, int seq, int n_keep, vqkvc_err *err)
{
    exact *c = self;
    VQKVC_TRY(check_place(c, seq, n_keep, 0, err));
    c->n_tokens = c->n_tokens < n_keep ? c->n_tokens : n_keep;
    return VQKVC_OK;
}

static size_t exact_bytes(void *self)
{
    const exact *c = self;
    return (size_t)c->n_tokens * c->g->n_layers * c->g->n_kv_heads * c->g->head_dim * 2 *
           sizeof(uint16_t);
}

static void exact_free(void *self)
{
    exact *c = self;
    free(c->k);
    free(c->v);
    free(c->scratch);
    free(c);
}

vqkvc_code exact_cache(vqkvc_cache *cache, const vqkvc_geometry *g, int n_ctx, vqkvc_err *err)
{
    exact *c = vqkvc_alloc(1, sizeof *c, err);
    if (c == NULL)
        return err->code;
    *c = (exact){.g = g, .n_ctx = n_ctx};
    size_t heads = (size_t)g->n_layers * g->n_kv_heads;
    c->k = vqkvc_alloc(heads * (size_t)n_ctx, (size_t)g->head_dim * sizeof *c->k, err);
    c->v = vqkvc_alloc(heads * (size_t)n_ctx, (size_t)g->head_dim * sizeof *c->v, err);
    c->scratch = vqkvc_alloc(vqkvc_attend_f16_scratch(g->n_heads / g->n_kv_heads, g->head_dim),
                             sizeof *c->scratch, err);
    *cache = (vqkvc_cache){c, exact_append, exact_attend, exact_trim, exact_bytes, exact_free};
    if (err->code != VQKVC_OK)
        exact_free(c);
    return err->code;
}
