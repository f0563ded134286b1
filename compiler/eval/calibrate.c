#include "eval/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/rng.h"

enum {
    CONTEXT = 16384,
    BATCH = 256,
    ROUNDS = 120,
    SLOW_EVERY = 12 /* rounds, for layers that take more than SLOW times the median */
};

static const double slow = 6;

/* Of this thread alone: where calls take milliseconds, other work on a busy machine would get into
 * every one of them. */
static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One codec under the clock. */
typedef struct subject {
    const vqkvc_geometry *g;
    vqkvc_cache cache;
    float *q, *out; /* [n_heads, head_dim] */
    double *ns;     /* [n_layers] the least so far */
} subject;

/* Normal numbers, channels weaker and weaker, as in real caches: x [n, head_dim]. */
static void make_vectors(vqkvc_rng *rng, int n, int head_dim, float *x)
{
    for (int i = 0; i < n * head_dim; i++)
        x[i] = (float)(vqkvc_rng_normal(rng) * 2 / sqrt(1 + 0.25 * (i % head_dim)));
}

/* Appends `context` tokens to every layer: the same BATCH of them again and again, the last ones
 * token by token, so that the exact window is as decoding leaves it. */
static vqkvc_code fill(const subject *s, int context, vqkvc_rng *rng, vqkvc_progress *progress,
                       vqkvc_err *err)
{
    const vqkvc_geometry *g = s->g;
    size_t half = (size_t)BATCH * (size_t)(g->n_kv_heads * g->head_dim);
    float *kv = vqkvc_alloc(2 * half, sizeof *kv, err);
    if (kv == NULL)
        return err->code;
    make_vectors(rng, 2 * BATCH * g->n_kv_heads, g->head_dim, kv);
    int decoded = context > BATCH ? context - BATCH : 0;
    for (int at = 0, n; at < context && err->code == VQKVC_OK; at += n) {
        n = at >= decoded ? 1 : decoded - at < BATCH ? decoded - at : BATCH;
        if (vqkvc_interrupted())
            vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        size_t first = at < decoded ? 0 : (size_t)(at - decoded) * (half / BATCH);
        for (int l = 0; l < g->n_layers && err->code == VQKVC_OK; l++)
            s->cache.append(s->cache.self, 0, l, at, n, kv + first, kv + half + first, err);
        vqkvc_progress_step(progress, (uint64_t)(at + n));
    }
    free(kv);
    return err->code;
}

static int ascending(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* The time beyond which a layer is slow. */
static double slow_time(const double *ns, int n)
{
    double sorted[VQKVC_MAX_LAYERS];
    memcpy(sorted, ns, (size_t)n * sizeof *ns);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return slow * sorted[n / 2];
}

/* All layers once; in most rounds without those that rebuild vectors, which would take most of the
 * time. */
static vqkvc_code time_round(const subject *s, int round, int context, vqkvc_err *err)
{
    const vqkvc_geometry *g = s->g;
    float scale = 1.0f / sqrtf((float)g->head_dim);
    double per = 1e9 / ((double)g->n_kv_heads * context), most = slow_time(s->ns, g->n_layers);
    for (int l = 0; l < g->n_layers; l++) {
        if (round % SLOW_EVERY != 0 && s->ns[l] > most)
            continue;
        double started = thread_seconds();
        VQKVC_TRY(s->cache.attend(s->cache.self, 0, l, context - 1, 1, s->q, s->out, scale, err));
        s->ns[l] = fmin(s->ns[l], (thread_seconds() - started) * per);
    }
    return VQKVC_OK;
}

static vqkvc_code time_all(const subject *subjects, int n, int context, int rounds, vqkvc_err *err)
{
    for (int i = 0; i < n; i++)
        for (int l = 0; l < subjects[i].g->n_layers; l++)
            subjects[i].ns[l] = INFINITY;
    for (int round = 0; round < rounds; round++) {
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        for (int i = 0; i < n; i++)
            VQKVC_TRY(time_round(&subjects[i], round, context, err));
    }
    return VQKVC_OK;
}

/* Opens and fills a cache of the codec; the subject's g and ns are set. */
static vqkvc_code open_subject(subject *s, const vqkvc_codec *codec, int context,
                               const vqkvc_calibration *o, vqkvc_err *err)
{
    size_t query = (size_t)(s->g->n_heads * s->g->head_dim);
    vqkvc_rng rng = vqkvc_rng_make(o->seed, 0);
    vqkvc_progress progress;
    s->q = vqkvc_alloc(query, sizeof *s->q, err);
    s->out = vqkvc_alloc(query, sizeof *s->out, err);
    if (err->code != VQKVC_OK)
        return err->code;
    make_vectors(&rng, s->g->n_heads, s->g->head_dim, s->q);
    VQKVC_TRY(
        vqkvc_cache_header(&s->cache, codec, "calibration", s->g, 1, context, BATCH, o->isa, err));
    vqkvc_progress_begin(&progress, o->log, "calibrate", "tokens", (uint64_t)context);
    VQKVC_TRY(fill(s, context, &rng, &progress, err));
    vqkvc_progress_end(&progress, (uint64_t)context);
    return VQKVC_OK;
}

vqkvc_code vqkvc_calibrate(int n, const vqkvc_geometry *const *g, const vqkvc_codec *codecs,
                           const vqkvc_calibration *options, double *const *ns, vqkvc_err *err)
{
    int context = options->context > 0 ? options->context : CONTEXT;
    int rounds = options->rounds > 0 ? options->rounds : ROUNDS;
    subject *subjects = vqkvc_alloc((size_t)n, sizeof *subjects, err);
    for (int i = 0; i < n && err->code == VQKVC_OK; i++) {
        subjects[i] = (subject){.g = g[i], .ns = ns[i]};
        open_subject(&subjects[i], &codecs[i], context, options, err);
    }
    if (err->code == VQKVC_OK)
        time_all(subjects, n, context, rounds, err);
    for (int i = 0; subjects != NULL && i < n; i++) {
        if (subjects[i].cache.free != NULL)
            subjects[i].cache.free(subjects[i].cache.self);
        free(subjects[i].q);
        free(subjects[i].out);
    }
    free(subjects);
    return err->code;
}
