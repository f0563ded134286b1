/* kernel_tiles.h - checks of kernels over tiles and of encoding, for kernel_check.c: what each
 * makes of random numbers against the same in double. A tile is [channels, BLOCK]. */
#ifndef VQKVC_TESTS_KERNEL_TILES_H
#define VQKVC_TESTS_KERNEL_TILES_H

#include "kernel_bench.h"

/* ---- tiles ---- */

/* Products with tables of bytes and of binary16, down and across, added to what was there; inputs
 * and outputs are more than are unpacked at a time. */
static void check_product(bench *w)
{
    enum { IN = 133, OUT = 21, ROWS = IN > OUT ? IN : OUT };
    for (int form = 0; form < 4; form++) {
        const int across = form / 2, bytes = form % 2, ld = across ? IN : OUT;
        const toy_kv__matrix m = {bytes ? w->codes : w->a, bytes ? w->b : NULL};
        fill_halves(w, w->a, IN * OUT);
        fill_halves(w, w->b, ROWS);
        fill(w, w->x, IN * BLOCK);
        fill(w, w->y, OUT * BLOCK);
        memcpy(w->got, w->y, sizeof(float) * (size_t)(OUT * BLOCK));
        CALL(w, w->ops->dense->product(m, (size_t)ld, across, IN, OUT, w->x, w->got));
        for (int o = 0; o < OUT; o++)
            for (int t = 0; t < BLOCK; t++) {
                double s = (double)w->y[o * BLOCK + t];
                for (int i = 0; i < IN; i++) {
                    const int at = across ? o * ld + i : i * ld + o;
                    double entry = bytes ? (double)(signed char)w->codes[at] *
                                               (double)toy_kv__half_at(w->b, (size_t)(at % ld))
                                         : (double)toy_kv__half_at(w->a, (size_t)at);
                    s += entry * (double)w->x[i * BLOCK + t];
                }
                compare(w, (double)w->got[o * BLOCK + t], s);
            }
    }
}

static void check_add_scaled(bench *w)
{
    fill(w, w->x, 3 * BLOCK);
    fill(w, w->y, 3 * BLOCK);
    memcpy(w->got, w->y, sizeof(float) * 3 * BLOCK);
    CALL(w, w->ops->dense->add_scaled(3 * BLOCK, -0.7f, w->x, w->got));
    for (int i = 0; i < 3 * BLOCK; i++)
        compare(w, (double)w->got[i], (double)w->y[i] + (double)-0.7f * (double)w->x[i]);
}

static void check_affine(bench *w)
{
    fill(w, w->x, 3 * BLOCK);
    fill(w, w->y, 2 * BLOCK);
    memcpy(w->got, w->x, sizeof(float) * 3 * BLOCK);
    CALL(w, w->ops->dense->affine(w->y, w->y + BLOCK, 3, w->got));
    for (int i = 0; i < 3 * BLOCK; i++)
        compare(w, (double)w->got[i],
                (double)w->y[BLOCK + i % BLOCK] + (double)w->y[i % BLOCK] * (double)w->x[i]);
}

static void check_affine_row(bench *w)
{
    enum { N = DIM + 3 };
    fill(w, w->x, N);
    memcpy(w->got, w->x, sizeof(float) * N);
    CALL(w, w->ops->dense->affine_row(N, 0.7f, -1.3f, w->got));
    for (int i = 0; i < N; i++)
        compare(w, (double)w->got[i], (double)0.7f * (double)w->x[i] + (double)-1.3f);
}

static void check_from_bytes(bench *w)
{
    CALL(w, w->ops->dense->from_bytes(w->codes, -127.5f, w->got));
    for (int t = 0; t < BLOCK; t++)
        compare(w, (double)w->got[t], (double)w->codes[t] - 127.5);
}

/* A codeword of a plane's channel c, of books [channels, 16] of binary16 at w->a. */
static double book_at(const bench *w, int c, int code)
{
    return (double)toy_kv__half_at(w->a, (size_t)(c * 16 + code));
}

/* The first of two planes' codewords set, those of the second added. */
static void check_from_nibbles(bench *w)
{
    enum { WIDTH = 3 };
    const unsigned char *next = w->block[0] + BLOCK / 2;
    fill_halves(w, w->a, WIDTH * 16);
    CALL(w, w->ops->dense->from_nibbles(w->block[0], w->a, WIDTH, 0, w->got));
    w->ops->dense->from_nibbles(next, w->a, WIDTH, 1, w->got);
    for (int c = 0; c < WIDTH && !w->timed; c++)
        for (int t = 0; t < BLOCK; t++)
            compare(w, (double)w->got[c * BLOCK + t],
                    book_at(w, c, code_at(w, 0, 0, t)) + book_at(w, c, code_at(w, 0, 1, t)));
    w->n += w->timed;
}

/* Channels of pair i. */
static int first_of(int i)
{
    return TOY_KV_ROPE_INTERLEAVED ? 2 * i : i;
}
static int second_of(int i)
{
    return TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2;
}

/* By the angles of the block alone, and of each token, back: channels beyond the pairs stay. */
static void check_turn_tile(bench *w)
{
    for (int own = 0; own < 2; own++) {
        const double sign = own ? -1 : 1;
        fill(w, w->x, DIM * BLOCK);
        fill(w, w->y, TOY_KV_N_ROT);
        fill(w, w->z, TOY_KV_N_ROT * BLOCK);
        CALL(w, w->ops->dense->turn_tile(w->y, own ? w->z : NULL, (float)sign, w->x, w->got));
        for (int i = 0; i < TOY_KV_N_ROT / 2; i++)
            for (int t = 0; t < BLOCK; t++) {
                const int k = first_of(i) * BLOCK + t, l = second_of(i) * BLOCK + t;
                double c = (double)w->y[2 * i], s = (double)w->y[2 * i + 1];
                double a = (double)w->x[k], b = (double)w->x[l];
                if (own) { /* [pairs, cosines and sines, BLOCK] */
                    double u = (double)w->z[2 * i * BLOCK + t],
                           v = (double)w->z[(2 * i + 1) * BLOCK + t];
                    double turned = c * u - s * v;
                    s = s * u + c * v;
                    c = turned;
                }
                compare(w, (double)w->got[k], c * a - sign * s * b);
                compare(w, (double)w->got[l], sign * s * a + c * b);
            }
        for (int i = TOY_KV_N_ROT * BLOCK; i < DIM * BLOCK; i++)
            compare(w, (double)w->got[i], (double)w->x[i]);
    }
}

static void check_score_tile(bench *w)
{
    fill(w, w->x, w->rows * DIM);
    fill(w, w->y, DIM * BLOCK);
    CALL(w, w->ops->dense->score_tile(w->y, w->x, w->rows, w->got));
    for (int r = 0; r < w->rows; r++)
        for (int t = 0; t < BLOCK; t++) {
            double s = 0;
            for (int d = 0; d < DIM; d++)
                s += (double)w->x[r * DIM + d] * (double)w->y[d * BLOCK + t];
            compare(w, (double)w->got[r * BLOCK + t], s);
        }
}

static void check_sum_tile(bench *w)
{
    const int lanes = w->ops->lanes, stride = DIM + 2;
    fill(w, w->x, DIM * BLOCK);
    fill(w, w->y, w->rows * BLOCK);
    memset(w->got, 0, sizeof(float) * (size_t)(w->rows * stride * lanes));
    CALL(w, w->ops->dense->sum_tile(w->x, w->y, w->rows, w->got, (size_t)stride));
    for (int r = 0; r < w->rows; r++) {
        w->ops->reduce(w->got + r * stride * lanes, DIM, w->z);
        for (int d = 0; d < DIM; d++) {
            double s = 0;
            for (int t = 0; t < BLOCK; t++)
                s += (double)w->y[r * BLOCK + t] * (double)w->x[d * BLOCK + t];
            compare(w, (double)w->z[d], s);
        }
    }
}

static void check_distances(bench *w)
{
    enum { N = 300, COUNT = 291, WIDTH = 3 };
    fill_halves(w, w->a, N * WIDTH);
    fill(w, w->x, WIDTH);
    CALL(w, w->ops->dense->distances(w->a, N, WIDTH, COUNT, w->x, w->got));
    for (int i = 0; i < COUNT; i++) {
        double s = 0;
        for (int c = 0; c < WIDTH; c++) {
            double d = (double)toy_kv__half_at(w->a, (size_t)(c * N + i)) - (double)w->x[c];
            s += d * d;
        }
        compare(w, (double)w->got[i], s);
    }
}

static void check_landmark_scores(bench *w)
{
    enum { N = 9 };
    fill(w, w->x, w->rows * DIM);
    CALL(w, w->ops->dense->landmark_scores(w->codes, N, w->x, w->rows, w->got));
    for (int i = 0; i < N; i++) {
        double best = -1e9;
        for (int r = 0; r < w->rows; r++) {
            double s = 0;
            for (int d = 0; d < DIM; d++)
                s += (double)w->x[r * DIM + d] * ((double)w->codes[i * DIM + d] - 128);
            best = s > best ? s : best;
        }
        compare(w, (double)w->got[i], best);
    }
}

/* ---- encoding ---- */

/* The distance of the codeword that was chosen, not which: ties may be broken by rounding. */
static void check_code_nibbles(bench *w)
{
    static const int widths[] = {1, 2, 3, 4, 8};
    for (int i = 0; i < 5; i++) {
        const int width = widths[i];
        unsigned char plane[BLOCK / 2];
        fill_halves(w, w->a, width * 16);
        fill(w, w->x, width * BLOCK);
        CALL(w, w->ops->code->code_nibbles(w->a, width, w->x, w->y, plane));
        for (int t = 0; t < BLOCK; t++) {
            const int byte = plane[t % (BLOCK / 2)], code = t < BLOCK / 2 ? byte & 15 : byte >> 4;
            double least = 1e9, chosen = 0;
            for (int k = 0; k < 16; k++) {
                double s = 0;
                for (int c = 0; c < width; c++) {
                    double d = (double)w->x[c * BLOCK + t] - book_at(w, c, k);
                    s += d * d;
                }
                least = s < least ? s : least;
                chosen = k == code ? s : chosen;
            }
            compare(w, 1 + chosen, 1 + least);
        }
    }
}

static void check_leave_nibbles(bench *w)
{
    enum { WIDTH = 3 };
    fill_halves(w, w->a, WIDTH * 16);
    fill(w, w->x, WIDTH * BLOCK);
    memcpy(w->got, w->x, sizeof(float) * WIDTH * BLOCK);
    CALL(w, w->ops->code->leave_nibbles(w->block[0], w->a, WIDTH, w->got));
    for (int c = 0; c < WIDTH; c++)
        for (int t = 0; t < BLOCK; t++)
            compare(w, (double)w->got[c * BLOCK + t],
                    (double)w->x[c * BLOCK + t] - book_at(w, c, code_at(w, 0, 0, t)));
}

static void check_squares(bench *w)
{
    enum { ROWS = 11 };
    fill(w, w->x, ROWS * BLOCK);
    CALL(w, w->ops->code->squares(w->x, ROWS, w->got));
    for (int t = 0; t < BLOCK; t++) {
        double s = 0;
        for (int r = 0; r < ROWS; r++)
            s += (double)w->x[r * BLOCK + t] * (double)w->x[r * BLOCK + t];
        compare(w, (double)w->got[t], s);
    }
}

static void check_load_rows(bench *w)
{
    fill_halves(w, w->a, BLOCK * DIM);
    CALL(w, w->ops->code->load_rows(w->a, w->got));
    for (int d = 0; d < DIM; d++)
        for (int t = 0; t < BLOCK; t++)
            compare(w, (double)w->got[d * BLOCK + t],
                    (double)toy_kv__half_at(w->a, (size_t)(t * DIM + d)));
}

static void check_store_row(bench *w)
{
    enum { N = DIM + 3 };
    fill(w, w->x, N);
    CALL(w, w->ops->code->store_row(w->x, N, w->a));
    for (int i = 0; i < N; i++) {
        const uint16_t half = toy_kv__to_half(w->x[i]);
        unsigned char bytes[2];
        memcpy(bytes, &half, 2);
        compare(w, (double)toy_kv__half_at(w->a, (size_t)i), (double)toy_kv__half_at(bytes, 0));
    }
}

static void check_turn_row(bench *w)
{
    fill(w, w->x, DIM);
    fill(w, w->y, TOY_KV_N_ROT);
    memcpy(w->got, w->x, sizeof(float) * DIM);
    CALL(w, w->ops->code->turn_row(w->y, w->y + TOY_KV_N_ROT / 2, w->got));
    for (int i = 0; i < TOY_KV_N_ROT / 2; i++) {
        double c = (double)w->y[i], s = (double)w->y[TOY_KV_N_ROT / 2 + i];
        double a = (double)w->x[first_of(i)], b = (double)w->x[second_of(i)];
        compare(w, (double)w->got[first_of(i)], c * a - s * b);
        compare(w, (double)w->got[second_of(i)], s * a + c * b);
    }
    for (int i = TOY_KV_N_ROT; i < DIM; i++)
        compare(w, (double)w->got[i], (double)w->x[i]);
}

#endif
