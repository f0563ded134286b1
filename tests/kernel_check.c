/* kernel_check.c - every kernel of attention to codes by itself, on every instruction set of the
 * machine.
 *
 *     cc -DHEADER='"x.h"' kernel_check.c -lm -o check && ./check [time]
 *
 * The header's prefix is toy_kv; kernels over codes take its runs, one after the other. What a
 * kernel makes of random numbers is compared with the same in double. stdout: a line a kernel and
 * instruction set with its error as a part of the root mean square; with `time`, the least time of
 * a call as well. The exit status is 1 after a broken bound. The kernels are those of the header's
 * lists: one without a function here does not compile. */
#define TOY_KV_IMPLEMENTATION
#include HEADER

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

/* ---- sums and scores of codes ---- */

static void check_score_nibbles(bench *w)
{
    int planes = w->run->planes;
    if (!is_nibbles(w))
        return;
    w->used = 1;
    fill(w, w->x, planes * w->rows * 16);
    memset(w->got, 0, sizeof(float) * w->rows * BLOCK);
    CALL(w, w->ops->score_nibbles(w->block[0], planes, w->x, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int t = 0; t < BLOCK; t++) {
            double s = 0;
            for (int p = 0; p < planes; p++)
                s += (double)w->x[(p * w->rows + r) * 16 + code_at(w, 0, p, t)];
            compare(w, (double)w->got[r * BLOCK + t], s);
        }
}

/* Sums over the lanes of acc [rows, n] against sums of x [blocks, rows, BLOCK] times the codewords
 * w->y [channels, 16]. */
static void compare_sums(bench *w, const float *acc, int blocks, const float *x)
{
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    for (int r = 0; r < w->rows; r++) {
        w->ops->reduce(acc + (size_t)(r * n * w->ops->lanes), n, w->z);
        for (int i = 0; i < n; i++) {
            double s = 0;
            for (int stage = 0; stage < run->stages; stage++)
                for (int b = 0; b < blocks; b++)
                    for (int t = 0; t < BLOCK; t++) {
                        int plane = i / run->width * run->stages + stage;
                        int channel = plane * run->width + i % run->width;
                        s += (double)x[(b * w->rows + r) * BLOCK + t] *
                             (double)w->y[channel * 16 + code_at(w, b, plane, t)];
                    }
            compare(w, (double)w->z[i], s);
        }
    }
}

static void check_sum_nibbles(bench *w)
{
    const toy_kv__run *run = w->run;
    if (!is_nibbles(w))
        return;
    w->used = 1;
    for (int p = 0; p < run->planes; p++)
        for (int c = 0; c < run->width; c++)
            for (int i = 0; i < 16; i++)
                w->y[(p * run->width + c) * 16 + i] = (float)codeword(w, p, c, i);
    fill(w, w->x, w->rows * BLOCK);
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * latents_of(run) * w->ops->lanes));
    CALL(w, w->ops->sum_nibbles(w->block[0], run->planes, run->stages, run->width, w->y, w->x,
                                w->rows, w->got, (size_t)latents_of(run)));
    compare_sums(w, w->got, 1, w->x);
}

static int is_scalars(const bench *w)
{
    return w->run->coder == TOY_KV__HALVES || w->run->coder == TOY_KV__BYTES;
}

static void check_score_scalars(bench *w)
{
    int planes = w->run->planes, half = w->run->coder == TOY_KV__HALVES;
    if (!is_scalars(w))
        return;
    w->used = 1;
    if (half)
        fill_halves(w, w->codes, planes * BLOCK);
    fill(w, w->x, planes * w->rows);
    memset(w->got, 0, sizeof(float) * w->rows * BLOCK);
    CALL(w, w->ops->score_scalars(w->codes, planes, half, w->x, w->rows, &w->asked, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int t = 0; t < BLOCK; t++) {
            double s = 0;
            for (int p = 0; p < planes; p++)
                s += (double)w->x[p * w->rows + r] * scalar_at(w, p, t);
            compare(w, (double)w->got[r * BLOCK + t], s);
        }
}

static void check_sum_scalars(bench *w)
{
    int planes = w->run->planes, half = w->run->coder == TOY_KV__HALVES, lanes = w->ops->lanes;
    if (!is_scalars(w))
        return;
    w->used = 1;
    if (half)
        fill_halves(w, w->codes, planes * BLOCK);
    fill(w, w->x, w->rows * BLOCK);
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * planes * lanes));
    CALL(w, w->ops->sum_scalars(w->codes, planes, half, w->x, w->rows, w->got, (size_t)planes));
    for (int r = 0; r < w->rows; r++) {
        w->ops->reduce(w->got + (size_t)(r * planes * lanes), planes, w->z);
        for (int p = 0; p < planes; p++) {
            double s = 0;
            for (int t = 0; t < BLOCK; t++)
                s += (double)w->x[r * BLOCK + t] * scalar_at(w, p, t);
            compare(w, (double)w->z[p], s);
        }
    }
}

/* Score tables of the run for queries x [rows, latents]. */
static void check_fill_tables(bench *w)
{
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    if (!is_nibbles(w))
        return;
    w->used = 1;
    fill(w, w->x, w->rows * n);
    CALL(w, w->ops->fill_tables(run, w->x, (size_t)n, w->rows, w->got));
    for (int p = 0; p < run->planes; p++)
        for (int r = 0; r < w->rows; r++)
            for (int i = 0; i < 16; i++) {
                double s = 0;
                for (int c = 0; c < run->width; c++)
                    s += (double)w->x[r * n + p / run->stages * run->width + c] *
                         codeword(w, p, c, i);
                compare(w, (double)w->got[(p * w->rows + r) * 16 + i], s);
            }
}

/* ---- arithmetic on rows ---- */

static void check_scale_rows(bench *w)
{
    fill(w, w->x, BLOCK);
    fill(w, w->y, w->rows * BLOCK);
    CALL(w, w->ops->scale_rows(w->x, w->y, w->rows, w->got));
    for (int i = 0; i < w->rows * BLOCK; i++)
        compare(w, (double)w->got[i], (double)w->x[i % BLOCK] * (double)w->y[i]);
}

static void check_gain_scores(bench *w)
{
    float bias[MAX_ROWS], high[MAX_ROWS * 16];
    fill(w, bias, w->rows);
    fill(w, w->x, BLOCK);
    fill(w, w->y, w->rows * BLOCK);
    for (int i = 0; i < w->rows * 16; i++)
        high[i] = TOY_KV__MASKED;
    for (int i = 0; i < w->rows * BLOCK; i++)
        w->got[i] = w->z[i] = w->rows == 1 ? check_uniform(&w->rng) : bias[i / BLOCK];
    CALL(w, w->ops->gain_scores(w->x, w->y, w->rows == 1 ? NULL : bias, w->rows, w->got, high));
    for (int r = 0; r < w->rows; r++) {
        double top = -1e9;
        float most = TOY_KV__MASKED;
        for (int i = r * BLOCK; i < (r + 1) * BLOCK; i++) {
            double s = (double)w->z[i] + (double)w->x[i % BLOCK] * (double)w->y[i];
            compare(w, (double)w->got[i], s);
            top = s > top ? s : top;
        }
        for (int l = 0; l < w->ops->lanes; l++)
            most = high[r * w->ops->lanes + l] > most ? high[r * w->ops->lanes + l] : most;
        compare(w, (double)most, top);
    }
}

static void check_gains(bench *w)
{
    fill_halves(w, w->a, BLOCK);
    CALL(w, w->ops->gains(w->a, NULL, w->got));
    for (int t = 0; t < BLOCK; t++)
        compare(w, (double)w->got[t], (double)toy_kv__half_at(w->a, (size_t)t));
    fill_halves(w, w->b, 256);
    CALL(w, w->ops->gains(w->codes, w->b, w->got));
    for (int t = 0; t < BLOCK; t++)
        compare(w, (double)w->got[t], (double)toy_kv__half_at(w->b, w->codes[t]));
}

static void check_add_row(bench *w)
{
    fill_halves(w, w->a, DIM);
    memset(w->got, 0, sizeof(float) * DIM);
    CALL(w, w->ops->add_row(w->a, DIM, 0.7f, w->got));
    for (int i = 0; i < DIM; i++)
        compare(w, (double)w->got[i], (double)0.7f * (double)toy_kv__half_at(w->a, (size_t)i));
}

static void check_dot_row(bench *w)
{
    double s = 0;
    float got = 0;
    fill_halves(w, w->a, DIM);
    fill(w, w->x, DIM);
    CALL(w, got = w->ops->dot_row(w->a, DIM, w->x));
    for (int i = 0; i < DIM; i++)
        s += (double)w->x[i] * (double)toy_kv__half_at(w->a, (size_t)i);
    compare(w, (double)got, s);
    w->square = w->square > DIM / 4.0 ? w->square : DIM / 4.0; /* it may be 0 by chance */
}

static void check_map(bench *w)
{
    enum { OUT = DIM + 3 };
    const toy_kv__matrix m = {w->a, NULL};
    fill_halves(w, w->a, DIM * OUT);
    fill(w, w->x, w->rows * DIM);
    CALL(w, w->ops->map(m, DIM, OUT, w->x, DIM, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int j = 0; j < OUT; j++) {
            double s = 0;
            for (int i = 0; i < DIM; i++)
                s += (double)w->x[r * DIM + i] *
                     (double)toy_kv__half_at(w->a, (size_t)(i * OUT + j));
            compare(w, (double)w->got[r * OUT + j], s);
        }
}

/* Entries of one byte, whose scales go to the operand on the way. */
static void check_unmap(bench *w)
{
    enum { IN = DIM + 3 };
    const toy_kv__matrix m = {w->codes, w->a};
    fill_halves(w, w->a, IN);
    fill(w, w->x, w->rows * IN);
    memcpy(w->y, w->x, sizeof(float) * w->rows * IN);
    memset(w->got, 0, sizeof(float) * w->rows * DIM);
    CALL(w, w->ops->unmap(m, DIM, IN, w->y, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int i = 0; i < DIM; i++) {
            double s = 0;
            for (int j = 0; j < IN; j++)
                s += (double)w->x[r * IN + j] * (double)toy_kv__half_at(w->a, (size_t)j) *
                     (double)(signed char)w->codes[i * IN + j];
            compare(w, (double)w->got[r * DIM + i], s);
        }
}

static void check_largest(bench *w)
{
    float top = -1e9f, got = 0;
    fill(w, w->x, BLOCKS * w->rows * BLOCK);
    CALL(w, got = w->ops->largest(w->x, BLOCKS, w->rows * BLOCK));
    for (int b = 0; b < BLOCKS; b++)
        for (int t = 0; t < BLOCK; t++)
            top = w->x[b * w->rows * BLOCK + t] > top ? w->x[b * w->rows * BLOCK + t] : top;
    compare(w, (double)got, (double)top);
}

static void check_exponentials(bench *w)
{
    double sum = 0;
    float got = 0;
    fill(w, w->x, BLOCKS * w->rows * BLOCK);
    memcpy(w->got, w->x, sizeof(float) * BLOCKS * w->rows * BLOCK);
    CALL(w, got = w->ops->exponentials(w->got, BLOCKS, w->rows * BLOCK, 1.7f));
    for (int b = 0; b < BLOCKS; b++)
        for (int t = 0; t < BLOCK; t++) {
            double want = exp((double)w->x[b * w->rows * BLOCK + t] - (double)1.7f);
            compare(w, (double)w->got[b * w->rows * BLOCK + t], want);
            sum += want;
        }
    compare(w, (double)got / sum, 1);
}

static void check_exact_scores(bench *w)
{
    fill_halves(w, w->a, BLOCK * DIM);
    fill(w, w->x, w->rows * DIM);
    CALL(w, w->ops->exact_scores(w->a, BLOCK - 1, w->x, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int t = 0; t < BLOCK - 1; t++) {
            double s = 0;
            for (int i = 0; i < DIM; i++)
                s += (double)w->x[r * DIM + i] *
                     (double)toy_kv__half_at(w->a, (size_t)(t * DIM + i));
            compare(w, (double)w->got[r * BLOCK + t], s);
        }
}

static void check_exact_sums(bench *w)
{
    fill_halves(w, w->a, BLOCK * DIM);
    fill(w, w->x, w->rows * BLOCK);
    memset(w->got, 0, sizeof(float) * w->rows * DIM);
    CALL(w, w->ops->exact_sums(w->a, BLOCK - 1, w->x, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int i = 0; i < DIM; i++) {
            double s = 0;
            for (int t = 0; t < BLOCK - 1; t++)
                s += (double)w->x[r * BLOCK + t] *
                     (double)toy_kv__half_at(w->a, (size_t)(t * DIM + i));
            compare(w, (double)w->got[r * DIM + i], s);
        }
}

static void check_reduce(bench *w)
{
    int lanes = w->ops->lanes;
    fill(w, w->x, (DIM + 3) * lanes);
    CALL(w, w->ops->reduce(w->x, DIM + 3, w->got));
    for (int i = 0; i < DIM + 3; i++) {
        double s = 0;
        for (int l = 0; l < lanes; l++)
            s += (double)w->x[i * lanes + l];
        compare(w, (double)w->got[i], s);
    }
}

static void check_shrink(bench *w)
{
    fill(w, w->x, DIM + 3);
    memcpy(w->got, w->x, sizeof(float) * (DIM + 3));
    CALL(w, w->ops->shrink(w->got, DIM + 3, 0.5f));
    for (int i = 0; i < DIM + 3; i++)
        compare(w, (double)w->got[i], 0.5 * (double)w->x[i]);
}

/* The distance of what was chosen, not which: ties may be broken by rounding. */
static void check_nearest_wide(bench *w)
{
    enum { N = 300, WIDTH = 3 };
    float z[WIDTH];
    double least = 1e9, distance[N];
    int got = 0;
    fill_halves(w, w->a, N * WIDTH);
    fill(w, z, WIDTH);
    CALL(w, got = w->ops->nearest_wide(w->a, N, WIDTH, z));
    for (int i = 0; i < N; i++) {
        distance[i] = 0;
        for (int c = 0; c < WIDTH; c++) {
            double d = (double)z[c] - (double)toy_kv__half_at(w->a, (size_t)(c * N + i));
            distance[i] += d * d;
        }
        least = distance[i] < least ? distance[i] : least;
    }
    compare(w, 1 + distance[got], 1 + least);
}

/* ---- kernels in bytes and words ---- */

/* The query map: bases in words, queries turned and not. */
static void check_maps(bench *w, int which)
{
    enum { OUT = DIM / 2 + 1, PAIRS = DIM / 2, IN = DIM / 2 * 2, COLUMNS = TOY_KV__COLUMNS(OUT) };
    static short row[DIM], words[COLUMNS * DIM], queries[MAX_ROWS * DIM];
    static float scale[COLUMNS], c[DIM], s[DIM], base[MAX_ROWS * COLUMNS], unit[MAX_ROWS];
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__matrix m = {w->a, NULL};
    toy_kv__slice slice = {row, IN, 0, OUT, OUT};
    double total = w->seconds;
    if (ops == NULL || ops->map_words == NULL)
        return;
    w->used = 1;
    w->bound = WORDS;
    fill_halves(w, w->a, DIM * OUT);
    fill_halves(w, w->b, DIM);
    fill(w, w->x, w->rows * IN);
    fill(w, base, w->rows * COLUMNS);
    for (int i = 0; i < IN; i++)
        row[i] = (short)i;
    for (int i = 0; i < PAIRS; i++) {
        c[i] = cosf((float)i);
        s[i] = sinf((float)i);
    }
    CALL(w, ops->map_basis(m, w->b, &slice, words, scale));
    double basis = w->seconds - total;
    for (int r = 0; r < w->rows; r++) {
        unit[r] = 1.0f / 4096;
        if (which == 1)
            CALL(w, ops->to_words(w->x + r * IN, IN, unit[r], queries + r * IN));
        else
            CALL(w, ops->turn_words(w->x + r * IN, c, s, PAIRS, unit[r], queries + r * IN));
    }
    double turned = w->seconds - total - basis;
    CALL(w,
         ops->map_words(queries, w->rows, IN, words, scale, COLUMNS, unit, w->rows, base, w->got));
    w->seconds = total + (which == 0  ? basis
                          : which < 3 ? turned
                                      : w->seconds - total - basis - turned);
    for (int r = 0; r < w->rows; r++)
        for (int j = 0; j <= OUT; j++) {
            double sum = (double)base[r * COLUMNS + j];
            for (int i = 0; i < IN; i++) {
                const float *x = w->x + r * IN;
                int p = i % PAIRS;
                double q = which == 1 ? (double)x[i]
                           : i < PAIRS
                               ? (double)x[p] * (double)c[p] + (double)x[PAIRS + p] * (double)s[p]
                               : (double)x[PAIRS + p] * (double)c[p] - (double)x[p] * (double)s[p];
                sum += q * (double)(j < OUT ? toy_kv__half_at(w->a, (size_t)(i * OUT + j))
                                            : toy_kv__half_at(w->b, (size_t)i));
            }
            compare(w, (double)w->got[r * COLUMNS + j], sum);
        }
}
static void check_map_basis(bench *w)
{
    check_maps(w, 0);
}
static void check_to_words(bench *w)
{
    check_maps(w, 1);
}
static void check_turn_words(bench *w)
{
    check_maps(w, 2);
}
static void check_map_words(bench *w)
{
    check_maps(w, 3);
}

/* What scores are added to where there are 7 queries: z. */
static int begin_scores(bench *w)
{
    fill(w, w->z, BLOCKS * w->rows * BLOCK);
    memcpy(w->got, w->z, sizeof(float) * (size_t)(BLOCKS * w->rows * BLOCK));
    return w->rows == 7;
}

static void compare_scores(bench *w, const float *queries, int stride)
{
    for (int b = 0; b < BLOCKS; b++)
        for (int r = 0; r < w->rows; r++)
            for (int t = 0; t < BLOCK; t++) {
                const int at = (b * w->rows + r) * BLOCK + t;
                double before = w->rows == 7 ? (double)w->z[at] : 0;
                compare(w, (double)w->got[at] - before, score_of(w, queries + r * stride, b, t));
            }
}

static void check_dots(bench *w, int which)
{
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    float unit[2 * MAX_ROWS], energy[MAX_ROWS] = {0};
    double total = w->seconds, part[2];
    /* runs of values and of keys that are rebuilt may have more groups than the header provides for
     */
    if (ops == NULL || ops->dot_books == NULL || !is_nibbles(w) ||
        toy_kv__dot_groups(run) > TOY_KV__MAX_DOT_GROUPS ||
        !(run->width == 1 || (ops->map_words != NULL && run->width % 2 == 0)))
        return;
    w->used = 1;
    w->bound = ops->map_words == NULL ? ROUND : run->words ? WORDS : BYTES;
    fill(w, w->x, w->rows * n);
    CALL(w, ops->dot_books(run, w->a, w->y));
    part[0] = w->seconds - total;
    CALL(w, ops->dot_queries(run, w->y, w->x, (size_t)n, w->rows, w->b, unit, energy));
    part[1] = w->seconds - total - part[0];
    const int add = begin_scores(w);
    CALL(w, ops->dot_scores(w->block, 0, BLOCKS, run, w->a, w->b, unit, w->rows, add, &w->asked,
                            w->got));
    w->seconds = total + (which < 2 ? part[which] : w->seconds - total - part[0] - part[1]);
    compare_scores(w, w->x, n);
}
static void check_dot_books(bench *w)
{
    check_dots(w, 0);
}
static void check_dot_queries(bench *w)
{
    check_dots(w, 1);
}
static void check_dot_scores(bench *w)
{
    check_dots(w, 2);
}

static void check_packed(bench *w, int which)
{
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    float energy[MAX_ROWS] = {0};
    toy_kv__packed head;
    double total = w->seconds, packing;
    if (ops == NULL || !is_nibbles(w))
        return;
    w->used = 1;
    w->bound = TABLE;
    fill(w, w->x, w->rows * n);
    w->ops->fill_tables(run, w->x, (size_t)n, w->rows, w->y);
    CALL(w, ops->pack_tables(w->y, run->planes, w->rows, energy, &head, (signed char *)w->a));
    packing = w->seconds - total;
    const int add = begin_scores(w);
    CALL(w, ops->score_bytes(w->block, 0, BLOCKS, run->planes, &head, (signed char *)w->a, w->rows,
                             add, &w->asked, w->got));
    w->seconds = total + (which == 0 ? packing : w->seconds - total - packing);
    compare_scores(w, w->x, n);
}
static void check_pack_tables(bench *w)
{
    check_packed(w, 0);
}
static void check_score_bytes(bench *w)
{
    check_packed(w, 1);
}

static void check_byte_sums(bench *w, int which)
{
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__run *run = w->run;
    int n = latents_of(run), channels = run->planes * run->width;
    float scale[MAX_ROWS], *gain = w->z + ROOM / 2;
    unsigned char *rest = w->rows == 2 ? w->b + ROOM : NULL; /* what is left of weights, or not */
    double total = w->seconds, part[2];
    if (ops == NULL || !is_nibbles(w))
        return;
    w->used = 1;
    w->bound = BYTES;
    for (int i = 0; i < channels * 16; i++)
        w->y[i] = (float)codeword(w, i / 16 / run->width, i / 16 % run->width, i % 16);
    for (int i = 0; i < BLOCKS * w->rows * BLOCK; i++)
        w->x[i] = fabsf(check_uniform(&w->rng));
    for (int i = 0; i < BLOCKS * BLOCK; i++)
        gain[i] = 0.5f + fabsf(check_uniform(&w->rng));
    CALL(w, ops->pack_books(w->y, channels, (signed char *)w->a, w->z));
    part[0] = w->seconds - total;
    CALL(w, ops->pack_weights(w->x, gain, BLOCKS, w->rows, w->b, rest, scale));
    part[1] = w->seconds - total - part[0];
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * n * w->ops->lanes));
    CALL(w, ops->sum_bytes(w->block, 0, BLOCKS, run, (signed char *)w->a, w->z, w->b, scale,
                           w->rows, &w->asked, w->got, (size_t)n));
    if (rest != NULL) {
        for (int r = 0; r < w->rows; r++)
            scale[r] /= ops->rest;
        ops->sum_bytes(w->block, 0, BLOCKS, run, (signed char *)w->a, w->z, rest, scale, w->rows,
                       &w->asked, w->got, (size_t)n);
        w->bound = REST;
    }
    w->seconds = total + (which < 2 ? part[which] : w->seconds - total - part[0] - part[1]);
    for (int i = 0; i < channels * 16; i++) /* fitted codewords are so many steps as it is */
        w->y[i] = w->z[i / 16] * (float)(signed char)w->a[i];
    for (int i = 0; i < BLOCKS * w->rows * BLOCK; i++)
        w->x[i] *= gain[i / (w->rows * BLOCK) * BLOCK + i % BLOCK];
    compare_sums(w, w->got, BLOCKS, w->x);
}
static void check_pack_books(bench *w)
{
    check_byte_sums(w, 0);
}
static void check_pack_weights(bench *w)
{
    check_byte_sums(w, 1);
}
static void check_sum_bytes(bench *w)
{
    check_byte_sums(w, 2);
}

/* ---- all of them ---- */

typedef struct kernel {
    const char *name;
    void (*check)(bench *w);
} kernel;

static const kernel kernels[] = {
#define X(name) {#name, check_##name},
    TOY_KV__KERNELS(X) TOY_KV__ALL_BYTE_KERNELS(X, X)
#undef X
};

/* The error and the bound that are closest to each other. */
typedef struct verdict {
    double error, worst, bound;
    int n, broken;
} verdict;

/* One kernel on one run. */
static void judge(bench *w, const kernel *k, verdict *v)
{
    w->worst = w->error = w->square = 0;
    w->n = 0;
    k->check(w);
    if (w->n == 0)
        return;
    double rms = sqrt(w->square / (double)w->n), error = sqrt(w->error / (double)w->n) / rms;
    double worst = w->worst / rms;
    v->broken |= !(error <= w->bound && worst <= WORST * w->bound);
    v->n++;
    if (!(error / w->bound <= v->error / v->bound)) {
        v->error = error;
        v->worst = worst;
        v->bound = w->bound;
    }
}

/* One kernel over all runs that it takes, or once, with several numbers of queries; returns whether
 * it keeps its bounds. */
static int run_kernel(bench *w, const kernel *k, const char *isa)
{
    static const int rows[] = {4, 1, 2, 7};
    verdict v = {.bound = 1};
    w->seconds = 0;
    for (int i = 0; i < (w->timed ? 1 : 4); i++)
        for (int j = 0; j < N_RUNS; j++) {
            w->rows = rows[i];
            w->run = &toy_kv__runs[j];
            w->used = 0;
            w->bound = FP32;
            for (int c = 0; c < BLOCKS * MAX_PLANES * BLOCK / 2; c++)
                w->codes[c] = (unsigned char)check_next(&w->rng);
            judge(w, k, &v);
            if (!w->used && w->n > 0)
                break; /* of no run */
        }
    if (v.n == 0)
        return 1; /* the header has nothing that it takes */
    if (w->timed)
        printf("%-9s %-15s %10.1f ns\n", isa, k->name, w->seconds * 1e9 / v.n);
    else
        printf("%-9s %-15s %9.2e (worst %.2e) of %.1e%s\n", isa, k->name, v.error, v.worst, v.bound,
               v.broken ? " BROKEN" : "");
    return w->timed || !v.broken;
}

static void *need(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL)
        exit(2);
    memset(p, 0, bytes);
    return p;
}

int main(int argc, char **argv)
{
    static const struct {
        toy_kv_isa isa;
        const char *name;
    } sets[] = {{TOY_KV_ISA_PORTABLE, "portable"},
                {TOY_KV_ISA_AVX2, "avx2"},
                {TOY_KV_ISA_AVX512, "avx512"},
                {TOY_KV_ISA_NEON, "neon"}};
    bench w = {.timed = argc > 1 && strcmp(argv[1], "time") == 0, .rng = {1}};
    int broken = 0;
    w.codes = need(BLOCKS * MAX_PLANES * BLOCK * 2);
    for (int b = 0; b < BLOCKS; b++)
        w.block[b] = w.codes + (size_t)b * MAX_PLANES * BLOCK / 2;
    w.x = need(ROOM * sizeof *w.x);
    w.y = need(ROOM * sizeof *w.y);
    w.z = need(ROOM * sizeof *w.z);
    w.got = need(ROOM * sizeof *w.got);
    w.a = need(ROOM * 4);
    w.b = need(ROOM * 4);
    w.asked.keys = w.asked.keys_end = w.asked.values = w.asked.values_end = w.a;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (!toy_kv__has(sets[i].isa))
            continue;
        w.ops = toy_kv__select(sets[i].isa);
        for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
            broken |= !run_kernel(&w, &kernels[k], sets[i].name);
    }
    return broken;
}
