/* quant.h - the tensor types of GGUF files that the tool can widen to fp32.
 *
 * Layouts are those of the GGUF specification and ggml's block formats; all fields little-endian.
 * A scale is a binary16 number d; sub-blocks of the K types have 6- or 8-bit scales of their own.
 */
#ifndef VQKVC_MODEL_QUANT_H
#define VQKVC_MODEL_QUANT_H

#include <stddef.h>
#include <stdint.h>

typedef struct vqkvc_quant_type {
    const char *name; /* as GGUF tools print it: "Q4_K" */
    uint32_t id;      /* ggml type id in the file */
    int block;        /* elements that are stored together; 1 for the float types */
    int bytes;        /* of one block */
    /* src: [n_blocks * bytes], any alignment; dst: [n_blocks * block] */
    void (*widen)(const uint8_t *src, int64_t n_blocks, float *dst);
} vqkvc_quant_type;

/* The type of a ggml id, or NULL if the tool does not know it. */
const vqkvc_quant_type *vqkvc_quant_find(uint32_t ggml_type);

/* Widens n elements, a multiple of type->block, to fp32: exact but for the two roundings of
 * "scale times code plus minimum". src: any alignment, n / block * bytes bytes; dst: [n]. */
void vqkvc_quant_to_f32(const vqkvc_quant_type *type, const uint8_t *src, int64_t n, float *dst);

#endif
