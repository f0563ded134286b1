#include "plan/kvquant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "fit/fit.h"
#include "plan/calibration.h"
#include "plan/fit_stream.h"
#include "plan/preset_parts.h"

static const vqkvc_window usual = {.n_sink = 1, .n_recent = 32, .block = 64};

/* A channel that hardly varies has no outliers: below this deviation, or where 1 over it is more
 * than binary16 holds. */
static const double least_deviation = 1e-4;

enum { MAX_BITS = 8, MAX_LEVELS = 1 << MAX_BITS };

/* What all streams share. */
typedef struct kvquant {
    const vqkvc_capture *capture;
    const vqkvc_fit_store *store;
    int bits, outliers; /* outliers: of a token */
    uint64_t seed;
    int n, d;
    float *x;      /* [n, d]: K or V of one layer, keys un-rotated */
    uint8_t *kept; /* [n, d]: which values are outliers, not coded */
} kvquant;

/* ---- outliers ---- */

/* Row 0 and row 1 of the table of a stream's outliers: mean and 1 / deviation of each channel. */
static void fit_spread(const kvquant *q, uint16_t *spread)
{
    for (int c = 0; c < q->d; c++) {
        double sum = 0, square = 0;
        for (int i = 0; i < q->n; i++)
            sum += (double)q->x[(size_t)i * (size_t)q->d + (size_t)c];
        double mean = sum / q->n;
        for (int i = 0; i < q->n; i++) {
            double e = (double)q->x[(size_t)i * (size_t)q->d + (size_t)c] - mean;
            square += e * e;
        }
        double deviation = sqrt(square / q->n);
        spread[c] = vqkvc_f32_to_f16((float)mean);
        spread[q->d + c] =
            vqkvc_f32_to_f16(deviation > least_deviation ? (float)(1 / deviation) : 0);
    }
}

/* How far channel c of token x is from what is usual; centre: of tokens judged without a table. */
static double distance(const kvquant *q, const uint16_t *spread, double centre, const float *x,
                       int c)
{
    if (spread == NULL)
        return fabs((double)x[c] - centre);
    return fabs((double)x[c] - (double)vqkvc_f16_to_f32(spread[c])) *
           (double)vqkvc_f16_to_f32(spread[q->d + c]);
}

/* Marks what the plan will keep as outliers (reference.c), so that levels are fitted to the rest.
 * spread: [2, d] or NULL. */
static void mark_outliers(const kvquant *q, const uint16_t *spread)
{
    memset(q->kept, 0, (size_t)q->n * (size_t)q->d);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < q->n; i++) {
        const float *x = q->x + (size_t)i * (size_t)q->d;
        uint8_t *kept = q->kept + (size_t)i * (size_t)q->d;
        double centre = 0;
        for (int c = 0; c < q->d; c++)
            centre += (double)x[c] / q->d;
        for (int k = 0; k < q->outliers; k++) {
            int best = -1;
            double most = -1;
            for (int c = 0; c < q->d; c++) {
                double far = kept[c] ? -1 : distance(q, spread, centre, x, c);
                if (far > most) {
                    most = far;
                    best = c;
                }
            }
            kept[best] = 1;
        }
    }
}

/* ---- levels ---- */

/* 2^bits levels of m numbers x, ascending, as binary16; with none all levels are 0. */
static vqkvc_code fit_levels(const kvquant *q, int m, const float *x, uint64_t seed,
                             uint16_t *levels, double *error, vqkvc_err *err)
{
    float centroids[MAX_LEVELS];
    int k = 1 << q->bits;
    vqkvc_kmeans_params params = {.k = k, .max_iters = 50, .restarts = 2, .seed = seed};
    *error = 0;
    memset(centroids, 0, sizeof centroids);
    if (m > 0)
        VQKVC_TRY(vqkvc_fit_kmeans(m, 1, x, 1, NULL, &params, centroids, NULL, error, err));
    for (int i = 1; i < k; i++)
        for (int j = i; j > 0 && centroids[j - 1] > centroids[j]; j--) {
            float swap = centroids[j];
            centroids[j] = centroids[j - 1];
            centroids[j - 1] = swap;
        }
    for (int i = 0; i < k; i++)
        levels[i] = vqkvc_f32_to_f16(centroids[i]);
    return VQKVC_OK;
}

/* Keys: levels [d, 2^bits] of each channel. *error: mean squared error a value. */
static vqkvc_code fit_channels(const kvquant *q, uint16_t *levels, double *error, vqkvc_err *err)
{
    double *errors = vqkvc_alloc((size_t)q->d, sizeof *errors, err);
    float *columns = vqkvc_alloc((size_t)q->n * (size_t)q->d, sizeof *columns, err);
    *error = 0;
    if (err->code == VQKVC_OK) {
#pragma omp parallel for schedule(dynamic)
        for (int c = 0; c < q->d; c++) {
            vqkvc_err mine = {0};
            float *x = columns + (size_t)c * (size_t)q->n;
            int m = 0;
            for (int i = 0; i < q->n; i++)
                if (!q->kept[(size_t)i * (size_t)q->d + (size_t)c])
                    x[m++] = q->x[(size_t)i * (size_t)q->d + (size_t)c];
            if (fit_levels(q, m, x, q->seed + (uint64_t)c, levels + ((size_t)c << q->bits),
                           &errors[c], &mine) != VQKVC_OK)
#pragma omp critical
                vqkvc_fail(err, mine.code, "channel %d: %s", c, mine.msg);
        }
        for (int c = 0; c < q->d; c++)
            *error += errors[c] / q->d;
    }
    free(errors);
    free(columns);
    return err->code;
}

/* Values: levels [1, 2^bits] between the smallest and the largest of each token, from as many
 * tokens as have some 2^18 values: a few numbers are fitted to all of them. */
static vqkvc_code fit_tokens(const kvquant *q, uint16_t *levels, double *error, vqkvc_err *err)
{
    enum { MOST = 1 << 18 };
    int step = (int)((size_t)q->n * (size_t)q->d / MOST) + 1, m = 0;
    float *t = vqkvc_alloc((size_t)(q->n / step + 1) * (size_t)q->d, sizeof *t, err);
    for (int i = 0; t != NULL && i < q->n; i += step) {
        const float *x = q->x + (size_t)i * (size_t)q->d;
        const uint8_t *kept = q->kept + (size_t)i * (size_t)q->d;
        float low = INFINITY, high = -INFINITY;
        for (int c = 0; c < q->d; c++)
            if (!kept[c]) {
                low = fminf(low, x[c]);
                high = fmaxf(high, x[c]);
            }
        float offset = vqkvc_f16_to_f32(vqkvc_f32_to_f16((low + high) / 2));
        float step_of = vqkvc_f16_to_f32(vqkvc_f32_to_f16((high - low) / 2));
        for (int c = 0; c < q->d; c++)
            if (!kept[c] && step_of > 0)
                t[m++] = (x[c] - offset) / step_of;
    }
    if (t != NULL)
        fit_levels(q, m, t, q->seed, levels, error, err);
    free(t);
    return err->code;
}

/* The levels of one part of one layer, from the store or fitted and kept there. */
static vqkvc_code levels_of(const kvquant *q, vqkvc_plan *plan, vqkvc_part part, int layer,
                            vqkvc_table *book, vqkvc_err *err)
{
    size_t bytes = (size_t)book->rows * (size_t)book->cols * sizeof *book->f16;
    char recipe[200];
    double error;
    int found;
    snprintf(recipe, sizeof recipe,
             VQKVC_FIT_VERSION
             " kvquant levels part=%s layer=%d bits=%d outliers=%d seed=%llu from=%s",
             vqkvc_part_word((int)part), layer, q->bits, q->outliers, (unsigned long long)q->seed,
             q->store->parent.hex);
    VQKVC_TRY(vqkvc_fit_find(q->store, "codebook", recipe, bytes, book->f16, &found, err));
    if (!found) {
        VQKVC_TRY(part == VQKVC_PART_K ? fit_channels(q, book->f16, &error, err)
                                       : fit_tokens(q, book->f16, &error, err));
        VQKVC_TRY(vqkvc_fit_keep(q->store, "codebook", recipe, &q->store->parent,
                                 "mean squared error a value", error, book->f16, bytes, err));
    }
    vqkvc_hash fitted = kvdb_recipe_hash("codebook", recipe);
    return vqkvc_plan_add_parent(plan, &fitted, err);
}

/* ---- streams ---- */

static vqkvc_code add_spread(const kvquant *q, vqkvc_plan *plan, vqkvc_stream *s, int layer,
                             vqkvc_err *err)
{
    s->spread = vqkvc_plan_add_table(plan, 2, q->d, err, "spread K %d", layer);
    if (s->spread >= 0)
        fit_spread(q, plan->tables[s->spread].f16);
    return err->code;
}

static vqkvc_code add_part(const kvquant *q, vqkvc_plan *plan, vqkvc_part part, int layer,
                           vqkvc_err *err)
{
    int is_key = part == VQKVC_PART_K;
    vqkvc_stream *s = vqkvc_preset_joined(plan, part, layer, err);
    vqkvc_run *run = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_sample_members(
        q->capture, s->members, s->n_members,
        &(vqkvc_key_frame){.frame = is_key ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST}, q->seed, q->x,
        err));
    s->outliers = q->outliers;
    if (is_key)
        s->frame = VQKVC_FRAME_PRE;
    if (is_key && q->outliers > 0)
        VQKVC_TRY(add_spread(q, plan, s, layer, err));
    if (!is_key) {
        s->gain = VQKVC_GAIN_RANGE;
        s->gain_bits = 16;
        s->gain_width = s->n_latents;
    }
    mark_outliers(q, s->spread >= 0 ? plan->tables[s->spread].f16 : NULL);
    int book = vqkvc_plan_add_table(plan, is_key ? q->d : 1, 1 << q->bits, err, "levels %s %d",
                                    vqkvc_part_word((int)part), layer);
    if (book < 0)
        return err->code;
    *run = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                       .groups = s->n_latents,
                       .width = 1,
                       .bits = q->bits,
                       .stages = 1,
                       .book = book};
    return levels_of(q, plan, part, layer, &plan->tables[book], err);
}

static vqkvc_code build(const kvquant *q, vqkvc_plan *plan, const vqkvc_log *log, vqkvc_err *err)
{
    for (int layer = 0; layer < plan->geometry.n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++) {
            if (vqkvc_interrupted())
                return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
            if (add_part(q, plan, (vqkvc_part)part, layer, err) != VQKVC_OK) {
                vqkvc_err_prefix(err, "%s of layer %d", vqkvc_part_word(part), layer);
                return err->code;
            }
            vqkvc_say(log, 1, "kvquant: levels of %s of layer %d", vqkvc_part_word(part), layer);
        }
    return VQKVC_OK;
}

/* ---- the plan ---- */

static vqkvc_code check(const vqkvc_capture *c, const kvquant *q, double percent, vqkvc_err *err)
{
    if (q->bits < 1 || q->bits > MAX_BITS)
        return vqkvc_fail(err, VQKVC_E_USAGE, "kvquant: %d bits a code, wanted 1 to %d", q->bits,
                          MAX_BITS);
    if (!(percent >= 0 && percent <= 50))
        return vqkvc_fail(err, VQKVC_E_USAGE, "kvquant: %g %% outliers, wanted 0 to 50", percent);
    if (c->n_sample < 256)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit levels (wanted 256 or more)",
                          c->n_sample);
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_kvquant(vqkvc_plan *plan, const vqkvc_capture *capture,
                              const vqkvc_kvquant_params *params, kvdb *db,
                              const vqkvc_hash *parent, const vqkvc_log *log, vqkvc_err *err)
{
    const vqkvc_geometry *g = &capture->geometry;
    vqkvc_fit_store store = {
        .db = db, .model = g->weights_hash, .parent = *parent, .settings = "", .log = log};
    kvquant q = {.capture = capture,
                 .store = &store,
                 .bits = params->bits > 0 ? params->bits : 2,
                 .seed = params->seed > 0 ? params->seed : 1,
                 .n = capture->n_sample,
                 .d = vqkvc_kind_width(g, VQKVC_KEY)};
    vqkvc_preset_begin(plan, g, "kvquant", &usual, &params->window);
    plan->calibration = *parent;
    VQKVC_TRY(check(capture, &q, params->outliers, err));
    if (params->outliers > 0)
        q.outliers = (int)fmax(1, round(params->outliers * q.d / 100));
    int n = snprintf(plan->scheme, sizeof plan->scheme, "kvquant%d", q.bits);
    if (q.outliers > 0)
        snprintf(plan->scheme + n, sizeof plan->scheme - (size_t)n, "-%.4g", params->outliers);
    q.x = vqkvc_alloc((size_t)q.n * (size_t)q.d, sizeof *q.x, err);
    q.kept = vqkvc_alloc((size_t)q.n * (size_t)q.d, 1, err);
    if (err->code == VQKVC_OK && build(&q, plan, log, err) == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    free(q.x);
    free(q.kept);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
