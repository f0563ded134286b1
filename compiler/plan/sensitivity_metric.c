/* Measured sensitivities and rotations, put into the metrics. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/calibration.h"

enum { POSITIONS = 64 /* that stand for all positions of the sample */ };

int vqkvc_sensitivity_first(int dim, int groups, int group)
{
    return (int)((int64_t)dim * group / groups);
}

vqkvc_code vqkvc_head_basis(const vqkvc_capture *c, vqkvc_member member, const vqkvc_metrics *m,
                            uint64_t seed, vqkvc_basis *basis, vqkvc_err *err)
{
    int dim = c->geometry.head_dim, h = member.layer * c->geometry.n_kv_heads + member.head;
    size_t values = (size_t)c->n_sample * (size_t)dim;
    vqkvc_key_frame frame = {.frame =
                                 member.part == VQKVC_PART_K ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST};
    float *x = vqkvc_alloc(values, sizeof *x, err);
    double *mean = vqkvc_alloc((size_t)dim, sizeof *mean, err);
    double *cov = vqkvc_alloc((size_t)dim * (size_t)dim, sizeof *cov, err);
    if (err->code == VQKVC_OK &&
        vqkvc_sample_members(c, &member, 1, &frame, seed, x, err) == VQKVC_OK &&
        vqkvc_fit_moments(c->n_sample, dim, x, (size_t)dim, NULL, mean, cov, err) == VQKVC_OK)
        vqkvc_fit_basis(dim, dim, cov, (member.part == VQKVC_PART_K ? m->k : m->v)[h],
                        VQKVC_METRIC_RIDGE, basis, err);
    free(x);
    free(mean);
    free(cov);
    return err->code;
}

/* metric [dim, dim] = enc diag(s) enc'. With all of s at 1 that is the metric as it was. */
static void weigh(const vqkvc_basis *b, const double *s, int groups, double *metric)
{
    int dim = b->d;
    memset(metric, 0, sizeof(double) * (size_t)dim * (size_t)dim);
    for (int group = 0; group < groups; group++)
        for (int j = vqkvc_sensitivity_first(dim, groups, group);
             j < vqkvc_sensitivity_first(dim, groups, group + 1); j++)
            for (int r = 0; r < dim; r++)
                for (int c = 0; c < dim; c++)
                    metric[r * dim + c] += s[group] * b->enc[r * dim + j] * b->enc[c * dim + j];
}

/* The geometric mean of one part's sensitivities, [heads * groups]. */
static double typical(const double *s, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += log(s[i] > DBL_MIN ? s[i] : DBL_MIN);
    return exp(sum / n);
}

void vqkvc_sensitivity_raise(const vqkvc_geometry *g, vqkvc_sensitivity s, double *raised)
{
    int n = g->n_layers * g->n_kv_heads * s.groups;
    for (int part = 0; part < 2; part++) {
        double least = typical(s.at + part * n, n);
        for (int i = part * n; i < (part + 1) * n; i++)
            raised[i] = s.at[i] > least ? s.at[i] : least;
    }
}

vqkvc_code vqkvc_metrics_weigh(const vqkvc_capture *c, const vqkvc_sensitivity *sensitivity,
                               uint64_t seed, vqkvc_metrics *m, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    for (int part = 0; part < 2; part++)
        for (int h = 0; h < g->n_layers * g->n_kv_heads; h++) {
            vqkvc_member member = {(vqkvc_part)part, h / g->n_kv_heads, h % g->n_kv_heads};
            vqkvc_basis basis = {0};
            size_t at =
                (size_t)(part * g->n_layers * g->n_kv_heads + h) * (size_t)sensitivity->groups;
            VQKVC_TRY(vqkvc_head_basis(c, member, m, seed, &basis, err));
            weigh(&basis, sensitivity->at + at, sensitivity->groups,
                  (part == VQKVC_PART_K ? m->k : m->v)[h]);
            vqkvc_basis_free(&basis);
        }
    return err->code;
}

void vqkvc_metrics_level(const vqkvc_capture *c, vqkvc_metrics *m)
{
    int dim = c->geometry.head_dim, heads = c->geometry.n_layers * c->geometry.n_kv_heads;
    for (int h = 0; h < 2 * heads; h++) {
        double *metric = h < heads ? m->k[h] : m->v[h - heads], trace = 0;
        for (int i = 0; i < dim; i++)
            trace += metric[i * dim + i];
        for (int i = 0; i < dim * dim; i++)
            metric[i] = i % (dim + 1) == 0 ? trace / dim : 0;
    }
}

/* metric = mean over n turns of all pairs, [n, pairs], of R metric R': rows are turned, then
 * columns. */
static void turn_metric(const vqkvc_geometry *g, int n, const double *turns, double *metric,
                        float *work, double *sum)
{
    int dim = g->head_dim;
    memset(sum, 0, sizeof *sum * (size_t)dim * (size_t)dim);
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < dim * dim; i++)
            work[i] = (float)metric[i];
        for (int pass = 0; pass < 2; pass++) {
            vqkvc_rope_rotate_pairs(g, turns + t * (g->n_rot / 2), work, dim);
            for (int i = 0; i < dim; i++)
                for (int j = 0; j < i; j++) {
                    float swap = work[i * dim + j];
                    work[i * dim + j] = work[j * dim + i];
                    work[j * dim + i] = swap;
                }
        }
        for (int i = 0; i < dim * dim; i++)
            sum[i] += (double)work[i] / n;
    }
    for (int i = 0; i < dim; i++) /* rounding must not unbalance it */
        for (int j = 0; j < dim; j++)
            metric[i * dim + j] = (sum[i * dim + j] + sum[j * dim + i]) / 2;
}

/* Turns of all pairs, in tokens, that stand for all that keys of a frame have: turns [POSITIONS,
 * pairs]; their number. */
static int turns_of(const vqkvc_capture *c, const vqkvc_key_frame *frame, double *turns)
{
    const vqkvc_geometry *g = &c->geometry;
    int pairs = g->n_rot / 2, n = 0, blocks = frame->frame == VQKVC_FRAME_BLOCK;
    int64_t range = blocks ? vqkvc_frame_period(g, frame) : c->n_sample, last = -1;
    for (int i = 0; i < POSITIONS; i++) {
        int64_t at = range * i / POSITIONS;
        /* Steps of a golden section meet spans of every length evenly. */
        if (blocks && range > frame->block)
            at = (int64_t)i * 648055 % range;
        if (at == last)
            continue;
        last = at;
        if (blocks)
            vqkvc_frame_turns(g, frame, at, turns + n * pairs);
        for (int p = 0; p < pairs && !blocks; p++)
            turns[n * pairs + p] = c->pos[at];
        n++;
    }
    return n;
}

vqkvc_code vqkvc_metrics_turn(const vqkvc_capture *c, const vqkvc_key_frame *frame,
                              vqkvc_metrics *m, vqkvc_err *err)
{
    const vqkvc_geometry *g = &c->geometry;
    if (frame->frame == VQKVC_FRAME_PRE || g->rope_layout == VQKVC_ROPE_NONE)
        return VQKVC_OK;
    size_t values = (size_t)g->head_dim * (size_t)g->head_dim;
    double *turns = vqkvc_alloc((size_t)POSITIONS * (size_t)(g->n_rot / 2) + 1, sizeof *turns, err);
    float *work = vqkvc_alloc(values, sizeof *work, err);
    double *sum = vqkvc_alloc(values, sizeof *sum, err);
    int n = err->code == VQKVC_OK ? turns_of(c, frame, turns) : 0;
    for (int h = 0; h < g->n_layers * g->n_kv_heads && err->code == VQKVC_OK; h++)
        turn_metric(g, n, turns, m->k[h], work, sum);
    free(turns);
    free(work);
    free(sum);
    return err->code;
}
