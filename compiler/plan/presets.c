/* Schemes that need no calibration: the exact cache, llama.cpp's q8_0 and q4_0, and HIGGS. */
#include "plan/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "fit/fit.h"

enum {
    DEFAULT_SINK = 4,
    DEFAULT_RECENT = 32,
    DEFAULT_BLOCK = 64,
    QUANT_GROUP = 32, /* channels a scale in q8_0 and q4_0 */
    HIGGS_MAX_IN = 1024,
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

/* The Gaussian grid of 2^bits points in the plane as a shared book [1, 2 * 2^bits]; its index or
 * -1. */
static int add_gaussian_book(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    int n = 1 << bits, book = -1;
    double distortion;
    float *points = vqkvc_alloc((size_t)n * HIGGS_WIDTH, sizeof *points, err);
    if (points != NULL &&
        vqkvc_fit_gaussian_grid(HIGGS_WIDTH, n, 1, points, &distortion, err) == VQKVC_OK)
        book = vqkvc_plan_add_table(plan, 1, HIGGS_WIDTH * n, err, "gaussian grid %dx%d",
                                    HIGGS_WIDTH, n);
    for (int i = 0; book >= 0 && i < n * HIGGS_WIDTH; i++)
        plan->tables[book].f16[i % HIGGS_WIDTH * n + i / HIGGS_WIDTH] = vqkvc_f32_to_f16(points[i]);
    free(points);
    return book;
}

/* A stream over heads first .. first + n - 1 of one part of one layer. */
static vqkvc_code add_higgs_stream(vqkvc_plan *plan, vqkvc_part part, int layer, int first, int n,
                                   int bits, int book, vqkvc_err *err)
{
    vqkvc_member members[HIGGS_MAX_IN]; /* of one channel at least */
    for (int i = 0; i < n; i++)
        members[i] = (vqkvc_member){part, layer, first + i};
    char name[64];
    snprintf(name, sizeof name, "%s %d h%d-%d", vqkvc_part_word(part), layer, first, first + n - 1);
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, name, n, members, err);
    vqkvc_run *run = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    s->transform = VQKVC_TRANSFORM_HADAMARD;
    s->gain = VQKVC_GAIN_RMS;
    s->gain_bits = 16;
    s->gain_width = s->n_latents;
    run->coder = VQKVC_CODER_VQ;
    run->groups = s->n_latents / HIGGS_WIDTH;
    run->width = HIGGS_WIDTH;
    run->bits = bits;
    run->book = book;
    return VQKVC_OK;
}

/* All KV heads of a layer joined and cut into the largest Hadamard blocks that divide them. */
static vqkvc_code build_higgs(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    if (g->head_dim < HIGGS_WIDTH || (g->head_dim & (g->head_dim - 1)) != 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "it needs a head_dim that is a power of two, not %d", g->head_dim);
    int heads = 1; /* of one block */
    while (g->n_kv_heads % (2 * heads) == 0 && 2 * heads * g->head_dim <= HIGGS_MAX_IN)
        heads *= 2;
    int book = add_gaussian_book(plan, bits, err);
    if (book < 0)
        return err->code;
    for (int layer = 0; layer < g->n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
            for (int first = 0; first < g->n_kv_heads; first += heads)
                VQKVC_TRY(
                    add_higgs_stream(plan, (vqkvc_part)part, layer, first, heads, bits, book, err));
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
