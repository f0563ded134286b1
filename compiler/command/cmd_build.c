/* vqkvc build: from a model to its header in one go. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/describe.h"
#include "command/pipeline.h"
#include "command/time_store.h"
#include "eval/table.h"

enum { COST_CONTEXT = 4096 };

static const vqkvc_option depfile_option[] = {
    {.name = "depfile",
     .arg = "FILE",
     .type = VQKVC_OPT_TEXT,
     .offset = offsetof(vqkvc_options, depfile),
     .is_file = 1,
     .help = "write a rule for make, \"outputs: inputs\" (default: none)"},
    {.name = NULL}};

/* ---- the rule for make ---- */

static void put_make_name(vqkvc_buf *out, const char *path)
{
    for (; *path != '\0'; path++) {
        if (*path == '$')
            vqkvc_buf_puts(out, "$");
        else if (strchr(" #\\:", *path) != NULL)
            vqkvc_buf_puts(out, "\\");
        vqkvc_buf_put(out, path, 1);
    }
}

static vqkvc_code write_depfile(const vqkvc_options *o, const char *output, vqkvc_arena *arena,
                                vqkvc_err *err)
{
    int both = strcmp(o->target, "both") == 0;
    const char *beside = both ? vqkvc_beside_name(output, arena, err) : NULL;
    if (both && beside == NULL)
        return err->code;
    const char *inputs[2 * VQKVC_MAX_WORDS + 2];
    int n = 0;
    vqkvc_buf rule = {0};
    for (int i = 0; i < o->n_args; i++)
        inputs[n++] = o->args[i];
    for (int i = 0; i < o->text.n; i++)
        inputs[n++] = o->text.at[i];
    for (int i = 0; i < o->tokens.n; i++)
        inputs[n++] = o->tokens.at[i];
    if (o->import_path != NULL)
        inputs[n++] = o->import_path;
    put_make_name(&rule, output);
    if (beside != NULL) {
        vqkvc_buf_puts(&rule, " ");
        put_make_name(&rule, beside);
    }
    vqkvc_buf_puts(&rule, ":");
    for (int i = 0; i < n; i++) {
        vqkvc_buf_puts(&rule, " ");
        put_make_name(&rule, inputs[i]);
    }
    vqkvc_buf_puts(&rule, "\n");
    if (rule.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", o->depfile);
    else
        vqkvc_write_file(o->depfile, rule.data, rule.len, err);
    free(rule.data);
    return err->code;
}

/* ---- the summary ---- */

/* ns: of attention by the cost model, negative where that is not known. */
static void put_summary(const vqkvc_pipeline *p, const char *output, double ns, vqkvc_buf *out)
{
    const char *vectors = vqkvc_vectors_word(&p->plan);
    vqkvc_cost cost;
    vqkvc_plan_cost(&p->plan, COST_CONTEXT, &cost);
    vqkvc_buf_printf(out, "%s: scheme %s, prefix %s, %zu bytes (%zu of tables)\n",
                     strcmp(output, "-") == 0 ? "standard output" : output, p->plan.scheme,
                     p->prefix, p->header.len, cost.table_bytes);
    vqkvc_buf_printf(out,
                     "bits a value: codes %.3f + gains %.3f = %.3f; attention reads %.3f; "
                     "everything counted %.3f at %d tokens\n",
                     cost.code_bits, cost.gain_bits, cost.code_bits + cost.gain_bits,
                     cost.scan_bits, cost.total_bits, cost.context);
    if (p->plan.landmarks > 0)
        vqkvc_buf_printf(out, "landmarks of %d tokens: %.3f bits a value\n", p->plan.landmarks,
                         cost.landmark_bits);
    if (p->plan.max_error > 0)
        vqkvc_buf_printf(out, "no vector off by more than %g: %.3f %% kept, %.3f bits a value\n",
                         (double)p->plan.max_error, 100 * p->plan.kept_rate, cost.kept_bits);
    if (strcmp(vectors, "absorbed") == 0)
        vqkvc_buf_puts(out, "attention works on the codes: nothing is rebuilt\n");
    else
        vqkvc_buf_printf(out, "attention rebuilds vectors before queries meet them: %s\n", vectors);
    if (ns >= 0)
        vqkvc_buf_printf(
            out, "attention takes %.1f ns a cached token and KV head by the cost model\n", ns);
    if (p->model_path != NULL && strcmp(output, "-") != 0 &&
        strcmp(p->options->target, "cuda") != 0)
        vqkvc_buf_printf(out, "next: vqkvc eval %s --header %s\n", p->model_path, output);
}

static vqkvc_code put_json_summary(const vqkvc_pipeline *p, const char *output, double ns,
                                   vqkvc_buf *out, vqkvc_err *err)
{
    vqkvc_cost cost;
    vqkvc_plan_cost(&p->plan, COST_CONTEXT, &cost);
    json_t *o = json_object();
    json_object_set_new(o, "header", vqkvc_text_to_json(output));
    json_object_set_new(o, "scheme", vqkvc_text_to_json(p->plan.scheme));
    json_object_set_new(o, "prefix", json_string(p->prefix));
    json_object_set_new(o, "header_bytes", json_integer((json_int_t)p->header.len));
    json_object_set_new(o, "vectors", json_string(vqkvc_vectors_word(&p->plan)));
    json_object_set_new(o, "cost", vqkvc_cost_to_json(&cost));
    if (ns >= 0)
        json_object_set_new(o, "predicted_ns", json_real(ns));
    return vqkvc_put_json(o, out, err);
}

/* To stdout, unless the header goes there. */
static vqkvc_code print_summary(const vqkvc_pipeline *p, const char *output, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    double ns;
    VQKVC_TRY(vqkvc_time_of_plan(p->db, p->options, &p->plan, p->log, &ns, err));
    if (p->options->json)
        put_json_summary(p, output, ns, &text, err);
    else
        put_summary(p, output, ns, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the summary");
    else if (strcmp(output, "-") == 0)
        vqkvc_say(p->log, 0, "%.*s", (int)text.len - 1, text.data);
    else
        fputs(text.data, stdout);
    free(text.data);
    return err->code;
}

/* ---- the command ---- */

static vqkvc_code check_outputs(const vqkvc_options *o, vqkvc_err *err)
{
    if (strcmp(o->target, "both") == 0 && o->output != NULL && strcmp(o->output, "-") == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "build: --target both wants a file for -o, not -");
    if (o->depfile != NULL && o->output != NULL && strcmp(o->output, "-") == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "build: --depfile wants a file for -o, not -");
    VQKVC_TRY(vqkvc_check_output(o->output != NULL ? o->output : "header.h", err));
    return o->depfile != NULL ? vqkvc_check_output(o->depfile, err) : VQKVC_OK;
}

static vqkvc_code build(vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_options *o = p->options;
    VQKVC_TRY(vqkvc_pipeline_plan(p, err));
    VQKVC_TRY(vqkvc_pipeline_emit(p, err));
    const char *output = vqkvc_output_name(o, p->prefix, &p->arena, err);
    if (output == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_check_output(output, err));
    vqkvc_buf command = {0};
    vqkvc_pipeline_command(o, &command);
    if (command.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a command line");
    else
        vqkvc_emit_target(o, &p->plan, command.data, p->prefix, output, &p->arena, &p->header,
                          p->log, err);
    free(command.data);
    if (err->code != VQKVC_OK)
        return err->code;
    VQKVC_TRY(vqkvc_write_file(output, p->header.data, p->header.len, err));
    if (o->depfile != NULL)
        VQKVC_TRY(write_depfile(o, output, &p->arena, err));
    return print_summary(p, output, err);
}

static vqkvc_code run_build(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_pipeline p = {0};
    double start = vqkvc_seconds();
    VQKVC_TRY(check_outputs(o, err));
    if (vqkvc_pipeline_open(&p, o, 0, log, err) == VQKVC_OK && build(&p, err) == VQKVC_OK)
        vqkvc_say(log, 0, "build: %.1f s", vqkvc_seconds() - start);
    vqkvc_pipeline_close(&p, err);
    return err->code;
}

const vqkvc_command vqkvc_command_build = {
    .name = "build",
    .usage = "MODEL.gguf [option...]",
    .summary = "make the header of a model: capture, fit, plan and emit in one go",
    .about =
        "Runs the model over calibration text, learns how its keys and values can be kept in few "
        "bits, and writes one C header. Each step is looked up in the store first, so that an "
        "interrupted build goes on where it was; what is found there is said on the log.\n"
        "The same inputs give the same bytes, for any number of threads.",
    .examples = "  vqkvc build model.gguf --bits 2 -o model_kv.h\n"
                "  vqkvc build model.gguf --text corpus.txt --n-tokens 100000\n"
                "  vqkvc build model.gguf --scheme q8_0 --prefix mine -o - | less\n",
    .min_args = 0, /* none with --import */
    .max_args = 1,
    .groups = {vqkvc_options_scheme, vqkvc_options_source, vqkvc_options_emit, depfile_option,
               vqkvc_options_json, vqkvc_options_store, vqkvc_options_general},
    .run = run_build};
