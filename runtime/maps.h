/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

#define VQKV__ROWS4(X) X(0) X(1) X(2) X(3)

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
VQKV__TARGET_ISA static inline vqkv__vf_ISA vqkv__entries_ISA(const vqkv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? vqkv__loads8_ISA(m->values + i) : vqkv__loadh_ISA(m->values + 2 * i);
}

VQKV__TARGET_ISA VQKV__INLINE void vqkv__map_entries_ISA(const vqkv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
    for (; j + 2 * VQKV__LANES_ISA <= n_out && rows % 4 == 0; j += 2 * VQKV__LANES_ISA) {
        vqkv__vf_ISA scale = vqkv__set1_ISA(1.0f), next = scale;
        if (bytes) {
            scale = vqkv__loadh_ISA(table->scale + 2 * (size_t)j);
            next = vqkv__loadh_ISA(table->scale + 2 * (size_t)(j + VQKV__LANES_ISA));
        }
        for (r = 0; r < rows; r += 4) {
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f), b##k = a##k;
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            for (d = 0; d < n_in; d++) {
                const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
                const float *xd = x + (size_t)r * (size_t)ldx + d;
                vqkv__vf_ISA u = vqkv__entries_ISA(table, at, bytes);
                vqkv__vf_ISA v = vqkv__entries_ISA(table, at + VQKV__LANES_ISA, bytes);
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        vqkv__vf_ISA q = vqkv__set1_ISA(xd[k * ldx]);                                              \
        a##k = vqkv__fma_ISA(q, u, a##k);                                                          \
        b##k = vqkv__fma_ISA(q, v, b##k);                                                          \
    }
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        float *to = y + (size_t)(r + k) * (size_t)n_out + j;                                       \
        vqkv__store_ISA(to, vqkv__mul_ISA(scale, a##k));                                           \
        vqkv__store_ISA(to + VQKV__LANES_ISA, vqkv__mul_ISA(next, b##k));                          \
    }
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
    }
    for (; j < n_out && n_out >= VQKV__LANES_ISA; j += VQKV__LANES_ISA) {
        vqkv__vf_ISA scale;
        if (j + VQKV__LANES_ISA > n_out) /* the last LANES, some of them once more */
            j = n_out - VQKV__LANES_ISA;
        scale = bytes ? vqkv__loadh_ISA(table->scale + 2 * (size_t)j) : vqkv__set1_ISA(1.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f);
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            for (d = 0; d < n_in; d++) {
                vqkv__vf_ISA b =
                    vqkv__entries_ISA(table, (size_t)d * (size_t)n_out + (size_t)j, bytes);
                const float *xd = x + (size_t)r * (size_t)ldx + d;
#define VQKV__X(k) a##k = vqkv__fma_ISA(vqkv__set1_ISA(xd[k * ldx]), b, a##k);
                VQKV__ROWS4(VQKV__X)
#undef VQKV__X
            }
#define VQKV__X(k)                                                                                 \
    vqkv__store_ISA(y + (size_t)(r + k) * (size_t)n_out + j, vqkv__mul_ISA(scale, a##k));
            VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        }
        for (; r < rows; r++) {
            vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
            for (d = 0; d < n_in; d++)
                a = vqkv__fma_ISA(
                    vqkv__set1_ISA(x[(size_t)r * (size_t)ldx + (size_t)d]),
                    vqkv__entries_ISA(table, (size_t)d * (size_t)n_out + (size_t)j, bytes), a);
            vqkv__store_ISA(y + (size_t)r * (size_t)n_out + j, vqkv__mul_ISA(scale, a));
        }
    }
    for (; j < n_out; j++)
        for (r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (d = 0; d < n_in; d++)
                sum += x[(size_t)r * (size_t)ldx + (size_t)d] *
                       vqkv__raw_at(table, (size_t)d * (size_t)n_out + (size_t)j);
            y[(size_t)r * (size_t)n_out + (size_t)j] =
                bytes ? sum * vqkv__half_at(table->scale, (size_t)j) : sum;
        }
}

/* y [rows, n_out] = x [rows, n_in] * table [n_in, n_out]: the query map. */
VQKV__TARGET_ISA static void vqkv__map_ISA(vqkv__matrix table, int n_in, int n_out, const float *x,
                                           int ldx, int rows, float *y)
{
    if (table.scale != NULL)
        vqkv__map_entries_ISA(&table, 1, n_in, n_out, x, ldx, rows, y);
    else
        vqkv__map_entries_ISA(&table, 0, n_in, n_out, x, ldx, rows, y);
}

/* Outputs d .. d + n - 1 of four rows x [4, n_in], whose last LANES are `rest`, 0 where whole ones
 * end. n: 1 or 2, a constant: two outputs share what is loaded of x. */
VQKV__TARGET_ISA VQKV__INLINE void
vqkv__unmap_four_ISA(const vqkv__matrix *table, const int bytes, int d, const int n, int n_in,
                     const float *x, float (*rest)[VQKV__LANES_ISA], float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in, next = n > 1 ? (size_t)n_in : 0;
    const int whole = n_in / VQKV__LANES_ISA * VQKV__LANES_ISA;
    float sum[4], more[4];
    int j;
#define VQKV__X(k) vqkv__vf_ISA a##k = vqkv__set1_ISA(0.0f), b##k = a##k;
    VQKV__ROWS4(VQKV__X)
#undef VQKV__X
    for (j = 0; j < whole; j += VQKV__LANES_ISA) {
        vqkv__vf_ISA u = vqkv__entries_ISA(table, row + (size_t)j, bytes);
        vqkv__vf_ISA v = n > 1 ? vqkv__entries_ISA(table, row + next + (size_t)j, bytes) : u;
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        vqkv__vf_ISA y = vqkv__load_ISA(x + k * n_in + j);                                         \
        a##k = vqkv__fma_ISA(y, u, a##k);                                                          \
        if (n > 1)                                                                                 \
            b##k = vqkv__fma_ISA(y, v, b##k);                                                      \
    }
        VQKV__ROWS4(VQKV__X)
#undef VQKV__X
    }
    if (j < n_in && n_in >= VQKV__LANES_ISA) { /* the last LANES, some of them once more */
        const size_t last = row + (size_t)(n_in - VQKV__LANES_ISA);
        vqkv__vf_ISA u = vqkv__entries_ISA(table, last, bytes);
        vqkv__vf_ISA v = n > 1 ? vqkv__entries_ISA(table, last + next, bytes) : u;
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        vqkv__vf_ISA y = vqkv__load_ISA(rest[k]);                                                  \
        a##k = vqkv__fma_ISA(y, u, a##k);                                                          \
        if (n > 1)                                                                                 \
            b##k = vqkv__fma_ISA(y, v, b##k);                                                      \
    }
        VQKV__ROWS4(VQKV__X)
#undef VQKV__X
        j = n_in;
    }
    vqkv__hsum4_ISA(a0, a1, a2, a3, sum);
    if (n > 1)
        vqkv__hsum4_ISA(b0, b1, b2, b3, more);
    for (; j < n_in; j++) {
        const float u = vqkv__raw_at(table, row + (size_t)j);
        const float v = vqkv__raw_at(table, row + next + (size_t)j);
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        sum[k] += x[k * n_in + j] * u;                                                             \
        if (n > 1)                                                                                 \
            more[k] += x[k * n_in + j] * v;                                                        \
    }
        VQKV__ROWS4(VQKV__X)
#undef VQKV__X
    }
#define VQKV__X(k)                                                                                 \
    {                                                                                              \
        o[k * n_out + d] += sum[k];                                                                \
        if (n > 1)                                                                                 \
            o[k * n_out + d + 1] += more[k];                                                       \
    }
    VQKV__ROWS4(VQKV__X)
#undef VQKV__X
}

VQKV__TARGET_ISA VQKV__INLINE void vqkv__unmap_entries_ISA(const vqkv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[VQKV__MAX_ROWS][VQKV__LANES_ISA]; /* the last LANES of y, 0 where whole ones end */
    int d, r, j;
    for (r = 0; r < rows && n_in >= VQKV__LANES_ISA; r++)
        for (j = 0; j < VQKV__LANES_ISA; j++) {
            int at = n_in - VQKV__LANES_ISA + j;
            rest[r][j] = at < n_in / VQKV__LANES_ISA * VQKV__LANES_ISA
                             ? 0.0f
                             : y[(size_t)r * (size_t)n_in + (size_t)at];
        }
    for (r = 0; r + 4 <= rows; r += 4) {
        const float *x = y + (size_t)r * (size_t)n_in;
        for (d = 0; d + 2 <= n_out; d += 2)
            vqkv__unmap_four_ISA(table, bytes, d, 2, n_in, x, rest + r, o + r * n_out, n_out);
        if (d < n_out)
            vqkv__unmap_four_ISA(table, bytes, d, 1, n_in, x, rest + r, o + r * n_out, n_out);
    }
    for (; r < rows; r++)
        for (d = 0; d < n_out; d++) {
            const size_t row = (size_t)d * (size_t)n_in;
            const float *x = y + (size_t)r * (size_t)n_in;
            vqkv__vf_ISA a = vqkv__set1_ISA(0.0f);
            float sum;
            for (j = 0; j + VQKV__LANES_ISA <= n_in; j += VQKV__LANES_ISA)
                a = vqkv__fma_ISA(vqkv__load_ISA(x + j),
                                  vqkv__entries_ISA(table, row + (size_t)j, bytes), a);
            sum = vqkv__hsum_ISA(a);
            for (; j < n_in; j++)
                sum += x[j] * vqkv__raw_at(table, row + (size_t)j);
            o[r * n_out + d] += sum;
        }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
VQKV__TARGET_ISA static void vqkv__unmap_ISA(vqkv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    int r, j;
    if (table.scale == NULL) {
        vqkv__unmap_entries_ISA(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    for (r = 0; r < rows; r++)
        for (j = 0; j < n_in; j++)
            y[(size_t)r * (size_t)n_in + (size_t)j] *= vqkv__half_at(table.scale, (size_t)j);
    vqkv__unmap_entries_ISA(&table, 1, n_out, n_in, y, rows, o);
}

#undef VQKV__ROWS4
