#include "command/fit_auto.h"

#include <stdlib.h>
#include <string.h>

#include "command/eval_text.h"
#include "command/keep.h"
#include "eval/sensitivity.h"
#include "plan/auto.h"

enum { PROBE_TOKENS = 1024 };

/* Text of the calibration's kind; of text that the model samples itself neither the calibration's
 * nor an evaluation's, which have other seeds. */
static vqkvc_code probe_text(vqkvc_pipeline *p, int n_tokens, int32_t *tokens, vqkvc_err *err)
{
    char name[256];
    vqkvc_options o = *p->options;
    o.windows = 1;
    o.seed = o.seed * 31 + 17;
    return vqkvc_eval_text(p->model, &o, n_tokens, p->log, tokens, name, err);
}

static vqkvc_code run_probes(vqkvc_pipeline *p, int n_tokens, vqkvc_sensitivity *s, double *at,
                             vqkvc_err *err)
{
    vqkvc_metrics metrics;
    vqkvc_arena arena = {0};
    int32_t *tokens = vqkvc_alloc((size_t)n_tokens, sizeof *tokens, err);
    if (tokens != NULL && probe_text(p, n_tokens, tokens, err) == VQKVC_OK &&
        vqkvc_sample_metrics(&p->capture, p->options->seed, &arena, &metrics, err) == VQKVC_OK)
        vqkvc_sensitivity_measure(p->model, tokens, n_tokens, &p->capture, &metrics,
                                  p->options->seed, s->groups, p->log, at, err);
    free(tokens);
    vqkvc_arena_free(&arena);
    return err->code;
}

static vqkvc_code find_sensitivity(vqkvc_pipeline *p, vqkvc_sensitivity *s, vqkvc_hash *recipe_hash,
                                   vqkvc_err *err)
{
    const vqkvc_geometry *g = &p->geometry;
    int found, trained = g->n_ctx_train;
    int n_tokens = trained > 0 && trained < PROBE_TOKENS ? trained : PROBE_TOKENS;
    size_t n = 2 * (size_t)g->n_layers * (size_t)g->n_kv_heads * (size_t)s->groups;
    double *at = vqkvc_arena_alloc(&p->arena, n, sizeof *at, err);
    vqkvc_buf buf = {0};
    const char *recipe = vqkvc_arena_printf(
        &p->arena, err, "sensitivity v2;groups=%d;tokens=%d;seed=%llu;from=%s", s->groups, n_tokens,
        (unsigned long long)p->options->seed, p->capture_hash.hex);
    if (recipe == NULL || at == NULL)
        return err->code;
    *recipe_hash = kvdb_recipe_hash("sensitivity", recipe);
    s->at = at;
    VQKVC_TRY(vqkvc_store_fetch(p->db, "sensitivity", recipe, p->log, &buf, &found, err));
    if (found && buf.len == n * sizeof *at) {
        memcpy(at, buf.data, buf.len);
    } else if (run_probes(p, n_tokens, s, at, err) == VQKVC_OK) {
        buf.len = 0;
        vqkvc_buf_put(&buf, at, n * sizeof *at);
        vqkvc_store_keep(p->db, "sensitivity", recipe, &g->weights_hash, 1, &p->capture_hash, &buf,
                         err);
    }
    free(buf.data);
    return err->code;
}

/* Un-rotated keys compress best, but attention must rebuild them. */
static vqkvc_frame frame_of(const vqkvc_options *o)
{
    if (strcmp(o->frame, "best") == 0)
        return o->max_scan > 0 ? VQKVC_FRAME_BLOCK : VQKVC_FRAME_PRE;
    return strcmp(o->frame, "post") == 0  ? VQKVC_FRAME_POST
           : strcmp(o->frame, "pre") == 0 ? VQKVC_FRAME_PRE
                                          : VQKVC_FRAME_BLOCK;
}

vqkvc_code vqkvc_fit_auto(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    vqkvc_sensitivity sensitivity = {.groups = o->probes};
    vqkvc_hash probes = {{0}};
    vqkvc_auto_params params = {
        .bits = o->bits,
        .max_scan = o->max_scan > 0 ? o->max_scan : -1,
        .layers_shared = o->layers_shared,
        .frame = frame_of(o),
        .window = {.n_sink = o->sink, .n_recent = o->recent, .block = o->block},
        .seed = o->seed};
    if (p->model != NULL && o->probes > 0) {
        VQKVC_TRY(find_sensitivity(p, &sensitivity, &probes, err));
        params.sensitivity = &sensitivity;
        params.probes = probes;
    }
    return vqkvc_plan_auto(&p->plan, &p->capture, &params, p->db, &p->capture_hash, p->log, err);
}
