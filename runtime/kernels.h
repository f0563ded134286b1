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

#define VQKV__ROWS4(X) X(0) X(1) X(2) X(3)

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
VQKV__TARGET_ISA static void vqkv__score_nibbles_ISA(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r, t, p;
    for (r = 0; r + 4 <= rows; r += 4) {
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            float *dst = s + r * VQKV_BLOCK + t;
#define VQKV__X(i) vqkv__vf_ISA a##i = vqkv__load_ISA(dst + i * VQKV_BLOCK);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            for (p = 0; p < planes; p++) {
                vqkv__vi_ISA code = vqkv__nibbles_ISA(codes + p * (VQKV_BLOCK / 2), t);
                const float *tab = lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
#define VQKV__X(i)                                                                                 \
    a##i = vqkv__add_ISA(a##i, vqkv__lookup_ISA(vqkv__table_ISA(tab + i * 16), code));
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
#define VQKV__X(i) vqkv__store_ISA(dst + i * VQKV_BLOCK, a##i);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
    }
    for (; r < rows; r++) {
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            float *dst = s + r * VQKV_BLOCK + t;
            vqkv__vf_ISA a = vqkv__load_ISA(dst);
            for (p = 0; p < planes; p++) {
                vqkv__vi_ISA code = vqkv__nibbles_ISA(codes + p * (VQKV_BLOCK / 2), t);
                const float *tab = lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
                a = vqkv__add_ISA(a, vqkv__lookup_ISA(vqkv__table_ISA(tab), code));
            }
            vqkv__store_ISA(dst, a);
        }
    }
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
VQKV__TARGET_ISA static void vqkv__sum_nibbles_ISA(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, t, i, w;
    for (i = 0; i < planes; i++) {
        const unsigned char *plane = codes + i * (VQKV_BLOCK / 2);
        for (w = 0; w < width; w++) {
            vqkv__vt_ISA table =
                vqkv__table_ISA(book + ((size_t)i * (size_t)width + (size_t)w) * 16);
            float *dst = acc + (size_t)(i / stages * width + w) * VQKV__LANES_ISA;
            for (r = 0; r + 4 <= rows; r += 4) {
                const float *prob = p + r * VQKV_BLOCK;
                float *d = dst + (size_t)r * stride * VQKV__LANES_ISA;
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__load_ISA(d + k * stride * VQKV__LANES_ISA);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
                for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
                    vqkv__vf_ISA v = vqkv__lookup_ISA(table, vqkv__nibbles_ISA(plane, t));
#define VQKV__X(k) a##k = vqkv__fma_ISA(vqkv__load_ISA(prob + k * VQKV_BLOCK + t), v, a##k);
                    VQKV__ROWS4(VQKV__X)
#undef VQKV__X
                }
#define VQKV__X(k) vqkv__store_ISA(d + k * stride * VQKV__LANES_ISA, a##k);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
            for (; r < rows; r++) {
                const float *prob = p + r * VQKV_BLOCK;
                float *d = dst + (size_t)r * stride * VQKV__LANES_ISA;
                vqkv__vf_ISA a = vqkv__load_ISA(d);
                for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA)
                    a = vqkv__fma_ISA(vqkv__load_ISA(prob + t),
                                      vqkv__lookup_ISA(table, vqkv__nibbles_ISA(plane, t)), a);
                vqkv__store_ISA(d, a);
            }
        }
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

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. Of a block of keys as many
 * lines are asked for as it has together with one of values. */
VQKV__TARGET_ISA static void vqkv__score_scalars_ISA(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int r, t, c;
    size_t bytes = half ? 2 * VQKV_BLOCK : VQKV_BLOCK;
    for (t = 0; t < VQKV_BLOCK; t += 2 * VQKV__LANES_ISA) {
        for (r = 0; r + 4 <= rows; r += 4) {
            float *dst = s + r * VQKV_BLOCK + t, *next = dst + VQKV__LANES_ISA;
#define VQKV__X(k)                                                                                 \
    vqkv__vf_ISA a##k = vqkv__load_ISA(dst + k * VQKV_BLOCK),                                      \
                 b##k = vqkv__load_ISA(next + k * VQKV_BLOCK);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            for (c = 0; c < planes; c++) {
                const unsigned char *plane = codes + (size_t)c * bytes;
                vqkv__vf_ISA v = vqkv__scalars_ISA(plane, t, half);
                vqkv__vf_ISA w = vqkv__scalars_ISA(plane, t + VQKV__LANES_ISA, half);
                const float *qc = q + c * rows + r;
                if (VQKV__LANES_ISA >= 8 && r == 0)
                    vqkv__ask(&asked);
                if (VQKV__LANES_ISA >= 16 && half && r == 0)
                    vqkv__ask(&asked);
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        vqkv__vf_ISA x = vqkv__set1_ISA(qc[k]);                                                    \
        a##k = vqkv__fma_ISA(x, v, a##k);                                                          \
        b##k = vqkv__fma_ISA(x, w, b##k);                                                          \
    }
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
#define VQKV__X(k)                                                                                 \
    vqkv__store_ISA(dst + k * VQKV_BLOCK, a##k);                                                   \
    vqkv__store_ISA(next + k * VQKV_BLOCK, b##k);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
        for (; r < rows; r++) {
            float *dst = s + r * VQKV_BLOCK + t, *next = dst + VQKV__LANES_ISA;
            vqkv__vf_ISA a = vqkv__load_ISA(dst), b = vqkv__load_ISA(next);
            for (c = 0; c < planes; c++) {
                const unsigned char *plane = codes + (size_t)c * bytes;
                vqkv__vf_ISA x = vqkv__set1_ISA(q[c * rows + r]);
                a = vqkv__fma_ISA(x, vqkv__scalars_ISA(plane, t, half), a);
                b = vqkv__fma_ISA(x, vqkv__scalars_ISA(plane, t + VQKV__LANES_ISA, half), b);
            }
            vqkv__store_ISA(dst, a);
            vqkv__store_ISA(next, b);
        }
    }
    *ahead = asked;
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
VQKV__TARGET_ISA static void vqkv__sum_scalars_ISA(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, t, c;
    size_t bytes = half ? 2 * VQKV_BLOCK : VQKV_BLOCK;
    for (c = 0; c < planes; c++) {
        const unsigned char *plane = codes + (size_t)c * bytes;
        float *dst = acc + (size_t)c * VQKV__LANES_ISA;
        for (r = 0; r + 4 <= rows; r += 4) {
            const float *prob = p + r * VQKV_BLOCK;
            float *d = dst + (size_t)r * stride * VQKV__LANES_ISA;
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__load_ISA(d + k * stride * VQKV__LANES_ISA);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
                vqkv__vf_ISA v = vqkv__scalars_ISA(plane, t, half);
#define VQKV__X(k) a##k = vqkv__fma_ISA(vqkv__load_ISA(prob + k * VQKV_BLOCK + t), v, a##k);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
#define VQKV__X(k) vqkv__store_ISA(d + k * stride * VQKV__LANES_ISA, a##k);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
        for (; r < rows; r++) {
            const float *prob = p + r * VQKV_BLOCK;
            float *d = dst + (size_t)r * stride * VQKV__LANES_ISA;
            vqkv__vf_ISA a = vqkv__load_ISA(d);
            for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
                vqkv__vf_ISA v = vqkv__scalars_ISA(plane, t, half);
                a = vqkv__fma_ISA(vqkv__load_ISA(prob + t), v, a);
            }
            vqkv__store_ISA(d, a);
        }
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
VQKV__TARGET_ISA static void vqkv__fill_tables_ISA(const vqkv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r, w, i;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = vqkv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
        for (i = 0; i < 16; i += VQKV__LANES_ISA) {
            for (r = 0; r + 4 <= rows; r += 4) {
                const float *x = q + (size_t)r * stride;
                float *dst = lut + r * 16 + i;
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
                for (w = 0; w < run->width; w++) {
                    vqkv__vf_ISA b = vqkv__loadh_ISA(book + 2 * (w * 16 + i));
#define VQKV__X(k) a##k = vqkv__fma_ISA(vqkv__set1_ISA(x[k * stride + (size_t)w]), b, a##k);
                    VQKV__ROWS4(VQKV__X)
#undef VQKV__X
                }
#define VQKV__X(k) vqkv__store_ISA(dst + k * 16, a##k);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
            for (; r < rows; r++) {
                vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
                for (w = 0; w < run->width; w++)
                    a = vqkv__fma_ISA(vqkv__set1_ISA(q[(size_t)r * stride + (size_t)w]),
                                      vqkv__loadh_ISA(book + 2 * (w * 16 + i)), a);
                vqkv__store_ISA(lut + r * 16 + i, a);
            }
        }
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
VQKV__TARGET_ISA static int vqkv__nearest_wide_ISA(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * VQKV__LANES_ISA };
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f);
        VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            vqkv__vf_ISA minus = vqkv__set1_ISA(-z[w]), one = vqkv__set1_ISA(-1.0f);
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        vqkv__vf_ISA d = vqkv__add_ISA(vqkv__loadh_ISA(row + 2 * k * VQKV__LANES_ISA), minus);     \
        a##k = vqkv__fma_ISA(d, vqkv__mul_ISA(d, one), a##k);                                      \
    }
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
        if (!(vqkv__hmax_ISA(vqkv__max_ISA(vqkv__max_ISA(a0, a1), vqkv__max_ISA(a2, a3))) > top))
            continue;
#define VQKV__X(k) vqkv__store_ISA(negative + k * VQKV__LANES_ISA, a##k);
        VQKV__ROWS4(VQKV__X)
#undef VQKV__X
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

#undef VQKV__ROWS4
