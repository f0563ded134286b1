/* bench_cuda.cu - decoding, prefill and encoding on the GPU that is there: attention is timed and
 * checked against attention in double.
 *
 *     nvcc -std=c++17 -O3 -DCUDA_HEADER='"x.cuh"' -Itests bench_cuda.cu (scripts/bench_cuda.sh)
 *     bench_cuda [check]        check: a short context alone, for compute-sanitizer
 *
 * The prefix is bench_kv. Decoding, one line a batch and context: microseconds of a layer, and
 * bytes of codes read in a second as a part of what a device copy moves in the same run. Prefill,
 * one line a context: the same for the latest QUERIES tokens at once. Encoding: all blocks of a
 * sequence. */
#define BENCH_KV_CUDA_IMPLEMENTATION
#include CUDA_HEADER

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "runtime_check.h"

namespace kv = bench_kv_cuda;

static void must(cudaError_t code, const char *what)
{
    if (code != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
        exit(1);
    }
}

static void must(kv::status code, const char *what)
{
    if (code != kv::status::ok) {
        fprintf(stderr, "%s: %s\n", what, kv::status_text(code));
        exit(1);
    }
}

/* Device memory of n values, zero at first. */
template <class T> struct buffer {
    T *p = nullptr;
    size_t bytes;
    explicit buffer(size_t n) : bytes(n * sizeof(T))
    {
        must(cudaMalloc(reinterpret_cast<void **>(&p), bytes > 0 ? bytes : 1), "cudaMalloc");
        must(cudaMemset(p, 0, bytes), "cudaMemset");
    }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
    ~buffer()
    {
        cudaFree(p);
    }
    void put(const std::vector<T> &from)
    {
        must(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    }
    void get(std::vector<T> *to) const
    {
        must(cudaMemcpy(to->data(), p, to->size() * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    }
};

/* Median of microseconds of a call, behind a warm-up. */
template <class F> static double median_us(F call)
{
    constexpr int runs = 21, warm = 3;
    std::vector<float> ms;
    cudaEvent_t from, to;
    must(cudaEventCreate(&from), "event");
    must(cudaEventCreate(&to), "event");
    for (int i = 0; i < runs + warm; i++) {
        float t = 0;
        must(cudaEventRecord(from), "record");
        call();
        must(cudaEventRecord(to), "record");
        must(cudaEventSynchronize(to), "synchronize");
        must(cudaEventElapsedTime(&t, from, to), "elapsed");
        if (i >= warm)
            ms.push_back(t);
    }
    std::sort(ms.begin(), ms.end());
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    return 1000.0 * static_cast<double>(ms[runs / 2]);
}

/* Bytes that a device copy reads and writes in a second. */
static double copy_bandwidth()
{
    constexpr size_t n = static_cast<size_t>(1) << 28;
    buffer<unsigned char> a(n), b(n);
    double us = median_us(
        [&] { must(cudaMemcpyAsync(b.p, a.p, n, cudaMemcpyDeviceToDevice), "device copy"); });
    return 2e6 * static_cast<double>(n) / us;
}

static std::vector<float> random_values(size_t n, uint64_t seed)
{
    std::vector<float> x(n);
    check_rng rng = {seed};
    for (float &value : x)
        value = check_uniform(&rng);
    return x;
}

static kv::view numbers(int n_seq, int n_ctx)
{
    kv::view v{};
    v.n_seq = n_seq;
    v.seq_blocks = n_ctx / kv::block + 1;
    v.n_blocks = n_seq * v.seq_blocks;
    v.ring = (2 * kv::n_recent + kv::n_sink + 3 * kv::block - 1) / kv::block * kv::block;
    return v;
}

/* One block of tokens, encoded into every block of the pool; tables that give each sequence its
 * own. Exact tokens behind the block are those of the window. */
struct cache {
    kv::view v;
    buffer<int32_t> state;
    buffer<kv::entry> tables;
    buffer<unsigned char> exact, pool;
    cache(int n_seq, int n_ctx)
        : v(numbers(n_seq, n_ctx)), state(kv::state_bytes(v) / sizeof(int32_t)),
          tables(kv::tables_bytes(v) / sizeof(kv::entry)), exact(kv::exact_bytes(v)),
          pool(kv::pool_bytes(v))
    {
        int held = kv::n_sink + kv::n_recent + kv::block, sealed = (n_ctx - held) / kv::block;
        size_t row = static_cast<size_t>(kv::n_kv_heads) * kv::head_dim;
        size_t size = static_cast<size_t>(n_seq) * static_cast<size_t>(held) * row;
        buffer<float> k(size), val(size);
        buffer<kv::seal_job> jobs(static_cast<size_t>(v.n_blocks));
        buffer<unsigned char> room(kv::seal_workspace(v.n_blocks));
        std::vector<kv::seal_job> list;
        std::vector<kv::entry> entries;
        std::vector<int32_t> counts;
        v.state = state.p;
        v.tables = tables.p;
        v.exact = exact.p;
        v.pool = pool.p;
        for (int layer = 0; layer < kv::n_layers; layer++) {
            k.put(random_values(size, static_cast<uint64_t>(2 * layer)));
            val.put(random_values(size, static_cast<uint64_t>(2 * layer + 1)));
            must(kv::append(v, layer, nullptr, n_seq, held, nullptr, k.p, val.p, kv::type::f32,
                            kv::keys::rotated, {}, nullptr),
                 "append");
        }
        for (int b = 0; b < v.n_blocks; b++) {
            list.push_back(kv::seal_job{b % n_seq, 0, b});
            entries.push_back(kv::entry{b, kv::n_sink + b % v.seq_blocks * kv::block});
        }
        jobs.put(list);
        must(kv::seal(v, jobs.p, v.n_blocks, {}, room.p, room.bytes, nullptr), "seal");
        must(cudaDeviceSynchronize(), "seal");
        for (int s = 0; s < n_seq; s++)
            for (int i = 0; i < 2 + kv::n_layers; i++)
                counts.push_back(i == 0 ? sealed : held + (sealed - 1) * kv::block);
        tables.put(entries);
        state.put(counts);
    }
};

/* Attention of the latest token of sequence 0 in layer 0 against attention in double over what is
 * read back; the largest error. q, out: [heads, HEAD_DIM] of this token. The host is slow: of long
 * contexts the last KV head alone. */
static double check(const cache &c, int n, const float *q, const float *out)
{
    size_t size = static_cast<size_t>(n) * kv::head_dim;
    buffer<float> tokens(size);
    buffer<unsigned char> room(kv::read_workspace());
    std::vector<float> k(size), val(size);
    std::vector<double> ref(kv::head_dim);
    check_attention plain = {static_cast<double>(BENCH_KV_ATTENTION_SCALE), 0, 0, nullptr, nullptr};
    double worst = 0;
    for (int head = n > 8192 ? kv::n_kv_heads - 1 : 0; head < kv::n_kv_heads; head++) {
        for (int which = 0; which < 2; which++) {
            must(kv::read(c.v, 0, 0, head, which == 0 ? kv::part::key : kv::part::value, 0, n,
                          tokens.p, room.p, room.bytes, nullptr),
                 "read");
            tokens.get(which == 0 ? &k : &val);
        }
        for (int g = 0; g < kv::group; g++) {
            size_t at = static_cast<size_t>(head * kv::group + g) * kv::head_dim;
            check_attend(&plain, kv::head_dim, n - 1, q + at, k.data(), val.data(), ref.data());
            worst = std::max(worst, check_error(kv::head_dim, out + at, ref.data()));
        }
    }
    return worst;
}

/* One line: the latest n_q tokens of each sequence; false where results are wrong. */
static bool measure(int n_seq, int n_ctx, int n_q, double copied)
{
    size_t token = static_cast<size_t>(kv::n_heads) * kv::head_dim;
    size_t size = static_cast<size_t>(n_seq) * static_cast<size_t>(n_q) * token;
    size_t last = static_cast<size_t>(n_q - 1) * token; /* of sequence 0 */
    size_t bytes = kv::attend_workspace(n_seq, n_q, {}, 0);
    cache c(n_seq, n_ctx);
    buffer<float> q(size), out(size);
    buffer<unsigned char> room(bytes);
    std::vector<float> queries = random_values(size, 99), results(size);
    std::vector<int32_t> state(2 + kv::n_layers);
    q.put(queries);
    c.state.get(&state);
    double us = median_us([&] {
        must(kv::attend(c.v, 0, nullptr, n_seq, n_q, q.p, out.p, kv::type::f32, nullptr, {}, 0,
                        room.p, bytes, nullptr),
             "attend");
    });
    out.get(&results);
    double read = static_cast<double>(n_seq) * state[0] *
                  static_cast<double>(kv::pool_bytes(c.v) / static_cast<size_t>(c.v.n_blocks)) /
                  kv::n_layers * 1e6 / us;
    double error = check(c, state[2], queries.data() + last, results.data() + last);
    printf("%6d %8d %10.1f us %8.1f GB/s %6.1f %% of copy   error %.1e\n", n_seq, n_ctx, us,
           read / 1e9, 100 * read / copied, error);
    return error <= (BENCH_KV__CUDA_TENSOR ? ATTEND_BOUND_BYTES : ATTEND_BOUND);
}

/* Whether a captured call of attention, replayed, gives what the call itself gives. */
static bool check_graph()
{
    constexpr int n_ctx = 1024;
    size_t size = static_cast<size_t>(kv::n_heads) * kv::head_dim;
    size_t bytes = kv::attend_workspace(1, 1, {}, 0);
    cache c(1, n_ctx);
    buffer<float> q(size), out(size);
    buffer<unsigned char> room(bytes);
    std::vector<float> called(size), replayed(size);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    auto attend = [&] {
        must(kv::attend(c.v, 0, nullptr, 1, 1, q.p, out.p, kv::type::f32, nullptr, {}, 0, room.p,
                        bytes, stream),
             "attend");
    };
    q.put(random_values(size, 7));
    must(cudaStreamCreate(&stream), "stream");
    attend();
    must(cudaStreamSynchronize(stream), "attend");
    out.get(&called);
    must(cudaMemset(out.p, 0, out.bytes), "cudaMemset");
    must(cudaDeviceSynchronize(), "cudaMemset");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    attend();
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiateWithFlags(&exec, graph, 0), "graph");
    must(cudaGraphLaunch(exec, stream), "graph");
    must(cudaStreamSynchronize(stream), "graph");
    out.get(&replayed);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    bool same = called == replayed;
    printf("replayed from a graph: %s\n", same ? "the same" : "NOT the same");
    return same;
}

/* One line: every block of one sequence, all layers of the plan. */
static void measure_encoding(int n_ctx)
{
    cache c(1, n_ctx);
    size_t bytes = kv::seal_workspace(c.v.n_blocks);
    buffer<kv::seal_job> jobs(static_cast<size_t>(c.v.n_blocks));
    buffer<unsigned char> room(bytes);
    std::vector<kv::seal_job> list;
    for (int b = 0; b < c.v.n_blocks; b++)
        list.push_back(kv::seal_job{0, 0, b});
    jobs.put(list);
    double us = median_us(
        [&] { must(kv::seal(c.v, jobs.p, c.v.n_blocks, {}, room.p, bytes, nullptr), "seal"); });
    double tokens = static_cast<double>(c.v.n_blocks) * kv::block;
    printf("%6d %8d %10.1f us %8.1f ns a token and layer\n", 1, n_ctx, us,
           1000 * us / tokens / kv::n_layers);
}

/* Whether a cache of this shape and its inputs leave half of the memory free. */
static bool fits(int n_seq, int n_ctx, size_t unused)
{
    kv::view v = numbers(n_seq, n_ctx);
    return kv::pool_bytes(v) + 2 * kv::exact_bytes(v) + kv::seal_workspace(v.n_blocks) < unused / 2;
}

int main(int argc, char **argv)
{
    constexpr int queries = 512;
    static const int batches[] = {1, 16, 64}, contexts[] = {4096, 32768, 131072};
    size_t unused = 0, total = 0;
    if (argc > 1 && strcmp(argv[1], "check") == 0)
        return !(measure(2, 1024, 1, 1) && measure(1, 1024, 9, 1) && check_graph());
    double copied = copy_bandwidth();
    bool good = check_graph();
    must(cudaMemGetInfo(&unused, &total), "memory");
    printf("device copy %.1f GB/s\ndecoding\n batch  context\n", copied / 1e9);
    for (int n_seq : batches)
        for (int n_ctx : contexts)
            if (fits(n_seq, n_ctx, unused))
                good = measure(n_seq, n_ctx, 1, copied) && good;
    printf("prefill: %d queries a sequence\n", queries);
    for (int n_ctx : {4096, 32768})
        if (fits(1, n_ctx, unused))
            good = measure(1, n_ctx, queries, copied) && good;
    printf("encoding\n");
    for (int n_ctx : {4096, 32768})
        if (fits(1, n_ctx, unused))
            measure_encoding(n_ctx);
    if (!good)
        printf("results are WRONG\n");
    return !good;
}
