#include "eval/speed_encode.h"

#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"

enum { CONTEXT = 1024, BATCH = 256, DECODED = 512, REPEATS = 5 };

/* Appends `tokens` tokens to all layers, `batch` a call. x: [2, CONTEXT, row]. Seconds in all, and
 * of the longest call. */
static vqkvc_code append_all(const vqkvc_cache *cache, const vqkvc_geometry *g, int tokens,
                             int batch, const float *x, double *total, double *longest,
                             vqkvc_err *err)
{
    size_t row = (size_t)g->n_kv_heads * g->head_dim;
    *total = *longest = 0;
    VQKVC_TRY(cache->trim(cache->self, 0, 0, err));
    for (int at = 0; at < tokens; at += batch)
        for (int l = 0; l < g->n_layers; l++) {
            /* Layers differ, as they would; those of the last tokens begin anew. */
            const float *k = x + (size_t)((at + 32 * l) % (CONTEXT - BATCH + 1)) * row;
            double started = vqkvc_seconds();
            VQKVC_TRY(cache->append(cache->self, 0, l, at, batch, k, k + CONTEXT * row, err));
            double seconds = vqkvc_seconds() - started;
            *total += seconds;
            *longest = fmax(*longest, seconds);
        }
    return VQKVC_OK;
}

static vqkvc_code run(const vqkvc_cache *cache, const vqkvc_geometry *g, const float *x,
                      vqkvc_encode_timing *t, vqkvc_err *err)
{
    double total, longest, unit = 1e6 / g->n_layers;
    *t = (vqkvc_encode_timing){INFINITY, INFINITY, INFINITY};
    for (int r = 0; r < REPEATS; r++) {
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        VQKVC_TRY(append_all(cache, g, DECODED, 1, x, &total, &longest, err));
        t->decode = fmin(t->decode, total * unit / DECODED);
        t->worst = fmin(t->worst, longest * 1e6);
        VQKVC_TRY(append_all(cache, g, CONTEXT, BATCH, x, &total, &longest, err));
        t->prefill = fmin(t->prefill, total * unit / CONTEXT);
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_speed_encode(const vqkvc_geometry *g, const vqkvc_subject *subject, vqkvc_isa isa,
                              uint64_t seed, vqkvc_encode_timing *timing, vqkvc_err *err)
{
    size_t values = 2 * (size_t)CONTEXT * g->n_kv_heads * g->head_dim;
    vqkvc_rng rng = vqkvc_rng_make(seed, 1);
    vqkvc_cache cache = {0};
    float *x = vqkvc_alloc(values, sizeof *x, err);
    if (x == NULL)
        return err->code;
    for (size_t i = 0; i < values; i++)
        x[i] = (float)(vqkvc_rng_normal(&rng) * 2 / sqrt(1 + 0.25 * (double)(i % g->head_dim)));
    if (vqkvc_cache_header(&cache, subject->codec, subject->name, g, 1, CONTEXT, BATCH, isa, err) ==
        VQKVC_OK)
        run(&cache, g, x, timing, err);
    if (cache.free != NULL)
        cache.free(cache.self);
    free(x);
    return err->code;
}
