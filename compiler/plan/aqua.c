#include "plan/aqua.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/calibration.h"
#include "plan/higgs.h"

enum { FIRST_BITS = 4, HELD_OUT = 8 /* one token of so many */, MIN_SAMPLES = 256 };

static vqkvc_aqua_params with_defaults(const vqkvc_aqua_params *given)
{
    vqkvc_aqua_params p = *given;
    p.bits = p.bits == 0 ? 2 : p.bits;
    p.grid = p.grid == 0 ? 2 : p.grid;
    p.window.n_sink = p.window.n_sink > 0 ? p.window.n_sink : 4;
    p.window.n_recent = p.window.n_recent > 0 ? p.window.n_recent : 1;
    p.window.block = p.window.block > 0 ? p.window.block : 128;
    return p;
}

static vqkvc_code check_values(const vqkvc_aqua_params *p, vqkvc_err *err)
{
    if (p->bits < 2 || p->bits > 4)
        return vqkvc_fail(err, VQKVC_E_USAGE, "aqua: %d bits a value: wanted 2, 3 or 4", p->bits);
    if (p->grid != 2 && (p->grid != 4 || p->bits != 2))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "aqua: a grid of %d channels with %d bits a value: wanted 2, or 4 with 2 "
                          "bits",
                          p->grid, p->bits);
    if (p->rank < 0 || (p->rank > 0 && p->per_head))
        return vqkvc_fail(err, VQKVC_E_USAGE, "aqua: rank is %d%s", p->rank,
                          p->per_head ? ", but predictors by head are full" : "");
    return VQKVC_OK;
}

vqkvc_code vqkvc_aqua_check(const vqkvc_aqua_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err)
{
    vqkvc_aqua_params p = with_defaults(params);
    int heads;
    VQKVC_TRY(check_values(&p, err));
    return g != NULL ? vqkvc_higgs_heads(g, p.grid, &heads, err) : VQKVC_OK;
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_aqua_params *p, vqkvc_err *err)
{
    VQKVC_TRY(check_values(p, err));
    if (c->n_sample < MIN_SAMPLES)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit predictors (wanted %d or more)",
                          c->n_sample, MIN_SAMPLES);
    return VQKVC_OK;
}

/* The cache as it fills from layer to layer. d = n_kv_heads * head_dim. */
typedef struct chain {
    vqkvc_plan *plan;
    const vqkvc_capture *capture;
    const vqkvc_aqua_params *params;
    const vqkvc_log *log;
    vqkvc_fit_store store;
    vqkvc_higgs_grid first, grid; /* of layer 0, of the others */
    int heads;                    /* of one Hadamard block */
    int n, n_fit, d;              /* sampled tokens; of them fitted; channels */
    float *exact;                 /* [n, d] the target */
    float *predicted;             /* [n, d] */
    float *inputs;                /* [n, 2 d] */
    float *block;                 /* [n, heads * head_dim] */
    float *hat[2];                /* by part: [n, d], the latest reconstruction */
} chain;

static void chain_free(chain *c)
{
    free(c->exact);
    free(c->predicted);
    free(c->inputs);
    free(c->block);
    free(c->hat[0]);
    free(c->hat[1]);
}

static vqkvc_code chain_init(chain *c, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->plan->geometry;
    c->n = c->capture->n_sample;
    c->n_fit = c->n - c->n / HELD_OUT;
    c->d = g->n_kv_heads * g->head_dim;
    c->first = (vqkvc_higgs_grid){.width = 2, .bits = 2 * FIRST_BITS};
    c->grid =
        (vqkvc_higgs_grid){.width = c->params->grid, .bits = c->params->grid * c->params->bits};
    VQKVC_TRY(vqkvc_higgs_heads(g, c->params->grid, &c->heads, err));
    VQKVC_TRY(vqkvc_higgs_add_grid(c->plan, &c->first, err));
    VQKVC_TRY(vqkvc_higgs_add_grid(c->plan, &c->grid, err));
    size_t values = (size_t)c->n * (size_t)c->d;
    c->exact = vqkvc_alloc(values, sizeof(float), err);
    c->predicted = vqkvc_alloc(values, sizeof(float), err);
    c->inputs = vqkvc_alloc(2 * values, sizeof(float), err);
    c->block = vqkvc_alloc((size_t)c->n * (size_t)(c->heads * g->head_dim), sizeof(float), err);
    c->hat[0] = vqkvc_alloc(values, sizeof(float), err);
    c->hat[1] = vqkvc_alloc(values, sizeof(float), err);
    return err->code;
}

static vqkvc_code read_exact(chain *c, vqkvc_part part, int layer, vqkvc_err *err)
{
    vqkvc_member members[VQKVC_MAX_HEADS];
    int n = c->plan->geometry.n_kv_heads;
    for (int h = 0; h < n; h++)
        members[h] = (vqkvc_member){part, layer, h};
    return vqkvc_sample_members(c->capture, members, n,
                                &(vqkvc_key_frame){.frame = VQKVC_FRAME_PRE}, 1, c->exact, err);
}

/* What a part of a layer is predicted from: K^ of this layer, if it is V, and the same part of the
 * layer below. */
static vqkvc_prediction sources_of(vqkvc_part part, int layer, int per_head)
{
    vqkvc_prediction p = {.part = part, .layer = layer, .per_head = per_head};
    if (part == VQKVC_PART_V)
        p.sources[p.n_sources++] = (vqkvc_prediction_source){VQKVC_PART_K, layer};
    p.sources[p.n_sources++] = (vqkvc_prediction_source){part, layer - 1};
    return p;
}

/* Joins the reconstructions of the sources, which are the latest of their parts. */
static void join_inputs(chain *c, const vqkvc_prediction *p)
{
    size_t d = (size_t)c->d;
    for (int t = 0; t < c->n; t++)
        for (int s = 0; s < p->n_sources; s++)
            memcpy(c->inputs + ((size_t)t * p->n_sources + s) * d,
                   c->hat[p->sources[s].part] + (size_t)t * d, d * sizeof(float));
}

/* Adds the prediction of a target and leaves what it says in c->predicted; zeros in layer 0. */
static vqkvc_code predict(chain *c, vqkvc_part part, int layer, vqkvc_explained *e, vqkvc_err *err)
{
    size_t held_out = (size_t)c->n_fit * (size_t)c->d;
    char text[160];
    *e = (vqkvc_explained){.part = part, .layer = layer, .relative_mse = 1};
    memset(c->predicted, 0, (size_t)c->n * (size_t)c->d * sizeof(float));
    if (layer == 0)
        return VQKVC_OK;
    vqkvc_prediction shape = sources_of(part, layer, c->params->per_head);
    join_inputs(c, &shape);
    VQKVC_TRY(vqkvc_fit_prediction(c->plan, &shape, c->params->rank, c->n_fit, c->inputs, c->exact,
                                   &c->store, err));
    VQKVC_TRY(vqkvc_predict_apply(c->plan, &c->plan->predictions[c->plan->n_predictions - 1], c->n,
                                  c->inputs, c->predicted, err));
    e->n_sources = shape.n_sources;
    memcpy(e->sources, shape.sources, sizeof e->sources);
    vqkvc_unexplained u = {0};
    vqkvc_unexplained_add(&u, c->n - c->n_fit, c->d, (size_t)c->d, c->exact + held_out,
                          c->predicted + held_out);
    e->relative_mse = vqkvc_relative_mse(&u);
    vqkvc_explained_text(e, text, sizeof text);
    vqkvc_say(c->log, 0, "aqua: %s", text);
    return VQKVC_OK;
}

/* Adds the stream of one Hadamard block, and codes with it what the prediction has left. */
static vqkvc_code code_block(chain *c, vqkvc_part part, int layer, int first, vqkvc_err *err)
{
    size_t d = (size_t)c->d, dim = (size_t)c->plan->geometry.head_dim;
    size_t width = (size_t)c->heads * dim, at = (size_t)first * dim;
    vqkvc_stream *s = vqkvc_higgs_add_stream(c->plan, part, layer, first, c->heads,
                                             layer == 0 ? &c->first : &c->grid, err);
    if (s == NULL)
        return err->code;
    s->frame = part == VQKVC_PART_K ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST;
    for (size_t t = 0; t < (size_t)c->n; t++)
        for (size_t j = 0; j < width; j++)
            c->block[t * width + j] = c->exact[t * d + at + j] - c->predicted[t * d + at + j];
    VQKVC_TRY(vqkvc_stream_apply(c->plan, s, c->n, c->block, c->block, NULL, err));
    for (size_t t = 0; t < (size_t)c->n; t++)
        for (size_t j = 0; j < width; j++)
            c->hat[part][t * d + at + j] = c->predicted[t * d + at + j] + c->block[t * width + j];
    return VQKVC_OK;
}

static vqkvc_code build(chain *c, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->plan->geometry;
    for (int layer = 0; layer < g->n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++) {
            vqkvc_explained e;
            if (vqkvc_interrupted())
                return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
            VQKVC_TRY(read_exact(c, (vqkvc_part)part, layer, err));
            VQKVC_TRY(predict(c, (vqkvc_part)part, layer, &e, err));
            for (int first = 0; first < g->n_kv_heads; first += c->heads)
                VQKVC_TRY(code_block(c, (vqkvc_part)part, layer, first, err));
            if (c->params->report != NULL)
                c->params->report[2 * layer + part] = e;
        }
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_aqua(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_aqua_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_aqua_params p = with_defaults(params);
    vqkvc_arena arena = {0};
    memset(plan, 0, sizeof *plan);
    VQKVC_TRY(check(capture, &p, err));
    plan->geometry = capture->geometry;
    plan->n_sink = p.window.n_sink;
    plan->n_recent = p.window.n_recent;
    plan->block = p.window.block;
    plan->calibration = *parent;
    snprintf(plan->scheme, sizeof plan->scheme, "aqua%d", p.bits);
    chain c = {
        .plan = plan,
        .capture = capture,
        .params = &p,
        .log = log,
        .store = {.db = db,
                  .model = capture->geometry.weights_hash,
                  .parent = *parent,
                  .log = log,
                  .settings = vqkvc_arena_printf(&arena, err, "scheme=aqua grid=%dx%d first=2x%d",
                                                 p.grid, p.grid * p.bits, 2 * FIRST_BITS)}};
    if (c.store.settings != NULL && chain_init(&c, err) == VQKVC_OK && build(&c, err) == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    chain_free(&c);
    vqkvc_arena_free(&arena);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
