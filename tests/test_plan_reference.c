/* The reference arithmetic of plans. */
#include "base/matrix.h"
#include "plan_toy.h"

static void fill_normal(float *x, size_t n, uint64_t stream)
{
    vqkvc_rng rng = vqkvc_rng_make(7, stream);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)vqkvc_rng_normal(&rng);
}

/* One token's worth of every value. */
static size_t values_of(const vqkvc_geometry *g)
{
    return (size_t)g->n_layers * g->n_kv_heads * g->head_dim;
}

static double mean_square(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - (b == NULL ? 0 : b[i])) * ((double)a[i] - (b == NULL ? 0 : b[i]));
    return sum / (double)n;
}

/* K and V of n tokens through the first n_streams streams. */
typedef struct trial {
    int n;
    size_t values; /* n tokens */
    float *k, *v, *k_hat, *v_hat;
} trial;

static trial trial_new(const vqkvc_plan *plan, int n)
{
    trial t = {.n = n, .values = (size_t)n * values_of(&plan->geometry)};
    t.k = need(t.values, sizeof(float));
    t.v = need(t.values, sizeof(float));
    t.k_hat = need(t.values, sizeof(float));
    t.v_hat = need(t.values, sizeof(float));
    fill_normal(t.k, t.values, 1);
    fill_normal(t.v, t.values, 2);
    return t;
}

static void trial_run(trial *t, const vqkvc_plan *plan, int n_streams, int64_t base)
{
    vqkvc_err err = {0};
    vqkvc_plan_reference(plan, n_streams, t->n, base, t->k, t->v, t->k_hat, t->v_hat, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
}

static void trial_free(trial *t)
{
    free(t->k);
    free(t->v);
    free(t->k_hat);
    free(t->v_hat);
}

Test(plan_reference, f16_is_exact_to_binary16)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(2, 2, 64);
    make_preset(&plan, &g, "f16");
    trial t = trial_new(&plan, 5);
    trial_run(&t, &plan, plan.n_streams, 1000);
    for (size_t i = 0; i < t.values; i++) {
        cr_assert_eq(t.k_hat[i], vqkvc_f16_to_f32(vqkvc_f32_to_f16(t.k[i])));
        cr_assert_eq(t.v_hat[i], vqkvc_f16_to_f32(vqkvc_f32_to_f16(t.v[i])));
    }
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

/* llama.cpp's quantize_row_q8_0 and back, written from its description (ggml-quants.c). */
static void plain_q8_0(const float *x, float *y)
{
    float amax = 0;
    for (int i = 0; i < 32; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    float d = amax / 127, id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++)
        y[i] = roundf(x[i] * id) * vqkvc_f16_to_f32(vqkvc_f32_to_f16(d));
}

/* quantize_row_q4_0 and back: the value of largest magnitude becomes -8. */
static void plain_q4_0(const float *x, float *y)
{
    float amax = 0, max = 0;
    for (int i = 0; i < 32; i++)
        if (amax < fabsf(x[i])) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    float d = max / -8, id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++) {
        int q = (int)(x[i] * id + 8.5f);
        y[i] = (float)((q > 15 ? 15 : q) - 8) * vqkvc_f16_to_f32(vqkvc_f32_to_f16(d));
    }
}

static void compare_with_plain(const char *scheme, void (*plain)(const float *x, float *y))
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 2, 64);
    make_preset(&plan, &g, scheme);
    trial t = trial_new(&plan, 64);
    memset(t.k, 0, 32 * sizeof *t.k); /* a group of zeros */
    for (int i = 32; i < 64; i++)
        t.k[i] = (float)(i % 9) - 4; /* ties in magnitude and in rounding */
    trial_run(&t, &plan, plan.n_streams, 0);
    for (size_t i = 0; i < t.values; i += 32) {
        float k[32], v[32];
        plain(t.k + i, k);
        plain(t.v + i, v);
        for (int c = 0; c < 32; c++) {
            cr_assert_eq(t.k_hat[i + c], k[c], "%s K %zu + %d", scheme, i, c);
            cr_assert_eq(t.v_hat[i + c], v[c], "%s V %zu + %d", scheme, i, c);
        }
    }
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan_reference, q8_0_is_that_of_llama_cpp)
{
    compare_with_plain("q8_0", plain_q8_0);
}

Test(plan_reference, q4_0_is_that_of_llama_cpp)
{
    compare_with_plain("q4_0", plain_q4_0);
}

/* The best 16-point grid in the plane has a distortion of 0.1068 or so for Gaussian vectors. */
Test(plan_reference, higgs_distortion_on_gaussian_data)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 2, 128);
    make_preset(&plan, &g, "higgs2");
    trial t = trial_new(&plan, 256);
    trial_run(&t, &plan, plan.n_streams, 64);
    double k = mean_square(t.k, t.k_hat, t.values) / mean_square(t.k, NULL, t.values);
    double v = mean_square(t.v, t.v_hat, t.values) / mean_square(t.v, NULL, t.values);
    cr_log_info("higgs2: relative error %.4f of K, %.4f of V", k, v);
    cr_assert(k > 0.100 && k < 0.115, "K: %g", k);
    cr_assert(v > 0.100 && v < 0.115, "V: %g", v);
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan_reference, hadamard_is_the_orthonormal_sylvester_matrix)
{
    enum { D = 16 };
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(1, 1, D);
    make_preset(&plan, &g, "f16");
    plan.streams[0].transform = VQKVC_TRANSFORM_HADAMARD;
    for (int i = 0; i < D; i++) {
        float x[D] = {0}, x_hat[D];
        int32_t codes[D];
        x[i] = 4; /* its latents are +-1 */
        vqkvc_stream_reference(&plan, &plan.streams[0], 1, x, x_hat, codes, &err);
        for (int j = 0; j < D; j++) {
            int minus = __builtin_popcount((unsigned)(i & j)) & 1;
            cr_assert_eq(codes[j], minus ? 0xbc00 : 0x3c00, "row %d, column %d", i, j);
            cr_assert_eq(x_hat[j], x[j]);
        }
    }
    vqkvc_plan_free(&plan);
}

/* Rotating into a frame and back is the identity up to rounding, whatever is coded there. */
Test(plan_reference, frames_agree_for_exact_codes)
{
    static const vqkvc_frame frames[] = {VQKVC_FRAME_PRE, VQKVC_FRAME_POST, VQKVC_FRAME_BLOCK};
    static const vqkvc_rope_layout layouts[] = {VQKVC_ROPE_NONE, VQKVC_ROPE_INTERLEAVED,
                                                VQKVC_ROPE_HALVES};
    for (int i = 0; i < 9; i++) {
        vqkvc_plan plan;
        vqkvc_geometry g = toy_geometry(2, 2, 32);
        g.rope_layout = layouts[i / 3];
        g.n_rot = 16;
        make_preset(&plan, &g, "f16");
        for (int s = 0; s < plan.n_streams; s++)
            if (plan.streams[s].members[0].part == VQKVC_PART_K)
                plan.streams[s].frame = frames[i % 3];
        trial t = trial_new(&plan, 16);
        trial_run(&t, &plan, plan.n_streams, 4096);
        for (size_t c = 0; c < t.values; c++)
            cr_assert_float_eq(t.k_hat[c], t.k[c], 4e-3, "layout %d, frame %d: %g, not %g", i / 3,
                               i % 3, (double)t.k_hat[c], (double)t.k[c]);
        trial_free(&t);
        vqkvc_plan_free(&plan);
    }
}

/* In frame PRE a key that was rotated by its position costs and decodes like the un-rotated one;
 * in frame BLOCK a block decodes alike wherever it starts, up to the rotation of its base. */
Test(plan_reference, frames_take_the_rotation_out)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 1, 32);
    make_preset(&plan, &g, "q4_0");
    trial at0 = trial_new(&plan, 16), moved = trial_new(&plan, 16);
    const int64_t base = 640;
    for (int frame = VQKVC_FRAME_PRE; frame <= VQKVC_FRAME_BLOCK; frame += 2) {
        plan.streams[0].frame = (vqkvc_frame)frame;
        memcpy(moved.k, at0.k, at0.values * sizeof *at0.k);
        for (int t = 0; t < 16; t++)
            vqkvc_rope_rotate(&g, (double)base, moved.k + t * 32, 1);
        trial_run(&at0, &plan, plan.n_streams, 0);
        trial_run(&moved, &plan, plan.n_streams, base);
        for (int t = 0; t < 16; t++)
            vqkvc_rope_rotate(&g, -(double)base, moved.k_hat + t * 32, 1);
        int differ = 0; /* codes flip where two are equally near */
        for (size_t c = 0; c < at0.values; c++)
            differ += fabsf(moved.k_hat[c] - at0.k_hat[c]) > 1e-4f;
        cr_assert_leq(differ, 2, "frame %d", frame);
    }
    trial_free(&at0);
    trial_free(&moved);
    vqkvc_plan_free(&plan);
}

/* The toy's codes once more, by hand: dense products, exhaustive search. */
Test(plan_reference, basis_gain_and_residual_stages_follow_the_definition)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    const vqkvc_stream *s = &plan.streams[0];
    const vqkvc_table *mean = &plan.tables[s->mean], *enc = &plan.tables[s->enc];
    float x[3 * 32], x_hat[3 * 32];
    int32_t codes[3 * 28];
    fill_normal(x, 3 * 32, 5);
    memset(x + 32, 0, 32 * sizeof *x);
    for (int i = 0; i < 32; i++) /* token 1 is the mean: latents and gain are 0 */
        x[32 + i] = vqkvc_f16_to_f32(mean->f16[i]);
    cr_assert_eq(vqkvc_stream_codes(s), 28);
    cr_assert_eq(vqkvc_stream_reference(&plan, s, 3, x, x_hat, codes, &err), VQKVC_OK);
    for (int t = 0; t < 3; t++) {
        double z[32] = {0}, rms = 0;
        for (int j = 0; j < 32; j++) {
            for (int i = 0; i < 32; i++)
                z[j] += ((double)x[t * 32 + i] - vqkvc_f16_to_f32(mean->f16[i])) *
                        vqkvc_f16_to_f32(enc->f16[i * 32 + j]);
            rms += z[j] * z[j] / 32;
        }
        double step = round((log2(sqrt(rms)) + 6) / 0.0625);
        double gain = rms == 0 ? exp2(-6) : exp2(-6 + 0.0625 * step);
        for (int group = 0; group < 8; group++) {
            double left = z[group] / gain;
            for (int stage = 0; stage < 2; stage++) {
                const uint16_t *row = plan.tables[s->runs[0].book].f16 + (group * 2 + stage) * 16;
                int best = 0;
                for (int c = 1; c < 16; c++)
                    if (fabs(left - vqkvc_f16_to_f32(row[c])) <
                        fabs(left - vqkvc_f16_to_f32(row[best])))
                        best = c;
                left -= vqkvc_f16_to_f32(row[best]);
                cr_assert_eq(codes[t * 28 + group * 2 + stage], best, "token %d group %d stage %d",
                             t, group, stage);
            }
        }
    }
    cr_assert_lt(mean_square(x, x_hat, 32), 0.5 * mean_square(x, NULL, 32));
    vqkvc_plan_free(&plan);
}

Test(plan_reference, gains_below_binary16_are_zero_and_those_above_finite)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    float x[16], x_hat[16];
    int32_t codes[24];
    for (int i = 0; i < 16; i++)
        x[i] = i < 8 ? 1e-9f : 1e30f; /* below and above binary16 */
    vqkvc_stream_reference(&plan, &plan.streams[1], 1, x, x_hat, codes, &err);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(x_hat[i], 0, "channel %d", i);
    cr_assert_eq(codes[0], 4, "the level of 0 among 8");
    for (int i = 8; i < 16; i++)
        cr_assert(isfinite(x_hat[i]), "channel %d: %g", i, (double)x_hat[i]);
    vqkvc_plan_free(&plan);
}

/* Streams in coding order each take off what they code: more streams, less error; none, zero. */
Test(plan_reference, later_streams_code_what_is_left)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    trial t = trial_new(&plan, 64);
    trial_run(&t, &plan, 0, 64);
    cr_assert_eq(mean_square(t.k_hat, NULL, t.values), 0);
    trial_run(&t, &plan, 1, 64);
    double shared = mean_square(t.k, t.k_hat, t.values);
    cr_assert_eq(mean_square(t.v_hat, NULL, t.values), 0, "V comes later");
    trial_run(&t, &plan, plan.n_streams, 64);
    double all = mean_square(t.k, t.k_hat, t.values);
    cr_assert_lt(all, 0.6 * shared, "%g after %g", all, shared);
    cr_assert_neq(
        vqkvc_plan_reference(&plan, plan.n_streams + 1, t.n, 0, t.k, t.v, t.k_hat, t.v_hat, &err),
        VQKVC_OK);
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan_reference, apply_agrees_with_the_reference)
{
    enum { N = 2500 }; /* several turns */
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_matrix_init();
    make_toy(&plan);
    const vqkvc_stream *s = &plan.streams[0];
    float *x = need(N * 32, sizeof *x), *a = need(N * 32, sizeof *a), *b = need(N * 32, sizeof *b);
    int32_t *ca = need(N * 28, sizeof *ca), *cb = need(N * 28, sizeof *cb);
    fill_normal(x, N * 32, 9);
    cr_assert_eq(vqkvc_stream_reference(&plan, s, N, x, a, ca, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_stream_apply(&plan, s, N, x, b, cb, &err), VQKVC_OK);
    int differ = 0;
    for (int i = 0; i < N * 28; i++)
        differ += ca[i] != cb[i];
    cr_assert_leq(differ, 5, "%d codes of %d differ", differ, N * 28);
    cr_assert_lt(mean_square(a, b, N * 32), 1e-4);
    cr_assert_eq(vqkvc_stream_apply(&plan, s, N, x, x, NULL, &err), VQKVC_OK);
    cr_assert_eq(memcmp(x, b, N * 32 * sizeof *x), 0, "in place");
    free(x);
    free(a);
    free(b);
    free(ca);
    free(cb);
    vqkvc_plan_free(&plan);
}
