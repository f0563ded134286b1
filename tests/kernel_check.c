/* kernel_check.c - every kernel by itself, on every instruction set of the machine.
 *
 *     cc -DHEADER='"x.h"' kernel_check.c -lm -o check && ./check [time]
 *
 * The header's prefix is toy_kv; kernels over codes take its runs, one after the other. What a
 * kernel makes of random numbers is compared with the same in double. stdout: a line a kernel and
 * instruction set with its error as a part of the root mean square; with `time`, instead, the least
 * time of a call with 4 queries, the mean over the header's runs. The exit status is 1 after a
 * broken bound. The kernels are those of the header's lists: one without a function here does not
 * compile. */
#define TOY_KV_IMPLEMENTATION
#include HEADER

#include "kernel_bench.h"
#include "kernel_bytes.h"
#include "kernel_tiles.h"

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
    compare_sums(w, w->got, w->ops->lanes, 1, w->x);
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

/* Entries of one byte, with scales, or in binary16. */
static void map_of(bench *w, int out, int bytes)
{
    const toy_kv__matrix m = {bytes ? w->codes : w->a, bytes ? w->b : NULL};
    fill_halves(w, w->a, DIM * out);
    fill_halves(w, w->b, out);
    fill(w, w->x, w->rows * DIM);
    CALL(w, w->ops->map(m, DIM, out, w->x, DIM, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int j = 0; j < out; j++) {
            double s = 0;
            for (int i = 0; i < DIM; i++)
                s += (double)w->x[r * DIM + i] *
                     (bytes ? (double)(signed char)w->codes[i * out + j]
                            : (double)toy_kv__half_at(w->a, (size_t)(i * out + j)));
            s *= bytes ? (double)toy_kv__half_at(w->b, (size_t)j) : 1;
            compare(w, (double)w->got[r * out + j], s);
        }
}
static void check_map(bench *w)
{
    map_of(w, DIM + 3, 1);
    if (w->timed)
        return;
    map_of(w, DIM + 3, 0);
    map_of(w, 3, w->rows % 2); /* fewer outputs than a vector has lanes */
}

/* Entries of one byte, whose scales go to the operand on the way, or in binary16. */
static void unmap_of(bench *w, int in, int out, int bytes)
{
    const toy_kv__matrix m = {bytes ? w->codes : w->b, bytes ? w->a : NULL};
    fill_halves(w, w->a, in);
    fill_halves(w, w->b, out * in);
    fill(w, w->x, w->rows * in);
    memcpy(w->y, w->x, sizeof(float) * (size_t)(w->rows * in));
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * out));
    CALL(w, w->ops->unmap(m, out, in, w->y, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int i = 0; i < out; i++) {
            double s = 0;
            for (int j = 0; j < in; j++)
                s += (double)w->x[r * in + j] *
                     (bytes ? (double)toy_kv__half_at(w->a, (size_t)j) *
                                  (double)(signed char)w->codes[i * in + j]
                            : (double)toy_kv__half_at(w->b, (size_t)(i * in + j)));
            compare(w, (double)w->got[r * out + i], s);
        }
}
static void check_unmap(bench *w)
{
    unmap_of(w, DIM + 3, DIM, 1);
    if (w->timed)
        return;
    unmap_of(w, DIM + 3, DIM - 1, 0);
    unmap_of(w, 3, DIM - 1, w->rows % 2); /* fewer inputs than a vector has lanes */
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

static void check_turn_on(bench *w)
{
    enum { N = DIM + 3 };
    fill(w, w->x, 2 * N);
    fill(w, w->y, 2 * N);
    memcpy(w->got, w->x, sizeof(float) * (size_t)(2 * N));
    CALL(w, w->ops->turn_on(w->y, w->y + N, N, w->got, w->got + N));
    for (int i = 0; i < N; i++) {
        double c = (double)w->x[i], s = (double)w->x[N + i];
        double dc = (double)w->y[i], ds = (double)w->y[N + i];
        compare(w, (double)w->got[i], c * dc - s * ds);
        compare(w, (double)w->got[N + i], s * dc + c * ds);
    }
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

/* ---- all of them ---- */

typedef struct kernel {
    const char *name;
    void (*check)(bench *w);
} kernel;

static const kernel kernels[] = {
#define X(name) {#name, check_##name},
    TOY_KV__KERNELS(X) TOY_KV__ALL_BYTE_KERNELS(X, X, X, X) TOY_KV__DENSE_KERNELS(X)
        TOY_KV__CODE_KERNELS(X)
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

/* One kernel over all runs that it takes, or once, for so many queries. */
static void judge_rows(bench *w, const kernel *k, int rows, verdict *v)
{
    for (int j = 0; j < N_RUNS; j++) {
        w->rows = rows;
        w->run = &toy_kv__runs[j];
        w->used = 0;
        w->bound = FP32;
        for (int c = 0; c < BLOCKS * MAX_PLANES * BLOCK / 2; c++)
            w->codes[c] = (unsigned char)check_next(&w->rng);
        judge(w, k, v);
        if (!w->used && w->n > 0)
            break; /* of no run */
    }
}

/* The same for every number of queries that kernels treat in a way of its own, alone and behind
 * four others; returns whether it keeps its bounds. */
static int run_kernel(bench *w, const kernel *k, const char *isa)
{
    static const int rows[] = {4, 1, 2, 3, 7};
    verdict v = {.bound = 1};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        judge_rows(w, k, rows[i], &v);
    if (v.n > 0) /* else the header has nothing that it takes */
        printf("%-9s %-15s %9.2e (worst %.2e) of %.1e%s\n", isa, k->name, v.error, v.worst, v.bound,
               v.broken ? " BROKEN" : "");
    return !v.broken;
}

/* Prints what it takes for one to four queries. */
static void time_kernel(bench *w, const kernel *k, const char *isa)
{
    double ns[4];
    for (int rows = 1; rows <= 4; rows++) {
        verdict v = {.bound = 1};
        w->seconds = 0;
        judge_rows(w, k, rows, &v);
        if (v.n == 0)
            return; /* the header has nothing that it takes */
        ns[rows - 1] = w->seconds * 1e9 / v.n;
    }
    printf("%-9s %-15s %10.1f %10.1f %10.1f %10.1f\n", isa, k->name, ns[0], ns[1], ns[2], ns[3]);
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
                {TOY_KV_ISA_NEON, "neon"},
                {TOY_KV_ISA_NEON_DOT, "neon-dot"}};
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
    if (w.timed)
        printf("ns for so many queries: %14d %10d %10d %10d\n", 1, 2, 3, 4);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (!toy_kv__has(sets[i].isa))
            continue;
        w.ops = toy_kv__select(sets[i].isa);
        for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
            if (w.timed)
                time_kernel(&w, &kernels[k], sets[i].name);
            else
                broken |= !run_kernel(&w, &kernels[k], sets[i].name);
    }
    return broken;
}
