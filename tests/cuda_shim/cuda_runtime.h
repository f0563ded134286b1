/* cuda_runtime.h - as much of CUDA as emitted headers use, on the host, so that the kernels
 * themselves run in tests.
 *
 * Blocks run one by one, the threads of a block as fibers in turn, each up to its next barrier, and
 * a warp up to the next barrier of the block before another warp moves. So a result that depends on
 * an order which no barrier enforces is there to be seen: shared memory begins as NaNs, and with
 * shim::reversed warps and threads run from the last to the first. A barrier
 * that only some threads reach, or that they reach in different lines, ends the program. Accesses
 * out of bounds are found by the address sanitizer: all memory is from the heap, and what lies
 * behind the shared memory of a launch is poisoned. So is memory handed to shim::hide() outside of
 * launches, as device memory is for the host. */
#ifndef TESTS_CUDA_RUNTIME_H
#define TESTS_CUDA_RUNTIME_H

#include <math.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
typedef struct CUstream_st *cudaStream_t;

static dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace shim
{

enum { WARP = 32, STACK = 256 * 1024, MAX_SHARED = 227 * 1024, MAX_THREADS = 1024 };
enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    ucontext_t context; /* only to begin with: switching by it takes system calls */
    void *jump[5];
    void *fake = nullptr; /* of the address sanitizer */
    char *stack = nullptr;
    state now = READY;
    bool started = false;
    int line = 0; /* of the barrier that it waits at */
};

static fiber fibers[MAX_THREADS];
static void *scheduler[5];
static void *scheduler_fake;
static const void *scheduler_stack;
static size_t scheduler_size;
static unsigned current;
static bool reversed, fail_launches;
static unsigned char *shared_memory; /* [MAX_SHARED]: the program's extern array */
static cudaStream_t only_stream;     /* the one that everything must be launched in */
static long waits;                   /* calls that a stream which is being captured forbids */
static void (*body)(void *);
static void *body_data;
static uint32_t exchange[MAX_THREADS];
static long launches, switches;

[[noreturn]] static inline void die(const char *what, const fiber &f, unsigned thread)
{
    fprintf(stderr, "shim: %s: thread %u of block %u, line %d\n", what, thread, blockIdx.x, f.line);
    exit(3);
}

/* Without the address sanitizer, which clears a whole stack at every call that does not return; it
 * is told of switches as fibers. */
#define SHIM_SWITCH __attribute__((noinline, no_sanitize_address))

SHIM_SWITCH static void go(void **jump)
{
    __builtin_longjmp(jump, 1);
}

SHIM_SWITCH static void yield_to_scheduler()
{
    fiber &f = fibers[current];
    switches++;
    __sanitizer_start_switch_fiber(&f.fake, scheduler_stack, scheduler_size);
    if (__builtin_setjmp(f.jump) == 0)
        go(scheduler);
    __sanitizer_finish_switch_fiber(fibers[current].fake, &scheduler_stack, &scheduler_size);
}

static inline void wait_at(state where, int line)
{
    fibers[current].now = where;
    fibers[current].line = line;
    yield_to_scheduler();
}

/* A fiber is one thread of every block that is ever run: making one takes system calls. */
static void start()
{
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
    for (;;) {
        body(body_data);
        fibers[current].now = DONE;
        yield_to_scheduler();
    }
}

/* Lets threads first .. last - 1 go on if all wait at one barrier. */
static inline bool release(unsigned first, unsigned last, state where)
{
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].now != where)
            return false;
        if (fibers[i].line != fibers[first].line)
            die("a divergent barrier (another line)", fibers[i], i);
    }
    for (unsigned i = first; i < last; i++)
        fibers[i].now = READY;
    return true;
}

SHIM_SWITCH static void enter(fiber &f)
{
    if (f.started)
        go(f.jump);
    f.started = true;
    setcontext(&f.context);
    abort();
}

SHIM_SWITCH static void resume(unsigned i)
{
    current = i;
    threadIdx = dim3(i);
    __sanitizer_start_switch_fiber(&scheduler_fake, fibers[i].stack, STACK);
    if (__builtin_setjmp(scheduler) == 0)
        enter(fibers[i]);
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
}

__attribute__((noinline)) static void prepare(fiber &f)
{
    f.now = READY;
    if (f.stack != nullptr)
        return;
    f.stack = static_cast<char *>(malloc(STACK));
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, start, 0);
}

/* Runs the threads first .. last - 1 of a warp as far as they get without other warps. */
static inline void run_warp(unsigned first, unsigned last)
{
    do {
        for (unsigned k = first; k < last; k++) {
            unsigned i = reversed ? first + last - 1 - k : k;
            if (fibers[i].now == READY)
                resume(i);
        }
    } while (release(first, last, AT_WARP));
}

/* Runs one block of n threads, a warp at a time: each gets as far ahead of the others as the
 * barriers of the block let it. */
static inline void run_block(unsigned n)
{
    unsigned warps = (n + WARP - 1) / WARP;
    for (unsigned i = 0; i < n; i++)
        prepare(fibers[i]);
    for (;;) {
        unsigned done = 0;
        for (unsigned k = 0; k < warps; k++) {
            unsigned first = (reversed ? warps - 1 - k : k) * WARP;
            run_warp(first, first + WARP < n ? first + WARP : n);
        }
        for (unsigned i = 0; i < n; i++)
            done += fibers[i].now == DONE;
        if (done == n)
            return;
        if (!release(0, n, AT_BLOCK))
            for (unsigned i = 0; i < n; i++)
                if (fibers[i].now != DONE)
                    die("a divergent barrier (others are elsewhere)", fibers[i], i);
    }
}

/* Device memory that the host may not touch. */
struct region {
    void *p;
    size_t bytes;
};
static region hidden[16];
static unsigned n_hidden;

static inline void hide(void *p, size_t bytes)
{
    if (n_hidden == sizeof hidden / sizeof *hidden)
        abort();
    hidden[n_hidden++] = region{p, bytes};
    ASAN_POISON_MEMORY_REGION(p, bytes);
}

static inline void show_hidden()
{
    for (unsigned i = 0; i < n_hidden; i++)
        ASAN_UNPOISON_MEMORY_REGION(hidden[i].p, hidden[i].bytes);
}

static inline void show_all()
{
    show_hidden();
    n_hidden = 0;
}

template <class T> static inline T exchanged(T x, unsigned from, int line)
{
    static_assert(sizeof(T) == 4, "shuffles of words");
    memcpy(&exchange[threadIdx.x], &x, 4);
    wait_at(AT_WARP, line);
    memcpy(&x, &exchange[from], 4);
    wait_at(AT_WARP, line);
    return x;
}

/* Registers of the threads of a warp in a product of matrices. */
struct operands {
    uint32_t a[4], b[2];
};
static operands given[MAX_THREADS];

/* Lane 4 i + k % 16 / 4 has row i and column k of a, and row k and column i of b, i < 8. */
static inline int element(uint32_t word, unsigned k)
{
    return static_cast<signed char>(word >> 8 * (k % 4) & 255);
}

/* d [16, 8] += a [16, 32] * b [32, 8], all of 8 bits, as the fragments of PTX's mma.m16n8k32 lie in
 * a warp. All of it must take part: a thread that does not is found to be at another barrier, or to
 * have ended. */
static inline void multiply(int (&d)[4], const operands &mine, int line)
{
    unsigned lane = threadIdx.x % WARP, first = threadIdx.x - lane;
    fibers[current].line = line;
    if (first + WARP > blockDim.x)
        die("a product of matrices by a part of a warp", fibers[current], threadIdx.x);
    given[threadIdx.x] = mine;
    wait_at(AT_WARP, line);
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 32; k++) {
            const operands &a = given[first + row * 4 + k % 16 / 4];
            const operands &b = given[first + column * 4 + k % 16 / 4];
            d[i] += element(a.a[k / 16 * 2 + i / 2], k) * element(b.b[k / 16], k);
        }
    }
    wait_at(AT_WARP, line);
}

template <class... P, size_t... I>
static inline void call(void (*kernel)(P...), void **args, std::index_sequence<I...>)
{
    kernel(*static_cast<P *>(args[I])...);
}

} // namespace shim

#define __syncthreads() shim::wait_at(shim::AT_BLOCK, __LINE__)
#define __syncwarp()    shim::wait_at(shim::AT_WARP, __LINE__)
#define multiply(d, a0, a1, a2, a3, b0, b1)                                                        \
    shim::multiply(d, {{a0, a1, a2, a3}, {b0, b1}}, __LINE__)
#define __shfl_xor_sync(mask, x, other) shim::exchanged(x, threadIdx.x ^ unsigned(other), __LINE__)

template <class... P>
static cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void **args,
                                    size_t shared_bytes, cudaStream_t stream)
{
    struct launch {
        void (*kernel)(P...);
        void **args;
    } what = {kernel, args};
    if (shim::fail_launches || shared_bytes > shim::MAX_SHARED || grid.x == 0 || grid.y == 0 ||
        grid.y > 65535 || block.x == 0 || block.x > shim::MAX_THREADS ||
        stream != shim::only_stream)
        return cudaErrorInvalidValue;
    shim::show_hidden();
    shim::launches++;
    shim::body_data = &what;
    shim::body = [](void *data) {
        launch *w = static_cast<launch *>(data);
        shim::call(w->kernel, w->args, std::index_sequence_for<P...>());
    };
    gridDim = grid;
    blockDim = block;
    ASAN_UNPOISON_MEMORY_REGION(shim::shared_memory, shim::MAX_SHARED);
    ASAN_POISON_MEMORY_REGION(shim::shared_memory + shared_bytes, shim::MAX_SHARED - shared_bytes);
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = dim3(x, y);
            memset(shim::shared_memory, 0xff, shared_bytes);
            shim::run_block(block.x);
        }
    for (unsigned i = 0; i < shim::n_hidden; i++)
        ASAN_POISON_MEMORY_REGION(shim::hidden[i].p, shim::hidden[i].bytes);
    return cudaSuccess;
}

/* What launchers must not call: it is there to be counted. Every other function of the runtime does
 * not compile. */
#define SHIM_WAITS(X)                                                                              \
    X(cudaMalloc)                                                                                  \
    X(cudaMallocAsync)                                                                             \
    X(cudaFree)                                                                                    \
    X(cudaFreeAsync)                                                                               \
    X(cudaMemcpy)                                                                                  \
    X(cudaMemcpyAsync)                                                                             \
    X(cudaMemset)                                                                                  \
    X(cudaMemsetAsync)                                                                             \
    X(cudaStreamSynchronize)                                                                       \
    X(cudaDeviceSynchronize)
#define SHIM_COUNT(name)                                                                           \
    template <class... P> static inline cudaError_t name(P...)                                     \
    {                                                                                              \
        shim::waits++;                                                                             \
        return cudaSuccess;                                                                        \
    }
SHIM_WAITS(SHIM_COUNT)
#undef SHIM_COUNT

template <class T> static cudaError_t cudaFuncSetAttribute(T *, cudaFuncAttribute, int bytes)
{
    return bytes <= shim::MAX_SHARED ? cudaSuccess : cudaErrorInvalidValue;
}

static inline unsigned atomicOr(unsigned *p, unsigned x)
{
    unsigned old = *p;
    *p |= x;
    return old;
}

static inline int atomicMax(int *p, int x)
{
    int old = *p;
    *p = x > old ? x : old;
    return old;
}

/* As PTX's prmt. */
static inline uint32_t permute(uint32_t x, uint32_t y, uint32_t selector)
{
    uint32_t to = 0;
    uint64_t from = static_cast<uint64_t>(y) << 32 | x;
    for (unsigned i = 0; i < 4; i++) {
        uint32_t byte = from >> 8 * (selector >> 4 * i & 7) & 255;
        if (selector >> 4 * i & 8)
            byte = byte & 128 ? 255 : 0;
        to |= byte << 8 * i;
    }
    return to;
}

static inline float __uint_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline double __longlong_as_double(long long bits)
{
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

static inline void sincospif(float x, float *s, float *c)
{
    *s = static_cast<float>(sin(3.14159265358979323846 * static_cast<double>(x)));
    *c = static_cast<float>(cos(3.14159265358979323846 * static_cast<double>(x)));
}

#endif
