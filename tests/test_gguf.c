/* test_gguf.c - the GGUF reader: what it reads back, what it refuses and in which words. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "fuzz.h"
#include "gguf_writer.h"

typedef struct opened {
    vqkvc_gguf g;
    vqkvc_err err;
    vqkvc_code code;
    char path[64];
    int fd;
} opened;

/* Opens the first n bytes of a file as they are; close_opened() releases. The struct stays put: the
 * reader borrows its path. */
static void open_bytes(opened *o, const void *bytes, size_t n)
{
    *o = (opened){0};
    o->fd = fuzz_file(bytes, n, o->path);
    o->code = vqkvc_gguf_open(&o->g, o->path, &o->err);
}

static void close_opened(opened *o)
{
    if (o->code == VQKVC_OK)
        vqkvc_gguf_close(&o->g);
    close(o->fd);
}

/* Opens what w holds; w is released. */
static void open_writer(opened *o, gw *w)
{
    vqkvc_buf file = gw_finish(w);
    open_bytes(o, file.data, file.len);
    free(file.data);
}

static void expect_refusal(opened *o, vqkvc_code code, const char *words)
{
    cr_assert_eq(o->code, code, "'%s' instead of a refusal with '%s'", o->err.msg, words);
    cr_assert_not_null(strstr(o->err.msg, words), "'%s' lacks '%s'", o->err.msg, words);
    cr_assert_not_null(strstr(o->err.msg, o->path), "'%s' does not name the file", o->err.msg);
    cr_assert_eq(o->g.map.data, NULL, "a refused file is not left mapped");
    close_opened(o);
}

static void expect_writer_refusal(gw *w, vqkvc_code code, const char *words)
{
    opened o;
    open_writer(&o, w);
    expect_refusal(&o, code, words);
}

static void write_all_scalars(gw *w)
{
    const uint8_t u8 = 200;
    const int8_t i8 = -100;
    const uint16_t u16 = 60000;
    const int16_t i16 = -30000;
    const int64_t i64 = INT64_MIN;
    const double f64 = -1.25e300;
    gw_scalar(w, "u8", VQKVC_GGUF_U8, &u8, 1);
    gw_scalar(w, "i8", VQKVC_GGUF_I8, &i8, 1);
    gw_scalar(w, "u16", VQKVC_GGUF_U16, &u16, 2);
    gw_scalar(w, "i16", VQKVC_GGUF_I16, &i16, 2);
    gw_u32(w, "u32", UINT32_MAX);
    gw_i32(w, "i32", INT32_MIN);
    gw_u64(w, "u64", (uint64_t)1 << 62);
    gw_scalar(w, "i64", VQKVC_GGUF_I64, &i64, 8);
    gw_f32(w, "f32", 0.1f);
    gw_scalar(w, "f64", VQKVC_GGUF_F64, &f64, 8);
    gw_bool(w, "yes", 1);
    gw_bool(w, "no", 0);
    gw_str(w, "str", "text");
    gw_str(w, "empty", "");
}

Test(gguf, scalars_of_every_type_are_read_back_in_both_versions)
{
    static const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"u8", 200},           {"i8", -100},       {"u16", 60000},          {"i16", -30000},
        {"u32", UINT32_MAX},   {"i32", INT32_MIN}, {"u64", 0x1p62},         {"i64", -0x1p63},
        {"f32", (double)0.1f}, {"f64", -1.25e300}, {"general.alignment", 8}};
    for (uint32_t version = 2; version <= 3; version++) {
        opened o;
        gw w = gw_make(version, 8);
        write_all_scalars(&w);
        open_writer(&o, &w);
        cr_assert_eq(o.code, VQKVC_OK, "%s", o.err.msg);
        cr_assert_eq(o.g.version, version);
        cr_assert_eq(o.g.alignment, 8);
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
            double number;
            cr_assert_eq(vqkvc_gguf_get_number(&o.g, numbers[i].key, 0, &number, &o.err), VQKVC_OK);
            cr_assert_eq(number, numbers[i].value, "%s", numbers[i].key);
            int64_t integer;
            if (fabs(numbers[i].value) >= 1 && fabs(numbers[i].value) < 1e15) {
                vqkvc_gguf_get_int(&o.g, numbers[i].key, 0, &integer, &o.err);
                cr_assert_eq((double)integer, numbers[i].value, "%s", numbers[i].key);
            }
        }
        int truth;
        const char *s;
        vqkvc_gguf_get_bool(&o.g, "yes", 0, &truth, &o.err);
        cr_assert_eq(truth, 1);
        vqkvc_gguf_get_bool(&o.g, "no", 1, &truth, &o.err);
        cr_assert_eq(truth, 0);
        vqkvc_gguf_get_string(&o.g, "str", NULL, &s, &o.err);
        cr_assert_str_eq(s, "text");
        vqkvc_gguf_get_string(&o.g, "empty", NULL, &s, &o.err);
        cr_assert_str_eq(s, "");
        cr_assert_eq(o.err.code, VQKVC_OK, "%s", o.err.msg);
        close_opened(&o);
    }
}

Test(gguf, an_absent_key_gives_the_fallback)
{
    opened o;
    gw w = gw_make(3, 32);
    int64_t integer;
    double number;
    int truth;
    const char *s = "";
    open_writer(&o, &w);
    cr_assert_eq(vqkvc_gguf_get_int(&o.g, "x", -7, &integer, &o.err), VQKVC_OK);
    cr_assert_eq(vqkvc_gguf_get_number(&o.g, "x", 0.5, &number, &o.err), VQKVC_OK);
    cr_assert_eq(vqkvc_gguf_get_bool(&o.g, "x", 1, &truth, &o.err), VQKVC_OK);
    cr_assert_eq(vqkvc_gguf_get_string(&o.g, "x", NULL, &s, &o.err), VQKVC_OK);
    cr_assert(integer == -7 && number == 0.5 && truth == 1 && s == NULL);
    cr_assert_null(vqkvc_gguf_find(&o.g, "x"));
    cr_assert_null(vqkvc_gguf_find_tensor(&o.g, "x"));
    close_opened(&o);
}

Test(gguf, a_value_of_another_type_is_refused_with_key_and_types)
{
    opened o;
    gw w = gw_make(3, 32);
    int64_t integer;
    const char *s;
    vqkvc_err err = {0}, err_big = {0}, err_string = {0}, err_nul = {0};
    gw_f32(&w, "pi", 3.14f);
    gw_u64(&w, "big", UINT64_MAX);
    gw_bytes(&w, "nul", "a\0b", 3);
    open_writer(&o, &w);
    cr_assert_eq(vqkvc_gguf_get_int(&o.g, "pi", 0, &integer, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "'pi' is of type f32, but an integer"), "%s", err.msg);
    cr_assert_eq(vqkvc_gguf_get_int(&o.g, "big", 0, &integer, &err_big), VQKVC_E_FORMAT);
    cr_assert_eq(vqkvc_gguf_get_string(&o.g, "pi", "", &s, &err_string), VQKVC_E_FORMAT);
    cr_assert_eq(vqkvc_gguf_get_string(&o.g, "nul", "", &s, &err_nul), VQKVC_E_FORMAT);
    close_opened(&o);
}

Test(gguf, arrays_are_read_back)
{
    opened o;
    gw w = gw_make(3, 32);
    const char *const words[] = {"<s>", "", "a longer one"};
    gw_array_i32(&w, "ints", 3, (int32_t[]){5, -6, INT32_MIN});
    gw_array_str(&w, "words", 3, words);
    gw_array_f32(&w, "none", 0, NULL);
    gw_u32(&w, "behind", 9);
    open_writer(&o, &w);
    cr_assert_eq(o.code, VQKVC_OK, "%s", o.err.msg);
    const vqkvc_gguf_kv *ints = vqkvc_gguf_find(&o.g, "ints"), *kv;
    cr_assert(ints->type == VQKVC_GGUF_ARRAY && ints->element == VQKVC_GGUF_I32 && ints->n == 3);
    cr_assert_eq(vqkvc_gguf_array_number(ints, 1), -6.0);
    cr_assert_eq(vqkvc_gguf_array_number(ints, 2), (double)INT32_MIN);
    kv = vqkvc_gguf_find(&o.g, "words");
    for (uint64_t i = 0; i < 3; i++) {
        size_t n;
        const char *s = vqkvc_gguf_array_string(&o.g, kv, i, &n);
        cr_assert_eq(n, strlen(words[i]));
        cr_assert_eq(memcmp(s, words[i], n), 0);
    }
    cr_assert_eq(vqkvc_gguf_find(&o.g, "none")->n, 0);
    cr_assert_not_null(vqkvc_gguf_find(&o.g, "behind"));
    close_opened(&o);
}

Test(gguf, tensors_lie_where_the_writer_put_them_for_any_alignment)
{
    const uint32_t alignments[] = {1, 8, 32, 4096};
    const float a[6] = {1, 2, 3, 4, 5, 6};
    uint8_t b[2 * 34];
    memset(b, 7, sizeof b);
    for (size_t i = 0; i < 4; i++) {
        opened o;
        gw w = gw_make(3, alignments[i]);
        gw_tensor_f32(&w, "a", 2, (int64_t[]){3, 2}, a);
        gw_tensor(&w, "b", 8, 1, (int64_t[]){64}, b, sizeof b);
        gw_tensor(&w, "odd", 999, 1, (int64_t[]){64}, NULL, 0);
        open_writer(&o, &w);
        cr_assert_eq(o.code, VQKVC_OK, "%s", o.err.msg);
        const vqkvc_gguf_tensor *t = vqkvc_gguf_find_tensor(&o.g, "a");
        cr_assert(t->n_dims == 2 && t->dims[0] == 3 && t->dims[1] == 2 && t->dims[2] == 1);
        cr_assert_eq(t->offset % alignments[i], 0);
        cr_assert(t->n_bytes == sizeof a && memcmp(t->data, a, sizeof a) == 0);
        t = vqkvc_gguf_find_tensor(&o.g, "b");
        cr_assert(t->n_bytes == sizeof b && memcmp(t->data, b, sizeof b) == 0);
        t = vqkvc_gguf_find_tensor(&o.g, "odd");
        cr_assert(t->type == 999 && t->n_bytes == 0, "unknown types are listed without bytes");
        close_opened(&o);
    }
}

Test(gguf, other_formats_and_versions_are_refused_in_clear_words)
{
    opened o;
    const uint8_t big_endian[24] = {'G', 'G', 'U', 'F', 0, 0, 0, 3};
    open_bytes(&o, "PK\3\4 and more bytes behind it", 30);
    expect_refusal(&o, VQKVC_E_FORMAT, "not a GGUF file");
    open_bytes(&o, big_endian, sizeof big_endian);
    expect_refusal(&o, VQKVC_E_UNSUPPORTED, "big-endian");
    open_bytes(&o, "", 0);
    expect_refusal(&o, VQKVC_E_FORMAT, "the file ends");
    gw v1 = gw_make(1, 32), v4 = gw_make(4, 32);
    expect_writer_refusal(&v1, VQKVC_E_UNSUPPORTED, "version 1");
    expect_writer_refusal(&v4, VQKVC_E_UNSUPPORTED, "version 4");
}

Test(gguf, every_truncation_of_a_file_is_refused)
{
    const float data[4] = {1, 2, 3, 4};
    gw w = gw_make(3, 32);
    write_all_scalars(&w);
    gw_array_str(&w, "words", 2, (const char *const[]){"one", "two"});
    gw_tensor_f32(&w, "t", 1, (int64_t[]){4}, data);
    vqkvc_buf file = gw_finish(&w);
    for (size_t n = 0; n < file.len; n++) {
        opened o;
        open_bytes(&o, file.data, n);
        cr_assert_neq(o.code, VQKVC_OK, "%zu of %zu bytes were accepted", n, file.len);
        close_opened(&o);
    }
    free(file.data);
}

Test(gguf, counts_that_the_file_cannot_hold_are_refused_before_allocation)
{
    static const uint64_t counts[] = {1000, UINT32_MAX, (uint64_t)1 << 60, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        gw keys = gw_make(3, 32), tensors = gw_make(3, 32), array = gw_make(3, 32);
        gw_u32(&keys, "k", 1);
        keys.n_kv = counts[i];
        expect_writer_refusal(&keys, VQKVC_E_FORMAT, "keys claimed");
        tensors.n_tensors = counts[i];
        expect_writer_refusal(&tensors, VQKVC_E_FORMAT, "tensors claimed");
        gw_array_head(&array, "k", VQKVC_GGUF_STRING, counts[i]);
        expect_writer_refusal(&array, VQKVC_E_FORMAT, "more than the file holds");
    }
}

Test(gguf, malformed_metadata_are_refused)
{
    const uint8_t two = 2;
    gw w = gw_make(3, 32);
    gw_u32(&w, "k", 1);
    gw_u32(&w, "k", 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "key 'k' occurs twice");
    w = gw_make(3, 32);
    gw_array_head(&w, "k", VQKVC_GGUF_ARRAY, 1);
    expect_writer_refusal(&w, VQKVC_E_UNSUPPORTED, "array of arrays");
    w = gw_make(3, 32);
    gw_scalar(&w, "k", 13, &two, 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "unknown type 13");
    w = gw_make(3, 32);
    gw_scalar(&w, "k", VQKVC_GGUF_BOOL, &two, 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "bool value 2");
    w = gw_make(3, 32);
    gw_u32(&w, "", 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "a key of 0 bytes");
    w = gw_make(3, 32);
    gw_u32(&w, "\x1b[2J", 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "control byte 0x1b");
}

Test(gguf, alignments_that_are_no_power_of_two_are_refused)
{
    const uint32_t bad[] = {0, 3, 33, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        gw w = gw_make(3, 32);
        gw_u32(&w, "general.alignment", bad[i]);
        expect_writer_refusal(&w, VQKVC_E_FORMAT, "power of two");
    }
    gw w = gw_make(3, 32);
    gw_str(&w, "general.alignment", "32");
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "'general.alignment' is of type string");
}

/* A tensor entry with 64 bytes of data behind the table, expected to be refused. */
static void expect_tensor_refusal(uint32_t type, uint32_t n_dims, const int64_t *dims,
                                  uint64_t offset, const char *words)
{
    gw w = gw_make(3, 32);
    gw_tensor_at(&w, "t", type, n_dims, dims, offset);
    for (int i = 0; i < 64; i++)
        vqkvc_buf_put(&w.data, "", 1);
    expect_writer_refusal(&w, VQKVC_E_FORMAT, words);
}

Test(gguf, malformed_tensors_are_refused)
{
    const int64_t ones[5] = {1, 1, 1, 1, 1}, half_max[2] = {INT64_MAX / 2, 3};
    const int64_t max[1] = {INT64_MAX}, zero[2] = {4, 0}, negative[1] = {-4}, odd[1] = {33};
    expect_tensor_refusal(0, 0, ones, 0, "0 dimensions");
    expect_tensor_refusal(0, 5, ones, 0, "5 dimensions");
    expect_tensor_refusal(0, 2, half_max, 0, "overflows the element count");
    expect_tensor_refusal(0, 2, zero, 0, "dimension 1 is 0");
    expect_tensor_refusal(0, 1, negative, 0, "overflows the element count");
    expect_tensor_refusal(0, 1, max, 0, "overflow the byte count");
    expect_tensor_refusal(8, 1, odd, 0, "no multiple of Q8_0's block of 32");
    expect_tensor_refusal(0, 1, ones, 4, "no multiple of the alignment");
    expect_tensor_refusal(0, 1, (int64_t[]){17}, 0, "reach beyond the file");
    expect_tensor_refusal(0, 1, (int64_t[]){9}, 32, "reach beyond the file");
    expect_tensor_refusal(0, 1, ones, UINT64_MAX - 31, "reach beyond the file");
    gw w = gw_make(3, 32);
    gw_tensor_f32(&w, "t", 1, ones, &(float){1});
    gw_tensor_f32(&w, "t", 1, ones, &(float){1});
    expect_writer_refusal(&w, VQKVC_E_FORMAT, "tensor 't' occurs twice");
}

Test(gguf, reads_the_reference_model)
{
    vqkvc_gguf g;
    vqkvc_err err = {0};
    const char *architecture;
    cr_assert_eq(vqkvc_gguf_open(&g, "examples/models/ref7m.gguf", &err), VQKVC_OK, "%s", err.msg);
    vqkvc_gguf_get_string(&g, "general.architecture", "", &architecture, &err);
    cr_assert_str_eq(architecture, "llama");
    const vqkvc_gguf_tensor *t = vqkvc_gguf_find_tensor(&g, "token_embd.weight");
    cr_assert(t != NULL && t->dims[0] == 256 && t->dims[1] == 4096);
    const vqkvc_gguf_kv *tokens = vqkvc_gguf_find(&g, "tokenizer.ggml.tokens");
    cr_assert(tokens != NULL && tokens->n == 4096 && tokens->element == VQKVC_GGUF_STRING);
    uint64_t end = 0;
    for (uint64_t i = 0; i < g.n_tensors; i++)
        if (g.tensors[i].offset + g.tensors[i].n_bytes > end)
            end = g.tensors[i].offset + g.tensors[i].n_bytes;
    cr_assert_leq(g.map.size - end, g.alignment, "the last tensor ends the file");
    vqkvc_gguf_close(&g);
}
