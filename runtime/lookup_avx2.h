/* What the byte kernels for AVX2 have in common: words and bytes from floats, codes and sixteen
 * entries that a shuffle looks up, sums. */

#if VQKV_BLOCK >= 64

/* Planes whose scores are summed in 16 bits; of wide entries of score tables, which the sum makes
 * the coarser the more there are. */
#define VQKV__CHUNK_avx2      64
#define VQKV__WIDE_CHUNK_avx2 48

/* Narrow entries of score tables: bits of the lower byte, and what entries of the planes of a quad
 * that stand for 0 add up to, in steps: twice that and the rounding of two quads fill the higher
 * byte. */
#define VQKV__LOW_BITS_avx2 5
#define VQKV__ZERO_avx2     2044

VQKV__INLINE_avx2 __m256i vqkv__load_bytes_avx2(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

VQKV__INLINE_avx2 __m256i vqkv__table_bytes_avx2(const signed char *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* sum += x: words, bytes or 32-bit numbers. Left to itself gcc 12 keeps two copies of every sum,
 * and so most of them in memory. */
VQKV__INLINE_avx2 void vqkv__add_words_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(x));
}
VQKV__INLINE_avx2 void vqkv__add_bytes_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddb %1, %0, %0" : "+x"(*sum) : "x"(x));
}
VQKV__INLINE_avx2 void vqkv__add_longs_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(x));
}

/* The low bytes of sixteen words; what does not fit a signed byte is cut. */
VQKV__TARGET_avx2 static inline __m128i vqkv__narrowed_avx2(__m256i x)
{
    return _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

/* Sixteen floats times factor, rounded to words. */
VQKV__TARGET_avx2 static inline __m256i vqkv__sixteen_avx2(const float *x, float factor)
{
    __m256 f = _mm256_set1_ps(factor);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* The largest magnitude of sixteen floats; *square += their squares, over lanes. */
VQKV__TARGET_avx2 static inline float vqkv__reach_avx2(const float *x, __m256 *square)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    *square = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, *square));
    return vqkv__hmax_avx2(_mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)));
}

/* The low bytes of sixteen words. */
VQKV__TARGET_avx2 static inline void vqkv__store_bytes_avx2(signed char *out, __m256i x)
{
    x = _mm256_and_si256(x, _mm256_set1_epi16(255));
    _mm_storeu_si128((__m128i *)(void *)out,
                     _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

/* Codes of 32 tokens of a plane, low nibbles or (`second`) high ones. */
VQKV__INLINE_avx2 __m256i vqkv__codes_avx2(const unsigned char *plane, const int second)
{
    __m256i x = vqkv__load_bytes_avx2(plane);
    return _mm256_and_si256(second ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
}

/* dst [32] = (add ? dst : 0) + scale * words of tokens 0..7, 16..23 and of 8..15, 24..31. */
VQKV__INLINE_avx2 void vqkv__flush_avx2(const __m256i *part, float scale, int add, float *dst)
{
    const __m256 f = _mm256_set1_ps(scale);
    int i, k;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (k = 0; k < 2; k++) {
            __m128i words =
                k == 0 ? _mm256_castsi256_si128(part[i]) : _mm256_extracti128_si256(part[i], 1);
            float *to = dst + 16 * k + 8 * i;
            __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
            _mm256_storeu_ps(to, add ? _mm256_fmadd_ps(x, f, _mm256_loadu_ps(to))
                                     : _mm256_mul_ps(x, f));
        }
}

#endif /* VQKV_BLOCK >= 64 */
