/* kernel_bench.h - what kernel_check.c and kernel_bytes.h check kernels with: operands, the same in
 * double, errors and times. Included behind an emitted header of prefix toy_kv. */
#ifndef VQKVC_TESTS_KERNEL_BENCH_H
#define VQKVC_TESTS_KERNEL_BENCH_H

#include <stdio.h>
#include <time.h>

#include "runtime_check.h"

enum {
    MAX_ROWS = TOY_KV__MAX_ROWS,
    BLOCKS = 4,
    BLOCK = TOY_KV_BLOCK,
    DIM = TOY_KV_HEAD_DIM,
    N_RUNS = sizeof toy_kv__runs / sizeof *toy_kv__runs,
    MAX_PLANES = 512,
    ROOM = 1 << 17, /* numbers of any operand */
    ROUNDS = 9,
    REPEATS = 100
};

/* What errors are allowed: their root mean square as a part of the results', and of the worst so
 * many times that. */
#define FP32  2e-6                              /* rounding of fp32 alone */
#define WORDS 5e-4                              /* operands of 16 bits */
#define ROUND 2e-3                              /* the same, products rounded to 16 bits (AVX2) */
#define BYTES 2e-2                              /* operands of 8 bits, of 7 on AVX2 */
#define REST  1e-3                              /* the same with what their rounding leaves */
#define TABLE (3 * (double)TOY_KV__TABLE_ERROR) /* score tables within their tolerance */
#define WORST 10

typedef struct bench {
    const toy_kv__ops *ops;
    const toy_kv__run *run; /* of kernels over codes; NULL: they are done */
    int timed, rows, used;  /* used: the kernel takes this run */
    double seconds, bound;
    double worst, error, square; /* error, square: sums of squares */
    long n;
    check_rng rng;
    unsigned char *codes; /* [BLOCKS, MAX_PLANES * BLOCK / 2] */
    const unsigned char *block[BLOCKS];
    float *x, *y, *z, *got; /* [ROOM] */
    unsigned char *a, *b;   /* [ROOM] bytes for operands that kernels pack */
    toy_kv__asked asked;
} bench;

/* Runs a call once, or so often that it can be timed; what it adds to is wrong after the latter. */
#define CALL(w, call)                                                                              \
    do {                                                                                           \
        double least = 1e9;                                                                        \
        for (int round = 0; round < ((w)->timed ? ROUNDS : 1); round++) {                          \
            double began = now();                                                                  \
            for (int i_ = 0; i_ < ((w)->timed ? REPEATS : 1); i_++) {                              \
                call;                                                                              \
            }                                                                                      \
            began = (now() - began) / REPEATS;                                                     \
            least = began < least ? began : least;                                                 \
        }                                                                                          \
        (w)->seconds += least;                                                                     \
    } while (0)

static double now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void compare(bench *w, double got, double want)
{
    double error = fabs(got - want);
    w->worst = error > w->worst || error != error ? error : w->worst;
    w->error += error * error;
    w->square += want * want;
    w->n++;
}

static void fill(bench *w, float *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = check_uniform(&w->rng);
}

static void fill_halves(bench *w, unsigned char *p, int n)
{
    for (int i = 0; i < n; i++) {
        uint16_t half = toy_kv__to_half(check_uniform(&w->rng));
        memcpy(p + 2 * i, &half, 2);
    }
}

static int is_nibbles(const bench *w)
{
    return w->run->coder == TOY_KV__NIBBLES && w->run->planes <= MAX_PLANES;
}

/* The 4-bit code of token t in a plane of block b. */
static int code_at(const bench *w, int b, int plane, int t)
{
    int byte = w->block[b][plane * (BLOCK / 2) + t % (BLOCK / 2)];
    return t < BLOCK / 2 ? byte & 15 : byte >> 4;
}

/* Codeword `code` of channel c of a plane. */
static double codeword(const bench *w, int plane, int c, int code)
{
    const toy_kv__run *run = w->run;
    int book = run->book + plane / run->stages * run->book_step +
               plane % run->stages * run->width * 16 + c * 16 + code;
    return (double)toy_kv__half_at(toy_kv__table(book), 0);
}

/* A value of a plane of one channel. */
static double scalar_at(const bench *w, int plane, int t)
{
    if (w->run->coder == TOY_KV__HALVES)
        return (double)toy_kv__half_at(w->codes, (size_t)plane * BLOCK + (size_t)t);
    return (double)w->codes[plane * BLOCK + t] - 128;
}

/* The score of token t of block b with a query's latents of the run. */
static double score_of(const bench *w, const float *query, int b, int t)
{
    double s = 0;
    for (int p = 0; p < w->run->planes; p++)
        for (int c = 0; c < w->run->width; c++)
            s += (double)query[p / w->run->stages * w->run->width + c] *
                 codeword(w, p, c, code_at(w, b, p, t));
    return s;
}

static int latents_of(const toy_kv__run *run)
{
    return run->planes / run->stages * run->width;
}

/* Sums over the `lanes` of acc [rows, n] against sums of x [blocks, rows, BLOCK] times the
 * codewords w->y [channels, 16]. A sum whose terms cancel by chance counts as large as terms of
 * random signs make it: rounding of operands is a part of the terms. */
static void compare_sums(bench *w, const float *acc, int lanes, int blocks, const float *x)
{
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    for (int r = 0; r < w->rows; r++) {
        const float *row = acc + (size_t)(r * n * lanes);
        if (lanes > 1)
            w->ops->reduce(row, n, w->z);
        else
            memcpy(w->z, row, sizeof(float) * (size_t)n);
        for (int i = 0; i < n; i++) {
            double s = 0, squares = 0;
            for (int stage = 0; stage < run->stages; stage++)
                for (int b = 0; b < blocks; b++)
                    for (int t = 0; t < BLOCK; t++) {
                        int plane = i / run->width * run->stages + stage;
                        int channel = plane * run->width + i % run->width;
                        double term = (double)x[(b * w->rows + r) * BLOCK + t] *
                                      (double)w->y[channel * 16 + code_at(w, b, plane, t)];
                        s += term;
                        squares += term * term;
                    }
            compare(w, (double)w->z[i], s);
            if (w->bound > FP32 && squares > s * s)
                w->square += squares - s * s;
        }
    }
}

#endif
