/* Byte kernels, AVX2: what vqkv__byte_ops promises (types.h). Scores: a shuffle looks up 32 tokens
 * of a plane; 16-bit entries are summed modulo 2^16, byte by byte, in units such that no sum leaves
 * 16 bits. Sums: shuffled codewords times weights of 7 bits, so that no pair of products does. */

#if VQKV_BLOCK >= 64

/* Sixteen floats times factor, rounded to words. */
VQKV__TARGET_avx2 static inline __m256i vqkv__sixteen_avx2(const float *x, float factor)
{
    __m256 f = _mm256_set1_ps(factor);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* The low bytes of sixteen words; what does not fit a signed byte is cut. */
VQKV__TARGET_avx2 static inline __m128i vqkv__narrowed_avx2(__m256i x)
{
    return _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

/* The largest magnitude of sixteen floats; *square += their squares, over lanes. */
VQKV__TARGET_avx2 static inline float vqkv__reach_avx2(const float *x, __m256 *square)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    *square = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, *square));
    return vqkv__hmax_avx2(_mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)));
}

/* Planes whose scores are summed in 16 bits. */
#define VQKV__CHUNK_avx2 64

/* Wide quads: from the last quad on, as many 8-bit ones as are allowed. */
VQKV__TARGET_avx2 static int vqkv__wide_quads_avx2(const float *lut, int planes, int rows,
                                                   const float *energy)
{
    int q, r, p, quads = (planes + 3) / 4, wide = 0;
    for (r = 0; r < rows; r++) {
        __m256 square = _mm256_setzero_ps();
        float limit, top = 0.0f;
        for (p = 0; p < planes; p++)
            vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
        /* Half the tolerance: weights of 7 bits err more than those of 8 do. */
        limit = 0.25f * VQKV__TABLE_ERROR * VQKV__TABLE_ERROR *
                (energy[r] + vqkv__hsum_avx2(square) / 16.0f);
        for (q = quads - 1; q >= wide; q--) {
            for (p = 4 * q; p < 4 * q + 4 && p < planes; p++) {
                float m =
                    vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
                top = m > top ? m : top;
            }
            if (top * top / (127.0f * 127.0f * 12.0f) * (float)(planes - 4 * q) > limit)
                wide = q + 1;
        }
    }
    return wide;
}

/* What an entry of row r counts in 16 bits, and in 8 bits from plane `wide` on. */
VQKV__TARGET_avx2 static void vqkv__scales_avx2(const float *lut, int planes, int wide, int rows,
                                                int r, float *scale)
{
    __m256 square = _mm256_setzero_ps();
    float sum = 0.0f, m;
    int p;
    scale[0] = scale[1] = 0.0f;
    for (p = 0; p < planes; p++) {
        m = vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
        sum = p % VQKV__CHUNK_avx2 == 0 ? m : sum + m;
        if (p < wide)
            scale[0] = sum > scale[0] ? sum : scale[0];
        else
            scale[1] = m > scale[1] ? m : scale[1];
    }
    scale[0] /= 32767.0f - VQKV__CHUNK_avx2; /* rounding may add half a unit a plane */
    scale[1] /= 127.0f;
}

/* The low bytes of sixteen words. */
VQKV__TARGET_avx2 static inline void vqkv__store_bytes_avx2(signed char *out, __m256i x)
{
    x = _mm256_and_si256(x, _mm256_set1_epi16(255));
    _mm_storeu_si128((__m128i *)(void *)out,
                     _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

VQKV__TARGET_avx2 static void vqkv__pack_tables_avx2(const float *lut, int planes, int rows,
                                                     const float *energy, vqkv__packed *head,
                                                     signed char *out)
{
    int q, r, p, quads = (planes + 3) / 4;
    head->wide = vqkv__wide_quads_avx2(lut, planes, rows, energy);
    for (r = 0; r < rows; r++)
        vqkv__scales_avx2(lut, planes, 4 * head->wide, rows, r, head->scale + 2 * r);
    for (q = 0; q < quads; q++)
        for (r = 0; r < rows; r++) {
            int wide = q < head->wide;
            float scale = head->scale[2 * r + !wide];
            for (p = 4 * q; p < 4 * q + 4; p++, out += 16) {
                __m256i x = _mm256_setzero_si256();
                if (p < planes && scale > 0.0f)
                    x = vqkv__sixteen_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16,
                                           1.0f / scale);
                if (wide) {
                    vqkv__store_bytes_avx2(out, _mm256_srli_epi16(x, 8));
                    vqkv__store_bytes_avx2(out + 64, x);
                } else { /* unsigned, 128 more than they are */
                    vqkv__store_bytes_avx2(out, _mm256_xor_si256(x, _mm256_set1_epi16(128)));
                }
            }
            out += wide ? 64 : 0;
        }
    head->bytes = rows * 64 * (quads + head->wide);
}

/* dst [32] = (add ? dst : 0) + scale * words of even tokens and of odd ones. */
VQKV__INLINE_avx2 void vqkv__flush_avx2(__m256i even, __m256i odd, float scale, int add, float *dst)
{
    __m256i part[2];
    int i, k;
    part[0] = _mm256_unpacklo_epi16(even, odd); /* tokens 0..7, 16..23 */
    part[1] = _mm256_unpackhi_epi16(even, odd);
#pragma GCC unroll 2
    for (i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (k = 0; k < 2; k++) {
            __m128i words =
                k == 0 ? _mm256_castsi256_si128(part[i]) : _mm256_extracti128_si256(part[i], 1);
            float *to = dst + 16 * k + 8 * i;
            __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
            x = _mm256_mul_ps(x, _mm256_set1_ps(scale));
            _mm256_storeu_ps(to, add ? _mm256_add_ps(x, _mm256_loadu_ps(to)) : x);
        }
}

VQKV__INLINE_avx2 __m256i vqkv__table_bytes_avx2(const signed char *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* sum += x, words or bytes. Left to itself gcc 12 keeps two copies of every sum, and so most of
 * them in memory. */
VQKV__INLINE_avx2 void vqkv__add_words_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(x));
}
VQKV__INLINE_avx2 void vqkv__add_bytes_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddb %1, %0, %0" : "+x"(*sum) : "x"(x));
}

/* Scores of 32 tokens, the codes' low nibbles or (`second`) high ones, for n rows from row r on,
 * through tables of planes from .. to - 1, at most CHUNK: all wide, or none; n and the flags are
 * constants. Unsigned bytes are summed as words of two each and as their high halves; high bytes of
 * 16-bit entries modulo 2^8, since nothing of their sums beyond that counts. */
VQKV__INLINE_avx2 void vqkv__score_rows_avx2(const unsigned char *codes, int from, int to,
                                             const vqkv__packed *head, const signed char *tables,
                                             int rows, int r, const int n, const int wide,
                                             const int second, int add, float *s)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const size_t entry = wide ? 128 : 64, step = (size_t)rows * entry;
    __m256i all[4], odd[4], high[4];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        all[k] = odd[k] = high[k] = _mm256_setzero_si256();
    tables += (size_t)r * entry;
    for (p = from; p < to; p++) {
        const signed char *t = tables + (size_t)((p - from) / 4) * step + p % 4 * 16;
        __m256i x = _mm256_loadu_si256(
            (const __m256i *)(const void *)(codes + (size_t)p * (VQKV_BLOCK / 2)));
        x = _mm256_and_si256(second ? _mm256_srli_epi16(x, 4) : x, nibble);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const signed char *e = t + (size_t)k * entry;
            __m256i low = _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e + (wide ? 64 : 0)), x);
            vqkv__add_words_avx2(&all[k], low);
            vqkv__add_words_avx2(&odd[k], _mm256_srli_epi16(low, 8));
            if (wide)
                vqkv__add_bytes_avx2(&high[k], _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e), x));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m256i even = _mm256_sub_epi16(all[k], _mm256_slli_epi16(odd[k], 8));
        if (wide) {
            even = _mm256_add_epi16(even, _mm256_slli_epi16(high[k], 8));
            odd[k] = _mm256_add_epi16(odd[k], _mm256_and_si256(high[k], _mm256_set1_epi16(-256)));
        } else {
            const __m256i bias = _mm256_set1_epi16((short)(128 * (to - from)));
            even = _mm256_sub_epi16(even, bias);
            odd[k] = _mm256_sub_epi16(odd[k], bias);
        }
        vqkv__flush_avx2(even, odd[k], head->scale[2 * (r + k) + !wide], add,
                         s + (r + k) * VQKV_BLOCK);
    }
}

/* All rows of one block, through tables of planes from .. to - 1. */
VQKV__INLINE_avx2 void vqkv__score_planes_avx2(const unsigned char *codes, int from, int to,
                                               const vqkv__packed *head, const signed char *tables,
                                               int rows, const int wide, int add, float *s)
{
    int t, r;
#define VQKV__X(n, second)                                                                         \
    vqkv__score_rows_avx2(codes + t, from, to, head, tables, rows, r, n, wide, second, add,        \
                          s + t + second * (VQKV_BLOCK / 2))
    for (t = 0; t < VQKV_BLOCK / 2; t += 32) {
        for (r = 0; r + 4 <= rows; r += 4) {
            VQKV__X(4, 0);
            VQKV__X(4, 1);
        }
        for (; r < rows; r++) {
            VQKV__X(1, 0);
            VQKV__X(1, 1);
        }
    }
#undef VQKV__X
}

/* One block. */
VQKV__TARGET_avx2 static void vqkv__score_one_avx2(const unsigned char *codes, int planes,
                                                   const vqkv__packed *head,
                                                   const signed char *tables, int rows, int add,
                                                   float *s)
{
    int p, end, wide = 4 * head->wide < planes ? 4 * head->wide : planes;
    for (p = 0; p < planes; p = end, add = 1) {
        int is_wide = p < wide;
        end = p - p % VQKV__CHUNK_avx2 + VQKV__CHUNK_avx2;
        end = end < (is_wide ? wide : planes) ? end : is_wide ? wide : planes;
        if (is_wide)
            vqkv__score_planes_avx2(codes, p, end, head, tables, rows, 1, add, s);
        else
            vqkv__score_planes_avx2(codes, p, end, head, tables, rows, 0, add, s);
        tables += (size_t)((end - p + 3) / 4) * (size_t)rows * (is_wide ? 128 : 64);
    }
}

VQKV__TARGET_avx2 static void vqkv__score_bytes_avx2(const unsigned char *const *codes,
                                                     size_t offset, int blocks, int planes,
                                                     const vqkv__packed *head,
                                                     const signed char *tables, int rows, int add,
                                                     vqkv__asked *ahead, float *s)
{
    int b;
    (void)ahead; /* blocks take so long here that all may be asked for at once, before them */
    for (b = 0; b < blocks; b++)
        vqkv__score_one_avx2(codes[b] + offset, planes, head, tables, rows, add,
                             s + b * rows * VQKV_BLOCK);
}

VQKV__TARGET_avx2 static void vqkv__pack_books_avx2(const float *book, int n, signed char *out,
                                                    float *scale)
{
    int i;
    for (i = 0; i < n; i++) {
        __m256 square = _mm256_setzero_ps();
        float top = vqkv__reach_avx2(book + i * 16, &square);
        scale[i] = top / 127.0f;
        _mm_storeu_si128((__m128i *)(void *)(out + i * 16),
                         vqkv__narrowed_avx2(
                             vqkv__sixteen_avx2(book + i * 16, top > 0.0f ? 127.0f / top : 0.0f)));
    }
}

/* Sixteen words of what two registers of floats say, rounded down. */
VQKV__TARGET_avx2 static inline __m256i vqkv__floored_avx2(__m256 a, __m256 b)
{
    return _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvttps_epi32(a), _mm256_cvttps_epi32(b)), 0xd8);
}

/* Sixteen weights p * gain * factor, what they are added to `threshold` and rounded down; if `rest`
 * is not NULL, it gets what is left. */
VQKV__INLINE_avx2 void vqkv__pack_sixteen_avx2(const float *p, const float *gain, __m256 factor,
                                               const float *threshold, unsigned char *out,
                                               unsigned char *rest)
{
    __m256 x[2], left[2];
    int i;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        __m256 w = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(gain + 8 * i));
        x[i] = _mm256_fmadd_ps(w, factor, _mm256_loadu_ps(threshold + 8 * i));
        if (rest != NULL)
            left[i] = _mm256_fmadd_ps(_mm256_sub_ps(x[i], _mm256_floor_ps(x[i])),
                                      _mm256_set1_ps(127.0f), _mm256_set1_ps(0.5f));
    }
    _mm_storeu_si128((__m128i *)(void *)out, vqkv__narrowed_avx2(vqkv__floored_avx2(x[0], x[1])));
    if (rest != NULL)
        _mm_storeu_si128((__m128i *)(void *)rest,
                         vqkv__narrowed_avx2(vqkv__floored_avx2(left[0], left[1])));
}

VQKV__TARGET_avx2 static void vqkv__pack_weights_avx2(const float *p, const float *gain, int blocks,
                                                      int rows, unsigned char *out,
                                                      unsigned char *rest, float *scale)
{
    /* Thresholds as in the AVX-512 kernel; 126 keeps a dithered weight below 127. */
    static const float dither[16] = {0.03125f, 0.53125f, 0.28125f, 0.78125f, 0.15625f, 0.65625f,
                                     0.40625f, 0.90625f, 0.09375f, 0.59375f, 0.34375f, 0.84375f,
                                     0.21875f, 0.71875f, 0.46875f, 0.96875f};
    static const float none[16] = {0.0f};
    int b, r, t;
    for (r = 0; r < rows; r++) {
        __m256 high = _mm256_setzero_ps(), factor;
        float top;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 8) {
                size_t at = ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
                high =
                    _mm256_max_ps(high, _mm256_mul_ps(_mm256_loadu_ps(p + at),
                                                      _mm256_loadu_ps(gain + b * VQKV_BLOCK + t)));
            }
        top = vqkv__hmax_avx2(high);
        scale[r] = top / 126.0f;
        factor = _mm256_set1_ps(top > 0.0f ? 126.0f / top : 0.0f);
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16) {
                size_t at = ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
                const float *g = gain + b * VQKV_BLOCK + t;
                if (rest == NULL)
                    vqkv__pack_sixteen_avx2(p + at, g, factor, dither, out + at, NULL);
                else
                    vqkv__pack_sixteen_avx2(p + at, g, factor, none, out + at, rest + at);
            }
    }
}

/* One channel, n rows from row r on: n is a constant where it is called. */
VQKV__INLINE_avx2 void vqkv__sum_channel_avx2(const unsigned char *const *codes, size_t plane,
                                              int blocks, const signed char *book, float book_scale,
                                              const unsigned char *weights, const float *scale,
                                              int rows, int r, const int n, float *acc,
                                              size_t stride)
{
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)book));
    __m256i sum[4];
    int b, k, t;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k] = _mm256_setzero_si256();
    for (b = 0; b < blocks; b++)
        for (t = 0; t < VQKV_BLOCK / 2; t += 32) {
            const unsigned char *w =
                weights + ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
            __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(codes[b] + plane + t));
            __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
            __m256i high =
                _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                const unsigned char *p = w + k * VQKV_BLOCK;
                __m256i u =
                    _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p), low);
                __m256i v = _mm256_maddubs_epi16(
                    _mm256_loadu_si256((const __m256i *)(const void *)(p + VQKV_BLOCK / 2)), high);
                sum[k] = _mm256_add_epi32(sum[k], _mm256_add_epi32(_mm256_madd_epi16(u, ones),
                                                                   _mm256_madd_epi16(v, ones)));
            }
        }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *dst = acc + (size_t)(r + k) * stride * 8;
        __m256 f = _mm256_set1_ps(scale[r + k] * book_scale);
        _mm256_storeu_ps(dst, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k]), f, _mm256_loadu_ps(dst)));
    }
}

VQKV__TARGET_avx2 static void vqkv__sum_bytes_avx2(const unsigned char *const *codes, size_t offset,
                                                   int blocks, const vqkv__run *run,
                                                   const signed char *book, const float *book_scale,
                                                   const unsigned char *weights, const float *scale,
                                                   int rows, vqkv__asked *ahead, float *acc,
                                                   size_t stride)
{
    int p, w, r;
    (void)ahead;
    for (p = 0; p < run->planes; p++) {
        size_t plane = offset + (size_t)p * (VQKV_BLOCK / 2);
        for (w = 0; w < run->width; w++, book += 16, book_scale++) {
            float *dst = acc + (size_t)(p / run->stages * run->width + w) * 8;
            for (r = 0; r + 4 <= rows; r += 4)
                vqkv__sum_channel_avx2(codes, plane, blocks, book, *book_scale, weights, scale,
                                       rows, r, 4, dst, stride);
            for (; r < rows; r++)
                vqkv__sum_channel_avx2(codes, plane, blocks, book, *book_scale, weights, scale,
                                       rows, r, 1, dst, stride);
        }
    }
}

/* No dots and no batches: keys are scored through tables, and where every block has a frame of its
 * own, in fp32. */
static const vqkv__byte_ops vqkv__byte_ops_avx2 = {
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    vqkv__pack_tables_avx2,
    vqkv__score_bytes_avx2,
    vqkv__pack_books_avx2,
    vqkv__pack_weights_avx2,
    vqkv__sum_bytes_avx2,
    127.0f,
    0.02f,
};

#endif /* VQKV_BLOCK >= 64 */
