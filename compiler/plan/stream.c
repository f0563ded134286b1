/* One stream: transforms and the steps between them, many tokens at a time. The definition stands
 * at the top of reference.c. */
#include "plan/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"

/* Bounds the memory of fitting on many samples; a multiple of every gain_tokens. */
enum { TOKENS_AT_A_TIME = 1024 };

/* ---- tables ---- */

double *vqkvc_table_f64(const vqkvc_plan *plan, int index, vqkvc_err *err)
{
    const vqkvc_table *t = &plan->tables[index];
    size_t n = (size_t)t->rows * t->cols;
    double *values = vqkvc_alloc(n, sizeof *values, err);
    for (size_t i = 0; values != NULL && i < n; i++)
        values[i] = vqkvc_table_at(t, (int)(i / (size_t)t->cols), (int)(i % (size_t)t->cols));
    return values;
}

float *vqkvc_table_f32(const vqkvc_plan *plan, int index, vqkvc_err *err)
{
    const vqkvc_table *t = &plan->tables[index];
    size_t n = (size_t)t->rows * t->cols;
    float *values = vqkvc_alloc(n, sizeof *values, err);
    for (size_t i = 0; values != NULL && i < n; i++)
        values[i] = vqkvc_table_at(t, (int)(i / (size_t)t->cols), (int)(i % (size_t)t->cols));
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
            (b->table[book] = vqkvc_table_f64(plan, book, err)) == NULL) {
            books_free(b);
            return err->code;
        }
    }
    return VQKVC_OK;
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
    free(w->spread);
    free(w->z);
    free(w->z_hat);
    free(w->norm);
    free(w->shift);
    free(w->outlier);
    free(w->kept);
    free(w->out);
    free(w->codes);
}

/* Room for the gains and outliers of n tokens. */
static void work_init_gains(vqkvc_stream_work *w, const vqkvc_plan *plan, const vqkvc_stream *s,
                            int n, vqkvc_err *err)
{
    size_t latents = (size_t)s->n_latents, outliers = (size_t)n * (size_t)s->outliers;
    if (s->gain != VQKVC_GAIN_NONE) {
        w->n_groups = s->n_latents / s->gain_width;
        w->norm = vqkvc_alloc((size_t)n * (size_t)w->n_groups, sizeof *w->norm, err);
    }
    if (s->gain == VQKVC_GAIN_NSN) {
        size_t token_groups = ((size_t)n + s->gain_tokens - 1) / (size_t)s->gain_tokens;
        w->shift = vqkvc_alloc(token_groups * latents, sizeof *w->shift, err);
    }
    if (s->outliers > 0) {
        w->outlier = vqkvc_alloc(outliers, sizeof *w->outlier, err);
        w->kept = vqkvc_alloc(outliers, sizeof *w->kept, err);
        w->out = vqkvc_alloc((size_t)n * latents, 1, err);
    }
    if (s->spread >= 0)
        w->spread = vqkvc_table_f64(plan, s->spread, err);
}

vqkvc_code vqkvc_stream_work_init(vqkvc_stream_work *w, const vqkvc_plan *plan,
                                  const vqkvc_stream *s, int n, int basis_in_double, vqkvc_err *err)
{
    *w = (vqkvc_stream_work){.n_codes = vqkvc_stream_codes(s)};
    VQKVC_TRY(books_load(plan, s, &w->books, err));
    if (s->mean >= 0)
        w->mean = vqkvc_table_f64(plan, s->mean, err);
    if (basis_in_double && s->transform == VQKVC_TRANSFORM_BASIS) {
        w->enc = vqkvc_table_f64(plan, s->enc, err);
        w->dec = vqkvc_table_f64(plan, s->dec, err);
    }
    work_init_gains(w, plan, s, n, err);
    w->z = vqkvc_alloc((size_t)n * s->n_latents, sizeof *w->z, err);
    w->z_hat = vqkvc_alloc((size_t)n * s->n_latents, sizeof *w->z_hat, err);
    w->codes = vqkvc_alloc((size_t)n * w->n_codes, sizeof *w->codes, err);
    if (err->code != VQKVC_OK)
        vqkvc_stream_work_free(w);
    return err->code;
}

/* Codes w->z into w->z_hat and w->codes, a token group at a time. */
static void code_tokens(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_stream_work *w,
                        int n)
{
    int joined = s->transform == VQKVC_TRANSFORM_HADAMARD;
#pragma omp parallel for schedule(static) if (n > 1)
    for (int first = 0; first < n; first += s->gain_tokens) {
        int end = n - first < s->gain_tokens ? n : first + s->gain_tokens;
        for (int t = first; t < end && joined; t++)
            hadamard(w->z + (size_t)t * s->n_latents, s->n_latents);
        vqkvc_gains_take(s, w, first, end - first);
        for (int t = first; t < end; t++) {
            vqkvc_code_token(plan, s, w, t);
            vqkvc_gains_put(s, w, t);
            if (joined)
                hadamard(w->z_hat + (size_t)t * s->n_latents, s->n_latents);
        }
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
    f->enc = vqkvc_table_f32(plan, s->enc, err);
    f->dec = vqkvc_table_f32(plan, s->dec, err);
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
