/* The exact cache: keys and values in fp32 or binary16, one head's tokens in a row. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"
#include "base/memory.h"
#include "model/attend_f16.h"
#include "model/cache.h"
#include "model/vector.h"

typedef struct exact_cache {
    int n_layers, n_heads, n_kv_heads, head_dim, sliding_window;
    int n_seq, n_ctx;
    int *len;           /* [n_seq, n_layers] tokens held */
    size_t value_bytes; /* 4, or 2: binary16 */
    /* [n_seq, n_layers, n_kv_heads, n_ctx, head_dim] */
    void *k, *v;
} exact_cache;

/* Query rows (tokens times query heads of one KV head) of one task: enough to fill a matrix
 * product, few enough that scores against a long context stay in cache. */
enum { TASK_ROWS = 64 };

/* Up to this many query rows a plain loop beats a matrix product. */
enum { FEW_ROWS = 4 };

/* The tokens of one head from `pos` on. */
static void *head_of(const exact_cache *c, void *base, int seq, int layer, int head, int pos)
{
    size_t index = ((size_t)seq * c->n_layers + layer) * c->n_kv_heads + head;
    index = index * (size_t)c->n_ctx + (size_t)pos;
    return (char *)base + index * (size_t)c->head_dim * c->value_bytes;
}

static void store(const exact_cache *c, const float *x, void *to)
{
    if (c->value_bytes == sizeof *x) {
        memcpy(to, x, (size_t)c->head_dim * sizeof *x);
        return;
    }
    uint16_t *half = to;
    for (int i = 0; i < c->head_dim; i++)
        half[i] = vqkvc_f32_to_f16(x[i]);
}

static vqkvc_code check_place(const exact_cache *c, int seq, int layer, vqkvc_err *err)
{
    if (seq < 0 || seq >= c->n_seq || layer < 0 || layer >= c->n_layers)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "exact cache: sequence %d, layer %d are outside %d sequences, %d layers",
                          seq, layer, c->n_seq, c->n_layers);
    return VQKVC_OK;
}

static vqkvc_code exact_append(void *self, int seq, int layer, int pos, int n, const float *k,
                               const float *v, vqkvc_err *err)
{
    exact_cache *c = self;
    VQKVC_TRY(check_place(c, seq, layer, err));
    int *len = &c->len[(size_t)seq * c->n_layers + layer];
    if (pos != *len || n < 0 || n > c->n_ctx - pos)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "exact cache: sequence %d, layer %d holds %d of %d tokens; cannot append "
                          "%d at %d",
                          seq, layer, *len, c->n_ctx, n, pos);
    for (int h = 0; h < c->n_kv_heads; h++)
        for (int t = 0; t < n; t++) {
            size_t from = ((size_t)t * c->n_kv_heads + h) * c->head_dim;
            store(c, k + from, head_of(c, c->k, seq, layer, h, pos + t));
            store(c, v + from, head_of(c, c->v, seq, layer, h, pos + t));
        }
    *len += n;
    return VQKVC_OK;
}

/* Softmax of s [n] in place; the sum is in double, in lanes that are added in order. */
static void softmax(float *s, int n)
{
    enum { SUMS = 8 };
    double sum[SUMS] = {0}, total = 0;
    float max = vqkvc_max(s, n);
#pragma omp simd
    for (int i = 0; i < n; i++)
        s[i] = vqkvc_exp(s[i] - max);
    int i = 0;
    for (; i + SUMS <= n; i += SUMS)
        for (int l = 0; l < SUMS; l++)
            sum[l] += (double)s[i + l];
    for (int l = 0; i + l < n; l++)
        sum[l] += (double)s[i + l];
    for (int l = 0; l < SUMS; l++)
        total += sum[l];
    float inverse = (float)(1 / total);
#pragma omp simd
    for (i = 0; i < n; i++)
        s[i] *= inverse;
}

/* s [rows, n] = q [rows, d] * k [n, d]' */
static void scores(int rows, int n, int d, const float *q, const float *k, float *s)
{
    if (rows > FEW_ROWS) {
        vqkvc_sgemm_nt(rows, n, d, q, (size_t)d, k, (size_t)d, s, (size_t)n);
        return;
    }
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++)
            s[(size_t)r * n + t] = vqkvc_dot(q + (size_t)r * d, k + (size_t)t * d, d);
}

/* o [rows, d] = p [rows, n] * v [n, d] */
static void mix(int rows, int n, int d, const float *p, const float *v, float *o)
{
    if (rows > FEW_ROWS) {
        vqkvc_sgemm_nn(rows, d, n, p, (size_t)n, v, (size_t)d, o, (size_t)d);
        return;
    }
    memset(o, 0, (size_t)rows * d * sizeof *o);
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++) {
            float weight = p[(size_t)r * n + t];
#pragma omp simd
            for (int i = 0; i < d; i++)
                o[(size_t)r * d + i] += weight * v[(size_t)t * d + i];
        }
}

/* One task: the query heads of KV head `head` for tokens first .. first + n - 1 of the call. */
typedef struct attend_task {
    const exact_cache *cache;
    int seq, layer, head;
    int pos, n;     /* position of the first token, number of tokens */
    const float *q; /* [n, n_heads, head_dim], at the first token */
    float *out;
    float scale;
} attend_task;

static vqkvc_code run_task(const attend_task *task, vqkvc_err *err)
{
    const exact_cache *c = task->cache;
    int d = c->head_dim, group = c->n_heads / c->n_kv_heads, rows = task->n * group;
    int window = c->sliding_window, begin = 0, end = task->pos + task->n;
    if (window > 0 && task->pos - window + 1 > 0)
        begin = task->pos - window + 1; /* first key that the first query sees */
    int n_keys = end - begin;
    float *q = vqkvc_alloc((size_t)rows * (2 * (size_t)d + n_keys), sizeof *q, err);
    if (q == NULL)
        return err->code;
    float *o = q + (size_t)rows * d, *s = o + (size_t)rows * d;
    for (int r = 0; r < rows; r++) {
        size_t from = ((size_t)(r / group) * c->n_heads + task->head * group + r % group) * d;
        for (int i = 0; i < d; i++)
            q[(size_t)r * d + i] = task->q[from + i] * task->scale;
    }
    scores(rows, n_keys, d, q, head_of(c, c->k, task->seq, task->layer, task->head, begin), s);
    for (int r = 0; r < rows; r++) {
        float *row = s + (size_t)r * n_keys;
        int last = task->pos + r / group + 1 - begin; /* keys up to the query's own */
        int first = window > 0 && last > window ? last - window : 0;
        softmax(row + first, last - first);
        memset(row, 0, (size_t)first * sizeof *row);
        memset(row + last, 0, (size_t)(n_keys - last) * sizeof *row);
    }
    mix(rows, n_keys, d, s, head_of(c, c->v, task->seq, task->layer, task->head, begin), o);
    for (int r = 0; r < rows; r++) {
        size_t to = ((size_t)(r / group) * c->n_heads + task->head * group + r % group) * d;
        memcpy(task->out + to, o + (size_t)r * d, (size_t)d * sizeof *o);
    }
    free(q);
    return VQKVC_OK;
}

/* The same over binary16, query by query: quick for the one query of decoding. */
static vqkvc_code run_half_task(const attend_task *task, vqkvc_err *err)
{
    const exact_cache *c = task->cache;
    int d = c->head_dim, group = c->n_heads / c->n_kv_heads;
    float *scratch = vqkvc_alloc(vqkvc_attend_f16_scratch(group, d), sizeof *scratch, err);
    if (scratch == NULL)
        return err->code;
    for (int i = 0; i < task->n; i++) {
        int end = task->pos + i + 1, begin = 0;
        if (c->sliding_window > 0 && end > c->sliding_window)
            begin = end - c->sliding_window;
        size_t row = ((size_t)i * c->n_heads + task->head * group) * d;
        vqkvc_attend_f16(head_of(c, c->k, task->seq, task->layer, task->head, begin),
                         head_of(c, c->v, task->seq, task->layer, task->head, begin), end - begin,
                         group, d, task->q + row, task->out + row, task->scale, VQKVC_ISA_AUTO,
                         scratch);
    }
    free(scratch);
    return VQKVC_OK;
}

static vqkvc_code exact_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                               float *out, float scale, vqkvc_err *err)
{
    const exact_cache *c = self;
    VQKVC_TRY(check_place(c, seq, layer, err));
    int len = c->len[(size_t)seq * c->n_layers + layer];
    if (pos < 0 || n < 0 || n > len - pos)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "exact cache: sequence %d, layer %d holds %d tokens; queries ask for %d "
                          "at %d",
                          seq, layer, len, n, pos);
    int group = c->n_heads / c->n_kv_heads;
    int tile = TASK_ROWS / group > 0 ? TASK_ROWS / group : 1;
    int n_tiles = (n + tile - 1) / tile, n_tasks = n_tiles * c->n_kv_heads;
    size_t token = (size_t)c->n_heads * c->head_dim;
    size_t work = 2 * (size_t)n * token * (size_t)(pos + n);
    int out_of_memory = 0;
#pragma omp parallel for schedule(dynamic)                                                         \
    reduction(|                                                                                    \
              : out_of_memory) if (work >= VQKVC_PARALLEL_WORK)
    for (int t = 0; t < n_tasks; t++) {
        /* Long rows first: the tail of the loop then balances. */
        int first = (n_tiles - 1 - t / c->n_kv_heads) * tile;
        attend_task task = {.cache = c, .seq = seq, .layer = layer, .head = t % c->n_kv_heads};
        vqkvc_err task_err = {0};
        task.pos = pos + first;
        task.n = n - first < tile ? n - first : tile;
        task.q = q + (size_t)first * token;
        task.out = out + (size_t)first * token;
        task.scale = scale;
        vqkvc_code code = c->value_bytes == sizeof(float) ? run_task(&task, &task_err)
                                                          : run_half_task(&task, &task_err);
        out_of_memory |= code != VQKVC_OK;
    }
    if (out_of_memory)
        return vqkvc_fail(err, VQKVC_E_MEMORY,
                          "exact cache: no memory for the scores of sequence %d, layer %d", seq,
                          layer);
    return VQKVC_OK;
}

static vqkvc_code exact_trim(void *self, int seq, int n_keep, vqkvc_err *err)
{
    exact_cache *c = self;
    VQKVC_TRY(check_place(c, seq, 0, err));
    if (n_keep < 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "exact cache: cannot keep %d tokens", n_keep);
    for (int l = 0; l < c->n_layers; l++) {
        int *len = &c->len[(size_t)seq * c->n_layers + l];
        *len = *len < n_keep ? *len : n_keep;
    }
    return VQKVC_OK;
}

static size_t exact_bytes(void *self)
{
    const exact_cache *c = self;
    size_t tokens = 0;
    for (size_t i = 0; i < (size_t)c->n_seq * (size_t)c->n_layers; i++)
        tokens += (size_t)c->len[i];
    return tokens * 2 * c->value_bytes * (size_t)c->n_kv_heads * (size_t)c->head_dim;
}

static void exact_free(void *self)
{
    exact_cache *c = self;
    free(c->len);
    free(c->k);
    free(c->v);
    free(c);
}

/* a * b, or SIZE_MAX where it does not fit: the allocation then fails with a message. */
static size_t checked_product(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

static vqkvc_code make(vqkvc_cache *cache, const vqkvc_geometry *g, int n_seq, int n_ctx,
                       size_t value_bytes, vqkvc_err *err)
{
    *cache = (vqkvc_cache){0};
    if (n_seq < 1 || n_ctx < 1)
        return vqkvc_fail(err, VQKVC_E_USAGE, "exact cache: %d sequences of %d tokens", n_seq,
                          n_ctx);
    exact_cache *c = vqkvc_alloc(1, sizeof *c, err);
    if (c == NULL)
        return err->code;
    *c = (exact_cache){.n_layers = g->n_layers,
                       .n_heads = g->n_heads,
                       .n_kv_heads = g->n_kv_heads,
                       .head_dim = g->head_dim,
                       .sliding_window = g->sliding_window,
                       .value_bytes = value_bytes,
                       .n_seq = n_seq,
                       .n_ctx = n_ctx};
    size_t heads = checked_product((size_t)n_seq, (size_t)g->n_layers * (size_t)g->n_kv_heads);
    size_t values = checked_product(heads, (size_t)n_ctx * (size_t)g->head_dim);
    c->k = vqkvc_alloc(values, value_bytes, err);
    c->v = c->k != NULL ? vqkvc_alloc(values, value_bytes, err) : NULL;
    c->len =
        c->v != NULL ? vqkvc_alloc((size_t)n_seq * (size_t)g->n_layers, sizeof *c->len, err) : NULL;
    if (c->len == NULL) {
        exact_free(c);
        return err->code;
    }
    *cache = (vqkvc_cache){c, exact_append, exact_attend, exact_trim, exact_bytes, exact_free};
    return VQKVC_OK;
}

vqkvc_code vqkvc_cache_exact(vqkvc_cache *cache, const vqkvc_geometry *g, int n_seq, int n_ctx,
                             vqkvc_err *err)
{
    return make(cache, g, n_seq, n_ctx, sizeof(float), err);
}

vqkvc_code vqkvc_cache_f16(vqkvc_cache *cache, const vqkvc_geometry *g, int n_seq, int n_ctx,
                           vqkvc_err *err)
{
    return make(cache, g, n_seq, n_ctx, sizeof(uint16_t), err);
}
