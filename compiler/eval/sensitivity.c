#include "eval/sensitivity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "eval/compare.h"
#include "model/cache.h"

/* Sinks and the latest tokens are exact in every cache: what a head makes of its nearest tokens
 * must not count (with errors in them too, values of layer 0 seem to matter 50 times more than they
 * do). N_RECENT is the mean of what a window of 32 and blocks of 64 leave exact; positions before
 * FIRST see few tokens that a codec would code: they are run once, exactly, and each probe goes on
 * from there. FIRST is a multiple of STEP. */
enum { STEP = 128, FIRST = 128, N_SINK = 4, N_RECENT = 64, STREAM_PROBE = 103 };

/* Variance of an error, as a share of the mean variance of the latents that it goes into. */
static const double level = 0.05;

/* The exact cache, but one head attends to its own copy: older tokens there have errors. */
typedef struct noisy {
    vqkvc_cache exact;
    const vqkvc_geometry *g;
    uint64_t seed;
    int on; /* 0: exact, and the first tokens are kept for later runs */
    vqkvc_member member;
    int first, end;           /* latents that get errors */
    const vqkvc_basis *basis; /* of the member */
    double spread;            /* standard deviation of the errors of a latent */
    float *k, *v;             /* [2, n_tokens, head_dim] of the member: exact, with errors */
    float *first_k, *first_v; /* [n_layers, FIRST, n_kv_heads, head_dim] exact */
    int n_tokens;
    double *scores; /* [STEP * query heads of a KV head, n_tokens] */
} noisy;

static void add_error(const noisy *s, int pos, float *x)
{
    int dim = s->g->head_dim;
    float error[VQKVC_MAX_HEAD_DIM] = {0};
    vqkvc_rng rng = vqkvc_rng_make(s->seed, (uint64_t)pos * 256 + STREAM_PROBE);
    for (int j = s->first; j < s->end; j++) {
        double z = s->spread * vqkvc_rng_normal(&rng);
        for (int i = 0; i < dim; i++)
            error[i] += (float)(z * s->basis->dec[i * dim + j]);
    }
    if (s->member.part == VQKVC_PART_K)
        vqkvc_rope_rotate(s->g, pos, error, 1);
    for (int i = 0; i < dim; i++)
        x[i] += error[i];
}

static size_t width_of(const noisy *s)
{
    return (size_t)s->g->n_kv_heads * (size_t)s->g->head_dim;
}

/* Tokens pos .. pos + n - 1 of the member's layer, k and v [n, n_kv_heads, head_dim]. */
static void take_tokens(noisy *s, int pos, int n, const float *k, const float *v)
{
    size_t dim = (size_t)s->g->head_dim, width = width_of(s), other = (size_t)s->n_tokens * dim;
    for (int t = 0; t < n; t++) {
        size_t from = (size_t)t * width + (size_t)s->member.head * dim;
        size_t to = (size_t)(pos + t) * dim;
        memcpy(s->k + to, k + from, dim * sizeof *k);
        memcpy(s->v + to, v + from, dim * sizeof *v);
        memcpy(s->k + other + to, k + from, dim * sizeof *k);
        memcpy(s->v + other + to, v + from, dim * sizeof *v);
        if (pos + t >= N_SINK)
            add_error(s, pos + t, (s->member.part == VQKVC_PART_K ? s->k : s->v) + other + to);
    }
}

static vqkvc_code noisy_append(void *self, int seq, int layer, int pos, int n, const float *k,
                               const float *v, vqkvc_err *err)
{
    noisy *s = self;
    size_t width = width_of(s), to = ((size_t)layer * FIRST + (size_t)pos) * width;
    if (s->on && layer == s->member.layer)
        take_tokens(s, pos, n, k, v);
    if (!s->on && pos < FIRST) {
        memcpy(s->first_k + to, k, (size_t)n * width * sizeof *k);
        memcpy(s->first_v + to, v, (size_t)n * width * sizeof *v);
    }
    return s->exact.append(s->exact.self, seq, layer, pos, n, k, v, err);
}

/* One query head at position pos. scores: room for [pos + 1]. */
static void attend_noisy(const noisy *s, int pos, const float *q, float *out, float scale,
                         double *scores)
{
    size_t dim = (size_t)s->g->head_dim, other = (size_t)s->n_tokens * dim;
    double most = -INFINITY, sum = 0, mix[VQKVC_MAX_HEAD_DIM] = {0};
    for (int t = 0; t <= pos; t++) {
        const float *k = s->k + (pos - t >= N_RECENT ? other : 0) + (size_t)t * dim;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (size_t i = 0; i < dim; i++)
            dot += q[i] * k[i];
        scores[t] = (double)(dot * scale);
        most = fmax(most, scores[t]);
    }
    for (int t = 0; t <= pos; t++) {
        const float *v = s->v + (pos - t >= N_RECENT ? other : 0) + (size_t)t * dim;
        double p = exp(scores[t] - most);
        sum += p;
#pragma omp simd
        for (size_t i = 0; i < dim; i++)
            mix[i] += p * (double)v[i];
    }
    for (size_t i = 0; i < dim; i++)
        out[i] = (float)(mix[i] / sum);
}

static vqkvc_code noisy_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                               float *out, float scale, vqkvc_err *err)
{
    const noisy *s = self;
    const vqkvc_geometry *g = s->g;
    int group = g->n_heads / g->n_kv_heads;
    VQKVC_TRY(s->exact.attend(s->exact.self, seq, layer, pos, n, q, out, scale, err));
    if (!s->on || layer != s->member.layer)
        return VQKVC_OK;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n * group; i++) {
        int head = s->member.head * group + i % group;
        size_t at = (size_t)(i / group * g->n_heads + head) * (size_t)g->head_dim;
        attend_noisy(s, pos + i / group, q + at, out + at, scale,
                     s->scores + (size_t)i * (size_t)s->n_tokens);
    }
    return VQKVC_OK;
}

/* One window, again and again. */
typedef struct prober {
    vqkvc_model *model;
    const int32_t *tokens; /* [n] */
    int n, vocab;
    noisy cache;
    float *exact, *logits; /* [n - FIRST, vocab] */
    double *kl;            /* [n - FIRST] */
} prober;

/* Tokens from `first` on, 0 or FIRST. */
static vqkvc_code run_window(prober *p, int first, float *logits, vqkvc_err *err)
{
    const vqkvc_cache cache = {.self = &p->cache, .append = noisy_append, .attend = noisy_attend};
    int seq[STEP] = {0}, pos[STEP];
    if (vqkvc_interrupted())
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while probing");
    VQKVC_TRY(p->cache.exact.trim(p->cache.exact.self, 0, first, err));
    for (int at = first; at < p->n; at += STEP) {
        int n = p->n - at < STEP ? p->n - at : STEP;
        for (int i = 0; i < n; i++)
            pos[i] = at + i;
        float *to = at < FIRST ? NULL : logits + (size_t)(at - FIRST) * (size_t)p->vocab;
        VQKVC_TRY(vqkvc_forward(p->model, &cache, &(vqkvc_batch){n, p->tokens + at, seq, pos}, NULL,
                                to, err));
    }
    return VQKVC_OK;
}

/* Mean KL divergence of the last run from the exact one. */
static vqkvc_code mean_kl(prober *p, double *mean, vqkvc_err *err)
{
#pragma omp parallel for schedule(static)
    for (int t = 0; t < p->n - FIRST; t++) {
        const float *exact = p->exact + (size_t)t * (size_t)p->vocab;
        vqkvc_err mine = {0};
        vqkvc_point ref, point = {0};
        double *prob = vqkvc_alloc((size_t)p->vocab, sizeof *prob, &mine);
        if (prob != NULL) {
            double lse = vqkvc_point_exact(exact, p->vocab, -1, prob, &ref);
            vqkvc_point_codec(exact, prob, lse, p->logits + (size_t)t * (size_t)p->vocab, p->vocab,
                              -1, &point);
        } else {
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
        }
        p->kl[t] = point.kl;
        free(prob);
    }
    *mean = 0;
    for (int t = 0; t < p->n - FIRST; t++)
        *mean += p->kl[t] / (p->n - FIRST);
    if (err->code == VQKVC_OK && !isfinite(*mean))
        vqkvc_fail(err, VQKVC_E_NUMERIC, "probe of layer %d, head %d: the KL divergence is %g",
                   p->cache.member.layer, p->cache.member.head, *mean);
    return err->code;
}

/* All groups of one head: at [groups]. */
static vqkvc_code probe_head(prober *p, const vqkvc_basis *basis, int groups, double *at,
                             vqkvc_err *err)
{
    noisy *s = &p->cache;
    size_t first = (size_t)s->member.layer * FIRST * width_of(s);
    s->basis = basis;
    s->on = 1;
    for (int group = 0; group < groups; group++) {
        double kl, variance = 0;
        s->first = vqkvc_sensitivity_first(basis->d, groups, group);
        s->end = vqkvc_sensitivity_first(basis->d, groups, group + 1);
        for (int j = s->first; j < s->end; j++)
            variance += level * basis->lambda[j] / (s->end - s->first);
        if (!(variance > 0))
            variance = level * (basis->lambda[0] > 0 ? basis->lambda[0] : 1);
        s->spread = sqrt(variance);
        take_tokens(s, 0, FIRST, s->first_k + first, s->first_v + first);
        VQKVC_TRY(run_window(p, FIRST, p->logits, err));
        VQKVC_TRY(mean_kl(p, &kl, err));
        at[group] = kl / (variance * (s->end - s->first));
    }
    return VQKVC_OK;
}

/* A direction that one window says nothing of may matter in another. */
static void lift(int n, double *at)
{
    double mean = 0;
    for (int i = 0; i < n; i++)
        mean += at[i] / n;
    for (int i = 0; i < n; i++)
        at[i] = fmax(at[i], 0.02 * mean);
}

static vqkvc_code probe_all(prober *p, const vqkvc_capture *c, const vqkvc_metrics *m, int groups,
                            const vqkvc_log *log, double *at, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    int heads = g->n_layers * g->n_kv_heads;
    vqkvc_progress progress;
    vqkvc_progress_begin(&progress, log, "probe", "heads", 2 * (uint64_t)heads);
    for (int i = 0; i < 2 * heads; i++) {
        vqkvc_basis basis = {0};
        p->cache.member =
            (vqkvc_member){(vqkvc_part)(i / heads), i % heads / g->n_kv_heads, i % g->n_kv_heads};
        VQKVC_TRY(vqkvc_head_basis(c, p->cache.member, m, p->cache.seed, &basis, err));
        probe_head(p, &basis, groups, at + (size_t)i * (size_t)groups, err);
        vqkvc_basis_free(&basis);
        VQKVC_TRY(err->code);
        lift(groups, at + (size_t)i * (size_t)groups);
        vqkvc_progress_step(&progress, (uint64_t)i + 1);
    }
    vqkvc_progress_end(&progress, 2 * (uint64_t)heads);
    return VQKVC_OK;
}

vqkvc_code vqkvc_sensitivity_measure(vqkvc_model *model, const int32_t *tokens, int n_tokens,
                                     const vqkvc_capture *c, const vqkvc_metrics *m, uint64_t seed,
                                     int groups, const vqkvc_log *log, double *at, vqkvc_err *err)
{
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    prober p = {.model = model,
                .tokens = tokens,
                .n = n_tokens,
                .vocab = vqkvc_model_vocab_size(model),
                .cache = {.g = g, .seed = seed, .n_tokens = n_tokens}};
    if (n_tokens < VQKVC_PROBE_LEAST)
        return vqkvc_fail(err, VQKVC_E_USAGE, "probes take %d tokens or more, not %d",
                          VQKVC_PROBE_LEAST, n_tokens);
    size_t counted = (size_t)(n_tokens - FIRST), logits = counted * (size_t)p.vocab;
    p.exact = vqkvc_alloc(logits, sizeof *p.exact, err);
    p.logits = vqkvc_alloc(logits, sizeof *p.logits, err);
    p.kl = vqkvc_alloc(counted, sizeof *p.kl, err);
    size_t kept = (size_t)g->n_layers * FIRST * width_of(&p.cache);
    p.cache.first_k = vqkvc_alloc(kept, sizeof *p.cache.first_k, err);
    p.cache.first_v = vqkvc_alloc(kept, sizeof *p.cache.first_v, err);
    size_t vectors = 2 * (size_t)n_tokens * (size_t)g->head_dim;
    p.cache.k = vqkvc_alloc(vectors, sizeof *p.cache.k, err);
    p.cache.v = vqkvc_alloc(vectors, sizeof *p.cache.v, err);
    size_t rows = STEP * (size_t)(g->n_heads / g->n_kv_heads);
    p.cache.scores = vqkvc_alloc(rows * (size_t)n_tokens, sizeof *p.cache.scores, err);
    if (err->code == VQKVC_OK &&
        vqkvc_cache_exact(&p.cache.exact, g, 1, n_tokens, err) == VQKVC_OK &&
        run_window(&p, 0, p.exact, err) == VQKVC_OK)
        probe_all(&p, c, m, groups, log, at, err);
    if (p.cache.exact.free != NULL)
        p.cache.exact.free(p.cache.exact.self);
    free(p.exact);
    free(p.logits);
    free(p.kl);
    free(p.cache.first_k);
    free(p.cache.first_v);
    free(p.cache.k);
    free(p.cache.v);
    free(p.cache.scores);
    return err->code;
}
