/* runtime_check.h - what a cache is measured against: attention in double, and random numbers that
 * need no library. Included by programs that are compiled with an emitted header alone. */
#ifndef VQKVC_TESTS_RUNTIME_CHECK_H
#define VQKVC_TESTS_RUNTIME_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Relative error (L2, of one head's output) that any instruction set may show against double. */
#define ATTEND_BOUND 2e-5
/* The same where kernels work in bytes (nibble codes, AVX2, AVX-512 and NEON with dot products,
 * blocks of 64 and more): of any output, and root mean square over all, of the plans in toy_plans.h
 * (random codebooks of odd shapes show up to 1e-2). Random values nearly cancel in an output, so
 * that what is rounding of weights and score tables weighs more here than it does with a model's
 * values (vqkvc eval). */
#define ATTEND_BOUND_BYTES 3e-2
#define ATTEND_RMS_BYTES   5e-3

typedef struct check_rng {
    uint64_t state;
} check_rng;

static inline uint32_t check_next(check_rng *rng)
{
    rng->state = rng->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng->state >> 33);
}

/* Uniform in -1.7 .. 1.7: variance 1, nearly. */
static inline float check_uniform(check_rng *rng)
{
    return 3.4f * ((float)(check_next(rng) >> 7) / 16777216.0f - 0.5f);
}

static inline int check_below(check_rng *rng, int n)
{
    return (int)(check_next(rng) % (uint32_t)n);
}

/* Options of an attention, as in the header, for one query head. */
typedef struct check_attention {
    double scale, soft_cap;
    int window;
    const float *sink_logit;   /* or NULL */
    const unsigned char *keep; /* [tokens] 0: not attended; NULL: all are */
} check_attention;

/* One query head at `position` over tokens 0 .. position: q [dim], k, v [tokens, dim], out [dim].
 */
static inline void check_attend(const check_attention *a, int dim, int position, const float *q,
                                const float *k, const float *v, double *out)
{
    int first = a->window > 0 && position - a->window + 1 > 0 ? position - a->window + 1 : 0;
    double *score = (double *)malloc(sizeof *score * (size_t)(position + 1));
    double top = a->sink_logit != NULL ? (double)*a->sink_logit : -INFINITY, sum = 0;
    for (int t = first; t <= position; t++) {
        double s = 0;
        if (a->keep != NULL && !a->keep[t]) {
            score[t] = -INFINITY;
            continue;
        }
        for (int d = 0; d < dim; d++)
            s += (double)q[d] * (double)k[(size_t)t * (size_t)dim + (size_t)d];
        s *= a->scale;
        if (a->soft_cap > 0)
            s = a->soft_cap * tanh(s / a->soft_cap);
        score[t] = s;
        top = s > top ? s : top;
    }
    for (int d = 0; d < dim; d++)
        out[d] = 0;
    if (a->sink_logit != NULL)
        sum = exp((double)*a->sink_logit - top);
    for (int t = first; t <= position; t++) {
        double p = exp(score[t] - top);
        sum += p;
        for (int d = 0; d < dim; d++)
            out[d] += p * (double)v[(size_t)t * (size_t)dim + (size_t)d];
    }
    for (int d = 0; d < dim; d++)
        out[d] /= sum;
    free(score);
}

/* ||x - ref|| / ||ref||; infinite where x is not a number. */
static inline double check_error(int dim, const float *x, const double *ref)
{
    double error = 0, norm = 0;
    for (int d = 0; d < dim; d++) {
        error += ((double)x[d] - ref[d]) * ((double)x[d] - ref[d]);
        norm += ref[d] * ref[d];
    }
    error = sqrt(error / (norm > 0 ? norm : 1));
    return error == error ? error : INFINITY;
}

#endif
