#include "eval/attend_blocks.h"

#include <math.h>

#include "model/attend_tile.h"

enum { WIDTH = VQKVC_BLOCK_CHANNELS, LARGEST_ROWS = 4 };

/* Bytes of a block: its scale, then 32 bytes, or 16 whose low nibbles are the first 16 channels. */
INLINE size_t block_bytes(int nibbles)
{
    return nibbles ? 2 + WIDTH / 2 : 2 + WIDTH;
}

/* What codes as unsigned numbers are more than their values. */
INLINE int offset_of(int nibbles)
{
    return nibbles ? 8 : 128;
}

INLINE float scale_of(const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, 2);
    return vqkvc_f16_to_f32(half);
}

/* Queries as kernels want them, of all rows of a group. */
typedef struct query {
    int d;
    int8_t *codes; /* [group, d] */
    int32_t *init; /* [group, d / 32] minus the offset times the sum of a block's codes */
    float *unit;   /* [group] what a code counts, times the scale of scores */
} query;

/* ---- formats ---- */

size_t vqkvc_blocks_row(vqkvc_blocks format, int head_dim)
{
    return (size_t)(head_dim / WIDTH) * block_bytes(format == VQKVC_BLOCKS_Q4_0);
}

static void put_scale(float scale, uint8_t *block)
{
    uint16_t half = vqkvc_f32_to_f16(scale);
    memcpy(block, &half, 2);
}

static void pack_bytes(const float *x, uint8_t *block)
{
    float most = 0;
    for (int i = 0; i < WIDTH; i++)
        most = fmaxf(most, fabsf(x[i]));
    float scale = most / 127, inverse = scale != 0 ? 1 / scale : 0;
    put_scale(scale, block);
    for (int i = 0; i < WIDTH; i++)
        block[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
}

static void pack_nibbles(const float *x, uint8_t *block)
{
    float most = 0;
    for (int i = 0; i < WIDTH; i++)
        if (fabsf(x[i]) > fabsf(most))
            most = x[i];
    float scale = most / -8, inverse = scale != 0 ? 1 / scale : 0;
    put_scale(scale, block);
    for (int i = 0; i < WIDTH / 2; i++) {
        int low = (int)(x[i] * inverse + 8.5f), high = (int)(x[i + WIDTH / 2] * inverse + 8.5f);
        block[2 + i] = (uint8_t)((low < 15 ? low : 15) | (high < 15 ? high : 15) << 4);
    }
}

void vqkvc_blocks_pack(vqkvc_blocks format, const float *x, int head_dim, uint8_t *row)
{
    int nibbles = format == VQKVC_BLOCKS_Q4_0;
    for (int i = 0; i < head_dim; i += WIDTH, row += block_bytes(nibbles)) {
        if (nibbles)
            pack_nibbles(x + i, row);
        else
            pack_bytes(x + i, row);
    }
}

/* The value of channel i of a block, without its scale. */
INLINE int code_at(int nibbles, const uint8_t *block, int i)
{
    if (!nibbles)
        return (int8_t)block[2 + i];
    return (block[2 + i % (WIDTH / 2)] >> (i < WIDTH / 2 ? 0 : 4) & 15) - 8;
}

void vqkvc_blocks_unpack(vqkvc_blocks format, const uint8_t *row, int head_dim, float *x)
{
    int nibbles = format == VQKVC_BLOCKS_Q4_0;
    for (int i = 0; i < head_dim; i++) {
        const uint8_t *block = row + (size_t)(i / WIDTH) * block_bytes(nibbles);
        x[i] = scale_of(block) * (float)code_at(nibbles, block, i % WIDTH);
    }
}

/* ---- the whole of it, in terms of two kernels ---- */

/* s [rows, TILE] of n keys for the rows of q from r on; o [rows, d] += p [rows, TILE] times n
 * values. nibbles and rows (1 or 4) are constants. */
typedef void (*score_fn)(const int nibbles, const uint8_t *k, int n, const query *q, int r,
                         const int rows, float *s);
typedef void (*sum_fn)(const int nibbles, const uint8_t *v, int n, int d, const float *p,
                       const int rows, float *o);

static void round_query(const float *x, int nibbles, float scale, int r, const query *q)
{
    float most = 0;
    for (int i = 0; i < q->d; i++)
        most = fmaxf(most, fabsf(x[i]));
    float unit = most / 127, inverse = unit > 0 ? 1 / unit : 0;
    q->unit[r] = unit * scale;
    for (int i = 0; i < q->d; i++)
        q->codes[(size_t)r * q->d + i] = (int8_t)roundf(x[i] * inverse);
    for (int b = 0; b < q->d / WIDTH; b++) {
        int sum = 0;
        for (int i = 0; i < WIDTH; i++)
            sum += q->codes[(size_t)r * q->d + b * WIDTH + i];
        q->init[(size_t)r * (q->d / WIDTH) + b] = -offset_of(nibbles) * sum;
    }
}

INLINE void attend_with(score_fn score, sum_fn sum, const int nibbles, const uint8_t *k,
                        const uint8_t *v, int n_tokens, int group, const query *q, float *out,
                        float *s)
{
    size_t row = (size_t)(q->d / WIDTH) * block_bytes(nibbles);
    float *m = s + (size_t)group * TILE, *l = m + group;
    memset(out, 0, (size_t)group * q->d * sizeof *out);
    for (int r = 0; r < group; r++) {
        m[r] = -1e30f;
        l[r] = 0;
    }
    for (int first = 0; first < n_tokens; first += TILE) {
        int n = n_tokens - first < TILE ? n_tokens - first : TILE, r = 0;
        for (; r + 4 <= group; r += 4)
            score(nibbles, k + (size_t)first * row, n, q, r, 4, s + (size_t)r * TILE);
        for (; r < group; r++)
            score(nibbles, k + (size_t)first * row, n, q, r, 1, s + (size_t)r * TILE);
        for (r = 0; r < group; r++)
            soften(s + (size_t)r * TILE, n, q->d, &m[r], &l[r], out + (size_t)r * q->d);
        for (r = 0; r + 4 <= group; r += 4)
            sum(nibbles, v + (size_t)first * row, n, q->d, s + (size_t)r * TILE, 4,
                out + (size_t)r * q->d);
        for (; r < group; r++)
            sum(nibbles, v + (size_t)first * row, n, q->d, s + (size_t)r * TILE, 1,
                out + (size_t)r * q->d);
    }
    for (int r = 0; r < group; r++)
        for (int i = 0; i < q->d; i++)
            out[(size_t)r * q->d + i] /= l[r];
}

/* A function of one instruction set for each format, with constants that are constants. */
#define ATTEND(isa, target)                                                                        \
    target static void attend_##isa(int nibbles, const uint8_t *k, const uint8_t *v, int n_tokens, \
                                    int group, const query *q, float *out, float *s)               \
    {                                                                                              \
        if (nibbles)                                                                               \
            attend_with(score_##isa, sum_##isa, 1, k, v, n_tokens, group, q, out, s);              \
        else                                                                                       \
            attend_with(score_##isa, sum_##isa, 0, k, v, n_tokens, group, q, out, s);              \
    }

/* ---- portable C ---- */

INLINE void score_portable(const int nibbles, const uint8_t *k, int n, const query *q, int r,
                           const int rows, float *s)
{
    int blocks = q->d / WIDTH;
    for (int t = 0; t < n; t++)
        for (int i = 0; i < rows; i++) {
            const uint8_t *block = k + (size_t)(t * blocks) * block_bytes(nibbles);
            const int8_t *codes = q->codes + (size_t)(r + i) * q->d;
            float sum = 0;
            for (int b = 0; b < blocks; b++, block += block_bytes(nibbles), codes += WIDTH) {
                int dot = 0;
                for (int c = 0; c < WIDTH; c++)
                    dot += code_at(nibbles, block, c) * codes[c];
                sum += scale_of(block) * (float)dot;
            }
            s[i * TILE + t] = sum * q->unit[r + i];
        }
}

INLINE void sum_portable(const int nibbles, const uint8_t *v, int n, int d, const float *p,
                         const int rows, float *o)
{
    for (int t = 0; t < n; t++)
        for (int b = 0; b < d / WIDTH; b++, v += block_bytes(nibbles)) {
            float scale = scale_of(v), x[WIDTH];
            for (int c = 0; c < WIDTH; c++)
                x[c] = scale * (float)code_at(nibbles, v, c);
            for (int i = 0; i < rows; i++)
                for (int c = 0; c < WIDTH; c++)
                    o[i * d + b * WIDTH + c] += p[i * TILE + t] * x[c];
        }
}

ATTEND(portable, )

#ifdef HAVE_X86

#define ROWS(i) _Pragma("GCC unroll 4") for (int i = 0; i < rows; i++)

/* Asks for n bytes of the next tile, into the second-level cache (attend_f16_tile.h says why). */
INLINE void ask(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

/* ---- AVX2 ---- */

#define INLINE_AVX2 AVX2 INLINE

/* The 32 codes of a block as unsigned numbers. */
INLINE_AVX2 __m256i codes_avx2(const int nibbles, const uint8_t *block)
{
    if (!nibbles)
        return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(block + 2)),
                                _mm256_set1_epi8(-128));
    __m128i both = _mm_loadu_si128((const __m128i *)(const void *)(block + 2));
    __m128i mask = _mm_set1_epi8(15);
    return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(both, 4), mask),
                            _mm_and_si128(both, mask));
}

INLINE_AVX2 float half_avx2(const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, 2);
    return _cvtsh_ss(half);
}

INLINE_AVX2 void score_avx2(const int nibbles, const uint8_t *k, int n, const query *q, int r,
                            const int rows, float *s)
{
    int blocks = q->d / WIDTH;
    const int8_t *codes = q->codes + (size_t)r * q->d;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < n; t++) {
        __m256 a[LARGEST_ROWS] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                                  _mm256_setzero_ps()};
        ask(k + TILE * (size_t)blocks * block_bytes(nibbles),
            block_bytes(nibbles) * (size_t)blocks);
        for (int b = 0; b < blocks; b++, k += block_bytes(nibbles)) {
            __m256i x =
                _mm256_sub_epi8(codes_avx2(nibbles, k), _mm256_set1_epi8((char)offset_of(nibbles)));
            __m256i size = _mm256_abs_epi8(x);
            __m256 scale = _mm256_set1_ps(half_avx2(k));
            ROWS(i)
            {
                __m256i y = _mm256_loadu_si256(
                    (const __m256i *)(const void *)(codes + i * q->d + b * WIDTH));
                __m256i dot = _mm256_maddubs_epi16(size, _mm256_sign_epi8(y, x));
                a[i] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(dot, ones)), scale, a[i]);
            }
        }
        float out[LARGEST_ROWS];
        _mm_storeu_ps(out, add_lanes(a[0], a[1], a[2], a[3]));
        ROWS(i)
        s[i * TILE + t] = out[i] * q->unit[r + i];
    }
}

/* Half a block at a time: 16 channels. */
INLINE_AVX2 void sum_avx2(const int nibbles, const uint8_t *v, int n, int d, const float *p,
                          const int rows, float *o)
{
    size_t row = (size_t)(d / WIDTH) * block_bytes(nibbles);
    for (int c = 0; c < d; c += WIDTH / 2) {
        const uint8_t *block = v + (size_t)(c / WIDTH) * block_bytes(nibbles);
        int second = c / (WIDTH / 2) % 2;
        __m256 a[LARGEST_ROWS], b[LARGEST_ROWS];
        ROWS(i)
        {
            a[i] = _mm256_loadu_ps(o + i * d + c);
            b[i] = _mm256_loadu_ps(o + i * d + c + 8);
        }
        for (int t = 0; t < n; t++, block += row) {
            __m128i x;
            if (nibbles) {
                x = _mm_loadu_si128((const __m128i *)(const void *)(block + 2));
                x = _mm_and_si128(second ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(15));
                x = _mm_sub_epi8(x, _mm_set1_epi8(8));
            } else {
                x = _mm_loadu_si128((const __m128i *)(const void *)(block + 2 + 16 * second));
            }
            if (second == 0)
                ask(block + TILE * row, block_bytes(nibbles));
            __m256 scale = _mm256_set1_ps(half_avx2(block));
            __m256 low = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)));
            __m256 high = _mm256_mul_ps(
                scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))));
            ROWS(i)
            {
                __m256 weight = _mm256_broadcast_ss(p + i * TILE + t);
                a[i] = _mm256_fmadd_ps(weight, low, a[i]);
                b[i] = _mm256_fmadd_ps(weight, high, b[i]);
            }
        }
        ROWS(i)
        {
            _mm256_storeu_ps(o + i * d + c, a[i]);
            _mm256_storeu_ps(o + i * d + c + 8, b[i]);
        }
    }
}

ATTEND(avx2, AVX2)

/* ---- AVX-512 with VNNI ---- */

#define VNNI        __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,avx2,fma,f16c")))
#define INLINE_VNNI VNNI INLINE

/* Two tokens at a time, one in each half of the vectors; behind the last one, the last again. */
INLINE_VNNI void score_vnni(const int nibbles, const uint8_t *k, int n, const query *q, int r,
                            const int rows, float *s)
{
    int blocks = q->d / WIDTH;
    size_t row = (size_t)blocks * block_bytes(nibbles);
    const int8_t *codes = q->codes + (size_t)r * q->d;
    const int32_t *init = q->init + (size_t)r * blocks;
    for (int t = 0; t < n; t += 2) {
        const uint8_t *k0 = k + (size_t)t * row, *k1 = t + 1 < n ? k0 + row : k0;
        __m512 a[LARGEST_ROWS] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                                  _mm512_setzero_ps()};
        ask(k0 + TILE * row, 2 * row);
        for (int b = 0; b < blocks; b++) {
            size_t at = (size_t)b * block_bytes(nibbles);
            __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(codes_avx2(nibbles, k0 + at)),
                                           codes_avx2(nibbles, k1 + at), 1);
            __m512 scale = _mm512_insertf32x8(_mm512_set1_ps(half_avx2(k0 + at)),
                                              _mm256_set1_ps(half_avx2(k1 + at)), 1);
            ROWS(i)
            {
                __m512i y = _mm512_broadcast_i64x4(_mm256_loadu_si256(
                    (const __m256i *)(const void *)(codes + i * q->d + b * WIDTH)));
                __m512i dot = _mm512_maskz_set1_epi32(0x0101, init[i * blocks + b]);
                dot = _mm512_dpbusd_epi32(dot, x, y);
                a[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, a[i]);
            }
        }
        float first[LARGEST_ROWS], second[LARGEST_ROWS];
        _mm_storeu_ps(first, add_lanes(_mm512_castps512_ps256(a[0]), _mm512_castps512_ps256(a[1]),
                                       _mm512_castps512_ps256(a[2]), _mm512_castps512_ps256(a[3])));
        _mm_storeu_ps(second,
                      add_lanes(_mm512_extractf32x8_ps(a[0], 1), _mm512_extractf32x8_ps(a[1], 1),
                                _mm512_extractf32x8_ps(a[2], 1), _mm512_extractf32x8_ps(a[3], 1)));
        ROWS(i)
        {
            s[i * TILE + t] = first[i] * q->unit[r + i];
            s[i * TILE + t + 1] = second[i] * q->unit[r + i];
        }
    }
}

/* Codes of 16 channels, the `second` half of a block or the first, as fp32 times its scale. */
INLINE_VNNI __m512 half_block_vnni(const int nibbles, const uint8_t *block, const int second,
                                   __m512 scale)
{
    __m128i x =
        _mm_loadu_si128((const __m128i *)(const void *)(block + 2 + (nibbles ? 0 : 16 * second)));
    if (nibbles) {
        x = _mm_and_si128(second ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(15));
        x = _mm_sub_epi8(x, _mm_set1_epi8(8));
    }
    return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)));
}

/* A block at a time: 32 channels, eight accumulators for four rows. */
INLINE_VNNI void sum_vnni(const int nibbles, const uint8_t *v, int n, int d, const float *p,
                          const int rows, float *o)
{
    size_t row = (size_t)(d / WIDTH) * block_bytes(nibbles);
    for (int c = 0; c < d; c += WIDTH) {
        const uint8_t *block = v + (size_t)(c / WIDTH) * block_bytes(nibbles);
        __m512 a[LARGEST_ROWS], b[LARGEST_ROWS];
        ROWS(i)
        {
            a[i] = _mm512_loadu_ps(o + i * d + c);
            b[i] = _mm512_loadu_ps(o + i * d + c + 16);
        }
        for (int t = 0; t < n; t++, block += row) {
            __m512 scale = _mm512_set1_ps(half_avx2(block));
            __m512 low = half_block_vnni(nibbles, block, 0, scale);
            __m512 high = half_block_vnni(nibbles, block, 1, scale);
            __builtin_prefetch(block + TILE * row, 0, 2);
            ROWS(i)
            {
                __m512 weight = _mm512_set1_ps(p[i * TILE + t]);
                a[i] = _mm512_fmadd_ps(weight, low, a[i]);
                b[i] = _mm512_fmadd_ps(weight, high, b[i]);
            }
        }
        ROWS(i)
        {
            _mm512_storeu_ps(o + i * d + c, a[i]);
            _mm512_storeu_ps(o + i * d + c + 16, b[i]);
        }
    }
}

ATTEND(vnni, VNNI)

#endif

/* ---- dispatch ---- */

size_t vqkvc_attend_blocks_scratch(int group, int head_dim)
{
    size_t codes = ((size_t)group * head_dim + 3) / 4, init = (size_t)group * (head_dim / WIDTH);
    return codes + init + (size_t)group * (TILE + 3);
}

void vqkvc_attend_blocks(vqkvc_blocks format, const uint8_t *k, const uint8_t *v, int n_tokens,
                         int group, int head_dim, const float *q, float *out, float scale,
                         vqkvc_isa isa, float *scratch)
{
    int nibbles = format == VQKVC_BLOCKS_Q4_0;
    float *s = scratch, *unit = s + (size_t)group * (TILE + 2);
    query rounded = {.d = head_dim, .unit = unit};
    rounded.init = (int32_t *)(void *)(unit + group);
    rounded.codes = (int8_t *)(rounded.init + (size_t)group * (head_dim / WIDTH));
    for (int r = 0; r < group; r++)
        round_query(q + (size_t)r * head_dim, nibbles, scale, r, &rounded);
#ifdef HAVE_X86
    int any = isa == VQKVC_ISA_AUTO || isa == VQKVC_ISA_AVX512;
    if (any && vqkvc_has_avx512() && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vnni")) {
        attend_vnni(nibbles, k, v, n_tokens, group, &rounded, out, s);
        return;
    }
    if ((any || isa == VQKVC_ISA_AVX2) && vqkvc_has_avx2()) {
        attend_avx2(nibbles, k, v, n_tokens, group, &rounded, out, s);
        return;
    }
#endif
    attend_portable(nibbles, k, v, n_tokens, group, &rounded, out, s);
}
