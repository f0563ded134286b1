#include "eval/measure.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "eval/probe.h"

enum { DEFAULT_STEP = 1, DEFAULT_FIRST = 128, DEFAULT_MAX_BYTES = 1 << 30, MAX_SUBJECTS = 64 };

/* One call of vqkvc_measure(). All arrays lie in the arena; caches are those of the group at hand.
 */
typedef struct measurement {
    vqkvc_model *model;
    const vqkvc_geometry *g;
    const int32_t *tokens; /* [n_windows, context] */
    int n, vocab, group;
    const vqkvc_subject *subjects; /* [n] */
    vqkvc_measure_options o;       /* defaults filled in */
    vqkvc_measured *results;       /* [n] */
    vqkvc_arena arena;
    vqkvc_cache exact, probe;
    vqkvc_cache *caches, *probed, *plain; /* [n] */
    int32_t *ids;                         /* [group * step] */
    int *seq, *pos;                       /* [group * step] */
    float *logits;                        /* [n + 1, group * step, vocab]: exact, then the codecs */
    double *p;                            /* [group * step, vocab] */
    vqkvc_point *exact_points;            /* [n_windows, context] */
    vqkvc_point *points;                  /* [n, n_windows, context] */
    double *bytes;                        /* [n] at the end of all windows so far */
    vqkvc_probe_sum *errors;              /* [n, n_layers] */
    vqkvc_err *errs;                      /* [n + 1] of the forward passes of a step */
    vqkvc_progress progress;
    uint64_t done; /* tokens through some forward pass */
} measurement;

static vqkvc_code fill_defaults(measurement *m, const vqkvc_measure_options *options,
                                vqkvc_err *err)
{
    m->o = *options;
    m->o.step = m->o.step != 0 ? m->o.step : DEFAULT_STEP;
    m->o.first_counted = m->o.first_counted != 0 ? m->o.first_counted : DEFAULT_FIRST;
    m->o.max_bytes = m->o.max_bytes != 0 ? m->o.max_bytes : DEFAULT_MAX_BYTES;
    if (m->n < 1 || m->n > MAX_SUBJECTS)
        return vqkvc_fail(err, VQKVC_E_USAGE, "eval: %d headers; 1 to %d at a time", m->n,
                          MAX_SUBJECTS);
    if (m->o.n_windows < 1 || m->o.step < 1 || m->o.first_counted < 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "eval: %d windows, step %d, counted from %d",
                          m->o.n_windows, m->o.step, m->o.first_counted);
    /* One position more, so that one of them has a token that follows. */
    if (m->o.context < m->o.first_counted + 2)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "eval: a context of %d tokens; positions count from %d on, so that tokens "
            "are coded: at least %d",
            m->o.context, m->o.first_counted, m->o.first_counted + 2);
    m->o.step = m->o.step < m->o.context ? m->o.step : m->o.context;
    return VQKVC_OK;
}

/* Windows that run at once: see the head of measure.h. */
static vqkvc_code choose_group(measurement *m, vqkvc_err *err)
{
    const vqkvc_geometry *g = m->g;
    double a_window = 8.0 * m->o.context * g->n_layers * g->n_kv_heads * g->head_dim +
                      (4.0 * (m->n + 1) + 8.0) * m->o.step * m->vocab;
    for (int i = 0; i < m->n; i++) {
        size_t bytes;
        VQKVC_TRY(vqkvc_cache_header_size(m->subjects[i].codec, m->subjects[i].name, 1,
                                          m->o.context, m->o.step, &bytes, err));
        a_window += (double)bytes * (m->o.probe ? 3 : 1);
        if (m->o.watch)
            a_window += 8.0 * m->o.context * g->n_layers * g->n_kv_heads * g->head_dim;
    }
    double fit = floor((double)m->o.max_bytes / a_window);
    int most = fit < 1 ? 1 : fit > m->o.n_windows ? m->o.n_windows : (int)fit;
    int n_groups = (m->o.n_windows + most - 1) / most;
    m->group = (m->o.n_windows + n_groups - 1) / n_groups;
    return VQKVC_OK;
}

static vqkvc_code allocate(measurement *m, vqkvc_err *err)
{
    size_t rows = (size_t)m->group * m->o.step, n = (size_t)m->n, vocab = (size_t)m->vocab;
    size_t held = (size_t)m->o.n_windows * m->o.context;
    struct {
        void *pointer; /* to the pointer to fill */
        size_t n, size;
    } const wanted[] = {
        {&m->caches, n, sizeof *m->caches},
        {&m->probed, n, sizeof *m->probed},
        {&m->plain, n, sizeof *m->plain},
        {&m->ids, rows, sizeof *m->ids},
        {&m->seq, rows, sizeof *m->seq},
        {&m->pos, rows, sizeof *m->pos},
        {&m->logits, (n + 1) * rows * vocab, sizeof *m->logits},
        {&m->errs, n + 1, sizeof *m->errs},
        {&m->p, rows * vocab, sizeof *m->p},
        {&m->exact_points, held, sizeof *m->points},
        {&m->points, held * n, sizeof *m->points},
        {&m->bytes, n, sizeof *m->bytes},
        {&m->errors, n * (size_t)m->g->n_layers, sizeof *m->errors},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *memory = vqkvc_arena_alloc(&m->arena, wanted[i].n, wanted[i].size, err);
        if (memory == NULL)
            return err->code;
        memcpy(wanted[i].pointer, &memory, sizeof memory);
    }
    return VQKVC_OK;
}

static void drop(vqkvc_cache *cache)
{
    if (cache->free != NULL)
        cache->free(cache->self);
    *cache = (vqkvc_cache){0};
}

static void drop_caches(measurement *m)
{
    drop(&m->probe);
    drop(&m->exact);
    for (int i = 0; m->caches != NULL && m->probed != NULL && m->plain != NULL && i < m->n; i++) {
        drop(&m->caches[i]);
        drop(&m->probed[i]);
        drop(&m->plain[i]);
    }
}

static vqkvc_code make_caches(measurement *m, int n_seq, vqkvc_err *err)
{
    const vqkvc_measure_options *o = &m->o;
    VQKVC_TRY(vqkvc_cache_exact(&m->exact, m->g, n_seq, o->context, err));
    for (int i = 0; i < m->n; i++) {
        const vqkvc_subject *s = &m->subjects[i];
        VQKVC_TRY(vqkvc_cache_header(&m->caches[i], s->codec, s->name, m->g, n_seq, o->context,
                                     o->step, o->isa, err));
        VQKVC_TRY(vqkvc_cache_header_choose(&m->caches[i], s->top_tokens, err));
        if (o->watch)
            VQKVC_TRY(vqkvc_cache_header_watch(&m->caches[i], err));
        if (!o->probe)
            continue;
        VQKVC_TRY(vqkvc_cache_header(&m->probed[i], s->codec, s->name, m->g, n_seq, o->context,
                                     o->step, o->isa, err));
        VQKVC_TRY(vqkvc_cache_header(&m->plain[i], s->codec, s->name, m->g, n_seq, o->context,
                                     o->step, VQKVC_ISA_PORTABLE, err));
        VQKVC_TRY(vqkvc_cache_header_choose(&m->probed[i], s->top_tokens, err));
        VQKVC_TRY(vqkvc_cache_header_choose(&m->plain[i], s->top_tokens, err));
    }
    if (o->probe)
        VQKVC_TRY(vqkvc_probe_make(&m->probe, &m->exact, m->probed, m->plain, m->n, m->g, n_seq,
                                   o->step, o->first_counted, err));
    return VQKVC_OK;
}

/* Tokens at .. at + n - 1 of the n_seq windows from `first` on, as one batch. */
static vqkvc_batch make_batch(measurement *m, int first, int n_seq, int at, int n)
{
    int row = 0;
    for (int s = 0; s < n_seq; s++)
        for (int t = 0; t < n; t++, row++) {
            m->ids[row] = m->tokens[(size_t)(first + s) * m->o.context + at + t];
            m->seq[row] = s;
            m->pos[row] = at + t;
        }
    return (vqkvc_batch){.n = row, .ids = m->ids, .seq = m->seq, .pos = m->pos};
}

/* A codec's points, [n_windows, context]. */
static vqkvc_point *points_of(const measurement *m, int codec)
{
    return m->points + (size_t)codec * m->o.n_windows * m->o.context;
}

/* The index of a batch row's point among all windows. */
static size_t point_of(const measurement *m, int first, int row)
{
    return (size_t)(first + m->seq[row]) * m->o.context + m->pos[row];
}

static int32_t next_of(const measurement *m, int first, int row)
{
    size_t at = point_of(m, first, row);
    return m->pos[row] + 1 < m->o.context ? m->tokens[at + 1] : -1;
}

static vqkvc_code check_finite(const measurement *m, int first, const vqkvc_batch *batch,
                               const char *name, const vqkvc_point *points, vqkvc_err *err)
{
    for (int row = 0; row < batch->n; row++) {
        const vqkvc_point *point = &points[point_of(m, first, row)];
        if (!isfinite(point->kl) || !isfinite(point->nll))
            return vqkvc_fail(err, VQKVC_E_NUMERIC,
                              "%s: logits are not finite in window %d, position %d", name,
                              first + m->seq[row], m->pos[row]);
    }
    return VQKVC_OK;
}

static float *logits_of(const measurement *m, int run)
{
    return m->logits + (size_t)run * m->group * m->o.step * m->vocab;
}

/* The forward passes of one step. Run 0 is the exact one, run i + 1 codec i. Small steps leave
 * little to share inside one pass, so passes run side by side where they can fill the threads; the
 * bits are the same either way. */
static vqkvc_code forward_all(measurement *m, const vqkvc_batch *batch, vqkvc_err *err)
{
    const vqkvc_cache *exact = m->o.probe ? &m->probe : &m->exact;
#pragma omp parallel for schedule(dynamic) if (omp_get_max_threads() <= m->n + 1)
    for (int run = 0; run <= m->n; run++) {
        double started = vqkvc_seconds();
        vqkvc_forward(m->model, run == 0 ? exact : &m->caches[run - 1], batch, NULL,
                      logits_of(m, run), &m->errs[run]);
        if (run > 0)
            m->results[run - 1].seconds += vqkvc_seconds() - started;
    }
    for (int run = 0; run <= m->n; run++)
        if (m->errs[run].code != VQKVC_OK)
            return vqkvc_fail(err, m->errs[run].code, "%s", m->errs[run].msg);
    return VQKVC_OK;
}

static void compare_row(measurement *m, int first, int row)
{
    size_t at = (size_t)row * m->vocab, to = point_of(m, first, row);
    const float *exact = m->logits + at;
    double *p = m->p + at;
    int32_t next = next_of(m, first, row);
    double lse = vqkvc_point_exact(exact, m->vocab, next, p, &m->exact_points[to]);
    for (int i = 0; i < m->n; i++)
        vqkvc_point_codec(exact, p, lse, logits_of(m, i + 1) + at, m->vocab, next,
                          &points_of(m, i)[to]);
}

/* One batch through every cache, and its logits compared. */
static vqkvc_code run_step(measurement *m, int first, const vqkvc_batch *batch, vqkvc_err *err)
{
    VQKVC_TRY(forward_all(m, batch, err));
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->n; row++)
        compare_row(m, first, row);
    VQKVC_TRY(check_finite(m, first, batch, "exact cache", m->exact_points, err));
    for (int i = 0; i < m->n; i++)
        VQKVC_TRY(check_finite(m, first, batch, m->subjects[i].name, points_of(m, i), err));
    m->done += (uint64_t)batch->n * (uint64_t)(m->n + 1);
    vqkvc_progress_step(&m->progress, m->done);
    return VQKVC_OK;
}

/* Adds what cache i holds of n_seq windows to its errors. */
static vqkvc_code watch(const measurement *m, int i, int n_seq, vqkvc_err *err)
{
    vqkvc_measured *r = &m->results[i];
    double worst, kept;
    VQKVC_TRY(vqkvc_cache_header_errors(&m->caches[i], &worst, &kept, err));
    r->worst_error = worst > r->worst_error ? worst : r->worst_error;
    r->kept_rate += kept * n_seq / m->o.n_windows;
    return VQKVC_OK;
}

/* Windows first .. first + n_seq - 1, from their first token to their last. */
static vqkvc_code run_group(measurement *m, int first, int n_seq, vqkvc_err *err)
{
    VQKVC_TRY(make_caches(m, n_seq, err));
    for (int at = 0; at < m->o.context; at += m->o.step) {
        int n = m->o.context - at < m->o.step ? m->o.context - at : m->o.step;
        vqkvc_batch batch = make_batch(m, first, n_seq, at, n);
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        VQKVC_TRY(run_step(m, first, &batch, err));
    }
    for (int i = 0; i < m->n; i++) {
        m->bytes[i] += (double)m->caches[i].bytes(m->caches[i].self);
        if (m->o.watch)
            VQKVC_TRY(watch(m, i, n_seq, err));
        for (int l = 0; m->o.probe && l < m->g->n_layers; l++)
            vqkvc_probe_add(&m->probe, i, l, &m->errors[(size_t)i * m->g->n_layers + l]);
    }
    return VQKVC_OK;
}

static vqkvc_code sum_up(measurement *m, int i, vqkvc_err *err)
{
    const vqkvc_geometry *g = m->g;
    vqkvc_measured *r = &m->results[i];
    double held = (double)m->o.n_windows * m->o.context;
    double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim; /* of a token */
    const vqkvc_point *points = points_of(m, i);
    vqkvc_fidelity_sum(m->exact_points, points, m->o.n_windows, m->o.context, m->o.first_counted,
                       &r->late);
    vqkvc_fidelity_sum(m->exact_points, points, m->o.n_windows, m->o.context, 0, &r->all);
    r->used_bits = 8 * m->bytes[i] / (held * values);
    r->n_layers = m->o.probe ? g->n_layers : 0;
    for (int l = 0; l < r->n_layers; l++) {
        const vqkvc_probe_sum *sum = &m->errors[(size_t)i * g->n_layers + l];
        r->layer_error[l] = sum->reference > 0 ? sqrt(sum->error / sum->reference) : 0;
        r->kernel_error[l] = sum->error > 0 ? sqrt(sum->kernels / sum->error) : 0;
    }
    return vqkvc_stored_bits(m->subjects[i].codec, m->subjects[i].name, g, &r->stored_bits, err);
}

static vqkvc_code run_all(measurement *m, vqkvc_err *err)
{
    VQKVC_TRY(choose_group(m, err));
    VQKVC_TRY(allocate(m, err));
    vqkvc_progress_begin(&m->progress, m->o.log, "eval", "tokens",
                         (uint64_t)m->o.n_windows * m->o.context * (uint64_t)(m->n + 1));
    for (int first = 0; first < m->o.n_windows; first += m->group) {
        int left = m->o.n_windows - first;
        VQKVC_TRY(run_group(m, first, left < m->group ? left : m->group, err));
        drop_caches(m);
    }
    vqkvc_progress_end(&m->progress, m->done);
    for (int i = 0; i < m->n; i++)
        VQKVC_TRY(sum_up(m, i, err));
    return VQKVC_OK;
}

vqkvc_code vqkvc_measure(vqkvc_model *model, const int32_t *tokens, int n,
                         const vqkvc_subject *subjects, const vqkvc_measure_options *options,
                         vqkvc_measured *results, vqkvc_err *err)
{
    measurement m = {.model = model,
                     .g = vqkvc_model_geometry(model),
                     .tokens = tokens,
                     .n = n,
                     .vocab = vqkvc_model_vocab_size(model),
                     .subjects = subjects,
                     .results = results};
    VQKVC_TRY(fill_defaults(&m, options, err));
    for (int i = 0; i < n; i++) {
        VQKVC_TRY(vqkvc_codec_check(subjects[i].codec, subjects[i].name, m.g, err));
        results[i] = (vqkvc_measured){0};
    }
    vqkvc_code code = run_all(&m, err);
    drop_caches(&m);
    vqkvc_arena_free(&m.arena);
    return code;
}

vqkvc_code vqkvc_cut_windows(const int32_t *tokens, size_t n_tokens, int n_windows, int context,
                             int32_t bos, int32_t *windows, vqkvc_err *err)
{
    if (n_windows < 1 || context < 1 || n_tokens / (size_t)context < (size_t)n_windows)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "eval: %d windows of %d tokens do not fit a text of %zu tokens",
                          n_windows, context, n_tokens);
    size_t stride = n_tokens / (size_t)n_windows;
    for (int w = 0; w < n_windows; w++) {
        int32_t *window = windows + (size_t)w * context;
        memcpy(window, tokens + (size_t)w * stride, (size_t)context * sizeof *window);
        if (bos >= 0)
            window[0] = bos;
    }
    return VQKVC_OK;
}
