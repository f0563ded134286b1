/* cuda_caches.h - the two caches of cuda_check.cpp: one that the C header keeps, one that kernels
 * keep in a copy of its memory, fed with the same tokens. Included behind both headers. */
#ifndef VQKVC_TESTS_CUDA_CACHES_H
#define VQKVC_TESTS_CUDA_CACHES_H

#include <stdio.h>

#include "runtime_check.h"

namespace gpu = toy_kv_cuda;

namespace toy_kv_cuda
{
alignas(256) unsigned char toy_kv__shared[shim::MAX_SHARED];
}

enum {
    LAYERS = TOY_KV_N_LAYERS,
    HEADS = TOY_KV_N_KV_HEADS,
    Q_HEADS = TOY_KV_N_HEADS,
    GROUP = TOY_KV_GROUP,
    DIM = TOY_KV_HEAD_DIM,
    BLOCK = TOY_KV_BLOCK,
    SEQS = 3,
    MAX_BATCH = 40,
    MAX_Q = 3
};

static int failed;

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition) && failed++ < 8) {                                                        \
            printf("  " __VA_ARGS__);                                                              \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

static void must(toy_kv_status code, const char *what)
{
    if (code != TOY_KV_OK) {
        fprintf(stderr, "%s: %s\n", what, toy_kv_status_text(code));
        exit(2);
    }
}

static void must(gpu::status code, const char *what)
{
    if (code != gpu::status::ok) {
        fprintf(stderr, "%s: %s\n", what, gpu::status_text(code));
        exit(2);
    }
}

/* Heap memory of just this size, so that the sanitizer sees its ends. */
template <class T> struct memory {
    T *p;
    size_t bytes;
    explicit memory(size_t n) : p(nullptr), bytes(n * sizeof(T))
    {
        void *at = nullptr;
        if (posix_memalign(&at, 256, bytes > 0 ? bytes : 1) != 0)
            abort();
        memset(at, 0xa5, bytes);
        p = static_cast<T *>(at);
    }
    memory(const memory &) = delete;
    memory &operator=(const memory &) = delete;
    ~memory()
    {
        free(p);
    }
};

struct caches {
    toy_kv *kv;
    memory<unsigned char> c, device, scratch; /* of the C cache; its copy for kernels */
    gpu::view v;
    int sealed[SEQS], held[SEQS];
};

/* On tensor cores, whose tiles are of many blocks, the longest one has a tile and a block more. */
static const int lengths[SEQS] = {
    TOY_KV_N_SINK + TOY_KV_N_RECENT + (TOY_KV__CUDA_TENSOR ? gpu::tile + 1 : 2) * BLOCK +
        BLOCK / 2 + 5,
    TOY_KV_N_SINK + TOY_KV_N_RECENT + BLOCK + 2, TOY_KV_N_SINK / 2 + 3};

static toy_kv_config shape()
{
    toy_kv_config config = toy_kv_config();
    config.n_seq = SEQS;
    config.n_ctx = lengths[0] + 1;
    config.max_batch = MAX_BATCH;
    return config;
}

static size_t image_bytes()
{
    size_t bytes = 0;
    toy_kv_config config = shape();
    must(toy_kv_size(&config, &bytes), "size");
    return bytes;
}

static caches *make_caches()
{
    size_t bytes = image_bytes();
    caches *s = new caches{nullptr,
                           memory<unsigned char>(bytes),
                           memory<unsigned char>((bytes + 3) / 4 * 4),
                           memory<unsigned char>(toy_kv_scratch_size()),
                           gpu::view{},
                           {0, 0, 0},
                           {0, 0, 0}};
    toy_kv_config config = shape();
    must(toy_kv_init(&s->kv, &config, s->c.p, bytes), "init");
    memcpy(s->device.p, s->c.p, bytes);
    must(gpu::open_image(&s->v, s->c.p, bytes, s->device.p), "open_image");
    return s;
}

/* x [HEADS, DIM] of one token: alike in neighbouring layers, of lengths that vary. */
static void token(int seq, int layer, int part, int t, float *x)
{
    check_rng all = {static_cast<uint64_t>((seq * 2 + part) * 100003 + t)};
    check_rng own = {static_cast<uint64_t>(((seq * 64 + layer) * 2 + part) * 100003 + t)};
    for (int i = 0; i < 4; i++) {
        check_next(&all);
        check_next(&own);
    }
    float size = 0.25f + static_cast<float>(check_below(&all, 8)) / 4;
    for (int d = 0; d < HEADS * DIM; d++)
        x[d] = size * (0.8f * check_uniform(&all) + 0.6f * check_uniform(&own));
}

/* The stream of all launches: never dereferenced. */
static cudaStream_t stream()
{
    return reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(64));
}

/* Whether no stream of codes and no prediction joins this KV head and another. */
static bool stands_alone(int head)
{
    for (const short(&part)[2] : gpu::toy_kv__component_heads)
        if (part[0] <= head && part[1] >= head && part[0] != part[1])
            return false;
    return true;
}

/* Seals all KV heads at once, or those that stand alone by themselves, as the ranks of an engine
 * do.
 */
static void seal_by_heads(const caches *s, const gpu::seal_job *jobs, int n, void *room,
                          size_t bytes)
{
    gpu::heads one;
    one.count = 1;
    for (int head = 0; head < HEADS; head++) {
        one.first = head;
        gpu::status code = gpu::seal(s->v, jobs, n, one, room, bytes, stream());
        EXPECT(code == (stands_alone(head) ? gpu::status::ok : gpu::status::split_heads),
               "sealing head %d alone: %s", head, gpu::status_text(code));
    }
}

/* Jobs for the blocks that the C cache has sealed since. */
static void seal_like_c(caches *s, int seq)
{
    int n = toy_kv__sequence(s->kv, seq)->n_sealed - s->sealed[seq];
    if (n == 0)
        return;
    EXPECT(gpu::blocks_due(s->held[seq], s->sealed[seq]) == n, "%d tokens: %d blocks due, not %d",
           s->held[seq], gpu::blocks_due(s->held[seq], s->sealed[seq]), n);
    memory<gpu::seal_job> jobs(static_cast<size_t>(n) + 1);
    for (int i = 0; i < n; i++)
        jobs.p[i] = gpu::seal_job{seq, s->sealed[seq] + i,
                                  toy_kv__blocks(s->kv, seq)[s->sealed[seq] + i].block};
    jobs.p[n] = gpu::seal_job{0, 0, -1};
    memory<unsigned char> room(gpu::seal_workspace(n + 1));
    seal_by_heads(s, jobs.p, n + 1, room.p, room.bytes);
    for (int head = 0; head < HEADS; head++)
        if (!stands_alone(head)) {
            must(gpu::seal(s->v, jobs.p, n + 1, {}, room.p, room.bytes, stream()), "seal");
            break;
        }
    s->sealed[seq] += n;
}

/* Appends the next n tokens of a sequence to both. */
static void append(caches *s, int seq, int n)
{
    size_t row = static_cast<size_t>(HEADS) * DIM;
    memory<float> k(static_cast<size_t>(n) * row), v(static_cast<size_t>(n) * row);
    memory<int> which(1);
    which.p[0] = seq;
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int t = 0; t < n; t++) {
            token(seq, layer, 0, s->held[seq] + t, k.p + static_cast<size_t>(t) * row);
            token(seq, layer, 1, s->held[seq] + t, v.p + static_cast<size_t>(t) * row);
        }
        must(toy_kv_append(s->kv, seq, layer, n, k.p, v.p, TOY_KV_F32, TOY_KV_KEYS_ROTATED),
             "append");
        if (layer == 0)
            seal_like_c(s, seq);
        must(gpu::append(s->v, layer, which.p, 1, n, nullptr, k.p, v.p, gpu::type::f32,
                         gpu::keys::rotated, {}, stream()),
             "gpu append");
    }
    s->held[seq] += n;
}

static void fill(caches *s)
{
    check_rng rng = {5};
    for (int more = 1; more;) {
        more = 0;
        for (int seq = 0; seq < SEQS; seq++) {
            int left = lengths[seq] - s->held[seq], n = 1 + check_below(&rng, MAX_BATCH);
            if (left > 0)
                append(s, seq, n < left - 1 ? n : left > 1 ? left - 1 : 1);
            more |= s->held[seq] < lengths[seq];
        }
    }
}

#endif
