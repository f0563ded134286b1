#include "plan/frame.h"

#include <stddef.h>

/* Radians that a pair turns, without and with bands: over its span at most, where that is more than
 * a block; and in a block, beyond which it is left as it is. KL divergence of the bundled model at
 * 2 bits, relative to spans of one block (128 tokens, 16 windows of 1024): 1.02 with 0.5 and 12
 * radians, 1.07 with 0.5 and 2 pi, 1.20 with 1 and 2 pi; with bands 1.32 to 1.35 (SPEED.md). */
static const struct {
    double in_span, in_block;
} most[2] = {{0.5, 12}, {1, 6.283185307179586}};

int vqkvc_frame_span(int block, uint8_t stretch)
{
    return stretch == VQKVC_STRETCH_ENDLESS ? 0 : block << stretch;
}

int64_t vqkvc_frame_base(const vqkvc_plan *plan, int pair, int64_t position)
{
    int span = vqkvc_frame_span(plan->block, plan->stretch[pair]);
    if (plan->stretch[pair] == 0) /* the block's own first token, wherever blocks begin */
        return position;
    return span > 0 ? position - (position - plan->n_sink) % span : 0;
}

int vqkvc_frame_is_turning(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int c)
{
    int half = g->n_rot / 2;
    if (frame->frame != VQKVC_FRAME_BLOCK || g->rope_layout == VQKVC_ROPE_NONE || c >= g->n_rot)
        return 0;
    int pair = g->rope_layout == VQKVC_ROPE_INTERLEAVED ? c / 2 : c % half;
    int span = vqkvc_frame_span(frame->block, frame->stretch != NULL ? frame->stretch[pair] : 0);
    return span > 0 && span < VQKVC_STEADY_SPAN;
}

double vqkvc_frame_turning_share(const vqkvc_geometry *g, const vqkvc_key_frame *frame)
{
    int n = 0;
    for (int c = 0; c < g->head_dim; c++)
        n += vqkvc_frame_is_turning(g, frame, c);
    return (double)n / g->head_dim;
}

int vqkvc_frame_is_steady(const vqkvc_plan *plan, const vqkvc_stream *s, int first, int n)
{
    const vqkvc_key_frame frame = {s->frame, plan->block, plan->stretch, 0};
    const vqkvc_geometry *g = &plan->geometry;
    int steady = 0;
    if (s->members[0].part != VQKVC_PART_K || s->frame != VQKVC_FRAME_BLOCK ||
        s->transform != VQKVC_TRANSFORM_BASIS)
        return 0;
    for (int i = 0; i < s->n_in; i++) {
        if (!vqkvc_frame_is_turning(g, &frame, i % g->head_dim)) {
            steady = 1;
            continue;
        }
        for (int j = first; j < first + n; j++)
            if (vqkvc_table_at(&plan->tables[s->dec], i, j) != 0)
                return 0;
    }
    return steady;
}

int vqkvc_frame_steady_runs(const vqkvc_plan *plan, const vqkvc_stream *s)
{
    int n = 0;
    while (n < s->n_runs &&
           vqkvc_frame_is_steady(plan, s, s->runs[n].first, s->runs[n].groups * s->runs[n].width))
        n++;
    return n;
}

void vqkvc_frame_separate(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int n,
                          double *moment)
{
    int turning[VQKVC_MAX_HEAD_DIM];
    if (!frame->bands)
        return;
    for (int c = 0; c < g->head_dim; c++)
        turning[c] = vqkvc_frame_is_turning(g, frame, c);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (turning[i % g->head_dim] != turning[j % g->head_dim])
                moment[(size_t)i * (size_t)n + (size_t)j] = 0;
}

void vqkvc_frame_stretch(const vqkvc_geometry *g, int block, int bands, uint8_t *stretch)
{
    for (int i = 0; i < g->n_rot / 2; i++) {
        int n = 0;
        if (g->rope_freq[i] * block > most[bands != 0].in_block) {
            stretch[i] = VQKVC_STRETCH_ENDLESS;
            continue;
        }
        while (block << n < VQKVC_STEADY_SPAN &&
               g->rope_freq[i] * (block << (n + 1)) <= most[bands != 0].in_span)
            n++;
        stretch[i] = (uint8_t)n;
    }
}

void vqkvc_frame_turns(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int64_t at,
                       double *turns)
{
    for (int i = 0; i < g->n_rot / 2; i++) {
        uint8_t stretch = frame->stretch != NULL ? frame->stretch[i] : 0;
        int span = vqkvc_frame_span(frame->block, stretch);
        turns[i] = (double)(span > 0 ? at % span : at);
    }
}

int64_t vqkvc_frame_period(const vqkvc_geometry *g, const vqkvc_key_frame *frame)
{
    for (int i = 0; i < g->n_rot / 2; i++)
        if (frame->stretch != NULL && frame->stretch[i] != 0)
            return 1 << 20;
    return frame->block;
}
