/* runtime_check.c - one emitted header at work on every instruction set of the machine.
 *
 *     cc -DHEADER='"x.h"' runtime_check.c -lm -o check && ./check INPUT OUTPUT [ISA]
 *
 * The header's prefix is toy_kv. INPUT holds int32 n and the keys and values of n tokens, float
 * [2, n, N_LAYERS, N_KV_HEADS, HEAD_DIM], keys rotated. The tokens are appended in uneven batches,
 * the last by itself; in between, attention with all options is compared with check_attend() over
 * what the cache says it holds, and in the end copies of it with the original. OUTPUT gets for each
 * instruction set its number as int32 and what is read back, in INPUT's shape. stdout: a line an
 * instruction set with the largest error. ISA leaves only those whose names begin so. The exit
 * status is 1 after a broken bound and 2 where the check itself failed. */
#define TOY_KV_IMPLEMENTATION
#include HEADER

#include <stdio.h>

#include "runtime_check.h"

enum {
    LAYERS = TOY_KV_N_LAYERS,
    HEADS = TOY_KV_N_KV_HEADS,
    Q_HEADS = TOY_KV_N_HEADS,
    GROUP = TOY_KV_GROUP,
    DIM = TOY_KV_HEAD_DIM,
    MAX_BATCH = 150,
    MAX_Q = 17,
    ROW = LAYERS * HEADS * DIM,
    STEP = HEADS * DIM
};

typedef struct check {
    int n;          /* tokens in all */
    float *part[2]; /* [n, LAYERS, HEADS, DIM]: keys, values */
    toy_kv *kv;
    void *scratch;
    size_t scratch_bytes;
    check_rng rng;
    double worst, squares, bound;
    int checks, failed;
} check;

static void die(const char *what)
{
    fprintf(stderr, "runtime_check: %s\n", what);
    exit(2);
}

static void must(toy_kv_status status, const char *what)
{
    if (status != TOY_KV_OK) {
        fprintf(stderr, "%s: %s\n", what, toy_kv_status_text(status));
        exit(2);
    }
}

static void *need(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL)
        die("out of memory");
    return p;
}

static void append(check *c, int first, int n)
{
    float *k = (float *)need(sizeof(float) * (size_t)n * STEP);
    float *v = (float *)need(sizeof(float) * (size_t)n * STEP);
    for (int layer = LAYERS - 1; layer >= 0; layer--) {
        for (int t = 0; t < n; t++) {
            size_t at = (size_t)(first + t) * ROW + (size_t)layer * STEP;
            memcpy(k + (size_t)t * STEP, c->part[0] + at, sizeof(float) * STEP);
            memcpy(v + (size_t)t * STEP, c->part[1] + at, sizeof(float) * STEP);
        }
        must(toy_kv_append(c->kv, 0, layer, n, k, v, TOY_KV_F32, TOY_KV_KEYS_ROTATED), "append");
    }
    free(k);
    free(v);
}

/* dst [n, DIM] */
static void read_back(check *c, int layer, int head, toy_kv_part part, int n, float *dst)
{
    must(toy_kv_read(c->kv, 0, layer, head, part, 0, n, dst, c->scratch, c->scratch_bytes), "read");
}

/* The same attention in three ranges that end anywhere. */
static void attend_in_parts(check *c, int layer, int n_q, int n, const float *q,
                            const toy_kv_attention *a, float *out)
{
    enum { ROWS = MAX_Q * GROUP };
    static float m[2][ROWS], l[2][ROWS], o[2][ROWS * DIM];
    toy_kv_partial sum = {m[0], l[0], o[0]}, next = {m[1], l[1], o[1]};
    int cut[4] = {0, check_below(&c->rng, n + 1), check_below(&c->rng, n + 1), n};
    if (cut[1] > cut[2]) {
        int first = cut[2];
        cut[2] = cut[1];
        cut[1] = first;
    }
    for (int head = 0; head < HEADS; head++) {
        for (int i = 0; i < 3; i++) {
            must(toy_kv_attend_part(c->kv, 0, layer, head, n_q, q, cut[i], cut[i + 1] - cut[i], a,
                                    i == 0 ? &sum : &next, c->scratch, c->scratch_bytes),
                 "attend_part");
            if (i > 0)
                toy_kv_merge(&sum, &next, n_q * GROUP);
        }
        toy_kv_finish(&sum, head, n_q, a, out);
    }
}

static void compare(check *c, const check_attention *a, int n, int n_q, int layer, int head,
                    const float *q, const float *whole, const float *parts, const float *kv[2])
{
    double ref[DIM];
    for (int i = 0; i < n_q; i++)
        for (int g = 0; g < GROUP; g++) {
            size_t at = ((size_t)i * Q_HEADS + (size_t)(head * GROUP + g)) * DIM;
            check_attention one = *a;
            one.sink_logit = a->sink_logit == NULL ? NULL : a->sink_logit + head * GROUP + g;
            check_attend(&one, DIM, n - n_q + i, q + at, kv[0], kv[1], ref);
            for (int way = 0; way < 2; way++) {
                double error = check_error(DIM, (way == 0 ? whole : parts) + at, ref);
                c->worst = error > c->worst ? error : c->worst;
                c->checks++;
                c->squares += error * error;
                if (error > c->bound && c->failed++ < 5)
                    printf("  %s: %d tokens, layer %d, head %d, query %d of %d, scale %g, cap %g, "
                           "window %d, sink %d: error %g\n",
                           way == 0 ? "attend" : "parts", n, layer, head * GROUP + g, i, n_q,
                           a->scale, a->soft_cap, a->window, a->sink_logit != NULL, error);
            }
        }
}

/* Attention of the latest n_q of n tokens in one layer; `kind` picks the options. */
static void check_layer(check *c, int layer, int n, int n_q, int kind)
{
    float sinks[Q_HEADS], *whole = (float *)need(sizeof(float) * MAX_Q * Q_HEADS * DIM);
    float *q = (float *)need(sizeof(float) * MAX_Q * Q_HEADS * DIM);
    float *parts = (float *)need(sizeof(float) * MAX_Q * Q_HEADS * DIM);
    float *k = (float *)need(sizeof(float) * (size_t)n * DIM),
          *v = (float *)need(sizeof(float) * (size_t)n * DIM);
    toy_kv_attention a = {0};
    for (int i = 0; i < n_q * Q_HEADS * DIM; i++)
        q[i] = 2 * check_uniform(&c->rng);
    for (int i = 0; i < Q_HEADS; i++)
        sinks[i] = 2 * check_uniform(&c->rng);
    a.scale = kind % 2 == 1 ? 0.2f : 0;
    a.soft_cap = kind == 2 || kind == 5 ? 3.0f : 0;
    a.sliding_window = kind == 3 ? 5 : kind >= 4 ? 90 : 0;
    a.sink_logits = kind == 1 || kind == 5 ? sinks : NULL;
    must(toy_kv_attend(c->kv, 0, layer, n_q, q, whole, kind == 0 ? NULL : &a, c->scratch,
                       c->scratch_bytes),
         "attend");
    attend_in_parts(c, layer, n_q, n, q, &a, parts);
    check_attention plain = {a.scale != 0 ? (double)a.scale : (double)TOY_KV_ATTENTION_SCALE,
                             (double)a.soft_cap, a.sliding_window, a.sink_logits, NULL};
    for (int head = 0; head < HEADS; head++) {
        const float *kv[2] = {k, v};
        read_back(c, layer, head, TOY_KV_KEY, n, k);
        read_back(c, layer, head, TOY_KV_VALUE, n, v);
        compare(c, &plain, n, n_q, layer, head, q, whole, parts, kv);
    }
    free(q);
    free(whole);
    free(parts);
    free(k);
    free(v);
}

/* Appends everything and attends on the way: after 1, 2, 3 tokens, in the sinks, in blocks. */
static void run(check *c)
{
    static const int n_qs[] = {1, 17, 2, 5, 1, 9, 8};
    int n = 0, turn = 0;
    while (n < c->n) {
        int step = n < 3 ? 1 : 1 + check_below(&c->rng, turn % 3 == 0 ? MAX_BATCH : 40);
        if (step > c->n - 1 - n)
            step = n < c->n - 1 ? c->n - 1 - n : 1;
        append(c, n, step);
        n += step;
        for (int i = 0; i < 2; i++, turn++) {
            int n_q = n_qs[turn % 7];
            check_layer(c, turn % LAYERS, n, n_q < n ? n_q : n, turn % 6);
        }
    }
}

static void write_back(check *c, int32_t isa, FILE *out)
{
    float *row = (float *)need(sizeof(float) * (size_t)c->n * DIM);
    float *all = (float *)need(sizeof(float) * (size_t)c->n * ROW);
    if (fwrite(&isa, sizeof isa, 1, out) != 1)
        die("cannot write");
    for (int part = 0; part < 2; part++) {
        for (int slot = 0; slot < LAYERS * HEADS; slot++) {
            read_back(c, slot / HEADS, slot % HEADS, part == 0 ? TOY_KV_KEY : TOY_KV_VALUE, c->n,
                      row);
            for (int t = 0; t < c->n; t++)
                memcpy(all + (size_t)t * ROW + (size_t)slot * DIM, row + (size_t)t * DIM,
                       sizeof(float) * DIM);
        }
        if (fwrite(all, sizeof(float), (size_t)c->n * ROW, out) != (size_t)c->n * ROW)
            die("cannot write");
    }
    free(row);
    free(all);
}

/* Copies of the sequence, saved and loaded, forked, and cut inside a block, hold the same. */
static void check_copies(check *c)
{
    int block = (c->n - TOY_KV_N_SINK - TOY_KV_N_RECENT) / 2 / TOY_KV_BLOCK * TOY_KV_BLOCK;
    int keep[3] = {c->n, c->n, TOY_KV_N_SINK + block + TOY_KV_BLOCK / 2 + 1};
    size_t bytes = toy_kv_save_size(c->kv, 0), values = (size_t)c->n * DIM;
    void *saved = need(bytes);
    float *was = (float *)need(sizeof(float) * values), *is = (float *)need(sizeof(float) * values);
    must(toy_kv_save(c->kv, 0, saved, bytes), "save");
    for (int way = 0; way < 3; way++) {
        must(way == 0 ? toy_kv_load(c->kv, 1, saved, bytes) : toy_kv_fork(c->kv, 0, 1), "copy");
        must(toy_kv_trim(c->kv, 1, keep[way]), "trim");
        for (int slot = 0; slot < 2 * LAYERS * HEADS; slot++) {
            int layer = slot / 2 / HEADS, head = slot / 2 % HEADS;
            toy_kv_part part = slot % 2 == 0 ? TOY_KV_KEY : TOY_KV_VALUE;
            read_back(c, layer, head, part, c->n, was);
            must(toy_kv_read(c->kv, 1, layer, head, part, 0, keep[way], is, c->scratch,
                             c->scratch_bytes),
                 "read");
            for (int i = 0; i < keep[way] * DIM; i++)
                if (is[i] != was[i] &&
                    (way < 2 || is[i] != toy_kv__from_half(toy_kv__to_half(was[i])))) {
                    printf("  copy %d: layer %d, head %d, part %d, token %d: %g was %g\n", way,
                           layer, head, (int)part, i / DIM, (double)is[i], (double)was[i]);
                    c->failed++;
                    break;
                }
        }
    }
    free(saved);
    free(was);
    free(is);
}

static void load_input(check *c, const char *path)
{
    int32_t n = 0;
    FILE *in = fopen(path, "rb");
    if (in == NULL || fread(&n, sizeof n, 1, in) != 1 || n < 1 || n > 4096)
        die("no input");
    c->n = n;
    for (int part = 0; part < 2; part++) {
        c->part[part] = (float *)need(sizeof(float) * (size_t)n * ROW);
        if (fread(c->part[part], sizeof(float), (size_t)n * ROW, in) != (size_t)n * ROW)
            die("short input");
    }
    fclose(in);
}

/* Whether attention works in bytes with this instruction set. */
static int in_bytes(int isa)
{
    int nibbles = 0;
    for (size_t i = 0; i < sizeof toy_kv__streams / sizeof *toy_kv__streams; i++) {
        const toy_kv__stream *s = &toy_kv__streams[i];
        const toy_kv__member *m = &toy_kv__members[s->first_member];
        int absorbed = !toy_kv__nodes[toy_kv__node_at[m->part * LAYERS + m->layer]].rebuilt;
        for (int r = 0; r < s->n_runs; r++)
            nibbles |= absorbed && toy_kv__runs[s->first_run + r].coder == TOY_KV__NIBBLES;
    }
    return nibbles && isa != TOY_KV_ISA_PORTABLE && isa != TOY_KV_ISA_NEON && TOY_KV_BLOCK >= 64;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"auto", "portable", "avx2", "avx512", "neon", "neon-dot"};
    check c = {0};
    int failed = 0;
    if (argc != 3 && argc != 4)
        die("wanted INPUT OUTPUT [ISA]");
    load_input(&c, argv[1]);
    FILE *out = fopen(argv[2], "wb");
    c.scratch_bytes = toy_kv_scratch_size();
    c.scratch = need(c.scratch_bytes);
    for (int isa = TOY_KV_ISA_PORTABLE; isa <= TOY_KV_ISA_NEON_DOT && out != NULL; isa++) {
        toy_kv_config config = {0};
        size_t bytes = 0;
        config.n_ctx = c.n;
        config.max_batch = MAX_BATCH;
        config.n_seq = 2;
        config.isa = (toy_kv_isa)isa;
        if (argc == 4 && strncmp(argv[3], names[isa], strlen(argv[3])) != 0)
            continue;
        toy_kv_status status = toy_kv_size(&config, &bytes);
        if (status == TOY_KV_E_CPU)
            continue;
        must(status, "size");
        void *memory = need(bytes);
        must(toy_kv_init(&c.kv, &config, memory, bytes), "init");
        c.rng.state = 1;
        c.worst = c.squares = c.checks = c.failed = 0;
        c.bound = in_bytes(isa) ? ATTEND_BOUND_BYTES : ATTEND_BOUND;
        run(&c);
        check_copies(&c);
        write_back(&c, isa, out);
        double rms = sqrt(c.squares / c.checks);
        printf("%-8s attend: %d outputs, largest error %.3g, %d beyond %g, rms %.3g\n", names[isa],
               c.checks, c.worst, c.failed, c.bound, rms);
        failed |= c.failed > 0 || (in_bytes(isa) && rms > ATTEND_RMS_BYTES);
        free(memory);
    }
    free(c.scratch);
    free(c.part[0]);
    free(c.part[1]);
    if (out == NULL || fclose(out) != 0)
        die("cannot write");
    return failed;
}
