/* minimal.c - an emitted header in use: append, attend, compare with exact attention.
 *
 *     vqkvc build examples/models/ref7m.gguf --bits 2 --prefix ref7m_kv -o ref7m_kv.h
 *     cc -O2 -I. examples/minimal.c -o minimal -lm && ./minimal [vectors.f32]
 *
 * Without a file the vectors are made-up waves, on which the error says little: a calibrated codec
 * spends its bits where its own model's vectors lie. vectors.c writes a file of real ones. */
#define _POSIX_C_SOURCE         200112L /* for posix_memalign */
#define REF7M_KV_IMPLEMENTATION         /* in one file of a program; elsewhere only the #include */
#include "ref7m_kv.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 512, LAYERS = REF7M_KV_N_LAYERS, LAYER = LAYERS / 2 /* the one compared */ };
enum { HEADS = REF7M_KV_N_HEADS, KV_HEADS = REF7M_KV_N_KV_HEADS, DIM = REF7M_KV_HEAD_DIM };
enum { FLOATS = LAYERS * (HEADS + 2 * KV_HEADS) * DIM }; /* of one token */

static struct projections { /* of one token in one layer; queries and keys are rotated */
    float q[HEADS][DIM], k[KV_HEADS][DIM], v[KV_HEADS][DIM];
} x[TOKENS][LAYERS];

static void check(ref7m_kv_status status) /* the header itself never prints or exits */
{
    if (status != REF7M_KV_OK)
        exit((fprintf(stderr, "minimal: %s\n", ref7m_kv_status_text(status)), 1));
}

/* The last token's query over all tokens: the mean of their values, weighted by exp(score). */
static void exact_attention(int head, double mean[DIM])
{
    double sum = 0;
    for (int t = 0; t < TOKENS; t++) {
        const struct projections *now = &x[TOKENS - 1][LAYER], *past = &x[t][LAYER];
        double score = 0;
        for (int i = 0; i < DIM; i++)
            score += (double)now->q[head][i] * past->k[head / REF7M_KV_GROUP][i];
        double weight = exp(score * REF7M_KV_ATTENTION_SCALE);
        sum += weight;
        for (int i = 0; i < DIM; i++)
            mean[i] += (past->v[head / REF7M_KV_GROUP][i] - mean[i]) * weight / sum;
    }
}

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    for (int i = 0; i < TOKENS * FLOATS; i++)
        ((float *)x)[i] = (float)sin(i % FLOATS + 1e-3 * (i / FLOATS) * (i % 97));
    if (argc > 1 && (file == NULL || fread(x, sizeof x, 1, file) != 1))
        return fprintf(stderr, "minimal: %s: no file of %zu bytes\n", argv[1], sizeof x), 1;

    static ref7m_kv_config config; /* zero is the default of all but n_ctx */
    config.n_ctx = TOKENS;
    size_t bytes, scratch_bytes = ref7m_kv_scratch_size();
    void *memory, *scratch; /* all memory is the caller's, aligned to 64 bytes */
    ref7m_kv *kv;
    check(ref7m_kv_size(&config, &bytes));
    if (posix_memalign(&memory, 64, bytes) || posix_memalign(&scratch, 64, scratch_bytes))
        return 1;
    check(ref7m_kv_init(&kv, &config, memory, bytes));

    float out[HEADS][DIM], *q = x[TOKENS - 1][LAYER].q[0];
    for (int t = 0; t < TOKENS; t++)
        for (int l = 0; l < LAYERS; l++) /* as an engine's forward pass goes */
            check(ref7m_kv_append(kv, 0, l, 1, x[t][l].k, x[t][l].v, REF7M_KV_F32,
                                  REF7M_KV_KEYS_ROTATED));
    check(ref7m_kv_attend(kv, 0, LAYER, 1, q, out[0], NULL, scratch, scratch_bytes));

    double exact[HEADS][DIM] = {{0}}, error = 0, norm = 0;
    for (int h = 0; h < HEADS; h++) {
        exact_attention(h, exact[h]);
        for (int i = 0; i < DIM; i++)
            error += pow(out[h][i] - exact[h][i], 2), norm += pow(exact[h][i], 2);
    }
    printf("relative error of attention %.4f; cache %zu bytes, in fp16 %d\n", sqrt(error / norm),
           ref7m_kv_bytes_used(kv), TOKENS * LAYERS * KV_HEADS * DIM * 4);
    return free(memory), free(scratch), 0;
}
