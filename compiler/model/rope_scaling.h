/* rope_scaling.h - a model file's rotary embedding, all scaling folded into one table. */
#ifndef VQKVC_MODEL_ROPE_SCALING_H
#define VQKVC_MODEL_ROPE_SCALING_H

#include "base/geometry.h"
#include "base/status.h"
#include "model/gguf.h"

typedef enum vqkvc_rope_scaling_kind {
    VQKVC_ROPE_SCALING_NONE,
    VQKVC_ROPE_SCALING_LINEAR,
    VQKVC_ROPE_SCALING_YARN
} vqkvc_rope_scaling_kind;

typedef struct vqkvc_rope_scaling {
    vqkvc_rope_scaling_kind kind;
    double freq_base;
    double factor;               /* context extension; 1 for none */
    double n_ctx_orig;           /* tokens, before extension (YaRN) */
    double beta_fast, beta_slow; /* turns over n_ctx_orig that bound YaRN's ramp */
    double ext_factor;           /* share of the ramp that is used (YaRN: 1) */
    double attn_factor;          /* further factor on cosine and sine */
} vqkvc_rope_scaling;

/* Reads {arch}.rope.* and checks every number. longrope and unknown types are refused by name. */
vqkvc_code vqkvc_rope_scaling_read(vqkvc_gguf *gguf, const char *arch, int n_ctx_train,
                                   vqkvc_rope_scaling *s, vqkvc_err *err);

/* Fills g->rope_freq [n_rot / 2] and g->rope_mscale from s; g->n_rot is set. factors [n_rot / 2]
 * divide each pair's frequency (the rope_freqs tensor of Llama 3.1), NULL for none. Linear:
 * position interpolation (Chen et al. 2023); YaRN: Peng et al. 2023, section 3.2 and equation 22.
 */
void vqkvc_rope_scaling_apply(const vqkvc_rope_scaling *s, const float *factors, vqkvc_geometry *g);

#endif
