#include "eval/calibrate.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/rng.h"

enum { CONTEXT = 16384, ROUNDS = 40, BATCH = 256 };

/* Normal numbers, channels weaker and weaker, as in real caches: x [n, head_dim]. */
static void make_vectors(vqkvc_rng *rng, int n, int head_dim, float *x)
{
    for (int i = 0; i < n * head_dim; i++)
        x[i] = (float)(vqkvc_rng_normal(rng) * 2 / sqrt(1 + 0.25 * (i % head_dim)));
}

/* Appends `context` tokens to every layer: kv [2, BATCH, n_kv_heads, head_dim], again and again. */
static vqkvc_code fill(const vqkvc_cache *cache, const vqkvc_geometry *g, int context,
                       const float *kv, const vqkvc_log *log, vqkvc_err *err)
{
    size_t half = (size_t)BATCH * (size_t)(g->n_kv_heads * g->head_dim);
    vqkvc_progress progress;
    vqkvc_progress_begin(&progress, log, "calibrate", "tokens", (uint64_t)context);
    for (int at = 0; at < context; at += BATCH) {
        int n = context - at < BATCH ? context - at : BATCH;
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        for (int l = 0; l < g->n_layers; l++)
            VQKVC_TRY(cache->append(cache->self, 0, l, at, n, kv, kv + half, err));
        vqkvc_progress_step(&progress, (uint64_t)(at + n));
    }
    vqkvc_progress_end(&progress, (uint64_t)context);
    return VQKVC_OK;
}

static vqkvc_code time_layers(const vqkvc_cache *cache, const vqkvc_geometry *g, int context,
                              int rounds, const float *q, float *out, double *ns, vqkvc_err *err)
{
    float scale = 1.0f / sqrtf((float)g->head_dim);
    double per = 1e9 / ((double)g->n_kv_heads * context);
    for (int l = 0; l < g->n_layers; l++)
        ns[l] = INFINITY;
    for (int r = 0; r < rounds; r++) {
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        for (int l = 0; l < g->n_layers; l++) {
            double started = vqkvc_seconds();
            VQKVC_TRY(cache->attend(cache->self, 0, l, context - 1, 1, q, out, scale, err));
            ns[l] = fmin(ns[l], (vqkvc_seconds() - started) * per);
        }
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_calibrate(const vqkvc_geometry *g, const vqkvc_codec *codec,
                           const vqkvc_calibration *options, double *ns, vqkvc_err *err)
{
    int context = options->context > 0 ? options->context : CONTEXT;
    int rounds = options->rounds > 0 ? options->rounds : ROUNDS, row = g->n_kv_heads * g->head_dim;
    vqkvc_cache cache = {0};
    vqkvc_rng rng = vqkvc_rng_make(options->seed, 0);
    float *kv = vqkvc_alloc(2 * BATCH * (size_t)row, sizeof *kv, err);
    float *q = vqkvc_alloc((size_t)(g->n_heads * g->head_dim), sizeof *q, err);
    float *out = vqkvc_alloc((size_t)(g->n_heads * g->head_dim), sizeof *out, err);
    if (err->code == VQKVC_OK && vqkvc_cache_header(&cache, codec, "calibration", g, 1, context,
                                                    BATCH, options->isa, err) == VQKVC_OK) {
        make_vectors(&rng, 2 * BATCH * g->n_kv_heads, g->head_dim, kv);
        make_vectors(&rng, g->n_heads, g->head_dim, q);
        if (fill(&cache, g, context, kv, options->log, err) == VQKVC_OK)
            time_layers(&cache, g, context, rounds, q, out, ns, err);
    }
    if (cache.free != NULL)
        cache.free(cache.self);
    free(kv);
    free(q);
    free(out);
    return err->code;
}
