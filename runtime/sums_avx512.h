/* Sums of values in bytes, AVX-512: what vqkv__byte_ops promises (types.h).
 *
 * A plane's codes become 8-bit codewords by a byte permutation, and a dot product adds codeword
 * times weight over tokens, for four channels and four rows at once. */

#if VQKV_BLOCK >= 64

/* Rows r .. r + n - 1 of weights p * gain in 8 bits: a `top` becomes 254. n is a constant. */
VQKV__INLINE_avx512 void vqkv__pack_rows_avx512(const float *p, const float *gain, int blocks,
                                                int rows, int r, const int n, unsigned char *out,
                                                unsigned char *rest, float *scale)
{
    /* Thresholds spread evenly over (0, 1): small weights are not all rounded away, however large
     * the row's largest is; on average over positions, rounding keeps the sum. */
    const __m512 dither =
        _mm512_mul_ps(_mm512_set_ps(31, 15, 23, 7, 27, 11, 19, 3, 29, 13, 21, 5, 25, 9, 17, 1),
                      _mm512_set1_ps(1.0f / 32.0f));
    const int step = rows * VQKV_BLOCK;
    __m512 high[4], factor[4];
    int b, t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        high[k] = _mm512_setzero_ps();
    for (b = 0; b < blocks; b++)
        for (t = 0; t < VQKV_BLOCK; t += 16) {
            const float *x = p + b * step + r * VQKV_BLOCK + t;
            __m512 g = _mm512_loadu_ps(gain + b * VQKV_BLOCK + t);
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                high[k] = vqkv__max_avx512(high[k],
                                           _mm512_mul_ps(g, _mm512_loadu_ps(x + k * VQKV_BLOCK)));
        }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float top = vqkv__hmax_avx512(high[k]);
        scale[r + k] = top / 254.0f;
        factor[k] = _mm512_set1_ps(top > 0.0f ? 254.0f / top : 0.0f);
    }
    for (b = 0; b < blocks; b++)
        for (t = 0; t < VQKV_BLOCK; t += 16) {
            size_t at = (size_t)(b * step + r * VQKV_BLOCK + t);
            __m512 g = _mm512_loadu_ps(gain + b * VQKV_BLOCK + t);
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512 x = _mm512_mul_ps(g, _mm512_loadu_ps(p + at + k * VQKV_BLOCK));
                __m512 y =
                    _mm512_fmadd_ps(x, factor[k], rest == NULL ? dither : _mm512_setzero_ps());
                __m512i i = _mm512_cvttps_epi32(y);
                _mm_storeu_si128((__m128i *)(void *)(out + at + k * VQKV_BLOCK),
                                 _mm512_cvtusepi32_epi8(i));
                if (rest == NULL)
                    continue;
                y = _mm512_mul_ps(_mm512_sub_ps(y, _mm512_cvtepi32_ps(i)), _mm512_set1_ps(255.0f));
                _mm_storeu_si128((__m128i *)(void *)(rest + at + k * VQKV_BLOCK),
                                 _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(y)));
            }
        }
}

VQKV__TARGET_avx512 static void vqkv__pack_weights_avx512(const float *p, const float *gain,
                                                          int blocks, int rows, unsigned char *out,
                                                          unsigned char *rest, float *scale)
{
    int r;
#define VQKV__X(n) vqkv__pack_rows_avx512(p, gain, blocks, rows, r, n, out, NULL, scale)
    if (rest == NULL)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    for (r = 0; r < rows && rest != NULL; r++)
        vqkv__pack_rows_avx512(p, gain, blocks, rows, r, 1, out, rest, scale);
}

/* The codes of tokens t .. t + 63 of a plane, in low nibbles; bits above them are anything. */
VQKV__INLINE_avx512 __m512i vqkv__plane_codes_avx512(const unsigned char *plane, int t)
{
    __m512i x;
#if VQKV_BLOCK == 64
    (void)t;
    x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)plane));
    return _mm512_mask_srli_epi16(x, 0xffff0000u, x, 4);
#else
    x = _mm512_loadu_si512((const void *)(plane + t % (VQKV_BLOCK / 2)));
    return t < VQKV_BLOCK / 2 ? x : _mm512_srli_epi16(x, 4);
#endif
}

/* Where four channels lie: the first token of their planes in a block, and their latents. */
typedef struct vqkv__four {
    size_t plane[4];
    size_t latent[4];
} vqkv__four;

/* Channels c .. c + 3 of the run's n, counted plane by plane; behind the last it stands again. By a
 * pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void vqkv__four_of(const vqkv__run *run, size_t offset, int c, int n,
                                 vqkv__four *four)
{
    int i;
    for (i = 0; i < 4; i++) {
        int channel = c + i < n ? c + i : n - 1, plane = channel, latent = channel;
        if (run->width == 2)
            plane = channel / 2;
        else if (run->width > 2)
            plane = channel / run->width;
        if (run->stages > 1)
            latent = plane / run->stages * run->width + channel - plane * run->width;
        four->plane[i] = offset + (size_t)plane * (VQKV_BLOCK / 2);
        four->latent[i] = (size_t)latent;
    }
}

/* Sums over each of four lanes that lie side by side: in lane 4 j + i of lanes 4 j .. 4 j + 3 of
 * x[i]. */
VQKV__INLINE_avx512 __m512i vqkv__fold_lanes_avx512(const __m512i *x)
{
    const __m512i a = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(VQKV__ALL_avx512, x[0], x[1]),
                                       _mm512_maskz_unpackhi_epi32(VQKV__ALL_avx512, x[0], x[1]));
    const __m512i b = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(VQKV__ALL_avx512, x[2], x[3]),
                                       _mm512_maskz_unpackhi_epi32(VQKV__ALL_avx512, x[2], x[3]));
    return _mm512_add_epi32(_mm512_maskz_unpacklo_epi64((__mmask8)0xff, a, b),
                            _mm512_maskz_unpackhi_epi64((__mmask8)0xff, a, b));
}

/* The 128-bit parts of a and b, each half of one added to the other half: a's, then b's. */
VQKV__INLINE_avx512 __m512i vqkv__fold_parts_avx512(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_maskz_shuffle_i32x4(VQKV__ALL_avx512, a, b, 0x44),
                            _mm512_maskz_shuffle_i32x4(VQKV__ALL_avx512, a, b, 0xee));
}

/* sums [n, stride] += what lanes of sum [n, 4] add up to, times f [n] and the channels' scales. */
VQKV__INLINE_avx512 void vqkv__keep_sums_avx512(__m512i (*sum)[4], const int n,
                                                const vqkv__four *four, int real,
                                                const float *book_scale, const float *f,
                                                float *sums, size_t stride)
{
    const __m128 scale = _mm_maskz_loadu_ps((__mmask8)vqkv__first_lanes(real), book_scale);
    float left[4];
    __m128 x[4];
    int k, i;
    if (n == 4) {
        const __m512i a = vqkv__fold_parts_avx512(vqkv__fold_lanes_avx512(sum[0]),
                                                  vqkv__fold_lanes_avx512(sum[1]));
        const __m512i b = vqkv__fold_parts_avx512(vqkv__fold_lanes_avx512(sum[2]),
                                                  vqkv__fold_lanes_avx512(sum[3]));
        const __m512 all = _mm512_maskz_cvtepi32_ps(
            VQKV__ALL_avx512,
            _mm512_add_epi32(_mm512_maskz_shuffle_i32x4(VQKV__ALL_avx512, a, b, 0x88),
                             _mm512_maskz_shuffle_i32x4(VQKV__ALL_avx512, a, b, 0xdd)));
        x[0] = _mm512_castps512_ps128(all);
        x[1] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 1);
        x[2] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 2);
        x[3] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 3);
    } else {
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            x[k] = _mm_cvtepi32_ps(vqkv__four_sums_avx512(sum[k]));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = sums + (size_t)k * stride;
        x[k] = _mm_mul_ps(x[k], _mm_mul_ps(_mm_set1_ps(f[k]), scale));
        if (four->latent[3] == four->latent[0] + 3) {
            to += four->latent[0];
            _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), x[k]));
            continue;
        }
        _mm_storeu_ps(left, x[k]);
        for (i = 0; i < real; i++)
            to[four->latent[i]] += left[i];
    }
}

/* Four channels, `each` of them of one plane, `real` of them there, for n rows from row r on; each
 * and n are constants. The codewords of a channel stand four times in a register, so that bits
 * above a nibble do not count. */
VQKV__INLINE_avx512 void vqkv__sum_rows_avx512(const unsigned char *const *codes, int blocks,
                                               const vqkv__four *four, const int each, int real,
                                               const signed char *book, const float *book_scale,
                                               const unsigned char *weights, const float *scale,
                                               int rows, int r, const int n, vqkv__asked *ahead,
                                               float *sums, size_t stride)
{
    __m512i sum[4][4], table[4];
    const unsigned char *w = weights + (size_t)r * VQKV_BLOCK;
    int b, k, t, i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        table[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(
            (const __m128i *)(const void *)(book + 16 * (i < real ? i : real - 1))));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = _mm512_setzero_si512();
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * VQKV_BLOCK) {
        vqkv__ask_far(ahead);
        for (t = 0; t < VQKV_BLOCK; t += 64) {
            __m512i x = vqkv__plane_codes_avx512(codes[b] + four->plane[0], t), v[4];
            v[0] = _mm512_permutexvar_epi8(x, table[0]);
#pragma GCC unroll 4
            for (i = 1; i < 4; i++) {
                if (i % each == 0)
                    x = vqkv__plane_codes_avx512(codes[b] + four->plane[i], t);
                v[i] = _mm512_permutexvar_epi8(x, table[i]);
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i p = _mm512_loadu_si512((const void *)(w + k * VQKV_BLOCK + t));
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_avx512(&sum[k][i], p, v[i]);
            }
        }
    }
    vqkv__keep_sums_avx512(sum, n, four, real, book_scale, scale + r, sums + (size_t)r * stride,
                           stride);
}

/* All channels of a run, `each` of every four of one plane. */
VQKV__INLINE_avx512 void vqkv__sum_run_avx512(const unsigned char *const *codes, size_t offset,
                                              int blocks, const vqkv__run *run, const int each,
                                              const signed char *book, const float *book_scale,
                                              const unsigned char *weights, const float *scale,
                                              int rows, vqkv__asked *ahead, float *sums,
                                              size_t stride)
{
    vqkv__asked asked = *ahead;
    int c, r, n = run->planes * run->width;
    for (c = 0; c < n; c += 4, book += 64, book_scale += 4) {
        vqkv__four four;
        int real = n - c < 4 ? n - c : 4;
        vqkv__four_of(run, offset, c, n, &four);
#define VQKV__SUM(n_rows)                                                                          \
    vqkv__sum_rows_avx512(codes, blocks, &four, each, real, book, book_scale, weights, scale,      \
                          rows, r, n_rows, &asked, sums, stride)
        VQKV__BY_ROWS(r, rows, VQKV__SUM);
#undef VQKV__SUM
    }
    *ahead = asked;
}

VQKV__TARGET_avx512 static void
vqkv__sum_bytes_avx512(const unsigned char *const *codes, size_t offset, int blocks,
                       const vqkv__run *run, const signed char *book, const float *book_scale,
                       const unsigned char *weights, const float *scale, int rows,
                       vqkv__asked *ahead, float *sums, size_t stride)
{
#define VQKV__X(each)                                                                              \
    vqkv__sum_run_avx512(codes, offset, blocks, run, each, book, book_scale, weights, scale, rows, \
                         ahead, sums, stride)
    if (run->width % 4 == 0)
        VQKV__X(4);
    else if (run->width == 2)
        VQKV__X(2);
    else
        VQKV__X(1);
#undef VQKV__X
}

#endif /* VQKV_BLOCK >= 64 */
