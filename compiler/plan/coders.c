/* The coders of runs: what latents are after their gains to codes and codewords. The definition
 * stands at the top of reference.c. */
#include "plan/stream.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

enum { CODES_AT_A_TIME = 64 };

/* ---- nearest codewords ---- */

/* Squared distances of t to codewords first .. first + n - 1, at most CODES_AT_A_TIME; row is
 * [width, n_codes]. */
static void distances(const double *row, int width, int n_codes, int first, int n, const double *t,
                      double *distance)
{
    memset(distance, 0, (size_t)n * sizeof *distance);
    for (int c = 0; c < width; c++) {
        const double *word = row + (size_t)c * n_codes + first;
        for (int i = 0; i < n; i++)
            distance[i] += (t[c] - word[i]) * (t[c] - word[i]);
    }
}

static int codes_of_turn(int n)
{
    return n < CODES_AT_A_TIME ? n : CODES_AT_A_TIME;
}

/* Codeword of `width` channels nearest to t. */
static int nearest(const double *row, int width, int n_codes, const double *t)
{
    int best = 0;
    double best_distance = INFINITY, distance[CODES_AT_A_TIME];
    for (int first = 0; first < n_codes; first += CODES_AT_A_TIME) {
        int n = codes_of_turn(n_codes - first);
        distances(row, width, n_codes, first, n, t, distance);
        for (int i = 0; i < n; i++)
            if (distance[i] < best_distance) {
                best_distance = distance[i];
                best = first + i;
            }
    }
    return best;
}

/* One group: t [width] is destroyed, w [width] and codes [stages] out; rows: the first stage's. */
static void code_greedily(const vqkvc_run *r, const double *rows, double *t, double *w,
                          int32_t *codes)
{
    int n_codes = 1 << r->bits;
    memset(w, 0, (size_t)r->width * sizeof *w);
    for (int stage = 0; stage < r->stages; stage++) {
        const double *row = rows + (size_t)stage * r->width * n_codes;
        codes[stage] = nearest(row, r->width, n_codes, t);
        for (int c = 0; c < r->width; c++) {
            double word = row[(size_t)c * n_codes + codes[stage]];
            t[c] -= word;
            w[c] += word;
        }
    }
}

/* ---- beams ---- */

/* Candidates of one stage, best first: where they come from and how far they are from t. */
typedef struct candidates {
    int n;
    double distance[VQKVC_MAX_BEAM];
    uint8_t parent[VQKVC_MAX_BEAM];
    int32_t code[VQKVC_MAX_BEAM];
} candidates;

/* Keeps the `beam` best; on a tie what came first stays before. */
static void offer(candidates *best, int beam, double distance, int parent, int code)
{
    if (isnan(distance))
        distance = INFINITY;
    if (best->n == beam && distance >= best->distance[beam - 1])
        return;
    int at = best->n < beam ? best->n++ : beam - 1;
    for (; at > 0 && best->distance[at - 1] > distance; at--) {
        best->distance[at] = best->distance[at - 1];
        best->parent[at] = best->parent[at - 1];
        best->code[at] = best->code[at - 1];
    }
    best->distance[at] = distance;
    best->parent[at] = (uint8_t)parent;
    best->code[at] = code;
}

/* left [n, width]: what the candidates of the stage before have left of t. */
static void find_candidates(const vqkvc_run *r, const double *row, int n,
                            const double (*left)[VQKVC_MAX_BEAM_WIDTH], candidates *best)
{
    int n_codes = 1 << r->bits;
    double distance[CODES_AT_A_TIME];
    best->n = 0;
    for (int parent = 0; parent < n; parent++)
        for (int first = 0; first < n_codes; first += CODES_AT_A_TIME) {
            int turn = codes_of_turn(n_codes - first);
            distances(row, r->width, n_codes, first, turn, left[parent], distance);
            for (int i = 0; i < turn; i++)
                offer(best, r->beam, distance[i], parent, first + i);
        }
}

/* As code_greedily(). */
static void code_with_beam(const vqkvc_run *r, const double *rows, const double *t, double *w,
                           int32_t *codes)
{
    double left[2][VQKVC_MAX_BEAM][VQKVC_MAX_BEAM_WIDTH];
    candidates best[VQKVC_MAX_STAGES];
    int n_codes = 1 << r->bits, n = 1;
    memcpy(left[0][0], t, (size_t)r->width * sizeof *t);
    for (int stage = 0; stage < r->stages; stage++) {
        const double *row = rows + (size_t)stage * r->width * n_codes;
        double(*before)[VQKVC_MAX_BEAM_WIDTH] = left[stage % 2];
        double(*after)[VQKVC_MAX_BEAM_WIDTH] = left[1 - stage % 2];
        candidates *b = &best[stage];
        find_candidates(r, row, n, (const double(*)[VQKVC_MAX_BEAM_WIDTH])before, b);
        for (n = 0; n < b->n; n++)
            for (int c = 0; c < r->width; c++)
                after[n][c] = before[b->parent[n]][c] - row[(size_t)c * n_codes + b->code[n]];
    }
    for (int stage = r->stages - 1, at = 0; stage >= 0; at = best[stage--].parent[at])
        codes[stage] = best[stage].code[at];
    memset(w, 0, (size_t)r->width * sizeof *w);
    for (int stage = 0; stage < r->stages; stage++)
        for (int c = 0; c < r->width; c++)
            w[c] += rows[((size_t)stage * r->width + c) * n_codes + codes[stage]];
}

/* ---- runs ---- */

/* t [groups * width] is destroyed; w the same and codes [groups * stages] out. */
static void code_vq(const vqkvc_run *r, int book_rows, const double *book, double *t, double *w,
                    int32_t *codes)
{
    size_t stage_values = (size_t)r->width << r->bits;
    int shared = book_rows == r->stages;
    for (int g = 0; g < r->groups; g++) {
        const double *rows = book + (shared ? 0 : (size_t)g * r->stages) * stage_values;
        if (r->beam > 1)
            code_with_beam(r, rows, t, w, codes);
        else
            code_greedily(r, rows, t, w, codes);
        t += r->width;
        w += r->width;
        codes += r->stages;
    }
}

static void code_uni(vqkvc_gain gain, const vqkvc_run *r, const double *t, double *w,
                     int32_t *codes)
{
    int half = 1 << (r->bits - 1), zero = gain == VQKVC_GAIN_RANGE ? 0 : half;
    for (int i = 0; i < r->groups; i++) {
        double code;
        if (gain == VQKVC_GAIN_SIGNMAX)
            code = floorf((float)t[i] + ((float)half + 0.5f));
        else
            code = round(t[i]) + zero;
        codes[i] = (int32_t)fmin(fmax(code, 0), 2 * half - 1);
        w[i] = codes[i] - zero;
    }
}

static void code_f16(const vqkvc_run *r, const double *t, double *w, int32_t *codes)
{
    for (int i = 0; i < r->groups; i++) {
        uint16_t bits = vqkvc_f32_to_f16((float)t[i]);
        codes[i] = bits;
        w[i] = vqkvc_f16_to_f32(bits);
    }
}

void vqkvc_code_token(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_stream_work *w,
                      int t)
{
    double *from = w->z + (size_t)t * s->n_latents, *to = w->z_hat + (size_t)t * s->n_latents;
    int32_t *codes = w->codes + (size_t)t * w->n_codes;
    for (int i = 0; i < s->n_runs; i++) {
        const vqkvc_run *r = &s->runs[i];
        if (r->coder == VQKVC_CODER_VQ)
            code_vq(r, plan->tables[r->book].rows, w->books.table[r->book], from + r->first,
                    to + r->first, codes);
        else if (r->coder == VQKVC_CODER_UNI)
            code_uni(s->gain, r, from + r->first, to + r->first, codes);
        else
            code_f16(r, from + r->first, to + r->first, codes);
        codes += r->groups * r->stages;
    }
}
