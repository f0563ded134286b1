#include "plan/baselines.h"

#include "plan/higgs.h"
#include "plan/preset_parts.h"

enum { WIDTH = 4 };

static vqkvc_code fill(vqkvc_plan *plan, vqkvc_stream *s, const void *how, vqkvc_err *err)
{
    s->transform = VQKVC_TRANSFORM_HADAMARD;
    VQKVC_TRY(vqkvc_higgs_code(plan, s, how, err));
    s->gain = VQKVC_GAIN_NSN;
    s->gain_tokens = plan->block;
    return VQKVC_OK;
}

vqkvc_code vqkvc_build_nsn(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    int dim = plan->geometry.head_dim;
    vqkvc_higgs_grid grid = {.width = WIDTH, .bits = bits * WIDTH};
    if (dim < WIDTH || (dim & (dim - 1)) != 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "it needs a head_dim that is a power of two, not %d", dim);
    VQKVC_TRY(vqkvc_higgs_add_grid(plan, &grid, err));
    return vqkvc_preset_heads(plan, fill, &grid, err);
}
