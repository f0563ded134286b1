/* Kernels over rebuilt tiles, and landmarks, for one instruction set, in the vocabulary of
 * kernels.h. A tile is [channels, BLOCK]: what is done to one token is done to LANES of them at
 * once, and no kernel over tiles adds up across lanes. Sizes of tables may be any; BLOCK is a
 * multiple of the lanes. */

/* Inputs and outputs that are unpacked to fp32 at a time. */
enum { VQKV__DEPTH_ISA = 128, VQKV__STRIP_ISA = 16 };

/* The second vector of tokens that a pass holds; the first one again where a block has no other. */
enum { VQKV__NEXT_ISA = VQKV_BLOCK > VQKV__LANES_ISA ? VQKV__LANES_ISA : 0 };

/* y [m, BLOCK] += x [n, BLOCK] by m outputs' coefficients, OUTS at most, at coef[i * of_in + k *
 * of_out]. A macro, so that both strides are constants. Two vectors of tokens and OUTS outputs are
 * as many sums as registers hold: a coefficient is loaded once for both. */
#define VQKV__OUTPUTS(name, of_in, of_out)                                                         \
    VQKV__TARGET_ISA static void name(const float *coef, int n, int m, const float *x, float *y)   \
    {                                                                                              \
        int i, t;                                                                                  \
        for (t = 0; t < VQKV_BLOCK; t += 2 * VQKV__LANES_ISA) {                                    \
            const float *c = coef, *src = x + t;                                                   \
            float *dst = y + t;                                                                    \
            VQKV__OUTS_ISA(VQKV__ZERO)                                                             \
            for (i = 0; i < n; i++, c += (of_in), src += VQKV_BLOCK) {                             \
                vqkv__vf_ISA v = vqkv__load_ISA(src), w = vqkv__load_ISA(src + VQKV__NEXT_ISA), f; \
                VQKV__STEP(0, of_out)                                                              \
                VQKV__STEP(1, of_out)                                                              \
                VQKV__STEP(2, of_out)                                                              \
                VQKV__STEP(3, of_out)                                                              \
                VQKV__REST_ISA(VQKV__STEP, of_out)                                                 \
            }                                                                                      \
            VQKV__OUTS_ISA(VQKV__KEEP)                                                             \
        }                                                                                          \
    }
#define VQKV__ZERO(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f), b##k = a##k;
#define VQKV__STEP(k, of_out)                                                                      \
    f = vqkv__set1_ISA(c[(k) * (of_out)]);                                                         \
    a##k = vqkv__fma_ISA(f, v, a##k);                                                              \
    b##k = vqkv__fma_ISA(f, w, b##k);
#define VQKV__KEEP(k)                                                                              \
    if (k < m) {                                                                                   \
        float *row = dst + k * VQKV_BLOCK;                                                         \
        b##k = vqkv__add_ISA(vqkv__load_ISA(row + VQKV__NEXT_ISA), b##k);                          \
        vqkv__store_ISA(row, vqkv__add_ISA(vqkv__load_ISA(row), a##k));                            \
        vqkv__store_ISA(row + VQKV__NEXT_ISA, b##k);                                               \
    }
VQKV__OUTPUTS(vqkv__outputs_down_ISA, VQKV__STRIP_ISA, 1)
VQKV__OUTPUTS(vqkv__outputs_across_ISA, 1, VQKV__DEPTH_ISA)
#undef VQKV__OUTPUTS
#undef VQKV__ZERO
#undef VQKV__STEP
#undef VQKV__KEEP

/* x [n] of fp32 from binary16. */
VQKV__TARGET_ISA static inline void vqkv__widen_ISA(const unsigned char *row, int n, float *x)
{
    int j = 0;
    for (; j + VQKV__LANES_ISA <= n; j += VQKV__LANES_ISA)
        vqkv__store_ISA(x + j, vqkv__loadh_ISA(row + 2 * j));
    for (; j < n; j++)
        x[j] = vqkv__half_at(row, (size_t)j);
}

/* x [n] of fp32 from entries of a table: the i-th on, the first of them in column `col`. */
VQKV__TARGET_ISA static inline void vqkv__unpack_ISA(const vqkv__matrix *m, size_t i, size_t col,
                                                     int n, float *x)
{
    int j = 0;
    if (m->scale == NULL) {
        vqkv__widen_ISA(m->values + 2 * i, n, x);
        return;
    }
    for (; j + VQKV__LANES_ISA <= n; j += VQKV__LANES_ISA)
        vqkv__store_ISA(x + j, vqkv__mul_ISA(vqkv__loads8_ISA(m->values + i + j),
                                             vqkv__loadh_ISA(m->scale + 2 * (col + (size_t)j))));
    for (; j < n; j++)
        x[j] = vqkv__raw_at(m, i + (size_t)j) * vqkv__half_at(m->scale, col + (size_t)j);
}

VQKV__TARGET_ISA static void vqkv__product_ISA(vqkv__matrix table, size_t ld, int across, int n_in,
                                               int n_out, const float *x, float *y)
{
    float coef[VQKV__STRIP_ISA * VQKV__DEPTH_ISA];
    int i, o, k, first;
    memset(coef, 0, sizeof coef);
    for (o = 0; o < n_out; o += VQKV__STRIP_ISA)
        for (first = 0; first < n_in; first += VQKV__DEPTH_ISA) {
            int m = n_out - o < VQKV__STRIP_ISA ? n_out - o : VQKV__STRIP_ISA;
            int n = n_in - first < VQKV__DEPTH_ISA ? n_in - first : VQKV__DEPTH_ISA;
            const float *src = x + (size_t)first * VQKV_BLOCK;
            for (k = 0; k < m && across; k++)
                vqkv__unpack_ISA(&table, (size_t)(o + k) * ld + (size_t)first, (size_t)first, n,
                                 coef + k * VQKV__DEPTH_ISA);
            for (i = 0; i < n && !across; i++)
                vqkv__unpack_ISA(&table, (size_t)(first + i) * ld + (size_t)o, (size_t)o, m,
                                 coef + i * VQKV__STRIP_ISA);
            for (k = 0; k < m; k += VQKV__N_OUTS_ISA) {
                float *dst = y + (size_t)(o + k) * VQKV_BLOCK;
                if (across)
                    vqkv__outputs_across_ISA(coef + k * VQKV__DEPTH_ISA, n, m - k, src, dst);
                else
                    vqkv__outputs_down_ISA(coef + k, n, m - k, src, dst);
            }
        }
}

VQKV__TARGET_ISA static void vqkv__add_scaled_ISA(size_t n, float a, const float *x, float *y)
{
    size_t i;
    vqkv__vf_ISA factor = vqkv__set1_ISA(a);
    for (i = 0; i < n; i += VQKV__LANES_ISA)
        vqkv__store_ISA(y + i, vqkv__fma_ISA(factor, vqkv__load_ISA(x + i), vqkv__load_ISA(y + i)));
}

VQKV__TARGET_ISA static void vqkv__affine_ISA(const float *scale, const float *shift, int rows,
                                              float *x)
{
    int t, r;
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA a = vqkv__load_ISA(scale + t), b = vqkv__load_ISA(shift + t);
        float *p = x + t;
        for (r = 0; r < rows; r++, p += VQKV_BLOCK)
            vqkv__store_ISA(p, vqkv__fma_ISA(a, vqkv__load_ISA(p), b));
    }
}

VQKV__TARGET_ISA static void vqkv__affine_row_ISA(int n, float scale, float shift, float *x)
{
    int i = 0;
    vqkv__vf_ISA a = vqkv__set1_ISA(scale), b = vqkv__set1_ISA(shift);
    for (; i + VQKV__LANES_ISA <= n; i += VQKV__LANES_ISA)
        vqkv__store_ISA(x + i, vqkv__fma_ISA(a, vqkv__load_ISA(x + i), b));
    for (; i < n; i++)
        x[i] = scale * x[i] + shift;
}

VQKV__TARGET_ISA static void vqkv__from_bytes_ISA(const unsigned char *bytes, float bias,
                                                  float *dst)
{
    int t;
    vqkv__vf_ISA b = vqkv__set1_ISA(bias);
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA)
        vqkv__store_ISA(dst + t, vqkv__add_ISA(vqkv__loadu8_ISA(bytes + t), b));
}

VQKV__TARGET_ISA static void vqkv__from_nibbles_ISA(const unsigned char *plane,
                                                    const unsigned char *book, int width, int add,
                                                    float *dst)
{
    float words[16];
    int t, w;
    for (w = 0; w < width; w++, dst += VQKV_BLOCK) {
        vqkv__vt_ISA table;
        vqkv__widen_ISA(book + 2 * 16 * w, 16, words);
        table = vqkv__table_ISA(words);
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            vqkv__vf_ISA v = vqkv__lookup_ISA(table, vqkv__nibbles_ISA(plane, t));
            vqkv__store_ISA(dst + t, add ? vqkv__add_ISA(vqkv__load_ISA(dst + t), v) : v);
        }
    }
}

/* The angle of a token is the block's and the token's own, one complex product a pair. */
VQKV__TARGET_ISA static void vqkv__turn_tile_ISA(const float *block, const float *tokens,
                                                 float direction, const float *x, float *y)
{
    int i, t;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        int first = (VQKV_ROPE_INTERLEAVED ? 2 * i : i) * VQKV_BLOCK;
        int second = (VQKV_ROPE_INTERLEAVED ? 2 * i + 1 : i + VQKV_N_ROT / 2) * VQKV_BLOCK;
        vqkv__vf_ISA block_cos = vqkv__set1_ISA(block[2 * i]), c = block_cos;
        vqkv__vf_ISA block_sin = vqkv__set1_ISA(direction * block[2 * i + 1]), s = block_sin;
        vqkv__vf_ISA sign = vqkv__set1_ISA(direction), minus = vqkv__set1_ISA(-1.0f);
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
            vqkv__vf_ISA a = vqkv__load_ISA(x + first + t), b = vqkv__load_ISA(x + second + t);
            if (tokens != NULL) {
                const float *own = tokens + 2 * i * VQKV_BLOCK + t;
                vqkv__vf_ISA own_cos = vqkv__load_ISA(own);
                vqkv__vf_ISA own_sin = vqkv__mul_ISA(sign, vqkv__load_ISA(own + VQKV_BLOCK));
                c = vqkv__fma_ISA(vqkv__mul_ISA(minus, block_sin), own_sin,
                                  vqkv__mul_ISA(block_cos, own_cos));
                s = vqkv__fma_ISA(block_sin, own_cos, vqkv__mul_ISA(block_cos, own_sin));
            }
            vqkv__store_ISA(y + first + t,
                            vqkv__fma_ISA(vqkv__mul_ISA(minus, s), b, vqkv__mul_ISA(c, a)));
            vqkv__store_ISA(y + second + t, vqkv__fma_ISA(s, a, vqkv__mul_ISA(c, b)));
        }
    }
    if (x != y)
        memcpy(y + VQKV_N_ROT * VQKV_BLOCK, x + VQKV_N_ROT * VQKV_BLOCK,
               sizeof(float) * (VQKV_HEAD_DIM - VQKV_N_ROT) * VQKV_BLOCK);
}

/* s [n, BLOCK] = q [n, HEAD_DIM] against a tile k. n: a constant, 4 at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__score_held_ISA(const float *k, const float *q, const int n,
                                                        float *s)
{
    int d, t, i;
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA a[4];
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            a[i] = vqkv__set1_ISA(0.0f);
        for (d = 0; d < VQKV_HEAD_DIM; d++) {
            vqkv__vf_ISA v = vqkv__load_ISA(k + d * VQKV_BLOCK + t);
#pragma GCC unroll 4
            for (i = 0; i < n; i++)
                a[i] = vqkv__fma_ISA(vqkv__set1_ISA(q[i * VQKV_HEAD_DIM + d]), v, a[i]);
        }
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            vqkv__store_ISA(s + i * VQKV_BLOCK + t, a[i]);
    }
}

VQKV__TARGET_ISA static void vqkv__score_tile_ISA(const float *k, const float *q, int rows,
                                                  float *s)
{
    int r;
#define VQKV__X(n) vqkv__score_held_ISA(k, q + r * VQKV_HEAD_DIM, n, s + r * VQKV_BLOCK)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times v [BLOCK]. n: a constant, 4
 * at most. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__sum_held_ISA(const float *v, const float *p, const int n,
                                                      float *acc, size_t stride)
{
    vqkv__vf_ISA a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = vqkv__load_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA);
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA x = vqkv__load_ISA(v + t);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = vqkv__fma_ISA(vqkv__load_ISA(p + k * VQKV_BLOCK + t), x, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__store_ISA(acc + (size_t)k * stride * VQKV__LANES_ISA, a[k]);
}

VQKV__TARGET_ISA static void vqkv__sum_tile_ISA(const float *v, const float *p, int rows,
                                                float *acc, size_t stride)
{
    int r, d;
#define VQKV__X(n)                                                                                 \
    vqkv__sum_held_ISA(v, p + r * VQKV_BLOCK, n, acc + (size_t)r * stride * VQKV__LANES_ISA, stride)
    for (d = 0; d < VQKV_HEAD_DIM; d++, v += VQKV_BLOCK, acc += VQKV__LANES_ISA)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

VQKV__TARGET_ISA static void vqkv__distances_ISA(const unsigned char *book, int n, int width,
                                                 int count, const float *z, float *distance)
{
    int i = 0, w;
    for (; i + VQKV__LANES_ISA <= count; i += VQKV__LANES_ISA) {
        vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
        for (w = 0; w < width; w++) {
            vqkv__vf_ISA d =
                vqkv__add_ISA(vqkv__loadh_ISA(book + 2 * ((size_t)w * (size_t)n + (size_t)i)),
                              vqkv__set1_ISA(-z[w]));
            a = vqkv__fma_ISA(d, d, a);
        }
        vqkv__store_ISA(distance + i, a);
    }
    for (; i < count; i++) {
        distance[i] = 0.0f;
        for (w = 0; w < width; w++) {
            float d = vqkv__half_at(book, (size_t)w * (size_t)n + (size_t)i) - z[w];
            distance[i] += d * d;
        }
    }
}

VQKV__TARGET_ISA static void vqkv__landmark_scores_ISA(const unsigned char *codes, int n,
                                                       const float *q, int rows, float *best)
{
    vqkv__vf_ISA bias = vqkv__set1_ISA(-128.0f);
    int i, r, d;
    for (i = 0; i < n; i++, codes += VQKV_HEAD_DIM)
        for (r = 0; r < rows; r++) {
            const float *x = q + r * VQKV_HEAD_DIM;
            vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
            float sum;
            for (d = 0; d + VQKV__LANES_ISA <= VQKV_HEAD_DIM; d += VQKV__LANES_ISA)
                a = vqkv__fma_ISA(vqkv__load_ISA(x + d),
                                  vqkv__add_ISA(vqkv__loadu8_ISA(codes + d), bias), a);
            sum = vqkv__hsum_ISA(a);
            for (; d < VQKV_HEAD_DIM; d++)
                sum += x[d] * ((float)codes[d] - 128.0f);
            best[i] = r == 0 || sum > best[i] ? sum : best[i];
        }
}

#define VQKV__X(name) vqkv__##name##_ISA,
static const vqkv__dense_ops vqkv__dense_ISA = {VQKV__DENSE_KERNELS(VQKV__X)};
#undef VQKV__X
