/* internal.h - what model.c (reads a file) and forward.c (runs it) share. Private to model/. */
#ifndef VQKVC_MODEL_INTERNAL_H
#define VQKVC_MODEL_INTERNAL_H

#include "base/geometry.h"
#include "base/memory.h"
#include "model/gguf.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "model/weights.h"

typedef struct vqkvc_layer {
    const float *attn_norm, *ffn_norm; /* [d_model] */
    const float *q_norm, *k_norm; /* [head_dim], NULL unless the model norms queries and keys */
    vqkvc_weight q, k, v, o;
    vqkvc_weight gate, up, down;
} vqkvc_layer;

struct vqkvc_model {
    vqkvc_arena arena; /* owns the path, layers, norms, biases and kept matrices */
    vqkvc_gguf gguf;
    vqkvc_tokenizer *tokenizer;
    vqkvc_geometry geometry;
    int vocab, d_ff;
    float norm_eps;
    vqkvc_layer *layers; /* [n_layers] */
    const float *output_norm;
    vqkvc_weight embed, output; /* [vocab, d_model]; equal when tied */
    size_t scratch;             /* elements that the largest vqkvc_weight_apply() needs */
};

#endif
