/* plan_toy.h - small plans for tests. */
#ifndef VQKVC_TESTS_PLAN_TOY_H
#define VQKVC_TESTS_PLAN_TOY_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/half.h"
#include "base/rng.h"
#include "plan/plan.h"

static inline vqkvc_geometry toy_geometry(int n_layers, int n_kv_heads, int head_dim)
{
    vqkvc_geometry g = {.name = "toy",
                        .arch = "llama",
                        .n_layers = n_layers,
                        .d_model = 2 * n_kv_heads * head_dim,
                        .n_heads = 2 * n_kv_heads,
                        .n_kv_heads = n_kv_heads,
                        .head_dim = head_dim,
                        .rope_layout = VQKVC_ROPE_HALVES,
                        .n_rot = head_dim,
                        .rope_mscale = 1};
    for (int i = 0; i < head_dim / 2; i++)
        g.rope_freq[i] = pow(10000, -2.0 * i / head_dim);
    return g;
}

static inline void make_preset(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_plan_preset(plan, g, scheme, NULL, &err), VQKVC_OK, "%s", err.msg);
}

static inline void *need(size_t n, size_t size)
{
    vqkvc_err err = {0};
    void *p = vqkvc_alloc(n, size, &err);
    cr_assert_not_null(p);
    return p;
}

static inline void random_table(vqkvc_plan *plan, int index, double scale, uint64_t stream)
{
    vqkvc_table *t = &plan->tables[index];
    vqkvc_rng rng = vqkvc_rng_make(11, stream);
    for (size_t i = 0; i < (size_t)t->rows * t->cols; i++)
        t->f16[i] = vqkvc_f32_to_f16((float)(scale * vqkvc_rng_normal(&rng)));
}

static inline int add_table(vqkvc_plan *plan, int rows, int cols, const char *name)
{
    vqkvc_err err = {0};
    int index = vqkvc_plan_add_table(plan, rows, cols, &err, "%s", name);
    cr_assert_geq(index, 0, "%s", err.msg);
    return index;
}

/* A random orthonormal matrix [d, d] into two tables: Gram-Schmidt over random columns. */
static inline void orthonormal_tables(vqkvc_plan *plan, int d, int enc, int dec)
{
    double *q = need((size_t)d * d, sizeof *q);
    vqkvc_rng rng = vqkvc_rng_make(3, (uint64_t)enc);
    for (int j = 0; j < d; j++) {
        for (int i = 0; i < d; i++)
            q[j * d + i] = vqkvc_rng_normal(&rng);
        for (int p = 0; p <= j; p++) {
            double dot = 0;
            for (int i = 0; i < d; i++)
                dot += q[j * d + i] * q[p * d + i];
            for (int i = 0; i < d; i++)
                q[j * d + i] =
                    p == j ? q[j * d + i] / sqrt(dot) : q[j * d + i] - dot * q[p * d + i];
        }
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++)
            plan->tables[enc].f16[i * d + j] = plan->tables[dec].f16[i * d + j] =
                vqkvc_f32_to_f16((float)q[j * d + i]);
    free(q);
}

/* The toy that most tests use: 2 layers, 1 KV head of 16. Stream 0 holds K of both layers in a
 * basis (frame block, RMS gain in 8 bits, VQ in two stages, then wider groups), streams 1 and 2
 * code what it leaves of each layer (16-bit gains), streams 3 and 4 hold V (UNI with ABSMAX). */
static inline void make_toy(vqkvc_plan *plan)
{
    vqkvc_err err = {0};
    *plan = (vqkvc_plan){.scheme = "toy", .n_sink = 1, .n_recent = 16, .block = 16};
    plan->geometry = toy_geometry(2, 1, 16);
    strcpy(plan->calibration.hex, vqkvc_hash_text("toy").hex);
    int mean = add_table(plan, 1, 32, "mean"), enc = add_table(plan, 32, 32, "enc");
    int dec = add_table(plan, 32, 32, "dec"), own = add_table(plan, 8 * 2, 16, "book own");
    int wide = add_table(plan, 1, 2 * 16, "book wide"), rest = add_table(plan, 16, 4, "book rest");
    random_table(plan, mean, 0.3, 1);
    orthonormal_tables(plan, 32, enc, dec);
    random_table(plan, own, 1, 2);
    random_table(plan, wide, 1, 3);
    random_table(plan, rest, 1, 4);
    vqkvc_member keys[2] = {{VQKVC_PART_K, 0, 0}, {VQKVC_PART_K, 1, 0}};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, "K shared", 2, keys, &err);
    s->frame = VQKVC_FRAME_BLOCK;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->mean = mean;
    s->enc = enc;
    s->dec = dec;
    s->gain = VQKVC_GAIN_RMS;
    s->gain_bits = 8;
    s->gain_width = 32;
    s->gain_lo = -6;
    s->gain_step = 0.0625f;
    vqkvc_run *r = vqkvc_plan_set_runs(plan, s, 2, &err);
    r[0] = (vqkvc_run){VQKVC_CODER_VQ, 0, 8, 1, 4, 2, 0, own};
    r[1] = (vqkvc_run){VQKVC_CODER_VQ, 8, 12, 2, 4, 1, 0, wide};
    for (int i = 0; i < 2; i++) {
        s = vqkvc_plan_add_stream(plan, i == 0 ? "K 0 own" : "K 1 own", 1, &keys[i], &err);
        s->frame = VQKVC_FRAME_BLOCK;
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 16;
        s->gain_width = 8;
        r = vqkvc_plan_set_runs(plan, s, 2, &err);
        r[0] = (vqkvc_run){VQKVC_CODER_UNI, 0, 8, 1, 3, 1, 0, -1};
        r[1] = (vqkvc_run){VQKVC_CODER_VQ, 8, 8, 1, 2, 2, 0, rest};
    }
    for (int i = 0; i < 2; i++) {
        vqkvc_member value = {VQKVC_PART_V, i, 0};
        s = vqkvc_plan_add_stream(plan, i == 0 ? "V 0" : "V 1", 1, &value, &err);
        s->gain = VQKVC_GAIN_ABSMAX;
        s->gain_bits = 16;
        s->gain_width = 16;
        r = vqkvc_plan_set_runs(plan, s, 1, &err);
        r[0] = (vqkvc_run){VQKVC_CODER_UNI, 0, 16, 1, 4, 1, 0, -1};
    }
    cr_assert_eq(vqkvc_plan_validate(plan, &err), VQKVC_OK, "%s", err.msg);
}

/* A stream over all KV heads of one part of a layer, keys un-rotated, with one run over all of it.
 */
static inline vqkvc_stream *add_joined_stream(vqkvc_plan *plan, vqkvc_part part, int layer,
                                              vqkvc_run run)
{
    vqkvc_err err = {0};
    vqkvc_member members[8];
    for (int h = 0; h < plan->geometry.n_kv_heads; h++)
        members[h] = (vqkvc_member){part, layer, h};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, part == VQKVC_PART_K ? "K" : "V",
                                            plan->geometry.n_kv_heads, members, &err);
    vqkvc_run *r = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, &err);
    cr_assert_not_null(r, "%s", err.msg);
    s->frame = part == VQKVC_PART_K ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST;
    *r = run;
    r->groups = s->n_in / run.width;
    return s;
}

/* 3 layers, 2 KV heads of 8, predicted in every way: K 1 from K 0 in full, V 1 from K 1 and V 0
 * with rank 3, K 2 from K 1 per head. Streams K 0 (RANGE over 4 tokens), V 0 (NSN over 8, beam),
 * K 1 (RMS, outliers with a spread), V 1 (RMS, an outlier by the token's mean), K 2, V 2 (F16). */
static inline void make_predicted(vqkvc_plan *plan)
{
    enum { D = 16, RANK = 3 };
    static const vqkvc_run uni = {
        .coder = VQKVC_CODER_UNI, .width = 1, .bits = 3, .stages = 1, .book = -1};
    static const vqkvc_run f16 = {
        .coder = VQKVC_CODER_F16, .width = 1, .bits = 16, .stages = 1, .book = -1};
    vqkvc_err err = {0};
    *plan = (vqkvc_plan){.scheme = "predicted", .n_sink = 1, .n_recent = 16, .block = 16};
    plan->geometry = toy_geometry(3, 2, 8);
    int book = add_table(plan, 3, 2 * 8, "book"), spread = add_table(plan, 2, D, "spread");
    int bias = add_table(plan, 1, D, "bias"), full = add_table(plan, D, D, "full");
    int map = add_table(plan, 2 * D, RANK, "map"), out = add_table(plan, RANK, D, "out");
    int per_head = add_table(plan, D, D / 2, "per head");
    for (int i = 0; i < plan->n_tables; i++)
        random_table(plan, i, i == book ? 1 : 0.2, 20 + (uint64_t)i);
    for (int c = 0; c < D; c++)
        plan->tables[spread].f16[D + c] = vqkvc_f32_to_f16(0.5f + 0.1f * (float)c);
    vqkvc_stream *s = add_joined_stream(plan, VQKVC_PART_K, 0, uni);
    s->gain = VQKVC_GAIN_RANGE;
    s->gain_bits = 16;
    s->gain_width = D;
    s->gain_tokens = 4;
    s = add_joined_stream(
        plan, VQKVC_PART_V, 0,
        (vqkvc_run){
            .coder = VQKVC_CODER_VQ, .width = 2, .bits = 3, .stages = 3, .beam = 4, .book = book});
    s->gain = VQKVC_GAIN_NSN;
    s->gain_bits = 16;
    s->gain_width = D;
    s->gain_tokens = 8;
    for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++) {
        s = add_joined_stream(plan, (vqkvc_part)part, 1, uni);
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 16;
        s->gain_width = D;
        s->outliers = part == VQKVC_PART_K ? 3 : 1;
        s->spread = part == VQKVC_PART_K ? spread : -1;
    }
    add_joined_stream(plan, VQKVC_PART_K, 2, f16);
    add_joined_stream(plan, VQKVC_PART_V, 2, f16);
    vqkvc_prediction *p = vqkvc_plan_add_prediction(plan, VQKVC_PART_K, 1, &err);
    *p = (vqkvc_prediction){.part = VQKVC_PART_K,
                            .layer = 1,
                            .n_sources = 1,
                            .sources = {{VQKVC_PART_K, 0}},
                            .bias = bias,
                            .map = full,
                            .out = -1};
    p = vqkvc_plan_add_prediction(plan, VQKVC_PART_V, 1, &err);
    *p = (vqkvc_prediction){.part = VQKVC_PART_V,
                            .layer = 1,
                            .n_sources = 2,
                            .sources = {{VQKVC_PART_K, 1}, {VQKVC_PART_V, 0}},
                            .bias = bias,
                            .map = map,
                            .out = out};
    p = vqkvc_plan_add_prediction(plan, VQKVC_PART_K, 2, &err);
    *p = (vqkvc_prediction){.part = VQKVC_PART_K,
                            .layer = 2,
                            .n_sources = 1,
                            .sources = {{VQKVC_PART_K, 1}},
                            .per_head = 1,
                            .bias = bias,
                            .map = per_head,
                            .out = -1};
    cr_assert_eq(vqkvc_plan_validate(plan, &err), VQKVC_OK, "%s", err.msg);
}

#endif
