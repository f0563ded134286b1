#include "plan/calibration.h"

#include <complex.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* Of a dead head, next to the head that weighs most. */
#define DEAD_WEIGHT 1e-6

enum { STREAM_OFFSET = 101, ROWS = 256 };

/* Multiplies the rotated channels of n joined heads by YaRN's factor, as the model's rotation does.
 */
static void scale_rotated(const vqkvc_geometry *g, float *x, int n)
{
    int rotated = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot;
    for (int h = 0; h < n; h++)
        for (int j = 0; j < rotated; j++)
            x[h * g->head_dim + j] *= g->rope_mscale;
}

/* Turns the keys x [n_members, head_dim] of sampled token i into a frame. */
static void turn_key(const vqkvc_capture *c, const vqkvc_key_frame *frame, uint64_t seed, int i,
                     float *x, int n_members)
{
    const vqkvc_geometry *g = &c->geometry;
    double turns[VQKVC_MAX_HEAD_DIM / 2];
    vqkvc_rng rng = vqkvc_rng_make(seed, (uint64_t)i * 256 + STREAM_OFFSET);
    switch (frame->frame) {
    case VQKVC_FRAME_PRE:
        break;
    case VQKVC_FRAME_POST:
        vqkvc_rope_rotate(g, (double)c->pos[i], x, n_members);
        break;
    case VQKVC_FRAME_BLOCK:
        vqkvc_frame_turns(g, frame,
                          (int64_t)vqkvc_rng_below(&rng, (uint64_t)vqkvc_frame_period(g, frame)),
                          turns);
        vqkvc_rope_rotate_pairs(g, turns, x, n_members);
        break;
    }
}

vqkvc_code vqkvc_sample_members(const vqkvc_capture *c, const vqkvc_member *members, int n_members,
                                const vqkvc_key_frame *frame, uint64_t seed, float *x,
                                vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    vqkvc_kind kind = members[0].part == VQKVC_PART_K ? VQKVC_KEY : VQKVC_VALUE;
    int dim = g->head_dim, width = vqkvc_kind_width(g, kind), n_in = n_members * dim;
#pragma omp parallel for schedule(dynamic)
    for (int first = 0; first < c->n_sample; first += ROWS) {
        int n = c->n_sample - first < ROWS ? c->n_sample - first : ROWS;
        vqkvc_err mine = {0};
        float *row = vqkvc_alloc((size_t)n * (size_t)width, sizeof(float), &mine);
        if (row == NULL) {
#pragma omp critical
            vqkvc_fail(err, mine.code, "%s", mine.msg);
            continue;
        }
        for (int m = 0; m < n_members; m++) {
            vqkvc_capture_read(c, kind, members[m].layer, first, n, row);
            for (int i = 0; i < n; i++)
                memcpy(x + (size_t)(first + i) * (size_t)n_in + (size_t)(m * dim),
                       row + (size_t)i * (size_t)width + (size_t)(members[m].head * dim),
                       sizeof(float) * (size_t)dim);
        }
        for (int i = 0; i < n && kind == VQKVC_KEY; i++) {
            float *dst = x + (size_t)(first + i) * (size_t)n_in;
            turn_key(c, frame, seed, first + i, dst, n_members);
            scale_rotated(g, dst, n_members);
        }
        free(row);
    }
    return err->code;
}

/* ---- queries, turned ---- */

/* The channels of pair i and its radians a token; channels without a rotation come in pairs that
 * do not turn, and -1 stands for no channel. */
typedef struct rotated_pair {
    int channel[2];
    double freq;
} rotated_pair;

static rotated_pair pair_of(const vqkvc_geometry *g, int i)
{
    int rotated = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot / 2;
    if (i >= rotated) {
        int first = 2 * i;
        return (rotated_pair){{first, first + 1 < g->head_dim ? first + 1 : -1}, 0};
    }
    if (g->rope_layout == VQKVC_ROPE_HALVES)
        return (rotated_pair){{i, i + rotated}, g->rope_freq[i]};
    return (rotated_pair){{2 * i, 2 * i + 1}, g->rope_freq[i]};
}

/* E[exp(i angle d)] for d uniform over 0 .. n - 1. */
static double complex mean_turn(double angle, double n)
{
    double half = sin(angle / 2);
    if (fabs(half) < 1e-15)
        return 1;
    return sin(n * angle / 2) / (n * half) * cexp(I * (n - 1) * angle / 2);
}

/* The block of two pairs in a symmetric matrix [dim, dim], turned by a random distance: R_a B R_b'.
 * A 2 x 2 matrix is a rotation with a factor, which turns by the difference of the angles, plus a
 * reflection with a factor, which turns by their sum. */
static void turn_block(rotated_pair a, rotated_pair b, double reach, int dim, double *moment)
{
    double block[2][2] = {{0}};
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            if (a.channel[r] >= 0 && b.channel[c] >= 0)
                block[r][c] = moment[a.channel[r] * dim + b.channel[c]];
    double complex turned =
        ((block[0][0] + block[1][1]) / 2 + I * (block[1][0] - block[0][1]) / 2) *
        mean_turn(a.freq - b.freq, reach);
    double complex mirrored =
        ((block[0][0] - block[1][1]) / 2 + I * (block[1][0] + block[0][1]) / 2) *
        mean_turn(a.freq + b.freq, reach);
    double out[2][2] = {{creal(turned) + creal(mirrored), cimag(mirrored) - cimag(turned)},
                        {cimag(turned) + cimag(mirrored), creal(turned) - creal(mirrored)}};
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            if (a.channel[r] >= 0 && b.channel[c] >= 0) {
                moment[a.channel[r] * dim + b.channel[c]] = out[r][c];
                moment[b.channel[c] * dim + a.channel[r]] = out[r][c];
            }
}

/* E[q q'] of the queries of one KV head, each turned by a random distance, from the captured
 * moments of all tokens: the expectation over distances has a closed form. */
static void query_moment(const vqkvc_capture *c, int layer, int head, double *moment)
{
    const vqkvc_geometry *g = &c->geometry;
    int group = g->n_heads / g->n_kv_heads, dim = g->head_dim, pairs = (dim + 1) / 2;
    const vqkvc_stats *s = &c->stats[VQKVC_QUERY][layer];
    int rotated = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot;
    if (s->moment == NULL || s->n == 0) {
        for (int i = 0; i < dim * dim; i++) /* a dump without queries: any direction matters */
            moment[i] = i % (dim + 1) == 0;
        return;
    }
    size_t block = (size_t)dim * (size_t)dim;
    memset(moment, 0, block * sizeof *moment);
    for (int h = head * group; h < (head + 1) * group; h++)
        for (size_t i = 0; i < block; i++)
            moment[i] += s->moment[(size_t)h * block + i] / group;
    double reach = g->n_ctx_train > 0 ? g->n_ctx_train : 2048;
    for (int i = 0; i < pairs; i++)
        for (int j = i; j < pairs; j++)
            turn_block(pair_of(g, i), pair_of(g, j), reach, dim, moment);
    for (int i = 0; i < dim; i++)
        for (int j = 0; j < dim; j++)
            moment[i * dim + j] *= (i < rotated ? (double)g->rope_mscale : 1) *
                                   (j < rotated ? (double)g->rope_mscale : 1);
}

/* tr(metric Cov v) of one head, from the captured second moments of joined values. */
static double value_spread(const vqkvc_capture *c, int layer, int head, const double *metric)
{
    const vqkvc_stats *s = &c->stats[VQKVC_VALUE][layer];
    int dim = c->geometry.head_dim, width = c->geometry.n_kv_heads * dim, at = head * dim;
    double trace = 0;
    for (int i = 0; i < dim; i++)
        for (int j = 0; j < dim; j++)
            trace += metric[i * dim + j] *
                     (s->moment[(size_t)(at + i) * (size_t)width + (size_t)(at + j)] -
                      s->mean[at + i] * s->mean[at + j]);
    return trace > 0 ? trace : 1;
}

/* A head that no query meets, or whose values do not vary, has a metric of zero, in which nothing
 * could be fitted. It is coded all the same, in every direction alike and as if it hardly
 * mattered. */
static void revive_dead_heads(double **metrics, int heads, int dim)
{
    double largest = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int h = 0; h < heads; h++) {
            double trace = 0;
            for (int i = 0; i < dim; i++)
                trace += metrics[h][i * (dim + 1)];
            if (pass == 0)
                largest = trace > largest ? trace : largest;
            for (int i = 0; pass == 1 && trace <= 0 && i < dim; i++)
                metrics[h][i * (dim + 1)] = largest > 0 ? DEAD_WEIGHT * largest / dim : 1;
        }
}

vqkvc_code vqkvc_sample_metrics(const vqkvc_capture *c, vqkvc_arena *arena, vqkvc_metrics *m,
                                vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    int dim = g->head_dim, heads = g->n_layers * g->n_kv_heads;
    m->k = vqkvc_arena_alloc(arena, (size_t)heads, sizeof(double *), err);
    m->v = vqkvc_arena_alloc(arena, (size_t)heads, sizeof(double *), err);
    for (int h = 0; h < heads && err->code == VQKVC_OK; h++) {
        m->k[h] = vqkvc_arena_alloc(arena, (size_t)(dim * dim), sizeof(double), err);
        m->v[h] = vqkvc_arena_alloc(arena, (size_t)(dim * dim), sizeof(double), err);
    }
    if (err->code != VQKVC_OK)
        return err->code;
    for (int layer = 0; layer < g->n_layers; layer++)
        for (int head = 0; head < g->n_kv_heads; head++) {
            int h = layer * g->n_kv_heads + head;
            for (int i = 0; i < dim * dim; i++) {
                double w =
                    c->value_metric != NULL
                        ? (double)c->value_metric[(size_t)h * (size_t)(dim * dim) + (size_t)i]
                        : (double)(i % (dim + 1) == 0);
                m->v[h][i] = w;
            }
            query_moment(c, layer, head, m->k[h]);
            double spread = value_spread(c, layer, head, m->v[h]) / dim; /* scale^2 = 1 / dim */
            for (int i = 0; i < dim * dim; i++)
                m->k[h][i] *= spread;
        }
    revive_dead_heads(m->k, heads, dim);
    revive_dead_heads(m->v, heads, dim);
    return VQKVC_OK;
}
