/* preset_parts.h - what several presets are built from. */
#ifndef VQKVC_PLAN_PRESET_PARTS_H
#define VQKVC_PLAN_PRESET_PARTS_H

#include "plan/plan.h"

/* Empties *plan and gives it geometry, name and window: what `window` (may be NULL) says, and
 * where it says nothing `defaults`. */
void vqkvc_preset_begin(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                        const vqkvc_window *defaults, const vqkvc_window *window);

/* Streams over one head, "K 3 h1", or over all KV heads of a layer joined, "K 3"; NULL with *err.
 */
vqkvc_stream *vqkvc_preset_head(vqkvc_plan *plan, vqkvc_part part, int layer, int head,
                                vqkvc_err *err);
vqkvc_stream *vqkvc_preset_joined(vqkvc_plan *plan, vqkvc_part part, int layer, vqkvc_err *err);

/* Calls `fill` for a new stream of every KV head: layer by layer, K before V. */
vqkvc_code vqkvc_preset_heads(vqkvc_plan *plan,
                              vqkvc_code (*fill)(vqkvc_plan *plan, vqkvc_stream *s, const void *how,
                                                 vqkvc_err *err),
                              const void *how, vqkvc_err *err);

/* RANGE gains over `width` latents (a divisor of n_latents) and `tokens` tokens, and uniform codes:
 * bits[i] for gain group i. */
vqkvc_code vqkvc_preset_range(vqkvc_plan *plan, vqkvc_stream *s, int width, int tokens,
                              const uint8_t *bits, vqkvc_err *err);

/* The same with codes of the centres of 2^bits equal parts of the range, where uniform codes stand
 * for its ends as well: far better at 1 and 2 bits, where most values lie inside. */
vqkvc_code vqkvc_preset_centres(vqkvc_plan *plan, vqkvc_stream *s, int width, int tokens,
                                const uint8_t *bits, vqkvc_err *err);

/* Adds copies of the streams of one part of another plan with the tables that they use. */
vqkvc_code vqkvc_preset_copy(vqkvc_plan *plan, const vqkvc_plan *from, vqkvc_part part,
                             vqkvc_err *err);

/* Channels a scale: `most`, or the largest divisor of n below it. */
int vqkvc_preset_group(int n, int most);

#endif
