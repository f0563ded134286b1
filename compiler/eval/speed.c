#include "eval/speed.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/half.h"
#include "base/memory.h"
#include "base/rng.h"
#include "eval/attend_blocks.h"
#include "model/attend_f16.h"

enum {
    DEFAULT_CONTEXT = 16384,
    DEFAULT_REPEATS = 15,
    MIN_REPEATS = 9,
    PREFILL = 32, /* queries at once */
    PREFILL_REPEATS = 3,
    BANK = 509,                     /* distinct synthetic tokens; prime, so that layers differ */
    MAX_BATCH = 256,                /* tokens an append */
    READ_BYTES = 256 * 1024 * 1024, /* of the bandwidth loop: far beyond any cache */
    AHEAD = 128,                    /* vectors of 64 bytes that it prefetches by */
};

/* ---- bandwidth of one reading thread ---- */

typedef uint64_t words __attribute__((vector_size(64)));

/* The sum of n (a multiple of 8) vectors, in eight chains and prefetched by 8 KB, so that memory
 * alone sets the pace. */
static inline __attribute__((always_inline)) uint64_t sum_words(const words *p, size_t n)
{
    words a[8] = {{0}};
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(p + i + j + AHEAD);
            a[j] += p[i + j];
        }
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 8; l++)
            sum += a[j][l];
    return sum;
}

static uint64_t sum_portable(const words *p, size_t n)
{
    return sum_words(p, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const words *p, size_t n)
{
    return sum_words(p, n);
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const words *p, size_t n)
{
    return sum_words(p, n);
}
#endif

static uint64_t read_all(const words *p, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return sum_avx512(p, n);
    if (__builtin_cpu_supports("avx2"))
        return sum_avx2(p, n);
#endif
    return sum_portable(p, n);
}

/* ---- one run of all measurements ---- */

/* What is timed besides the codecs. */
enum { IN_F16, IN_Q8_0, IN_Q4_0, READING, N_YARDSTICKS };

typedef struct bench {
    const vqkvc_geometry *g;
    const vqkvc_subject *subjects; /* [n] */
    int n;
    vqkvc_speed_options o; /* defaults filled in */
    vqkvc_arena arena;
    vqkvc_cache *caches; /* [n] */
    float *bank;         /* [BANK, 2, n_kv_heads, head_dim] K and V of a token */
    float *q;            /* [PREFILL, n_heads, head_dim] */
    float *out;          /* [workers, room]: results like q, then scratch */
    size_t room, scratch_at;
    uint16_t *k, *v;    /* [n_layers, n_kv_heads, context, head_dim] binary16 */
    uint8_t *blocks[2]; /* q8_0, q4_0: [n_layers, n_kv_heads, K and V, context] rows; or NULL */
    words *memory;      /* READ_BYTES, a mapping of its own */
    uint64_t read;      /* what the bandwidth loop summed: keeps it from being optimised away */
    double *seconds;    /* [n + N_YARDSTICKS, repeats] */
    vqkvc_progress progress;
} bench;

static size_t row_of(const bench *b)
{
    return (size_t)b->g->n_kv_heads * b->g->head_dim;
}

/* The synthetic token that stands at `pos` of a layer. */
static const float *token_of(const bench *b, int layer, int pos)
{
    return b->bank + (size_t)((pos + 37 * layer) % BANK) * 2 * row_of(b);
}

/* Bytes of a vector in block format f, 0 or 1. */
static size_t row_of_blocks(const bench *b, int f)
{
    return vqkvc_blocks_row(f == 0 ? VQKVC_BLOCKS_Q8_0 : VQKVC_BLOCKS_Q4_0, b->g->head_dim);
}

/* K (0) or V (1) of one layer and head in block format f, from a token on. */
static uint8_t *blocks_of(const bench *b, int f, int layer, int head, int part, int token)
{
    size_t head_at = (size_t)layer * b->g->n_kv_heads + head;
    size_t row = (head_at * 2 + (size_t)part) * b->o.context + token;
    return b->blocks[f] + row * row_of_blocks(b, f);
}

static vqkvc_code allocate(bench *b, vqkvc_err *err)
{
    const vqkvc_geometry *g = b->g;
    size_t row = row_of(b), query = (size_t)g->n_heads * g->head_dim;
    size_t half = (size_t)g->n_layers * row * b->o.context;
    int group = PREFILL * (g->n_heads / g->n_kv_heads);
    size_t scratch = vqkvc_attend_f16_scratch(group, g->head_dim);
    if (vqkvc_attend_blocks_scratch(group, g->head_dim) > scratch)
        scratch = vqkvc_attend_blocks_scratch(group, g->head_dim);
    b->scratch_at = (PREFILL * query + 15) / 16 * 16;
    b->room = b->scratch_at + (scratch + 15) / 16 * 16;
    struct {
        void *pointer; /* to the pointer to fill */
        size_t n, size;
    } const wanted[] = {
        {&b->caches, (size_t)b->n, sizeof *b->caches},
        {&b->bank, (size_t)BANK * 2 * row, sizeof *b->bank},
        {&b->q, PREFILL * query, sizeof *b->q},
        {&b->out, b->room * (size_t)b->o.workers, sizeof *b->out},
        {&b->k, half, sizeof *b->k},
        {&b->v, half, sizeof *b->v},
        {&b->seconds, (size_t)(b->n + N_YARDSTICKS) * b->o.repeats, sizeof *b->seconds},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *memory = vqkvc_arena_alloc(&b->arena, wanted[i].n, wanted[i].size, err);
        if (memory == NULL)
            return err->code;
        memcpy(wanted[i].pointer, &memory, sizeof memory);
    }
    for (int f = 0; f < 2 && g->head_dim % VQKVC_BLOCK_CHANNELS == 0; f++) {
        size_t rows = 2 * half / (size_t)g->head_dim;
        b->blocks[f] = vqkvc_arena_alloc(&b->arena, rows, row_of_blocks(b, f), err);
        if (b->blocks[f] == NULL)
            return err->code;
    }
    /* Large pages, where the system has them: a floor must not lose time on address translation. */
    void *memory =
        mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "speed: cannot map %d bytes", READ_BYTES);
    b->memory = memory;
#ifdef MADV_HUGEPAGE
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
#endif
    return VQKVC_OK;
}

/* Normal data with the shape of real caches: a few strong channels, many weak ones. */
static void make_data(bench *b)
{
    const vqkvc_geometry *g = b->g;
    vqkvc_rng rng = vqkvc_rng_make(b->o.seed, 0);
    size_t row = row_of(b);
    for (size_t i = 0; i < BANK * 2 * row; i++) {
        int channel = (int)(i % (size_t)g->head_dim);
        b->bank[i] = (float)(vqkvc_rng_normal(&rng) * 2 / sqrt(1 + 0.25 * channel));
    }
    for (int i = 0; i < PREFILL * g->n_heads * g->head_dim; i++)
        b->q[i] = (float)vqkvc_rng_normal(&rng);
    memset(b->memory, 1, READ_BYTES);
    for (int l = 0; l < g->n_layers; l++)
        for (int h = 0; h < g->n_kv_heads; h++)
            for (int t = 0; t < b->o.context; t++) {
                size_t to = (((size_t)l * g->n_kv_heads + h) * b->o.context + t) * g->head_dim;
                const float *from = token_of(b, l, t) + (size_t)h * g->head_dim;
                for (int c = 0; c < g->head_dim; c++) {
                    b->k[to + c] = vqkvc_f32_to_f16(from[c]);
                    b->v[to + c] = vqkvc_f32_to_f16(from[row + c]);
                }
                for (int i = 0; i < 4 && b->blocks[i / 2] != NULL; i++)
                    vqkvc_blocks_pack(i < 2 ? VQKVC_BLOCKS_Q8_0 : VQKVC_BLOCKS_Q4_0,
                                      from + (size_t)(i % 2) * row, g->head_dim,
                                      blocks_of(b, i / 2, l, h, i % 2, t));
            }
}

/* Appends tokens at .. at + n - 1 to every layer of one codec's cache. k, v: [MAX_BATCH, row]. */
static vqkvc_code append(const bench *b, const vqkvc_cache *cache, int at, int n, float *k,
                         float *v, vqkvc_err *err)
{
    size_t row = row_of(b);
    for (int l = 0; l < b->g->n_layers; l++) {
        for (int t = 0; t < n; t++) {
            const float *token = token_of(b, l, at + t);
            memcpy(k + (size_t)t * row, token, row * sizeof *k);
            memcpy(v + (size_t)t * row, token + row, row * sizeof *v);
        }
        VQKVC_TRY(cache->append(cache->self, 0, l, at, n, k, v, err));
    }
    return VQKVC_OK;
}

/* Prefill in batches, then the latest MAX_BATCH tokens one by one: an append leaves its own tokens
 * in the exact window, and what is timed is a cache as decoding leaves it. */
static vqkvc_code fill(bench *b, vqkvc_err *err)
{
    int decoded = b->o.context > MAX_BATCH ? b->o.context - MAX_BATCH : 0;
    float *kv = vqkvc_arena_alloc(&b->arena, 2 * MAX_BATCH * row_of(b), sizeof *kv, err);
    if (kv == NULL)
        return err->code;
    for (int i = 0; i < b->n; i++) {
        const vqkvc_subject *s = &b->subjects[i];
        VQKVC_TRY(vqkvc_cache_header(&b->caches[i], s->codec, s->name, b->g, 1, b->o.context,
                                     MAX_BATCH, b->o.isa, err));
        VQKVC_TRY(vqkvc_cache_header_choose(&b->caches[i], s->top_tokens, err));
        for (int at = 0, n; at < b->o.context; at += n) {
            n = at >= decoded ? 1 : decoded - at < MAX_BATCH ? decoded - at : MAX_BATCH;
            if (vqkvc_interrupted())
                return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
            VQKVC_TRY(append(b, &b->caches[i], at, n, kv, kv + MAX_BATCH * row_of(b), err));
            vqkvc_progress_step(&b->progress, (uint64_t)i * b->o.context + (uint64_t)(at + n));
        }
    }
    return VQKVC_OK;
}

/* Where the thread at hand may write: of its results and, behind them, of its scratch. */
static float *out_of(const bench *b)
{
    return b->out + (size_t)omp_get_thread_num() * b->room;
}

/* One layer's heads in a yardstick's format; n_q queries of each head, which are made up anyway. */
static void attend_in_tree(bench *b, int yardstick, int layer, int n_q)
{
    const vqkvc_geometry *g = b->g;
    int group = n_q * (g->n_heads / g->n_kv_heads), f = yardstick - IN_Q8_0;
    float scale = 1.0f / sqrtf((float)g->head_dim);
    float *out = out_of(b), *scratch = out + b->scratch_at;
    for (int h = 0; h < g->n_kv_heads; h++) {
        size_t from = ((size_t)layer * g->n_kv_heads + h) * (size_t)b->o.context * g->head_dim;
        if (yardstick == IN_F16)
            vqkvc_attend_f16(b->k + from, b->v + from, b->o.context, group, g->head_dim, b->q, out,
                             scale, b->o.isa, scratch);
        else if (b->blocks[f] != NULL)
            vqkvc_attend_blocks(f == 0 ? VQKVC_BLOCKS_Q8_0 : VQKVC_BLOCKS_Q4_0,
                                blocks_of(b, f, layer, h, 0, 0), blocks_of(b, f, layer, h, 1, 0),
                                b->o.context, group, g->head_dim, b->q, out, scale, b->o.isa,
                                scratch);
    }
}

static vqkvc_code time_once(bench *b, int repeat, vqkvc_err *err)
{
    const vqkvc_geometry *g = b->g;
    float scale = 1.0f / sqrtf((float)g->head_dim);
    double started;
    for (int i = 0; i < b->n; i++) {
        started = vqkvc_seconds();
#pragma omp parallel for schedule(static, 1) num_threads(b->o.workers)
        for (int l = 0; l < g->n_layers; l++) {
            vqkvc_err mine = {0};
            if (b->caches[i].attend(b->caches[i].self, 0, l, b->o.context - 1, 1, b->q, out_of(b),
                                    scale, &mine) != VQKVC_OK)
#pragma omp critical
                vqkvc_fail(err, mine.code, "%s", mine.msg);
        }
        VQKVC_TRY(err->code);
        b->seconds[(size_t)i * b->o.repeats + repeat] = vqkvc_seconds() - started;
    }
    for (int y = 0; y < N_YARDSTICKS; y++) {
        started = vqkvc_seconds();
        if (y == READING) {
            size_t part = READ_BYTES / sizeof *b->memory / (size_t)b->o.workers / 8 * 8;
            uint64_t sum = 0;
#pragma omp parallel for schedule(static) num_threads(b->o.workers) reduction(+ : sum)
            for (int i = 0; i < b->o.workers; i++)
                sum += read_all(b->memory + (size_t)i * part, part);
            b->read += sum;
        } else {
#pragma omp parallel for schedule(static, 1) num_threads(b->o.workers)
            for (int l = 0; l < g->n_layers; l++)
                attend_in_tree(b, y, l, 1);
        }
        b->seconds[(size_t)(b->n + y) * b->o.repeats + repeat] = vqkvc_seconds() - started;
    }
    return VQKVC_OK;
}

/* Times the latest PREFILL tokens of all layers; i: the codec, or n and a yardstick. */
static vqkvc_code time_prefill(bench *b, int i, vqkvc_timing *t, vqkvc_err *err)
{
    const vqkvc_geometry *g = b->g;
    float scale = 1.0f / sqrtf((float)g->head_dim);
    int context = b->o.context;
    double least = INFINITY;
    if (context < PREFILL)
        return VQKVC_OK;
    for (int r = 0; r < PREFILL_REPEATS; r++) {
        double started = vqkvc_seconds();
        for (int l = 0; l < g->n_layers; l++)
            if (i < b->n)
                VQKVC_TRY(b->caches[i].attend(b->caches[i].self, 0, l, context - PREFILL, PREFILL,
                                              b->q, out_of(b), scale, err));
            else
                attend_in_tree(b, i - b->n, l, PREFILL);
        least = fmin(least, vqkvc_seconds() - started);
    }
    t->prefill_ns = least * 1e9 / ((double)g->n_layers * g->n_kv_heads * context * PREFILL);
    return VQKVC_OK;
}

/* ---- results ---- */

static int ascending(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Sorts and gives the middle one (of an even number, the lower). */
static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, ascending);
    return x[(n - 1) / 2];
}

/* Of measurement i, whose scan reads `bits` a value. */
static vqkvc_timing timing_of(const bench *b, int i, double bits, double bandwidth)
{
    const vqkvc_geometry *g = b->g;
    double *x = b->seconds + (size_t)i * b->o.repeats;
    double per = 1e9 / ((double)g->n_layers * g->n_kv_heads * b->o.context);
    vqkvc_timing t = {.ns = median(x, b->o.repeats) * per};
    t.ns_min = x[0] * per;
    t.ns_max = x[b->o.repeats - 1] * per;
    t.floor_ns = 1e9 * (bits / 8 * 2 * g->head_dim) / bandwidth;
    return t;
}

/* What attention in tree uses when codecs are held to `isa`. */
static const char *isa_in_tree(vqkvc_isa isa)
{
    const char *best = vqkvc_attend_f16_isa();
    if (isa == VQKVC_ISA_AUTO || isa == VQKVC_ISA_AVX512)
        return best;
    return isa == VQKVC_ISA_AVX2 && strcmp(best, "portable") != 0 ? "avx2" : "portable";
}

static vqkvc_code run(bench *b, const double *scan_bits, vqkvc_timing *timings, vqkvc_speed *speed,
                      vqkvc_err *err)
{
    VQKVC_TRY(allocate(b, err));
    make_data(b);
    vqkvc_progress_begin(&b->progress, b->o.log, "speed", "tokens", (uint64_t)b->n * b->o.context);
    VQKVC_TRY(fill(b, err));
    for (int r = 0; r < b->o.repeats; r++) {
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted");
        VQKVC_TRY(time_once(b, r, err));
    }
    vqkvc_progress_end(&b->progress, (uint64_t)b->n * b->o.context);
    double *reads = b->seconds + (size_t)(b->n + READING) * b->o.repeats;
    qsort(reads, (size_t)b->o.repeats, sizeof *reads, ascending);
    double bandwidth = READ_BYTES / reads[0]; /* the quickest is the floor */
    for (int i = 0; i < b->n; i++)
        timings[i] = timing_of(b, i, scan_bits[i], bandwidth);
    *speed = (vqkvc_speed){.context = b->o.context,
                           .repeats = b->o.repeats,
                           .bandwidth = b->read != 0 ? bandwidth : 0,
                           .f16 = timing_of(b, b->n + IN_F16, 16, bandwidth),
                           .f16_isa = isa_in_tree(b->o.isa)};
    if (b->blocks[0] != NULL) {
        speed->q8_0 = timing_of(b, b->n + IN_Q8_0, 8.5, bandwidth);
        speed->q4_0 = timing_of(b, b->n + IN_Q4_0, 4.5, bandwidth);
    }
    vqkvc_timing *in_tree[READING] = {&speed->f16, &speed->q8_0, &speed->q4_0};
    int n = b->n + (b->blocks[0] != NULL ? READING : 1);
    for (int i = 0; i < n; i++)
        VQKVC_TRY(time_prefill(b, i, i < b->n ? &timings[i] : in_tree[i - b->n], err));
    return VQKVC_OK;
}

vqkvc_code vqkvc_speed_measure(const vqkvc_geometry *g, int n, const vqkvc_subject *subjects,
                               const double *scan_bits, const vqkvc_speed_options *options,
                               vqkvc_timing *timings, vqkvc_speed *speed, vqkvc_err *err)
{
    bench b = {.g = g, .subjects = subjects, .n = n, .o = *options};
    b.o.context = b.o.context != 0 ? b.o.context : DEFAULT_CONTEXT;
    b.o.repeats = b.o.repeats != 0 ? b.o.repeats : DEFAULT_REPEATS;
    b.o.workers = b.o.workers != 0 ? b.o.workers : 1;
    if (b.o.workers > g->n_layers) /* the others would have nothing to do */
        b.o.workers = g->n_layers;
    if (n < 0 || b.o.context < 1 || b.o.repeats < MIN_REPEATS || b.o.workers < 1 ||
        b.o.workers > omp_get_max_threads())
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "speed: %d headers, context %d, %d repeats (at least %d), %d workers (at "
                          "most %d)",
                          n, b.o.context, b.o.repeats, MIN_REPEATS, b.o.workers,
                          omp_get_max_threads());
    vqkvc_code code = run(&b, scan_bits, timings, speed, err);
    for (int i = 0; b.caches != NULL && i < n; i++)
        if (b.caches[i].free != NULL)
            b.caches[i].free(b.caches[i].self);
    if (b.memory != NULL)
        munmap(b.memory, READ_BYTES);
    vqkvc_arena_free(&b.arena);
    return code;
}
