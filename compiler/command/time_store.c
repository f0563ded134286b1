#include "command/time_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/keep.h"
#include "eval/calibrate.h"
#include "eval/header_isa.h"
#include "eval/synthetic.h"

/* Short and long ones: what is done once a block shows in their difference. */
static const int blocks[] = {64, 256};

enum { N_BLOCKS = sizeof blocks / sizeof *blocks };

vqkvc_time_shape vqkvc_time_shape_of(const vqkvc_geometry *g)
{
    return (vqkvc_time_shape){.head_dim = g->head_dim,
                              .group = g->n_heads / g->n_kv_heads,
                              .isa = VQKVC_ISA_AUTO,
                              .context = VQKVC_TIME_CONTEXT,
                              .seed = 1};
}

/* Plans and headers to measure. */
typedef struct trials {
    vqkvc_plan plans[N_BLOCKS];
    vqkvc_buf headers[N_BLOCKS];
} trials;

static void trials_free(trials *t)
{
    for (int i = 0; i < N_BLOCKS; i++) {
        vqkvc_plan_free(&t->plans[i]);
        free(t->headers[i].data);
    }
}

static vqkvc_code trials_make(trials *t, const vqkvc_time_shape *shape, vqkvc_arena *arena,
                              vqkvc_err *err)
{
    const char *prefix;
    for (int i = 0; i < N_BLOCKS; i++) {
        VQKVC_TRY(
            vqkvc_synthetic_mixes(&t->plans[i], shape->group, shape->head_dim, blocks[i], err));
        VQKVC_TRY(vqkvc_emit_plan(&t->plans[i], "vqkvc bench --calibrate", "bench_kv", arena,
                                  &prefix, &t->headers[i], err));
    }
    return VQKVC_OK;
}

/* The processor's name; "" where the system does not say. */
static void processor(char *name, size_t size)
{
    static const char *const keys[] = {"model name", "CPU part"};
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    name[0] = '\0';
    while (f != NULL && name[0] == '\0' && fgets(line, sizeof line, f) != NULL)
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            const char *value = strchr(line, ':');
            if (strncmp(line, keys[i], strlen(keys[i])) == 0 && value != NULL)
                snprintf(name, size, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
        }
    if (f != NULL)
        fclose(f);
}

/* The beginning of recipes, which is known without making headers or asking the compiler. */
static void put_machine(const vqkvc_time_shape *shape, vqkvc_buf *text)
{
    char cpu[128];
    processor(cpu, sizeof cpu);
    vqkvc_buf_printf(text,
                     "cost model v2;processor=%s;isa=%s;head_dim=%d;group=%d;context=%d;seed=%llu;",
                     cpu, vqkvc_header_isa_word(shape->isa), shape->head_dim, shape->group,
                     shape->context, (unsigned long long)shape->seed);
}

/* All that the measurement depends on: the headers hold the kernels. */
static const char *recipe_of(const trials *t, const vqkvc_time_shape *shape, vqkvc_arena *arena,
                             vqkvc_err *err)
{
    char cc[160];
    vqkvc_buf text = {0};
    if (vqkvc_compiler_version(cc, sizeof cc, err) != VQKVC_OK)
        return NULL;
    put_machine(shape, &text);
    vqkvc_buf_printf(&text, "compiler=%s", cc);
    for (int i = 0; i < N_BLOCKS; i++)
        vqkvc_buf_printf(&text, ";header=%s",
                         vqkvc_hash_bytes(t->headers[i].data, t->headers[i].len).hex);
    const char *recipe = text.failed ? NULL : vqkvc_arena_strndup(arena, text.data, text.len, err);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a recipe");
    free(text.data);
    return recipe;
}

/* Loads the headers and times their layers: ns [N_BLOCKS][n_layers]. */
static vqkvc_code time_trials(const trials *t, const vqkvc_time_shape *shape, const vqkvc_log *log,
                              double *const *ns, vqkvc_err *err)
{
    const vqkvc_geometry *g[N_BLOCKS];
    vqkvc_codec codecs[N_BLOCKS] = {{0}};
    vqkvc_calibration options = {
        .context = shape->context, .isa = shape->isa, .seed = shape->seed, .log = log};
    for (int i = 0; i < N_BLOCKS && err->code == VQKVC_OK; i++) {
        g[i] = &t->plans[i].geometry;
        vqkvc_codec_load(&codecs[i], "calibration", t->headers[i].data, t->headers[i].len, err);
    }
    if (err->code == VQKVC_OK)
        vqkvc_calibrate(N_BLOCKS, g, codecs, &options, ns, err);
    for (int i = 0; i < N_BLOCKS; i++)
        vqkvc_codec_free(&codecs[i]);
    return err->code;
}

/* terms [N_BLOCKS * n_layers, VQKVC_TIME_TERMS] */
static vqkvc_code terms_of(const trials *t, int context, double *terms, vqkvc_err *err)
{
    for (int i = 0; i < N_BLOCKS; i++)
        for (int l = 0; l < t->plans[i].geometry.n_layers; l++, terms += VQKVC_TIME_TERMS)
            if (!vqkvc_time_terms(&t->plans[i], l, context, terms))
                return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "cost model: layer %d has no terms", l);
    return VQKVC_OK;
}

static vqkvc_code measure(const trials *t, const vqkvc_time_shape *shape, const vqkvc_log *log,
                          vqkvc_time_model *m, vqkvc_err *err)
{
    size_t n = (size_t)t->plans[0].geometry.n_layers, rows = n * N_BLOCKS;
    double worst = 0, started = vqkvc_seconds(), *ns_of[N_BLOCKS];
    double *terms = vqkvc_alloc(rows, VQKVC_TIME_TERMS * sizeof *terms, err);
    double *ns = vqkvc_alloc(rows, sizeof *ns, err);
    for (size_t i = 0; i < N_BLOCKS && ns != NULL; i++)
        ns_of[i] = ns + i * n;
    *m = (vqkvc_time_model){.head_dim = shape->head_dim, .group = shape->group};
    snprintf(m->isa, sizeof m->isa, "%s", vqkvc_header_isa_word(shape->isa));
    if (err->code == VQKVC_OK && terms_of(t, shape->context, terms, err) == VQKVC_OK &&
        time_trials(t, shape, log, ns_of, err) == VQKVC_OK &&
        vqkvc_time_fit((int)rows, terms, ns, m, &worst, err) == VQKVC_OK)
        vqkvc_say(log, 0, "cost model: measured in %.1f s; %.0f %% off at worst",
                  vqkvc_seconds() - started, 100 * worst);
    free(terms);
    free(ns);
    return err->code;
}

/* Looks the model up; what is there but damaged is not found. */
static vqkvc_code fetch(kvdb *db, const char *recipe, const vqkvc_log *log, vqkvc_time_model *m,
                        int *found, vqkvc_err *err)
{
    vqkvc_buf buf = {0};
    vqkvc_err damage = {0};
    if (vqkvc_store_fetch(db, "cost-model", recipe, log, &buf, found, err) == VQKVC_OK && *found) {
        if (vqkvc_time_parse(buf.data, m, &damage) != VQKVC_OK)
            damage.code = VQKVC_E_FORMAT;
        vqkvc_store_forgive(&damage, "cost model", log, found, err);
    }
    free(buf.data);
    return err->code;
}

static vqkvc_code keep(kvdb *db, const char *recipe, const vqkvc_time_model *m, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    vqkvc_time_print(m, &text);
    vqkvc_store_keep(db, "cost-model", recipe, &(vqkvc_hash){""}, 0, NULL, &text, err);
    free(text.data);
    return err->code;
}

vqkvc_code vqkvc_time_find(kvdb *db, const vqkvc_time_shape *shape, int only_find,
                           const vqkvc_log *log, vqkvc_time_model *m, int *found,
                           vqkvc_hash *recipe_hash, vqkvc_err *err)
{
    vqkvc_arena arena = {0};
    trials t = {0};
    const char *recipe = NULL;
    *found = 0;
    if (trials_make(&t, shape, &arena, err) == VQKVC_OK)
        recipe = recipe_of(&t, shape, &arena, err);
    if (recipe != NULL) {
        if (recipe_hash != NULL)
            *recipe_hash = kvdb_recipe_hash("cost-model", recipe);
        fetch(db, recipe, log, m, found, err);
        if (*found)
            vqkvc_say(log, 1, "cost model: found in the store");
        else if (!only_find && err->code == VQKVC_OK && measure(&t, shape, log, m, err) == VQKVC_OK)
            *found = keep(db, recipe, m, err) == VQKVC_OK;
    }
    trials_free(&t);
    vqkvc_arena_free(&arena);
    return err->code;
}

/* Whether db may have a model of this machine, as far as can be said at no cost. */
static vqkvc_code may_have(kvdb *db, const vqkvc_time_shape *shape, int *may, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    put_machine(shape, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a recipe");
    else
        kvdb_has_artifact(db, "cost-model", text.data, may, err);
    free(text.data);
    return err->code;
}

/* What is in db of this machine. The figure is one more line for people: without it (no compiler, a
 * damaged store) a command has done all the same, unless it is interrupted. */
static vqkvc_code look_up(kvdb *db, const vqkvc_time_shape *shape, const vqkvc_log *log,
                          vqkvc_time_model *m, int *found, vqkvc_err *err)
{
    vqkvc_err mine = {0};
    *found = 0;
    if (may_have(db, shape, found, &mine) == VQKVC_OK && *found)
        vqkvc_time_find(db, shape, 1, log, m, found, NULL, &mine);
    if (mine.code == VQKVC_E_INTERRUPTED)
        return vqkvc_fail(err, mine.code, "%s", mine.msg);
    if (mine.code != VQKVC_OK) {
        vqkvc_say(log, 1, "cost model: not looked up: %s", mine.msg);
        *found = 0;
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_time_given(const char *text, const vqkvc_geometry *g, vqkvc_time_model *m,
                            vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_time_parse(text, m, err));
    if (g != NULL && (m->head_dim != g->head_dim || m->group != g->n_heads / g->n_kv_heads))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--cost-model is of heads of %d channels and %d query heads a KV head, "
                          "the model has %d and %d",
                          m->head_dim, m->group, g->head_dim, g->n_heads / g->n_kv_heads);
    return VQKVC_OK;
}

vqkvc_code vqkvc_time_of_plan(kvdb *db, const vqkvc_options *o, const vqkvc_plan *plan,
                              const vqkvc_log *log, double *ns, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_time_shape shape = vqkvc_time_shape_of(g);
    vqkvc_time_model m;
    double terms[VQKVC_TIME_TERMS];
    int found = 1;
    *ns = -1;
    if (o->cost_model != NULL)
        VQKVC_TRY(vqkvc_time_given(o->cost_model, g, &m, err));
    else if (db != NULL && vqkvc_time_terms(plan, -1, VQKVC_TIME_CONTEXT, terms))
        VQKVC_TRY(look_up(db, &shape, log, &m, &found, err));
    else
        found = 0;
    if (found)
        *ns = vqkvc_time_predict(&m, plan);
    return VQKVC_OK;
}
