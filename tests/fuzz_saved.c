/* fuzz_saved.c - any bytes as a saved cache: a refusal leaves the cache as it was; what loads saves
 * to the same bytes, and can be attended, read, cut, copied and continued.
 *
 * Bit 0 of the first byte: repair the checksum, so that the rest is reached. Bit 1: portable code
 * instead of the best. */
#include "fuzz.h"
#include "toy_cache.h"

enum { CTX = 256, BLOCKS = 6, SEQS = 3, BATCH = 48 };

static toy_cache new_cache(toy_kv_isa isa)
{
    toy_kv_config config = {0};
    config.n_seq = SEQS;
    config.n_ctx = CTX;
    config.n_blocks = BLOCKS;
    config.max_batch = BATCH;
    config.isa = isa;
    return toy_cache_of(&config);
}

static void repair(uint8_t *saved, size_t size)
{
    toy_kv__saved head;
    if (size < sizeof head)
        return;
    memcpy(&head, saved, sizeof head);
    size_t n = head.bytes < size && head.bytes > sizeof head ? (size_t)head.bytes : size;
    head.checksum = 0;
    memcpy(saved, &head, sizeof head);
    head.checksum = toy_kv__checksum(1, saved, n);
    memcpy(saved, &head, sizeof head);
}

static void attend(const toy_cache *c, int seq)
{
    float q[2 * TOY_ROW], out[2 * TOY_ROW];
    int n = toy_kv_n_tokens(c->kv, seq);
    for (int i = 0; i < 2 * TOY_ROW; i++)
        q[i] = (float)(i % 7) - 3;
    for (int layer = 0; layer < 2 * TOY_LAYERS && n > 0; layer++) {
        toy_kv_attention a = {0};
        a.top_tokens = layer < TOY_LAYERS ? 0 : 20;
        toy_must(toy_kv_attend(c->kv, seq, layer % TOY_LAYERS, n < 2 ? n : 2, q, out, &a,
                               c->scratch, c->scratch_bytes),
                 "attend");
    }
    fuzz_use(out);
}

/* A sequence that was loaded is one like others. */
static void use(toy_cache *c)
{
    int n = toy_kv_n_tokens(c->kv, 1);
    attend(c, 1);
    toy_must(toy_kv_fork(c->kv, 1, 2), "fork");
    for (int i = 0; i < 3; i++) {
        toy_kv_status status = toy_append(c, 1, 5, n + i * 20, 20);
        if (status != TOY_KV_OK && status != TOY_KV_E_CONTEXT && status != TOY_KV_E_FULL)
            abort();
    }
    toy_must(toy_kv_trim(c->kv, 1, n / 2), "trim");
    int held;
    free(toy_read_all(c, 1, &held));
    attend(c, 1);
    toy_must(toy_kv_trim(c->kv, 1, 0), "trim");
    attend(c, 2);
}

static void try_load(toy_cache *c, const uint8_t *saved, size_t size)
{
    void *before = toy_aligned(c->bytes);
    memcpy(before, c->memory, c->bytes);
    toy_kv_status status = toy_kv_load(c->kv, 1, saved, size);
    if (status != TOY_KV_OK && memcmp(before, c->memory, c->bytes) != 0)
        abort();
    free(before);
    if (status != TOY_KV_OK)
        return;
    size_t n = toy_kv_save_size(c->kv, 1);
    uint8_t *again = (uint8_t *)toy_aligned(n);
    toy_must(toy_kv_save(c->kv, 1, again, n), "save");
    if (n > size || memcmp(again, saved, n) != 0)
        abort();
    free(again);
    use(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t *saved = (uint8_t *)toy_aligned(size);
    memcpy(saved, data + 1, size - 1);
    if (data[0] & 1)
        repair(saved, size - 1);
    toy_cache c = new_cache(data[0] & 2 ? TOY_KV_ISA_PORTABLE : TOY_KV_ISA_AUTO);
    toy_must(toy_append(&c, 1, 1, 0, 40), "append");
    toy_must(toy_append(&c, 1, 1, 40, 48), "append");
    try_load(&c, saved, size - 1);
    toy_cache_free(&c);
    free(saved);
    return 0;
}

size_t fuzz_seed(int i, uint8_t *dst, size_t cap)
{
    static const int lengths[] = {0, 1, 3, 40, 70, 110, 200};
    int n_lengths = (int)(sizeof lengths / sizeof *lengths);
    if (i < 0 || i >= 4 * n_lengths)
        return 0;
    toy_cache c = new_cache(TOY_KV_ISA_PORTABLE);
    toy_tell(&c, 0, 2, 0, lengths[i / 4], 40);
    size_t n = toy_kv_save_size(c.kv, 0);
    if (n + 1 > cap)
        abort();
    dst[0] = (uint8_t)(i % 4);
    toy_must(toy_kv_save(c.kv, 0, dst + 1, n), "save");
    toy_cache_free(&c);
    return n + 1;
}
