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
                                                 const int n, int add, float *s)
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
                                                   const int n, int add, float *s)
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
                                                 const int n, int add, float *s)
{
    if (head->wide > 0)
        vqkv__score_wide_avx512(codes, planes, head, tables, rows, r, n, add, s);
    if (head->wide < (planes + 3) / 4)
        vqkv__score_narrow_avx512(codes, planes, head, tables, rows, r, n, add || head->wide > 0,
                                  s);
}

VQKV__TARGET_avx512 static void vqkv__score_bytes_avx512(const unsigned char *const *codes,
                                                         size_t offset, int blocks, int planes,
                                                         const vqkv__packed *head,
                                                         const signed char *tables, int rows,
                                                         int add, float *s)
{
    int b, r;
#define VQKV__X(n)                                                                                 \
    vqkv__score_rows_avx512(codes[b] + offset, planes, head, tables, rows, r, n, add, s)
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK) {
        for (r = 0; r + 4 <= rows; r += 4)
            VQKV__X(4);
        for (; r + 2 <= rows; r += 2)
            VQKV__X(2);
        for (; r < rows; r++)
            VQKV__X(1);
    }
#undef VQKV__X
}

/* A table of sixteen fp32 entries times factor, rounded to 32 bits. */
VQKV__TARGET_avx512 static inline __m512i vqkv__scaled_avx512(const float *lut, float factor)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(lut), _mm512_set1_ps(factor)));
}

/* The largest magnitude in a table. */
VQKV__TARGET_avx512 static inline float vqkv__reach_avx512(const float *lut)
{
    return _mm512_reduce_max_ps(_mm512_abs_ps(_mm512_loadu_ps(lut)));
}

/* How many units of the widest table's 1 / 127 a step of an 8-bit table has that reaches to `high`,
 * 1 .. 127: its entries fit 8 bits then. */
static inline int vqkv__steps_of(float high, float widest)
{
    int steps = widest > 0.0f ? (int)(127.0f * high / widest) + 1 : 1;
    return steps < 127 ? steps : 127;
}

/* Chooses the wide quads of tables lut [planes, rows, 16]: from the last quad on, as many 8-bit
 * ones as keep every row's rounding error within the tolerance. Rows share the choice. */
VQKV__TARGET_avx512 static int vqkv__wide_quads_avx512(const float *lut, int planes, int rows,
                                                       const float *energy)
{
    int q, r, p, wide = (planes + 3) / 4;
    float square[VQKV__MAX_ROWS], noise[VQKV__MAX_ROWS];
    for (r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (p = 0; p < planes; p++) {
            __m512 x = _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
            sum = _mm512_fmadd_ps(x, x, sum);
        }
        square[r] = energy[r] + _mm512_reduce_add_ps(sum) / 16.0f; /* mean square of a score */
        noise[r] = 0.0f;
    }
    for (q = wide - 1; q >= 0; q--) {
        for (r = 0; r < rows; r++) {
            for (p = 4 * q; p < 4 * q + 4 && p < planes; p++) {
                float high = vqkv__reach_avx512(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
                noise[r] += high * high; /* times 1 / 127^2 / 12, as rounding has it */
            }
            if (noise[r] >
                VQKV__TABLE_ERROR * VQKV__TABLE_ERROR * 127.0f * 127.0f * 12.0f * square[r])
                return wide;
        }
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

/* A quad of row r in 8 bits, 128 more than they are, and the steps of its planes; returns what they
 * make the sum larger. */
VQKV__TARGET_avx512 static int vqkv__pack_narrow_avx512(const float *lut, int q, int planes,
                                                        int rows, int r, float scale,
                                                        signed char *out, signed char *step)
{
    int p, more = 0;
    for (p = 4 * q; p < 4 * q + 4; p++, out += 16, step++) {
        const float *table = lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
        __m512i x = _mm512_setzero_si512();
        *step = 0;
        if (p < planes && scale > 0.0f) {
            *step = (signed char)vqkv__steps_of(vqkv__reach_avx512(table), 127.0f * 127.0f * scale);
            x = vqkv__scaled_avx512(table, 1.0f / (scale * (float)*step));
        }
        more += 128 * *step;
        _mm_storeu_si128((__m128i *)(void *)out,
                         _mm512_cvtepi32_epi8(_mm512_add_epi32(x, _mm512_set1_epi32(128))));
    }
    return more;
}

VQKV__TARGET_avx512 static void vqkv__pack_tables_avx512(const float *lut, int planes, int rows,
                                                         const float *energy, vqkv__packed *head,
                                                         signed char *out)
{
    const signed char *start = out;
    int q, r, p, quads = (planes + 3) / 4;
    head->wide = vqkv__wide_quads_avx512(lut, planes, rows, energy);
    for (r = 0; r < rows; r++) {
        float top[2] = {0.0f, 0.0f};
        for (p = 0; p < planes; p++) {
            float *high = &top[p >= 4 * head->wide];
            float m = vqkv__reach_avx512(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16);
            *high = m > *high ? m : *high;
        }
        head->scale[2 * r] = top[0] / 32512.0f; /* 127 * 256: the high byte fits */
        head->scale[2 * r + 1] = top[1] / (127.0f * 127.0f);
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
