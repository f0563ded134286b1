/* model.h - a decoder-only transformer read from GGUF, and its reference forward pass. */
#ifndef VQKVC_MODEL_MODEL_H
#define VQKVC_MODEL_MODEL_H

#include <stdint.h>

#include "base/geometry.h"
#include "base/log.h"
#include "base/status.h"
#include "model/cache.h"

typedef struct vqkvc_model vqkvc_model;

/* Opens a GGUF file (v2 or v3; llama, mistral, qwen2, qwen3). Weights stay in the mapping in their
 * own type and are widened to fp32 a matrix at a time, or kept widened while they fit
 * `max_f32_bytes` (0: a default of 2 GiB). */
vqkvc_code vqkvc_model_open(vqkvc_model **model, const char *path, size_t max_f32_bytes,
                            vqkvc_err *err);
void vqkvc_model_close(vqkvc_model *model);

const vqkvc_geometry *vqkvc_model_geometry(const vqkvc_model *model);
int vqkvc_model_vocab_size(const vqkvc_model *model);
/* Attention's own factor on q . k: 1 / sqrt(head_dim), times what the architecture adds. YaRN's
 * factor is not in it: it is in the rotated queries and keys. */
float vqkvc_model_attention_scale(const vqkvc_model *model);
/* The output projection of one layer, [d_model, n_heads * head_dim] fp32, copied to dst. Values
 * matter through it. */
vqkvc_code vqkvc_model_output_projection(const vqkvc_model *model, int layer, float *dst,
                                         vqkvc_err *err);

/* ---- tokenizer (of the same file) ---- */

/* Text to token ids. Writes at most cap ids and returns in *n how many there are (call with cap 0
 * to ask). add_bos: put the beginning-of-sequence id first if the model wants one. */
vqkvc_code vqkvc_tokenize(const vqkvc_model *model, const char *text, size_t len, int add_bos,
                          int32_t *ids, size_t cap, size_t *n, vqkvc_err *err);
/* The bytes of one token, as they appear in running text; *n bytes, owned by the model. */
vqkvc_code vqkvc_token_bytes(const vqkvc_model *model, int32_t id, const char **bytes, size_t *n,
                             vqkvc_err *err);
int32_t vqkvc_token_bos(const vqkvc_model *model); /* -1: none */
int32_t vqkvc_token_eos(const vqkvc_model *model);

/* ---- forward pass ---- */

/* Sees each layer's projections before rotation (after biases and K/Q norms). */
typedef struct vqkvc_tap {
    void *self;
    /* seq, pos: [n]; q: [n, n_heads, head_dim]; k, v: [n, n_kv_heads, head_dim], all un-rotated. */
    vqkvc_code (*qkv)(void *self, int layer, int n, const int *seq, const int *pos, const float *q,
                      const float *k, const float *v, vqkvc_err *err);
    /* NULL, or sees the residual stream that each layer's attention will add to, before its norm:
     * x [n, d_model]. Called before qkv of the same layer. */
    vqkvc_code (*residual)(void *self, int layer, int n, int d_model, const float *x,
                           vqkvc_err *err);
} vqkvc_tap;

/* One step's tokens. Tokens of one sequence are neighbours, at consecutive positions. */
typedef struct vqkvc_batch {
    int n;              /* tokens */
    const int32_t *ids; /* [n] */
    const int *seq;     /* [n] sequence in the cache */
    const int *pos;     /* [n] position in its sequence */
} vqkvc_batch;

/* Runs the batch through all layers against `cache`; tap may be NULL. logits: [n, vocab] fp32, or
 * NULL when they are not wanted. Prefill is a batch of one sequence's chunk; decoding is one token
 * each of any number of sequences. The same bits for any number of threads. */
vqkvc_code vqkvc_forward(vqkvc_model *model, const vqkvc_cache *cache, const vqkvc_batch *batch,
                         const vqkvc_tap *tap, float *logits, vqkvc_err *err);

/* ---- sampling ---- */

/* Draws from softmax(logits / temperature), restricted to the top_k largest (0: all) and then to
 * the smallest set of probability >= top_p (1: all). temperature 0: the largest. `uniform` is the
 * random number in [0, 1). */
int32_t vqkvc_sample_token(const float *logits, int vocab, float temperature, int top_k,
                           float top_p, double uniform);

#endif
