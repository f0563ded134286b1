/* Schemes whose codes are levels or codewords, KVQuant, TurboQuant and NSNQuant, against their
 * definitions recomputed plainly in double. */
#include "plan/kvquant.h"
#include "scheme_fixture.h"

/* ---- KVQuant ---- */

enum { LAYERS = 2, HEADS = 2, DIM = 16, D = HEADS * DIM, SAMPLED = 1024, TOKENS = 64 };

static void make_kvquant(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_kvquant_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_text("capture");
    cr_assert_eq(vqkvc_plan_kvquant(plan, c, p, NULL, &parent, &silent_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

/* Marks the n values of a token that are farthest from their centre, in units of `unit`. */
static void plain_outliers(const double *x, const double *centre, const double *inverse, int n,
                           int *is_outlier)
{
    memset(is_outlier, 0, D * sizeof *is_outlier);
    for (; n > 0; n--) {
        int best = -1;
        for (int c = 0; c < D; c++)
            if (!is_outlier[c] && (best < 0 || fabs(x[c] - centre[c]) * inverse[c] >
                                                   fabs(x[best] - centre[best]) * inverse[best]))
                best = c;
        is_outlier[best] = 1;
    }
}

/* One token of K: the nearest of its channel's levels. */
static void plain_key(const vqkvc_plan *plan, const vqkvc_stream *s, double *x)
{
    double centre[D], inverse[D];
    int is_outlier[D] = {0};
    for (int c = 0; c < D && s->outliers > 0; c++) {
        centre[c] = half_at(plan, s->spread, 0, c);
        inverse[c] = half_at(plan, s->spread, 1, c);
    }
    if (s->outliers > 0)
        plain_outliers(x, centre, inverse, s->outliers, is_outlier);
    for (int c = 0; c < D; c++)
        x[c] = is_outlier[c] ? half_of(x[c]) : nearest_level(plan, s->runs[0].book, c, x[c]);
}

/* One token of V: the nearest of its layer's levels, between the smallest and the largest value. */
static void plain_value(const vqkvc_plan *plan, const vqkvc_stream *s, double *x)
{
    double centre[D] = {0}, inverse[D], low = INFINITY, high = -INFINITY;
    int is_outlier[D];
    for (int i = 0; i < D * D; i++)
        centre[i / D] += x[i % D] / D;
    for (int c = 0; c < D; c++)
        inverse[c] = 1;
    plain_outliers(x, centre, inverse, s->outliers, is_outlier);
    for (int c = 0; c < D; c++)
        if (!is_outlier[c]) {
            low = fmin(low, x[c]);
            high = fmax(high, x[c]);
        }
    double middle = half_of((low + high) / 2), half = half_of((high - low) / 2);
    for (int c = 0; c < D; c++)
        x[c] = is_outlier[c] ? half_of(x[c])
                             : middle + half * nearest_level(plan, s->runs[0].book, 0,
                                                             (x[c] - middle) / half);
}

static void expect_by_definition(const vqkvc_plan *plan)
{
    double x[TOKENS * D], made[TOKENS * D];
    passed p = pass_through(plan, TOKENS, 128);
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        int part = (int)s->members[0].part, layer = s->members[0].layer;
        gather_layer(&plan->geometry, &p, p.in[part], layer, 0, HEADS, part == VQKVC_PART_K, x);
        gather_layer(&plan->geometry, &p, p.out[part], layer, 0, HEADS, part == VQKVC_PART_K, made);
        for (int t = 0; t < TOKENS; t++)
            if (part == VQKVC_PART_K)
                plain_key(plan, s, x + t * D);
            else
                plain_value(plan, s, x + t * D);
        /* Rotating in float moves a value by 1e-6 or so, now and then over a boundary. */
        cr_expect_leq(count_far(x, made, TOKENS * D, 2e-3), 2, "%s %s", plan->scheme, s->name);
    }
    passed_free(&p);
}

Test(schemes_levels, kvquant_takes_levels_of_channels_and_of_layers, .timeout = 60)
{
    vqkvc_capture c;
    make_sampled(&c, LAYERS, HEADS, DIM, SAMPLED);
    for (int bits = 2; bits <= 4; bits++)
        for (int percent = 0; percent <= 5; percent += 5) {
            vqkvc_plan plan;
            vqkvc_kvquant_params params = {.bits = bits, .outliers = percent};
            make_kvquant(&plan, &c, &params);
            int kept = percent > 0 ? 2 : 0; /* 1.6 of 32 */
            cr_expect_eq(plan.streams[0].outliers, kept);
            expect_by_definition(&plan);
            expect_bits(&plan, bits, kept * 24.0 / D + 32.0 / D / 2);
            vqkvc_plan_free(&plan);
        }
    vqkvc_capture_free(&c);
}

Test(schemes_levels, kvquants_levels_are_ascending_and_find_what_a_channel_takes)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_kvquant_params params = {.bits = 2};
    make_sampled(&c, 1, HEADS, DIM, SAMPLED);
    for (int i = 0; i < SAMPLED; i++) /* channel 3 takes four values only, far apart */
        c.sample[VQKVC_KEY][0][i * D + 3] = vqkvc_f32_to_f16((float)((i % 4) * (i % 4) * 5));
    make_kvquant(&plan, &c, &params);
    const vqkvc_table *book = &plan.tables[plan.streams[0].runs[0].book];
    cr_assert(book->rows == D && book->cols == 4);
    for (int ch = 0; ch < D; ch++)
        for (int i = 1; i < 4; i++)
            cr_expect_geq(half_at(&plan, plan.streams[0].runs[0].book, ch, i),
                          half_at(&plan, plan.streams[0].runs[0].book, ch, i - 1));
    for (int i = 0; i < 4; i++) {
        double value = i * i * 5;
        cr_expect_float_eq(nearest_level(&plan, plan.streams[0].runs[0].book, 3, value), value,
                           1e-6);
    }
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}

/* What outliers are for: a few values far out no longer widen the range of their token. */
Test(schemes_levels, kvquants_outliers_keep_ranges_narrow)
{
    vqkvc_capture c;
    double error[2] = {0};
    make_sampled(&c, 1, HEADS, DIM, SAMPLED);
    for (int with = 0; with < 2; with++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        vqkvc_kvquant_params params = {.bits = 3, .outliers = with};
        float x[TOKENS * D], made[TOKENS * D];
        make_kvquant(&plan, &c, &params);
        cr_expect_str_eq(plan.scheme, with ? "kvquant3-1" : "kvquant3");
        fill_channels(TOKENS, D, 77, x);
        for (int t = 0; t < TOKENS; t++)
            x[t * D + t % D] = 60;
        vqkvc_stream_reference(&plan, &plan.streams[1], TOKENS, x, made, NULL, &err);
        cr_assert_eq(err.code, VQKVC_OK);
        for (int i = 0; i < TOKENS * D; i++)
            if (i / D % D != i % D)
                error[with] += pow((double)x[i] - (double)made[i], 2);
        vqkvc_plan_free(&plan);
    }
    cr_expect_lt(error[1], 0.05 * error[0]);
    vqkvc_capture_free(&c);
}

Test(schemes_levels, kvquant_stands_channels_that_are_constant_and_refuses_few_samples)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_text("capture");
    vqkvc_kvquant_params params = {.bits = 2, .outliers = 1};
    make_sampled(&c, 1, HEADS, DIM, SAMPLED);
    for (int i = 0; i < SAMPLED; i++)
        for (int ch = 0; ch < DIM; ch++) { /* one head is dead, in K and in V */
            c.sample[VQKVC_KEY][0][i * D + ch] = 0;
            c.sample[VQKVC_VALUE][0][i * D + ch] = 0;
        }
    make_kvquant(&plan, &c, &params);
    expect_bits(&plan, 2, 24.0 / D + 32.0 / D / 2);
    vqkvc_plan_free(&plan);
    c.n_sample = 255;
    cr_expect_eq(vqkvc_plan_kvquant(&plan, &c, &params, NULL, &parent, &silent_log, &err),
                 VQKVC_E_USAGE);
    cr_expect_not_null(strstr(err.msg, "255 sampled"), "%s", err.msg);
    c.n_sample = SAMPLED;
    vqkvc_capture_free(&c);
}

/* ---- TurboQuant ---- */

Test(schemes_levels, turbo_rotates_and_rounds_to_levels_of_a_normal_distribution)
{
    static const char *const names[] = {"turbo2", "turbo3", "turbo4"};
    static const double distortion[] = {0.1175, 0.0345, 0.0095};
    vqkvc_geometry g = toy_geometry(1, 2, 64);
    for (int b = 0; b < 3; b++) {
        vqkvc_plan plan;
        double x[64 * 64], made[64 * 64], error = 0, energy = 0;
        make_preset(&plan, &g, names[b]);
        passed p = pass_through(&plan, 64, 64);
        for (int i = 0; i < plan.n_streams; i++) {
            const vqkvc_stream *s = &plan.streams[i];
            int part = (int)s->members[0].part;
            gather_layer(&g, &p, p.in[part], 0, s->members[0].head, 1, 0, x);
            gather_layer(&g, &p, p.out[part], 0, s->members[0].head, 1, 0, made);
            for (int t = 0; t < 64; t++) {
                double z[64] = {0}, scale = 0, *token = x + t * 64;
                for (int j = 0; j < 64 * 64; j++)
                    z[j % 64] += half_at(&plan, s->enc, j / 64, j % 64) * token[j / 64];
                for (int j = 0; j < 64; j++)
                    scale += z[j] * z[j] / 64;
                scale = half_of(sqrt(scale));
                for (int j = 0; j < 64; j++) {
                    error += pow(token[j] - made[t * 64 + j], 2);
                    energy += token[j] * token[j];
                    token[j] = 0;
                }
                for (int j = 0; j < 64; j++) {
                    z[j] = scale * nearest_level(&plan, s->runs[0].book, 0, z[j] / scale);
                    for (int k = 0; k < 64; k++)
                        token[k] += half_at(&plan, s->dec, k, j) * z[j];
                }
            }
            cr_expect_eq(count_far(x, made, 64 * 64, 1e-4), 0, "%s", s->name);
        }
        cr_expect_float_eq(error / energy / distortion[b], 1, 0.06, "%s: %g", names[b],
                           error / energy);
        expect_bits(&plan, 2 + b, 16.0 / 64);
        passed_free(&p);
        vqkvc_plan_free(&plan);
    }
}

Test(schemes_levels, turbos_matrix_is_orthonormal_and_the_same_for_all)
{
    vqkvc_geometry g = toy_geometry(2, 2, 96); /* no power of two is needed */
    vqkvc_plan plan;
    make_preset(&plan, &g, "turbo2");
    cr_expect_eq(plan.n_tables, 2);
    for (int a = 0; a < 96; a++)
        for (int b = 0; b <= a; b++) {
            double dot = 0;
            for (int i = 0; i < 96; i++)
                dot += half_at(&plan, plan.streams[0].enc, i, a) *
                       half_at(&plan, plan.streams[0].enc, i, b);
            cr_expect_float_eq(dot, a == b, 1e-3);
        }
    for (int i = 0; i < plan.n_streams; i++)
        cr_expect(plan.streams[i].enc == plan.streams[0].enc &&
                  plan.streams[i].dec == plan.streams[0].enc);
    vqkvc_plan_free(&plan);
}

/* ---- NSNQuant ---- */

/* Normalise, shift, normalise, all before the transform as in the paper; then codewords of four
 * channels; then back. x [64, 64]: a block of one head. */
static void plain_nsn(const vqkvc_plan *plan, int book, double *x)
{
    double first[64], second, shift[64] = {0};
    const vqkvc_table *t = &plan->tables[book];
    int n = t->cols / 4;
    for (int i = 0; i < 64; i++) {
        double *token = x + i * 64, sum = 0;
        for (int c = 0; c < 64; c++)
            sum += token[c] * token[c] / 64;
        first[i] = sqrt(sum);
        for (int c = 0; c < 64; c++) {
            token[c] /= first[i];
            shift[c] += token[c] / 64;
        }
    }
    for (int i = 0; i < 64; i++) {
        double *token = x + i * 64, z[64] = {0}, sum = 0;
        for (int c = 0; c < 64; c++) {
            token[c] -= shift[c];
            sum += token[c] * token[c] / 64;
        }
        second = sqrt(sum);
        for (int j = 0; j < 64 * 64; j++)
            z[j / 64] += (__builtin_popcount((unsigned)(j / 64 & j % 64)) % 2 ? -1 : 1) *
                         token[j % 64] / second / 8;
        for (int q = 0; q < 64; q += 4) {
            double least = INFINITY;
            int best = 0;
            for (int k = 0; k < n; k++) {
                double far = 0;
                for (int c = 0; c < 4; c++)
                    far += pow(z[q + c] - half_at(plan, book, 0, c * n + k), 2);
                best = far < least ? k : best;
                least = fmin(far, least);
            }
            for (int c = 0; c < 4; c++)
                z[q + c] = half_at(plan, book, 0, c * n + best);
        }
        for (int c = 0; c < 64; c++) {
            double back = 0;
            for (int j = 0; j < 64; j++)
                back += (__builtin_popcount((unsigned)(c & j)) % 2 ? -1 : 1) * z[j] / 8;
            token[c] = first[i] * (shift[c] + second * back);
        }
    }
}

/* Gains and means are rounded in the plan and not here, and on the other side of the transform:
 * nearly all codes must agree all the same, and then values do to a thousandth or so. */
Test(schemes_levels, nsn_normalises_shifts_and_normalises)
{
    vqkvc_geometry g = toy_geometry(1, 1, 64);
    vqkvc_plan plan;
    double x[64 * 64], made[64 * 64];
    make_preset(&plan, &g, "nsn2");
    cr_assert_eq(plan.block, 64);
    passed p = pass_through(&plan, 64, 64);
    for (int part = 0; part < 2; part++) {
        gather_layer(&g, &p, p.in[part], 0, 0, 1, 0, x);
        gather_layer(&g, &p, p.out[part], 0, 0, 1, 0, made);
        plain_nsn(&plan, plan.streams[0].runs[0].book, x);
        cr_expect_leq(count_far(x, made, 64 * 64, 5e-3), 64 * 2, "%d far",
                      count_far(x, made, 64 * 64, 5e-3));
    }
    expect_bits(&plan, 2, 2 * 16.0 / 64 + 16.0 / 64);
    passed_free(&p);
    vqkvc_plan_free(&plan);
}

Test(schemes_levels, nsn_takes_off_what_tokens_have_in_common)
{
    vqkvc_geometry g = toy_geometry(1, 1, 64);
    vqkvc_plan plan;
    vqkvc_err err = {0};
    float x[64 * 64], made[64 * 64];
    make_preset(&plan, &g, "nsn2");
    fill_channels(1, 64, 3, x);
    for (int t = 1; t < 64; t++) /* one direction, any length */
        for (int c = 0; c < 64; c++)
            x[t * 64 + c] = x[c] * (float)(1 + t % 7);
    vqkvc_stream_reference(&plan, &plan.streams[1], 64, x, made, NULL, &err);
    cr_assert_eq(err.code, VQKVC_OK);
    for (int i = 0; i < 64 * 64; i++)
        cr_expect_float_eq((double)made[i], (double)x[i], 0.02);
    vqkvc_plan_free(&plan);
    vqkvc_geometry odd = toy_geometry(1, 1, 96);
    cr_expect_eq(vqkvc_plan_preset(&plan, &odd, "nsn2", NULL, &err), VQKVC_E_UNSUPPORTED);
}
