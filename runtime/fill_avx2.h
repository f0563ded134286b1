/* Score tables in bytes of codes of several channels, filled by products of words: what
 * vqkv__byte_ops promises (types.h).
 *
 * Where every block has a query of its own, tables in fp32 that are packed then take longer than
 * scores do. Here codewords have been words or bytes from the pass's beginning (dots_avx2.h); what
 * an entry may count follows from a bound of each plane's entries, the magnitudes of its latents
 * times their largest codewords, and entries themselves are high halves of products. Planes go in
 * pairs, the first in the low halves of registers. Entries are wide where the run's codewords have
 * 16 bits, narrow where they have 8. */

#if VQKV_BLOCK >= 64

/* Narrow entries are added up in so many parts of a step each. */
#define VQKV__PARTS_avx2 8.0f

/* Channels that a run may have here, and as many as fill up a quad of planes, which have two
 * channels at least. */
#define VQKV__FILL_ROOM_avx2 (4 * VQKV__MAX_DOT_GROUPS + 32)

/* What entries of rows count; their latents in steps of codewords, channel by channel, the same in
 * words, and of narrow entries for each plane what stands for 0, in parts. */
typedef struct vqkv__filling_avx2 {
    float scale[4];
    float latent[4][VQKV__FILL_ROOM_avx2];
    short word[4][VQKV__FILL_ROOM_avx2], zero[4][VQKV__FILL_ROOM_avx2 / 2];
} vqkv__filling_avx2;

/* The magnitudes of the channels of each of four planes, added up. */
VQKV__INLINE_avx2 __m128 vqkv__fill_reach_avx2(const __m256 *x, const int width)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 a[4];
    int i;
#pragma GCC unroll 4
    for (i = 0; i < width / 2; i++)
        a[i] = _mm256_andnot_ps(sign, x[i]);
    if (width == 8) { /* a plane a register */
        a[0] = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        return _mm_add_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
    }
    if (width == 4) { /* planes 0, 1 and 2, 3 */
        a[0] = _mm256_hadd_ps(a[0], a[1]);
        a[0] = _mm256_hadd_ps(a[0], a[0]);
        return _mm_unpacklo_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
    }
    return _mm_hadd_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
}

/* The sum of four lanes. */
VQKV__TARGET_avx2 static inline float vqkv__four_avx2(__m128 x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

/* Latents y [n rows, stride] in steps, and what entries count: of wide ones the planes of a chunk
 * stay within 16 bits, of narrow ones those of a quad within what stands for 0. */
VQKV__INLINE_avx2 void vqkv__fill_latents_avx2(const vqkv__run *run, const float *scale,
                                               const float *y, size_t stride, const int n,
                                               const int width, const int wide, float *energy,
                                               vqkv__filling_avx2 *f)
{
    /* rounding, of a channel's word and of its product, may add a half each of a step or a part */
    const float slack = wide ? (float)(width * VQKV__WIDE_CHUNK_avx2) : 10.0f;
    const float most = vqkv__dot_top_avx2(wide);
    __m256 square[4], x[4];
    __m128 sum[4], top[4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        square[k] = _mm256_setzero_ps();
        sum[k] = top[k] = _mm_setzero_ps();
    }
    for (p = 0; p < run->planes; p += 4) {
        const int chunk = p % VQKV__WIDE_CHUNK_avx2 == 0;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m128 reach;
#pragma GCC unroll 4
            for (i = 0; i < width / 2; i++) {
                const int c = p * width + 8 * i;
                x[i] = vqkv__dot_latents_avx2(run, y + (size_t)k * stride, scale, c);
                _mm256_storeu_ps(f->latent[k] + c, x[i]);
                square[k] = _mm256_fmadd_ps(x[i], x[i], square[k]);
            }
            reach = vqkv__fill_reach_avx2(x, width);
            if (!wide) {
                reach = _mm_hadd_ps(reach, reach);
                top[k] = _mm_max_ss(top[k], _mm_hadd_ps(reach, reach));
                continue;
            }
            if (chunk)
                top[k] = _mm_max_ss(top[k], _mm_set_ss(vqkv__four_avx2(sum[k])));
            sum[k] = chunk ? reach : _mm_add_ps(sum[k], reach);
        }
    }
    for (k = 0; k < n; k++) {
        if (wide)
            top[k] = _mm_max_ss(top[k], _mm_set_ss(vqkv__four_avx2(sum[k])));
        f->scale[k] =
            _mm_cvtss_f32(top[k]) * most / ((wide ? 32767.0f : (float)VQKV__ZERO_avx2) - slack);
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        energy[k] += vqkv__hsum_avx2(square[k]) * (most * most / 7.0f);
    }
}

/* What stands for 0 in each of four planes from p on in narrow tables: no entry is below 0, and
 * those of a quad together stand for ZERO. factor: entries that a step is worth. */
VQKV__INLINE_avx2 void vqkv__fill_zeros_avx2(const __m256 *x, float factor, int planes, int p,
                                             const int width, short *zero)
{
    const __m128 f = _mm_set1_ps(factor * vqkv__dot_top_avx2(0)), more = _mm_set1_ps(2.5f);
    const __m128i first = _mm_setr_epi32(-1, 0, 0, 0), lane = _mm_setr_epi32(0, 1, 2, 3);
    /* of planes that are there */
    const __m128i some = _mm_cmpgt_epi32(_mm_set1_epi32(planes - p), lane);
    const int parts = (int)VQKV__PARTS_avx2;
    __m128i steps = _mm_cvttps_epi32(_mm_fmadd_ps(vqkv__fill_reach_avx2(x, width), f, more)), sum;
    steps = _mm_andnot_si128(first, _mm_and_si128(steps, some));
    sum = _mm_hadd_epi32(steps, steps);
    sum = _mm_sub_epi32(_mm_set1_epi32(VQKV__ZERO_avx2), _mm_hadd_epi32(sum, sum));
    steps = _mm_or_si128(steps, _mm_and_si128(first, sum)); /* the first plane gets what is left */
    /* and half a step, to round */
    steps = _mm_add_epi32(_mm_slli_epi32(steps, 3), _mm_set1_epi32(parts / 2));
    _mm_storel_epi64((__m128i *)(void *)zero, _mm_packs_epi32(steps, steps));
}

/* The n rows' latents in words. */
VQKV__INLINE_avx2 void vqkv__fill_words_avx2(const vqkv__run *run, const int n, const int width,
                                             const int wide, vqkv__filling_avx2 *f)
{
    float factor[4];
    int p, k, i;
    for (k = 0; k < n; k++)
        factor[k] = f->scale[k] > 0.0f ? 1.0f / f->scale[k] : 0.0f;
    for (p = 0; p < run->planes; p += 4) {
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256 by =
                _mm256_set1_ps(32768.0f * (wide ? 1.0f : VQKV__PARTS_avx2) * factor[k]);
            __m256 x[4];
#pragma GCC unroll 4
            for (i = 0; i < width / 2; i++) {
                const int c = p * width + 8 * i;
                __m256i z;
                x[i] = _mm256_loadu_ps(f->latent[k] + c);
                z = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], by));
                _mm_storeu_si128(
                    (__m128i *)(void *)(f->word[k] + c),
                    _mm_packs_epi32(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1)));
            }
            if (!wide)
                vqkv__fill_zeros_avx2(x, factor[k], run->planes, p, width, f->zero[k] + p);
        }
    }
}

/* Codewords i .. i + 7 of a channel of two planes, in words: what the table of dot_books has at a
 * and at b, where the second plane's are. */
VQKV__INLINE_avx2 void vqkv__fill_books_avx2(const unsigned char *a, const unsigned char *b,
                                             const int words, __m256i *w)
{
    const __m128i *low = (const __m128i *)(const void *)a, *high = (const __m128i *)(const void *)b;
    __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                        _mm_loadu_si128(high), 1);
    if (words) {
        w[0] = x;
        w[1] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low + 1)),
                                       _mm_loadu_si128(high + 1), 1);
    } else {
        w[0] = _mm256_unpacklo_epi8(_mm256_setzero_si256(), x);
        w[1] = _mm256_unpackhi_epi8(_mm256_setzero_si256(), x);
    }
}

/* Words of a query for two planes: those of the first in the low half, of the second in the high
 * half. Which word of them is channel c's: fill_pick. */
VQKV__INLINE_avx2 __m256i vqkv__fill_two_avx2(const short *query, const int width)
{
    int64_t four;
    if (width == 8)
        return vqkv__load_bytes_avx2(query);
    if (width == 4)
        return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)query));
    memcpy(&four, query, sizeof four);
    return _mm256_set1_epi64x(four);
}
VQKV__INLINE_avx2 __m256i vqkv__fill_pick_avx2(const int width, const int c)
{
    const int second = width == 8 ? c : width + c;
    return _mm256_inserti128_si256(_mm256_set1_epi16((short)(2 * c | (2 * c + 1) << 8)),
                                   _mm_set1_epi16((short)(2 * second | (2 * second + 1) << 8)), 1);
}

/* Two planes of n rows: entries to out, row behind row. n, width and `wide` are constants. */
VQKV__INLINE_avx2 void vqkv__fill_planes_avx2(const unsigned char *a, const unsigned char *b,
                                              const vqkv__filling_avx2 *f, int p, const int n,
                                              const int width, const int wide, signed char *out)
{
    /* low bytes of words, and behind them high ones */
    const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0,
                                           2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m256i sum[4][2], w[2];
    int c, k;
    if (!wide)
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            int32_t two;
            memcpy(&two, f->zero[k] + p, sizeof two);
            sum[k][0] = sum[k][1] = _mm256_shuffle_epi8(
                _mm256_set1_epi32(two),
                _mm256_inserti128_si256(_mm256_set1_epi16(0x0100), _mm_set1_epi16(0x0302), 1));
        }
#pragma GCC unroll 8
    for (c = 0; c < width; c++) {
        vqkv__fill_books_avx2(a + (wide ? 32 : 16) * c, b + (wide ? 32 : 16) * c, wide, w);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256i q = _mm256_shuffle_epi8(
                vqkv__fill_two_avx2(f->word[k] + p * width, width), vqkv__fill_pick_avx2(width, c));
            const __m256i x = _mm256_mulhrs_epi16(w[0], q), y = _mm256_mulhrs_epi16(w[1], q);
            if (c == 0 && wide) {
                sum[k][0] = x;
                sum[k][1] = y;
                continue;
            }
            vqkv__add_words_avx2(&sum[k][0], x);
            vqkv__add_words_avx2(&sum[k][1], y);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++, out += 128) {
        const __m256i x = _mm256_shuffle_epi8(sum[k][0], split);
        const __m256i y = _mm256_shuffle_epi8(sum[k][1], split);
        __m256i low = _mm256_unpacklo_epi64(x, y);
        if (!wide) /* without parts of a step */
            low = _mm256_and_si256(_mm256_srli_epi16(low, 3),
                                   _mm256_set1_epi8((1 << VQKV__LOW_BITS_avx2) - 1));
        _mm256_storeu_si256((__m256i *)(void *)out, _mm256_unpackhi_epi64(x, y));
        _mm256_storeu_si256((__m256i *)(void *)(out + 64), low);
    }
}

/* Rows r .. r + n - 1. n, width and `wide` are constants. */
VQKV__INLINE_avx2 void vqkv__fill_rows_avx2(const vqkv__run *run, const unsigned char *table,
                                            const float *scale, const float *y, size_t stride,
                                            int rows, int r, const int n, const int width,
                                            const int wide, float *energy, vqkv__packed *head,
                                            signed char *out)
{
    const int bytes = (wide ? 32 : 16) * width; /* of a plane's codewords */
    vqkv__filling_avx2 f;
    int p, k;
    vqkv__fill_latents_avx2(run, scale, y + (size_t)r * stride, stride, n, width, wide, energy + r,
                            &f);
    vqkv__fill_words_avx2(run, n, width, wide, &f);
    for (k = 0; k < n; k++)
        head->scale[2 * (r + k)] = head->scale[2 * (r + k) + 1] = f.scale[k];
    for (p = 0; p < run->planes; p += 2) {
        const unsigned char *a = table + (size_t)p * (size_t)bytes;
        vqkv__fill_planes_avx2(a, p + 1 < run->planes ? a + bytes : a, &f, p, n, width, wide,
                               out + (size_t)(p / 4 * rows + r) * 128 + p % 4 * 16);
    }
}

VQKV__TARGET_avx2 static void vqkv__fill_bytes_avx2(const vqkv__run *run,
                                                    const unsigned char *table, const float *scale,
                                                    const float *y, size_t stride, int rows,
                                                    float *energy, vqkv__packed *head,
                                                    signed char *out)
{
    const int quads = (run->planes + 3) / 4;
    int r, n;
    head->wide = run->words ? quads : 0;
    head->bytes = rows * 128 * quads;
#define VQKV__X(n, width, wide)                                                                    \
    vqkv__fill_rows_avx2(run, table, scale, y, stride, rows, r, n, width, wide, energy, head, out)
#define VQKV__WIDTHS(n)                                                                            \
    if (run->width == 2 && run->words)                                                             \
        VQKV__X(n, 2, 1);                                                                          \
    else if (run->width == 2)                                                                      \
        VQKV__X(n, 2, 0);                                                                          \
    else if (run->width == 4 && run->words)                                                        \
        VQKV__X(n, 4, 1);                                                                          \
    else if (run->width == 4)                                                                      \
        VQKV__X(n, 4, 0);                                                                          \
    else if (run->words)                                                                           \
        VQKV__X(n, 8, 1);                                                                          \
    else                                                                                           \
        VQKV__X(n, 8, 0)
    for (r = 0; r < rows; r += n) {
        n = r + 4 <= rows ? 4 : 1;
        if (n == 4) {
            VQKV__WIDTHS(4);
        } else {
            VQKV__WIDTHS(1);
        }
    }
#undef VQKV__WIDTHS
#undef VQKV__X
}

#endif /* VQKV_BLOCK >= 64 */
