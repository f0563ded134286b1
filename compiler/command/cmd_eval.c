/* vqkvc eval: the table. Headers and baselines go the same way: emitted, compiled, loaded, run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command/commands.h"
#include "command/eval_text.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "command/schemes.h"
#include "command/stored.h"
#include "eval/table.h"

enum { MAX_SUBJECTS = 64, DEFAULT_CONTEXT = 1024, FIRST_COUNTED = 128 };

/* Tokens that share a landmark where --top-tokens asks for some. */
enum { CHUNK = 8 };

/* One scheme under test. */
typedef struct subject {
    char name[96];
    vqkvc_options options; /* of a baseline, as a build has them */
    vqkvc_codec codec;
    int top_tokens; /* that attention goes to; codec and plan are subject plan_of's then */
    int plan_of;
    vqkvc_plan plan; /* n_streams 0: not known */
    vqkvc_cost cost;
    vqkvc_hash plan_hash; /* recipe hash; empty: not in the store */
    vqkvc_measured measured;
    vqkvc_timing timing;
} subject;

typedef struct evaluation {
    const vqkvc_options *options;
    const vqkvc_log *log;
    vqkvc_arena arena;
    vqkvc_model *model;
    kvdb *db;                /* NULL: none */
    int keeps;               /* results go into it */
    vqkvc_pipeline pipeline; /* of the baselines */
    int context;
    int32_t *windows; /* [options->windows, context] */
    char text[256];   /* what they are, for the caption */
    vqkvc_hash text_hash;
    int n;
    subject *subjects; /* [MAX_SUBJECTS] */
    vqkvc_speed speed;
} evaluation;

/* ---- what is measured ---- */

static subject *add_subject(evaluation *e, vqkvc_err *err)
{
    if (e->n < MAX_SUBJECTS)
        return &e->subjects[e->n++];
    vqkvc_fail(err, VQKVC_E_USAGE, "eval: more than %d headers and schemes", MAX_SUBJECTS);
    return NULL;
}

/* Looks for the header's plan in the store, for its name and cost. A header whose plan is not there
 * is measured as well. */
static void find_plan(evaluation *e, subject *s)
{
    vqkvc_err ignored = {0};
    if (e->db == NULL || vqkvc_stored_plan_by_content(e->db, s->codec.table->codec, &s->plan,
                                                      &s->plan_hash, &ignored) != VQKVC_OK)
        return;
    if (e->options->headers.n == 1)
        snprintf(s->name, sizeof s->name, "%s", s->plan.scheme);
}

static vqkvc_code add_headers(evaluation *e, vqkvc_err *err)
{
    const vqkvc_words *files = &e->options->headers;
    for (int i = 0; i < files->n; i++) {
        subject *s = add_subject(e, err);
        if (s == NULL)
            return err->code;
        snprintf(s->name, sizeof s->name, "%.90s", vqkvc_base_name(files->at[i]));
        VQKVC_TRY(vqkvc_codec_load_file(&s->codec, files->at[i], err));
        VQKVC_TRY(vqkvc_codec_check(&s->codec, files->at[i], vqkvc_model_geometry(e->model), err));
        find_plan(e, s);
        if (e->keeps && s->plan_hash.hex[0] == '\0')
            vqkvc_say(e->log, 0, "%s: its plan is not in %s, so its evaluation is not kept",
                      files->at[i], vqkvc_store_path(e->options));
    }
    return VQKVC_OK;
}

/* The options of `vqkvc build MODEL --scheme WORD`, calibrated on --calibrate, so that a build and
 * an evaluation find each other's work in the store. */
static vqkvc_code build_options(evaluation *e, const char *word, double bound, vqkvc_options *made,
                                vqkvc_err *err)
{
    const vqkvc_options *o = e->options;
    char **words = vqkvc_arena_alloc(&e->arena, 2, sizeof *words, err); /* options point into it */
    if (words == NULL)
        return err->code;
    words[0] = vqkvc_arena_strndup(&e->arena, "build", 5, err);
    words[1] = o->args[0];
    if (words[0] == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_options_parse(&vqkvc_command_build, 2, words, made, err));
    VQKVC_TRY(vqkvc_scheme_apply(word, made, err));
    made->db = o->db;
    made->no_db = !e->keeps;
    made->text = o->calibrate;
    made->n_tokens = o->n_tokens;
    made->landmarks = o->top_tokens > 0 ? CHUNK : 0;
    made->max_error = bound;
    return VQKVC_OK;
}

/* Plan, header and codec of a scheme as a build of it would make them; one capture serves all. */
static vqkvc_code load_baseline(evaluation *e, subject *s, const char *word, double bound,
                                vqkvc_err *err)
{
    vqkvc_pipeline *p = &e->pipeline;
    VQKVC_TRY(build_options(e, word, bound, &s->options, err));
    if (p->options == NULL)
        VQKVC_TRY(vqkvc_pipeline_open(p, &s->options, 0, e->log, err));
    else
        VQKVC_TRY(vqkvc_pipeline_next(p, &s->options, err));
    VQKVC_TRY(vqkvc_pipeline_plan(p, err));
    VQKVC_TRY(vqkvc_pipeline_emit(p, err));
    VQKVC_TRY(vqkvc_codec_load(&s->codec, s->name, p->header.data, p->header.len, err));
    s->plan = p->plan;
    p->plan = (vqkvc_plan){0};
    if (e->keeps)
        s->plan_hash = p->plan_hash;
    return VQKVC_OK;
}

static vqkvc_code add_baseline(evaluation *e, const char *word, double bound, vqkvc_err *err)
{
    subject *s = add_subject(e, err);
    if (s == NULL)
        return err->code;
    snprintf(s->name, sizeof s->name, bound > 0 ? "%s bound %g" : "%s", word, bound);
    return load_baseline(e, s, word, bound, err);
}

/* Every codec with landmarks once more, attended in part. */
static vqkvc_code add_choosers(evaluation *e, vqkvc_err *err)
{
    int n = e->n, top = e->options->top_tokens, some = 0;
    for (int i = 0; i < n && top > 0; i++) {
        if (e->subjects[i].codec.table->landmarks == 0)
            continue;
        subject *s = add_subject(e, err);
        if (s == NULL)
            return err->code;
        const char *name =
            vqkvc_arena_printf(&e->arena, err, "%s top %d", e->subjects[i].name, top);
        if (name == NULL)
            return err->code;
        snprintf(s->name, sizeof s->name, "%s", name);
        s->codec = e->subjects[i].codec;
        s->top_tokens = top;
        s->plan_of = i;
        some = 1;
    }
    if (top > 0 && !some)
        return vqkvc_fail(err, VQKVC_E_USAGE, "--top-tokens: no header has landmarks");
    return VQKVC_OK;
}

static vqkvc_code add_baselines(evaluation *e, vqkvc_err *err)
{
    const char *names = e->options->schemes;
    if (strcmp(names, "none") == 0)
        return VQKVC_OK;
    while (*names != '\0') {
        size_t n = strcspn(names, ",");
        char word[65];
        snprintf(word, sizeof word, "%.*s", (int)(n < 64 ? n : 64), names);
        VQKVC_TRY(add_baseline(e, word, 0, err));
        if (e->options->max_error > 0)
            VQKVC_TRY(add_baseline(e, word, e->options->max_error, err));
        names += n + (names[n] == ',');
    }
    return VQKVC_OK;
}

/* ---- measuring ---- */

static vqkvc_code choose_text(evaluation *e, vqkvc_err *err)
{
    const vqkvc_options *o = e->options;
    int trained = vqkvc_model_geometry(e->model)->n_ctx_train;
    e->context = trained > 0 && trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
    e->context = o->context > 0 ? o->context : e->context;
    if (trained > 0 && e->context > trained && o->text.n == 0 && o->tokens.n == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--context is %d, but the model was trained for %d tokens: it cannot "
                          "sample such a text itself (give one with --text)",
                          e->context, trained);
    size_t n = (size_t)o->windows * (size_t)e->context;
    e->windows = vqkvc_alloc(n, sizeof *e->windows, err);
    if (e->windows == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_eval_text(e->model, o, e->context, e->log, e->windows, e->text, err));
    vqkvc_hash ids = vqkvc_hash_bytes(e->windows, n * sizeof *e->windows);
    const char *what =
        vqkvc_arena_printf(&e->arena, err, "eval v1;ids=%s;windows=%d;context=%d;step=%d", ids.hex,
                           o->windows, e->context, o->step);
    if (what != NULL)
        e->text_hash = vqkvc_hash_text(what);
    return err->code;
}

static vqkvc_code time_subjects(evaluation *e, const vqkvc_subject *under_test, vqkvc_err *err)
{
    double scan_bits[MAX_SUBJECTS];
    vqkvc_timing timings[MAX_SUBJECTS];
    vqkvc_speed_options options = {.seed = e->options->seed, .log = e->log};
    for (int i = 0; i < e->n; i++)
        scan_bits[i] = e->subjects[i].cost.scan_bits;
    VQKVC_TRY(vqkvc_speed_measure(vqkvc_model_geometry(e->model), e->n, under_test, scan_bits,
                                  &options, timings, &e->speed, err));
    for (int i = 0; i < e->n; i++)
        e->subjects[i].timing = timings[i];
    return VQKVC_OK;
}

static const vqkvc_plan *plan_of(const evaluation *e, const subject *s)
{
    return s->top_tokens > 0 ? &e->subjects[s->plan_of].plan : &s->plan;
}

static vqkvc_code measure(evaluation *e, vqkvc_err *err)
{
    vqkvc_subject under_test[MAX_SUBJECTS];
    vqkvc_measure_options options = {.context = e->context,
                                     .n_windows = e->options->windows,
                                     .step = e->options->step,
                                     .first_counted = FIRST_COUNTED,
                                     .watch = e->options->max_error > 0,
                                     .probe = e->options->layers,
                                     .log = e->log};
    vqkvc_measured *results = vqkvc_alloc((size_t)e->n, sizeof *results, err);
    if (results == NULL)
        return err->code;
    for (int i = 0; i < e->n; i++) {
        subject *s = &e->subjects[i];
        under_test[i] = (vqkvc_subject){s->name, &s->codec, s->top_tokens};
        const vqkvc_plan *plan = plan_of(e, s);
        if (plan->n_streams > 0)
            vqkvc_plan_cost(plan, e->context, &s->cost);
    }
    if (vqkvc_measure(e->model, e->windows, e->n, under_test, &options, results, err) == VQKVC_OK)
        for (int i = 0; i < e->n; i++)
            e->subjects[i].measured = results[i];
    free(results);
    if (err->code == VQKVC_OK && e->options->speed)
        time_subjects(e, under_test, err);
    return err->code;
}

/* ---- results ---- */

static vqkvc_table_info table_info(const evaluation *e)
{
    const char *name = vqkvc_model_geometry(e->model)->name;
    return (vqkvc_table_info){.model =
                                  name[0] != '\0' ? name : vqkvc_base_name(e->options->args[0]),
                              .text = e->text,
                              .context = e->context,
                              .n_windows = e->options->windows,
                              .step = e->options->step,
                              .first_counted = FIRST_COUNTED,
                              .speed = e->options->speed ? &e->speed : NULL};
}

static vqkvc_row table_row(const evaluation *e, const subject *s)
{
    return (vqkvc_row){.scheme = s->name,
                       .measured = &s->measured,
                       .cost = s->cost.context > 0 ? &s->cost : NULL,
                       .codec = &s->codec,
                       .timing = e->options->speed ? &s->timing : NULL,
                       .vectors = s->cost.context > 0 ? vqkvc_vectors_word(plan_of(e, s)) : NULL};
}

static vqkvc_code print_results(const evaluation *e, vqkvc_err *err)
{
    vqkvc_row rows[MAX_SUBJECTS];
    vqkvc_table_info info = table_info(e);
    vqkvc_buf text = {0};
    for (int i = 0; i < e->n; i++)
        rows[i] = table_row(e, &e->subjects[i]);
    if (e->options->json)
        vqkvc_table_json(&info, rows, e->n, &text, err);
    else if (e->options->markdown)
        vqkvc_table_markdown(&info, rows, e->n, &text);
    else if (e->options->figures)
        vqkvc_table_figures(&info, rows, e->n, &text);
    else
        vqkvc_table_text(&info, rows, e->n, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the table");
    if (err->code == VQKVC_OK)
        fputs(text.data, stdout);
    free(text.data);
    return err->code;
}

static vqkvc_code keep_results(const evaluation *e, vqkvc_err *err)
{
    vqkvc_table_info info = table_info(e);
    for (int i = 0; i < e->n && err->code == VQKVC_OK; i++) {
        const subject *s = &e->subjects[i];
        vqkvc_row row = table_row(e, s);
        vqkvc_buf json = {0};
        if (s->plan_hash.hex[0] != '\0' && vqkvc_table_json(&info, &row, 1, &json, err) == VQKVC_OK)
            kvdb_put_evaluation(
                e->db, &(kvdb_evaluation){s->plan_hash, e->text_hash, s->name, json.data}, err);
        free(json.data);
    }
    return err->code;
}

/* ---- the command ---- */

/* Results are kept where --db names a store; otherwise the usual one is read, if it is there, for
 * what it knows of the headers. */
static vqkvc_code open_store(evaluation *e, vqkvc_err *err)
{
    vqkvc_err ignored = {0};
    e->keeps = e->options->db != NULL;
    if (e->keeps) {
        VQKVC_TRY(vqkvc_store_open(&e->db, e->options, KVDB_READ_WRITE, err));
        return vqkvc_store_keep_model(e->db, vqkvc_model_geometry(e->model), err);
    }
    if (!e->options->no_db && access(vqkvc_store_path(e->options), F_OK) == 0)
        vqkvc_store_open(&e->db, e->options, KVDB_READ_ONLY, &ignored);
    return VQKVC_OK;
}

static vqkvc_code evaluate(evaluation *e, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_model_open(&e->model, e->options->args[0], 0, err));
    VQKVC_TRY(open_store(e, err));
    e->subjects = vqkvc_alloc(MAX_SUBJECTS, sizeof *e->subjects, err);
    if (e->subjects == NULL)
        return err->code;
    VQKVC_TRY(add_headers(e, err));
    VQKVC_TRY(add_baselines(e, err));
    VQKVC_TRY(add_choosers(e, err));
    if (e->n == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "eval: neither --header nor --schemes to measure");
    VQKVC_TRY(choose_text(e, err));
    VQKVC_TRY(measure(e, err));
    VQKVC_TRY(print_results(e, err));
    return e->keeps ? keep_results(e, err) : VQKVC_OK;
}

static vqkvc_code run_eval(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    evaluation e = {.options = o, .log = log};
    if (o->json + o->markdown + o->figures > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "eval: --json, --markdown and --figures exclude each other");
    evaluate(&e, err);
    for (int i = 0; i < e.n; i++) {
        if (e.subjects[i].top_tokens == 0)
            vqkvc_codec_free(&e.subjects[i].codec);
        vqkvc_plan_free(&e.subjects[i].plan);
    }
    vqkvc_pipeline_close(&e.pipeline, err);
    free(e.subjects);
    free(e.windows);
    vqkvc_model_close(e.model);
    kvdb_close(e.db);
    vqkvc_arena_free(&e.arena);
    return err->code;
}

const vqkvc_command vqkvc_command_eval = {
    .name = "eval",
    .usage = "MODEL.gguf [--header FILE...] [option...]",
    .summary = "measure what headers and baselines cost: fidelity, bits, speed",
    .about =
        "Compiles each header and runs the model through it, teacher-forced over windows of text, "
        "next to an exact cache: mean KL divergence, perplexity ratio, top-1 agreement, worst "
        "token, bits a value with everything counted. A header is code: measure only one that you "
        "would also compile and run.\n"
        "With --db the results are kept in that store as well.",
    .examples = "  vqkvc eval model.gguf --header model_kv.h\n"
                "  vqkvc eval model.gguf --header model_kv.h --text held_out.txt --speed\n"
                "  vqkvc eval model.gguf --schemes q8_0,q4_0 --windows 2 --json\n",
    .min_args = 1,
    .max_args = 1,
    .groups = {vqkvc_options_eval, vqkvc_options_measure, vqkvc_options_run, vqkvc_options_json,
               vqkvc_options_store, vqkvc_options_general},
    .run = run_eval};
