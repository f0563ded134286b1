/* scheme_fixture.h - what tests that recompute a scheme from its definition share: a capture of
 * made-up keys and values, a block of tokens through a plan's reference, plain arithmetic. */
#ifndef VQKVC_TESTS_SCHEME_FIXTURE_H
#define VQKVC_TESTS_SCHEME_FIXTURE_H

#include "base/log.h"
#include "capture/capture.h"
#include "plan_toy.h"

static const vqkvc_log silent_log = {.level = -1};

/* Vectors with an offset for each channel and a spectrum that falls: x [n, d]. */
static inline void fill_channels(int n, int d, uint64_t stream, float *x)
{
    vqkvc_rng rng = vqkvc_rng_make(21, stream), mix = vqkvc_rng_make(5, 0);
    double *turn = need((size_t)d * (size_t)d, sizeof *turn);
    double *source = need((size_t)d, sizeof *source);
    for (int i = 0; i < d * d; i++)
        turn[i] = vqkvc_rng_normal(&mix) / sqrt(d);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < d; j++)
            source[j] = vqkvc_rng_normal(&rng) * 3 * exp(-4.0 * j / d);
        for (int j = 0; j < d; j++) {
            double sum = 0.5 * (j % 5 - 2);
            for (int k = 0; k < d; k++)
                sum += turn[j * d + k] * source[k];
            x[(size_t)i * (size_t)d + (size_t)j] = (float)sum;
        }
    }
    free(turn);
    free(source);
}

/* n sampled tokens of such keys and values in every layer. */
static inline void make_sampled(vqkvc_capture *c, int n_layers, int n_heads, int dim, int n)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(n_layers, n_heads, dim);
    cr_assert_eq(vqkvc_capture_alloc(c, &g, n, &err), VQKVC_OK, "%s", err.msg);
    size_t width = (size_t)(n_heads * dim), values = (size_t)n * width;
    float *x = need(values, sizeof *x);
    c->n_sample = n;
    c->n_tokens = (uint64_t)n;
    for (int i = 0; i < n; i++)
        c->pos[i] = 4 + i;
    for (int kind = VQKVC_KEY; kind <= VQKVC_VALUE; kind++)
        for (int layer = 0; layer < n_layers; layer++) {
            fill_channels(n, (int)width, (uint64_t)(100 + 2 * layer + kind), x);
            for (size_t i = 0; i < values; i++)
                c->sample[kind][layer][i] = vqkvc_f32_to_f16(x[i]);
        }
    free(x);
}

/* A block of n tokens from position `base` on: x [n, n_layers, n_kv_heads, head_dim] of K and V,
 * and what the plan's reference makes of them. Keys are rotated. */
typedef struct passed {
    int n;
    int64_t base;
    size_t values;
    float *in[2], *out[2];
} passed;

static inline passed pass_through(const vqkvc_plan *plan, int n, int64_t base)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_err err = {0};
    int width = g->n_kv_heads * g->head_dim;
    passed p = {.n = n, .base = base, .values = (size_t)(n * g->n_layers * width)};
    float *x = need((size_t)n * (size_t)width, sizeof *x);
    for (int part = 0; part < 2; part++) {
        p.in[part] = need(p.values, sizeof(float));
        p.out[part] = need(p.values, sizeof(float));
        for (int layer = 0; layer < g->n_layers; layer++) {
            fill_channels(n, width, (uint64_t)(7 + 2 * layer + part), x);
            for (int t = 0; t < n; t++) {
                float *to = p.in[part] + (size_t)((t * g->n_layers + layer) * width);
                memcpy(to, x + (size_t)(t * width), (size_t)width * sizeof *x);
                if (part == VQKVC_PART_K)
                    vqkvc_rope_rotate(g, (double)(base + t), to, g->n_kv_heads);
            }
        }
    }
    free(x);
    cr_assert_eq(vqkvc_plan_reference(plan, plan->n_streams, n, base, p.in[0], p.in[1], p.out[0],
                                      p.out[1], &err),
                 VQKVC_OK, "%s", err.msg);
    return p;
}

static inline void passed_free(passed *p)
{
    for (int part = 0; part < 2; part++) {
        free(p->in[part]);
        free(p->out[part]);
    }
}

/* Heads first .. first + n_heads - 1 of one layer as x [n, n_heads * head_dim], keys un-rotated if
 * `turn_back`. */
static inline void gather_layer(const vqkvc_geometry *g, const passed *p, const float *from,
                                int layer, int first, int n_heads, int turn_back, double *x)
{
    int width = n_heads * g->head_dim;
    float *row = need((size_t)width, sizeof *row);
    for (int t = 0; t < p->n; t++) {
        memcpy(row,
               from + (size_t)(((t * g->n_layers + layer) * g->n_kv_heads + first) * g->head_dim),
               (size_t)width * sizeof *row);
        if (turn_back)
            vqkvc_rope_rotate(g, -(double)(p->base + t), row, n_heads);
        for (int i = 0; i < width; i++)
            x[(size_t)(t * width + i)] = (double)row[i];
    }
    free(row);
}

static inline double half_of(double x)
{
    return (double)vqkvc_f16_to_f32(vqkvc_f32_to_f16((float)x));
}

static inline double half_at(const vqkvc_plan *plan, int table, int row, int col)
{
    const vqkvc_table *t = &plan->tables[table];
    return (double)vqkvc_f16_to_f32(t->f16[(size_t)row * (size_t)t->cols + (size_t)col]);
}

/* The value of row `row` of a table that is nearest to x. */
static inline double nearest_level(const vqkvc_plan *plan, int table, int row, double x)
{
    double best = half_at(plan, table, row, 0);
    for (int i = 1; i < plan->tables[table].cols; i++)
        if (fabs(half_at(plan, table, row, i) - x) < fabs(best - x))
            best = half_at(plan, table, row, i);
    return best;
}

/* How many values of a and b [n] differ by more than `slack`, relative to `scale`. */
static inline int count_far(const double *a, const double *b, int n, double slack)
{
    int far = 0;
    for (int i = 0; i < n; i++)
        far += !(fabs(a[i] - b[i]) <= slack);
    return far;
}

static inline void expect_bits(const vqkvc_plan *plan, double codes, double gains)
{
    vqkvc_cost cost;
    vqkvc_plan_cost(plan, 4096, &cost);
    cr_expect_float_eq(cost.code_bits, codes, 1e-12, "%s: codes %g, wanted %g", plan->scheme,
                       cost.code_bits, codes);
    cr_expect_float_eq(cost.gain_bits, gains, 1e-12, "%s: gains %g, wanted %g", plan->scheme,
                       cost.gain_bits, gains);
}

#endif
