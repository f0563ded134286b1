/* turned_moment.h - second moments of vectors that are turned by random positions. */
#ifndef VQKVC_PLAN_TURNED_MOMENT_H
#define VQKVC_PLAN_TURNED_MOMENT_H

#include "plan/frame.h"

/* A symmetric matrix M [head_dim, head_dim] becomes E[R M R'], in place, R the rotation by a
 * position that is uniform over 0 .. reach - 1. */
void vqkvc_moment_spread(const vqkvc_geometry *g, double reach, double *moment);
/* The same, R the rotation that keys have in frame BLOCK, wherever they are in their spans. */
void vqkvc_moment_into_frame(const vqkvc_geometry *g, const vqkvc_key_frame *frame, double *moment);

#endif
