/* frame.h - which rotation coded keys carry, pair by pair.
 *
 * In frame BLOCK a key is turned back by the position of a first token, so that learned bases see
 * it nearly un-rotated, and queries turn back with it: of every pair of channels, the first token
 * of its span. That is the block, or with stretched spans a power of two of blocks. Slow pairs
 * hardly turn over many blocks: long spans lose little, and their part of a query is turned once
 * for many blocks. Fast pairs turn round and round within one block, so that turning them back
 * gains nothing: their span has no end, and they keep the rotation by their position. */
#ifndef VQKVC_PLAN_FRAME_H
#define VQKVC_PLAN_FRAME_H

#include <stdint.h>

#include "plan/plan.h"

/* A pair whose span reaches so far, or has no end, is steady: its part of a query is turned once
 * for so many tokens. The others are turning. */
enum { VQKVC_STEADY_SPAN = 1024 };

typedef struct vqkvc_key_frame {
    vqkvc_frame frame;
    int block;              /* BLOCK: tokens a block */
    const uint8_t *stretch; /* BLOCK: of each pair, as in vqkvc_plan; NULL: all 0 */
    int bands;              /* BLOCK: steady and turning channels have latents of their own */
} vqkvc_key_frame;

/* Tokens of a pair's span; 0: it has no end. */
int vqkvc_frame_span(int block, uint8_t stretch);
/* The position that a pair of a plan's block is turned back by; position: of its first token. */
int64_t vqkvc_frame_base(const vqkvc_plan *plan, int pair, int64_t position);
/* Whether channel c of a head is turned more often than every VQKVC_STEADY_SPAN tokens. */
int vqkvc_frame_is_turning(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int c);

/* The part of a head's channels that is turning. */
double vqkvc_frame_turning_share(const vqkvc_geometry *g, const vqkvc_key_frame *frame);
/* Whether a stream's latents first .. first + n - 1 are steady: keys in frame BLOCK, in a basis in
 * which no turning channel of any member has a part in them, though some channel is steady. */
int vqkvc_frame_is_steady(const vqkvc_plan *plan, const vqkvc_stream *s, int first, int n);

/* How many of a stream's first runs have steady latents. */
int vqkvc_frame_steady_runs(const vqkvc_plan *plan, const vqkvc_stream *s);

/* With bands, steady and turning channels become independent in a second moment of heads joined, in
 * place: moment [n, n], n a multiple of head_dim. A basis of it then has latents of either kind,
 * and what attention does for the steady ones it does once for many blocks. */
void vqkvc_frame_separate(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int n,
                          double *moment);

/* The stretches that `auto` gives the pairs of a geometry, [n_rot / 2]: spans as long as a pair
 * turns little, up to VQKVC_STEADY_SPAN; none end where it turns round and round in a block. With
 * bands more pairs are steady: what that loses is less than what bands gain in time. */
void vqkvc_frame_stretch(const vqkvc_geometry *g, int block, int bands, uint8_t *stretch);

/* The turns of all pairs, in tokens, of a key that is `at` tokens behind a place where all spans
 * begin: turns [n_rot / 2]. Over all `at` below the period they are even over every span; it is a
 * block, if no pair is stretched, else 2^20 tokens, which stand for endless spans. */
void vqkvc_frame_turns(const vqkvc_geometry *g, const vqkvc_key_frame *frame, int64_t at,
                       double *turns);
int64_t vqkvc_frame_period(const vqkvc_geometry *g, const vqkvc_key_frame *frame);

#endif
