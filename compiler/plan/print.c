/* A plan for people (one line a stream or a prediction) and for machines (JSON). */
#include "plan/plan.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "plan/frame.h"

enum { COST_CONTEXT = 4096 };

/* ---- text ---- */

static void put_range(vqkvc_buf *out, const char *prefix, int first, int last)
{
    if (first == last)
        vqkvc_buf_printf(out, "%s%d", prefix, first);
    else
        vqkvc_buf_printf(out, "%s%d-%d", prefix, first, last);
}

/* Index behind the members of the layer that member i is of. */
static int layer_end(const vqkvc_stream *s, int i)
{
    int end = i;
    while (end < s->n_members && s->members[end].layer == s->members[i].layer)
        end++;
    return end;
}

/* Whether the members from `next` are the layer behind that of `before`, with the heads that the
 * layer from `first` has. */
static int continues(const vqkvc_stream *s, int first, int before, int next)
{
    int n = layer_end(s, first) - first;
    if (next >= s->n_members || s->members[next].layer != s->members[before].layer + 1 ||
        layer_end(s, next) - next != n)
        return 0;
    for (int i = 0; i < n; i++)
        if (s->members[first + i].head != s->members[next + i].head)
            return 0;
    return 1;
}

/* Members as "K 0-7 h0-1 9 h0": consecutive layers with the same heads are one range. */
static void put_members(vqkvc_buf *out, const vqkvc_stream *s)
{
    vqkvc_buf_puts(out, vqkvc_part_word(s->members[0].part));
    for (int first = 0; first < s->n_members;) {
        int last = first, end = layer_end(s, first);
        while (continues(s, first, last, end)) {
            last = end;
            end = layer_end(s, last);
        }
        put_range(out, " ", s->members[first].layer, s->members[last].layer);
        int heads_end = layer_end(s, first);
        for (int i = first; i < heads_end;) {
            int j = i;
            while (j + 1 < heads_end && s->members[j + 1].head == s->members[j].head + 1)
                j++;
            put_range(out, i == first ? " h" : ",", s->members[i].head, s->members[j].head);
            i = j + 1;
        }
        first = end;
    }
}

/* Whether two runs differ in their place and book alone. */
static int same_kind(const vqkvc_run *a, const vqkvc_run *b)
{
    return a->coder == b->coder && a->groups == b->groups && a->width == b->width &&
           a->bits == b->bits && a->stages == b->stages && a->beam == b->beam;
}

/* Runs as "12x1:4b 20x2:4b*2~8" (groups x width : bits * stages ~ beam); equal neighbours as
 * "4(32x1:u8)". */
static void put_runs(vqkvc_buf *out, const vqkvc_stream *s)
{
    for (int i = 0; i < s->n_runs;) {
        const vqkvc_run *r = &s->runs[i];
        int n = 1;
        while (i + n < s->n_runs && same_kind(r, &s->runs[i + n]))
            n++;
        if (n > 1)
            vqkvc_buf_printf(out, " %d(", n);
        else
            vqkvc_buf_puts(out, " ");
        vqkvc_buf_printf(out, "%dx%d:", r->groups, r->width);
        if (r->coder == VQKVC_CODER_VQ)
            vqkvc_buf_printf(out, "%db", r->bits);
        else
            vqkvc_buf_printf(out, "%c%d", r->coder == VQKVC_CODER_UNI ? 'u' : 'f', r->bits);
        if (r->stages > 1)
            vqkvc_buf_printf(out, "*%d", r->stages);
        if (r->beam > 1)
            vqkvc_buf_printf(out, "~%d", r->beam);
        vqkvc_buf_puts(out, n > 1 ? ")" : "");
        i += n;
    }
}

/* Appends spaces until the text since `start` is `width` wide, one at least. */
static void pad(vqkvc_buf *out, size_t start, size_t width)
{
    do
        vqkvc_buf_puts(out, " ");
    while (!out->failed && out->len - start < width);
}

static void put_stream(vqkvc_buf *out, const vqkvc_stream *s)
{
    size_t start = out->len;
    vqkvc_buf_puts(out, s->name);
    pad(out, start, 22);
    start = out->len;
    put_members(out, s);
    pad(out, start, 18);
    vqkvc_buf_printf(out, "%-5s %-8s %4d->%-4d ", vqkvc_frame_word(s->frame),
                     vqkvc_transform_word(s->transform), s->n_in, s->n_latents);
    start = out->len;
    vqkvc_buf_puts(out, vqkvc_gain_word(s->gain));
    if (s->gain != VQKVC_GAIN_NONE)
        vqkvc_buf_printf(out, " %db/%d", s->gain_bits, s->gain_width);
    if (s->gain_tokens > 1)
        vqkvc_buf_printf(out, "x%d", s->gain_tokens);
    pad(out, start, 15);
    vqkvc_buf_printf(out, "%6.3f ",
                     (vqkvc_stream_code_bits(s) + vqkvc_stream_gain_bits(s)) / s->n_in);
    put_runs(out, s);
    if (s->outliers > 0)
        vqkvc_buf_printf(out, " + %d outlier%s", s->outliers, s->outliers > 1 ? "s" : "");
    vqkvc_buf_puts(out, "\n");
}

/* "V 3 from K 3, V 2, rank 64" */
static void put_prediction(vqkvc_buf *out, const vqkvc_plan *plan, const vqkvc_prediction *p)
{
    vqkvc_buf_printf(out, "%s %d from", vqkvc_part_word(p->part), p->layer);
    for (int i = 0; i < p->n_sources; i++)
        vqkvc_buf_printf(out, " %s %d,", vqkvc_part_word(p->sources[i].part), p->sources[i].layer);
    if (p->out >= 0)
        vqkvc_buf_printf(out, " rank %d\n", plan->tables[p->out].rows);
    else
        vqkvc_buf_puts(out, p->per_head ? " per head\n" : " full rank\n");
}

/* Of pairs in frame block, where they have spans of their own. */
static void put_spans(vqkvc_buf *out, const vqkvc_plan *plan)
{
    const vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, plan->block, plan->stretch, 0};
    int stretched = 0, endless = 0, bands = 0, pairs = plan->geometry.n_rot / 2;
    for (int i = 0; i < pairs; i++) {
        stretched += plan->stretch[i] != 0;
        endless += plan->stretch[i] == VQKVC_STRETCH_ENDLESS;
    }
    if (stretched == 0)
        return;
    for (int i = 0; i < plan->n_streams; i++)
        bands |= vqkvc_frame_steady_runs(plan, &plan->streams[i]) > 0;
    vqkvc_buf_printf(
        out, "spans     %.0f %% of channels turn from block to block, %d of %d pairs never%s\n",
        100 * vqkvc_frame_turning_share(&plan->geometry, &frame), endless, pairs,
        bands ? "; in bands" : "");
}

static void put_head(vqkvc_buf *out, const vqkvc_plan *plan)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_cost cost;
    vqkvc_plan_cost(plan, COST_CONTEXT, &cost);
    vqkvc_buf_printf(out, "scheme    %s for %s (%s)\n", plan->scheme, g->name, g->arch);
    vqkvc_buf_printf(out, "geometry  %d layers, %d heads, %d KV heads of %d, %d channels rotated\n",
                     g->n_layers, g->n_heads, g->n_kv_heads, g->head_dim,
                     g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot);
    vqkvc_buf_printf(out, "window    first %d and latest %d tokens exact, blocks of %d\n",
                     plan->n_sink, plan->n_recent, plan->block);
    put_spans(out, plan);
    vqkvc_buf_printf(out,
                     "cost      %.3f bits a value at %d tokens: codes %.3f, gains %.3f, window "
                     "%.3f, tables %.3f (%zu bytes); scan %.3f\n",
                     cost.total_bits, cost.context, cost.code_bits, cost.gain_bits,
                     cost.window_bits, cost.table_bits, cost.table_bytes, cost.scan_bits);
    if (plan->landmarks > 0)
        vqkvc_buf_printf(out, "landmarks one for %d tokens: %.3f bits a value\n", plan->landmarks,
                         cost.landmark_bits);
    if (plan->max_error > 0)
        vqkvc_buf_printf(out,
                         "bound     every vector within %g of its length; %.3f %% kept exactly: "
                         "%.3f bits a value\n",
                         (double)plan->max_error, 100 * plan->kept_rate, cost.kept_bits);
}

void vqkvc_plan_print(const vqkvc_plan *plan, vqkvc_buf *out)
{
    put_head(out, plan);
    vqkvc_buf_printf(out, "%-21s %-17s %-5s %-8s %10s %-14s %6s  %s\n", "stream", "members",
                     "frame", "map", "latents   ", "gain", "bits", "runs");
    for (int i = 0; i < plan->n_streams; i++)
        put_stream(out, &plan->streams[i]);
    if (plan->n_predictions > 0)
        vqkvc_buf_puts(out, "predictions\n");
    for (int i = 0; i < plan->n_predictions; i++)
        put_prediction(out, plan, &plan->predictions[i]);
}

/* ---- JSON ---- */

/* An object under construction; `bad` collects failures, which are of memory or of a NaN. */
typedef struct object {
    json_t *json;
    int bad;
} object;

static object object_new(void)
{
    return (object){json_object(), 0};
}

static void put_json(object *o, const char *key, json_t *value)
{
    o->bad |= json_object_set_new(o->json, key, value);
}

static void put_int(object *o, const char *key, int value)
{
    put_json(o, key, json_integer(value));
}

static void put_real(object *o, const char *key, double value)
{
    put_json(o, key, json_real(value));
}

/* Names come from model files: bytes that are not UTF-8 become '?'. */
static void put_text(object *o, const char *key, const char *text)
{
    json_t *value = json_string(text);
    if (value == NULL) {
        char *ascii = strdup(text);
        for (char *c = ascii; c != NULL && *c != '\0'; c++)
            if ((unsigned char)*c >= 0x80)
                *c = '?';
        value = ascii == NULL ? NULL : json_string(ascii);
        free(ascii);
    }
    put_json(o, key, value);
}

static json_t *object_end(object *o)
{
    if (o->bad) {
        json_decref(o->json);
        return NULL;
    }
    return o->json;
}

/* [make(of, 0), make(of, 1), ...] or NULL. */
static json_t *json_list(const void *of, int n, json_t *(*make)(const void *of, int i))
{
    json_t *list = json_array();
    for (int i = 0; list != NULL && i < n; i++)
        if (json_array_append_new(list, make(of, i)) != 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

static json_t *frequency_json(const void *of, int i)
{
    const vqkvc_geometry *g = of;
    return json_real(g->rope_freq[i]);
}

static json_t *geometry_json(const vqkvc_geometry *g)
{
    object o = object_new();
    put_text(&o, "name", g->name);
    put_text(&o, "arch", g->arch);
    put_int(&o, "n_layers", g->n_layers);
    put_int(&o, "d_model", g->d_model);
    put_int(&o, "n_heads", g->n_heads);
    put_int(&o, "n_kv_heads", g->n_kv_heads);
    put_int(&o, "head_dim", g->head_dim);
    put_text(&o, "rope_layout", vqkvc_rope_word(g->rope_layout));
    put_int(&o, "n_rot", g->n_rot);
    put_json(&o, "rope_freq", json_list(g, g->n_rot / 2, frequency_json));
    put_real(&o, "rope_mscale", g->rope_mscale);
    put_int(&o, "sliding_window", g->sliding_window);
    put_int(&o, "n_ctx_train", g->n_ctx_train);
    put_text(&o, "weights_hash", g->weights_hash.hex);
    return object_end(&o);
}

static json_t *member_json(const void *of, int i)
{
    const vqkvc_stream *s = of;
    return json_pack("[ii]", s->members[i].layer, s->members[i].head);
}

static json_t *run_json(const void *of, int i)
{
    const vqkvc_run *r = &((const vqkvc_stream *)of)->runs[i];
    object o = object_new();
    put_text(&o, "coder", vqkvc_coder_word(r->coder));
    put_int(&o, "first", r->first);
    put_int(&o, "groups", r->groups);
    put_int(&o, "width", r->width);
    put_int(&o, "bits", r->bits);
    put_int(&o, "stages", r->stages);
    put_int(&o, "beam", r->beam);
    put_int(&o, "book", r->book);
    return object_end(&o);
}

static json_t *stream_json(const void *of, int i)
{
    const vqkvc_stream *s = &((const vqkvc_plan *)of)->streams[i];
    object o = object_new();
    put_text(&o, "name", s->name);
    put_text(&o, "part", vqkvc_part_word(s->members[0].part));
    put_json(&o, "members", json_list(s, s->n_members, member_json));
    put_text(&o, "frame", vqkvc_frame_word(s->frame));
    put_text(&o, "transform", vqkvc_transform_word(s->transform));
    put_int(&o, "mean", s->mean);
    put_int(&o, "enc", s->enc);
    put_int(&o, "dec", s->dec);
    put_int(&o, "n_latents", s->n_latents);
    put_text(&o, "gain", vqkvc_gain_word(s->gain));
    put_int(&o, "gain_bits", s->gain_bits);
    put_int(&o, "gain_width", s->gain_width);
    put_int(&o, "gain_tokens", s->gain_tokens);
    put_real(&o, "gain_lo", s->gain_lo);
    put_real(&o, "gain_step", s->gain_step);
    put_int(&o, "outliers", s->outliers);
    put_int(&o, "spread", s->spread);
    put_json(&o, "runs", json_list(s, s->n_runs, run_json));
    return object_end(&o);
}

static json_t *source_json(const void *of, int i)
{
    const vqkvc_prediction_source *from = &((const vqkvc_prediction *)of)->sources[i];
    return json_pack("[si]", vqkvc_part_word(from->part), from->layer);
}

static json_t *prediction_json(const void *of, int i)
{
    const vqkvc_prediction *p = &((const vqkvc_plan *)of)->predictions[i];
    object o = object_new();
    put_text(&o, "part", vqkvc_part_word(p->part));
    put_int(&o, "layer", p->layer);
    put_json(&o, "sources", json_list(p, p->n_sources, source_json));
    put_int(&o, "per_head", p->per_head);
    put_int(&o, "bias", p->bias);
    put_int(&o, "map", p->map);
    put_int(&o, "out", p->out);
    return object_end(&o);
}

static json_t *table_json(const void *of, int i)
{
    const vqkvc_table *t = &((const vqkvc_plan *)of)->tables[i];
    vqkvc_buf bytes = {0};
    vqkvc_table_put(t, &bytes);
    if (bytes.failed) {
        free(bytes.data);
        return NULL;
    }
    vqkvc_hash hash = vqkvc_hash_bytes(bytes.data, bytes.len);
    free(bytes.data);
    object o = object_new();
    put_text(&o, "name", t->name);
    put_int(&o, "rows", t->rows);
    put_int(&o, "cols", t->cols);
    put_int(&o, "scale_rows", t->scale_rows);
    put_text(&o, "hash", hash.hex);
    return object_end(&o);
}

static json_t *stretch_json(const void *of, int i)
{
    return json_integer(((const vqkvc_plan *)of)->stretch[i]);
}

static json_t *plan_json(const vqkvc_plan *plan)
{
    object o = object_new();
    put_int(&o, "version", VQKVC_PLAN_VERSION);
    put_text(&o, "scheme", plan->scheme);
    put_json(&o, "geometry", geometry_json(&plan->geometry));
    put_int(&o, "n_sink", plan->n_sink);
    put_int(&o, "n_recent", plan->n_recent);
    put_int(&o, "block", plan->block);
    put_json(&o, "stretch", json_list(plan, plan->geometry.n_rot / 2, stretch_json));
    put_int(&o, "landmarks", plan->landmarks);
    put_real(&o, "max_error", plan->max_error);
    put_real(&o, "kept_rate", plan->kept_rate);
    put_json(&o, "predictions", json_list(plan, plan->n_predictions, prediction_json));
    put_json(&o, "streams", json_list(plan, plan->n_streams, stream_json));
    put_json(&o, "tables", json_list(plan, plan->n_tables, table_json));
    put_text(&o, "calibration", plan->calibration.hex);
    return object_end(&o);
}

vqkvc_code vqkvc_plan_json(const vqkvc_plan *plan, vqkvc_buf *out, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_plan_validate(plan, err));
    json_t *json = plan_json(plan);
    size_t flags = JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(17);
    char *text = json == NULL ? NULL : json_dumps(json, flags);
    json_decref(json);
    if (text != NULL)
        vqkvc_buf_puts(out, text);
    free(text);
    if (text == NULL || out->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "cannot write plan %s as JSON", plan->scheme);
    return VQKVC_OK;
}
