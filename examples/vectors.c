/* vectors.c - writes what a model really computes, for minimal.c to compress.
 *
 *     vectors MODEL.gguf TOKENS.i32 OUT.f32
 *
 * Runs the model over token ids (little-endian int32) and writes, token by token and layer by
 * layer, queries [n_heads, head_dim], keys and values [n_kv_heads, head_dim] in fp32, queries and
 * keys rotated: what a cache is handed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/matrix.h"
#include "model/model.h"

enum { MAX_FILE = 1 << 22 /* bytes of token ids: a million tokens */ };

/* An exact cache that notes what passes through it. */
typedef struct recorder {
    vqkvc_cache exact;
    size_t n_layers, d_q, d_kv; /* floats of the queries, and of the keys, of a token */
    float *x;                   /* [n, n_layers, d_q + 2 * d_kv] */
} recorder;

static float *place(const recorder *r, int pos, int layer)
{
    return r->x + ((size_t)pos * r->n_layers + (size_t)layer) * (r->d_q + 2 * r->d_kv);
}

static vqkvc_code record_append(void *self, int seq, int layer, int pos, int n, const float *k,
                                const float *v, vqkvc_err *err)
{
    recorder *r = self;
    for (int i = 0; i < n; i++) {
        float *to = place(r, pos + i, layer) + r->d_q;
        memcpy(to, k + (size_t)i * r->d_kv, r->d_kv * sizeof *to);
        memcpy(to + r->d_kv, v + (size_t)i * r->d_kv, r->d_kv * sizeof *to);
    }
    return r->exact.append(r->exact.self, seq, layer, pos, n, k, v, err);
}

static vqkvc_code record_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                                float *out, float scale, vqkvc_err *err)
{
    recorder *r = self;
    for (int i = 0; i < n; i++)
        memcpy(place(r, pos + i, layer), q + (size_t)i * r->d_q, r->d_q * sizeof *q);
    return r->exact.attend(r->exact.self, seq, layer, pos, n, q, out, scale, err);
}

/* All tokens of one sequence in one step. */
static vqkvc_code run(vqkvc_model *model, recorder *r, const int32_t *ids, int n, vqkvc_err *err)
{
    const vqkvc_cache cache = {.self = r, .append = record_append, .attend = record_attend};
    int *seq = vqkvc_alloc((size_t)n, sizeof *seq, err);
    int *pos = vqkvc_alloc((size_t)n, sizeof *pos, err);
    for (int i = 0; err->code == VQKVC_OK && i < n; i++)
        pos[i] = i;
    if (err->code == VQKVC_OK)
        vqkvc_forward(model, &cache, &(vqkvc_batch){n, ids, seq, pos}, NULL, NULL, err);
    free(seq);
    free(pos);
    return err->code;
}

static vqkvc_code record(vqkvc_model *model, const vqkvc_buf *file, const char *output,
                         vqkvc_err *err)
{
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    recorder r = {.n_layers = (size_t)g->n_layers,
                  .d_q = (size_t)g->n_heads * (size_t)g->head_dim,
                  .d_kv = (size_t)g->n_kv_heads * (size_t)g->head_dim};
    int n = (int)(file->len / sizeof(int32_t));
    size_t floats = (size_t)n * r.n_layers * (r.d_q + 2 * r.d_kv);
    VQKVC_TRY(vqkvc_cache_exact(&r.exact, g, 1, n, err));
    r.x = vqkvc_alloc(floats, sizeof *r.x, err);
    if (r.x != NULL &&
        run(model, &r, (const int32_t *)(const void *)file->data, n, err) == VQKVC_OK)
        vqkvc_write_file(output, r.x, floats * sizeof *r.x, err);
    free(r.x);
    r.exact.free(r.exact.self);
    return err->code;
}

int main(int argc, char **argv)
{
    vqkvc_err err = {0};
    vqkvc_model *model = NULL;
    vqkvc_buf file = {0};
    if (argc != 4) {
        fprintf(stderr, "usage: vectors MODEL.gguf TOKENS.i32 OUT.f32\n");
        return 2;
    }
    vqkvc_matrix_init();
    if (vqkvc_model_open(&model, argv[1], 0, &err) == VQKVC_OK &&
        vqkvc_read_file(argv[2], MAX_FILE, &file, &err) == VQKVC_OK)
        record(model, &file, argv[3], &err);
    free(file.data);
    vqkvc_model_close(model);
    if (err.code != VQKVC_OK)
        fprintf(stderr, "vectors: %s\n", err.msg);
    return vqkvc_exit_status(err.code);
}
