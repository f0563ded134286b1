/* Byte kernels, AVX-512 with VBMI and VNNI: what vqkv__byte_ops promises (types.h).
 *
 * Scores: the planes of four codes are interleaved in registers, so that one byte permutation looks
 * up four planes of sixteen tokens and one dot product with ones adds them. Sums: a plane's codes
 * become 8-bit codewords by a shuffle, and a dot product adds codeword times weight over tokens. */

#if VQKV_BLOCK >= 64

/* 32 bytes of plane i of a block, i < planes; any plane's where there is none (its table is 0). */
VQKV__TARGET_avx512 static inline __m512i vqkv__two_planes_avx512(const unsigned char *codes,
                                                                  int plane, int planes)
{
    const int bytes = VQKV_BLOCK / 2;
    const unsigned char *a = codes + (plane < planes ? plane : 0) * bytes;
    const unsigned char *b = codes + (plane + 1 < planes ? plane + 1 : 0) * bytes;
    __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a));
    return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
}

/* The interleaving of bytes first .. first + 15 of four planes: byte 4 t + i is plane i's. */
VQKV__TARGET_avx512 static inline __m512i vqkv__interleave_avx512(int first)
{
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    lane = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x01010101));
    return _mm512_add_epi8(lane,
                           _mm512_set1_epi32((int)(0x60402000u + 0x01010101u * (unsigned)first)));
}

/* Scores of n rows, a constant where it is called, from row r on: quads in 16 bits. */
VQKV__INLINE_avx512 void vqkv__score_wide_avx512(const unsigned char *codes, int planes,
                                                 const vqkv__packed *head,
                                                 const signed char *tables, int rows, int r,
                                                 const int n, float *s)
{
    const __m512i nibble = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1);
    const __m512i base = _mm512_set1_epi32(0x30201000); /* 16 entries a plane of the quad */
    int part, q, k;
    for (part = 0; part < VQKV_BLOCK / 32; part++) { /* 16 tokens and 16 half a block later */
        const __m512i pick = vqkv__interleave_avx512(part % 2 * 16);
        const unsigned char *p = codes + part / 2 * 32;
        const signed char *t = tables + (size_t)r * 128;
        __m512i high[4][2], sum[4][2];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            high[k][0] = high[k][1] = sum[k][0] = sum[k][1] = _mm512_setzero_si512();
        for (q = 0; q < head->wide; q++, t += (size_t)rows * 128) {
            __m512i x = _mm512_permutex2var_epi8(vqkv__two_planes_avx512(p, 4 * q, planes), pick,
                                                 vqkv__two_planes_avx512(p, 4 * q + 2, planes));
            __m512i a = _mm512_ternarylogic_epi32(x, nibble, base, 0xea);
            __m512i b = _mm512_ternarylogic_epi32(_mm512_srli_epi16(x, 4), nibble, base, 0xea);
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i h = _mm512_loadu_si512((const void *)(t + k * 128));
                __m512i l = _mm512_loadu_si512((const void *)(t + k * 128 + 64));
                vqkv__add_bytes_avx512(&high[k][0], ones, _mm512_permutexvar_epi8(a, h));
                vqkv__add_bytes_avx512(&high[k][1], ones, _mm512_permutexvar_epi8(b, h));
                vqkv__add_bytes_avx512(&sum[k][0], _mm512_permutexvar_epi8(a, l), ones);
                vqkv__add_bytes_avx512(&sum[k][1], _mm512_permutexvar_epi8(b, l), ones);
            }
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            float *dst = s + (r + k) * VQKV_BLOCK + part * 16;
            __m512 f = _mm512_set1_ps(head->scale[2 * (r + k)]);
            __m512i w0 = _mm512_add_epi32(_mm512_slli_epi32(high[k][0], 8), sum[k][0]);
            __m512i w1 = _mm512_add_epi32(_mm512_slli_epi32(high[k][1], 8), sum[k][1]);
            float *far = dst + VQKV_BLOCK / 2;
            _mm512_storeu_ps(dst, _mm512_fmadd_ps(_mm512_cvtepi32_ps(w0), f, _mm512_loadu_ps(dst)));
            _mm512_storeu_ps(far, _mm512_fmadd_ps(_mm512_cvtepi32_ps(w1), f, _mm512_loadu_ps(far)));
        }
    }
}

/* The same of quads in 8 bits, 64 tokens at a time. */
VQKV__INLINE_avx512 void vqkv__score_narrow_avx512(const unsigned char *codes, int planes,
                                                   const vqkv__packed *head,
                                                   const signed char *tables, int rows, int r,
                                                   const int n, float *s)
{
    const __m512i nibble = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1);
    const __m512i base = _mm512_set1_epi32(0x30201000);
    const __m512i pick0 = vqkv__interleave_avx512(0), pick1 = vqkv__interleave_avx512(16);
    int c, q, k, i;
    tables += (size_t)head->wide * (size_t)rows * 128 + (size_t)r * 64;
    for (c = 0; c < VQKV_BLOCK / 64; c++, codes += 32) {
        const signed char *t = tables;
        __m512i sum[4][4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_setzero_si512();
        for (q = head->wide; q < (planes + 3) / 4; q++, t += (size_t)rows * 64) {
            __m512i a = vqkv__two_planes_avx512(codes, 4 * q, planes), v[4];
            __m512i b = vqkv__two_planes_avx512(codes, 4 * q + 2, planes);
            v[0] = _mm512_permutex2var_epi8(a, pick0, b);
            v[1] = _mm512_permutex2var_epi8(a, pick1, b);
            v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[0], 4), nibble, base, 0xea);
            v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[1], 4), nibble, base, 0xea);
            v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
            v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i e = _mm512_loadu_si512((const void *)(t + k * 64));
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_avx512(&sum[k][i], ones, _mm512_permutexvar_epi8(v[i], e));
            }
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512 f = _mm512_set1_ps(head->scale[2 * (r + k) + 1]);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                float *dst =
                    s + (r + k) * VQKV_BLOCK + i / 2 * (VQKV_BLOCK / 2) + 32 * c + i % 2 * 16;
                _mm512_storeu_ps(
                    dst, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k][i]), f, _mm512_loadu_ps(dst)));
            }
        }
    }
}

/* Both kinds; most tables have one only. */
VQKV__INLINE_avx512 void vqkv__score_rows_avx512(const unsigned char *codes, int planes,
                                                 const vqkv__packed *head,
                                                 const signed char *tables, int rows, int r,
                                                 const int n, float *s)
{
    if (head->wide > 0)
        vqkv__score_wide_avx512(codes, planes, head, tables, rows, r, n, s);
    if (head->wide < (planes + 3) / 4)
        vqkv__score_narrow_avx512(codes, planes, head, tables, rows, r, n, s);
}

VQKV__TARGET_avx512 static void vqkv__score_bytes_avx512(const unsigned char *codes, int planes,
                                                         const vqkv__packed *head,
                                                         const signed char *tables, int rows,
                                                         float *s)
{
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        vqkv__score_rows_avx512(codes, planes, head, tables, rows, r, 4, s);
    for (; r + 2 <= rows; r += 2)
        vqkv__score_rows_avx512(codes, planes, head, tables, rows, r, 2, s);
    for (; r < rows; r++)
        vqkv__score_rows_avx512(codes, planes, head, tables, rows, r, 1, s);
}

/* Sixteen entries of fp32 times factor, rounded to 32 bits. */
VQKV__TARGET_avx512 static inline __m512i vqkv__scaled_avx512(const float *lut, float factor)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(lut), _mm512_set1_ps(factor)));
}

VQKV__TARGET_avx512 static size_t vqkv__pack_tables_avx512(const float *lut, int planes, int rows,
                                                           const float *energy, vqkv__packed *head,
                                                           signed char *out)
{
    int q, r, p, quads = (planes + 3) / 4;
    float top[VQKV__MAX_ROWS];
    /* Rows share the choice of wide quads: from the last quad on, as many 8-bit ones as keep every
     * row's rounding error within the tolerance. */
    head->wide = quads;
    {
        float square[VQKV__MAX_ROWS];
        for (r = 0; r < rows; r++) {
            __m512 sum = _mm512_setzero_ps();
            for (p = 0; p < planes; p++) {
                __m512 x = _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
                sum = _mm512_fmadd_ps(x, x, sum);
            }
            square[r] = energy[r] + _mm512_reduce_add_ps(sum) / 16.0f; /* mean square of a score */
            top[r] = 0.0f;
        }
        for (q = quads - 1; q >= 0; q--) {
            int fits = 1;
            for (r = 0; r < rows; r++) {
                float high = top[r], limit;
                for (p = 4 * q; p < 4 * q + 4 && p < planes; p++) {
                    __m512 x = _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
                    float m = _mm512_reduce_max_ps(_mm512_abs_ps(x));
                    high = m > high ? m : high;
                }
                limit = VQKV__TABLE_ERROR * VQKV__TABLE_ERROR * square[r];
                /* rounding to high / 127: variance of its square / 12 a plane */
                if (high * high / (127.0f * 127.0f * 12.0f) * (float)(planes - 4 * q) > limit)
                    fits = 0;
                top[r] = high;
            }
            if (!fits)
                break;
            head->wide = q;
        }
    }
    for (r = 0; r < rows; r++) {
        float narrow = 0.0f, widest = 0.0f;
        for (p = 0; p < planes; p++) {
            __m512 x = _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
            float m = _mm512_reduce_max_ps(_mm512_abs_ps(x));
            if (p < 4 * head->wide)
                widest = m > widest ? m : widest;
            else
                narrow = m > narrow ? m : narrow;
        }
        head->scale[2 * r] = widest / 32512.0f; /* 127 * 256: the high byte fits */
        head->scale[2 * r + 1] = narrow / 127.0f;
    }
    for (q = 0; q < quads; q++)
        for (r = 0; r < rows; r++) {
            int wide = q < head->wide;
            float scale = head->scale[2 * r + !wide];
            float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
            for (p = 4 * q; p < 4 * q + 4; p++, out += 16) {
                __m512i x = _mm512_setzero_si512();
                if (p < planes)
                    x = vqkv__scaled_avx512(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16,
                                            factor);
                if (wide) {
                    _mm_storeu_si128((__m128i *)(void *)(out + 64), _mm512_cvtepi32_epi8(x));
                    x = _mm512_srai_epi32(x, 8);
                }
                _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(x));
            }
            out += wide ? 64 : 0;
        }
    return (size_t)rows * 64 * (size_t)(quads + head->wide);
}

VQKV__TARGET_avx512 static void vqkv__pack_books_avx512(const float *book, int n, signed char *out,
                                                        float *scale)
{
    int i;
    for (i = 0; i < n; i++) {
        float top = _mm512_reduce_max_ps(_mm512_abs_ps(_mm512_loadu_ps(book + i * 16)));
        scale[i] = top / 127.0f;
        _mm_storeu_si128((__m128i *)(void *)(out + i * 16),
                         _mm512_cvtepi32_epi8(
                             vqkv__scaled_avx512(book + i * 16, top > 0.0f ? 127.0f / top : 0)));
    }
}

VQKV__TARGET_avx512 static void vqkv__pack_weights_avx512(const float *w, int blocks, int rows,
                                                          unsigned char *out, unsigned char *rest,
                                                          float *scale)
{
    /* Thresholds spread evenly over (0, 1): small weights are not all rounded away, however large
     * the row's largest is; on average over positions, rounding keeps the sum. */
    const __m512 dither =
        _mm512_mul_ps(_mm512_set_ps(31, 15, 23, 7, 27, 11, 19, 3, 29, 13, 21, 5, 25, 9, 17, 1),
                      _mm512_set1_ps(1.0f / 32.0f));
    int b, r, t;
    for (r = 0; r < rows; r++) {
        __m512 high = _mm512_setzero_ps(), factor;
        float top;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16)
                high = _mm512_max_ps(
                    high,
                    _mm512_loadu_ps(w + ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + t));
        top = _mm512_reduce_max_ps(high);
        scale[r] = top / 254.0f;
        factor = _mm512_set1_ps(top > 0.0f ? 254.0f / top : 0.0f);
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16) {
                size_t at = ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(w + at), factor);
                __m512i i = _mm512_cvttps_epi32(rest != NULL ? x : _mm512_add_ps(x, dither));
                _mm_storeu_si128((__m128i *)(void *)(out + at), _mm512_cvtusepi32_epi8(i));
                if (rest == NULL)
                    continue;
                x = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_cvtepi32_ps(i)), _mm512_set1_ps(255.0f));
                _mm_storeu_si128((__m128i *)(void *)(rest + at),
                                 _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x)));
            }
    }
}

/* The codes of tokens t .. t + 63 of a plane, in low nibbles. */
VQKV__TARGET_avx512 static inline __m512i vqkv__plane_codes_avx512(const unsigned char *plane,
                                                                   int t)
{
    __m512i x;
#if VQKV_BLOCK == 64
    (void)t;
    x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)plane));
    x = _mm512_mask_srli_epi16(x, 0xffff0000u, x, 4);
#else
    x = _mm512_loadu_si512((const void *)(plane + t % (VQKV_BLOCK / 2)));
    x = t < VQKV_BLOCK / 2 ? x : _mm512_srli_epi16(x, 4);
#endif
    return _mm512_and_si512(x, _mm512_set1_epi8(15));
}

/* Four channels of a run from channel c on (of `n_channels`, counted plane by plane), `each` of
 * them of one plane, n rows from row r on; each and n are constants where it is called. */
VQKV__INLINE_avx512 void vqkv__sum_rows_avx512(const unsigned char *const *codes, size_t offset,
                                               int blocks, const vqkv__run *run, int c,
                                               int n_channels, const int each,
                                               const signed char *book, const float *book_scale,
                                               const unsigned char *weights, const float *scale,
                                               int rows, int r, const int n, float *acc,
                                               size_t stride)
{
    __m512i sum[4][4], table[4];
    size_t plane[4];
    int b, k, t, i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        int channel = c + i < n_channels ? c + i : n_channels - 1; /* twice, and not stored */
        table[i] = _mm512_broadcast_i32x4(
            _mm_loadu_si128((const __m128i *)(const void *)(book + channel * 16)));
        plane[i] = offset + (size_t)(each == 4         ? c / run->width
                                     : each == 2       ? channel / 2
                                     : run->width == 1 ? channel
                                                       : channel / run->width) *
                                (VQKV_BLOCK / 2);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = _mm512_setzero_si512();
    }
    for (b = 0; b < blocks; b++)
        for (t = 0; t < VQKV_BLOCK; t += 64) {
            const unsigned char *w =
                weights + ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
            __m512i x, v[4];
            x = vqkv__plane_codes_avx512(codes[b] + plane[0], t);
            v[0] = _mm512_shuffle_epi8(table[0], x);
#pragma GCC unroll 4
            for (i = 1; i < 4; i++) {
                if (i % each == 0)
                    x = vqkv__plane_codes_avx512(codes[b] + plane[i], t);
                v[i] = _mm512_shuffle_epi8(table[i], x);
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i p = _mm512_loadu_si512((const void *)(w + k * VQKV_BLOCK));
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_avx512(&sum[k][i], p, v[i]);
            }
        }
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        int latent = c + i; /* no division where there is one stage */
        if (run->stages > 1)
            latent = latent / run->width / run->stages * run->width + latent % run->width;
        if (c + i >= n_channels)
            continue;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            float *dst = acc + ((size_t)(r + k) * stride + (size_t)latent) * 16;
            __m512 f = _mm512_set1_ps(scale[r + k] * book_scale[c + i]);
            _mm512_storeu_ps(
                dst, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k][i]), f, _mm512_loadu_ps(dst)));
        }
    }
}

VQKV__TARGET_avx512 static void
vqkv__sum_bytes_avx512(const unsigned char *const *codes, size_t offset, int blocks,
                       const vqkv__run *run, const signed char *book, const float *book_scale,
                       const unsigned char *weights, const float *scale, int rows, float *acc,
                       size_t stride)
{
    int c, r, n = run->planes * run->width;
#define VQKV__X(each, n_rows)                                                                      \
    vqkv__sum_rows_avx512(codes, offset, blocks, run, c, n, each, book, book_scale, weights,       \
                          scale, rows, r, n_rows, acc, stride)
#define VQKV__SUM(n_rows)                                                                          \
    (run->width % 4 == 0 ? VQKV__X(4, n_rows)                                                      \
     : run->width == 2   ? VQKV__X(2, n_rows)                                                      \
                         : VQKV__X(1, n_rows))
    for (c = 0; c < n; c += 4) {
        for (r = 0; r + 4 <= rows; r += 4)
            VQKV__SUM(4);
        for (; r + 2 <= rows; r += 2)
            VQKV__SUM(2);
        for (; r < rows; r++)
            VQKV__SUM(1);
    }
#undef VQKV__SUM
#undef VQKV__X
}

static const vqkv__byte_ops vqkv__byte_ops_avx512 = {
    vqkv__map_basis_avx512,
    vqkv__to_words_avx512,
    vqkv__map_words_avx512,
    vqkv__dot_books_avx512,
    vqkv__dot_queries_avx512,
    vqkv__dot_scores_avx512,
    vqkv__pack_tables_avx512,
    vqkv__score_bytes_avx512,
    vqkv__pack_books_avx512,
    vqkv__pack_weights_avx512,
    vqkv__sum_bytes_avx512,
    255.0f,
    0.05f,
};

#endif /* VQKV_BLOCK >= 64 */
