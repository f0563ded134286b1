/* The scheme auto: what its search promises, and what sensitivities do to it. */
#include <criterion/criterion.h>

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "capture/run.h"
#include "eval/sensitivity.h"
#include "plan/allocate.h"
#include "plan/auto.h"
#include "plan_toy.h"

enum { LAYERS = 4, HEADS = 2, DIM = 16, SAMPLES = 512 };

static const vqkvc_log quiet_log = {.level = -1};

/* One token's queries x [heads, DIM] into the moments of a layer. */
static void add_query(vqkvc_stats *s, int heads, const double *x)
{
    s->n++;
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < DIM; i++)
            for (int j = 0; j < DIM; j++)
                s->moment[(h * DIM + i) * DIM + j] += x[h * DIM + i] * x[h * DIM + j] / SAMPLES;
}

/* Layers see the same token in different ways: x_l = A_l t + a little of their own. */
static void make_capture(vqkvc_capture *c)
{
    enum { LATENT = 24 };
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(LAYERS, HEADS, DIM);
    cr_assert_eq(vqkvc_capture_alloc(c, &g, SAMPLES, &err), VQKVC_OK, "%s", err.msg);
    c->n_sample = SAMPLES;
    c->n_tokens = SAMPLES;
    for (int kind = VQKVC_KEY; kind <= VQKVC_QUERY; kind++)
        for (int layer = 0; layer < LAYERS; layer++) {
            vqkvc_rng map_rng = vqkvc_rng_make(3, (uint64_t)(kind * LAYERS + layer));
            int width = vqkvc_kind_width(&g, (vqkvc_kind)kind);
            double *map = need((size_t)(width * LATENT), sizeof *map);
            for (int i = 0; i < width * LATENT; i++)
                map[i] = vqkvc_rng_normal(&map_rng) / (1 + i % LATENT);
            for (int t = 0; t < SAMPLES; t++) {
                vqkvc_rng own = vqkvc_rng_make(4, (uint64_t)(kind * LAYERS + layer) << 32 | t);
                vqkvc_rng token = vqkvc_rng_make(5, (uint64_t)t);
                double latent[LATENT], x[HEADS * 4 * DIM];
                cr_assert(width <= HEADS * 4 * DIM);
                for (int j = 0; j < LATENT; j++)
                    latent[j] = vqkvc_rng_normal(&token);
                for (int i = 0; i < width; i++) {
                    x[i] = 0.1 * vqkvc_rng_normal(&own);
                    for (int j = 0; j < LATENT; j++)
                        x[i] += map[i * LATENT + j] * latent[j];
                    if (kind != VQKVC_QUERY)
                        c->sample[kind][layer][t * width + i] = vqkvc_f32_to_f16((float)x[i]);
                }
                if (kind == VQKVC_QUERY)
                    add_query(&c->stats[kind][layer], width / DIM, x);
            }
            free(map);
        }
    for (int t = 0; t < SAMPLES; t++)
        c->pos[t] = 4 + t % 100;
}

static void make_plan(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    cr_assert_eq(vqkvc_plan_auto(plan, c, p, NULL, &parent, &quiet_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

/* Mean squared error of one head's values over the sample, through the whole plan. */
static double value_error(const vqkvc_plan *plan, const vqkvc_capture *c, int layer, int head)
{
    vqkvc_err err = {0};
    size_t token = (size_t)LAYERS * HEADS * DIM;
    float *k = need(SAMPLES * token, sizeof *k), *v = need(SAMPLES * token, sizeof *v);
    float *k_hat = need(SAMPLES * token, sizeof *k), *v_hat = need(SAMPLES * token, sizeof *v);
    for (int l = 0; l < LAYERS; l++)
        for (int t = 0; t < SAMPLES; t++)
            for (int i = 0; i < HEADS * DIM; i++) {
                size_t at = (size_t)t * token + (size_t)(l * HEADS * DIM + i);
                k[at] = vqkvc_f16_to_f32(c->sample[VQKVC_KEY][l][t * HEADS * DIM + i]);
                v[at] = vqkvc_f16_to_f32(c->sample[VQKVC_VALUE][l][t * HEADS * DIM + i]);
            }
    cr_assert_eq(vqkvc_plan_reference(plan, plan->n_streams, SAMPLES, 0, k, v, k_hat, v_hat, &err),
                 VQKVC_OK, "%s", err.msg);
    double sum = 0;
    for (int t = 0; t < SAMPLES; t++)
        for (int i = 0; i < DIM; i++) {
            size_t at = (size_t)t * token + (size_t)((layer * HEADS + head) * DIM + i);
            sum += pow((double)v[at] - (double)v_hat[at], 2) / SAMPLES;
        }
    free(k);
    free(v);
    free(k_hat);
    free(v_hat);
    return sum;
}

/* Plans stay within their bits and what they may read. */
Test(auto, budgets_hold)
{
    static const double rates[] = {0.5, 2};
    vqkvc_capture c;
    make_capture(&c);
    for (int i = 0; i < 2; i++)
        for (int limited = 0; limited < 2; limited++) {
            vqkvc_plan plan;
            vqkvc_cost cost;
            vqkvc_auto_params p = {.bits = rates[i],
                                   .max_scan = limited ? 2 * rates[i] : -1,
                                   .frame = VQKVC_FRAME_BLOCK};
            make_plan(&plan, &c, &p);
            vqkvc_plan_cost(&plan, 1024, &cost);
            cr_assert_leq(cost.code_bits + cost.gain_bits, rates[i] + 1e-9);
            cr_assert(!limited || cost.scan_bits <= 2 * rates[i] + 1e-9, "reads %g at %g bits",
                      cost.scan_bits, rates[i]);
            vqkvc_plan_free(&plan);
        }
    vqkvc_capture_free(&c);
}

/* Where tables count, codes, gains and tables together keep the bits, but for rounding to a nibble
 * a stream; and tables are smaller than where they do not count. */
Test(auto, tables_count_where_asked)
{
    enum { CONTEXT = 2048 };
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_cost counted, free_of_charge;
    make_capture(&c);
    vqkvc_auto_params p = {
        .bits = 3, .max_scan = -1, .frame = VQKVC_FRAME_BLOCK, .tables_at = CONTEXT};
    make_plan(&plan, &c, &p);
    vqkvc_plan_cost(&plan, CONTEXT, &counted);
    vqkvc_plan_free(&plan);
    p.tables_at = 0;
    make_plan(&plan, &c, &p);
    vqkvc_plan_cost(&plan, CONTEXT, &free_of_charge);
    vqkvc_plan_free(&plan);
    cr_assert_leq(counted.code_bits + counted.gain_bits + counted.table_bits, 1.02 * 3,
                  "%g + %g + %g", counted.code_bits, counted.gain_bits, counted.table_bits);
    cr_assert_lt(counted.table_bits, free_of_charge.table_bits);
    vqkvc_capture_free(&c);
}

/* A head that matters more is coded better, and more bits make less error. */
Test(auto, sensitivity_moves_bits)
{
    double at[2 * LAYERS * HEADS], error[3];
    vqkvc_sensitivity s = {.groups = 1, .at = at};
    vqkvc_capture c;
    make_capture(&c);
    for (int i = 0; i < 3; i++) {
        vqkvc_plan plan;
        vqkvc_auto_params p = {.bits = i == 2 ? 2.5 : 1.5,
                               .max_scan = -1,
                               .frame = VQKVC_FRAME_PRE,
                               .sensitivity = &s};
        for (int h = 0; h < 2 * LAYERS * HEADS; h++)
            at[h] = 1;
        at[LAYERS * HEADS + 2 * HEADS + 1] = i == 1 ? 50 : 1; /* V, layer 2, head 1 */
        make_plan(&plan, &c, &p);
        error[i] = value_error(&plan, &c, 2, 1);
        vqkvc_plan_free(&plan);
    }
    cr_assert_lt(error[1], 0.7 * error[0], "%g, not less than %g", error[1], error[0]);
    cr_assert_lt(error[2], error[0]);
    vqkvc_capture_free(&c);
}

/* What is left out is not there. */
Test(auto, ideas_can_be_left_out)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    make_capture(&c);
    make_plan(&plan, &c, &(vqkvc_auto_params){.bits = 2, .frame = VQKVC_FRAME_BLOCK, .no_gain = 1});
    for (int i = 0; i < plan.n_streams; i++)
        cr_assert_eq(plan.streams[i].gain, VQKVC_GAIN_NONE);
    vqkvc_plan_free(&plan);
    make_plan(&plan, &c,
              &(vqkvc_auto_params){
                  .bits = 2, .frame = VQKVC_FRAME_POST, .layers_shared = 1, .separate_heads = 1});
    for (int i = 0; i < plan.n_streams; i++)
        cr_assert(plan.streams[i].n_members == 1 && plan.streams[i].frame == VQKVC_FRAME_POST);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}

static double trace(const double *m)
{
    double sum = 0;
    for (int i = 0; i < DIM; i++)
        sum += m[i * DIM + i];
    return sum;
}

/* Sensitivities of 1 leave metrics as they are, of 3 make them threefold; turning keeps the trace,
 * and turning by nothing keeps everything. */
Test(auto, metrics_follow_sensitivities)
{
    double at[2 * LAYERS * HEADS * 2];
    vqkvc_err err = {0};
    vqkvc_arena arena = {0};
    vqkvc_metrics m, same;
    vqkvc_capture c;
    make_capture(&c);
    cr_assert_eq(vqkvc_sample_metrics(&c, &arena, &m, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_sample_metrics(&c, &arena, &same, &err), VQKVC_OK);
    for (int i = 0; i < 2 * LAYERS * HEADS * 2; i++)
        at[i] = 3;
    cr_assert_eq(vqkvc_metrics_weigh(&c, &(vqkvc_sensitivity){.groups = 2, .at = at}, 1, &m, &err),
                 VQKVC_OK);
    for (int h = 0; h < LAYERS * HEADS; h++) {
        cr_assert_float_eq(trace(m.k[h]) / trace(same.k[h]), 3, 0.02);
        cr_assert_float_eq(trace(m.v[h]) / trace(same.v[h]), 3, 0.02);
    }
    cr_assert_eq(
        vqkvc_metrics_turn(&c, &(vqkvc_key_frame){VQKVC_FRAME_BLOCK, 1, NULL, 0}, &same, &err),
        VQKVC_OK);
    double before = trace(same.k[3]), corner = same.k[3][1];
    cr_assert_eq(
        vqkvc_metrics_turn(&c, &(vqkvc_key_frame){VQKVC_FRAME_BLOCK, 1, NULL, 0}, &same, &err),
        VQKVC_OK);
    cr_assert_float_eq(same.k[3][1], corner, 1e-6 * before);
    cr_assert_eq(
        vqkvc_metrics_turn(&c, &(vqkvc_key_frame){VQKVC_FRAME_BLOCK, 64, NULL, 0}, &same, &err),
        VQKVC_OK);
    cr_assert_float_eq(trace(same.k[3]) / before, 1, 1e-5);
    vqkvc_arena_free(&arena);
    vqkvc_capture_free(&c);
}

/* For long caches no sensitivity stays below the geometric mean of its part; others stay as they
 * are.
 */
Test(auto, small_sensitivities_are_raised)
{
    enum { N = LAYERS * HEADS * 2 };
    vqkvc_geometry g = toy_geometry(LAYERS, HEADS, DIM);
    double at[2 * N], raised[2 * N];
    for (int i = 0; i < 2 * N; i++)
        at[i] = (i < N ? 1 : 100) * (i % 2 == 0 ? 4 : 0.25);
    vqkvc_sensitivity_raise(&g, (vqkvc_sensitivity){.groups = 2, .at = at}, raised);
    for (int i = 0; i < 2 * N; i++)
        cr_expect_float_eq(raised[i], i % 2 == 0 ? at[i] : i < N ? 1.0 : 100.0, 1e-9, "%d", i);
}

/* With spans a plan says which pairs turn how far; with bands its streams of keys begin with
 * latents that nothing turning has a part in, and code almost as well as they can otherwise. */
Test(auto, spans_and_bands)
{
    vqkvc_capture c;
    make_capture(&c);
    for (int i = 0; i < DIM / 2; i++)
        c.geometry.rope_freq[i] = pow(10000, -2.0 * i / DIM);
    for (int spans = 0; spans < 3; spans++) {
        vqkvc_plan plan;
        int stretched = 0, steady = 0, turning = 0;
        make_plan(&plan, &c,
                  &(vqkvc_auto_params){.bits = 2,
                                       .max_scan = 6,
                                       .frame = VQKVC_FRAME_BLOCK,
                                       .spans = spans,
                                       .window = {.block = 64}});
        for (int i = 0; i < DIM / 2; i++)
            stretched += plan.stretch[i] != 0;
        cr_expect_eq(stretched > 0, spans > 0);
        for (int i = 0; i < plan.n_streams; i++) {
            const vqkvc_stream *s = &plan.streams[i];
            for (int r = 0; r < s->n_runs; r++) {
                const vqkvc_run *run = &s->runs[r];
                int is = vqkvc_frame_is_steady(&plan, s, run->first, run->groups * run->width);
                steady += is;
                turning += s->members[0].part == VQKVC_PART_K && !is;
                cr_expect(r == 0 || !is ||
                              vqkvc_frame_is_steady(&plan, s, run[-1].first,
                                                    run[-1].groups * run[-1].width),
                          "stream %d: run %d is steady behind one that is not", i, r);
            }
        }
        cr_expect_eq(steady > 0, spans > 1, "%d steady runs with spans %d", steady, spans);
        cr_expect_gt(turning, 0);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&c);
}

/* A layout takes no more nibbles than it was given and reaches its curve, which never rises. */
Test(auto, layouts_reach_their_curves)
{
    enum { D = 40, N = 60 };
    double lambda[D], curve[N + 1], each[D];
    vqkvc_err err = {0};
    for (int i = 0; i < D; i++)
        lambda[i] = exp(-0.2 * i);
    cr_assert_eq(vqkvc_allocate_curve(D, lambda, 0, N, curve, &err), VQKVC_OK);
    for (int j = 1; j <= N; j++) {
        vqkvc_layout layout;
        double sum = 0;
        cr_assert_eq(vqkvc_allocate_layout(D, lambda, 0, j, &layout, &err), VQKVC_OK);
        cr_assert_leq(layout.n_nibbles, j);
        cr_assert_leq(curve[j], curve[j - 1]);
        vqkvc_layout_distortions(&layout, D, lambda, each);
        for (int i = 0; i < D; i++)
            sum += each[i];
        cr_assert_float_eq(sum, layout.distortion, 1e-9);
    }
}

/* Probes give positive figures, the same whatever the threads. */
Test(auto, probes_measure)
{
    enum { TOKENS = 192 };
    vqkvc_err err = {0};
    vqkvc_model *model;
    vqkvc_source source;
    vqkvc_capture c;
    vqkvc_metrics m;
    vqkvc_arena arena = {0};
    int32_t tokens[TOKENS];
    vqkvc_capture_params params = {.n_tokens = 512, .n_sample = 384, .window = 128, .seed = 1};
    vqkvc_matrix_init();
    cr_assert_eq(vqkvc_model_open(&model, "examples/models/ref7m.gguf", 0, &err), VQKVC_OK, "%s",
                 err.msg);
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    size_t n = 2 * (size_t)g->n_layers * (size_t)g->n_kv_heads;
    double *once = need(n, sizeof *once), *again = need(n, sizeof *again);
    cr_assert_eq(vqkvc_source_self(&source, model, &params, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_capture_run(model, &source, &params, &quiet_log, &c, &err), VQKVC_OK, "%s",
                 err.msg);
    cr_assert_eq(vqkvc_sample_metrics(&c, &arena, &m, &err), VQKVC_OK);
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = 300 + i * 7 % 400;
    omp_set_num_threads(1);
    cr_assert_eq(
        vqkvc_sensitivity_measure(model, tokens, TOKENS, &c, &m, 1, 1, &quiet_log, once, &err),
        VQKVC_OK, "%s", err.msg);
    omp_set_num_threads(omp_get_max_threads() == 1 ? 3 : 1);
    omp_set_num_threads(3);
    cr_assert_eq(
        vqkvc_sensitivity_measure(model, tokens, TOKENS, &c, &m, 1, 1, &quiet_log, again, &err),
        VQKVC_OK, "%s", err.msg);
    for (size_t i = 0; i < n; i++)
        cr_assert(once[i] > 0 && once[i] == again[i], "%zu: %g, then %g", i, once[i], again[i]);
    free(once);
    free(again);
    vqkvc_arena_free(&arena);
    vqkvc_capture_free(&c);
    vqkvc_source_free(&source);
    vqkvc_model_close(model);
}
