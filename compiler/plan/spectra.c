#include "plan/spectra.h"

#include <math.h>
#include <stdlib.h>

#include "base/matrix.h"
#include "fit/fit.h"
#include "plan/allocate.h"
#include "plan/universal.h"

void vqkvc_scope_list(const vqkvc_scope *s, vqkvc_member *members)
{
    for (int i = 0; i < vqkvc_scope_members(s); i++)
        members[i] = (vqkvc_member){
            .part = s->part, .layer = s->first + i / s->n_heads, .head = s->head + i % s->n_heads};
}

void vqkvc_grouping_free(vqkvc_grouping *w)
{
    for (int i = 0; i < w->n_scopes; i++) {
        if (w->u != NULL)
            free(w->u[i]);
        if (w->lambda != NULL)
            free(w->lambda[i]);
        if (w->curve != NULL)
            free(w->curve[i]);
        if (w->time != NULL)
            free(w->time[i]);
        if (w->energy != NULL)
            free(w->energy[i]);
    }
    free(w->scopes);
    free(w->u);
    free(w->lambda);
    free(w->curve);
    free(w->time);
    free(w->energy);
}

vqkvc_time_readers vqkvc_scope_readers(const vqkvc_scope *s, const vqkvc_auto_params *params,
                                       int own)
{
    int members = own ? s->own_heads : vqkvc_scope_members(s);
    return (vqkvc_time_readers){.part = s->part,
                                .frame = params->frame,
                                .block = params->window.block,
                                .members = members,
                                .layers = own ? 1 : s->n_layers,
                                .steady_channels = params->steady,
                                .steady_latents =
                                    params->spans == VQKVC_SPANS_BANDS ? params->steady : 0};
}

/* vqkvc_allocate_priced() by the cost model, where there is one: time [n_max + 1], else NULL. */
static vqkvc_code curve_of(const vqkvc_auto_params *params, const vqkvc_scope *s, int own, int d,
                           const double *lambda, double table, int n_max, double *curve,
                           double *time, vqkvc_err *err)
{
    double each[VQKVC_LAYOUT_RUNS] = {0};
    vqkvc_time_readers r = vqkvc_scope_readers(s, params, own);
    if (time != NULL)
        vqkvc_time_groups(params->time, &r, each);
    return vqkvc_allocate_priced(d, lambda, table, n_max, each, curve, time, err);
}

static const double *metric_of(const vqkvc_member *m, const vqkvc_geometry *g,
                               const vqkvc_metrics *metrics)
{
    return (m->part == VQKVC_PART_K ? metrics->k : metrics->v)[m->layer * g->n_kv_heads + m->head];
}

/* energy [dim, dim] = M^-1 of the metric as vqkvc_fit_spectrum() lifts it, and behind it tr(M) /
 * dim: a whitened covariance W is M^1/2 Cov M^1/2, so that tr Cov is the sum of its products with
 * M^-1.
 */
static vqkvc_code make_energy(int dim, const double *metric, double *energy, vqkvc_err *err)
{
    size_t values = (size_t)dim * (size_t)dim;
    double *v = vqkvc_alloc(values, 2 * sizeof *v, err);
    double *value = vqkvc_alloc((size_t)dim, sizeof *value, err), mean = 0;
    for (size_t i = 0; v != NULL && i < values; i++)
        v[i] = metric[i];
    if (err->code == VQKVC_OK && vqkvc_eigen_symmetric(dim, v, value, err) == VQKVC_OK) {
        for (int i = 0; i < dim; i++)
            mean += value[i] / dim;
        for (size_t i = 0; i < values; i++) {
            double lifted = fmax(value[i / (size_t)dim], VQKVC_METRIC_RIDGE * mean);
            v[values + i] = lifted > 0 ? v[i] / lifted : 0;
        }
        energy[values] = mean;
        vqkvc_dgemm_tn(dim, dim, dim, v, (size_t)dim, v + values, (size_t)dim, energy, (size_t)dim);
    }
    free(v);
    free(value);
    return err->code;
}

/* The same of all members of scope i, where it is wanted. */
static vqkvc_code scope_energy(vqkvc_grouping *w, int i, int dim, const double *const *metric,
                               vqkvc_err *err)
{
    size_t n = (size_t)vqkvc_scope_members(&w->scopes[i]), values = (size_t)dim * (size_t)dim + 1;
    if (!w->universal)
        return VQKVC_OK;
    w->energy[i] = vqkvc_alloc(n * values, sizeof *w->energy[i], err);
    for (size_t m = 0; m < n && err->code == VQKVC_OK; m++)
        make_energy(dim, metric[m], w->energy[i] + m * values, err);
    return err->code;
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
    const double **metric = vqkvc_alloc((size_t)n, sizeof *metric, err);
    float *x = vqkvc_alloc((size_t)c->n_sample * n_in, sizeof *x, err);
    double *mean = vqkvc_alloc(n_in, sizeof *mean, err);
    w->u[i] = vqkvc_alloc(n_in * n_in, sizeof *w->u[i], err);
    w->lambda[i] = vqkvc_alloc(n_in, sizeof *w->lambda[i], err);
    w->curve[i] = vqkvc_alloc((size_t)w->n_max + 1, sizeof *w->curve[i], err);
    if (w->time != NULL)
        w->time[i] = vqkvc_alloc((size_t)w->n_max + 1, sizeof *w->time[i], err);
    if (err->code == VQKVC_OK) {
        vqkvc_scope_list(s, members);
        for (int m = 0; m < n; m++)
            metric[m] = metric_of(&members[m], &c->geometry, metrics);
        vqkvc_key_frame frame = vqkvc_auto_frame(params);
        if (vqkvc_sample_members(c, members, n, &frame, params->seed, x, err) == VQKVC_OK)
            vqkvc_fit_moments(c->n_sample, (int)n_in, x, n_in, NULL, mean, w->u[i], err);
        if (s->part == VQKVC_PART_K && err->code == VQKVC_OK)
            vqkvc_frame_separate(&c->geometry, &frame, (int)n_in, w->u[i]);
        if (err->code == VQKVC_OK &&
            vqkvc_fit_spectrum((int)n_in, c->geometry.head_dim, w->u[i], metric, VQKVC_METRIC_RIDGE,
                               w->lambda[i], err) == VQKVC_OK)
            curve_of(params, s, 0, (int)n_in, w->lambda[i],
                     vqkvc_allocate_table((int)n_in, c->geometry.head_dim, w->tables_at), w->n_max,
                     w->curve[i], w->time != NULL ? w->time[i] : NULL, err);
        if (err->code == VQKVC_OK)
            scope_energy(w, i, c->geometry.head_dim, metric, err);
    }
    free(members);
    free(x);
    free(mean);
    free(metric);
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
    w->u = vqkvc_alloc(n, sizeof *w->u, err);
    w->lambda = vqkvc_alloc(n, sizeof *w->lambda, err);
    w->curve = vqkvc_alloc(n, sizeof *w->curve, err);
    if (params->time != NULL)
        w->time = vqkvc_alloc(n, sizeof *w->time, err);
    if (w->universal)
        w->energy = vqkvc_alloc(n, sizeof *w->energy, err);
    if (err->code != VQKVC_OK)
        return err->code;
    for (int part = 0; part < 2; part++)
        for (int first = 0; first < g->n_layers; first += w->layers)
            for (int head = 0; head < g->n_kv_heads; head += w->heads) {
                int i = w->n_scopes++, left = g->n_layers - first;
                w->scopes[i] = (vqkvc_scope){.part = (vqkvc_part)part,
                                             .head = head,
                                             .n_heads = w->heads,
                                             .first = first,
                                             .n_layers = left < w->layers ? left : w->layers,
                                             .own_heads = w->own_heads};
                w->n_own += vqkvc_scope_own(&w->scopes[i]);
            }
            /* Each by one thread: solvers of eigenvalues have no threads of their own here. */
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < w->n_scopes; i++) {
        vqkvc_err mine = {0};
        if (vqkvc_interrupted())
            vqkvc_fail(&mine, VQKVC_E_INTERRUPTED, "interrupted while planning");
        else
            scope_spectrum(w, i, c, params, metrics, &mine);
        if (mine.code != VQKVC_OK)
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
    }
    return err->code;
}

/* What own stream `own` of scope i has to code without a basis: tr(M) / d E |x - mean|^2 over all
 * its heads, among whose channels the transform spreads errors alike. cov [own_heads * head_dim,
 * the same], on and above its diagonal, is that of its whitened channels. */
static double own_energy(const vqkvc_grouping *w, int i, int own, int head_dim, const double *cov)
{
    size_t dim = (size_t)head_dim, n = (size_t)w->own_heads * dim;
    double sum = 0, weight = 0;
    for (int h = 0; h < w->own_heads; h++) {
        const double *e = w->energy[i] + (size_t)(own * w->own_heads + h) * (dim * dim + 1);
        const double *block = cov + (size_t)h * dim * (n + 1);
        for (size_t r = 0; r < dim; r++)
            for (size_t c = r; c < dim; c++)
                sum += e[r * dim + c] * block[r * n + c] * (c > r ? 2 : 1);
        weight += e[dim * dim] / w->own_heads;
    }
    return weight * sum;
}

/* Spectrum [own_heads * head_dim] of own stream `own` of scope i, given the errors of the shared
 * stream's latents, and its own_energy() where that is wanted. What the shared stream leaves of
 * whitened channels has the covariance U' D U, which takes no maps and no metric. */
static vqkvc_code own_spectrum(const vqkvc_grouping *w, int i, int own, int head_dim,
                               const double *distortion, double *lambda, double *energy,
                               vqkvc_err *err)
{
    int dim = w->own_heads * head_dim;
    size_t n_in = (size_t)vqkvc_scope_members(&w->scopes[i]) * (size_t)head_dim;
    size_t n = (size_t)dim, at = (size_t)own * n;
    double *left = vqkvc_alloc(n_in * n, sizeof *left, err);
    double *cov = vqkvc_alloc(n * n, sizeof *cov, err);
    if (err->code == VQKVC_OK) {
        for (size_t j = 0; j < n_in; j++)
            for (size_t r = 0; r < n; r++)
                left[j * n + r] = sqrt(distortion[j]) * w->u[i][j * n_in + at + r];
        vqkvc_dgemm_gram_add(dim, (int)n_in, left, n, cov, n);
        if (w->universal)
            *energy = own_energy(w, i, own, head_dim, cov);
        if (vqkvc_eigenvalues_symmetric(dim, cov, lambda, err) == VQKVC_OK)
            for (int j = 0; j < dim; j++)
                lambda[j] = fmax(lambda[j], 0);
    }
    free(left);
    free(cov);
    return err->code;
}

/* The own curves of one scope; times and picks may be NULL. */
static vqkvc_code scope_own(const vqkvc_grouping *w, int i, const vqkvc_auto_params *params,
                            int head_dim, int share, int n_max, double **curves, double **times,
                            unsigned char **picks, vqkvc_err *err)
{
    const vqkvc_scope *s = &w->scopes[i];
    int n_in = vqkvc_scope_members(s) * head_dim, dim = w->own_heads * head_dim;
    vqkvc_layout layout = {0};
    double *distortion = vqkvc_alloc((size_t)n_in, sizeof *distortion, err);
    double *lambda = vqkvc_alloc((size_t)dim, sizeof *lambda, err);
    if (err->code == VQKVC_OK && share > 0)
        vqkvc_allocate_layout(n_in, w->lambda[i],
                              vqkvc_allocate_table(n_in, head_dim, w->tables_at), share, &layout,
                              err);
    if (err->code == VQKVC_OK)
        vqkvc_layout_distortions(&layout, n_in, w->lambda[i], distortion);
    for (int own = 0; own < vqkvc_scope_own(s) && err->code == VQKVC_OK; own++) {
        double energy = 0;
        if (own_spectrum(w, i, own, head_dim, distortion, lambda, &energy, err) == VQKVC_OK)
            curve_of(params, s, 1, dim, lambda, vqkvc_allocate_table(dim, head_dim, w->tables_at),
                     n_max, curves[own], times != NULL ? times[own] : NULL, err);
        if (picks != NULL && err->code == VQKVC_OK)
            vqkvc_universal_curve(dim, energy, n_max, curves[own], picks[own]);
    }
    free(distortion);
    free(lambda);
    return err->code;
}

vqkvc_code vqkvc_grouping_own(const vqkvc_grouping *w, const vqkvc_capture *c,
                              const vqkvc_auto_params *params, const int *share, int n_max,
                              double **curves, double **times, unsigned char **picks,
                              vqkvc_err *err)
{
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < w->n_scopes; i++) {
        vqkvc_err mine = {0};
        int before = 0;
        for (int j = 0; j < i; j++)
            before += vqkvc_scope_own(&w->scopes[j]);
        if (scope_own(w, i, params, c->geometry.head_dim, share[i], n_max, curves + before,
                      times != NULL ? times + before : NULL, picks != NULL ? picks + before : NULL,
                      &mine) != VQKVC_OK)
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
    }
    return err->code;
}
