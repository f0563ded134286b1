#include "command/pipeline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "capture/blob.h"
#include "capture/import.h"
#include "capture/run.h"
#include "capture/simulate.h"
#include "command/fit_auto.h"
#include "command/keep.h"
#include "command/report.h"
#include "command/schemes.h"
#include "command/time_store.h"
#include "gen/gen.h"
#include "plan/bounded.h"
#include "plan/fit_stream.h"

/* To be raised with any change that makes another plan from the same capture, options and fitted
 * parts (search, allocation, costs, presets), so that no store passes an old plan off for it. */
#define PLANNER_VERSION "plan v9"

/* ---- opening ---- */

/* A dump and a simulation bring their own geometry. */
static int without_model(const vqkvc_options *o)
{
    return o->import_path != NULL || o->simulate != NULL;
}

static int needs_capture(const vqkvc_options *o)
{
    return vqkvc_scheme_of(o)->calibrated || without_model(o) || o->max_error > 0;
}

static vqkvc_code check_options(const vqkvc_options *o, int capture_only, vqkvc_err *err)
{
    int sources = (o->self != 0) + (o->text.n > 0) + (o->tokens.n > 0) + (o->import_path != NULL) +
                  (o->simulate != NULL);
    if (sources > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--self, --text, --tokens, --import and --simulate exclude each other");
    if (without_model(o) && o->n_args > 0)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "'%.200s' is not used with --%s, which says itself what the model is like", o->args[0],
            o->simulate != NULL ? "simulate" : "import");
    if (!without_model(o) && o->n_args == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "which model? (a GGUF file, or --import FILE)");
    return capture_only ? VQKVC_OK : vqkvc_scheme_check(o, NULL, err);
}

static vqkvc_code open_source(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    if (o->text.n > 0)
        return vqkvc_source_text(&p->source, p->model, o->text.at, o->text.n, &p->params, p->log,
                                 err);
    if (o->tokens.n > 0)
        return vqkvc_source_ids(&p->source, p->model, o->tokens.at, o->tokens.n, &p->params, p->log,
                                err);
    return vqkvc_source_self(&p->source, p->model, &p->params, err);
}

static const char *import_recipe(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    vqkvc_map map;
    if (vqkvc_map_open(&map, o->import_path, err) != VQKVC_OK)
        return NULL;
    vqkvc_hash hash = vqkvc_hash_bytes(map.data, map.size);
    vqkvc_map_close(&map);
    return vqkvc_arena_printf(&p->arena, err,
                              "capture v2;import=%s;seed=%llu;n_tokens=%lld;sample=%d", hash.hex,
                              (unsigned long long)o->seed, (long long)o->n_tokens, o->sample);
}

static const char *simulation_recipe(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    vqkvc_capture_params resolved;
    if (vqkvc_simulate_geometry(o->simulate, &p->geometry, err) != VQKVC_OK ||
        vqkvc_capture_params_resolve(&p->params, &p->geometry, 0, &resolved, err) != VQKVC_OK)
        return NULL;
    return vqkvc_arena_printf(&p->arena, err,
                              "capture v2;simulation v1=%s;seed=%llu;n_tokens=%lld;sample=%d;"
                              "window=%d",
                              p->geometry.name, (unsigned long long)o->seed,
                              (long long)resolved.n_tokens, resolved.n_sample, resolved.window);
}

const char *vqkvc_plan_recipe(const vqkvc_options *o, const vqkvc_hash *weights,
                              const vqkvc_hash *capture, const vqkvc_source *source,
                              vqkvc_arena *arena, vqkvc_err *err)
{
    const char *from = weights != NULL && !vqkvc_scheme_of(o)->calibrated && o->max_error == 0
                           ? weights->hex
                           : capture->hex;
    vqkvc_buf values = {0};
    vqkvc_scheme_recipe(o, &values);
    if (vqkvc_seeks(o) && source->ids != NULL)
        vqkvc_buf_printf(&values, ";unused=%s", source->spare_hash.hex);
    if (values.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a recipe");
    const char *recipe =
        err->code != VQKVC_OK
            ? NULL
            : vqkvc_arena_printf(arena, err, PLANNER_VERSION ";" VQKVC_FIT_VERSION "%s;from=%s",
                                 values.data, from);
    free(values.data);
    return recipe;
}

static vqkvc_code name_capture(vqkvc_pipeline *p, vqkvc_err *err)
{
    if (!p->calibrated || p->capture_recipe != NULL)
        return VQKVC_OK;
    if (p->model != NULL) {
        VQKVC_TRY(open_source(p, err));
        p->capture_recipe =
            vqkvc_capture_recipe(p->model, &p->source, &p->params, -1, &p->arena, err);
    } else if (p->options->simulate != NULL) {
        p->capture_recipe = simulation_recipe(p, err);
    } else {
        p->capture_recipe = import_recipe(p, err);
    }
    if (p->capture_recipe != NULL)
        p->capture_hash = kvdb_recipe_hash("capture", p->capture_recipe);
    return err->code;
}

/* A limit of time goes by a cost model: where none is given, that of this machine takes its place
 * in the options, so that recipe and command line of the plan hold it. */
static vqkvc_code find_time(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    vqkvc_time_shape shape;
    vqkvc_time_model m;
    vqkvc_buf text = {0};
    int found;
    p->time_hash = (vqkvc_hash){""};
    if ((vqkvc_scheme_of(o)->takes & VQKVC_GIVEN_AUTO) == 0 || o->max_ns <= 0 ||
        o->cost_model != NULL || p->geometry.n_layers == 0)
        return VQKVC_OK;
    shape = vqkvc_time_shape_of(&p->geometry);
    VQKVC_TRY(vqkvc_time_find(p->db, &shape, 0, p->log, &m, &found, &p->time_hash, err));
    vqkvc_time_print(&m, &text);
    p->timed = *o;
    p->timed.cost_model =
        text.failed ? NULL : vqkvc_arena_strndup(&p->arena, text.data, text.len, err);
    p->options = &p->timed;
    free(text.data);
    return p->timed.cost_model != NULL
               ? VQKVC_OK
               : vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a cost model");
}

static vqkvc_code name_plan(vqkvc_pipeline *p, vqkvc_err *err)
{
    VQKVC_TRY(find_time(p, err));
    p->plan_recipe =
        vqkvc_plan_recipe(p->options, p->model != NULL ? &p->geometry.weights_hash : NULL,
                          &p->capture_hash, &p->source, &p->arena, err);
    if (p->plan_recipe != NULL)
        p->plan_hash = kvdb_recipe_hash("plan", p->plan_recipe);
    return err->code;
}

vqkvc_code vqkvc_pipeline_open(vqkvc_pipeline *p, const vqkvc_options *o, int capture_only,
                               const vqkvc_log *log, vqkvc_err *err)
{
    *p = (vqkvc_pipeline){.options = o, .log = log};
    VQKVC_TRY(check_options(o, capture_only, err));
    p->calibrated = capture_only || needs_capture(o);
    if (!p->calibrated && (o->given & VQKVC_GIVEN_SOURCE))
        vqkvc_say(log, 0, "scheme %s needs no calibration: its source is not used", o->scheme);
    p->params = (vqkvc_capture_params){.n_tokens = o->n_tokens,
                                       .n_sample = o->sample,
                                       .window = o->window,
                                       .seed = o->seed,
                                       .temperature = (float)o->temperature};
    if (!without_model(o)) {
        p->model_path = o->args[0];
        VQKVC_TRY(vqkvc_model_open(&p->model, p->model_path, 0, err));
        p->geometry = *vqkvc_model_geometry(p->model);
        if (!capture_only)
            VQKVC_TRY(vqkvc_scheme_check(o, &p->geometry, err));
    }
    VQKVC_TRY(name_capture(p, err));
    if (!capture_only && o->simulate != NULL)
        VQKVC_TRY(vqkvc_scheme_check(o, &p->geometry, err));
    VQKVC_TRY(vqkvc_store_open(&p->db, o, KVDB_READ_WRITE, err));
    if (p->model != NULL)
        VQKVC_TRY(vqkvc_store_keep_model(p->db, &p->geometry, err));
    return capture_only ? VQKVC_OK : name_plan(p, err);
}

vqkvc_code vqkvc_pipeline_next(vqkvc_pipeline *p, const vqkvc_options *o, vqkvc_err *err)
{
    vqkvc_plan_free(&p->plan);
    json_decref(p->report);
    p->report = NULL;
    free(p->header.data);
    p->header = (vqkvc_buf){0};
    p->options = o;
    p->calibrated = needs_capture(o);
    VQKVC_TRY(check_options(o, 0, err));
    VQKVC_TRY(vqkvc_scheme_check(o, p->geometry.n_layers > 0 ? &p->geometry : NULL, err));
    VQKVC_TRY(name_capture(p, err));
    return name_plan(p, err);
}

void vqkvc_pipeline_close(vqkvc_pipeline *p, const vqkvc_err *err)
{
    if (err->code == VQKVC_E_INTERRUPTED && p->db != NULL)
        vqkvc_say(p->log, 0,
                  "%s keeps what was finished (shards, captures, fitted parts): the same command "
                  "again goes on from there",
                  vqkvc_store_path(p->options));
    free(p->header.data);
    vqkvc_plan_free(&p->plan);
    json_decref(p->report);
    vqkvc_capture_free(&p->capture);
    vqkvc_source_free(&p->source);
    vqkvc_model_close(p->model);
    kvdb_close(p->db);
    vqkvc_arena_free(&p->arena);
}

/* ---- capture ---- */

static vqkvc_code keep_shard(void *self, int shard, const vqkvc_capture *part, vqkvc_err *err)
{
    vqkvc_pipeline *p = self;
    vqkvc_buf buf = {0};
    const char *recipe =
        vqkvc_capture_recipe(p->model, &p->source, &p->params, shard, &p->arena, err);
    if (recipe != NULL && vqkvc_capture_write(part, &buf, err) == VQKVC_OK)
        vqkvc_store_keep(p->db, "capture-shard", recipe, &p->geometry.weights_hash, 0, NULL, &buf,
                         err);
    free(buf.data);
    return err->code;
}

static vqkvc_code load_shard(void *self, int shard, vqkvc_capture *part, int *found, vqkvc_err *err)
{
    vqkvc_pipeline *p = self;
    vqkvc_buf buf = {0};
    const char *recipe =
        vqkvc_capture_recipe(p->model, &p->source, &p->params, shard, &p->arena, err);
    vqkvc_err damage = {0};
    *found = 0;
    if (recipe == NULL)
        return err->code;
    vqkvc_store_fetch(p->db, "capture-shard", recipe, p->log, &buf, found, err);
    if (*found && vqkvc_capture_load(part, buf.data, buf.len, &damage) == VQKVC_OK)
        vqkvc_say(p->log, 0, "capture: shard %d found", shard);
    vqkvc_store_forgive(&damage, "shard", p->log, found, err);
    if (!*found) {
        vqkvc_capture_free(part);
        *part = (vqkvc_capture){0};
    }
    free(buf.data);
    return err->code;
}

/* A capture of one shard is kept whole right away; its shard would only double it. */
static vqkvc_code run_model(vqkvc_pipeline *p, vqkvc_err *err)
{
    vqkvc_capture_params resolved;
    VQKVC_TRY(vqkvc_capture_params_resolve(&p->params, &p->geometry, 0, &resolved, err));
    int shard_len = p->source.ids == NULL ? resolved.batch : resolved.shard;
    if (p->db != NULL && p->source.n_seq > shard_len) {
        p->params.self = p;
        p->params.shard_done = keep_shard;
        p->params.shard_load = load_shard;
    }
    return vqkvc_capture_run(p->model, &p->source, &p->params, p->log, &p->capture, err);
}

static vqkvc_code make_capture(vqkvc_pipeline *p, vqkvc_err *err)
{
    double start = vqkvc_seconds();
    if (p->model != NULL) {
        VQKVC_TRY(run_model(p, err));
    } else {
        const vqkvc_options *o = p->options;
        if (o->simulate != NULL)
            VQKVC_TRY(vqkvc_capture_simulate(&p->geometry, &p->params, p->log, &p->capture, err));
        else
            VQKVC_TRY(vqkvc_capture_import(o->import_path, &p->params, p->log, &p->capture, err));
        VQKVC_TRY(vqkvc_store_keep_model(p->db, &p->capture.geometry, err));
    }
    VQKVC_TRY(vqkvc_store_keep_capture(p->db, p->capture_recipe, &p->capture, err));
    vqkvc_say(p->log, 0, "capture: %.1f s", vqkvc_seconds() - start);
    return VQKVC_OK;
}

vqkvc_code vqkvc_pipeline_capture(vqkvc_pipeline *p, vqkvc_err *err)
{
    int found;
    if (p->capture.n_tokens > 0)
        return VQKVC_OK;
    VQKVC_TRY(
        vqkvc_store_fetch_capture(p->db, p->capture_recipe, p->log, &p->capture, &found, err));
    if (found)
        vqkvc_say(p->log, 0, "capture: found in %s", vqkvc_store_path(p->options));
    else
        VQKVC_TRY(make_capture(p, err));
    p->geometry = p->capture.geometry;
    return VQKVC_OK;
}

/* ---- plan ---- */

/* Emits the f16 baseline into nothing: what cannot be emitted for this model, or under this prefix,
 * is found out before the capture. */
static vqkvc_code rehearse(vqkvc_pipeline *p, vqkvc_err *err)
{
    vqkvc_plan plan = {0};
    const vqkvc_options *o = p->options;
    vqkvc_window window = {.n_sink = o->sink, .n_recent = o->recent, .block = o->block};
    vqkvc_buf header = {0};
    const char *prefix;
    if (vqkvc_plan_preset(&plan, &p->geometry, "f16", &window, err) == VQKVC_OK)
        vqkvc_emit_plan(&plan, "", p->options->prefix, &p->arena, &prefix, &header, err);
    vqkvc_plan_free(&plan);
    free(header.data);
    return err->code;
}

/* Keeps the bytes of the plan, made from its fitted parts, its capture, its report, and from a
 * "request": the command line, which whoever emits the plan from the store alone has to know. */
static vqkvc_code keep_plan(vqkvc_pipeline *p, const vqkvc_buf *bytes, vqkvc_err *err)
{
    const vqkvc_plan *plan = &p->plan;
    const vqkvc_hash *weights = &plan->geometry.weights_hash;
    vqkvc_hash report = {0};
    size_t n = 0;
    vqkvc_buf request = {0};
    vqkvc_hash *parents = vqkvc_alloc((size_t)plan->n_parents + 4, sizeof *parents, err);
    vqkvc_pipeline_command(p->options, &request);
    if (request.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a command line");
    if (err->code == VQKVC_OK &&
        vqkvc_store_keep(p->db, "request", request.data, weights, 0, NULL, &request, err) ==
            VQKVC_OK &&
        vqkvc_report_keep(p->db, p->plan_recipe, weights, p->report, &report, err) == VQKVC_OK) {
        parents[n++] = kvdb_recipe_hash("request", request.data);
        if (p->calibrated)
            parents[n++] = p->capture_hash;
        if (report.hex[0] != '\0')
            parents[n++] = report;
        if (p->time_hash.hex[0] != '\0')
            parents[n++] = p->time_hash;
        for (int i = 0; i < plan->n_parents; i++)
            parents[n++] = plan->parents[i];
        vqkvc_store_keep(p->db, "plan", p->plan_recipe, weights, n, parents, bytes, err);
    }
    free(parents);
    free(request.data);
    return err->code;
}

static vqkvc_code make_plan(vqkvc_pipeline *p, vqkvc_buf *bytes, vqkvc_err *err)
{
    if (p->model != NULL)
        VQKVC_TRY(rehearse(p, err));
    if (p->calibrated)
        VQKVC_TRY(vqkvc_pipeline_capture(p, err));
    double start = vqkvc_seconds();
    p->report = json_array();
    vqkvc_scheme_input in = {.options = p->options,
                             .model = p->model,
                             .geometry = &p->geometry,
                             .capture = &p->capture,
                             .parent = &p->capture_hash,
                             .source = &p->source,
                             .db = p->db,
                             .report = p->report,
                             .log = p->log};
    VQKVC_TRY(vqkvc_scheme_of(p->options)->make(&in, &p->plan, err));
    p->plan.landmarks = p->options->landmarks;
    if (p->options->max_error > 0)
        VQKVC_TRY(vqkvc_plan_bound(&p->plan, &p->capture, (float)p->options->max_error, err));
    VQKVC_TRY(vqkvc_plan_write(&p->plan, bytes, err));
    vqkvc_say(p->log, 0, "plan: %.1f s", vqkvc_seconds() - start);
    return VQKVC_OK;
}

static vqkvc_code fetch_plan(vqkvc_pipeline *p, vqkvc_buf *bytes, int *found, vqkvc_err *err)
{
    vqkvc_err damage = {0};
    VQKVC_TRY(vqkvc_store_fetch(p->db, "plan", p->plan_recipe, p->log, bytes, found, err));
    if (!*found)
        return VQKVC_OK;
    if (vqkvc_plan_read(&p->plan, bytes->data, bytes->len, &damage) == VQKVC_OK)
        vqkvc_say(p->log, 0, "plan: found in %s", vqkvc_store_path(p->options));
    else
        bytes->len = 0;
    VQKVC_TRY(vqkvc_store_forgive(&damage, "plan", p->log, found, err));
    if (*found)
        p->report = vqkvc_report_fetch(p->db, p->plan_recipe, p->log, err);
    return err->code;
}

vqkvc_code vqkvc_pipeline_plan(vqkvc_pipeline *p, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    int found = 0;
    if (fetch_plan(p, &bytes, &found, err) == VQKVC_OK && !found &&
        make_plan(p, &bytes, err) == VQKVC_OK)
        keep_plan(p, &bytes, err);
    free(bytes.data);
    if (err->code == VQKVC_OK && vqkvc_interrupted())
        vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted behind the plan");
    p->geometry = p->plan.geometry;
    return err->code;
}

/* ---- header ---- */

void vqkvc_pipeline_command(const vqkvc_options *o, vqkvc_buf *out)
{
    vqkvc_options shown = *o;
    int calibrated = needs_capture(o);
    vqkvc_buf_puts(out, "vqkvc build");
    if (!without_model(o))
        vqkvc_options_canonical_word(vqkvc_base_name(o->args[0]), out);
    vqkvc_scheme_canonical(o, out);
    shown.self = !without_model(o) && o->text.n == 0 && o->tokens.n == 0;
    if (calibrated)
        vqkvc_options_canonical(&shown, vqkvc_options_source, 0, out);
}

vqkvc_code vqkvc_pipeline_emit(vqkvc_pipeline *p, vqkvc_err *err)
{
    vqkvc_buf command = {0};
    vqkvc_pipeline_command(p->options, &command);
    if (command.failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a command line");
    vqkvc_emit_plan(&p->plan, command.data, p->options->prefix, &p->arena, &p->prefix, &p->header,
                    err);
    const char *recipe =
        err->code != VQKVC_OK
            ? NULL
            : vqkvc_arena_printf(&p->arena, err, "header v1;prefix=%s;abi=%d;vqkvc=%s;plan=%s;%s",
                                 p->prefix, GEN_ABI_VERSION, VQKVC_VERSION, p->plan_hash.hex,
                                 command.data);
    free(command.data);
    if (recipe == NULL)
        return err->code;
    return vqkvc_store_keep(p->db, "header", recipe, &p->plan.geometry.weights_hash, 1,
                            &p->plan_hash, &p->header, err);
}

vqkvc_isa vqkvc_isa_of(const vqkvc_options *o)
{
    static const struct {
        const char *word;
        vqkvc_isa isa;
    } words[] = {{"portable", VQKVC_ISA_PORTABLE},
                 {"avx2", VQKVC_ISA_AVX2},
                 {"avx512", VQKVC_ISA_AVX512},
                 {"neon", VQKVC_ISA_NEON},
                 {"neon-dot", VQKVC_ISA_NEON_DOT}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i].word, o->isa) == 0)
            return words[i].isa;
    return VQKVC_ISA_AUTO;
}
