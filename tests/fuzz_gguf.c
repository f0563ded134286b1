/* fuzz_gguf.c - any bytes as a GGUF file: open, ask for every value, touch every tensor. */
#include "fuzz.h"
#include "gguf_writer.h"
#include "model/quant.h"

static void touch_array(const vqkvc_gguf *g, const vqkvc_gguf_kv *kv)
{
    volatile uint8_t sink = 0;
    for (uint64_t i = 0; i < kv->n; i++) {
        if (kv->element == VQKVC_GGUF_STRING) {
            size_t n;
            const char *s = vqkvc_gguf_array_string(g, kv, i, &n);
            for (size_t j = 0; j < n; j++)
                sink = (uint8_t)(sink ^ (uint8_t)s[j]);
        } else {
            double v = vqkvc_gguf_array_number(kv, i);
            fuzz_use(&v);
        }
    }
}

/* Asks for a value in every way; a fresh err each time, as only one way fits its type. */
static void touch_value(vqkvc_gguf *g, const vqkvc_gguf_kv *kv)
{
    vqkvc_err errs[4] = {{0}};
    int64_t integer;
    double number;
    int truth;
    const char *s;
    vqkvc_code as_int = vqkvc_gguf_get_int(g, kv->key, -1, &integer, &errs[0]);
    vqkvc_code as_number = vqkvc_gguf_get_number(g, kv->key, -1, &number, &errs[1]);
    vqkvc_code as_bool = vqkvc_gguf_get_bool(g, kv->key, 0, &truth, &errs[2]);
    vqkvc_code as_string = vqkvc_gguf_get_string(g, kv->key, NULL, &s, &errs[3]);
    if (as_int == VQKVC_OK && as_number != VQKVC_OK)
        abort(); /* every integer is a number */
    if ((as_number == VQKVC_OK) + (as_bool == VQKVC_OK) + (as_string == VQKVC_OK) > 1)
        abort(); /* a value has one type */
    if (as_string == VQKVC_OK && strlen(s) != kv->n)
        abort();
    if (kv->type == VQKVC_GGUF_ARRAY)
        touch_array(g, kv);
}

static void touch_tensor(const vqkvc_gguf *g, const vqkvc_gguf_tensor *t)
{
    float block[256];
    const vqkvc_quant_type *q = vqkvc_quant_find(t->type);
    if (vqkvc_gguf_find_tensor(g, t->name) != t)
        abort(); /* names are unique */
    if (q == NULL) {
        if (t->n_bytes != 0)
            abort();
        return;
    }
    /* ASan does not watch mappings, and the last page has slack behind the file. */
    if (t->data != g->map.data + t->offset || t->offset > g->map.size ||
        t->n_bytes > g->map.size - t->offset)
        abort();
    vqkvc_quant_to_f32(q, t->data, q->block, block);
    fuzz_use(block);
    vqkvc_quant_to_f32(q, t->data + t->n_bytes - (size_t)q->bytes, q->block, block);
    fuzz_use(block);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    vqkvc_err err = {0};
    vqkvc_gguf g;
    int fd = fuzz_file(data, size, path);
    if (vqkvc_gguf_open(&g, path, &err) == VQKVC_OK) {
        for (uint64_t i = 0; i < g.n_kv; i++)
            touch_value(&g, &g.kv[i]);
        for (uint64_t i = 0; i < g.n_tensors; i++)
            touch_tensor(&g, &g.tensors[i]);
        vqkvc_gguf_close(&g);
    } else if (err.msg[0] == '\0') {
        abort(); /* a refusal says why */
    }
    close(fd);
    return 0;
}

static void add_all_values(gw *w)
{
    double pi = 3.14159;
    uint8_t bytes[8] = {1, 0, 1, 1, 255, 254, 253, 252};
    gw_str(w, "general.architecture", "llama");
    gw_scalar(w, "a.u8", VQKVC_GGUF_U8, bytes, 1);
    gw_scalar(w, "a.i8", VQKVC_GGUF_I8, bytes + 4, 1);
    gw_scalar(w, "a.u16", VQKVC_GGUF_U16, bytes, 2);
    gw_scalar(w, "a.i16", VQKVC_GGUF_I16, bytes + 4, 2);
    gw_u32(w, "a.u32", 12);
    gw_i32(w, "a.i32", -12);
    gw_u64(w, "a.u64", UINT64_MAX);
    gw_scalar(w, "a.i64", VQKVC_GGUF_I64, bytes, 8);
    gw_f32(w, "a.f32", 1e-5f);
    gw_scalar(w, "a.f64", VQKVC_GGUF_F64, &pi, 8);
    gw_bool(w, "a.bool", 1);
    gw_array_i32(w, "b.i32", 3, (int32_t[]){1, -2, 3});
    gw_array_f32(w, "b.f32", 2, (float[]){0.5f, -0.5f});
    gw_array_str(w, "b.str", 3, (const char *const[]){"<s>", "", "longer"});
    gw_array(w, "b.bool", VQKVC_GGUF_BOOL, 4, bytes, 4);
}

/* Tensors of every type, two blocks each, of zeros. */
static void add_all_types(gw *w)
{
    static const uint8_t zeros[1024];
    for (uint32_t id = 0; id < 32; id++) {
        const vqkvc_quant_type *q = vqkvc_quant_find(id);
        if (q != NULL)
            gw_tensor(w, q->name, id, 2, (int64_t[]){q->block, 2}, zeros, 2 * (size_t)q->bytes);
    }
}

size_t fuzz_seed(int i, uint8_t *dst, size_t cap)
{
    if (i > 2)
        return 0;
    gw w = gw_make(i == 2 ? 2 : 3, i == 2 ? 64 : 32);
    if (i != 0)
        add_all_values(&w);
    if (i != 1)
        add_all_types(&w);
    vqkvc_buf file = gw_finish(&w);
    size_t n = file.len <= cap ? file.len : 0;
    memcpy(dst, file.data, n);
    free(file.data);
    return n;
}
