/* What the fidelity table is measured on. */
#include <stdio.h>
#include <string.h>

#include "command/eval_text.h"
#include "command/suite.h"
#include "model/attend_f16.h"

enum { DEFAULT_CONTEXT = 1024 };

const int vqkvc_suite_long[VQKVC_SUITE_LONG] = {4096, 8192};

static int context_of(const vqkvc_suite *s)
{
    int trained = s->geometry.n_ctx_train;
    if (s->options->context > 0)
        return s->options->context;
    return trained > 0 && trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
}

/* Figures depend on the kernels in the last digits; "best" is another set on another machine. */
static void name_passage(const vqkvc_suite *s, vqkvc_suite_passage *p)
{
    const char *isa = s->options->isa;
    size_t n = (size_t)p->n_windows * (size_t)p->context;
    vqkvc_hash ids = vqkvc_hash_bytes(p->windows, n * sizeof *p->windows);
    snprintf(p->key, sizeof p->key,
             "suite v1;ids=%s;windows=%d;context=%d;step=%d;first=%d;isa=%s%s", ids.hex,
             p->n_windows, p->context, s->options->step, VQKVC_SUITE_FIRST_COUNTED, isa,
             strcmp(isa, "best") == 0 ? vqkvc_attend_f16_isa() : "");
}

/* text, tokens: a file, or NULL; the model's own samples if both are. */
static vqkvc_code add_passage(vqkvc_suite *s, vqkvc_model *model, const char *text,
                              const char *tokens, int n_windows, int context, vqkvc_err *err)
{
    vqkvc_suite_passage *to = &s->passages[s->n_passages];
    vqkvc_options o = {.windows = n_windows, .seed = s->options->seed};
    o.text.n = text != NULL;
    o.text.at[0] = text;
    o.tokens.n = tokens != NULL;
    o.tokens.at[0] = tokens;
    to->n_windows = n_windows;
    to->context = context;
    to->windows =
        vqkvc_arena_alloc(&s->arena, (size_t)n_windows * (size_t)context, sizeof *to->windows, err);
    to->measured = vqkvc_arena_alloc(&s->arena, (size_t)s->n, sizeof *to->measured, err);
    if (err->code != VQKVC_OK)
        return err->code;
    VQKVC_TRY(vqkvc_eval_text(model, &o, context, s->log, to->windows, to->name, err));
    name_passage(s, to);
    s->n_passages++;
    return VQKVC_OK;
}

static vqkvc_code add_long(vqkvc_suite *s, vqkvc_model *model, vqkvc_err *err)
{
    for (int i = 0; i < VQKVC_SUITE_LONG; i++) {
        s->passages[s->n_passages].is_long = 1;
        VQKVC_TRY(add_passage(s, model, s->options->long_text, NULL, 1, vqkvc_suite_long[i], err));
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_suite_choose_texts(vqkvc_suite *s, vqkvc_model *model, vqkvc_err *err)
{
    const vqkvc_options *o = s->options;
    int context = context_of(s), least = VQKVC_SUITE_FIRST_COUNTED + 2;
    if (context < least)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "suite: a context of %d tokens; positions count from %d on: at least %d",
                          context, VQKVC_SUITE_FIRST_COUNTED, least);
    if (o->robust.n > 0 && o->text.n + o->tokens.n < 2)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "suite: --robust needs two texts: the first of the kind of the usual "
                          "calibration, the last of the other kind");
    s->passages = vqkvc_arena_alloc(&s->arena, 2 * VQKVC_MAX_WORDS + 3, sizeof *s->passages, err);
    if (s->passages == NULL)
        return err->code;
    for (int i = 0; i < o->text.n; i++)
        VQKVC_TRY(add_passage(s, model, o->text.at[i], NULL, o->windows, context, err));
    for (int i = 0; i < o->tokens.n; i++)
        VQKVC_TRY(add_passage(s, model, NULL, o->tokens.at[i], o->windows, context, err));
    if (s->n_passages == 0 && o->long_text == NULL)
        VQKVC_TRY(add_passage(s, model, NULL, NULL, o->windows, context, err));
    return o->long_text != NULL ? add_long(s, model, err) : VQKVC_OK;
}

int vqkvc_suite_last_text(const vqkvc_suite *s)
{
    int last = 0;
    for (int i = 0; i < s->n_passages; i++)
        last = s->passages[i].is_long ? last : i;
    return last;
}

int vqkvc_suite_applies(const vqkvc_suite *s, const vqkvc_suite_subject *subject, int passage)
{
    const vqkvc_suite_passage *at = &s->passages[passage];
    if (subject->is_for == VQKVC_SUITE_TEXTS
            ? at->is_long
            : subject->is_for > 0 && (!at->is_long || at->context != subject->is_for))
        return 0;
    return subject->kind == VQKVC_SUITE_TABLE || passage == 0 ||
           (subject->kind == VQKVC_SUITE_ROBUST && passage == vqkvc_suite_last_text(s));
}
