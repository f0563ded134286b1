/* codec_table.h - what a loaded codec offers, with the header's own prefix and types left behind.
 *
 * The same text is compiled with the emitted header (see shim.h), so it is C99 over libc alone.
 * Functions return the header's status: 0 is success, words for the others are in status_text. */
#ifndef VQKVC_EVAL_CODEC_TABLE_H
#define VQKVC_EVAL_CODEC_TABLE_H

#include <stddef.h>

/* The shape of a cache, and the instruction set as the header's ABI numbers them. */
struct vqkvc_codec_shape {
    int n_seq, n_ctx, max_batch;
    int n_exact; /* places on the exact list; 0: the header's default */
    int isa;     /* 0 best, 1 portable, 2 AVX2, 3 AVX-512, 4 NEON, 5 NEON_DOT */
};

struct vqkvc_codec_table {
    int n_layers, n_heads, n_kv_heads, head_dim;
    int n_rot, rope_interleaved;
    int block, n_sink, n_recent;
    int landmarks;     /* tokens that share one; 0: none */
    float max_error;   /* 0: no bound */
    const char *codec; /* hash of the plan and its tables */
    const char *(*status_text)(int status);
    int (*size)(const struct vqkvc_codec_shape *shape, size_t *bytes);
    /* memory [bytes], aligned to 64, stays the caller's; *kv points into it. */
    int (*init)(void **kv, const struct vqkvc_codec_shape *shape, void *memory, size_t bytes);
    size_t (*scratch_size)(void); /* bytes, a thread */
    int (*isa_in_use)(const void *kv);
    /* k, v: [n, n_kv_heads, head_dim] fp32, keys rotated. */
    int (*append)(void *kv, int seq, int layer, int n, const float *k, const float *v);
    /* q, out: [n_q, n_heads, head_dim] fp32, queries rotated; the latest n_q tokens. */
    int (*attend)(const void *kv, int seq, int layer, int n_q, const float *q, float *out,
                  float scale, int sliding_window, int top_tokens, void *scratch,
                  size_t scratch_bytes);
    int (*trim)(void *kv, int seq, int n_keep);
    /* Tokens first .. first + n - 1 of one head: dst [n, head_dim] fp32; part 0 keys, 1 values. */
    int (*read)(const void *kv, int seq, int layer, int kv_head, int part, int first, int n,
                float *dst, void *scratch, size_t scratch_bytes);
    size_t (*bytes_used)(const void *kv);
    int (*exact_used)(const void *kv); /* vectors on the exact list */
    size_t (*save_size)(const void *kv, int seq);
    int (*save)(const void *kv, int seq, void *dst, size_t bytes);
    int (*load)(void *kv, int seq, const void *src, size_t bytes);
};

#endif
