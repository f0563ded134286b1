#include "plan/baselines.h"

#include <string.h>

#include "plan/preset_parts.h"

enum { GROUP = 32 };

static vqkvc_code fill(vqkvc_plan *plan, vqkvc_stream *s, const void *how, vqkvc_err *err)
{
    uint8_t bits[VQKVC_MAX_HEAD_DIM];
    memset(bits, *(const int *)how, sizeof bits);
    if (s->members[0].part == VQKVC_PART_K)
        return vqkvc_preset_range(plan, s, 1, GROUP, bits, err);
    return vqkvc_preset_range(plan, s, vqkvc_preset_group(s->n_in, GROUP), 1, bits, err);
}

vqkvc_code vqkvc_build_kivi(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    if (plan->block % GROUP != 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "blocks of %d tokens: keys share a range over %d, so wanted a multiple",
                          plan->block, GROUP);
    return vqkvc_preset_heads(plan, fill, &bits, err);
}
