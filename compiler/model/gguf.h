/* gguf.h - a reader for GGUF v2 and v3: metadata and tensors of a mapped file.
 *
 * Nothing is trusted: every count, length, type and offset is checked against the file before use,
 * and every refusal names file, field and byte offset. */
#ifndef VQKVC_MODEL_GGUF_H
#define VQKVC_MODEL_GGUF_H

#include <stdint.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/status.h"

typedef enum vqkvc_gguf_type { /* as in the file */
                               VQKVC_GGUF_U8 = 0,
                               VQKVC_GGUF_I8 = 1,
                               VQKVC_GGUF_U16 = 2,
                               VQKVC_GGUF_I16 = 3,
                               VQKVC_GGUF_U32 = 4,
                               VQKVC_GGUF_I32 = 5,
                               VQKVC_GGUF_F32 = 6,
                               VQKVC_GGUF_BOOL = 7,
                               VQKVC_GGUF_STRING = 8,
                               VQKVC_GGUF_ARRAY = 9,
                               VQKVC_GGUF_U64 = 10,
                               VQKVC_GGUF_I64 = 11,
                               VQKVC_GGUF_F64 = 12
} vqkvc_gguf_type;

typedef struct vqkvc_gguf_kv {
    const char *key; /* NUL-terminated copy */
    vqkvc_gguf_type type;
    vqkvc_gguf_type element; /* of an array */
    uint64_t n;              /* elements of an array, bytes of a string, else 1 */
    uint64_t offset;         /* of the value in the file (for messages) */
    const uint8_t *data;     /* scalar or first array element or string bytes, in the mapping,
                                unaligned, little-endian */
    const uint64_t *string_offsets; /* array of strings: where each one's bytes begin in the file,
                                       [n]; NULL otherwise */
    const uint64_t *string_lengths; /* [n] */
} vqkvc_gguf_kv;

typedef struct vqkvc_gguf_tensor {
    const char *name;
    uint32_t type;   /* ggml type id, see quant.h */
    int n_dims;      /* 1 .. 4 */
    int64_t dims[4]; /* dims[0] is the fastest; unused ones are 1 */
    uint64_t offset; /* of the data in the file */
    uint64_t n_bytes;
    const uint8_t *data; /* in the mapping */
} vqkvc_gguf_tensor;

typedef struct vqkvc_gguf {
    vqkvc_map map;
    vqkvc_arena arena;
    uint32_t version;
    uint64_t alignment;
    uint64_t n_kv, n_tensors;
    vqkvc_gguf_kv *kv;
    vqkvc_gguf_tensor *tensors;
} vqkvc_gguf;

/* Tensors of a type that quant.h does not know are kept in the list with n_bytes 0 and refused when
 * they are read. */
vqkvc_code vqkvc_gguf_open(vqkvc_gguf *g, const char *path, vqkvc_err *err);
void vqkvc_gguf_close(vqkvc_gguf *g);

const vqkvc_gguf_kv *vqkvc_gguf_find(const vqkvc_gguf *g, const char *key); /* NULL if absent */
const vqkvc_gguf_tensor *vqkvc_gguf_find_tensor(const vqkvc_gguf *g, const char *name);

/* Typed access. An absent key gives `fallback`; one of another type than asked for (any integer
 * type serves an integer, any numeric type a number) is an error that names it. */
vqkvc_code vqkvc_gguf_get_int(const vqkvc_gguf *g, const char *key, int64_t fallback, int64_t *out,
                              vqkvc_err *err);
vqkvc_code vqkvc_gguf_get_number(const vqkvc_gguf *g, const char *key, double fallback, double *out,
                                 vqkvc_err *err);
vqkvc_code vqkvc_gguf_get_bool(const vqkvc_gguf *g, const char *key, int fallback, int *out,
                               vqkvc_err *err);
/* The string lies in the arena; fallback may be NULL. */
vqkvc_code vqkvc_gguf_get_string(vqkvc_gguf *g, const char *key, const char *fallback,
                                 const char **out, vqkvc_err *err);
/* Element i of an array of strings: its bytes in the mapping (not NUL-terminated). */
const char *vqkvc_gguf_array_string(const vqkvc_gguf *g, const vqkvc_gguf_kv *kv, uint64_t i,
                                    size_t *n);
/* Element i of a numeric array as double. */
double vqkvc_gguf_array_number(const vqkvc_gguf_kv *kv, uint64_t i);

#endif
