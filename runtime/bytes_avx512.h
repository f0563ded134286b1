/* Byte kernels, AVX-512 with VBMI and VNNI: what vqkv__byte_ops promises (types.h).
 *
 * Scores: the planes of four codes are interleaved in registers, so that one byte permutation looks
 * up four planes of sixteen tokens and one dot product adds them, each entry times the step of its
 * plane. Where 8 bits are too few, a second table adds what the first one's rounding has left. */

#if VQKV_BLOCK >= 64

/* A quad of planes from `plane` on, 32 tokens and 32 half a block later of each: [4, 32] bytes in
 * two registers. Anything stands where no plane is: its table is 0. */
VQKV__INLINE_avx512 void vqkv__quad_planes_avx512(const unsigned char *codes, int plane, int planes,
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

/* v [4]: where the entries of a quad's codes stand in a table of four times sixteen: 16 tokens in
 * each, 32 and, half a block later, 32 more. */
VQKV__INLINE_avx512 void vqkv__quad_avx512(const unsigned char *codes, int plane, int planes,
                                           __m512i *v)
{
    const __m512i nibble = _mm512_set1_epi8(15), base = _mm512_set1_epi32(0x30201000);
    __m512i a, b;
    vqkv__quad_planes_avx512(codes, plane, planes, &a, &b);
    v[0] = _mm512_permutex2var_epi8(a, vqkv__interleave_avx512(0), b);
    v[1] = _mm512_permutex2var_epi8(a, vqkv__interleave_avx512(16), b);
    v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[0], 4), nibble, base, 0xea);
    v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[1], 4), nibble, base, 0xea);
    v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
    v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
}

/* Adds the entries that one table has for each row at the indices v, 16 tokens in each, times its
 * steps. tables: [rows, 64] entries, then the steps [rows, 4]; from row r on. */
VQKV__INLINE_avx512 void vqkv__score_quad_avx512(const __m512i *v, const signed char *tables,
                                                 int rows, int r, const int n, __m512i (*sum)[4])
{
    const signed char *t = tables + (size_t)r * 64;
    const signed char *step = tables + (size_t)rows * 64 + (size_t)r * 4;
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512i e = _mm512_loadu_si512((const void *)(t + k * 64));
        __m512i steps = vqkv__four_bytes_avx512(step + k * 4);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            vqkv__add_bytes_avx512(&sum[k][i], _mm512_permutexvar_epi8(v[i], e), steps);
    }
}

/* Scores of n rows, a constant where it is called, from row r on, 64 tokens at a time. */
VQKV__INLINE_avx512 void vqkv__score_rows_avx512(const unsigned char *codes, int planes,
                                                 const vqkv__packed *head,
                                                 const signed char *tables, int rows, int r,
                                                 const int n, int add, vqkv__asked *ahead, float *s)
{
    const size_t bytes = (size_t)rows * 64 + 4 * VQKV__MAX_ROWS;
    int c, q, k, i;
    for (c = 0; c < VQKV_BLOCK / 64; c++, codes += 32) {
        const signed char *t = tables;
        __m512i sum[4][4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_set1_epi32(-head->offset[r + k]);
        for (q = 0; q < head->wide; q++, t += 2 * bytes) {
            __m512i v[4];
            vqkv__quad_avx512(codes, 4 * q, planes, v);
            vqkv__ask(ahead);
            vqkv__ask(ahead);
            vqkv__score_quad_avx512(v, t, rows, r, n, sum);
            vqkv__score_quad_avx512(v, t + bytes, rows, r, n, sum);
        }
        for (; q < (planes + 3) / 4; q++, t += bytes) {
            __m512i v[4];
            vqkv__quad_avx512(codes, 4 * q, planes, v);
            vqkv__ask(ahead);
            vqkv__ask(ahead);
            vqkv__score_quad_avx512(v, t, rows, r, n, sum);
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
        VQKV__BY_ROWS(r, rows, VQKV__X);
    }
#undef VQKV__X
    *ahead = asked;
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
 * as many with one table as keep every row's rounding error within the tolerance. top [rows]: the
 * largest magnitude. */
VQKV__TARGET_avx512 static int vqkv__wide_quads_avx512(const float *lut, int planes, int rows,
                                                       const float *energy, float *top)
{
    int q, r, p, wide = (planes + 3) / 4, full = 0;
    float limit[VQKV__MAX_ROWS], noise[VQKV__MAX_ROWS];
    for (r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (p = 0; p < planes; p++) {
            __m512 x = vqkv__lut_avx512(lut, p, planes, rows, r);
            sum = _mm512_fmadd_ps(x, x, sum);
        }
        /* of the mean square of a score; rounding of a plane adds its reach^2 / 127^2 / 12 */
        limit[r] = VQKV__TABLE_ERROR * VQKV__TABLE_ERROR * 127.0f * 127.0f * 12.0f *
                   (energy[r] + vqkv__hsum_avx512(sum) / 16.0f);
        noise[r] = top[r] = 0.0f;
    }
    for (q = wide - 1; q >= 0; q--) {
        for (r = 0; r < rows; r++) {
            __m128 reach = vqkv__reaches_avx512(lut, q, planes, rows, r);
            float m = vqkv__top_of_four(reach);
            noise[r] += vqkv__sum_of_four(_mm_mul_ps(reach, reach));
            full |= noise[r] > limit[r];
            top[r] = m > top[r] ? m : top[r];
        }
        wide = full ? wide : q;
    }
    return wide;
}

/* Where a table's parts go: 128 more than its entries are [rows, 64], its steps [rows, 4]; those of
 * one row. */
typedef struct vqkv__narrow {
    signed char *out, *step;
} vqkv__narrow;

/* Sixteen entries of a quad's i-th plane. */
VQKV__TARGET_avx512 static inline void vqkv__put_entries_avx512(vqkv__narrow to, int i, __m512i x,
                                                                int step)
{
    x = _mm512_xor_si512(x, _mm512_set1_epi32(128));
    _mm_storeu_si128((__m128i *)(void *)(to.out + 16 * i), _mm512_cvtepi32_epi8(x));
    to.step[i] = (signed char)step;
}

/* A quad of row r: entries count 1 .. 127 times scale, and what rounding left of them, if rest is
 * not NULL, once. Returns what they make the sum larger. */
VQKV__TARGET_avx512 static int vqkv__pack_quad_avx512(const float *lut, int q, int planes, int rows,
                                                      int r, float scale, vqkv__narrow to,
                                                      const vqkv__narrow *rest)
{
    const float unit = scale > 0.0f ? 1.0f / scale : 0.0f;
    __m128 reach = vqkv__reaches_avx512(lut, q, planes, rows, r);
    __m128i steps = _mm_cvttps_epi32(_mm_mul_ps(reach, _mm_set1_ps(unit / 127.0f)));
    float inverse[4];
    int i, steps_of[4], more = 0;
    steps = _mm_min_epi32(_mm_add_epi32(steps, _mm_set1_epi32(1)), _mm_set1_epi32(127));
    _mm_storeu_si128((__m128i *)(void *)steps_of, steps);
    _mm_storeu_ps(inverse, _mm_div_ps(_mm_set1_ps(1.0f), _mm_cvtepi32_ps(steps)));
    for (i = 0; i < 4; i++) {
        __m512 x =
            _mm512_mul_ps(vqkv__lut_avx512(lut, 4 * q + i, planes, rows, r), _mm512_set1_ps(unit));
        __m512i e = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[i])));
        vqkv__put_entries_avx512(to, i, e, steps_of[i]);
        more += 128 * steps_of[i];
        if (rest == NULL)
            continue;
        x = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(e), _mm512_set1_ps((float)steps_of[i]), x);
        vqkv__put_entries_avx512(*rest, i, _mm512_cvtps_epi32(x), 1);
        more += 128;
    }
    return more;
}

VQKV__TARGET_avx512 static void vqkv__pack_tables_avx512(const float *lut, int planes, int rows,
                                                         const float *energy, vqkv__packed *head,
                                                         signed char *out)
{
    const signed char *start = out;
    const size_t bytes = (size_t)rows * 64 + 4 * VQKV__MAX_ROWS;
    int q, r, wide;
    float top[VQKV__MAX_ROWS];
    head->wide = vqkv__wide_quads_avx512(lut, planes, rows, energy, top);
    for (r = 0; r < rows; r++) {
        head->scale[2 * r + 1] = top[r] / (127.0f * 127.0f);
        head->offset[r] = 0;
    }
    for (q = 0; q < (planes + 3) / 4; q++, out += wide ? 2 * bytes : bytes) {
        wide = q < head->wide;
        for (r = 0; r < rows; r++) {
            const vqkv__narrow to = {out + 64 * r, out + 64 * rows + 4 * r};
            const vqkv__narrow rest = {to.out + bytes, to.step + bytes};
            head->offset[r] += vqkv__pack_quad_avx512(
                lut, q, planes, rows, r, head->scale[2 * r + 1], to, wide ? &rest : NULL);
        }
    }
    head->bytes = (int)((out - start + 63) / 64 * 64);
}

VQKV__TARGET_avx512 static void vqkv__pack_books_avx512(const unsigned char *book, int n,
                                                        signed char *out, float *scale)
{
    int i, k, m;
    for (i = 0; i < n; i += m, book += 32 * m, out += 16 * m, scale += m) {
        __m512 x[4], size[4];
        float top[4];
        m = n - i < 4 ? n - i : 4;
        for (k = 0; k < 4; k++) {
            x[k] = vqkv__loadh_avx512(book + 32 * (k < m ? k : 0));
            size[k] = _mm512_abs_ps(x[k]);
        }
        _mm_storeu_ps(top, vqkv__four_tops_avx512(size));
        for (k = 0; k < m; k++) {
            const __m512 f = _mm512_set1_ps(top[k] > 0.0f ? 127.0f / top[k] : 0.0f);
            scale[k] = top[k] / 127.0f;
            _mm_storeu_si128((__m128i *)(void *)(out + 16 * k),
                             _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x[k], f))));
        }
    }
}

#define VQKV__X(name) vqkv__##name##_avx512,
static const vqkv__byte_ops vqkv__byte_ops_avx512 = {
    VQKV__ALL_BYTE_KERNELS(VQKV__X, VQKV__X, VQKV__X, VQKV__NO_KERNEL) 255.0f, 0.05f};
#undef VQKV__X

#endif /* VQKV_BLOCK >= 64 */
