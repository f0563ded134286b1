#include "plan/search.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/allocate.h"
#include "plan/spectra.h"
#include "plan/universal.h"

enum {
    STEPS = 48, /* sizes of the shared streams that are tried of a grouping */
    PRICES = 8  /* prices of time that are tried where a size takes too long */
};

/* Prices of time are sought within this factor of the loss over the time that no price gives. */
static const double price_range = 1000;

/* Sizes of streams are in nibbles, with their gains, and with their tables where these count: the
 * first few nibbles of a stream code nothing, see fixed(). */
typedef struct search {
    const vqkvc_capture *c;
    const vqkvc_auto_params *params;
    const vqkvc_metrics *metrics;
    vqkvc_arena *arena;
    vqkvc_design *best;
    int gain;         /* nibbles of a stream's gain */
    int tables_at;    /* as in vqkvc_auto_params */
    long total;       /* nibbles of a token */
    double per_bits;  /* nibbles to bits a value */
    double *least_ns; /* of what was tried, where it was too much */
} search;

/* Scratch of one grouping: arrays over own streams and scopes. */
typedef struct trial {
    double **curves, **paid;   /* [n_own], [n_scopes]: own and shared curves, gains included */
    double **times, **ns_paid; /* the same of the time they take; NULL: no cost model is given */
    double **priced;           /* room for either: error and time at a price */
    unsigned char **picks;     /* [n_own]: vqkvc_universal_curve(); NULL: no stream is universal */
    int *own, *share;
    int *made_for; /* [n_scopes] shares that the own curves are of; made_for[0] < 0: of none */
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
    return 1 + (int)ceil(vqkvc_allocate_table(d, s->c->geometry.head_dim, s->tables_at));
}

static void free_rows(double **rows, int n)
{
    for (int i = 0; rows != NULL && i < n; i++)
        free(rows[i]);
    free(rows);
}

/* [n][length] */
static double **make_rows(int n, int length, vqkvc_err *err)
{
    double **rows = vqkvc_alloc((size_t)n, sizeof *rows, err);
    for (int i = 0; i < n && err->code == VQKVC_OK; i++)
        rows[i] = vqkvc_alloc((size_t)length, sizeof(double), err);
    return rows;
}

static unsigned char **make_picks(int n, int length, vqkvc_err *err)
{
    unsigned char **picks = vqkvc_alloc((size_t)n, sizeof *picks, err);
    for (int i = 0; i < n && err->code == VQKVC_OK; i++)
        picks[i] = vqkvc_alloc((size_t)length, 1, err);
    return picks;
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

static void trial_free(trial *t, const vqkvc_grouping *w)
{
    free_rows(t->curves, w->n_own);
    free_rows(t->times, w->n_own);
    free_rows(t->paid, w->n_scopes);
    free_rows(t->ns_paid, w->n_scopes);
    free_rows(t->priced, larger(w->n_own, w->n_scopes));
    for (int i = 0; t->picks != NULL && i < w->n_own; i++)
        free(t->picks[i]);
    free(t->picks);
    free(t->own);
    free(t->share);
    free(t->made_for);
    free(t->fixed_shared);
}

/* The curve [n_max + 1] of a stream: nothing happens until what is fixed is paid for. */
static void pay_fixed(const double *curve, int n_max, int nibbles, double *paid)
{
    for (int j = n_max; j >= 0; j--)
        paid[j] = curve[j > nibbles ? j - nibbles : 0];
}

/* The same of time: a stream that is there takes `ns` whatever it codes. */
static void pay_time(const double *time, int n_max, int nibbles, double ns, double *paid)
{
    for (int j = n_max; j >= 0; j--)
        paid[j] = j > nibbles ? ns + time[j - nibbles] : 0;
}

static double stream_ns(const search *s, const vqkvc_scope *scope, int own)
{
    vqkvc_time_readers r = vqkvc_scope_readers(scope, s->params, own);
    return vqkvc_time_stream(s->params->time, &r);
}

/* What is fixed of the shared streams, paid for in their curves. */
static void pay_shared(trial *t, const search *s, const vqkvc_grouping *w)
{
    for (int i = 0; i < w->n_scopes; i++) {
        const vqkvc_scope *scope = &w->scopes[i];
        int nibbles = fixed(s, vqkvc_scope_members(scope) * s->c->geometry.head_dim);
        t->fixed_shared[i] = nibbles;
        pay_fixed(w->curve[i], w->n_max, nibbles, t->paid[i]);
        if (w->time != NULL)
            pay_time(w->time[i], w->n_max, nibbles, stream_ns(s, scope, 0), t->ns_paid[i]);
    }
}

static vqkvc_code trial_make(trial *t, const search *s, const vqkvc_grouping *w, vqkvc_err *err)
{
    int dim = s->c->geometry.head_dim, d = w->own_heads * dim;
    *t = (trial){.fixed = fixed(s, d), .least = least_code(s, d)};
    t->n_max = t->fixed + (int)((2 + vqkvc_allocate_table(d, dim, s->tables_at)) * d);
    t->fixed_shared = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->fixed_shared, err);
    t->own = vqkvc_alloc((size_t)w->n_own, sizeof *t->own, err);
    t->share = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->share, err);
    t->made_for = vqkvc_alloc((size_t)w->n_scopes, sizeof *t->made_for, err);
    t->curves = make_rows(w->n_own, t->n_max + 1, err);
    t->paid = make_rows(w->n_scopes, w->n_max + 1, err);
    if (w->universal && err->code == VQKVC_OK)
        t->picks = make_picks(w->n_own, t->n_max + 1, err);
    if (w->time != NULL && err->code == VQKVC_OK) {
        t->times = make_rows(w->n_own, t->n_max + 1, err);
        t->ns_paid = make_rows(w->n_scopes, w->n_max + 1, err);
        t->priced = make_rows(larger(w->n_own, w->n_scopes), larger(t->n_max, w->n_max) + 1, err);
    }
    if (err->code == VQKVC_OK) {
        t->made_for[0] = -1;
        pay_shared(t, s, w);
    }
    return err->code;
}

/* How own stream i is coded: 0 in a basis, else 1 + a universal code. */
static int pick_of(const trial *t, int i)
{
    return t->picks != NULL && t->own[i] > t->fixed ? t->picks[i][t->own[i] - t->fixed] : 0;
}

/* Nibbles of a token for the tables of the universal codes in use, which streams share. */
static long universal_books(const search *s, const vqkvc_grouping *w, const trial *t)
{
    int used[1 + VQKVC_UNIVERSALS] = {0};
    double bits = 0;
    for (int i = 0; i < w->n_own; i++)
        used[pick_of(t, i)] = 1;
    for (int code = 0; code < VQKVC_UNIVERSALS; code++)
        bits += used[1 + code] ? vqkvc_universal_book_bits(code) : 0;
    return s->tables_at > 0 ? (long)ceil(bits / (4.0 * s->tables_at)) : 0;
}

/* Keeps a design: copies scopes and shares into the arena. */
static vqkvc_code keep_best(const search *s, const vqkvc_grouping *w, const trial *t,
                            const vqkvc_design *found, vqkvc_err *err)
{
    vqkvc_design *best = s->best;
    int first = 0;
    *best = *found;
    best->layers_shared = w->layers;
    best->heads_shared = w->heads;
    best->n_scopes = w->n_scopes;
    best->scopes = vqkvc_arena_alloc(s->arena, (size_t)w->n_scopes, sizeof *best->scopes, err);
    for (int i = 0; i < w->n_scopes && err->code == VQKVC_OK; i++) {
        int n = vqkvc_scope_own(&w->scopes[i]);
        int *own = vqkvc_arena_alloc(s->arena, (size_t)n, sizeof(int), err);
        int *universal = vqkvc_arena_alloc(s->arena, (size_t)n, sizeof(int), err);
        best->scopes[i] = w->scopes[i];
        best->scopes[i].shared = t->share[i] > 0 ? t->share[i] - t->fixed_shared[i] : 0;
        best->scopes[i].own = own;
        best->scopes[i].universal = universal;
        for (int j = 0; j < n && err->code == VQKVC_OK; j++) {
            own[j] = t->own[first + j] > 0 ? t->own[first + j] - t->fixed : 0;
            universal[j] = pick_of(t, first + j);
        }
        first += n;
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

/* How often a token's codes of a stream are read: where keys are rebuilt that is done once for all
 * heads of a layer. */
static int readers(const search *s, const vqkvc_scope *scope, int own)
{
    vqkvc_time_readers r = vqkvc_scope_readers(scope, s->params, own);
    return r.part == VQKVC_PART_K && r.frame == VQKVC_FRAME_PRE ? r.layers : r.members;
}

/* Whether every value is in a stream, and what attention reads, in nibbles a token. */
static int covers(const search *s, const vqkvc_grouping *w, const trial *t, double *scan)
{
    const int *own = t->own;
    int all = 1;
    *scan = 0;
    for (int i = 0; i < w->n_scopes; i++) {
        const vqkvc_scope *scope = &w->scopes[i];
        *scan += (double)t->share[i] * readers(s, scope, 0);
        for (int j = 0; j < vqkvc_scope_own(scope); j++, own++) {
            *scan += (double)*own * readers(s, scope, 1);
            all = all && (*own > 0 || t->share[i] > 0);
        }
    }
    return all;
}

/* What attention takes, in ns a token and KV head; 0 without a cost model. */
static double time_of(const search *s, const vqkvc_grouping *w, const trial *t)
{
    const vqkvc_geometry *g = &s->c->geometry;
    int heads = g->n_layers * g->n_kv_heads;
    if (t->times == NULL)
        return 0;
    double ns = vqkvc_time_heads(s->params->time, s->params->frame, &s->params->window, heads);
    for (int i = 0; i < w->n_scopes; i++)
        ns += t->ns_paid[i][t->share[i]];
    for (int i = 0; i < w->n_own; i++)
        ns += t->times[i][t->own[i]];
    return ns / heads;
}

/* vqkvc_allocate_shares() on errors and, at a price, times: both [n][n_max + 1]. */
static vqkvc_code allocate(trial *t, int n, int n_max, double *const *errors, double *const *times,
                           double price, long total, int *share, vqkvc_err *err)
{
    double *const *curves = errors;
    if (price > 0) {
        curves = t->priced;
        for (int i = 0; i < n; i++)
            for (int j = 0; j <= n_max; j++)
                curves[i][j] = errors[i][j] + price * times[i][j];
    }
    return vqkvc_allocate_shares(n, n_max, (const double *const *)curves, total, share, err);
}

/* Curves of the own streams beside the shares at hand. */
static vqkvc_code make_own(const search *s, const vqkvc_grouping *w, trial *t, vqkvc_err *err)
{
    size_t bytes = (size_t)w->n_scopes * sizeof *t->share;
    if (memcmp(t->made_for, t->share, bytes) == 0)
        return VQKVC_OK;
    VQKVC_TRY(vqkvc_grouping_own(w, s->c, s->params, t->share, t->n_max - t->fixed, t->curves,
                                 t->times, t->picks, err));
    for (int i = 0, at = 0; i < w->n_scopes; i++)
        for (int j = 0; j < vqkvc_scope_own(&w->scopes[i]); j++, at++) {
            pay_fixed(t->curves[at], t->n_max, t->fixed, t->curves[at]);
            if (t->times != NULL)
                pay_time(t->times[at], t->n_max, t->fixed, stream_ns(s, &w->scopes[i], 1),
                         t->times[at]);
        }
    memcpy(t->made_for, t->share, bytes);
    return VQKVC_OK;
}

/* The least that own streams take: *least, and t->own. */
static void begin_own(trial *t, const vqkvc_grouping *w, long *least)
{
    *least = 0;
    for (int i = 0, first = 0; i < w->n_scopes; i++)
        for (int j = 0; j < vqkvc_scope_own(&w->scopes[i]); j++, first++) {
            t->own[first] = t->share[i] > 0 ? 0 : t->fixed + t->least;
            *least += t->own[first];
        }
}

/* Shares `left` nibbles among the own streams, of which *books are left for the tables of universal
 * codes: more than `left` if there is no room. What these take follows from the codes that are
 * chosen, and only rises here. */
static vqkvc_code share_own(const search *s, const vqkvc_grouping *w, trial *t, double price,
                            long left, long *books, vqkvc_err *err)
{
    long least;
    for (*books = 0; err->code == VQKVC_OK;) {
        begin_own(t, w, &least);
        if (left - *books < least) {
            *books = left + 1; /* there is no room for them */
            break;
        }
        if (allocate(t, w->n_own, t->n_max, t->curves, t->times, price, left - *books, t->own,
                     err) != VQKVC_OK)
            break;
        long used = universal_books(s, w, t);
        if (used <= *books)
            break;
        *books = used;
    }
    return err->code;
}

/* One grouping with `nibbles` a shared stream on average, where a nanosecond costs `price`: *found
 * is what comes of it, apart from scopes; *possible, whether it keeps bits and scan. */
static vqkvc_code try_price(const search *s, const vqkvc_grouping *w, trial *t, long nibbles,
                            double price, vqkvc_design *found, int *possible, vqkvc_err *err)
{
    double scan, limit = s->params->max_scan;
    *found = (vqkvc_design){0};
    *possible = 0;
    memset(t->share, 0, (size_t)w->n_scopes * sizeof *t->share);
    VQKVC_TRY(allocate(t, w->n_scopes, w->n_max, t->paid, t->ns_paid, price, nibbles * w->n_scopes,
                       t->share, err));
    long left = s->total - settle(w->n_scopes, t->fixed_shared, 0, t->share), least, books;
    begin_own(t, w, &least);
    if (left < least)
        return VQKVC_OK;
    VQKVC_TRY(make_own(s, w, t, err));
    VQKVC_TRY(share_own(s, w, t, price, left, &books, err));
    if (books > left)
        return VQKVC_OK;
    found->bits =
        s->per_bits * (double)(s->total - left + books + settle(w->n_own, NULL, t->fixed, t->own));
    if (!covers(s, w, t, &scan) || (limit > 0 && scan * s->per_bits > limit + 1e-9))
        return VQKVC_OK;
    *possible = 1;
    found->scan = scan * s->per_bits;
    found->ns = time_of(s, w, t);
    for (int i = 0; i < w->n_own; i++)
        found->loss += t->curves[i][t->own[i]];
    return VQKVC_OK;
}

static int in_time(const search *s, const vqkvc_design *found)
{
    return s->params->max_ns <= 0 || found->ns <= s->params->max_ns;
}

static int better(const search *s, const vqkvc_design *found)
{
    return s->best->n_scopes == 0 || found->loss < s->best->loss;
}

/* The least price of time that keeps the limit, by bisection, for a size that takes too long
 * without: `free` is what that gave. */
static vqkvc_code squeeze(const search *s, const vqkvc_grouping *w, trial *t, long nibbles,
                          const vqkvc_design *free, vqkvc_err *err)
{
    vqkvc_design found;
    int possible;
    double middle = free->loss / (free->ns * s->c->geometry.n_layers * s->c->geometry.n_kv_heads);
    double low = middle / price_range, high = middle * price_range, price = high;
    for (int i = 0; i < PRICES; i++, price = sqrt(low * high)) {
        VQKVC_TRY(try_price(s, w, t, nibbles, price, &found, &possible, err));
        int keeps = possible && in_time(s, &found);
        if (keeps && better(s, &found))
            VQKVC_TRY(keep_best(s, w, t, &found, err));
        if (i == 0 && possible)
            *s->least_ns = fmin(*s->least_ns, found.ns);
        if (i == 0 && !keeps)
            break;
        if (keeps)
            high = price;
        else
            low = price;
    }
    return VQKVC_OK;
}

/* Evaluates one grouping with `nibbles` a shared stream on average. */
static vqkvc_code try_share(const search *s, const vqkvc_grouping *w, trial *t, long nibbles,
                            vqkvc_err *err)
{
    vqkvc_design found;
    int possible;
    VQKVC_TRY(try_price(s, w, t, nibbles, 0, &found, &possible, err));
    /* Time only takes from what a size can do. */
    if (!possible || !better(s, &found))
        return VQKVC_OK;
    return in_time(s, &found) ? keep_best(s, w, t, &found, err)
                              : squeeze(s, w, t, nibbles, &found, err);
}

/* All sizes of the shared streams of one grouping; none where it has no more than one member. */
static vqkvc_code try_grouping(const search *s, int layers, int heads, int own_heads,
                               vqkvc_err *err)
{
    const vqkvc_geometry *g = &s->c->geometry;
    vqkvc_grouping w = {
        .layers = layers, .heads = heads, .own_heads = own_heads, .tables_at = s->tables_at};
    /* Without a count of tables bases are better at any rate; the cost model knows no wide codes.
     */
    w.universal = s->tables_at > 0 && s->gain > 0 && s->params->time == NULL &&
                  vqkvc_universal_fits(own_heads * g->head_dim);
    trial t = {0};
    int shares = layers * heads > own_heads;
    long scopes = 2L * ((g->n_layers + layers - 1) / layers) * (g->n_kv_heads / heads);
    long n_in = (long)layers * heads * g->head_dim, top = shares ? 4 * s->total / scopes : 0;
    /* More than two nibbles a channel are of no use, nor is more than four times a fair share. */
    long most =
        (long)((2 + vqkvc_allocate_table((int)n_in, g->head_dim, s->tables_at)) * (double)n_in);
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
    if (isfinite(*s->least_ns)) {
        vqkvc_fail(err, VQKVC_E_INFEASIBLE,
                   "no plan has at most %.3g bits a value%s in %.4g ns a cached token and KV head: "
                   "the least that was found takes %.4g",
                   s->params->bits, reads, s->params->max_ns, *s->least_ns);
        return;
    }
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
    double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim, least_ns = INFINITY;
    search s = {.c = c,
                .params = params,
                .metrics = metrics,
                .arena = arena,
                .best = best,
                .least_ns = &least_ns,
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
