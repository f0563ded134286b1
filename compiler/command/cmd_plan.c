/* vqkvc plan: everything but the header, for people to read. */
#include <stdio.h>
#include <stdlib.h>

#include "command/commands.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "command/report.h"
#include "command/stored.h"
#include "command/time_store.h"

static const vqkvc_option show_option[] = {
    {.name = "show",
     .arg = "ID",
     .type = VQKVC_OPT_TEXT,
     .offset = offsetof(vqkvc_options, show),
     .help = "print a plan of the store, by row id or beginning of a hash (default: none)"},
    {.name = NULL}};

/* The plan's JSON with the report, if there is one, and its predicted time, if that is known, as
 * further fields. */
static vqkvc_code put_json(const vqkvc_plan *plan, json_t *report, double ns, vqkvc_buf *out,
                           vqkvc_err *err)
{
    vqkvc_buf plain = {0};
    int more = json_array_size(report) > 0 || ns >= 0;
    VQKVC_TRY(vqkvc_plan_json(plan, more ? &plain : out, err));
    if (!more)
        return VQKVC_OK;
    json_t *all = json_loadb(plain.data, plain.len, 0, NULL);
    if (json_array_size(report) > 0)
        json_object_set(all, "report", report);
    if (ns >= 0)
        json_object_set_new(all, "predicted_ns", json_real(ns));
    char *text = json_dumps(all, JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (text != NULL)
        vqkvc_buf_puts(out, text);
    else
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for JSON");
    free(text);
    json_decref(all);
    free(plain.data);
    return err->code;
}

/* report may be NULL; ns: of attention by the cost model, negative where that is not known. */
static vqkvc_code print_plan(const vqkvc_plan *plan, json_t *report, double ns, int json,
                             vqkvc_err *err)
{
    vqkvc_buf text = {0};
    if (json) {
        put_json(plan, report, ns, &text, err);
    } else {
        vqkvc_plan_print(plan, &text);
        if (ns >= 0)
            vqkvc_buf_printf(
                &text, "attention by the cost model: %.2f ns a cached token and KV head\n", ns);
        vqkvc_report_print(report, &text);
    }
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the text of a plan");
    if (err->code == VQKVC_OK)
        printf("%s%s", text.data, text.len > 0 && text.data[text.len - 1] == '\n' ? "" : "\n");
    free(text.data);
    return err->code;
}

static vqkvc_code show_plan(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    kvdb *db = NULL;
    vqkvc_plan plan = {0};
    json_t *report = NULL;
    double ns;
    if (o->n_args > 0 || o->no_db)
        return vqkvc_fail(err, VQKVC_E_USAGE, "plan: --show takes neither a model nor --no-db");
    if (vqkvc_store_open(&db, o, KVDB_READ_ONLY, err) == VQKVC_OK &&
        vqkvc_stored_plan(db, o->show, &plan, NULL, NULL, err) == VQKVC_OK &&
        vqkvc_stored_report(db, o->show, &report, err) == VQKVC_OK &&
        vqkvc_time_of_plan(db, o, &plan, log, &ns, err) == VQKVC_OK)
        print_plan(&plan, report, ns, o->json, err);
    json_decref(report);
    vqkvc_plan_free(&plan);
    kvdb_close(db);
    return err->code;
}

static vqkvc_code run_plan(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_pipeline p = {0};
    double ns;
    if (o->show != NULL)
        return show_plan(o, log, err);
    if (vqkvc_pipeline_open(&p, o, 0, log, err) == VQKVC_OK &&
        vqkvc_pipeline_plan(&p, err) == VQKVC_OK &&
        vqkvc_time_of_plan(p.db, p.options, &p.plan, log, &ns, err) == VQKVC_OK)
        print_plan(&p.plan, p.report, ns, o->json, err);
    vqkvc_pipeline_close(&p, err);
    return err->code;
}

const vqkvc_command vqkvc_command_plan = {
    .name = "plan",
    .usage = "MODEL.gguf [option...] | --show ID [option...]",
    .summary = "make a plan and print it, or print one of the store",
    .about = "A plan says all that a header does: streams of codes, their tables, and what they "
             "cost. `vqkvc emit` turns one of the store into a header.",
    .examples = "  vqkvc plan model.gguf --bits 1.5\n"
                "  vqkvc plan model.gguf --scheme higgs2 --json\n"
                "  vqkvc plan --show a12\n",
    .min_args = 0,
    .max_args = 1,
    .groups = {show_option, vqkvc_options_scheme, vqkvc_options_source, vqkvc_options_json,
               vqkvc_options_store, vqkvc_options_general},
    .run = run_plan};
