/* gguf_writer.h - makes small GGUF files in memory, for tests and fuzz seeds.
 *
 *     gw w = gw_make(3, 32);
 *     gw_str(&w, "general.architecture", "llama");
 *     gw_u32(&w, "llama.block_count", 2);
 *     gw_tensor_f32(&w, "output_norm.weight", 1, (int64_t[]){64}, norm);
 *     vqkvc_buf file = gw_finish(&w);   (releases w; the caller frees file.data)
 *
 * It checks nothing, so that tests can write nonsense too, and assumes a little-endian host.
 * gw_finish() and gw_write() end the process when memory or the disk is exhausted. */
#ifndef VQKVC_TESTS_GGUF_WRITER_H
#define VQKVC_TESTS_GGUF_WRITER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "model/gguf.h"

typedef struct gw {
    uint32_t version;
    uint64_t alignment; /* of the data section and of every tensor in it */
    uint64_t n_kv, n_tensors;
    vqkvc_buf kv, info, data;
} gw;

static inline void gw_put_string(vqkvc_buf *buf, const char *s, uint64_t n)
{
    vqkvc_buf_put(buf, &n, sizeof n);
    vqkvc_buf_put(buf, s, n);
}

/* The key and the type of a value; the caller appends the value's bytes to w->kv. */
static inline void gw_key(gw *w, const char *key, uint32_t type)
{
    gw_put_string(&w->kv, key, strlen(key));
    vqkvc_buf_put(&w->kv, &type, sizeof type);
    w->n_kv++;
}

/* A scalar of any type; value points at its little-endian bytes. */
static inline void gw_scalar(gw *w, const char *key, uint32_t type, const void *value, size_t bytes)
{
    gw_key(w, key, type);
    vqkvc_buf_put(&w->kv, value, bytes);
}

static inline void gw_u32(gw *w, const char *key, uint32_t v)
{
    gw_scalar(w, key, VQKVC_GGUF_U32, &v, sizeof v);
}

static inline void gw_i32(gw *w, const char *key, int32_t v)
{
    gw_scalar(w, key, VQKVC_GGUF_I32, &v, sizeof v);
}

static inline void gw_u64(gw *w, const char *key, uint64_t v)
{
    gw_scalar(w, key, VQKVC_GGUF_U64, &v, sizeof v);
}

static inline void gw_f32(gw *w, const char *key, float v)
{
    gw_scalar(w, key, VQKVC_GGUF_F32, &v, sizeof v);
}

static inline void gw_bool(gw *w, const char *key, int v)
{
    uint8_t byte = (uint8_t)v;
    gw_scalar(w, key, VQKVC_GGUF_BOOL, &byte, 1);
}

/* A string of n bytes, which may hold anything. */
static inline void gw_bytes(gw *w, const char *key, const char *s, size_t n)
{
    gw_key(w, key, VQKVC_GGUF_STRING);
    gw_put_string(&w->kv, s, n);
}

static inline void gw_str(gw *w, const char *key, const char *s)
{
    gw_bytes(w, key, s, strlen(s));
}

static inline void gw_array_head(gw *w, const char *key, uint32_t element, uint64_t n)
{
    gw_key(w, key, VQKVC_GGUF_ARRAY);
    vqkvc_buf_put(&w->kv, &element, sizeof element);
    vqkvc_buf_put(&w->kv, &n, sizeof n);
}

/* An array of n scalars, `bytes` in all. */
static inline void gw_array(gw *w, const char *key, uint32_t element, uint64_t n,
                            const void *values, size_t bytes)
{
    gw_array_head(w, key, element, n);
    vqkvc_buf_put(&w->kv, values, bytes);
}

static inline void gw_array_i32(gw *w, const char *key, uint64_t n, const int32_t *values)
{
    gw_array(w, key, VQKVC_GGUF_I32, n, values, n * sizeof *values);
}

static inline void gw_array_f32(gw *w, const char *key, uint64_t n, const float *values)
{
    gw_array(w, key, VQKVC_GGUF_F32, n, values, n * sizeof *values);
}

static inline void gw_array_str(gw *w, const char *key, uint64_t n, const char *const *strings)
{
    gw_array_head(w, key, VQKVC_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++)
        gw_put_string(&w->kv, strings[i], strlen(strings[i]));
}

/* Zeros up to the next multiple of alignment. */
static inline void gw_pad(vqkvc_buf *buf, uint64_t alignment)
{
    while (buf->len % alignment != 0 && !buf->failed)
        vqkvc_buf_put(buf, "", 1);
}

/* An entry of the tensor table whose data begin at `offset` of the data section. */
static inline void gw_tensor_at(gw *w, const char *name, uint32_t type, uint32_t n_dims,
                                const int64_t *dims, uint64_t offset)
{
    gw_put_string(&w->info, name, strlen(name));
    vqkvc_buf_put(&w->info, &n_dims, sizeof n_dims);
    vqkvc_buf_put(&w->info, dims, n_dims * sizeof *dims);
    vqkvc_buf_put(&w->info, &type, sizeof type);
    vqkvc_buf_put(&w->info, &offset, sizeof offset);
    w->n_tensors++;
}

/* A tensor behind those before it; dims[0] is the fastest. */
static inline void gw_tensor(gw *w, const char *name, uint32_t type, uint32_t n_dims,
                             const int64_t *dims, const void *data, size_t bytes)
{
    gw_pad(&w->data, w->alignment);
    gw_tensor_at(w, name, type, n_dims, dims, w->data.len);
    vqkvc_buf_put(&w->data, data, bytes);
}

static inline void gw_tensor_f32(gw *w, const char *name, uint32_t n_dims, const int64_t *dims,
                                 const float *data)
{
    size_t n = 1;
    for (uint32_t i = 0; i < n_dims; i++)
        n *= (size_t)dims[i];
    gw_tensor(w, name, 0, n_dims, dims, data, n * sizeof *data);
}

/* version 2 or 3; an alignment other than the default of 32 is written as general.alignment. */
static inline gw gw_make(uint32_t version, uint32_t alignment)
{
    gw w = {.version = version, .alignment = alignment};
    if (alignment != 32)
        gw_u32(&w, "general.alignment", alignment);
    return w;
}

/* The whole file. Releases w; the caller frees data of the result. */
static inline vqkvc_buf gw_finish(gw *w)
{
    vqkvc_buf out = {0};
    vqkvc_buf_put(&out, "GGUF", 4);
    vqkvc_buf_put(&out, &w->version, sizeof w->version);
    vqkvc_buf_put(&out, &w->n_tensors, sizeof w->n_tensors);
    vqkvc_buf_put(&out, &w->n_kv, sizeof w->n_kv);
    vqkvc_buf_put(&out, w->kv.data, w->kv.len);
    vqkvc_buf_put(&out, w->info.data, w->info.len);
    gw_pad(&out, w->alignment);
    vqkvc_buf_put(&out, w->data.data, w->data.len);
    if (out.failed || w->kv.failed || w->info.failed || w->data.failed)
        abort();
    free(w->kv.data);
    free(w->info.data);
    free(w->data.data);
    *w = (gw){0};
    return out;
}

/* The whole file to path. Releases w. */
static inline void gw_write(gw *w, const char *path)
{
    vqkvc_err err = {0};
    vqkvc_buf file = gw_finish(w);
    if (vqkvc_write_file(path, file.data, file.len, &err) != VQKVC_OK) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    free(file.data);
}

#endif
