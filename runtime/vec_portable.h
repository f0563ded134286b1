/* Vector vocabulary, portable C: one lane. See kernels.h for what each word means. */
#define VQKV__LANES_portable    1
#define VQKV__GATHERED_portable 1
#define VQKV__BYTE_OPS_portable NULL
#define VQKV__TARGET_portable
/* Outputs that a pass of dense.h holds sums of. */
#define VQKV__N_OUTS_portable  4
#define VQKV__OUTS_portable(X) X(0) X(1) X(2) X(3)
#define VQKV__REST_portable(X, of)
typedef float vqkv__vf_portable;
typedef const float *vqkv__vt_portable;
typedef unsigned vqkv__vi_portable;

static inline float vqkv__set1_portable(float x)
{
    return x;
}
static inline float vqkv__load_portable(const float *p)
{
    return *p;
}
static inline void vqkv__store_portable(float *p, float x)
{
    *p = x;
}
static inline float vqkv__loadh_portable(const unsigned char *p)
{
    return vqkv__half_at(p, 0);
}
static inline float vqkv__loadu8_portable(const unsigned char *p)
{
    return (float)*p;
}
static inline float vqkv__loads8_portable(const unsigned char *p)
{
    return (float)(signed char)*p;
}
static inline float vqkv__add_portable(float a, float b)
{
    return a + b;
}
static inline float vqkv__sub_portable(float a, float b)
{
    return a - b;
}
static inline float vqkv__mul_portable(float a, float b)
{
    return a * b;
}
static inline float vqkv__fma_portable(float a, float b, float c)
{
    return a * b + c;
}
static inline float vqkv__max_portable(float a, float b)
{
    return a > b ? a : b;
}
static inline float vqkv__round_portable(float x)
{
    return rintf(x);
}
static inline float vqkv__scale2_portable(float x, float n)
{
    /* more than 127 only after a NaN, which must not make the conversion undefined */
    return x * vqkv__from_bits((uint32_t)((int)(n < 127.0f ? n : 127.0f) + 127) << 23);
}
static inline float vqkv__hsum_portable(float x)
{
    return x;
}
static inline void vqkv__hsum4_portable(float a, float b, float c, float d, float *sum)
{
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}
static inline float vqkv__hmax_portable(float x)
{
    return x;
}
static inline const float *vqkv__table_portable(const float *p)
{
    return p;
}
static inline unsigned vqkv__nibbles_portable(const unsigned char *plane, int t)
{
    return (unsigned)(plane[t % (VQKV_BLOCK / 2)] >> (t / (VQKV_BLOCK / 2) * 4)) & 15u;
}
static inline float vqkv__lookup_portable(const float *table, unsigned index)
{
    return table[index];
}
static inline void vqkv__gather_portable(const unsigned char *table, const unsigned char *codes,
                                         float *x)
{
    *x = vqkv__half_at(table, *codes);
}
static inline void vqkv__storeu8_portable(unsigned char *p, float x)
{
    *p = (unsigned char)x;
}
static inline void vqkv__storeh_portable(unsigned char *p, float x)
{
    uint16_t half = vqkv__to_half(x);
    memcpy(p, &half, 2);
}
static inline void vqkv__keep_less_portable(float x, float i, float *least, float *index)
{
    *index = x < *least ? i : *index;
    *least = x < *least ? x : *least;
}
static inline void vqkv__transpose_portable(const unsigned char *src, size_t src_step,
                                            unsigned char *dst, size_t dst_step)
{
    size_t i, j;
    for (i = 0; i < 8; i++)
        for (j = 0; j < 8; j++)
            memcpy(dst + j * dst_step + 2 * i, src + i * src_step + 2 * j, 2);
}
