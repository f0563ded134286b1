/* Kernels for one instruction set, in terms of its vector vocabulary:
 *
 *   vf: LANES floats    set1 load store loadh (from binary16) loadu8 loads8 (from bytes) add sub
 *                       mul fma max round scale2 (x * 2^n, n integral) hsum hmax
 *   vi: LANES codes     nibbles(plane, t): the 4-bit codes of tokens t .. t + LANES - 1
 *   vt: sixteen floats  table(p), lookup(table, codes)
 *   gather(table, bytes, x): binary16 values of a table at GATHERED byte codes
 *
 * A plane holds one code of each token of a block: the low nibbles are tokens 0 .. BLOCK/2 - 1, the
 * high nibbles the rest. Rows are queries that share one pass over the codes; kernels take them
 * four at a time, so that a plane is unpacked once for four queries. */

/* s [n, BLOCK] += sum over planes of lut [planes, step] at each token's code, n tables of sixteen
 * from the first on. n: a constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__score_some_ISA(const unsigned char *codes, int planes,
                                                        const float *lut, size_t step, const int n,
                                                        float *s)
{
    int t, p, k;
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = vqkv__load_ISA(s + k * VQKV_BLOCK + t);
        for (p = 0; p < planes; p++) {
            vqkv__vi_ISA code = vqkv__nibbles_ISA(codes + p * (VQKV_BLOCK / 2), t);
            const float *tab = lut + (size_t)p * step;
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = vqkv__add_ISA(a[k], vqkv__lookup_ISA(vqkv__table_ISA(tab + k * 16), code));
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            vqkv__store_ISA(s + k * VQKV_BLOCK + t, a[k]);
    }
}

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
VQKV__TARGET_ISA static void vqkv__score_nibbles_ISA(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r;
#define VQKV__X(n)                                                                                 \
    vqkv__score_some_ISA(codes, planes, lut + r * 16, (size_t)rows * 16, n, s + r * VQKV_BLOCK)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times the codewords of one
 * channel. n: a constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__sum_some_ISA(const unsigned char *plane, const float *book,
                                                      const float *p, const int n, float *acc,
                                                      size_t stride)
{
    const vqkv__vt_ISA table = vqkv__table_ISA(book);
    vqkv__vf_ISA a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = vqkv__load_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA);
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA v = vqkv__lookup_ISA(table, vqkv__nibbles_ISA(plane, t));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = vqkv__fma_ISA(vqkv__load_ISA(p + k * VQKV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__store_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA, a[k]);
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
VQKV__TARGET_ISA static void vqkv__sum_nibbles_ISA(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, i, w;
    for (i = 0; i < planes; i++, codes += VQKV_BLOCK / 2)
        for (w = 0; w < width; w++, book += 16) {
            float *to = acc + (size_t)(i / stages * width + w) * VQKV__LANES_ISA;
#define VQKV__X(n)                                                                                 \
    vqkv__sum_some_ISA(codes, book, p + r * VQKV_BLOCK, n,                                         \
                       to + (size_t)r * stride * VQKV__LANES_ISA, stride)
            VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
        }
}

/* Values of tokens t and on of a plane of one channel. `half`: binary16, two bytes a token; else a
 * byte a token whose value is code - 128. */
VQKV__TARGET_ISA static inline vqkv__vf_ISA vqkv__scalars_ISA(const unsigned char *plane, int t,
                                                              int half)
{
    return half ? vqkv__loadh_ISA(plane + 2 * t)
                : vqkv__add_ISA(vqkv__loadu8_ISA(plane + t), vqkv__set1_ISA(-128.0f));
}

/* s [n, BLOCK] at tokens t .. t + 2 LANES - 1 += q [planes, step] * value. n: a constant, 4 at
 * most. asked: NULL, or what is asked for meanwhile. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__score_values_ISA(const unsigned char *codes, int planes,
                                                          int half, int t, const float *q,
                                                          size_t step, const int n,
                                                          vqkv__asked *asked, float *s)
{
    const size_t bytes = half ? 2 * VQKV_BLOCK : VQKV_BLOCK;
    vqkv__vf_ISA a[4], b[4];
    int c, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        a[k] = vqkv__load_ISA(s + k * VQKV_BLOCK + t);
        b[k] = vqkv__load_ISA(s + k * VQKV_BLOCK + t + VQKV__LANES_ISA);
    }
    for (c = 0; c < planes; c++, codes += bytes, q += step) {
        vqkv__vf_ISA v = vqkv__scalars_ISA(codes, t, half);
        vqkv__vf_ISA w = vqkv__scalars_ISA(codes, t + VQKV__LANES_ISA, half);
        if (VQKV__LANES_ISA >= 8 && asked != NULL)
            vqkv__ask(asked);
        if (VQKV__LANES_ISA >= 16 && half && asked != NULL)
            vqkv__ask(asked);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            vqkv__vf_ISA x = vqkv__set1_ISA(q[k]);
            a[k] = vqkv__fma_ISA(x, v, a[k]);
            b[k] = vqkv__fma_ISA(x, w, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        vqkv__store_ISA(s + k * VQKV_BLOCK + t, a[k]);
        vqkv__store_ISA(s + k * VQKV_BLOCK + t + VQKV__LANES_ISA, b[k]);
    }
}

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. With four rows or more, as many
 * lines are asked for as a block of keys has together with one of values. */
VQKV__TARGET_ISA static void vqkv__score_scalars_ISA(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int r, t;
#define VQKV__X(n)                                                                                 \
    vqkv__score_values_ISA(codes, planes, half, t, q + r, (size_t)rows, n,                         \
                           n == 4 && r == 0 ? &asked : NULL, s + r * VQKV_BLOCK)
    for (t = 0; t < VQKV_BLOCK; t += 2 * VQKV__LANES_ISA)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    *ahead = asked;
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times a plane's values. n: a
 * constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__sum_values_ISA(const unsigned char *plane, int half,
                                                        const float *p, const int n, float *acc,
                                                        size_t stride)
{
    vqkv__vf_ISA a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = vqkv__load_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA);
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA v = vqkv__scalars_ISA(plane, t, half);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = vqkv__fma_ISA(vqkv__load_ISA(p + k * VQKV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__store_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA, a[k]);
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
VQKV__TARGET_ISA static void vqkv__sum_scalars_ISA(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    const size_t bytes = half ? 2 * VQKV_BLOCK : VQKV_BLOCK;
    int r, c;
#define VQKV__X(n)                                                                                 \
    vqkv__sum_values_ISA(codes, half, p + r * VQKV_BLOCK, n,                                       \
                         acc + (size_t)r * stride * VQKV__LANES_ISA, stride)
    for (c = 0; c < planes; c++, codes += bytes, acc += VQKV__LANES_ISA)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

/* lut [n, 16]: the scores of codewords with the queries y [n, stride] of a plane's channels. n: a
 * constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__fill_some_ISA(const unsigned char *book, int width,
                                                       const float *y, size_t stride, const int n,
                                                       float *lut)
{
    int i, w, k;
    for (i = 0; i < 16; i += VQKV__LANES_ISA) {
        vqkv__vf_ISA a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = vqkv__set1_ISA(0.0f);
        for (w = 0; w < width; w++) {
            vqkv__vf_ISA b = vqkv__loadh_ISA(book + 2 * (w * 16 + i));
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = vqkv__fma_ISA(vqkv__set1_ISA(y[(size_t)k * stride + (size_t)w]), b, a[k]);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            vqkv__store_ISA(lut + k * 16 + i, a[k]);
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
VQKV__TARGET_ISA static void vqkv__fill_tables_ISA(const vqkv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = vqkv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
#define VQKV__X(n)                                                                                 \
    vqkv__fill_some_ISA(book, run->width, q + (size_t)r * stride, stride, n, lut + r * 16)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
VQKV__TARGET_ISA static int vqkv__nearest_wide_ISA(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * VQKV__LANES_ISA };
    const vqkv__vf_ISA one = vqkv__set1_ISA(-1.0f);
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
        vqkv__vf_ISA a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = vqkv__set1_ISA(0.0f);
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            vqkv__vf_ISA minus = vqkv__set1_ISA(-z[w]);
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                vqkv__vf_ISA d =
                    vqkv__add_ISA(vqkv__loadh_ISA(row + 2 * k * VQKV__LANES_ISA), minus);
                a[k] = vqkv__fma_ISA(d, vqkv__mul_ISA(d, one), a[k]);
            }
        }
        if (!(vqkv__hmax_ISA(vqkv__max_ISA(vqkv__max_ISA(a[0], a[1]), vqkv__max_ISA(a[2], a[3]))) >
              top))
            continue;
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            vqkv__store_ISA(negative + k * VQKV__LANES_ISA, a[k]);
        for (k = 0; k < STEP; k++)
            if (negative[k] > top) {
                top = negative[k];
                best = i + k;
            }
    }
    for (; i < n; i++) {
        float sum = 0.0f;
        for (w = 0; w < width; w++) {
            float d = z[w] - vqkv__half_at(book, (size_t)w * (size_t)n + (size_t)i);
            sum -= d * d;
        }
        if (sum > top) {
            top = sum;
            best = i;
        }
    }
    return best;
}

#define VQKV__X(name) vqkv__##name##_ISA,
static const vqkv__ops vqkv__ops_ISA = {VQKV__LANES_ISA, VQKV__KERNELS(VQKV__X) VQKV__BYTE_OPS_ISA,
                                        &vqkv__dense_ISA, &vqkv__code_ISA};
#undef VQKV__X
