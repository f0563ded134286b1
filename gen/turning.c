#include "gen/turning.h"

#include <stddef.h>

#include "plan/frame.h"

/* Channel 0 or 1 of a pair. */
static int channel_of(const vqkvc_geometry *g, int pair, int which)
{
    return g->rope_layout == VQKVC_ROPE_INTERLEAVED ? 2 * pair + which
                                                    : pair + which * (g->n_rot / 2);
}

void gen_lower_turning(const vqkvc_plan *plan, gen_turning *out)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, plan->block, plan->stretch, 0};
    int n_rot = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot, half = n_rot / 2, n = 0, at = 0;
    for (int turns = 0; turns < 2; turns++) {
        for (int i = 0; i < half; i++)
            if (vqkvc_frame_is_turning(g, &frame, channel_of(g, i, 0)) == turns)
                out->pairs[n++] = i;
        if (!turns)
            out->steady_pairs = n;
    }
    for (int turns = 0; turns < 2; turns++) {
        int from = turns ? out->steady_pairs : 0, to = turns ? half : out->steady_pairs;
        for (int which = 0; which < 2; which++)
            for (int i = from; i < to; i++)
                out->order[at++] = channel_of(g, out->pairs[i], which);
        for (int c = n_rot; c < g->head_dim && !turns; c++)
            out->order[at++] = c;
        if (!turns)
            out->steady_dims = at;
    }
    out->n_pairs = half;
}

void gen_mark_steady(const vqkvc_plan *plan, const vqkvc_stream *s, gen_stream *stream,
                     gen_run *runs)
{
    int n = vqkvc_frame_steady_runs(plan, s);
    const vqkvc_run *last = n > 0 ? &s->runs[n - 1] : NULL;
    stream->n_steady = last != NULL ? last->first + last->groups * last->width : 0;
    for (int r = 0; r < stream->n_runs; r++)
        runs[r].steady = runs[r].first < stream->n_steady;
}
