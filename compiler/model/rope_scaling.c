#include "model/rope_scaling.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A number under {arch}.rope.<name>, within [low, high]. */
static vqkvc_code read_number(const vqkvc_gguf *gguf, const char *arch, const char *name,
                              double fallback, double low, double high, double *out, vqkvc_err *err)
{
    char key[128];
    snprintf(key, sizeof key, "%s.rope.%s", arch, name);
    VQKVC_TRY(vqkvc_gguf_get_number(gguf, key, fallback, out, err));
    if (!(*out >= low && *out <= high))
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s = %g is outside %g .. %g", gguf->map.path,
                          key, *out, low, high);
    return VQKVC_OK;
}

static vqkvc_code read_kind(vqkvc_gguf *gguf, const char *arch, vqkvc_rope_scaling_kind *kind,
                            vqkvc_err *err)
{
    static const char *const names[] = {"none", "linear", "yarn"};
    char key[128];
    const char *type;
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    /* Files older than the type key have only a factor, and mean position interpolation. */
    VQKVC_TRY(vqkvc_gguf_get_string(gguf, key, "linear", &type, err));
    for (int i = 0; i < 3; i++)
        if (strcmp(type, names[i]) == 0) {
            *kind = (vqkvc_rope_scaling_kind)i;
            return VQKVC_OK;
        }
    return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                      "%s: %s = '%.40s' is not supported (none, linear, yarn)", gguf->map.path, key,
                      type);
}

vqkvc_code vqkvc_rope_scaling_read(vqkvc_gguf *gguf, const char *arch, int n_ctx_train,
                                   vqkvc_rope_scaling *s, vqkvc_err *err)
{
    double legacy;
    VQKVC_TRY(read_kind(gguf, arch, &s->kind, err));
    int yarn = s->kind == VQKVC_ROPE_SCALING_YARN;
    VQKVC_TRY(read_number(gguf, arch, "freq_base", 10000, 1.001, 1e12, &s->freq_base, err));
    VQKVC_TRY(read_number(gguf, arch, "scale_linear", 0, 0, 1e6, &legacy, err));
    VQKVC_TRY(read_number(gguf, arch, "scaling.factor", legacy, 0, 1e6, &s->factor, err));
    if (s->kind == VQKVC_ROPE_SCALING_NONE || s->factor == 0) /* 0 stands for "none" in the file */
        s->factor = 1;
    VQKVC_TRY(read_number(gguf, arch, "scaling.original_context_length", n_ctx_train, 0, 1e9,
                          &s->n_ctx_orig, err));
    if (s->n_ctx_orig == 0)
        s->n_ctx_orig = n_ctx_train;
    VQKVC_TRY(read_number(gguf, arch, "scaling.yarn_beta_fast", 32, 1e-3, 1e6, &s->beta_fast, err));
    VQKVC_TRY(read_number(gguf, arch, "scaling.yarn_beta_slow", 1, 1e-3, 1e6, &s->beta_slow, err));
    VQKVC_TRY(read_number(gguf, arch, "scaling.yarn_ext_factor", -1, -1e6, 1, &s->ext_factor, err));
    if (s->ext_factor < 0) /* negative stands for "unset" */
        s->ext_factor = yarn ? 1 : 0;
    return read_number(gguf, arch, "scaling.attn_factor", 1, 1e-3, 1e3, &s->attn_factor, err);
}

/* The pair that turns `turns` times over the original context (YaRN, equation 17 solved for i). */
static double pair_of_turns(const vqkvc_rope_scaling *s, int n_rot, double turns)
{
    const double two_pi = 6.283185307179586;
    return n_rot * log(s->n_ctx_orig / (turns * two_pi)) / (2 * log(s->freq_base));
}

void vqkvc_rope_scaling_apply(const vqkvc_rope_scaling *s, const float *factors, vqkvc_geometry *g)
{
    int ramp = s->ext_factor != 0;
    double low = fmax(0, floor(pair_of_turns(s, g->n_rot, s->beta_fast)));
    double high = fmin(g->n_rot - 1, ceil(pair_of_turns(s, g->n_rot, s->beta_slow)));
    for (int i = 0; i < g->n_rot / 2; i++) {
        double freq = pow(s->freq_base, -2.0 * i / g->n_rot);
        if (factors != NULL)
            freq /= factors[i];
        /* Share of the frequency that is left as it is: 1 for pairs that turn often. */
        double keep = ramp ? 1 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low))) : 0;
        keep *= s->ext_factor;
        g->rope_freq[i] = freq * (keep + (1 - keep) / s->factor);
    }
    double mscale = ramp && s->factor > 1 ? 1 + 0.1 * log(s->factor) : 1;
    g->rope_mscale = (float)(mscale * s->attn_factor);
}
