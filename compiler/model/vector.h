/* vector.h - short loops of the forward pass, written so that compilers can vectorise them without
 * reordering a sum: the same bits on every machine. Private to model/. */
#ifndef VQKVC_MODEL_VECTOR_H
#define VQKVC_MODEL_VECTOR_H

#include "base/half.h"

enum { VQKVC_LANES = 16 };

/* Multiply-adds below which a second thread costs more than it saves. */
enum { VQKVC_PARALLEL_WORK = 1 << 19 };

/* The sum of a[i] * b[i], in lanes that are added in a fixed order. */
static inline float vqkvc_dot(const float *a, const float *b, int n)
{
    float lane[VQKVC_LANES] = {0};
    int i = 0;
    for (; i + VQKVC_LANES <= n; i += VQKVC_LANES)
        for (int l = 0; l < VQKVC_LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    for (int l = 0; i + l < n; l++)
        lane[l] += a[i + l] * b[i + l];
    for (int half = VQKVC_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

/* The largest of a [n], n > 0. */
static inline float vqkvc_max(const float *a, int n)
{
    float lane[VQKVC_LANES], max = a[0];
    for (int l = 0; l < VQKVC_LANES; l++)
        lane[l] = a[0];
    int i = 0;
    for (; i + VQKVC_LANES <= n; i += VQKVC_LANES)
        for (int l = 0; l < VQKVC_LANES; l++)
            lane[l] = a[i + l] > lane[l] ? a[i + l] : lane[l];
    for (; i < n; i++)
        max = a[i] > max ? a[i] : max;
    for (int l = 0; l < VQKVC_LANES; l++)
        max = lane[l] > max ? lane[l] : max;
    return max;
}

/* exp(x) within 2 ulp, x cut to -87 .. 88: x = n ln 2 + r, Taylor to the 7th power of r. */
static inline float vqkvc_exp(float x)
{
    const float round = 0x1.8p23f; /* leaves the nearest integer in the low bits of a sum */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + round, n = shifted - round;
    float r = x - n * 0.693359375f; /* ln 2 in two parts, the first one exact in n times it */
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * vqkvc_bits_to_f32((vqkvc_f32_to_bits(shifted) << 23) + 0x3f800000u);
}

#endif
