/* vqkvc suite: the fidelity table. Every scheme at every rate, each built as `vqkvc build` would
 * build it, measured on several texts and contexts. */
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/pipeline.h"
#include "command/suite.h"

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

/* Before hours are spent: a text that is missing or too short. */
static vqkvc_code open_texts(vqkvc_suite *s, vqkvc_err *err)
{
    vqkvc_model *model = NULL;
    VQKVC_TRY(vqkvc_model_open(&model, s->options->args[0], 0, err));
    s->geometry = *vqkvc_model_geometry(model);
    vqkvc_suite_choose_texts(s, model, err);
    vqkvc_model_close(model);
    return err->code;
}

static vqkvc_code run_all(vqkvc_suite *s, vqkvc_err *err)
{
    VQKVC_TRY(check_outputs(s->options, err));
    VQKVC_TRY(vqkvc_suite_choose_rows(s, err));
    VQKVC_TRY(open_texts(s, err));
    VQKVC_TRY(vqkvc_suite_build(s, err));
    VQKVC_TRY(vqkvc_suite_measure(s, err));
    return vqkvc_suite_report(s, err);
}

static vqkvc_code run_suite(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_suite s = {.options = o, .log = log};
    double start = vqkvc_seconds();
    if (run_all(&s, err) == VQKVC_OK)
        vqkvc_say(log, 0, "suite: %.1f s", vqkvc_seconds() - start);
    for (int i = 0; i < s.n; i++)
        free(s.subjects[i].header.data);
    vqkvc_arena_free(&s.arena);
    return err->code;
}

const vqkvc_command vqkvc_command_suite = {
    .name = "suite",
    .usage = "MODEL.gguf [option...]",
    .summary = "the fidelity table: all schemes at many rates, on several texts",
    .about =
        "Builds auto at every rate and the other schemes, as `vqkvc build` would (one capture "
        "serves all, and the store keeps it), and measures all of them on every text: mean KL "
        "divergence from the exact cache, perplexity ratio, top-1 agreement, worst token, bits a "
        "value with everything counted. `vqkvc eval MODEL.gguf --suite` is the same.\n"
        "Figures go into the store as they come: the same command again measures what is missing. "
        "The first text is the one that is drawn, with the longest context of --long beside it.",
    .examples = "  vqkvc suite model.gguf --text books.txt --text wiki.txt --csv table.csv\n"
                "  vqkvc suite model.gguf --rates 1,2 --schemes higgs2 --svg fidelity.svg\n"
                "  vqkvc suite model.gguf --text books.txt --long book.txt --ablations\n"
                "  vqkvc suite model.gguf --rates 2 --schemes none --text books.txt \\\n"
                "      --text manuals.txt --robust other_manuals.txt\n",
    .min_args = 1,
    .max_args = 1,
    .groups = {vqkvc_options_suite, vqkvc_options_measure, vqkvc_options_run, vqkvc_options_table,
               vqkvc_options_store, vqkvc_options_general},
    .run = run_suite};
