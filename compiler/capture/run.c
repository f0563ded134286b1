#include "capture/run.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "capture/choose.h"
#include "capture/collect.h"

enum { PREFILL = 256 /* tokens of one window in one forward step */ };

typedef struct run {
    vqkvc_model *model;
    const vqkvc_geometry *g;
    const vqkvc_source *source;
    vqkvc_capture_params params;
    int shard_len; /* sequences a shard */
    int64_t *kept; /* [n_kept] token numbers in the sample, ascending */
    int64_t n_kept;
    vqkvc_cache cache;
    vqkvc_collector collector;
    vqkvc_progress progress;
    int64_t done; /* tokens */
    /* the shard in flight */
    int first_seq, seq_base; /* sequence of cache slot 0 is seq_base */
    int64_t first_kept;      /* index into kept of the shard's first */
    double *residual_sum;    /* [n_layers] squares of the residual stream */
    vqkvc_where *where;      /* [step_max] */
    /* one step's tokens, [step_max] */
    int step_max;
    int32_t *ids;
    int *seq, *pos;
    float *logits;  /* [batch, vocab], self-sampling */
    vqkvc_rng *rng; /* [batch] */
} run;

/* ---- which tokens are kept ---- */

static int64_t skipped(const run *r, int seq)
{
    int64_t len = r->source->start[seq + 1] - r->source->start[seq];
    int64_t skip = r->params.n_skip < 0 ? 0 : r->params.n_skip;
    return skip < len ? skip : len;
}

/* vqkvc_choose() counts eligible tokens; this maps those ranks to token numbers. */
static vqkvc_code choose_sample(run *r, vqkvc_err *err)
{
    int64_t eligible = r->source->start[r->source->n_seq];
    for (int s = 0; s < r->source->n_seq; s++)
        eligible -= skipped(r, s);
    if (eligible == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: no token to keep beyond the first %d of each sequence",
                          r->source->name, r->params.n_skip);
    r->n_kept = eligible < r->params.n_sample ? eligible : r->params.n_sample;
    r->kept = vqkvc_alloc((size_t)r->n_kept, sizeof *r->kept, err);
    if (r->kept == NULL)
        return err->code;
    vqkvc_choose(r->params.seed, VQKVC_STREAM_SAMPLE, eligible, r->n_kept, r->kept);
    int64_t offset = 0, at = 0; /* token number less rank, in sequence s */
    for (int s = 0; s < r->source->n_seq; s++) {
        offset += skipped(r, s);
        while (at < r->n_kept && r->kept[at] + offset < r->source->start[s + 1])
            r->kept[at++] += offset;
    }
    return VQKVC_OK;
}

/* How many kept tokens have a number below `token`. */
static int64_t kept_below(const run *r, int64_t token)
{
    int64_t low = 0, high = r->n_kept;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        if (r->kept[mid] < token)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* ---- the tap ---- */

static vqkvc_code on_qkv(void *self, int layer, int n, const int *seq, const int *pos,
                         const float *q, const float *k, const float *v, vqkvc_err *err)
{
    run *r = self;
    for (int i = 0; i < n; i++) {
        int doc = r->seq_base + seq[i];
        int64_t token = r->source->start[doc] + pos[i], rank = kept_below(r, token);
        int kept = rank < r->n_kept && r->kept[rank] == token;
        r->where[i] = (vqkvc_where){kept ? (int)(rank - r->first_kept) : -1, doc, pos[i]};
    }
    VQKVC_TRY(vqkvc_collector_put(&r->collector, VQKVC_KEY, layer, n, r->where, k, err));
    VQKVC_TRY(vqkvc_collector_put(&r->collector, VQKVC_VALUE, layer, n, r->where, v, err));
    return vqkvc_collector_put(&r->collector, VQKVC_QUERY, layer, n, r->where, q, err);
}

static vqkvc_code on_residual(void *self, int layer, int n, int d_model, const float *x,
                              vqkvc_err *err)
{
    run *r = self;
    (void)err;
    for (size_t i = 0; i < (size_t)n * (size_t)d_model; i++)
        r->residual_sum[layer] += (double)x[i] * x[i];
    return VQKVC_OK;
}

static vqkvc_code step(run *r, int n, float *logits, vqkvc_err *err)
{
    vqkvc_tap tap = {.self = r, .qkv = on_qkv, .residual = on_residual};
    vqkvc_batch batch = {n, r->ids, r->seq, r->pos};
    if (vqkvc_interrupted())
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "capture interrupted after %lld tokens",
                          (long long)r->done);
    VQKVC_TRY(vqkvc_forward(r->model, &r->cache, &batch, &tap, logits, err));
    r->done += n;
    vqkvc_progress_step(&r->progress, (uint64_t)r->done);
    return VQKVC_OK;
}

/* ---- given tokens ---- */

static vqkvc_code run_window(run *r, int seq, vqkvc_err *err)
{
    int64_t start = r->source->start[seq];
    int len = (int)(r->source->start[seq + 1] - start);
    r->seq_base = seq;
    for (int at = 0; at < len; at += PREFILL) {
        int n = len - at < PREFILL ? len - at : PREFILL;
        for (int i = 0; i < n; i++) {
            r->ids[i] = r->source->ids[start + at + i];
            r->seq[i] = 0;
            r->pos[i] = at + i;
        }
        VQKVC_TRY(step(r, n, NULL, err));
    }
    return r->cache.trim(r->cache.self, 0, 0, err);
}

/* ---- self-sampling ---- */

static int32_t first_token(const run *r, vqkvc_rng *rng)
{
    int32_t bos = vqkvc_token_bos(r->model), eos = vqkvc_token_eos(r->model);
    if (bos >= 0)
        return bos;
    return eos >= 0 ? eos
                    : (int32_t)vqkvc_rng_below(rng, (uint64_t)vqkvc_model_vocab_size(r->model));
}

/* Each sequence has its own generator, so threads cannot change what is drawn. */
static void draw(run *r, int n)
{
    int vocab = vqkvc_model_vocab_size(r->model);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++)
        r->ids[i] =
            vqkvc_sample_token(r->logits + (size_t)i * (size_t)vocab, vocab, r->params.temperature,
                               r->params.top_k, r->params.top_p, vqkvc_rng_uniform(&r->rng[i]));
}

static vqkvc_code run_self(run *r, int first, int n, vqkvc_err *err)
{
    const int64_t *start = r->source->start + first;
    r->seq_base = first;
    for (int i = 0; i < n; i++) {
        r->rng[i] = vqkvc_rng_make(r->params.seed, (uint64_t)(first + i));
        r->ids[i] = first_token(r, &r->rng[i]);
        r->seq[i] = i;
    }
    /* All sequences are equally long, but the last one of all, which may end early. */
    for (int pos = 0; pos < start[1] - start[0]; pos++) {
        while (pos >= start[n] - start[n - 1])
            n--;
        for (int i = 0; i < n; i++)
            r->pos[i] = pos;
        VQKVC_TRY(step(r, n, r->logits, err));
        draw(r, n);
    }
    for (int i = 0; i < r->shard_len; i++)
        VQKVC_TRY(r->cache.trim(r->cache.self, i, 0, err));
    return VQKVC_OK;
}

/* ---- shards ---- */

/* What a shard must have, whether it is computed or loaded. */
typedef struct extent {
    int first, n; /* sequences */
    int64_t tokens, first_kept;
    int n_kept;
} extent;

static extent shard_extent(const run *r, int shard)
{
    const int64_t *start = r->source->start;
    int first = shard * r->shard_len, left = r->source->n_seq - first;
    int n = left < r->shard_len ? left : r->shard_len;
    int64_t below = kept_below(r, start[first]);
    return (extent){first, n, start[first + n] - start[first], below,
                    (int)(kept_below(r, start[first + n]) - below)};
}

static void label(const run *r, vqkvc_capture *c)
{
    memcpy(c->source, r->source->name, sizeof c->source);
    c->source_hash = r->source->hash;
    c->seed = r->params.seed;
}

static vqkvc_code close_residual(const run *r, vqkvc_capture *part, vqkvc_err *err)
{
    double n = (double)part->n_tokens * r->g->d_model;
    part->residual_ms = vqkvc_arena_alloc(&part->arena, (size_t)r->g->n_layers, sizeof(float), err);
    for (int i = 0; part->residual_ms != NULL && i < r->g->n_layers; i++)
        part->residual_ms[i] = (float)(r->residual_sum[i] / n);
    return err->code;
}

static vqkvc_code compute_shard(run *r, const extent *e, vqkvc_capture *part, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_capture_alloc(part, r->g, e->n_kept, err));
    label(r, part);
    part->n_sample = e->n_kept;
    part->n_tokens = (uint64_t)e->tokens;
    r->first_kept = e->first_kept;
    vqkvc_collector_next(&r->collector, part);
    memset(r->residual_sum, 0, (size_t)r->g->n_layers * sizeof *r->residual_sum);
    if (r->source->ids == NULL)
        VQKVC_TRY(run_self(r, e->first, e->n, err));
    else
        for (int s = e->first; s < e->first + e->n; s++)
            VQKVC_TRY(run_window(r, s, err));
    vqkvc_collector_finish(&r->collector);
    return close_residual(r, part, err);
}

/* A shard from outside must be the one that would be computed here. */
static int shard_fits(const run *r, const extent *e, const vqkvc_capture *part)
{
    if (strcmp(part->source_hash.hex, r->source->hash.hex) != 0 || part->seed != r->params.seed ||
        part->n_tokens != (uint64_t)e->tokens || part->n_sample != e->n_kept)
        return 0;
    for (int i = 0; i < part->n_sample; i++) {
        int doc = part->doc[i];
        if (doc < e->first || doc >= e->first + e->n ||
            r->source->start[doc] + part->pos[i] != r->kept[e->first_kept + i])
            return 0;
    }
    return 1;
}

static vqkvc_code obtain_shard(run *r, int shard, vqkvc_capture *part, vqkvc_err *err)
{
    extent e = shard_extent(r, shard);
    int found = 0;
    if (r->params.shard_load != NULL)
        VQKVC_TRY(r->params.shard_load(r->params.self, shard, part, &found, err));
    if (found && !shard_fits(r, &e, part))
        return vqkvc_fail(err, VQKVC_E_STORE, "stored shard %d belongs to another capture", shard);
    if (found) {
        r->done += e.tokens;
        return VQKVC_OK;
    }
    VQKVC_TRY(compute_shard(r, &e, part, err));
    if (r->params.shard_done != NULL)
        VQKVC_TRY(r->params.shard_done(r->params.self, shard, part, err));
    return VQKVC_OK;
}

static vqkvc_code run_shards(run *r, vqkvc_capture *c, vqkvc_err *err)
{
    int n_shards = (r->source->n_seq + r->shard_len - 1) / r->shard_len;
    for (int shard = 0; shard < n_shards && err->code == VQKVC_OK; shard++) {
        vqkvc_capture part = {0};
        if (obtain_shard(r, shard, &part, err) == VQKVC_OK)
            vqkvc_capture_merge(c, &part, err);
        vqkvc_capture_free(&part);
    }
    return err->code;
}

/* ---- the whole ---- */

static vqkvc_code fill_value_metric(const run *r, vqkvc_capture *c, vqkvc_err *err)
{
    const vqkvc_geometry *g = r->g;
    size_t block = (size_t)g->n_kv_heads * (size_t)g->head_dim * (size_t)g->head_dim;
    size_t wo_size = (size_t)g->d_model * (size_t)vqkvc_kind_width(g, VQKVC_QUERY);
    float *wo = vqkvc_alloc(wo_size, sizeof *wo, err);
    c->value_metric = vqkvc_arena_alloc(&c->arena, block * (size_t)g->n_layers, sizeof(float), err);
    for (int layer = 0; layer < g->n_layers && err->code == VQKVC_OK; layer++)
        if (vqkvc_model_output_projection(r->model, layer, wo, err) == VQKVC_OK)
            vqkvc_value_metric(g, wo, c->value_metric + (size_t)layer * block, err);
    free(wo);
    return err->code;
}

static int longest_sequence(const vqkvc_source *source)
{
    int64_t longest = 0;
    for (int s = 0; s < source->n_seq; s++)
        if (source->start[s + 1] - source->start[s] > longest)
            longest = source->start[s + 1] - source->start[s];
    return (int)longest;
}

static vqkvc_code run_alloc(run *r, vqkvc_capture *c, vqkvc_err *err)
{
    int self = r->source->ids == NULL, n_seq = self ? r->shard_len : 1;
    size_t step_max = self ? (size_t)r->shard_len : PREFILL;
    size_t vocab = (size_t)vqkvc_model_vocab_size(r->model);
    VQKVC_TRY(choose_sample(r, err));
    VQKVC_TRY(vqkvc_capture_alloc(c, r->g, (int)r->n_kept, err));
    VQKVC_TRY(vqkvc_collector_begin(&r->collector, c, err));
    VQKVC_TRY(vqkvc_cache_exact(&r->cache, r->g, n_seq, longest_sequence(r->source), err));
    r->residual_sum = vqkvc_alloc((size_t)r->g->n_layers, sizeof *r->residual_sum, err);
    r->where = vqkvc_alloc(step_max, sizeof *r->where, err);
    r->ids = vqkvc_alloc(step_max, sizeof *r->ids, err);
    r->seq = vqkvc_alloc(step_max, sizeof *r->seq, err);
    r->pos = vqkvc_alloc(step_max, sizeof *r->pos, err);
    r->rng = vqkvc_alloc(step_max, sizeof *r->rng, err);
    r->logits = vqkvc_alloc(self ? step_max * vocab : 0, sizeof *r->logits, err);
    return err->code;
}

static void run_free(run *r)
{
    if (r->cache.free != NULL)
        r->cache.free(r->cache.self);
    vqkvc_collector_free(&r->collector);
    free(r->kept);
    free(r->residual_sum);
    free(r->where);
    free(r->ids);
    free(r->seq);
    free(r->pos);
    free(r->rng);
    free(r->logits);
}

vqkvc_code vqkvc_capture_run(vqkvc_model *model, const vqkvc_source *source,
                             const vqkvc_capture_params *params, const vqkvc_log *log,
                             vqkvc_capture *c, vqkvc_err *err)
{
    run r = {.model = model, .g = vqkvc_model_geometry(model), .source = source};
    *c = (vqkvc_capture){0};
    VQKVC_TRY(vqkvc_capture_params_resolve(params, r.g, 0, &r.params, err));
    r.shard_len = source->ids == NULL ? r.params.batch : r.params.shard;
    if (r.shard_len > source->n_seq)
        r.shard_len = source->n_seq;
    vqkvc_progress_begin(&r.progress, log, "capture", "tokens",
                         (uint64_t)source->start[source->n_seq]);
    if (run_alloc(&r, c, err) == VQKVC_OK) {
        label(&r, c);
        if (run_shards(&r, c, err) == VQKVC_OK)
            fill_value_metric(&r, c, err);
    }
    vqkvc_progress_end(&r.progress, (uint64_t)r.done);
    run_free(&r);
    return err->code;
}

const char *vqkvc_capture_recipe(const vqkvc_model *model, const vqkvc_source *source,
                                 const vqkvc_capture_params *params, int shard, vqkvc_arena *arena,
                                 vqkvc_err *err)
{
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    vqkvc_capture_params p;
    if (vqkvc_capture_params_resolve(params, g, 0, &p, err) != VQKVC_OK)
        return NULL;
    const char *whole = vqkvc_arena_printf(
        arena, err, "capture v2;model=%s;source=%s;seed=%llu;sample=%d;skip=%d;shard_len=%d",
        g->weights_hash.hex, source->hash.hex, (unsigned long long)p.seed, p.n_sample, p.n_skip,
        source->ids == NULL ? p.batch : p.shard);
    if (whole == NULL || shard < 0)
        return whole;
    return vqkvc_arena_printf(arena, err, "%s;shard=%d", whole, shard);
}
