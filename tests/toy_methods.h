/* toy_methods.h - toy plans whose vectors must be rebuilt, after the published methods that need
 * it: ranges (KIVI), shifts and outliers (NSNQuant, KVQuant), predictions (AQUA-KV). */
#ifndef VQKVC_TESTS_TOY_METHODS_H
#define VQKVC_TESTS_TOY_METHODS_H

#include "plan/frame.h"
#include "toy_streams.h"

static inline vqkvc_run *toy_set_runs(vqkvc_plan *plan, vqkvc_stream *s, int n)
{
    vqkvc_err err = {0};
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, n, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    return runs;
}

static inline void toy_set_gain(vqkvc_stream *s, vqkvc_gain gain, int width, int tokens)
{
    s->gain = gain;
    s->gain_bits = 16;
    s->gain_width = width;
    s->gain_tokens = tokens;
}

/* All latents by codebooks of width channels, a book for each stage. */
static inline void toy_books(vqkvc_plan *plan, vqkvc_stream *s, int width, int bits, int stages,
                             int beam)
{
    int n = s->gain == VQKVC_GAIN_NONE ? s->n_latents : s->gain_width;
    vqkvc_run *runs = toy_set_runs(plan, s, s->n_latents / n);
    int book = toy_table(plan, stages, width << bits, stages > 1 ? 0.7 : 0.9, "book");
    for (int r = 0; r < s->n_latents / n; r++)
        runs[r] = (vqkvc_run){VQKVC_CODER_VQ, r * n, n / width, width, bits, stages, beam, book};
}

static inline void toy_levels(vqkvc_plan *plan, vqkvc_stream *s, int bits)
{
    int n = s->gain == VQKVC_GAIN_NONE ? s->n_latents : s->gain_width;
    vqkvc_run *runs = toy_set_runs(plan, s, s->n_latents / n);
    for (int r = 0; r < s->n_latents / n; r++)
        runs[r] = (vqkvc_run){VQKVC_CODER_UNI, r * n, n, 1, bits, 1, 0, -1};
}

/* Layer 0: keys with a range for 32 tokens of each channel, in 2, 1 and 8 bits, values absorbed.
 * Layer 1: keys absorbed, values with a range for each token. */
static inline void toy_ranges(vqkvc_plan *plan, const toy_case *c)
{
    for (int head = 0; head < c->n_kv_heads; head++) {
        vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, 0, 1, head, "K by channel");
        toy_set_gain(s, VQKVC_GAIN_RANGE, 1, 32);
        toy_levels(plan, s, 2);
        for (int r = 16; r < s->n_runs; r++)
            s->runs[r].bits = r < 32 ? 1 : 8;
        s = toy_stream(plan, c, VQKVC_PART_V, 0, 1, head, "V absorbed");
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents / 2, 1);
        toy_levels(plan, s, 3);
        s = toy_stream(plan, c, VQKVC_PART_K, 1, 1, head, "K absorbed");
        s->frame = VQKVC_FRAME_POST;
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents / 4, 1);
        toy_levels(plan, s, 2);
        s = toy_stream(plan, c, VQKVC_PART_V, 1, 1, head, "V by token");
        toy_set_gain(s, VQKVC_GAIN_RANGE, s->n_latents / 3, 1);
        toy_books(plan, s, 2, 2, 1, 0);
    }
}

/* Keys whose wide codes hold little of their energy, as reverse water-filling leaves them: those of
 * four and eight channels meet queries in 8 bits, and the others, an odd number of each, in 16. */
static inline void toy_falling(vqkvc_plan *plan, const toy_case *c)
{
    static const struct {
        int groups, width;
        float scale;
    } pattern[] = {{5, 1, 1}, {3, 2, 0.6F}, {1, 6, 0.15F}, {2, 4, 0.2F}, {2, 8, 0.15F}};
    enum { N_RUNS = sizeof pattern / sizeof *pattern, LATENTS = 5 + 6 + 6 + 8 + 16 };
    vqkvc_err err = {0};
    for (int head = 0; head < c->n_kv_heads; head++) {
        vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, 0, 1, head, "K falling");
        s->n_latents = LATENTS;
        toy_basis(plan, s);
        toy_set_gain(s, VQKVC_GAIN_RMS, LATENTS, 1);
        vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, N_RUNS, &err);
        cr_assert_not_null(runs, "%s", err.msg);
        for (int r = 0, at = 0; r < N_RUNS; at += runs[r].groups * runs[r].width, r++) {
            int groups = pattern[r].groups, width = pattern[r].width;
            int book = toy_table(plan, groups, width * 16, (double)pattern[r].scale, "book");
            runs[r] = (vqkvc_run){VQKVC_CODER_VQ, at, groups, width, 4, 1, 0, book};
        }
        s = toy_stream(plan, c, VQKVC_PART_V, 0, 1, head, "V levels");
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents, 1);
        toy_levels(plan, s, 4);
    }
}

/* Few strong channels and many weak ones, an odd number of each width, so that all codes of two
 * channels and more meet queries in 8 bits. */
static inline void toy_weak(vqkvc_plan *plan, const toy_case *c)
{
    static const struct {
        int groups, width;
        float scale;
    } pattern[] = {{7, 1, 1}, {57, 2, 0.06F}, {3, 4, 0.05F}, {3, 8, 0.04F}};
    enum { N_RUNS = sizeof pattern / sizeof *pattern, LATENTS = 7 + 114 + 12 + 24 };
    vqkvc_err err = {0};
    for (int head = 0; head < c->n_kv_heads; head++) {
        vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, 0, 1, head, "K weak");
        s->n_latents = LATENTS;
        toy_basis(plan, s);
        if (plan->tables[s->enc].f16 != NULL) { /* queries are mapped in bytes as well */
            toy_bytes(plan, s->enc, c->head_dim);
            toy_bytes(plan, s->dec, c->head_dim);
        }
        toy_set_gain(s, VQKVC_GAIN_RMS, LATENTS, 1);
        vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, N_RUNS, &err);
        cr_assert_not_null(runs, "%s", err.msg);
        for (int r = 0, at = 0; r < N_RUNS; at += runs[r].groups * runs[r].width, r++) {
            int groups = pattern[r].groups, width = pattern[r].width;
            int book = toy_table(plan, groups, width * 16, (double)pattern[r].scale, "book");
            runs[r] = (vqkvc_run){VQKVC_CODER_VQ, at, groups, width, 4, 1, 0, book};
        }
        s = toy_stream(plan, c, VQKVC_PART_V, 0, 1, head, "V levels");
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents, 1);
        toy_levels(plan, s, 4);
    }
}

/* The same, but the first latents have a part in nothing. */
static inline void toy_idle(vqkvc_plan *plan, const toy_case *c)
{
    toy_falling(plan, c);
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        for (int at = 0; at < s->n_in * s->n_latents && s->dec >= 0; at++)
            for (int which = 0; which < 2 && at % s->n_latents < s->runs[0].groups; which++) {
                vqkvc_table *t = &plan->tables[which ? s->enc : s->dec];
                if (t->f16 != NULL)
                    t->f16[at] = 0;
                else
                    t->bytes[at] = 0;
            }
    }
}

/* Spans of every length: the pairs by turns. */
static inline void toy_stretch(vqkvc_plan *plan)
{
    static const uint8_t stretch[] = {VQKVC_STRETCH_ENDLESS, 0, 1, 3, 0, 2, 4};
    for (int i = 0; i < plan->geometry.n_rot / 2; i++)
        plan->stretch[i] = stretch[i % 7];
}

/* The last stream, of keys, gets a basis and nibbles of every width twice: steady latents, in which
 * turning channels have no part, then latents of all channels. */
static inline void toy_bands_stream(vqkvc_plan *plan, vqkvc_stream *s)
{
    static const struct {
        int groups, width;
        float scale;
    } pattern[] = {{4, 1, 1}, {3, 2, 0.6F}, {1, 6, 0.4F}, {1, 8, 0.15F}};
    enum { N_RUNS = sizeof pattern / sizeof *pattern, LATENTS = 4 + 6 + 6 + 8 };
    const vqkvc_geometry *g = &plan->geometry;
    const vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, plan->block, plan->stretch, 1};
    vqkvc_err err = {0};
    s->n_latents = 2 * LATENTS;
    toy_basis(plan, s);
    for (int which = 0; which < 2; which++) {
        vqkvc_table *t = &plan->tables[which ? s->enc : s->dec];
        for (int i = 0; i < s->n_in; i++)
            for (int j = 0; j < LATENTS && vqkvc_frame_is_turning(g, &frame, i % g->head_dim); j++)
                if (t->f16 != NULL)
                    t->f16[i * t->cols + j] = 0;
                else
                    t->bytes[i * t->cols + j] = 0;
    }
    toy_set_gain(s, VQKVC_GAIN_RMS, 2 * LATENTS, 1);
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, 2 * N_RUNS, &err);
    cr_assert_not_null(runs, "%s", err.msg);
    for (int r = 0, at = 0; r < 2 * N_RUNS; at += runs[r].groups * runs[r].width, r++) {
        int groups = pattern[r % N_RUNS].groups, width = pattern[r % N_RUNS].width;
        int book = toy_table(plan, groups, width * 16, (double)pattern[r % N_RUNS].scale, "book");
        runs[r] = (vqkvc_run){VQKVC_CODER_VQ, at, groups, width, 4, 1, 0, book};
    }
}

/* Keys in spans, their latents in bands: a stream of all layers, and one of each layer. */
static inline void toy_bands(vqkvc_plan *plan, const toy_case *c)
{
    toy_stretch(plan);
    for (int head = 0; head < c->n_kv_heads; head++) {
        toy_bands_stream(plan, toy_stream(plan, c, VQKVC_PART_K, 0, c->n_layers, head, "K bands"));
        for (int layer = 0; layer < c->n_layers; layer++) {
            toy_bands_stream(plan, toy_stream(plan, c, VQKVC_PART_K, layer, 1, head, "K own"));
            /* exact: over so many tokens of noise sums in bytes would be most of the error */
            vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_V, layer, 1, head, "V as it is");
            toy_set_runs(plan, s, 1)[0] =
                (vqkvc_run){VQKVC_CODER_F16, 0, s->n_latents, 1, 16, 1, 0, -1};
        }
    }
}

/* The same without bases, so that queries are turned whole for every block. */
static inline void toy_spans(vqkvc_plan *plan, const toy_case *c)
{
    toy_stretch(plan);
    for (int i = 0; i < 2 * c->n_kv_heads * c->n_layers; i++) {
        vqkvc_stream *s = toy_stream(plan, c, i % 2 == 0 ? VQKVC_PART_K : VQKVC_PART_V,
                                     i / 2 % c->n_layers, 1, i / 2 / c->n_layers, "levels");
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents, 1);
        toy_levels(plan, s, 4);
    }
}

/* Keys in a Hadamard basis with shifts over whole blocks, codes of 8 bits over 8 channels, and
 * outliers by a table; values in a learned basis with a beam, two groups, and outliers by the
 * token's mean. */
static inline void toy_shifts(vqkvc_plan *plan, const toy_case *c)
{
    for (int layer = 0; layer < c->n_layers; layer++) {
        vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, layer, 1, 0, "K shifted");
        s->transform = VQKVC_TRANSFORM_HADAMARD;
        toy_set_gain(s, VQKVC_GAIN_NSN, s->n_latents, c->block);
        s->outliers = 2;
        s->spread = toy_table(plan, 2, s->n_latents, 0.3, "spread");
        for (int i = 0; i < s->n_latents; i++)
            plan->tables[s->spread].f16[s->n_latents + i] = vqkvc_f32_to_f16((float)(1 + i % 3));
        toy_books(plan, s, 8, 8, 1, 0);
        s = toy_stream(plan, c, VQKVC_PART_V, layer, 1, 0, "V shifted");
        s->n_latents = 24;
        toy_basis(plan, s);
        toy_set_gain(s, VQKVC_GAIN_NSN, 12, 16);
        s->outliers = 1;
        toy_books(plan, s, 4, 4, 3, 4);
    }
}

/* Keys of all layers in one stream of more latents than a byte can name, values with ranges; both
 * with outliers, and a second stream that codes what is left by a beam over 6 bits. */
static inline void toy_outliers(vqkvc_plan *plan, const toy_case *c)
{
    vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, 0, c->n_layers, 0, "K kept");
    toy_set_gain(s, VQKVC_GAIN_ABSMAX, 32, 1);
    s->gain_bits = 8;
    s->gain_lo = -8;
    s->gain_step = 0.05f;
    s->outliers = 3;
    toy_levels(plan, s, 4);
    for (int layer = 0; layer < c->n_layers; layer++) {
        s = toy_stream(plan, c, VQKVC_PART_K, layer, 1, 0, "K rest");
        toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents, 1);
        toy_books(plan, s, 4, 6, 2, 3);
        s = toy_stream(plan, c, VQKVC_PART_V, layer, 1, 0, "V kept");
        toy_set_gain(s, VQKVC_GAIN_RANGE, 48, 16);
        s->outliers = 2;
        toy_levels(plan, s, 5);
    }
}

/* W x + b for a target: maps that keep about half of a vector's length. */
static inline vqkvc_prediction *toy_predict(vqkvc_plan *plan, vqkvc_part part, int layer, int rows,
                                            int cols)
{
    vqkvc_err err = {0};
    vqkvc_geometry *g = &plan->geometry;
    int d = g->n_kv_heads * g->head_dim;
    vqkvc_prediction *p = vqkvc_plan_add_prediction(plan, part, layer, &err);
    cr_assert_not_null(p, "%s", err.msg);
    p->bias = toy_table(plan, 1, d, 0.2, "bias");
    p->map = toy_table(plan, rows, cols, 0.5 / sqrt(rows), "map");
    return p;
}

/* Three layers: keys of 1 in full from those of 0, values of 1 by rank 7 from the keys beside them
 * and the values below, keys of 2 head by head, values of 2 in full from two sources. Layer 0 has a
 * stream of both heads; keys of 2 are coded in two streams, values by ranges. */
static inline void toy_chain(vqkvc_plan *plan, const toy_case *c)
{
    int d = c->n_kv_heads * c->head_dim;
    vqkvc_err err = {0};
    vqkvc_member both[2] = {{VQKVC_PART_K, 0, 0}, {VQKVC_PART_K, 0, 1}};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, "K 0 joint", 2, both, &err);
    cr_assert_not_null(s, "%s", err.msg);
    s->frame = c->frame;
    s->n_latents = s->n_in;
    s->mean = toy_table(plan, 1, s->n_in, 0.3, "mean");
    toy_set_gain(s, VQKVC_GAIN_RMS, s->n_in, 1);
    toy_books(plan, s, 2, 4, 2, 0);
    for (int slot = 1; slot < 2 * c->n_layers; slot++)
        for (int head = 0; head < c->n_kv_heads; head++) {
            vqkvc_part part = slot % 2 ? VQKVC_PART_V : VQKVC_PART_K;
            s = toy_stream(plan, c, part, slot / 2, 1, head, "chained");
            toy_set_gain(s, part == VQKVC_PART_V ? VQKVC_GAIN_RANGE : VQKVC_GAIN_RMS, c->head_dim,
                         1);
            if (part == VQKVC_PART_V)
                toy_levels(plan, s, 4);
            else
                toy_books(plan, s, 4, 6, 1, 0);
            if (slot != 4)
                continue;
            s = toy_stream(plan, c, part, slot / 2, 1, head, "left");
            toy_set_gain(s, VQKVC_GAIN_RMS, c->head_dim, 1);
            toy_books(plan, s, 4, 4, 1, 0);
        }
    vqkvc_prediction *p = toy_predict(plan, VQKVC_PART_K, 1, d, d);
    p->n_sources = 1;
    p->sources[0] = (vqkvc_prediction_source){VQKVC_PART_K, 0};
    p = toy_predict(plan, VQKVC_PART_V, 1, 2 * d, 7);
    p->out = toy_table(plan, 7, d, 0.5, "out");
    p->n_sources = 2;
    p->sources[0] = (vqkvc_prediction_source){VQKVC_PART_K, 1};
    p->sources[1] = (vqkvc_prediction_source){VQKVC_PART_V, 0};
    p = toy_predict(plan, VQKVC_PART_K, 2, d, c->head_dim);
    p->per_head = 1;
    p->n_sources = 1;
    p->sources[0] = (vqkvc_prediction_source){VQKVC_PART_K, 1};
    p = toy_predict(plan, VQKVC_PART_V, 2, 2 * d, d);
    p->n_sources = 2;
    p->sources[0] = (vqkvc_prediction_source){VQKVC_PART_K, 2};
    p->sources[1] = (vqkvc_prediction_source){VQKVC_PART_V, 1};
}

#endif
