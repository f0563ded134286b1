/* Streams without tables of their own: what the search expects of them, and when it takes them. */
#include <math.h>

#include "base/matrix.h"
#include "capture/simulate.h"
#include "base/half.h"
#include "plan/search.h"
#include "plan/spectra.h"
#include "plan/universal.h"
#include "plan_toy.h"

#define OK(call) cr_assert_eq((call), VQKVC_OK, "%s", err.msg)

enum { TOKENS = 2048, DIM = 64 };

static const vqkvc_log quiet_log = {.level = -1};

/* x [TOKENS, DIM] = mean + loudness of the token * A g, A and g normal; metric = B B'. */
static void make_data(float *x, double *metric)
{
    double *a = need(DIM * DIM, sizeof *a), *b = need(DIM * DIM, sizeof *b);
    vqkvc_rng rng = vqkvc_rng_make(3, 1);
    for (int i = 0; i < DIM * DIM; i++) {
        a[i] = vqkvc_rng_normal(&rng) * exp2(-(i % DIM) / 16.0);
        b[i] = vqkvc_rng_normal(&rng) * exp2(-(i % DIM) / 16.0);
    }
    vqkvc_dgemm_nt(DIM, DIM, DIM, b, DIM, b, DIM, metric, DIM);
    for (int t = 0; t < TOKENS; t++) {
        double loud = exp2(vqkvc_rng_normal(&rng) / 2), g[DIM];
        for (int i = 0; i < DIM; i++)
            g[i] = vqkvc_rng_normal(&rng);
        for (int i = 0; i < DIM; i++) {
            double sum = 0;
            for (int j = 0; j < DIM; j++)
                sum += a[i * DIM + j] * g[j];
            x[t * DIM + i] = (float)(i % 5 + loud * sum);
        }
    }
    free(a);
    free(b);
}

/* tr(M) / DIM E |x - mean|^2 */
static double energy_of(const float *x, const double *metric)
{
    double trace = 0, energy = 0;
    for (int i = 0; i < DIM; i++) {
        double mean = 0;
        for (int t = 0; t < TOKENS; t++)
            mean += (double)x[t * DIM + i] / TOKENS;
        for (int t = 0; t < TOKENS; t++)
            energy += ((double)x[t * DIM + i] - mean) * ((double)x[t * DIM + i] - mean) / TOKENS;
        trace += metric[i * (DIM + 1)];
    }
    return trace / DIM * energy;
}

static double error_in(const double *metric, const float *x, const float *x_hat)
{
    double sum = 0;
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < DIM; i++)
            for (int j = 0; j < DIM; j++)
                sum += metric[i * DIM + j] * (double)(x[t * DIM + i] - x_hat[t * DIM + i]) *
                       (double)(x[t * DIM + j] - x_hat[t * DIM + j]);
    return sum / TOKENS;
}

Test(universal, the_error_is_the_one_that_is_predicted)
{
    vqkvc_matrix_init();
    float *x = need(TOKENS * DIM, sizeof *x), *x_hat = need(TOKENS * DIM, sizeof *x_hat);
    double *metric = need(DIM * DIM, sizeof *metric);
    make_data(x, metric);
    double energy = energy_of(x, metric);
    for (int code = 0; code < VQKVC_UNIVERSALS; code++) {
        vqkvc_err err = {0};
        vqkvc_plan plan = {.geometry = toy_geometry(1, 1, DIM)};
        vqkvc_member member = {VQKVC_PART_V, 0, 0};
        vqkvc_stream_spec spec = {
            .name = "V", .members = &member, .n_members = 1, .frame = {.frame = VQKVC_FRAME_POST}};
        OK(vqkvc_universal_stream(&plan, &spec, code, TOKENS, x, &err));
        const vqkvc_stream *s = &plan.streams[0];
        OK(vqkvc_stream_reference(&plan, s, TOKENS, x, x_hat, NULL, &err));
        double ratio = error_in(metric, x, x_hat) / (energy * vqkvc_universal_error(code, DIM));
        cr_expect(ratio > 0.9 && ratio < 1.1, "code %d: %.3f of the prediction", code, ratio);
        double bits = vqkvc_stream_code_bits(s) + vqkvc_stream_gain_bits(s);
        cr_expect_eq(bits, 4 * vqkvc_universal_nibbles(code, DIM) + VQKVC_GAIN_BITS, "code %d",
                     code);
        vqkvc_plan_free(&plan);
    }
    free(x);
    free(x_hat);
    free(metric);
}

/* Two heads whose energies and metrics differ by sixteen, coded together: errors spread over the
 * channels of both, and count by both metrics. */
Test(universal, the_error_of_unequal_heads_is_the_one_that_the_search_expects)
{
    enum { HEADS = 2, WIDE = HEADS * DIM, N_MAX = 1024 };
    vqkvc_err err = {0};
    vqkvc_geometry g;
    vqkvc_capture c;
    vqkvc_capture_params params = {.n_tokens = 4096, .n_sample = 2048, .seed = 1};
    vqkvc_matrix_init();
    OK(vqkvc_simulate_geometry("1x2x2x64", &g, &err));
    OK(vqkvc_capture_simulate(&g, &params, &quiet_log, &c, &err));
    for (int i = 0; i < c.n_sample * WIDE; i++) {
        uint16_t *v = &c.sample[VQKVC_VALUE][0][i];
        *v = vqkvc_f32_to_f16(vqkvc_f16_to_f32(*v) * (i % WIDE < DIM ? 2 : 0.5F));
    }
    vqkvc_arena arena = {0};
    vqkvc_metrics metrics;
    OK(vqkvc_sample_metrics(&c, &arena, &metrics, &err));
    for (int i = 0; i < DIM * DIM; i++)
        metrics.v[1][i] *= 16;
    vqkvc_auto_params p = {.frame = VQKVC_FRAME_BLOCK, .tables_at = 16, .window = {4, 32, 64}};
    vqkvc_grouping w = {
        .layers = 1, .heads = HEADS, .own_heads = HEADS, .tables_at = 16, .universal = 1};
    OK(vqkvc_grouping_make(&w, &c, &p, &metrics, N_MAX, &err));
    double *curves[2]; /* of K and of V */
    unsigned char *picks[2];
    for (int i = 0; i < 2; i++) {
        curves[i] = need(N_MAX + 1, sizeof **curves);
        picks[i] = need(N_MAX + 1, 1);
    }
    int share[2] = {0};
    OK(vqkvc_grouping_own(&w, &c, &p, share, N_MAX, curves, NULL, picks, &err));
    vqkvc_plan plan = {.geometry = g};
    vqkvc_member members[HEADS] = {{VQKVC_PART_V, 0, 0}, {VQKVC_PART_V, 0, 1}};
    float *x = need((size_t)c.n_sample * WIDE, sizeof *x),
          *x_hat = need((size_t)c.n_sample * WIDE, sizeof *x);
    OK(vqkvc_sample_members(&c, members, HEADS, &(vqkvc_key_frame){.frame = VQKVC_FRAME_POST}, 1, x,
                            &err));
    vqkvc_stream_spec spec = {
        .name = "V", .members = members, .n_members = HEADS, .frame = {.frame = VQKVC_FRAME_POST}};
    int at = 2 * WIDE / 4; /* two bits a value */
    cr_assert_gt(picks[1][at], 0, "the search takes a basis for two bits over 16 tokens");
    OK(vqkvc_universal_stream(&plan, &spec, picks[1][at] - 1, c.n_sample, x, &err));
    OK(vqkvc_stream_reference(&plan, &plan.streams[0], c.n_sample, x, x_hat, NULL, &err));
    double error = 0;
    for (int t = 0; t < c.n_sample; t++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < DIM; i++)
                for (int j = 0; j < DIM; j++) {
                    size_t row = (size_t)t * WIDE + (size_t)(h * DIM);
                    error += metrics.v[h][i * DIM + j] * (double)(x[row + i] - x_hat[row + i]) *
                             (double)(x[row + j] - x_hat[row + j]) / c.n_sample;
                }
    double ratio = error / curves[1][at];
    cr_expect(ratio > 0.8 && ratio < 1.2, "%.3f of the prediction", ratio);
    vqkvc_plan_free(&plan);
    vqkvc_grouping_free(&w);
    vqkvc_arena_free(&arena);
    vqkvc_capture_free(&c);
    for (int i = 0; i < 2; i++) {
        free(curves[i]);
        free(picks[i]);
    }
    free(x);
    free(x_hat);
}

static int count_universal(const vqkvc_plan *plan)
{
    int n = 0;
    for (int i = 0; i < plan->n_streams; i++)
        n += plan->streams[i].transform == VQKVC_TRANSFORM_HADAMARD;
    return n;
}

static void make_counted(const vqkvc_capture *c, double bits, int tables_at, vqkvc_plan *plan)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = {""};
    vqkvc_auto_params p = {
        .bits = bits, .max_scan = -1, .frame = VQKVC_FRAME_BLOCK, .tables_at = tables_at};
    OK(vqkvc_plan_auto(plan, c, &p, NULL, &parent, &quiet_log, &err));
}

/* Bits a value with the tables spread over `tokens`, but for the exact window. */
static double counted_bits(const vqkvc_plan *plan, int tokens)
{
    vqkvc_cost cost;
    vqkvc_plan_cost(plan, tokens, &cost);
    return vqkvc_cost_stored(&cost) + cost.table_bits;
}

Test(universal, tables_over_few_tokens_are_not_worth_it)
{
    vqkvc_err err = {0};
    vqkvc_geometry g;
    vqkvc_capture c;
    vqkvc_capture_params params = {.n_tokens = 2048, .n_sample = 512, .seed = 1};
    vqkvc_matrix_init();
    OK(vqkvc_simulate_geometry("1x2x2x64", &g, &err));
    OK(vqkvc_capture_simulate(&g, &params, &quiet_log, &c, &err));
    for (int bits = 2; bits <= 4; bits++) {
        vqkvc_plan few, many;
        make_counted(&c, bits, 64, &few);
        make_counted(&c, bits, 1 << 24, &many);
        cr_expect_eq(count_universal(&few), few.n_streams, "%d bits over 64 tokens: %d of %d", bits,
                     count_universal(&few), few.n_streams);
        cr_expect_eq(count_universal(&many), 0, "%d bits over 2^24 tokens: %d", bits,
                     count_universal(&many));
        cr_expect_leq(counted_bits(&few, 64), bits);
        cr_expect_leq(counted_bits(&many, 1 << 24), bits);
        vqkvc_plan_free(&few);
        vqkvc_plan_free(&many);
    }
    vqkvc_capture_free(&c);
}
