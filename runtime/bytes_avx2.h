/* Byte kernels, AVX2: what vqkv__byte_ops promises (types.h). Scores: a shuffle looks up 32 tokens
 * of a plane, in units such that no sum leaves 16 bits. Entries have 16 bits, and are summed modulo
 * 2^16, byte by byte. Or they have about 10, high bits in one byte and 5 in the other, so that
 * bytes of two quads of planes can be added before anything has to be widened. */

#if VQKV_BLOCK >= 64

/* Planes whose bytes of narrow entries can be added. */
#define VQKV__BUNCH_avx2 8

/* The table of plane p for row r in lut [planes, rows, 16]. */
static inline const float *vqkv__lut_avx2(const float *lut, int p, int rows, int r)
{
    return lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
}

/* The largest entries of a quad's planes for row r, added up. */
VQKV__TARGET_avx2 static float vqkv__quad_reach_avx2(const float *lut, int q, int planes, int rows,
                                                     int r)
{
    __m256 square = _mm256_setzero_ps();
    float sum = 0.0f;
    int p;
    for (p = 4 * q; p < 4 * q + 4 && p < planes; p++)
        sum += vqkv__reach_avx2(vqkv__lut_avx2(lut, p, rows, r), &square);
    return sum;
}

/* What a narrow entry counts where planes of a quad reach so far: each may round up. */
static inline float vqkv__narrow_scale_avx2(float reach)
{
    return reach / (float)(VQKV__ZERO_avx2 - 2);
}

/* Wide quads: from the last quad on, as many narrow ones as are allowed. */
VQKV__TARGET_avx2 static int vqkv__wide_quads_avx2(const float *lut, int planes, int rows,
                                                   const float *energy)
{
    int q, r, p, quads = (planes + 3) / 4, wide = 0;
    for (r = 0; r < rows; r++) {
        __m256 square = _mm256_setzero_ps();
        float limit, top = 0.0f;
        for (p = 0; p < planes; p++)
            vqkv__reach_avx2(vqkv__lut_avx2(lut, p, rows, r), &square);
        /* Half the tolerance: weights of 7 bits err more than those of 8 do. */
        limit = 0.25f * VQKV__TABLE_ERROR * VQKV__TABLE_ERROR *
                (energy[r] + vqkv__hsum_avx2(square) / 16.0f);
        for (q = quads - 1; q >= wide; q--) {
            float m = vqkv__quad_reach_avx2(lut, q, planes, rows, r), scale;
            top = m > top ? m : top;
            scale = vqkv__narrow_scale_avx2(top);
            if (scale * scale / 12.0f * (float)(planes - 4 * q) > limit)
                wide = q + 1;
        }
    }
    return wide;
}

/* What an entry of row r counts in wide quads, and in narrow ones. */
VQKV__TARGET_avx2 static void vqkv__scales_avx2(const float *lut, int planes, int wide, int rows,
                                                int r, float *scale)
{
    float sum = 0.0f, m;
    int q;
    scale[0] = scale[1] = 0.0f;
    for (q = 0; q < (planes + 3) / 4; q++) {
        m = vqkv__quad_reach_avx2(lut, q, planes, rows, r);
        sum = q % (VQKV__WIDE_CHUNK_avx2 / 4) == 0 ? m : sum + m;
        if (q < wide)
            scale[0] = sum > scale[0] ? sum : scale[0];
        else
            scale[1] = m > scale[1] ? m : scale[1];
    }
    scale[0] /= 32767.0f - VQKV__WIDE_CHUNK_avx2; /* rounding may add half a unit a plane */
    scale[1] = vqkv__narrow_scale_avx2(scale[1]);
}

/* Two bytes of each of 64 entries of a quad, the higher ones first. */
VQKV__TARGET_avx2 static inline void vqkv__store_entries_avx2(__m256i x, const int wide,
                                                              signed char *out)
{
    const __m256i low = _mm256_set1_epi16((1 << VQKV__LOW_BITS_avx2) - 1);
    vqkv__store_bytes_avx2(out, _mm256_srli_epi16(x, wide ? 8 : VQKV__LOW_BITS_avx2));
    vqkv__store_bytes_avx2(out + 64, wide ? x : _mm256_and_si256(x, low));
}

/* A narrow quad of row r: no entry is below 0, and together they stand for 0 with ZERO. */
VQKV__TARGET_avx2 static void vqkv__pack_narrow_avx2(const float *lut, int q, int planes, int rows,
                                                     int r, float scale, signed char *out)
{
    const float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
    int i, left = VQKV__ZERO_avx2;
    for (i = 3; i >= 0; i--) {
        __m256i x = _mm256_setzero_si256();
        int zero = 0;
        if (4 * q + i < planes) {
            const float *from = vqkv__lut_avx2(lut, 4 * q + i, rows, r);
            __m256 square = _mm256_setzero_ps();
            x = vqkv__sixteen_avx2(from, factor);
            zero = _mm_cvtss_si32(_mm_set_ss(vqkv__reach_avx2(from, &square) * factor));
        }
        zero = i == 0 ? left : zero; /* what is left of it goes to the first plane */
        left -= zero;
        vqkv__store_entries_avx2(_mm256_add_epi16(x, _mm256_set1_epi16((short)zero)), 0,
                                 out + 16 * i);
    }
}

VQKV__TARGET_avx2 static void vqkv__pack_tables_avx2(const float *lut, int planes, int rows,
                                                     const float *energy, vqkv__packed *head,
                                                     signed char *out)
{
    int q, r, i, quads = (planes + 3) / 4;
    head->wide = vqkv__wide_quads_avx2(lut, planes, rows, energy);
    for (r = 0; r < rows; r++)
        vqkv__scales_avx2(lut, planes, head->wide, rows, r, head->scale + 2 * r);
    for (q = 0; q < quads; q++)
        for (r = 0; r < rows; r++, out += 128) {
            const float *scale = head->scale + 2 * r;
            if (q >= head->wide)
                vqkv__pack_narrow_avx2(lut, q, planes, rows, r, scale[1], out);
            for (i = 0; i < 4 && q < head->wide; i++) {
                __m256i x = _mm256_setzero_si256();
                if (4 * q + i < planes && scale[0] > 0.0f)
                    x = vqkv__sixteen_avx2(vqkv__lut_avx2(lut, 4 * q + i, rows, r),
                                           1.0f / scale[0]);
                vqkv__store_entries_avx2(x, 1, out + 16 * i);
            }
        }
    head->bytes = rows * 128 * quads;
}

/* Scores of 32 tokens, the codes' low nibbles or (`second`) high ones, for n rows from row r on,
 * through wide tables of planes from .. to - 1, at most WIDE_CHUNK; n and `second` are constants.
 * Unsigned bytes are summed as words of two each and as their high halves; high bytes of 16-bit
 * entries modulo 2^8, since nothing of their sums beyond that counts. */
VQKV__INLINE_avx2 void vqkv__score_wide_avx2(const unsigned char *codes, int from, int to,
                                             const vqkv__packed *head, const signed char *tables,
                                             int rows, int r, const int n, const int second,
                                             int add, vqkv__asked *ahead, float *s)
{
    const size_t step = (size_t)rows * 128;
    __m256i all[4], odd[4], high[4], part[2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        all[k] = odd[k] = high[k] = _mm256_setzero_si256();
    tables += (size_t)r * 128;
    for (p = from; p < to; p++) {
        const signed char *t = tables + (size_t)((p - from) / 4) * step + p % 4 * 16;
        const __m256i x = vqkv__codes_avx2(codes + (size_t)p * (VQKV_BLOCK / 2), second);
        if (!second)
            vqkv__ask(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const signed char *e = t + (size_t)k * 128;
            __m256i low = _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e + 64), x);
            vqkv__add_words_avx2(&all[k], low);
            vqkv__add_words_avx2(&odd[k], _mm256_srli_epi16(low, 8));
            vqkv__add_bytes_avx2(&high[k], _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e), x));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m256i even = _mm256_sub_epi16(all[k], _mm256_slli_epi16(odd[k], 8));
        even = _mm256_add_epi16(even, _mm256_slli_epi16(high[k], 8));
        odd[k] = _mm256_add_epi16(odd[k], _mm256_and_si256(high[k], _mm256_set1_epi16(-256)));
        part[0] = _mm256_unpacklo_epi16(even, odd[k]);
        part[1] = _mm256_unpackhi_epi16(even, odd[k]);
        vqkv__flush_avx2(part, head->scale[2 * (r + k)], add, s + (r + k) * VQKV_BLOCK);
    }
}

/* low and high [n] += narrow entries of one plane, t: of row r. n and `second` are constants. */
VQKV__INLINE_avx2 void vqkv__score_plane_avx2(const unsigned char *codes, const signed char *t,
                                              const int n, const int second, __m256i *low,
                                              __m256i *high)
{
    const __m256i x = vqkv__codes_avx2(codes, second);
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        const signed char *e = t + k * 128;
        vqkv__add_bytes_avx2(&high[k], _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e), x));
        vqkv__add_bytes_avx2(&low[k], _mm256_shuffle_epi8(vqkv__table_bytes_avx2(e + 64), x));
    }
}

/* part [n, 2] += narrow entries of at most BUNCH planes, t: row r's of the first, which begins
 * a quad. n and `second` are constants. */
VQKV__INLINE_avx2 void vqkv__score_bunch_avx2(const unsigned char *codes, int planes,
                                              const signed char *t, size_t step, const int n,
                                              const int second, vqkv__asked *ahead,
                                              __m256i (*part)[2])
{
    const __m256i value = _mm256_set1_epi16(1 | 1 << (8 + VQKV__LOW_BITS_avx2));
    __m256i low[4], high[4];
    int q, i, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        low[k] = high[k] = _mm256_setzero_si256();
    for (q = 0; q < planes; q += 4, t += step) {
        if (!second) {
            vqkv__ask(ahead);
            vqkv__ask(ahead);
        }
        for (i = 0; i < 4 && q + i < planes; i++, codes += VQKV_BLOCK / 2)
            vqkv__score_plane_avx2(codes, t + 16 * i, n, second, low, high);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        part[k][0] = _mm256_add_epi16(
            part[k][0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low[k], high[k]), value));
        part[k][1] = _mm256_add_epi16(
            part[k][1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low[k], high[k]), value));
    }
}

/* The same through narrow tables; the first plane begins a quad. */
VQKV__INLINE_avx2 void vqkv__score_narrow_avx2(const unsigned char *codes, int from, int to,
                                               const vqkv__packed *head, const signed char *tables,
                                               int rows, int r, const int n, const int second,
                                               int add, vqkv__asked *ahead, float *s)
{
    const __m256i bias = _mm256_set1_epi16((short)(-VQKV__ZERO_avx2 * ((to - from + 3) / 4)));
    const size_t step = (size_t)rows * 128;
    __m256i part[4][2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        part[k][0] = part[k][1] = bias;
    tables += (size_t)r * 128;
    for (p = from; p < to; p += VQKV__BUNCH_avx2, tables += VQKV__BUNCH_avx2 / 4 * step)
        vqkv__score_bunch_avx2(codes + (size_t)p * (VQKV_BLOCK / 2),
                               to - p < VQKV__BUNCH_avx2 ? to - p : VQKV__BUNCH_avx2, tables, step,
                               n, second, ahead, part);
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__flush_avx2(part[k], head->scale[2 * (r + k) + 1], add, s + (r + k) * VQKV_BLOCK);
}

/* All rows of one block, through tables of planes from .. to - 1: all wide, or none; `wide` is a
 * constant. */
VQKV__INLINE_avx2 void vqkv__score_planes_avx2(const unsigned char *codes, int from, int to,
                                               const vqkv__packed *head, const signed char *tables,
                                               int rows, const int wide, int add,
                                               vqkv__asked *ahead, float *s)
{
    int t, r;
#define VQKV__HALF(n, second)                                                                      \
    if (wide)                                                                                      \
        vqkv__score_wide_avx2(codes + t, from, to, head, tables, rows, r, n, second, add, ahead,   \
                              s + t + second * (VQKV_BLOCK / 2));                                  \
    else                                                                                           \
        vqkv__score_narrow_avx2(codes + t, from, to, head, tables, rows, r, n, second, add, ahead, \
                                s + t + second * (VQKV_BLOCK / 2))
#define VQKV__X(n)                                                                                 \
    do {                                                                                           \
        VQKV__HALF(n, 0);                                                                          \
        VQKV__HALF(n, 1);                                                                          \
    } while (0)
    for (t = 0; t < VQKV_BLOCK / 2; t += 32)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__HALF
#undef VQKV__X
}

/* One block. */
VQKV__TARGET_avx2 static void vqkv__score_one_avx2(const unsigned char *codes, int planes,
                                                   const vqkv__packed *head,
                                                   const signed char *tables, int rows, int add,
                                                   vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int p, end, wide = 4 * head->wide < planes ? 4 * head->wide : planes;
    for (p = 0; p < planes; p = end, add = 1) {
        const int is_wide = p < wide, chunk = is_wide ? VQKV__WIDE_CHUNK_avx2 : VQKV__CHUNK_avx2;
        end = p - p % chunk + chunk;
        end = end < (is_wide ? wide : planes) ? end : is_wide ? wide : planes;
        if (is_wide)
            vqkv__score_planes_avx2(codes, p, end, head, tables, rows, 1, add, &asked, s);
        else
            vqkv__score_planes_avx2(codes, p, end, head, tables, rows, 0, add, &asked, s);
        tables += (size_t)((end - p + 3) / 4) * (size_t)rows * 128;
    }
    *ahead = asked;
}

VQKV__TARGET_avx2 static void vqkv__score_bytes_avx2(const unsigned char *const *codes,
                                                     size_t offset, int blocks, int planes,
                                                     const vqkv__packed *head,
                                                     const signed char *tables, int rows, int add,
                                                     vqkv__asked *ahead, float *s)
{
    int b;
    for (b = 0; b < blocks; b++)
        vqkv__score_one_avx2(codes[b] + offset, planes, head, tables, rows, add, ahead,
                             s + b * rows * VQKV_BLOCK);
}

VQKV__TARGET_avx2 static void vqkv__pack_books_avx2(const unsigned char *book, int n,
                                                    signed char *out, float *scale)
{
    int i;
    for (i = 0; i < n; i++, book += 32) {
        __m256 square = _mm256_setzero_ps();
        float x[16], top;
        _mm256_storeu_ps(x, vqkv__loadh_avx2(book));
        _mm256_storeu_ps(x + 8, vqkv__loadh_avx2(book + 16));
        top = vqkv__reach_avx2(x, &square);
        scale[i] = top / 127.0f;
        _mm_storeu_si128(
            (__m128i *)(void *)(out + i * 16),
            vqkv__narrowed_avx2(vqkv__sixteen_avx2(x, top > 0.0f ? 127.0f / top : 0.0f)));
    }
}

#define VQKV__X(name) vqkv__##name##_avx2,
static const vqkv__byte_ops vqkv__byte_ops_avx2 = {
    VQKV__ALL_BYTE_KERNELS(VQKV__X, VQKV__X, VQKV__NO_KERNEL, VQKV__X) VQKV__WEIGHT_REST_avx2,
    0.02f};
#undef VQKV__X

#endif /* VQKV_BLOCK >= 64 */
