#include "command/fit_auto.h"

#include <stdlib.h>
#include <string.h>

#include "command/eval_text.h"
#include "command/keep.h"
#include "command/time_store.h"
#include "eval/sensitivity.h"
#include "plan/fit_stream.h"

/* A quarter of 1024 positions, counted from the 128th on, rank heads nearly as windows of 1024 do
 * (rank correlation 0.94 to 0.97, two such windows 0.96), in a fifth of the time: see SPEED.md. */
enum { PROBE_TOKENS = 384 };

int vqkvc_seeks(const vqkvc_options *o)
{
    return o->max_kl > 0 || o->max_ppl > 0;
}

vqkvc_code vqkvc_own_text(const vqkvc_scheme_input *in, int purpose, int n_windows, int context,
                          int32_t *windows, vqkvc_err *err)
{
    char name[256];
    vqkvc_options o = {.windows = n_windows,
                       .seed = in->options->seed * 1009 + 17 * (uint64_t)purpose};
    return vqkvc_eval_text(in->model, &o, context, in->log, windows, name, err);
}

/* ---- sensitivities ---- */

/* Tokens that probes run over. Of files they are the calibration's first, which is what they fit
 * the plan to anyway. */
static int probe_tokens(const vqkvc_scheme_input *in)
{
    int trained = in->geometry->n_ctx_train;
    int n = trained > 0 && trained < PROBE_TOKENS ? trained : PROBE_TOKENS;
    int64_t there = in->source->ids != NULL ? in->source->start[in->source->n_seq] : n;
    return there < n ? (int)there : n;
}

static vqkvc_code run_probes(const vqkvc_scheme_input *in, int n_tokens, int groups, double *at,
                             vqkvc_err *err)
{
    vqkvc_metrics metrics;
    vqkvc_arena arena = {0};
    const int32_t *tokens = in->source->ids;
    if (tokens == NULL) {
        int32_t *own = vqkvc_arena_alloc(&arena, (size_t)n_tokens, sizeof *own, err);
        if (own != NULL)
            vqkvc_own_text(in, VQKVC_TEXT_PROBES, 1, n_tokens, own, err);
        tokens = own;
    }
    if (err->code == VQKVC_OK &&
        vqkvc_sample_metrics(in->capture, &arena, &metrics, err) == VQKVC_OK)
        vqkvc_sensitivity_measure(in->model, tokens, n_tokens, in->capture, &metrics,
                                  in->options->seed, groups, in->log, at, err);
    vqkvc_arena_free(&arena);
    return err->code;
}

static vqkvc_code find_sensitivity(const vqkvc_scheme_input *in, vqkvc_arena *arena,
                                   vqkvc_sensitivity *s, vqkvc_hash *recipe_hash, vqkvc_err *err)
{
    const vqkvc_geometry *g = in->geometry;
    int found, n_tokens = probe_tokens(in);
    const int32_t *ids = in->source->ids;
    vqkvc_hash text = {"self"};
    size_t n = 2 * (size_t)g->n_layers * (size_t)g->n_kv_heads * (size_t)s->groups;
    double *at = vqkvc_arena_alloc(arena, n, sizeof *at, err);
    vqkvc_buf buf = {0};
    if (ids != NULL)
        text = vqkvc_hash_bytes(ids, (size_t)n_tokens * sizeof *ids);
    const char *recipe = vqkvc_arena_printf(
        arena, err,
        "sensitivity v2;" VQKVC_FIT_VERSION ";groups=%d;tokens=%d;text=%s;seed=%llu;from=%s",
        s->groups, n_tokens, text.hex, (unsigned long long)in->options->seed, in->parent->hex);
    if (recipe == NULL || at == NULL)
        return err->code;
    *recipe_hash = kvdb_recipe_hash("sensitivity", recipe);
    s->at = at;
    VQKVC_TRY(vqkvc_store_fetch(in->db, "sensitivity", recipe, in->log, &buf, &found, err));
    if (found && buf.len == n * sizeof *at) {
        memcpy(at, buf.data, buf.len);
    } else if (run_probes(in, n_tokens, s->groups, at, err) == VQKVC_OK) {
        buf.len = 0;
        vqkvc_buf_put(&buf, at, n * sizeof *at);
        vqkvc_store_keep(in->db, "sensitivity", recipe, &g->weights_hash, 1, in->parent, &buf, err);
    }
    free(buf.data);
    return err->code;
}

/* Sets p->sensitivity, unless probes cannot be made: then metrics alone weigh errors. */
static vqkvc_code probe(const vqkvc_scheme_input *in, vqkvc_arena *arena, vqkvc_sensitivity *s,
                        vqkvc_auto_params *p, vqkvc_err *err)
{
    if (s->groups == 0)
        return VQKVC_OK;
    if (in->model == NULL)
        vqkvc_say(in->log, 0, "auto: no probes without a model; errors are weighed in closed form");
    else if (probe_tokens(in) < VQKVC_PROBE_LEAST)
        vqkvc_say(in->log, 0,
                  "auto: %d tokens are too few for probes (%d); errors are weighed in closed form",
                  probe_tokens(in), VQKVC_PROBE_LEAST);
    else if (find_sensitivity(in, arena, s, &p->probes, err) == VQKVC_OK)
        p->sensitivity = s;
    return err->code;
}

/* ---- parameters ---- */

/* Un-rotated keys compress best, but attention must rebuild them: without any limit only. */
static vqkvc_frame frame_of(const vqkvc_options *o)
{
    if (strcmp(o->frame, "best") == 0)
        return o->max_scan > 0 || o->max_ns > 0 ? VQKVC_FRAME_BLOCK : VQKVC_FRAME_PRE;
    return strcmp(o->frame, "post") == 0  ? VQKVC_FRAME_POST
           : strcmp(o->frame, "pre") == 0 ? VQKVC_FRAME_PRE
                                          : VQKVC_FRAME_BLOCK;
}

static const char *const ideas[] = {"gain", "metric", "probes", "sharing", "joint", "block-frame"};

enum { N_IDEAS = sizeof ideas / sizeof *ideas };

const char *vqkvc_auto_idea(int i)
{
    return i < N_IDEAS ? ideas[i] : NULL;
}

/* One word of --without, n characters; 0 if it is none. */
static int leave_out(const char *word, size_t n, vqkvc_auto_params *p, int *probes)
{
    for (int i = 0; i < N_IDEAS; i++) {
        if (strlen(ideas[i]) != n || strncmp(ideas[i], word, n) != 0)
            continue;
        p->no_gain |= i == 0;
        p->no_metric |= i == 1;
        *probes = i == 2 ? 0 : *probes;
        p->layers_shared = i == 3 ? 1 : p->layers_shared;
        p->separate_heads |= i == 3 || i == 4;
        p->frame = i == 5 ? VQKVC_FRAME_POST : p->frame;
        p->any_frame &= i != 5;
        return 1;
    }
    return 0;
}

static vqkvc_code leave_out_all(const char *words, vqkvc_auto_params *p, int *probes,
                                vqkvc_err *err)
{
    while (words != NULL && *words != '\0') {
        size_t n = strcspn(words, ",");
        if (!leave_out(words, n, p, probes))
            return vqkvc_fail(
                err, VQKVC_E_USAGE,
                "--without is '%.60s': wanted gain, metric, probes, sharing, joint or "
                "block-frame, with commas between them",
                words);
        words += n + (words[n] == ',');
    }
    return VQKVC_OK;
}

/* What the options say; *groups: of probes. */
static vqkvc_code params_of(const vqkvc_options *o, vqkvc_auto_params *p, int *groups,
                            vqkvc_err *err)
{
    *groups = o->probes;
    *p = (vqkvc_auto_params){
        .bits = o->bits,
        .max_scan = o->max_scan > 0 ? o->max_scan : -1,
        .layers_shared = o->layers_shared,
        .tables_at = o->tables_at,
        .max_ns = o->max_ns,
        .any_frame = o->max_ns > 0 && o->block == 0 && strcmp(o->frame, "best") == 0,
        .frame = frame_of(o),
        .spans = strcmp(o->frame, "bands") == 0   ? VQKVC_SPANS_BANDS
                 : strcmp(o->frame, "spans") == 0 ? VQKVC_SPANS_LONG
                                                  : VQKVC_SPANS_BLOCK,
        .window = {.n_sink = o->sink, .n_recent = o->recent, .block = o->block},
        .seed = o->seed};
    return leave_out_all(o->without, p, groups, err);
}

vqkvc_code vqkvc_fit_auto_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_auto_params params;
    int groups;
    vqkvc_time_model time;
    VQKVC_TRY(params_of(o, &params, &groups, err));
    if (o->cost_model != NULL)
        VQKVC_TRY(vqkvc_time_given(o->cost_model, g, &time, err));
    else if (o->max_ns > 0 && o->import_path != NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--max-ns with --import wants --cost-model: the shape of heads is not "
                          "known before the dump is read");
    return g != NULL ? vqkvc_auto_check(&params, g, err) : VQKVC_OK;
}

vqkvc_code vqkvc_fit_auto(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_arena arena = {0};
    vqkvc_auto_params params;
    vqkvc_sensitivity sensitivity = {0};
    VQKVC_TRY(params_of(in->options, &params, &sensitivity.groups, err));
    VQKVC_TRY(vqkvc_auto_check(&params, in->geometry, err));
    vqkvc_time_model time;
    if (in->options->max_ns > 0) {
        VQKVC_TRY(vqkvc_time_given(in->options->cost_model, in->geometry, &time, err));
        params.time = &time;
    }
    if (probe(in, &arena, &sensitivity, &params, err) == VQKVC_OK && vqkvc_seeks(in->options))
        vqkvc_seek_bits(in, &params, plan, err);
    else if (err->code == VQKVC_OK)
        vqkvc_plan_auto(plan, in->capture, &params, in->db, in->parent, in->log, err);
    vqkvc_arena_free(&arena);
    return err->code;
}
