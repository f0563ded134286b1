/* turning.h - what of a head's keys and queries turns from block to block. */
#ifndef GEN_TURNING_H
#define GEN_TURNING_H

#include "gen/lower.h"

void gen_lower_turning(const vqkvc_plan *plan, gen_turning *out);
/* Marks the first runs of a stream, as far as their latents are steady. */
void gen_mark_steady(const vqkvc_plan *plan, const vqkvc_stream *s, gen_stream *stream,
                     gen_run *runs);

#endif
