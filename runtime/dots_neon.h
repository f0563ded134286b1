/* Scores of codes of one channel, NEON with dot products: what vqkv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, low and high bytes side by side, which one lookup does
 * for every row, and meet the query in products of words whose high halves are added: units are
 * such that no sum of them leaves 16 bits. A group is two channels. 64 tokens of a channel take
 * four rows 78 instructions: 32 products, 8 lookups, and the rest for indices, loads and
 * prefetches. In fp32 they take 460.
 */

#if defined(VQKV__TARGET_dot) && VQKV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps. */
#define VQKV__DOT_TOP_neon 32767.0f

/* table [groups, 64]: sixteen low and sixteen high bytes of each channel; scale [4 * groups]. */
static void vqkv__dot_books_neon(const vqkv__run *run, unsigned char *table, float *scale)
{
    const int room = 4 * vqkv__dot_groups(run);
    int c, i;
    for (c = 0; c < room; c++) {
        float book[16] = {0.0f}, top;
        if (c < run->planes) {
            const unsigned char *from =
                vqkv__table(run->book + c / run->stages * run->book_step + c % run->stages * 16);
            for (i = 0; i < 16; i += 4)
                vst1q_f32(book + i, vqkv__loadh_neon(from + 2 * i));
        }
        top = vqkv__reach_neon(book);
        scale[c] = top / VQKV__DOT_TOP_neon;
        if (c < 2 * vqkv__dot_groups(run)) /* the table has room for two a group */
            vqkv__split_neon(book, top > 0.0f ? VQKV__DOT_TOP_neon / top : 0.0f,
                             (signed char *)table + 32 * c);
    }
}

/* Channels c .. c + 7 of a row's latents y times their scales; 0 behind the last. */
static inline void vqkv__dot_latents_neon(const vqkv__run *run, const float *y, const float *scale,
                                          int c, float *x)
{
    int i;
    if (run->stages == 1 && c + 8 <= run->planes) {
        vst1q_f32(x, vmulq_f32(vld1q_f32(y + c), vld1q_f32(scale + c)));
        vst1q_f32(x + 4, vmulq_f32(vld1q_f32(y + c + 4), vld1q_f32(scale + c + 4)));
        return;
    }
    for (i = 0; i < 8; i++)
        x[i] = c + i < run->planes ? y[(c + i) / run->stages] * scale[c + i] : 0.0f;
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 2] words
 * and unit [rows, 2], of which the second stays unused. */
static void vqkv__dot_queries_neon(const vqkv__run *run, const float *scale, const float *y,
                                   size_t stride, int rows, unsigned char *lanes, float *unit,
                                   float *energy)
{
    const int room = 2 * vqkv__dot_groups(run);
    float x[8];
    int r, c;
    for (r = 0; r < rows; r++, y += stride, lanes += 2 * room) {
        float32x4_t square = vdupq_n_f32(0.0f);
        float most = 0.0f, sum = 0.0f, factor;
        for (c = 0; c < room; c += 8) {
            float32x4_t a, b;
            vqkv__dot_latents_neon(run, y, scale, c, x);
            a = vld1q_f32(x);
            b = vld1q_f32(x + 4);
            square = vfmaq_f32(vfmaq_f32(square, a, a), b, b);
            sum = (c % VQKV__CHUNK_neon == 0 ? 0.0f : sum) +
                  vaddvq_f32(vaddq_f32(vabsq_f32(a), vabsq_f32(b)));
            most = sum > most ? sum : most;
        }
        /* Rounding of a channel's word, and of its products, may add half a unit each. */
        unit[2 * r] = most * (32768.0f / (32767.0f - VQKV__CHUNK_neon));
        unit[2 * r + 1] = 0.0f;
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        if (energy != NULL)
            energy[r] += vaddvq_f32(square) * (VQKV__DOT_TOP_neon * VQKV__DOT_TOP_neon / 7.0f);
        factor = most > 0.0f ? 32768.0f / unit[2 * r] : 0.0f;
        for (c = 0; c < room; c += 8) {
            short words[8];
            vqkv__dot_latents_neon(run, y, scale, c, x);
            vst1q_s16(words, vqkv__eight_neon(x, factor));
            memcpy(lanes + 2 * c, words, 2 * (size_t)(room - c < 8 ? room - c : 8));
        }
    }
}

/* Scores of 32 tokens, a piece of sixteen bytes of each plane, for n rows from row r on: planes
 * from .. to - 1, at most CHUNK. queries [channels, 4 rows]; n is a constant. */
VQKV__INLINE_neon void vqkv__dot_rows_neon(const unsigned char *codes, int from, int to,
                                           const signed char *table, const short *queries,
                                           const float *unit, int r, const int n, int add,
                                           vqkv__asked *ahead, float *s)
{
    int16x8_t sum[4][4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = vdupq_n_s16(0);
    for (p = from; p < to; p++) {
        const int16x8_t q = vcombine_s16(vld1_s16(queries + 4 * p), vdup_n_s16(0));
        int16x8_t word[4];
        vqkv__words_neon(vld1q_u8(codes + (size_t)p * (VQKV_BLOCK / 2)), table + 32 * p, word);
        if ((p - from) % 4 == 0)
            vqkv__ask_neon(ahead);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) {
            VQKV__ADD_WORDS_neon(sum[0][i], word[i], q, 0);
            if (n > 1)
                VQKV__ADD_WORDS_neon(sum[1][i], word[i], q, 1);
            if (n > 2)
                VQKV__ADD_WORDS_neon(sum[2][i], word[i], q, 2);
            if (n > 3)
                VQKV__ADD_WORDS_neon(sum[3][i], word[i], q, 3);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__flush_neon(sum[k], unit[2 * (r + k)], add, s + (r + k) * VQKV_BLOCK);
}

/* Some blocks for n rows from row r on, a constant. */
VQKV__INLINE_neon void vqkv__dot_blocks_neon(const unsigned char *const *codes, size_t offset,
                                             int blocks, const vqkv__run *run,
                                             const unsigned char *table, const unsigned char *lanes,
                                             const float *unit, int rows, int r, const int n,
                                             int add, vqkv__asked *ahead, float *s)
{
    const size_t bytes = 4 * (size_t)vqkv__dot_groups(run);
    short queries[8 * VQKV__MAX_DOT_GROUPS];
    int b, k, p, t, from, to;
    for (p = 0; p < run->planes; p++)
        for (k = 0; k < 4; k++)
            memcpy(&queries[4 * p + k],
                   lanes + (size_t)(r + (k < n ? k : 0)) * bytes + 2 * (size_t)p, 2);
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK / 2; t += 16)
            for (from = 0; from < run->planes; from = to) {
                to = run->planes - from < VQKV__CHUNK_neon ? run->planes : from + VQKV__CHUNK_neon;
                vqkv__dot_rows_neon(codes[b] + offset + t, from, to, (const signed char *)table,
                                    queries, unit, r, n, add || from > 0, ahead, s + t);
            }
}

VQKV__TARGET_dot static void vqkv__dot_scores_neon(const unsigned char *const *codes, size_t offset,
                                                   int blocks, const vqkv__run *run,
                                                   const unsigned char *table,
                                                   const unsigned char *lanes, const float *unit,
                                                   int rows, int add, vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int r = 0;
#define VQKV__X(n)                                                                                 \
    vqkv__dot_blocks_neon(codes, offset, blocks, run, table, lanes, unit, rows, r, n, add, &asked, \
                          s)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    *ahead = asked;
}

#endif
