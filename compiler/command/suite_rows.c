/* Which rows the fidelity table has: one list of schemes, auto's rates, its ablations, and other
 * calibrations. */
#include <stdio.h>
#include <string.h>

#include "command/commands.h"
#include "command/fit_auto.h"
#include "command/suite.h"

enum { WORD = 64, DEFAULT_TOKENS = 32768 };

/* The row that ablations and calibrations are about. */
#define MAIN_ROW "auto2"

/* ---- calibrations ---- */

static const char *words_name(vqkvc_suite *s, const vqkvc_words *text, vqkvc_err *err)
{
    const char *first = text->n > 0 ? vqkvc_base_name(text->at[0]) : "self";
    return text->n < 2 ? vqkvc_arena_strndup(&s->arena, first, strlen(first), err)
                       : vqkvc_arena_printf(&s->arena, err, "%s and %d more", first, text->n - 1);
}

static vqkvc_code add_calibration(vqkvc_suite *s, const vqkvc_words *text, int share,
                                  vqkvc_err *err)
{
    vqkvc_suite_calibration *c = &s->calibrations[s->n_calibrations++];
    *c = (vqkvc_suite_calibration){.text = *text, .n_tokens = s->options->n_tokens, .share = share};
    c->name = words_name(s, text, err);
    if (share > 1 && c->name != NULL) {
        c->name = vqkvc_arena_printf(&s->arena, err, "%s 1/%d", c->name, share);
        c->n_tokens = (c->n_tokens > 0 ? c->n_tokens : DEFAULT_TOKENS) / share;
    }
    return err->code;
}

/* The first one is what the table's rows are fitted to. With --robust: the other kind of text, an
 * eighth of the first, and, where the first is text, the model's own samples. */
static vqkvc_code choose_calibrations(vqkvc_suite *s, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    const vqkvc_words none = {0};
    VQKVC_TRY(add_calibration(s, &o->calibrate, 1, err));
    if (o->robust.n == 0)
        return VQKVC_OK;
    VQKVC_TRY(add_calibration(s, &o->robust, 1, err));
    VQKVC_TRY(add_calibration(s, &o->calibrate, 8, err));
    return o->calibrate.n > 0 ? add_calibration(s, &none, 1, err) : VQKVC_OK;
}

/* ---- subjects ---- */

/* The options of `vqkvc build MODEL --scheme WORD extra`, so that a suite and a build find each
 * other's work in the store. word: as vqkvc_scheme_apply() takes it; extra: an option, or NULL. */
static vqkvc_code parse(vqkvc_suite *s, const char *word, const char *extra, vqkvc_options *made,
                        vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    char **words = vqkvc_arena_alloc(&s->arena, 3, sizeof *words, err); /* options point into it */
    if (words == NULL)
        return err->code;
    words[0] = vqkvc_arena_strndup(&s->arena, "build", 5, err);
    words[1] = o->args[0];
    if (extra != NULL)
        words[2] = vqkvc_arena_strndup(&s->arena, extra, strlen(extra), err);
    VQKVC_TRY(err->code);
    VQKVC_TRY(vqkvc_options_parse(&vqkvc_command_build, extra != NULL ? 3 : 2, words, made, err));
    VQKVC_TRY(vqkvc_scheme_apply(word, made, err));
    made->given = 0;
    made->db = o->db;
    made->no_db = o->no_db;
    made->seed = o->seed;
    if (strcmp(made->scheme, "auto") == 0)
        made->max_scan = o->max_scan;
    return VQKVC_OK;
}

static vqkvc_code add_parsed(vqkvc_suite *s, vqkvc_suite_kind kind, const char *label,
                             int calibration, const vqkvc_options *made, vqkvc_err *err)
{
    const vqkvc_suite_calibration *c = &s->calibrations[calibration];
    if (s->n == VQKVC_SUITE_MAX_SUBJECTS)
        return vqkvc_fail(err, VQKVC_E_USAGE, "suite: more than %d rows", VQKVC_SUITE_MAX_SUBJECTS);
    vqkvc_suite_subject *to = &s->subjects[s->n++];
    *to = (vqkvc_suite_subject){
        .kind = kind, .calibration = calibration, .label = label, .options = *made, .twin = -1};
    to->calibrated = vqkvc_scheme_of(made)->calibrated;
    to->options.text = c->text;
    to->options.n_tokens = c->n_tokens;
    to->options.sample /= c->share;
    return VQKVC_OK;
}

static vqkvc_code add_row(vqkvc_suite *s, vqkvc_suite_kind kind, const char *label,
                          const char *word, const char *extra, vqkvc_err *err)
{
    vqkvc_options made;
    VQKVC_TRY(parse(s, word, extra, &made, err));
    return add_parsed(s, kind, label, 0, &made, err);
}

/* Adds each word of a list with commas, `prefix` before it. */
static vqkvc_code add_list(vqkvc_suite *s, const char *list, const char *prefix, vqkvc_err *err)
{
    char word[WORD];
    if (strcmp(list, "none") == 0)
        return VQKVC_OK;
    while (*list != '\0') {
        size_t n = strcspn(list, ",");
        if (n == 0 || n + strlen(prefix) >= WORD)
            return vqkvc_fail(err, VQKVC_E_USAGE, "suite: '%.80s' is no list of words with commas",
                              list);
        snprintf(word, sizeof word, "%s%.*s", prefix, (int)n, list);
        VQKVC_TRY(add_row(s, VQKVC_SUITE_TABLE, NULL, word, NULL, err));
        list += n + (list[n] == ',');
    }
    return VQKVC_OK;
}

/* auto at the n rates of the list whatever attention has to scan: "auto2-any". */
static vqkvc_code add_any_scan(vqkvc_suite *s, int n, vqkvc_err *err)
{
    for (int i = 0; i < n; i++) {
        vqkvc_options made = s->subjects[i].options;
        const char *label = vqkvc_arena_printf(&s->arena, err, "auto%.4g-any", made.bits);
        made.max_scan = 0;
        VQKVC_TRY(err->code);
        VQKVC_TRY(add_parsed(s, VQKVC_SUITE_TABLE, label, 0, &made, err));
    }
    return VQKVC_OK;
}

/* The n rates from subject `first` on become rates that hold the tables: "auto2-tables" over
 * --tables-at tokens, on the texts; with --long also "auto2-any-tables4096" over that many tokens,
 * whatever attention has to scan, on the window of that length alone. What a row may scan
 * rises with its rate. */
static vqkvc_code count_tables(vqkvc_suite *s, int first, int n, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    for (int i = 0; i < n; i++) {
        vqkvc_options plain = s->subjects[first + i].options, made = plain;
        vqkvc_suite_subject *row = &s->subjects[first + i];
        row->label = vqkvc_arena_printf(&s->arena, err, "auto%.4g-tables", plain.bits);
        row->options.tables_at = o->tables_at;
        row->is_for = VQKVC_SUITE_TEXTS;
        if (plain.max_scan > 0 && plain.max_scan < 2 * plain.bits)
            row->options.max_scan = 2 * plain.bits;
        for (int l = 0; o->long_text != NULL && l < VQKVC_SUITE_LONG; l++) {
            int tokens = vqkvc_suite_long[l];
            const char *label =
                vqkvc_arena_printf(&s->arena, err, "auto%.4g-any-tables%d", plain.bits, tokens);
            made.tables_at = tokens;
            made.max_scan = 0;
            VQKVC_TRY(add_parsed(s, VQKVC_SUITE_TABLE, label, 0, &made, err));
            s->subjects[s->n - 1].is_for = tokens;
        }
    }
    return err->code;
}

static vqkvc_code add_rates(vqkvc_suite *s, const char *list, const char *option, vqkvc_err *err)
{
    if (add_list(s, list, "auto", err) != VQKVC_OK)
        vqkvc_err_prefix(err, "%s", option);
    return err->code;
}

static vqkvc_code choose_rates(vqkvc_suite *s, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    VQKVC_TRY(add_rates(s, o->rates, "--rates", err));
    int first = s->n;
    if (o->any_scan)
        VQKVC_TRY(add_any_scan(s, first, err));
    if (o->tables_at == 0)
        return VQKVC_OK;
    first = s->n;
    const char *rates = o->tables_rates != NULL ? o->tables_rates : o->rates;
    VQKVC_TRY(add_rates(s, rates, "--tables-rates", err));
    return count_tables(s, first, s->n - first, err);
}

/* ---- ablations ---- */

static vqkvc_code add_ablation(vqkvc_suite *s, const char *idea, vqkvc_err *err)
{
    const char *extra = vqkvc_arena_printf(&s->arena, err, "--without=%s", idea);
    const char *label = vqkvc_arena_printf(&s->arena, err, "auto2 without %s", idea);
    return label == NULL || extra == NULL
               ? err->code
               : add_row(s, VQKVC_SUITE_ABLATION, label, MAIN_ROW, extra, err);
}

static vqkvc_code choose_ablations(vqkvc_suite *s, vqkvc_err *err)
{
    VQKVC_TRY(add_row(s, VQKVC_SUITE_ABLATION, NULL, MAIN_ROW, NULL, err));
    for (int i = 0; vqkvc_auto_idea(i) != NULL; i++)
        VQKVC_TRY(add_ablation(s, vqkvc_auto_idea(i), err));
    return VQKVC_OK;
}

/* ---- other calibrations ---- */

/* auto at 2 bits and every other calibrated scheme of the table, on every calibration. */
static vqkvc_code choose_robust(vqkvc_suite *s, vqkvc_err *err)
{
    vqkvc_options main_options;
    int n = s->n;
    VQKVC_TRY(parse(s, MAIN_ROW, NULL, &main_options, err));
    for (int c = 0; c < s->n_calibrations; c++) {
        VQKVC_TRY(add_parsed(s, VQKVC_SUITE_ROBUST, NULL, c, &main_options, err));
        for (int i = 0; i < n; i++) {
            const vqkvc_suite_subject *one = &s->subjects[i];
            if (one->kind == VQKVC_SUITE_TABLE && one->calibrated &&
                strcmp(one->options.scheme, "auto") != 0)
                VQKVC_TRY(add_parsed(s, VQKVC_SUITE_ROBUST, NULL, c, &one->options, err));
        }
    }
    return VQKVC_OK;
}

/* ---- attention in part ---- */

/* auto and SVDq, attended in part. Their headers have landmarks, which those of the table have not.
 */
static vqkvc_code choose_sparse(vqkvc_suite *s, vqkvc_err *err)
{
    static const char *const words[] = {MAIN_ROW, "svdq-higgs2"};
    int top = s->options->top_tokens;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        vqkvc_options made;
        const char *label = vqkvc_arena_printf(&s->arena, err, "%s top %d", words[i], top);
        VQKVC_TRY(parse(s, words[i], "--landmarks=8", &made, err));
        made.top_tokens = top;
        VQKVC_TRY(add_parsed(s, VQKVC_SUITE_TABLE, label, 0, &made, err));
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_suite_choose_rows(vqkvc_suite *s, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    s->subjects = vqkvc_arena_alloc(&s->arena, VQKVC_SUITE_MAX_SUBJECTS, sizeof *s->subjects, err);
    if (s->subjects == NULL)
        return err->code;
    VQKVC_TRY(choose_calibrations(s, err));
    VQKVC_TRY(choose_rates(s, err));
    VQKVC_TRY(add_list(s, o->schemes, "", err));
    if (o->ablations)
        VQKVC_TRY(choose_ablations(s, err));
    if (o->robust.n > 0)
        VQKVC_TRY(choose_robust(s, err));
    if (o->top_tokens > 0)
        VQKVC_TRY(choose_sparse(s, err));
    if (s->n == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "suite: neither --rates nor --schemes to measure");
    return VQKVC_OK;
}
