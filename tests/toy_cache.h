/* toy_cache.h - caches of the golden toy header with tokens in them, for tests and fuzzing. */
#ifndef VQKVC_TESTS_TOY_CACHE_H
#define VQKVC_TESTS_TOY_CACHE_H

#include <stdio.h>
#include <stdlib.h>

#define TOY_KV_IMPLEMENTATION
#include "golden/toy_kv.h"
#include "runtime_check.h"

enum {
    TOY_LAYERS = TOY_KV_N_LAYERS,
    TOY_DIM = TOY_KV_HEAD_DIM, /* one KV head */
    TOY_ROW = TOY_KV_N_HEADS * TOY_KV_HEAD_DIM
};
_Static_assert(TOY_KV_N_KV_HEADS == 1, "the helpers below know one KV head");

typedef struct toy_cache {
    toy_kv *kv;
    void *memory, *scratch;
    size_t bytes, scratch_bytes;
} toy_cache;

static inline void toy_must(toy_kv_status status, const char *what)
{
    if (status == TOY_KV_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, toy_kv_status_text(status));
    abort();
}

static inline void *toy_aligned(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL)
        abort();
    memset(p, 0xa5, (bytes + 63) / 64 * 64);
    return p;
}

static inline toy_cache toy_cache_of(const toy_kv_config *config)
{
    toy_cache c = {0};
    toy_must(toy_kv_size(config, &c.bytes), "size");
    c.memory = toy_aligned(c.bytes);
    toy_must(toy_kv_init(&c.kv, config, c.memory, c.bytes), "init");
    c.scratch_bytes = toy_kv_scratch_size();
    c.scratch = toy_aligned(c.scratch_bytes);
    return c;
}

static inline toy_cache toy_cache_new(int n_seq, int n_ctx, int n_blocks)
{
    toy_kv_config config = {0};
    config.n_seq = n_seq;
    config.n_ctx = n_ctx;
    config.n_blocks = n_blocks;
    return toy_cache_of(&config);
}

static inline void toy_cache_free(toy_cache *c)
{
    free(c->memory);
    free(c->scratch);
}

/* The vector of one token of story `story`: x [TOY_DIM]. */
static inline void toy_vector(int story, int layer, int part, int token, float *x)
{
    check_rng rng = {(uint64_t)(((story * 8 + layer) * 2 + part) * 65536 + token)};
    for (int d = 0; d < 4; d++)
        check_next(&rng);
    for (int d = 0; d < TOY_DIM; d++)
        x[d] = check_uniform(&rng);
}

/* Appends tokens first .. first + n - 1 of a story to every layer of a sequence. */
static inline toy_kv_status toy_append(toy_cache *c, int seq, int story, int first, int n)
{
    float *k = (float *)toy_aligned(sizeof(float) * (size_t)n * TOY_DIM);
    float *v = (float *)toy_aligned(sizeof(float) * (size_t)n * TOY_DIM);
    toy_kv_status status = TOY_KV_OK;
    for (int layer = 0; layer < TOY_LAYERS && status == TOY_KV_OK; layer++) {
        for (int t = 0; t < n; t++) {
            toy_vector(story, layer, 0, first + t, k + t * TOY_DIM);
            toy_vector(story, layer, 1, first + t, v + t * TOY_DIM);
        }
        status = toy_kv_append(c->kv, seq, layer, n, k, v, TOY_KV_F32, TOY_KV_KEYS_ROTATED);
    }
    free(k);
    free(v);
    return status;
}

/* Appends tokens first .. last - 1, `step` at a time and the last one by itself: what is sealed
 * then depends on `last` alone. */
static inline void toy_tell(toy_cache *c, int seq, int story, int first, int last, int step)
{
    while (first < last) {
        int n = first == last - 1 ? 1 : last - 1 - first < step ? last - 1 - first : step;
        toy_must(toy_append(c, seq, story, first, n), "append");
        first += n;
    }
}

/* Everything a sequence holds: [TOY_LAYERS, 2, n, TOY_DIM]; the caller frees it. */
static inline float *toy_read_all(const toy_cache *c, int seq, int *n)
{
    *n = toy_kv_n_tokens(c->kv, seq);
    size_t part = (size_t)*n * TOY_DIM;
    float *all = (float *)toy_aligned(sizeof(float) * (part * 2 * TOY_LAYERS + 1));
    for (int layer = 0; layer < TOY_LAYERS; layer++)
        for (int i = 0; i < 2; i++)
            toy_must(toy_kv_read(c->kv, seq, layer, 0, i == 0 ? TOY_KV_KEY : TOY_KV_VALUE, 0, *n,
                                 all + (size_t)(layer * 2 + i) * part, c->scratch,
                                 c->scratch_bytes),
                     "read");
    return all;
}

#endif
