/* The scheme anchor: its shared streams are predictions from the anchor, recomputed plainly. */
#include <criterion/criterion.h>

#include "linear_capture.h"
#include "plan/anchor.h"

static const vqkvc_log quiet_log = {.level = -1};

static void make_plan(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_anchor_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    cr_assert_eq(vqkvc_plan_anchor(plan, c, p, NULL, &parent, &quiet_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

static double entry(const vqkvc_plan *plan, int table, int row, int col)
{
    const vqkvc_table *t = &plan->tables[table];
    return (double)vqkvc_f16_to_f32(t->f16[row * t->cols + col]);
}

/* Columns first .. first + width - 1 of the sample. */
static void read_columns(const vqkvc_capture *c, vqkvc_part part, int layer, int first, int width,
                         double *x)
{
    double *all = need((size_t)N * D, sizeof *all);
    read_layer(c, part, layer, all);
    for (int t = 0; t < N; t++)
        for (int j = 0; j < width; j++)
            x[t * width + j] = all[t * D + first + j];
    free(all);
}

/* The anchor's reconstruction, mean + HIGGS of the rest; x [N, width] becomes it. Where the root of
 * the width is no power of two, latents are longer by the root of 2, so that tables are exact. */
static void plain_anchor(const vqkvc_plan *plan, const vqkvc_stream *s, int width, double *x)
{
    for (int t = 0; t < N; t++) {
        double rest[D], coded[D];
        for (int j = 0; j < width; j++)
            rest[j] = x[t * width + j] - entry(plan, s->mean, 0, j);
        plain_higgs(&plan->tables[s->runs[0].book], 2, width == DIM ? sqrt(2) : 1, width, rest,
                    coded);
        for (int j = 0; j < width; j++)
            x[t * width + j] = coded[j] + entry(plan, s->mean, 0, j);
    }
}

/* Follower l of a shared stream: decoding latents H x gives W x + b, encoding ignores it. */
static void check_follower(const vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_stream *s,
                           int l, const double *anchor)
{
    int width = s->n_latents, first = s->members[0].head * DIM;
    double *y = need((size_t)N * width, sizeof *y);
    double *w = need((size_t)(width + 1) * width, sizeof *w);
    read_columns(c, s->members[0].part, s->members[0].layer + l, first, width, y);
    plain_ridge(N - N / 8, width, anchor, width, y, w);
    for (int j = 0; j < width; j++) {
        int row = l * width + j;
        double bias = entry(plan, s->mean, 0, row);
        for (int i = 0; i < width; i++) {
            double map = 0;
            for (int z = 0; z < width; z++)
                map += entry(plan, s->dec, row, z) * entry(plan, s->enc, i, z);
            bias -= map * entry(plan, s->mean, 0, i);
            cr_assert_float_eq(map, w[i * width + j], 2e-3, "%s, row %d, column %d: %g, not %g",
                               s->name, i, j, map, w[i * width + j]);
            cr_assert_eq(entry(plan, s->enc, row, i), 0);
        }
        cr_assert_float_eq(bias, w[width * width + j], 2e-3, "%s, intercept %d", s->name, j);
    }
    free(y);
    free(w);
}

static void check_shared(const vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_stream *s)
{
    int width = s->n_latents;
    double *anchor = need((size_t)N * width, sizeof *anchor);
    cr_assert_eq(s->transform, VQKVC_TRANSFORM_BASIS);
    read_columns(c, s->members[0].part, s->members[0].layer, s->members[0].head * DIM, width,
                 anchor);
    plain_anchor(plan, s, width, anchor);
    for (int l = 1; l < s->n_in / width; l++)
        check_follower(plan, c, s, l, anchor);
    free(anchor);
}

/* Without rotation, so that the block frame is the sample itself. */
Test(anchor, followers_decode_what_is_predicted_of_them, .timeout = 60)
{
    vqkvc_capture capture;
    make_linear(&capture, LINKED, 0, VQKVC_ROPE_NONE);
    for (int per_head = 0; per_head < 2; per_head++) {
        vqkvc_plan plan;
        int seen = 0;
        make_plan(&plan, &capture, &(vqkvc_anchor_params){.every = 2, .per_head = per_head});
        for (int i = 0; i < plan.n_streams; i++)
            if (plan.streams[i].transform == VQKVC_TRANSFORM_BASIS) {
                cr_assert_eq(plan.streams[i].n_latents, per_head ? DIM : D);
                check_shared(&plan, &capture, &plan.streams[i]);
                seen++;
            }
        cr_expect_eq(seen, (per_head ? HEADS : 1) * 2 * 2, "K and V of layers 0 and 2");
        cr_expect_eq(plan.n_streams - seen, seen / 2, "own streams of layer 1 alone");
        cr_expect_eq(plan.n_predictions, 0);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&capture);
}

/* Squared error of V through the reference, over its energy about 0. */
static double error_of(const vqkvc_capture *c, const vqkvc_plan *plan)
{
    enum { BLOCK = 64, VALUES = BLOCK * LAYERS * D };
    float *v = need(VALUES, sizeof *v), *k_hat = need(VALUES, sizeof *v);
    float *v_hat = need(VALUES, sizeof *v);
    double left = 0, energy = 0;
    vqkvc_err err = {0};
    for (int layer = 0; layer < LAYERS; layer++)
        for (int t = 0; t < BLOCK; t++)
            for (int j = 0; j < D; j++)
                v[(t * LAYERS + layer) * D + j] =
                    vqkvc_f16_to_f32(c->sample[VQKVC_VALUE][layer][t * D + j]);
    cr_assert_eq(vqkvc_plan_reference(plan, plan->n_streams, BLOCK, 0, v, v, k_hat, v_hat, &err),
                 VQKVC_OK);
    for (int i = 0; i < VALUES; i++) {
        double e = (double)(v[i] - v_hat[i]);
        left += e * e;
        energy += (double)v[i] * (double)v[i];
    }
    free(v);
    free(k_hat);
    free(v_hat);
    return left / energy;
}

Test(anchor, sharing_helps_where_layers_are_linked_and_not_elsewhere)
{
    for (links how = LINKED; how <= UNLINKED; how++) {
        vqkvc_capture capture;
        vqkvc_plan alone, shared;
        vqkvc_explained report[2 * LAYERS];
        if (how != LINKED && how != UNLINKED)
            continue;
        make_linear(&capture, how, 0, VQKVC_ROPE_HALVES);
        make_plan(&alone, &capture, &(vqkvc_anchor_params){.every = 1, .anchor_bits = 2});
        make_plan(&shared, &capture,
                  &(vqkvc_anchor_params){.every = 3, .anchor_bits = 2, .report = report});
        double ratio = error_of(&capture, &shared) / error_of(&capture, &alone);
        for (int layer = 1; layer < LAYERS; layer++) {
            const vqkvc_explained *v = &report[2 * layer + VQKVC_PART_V];
            cr_expect(v->n_sources == 1 && v->sources[0].layer == 0 &&
                      v->sources[0].part == VQKVC_PART_V);
            if (how == LINKED)
                cr_expect_lt(v->relative_mse, 0.35, "V %d: %g", layer, v->relative_mse);
            else
                cr_expect_gt(v->relative_mse, 0.95, "V %d: %g", layer, v->relative_mse);
        }
        if (how == LINKED)
            cr_expect_lt(ratio, 0.7, "%g", ratio);
        else
            cr_expect_gt(ratio, 0.85, "%g", ratio);
        vqkvc_plan_free(&alone);
        vqkvc_plan_free(&shared);
        vqkvc_capture_free(&capture);
    }
}

Test(anchor, plans_do_not_change_from_run_to_run)
{
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_hash hash[2];
    vqkvc_err err = {0};
    make_linear(&capture, LINKED, 0, VQKVC_ROPE_HALVES);
    for (int i = 0; i < 2; i++) {
        make_plan(&plan, &capture, &(vqkvc_anchor_params){.every = 2});
        cr_assert_eq(vqkvc_plan_hash(&plan, &hash[i], &err), VQKVC_OK, "%s", err.msg);
        vqkvc_plan_free(&plan);
    }
    cr_expect_str_eq(hash[0].hex, hash[1].hex);
    vqkvc_capture_free(&capture);
}

Test(anchor, refuses_what_it_cannot_do)
{
    static const vqkvc_anchor_params wrong[] = {
        {.every = -1}, {.every = 65}, {.bits = 1}, {.anchor_bits = 5}};
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    make_linear(&capture, LINKED, 0, VQKVC_ROPE_HALVES);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_plan_anchor(&plan, &capture, &wrong[i], NULL, &parent, &quiet_log, &err),
                     VQKVC_E_USAGE, "%zu", i);
    }
    vqkvc_capture_free(&capture);
}
