/* One stream: gains, coders, transforms. The definition stands at the top of reference.c. */
#include "plan/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"

enum {
    TOKENS_AT_A_TIME = 1024, /* bounds the memory of fitting on many samples */
    CODES_AT_A_TIME = 64
};

/* ---- tables ---- */

/* The binary16 values of table `index` as doubles, or NULL with *err; the caller frees it. */
static double *table_f64(const vqkvc_plan *plan, int index, vqkvc_err *err)
{
    const vqkvc_table *t = &plan->tables[index];
    size_t n = (size_t)t->rows * t->cols;
    double *values = vqkvc_alloc(n, sizeof *values, err);
    for (size_t i = 0; values != NULL && i < n; i++)
        values[i] = vqkvc_f16_to_f32(t->f16[i]);
    return values;
}

static float *table_f32(const vqkvc_plan *plan, int index, vqkvc_err *err)
{
    const vqkvc_table *t = &plan->tables[index];
    size_t n = (size_t)t->rows * t->cols;
    float *values = vqkvc_alloc(n, sizeof *values, err);
    for (size_t i = 0; values != NULL && i < n; i++)
        values[i] = vqkvc_f16_to_f32(t->f16[i]);
    return values;
}

static void books_free(vqkvc_books *b)
{
    for (int i = 0; i < b->n; i++)
        free(b->table[i]);
    free(b->table);
}

static vqkvc_code books_load(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_books *b,
                             vqkvc_err *err)
{
    *b = (vqkvc_books){0};
    b->table = vqkvc_alloc((size_t)plan->n_tables, sizeof *b->table, err);
    if (b->table == NULL)
        return err->code;
    b->n = plan->n_tables;
    for (int r = 0; r < s->n_runs; r++) {
        int book = s->runs[r].book;
        if (s->runs[r].coder == VQKVC_CODER_VQ && b->table[book] == NULL &&
            (b->table[book] = table_f64(plan, book, err)) == NULL) {
            books_free(b);
            return err->code;
        }
    }
    return VQKVC_OK;
}

/* ---- gains ---- */

typedef struct gain {
    double value;     /* s^ */
    float reciprocal; /* 1 / s of ABSMAX and SIGNMAX, before s is rounded; 0 if s^ is 0 */
} gain;

static float gain_exact(const vqkvc_stream *s, const double *z, int bits)
{
    double sum = 0;
    float largest = 0;
    for (int i = 0; i < s->gain_width; i++) {
        sum += z[i] * z[i];
        if (fabsf((float)z[i]) > fabsf(largest))
            largest = (float)z[i];
    }
    if (s->gain == VQKVC_GAIN_RMS)
        return (float)sqrt(sum / s->gain_width);
    int half = 1 << (bits - 1);
    if (s->gain == VQKVC_GAIN_ABSMAX)
        return fabsf(largest) / (float)(half - 1);
    return largest / (float)-half;
}

/* z [gain_width]: the latents of one gain group; bits: of its UNI runs. */
static gain gain_of(const vqkvc_stream *s, const double *z, int bits)
{
    if (s->gain == VQKVC_GAIN_NONE)
        return (gain){1, 1};
    float exact = gain_exact(s, z, bits);
    double value;
    if (s->gain_bits == 8) {
        /* fmax() also turns the NaN of a broken token into code 0. */
        double code = exact == 0 ? 0 : round((log2(exact) - s->gain_lo) / s->gain_step);
        value = vqkvc_f16_to_f32(vqkvc_stream_gain(s, (int)fmin(fmax(code, 0), 255)));
    } else {
        float kept = isnan(exact) ? 0 : fminf(fmaxf(exact, -65504.0f), 65504.0f);
        value = vqkvc_f16_to_f32(vqkvc_f32_to_f16(kept));
    }
    return (gain){value, value == 0 || exact == 0 ? 0 : 1 / exact};
}

/* ---- coders ---- */

/* Codeword of `width` channels nearest to t; row is [width, n_codes]. */
static int nearest(const double *row, int width, int n_codes, const double *t)
{
    int best = 0;
    double best_distance = INFINITY;
    for (int first = 0; first < n_codes; first += CODES_AT_A_TIME) {
        int n = n_codes - first < CODES_AT_A_TIME ? n_codes - first : CODES_AT_A_TIME;
        double distance[CODES_AT_A_TIME] = {0};
        for (int c = 0; c < width; c++) {
            const double *word = row + (size_t)c * n_codes + first;
            for (int i = 0; i < n; i++)
                distance[i] += (t[c] - word[i]) * (t[c] - word[i]);
        }
        for (int i = 0; i < n; i++)
            if (distance[i] < best_distance) {
                best_distance = distance[i];
                best = first + i;
            }
    }
    return best;
}

/* z [groups * width] is destroyed; z_hat out; codes [groups * stages] out. */
static void code_vq(const vqkvc_run *r, int book_rows, const double *book, double scale, double *z,
                    double *z_hat, int32_t *codes)
{
    int n_codes = 1 << r->bits, shared = book_rows == r->stages;
    for (int g = 0; g < r->groups; g++, z += r->width, z_hat += r->width) {
        for (int c = 0; c < r->width; c++) {
            z[c] = scale == 0 ? 0 : z[c] / scale;
            z_hat[c] = 0;
        }
        for (int stage = 0; stage < r->stages; stage++) {
            size_t row_index = (shared ? 0 : (size_t)g * r->stages) + stage;
            const double *row = book + row_index * r->width * n_codes;
            int code = nearest(row, r->width, n_codes, z);
            for (int c = 0; c < r->width; c++) {
                double word = row[(size_t)c * n_codes + code];
                z[c] -= word;
                z_hat[c] += scale * word;
            }
            codes[g * r->stages + stage] = code;
        }
    }
}

static void code_uni(const vqkvc_stream *s, const vqkvc_run *r, gain scale, const double *z,
                     double *z_hat, int32_t *codes)
{
    int half = 1 << (r->bits - 1);
    for (int i = 0; i < r->groups; i++) {
        double code;
        if (s->gain == VQKVC_GAIN_ABSMAX)
            code = roundf((float)z[i] * scale.reciprocal) + (float)half;
        else if (s->gain == VQKVC_GAIN_SIGNMAX)
            code = floorf((float)z[i] * scale.reciprocal + ((float)half + 0.5f));
        else
            code = scale.value == 0 ? half : round(z[i] / scale.value) + half;
        codes[i] = (int32_t)fmin(fmax(code, 0), 2 * half - 1);
        z_hat[i] = scale.value * (codes[i] - half);
    }
}

static void code_f16(const vqkvc_run *r, const double *z, double *z_hat, int32_t *codes)
{
    for (int i = 0; i < r->groups; i++) {
        uint16_t bits = vqkvc_f32_to_f16((float)z[i]);
        codes[i] = bits;
        z_hat[i] = vqkvc_f16_to_f32(bits);
    }
}

/* One token: z [n_latents] is destroyed, z_hat [n_latents] and codes [vqkvc_stream_codes()] out. */
static void code_token(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_books *b,
                       double *z, double *z_hat, int32_t *codes)
{
    gain scale = {1, 1};
    for (int i = 0; i < s->n_runs; i++) {
        const vqkvc_run *r = &s->runs[i];
        double *zr = z + r->first, *out = z_hat + r->first;
        if (s->gain != VQKVC_GAIN_NONE && r->first % s->gain_width == 0)
            scale = gain_of(s, zr, r->bits);
        if (r->coder == VQKVC_CODER_VQ)
            code_vq(r, plan->tables[r->book].rows, b->table[r->book], scale.value, zr, out, codes);
        else if (r->coder == VQKVC_CODER_UNI)
            code_uni(s, r, scale, zr, out, codes);
        else
            code_f16(r, zr, out, codes);
        codes += r->groups * r->stages;
    }
}

/* ---- one stream ---- */

/* Fast Walsh-Hadamard transform, orthonormal, in place; n a power of two. */
static void hadamard(double *x, int n)
{
    for (int half = 1; half < n; half *= 2)
        for (int i = 0; i < n; i += 2 * half)
            for (int j = i; j < i + half; j++) {
                double a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
    double scale = 1 / sqrt(n);
    for (int i = 0; i < n; i++)
        x[i] *= scale;
}

void vqkvc_stream_work_free(vqkvc_stream_work *w)
{
    books_free(&w->books);
    free(w->mean);
    free(w->enc);
    free(w->dec);
    free(w->z);
    free(w->z_hat);
    free(w->codes);
}

vqkvc_code vqkvc_stream_work_init(vqkvc_stream_work *w, const vqkvc_plan *plan,
                                  const vqkvc_stream *s, int n, int basis_in_double, vqkvc_err *err)
{
    *w = (vqkvc_stream_work){.n_codes = vqkvc_stream_codes(s)};
    VQKVC_TRY(books_load(plan, s, &w->books, err));
    if (s->mean >= 0)
        w->mean = table_f64(plan, s->mean, err);
    if (basis_in_double && s->transform == VQKVC_TRANSFORM_BASIS) {
        w->enc = table_f64(plan, s->enc, err);
        w->dec = table_f64(plan, s->dec, err);
    }
    w->z = vqkvc_alloc((size_t)n * s->n_latents, sizeof *w->z, err);
    w->z_hat = vqkvc_alloc((size_t)n * s->n_latents, sizeof *w->z_hat, err);
    w->codes = vqkvc_alloc((size_t)n * w->n_codes, sizeof *w->codes, err);
    if (err->code != VQKVC_OK)
        vqkvc_stream_work_free(w);
    return err->code;
}

/* Codes w->z into w->z_hat and w->codes. */
static void code_tokens(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_stream_work *w,
                        int n)
{
#pragma omp parallel for schedule(static) if (n > 1)
    for (int t = 0; t < n; t++) {
        double *z = w->z + (size_t)t * s->n_latents, *z_hat = w->z_hat + (size_t)t * s->n_latents;
        int joined = s->transform == VQKVC_TRANSFORM_HADAMARD;
        if (joined)
            hadamard(z, s->n_latents);
        code_token(plan, s, &w->books, z, z_hat, w->codes + (size_t)t * w->n_codes);
        if (joined)
            hadamard(z_hat, s->n_latents);
    }
}

/* x [n, n_in] becomes its reconstruction. */
void vqkvc_stream_code_block(const vqkvc_plan *plan, const vqkvc_stream *s,
                             const vqkvc_stream_work *w, int n, double *x)
{
    int d = s->n_in, m = s->n_latents;
    for (int t = 0; w->mean != NULL && t < n; t++)
        for (int i = 0; i < d; i++)
            x[(size_t)t * d + i] -= w->mean[i];
    if (w->enc != NULL)
        vqkvc_dgemm_nn(n, m, d, x, d, w->enc, m, w->z, m);
    else
        memcpy(w->z, x, (size_t)n * d * sizeof *x);
    code_tokens(plan, s, w, n);
    if (w->dec != NULL)
        vqkvc_dgemm_nt(n, d, m, w->z_hat, m, w->dec, m, x, d);
    else
        memcpy(x, w->z_hat, (size_t)n * d * sizeof *x);
    for (int t = 0; w->mean != NULL && t < n; t++)
        for (int i = 0; i < d; i++)
            x[(size_t)t * d + i] += w->mean[i];
}

/* How many of the tokens that are left the next turn takes. */
static int tokens_of_turn(int n)
{
    return n < TOKENS_AT_A_TIME ? n : TOKENS_AT_A_TIME;
}

static void copy_codes(const vqkvc_stream_work *w, int n, int first, int32_t *codes)
{
    if (codes != NULL)
        memcpy(codes + (size_t)first * w->n_codes, w->codes,
               (size_t)n * w->n_codes * sizeof *codes);
}

vqkvc_code vqkvc_stream_reference(const vqkvc_plan *plan, const vqkvc_stream *s, int n,
                                  const float *x, float *x_hat, int32_t *codes, vqkvc_err *err)
{
    vqkvc_stream_work w;
    VQKVC_TRY(vqkvc_stream_work_init(&w, plan, s, tokens_of_turn(n), 1, err));
    double *xd = vqkvc_alloc((size_t)tokens_of_turn(n) * s->n_in, sizeof *xd, err);
    for (int first = 0; xd != NULL && first < n; first += TOKENS_AT_A_TIME) {
        int turn = tokens_of_turn(n - first);
        size_t offset = (size_t)first * s->n_in, values = (size_t)turn * s->n_in;
        for (size_t i = 0; i < values; i++)
            xd[i] = x[offset + i];
        vqkvc_stream_code_block(plan, s, &w, turn, xd);
        for (size_t i = 0; i < values; i++)
            x_hat[offset + i] = (float)xd[i];
        copy_codes(&w, turn, first, codes);
    }
    free(xd);
    vqkvc_stream_work_free(&w);
    return err->code;
}

/* Tables and centred samples of vqkvc_stream_apply(). */
typedef struct float_work {
    float *enc, *dec; /* [n_in, n_latents] */
    float *x;         /* [n, n_in] */
    float *z;         /* [n, n_latents] */
} float_work;

static void float_work_free(float_work *f)
{
    free(f->enc);
    free(f->dec);
    free(f->x);
    free(f->z);
}

static vqkvc_code float_work_init(float_work *f, const vqkvc_plan *plan, const vqkvc_stream *s,
                                  int n, vqkvc_err *err)
{
    f->enc = table_f32(plan, s->enc, err);
    f->dec = table_f32(plan, s->dec, err);
    f->x = vqkvc_alloc((size_t)n * s->n_in, sizeof *f->x, err);
    f->z = vqkvc_alloc((size_t)n * s->n_latents, sizeof *f->z, err);
    if (err->code != VQKVC_OK)
        float_work_free(f);
    return err->code;
}

/* x [n, n_in] to x_hat. */
static void apply_block(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_stream_work *w,
                        const float_work *f, int n, const float *x, float *x_hat)
{
    int d = s->n_in, m = s->n_latents;
    for (int t = 0; t < n; t++)
        for (int i = 0; i < d; i++) {
            size_t at = (size_t)t * d + i;
            f->x[at] = w->mean == NULL ? x[at] : x[at] - (float)w->mean[i];
        }
    vqkvc_sgemm_nn(n, m, d, f->x, d, f->enc, m, f->z, m);
    for (size_t i = 0; i < (size_t)n * m; i++)
        w->z[i] = f->z[i];
    code_tokens(plan, s, w, n);
    for (size_t i = 0; i < (size_t)n * m; i++)
        f->z[i] = (float)w->z_hat[i];
    vqkvc_sgemm_nt(n, d, m, f->z, m, f->dec, m, x_hat, d);
    for (int t = 0; w->mean != NULL && t < n; t++)
        for (int i = 0; i < d; i++)
            x_hat[(size_t)t * d + i] += (float)w->mean[i];
}

vqkvc_code vqkvc_stream_apply(const vqkvc_plan *plan, const vqkvc_stream *s, int n, const float *x,
                              float *x_hat, int32_t *codes, vqkvc_err *err)
{
    if (s->transform != VQKVC_TRANSFORM_BASIS)
        return vqkvc_stream_reference(plan, s, n, x, x_hat, codes, err);
    vqkvc_stream_work w;
    VQKVC_TRY(vqkvc_stream_work_init(&w, plan, s, tokens_of_turn(n), 0, err));
    float_work f;
    if (float_work_init(&f, plan, s, tokens_of_turn(n), err) != VQKVC_OK) {
        vqkvc_stream_work_free(&w);
        return err->code;
    }
    for (int first = 0; first < n; first += TOKENS_AT_A_TIME) {
        int turn = tokens_of_turn(n - first);
        size_t offset = (size_t)first * s->n_in;
        apply_block(plan, s, &w, &f, turn, x + offset, x_hat + offset);
        copy_codes(&w, turn, first, codes);
    }
    float_work_free(&f);
    vqkvc_stream_work_free(&w);
    return VQKVC_OK;
}
