#include "eval/header_isa.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

vqkvc_isa vqkvc_header_isa_best(void)
{
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"))
        return VQKVC_ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return VQKVC_ISA_AVX2;
#elif defined(__GNUC__) && defined(__aarch64__)
#if defined(__ARM_FEATURE_DOTPROD)
    return VQKVC_ISA_NEON_DOT;
#elif defined(__linux__)
    if ((getauxval(AT_HWCAP) >> 20 & 1) != 0) /* HWCAP_ASIMDDP */
        return VQKVC_ISA_NEON_DOT;
#endif
    return VQKVC_ISA_NEON;
#endif
    return VQKVC_ISA_PORTABLE;
}

const char *vqkvc_header_isa_word(vqkvc_isa isa)
{
    static const char *const words[] = {[VQKVC_ISA_PORTABLE] = "portable",
                                        [VQKVC_ISA_AVX2] = "avx2",
                                        [VQKVC_ISA_AVX512] = "avx512",
                                        [VQKVC_ISA_NEON] = "neon",
                                        [VQKVC_ISA_NEON_DOT] = "neon-dot"};
    return words[isa == VQKVC_ISA_AUTO ? vqkvc_header_isa_best() : isa];
}
