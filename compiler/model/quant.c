#include "model/quant.h"

#include "base/half.h"

#define SMALL_BLOCK 32  /* Q4_0 .. Q8_0 */
#define SUPER_BLOCK 256 /* the K types */

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (uint32_t)p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
    return load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static float load_f16(const uint8_t *p)
{
    return vqkvc_f16_to_f32(load_u16(p));
}

static void widen_f32(const uint8_t *src, int64_t n, float *dst)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = vqkvc_bits_to_f32(load_u32(src + 4 * i));
}

static void widen_f16(const uint8_t *src, int64_t n, float *dst)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = load_f16(src + 2 * i);
}

static void widen_bf16(const uint8_t *src, int64_t n, float *dst)
{
    for (int64_t i = 0; i < n; i++)
        dst[i] = vqkvc_bf16_to_f32(load_u16(src + 2 * i));
}

/* { f16 d; i8 q[32] } */
static void widen_q8_0(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 34, dst += SMALL_BLOCK) {
        float d = load_f16(src);
        for (int j = 0; j < SMALL_BLOCK; j++)
            dst[j] = (float)(int8_t)src[2 + j] * d;
    }
}

/* { f16 d; u8 q[16] }: low nibbles are elements 0 .. 15, high ones 16 .. 31 */
static void widen_q4_0(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 18, dst += SMALL_BLOCK) {
        float d = load_f16(src);
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)((src[2 + j] & 15) - 8) * d;
            dst[j + 16] = (float)((src[2 + j] >> 4) - 8) * d;
        }
    }
}

/* { f16 d, m; u8 q[16] } */
static void widen_q4_1(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 20, dst += SMALL_BLOCK) {
        float d = load_f16(src), m = load_f16(src + 2);
        for (int j = 0; j < 16; j++) {
            dst[j] = (float)(src[4 + j] & 15) * d + m;
            dst[j + 16] = (float)(src[4 + j] >> 4) * d + m;
        }
    }
}

/* Codes of a 5-bit block: fifth bits in a 32-bit mask, then nibbles as in Q4_0. */
static void unpack_q5(const uint8_t *src, int codes[SMALL_BLOCK])
{
    uint32_t high = load_u32(src);
    for (int j = 0; j < 16; j++) {
        codes[j] = (src[4 + j] & 15) | (int)(high >> j & 1u) << 4;
        codes[j + 16] = (src[4 + j] >> 4) | (int)(high >> (j + 16) & 1u) << 4;
    }
}

/* { f16 d; u32 high; u8 q[16] } */
static void widen_q5_0(const uint8_t *src, int64_t n, float *dst)
{
    int codes[SMALL_BLOCK];
    for (; n > 0; n--, src += 22, dst += SMALL_BLOCK) {
        float d = load_f16(src);
        unpack_q5(src + 2, codes);
        for (int j = 0; j < SMALL_BLOCK; j++)
            dst[j] = (float)(codes[j] - 16) * d;
    }
}

/* { f16 d, m; u32 high; u8 q[16] } */
static void widen_q5_1(const uint8_t *src, int64_t n, float *dst)
{
    int codes[SMALL_BLOCK];
    for (; n > 0; n--, src += 24, dst += SMALL_BLOCK) {
        float d = load_f16(src), m = load_f16(src + 2);
        unpack_q5(src + 4, codes);
        for (int j = 0; j < SMALL_BLOCK; j++)
            dst[j] = (float)codes[j] * d + m;
    }
}

/* Scale and minimum, 6 bits each, of sub-block j of 8. Bytes 0 .. 3 and 4 .. 7 hold those of the
 * first four in their low six bits; the last four have their low nibbles in bytes 8 .. 11 and their
 * top two bits above the former. */
static void unpack_scale_min(const uint8_t p[12], int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = p[j] & 63;
        *min = p[j + 4] & 63;
    } else {
        *scale = (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
        *min = (p[j + 4] >> 4) | (p[j] >> 6) << 4;
    }
}

/* { f16 d, dmin; u8 scales[12]; u8 q[128] }: 8 sub-blocks of 32; a run of 32 bytes holds sub-block
 * 2 r in its low nibbles, 2 r + 1 in its high ones. */
static void widen_q4_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 144, dst += SUPER_BLOCK) {
        float d = load_f16(src), dmin = load_f16(src + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *q = src + 16 + 32 * (j / 2);
            int scale, min;
            unpack_scale_min(src + 4, j, &scale, &min);
            float step = d * (float)scale, floor = dmin * (float)min;
            for (int i = 0; i < 32; i++)
                dst[32 * j + i] = step * (float)(q[i] >> 4 * (j % 2) & 15) - floor;
        }
    }
}

/* { f16 d, dmin; u8 scales[12]; u8 high[32]; u8 q[128] }: as Q4_K, and bit j of high[i] is the
 * fifth bit of element i of sub-block j. */
static void widen_q5_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 176, dst += SUPER_BLOCK) {
        float d = load_f16(src), dmin = load_f16(src + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *high = src + 16, *q = src + 48 + 32 * (j / 2);
            int scale, min;
            unpack_scale_min(src + 4, j, &scale, &min);
            float step = d * (float)scale, floor = dmin * (float)min;
            for (int i = 0; i < 32; i++) {
                int code = (q[i] >> 4 * (j % 2) & 15) | (high[i] >> j & 1) << 4;
                dst[32 * j + i] = step * (float)code - floor;
            }
        }
    }
}

/* { u8 low[128]; u8 high[64]; i8 scales[16]; f16 d }: two halves of 128; a half has four runs of 32
 * whose nibbles share 64 bytes of low and whose top bit pairs share 32 bytes of high; one scale for
 * each 16 elements. */
static void widen_q6_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n--, src += 210, dst += SUPER_BLOCK) {
        float d = load_f16(src + 208);
        for (int j = 0; j < 8; j++) {
            int half = j / 4, run = j % 4;
            const uint8_t *low = src + 64 * half + 32 * (run % 2), *high = src + 128 + 32 * half;
            for (int i = 0; i < 32; i++) {
                int code = (low[i] >> 4 * (run / 2) & 15) | (high[i] >> 2 * run & 3) << 4;
                float step = d * (float)(int8_t)src[192 + 2 * j + i / 16];
                dst[32 * j + i] = step * (float)(code - 32);
            }
        }
    }
}

const vqkvc_quant_type *vqkvc_quant_find(uint32_t ggml_type)
{
    static const vqkvc_quant_type types[] = {
        {"F32", 0, 1, 4, widen_f32},
        {"F16", 1, 1, 2, widen_f16},
        {"BF16", 30, 1, 2, widen_bf16},
        {"Q8_0", 8, SMALL_BLOCK, 34, widen_q8_0},
        {"Q4_0", 2, SMALL_BLOCK, 18, widen_q4_0},
        {"Q4_1", 3, SMALL_BLOCK, 20, widen_q4_1},
        {"Q5_0", 6, SMALL_BLOCK, 22, widen_q5_0},
        {"Q5_1", 7, SMALL_BLOCK, 24, widen_q5_1},
        {"Q4_K", 12, SUPER_BLOCK, 144, widen_q4_k},
        {"Q5_K", 13, SUPER_BLOCK, 176, widen_q5_k},
        {"Q6_K", 14, SUPER_BLOCK, 210, widen_q6_k},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].id == ggml_type)
            return &types[i];
    return NULL;
}

void vqkvc_quant_to_f32(const vqkvc_quant_type *type, const uint8_t *src, int64_t n, float *dst)
{
    type->widen(src, n / type->block, dst);
}
