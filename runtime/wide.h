/* Codes of 1 to 16 bits but 4: codebooks of any size, over any number of channels.
 *
 * A plane holds one code of each token of a block in BLOCK * bits / 8 bytes: for each whole byte of
 * a code BLOCK of them, low ones first, then the bits that are left, packed token behind token from
 * the lowest bit up. Scores are looked up in a table with one entry a codeword; probabilities are
 * added up in bins, one a codeword, and meet the codewords only once, behind the last token: no
 * vector is rebuilt. Tables and bins of one row are contiguous, plane behind plane. */

static inline size_t vqkv__wide_bytes(const vqkv__run *run)
{
    return (size_t)(VQKV_BLOCK / 8) * run->bits;
}

/* Codewords of one plane: binary16 [width, 2^bits]. */
static inline int vqkv__wide_book(const vqkv__run *run, int plane)
{
    return run->book + plane / run->stages * run->book_step +
           plane % run->stages * (run->width << run->bits);
}

/* Into a plane that is zero at token t. */
static void vqkv__write_wide(unsigned char *plane, int bits, int t, int code)
{
    int whole = bits / 8, rest = bits % 8, shift = t * rest % 8, i;
    unsigned char *p = plane + whole * VQKV_BLOCK + t * rest / 8;
    for (i = 0; i < whole; i++, code >>= 8)
        plane[i * VQKV_BLOCK + t] = (unsigned char)(code & 255);
    if (rest == 0)
        return;
    *p = (unsigned char)(*p | (code << shift & 255));
    if (shift + rest > 8)
        p[1] = (unsigned char)(p[1] | code >> (8 - shift));
}

/* bytes [BLOCK]: the bits of a plane's codes above the whole bytes. */
static void vqkv__unpack_rest(const unsigned char *plane, int bits, unsigned char *bytes)
{
    int t, i, rest = bits % 8;
    const unsigned char *p = plane + bits / 8 * VQKV_BLOCK;
    /* Eight codes fill `rest` bytes. Of each half, quarter and eighth in turn, the lower one stays
     * and the upper one moves to where its bytes begin. */
    uint64_t halves = (1ull << 4 * rest) - 1;
    uint64_t quarters = ((1ull << 2 * rest) - 1) * 0x0000000100000001u;
    uint64_t eighths = ((1ull << rest) - 1) * 0x0001000100010001u;
    for (t = 0; t < VQKV_BLOCK; t += 8, p += rest) {
        uint64_t word = 0;
        for (i = 0; i < rest; i++)
            word |= (uint64_t)p[i] << 8 * i;
        word = (word & halves) | (word << (32 - 4 * rest) & halves << 32);
        word = (word & quarters) | (word << (16 - 2 * rest) & quarters << 16);
        word = (word & eighths) | (word << (8 - rest) & eighths << 8);
        memcpy(bytes + t, &word, 8);
    }
}

/* code [BLOCK] of a plane. */
static void vqkv__unpack_wide(const unsigned char *plane, int bits, unsigned short *code)
{
    int t, whole = bits / 8;
    unsigned char bytes[VQKV_BLOCK] = {0};
    if (bits % 8 != 0)
        vqkv__unpack_rest(plane, bits, bytes);
    for (t = 0; t < VQKV_BLOCK; t++)
        code[t] = (unsigned short)(bytes[t] << 8 * whole);
    for (t = 0; t < VQKV_BLOCK && whole > 0; t++)
        code[t] = (unsigned short)(code[t] | plane[t]);
    for (t = 0; t < VQKV_BLOCK && whole > 1; t++)
        code[t] = (unsigned short)(code[t] | plane[VQKV_BLOCK + t] << 8);
}

/* table [2^bits] of each plane = query . codeword, for one row's latents y; returns its end. */
static float *vqkv__fill_wide(const vqkv__ops *ops, const vqkv__run *run, const float *y,
                              float *table)
{
    int p, w, n = 1 << run->bits;
    for (p = 0; p < run->planes; p++, table += n) {
        const float *q = y + run->first + p / run->stages * run->width;
        memset(table, 0, sizeof(float) * (size_t)n);
        for (w = 0; w < run->width; w++)
            ops->add_row(vqkv__table(vqkv__wide_book(run, p) + w * n), n, q[w], table);
    }
    return table;
}

/* s [rows, BLOCK] += the entries at the codes of each plane; tables of rows at distance
 * MAX_WIDE_LUT.
 */
static void vqkv__score_wide(const vqkv__run *run, const unsigned char *codes, const float *table,
                             int rows, float *s)
{
    unsigned short code[VQKV_BLOCK];
    int p, r, t;
    for (p = 0; p < run->planes; p++, table += (size_t)1 << run->bits) {
        vqkv__unpack_wide(codes + (size_t)p * vqkv__wide_bytes(run), run->bits, code);
        for (r = 0; r < rows; r++) {
            const float *row = table + (size_t)r * VQKV__MAX_WIDE_LUT;
            for (t = 0; t < VQKV_BLOCK; t++)
                s[r * VQKV_BLOCK + t] += row[code[t]];
        }
    }
}

/* bins at the codes of each plane += p [rows, BLOCK]; bins of rows at distance MAX_WIDE_BINS. */
static void vqkv__sum_wide(const vqkv__run *run, const unsigned char *codes, const float *p,
                           int rows, float *bins)
{
    unsigned short code[VQKV_BLOCK];
    int i, r, t;
    for (i = 0; i < run->planes; i++, bins += (size_t)1 << run->bits) {
        vqkv__unpack_wide(codes + (size_t)i * vqkv__wide_bytes(run), run->bits, code);
        for (r = 0; r < rows; r++) {
            float *row = bins + (size_t)r * VQKV__MAX_WIDE_BINS;
            for (t = 0; t < VQKV_BLOCK; t++)
                row[code[t]] += p[r * VQKV_BLOCK + t];
        }
    }
}

/* y [n_latents] += codewords * bins of one row; returns the end of the run's bins. */
static const float *vqkv__collect_wide(const vqkv__ops *ops, const vqkv__run *run,
                                       const float *bins, float *y)
{
    int p, w, n = 1 << run->bits;
    for (p = 0; p < run->planes; p++, bins += n) {
        float *dst = y + run->first + p / run->stages * run->width;
        for (w = 0; w < run->width; w++)
            dst[w] += ops->dot_row(vqkv__table(vqkv__wide_book(run, p) + w * n), n, bins);
    }
    return bins;
}
