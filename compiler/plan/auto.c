#include "plan/auto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/fit_stream.h"
#include "plan/search.h"

static vqkvc_auto_params with_defaults(const vqkvc_auto_params *given)
{
    vqkvc_auto_params p = *given;
    if (p.bits == 0)
        p.bits = 2;
    if (p.max_scan == 0)
        p.max_scan = 5.5;
    if (p.window.n_sink <= 0)
        p.window.n_sink = 4;
    if (p.window.n_recent <= 0)
        p.window.n_recent = 32;
    if (p.window.block <= 0)
        p.window.block = 64;
    if (p.seed == 0)
        p.seed = 1;
    return p;
}

/* Everything that the samples and metrics of a stream depend on besides the capture. */
static char *settings_text(const vqkvc_auto_params *p, vqkvc_arena *arena, vqkvc_err *err)
{
    return vqkvc_arena_printf(arena, err, "frame=%d block=%d seed=%llu", (int)p->frame,
                              p->window.block, (unsigned long long)p->seed);
}

/* x [n, n_in] loses what `stream` codes of it. */
static vqkvc_code take_off(const vqkvc_plan *plan, int stream, int n, float *x, vqkvc_err *err)
{
    const vqkvc_stream *s = &plan->streams[stream];
    size_t total = (size_t)n * (size_t)s->n_in;
    float *x_hat = vqkvc_alloc(total, sizeof(float), err);
    if (x_hat != NULL && vqkvc_stream_apply(plan, s, n, x, x_hat, NULL, err) == VQKVC_OK)
        for (size_t i = 0; i < total; i++)
            x[i] -= x_hat[i];
    free(x_hat);
    return err->code;
}

/* One layer's own stream on its columns of x [n, ldx]. */
static vqkvc_code fit_own(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p,
                          const vqkvc_scope *scope, int l, const float *x,
                          const vqkvc_hash *residual, const double *metric,
                          const vqkvc_fit_store *store, vqkvc_err *err)
{
    int dim = c->geometry.head_dim, n_in = scope->n_layers * dim;
    char name[64];
    vqkvc_member member = {.part = scope->part, .layer = scope->first + l, .head = scope->head};
    vqkvc_hash ignored;
    vqkvc_stream_spec spec = {.name = name,
                              .members = &member,
                              .n_members = 1,
                              .frame = scope->part == VQKVC_PART_K ? p->frame : VQKVC_FRAME_POST,
                              .n_nibbles = scope->own[l],
                              .gain_bits = VQKVC_GAIN_BITS,
                              .residual = *residual};
    snprintf(name, sizeof name, "%c %d h%d", scope->part == VQKVC_PART_K ? 'K' : 'V', member.layer,
             member.head);
    float *own = vqkvc_alloc((size_t)c->n_sample * (size_t)dim, sizeof(float), err);
    if (own == NULL)
        return err->code;
    for (int i = 0; i < c->n_sample; i++)
        memcpy(own + (size_t)i * (size_t)dim, x + (size_t)i * (size_t)n_in + (size_t)(l * dim),
               (size_t)dim * sizeof(float));
    vqkvc_fit_stream(plan, &spec, c->n_sample, own, &metric, p->seed, store, &ignored, err);
    free(own);
    return err->code;
}

/* The shared stream of a scope, then each layer's own stream on what it leaves: closed loop. */
static vqkvc_code fit_scope(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p,
                            const vqkvc_scope *scope, const vqkvc_metrics *metrics,
                            const vqkvc_fit_store *store, vqkvc_err *err)
{
    vqkvc_member members[VQKVC_MAX_LAYERS];
    const double *metric[VQKVC_MAX_LAYERS];
    char name[64];
    vqkvc_hash residual = {{0}};
    size_t n_in = (size_t)scope->n_layers * (size_t)c->geometry.head_dim;
    for (int l = 0; l < scope->n_layers; l++) {
        members[l] =
            (vqkvc_member){.part = scope->part, .layer = scope->first + l, .head = scope->head};
        metric[l] = (scope->part == VQKVC_PART_K
                         ? metrics->k
                         : metrics->v)[members[l].layer * c->geometry.n_kv_heads + scope->head];
    }
    snprintf(name, sizeof name, "%c %d-%d h%d shared", scope->part == VQKVC_PART_K ? 'K' : 'V',
             scope->first, scope->first + scope->n_layers - 1, scope->head);
    float *x = vqkvc_alloc((size_t)c->n_sample * n_in, sizeof(float), err);
    if (x == NULL)
        return err->code;
    if (vqkvc_sample_members(c, members, scope->n_layers, p->frame, p->window.block, p->seed, x,
                             err) == VQKVC_OK &&
        scope->shared > 0) {
        vqkvc_stream_spec spec = {.name = name,
                                  .members = members,
                                  .n_members = scope->n_layers,
                                  .frame =
                                      scope->part == VQKVC_PART_K ? p->frame : VQKVC_FRAME_POST,
                                  .n_nibbles = scope->shared,
                                  .gain_bits = VQKVC_GAIN_BITS};
        if (vqkvc_fit_stream(plan, &spec, c->n_sample, x, metric, p->seed, store, &residual, err) ==
            VQKVC_OK)
            take_off(plan, plan->n_streams - 1, c->n_sample, x, err);
    }
    for (int l = 0; l < scope->n_layers && err->code == VQKVC_OK; l++)
        fit_own(plan, c, p, scope, l, x, &residual, metric[l], store, err);
    free(x);
    return err->code;
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_auto_params *p, vqkvc_err *err)
{
    if (p->frame != VQKVC_FRAME_BLOCK && p->frame != VQKVC_FRAME_POST)
        return vqkvc_fail(err, VQKVC_E_USAGE, "auto codes keys in frame block or post");
    if (p->bits < 0.05 || p->bits > 8)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%g bits a value: wanted 0.05 to 8", p->bits);
    if (c->n_sample < 256)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit codebooks (wanted 256 or more)",
                          c->n_sample);
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_auto(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_auto_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_auto_params p = with_defaults(params);
    vqkvc_arena arena = {0};
    vqkvc_metrics metrics;
    vqkvc_design design;
    vqkvc_progress progress;
    memset(plan, 0, sizeof *plan);
    VQKVC_TRY(check(capture, &p, err));
    plan->geometry = capture->geometry;
    plan->n_sink = p.window.n_sink;
    plan->n_recent = p.window.n_recent;
    plan->block = p.window.block;
    plan->calibration = *parent;
    snprintf(plan->scheme, sizeof plan->scheme, "auto%.4g", p.bits);
    vqkvc_fit_store store = {.db = db,
                             .model = capture->geometry.weights_hash,
                             .parent = *parent,
                             .settings = settings_text(&p, &arena, err)};
    if (err->code == VQKVC_OK && vqkvc_sample_metrics(capture, &arena, &metrics, err) == VQKVC_OK &&
        vqkvc_search(capture, &p, &metrics, &arena, log, &design, err) == VQKVC_OK) {
        vqkvc_say(log, 1, "auto: %d layers share; %.3f bits stored, %.3f read",
                  design.layers_shared, design.bits, design.scan);
        vqkvc_progress_begin(&progress, log, "fit", "scopes", (uint64_t)design.n_scopes);
        for (int i = 0; i < design.n_scopes && err->code == VQKVC_OK; i++) {
            if (vqkvc_interrupted())
                vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
            else
                fit_scope(plan, capture, &p, &design.scopes[i], &metrics, &store, err);
            vqkvc_progress_step(&progress, (uint64_t)i + 1);
        }
        if (err->code == VQKVC_OK)
            vqkvc_progress_end(&progress, (uint64_t)design.n_scopes);
    }
    vqkvc_arena_free(&arena);
    if (err->code == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
