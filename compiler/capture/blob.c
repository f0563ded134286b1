#include "capture/blob.h"

#include <math.h>
#include <string.h>

#include "capture/stats.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "captures are little-endian in memory as in files: this machine is not"
#endif

static const char MAGIC[8] = {'v', 'q', 'k', 'v', 'c', 'c', 'a', 'p'};
enum { VERSION = 2, HEADER = 24, CHECKSUM = VQKVC_HASH_CHARS - 1 };
enum { HAS_VALUE_METRIC = 1, HAS_RESIDUAL = 2 };

int vqkvc_capture_n_parts(const vqkvc_geometry *g)
{
    return 1 + 3 * g->n_layers;
}

static size_t metric_size(const vqkvc_geometry *g)
{
    return (size_t)g->n_layers * (size_t)g->n_kv_heads * (size_t)g->head_dim * (size_t)g->head_dim;
}

/* ---- writing ---- */

static void put_u32(vqkvc_buf *buf, uint32_t v)
{
    vqkvc_buf_put(buf, &v, sizeof v);
}

static void put_u64(vqkvc_buf *buf, uint64_t v)
{
    vqkvc_buf_put(buf, &v, sizeof v);
}

static void put_string(vqkvc_buf *buf, const char *s)
{
    put_u32(buf, (uint32_t)strlen(s));
    vqkvc_buf_puts(buf, s);
}

static void put_geometry(vqkvc_buf *buf, const vqkvc_geometry *g)
{
    const int numbers[] = {g->n_layers,   g->d_model,        g->n_heads,
                           g->n_kv_heads, g->head_dim,       (int)g->rope_layout,
                           g->n_rot,      g->sliding_window, g->n_ctx_train};
    put_string(buf, g->name);
    put_string(buf, g->arch);
    put_string(buf, g->weights_hash.hex);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        put_u32(buf, (uint32_t)numbers[i]);
    vqkvc_buf_put(buf, g->rope_freq, (size_t)(g->n_rot / 2) * sizeof g->rope_freq[0]);
    vqkvc_buf_put(buf, &g->rope_mscale, sizeof g->rope_mscale);
}

static void put_head(vqkvc_buf *buf, const vqkvc_capture *c)
{
    size_t n = (size_t)c->n_sample;
    put_geometry(buf, &c->geometry);
    put_string(buf, c->source);
    put_string(buf, c->source_hash.hex);
    put_u64(buf, c->seed);
    put_u64(buf, c->n_tokens);
    put_u32(buf, (uint32_t)c->n_sample);
    put_u32(buf, (c->value_metric != NULL ? HAS_VALUE_METRIC : 0u) |
                     (c->residual_ms != NULL ? HAS_RESIDUAL : 0u));
    vqkvc_buf_put(buf, c->pos, n * sizeof *c->pos);
    vqkvc_buf_put(buf, c->doc, n * sizeof *c->doc);
    if (c->value_metric != NULL)
        vqkvc_buf_put(buf, c->value_metric, metric_size(&c->geometry) * sizeof(float));
    if (c->residual_ms != NULL)
        vqkvc_buf_put(buf, c->residual_ms, (size_t)c->geometry.n_layers * sizeof(float));
}

static void put_layer(vqkvc_buf *buf, const vqkvc_capture *c, vqkvc_kind kind, int layer)
{
    const vqkvc_stats *s = &c->stats[kind][layer];
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind);
    put_u64(buf, s->n);
    put_u32(buf, (uint32_t)vqkvc_capture_has(c, kind, layer));
    if (!vqkvc_capture_has(c, kind, layer))
        return;
    vqkvc_buf_put(buf, s->mean, width * sizeof(double));
    vqkvc_buf_put(buf, s->moment, vqkvc_stats_moment_size(&c->geometry, kind) * sizeof(double));
    if (kind != VQKVC_QUERY)
        vqkvc_buf_put(buf, c->sample[kind][layer], (size_t)c->n_sample * width * sizeof(uint16_t));
}

vqkvc_code vqkvc_capture_part_write(const vqkvc_capture *c, int part, vqkvc_buf *buf,
                                    vqkvc_err *err)
{
    size_t begin = buf->len, layers = (size_t)c->geometry.n_layers;
    vqkvc_buf_put(buf, MAGIC, sizeof MAGIC);
    put_u32(buf, VERSION);
    put_u32(buf, (uint32_t)part);
    put_u64(buf, 0);
    if (part == 0)
        put_head(buf, c);
    else
        put_layer(buf, c, (vqkvc_kind)((size_t)(part - 1) / layers),
                  (int)((size_t)(part - 1) % layers));
    if (!buf->failed) {
        uint64_t payload = buf->len - begin - HEADER;
        memcpy(buf->data + begin + 16, &payload, sizeof payload);
        vqkvc_hash sum = vqkvc_hash_bytes(buf->data + begin, buf->len - begin);
        vqkvc_buf_put(buf, sum.hex, CHECKSUM);
    }
    if (buf->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "capture: out of memory for part %d", part);
    return VQKVC_OK;
}

vqkvc_code vqkvc_capture_write(const vqkvc_capture *c, vqkvc_buf *buf, vqkvc_err *err)
{
    for (int part = 0; part < vqkvc_capture_n_parts(&c->geometry); part++)
        VQKVC_TRY(vqkvc_capture_part_write(c, part, buf, err));
    return VQKVC_OK;
}

/* ---- reading ---- */

/* Where a part is being read; after a failure everything reads as zero. */
typedef struct reader {
    const uint8_t *bytes;
    size_t at, end;
    int part;
    vqkvc_err *err;
} reader;

static void fail(reader *r, const char *what)
{
    vqkvc_fail(r->err, VQKVC_E_FORMAT, "capture part %d, byte %zu: %s", r->part, r->at, what);
}

/* The next n * size bytes, or NULL if the part is too short. */
static const uint8_t *take(reader *r, size_t n, size_t size, const char *what)
{
    if (r->err->code != VQKVC_OK)
        return NULL;
    if (n > (r->end - r->at) / size) {
        fail(r, what);
        return NULL;
    }
    const uint8_t *p = r->bytes + r->at;
    r->at += n * size;
    return p;
}

static void get(reader *r, void *dst, size_t n, size_t size, const char *what)
{
    const uint8_t *p = take(r, n, size, what);
    if (p == NULL)
        memset(dst, 0, n * size);
    else
        memcpy(dst, p, n * size);
}

static uint32_t get_u32(reader *r, const char *what)
{
    uint32_t v;
    get(r, &v, 1, sizeof v, what);
    return v;
}

static uint64_t get_u64(reader *r, const char *what)
{
    uint64_t v;
    get(r, &v, 1, sizeof v, what);
    return v;
}

static int get_int(reader *r, uint32_t low, uint32_t high, const char *what)
{
    uint32_t v = get_u32(r, what);
    if (r->err->code == VQKVC_OK && (v < low || v > high))
        fail(r, what);
    return r->err->code == VQKVC_OK ? (int)v : 0;
}

/* A string of at most cap - 1 bytes, none of them NUL. */
static void get_string(reader *r, char *dst, size_t cap, const char *what)
{
    size_t n = get_u32(r, what);
    const uint8_t *p = n < cap ? take(r, n, 1, what) : NULL;
    if (p == NULL || memchr(p, '\0', n) != NULL) {
        fail(r, what);
        return;
    }
    memcpy(dst, p, n);
    dst[n] = '\0';
}

static void get_geometry(reader *r, vqkvc_geometry *g)
{
    get_string(r, g->name, sizeof g->name, "name of the model");
    get_string(r, g->arch, sizeof g->arch, "architecture");
    get_string(r, g->weights_hash.hex, sizeof g->weights_hash.hex, "hash of the weights");
    g->n_layers = get_int(r, 1, VQKVC_MAX_LAYERS, "number of layers");
    g->d_model = get_int(r, 1, 1 << 20, "width of the model");
    g->n_heads = get_int(r, 1, VQKVC_MAX_HEADS, "number of heads");
    g->n_kv_heads = get_int(r, 1, VQKVC_MAX_HEADS, "number of KV heads");
    g->head_dim = get_int(r, 1, VQKVC_MAX_HEAD_DIM, "head dimension");
    g->rope_layout = (vqkvc_rope_layout)get_int(r, 0, VQKVC_ROPE_HALVES, "RoPE layout");
    g->n_rot = get_int(r, 0, (uint32_t)g->head_dim, "rotated channels");
    g->sliding_window = get_int(r, 0, INT32_MAX, "sliding window");
    g->n_ctx_train = get_int(r, 0, INT32_MAX, "trained context");
    if (r->err->code == VQKVC_OK && (g->n_rot % 2 != 0 || g->n_heads % g->n_kv_heads != 0))
        fail(r, "numbers of heads and rotated channels do not fit");
    get(r, g->rope_freq, (size_t)(g->n_rot / 2), sizeof g->rope_freq[0], "RoPE frequencies");
    get(r, &g->rope_mscale, 1, sizeof g->rope_mscale, "RoPE magnitude");
    int finite = isfinite(g->rope_mscale);
    for (int i = 0; i < g->n_rot / 2; i++)
        finite = finite && isfinite(g->rope_freq[i]);
    if (!finite)
        fail(r, "RoPE frequencies are not finite");
}

/* Array of the part, checked to be there before memory for it is taken. */
static void *get_array(reader *r, vqkvc_arena *arena, size_t n, size_t size, const char *what)
{
    const uint8_t *p = take(r, n, size, what);
    void *dst = p == NULL ? NULL : vqkvc_arena_alloc(arena, n, size, r->err);
    if (dst != NULL)
        memcpy(dst, p, n * size);
    return dst;
}

static void get_positions(reader *r, vqkvc_capture *c, int32_t *dst, const char *what)
{
    get(r, dst, (size_t)c->n_sample, sizeof *dst, what);
    for (int i = 0; i < c->n_sample && r->err->code == VQKVC_OK; i++)
        if (dst[i] < 0)
            fail(r, what);
}

static void get_head(reader *r, vqkvc_capture *c)
{
    vqkvc_geometry g = {0};
    vqkvc_capture head = {0};
    get_geometry(r, &g);
    get_string(r, head.source, sizeof head.source, "source");
    get_string(r, head.source_hash.hex, sizeof head.source_hash.hex, "hash of the source");
    head.seed = get_u64(r, "seed");
    head.n_tokens = get_u64(r, "number of tokens");
    uint64_t most = head.n_tokens < INT32_MAX ? head.n_tokens : INT32_MAX;
    head.n_sample = get_int(r, 0, (uint32_t)most, "sampled tokens");
    int has = get_int(r, 0, HAS_VALUE_METRIC | HAS_RESIDUAL, "flags");
    if (r->err->code == VQKVC_OK &&
        (size_t)head.n_sample > (r->end - r->at) / (2 * sizeof(int32_t)))
        fail(r, "positions are cut short");
    if (r->err->code != VQKVC_OK || vqkvc_capture_init(c, &g, head.n_sample, r->err) != VQKVC_OK)
        return;
    memcpy(c->source, head.source, sizeof c->source);
    c->source_hash = head.source_hash;
    c->seed = head.seed;
    c->n_tokens = head.n_tokens;
    c->n_sample = head.n_sample;
    get_positions(r, c, c->pos, "positions");
    get_positions(r, c, c->doc, "sequences");
    if (has & HAS_VALUE_METRIC)
        c->value_metric =
            get_array(r, &c->arena, metric_size(&g), sizeof(float), "metric of values");
    if (has & HAS_RESIDUAL)
        c->residual_ms =
            get_array(r, &c->arena, (size_t)g.n_layers, sizeof(float), "residual mean squares");
}

static void get_layer(reader *r, vqkvc_capture *c, vqkvc_kind kind, int layer)
{
    size_t width = (size_t)vqkvc_kind_width(&c->geometry, kind),
           room = kind == VQKVC_QUERY ? 0 : (size_t)c->n_sample;
    size_t moment = vqkvc_stats_moment_size(&c->geometry, kind);
    size_t bytes = (width + moment) * sizeof(double) + room * width * sizeof(uint16_t);
    uint64_t n = get_u64(r, "tokens in the statistics");
    int present = get_int(r, 0, 1, "flag for vectors");
    if (r->err->code != VQKVC_OK || !present)
        return;
    /* 64-bit sizes hold the largest geometry there is; memory is taken for bytes that are there. */
    if (r->end - r->at != bytes) {
        fail(r, "length does not fit the geometry");
        return;
    }
    if (vqkvc_capture_alloc_layer(c, kind, layer, r->err) != VQKVC_OK)
        return;
    vqkvc_stats *s = &c->stats[kind][layer];
    s->n = n;
    get(r, s->mean, width, sizeof(double), "mean");
    get(r, s->moment, moment, sizeof(double), "second moment");
    if (kind != VQKVC_QUERY)
        get(r, c->sample[kind][layer], room * width, sizeof(uint16_t), "sample");
}

/* Frame and checksum of the part at r->at; r->end becomes the end of its payload. */
static void open_part(reader *r)
{
    size_t begin = r->at;
    const uint8_t *magic = take(r, sizeof MAGIC, 1, "too short for a capture");
    if (magic != NULL && memcmp(magic, MAGIC, sizeof MAGIC) != 0)
        fail(r, "not a vqkvc capture");
    uint32_t version = get_u32(r, "version"), part = get_u32(r, "part");
    uint64_t payload = get_u64(r, "length");
    if (r->err->code != VQKVC_OK)
        return;
    if (version != VERSION)
        vqkvc_fail(r->err, VQKVC_E_UNSUPPORTED, "capture of version %u; this program reads %d",
                   version, VERSION);
    if (part != (uint32_t)r->part)
        fail(r, "another part than asked for");
    if (r->end - r->at < CHECKSUM || payload > r->end - r->at - CHECKSUM)
        fail(r, "cut short");
    if (r->err->code != VQKVC_OK)
        return;
    r->end = r->at + (size_t)payload;
    vqkvc_hash sum = vqkvc_hash_bytes(r->bytes + begin, r->end - begin);
    if (memcmp(sum.hex, r->bytes + r->end, CHECKSUM) != 0)
        fail(r, "damaged: its checksum differs");
}

/* Reads one part from the front of n bytes; *used: how many it took. */
static vqkvc_code read_part(vqkvc_capture *c, int part, const uint8_t *bytes, size_t n,
                            size_t *used, vqkvc_err *err)
{
    reader r = {.bytes = bytes, .end = n, .part = part, .err = err};
    open_part(&r);
    if (err->code != VQKVC_OK)
        return err->code;
    if (part == 0)
        get_head(&r, c);
    else
        get_layer(&r, c, (vqkvc_kind)((part - 1) / c->geometry.n_layers),
                  (part - 1) % c->geometry.n_layers);
    if (err->code == VQKVC_OK && r.at != r.end)
        fail(&r, "bytes behind the end");
    *used = r.end + CHECKSUM;
    return err->code;
}

vqkvc_code vqkvc_capture_part_read(vqkvc_capture *c, int part, const void *bytes, size_t n,
                                   vqkvc_err *err)
{
    size_t used = 0;
    if (part < 0 || (part > 0 && part >= vqkvc_capture_n_parts(&c->geometry)))
        return vqkvc_fail(err, VQKVC_E_USAGE, "a capture of %d layers has no part %d",
                          c->geometry.n_layers, part);
    VQKVC_TRY(read_part(c, part, bytes, n, &used, err));
    if (used != n)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "capture part %d: %zu bytes behind its end", part,
                          n - used);
    return VQKVC_OK;
}

vqkvc_code vqkvc_capture_load(vqkvc_capture *c, const void *bytes, size_t n, vqkvc_err *err)
{
    size_t at = 0, used = 0;
    VQKVC_TRY(read_part(c, 0, bytes, n, &used, err));
    for (int part = 1; part < vqkvc_capture_n_parts(&c->geometry); part++) {
        at += used;
        VQKVC_TRY(read_part(c, part, (const uint8_t *)bytes + at, n - at, &used, err));
    }
    if (at + used != n)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "capture: %zu bytes behind its last part",
                          n - at - used);
    return VQKVC_OK;
}
