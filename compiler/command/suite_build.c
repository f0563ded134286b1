/* Plans and headers of the fidelity table: one pipeline for each calibration, whose capture serves
 * all of its rows. */
#include <stdlib.h>
#include <string.h>

#include "command/pipeline.h"
#include "command/suite.h"

static vqkvc_code price(vqkvc_suite *s, const vqkvc_plan *plan, vqkvc_suite_subject *to,
                        vqkvc_err *err)
{
    to->costs = vqkvc_arena_alloc(&s->arena, (size_t)s->n_passages, sizeof *to->costs, err);
    for (int i = 0; to->costs != NULL && i < s->n_passages; i++)
        vqkvc_plan_cost(plan, s->passages[i].context, &to->costs[i]);
    return err->code;
}

/* The header moves from the pipeline into the subject; of the plan only figures are kept. */
static vqkvc_code take(vqkvc_suite *s, vqkvc_pipeline *p, vqkvc_suite_subject *to, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_pipeline_plan(p, err));
    VQKVC_TRY(vqkvc_pipeline_emit(p, err));
    VQKVC_TRY(price(s, &p->plan, to, err));
    to->scheme = vqkvc_arena_strndup(&s->arena, p->plan.scheme, strlen(p->plan.scheme), err);
    to->label = to->label != NULL ? to->label : to->scheme;
    to->vectors = vqkvc_vectors_word(&p->plan);
    to->plan_hash = p->plan_hash;
    to->header_hash = vqkvc_hash_bytes(p->header.data, p->header.len);
    to->header = p->header;
    p->header = (vqkvc_buf){0};
    return err->code;
}

/* A row of the table proper that cannot be built ends the run; another one is left out, for that it
 * cannot be built from so little, or without some idea, is its result. */
static vqkvc_code build_one(vqkvc_suite *s, vqkvc_pipeline *p, vqkvc_suite_subject *to,
                            vqkvc_err *err)
{
    vqkvc_err own = {0};
    if (take(s, p, to, &own) == VQKVC_OK)
        return VQKVC_OK;
    if (to->kind == VQKVC_SUITE_TABLE || (own.code != VQKVC_E_USAGE && own.code != VQKVC_E_NUMERIC))
        return vqkvc_fail(err, own.code, "%s", own.msg);
    to->left_out = 1;
    vqkvc_say(s->log, -1, "suite: left out: %s on %s: %s",
              to->label != NULL ? to->label : to->options.scheme,
              s->calibrations[to->calibration].name, own.msg);
    return VQKVC_OK;
}

static vqkvc_code build_calibration(vqkvc_suite *s, int calibration, vqkvc_err *err)
{
    vqkvc_pipeline p = {0};
    for (int i = 0; i < s->n && err->code == VQKVC_OK; i++) {
        vqkvc_suite_subject *to = &s->subjects[i];
        if (to->calibration != calibration)
            continue;
        if (p.options == NULL)
            vqkvc_pipeline_open(&p, &to->options, 0, s->log, err);
        else
            vqkvc_pipeline_next(&p, &to->options, err);
        if (err->code == VQKVC_OK)
            build_one(s, &p, to, err);
    }
    if (p.options != NULL)
        vqkvc_pipeline_close(&p, err);
    return err->code;
}

/* The same header is compiled and measured once. */
static void find_twins(vqkvc_suite *s)
{
    for (int i = 0; i < s->n; i++) {
        vqkvc_suite_subject *to = &s->subjects[i];
        for (int j = 0; j < i && to->twin < 0 && !to->left_out; j++)
            if (strcmp(s->subjects[j].header_hash.hex, to->header_hash.hex) == 0)
                to->twin = s->subjects[j].twin >= 0 ? s->subjects[j].twin : j;
    }
}

vqkvc_code vqkvc_suite_build(vqkvc_suite *s, vqkvc_err *err)
{
    for (int c = 0; c < s->n_calibrations; c++)
        VQKVC_TRY(build_calibration(s, c, err));
    find_twins(s);
    return VQKVC_OK;
}
