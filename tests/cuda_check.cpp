/* cuda_check.cpp - the kernels of an emitted CUDA header, run on the host, against the C header of
 * the same plan.
 *
 *     g++ -x c++ -DC_HEADER='"x.h"' -DCUDA_HEADER='"x.cuh"' -Itests/cuda_shim cuda_check.cpp
 *
 * The prefix is toy_kv. Three sequences of different lengths are appended in uneven batches to a C
 * cache and, by the kernels, to a copy of its empty memory; blocks are sealed when the C cache
 * seals them. Then both are compared, and what kernels read from and attend in the C cache's memory
 * with what the C header reads, and with attention in double. Everything is done with threads in
 * both orders. The exit status is 1 after a broken bound. */
#define TOY_KV_IMPLEMENTATION
#include C_HEADER
#define TOY_KV_CUDA_IMPLEMENTATION
#include CUDA_HEADER

#include "cuda_caches.h"

/* What kernels read back may differ by this part of a vector's length: one rotation in float. */
#define READ_BOUND 2e-6
/* Tensor cores take codewords in 8 bits, those of keys as well (which the C header's byte kernels
 * keep in 16, so that root mean squares are higher here), and queries and weights in 15: these are
 * the part of the latter, seen alone where all codes are uniform, whose codewords are exact. */
#define TENSOR_RMS 7e-3
#define WORD_BOUND 1e-3
/* Bytes of sealed blocks that may differ: where two codewords are about equally near. */
#define OTHER_BYTES 2e-3

/* What no sequence holds was left alone. */
static void check_free_blocks(const caches *s)
{
    for (int block = 0; block < s->v.n_blocks; block++) {
        if (toy_kv__references(s->kv)[block] != 0)
            continue;
        for (int i = 0; i < TOY_KV__N_STREAMS; i++)
            EXPECT(memcmp(toy_kv__codes(s->kv, i, block), gpu::codes_of(s->v, i, block),
                          static_cast<size_t>(toy_kv__streams[i].bytes)) == 0,
                   "block %d is free, but stream %d wrote there", block, i);
        for (int i = 0; i < LAYERS * HEADS; i++)
            EXPECT(memcmp(toy_kv__landmarks(s->kv, 0, i, block),
                          gpu::landmarks_of(s->v, 0, i, block), TOY_KV__LANDMARK_BYTES) == 0,
                   "block %d is free, but has landmarks of head %d", block, i);
    }
}

/* What kernels made is what the C header made, but for codes that were about equally near. */
static double compare_memory(const caches *s)
{
    size_t other = 0, total = 0, pool = static_cast<size_t>(s->kv->pool);
    for (int seq = 0; seq < SEQS; seq++) {
        const toy_kv__seq *q = toy_kv__sequence(s->kv, seq);
        const int32_t *state = s->v.state + seq * (2 + LAYERS);
        EXPECT(state[0] == q->n_sealed && state[1] == q->target, "state of sequence %d", seq);
        for (int layer = 0; layer < LAYERS; layer++)
            EXPECT(state[2 + layer] == q->n_tokens[layer], "tokens of layer %d", layer);
        for (int j = 0; j < q->n_sealed; j++) {
            toy_kv__entry want = toy_kv__blocks(s->kv, seq)[j];
            gpu::entry have = gpu::entry_of(s->v, seq, j);
            EXPECT(have.block == want.block && have.position == want.position, "entry %d", j);
            for (int i = 0; i < TOY_KV__N_STREAMS; i++) {
                const unsigned char *a = toy_kv__codes(s->kv, i, want.block);
                const unsigned char *b = gpu::codes_of(s->v, i, want.block);
                for (int k = 0; k < toy_kv__streams[i].bytes; k++, total++)
                    other += a[k] != b[k];
            }
            for (int i = 0; i < LAYERS * HEADS; i++)
                EXPECT(memcmp(toy_kv__landmarks(s->kv, 0, i, want.block),
                              gpu::landmarks_of(s->v, 0, i, want.block),
                              TOY_KV__LANDMARK_BYTES) == 0,
                       "landmarks: sequence %d, block %d, head %d", seq, j, i);
        }
    }
    EXPECT(memcmp(s->c.p + s->kv->exact, s->device.p + s->kv->exact,
                  pool - static_cast<size_t>(s->kv->exact)) == 0,
           "exact tokens differ");
    EXPECT(static_cast<double>(other) <= OTHER_BYTES * static_cast<double>(total),
           "%zu of %zu bytes of sealed blocks differ", other, total);
    return static_cast<double>(other) / static_cast<double>(total > 0 ? total : 1);
}

/* All of one head by the C header: [n, DIM]. */
static void c_read(const caches *s, int seq, int layer, int head, int part, int n, float *dst)
{
    must(toy_kv_read(s->kv, seq, layer, head, part == 0 ? TOY_KV_KEY : TOY_KV_VALUE, 0, n, dst,
                     s->scratch.p, s->scratch.bytes),
         "read");
}

static double compare_reads(const caches *s, const gpu::view &v, int seq, int n)
{
    double worst = 0;
    size_t size = static_cast<size_t>(n) * DIM;
    memory<unsigned char> room(gpu::read_workspace());
    memory<float> want(size), have(size);
    for (int i = 0; i < 2 * LAYERS * HEADS; i++) {
        int part = i % 2, layer = i / 2 % LAYERS, head = i / 2 / LAYERS, first = i % 3 * n / 7;
        c_read(s, seq, layer, head, part, n, want.p);
        must(gpu::read(v, seq, layer, head, part == 0 ? gpu::part::key : gpu::part::value, first,
                       n - first, have.p, room.p, room.bytes, stream()),
             "gpu read");
        for (int t = first; t < n; t++) {
            double ref[DIM];
            for (int d = 0; d < DIM; d++)
                ref[d] = static_cast<double>(want.p[t * DIM + d]);
            double error = check_error(DIM, have.p + (t - first) * DIM, ref);
            worst = error > worst ? error : worst;
            EXPECT(error <= READ_BOUND,
                   "read: sequence %d, layer %d, head %d, part %d, token %d: %g", seq, layer, head,
                   part, t, error);
        }
    }
    return worst;
}

/* x [n] as `t`, and rounded to it in place. */
static void round_to(gpu::type t, size_t n, float *x, memory<uint16_t> *out)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = toy_kv__to_half(x[i]);
        if (t == gpu::type::bf16)
            h = static_cast<uint16_t>(toy_kv__to_bits(x[i]) >> 16);
        out->p[i] = h;
        x[i] = gpu::load_as(out->p, t, i);
    }
}

/* How far attention may be from that in double. */
static double attend_bound(gpu::type t)
{
    double rounding = t == gpu::type::f32 ? 0 : t == gpu::type::f16 ? 5e-4 : 4e-3;
    bool uniform = true;
    for (const gpu::toy_kv__run &run : gpu::toy_kv__runs)
        uniform = uniform && run.uniform;
    return rounding + (!TOY_KV__CUDA_TENSOR ? ATTEND_BOUND
                       : uniform            ? WORD_BOUND
                                            : ATTEND_BOUND_BYTES);
}

/* Squares of all errors of attention, and their number. */
struct spread {
    double sum;
    long n;
};

/* Attention over some heads of all sequences at once, with the options of a kind; queries and
 * outputs of a type. */
static double compare_attention(const caches *s, const gpu::view &v, int layer, int kind,
                                gpu::type t, spread *all)
{
    int n_q = kind % 2 == 0 ? 1 : MAX_Q, first = kind == 3 ? HEADS - 1 : 0, n = HEADS - first;
    size_t row = static_cast<size_t>(n) * GROUP * DIM, rows = static_cast<size_t>(SEQS * n_q);
    memory<float> q(rows * row), out(rows * row), sinks(static_cast<size_t>(n) * GROUP);
    memory<float> k(static_cast<size_t>(lengths[0]) * DIM),
        val(static_cast<size_t>(lengths[0]) * DIM);
    memory<int> seqs(SEQS);
    memory<uint16_t> q16(rows * row), out16(rows * row);
    double worst = 0;
    double bound = attend_bound(t);
    check_rng rng = {static_cast<uint64_t>(layer * 16 + kind)};
    for (size_t i = 0; i < rows * row; i++)
        q.p[i] = 2 * check_uniform(&rng);
    for (int i = 0; i < n * GROUP; i++)
        sinks.p[i] = 2 * check_uniform(&rng);
    for (int i = 0; i < SEQS; i++)
        seqs.p[i] = (i + kind) % SEQS;
    gpu::attention a{};
    a.scale = kind % 2 == 1 ? 0.2f : 0;
    a.soft_cap = kind == 2 ? 3.0f : 0;
    a.sliding_window = kind == 1 ? BLOCK + 9 : kind == 3 ? 5 : 0;
    a.sink_logits = kind >= 2 ? sinks.p : nullptr;
    gpu::heads range;
    range.first = first;
    int splits = kind == 0 ? 1 : kind + 1;
    memory<unsigned char> room(gpu::attend_workspace(SEQS, n_q, range, splits));
    bool narrow = t != gpu::type::f32;
    if (narrow)
        round_to(t, rows * row, q.p, &q16);
    const void *in = narrow ? static_cast<const void *>(q16.p) : q.p;
    void *to = narrow ? static_cast<void *>(out16.p) : out.p;
    must(gpu::attend(v, layer, seqs.p, SEQS, n_q, in, to, t, &a, range, splits, room.p, room.bytes,
                     stream()),
         "attend");
    for (size_t i = 0; i < rows * row && narrow; i++)
        out.p[i] = gpu::load_as(out16.p, t, i);
    for (int i = 0; i < SEQS; i++)
        for (int head = 0; head < n; head++) {
            int seq = seqs.p[i];
            c_read(s, seq, layer, first + head, 0, lengths[seq], k.p);
            c_read(s, seq, layer, first + head, 1, lengths[seq], val.p);
            for (int j = 0; j < n_q * GROUP; j++) {
                size_t at = (static_cast<size_t>(i * n_q + j / GROUP) * static_cast<size_t>(n) +
                             static_cast<size_t>(head)) *
                                GROUP +
                            static_cast<size_t>(j % GROUP);
                double ref[DIM];
                check_attention one = {
                    static_cast<double>(a.scale != 0 ? a.scale : TOY_KV_ATTENTION_SCALE),
                    static_cast<double>(a.soft_cap), a.sliding_window,
                    a.sink_logits == nullptr ? nullptr : sinks.p + head * GROUP + j % GROUP,
                    nullptr};
                check_attend(&one, DIM, lengths[seq] - n_q + j / GROUP, q.p + at * DIM, k.p, val.p,
                             ref);
                double error = check_error(DIM, out.p + at * DIM, ref);
                worst = error > worst ? error : worst;
                all->sum += error * error;
                all->n++;
                EXPECT(error <= bound,
                       "attend: kind %d, sequence %d, layer %d, head %d, row %d: %g", kind, seq,
                       layer, head, j, error);
            }
        }
    return worst;
}

/* Kernels in the C cache's own memory. */
static void exchange_memory(const caches *s, bool all, double *reads, double *attends)
{
    memory<unsigned char> copy((s->c.bytes + 3) / 4 * 4);
    gpu::view v;
    spread errors = {0, 0}, narrow = {0, 0};
    memcpy(copy.p, s->c.p, s->c.bytes);
    must(gpu::open_image(&v, copy.p, s->c.bytes, copy.p), "open_image");
    for (int seq = 0; seq < SEQS && all; seq++) {
        double error = compare_reads(s, v, seq, lengths[seq]);
        *reads = error > *reads ? error : *reads;
    }
    for (int layer = 0; layer < LAYERS; layer++)
        for (int kind = all ? 0 : layer % 4; kind < 4; kind += all ? 1 : 4) {
            double error = compare_attention(s, v, layer, kind, gpu::type::f32, &errors);
            *attends = error > *attends ? error : *attends;
        }
    if (all) {
        compare_attention(s, v, 0, 0, gpu::type::f16, &narrow);
        compare_attention(s, v, LAYERS - 1, 1, gpu::type::bf16, &narrow);
    }
    EXPECT(sqrt(errors.sum / static_cast<double>(errors.n)) <= TENSOR_RMS,
           "attention is off by %g in the root mean square",
           sqrt(errors.sum / static_cast<double>(errors.n)));
}

/* The C header reads what kernels encoded, saves it and loads it again. */
static void take_back(const caches *s)
{
    const toy_kv *back = reinterpret_cast<const toy_kv *>(s->device.p);
    size_t size = static_cast<size_t>(lengths[1]) * DIM, bytes = toy_kv_save_size(back, 1);
    memory<unsigned char> saved(bytes), room(gpu::read_workspace());
    memory<float> have(size), want(size);
    caches *other = make_caches();
    must(toy_kv_save(back, 1, saved.p, bytes), "save");
    must(toy_kv_load(other->kv, 0, saved.p, bytes), "load");
    for (int i = 0; i < 2 * LAYERS * HEADS; i++) {
        int part = i % 2, layer = i / 2 % LAYERS, head = i / 2 / LAYERS;
        c_read(other, 0, layer, head, part, lengths[1], want.p);
        must(gpu::read(s->v, 1, layer, head, part == 0 ? gpu::part::key : gpu::part::value, 0,
                       lengths[1], have.p, room.p, room.bytes, stream()),
             "gpu read");
        for (int t = 0; t < lengths[1]; t++) {
            double ref[DIM];
            for (int d = 0; d < DIM; d++)
                ref[d] = static_cast<double>(want.p[t * DIM + d]);
            EXPECT(check_error(DIM, have.p + t * DIM, ref) <= READ_BOUND,
                   "taken back: layer %d, head %d, part %d, token %d", layer, head, part, t);
        }
    }
    delete other;
}

/* Keys that come un-rotated, as binary16, for the last head alone, fewer tokens for one sequence:
 * the C header's exact window, but for the rounding of sines. */
static void append_unrotated()
{
    constexpr int n = 3;
    size_t size = static_cast<size_t>(n) * HEADS * DIM;
    caches *s = make_caches();
    memory<uint16_t> x(2 * size), last(2 * static_cast<size_t>(n) * DIM);
    gpu::heads range;
    range.first = HEADS - 1;
    range.count = 1;
    memory<int> counts(2);
    memory<float> want(n * DIM), have(n * DIM);
    memory<unsigned char> room(gpu::read_workspace());
    check_rng rng = {3};
    for (size_t i = 0; i < 2 * size; i++)
        x.p[i] = toy_kv__to_half(check_uniform(&rng));
    for (int i = 0; i < 2 * n; i++)
        memcpy(last.p + i * DIM, x.p + (i * HEADS + HEADS - 1) * DIM, 2 * DIM);
    counts.p[0] = n;
    counts.p[1] = 1;
    for (int layer = 0; layer < LAYERS; layer++) {
        must(toy_kv_append(s->kv, 0, layer, n, x.p, x.p, TOY_KV_F16, TOY_KV_KEYS_UNROTATED),
             "append");
        must(gpu::append(s->v, layer, nullptr, 2, n, counts.p, last.p, last.p, gpu::type::f16,
                         gpu::keys::unrotated, range, stream()),
             "gpu append");
        c_read(s, 0, layer, HEADS - 1, 0, n, want.p);
        must(gpu::read(s->v, 0, layer, HEADS - 1, gpu::part::key, 0, n, have.p, room.p, room.bytes,
                       stream()),
             "gpu read");
        for (int i = 0; i < n * DIM; i++)
            EXPECT(fabsf(have.p[i] - want.p[i]) <= 2e-3f, "un-rotated keys: value %d", i);
        EXPECT(*gpu::tokens_of(s->v, 0, layer) == n && *gpu::tokens_of(s->v, 1, layer) == 1,
               "counts of layer %d", layer);
    }
    delete s;
}

/* Of the address sanitizer; gcc does not ship the header that declares it. */
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void *, size_t),
                                                         void (*)(const volatile void *));

static long host_allocations;

static void count_allocation(const volatile void *, size_t)
{
    host_allocations++;
}

static void ignore_free(const volatile void *)
{
}

/* All calls can be captured in a graph: the host reads no device memory, allocates nothing, waits
 * for nothing, launches in the stream that it is given; and a graph that is replayed goes by what
 * device memory says by then, here more tokens. */
static void check_capture()
{
    constexpr int n = 2;
    size_t row = static_cast<size_t>(HEADS) * DIM;
    caches *s = make_caches();
    memory<float> k(n * row), q(static_cast<size_t>(Q_HEADS) * DIM), out(q.bytes / sizeof(float));
    memory<gpu::seal_job> jobs(1);
    memory<unsigned char> room(gpu::attend_workspace(1, 1, {}, 2));
    memory<unsigned char> seal_room(gpu::seal_workspace(1)), read_room(gpu::read_workspace());
    memory<float> read(DIM);
    memory<int> seqs(1);
    long launches = shim::launches, allocations;
    for (size_t i = 0; i < n * row; i++)
        k.p[i] = static_cast<float>(i % 7);
    memset(q.p, 0, q.bytes);
    jobs.p[0] = gpu::seal_job{0, 0, -1};
    seqs.p[0] = 1;
    const shim::region device[] = {{s->device.p, s->device.bytes},
                                   {k.p, k.bytes},
                                   {q.p, q.bytes},
                                   {out.p, out.bytes},
                                   {jobs.p, jobs.bytes},
                                   {room.p, room.bytes},
                                   {seal_room.p, seal_room.bytes},
                                   {read_room.p, read_room.bytes},
                                   {read.p, read.bytes},
                                   {seqs.p, seqs.bytes}};
    for (const shim::region &r : device)
        shim::hide(r.p, r.bytes);
    allocations = host_allocations;
    for (int replay = 0; replay < 2; replay++) {
        must(gpu::seal(s->v, jobs.p, 1, {}, seal_room.p, seal_room.bytes, stream()), "seal");
        must(gpu::append(s->v, 0, seqs.p, 1, n, nullptr, k.p, k.p, gpu::type::f32,
                         gpu::keys::rotated, {}, stream()),
             "append");
        must(gpu::attend(s->v, 0, seqs.p, 1, 1, q.p, out.p, gpu::type::f32, nullptr, {}, 2, room.p,
                         room.bytes, stream()),
             "attend");
        must(gpu::read(s->v, 1, 0, 0, gpu::part::value, n, 1, read.p, read_room.p, read_room.bytes,
                       stream()),
             "read");
    }
    EXPECT(host_allocations == allocations, "the host allocates");
    EXPECT(shim::waits == 0 && shim::launches >= launches + 2 * 7, "calls that forbid a capture");
    shim::show_all();
    EXPECT(*gpu::tokens_of(s->v, 1, 0) == 2 * n, "a replay counts on");
    for (int d = 0; d < DIM; d++)
        EXPECT(read.p[d] == k.p[d], "a replay reads what it appended: channel %d", d);
    delete s;
}

/* What is wrong with the arguments is said before anything is launched. */
static void check_refusals(const caches *s)
{
    memory<unsigned char> room(gpu::attend_workspace(1, 1, {}, 1));
    memory<float> q(static_cast<size_t>(Q_HEADS) * DIM);
    gpu::heads beyond;
    beyond.first = HEADS;
    auto call = [&](int layer, int n_seqs, int n_q, const float *in, gpu::heads range, size_t bytes,
                    unsigned char *at) {
        return gpu::attend(s->v, layer, nullptr, n_seqs, n_q, in, q.p, gpu::type::f32, nullptr,
                           range, 1, at, bytes, stream());
    };
    long before = shim::launches;
    EXPECT(call(LAYERS, 1, 1, q.p, {}, room.bytes, room.p) == gpu::status::bad_argument, "layer");
    EXPECT(call(0, 0, 1, q.p, {}, room.bytes, room.p) == gpu::status::bad_argument, "no sequence");
    EXPECT(call(0, SEQS + 1, 1, q.p, {}, room.bytes, room.p) == gpu::status::bad_argument, "seqs");
    EXPECT(call(0, 1, 0, q.p, {}, room.bytes, room.p) == gpu::status::bad_argument, "no query");
    EXPECT(call(0, 1, 1, nullptr, {}, room.bytes, room.p) == gpu::status::bad_argument, "null");
    EXPECT(call(0, 1, 1, q.p, beyond, room.bytes, room.p) == gpu::status::bad_argument, "heads");
    EXPECT(call(0, 1, 1, q.p, {}, room.bytes - 1, room.p) == gpu::status::too_small, "size");
    EXPECT(call(0, 1, 1, q.p, {}, room.bytes, room.p + 64) == gpu::status::misaligned, "alignment");
    EXPECT(shim::launches == before, "nothing is launched");
    shim::fail_launches = true;
    EXPECT(call(0, 1, 1, q.p, {}, room.bytes, room.p) == gpu::status::launch_failed, "launch");
    shim::fail_launches = false;
}

/* Jobs out of range change nothing; what sanitizers guard lies behind all of them. */
static void check_bad_jobs()
{
    constexpr int far = 1 << 28;
    caches *s = make_caches();
    const gpu::seal_job bad[] = {{SEQS, 0, 0},         {-1, 0, 0},  {far, 0, 0},
                                 {0, -1, 0},           {0, far, 0}, {0, s->v.seq_blocks, 0},
                                 {0, 0, far},          {0, 0, -2},  {SEQS - 1, s->v.seq_blocks, 0},
                                 {0, 0, s->v.n_blocks}};
    constexpr int n = sizeof bad / sizeof *bad;
    memory<gpu::seal_job> jobs(n);
    memory<unsigned char> room(gpu::seal_workspace(n));
    memcpy(jobs.p, bad, sizeof bad);
    must(gpu::seal(s->v, jobs.p, n, {}, room.p, room.bytes, stream()), "seal");
    EXPECT(memcmp(s->device.p, s->c.p, s->c.bytes) == 0, "a job out of range wrote");
    delete s;
}

/* Sequences out of range and counts beyond n, which only kernels see, harm nobody; what the host
 * can see of an append it refuses. */
static void check_bad_sequences()
{
    caches *s = make_caches();
    int most = s->v.ring - TOY_KV_N_RECENT - BLOCK;
    memory<int> seqs(3), counts(3);
    memory<float> k(static_cast<size_t>(3 * HEADS * DIM)),
        q(static_cast<size_t>(3 * Q_HEADS * DIM));
    memory<float> out(q.bytes / sizeof(float));
    memory<unsigned char> room(gpu::attend_workspace(3, 1, {}, 1));
    auto put = [&](int n, const float *from) {
        return gpu::append(s->v, 0, seqs.p, 3, n, counts.p, from, k.p, gpu::type::f32,
                           gpu::keys::rotated, {}, stream());
    };
    const int bad[] = {-1, 1, 1 << 28};
    memset(k.p, 0, k.bytes);
    memset(q.p, 0, q.bytes);
    memcpy(seqs.p, bad, sizeof bad);
    for (int i = 0; i < 3; i++)
        counts.p[i] = 1 << 20;
    must(put(1, k.p), "append");
    EXPECT(*gpu::tokens_of(s->v, 1, 0) == 1, "a count beyond n");
    counts.p[1] = -5;
    must(put(1, k.p), "append");
    EXPECT(*gpu::tokens_of(s->v, 1, 0) == 1, "a negative count");
    must(gpu::attend(s->v, 0, seqs.p, 3, 1, q.p, out.p, gpu::type::f32, nullptr, {}, 1, room.p,
                     room.bytes, stream()),
         "attend");
    for (int i = 0; i < Q_HEADS * DIM; i++)
        EXPECT(out.p[i] == 0 && out.p[2 * Q_HEADS * DIM + i] == 0, "no sequence: value %d", i);
    EXPECT(put(most + 1, k.p) == gpu::status::bad_argument, "more tokens than the ring takes");
    const void *odd = reinterpret_cast<const unsigned char *>(k.p) + 2;
    EXPECT(put(1, static_cast<const float *>(odd)) == gpu::status::bad_argument, "odd keys");
    gpu::view v = s->v;
    v.pool += 32;
    EXPECT(gpu::read(v, 0, 0, 0, gpu::part::key, 0, 1, q.p, room.p, room.bytes, stream()) ==
               gpu::status::bad_argument,
           "a pool off its alignment");
    delete s;
}

/* Heads of images of which one number is another are refused, whatever it is. */
static void check_images(const caches *s)
{
    using head = gpu::image_head;
    static_assert(sizeof(head) == sizeof(toy_kv), "the C header's struct");
    auto open = [&](auto change) {
        head h;
        gpu::view v{};
        memcpy(&h, s->c.p, sizeof h);
        change(&h);
        return gpu::open_image(&v, &h, sizeof h, s->device.p);
    };
    EXPECT(open([](head *) {}) == gpu::status::ok, "the image itself");
    for (int32_t head::*number : {&head::n_seq, &head::n_ctx, &head::max_batch, &head::n_blocks,
                                  &head::n_exact, &head::ring, &head::seq_blocks})
        for (int32_t by : {-int32_t{BLOCK}, int32_t{BLOCK}, 1 << 28, -(1 << 28)})
            EXPECT(open([=](head *h) { h->*number += by; }) == gpu::status::bad_image,
                   "a number of the image is off by %d", by);
    for (uint64_t head::*place :
         {&head::seqs, &head::tables, &head::references, &head::exact, &head::pool, &head::bytes})
        for (uint64_t by :
             {uint64_t{1} << 20, ~uint64_t{0}, uint64_t{1}, ~uint64_t{63}, ~uint64_t{0} / 2})
            EXPECT(open([=](head *h) { h->*place += by; }) == gpu::status::bad_image,
                   "a place in the image is off by %llx", static_cast<unsigned long long>(by));
    EXPECT(open([](head *h) { h->magic++; }) == gpu::status::bad_image, "magic");
    gpu::view v{};
    EXPECT(gpu::open_image(&v, s->c.p, sizeof(head), s->device.p + 64) == gpu::status::misaligned,
           "alignment");
}

/* NaNs of either sign, with whatever payload, are still NaNs when they are stored; numbers round to
 * nearest even. */
static void check_stores()
{
    uint16_t to[2];
    auto store = [&](gpu::type t, uint32_t bits) {
        gpu::store_as(to, t, 1, __uint_as_float(bits));
        return gpu::load_as(to, t, 1);
    };
    for (uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f800001u, 0xff800001u})
        for (gpu::type t : {gpu::type::f16, gpu::type::bf16})
            EXPECT(isnan(store(t, bits)), "NaN %x", bits);
    EXPECT(isinf(store(gpu::type::bf16, 0x7f800000u)), "infinity");
    EXPECT(store(gpu::type::bf16, 0x3f808000u) == 1.0f, "a tie");
    EXPECT(store(gpu::type::bf16, 0x3f818000u) == 1.015625f, "a tie upwards");
}

#if TOY_KV__CUDA_TENSOR
/* Two look-ups add up to the codeword in 8 bits: for all pairs, and through the tables of a codec.
 */
static void check_look_ups()
{
    for (int a = -126; a <= 126; a++)
        for (int b = -126; b <= 126; b++) {
            int low = a, high = b;
            gpu::pair_up(&low, &high);
            EXPECT(low - (high < 0) == a && high - (low < 0) == b && abs(low) < 128 &&
                       abs(high) < 128,
                   "codewords %d and %d", a, b);
        }
    for (const gpu::toy_kv__run &run : gpu::toy_kv__runs) {
        uint4 table;
        float scale = gpu::round_book(run, run.book, &table);
        for (uint32_t code = 0; code < 16; code++) {
            uint32_t x[2][2];
            gpu::look_up(table, code * 0x11111111u, x);
            for (int i = 0; i < 8; i++) {
                int sum = static_cast<signed char>(x[0][i / 4] >> i % 4 * 8 & 255) +
                          static_cast<signed char>(x[1][i / 4] >> i % 4 * 8 & 255);
                float error = gpu::table_at(run.book, static_cast<int>(code)) -
                              scale * static_cast<float>(sum);
                EXPECT(fabsf(error) <= (run.uniform ? 0.0f : 0.501f * scale),
                       "code %u: off by %g at a scale of %g", code, static_cast<double>(error),
                       static_cast<double>(scale));
            }
        }
    }
}
#endif

int main()
{
    double reads = 0, attends = 0, other = 0;
    check_stores();
#if TOY_KV__CUDA_TENSOR
    check_look_ups();
#endif
    shim::shared_memory = gpu::toy_kv__shared;
    shim::only_stream = stream();
    __sanitizer_install_malloc_and_free_hooks(count_allocation, ignore_free);
    for (int order = 0; order < 2; order++) {
        shim::reversed = order == 1;
        caches *s = make_caches();
        fill(s);
        double part = compare_memory(s);
        check_free_blocks(s);
        other = part > other ? part : other;
        exchange_memory(s, order == 0, &reads, &attends);
        take_back(s);
        append_unrotated();
        check_capture();
        check_refusals(s);
        check_images(s);
        check_bad_jobs();
        check_bad_sequences();
        delete s;
    }
    printf(
        "other bytes %.2g, reads within %.2g, attention within %.2g; %ld launches, %ld switches, "
        "%zu bytes shared\n",
        other, reads, attends, shim::launches, shim::switches,
        sizeof(gpu::shared<gpu::decode_rows>));
    return failed > 0;
}
