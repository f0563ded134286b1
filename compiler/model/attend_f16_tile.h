/* attend_f16_tile.h - attention over binary16 a tile of tokens at a time, in terms of kernels that
 * an instruction set defines. */
#ifndef VQKVC_MODEL_ATTEND_F16_TILE_H
#define VQKVC_MODEL_ATTEND_F16_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "model/attend_tile.h"

/* What the next tile will want of n values from p on, or kernels would wait for memory. Into the
 * second-level cache: asked for into the first, on Zen 4, it takes twice as long in all. A prefetch
 * beyond the end does nothing. */
INLINE void ask(const uint16_t *p, int n)
{
    for (int i = 0; i < n; i += 32)
        __builtin_prefetch(p + i, 0, 2);
}

/* Two queries q0, q1 [d] against n keys [n, d]: scores s0, s1 [TILE]. An odd query comes twice. */
typedef void (*score_fn)(const uint16_t *k, int n, int d, const float *q0, const float *q1,
                         float *s0, float *s1);
/* o0, o1 [d] += p0, p1 [n] times values [n, d]. An odd query comes with o1 to be thrown away. */
typedef void (*sum_fn)(const uint16_t *v, int n, int d, const float *p0, const float *p1, float *o0,
                       float *o1);

/* The same for four queries q [4, d]: scores s [4, TILE], sums o [4, d] with weights p [4, TILE]. A
 * key or a value is unpacked once for all of them. NULL: not there. */
typedef void (*score4_fn)(const uint16_t *k, int n, int d, const float *q, float *s);
typedef void (*sum4_fn)(const uint16_t *v, int n, int d, const float *p, float *o);

/* The whole of it, in terms of two kernels and the same for four queries; inlined for each
 * instruction set, so that soften() is compiled for it too. scratch: q [group, d], spare [d], s
 * [group, TILE], m, l [group]. */
INLINE void attend_with(score_fn score, sum_fn sum, score4_fn score4, sum4_fn sum4,
                        const uint16_t *k, const uint16_t *v, int n_tokens, int group, int d,
                        const float *q, float *out, float scale, float *scratch)
{
    float *scaled = scratch, *spare = scaled + (size_t)group * d;
    float *s = spare + d, *m = s + (size_t)group * TILE, *l = m + group;
    for (int i = 0; i < group * d; i++)
        scaled[i] = q[i] * scale;
    memset(out, 0, (size_t)group * d * sizeof *out);
    memset(spare, 0, (size_t)d * sizeof *spare);
    for (int r = 0; r < group; r++) {
        m[r] = -1e30f;
        l[r] = 0;
    }
    for (int first = 0; first < n_tokens; first += TILE) {
        int n = n_tokens - first < TILE ? n_tokens - first : TILE;
        int r4 = score4 != NULL ? group / 4 * 4 : 0;
        for (int r = 0; r < r4; r += 4)
            score4(k + (size_t)first * d, n, d, scaled + (size_t)r * d, s + (size_t)r * TILE);
        for (int r = r4; r < group; r += 2) {
            int other = r + 1 < group ? r + 1 : r;
            score(k + (size_t)first * d, n, d, scaled + (size_t)r * d, scaled + (size_t)other * d,
                  s + (size_t)r * TILE, s + (size_t)other * TILE);
        }
        for (int r = 0; r < group; r++)
            soften(s + (size_t)r * TILE, n, d, &m[r], &l[r], out + (size_t)r * d);
        for (int r = 0; r < r4; r += 4)
            sum4(v + (size_t)first * d, n, d, s + (size_t)r * TILE, out + (size_t)r * d);
        for (int r = r4; r < group; r += 2) {
            int odd = r + 1 == group;
            sum(v + (size_t)first * d, n, d, s + (size_t)r * TILE,
                s + (size_t)(odd ? r : r + 1) * TILE, out + (size_t)r * d,
                odd ? spare : out + (size_t)(r + 1) * d);
        }
    }
    for (int r = 0; r < group; r++)
        for (int i = 0; i < d; i++)
            out[(size_t)r * d + i] /= l[r];
}

#endif
