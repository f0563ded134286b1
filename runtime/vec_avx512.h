/* Vector vocabulary, AVX-512 (F, BW, VL, DQ, VBMI, VNNI): sixteen lanes. See kernels.h. */
#define VQKV__LANES_avx512    16
#define VQKV__GATHERED_avx512 32
#if VQKV_BLOCK >= 64
#define VQKV__BYTE_OPS_avx512 &vqkv__byte_ops_avx512
#else
#define VQKV__BYTE_OPS_avx512 NULL
#endif
#define VQKV__TARGET_avx512                                                                        \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c")))
/* Where a loop's length must be a constant: gcc would not inline it by itself. */
#define VQKV__INLINE_avx512 VQKV__TARGET_avx512 static inline __attribute__((always_inline))
/* Outputs that a pass of dense.h holds sums of. */
#define VQKV__N_OUTS_avx512      8
#define VQKV__OUTS_avx512(X)     X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define VQKV__REST_avx512(X, of) X(4, of) X(5, of) X(6, of) X(7, of)
/* The maskz forms with a full mask cost nothing; gcc's plain forms pass an uninitialised value,
 * which g++ warns about. */
#define VQKV__ALL_avx512 ((__mmask16)0xffff)
typedef __m512 vqkv__vf_avx512;
typedef __m512 vqkv__vt_avx512;
typedef __m512i vqkv__vi_avx512;

/* sum += products of four unsigned bytes of a with signed ones of b, and of two 16-bit words.
 * Around its own intrinsics for these gcc 12 copies every accumulator twice. */
VQKV__INLINE_avx512 void vqkv__add_bytes_avx512(__m512i *sum, __m512i a, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
VQKV__INLINE_avx512 void vqkv__add_words_avx512(__m512i *sum, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}

/* Four bytes in each lane. */
VQKV__INLINE_avx512 __m512i vqkv__four_bytes_avx512(const void *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}

VQKV__TARGET_avx512 static inline __m512 vqkv__set1_avx512(float x)
{
    return _mm512_set1_ps(x);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__load_avx512(const float *p)
{
    return _mm512_loadu_ps(p);
}
VQKV__TARGET_avx512 static inline void vqkv__store_avx512(float *p, __m512 x)
{
    _mm512_storeu_ps(p, x);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__loadh_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtph_ps(VQKV__ALL_avx512,
                                 _mm256_loadu_si256((const __m256i *)(const void *)p));
}
VQKV__TARGET_avx512 static inline __m512 vqkv__loadu8_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtepi32_ps(
        VQKV__ALL_avx512, _mm512_maskz_cvtepu8_epi32(
                              VQKV__ALL_avx512, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
VQKV__TARGET_avx512 static inline __m512 vqkv__loads8_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtepi32_ps(
        VQKV__ALL_avx512, _mm512_maskz_cvtepi8_epi32(
                              VQKV__ALL_avx512, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
VQKV__TARGET_avx512 static inline __m512 vqkv__add_avx512(__m512 a, __m512 b)
{
    return _mm512_add_ps(a, b);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__sub_avx512(__m512 a, __m512 b)
{
    return _mm512_sub_ps(a, b);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__mul_avx512(__m512 a, __m512 b)
{
    return _mm512_mul_ps(a, b);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__fma_avx512(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__max_avx512(__m512 a, __m512 b)
{
    return _mm512_maskz_max_ps(VQKV__ALL_avx512, a, b);
}
/* To the nearest whole number, below 2^31. Where gcc does not optimise, its roundscale is a macro
 * that warns of its own conversion. */
VQKV__TARGET_avx512 static inline __m512 vqkv__round_avx512(__m512 x)
{
#ifdef __OPTIMIZE__
    return _mm512_maskz_roundscale_ps(VQKV__ALL_avx512, x,
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return _mm512_maskz_cvtepi32_ps(VQKV__ALL_avx512,
                                    _mm512_maskz_cvtps_epi32(VQKV__ALL_avx512, x));
#endif
}
VQKV__TARGET_avx512 static inline __m512 vqkv__scale2_avx512(__m512 x, __m512 n)
{
    return _mm512_maskz_scalef_ps(VQKV__ALL_avx512, x, n);
}
VQKV__TARGET_avx512 static inline __m256 vqkv__low_half_avx512(__m512 x)
{
    return _mm512_maskz_extractf32x8_ps((__mmask8)0xff, x, 0);
}
VQKV__TARGET_avx512 static inline __m256 vqkv__high_half_avx512(__m512 x)
{
    return _mm512_maskz_extractf32x8_ps((__mmask8)0xff, x, 1);
}
VQKV__TARGET_avx512 static inline float vqkv__hsum_avx512(__m512 x)
{
    return vqkv__hsum_avx2(_mm256_add_ps(vqkv__low_half_avx512(x), vqkv__high_half_avx512(x)));
}
VQKV__TARGET_avx512 static inline __m256 vqkv__fold_avx512(__m512 x)
{
    return _mm256_add_ps(vqkv__low_half_avx512(x), vqkv__high_half_avx512(x));
}
VQKV__TARGET_avx512 static inline void vqkv__hsum4_avx512(__m512 a, __m512 b, __m512 c, __m512 d,
                                                          float *sum)
{
    vqkv__hsum4_avx2(vqkv__fold_avx512(a), vqkv__fold_avx512(b), vqkv__fold_avx512(c),
                     vqkv__fold_avx512(d), sum);
}
VQKV__TARGET_avx512 static inline float vqkv__hmax_avx512(__m512 x)
{
    return vqkv__hmax_avx2(_mm256_max_ps(vqkv__low_half_avx512(x), vqkv__high_half_avx512(x)));
}
VQKV__TARGET_avx512 static inline __m512 vqkv__table_avx512(const float *p)
{
    return _mm512_loadu_ps(p);
}
/* The code is left in the low nibble; vpermps ignores the bits above it. */
VQKV__TARGET_avx512 static inline __m512i vqkv__nibbles_avx512(const unsigned char *plane, int t)
{
    __m512i bytes = _mm512_maskz_cvtepu8_epi32(
        VQKV__ALL_avx512,
        _mm_loadu_si128((const __m128i *)(const void *)(plane + t % (VQKV_BLOCK / 2))));
    return t < VQKV_BLOCK / 2 ? bytes : _mm512_maskz_srli_epi32(VQKV__ALL_avx512, bytes, 4);
}
VQKV__TARGET_avx512 static inline __m512 vqkv__lookup_avx512(__m512 table, __m512i index)
{
    return _mm512_maskz_permutexvar_ps(VQKV__ALL_avx512, index, table);
}
/* x [32] = values of a table of 256 at byte codes. They fill eight registers: four two-register
 * permutations, of 32 codes at once, beat a gather. */
VQKV__INLINE_avx512 void vqkv__gather_avx512(const unsigned char *table, const unsigned char *codes,
                                             float *x)
{
    __m512i index = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    __m512i part[4];
    int i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++)
        part[i] =
            _mm512_permutex2var_epi16(_mm512_loadu_si512((const void *)(table + 128 * i)), index,
                                      _mm512_loadu_si512((const void *)(table + 128 * i + 64)));
    part[0] = _mm512_mask_blend_epi16(bit6, part[0], part[1]);
    part[2] = _mm512_mask_blend_epi16(bit6, part[2], part[3]);
    part[0] = _mm512_mask_blend_epi16(bit7, part[0], part[2]);
    _mm512_storeu_ps(x, _mm512_maskz_cvtph_ps(VQKV__ALL_avx512, _mm512_castsi512_si256(part[0])));
    _mm512_storeu_ps(
        x + 16, _mm512_maskz_cvtph_ps(VQKV__ALL_avx512, _mm512_extracti64x4_epi64(part[0], 1)));
}
VQKV__TARGET_avx512 static inline void vqkv__storeu8_avx512(unsigned char *p, __m512 x)
{
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm512_maskz_cvtepi32_epi8(VQKV__ALL_avx512,
                                                _mm512_maskz_cvttps_epi32(VQKV__ALL_avx512, x)));
}
/* The second operand is what comes out for a NaN. */
VQKV__TARGET_avx512 static inline void vqkv__storeh_avx512(unsigned char *p, __m512 x)
{
    x = _mm512_maskz_min_ps(VQKV__ALL_avx512, x, _mm512_set1_ps(65504.0f));
    x = _mm512_maskz_max_ps(VQKV__ALL_avx512, x, _mm512_set1_ps(-65504.0f));
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_maskz_cvtps_ph(VQKV__ALL_avx512, x, _MM_FROUND_TO_NEAREST_INT));
}
VQKV__TARGET_avx512 static inline void vqkv__keep_less_avx512(__m512 x, float i, __m512 *least,
                                                              __m512 *index)
{
    __mmask16 less = _mm512_cmp_ps_mask(x, *least, _CMP_LT_OQ);
    *index = _mm512_mask_mov_ps(*index, less, _mm512_set1_ps(i));
    *least = _mm512_maskz_min_ps(VQKV__ALL_avx512, x, *least);
}
VQKV__TARGET_avx512 static inline void vqkv__transpose_avx512(const unsigned char *src,
                                                              size_t src_step, unsigned char *dst,
                                                              size_t dst_step)
{
    vqkv__transpose_avx2(src, src_step, dst, dst_step);
}
