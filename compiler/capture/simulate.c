#include "capture/simulate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "base/rng.h"
#include "capture/choose.h"
#include "capture/collect.h"

enum { FACTORS = 128, STEP = VQKVC_STATS_CHUNK, CTX = 131072 };

/* Streams of the generator: tokens count from 0, so these lie above. */
static const uint64_t stream_maps = UINT64_C(1) << 40, stream_noise = UINT64_C(1) << 41;

static const double drift = 0.9, decay = 0.4, spread = 0.4, rope_base = 500000;
static const float noise = 0.1f, outlier = 8;

/* ---- geometry ---- */

static int number(const char **s, int high)
{
    char *end;
    long n = strtol(*s, &end, 10);
    int good = end != *s && n >= 1 && n <= high && **s >= '0' && **s <= '9';
    *s = end;
    return good ? (int)n : 0;
}

vqkvc_code vqkvc_simulate_geometry(const char *shape, vqkvc_geometry *g, vqkvc_err *err)
{
    static const int high[4] = {VQKVC_MAX_LAYERS, VQKVC_MAX_HEADS, VQKVC_MAX_HEADS,
                                VQKVC_MAX_HEAD_DIM};
    int n[4] = {0};
    const char *s = shape;
    for (int i = 0; i < 4; i++) {
        n[i] = number(&s, high[i]);
        if (n[i] == 0 || *s != (i < 3 ? 'x' : '\0'))
            return vqkvc_fail(err, VQKVC_E_USAGE,
                              "'%.40s' is no shape LAYERSxHEADSxKV_HEADSxHEAD_DIM", shape);
        s++;
    }
    if (n[1] % n[2] != 0 || n[3] % 2 != 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: KV heads must divide the heads, head_dim be even", shape);
    *g = (vqkvc_geometry){.n_layers = n[0],
                          .n_heads = n[1],
                          .n_kv_heads = n[2],
                          .head_dim = n[3],
                          .d_model = n[1] * n[3],
                          .rope_layout = VQKVC_ROPE_INTERLEAVED,
                          .n_rot = n[3],
                          .rope_mscale = 1,
                          .n_ctx_train = CTX};
    for (int i = 0; i < g->n_rot / 2; i++)
        g->rope_freq[i] = pow(rope_base, -2.0 * i / g->n_rot);
    snprintf(g->name, sizeof g->name, "simulated %dx%dx%dx%d", n[0], n[1], n[2], n[3]);
    snprintf(g->arch, sizeof g->arch, "simulated");
    g->weights_hash = vqkvc_hash_text(g->name);
    return VQKVC_OK;
}

/* ---- maps ---- */

typedef struct simulation {
    const vqkvc_geometry *g;
    vqkvc_capture_params params;
    vqkvc_arena arena;
    float **map[3];  /* [kind][layer] -> [FACTORS, width] */
    float **mean[3]; /* [kind][layer] -> [width] */
    int64_t *kept;   /* [n_kept] token numbers in the sample, ascending */
    int64_t n_kept, at;
    float *latent; /* [n_layers, STEP, FACTORS] */
    float *x;      /* [STEP, widest] */
    vqkvc_where where[STEP];
    vqkvc_collector collector;
} simulation;

/* Weights of factor f fall as (f + 1)^-decay; unit variance before noise. */
static void fill_map(const simulation *s, int kind, int layer)
{
    int width = vqkvc_kind_width(s->g, (vqkvc_kind)kind), dim = s->g->head_dim;
    vqkvc_rng rng = vqkvc_rng_make(s->params.seed, stream_maps + (uint64_t)(layer * 3 + kind));
    double total = 0;
    for (int f = 0; f < FACTORS; f++)
        total += pow(f + 1, -2 * decay);
    for (int f = 0; f < FACTORS; f++)
        for (int i = 0; i < width; i++)
            s->map[kind][layer][f * width + i] =
                (float)(vqkvc_rng_normal(&rng) * pow(f + 1, -decay) / sqrt(total));
    for (int i = 0; i < width; i++)
        s->mean[kind][layer][i] = (float)(0.3 * vqkvc_rng_normal(&rng));
    for (int i = 0; i < 2 * width / dim && kind == VQKVC_KEY; i++)
        s->mean[kind][layer][i / 2 * dim + (int)vqkvc_rng_below(&rng, (uint64_t)dim)] = outlier;
}

static vqkvc_code make_maps(simulation *s, vqkvc_err *err)
{
    size_t layers = (size_t)s->g->n_layers;
    for (int kind = 0; kind < 3; kind++) {
        size_t width = (size_t)vqkvc_kind_width(s->g, (vqkvc_kind)kind);
        s->map[kind] = vqkvc_arena_alloc(&s->arena, layers, sizeof(float *), err);
        s->mean[kind] = vqkvc_arena_alloc(&s->arena, layers, sizeof(float *), err);
        for (size_t l = 0; l < layers && err->code == VQKVC_OK; l++) {
            s->map[kind][l] = vqkvc_arena_alloc(&s->arena, FACTORS * width, sizeof(float), err);
            s->mean[kind][l] = vqkvc_arena_alloc(&s->arena, width, sizeof(float), err);
        }
    }
    if (err->code != VQKVC_OK)
        return err->code;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < 3 * s->g->n_layers; i++)
        fill_map(s, i % 3, i / 3);
    return VQKVC_OK;
}

/* ---- tokens ---- */

/* Factors of n tokens in all layers; each token has a generator of its own. */
static void draw_latents(const simulation *s, int64_t first, int n)
{
#pragma omp parallel for schedule(dynamic, 8)
    for (int i = 0; i < n; i++) {
        vqkvc_rng rng = vqkvc_rng_make(s->params.seed, (uint64_t)(first + i));
        float size = (float)exp(spread * vqkvc_rng_normal(&rng));
        float fresh = (float)sqrt(1 - drift * drift);
        for (int l = 0; l < s->g->n_layers; l++) {
            float *x = s->latent + ((size_t)l * STEP + (size_t)i) * FACTORS;
            for (int f = 0; f < FACTORS; f++) {
                float u = size * (float)vqkvc_rng_normal(&rng);
                x[f] = l == 0 ? u : (float)drift * x[f - (int)STEP * FACTORS] + fresh * u;
            }
        }
    }
}

/* Mixes a counter; Prospector's lowbias32. */
static inline uint32_t mix(uint32_t v)
{
    v = (v ^ (v >> 16)) * 0x7feb352du;
    v = (v ^ (v >> 15)) * 0x846ca68bu;
    return v ^ (v >> 16);
}

/* Adds means and noise: the difference of a hash's halves, scaled to a standard deviation. Hashes
 * of counters, because the generator would take most of the run. */
static void add_noise(const simulation *s, int kind, int layer, int64_t first, int n)
{
    size_t width = (size_t)vqkvc_kind_width(s->g, (vqkvc_kind)kind);
    const float *mean = s->mean[kind][layer];
    const float scale = noise * sqrtf(6.0f) / 65536;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        float *x = s->x + (size_t)i * width;
        vqkvc_rng rng =
            vqkvc_rng_make(s->params.seed, stream_noise + ((uint64_t)(first + i) << 12) +
                                               (uint64_t)(layer * 3 + kind));
        uint32_t start = (uint32_t)vqkvc_rng_u64(&rng);
        for (size_t j = 0; j < width; j++) {
            uint32_t h = mix(start + (uint32_t)j);
            x[j] += mean[j] + scale * (float)((int)(h & 0xffffu) - (int)(h >> 16));
        }
    }
}

static vqkvc_code put_layer(simulation *s, int kind, int layer, int64_t first, int n,
                            vqkvc_err *err)
{
    int width = vqkvc_kind_width(s->g, (vqkvc_kind)kind);
    vqkvc_sgemm_nn(n, width, FACTORS, s->latent + (size_t)layer * STEP * FACTORS, FACTORS,
                   s->map[kind][layer], (size_t)width, s->x, (size_t)width);
    add_noise(s, kind, layer, first, n);
    return vqkvc_collector_put(&s->collector, (vqkvc_kind)kind, layer, n, s->where, s->x, err);
}

static vqkvc_code step(simulation *s, int64_t first, int n, vqkvc_err *err)
{
    if (vqkvc_interrupted())
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "simulation interrupted after %lld tokens",
                          (long long)first);
    for (int i = 0; i < n; i++) {
        int64_t token = first + i;
        int kept = s->at < s->n_kept && s->kept[s->at] == token;
        s->where[i] = (vqkvc_where){kept ? (int)s->at : -1, (int)(token / s->params.window),
                                    (int)(token % s->params.window)};
        s->at += kept;
    }
    draw_latents(s, first, n);
    for (int layer = 0; layer < s->g->n_layers; layer++)
        for (int kind = 0; kind < 3; kind++)
            VQKVC_TRY(put_layer(s, kind, layer, first, n, err));
    return VQKVC_OK;
}

/* As for a model's run: n_sample of the tokens at position n_skip or later. */
static vqkvc_code choose_sample(simulation *s, vqkvc_err *err)
{
    const vqkvc_capture_params *p = &s->params;
    int64_t skip = p->n_skip < 0 ? 0 : p->n_skip, eligible = 0;
    for (int64_t t = 0; t < p->n_tokens; t++)
        eligible += t % p->window >= skip;
    if (eligible == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "no token at position %d or later", p->n_skip);
    s->n_kept = eligible < p->n_sample ? eligible : p->n_sample;
    s->kept = vqkvc_arena_alloc(&s->arena, (size_t)s->n_kept, sizeof *s->kept, err);
    if (s->kept == NULL)
        return err->code;
    vqkvc_choose(p->seed, VQKVC_STREAM_SAMPLE, eligible, s->n_kept, s->kept);
    int64_t usable = p->window - skip; /* of each window */
    for (int64_t i = 0; i < s->n_kept; i++)
        s->kept[i] = s->kept[i] / usable * p->window + skip + s->kept[i] % usable;
    return VQKVC_OK;
}

/* ---- the whole ---- */

/* Gram matrices of output projections: random, with directions that weigh up to 16 times more than
 * others. */
static vqkvc_code make_value_metric(const simulation *s, vqkvc_capture *c, vqkvc_err *err)
{
    int dim = s->g->head_dim, heads = s->g->n_layers * s->g->n_kv_heads;
    size_t block = (size_t)dim * (size_t)dim;
    float *w = vqkvc_alloc(2 * block, sizeof *w, err);
    c->value_metric = vqkvc_arena_alloc(&c->arena, (size_t)heads * block, sizeof(float), err);
    for (int h = 0; h < heads && err->code == VQKVC_OK; h++) {
        vqkvc_rng rng = vqkvc_rng_make(s->params.seed, 2 * stream_maps + (uint64_t)h);
        for (size_t i = 0; i < 2 * block; i++)
            w[i] = (float)(vqkvc_rng_normal(&rng) * pow(4, -(double)(i % (size_t)dim) / dim) /
                           sqrt(2.0 * dim));
        vqkvc_sgemm_tn(dim, dim, 2 * dim, w, (size_t)dim, w, (size_t)dim,
                       c->value_metric + (size_t)h * block, (size_t)dim);
    }
    free(w);
    return err->code;
}

static vqkvc_code prepare(simulation *s, vqkvc_capture *c, vqkvc_err *err)
{
    const vqkvc_geometry *g = s->g;
    VQKVC_TRY(choose_sample(s, err));
    VQKVC_TRY(vqkvc_capture_init(c, g, (int)s->n_kept, err));
    snprintf(c->source, sizeof c->source, "simulation");
    c->source_hash = vqkvc_hash_text(g->name);
    c->seed = s->params.seed;
    c->n_tokens = (uint64_t)s->params.n_tokens;
    c->n_sample = (int)s->n_kept;
    s->latent =
        vqkvc_arena_alloc(&s->arena, (size_t)g->n_layers * STEP, FACTORS * sizeof(float), err);
    s->x = vqkvc_arena_alloc(&s->arena, (size_t)STEP * (size_t)vqkvc_kind_width(g, VQKVC_QUERY),
                             sizeof(float), err);
    VQKVC_TRY(make_maps(s, err));
    VQKVC_TRY(make_value_metric(s, c, err));
    return vqkvc_collector_begin(&s->collector, c, err);
}

vqkvc_code vqkvc_capture_simulate(const vqkvc_geometry *g, const vqkvc_capture_params *params,
                                  const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err)
{
    simulation s = {.g = g};
    vqkvc_progress progress;
    int64_t done = 0;
    *c = (vqkvc_capture){0};
    VQKVC_TRY(vqkvc_capture_params_resolve(params, g, 0, &s.params, err));
    vqkvc_progress_begin(&progress, log, "simulate", "tokens", (uint64_t)s.params.n_tokens);
    if (prepare(&s, c, err) == VQKVC_OK)
        for (; done < s.params.n_tokens && err->code == VQKVC_OK; done += STEP) {
            int64_t left = s.params.n_tokens - done;
            step(&s, done, left < STEP ? (int)left : STEP, err);
            vqkvc_progress_step(&progress, (uint64_t)done);
        }
    if (err->code == VQKVC_OK) {
        vqkvc_collector_finish(&s.collector);
        vqkvc_progress_end(&progress, (uint64_t)s.params.n_tokens);
    }
    vqkvc_collector_free(&s.collector);
    vqkvc_arena_free(&s.arena);
    return err->code;
}
