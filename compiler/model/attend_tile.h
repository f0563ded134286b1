/* attend_tile.h - what the yardsticks of speed share: tiles, their softmax, instruction sets.
 * Inlined into a caller for one instruction set, so that it is compiled for that one. */
#ifndef VQKVC_MODEL_ATTEND_TILE_H
#define VQKVC_MODEL_ATTEND_TILE_H

#include <string.h>

#include "base/half.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_X86 1
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* Tokens of a tile: its keys and the scores of a group lie in the first-level cache. LANES partial
 * sums let compilers vectorise without reordering anything. */
enum { TILE = 64, LANES = 16 };

/* Unrolled, so that arrays of vectors stay in registers. */
#define FOUR(i) _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)

/* exp(x) for x <= 0 to 2 ulp, cut at -87: x = n ln 2 + r, Taylor to the 6th power of r. */
INLINE float exp_of(float x)
{
    const float round = 0x1.8p23f; /* leaves the nearest integer in the low bits of a sum */
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + round, n = shifted - round;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * vqkvc_bits_to_f32((vqkvc_f32_to_bits(shifted) << 23) + 0x3f800000u);
}

/* One query's scores s [n] of a tile become weights, and s is filled up to TILE with next to
 * nothing so that loops have one length; the sums so far shrink where the maximum rises. */
INLINE void soften(float *s, int n, int d, float *m, float *l, float *o)
{
    float lane[LANES], sum[LANES] = {0}, max;
    for (int t = n; t < TILE; t++)
        s[t] = -1e30f;
    memcpy(lane, s, sizeof lane);
    for (int t = LANES; t < TILE; t += LANES)
        for (int i = 0; i < LANES; i++)
            lane[i] = s[t + i] > lane[i] ? s[t + i] : lane[i];
    max = lane[0];
    for (int i = 1; i < LANES; i++)
        max = lane[i] > max ? lane[i] : max;
    if (max > *m) {
        float shrink = exp_of(*m - max);
        for (int i = 0; i < d; i++)
            o[i] *= shrink;
        *l *= shrink;
        *m = max;
    }
    max = *m;
    for (int t = 0; t < TILE; t += LANES)
        for (int i = 0; i < LANES; i++) {
            s[t + i] = exp_of(s[t + i] - max);
            sum[i] += s[t + i];
        }
    for (int i = 0; i < LANES; i++)
        *l += sum[i];
}

#ifdef HAVE_X86

#define AVX2   __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma,f16c")))

/* The four sums over the lanes of a, b, c and e. */
AVX2 static inline __m128 add_lanes(__m256 a, __m256 b, __m256 c, __m256 e)
{
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, e));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* F16C, which clang cannot ask for, is older than AVX2: every processor with the second has it. */
static inline int vqkvc_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int vqkvc_has_avx512(void)
{
    return vqkvc_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

#endif
