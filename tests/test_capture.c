/* The capture stage: statistics, the sample, sources, resuming, dumps and blobs. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/half.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "capture/blob.h"
#include "capture/choose.h"
#include "capture/import.h"
#include "capture/run.h"
#include "capture/stats.h"

static const char MODEL[] = "examples/models/ref7m.gguf";
static const vqkvc_log QUIET = {.level = -1};

static vqkvc_model *open_model(void)
{
    vqkvc_err err = {0};
    vqkvc_model *model = NULL;
    vqkvc_matrix_init();
    omp_set_num_threads(1); /* steps of a few tokens gain nothing from more */
    cr_assert_eq(vqkvc_model_open(&model, MODEL, 0, &err), VQKVC_OK, "%s", err.msg);
    return model;
}

static vqkvc_buf bytes_of(const vqkvc_capture *c)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    cr_assert_eq(vqkvc_capture_write(c, &buf, &err), VQKVC_OK, "%s", err.msg);
    return buf;
}

static int same_bytes(const vqkvc_buf *a, const vqkvc_buf *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_write_file(path, bytes, n, &err), VQKVC_OK, "%s", err.msg);
}

/* A name in the temporary directory that no other test process has. */
static const char *scratch(char *path, size_t cap, const char *what)
{
    const char *dir = getenv("TMPDIR");
    snprintf(path, cap, "%s/vqkvc_capture_%ld_%s", dir != NULL ? dir : "/tmp", (long)getpid(),
             what);
    return path;
}

static vqkvc_buf run_bytes(vqkvc_model *model, const vqkvc_source *s, const vqkvc_capture_params *p)
{
    vqkvc_err err = {0};
    vqkvc_capture c;
    cr_assert_eq(vqkvc_capture_run(model, s, p, &QUIET, &c, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_buf buf = bytes_of(&c);
    vqkvc_capture_free(&c);
    return buf;
}

/* 200 ids in a file, four windows of 48 and BOS, and a rest. */
static vqkvc_source ids_source(const vqkvc_model *model, const vqkvc_capture_params *p)
{
    char path[256];
    int32_t ids[200];
    vqkvc_err err = {0};
    vqkvc_source s;
    vqkvc_rng rng = vqkvc_rng_make(7, 0);
    for (int i = 0; i < 200; i++)
        ids[i] = 5 + (int32_t)vqkvc_rng_below(&rng, 1000);
    const char *paths[] = {scratch(path, sizeof path, "ids.i32")};
    write_bytes(path, ids, sizeof ids);
    cr_assert_eq(vqkvc_source_ids(&s, model, paths, 1, p, &QUIET, &err), VQKVC_OK, "%s", err.msg);
    unlink(path);
    return s;
}

static const vqkvc_capture_params SMALL = {
    .n_tokens = 180, .n_sample = 60, .window = 49, .shard = 1, .batch = 3};

/* ---- choice and statistics ---- */

Test(choose, every_element_is_equally_likely_and_in_order)
{
    int hits[10] = {0};
    for (uint64_t seed = 0; seed < 5000; seed++) {
        int64_t out[4];
        vqkvc_choose(seed, VQKVC_STREAM_SAMPLE, 10, 4, out);
        for (int i = 0; i < 4; i++) {
            hits[out[i]]++;
            cr_assert(i == 0 || out[i] > out[i - 1]);
        }
    }
    /* 2000 expected, standard deviation 35 */
    for (int i = 0; i < 10; i++)
        cr_expect(abs(hits[i] - 2000) < 175, "element %d: %d", i, hits[i]);
}

static vqkvc_geometry toy_geometry(void)
{
    vqkvc_geometry g = {.name = "toy",
                        .arch = "llama",
                        .n_layers = 2,
                        .d_model = 24,
                        .n_heads = 4,
                        .n_kv_heads = 2,
                        .head_dim = 6,
                        .rope_layout = VQKVC_ROPE_HALVES,
                        .n_rot = 4,
                        .rope_mscale = 1};
    for (int i = 0; i < 2; i++)
        g.rope_freq[i] = pow(10000, -2.0 * i / 4);
    return g;
}

/* Closed statistics of n tokens of x. */
static vqkvc_stats stats_of(const vqkvc_geometry *g, vqkvc_kind kind, int n, const float *x)
{
    vqkvc_err err = {0};
    vqkvc_stats_scratch sc;
    int width = vqkvc_kind_width(g, kind);
    vqkvc_stats s = {0, vqkvc_alloc((size_t)width, 8, &err),
                     vqkvc_alloc(vqkvc_stats_moment_size(g, kind), 8, &err)};
    cr_assert_eq(vqkvc_stats_scratch_alloc(&sc, g, &err), VQKVC_OK);
    for (int i = 0; i < n; i += VQKVC_STATS_CHUNK)
        vqkvc_stats_add(&s, g, kind, n - i < VQKVC_STATS_CHUNK ? n - i : VQKVC_STATS_CHUNK,
                        x + (size_t)i * (size_t)width, &sc);
    vqkvc_stats_finish(&s, g, kind);
    vqkvc_stats_scratch_free(&sc);
    return s;
}

static void free_stats(vqkvc_stats *s)
{
    free(s->mean);
    free(s->moment);
}

Test(stats, merged_parts_equal_the_whole_and_the_definition)
{
    vqkvc_geometry g = toy_geometry();
    enum { N = 300, CUT = 171 };
    static float x[N * 24];
    vqkvc_rng rng = vqkvc_rng_make(3, 0);
    vqkvc_matrix_init();
    for (size_t i = 0; i < sizeof x / sizeof x[0]; i++)
        x[i] = (float)vqkvc_rng_normal(&rng) + 3;
    for (int k = 0; k < 3; k++) {
        vqkvc_kind kind = (vqkvc_kind)k;
        size_t w = (size_t)vqkvc_kind_width(&g, kind), d = kind == VQKVC_QUERY ? 6 : w;
        vqkvc_stats whole = stats_of(&g, kind, N, x), a = stats_of(&g, kind, CUT, x);
        vqkvc_stats b = stats_of(&g, kind, N - CUT, x + CUT * w), none = stats_of(&g, kind, 0, x);
        vqkvc_stats_merge(&none, &a, &g, kind);
        vqkvc_stats_merge(&none, &b, &g, kind);
        cr_assert_eq(none.n, N);
        for (size_t i = 0; i < vqkvc_stats_moment_size(&g, kind); i++) {
            size_t block = i / (d * d), row = i / d % d, column = i % d;
            double direct = 0;
            for (size_t t = 0; t < N; t++)
                direct += (double)x[t * w + block * d + row] * x[t * w + block * d + column] / N;
            cr_assert_float_eq(none.moment[i], whole.moment[i], 1e-12 * fabs(whole.moment[i]));
            cr_assert_float_eq(whole.moment[i], direct, 1e-12 * fabs(direct));
            cr_assert_eq(whole.moment[i], whole.moment[block * d * d + column * d + row]);
        }
        for (size_t i = 0; i < w; i++)
            cr_assert_float_eq(none.mean[i], whole.mean[i], 1e-12 * fabs(whole.mean[i]));
        free_stats(&whole), free_stats(&a), free_stats(&b), free_stats(&none);
    }
}

Test(stats, value_metric_is_the_gram_matrix_of_the_output_projection)
{
    vqkvc_geometry g = toy_geometry();
    vqkvc_err err = {0};
    static float wo[24 * 24], metric[2 * 36];
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    vqkvc_matrix_init();
    for (int i = 0; i < 24 * 24; i++)
        wo[i] = (float)vqkvc_rng_normal(&rng);
    cr_assert_eq(vqkvc_value_metric(&g, wo, metric, &err), VQKVC_OK);
    for (int kv = 0; kv < 2; kv++)
        for (int i = 0; i < 6; i++)
            for (int j = 0; j < 6; j++) {
                double sum = 0;
                for (int h = 2 * kv; h < 2 * kv + 2; h++)
                    for (int r = 0; r < 24; r++)
                        sum += (double)wo[r * 24 + h * 6 + i] * wo[r * 24 + h * 6 + j] / 2;
                cr_assert_float_eq(metric[kv * 36 + i * 6 + j], sum, 1e-4);
            }
}

/* ---- runs ---- */

typedef struct keys {
    int layer, width, len;
    float k[64 * 512];
    double residual, n_residual;
} keys;

static vqkvc_code keep_keys(void *self, int layer, int n, const int *seq, const int *pos,
                            const float *q, const float *k, const float *v, vqkvc_err *err)
{
    keys *all = self;
    (void)seq, (void)q, (void)v, (void)err;
    if (layer == all->layer)
        memcpy(all->k + pos[0] * all->width, k, (size_t)n * (size_t)all->width * sizeof(float));
    return VQKVC_OK;
}

static vqkvc_code keep_residual(void *self, int layer, int n, int d, const float *x, vqkvc_err *err)
{
    keys *all = self;
    (void)err;
    for (int i = 0; layer == all->layer && i < n * d; i++)
        all->residual += (double)x[i] * x[i];
    all->n_residual += layer == all->layer ? n * d : 0;
    return VQKVC_OK;
}

/* Keys of one layer of one sequence of s, by a forward pass of its own. */
static void direct_keys(vqkvc_model *model, const vqkvc_source *s, int doc, keys *out)
{
    int seq[64] = {0}, pos[64];
    vqkvc_err err = {0};
    vqkvc_cache cache;
    vqkvc_tap tap = {out, keep_keys, keep_residual};
    out->width = vqkvc_kind_width(vqkvc_model_geometry(model), VQKVC_KEY);
    out->len = (int)(s->start[doc + 1] - s->start[doc]);
    cr_assert(out->len <= 64 && out->width <= 512);
    for (int i = 0; i < out->len; i++)
        pos[i] = i;
    vqkvc_batch batch = {out->len, s->ids + s->start[doc], seq, pos};
    cr_assert_eq(vqkvc_cache_exact(&cache, vqkvc_model_geometry(model), 1, 64, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_forward(model, &cache, &batch, &tap, NULL, &err), VQKVC_OK, "%s", err.msg);
    cache.free(cache.self);
}

Test(run, sample_is_the_stated_choice_of_what_the_model_computes)
{
    vqkvc_model *model = open_model();
    vqkvc_source s = ids_source(model, &SMALL);
    vqkvc_err err = {0};
    vqkvc_capture c;
    cr_assert_eq(vqkvc_capture_run(model, &s, &SMALL, &QUIET, &c, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(c.n_sample, 60);
    cr_assert_eq(c.n_tokens, 180);
    cr_assert_eq(s.n_seq, 4);
    int64_t chosen[60], rank = 0, at = 0;
    vqkvc_choose(1, VQKVC_STREAM_SAMPLE, 180 - 4 * 4, 60, chosen);
    int layer = vqkvc_model_geometry(model)->n_layers - 1;
    static keys all;
    static float read[512];
    double mean = 0;
    for (int doc = 0; doc < 4; doc++) {
        all.layer = layer;
        direct_keys(model, &s, doc, &all);
        for (int pos = 0; pos < all.len; pos++) {
            mean += all.k[pos * all.width] / 180.0;
            if (pos < 4 || at == 60 || chosen[at] != rank++)
                continue;
            cr_assert_eq(c.doc[at], doc);
            cr_assert_eq(c.pos[at], pos);
            vqkvc_capture_read(&c, VQKVC_KEY, layer, (int)at++, 1, read);
            for (int i = 0; i < all.width; i++) {
                float k = all.k[pos * all.width + i];
                cr_assert_float_eq(read[i], k, fabsf(k) * 0x1p-10f + 1e-6f);
            }
        }
    }
    cr_assert_eq(at, 60);
    cr_assert_float_eq(c.stats[VQKVC_KEY][layer].mean[0], mean, 1e-6);
    cr_assert_eq(c.stats[VQKVC_QUERY][0].n, 180);
    cr_assert_float_eq(c.residual_ms[layer], all.residual / all.n_residual,
                       1e-5 * c.residual_ms[layer]);
    cr_assert(c.value_metric[0] > 0);
    vqkvc_capture_free(&c);
    vqkvc_source_free(&s);
    vqkvc_model_close(model);
}

Test(run, bytes_do_not_depend_on_threads)
{
    vqkvc_model *model = open_model();
    vqkvc_err err = {0};
    vqkvc_capture_params p = SMALL;
    vqkvc_source ids, self;
    p.n_tokens = 50;
    p.window = 16;
    ids = ids_source(model, &p);
    cr_assert_eq(vqkvc_source_self(&self, model, &p, &err), VQKVC_OK);
    vqkvc_buf first[2] = {{0}, {0}};
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        vqkvc_buf now[2] = {run_bytes(model, &ids, &p), run_bytes(model, &self, &p)};
        for (int i = 0; i < 2; i++) {
            if (threads == 1) {
                first[i] = now[i];
                continue;
            }
            cr_expect(same_bytes(&first[i], &now[i]), "source %d, %d threads", i, threads);
            free(now[i].data);
        }
    }
    free(first[0].data);
    free(first[1].data);
    vqkvc_source_free(&ids);
    vqkvc_source_free(&self);
    vqkvc_model_close(model);
}

/* A store of shards that breaks off after `left` new ones. */
typedef struct shelf {
    vqkvc_buf shard[16];
    int left, loaded;
} shelf;

static vqkvc_code put_shard(void *self, int shard, const vqkvc_capture *part, vqkvc_err *err)
{
    shelf *s = self;
    if (s->left-- == 0)
        return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "enough");
    return vqkvc_capture_write(part, &s->shard[shard], err);
}

static vqkvc_code get_shard(void *self, int shard, vqkvc_capture *part, int *found, vqkvc_err *err)
{
    shelf *s = self;
    *found = s->shard[shard].len > 0;
    s->loaded += *found;
    return *found ? vqkvc_capture_load(part, s->shard[shard].data, s->shard[shard].len, err)
                  : VQKVC_OK;
}

static void check_resumed(vqkvc_model *model, const vqkvc_source *s, vqkvc_capture_params p)
{
    vqkvc_err err = {0};
    vqkvc_capture c;
    shelf store = {.left = 1};
    vqkvc_buf whole = run_bytes(model, s, &p);
    p.self = &store;
    p.shard_done = put_shard;
    p.shard_load = get_shard;
    cr_assert_eq(vqkvc_capture_run(model, s, &p, &QUIET, &c, &err), VQKVC_E_INTERRUPTED);
    vqkvc_capture_free(&c);
    store.left = -1;
    vqkvc_buf resumed = run_bytes(model, s, &p);
    cr_expect_eq(store.loaded, 1);
    cr_expect(same_bytes(&whole, &resumed));
    p.seed = 2; /* these shards are another capture's */
    err = (vqkvc_err){0};
    cr_expect_eq(vqkvc_capture_run(model, s, &p, &QUIET, &c, &err), VQKVC_E_STORE);
    vqkvc_capture_free(&c);
    for (int i = 0; i < 16; i++)
        free(store.shard[i].data);
    free(whole.data);
    free(resumed.data);
}

Test(run, resumed_capture_has_the_bytes_of_an_uninterrupted_one)
{
    vqkvc_model *model = open_model();
    vqkvc_err err = {0};
    vqkvc_capture_params p = SMALL;
    p.window = 16;
    p.n_tokens = 90; /* six sequences, the last one short: two rounds of three */
    vqkvc_source ids = ids_source(model, &p), self;
    cr_assert_eq(vqkvc_source_self(&self, model, &p, &err), VQKVC_OK);
    cr_assert_eq(self.n_seq, 6);
    check_resumed(model, &ids, p);
    check_resumed(model, &self, p);
    vqkvc_source_free(&ids);
    vqkvc_source_free(&self);
    vqkvc_model_close(model);
}

static vqkvc_code stop_after_first(void *self, int shard, const vqkvc_capture *part, vqkvc_err *err)
{
    (void)part, (void)err;
    *(int *)self = shard + 1;
    raise(SIGINT);
    return VQKVC_OK;
}

Test(run, interrupt_ends_it_between_steps)
{
    vqkvc_model *model = open_model();
    vqkvc_err err = {0};
    vqkvc_capture c;
    vqkvc_capture_params p = SMALL;
    int done = 0;
    vqkvc_source s = ids_source(model, &p);
    p.self = &done;
    p.shard_done = stop_after_first;
    vqkvc_catch_interrupts();
    cr_expect_eq(vqkvc_capture_run(model, &s, &p, &QUIET, &c, &err), VQKVC_E_INTERRUPTED);
    cr_expect_eq(done, 1);
    vqkvc_capture_free(&c);
    vqkvc_source_free(&s);
    vqkvc_model_close(model);
}

/* ---- sources ---- */

Test(source, text_becomes_windows_with_bos)
{
    vqkvc_model *model = open_model();
    vqkvc_err err = {0};
    vqkvc_source s;
    char path[256], text[4000];
    const char *paths[] = {scratch(path, sizeof path, "words.txt")};
    for (int i = 0; i < 400; i++)
        memcpy(text + 10 * i, "many words", 10);
    write_bytes(path, text, sizeof text);
    vqkvc_capture_params p = {.n_tokens = 100, .window = 32};
    cr_assert_eq(vqkvc_source_text(&s, model, paths, 1, &p, &QUIET, &err), VQKVC_OK, "%s", err.msg);
    cr_expect_eq(s.start[s.n_seq], 100);
    cr_expect_eq(s.n_seq, 4);
    for (int i = 0; i < s.n_seq; i++)
        cr_expect_eq(s.ids[s.start[i]], vqkvc_token_bos(model));
    vqkvc_source_free(&s);
    p.n_tokens = 1000000; /* more than there is: all of it */
    size_t n = 0;
    cr_assert_eq(vqkvc_tokenize(model, text, sizeof text, 0, NULL, 0, &n, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_source_text(&s, model, paths, 1, &p, &QUIET, &err), VQKVC_OK, "%s", err.msg);
    cr_expect_eq(s.start[s.n_seq], (int64_t)n + s.n_seq);
    vqkvc_source_free(&s);
    write_bytes(path, "", 0);
    cr_expect_eq(vqkvc_source_text(&s, model, paths, 1, &p, &QUIET, &err), VQKVC_E_USAGE);
    vqkvc_source_free(&s);
    unlink(path);
    vqkvc_model_close(model);
}

Test(source, bad_token_id_is_named_with_file_and_offset)
{
    vqkvc_model *model = open_model();
    vqkvc_err err = {0}, odd = {0};
    vqkvc_source s;
    char path[256];
    int32_t ids[] = {1, 2, 1 << 30};
    const char *paths[] = {scratch(path, sizeof path, "bad.i32")};
    write_bytes(path, ids, sizeof ids);
    cr_expect_eq(vqkvc_source_ids(&s, model, paths, 1, &SMALL, &QUIET, &err), VQKVC_E_FORMAT);
    cr_expect(strstr(err.msg, "bad.i32") != NULL && strstr(err.msg, "offset 8") != NULL, "%s",
              err.msg);
    vqkvc_source_free(&s);
    write_bytes(path, ids, 7);
    cr_expect_eq(vqkvc_source_ids(&s, model, paths, 1, &SMALL, &QUIET, &odd), VQKVC_E_FORMAT);
    vqkvc_source_free(&s);
    unlink(path);
    vqkvc_model_close(model);
}

/* ---- dumps ---- */

enum { DUMP_TOKENS = 200 };

/* A dump of toy_geometry(): un-rotated keys x, written rotated if post; queries if has_q. `poison`
 * goes into the value of layer 1, head 1 at token 77. */
static void write_dump(const char *path, int post, int has_q, float poison)
{
    vqkvc_geometry g = toy_geometry();
    vqkvc_rng rng = vqkvc_rng_make(11, 0);
    vqkvc_buf head = {0}, data = {0};
    vqkvc_buf_printf(&head,
                     "{\"__metadata__\":{\"format\":\"vqkvc-dump\",\"version\":\"1\",\"name\":"
                     "\"toy\",\"n_layers\":\"2\",\"n_heads\":\"4\",\"n_kv_heads\":\"2\","
                     "\"head_dim\":\"6\",\"d_model\":\"24\",\"rope_layout\":\"halves\","
                     "\"n_rot\":\"4\",\"rope_base\":\"10000\",\"rope_mscale\":\"%d\","
                     "\"keys\":\"%s\"}",
                     post ? 2 : 1, post ? "post" : "pre");
    for (int layer = 0; layer < 2; layer++) {
        for (int kind = 0; kind < 2 + has_q; kind++) {
            int width = vqkvc_kind_width(&g, (vqkvc_kind)kind);
            size_t begin = data.len;
            for (int t = 0; t < DUMP_TOKENS; t++) {
                float x[24];
                for (int i = 0; i < width; i++)
                    x[i] = (float)vqkvc_rng_normal(&rng);
                if (post && kind != VQKVC_VALUE) {
                    vqkvc_rope_rotate(&g, t, x, width / 6);
                    for (int i = 0; i < width; i++)
                        x[i] *= i % 6 < 4 ? 2.0f : 1.0f;
                }
                if (layer == 1 && kind == VQKVC_VALUE && t == 77 && poison != 0)
                    x[6] = poison;
                vqkvc_buf_put(&data, x, (size_t)width * sizeof(float));
            }
            vqkvc_buf_printf(&head,
                             ",\"layer.%d.%c\":{\"dtype\":\"F32\",\"shape\":[%d,%d,6],"
                             "\"data_offsets\":[%zu,%zu]}",
                             layer, "kvq"[kind], DUMP_TOKENS, width / 6, begin, data.len);
        }
    }
    vqkvc_buf_puts(&head, "}");
    uint64_t n = head.len;
    vqkvc_buf file = {0};
    vqkvc_buf_put(&file, &n, sizeof n);
    vqkvc_buf_put(&file, head.data, head.len);
    vqkvc_buf_put(&file, data.data, data.len);
    write_bytes(path, file.data, file.len);
    free(head.data), free(data.data), free(file.data);
}

static vqkvc_code import_dump(int post, int has_q, float poison, vqkvc_capture *c, vqkvc_err *err)
{
    char path[256];
    vqkvc_capture_params p = {.n_sample = 50};
    vqkvc_matrix_init();
    write_dump(scratch(path, sizeof path, "dump.safetensors"), post, has_q, poison);
    vqkvc_code code = vqkvc_capture_import(path, &p, &QUIET, c, err);
    unlink(path);
    return code;
}

Test(import, rotated_and_unrotated_dumps_give_the_same_capture)
{
    vqkvc_err err = {0};
    vqkvc_capture pre, post;
    cr_assert_eq(import_dump(0, 1, 0, &pre, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(import_dump(1, 1, 0, &post, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(pre.n_sample, 50);
    cr_assert_eq(pre.n_tokens, DUMP_TOKENS);
    cr_assert_null(pre.value_metric);
    for (int i = 0; i < 50; i++) {
        cr_assert(pre.pos[i] >= 4 && pre.pos[i] == post.pos[i]);
        for (int kind = 0; kind < 3; kind++) {
            float a[24], b[24];
            vqkvc_capture_read(&pre, (vqkvc_kind)kind, 1, i, 1, a);
            vqkvc_capture_read(&post, (vqkvc_kind)kind, 1, i, 1, b);
            for (int j = 0; j < vqkvc_kind_width(&pre.geometry, (vqkvc_kind)kind); j++)
                cr_assert_float_eq(a[j], b[j], 2e-3f * (1 + fabsf(a[j])));
        }
    }
    for (int i = 0; i < 144; i++)
        cr_assert_float_eq(pre.stats[VQKVC_KEY][0].moment[i], post.stats[VQKVC_KEY][0].moment[i],
                           1e-5);
    vqkvc_capture_free(&pre);
    vqkvc_capture_free(&post);
}

Test(import, vectors_are_those_of_the_dump)
{
    vqkvc_err err = {0};
    vqkvc_capture c;
    vqkvc_rng rng = vqkvc_rng_make(11, 0);
    cr_assert_eq(import_dump(0, 0, 0, &c, &err), VQKVC_OK, "%s", err.msg);
    int at = 0;
    for (int t = 0; t < DUMP_TOKENS; t++) { /* layer.0.k comes first in the dump */
        float read[12];
        int kept = at < c.n_sample && c.pos[at] == t;
        if (kept)
            vqkvc_capture_read(&c, VQKVC_KEY, 0, at++, 1, read);
        for (int i = 0; i < 12; i++) {
            float x = (float)vqkvc_rng_normal(&rng);
            cr_assert(!kept || read[i] == vqkvc_f16_to_f32(vqkvc_f32_to_f16(x)));
        }
    }
    cr_assert_eq(at, 50);
    cr_assert_eq(c.stats[VQKVC_QUERY][0].n, 0);
    float none[24] = {1};
    vqkvc_capture_read(&c, VQKVC_QUERY, 0, 0, 1, none);
    cr_assert_eq(none[0], 0);
    vqkvc_buf bytes = bytes_of(&c);
    vqkvc_capture again = {0};
    cr_assert_eq(vqkvc_capture_load(&again, bytes.data, bytes.len, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_null(again.sample[VQKVC_QUERY][0]);
    free(bytes.data);
    vqkvc_capture_free(&again);
    vqkvc_capture_free(&c);
}

Test(import, what_fp16_cannot_hold_is_named)
{
    const float poison[] = {NAN, INFINITY, -70000};
    for (int i = 0; i < 3; i++) {
        vqkvc_err err = {0};
        vqkvc_capture c;
        cr_expect_eq(import_dump(0, 1, poison[i], &c, &err), VQKVC_E_NUMERIC);
        cr_expect(strstr(err.msg, "layer 1: value of head 1, channel 0, at token 77") != NULL, "%s",
                  err.msg);
        vqkvc_capture_free(&c);
    }
}

Test(import, a_value_that_is_none_is_found_at_the_offset_in_the_message)
{
    for (int post = 0; post < 2; post++) {
        char path[256];
        vqkvc_err err = {0};
        vqkvc_capture c;
        vqkvc_buf file = {0};
        size_t offset = 0;
        float found = 0;
        write_dump(scratch(path, sizeof path, "nan.safetensors"), post, 1, INFINITY);
        cr_assert_eq(vqkvc_read_file(path, 1 << 20, &file, &err), VQKVC_OK);
        cr_expect_eq(vqkvc_capture_import(path, &(vqkvc_capture_params){0}, &QUIET, &c, &err),
                     VQKVC_E_NUMERIC);
        const char *at = strstr(err.msg, "layer.1.v, byte offset ");
        cr_assert_not_null(at, "%s", err.msg);
        cr_assert_eq(sscanf(at, "layer.1.v, byte offset %zu", &offset), 1);
        cr_assert_leq(offset + sizeof found, file.len);
        memcpy(&found, file.data + offset, sizeof found);
        cr_expect(isinf(found), "%s: it is %g there", err.msg, (double)found);
        vqkvc_capture_free(&c);
        free(file.data);
        unlink(path);
    }
}

/* Imports the dump with the first `from` in its header overwritten by `to`, of the same length. */
static vqkvc_code import_edited(const char *from, const char *to, vqkvc_err *err)
{
    char path[256];
    vqkvc_capture_params p = {0};
    vqkvc_buf file = {0};
    vqkvc_capture c;
    vqkvc_matrix_init();
    write_dump(scratch(path, sizeof path, "edited.safetensors"), 0, 1, 0);
    cr_assert_eq(vqkvc_read_file(path, 1 << 20, &file, err), VQKVC_OK);
    char *at = memmem(file.data, file.len, from, strlen(from));
    cr_assert_not_null(at);
    memcpy(at, to, strlen(from));
    write_bytes(path, file.data, file.len);
    vqkvc_code code = vqkvc_capture_import(path, &p, &QUIET, &c, err);
    vqkvc_capture_free(&c);
    free(file.data);
    unlink(path);
    return code;
}

Test(import, malformed_dump_is_refused_by_name)
{
    static const char *const cases[][3] = {
        {"layer.1.k", "layer.1.z", "layer.1.k"},
        {"\"n_heads\":\"4\"", "\"n_heads\":\"3\"", "n_heads"},
        {"\"n_layers\":\"2\"", "\"n_layers\":\"1\"", "names"},
        {"\"head_dim\":\"6\"", "\"head_dim\":\"x\"", "head_dim"},
        {"\"n_rot\":\"4\"", "\"n_rot\":\"3\"", "n_rot"},
        {"10000", "-1000", "rope_base"},
        {"halves", "halfes", "rope_layout"},
        {"vqkvc-dump", "vqkvc-dumb", "format"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        vqkvc_err err = {0};
        cr_expect_eq(import_edited(cases[i][0], cases[i][1], &err), VQKVC_E_FORMAT, "%s",
                     cases[i][1]);
        cr_expect(strstr(err.msg, cases[i][2]) != NULL, "%s: %s", cases[i][1], err.msg);
    }
}

/* ---- blobs ---- */

static vqkvc_capture toy_capture(void)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry();
    vqkvc_capture c;
    vqkvc_rng rng = vqkvc_rng_make(2, 0);
    cr_assert_eq(vqkvc_capture_alloc(&c, &g, 5, &err), VQKVC_OK);
    c.n_sample = 5;
    c.n_tokens = 9;
    snprintf(c.source, sizeof c.source, "toy");
    for (int kind = 0; kind < 3; kind++)
        for (int layer = 0; layer < 2; layer++) {
            c.stats[kind][layer].n = 9;
            c.stats[kind][layer].mean[0] = vqkvc_rng_normal(&rng);
            if (kind != VQKVC_QUERY)
                c.sample[kind][layer][7] = (uint16_t)vqkvc_rng_below(&rng, 30000);
        }
    c.value_metric = vqkvc_arena_alloc(&c.arena, 2 * 2 * 36, sizeof(float), &err);
    c.value_metric[3] = 4;
    return c;
}

Test(blob, round_trip_is_byte_identical)
{
    vqkvc_err err = {0};
    vqkvc_capture c = toy_capture(), again = {0};
    vqkvc_buf bytes = bytes_of(&c);
    cr_assert_eq(vqkvc_capture_load(&again, bytes.data, bytes.len, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_buf second = bytes_of(&again);
    cr_assert(same_bytes(&bytes, &second));
    cr_assert_eq(again.sample[VQKVC_VALUE][1][7], c.sample[VQKVC_VALUE][1][7]);
    cr_assert_eq(again.stats[VQKVC_QUERY][1].mean[0], c.stats[VQKVC_QUERY][1].mean[0]);
    cr_assert_null(again.sample[VQKVC_QUERY][1]); /* queries are not sampled */
    cr_assert_eq(again.value_metric[3], 4);
    cr_assert_eq(again.geometry.rope_freq[1], c.geometry.rope_freq[1]);
    free(bytes.data), free(second.data);
    vqkvc_capture_free(&c), vqkvc_capture_free(&again);
}

Test(blob, every_truncation_and_every_flipped_byte_is_an_error)
{
    vqkvc_capture c = toy_capture();
    vqkvc_buf bytes = bytes_of(&c);
    for (size_t n = 0; n < bytes.len; n++) {
        vqkvc_err err = {0};
        vqkvc_capture bad = {0};
        cr_assert_neq(vqkvc_capture_load(&bad, bytes.data, n, &err), VQKVC_OK, "cut at %zu", n);
        vqkvc_capture_free(&bad);
        bytes.data[n] = (char)(bytes.data[n] ^ 0x40);
        err = (vqkvc_err){0};
        cr_assert_neq(vqkvc_capture_load(&bad, bytes.data, bytes.len, &err), VQKVC_OK,
                      "byte %zu flipped", n);
        vqkvc_capture_free(&bad);
        bytes.data[n] = (char)(bytes.data[n] ^ 0x40);
    }
    free(bytes.data);
    vqkvc_capture_free(&c);
}

/* Damage that a forger has signed: it may load, but must not crash or allocate without end. */
Test(blob, forged_parts_do_no_harm)
{
    vqkvc_capture c = toy_capture();
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    for (int part = 0; part < 2; part++) {
        vqkvc_err ok = {0};
        vqkvc_buf head = {0}, bytes = {0};
        cr_assert_eq(vqkvc_capture_part_write(&c, 0, &head, &ok), VQKVC_OK);
        cr_assert_eq(vqkvc_capture_part_write(&c, part, &bytes, &ok), VQKVC_OK);
        for (size_t i = 0; i < bytes.len - 32; i++) {
            for (size_t v = 0; v < sizeof values; v++) {
                vqkvc_err err = {0};
                vqkvc_capture bad = {0};
                char old = bytes.data[i];
                bytes.data[i] = (char)values[v];
                vqkvc_hash sum = vqkvc_hash_bytes(bytes.data, bytes.len - 32);
                memcpy(bytes.data + bytes.len - 32, sum.hex, 32);
                if (part > 0)
                    vqkvc_capture_part_read(&bad, 0, head.data, head.len, &err);
                vqkvc_capture_part_read(&bad, part, bytes.data, bytes.len, &err);
                vqkvc_capture_free(&bad);
                bytes.data[i] = old;
            }
        }
        free(head.data), free(bytes.data);
    }
    vqkvc_capture_free(&c);
}

Test(blob, one_layer_loads_without_the_others)
{
    vqkvc_err err = {0};
    vqkvc_capture c = toy_capture(), part = {0};
    vqkvc_buf head = {0}, layer = {0};
    int at = 1 + VQKVC_VALUE * 2 + 1; /* values of layer 1 */
    cr_assert_eq(vqkvc_capture_part_write(&c, 0, &head, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_capture_part_write(&c, at, &layer, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_capture_part_read(&part, 0, head.data, head.len, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_capture_part_read(&part, at, layer.data, layer.len, &err), VQKVC_OK);
    cr_assert_eq(part.sample[VQKVC_VALUE][1][7], c.sample[VQKVC_VALUE][1][7]);
    cr_assert_null(part.sample[VQKVC_KEY][0]);
    cr_assert_eq(vqkvc_capture_part_read(&part, 1, layer.data, layer.len, &err), VQKVC_E_FORMAT);
    free(head.data), free(layer.data);
    vqkvc_capture_free(&c), vqkvc_capture_free(&part);
}
