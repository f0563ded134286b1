#include <math.h>

#include "capture/source.h"

#define DEFAULT(field, value)                                                                      \
    do {                                                                                           \
        if (out->field == 0)                                                                       \
            out->field = (value);                                                                  \
    } while (0)

static vqkvc_code check_range(const char *name, int64_t value, int64_t low, int64_t high,
                              vqkvc_err *err)
{
    if (value >= low && value <= high)
        return VQKVC_OK;
    return vqkvc_fail(err, VQKVC_E_USAGE, "capture: %s is %lld, not %lld to %lld", name,
                      (long long)value, (long long)low, (long long)high);
}

vqkvc_code vqkvc_capture_params_resolve(const vqkvc_capture_params *in, const vqkvc_geometry *g,
                                        int all_tokens, vqkvc_capture_params *out, vqkvc_err *err)
{
    int context = g != NULL && g->n_ctx_train > 0 ? g->n_ctx_train : INT32_MAX;
    *out = *in;
    if (!all_tokens)
        DEFAULT(n_tokens, 32768);
    DEFAULT(n_sample, 8192);
    DEFAULT(n_skip, 4);
    DEFAULT(window, context < 1024 ? context : 1024);
    DEFAULT(shard, 8);
    DEFAULT(batch, 16);
    DEFAULT(seed, 1);
    if (!(out->temperature > 0 || out->temperature < 0)) /* nor a NaN */
        out->temperature = 1;
    if (!(out->top_p > 0 || out->top_p < 0))
        out->top_p = 1;
    VQKVC_TRY(check_range("number of tokens", out->n_tokens, 0, INT32_MAX, err));
    VQKVC_TRY(check_range("sample", out->n_sample, 1, INT32_MAX, err));
    VQKVC_TRY(check_range("skip", out->n_skip, -1, INT32_MAX, err));
    VQKVC_TRY(check_range("window", out->window, 2, context, err));
    VQKVC_TRY(check_range("shard", out->shard, 1, INT32_MAX, err));
    VQKVC_TRY(check_range("batch", out->batch, 1, 4096, err));
    VQKVC_TRY(check_range("top_k", out->top_k, 0, INT32_MAX, err));
    if (out->temperature < 0 || isinf(out->temperature) || out->top_p < 0 || out->top_p > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "capture: temperature %g must be positive, top_p %g 0 to 1",
                          (double)out->temperature, (double)out->top_p);
    return VQKVC_OK;
}
