#include "plan/predict.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"
#include "fit/fit.h"
#include "plan/stream.h"

const double vqkvc_predict_ridge = 1e-3;

/* ---- the report ---- */

double vqkvc_explained_bits(const vqkvc_explained *e)
{
    return e->relative_mse > 0 ? -log(e->relative_mse) / log(4) : INFINITY;
}

void vqkvc_explained_text(const vqkvc_explained *e, char *dst, size_t size)
{
    const char *part = vqkvc_part_word(e->part);
    if (e->n_sources == 0) {
        snprintf(dst, size, "%s %d: coded by itself", part, e->layer);
        return;
    }
    char second[32] = "";
    if (e->n_sources == 2)
        snprintf(second, sizeof second, " and %s %d", vqkvc_part_word(e->sources[1].part),
                 e->sources[1].layer);
    snprintf(dst, size, "%s %d: %.1f %% explained by %s %d%s, %.2f bits gained", part, e->layer,
             100 * (1 - e->relative_mse), vqkvc_part_word(e->sources[0].part), e->sources[0].layer,
             second, vqkvc_explained_bits(e));
}

void vqkvc_unexplained_add(vqkvc_unexplained *u, int n, int d, size_t ld, const float *y,
                           const float *y_hat)
{
    for (int j = 0; j < d; j++) {
        double mean = 0;
        for (int i = 0; i < n; i++)
            mean += (double)y[(size_t)i * ld + (size_t)j] / n;
        for (int i = 0; i < n; i++) {
            double v = (double)y[(size_t)i * ld + (size_t)j];
            double e = v - (double)y_hat[(size_t)i * ld + (size_t)j];
            u->left += e * e;
            u->spread += (v - mean) * (v - mean);
            u->energy += v * v;
        }
    }
}

double vqkvc_relative_mse(const vqkvc_unexplained *u)
{
    return u->spread > 1e-24 * u->energy ? u->left / u->spread : 1;
}

/* ---- fitting ---- */

static int joined_width(const vqkvc_geometry *g)
{
    return g->n_kv_heads * g->head_dim;
}

/* Rounds src [rows, cols] into columns at .. at + cols - 1 of rows first .. of a table. */
static void put_rows(vqkvc_table *t, int first, int at, int rows, int cols, const double *src)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            t->f16[(size_t)(first + i) * (size_t)t->cols + (size_t)(at + j)] =
                vqkvc_f32_to_f16((float)src[(size_t)i * (size_t)cols + (size_t)j]);
}

static vqkvc_code fit_joined(vqkvc_plan *plan, const vqkvc_prediction *p, int n, const float *x,
                             const float *y, double *relative_mse, vqkvc_err *err)
{
    int d = joined_width(&plan->geometry), dx = p->n_sources * d;
    int rank = p->out < 0 ? 0 : plan->tables[p->out].rows;
    vqkvc_predictor fitted;
    VQKVC_TRY(vqkvc_fit_ridge(n, dx, x, d, y, vqkvc_predict_ridge, rank, &fitted, err));
    put_rows(&plan->tables[p->map], 0, 0, dx, rank > 0 ? rank : d,
             rank > 0 ? fitted.left : fitted.w);
    if (rank > 0)
        put_rows(&plan->tables[p->out], 0, 0, rank, d, fitted.right);
    put_rows(&plan->tables[p->bias], 0, 0, 1, d, fitted.w + (size_t)dx * (size_t)d);
    *relative_mse = fitted.relative_mse;
    vqkvc_predictor_free(&fitted);
    return VQKVC_OK;
}

/* The columns of one head of all sources: x [n, blocks * d] to dst [n, blocks * head_dim]. */
static void take_head(const vqkvc_geometry *g, int n, int blocks, int head, const float *x,
                      float *dst)
{
    size_t d = (size_t)joined_width(g), dim = (size_t)g->head_dim;
    for (int i = 0; i < n; i++)
        for (int b = 0; b < blocks; b++)
            memcpy(dst + ((size_t)i * blocks + b) * dim,
                   x + ((size_t)i * blocks + b) * d + (size_t)head * dim, dim * sizeof *x);
}

static vqkvc_code fit_heads(vqkvc_plan *plan, const vqkvc_prediction *p, int n, const float *x,
                            const float *y, double *relative_mse, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int dim = g->head_dim, d = joined_width(g);
    float *xs = vqkvc_alloc((size_t)n * (size_t)(p->n_sources * dim), sizeof *xs, err);
    float *ys = vqkvc_alloc((size_t)n * (size_t)dim, sizeof *ys, err);
    *relative_mse = 0;
    for (int h = 0; h < g->n_kv_heads && err->code == VQKVC_OK; h++) {
        vqkvc_predictor fitted;
        take_head(g, n, p->n_sources, h, x, xs);
        take_head(g, n, 1, h, y, ys);
        if (vqkvc_fit_ridge(n, p->n_sources * dim, xs, dim, ys, vqkvc_predict_ridge, 0, &fitted,
                            err) != VQKVC_OK) {
            vqkvc_err_prefix(err, "head %d", h);
            break;
        }
        for (int s = 0; s < p->n_sources; s++)
            put_rows(&plan->tables[p->map], s * d + h * dim, 0, dim, dim,
                     fitted.w + (size_t)(s * dim) * (size_t)dim);
        put_rows(&plan->tables[p->bias], 0, h * dim, 1, dim,
                 fitted.w + (size_t)(p->n_sources * dim) * (size_t)dim);
        *relative_mse += fitted.relative_mse / g->n_kv_heads;
        vqkvc_predictor_free(&fitted);
    }
    free(xs);
    free(ys);
    return err->code;
}

/* Gives p its tables, of zeros. */
static vqkvc_code add_tables(vqkvc_plan *plan, vqkvc_prediction *p, int rank, const char *target,
                             vqkvc_err *err)
{
    int d = joined_width(&plan->geometry);
    int cols = p->per_head ? plan->geometry.head_dim : rank > 0 ? rank : d;
    p->bias = vqkvc_plan_add_table(plan, 1, d, err, "bias of the prediction of %s", target);
    p->map = vqkvc_plan_add_table(plan, p->n_sources * d, cols, err, "prediction of %s", target);
    if (rank > 0)
        p->out = vqkvc_plan_add_table(plan, rank, d, err, "prediction of %s, outwards", target);
    return err->code;
}

/* All tables of p one after the other, out of the plan or into it; the number of bytes. */
static size_t move_tables(vqkvc_plan *plan, const vqkvc_prediction *p, char *bytes, int out)
{
    const int index[3] = {p->bias, p->map, p->out};
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (index[i] < 0)
            continue;
        vqkvc_table *t = &plan->tables[index[i]];
        size_t n = (size_t)t->rows * (size_t)t->cols * sizeof *t->f16;
        if (bytes != NULL && out)
            memcpy(bytes + at, t->f16, n);
        else if (bytes != NULL)
            memcpy(t->f16, bytes + at, n);
        at += n;
    }
    return at;
}

/* Fills the tables of p from the store or by fitting. */
static vqkvc_code fill_tables(vqkvc_plan *plan, const vqkvc_prediction *p, const char *recipe,
                              int n, const float *x, const float *y, const vqkvc_fit_store *store,
                              vqkvc_err *err)
{
    size_t size = move_tables(plan, p, NULL, 1);
    double relative_mse;
    int found;
    char *bytes = vqkvc_alloc(size, 1, err);
    if (bytes == NULL ||
        vqkvc_fit_find(store, "predictor", recipe, size, bytes, &found, err) != VQKVC_OK) {
        free(bytes);
        return err->code;
    }
    if (found) {
        move_tables(plan, p, bytes, 0);
    } else if ((p->per_head ? fit_heads : fit_joined)(plan, p, n, x, y, &relative_mse, err) ==
               VQKVC_OK) {
        move_tables(plan, p, bytes, 1);
        vqkvc_fit_keep(store, "predictor", recipe, &store->parent,
                       "squared error of the fitted samples over their variance", relative_mse,
                       bytes, size, err);
    }
    free(bytes);
    return err->code;
}

vqkvc_code vqkvc_fit_prediction(vqkvc_plan *plan, const vqkvc_prediction *shape, int rank, int n,
                                const float *x, const float *y, const vqkvc_fit_store *store,
                                vqkvc_err *err)
{
    vqkvc_arena arena = {0};
    char target[32];
    snprintf(target, sizeof target, "%s %d", vqkvc_part_word(shape->part), shape->layer);
    if (rank < 0 || (rank > 0 && shape->per_head))
        return vqkvc_fail(err, VQKVC_E_USAGE, "prediction of %s: rank %d%s", target, rank,
                          shape->per_head ? " of a prediction by head" : "");
    rank = rank < joined_width(&plan->geometry) ? rank : 0;
    vqkvc_prediction *p = vqkvc_plan_add_prediction(plan, shape->part, shape->layer, err);
    if (p == NULL)
        return err->code;
    p->n_sources = shape->n_sources;
    p->per_head = shape->per_head;
    memcpy(p->sources, shape->sources, sizeof p->sources);
    const char *recipe = vqkvc_arena_printf(
        &arena, err,
        VQKVC_FIT_VERSION " predictor target='%s' sources=%d rank=%d per_head=%d n=%d %s from=%s",
        target, p->n_sources, rank, p->per_head, n, store->settings, store->parent.hex);
    if (recipe != NULL && add_tables(plan, p, rank, target, err) == VQKVC_OK &&
        fill_tables(plan, p, recipe, n, x, y, store, err) == VQKVC_OK) {
        vqkvc_hash fitted = kvdb_recipe_hash("predictor", recipe);
        vqkvc_plan_add_parent(plan, &fitted, err);
    }
    if (err->code != VQKVC_OK)
        vqkvc_err_prefix(err, "prediction of %s", target);
    vqkvc_arena_free(&arena);
    return err->code;
}

/* ---- applying ---- */

/* y [n, d] = x map by heads; one: [n, head_dim], scratch. */
static void apply_heads(const vqkvc_geometry *g, int n_sources, int n, const float *x,
                        const float *map, float *one, float *y)
{
    int dim = g->head_dim, d = joined_width(g);
    for (int h = 0; h < g->n_kv_heads; h++)
        for (int s = 0; s < n_sources; s++) {
            vqkvc_sgemm_nn(n, dim, dim, x + s * d + h * dim, (size_t)(n_sources * d),
                           map + (size_t)(s * d + h * dim) * (size_t)dim, (size_t)dim, one,
                           (size_t)dim);
            for (int i = 0; i < n; i++)
                for (int j = 0; j < dim; j++) {
                    float *to = &y[(size_t)i * (size_t)d + (size_t)(h * dim + j)];
                    *to = (s > 0 ? *to : 0) + one[(size_t)i * (size_t)dim + (size_t)j];
                }
        }
}

vqkvc_code vqkvc_predict_apply(const vqkvc_plan *plan, const vqkvc_prediction *p, int n,
                               const float *x, float *y_hat, vqkvc_err *err)
{
    int d = joined_width(&plan->geometry), dx = p->n_sources * d;
    size_t width = (size_t)plan->tables[p->map].cols;
    float *map = vqkvc_table_f32(plan, p->map, err), *bias = vqkvc_table_f32(plan, p->bias, err);
    float *outwards = p->out < 0 ? NULL : vqkvc_table_f32(plan, p->out, err);
    float *inner = vqkvc_alloc((size_t)n * width, sizeof *inner, err);
    if (err->code == VQKVC_OK) {
        if (p->per_head)
            apply_heads(&plan->geometry, p->n_sources, n, x, map, inner, y_hat);
        else
            vqkvc_sgemm_nn(n, (int)width, dx, x, (size_t)dx, map, width, p->out < 0 ? y_hat : inner,
                           width);
        if (p->out >= 0)
            vqkvc_sgemm_nn(n, d, (int)width, inner, width, outwards, (size_t)d, y_hat, (size_t)d);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < d; j++)
                y_hat[(size_t)i * (size_t)d + (size_t)j] += bias[j];
    }
    free(map);
    free(bias);
    free(outwards);
    free(inner);
    return err->code;
}
