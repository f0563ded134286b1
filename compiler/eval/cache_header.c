#include "eval/cache_header.h"

#include <omp.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "base/rng.h"

enum { MOST_EXACT = 1 << 30 };

typedef struct header_cache {
    const struct vqkvc_codec_table *table;
    const char *name;
    int n_layers, n_seq, sliding_window, top_tokens;
    int n_ctx;
    size_t row;             /* n_kv_heads * head_dim */
    float *copy;            /* [n_seq, n_layers, 2, n_ctx, row] where it is watched, or NULL */
    void *memory, *kv;      /* kv points into memory */
    unsigned char *scratch; /* [n_threads, scratch_bytes] */
    size_t scratch_bytes;
    int n_threads;
    int *len; /* [n_seq, n_layers] tokens held */
} header_cache;

static vqkvc_code codec_failed(const header_cache *c, const char *call, int seq, int layer,
                               int status, vqkvc_err *err)
{
    return vqkvc_fail(err, VQKVC_E_FAILED, "%s: %s of sequence %d, layer %d: %s", c->name, call,
                      seq, layer, c->table->status_text(status));
}

static vqkvc_code check_call(const header_cache *c, int seq, int layer, int n, vqkvc_err *err)
{
    if (seq < 0 || seq >= c->n_seq || layer < 0 || layer >= c->n_layers || n < 0)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "%s: sequence %d, layer %d, %d tokens are outside %d sequences, %d layers", c->name,
            seq, layer, n, c->n_seq, c->n_layers);
    return VQKVC_OK;
}

/* The copy of a token's vectors of one part, all heads. */
static float *copy_of(const header_cache *c, int seq, int layer, int part, int token)
{
    size_t at = (((size_t)seq * c->n_layers + layer) * 2 + part) * c->n_ctx + token;
    return c->copy + at * c->row;
}

static vqkvc_code header_append(void *self, int seq, int layer, int pos, int n, const float *k,
                                const float *v, vqkvc_err *err)
{
    header_cache *c = self;
    VQKVC_TRY(check_call(c, seq, layer, n, err));
    int *len = &c->len[(size_t)seq * c->n_layers + layer];
    if (pos != *len)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: sequence %d, layer %d holds %d tokens; cannot append at %d", c->name,
                          seq, layer, *len, pos);
    int status = n > 0 ? c->table->append(c->kv, seq, layer, n, k, v) : 0;
    if (status != 0)
        return codec_failed(c, "append", seq, layer, status, err);
    if (c->copy != NULL) {
        memcpy(copy_of(c, seq, layer, 0, pos), k, sizeof *k * (size_t)n * c->row);
        memcpy(copy_of(c, seq, layer, 1, pos), v, sizeof *v * (size_t)n * c->row);
    }
    *len += n;
    return VQKVC_OK;
}

static vqkvc_code header_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                                float *out, float scale, vqkvc_err *err)
{
    const header_cache *c = self;
    VQKVC_TRY(check_call(c, seq, layer, n, err));
    int len = c->len[(size_t)seq * c->n_layers + layer], thread = omp_get_thread_num();
    if (n == 0)
        return VQKVC_OK;
    if (pos < 0 || pos + n != len)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: sequence %d, layer %d holds %d tokens; %d queries at %d are not its "
                          "latest",
                          c->name, seq, layer, len, n, pos);
    if (thread >= c->n_threads)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: made for %d threads, called by thread %d",
                          c->name, c->n_threads, thread);
    int status =
        c->table->attend(c->kv, seq, layer, n, q, out, scale, c->sliding_window, c->top_tokens,
                         c->scratch + (size_t)thread * c->scratch_bytes, c->scratch_bytes);
    if (status != 0)
        return codec_failed(c, "attend", seq, layer, status, err);
    return VQKVC_OK;
}

static vqkvc_code header_trim(void *self, int seq, int n_keep, vqkvc_err *err)
{
    header_cache *c = self;
    VQKVC_TRY(check_call(c, seq, 0, n_keep, err));
    int *len = c->len + (size_t)seq * c->n_layers, least = len[0];
    for (int l = 1; l < c->n_layers; l++)
        least = len[l] < least ? len[l] : least;
    if (n_keep > least) /* the interface forgets from n_keep on: nothing to forget */
        return VQKVC_OK;
    int status = c->table->trim(c->kv, seq, n_keep);
    if (status != 0)
        return codec_failed(c, "trim", seq, 0, status, err);
    for (int l = 0; l < c->n_layers; l++)
        len[l] = n_keep;
    return VQKVC_OK;
}

static size_t header_bytes(void *self)
{
    const header_cache *c = self;
    return c->table->bytes_used(c->kv);
}

static void header_free(void *self)
{
    header_cache *c = self;
    free(c->memory);
    free(c->scratch);
    free(c->len);
    free(c->copy);
    free(c);
}

static vqkvc_code allocate(header_cache *c, const struct vqkvc_codec_shape *shape, vqkvc_err *err)
{
    size_t bytes = 0;
    int status = c->table->size(shape, &bytes);
    if (status != 0)
        return vqkvc_fail(err, VQKVC_E_FAILED, "%s: a cache of %d sequences of %d tokens: %s",
                          c->name, shape->n_seq, shape->n_ctx, c->table->status_text(status));
    c->scratch_bytes = (c->table->scratch_size() + 63) / 64 * 64;
    c->n_threads = omp_get_max_threads();
    c->len = vqkvc_alloc((size_t)c->n_seq * c->n_layers, sizeof *c->len, err);
    c->scratch = vqkvc_alloc((size_t)c->n_threads, c->scratch_bytes, err);
    c->memory = vqkvc_alloc(bytes, 1, err);
    if (err->code != VQKVC_OK)
        return err->code;
    status = c->table->init(&c->kv, shape, c->memory, bytes);
    if (status != 0)
        return vqkvc_fail(err, VQKVC_E_FAILED, "%s: init: %s", c->name,
                          c->table->status_text(status));
    return VQKVC_OK;
}

/* With room for every vector on the exact list: what is measured here may be unlike anything that
 * the codec was fitted to. */
static struct vqkvc_codec_shape shape_of(const vqkvc_codec *codec, int n_seq, int n_ctx,
                                         int max_batch, vqkvc_isa isa)
{
    const struct vqkvc_codec_table *t = codec->table;
    double vectors = 2.0 * t->n_layers * t->n_kv_heads * n_seq * n_ctx;
    return (struct vqkvc_codec_shape){
        .n_seq = n_seq,
        .n_ctx = n_ctx,
        .max_batch = max_batch,
        .n_exact = t->max_error > 0 && vectors < MOST_EXACT && vectors > 0 ? (int)vectors : 0,
        .isa = (int)isa};
}

vqkvc_code vqkvc_cache_header(vqkvc_cache *cache, const vqkvc_codec *codec, const char *name,
                              const vqkvc_geometry *g, int n_seq, int n_ctx, int max_batch,
                              vqkvc_isa isa, vqkvc_err *err)
{
    struct vqkvc_codec_shape shape = shape_of(codec, n_seq, n_ctx, max_batch, isa);
    *cache = (vqkvc_cache){0};
    VQKVC_TRY(vqkvc_codec_check(codec, name, g, err));
    if (n_seq < 1 || n_ctx < 1 || max_batch < 1)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: %d sequences of %d tokens, %d a batch", name,
                          n_seq, n_ctx, max_batch);
    header_cache *c = vqkvc_alloc(1, sizeof *c, err);
    if (c == NULL)
        return err->code;
    *c = (header_cache){.table = codec->table,
                        .name = name,
                        .n_layers = g->n_layers,
                        .n_seq = n_seq,
                        .sliding_window = g->sliding_window,
                        .n_ctx = n_ctx,
                        .row = (size_t)g->n_kv_heads * g->head_dim};
    vqkvc_code code = allocate(c, &shape, err);
    if (code != VQKVC_OK) {
        header_free(c);
        return code;
    }
    *cache = (vqkvc_cache){c, header_append, header_attend, header_trim, header_bytes, header_free};
    return VQKVC_OK;
}

vqkvc_code vqkvc_cache_header_choose(vqkvc_cache *cache, int top_tokens, vqkvc_err *err)
{
    header_cache *c = cache->self;
    if (top_tokens != 0 && c->table->landmarks == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: %d tokens cannot be chosen without landmarks",
                          c->name, top_tokens);
    c->top_tokens = top_tokens;
    return VQKVC_OK;
}

vqkvc_code vqkvc_cache_header_watch(vqkvc_cache *cache, vqkvc_err *err)
{
    header_cache *c = cache->self;
    c->copy =
        vqkvc_alloc((size_t)c->n_seq * c->n_layers * 2 * c->n_ctx, c->row * sizeof *c->copy, err);
    return err->code;
}

/* |x - y| / |x|, x in binary16. */
static double relative_error(int n, const float *x, const float *y)
{
    double error = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        double exact = (double)vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[i]));
        error += (exact - y[i]) * (exact - y[i]);
        norm += exact * exact;
    }
    return error == 0 ? 0 : sqrt(error / norm);
}

vqkvc_code vqkvc_cache_header_errors(vqkvc_cache *cache, double *worst, double *kept_rate,
                                     vqkvc_err *err)
{
    header_cache *c = cache->self;
    int dim = c->table->head_dim, heads = c->table->n_kv_heads;
    double coded = 0;
    float *y = vqkvc_alloc((size_t)c->n_ctx, (size_t)dim * sizeof *y, err);
    *worst = *kept_rate = 0;
    for (int i = 0; y != NULL && i < c->n_seq * c->n_layers * 2 * heads; i++) {
        int head = i % heads, part = i / heads % 2, layer = i / heads / 2 % c->n_layers;
        int seq = i / heads / 2 / c->n_layers, n = c->len[(size_t)seq * c->n_layers + layer];
        int over = n - 1 - c->table->n_sink - c->table->n_recent;
        int status =
            c->table->read(c->kv, seq, layer, head, part, 0, n, y, c->scratch, c->scratch_bytes);
        if (status != 0) {
            codec_failed(c, "read", seq, layer, status, err);
            break;
        }
        for (int t = 0; t < n; t++) {
            double e = relative_error(dim, copy_of(c, seq, layer, part, t) + (size_t)head * dim,
                                      y + (size_t)t * dim);
            *worst = e > *worst ? e : *worst;
        }
        coded += over > 0 ? over / c->table->block * c->table->block : 0;
    }
    free(y);
    if (coded > 0)
        *kept_rate = c->table->exact_used(c->kv) / coded;
    return err->code;
}

vqkvc_code vqkvc_cache_header_size(const vqkvc_codec *codec, const char *name, int n_seq, int n_ctx,
                                   int max_batch, size_t *bytes, vqkvc_err *err)
{
    struct vqkvc_codec_shape shape = shape_of(codec, n_seq, n_ctx, max_batch, VQKVC_ISA_AUTO);
    int status = codec->table->size(&shape, bytes);
    if (status != 0)
        return vqkvc_fail(err, VQKVC_E_FAILED, "%s: a cache of %d sequences of %d tokens: %s", name,
                          n_seq, n_ctx, codec->table->status_text(status));
    return VQKVC_OK;
}

/* Appends one token at `pos` to all layers: kv [2, n_kv_heads, head_dim]. */
static vqkvc_code append_token(const vqkvc_cache *cache, const vqkvc_geometry *g, int pos,
                               const float *kv, vqkvc_err *err)
{
    size_t row = (size_t)g->n_kv_heads * g->head_dim;
    for (int l = 0; l < g->n_layers; l++)
        VQKVC_TRY(cache->append(cache->self, 0, l, pos, 1, kv, kv + row, err));
    return VQKVC_OK;
}

/* Without what is on the exact list. */
static size_t coded_bytes(const vqkvc_cache *cache)
{
    const header_cache *c = cache->self;
    size_t kept = (size_t)c->table->exact_used(c->kv);
    return cache->bytes(cache->self) - kept * (8 + 2 * (size_t)c->table->head_dim);
}

vqkvc_code vqkvc_stored_bits(const vqkvc_codec *codec, const char *name, const vqkvc_geometry *g,
                             double *bits, vqkvc_err *err)
{
    const struct vqkvc_codec_table *t = codec->table;
    VQKVC_TRY(vqkvc_codec_check(codec, name, g, err));
    /* Both counts are taken right after a block was encoded: the exact window is equally long. */
    int first = t->n_sink + t->n_recent + t->block + 1, last = first + t->block;
    size_t row = (size_t)g->n_kv_heads * g->head_dim, before = 0;
    vqkvc_cache cache;
    vqkvc_rng rng = vqkvc_rng_make(1, 0);
    VQKVC_TRY(vqkvc_cache_header(&cache, codec, name, g, 1, last, 1, VQKVC_ISA_AUTO, err));
    float *kv = vqkvc_alloc(2 * row, sizeof *kv, err);
    vqkvc_code code = kv != NULL ? VQKVC_OK : err->code;
    for (size_t i = 0; kv != NULL && i < 2 * row; i++)
        kv[i] = (float)vqkvc_rng_normal(&rng);
    for (int pos = 0; code == VQKVC_OK && pos < last; pos++) {
        code = append_token(&cache, g, pos, kv, err);
        if (pos + 1 == first)
            before = coded_bytes(&cache);
    }
    if (code == VQKVC_OK)
        *bits = 8.0 * (double)(coded_bytes(&cache) - before) /
                (2.0 * (double)row * g->n_layers * t->block);
    free(kv);
    cache.free(cache.self);
    return code;
}
