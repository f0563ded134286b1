/* Saved caches of an emitted header (the golden toy): whole or refused, the same everywhere. */
#include <criterion/criterion.h>

#include <string.h>

#include "toy_cache.h"

enum { SINK = TOY_KV_N_SINK, RECENT = TOY_KV_N_RECENT, BLOCK = TOY_KV_BLOCK, N = 230 };

TestSuite(saved, .timeout = 60);

typedef struct saved {
    unsigned char *data;
    size_t size;
} saved;

static saved save(const toy_cache *c, int seq)
{
    saved s = {NULL, toy_kv_save_size(c->kv, seq)};
    s.data = (unsigned char *)toy_aligned(s.size);
    toy_must(toy_kv_save(c->kv, seq, s.data, s.size), "save");
    return s;
}

static void attend(const toy_cache *c, int seq, float *out)
{
    float q[TOY_ROW];
    check_rng rng = {11};
    for (int i = 0; i < TOY_ROW; i++)
        q[i] = check_uniform(&rng);
    toy_must(toy_kv_attend(c->kv, seq, 1, 1, q, out, NULL, c->scratch, c->scratch_bytes), "attend");
}

static toy_cache cache_on(toy_kv_isa isa, int n_seq, int n_blocks)
{
    toy_kv_config config = {0};
    config.n_seq = n_seq;
    config.n_ctx = N + 50;
    config.n_blocks = n_blocks;
    config.isa = isa;
    return toy_cache_of(&config);
}

/* Every length that ends in the sinks, the window or a block; the target has held other tokens, has
 * another pool and other sequences. */
Test(saved, round_trip_is_whole)
{
    static const int lengths[] = {0, 1, 4, 30, 60, 61, 93, 130, N};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        int n = lengths[i];
        toy_cache a = toy_cache_new(1, N, 0), b = cache_on(TOY_KV_ISA_AUTO, 3, 9);
        float x[TOY_ROW], y[TOY_ROW];
        toy_tell(&a, 0, 1, 0, n, 40);
        toy_tell(&b, 0, 2, 0, 150, 40);
        toy_tell(&b, 1, 3, 0, 150, 40);
        saved first = save(&a, 0);
        toy_must(toy_kv_load(b.kv, 1, first.data, first.size), "load");
        cr_assert_eq(toy_kv_n_tokens(b.kv, 1), n);
        saved second = save(&b, 1);
        cr_assert_eq(second.size, first.size);
        cr_assert_eq(memcmp(second.data, first.data, first.size), 0, "%d tokens", n);
        if (n > 0) {
            attend(&a, 0, x);
            attend(&b, 1, y);
            cr_assert_eq(memcmp(x, y, sizeof x), 0);
        }
        for (int seq = 0; seq < 3; seq++)
            toy_must(toy_kv_trim(b.kv, seq, 0), "trim");
        cr_assert_eq(toy_kv_bytes_used(b.kv), 0, "no block is lost");
        free(first.data);
        free(second.data);
        toy_cache_free(&a);
        toy_cache_free(&b);
    }
}

Test(saved, a_loaded_sequence_goes_on_like_the_original)
{
    toy_cache a = toy_cache_new(1, N, 0), b = toy_cache_new(1, N, 0);
    toy_tell(&a, 0, 1, 0, 150, 40);
    saved half = save(&a, 0);
    toy_must(toy_kv_load(b.kv, 0, half.data, half.size), "load");
    toy_tell(&a, 0, 1, 150, N, 40);
    toy_tell(&b, 0, 1, 150, N, 11);
    saved x = save(&a, 0), y = save(&b, 0);
    cr_assert(x.size == y.size && memcmp(x.data, y.data, x.size) == 0);
    free(half.data);
    free(x.data);
    free(y.data);
    toy_cache_free(&a);
    toy_cache_free(&b);
}

/* A smaller max_batch has a smaller exact window: what does not fit is refused, what fits loads. */
Test(saved, a_window_that_is_too_small_is_refused)
{
    toy_kv_config config = {0};
    config.n_ctx = N;
    config.max_batch = 1;
    toy_cache a = toy_cache_new(1, N, 0), b = toy_cache_of(&config);
    toy_must(toy_append(&a, 0, 1, 0, 200), "append");
    saved s = save(&a, 0);
    cr_assert_eq(toy_kv_load(b.kv, 0, s.data, s.size), TOY_KV_E_BATCH);
    toy_must(toy_append(&a, 0, 1, 200, 1), "append");
    free(s.data);
    s = save(&a, 0);
    toy_must(toy_kv_load(b.kv, 0, s.data, s.size), "load");
    config.n_ctx = 200;
    toy_cache c = toy_cache_of(&config);
    cr_assert_eq(toy_kv_load(c.kv, 0, s.data, s.size), TOY_KV_E_CONTEXT);
    toy_cache d = cache_on(TOY_KV_ISA_AUTO, 1, 2);
    cr_assert_eq(toy_kv_load(d.kv, 0, s.data, s.size), TOY_KV_E_FULL);
    free(s.data);
    toy_cache_free(&a);
    toy_cache_free(&b);
    toy_cache_free(&c);
    toy_cache_free(&d);
}

Test(saved, instruction_sets_load_each_others_bytes)
{
    for (int i = TOY_KV_ISA_PORTABLE; i <= TOY_KV_ISA_NEON_DOT; i++) {
        toy_kv_config config = {0};
        size_t bytes;
        config.n_ctx = N;
        config.isa = (toy_kv_isa)i;
        if (toy_kv_size(&config, &bytes) == TOY_KV_E_CPU)
            continue;
        toy_cache from = cache_on((toy_kv_isa)i, 1, 0), to = cache_on(TOY_KV_ISA_PORTABLE, 1, 0);
        cr_assert_eq((int)toy_kv_isa_in_use(from.kv), i);
        toy_tell(&from, 0, 1, 0, N, 40);
        saved x = save(&from, 0);
        toy_must(toy_kv_load(to.kv, 0, x.data, x.size), "load");
        saved y = save(&to, 0);
        cr_assert_eq(memcmp(x.data, y.data, x.size), 0);
        float a[TOY_ROW], b[TOY_ROW];
        attend(&from, 0, a);
        attend(&to, 0, b);
        for (int h = 0; h < TOY_KV_N_HEADS; h++) {
            double ref[TOY_DIM];
            for (int d = 0; d < TOY_DIM; d++)
                ref[d] = a[h * TOY_DIM + d];
            cr_assert_leq(check_error(TOY_DIM, b + h * TOY_DIM, ref), ATTEND_BOUND);
        }
        free(x.data);
        free(y.data);
        toy_cache_free(&from);
        toy_cache_free(&to);
    }
}

/* Whatever is cut off or flipped, the load fails and the cache is byte for byte what it was. */
Test(saved, damage_is_refused_and_changes_nothing)
{
    toy_cache a = toy_cache_new(1, N, 0), b = toy_cache_new(1, N, 0);
    toy_tell(&a, 0, 1, 0, 130, 40);
    toy_tell(&b, 0, 2, 0, 70, 40);
    saved s = save(&a, 0);
    void *before = toy_aligned(b.bytes);
    check_rng rng = {1};
    memcpy(before, b.memory, b.bytes);
    for (size_t at = 0; at < s.size; at += at < 256 ? 1 : 37) {
        unsigned char flip = (unsigned char)(1 << check_below(&rng, 8));
        cr_assert_neq(toy_kv_load(b.kv, 0, s.data, at), TOY_KV_OK, "cut to %zu bytes", at);
        s.data[at] ^= flip;
        cr_assert_neq(toy_kv_load(b.kv, 0, s.data, s.size), TOY_KV_OK, "byte %zu", at);
        s.data[at] ^= flip;
        cr_assert_eq(memcmp(before, b.memory, b.bytes), 0, "byte %zu", at);
    }
    toy_must(toy_kv_load(b.kv, 0, s.data, s.size), "load");
    free(before);
    free(s.data);
    toy_cache_free(&a);
    toy_cache_free(&b);
}
