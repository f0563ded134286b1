/* Byte kernels, AVX-512 with VBMI and VNNI: what vqkv__byte_ops promises (types.h).
 *
 * Scores: the planes of four codes are interleaved in registers, so that one byte permutation looks
 * up four planes of sixteen tokens and one dot product adds them: with ones, or, where entries have
 * 8 bits, with the step of each plane's entries. */

#if VQKV_BLOCK >= 64

/* A quad of planes from `plane` on, 32 tokens and 32 half a block later of each: [4, 32] bytes in
 * two registers. Anything stands where no plane is: its table is 0. */
VQKV__INLINE_avx512 void vqkv__quad_avx512(const unsigned char *codes, int plane, int planes,
                                           __m512i *low, __m512i *high)
{
    const int bytes = VQKV_BLOCK / 2;
    const unsigned char *p = codes + plane * bytes;
#if VQKV_BLOCK == 64 /* planes lie side by side */
    if (plane + 4 <= planes) {
        *low = _mm512_loadu_si512((const void *)p);
        *high = _mm512_loadu_si512((const void *)(p + 64));
        return;
    }
#endif
    *low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    *low = _mm512_inserti64x4(
        *low,
        _mm256_loadu_si256((const __m256i *)(const void *)(plane + 1 < planes ? p + bytes : p)), 1);
    p = plane + 2 < planes ? p + 2 * bytes : p;
    *high = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    *high = _mm512_inserti64x4(
        *high,
        _mm256_loadu_si256((const __m256i *)(const void *)(plane + 3 < planes ? p + bytes : p)), 1);
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
                                                 const int n, int add, vqkv__asked *ahead, float *s)
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
            __m512i x, y, a, b;
            vqkv__quad_avx512(p, 4 * q, planes, &x, &y);
            vqkv__ask(ahead);
            x = _mm512_permutex2var_epi8(x, pick, y);
            a = _mm512_ternarylogic_epi32(x, nibble, base, 0xea);
            b = _mm512_ternarylogic_epi32(_mm512_srli_epi16(x, 4), nibble, base, 0xea);
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
            vqkv__flush_avx512(w0, f, add, dst);
            vqkv__flush_avx512(w1, f, add, far);
        }
    }
}

/* The same of quads in 8 bits, 64 tokens at a time. */
VQKV__INLINE_avx512 void vqkv__score_narrow_avx512(const unsigned char *codes, int planes,
                                                   const vqkv__packed *head,
                                                   const signed char *tables, int rows, int r,
                                                   const int n, int add, vqkv__asked *ahead,
                                                   float *s)
{
    const __m512i nibble = _mm512_set1_epi8(15), base = _mm512_set1_epi32(0x30201000);
    const __m512i pick0 = vqkv__interleave_avx512(0), pick1 = vqkv__interleave_avx512(16);
    const size_t bytes = (size_t)rows * 64 + 4 * VQKV__MAX_ROWS;
    int c, q, k, i;
    tables += (size_t)head->wide * (size_t)rows * 128;
    for (c = 0; c < VQKV_BLOCK / 64; c++, codes += 32) {
        const signed char *t = tables + (size_t)r * 64;
        const signed char *step = tables + (size_t)rows * 64 + (size_t)r * 4;
        __m512i sum[4][4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_set1_epi32(-head->offset[r + k]);
        for (q = head->wide; q < (planes + 3) / 4; q++, t += bytes, step += bytes) {
            __m512i a, b, v[4];
            vqkv__quad_avx512(codes, 4 * q, planes, &a, &b);
            vqkv__ask(ahead);
            vqkv__ask(ahead);
            v[0] = _mm512_permutex2var_epi8(a, pick0, b);
            v[1] = _mm512_permutex2var_epi8(a, pick1, b);
            v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[0], 4), nibble, base, 0xea);
            v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[1], 4), nibble, base, 0xea);
            v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
            v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i e = _mm512_loadu_si512((const void *)(t + k * 64));
                __m512i steps = vqkv__four_bytes_avx512(step + k * 4);
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_avx512(&sum[k][i], _mm512_permutexvar_epi8(v[i], e), steps);
            }
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512 f = _mm512_set1_ps(head->scale[2 * (r + k) + 1]);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                vqkv__flush_avx512(sum[k][i], f, add,
                                   s + (r + k) * VQKV_BLOCK + i / 2 * (VQKV_BLOCK / 2) + 32 * c +
                                       i % 2 * 16);
        }
    }
}

/* Both kinds; most tables have one only. */
VQKV__INLINE_avx512 void vqkv__score_rows_avx512(const unsigned char *codes, int planes,
                                                 const vqkv__packed *head,
                                                 const signed char *tables, int rows, int r,
                                                 const int n, int add, vqkv__asked *ahead, float *s)
{
    if (head->wide > 0)
        vqkv__score_wide_avx512(codes, planes, head, tables, rows, r, n, add, ahead, s);
    if (head->wide < (planes + 3) / 4)
        vqkv__score_narrow_avx512(codes, planes, head, tables, rows, r, n, add || head->wide > 0,
                                  ahead, s);
}

VQKV__TARGET_avx512 static void vqkv__score_bytes_avx512(const unsigned char *const *codes,
                                                         size_t offset, int blocks, int planes,
                                                         const vqkv__packed *head,
                                                         const signed char *tables, int rows,
                                                         int add, vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int b, r;
#define VQKV__X(n)                                                                                 \
    vqkv__score_rows_avx512(codes[b] + offset, planes, head, tables, rows, r, n, add, &asked, s)
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK) {
        for (r = 0; r + 4 <= rows; r += 4)
            VQKV__X(4);
        for (; r + 2 <= rows; r += 2)
            VQKV__X(2);
        for (; r < rows; r++)
            VQKV__X(1);
    }
#undef VQKV__X
    *ahead = asked;
}

/* A table of sixteen fp32 entries times factor, rounded to 32 bits. */
VQKV__TARGET_avx512 static inline __m512i vqkv__scaled_avx512(const float *lut, float factor)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(lut), _mm512_set1_ps(factor)));
}

/* The table of plane p for row r in lut [planes, rows, 16]; 0 behind the last plane. */
VQKV__TARGET_avx512 static inline __m512 vqkv__lut_avx512(const float *lut, int p, int planes,
                                                          int rows, int r)
{
    return p < planes ? _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16)
                      : _mm512_setzero_ps();
}

/* The largest magnitude in each of a quad's tables for row r. */
VQKV__TARGET_avx512 static __m128 vqkv__reaches_avx512(const float *lut, int q, int planes,
                                                       int rows, int r)
{
    __m512 x[4], low, high;
    __m256 half;
    int i;
    for (i = 0; i < 4; i++)
        x[i] = _mm512_abs_ps(vqkv__lut_avx512(lut, 4 * q + i, planes, rows, r));
    low = vqkv__max_avx512(_mm512_maskz_unpacklo_ps(VQKV__ALL_avx512, x[0], x[1]),
                           _mm512_maskz_unpackhi_ps(VQKV__ALL_avx512, x[0], x[1]));
    high = vqkv__max_avx512(_mm512_maskz_unpacklo_ps(VQKV__ALL_avx512, x[2], x[3]),
                            _mm512_maskz_unpackhi_ps(VQKV__ALL_avx512, x[2], x[3]));
    low = vqkv__max_avx512(_mm512_maskz_shuffle_ps(VQKV__ALL_avx512, low, high, 0x44),
                           _mm512_maskz_shuffle_ps(VQKV__ALL_avx512, low, high, 0xee));
    half = _mm256_max_ps(vqkv__low_half_avx512(low), vqkv__high_half_avx512(low));
    return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* The sum and the largest of four numbers >= 0. */
VQKV__TARGET_avx512 static inline float vqkv__sum_of_four(__m128 x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
VQKV__TARGET_avx512 static inline float vqkv__top_of_four(__m128 x)
{
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Chooses the wide quads of tables lut [planes, rows, 16], which rows share: from the last quad on,
 * as many 8-bit ones as keep every row's rounding error within the tolerance. top [rows]: the
 * largest magnitude in the latter. */
VQKV__TARGET_avx512 static int vqkv__wide_quads_avx512(const float *lut, int planes, int rows,
                                                       const float *energy, float *top)
{
    int q, r, p, wide = (planes + 3) / 4;
    float limit[VQKV__MAX_ROWS], noise[VQKV__MAX_ROWS], high[VQKV__MAX_ROWS];
    for (r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (p = 0; p < planes; p++) {
            __m512 x = vqkv__lut_avx512(lut, p, planes, rows, r);
            sum = _mm512_fmadd_ps(x, x, sum);
        }
        /* of the mean square of a score; rounding of a plane adds its reach^2 / 127^2 / 12 */
        limit[r] = VQKV__TABLE_ERROR * VQKV__TABLE_ERROR * 127.0f * 127.0f * 12.0f *
                   (energy[r] + vqkv__hsum_avx512(sum) / 16.0f);
        noise[r] = high[r] = top[r] = 0.0f;
    }
    for (q = wide - 1; q >= 0; q--) {
        for (r = 0; r < rows; r++) {
            __m128 reach = vqkv__reaches_avx512(lut, q, planes, rows, r);
            float m = vqkv__top_of_four(reach);
            noise[r] += vqkv__sum_of_four(_mm_mul_ps(reach, reach));
            if (noise[r] > limit[r])
                return wide;
            high[r] = m > high[r] ? m : high[r];
        }
        memcpy(top, high, sizeof(float) * (size_t)rows);
        wide = q;
    }
    return wide;
}

/* A quad of row r in 16 bits: high bytes, then low ones. */
VQKV__TARGET_avx512 static void vqkv__pack_wide_avx512(const float *lut, int q, int planes,
                                                       int rows, int r, float scale,
                                                       signed char *out)
{
    int p;
    for (p = 4 * q; p < 4 * q + 4; p++, out += 16) {
        __m512i x = _mm512_setzero_si512();
        if (p < planes && scale > 0.0f)
            x = vqkv__scaled_avx512(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16,
                                    1.0f / scale);
        _mm_storeu_si128((__m128i *)(void *)(out + 64), _mm512_cvtepi32_epi8(x));
        _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(_mm512_srai_epi32(x, 8)));
    }
}

/* A quad of row r in 8 bits, 128 more than they are, and the steps of its planes, 1 .. 127 times
 * scale; returns what they make the sum larger. */
VQKV__TARGET_avx512 static int vqkv__pack_narrow_avx512(const float *lut, int q, int planes,
                                                        int rows, int r, float scale,
                                                        signed char *out, signed char *step)
{
    __m128 reach = vqkv__reaches_avx512(lut, q, planes, rows, r);
    __m128 units = _mm_set1_ps(scale > 0.0f ? 1.0f / (127.0f * scale) : 0.0f);
    __m128i steps = _mm_add_epi32(_mm_cvttps_epi32(_mm_mul_ps(reach, units)), _mm_set1_epi32(1));
    float inverse[4];
    int i, steps_of[4], more = 0;
    steps = _mm_min_epi32(steps, _mm_set1_epi32(127));
    _mm_storeu_si128((__m128i *)(void *)steps_of, steps);
    _mm_storeu_ps(inverse, scale > 0.0f
                               ? _mm_div_ps(_mm_set1_ps(1.0f / scale), _mm_cvtepi32_ps(steps))
                               : _mm_setzero_ps());
    for (i = 0; i < 4; i++) {
        __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(
            vqkv__lut_avx512(lut, 4 * q + i, planes, rows, r), _mm512_set1_ps(inverse[i])));
        x = _mm512_xor_si512(x, _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i *)(void *)(out + 16 * i), _mm512_cvtepi32_epi8(x));
        step[i] = (signed char)steps_of[i];
        more += 128 * steps_of[i];
    }
    return more;
}

VQKV__TARGET_avx512 static void vqkv__pack_tables_avx512(const float *lut, int planes, int rows,
                                                         const float *energy, vqkv__packed *head,
                                                         signed char *out)
{
    const signed char *start = out;
    int q, r, p, quads = (planes + 3) / 4;
    float top[VQKV__MAX_ROWS];
    head->wide = vqkv__wide_quads_avx512(lut, planes, rows, energy, top);
    for (r = 0; r < rows; r++) {
        __m512 high = _mm512_setzero_ps();
        for (p = 0; p < 4 * head->wide; p++)
            high = vqkv__max_avx512(high, _mm512_abs_ps(vqkv__lut_avx512(lut, p, planes, rows, r)));
        head->scale[2 * r] = vqkv__hmax_avx512(high) / 32512.0f; /* the high byte fits */
        head->scale[2 * r + 1] = top[r] / (127.0f * 127.0f);
        head->offset[r] = 0;
    }
    for (q = 0; q < head->wide; q++)
        for (r = 0; r < rows; r++, out += 128)
            vqkv__pack_wide_avx512(lut, q, planes, rows, r, head->scale[2 * r], out);
    for (; q < quads; q++, out += rows * 64 + 4 * VQKV__MAX_ROWS)
        for (r = 0; r < rows; r++)
            head->offset[r] +=
                vqkv__pack_narrow_avx512(lut, q, planes, rows, r, head->scale[2 * r + 1],
                                         out + 64 * r, out + 64 * rows + 4 * r);
    head->bytes = (int)((out - start + 63) / 64 * 64);
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

static const vqkv__byte_ops vqkv__byte_ops_avx512 = {
    vqkv__map_basis_avx512,
    vqkv__to_words_avx512,
    vqkv__turn_words_avx512,
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
