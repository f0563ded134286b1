/* Sums of values in bytes, NEON with dot products: what vqkv__byte_ops promises (types.h).
 *
 * A plane's codes become 8-bit codewords by a table lookup, and a dot product adds codeword times
 * weight over four tokens a lane, both unsigned: codewords are 128 more than they are, for which
 * sums begin lower. 64 tokens of a channel take four rows 28 instructions where codes have four
 * channels or more, 35 where they have one: 16 dot products, 4 lookups, and the rest, which is
 * loads and the cutting of codes, shared by four channels or four rows. In fp32 they take 450.
 */

#if defined(VQKV__TARGET_dot) && VQKV_BLOCK >= 64

/* The largest weight, which a threshold is added to; and what is left of one counts so much less.
 */
#define VQKV__MOST_WEIGHT_neon 254.0f
#define VQKV__WEIGHT_REST_neon 255.0f

/* Sixteen numbers below 256 to bytes, rounded down. */
static inline uint8x16_t vqkv__floor_neon(const float32x4_t *x)
{
    uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(vcvtq_u32_f32(x[0])),
                                vreinterpretq_u16_u32(vcvtq_u32_f32(x[1])));
    uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(vcvtq_u32_f32(x[2])),
                                 vreinterpretq_u16_u32(vcvtq_u32_f32(x[3])));
    return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

/* Sixteen weights p * gain * factor; rest, if not NULL, gets what is left of them. */
static inline void vqkv__pack_sixteen_neon(const float *p, const float *gain, float factor,
                                           unsigned char *out, unsigned char *rest)
{
    /* Thresholds spread evenly over (0, 1): small weights are not all rounded away, however large
     * the row's largest is; on average over positions, rounding keeps the sum. */
    static const float dither[16] = {0.03125f, 0.53125f, 0.28125f, 0.78125f, 0.15625f, 0.65625f,
                                     0.40625f, 0.90625f, 0.09375f, 0.59375f, 0.34375f, 0.84375f,
                                     0.21875f, 0.71875f, 0.46875f, 0.96875f};
    float32x4_t x[4];
    int i;
    for (i = 0; i < 4; i++) {
        float32x4_t w = vmulq_f32(vld1q_f32(p + 4 * i), vld1q_f32(gain + 4 * i));
        x[i] = rest == NULL ? vfmaq_n_f32(vld1q_f32(dither + 4 * i), w, factor)
                            : vmulq_n_f32(w, factor);
    }
    vst1q_u8(out, vqkv__floor_neon(x));
    if (rest == NULL)
        return;
    for (i = 0; i < 4; i++) /* to the nearest: half a step more, rounded down */
        x[i] = vfmaq_n_f32(vdupq_n_f32(0.5f), vsubq_f32(x[i], vrndmq_f32(x[i])),
                           VQKV__WEIGHT_REST_neon);
    vst1q_u8(rest, vqkv__floor_neon(x));
}

static void vqkv__pack_weights_neon(const float *p, const float *gain, int blocks, int rows,
                                    unsigned char *out, unsigned char *rest, float *scale)
{
    const size_t step = (size_t)rows * VQKV_BLOCK;
    int b, r, t;
    for (r = 0; r < rows; r++, p += VQKV_BLOCK, out += VQKV_BLOCK) {
        float32x4_t high = vdupq_n_f32(0.0f);
        float top, factor;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 4)
                high = vmaxq_f32(high, vmulq_f32(vld1q_f32(p + (size_t)b * step + t),
                                                 vld1q_f32(gain + b * VQKV_BLOCK + t)));
        top = vmaxvq_f32(high);
        scale[r] = top / VQKV__MOST_WEIGHT_neon;
        factor = top > 0.0f ? VQKV__MOST_WEIGHT_neon / top : 0.0f;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < VQKV_BLOCK; t += 16) {
                const size_t at = (size_t)b * step + (size_t)t;
                vqkv__pack_sixteen_neon(p + at, gain + b * VQKV_BLOCK + t, factor, out + at,
                                        rest == NULL ? NULL : rest + at);
            }
        rest += rest != NULL ? VQKV_BLOCK : 0;
    }
}

static void vqkv__pack_books_neon(const unsigned char *book, int n, signed char *out, float *scale)
{
    int i, k;
    for (i = 0; i < n; i++, book += 32) {
        float x[16], top;
        for (k = 0; k < 16; k += 4)
            vst1q_f32(x + k, vqkv__loadh_neon(book + 2 * k));
        top = vqkv__reach_neon(x);
        scale[i] = top / 127.0f;
        vqkv__sixteen_neon(x, top > 0.0f ? 127.0f / top : 0.0f, out + i * 16);
    }
}

/* Four channels of a run: the first token of their planes in a block, and their latents. */
typedef struct vqkv__four {
    size_t plane[4], latent[4];
} vqkv__four;

/* Channels c .. c + 3 of the run's n, counted plane by plane; behind the last it stands again. By a
 * pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void vqkv__four_of(const vqkv__run *run, size_t offset, int c, int n,
                                 vqkv__four *four)
{
    int i;
    for (i = 0; i < 4; i++) {
        const int channel = c + i < n ? c + i : n - 1, plane = channel / run->width;
        four->plane[i] = offset + (size_t)plane * (VQKV_BLOCK / 2);
        four->latent[i] = (size_t)(plane / run->stages * run->width + channel - plane * run->width);
    }
}

/* zero [4]: what sums of a row's weights times codewords begin with. */
VQKV__TARGET_dot static void vqkv__zero_neon(const unsigned char *weights, int blocks, size_t step,
                                             uint32_t *zero)
{
    uint32x4_t sum = vdupq_n_u32(0);
    int b, t;
    for (b = 0; b < blocks; b++, weights += step)
        for (t = 0; t < VQKV_BLOCK; t += 16)
            vqkv__add_bytes_neon(&sum, vld1q_u8(weights + t), vdupq_n_u8(128));
    vst1q_u32(zero, vsubq_u32(vdupq_n_u32(0), sum));
}

/* Four channels, `each` of them of one plane, `real` of them there, for n rows from row r on; each
 * and n are constants. */
VQKV__INLINE_neon void vqkv__sum_four_neon(const unsigned char *const *codes, int blocks,
                                           const vqkv__four *four, const int each, int real,
                                           const signed char *book, const float *book_scale,
                                           const unsigned char *weights, const uint32_t *zero,
                                           const float *scale, int rows, int r, const int n,
                                           float *sums, size_t stride)
{
    const unsigned char *w = weights + (size_t)r * VQKV_BLOCK;
    uint32x4_t sum[4][4];
    uint8x16_t table[4];
    int b, i, k, t;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        table[i] = veorq_u8(vreinterpretq_u8_s8(vld1q_s8(book + 16 * (i < real ? i : 0))),
                            vdupq_n_u8(128));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = vld1q_u32(zero + 4 * (r + k));
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK / 2; t += 16) {
            uint8x16_t x = vld1q_u8(codes[b] + four->plane[0] + t), low[4], high[4];
            if (t % 32 == 0) /* for the next ones */
                VQKV__PREFETCH(codes[b] + four->plane[3] + t + VQKV_BLOCK, 3);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                if (i > 0 && i % each == 0)
                    x = vld1q_u8(codes[b] + four->plane[i] + t);
                low[i] = vqtbl1q_u8(table[i], vqkv__codes_neon(x, 0));
                high[i] = vqtbl1q_u8(table[i], vqkv__codes_neon(x, 1));
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                const uint8x16_t p = vld1q_u8(w + k * VQKV_BLOCK + t);
                const uint8x16_t q = vld1q_u8(w + k * VQKV_BLOCK + t + VQKV_BLOCK / 2);
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_neon(&sum[k][i], p, low[i]);
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    vqkv__add_bytes_neon(&sum[k][i], q, high[i]);
            }
        }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) {
            const float x = (float)(int32_t)vaddvq_u32(sum[k][i]);
            if (i < real)
                sums[(size_t)(r + k) * stride + four->latent[i]] +=
                    x * (scale[r + k] * book_scale[i]);
        }
}

/* All channels of a run, `each` of every four of one plane. */
VQKV__INLINE_neon void vqkv__sum_run_neon(const unsigned char *const *codes, size_t offset,
                                          int blocks, const vqkv__run *run, const int each,
                                          const signed char *book, const float *book_scale,
                                          const unsigned char *weights, const uint32_t *zero,
                                          const float *scale, int rows, float *sums, size_t stride)
{
    const int n = run->planes * run->width;
    int c, r;
    for (c = 0; c < n; c += 4, book += 64, book_scale += 4) {
        vqkv__four four;
        const int real = n - c < 4 ? n - c : 4;
        vqkv__four_of(run, offset, c, n, &four);
#define VQKV__X(n_rows)                                                                            \
    vqkv__sum_four_neon(codes, blocks, &four, each, real, book, book_scale, weights, zero, scale,  \
                        rows, r, n_rows, sums, stride)
        VQKV__BY_ROWS(r, rows, VQKV__X);
#undef VQKV__X
    }
}

VQKV__TARGET_dot static void vqkv__sum_bytes_neon(const unsigned char *const *codes, size_t offset,
                                                  int blocks, const vqkv__run *run,
                                                  const signed char *book, const float *book_scale,
                                                  const unsigned char *weights, const float *scale,
                                                  int rows, vqkv__asked *ahead, float *sums,
                                                  size_t stride)
{
    uint32_t zero[4 * VQKV__MAX_ROWS];
    int r;
    (void)ahead; /* little is to be gained where sums take so long */
    for (r = 0; r < rows; r++)
        vqkv__zero_neon(weights + r * VQKV_BLOCK, blocks, (size_t)rows * VQKV_BLOCK, zero + 4 * r);
#define VQKV__X(each)                                                                              \
    vqkv__sum_run_neon(codes, offset, blocks, run, each, book, book_scale, weights, zero, scale,   \
                       rows, sums, stride)
    if (run->width % 4 == 0)
        VQKV__X(4);
    else if (run->width == 2)
        VQKV__X(2);
    else
        VQKV__X(1);
#undef VQKV__X
}

#endif
