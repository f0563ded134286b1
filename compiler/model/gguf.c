#include "model/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "model/quant.h"

#define MAX_NAME          65535u /* bytes of a key (GGUF specification) or of a tensor's name */
#define DEFAULT_ALIGNMENT 32u
/* Smallest entries: a count above remaining / smallest cannot be honest and is refused before
 * anything is allocated for it. */
#define MIN_KV_BYTES     13u /* length, type, one value byte */
#define MIN_TENSOR_BYTES 32u /* length, n_dims, one dimension, type, offset */

typedef struct reader {
    vqkvc_gguf *g;
    uint64_t pos; /* of the next byte, never beyond the file */
    vqkvc_err *err;
} reader;

static uint64_t load_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

/* Bytes of a scalar; 0 for strings, arrays and ids that GGUF does not define. */
static unsigned scalar_size(uint32_t type)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

static const char *type_name(uint32_t type)
{
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return type < sizeof names / sizeof names[0] ? names[type] : "unknown";
}

static uint64_t left(const reader *r)
{
    return r->g->map.size - r->pos;
}

/* The next n bytes, or NULL with *err set if the file ends before. */
static const uint8_t *take(reader *r, uint64_t n, const char *what)
{
    if (n > left(r)) {
        vqkvc_fail(r->err, VQKVC_E_FORMAT,
                   "%s: offset %" PRIu64 ": %s takes %" PRIu64
                   " bytes but the file ends after %" PRIu64,
                   r->g->map.path, r->pos, what, n, left(r));
        return NULL;
    }
    const uint8_t *p = r->g->map.data + r->pos;
    r->pos += n;
    return p;
}

static vqkvc_code take_u32(reader *r, uint32_t *v, const char *what)
{
    const uint8_t *p = take(r, 4, what);
    *v = p == NULL ? 0 : (uint32_t)load_le(p, 4);
    return r->err->code;
}

static vqkvc_code take_u64(reader *r, uint64_t *v, const char *what)
{
    const uint8_t *p = take(r, 8, what);
    *v = p == NULL ? 0 : load_le(p, 8);
    return r->err->code;
}

/* A key or a tensor's name as a NUL-terminated copy. Control bytes are refused: a NUL would make
 * two names look alike, an escape sequence would reach the terminal in a message. */
static vqkvc_code take_name(reader *r, const char **name, const char *what)
{
    uint64_t n, at = r->pos;
    VQKVC_TRY(take_u64(r, &n, what));
    if (n == 0 || n > MAX_NAME)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": %s of %" PRIu64 " bytes (1 to %u allowed)",
                          r->g->map.path, at, what, n, MAX_NAME);
    const uint8_t *p = take(r, n, what);
    if (p == NULL)
        return r->err->code;
    for (uint64_t i = 0; i < n; i++)
        if (p[i] < 0x20 || p[i] == 0x7f)
            return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                              "%s: offset %" PRIu64 ": %s holds the control byte 0x%02x",
                              r->g->map.path, at + 8 + i, what, p[i]);
    *name = vqkvc_arena_strndup(&r->g->arena, (const char *)p, n, r->err);
    return r->err->code;
}

static vqkvc_code check_bools(reader *r, const vqkvc_gguf_kv *kv)
{
    for (uint64_t i = 0; i < kv->n; i++)
        if (kv->data[i] > 1)
            return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                              "%s: offset %" PRIu64 ": key '%.100s' has the bool value %u",
                              r->g->map.path, kv->offset, kv->key, kv->data[i]);
    return VQKVC_OK;
}

static vqkvc_code take_string_array(reader *r, vqkvc_gguf_kv *kv)
{
    uint64_t *offsets = vqkvc_arena_alloc(&r->g->arena, kv->n, sizeof *offsets, r->err);
    uint64_t *lengths = vqkvc_arena_alloc(&r->g->arena, kv->n, sizeof *lengths, r->err);
    if (offsets == NULL || lengths == NULL)
        return r->err->code;
    for (uint64_t i = 0; i < kv->n; i++) {
        VQKVC_TRY(take_u64(r, &lengths[i], "the length of a string"));
        offsets[i] = r->pos;
        if (take(r, lengths[i], "a string of an array") == NULL)
            return r->err->code;
    }
    kv->string_offsets = offsets;
    kv->string_lengths = lengths;
    return VQKVC_OK;
}

static vqkvc_code take_array(reader *r, vqkvc_gguf_kv *kv)
{
    uint32_t element;
    VQKVC_TRY(take_u32(r, &element, "the element type of an array"));
    VQKVC_TRY(take_u64(r, &kv->n, "the length of an array"));
    unsigned size = element == VQKVC_GGUF_STRING ? 8 : scalar_size(element);
    if (size == 0)
        return vqkvc_fail(r->err, VQKVC_E_UNSUPPORTED,
                          "%s: offset %" PRIu64 ": key '%.100s' is an array of %s (type %" PRIu32
                          "), which is not supported",
                          r->g->map.path, kv->offset, kv->key,
                          element == VQKVC_GGUF_ARRAY ? "arrays" : "unknown elements", element);
    kv->element = (vqkvc_gguf_type)element;
    if (kv->n > left(r) / size)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": key '%.100s' claims %" PRIu64
                          " elements, more than the file holds",
                          r->g->map.path, kv->offset, kv->key, kv->n);
    kv->data = r->g->map.data + r->pos;
    if (element == VQKVC_GGUF_STRING)
        return take_string_array(r, kv);
    r->pos += kv->n * size;
    return element == VQKVC_GGUF_BOOL ? check_bools(r, kv) : VQKVC_OK;
}

static vqkvc_code take_kv(reader *r, vqkvc_gguf_kv *kv)
{
    uint32_t type;
    VQKVC_TRY(take_name(r, &kv->key, "a key"));
    VQKVC_TRY(take_u32(r, &type, "the type of a value"));
    kv->offset = r->pos;
    kv->type = (vqkvc_gguf_type)type;
    kv->n = 1;
    if (type == VQKVC_GGUF_ARRAY)
        return take_array(r, kv);
    if (type == VQKVC_GGUF_STRING) {
        VQKVC_TRY(take_u64(r, &kv->n, "the length of a string"));
        kv->data = take(r, kv->n, kv->key);
        return r->err->code;
    }
    if (scalar_size(type) == 0)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": key '%.100s' has the unknown type %" PRIu32,
                          r->g->map.path, kv->offset - 4, kv->key, type);
    kv->data = take(r, scalar_size(type), kv->key);
    return kv->data != NULL && type == VQKVC_GGUF_BOOL ? check_bools(r, kv) : r->err->code;
}

/* Dimensions of a tensor; *n is their product, which fits int64. */
static vqkvc_code take_dims(reader *r, vqkvc_gguf_tensor *t, int64_t *n)
{
    uint32_t n_dims;
    uint64_t at = r->pos;
    VQKVC_TRY(take_u32(r, &n_dims, "the number of dimensions"));
    if (n_dims < 1 || n_dims > 4)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": tensor '%.100s' has %" PRIu32
                          " dimensions (1 to 4 allowed)",
                          r->g->map.path, at, t->name, n_dims);
    t->n_dims = (int)n_dims;
    *n = 1;
    for (int i = 0; i < 4; i++)
        t->dims[i] = 1;
    for (int i = 0; i < t->n_dims; i++) {
        uint64_t dim;
        at = r->pos;
        VQKVC_TRY(take_u64(r, &dim, "a dimension"));
        if (dim == 0 || dim > INT64_MAX || __builtin_mul_overflow(*n, (int64_t)dim, n))
            return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                              "%s: offset %" PRIu64 ": tensor '%.100s': dimension %d is %" PRIu64
                              ", which is 0 or overflows the element count",
                              r->g->map.path, at, t->name, i, dim);
        t->dims[i] = (int64_t)dim;
    }
    return VQKVC_OK;
}

/* Reads one entry of the tensor table. t->offset is left relative to the data section. */
static vqkvc_code take_tensor(reader *r, vqkvc_gguf_tensor *t)
{
    int64_t n = 0;
    VQKVC_TRY(take_name(r, &t->name, "a tensor name"));
    VQKVC_TRY(take_dims(r, t, &n));
    uint64_t at = r->pos;
    VQKVC_TRY(take_u32(r, &t->type, "the type of a tensor"));
    VQKVC_TRY(take_u64(r, &t->offset, "the offset of a tensor"));
    const vqkvc_quant_type *q = vqkvc_quant_find(t->type);
    if (q == NULL)
        return VQKVC_OK;
    if (t->dims[0] % q->block != 0)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": tensor '%.100s': rows of %" PRId64
                          " elements are no multiple of %s's block of %d",
                          r->g->map.path, at, t->name, t->dims[0], q->name, q->block);
    if (__builtin_mul_overflow((uint64_t)(n / q->block), (uint64_t)q->bytes, &t->n_bytes))
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": tensor '%.100s': %" PRId64
                          " elements of %s overflow the byte count",
                          r->g->map.path, at, t->name, n, q->name);
    return VQKVC_OK;
}

/* Turns a tensor's offset within the data section into one within the file, and checks it. */
static vqkvc_code place_tensor(reader *r, vqkvc_gguf_tensor *t, uint64_t data_start)
{
    const vqkvc_gguf *g = r->g;
    uint64_t room = data_start <= g->map.size ? g->map.size - data_start : 0;
    if (t->offset % g->alignment != 0)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: tensor '%.100s': data offset %" PRIu64
                          " is no multiple of the alignment %" PRIu64,
                          g->map.path, t->name, t->offset, g->alignment);
    if (data_start > g->map.size || t->offset > room || t->n_bytes > room - t->offset)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: tensor '%.100s': %" PRIu64 " bytes at data offset %" PRIu64
                          " (data begin at file offset %" PRIu64
                          ") reach beyond the file's %zu bytes",
                          g->map.path, t->name, t->n_bytes, t->offset, data_start, g->map.size);
    t->offset += data_start;
    t->data = g->map.data + t->offset;
    return VQKVC_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Refuses two equal names among n; sorts the array. */
static vqkvc_code refuse_duplicates(reader *r, const char **names, uint64_t n, const char *what)
{
    qsort(names, n, sizeof *names, compare_names);
    for (uint64_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return vqkvc_fail(r->err, VQKVC_E_FORMAT, "%s: %s '%.100s' occurs twice",
                              r->g->map.path, what, names[i]);
    return VQKVC_OK;
}

static vqkvc_code read_metadata(reader *r)
{
    vqkvc_gguf *g = r->g;
    g->kv = vqkvc_arena_alloc(&g->arena, g->n_kv, sizeof *g->kv, r->err);
    const char **names = vqkvc_alloc(g->n_kv, sizeof *names, r->err);
    if (g->kv != NULL && names != NULL) {
        for (uint64_t i = 0; i < g->n_kv && take_kv(r, &g->kv[i]) == VQKVC_OK; i++)
            names[i] = g->kv[i].key;
        if (r->err->code == VQKVC_OK)
            refuse_duplicates(r, names, g->n_kv, "key");
    }
    free(names);
    return r->err->code;
}

static vqkvc_code read_alignment(reader *r)
{
    int64_t alignment;
    VQKVC_TRY(vqkvc_gguf_get_int(r->g, "general.alignment", DEFAULT_ALIGNMENT, &alignment, r->err));
    if (alignment <= 0 || alignment > UINT32_MAX || (alignment & (alignment - 1)) != 0)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": general.alignment is %" PRId64
                          ", not a power of two below 2^32",
                          r->g->map.path, vqkvc_gguf_find(r->g, "general.alignment")->offset,
                          alignment);
    r->g->alignment = (uint64_t)alignment;
    return VQKVC_OK;
}

static vqkvc_code read_tensors(reader *r)
{
    vqkvc_gguf *g = r->g;
    /* The metadata have taken their share: what is left bounds the table better than the file. */
    if (g->n_tensors > left(r) / MIN_TENSOR_BYTES)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset 8: %" PRIu64 " tensors claimed, more than the file holds",
                          g->map.path, g->n_tensors);
    g->tensors = vqkvc_arena_alloc(&g->arena, g->n_tensors, sizeof *g->tensors, r->err);
    const char **names = vqkvc_alloc(g->n_tensors, sizeof *names, r->err);
    if (g->tensors != NULL && names != NULL) {
        for (uint64_t i = 0; i < g->n_tensors && take_tensor(r, &g->tensors[i]) == VQKVC_OK; i++)
            names[i] = g->tensors[i].name;
        if (r->err->code == VQKVC_OK)
            refuse_duplicates(r, names, g->n_tensors, "tensor");
    }
    free(names);
    uint64_t data_start = (r->pos + g->alignment - 1) / g->alignment * g->alignment;
    for (uint64_t i = 0; i < g->n_tensors && r->err->code == VQKVC_OK; i++)
        place_tensor(r, &g->tensors[i], data_start);
    return r->err->code;
}

static vqkvc_code read_header(reader *r)
{
    vqkvc_gguf *g = r->g;
    const uint8_t *magic = take(r, 4, "the magic");
    if (magic == NULL)
        return r->err->code;
    if (memcmp(magic, "GGUF", 4) != 0)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset 0: not a GGUF file (it begins with %02x %02x %02x %02x)",
                          g->map.path, magic[0], magic[1], magic[2], magic[3]);
    VQKVC_TRY(take_u32(r, &g->version, "the version"));
    if (g->version != 0 && (g->version & 0xffffu) == 0)
        return vqkvc_fail(r->err, VQKVC_E_UNSUPPORTED,
                          "%s: offset 4: a big-endian GGUF file; only little-endian is supported",
                          g->map.path);
    if (g->version != 2 && g->version != 3)
        return vqkvc_fail(r->err, VQKVC_E_UNSUPPORTED,
                          "%s: offset 4: GGUF version %" PRIu32 "; versions 2 and 3 are supported",
                          g->map.path, g->version);
    VQKVC_TRY(take_u64(r, &g->n_tensors, "the tensor count"));
    VQKVC_TRY(take_u64(r, &g->n_kv, "the key count"));
    if (g->n_kv > left(r) / MIN_KV_BYTES)
        return vqkvc_fail(r->err, VQKVC_E_FORMAT,
                          "%s: offset 16: %" PRIu64 " keys claimed, more than the file holds",
                          g->map.path, g->n_kv);
    return VQKVC_OK;
}

vqkvc_code vqkvc_gguf_open(vqkvc_gguf *g, const char *path, vqkvc_err *err)
{
    *g = (vqkvc_gguf){0};
    VQKVC_TRY(vqkvc_map_open(&g->map, path, err));
    reader r = {.g = g, .pos = 0, .err = err};
    if (read_header(&r) != VQKVC_OK || read_metadata(&r) != VQKVC_OK ||
        read_alignment(&r) != VQKVC_OK || read_tensors(&r) != VQKVC_OK)
        vqkvc_gguf_close(g);
    return err->code;
}

void vqkvc_gguf_close(vqkvc_gguf *g)
{
    vqkvc_map_close(&g->map);
    vqkvc_arena_free(&g->arena);
    *g = (vqkvc_gguf){0};
}

const vqkvc_gguf_kv *vqkvc_gguf_find(const vqkvc_gguf *g, const char *key)
{
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (strcmp(g->kv[i].key, key) == 0)
            return &g->kv[i];
    return NULL;
}

const vqkvc_gguf_tensor *vqkvc_gguf_find_tensor(const vqkvc_gguf *g, const char *name)
{
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (strcmp(g->tensors[i].name, name) == 0)
            return &g->tensors[i];
    return NULL;
}

static vqkvc_code wrong_type(const vqkvc_gguf *g, const vqkvc_gguf_kv *kv, const char *wanted,
                             vqkvc_err *err)
{
    return vqkvc_fail(err, VQKVC_E_FORMAT,
                      "%s: offset %" PRIu64 ": key '%.100s' is of type %s, but %s is wanted",
                      g->map.path, kv->offset, kv->key, type_name(kv->type), wanted);
}

/* An integer of 1 to 8 bytes, sign-extended if its type is signed; 0 if it is above INT64_MAX. */
static int load_int(vqkvc_gguf_type type, const uint8_t *p, int64_t *out)
{
    unsigned size = scalar_size(type), unused = 64 - 8 * size;
    uint64_t v = load_le(p, size);
    int is_signed = type == VQKVC_GGUF_I8 || type == VQKVC_GGUF_I16 || type == VQKVC_GGUF_I32 ||
                    type == VQKVC_GGUF_I64;
    *out = is_signed ? (int64_t)(v << unused) >> unused : (int64_t)v;
    return is_signed || v <= INT64_MAX;
}

static int is_int(vqkvc_gguf_type type)
{
    return type <= VQKVC_GGUF_I32 || type == VQKVC_GGUF_U64 || type == VQKVC_GGUF_I64;
}

static int is_number(vqkvc_gguf_type type)
{
    return is_int(type) || type == VQKVC_GGUF_F32 || type == VQKVC_GGUF_F64;
}

static double load_number(vqkvc_gguf_type type, const uint8_t *p)
{
    uint64_t bits = load_le(p, scalar_size(type));
    double v;
    int64_t i;
    if (type == VQKVC_GGUF_F32)
        return (double)vqkvc_bits_to_f32((uint32_t)bits);
    if (type == VQKVC_GGUF_F64) {
        memcpy(&v, &bits, sizeof v);
        return v;
    }
    return load_int(type, p, &i) ? (double)i : (double)bits;
}

vqkvc_code vqkvc_gguf_get_int(const vqkvc_gguf *g, const char *key, int64_t fallback, int64_t *out,
                              vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    *out = fallback;
    if (kv == NULL)
        return VQKVC_OK;
    if (!is_int(kv->type))
        return wrong_type(g, kv, "an integer", err);
    if (!load_int(kv->type, kv->data, out))
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64
                          ": key '%.100s' does not fit a signed 64-bit integer",
                          g->map.path, kv->offset, key);
    return VQKVC_OK;
}

vqkvc_code vqkvc_gguf_get_number(const vqkvc_gguf *g, const char *key, double fallback, double *out,
                                 vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    *out = fallback;
    if (kv == NULL)
        return VQKVC_OK;
    if (!is_number(kv->type))
        return wrong_type(g, kv, "a number", err);
    *out = load_number(kv->type, kv->data);
    return VQKVC_OK;
}

vqkvc_code vqkvc_gguf_get_bool(const vqkvc_gguf *g, const char *key, int fallback, int *out,
                               vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    *out = fallback;
    if (kv == NULL)
        return VQKVC_OK;
    if (kv->type != VQKVC_GGUF_BOOL)
        return wrong_type(g, kv, "a bool", err);
    *out = kv->data[0];
    return VQKVC_OK;
}

vqkvc_code vqkvc_gguf_get_string(vqkvc_gguf *g, const char *key, const char *fallback,
                                 const char **out, vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    *out = fallback;
    if (kv == NULL)
        return VQKVC_OK;
    if (kv->type != VQKVC_GGUF_STRING)
        return wrong_type(g, kv, "a string", err);
    if (kv->n != 0 && memchr(kv->data, 0, kv->n) != NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": the string of key '%.100s' holds a NUL byte",
                          g->map.path, kv->offset, key);
    char *copy = vqkvc_arena_strndup(&g->arena, (const char *)kv->data, kv->n, err);
    if (copy == NULL)
        return err->code;
    *out = copy;
    return VQKVC_OK;
}

const char *vqkvc_gguf_array_string(const vqkvc_gguf *g, const vqkvc_gguf_kv *kv, uint64_t i,
                                    size_t *n)
{
    *n = kv->string_lengths[i];
    return (const char *)g->map.data + kv->string_offsets[i];
}

double vqkvc_gguf_array_number(const vqkvc_gguf_kv *kv, uint64_t i)
{
    return load_number(kv->element, kv->data + i * scalar_size(kv->element));
}
