#include "plan/vqkv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "fit/fit.h"
#include "plan/calibration.h"
#include "plan/fit_stream.h"

/* As published, by part. */
enum { PUBLISHED_DIM = 128 };
static const int published_stages[2] = {56, 16}, published_bits[2] = {10, 9};

enum { MAX_SWEEPS = 8, MAX_BRANCHES = 2 };

static vqkvc_vqkv_params with_defaults(const vqkvc_vqkv_params *given, int head_dim)
{
    vqkvc_vqkv_params p = *given;
    for (int part = 0; part < 2; part++) {
        int stages = (published_stages[part] * head_dim + PUBLISHED_DIM / 2) / PUBLISHED_DIM;
        if (p.stages[part] == 0)
            p.stages[part] = stages > 0 ? stages : 1;
        if (p.bits[part] == 0)
            p.bits[part] = published_bits[part];
    }
    p.sweeps = p.sweeps == 0 ? 1 : p.sweeps < 0 ? 0 : p.sweeps > MAX_SWEEPS ? MAX_SWEEPS : p.sweeps;
    p.max_points = p.max_points > 0 ? p.max_points : 65536;
    p.window.n_sink = p.window.n_sink > 0 ? p.window.n_sink : 4;
    p.window.n_recent = p.window.n_recent > 0 ? p.window.n_recent : 32;
    p.window.block = p.window.block > 0 ? p.window.block : 64;
    p.seed = p.seed > 0 ? p.seed : 1;
    return p;
}

static vqkvc_code check_branches(const vqkvc_geometry *g, const vqkvc_vqkv_params *p,
                                 vqkvc_err *err)
{
    int rotated = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot;
    if (p->branches < 0 || p->branches > MAX_BRANCHES)
        return vqkvc_fail(err, VQKVC_E_USAGE, "vqkv: %d branches: wanted 1 or 2", p->branches);
    if (p->branches == 2 && rotated < 4)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "vqkv: branches go by the frequencies of keys, of which %d channels are "
                          "rotated",
                          rotated);
    if (p->branches == 2 && p->stages[VQKVC_PART_K] < 2)
        return vqkvc_fail(err, VQKVC_E_USAGE, "vqkv: two branches of %d stage of keys",
                          p->stages[VQKVC_PART_K]);
    return VQKVC_OK;
}

static vqkvc_code check_values(const vqkvc_vqkv_params *p, vqkvc_err *err)
{
    for (int part = 0; part < 2; part++)
        if (p->bits[part] < 1 || p->bits[part] > 16 || p->stages[part] < 1 ||
            p->stages[part] > VQKVC_MAX_STAGES)
            return vqkvc_fail(
                err, VQKVC_E_USAGE, "vqkv: %d stages of %d bits for %s: wanted 1 to %d of 1 to 16",
                p->stages[part], p->bits[part], vqkvc_part_word(part), VQKVC_MAX_STAGES);
    if ((unsigned)p->share > VQKVC_SHARE_HEAD)
        return vqkvc_fail(err, VQKVC_E_USAGE, "vqkv: share is %d", (int)p->share);
    if (p->beam < 0 || p->beam > VQKVC_MAX_BEAM)
        return vqkvc_fail(err, VQKVC_E_USAGE, "vqkv: a beam of %d: wanted 1 to %d", p->beam,
                          VQKVC_MAX_BEAM);
    return VQKVC_OK;
}

vqkvc_code vqkvc_vqkv_check(const vqkvc_vqkv_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err)
{
    vqkvc_vqkv_params p = with_defaults(params, g != NULL ? g->head_dim : PUBLISHED_DIM);
    VQKVC_TRY(check_values(&p, err));
    return g != NULL ? check_branches(g, &p, err) : VQKVC_OK;
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_vqkv_params *p, vqkvc_err *err)
{
    VQKVC_TRY(check_values(p, err));
    VQKVC_TRY(check_branches(&c->geometry, p, err));
    if (c->n_sample < 256)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit codebooks (wanted 256 or more)",
                          c->n_sample);
    return VQKVC_OK;
}

/* The channels of a head that one residual stack codes. */
typedef struct branch {
    const char *name; /* " high", or "" where there is but one */
    int stages;
    int n, channels[VQKVC_MAX_HEAD_DIM];
    int select; /* table [head_dim, n] of zeros and ones; -1: all channels */
} branch;

/* Whether a channel of keys belongs to the faster half of the rotated pairs. */
static int is_fast(const vqkvc_geometry *g, int channel)
{
    int pairs = g->n_rot / 2, faster = 0;
    if (channel >= g->n_rot)
        return 0;
    int mine = g->rope_layout == VQKVC_ROPE_INTERLEAVED ? channel / 2 : channel % pairs;
    for (int i = 0; i < pairs; i++) {
        double f = fabs(g->rope_freq[i]), m = fabs(g->rope_freq[mine]);
        faster += f > m || (f == m && i < mine);
    }
    return faster < pairs / 2;
}

static vqkvc_code add_selection(vqkvc_plan *plan, branch *b, vqkvc_err *err)
{
    b->select = vqkvc_plan_add_table(plan, plan->geometry.head_dim, b->n, err, "select%s", b->name);
    for (int j = 0; b->select >= 0 && j < b->n; j++)
        plan->tables[b->select].f16[b->channels[j] * b->n + j] = vqkvc_f32_to_f16(1);
    return err->code;
}

/* The branches of a part: b [MAX_BRANCHES], *n of them. */
static vqkvc_code find_branches(vqkvc_plan *plan, const vqkvc_vqkv_params *p, vqkvc_part part,
                                branch *b, int *n, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    *n = part == VQKVC_PART_K && p->branches == 2 ? 2 : 1;
    for (int i = 0; i < *n; i++)
        b[i] = (branch){.name = *n == 1  ? ""
                                : i == 0 ? " low"
                                         : " high",
                        .stages = (p->stages[part] + (*n - 1 - i)) / *n,
                        .select = -1};
    for (int c = 0; c < g->head_dim; c++) {
        branch *to = &b[*n == 2 && is_fast(g, c)];
        to->channels[to->n++] = c;
    }
    for (int i = 0; i<*n && * n> 1; i++)
        VQKVC_TRY(add_selection(plan, &b[i], err));
    return VQKVC_OK;
}

/* The heads of one part that share codebooks: layers first .. first + n_layers - 1, and of them one
 * head or all (head -1). */
typedef struct share_set {
    vqkvc_part part;
    int first, n_layers, head;
    char name[48];
} share_set;

static share_set set_of(const vqkvc_geometry *g, vqkvc_share share, vqkvc_part part, int layer,
                        int head)
{
    share_set s = {.part = part, .first = layer, .n_layers = 1, .head = -1};
    if (share == VQKVC_SHARE_MODEL) {
        s.first = 0;
        s.n_layers = g->n_layers;
        snprintf(s.name, sizeof s.name, "%s", vqkvc_part_word(part));
    } else if (share == VQKVC_SHARE_LAYER) {
        snprintf(s.name, sizeof s.name, "%s %d", vqkvc_part_word(part), layer);
    } else {
        s.head = head;
        snprintf(s.name, sizeof s.name, "%s %d h%d", vqkvc_part_word(part), layer, head);
    }
    return s;
}

/* Every step-th sampled vector of each head of a set, another one in each head, so that at most
 * max_points are taken, and of them a branch's channels: *x [*n, b->n], which the caller frees. */
static vqkvc_code gather(const vqkvc_capture *c, const vqkvc_vqkv_params *p, const share_set *set,
                         const branch *b, float **x, int *n, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    int heads = set->n_layers * (set->head < 0 ? g->n_kv_heads : 1);
    size_t dim = (size_t)g->head_dim, total = (size_t)heads * (size_t)c->n_sample;
    size_t step = (total + (size_t)p->max_points - 1) / (size_t)p->max_points, at = 0;
    float *all = vqkvc_alloc((size_t)c->n_sample * dim, sizeof *all, err);
    *x = vqkvc_alloc((total / step + (size_t)heads) * (size_t)b->n, sizeof **x, err);
    for (int h = 0; h < heads && err->code == VQKVC_OK; h++) {
        int per_layer = set->head < 0 ? g->n_kv_heads : 1;
        vqkvc_member m = {set->part, set->first + h / per_layer,
                          set->head < 0 ? h % per_layer : set->head};
        if (vqkvc_sample_members(c, &m, 1, &(vqkvc_key_frame){.frame = VQKVC_FRAME_POST}, p->seed,
                                 all, err) != VQKVC_OK)
            break;
        for (size_t i = (size_t)h % step; i < (size_t)c->n_sample; i += step, at++)
            for (int j = 0; j < b->n; j++)
                (*x)[at * (size_t)b->n + (size_t)j] = all[i * dim + (size_t)b->channels[j]];
    }
    *n = (int)at;
    free(all);
    return err->code;
}

/* Codebooks of one set and branch, from the store or fitted. */
static vqkvc_code codebooks_of(const vqkvc_capture *c, const vqkvc_vqkv_params *p,
                               const share_set *set, const branch *b, const vqkvc_fit_store *store,
                               const vqkvc_log *log, vqkvc_plan *plan, int book, vqkvc_err *err)
{
    const vqkvc_table *table = &plan->tables[book];
    vqkvc_residual_params fit = {
        .stages = b->stages, .bits = p->bits[set->part], .sweeps = p->sweeps, .seed = p->seed};
    size_t bytes = (size_t)table->rows * (size_t)table->cols * sizeof *table->f16;
    double objective[VQKVC_MAX_STAGES + 1 + MAX_SWEEPS];
    vqkvc_arena arena = {0};
    float *x = NULL;
    int n, found = 0;
    const char *recipe = vqkvc_arena_printf(
        &arena, err,
        VQKVC_FIT_VERSION
        " vqkv codebook set='%s%s' stages=%d bits=%d sweeps=%d points=%d seed=%llu from=%s",
        set->name, b->name, fit.stages, fit.bits, fit.sweeps, p->max_points,
        (unsigned long long)fit.seed, store->parent.hex);
    if (recipe != NULL &&
        vqkvc_fit_find(store, "codebook", recipe, bytes, table->f16, &found, err) == VQKVC_OK &&
        !found && gather(c, p, set, b, &x, &n, err) == VQKVC_OK &&
        vqkvc_fit_residual(n, b->n, x, &fit, table->f16, objective, err) == VQKVC_OK) {
        double first = objective[0] > 0 ? objective[0] : 1;
        double left = objective[fit.stages + fit.sweeps] / first;
        vqkvc_say(log, 1, "vqkv: %s%s: %d vectors; left %.4f, %.4f before refinement", set->name,
                  b->name, n, left, objective[fit.stages] / first);
        vqkvc_fit_keep(store, "codebook", recipe, &store->parent, "relative squared error", left,
                       table->f16, bytes, err);
    }
    if (err->code == VQKVC_OK) {
        vqkvc_hash fitted = kvdb_recipe_hash("codebook", recipe);
        vqkvc_plan_add_parent(plan, &fitted, err);
    } else {
        vqkvc_err_prefix(err, "codebooks %s%s", set->name, b->name);
    }
    free(x);
    vqkvc_arena_free(&arena);
    return err->code;
}

static vqkvc_code add_stream(vqkvc_plan *plan, const vqkvc_vqkv_params *p, vqkvc_member member,
                             const branch *b, int book, vqkvc_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "%s %d h%d%s", vqkvc_part_word(member.part), member.layer,
             member.head, b->name);
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, name, 1, &member, err);
    vqkvc_run *run = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    s->frame = VQKVC_FRAME_POST;
    s->n_latents = b->n;
    if (b->select >= 0) {
        s->transform = VQKVC_TRANSFORM_BASIS;
        s->enc = s->dec = b->select;
    }
    *run = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                       .groups = 1,
                       .width = b->n,
                       .bits = p->bits[member.part],
                       .stages = b->stages,
                       .beam = p->beam > 1 ? p->beam : 0,
                       .book = book};
    return VQKVC_OK;
}

/* A table for the codebooks of a set and branch, filled; its index is *book. */
static vqkvc_code add_codebooks(vqkvc_plan *plan, const vqkvc_capture *c,
                                const vqkvc_vqkv_params *p, const share_set *set, const branch *b,
                                const vqkvc_fit_store *store, const vqkvc_log *log, int *book,
                                vqkvc_err *err)
{
    *book = vqkvc_plan_add_table(plan, b->stages, b->n << p->bits[set->part], err, "codebooks %s%s",
                                 set->name, b->name);
    if (*book < 0)
        return err->code;
    return codebooks_of(c, p, set, b, store, log, plan, *book, err);
}

/* Streams of all heads of a part; codebooks where a set begins. */
static vqkvc_code build_part(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_vqkv_params *p,
                             vqkvc_part part, const vqkvc_fit_store *store, const vqkvc_log *log,
                             vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    branch branches[MAX_BRANCHES];
    int n, book[MAX_BRANCHES];
    VQKVC_TRY(find_branches(plan, p, part, branches, &n, err));
    for (int layer = 0; layer < g->n_layers; layer++)
        for (int head = 0; head < g->n_kv_heads; head++) {
            share_set set = set_of(g, p->share, part, layer, head);
            int begins = layer == set.first && (set.head >= 0 || head == 0);
            for (int i = 0; i < n; i++) {
                if (vqkvc_interrupted())
                    return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
                if (begins)
                    VQKVC_TRY(
                        add_codebooks(plan, c, p, &set, &branches[i], store, log, &book[i], err));
                VQKVC_TRY(add_stream(plan, p, (vqkvc_member){part, layer, head}, &branches[i],
                                     book[i], err));
            }
        }
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_vqkv(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_vqkv_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err)
{
    const vqkvc_geometry *g = &capture->geometry;
    vqkvc_vqkv_params p = with_defaults(params, g->head_dim);
    memset(plan, 0, sizeof *plan);
    VQKVC_TRY(check(capture, &p, err));
    plan->geometry = *g;
    plan->n_sink = p.window.n_sink;
    plan->n_recent = p.window.n_recent;
    plan->block = p.window.block;
    plan->calibration = *parent;
    snprintf(plan->scheme, sizeof plan->scheme, "vqkv%.4g",
             (double)(p.stages[0] * p.bits[0] + p.stages[1] * p.bits[1]) / (2 * g->head_dim));
    vqkvc_fit_store store = {.db = db,
                             .model = g->weights_hash,
                             .parent = *parent,
                             .settings = "frame=post",
                             .log = log};
    if (build_part(plan, capture, &p, VQKVC_PART_K, &store, log, err) == VQKVC_OK &&
        build_part(plan, capture, &p, VQKVC_PART_V, &store, log, err) == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
