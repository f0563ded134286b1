/* Schemes that need no calibration, by name: the exact cache, llama.cpp's q8_0 and q4_0, HIGGS, and
 * the baselines of baselines.h. */
#include "plan/plan.h"

#include <string.h>

#include "plan/baselines.h"
#include "plan/higgs.h"
#include "plan/preset_parts.h"

enum {
    QUANT_GROUP = 32, /* channels a scale in q8_0 and q4_0 */
    HIGGS_WIDTH = 2
};

static vqkvc_code fill_f16(vqkvc_plan *plan, vqkvc_stream *s, const void *how, vqkvc_err *err)
{
    vqkvc_run *run = vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    run->coder = VQKVC_CODER_F16;
    run->groups = s->n_latents;
    run->bits = *(const int *)how;
    return VQKVC_OK;
}

static vqkvc_code build_f16(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    return vqkvc_preset_heads(plan, fill_f16, &bits, err);
}

static vqkvc_code fill_uni(vqkvc_plan *plan, vqkvc_stream *s, const void *how, vqkvc_err *err)
{
    int bits = *(const int *)how;
    s->gain = bits == 8 ? VQKVC_GAIN_ABSMAX : VQKVC_GAIN_SIGNMAX;
    s->gain_bits = 16;
    s->gain_width = vqkvc_preset_group(s->n_in, QUANT_GROUP);
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, s->n_latents / s->gain_width, err);
    for (int r = 0; runs != NULL && r < s->n_runs; r++) {
        runs[r].coder = VQKVC_CODER_UNI;
        runs[r].first = r * s->gain_width;
        runs[r].groups = s->gain_width;
        runs[r].bits = bits;
    }
    return runs == NULL ? err->code : VQKVC_OK;
}

/* q8_0 and q4_0 */
static vqkvc_code build_ggml(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    return vqkvc_preset_heads(plan, fill_uni, &bits, err);
}

/* All KV heads of a layer joined and cut into the largest Hadamard blocks that divide them. */
static vqkvc_code build_higgs(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_higgs_grid grid = {.width = HIGGS_WIDTH, .bits = bits * HIGGS_WIDTH};
    int heads; /* of one block */
    VQKVC_TRY(vqkvc_higgs_heads(g, HIGGS_WIDTH, &heads, err));
    VQKVC_TRY(vqkvc_higgs_add_grid(plan, &grid, err));
    for (int layer = 0; layer < g->n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
            for (int first = 0; first < g->n_kv_heads; first += heads)
                if (vqkvc_higgs_add_stream(plan, (vqkvc_part)part, layer, first, heads, &grid,
                                           err) == NULL)
                    return err->code;
    return VQKVC_OK;
}

/* ---- by name ---- */

static const vqkvc_window usual = {.n_sink = 4, .n_recent = 32, .block = 64};
static const vqkvc_window of_kivi = {.n_sink = 0, .n_recent = 128, .block = 64};

static const struct preset {
    const char *scheme;
    int bits; /* of a code, a value */
    const vqkvc_window *window;
    vqkvc_code (*build)(vqkvc_plan *plan, int bits, vqkvc_err *err);
} presets[] = {{"f16", 16, &usual, build_f16},           {"q8_0", 8, &usual, build_ggml},
               {"q4_0", 4, &usual, build_ggml},          {"higgs2", 2, &usual, build_higgs},
               {"higgs3", 3, &usual, build_higgs},       {"higgs4", 4, &usual, build_higgs},
               {"kivi2", 2, &of_kivi, vqkvc_build_kivi}, {"kivi4", 4, &of_kivi, vqkvc_build_kivi},
               {"turbo2", 2, &usual, vqkvc_build_turbo}, {"turbo3", 3, &usual, vqkvc_build_turbo},
               {"turbo4", 4, &usual, vqkvc_build_turbo}, {"nsn2", 2, &usual, vqkvc_build_nsn}};

static const struct preset *find_preset(const char *scheme)
{
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++)
        if (strcmp(presets[i].scheme, scheme) == 0)
            return &presets[i];
    return NULL;
}

vqkvc_code vqkvc_plan_preset(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                             const vqkvc_window *window, vqkvc_err *err)
{
    *plan = (vqkvc_plan){0};
    const struct preset *preset = find_preset(scheme);
    if (preset == NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE, "no scheme is named %.40s", scheme);
    vqkvc_preset_begin(plan, g, scheme, preset->window, window);
    if (preset->build(plan, preset->bits, err) != VQKVC_OK ||
        vqkvc_plan_validate(plan, err) != VQKVC_OK) {
        vqkvc_err_prefix(err, "scheme %s", scheme);
        vqkvc_plan_free(plan);
    }
    return err->code;
}
