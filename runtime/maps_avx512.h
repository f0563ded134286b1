/* The query map in 16-bit words, AVX-512: what vqkv__byte_ops promises (types.h). Words of 12 bits
 * and more on both sides keep the product's error far below that of score tables; eight would not.
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
        for (d = 0; d < n_in; d++)
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

/* Rows of x at distance n_in, of y at distance `columns`; `n` rows and 16 `wide` columns, both
 * constants where it is called. */
VQKV__INLINE_avx512 void vqkv__map_tile_avx512(const short *x, int n_in, const short *words,
                                               const float *scale, int columns, const float *unit,
                                               const float *const *base, const int n,
                                               const int wide, float *y)
{
    __m512i sum[4][4];
    int d, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_setzero_si512();
    for (d = 0; d < n_in / 2; d++) {
        __m512i w[4];
#pragma GCC unroll 4
        for (i = 0; i < wide; i++)
            w[i] = _mm512_loadu_si512(
                (const void *)(words + (size_t)i * 16 * (size_t)n_in + 32 * (size_t)d));
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            int32_t two;
            __m512i q;
            memcpy(&two, x + k * n_in + 2 * d, 4);
            q = _mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (i = 0; i < wide; i++)
                vqkv__add_words_avx512(&sum[k][i], w[i], q);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < wide; i++) {
            __m512 f = _mm512_mul_ps(_mm512_loadu_ps(scale + 16 * i), _mm512_set1_ps(unit[k]));
            __m512 from = base[k] != NULL ? _mm512_loadu_ps(base[k] + 16 * i) : _mm512_setzero_ps();
            _mm512_storeu_ps(y + (size_t)k * (size_t)columns + 16 * i,
                             _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k][i]), f, from));
        }
}

VQKV__TARGET_avx512 static void vqkv__map_words_avx512(const short *x, int m, int n_in,
                                                       const short *words, const float *scale,
                                                       int columns, const float *unit, int rows,
                                                       const float *base, float *y)
{
    const float *bases[4];
    int c, r, k, step;
    float units[VQKV__MAX_ROWS + 3]; /* of four rows from any one on */
    for (r = 0; r < rows + 3; r++)
        units[r] = unit[r % rows];
    for (c = 0; c < columns; c += step) {
        const short *w = words + (size_t)c * (size_t)n_in;
        step = columns - c >= 64 ? 64 : 16;
        for (r = 0; r < m;) {
            const short *q = x + (size_t)r * (size_t)n_in;
            float *dst = y + (size_t)r * (size_t)columns + c;
            for (k = 0; k < 4; k++)
                bases[k] = base == NULL ? NULL : base + (size_t)((r + k) % rows * columns + c);
#define VQKV__MAP(n, wide)                                                                         \
    vqkv__map_tile_avx512(q, n_in, w, scale + c, columns, units + r % rows, bases, n, wide, dst)
            if (m - r >= 4) {
                step == 64 ? VQKV__MAP(4, 4) : VQKV__MAP(4, 1);
                r += 4;
            } else {
                step == 64 ? VQKV__MAP(1, 4) : VQKV__MAP(1, 1);
                r++;
            }
#undef VQKV__MAP
        }
    }
}

#endif /* VQKV_BLOCK >= 64 */
