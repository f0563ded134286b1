#include "plan/search.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/allocate.h"
#include "plan/spectra.h"

enum { STEPS = 48 /* sizes of the shared streams that are tried of a grouping */ };

/* Sizes of streams are in nibbles, with their gains, and with their tables where these count: the
 * first few nibbles of a stream code nothing, see fixed(). */
typedef struct search {
    const vqkvc_capture *c;
    const vqkvc_auto_params *params;
    const vqkvc_metrics *metrics;
    vqkvc_arena *arena;
    vqkvc_design *best;
    int gain;        /* nibbles of a stream's gain */
    int tables_at;   /* as in vqkvc_auto_params */
    long total;      /* nibbles of a token */
    double per_bits; /* nibbles to bits a value */
} search;

/* Scratch of one grouping: arrays over own streams and scopes. */
typedef struct trial {
    double **curves, **paid; /* [n_own], [n_scopes]: own and shared curves, gains included */
    int *own, *share;
    int n_max;
    int fixed;         /* of own streams */
    int least;         /* nibbles of one code of one, with its part of the tables */
    int *fixed_shared; /* [n_scopes] */
} trial;

enum { GAIN_VALUES = 256 /* that the table of an 8-bit gain holds */ };

/* Nibbles that a stream over d channels takes whatever it codes: its gain, and the tables of its
 * means and of its gains. */
static int fixed(const search *s, int d)
{
    int tables = s->gain > 0 ? GAIN_VALUES : 0;
    return s->gain + (s->tables_at > 0 ? (int)ceil(4.0 * (d + tables) / s->tables_at) : 0);
}

/* Nibbles of one code of one channel of a stream over d channels, with its part of the tables. */
static int least_code(const search *s, int d)
{
    return 1 + (int)ceil(vqkvc_allocate_table(d, s->tables_at));
}

static void trial_free(trial *t, const vqkvc_grouping *w)
{
    for (int i = 0; t->curves != NULL && i < w->n_own; i++)
        free(t->curves[i]);
    for (int i = 0; t->paid != NULL && i < w->n_scopes; i++)
        free(t->paid[i]);
    free(t->curves);
    free(t->paid);
    free(t->own);
    free(t->share);
    free(t->fixed_shared);
}

/* The curve [n_max + 1] of a stream: nothing happens until what is fixed is paid for. */
static void pay_fixed(const double *curve, int n_max, int nibbles, double *paid)
{
    for (int j = n_max; j >= 0; j--)
        paid[j] = curve[j > nibbles ? j - nibbles : 0];
}

static vqkvc_code trial_make(trial *t, const search *s, const vqkvc_grouping *w, vqkvc_err *err)
{
    int dim = s->c->geometry.head_dim, d = w->own_heads * dim;
    *t = (trial){.fixed = fixed(s, d), .least = least_code(s, d)};
    t->n_max = t->fixed + (int)((2 + vqkvc_allocate_table(d, s->tables_at)) * d);
    t->fixed_shared = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->fixed_shared, err);
    t->curves = vqkvc_alloc((size_t)w->n_own, sizeof *t->curves, err);
    t->paid = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->paid, err);
    t->own = vqkvc_alloc((size_t)w->n_own, sizeof *t->own, err);
    t->share = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->share, err);
    for (int i = 0; i < w->n_own && err->code == VQKVC_OK; i++)
        t->curves[i] = vqkvc_alloc((size_t)t->n_max + 1, sizeof(double), err);
    for (int i = 0; i < w->n_scopes && err->code == VQKVC_OK; i++) {
        t->paid[i] = vqkvc_alloc((size_t)w->n_max + 1, sizeof(double), err);
        t->fixed_shared[i] = fixed(s, vqkvc_scope_members(&w->scopes[i]) * dim);
        if (t->paid[i] != NULL)
            pay_fixed(w->curve[i], w->n_max, t->fixed_shared[i], t->paid[i]);
    }
    return err->code;
}

/* Keeps a design: copies scopes and shares into the arena. */
static vqkvc_code keep_best(const search *s, const vqkvc_grouping *w, const trial *t,
                            const vqkvc_design *found, vqkvc_err *err)
{
    vqkvc_design *best = s->best;
    const int *own = t->own;
    *best = *found;
    best->layers_shared = w->layers;
    best->heads_shared = w->heads;
    best->n_scopes = w->n_scopes;
    best->scopes = vqkvc_arena_alloc(s->arena, (size_t)w->n_scopes, sizeof *best->scopes, err);
    for (int i = 0; i < w->n_scopes && err->code == VQKVC_OK; i++) {
        int n = vqkvc_scope_own(&w->scopes[i]);
        int *copy = vqkvc_arena_alloc(s->arena, (size_t)n, sizeof(int), err);
        best->scopes[i] = w->scopes[i];
        best->scopes[i].shared = t->share[i] > 0 ? t->share[i] - t->fixed_shared[i] : 0;
        best->scopes[i].own = copy;
        for (int j = 0; j < n && copy != NULL; j++)
            copy[j] = own[j] > 0 ? own[j] - t->fixed : 0;
        own += n;
    }
    return err->code;
}

/* Streams that got no more than what is fixed give it back: nibbles [n], or the same for all. */
static long settle(int n, const int *nibbles, int all, int *share)
{
    long used = 0;
    for (int i = 0; i < n; i++) {
        if (share[i] <= (nibbles != NULL ? nibbles[i] : all))
            share[i] = 0;
        used += share[i];
    }
    return used;
}

/* Whether every value is in a stream, and what attention reads, in nibbles a token. */
static int covers(const vqkvc_grouping *w, const trial *t, double *scan)
{
    const int *own = t->own;
    int all = 1;
    *scan = 0;
    for (int i = 0; i < w->n_scopes; i++) {
        const vqkvc_scope *scope = &w->scopes[i];
        *scan += (double)t->share[i] * vqkvc_scope_members(scope);
        for (int j = 0; j < vqkvc_scope_own(scope); j++, own++) {
            *scan += (double)*own * scope->own_heads;
            all = all && (*own > 0 || t->share[i] > 0);
        }
    }
    return all;
}

/* Evaluates one grouping with `nibbles` a shared stream on average. */
static vqkvc_code try_share(const search *s, const vqkvc_grouping *w, trial *t, long nibbles,
                            vqkvc_err *err)
{
    double scan, limit = s->params->max_scan;
    vqkvc_design found = {0};
    memset(t->share, 0, (size_t)w->n_scopes * sizeof *t->share);
    VQKVC_TRY(vqkvc_allocate_shares(w->n_scopes, w->n_max, (const double *const *)t->paid,
                                    nibbles * w->n_scopes, t->share, err));
    long left = s->total - settle(w->n_scopes, t->fixed_shared, 0, t->share), least = 0;
    for (int i = 0, first = 0; i < w->n_scopes; i++)
        for (int j = 0; j < vqkvc_scope_own(&w->scopes[i]); j++, first++) {
            t->own[first] = t->share[i] > 0 ? 0 : t->fixed + t->least;
            least += t->own[first];
        }
    if (left < least)
        return VQKVC_OK;
    VQKVC_TRY(vqkvc_grouping_own(w, s->c, t->share, t->n_max - t->fixed, t->curves, err));
    for (int i = 0; i < w->n_own; i++)
        pay_fixed(t->curves[i], t->n_max, t->fixed, t->curves[i]);
    VQKVC_TRY(vqkvc_allocate_shares(w->n_own, t->n_max, (const double *const *)t->curves, left,
                                    t->own, err));
    found.bits = s->per_bits * (double)(s->total - left + settle(w->n_own, NULL, t->fixed, t->own));
    if (!covers(w, t, &scan) || (limit > 0 && scan * s->per_bits > limit + 1e-9))
        return VQKVC_OK;
    found.scan = scan * s->per_bits;
    for (int i = 0; i < w->n_own; i++)
        found.loss += t->curves[i][t->own[i]];
    if (s->best->n_scopes == 0 || found.loss < s->best->loss)
        return keep_best(s, w, t, &found, err);
    return VQKVC_OK;
}

/* All sizes of the shared streams of one grouping; none where it has no more than one member. */
static vqkvc_code try_grouping(const search *s, int layers, int heads, int own_heads,
                               vqkvc_err *err)
{
    const vqkvc_geometry *g = &s->c->geometry;
    vqkvc_grouping w = {
        .layers = layers, .heads = heads, .own_heads = own_heads, .tables_at = s->tables_at};
    trial t = {0};
    int shares = layers * heads > own_heads;
    long scopes = 2L * ((g->n_layers + layers - 1) / layers) * (g->n_kv_heads / heads);
    long n_in = (long)layers * heads * g->head_dim, top = shares ? 4 * s->total / scopes : 0;
    /* More than two nibbles a channel are of no use, nor is more than four times a fair share. */
    long most = (long)((2 + vqkvc_allocate_table((int)n_in, s->tables_at)) * (double)n_in);
    top = top < most ? top : most;
    long step = top / STEPS > 0 ? top / STEPS : 1;
    if (vqkvc_grouping_make(&w, s->c, s->params, s->metrics, (int)top, err) == VQKVC_OK &&
        trial_make(&t, s, &w, err) == VQKVC_OK)
        for (long n = shares ? step : 0; n <= top && n * scopes <= s->total; n += step)
            if (try_share(s, &w, &t, n, err) != VQKVC_OK)
                break;
    trial_free(&t, &w);
    vqkvc_grouping_free(&w);
    if (vqkvc_interrupted())
        vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while planning");
    return err->code;
}

/* Groupings of `layers` layers: each head by itself, and all of them joined. */
static vqkvc_code try_layers(const search *s, int layers, vqkvc_err *err)
{
    const vqkvc_geometry *g = &s->c->geometry;
    if ((long)layers * g->head_dim > VQKVC_MOST_JOINED)
        return VQKVC_OK;
    VQKVC_TRY(try_grouping(s, layers, 1, 1, err));
    if (s->params->separate_heads || g->n_kv_heads == 1 ||
        (long)layers * g->n_kv_heads * g->head_dim > VQKVC_MOST_JOINED)
        return VQKVC_OK;
    VQKVC_TRY(try_grouping(s, layers, g->n_kv_heads, g->n_kv_heads, err));
    return try_grouping(s, layers, g->n_kv_heads, 1, err);
}

static void infeasible(const search *s, vqkvc_err *err)
{
    char reads[48] = "";
    if (s->params->max_scan > 0)
        snprintf(reads, sizeof reads, " and reads at most %.3g", s->params->max_scan);
    vqkvc_fail(err, VQKVC_E_INFEASIBLE,
               "no plan has at most %.3g bits a value%s: a stream takes %d bits a token at least, "
               "and every value must be in one",
               s->params->bits, reads, 4 * (s->gain + least_code(s, s->c->geometry.head_dim)));
}

vqkvc_code vqkvc_search(const vqkvc_capture *c, const vqkvc_auto_params *params,
                        const vqkvc_metrics *metrics, vqkvc_arena *arena, const vqkvc_log *log,
                        vqkvc_design *best, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim;
    search s = {.c = c,
                .params = params,
                .metrics = metrics,
                .arena = arena,
                .best = best,
                .tables_at = params->tables_at,
                .gain = params->no_gain ? 0 : VQKVC_GAIN_BITS / 4,
                .total = (long)floor(params->bits * values / 4),
                .per_bits = 4 / values};
    *best = (vqkvc_design){0};
    for (int layers = 1; err->code == VQKVC_OK; layers *= 2) {
        int last = layers >= g->n_layers || params->layers_shared > 0;
        int n = params->layers_shared > 0 ? params->layers_shared : last ? g->n_layers : layers;
        if (try_layers(&s, n < g->n_layers ? n : g->n_layers, err) == VQKVC_OK)
            vqkvc_say(log, 1, "layers shared %d: least predicted loss so far %.4g", n, best->loss);
        if (last)
            break;
    }
    if (err->code == VQKVC_OK && best->n_scopes == 0)
        infeasible(&s, err);
    return err->code;
}
