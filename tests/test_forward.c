/* The reference forward pass: against independent implementations (ref7m: fp32 logits that came
 * with the model; toy models: llama.cpp in fp32), and against itself in every way of batching. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "model/model.h"

#define REF7M "examples/models/ref7m.gguf"

enum { VOCAB = 4096, N_TEXT = 512, N_REF = 16, MAX_TOKENS = 512 };

typedef struct fixture {
    vqkvc_model *model;
    vqkvc_cache cache;
    vqkvc_err err;
    int vocab;
} fixture;

static fixture open_fixture(const char *path, size_t max_f32_bytes, int n_seq, int n_ctx)
{
    fixture f = {0};
    vqkvc_matrix_init();
    vqkvc_code code = vqkvc_model_open(&f.model, path, max_f32_bytes, &f.err);
    cr_assert_eq(code, VQKVC_OK, "%s", f.err.msg);
    code = vqkvc_cache_exact(&f.cache, vqkvc_model_geometry(f.model), n_seq, n_ctx, &f.err);
    cr_assert_eq(code, VQKVC_OK, "%s", f.err.msg);
    f.vocab = vqkvc_model_vocab_size(f.model);
    return f;
}

static void close_fixture(fixture *f)
{
    f->cache.free(f->cache.self);
    vqkvc_model_close(f->model);
}

/* A fixture file of exactly n elements of 4 bytes; the caller frees it. */
static void *read_words(const char *path, size_t n)
{
    vqkvc_buf buf = {0};
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_read_file(path, 4 * n, &buf, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(buf.len, 4 * n);
    return buf.data;
}

/* Tokens pos .. pos + n - 1 of ids in one sequence; logits [n, vocab] or NULL. */
static void feed(fixture *f, const int32_t *ids, int seq, int pos, int n, float *logits)
{
    int seqs[MAX_TOKENS], positions[MAX_TOKENS];
    for (int i = 0; i < n; i++) {
        seqs[i] = seq;
        positions[i] = pos + i;
    }
    vqkvc_batch batch = {n, ids + pos, seqs, positions};
    vqkvc_code code = vqkvc_forward(f->model, &f->cache, &batch, NULL, logits, &f->err);
    cr_assert_eq(code, VQKVC_OK, "%s", f->err.msg);
}

static float *new_logits(int n, int vocab)
{
    float *logits = calloc((size_t)n * (size_t)vocab, sizeof *logits);
    cr_assert_not_null(logits);
    return logits;
}

static double max_difference(const float *a, const float *b, size_t n)
{
    double max = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = fabs((double)a[i] - (double)b[i]);
        if (!(diff <= max)) /* catches NaN */
            max = diff;
    }
    return max;
}

/* Kullback-Leibler divergence of softmax(b) from softmax(a), in nats. */
static double divergence(const float *a, const float *b, int n)
{
    double za = 0, zb = 0, sum = 0;
    for (int i = 0; i < n; i++) {
        za += exp((double)a[i]);
        zb += exp((double)b[i]);
    }
    for (int i = 0; i < n; i++)
        sum += exp((double)a[i]) / za * ((double)a[i] - log(za) - (double)b[i] + log(zb));
    return sum;
}

/* Seen: largest difference 1.2e-5 on logits up to 20, mean KL 2e-12. */
Test(forward, ref7m_gives_the_logits_that_came_with_it)
{
    fixture f = open_fixture(REF7M, 0, 1, N_TEXT);
    int32_t *ids = read_words("tests/data/ref7m_tokens.i32", N_TEXT);
    float *want = read_words("tests/data/ref7m_logits.f32", (size_t)N_REF * VOCAB);
    float *logits = new_logits(N_TEXT, VOCAB);
    double kl = 0;
    feed(&f, ids, 0, 0, N_TEXT, logits);
    const float *last = logits + (size_t)(N_TEXT - N_REF) * VOCAB;
    cr_assert_leq(max_difference(want, last, (size_t)N_REF * VOCAB), 1e-4);
    for (int i = 0; i < N_REF; i++)
        kl += divergence(want + (size_t)i * VOCAB, last + (size_t)i * VOCAB, VOCAB) / N_REF;
    cr_assert_leq(kl, 1e-9, "mean KL %g", kl);
    free(logits);
    free(want);
    free(ids);
    close_fixture(&f);
}

/* Two layers, random weights, 96 tokens; reference logits of the last 24, made by llama.cpp with
 * the same fp16 weights widened to fp32 and an fp32 cache. partial: said to it through frequency
 * factors, since it takes no partial rotation for these architectures. Seen: below 1e-5. */
Test(forward, toy_models_agree_with_llama_cpp)
{
    static const char *const names[] = {
        "llama",     /* grouped queries, interleaved pairs */
        "qwen2",     /* biases, halves, tied embeddings */
        "qwen3",     /* norms of q and k, head_dim 24 in a model of 4 heads and width 32 */
        "llama3",    /* rope_freqs, bias of the output projection */
        "linear",    /* position interpolation by 4 */
        "yarn",      /* YaRN by 4, halves */
        "yarn_keys", /* YaRN by 8 with beta_fast, beta_slow and attn_factor of the file */
        "partial",   /* 12 of 16 channels rotate, legacy key for linear scaling by 2 */
    };
    enum { TOKENS = 96, LAST = 24, TOY_VOCAB = 64 };
    int32_t ids[TOKENS] = {1};
    for (int i = 1; i < TOKENS; i++)
        ids[i] = 3 + (i * i * 7 + i * 13 + 5) % 61;
    for (size_t m = 0; m < sizeof names / sizeof *names; m++) {
        char path[64];
        snprintf(path, sizeof path, "tests/data/toy_%s.gguf", names[m]);
        fixture f = open_fixture(path, 0, 1, TOKENS);
        cr_assert_eq(f.vocab, TOY_VOCAB);
        snprintf(path, sizeof path, "tests/data/toy_%s.logits.f32", names[m]);
        float *want = read_words(path, (size_t)LAST * TOY_VOCAB);
        float *logits = new_logits(TOKENS, TOY_VOCAB);
        feed(&f, ids, 0, 0, TOKENS, logits);
        double max = max_difference(want, logits + (size_t)(TOKENS - LAST) * TOY_VOCAB,
                                    (size_t)LAST * TOY_VOCAB);
        cr_assert_leq(max, 1e-4, "%s: largest difference %g", names[m], max);
        free(logits);
        free(want);
        close_fixture(&f);
    }
}

Test(forward, chunks_and_single_tokens_give_the_logits_of_one_prefill)
{
    enum { N = 100 };
    static const int chunks[] = {7, 1, 33};
    fixture f = open_fixture(REF7M, 0, 1, N);
    int32_t *ids = read_words("tests/data/ref7m_tokens.i32", N_TEXT);
    float *whole = new_logits(N, VOCAB), *parts = new_logits(N, VOCAB);
    feed(&f, ids, 0, 0, N, whole);
    for (int c = 0; c < 3; c++) {
        cr_assert_eq(f.cache.trim(f.cache.self, 0, 0, &f.err), VQKVC_OK);
        for (int i = 0; i < N; i += chunks[c])
            feed(&f, ids, 0, i, N - i < chunks[c] ? N - i : chunks[c], parts + (size_t)i * VOCAB);
        double max = max_difference(whole, parts, (size_t)N * VOCAB);
        cr_assert_leq(max, 1e-4, "chunks of %d: largest difference %g", chunks[c], max);
    }
    free(parts);
    free(whole);
    free(ids);
    close_fixture(&f);
}

/* Sequences of 40, 1 and 23 tokens, then one more token each, at once and one after the other. */
static void run_three(fixture *f, const int32_t *ids, int at_once, float *logits)
{
    static const int lengths[3] = {40, 1, 23};
    int32_t all[64];
    int seq[64], pos[64], n = 0;
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < lengths[s]; i++, n++) {
            all[n] = ids[100 * s + i];
            seq[n] = s;
            pos[n] = i;
        }
    for (int first = 0, s = 0; first < n; s++) {
        int count = at_once ? n : lengths[s];
        vqkvc_batch batch = {count, all + first, seq + first, pos + first};
        cr_assert_eq(vqkvc_forward(f->model, &f->cache, &batch, NULL,
                                   logits + (size_t)first * (size_t)f->vocab, &f->err),
                     VQKVC_OK, "%s", f->err.msg);
        first += count;
    }
    for (int s = 0; s < 3; s += at_once ? 3 : 1) {
        static const int seqs[3] = {0, 1, 2};
        vqkvc_batch batch = {at_once ? 3 : 1, ids + 300 + s, seqs + s, lengths + s};
        cr_assert_eq(vqkvc_forward(f->model, &f->cache, &batch, NULL,
                                   logits + (size_t)(n + s) * (size_t)f->vocab, &f->err),
                     VQKVC_OK, "%s", f->err.msg);
    }
}

Test(forward, sequences_in_one_batch_do_not_see_each_other)
{
    enum { N = 67 };
    int32_t *ids = read_words("tests/data/ref7m_tokens.i32", N_TEXT);
    float *together = new_logits(N, VOCAB), *apart = new_logits(N, VOCAB);
    fixture f = open_fixture(REF7M, 0, 3, 64);
    run_three(&f, ids, 1, together);
    for (int s = 0; s < 3; s++)
        f.cache.trim(f.cache.self, s, 0, &f.err);
    run_three(&f, ids, 0, apart);
    cr_assert_leq(max_difference(together, apart, (size_t)N * VOCAB), 1e-4);
    close_fixture(&f);
    free(apart);
    free(together);
    free(ids);
}

/* Also with matrices that are widened panel by panel (1 byte for kept ones). */
Test(forward, thread_count_and_kept_weights_change_no_byte)
{
    enum { N = 67 };
    int32_t *ids = read_words("tests/data/ref7m_tokens.i32", N_TEXT);
    float *first = new_logits(N, VOCAB), *other = new_logits(N, VOCAB);
    for (int threads = 1; threads <= 4; threads++) {
        omp_set_num_threads(threads < 4 ? threads : 2);
        fixture f = open_fixture(REF7M, threads < 4 ? 0 : 1, 3, 64);
        run_three(&f, ids, 1, threads == 1 ? first : other);
        if (threads > 1)
            cr_assert_eq(memcmp(first, other, (size_t)N * VOCAB * sizeof *first), 0,
                         "run %d differs", threads);
        close_fixture(&f);
    }
    free(other);
    free(first);
    free(ids);
}

Test(forward, trim_forgets)
{
    fixture f = open_fixture("tests/data/toy_llama.gguf", 0, 1, 32);
    const int32_t ids[12] = {1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45};
    const int32_t others[12] = {1, 5, 9, 13, 60, 59, 58, 57, 56};
    float a[12 * 64], b[12 * 64];
    feed(&f, ids, 0, 0, 12, a);
    size_t full = f.cache.bytes(f.cache.self);
    f.cache.trim(f.cache.self, 0, 4, &f.err);
    cr_assert_eq(f.cache.bytes(f.cache.self) * 3, full);
    feed(&f, others, 0, 4, 5, b);
    f.cache.trim(f.cache.self, 0, 4, &f.err);
    feed(&f, ids, 0, 4, 8, b + (size_t)4 * 64);
    cr_assert_leq(max_difference(a + (size_t)4 * 64, b + (size_t)4 * 64, (size_t)8 * 64), 1e-5);
    close_fixture(&f);
}

/* ---- what the tap sees ---- */

typedef struct watch {
    const vqkvc_geometry *geometry;
    float k[2][8 * 16]; /* [layer][n, n_kv_heads * head_dim] as tapped, then rotated here */
    vqkvc_cache inner;
    double worst; /* largest difference between what was tapped and what was appended */
    int appended, residuals;
} watch;

static vqkvc_code watch_tap(void *self, int layer, int n, const int *seq, const int *pos,
                            const float *q, const float *k, const float *v, vqkvc_err *err)
{
    watch *w = self;
    size_t width = (size_t)w->geometry->n_kv_heads * (size_t)w->geometry->head_dim;
    (void)q, (void)v, (void)err;
    for (int t = 0; t < n; t++) {
        float *row = w->k[layer] + (size_t)t * width;
        memcpy(row, k + (size_t)t * width, width * sizeof *row);
        vqkvc_rope_rotate(w->geometry, pos[t], row, w->geometry->n_kv_heads);
        for (size_t i = 0; i < width; i++)
            row[i] *= w->geometry->rope_mscale; /* every channel of this model rotates */
        cr_assert_eq(seq[t], 0);
    }
    return VQKVC_OK;
}

static vqkvc_code watch_residual(void *self, int layer, int n, int d_model, const float *x,
                                 vqkvc_err *err)
{
    watch *w = self;
    (void)err;
    cr_assert_eq(layer, w->residuals);
    w->residuals++;
    cr_assert_eq(w->appended, 8 * layer);
    cr_assert_eq(n, 8);
    cr_assert_eq(d_model, w->geometry->d_model);
    if (layer == 0) /* what the first layer adds to is the embedding */
        cr_assert_arr_eq(x, x + (size_t)5 * (size_t)d_model, (size_t)d_model * sizeof *x);
    return VQKVC_OK;
}

static vqkvc_code watch_append(void *self, int seq, int layer, int pos, int n, const float *k,
                               const float *v, vqkvc_err *err)
{
    watch *w = self;
    size_t width = (size_t)w->geometry->n_kv_heads * (size_t)w->geometry->head_dim;
    w->worst = fmax(w->worst, max_difference(w->k[layer], k, (size_t)n * width));
    w->appended += n;
    return w->inner.append(w->inner.self, seq, layer, pos, n, k, v, err);
}

static vqkvc_code watch_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                               float *out, float scale, vqkvc_err *err)
{
    watch *w = self;
    return w->inner.attend(w->inner.self, seq, layer, pos, n, q, out, scale, err);
}

Test(forward, tapped_keys_are_the_appended_ones_before_rotation)
{
    fixture f = open_fixture("tests/data/toy_yarn.gguf", 0, 1, 8);
    watch w = {.geometry = vqkvc_model_geometry(f.model), .inner = f.cache};
    vqkvc_cache cache = {.self = &w, .append = watch_append, .attend = watch_attend};
    vqkvc_tap tap = {.self = &w, .qkv = watch_tap, .residual = watch_residual};
    const int32_t ids[8] = {1, 5, 9, 13, 17, 1, 25, 29};
    const int seq[8] = {0}, pos[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    vqkvc_batch batch = {8, ids, seq, pos};
    cr_assert_gt(w.geometry->rope_mscale, 1.1f);
    cr_assert_eq(vqkvc_forward(f.model, &cache, &batch, &tap, NULL, &f.err), VQKVC_OK);
    cr_assert_eq(w.appended, 16);
    cr_assert_eq(w.residuals, 2);
    cr_assert_leq(w.worst, 1e-5);
    close_fixture(&f);
}

/* ---- refusals ---- */

static void expect_refusal(fixture *f, vqkvc_batch batch, const char *words)
{
    vqkvc_err err = {0};
    vqkvc_code code = vqkvc_forward(f->model, &f->cache, &batch, NULL, NULL, &err);
    cr_assert_eq(code, VQKVC_E_USAGE);
    cr_assert_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
}

Test(forward, impossible_batches_are_refused)
{
    fixture f = open_fixture("tests/data/toy_llama.gguf", 0, 2, 2);
    const int32_t ids[3] = {1, 2, 3}, unknown[1] = {64}, negative[1] = {-1};
    const int zero[3] = {0, 0, 0}, mixed[3] = {0, 1, 0}, order[3] = {0, 1, 2};
    const int jump[3] = {0, 2, 3}, third[1] = {2}, below[1] = {-1};
    expect_refusal(&f, (vqkvc_batch){0, ids, zero, order}, "0 tokens");
    expect_refusal(&f, (vqkvc_batch){1, unknown, zero, order}, "id 64");
    expect_refusal(&f, (vqkvc_batch){1, negative, zero, order}, "id -1");
    expect_refusal(&f, (vqkvc_batch){1, ids, below, order}, "sequence -1");
    expect_refusal(&f, (vqkvc_batch){1, ids, third, order}, "sequence 2");
    expect_refusal(&f, (vqkvc_batch){3, ids, zero, jump}, "jumps");
    expect_refusal(&f, (vqkvc_batch){3, ids, mixed, order}, "not neighbours");
    expect_refusal(&f, (vqkvc_batch){3, ids, zero, order}, "2 tokens");
    expect_refusal(&f, (vqkvc_batch){1, ids, zero, order + 1}, "cannot append");
    close_fixture(&f);
}
