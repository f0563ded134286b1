/* Vector vocabulary, NEON (AArch64): four lanes. See kernels.h. */
#define VQKV__GATHERED_neon 4
#define VQKV__LANES_neon    4
#define VQKV__BYTE_OPS_neon NULL
#define VQKV__TARGET_neon
/* Outputs that a pass of dense.h holds sums of. */
#define VQKV__N_OUTS_neon      8
#define VQKV__OUTS_neon(X)     X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define VQKV__REST_neon(X, of) X(4, of) X(5, of) X(6, of) X(7, of)
typedef float32x4_t vqkv__vf_neon;
typedef uint32x4_t vqkv__vi_neon;
typedef uint8x16x4_t vqkv__vt_neon; /* sixteen floats as the bytes of four registers */

static inline float32x4_t vqkv__set1_neon(float x)
{
    return vdupq_n_f32(x);
}
static inline float32x4_t vqkv__load_neon(const float *p)
{
    return vld1q_f32(p);
}
static inline void vqkv__store_neon(float *p, float32x4_t x)
{
    vst1q_f32(p, x);
}
static inline float32x4_t vqkv__loadh_neon(const unsigned char *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
static inline float32x4_t vqkv__loadu8_neon(const unsigned char *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}
static inline float32x4_t vqkv__loads8_neon(const unsigned char *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
static inline float32x4_t vqkv__add_neon(float32x4_t a, float32x4_t b)
{
    return vaddq_f32(a, b);
}
static inline float32x4_t vqkv__sub_neon(float32x4_t a, float32x4_t b)
{
    return vsubq_f32(a, b);
}
static inline float32x4_t vqkv__mul_neon(float32x4_t a, float32x4_t b)
{
    return vmulq_f32(a, b);
}
static inline float32x4_t vqkv__fma_neon(float32x4_t a, float32x4_t b, float32x4_t c)
{
    return vfmaq_f32(c, a, b);
}
static inline float32x4_t vqkv__max_neon(float32x4_t a, float32x4_t b)
{
    return vmaxq_f32(a, b);
}
static inline float32x4_t vqkv__round_neon(float32x4_t x)
{
    return vrndnq_f32(x);
}
static inline float32x4_t vqkv__scale2_neon(float32x4_t x, float32x4_t n)
{
    return vmulq_f32(
        x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
static inline float vqkv__hsum_neon(float32x4_t x)
{
    return vaddvq_f32(x);
}
static inline void vqkv__hsum4_neon(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d,
                                    float *sum)
{
    vst1q_f32(sum, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
static inline float vqkv__hmax_neon(float32x4_t x)
{
    return vmaxvq_f32(x);
}
static inline uint8x16x4_t vqkv__table_neon(const float *p)
{
    uint8x16x4_t t;
    t.val[0] = vreinterpretq_u8_f32(vld1q_f32(p));
    t.val[1] = vreinterpretq_u8_f32(vld1q_f32(p + 4));
    t.val[2] = vreinterpretq_u8_f32(vld1q_f32(p + 8));
    t.val[3] = vreinterpretq_u8_f32(vld1q_f32(p + 12));
    return t;
}
/* Byte positions 4 c .. 4 c + 3 of code c's float, for a byte table lookup. */
static inline uint32x4_t vqkv__nibbles_neon(const unsigned char *plane, int t)
{
    uint32_t four;
    uint32x4_t code;
    memcpy(&four, plane + t % (VQKV_BLOCK / 2), 4);
    if (t >= VQKV_BLOCK / 2)
        four >>= 4;
    four &= 0x0f0f0f0fu;
    code = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    return vmlaq_n_u32(vdupq_n_u32(0x03020100u), code, 0x04040404u);
}
static inline float32x4_t vqkv__lookup_neon(uint8x16x4_t table, uint32x4_t index)
{
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(index)));
}
static inline void vqkv__gather_neon(const unsigned char *table, const unsigned char *codes,
                                     float *x)
{
    uint16_t h[4];
    int i;
    for (i = 0; i < 4; i++)
        memcpy(&h[i], table + 2 * (size_t)codes[i], 2);
    vst1q_f32(x, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h))));
}
static inline void vqkv__storeu8_neon(unsigned char *p, float32x4_t x)
{
    uint16x4_t words = vmovn_u32(vcvtq_u32_f32(x));
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &four, 4);
}
static inline void vqkv__storeh_neon(unsigned char *p, float32x4_t x)
{
    x = vmaxnmq_f32(vminnmq_f32(x, vdupq_n_f32(65504.0f)), vdupq_n_f32(-65504.0f));
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
static inline void vqkv__keep_less_neon(float32x4_t x, float i, float32x4_t *least,
                                        float32x4_t *index)
{
    *index = vbslq_f32(vcltq_f32(x, *least), vdupq_n_f32(i), *index);
    *least = vminq_f32(x, *least);
}
static inline void vqkv__transpose_neon(const unsigned char *src, size_t src_step,
                                        unsigned char *dst, size_t dst_step)
{
    uint32x4_t row[8];
    int i, j;
    for (i = 0; i < 8; i += 2, src += 2 * src_step) {
        uint16x8_t a = vreinterpretq_u16_u8(vld1q_u8(src));
        uint16x8_t b = vreinterpretq_u16_u8(vld1q_u8(src + src_step));
        row[i] = vreinterpretq_u32_u16(vzip1q_u16(a, b));
        row[i + 1] = vreinterpretq_u32_u16(vzip2q_u16(a, b));
    }
    for (i = 0; i < 2; i++) /* columns 4 i .. 4 i + 3: rows 0 .. 3, then 4 .. 7 */
        for (j = 0; j < 2; j++, dst += 2 * dst_step) {
            uint32x4_t low =
                j == 0 ? vzip1q_u32(row[i], row[i + 2]) : vzip2q_u32(row[i], row[i + 2]);
            uint32x4_t high =
                j == 0 ? vzip1q_u32(row[i + 4], row[i + 6]) : vzip2q_u32(row[i + 4], row[i + 6]);
            uint64x2_t a = vreinterpretq_u64_u32(low), b = vreinterpretq_u64_u32(high);
            vst1q_u8(dst, vreinterpretq_u8_u64(vzip1q_u64(a, b)));
            vst1q_u8(dst + dst_step, vreinterpretq_u8_u64(vzip2q_u64(a, b)));
        }
}
