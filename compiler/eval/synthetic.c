#include "eval/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "plan/auto.h"
#include "plan/bands.h"
#include "plan/frame.h"

enum { MAX_RUNS = 5, UNIT = 64, LEAST_DIM = 16 };

/* Runs of one stream for every 64 channels of a head, widest codes first. */
typedef struct pattern {
    int n;
    struct {
        int groups, width, stages;
    } runs[MAX_RUNS];
} pattern;

/* What `auto` gave streams of the bundled model; n 0: no such stream. */
typedef struct recipe {
    const char *name;
    vqkvc_frame frame;         /* of keys */
    pattern own[2], shared[2]; /* K, V */
} recipe;

/* One layer of a plan to calibrate on: so many streams of a pattern for keys and for values. */
typedef struct mix {
    vqkvc_frame frame; /* of keys */
    struct {
        int streams;
        const pattern *pattern;
    } parts[2]; /* K, V */
} mix;

static const recipe recipes[] = {
    {"auto1",
     VQKVC_FRAME_POST,
     {{4, {{3, 1, 1}, {8, 2, 1}, {5, 4, 1}, {3, 8, 1}}}, {3, {{5, 2, 1}, {5, 4, 1}, {2, 8, 1}}}},
     {{0}}},
    {"auto2",
     VQKVC_FRAME_POST,
     {{3, {{20, 1, 1}, {14, 2, 1}, {4, 4, 1}}}, {4, {{8, 1, 1}, {12, 2, 1}, {3, 4, 1}, {1, 8, 1}}}},
     {{0}}},
    {"auto2b",
     VQKVC_FRAME_BLOCK,
     {{3, {{20, 1, 1}, {14, 2, 1}, {4, 4, 1}}}, {4, {{8, 1, 1}, {12, 2, 1}, {3, 4, 1}, {1, 8, 1}}}},
     {{0}}},
    {"auto3",
     VQKVC_FRAME_POST,
     {{2, {{52, 1, 1}, {6, 2, 1}}}, {3, {{22, 1, 1}, {14, 2, 1}, {3, 4, 1}}}},
     {{0}}},
    {"auto4",
     VQKVC_FRAME_POST,
     {{3, {{8, 1, 2}, {46, 1, 1}, {5, 2, 1}}}, {3, {{2, 1, 2}, {42, 1, 1}, {9, 2, 1}}}},
     {{0}}},
    {"auto2s",
     VQKVC_FRAME_BLOCK,
     {{2, {{24, 2, 1}, {4, 4, 1}}}, {3, {{17, 2, 1}, {4, 4, 1}, {1, 8, 1}}}},
     {{4, {{36, 1, 1}, {22, 2, 1}, {13, 4, 1}, {7, 8, 1}}},
      {4, {{8, 1, 1}, {25, 2, 1}, {7, 4, 1}, {3, 8, 1}}}}},
};

/* Codes of one width each, few codes, and codes of several widths, of which auto makes most. Every
 * run scales down to heads of LEAST_DIM channels. */
static const pattern ones = {1, {{64, 1, 1}}}, twos = {1, {{32, 2, 1}}}, fours = {1, {{16, 4, 1}}},
                     eights = {1, {{8, 8, 1}}}, few = {1, {{24, 1, 1}}},
                     fine = {3, {{16, 1, 1}, {8, 2, 1}, {4, 4, 1}}},
                     coarse = {3, {{8, 1, 1}, {4, 2, 1}, {4, 8, 1}}};

/* One thing at a time, beside as little as can be, so that each term of the model shows in the
 * difference of two layers. */
static const mix mixes[] = {
    {VQKVC_FRAME_POST, {{1, &few}, {1, &few}}},
    {VQKVC_FRAME_POST, {{1, &ones}, {1, &few}}},
    {VQKVC_FRAME_POST, {{1, &twos}, {1, &few}}},
    {VQKVC_FRAME_POST, {{1, &fours}, {1, &few}}},
    {VQKVC_FRAME_POST, {{1, &eights}, {1, &few}}},
    {VQKVC_FRAME_POST, {{3, &fine}, {1, &few}}},
    {VQKVC_FRAME_POST, {{1, &few}, {1, &ones}}},
    {VQKVC_FRAME_POST, {{1, &few}, {1, &twos}}},
    {VQKVC_FRAME_POST, {{1, &few}, {1, &fours}}},
    {VQKVC_FRAME_POST, {{1, &few}, {1, &eights}}},
    {VQKVC_FRAME_POST, {{1, &few}, {3, &coarse}}},
    {VQKVC_FRAME_BLOCK, {{1, &few}, {1, &few}}},
    {VQKVC_FRAME_BLOCK, {{1, &ones}, {1, &few}}},
    {VQKVC_FRAME_BLOCK, {{1, &twos}, {1, &few}}},
    {VQKVC_FRAME_BLOCK, {{1, &fours}, {1, &few}}},
    {VQKVC_FRAME_BLOCK, {{1, &eights}, {1, &few}}},
    {VQKVC_FRAME_BLOCK, {{3, &fine}, {2, &coarse}}},
    {VQKVC_FRAME_BLOCK, {{4, &coarse}, {2, &fine}}},
    {VQKVC_FRAME_PRE, {{1, &few}, {1, &few}}},
    {VQKVC_FRAME_PRE, {{1, &eights}, {1, &few}}},
    {VQKVC_FRAME_PRE, {{2, &fine}, {1, &few}}},
};

enum { N_MIXES = sizeof mixes / sizeof *mixes };

vqkvc_geometry vqkvc_synthetic_geometry(int n_layers, int n_kv_heads, int group, int head_dim)
{
    vqkvc_geometry g = {.arch = "llama",
                        .name = "synthetic",
                        .n_layers = n_layers,
                        .d_model = group * n_kv_heads * head_dim,
                        .n_heads = group * n_kv_heads,
                        .n_kv_heads = n_kv_heads,
                        .head_dim = head_dim,
                        .rope_layout = VQKVC_ROPE_HALVES,
                        .n_rot = head_dim,
                        .rope_mscale = 1};
    for (int i = 0; i < head_dim / 2; i++)
        g.rope_freq[i] = pow(500000, -2.0 * i / head_dim);
    return g;
}

/* A table of normal numbers of standard deviation `scale`; its index, or -1. */
static int add_table(vqkvc_plan *plan, int rows, int cols, double scale, vqkvc_err *err)
{
    int index = vqkvc_plan_add_table(plan, rows, cols, err, "synthetic");
    if (index < 0)
        return -1;
    vqkvc_rng rng = vqkvc_rng_make(7, (uint64_t)index);
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        plan->tables[index].f16[i] = vqkvc_f32_to_f16((float)(scale * vqkvc_rng_normal(&rng)));
    return index;
}

/* A basis in bytes from the same numbers; turning [n_latents], or NULL: with bands, which latents
 * are for turning channels alone, the others for steady ones. */
static int add_basis(vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_key_frame *frame,
                     const uint8_t *turning, vqkvc_err *err)
{
    vqkvc_plan scratch = {0};
    int basis = -1;
    int from = add_table(&scratch, s->n_in, s->n_latents, 1 / sqrt(s->n_in), err);
    if (from >= 0)
        basis = vqkvc_plan_add_bytes(plan, s->n_in, s->n_latents, plan->geometry.head_dim, err,
                                     "synthetic");
    for (int i = 0; basis >= 0 && turning != NULL && i < s->n_in * s->n_latents; i++)
        if (vqkvc_frame_is_turning(&plan->geometry, frame,
                                   i / s->n_latents % plan->geometry.head_dim) !=
            turning[i % s->n_latents])
            scratch.tables[from].f16[i] = 0;
    if (basis >= 0)
        vqkvc_table_round(&plan->tables[basis], scratch.tables[from].f16, (size_t)s->n_latents);
    vqkvc_plan_free(&scratch);
    return basis;
}

/* Groups at this head_dim, one at least. */
static int scaled(const vqkvc_geometry *g, int groups)
{
    int n = groups * g->head_dim / UNIT;
    return n > 0 ? n : 1;
}

/* The runs of a pattern at this head_dim, steady ones in front of turning ones where bands call for
 * it: turning latents are then spread evenly, as many of them as of channels. turning [n_latents]:
 * which latents of the stream these are; the caller frees it. */
static vqkvc_code arrange(const vqkvc_geometry *g, const pattern *p, const vqkvc_key_frame *frame,
                          vqkvc_bands *bands, uint8_t **turning, vqkvc_err *err)
{
    vqkvc_layout layout = {.n_runs = p->n};
    for (int i = 0; i < p->n; i++) {
        layout.runs[i] =
            (vqkvc_layout_run){p->runs[i].width, p->runs[i].stages, scaled(g, p->runs[i].groups)};
        layout.n_channels += layout.runs[i].groups * p->runs[i].width;
    }
    int n = layout.n_channels, channels = 0;
    for (int c = 0; c < g->head_dim; c++)
        channels += frame->bands && vqkvc_frame_is_turning(g, frame, c);
    uint8_t *by_rank = vqkvc_alloc((size_t)n, 1, err);
    *turning = vqkvc_alloc((size_t)n, 1, err);
    *bands = (vqkvc_bands){0};
    if (err->code == VQKVC_OK) {
        for (int i = 0; i < n; i++)
            by_rank[i] = (i + 1) * channels / g->head_dim > i * channels / g->head_dim;
        if (vqkvc_make_bands(&layout, n, by_rank, bands, err) == VQKVC_OK)
            for (int i = 0; i < n; i++)
                (*turning)[i] = by_rank[bands->order[i]];
    }
    free(by_rank);
    return err->code;
}

static vqkvc_code add_runs(vqkvc_plan *plan, vqkvc_stream *s, const vqkvc_bands *bands,
                           vqkvc_err *err)
{
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, bands->n_runs, err);
    if (runs == NULL)
        return err->code;
    for (int i = 0, at = 0; i < bands->n_runs; at += runs[i].groups * runs[i].width, i++) {
        int groups = bands->runs[i].groups, width = bands->runs[i].width;
        /* Where a code is shared by more channels they vary less: so does reverse water-filling. */
        double scale = exp2(4.0 / width - 2);
        int book = add_table(plan, groups * bands->runs[i].stages, width * 16, scale, err);
        runs[i] = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                              .first = at,
                              .groups = groups,
                              .width = width,
                              .bits = 4,
                              .stages = bands->runs[i].stages,
                              .book = book};
    }
    return err->code;
}

/* Tables of the basis for the last stream: its own, or, to keep a header small, those of an earlier
 * stream of its shape. */
static void add_transform(vqkvc_plan *plan, const vqkvc_key_frame *frame, const uint8_t *turning,
                          int alike, vqkvc_err *err)
{
    vqkvc_stream *s = &plan->streams[plan->n_streams - 1];
    for (const vqkvc_stream *other = plan->streams; alike && other < s; other++)
        if (other->n_in == s->n_in && other->n_latents == s->n_latents) {
            s->mean = other->mean;
            s->enc = other->enc;
            s->dec = other->dec;
            return;
        }
    s->mean = add_table(plan, 1, s->n_in, 0.1, err);
    s->enc = add_basis(plan, s, frame, turning, err);
    s->dec = add_basis(plan, s, frame, turning, err);
}

/* One stream over layers layer .. layer + n - 1 of a head. frame: of keys. */
static vqkvc_code add_stream(vqkvc_plan *plan, const vqkvc_key_frame *frame, const pattern *p,
                             vqkvc_part part, int layer, int n, int head, int alike, vqkvc_err *err)
{
    const vqkvc_key_frame values = {.frame = VQKVC_FRAME_POST};
    const vqkvc_key_frame *mine = part == VQKVC_PART_K ? frame : &values;
    vqkvc_member members[VQKVC_MAX_LAYERS];
    if (p->n == 0)
        return VQKVC_OK;
    for (int i = 0; i < n; i++)
        members[i] = (vqkvc_member){part, layer + i, head};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, n > 1 ? "shared" : "own", n, members, err);
    vqkvc_bands bands;
    uint8_t *turning;
    if (s == NULL)
        return err->code;
    if (arrange(&plan->geometry, p, mine, &bands, &turning, err) == VQKVC_OK) {
        s->frame = mine->frame;
        s->n_latents = 0;
        for (int i = 0; i < bands.n_runs; i++)
            s->n_latents += bands.runs[i].groups * bands.runs[i].width;
        s->transform = VQKVC_TRANSFORM_BASIS;
        add_transform(plan, mine, mine->bands ? turning : NULL, alike, err);
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 8;
        s->gain_width = s->n_latents;
        s->gain_lo = -6;
        s->gain_step = 0.0625f;
        if (err->code == VQKVC_OK)
            add_runs(plan, s, &bands, err);
    }
    free(turning);
    free(bands.order);
    return err->code;
}

static vqkvc_code add_streams(vqkvc_plan *plan, const recipe *r, vqkvc_spans spans, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int bands = spans == VQKVC_SPANS_BANDS;
    const vqkvc_key_frame frame = {r->frame, plan->block, plan->stretch, bands};
    if (spans != VQKVC_SPANS_BLOCK)
        vqkvc_frame_stretch(g, plan->block, bands, plan->stretch);
    for (int part = 0; part < 2; part++)
        for (int head = 0; head < g->n_kv_heads; head++) {
            VQKVC_TRY(add_stream(plan, &frame, &r->shared[part], (vqkvc_part)part, 0, g->n_layers,
                                 head, 0, err));
            for (int layer = 0; layer < g->n_layers; layer++)
                VQKVC_TRY(add_stream(plan, &frame, &r->own[part], (vqkvc_part)part, layer, 1, head,
                                     0, err));
        }
    return vqkvc_plan_validate(plan, err);
}

/* Whether `scheme` is the recipe, and with what spans: "auto2s", "auto2s-spans", "auto2s-bands". */
static int is_recipe(const recipe *r, const char *scheme, vqkvc_spans *spans)
{
    size_t n = strlen(r->name);
    if (strncmp(scheme, r->name, n) != 0)
        return 0;
    *spans = strcmp(scheme + n, "-bands") == 0   ? VQKVC_SPANS_BANDS
             : strcmp(scheme + n, "-spans") == 0 ? VQKVC_SPANS_LONG
                                                 : VQKVC_SPANS_BLOCK;
    return scheme[n] == '\0' || (*spans != VQKVC_SPANS_BLOCK && r->frame == VQKVC_FRAME_BLOCK);
}

vqkvc_code vqkvc_synthetic_plan(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                                int block, vqkvc_err *err)
{
    vqkvc_window window = {-1, -1, block};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        vqkvc_spans spans;
        if (!is_recipe(&recipes[i], scheme, &spans))
            continue;
        *plan = (vqkvc_plan){.geometry = *g, .n_sink = 4, .n_recent = 32, .block = block};
        if (block <= 0) /* as auto does it */
            plan->block = recipes[i].frame == VQKVC_FRAME_BLOCK ? 128 : 64;
        snprintf(plan->scheme, sizeof plan->scheme, "%s", scheme);
        if (add_streams(plan, &recipes[i], spans, err) != VQKVC_OK)
            vqkvc_plan_free(plan);
        return err->code;
    }
    return vqkvc_plan_preset(plan, g, scheme, &window, err);
}

static vqkvc_code add_mix(vqkvc_plan *plan, int layer, vqkvc_err *err)
{
    const mix *m = &mixes[layer];
    const vqkvc_key_frame frame = {.frame = m->frame, .block = plan->block};
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < m->parts[part].streams; i++)
            VQKVC_TRY(add_stream(plan, &frame, m->parts[part].pattern, (vqkvc_part)part, layer, 1,
                                 0, 1, err));
    return VQKVC_OK;
}

vqkvc_code vqkvc_synthetic_mixes(vqkvc_plan *plan, int group, int head_dim, int block,
                                 vqkvc_err *err)
{
    *plan = (vqkvc_plan){.geometry = vqkvc_synthetic_geometry(N_MIXES, 1, group, head_dim),
                         .scheme = "mixes",
                         .n_sink = 4,
                         .n_recent = 32,
                         .block = block};
    if (head_dim < LEAST_DIM)
        vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                   "the cost model of attention is measured for heads of %d channels or more, not "
                   "of %d",
                   LEAST_DIM, head_dim);
    for (int layer = 0; layer < N_MIXES && err->code == VQKVC_OK; layer++)
        if (add_mix(plan, layer, err) != VQKVC_OK)
            break;
    if (err->code == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
