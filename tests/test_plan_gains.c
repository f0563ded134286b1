/* Ranges, shifts, outliers and beams of one stream, recomputed plainly. */
#include "base/matrix.h"
#include "plan_toy.h"

enum { D = 16, N = 21 }; /* a last token group that is short */

static void fill(float *x, int n, uint64_t stream)
{
    vqkvc_rng rng = vqkvc_rng_make(23, stream);
    for (int i = 0; i < n; i++)
        x[i] = (float)(vqkvc_rng_normal(&rng) + 0.5 * (i % 3));
}

static double half(double x)
{
    return vqkvc_f16_to_f32(vqkvc_f32_to_f16((float)x));
}

static double value(const vqkvc_plan *plan, int table, int row, int col)
{
    const vqkvc_table *t = &plan->tables[table];
    return vqkvc_f16_to_f32(t->f16[row * t->cols + col]);
}

/* One layer, one head of 16: V in one stream, the first, without a transform; its book is table 0.
 */
static vqkvc_stream *make_stream(vqkvc_plan *plan, vqkvc_run run, int book_rows)
{
    *plan = (vqkvc_plan){.scheme = "one", .block = 16};
    plan->geometry = toy_geometry(1, 1, D);
    int book = add_table(plan, book_rows, run.width << run.bits, "book");
    random_table(plan, book, 1, 9);
    run.book = run.coder == VQKVC_CODER_VQ ? book : -1;
    add_joined_stream(plan, VQKVC_PART_V, 0, run);
    add_joined_stream(
        plan, VQKVC_PART_K, 0,
        (vqkvc_run){.coder = VQKVC_CODER_F16, .width = 1, .bits = 16, .stages = 1, .book = -1});
    return &plan->streams[0];
}

static void apply(const vqkvc_plan *plan, const float *x, float *x_hat, int32_t *codes)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_stream_reference(plan, &plan->streams[0], N, x, x_hat, codes, &err),
                 VQKVC_OK, "%s", err.msg);
}

/* The nearest of 2^bits codewords of `width` channels to t, by exhaustive search. */
static int plain_nearest(const vqkvc_plan *plan, int row, int width, int bits, const double *t)
{
    int best = 0;
    double least = INFINITY;
    for (int code = 0; code < 1 << bits; code++) {
        double sum = 0;
        for (int c = 0; c < width; c++)
            sum += pow(t[c] - value(plan, 0, row, (c << bits) + code), 2);
        if (sum < least) {
            least = sum;
            best = code;
        }
    }
    return best;
}

/* ---- ranges ---- */

/* Smallest and largest of gain_tokens tokens' gain_width channels around (t, c). */
static void plain_range(const float *x, int t, int c, int tokens, int width, float *low,
                        float *high)
{
    *low = INFINITY;
    *high = -INFINITY;
    for (int i = t / tokens * tokens; i < N && i < (t / tokens + 1) * tokens; i++)
        for (int j = c / width * width; j < (c / width + 1) * width; j++) {
            *low = fminf(*low, x[i * D + j]);
            *high = fmaxf(*high, x[i * D + j]);
        }
}

/* Channels by themselves over 8 tokens, as KIVI keys; 8 channels of one token, as its values. */
Test(plan_gains, range_codes_levels_between_the_extremes)
{
    static const int widths[] = {1, 8, 4}, tokens[] = {8, 1, 4};
    float x[N * D], x_hat[N * D];
    int32_t codes[N * D];
    fill(x, N * D, 1);
    for (int c = 0; c < 8; c++)
        x[c] = 1.25f; /* the first value group has no width */
    for (int i = 0; i < 3; i++)
        for (int bits = 1; bits <= 4; bits++) {
            vqkvc_plan plan;
            vqkvc_err err = {0};
            vqkvc_run run = {.coder = VQKVC_CODER_UNI, .width = 1, .bits = bits, .stages = 1};
            vqkvc_stream *s = make_stream(&plan, run, 1);
            s->gain = VQKVC_GAIN_RANGE;
            s->gain_bits = 16;
            s->gain_width = widths[i];
            s->gain_tokens = tokens[i];
            run = s->runs[0];
            vqkvc_run *runs = vqkvc_plan_set_runs(&plan, s, D / widths[i], &err);
            for (int r = 0; r < D / widths[i]; r++) {
                runs[r] = run;
                runs[r].first = r * widths[i];
                runs[r].groups = widths[i];
            }
            cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
            apply(&plan, x, x_hat, codes);
            for (int t = 0; t < N; t++)
                for (int c = 0; c < D; c++) {
                    float low, high;
                    plain_range(x, t, c, tokens[i], widths[i], &low, &high);
                    int levels = (1 << bits) - 1, at = t * D + c;
                    double offset = half(low), step = half((high - low) / (float)levels);
                    double code = step == 0 ? 0 : round((x[at] - offset) / step);
                    code = fmin(fmax(code, 0), levels);
                    cr_assert_eq(codes[at], (int)code, "token %d channel %d: %d, not %g", t, c,
                                 codes[at], code);
                    cr_assert_float_eq(x_hat[at], offset + step * code, 1e-6);
                    /* Half a step, and what binary16 takes from offset and step. */
                    double slack = (fabs(offset) + step * levels) * 0x1p-10;
                    cr_assert_leq(fabs(x_hat[at] - x[at]), step / 2 + slack);
                }
            vqkvc_plan_free(&plan);
        }
}

Test(plan_gains, range_of_vq_runs_is_centred)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    float x[N * D], x_hat[N * D];
    int32_t codes[N * D / 2];
    vqkvc_stream *s = make_stream(
        &plan, (vqkvc_run){.coder = VQKVC_CODER_VQ, .width = 2, .bits = 4, .stages = 1}, 1);
    s->gain = VQKVC_GAIN_RANGE;
    s->gain_bits = 16;
    s->gain_width = D;
    s->gain_tokens = 2;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    fill(x, N * D, 2);
    apply(&plan, x, x_hat, codes);
    for (int t = 0; t < N; t++) {
        float low, high;
        plain_range(x, t, 0, 2, D, &low, &high);
        double offset = half((low + high) / 2), scale = half((high - low) / 2);
        for (int g = 0; g < D / 2; g++) {
            const float *from = x + t * D + 2 * g;
            double at[2] = {(from[0] - offset) / scale, (from[1] - offset) / scale};
            int code = plain_nearest(&plan, 0, 2, 4, at);
            cr_assert_eq(codes[t * D / 2 + g], code, "token %d group %d", t, g);
            for (int c = 0; c < 2; c++)
                cr_assert_float_eq(x_hat[t * D + 2 * g + c],
                                   offset + scale * value(&plan, 0, 0, c * 16 + code), 1e-5);
        }
    }
    vqkvc_plan_free(&plan);
}

/* ---- normalise, shift, normalise ---- */

Test(plan_gains, nsn_normalises_shifts_and_normalises)
{
    enum { TOKENS = 8 };
    vqkvc_plan plan;
    vqkvc_err err = {0};
    float x[N * D], x_hat[N * D];
    int32_t codes[N * D];
    vqkvc_stream *s = make_stream(
        &plan, (vqkvc_run){.coder = VQKVC_CODER_VQ, .width = 1, .bits = 4, .stages = 1}, 1);
    s->gain = VQKVC_GAIN_NSN;
    s->gain_bits = 16;
    s->gain_width = D;
    s->gain_tokens = TOKENS;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    fill(x, N * D, 3);
    memset(x + 3 * D, 0, D * sizeof *x); /* a token of zeros: s1 is 0 */
    apply(&plan, x, x_hat, codes);
    for (int first = 0; first < N; first += TOKENS) {
        int n = N - first < TOKENS ? N - first : TOKENS;
        double s1[TOKENS], u[TOKENS][D], shift[D] = {0};
        for (int t = 0; t < n; t++) {
            double sum = 0;
            for (int c = 0; c < D; c++)
                sum += pow(x[(first + t) * D + c], 2) / D;
            s1[t] = half(sqrt(sum));
            for (int c = 0; c < D; c++) {
                u[t][c] = s1[t] == 0 ? 0 : x[(first + t) * D + c] / s1[t];
                shift[c] += u[t][c] / n;
            }
        }
        for (int t = 0; t < n; t++) {
            double sum = 0;
            for (int c = 0; c < D; c++)
                sum += pow(u[t][c] - half(shift[c]), 2) / D;
            double s2 = half(sqrt(sum));
            for (int c = 0; c < D; c++) {
                double v = (u[t][c] - half(shift[c])) / s2;
                int code = plain_nearest(&plan, 0, 1, 4, &v), at = (first + t) * D + c;
                cr_assert_eq(codes[at], code, "token %d channel %d", first + t, c);
                cr_assert_float_eq(x_hat[at],
                                   s1[t] * (half(shift[c]) + s2 * value(&plan, 0, 0, code)), 1e-5);
            }
        }
    }
    vqkvc_plan_free(&plan);
}

/* Without shift and second gain, one token is all there is to its shift. */
Test(plan_gains, nsn_of_one_token_is_its_shift_to_binary16)
{
    vqkvc_plan plan;
    float x[N * D], x_hat[N * D];
    vqkvc_stream *s = make_stream(
        &plan, (vqkvc_run){.coder = VQKVC_CODER_VQ, .width = 1, .bits = 4, .stages = 1}, 1);
    s->gain = VQKVC_GAIN_NSN;
    s->gain_bits = 16;
    s->gain_width = D;
    s->gain_tokens = 1;
    fill(x, N * D, 4);
    apply(&plan, x, x_hat, NULL);
    for (int i = 0; i < N * D; i++)
        cr_assert_float_eq(x_hat[i], x[i], 0.01, "%g, not %g", (double)x_hat[i], (double)x[i]);
    vqkvc_plan_free(&plan);
}

/* ---- outliers ---- */

/* Marks the n largest |x - centre| * inverse of one token, one at a time. */
static void plain_outliers(const double *score, int n, int *out)
{
    memset(out, 0, D * sizeof *out);
    for (int i = 0; i < n; i++) {
        int best = -1;
        for (int c = 0; c < D; c++)
            if (!out[c] && (best < 0 || score[c] > score[best]))
                best = c;
        out[best] = 1;
    }
}

/* The largest are kept to binary16; the others are coded as if the largest were not there. */
Test(plan_gains, outliers_are_exact_and_leave_the_gain_to_the_others)
{
    enum { BITS = 3, OUTLIERS = 3 };
    for (int with_spread = 0; with_spread < 2; with_spread++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        float x[N * D], x_hat[N * D];
        int32_t codes[N * D];
        vqkvc_stream *s = make_stream(
            &plan, (vqkvc_run){.coder = VQKVC_CODER_UNI, .width = 1, .bits = BITS, .stages = 1}, 1);
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 16;
        s->gain_width = D;
        s->outliers = OUTLIERS;
        if (with_spread) {
            s->spread = add_table(&plan, 2, D, "spread");
            random_table(&plan, s->spread, 0.5, 12);
            for (int c = 0; c < D; c++) /* inverses are positive */
                plan.tables[s->spread].f16[D + c] &= 0x7fff;
        }
        cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
        fill(x, N * D, 5);
        for (int c = 0; c < D; c++)
            x[c] = 2; /* ties: the lower indices */
        apply(&plan, x, x_hat, codes);
        for (int t = 0; t < N; t++) {
            double mean = 0, square = 0, centre[D], score[D];
            int out[D];
            for (int c = 0; c < D; c++)
                mean += x[t * D + c] / (double)D;
            for (int c = 0; c < D; c++) {
                centre[c] = with_spread ? value(&plan, s->spread, 0, c) : mean;
                score[c] = fabs(x[t * D + c] - centre[c]) *
                           (with_spread ? value(&plan, s->spread, 1, c) : 1);
            }
            plain_outliers(score, OUTLIERS, out);
            for (int c = 0; c < D; c++)
                square += out[c] ? 0 : pow(x[t * D + c], 2) / (D - OUTLIERS);
            double gain = half(sqrt(square));
            for (int c = 0; c < D; c++) {
                int at = t * D + c, zero = 1 << (BITS - 1);
                double code = round((out[c] ? centre[c] : x[at]) / gain) + zero;
                code = fmin(fmax(code, 0), 2 * zero - 1);
                cr_assert_eq(codes[at], (int)code, "token %d channel %d", t, c);
                cr_assert_float_eq(x_hat[at], out[c] ? half(x[at]) : gain * (code - zero), 1e-6,
                                   "token %d channel %d: %g from %g", t, c, (double)x_hat[at],
                                   (double)x[at]);
            }
        }
        vqkvc_plan_free(&plan);
    }
}

Test(plan_gains, every_latent_may_be_an_outlier)
{
    static const vqkvc_gain gains[] = {VQKVC_GAIN_NONE, VQKVC_GAIN_RMS, VQKVC_GAIN_RANGE,
                                       VQKVC_GAIN_NSN};
    for (int i = 0; i < 4; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        float x[N * D], x_hat[N * D];
        vqkvc_stream *s = make_stream(
            &plan, (vqkvc_run){.coder = VQKVC_CODER_VQ, .width = 1, .bits = 2, .stages = 1}, 1);
        s->gain = gains[i];
        s->gain_bits = 16;
        s->gain_width = D;
        s->outliers = D;
        cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
        fill(x, N * D, 6);
        x[7] = 1e30f; /* above binary16 */
        apply(&plan, x, x_hat, NULL);
        for (int c = 0; c < N * D; c++)
            cr_assert_eq(x_hat[c], c == 7 ? 65504 : half(x[c]), "gain %d value %d", i, c);
        vqkvc_plan_free(&plan);
    }
}

/* A spike in a channel spoils the range of its token group; an outlier takes it away. */
Test(plan_gains, an_outlier_restores_the_range)
{
    double error[2] = {0};
    for (int outliers = 0; outliers < 2; outliers++) {
        vqkvc_plan plan;
        float x[N * D], x_hat[N * D];
        vqkvc_stream *s = make_stream(
            &plan, (vqkvc_run){.coder = VQKVC_CODER_UNI, .width = 1, .bits = 4, .stages = 1}, 1);
        s->gain = VQKVC_GAIN_RANGE;
        s->gain_bits = 16;
        s->gain_width = D;
        s->gain_tokens = 8;
        s->outliers = outliers;
        fill(x, N * D, 7);
        for (int t = 0; t < N; t++)
            x[t * D + t % D] = 50;
        apply(&plan, x, x_hat, NULL);
        for (int i = 0; i < N * D; i++)
            error[outliers] += pow(x[i] - x_hat[i], 2);
        vqkvc_plan_free(&plan);
    }
    cr_assert_lt(error[1], 0.02 * error[0], "%g with, %g without", error[1], error[0]);
}

/* ---- beams ---- */

static double beam_error(int width, int bits, int stages, int beam, int32_t *codes)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    float x[N * D], x_hat[N * D];
    double error = 0;
    make_stream(
        &plan,
        (vqkvc_run){
            .coder = VQKVC_CODER_VQ, .width = width, .bits = bits, .stages = stages, .beam = beam},
        stages);
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    fill(x, N * D, 8);
    apply(&plan, x, x_hat, codes);
    for (int i = 0; i < N * D; i++)
        error += pow(x[i] - x_hat[i], 2);
    vqkvc_plan_free(&plan);
    return error;
}

/* With as many candidates as codewords, two stages are searched exhaustively. */
Test(plan_gains, a_full_beam_over_two_stages_finds_the_best_sum)
{
    enum { WIDTH = 4, BITS = 4, CODES = 1 << BITS, GROUPS = D / WIDTH };
    vqkvc_plan plan;
    float x[N * D], x_hat[N * D];
    int32_t codes[N * GROUPS * 2];
    make_stream(
        &plan,
        (vqkvc_run){
            .coder = VQKVC_CODER_VQ, .width = WIDTH, .bits = BITS, .stages = 2, .beam = CODES},
        2);
    fill(x, N * D, 8);
    apply(&plan, x, x_hat, codes);
    for (int i = 0; i < N * GROUPS; i++) {
        double least = INFINITY, got = 0;
        for (int pair = 0; pair < CODES * CODES; pair++) {
            double sum = 0;
            for (int c = 0; c < WIDTH; c++)
                sum += pow(x[i * WIDTH + c] - value(&plan, 0, 0, c * CODES + pair / CODES) -
                               value(&plan, 0, 1, c * CODES + pair % CODES),
                           2);
            least = fmin(least, sum);
        }
        for (int c = 0; c < WIDTH; c++) {
            double word = value(&plan, 0, 0, c * CODES + codes[2 * i]) +
                          value(&plan, 0, 1, c * CODES + codes[2 * i + 1]);
            got += pow(x[i * WIDTH + c] - word, 2);
            cr_assert_float_eq(x_hat[i * WIDTH + c], word, 1e-5);
        }
        cr_assert_float_eq(got, least, 1e-9, "group %d", i);
    }
    vqkvc_plan_free(&plan);
}

/* Three stages, a beam of 3, candidate by candidate. */
Test(plan_gains, a_beam_keeps_the_best_of_every_stage)
{
    enum { WIDTH = 2, BITS = 3, CODES = 1 << BITS, STAGES = 3, BEAM = 3, GROUPS = D / WIDTH };
    typedef struct path {
        double left[WIDTH], distance;
        int32_t codes[STAGES];
    } path;
    vqkvc_plan plan;
    float x[N * D], x_hat[N * D];
    int32_t codes[N * GROUPS * STAGES];
    make_stream(
        &plan,
        (vqkvc_run){
            .coder = VQKVC_CODER_VQ, .width = WIDTH, .bits = BITS, .stages = STAGES, .beam = BEAM},
        STAGES);
    fill(x, N * D, 8);
    apply(&plan, x, x_hat, codes);
    for (int i = 0; i < N * GROUPS; i++) {
        path kept[BEAM] = {{.left = {x[2 * i], x[2 * i + 1]}}}, all[BEAM * CODES];
        int n = 1;
        for (int stage = 0; stage < STAGES; stage++) {
            for (int j = 0; j < n * CODES; j++) {
                all[j] = kept[j / CODES];
                all[j].codes[stage] = j % CODES;
                all[j].distance = 0;
                for (int c = 0; c < WIDTH; c++) {
                    all[j].left[c] -= value(&plan, 0, stage, c * CODES + j % CODES);
                    all[j].distance += all[j].left[c] * all[j].left[c];
                }
            }
            int total = n * CODES;
            for (n = 0; n < BEAM; n++) {
                int best = 0;
                for (int j = 1; j < total; j++)
                    if (all[j].distance < all[best].distance)
                        best = j;
                kept[n] = all[best];
                all[best].distance = INFINITY;
            }
        }
        cr_assert_eq(memcmp(codes + i * STAGES, kept[0].codes, sizeof kept[0].codes), 0, "group %d",
                     i);
    }
    vqkvc_plan_free(&plan);
}

Test(plan_gains, a_wider_beam_does_not_err_more)
{
    int32_t codes[2][N * D * 6];
    double before = INFINITY;
    for (int beam = 1; beam <= 16; beam *= 2) {
        double error = beam_error(4, 3, 6, beam, NULL);
        cr_expect_leq(error, before, "beam %d: %g after %g", beam, error, before);
        before = error;
    }
    cr_assert_lt(before, 0.9 * beam_error(4, 3, 6, 1, codes[0]));
    beam_error(4, 3, 6, 0, codes[1]);
    cr_assert_eq(memcmp(codes[0], codes[1], N * (D / 4) * 6 * sizeof **codes), 0,
                 "0 and 1 are the greedy search");
}

/* ---- many samples ---- */

/* All of it through the path that fitting takes: several turns, a basis, token groups. */
Test(plan_gains, apply_agrees_with_the_reference)
{
    enum { MANY = 2500 };
    static const vqkvc_gain gains[] = {VQKVC_GAIN_RMS, VQKVC_GAIN_RANGE, VQKVC_GAIN_NSN};
    float *x = need(MANY * D, sizeof *x), *a = need(MANY * D, sizeof *a);
    float *b = need(MANY * D, sizeof *b);
    vqkvc_matrix_init();
    fill(x, MANY * D, 10);
    for (int i = 0; i < 3; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        vqkvc_stream *s = make_stream(
            &plan,
            (vqkvc_run){.coder = VQKVC_CODER_VQ, .width = 2, .bits = 3, .stages = 2, .beam = 2}, 2);
        s->gain = gains[i];
        s->gain_bits = 16;
        s->gain_width = D;
        s->gain_tokens = gains[i] == VQKVC_GAIN_RMS ? 1 : 16;
        s->outliers = 1;
        s->transform = VQKVC_TRANSFORM_BASIS;
        s->enc = add_table(&plan, D, D, "enc");
        s->dec = add_table(&plan, D, D, "dec");
        orthonormal_tables(&plan, D, s->enc, s->dec);
        cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
        cr_assert_eq(vqkvc_stream_reference(&plan, s, MANY, x, a, NULL, &err), VQKVC_OK);
        cr_assert_eq(vqkvc_stream_apply(&plan, s, MANY, x, b, NULL, &err), VQKVC_OK);
        double differ = 0, error = 0;
        for (int j = 0; j < MANY * D; j++) {
            differ += pow(a[j] - b[j], 2) / (MANY * D);
            error += pow(a[j] - x[j], 2) / (MANY * D);
        }
        cr_expect_lt(differ, 1e-4, "gain %d: %g", i, differ);
        cr_expect(error > 1e-3 && error < 0.8, "gain %d: %g", i, error);
        vqkvc_plan_free(&plan);
    }
    free(x);
    free(a);
    free(b);
}
