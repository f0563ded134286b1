#include "plan/bounded.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/calibration.h"

enum { MOST_TOKENS = 1024 };

/* Values of one token and part, all layers. */
static size_t row_of(const vqkvc_geometry *g)
{
    return (size_t)g->n_layers * g->n_kv_heads * g->head_dim;
}

/* x [n, n_layers, n_kv_heads, head_dim]: the first n sampled vectors of a part; keys rotated as if
 * they stood behind each other. */
static vqkvc_code load_part(const vqkvc_capture *c, vqkvc_part part, int n, float *x,
                            vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    size_t width = (size_t)g->n_kv_heads * g->head_dim;
    vqkvc_member *members = vqkvc_alloc((size_t)g->n_kv_heads, sizeof *members, err);
    float *all = vqkvc_alloc((size_t)c->n_sample * width, sizeof *all, err);
    for (int layer = 0; layer < g->n_layers && err->code == VQKVC_OK; layer++) {
        for (int h = 0; h < g->n_kv_heads; h++)
            members[h] = (vqkvc_member){part, layer, h};
        vqkvc_sample_members(c, members, g->n_kv_heads,
                             &(vqkvc_key_frame){.frame = VQKVC_FRAME_PRE}, 0, all, err);
        for (int t = 0; t < n; t++)
            memcpy(x + (size_t)t * row_of(g) + (size_t)layer * width, all + (size_t)t * width,
                   width * sizeof *x);
    }
    for (int t = 0; t < n && part == VQKVC_PART_K && err->code == VQKVC_OK; t++)
        vqkvc_rope_rotate(g, t, x + (size_t)t * row_of(g), g->n_layers * g->n_kv_heads);
    free(all);
    free(members);
    return err->code;
}

/* Vectors of x [n_heads, head_dim] that x_hat is too far from. */
static int64_t count_bad(const vqkvc_geometry *g, size_t n_heads, float max_error, const float *x,
                         const float *x_hat)
{
    int64_t bad = 0;
    for (size_t h = 0; h < n_heads; h++, x += g->head_dim, x_hat += g->head_dim) {
        double error = 0, norm = 0;
        for (int c = 0; c < g->head_dim; c++) {
            double off = (double)x[c] - (double)x_hat[c];
            error += off * off;
            norm += (double)x[c] * x[c];
        }
        bad += !(sqrt(error) <= (double)max_error * sqrt(norm));
    }
    return bad;
}

/* Codes n tokens, whole blocks, of which k, v are given, and counts. */
static vqkvc_code count_blocks(const vqkvc_plan *plan, float max_error, int n, const float *k,
                               const float *v, int64_t *bad, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t values = (size_t)plan->block * row_of(g), heads = values / (size_t)g->head_dim;
    int64_t sum = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : sum)
    for (int first = 0; first < n; first += plan->block) {
        vqkvc_err mine = {0};
        const float *x[2] = {k + (size_t)first * row_of(g), v + (size_t)first * row_of(g)};
        float *hat = vqkvc_alloc(2 * values, sizeof *hat, &mine);
        if (hat != NULL && vqkvc_plan_reference(plan, plan->n_streams, plan->block, first, x[0],
                                                x[1], hat, hat + values, &mine) == VQKVC_OK)
            sum += count_bad(g, heads, max_error, x[0], hat) +
                   count_bad(g, heads, max_error, x[1], hat + values);
        free(hat);
        if (mine.code != VQKVC_OK) {
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
        }
    }
    *bad = sum;
    return err->code;
}

vqkvc_code vqkvc_plan_bound(vqkvc_plan *plan, const vqkvc_capture *c, float max_error,
                            vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int n = (c->n_sample < MOST_TOKENS ? c->n_sample : MOST_TOKENS) / plan->block * plan->block;
    if (n == 0)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "a bound on errors takes a sample of %d tokens, a block, to say how often "
            "it is needed; there are %d",
            plan->block, c->n_sample);
    int64_t bad = 0;
    float *k = vqkvc_alloc((size_t)n * row_of(g), sizeof *k, err);
    float *v = vqkvc_alloc((size_t)n * row_of(g), sizeof *v, err);
    plan->max_error = 0; /* what the codes alone do */
    if (err->code == VQKVC_OK && load_part(c, VQKVC_PART_K, n, k, err) == VQKVC_OK &&
        load_part(c, VQKVC_PART_V, n, v, err) == VQKVC_OK)
        count_blocks(plan, max_error, n, k, v, &bad, err);
    free(k);
    free(v);
    plan->max_error = max_error;
    plan->kept_rate = (double)bad / (2.0 * n * g->n_layers * g->n_kv_heads);
    return err->code;
}
