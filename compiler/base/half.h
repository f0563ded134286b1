/* half.h - IEEE binary16 and bfloat16, bit patterns in uint16_t. */
#ifndef VQKVC_BASE_HALF_H
#define VQKVC_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float vqkvc_bits_to_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t vqkvc_f32_to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float vqkvc_bf16_to_f32(uint16_t h)
{
    return vqkvc_bits_to_f32((uint32_t)h << 16);
}

static inline float vqkvc_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7fffu) << 13;
    if (mag >= 0x0f800000u) /* infinity or NaN: the exponent is all ones in both formats */
        return vqkvc_bits_to_f32(sign | mag | 0x7f800000u);
    /* Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals. */
    return vqkvc_bits_to_f32(sign | vqkvc_f32_to_bits(vqkvc_bits_to_f32(mag) * 0x1p112f));
}

/* Round to nearest, ties to even; overflow gives infinity, NaN stays NaN. */
static inline uint16_t vqkvc_f32_to_f16(float f)
{
    uint32_t bits = vqkvc_f32_to_bits(f), sign = (bits >> 16) & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (mag >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (mag < 0x38800000u) { /* below 2^-14: subnormal; adding 0.5 rounds at bit 2^-24 */
        float shifted = vqkvc_bits_to_f32(mag) + 0.5f;
        return (uint16_t)(sign | (vqkvc_f32_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t odd = (mag >> 13) & 1u;
    return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + odd) >> 13));
}

#endif
