/* Which instruction set to use. Nothing is cached: a cache asks once, when it is made. */

#ifdef VQKV__ARM
static int vqkv__has_dot(void)
{
#ifndef VQKV__TARGET_dot
    return 0;
#elif defined(__ARM_FEATURE_DOTPROD)
    return 1; /* this program runs nowhere else */
#elif defined(__linux__)
    return (int)(getauxval(AT_HWCAP) >> 20 & 1); /* HWCAP_ASIMDDP, which not every libc names */
#else
    return 0;
#endif
}
#endif

static int vqkv__has(vqkv_isa isa)
{
    switch (isa) {
    case VQKV_ISA_AUTO:
    case VQKV_ISA_PORTABLE:
        return 1;
#ifdef VQKV__X86
    case VQKV_ISA_AVX2:
        /* Every processor with AVX2 and FMA has F16C, which clang's builtin does not know. */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case VQKV_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef VQKV__ARM
    case VQKV_ISA_NEON:
        return 1; /* part of AArch64 */
    case VQKV_ISA_NEON_DOT:
        return vqkv__has_dot();
#endif
    default:
        return 0;
    }
}

static vqkv_isa vqkv__best(void)
{
    if (vqkv__has(VQKV_ISA_AVX512))
        return VQKV_ISA_AVX512;
    if (vqkv__has(VQKV_ISA_AVX2))
        return VQKV_ISA_AVX2;
    if (vqkv__has(VQKV_ISA_NEON_DOT))
        return VQKV_ISA_NEON_DOT;
    return vqkv__has(VQKV_ISA_NEON) ? VQKV_ISA_NEON : VQKV_ISA_PORTABLE;
}

static const vqkv__ops *vqkv__select(vqkv_isa isa)
{
    switch (isa) {
#ifdef VQKV__X86
    case VQKV_ISA_AVX512:
        return &vqkv__ops_avx512;
    case VQKV_ISA_AVX2:
        return &vqkv__ops_avx2;
#endif
#ifdef VQKV__ARM
    case VQKV_ISA_NEON:
        return &vqkv__ops_neon;
#ifdef VQKV__TARGET_dot
    case VQKV_ISA_NEON_DOT:
        return &vqkv__ops_neon_dot;
#endif
#endif
    default:
        return &vqkv__ops_portable;
    }
}
