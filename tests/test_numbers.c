/* test_numbers.c - properties of base/half.h and base/rng.h, against plain definitions. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/half.h"
#include "base/rng.h"

/* ---- half ------------------------------------------------------------------------------------ */

/* The value of a finite or infinite binary16, from the definition of the format. */
static double half_value(unsigned h)
{
    int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
    double sign = h & 0x8000u ? -1 : 1;
    if (exponent == 31)
        return sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, -24);
    return sign * ldexp(1024 + mantissa, exponent - 25);
}

/* x rounded to 11 significant bits, ties to even, in double where every step is exact. */
static double nearest_half(double x)
{
    if (fabs(x) >= 65520)
        return copysign(INFINITY, x);
    int exponent = x == 0 || ilogb(x) < -14 ? -14 : ilogb(x);
    return copysign(ldexp(nearbyint(ldexp(x, 10 - exponent)), exponent - 10), x);
}

static void check_rounding(float x)
{
    uint16_t h = vqkvc_f32_to_f16(x);
    cr_assert_eq(half_value(h), nearest_half((double)x), "%a became 0x%04x", (double)x, h);
    cr_assert_eq(h >> 15, signbit(x) != 0, "the sign of %a is lost", (double)x);
#if defined(__FLT16_MANT_DIG__) && !defined(__clang__)
    __extension__ _Float16 own = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &own, sizeof bits);
    cr_assert_eq(h, bits, "%a: 0x%04x, the compiler says 0x%04x", (double)x, h, bits);
#endif
}

Test(half, all_values_round_trip)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        float x = vqkvc_f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            cr_assert(isnan(x));
            cr_assert_gt(vqkvc_f32_to_f16(x) & 0x7fff, 0x7c00);
            continue;
        }
        cr_assert_eq((double)x, half_value(h), "0x%04x reads as %a", h, (double)x);
        cr_assert_eq(vqkvc_f32_to_f16(x), h);
    }
}

/* Every tie between neighbours and the floats on both sides of it, subnormals and the border to
 * infinity included. */
Test(half, rounding_is_exact_at_every_boundary)
{
    for (unsigned h = 0; h < 0x7c00; h++) {
        double above = h == 0x7bff ? 65536 : half_value(h + 1);
        float middle = (float)((half_value(h) + above) / 2);
        for (int negative = 0; negative < 2; negative++) {
            float x = negative ? -middle : middle;
            check_rounding(x);
            check_rounding(nextafterf(x, INFINITY));
            check_rounding(nextafterf(x, -INFINITY));
        }
    }
}

Test(half, rounding_is_exact_on_random_bits)
{
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    check_rounding(0.0f);
    check_rounding(-0.0f);
    check_rounding(INFINITY);
    check_rounding(-INFINITY);
    for (int i = 0; i < 300000; i++) {
        float x = vqkvc_bits_to_f32((uint32_t)vqkvc_rng_u64(&rng));
        if (!isnan(x))
            check_rounding(x);
    }
}

Test(half, bf16_is_the_upper_half_of_a_float)
{
    for (unsigned h = 0; h < 0x10000; h++)
        cr_assert_eq(vqkvc_f32_to_bits(vqkvc_bf16_to_f32((uint16_t)h)), h << 16);
}

/* ---- rng ------------------------------------------------------------------------------------- */

static uint64_t splitmix_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z ^= z >> 30;
    z *= 0xbf58476d1ce4e5b9u;
    z ^= z >> 27;
    z *= 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

Test(rng, splitmix_here_is_the_published_one)
{
    uint64_t state = 1234567;
    cr_assert_eq(splitmix_next(&state), 6457827717110365317u);
    cr_assert_eq(splitmix_next(&state), 3203168211198807973u);
    cr_assert_eq(splitmix_next(&state), 9817491932198370423u);
}

Test(rng, xoshiro_gives_the_published_outputs)
{
    static const uint64_t expected[] = {11520,
                                        0,
                                        1509978240,
                                        1215971899390074240u,
                                        1216172134540287360u,
                                        607988272756665600u,
                                        16172922978634559625u,
                                        8476171486693032832u,
                                        10595114339597558777u,
                                        2904607092377533576u};
    vqkvc_rng rng = {{1, 2, 3, 4}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        cr_assert_eq(vqkvc_rng_u64(&rng), expected[i], "output %zu", i);
}

Test(rng, seeding_is_splitmix_over_seed_and_stream)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        vqkvc_rng rng = vqkvc_rng_make(seed, seed * seed);
        uint64_t state = seed;
        state = splitmix_next(&state) ^ (seed * seed * 0xd1342543de82ef95u);
        for (int i = 0; i < 4; i++)
            cr_assert_eq(rng.s[i], splitmix_next(&state));
    }
}

Test(rng, seeds_and_streams_differ)
{
    vqkvc_rng a = vqkvc_rng_make(1, 0), b = vqkvc_rng_make(1, 1), c = vqkvc_rng_make(2, 0);
    for (int i = 0; i < 1000; i++) {
        uint64_t x = vqkvc_rng_u64(&a), y = vqkvc_rng_u64(&b), z = vqkvc_rng_u64(&c);
        cr_assert(x != y && y != z && x != z);
    }
}

/* Chi-squared with 99 degrees of freedom stays below 160 but once in 10^4; the seed is fixed. */
Test(rng, below_is_uniform)
{
    enum { CELLS = 100, DRAWS = 200000 };
    int counts[CELLS] = {0};
    vqkvc_rng rng = vqkvc_rng_make(11, 0);
    for (int i = 0; i < DRAWS; i++)
        counts[vqkvc_rng_below(&rng, CELLS)]++;
    double chi2 = 0, mean = (double)DRAWS / CELLS;
    for (int i = 0; i < CELLS; i++)
        chi2 += (counts[i] - mean) * (counts[i] - mean) / mean;
    cr_assert_lt(chi2, 160);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(vqkvc_rng_below(&rng, 1), 0);
}

/* 64 random bits modulo 3 * 2^62 would fall into the lowest third half of the time. */
Test(rng, below_has_no_modulo_bias)
{
    enum { DRAWS = 100000 };
    vqkvc_rng rng = vqkvc_rng_make(12, 0);
    uint64_t third = (uint64_t)1 << 62;
    int low = 0;
    for (int i = 0; i < DRAWS; i++) {
        uint64_t x = vqkvc_rng_below(&rng, 3 * third);
        cr_assert_lt(x, 3 * third);
        low += x < third;
    }
    /* 6 standard deviations */
    cr_assert_float_eq((double)low / DRAWS, 1.0 / 3, 6 * sqrt(2.0 / 9 / DRAWS));
}

Test(rng, uniform_and_normal_have_their_moments)
{
    enum { DRAWS = 200000 };
    vqkvc_rng rng = vqkvc_rng_make(13, 0);
    double u1 = 0, u2 = 0, n1 = 0, n2 = 0, n4 = 0;
    for (int i = 0; i < DRAWS; i++) {
        double u = vqkvc_rng_uniform(&rng), z = vqkvc_rng_normal(&rng);
        cr_assert(u >= 0 && u < 1);
        u1 += u / DRAWS;
        u2 += u * u / DRAWS;
        n1 += z / DRAWS;
        n2 += z * z / DRAWS;
        n4 += z * z * z * z / DRAWS;
    }
    cr_assert_float_eq(u1, 1.0 / 2, 0.004);
    cr_assert_float_eq(u2, 1.0 / 3, 0.004);
    cr_assert_float_eq(n1, 0, 0.014);
    cr_assert_float_eq(n2, 1, 0.02);
    cr_assert_float_eq(n4, 3, 0.14);
}
