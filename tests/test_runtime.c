/* Behaviour of an emitted header, on the golden toy: what a cache promises whatever its codec. That
 * the arithmetic is right is proved in test_header.c for every codec. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <string.h>

#include "toy_cache.h"

enum { SINK = TOY_KV_N_SINK, RECENT = TOY_KV_N_RECENT, BLOCK = TOY_KV_BLOCK, N = 230 };

TestSuite(runtime, .timeout = 60);

/* Tokens that lie in blocks or sinks after n tokens, the last appended by itself. */
static int coded_after(int n)
{
    int over = n - 1 - SINK - RECENT;
    return SINK + (over < BLOCK ? 0 : over / BLOCK * BLOCK);
}

static float to_half(float x)
{
    return toy_kv__from_half(toy_kv__to_half(x));
}

static void assert_same(const toy_cache *a, int seq_a, const toy_cache *b, int seq_b,
                        const char *what)
{
    int n_a, n_b;
    float *x = toy_read_all(a, seq_a, &n_a), *y = toy_read_all(b, seq_b, &n_b);
    cr_assert_eq(n_a, n_b, "%s: %d and %d tokens", what, n_a, n_b);
    cr_assert_eq(memcmp(x, y, sizeof *x * (size_t)n_a * 2 * TOY_LAYERS * TOY_DIM), 0, "%s", what);
    free(x);
    free(y);
}

static void fill_queries(int n_q, uint64_t seed, float *q)
{
    check_rng rng = {seed};
    for (int i = 0; i < n_q * TOY_ROW; i++)
        q[i] = 2 * check_uniform(&rng);
}

/* Attention of the latest n_q tokens agrees with attention in double over what is read back. */
static void assert_attends(const toy_cache *c, int seq, int n_q)
{
    int n;
    float *all = toy_read_all(c, seq, &n), q[8 * TOY_ROW], out[8 * TOY_ROW];
    check_attention plain = {(double)TOY_KV_ATTENTION_SCALE, 0, 0, NULL, NULL};
    n_q = n_q < n ? n_q : n;
    fill_queries(n_q, 7, q);
    for (int layer = 0; layer < TOY_LAYERS && n > 0; layer++) {
        const float *k = all + (size_t)layer * 2 * (size_t)n * TOY_DIM;
        toy_must(toy_kv_attend(c->kv, seq, layer, n_q, q, out, NULL, c->scratch, c->scratch_bytes),
                 "attend");
        for (int i = 0; i < n_q * TOY_KV_N_HEADS; i++) {
            double ref[TOY_DIM];
            check_attend(&plain, TOY_DIM, n - n_q + i / TOY_KV_N_HEADS, q + i * TOY_DIM, k,
                         k + (size_t)n * TOY_DIM, ref);
            double error = check_error(TOY_DIM, out + i * TOY_DIM, ref);
            cr_assert_leq(error, ATTEND_BOUND, "%d tokens, layer %d, row %d: %g", n, layer, i,
                          error);
        }
    }
    free(all);
}

/* ---- append ---- */

Test(runtime, sinks_and_latest_tokens_are_exact)
{
    toy_cache c = toy_cache_new(1, N, 0);
    toy_tell(&c, 0, 1, 0, N, 31);
    int n, first = coded_after(N), changed = 0;
    cr_assert(N - first >= RECENT && N - first <= RECENT + BLOCK);
    float *all = toy_read_all(&c, 0, &n), x[TOY_DIM];
    cr_assert_eq(n, N);
    for (int i = 0; i < 2 * TOY_LAYERS; i++)
        for (int t = 0; t < N; t++) {
            toy_vector(1, i / 2, i % 2, t, x);
            for (int d = 0; d < TOY_DIM; d++) {
                int same = all[(i * N + t) * TOY_DIM + d] == to_half(x[d]);
                cr_assert(same || (t >= SINK && t < first), "token %d", t);
                changed += !same;
            }
        }
    cr_assert_gt(changed, 0, "blocks are not exact");
    free(all);
    toy_cache_free(&c);
}

Test(runtime, batches_do_not_matter)
{
    static const int steps[] = {2, 7, 32, 100, 228};
    toy_cache one = toy_cache_new(1, N, 0);
    toy_tell(&one, 0, 1, 0, N, 1);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        toy_kv_config config = {0};
        config.n_ctx = N;
        config.max_batch = steps[i]; /* the smallest exact window that will do */
        toy_cache c = toy_cache_of(&config);
        toy_tell(&c, 0, 1, 0, N, steps[i]);
        assert_same(&one, 0, &c, 0, "another batch size");
        toy_cache_free(&c);
    }
    toy_cache_free(&one);
}

/* Appends the same numbers as float, binary16 or bfloat16. */
static void tell_as(toy_cache *c, toy_kv_type type)
{
    for (int t = 0; t < N; t++)
        for (int layer = 0; layer < TOY_LAYERS; layer++) {
            float x[2][TOY_DIM];
            uint16_t h[2][TOY_DIM];
            for (int part = 0; part < 2; part++) {
                toy_vector(1, layer, part, t, x[part]);
                for (int d = 0; d < TOY_DIM; d++) {
                    uint32_t bits = toy_kv__to_bits(x[part][d]) & 0xffff0000u;
                    x[part][d] = toy_kv__from_bits(bits); /* exact in bfloat16 */
                    h[part][d] =
                        type == TOY_KV_BF16 ? (uint16_t)(bits >> 16) : toy_kv__to_half(x[part][d]);
                }
            }
            const void *k = type == TOY_KV_F32 ? (void *)x[0] : h[0];
            const void *v = type == TOY_KV_F32 ? (void *)x[1] : h[1];
            toy_must(toy_kv_append(c->kv, 0, layer, 1, k, v, type, TOY_KV_KEYS_ROTATED), "append");
        }
}

Test(runtime, types_of_input_agree)
{
    toy_cache f32 = toy_cache_new(1, N, 0);
    tell_as(&f32, TOY_KV_F32);
    for (int type = TOY_KV_F16; type <= TOY_KV_BF16; type++) {
        toy_cache c = toy_cache_new(1, N, 0);
        tell_as(&c, (toy_kv_type)type);
        assert_same(&f32, 0, &c, 0, "another type");
        toy_cache_free(&c);
    }
    toy_cache_free(&f32);
}

/* Keys that the caller rotates, in double, and keys that the cache rotates. */
Test(runtime, keys_may_come_unrotated)
{
    toy_cache rotated = toy_cache_new(1, N, 0), unrotated = toy_cache_new(1, N, 0);
    for (int t = 0; t < N; t++)
        for (int layer = 0; layer < TOY_LAYERS; layer++) {
            float k[TOY_DIM], v[TOY_DIM], turned[TOY_DIM];
            toy_vector(1, layer, 0, t, k);
            toy_vector(1, layer, 1, t, v);
            for (int i = 0; i < TOY_DIM / 2; i++) { /* the rope of toy_plans.h */
                double angle = t * (1.0 / (1 + 3 * i * i)), a = k[i], b = k[i + TOY_DIM / 2];
                turned[i] = (float)(a * cos(angle) - b * sin(angle));
                turned[i + TOY_DIM / 2] = (float)(a * sin(angle) + b * cos(angle));
            }
            toy_must(
                toy_kv_append(rotated.kv, 0, layer, 1, turned, v, TOY_KV_F32, TOY_KV_KEYS_ROTATED),
                "append");
            toy_must(
                toy_kv_append(unrotated.kv, 0, layer, 1, k, v, TOY_KV_F32, TOY_KV_KEYS_UNROTATED),
                "append");
        }
    int n, differ = 0;
    float *x = toy_read_all(&rotated, 0, &n), *y = toy_read_all(&unrotated, 0, &n);
    for (int i = 0; i < 2 * TOY_LAYERS * N; i++) {
        double ref[TOY_DIM];
        for (int d = 0; d < TOY_DIM; d++)
            ref[d] = x[i * TOY_DIM + d];
        /* half an ulp of binary16, or another code where two are about equally near */
        differ += check_error(TOY_DIM, y + i * TOY_DIM, ref) > 5e-4;
    }
    cr_assert_leq(differ, 2 * TOY_LAYERS * N / 50, "%d vectors", differ);
    free(x);
    free(y);
    toy_cache_free(&rotated);
    toy_cache_free(&unrotated);
}

Test(runtime, sequences_do_not_touch_each_other)
{
    toy_cache all = toy_cache_new(3, N, 0);
    for (int first = 0; first < N - 1; first += 23)
        for (int seq = 0; seq < 3; seq++) {
            int n = N - 1 - first < 23 ? N - 1 - first : 23;
            toy_must(toy_append(&all, seq, seq, first, n), "append");
        }
    for (int seq = 0; seq < 3; seq++) {
        toy_cache one = toy_cache_new(1, N, 0);
        toy_must(toy_append(&all, seq, seq, N - 1, 1), "append");
        toy_tell(&one, 0, seq, 0, N, 50);
        assert_same(&all, seq, &one, 0, "a sequence among three");
        toy_cache_free(&one);
    }
    toy_cache_free(&all);
}

/* ---- trim, fork, pool ---- */

/* Cuts at n_keep and goes on. Unless a block was cut in the middle, nothing shows of it. */
static void check_trim(const toy_cache *whole, int n_keep)
{
    toy_cache c = toy_cache_new(1, N, 0);
    toy_tell(&c, 0, 1, 0, N, 50);
    int n, m, coded = coded_after(N);
    size_t used = toy_kv_bytes_used(c.kv);
    int in_block = n_keep > SINK && n_keep < coded && (n_keep - SINK) % BLOCK != 0;
    float *before = toy_read_all(&c, 0, &n);
    toy_must(toy_kv_trim(c.kv, 0, n_keep), "trim");
    float *after = toy_read_all(&c, 0, &m);
    cr_assert_eq(m, n_keep);
    for (int i = 0; i < 2 * TOY_LAYERS; i++)
        for (int at = 0; at < n_keep * TOY_DIM; at++) {
            float was = before[i * N * TOY_DIM + at], is = after[i * n_keep * TOY_DIM + at];
            cr_assert(is == was || (in_block && is == to_half(was)), "keep %d, token %d: %g was %g",
                      n_keep, at / TOY_DIM, (double)is, (double)was);
        }
    cr_assert(n_keep == N || toy_kv_bytes_used(c.kv) < used, "keep %d frees nothing", n_keep);
    cr_assert(n_keep > 0 || toy_kv_bytes_used(c.kv) == 0);
    assert_attends(&c, 0, 3);
    if (n_keep < N - 1)
        toy_tell(&c, 0, 1, n_keep, N, 20);
    else if (n_keep < N)
        toy_must(toy_append(&c, 0, 1, n_keep, 1), "append");
    if (!in_block)
        assert_same(&c, 0, whole, 0, "trimmed and continued");
    assert_attends(&c, 0, 3);
    free(before);
    free(after);
    toy_cache_free(&c);
}

Test(runtime, trim_anywhere_and_go_on)
{
    toy_cache whole = toy_cache_new(1, N, 0);
    toy_tell(&whole, 0, 1, 0, N, 50);
    for (int n_keep = 0; n_keep <= N; n_keep += n_keep < 8 ? 1 : 7)
        check_trim(&whole, n_keep);
    for (int block = 1; SINK + block * BLOCK <= coded_after(N); block++)
        for (int i = -1; i <= 1; i++)
            check_trim(&whole, SINK + block * BLOCK + i);
    check_trim(&whole, N - 1);
    check_trim(&whole, N);
    toy_cache_free(&whole);
}

Test(runtime, forks_share_blocks_and_stay_apart)
{
    enum { TIGHT = 2 * (2 * N / BLOCK) }; /* so that blocks are used again at once */
    toy_cache c = toy_cache_new(3, 2 * N, TIGHT), alone = toy_cache_new(1, 2 * N, 0);
    toy_tell(&c, 0, 1, 0, N, 50);
    size_t used = toy_kv_bytes_used(c.kv);
    toy_must(toy_kv_fork(c.kv, 0, 1), "fork");
    size_t exact = (size_t)(N - (coded_after(N) - SINK)) * 2 * TOY_LAYERS * TOY_DIM * 2;
    cr_assert_leq(toy_kv_bytes_used(c.kv) - used, exact + 1024, "blocks are shared");
    assert_same(&c, 0, &c, 1, "a fork");
    toy_tell(&c, 0, 1, N, 2 * N, 50); /* 0 goes on with story 1, its copy with story 2 */
    toy_tell(&c, 1, 2, N, 2 * N, 50);
    toy_tell(&alone, 0, 1, 0, N, 50);
    toy_tell(&alone, 0, 2, N, 2 * N, 50);
    assert_same(&c, 1, &alone, 0, "a fork that went on");
    for (int i = 0; i < 4; i++) {
        toy_must(toy_kv_trim(c.kv, 0, 50 * i), "trim");
        toy_tell(&c, 0, 3, 50 * i, 2 * N, 50);
    }
    assert_same(&c, 1, &alone, 0, "the original was cut and rewritten");
    assert_attends(&c, 1, 8);
    toy_must(toy_kv_fork(c.kv, 1, 0), "fork onto a sequence that holds tokens");
    toy_must(toy_kv_fork(c.kv, 1, 1), "fork onto itself");
    assert_same(&c, 0, &alone, 0, "forked back");
    for (int seq = 0; seq < 3; seq++)
        toy_must(toy_kv_trim(c.kv, seq, 0), "trim");
    cr_assert_eq(toy_kv_bytes_used(c.kv), 0, "no block is lost");
    toy_cache_free(&c);
    toy_cache_free(&alone);
}

Test(runtime, a_full_pool_changes_nothing)
{
    toy_cache c = toy_cache_new(2, N, 3);
    int n = 0;
    toy_kv_status status = TOY_KV_OK;
    void *before = toy_aligned(c.bytes);
    while (status == TOY_KV_OK) {
        memcpy(before, c.memory, c.bytes);
        status = toy_append(&c, 0, 1, n, 10);
        n += status == TOY_KV_OK ? 10 : 0;
    }
    cr_assert_eq(status, TOY_KV_E_FULL);
    cr_assert_eq(memcmp(before, c.memory, c.bytes), 0);
    cr_assert_geq(n, SINK + RECENT + 4 * BLOCK);
    assert_attends(&c, 0, 2);
    toy_must(toy_append(&c, 1, 1, 0, 20), "another sequence in its exact window");
    toy_must(toy_kv_trim(c.kv, 0, SINK + BLOCK), "trim");
    toy_must(toy_append(&c, 0, 1, SINK + BLOCK, 60), "append to what was trimmed");
    free(before);
    toy_cache_free(&c);
}

Test(runtime, the_memory_may_be_moved)
{
    toy_cache c = toy_cache_new(1, N, 0), moved = c;
    toy_tell(&c, 0, 1, 0, N - 20, 50);
    moved.memory = toy_aligned(c.bytes);
    memcpy(moved.memory, c.memory, c.bytes);
    moved.kv = (toy_kv *)moved.memory;
    toy_tell(&c, 0, 1, N - 20, N, 5);
    memset(c.memory, 0xee, c.bytes);
    toy_tell(&moved, 0, 1, N - 20, N, 5);
    toy_cache fresh = toy_cache_new(1, N, 0);
    toy_tell(&fresh, 0, 1, 0, N, 50);
    assert_same(&moved, 0, &fresh, 0, "moved");
    free(moved.memory);
    toy_cache_free(&c);
    toy_cache_free(&fresh);
}

/* ---- reading ---- */

typedef struct reader {
    const toy_cache *cache;
    float out[8 * TOY_ROW];
} reader;

static void *attend_often(void *argument)
{
    reader *r = (reader *)argument;
    float q[8 * TOY_ROW];
    size_t bytes = toy_kv_scratch_size();
    void *scratch = toy_aligned(bytes);
    fill_queries(8, 5, q);
    for (int i = 0; i < 20; i++)
        toy_must(toy_kv_attend(r->cache->kv, 0, 1, 8, q, r->out, NULL, scratch, bytes), "attend");
    free(scratch);
    return NULL;
}

Test(runtime, threads_attend_at_once)
{
    enum { THREADS = 4 };
    reader readers[THREADS];
    pthread_t threads[THREADS];
    toy_cache c = toy_cache_new(1, N, 0);
    toy_tell(&c, 0, 1, 0, N, 50);
    for (int i = 0; i < THREADS; i++) {
        readers[i].cache = &c;
        cr_assert_eq(pthread_create(&threads[i], NULL, attend_often, &readers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 1; i < THREADS; i++)
        cr_assert_eq(memcmp(readers[0].out, readers[i].out, sizeof readers[0].out), 0);
    toy_cache_free(&c);
}

/* Queries are turned from block to block by products of angles, which must not drift. */
Test(runtime, long_contexts_are_as_accurate_as_short_ones)
{
    enum { LONG = 5000 };
    toy_cache c = toy_cache_new(1, LONG, 0);
    toy_tell(&c, 0, 1, 0, LONG, 200);
    assert_attends(&c, 0, 2);
    toy_cache_free(&c);
}

Test(runtime, a_range_without_tokens_adds_nothing)
{
    enum { ROWS = TOY_KV_GROUP };
    float m[2][ROWS], l[2][ROWS], o[2][ROWS * TOY_DIM], q[TOY_ROW], a[TOY_ROW], b[TOY_ROW];
    toy_kv_partial all = {m[0], l[0], o[0]}, none = {m[1], l[1], o[1]};
    toy_cache c = toy_cache_new(1, N, 0);
    toy_tell(&c, 0, 1, 0, N, 50);
    fill_queries(1, 9, q);
    toy_must(toy_kv_attend_part(c.kv, 0, 0, 0, 1, q, 0, N, NULL, &all, c.scratch, c.scratch_bytes),
             "attend_part");
    toy_kv_finish(&all, 0, 1, NULL, a);
    for (int first = 0; first <= N; first += N) {
        toy_must(toy_kv_attend_part(c.kv, 0, 0, 0, 1, q, first, first == N ? 10 : 0, NULL, &none,
                                    c.scratch, c.scratch_bytes),
                 "attend_part");
        toy_kv_finish(&none, 0, 1, NULL, b);
        for (int i = 0; i < TOY_ROW; i++)
            cr_assert_eq(b[i], 0);
        toy_kv_merge(&all, &none, ROWS);
        toy_kv_finish(&all, 0, 1, NULL, b);
        cr_assert_eq(memcmp(a, b, sizeof a), 0);
        toy_kv_merge(&none, &all, ROWS);
        toy_kv_finish(&none, 0, 1, NULL, b);
        cr_assert_eq(memcmp(a, b, sizeof a), 0);
    }
    toy_cache_free(&c);
}
