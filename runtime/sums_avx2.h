/* Sums of values in bytes, AVX2: what vqkv__byte_ops promises (types.h).
 *
 * Codewords looked up by a shuffle times weights of 7 bits, so that no pair of products leaves 16
 * bits, nor the two pairs of both halves of a block. */

#if VQKV_BLOCK >= 64

/* Weights: the largest, and what four that end up in the same word add up to: times 127, the
 * largest codeword, it is at most 32767, were each as much larger as rounding makes it. What is
 * left of them counts REST to a step, and four times that is no more. */
#define VQKV__MOST_WEIGHT_avx2  126.0f
#define VQKV__MOST_WEIGHTS_avx2 254.0f
#define VQKV__WEIGHT_REST_avx2  64.0f

/* Sixteen bytes of what two registers of floats say, rounded to the nearest. */
VQKV__TARGET_avx2 static inline void vqkv__store_rounded_avx2(__m256 a, __m256 b,
                                                              unsigned char *out)
{
    __m256i x = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
    _mm_storeu_si128((__m128i *)(void *)out, vqkv__narrowed_avx2(x));
}

/* Sixteen weights p * gain * factor. Small ones are added to `dither` before they are rounded, lest
 * they are all rounded away; of large ones that would only make the error larger. */
VQKV__INLINE_avx2 void vqkv__pack_sixteen_avx2(const float *p, const float *gain, __m256 factor,
                                               const float *dither, unsigned char *out)
{
    __m256 x[2];
    int i;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        __m256 w = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(gain + 8 * i));
        w = _mm256_mul_ps(w, factor);
        x[i] = _mm256_add_ps(w, _mm256_and_ps(_mm256_loadu_ps(dither + 8 * i),
                                              _mm256_cmp_ps(w, _mm256_set1_ps(8.0f), _CMP_LT_OQ)));
    }
    vqkv__store_rounded_avx2(x[0], x[1], out);
}

/* The same, rounded down; rest gets what is left. */
VQKV__INLINE_avx2 void vqkv__split_sixteen_avx2(const float *p, const float *gain, __m256 factor,
                                                unsigned char *out, unsigned char *rest)
{
    __m256 whole[2], left[2];
    int i;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        __m256 w = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(gain + 8 * i));
        w = _mm256_mul_ps(w, factor);
        whole[i] = _mm256_floor_ps(w);
        left[i] = _mm256_mul_ps(_mm256_sub_ps(w, whole[i]), _mm256_set1_ps(VQKV__WEIGHT_REST_avx2));
    }
    vqkv__store_rounded_avx2(whole[0], whole[1], out);
    vqkv__store_rounded_avx2(left[0], left[1], rest);
}

/* What a step of weights p [blocks, rows, BLOCK] * gain [blocks, BLOCK] of one row is worth: the
 * largest becomes MOST_WEIGHT, or four that end up in the same word, two neighbours of each half of
 * a block, become MOST_WEIGHTS. The latter takes up to a bit from weights that are all large. */
VQKV__TARGET_avx2 static float vqkv__weight_step_avx2(const float *p, const float *gain, int blocks,
                                                      size_t step)
{
    __m256 high = _mm256_setzero_ps(), most = high;
    float top, sum;
    int b, t;
    for (b = 0; b < blocks; b++, p += step, gain += VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK / 2; t += 8) {
            const int u = t + VQKV_BLOCK / 2;
            __m256 x = _mm256_mul_ps(_mm256_loadu_ps(p + t), _mm256_loadu_ps(gain + t));
            __m256 y = _mm256_mul_ps(_mm256_loadu_ps(p + u), _mm256_loadu_ps(gain + u));
            high = _mm256_max_ps(high, _mm256_max_ps(x, y));
            x = _mm256_add_ps(x, y);
            most = _mm256_max_ps(most, _mm256_add_ps(x, _mm256_permute_ps(x, 0xb1)));
        }
    top = vqkv__hmax_avx2(high) / VQKV__MOST_WEIGHT_avx2;
    sum = vqkv__hmax_avx2(most) / VQKV__MOST_WEIGHTS_avx2;
    return top > sum ? top : sum;
}

VQKV__TARGET_avx2 static void vqkv__pack_weights_avx2(const float *p, const float *gain, int blocks,
                                                      int rows, unsigned char *out,
                                                      unsigned char *rest, float *scale)
{
    /* The thresholds of the AVX-512 kernel less one half. */
    static const float dither[16] = {-0.46875f, 0.03125f, -0.21875f, 0.28125f, -0.34375f, 0.15625f,
                                     -0.09375f, 0.40625f, -0.40625f, 0.09375f, -0.15625f, 0.34375f,
                                     -0.28125f, 0.21875f, -0.03125f, 0.46875f};
    const size_t step = (size_t)rows * VQKV_BLOCK;
    int b, r, t;
    for (r = 0; r < rows; r++, p += VQKV_BLOCK, out += VQKV_BLOCK) {
        __m256 factor;
        scale[r] = vqkv__weight_step_avx2(p, gain, blocks, step);
        factor = _mm256_set1_ps(scale[r] > 0.0f ? 1.0f / scale[r] : 0.0f);
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16) {
                const size_t at = (size_t)b * step + (size_t)t;
                const float *g = gain + b * VQKV_BLOCK + t;
                if (rest == NULL)
                    vqkv__pack_sixteen_avx2(p + at, g, factor, dither, out + at);
                else
                    vqkv__split_sixteen_avx2(p + at, g, factor, out + at, rest + at);
            }
        if (rest != NULL)
            rest += VQKV_BLOCK;
    }
}

/* Two channels of a run: the first token of their planes in a block, and their latents. */
typedef struct vqkv__two {
    size_t plane[2], latent[2];
} vqkv__two;

/* Channels c and c + 1 of the run's n, counted plane by plane; behind the last it stands again. By
 * a pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void vqkv__two_of(const vqkv__run *run, size_t offset, int c, int n, vqkv__two *two)
{
    int i;
    for (i = 0; i < 2; i++) {
        const int channel = c + i < n ? c + i : n - 1, plane = channel / run->width;
        two->plane[i] = offset + (size_t)plane * (VQKV_BLOCK / 2);
        two->latent[i] = (size_t)(plane / run->stages * run->width + channel - plane * run->width);
    }
}

/* In lane k the sum over lanes of x[k][i], of n rows; n is a constant. */
VQKV__INLINE_avx2 __m128i vqkv__row_sums_avx2(__m256i (*x)[2], const int n, const int i)
{
    const __m256i a = _mm256_hadd_epi32(x[0][i], x[n > 1 ? 1 : 0][i]);
    const __m256i b = n > 2 ? _mm256_hadd_epi32(x[2][i], x[n > 3 ? 3 : 2][i]) : a;
    const __m256i c = _mm256_hadd_epi32(a, b);
    return _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
}

/* Two channels, of the `same` plane or of two, for n rows from row r on; `real` of the channels are
 * there. n and `same` are constants where it is called. */
VQKV__INLINE_avx2 void vqkv__sum_two_avx2(const unsigned char *const *codes, int blocks,
                                          const vqkv__two *two, const int same, int real,
                                          const signed char *book, const float *book_scale,
                                          const unsigned char *weights, const float *scale,
                                          int rows, int r, const int n, float *sums, size_t stride)
{
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const unsigned char *w = weights + (size_t)r * VQKV_BLOCK;
    __m256i sum[4][2], table[2];
    int b, i, k, t;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        table[i] = vqkv__table_bytes_avx2(book + 16 * (i < real ? i : 0));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = _mm256_setzero_si256();
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK / 2; t += 32) {
            const unsigned char *plane = codes[b] + two->plane[0] + t;
            __m256i x[2], low[2], high[2];
            x[0] = vqkv__load_bytes_avx2(plane);
            x[1] = same ? x[0] : vqkv__load_bytes_avx2(codes[b] + two->plane[1] + t);
            VQKV__PREFETCH(plane + (same ? 64 : VQKV_BLOCK), 3); /* for the next ones */
#pragma GCC unroll 2
            for (i = 0; i < 2; i++) {
                low[i] = _mm256_shuffle_epi8(table[i], _mm256_and_si256(x[i], nibble));
                high[i] = _mm256_shuffle_epi8(table[i],
                                              _mm256_and_si256(_mm256_srli_epi16(x[i], 4), nibble));
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                const __m256i p = vqkv__load_bytes_avx2(w + k * VQKV_BLOCK + t);
                const __m256i q = vqkv__load_bytes_avx2(w + k * VQKV_BLOCK + t + VQKV_BLOCK / 2);
#pragma GCC unroll 2
                for (i = 0; i < 2; i++) {
                    __m256i u = _mm256_maddubs_epi16(p, low[i]);
                    __m256i v = _mm256_maddubs_epi16(q, high[i]);
                    vqkv__add_words_avx2(&v, u);
                    vqkv__add_longs_avx2(&sum[k][i], _mm256_madd_epi16(v, ones));
                }
            }
        }
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        float total[4];
        _mm_storeu_ps(total, _mm_cvtepi32_ps(vqkv__row_sums_avx2(sum, n, i)));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            if (i < real)
                sums[(size_t)(r + k) * stride + two->latent[i]] +=
                    total[k] * (scale[r + k] * book_scale[i]);
    }
}

/* All channels of a run for n rows from row r on. */
VQKV__INLINE_avx2 void vqkv__sum_rows_avx2(const unsigned char *const *codes, size_t offset,
                                           int blocks, const vqkv__run *run,
                                           const signed char *book, const float *book_scale,
                                           const unsigned char *weights, const float *scale,
                                           int rows, int r, const int n, float *sums, size_t stride)
{
    const int channels = run->planes * run->width;
    int c;
#define VQKV__TWO(same)                                                                            \
    vqkv__sum_two_avx2(codes, blocks, &two, same, real, book, book_scale, weights, scale, rows, r, \
                       n, sums, stride)
    for (c = 0; c < channels; c += 2, book += 32, book_scale += 2) {
        vqkv__two two;
        const int real = channels - c < 2 ? channels - c : 2;
        vqkv__two_of(run, offset, c, channels, &two);
        if (two.plane[0] == two.plane[1])
            VQKV__TWO(1);
        else
            VQKV__TWO(0);
    }
#undef VQKV__TWO
}

VQKV__TARGET_avx2 static void vqkv__sum_bytes_avx2(const unsigned char *const *codes, size_t offset,
                                                   int blocks, const vqkv__run *run,
                                                   const signed char *book, const float *book_scale,
                                                   const unsigned char *weights, const float *scale,
                                                   int rows, vqkv__asked *ahead, float *sums,
                                                   size_t stride)
{
    int r = 0;
    (void)ahead; /* little is to be gained where sums take so long */
#define VQKV__X(n)                                                                                 \
    vqkv__sum_rows_avx2(codes, offset, blocks, run, book, book_scale, weights, scale, rows, r, n,  \
                        sums, stride)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

#endif /* VQKV_BLOCK >= 64 */
