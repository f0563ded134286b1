/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
VQKV__TARGET_ISA static inline vqkv__vf_ISA vqkv__entries_ISA(const vqkv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? vqkv__loads8_ISA(m->values + i) : vqkv__loadh_ISA(m->values + 2 * i);
}

/* sum [n]: the sums over the lanes of x [n], n a constant, 4 at most; what stands behind is
 * anything.
 */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__lane_sums_ISA(const vqkv__vf_ISA *x, const int n,
                                                       float *sum)
{
    vqkv__hsum4_ISA(x[0], x[n > 1 ? 1 : 0], x[n > 2 ? 2 : 0], x[n > 3 ? 3 : 0], sum);
}

/* Latents j .. j + m LANES - 1 of n queries x [n, ldx]: y [n, n_out]. n and m, 1 or 2: constants.
 */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__map_some_ISA(const vqkv__matrix *table, const int bytes,
                                                      int n_in, int n_out, int j, const int m,
                                                      const float *x, int ldx, const int n,
                                                      float *y)
{
    const size_t next = m > 1 ? VQKV__LANES_ISA : 0;
    vqkv__vf_ISA a[4], b[4], scale = vqkv__set1_ISA(1.0f), more = scale;
    int d, k;
    if (bytes) {
        scale = vqkv__loadh_ISA(table->scale + 2 * (size_t)j);
        more = vqkv__loadh_ISA(table->scale + 2 * ((size_t)j + next));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = b[k] = vqkv__set1_ISA(0.0f);
    for (d = 0; d < n_in; d++) {
        const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
        vqkv__vf_ISA u = vqkv__entries_ISA(table, at, bytes);
        vqkv__vf_ISA v = m > 1 ? vqkv__entries_ISA(table, at + next, bytes) : u;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            vqkv__vf_ISA q = vqkv__set1_ISA(x[k * ldx + d]);
            a[k] = vqkv__fma_ISA(q, u, a[k]);
            if (m > 1)
                b[k] = vqkv__fma_ISA(q, v, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = y + (size_t)k * (size_t)n_out + j;
        vqkv__store_ISA(to, vqkv__mul_ISA(scale, a[k]));
        if (m > 1)
            vqkv__store_ISA(to + next, vqkv__mul_ISA(more, b[k]));
    }
}

VQKV__TARGET_ISA VQKV__INLINE void vqkv__map_entries_ISA(const vqkv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
#define VQKV__X(n)                                                                                 \
    vqkv__map_some_ISA(table, bytes, n_in, n_out, j, 2, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j + 2 * VQKV__LANES_ISA <= n_out; j += 2 * VQKV__LANES_ISA)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
#define VQKV__X(n)                                                                                 \
    vqkv__map_some_ISA(table, bytes, n_in, n_out, j, 1, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j < n_out && n_out >= VQKV__LANES_ISA; j += VQKV__LANES_ISA) {
        if (j + VQKV__LANES_ISA > n_out) /* the last LANES, some of them once more */
            j = n_out - VQKV__LANES_ISA;
        VQKV__BY_ROWS(r, rows, VQKV__X);
    }
#undef VQKV__X
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

/* Outputs that a pass of unmap holds sums of for four rows: as many as 32 registers hold, or 16. */
#define VQKV__UNMAPPED_ISA (VQKV__LANES_ISA >= 16 ? 4 : 2)

/* Outputs d .. d + m - 1 of n rows x [n, n_in], whose last LANES are `rest`, 0 where whole ones
 * end: o [n, n_out]. n_in: LANES at least. n, 4 at most, and m, 1, 2 or 4: constants; outputs share
 * what is loaded of x. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__unmap_some_ISA(const vqkv__matrix *table, const int bytes,
                                                        int d, const int m, int n_in,
                                                        const float *x,
                                                        float (*rest)[VQKV__LANES_ISA], const int n,
                                                        float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in;
    const int whole = n_in / VQKV__LANES_ISA * VQKV__LANES_ISA;
    vqkv__vf_ISA a[4][4]; /* [row][output] */
    float sum[4];
    int i, j, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            a[k][i] = vqkv__set1_ISA(0.0f);
    for (j = 0; j < n_in; j += VQKV__LANES_ISA) {
        /* the last LANES, some of them once more, where no whole ones are left */
        const int last = j == whole, at = last ? n_in - VQKV__LANES_ISA : j;
        vqkv__vf_ISA u[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            u[i] = vqkv__entries_ISA(table, row + (size_t)(i * n_in + at), bytes);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            vqkv__vf_ISA y = vqkv__load_ISA(last ? rest[k] : x + k * n_in + j);
#pragma GCC unroll 4
            for (i = 0; i < m; i++)
                a[k][i] = vqkv__fma_ISA(y, u[i], a[k][i]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = o + k * n_out + d;
        vqkv__hsum4_ISA(a[k][0], a[k][1], a[k][2], a[k][3], sum);
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            to[i] += sum[i];
    }
}

/* All outputs of n rows. n: a constant. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__unmap_rows_ISA(const vqkv__matrix *table, const int bytes,
                                                        int n_out, int n_in, const float *x,
                                                        float (*rest)[VQKV__LANES_ISA], const int n,
                                                        float *o)
{
    int d = 0;
    for (; d + VQKV__UNMAPPED_ISA <= n_out; d += VQKV__UNMAPPED_ISA)
        vqkv__unmap_some_ISA(table, bytes, d, VQKV__UNMAPPED_ISA, n_in, x, rest, n, o, n_out);
    for (; d < n_out; d++)
        vqkv__unmap_some_ISA(table, bytes, d, 1, n_in, x, rest, n, o, n_out);
}

VQKV__TARGET_ISA VQKV__INLINE void vqkv__unmap_entries_ISA(const vqkv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[VQKV__MAX_ROWS][VQKV__LANES_ISA]; /* the last LANES of y, 0 where whole ones end */
    const int whole = n_in / VQKV__LANES_ISA * VQKV__LANES_ISA;
    int r, j;
    if (n_in < VQKV__LANES_ISA) {
        vqkv__unmap_short(table, n_out, n_in, y, rows, o);
        return;
    }
    memset(rest, 0, sizeof rest);
    for (r = 0; r < rows; r++) {
        const float *end = y + (size_t)(r + 1) * (size_t)n_in;
        for (j = whole - n_in; j < 0; j++)
            rest[r][VQKV__LANES_ISA + j] = end[j];
    }
#define VQKV__X(n)                                                                                 \
    vqkv__unmap_rows_ISA(table, bytes, n_out, n_in, y + (size_t)r * (size_t)n_in, rest + r, n,     \
                         o + r * n_out)
    VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
}

/* y [rows, n] times scale [n], binary16. */
VQKV__TARGET_ISA static inline void vqkv__scale_latents_ISA(const unsigned char *scale, int n,
                                                            int rows, float *y)
{
    int r, j = 0;
    for (; j + VQKV__LANES_ISA <= n; j += VQKV__LANES_ISA) {
        const vqkv__vf_ISA f = vqkv__loadh_ISA(scale + 2 * j);
        for (r = 0; r < rows; r++) {
            float *x = y + (size_t)r * (size_t)n + j;
            vqkv__store_ISA(x, vqkv__mul_ISA(vqkv__load_ISA(x), f));
        }
    }
    for (; j < n; j++) {
        const float f = vqkv__half_at(scale, (size_t)j);
        for (r = 0; r < rows; r++)
            y[(size_t)r * (size_t)n + (size_t)j] *= f;
    }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
VQKV__TARGET_ISA static void vqkv__unmap_ISA(vqkv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    if (table.scale == NULL) {
        vqkv__unmap_entries_ISA(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    vqkv__scale_latents_ISA(table.scale, n_in, rows, y);
    vqkv__unmap_entries_ISA(&table, 1, n_out, n_in, y, rows, o);
}
