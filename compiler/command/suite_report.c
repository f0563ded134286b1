/* What the fidelity table prints: a table a text, the ablations, other calibrations, the CSV and
 * the picture. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/suite.h"
#include "eval/plot.h"

enum { MAX_PANELS = 3 };

const char *vqkvc_suite_model_name(const vqkvc_suite *s)
{
    return s->geometry.name[0] != '\0' ? s->geometry.name : vqkvc_base_name(s->options->args[0]);
}

static const char *calibration_of(const vqkvc_suite *s, const vqkvc_suite_subject *one)
{
    return one->calibrated ? s->calibrations[one->calibration].name : "none";
}

/* ---- what a row is held against ---- */

/* The row of the same scheme that is fitted to text of the passage's own kind: the first text is
 * of the kind of the usual calibration, the last of that of --robust (calibration 1). An ablation
 * is held against the whole of auto, the first of its kind. */
static int reference_of(const vqkvc_suite *s, int subject, int passage)
{
    const vqkvc_suite_subject *one = &s->subjects[subject];
    int matched = passage == 0 ? 0 : 1;
    for (int i = 0; i < s->n; i++) {
        const vqkvc_suite_subject *other = &s->subjects[i];
        if (other->kind != one->kind || other->left_out)
            continue;
        if (one->kind == VQKVC_SUITE_ABLATION ||
            (other->calibration == matched && strcmp(other->label, one->label) == 0))
            return i;
    }
    return -1;
}

static double factor_of(const vqkvc_suite *s, int subject, int passage)
{
    const vqkvc_measured *m = s->passages[passage].measured;
    int reference =
        s->subjects[subject].kind == VQKVC_SUITE_TABLE ? -1 : reference_of(s, subject, passage);
    if (reference < 0 || !(m[reference].late.kl > 0))
        return 0;
    return m[subject].late.kl / m[reference].late.kl;
}

/* ---- tables ---- */

typedef struct report {
    const vqkvc_suite *s;
    vqkvc_arena arena;
    vqkvc_row rows[VQKVC_SUITE_MAX_SUBJECTS];
    int n;
    vqkvc_buf text, csv;
} report;

/* The rows of one kind on one passage. */
static void gather(report *r, vqkvc_suite_kind kind, int passage)
{
    const vqkvc_suite *s = r->s;
    r->n = 0;
    for (int i = 0; i < s->n; i++) {
        const vqkvc_suite_subject *one = &s->subjects[i];
        if (one->kind == kind && !one->left_out && vqkvc_suite_applies(s, one, passage))
            r->rows[r->n++] = (vqkvc_row){.scheme = one->label,
                                          .measured = &s->passages[passage].measured[i],
                                          .cost = &one->costs[passage],
                                          .calibration = calibration_of(s, one),
                                          .vectors = one->vectors,
                                          .factor = factor_of(s, i, passage)};
    }
}

/* For people, a row says its calibration where it matters. */
static vqkvc_code name_calibrations(report *r, vqkvc_err *err)
{
    for (int i = 0; i < r->n && err->code == VQKVC_OK; i++)
        r->rows[i].scheme = vqkvc_arena_printf(&r->arena, err, "%s on %.40s", r->rows[i].scheme,
                                               r->rows[i].calibration);
    return err->code;
}

static vqkvc_code put_table(report *r, vqkvc_suite_kind kind, int passage, vqkvc_err *err)
{
    static const char *const titles[] = {
        "", "auto without one of its ideas; factor: KL over that of the whole.\n",
        "Other calibrations; factor: KL over that of the matched one.\n"};
    const vqkvc_suite *s = r->s;
    const vqkvc_suite_passage *at = &s->passages[passage];
    vqkvc_table_info info = {.model = vqkvc_suite_model_name(s),
                             .text = at->name,
                             .context = at->context,
                             .n_windows = at->n_windows,
                             .step = s->options->step,
                             .first_counted = VQKVC_SUITE_FIRST_COUNTED};
    gather(r, kind, passage);
    if (r->n == 0)
        return VQKVC_OK;
    vqkvc_table_csv(&info, r->rows, r->n, r->csv.len == 0, &r->csv);
    if (s->options->figures) {
        if (passage == 0 && kind == VQKVC_SUITE_TABLE)
            vqkvc_table_figures(&info, r->rows, r->n, &r->text);
        return VQKVC_OK;
    }
    if (kind == VQKVC_SUITE_ROBUST)
        VQKVC_TRY(name_calibrations(r, err));
    vqkvc_buf_printf(&r->text, "%s%s", r->text.len > 0 ? "\n" : "", titles[kind]);
    vqkvc_table_text(&info, r->rows, r->n, &r->text);
    return VQKVC_OK;
}

static vqkvc_code put_tables(report *r, vqkvc_err *err)
{
    for (int kind = VQKVC_SUITE_TABLE; kind <= VQKVC_SUITE_ROBUST; kind++)
        for (int p = 0; p < r->s->n_passages; p++)
            VQKVC_TRY(put_table(r, (vqkvc_suite_kind)kind, p, err));
    if (r->text.failed || r->csv.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the tables");
    return err->code;
}

/* ---- the picture ---- */

/* A scheme's name without its rate: kvquant2, kvquant3 and kvquant4 are one line, q8_0 and q4_0
 * another. */
static const char *family_of(report *r, const char *scheme, vqkvc_err *err)
{
    size_t head = strcspn(scheme, "0123456789");
    size_t number = strspn(scheme + head, "0123456789.");
    const char *tail = scheme + head + number;
    return vqkvc_arena_printf(&r->arena, err, "%.*s%s%s", (int)head, scheme,
                              *tail == '_' ? "*" : "", tail);
}

/* in_all: against all bits, else against those of codes and gains alone. */
static vqkvc_code fill_panel(report *r, int passage, int in_all, vqkvc_plot_panel *panel,
                             vqkvc_err *err)
{
    const vqkvc_suite_passage *at = &r->s->passages[passage];
    gather(r, VQKVC_SUITE_TABLE, passage);
    vqkvc_plot_point *points = vqkvc_arena_alloc(&r->arena, (size_t)r->n, sizeof *points, err);
    const char *title = vqkvc_arena_printf(&r->arena, err, "%s, %d x %d tokens", at->name,
                                           at->n_windows, at->context);
    for (int i = 0; err->code == VQKVC_OK && i < r->n; i++) {
        const vqkvc_cost *cost = r->rows[i].cost;
        points[i] = (vqkvc_plot_point){.label = r->rows[i].scheme,
                                       .family = family_of(r, r->rows[i].scheme, err),
                                       .x = in_all ? cost->total_bits : vqkvc_cost_stored(cost),
                                       .y = r->rows[i].measured->late.kl};
    }
    *panel = (vqkvc_plot_panel){.title = title,
                                .x_title = in_all ? "bits a value, everything counted"
                                                  : "bits a value, codes and gains",
                                .n = r->n,
                                .points = points};
    return err->code;
}

/* The first text against all bits, the longest context, where tables weigh less, and what bits come
 * to where tables and exact window weigh nothing. */
static vqkvc_code draw(report *r, vqkvc_err *err)
{
    const vqkvc_suite *s = r->s;
    vqkvc_plot_panel panels[MAX_PANELS];
    vqkvc_buf svg = {0};
    int n = 0;
    vqkvc_plot plot = {.title =
                           vqkvc_arena_printf(&r->arena, err, "Fidelity of %s with a coded cache",
                                              vqkvc_suite_model_name(s)),
                       .y_title = "mean KL to the exact cache, nats",
                       .main_family = "auto"};
    VQKVC_TRY(fill_panel(r, 0, 1, &panels[n++], err));
    if (s->n_passages > 1 && s->passages[s->n_passages - 1].is_long)
        VQKVC_TRY(fill_panel(r, s->n_passages - 1, 1, &panels[n++], err));
    VQKVC_TRY(fill_panel(r, 0, 0, &panels[n++], err));
    vqkvc_plot_svg(&plot, panels, n, &svg);
    if (svg.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", s->options->svg);
    else
        vqkvc_write_file(s->options->svg, svg.data, svg.len, err);
    free(svg.data);
    return err->code;
}

static vqkvc_code put_all(report *r, vqkvc_err *err)
{
    const vqkvc_options *o = r->s->options;
    VQKVC_TRY(put_tables(r, err));
    if (r->text.data != NULL && (o->csv == NULL || strcmp(o->csv, "-") != 0))
        fputs(r->text.data, stdout);
    if (o->csv != NULL)
        VQKVC_TRY(vqkvc_write_file(o->csv, r->csv.data, r->csv.len, err));
    return o->svg != NULL ? draw(r, err) : VQKVC_OK;
}

vqkvc_code vqkvc_suite_report(const vqkvc_suite *s, vqkvc_err *err)
{
    report *r = vqkvc_alloc(1, sizeof *r, err);
    if (r == NULL)
        return err->code;
    r->s = s;
    put_all(r, err);
    free(r->text.data);
    free(r->csv.data);
    vqkvc_arena_free(&r->arena);
    free(r);
    return err->code;
}
