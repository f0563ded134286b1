/* Score tables in bytes, NEON with dot products: what vqkv__byte_ops promises (types.h); and the
 * operations of that instruction set.
 *
 * A lookup in two registers takes eight tokens of two times sixteen bytes. For a wide plane these
 * are the low and the high bytes of its entries: what it finds are words. For two narrow planes
 * they are the entries of both: neighbours are added as words. Either way sums are words, and 64
 * tokens take four rows 110 instructions for a wide plane, 65 for a narrow one: 64 or 32 lookups
 * and sums, and the rest for indices, loads and prefetches. In fp32 a plane takes 460.
 */

#if defined(VQKV__TARGET_dot) && VQKV_BLOCK >= 64

/* Narrow planes whose scores are summed in 16 bits. */
#define VQKV__NARROW_CHUNK_neon 256

/* The table of plane p for row r in lut [planes, rows, 16]. */
static inline const float *vqkv__lut_neon(const float *lut, int p, int rows, int r)
{
    return lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
}

/* Wide planes: from the last plane on, as many narrow ones as keep every row's rounding error
 * within the tolerance. top [rows]: the largest entries of narrow planes. */
static int vqkv__wide_planes_neon(const float *lut, int planes, int rows, const float *energy,
                                  float *top)
{
    int p, r, i, wide = 0;
    for (r = 0; r < rows; r++) {
        float32x4_t square = vdupq_n_f32(0.0f);
        float limit, most = 0.0f;
        for (p = 0; p < planes; p++)
            for (i = 0; i < 16; i += 4) {
                const float32x4_t x = vld1q_f32(vqkv__lut_neon(lut, p, rows, r) + i);
                square = vfmaq_f32(square, x, x);
            }
        /* A narrow plane adds (top / 127)^2 / 12 to the mean square of an error. Half the
         * tolerance: rounding of wide planes is seen as well. */
        limit = 0.25f * VQKV__TABLE_ERROR * VQKV__TABLE_ERROR * 127.0f * 127.0f * 12.0f *
                (energy[r] + vaddvq_f32(square) / 16.0f);
        for (p = planes - 1; p >= wide; p--) {
            float m = vqkv__reach_neon(vqkv__lut_neon(lut, p, rows, r));
            most = m > most ? m : most;
            if (most * most * (float)(planes - p) > limit)
                wide = p + 1;
        }
    }
    for (r = 0; r < rows; r++)
        for (top[r] = 0.0f, p = wide; p < planes; p++) {
            float m = vqkv__reach_neon(vqkv__lut_neon(lut, p, rows, r));
            top[r] = m > top[r] ? m : top[r];
        }
    return wide;
}

/* What an entry of row r counts in wide planes. */
static float vqkv__wide_scale_neon(const float *lut, int wide, int rows, int r)
{
    float sum = 0.0f, most = 0.0f;
    int p;
    for (p = 0; p < wide; p++) {
        sum = (p % VQKV__CHUNK_neon == 0 ? 0.0f : sum) +
              vqkv__reach_neon(vqkv__lut_neon(lut, p, rows, r));
        most = sum > most ? sum : most;
    }
    return most / (32767.0f - VQKV__CHUNK_neon); /* rounding may add half a unit a plane */
}

static void vqkv__pack_tables_neon(const float *lut, int planes, int rows, const float *energy,
                                   vqkv__packed *head, signed char *out)
{
    const signed char *start = out;
    float top[VQKV__MAX_ROWS], factor[2 * VQKV__MAX_ROWS];
    int p, r, i;
    head->wide = vqkv__wide_planes_neon(lut, planes, rows, energy, top);
    for (r = 0; r < rows; r++) {
        head->scale[2 * r] = vqkv__wide_scale_neon(lut, head->wide, rows, r);
        head->scale[2 * r + 1] = top[r] / 127.0f;
        for (i = 2 * r; i < 2 * r + 2; i++)
            factor[i] = head->scale[i] > 0.0f ? 1.0f / head->scale[i] : 0.0f;
    }
    for (p = 0; p < head->wide; p++)
        for (r = 0; r < rows; r++, out += 32)
            vqkv__split_neon(vqkv__lut_neon(lut, p, rows, r), factor[2 * r], out);
    for (; p < planes; p += 2)
        for (r = 0; r < rows; r++, out += 32) {
            vqkv__sixteen_neon(vqkv__lut_neon(lut, p, rows, r), factor[2 * r + 1], out);
            if (p + 1 < planes)
                vqkv__sixteen_neon(vqkv__lut_neon(lut, p + 1, rows, r), factor[2 * r + 1],
                                   out + 16);
            else
                memset(out + 16, 0, 16);
        }
    head->bytes = (int)((out - start + 63) / 64 * 64);
}

/* Scores of 32 tokens, a piece of sixteen bytes of each plane, for n rows from row r on: planes
 * from .. to - 1, all of them wide, or none, of which a table has two; tables: those of plane from.
 * n and `wide` are constants. */
VQKV__INLINE_neon void vqkv__score_piece_neon(const unsigned char *codes, int from, int to,
                                              const vqkv__packed *head, const signed char *tables,
                                              int rows, int r, const int n, const int wide, int add,
                                              vqkv__asked *ahead, float *s)
{
    int16x8_t sum[4][4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = vdupq_n_s16(0);
    tables += 32 * r;
    for (p = from; p < to; p += wide ? 1 : 2, tables += 32 * rows) {
        const unsigned char *plane = codes + (size_t)p * (VQKV_BLOCK / 2);
        const uint8x16_t x = vld1q_u8(plane);
        uint8x16_t index[4];
        vqkv__pairs_neon(x, wide || p + 1 == to ? x : vld1q_u8(plane + VQKV_BLOCK / 2), index);
        if ((p - from) % 4 == 0)
            vqkv__ask_neon(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const uint8x16x2_t t = vqkv__two_neon(tables + 32 * k);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                const int8x16_t e = vreinterpretq_s8_u8(vqtbl2q_u8(t, index[i]));
                sum[k][i] =
                    wide ? vaddq_s16(sum[k][i], vreinterpretq_s16_s8(e)) : vpadalq_s8(sum[k][i], e);
            }
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        vqkv__flush_neon(sum[k], head->scale[2 * (r + k) + !wide], add, s + (r + k) * VQKV_BLOCK);
}

/* All rows of one block, by planes that are all wide, or not; `wide` is a constant. */
VQKV__INLINE_neon void vqkv__score_planes_neon(const unsigned char *codes, int from, int to,
                                               const vqkv__packed *head, const signed char *tables,
                                               int rows, const int wide, int add,
                                               vqkv__asked *ahead, float *s)
{
    int t, r;
#define VQKV__X(n)                                                                                 \
    vqkv__score_piece_neon(codes + t, from, to, head, tables, rows, r, n, wide, add, ahead, s + t)
    for (t = 0; t < VQKV_BLOCK / 2; t += 16) {
        VQKV__BY_ROWS(r, rows, VQKV__X);
    }
#undef VQKV__X
}

VQKV__TARGET_dot static void vqkv__score_bytes_neon(const unsigned char *const *codes,
                                                    size_t offset, int blocks, int planes,
                                                    const vqkv__packed *head,
                                                    const signed char *tables, int rows, int add,
                                                    vqkv__asked *ahead, float *s)
{
    vqkv__asked asked = *ahead;
    int b, p, end, more;
    for (b = 0; b < blocks; b++, s += rows * VQKV_BLOCK) {
        const signed char *t = tables;
        more = add;
        for (p = 0; p < head->wide; p = end, more = 1, t += 32 * rows * VQKV__CHUNK_neon) {
            end = head->wide - p < VQKV__CHUNK_neon ? head->wide : p + VQKV__CHUNK_neon;
            vqkv__score_planes_neon(codes[b] + offset, p, end, head, t, rows, 1, more, &asked, s);
        }
        t = tables + 32 * rows * head->wide;
        for (; p < planes; p = end, more = 1, t += 32 * rows * (VQKV__NARROW_CHUNK_neon / 2)) {
            end = planes - p < VQKV__NARROW_CHUNK_neon ? planes : p + VQKV__NARROW_CHUNK_neon;
            vqkv__score_planes_neon(codes[b] + offset, p, end, head, t, rows, 0, more, &asked, s);
        }
    }
    *ahead = asked;
}

/* No batches: where every block has a frame of its own, what needs score tables is scored in fp32.
 */
#define VQKV__X(name) vqkv__##name##_neon,
static const vqkv__byte_ops vqkv__byte_ops_neon = {
    VQKV__ALL_BYTE_KERNELS(VQKV__X, VQKV__NO_KERNEL, VQKV__NO_KERNEL, VQKV__NO_KERNEL)
        VQKV__WEIGHT_REST_neon,
    0.05f};
#undef VQKV__X

#endif

#ifdef VQKV__TARGET_dot
#define VQKV__X(name) vqkv__##name##_neon,
static const vqkv__ops vqkv__ops_neon_dot = {VQKV__LANES_neon,
                                             VQKV__KERNELS(VQKV__X) VQKV__BYTE_OPS_dot,
                                             &vqkv__dense_neon, &vqkv__code_neon};
#undef VQKV__X
#endif
