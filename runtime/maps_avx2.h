/* The query map in 16-bit words, AVX2: what vqkv__byte_ops promises (types.h). A product of words
 * adds up two inputs of eight columns. */

#if VQKV_BLOCK >= 64

/* The first n of 8 lanes. */
VQKV__TARGET_avx2 static inline __m256i vqkv__first_lanes_avx2(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Columns i .. i + 7 of a row of a slice of a basis in binary16; 0 where they end. */
VQKV__TARGET_avx2 static inline __m256 vqkv__map_row_avx2(const vqkv__matrix *table,
                                                          const vqkv__slice *slice, int d, int i)
{
    const size_t row = (size_t)slice->row[d];
    const size_t at = row * (size_t)slice->columns + (size_t)(slice->first + i);
    const int left = slice->n_out - i;
    short x[8] = {0};
    if (left >= 8)
        return vqkv__loadh_avx2(table->values + 2 * at);
    if (left > 0)
        memcpy(x, table->values + 2 * at, 2 * (size_t)left);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x));
}

/* Columns i .. i + 7 of pairs of rows to words, each pair 32 words behind the one before. */
VQKV__TARGET_avx2 static void vqkv__map_eight_avx2(const vqkv__matrix *table,
                                                   const vqkv__slice *slice, int i, short *words,
                                                   float *scale)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 high = _mm256_setzero_ps(), factor;
    int d;
    for (d = 0; d < slice->n_in; d++)
        high = _mm256_max_ps(high, _mm256_andnot_ps(sign, vqkv__map_row_avx2(table, slice, d, i)));
    factor = _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(VQKV__MAP_TOP), high),
                           _mm256_cmp_ps(high, _mm256_setzero_ps(), _CMP_GT_OQ));
    _mm256_storeu_ps(scale, _mm256_mul_ps(high, _mm256_set1_ps(1.0f / VQKV__MAP_TOP)));
    for (d = 0; d < slice->n_in; d += 2, words += 32) {
        __m256 x = vqkv__map_row_avx2(table, slice, d, i);
        __m256 y = vqkv__map_row_avx2(table, slice, d + 1, i);
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(y, factor));
        _mm256_storeu_si256((__m256i *)(void *)words,
                            _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa));
    }
}

/* The same for sixteen columns of a basis in bytes, 16 units each. */
VQKV__TARGET_avx2 static void vqkv__map_bytes_avx2(const vqkv__matrix *table,
                                                   const vqkv__slice *slice, int i, short *words,
                                                   float *scale)
{
    const unsigned char *from = table->values + slice->first + i;
    const size_t columns = (size_t)slice->columns;
    const int n = slice->n_out - i < 16 ? slice->n_out - i : 16;
    int d, k;
    for (k = 0; k < 16; k++)
        scale[k] =
            k < n ? vqkv__half_at(table->scale, (size_t)(slice->first + i + k)) / 16.0f : 0.0f;
    for (d = 0; d < slice->n_in; d += 2, words += 32) {
        const unsigned char *a = from + (size_t)slice->row[d] * columns;
        const unsigned char *b = from + (size_t)slice->row[d + 1] * columns;
        __m128i x = _mm_setzero_si128(), y = x;
        if (n == 16) {
            x = _mm_loadu_si128((const __m128i *)(const void *)a);
            y = _mm_loadu_si128((const __m128i *)(const void *)b);
        } else {
            memcpy(&x, a, (size_t)n);
            memcpy(&y, b, (size_t)n);
        }
        _mm256_storeu_si256((__m256i *)(void *)words,
                            _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)), 4));
        _mm256_storeu_si256((__m256i *)(void *)(words + 16),
                            _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y)), 4));
    }
}

/* The mean alone to words and their scale. */
VQKV__TARGET_avx2 static void
vqkv__map_mean_avx2(const unsigned char *mean, const vqkv__slice *slice, short *words, float *scale)
{
    float high = 0.0f, factor;
    int d;
    for (d = 0; d < slice->n_in; d++) {
        const float x = fabsf(vqkv__half_at(mean, (size_t)slice->row[d]));
        high = x > high ? x : high;
    }
    *scale = high / VQKV__MAP_TOP;
    factor = high > 0.0f ? VQKV__MAP_TOP / high : 0.0f;
    for (d = 0; d < slice->n_in; d++)
        words[d / 2 * 32 + d % 2] =
            (short)_mm_cvtss_si32(_mm_set_ss(factor * vqkv__half_at(mean, (size_t)slice->row[d])));
}

VQKV__TARGET_avx2 static void vqkv__map_basis_avx2(vqkv__matrix table, const unsigned char *mean,
                                                   const vqkv__slice *slice, short *words,
                                                   float *scale)
{
    const int left = slice->n_out % 16;
    int i;
    for (i = 0; i <= slice->n_out; i += 16, words += 16 * slice->n_in, scale += 16) {
        if (table.scale != NULL) {
            vqkv__map_bytes_avx2(&table, slice, i, words, scale);
        } else {
            vqkv__map_eight_avx2(&table, slice, i, words, scale);
            vqkv__map_eight_avx2(&table, slice, i + 8, words + 16, scale + 8);
        }
    }
    if (mean != NULL) /* the column behind the last, which lies in the last sixteen */
        vqkv__map_mean_avx2(mean, slice, words - 16 * slice->n_in + 2 * left, scale - 16 + left);
}

/* The first n words of eight numbers. */
VQKV__INLINE_avx2 void vqkv__store_words_avx2(__m256 x, int n, short *out)
{
    const __m256i y = _mm256_cvtps_epi32(x);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    if (n >= 8)
        _mm_storeu_si128((__m128i *)(void *)out, words);
    else
        memcpy(out, &words, sizeof *out * (size_t)n);
}

VQKV__TARGET_avx2 static void vqkv__to_words_avx2(const float *x, int n, float unit, short *out)
{
    const __m256 factor = _mm256_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < n; i += 8) {
        __m256 y = _mm256_maskload_ps(x + i, vqkv__first_lanes_avx2(n - i));
        vqkv__store_words_avx2(_mm256_mul_ps(y, factor), n - i, out + i);
    }
}

VQKV__TARGET_avx2 static void vqkv__turn_words_avx2(const float *x, const float *c, const float *s,
                                                    int pairs, float unit, short *out)
{
    const __m256 factor = _mm256_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < pairs; i += 8) {
        const __m256i some = vqkv__first_lanes_avx2(pairs - i);
        const __m256 u = _mm256_mul_ps(_mm256_maskload_ps(x + i, some), factor);
        const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + pairs + i, some), factor);
        const __m256 cosine = _mm256_maskload_ps(c + i, some);
        const __m256 sine = _mm256_maskload_ps(s + i, some);
        vqkv__store_words_avx2(_mm256_fmadd_ps(v, sine, _mm256_mul_ps(u, cosine)), pairs - i,
                               out + i);
        vqkv__store_words_avx2(_mm256_fmsub_ps(v, cosine, _mm256_mul_ps(u, sine)), pairs - i,
                               out + pairs + i);
    }
}

/* Rows of x at distance n_in, of y at distance `stride`; `n` rows, a constant where it is called,
 * and sixteen columns. */
VQKV__INLINE_avx2 void vqkv__map_tile_avx2(const short *x, int n_in, const short *words,
                                           const float *scale, size_t stride, const float *unit,
                                           const float *const *base, const int n, float *y)
{
    __m256i sum[4][2];
    int d, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = _mm256_setzero_si256();
    for (d = 0; d < n_in; d += 2, words += 32) {
        const __m256i a = vqkv__load_bytes_avx2(words), b = vqkv__load_bytes_avx2(words + 16);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            int32_t two;
            __m256i q;
            memcpy(&two, x + k * n_in + d, 4);
            q = _mm256_set1_epi32(two);
            vqkv__add_longs_avx2(&sum[k][0], _mm256_madd_epi16(a, q));
            vqkv__add_longs_avx2(&sum[k][1], _mm256_madd_epi16(b, q));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 2
        for (i = 0; i < 2; i++) {
            __m256 f = _mm256_mul_ps(_mm256_loadu_ps(scale + 8 * i), _mm256_set1_ps(unit[k]));
            __m256 from = base[k] != NULL ? _mm256_loadu_ps(base[k] + 8 * i) : _mm256_setzero_ps();
            _mm256_storeu_ps(y + (size_t)k * stride + 8 * i,
                             _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k][i]), f, from));
        }
}

VQKV__TARGET_avx2 static void vqkv__map_words_avx2(const short *x, int m, int n_in,
                                                   const short *words, const float *scale,
                                                   int columns, const float *unit, int rows,
                                                   const float *base, size_t stride, float *y)
{
    const float *bases[4];
    int c, r, k;
    float units[VQKV__MAX_ROWS + 3]; /* of four rows from any one on */
    for (r = 0; r < rows + 3; r++)
        units[r] = unit[r % rows];
    for (c = 0; c < columns; c += 16, words += 16 * n_in)
        for (r = 0; r < m;) {
            const short *q = x + (size_t)r * (size_t)n_in;
            float *dst = y + (size_t)r * stride + c;
            for (k = 0; k < 4; k++)
                bases[k] = base == NULL ? NULL : base + (size_t)((r + k) % rows) * stride + c;
#define VQKV__MAP(n)                                                                               \
    vqkv__map_tile_avx2(q, n_in, words, scale + c, stride, units + r % rows, bases, n, dst)
            if (m - r >= 4) {
                VQKV__MAP(4);
                r += 4;
            } else {
                VQKV__MAP(1);
                r++;
            }
#undef VQKV__MAP
        }
}

#endif /* VQKV_BLOCK >= 64 */
