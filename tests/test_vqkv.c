/* The scheme vqkv against its definition, recomputed plainly: r_1 = x; z_i = the nearest codeword
 * of stage i to r_i; r_i+1 = r_i - C_i[z_i]; x^ = sum of C_i[z_i]. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "fit/fit.h"
#include "plan/vqkv.h"
#include "plan_toy.h"

static const vqkvc_log quiet_log = {.level = -1};

/* Vectors around a few centres, so that stages have something to find: x [n, d]. */
static void fill_vectors(int n, int d, float *x)
{
    vqkvc_rng rng = vqkvc_rng_make(11, 0);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d; j++)
            x[(size_t)i * (size_t)d + (size_t)j] =
                (float)(1.5 * ((i % 7 + 3 * j) % 5) + 2 * (vqkvc_rng_uniform(&rng) - 0.5));
}

static void make_capture(vqkvc_capture *c, int n_layers, int n_heads, int dim, int n)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(n_layers, n_heads, dim);
    cr_assert_eq(vqkvc_capture_alloc(c, &g, n, &err), VQKVC_OK, "%s", err.msg);
    c->n_sample = n;
    c->n_tokens = (uint64_t)n;
    float *x = need((size_t)n * (size_t)(n_heads * dim), sizeof *x);
    fill_vectors(n, n_heads * dim, x);
    for (int i = 0; i < n; i++)
        c->pos[i] = 4 + i % 100;
    for (int kind = VQKVC_KEY; kind <= VQKVC_VALUE; kind++)
        for (int layer = 0; layer < n_layers; layer++)
            for (size_t i = 0; i < (size_t)n * (size_t)(n_heads * dim); i++)
                c->sample[kind][layer][i] = vqkvc_f32_to_f16(x[i] * (float)(1 + layer));
    free(x);
}

static void make_plan(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_vqkv_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    cr_assert_eq(vqkvc_plan_vqkv(plan, c, p, NULL, &parent, &quiet_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

/* The definition: x [d] to x_hat [d] and codes [stages]; book [stages, d, n_codes]. */
static void by_definition(int stages, int d, int n_codes, const uint16_t *book, const float *x,
                          double *x_hat, int32_t *codes)
{
    double *r = need((size_t)d, sizeof *r);
    for (int j = 0; j < d; j++) {
        r[j] = (double)x[j];
        x_hat[j] = 0;
    }
    for (int i = 0; i < stages; i++, book += d * n_codes) {
        double least = INFINITY;
        for (int s = 0; s < n_codes; s++) {
            double distance = 0;
            for (int j = 0; j < d; j++) {
                double e = r[j] - (double)vqkvc_f16_to_f32(book[j * n_codes + s]);
                distance += e * e;
            }
            if (distance < least) {
                least = distance;
                codes[i] = s;
            }
        }
        for (int j = 0; j < d; j++) {
            double c = (double)vqkvc_f16_to_f32(book[j * n_codes + codes[i]]);
            r[j] -= c;
            x_hat[j] += c;
        }
    }
    free(r);
}

Test(vqkv, streams_do_the_definitions_arithmetic)
{
    enum { DIM = 16, N = 400, PROBES = 50 };
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_vqkv_params params = {.stages = {5, 3}, .bits = {6, 3}, .share = VQKVC_SHARE_LAYER};
    make_capture(&capture, 2, 2, DIM, N);
    make_plan(&plan, &capture, &params);
    cr_assert_eq(plan.n_streams, 8);
    cr_assert_eq(plan.n_tables, 4, "K and V of two layers");
    float x[PROBES * DIM], x_hat[PROBES * DIM];
    int32_t codes[PROBES * 5], expected[5];
    double plain[DIM];
    fill_vectors(PROBES, DIM, x);
    for (int i = 0; i < plan.n_streams; i++) {
        const vqkvc_stream *s = &plan.streams[i];
        const vqkvc_run *run = &s->runs[0];
        cr_assert(s->frame == VQKVC_FRAME_POST && s->transform == VQKVC_TRANSFORM_IDENTITY &&
                  s->gain == VQKVC_GAIN_NONE && s->mean == -1 && s->n_runs == 1 &&
                  run->width == DIM);
        cr_assert_eq(vqkvc_stream_reference(&plan, s, PROBES, x, x_hat, codes, &err), VQKVC_OK);
        for (int t = 0; t < PROBES; t++) {
            by_definition(run->stages, DIM, 1 << run->bits, plan.tables[run->book].f16, x + t * DIM,
                          plain, expected);
            cr_assert_eq(
                memcmp(codes + t * run->stages, expected, (size_t)run->stages * sizeof *codes), 0,
                "%s, vector %d", s->name, t);
            for (int j = 0; j < DIM; j++)
                cr_assert_float_eq((double)x_hat[t * DIM + j], plain[j], 1e-5);
        }
    }
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&capture);
}

Test(vqkv, bits_a_value_are_the_published_ones, .timeout = 60)
{
    static const int dims[] = {64, 128};
    for (int i = 0; i < 2; i++) {
        vqkvc_capture capture;
        vqkvc_plan plan;
        vqkvc_cost cost;
        vqkvc_vqkv_params params = {.sweeps = -1};
        make_capture(&capture, 1, 1, dims[i], 256);
        make_plan(&plan, &capture, &params);
        vqkvc_plan_cost(&plan, 4096, &cost);
        cr_expect_float_eq(cost.code_bits, 2.75, 1e-12);
        cr_expect_eq(cost.gain_bits, 0);
        cr_expect_float_eq(vqkvc_stream_code_bits(&plan.streams[0]) / dims[i], 4.375, 1e-12);
        cr_expect_float_eq(vqkvc_stream_code_bits(&plan.streams[1]) / dims[i], 1.125, 1e-12);
        cr_expect_str_eq(plan.scheme, "vqkv2.75");
        cr_expect_eq(plan.streams[0].runs[0].stages, 56 * dims[i] / 128);
        cr_expect_eq(plan.streams[1].runs[0].stages, 16 * dims[i] / 128);
        vqkvc_plan_free(&plan);
        vqkvc_capture_free(&capture);
    }
}

/* All of the sample in one place: what k-means says is left is what the plan leaves. */
Test(vqkv, objective_falls_with_every_stage_and_never_rises_by_refinement)
{
    enum { N = 3000, D = 12, STAGES = 6, BITS = 5, SWEEPS = 3 };
    vqkvc_residual_params params = {.stages = STAGES, .bits = BITS, .sweeps = SWEEPS, .seed = 3};
    double objective[STAGES + 1 + SWEEPS], left = 0, plain[D];
    uint16_t *books = need((size_t)STAGES * D << BITS, sizeof *books);
    float *x = need((size_t)N * D, sizeof *x);
    int32_t codes[STAGES];
    vqkvc_err err = {0};
    fill_vectors(N, D, x);
    cr_assert_eq(vqkvc_fit_residual(N, D, x, &params, books, objective, &err), VQKVC_OK, "%s",
                 err.msg);
    for (int i = 0; i < STAGES; i++)
        cr_expect_lt(objective[i + 1], objective[i], "stage %d", i);
    for (int i = STAGES; i < STAGES + SWEEPS; i++)
        cr_expect_leq(objective[i + 1], objective[i], "refinement %d", i - STAGES);
    cr_expect_lt(objective[STAGES + 1], objective[STAGES], "the first refinement helps here");
    for (int t = 0; t < N; t++) {
        by_definition(STAGES, D, 1 << BITS, books, x + t * D, plain, codes);
        for (int j = 0; j < D; j++) {
            double e = (double)x[t * D + j] - plain[j];
            left += e * e / N;
        }
    }
    cr_expect_float_eq(left / objective[STAGES + SWEEPS], 1, 1e-5);
    free(books);
    free(x);
}

Test(vqkv, sharing_decides_how_many_codebooks_there_are)
{
    static const int tables[] = {2, 6, 12}; /* of model, layer, head */
    vqkvc_capture capture;
    make_capture(&capture, 3, 2, 8, 256);
    for (int share = VQKVC_SHARE_MODEL; share <= VQKVC_SHARE_HEAD; share++) {
        vqkvc_plan plan;
        vqkvc_vqkv_params params = {
            .stages = {2, 1}, .bits = {3, 2}, .share = (vqkvc_share)share, .max_points = 300};
        make_plan(&plan, &capture, &params);
        cr_expect_eq(plan.n_tables, tables[share], "share %d: %d tables", share, plan.n_tables);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&capture);
}

Test(vqkv, refuses_what_it_cannot_do)
{
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    vqkvc_vqkv_params params = {.bits = {17, 2}};
    make_capture(&capture, 1, 1, 8, 256);
    cr_expect_eq(vqkvc_plan_vqkv(&plan, &capture, &params, NULL, &parent, &quiet_log, &err),
                 VQKVC_E_USAGE);
    err = (vqkvc_err){0};
    params.bits[0] = 2;
    capture.n_sample = 100;
    cr_expect_eq(vqkvc_plan_vqkv(&plan, &capture, &params, NULL, &parent, &quiet_log, &err),
                 VQKVC_E_USAGE);
    cr_expect_not_null(strstr(err.msg, "100 sampled"), "%s", err.msg);
    capture.n_sample = 256;
    vqkvc_capture_free(&capture);
}
