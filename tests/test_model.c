/* Opening a model: hyper-parameters and tensors that contradict each other are refused by name, and
 * the exact cache computes attention as a plain double-precision loop does. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "gguf_writer.h"
#include "model/model.h"

/* The toy model with the n bytes that lie `skip` behind the end of a text replaced. */
static vqkvc_code open_patched(const char *text, size_t skip, const void *bytes, size_t n,
                               vqkvc_err *err)
{
    vqkvc_buf file = {0};
    char path[] = "/tmp/vqkvc_model_XXXXXX";
    cr_assert_eq(vqkvc_read_file("tests/data/toy_llama.gguf", 1 << 20, &file, err), VQKVC_OK);
    char *at = memmem(file.data, file.len, text, strlen(text));
    cr_assert_not_null(at, "%s is not in the file", text);
    memcpy(at + strlen(text) + skip, bytes, n);
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    cr_assert_eq(vqkvc_write_file(path, file.data, file.len, err), VQKVC_OK, "%s", err->msg);
    vqkvc_model *model = NULL;
    vqkvc_code code = vqkvc_model_open(&model, path, 0, err);
    cr_assert_eq(model != NULL, code == VQKVC_OK);
    vqkvc_model_close(model);
    unlink(path);
    free(file.data);
    return code;
}

/* A 4-byte value of the file's metadata, replaced. */
static void expect_refused_value(const char *key, uint32_t value, vqkvc_code want)
{
    vqkvc_err err = {0};
    vqkvc_code code = open_patched(key, 4, &value, sizeof value, &err);
    cr_assert_eq(code, want, "%s = %u: %s", key, value, err.msg);
    const char *name = strchr(key, '.') + 1; /* keys that follow from others name those */
    cr_assert(strstr(err.msg, name) != NULL || strstr(err.msg, "tensor ") != NULL, "%s", err.msg);
}

Test(model, impossible_hyper_parameters_are_refused)
{
    expect_refused_value("llama.block_count", 0, VQKVC_E_FORMAT);
    expect_refused_value("llama.block_count", 3, VQKVC_E_FORMAT);
    expect_refused_value("llama.block_count", 0xffffffffu, VQKVC_E_FORMAT);
    expect_refused_value("llama.embedding_length", 0x7fffffff, VQKVC_E_FORMAT);
    expect_refused_value("llama.embedding_length", 64, VQKVC_E_FORMAT);
    expect_refused_value("llama.feed_forward_length", 0x80000000u, VQKVC_E_FORMAT);
    expect_refused_value("llama.context_length", 0, VQKVC_E_FORMAT);
    expect_refused_value("llama.attention.head_count", 3, VQKVC_E_FORMAT);
    expect_refused_value("llama.attention.key_length", 513, VQKVC_E_FORMAT);
    expect_refused_value("llama.attention.value_length", 8, VQKVC_E_UNSUPPORTED);
    expect_refused_value("llama.rope.dimension_count", 15, VQKVC_E_FORMAT);
    expect_refused_value("llama.rope.dimension_count", 18, VQKVC_E_FORMAT);
    expect_refused_value("llama.attention.layer_norm_rms_epsilon", 0x7fc00000u, VQKVC_E_FORMAT);
}

static void expect_refused_rename(const char *text, const char *other, vqkvc_code want,
                                  const char *words)
{
    vqkvc_err err = {0};
    size_t back = (size_t)0 - strlen(text); /* overwrite the text itself */
    vqkvc_code code = open_patched(text, back, other, strlen(other), &err);
    cr_assert_eq(code, want, "%s: %s", other, err.msg);
    cr_assert_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
}

Test(model, missing_tensors_keys_and_other_architectures_are_named)
{
    expect_refused_rename("blk.1.ffn_up.weight", "blk.1.ffn_uq", VQKVC_E_FORMAT,
                          "blk.1.ffn_up.weight is missing");
    expect_refused_rename("blk.0.attn_norm.weight", "blk.0.attn_nerm", VQKVC_E_FORMAT,
                          "blk.0.attn_norm.weight is missing");
    expect_refused_rename("token_embd.weight", "t0ken", VQKVC_E_FORMAT,
                          "token_embd.weight is missing");
    expect_refused_rename("llama.block_count", "llama.black", VQKVC_E_FORMAT,
                          "llama.block_count is missing");
}

Test(model, other_architectures_are_named)
{
    vqkvc_err err = {0};
    vqkvc_code code = open_patched("general.architecture", 12, "gemma", 5, &err);
    cr_assert_eq(code, VQKVC_E_UNSUPPORTED);
    cr_assert_not_null(strstr(err.msg, "'gemma'"), "%s", err.msg);
}

Test(model, mixtures_of_experts_are_refused)
{
    char path[] = "/tmp/vqkvc_model_XXXXXX";
    vqkvc_model *model;
    vqkvc_err err = {0};
    gw w = gw_make(3, 32);
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    gw_str(&w, "general.architecture", "llama");
    gw_u32(&w, "llama.expert_count", 8);
    gw_write(&w, path);
    cr_assert_eq(vqkvc_model_open(&model, path, 0, &err), VQKVC_E_UNSUPPORTED);
    cr_assert_not_null(strstr(err.msg, "llama.expert_count 8"), "%s", err.msg);
    unlink(path);
}

Test(model, an_unknown_tensor_type_is_named)
{
    vqkvc_err err = {0};
    uint32_t type = 9999;
    /* name, u32 n_dims, two u64 dims, u32 type */
    vqkvc_code code = open_patched("blk.1.ffn_down.weight", 20, &type, sizeof type, &err);
    cr_assert_eq(code, VQKVC_E_UNSUPPORTED, "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "blk.1.ffn_down.weight has ggml type 9999"), "%s", err.msg);
}

Test(model, output_projection_is_the_tensor)
{
    vqkvc_model *m;
    vqkvc_err err = {0};
    float a[32 * 64], b[32 * 64];
    for (int kept = 0; kept < 2; kept++) {
        cr_assert_eq(vqkvc_model_open(&m, "tests/data/toy_llama.gguf", kept ? 0 : 1, &err),
                     VQKVC_OK);
        cr_assert_eq(vqkvc_model_output_projection(m, 1, kept ? a : b, &err), VQKVC_OK);
        cr_assert_eq(vqkvc_model_output_projection(m, 2, a, &(vqkvc_err){0}), VQKVC_E_USAGE);
        vqkvc_model_close(m);
    }
    cr_assert_arr_eq(a, b, sizeof a);
    cr_assert_neq(a[5], 0);
}

/* ---- the exact cache ---- */

enum { N_CTX = 150, DIM = 24, HEADS = 6, KV_HEADS = 2 };

/* Causal attention of the query head h at position p, in double. */
static void plain_attention(const float *q, const float *k, const float *v, int p, int h,
                            int window, double out[DIM])
{
    double sum = 0;
    int kv = h / (HEADS / KV_HEADS);
    memset(out, 0, DIM * sizeof *out);
    for (int t = window > 0 && p >= window ? p - window + 1 : 0; t <= p; t++) {
        double s = 0;
        for (int i = 0; i < DIM; i++)
            s += (double)q[(p * HEADS + h) * DIM + i] * (double)k[(t * KV_HEADS + kv) * DIM + i];
        s = exp(0.2 * s);
        sum += s;
        for (int i = 0; i < DIM; i++)
            out[i] += s * (double)v[(t * KV_HEADS + kv) * DIM + i];
    }
    for (int i = 0; i < DIM; i++)
        out[i] /= sum;
}

/* Chunks of `chunk` tokens are appended, then attended. */
static void check_attention(int window, int chunk)
{
    static float q[N_CTX * HEADS * DIM], k[N_CTX * KV_HEADS * DIM], v[N_CTX * KV_HEADS * DIM];
    static float out[N_CTX * HEADS * DIM];
    vqkvc_geometry g = {.n_layers = 1, .n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM};
    vqkvc_rng rng = vqkvc_rng_make(11, (uint64_t)window);
    vqkvc_cache c;
    vqkvc_err err = {0};
    g.sliding_window = window;
    for (int i = 0; i < N_CTX * HEADS * DIM; i++)
        q[i] = (float)vqkvc_rng_normal(&rng);
    for (int i = 0; i < N_CTX * KV_HEADS * DIM; i++) {
        k[i] = (float)vqkvc_rng_normal(&rng);
        v[i] = (float)vqkvc_rng_normal(&rng);
    }
    cr_assert_eq(vqkvc_cache_exact(&c, &g, 2, N_CTX, &err), VQKVC_OK);
    for (int p = 0; p < N_CTX; p += chunk) {
        int n = N_CTX - p < chunk ? N_CTX - p : chunk;
        size_t kv = (size_t)p * KV_HEADS * DIM, at = (size_t)p * HEADS * DIM;
        cr_assert_eq(c.append(c.self, 1, 0, p, n, k + kv, v + kv, &err), VQKVC_OK);
        cr_assert_eq(c.attend(c.self, 1, 0, p, n, q + at, out + at, 0.2f, &err), VQKVC_OK);
    }
    for (int p = 0; p < N_CTX; p++)
        for (int h = 0; h < HEADS; h++) {
            double want[DIM];
            plain_attention(q, k, v, p, h, window, want);
            for (int i = 0; i < DIM; i++)
                cr_assert_float_eq((double)out[(p * HEADS + h) * DIM + i], want[i], 2e-6,
                                   "window %d, chunk %d, position %d", window, chunk, p);
        }
    cr_assert_eq(c.bytes(c.self), (size_t)8 * N_CTX * KV_HEADS * DIM);
    c.free(c.self);
}

Test(cache, attention_is_that_of_a_plain_loop)
{
    static const int windows[] = {0, 1, 40}, chunks[] = {1, 7, N_CTX};
    vqkvc_matrix_init();
    for (int w = 0; w < 3; w++)
        for (int c = 0; c < 3; c++)
            check_attention(windows[w], chunks[c]);
}

Test(cache, misuse_and_absurd_sizes_are_refused)
{
    vqkvc_geometry g = {
        .n_layers = 512, .n_heads = 512, .n_kv_heads = 512, .head_dim = 512, .n_rot = 0};
    vqkvc_cache c;
    vqkvc_err err = {0};
    float x[DIM] = {0};
    cr_assert_eq(vqkvc_cache_exact(&c, &g, INT32_MAX, INT32_MAX, &err), VQKVC_E_MEMORY);
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_cache_exact(&c, &g, 0, 8, &err), VQKVC_E_USAGE);
    g.n_layers = g.n_heads = g.n_kv_heads = 1;
    g.head_dim = DIM;
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_cache_exact(&c, &g, 1, 8, &err), VQKVC_OK);
    cr_assert_eq(c.append(c.self, 0, 0, 1, 1, x, x, &(vqkvc_err){0}), VQKVC_E_USAGE);
    cr_assert_eq(c.append(c.self, 0, 0, 0, 9, x, x, &(vqkvc_err){0}), VQKVC_E_USAGE);
    cr_assert_eq(c.append(c.self, 0, 1, 0, 1, x, x, &(vqkvc_err){0}), VQKVC_E_USAGE);
    cr_assert_eq(c.attend(c.self, 0, 0, 0, 1, x, x, 1, &(vqkvc_err){0}), VQKVC_E_USAGE);
    cr_assert_eq(c.trim(c.self, 0, -1, &(vqkvc_err){0}), VQKVC_E_USAGE);
    c.free(c.self);
}
