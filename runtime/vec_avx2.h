/* Vector vocabulary, AVX2 with FMA and F16C: eight lanes. See kernels.h. */
#define VQKV__LANES_avx2    8
#define VQKV__GATHERED_avx2 8
#if VQKV_BLOCK >= 64
#define VQKV__BYTE_OPS_avx2 &vqkv__byte_ops_avx2
#else
#define VQKV__BYTE_OPS_avx2 NULL
#endif
#define VQKV__TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
/* Outputs that a pass of dense.h holds sums of. */
#define VQKV__N_OUTS_avx2  4
#define VQKV__OUTS_avx2(X) X(0) X(1) X(2) X(3)
#define VQKV__REST_avx2(X, of)
#define VQKV__INLINE_avx2 VQKV__TARGET_avx2 static inline __attribute__((always_inline))
typedef __m256 vqkv__vf_avx2;
typedef __m256i vqkv__vi_avx2;
typedef struct vqkv__vt_avx2 {
    __m256 low, high; /* entries 0..7 and 8..15 */
} vqkv__vt_avx2;

VQKV__TARGET_avx2 static inline __m256 vqkv__set1_avx2(float x)
{
    return _mm256_set1_ps(x);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__load_avx2(const float *p)
{
    return _mm256_loadu_ps(p);
}
VQKV__TARGET_avx2 static inline void vqkv__store_avx2(float *p, __m256 x)
{
    _mm256_storeu_ps(p, x);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__loadh_avx2(const unsigned char *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
VQKV__TARGET_avx2 static inline __m256 vqkv__loadu8_avx2(const unsigned char *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
VQKV__TARGET_avx2 static inline __m256 vqkv__loads8_avx2(const unsigned char *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
VQKV__TARGET_avx2 static inline __m256 vqkv__add_avx2(__m256 a, __m256 b)
{
    return _mm256_add_ps(a, b);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__sub_avx2(__m256 a, __m256 b)
{
    return _mm256_sub_ps(a, b);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__mul_avx2(__m256 a, __m256 b)
{
    return _mm256_mul_ps(a, b);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__fma_avx2(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__max_avx2(__m256 a, __m256 b)
{
    return _mm256_max_ps(a, b);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__round_avx2(__m256 x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__scale2_avx2(__m256 x, __m256 n)
{
    return _mm256_mul_ps(x,
                         _mm256_castsi256_ps(_mm256_slli_epi32(
                             _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
VQKV__TARGET_avx2 static inline float vqkv__hsum_avx2(__m256 x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
VQKV__TARGET_avx2 static inline void vqkv__hsum4_avx2(__m256 a, __m256 b, __m256 c, __m256 d,
                                                      float *sum)
{
    a = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
VQKV__TARGET_avx2 static inline float vqkv__hmax_avx2(__m256 x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
VQKV__TARGET_avx2 static inline vqkv__vt_avx2 vqkv__table_avx2(const float *p)
{
    vqkv__vt_avx2 t;
    t.low = _mm256_loadu_ps(p);
    t.high = _mm256_loadu_ps(p + 8);
    return t;
}
/* The code is left in the low nibble; bits above it are ignored by the lookup. */
VQKV__TARGET_avx2 static inline __m256i vqkv__nibbles_avx2(const unsigned char *plane, int t)
{
    __m256i bytes = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64((const __m128i *)(const void *)(plane + t % (VQKV_BLOCK / 2))));
    return t < VQKV_BLOCK / 2 ? bytes : _mm256_srli_epi32(bytes, 4);
}
VQKV__TARGET_avx2 static inline __m256 vqkv__lookup_avx2(vqkv__vt_avx2 table, __m256i index)
{
    __m256 low = _mm256_permutevar8x32_ps(table.low, index);
    __m256 high = _mm256_permutevar8x32_ps(table.high, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
/* Loads one by one: four times as fast as the gather instruction, on Zen 5. */
static inline short vqkv__half_bits(const unsigned char *table, unsigned char code)
{
    short h;
    memcpy(&h, table + 2 * (size_t)code, 2);
    return h;
}
VQKV__TARGET_avx2 static inline void vqkv__gather_avx2(const unsigned char *table,
                                                       const unsigned char *codes, float *x)
{
#define VQKV__X(i) vqkv__half_bits(table, codes[i])
    _mm256_storeu_ps(
        x, _mm256_cvtph_ps(_mm_setr_epi16(VQKV__X(0), VQKV__X(1), VQKV__X(2), VQKV__X(3),
                                          VQKV__X(4), VQKV__X(5), VQKV__X(6), VQKV__X(7))));
#undef VQKV__X
}
VQKV__TARGET_avx2 static inline void vqkv__storeu8_avx2(unsigned char *p, __m256 x)
{
    __m256i code = _mm256_cvttps_epi32(x);
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(words, words));
}
/* The second operand is what comes out for a NaN. */
VQKV__TARGET_avx2 static inline void vqkv__storeh_avx2(unsigned char *p, __m256 x)
{
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(65504.0f)), _mm256_set1_ps(-65504.0f));
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VQKV__TARGET_avx2 static inline void vqkv__keep_less_avx2(__m256 x, float i, __m256 *least,
                                                          __m256 *index)
{
    __m256 less = _mm256_cmp_ps(x, *least, _CMP_LT_OQ);
    *index = _mm256_blendv_ps(*index, _mm256_set1_ps(i), less);
    *least = _mm256_min_ps(x, *least);
}
VQKV__TARGET_avx2 static inline __m128i vqkv__load8h_avx2(const unsigned char *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
VQKV__TARGET_avx2 static inline void vqkv__store8h_avx2(unsigned char *p, __m128i x)
{
    _mm_storeu_si128((__m128i *)(void *)p, x);
}
VQKV__TARGET_avx2 static inline void vqkv__transpose_avx2(const unsigned char *src, size_t src_step,
                                                          unsigned char *dst, size_t dst_step)
{
    __m128i pair[8], quad[8];
    int i;
    for (i = 0; i < 8; i += 2) {
        __m128i a = vqkv__load8h_avx2(src + (size_t)i * src_step);
        __m128i b = vqkv__load8h_avx2(src + (size_t)(i + 1) * src_step);
        pair[i] = _mm_unpacklo_epi16(a, b);
        pair[i + 1] = _mm_unpackhi_epi16(a, b);
    }
    for (i = 0; i < 8; i += 4) { /* rows i .. i + 3 of two columns each */
        quad[i] = _mm_unpacklo_epi32(pair[i], pair[i + 2]);
        quad[i + 1] = _mm_unpackhi_epi32(pair[i], pair[i + 2]);
        quad[i + 2] = _mm_unpacklo_epi32(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm_unpackhi_epi32(pair[i + 1], pair[i + 3]);
    }
    for (i = 0; i < 4; i++, dst += 2 * dst_step) {
        vqkv__store8h_avx2(dst, _mm_unpacklo_epi64(quad[i], quad[i + 4]));
        vqkv__store8h_avx2(dst + dst_step, _mm_unpackhi_epi64(quad[i], quad[i + 4]));
    }
}
