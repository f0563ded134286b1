#include "plan/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fit/fit.h"
#include "plan/allocate.h"

static const double metric_ridge = 1e-3;

/* One way to group layers, with the spectra of its scopes. */
typedef struct grouping {
    int g, n_scopes, dim;
    vqkvc_scope *scopes; /* [n_scopes] */
    double **cov;        /* [n_scopes] -> [n_in, n_in] centred covariance */
    vqkvc_basis *basis;  /* [n_scopes], all latents */
    double **curve;      /* [n_scopes] -> error by nibbles of the shared stream */
    int n_max;           /* of the shared curves */
} grouping;

static const double *metric_of(const vqkvc_metrics *m, const vqkvc_geometry *g, vqkvc_part part,
                               int layer, int head)
{
    return (part == VQKVC_PART_K ? m->k : m->v)[layer * g->n_kv_heads + head];
}

static void grouping_free(grouping *w)
{
    for (int i = 0; i < w->n_scopes; i++) {
        if (w->cov != NULL)
            free(w->cov[i]);
        if (w->basis != NULL)
            vqkvc_basis_free(&w->basis[i]);
        if (w->curve != NULL)
            free(w->curve[i]);
    }
    free(w->scopes);
    free(w->cov);
    free(w->basis);
    free(w->curve);
}

static vqkvc_code scope_covariance(const vqkvc_capture *c, const vqkvc_auto_params *params,
                                   const vqkvc_scope *s, double *cov, vqkvc_err *err)
{
    vqkvc_member members[VQKVC_MAX_LAYERS];
    size_t n_in = (size_t)s->n_layers * (size_t)c->geometry.head_dim;
    for (int i = 0; i < s->n_layers; i++)
        members[i] = (vqkvc_member){.part = s->part, .layer = s->first + i, .head = s->head};
    float *x = vqkvc_alloc((size_t)c->n_sample * n_in, sizeof(float), err);
    double *mean = vqkvc_alloc(n_in, sizeof(double), err);
    if (err->code == VQKVC_OK) {
        if (vqkvc_sample_members(c, members, s->n_layers, params->frame, params->window.block,
                                 params->seed, x, err) == VQKVC_OK)
            vqkvc_fit_moments(c->n_sample, (int)n_in, x, n_in, NULL, mean, cov, err);
    }
    free(x);
    free(mean);
    return err->code;
}

/* Spectrum and curve of one scope's shared stream. */
static vqkvc_code scope_basis(grouping *w, int i, const vqkvc_geometry *g,
                              const vqkvc_metrics *metrics, vqkvc_err *err)
{
    const vqkvc_scope *s = &w->scopes[i];
    size_t dim = (size_t)w->dim, n_in = (size_t)s->n_layers * dim;
    double *full = vqkvc_alloc(n_in * n_in, sizeof(double), err);
    if (full == NULL)
        return err->code;
    for (int l = 0; l < s->n_layers; l++) {
        const double *m = metric_of(metrics, g, s->part, s->first + l, s->head);
        for (size_t r = 0; r < dim; r++)
            memcpy(full + ((size_t)l * dim + r) * n_in + (size_t)l * dim, m + r * dim,
                   dim * sizeof(double));
    }
    w->curve[i] = vqkvc_alloc((size_t)w->n_max + 1, sizeof(double), err);
    if (w->curve[i] != NULL && vqkvc_fit_basis((int)n_in, (int)n_in, w->cov[i], full, metric_ridge,
                                               &w->basis[i], err) == VQKVC_OK)
        vqkvc_allocate_curve((int)n_in, w->basis[i].lambda, w->n_max, w->curve[i], err);
    free(full);
    return err->code;
}

static vqkvc_code grouping_make(grouping *w, int g, const vqkvc_capture *c,
                                const vqkvc_auto_params *params, const vqkvc_metrics *metrics,
                                vqkvc_err *err)
{
    const vqkvc_geometry *geo = &c->geometry;
    int groups = (geo->n_layers + g - 1) / g, n = 2 * groups * geo->n_kv_heads;
    *w = (grouping){.g = g, .dim = geo->head_dim, .n_max = 4 * geo->head_dim};
    w->scopes = vqkvc_alloc((size_t)n, sizeof *w->scopes, err);
    w->cov = vqkvc_alloc((size_t)n, sizeof *w->cov, err);
    w->basis = vqkvc_alloc((size_t)n, sizeof *w->basis, err);
    w->curve = vqkvc_alloc((size_t)n, sizeof *w->curve, err);
    for (int part = 0; part < 2; part++)
        for (int first = 0; first < geo->n_layers; first += g)
            for (int head = 0; head < geo->n_kv_heads && err->code == VQKVC_OK; head++) {
                int i = w->n_scopes++, left = geo->n_layers - first;
                size_t n_in = (size_t)(left < g ? left : g) * (size_t)w->dim;
                w->scopes[i] = (vqkvc_scope){.part = (vqkvc_part)part,
                                             .head = head,
                                             .first = first,
                                             .n_layers = left < g ? left : g};
                w->cov[i] = vqkvc_alloc(n_in * n_in, sizeof(double), err);
                if (w->cov[i] != NULL &&
                    scope_covariance(c, params, &w->scopes[i], w->cov[i], err) == VQKVC_OK)
                    scope_basis(w, i, geo, metrics, err);
            }
    return err->code;
}

/* Curve [n_max + 1] of one layer's own stream, given the errors of the shared stream's latents. */
static vqkvc_code own_curve(const grouping *w, int i, int layer, const double *distortion,
                            const double *metric, int n_max, double *curve, vqkvc_err *err)
{
    int dim = w->dim, n_in = w->scopes[i].n_layers * dim;
    const vqkvc_basis *b = &w->basis[i];
    vqkvc_basis own = {0};
    double *cov = vqkvc_alloc((size_t)(dim * dim), sizeof(double), err);
    if (cov == NULL)
        return err->code;
    for (int r = 0; r < dim; r++)
        for (int c = 0; c < dim; c++) {
            const double *x = b->dec + (size_t)(layer * dim + r) * (size_t)b->n;
            const double *y = b->dec + (size_t)(layer * dim + c) * (size_t)b->n;
            double sum = 0;
            for (int j = 0; j < n_in; j++)
                sum += x[j] * distortion[j] * y[j];
            cov[r * dim + c] = sum;
        }
    if (vqkvc_fit_basis(dim, dim, cov, metric, metric_ridge, &own, err) == VQKVC_OK)
        vqkvc_allocate_curve(dim, own.lambda, n_max, curve, err);
    vqkvc_basis_free(&own);
    free(cov);
    return err->code;
}

/* The curves of all own streams [n_own][n_max + 1] when scope i's shared stream has share[i]. */
static vqkvc_code own_curves(const grouping *w, const vqkvc_geometry *g,
                             const vqkvc_metrics *metrics, const int *share, int n_max,
                             double **curves, vqkvc_err *err)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < w->n_scopes; i++) {
        const vqkvc_scope *s = &w->scopes[i];
        int n_in = s->n_layers * w->dim;
        vqkvc_err mine = {0};
        vqkvc_layout layout = {0};
        double *distortion = vqkvc_alloc((size_t)n_in, sizeof(double), &mine);
        if (distortion != NULL && share[i] > 0)
            vqkvc_allocate_layout(n_in, w->basis[i].lambda, share[i], &layout, &mine);
        if (mine.code == VQKVC_OK)
            vqkvc_layout_distortions(&layout, n_in, w->basis[i].lambda, distortion);
        for (int l = 0; l < s->n_layers && mine.code == VQKVC_OK; l++) {
            int slot = ((int)s->part * g->n_layers + s->first + l) * g->n_kv_heads + s->head;
            own_curve(w, i, l, distortion, metric_of(metrics, g, s->part, s->first + l, s->head),
                      n_max, curves[slot], &mine);
        }
        free(distortion);
        if (mine.code != VQKVC_OK)
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
    }
    return err->code;
}

/* Keeps a design if it is the best so far: copies scopes and shares into the arena. */
static vqkvc_code keep_best(const grouping *w, const vqkvc_geometry *g, const int *share,
                            const int *own, const vqkvc_design *found, vqkvc_arena *arena,
                            vqkvc_design *best, vqkvc_err *err)
{
    *best = *found;
    best->layers_shared = w->g;
    best->n_scopes = w->n_scopes;
    best->scopes = vqkvc_arena_alloc(arena, (size_t)w->n_scopes, sizeof *best->scopes, err);
    for (int i = 0; i < w->n_scopes && err->code == VQKVC_OK; i++) {
        const vqkvc_scope *s = &w->scopes[i];
        int *copy = vqkvc_arena_alloc(arena, (size_t)s->n_layers, sizeof(int), err);
        best->scopes[i] = *s;
        best->scopes[i].shared = share[i];
        best->scopes[i].own = copy;
        for (int l = 0; l < s->n_layers && copy != NULL; l++)
            copy[l] = own[((int)s->part * g->n_layers + s->first + l) * g->n_kv_heads + s->head];
    }
    return err->code;
}

/* Scratch of one search: arrays over own streams and scopes. */
typedef struct search {
    double **curves; /* [n_own] */
    int *own, *share;
    int n_own, n_max;
} search;

/* Evaluates one grouping with `nibbles` a shared stream on average. */
static vqkvc_code try_share(const grouping *w, const vqkvc_capture *c,
                            const vqkvc_auto_params *params, const vqkvc_metrics *metrics,
                            long nibbles, search *t, vqkvc_arena *arena, vqkvc_design *best,
                            vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim;
    double gains = VQKVC_GAIN_BITS * (double)t->n_own, scan = gains;
    long used = 0;
    vqkvc_allocate_shares(w->n_scopes, w->n_max, (const double *const *)w->curve, 0,
                          nibbles * w->n_scopes, t->share);
    for (int i = 0; i < w->n_scopes; i++) {
        used += t->share[i];
        gains += t->share[i] > 0 ? VQKVC_GAIN_BITS : 0;
        scan += t->share[i] > 0
                    ? (double)w->scopes[i].n_layers * (4.0 * t->share[i] + VQKVC_GAIN_BITS)
                    : 0;
    }
    long own = (long)floor((params->bits * values - gains) / 4) - used;
    scan += 4.0 * (double)own;
    if (own < t->n_own || (params->max_scan > 0 && scan / values > params->max_scan + 1e-9))
        return VQKVC_OK;
    VQKVC_TRY(own_curves(w, g, metrics, t->share, t->n_max, t->curves, err));
    vqkvc_allocate_shares(t->n_own, t->n_max, (const double *const *)t->curves, 1, own, t->own);
    vqkvc_design found = {.bits = (gains + 4.0 * (double)(used + own)) / values,
                          .scan = scan / values};
    for (int i = 0; i < t->n_own; i++)
        found.loss += t->curves[i][t->own[i]];
    if (best->n_scopes == 0 || found.loss < best->loss)
        return keep_best(w, g, t->share, t->own, &found, arena, best, err);
    return VQKVC_OK;
}

static vqkvc_code search_make(search *t, const vqkvc_geometry *g, vqkvc_arena *arena,
                              vqkvc_err *err)
{
    t->n_own = 2 * g->n_layers * g->n_kv_heads;
    t->n_max = 2 * g->head_dim;
    t->curves = vqkvc_arena_alloc(arena, (size_t)t->n_own, sizeof(double *), err);
    t->own = vqkvc_arena_alloc(arena, (size_t)t->n_own, sizeof(int), err);
    t->share = vqkvc_arena_alloc(arena, (size_t)t->n_own, sizeof(int), err);
    for (int i = 0; i < t->n_own && err->code == VQKVC_OK; i++)
        t->curves[i] = vqkvc_arena_alloc(arena, (size_t)t->n_max + 1, sizeof(double), err);
    return err->code;
}

vqkvc_code vqkvc_search(const vqkvc_capture *c, const vqkvc_auto_params *params,
                        const vqkvc_metrics *metrics, vqkvc_arena *arena, const vqkvc_log *log,
                        vqkvc_design *best, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    search t = {0};
    *best = (vqkvc_design){0};
    VQKVC_TRY(search_make(&t, g, arena, err));
    for (int share = 1; share <= g->n_layers && err->code == VQKVC_OK; share *= 2) {
        grouping w = {0};
        int layers = params->layers_shared > 0 ? params->layers_shared : share;
        if (grouping_make(&w, layers, c, params, metrics, err) == VQKVC_OK) {
            /* A sixteenth of a head's channels at a time, up to four nibbles a channel. */
            int step = g->head_dim / 16 > 0 ? g->head_dim / 16 : 1;
            int top = layers == 1 ? 0 : 4 * g->head_dim;
            for (int nibbles = layers == 1 ? 0 : step; nibbles <= top; nibbles += step)
                if (try_share(&w, c, params, metrics, nibbles, &t, arena, best, err) != VQKVC_OK)
                    break;
            vqkvc_say(log, 1, "layers shared %d: least predicted loss so far %.4g", layers,
                      best->loss);
        }
        grouping_free(&w);
        if (params->layers_shared > 0)
            break;
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while planning");
    }
    if (err->code == VQKVC_OK && best->n_scopes == 0)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "no plan has at most %.3g bits a value and reads at most %.3g: gains take "
            "%.3g, and each layer's own streams a nibble each at least",
            params->bits, params->max_scan, (double)VQKVC_GAIN_BITS / g->head_dim);
    return err->code;
}
