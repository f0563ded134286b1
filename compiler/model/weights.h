/* weights.h - the tensors of a model file: found by name, checked, widened to fp32, multiplied. */
#ifndef VQKVC_MODEL_WEIGHTS_H
#define VQKVC_MODEL_WEIGHTS_H

#include <stddef.h>

#include "base/memory.h"
#include "base/status.h"
#include "model/gguf.h"
#include "model/quant.h"

/* A matrix as the file holds it, with its optional bias: y = W x + bias. */
typedef struct vqkvc_weight {
    const vqkvc_gguf_tensor *tensor; /* in the mapping, row after row */
    const vqkvc_quant_type *type;
    int rows, cols;    /* outputs and inputs */
    const float *f32;  /* [rows, cols] the whole matrix in fp32, or NULL: widened at each use */
    const float *bias; /* [rows], or NULL */
} vqkvc_weight;

/* Where tensors come from, and who owns what is widened. */
typedef struct vqkvc_weight_source {
    const vqkvc_gguf *gguf;
    vqkvc_arena *arena;   /* owns norms, biases and kept matrices */
    size_t max_f32_bytes; /* that kept matrices may still take */
} vqkvc_weight_source;

/* Finds "<name>.weight" of shape [rows, cols] and, if there is one, "<name>.bias" of [rows]. The
 * matrix is kept widened if it fits what is left of max_f32_bytes; matrices that the file holds in
 * fp32 are used in place. A missing tensor, a wrong shape or an unknown type is named. */
vqkvc_code vqkvc_weight_find(vqkvc_weight_source *src, const char *name, int rows, int cols,
                             vqkvc_weight *w, vqkvc_err *err);

/* The vector `name` (the full tensor name) of n elements, widened into the arena; *v is NULL if it
 * is absent and not required. */
vqkvc_code vqkvc_vector_find(vqkvc_weight_source *src, const char *name, int n, int required,
                             const float **v, vqkvc_err *err);

/* Rows first .. first + n - 1, widened: dst [n, cols]. */
void vqkvc_weight_rows(const vqkvc_weight *w, int first, int n, float *dst);

/* Elements of scratch that vqkvc_weight_apply() needs for w (0 if it is kept widened). */
size_t vqkvc_weight_scratch(const vqkvc_weight *w);

/* y [n, rows] = x [n, cols] * W' + bias, fp32. The same bits for any number of threads, whether or
 * not the matrix is kept widened. */
void vqkvc_weight_apply(const vqkvc_weight *w, int n, const float *x, float *y, float *scratch);

#endif
