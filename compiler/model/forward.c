#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/internal.h"
#include "model/vector.h"

/* From this many rows on, work that is done row by row is shared among threads. */
enum { MANY_TOKENS = 32 };

/* A stretch of one sequence's tokens in the batch. */
typedef struct run {
    int first, n; /* tokens of the batch */
    int seq, pos; /* sequence and position of the first one */
} run;

/* Everything that one call needs beside the model; all memory is in the arena. */
typedef struct step {
    const vqkvc_model *model;
    const vqkvc_cache *cache;
    const vqkvc_batch *batch;
    const vqkvc_tap *tap;
    vqkvc_arena arena;
    int n_runs;
    run *runs;
    vqkvc_err *run_errs;  /* [n_runs] */
    float *cosine, *sine; /* [n, n_rot / 2], times rope_mscale */
    float *x, *normed;    /* [n, d_model] residual stream, and its norm or a block's output */
    float *q, *attended;  /* [n, n_heads, head_dim] */
    float *k, *v;         /* [n, n_kv_heads, head_dim] */
    float *gate, *up;     /* [n, d_ff] */
    float *scratch;       /* model->scratch elements */
} step;

/* Splits the batch into runs and checks that each sequence's tokens are neighbours in order. */
static vqkvc_code find_runs(step *s, vqkvc_err *err)
{
    const vqkvc_batch *b = s->batch;
    s->runs = vqkvc_arena_alloc(&s->arena, (size_t)b->n, sizeof *s->runs, err);
    if (s->runs == NULL)
        return err->code;
    for (int i = 0; i < b->n; i++) {
        if (b->ids[i] < 0 || b->ids[i] >= s->model->vocab || b->seq[i] < 0 || b->pos[i] < 0)
            return vqkvc_fail(err, VQKVC_E_USAGE,
                              "forward: token %d of the batch has id %d (vocabulary %d), sequence "
                              "%d, position %d",
                              i, (int)b->ids[i], s->model->vocab, b->seq[i], b->pos[i]);
        run *last = s->n_runs > 0 ? &s->runs[s->n_runs - 1] : NULL;
        if (last == NULL || last->seq != b->seq[i]) {
            for (int r = 0; r < s->n_runs; r++)
                if (s->runs[r].seq == b->seq[i])
                    return vqkvc_fail(err, VQKVC_E_USAGE,
                                      "forward: tokens of sequence %d are not neighbours in the "
                                      "batch",
                                      b->seq[i]);
            s->runs[s->n_runs++] = (run){i, 1, b->seq[i], b->pos[i]};
        } else if (b->pos[i] != last->pos + last->n) {
            return vqkvc_fail(err, VQKVC_E_USAGE,
                              "forward: sequence %d jumps from position %d to %d", b->seq[i],
                              last->pos + last->n - 1, b->pos[i]);
        } else {
            last->n++;
        }
    }
    return VQKVC_OK;
}

static vqkvc_code allocate(step *s, vqkvc_err *err)
{
    const vqkvc_model *m = s->model;
    const vqkvc_geometry *g = &m->geometry;
    size_t n = (size_t)s->batch->n, d_q = (size_t)g->n_heads * g->head_dim;
    size_t d_kv = (size_t)g->n_kv_heads * g->head_dim, pairs = (size_t)g->n_rot / 2;
    struct {
        float **buffer;
        size_t elements;
    } const wanted[] = {
        {&s->cosine, n * pairs},   {&s->sine, n * pairs},
        {&s->x, n * g->d_model},   {&s->normed, n * g->d_model},
        {&s->q, n * d_q},          {&s->attended, n * d_q},
        {&s->k, n * d_kv},         {&s->v, n * d_kv},
        {&s->gate, n * m->d_ff},   {&s->up, n * m->d_ff},
        {&s->scratch, m->scratch},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].buffer = vqkvc_arena_alloc(&s->arena, wanted[i].elements, sizeof(float), err);
        if (*wanted[i].buffer == NULL)
            return err->code;
    }
    s->run_errs = vqkvc_arena_alloc(&s->arena, (size_t)s->n_runs, sizeof *s->run_errs, err);
    return s->run_errs != NULL ? VQKVC_OK : err->code;
}

/* Embeddings, and the rotation of each token's position: all layers share it. */
static void begin(step *s)
{
    const vqkvc_geometry *g = &s->model->geometry;
    int n = s->batch->n, pairs = g->n_rot / 2;
#pragma omp parallel for schedule(static) if (n >= MANY_TOKENS)
    for (int t = 0; t < n; t++) {
        vqkvc_weight_rows(&s->model->embed, s->batch->ids[t], 1, s->x + (size_t)t * g->d_model);
        for (int i = 0; i < pairs; i++) {
            double angle = s->batch->pos[t] * g->rope_freq[i];
            s->cosine[(size_t)t * pairs + i] = (float)cos(angle) * g->rope_mscale;
            s->sine[(size_t)t * pairs + i] = (float)sin(angle) * g->rope_mscale;
        }
    }
}

/* y [n, d] = x / rms(x) * weight, row by row; x == y is allowed. */
static void rms_norm(int n, int d, const float *x, const float *weight, float eps, float *y)
{
#pragma omp parallel for schedule(static) if (n >= MANY_TOKENS)
    for (int t = 0; t < n; t++) {
        const float *row = x + (size_t)t * d;
        float inverse = (float)(1 / sqrt((double)vqkvc_dot(row, row, d) / d + eps));
#pragma omp simd
        for (int i = 0; i < d; i++)
            y[(size_t)t * d + i] = row[i] * inverse * weight[i];
    }
}

/* Rotates x [n, heads, head_dim] in place; the same formula as vqkvc_rope_rotate(), with
 * rope_mscale. */
static void rotate(const step *s, int heads, float *x)
{
    const vqkvc_geometry *g = &s->model->geometry;
    int pairs = g->n_rot / 2, interleaved = g->rope_layout == VQKVC_ROPE_INTERLEAVED;
    int n = s->batch->n, stride = interleaved ? 2 : 1, partner = interleaved ? 1 : pairs;
#pragma omp parallel for schedule(static) if (n >= MANY_TOKENS)
    for (int t = 0; t < n; t++) {
        const float *c = s->cosine + (size_t)t * pairs, *sn = s->sine + (size_t)t * pairs;
        for (int h = 0; h < heads; h++) {
            float *v = x + ((size_t)t * heads + h) * g->head_dim;
            for (int i = 0; i < pairs; i++) {
                float a = v[stride * i], b = v[stride * i + partner];
                v[stride * i] = a * c[i] - b * sn[i];
                v[stride * i + partner] = a * sn[i] + b * c[i];
            }
        }
    }
}

static void add(size_t n, const float *x, float *sum)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        sum[i] += x[i];
}

/* gate = silu(gate) * up */
static void swiglu(int n, int d_ff, const float *up, float *gate)
{
#pragma omp parallel for schedule(static) if (n >= MANY_TOKENS)
    for (int t = 0; t < n; t++) {
        float *g = gate + (size_t)t * d_ff;
        const float *u = up + (size_t)t * d_ff;
#pragma omp simd
        for (int i = 0; i < d_ff; i++)
            g[i] = g[i] / (1 + vqkvc_exp(-g[i])) * u[i];
    }
}

/* Appends run by run, then attends: several runs side by side, or one on all threads. */
static vqkvc_code attend(step *s, int layer, vqkvc_err *err)
{
    const vqkvc_geometry *g = &s->model->geometry;
    const vqkvc_cache *cache = s->cache;
    float scale = vqkvc_model_attention_scale(s->model);
    size_t d_q = (size_t)g->n_heads * g->head_dim, d_kv = (size_t)g->n_kv_heads * g->head_dim;
    for (int r = 0; r < s->n_runs; r++) {
        const run *p = &s->runs[r];
        size_t at = (size_t)p->first * d_kv;
        VQKVC_TRY(
            cache->append(cache->self, p->seq, layer, p->pos, p->n, s->k + at, s->v + at, err));
    }
#pragma omp parallel for schedule(dynamic) if (s->n_runs > 1)
    for (int r = 0; r < s->n_runs; r++) {
        const run *p = &s->runs[r];
        size_t at = (size_t)p->first * d_q;
        cache->attend(cache->self, p->seq, layer, p->pos, p->n, s->q + at, s->attended + at, scale,
                      &s->run_errs[r]);
    }
    for (int r = 0; r < s->n_runs; r++)
        if (s->run_errs[r].code != VQKVC_OK)
            return vqkvc_fail(err, s->run_errs[r].code, "%s", s->run_errs[r].msg);
    return VQKVC_OK;
}

/* x += attention(norm(x)) */
static vqkvc_code attention_block(step *s, int layer, vqkvc_err *err)
{
    const vqkvc_model *m = s->model;
    const vqkvc_geometry *g = &m->geometry;
    const vqkvc_layer *l = &m->layers[layer];
    int n = s->batch->n;
    if (s->tap != NULL && s->tap->residual != NULL)
        VQKVC_TRY(s->tap->residual(s->tap->self, layer, n, g->d_model, s->x, err));
    rms_norm(n, g->d_model, s->x, l->attn_norm, m->norm_eps, s->normed);
    vqkvc_weight_apply(&l->q, n, s->normed, s->q, s->scratch);
    vqkvc_weight_apply(&l->k, n, s->normed, s->k, s->scratch);
    vqkvc_weight_apply(&l->v, n, s->normed, s->v, s->scratch);
    if (l->q_norm != NULL) {
        rms_norm(n * g->n_heads, g->head_dim, s->q, l->q_norm, m->norm_eps, s->q);
        rms_norm(n * g->n_kv_heads, g->head_dim, s->k, l->k_norm, m->norm_eps, s->k);
    }
    if (s->tap != NULL)
        VQKVC_TRY(s->tap->qkv(s->tap->self, layer, n, s->batch->seq, s->batch->pos, s->q, s->k,
                              s->v, err));
    rotate(s, g->n_heads, s->q);
    rotate(s, g->n_kv_heads, s->k);
    VQKVC_TRY(attend(s, layer, err));
    vqkvc_weight_apply(&l->o, n, s->attended, s->normed, s->scratch);
    add((size_t)n * g->d_model, s->normed, s->x);
    return VQKVC_OK;
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static void feed_forward_block(step *s, int layer)
{
    const vqkvc_model *m = s->model;
    const vqkvc_layer *l = &m->layers[layer];
    int n = s->batch->n, d = m->geometry.d_model;
    rms_norm(n, d, s->x, l->ffn_norm, m->norm_eps, s->normed);
    vqkvc_weight_apply(&l->gate, n, s->normed, s->gate, s->scratch);
    vqkvc_weight_apply(&l->up, n, s->normed, s->up, s->scratch);
    swiglu(n, m->d_ff, s->up, s->gate);
    vqkvc_weight_apply(&l->down, n, s->gate, s->normed, s->scratch);
    add((size_t)n * d, s->normed, s->x);
}

static vqkvc_code run_step(step *s, float *logits, vqkvc_err *err)
{
    const vqkvc_model *m = s->model;
    VQKVC_TRY(find_runs(s, err));
    VQKVC_TRY(allocate(s, err));
    begin(s);
    for (int layer = 0; layer < m->geometry.n_layers; layer++) {
        VQKVC_TRY(attention_block(s, layer, err));
        feed_forward_block(s, layer);
    }
    if (logits == NULL)
        return VQKVC_OK;
    int n = s->batch->n, d = m->geometry.d_model;
    rms_norm(n, d, s->x, m->output_norm, m->norm_eps, s->normed);
    vqkvc_weight_apply(&m->output, n, s->normed, logits, s->scratch);
    return VQKVC_OK;
}

vqkvc_code vqkvc_forward(vqkvc_model *model, const vqkvc_cache *cache, const vqkvc_batch *batch,
                         const vqkvc_tap *tap, float *logits, vqkvc_err *err)
{
    if (batch->n < 1)
        return vqkvc_fail(err, VQKVC_E_USAGE, "forward: a batch of %d tokens", batch->n);
    step s = {.model = model, .cache = cache, .batch = batch, .tap = tap};
    vqkvc_code code = run_step(&s, logits, err);
    vqkvc_arena_free(&s.arena);
    return code;
}
