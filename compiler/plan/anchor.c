#include "plan/anchor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"
#include "fit/fit.h"
#include "plan/calibration.h"
#include "plan/higgs.h"

enum { HELD_OUT = 8 /* one token of so many */, MIN_SAMPLES = 256, MAX_EVERY = 64 };

static vqkvc_anchor_params with_defaults(const vqkvc_anchor_params *given)
{
    vqkvc_anchor_params p = *given;
    p.every = p.every == 0 ? 4 : p.every;
    p.bits = p.bits == 0 ? 2 : p.bits;
    if (p.anchor_bits == 0)
        p.anchor_bits = p.bits < 4 ? p.bits + 1 : 4;
    p.window.n_sink = p.window.n_sink > 0 ? p.window.n_sink : 4;
    p.window.n_recent = p.window.n_recent > 0 ? p.window.n_recent : 32;
    p.window.block = p.window.block > 0 ? p.window.block : 64;
    p.seed = p.seed > 0 ? p.seed : 1;
    return p;
}

static vqkvc_code check_values(const vqkvc_anchor_params *p, vqkvc_err *err)
{
    if (p->every < 1 || p->every > MAX_EVERY)
        return vqkvc_fail(err, VQKVC_E_USAGE, "anchor: every %d layers: wanted 1 to %d", p->every,
                          MAX_EVERY);
    if (p->bits < 2 || p->bits > 4 || p->anchor_bits < 2 || p->anchor_bits > 4)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "anchor: %d bits a value, %d of anchors: wanted 2, 3 or 4", p->bits,
                          p->anchor_bits);
    return VQKVC_OK;
}

vqkvc_code vqkvc_anchor_check(const vqkvc_anchor_params *params, vqkvc_err *err)
{
    vqkvc_anchor_params p = with_defaults(params);
    return check_values(&p, err);
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_anchor_params *p, vqkvc_err *err)
{
    VQKVC_TRY(check_values(p, err));
    if (c->n_sample < MIN_SAMPLES)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit predictors (wanted %d or more)",
                          c->n_sample, MIN_SAMPLES);
    return VQKVC_OK;
}

typedef struct work {
    vqkvc_plan *plan;
    const vqkvc_capture *capture;
    const vqkvc_anchor_params *params;
    vqkvc_fit_store store;
    vqkvc_higgs_grid anchor_grid, grid;
    int heads; /* of one stream */
    int n_fit; /* sampled tokens that are fitted */
    int width; /* channels of one layer in a stream: heads * head_dim */
} work;

/* One shared stream: some KV heads of an anchor and of its followers. */
typedef struct shared {
    vqkvc_part part;
    int layer, n_layers; /* the anchor; with its followers */
    int first;           /* head */
    int stream;          /* index in the plan */
    float *x, *x_hat;    /* [n_sample, n_layers * width] */
} shared;

/* Where columns begin that belong to layer l of a shared stream. */
static size_t columns_of(const work *w, int l)
{
    return (size_t)l * (size_t)w->width;
}

/* dst [n_sample, width]: the columns of layer l out of x. */
static void take_layer(const work *w, const shared *s, int l, const float *x, float *dst)
{
    size_t width = (size_t)w->width, ld = (size_t)s->n_layers * width;
    for (int i = 0; i < w->capture->n_sample; i++)
        memcpy(dst + (size_t)i * width, x + (size_t)i * ld + columns_of(w, l), width * sizeof *dst);
}

/* The anchor's rows: the Hadamard matrix, scaled by powers of two so that `enc` and `dec` are exact
 * in binary16 and undo each other, and its mean over the fitted tokens. */
static void fill_anchor(const work *w, const shared *s)
{
    const vqkvc_stream *stream = &w->plan->streams[s->stream];
    const vqkvc_table *tables = w->plan->tables;
    int width = w->width, log = 0;
    while (1 << log < width)
        log++;
    float enc = 1 / (float)(1 << log / 2), dec = 1 / (float)(1 << (log - log / 2));
    for (int i = 0; i < width; i++)
        for (int j = 0; j < width; j++) {
            float sign = __builtin_parity((unsigned)(i & j)) ? -1 : 1;
            tables[stream->enc].f16[i * width + j] = vqkvc_f32_to_f16(sign * enc);
            tables[stream->dec].f16[i * width + j] = vqkvc_f32_to_f16(sign * dec);
        }
    for (int j = 0; j < width; j++) {
        double sum = 0;
        for (int i = 0; i < w->n_fit; i++)
            sum += (double)s->x[(size_t)i * (size_t)stream->n_in + (size_t)j];
        tables[stream->mean].f16[j] = vqkvc_f32_to_f16((float)(sum / w->n_fit));
    }
}

/* Rounds a follower's prediction W, b [width + 1, width] from the anchor into the rows of layer l
 * of the stream: dec = W' dec_a, mean = W' mean_a + b. */
static vqkvc_code fill_follower(const work *w, const shared *s, int l, const double *map,
                                vqkvc_err *err)
{
    const vqkvc_stream *stream = &w->plan->streams[s->stream];
    const vqkvc_table *dec = &w->plan->tables[stream->dec], *mean = &w->plan->tables[stream->mean];
    int width = w->width;
    size_t size = (size_t)width * (size_t)width;
    double *anchor = vqkvc_alloc(size, sizeof *anchor, err);
    double *rows = vqkvc_alloc(size, sizeof *rows, err);
    if (err->code == VQKVC_OK) {
        for (size_t i = 0; i < size; i++)
            anchor[i] = (double)vqkvc_f16_to_f32(dec->f16[i]);
        vqkvc_dgemm_tn(width, width, width, map, (size_t)width, anchor, (size_t)width, rows,
                       (size_t)width);
        for (size_t i = 0; i < size; i++)
            dec->f16[columns_of(w, l) * (size_t)width + i] = vqkvc_f32_to_f16((float)rows[i]);
        for (int j = 0; j < width; j++) {
            double sum = map[size + (size_t)j];
            for (int i = 0; i < width; i++)
                sum += map[(size_t)i * (size_t)width + (size_t)j] *
                       (double)vqkvc_f16_to_f32(mean->f16[i]);
            mean->f16[columns_of(w, l) + (size_t)j] = vqkvc_f32_to_f16((float)sum);
        }
    }
    free(anchor);
    free(rows);
    return err->code;
}

static vqkvc_code apply(const work *w, const shared *s, vqkvc_err *err)
{
    return vqkvc_stream_apply(w->plan, &w->plan->streams[s->stream], w->capture->n_sample, s->x,
                              s->x_hat, NULL, err);
}

/* Ridge regressions of all followers on the anchor's reconstruction. */
static vqkvc_code fit_followers(const work *w, const shared *s, vqkvc_err *err)
{
    size_t values = (size_t)w->capture->n_sample * (size_t)w->width;
    float *input = vqkvc_alloc(values, sizeof *input, err);
    float *target = vqkvc_alloc(values, sizeof *target, err);
    if (err->code == VQKVC_OK && apply(w, s, err) == VQKVC_OK)
        take_layer(w, s, 0, s->x_hat, input);
    for (int l = 1; l < s->n_layers && err->code == VQKVC_OK; l++) {
        vqkvc_predictor fitted;
        take_layer(w, s, l, s->x, target);
        if (vqkvc_fit_ridge(w->n_fit, w->width, input, w->width, target, vqkvc_predict_ridge, 0,
                            &fitted, err) == VQKVC_OK) {
            fill_follower(w, s, l, fitted.w, err);
            vqkvc_predictor_free(&fitted);
        }
    }
    free(input);
    free(target);
    return err->code;
}

/* The tables of a shared stream, from the store or fitted. */
static vqkvc_code fill_shared(const work *w, const shared *s, vqkvc_err *err)
{
    const vqkvc_stream *stream = &w->plan->streams[s->stream];
    uint16_t *const mean = w->plan->tables[stream->mean].f16;
    uint16_t *const dec = w->plan->tables[stream->dec].f16;
    size_t n_mean = (size_t)stream->n_in * sizeof *mean, n_dec = n_mean * (size_t)w->width;
    vqkvc_arena arena = {0};
    int found = 0;
    char *bytes = vqkvc_arena_alloc(&arena, n_mean + n_dec, 1, err);
    const char *recipe =
        vqkvc_arena_printf(&arena, err, VQKVC_FIT_VERSION " anchor stream='%s' n=%d %s from=%s",
                           stream->name, w->n_fit, w->store.settings, w->store.parent.hex);
    fill_anchor(w, s);
    if (err->code == VQKVC_OK && vqkvc_fit_find(&w->store, "predictor", recipe, n_mean + n_dec,
                                                bytes, &found, err) == VQKVC_OK) {
        if (found) {
            memcpy(mean, bytes, n_mean);
            memcpy(dec, bytes + n_mean, n_dec);
        } else if (fit_followers(w, s, err) == VQKVC_OK) {
            memcpy(bytes, mean, n_mean);
            memcpy(bytes + n_mean, dec, n_dec);
            vqkvc_fit_keep(&w->store, "predictor", recipe, &w->store.parent, NULL, 0, bytes,
                           n_mean + n_dec, err);
        }
        vqkvc_hash fitted = kvdb_recipe_hash("predictor", recipe);
        vqkvc_plan_add_parent(w->plan, &fitted, err);
    }
    vqkvc_arena_free(&arena);
    return err->code;
}

/* Adds the stream over members [n_layers * heads], without the values of its tables, and reads its
 * samples. */
static vqkvc_code add_members(const work *w, shared *s, vqkvc_member *members, vqkvc_err *err)
{
    vqkvc_plan *plan = w->plan;
    char name[64];
    for (int i = 0; i < s->n_layers * w->heads; i++)
        members[i] = (vqkvc_member){s->part, s->layer + i / w->heads, s->first + i % w->heads};
    snprintf(name, sizeof name, "%s %d-%d h%d-%d anchor", vqkvc_part_word(s->part), s->layer,
             s->layer + s->n_layers - 1, s->first, s->first + w->heads - 1);
    vqkvc_stream *stream = vqkvc_plan_add_stream(plan, name, s->n_layers * w->heads, members, err);
    if (stream == NULL)
        return err->code;
    s->stream = plan->n_streams - 1;
    stream->frame = s->part == VQKVC_PART_K ? VQKVC_FRAME_BLOCK : VQKVC_FRAME_POST;
    stream->transform = VQKVC_TRANSFORM_BASIS;
    stream->n_latents = w->width;
    stream->mean = vqkvc_plan_add_table(plan, 1, stream->n_in, err, "mean %s", name);
    stream->enc = vqkvc_plan_add_table(plan, stream->n_in, w->width, err, "enc %s", name);
    stream->dec = vqkvc_plan_add_table(plan, stream->n_in, w->width, err, "dec %s", name);
    VQKVC_TRY(vqkvc_higgs_code(plan, stream, &w->anchor_grid, err));
    return vqkvc_sample_members(w->capture, members, stream->n_members,
                                &(vqkvc_key_frame){stream->frame, plan->block, plan->stretch, 0},
                                w->params->seed, s->x, err);
}

static vqkvc_code add_shared(const work *w, shared *s, vqkvc_err *err)
{
    size_t n_members = (size_t)s->n_layers * (size_t)w->heads;
    size_t values = (size_t)w->capture->n_sample * (size_t)s->n_layers * (size_t)w->width;
    vqkvc_member *members = vqkvc_alloc(n_members, sizeof *members, err);
    s->x = vqkvc_alloc(values, sizeof *s->x, err);
    s->x_hat = vqkvc_alloc(values, sizeof *s->x_hat, err);
    if (err->code == VQKVC_OK)
        add_members(w, s, members, err);
    free(members);
    return err->code;
}

/* Anchor and followers of some heads: the shared stream, then one for each follower. u: [n_layers],
 * what is not explained of each layer on held-out tokens, added to. */
static vqkvc_code build_shared(const work *w, shared *s, vqkvc_unexplained *u, vqkvc_err *err)
{
    if (add_shared(w, s, err) != VQKVC_OK || fill_shared(w, s, err) != VQKVC_OK ||
        apply(w, s, err) != VQKVC_OK)
        return err->code;
    size_t ld = (size_t)s->n_layers * (size_t)w->width, held_out = (size_t)w->n_fit * ld;
    for (int l = 1; l < s->n_layers; l++) {
        size_t at = held_out + columns_of(w, l);
        vqkvc_unexplained_add(&u[l], w->capture->n_sample - w->n_fit, w->width, ld, s->x + at,
                              s->x_hat + at);
        vqkvc_stream *own = vqkvc_higgs_add_stream(w->plan, s->part, s->layer + l, s->first,
                                                   w->heads, &w->grid, err);
        if (own == NULL)
            return err->code;
        own->frame = s->part == VQKVC_PART_K ? VQKVC_FRAME_BLOCK : VQKVC_FRAME_POST;
    }
    return VQKVC_OK;
}

/* All heads of one part of an anchor and its followers; explained: of the anchor, [n_layers, 2]. */
static vqkvc_code build_anchor(const work *w, vqkvc_part part, int layer, int n_layers,
                               vqkvc_explained *explained, vqkvc_err *err)
{
    vqkvc_unexplained u[MAX_EVERY] = {{0}};
    for (int first = 0; first < w->plan->geometry.n_kv_heads; first += w->heads) {
        shared s = {.part = part, .layer = layer, .n_layers = n_layers, .first = first};
        build_shared(w, &s, u, err);
        free(s.x);
        free(s.x_hat);
        if (err->code != VQKVC_OK) {
            vqkvc_err_prefix(err, "anchor %s %d, head %d", vqkvc_part_word(part), layer, first);
            return err->code;
        }
    }
    for (int l = 0; l < n_layers; l++)
        explained[2 * l + part] = (vqkvc_explained){.part = part,
                                                    .layer = layer + l,
                                                    .n_sources = l > 0,
                                                    .sources = {{part, layer}},
                                                    .relative_mse = vqkvc_relative_mse(&u[l])};
    return VQKVC_OK;
}

static vqkvc_code build(const work *w, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_explained explained[2 * MAX_EVERY];
    char text[160];
    int n = w->plan->geometry.n_layers, every = w->params->every;
    for (int layer = 0; layer < n; layer += every) {
        int n_layers = n - layer < every ? n - layer : every;
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
        VQKVC_TRY(build_anchor(w, VQKVC_PART_K, layer, n_layers, explained, err));
        VQKVC_TRY(build_anchor(w, VQKVC_PART_V, layer, n_layers, explained, err));
        for (int i = 2; i < 2 * n_layers; i++) {
            vqkvc_explained_text(&explained[i], text, sizeof text);
            vqkvc_say(log, 0, "anchor: %s", text);
        }
        if (w->params->report != NULL)
            memcpy(w->params->report + 2 * layer, explained,
                   2 * (size_t)n_layers * sizeof *explained);
    }
    return VQKVC_OK;
}

static vqkvc_code begin(work *w, vqkvc_arena *arena, vqkvc_err *err)
{
    const vqkvc_anchor_params *p = w->params;
    const vqkvc_geometry *g = &w->plan->geometry;
    w->n_fit = w->capture->n_sample - w->capture->n_sample / HELD_OUT;
    w->anchor_grid = (vqkvc_higgs_grid){.width = 2, .bits = 2 * p->anchor_bits};
    w->grid = (vqkvc_higgs_grid){.width = 2, .bits = 2 * p->bits};
    VQKVC_TRY(vqkvc_higgs_heads(g, 2, &w->heads, err));
    w->heads = p->per_head ? 1 : w->heads;
    w->width = w->heads * g->head_dim;
    w->store.settings =
        vqkvc_arena_printf(arena, err, "grid=2x%d block=%d seed=%llu", w->anchor_grid.bits,
                           w->plan->block, (unsigned long long)p->seed);
    VQKVC_TRY(vqkvc_higgs_add_grid(w->plan, &w->anchor_grid, err));
    return vqkvc_higgs_add_grid(w->plan, &w->grid, err);
}

vqkvc_code vqkvc_plan_anchor(vqkvc_plan *plan, const vqkvc_capture *capture,
                             const vqkvc_anchor_params *params, kvdb *db, const vqkvc_hash *parent,
                             const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_anchor_params p = with_defaults(params);
    vqkvc_arena arena = {0};
    memset(plan, 0, sizeof *plan);
    VQKVC_TRY(check(capture, &p, err));
    plan->geometry = capture->geometry;
    plan->n_sink = p.window.n_sink;
    plan->n_recent = p.window.n_recent;
    plan->block = p.window.block;
    plan->calibration = *parent;
    snprintf(plan->scheme, sizeof plan->scheme, "anchor%d", p.bits);
    work w = {
        .plan = plan,
        .capture = capture,
        .params = &p,
        .store = {
            .db = db, .model = capture->geometry.weights_hash, .parent = *parent, .log = log}};
    if (begin(&w, &arena, err) == VQKVC_OK && build(&w, log, err) == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    vqkvc_arena_free(&arena);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
