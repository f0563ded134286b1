/* toy_streams.h - what the plans of toy_plans.h are made of: tables from a seed, streams of every
 * kind. */
#ifndef VQKVC_TESTS_TOY_STREAMS_H
#define VQKVC_TESTS_TOY_STREAMS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/half.h"
#include "base/rng.h"
#include "plan/plan.h"

typedef struct toy_case toy_case;
typedef void (*toy_method)(vqkvc_plan *plan, const toy_case *c);

struct toy_case {
    const char *name;
    const char *scheme; /* a preset, or NULL for a plan of shared and own streams */
    int n_layers, n_kv_heads, group, head_dim;
    vqkvc_rope_layout rope;
    int n_rot;
    int n_sink, n_recent, block;
    vqkvc_frame frame; /* of keys */
    vqkvc_gain gain;   /* of VQ streams */
    int gain_bits, gain_groups;
    int share; /* layers that share a V stream; K streams hold all layers. 0: none is shared, and
                  codes have other widths than 4 bits */
    int mean;
    toy_method method; /* builds the plan instead */
};

#define HALVES   VQKVC_ROPE_HALVES
#define PAIRS    VQKVC_ROPE_INTERLEAVED
#define UNTURNED VQKVC_ROPE_NONE
#define PRE      VQKVC_FRAME_PRE
#define POST     VQKVC_FRAME_POST
#define IN_BLOCK VQKVC_FRAME_BLOCK
#define NO_GAIN  VQKVC_GAIN_NONE
#define RMS      VQKVC_GAIN_RMS

static inline vqkvc_geometry toy_case_geometry(const toy_case *c)
{
    vqkvc_geometry g = {.arch = "llama",
                        .n_layers = c->n_layers,
                        .d_model = c->group * c->n_kv_heads * c->head_dim,
                        .n_heads = c->group * c->n_kv_heads,
                        .n_kv_heads = c->n_kv_heads,
                        .head_dim = c->head_dim,
                        .rope_layout = c->rope,
                        .n_rot = c->n_rot,
                        .rope_mscale = 1};
    snprintf(g.name, sizeof g.name, "%s", c->name);
    for (int i = 0; i < c->n_rot / 2; i++)
        g.rope_freq[i] = 1.0 / (1 + 3 * i * i);
    return g;
}

static inline double toy_uniform(vqkvc_rng *rng)
{
    return 3.4 * (vqkvc_rng_uniform(rng) - 0.5); /* variance 1, nearly */
}

/* A table of uniform numbers of standard deviation `scale`; its index. */
static inline int toy_table(vqkvc_plan *plan, int rows, int cols, double scale, const char *name)
{
    vqkvc_err err = {0};
    int index = vqkvc_plan_add_table(plan, rows, cols, &err, "%s", name);
    cr_assert_geq(index, 0, "%s", err.msg);
    vqkvc_rng rng = vqkvc_rng_make(17, (uint64_t)index);
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++)
        plan->tables[index].f16[i] = vqkvc_f32_to_f16((float)(scale * toy_uniform(&rng)));
    return index;
}

/* Makes a table of binary16 one of bytes, with a scale for every so many rows and column. */
static inline void toy_bytes(vqkvc_plan *plan, int index, int scale_rows)
{
    vqkvc_err err = {0};
    vqkvc_table *t = &plan->tables[index];
    const uint16_t *values = t->f16;
    t->f16 = NULL;
    t->scale_rows = scale_rows;
    t->bytes = vqkvc_arena_alloc(&plan->arena, (size_t)t->rows * t->cols, 1, &err);
    t->scale = vqkvc_arena_alloc(&plan->arena, (size_t)(t->rows / scale_rows) * t->cols, 2, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    vqkvc_table_round(t, values, (size_t)t->cols);
}

/* Fills enc and dec [n_in, n_latents], of every other stream in bytes, with the same orthonormal
 * columns (Gram-Schmidt). */
static inline void toy_basis(vqkvc_plan *plan, vqkvc_stream *s)
{
    int n = s->n_in, m = s->n_latents;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->enc = toy_table(plan, n, m, 1, "enc");
    s->dec = toy_table(plan, n, m, 1, "dec");
    double *q = calloc((size_t)m * (size_t)n, sizeof *q);
    vqkvc_rng rng = vqkvc_rng_make(5, (uint64_t)s->enc);
    cr_assert_not_null(q);
    for (int j = 0; j < m; j++) {
        double *column = q + j * n, length = 0;
        for (int i = 0; i < n; i++)
            column[i] = toy_uniform(&rng);
        for (int p = 0; p < j; p++) {
            double dot = 0;
            for (int i = 0; i < n; i++)
                dot += column[i] * q[p * n + i];
            for (int i = 0; i < n; i++)
                column[i] -= dot * q[p * n + i];
        }
        for (int i = 0; i < n; i++)
            length += column[i] * column[i];
        for (int i = 0; i < n; i++) {
            column[i] /= sqrt(length);
            plan->tables[s->enc].f16[i * m + j] = plan->tables[s->dec].f16[i * m + j] =
                vqkvc_f32_to_f16((float)column[i]);
        }
    }
    free(q);
    if (plan->n_streams % 2 == 0) {
        toy_bytes(plan, s->enc, plan->geometry.head_dim);
        toy_bytes(plan, s->dec, plan->geometry.head_dim);
    }
}

static inline void toy_gain(const toy_case *c, vqkvc_stream *s)
{
    s->gain = c->gain;
    s->gain_bits = c->gain_bits;
    s->gain_width = s->n_latents / c->gain_groups;
    s->gain_lo = -6;
    s->gain_step = 0.0625f;
}

/* Runs of every width over one gain group of n latents from `first` on (a multiple of 16): two
 * stages of single channels, then 2, 4 and 8 channels a code, books of their own and shared in
 * turn, and uniform codes for what is left. Returns the number of runs; runs may be NULL. */
static inline int toy_runs(vqkvc_plan *plan, vqkvc_run *runs, int first, int n)
{
    static const struct {
        int groups, width, stages, own_books;
    } pattern[] = {{4, 1, 2, 1}, {2, 2, 1, 0}, {1, 4, 2, 1}, {1, 8, 1, 1}, {2, 4, 1, 0}};
    int k = 0, at = 0;
    for (; k < 5 && at + pattern[k].groups * pattern[k].width <= n; k++) {
        int groups = pattern[k].groups, width = pattern[k].width, stages = pattern[k].stages;
        if (runs != NULL)
            runs[k] = (vqkvc_run){VQKVC_CODER_VQ,
                                  first + at,
                                  groups,
                                  width,
                                  4,
                                  stages,
                                  0,
                                  toy_table(plan, pattern[k].own_books ? groups * stages : stages,
                                            width * 16, 0.9, "book")};
        at += groups * width;
    }
    if (at < n && runs != NULL)
        runs[k] = (vqkvc_run){VQKVC_CODER_UNI, first + at, n - at, 1, 4, 1, 0, -1};
    return k + (at < n);
}

static inline vqkvc_stream *toy_stream(vqkvc_plan *plan, const toy_case *c, vqkvc_part part,
                                       int first, int n, int head, const char *name)
{
    vqkvc_err err = {0};
    vqkvc_member members[16];
    for (int i = 0; i < n; i++)
        members[i] = (vqkvc_member){part, first + i, head};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, name, n, members, &err);
    cr_assert_not_null(s, "%s", err.msg);
    s->frame = part == VQKVC_PART_K ? c->frame : VQKVC_FRAME_POST;
    s->n_latents = s->n_in;
    if (c->mean)
        s->mean = toy_table(plan, 1, s->n_in, 0.3, "mean");
    return s;
}

/* A basis over layers first .. first + n - 1 of one head, half as many latents as channels. */
static inline void toy_shared(vqkvc_plan *plan, const toy_case *c, vqkvc_part part, int first,
                              int n, int head)
{
    vqkvc_err err = {0};
    vqkvc_stream *s = toy_stream(plan, c, part, first, n, head, "shared");
    s->n_latents = s->n_in / 2 / c->gain_groups * c->gain_groups;
    toy_basis(plan, s);
    toy_gain(c, s);
    int width = s->n_latents / c->gain_groups, each = toy_runs(plan, NULL, 0, width);
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, each * c->gain_groups, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    for (int g = 0; g < c->gain_groups; g++)
        toy_runs(plan, runs + g * each, g * width, width);
}

/* What is left of one head: by turns 8-bit codes with a largest-magnitude gain, with an RMS gain
 * and without, 4-bit codes with a largest-magnitude gain, and binary16 behind 8-bit codes. */
static inline void toy_own(vqkvc_plan *plan, const toy_case *c, vqkvc_part part, int layer,
                           int head)
{
    vqkvc_err err = {0};
    vqkvc_stream *s = toy_stream(plan, c, part, layer, 1, head, "own");
    int kind = (layer + 2 * part + 3 * head) % 5, mixed = kind == 4;
    if (kind == 0 || kind == 3)
        s->gain = VQKVC_GAIN_ABSMAX;
    else if (kind == 1)
        s->gain = VQKVC_GAIN_RMS;
    s->gain_bits = kind == 3 ? 8 : 16;
    s->gain_width = kind == 1 ? s->n_latents : 8;
    s->gain_lo = -8;
    s->gain_step = 0.05f;
    int width = s->gain == VQKVC_GAIN_NONE ? s->n_latents : s->gain_width;
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, s->n_latents / width + mixed, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    for (int r = 0; r < s->n_latents / width; r++)
        runs[r] = (vqkvc_run){
            VQKVC_CODER_UNI, r * width, mixed ? 6 : width, 1, kind == 3 ? 4 : 8, 1, 0, -1};
    if (mixed)
        runs[1] = (vqkvc_run){VQKVC_CODER_F16, 6, s->n_latents - 6, 1, 16, 1, 0, -1};
}

/* One head: all of it by two stages of 10 bits, then what is left in runs of 3, 4, 6, 13 and 8
 * bits, books of their own and shared. */
static inline void toy_wide(vqkvc_plan *plan, const toy_case *c, vqkvc_part part, int layer,
                            int head)
{
    static const struct {
        int groups, width, bits, stages, own_books;
    } pattern[] = {
        {4, 2, 3, 2, 1}, {8, 1, 4, 1, 1}, {8, 2, 6, 1, 0}, {2, 4, 13, 1, 0}, {8, 1, 8, 1, 1}};
    vqkvc_err err = {0};
    vqkvc_stream *s = toy_stream(plan, c, part, layer, 1, head, "whole");
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, 1, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    runs[0] = (vqkvc_run){VQKVC_CODER_VQ, 0, 1, s->n_in, 10, 2, 0, -1};
    runs[0].book = toy_table(plan, 2, s->n_in * 1024, 0.4, "whole");
    s = toy_stream(plan, c, part, layer, 1, head, "rest");
    toy_gain(c, s);
    runs = vqkvc_plan_set_runs(plan, s, 5, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    for (int r = 0, at = 0; r < 5; at += runs[r].groups * runs[r].width, r++) {
        int rows = (pattern[r].own_books ? pattern[r].groups : 1) * pattern[r].stages;
        runs[r] = (vqkvc_run){VQKVC_CODER_VQ,
                              at,
                              pattern[r].groups,
                              pattern[r].width,
                              pattern[r].bits,
                              pattern[r].stages,
                              0,
                              -1};
        runs[r].book = toy_table(plan, rows, pattern[r].width << pattern[r].bits, 0.9, "book");
    }
}

#endif
