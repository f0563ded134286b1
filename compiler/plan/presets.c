/* Schemes that need no calibration: the exact cache, llama.cpp's q8_0 and q4_0, and HIGGS. */
#include "plan/plan.h"

#include <stdio.h>
#include <string.h>

#include "plan/higgs.h"

enum {
    DEFAULT_SINK = 4,
    DEFAULT_RECENT = 32,
    DEFAULT_BLOCK = 64,
    QUANT_GROUP = 32, /* channels a scale in q8_0 and q4_0 */
    HIGGS_WIDTH = 2
};

/* A stream over one head, named "K 3 h1"; NULL with *err. */
static vqkvc_stream *add_head_stream(vqkvc_plan *plan, vqkvc_member member, vqkvc_err *err)
{
    char name[64];
    snprintf(name, sizeof name, "%s %d h%d", vqkvc_part_word(member.part), member.layer,
             member.head);
    return vqkvc_plan_add_stream(plan, name, 1, &member, err);
}

static vqkvc_code fill_f16(vqkvc_plan *plan, vqkvc_stream *s, vqkvc_err *err)
{
    vqkvc_run *run = vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    run->coder = VQKVC_CODER_F16;
    run->groups = s->n_latents;
    run->bits = 16;
    return VQKVC_OK;
}

/* Channels a scale: 32, or the largest divisor of head_dim below it. */
static int quant_group(int head_dim)
{
    int group = head_dim < QUANT_GROUP ? head_dim : QUANT_GROUP;
    while (head_dim % group != 0)
        group--;
    return group;
}

static vqkvc_code fill_uni(vqkvc_plan *plan, vqkvc_stream *s, vqkvc_gain gain, int bits,
                           vqkvc_err *err)
{
    s->gain = gain;
    s->gain_bits = 16;
    s->gain_width = quant_group(s->n_in);
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, s->n_latents / s->gain_width, err);
    for (int r = 0; runs != NULL && r < s->n_runs; r++) {
        runs[r].coder = VQKVC_CODER_UNI;
        runs[r].first = r * s->gain_width;
        runs[r].groups = s->gain_width;
        runs[r].bits = bits;
    }
    return runs == NULL ? err->code : VQKVC_OK;
}

static vqkvc_code fill_q8_0(vqkvc_plan *plan, vqkvc_stream *s, vqkvc_err *err)
{
    return fill_uni(plan, s, VQKVC_GAIN_ABSMAX, 8, err);
}

static vqkvc_code fill_q4_0(vqkvc_plan *plan, vqkvc_stream *s, vqkvc_err *err)
{
    return fill_uni(plan, s, VQKVC_GAIN_SIGNMAX, 4, err);
}

/* One stream for each head, finished by `fill`. */
static vqkvc_code build_per_head(vqkvc_plan *plan,
                                 vqkvc_code (*fill)(vqkvc_plan *, vqkvc_stream *, vqkvc_err *),
                                 vqkvc_err *err)
{
    for (int layer = 0; layer < plan->geometry.n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
            for (int head = 0; head < plan->geometry.n_kv_heads; head++) {
                vqkvc_member member = {(vqkvc_part)part, layer, head};
                vqkvc_stream *s = add_head_stream(plan, member, err);
                if (s == NULL || fill(plan, s, err) != VQKVC_OK)
                    return err->code;
            }
    return VQKVC_OK;
}

static vqkvc_code build_f16(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_per_head(plan, fill_f16, err);
}

static vqkvc_code build_q8_0(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_per_head(plan, fill_q8_0, err);
}

static vqkvc_code build_q4_0(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_per_head(plan, fill_q4_0, err);
}

/* ---- HIGGS ---- */

/* All KV heads of a layer joined and cut into the largest Hadamard blocks that divide them. */
static vqkvc_code build_higgs(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_higgs_grid grid = {.width = HIGGS_WIDTH, .bits = bits};
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

static vqkvc_code build_higgs2(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_higgs(plan, 4, err);
}

static vqkvc_code build_higgs3(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_higgs(plan, 6, err);
}

static vqkvc_code build_higgs4(vqkvc_plan *plan, vqkvc_err *err)
{
    return build_higgs(plan, 8, err);
}

/* ---- by name ---- */

static const struct preset {
    const char *scheme;
    vqkvc_code (*build)(vqkvc_plan *plan, vqkvc_err *err);
} PRESETS[] = {{"f16", build_f16},       {"q8_0", build_q8_0},     {"q4_0", build_q4_0},
               {"higgs2", build_higgs2}, {"higgs3", build_higgs3}, {"higgs4", build_higgs4}};

static const struct preset *find_preset(const char *scheme)
{
    for (size_t i = 0; i < sizeof PRESETS / sizeof PRESETS[0]; i++)
        if (strcmp(PRESETS[i].scheme, scheme) == 0)
            return &PRESETS[i];
    return NULL;
}

vqkvc_code vqkvc_plan_preset(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                             const vqkvc_window *window, vqkvc_err *err)
{
    *plan = (vqkvc_plan){0};
    const struct preset *preset = find_preset(scheme);
    if (preset == NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE, "no scheme is named %.40s", scheme);
    plan->geometry = *g;
    plan->n_sink = DEFAULT_SINK;
    plan->n_recent = DEFAULT_RECENT;
    plan->block = DEFAULT_BLOCK;
    snprintf(plan->scheme, sizeof plan->scheme, "%s", scheme);
    if (window != NULL) {
        plan->n_sink = window->n_sink > 0 ? window->n_sink : plan->n_sink;
        plan->n_recent = window->n_recent > 0 ? window->n_recent : plan->n_recent;
        plan->block = window->block > 0 ? window->block : plan->block;
    }
    if (preset->build(plan, err) != VQKVC_OK || vqkvc_plan_validate(plan, err) != VQKVC_OK) {
        vqkvc_err_prefix(err, "scheme %s", scheme);
        vqkvc_plan_free(plan);
    }
    return err->code;
}
