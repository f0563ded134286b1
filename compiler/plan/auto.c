#include "plan/auto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/fit_stream.h"
#include "plan/search.h"
#include "plan/universal.h"

enum {
    MOST_SEARCHES = 6, /* until a fitted plan keeps its time */
    /* Tokens that are coded together. Where queries are turned for every block, twice as many take
     * two thirds of the time at the same fidelity (SPEED.md); but they wait in fp16 until there are
     * enough, which is dear in a short cache. */
    BLOCK = 64,
    TURNED_BLOCK = 128,
    LONG_CACHE = 4096 /* tokens */
};

/* Whether the cache is said to be much longer than what probes see. */
static int is_long(const vqkvc_auto_params *p)
{
    return p->tables_at >= LONG_CACHE;
}

static vqkvc_auto_params with_defaults(const vqkvc_auto_params *given)
{
    vqkvc_auto_params p = *given;
    if (p.bits == 0)
        p.bits = 2;
    if (p.max_scan == 0)
        p.max_scan = 5.5;
    if (p.window.n_sink <= 0)
        p.window.n_sink = 4;
    if (p.window.n_recent <= 0)
        p.window.n_recent = 32;
    if (p.window.block <= 0) {
        int is_short = p.tables_at > 0 && !is_long(&p);
        p.window.block = p.frame == VQKVC_FRAME_BLOCK && !is_short ? TURNED_BLOCK : BLOCK;
    }
    if (p.seed == 0)
        p.seed = 1;
    return p;
}

/* Frame of keys, tokens of a block, and the stretches that these make. */
static void set_frame(vqkvc_auto_params *p, const vqkvc_geometry *g, vqkvc_frame frame, int block,
                      vqkvc_spans spans)
{
    p->frame = frame;
    p->window.block = block;
    p->spans = frame == VQKVC_FRAME_BLOCK ? spans : VQKVC_SPANS_BLOCK;
    memset(p->stretch, 0, sizeof p->stretch);
    if (p->spans != VQKVC_SPANS_BLOCK)
        vqkvc_frame_stretch(g, block, p->spans == VQKVC_SPANS_BANDS, p->stretch);
    vqkvc_key_frame now = vqkvc_auto_frame(p);
    p->steady = 1 - vqkvc_frame_turning_share(g, &now);
}

/* Everything that the samples and metrics of a stream depend on besides the capture. */
static char *settings_text(const vqkvc_auto_params *p, vqkvc_arena *arena, vqkvc_err *err)
{
    return vqkvc_arena_printf(
        arena, err, "frame=%d spans=%d block=%d seed=%llu metric=%d probes=%s%s", (int)p->frame,
        (int)p->spans, p->window.block, (unsigned long long)p->seed, !p->no_metric,
        p->sensitivity != NULL ? p->probes.hex : "none",
        p->sensitivity != NULL && is_long(p) ? " raised" : "");
}

/* x [n, n_in] loses what `stream` codes of it. */
static vqkvc_code take_off(const vqkvc_plan *plan, int stream, int n, float *x, vqkvc_err *err)
{
    const vqkvc_stream *s = &plan->streams[stream];
    size_t total = (size_t)n * (size_t)s->n_in;
    float *x_hat = vqkvc_alloc(total, sizeof(float), err);
    if (x_hat != NULL && vqkvc_stream_apply(plan, s, n, x, x_hat, NULL, err) == VQKVC_OK)
        for (size_t i = 0; i < total; i++)
            x[i] -= x_hat[i];
    free(x_hat);
    return err->code;
}

/* What fitting the streams of one scope shares. */
typedef struct scope_fit {
    vqkvc_plan *plan;
    const vqkvc_capture *c;
    const vqkvc_auto_params *p;
    const vqkvc_scope *scope;
    vqkvc_key_frame frame; /* of keys */
    const vqkvc_fit_store *store;
    vqkvc_member *members; /* [vqkvc_scope_members()] */
    const double **metric; /* the same */
    float *x;              /* [n_sample, members * head_dim] */
    vqkvc_hash residual;   /* of the shared stream's codebooks */
} scope_fit;

static vqkvc_code scope_fit_make(scope_fit *f, const vqkvc_metrics *metrics, vqkvc_err *err)
{
    size_t n = (size_t)vqkvc_scope_members(f->scope);
    size_t n_in = n * (size_t)f->c->geometry.head_dim;
    f->members = vqkvc_alloc(n, sizeof *f->members, err);
    f->metric = vqkvc_alloc(n, sizeof *f->metric, err);
    f->x = vqkvc_alloc((size_t)f->c->n_sample * n_in, sizeof *f->x, err);
    if (err->code != VQKVC_OK)
        return err->code;
    vqkvc_scope_list(f->scope, f->members);
    for (size_t i = 0; i < n; i++) {
        int h = f->members[i].layer * f->c->geometry.n_kv_heads + f->members[i].head;
        f->metric[i] = (f->scope->part == VQKVC_PART_K ? metrics->k : metrics->v)[h];
    }
    return vqkvc_sample_members(f->c, f->members, (int)n, &f->frame, f->p->seed, f->x, err);
}

static void scope_fit_free(scope_fit *f)
{
    free(f->members);
    free(f->metric);
    free(f->x);
}

/* "K 3 h0", "V 0-7 h0-1": the part, layers and heads of neighbouring members. */
static void describe(const vqkvc_member *from, const vqkvc_member *to, const char *suffix,
                     char *name, size_t size)
{
    char layers[32], heads[32];
    snprintf(layers, sizeof layers, from->layer == to->layer ? "%d" : "%d-%d", from->layer,
             to->layer);
    snprintf(heads, sizeof heads, from->head == to->head ? "%d" : "%d-%d", from->head, to->head);
    snprintf(name, size, "%c %s h%s%s", from->part == VQKVC_PART_K ? 'K' : 'V', layers, heads,
             suffix);
}

static vqkvc_stream_spec stream_spec(const scope_fit *f, int first, int n, int nibbles)
{
    return (vqkvc_stream_spec){.members = f->members + first,
                               .n_members = n,
                               .frame = f->scope->part == VQKVC_PART_K
                                            ? f->frame
                                            : (vqkvc_key_frame){.frame = VQKVC_FRAME_POST},
                               .n_nibbles = nibbles,
                               .tables_at = f->p->tables_at,
                               .gain_bits = f->p->no_gain ? 0 : VQKVC_GAIN_BITS};
}

/* One own stream on its columns of x. */
static vqkvc_code fit_own(scope_fit *f, int own, vqkvc_err *err)
{
    int dim = f->c->geometry.head_dim, n = f->scope->own_heads, first = own * n;
    size_t n_in = (size_t)(vqkvc_scope_members(f->scope) * dim), width = (size_t)(n * dim);
    char name[96];
    vqkvc_hash ignored;
    vqkvc_stream_spec spec = stream_spec(f, first, n, f->scope->own[own]);
    spec.name = name;
    spec.residual = f->residual;
    describe(spec.members, spec.members + n - 1, "", name, sizeof name);
    float *x = vqkvc_alloc((size_t)f->c->n_sample * width, sizeof *x, err);
    if (x == NULL)
        return err->code;
    for (int i = 0; i < f->c->n_sample; i++)
        memcpy(x + (size_t)i * width, f->x + (size_t)i * n_in + (size_t)(first * dim),
               width * sizeof *x);
    if (f->scope->universal[own] > 0)
        vqkvc_universal_stream(f->plan, &spec, f->scope->universal[own] - 1, f->c->n_sample, x,
                               err);
    else
        vqkvc_fit_stream(f->plan, &spec, f->c->n_sample, x, f->metric + first, f->p->seed, f->store,
                         &ignored, err);
    free(x);
    return err->code;
}

static vqkvc_code fit_shared(scope_fit *f, vqkvc_err *err)
{
    int n = vqkvc_scope_members(f->scope);
    char name[96];
    vqkvc_stream_spec spec = stream_spec(f, 0, n, f->scope->shared);
    spec.name = name;
    describe(f->members, f->members + n - 1, " shared", name, sizeof name);
    VQKVC_TRY(vqkvc_fit_stream(f->plan, &spec, f->c->n_sample, f->x, f->metric, f->p->seed,
                               f->store, &f->residual, err));
    return take_off(f->plan, f->plan->n_streams - 1, f->c->n_sample, f->x, err);
}

/* The shared stream of a scope, then the own streams on what it leaves: closed loop. */
static vqkvc_code fit_scope(scope_fit *f, const vqkvc_metrics *metrics, vqkvc_err *err)
{
    if (scope_fit_make(f, metrics, err) == VQKVC_OK && f->scope->shared > 0)
        fit_shared(f, err);
    for (int own = 0; own < vqkvc_scope_own(f->scope) && err->code == VQKVC_OK; own++)
        if (f->scope->own[own] > 0)
            fit_own(f, own, err);
    scope_fit_free(f);
    return err->code;
}

vqkvc_code vqkvc_auto_check(const vqkvc_auto_params *p, const vqkvc_geometry *g, vqkvc_err *err)
{
    int most = VQKVC_MOST_JOINED / g->head_dim;
    int layers = p->layers_shared < g->n_layers ? p->layers_shared : g->n_layers;
    if (p->bits != 0 && (p->bits < 0.05 || p->bits > VQKVC_MOST_BITS))
        return vqkvc_fail(err, VQKVC_E_USAGE, "%g bits a value: wanted 0.05 to %d", p->bits,
                          VQKVC_MOST_BITS);
    if (layers > most)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d layers cannot share a stream: it has at most %d channels, so %d "
                          "layers with heads of %d",
                          layers, VQKVC_MOST_JOINED, most, g->head_dim);
    return VQKVC_OK;
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_auto_params *p, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_auto_check(p, &c->geometry, err));
    if (c->n_sample < 256)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit codebooks (wanted 256 or more)",
                          c->n_sample);
    return VQKVC_OK;
}

static vqkvc_code make_metrics(const vqkvc_capture *c, const vqkvc_auto_params *p,
                               vqkvc_arena *arena, vqkvc_metrics *m, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_sample_metrics(c, arena, m, err));
    if (p->no_metric)
        vqkvc_metrics_level(c, m);
    vqkvc_key_frame frame = vqkvc_auto_frame(p);
    if (p->sensitivity != NULL) {
        vqkvc_sensitivity s = *p->sensitivity;
        if (is_long(p)) {
            size_t n = 2 * (size_t)c->geometry.n_layers * (size_t)c->geometry.n_kv_heads;
            double *raised = vqkvc_arena_alloc(arena, n * (size_t)s.groups, sizeof(double), err);
            if (raised == NULL)
                return err->code;
            vqkvc_sensitivity_raise(&c->geometry, s, raised);
            s.at = raised;
        }
        VQKVC_TRY(vqkvc_metrics_weigh(c, &s, p->seed, m, err));
        VQKVC_TRY(vqkvc_metrics_turn(c, &frame, m, err));
    }
    for (int h = 0; h < c->geometry.n_layers * c->geometry.n_kv_heads; h++)
        vqkvc_frame_separate(&c->geometry, &frame, c->geometry.head_dim, m->k[h]);
    return VQKVC_OK;
}

/* Fits all streams of a design. */
static vqkvc_code fit_design(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p,
                             const vqkvc_design *design, const vqkvc_metrics *metrics,
                             const vqkvc_fit_store *store, vqkvc_err *err)
{
    vqkvc_progress progress;
    vqkvc_progress_begin(&progress, store->log, "fit", "scopes", (uint64_t)design->n_scopes);
    for (int i = 0; i < design->n_scopes && err->code == VQKVC_OK; i++) {
        if (vqkvc_interrupted())
            vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
        else
            fit_scope(&(scope_fit){.plan = plan,
                                   .c = c,
                                   .p = p,
                                   .scope = &design->scopes[i],
                                   .frame = vqkvc_auto_frame(p),
                                   .store = store},
                      metrics, err);
        vqkvc_progress_step(&progress, (uint64_t)i + 1);
    }
    if (err->code == VQKVC_OK)
        vqkvc_progress_end(&progress, (uint64_t)design->n_scopes);
    return err->code;
}

/* Searches and fits once. */
static vqkvc_code make_plan(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p,
                            const vqkvc_metrics *metrics, vqkvc_arena *arena,
                            const vqkvc_fit_store *store, vqkvc_err *err)
{
    vqkvc_design design;
    memset(plan, 0, sizeof *plan);
    plan->geometry = c->geometry;
    plan->n_sink = p->window.n_sink;
    plan->n_recent = p->window.n_recent;
    plan->block = p->window.block;
    if (p->frame == VQKVC_FRAME_BLOCK)
        memcpy(plan->stretch, p->stretch, sizeof plan->stretch);
    plan->calibration = store->parent;
    snprintf(plan->scheme, sizeof plan->scheme, "auto%.4g", p->bits);
    VQKVC_TRY(vqkvc_search(c, p, metrics, arena, store->log, &design, err));
    vqkvc_say(store->log, 1,
              "auto: %d layers and %d heads share; %.3f bits stored, %.3f read; predicted "
              "loss %.4g",
              design.layers_shared, design.heads_shared, design.bits, design.scan, design.loss);
    return fit_design(plan, c, p, &design, metrics, store, err);
}

/* The search knows spectra, not what k-means and the basis of the samples make of them: where the
 * fitted plan takes longer than was predicted, the next one is sought with that much less time. */
static vqkvc_code make_in_time(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_auto_params *p,
                               const vqkvc_metrics *metrics, vqkvc_arena *arena,
                               const vqkvc_fit_store *store, vqkvc_err *err)
{
    vqkvc_auto_params tighter = *p;
    vqkvc_err mine = {0};
    double ns = 0;
    int made = 0;
    for (; made < MOST_SEARCHES; made++) {
        make_plan(plan, c, &tighter, metrics, arena, store, &mine);
        if (made > 0 && mine.code == VQKVC_E_INFEASIBLE)
            break; /* it speaks of a limit that nobody set */
        if (mine.code != VQKVC_OK)
            return vqkvc_fail(err, mine.code, "%s", mine.msg);
        ns = p->time != NULL ? vqkvc_time_predict(p->time, plan) : 0;
        if (p->max_ns <= 0 || ns <= p->max_ns)
            return VQKVC_OK;
        vqkvc_say(store->log, 1, "auto: the fitted plan takes %.3f ns, %.3f are allowed", ns,
                  p->max_ns);
        tighter.max_ns *= p->max_ns / ns * 0.995;
        vqkvc_plan_free(plan);
    }
    return vqkvc_fail(err, VQKVC_E_INFEASIBLE,
                      "no fitted plan keeps %.4g ns a cached token and KV head: the last of %d "
                      "takes %.4g",
                      p->max_ns, made, ns);
}

/* Frames that a limit of time may call for, the quickest last: longer blocks turn queries less
 * often, keys rotated by their positions never. */
static const struct {
    vqkvc_frame frame;
    int block;
    vqkvc_spans spans;
} candidates[] = {
    {VQKVC_FRAME_BLOCK, 64, VQKVC_SPANS_BLOCK},  {VQKVC_FRAME_BLOCK, 64, VQKVC_SPANS_LONG},
    {VQKVC_FRAME_BLOCK, 64, VQKVC_SPANS_BANDS},  {VQKVC_FRAME_BLOCK, 128, VQKVC_SPANS_BLOCK},
    {VQKVC_FRAME_BLOCK, 128, VQKVC_SPANS_LONG},  {VQKVC_FRAME_BLOCK, 128, VQKVC_SPANS_BANDS},
    {VQKVC_FRAME_BLOCK, 256, VQKVC_SPANS_BLOCK}, {VQKVC_FRAME_BLOCK, 256, VQKVC_SPANS_LONG},
    {VQKVC_FRAME_BLOCK, 256, VQKVC_SPANS_BANDS}, {VQKVC_FRAME_POST, 64, VQKVC_SPANS_BLOCK},
};

static const char *const spans_words[] = {"", " in spans", " in bands"};

/* Sets frame and block of *p to those whose design loses least. */
static vqkvc_code choose_frame(const vqkvc_capture *c, vqkvc_auto_params *p, const vqkvc_log *log,
                               vqkvc_err *err)
{
    vqkvc_err none = {0};
    int best = -1;
    double loss = 0;
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        vqkvc_arena arena = {0};
        vqkvc_err mine = {0};
        vqkvc_metrics metrics;
        vqkvc_design design;
        set_frame(p, &c->geometry, candidates[i].frame, candidates[i].block, candidates[i].spans);
        if (make_metrics(c, p, &arena, &metrics, &mine) == VQKVC_OK &&
            vqkvc_search(c, p, &metrics, &arena, log, &design, &mine) == VQKVC_OK) {
            vqkvc_say(log, 1, "auto: keys %s%s, block %d: %.3f bits, %.2f ns, predicted loss %.4g",
                      vqkvc_frame_word((int)p->frame), spans_words[p->spans], p->window.block,
                      design.bits, design.ns, design.loss);
            if (best < 0 || design.loss < loss) {
                best = (int)i;
                loss = design.loss;
            }
        }
        vqkvc_arena_free(&arena);
        if (mine.code == VQKVC_E_INFEASIBLE)
            none = mine;
        else if (mine.code != VQKVC_OK)
            return vqkvc_fail(err, mine.code, "%s", mine.msg);
    }
    if (best < 0)
        return vqkvc_fail(err, none.code, "%s", none.msg);
    set_frame(p, &c->geometry, candidates[best].frame, candidates[best].block,
              candidates[best].spans);
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_auto(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_auto_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_auto_params p = with_defaults(params);
    vqkvc_arena arena = {0};
    vqkvc_metrics metrics;
    memset(plan, 0, sizeof *plan);
    VQKVC_TRY(check(capture, &p, err));
    set_frame(&p, &capture->geometry, p.frame, p.window.block, p.spans);
    if (p.any_frame && p.time != NULL && p.max_ns > 0)
        VQKVC_TRY(choose_frame(capture, &p, log, err));
    vqkvc_fit_store store = {.db = db,
                             .model = capture->geometry.weights_hash,
                             .parent = *parent,
                             .settings = settings_text(&p, &arena, err),
                             .log = log};
    if (err->code == VQKVC_OK && make_metrics(capture, &p, &arena, &metrics, err) == VQKVC_OK)
        make_in_time(plan, capture, &p, &metrics, &arena, &store, err);
    vqkvc_arena_free(&arena);
    if (err->code == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
