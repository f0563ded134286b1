/* cuda_fp16.h - reading binary16 on the host; see cuda_runtime.h beside it. */
#ifndef TESTS_CUDA_FP16_H
#define TESTS_CUDA_FP16_H

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};

static inline __half __ushort_as_half(uint16_t bits)
{
    return __half{bits};
}

/* Scaling by 2^112 corrects the exponent's bias and normalises subnormals. */
static inline float __half2float(__half h)
{
    uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
    uint32_t mag = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
    if (mag >= 0x0f800000u)
        return __uint_as_float(sign | mag | 0x7f800000u);
    return __uint_as_float(sign |
                           __float_as_uint(__uint_as_float(mag) * __uint_as_float(0x77800000u)));
}

#endif
