#include "model/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/internal.h"
#include "model/rope_scaling.h"

#define DEFAULT_F32_BYTES ((size_t)2 << 30)

enum { MAX_WIDTH = 1 << 17, MAX_D_FF = 1 << 20, MAX_VOCAB = 1 << 24, MAX_CTX = 1 << 30 };

typedef struct architecture {
    const char *name;
    vqkvc_rope_layout rope_layout;
    int has_qk_norm;
} architecture;

static const architecture architectures[] = {
    {"llama", VQKVC_ROPE_INTERLEAVED, 0},
    {"mistral", VQKVC_ROPE_INTERLEAVED, 0},
    {"qwen2", VQKVC_ROPE_HALVES, 0},
    {"qwen3", VQKVC_ROPE_HALVES, 1},
};

static vqkvc_code find_architecture(vqkvc_model *m, const architecture **arch, vqkvc_err *err)
{
    const char *path = m->gguf.map.path, *name;
    VQKVC_TRY(vqkvc_gguf_get_string(&m->gguf, "general.architecture", NULL, &name, err));
    if (name == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: general.architecture is missing", path);
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (strcmp(name, architectures[i].name) == 0) {
            *arch = &architectures[i];
            return VQKVC_OK;
        }
    return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                      "%s: architecture '%.40s' is not supported (llama, mistral, qwen2, qwen3)",
                      path, name);
}

/* The integer {arch}.<name>, within [low, high]; a fallback below low means that it is required. */
static vqkvc_code read_int(const vqkvc_model *m, const char *name, int fallback, int low, int high,
                           int *out, vqkvc_err *err)
{
    char key[128];
    int64_t value;
    snprintf(key, sizeof key, "%s.%s", m->geometry.arch, name);
    if (fallback < low && vqkvc_gguf_find(&m->gguf, key) == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s is missing", m->gguf.map.path, key);
    VQKVC_TRY(vqkvc_gguf_get_int(&m->gguf, key, fallback, &value, err));
    if (value < low || value > high)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s = %" PRId64 " is outside %d .. %d",
                          m->gguf.map.path, key, value, low, high);
    *out = (int)value;
    return VQKVC_OK;
}

static vqkvc_code read_norm_eps(vqkvc_model *m, vqkvc_err *err)
{
    char key[128];
    double eps;
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", m->geometry.arch);
    if (vqkvc_gguf_find(&m->gguf, key) == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s is missing", m->gguf.map.path, key);
    VQKVC_TRY(vqkvc_gguf_get_number(&m->gguf, key, 0, &eps, err));
    if (!(eps >= 0 && eps < 1))
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s = %g is outside 0 .. 1", m->gguf.map.path,
                          key, eps);
    m->norm_eps = (float)eps;
    return VQKVC_OK;
}

/* Heads and their dimension. */
static vqkvc_code read_heads(vqkvc_model *m, vqkvc_err *err)
{
    vqkvc_geometry *g = &m->geometry;
    const char *path = m->gguf.map.path;
    int value_length;
    VQKVC_TRY(read_int(m, "attention.head_count", 0, 1, VQKVC_MAX_HEADS, &g->n_heads, err));
    VQKVC_TRY(read_int(m, "attention.head_count_kv", g->n_heads, 1, VQKVC_MAX_HEADS, &g->n_kv_heads,
                       err));
    if (g->n_heads % g->n_kv_heads != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: %d heads (%s.attention.head_count) are no multiple of %d KV heads",
                          path, g->n_heads, g->arch, g->n_kv_heads);
    int fallback = g->d_model % g->n_heads == 0 ? g->d_model / g->n_heads : 0;
    VQKVC_TRY(
        read_int(m, "attention.key_length", fallback, 1, VQKVC_MAX_HEAD_DIM, &g->head_dim, err));
    VQKVC_TRY(read_int(m, "attention.value_length", g->head_dim, 1, VQKVC_MAX_HEAD_DIM,
                       &value_length, err));
    if (value_length != g->head_dim)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: %s.attention.value_length %d differs from key_length %d, which is "
                          "not supported",
                          path, g->arch, value_length, g->head_dim);
    VQKVC_TRY(read_int(m, "rope.dimension_count", g->head_dim, 1, g->head_dim, &g->n_rot, err));
    if (g->n_rot % 2 != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s.rope.dimension_count %d is odd", path,
                          g->arch, g->n_rot);
    return VQKVC_OK;
}

static vqkvc_code refuse_experts(const vqkvc_model *m, vqkvc_err *err)
{
    int experts;
    VQKVC_TRY(read_int(m, "expert_count", 0, 0, INT32_MAX, &experts, err));
    if (experts != 0 || vqkvc_gguf_find_tensor(&m->gguf, "blk.0.ffn_gate_exps.weight") != NULL)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: mixture of experts (%s.expert_count %d, ffn_gate_exps) is not "
                          "supported",
                          m->gguf.map.path, m->geometry.arch, experts);
    return VQKVC_OK;
}

static vqkvc_code read_geometry(vqkvc_model *m, const architecture *arch, vqkvc_err *err)
{
    vqkvc_geometry *g = &m->geometry;
    const char *name;
    VQKVC_TRY(vqkvc_gguf_get_string(&m->gguf, "general.name", "", &name, err));
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->arch, sizeof g->arch, "%s", arch->name);
    g->rope_layout = arch->rope_layout;
    VQKVC_TRY(refuse_experts(m, err));
    VQKVC_TRY(read_int(m, "block_count", 0, 1, VQKVC_MAX_LAYERS, &g->n_layers, err));
    VQKVC_TRY(read_int(m, "embedding_length", 0, 1, MAX_WIDTH, &g->d_model, err));
    VQKVC_TRY(read_int(m, "feed_forward_length", 0, 1, MAX_D_FF, &m->d_ff, err));
    VQKVC_TRY(read_int(m, "context_length", 0, 1, MAX_CTX, &g->n_ctx_train, err));
    VQKVC_TRY(read_int(m, "attention.sliding_window", 0, 0, MAX_CTX, &g->sliding_window, err));
    VQKVC_TRY(read_norm_eps(m, err));
    VQKVC_TRY(read_heads(m, err));
    g->weights_hash = vqkvc_hash_bytes(m->gguf.map.data, m->gguf.map.size);
    return VQKVC_OK;
}

static vqkvc_code read_rope(vqkvc_model *m, vqkvc_weight_source *src, vqkvc_err *err)
{
    vqkvc_geometry *g = &m->geometry;
    const char *path = m->gguf.map.path;
    const float *factors;
    vqkvc_rope_scaling scaling;
    if (vqkvc_gguf_find_tensor(&m->gguf, "rope_factors_long.weight") != NULL)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: tensor rope_factors_long.weight: longrope is not supported", path);
    VQKVC_TRY(vqkvc_vector_find(src, "rope_freqs.weight", g->n_rot / 2, 0, &factors, err));
    for (int i = 0; factors != NULL && i < g->n_rot / 2; i++)
        if (!(factors[i] >= 1e-6f && factors[i] <= 1e6f))
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: tensor rope_freqs.weight: factor %d is %g, outside 1e-6 .. 1e6",
                              path, i, (double)factors[i]);
    VQKVC_TRY(vqkvc_rope_scaling_read(&m->gguf, g->arch, g->n_ctx_train, &scaling, err));
    vqkvc_rope_scaling_apply(&scaling, factors, g);
    return VQKVC_OK;
}

/* ---- tensors ---- */

static vqkvc_code layer_matrix(vqkvc_weight_source *src, int layer, const char *name, int rows,
                               int cols, vqkvc_weight *w, vqkvc_err *err)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return vqkvc_weight_find(src, full, rows, cols, w, err);
}

static vqkvc_code layer_norm(vqkvc_weight_source *src, int layer, const char *name, int n,
                             const float **v, vqkvc_err *err)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    return vqkvc_vector_find(src, full, n, 1, v, err);
}

static vqkvc_code read_layer(const vqkvc_model *m, vqkvc_weight_source *src, int has_qk_norm, int i,
                             vqkvc_layer *l, vqkvc_err *err)
{
    const vqkvc_geometry *g = &m->geometry;
    int d = g->d_model, d_q = g->n_heads * g->head_dim, d_kv = g->n_kv_heads * g->head_dim;
    VQKVC_TRY(layer_norm(src, i, "attn_norm", d, &l->attn_norm, err));
    VQKVC_TRY(layer_norm(src, i, "ffn_norm", d, &l->ffn_norm, err));
    if (has_qk_norm) {
        VQKVC_TRY(layer_norm(src, i, "attn_q_norm", g->head_dim, &l->q_norm, err));
        VQKVC_TRY(layer_norm(src, i, "attn_k_norm", g->head_dim, &l->k_norm, err));
    }
    VQKVC_TRY(layer_matrix(src, i, "attn_q", d_q, d, &l->q, err));
    VQKVC_TRY(layer_matrix(src, i, "attn_k", d_kv, d, &l->k, err));
    VQKVC_TRY(layer_matrix(src, i, "attn_v", d_kv, d, &l->v, err));
    VQKVC_TRY(layer_matrix(src, i, "attn_output", d, d_q, &l->o, err));
    VQKVC_TRY(layer_matrix(src, i, "ffn_gate", m->d_ff, d, &l->gate, err));
    VQKVC_TRY(layer_matrix(src, i, "ffn_up", m->d_ff, d, &l->up, err));
    return layer_matrix(src, i, "ffn_down", d, m->d_ff, &l->down, err);
}

static vqkvc_code read_embeddings(vqkvc_model *m, vqkvc_weight_source *src, vqkvc_err *err)
{
    const char *path = m->gguf.map.path;
    const vqkvc_gguf_tensor *t = vqkvc_gguf_find_tensor(&m->gguf, "token_embd.weight");
    if (t == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor token_embd.weight is missing", path);
    int tokens = vqkvc_tokenizer_vocab_size(m->tokenizer);
    if (t->dims[1] < tokens || t->dims[1] < 1 || t->dims[1] > MAX_VOCAB)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: tensor token_embd.weight has %" PRId64 " rows for %d tokens (at "
                          "most %d are supported)",
                          path, t->dims[1], tokens, (int)MAX_VOCAB);
    m->vocab = (int)t->dims[1];
    int d = m->geometry.d_model;
    VQKVC_TRY(vqkvc_weight_find(src, "token_embd", m->vocab, d, &m->embed, err));
    VQKVC_TRY(vqkvc_vector_find(src, "output_norm.weight", d, 1, &m->output_norm, err));
    m->output = m->embed;
    if (vqkvc_gguf_find_tensor(&m->gguf, "output.weight") != NULL)
        return vqkvc_weight_find(src, "output", m->vocab, d, &m->output, err);
    return VQKVC_OK;
}

static void measure_scratch(vqkvc_model *m)
{
    m->scratch = vqkvc_weight_scratch(&m->output);
    for (int i = 0; i < m->geometry.n_layers; i++) {
        const vqkvc_layer *l = &m->layers[i];
        const vqkvc_weight *const all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (int w = 0; w < 7; w++)
            if (vqkvc_weight_scratch(all[w]) > m->scratch)
                m->scratch = vqkvc_weight_scratch(all[w]);
    }
}

static vqkvc_code read_model(vqkvc_model *m, size_t max_f32_bytes, vqkvc_err *err)
{
    const architecture *arch = NULL;
    vqkvc_weight_source src = {&m->gguf, &m->arena,
                               max_f32_bytes != 0 ? max_f32_bytes : DEFAULT_F32_BYTES};
    VQKVC_TRY(find_architecture(m, &arch, err));
    VQKVC_TRY(read_geometry(m, arch, err));
    VQKVC_TRY(read_rope(m, &src, err));
    VQKVC_TRY(vqkvc_tokenizer_open(&m->tokenizer, &m->gguf, err));
    VQKVC_TRY(read_embeddings(m, &src, err));
    m->layers = vqkvc_arena_alloc(&m->arena, (size_t)m->geometry.n_layers, sizeof *m->layers, err);
    if (m->layers == NULL)
        return err->code;
    for (int i = 0; i < m->geometry.n_layers; i++)
        VQKVC_TRY(read_layer(m, &src, arch->has_qk_norm, i, &m->layers[i], err));
    measure_scratch(m);
    return VQKVC_OK;
}

vqkvc_code vqkvc_model_open(vqkvc_model **model, const char *path, size_t max_f32_bytes,
                            vqkvc_err *err)
{
    *model = NULL;
    vqkvc_model *m = vqkvc_alloc(1, sizeof *m, err);
    if (m == NULL)
        return err->code;
    /* The mapping borrows its path, and the caller's may be gone before the model is. */
    const char *own_path = vqkvc_arena_strndup(&m->arena, path, strlen(path), err);
    vqkvc_code code = own_path != NULL ? vqkvc_gguf_open(&m->gguf, own_path, err) : err->code;
    if (code != VQKVC_OK) {
        vqkvc_arena_free(&m->arena);
        free(m);
        return code;
    }
    code = read_model(m, max_f32_bytes, err);
    if (code != VQKVC_OK) {
        vqkvc_model_close(m);
        return code;
    }
    *model = m;
    return VQKVC_OK;
}

void vqkvc_model_close(vqkvc_model *model)
{
    if (model == NULL)
        return;
    if (model->tokenizer != NULL)
        vqkvc_tokenizer_close(model->tokenizer);
    vqkvc_gguf_close(&model->gguf);
    vqkvc_arena_free(&model->arena);
    free(model);
}

/* ---- what callers ask ---- */

const vqkvc_geometry *vqkvc_model_geometry(const vqkvc_model *model)
{
    return &model->geometry;
}

int vqkvc_model_vocab_size(const vqkvc_model *model)
{
    return model->vocab;
}

float vqkvc_model_attention_scale(const vqkvc_model *model)
{
    return (float)(1 / sqrt(model->geometry.head_dim));
}

vqkvc_code vqkvc_model_output_projection(const vqkvc_model *model, int layer, float *dst,
                                         vqkvc_err *err)
{
    if (layer < 0 || layer >= model->geometry.n_layers)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: layer %d is outside 0 .. %d",
                          model->gguf.map.path, layer, model->geometry.n_layers - 1);
    const vqkvc_weight *w = &model->layers[layer].o;
    vqkvc_weight_rows(w, 0, w->rows, dst);
    return VQKVC_OK;
}

vqkvc_code vqkvc_tokenize(const vqkvc_model *model, const char *text, size_t len, int add_bos,
                          int32_t *ids, size_t cap, size_t *n, vqkvc_err *err)
{
    return vqkvc_tokenizer_encode(model->tokenizer, text, len, add_bos, ids, cap, n, err);
}

vqkvc_code vqkvc_token_bytes(const vqkvc_model *model, int32_t id, const char **bytes, size_t *n,
                             vqkvc_err *err)
{
    return vqkvc_tokenizer_bytes(model->tokenizer, id, bytes, n, err);
}

int32_t vqkvc_token_bos(const vqkvc_model *model)
{
    return vqkvc_tokenizer_bos(model->tokenizer);
}

int32_t vqkvc_token_eos(const vqkvc_model *model)
{
    return vqkvc_tokenizer_eos(model->tokenizer);
}
