/* geometry.h - what a cache codec has to know of a model: shapes and rotary embedding. */
#ifndef VQKVC_BASE_GEOMETRY_H
#define VQKVC_BASE_GEOMETRY_H

#include <stdint.h>

#include "base/hash.h"

enum { VQKVC_MAX_HEAD_DIM = 512, VQKVC_MAX_LAYERS = 512, VQKVC_MAX_HEADS = 512 };

/* Which two channels of a head form the i-th rotated pair. */
typedef enum vqkvc_rope_layout {
    VQKVC_ROPE_NONE,        /* no rotation */
    VQKVC_ROPE_INTERLEAVED, /* (2 i, 2 i + 1): llama, mistral in GGUF */
    VQKVC_ROPE_HALVES       /* (i, i + n_rot / 2): qwen2, qwen3 ("neox") */
} vqkvc_rope_layout;

typedef struct vqkvc_geometry {
    char name[64]; /* general.name of the model, for people */
    char arch[32]; /* general.architecture */
    int n_layers, d_model;
    int n_heads, n_kv_heads; /* query heads; key-value heads; n_heads % n_kv_heads == 0 */
    int head_dim;            /* of queries, keys and values */
    vqkvc_rope_layout rope_layout;
    int n_rot; /* rotated channels of a head, even; the others pass unrotated */
    /* Radians a token of each pair, scaling included: position p turns pair i by
     * p * rope_freq[i]. [n_rot / 2] */
    double rope_freq[VQKVC_MAX_HEAD_DIM / 2];
    /* YaRN's factor on cosine and sine (1 otherwise): rotated keys and queries are longer by it. */
    float rope_mscale;
    int sliding_window;      /* tokens, 0 for none */
    int n_ctx_train;         /* tokens the model was trained for */
    vqkvc_hash weights_hash; /* of the model file's bytes */
} vqkvc_geometry;

/* Rotates n_heads vectors x [n_heads, head_dim] by `position` tokens, in place; a negative position
 * rotates back. Magnitude (rope_mscale) is left alone. Angles in double. */
void vqkvc_rope_rotate(const vqkvc_geometry *g, double position, float *x, int n_heads);
/* The same by a position of its own for each pair: [n_rot / 2]. */
void vqkvc_rope_rotate_pairs(const vqkvc_geometry *g, const double *position, float *x,
                             int n_heads);

#endif
