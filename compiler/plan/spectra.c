#include "plan/spectra.h"

#include <stdlib.h>
#include <string.h>

#include "plan/allocate.h"

static const double metric_ridge = 1e-3;

void vqkvc_scope_list(const vqkvc_scope *s, vqkvc_member *members)
{
    for (int i = 0; i < vqkvc_scope_members(s); i++)
        members[i] = (vqkvc_member){
            .part = s->part, .layer = s->first + i / s->n_heads, .head = s->head + i % s->n_heads};
}

void vqkvc_grouping_free(vqkvc_grouping *w)
{
    for (int i = 0; i < w->n_scopes; i++) {
        if (w->basis != NULL)
            vqkvc_basis_free(&w->basis[i]);
        if (w->curve != NULL)
            free(w->curve[i]);
    }
    free(w->scopes);
    free(w->basis);
    free(w->curve);
}

/* full [n_in, n_in], zero: the metrics of n members from `at` on, along its diagonal. */
static void block_metric(const vqkvc_scope *s, int at, int n, const vqkvc_geometry *g,
                         const vqkvc_metrics *metrics, double *full)
{
    size_t dim = (size_t)g->head_dim, n_in = (size_t)n * dim;
    for (int i = 0; i < n; i++) {
        int layer = s->first + (at + i) / s->n_heads, head = s->head + (at + i) % s->n_heads;
        const double *m =
            (s->part == VQKVC_PART_K ? metrics->k : metrics->v)[layer * g->n_kv_heads + head];
        for (size_t r = 0; r < dim; r++)
            memcpy(full + ((size_t)i * dim + r) * n_in + (size_t)i * dim, m + r * dim,
                   dim * sizeof(double));
    }
}

/* Spectrum and curve of one scope's shared stream. */
static vqkvc_code scope_spectrum(vqkvc_grouping *w, int i, const vqkvc_capture *c,
                                 const vqkvc_auto_params *params, const vqkvc_metrics *metrics,
                                 vqkvc_err *err)
{
    const vqkvc_scope *s = &w->scopes[i];
    int n = vqkvc_scope_members(s);
    size_t n_in = (size_t)n * (size_t)c->geometry.head_dim;
    vqkvc_member *members = vqkvc_alloc((size_t)n, sizeof *members, err);
    float *x = vqkvc_alloc((size_t)c->n_sample * n_in, sizeof *x, err);
    double *mean = vqkvc_alloc(n_in, sizeof *mean, err);
    double *cov = vqkvc_alloc(n_in * n_in, sizeof *cov, err);
    double *full = vqkvc_alloc(n_in * n_in, sizeof *full, err);
    w->curve[i] = vqkvc_alloc((size_t)w->n_max + 1, sizeof *w->curve[i], err);
    if (err->code == VQKVC_OK) {
        vqkvc_scope_list(s, members);
        block_metric(s, 0, n, &c->geometry, metrics, full);
        if (vqkvc_sample_members(c, members, n, params->frame, params->window.block, params->seed,
                                 x, err) == VQKVC_OK &&
            vqkvc_fit_moments(c->n_sample, (int)n_in, x, n_in, NULL, mean, cov, err) == VQKVC_OK &&
            vqkvc_fit_basis((int)n_in, (int)n_in, cov, full, metric_ridge, &w->basis[i], err) ==
                VQKVC_OK)
            vqkvc_allocate_curve((int)n_in, w->basis[i].lambda, w->n_max, w->curve[i], err);
    }
    free(members);
    free(x);
    free(mean);
    free(cov);
    free(full);
    return err->code;
}

vqkvc_code vqkvc_grouping_make(vqkvc_grouping *w, const vqkvc_capture *c,
                               const vqkvc_auto_params *params, const vqkvc_metrics *metrics,
                               int n_max, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    size_t groups = (size_t)((g->n_layers + w->layers - 1) / w->layers);
    size_t n = 2 * groups * (size_t)(g->n_kv_heads / w->heads);
    w->n_max = n_max;
    w->scopes = vqkvc_alloc(n, sizeof *w->scopes, err);
    w->basis = vqkvc_alloc(n, sizeof *w->basis, err);
    w->curve = vqkvc_alloc(n, sizeof *w->curve, err);
    for (int part = 0; part < 2; part++)
        for (int first = 0; first < g->n_layers; first += w->layers)
            for (int head = 0; head < g->n_kv_heads && err->code == VQKVC_OK; head += w->heads) {
                int i = w->n_scopes++, left = g->n_layers - first;
                w->scopes[i] = (vqkvc_scope){.part = (vqkvc_part)part,
                                             .head = head,
                                             .n_heads = w->heads,
                                             .first = first,
                                             .n_layers = left < w->layers ? left : w->layers,
                                             .own_heads = w->own_heads};
                w->n_own += vqkvc_scope_own(&w->scopes[i]);
                scope_spectrum(w, i, c, params, metrics, err);
            }
    return err->code;
}

/* Curve of own stream `own` of scope i, given the errors of the shared stream's latents. */
static vqkvc_code own_curve(const vqkvc_grouping *w, int i, int own, const vqkvc_geometry *g,
                            const double *distortion, const vqkvc_metrics *metrics, int n_max,
                            double *curve, vqkvc_err *err)
{
    int dim = w->own_heads * g->head_dim, at = own * dim;
    const vqkvc_basis *b = &w->basis[i];
    vqkvc_basis fitted = {0};
    size_t values = (size_t)dim * (size_t)dim;
    double *cov = vqkvc_alloc(values, sizeof *cov, err);
    double *full = vqkvc_alloc(values, sizeof *full, err);
    if (err->code == VQKVC_OK) {
        for (int r = 0; r < dim; r++)
            for (int c = 0; c <= r; c++) {
                const double *x = b->dec + (size_t)(at + r) * (size_t)b->n;
                const double *y = b->dec + (size_t)(at + c) * (size_t)b->n;
                double sum = 0;
                for (int j = 0; j < b->n; j++)
                    sum += x[j] * distortion[j] * y[j];
                cov[r * dim + c] = cov[c * dim + r] = sum;
            }
        block_metric(&w->scopes[i], own * w->own_heads, w->own_heads, g, metrics, full);
        if (vqkvc_fit_basis(dim, dim, cov, full, metric_ridge, &fitted, err) == VQKVC_OK)
            vqkvc_allocate_curve(dim, fitted.lambda, n_max, curve, err);
        vqkvc_basis_free(&fitted);
    }
    free(cov);
    free(full);
    return err->code;
}

/* The own curves of one scope. */
static vqkvc_code scope_own(const vqkvc_grouping *w, int i, const vqkvc_geometry *g,
                            const vqkvc_metrics *metrics, int share, int n_max, double **curves,
                            vqkvc_err *err)
{
    const vqkvc_basis *b = &w->basis[i];
    vqkvc_layout layout = {0};
    double *distortion = vqkvc_alloc((size_t)b->d, sizeof *distortion, err);
    if (distortion != NULL && share > 0)
        vqkvc_allocate_layout(b->d, b->lambda, share, &layout, err);
    if (err->code == VQKVC_OK)
        vqkvc_layout_distortions(&layout, b->d, b->lambda, distortion);
    for (int own = 0; own < vqkvc_scope_own(&w->scopes[i]) && err->code == VQKVC_OK; own++)
        own_curve(w, i, own, g, distortion, metrics, n_max, curves[own], err);
    free(distortion);
    return err->code;
}

vqkvc_code vqkvc_grouping_own(const vqkvc_grouping *w, const vqkvc_capture *c,
                              const vqkvc_metrics *metrics, const int *share, int n_max,
                              double **curves, vqkvc_err *err)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < w->n_scopes; i++) {
        vqkvc_err mine = {0};
        int before = 0;
        for (int j = 0; j < i; j++)
            before += vqkvc_scope_own(&w->scopes[j]);
        if (scope_own(w, i, &c->geometry, metrics, share[i], n_max, curves + before, &mine) !=
            VQKVC_OK)
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
    }
    return err->code;
}
