#include "capture/import.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "capture/choose.h"
#include "capture/collect.h"
#include "model/safetensors.h"

#define MAX_STATS_BYTES 0x1p35 /* twice what 40 layers of 40 full KV heads of 128 need */

typedef struct dump {
    const char *path;
    vqkvc_st st;
    vqkvc_capture_params params;
    vqkvc_geometry g;
    int rotated; /* keys and queries of the dump are */
    int has_queries, has_wo;
    int n_tokens;
    const vqkvc_st_tensor *position, *doc; /* or NULL */
    int64_t *kept;                         /* [n_kept] tokens in the sample, ascending */
    int64_t n_kept;
    vqkvc_where *where; /* [VQKVC_STATS_CHUNK] */
    float *x;           /* [VQKVC_STATS_CHUNK, width of queries] */
    vqkvc_collector collector;
} dump;

/* ---- metadata ---- */

static const char *required(const dump *d, const char *key, vqkvc_err *err)
{
    const char *value = vqkvc_st_metadata(&d->st, key);
    if (value == NULL)
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: __metadata__ has no '%s'", d->path, key);
    return value;
}

static vqkvc_code get_int(const dump *d, const char *key, const char *value, int low, int high,
                          int *out, vqkvc_err *err)
{
    char *end;
    errno = 0;
    long n = strtol(value, &end, 10);
    if (end == value || *end != '\0' || errno != 0 || n < low || n > high)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: __metadata__ '%s' is '%.40s', not an integer %d to %d", d->path, key,
                          value, low, high);
    *out = (int)n;
    return VQKVC_OK;
}

static vqkvc_code required_int(const dump *d, const char *key, int low, int high, int *out,
                               vqkvc_err *err)
{
    const char *value = required(d, key, err);
    return value == NULL ? err->code : get_int(d, key, value, low, high, out, err);
}

static vqkvc_code optional_int(const dump *d, const char *key, int fallback, int *out,
                               vqkvc_err *err)
{
    const char *value = vqkvc_st_metadata(&d->st, key);
    *out = fallback;
    return value == NULL ? VQKVC_OK : get_int(d, key, value, 0, INT32_MAX, out, err);
}

static vqkvc_code get_positive(const dump *d, const char *key, const char *value, double *out,
                               vqkvc_err *err)
{
    char *end;
    *out = strtod(value, &end);
    if (end == value || *end != '\0' || !(*out > 0) || isinf(*out))
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: __metadata__ '%s' is '%.40s', not a positive number", d->path, key,
                          value);
    return VQKVC_OK;
}

/* The index of a metadata value in words (a NULL ends them); -1 with *err set. */
static int required_word(const dump *d, const char *key, const char *const *words, vqkvc_err *err)
{
    const char *value = required(d, key, err);
    for (int i = 0; value != NULL && words[i] != NULL; i++)
        if (strcmp(value, words[i]) == 0)
            return i;
    if (value != NULL)
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: __metadata__ '%s' is '%.40s', not one of '%s'...",
                   d->path, key, value, words[0]);
    return -1;
}

static vqkvc_code check_format(const dump *d, vqkvc_err *err)
{
    static const char *const format[] = {"vqkvc-dump", NULL}, *const version[] = {"1", NULL};
    required_word(d, "format", format, err);
    required_word(d, "version", version, err);
    return err->code;
}

static vqkvc_code read_frequencies(dump *d, vqkvc_err *err)
{
    vqkvc_geometry *g = &d->g;
    const vqkvc_st_tensor *t = vqkvc_st_find(&d->st, "rope_freqs");
    const char *value;
    double base = 0, mscale = 1;
    if (t == NULL) {
        value = required(d, "rope_base", err);
        if (value == NULL)
            return err->code;
        VQKVC_TRY(get_positive(d, "rope_base", value, &base, err));
    } else if (t->type != VQKVC_ST_F32 || t->n_dims != 1 || t->dims[0] != g->n_rot / 2) {
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor 'rope_freqs' is not F32 [%d]", d->path,
                          g->n_rot / 2);
    }
    for (int i = 0; i < g->n_rot / 2; i++) {
        float freq = 0;
        if (t != NULL)
            vqkvc_st_read_f32(t, i, 1, &freq);
        g->rope_freq[i] = t != NULL ? freq : pow(base, -2.0 * i / g->n_rot);
        if (!isfinite(g->rope_freq[i]))
            return vqkvc_fail(err, VQKVC_E_NUMERIC, "%s: rope_freqs[%d] is not finite", d->path, i);
    }
    value = vqkvc_st_metadata(&d->st, "rope_mscale");
    if (value != NULL)
        VQKVC_TRY(get_positive(d, "rope_mscale", value, &mscale, err));
    g->rope_mscale = (float)mscale;
    return VQKVC_OK;
}

static vqkvc_code read_rope(dump *d, vqkvc_err *err)
{
    static const char *const layouts[] = {"none", "interleaved", "halves", NULL};
    static const char *const frames[] = {"pre", "post", NULL};
    vqkvc_geometry *g = &d->g;
    int layout = required_word(d, "rope_layout", layouts, err);
    int frame = required_word(d, "keys", frames, err);
    if (err->code != VQKVC_OK)
        return err->code;
    g->rope_layout = (vqkvc_rope_layout)layout;
    g->rope_mscale = 1;
    d->rotated = frame == 1;
    if (g->rope_layout == VQKVC_ROPE_NONE)
        return VQKVC_OK;
    VQKVC_TRY(required_int(d, "n_rot", 2, g->head_dim, &g->n_rot, err));
    if (g->n_rot % 2 != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: __metadata__ 'n_rot' %d is odd", d->path,
                          g->n_rot);
    return read_frequencies(d, err);
}

/* Dumps of one model share a store's row even if nobody knows the hash of its weights. */
static void name_weights(dump *d)
{
    vqkvc_geometry *g = &d->g;
    const char *given = vqkvc_st_metadata(&d->st, "weights_hash");
    char text[256];
    if (given != NULL && strlen(given) == VQKVC_HASH_CHARS - 1 &&
        strspn(given, "0123456789abcdef") == VQKVC_HASH_CHARS - 1) {
        memcpy(g->weights_hash.hex, given, VQKVC_HASH_CHARS);
        return;
    }
    snprintf(text, sizeof text, "dump;name=%s;layers=%d;heads=%d;kv_heads=%d;head_dim=%d", g->name,
             g->n_layers, g->n_heads, g->n_kv_heads, g->head_dim);
    g->weights_hash = vqkvc_hash_text(text);
}

static vqkvc_code read_geometry(dump *d, vqkvc_err *err)
{
    vqkvc_geometry *g = &d->g;
    VQKVC_TRY(check_format(d, err));
    const char *name = required(d, "name", err);
    if (name == NULL)
        return err->code;
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->arch, sizeof g->arch, "dump");
    VQKVC_TRY(required_int(d, "n_layers", 1, VQKVC_MAX_LAYERS, &g->n_layers, err));
    VQKVC_TRY(required_int(d, "n_heads", 1, VQKVC_MAX_HEADS, &g->n_heads, err));
    VQKVC_TRY(required_int(d, "n_kv_heads", 1, g->n_heads, &g->n_kv_heads, err));
    VQKVC_TRY(required_int(d, "head_dim", 1, VQKVC_MAX_HEAD_DIM, &g->head_dim, err));
    VQKVC_TRY(required_int(d, "d_model", 1, 1 << 20, &g->d_model, err));
    VQKVC_TRY(optional_int(d, "sliding_window", 0, &g->sliding_window, err));
    VQKVC_TRY(optional_int(d, "n_ctx_train", 0, &g->n_ctx_train, err));
    if (g->n_heads % g->n_kv_heads != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: n_heads %d is no multiple of n_kv_heads %d",
                          d->path, g->n_heads, g->n_kv_heads);
    name_weights(d);
    return read_rope(d, err);
}

/* ---- tensors ---- */

static const vqkvc_st_tensor *find(const dump *d, int layer, const char *what)
{
    char name[40];
    snprintf(name, sizeof name, "layer.%d.%s", layer, what);
    return vqkvc_st_find(&d->st, name);
}

static const char *tensor_name(vqkvc_kind kind)
{
    static const char *const names[] = {"k", "v", "q"};
    return names[kind];
}

static int is_float(const vqkvc_st_tensor *t)
{
    return t->type == VQKVC_ST_F32 || t->type == VQKVC_ST_F16 || t->type == VQKVC_ST_BF16;
}

static vqkvc_code check_vectors(const dump *d, int layer, vqkvc_kind kind, vqkvc_err *err)
{
    int heads = kind == VQKVC_QUERY ? d->g.n_heads : d->g.n_kv_heads;
    const char *what = tensor_name(kind);
    const vqkvc_st_tensor *t = find(d, layer, what);
    if (t == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor 'layer.%d.%s' is missing", d->path,
                          layer, what);
    if (!is_float(t) || t->n_dims != 3 || t->dims[0] != d->n_tokens || t->dims[1] != heads ||
        t->dims[2] != d->g.head_dim)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: tensor '%s' is not F32, F16 or BF16 of shape [%d, %d, %d]", d->path,
                          t->name, d->n_tokens, heads, d->g.head_dim);
    return VQKVC_OK;
}

static vqkvc_code check_wo(const dump *d, int layer, vqkvc_err *err)
{
    const vqkvc_st_tensor *t = find(d, layer, "wo");
    int width = vqkvc_kind_width(&d->g, VQKVC_QUERY);
    if (t == NULL || !is_float(t) || t->n_dims != 2 || t->dims[0] != d->g.d_model ||
        t->dims[1] != width)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: tensor 'layer.%d.wo' is not F32, F16 or BF16 of shape [%d, %d]",
                          d->path, layer, d->g.d_model, width);
    return VQKVC_OK;
}

/* NULL if the dump has none; otherwise int32 or int64 [n_tokens]. */
static vqkvc_code find_integers(const dump *d, const char *name, const vqkvc_st_tensor **out,
                                vqkvc_err *err)
{
    const vqkvc_st_tensor *t = *out = vqkvc_st_find(&d->st, name);
    if (t != NULL && ((t->type != VQKVC_ST_I32 && t->type != VQKVC_ST_I64) || t->n_dims != 1 ||
                      t->dims[0] != d->n_tokens))
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor '%s' is not I32 or I64 [%d]", d->path,
                          name, d->n_tokens);
    return VQKVC_OK;
}

/* Queries and output projections are there for all layers or for none; a name that means nothing
 * here is a mistake of the dumper, better heard of than ignored. */
static vqkvc_code check_tensors(dump *d, vqkvc_err *err)
{
    int known = 0;
    const vqkvc_st_tensor *first = find(d, 0, "k");
    if (first != NULL && (first->n_dims < 1 || first->dims[0] < 1 || first->dims[0] > INT32_MAX))
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor 'layer.0.k' has no tokens, or too many",
                          d->path);
    d->n_tokens = first == NULL ? 0 : (int)first->dims[0];
    d->has_queries = find(d, 0, "q") != NULL;
    d->has_wo = find(d, 0, "wo") != NULL;
    for (int layer = 0; layer < d->g.n_layers; layer++) {
        for (int kind = 0; kind < 2 + d->has_queries; kind++)
            VQKVC_TRY(check_vectors(d, layer, (vqkvc_kind)kind, err));
        if (d->has_wo)
            VQKVC_TRY(check_wo(d, layer, err));
        known += 2 + d->has_queries + d->has_wo;
    }
    VQKVC_TRY(find_integers(d, "position", &d->position, err));
    VQKVC_TRY(find_integers(d, "doc", &d->doc, err));
    known +=
        (d->position != NULL) + (d->doc != NULL) + (vqkvc_st_find(&d->st, "rope_freqs") != NULL);
    if (known != d->st.n_tensors)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: %d of its %d tensors have names that a dump does not have, or are "
                          "there for some layers only",
                          d->path, d->st.n_tensors - known, d->st.n_tensors);
    return VQKVC_OK;
}

/* A few hostile bytes of metadata must not ask for any amount of memory. */
static vqkvc_code check_memory(const dump *d, vqkvc_err *err)
{
    const vqkvc_geometry *g = &d->g;
    double doubles = (double)vqkvc_stats_moment_size(g, VQKVC_KEY) * 2 +
                     (double)vqkvc_stats_moment_size(g, VQKVC_QUERY) * d->has_queries;
    double bytes = sizeof(double) * doubles * g->n_layers;
    if (bytes > MAX_STATS_BYTES)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: statistics of %d layers of %d KV heads of %d channels would take "
                          "%.0f GiB",
                          d->path, g->n_layers, g->n_kv_heads, g->head_dim, bytes / 0x1p30);
    return VQKVC_OK;
}

static int64_t integer(const vqkvc_st_tensor *t, int i)
{
    if (t->type == VQKVC_ST_I64) {
        int64_t v;
        memcpy(&v, t->data + (size_t)i * sizeof v, sizeof v);
        return v;
    }
    int32_t v;
    memcpy(&v, t->data + (size_t)i * sizeof v, sizeof v);
    return v;
}

static int position_of(const dump *d, int token)
{
    return d->position != NULL ? (int)integer(d->position, token) : token;
}

static int doc_of(const dump *d, int token)
{
    return d->doc != NULL ? (int)integer(d->doc, token) : 0;
}

/* ---- the sample ---- */

static vqkvc_code check_positions(const dump *d, vqkvc_err *err)
{
    const vqkvc_st_tensor *both[] = {d->position, d->doc};
    for (int b = 0; b < 2; b++) {
        for (int i = 0; both[b] != NULL && i < d->n_tokens; i++) {
            int64_t v = integer(both[b], i);
            if (v < 0 || v > INT32_MAX)
                return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s[%d] is %lld, not 0 to 2^31 - 1",
                                  d->path, both[b]->name, i, (long long)v);
        }
    }
    return VQKVC_OK;
}

/* As for a model's run: n_sample of the tokens at position n_skip or later. */
static vqkvc_code choose_sample(dump *d, vqkvc_err *err)
{
    int64_t eligible = 0;
    for (int i = 0; i < d->n_tokens; i++)
        eligible += position_of(d, i) >= d->params.n_skip;
    if (eligible == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: no token at position %d or later", d->path,
                          d->params.n_skip);
    d->n_kept = eligible < d->params.n_sample ? eligible : d->params.n_sample;
    d->kept = vqkvc_alloc((size_t)d->n_kept, sizeof *d->kept, err);
    if (d->kept == NULL)
        return err->code;
    vqkvc_choose(d->params.seed, VQKVC_STREAM_SAMPLE, eligible, d->n_kept, d->kept);
    int64_t rank = 0, at = 0;
    for (int i = 0; i < d->n_tokens && at < d->n_kept; i++) {
        if (position_of(d, i) < d->params.n_skip)
            continue;
        if (d->kept[at] == rank)
            d->kept[at++] = i;
        rank++;
    }
    return VQKVC_OK;
}

/* ---- vectors ---- */

/* Undoes the engine's rotation, YaRN's factor on rotated channels included. */
static void rotate_back(const dump *d, int position, int heads, float *x)
{
    vqkvc_rope_rotate(&d->g, -(double)position, x, heads);
    for (int h = 0; h < heads && d->g.rope_mscale != 1; h++)
        for (int i = 0; i < d->g.n_rot; i++)
            x[(size_t)h * (size_t)d->g.head_dim + (size_t)i] /= d->g.rope_mscale;
}

/* Before a rotation spreads what is wrong: elements first .. first + n - 1 of t are in d->x. */
static vqkvc_code check_elements(const dump *d, const vqkvc_st_tensor *t, vqkvc_kind kind,
                                 int layer, int64_t first, int64_t n, vqkvc_err *err)
{
    int width = vqkvc_kind_width(&d->g, kind);
    size_t bytes = t->type == VQKVC_ST_F32 ? 4 : 2;
    for (int64_t i = 0; i < n; i++) {
        int token = (int)((first + i) / width), channel = (int)((first + i) % width);
        if (fabsf(d->x[i]) < 65520.0f) /* false for a NaN */
            continue;
        return vqkvc_fail(
            err, VQKVC_E_NUMERIC,
            "layer %d: %s of head %d, channel %d, at token %d (%s, byte offset %zu) is "
            "%g, which fp16 cannot hold",
            layer, vqkvc_kind_name(kind), channel / d->g.head_dim, channel % d->g.head_dim, token,
            t->name, (size_t)(t->data - d->st.map.data) + (size_t)(first + i) * bytes,
            (double)d->x[i]);
    }
    return VQKVC_OK;
}

static vqkvc_code import_layer(dump *d, vqkvc_kind kind, int layer, vqkvc_err *err)
{
    const vqkvc_st_tensor *t = find(d, layer, tensor_name(kind));
    int width = vqkvc_kind_width(&d->g, kind), heads = width / d->g.head_dim;
    int64_t slot = 0;
    for (int first = 0; first < d->n_tokens; first += VQKVC_STATS_CHUNK) {
        int left = d->n_tokens - first, n = left < VQKVC_STATS_CHUNK ? left : VQKVC_STATS_CHUNK;
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "import interrupted in layer %d", layer);
        vqkvc_st_read_f32(t, (int64_t)first * width, (int64_t)n * width, d->x);
        VQKVC_TRY(
            check_elements(d, t, kind, layer, (int64_t)first * width, (int64_t)n * width, err));
        for (int i = 0; i < n; i++) {
            int token = first + i, kept = slot < d->n_kept && d->kept[slot] == token;
            d->where[i] =
                (vqkvc_where){kept ? (int)slot : -1, doc_of(d, token), position_of(d, token)};
            slot += kept;
            if (d->rotated && kind != VQKVC_VALUE)
                rotate_back(d, d->where[i].pos, heads, d->x + (size_t)i * (size_t)width);
        }
        VQKVC_TRY(vqkvc_collector_put(&d->collector, kind, layer, n, d->where, d->x, err));
    }
    return VQKVC_OK;
}

static vqkvc_code import_wo(const dump *d, vqkvc_capture *c, vqkvc_err *err)
{
    const vqkvc_geometry *g = &d->g;
    int64_t n = (int64_t)g->d_model * vqkvc_kind_width(g, VQKVC_QUERY);
    size_t block = (size_t)g->n_kv_heads * (size_t)g->head_dim * (size_t)g->head_dim;
    float *wo = vqkvc_alloc((size_t)n, sizeof *wo, err);
    c->value_metric = vqkvc_arena_alloc(&c->arena, block * (size_t)g->n_layers, sizeof(float), err);
    for (int layer = 0; layer < g->n_layers && err->code == VQKVC_OK; layer++) {
        vqkvc_st_read_f32(find(d, layer, "wo"), 0, n, wo);
        for (int64_t i = 0; i < n; i++)
            if (!isfinite(wo[i])) {
                vqkvc_fail(err, VQKVC_E_NUMERIC, "layer.%d.wo element %lld is not finite", layer,
                           (long long)i);
                break;
            }
        vqkvc_value_metric(g, wo, c->value_metric + (size_t)layer * block, err);
    }
    free(wo);
    return err->code;
}

static vqkvc_code import_all(dump *d, const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err)
{
    vqkvc_progress progress;
    int done = 0, kinds = 2 + d->has_queries;
    VQKVC_TRY(vqkvc_capture_init(c, &d->g, (int)d->n_kept, err));
    snprintf(c->source, sizeof c->source, "import");
    c->source_hash = vqkvc_hash_bytes(d->st.map.data, d->st.map.size);
    c->seed = d->params.seed;
    c->n_tokens = (uint64_t)d->n_tokens;
    c->n_sample = (int)d->n_kept;
    VQKVC_TRY(vqkvc_collector_begin(&d->collector, c, err));
    vqkvc_progress_begin(&progress, log, "import", "layers", (uint64_t)d->g.n_layers);
    for (int layer = 0; layer < d->g.n_layers && err->code == VQKVC_OK; layer++) {
        for (int kind = 0; kind < kinds && err->code == VQKVC_OK; kind++)
            import_layer(d, (vqkvc_kind)kind, layer, err);
        vqkvc_progress_step(&progress, (uint64_t)++done);
    }
    vqkvc_progress_end(&progress, (uint64_t)done);
    if (err->code == VQKVC_OK && d->has_wo)
        import_wo(d, c, err);
    if (err->code == VQKVC_OK)
        vqkvc_collector_finish(&d->collector);
    else
        vqkvc_err_prefix(err, "%s", d->path);
    return err->code;
}

static vqkvc_code import_dump(dump *d, const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err)
{
    VQKVC_TRY(read_geometry(d, err));
    VQKVC_TRY(check_tensors(d, err));
    VQKVC_TRY(check_memory(d, err));
    VQKVC_TRY(check_positions(d, err));
    if (d->params.n_tokens > 0 && d->params.n_tokens < d->n_tokens)
        d->n_tokens = (int)d->params.n_tokens;
    VQKVC_TRY(choose_sample(d, err));
    size_t widest = (size_t)vqkvc_kind_width(&d->g, VQKVC_QUERY);
    d->where = vqkvc_alloc(VQKVC_STATS_CHUNK, sizeof *d->where, err);
    d->x = vqkvc_alloc(VQKVC_STATS_CHUNK * widest, sizeof *d->x, err);
    return err->code == VQKVC_OK ? import_all(d, log, c, err) : err->code;
}

vqkvc_code vqkvc_capture_import(const char *path, const vqkvc_capture_params *params,
                                const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err)
{
    dump d = {.path = path};
    *c = (vqkvc_capture){0};
    VQKVC_TRY(vqkvc_capture_params_resolve(params, NULL, 1, &d.params, err));
    VQKVC_TRY(vqkvc_st_open(&d.st, path, err));
    import_dump(&d, log, c, err);
    vqkvc_collector_free(&d.collector);
    free(d.kept);
    free(d.where);
    free(d.x);
    vqkvc_st_close(&d.st);
    return err->code;
}
