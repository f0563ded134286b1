/* Every refusal of an emitted header (the golden toy): the right status, and not a byte of the
 * cache changed. */
#include <criterion/criterion.h>

#include <string.h>

#include "toy_cache.h"

enum { SINK = TOY_KV_N_SINK, RECENT = TOY_KV_N_RECENT, BLOCK = TOY_KV_BLOCK, N = 230 };

TestSuite(refusals, .timeout = 60);

/* A call that must fail with `wanted` and leave all of the cache's memory as it was. */
#define REFUSES(c, wanted, call)                                                                   \
    do {                                                                                           \
        memcpy(before, (c).memory, (c).bytes);                                                     \
        toy_kv_status got_ = (call);                                                               \
        cr_expect_eq(got_, wanted, "%s: %s", #call, toy_kv_status_text(got_));                     \
        cr_expect_eq(memcmp(before, (c).memory, (c).bytes), 0, "%s changed something", #call);     \
        seen[got_] = 1;                                                                            \
    } while (0)

enum { N_STATUS = TOY_KV_E_CHECKSUM + 1 };

static void refuse_memory(toy_cache *c, void *before, char *seen)
{
    toy_kv_config config = {0};
    toy_kv *kv;
    size_t bytes;
    char *memory = (char *)c->memory;
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_size(&config, &bytes)); /* n_ctx is 0 */
    config.n_ctx = 50;
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_size(&config, NULL));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_size(NULL, &bytes));
    toy_must(toy_kv_size(&config, &bytes), "size");
    cr_assert_leq(bytes, c->bytes);
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_init(NULL, &config, memory, bytes));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_init(&kv, &config, NULL, bytes));
    REFUSES(*c, TOY_KV_E_SIZE, toy_kv_init(&kv, &config, memory, bytes - 1));
    REFUSES(*c, TOY_KV_E_ALIGNMENT, toy_kv_init(&kv, &config, memory + 32, c->bytes - 32));
    config.n_ctx = 1 << 28;
    config.n_seq = 1 << 20;
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_size(&config, &bytes));
    config.n_seq = -1;
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_size(&config, &bytes));
    config.n_seq = 1;
    config.isa = (toy_kv_isa)99;
    REFUSES(*c, TOY_KV_E_CPU, toy_kv_size(&config, &bytes));
}

static void refuse_tokens(toy_cache *c, void *before, char *seen)
{
    float k[300 * TOY_DIM] = {0}, v[300 * TOY_DIM] = {0};
#define APPEND(seq, layer, n, type, keys)                                                          \
    toy_kv_append(c->kv, seq, layer, n, k, v, (toy_kv_type)(type), (toy_kv_keys)(keys))
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(2, 0, 1, 0, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(-1, 0, 1, 0, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(0, TOY_LAYERS, 1, 0, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(0, 0, 0, 0, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(0, 0, 1, 3, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, APPEND(0, 0, 1, 0, 2));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_append(NULL, 0, 0, 1, k, v, TOY_KV_F32, 0));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_append(c->kv, 0, 0, 1, NULL, v, TOY_KV_F32, 0));
    REFUSES(*c, TOY_KV_E_BATCH, APPEND(0, 0, 257, 0, 0));
    REFUSES(*c, TOY_KV_E_CONTEXT, APPEND(0, 0, N + 1 - 100, 0, 0));
    static const float broken[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        float *x = (i % 2 == 0 ? k : v) + 2 * TOY_DIM - 1;
        *x = broken[i / 2];
        REFUSES(*c, TOY_KV_E_VALUE, APPEND(0, 0, 2, 0, 0));
        *x = 0;
    }
    ((uint16_t *)(void *)k)[5] = 0x7c00; /* infinity */
    REFUSES(*c, TOY_KV_E_VALUE, APPEND(0, 0, 1, TOY_KV_F16, 0));
    ((uint16_t *)(void *)k)[5] = 0x7fc0; /* not a number */
    REFUSES(*c, TOY_KV_E_VALUE, APPEND(0, 0, 1, TOY_KV_BF16, 0));
    memset(k, 0, sizeof k);
    toy_must(APPEND(0, 1, 2, 0, 0), "append"); /* layer 1 is ahead now */
    char saved[64];
    REFUSES(*c, TOY_KV_E_ORDER, APPEND(0, 1, 1, 0, 0));
    REFUSES(*c, TOY_KV_E_ORDER, APPEND(0, 0, 1, 0, 0));
    REFUSES(*c, TOY_KV_E_ORDER, toy_kv_fork(c->kv, 0, 1));
    REFUSES(*c, TOY_KV_E_ORDER, toy_kv_save(c->kv, 0, saved, sizeof saved));
    cr_expect_eq(toy_kv_n_tokens(c->kv, 0), 100);
    toy_must(toy_kv_trim(c->kv, 0, 100), "trim takes the half step back");
#undef APPEND
}

static void refuse_reading(toy_cache *c, void *before, char *seen)
{
    float q[TOY_ROW] = {0}, out[TOY_ROW];
    char *s = (char *)c->scratch;
    size_t n = c->scratch_bytes;
    toy_kv_partial part = {out, out, out};
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_attend(c->kv, 0, 0, 101, q, out, NULL, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_attend(c->kv, 0, 0, 0, q, out, NULL, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_attend(c->kv, 0, 0, 1, NULL, out, NULL, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_attend(c->kv, 1, 0, 1, q, out, NULL, s, n)); /* empty */
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_attend(NULL, 0, 0, 1, q, out, NULL, s, n));
    REFUSES(*c, TOY_KV_E_SIZE, toy_kv_attend(c->kv, 0, 0, 1, q, out, NULL, s, n - 1));
    REFUSES(*c, TOY_KV_E_SIZE, toy_kv_attend(c->kv, 0, 0, 1, q, out, NULL, NULL, n));
    REFUSES(*c, TOY_KV_E_ALIGNMENT, toy_kv_attend(c->kv, 0, 0, 1, q, out, NULL, s + 4, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT,
            toy_kv_attend_part(c->kv, 0, 0, 1, 1, q, 0, 5, NULL, &part, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT,
            toy_kv_attend_part(c->kv, 0, 0, 0, 1, q, -1, 5, NULL, &part, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_read(c->kv, 0, 0, 0, TOY_KV_KEY, 100, 1, out, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_read(c->kv, 0, 0, 0, (toy_kv_part)2, 0, 1, out, s, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_read(c->kv, 0, 0, 0, TOY_KV_KEY, -1, 1, out, s, n));
    REFUSES(*c, TOY_KV_E_SIZE, toy_kv_read(c->kv, 0, 0, 0, TOY_KV_KEY, 0, 1, out, s, 3));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_trim(c->kv, 0, 101));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_trim(c->kv, 0, -1));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_fork(c->kv, 0, 2));
    cr_expect_eq(toy_kv_n_tokens(c->kv, 2), -1);
    cr_expect_eq(toy_kv_n_tokens(NULL, 0), -1);
    cr_expect_eq(toy_kv_save_size(c->kv, -1), 0);
}

static void refuse_saved(toy_cache *c, void *before, char *seen)
{
    size_t n = toy_kv_save_size(c->kv, 0);
    unsigned char *saved = (unsigned char *)toy_aligned(n);
    REFUSES(*c, TOY_KV_E_SIZE, toy_kv_save(c->kv, 0, saved, n - 1));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_save(c->kv, 0, NULL, n));
    toy_must(toy_kv_save(c->kv, 0, saved, n), "save");
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_load(c->kv, 2, saved, n));
    REFUSES(*c, TOY_KV_E_ARGUMENT, toy_kv_load(c->kv, 1, NULL, n));
    REFUSES(*c, TOY_KV_E_FORMAT, toy_kv_load(c->kv, 1, saved, n - 1));
    saved[n - 1] ^= 4;
    REFUSES(*c, TOY_KV_E_CHECKSUM, toy_kv_load(c->kv, 1, saved, n));
    saved[n - 1] ^= 4;
    saved[40] ^= 1; /* the codec's identity */
    REFUSES(*c, TOY_KV_E_VERSION, toy_kv_load(c->kv, 1, saved, n));
    saved[40] ^= 1;
    saved[8] ^= 1; /* version */
    REFUSES(*c, TOY_KV_E_VERSION, toy_kv_load(c->kv, 1, saved, n));
    free(saved);
}

static void refuse_full(char *seen)
{
    toy_cache c = toy_cache_new(1, N, 1);
    void *before = toy_aligned(c.bytes);
    toy_tell(&c, 0, 1, 0, SINK + RECENT + 2 * BLOCK, 20);
    REFUSES(c, TOY_KV_E_FULL, toy_append(&c, 0, 1, SINK + RECENT + 2 * BLOCK, 1));
    free(before);
    toy_cache_free(&c);
}

Test(refusals, every_refusal_has_a_status_and_changes_nothing)
{
    char seen[N_STATUS] = {1};
    toy_cache c = toy_cache_new(2, N, 0);
    void *before = toy_aligned(c.bytes);
    toy_tell(&c, 0, 1, 0, 100, 30);
    refuse_memory(&c, before, seen);
    refuse_tokens(&c, before, seen);
    refuse_reading(&c, before, seen);
    refuse_saved(&c, before, seen);
    refuse_full(seen);
    for (int i = 0; i < N_STATUS; i++)
        cr_expect(seen[i], "nothing gave %s", toy_kv_status_text((toy_kv_status)i));
    cr_expect_str_eq(toy_kv_status_text((toy_kv_status)99), "unknown status");
    free(before);
    toy_cache_free(&c);
}
