/* Measuring the fidelity table: what the store has is not measured again, the rest goes in batches
 * of headers, each figure into the store as soon as it is there. So an interrupted table goes on
 * where it was. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "command/keep.h"
#include "command/pipeline.h"
#include "command/suite.h"

enum {
    BATCH = 8, /* headers at once: an interruption costs no more, and each runs the exact cache */
    COMPILERS = 4 /* at once: each may take a few hundred MB */
};

/* Bytes that the caches and logits of one window may take before a batch is measured in groups. */
#define GROUP_BYTES (1024.0 * 1024 * 1024)

typedef struct session {
    vqkvc_suite *s;
    vqkvc_model *model;
    kvdb *db;
    int n; /* of the batch at hand */
    int subjects[BATCH];
    vqkvc_codec codecs[BATCH];
} session;

/* ---- what is missing ---- */

/* Whether a subject, or one that shares its header, needs figures on a passage. */
static int is_wanted(const vqkvc_suite *s, int subject, int passage)
{
    for (int i = subject; i < s->n; i++)
        if ((i == subject || s->subjects[i].twin == subject) &&
            vqkvc_suite_applies(s, &s->subjects[i], passage))
            return 1;
    return 0;
}

static int is_missing(const vqkvc_suite *s, int subject, int passage)
{
    const vqkvc_suite_subject *one = &s->subjects[subject];
    return one->twin < 0 && !one->left_out && is_wanted(s, subject, passage) &&
           s->passages[passage].measured[subject].late.n == 0;
}

static int misses_any(const vqkvc_suite *s, int subject)
{
    int any = 0;
    for (int p = 0; p < s->n_passages; p++)
        any |= is_missing(s, subject, p);
    return any;
}

/* ---- the store ---- */

/* A plan's recipe does not know the program's version, and kernels change as well: the header's
 * hash knows both. */
static vqkvc_code key_of(session *e, int subject, int passage, kvdb_evaluation *key, vqkvc_err *err)
{
    const vqkvc_suite_subject *one = &e->s->subjects[subject];
    const char *text = vqkvc_arena_printf(&e->s->arena, err, "%s;header=%s",
                                          e->s->passages[passage].key, one->header_hash.hex);
    if (text != NULL && one->options.top_tokens > 0)
        text = vqkvc_arena_printf(&e->s->arena, err, "%s;top=%d", text, one->options.top_tokens);
    if (text != NULL)
        *key = (kvdb_evaluation){
            .plan = one->plan_hash, .text = vqkvc_hash_text(text), .label = one->label};
    return err->code;
}

static vqkvc_code look_up(session *e, int subject, int passage, int *found, vqkvc_err *err)
{
    vqkvc_measured *to = &e->s->passages[passage].measured[subject];
    vqkvc_err damage = {0};
    vqkvc_buf json = {0};
    kvdb_evaluation key;
    VQKVC_TRY(key_of(e, subject, passage, &key, err));
    kvdb_find_evaluation(e->db, &key, &json, found, err);
    if (err->code == VQKVC_OK && *found && vqkvc_table_read(json.data, to, &damage) != VQKVC_OK)
        *to = (vqkvc_measured){0};
    free(json.data);
    return vqkvc_store_forgive(&damage, "evaluation", e->s->log, found, err);
}

static vqkvc_code look_up_all(session *e, vqkvc_err *err)
{
    vqkvc_suite *s = e->s;
    int n_found = 0, n_missing = 0;
    for (int i = 0; i < s->n; i++) {
        for (int p = 0; p < s->n_passages; p++) {
            int found = 0;
            if (!is_missing(s, i, p))
                continue;
            if (e->db != NULL)
                VQKVC_TRY(look_up(e, i, p, &found, err));
            n_found += found;
            n_missing += !found;
            s->work += found ? 0 : (double)s->passages[p].n_windows * s->passages[p].context;
        }
        if (!misses_any(s, i)) {
            free(s->subjects[i].header.data);
            s->subjects[i].header = (vqkvc_buf){0};
        }
    }
    vqkvc_say(s->log, 0, "suite: %d figures to measure, %d found in the store", n_missing, n_found);
    return VQKVC_OK;
}

static vqkvc_code keep(session *e, int subject, int passage, const vqkvc_codec *codec,
                       vqkvc_err *err)
{
    const vqkvc_suite *s = e->s;
    const vqkvc_suite_subject *one = &s->subjects[subject];
    const vqkvc_suite_passage *at = &s->passages[passage];
    vqkvc_table_info info = {.model = vqkvc_suite_model_name(s),
                             .text = at->name,
                             .context = at->context,
                             .n_windows = at->n_windows,
                             .step = s->options->step,
                             .first_counted = VQKVC_SUITE_FIRST_COUNTED};
    vqkvc_row row = {.scheme = one->label,
                     .measured = &at->measured[subject],
                     .cost = &one->costs[passage],
                     .codec = codec,
                     .calibration = s->calibrations[one->calibration].name,
                     .vectors = one->vectors};
    vqkvc_buf json = {0};
    kvdb_evaluation key;
    if (key_of(e, subject, passage, &key, err) == VQKVC_OK &&
        vqkvc_table_json(&info, &row, 1, &json, err) == VQKVC_OK) {
        key.result_json = json.data;
        if (json.failed)
            vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for an evaluation");
        else
            kvdb_put_evaluation(e->db, &key, err);
    }
    free(json.data);
    return err->code;
}

/* ---- a batch ---- */

static vqkvc_code compile(session *e, vqkvc_err *err)
{
    vqkvc_suite *s = e->s;
    double start = vqkvc_seconds();
    vqkvc_err errs[BATCH] = {{0}};
    int at_once = omp_get_max_threads() < COMPILERS ? omp_get_max_threads() : COMPILERS;
#pragma omp parallel for schedule(dynamic) num_threads(at_once)
    for (int i = 0; i < e->n; i++) {
        vqkvc_suite_subject *one = &s->subjects[e->subjects[i]];
        if (!vqkvc_interrupted())
            vqkvc_codec_load(&e->codecs[i], one->label, one->header.data, one->header.len,
                             &errs[i]);
        free(one->header.data);
        one->header = (vqkvc_buf){0};
    }
    for (int i = 0; i < e->n; i++)
        if (errs[i].code != VQKVC_OK)
            vqkvc_fail(err, errs[i].code, "%s", errs[i].msg);
    if (vqkvc_interrupted())
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while compiling headers");
    vqkvc_say(s->log, 0, "compile: %d headers in %.1f s", e->n, vqkvc_seconds() - start);
    return err->code;
}

/* Subjects that a passage misses from member `first` of the batch on, as many as keep within
 * GROUP_BYTES, one at least; *end is the member behind the last. */
static vqkvc_code find_group(const session *e, int passage, int first, int group[BATCH], int *n,
                             int *end, vqkvc_err *err)
{
    const vqkvc_suite *s = e->s;
    const vqkvc_geometry *g = &s->geometry;
    int context = s->passages[passage].context, step = s->options->step;
    double logits = 4.0 * step * vqkvc_model_vocab_size(e->model);
    double used = 8.0 * context * g->n_layers * g->n_kv_heads * g->head_dim + 3 * logits;
    *n = 0;
    for (*end = first; *end < e->n; ++*end) {
        size_t bytes;
        if (!is_missing(s, e->subjects[*end], passage))
            continue;
        VQKVC_TRY(vqkvc_cache_header_size(&e->codecs[*end], s->subjects[e->subjects[*end]].label, 1,
                                          context, step, &bytes, err));
        used += (double)bytes + logits;
        if (used > GROUP_BYTES && *n > 0)
            return VQKVC_OK;
        group[(*n)++] = *end;
    }
    return VQKVC_OK;
}

static void say_progress(vqkvc_suite *s, int n_done, double tokens)
{
    s->done += n_done * tokens;
    double spent = vqkvc_seconds() - s->started;
    vqkvc_say(s->log, 0, "suite: %.0f %% measured in %.0f s, about %.0f s left",
              100 * s->done / s->work, spent, spent * (s->work - s->done) / s->done);
}

static vqkvc_code measure_group(session *e, int passage, const int *group, int n, vqkvc_err *err)
{
    vqkvc_suite *s = e->s;
    vqkvc_suite_passage *at = &s->passages[passage];
    vqkvc_subject subjects[BATCH] = {{0}};
    vqkvc_measured measured[BATCH];
    vqkvc_measure_options options = {.context = at->context,
                                     .n_windows = at->n_windows,
                                     .step = s->options->step,
                                     .first_counted = VQKVC_SUITE_FIRST_COUNTED,
                                     .isa = vqkvc_isa_of(s->options),
                                     .log = s->log};
    for (int i = 0; i < n; i++)
        subjects[i] =
            (vqkvc_subject){s->subjects[e->subjects[group[i]]].label, &e->codecs[group[i]],
                            s->subjects[e->subjects[group[i]]].options.top_tokens};
    VQKVC_TRY(vqkvc_measure(e->model, at->windows, n, subjects, &options, measured, err));
    for (int i = 0; i < n; i++) {
        int subject = e->subjects[group[i]];
        at->measured[subject] = measured[i];
        if (e->db != NULL)
            VQKVC_TRY(keep(e, subject, passage, &e->codecs[group[i]], err));
    }
    say_progress(s, n, (double)at->n_windows * at->context);
    return VQKVC_OK;
}

static vqkvc_code measure_batch(session *e, vqkvc_err *err)
{
    VQKVC_TRY(compile(e, err));
    for (int p = 0; p < e->s->n_passages; p++) {
        int group[BATCH], n, end;
        for (int first = 0; first < e->n; first = end) {
            VQKVC_TRY(find_group(e, p, first, group, &n, &end, err));
            if (n == 0)
                break;
            vqkvc_say(e->s->log, 0, "%s, context %d: %d schemes", e->s->passages[p].name,
                      e->s->passages[p].context, n);
            VQKVC_TRY(measure_group(e, p, group, n, err));
        }
    }
    return VQKVC_OK;
}

static vqkvc_code measure_missing(session *e, vqkvc_err *err)
{
    vqkvc_suite *s = e->s;
    s->started = vqkvc_seconds();
    for (int next = 0; next < s->n && err->code == VQKVC_OK;) {
        for (e->n = 0; next < s->n && e->n < BATCH; next++)
            if (misses_any(s, next))
                e->subjects[e->n++] = next;
        if (e->n > 0)
            measure_batch(e, err);
        for (int i = 0; i < e->n; i++)
            vqkvc_codec_free(&e->codecs[i]);
    }
    return err->code;
}

static void copy_to_twins(vqkvc_suite *s)
{
    for (int i = 0; i < s->n; i++)
        for (int p = 0; p < s->n_passages && s->subjects[i].twin >= 0; p++)
            s->passages[p].measured[i] = s->passages[p].measured[s->subjects[i].twin];
}

vqkvc_code vqkvc_suite_measure(vqkvc_suite *s, vqkvc_err *err)
{
    session e = {.s = s};
    if (vqkvc_store_open(&e.db, s->options, KVDB_READ_WRITE, err) == VQKVC_OK &&
        vqkvc_model_open(&e.model, s->options->args[0], 0, err) == VQKVC_OK &&
        look_up_all(&e, err) == VQKVC_OK && measure_missing(&e, err) == VQKVC_OK)
        copy_to_twins(s);
    if (err->code == VQKVC_E_INTERRUPTED && e.db != NULL)
        vqkvc_say(s->log, 0,
                  "%s keeps what was measured: the same command again goes on from there",
                  vqkvc_store_path(s->options));
    vqkvc_model_close(e.model);
    kvdb_close(e.db);
    return err->code;
}
