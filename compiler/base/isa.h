/* isa.h - instruction sets that kernels are written for. */
#ifndef VQKVC_BASE_ISA_H
#define VQKVC_BASE_ISA_H

/* The instruction sets of struct vqkvc_codec_shape. */
typedef enum vqkvc_isa {
    VQKVC_ISA_AUTO,
    VQKVC_ISA_PORTABLE,
    VQKVC_ISA_AVX2,
    VQKVC_ISA_AVX512,
    VQKVC_ISA_NEON,
    VQKVC_ISA_NEON_DOT
} vqkvc_isa;

#endif
