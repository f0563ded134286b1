#include "model/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

#define MAX_HEADER   100000000u /* bytes of JSON, as the format's own library allows */
#define PREFIX_BYTES 8u         /* the header's length, little-endian */

/* Where a tensor's bytes lie in the data section. */
typedef struct span {
    uint64_t begin, end;
    const char *name;
} span;

static uint32_t load_le(const uint8_t *p, int bytes)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint32_t)p[i] << 8 * i;
    return v;
}

/* The type of a dtype name; *bytes of one element, 0 if the tool does not know it. */
static vqkvc_st_type find_type(const char *name, int *bytes)
{
    static const struct {
        const char *name;
        vqkvc_st_type type;
        int bytes;
    } types[] = {{"F32", VQKVC_ST_F32, 4},
                 {"F16", VQKVC_ST_F16, 2},
                 {"BF16", VQKVC_ST_BF16, 2},
                 {"I32", VQKVC_ST_I32, 4},
                 {"I64", VQKVC_ST_I64, 8}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0) {
            *bytes = types[i].bytes;
            return types[i].type;
        }
    *bytes = 0;
    return VQKVC_ST_F32;
}

/* Finds and parses the JSON header; *data_start is the file offset behind it. */
static json_t *parse_header(vqkvc_st *st, uint64_t *data_start, vqkvc_err *err)
{
    const vqkvc_map *map = &st->map;
    if (map->size < PREFIX_BYTES) {
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: offset 0: %zu bytes are too few for a header length",
                   map->path, map->size);
        return NULL;
    }
    uint64_t n = load_le(map->data, 4) | (uint64_t)load_le(map->data + 4, 4) << 32;
    if (n > MAX_HEADER || n > map->size - PREFIX_BYTES) {
        vqkvc_fail(err, VQKVC_E_FORMAT,
                   "%s: offset 0: header of %" PRIu64 " bytes in a file of %zu (%u at most)",
                   map->path, n, map->size, MAX_HEADER);
        return NULL;
    }
    const char *text = (const char *)map->data + PREFIX_BYTES;
    if (n == 0 || text[0] != '{') {
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: offset 8: the header does not begin with '{'",
                   map->path);
        return NULL;
    }
    json_error_t je;
    json_t *root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &je);
    if (root == NULL) {
        /* What jansson puts behind "near" is the file's own bytes, unfit for a terminal. */
        const char *near = strstr(je.text, " near ");
        int len = near != NULL ? (int)(near - je.text) : (int)strlen(je.text);
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: offset %" PRIu64 ": JSON header: %.*s", map->path,
                   PREFIX_BYTES + (uint64_t)(je.position > 0 ? je.position : 0), len, je.text);
        return NULL;
    }
    *data_start = PREFIX_BYTES + n;
    return root;
}

/* A name as it may stand in a message: empty ones and control characters are refused. */
static vqkvc_code copy_name(vqkvc_st *st, const char *name, const char **out, vqkvc_err *err)
{
    for (const char *c = name; *c != '\0' || c == name; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: header: a tensor name is empty or holds a control character",
                              st->map.path);
    *out = vqkvc_arena_strndup(&st->arena, name, strlen(name), err);
    return err->code;
}

static vqkvc_code read_metadata(vqkvc_st *st, json_t *object, vqkvc_err *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: header: __metadata__ is no object",
                          st->map.path);
    size_t n = json_object_size(object);
    st->metadata_keys = vqkvc_arena_alloc(&st->arena, n, sizeof *st->metadata_keys, err);
    st->metadata_values = vqkvc_arena_alloc(&st->arena, n, sizeof *st->metadata_values, err);
    if (err->code != VQKVC_OK)
        return err->code;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: header: a value of __metadata__ is no string", st->map.path);
        const char *s = json_string_value(value);
        int i = st->n_metadata;
        st->metadata_keys[i] = vqkvc_arena_strndup(&st->arena, key, strlen(key), err);
        st->metadata_values[i] = vqkvc_arena_strndup(&st->arena, s, strlen(s), err);
        if (err->code != VQKVC_OK)
            return err->code;
        st->n_metadata++;
    }
    return VQKVC_OK;
}

/* Fills dims and n_elements; the product of the dimensions is checked. */
static vqkvc_code read_shape(const vqkvc_st *st, json_t *shape, vqkvc_st_tensor *t, vqkvc_err *err)
{
    if (!json_is_array(shape) || json_array_size(shape) > 4)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: header: tensor '%.100s': shape is no array of at most 4 dimensions",
                          st->map.path, t->name);
    t->n_dims = (int)json_array_size(shape);
    t->n_elements = 1;
    for (int i = 0; i < 4; i++)
        t->dims[i] = 1;
    for (int i = 0; i < t->n_dims; i++) {
        json_t *dim = json_array_get(shape, (size_t)i);
        t->dims[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || t->dims[i] < 0 ||
            __builtin_mul_overflow(t->n_elements, t->dims[i], &t->n_elements))
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: header: tensor '%.100s': dimension %d is no count or overflows",
                              st->map.path, t->name, i);
    }
    return VQKVC_OK;
}

/* data_offsets: [begin, end] within a data section of `room` bytes. */
static vqkvc_code read_span(const vqkvc_st *st, json_t *offsets, uint64_t room, span *s,
                            vqkvc_err *err)
{
    json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: header: tensor '%.100s': data_offsets is no pair of integers",
                          st->map.path, s->name);
    json_int_t b = json_integer_value(begin), e = json_integer_value(end);
    if (b < 0 || e < b || (uint64_t)e > room)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: header: tensor '%.100s': data_offsets [%" JSON_INTEGER_FORMAT
                          ", %" JSON_INTEGER_FORMAT "] outside the %" PRIu64 " bytes of data",
                          st->map.path, s->name, b, e, room);
    s->begin = (uint64_t)b;
    s->end = (uint64_t)e;
    return VQKVC_OK;
}

static vqkvc_code read_tensor(vqkvc_st *st, json_t *object, uint64_t data_start, vqkvc_st_tensor *t,
                              span *s, vqkvc_err *err)
{
    const char *dtype = json_string_value(json_object_get(object, "dtype"));
    int bytes;
    if (dtype == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: header: tensor '%.100s' has no dtype",
                          st->map.path, t->name);
    t->type = find_type(dtype, &bytes);
    if (bytes == 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: header: tensor '%.100s' is of a type other than "
                          "F32, F16, BF16, I32, I64",
                          st->map.path, t->name);
    s->name = t->name;
    VQKVC_TRY(read_shape(st, json_object_get(object, "shape"), t, err));
    VQKVC_TRY(
        read_span(st, json_object_get(object, "data_offsets"), st->map.size - data_start, s, err));
    uint64_t need;
    if (__builtin_mul_overflow((uint64_t)t->n_elements, (uint64_t)bytes, &need) ||
        need != s->end - s->begin)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": tensor '%.100s': %" PRId64
                          " elements of %s do not fill its %" PRIu64 " bytes",
                          st->map.path, data_start + s->begin, t->name, t->n_elements, dtype,
                          s->end - s->begin);
    t->data = st->map.data + data_start + s->begin;
    return VQKVC_OK;
}

static int compare_spans(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The tensors must tile the data section: the format forbids overlaps and holes, in which other
 * content could hide. Sorts spans. */
static vqkvc_code check_tiling(const vqkvc_st *st, span *spans, uint64_t data_start, vqkvc_err *err)
{
    uint64_t at = 0, room = st->map.size - data_start;
    qsort(spans, (size_t)st->n_tensors, sizeof *spans, compare_spans);
    for (int i = 0; i < st->n_tensors; i++) {
        if (spans[i].begin != at)
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: offset %" PRIu64
                              ": %s before tensor '%.100s' at offset %" PRIu64,
                              st->map.path, data_start + at,
                              spans[i].begin > at ? "unused bytes" : "overlapping data",
                              spans[i].name, data_start + spans[i].begin);
        at = spans[i].end;
    }
    if (at != room)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: offset %" PRIu64 ": %" PRIu64 " bytes behind the last tensor",
                          st->map.path, data_start + at, room - at);
    return VQKVC_OK;
}

static vqkvc_code read_tensors(vqkvc_st *st, json_t *root, uint64_t data_start, span *spans,
                               vqkvc_err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            VQKVC_TRY(read_metadata(st, value, err));
            continue;
        }
        vqkvc_st_tensor *t = &st->tensors[st->n_tensors];
        VQKVC_TRY(copy_name(st, key, &t->name, err));
        VQKVC_TRY(read_tensor(st, value, data_start, t, &spans[st->n_tensors], err));
        st->n_tensors++;
    }
    return check_tiling(st, spans, data_start, err);
}

vqkvc_code vqkvc_st_open(vqkvc_st *st, const char *path, vqkvc_err *err)
{
    *st = (vqkvc_st){0};
    uint64_t data_start = 0;
    VQKVC_TRY(vqkvc_map_open(&st->map, path, err));
    json_t *root = parse_header(st, &data_start, err);
    if (root != NULL) {
        size_t n = json_object_size(root);
        st->tensors = vqkvc_arena_alloc(&st->arena, n, sizeof *st->tensors, err);
        span *spans = vqkvc_alloc(n, sizeof *spans, err);
        if (st->tensors != NULL && spans != NULL)
            read_tensors(st, root, data_start, spans, err);
        free(spans);
        json_decref(root);
    }
    if (err->code != VQKVC_OK)
        vqkvc_st_close(st);
    return err->code;
}

void vqkvc_st_close(vqkvc_st *st)
{
    vqkvc_map_close(&st->map);
    vqkvc_arena_free(&st->arena);
    *st = (vqkvc_st){0};
}

const vqkvc_st_tensor *vqkvc_st_find(const vqkvc_st *st, const char *name)
{
    for (int i = 0; i < st->n_tensors; i++)
        if (strcmp(st->tensors[i].name, name) == 0)
            return &st->tensors[i];
    return NULL;
}

const char *vqkvc_st_metadata(const vqkvc_st *st, const char *key)
{
    for (int i = 0; i < st->n_metadata; i++)
        if (strcmp(st->metadata_keys[i], key) == 0)
            return st->metadata_values[i];
    return NULL;
}

void vqkvc_st_read_f32(const vqkvc_st_tensor *t, int64_t first, int64_t n, float *dst)
{
    const uint8_t *p = t->data + first * (t->type == VQKVC_ST_F32 ? 4 : 2);
    if (t->type == VQKVC_ST_F32)
        for (int64_t i = 0; i < n; i++)
            dst[i] = vqkvc_bits_to_f32(load_le(p + 4 * i, 4));
    else if (t->type == VQKVC_ST_F16)
        for (int64_t i = 0; i < n; i++)
            dst[i] = vqkvc_f16_to_f32((uint16_t)load_le(p + 2 * i, 2));
    else
        for (int64_t i = 0; i < n; i++)
            dst[i] = vqkvc_bf16_to_f32((uint16_t)load_le(p + 2 * i, 2));
}
