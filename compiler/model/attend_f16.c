#include "model/attend_f16.h"

#include "model/attend_f16_tile.h"
#include "model/attend_f16_x86.h"

/* ---- portable C ---- */

static void score_portable(const uint16_t *k, int n, int d, const float *q0, const float *q1,
                           float *s0, float *s1)
{
    for (int t = 0; t < n; t++) {
        float a = 0, b = 0;
        for (int i = 0; i < d; i++) {
            float x = vqkvc_f16_to_f32(k[(size_t)t * d + i]);
            a += q0[i] * x;
            b += q1[i] * x;
        }
        s0[t] = a;
        s1[t] = b;
    }
}

static void sum_portable(const uint16_t *v, int n, int d, const float *p0, const float *p1,
                         float *o0, float *o1)
{
    for (int t = 0; t < n; t++)
        for (int i = 0; i < d; i++) {
            float x = vqkvc_f16_to_f32(v[(size_t)t * d + i]);
            o0[i] += p0[t] * x;
            o1[i] += p1[t] * x;
        }
}

static void attend_portable(const uint16_t *k, const uint16_t *v, int n_tokens, int group, int d,
                            const float *q, float *out, float scale, float *scratch)
{
    attend_with(score_portable, sum_portable, NULL, NULL, k, v, n_tokens, group, d, q, out, scale,
                scratch);
}

/* ---- dispatch ---- */

size_t vqkvc_attend_f16_scratch(int group, int head_dim)
{
    return (size_t)(group + 1) * head_dim + (size_t)group * (TILE + 2);
}

void vqkvc_attend_f16(const uint16_t *k, const uint16_t *v, int n_tokens, int group, int head_dim,
                      const float *q, float *out, float scale, vqkvc_isa isa, float *scratch)
{
#ifdef HAVE_X86
    int any = isa == VQKVC_ISA_AUTO || isa == VQKVC_ISA_AVX512;
    if (any && head_dim % 16 == 0 && vqkvc_has_avx512()) {
        attend_avx512(k, v, n_tokens, group, head_dim, q, out, scale, scratch);
        return;
    }
    if ((any || isa == VQKVC_ISA_AVX2) && head_dim % 8 == 0 && vqkvc_has_avx2()) {
        attend_avx2(k, v, n_tokens, group, head_dim, q, out, scale, scratch);
        return;
    }
#endif
    attend_portable(k, v, n_tokens, group, head_dim, q, out, scale, scratch);
}

const char *vqkvc_attend_f16_isa(void)
{
#ifdef HAVE_X86
    return vqkvc_has_avx512() ? "avx512" : vqkvc_has_avx2() ? "avx2" : "portable";
#else
    return "portable";
#endif
}
