/* Schemes whose codes lie between the ends of a range, KIVI and SVDq, against their definitions
 * recomputed plainly in double. */
#include "plan/svdq.h"
#include "scheme_fixture.h"

/* ---- KIVI ---- */

/* Asymmetric uniform codes of m numbers at distance `step`, with binary16 ends. */
static void plain_kivi(double *x, int m, int step, int bits)
{
    double low = INFINITY, high = -INFINITY, top = (1 << bits) - 1;
    for (int i = 0; i < m; i++) {
        low = fmin(low, x[i * step]);
        high = fmax(high, x[i * step]);
    }
    double zero = half_of(low), scale = half_of((high - low) / top);
    for (int i = 0; i < m; i++) {
        double code = scale > 0 ? round((x[i * step] - zero) / scale) : 0;
        x[i * step] = zero + scale * fmin(fmax(code, 0), top);
    }
}

Test(schemes_range, kivi_has_ranges_of_channels_for_keys_and_of_tokens_for_values)
{
    static const int bits[] = {2, 4};
    vqkvc_geometry g = toy_geometry(2, 2, 64);
    for (int b = 0; b < 2; b++) {
        vqkvc_plan plan;
        make_preset(&plan, &g, b == 0 ? "kivi2" : "kivi4");
        passed p = pass_through(&plan, plan.block, 192);
        double x[64 * 64], made[64 * 64];
        cr_assert_eq(plan.block, 64);
        for (int part = 0; part < 2; part++)
            for (int layer = 0; layer < 2; layer++)
                for (int head = 0; head < 2; head++) {
                    gather_layer(&g, &p, p.in[part], layer, head, 1, 0, x);
                    gather_layer(&g, &p, p.out[part], layer, head, 1, 0, made);
                    for (int i = 0; i < 2 * 64; i++)
                        if (part == VQKVC_PART_K) /* channel i % 64, half of the tokens */
                            plain_kivi(x + i / 64 * 32 * 64 + i % 64, 32, 64, bits[b]);
                        else /* token i / 2, half of its channels */
                            plain_kivi(x + i * 32, 32, 1, bits[b]);
                    cr_expect_eq(count_far(x, made, 64 * 64, 1e-5), 0);
                }
        passed_free(&p);
        vqkvc_plan_free(&plan);
    }
}

Test(schemes_range, kivis_bits_are_its_codes_and_two_halves_for_32_values)
{
    vqkvc_geometry g = toy_geometry(3, 2, 128);
    vqkvc_plan plan;
    make_preset(&plan, &g, "kivi2");
    expect_bits(&plan, 2, 32.0 / 32);
    cr_expect_eq(plan.n_sink, 0);
    cr_expect_eq(plan.n_recent, 128);
    cr_expect(vqkvc_plan_rebuilds(&plan, VQKVC_PART_K, 0));
    vqkvc_plan_free(&plan);
    make_preset(&plan, &g, "kivi4");
    expect_bits(&plan, 4, 1);
    vqkvc_plan_free(&plan);
    vqkvc_err err = {0};
    vqkvc_window window = {.block = 16};
    cr_expect_eq(vqkvc_plan_preset(&plan, &g, "kivi2", &window, &err), VQKVC_E_USAGE);
    cr_expect_not_null(strstr(err.msg, "blocks of 16"), "%s", err.msg);
}

/* ---- SVDq ---- */

enum { LAYERS = 2, HEADS = 2, DIM = 16, D = HEADS * DIM, SAMPLED = 1024 };

static void make_svdq(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_svdq_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_text("capture");
    cr_assert_eq(vqkvc_plan_svdq(plan, c, p, NULL, &parent, &silent_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

/* Uniform levels of 32 tokens of one latent: the centres of 2^bits equal parts of the range. */
static void plain_centres(double *z, int step, int bits)
{
    double low = INFINITY, high = -INFINITY, n = 1 << bits;
    for (int i = 0; i < 32; i++) {
        low = fmin(low, z[i * step]);
        high = fmax(high, z[i * step]);
    }
    double middle = half_of((low + high) / 2), half = half_of((high - low) / 2);
    for (int i = 0; i < 32; i++) {
        double part = floor(((z[i * step] - middle) / half + 1) / 2 * n);
        z[i * step] = middle + half * ((2 * fmin(fmax(part, 0), n - 1) + 1) / n - 1);
    }
}

Test(schemes_range, svdq_codes_latents_of_unrotated_keys_by_its_schedule)
{
    static const int schedule[] = {4, 2, 2, 1, 1, 0, 0, 0};
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_svdq_params params = {0};
    double x[64 * D], z[64 * D], made[64 * D];
    make_sampled(&c, LAYERS, HEADS, DIM, SAMPLED);
    make_svdq(&plan, &c, &params);
    cr_assert_str_eq(plan.scheme, "svdq");
    passed p = pass_through(&plan, 64, 640);
    for (int layer = 0; layer < LAYERS; layer++) {
        const vqkvc_stream *s = &plan.streams[layer];
        cr_assert(s->members[0].part == VQKVC_PART_K && s->frame == VQKVC_FRAME_PRE);
        cr_assert_eq(s->n_latents, 5 * D / 8);
        gather_layer(&plan.geometry, &p, p.in[0], layer, 0, HEADS, 1, x);
        gather_layer(&plan.geometry, &p, p.out[0], layer, 0, HEADS, 1, made);
        for (int t = 0; t < 64; t++)
            for (int j = 0; j < s->n_latents; j++) {
                z[t * D + j] = 0;
                for (int i = 0; i < D; i++)
                    z[t * D + j] += half_at(&plan, s->enc, i, j) *
                                    (x[t * D + i] - half_at(&plan, s->mean, 0, i));
            }
        for (int j = 0; j < s->n_latents; j++)
            for (int first = 0; first < 64; first += 32)
                plain_centres(z + first * D + j, D, schedule[j / (D / 8)]);
        for (int t = 0; t < 64; t++)
            for (int i = 0; i < D; i++) {
                x[t * D + i] = half_at(&plan, s->mean, 0, i);
                for (int j = 0; j < s->n_latents; j++)
                    x[t * D + i] += half_at(&plan, s->dec, i, j) * z[t * D + j];
            }
        cr_expect_eq(count_far(x, made, 64 * D, 1e-4), 0);
        gather_layer(&plan.geometry, &p, p.in[1], layer, 0, HEADS, 0, x);
        gather_layer(&plan.geometry, &p, p.out[1], layer, 0, HEADS, 0, made);
        for (int i = 0; i < 64 * D; i++)
            cr_assert_eq(made[i], half_of(x[i]), "values are exact");
    }
    expect_bits(&plan, (1.25 + 16) / 2, (5.0 / 8 * 32 / 32) / 2);
    passed_free(&p);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}

/* With every latent kept, the basis is orthonormal and its latents are uncorrelated, by falling
 * variance: that is what singular vectors are. */
Test(schemes_range, svdqs_basis_is_that_of_singular_vectors)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_svdq_params params = {.schedule = "8,8,8,8,8,8,8,8"};
    vqkvc_err err = {0};
    vqkvc_member members[HEADS] = {{VQKVC_PART_K, 0, 0}, {VQKVC_PART_K, 0, 1}};
    make_sampled(&c, 1, HEADS, DIM, SAMPLED);
    make_svdq(&plan, &c, &params);
    const vqkvc_stream *s = &plan.streams[0];
    double *z = need((size_t)SAMPLED * D, sizeof *z), var[D];
    float x[HEADS * DIM];
    cr_assert_eq(s->n_members, HEADS);
    cr_assert_eq(memcmp(s->members, members, sizeof members), 0);
    for (int i = 0; i < SAMPLED; i++) {
        vqkvc_capture_read(&c, VQKVC_KEY, 0, i, 1, x);
        for (int j = 0; j < D; j++)
            for (int k = 0; k < D; k++)
                z[i * D + j] +=
                    half_at(&plan, s->enc, k, j) * ((double)x[k] - half_at(&plan, s->mean, 0, k));
    }
    for (int a = 0; a < D; a++)
        for (int b = 0; b <= a; b++) {
            double dot = 0, moment = 0;
            for (int k = 0; k < D; k++)
                dot += half_at(&plan, s->enc, k, a) * half_at(&plan, s->enc, k, b);
            for (int i = 0; i < SAMPLED; i++)
                moment += z[i * D + a] * z[i * D + b] / SAMPLED;
            cr_expect_float_eq(dot, a == b, 2e-3);
            if (a == b)
                var[a] = moment;
            else
                cr_expect_lt(fabs(moment), 2e-3 * var[0], "latents %d and %d", a, b);
        }
    for (int a = 1; a < D; a++)
        cr_expect_leq(var[a], var[a - 1] * 1.001);
    cr_expect_eq(err.code, VQKVC_OK);
    free(z);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}

/* The paper's theory: equal bits in all groups gain nothing over uniform channels; unequal ones do
 * where variances fall. */
Test(schemes_range, svdqs_gain_is_all_in_the_schedule)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_svdq_claim equal[1], unequal[1];
    vqkvc_svdq_params params = {.schedule = "2,2,2,2,2,2,2,2", .claims = equal};
    make_sampled(&c, 1, HEADS, DIM, SAMPLED);
    make_svdq(&plan, &c, &params);
    cr_expect_str_eq(plan.scheme, "svdq2");
    vqkvc_plan_free(&plan);
    params = (vqkvc_svdq_params){
        .schedule = "6,4,3,2,1,0,0,0", .values = "higgs2", .group = 16, .claims = unequal};
    make_svdq(&plan, &c, &params);
    cr_expect_str_eq(plan.scheme, "svdq2-higgs2");
    cr_expect_eq(plan.streams[0].gain_tokens, 16);
    vqkvc_plan_free(&plan);
    cr_expect_eq(equal[0].bits, 2);
    cr_expect_float_eq(equal[0].error / equal[0].per_channel, 1, 0.15);
    cr_expect_eq(unequal[0].bits, 2);
    cr_expect_lt(unequal[0].error, 0.2 * unequal[0].per_channel);
    vqkvc_capture_free(&c);
}

Test(schemes_range, svdq_takes_its_values_from_another_scheme)
{
    vqkvc_capture c;
    vqkvc_plan plan, other;
    vqkvc_svdq_params params = {.values = "higgs3"};
    make_sampled(&c, LAYERS, HEADS, DIM, SAMPLED);
    make_svdq(&plan, &c, &params);
    make_preset(&other, &plan.geometry, "higgs3");
    passed a = pass_through(&plan, 64, 64), b = pass_through(&other, 64, 64);
    cr_expect_eq(memcmp(a.out[1], b.out[1], a.values * sizeof(float)), 0);
    expect_bits(&plan, (1.25 + 3) / 2, (0.625 + 16.0 / D) / 2);
    passed_free(&a);
    passed_free(&b);
    vqkvc_plan_free(&plan);
    vqkvc_plan_free(&other);
    vqkvc_capture_free(&c);
}

Test(schemes_range, svdq_refuses_schedules_and_groups_that_mean_nothing)
{
    static const char *const schedules[] = {"",
                                            "4,2,2,1,1,0,0",
                                            "4,2,2,1,1,0,0,0,0",
                                            "9,2,2,1,1,0,0,0",
                                            "4,2,2,1,1,0,0,0,",
                                            "4,2,2,1,1,0,0,x",
                                            "42211000",
                                            "-1,2,2,1,1,0,0,0",
                                            "0,0,0,0,0,0,0,0"};
    uint8_t bits[VQKVC_SVDQ_GROUPS];
    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_svdq_schedule(schedules[i], bits, &err), VQKVC_E_USAGE, "'%s'",
                     schedules[i]);
    }
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_hash parent = vqkvc_hash_text("capture");
    make_sampled(&c, 1, 1, 16, 256);
    vqkvc_err err = {0};
    vqkvc_svdq_params odd_group = {.group = 24};
    cr_expect_eq(vqkvc_plan_svdq(&plan, &c, &odd_group, NULL, &parent, &silent_log, &err),
                 VQKVC_E_USAGE);
    err = (vqkvc_err){0};
    vqkvc_svdq_params no_values = {.values = "q9"};
    cr_expect_eq(vqkvc_plan_svdq(&plan, &c, &no_values, NULL, &parent, &silent_log, &err),
                 VQKVC_E_USAGE);
    cr_expect_eq(plan.n_streams, 0);
    vqkvc_capture_free(&c);
}
