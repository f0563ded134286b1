/* What the byte kernels for NEON with dot products have in common: codes and entries that a table
 * instruction looks up, dot products, sums. Few of them need more than NEON; those have a target.
 */

#if defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_QRDMX)
#define VQKV__TARGET_dot
#elif defined(__clang__)
#define VQKV__TARGET_dot __attribute__((target("dotprod,rdm")))
#elif __GNUC__ >= 8 && !defined(__ARM_FEATURE_SVE) && !defined(__ARM_FEATURE_COMPLEX)
/* Not "+dotprod", which assemblers refuse below ARMv8.2. What the command line may have enabled has
 * to stay, or what it was enabled for would not be inlined. */
#define VQKV__TARGET_dot __attribute__((target("arch=armv8.2-a+crypto+fp16+dotprod")))
#endif

#if VQKV_BLOCK >= 64
#define VQKV__BYTE_OPS_dot &vqkv__byte_ops_neon
#else
#define VQKV__BYTE_OPS_dot NULL
#endif

#if defined(VQKV__TARGET_dot) && VQKV_BLOCK >= 64

#define VQKV__INLINE_neon VQKV__TARGET_dot static inline __attribute__((always_inline))

/* Planes whose scores are summed in 16 bits. */
#define VQKV__CHUNK_neon 64

/* sum += products of bytes, four to a lane. Compilers hide the intrinsics of what the command line
 * does not enable. */
VQKV__INLINE_neon void vqkv__add_bytes_neon(uint32x4_t *sum, uint8x16_t a, uint8x16_t b)
{
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(*sum) : "w"(a), "w"(b));
}

/* sum += the rounded high halves of twice the products of words a and word `lane` of b. */
#define VQKV__ADD_WORDS_neon(sum, a, b, lane)                                                      \
    __asm__("sqrdmlah %0.8h, %1.8h, %2.h[" #lane "]" : "+w"(sum) : "w"(a), "x"(b))

/* Codes of 16 tokens of a plane, low nibbles or (`second`) high ones. */
VQKV__INLINE_neon uint8x16_t vqkv__codes_neon(uint8x16_t x, const int second)
{
    return second ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(15));
}

/* Indices for tables of twice sixteen bytes: of the 32 tokens of a piece of plane a, low nibbles
 * first, eight in each, an index into the first sixteen and one of plane b's into the second. */
VQKV__INLINE_neon void vqkv__pairs_neon(uint8x16_t a, uint8x16_t b, uint8x16_t *index)
{
    const uint8x16_t base = vdupq_n_u8(16);
    const uint8x16_t b0 = vorrq_u8(vqkv__codes_neon(b, 0), base);
    const uint8x16_t b1 = vorrq_u8(vqkv__codes_neon(b, 1), base);
    index[0] = vzip1q_u8(vqkv__codes_neon(a, 0), b0);
    index[1] = vzip2q_u8(vqkv__codes_neon(a, 0), b0);
    index[2] = vzip1q_u8(vqkv__codes_neon(a, 1), b1);
    index[3] = vzip2q_u8(vqkv__codes_neon(a, 1), b1);
}

/* Such a table, and the words that one of sixteen low and sixteen high bytes has for a piece. */
VQKV__INLINE_neon uint8x16x2_t vqkv__two_neon(const signed char *p)
{
    return vld1q_u8_x2((const unsigned char *)p);
}
VQKV__INLINE_neon void vqkv__words_neon(uint8x16_t x, const signed char *p, int16x8_t *word)
{
    const uint8x16x2_t t = vqkv__two_neon(p);
    uint8x16_t index[4];
    int i;
    vqkv__pairs_neon(x, x, index);
#pragma GCC unroll 4
    for (i = 0; i < 4; i++)
        word[i] = vreinterpretq_s16_u8(vqtbl2q_u8(t, index[i]));
}

/* As vqkv__ask(), which may not be inlined here. */
VQKV__INLINE_neon void vqkv__ask_neon(vqkv__asked *a)
{
    VQKV__PREFETCH(a->keys, 3);
    VQKV__PREFETCH(a->values, 2);
    a->keys += a->keys < a->keys_end ? 64 : 0;
    a->values += a->values < a->values_end ? 64 : 0;
}

/* Scores of a piece, s [16] and half a block later = (add ? s : 0) + scale * words. */
VQKV__INLINE_neon void vqkv__flush_neon(const int16x8_t *words, float scale, int add, float *s)
{
    int i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        float *to = s + i / 2 * (VQKV_BLOCK / 2) + i % 2 * 8;
        float32x4_t a = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words[i])));
        float32x4_t b = vcvtq_f32_s32(vmovl_high_s16(words[i]));
        vst1q_f32(to, add ? vfmaq_n_f32(vld1q_f32(to), a, scale) : vmulq_n_f32(a, scale));
        vst1q_f32(to + 4, add ? vfmaq_n_f32(vld1q_f32(to + 4), b, scale) : vmulq_n_f32(b, scale));
    }
}

/* Eight floats times factor, rounded to words. */
static inline int16x8_t vqkv__eight_neon(const float *x, float factor)
{
    int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), factor));
    int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), factor));
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
}

/* Sixteen floats times factor, rounded to bytes. */
static inline void vqkv__sixteen_neon(const float *x, float factor, signed char *out)
{
    vst1q_s8(out, vcombine_s8(vqmovn_s16(vqkv__eight_neon(x, factor)),
                              vqmovn_s16(vqkv__eight_neon(x + 8, factor))));
}

/* The same rounded to words, of which the sixteen low bytes lie before the high ones. */
static inline void vqkv__split_neon(const float *x, float factor, signed char *out)
{
    int8x16_t a = vreinterpretq_s8_s16(vqkv__eight_neon(x, factor));
    int8x16_t b = vreinterpretq_s8_s16(vqkv__eight_neon(x + 8, factor));
    vst1q_s8(out, vuzp1q_s8(a, b));
    vst1q_s8(out + 16, vuzp2q_s8(a, b));
}

/* The largest magnitude of sixteen floats. */
static inline float vqkv__reach_neon(const float *x)
{
    float32x4_t a = vmaxq_f32(vabsq_f32(vld1q_f32(x)), vabsq_f32(vld1q_f32(x + 4)));
    float32x4_t b = vmaxq_f32(vabsq_f32(vld1q_f32(x + 8)), vabsq_f32(vld1q_f32(x + 12)));
    return vmaxvq_f32(vmaxq_f32(a, b));
}

#endif
