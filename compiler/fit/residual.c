/* residual.c - codebooks in stages: k-means on what the stages before have left, then all of them
 * together. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "fit/checks.h"
#include "fit/fit.h"

/* The first stages hold the structure; what later ones code is close to noise, where Lloyd's
 * iterations soon stop to pay. */
enum { FIRST_STAGES = 4, FIRST_ITERS = 12, LATER_ITERS = 4 };

typedef struct residual {
    const vqkvc_residual_params *p;
    int n, d, k;
    const float *x;  /* [n, d] */
    float *rest;     /* [n, d] what all stages so far have left */
    float *books;    /* [stages, k, d], every value a binary16 */
    float *trial;    /* the same, of a refinement that may be given up */
    int32_t *codes;  /* [stages, n] */
    double *sum;     /* [k, d] */
    int32_t *counts; /* [k] */
} residual;

static void residual_free(residual *r)
{
    free(r->rest);
    free(r->books);
    free(r->trial);
    free(r->codes);
    free(r->sum);
    free(r->counts);
}

static vqkvc_code residual_alloc(residual *r, vqkvc_err *err)
{
    size_t points = (size_t)r->n * (size_t)r->d, words = (size_t)r->k * (size_t)r->d;
    size_t stages = (size_t)r->p->stages;
    r->rest = vqkvc_alloc(points, sizeof *r->rest, err);
    r->books = vqkvc_alloc(stages * words, sizeof *r->books, err);
    r->trial = vqkvc_alloc(stages * words, sizeof *r->trial, err);
    r->codes = vqkvc_alloc(stages * (size_t)r->n, sizeof *r->codes, err);
    r->sum = vqkvc_alloc(words, sizeof *r->sum, err);
    r->counts = vqkvc_alloc((size_t)r->k, sizeof *r->counts, err);
    return err->code;
}

static void round_to_half(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[i]));
}

static double mean_square(const residual *r)
{
    double sum = 0;
    for (size_t i = 0; i < (size_t)r->n * (size_t)r->d; i++)
        sum += (double)r->rest[i] * (double)r->rest[i];
    return sum / r->n;
}

/* Codes of one stage of `books` for what is left, which is then taken off. */
static void code_stage(residual *r, const float *books, int stage)
{
    size_t d = (size_t)r->d;
    const float *book = books + (size_t)stage * (size_t)r->k * d;
    int32_t *codes = r->codes + (size_t)stage * (size_t)r->n;
    vqkvc_kmeans_assign(r->n, r->d, r->rest, d, r->k, book, codes);
    for (size_t i = 0; i < (size_t)r->n; i++)
        for (size_t j = 0; j < d; j++)
            r->rest[i * d + j] -= book[(size_t)codes[i] * d + j];
}

/* Codes all points stage by stage; returns what is left. */
static double code_all(residual *r, const float *books)
{
    memcpy(r->rest, r->x, (size_t)r->n * (size_t)r->d * sizeof *r->rest);
    for (int stage = 0; stage < r->p->stages; stage++)
        code_stage(r, books, stage);
    return mean_square(r);
}

static vqkvc_code fit_stages(residual *r, double *objective, vqkvc_err *err)
{
    size_t words = (size_t)r->k * (size_t)r->d;
    memcpy(r->rest, r->x, (size_t)r->n * (size_t)r->d * sizeof *r->rest);
    objective[0] = mean_square(r);
    for (int stage = 0; stage < r->p->stages; stage++) {
        float *book = r->books + (size_t)stage * words;
        double ignored;
        vqkvc_kmeans_params params = {.k = r->k,
                                      .max_iters = stage < FIRST_STAGES ? FIRST_ITERS : LATER_ITERS,
                                      .seed = r->p->seed + (uint64_t)stage,
                                      .seed_by_rows = 1};
        if (vqkvc_fit_kmeans(r->n, r->d, r->rest, (size_t)r->d, NULL, &params, book, NULL, &ignored,
                             err) != VQKVC_OK) {
            vqkvc_err_prefix(err, "stage %d", stage);
            return err->code;
        }
        round_to_half(book, words);
        code_stage(r, r->books, stage);
        objective[stage + 1] = mean_square(r);
    }
    return VQKVC_OK;
}

/* Moves every codeword of one stage by the mean of what is left of the points that have it, codes
 * and the other stages as they are: the least squares of that stage. */
static void refine_stage(residual *r, int stage)
{
    size_t d = (size_t)r->d, words = (size_t)r->k * d;
    float *book = r->trial + (size_t)stage * words;
    const float *before = r->books + (size_t)stage * words;
    const int32_t *codes = r->codes + (size_t)stage * (size_t)r->n;
    memset(r->sum, 0, words * sizeof *r->sum);
    memset(r->counts, 0, (size_t)r->k * sizeof *r->counts);
    for (size_t i = 0; i < (size_t)r->n; i++) {
        double *sum = r->sum + (size_t)codes[i] * d;
        r->counts[codes[i]]++;
        for (size_t j = 0; j < d; j++)
            sum[j] += (double)r->rest[i * d + j];
    }
    for (size_t c = 0; c < words; c++)
        if (r->counts[c / d] > 0)
            book[c] = before[c] + (float)(r->sum[c] / r->counts[c / d]);
    round_to_half(book, words);
    for (size_t i = 0; i < (size_t)r->n; i++) {
        size_t at = (size_t)codes[i] * d;
        for (size_t j = 0; j < d; j++)
            r->rest[i * d + j] += before[at + j] - book[at + j];
    }
}

/* Refines all stages and codes afresh, as the encoder will. Since other codebooks mean other codes,
 * what is left may then be more than before: the refinement is given up in that case. */
static void refine(residual *r, double *objective)
{
    size_t bytes = (size_t)r->p->stages * (size_t)r->k * (size_t)r->d * sizeof *r->trial;
    objective[1] = objective[0];
    memcpy(r->trial, r->books, bytes);
    for (int stage = 0; stage < r->p->stages; stage++)
        refine_stage(r, stage);
    double left = code_all(r, r->trial);
    if (left < objective[0]) {
        objective[1] = left;
        memcpy(r->books, r->trial, bytes);
    }
}

/* The plan's layout: channel by channel the values of all codewords. */
static void write_books(const residual *r, uint16_t *books)
{
    size_t d = (size_t)r->d, k = (size_t)r->k;
    for (size_t stage = 0; stage < (size_t)r->p->stages; stage++)
        for (size_t c = 0; c < k; c++)
            for (size_t j = 0; j < d; j++)
                books[(stage * d + j) * k + c] =
                    vqkvc_f32_to_f16(r->books[(stage * k + c) * d + j]);
}

vqkvc_code vqkvc_fit_residual(int n, int d, const float *x, const vqkvc_residual_params *params,
                              uint16_t *books, double *objective, vqkvc_err *err)
{
    if (n < 1 || d < 1 || params->stages < 1 || params->bits < 1 || params->bits > 16 ||
        params->sweeps < 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "residual codebooks of %d x %d samples: %d stages, %d bits, %d sweeps", n,
                          d, params->stages, params->bits, params->sweeps);
    residual r = {.p = params, .n = n, .d = d, .k = 1 << params->bits, .x = x};
    if (residual_alloc(&r, err) == VQKVC_OK && fit_stages(&r, objective, err) == VQKVC_OK) {
        int at = params->stages;
        for (int sweep = 0; sweep < params->sweeps; sweep++, at++) {
            if (sweep == 0 || objective[at] < objective[at - 1])
                refine(&r, objective + at);
            else
                objective[at + 1] = objective[at];
        }
        write_books(&r, books);
    }
    residual_free(&r);
    return err->code;
}
