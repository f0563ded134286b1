/* safetensors.h - a reader for safetensors files (8-byte length, JSON header, raw tensors). */
#ifndef VQKVC_MODEL_SAFETENSORS_H
#define VQKVC_MODEL_SAFETENSORS_H

#include <stdint.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/status.h"

typedef enum vqkvc_st_type {
    VQKVC_ST_F32,
    VQKVC_ST_F16,
    VQKVC_ST_BF16,
    VQKVC_ST_I32,
    VQKVC_ST_I64
} vqkvc_st_type;

typedef struct vqkvc_st_tensor {
    const char *name;
    vqkvc_st_type type;
    int n_dims;
    int64_t dims[4];
    int64_t n_elements;
    const uint8_t *data; /* in the mapping, unaligned */
} vqkvc_st_tensor;

typedef struct vqkvc_st {
    vqkvc_map map;
    vqkvc_arena arena;
    int n_tensors;
    vqkvc_st_tensor *tensors; /* in file order of the JSON header */
    int n_metadata;
    const char **metadata_keys, **metadata_values; /* __metadata__: strings */
} vqkvc_st;

/* Every offset is checked against the file, overlaps and gaps included, before it returns. Tensors
 * of other types are refused with their name. */
vqkvc_code vqkvc_st_open(vqkvc_st *st, const char *path, vqkvc_err *err);
void vqkvc_st_close(vqkvc_st *st);
/* NULL if absent. */
const vqkvc_st_tensor *vqkvc_st_find(const vqkvc_st *st, const char *name);
const char *vqkvc_st_metadata(const vqkvc_st *st, const char *key);
/* Elements first .. first + n - 1 widened to fp32 (F32, F16, BF16 only). The caller stays within
 * n_elements. */
void vqkvc_st_read_f32(const vqkvc_st_tensor *t, int64_t first, int64_t n, float *dst);

#endif
