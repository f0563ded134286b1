/* kernel_bytes.h - kernels of attention in bytes and words, by themselves: of kernel_check.c. */
#ifndef VQKVC_TESTS_KERNEL_BYTES_H
#define VQKVC_TESTS_KERNEL_BYTES_H

#include "kernel_bench.h"

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
    CALL(w, ops->map_words(queries, w->rows, IN, words, scale, COLUMNS, unit, w->rows, base,
                           COLUMNS, w->got));
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

/* Entries of one byte, queries of 8 bits: an odd number of rows, some columns left out in front. */
static void check_byte_maps(bench *w, int which)
{
    enum {
        IN = DIM / 2 * 2 - 2 > 0 ? DIM / 2 * 2 - 2 : 2,
        OUT = 89, /* a tile of 64 and two of 16 */
        FIRST = 3,
        STRIDE = TOY_KV__BYTE_COLUMNS(OUT) + 5
    };
    static unsigned char basis[TOY_KV__BYTE_COLUMNS(OUT) * TOY_KV__BYTE_ROWS(IN)];
    static signed char bytes[MAX_ROWS * TOY_KV__BYTE_ROWS(IN)];
    static short row[IN], queries[MAX_ROWS * IN], steps[MAX_ROWS];
    static float scale[TOY_KV__BYTE_COLUMNS(OUT)], base[MAX_ROWS * STRIDE], unit[MAX_ROWS];
    int32_t zero[MAX_ROWS];
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__matrix m = {w->codes, w->a};
    toy_kv__slice slice = {row, IN, FIRST, OUT, FIRST + OUT};
    double total = w->seconds, part[2];
    if (ops == NULL || ops->map_bytes == NULL)
        return;
    w->used = 1;
    w->bound = BYTES;
    fill_halves(w, w->a, FIRST + OUT);
    fill(w, w->x, w->rows * IN);
    fill(w, base, w->rows * STRIDE);
    for (int i = 0; i < IN; i++)
        row[i] = (short)(IN - 1 - i);
    for (int r = 0; r < w->rows; r++) {
        steps[r] = (short)(580 - 50 * r); /* 1.732 * 4096 words make 127 bytes at most */
        unit[r] = 32768 / (4096 * (float)steps[r]);
        for (int i = 0; i < IN; i++) /* words of 1 / 4096 that bytes have room for */
            queries[r * IN + i] = (short)lrintf(4096 * w->x[r * IN + i]);
    }
    CALL(w, ops->byte_basis(m, &slice, basis, scale));
    part[0] = w->seconds - total;
    CALL(w, ops->to_bytes(queries, w->rows, IN, steps, w->rows, bytes, zero));
    part[1] = w->seconds - total - part[0];
    CALL(w, ops->map_bytes(bytes, zero, w->rows, IN, basis, scale, TOY_KV__BYTE_COLUMNS(OUT), unit,
                           w->rows, w->rows == 7 ? NULL : base, STRIDE, w->got));
    w->seconds = total + (which < 2 ? part[which] : w->seconds - total - part[0] - part[1]);
    for (int r = 0; r < w->rows; r++)
        for (int j = 0; j < OUT; j++) {
            double sum = w->rows == 7 ? 0 : (double)base[r * STRIDE + j];
            for (int i = 0; i < IN; i++)
                sum += (double)w->x[r * IN + i] *
                       (double)(signed char)w->codes[row[i] * (FIRST + OUT) + FIRST + j] *
                       (double)toy_kv__half_at(w->a, (size_t)(FIRST + j));
            compare(w, (double)w->got[r * STRIDE + j], sum);
        }
}
static void check_byte_basis(bench *w)
{
    check_byte_maps(w, 0);
}
static void check_to_bytes(bench *w)
{
    check_byte_maps(w, 1);
}
static void check_map_bytes(bench *w)
{
    check_byte_maps(w, 2);
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
        !(run->width == 1 ||
          (ops->map_words != NULL && ops->fill_bytes == NULL && run->width % 2 == 0)))
        return;
    w->used = 1;
    w->bound = ops->map_words == NULL || ops->fill_bytes != NULL ? ROUND
               : run->words                                      ? WORDS
                                                                 : BYTES;
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

/* Score tables of codes of several channels without those in fp32. */
static void check_fill_bytes(bench *w)
{
    const toy_kv__byte_ops *ops = w->ops->bytes;
    const toy_kv__run *run = w->run;
    int n = latents_of(run);
    float energy[MAX_ROWS] = {0};
    toy_kv__packed head;
    if (ops == NULL || ops->fill_bytes == NULL || !is_nibbles(w) || !toy_kv__fillable(run) ||
        toy_kv__dot_groups(run) > TOY_KV__MAX_DOT_GROUPS)
        return;
    w->used = 1;
    w->bound = run->words ? ROUND : BYTES;
    fill(w, w->x, w->rows * n);
    ops->dot_books(run, w->a, w->y);
    CALL(w, ops->fill_bytes(run, w->a, w->y, w->x, (size_t)n, w->rows, energy, &head,
                            (signed char *)w->b));
    const int add = begin_scores(w);
    ops->score_bytes(w->block, 0, BLOCKS, run->planes, &head, (signed char *)w->b, w->rows, add,
                     &w->asked, w->got);
    compare_scores(w, w->x, n);
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
    /* what is left of weights, or not */
    unsigned char *rest = which == 1 && !w->timed ? w->b + ROOM : NULL;
    double total = w->seconds, part[2];
    if (ops == NULL || !is_nibbles(w))
        return;
    w->used = 1;
    w->bound = BYTES;
    for (int i = 0; i < channels * 16; i++) {
        float x = (float)codeword(w, i / 16 / run->width, i / 16 % run->width, i % 16);
        uint16_t half = toy_kv__to_half(x);
        memcpy(w->b + 2 * i, &half, 2);
        w->y[i] = x;
    }
    for (int i = 0; i < BLOCKS * w->rows * BLOCK; i++)
        w->x[i] = fabsf(check_uniform(&w->rng));
    for (int i = 0; i < BLOCKS * BLOCK; i++)
        gain[i] = 0.5f + fabsf(check_uniform(&w->rng));
    CALL(w, ops->pack_books(w->b, channels, (signed char *)w->a, w->z));
    part[0] = w->seconds - total;
    CALL(w, ops->pack_weights(w->x, gain, BLOCKS, w->rows, w->b, rest, scale));
    part[1] = w->seconds - total - part[0];
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * n));
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
    compare_sums(w, w->got, 1, BLOCKS, w->x);
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

#endif
