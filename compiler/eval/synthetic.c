#include "eval/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "eval/recipes.h"
#include "plan/auto.h"
#include "plan/bands.h"
#include "plan/frame.h"

enum { LEAST_DIM = 16 };

typedef vqkvc_recipe_stream pattern;

/* One layer of a plan to calibrate on: so many streams of a pattern for keys and for values. */
typedef struct mix {
    vqkvc_frame frame; /* of keys */
    struct {
        int streams;
        const pattern *pattern;
    } parts[2]; /* K, V */
} mix;

/* Codes of one width each, few codes, and codes of several widths, of which auto makes most. Every
 * run scales down to heads of LEAST_DIM channels. */
static const pattern ones = {{0, 64, 0, 0, 0}}, twos = {{0, 0, 32, 0, 0}},
                     fours = {{0, 0, 0, 16, 0}}, eights = {{0, 0, 0, 0, 8}},
                     few = {{0, 24, 0, 0, 0}}, fine = {{0, 16, 8, 4, 0}},
                     coarse = {{0, 8, 4, 0, 4}};

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

/* A pattern for heads of another size, and for a stream that has `members` of the `whole` vectors
 * that the pattern was for: a group at least of what there is, and no more channels than inputs,
 * for which the widest codes go first. */
static vqkvc_layout scaled(const vqkvc_geometry *g, const pattern *p, int members, int whole)
{
    vqkvc_layout layout = {0};
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++) {
        vqkvc_layout_run run = vqkvc_allocate_option(o);
        run.groups = p->groups[o] * g->head_dim * members / (VQKVC_RECIPE_DIM * whole);
        if (run.groups == 0)
            run.groups = p->groups[o] > 0;
        if (run.groups > 0)
            layout.runs[layout.n_runs++] = run;
        layout.n_channels += run.groups * run.width;
    }
    while (layout.n_channels > members * g->head_dim) {
        vqkvc_layout_run *last = &layout.runs[layout.n_runs - 1];
        layout.n_channels -= last->width;
        layout.n_runs -= --last->groups == 0;
    }
    return layout;
}

/* Steady runs of a layout in front of turning ones where bands call for it: turning latents are
 * then spread evenly, as many of them as of channels. turning [n_latents]: which latents of the
 * stream these are; the caller frees it. */
static vqkvc_code arrange(const vqkvc_geometry *g, const vqkvc_layout *layout,
                          const vqkvc_key_frame *frame, vqkvc_bands *bands, uint8_t **turning,
                          vqkvc_err *err)
{
    int n = layout->n_channels, channels = 0;
    for (int c = 0; c < g->head_dim; c++)
        channels += frame->bands && vqkvc_frame_is_turning(g, frame, c);
    uint8_t *by_rank = vqkvc_alloc((size_t)n, 1, err);
    *turning = vqkvc_alloc((size_t)n, 1, err);
    *bands = (vqkvc_bands){0};
    if (err->code == VQKVC_OK) {
        for (int i = 0; i < n; i++)
            by_rank[i] = (i + 1) * channels / g->head_dim > i * channels / g->head_dim;
        if (vqkvc_make_bands(layout, n, by_rank, bands, err) == VQKVC_OK)
            for (int i = 0; i < n; i++)
                (*turning)[i] = by_rank[bands->order[i]];
    }
    free(by_rank);
    return err->code;
}

/* Codewords of a run, rank [groups * width]: where its channels stand among the stream's n by
 * strength. Streams of real models fall off from strong channels to weak ones, about geometrically;
 * a second stage codes what the first leaves. */
static int add_book(vqkvc_plan *plan, const vqkvc_layout_run *run, const int *rank, int n,
                    vqkvc_err *err)
{
    const double strongest = 3, weakest = 0.2, left = 0.125;
    int book = add_table(plan, run->groups * run->stages, run->width * 16, 1, err);
    if (book < 0)
        return -1;
    vqkvc_table *t = &plan->tables[book];
    for (int i = 0; i < t->rows * t->cols; i++) {
        int row = i / t->cols;
        double fall = (double)rank[row / run->stages * run->width] / n;
        double scale = strongest * pow(weakest / strongest, fall) * pow(left, row % run->stages);
        t->f16[i] = vqkvc_f32_to_f16((float)(scale * vqkvc_f16_to_f32(t->f16[i])));
    }
    return book;
}

static vqkvc_code add_runs(vqkvc_plan *plan, vqkvc_stream *s, const vqkvc_bands *bands,
                           vqkvc_err *err)
{
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, bands->n_runs, err);
    if (runs == NULL)
        return err->code;
    for (int i = 0, at = 0; i < bands->n_runs; at += runs[i].groups * runs[i].width, i++) {
        const vqkvc_layout_run *run = &bands->runs[i];
        runs[i] = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                              .first = at,
                              .groups = run->groups,
                              .width = run->width,
                              .bits = 4,
                              .stages = run->stages,
                              .book = add_book(plan, run, bands->order + at, s->n_latents, err)};
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

/* Which members a stream has: `heads` heads from `head` on of `layers` layers from `layer` on;
 * those of the recipe's stream are `whole`. */
typedef struct reach {
    int layer, layers, head, heads, whole;
} reach;

/* One stream, unless its pattern is empty. frame: of keys. alike: see add_transform(). */
static vqkvc_code add_stream(vqkvc_plan *plan, const vqkvc_key_frame *frame, const pattern *p,
                             vqkvc_part part, const reach *of, int alike, vqkvc_err *err)
{
    const vqkvc_key_frame values = {.frame = VQKVC_FRAME_POST};
    const vqkvc_key_frame *mine = part == VQKVC_PART_K ? frame : &values;
    vqkvc_member members[VQKVC_RECIPE_SHARING * VQKVC_RECIPE_HEADS];
    const int n = of->layers * of->heads;
    const vqkvc_layout layout = scaled(&plan->geometry, p, n, of->whole);
    if (layout.n_runs == 0)
        return VQKVC_OK;
    for (int i = 0; i < n; i++)
        members[i] = (vqkvc_member){part, of->layer + i / of->heads, of->head + i % of->heads};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, n > 1 ? "shared" : "own", n, members, err);
    vqkvc_bands bands;
    uint8_t *turning;
    if (s == NULL)
        return err->code;
    if (arrange(&plan->geometry, &layout, mine, &bands, &turning, err) == VQKVC_OK) {
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

static int at_most(int n, int most)
{
    return n < most ? n : most;
}

/* The recipe's layer for a layer of n: in turn, or where they are fewer, spread over all of them.
 */
static int recipe_layer(int layer, int n)
{
    enum { L = VQKVC_RECIPE_LAYERS };
    return n < L ? (2 * layer + 1) * L / (2 * n) : layer % L;
}

/* K or V: streams that layers and heads share, then their own. */
static vqkvc_code add_part(vqkvc_plan *plan, const vqkvc_recipe *r, const vqkvc_key_frame *frame,
                           vqkvc_part part, vqkvc_err *err)
{
    enum { H = VQKVC_RECIPE_HEADS, S = VQKVC_RECIPE_SHARING };
    const vqkvc_geometry *g = &plan->geometry;
    reach of;
    for (of.layer = 0; of.layer < g->n_layers; of.layer += S)
        for (of.head = 0; of.head < g->n_kv_heads; of.head += H) {
            of.layers = at_most(g->n_layers - of.layer, S);
            of.heads = at_most(g->n_kv_heads - of.head, H);
            of.whole = S * H;
            VQKVC_TRY(add_stream(plan, frame,
                                 &r->shared[part][recipe_layer(of.layer, g->n_layers) / S], part,
                                 &of, 0, err));
        }
    for (int i = 0; i < g->n_layers * g->n_kv_heads; i++) {
        of = (reach){i / g->n_kv_heads, 1, i % g->n_kv_heads, 1, 1};
        VQKVC_TRY(add_stream(plan, frame,
                             &r->own[part][recipe_layer(of.layer, g->n_layers) * H + of.head % H],
                             part, &of, 0, err));
    }
    return VQKVC_OK;
}

/* A recipe with another frame of keys than its own, as "auto2s-bands". */
typedef struct variant {
    const char *suffix;
    vqkvc_frame frame;
    vqkvc_spans spans;
} variant;

static const variant variants[] = {
    {"-spans", VQKVC_FRAME_BLOCK, VQKVC_SPANS_LONG},
    {"-bands", VQKVC_FRAME_BLOCK, VQKVC_SPANS_BANDS},
    {"-post", VQKVC_FRAME_POST, VQKVC_SPANS_BLOCK},
};

static vqkvc_code add_streams(vqkvc_plan *plan, const vqkvc_recipe *r, const variant *v,
                              vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int bands = v->spans == VQKVC_SPANS_BANDS;
    const vqkvc_key_frame frame = {v->frame, plan->block, plan->stretch, bands};
    if (v->spans != VQKVC_SPANS_BLOCK)
        vqkvc_frame_stretch(g, plan->block, bands, plan->stretch);
    VQKVC_TRY(add_part(plan, r, &frame, VQKVC_PART_K, err));
    VQKVC_TRY(add_part(plan, r, &frame, VQKVC_PART_V, err));
    return vqkvc_plan_validate(plan, err);
}

/* The recipe of a scheme and how it is varied, or NULL. Keys that are rotated by their position
 * have no variants. */
static const vqkvc_recipe *recipe_of(const char *scheme, variant *v)
{
    size_t n = strcspn(scheme, "-");
    const vqkvc_recipe *r = vqkvc_recipe_of(scheme, n);
    if (r == NULL)
        return NULL;
    *v = (variant){"", r->frame, VQKVC_SPANS_BLOCK};
    if (scheme[n] == '\0')
        return r;
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        if (strcmp(scheme + n, variants[i].suffix) == 0 && r->frame == VQKVC_FRAME_BLOCK) {
            *v = variants[i];
            return r;
        }
    return NULL;
}

vqkvc_code vqkvc_synthetic_plan(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                                int block, vqkvc_err *err)
{
    vqkvc_window window = {-1, -1, block};
    variant v;
    const vqkvc_recipe *r = recipe_of(scheme, &v);
    if (r == NULL)
        return vqkvc_plan_preset(plan, g, scheme, &window, err);
    *plan = (vqkvc_plan){.geometry = *g, .n_sink = 4, .n_recent = 32, .block = block};
    if (block <= 0) /* as auto does it */
        plan->block = v.frame == VQKVC_FRAME_BLOCK ? 128 : 64;
    snprintf(plan->scheme, sizeof plan->scheme, "%s", scheme);
    if (add_streams(plan, r, &v, err) != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}

static vqkvc_code add_mix(vqkvc_plan *plan, int layer, vqkvc_err *err)
{
    const mix *m = &mixes[layer];
    const reach of = {layer, 1, 0, 1, 1};
    const vqkvc_key_frame frame = {.frame = m->frame, .block = plan->block};
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < m->parts[part].streams; i++)
            VQKVC_TRY(
                add_stream(plan, &frame, m->parts[part].pattern, (vqkvc_part)part, &of, 1, err));
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
