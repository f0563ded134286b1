/* Arithmetic on rows of numbers for one instruction set, in the vocabulary of kernels.h: gains and
 * softmax of scores, exact tokens, sums over lanes, angles. */

/* exp(x) for x <= 0, down to x = -87, where it stays: relative error below 2e-7 near 0 and below
 * 6e-8 |x| elsewhere, so that no sum of them errs by more than the first. A polynomial for 2^r with
 * the least relative error on [-1/2, 1/2], its terms in pairs: what waits for operands fills the
 * processor's queues, so that a long chain is slower than one product more. */
VQKV__TARGET_ISA static inline vqkv__vf_ISA vqkv__exp_ISA(vqkv__vf_ISA x)
{
    vqkv__vf_ISA n, r, square, low, high;
    x = vqkv__mul_ISA(vqkv__max_ISA(x, vqkv__set1_ISA(-87.0f)), vqkv__set1_ISA(1.44269504f));
    n = vqkv__round_ISA(x);
    r = vqkv__sub_ISA(x, n);
    square = vqkv__mul_ISA(r, r);
    low = vqkv__fma_ISA(vqkv__set1_ISA(0.693147004f), r, vqkv__set1_ISA(1.0f));
    high = vqkv__fma_ISA(vqkv__set1_ISA(0.0555073358f), r, vqkv__set1_ISA(0.240222424f));
    x = vqkv__fma_ISA(vqkv__set1_ISA(0.00132647273f), r, vqkv__set1_ISA(0.00967151299f));
    high = vqkv__fma_ISA(x, square, high);
    low = vqkv__fma_ISA(high, square, low);
    return vqkv__scale2_ISA(low, n);
}

/* dst [rows, BLOCK] = gain [BLOCK] * src [rows, BLOCK] */
VQKV__TARGET_ISA static void vqkv__scale_rows_ISA(const float *gain, const float *src, int rows,
                                                  float *dst)
{
    int r, t;
    for (r = 0; r < rows; r++)
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            int i = r * VQKV_BLOCK + t;
            vqkv__store_ISA(dst + i,
                            vqkv__mul_ISA(vqkv__load_ISA(gain + t), vqkv__load_ISA(src + i)));
        }
}

/* s [rows, BLOCK] = (bias [rows], or s if NULL) + gain [BLOCK] * part [rows, BLOCK]; high [rows,
 * LANES], if not NULL, rises to the highest of each lane. */
VQKV__TARGET_ISA static void vqkv__gain_scores_ISA(const float *gain, const float *part,
                                                   const float *bias, int rows, float *s,
                                                   float *high)
{
    int r, t;
    for (r = 0; r < rows; r++, part += VQKV_BLOCK, s += VQKV_BLOCK) {
        const vqkv__vf_ISA base = vqkv__set1_ISA(bias != NULL ? bias[r] : 0.0f);
        vqkv__vf_ISA top = vqkv__set1_ISA(VQKV__MASKED);
#pragma GCC unroll 4
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            vqkv__vf_ISA x = vqkv__fma_ISA(vqkv__load_ISA(gain + t), vqkv__load_ISA(part + t),
                                           bias != NULL ? base : vqkv__load_ISA(s + t));
            vqkv__store_ISA(s + t, x);
            top = vqkv__max_ISA(top, x);
        }
        if (high != NULL)
            vqkv__store_ISA(high + r * VQKV__LANES_ISA,
                            vqkv__max_ISA(top, vqkv__load_ISA(high + r * VQKV__LANES_ISA)));
    }
}

/* gain [BLOCK]: binary16 at p, or where there is a table its entries at the bytes at p. */
VQKV__TARGET_ISA static void vqkv__gains_ISA(const unsigned char *p, const unsigned char *table,
                                             float *gain)
{
    int t;
    for (t = 0; t < VQKV_BLOCK && table != NULL; t += VQKV__GATHERED_ISA)
        vqkv__gather_ISA(table, p + t, gain + t);
    for (t = 0; t < VQKV_BLOCK && table == NULL; t += VQKV__LANES_ISA)
        vqkv__store_ISA(gain + t, vqkv__loadh_ISA(p + 2 * t));
}

/* y [n] += x * table row, binary16 [n] */
VQKV__TARGET_ISA static void vqkv__add_row_ISA(const unsigned char *row, int n, float x, float *y)
{
    int j = 0;
    vqkv__vf_ISA xs = vqkv__set1_ISA(x);
    for (; j + VQKV__LANES_ISA <= n; j += VQKV__LANES_ISA)
        vqkv__store_ISA(y + j,
                        vqkv__fma_ISA(xs, vqkv__loadh_ISA(row + 2 * j), vqkv__load_ISA(y + j)));
    for (; j < n; j++)
        y[j] += x * vqkv__half_at(row, (size_t)j);
}

/* x . table row, binary16 [n] */
VQKV__TARGET_ISA static float vqkv__dot_row_ISA(const unsigned char *row, int n, const float *x)
{
    int j = 0;
    float sum;
    vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
    for (; j + VQKV__LANES_ISA <= n; j += VQKV__LANES_ISA)
        a = vqkv__fma_ISA(vqkv__load_ISA(x + j), vqkv__loadh_ISA(row + 2 * j), a);
    sum = vqkv__hsum_ISA(a);
    for (; j < n; j++)
        sum += x[j] * vqkv__half_at(row, (size_t)j);
    return sum;
}

/* The largest of s, BLOCK numbers in each of `blocks` blocks `step` apart. */
VQKV__TARGET_ISA static float vqkv__largest_ISA(const float *s, int blocks, size_t step)
{
    int b, t;
    vqkv__vf_ISA high = vqkv__load_ISA(s);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA)
            high = vqkv__max_ISA(high, vqkv__load_ISA(s + t));
    return vqkv__hmax_ISA(high);
}

/* The same numbers become exp(s - m); returns their sum. */
VQKV__TARGET_ISA static float vqkv__exponentials_ISA(float *s, int blocks, size_t step, float m)
{
    int b, t;
    vqkv__vf_ISA shift = vqkv__set1_ISA(-m), sum = vqkv__set1_ISA(0.0f);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            vqkv__vf_ISA e = vqkv__exp_ISA(vqkv__add_ISA(vqkv__load_ISA(s + t), shift));
            vqkv__store_ISA(s + t, e);
            sum = vqkv__add_ISA(sum, e);
        }
    return vqkv__hsum_ISA(sum);
}

/* s [n, BLOCK] at token 0 = q [n, HEAD_DIM] . k, and at `next` tokens on = q . l, which may be k.
 * n: a constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__exact_pair_ISA(const unsigned char *k,
                                                        const unsigned char *l, const float *q,
                                                        const int n, int next, float *s)
{
    vqkv__vf_ISA a[4], b[4];
    float sum[2][4];
    int d, i;
#pragma GCC unroll 4
    for (i = 0; i < n; i++)
        a[i] = b[i] = vqkv__set1_ISA(0.0f);
    for (d = 0; d + VQKV__LANES_ISA <= VQKV_HEAD_DIM; d += VQKV__LANES_ISA) {
        vqkv__vf_ISA x = vqkv__loadh_ISA(k + 2 * d), y = vqkv__loadh_ISA(l + 2 * d);
#pragma GCC unroll 4
        for (i = 0; i < n; i++) {
            vqkv__vf_ISA query = vqkv__load_ISA(q + i * VQKV_HEAD_DIM + d);
            a[i] = vqkv__fma_ISA(query, x, a[i]);
            b[i] = vqkv__fma_ISA(query, y, b[i]);
        }
    }
    vqkv__lane_sums_ISA(a, n, sum[0]);
    vqkv__lane_sums_ISA(b, n, sum[1]);
    for (; d < VQKV_HEAD_DIM; d++) {
        float x = vqkv__half_at(k, (size_t)d), y = vqkv__half_at(l, (size_t)d);
        for (i = 0; i < n; i++) {
            sum[0][i] += q[i * VQKV_HEAD_DIM + d] * x;
            sum[1][i] += q[i * VQKV_HEAD_DIM + d] * y;
        }
    }
#pragma GCC unroll 4
    for (i = 0; i < n; i++) {
        s[i * VQKV_BLOCK] = sum[0][i];
        s[i * VQKV_BLOCK + next] = sum[1][i];
    }
}

/* s [rows, BLOCK] = q [rows, HEAD_DIM] . the n rows of k, binary16 [n, HEAD_DIM]: exact tokens, two
 * at a time. */
VQKV__TARGET_ISA static void vqkv__exact_scores_ISA(const unsigned char *k, int n, const float *q,
                                                    int rows, float *s)
{
    int t, r;
    for (t = 0; t < n; t += 2) {
        const unsigned char *x = k + 2 * (size_t)t * VQKV_HEAD_DIM;
        int next = t + 1 < n;
        const unsigned char *y = x + 2 * next * VQKV_HEAD_DIM;
#define VQKV__X(n_rows)                                                                            \
    vqkv__exact_pair_ISA(x, y, q + r * VQKV_HEAD_DIM, n_rows, next, s + r * VQKV_BLOCK + t)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    }
}

/* o [m, HEAD_DIM] += p [m, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. m: a constant, 4
 * at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__exact_add_ISA(const unsigned char *v, int n,
                                                       const float *p, const int m, float *o)
{
    int t, i, d;
    for (d = 0; d + 2 * VQKV__LANES_ISA <= VQKV_HEAD_DIM; d += 2 * VQKV__LANES_ISA) {
        float *dst = o + d, *next = dst + VQKV__LANES_ISA;
        vqkv__vf_ISA a[4], b[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            a[i] = vqkv__load_ISA(dst + i * VQKV_HEAD_DIM);
            b[i] = vqkv__load_ISA(next + i * VQKV_HEAD_DIM);
        }
        for (t = 0; t < n; t++) {
            const unsigned char *row = v + 2 * ((size_t)t * VQKV_HEAD_DIM + (size_t)d);
            vqkv__vf_ISA x = vqkv__loadh_ISA(row), y = vqkv__loadh_ISA(row + 2 * VQKV__LANES_ISA);
#pragma GCC unroll 4
            for (i = 0; i < m; i++) {
                vqkv__vf_ISA w = vqkv__set1_ISA(p[i * VQKV_BLOCK + t]);
                a[i] = vqkv__fma_ISA(w, x, a[i]);
                b[i] = vqkv__fma_ISA(w, y, b[i]);
            }
        }
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            vqkv__store_ISA(dst + i * VQKV_HEAD_DIM, a[i]);
            vqkv__store_ISA(next + i * VQKV_HEAD_DIM, b[i]);
        }
    }
    for (; d < VQKV_HEAD_DIM; d++)
        for (t = 0; t < n; t++) {
            float x = vqkv__half_at(v, (size_t)t * VQKV_HEAD_DIM + (size_t)d);
            for (i = 0; i < m; i++)
                o[i * VQKV_HEAD_DIM + d] += p[i * VQKV_BLOCK + t] * x;
        }
}

/* o [rows, HEAD_DIM] += p [rows, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. */
VQKV__TARGET_ISA static void vqkv__exact_sums_ISA(const unsigned char *v, int n, const float *p,
                                                  int rows, float *o)
{
    int r;
#define VQKV__X(n_rows) vqkv__exact_add_ISA(v, n, p + r * VQKV_BLOCK, n_rows, o + r * VQKV_HEAD_DIM)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

/* y [n] = sums over the lanes of acc [n, LANES] */
VQKV__TARGET_ISA static void vqkv__reduce_ISA(const float *acc, int n, float *y)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        const float *four = acc + (size_t)i * VQKV__LANES_ISA;
        vqkv__hsum4_ISA(vqkv__load_ISA(four), vqkv__load_ISA(four + VQKV__LANES_ISA),
                        vqkv__load_ISA(four + 2 * VQKV__LANES_ISA),
                        vqkv__load_ISA(four + 3 * VQKV__LANES_ISA), y + i);
    }
    for (; i < n; i++)
        y[i] = vqkv__hsum_ISA(vqkv__load_ISA(acc + (size_t)i * VQKV__LANES_ISA));
}

/* x [n] *= factor */
VQKV__TARGET_ISA static void vqkv__shrink_ISA(float *x, size_t n, float factor)
{
    size_t i;
    vqkv__vf_ISA f = vqkv__set1_ISA(factor);
    for (i = 0; i + VQKV__LANES_ISA <= n; i += VQKV__LANES_ISA)
        vqkv__store_ISA(x + i, vqkv__mul_ISA(vqkv__load_ISA(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

/* c, s [n]: cosines and sines of angles, which grow by those of dc, ds [n]. */
VQKV__TARGET_ISA static void vqkv__turn_on_ISA(const float *dc, const float *ds, int n, float *c,
                                               float *s)
{
    int i;
    for (i = 0; i + VQKV__LANES_ISA <= n; i += VQKV__LANES_ISA) {
        vqkv__vf_ISA x = vqkv__load_ISA(c + i), y = vqkv__load_ISA(s + i);
        vqkv__vf_ISA u = vqkv__load_ISA(dc + i), v = vqkv__load_ISA(ds + i);
        vqkv__store_ISA(c + i, vqkv__sub_ISA(vqkv__mul_ISA(x, u), vqkv__mul_ISA(y, v)));
        vqkv__store_ISA(s + i, vqkv__fma_ISA(y, u, vqkv__mul_ISA(x, v)));
    }
    for (; i < n; i++) {
        float x = c[i], y = s[i];
        c[i] = x * dc[i] - y * ds[i];
        s[i] = y * dc[i] + x * ds[i];
    }
}
