/* vqkvc suite: the fidelity table. auto at many rates and the baselines, each built as `vqkvc
 * build` would build it, measured on several texts and contexts. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/eval_text.h"
#include "command/pipeline.h"
#include "eval/plot.h"
#include "eval/table.h"

enum {
    MAX_SCHEMES = 64,
    DEFAULT_CONTEXT = 1024,
    FIRST_COUNTED = 128,
    COMPILERS = 4, /* at once: each may take a few hundred MB */
    WORD = 64
};

/* Bytes that the caches and logits of one window may take before schemes are measured in groups. */
#define GROUP_BYTES (1024.0 * 1024 * 1024)

static const int LONG_CONTEXTS[] = {4096, 8192};

/* One scheme under test. */
typedef struct scheme {
    const char *family;    /* "auto", or NULL: a baseline, by itself */
    vqkvc_options options; /* as a build has them */
    vqkvc_plan plan;
    vqkvc_buf header; /* until it is compiled */
    vqkvc_codec codec;
} scheme;

/* One text at one context. */
typedef struct passage {
    vqkvc_options options; /* of the text alone */
    int context;
    int32_t *windows; /* [options.windows, context] */
    char name[256];
    vqkvc_measured *measured; /* [n schemes] */
    vqkvc_cost *costs;        /* [n schemes] */
} passage;

typedef struct suite {
    const vqkvc_options *options;
    const vqkvc_log *log;
    vqkvc_arena arena;
    vqkvc_pipeline pipeline;
    int n, n_passages;
    scheme *schemes;   /* [MAX_SCHEMES] */
    passage *passages; /* [n_passages] */
    vqkvc_buf csv;
} suite;

/* ---- what is built ---- */

/* The options of `vqkvc build MODEL NAME VALUE`, so that both find each other's work in the store.
 */
static vqkvc_code add_scheme(suite *s, const char *option, const char *value, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    char *argv[] = {vqkvc_arena_strndup(&s->arena, "build", 5, err), o->args[0],
                    vqkvc_arena_printf(&s->arena, err, "--%s=%s", option, value)};
    char **words = vqkvc_arena_alloc(&s->arena, 3, sizeof *words, err);
    if (err->code != VQKVC_OK)
        return err->code;
    if (s->n == MAX_SCHEMES)
        return vqkvc_fail(err, VQKVC_E_USAGE, "suite: more than %d rates and schemes", MAX_SCHEMES);
    memcpy(words, argv, sizeof argv); /* the options point into it */
    scheme *to = &s->schemes[s->n];
    VQKVC_TRY(vqkvc_options_parse(&vqkvc_command_build, 3, words, &to->options, err));
    vqkvc_options *made = &to->options;
    made->given = 0;
    made->db = o->db;
    made->no_db = o->no_db;
    made->text = o->calibrate;
    made->n_tokens = o->n_tokens;
    made->seed = o->seed;
    if (strcmp(made->scheme, "auto") == 0) {
        to->family = "auto";
        made->max_scan = o->max_scan;
    }
    s->n++;
    return VQKVC_OK;
}

/* Adds each word of a list with commas. */
static vqkvc_code add_list(suite *s, const char *list, const char *option, vqkvc_err *err)
{
    char word[WORD];
    if (strcmp(list, "none") == 0)
        return VQKVC_OK;
    while (*list != '\0') {
        size_t n = strcspn(list, ",");
        if (n == 0 || n >= WORD)
            return vqkvc_fail(err, VQKVC_E_USAGE, "suite: '%.80s' is no list of words with commas",
                              list);
        snprintf(word, sizeof word, "%.*s", (int)n, list);
        VQKVC_TRY(add_scheme(s, option, word, err));
        list += n + (list[n] == ',');
    }
    return VQKVC_OK;
}

static vqkvc_code choose_schemes(suite *s, vqkvc_err *err)
{
    s->schemes = vqkvc_alloc(MAX_SCHEMES, sizeof *s->schemes, err);
    if (s->schemes == NULL)
        return err->code;
    if (add_list(s, s->options->rates, "bits", err) != VQKVC_OK) {
        vqkvc_err_prefix(err, "--rates");
        return err->code;
    }
    VQKVC_TRY(add_list(s, s->options->schemes, "scheme", err));
    if (s->n == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "suite: neither --rates nor --schemes to measure");
    return VQKVC_OK;
}

/* Plan and header, which move from the pipeline into the scheme. */
static vqkvc_code make_header(vqkvc_pipeline *p, scheme *s, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_pipeline_plan(p, err));
    VQKVC_TRY(vqkvc_pipeline_emit(p, err));
    s->plan = p->plan;
    s->header = p->header;
    p->plan = (vqkvc_plan){0};
    p->header = (vqkvc_buf){0};
    return VQKVC_OK;
}

static vqkvc_code compile(suite *s, vqkvc_err *err)
{
    double start = vqkvc_seconds();
    vqkvc_err *errs = vqkvc_alloc((size_t)s->n, sizeof *errs, err);
    if (errs == NULL)
        return err->code;
    int at_once = omp_get_max_threads() < COMPILERS ? omp_get_max_threads() : COMPILERS;
#pragma omp parallel for schedule(dynamic) num_threads(at_once)
    for (int i = 0; i < s->n; i++) {
        scheme *one = &s->schemes[i];
        if (!vqkvc_interrupted())
            vqkvc_codec_load(&one->codec, one->plan.scheme, one->header.data, one->header.len,
                             &errs[i]);
        free(one->header.data);
        one->header = (vqkvc_buf){0};
    }
    for (int i = 0; i < s->n; i++)
        if (errs[i].code != VQKVC_OK)
            vqkvc_fail(err, errs[i].code, "%s", errs[i].msg);
    free(errs);
    if (vqkvc_interrupted())
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while compiling headers");
    vqkvc_say(s->log, 0, "compile: %d headers in %.1f s", s->n, vqkvc_seconds() - start);
    return err->code;
}

static vqkvc_code build_all(suite *s, vqkvc_err *err)
{
    vqkvc_pipeline *p = &s->pipeline;
    for (int i = 0; i < s->n; i++) {
        if (i > 0)
            VQKVC_TRY(vqkvc_pipeline_next(p, &s->schemes[i].options, err));
        VQKVC_TRY(make_header(p, &s->schemes[i], err));
    }
    vqkvc_capture_free(&p->capture);
    p->capture = (vqkvc_capture){0};
    return compile(s, err);
}

/* ---- what it is measured on ---- */

static int context_of(const suite *s)
{
    int trained = s->pipeline.geometry.n_ctx_train;
    if (s->options->context > 0)
        return s->options->context;
    return trained > 0 && trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
}

/* text, tokens: a file, or NULL; the model's own samples if both are. */
static vqkvc_code add_passage(suite *s, const char *text, const char *tokens, int n_windows,
                              int context, vqkvc_err *err)
{
    passage *to = &s->passages[s->n_passages];
    to->options = (vqkvc_options){.windows = n_windows, .seed = s->options->seed};
    to->options.text.n = text != NULL;
    to->options.text.at[0] = text;
    to->options.tokens.n = tokens != NULL;
    to->options.tokens.at[0] = tokens;
    to->context = context;
    to->windows =
        vqkvc_arena_alloc(&s->arena, (size_t)n_windows * (size_t)context, sizeof *to->windows, err);
    to->measured = vqkvc_arena_alloc(&s->arena, (size_t)s->n, sizeof *to->measured, err);
    to->costs = vqkvc_arena_alloc(&s->arena, (size_t)s->n, sizeof *to->costs, err);
    if (err->code != VQKVC_OK)
        return err->code;
    s->n_passages++;
    return vqkvc_eval_text(s->pipeline.model, &to->options, context, s->log, to->windows, to->name,
                           err);
}

static vqkvc_code choose_passages(suite *s, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    int context = context_of(s);
    s->passages = vqkvc_alloc(2 * VQKVC_MAX_WORDS + 3, sizeof *s->passages, err);
    if (s->passages == NULL)
        return err->code;
    if (context < FIRST_COUNTED + 2)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "suite: a context of %d tokens; positions count from %d on: at least %d",
                          context, FIRST_COUNTED, FIRST_COUNTED + 2);
    for (int i = 0; i < o->text.n; i++)
        VQKVC_TRY(add_passage(s, o->text.at[i], NULL, o->windows, context, err));
    for (int i = 0; i < o->tokens.n; i++)
        VQKVC_TRY(add_passage(s, NULL, o->tokens.at[i], o->windows, context, err));
    if (s->n_passages == 0 && o->long_text == NULL)
        VQKVC_TRY(add_passage(s, NULL, NULL, o->windows, context, err));
    for (size_t i = 0; o->long_text != NULL && i < sizeof LONG_CONTEXTS / sizeof *LONG_CONTEXTS;
         i++)
        VQKVC_TRY(add_passage(s, o->long_text, NULL, 1, LONG_CONTEXTS[i], err));
    return VQKVC_OK;
}

/* ---- measuring ---- */

/* The end of the group of schemes from `first` on whose caches fit GROUP_BYTES, one at least. Every
 * group runs the exact cache again, which gives the same bits. */
static vqkvc_code find_group(const suite *s, const passage *at, int first, int *end, vqkvc_err *err)
{
    const vqkvc_geometry *g = &s->pipeline.geometry;
    double logits = 4.0 * s->options->step * vqkvc_model_vocab_size(s->pipeline.model);
    double used = 8.0 * at->context * g->n_layers * g->n_kv_heads * g->head_dim + 3 * logits;
    for (*end = first; *end < s->n; ++*end) {
        const scheme *one = &s->schemes[*end];
        size_t bytes;
        VQKVC_TRY(vqkvc_cache_header_size(&one->codec, one->plan.scheme, 1, at->context,
                                          s->options->step, &bytes, err));
        used += (double)bytes + logits;
        if (used > GROUP_BYTES && *end > first)
            return VQKVC_OK;
    }
    return VQKVC_OK;
}

static vqkvc_code measure(suite *s, passage *at, vqkvc_err *err)
{
    vqkvc_subject subjects[MAX_SCHEMES];
    vqkvc_measure_options options = {.context = at->context,
                                     .n_windows = at->options.windows,
                                     .step = s->options->step,
                                     .first_counted = FIRST_COUNTED,
                                     .isa = vqkvc_isa_of(s->options),
                                     .log = s->log};
    for (int i = 0; i < s->n; i++) {
        subjects[i] = (vqkvc_subject){s->schemes[i].plan.scheme, &s->schemes[i].codec};
        vqkvc_plan_cost(&s->schemes[i].plan, at->context, &at->costs[i]);
    }
    vqkvc_say(s->log, 0, "%s, context %d", at->name, at->context);
    for (int first = 0, end; first < s->n; first = end) {
        VQKVC_TRY(find_group(s, at, first, &end, err));
        VQKVC_TRY(vqkvc_measure(s->pipeline.model, at->windows, end - first, subjects + first,
                                &options, at->measured + first, err));
    }
    return VQKVC_OK;
}

/* ---- results ---- */

static const char *model_name(const suite *s)
{
    const char *name = s->pipeline.geometry.name;
    return name[0] != '\0' ? name : vqkvc_base_name(s->options->args[0]);
}

/* A passage's rows, to the CSV and, as they come, to stdout. */
static vqkvc_code report(suite *s, const passage *at, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    int is_first = at == s->passages;
    vqkvc_row rows[MAX_SCHEMES];
    vqkvc_buf text = {0};
    vqkvc_table_info info = {.model = model_name(s),
                             .text = at->name,
                             .context = at->context,
                             .n_windows = at->options.windows,
                             .step = o->step,
                             .first_counted = FIRST_COUNTED};
    for (int i = 0; i < s->n; i++)
        rows[i] = (vqkvc_row){.scheme = s->schemes[i].plan.scheme,
                              .measured = &at->measured[i],
                              .cost = &at->costs[i],
                              .codec = &s->schemes[i].codec};
    vqkvc_table_csv(&info, rows, s->n, is_first, &s->csv);
    if (o->figures && is_first)
        vqkvc_table_figures(&info, rows, s->n, &text);
    else if (!o->figures && (o->csv == NULL || strcmp(o->csv, "-") != 0)) {
        vqkvc_buf_puts(&text, is_first ? "" : "\n");
        vqkvc_table_text(&info, rows, s->n, &text);
    }
    if (text.failed || s->csv.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the table");
    else if (text.data != NULL) {
        fputs(text.data, stdout);
        fflush(stdout);
    }
    free(text.data);
    return err->code;
}

static vqkvc_code draw(suite *s, vqkvc_err *err)
{
    const passage *at = &s->passages[0];
    vqkvc_plot_point points[MAX_SCHEMES];
    vqkvc_buf svg = {0};
    const char *title =
        vqkvc_arena_printf(&s->arena, err, "%s on %s, %d windows of %d tokens", model_name(s),
                           at->name, at->options.windows, at->context);
    if (title == NULL)
        return err->code;
    for (int i = 0; i < s->n; i++)
        points[i] = (vqkvc_plot_point){.label = s->schemes[i].plan.scheme,
                                       .family = s->schemes[i].family,
                                       .x = at->costs[i].code_bits + at->costs[i].gain_bits,
                                       .y = at->measured[i].late.kl};
    vqkvc_plot plot = {.title = title,
                       .x_title = "bits a value: codes and gains",
                       .y_title = "mean KL to the exact cache, nats"};
    vqkvc_plot_svg(&plot, points, s->n, &svg);
    if (svg.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", s->options->svg);
    else
        vqkvc_write_file(s->options->svg, svg.data, svg.len, err);
    free(svg.data);
    return err->code;
}

/* ---- the command ---- */

static vqkvc_code check_outputs(const vqkvc_options *o, vqkvc_err *err)
{
    int csv_to_stdout = o->csv != NULL && strcmp(o->csv, "-") == 0;
    if (csv_to_stdout + (o->svg != NULL && strcmp(o->svg, "-") == 0) + o->figures > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "suite: --csv -, --svg - and --figures exclude each other");
    if (o->csv != NULL)
        VQKVC_TRY(vqkvc_check_output(o->csv, err));
    return o->svg != NULL ? vqkvc_check_output(o->svg, err) : VQKVC_OK;
}

static vqkvc_code run_all(suite *s, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    VQKVC_TRY(check_outputs(o, err));
    VQKVC_TRY(choose_schemes(s, err));
    VQKVC_TRY(vqkvc_pipeline_open(&s->pipeline, &s->schemes[0].options, 0, s->log, err));
    /* Before hours are spent: a text that is missing or too short. */
    VQKVC_TRY(choose_passages(s, err));
    VQKVC_TRY(build_all(s, err));
    for (int i = 0; i < s->n_passages; i++) {
        VQKVC_TRY(measure(s, &s->passages[i], err));
        VQKVC_TRY(report(s, &s->passages[i], err));
    }
    if (o->csv != NULL)
        VQKVC_TRY(vqkvc_write_file(o->csv, s->csv.data, s->csv.len, err));
    return o->svg != NULL ? draw(s, err) : VQKVC_OK;
}

static vqkvc_code run_suite(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    suite s = {.options = o, .log = log};
    double start = vqkvc_seconds();
    if (run_all(&s, err) == VQKVC_OK)
        vqkvc_say(log, 0, "suite: %.1f s", vqkvc_seconds() - start);
    for (int i = 0; i < s.n; i++) {
        vqkvc_codec_free(&s.schemes[i].codec);
        vqkvc_plan_free(&s.schemes[i].plan);
        free(s.schemes[i].header.data);
    }
    if (s.pipeline.options != NULL)
        vqkvc_pipeline_close(&s.pipeline, err);
    free(s.schemes);
    free(s.passages);
    free(s.csv.data);
    vqkvc_arena_free(&s.arena);
    return err->code;
}

const vqkvc_command vqkvc_command_suite = {
    .name = "suite",
    .usage = "MODEL.gguf [option...]",
    .summary = "the fidelity table: auto at many rates next to the baselines",
    .about =
        "Builds auto at every rate and the baselines, as `vqkvc build` would (one capture serves "
        "all, and the store keeps it), and measures all of them on every text: mean KL divergence "
        "from the exact cache, perplexity ratio, top-1 agreement, worst token, bits a value with "
        "everything counted.\n"
        "The first text is the one that is drawn.",
    .examples = "  vqkvc suite model.gguf --text books.txt --text wiki.txt --csv table.csv\n"
                "  vqkvc suite model.gguf --rates 1,2 --schemes higgs2 --svg fidelity.svg\n"
                "  vqkvc suite model.gguf --text books.txt --long book.txt\n",
    .min_args = 1,
    .max_args = 1,
    .groups = {vqkvc_options_suite, vqkvc_options_store, vqkvc_options_general},
    .run = run_suite};
