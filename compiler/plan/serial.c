/* A plan as bytes: its JSON (print.c), a NUL, and the values of all tables in their order
 * (vqkvc_table_put()). Reading trusts nothing. */
#include "plan/plan.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

void vqkvc_table_put(const vqkvc_table *table, vqkvc_buf *out)
{
    size_t n = (size_t)table->rows * table->cols;
    const uint16_t *words = table->bytes == NULL ? table->f16 : table->scale;
    size_t n_words = table->bytes == NULL ? n : n / (size_t)table->scale_rows;
    for (size_t i = 0; i < n_words; i++) {
        uint8_t word[2] = {(uint8_t)(words[i] & 0xff), (uint8_t)(words[i] >> 8)};
        vqkvc_buf_put(out, word, 2);
    }
    if (table->bytes != NULL)
        vqkvc_buf_put(out, table->bytes, n);
}

vqkvc_code vqkvc_plan_write(const vqkvc_plan *plan, vqkvc_buf *out, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_plan_json(plan, out, err));
    vqkvc_buf_put(out, "", 1);
    for (int i = 0; i < plan->n_tables; i++)
        vqkvc_table_put(&plan->tables[i], out);
    if (out->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "no memory to write plan %s", plan->scheme);
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_hash(const vqkvc_plan *plan, vqkvc_hash *hash, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    if (vqkvc_plan_write(plan, &bytes, err) == VQKVC_OK)
        *hash = vqkvc_hash_bytes(bytes.data, bytes.len);
    free(bytes.data);
    return err->code;
}

/* ---- fields ---- */

/* An object being read. Fields may be asked for after a failure: they are zeros then. */
typedef struct object {
    const json_t *json;
    char path[64]; /* "$.streams[3].runs[0]" */
    size_t fields; /* asked for so far: others are refused at the end */
    vqkvc_err *err;
} object;

static object object_open(const json_t *json, vqkvc_err *err, const char *path_fmt, ...)
    __attribute__((format(printf, 3, 4)));

static object object_open(const json_t *json, vqkvc_err *err, const char *path_fmt, ...)
{
    object o = {.json = json, .err = err};
    va_list ap;
    va_start(ap, path_fmt);
    vsnprintf(o.path, sizeof o.path, path_fmt, ap);
    va_end(ap);
    if (!json_is_object(json))
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s is no object", o.path);
    return o;
}

static vqkvc_code object_close(const object *o)
{
    if (json_object_size(o->json) > o->fields)
        return vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s has %zu unknown fields", o->path,
                          json_object_size(o->json) - o->fields);
    return o->err->code;
}

static const json_t *field(object *o, const char *key)
{
    const json_t *value = json_object_get(o->json, key);
    o->fields++;
    if (value == NULL)
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s is missing", o->path, key);
    return value;
}

static int as_int(const json_t *value, int lo, int hi, const char *path, const char *key,
                  vqkvc_err *err)
{
    json_int_t n = json_integer_value(value);
    if (json_is_integer(value) && n >= lo && n <= hi)
        return (int)n;
    if (json_is_integer(value))
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s.%s is %lld, not in %d..%d", path, key, (long long)n, lo,
                   hi);
    else
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s.%s is no integer", path, key);
    return 0;
}

static int get_int(object *o, const char *key, int lo, int hi)
{
    return as_int(field(o, key), lo, hi, o->path, key, o->err);
}

static double as_real(const json_t *value, double limit, const char *path, const char *key,
                      vqkvc_err *err)
{
    double x = json_number_value(value);
    if (json_is_number(value) && fabs(x) <= limit)
        return x;
    vqkvc_fail(err, VQKVC_E_FORMAT, "%s.%s is no number or out of range", path, key);
    return 0;
}

static double get_real(object *o, const char *key)
{
    return as_real(field(o, key), FLT_MAX, o->path, key, o->err);
}

static float get_float(object *o, const char *key)
{
    return (float)get_real(o, key);
}

/* A text, or NULL with the error set. */
static const char *get_text(object *o, const char *key)
{
    const json_t *value = field(o, key);
    if (!json_is_string(value))
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s is no text", o->path, key);
    return json_string_value(value);
}

/* A text into an array of `size` bytes. */
static void copy_text(object *o, const char *key, char *to, size_t size)
{
    const char *text = get_text(o, key);
    if (text != NULL && strlen(text) >= size)
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s is longer than %zu bytes", o->path, key,
                   size - 1);
    else if (text != NULL)
        memcpy(to, text, strlen(text) + 1);
}

/* The number of a word in a list; 0 with the error set for others. */
static int get_word(object *o, const char *key, const char *(*word)(int))
{
    const char *text = get_text(o, key);
    if (text == NULL)
        return 0;
    for (int i = 0; word(i) != NULL; i++)
        if (strcmp(word(i), text) == 0)
            return i;
    vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s is %.32s, which is not known", o->path, key, text);
    return 0;
}

/* A list; its length is bounded by the bytes that were parsed. NULL with the error set. */
static const json_t *get_list(object *o, const char *key, int max, int *n)
{
    const json_t *value = field(o, key);
    size_t size = json_array_size(value);
    *n = 0;
    if (!json_is_array(value))
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s is no list", o->path, key);
    else if (size > (size_t)max)
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.%s has %zu entries, %d at most", o->path, key, size,
                   max);
    else
        *n = (int)size;
    return value;
}

/* ---- the parts of a plan ---- */

static vqkvc_code read_geometry(const json_t *json, vqkvc_geometry *g, vqkvc_err *err)
{
    object o = object_open(json, err, "$.geometry");
    copy_text(&o, "name", g->name, sizeof g->name);
    copy_text(&o, "arch", g->arch, sizeof g->arch);
    g->n_layers = get_int(&o, "n_layers", 1, VQKVC_MAX_LAYERS);
    g->d_model = get_int(&o, "d_model", 0, INT_MAX);
    g->n_heads = get_int(&o, "n_heads", 1, VQKVC_MAX_HEADS);
    g->n_kv_heads = get_int(&o, "n_kv_heads", 1, VQKVC_MAX_HEADS);
    g->head_dim = get_int(&o, "head_dim", 1, VQKVC_MAX_HEAD_DIM);
    g->rope_layout = (vqkvc_rope_layout)get_word(&o, "rope_layout", vqkvc_rope_word);
    g->n_rot = get_int(&o, "n_rot", 0, VQKVC_MAX_HEAD_DIM);
    int n;
    const json_t *freq = get_list(&o, "rope_freq", VQKVC_MAX_HEAD_DIM / 2, &n);
    if (n != g->n_rot / 2)
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s.rope_freq has %d entries, not %d", o.path, n,
                   g->n_rot / 2);
    for (int i = 0; i < n; i++)
        g->rope_freq[i] =
            as_real(json_array_get(freq, (size_t)i), DBL_MAX, o.path, "rope_freq[]", err);
    g->rope_mscale = get_float(&o, "rope_mscale");
    g->sliding_window = get_int(&o, "sliding_window", 0, INT_MAX);
    g->n_ctx_train = get_int(&o, "n_ctx_train", 0, INT_MAX);
    copy_text(&o, "weights_hash", g->weights_hash.hex, sizeof g->weights_hash.hex);
    return object_close(&o);
}

static void read_run(const json_t *json, const char *path, int i, vqkvc_run *r, vqkvc_err *err)
{
    object o = object_open(json, err, "%.40s.runs[%d]", path, i);
    r->coder = (vqkvc_coder)get_word(&o, "coder", vqkvc_coder_word);
    r->first = get_int(&o, "first", 0, INT_MAX);
    r->groups = get_int(&o, "groups", 1, INT_MAX);
    r->width = get_int(&o, "width", 1, INT_MAX);
    r->bits = get_int(&o, "bits", 1, 16);
    r->stages = get_int(&o, "stages", 1, INT_MAX);
    r->beam = get_int(&o, "beam", 0, VQKVC_MAX_BEAM);
    r->book = get_int(&o, "book", -1, INT_MAX);
    object_close(&o);
}

static void read_member(const json_t *json, const char *path, vqkvc_member *m, vqkvc_err *err)
{
    if (json_array_size(json) != 2)
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s.members has an entry that is no [layer, head]", path);
    m->layer = as_int(json_array_get(json, 0), 0, VQKVC_MAX_LAYERS - 1, path, "members[]", err);
    m->head = as_int(json_array_get(json, 1), 0, VQKVC_MAX_HEADS - 1, path, "members[]", err);
}

/* Adds the stream of o with its members; NULL with the error set. */
static vqkvc_stream *read_members(object *o, vqkvc_plan *plan)
{
    const char *name = get_text(o, "name");
    vqkvc_part part = (vqkvc_part)get_word(o, "part", vqkvc_part_word);
    int n;
    const json_t *list = get_list(o, "members", VQKVC_MAX_LAYERS * VQKVC_MAX_HEADS, &n);
    if (o->err->code != VQKVC_OK)
        return NULL;
    vqkvc_member *members = vqkvc_alloc((size_t)n, sizeof *members, o->err);
    for (int i = 0; members != NULL && i < n; i++) {
        members[i].part = part;
        read_member(json_array_get(list, (size_t)i), o->path, &members[i], o->err);
    }
    vqkvc_stream *s = NULL;
    if (o->err->code == VQKVC_OK)
        s = vqkvc_plan_add_stream(plan, name, n, members, o->err);
    free(members);
    return s;
}

static vqkvc_code read_stream(const json_t *json, int i, vqkvc_plan *plan, vqkvc_err *err)
{
    object o = object_open(json, err, "$.streams[%d]", i);
    vqkvc_stream *s = read_members(&o, plan);
    if (s == NULL)
        return err->code;
    s->frame = (vqkvc_frame)get_word(&o, "frame", vqkvc_frame_word);
    s->transform = (vqkvc_transform)get_word(&o, "transform", vqkvc_transform_word);
    s->mean = get_int(&o, "mean", -1, INT_MAX);
    s->enc = get_int(&o, "enc", -1, INT_MAX);
    s->dec = get_int(&o, "dec", -1, INT_MAX);
    s->n_latents = get_int(&o, "n_latents", 1, s->n_in);
    s->gain = (vqkvc_gain)get_word(&o, "gain", vqkvc_gain_word);
    s->gain_bits = get_int(&o, "gain_bits", 0, 16);
    s->gain_width = get_int(&o, "gain_width", 0, INT_MAX);
    s->gain_tokens = get_int(&o, "gain_tokens", 1, INT_MAX);
    s->gain_lo = get_float(&o, "gain_lo");
    s->gain_step = get_float(&o, "gain_step");
    s->outliers = get_int(&o, "outliers", 0, s->n_in);
    s->spread = get_int(&o, "spread", -1, INT_MAX);
    int n;
    const json_t *list = get_list(&o, "runs", s->n_in, &n);
    vqkvc_run *runs = err->code != VQKVC_OK ? NULL : vqkvc_plan_set_runs(plan, s, n, err);
    for (int r = 0; runs != NULL && r < n; r++)
        read_run(json_array_get(list, (size_t)r), o.path, r, &runs[r], err);
    return object_close(&o);
}

/* [part, layer] */
static void read_source(const json_t *json, const char *path, vqkvc_prediction_source *from,
                        vqkvc_err *err)
{
    const char *part = json_string_value(json_array_get(json, 0));
    if (json_array_size(json) != 2 || part == NULL || (strcmp(part, "K") && strcmp(part, "V")))
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s.sources has an entry that is no [part, layer]", path);
    else
        from->part = part[0] == 'V' ? VQKVC_PART_V : VQKVC_PART_K;
    from->layer = as_int(json_array_get(json, 1), 0, VQKVC_MAX_LAYERS - 1, path, "sources[]", err);
}

static vqkvc_code read_prediction(const json_t *json, int i, vqkvc_plan *plan, vqkvc_err *err)
{
    object o = object_open(json, err, "$.predictions[%d]", i);
    vqkvc_part part = (vqkvc_part)get_word(&o, "part", vqkvc_part_word);
    int layer = get_int(&o, "layer", 0, VQKVC_MAX_LAYERS - 1);
    vqkvc_prediction *p = vqkvc_plan_add_prediction(plan, part, layer, err);
    if (p == NULL)
        return err->code;
    const json_t *sources = get_list(&o, "sources", 2, &p->n_sources);
    for (int s = 0; s < p->n_sources; s++)
        read_source(json_array_get(sources, (size_t)s), o.path, &p->sources[s], err);
    p->per_head = get_int(&o, "per_head", 0, 1);
    p->bias = get_int(&o, "bias", -1, INT_MAX);
    p->map = get_int(&o, "map", -1, INT_MAX);
    p->out = get_int(&o, "out", -1, INT_MAX);
    return object_close(&o);
}

/* What is left of the bytes behind the JSON. */
typedef struct tail {
    const uint8_t *bytes;
    size_t n;
} tail;

static vqkvc_code read_table(const json_t *json, int i, vqkvc_plan *plan, tail *rest,
                             vqkvc_err *err)
{
    object o = object_open(json, err, "$.tables[%d]", i);
    const char *name = get_text(&o, "name"), *hash = get_text(&o, "hash");
    int rows = get_int(&o, "rows", 1, INT_MAX), cols = get_int(&o, "cols", 1, INT_MAX);
    int scale_rows = get_int(&o, "scale_rows", 0, INT_MAX);
    VQKVC_TRY(object_close(&o));
    uint64_t values = (uint64_t)rows * (uint64_t)cols, words = values;
    if (scale_rows > 0 && rows % scale_rows != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s.scale_rows: %d does not divide %d rows", o.path,
                          scale_rows, rows);
    if (scale_rows > 0)
        words = values / (uint64_t)scale_rows;
    uint64_t size = words * 2 + (scale_rows > 0 ? values : 0);
    if (values > rest->n || size > rest->n)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: [%d, %d] values, but %zu bytes are left",
                          o.path, rows, cols, rest->n);
    if (strcmp(vqkvc_hash_bytes(rest->bytes, (size_t)size).hex, hash) != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: the values do not have the hash %.32s", o.path,
                          hash);
    int index = scale_rows > 0 ? vqkvc_plan_add_bytes(plan, rows, cols, scale_rows, err, "%s", name)
                               : vqkvc_plan_add_table(plan, rows, cols, err, "%s", name);
    if (index < 0)
        return err->code;
    const vqkvc_table *t = &plan->tables[index];
    uint16_t *to = scale_rows > 0 ? t->scale : t->f16;
    for (size_t j = 0; j < words; j++)
        to[j] = (uint16_t)(rest->bytes[2 * j] | (unsigned)rest->bytes[2 * j + 1] << 8);
    if (scale_rows > 0)
        memcpy(t->bytes, rest->bytes + words * 2, (size_t)values);
    rest->bytes += size;
    rest->n -= (size_t)size;
    return VQKVC_OK;
}

static void read_stretch(object *o, vqkvc_plan *plan)
{
    int n;
    const json_t *list = get_list(o, "stretch", VQKVC_MAX_HEAD_DIM / 2, &n);
    if (o->err->code == VQKVC_OK && n != plan->geometry.n_rot / 2)
        vqkvc_fail(o->err, VQKVC_E_FORMAT, "%s.stretch has %d entries, not %d", o->path, n,
                   plan->geometry.n_rot / 2);
    for (int i = 0; i < n && o->err->code == VQKVC_OK; i++)
        plan->stretch[i] = (uint8_t)as_int(json_array_get(list, (size_t)i), 0,
                                           VQKVC_STRETCH_ENDLESS, o->path, "stretch[]", o->err);
}

static vqkvc_code read_plan(const json_t *json, vqkvc_plan *plan, tail *rest, vqkvc_err *err)
{
    object o = object_open(json, err, "$");
    int version = get_int(&o, "version", 1, INT_MAX);
    if (err->code == VQKVC_OK && version != VQKVC_PLAN_VERSION)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "$.version is %d, but this program reads version %d only: it was written "
                          "by %s program; build it anew",
                          version, VQKVC_PLAN_VERSION,
                          version < VQKVC_PLAN_VERSION ? "an older" : "a newer");
    copy_text(&o, "scheme", plan->scheme, sizeof plan->scheme);
    VQKVC_TRY(read_geometry(field(&o, "geometry"), &plan->geometry, err));
    plan->n_sink = get_int(&o, "n_sink", 0, INT_MAX);
    plan->n_recent = get_int(&o, "n_recent", 0, INT_MAX);
    plan->block = get_int(&o, "block", 1, INT_MAX);
    read_stretch(&o, plan);
    plan->landmarks = get_int(&o, "landmarks", 0, INT_MAX);
    plan->max_error = get_float(&o, "max_error");
    plan->kept_rate = get_real(&o, "kept_rate");
    copy_text(&o, "calibration", plan->calibration.hex, sizeof plan->calibration.hex);
    int n_streams, n_tables, n_predictions;
    const json_t *predictions = get_list(&o, "predictions", 2 * VQKVC_MAX_LAYERS, &n_predictions);
    const json_t *streams = get_list(&o, "streams", INT_MAX, &n_streams);
    const json_t *tables = get_list(&o, "tables", INT_MAX, &n_tables);
    VQKVC_TRY(object_close(&o));
    for (int i = 0; i < n_streams; i++)
        VQKVC_TRY(read_stream(json_array_get(streams, (size_t)i), i, plan, err));
    for (int i = 0; i < n_predictions; i++)
        VQKVC_TRY(read_prediction(json_array_get(predictions, (size_t)i), i, plan, err));
    for (int i = 0; i < n_tables; i++)
        VQKVC_TRY(read_table(json_array_get(tables, (size_t)i), i, plan, rest, err));
    if (rest->n != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%zu bytes behind the last table", rest->n);
    return vqkvc_plan_validate(plan, err);
}

vqkvc_code vqkvc_plan_read(vqkvc_plan *plan, const void *bytes, size_t n, vqkvc_err *err)
{
    *plan = (vqkvc_plan){0};
    const char *end = n == 0 ? NULL : memchr(bytes, 0, n);
    if (end == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "plan: no NUL behind the JSON");
    size_t length = (size_t)(end - (const char *)bytes);
    json_error_t where;
    json_t *json = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &where);
    if (json == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "plan: byte %d: %s", where.position, where.text);
    tail rest = {(const uint8_t *)bytes + length + 1, n - length - 1};
    if (read_plan(json, plan, &rest, err) != VQKVC_OK) {
        vqkvc_err_prefix(err, "plan");
        vqkvc_plan_free(plan);
    }
    json_decref(json);
    return err->code;
}
