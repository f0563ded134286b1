/* test_safetensors.c - the safetensors reader: what it reads back and what it refuses. */
#include <criterion/criterion.h>
#include <string.h>

#include "fuzz.h"
#include "model/safetensors.h"

typedef struct opened {
    vqkvc_st st;
    vqkvc_err err;
    vqkvc_code code;
    char path[64];
    int fd;
} opened;

/* Opens a file made of a header and n bytes of data; close_opened() releases. The struct stays put:
 * the reader borrows its path. */
static void open_file(opened *o, const char *header, const void *data, size_t n)
{
    uint64_t length = strlen(header);
    vqkvc_buf file = {0};
    vqkvc_buf_put(&file, &length, sizeof length);
    vqkvc_buf_puts(&file, header);
    vqkvc_buf_put(&file, data, n);
    *o = (opened){0};
    o->fd = fuzz_file((const uint8_t *)file.data, file.len, o->path);
    o->code = vqkvc_st_open(&o->st, o->path, &o->err);
    free(file.data);
}

static void close_opened(opened *o)
{
    if (o->code == VQKVC_OK)
        vqkvc_st_close(&o->st);
    close(o->fd);
}

/* With 8 bytes of data. */
static void expect_refusal(const char *header, vqkvc_code code, const char *words)
{
    opened o;
    open_file(&o, header, "\0\0\0\0\0\0\0", 8);
    cr_assert_eq(o.code, code, "%s gives '%s' instead of '%s'", header, o.err.msg, words);
    cr_assert_not_null(strstr(o.err.msg, words), "'%s' lacks '%s'", o.err.msg, words);
    cr_assert_not_null(strstr(o.err.msg, o.path), "'%s' does not name the file", o.err.msg);
    close_opened(&o);
}

Test(safetensors, tensors_and_metadata_are_read_back)
{
    /* "b" lies before "a": the JSON's order need not be the file's. */
    const char *header = "{\"__metadata__\":{\"kind\":\"pca\",\"note\":\"\"},"
                         "\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[8,16]},"
                         "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                         "\"c\":{\"dtype\":\"F16\",\"shape\":[2,1,1,1],\"data_offsets\":[4,8]},"
                         "\"s\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[16,20]},"
                         "\"z\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[20,20]}} ";
    const uint16_t half[4] = {0x3f80, 0xc000, 0x3c00, 0xc000}; /* bf16 1, -2; f16 1, -2 */
    const float whole[2] = {0.1f, -1e30f};
    uint8_t data[20] = {0};
    float got[2];
    opened o;
    memcpy(data, half, 8);
    memcpy(data + 8, whole, 8);
    open_file(&o, header, data, sizeof data);
    cr_assert_eq(o.code, VQKVC_OK, "%s", o.err.msg);
    cr_assert_eq(o.st.n_tensors, 5);
    cr_assert_str_eq(o.st.tensors[0].name, "a", "tensors keep the order of the header");
    const vqkvc_st_tensor *a = vqkvc_st_find(&o.st, "a"), *s = vqkvc_st_find(&o.st, "s");
    cr_assert(a->n_dims == 2 && a->dims[0] == 2 && a->dims[1] == 1 && a->n_elements == 2);
    vqkvc_st_read_f32(a, 0, 2, got);
    cr_assert(got[0] == whole[0] && got[1] == whole[1]);
    vqkvc_st_read_f32(a, 1, 1, got);
    cr_assert_eq(got[0], whole[1], "a read may begin inside the tensor");
    for (int i = 0; i < 2; i++) {
        vqkvc_st_read_f32(vqkvc_st_find(&o.st, i == 0 ? "b" : "c"), 0, 2, got);
        cr_assert(got[0] == 1.0f && got[1] == -2.0f);
    }
    cr_assert(s->n_dims == 0 && s->n_elements == 1 && s->type == VQKVC_ST_I32);
    cr_assert_eq(vqkvc_st_find(&o.st, "z")->n_elements, 0);
    cr_assert_null(vqkvc_st_find(&o.st, "absent"));
    cr_assert_str_eq(vqkvc_st_metadata(&o.st, "kind"), "pca");
    cr_assert_str_eq(vqkvc_st_metadata(&o.st, "note"), "");
    cr_assert_null(vqkvc_st_metadata(&o.st, "absent"));
    close_opened(&o);
}

Test(safetensors, a_file_without_tensors_is_valid)
{
    opened o;
    open_file(&o, "{}", NULL, 0);
    cr_assert_eq(o.code, VQKVC_OK, "%s", o.err.msg);
    cr_assert_eq(o.st.n_tensors, 0);
    close_opened(&o);
}

Test(safetensors, header_lengths_are_checked_against_the_file)
{
    const uint64_t lengths[] = {3, 1000, 100000001, (uint64_t)1 << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint8_t file[10] = {0};
        char path[64];
        vqkvc_st st;
        vqkvc_err err = {0};
        memcpy(file, &lengths[i], 8);
        memcpy(file + 8, "{}", 2);
        int fd = fuzz_file(file, sizeof file, path);
        cr_assert_eq(vqkvc_st_open(&st, path, &err), VQKVC_E_FORMAT);
        cr_assert_not_null(strstr(err.msg, "offset 0: header of"), "%s", err.msg);
        close(fd);
    }
    for (size_t n = 0; n < 8; n++) {
        char path[64];
        vqkvc_st st;
        vqkvc_err err = {0};
        int fd = fuzz_file((const uint8_t *)"\2\0\0\0\0\0\0", n, path);
        cr_assert_eq(vqkvc_st_open(&st, path, &err), VQKVC_E_FORMAT);
        close(fd);
    }
}

Test(safetensors, malformed_json_is_refused)
{
    expect_refusal("", VQKVC_E_FORMAT, "does not begin with '{'");
    expect_refusal(" {}", VQKVC_E_FORMAT, "does not begin with '{'");
    expect_refusal("{\"a\":", VQKVC_E_FORMAT, "JSON header");
    expect_refusal("{} x", VQKVC_E_FORMAT, "JSON header");
    expect_refusal("{\"a\":1,\"a\":2}", VQKVC_E_FORMAT, "duplicate object key");
    expect_refusal("{\"\":{}}", VQKVC_E_FORMAT, "empty or holds a control character");
    expect_refusal("{\"a\\u001b\":{}}", VQKVC_E_FORMAT, "empty or holds a control character");
    expect_refusal("{\"__metadata__\":3}", VQKVC_E_FORMAT, "__metadata__ is no object");
    expect_refusal("{\"__metadata__\":{\"a\":3}}", VQKVC_E_FORMAT, "is no string");
    expect_refusal("{\"a\":3}", VQKVC_E_FORMAT, "'a' has no dtype");
}

/* One tensor "a" with the given fields. */
static void expect_field_refusal(const char *dtype, const char *shape, const char *offsets,
                                 vqkvc_code code, const char *words)
{
    char header[256];
    snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":%s}}",
             dtype, shape, offsets);
    expect_refusal(header, code, words);
}

Test(safetensors, inconsistent_tensors_are_refused)
{
    const char *dim = "'a': dimension", *range = "'a': data_offsets", *pair = "no pair of integers";
    expect_field_refusal("F64", "[1]", "[0,8]", VQKVC_E_UNSUPPORTED, "'a' is of a type other");
    expect_field_refusal("F32", "2", "[0,8]", VQKVC_E_UNSUPPORTED, "'a': shape");
    expect_field_refusal("F32", "[1,1,1,1,2]", "[0,8]", VQKVC_E_UNSUPPORTED, "'a': shape");
    expect_field_refusal("F32", "[-2]", "[0,8]", VQKVC_E_FORMAT, dim);
    expect_field_refusal("F32", "[2.0]", "[0,8]", VQKVC_E_FORMAT, dim);
    expect_field_refusal("F32", "[4294967296,4294967296]", "[0,8]", VQKVC_E_FORMAT, dim);
    expect_field_refusal("F32", "[4611686018427387906]", "[0,8]", VQKVC_E_FORMAT, "do not fill");
    expect_field_refusal("F32", "[3]", "[0,8]", VQKVC_E_FORMAT, "do not fill");
    expect_field_refusal("F32", "[2]", "[0]", VQKVC_E_FORMAT, pair);
    expect_field_refusal("F32", "[2]", "[0,8,9]", VQKVC_E_FORMAT, pair);
    expect_field_refusal("F32", "[2]", "[0,\"8\"]", VQKVC_E_FORMAT, pair);
    expect_field_refusal("F32", "[2]", "null", VQKVC_E_FORMAT, pair);
    expect_field_refusal("F32", "[2]", "[8,16]", VQKVC_E_FORMAT, range);
    expect_field_refusal("F32", "[2]", "[8,0]", VQKVC_E_FORMAT, range);
    expect_field_refusal("F32", "[2]", "[-8,0]", VQKVC_E_FORMAT, range);
    expect_field_refusal("F32", "[2]", "[9223372036854775800,9223372036854775807]", VQKVC_E_FORMAT,
                         range);
}

Test(safetensors, the_data_are_tiled_without_holes_or_overlaps)
{
    expect_refusal("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}",
                   VQKVC_E_FORMAT, "4 bytes behind the last tensor");
    expect_refusal("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[4,8]}}",
                   VQKVC_E_FORMAT, "unused bytes before tensor 'a'");
    expect_refusal("{\"a\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,6]},"
                   "\"b\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[4,8]}}",
                   VQKVC_E_FORMAT, "overlapping data before tensor 'b'");
    expect_refusal("{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]},"
                   "\"b\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}",
                   VQKVC_E_FORMAT, "overlapping data");
    expect_refusal("{}", VQKVC_E_FORMAT, "8 bytes behind the last tensor");
}
