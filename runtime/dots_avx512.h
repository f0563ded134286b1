/* Scores of codes of one or two channels, AVX-512: what vqkv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, 16 bits each and two channels to a 32-bit lane, and meet
 * the query in a dot product: one lookup serves every row, and no table has to be filled for a
 * query. A pair is two channels: those of two planes of one channel a code, or of one plane of two.
 */

#if VQKV_BLOCK >= 64

/* Codewords count scale / DOT_TOP; queries are rounded so that no sum leaves 32 bits. */
#define VQKV__DOT_TOP 2047.0f

/* table [pairs, 32] of 16-bit codewords: lookups for one channel a code are by words (sixteen of
 * each plane), for two by double words; scale [2 * pairs] of each channel. */
VQKV__TARGET_avx512 static void vqkv__dot_books_avx512(const vqkv__run *run, short *table,
                                                       float *scale)
{
    int pairs = vqkv__dot_pairs(run), i, k;
    for (i = 0; i < 2 * pairs; i++) {
        int plane = run->width == 1 ? i : i / 2, w = run->width == 1 ? 0 : i % 2;
        __m512 x = _mm512_setzero_ps();
        __m512i words;
        int entry[16];
        float top;
        if (plane < run->planes)
            x = vqkv__loadh_avx512(vqkv__table(run->book + plane / run->stages * run->book_step +
                                               (plane % run->stages * run->width + w) * 16));
        top = _mm512_reduce_max_ps(_mm512_abs_ps(x));
        scale[i] = top / VQKV__DOT_TOP;
        words = _mm512_cvtps_epi32(
            _mm512_mul_ps(x, _mm512_set1_ps(top > 0.0f ? VQKV__DOT_TOP / top : 0.0f)));
        _mm512_storeu_si512((void *)entry, words);
        for (k = 0; k < 16; k++)
            table[i / 2 * 32 + (run->width == 1 ? i % 2 * 16 + k : 2 * k + i % 2)] =
                (short)entry[k];
    }
}

/* Channels i .. i + 15 of a row's latents times their scale: 0 behind the last plane's. */
VQKV__TARGET_avx512 static inline __m512
vqkv__dot_channels_avx512(const vqkv__run *run, const float *scale, const float *y, int i)
{
    int n = run->planes * run->width - i, k;
    __mmask16 real = n < 16 ? (__mmask16)((1u << n) - 1u) : VQKV__ALL_avx512;
    float lane[16];
    __m512 s = _mm512_maskz_loadu_ps(real, scale + i);
    if (run->stages == 1)
        return _mm512_mul_ps(s, _mm512_maskz_loadu_ps(real, y + i));
    for (k = 0; k < 16; k++)
        lane[k] = k < n ? y[(i + k) / run->width / run->stages * run->width + (i + k) % run->width]
                        : 0.0f;
    return _mm512_mul_ps(s, _mm512_loadu_ps(lane));
}

/* y [rows, stride]: queries in latents, from the run's first on; to words [rows, 2 * pairs], each
 * of which counts unit[row] of a codeword's step. The mean square of a codebook is taken to be a
 * seventh of its largest square, as it is for Gaussian channels. */
VQKV__TARGET_avx512 static void vqkv__dot_queries_avx512(const vqkv__run *run, const float *scale,
                                                         const float *y, size_t stride, int rows,
                                                         short *words, float *unit, float *energy)
{
    int n = 2 * vqkv__dot_pairs(run), r, i;
    /* n products of at most DOT_TOP * limit stay below 2^31. */
    float limit = 1048576.0f / (float)n;
    limit = limit < 32767.0f ? limit : 32767.0f;
    for (r = 0; r < rows; r++, y += stride, words += n) {
        __m512 high = _mm512_setzero_ps(), square = high, factor;
        float top;
        for (i = 0; i < n; i += 16) {
            __m512 x = vqkv__dot_channels_avx512(run, scale, y, i);
            high = _mm512_max_ps(high, _mm512_abs_ps(x));
            square = _mm512_fmadd_ps(x, x, square);
        }
        energy[r] += _mm512_reduce_add_ps(square) * (VQKV__DOT_TOP * VQKV__DOT_TOP / 7.0f);
        top = _mm512_reduce_max_ps(high);
        unit[r] = top / limit;
        factor = _mm512_set1_ps(top > 0.0f ? limit / top : 0.0f);
        for (i = 0; i < n; i += 16) {
            __mmask16 some = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1u) : VQKV__ALL_avx512;
            __m512 x = _mm512_mul_ps(vqkv__dot_channels_avx512(run, scale, y, i), factor);
            _mm512_mask_cvtepi32_storeu_epi16((void *)(words + i), some, _mm512_cvtps_epi32(x));
        }
    }
}

/* dst [16] = (add ? dst : 0) + f * sum */
VQKV__INLINE_avx512 void vqkv__flush_avx512(__m512i sum, __m512 f, int add, float *dst)
{
    __m512 x = _mm512_cvtepi32_ps(sum);
    if (add)
        _mm512_storeu_ps(dst, _mm512_fmadd_ps(x, f, _mm512_loadu_ps(dst)));
    else
        _mm512_storeu_ps(dst, _mm512_mul_ps(x, f));
}

/* n rows, a constant where it is called, from row r on; tokens of chunk c: 32 and, half a block
 * later, 32 more. */
VQKV__INLINE_avx512 void vqkv__dot_rows_avx512(const unsigned char *codes, const vqkv__run *run,
                                               const short *table, const short *words,
                                               const float *unit, int r, const int n, int c,
                                               const int width, int add, float *s)
{
    const int bytes = VQKV_BLOCK / 2, pairs = vqkv__dot_pairs(run);
    const __m512i nibble = _mm512_set1_epi32(0x000f000f), second = _mm512_set1_epi32(0x00100000);
    /* Byte 0 of a lane from the low half of a register, byte 2 from the high half. */
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i pick0 = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(0x00010001)),
                                           _mm512_set1_epi32(0x00200000));
    const __m512i pick1 = _mm512_add_epi32(pick0, _mm512_set1_epi32(0x00100010));
    __m512i sum[4][4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_setzero_si512();
    codes += 32 * c;
    words += r * 2 * pairs;
    for (p = 0; p < pairs; p++, table += 32) {
        __m512i t = _mm512_loadu_si512((const void *)table), v[4];
        if (width == 1) {
            const unsigned char *a = codes + 2 * p * bytes;
            const unsigned char *b = 2 * p + 1 < run->planes ? a + bytes : a;
            __m512i x;
            if (VQKV_BLOCK == 64 && a != b) { /* they lie side by side */
                x = _mm512_loadu_si512((const void *)a);
            } else {
                x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a));
                x = _mm512_inserti64x4(x, _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
            }
            v[0] = _mm512_permutexvar_epi8(pick0, x);
            v[1] = _mm512_permutexvar_epi8(pick1, x);
            v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[0], 4), nibble, second, 0xea);
            v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[1], 4), nibble, second, 0xea);
            v[0] = _mm512_ternarylogic_epi32(v[0], nibble, second, 0xea);
            v[1] = _mm512_ternarylogic_epi32(v[1], nibble, second, 0xea);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                v[i] = _mm512_permutexvar_epi16(v[i], t);
        } else {
            const unsigned char *a = codes + p * bytes;
            v[0] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)a));
            v[1] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(a + 16)));
            v[2] = _mm512_srli_epi32(v[0], 4);
            v[3] = _mm512_srli_epi32(v[1], 4);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) /* bits above the low four do not count */
                v[i] = _mm512_permutexvar_epi32(v[i], t);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512i y = vqkv__four_bytes_avx512(words + k * 2 * pairs + 2 * p);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                vqkv__add_words_avx512(&sum[k][i], v[i], y);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512 f = _mm512_set1_ps(unit[r + k]);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            vqkv__flush_avx512(sum[k][i], f, add,
                               s + (r + k) * VQKV_BLOCK + i / 2 * (VQKV_BLOCK / 2) + 32 * c +
                                   i % 2 * 16);
    }
}

VQKV__TARGET_avx512 static void vqkv__dot_scores_avx512(const unsigned char *const *codes,
                                                        size_t offset, int blocks,
                                                        const vqkv__run *run, const short *table,
                                                        const short *words, const float *unit,
                                                        int rows, int add, float *s)
{
    int b, c, r;
#define VQKV__X(n, width)                                                                          \
    vqkv__dot_rows_avx512(codes[b] + offset, run, table, words, unit, r, n, c, width, add, s)
#define VQKV__DOT(n) (run->width == 1 ? VQKV__X(n, 1) : VQKV__X(n, 2))
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK)
        for (c = 0; c < VQKV_BLOCK / 64; c++) {
            for (r = 0; r + 4 <= rows; r += 4)
                VQKV__DOT(4);
            for (; r + 2 <= rows; r += 2)
                VQKV__DOT(2);
            for (; r < rows; r++)
                VQKV__DOT(1);
        }
#undef VQKV__DOT
#undef VQKV__X
}

#endif /* VQKV_BLOCK >= 64 */
