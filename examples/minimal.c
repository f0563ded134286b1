/* minimal.c - an emitted header in use: append, attend, compare with exact attention.
 *
 *     vqkvc build examples/models/ref7m.gguf --bits 2 --prefix ref7m_kv -o ref7m_kv.h
 *     cc -O2 -I. examples/minimal.c -o minimal -lm && ./minimal [vectors.f32]
 *
 * Without a file the vectors are a random walk. The error on such says little: a calibrated codec
 * spends its bits where its own model's vectors lie. vectors.c writes a file of real ones. */
#define _POSIX_C_SOURCE 200112L /* for posix_memalign */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REF7M_KV_IMPLEMENTATION /* in one file of a program; elsewhere only the #include */
#include "ref7m_kv.h"

enum { TOKENS = 512, LAYERS = REF7M_KV_N_LAYERS, LAYER = LAYERS / 2 /* that is compared */ };
enum { HEADS = REF7M_KV_N_HEADS, KV_HEADS = REF7M_KV_N_KV_HEADS, DIM = REF7M_KV_HEAD_DIM };

/* What a model computes of one token in one layer; queries and keys are rotated. */
static struct projections {
    float q[HEADS][DIM], k[KV_HEADS][DIM], v[KV_HEADS][DIM];
} x[TOKENS][LAYERS];

static void check(ref7m_kv_status status)
{
    if (status != REF7M_KV_OK) { /* nothing aborts in there: failures come back as words */
        fprintf(stderr, "minimal: %s\n", ref7m_kv_status_text(status));
        exit(1);
    }
}

/* Each token's vectors are near those of the token before. */
static void walk(float *flat, size_t a_token, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        flat[i] = (float)(seed >> 8) / 8388608.0f - 1.0f; /* -1 .. 1 */
        flat[i] = i < a_token ? flat[i] : 0.9f * flat[i - a_token] + 0.45f * flat[i];
    }
}

/* Attention of the last token's query head h over all tokens, as in any textbook. */
static void exact_attention(int h, double *out)
{
    double sum = 0;
    memset(out, 0, DIM * sizeof *out);
    for (int t = 0; t < TOKENS; t++) {
        const float *q = x[TOKENS - 1][LAYER].q[h], *k = x[t][LAYER].k[h / REF7M_KV_GROUP];
        double score = 0;
        for (int i = 0; i < DIM; i++)
            score += (double)q[i] * (double)k[i];
        double p = exp(score * (double)REF7M_KV_ATTENTION_SCALE);
        for (int i = 0; i < DIM; i++)
            out[i] += p * (double)x[t][LAYER].v[h / REF7M_KV_GROUP][i];
        sum += p;
    }
    for (int i = 0; i < DIM; i++)
        out[i] /= sum;
}

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (argc == 1)
        walk((float *)x, sizeof x[0] / sizeof(float), sizeof x / sizeof(float), 1);
    else if (file == NULL || fread(x, sizeof x, 1, file) != 1)
        return fprintf(stderr, "minimal: cannot read %zu bytes of %s\n", sizeof x, argv[1]), 1;
