/* The query map, AVX-512: what vqkv__byte_ops promises (types.h). Words of 12 bits and more on both
 * sides keep the product's error far below that of score tables. Eight bits of a query would not,
 * but do for latents whose codewords meet it in 8 bits too.
 */

#if VQKV_BLOCK >= 64

/* The first n of 16 lanes. */
static inline __mmask16 vqkv__first_lanes(int n)
{
    return (__mmask16)(n < 16 ? (1u << (n < 0 ? 0 : n)) - 1u : 0xffffu);
}

/* Which of columns i .. i + 15 are the basis's: the mean and what is behind it are not. */
VQKV__INLINE_avx512 __mmask16 vqkv__map_real_avx512(int n_out, int i)
{
    return vqkv__first_lanes(n_out - i);
}

/* Columns i .. i + 15 of the part's row d, without scales; the mean where they end. */
VQKV__INLINE_avx512 __m512 vqkv__map_row_avx512(const vqkv__matrix *table,
                                                const unsigned char *mean, const vqkv__slice *slice,
                                                int d, int i)
{
    int left = slice->n_out - i;
    __mmask16 real = vqkv__map_real_avx512(slice->n_out, i);
    size_t row = (size_t)slice->row[d];
    size_t at = row * (size_t)slice->columns + (size_t)(slice->first + i);
    __m512 x;
    if (table->scale != NULL)
        x = _mm512_maskz_cvtepi32_ps(
            VQKV__ALL_avx512,
            _mm512_maskz_cvtepi8_epi32(
                VQKV__ALL_avx512, _mm_maskz_loadu_epi8(real, (const void *)(table->values + at))));
    else
        x = _mm512_maskz_cvtph_ps(
            VQKV__ALL_avx512,
            _mm256_maskz_loadu_epi16(real, (const void *)(table->values + 2 * at)));
    if (left < 16 && mean != NULL)
        x = _mm512_mask_mov_ps(x, (__mmask16)(1u << left),
                               _mm512_set1_ps(vqkv__half_at(mean, row)));
    return x;
}

VQKV__TARGET_avx512 static void vqkv__map_basis_avx512(vqkv__matrix table,
                                                       const unsigned char *mean,
                                                       const vqkv__slice *slice, short *words,
                                                       float *scale)
{
    const int n_in = slice->n_in, n_out = slice->n_out;
    int i, d;
    for (i = 0; i <= n_out; i += 16) {
        __m512 high = _mm512_setzero_ps(), factor;
        __mmask16 some;
        /* of columns in bytes only the mean, where they end, has a largest to be looked for */
        for (d = 0; d < n_in && (table.scale == NULL || n_out - i < 16); d++)
            high =
                _mm512_max_ps(high, _mm512_abs_ps(vqkv__map_row_avx512(&table, mean, slice, d, i)));
        if (table.scale != NULL) /* bytes are words of 16 units, exactly */
            high = _mm512_mask_mov_ps(high, vqkv__map_real_avx512(n_out, i),
                                      _mm512_set1_ps(VQKV__MAP_TOP / 16.0f));
        some = _mm512_cmp_ps_mask(high, _mm512_setzero_ps(), _CMP_GT_OQ);
        factor = _mm512_maskz_div_ps(some, _mm512_set1_ps(VQKV__MAP_TOP), high);
        if (table.scale != NULL) {
            __mmask16 real = vqkv__map_real_avx512(n_out, i);
            __m256i half = _mm256_maskz_loadu_epi16(
                real, (const void *)(table.scale + 2 * (slice->first + i)));
            high =
                _mm512_mask_mul_ps(high, real, high, _mm512_maskz_cvtph_ps(VQKV__ALL_avx512, half));
        }
        _mm512_storeu_ps(scale + i, _mm512_mul_ps(high, _mm512_set1_ps(1.0f / VQKV__MAP_TOP)));
        for (d = 0; d < n_in; d += 2, words += 32) {
            __m512 x = vqkv__map_row_avx512(&table, mean, slice, d, i);
            __m512 y = vqkv__map_row_avx512(&table, mean, slice, d + 1, i);
            __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
            __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(y, factor));
            _mm512_storeu_si512((void *)words,
                                _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_slli_epi32(b, 16)));
        }
    }
}

VQKV__TARGET_avx512 static void vqkv__to_words_avx512(const float *x, int n, float unit, short *out)
{
    __m512 factor = _mm512_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < n; i += 16) {
        __mmask16 some = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1u) : VQKV__ALL_avx512;
        __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor);
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + i), some, _mm512_cvtps_epi32(y));
    }
}

VQKV__TARGET_avx512 static void vqkv__turn_words_avx512(const float *x, const float *c,
                                                        const float *s, int pairs, float unit,
                                                        short *out)
{
    const __m512 factor = _mm512_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < pairs; i += 16) {
        __mmask16 some = vqkv__first_lanes(pairs - i);
        __m512 u = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + pairs + i), factor);
        __m512 cosine = _mm512_maskz_loadu_ps(some, c + i),
               sine = _mm512_maskz_loadu_ps(some, s + i);
        __m512 first = _mm512_fmadd_ps(v, sine, _mm512_mul_ps(u, cosine));
        __m512 second = _mm512_fmsub_ps(v, cosine, _mm512_mul_ps(u, sine));
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + i), some, _mm512_cvtps_epi32(first));
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + pairs + i), some,
                                           _mm512_cvtps_epi32(second));
    }
}

/* y [n, stride] = what n rows and 16 `wide` columns, both constants, have added up to. */
VQKV__INLINE_avx512 void vqkv__map_flush_avx512(__m512i (*sum)[4], const float *scale,
                                                const float *unit, const float *const *base,
                                                const int n, const int wide, size_t stride,
                                                float *y)
{
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < wide; i++) {
            __m512 f = _mm512_mul_ps(_mm512_loadu_ps(scale + 16 * i), _mm512_set1_ps(unit[k]));
            __m512 from = base[k] != NULL ? _mm512_loadu_ps(base[k] + 16 * i) : _mm512_setzero_ps();
            _mm512_storeu_ps(y + (size_t)k * stride + 16 * i,
                             _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k][i]), f, from));
        }
}

/* Rows of x at distance `row`, of four bytes each step of `steps`; columns of 64 bytes a step.
 * Words by twos, or bytes by fours, with their zeros [n]: a constant like n and wide. */
VQKV__INLINE_avx512 void vqkv__map_tile_avx512(const char *x, size_t row, const int32_t *zero,
                                               const char *columns, int steps, const int words,
                                               const int n, const int wide, __m512i (*sum)[4])
{
    int d, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] =
            words ? _mm512_setzero_si512() : _mm512_set1_epi32(-zero[k]);
    for (d = 0; d < steps; d++) {
        __m512i w[4];
#pragma GCC unroll 4
        for (i = 0; i < wide; i++)
            w[i] = _mm512_loadu_si512(
                (const void *)(columns + 64 * ((size_t)i * (size_t)steps + (size_t)d)));
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512i q = vqkv__four_bytes_avx512(x + (size_t)k * row + 4 * (size_t)d);
#pragma GCC unroll 4
            for (i = 0; i < wide; i++)
                if (words)
                    vqkv__add_words_avx512(&sum[k][i], w[i], q);
                else
                    vqkv__add_bytes_avx512(&sum[k][i], w[i], q);
        }
    }
}

/* What map_words and map_bytes have in common; words: a constant. */
VQKV__INLINE_avx512 void vqkv__map_rows_avx512(const char *x, size_t row, const int32_t *zero,
                                               int m, const char *table, int steps, const int words,
                                               const float *scale, int columns, const float *unit,
                                               int rows, const float *base, size_t stride, float *y)
{
    const float *bases[4];
    int c, r, k, step;
    float units[VQKV__MAX_ROWS + 3]; /* of four rows from any one on */
    __m512i sum[4][4];
    for (r = 0; r < rows + 3; r++)
        units[r] = unit[r % rows];
    for (c = 0; c < columns; c += step) {
        const char *w = table + 4 * (size_t)c * (size_t)steps;
        step = columns - c >= 64 ? 64 : 16;
        for (r = 0; r < m;) {
            const char *q = x + (size_t)r * row;
            float *dst = y + (size_t)r * stride + c;
            for (k = 0; k < 4; k++)
                bases[k] = base == NULL ? NULL : base + (size_t)((r + k) % rows) * stride + c;
#define VQKV__MAP(n, wide)                                                                         \
    do {                                                                                           \
        vqkv__map_tile_avx512(q, row, words ? NULL : zero + r, w, steps, words, n, wide, sum);     \
        vqkv__map_flush_avx512(sum, scale + c, units + r % rows, bases, n, wide, stride, dst);     \
        r += n;                                                                                    \
    } while (0)
            if (m - r >= 4 && step == 64)
                VQKV__MAP(4, 4);
            else if (m - r >= 4)
                VQKV__MAP(4, 1);
            else if (step == 64)
                VQKV__MAP(1, 4);
            else
                VQKV__MAP(1, 1);
#undef VQKV__MAP
        }
    }
}

VQKV__TARGET_avx512 static void vqkv__map_words_avx512(const short *x, int m, int n_in,
                                                       const short *words, const float *scale,
                                                       int columns, const float *unit, int rows,
                                                       const float *base, size_t stride, float *y)
{
    vqkv__map_rows_avx512((const char *)x, 2 * (size_t)n_in, NULL, m, (const char *)words, n_in / 2,
                          1, scale, columns, unit, rows, base, stride, y);
}

VQKV__TARGET_avx512 static void vqkv__byte_basis_avx512(vqkv__matrix table,
                                                        const vqkv__slice *slice,
                                                        unsigned char *bytes, float *scale)
{
    int i, d, k;
    for (i = 0; i < slice->n_out; i += 16) {
        const __mmask16 real = vqkv__map_real_avx512(slice->n_out, i);
        _mm512_storeu_ps(
            scale + i,
            _mm512_maskz_cvtph_ps(VQKV__ALL_avx512,
                                  _mm256_maskz_loadu_epi16(
                                      real, (const void *)(table.scale + 2 * (slice->first + i)))));
        for (d = 0; d < slice->n_in; d += 4, bytes += 64) {
            __m512i four = _mm512_setzero_si512();
            for (k = 0; k < 4 && d + k < slice->n_in; k++) {
                const unsigned char *row = table.values +
                                           (size_t)slice->row[d + k] * (size_t)slice->columns +
                                           (size_t)(slice->first + i);
                __m512i x = _mm512_maskz_cvtepu8_epi32(
                    VQKV__ALL_avx512, _mm_maskz_loadu_epi8(real, (const void *)row));
                four = _mm512_or_si512(four, _mm512_slli_epi32(x, (unsigned)(8 * k)));
            }
            _mm512_storeu_si512((void *)bytes,
                                _mm512_xor_si512(four, _mm512_set1_epi8((char)-128)));
        }
    }
}

VQKV__TARGET_avx512 static void vqkv__to_bytes_avx512(const short *x, int m, int n_in,
                                                      const short *steps, int rows,
                                                      signed char *bytes, int32_t *zero)
{
    const __m512i ones = _mm512_set1_epi16(1);
    int r, i;
    for (r = 0; r < m; r++, x += n_in, bytes += VQKV__BYTE_ROWS(n_in)) {
        const __m512i factor = _mm512_set1_epi16(steps[r % rows]);
        __m512i sum = _mm512_setzero_si512();
        for (i = 0; i < n_in; i += 32) {
            const __mmask32 real = n_in - i < 32 ? (1u << (n_in - i)) - 1u : 0xffffffffu;
            const int room = VQKV__BYTE_ROWS(n_in) - i;
            const __mmask32 some = room < 32 ? (1u << room) - 1u : 0xffffffffu;
            __m512i y =
                _mm512_mulhrs_epi16(_mm512_maskz_loadu_epi16(real, (const void *)(x + i)), factor);
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(y, ones));
            _mm256_mask_storeu_epi8((void *)(bytes + i), some, _mm512_cvtepi16_epi8(y));
        }
        zero[r] = 128 * _mm512_reduce_add_epi32(sum);
    }
}

VQKV__TARGET_avx512 static void vqkv__map_bytes_avx512(const signed char *x, const int32_t *zero,
                                                       int m, int n_in, const unsigned char *bytes,
                                                       const float *scale, int columns,
                                                       const float *unit, int rows,
                                                       const float *base, size_t stride, float *y)
{
    vqkv__map_rows_avx512((const char *)x, VQKV__BYTE_ROWS((size_t)n_in), zero, m,
                          (const char *)bytes, VQKV__BYTE_ROWS(n_in) / 4, 0, scale, columns, unit,
                          rows, base, stride, y);
}

#endif /* VQKV_BLOCK >= 64 */
