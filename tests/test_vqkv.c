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

/* Which branch each channel of a key is in, by streams of the first head: 0 low, 1 high. */
static void branches_of(const vqkvc_plan *plan, int dim, int *branch)
{
    for (int c = 0; c < dim; c++)
        branch[c] = -1;
    for (int i = 0; i < 2; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        const vqkvc_table *select = &plan->tables[s->enc];
        cr_assert(s->transform == VQKVC_TRANSFORM_BASIS && s->dec == s->enc && s->mean == -1);
        cr_assert_not_null(strstr(s->name, i == 0 ? "low" : "high"), "%s", s->name);
        for (int j = 0, before = -1; j < s->n_latents; j++)
            for (int c = 0; c < dim; c++)
                if (select->f16[c * select->cols + j] == 0x3c00) {
                    cr_assert(branch[c] == -1 && c > before, "channel %d", c);
                    branch[c] = i;
                    before = c;
                } else {
                    cr_assert_eq(select->f16[c * select->cols + j], 0);
                }
    }
}

/* The faster half of the pairs, rounded down, is the high branch, wherever the pairs lie. */
Test(vqkv, branches_split_keys_by_the_frequency_of_their_pairs)
{
    enum { DIM = 12 };
    static const struct {
        vqkvc_rope_layout layout;
        int n_rot, branch[DIM];
    } known[] = {{VQKVC_ROPE_HALVES, 12, {1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0}},
                 {VQKVC_ROPE_INTERLEAVED, 12, {1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}},
                 {VQKVC_ROPE_HALVES, 6, {1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
                 {VQKVC_ROPE_INTERLEAVED, 10, {1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}}};
    vqkvc_vqkv_params params = {.stages = {3, 1}, .bits = {3, 2}, .branches = 2};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        vqkvc_capture capture;
        vqkvc_plan plan;
        int branch[DIM];
        make_capture(&capture, 1, 2, DIM, 256);
        capture.geometry.rope_layout = known[i].layout;
        capture.geometry.n_rot = known[i].n_rot;
        make_plan(&plan, &capture, &params);
        cr_assert_eq(plan.n_streams, 6);
        cr_assert_eq(plan.n_tables, 5, "two selections, two key codebooks, one of values");
        cr_assert_eq(plan.streams[0].runs[0].stages, 2, "the slower half has the odd stage");
        cr_assert_eq(plan.streams[1].runs[0].stages, 1);
        branches_of(&plan, DIM, branch);
        cr_expect_eq(memcmp(branch, known[i].branch, sizeof branch), 0, "case %zu", i);
        vqkvc_plan_free(&plan);
        vqkvc_capture_free(&capture);
    }
}

/* A branch codes its own channels by the definition and leaves the others alone. */
Test(vqkv, each_branch_is_a_residual_stack_of_its_channels)
{
    enum { DIM = 16, PROBES = 40, HALF = DIM / 2 };
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_cost cost;
    vqkvc_vqkv_params params = {.stages = {6, 3}, .bits = {5, 3}, .branches = 2};
    float x[PROBES * DIM], x_hat[PROBES * DIM], mine[HALF];
    int32_t codes[PROBES * 3], expected[3];
    int branch[DIM];
    double plain[HALF];
    make_capture(&capture, 1, 1, DIM, 400);
    make_plan(&plan, &capture, &params);
    vqkvc_plan_cost(&plan, 4096, &cost);
    cr_expect_float_eq(cost.code_bits, (6 * 5 + 3 * 3) / (2.0 * DIM), 1e-12,
                       "branches cost no bits");
    branches_of(&plan, DIM, branch);
    fill_vectors(PROBES, DIM, x);
    for (int i = 0; i < 2; i++) {
        const vqkvc_stream *s = &plan.streams[i];
        cr_assert_eq(vqkvc_stream_reference(&plan, s, PROBES, x, x_hat, codes, &err), VQKVC_OK);
        for (int t = 0; t < PROBES; t++) {
            for (int c = 0, j = 0; c < DIM; c++)
                if (branch[c] == i)
                    mine[j++] = x[t * DIM + c];
            by_definition(3, HALF, 32, plan.tables[s->runs[0].book].f16, mine, plain, expected);
            cr_assert_eq(memcmp(codes + t * 3, expected, sizeof expected), 0, "%s, vector %d",
                         s->name, t);
            for (int c = 0, j = 0; c < DIM; c++) {
                double wanted = branch[c] == i ? plain[j++] : 0;
                cr_assert_float_eq((double)x_hat[t * DIM + c], wanted, 1e-5);
            }
        }
    }
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&capture);
}

/* Squared error of all streams over the vectors of the capture. */
static double error_of(const vqkvc_plan *plan, int n, int dim)
{
    float *x = need((size_t)(n * dim), sizeof *x), *x_hat = need((size_t)(n * dim), sizeof *x);
    double error = 0;
    vqkvc_err err = {0};
    fill_vectors(n, dim, x);
    for (int i = 0; i < plan->n_streams; i++) {
        cr_assert_eq(vqkvc_stream_reference(plan, &plan->streams[i], n, x, x_hat, NULL, &err),
                     VQKVC_OK);
        for (int j = 0; j < n * dim; j++)
            error += pow((double)x[j] - (double)x_hat[j], 2);
    }
    free(x);
    free(x_hat);
    return error;
}

/* Only coding changes: the same codebooks, less error. */
Test(vqkv, a_beam_codes_the_same_codebooks_better)
{
    enum { DIM = 16, N = 300 };
    vqkvc_capture capture;
    vqkvc_plan greedy, beam;
    vqkvc_vqkv_params params = {.stages = {6, 4}, .bits = {4, 4}};
    make_capture(&capture, 1, 1, DIM, N);
    make_plan(&greedy, &capture, &params);
    params.beam = 8;
    make_plan(&beam, &capture, &params);
    cr_assert_eq(beam.n_tables, greedy.n_tables);
    for (int i = 0; i < beam.n_tables; i++)
        cr_expect_eq(memcmp(beam.tables[i].f16, greedy.tables[i].f16,
                            sizeof(uint16_t) * (size_t)(beam.tables[i].rows * beam.tables[i].cols)),
                     0);
    for (int i = 0; i < beam.n_streams; i++) {
        cr_expect_eq(beam.streams[i].runs[0].beam, 8);
        cr_expect_eq(greedy.streams[i].runs[0].beam, 0);
    }
    cr_expect_lt(error_of(&beam, N, DIM), 0.95 * error_of(&greedy, N, DIM));
    vqkvc_plan_free(&greedy);
    vqkvc_plan_free(&beam);
    vqkvc_capture_free(&capture);
}

static void expect_refusal(const vqkvc_capture *capture, vqkvc_vqkv_params params,
                           const char *words)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    cr_expect_neq(vqkvc_plan_vqkv(&plan, capture, &params, NULL, &parent, &quiet_log, &err),
                  VQKVC_OK);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
}

Test(vqkv, refuses_branches_and_beams_that_it_cannot_do)
{
    vqkvc_capture capture;
    make_capture(&capture, 1, 1, 8, 256);
    expect_refusal(&capture, (vqkvc_vqkv_params){.branches = 3}, "3 branches");
    expect_refusal(&capture, (vqkvc_vqkv_params){.branches = 2, .stages = {1, 1}}, "1 stage");
    expect_refusal(&capture, (vqkvc_vqkv_params){.beam = 17}, "a beam of 17");
    capture.geometry.rope_layout = VQKVC_ROPE_NONE;
    expect_refusal(&capture, (vqkvc_vqkv_params){.branches = 2}, "0 channels are rotated");
    capture.geometry.rope_layout = VQKVC_ROPE_HALVES;
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
