/* Attention in the block formats that engines use: against attention in double on the values that
 * the blocks hold and the queries that 8 bits leave. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/rng.h"
#include "eval/attend_blocks.h"

enum { MOST_TOKENS = 200, WIDEST = 128, MOST_ROWS = 9 };

static void fill_normal(vqkvc_rng *rng, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)vqkvc_rng_normal(rng);
}

/* One query over n keys and values [n, d]. */
static void attend_plainly(const float *k, const float *v, int n, int d, const double *q,
                           double scale, double *out)
{
    double *p = malloc((size_t)n * sizeof *p), top = -INFINITY, sum = 0;
    for (int t = 0; t < n; t++) {
        p[t] = 0;
        for (int i = 0; i < d; i++)
            p[t] += scale * q[i] * (double)k[t * d + i];
        top = fmax(top, p[t]);
    }
    for (int t = 0; t < n; t++)
        sum += p[t] = exp(p[t] - top);
    for (int i = 0; i < d; i++) {
        out[i] = 0;
        for (int t = 0; t < n; t++)
            out[i] += p[t] / sum * (double)v[t * d + i];
    }
    free(p);
}

/* Rows of n vectors x [n, d] in a format; x becomes what they hold. */
static uint8_t *pack(vqkvc_blocks format, float *x, int n, int d)
{
    size_t row = vqkvc_blocks_row(format, d);
    uint8_t *rows = malloc((size_t)n * row);
    for (int t = 0; t < n; t++) {
        vqkvc_blocks_pack(format, x + t * d, d, rows + (size_t)t * row);
        vqkvc_blocks_unpack(format, rows + (size_t)t * row, d, x + t * d);
    }
    return rows;
}

static void check(vqkvc_blocks format, int d, int n, int group, vqkvc_isa isa)
{
    static float k[MOST_TOKENS * WIDEST], v[MOST_TOKENS * WIDEST];
    float q[MOST_ROWS * WIDEST], out[MOST_ROWS * WIDEST];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(3, (uint64_t)(d * 1000 + n));
    fill_normal(&rng, k, (size_t)(n * d));
    fill_normal(&rng, v, (size_t)(n * d));
    fill_normal(&rng, q, (size_t)(group * d));
    uint8_t *keys = pack(format, k, n, d), *values = pack(format, v, n, d);
    float *scratch = vqkvc_alloc(vqkvc_attend_blocks_scratch(group, d), sizeof *scratch, &err);
    cr_assert_not_null(scratch);
    vqkvc_attend_blocks(format, keys, values, n, group, d, q, out, 0.2f, isa, scratch);
    for (int r = 0; r < group; r++) {
        double rounded[WIDEST], want[WIDEST];
        float most = 0;
        for (int i = 0; i < d; i++)
            most = fmaxf(most, fabsf(q[r * d + i]));
        for (int i = 0; i < d; i++)
            rounded[i] = (double)(most / 127) * (double)roundf(q[r * d + i] * (1 / (most / 127)));
        attend_plainly(k, v, n, d, rounded, 0.2, want);
        for (int i = 0; i < d; i++)
            cr_assert_float_eq((double)out[r * d + i], want[i], 2e-5,
                               "format %d, isa %d, d %d, n %d, group %d, row %d: %g, not %g",
                               (int)format, (int)isa, d, n, group, r, (double)out[r * d + i],
                               want[i]);
    }
    free(keys);
    free(values);
    free(scratch);
}

Test(yardsticks, blocks_attend_as_double_does_on_the_same_values)
{
    static const int dims[] = {32, 64, 96, 128}, lengths[] = {1, 63, 64, 65, 200};
    static const int groups[] = {1, 3, 4, 9};
    static const vqkvc_isa isas[] = {VQKVC_ISA_PORTABLE, VQKVC_ISA_AVX2, VQKVC_ISA_AUTO};
    for (int format = 0; format < 6; format++)
        for (int c = 0; c < 4 * 5 * 4; c++)
            check((vqkvc_blocks)(format % 2), dims[c % 4], lengths[c / 4 % 5], groups[c / 20],
                  isas[format / 2]);
}

Test(yardsticks, blocks_hold_values_to_half_a_step)
{
    float x[64], y[64];
    uint8_t row[128];
    vqkvc_rng rng = vqkvc_rng_make(1, 1);
    fill_normal(&rng, x, 32);
    for (int i = 0; i < 32; i++) /* a block of zeros */
        x[32 + i] = 0;
    cr_assert_eq(vqkvc_blocks_row(VQKVC_BLOCKS_Q8_0, 64), 68);
    cr_assert_eq(vqkvc_blocks_row(VQKVC_BLOCKS_Q4_0, 64), 36);
    float most = 0;
    for (int i = 0; i < 32; i++)
        most = fmaxf(most, fabsf(x[i]));
    vqkvc_blocks_pack(VQKVC_BLOCKS_Q8_0, x, 64, row);
    vqkvc_blocks_unpack(VQKVC_BLOCKS_Q8_0, row, 64, y);
    for (int i = 0; i < 64; i++) /* half a step, and binary16's rounding of the scale */
        cr_assert_float_eq(y[i], x[i], i < 32 ? most / 127 * 0.5f + most / 2048 : 0);
    vqkvc_blocks_pack(VQKVC_BLOCKS_Q4_0, x, 64, row);
    vqkvc_blocks_unpack(VQKVC_BLOCKS_Q4_0, row, 64, y);
    for (int i = 0; i < 64; i++) /* the largest of the other sign loses a whole step */
        cr_assert_float_eq(y[i], x[i], i < 32 ? most / 8 * 1.01f : 0);
}
