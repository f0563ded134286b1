/* Scores of codes of one channel, and codewords for score tables of others (fill_avx2.h), AVX2:
 * what vqkv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, high and low bytes, which one lookup does for every row,
 * and meet the query in products of words of which the high half is kept: units are such that no
 * sum of them leaves 16 bits. A group is two channels. */

#if VQKV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps. */
#define VQKV__DOT_TOP_avx2 32767.0f

/* The same of codewords in words, or in bytes, which are high ones of words. */
static inline float vqkv__dot_top_avx2(int words)
{
    return words ? VQKV__DOT_TOP_avx2 : 127.0f * 256.0f;
}

/* The codewords of a channel to table [32]: sixteen low and sixteen high bytes; for tables of codes
 * of many channels sixteen words, or only their high bytes to table [16]. */
VQKV__TARGET_avx2 static inline void vqkv__dot_book_avx2(const float *book, float top,
                                                         const vqkv__run *run, signed char *table)
{
    const float limit = run->words ? VQKV__DOT_TOP_avx2 : 127.0f;
    const __m256i x = vqkv__sixteen_avx2(book, top > 0.0f ? limit / top : 0.0f);
    if (run->width > 1 && run->words) {
        _mm256_storeu_si256((__m256i *)(void *)table, x);
        return;
    }
    vqkv__store_bytes_avx2(table, x);
    if (run->words)
        vqkv__store_bytes_avx2(table + 16, _mm256_srli_epi16(x, 8));
}

/* table [groups, 64], channel by channel; scale [4 * groups]: what a step of a word is worth. */
VQKV__TARGET_avx2 static void vqkv__dot_books_avx2(const vqkv__run *run, unsigned char *table,
                                                   float *scale)
{
    const int each = run->words ? 2 : 4, room = 4 * vqkv__dot_groups(run);
    const float limit = vqkv__dot_top_avx2(run->words);
    int c;
    for (c = 0; c < room; c++) {
        float book[16] = {0.0f}, top;
        __m256 square = _mm256_setzero_ps();
        if (c < run->planes * run->width) {
            const int plane = c / run->width;
            const unsigned char *from =
                vqkv__table(run->book + plane / run->stages * run->book_step +
                            (plane % run->stages * run->width + c % run->width) * 16);
            _mm256_storeu_ps(book, vqkv__loadh_avx2(from));
            _mm256_storeu_ps(book + 8, vqkv__loadh_avx2(from + 16));
        }
        top = vqkv__reach_avx2(book, &square);
        scale[c] = top / limit;
        if (c < each * vqkv__dot_groups(run)) /* the table has room for so many */
            vqkv__dot_book_avx2(book, top, run, (signed char *)table + 64 / each * c);
    }
}

/* Channels c .. c + 7 of a row's latents y times their scales; 0 behind the last. */
VQKV__TARGET_avx2 static __m256 vqkv__dot_rest_avx2(const vqkv__run *run, const float *y,
                                                    const float *scale, int c)
{
    const int channels = run->planes * run->width, width = run->width;
    float lane[8];
    int i;
    for (i = 0; i < 8; i++)
        lane[i] = c + i < channels
                      ? y[(c + i) / width / run->stages * width + (c + i) % width] * scale[c + i]
                      : 0.0f;
    return _mm256_loadu_ps(lane);
}
VQKV__INLINE_avx2 __m256 vqkv__dot_latents_avx2(const vqkv__run *run, const float *y,
                                                const float *scale, int c)
{
    if (run->stages == 1 && c + 8 <= run->planes * run->width)
        return _mm256_mul_ps(_mm256_loadu_ps(y + c), _mm256_loadu_ps(scale + c));
    if (c >= run->planes * run->width)
        return _mm256_setzero_ps();
    return vqkv__dot_rest_avx2(run, y, scale, c);
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 2] words
 * and unit [rows, 2], of which the second stays unused. */
VQKV__TARGET_avx2 static void vqkv__dot_queries_avx2(const vqkv__run *run, const float *scale,
                                                     const float *y, size_t stride, int rows,
                                                     unsigned char *lanes, float *unit,
                                                     float *energy)
{
    const int room = 2 * vqkv__dot_groups(run);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    int r, c;
    for (r = 0; r < rows; r++, y += stride, lanes += 2 * room) {
        __m256 square = _mm256_setzero_ps(), sum = square, factor;
        float most = 0.0f, all;
        for (c = 0; c < room; c += 8) {
            __m256 x = vqkv__dot_latents_avx2(run, y, scale, c);
            sum = c % VQKV__CHUNK_avx2 == 0 ? _mm256_andnot_ps(sign, x)
                                            : _mm256_add_ps(sum, _mm256_andnot_ps(sign, x));
            square = _mm256_fmadd_ps(x, x, square);
            if (c + 8 < room && (c + 8) % VQKV__CHUNK_avx2 != 0)
                continue;
            all = vqkv__hsum_avx2(sum);
            most = all > most ? all : most;
        }
        /* Rounding of a channel's word, and of its products, may add half a unit each. */
        unit[2 * r] = most * (32768.0f / (32767.0f - VQKV__CHUNK_avx2));
        unit[2 * r + 1] = 0.0f;
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        if (energy != NULL)
            energy[r] += vqkv__hsum_avx2(square) * (VQKV__DOT_TOP_avx2 * VQKV__DOT_TOP_avx2 / 7.0f);
        factor = _mm256_set1_ps(most > 0.0f ? 32768.0f / unit[2 * r] : 0.0f);
        for (c = 0; c < room; c += 8) {
            __m256i x =
                _mm256_cvtps_epi32(_mm256_mul_ps(vqkv__dot_latents_avx2(run, y, scale, c), factor));
            const __m128i words =
                _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            if (room - c >= 8)
                _mm_storeu_si128((__m128i *)(void *)(lanes + 2 * c), words);
            else
                memcpy(lanes + 2 * c, &words, 2 * (size_t)(room - c));
        }
    }
}

/* Queries of n rows [n, groups, 2] words to pairs of the same word [n, 2 * MAX_DOT_GROUPS], which
 * one load spreads over a register. */
VQKV__TARGET_avx2 static void vqkv__double_words_avx2(const unsigned char *lanes, int groups, int n,
                                                      int32_t *doubled)
{
    int r, g;
    for (r = 0; r < n; r++, doubled += 2 * VQKV__MAX_DOT_GROUPS, lanes += 4 * groups)
        for (g = 0; g < groups; g += 4) {
            __m128i x = _mm_setzero_si128();
            if (g + 4 <= groups)
                x = _mm_loadu_si128((const __m128i *)(const void *)(lanes + 4 * g));
            else
                memcpy(&x, lanes + 4 * g, 4 * (size_t)(groups - g));
            _mm_storeu_si128((__m128i *)(void *)(doubled + 2 * g), _mm_unpacklo_epi16(x, x));
            if (g + 2 < groups)
                _mm_storeu_si128((__m128i *)(void *)(doubled + 2 * g + 4),
                                 _mm_unpackhi_epi16(x, x));
        }
}

/* Scores of 32 tokens, the codes' low nibbles or (`second`) high ones, for n rows from row r on:
 * planes from .. to - 1, at most CHUNK. n and `second` are constants. */
VQKV__INLINE_avx2 void vqkv__dot_rows_avx2(const unsigned char *codes, int from, int to,
                                           const unsigned char *table, const int32_t *queries,
                                           const float *unit, int r, const int n, const int second,
                                           int add, vqkv__asked *ahead, float *s)
{
    __m256i sum[4][2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = _mm256_setzero_si256();
    for (p = from; p < to; p++) {
        const __m256i x = vqkv__codes_avx2(codes + (size_t)p * (VQKV_BLOCK / 2), second);
        const signed char *t = (const signed char *)table + 32 * p;
        const __m256i low = _mm256_shuffle_epi8(vqkv__table_bytes_avx2(t), x);
        const __m256i high = _mm256_shuffle_epi8(vqkv__table_bytes_avx2(t + 16), x);
        const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
        if (!second && p % 2 == 0)
            vqkv__ask(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256i q = _mm256_set1_epi32(queries[2 * VQKV__MAX_DOT_GROUPS * k + p]);
            vqkv__add_words_avx2(&sum[k][0], _mm256_mulhrs_epi16(a, q));
            vqkv__add_words_avx2(&sum[k][1], _mm256_mulhrs_epi16(b, q));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__flush_avx2(sum[k], unit[2 * (r + k)], add, s + (r + k) * VQKV_BLOCK);
}

/* Some blocks for n rows from row r on, a constant where it is called. */
VQKV__INLINE_avx2 void vqkv__dot_blocks_avx2(const unsigned char *const *codes, size_t offset,
                                             int blocks, const vqkv__run *run,
                                             const unsigned char *table, const unsigned char *lanes,
                                             const float *unit, int rows, int r, const int n,
                                             int add, vqkv__asked *ahead, float *s)
{
    const int groups = vqkv__dot_groups(run);
    int32_t queries[8 * VQKV__MAX_DOT_GROUPS + 4]; /* words are written by fours */
    int b, t, from, to;
    vqkv__double_words_avx2(lanes + (size_t)r * 4 * (size_t)groups, groups, n, queries);
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK / 2; t += 32)
            for (from = 0; from < run->planes; from = to) {
                to = run->planes - from < VQKV__CHUNK_avx2 ? run->planes : from + VQKV__CHUNK_avx2;
                vqkv__dot_rows_avx2(codes[b] + offset + t, from, to, table, queries, unit, r, n, 0,
                                    add || from > 0, ahead, s + t);
                vqkv__dot_rows_avx2(codes[b] + offset + t, from, to, table, queries, unit, r, n, 1,
                                    add || from > 0, ahead, s + t + VQKV_BLOCK / 2);
            }
}

VQKV__TARGET_avx2 static void vqkv__dot_scores_avx2(const unsigned char *const *codes,
                                                    size_t offset, int blocks, const vqkv__run *run,
                                                    const unsigned char *table,
                                                    const unsigned char *lanes, const float *unit,
                                                    int rows, int add, vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int r = 0;
#define VQKV__X(n)                                                                                 \
    vqkv__dot_blocks_avx2(codes, offset, blocks, run, table, lanes, unit, rows, r, n, add, &asked, \
                          s)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    *ahead = asked;
}

#endif /* VQKV_BLOCK >= 64 */
