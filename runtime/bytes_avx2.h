/* Byte kernels, AVX2: what vqkv__byte_ops promises (types.h). Tables are those of the AVX-512
 * kernels. Scores: a shuffle looks up 32 tokens of a plane; sums of unsigned bytes are kept as sums
 * of 16-bit words and of their high halves. Sums: shuffled codewords times weights of 7 bits, so
 * that no pair of products leaves 16 bits. */

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

VQKV__TARGET_avx2 static void vqkv__pack_tables_avx2(const float *lut, int planes, int rows,
                                                     const float *energy, vqkv__packed *head,
                                                     signed char *out)
{
    int q, r, p, quads = (planes + 3) / 4;
    head->wide = 0;
    for (r = 0; r < rows; r++) { /* from the last quad on, as many 8-bit ones as are allowed */
        __m256 square = _mm256_setzero_ps();
        float limit, top = 0.0f;
        for (p = 0; p < planes; p++)
            vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
        /* Half of what is allowed where the strongest channels are no tables. */
        limit = 0.5f * VQKV__TABLE_ERROR * VQKV__TABLE_ERROR *
                (energy[r] + vqkv__hsum_avx2(square) / 16.0f);
        for (q = quads - 1; q >= head->wide; q--) {
            for (p = 4 * q; p < 4 * q + 4 && p < planes; p++) {
                float m =
                    vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
                top = m > top ? m : top;
            }
            if (top * top / (127.0f * 127.0f * 12.0f) * (float)(planes - 4 * q) > limit)
                head->wide = q + 1;
        }
    }
    for (r = 0; r < rows; r++) {
        float narrow = 0.0f, widest = 0.0f;
        __m256 square = _mm256_setzero_ps();
        for (p = 0; p < planes; p++) {
            float m = vqkv__reach_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16, &square);
            if (p < 4 * head->wide)
                widest = m > widest ? m : widest;
            else
                narrow = m > narrow ? m : narrow;
        }
        head->scale[2 * r] = widest / 32512.0f;
        head->scale[2 * r + 1] = narrow / 127.0f;
    }
    for (q = 0; q < quads; q++)
        for (r = 0; r < rows; r++) {
            int wide = q < head->wide;
            float scale = head->scale[2 * r + !wide];
            for (p = 4 * q; p < 4 * q + 4; p++, out += 16) {
                __m256i x = _mm256_setzero_si256();
                if (p < planes && scale > 0.0f)
                    x = vqkv__sixteen_avx2(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16,
                                           1.0f / scale);
                if (wide) { /* low bytes are unsigned: move them through the signed packing */
                    __m256i low = _mm256_and_si256(x, _mm256_set1_epi16(255));
                    _mm_storeu_si128((__m128i *)(void *)(out + 64),
                                     _mm_packus_epi16(_mm256_castsi256_si128(low),
                                                      _mm256_extracti128_si256(low, 1)));
                    x = _mm256_srai_epi16(x, 8);
                }
                _mm_storeu_si128((__m128i *)(void *)out, vqkv__narrowed_avx2(x));
            }
            out += wide ? 64 : 0;
        }
    head->bytes = rows * 64 * (quads + head->wide);
}

/* Sums of bytes under way: of 16-bit words that hold two each, and of their high halves. */
typedef struct vqkv__wordsum_avx2 {
    __m256i all, high;
} vqkv__wordsum_avx2;

VQKV__INLINE_avx2 void vqkv__add_codes_avx2(vqkv__wordsum_avx2 *sum, __m256i table, __m256i codes)
{
    __m256i x = _mm256_shuffle_epi8(table, codes);
    sum->all = _mm256_add_epi16(sum->all, x);
    sum->high = _mm256_add_epi16(sum->high, _mm256_srli_epi16(x, 8));
}

/* dst [32] = (add ? dst : 0) + scale * (the sums - bias). */
VQKV__INLINE_avx2 void vqkv__flush_avx2(const vqkv__wordsum_avx2 *sum, int bias, float scale,
                                        int add, float *dst)
{
    __m256i even = _mm256_sub_epi16(sum->all, _mm256_slli_epi16(sum->high, 8));
    __m256i part[2];
    int i, k;
    part[0] = _mm256_unpacklo_epi16(even, sum->high); /* tokens 0..7, 16..23 */
    part[1] = _mm256_unpackhi_epi16(even, sum->high);
#pragma GCC unroll 2
    for (i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (k = 0; k < 2; k++) {
            __m128i words =
                k == 0 ? _mm256_castsi256_si128(part[i]) : _mm256_extracti128_si256(part[i], 1);
            float *to = dst + 16 * k + 8 * i;
            __m256 x = _mm256_cvtepi32_ps(
                _mm256_sub_epi32(_mm256_cvtepu16_epi32(words), _mm256_set1_epi32(bias)));
            __m256 old = add ? _mm256_loadu_ps(to) : _mm256_setzero_ps();
            _mm256_storeu_ps(to, _mm256_fmadd_ps(x, _mm256_set1_ps(scale), old));
        }
}

/* Tables of n planes for one row at `step` bytes a quad; `flip`: entries are signed. At most 256
 * planes, so that no sum leaves 16 bits. */
VQKV__INLINE_avx2 void vqkv__score_planes_avx2(const unsigned char *codes, int n,
                                               const signed char *tables, size_t step, int flip,
                                               float scale, int add, float *s)
{
    const __m256i nibble = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(flip ? -128 : 0);
    int c, p;
    for (c = 0; c < VQKV_BLOCK / 64; c++, codes += 32) {
        vqkv__wordsum_avx2 low, high;
        low.all = low.high = high.all = high.high = _mm256_setzero_si256();
        for (p = 0; p < n; p++) {
            __m256i x = _mm256_loadu_si256(
                (const __m256i *)(const void *)(codes + (size_t)p * (VQKV_BLOCK / 2)));
            __m256i t = _mm256_xor_si256(
                _mm256_broadcastsi128_si256(_mm_loadu_si128(
                    (const __m128i *)(const void *)(tables + (size_t)(p / 4) * step + p % 4 * 16))),
                sign);
            vqkv__add_codes_avx2(&low, t, _mm256_and_si256(x, nibble));
            vqkv__add_codes_avx2(&high, t, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
        }
        vqkv__flush_avx2(&low, flip ? 128 * n : 0, scale, add, s + 32 * c);
        vqkv__flush_avx2(&high, flip ? 128 * n : 0, scale, add, s + VQKV_BLOCK / 2 + 32 * c);
    }
}

/* One block. */
VQKV__TARGET_avx2 static void vqkv__score_one_avx2(const unsigned char *codes, int planes,
                                                   const vqkv__packed *head,
                                                   const signed char *tables, int rows, int add,
                                                   float *s)
{
    int r, p, n, wide = 4 * head->wide < planes ? 4 * head->wide : planes;
    for (r = 0; r < rows; r++, s += VQKV_BLOCK) {
        size_t step = (size_t)rows * 128;
        for (p = 0; p < wide; p += 256) {
            const signed char *t = tables + (size_t)(p / 4) * step + (size_t)r * 128;
            const unsigned char *from = codes + (size_t)p * (VQKV_BLOCK / 2);
            n = wide - p < 256 ? wide - p : 256;
            vqkv__score_planes_avx2(from, n, t, step, 1, 256.0f * head->scale[2 * r], add || p > 0,
                                    s);
            vqkv__score_planes_avx2(from, n, t + 64, step, 0, head->scale[2 * r], 1, s);
        }
        for (p = wide; p < planes; p += 256) {
            const signed char *t = tables + (size_t)head->wide * step + (size_t)r * 64 +
                                   (size_t)((p - wide) / 4) * (size_t)rows * 64;
            n = planes - p < 256 ? planes - p : 256;
            vqkv__score_planes_avx2(codes + (size_t)p * (VQKV_BLOCK / 2), n, t, (size_t)rows * 64,
                                    1, head->scale[2 * r + 1], add || p > 0, s);
        }
    }
}

VQKV__TARGET_avx2 static void vqkv__score_bytes_avx2(const unsigned char *const *codes,
                                                     size_t offset, int blocks, int planes,
                                                     const vqkv__packed *head,
                                                     const signed char *tables, int rows, int add,
                                                     float *s)
{
    int b;
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

VQKV__TARGET_avx2 static void vqkv__pack_weights_avx2(const float *p, const float *gain, int blocks,
                                                      int rows, unsigned char *out,
                                                      unsigned char *rest, float *scale)
{
    /* Thresholds as in the AVX-512 kernel; 126 keeps a dithered weight below 127. */
    static const float dither[16] = {0.03125f, 0.53125f, 0.28125f, 0.78125f, 0.15625f, 0.65625f,
                                     0.40625f, 0.90625f, 0.09375f, 0.59375f, 0.34375f, 0.84375f,
                                     0.21875f, 0.71875f, 0.46875f, 0.96875f};
    int b, r, t, i;
    for (r = 0; r < rows; r++) {
        __m256 high = _mm256_setzero_ps();
        float top, factor, x[16], left[16];
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 8) {
                size_t at = ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
                high =
                    _mm256_max_ps(high, _mm256_mul_ps(_mm256_loadu_ps(p + at),
                                                      _mm256_loadu_ps(gain + b * VQKV_BLOCK + t)));
            }
        top = vqkv__hmax_avx2(high);
        scale[r] = top / 126.0f;
        factor = top > 0.0f ? 126.0f / top : 0.0f;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16) {
                size_t at = ((size_t)b * (size_t)rows + (size_t)r) * VQKV_BLOCK + (size_t)t;
                for (i = 0; i < 16; i += 8) {
                    __m256 y = _mm256_mul_ps(_mm256_loadu_ps(p + at + i), _mm256_set1_ps(factor));
                    y = _mm256_mul_ps(y, _mm256_loadu_ps(gain + b * VQKV_BLOCK + t + i));
                    __m256 down = _mm256_floor_ps(
                        rest != NULL ? y : _mm256_add_ps(y, _mm256_loadu_ps(dither + i)));
                    _mm256_storeu_ps(x + i, down);
                    _mm256_storeu_ps(left + i, _mm256_sub_ps(y, down));
                }
                _mm_storeu_si128((__m128i *)(void *)(out + at),
                                 vqkv__narrowed_avx2(vqkv__sixteen_avx2(x, 1.0f)));
                if (rest != NULL)
                    _mm_storeu_si128((__m128i *)(void *)(rest + at),
                                     vqkv__narrowed_avx2(vqkv__sixteen_avx2(left, 127.0f)));
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
                                                   int rows, float *acc, size_t stride)
{
    int p, w, r;
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
    vqkv__pack_tables_avx2,
    vqkv__score_bytes_avx2,
    vqkv__pack_books_avx2,
    vqkv__pack_weights_avx2,
    vqkv__sum_bytes_avx2,
    127.0f,
    0.02f,
};

#endif /* VQKV_BLOCK >= 64 */
