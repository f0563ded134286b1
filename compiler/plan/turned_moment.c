#include "plan/turned_moment.h"

#include <complex.h>
#include <math.h>

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

/* The block of two pairs in a symmetric matrix [dim, dim], turned by random angles: R_a B R_b'. A 2
 * x 2 matrix is a rotation with a factor, which turns by the difference of the angles, plus a
 * reflection with a factor, which turns by their sum: what both factors are in the mean. */
static void turn_block(rotated_pair a, rotated_pair b, double complex difference,
                       double complex sum, int dim, double *moment)
{
    double block[2][2] = {{0}};
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            if (a.channel[r] >= 0 && b.channel[c] >= 0)
                block[r][c] = moment[a.channel[r] * dim + b.channel[c]];
    double complex turned =
        ((block[0][0] + block[1][1]) / 2 + I * (block[1][0] - block[0][1]) / 2) *
        difference;
    double complex mirrored =
        ((block[0][0] - block[1][1]) / 2 + I * (block[1][0] + block[0][1]) / 2) *
        sum;
    double out[2][2] = {{creal(turned) + creal(mirrored), cimag(mirrored) - cimag(turned)},
                        {cimag(turned) + cimag(mirrored), creal(turned) - creal(mirrored)}};
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++)
            if (a.channel[r] >= 0 && b.channel[c] >= 0) {
                moment[a.channel[r] * dim + b.channel[c]] = out[r][c];
                moment[b.channel[c] * dim + a.channel[r]] = out[r][c];
            }
}

void vqkvc_moment_spread(const vqkvc_geometry *g, double reach, double *moment)
{
    int pairs = (g->head_dim + 1) / 2;
    for (int i = 0; i < pairs; i++)
        for (int j = i; j < pairs; j++) {
            rotated_pair a = pair_of(g, i), b = pair_of(g, j);
            turn_block(a, b, mean_turn(a.freq - b.freq, reach), mean_turn(a.freq + b.freq, reach),
                       g->head_dim, moment);
        }
}

/* E[exp(i (at mod m) alpha + i (at mod n) beta)] over all `at`, m a divisor of n: at mod n is at
 * mod m plus a multiple of m that does not depend on it. */
static double complex mean_turns(double alpha, double m, double beta, double n)
{
    return mean_turn(alpha + beta, m) * mean_turn(m * beta, n / m);
}

/* The same, whichever divides the other. */
static double complex mean_of_spans(double alpha, double m, double beta, double n)
{
    return m <= n ? mean_turns(alpha, m, beta, n) : mean_turns(beta, n, alpha, m);
}

void vqkvc_moment_into_frame(const vqkvc_geometry *g, const vqkvc_key_frame *frame, double *moment)
{
    int pairs = (g->head_dim + 1) / 2;
    double span[VQKVC_MAX_HEAD_DIM / 2 + 1];
    for (int i = 0; i < pairs; i++) {
        uint8_t stretch = frame->stretch != NULL && i < g->n_rot / 2 ? frame->stretch[i] : 0;
        int tokens = vqkvc_frame_span(frame->block, stretch);
        span[i] = tokens > 0 ? tokens : VQKVC_FRAME_PERIOD;
    }
    for (int i = 0; i < pairs; i++)
        for (int j = i; j < pairs; j++) {
            rotated_pair a = pair_of(g, i), b = pair_of(g, j);
            turn_block(a, b, mean_of_spans(a.freq, span[i], -b.freq, span[j]),
                       mean_of_spans(a.freq, span[i], b.freq, span[j]), g->head_dim, moment);
        }
}
