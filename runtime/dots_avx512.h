/* Scores of codes whose codewords meet the query, AVX-512: what vqkv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, and meet the query in a dot product: one lookup serves
 * every row, and no table has to be filled for a query. A group is what one 32-bit lane adds up:
 * two channels in 16 bits, or four in 8 bits where codes of more channels make larger errors. */

#if VQKV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps, 8-bit ones 128 more than they are. Words
 * of queries are rounded so that no sum leaves 32 bits. */
#define VQKV__DOT_WORD_TOP 2047.0f
#define VQKV__DOT_BYTE_TOP 127.0f

static inline float vqkv__dot_top(const vqkv__run *run)
{
    return run->words ? VQKV__DOT_WORD_TOP : VQKV__DOT_BYTE_TOP;
}

/* Channels of a run, counted plane by plane; groups may have room for more. */
static inline int vqkv__dot_channels(const vqkv__run *run)
{
    return run->planes * run->width;
}

/* Sixteen codewords of a channel in steps of *scale; 0 where there is no such channel. */
VQKV__INLINE_avx512 __m512i vqkv__dot_codewords_avx512(const unsigned char *book, float limit,
                                                       float *scale)
{
    __m512 x = book != NULL ? vqkv__loadh_avx512(book) : _mm512_setzero_ps();
    const float top = _mm512_reduce_max_ps(_mm512_abs_ps(x));
    *scale = top / limit;
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(top > 0.0f ? limit / top : 0.0f)));
}

/* table [groups, 64]: sixteen codewords of each channel, of a code of two channels in turn; scale
 * [4 * groups] of each. */
VQKV__TARGET_avx512 static void vqkv__dot_books_avx512(const vqkv__run *run, unsigned char *table,
                                                       float *scale)
{
    const int words = run->words, room = (words ? 2 : 4) * vqkv__dot_groups(run);
    const float limit = vqkv__dot_top(run);
    __m512i first = _mm512_setzero_si512(); /* of two channels */
    int c = 0, p, w;
    for (p = 0; c < room; p++) {
        const unsigned char *book = p < run->planes
                                        ? vqkv__table(run->book + p / run->stages * run->book_step +
                                                      p % run->stages * run->width * 16)
                                        : NULL;
        for (w = 0; w < run->width && c < room; w++, c++) {
            __m512i x =
                vqkv__dot_codewords_avx512(book != NULL ? book + 32 * w : NULL, limit, scale + c);
            if (words && run->width == 1)
                _mm256_storeu_si256((__m256i *)(void *)(table + 32 * c), _mm512_cvtepi32_epi16(x));
            else if (words && c % 2 == 0)
                first = x;
            else if (words)
                _mm512_storeu_si512(
                    (void *)(table + 32 * (c - 1)),
                    _mm512_mask_blend_epi16(0xaaaaaaaau, first, _mm512_slli_epi32(x, 16)));
            else
                _mm_storeu_si128((__m128i *)(void *)(table + 16 * c),
                                 _mm512_cvtepi32_epi8(_mm512_add_epi32(x, _mm512_set1_epi32(128))));
        }
    }
}

/* Channels c .. c + 15 of a row's latents, `real` of them there, times their scales. plain: codes
 * of one stage, a constant. */
VQKV__INLINE_avx512 __m512 vqkv__dot_latents_avx512(const vqkv__run *run, const float *scale,
                                                    const float *y, int c, __mmask16 real,
                                                    const int plain)
{
    float lane[16];
    int k;
    if (plain && real == VQKV__ALL_avx512)
        return _mm512_mul_ps(_mm512_loadu_ps(scale + c), _mm512_loadu_ps(y + c));
    if (plain)
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(real, scale + c),
                             _mm512_maskz_loadu_ps(real, y + c));
    for (k = 0; k < 16; k++)
        lane[k] = real >> k & 1
                      ? y[(c + k) / run->width / run->stages * run->width + (c + k) % run->width]
                      : 0.0f;
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(real, scale + c), _mm512_loadu_ps(lane));
}

/* Sums, or the largest, over the lanes of four registers. */
VQKV__TARGET_avx512 static inline __m128i vqkv__four_sums_avx512(const __m512i *x)
{
    __m256i a[4];
    int k;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++)
        a[k] = _mm256_add_epi32(_mm512_castsi512_si256(x[k]), _mm512_extracti64x4_epi64(x[k], 1));
    a[0] = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(a[0]), _mm256_extracti128_si256(a[0], 1));
}
VQKV__TARGET_avx512 static inline __m128 vqkv__four_tops_avx512(const __m512 *x)
{
    __m256 a[4], low, high;
    int k;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++)
        a[k] = _mm256_max_ps(vqkv__low_half_avx512(x[k]), vqkv__high_half_avx512(x[k]));
    low = _mm256_max_ps(_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]));
    high = _mm256_max_ps(_mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3]));
    low = _mm256_max_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    return _mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
}

/* The largest and the mean square of channels i .. i + 15 of n rows, times their scales. */
VQKV__INLINE_avx512 void vqkv__dot_reach_avx512(const vqkv__run *run, const float *scale,
                                                const float *y, size_t stride, int i,
                                                __mmask16 real, const int n, const int plain,
                                                __m512 *high, __m512 *square)
{
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512 x = vqkv__dot_latents_avx512(run, scale, y + (size_t)k * stride, i, real, plain);
        high[k] = _mm512_max_ps(high[k], _mm512_abs_ps(x));
        square[k] = _mm512_fmadd_ps(x, x, square[k]);
    }
}

/* Those channels, `real` of them there and `some` with room, in steps of 1 / factor to lanes, which
 * are `bytes` apart from row to row; sum of them all. */
VQKV__INLINE_avx512 void vqkv__dot_steps_avx512(const vqkv__run *run, const float *scale,
                                                const float *y, size_t stride, int i,
                                                __mmask16 real, __mmask16 some, const int n,
                                                const int words, const int plain,
                                                const float *factor, int bytes,
                                                unsigned char *lanes, __m512i *sum)
{
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        unsigned char *to = lanes + k * bytes + (words ? 2 : 1) * i;
        __m512 x = vqkv__dot_latents_avx512(run, scale, y + (size_t)k * stride, i, real, plain);
        __m512i step = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor[k])));
        if (some != VQKV__ALL_avx512 && words)
            _mm512_mask_cvtepi32_storeu_epi16((void *)to, some, step);
        else if (some != VQKV__ALL_avx512)
            _mm512_mask_cvtepi32_storeu_epi8((void *)to, some, step);
        else if (words)
            _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(step));
        else
            _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(step));
        if (!words)
            sum[k] = _mm512_add_epi32(sum[k], step);
    }
}

/* Rows r .. r + n - 1 of queries in lanes; n is at most four. */
VQKV__INLINE_avx512 void vqkv__dot_four_queries_avx512(const vqkv__run *run, const float *scale,
                                                       const float *y, size_t stride, const int n,
                                                       const int words, const int plain,
                                                       unsigned char *lanes, float *unit,
                                                       float *energy)
{
    const int channels = vqkv__dot_channels(run), whole = channels / 16 * 16;
    const int bytes = 4 * vqkv__dot_groups(run), room = words ? bytes / 2 : bytes;
    /* Products of words, of at most DOT_WORD_TOP * limit, stay below 2^31. */
    const float most = 1048576.0f / (float)room;
    const float limit = !words ? VQKV__DOT_BYTE_TOP : most < 32767.0f ? most : 32767.0f;
    const __mmask16 real = vqkv__first_lanes(channels - whole);
    const __mmask16 some = vqkv__first_lanes(room - whole);
    __m512 high[4], square[4];
    __m512i sum[4];
    float top[4], factor[4], squares[4];
    int zero[4], k, i;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++) {
        high[k] = square[k] = _mm512_setzero_ps();
        sum[k] = _mm512_setzero_si512();
    }
    for (i = 0; i < whole; i += 16)
        vqkv__dot_reach_avx512(run, scale, y, stride, i, VQKV__ALL_avx512, n, plain, high, square);
    if (real != 0)
        vqkv__dot_reach_avx512(run, scale, y, stride, i, real, n, plain, high, square);
    _mm_storeu_ps(top, vqkv__four_tops_avx512(high));
    for (k = 0; k < 4; k++)
        factor[k] = top[k] > 0.0f ? limit / top[k] : 0.0f;
    for (i = 0; i < whole; i += 16)
        vqkv__dot_steps_avx512(run, scale, y, stride, i, VQKV__ALL_avx512, VQKV__ALL_avx512, n,
                               words, plain, factor, bytes, lanes, sum);
    if (some != 0)
        vqkv__dot_steps_avx512(run, scale, y, stride, i, real, some, n, words, plain, factor, bytes,
                               lanes, sum);
    if (!words)
        _mm_storeu_si128((__m128i *)(void *)zero, vqkv__four_sums_avx512(sum));
    for (k = 0; k < n; k++) {
        unit[2 * k] = top[k] / limit;
        unit[2 * k + 1] = words ? 0.0f : 128.0f * (float)zero[k];
    }
    if (energy == NULL)
        return;
    vqkv__hsum4_avx512(square[0], square[1], square[2], square[3], squares);
    for (k = 0; k < n; k++)
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        energy[k] += squares[k] * (vqkv__dot_top(run) * vqkv__dot_top(run) / 7.0f);
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 4] and
 * unit [rows, 2]. */
VQKV__TARGET_avx512 static void vqkv__dot_queries_avx512(const vqkv__run *run, const float *scale,
                                                         const float *y, size_t stride, int rows,
                                                         unsigned char *lanes, float *unit,
                                                         float *energy)
{
    const int bytes = 4 * vqkv__dot_groups(run), words = run->words, plain = run->stages == 1;
    int r, n;
#define VQKV__QUERIES_OF(n, words, plain)                                                          \
    vqkv__dot_four_queries_avx512(run, scale, y, stride, n, words, plain, lanes, unit + 2 * r,     \
                                  energy != NULL ? energy + r : NULL)
    for (r = 0; r < rows; r += n, y += (size_t)n * stride, lanes += n * bytes) {
        n = plain && r + 4 <= rows ? 4 : plain && r + 2 <= rows ? 2 : 1;
        if (n == 4 && words)
            VQKV__QUERIES_OF(4, 1, 1);
        else if (n == 4)
            VQKV__QUERIES_OF(4, 0, 1);
        else if (n == 2 && words)
            VQKV__QUERIES_OF(2, 1, 1);
        else if (n == 2)
            VQKV__QUERIES_OF(2, 0, 1);
        else if (plain && words)
            VQKV__QUERIES_OF(1, 1, 1);
        else if (plain)
            VQKV__QUERIES_OF(1, 0, 1);
        else if (words)
            VQKV__QUERIES_OF(1, 1, 0);
        else
            VQKV__QUERIES_OF(1, 0, 0);
    }
#undef VQKV__QUERIES_OF
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

/* 32 bytes of each of two planes. */
VQKV__INLINE_avx512 __m512i vqkv__two_planes_avx512(const unsigned char *a, const unsigned char *b)
{
    __m512i x;
    if (b == a + 32) /* blocks of 64: they lie side by side */
        return _mm512_loadu_si512((const void *)a);
    x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a));
    return _mm512_inserti64x4(x, _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
}

/* In lane i of 16, four bytes: i times `step`, plus those of `first`. */
VQKV__TARGET_avx512 static inline __m512i vqkv__dot_pick_avx512(int step, int first)
{
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(step)),
                            _mm512_set1_epi32(first));
}

/* Adds the codewords v, 16 tokens in each, times the queries' lanes of one group. */
VQKV__INLINE_avx512 void vqkv__dot_group_avx512(const __m512i *v, const unsigned char *lanes,
                                                int row, const int n, const int words,
                                                __m512i (*sum)[4])
{
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512i y = vqkv__four_bytes_avx512(lanes + k * row);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            if (words)
                vqkv__add_words_avx512(&sum[k][i], v[i], y);
            else
                vqkv__add_bytes_avx512(&sum[k][i], v[i], y);
    }
}

/* Bytes x with codes in low nibbles, and the codes half a block later in high ones, picked to v
 * [4] and made indices: what base adds, which says whose codeword. */
VQKV__INLINE_avx512 void vqkv__dot_codes_avx512(__m512i x, __m512i pick0, __m512i pick1,
                                                __m512i nibble, __m512i base, __m512i *v)
{
    v[0] = _mm512_permutexvar_epi8(pick0, x);
    v[1] = _mm512_permutexvar_epi8(pick1, x);
    v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[0], 4), nibble, base, 0xea);
    v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[1], 4), nibble, base, 0xea);
    v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
    v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
}

/* Codes of one channel or of an even number, two channels to a lane. n rows, a constant where it is
 * called, and tokens of a chunk of each plane: 32 and, half a block later, 32 more. */
VQKV__INLINE_avx512 void vqkv__dot_words_avx512(const unsigned char *codes, const vqkv__run *run,
                                                const unsigned char *table,
                                                const unsigned char *lanes, const int n,
                                                const int one, vqkv__asked *ahead,
                                                __m512i (*sum)[4])
{
    const int bytes = VQKV_BLOCK / 2, groups = vqkv__dot_groups(run);
    const __m512i nibble = _mm512_set1_epi32(0x000f000f), second = _mm512_set1_epi32(0x00100000);
    /* Byte 0 of a lane from the low half of a register, byte 2 from the high half. */
    const __m512i pick0 = vqkv__dot_pick_avx512(0x00010001, 0x00200000);
    const __m512i pick1 = vqkv__dot_pick_avx512(0x00010001, 0x00300010);
    int g, i;
    for (g = 0; g < groups; g++, table += 64) {
        const __m512i t = _mm512_loadu_si512((const void *)table);
        const unsigned char *a = codes + (one ? 2 * g : 2 * g / run->width) * bytes;
        __m512i v[4];
        vqkv__ask(ahead);
        if (one) {
            vqkv__dot_codes_avx512(
                vqkv__two_planes_avx512(a, 2 * g + 1 < run->planes ? a + bytes : a), pick0, pick1,
                nibble, second, v);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                v[i] = _mm512_permutexvar_epi16(v[i], t);
        } else {
            v[0] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)a));
            v[1] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(a + 16)));
            v[2] = _mm512_srli_epi32(v[0], 4);
            v[3] = _mm512_srli_epi32(v[1], 4);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) /* bits above the low four do not count */
                v[i] = _mm512_permutexvar_epi32(v[i], t);
        }
        vqkv__dot_group_avx512(v, lanes + 4 * g, 4 * groups, n, 1, sum);
    }
}

/* Codes of a multiple of four channels, or of two, whose planes go by twos; four channels to a
 * lane.
 */
VQKV__INLINE_avx512 void vqkv__dot_bytes_avx512(const unsigned char *codes, const vqkv__run *run,
                                                const unsigned char *table,
                                                const unsigned char *lanes, const int n,
                                                const int two, vqkv__asked *ahead,
                                                __m512i (*sum)[4])
{
    const int bytes = VQKV_BLOCK / 2, groups = vqkv__dot_groups(run);
    const int each = two ? 1 : run->width / 4; /* groups of the same codes */
    const __m512i nibble = _mm512_set1_epi8(15), channel = _mm512_set1_epi32(0x30201000);
    /* The code of one plane for all four bytes of a lane, or of two planes, which stand in the low
     * and in the high half of a register, for two each. */
    const __m512i pick0 = vqkv__dot_pick_avx512(0x01010101, two ? 0x20200000 : 0);
    const __m512i pick1 = vqkv__dot_pick_avx512(0x01010101, two ? 0x30301010 : 0x10101010);
    int g, e, i;
    for (g = 0; g < groups; g += each, codes += two ? 2 * bytes : bytes) {
        __m512i codes_of[4], v[4];
        vqkv__ask(ahead);
        vqkv__dot_codes_avx512(
            two ? vqkv__two_planes_avx512(codes, 2 * g + 1 < run->planes ? codes + bytes : codes)
                : _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)codes)),
            pick0, pick1, nibble, channel, codes_of);
        for (e = g; e < g + each; e++, table += 64) {
            const __m512i t = _mm512_loadu_si512((const void *)table);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                v[i] = _mm512_permutexvar_epi8(codes_of[i], t);
            vqkv__dot_group_avx512(v, lanes + 4 * e, 4 * groups, n, 0, sum);
        }
    }
}

/* n rows from row r on, tokens of chunk c. */
VQKV__INLINE_avx512 void vqkv__dot_rows_avx512(const unsigned char *codes, const vqkv__run *run,
                                               const unsigned char *table,
                                               const unsigned char *lanes, const float *unit, int r,
                                               const int n, int c, int add, vqkv__asked *ahead,
                                               float *s)
{
    __m512i sum[4][4];
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] =
            _mm512_set1_epi32(-(int)unit[2 * (r + k) + 1]);
    codes += 32 * c;
    lanes += r * 4 * vqkv__dot_groups(run);
    if (run->width == 1)
        vqkv__dot_words_avx512(codes, run, table, lanes, n, 1, ahead, sum);
    else if (run->words)
        vqkv__dot_words_avx512(codes, run, table, lanes, n, 0, ahead, sum);
    else if (run->width == 2)
        vqkv__dot_bytes_avx512(codes, run, table, lanes, n, 1, ahead, sum);
    else
        vqkv__dot_bytes_avx512(codes, run, table, lanes, n, 0, ahead, sum);
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512 f = _mm512_set1_ps(unit[2 * (r + k)]);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            vqkv__flush_avx512(sum[k][i], f, add,
                               s + (r + k) * VQKV_BLOCK + i / 2 * (VQKV_BLOCK / 2) + 32 * c +
                                   i % 2 * 16);
    }
}

VQKV__TARGET_avx512 static void
vqkv__dot_scores_avx512(const unsigned char *const *codes, size_t offset, int blocks,
                        const vqkv__run *run, const unsigned char *table,
                        const unsigned char *lanes, const float *unit, int rows, int add,
                        vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int b, c, r;
#define VQKV__DOT(n)                                                                               \
    vqkv__dot_rows_avx512(codes[b] + offset, run, table, lanes, unit, r, n, c, add, &asked, s)
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK)
        for (c = 0; c < VQKV_BLOCK / 64; c++) {
            VQKV__BY_ROWS(r, rows, VQKV__DOT);
        }
#undef VQKV__DOT
    *ahead = asked;
}

#endif /* VQKV_BLOCK >= 64 */
