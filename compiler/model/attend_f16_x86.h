/* attend_f16_x86.h - the kernels of attend_f16_tile.h in AVX2 and AVX-512, where a compiler for x86
 * knows them (HAVE_X86). */
#ifndef VQKVC_MODEL_ATTEND_F16_X86_H
#define VQKVC_MODEL_ATTEND_F16_X86_H

#include "model/attend_f16_tile.h"

#ifdef HAVE_X86

/* ---- AVX2: d a multiple of 8 ---- */

AVX2 static inline __m256 load_half8(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Four tokens at a time; behind the last one, the last again: its scores fall outside n. */
AVX2 static void score_avx2(const uint16_t *k, int n, int d, const float *q0, const float *q1,
                            float *s0, float *s1)
{
    for (int t = 0; t < n; t += 4) {
        ask(k + (size_t)(t + TILE) * d, 4 * d);
        const uint16_t *k0 = k + (size_t)t * d, *k1 = t + 1 < n ? k0 + d : k0;
        const uint16_t *k2 = t + 2 < n ? k1 + d : k1, *k3 = t + 3 < n ? k2 + d : k2;
        __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0;
        __m256 b3 = a0;
        for (int i = 0; i < d; i += 8) {
            __m256 x = _mm256_loadu_ps(q0 + i), y = _mm256_loadu_ps(q1 + i), key;
            key = load_half8(k0 + i);
            a0 = _mm256_fmadd_ps(x, key, a0);
            b0 = _mm256_fmadd_ps(y, key, b0);
            key = load_half8(k1 + i);
            a1 = _mm256_fmadd_ps(x, key, a1);
            b1 = _mm256_fmadd_ps(y, key, b1);
            key = load_half8(k2 + i);
            a2 = _mm256_fmadd_ps(x, key, a2);
            b2 = _mm256_fmadd_ps(y, key, b2);
            key = load_half8(k3 + i);
            a3 = _mm256_fmadd_ps(x, key, a3);
            b3 = _mm256_fmadd_ps(y, key, b3);
        }
        _mm_storeu_ps(s0 + t, add_lanes(a0, a1, a2, a3));
        _mm_storeu_ps(s1 + t, add_lanes(b0, b1, b2, b3));
    }
}

/* 32 channels at a time in eight accumulators, then 8 at a time. */
AVX2 static void sum_avx2(const uint16_t *v, int n, int d, const float *p0, const float *p1,
                          float *o0, float *o1)
{
    int i = 0;
    for (; i + 32 <= d; i += 32) {
        __m256 a0 = _mm256_loadu_ps(o0 + i), a1 = _mm256_loadu_ps(o0 + i + 8);
        __m256 a2 = _mm256_loadu_ps(o0 + i + 16), a3 = _mm256_loadu_ps(o0 + i + 24);
        __m256 b0 = _mm256_loadu_ps(o1 + i), b1 = _mm256_loadu_ps(o1 + i + 8);
        __m256 b2 = _mm256_loadu_ps(o1 + i + 16), b3 = _mm256_loadu_ps(o1 + i + 24);
        for (int t = 0; t < n; t++) {
            const uint16_t *row = v + (size_t)t * d + i;
            ask(row + (size_t)TILE * d, 32);
            __m256 x = _mm256_broadcast_ss(p0 + t), y = _mm256_broadcast_ss(p1 + t), value;
            value = load_half8(row);
            a0 = _mm256_fmadd_ps(x, value, a0);
            b0 = _mm256_fmadd_ps(y, value, b0);
            value = load_half8(row + 8);
            a1 = _mm256_fmadd_ps(x, value, a1);
            b1 = _mm256_fmadd_ps(y, value, b1);
            value = load_half8(row + 16);
            a2 = _mm256_fmadd_ps(x, value, a2);
            b2 = _mm256_fmadd_ps(y, value, b2);
            value = load_half8(row + 24);
            a3 = _mm256_fmadd_ps(x, value, a3);
            b3 = _mm256_fmadd_ps(y, value, b3);
        }
        _mm256_storeu_ps(o0 + i, a0), _mm256_storeu_ps(o0 + i + 8, a1);
        _mm256_storeu_ps(o0 + i + 16, a2), _mm256_storeu_ps(o0 + i + 24, a3);
        _mm256_storeu_ps(o1 + i, b0), _mm256_storeu_ps(o1 + i + 8, b1);
        _mm256_storeu_ps(o1 + i + 16, b2), _mm256_storeu_ps(o1 + i + 24, b3);
    }
    for (; i < d; i += 8) {
        __m256 a = _mm256_loadu_ps(o0 + i), b = _mm256_loadu_ps(o1 + i);
        for (int t = 0; t < n; t++) {
            ask(v + (size_t)(t + TILE) * d + i, 8);
            __m256 value = load_half8(v + (size_t)t * d + i);
            a = _mm256_fmadd_ps(_mm256_broadcast_ss(p0 + t), value, a);
            b = _mm256_fmadd_ps(_mm256_broadcast_ss(p1 + t), value, b);
        }
        _mm256_storeu_ps(o0 + i, a), _mm256_storeu_ps(o1 + i, b);
    }
}

/* Two tokens at a time; behind the last one, the last again. */
AVX2 static void score4_avx2(const uint16_t *k, int n, int d, const float *q, float *s)
{
    for (int t = 0; t < n; t += 2) {
        ask(k + (size_t)(t + TILE) * d, 2 * d);
        const uint16_t *k0 = k + (size_t)t * d, *k1 = t + 1 < n ? k0 + d : k0;
        __m256 a[4], b[4];
        FOUR(r)
        a[r] = b[r] = _mm256_setzero_ps();
        for (int i = 0; i < d; i += 8) {
            __m256 x = load_half8(k0 + i), y = load_half8(k1 + i);
            FOUR(r)
            {
                __m256 query = _mm256_loadu_ps(q + (size_t)r * d + i);
                a[r] = _mm256_fmadd_ps(query, x, a[r]);
                b[r] = _mm256_fmadd_ps(query, y, b[r]);
            }
        }
        float first[4], second[4];
        _mm_storeu_ps(first, add_lanes(a[0], a[1], a[2], a[3]));
        _mm_storeu_ps(second, add_lanes(b[0], b[1], b[2], b[3]));
        FOUR(r)
        {
            s[r * TILE + t] = first[r];
            s[r * TILE + t + 1] = second[r];
        }
    }
}

/* 16 channels at a time in eight accumulators, then 8. */
AVX2 static void sum4_avx2(const uint16_t *v, int n, int d, const float *p, float *o)
{
    __m256 a[4], b[4];
    for (int i = 0; i < d; i += 16) {
        int two = i + 8 < d;
        FOUR(r)
        {
            a[r] = _mm256_loadu_ps(o + (size_t)r * d + i);
            b[r] = two ? _mm256_loadu_ps(o + (size_t)r * d + i + 8) : a[r];
        }
        for (int t = 0; t < n; t++) {
            const uint16_t *row = v + (size_t)t * d + i;
            ask(row + (size_t)TILE * d, 16);
            __m256 x = load_half8(row), y = two ? load_half8(row + 8) : x;
            FOUR(r)
            {
                __m256 weight = _mm256_broadcast_ss(p + r * TILE + t);
                a[r] = _mm256_fmadd_ps(weight, x, a[r]);
                b[r] = _mm256_fmadd_ps(weight, y, b[r]);
            }
        }
        FOUR(r)
        {
            _mm256_storeu_ps(o + (size_t)r * d + i, a[r]);
            if (two)
                _mm256_storeu_ps(o + (size_t)r * d + i + 8, b[r]);
        }
    }
}

AVX2 static void attend_avx2(const uint16_t *k, const uint16_t *v, int n_tokens, int group, int d,
                             const float *q, float *out, float scale, float *scratch)
{
    attend_with(score_avx2, sum_avx2, score4_avx2, sum4_avx2, k, v, n_tokens, group, d, q, out,
                scale, scratch);
}

/* ---- AVX-512: d a multiple of 16; the same shapes, twice as wide ---- */

AVX512 static inline __m512 load_half16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

AVX512 static inline __m256 fold(__m512 x)
{
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

AVX512 static void score_avx512(const uint16_t *k, int n, int d, const float *q0, const float *q1,
                                float *s0, float *s1)
{
    for (int t = 0; t < n; t += 4) {
        ask(k + (size_t)(t + TILE) * d, 4 * d);
        const uint16_t *k0 = k + (size_t)t * d, *k1 = t + 1 < n ? k0 + d : k0;
        const uint16_t *k2 = t + 2 < n ? k1 + d : k1, *k3 = t + 3 < n ? k2 + d : k2;
        __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0;
        __m512 b3 = a0;
        for (int i = 0; i < d; i += 16) {
            __m512 x = _mm512_loadu_ps(q0 + i), y = _mm512_loadu_ps(q1 + i), key;
            key = load_half16(k0 + i);
            a0 = _mm512_fmadd_ps(x, key, a0);
            b0 = _mm512_fmadd_ps(y, key, b0);
            key = load_half16(k1 + i);
            a1 = _mm512_fmadd_ps(x, key, a1);
            b1 = _mm512_fmadd_ps(y, key, b1);
            key = load_half16(k2 + i);
            a2 = _mm512_fmadd_ps(x, key, a2);
            b2 = _mm512_fmadd_ps(y, key, b2);
            key = load_half16(k3 + i);
            a3 = _mm512_fmadd_ps(x, key, a3);
            b3 = _mm512_fmadd_ps(y, key, b3);
        }
        _mm_storeu_ps(s0 + t, add_lanes(fold(a0), fold(a1), fold(a2), fold(a3)));
        _mm_storeu_ps(s1 + t, add_lanes(fold(b0), fold(b1), fold(b2), fold(b3)));
    }
}

AVX512 static void sum_avx512(const uint16_t *v, int n, int d, const float *p0, const float *p1,
                              float *o0, float *o1)
{
    int i = 0;
    for (; i + 64 <= d; i += 64) {
        __m512 a0 = _mm512_loadu_ps(o0 + i), a1 = _mm512_loadu_ps(o0 + i + 16);
        __m512 a2 = _mm512_loadu_ps(o0 + i + 32), a3 = _mm512_loadu_ps(o0 + i + 48);
        __m512 b0 = _mm512_loadu_ps(o1 + i), b1 = _mm512_loadu_ps(o1 + i + 16);
        __m512 b2 = _mm512_loadu_ps(o1 + i + 32), b3 = _mm512_loadu_ps(o1 + i + 48);
        for (int t = 0; t < n; t++) {
            const uint16_t *row = v + (size_t)t * d + i;
            ask(row + (size_t)TILE * d, 64);
            __m512 x = _mm512_set1_ps(p0[t]), y = _mm512_set1_ps(p1[t]), value;
            value = load_half16(row);
            a0 = _mm512_fmadd_ps(x, value, a0);
            b0 = _mm512_fmadd_ps(y, value, b0);
            value = load_half16(row + 16);
            a1 = _mm512_fmadd_ps(x, value, a1);
            b1 = _mm512_fmadd_ps(y, value, b1);
            value = load_half16(row + 32);
            a2 = _mm512_fmadd_ps(x, value, a2);
            b2 = _mm512_fmadd_ps(y, value, b2);
            value = load_half16(row + 48);
            a3 = _mm512_fmadd_ps(x, value, a3);
            b3 = _mm512_fmadd_ps(y, value, b3);
        }
        _mm512_storeu_ps(o0 + i, a0), _mm512_storeu_ps(o0 + i + 16, a1);
        _mm512_storeu_ps(o0 + i + 32, a2), _mm512_storeu_ps(o0 + i + 48, a3);
        _mm512_storeu_ps(o1 + i, b0), _mm512_storeu_ps(o1 + i + 16, b1);
        _mm512_storeu_ps(o1 + i + 32, b2), _mm512_storeu_ps(o1 + i + 48, b3);
    }
    for (; i < d; i += 16) {
        __m512 a = _mm512_loadu_ps(o0 + i), b = _mm512_loadu_ps(o1 + i);
        for (int t = 0; t < n; t++) {
            ask(v + (size_t)(t + TILE) * d + i, 16);
            __m512 value = load_half16(v + (size_t)t * d + i);
            a = _mm512_fmadd_ps(_mm512_set1_ps(p0[t]), value, a);
            b = _mm512_fmadd_ps(_mm512_set1_ps(p1[t]), value, b);
        }
        _mm512_storeu_ps(o0 + i, a), _mm512_storeu_ps(o1 + i, b);
    }
}

/* Four tokens at a time; behind the last one, the last again. */
AVX512 static void score4_avx512(const uint16_t *k, int n, int d, const float *q, float *s)
{
    for (int t = 0; t < n; t += 4) {
        ask(k + (size_t)(t + TILE) * d, 4 * d);
        const uint16_t *k0 = k + (size_t)t * d, *k1 = t + 1 < n ? k0 + d : k0;
        const uint16_t *k2 = t + 2 < n ? k1 + d : k1, *k3 = t + 3 < n ? k2 + d : k2;
        __m512 a[4][4];
        FOUR(r)
        a[r][0] = a[r][1] = a[r][2] = a[r][3] = _mm512_setzero_ps();
        for (int i = 0; i < d; i += 16) {
            __m512 x0 = load_half16(k0 + i), x1 = load_half16(k1 + i);
            __m512 x2 = load_half16(k2 + i), x3 = load_half16(k3 + i);
            FOUR(r)
            {
                __m512 query = _mm512_loadu_ps(q + (size_t)r * d + i);
                a[r][0] = _mm512_fmadd_ps(query, x0, a[r][0]);
                a[r][1] = _mm512_fmadd_ps(query, x1, a[r][1]);
                a[r][2] = _mm512_fmadd_ps(query, x2, a[r][2]);
                a[r][3] = _mm512_fmadd_ps(query, x3, a[r][3]);
            }
        }
        FOUR(r)
        _mm_storeu_ps(s + r * TILE + t,
                      add_lanes(fold(a[r][0]), fold(a[r][1]), fold(a[r][2]), fold(a[r][3])));
    }
}

/* 64 channels at a time in sixteen accumulators, then 16. */
AVX512 static void sum4_avx512(const uint16_t *v, int n, int d, const float *p, float *o)
{
    int i = 0;
    for (; i + 64 <= d; i += 64) {
        __m512 a[4][4];
        FOUR(r)
        FOUR(j)
        a[r][j] = _mm512_loadu_ps(o + (size_t)r * d + i + 16 * j);
        for (int t = 0; t < n; t++) {
            const uint16_t *row = v + (size_t)t * d + i;
            ask(row + (size_t)TILE * d, 64);
            __m512 x0 = load_half16(row), x1 = load_half16(row + 16);
            __m512 x2 = load_half16(row + 32), x3 = load_half16(row + 48);
            FOUR(r)
            {
                __m512 weight = _mm512_set1_ps(p[r * TILE + t]);
                a[r][0] = _mm512_fmadd_ps(weight, x0, a[r][0]);
                a[r][1] = _mm512_fmadd_ps(weight, x1, a[r][1]);
                a[r][2] = _mm512_fmadd_ps(weight, x2, a[r][2]);
                a[r][3] = _mm512_fmadd_ps(weight, x3, a[r][3]);
            }
        }
        FOUR(r)
        FOUR(j)
        _mm512_storeu_ps(o + (size_t)r * d + i + 16 * j, a[r][j]);
    }
    for (; i < d; i += 16) {
        __m512 a[4];
        FOUR(r)
        a[r] = _mm512_loadu_ps(o + (size_t)r * d + i);
        for (int t = 0; t < n; t++) {
            ask(v + (size_t)(t + TILE) * d + i, 16);
            __m512 x = load_half16(v + (size_t)t * d + i);
            FOUR(r)
            a[r] = _mm512_fmadd_ps(_mm512_set1_ps(p[r * TILE + t]), x, a[r]);
        }
        FOUR(r)
        _mm512_storeu_ps(o + (size_t)r * d + i, a[r]);
    }
}

AVX512 static void attend_avx512(const uint16_t *k, const uint16_t *v, int n_tokens, int group,
                                 int d, const float *q, float *out, float scale, float *scratch)
{
    attend_with(score_avx512, sum_avx512, score4_avx512, sum4_avx512, k, v, n_tokens, group, d, q,
                out, scale, scratch);
}

#endif

#endif
