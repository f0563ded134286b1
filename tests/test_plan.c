/* Plans: validation, accounting, storage, presets, and the reference arithmetic. */
#include "plan/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/half.h"
#include "base/matrix.h"
#include "base/rng.h"

/* ---- helpers ---- */

static vqkvc_geometry toy_geometry(int n_layers, int n_kv_heads, int head_dim)
{
    vqkvc_geometry g = {.name = "toy",
                        .arch = "llama",
                        .n_layers = n_layers,
                        .d_model = 2 * n_kv_heads * head_dim,
                        .n_heads = 2 * n_kv_heads,
                        .n_kv_heads = n_kv_heads,
                        .head_dim = head_dim,
                        .rope_layout = VQKVC_ROPE_HALVES,
                        .n_rot = head_dim,
                        .rope_mscale = 1};
    for (int i = 0; i < head_dim / 2; i++)
        g.rope_freq[i] = pow(10000, -2.0 * i / head_dim);
    return g;
}

static void make_preset(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_plan_preset(plan, g, scheme, NULL, &err), VQKVC_OK, "%s", err.msg);
}

static void fill_normal(float *x, size_t n, uint64_t stream)
{
    vqkvc_rng rng = vqkvc_rng_make(7, stream);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)vqkvc_rng_normal(&rng);
}

static void *need(size_t n, size_t size)
{
    vqkvc_err err = {0};
    void *p = vqkvc_alloc(n, size, &err);
    cr_assert_not_null(p);
    return p;
}

/* One token's worth of every value. */
static size_t values_of(const vqkvc_geometry *g)
{
    return (size_t)g->n_layers * g->n_kv_heads * g->head_dim;
}

static double mean_square(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - (b == NULL ? 0 : b[i])) * ((double)a[i] - (b == NULL ? 0 : b[i]));
    return sum / (double)n;
}

/* K and V of n tokens through the first n_streams streams. */
typedef struct trial {
    int n;
    size_t values; /* n tokens */
    float *k, *v, *k_hat, *v_hat;
} trial;

static trial trial_new(const vqkvc_plan *plan, int n)
{
    trial t = {.n = n, .values = (size_t)n * values_of(&plan->geometry)};
    t.k = need(t.values, sizeof(float));
    t.v = need(t.values, sizeof(float));
    t.k_hat = need(t.values, sizeof(float));
    t.v_hat = need(t.values, sizeof(float));
    fill_normal(t.k, t.values, 1);
    fill_normal(t.v, t.values, 2);
    return t;
}

static void trial_run(trial *t, const vqkvc_plan *plan, int n_streams, int64_t base)
{
    vqkvc_err err = {0};
    vqkvc_plan_reference(plan, n_streams, t->n, base, t->k, t->v, t->k_hat, t->v_hat, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
}

static void trial_free(trial *t)
{
    free(t->k);
    free(t->v);
    free(t->k_hat);
    free(t->v_hat);
}

static void random_table(vqkvc_plan *plan, int index, double scale, uint64_t stream)
{
    vqkvc_table *t = &plan->tables[index];
    vqkvc_rng rng = vqkvc_rng_make(11, stream);
    for (size_t i = 0; i < (size_t)t->rows * t->cols; i++)
        t->f16[i] = vqkvc_f32_to_f16((float)(scale * vqkvc_rng_normal(&rng)));
}

static int add_table(vqkvc_plan *plan, int rows, int cols, const char *name)
{
    vqkvc_err err = {0};
    int index = vqkvc_plan_add_table(plan, rows, cols, &err, "%s", name);
    cr_assert_geq(index, 0, "%s", err.msg);
    return index;
}

/* A random orthonormal matrix [d, d] into two tables: Gram-Schmidt over random columns. */
static void orthonormal_tables(vqkvc_plan *plan, int d, int enc, int dec)
{
    double *q = need((size_t)d * d, sizeof *q);
    vqkvc_rng rng = vqkvc_rng_make(3, (uint64_t)enc);
    for (int j = 0; j < d; j++) {
        for (int i = 0; i < d; i++)
            q[j * d + i] = vqkvc_rng_normal(&rng);
        for (int p = 0; p <= j; p++) {
            double dot = 0;
            for (int i = 0; i < d; i++)
                dot += q[j * d + i] * q[p * d + i];
            for (int i = 0; i < d; i++)
                q[j * d + i] =
                    p == j ? q[j * d + i] / sqrt(dot) : q[j * d + i] - dot * q[p * d + i];
        }
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++)
            plan->tables[enc].f16[i * d + j] = plan->tables[dec].f16[i * d + j] =
                vqkvc_f32_to_f16((float)q[j * d + i]);
    free(q);
}

/* The toy that most tests use: 2 layers, 1 KV head of 16. Stream 0 holds K of both layers in a
 * basis (frame block, RMS gain in 8 bits, VQ in two stages, then wider groups), streams 1 and 2
 * code what it leaves of each layer (16-bit gains), streams 3 and 4 hold V (UNI with ABSMAX). */
static void make_toy(vqkvc_plan *plan)
{
    vqkvc_err err = {0};
    *plan = (vqkvc_plan){.scheme = "toy", .n_sink = 1, .n_recent = 16, .block = 16};
    plan->geometry = toy_geometry(2, 1, 16);
    strcpy(plan->calibration.hex, vqkvc_hash_text("toy").hex);
    int mean = add_table(plan, 1, 32, "mean"), enc = add_table(plan, 32, 32, "enc");
    int dec = add_table(plan, 32, 32, "dec"), own = add_table(plan, 8 * 2, 16, "book own");
    int wide = add_table(plan, 1, 2 * 16, "book wide"), rest = add_table(plan, 16, 4, "book rest");
    random_table(plan, mean, 0.3, 1);
    orthonormal_tables(plan, 32, enc, dec);
    random_table(plan, own, 1, 2);
    random_table(plan, wide, 1, 3);
    random_table(plan, rest, 1, 4);
    vqkvc_member keys[2] = {{VQKVC_PART_K, 0, 0}, {VQKVC_PART_K, 1, 0}};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, "K shared", 2, keys, &err);
    s->frame = VQKVC_FRAME_BLOCK;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->mean = mean;
    s->enc = enc;
    s->dec = dec;
    s->gain = VQKVC_GAIN_RMS;
    s->gain_bits = 8;
    s->gain_width = 32;
    s->gain_lo = -6;
    s->gain_step = 0.0625f;
    vqkvc_run *r = vqkvc_plan_set_runs(plan, s, 2, &err);
    r[0] = (vqkvc_run){VQKVC_CODER_VQ, 0, 8, 1, 4, 2, own};
    r[1] = (vqkvc_run){VQKVC_CODER_VQ, 8, 12, 2, 4, 1, wide};
    for (int i = 0; i < 2; i++) {
        s = vqkvc_plan_add_stream(plan, i == 0 ? "K 0 own" : "K 1 own", 1, &keys[i], &err);
        s->frame = VQKVC_FRAME_BLOCK;
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 16;
        s->gain_width = 8;
        r = vqkvc_plan_set_runs(plan, s, 2, &err);
        r[0] = (vqkvc_run){VQKVC_CODER_UNI, 0, 8, 1, 3, 1, -1};
        r[1] = (vqkvc_run){VQKVC_CODER_VQ, 8, 8, 1, 2, 2, rest};
    }
    for (int i = 0; i < 2; i++) {
        vqkvc_member value = {VQKVC_PART_V, i, 0};
        s = vqkvc_plan_add_stream(plan, i == 0 ? "V 0" : "V 1", 1, &value, &err);
        s->gain = VQKVC_GAIN_ABSMAX;
        s->gain_bits = 16;
        s->gain_width = 16;
        r = vqkvc_plan_set_runs(plan, s, 1, &err);
        r[0] = (vqkvc_run){VQKVC_CODER_UNI, 0, 16, 1, 4, 1, -1};
    }
    cr_assert_eq(vqkvc_plan_validate(plan, &err), VQKVC_OK, "%s", err.msg);
}

/* ---- validation ---- */

#define MUTATIONS(X)                                                                               \
    X(p->scheme[0] = '\0', "scheme")                                                               \
    X(p->geometry.n_layers = 0, "n_layers")                                                        \
    X(p->geometry.n_layers = 3, "no stream holds K of layer 2")                                    \
    X(p->geometry.n_kv_heads = 2, "no stream holds K of layer 0 head 1")                           \
    X(p->geometry.n_heads = 0, "n_heads")                                                          \
    X((p->geometry.n_kv_heads = 2, p->geometry.n_heads = 3), "multiple of n_kv_heads")             \
    X(p->geometry.head_dim = 1024, "head_dim")                                                     \
    X(p->geometry.head_dim = 32, "n_in is 32")                                                     \
    X(p->geometry.n_rot = 18, "n_rot")                                                             \
    X(p->geometry.n_rot = 15, "odd")                                                               \
    X(p->geometry.rope_freq[3] = NAN, "rope_freq[3]")                                              \
    X(p->geometry.rope_mscale = 0, "rope_mscale")                                                  \
    X(p->geometry.weights_hash.hex[0] = 'g', "weights_hash")                                       \
    X(p->block = 48, "power of two")                                                               \
    X(p->block = 512, "block is 512")                                                              \
    X(p->n_sink = -1, "n_sink")                                                                    \
    X(p->n_recent = -1, "n_recent")                                                                \
    X(p->calibration.hex[31] = '\0', "calibration")                                                \
    X(p->n_streams = 0, "no streams")                                                              \
    X(p->n_streams = 4, "no stream holds V of layer 1 head 0")                                     \
    X(p->tables[0].rows = 0, "table 0 (mean)")                                                     \
    X(p->tables[3].f16[5] = 0x7c00, "table 3 (book own): value [0, 5]")                            \
    X(s->members[1].layer = 2, "member 1: layer 2 of 2")                                           \
    X(s->members[1].head = 1, "member 1: head 1 of 1")                                             \
    X(s->members[1].layer = 0, "out of order or named twice")                                      \
    X(s->members[1].part = VQKVC_PART_V, "mixed")                                                  \
    X(s->frame = VQKVC_FRAME_PRE, "stream 1 (K 0 own): frame is block")                            \
    X(p->streams[3].frame = VQKVC_FRAME_BLOCK, "frame of values")                                  \
    X(s->mean = 1, "mean: table enc is [32, 32], not [1, 32]")                                     \
    X(s->enc = -1, "enc")                                                                          \
    X(s->dec = 6, "dec: table 6")                                                                  \
    X(s->n_latents = 31, "enc: table enc")                                                         \
    X(s->n_latents = 33, "n_latents")                                                              \
    X(s->transform = VQKVC_TRANSFORM_IDENTITY, "has enc or dec")                                   \
    X((s->transform = VQKVC_TRANSFORM_HADAMARD, s->n_latents = 16), "n_latents (16) is not n_in")  \
    X(s->gain_bits = 12, "gain_bits")                                                              \
    X(s->gain_width = 0, "gain_width")                                                             \
    X(s->gain_width = 24, "does not divide")                                                       \
    X(s->gain_width = 16, "run 1: latents 8..31 are in two gain groups")                           \
    X(s->gain_step = 0, "gain_step")                                                               \
    X(s->gain_lo = NAN, "gain_lo")                                                                 \
    X(s->gain = VQKVC_GAIN_SIGNMAX, "signmax")                                                     \
    X(s->gain = VQKVC_GAIN_ABSMAX, "coder uni only")                                               \
    X(r[1].first = 9, "run 1: first is 9")                                                         \
    X(r[1].groups = 11, "runs cover 30 of 32")                                                     \
    X(r[1].groups = 13, "run 1: it ends at latent 34")                                             \
    X(r[1].width = 0, "width")                                                                     \
    X(r[0].bits = 17, "bits")                                                                      \
    X(r[0].bits = 3, "run 0: book: table book own is [16, 16], not [16, 8]")                       \
    X(r[0].stages = 3, "book")                                                                     \
    X(r[0].stages = 0, "stages")                                                                   \
    X(r[0].book = 17, "table 17")                                                                  \
    X(p->streams[1].runs[0].bits = 9, "stream 1 (K 0 own): run 0: bits is 9")                      \
    X(p->streams[1].runs[0].book = 2, "no book")                                                   \
    X(p->streams[3].runs[0].bits = 1, "absmax takes 2 bits")                                       \
    X((p->streams[3].runs[0].coder = VQKVC_CODER_F16, p->streams[3].runs[0].bits = 16,             \
       p->streams[3].gain = VQKVC_GAIN_RMS),                                                       \
      "takes no gain")

Test(plan, validation_names_each_broken_field)
{
    enum {
#define X(mutation, words) +1
        N = 0 MUTATIONS(X)
#undef X
    };
    for (int i = 0; i < N; i++) {
        vqkvc_plan plan, *p = &plan;
        vqkvc_err err = {0};
        make_toy(p);
        vqkvc_stream *s = &p->streams[0];
        vqkvc_run *r = s->runs;
        const char *expected = "";
        int at = 0;
#define X(mutation, words)                                                                         \
    if (at++ == i) {                                                                               \
        mutation;                                                                                  \
        expected = words;                                                                          \
    }
        MUTATIONS(X)
#undef X
        cr_expect_neq(vqkvc_plan_validate(p, &err), VQKVC_OK, "mutation %d (%s) passed", i,
                      expected);
        cr_expect_not_null(strstr(err.msg, expected), "mutation %d: '%s' lacks '%s'", i, err.msg,
                           expected);
        vqkvc_plan_free(p);
    }
}

Test(plan, hadamard_needs_a_power_of_two)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(1, 1, 48);
    make_preset(&plan, &g, "f16");
    plan.streams[0].transform = VQKVC_TRANSFORM_HADAMARD;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "n_in (48)"), "%s", err.msg);
    vqkvc_plan_free(&plan);
}

/* ---- accounting ---- */

Test(plan, presets_cost_what_they_are_known_for)
{
    static const struct {
        const char *scheme;
        double bits;
    } known[] = {{"f16", 16}, {"q8_0", 8.5}, {"q4_0", 4.5}, {"higgs2", 2.125}};
    vqkvc_geometry g = toy_geometry(2, 1, 128);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        vqkvc_plan plan;
        vqkvc_cost cost;
        make_preset(&plan, &g, known[i].scheme);
        vqkvc_plan_cost(&plan, 1 << 20, &cost);
        cr_expect_float_eq(cost.code_bits + cost.gain_bits, known[i].bits, 1e-9, "%s: %g + %g",
                           known[i].scheme, cost.code_bits, cost.gain_bits);
        cr_expect_float_eq(cost.scan_bits, known[i].bits, 1e-9);
        vqkvc_plan_free(&plan);
    }
}

Test(plan, cost_counts_shared_streams_windows_and_tables)
{
    vqkvc_plan plan;
    vqkvc_cost cost;
    make_toy(&plan);
    vqkvc_plan_cost(&plan, 100, &cost);
    double values = 64, shared = 16 * 4 + 12 * 4, own = 8 * 3 + 8 * 2 * 2, v = 16 * 4;
    cr_assert_float_eq(cost.code_bits, (shared + 2 * own + 2 * v) / values, 1e-12);
    cr_assert_float_eq(cost.gain_bits, (8 + 2 * 32 + 2 * 16) / values, 1e-12);
    cr_assert_float_eq(cost.scan_bits, (2 * (shared + 8) + 2 * (own + 32) + 2 * (v + 16)) / values,
                       1e-12);
    double exact = 1 + 16 + 7.5;
    cr_assert_float_eq(cost.window_bits, exact * (16 - cost.code_bits - cost.gain_bits) / 100,
                       1e-12);
    size_t bytes = 2 * (32 + 2 * 1024 + 16 * 16 + 32 + 64);
    cr_assert_eq(cost.table_bytes, bytes);
    cr_assert_float_eq(cost.table_bits, (double)bytes * 8 / (100 * values), 1e-12);
    cr_assert_float_eq(cost.total_bits,
                       cost.code_bits + cost.gain_bits + cost.window_bits + cost.table_bits, 1e-12);
    vqkvc_plan_cost(&plan, 10, &cost);
    cr_assert_float_eq(cost.window_bits + cost.code_bits + cost.gain_bits, 16, 1e-12,
                       "a context inside the window is exact");
    vqkvc_plan_free(&plan);
}

/* ---- text and storage ---- */

Test(plan, text_has_one_line_a_stream)
{
    vqkvc_plan plan;
    vqkvc_buf out = {0};
    make_toy(&plan);
    vqkvc_plan_print(&plan, &out);
    int lines = 0;
    for (size_t i = 0; i < out.len; i++)
        lines += out.data[i] == '\n';
    cr_assert_eq(lines, 5 + plan.n_streams, "%s", out.data);
    cr_assert_not_null(strstr(out.data, "K 0-1 h0"), "%s", out.data);
    cr_assert_not_null(strstr(out.data, " 8x1:4b*2 12x2:4b\n"), "%s", out.data);
    cr_assert_not_null(strstr(out.data, " 8x1:u3 8x1:2b*2\n"), "%s", out.data);
    free(out.data);
    vqkvc_plan_free(&plan);
}

static void write_plan(const vqkvc_plan *plan, vqkvc_buf *out)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_plan_write(plan, out, &err), VQKVC_OK, "%s", err.msg);
}

Test(plan, storage_is_byte_identical_after_a_round_trip)
{
    static const char *const schemes[] = {NULL, "f16", "q8_0", "q4_0", "higgs2"};
    vqkvc_geometry g = toy_geometry(2, 3, 64);
    memcpy(g.name, "caf\xc3", 5); /* a character cut short, as fixed buffers do */
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        vqkvc_plan plan, again;
        vqkvc_buf first = {0}, second = {0};
        vqkvc_err err = {0};
        vqkvc_hash a, b;
        if (schemes[i] == NULL)
            make_toy(&plan);
        else
            make_preset(&plan, &g, schemes[i]);
        write_plan(&plan, &first);
        cr_assert_eq(vqkvc_plan_read(&again, first.data, first.len, &err), VQKVC_OK, "%s", err.msg);
        write_plan(&again, &second);
        cr_assert_eq(first.len, second.len);
        cr_assert_eq(memcmp(first.data, second.data, first.len), 0);
        vqkvc_plan_hash(&plan, &a, &err);
        vqkvc_plan_hash(&again, &b, &err);
        cr_assert_str_eq(a.hex, b.hex);
        cr_assert_eq(memcmp(again.geometry.rope_freq, plan.geometry.rope_freq,
                            sizeof plan.geometry.rope_freq),
                     0);
        free(first.data);
        free(second.data);
        vqkvc_plan_free(&plan);
        vqkvc_plan_free(&again);
    }
}

static vqkvc_code read_copy(const char *bytes, size_t n, vqkvc_err *err)
{
    /* An exact copy on the heap lets a sanitizer see a read behind the end. */
    char *exact = malloc(n == 0 ? 1 : n);
    cr_assert_not_null(exact);
    memcpy(exact, bytes, n);
    vqkvc_plan plan;
    vqkvc_code code = vqkvc_plan_read(&plan, exact, n, err);
    free(exact);
    if (code == VQKVC_OK)
        vqkvc_plan_free(&plan);
    else
        cr_assert(plan.arena.head == NULL && err->msg[0] != '\0');
    return code;
}

Test(plan, storage_refuses_every_truncation_and_flipped_table_bit)
{
    vqkvc_plan plan;
    vqkvc_buf bytes = {0};
    make_toy(&plan);
    write_plan(&plan, &bytes);
    size_t json = strlen(bytes.data);
    for (size_t n = 0; n < bytes.len; n += n + 8 < json ? 7 : 101) {
        vqkvc_err err = {0};
        cr_expect_eq(read_copy(bytes.data, n, &err), VQKVC_E_FORMAT, "%zu of %zu bytes", n,
                     bytes.len);
    }
    for (size_t at = json; at < bytes.len; at += 37) {
        vqkvc_err err = {0};
        bytes.data[at] ^= 4;
        cr_expect_eq(read_copy(bytes.data, bytes.len, &err), VQKVC_E_FORMAT, "byte %zu", at);
        bytes.data[at] ^= 4;
    }
    vqkvc_err err = {0};
    cr_expect_eq(read_copy(bytes.data, bytes.len, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_buf_put(&bytes, "", 1);
    cr_expect_eq(read_copy(bytes.data, bytes.len, &err), VQKVC_E_FORMAT, "a byte too many");
    free(bytes.data);
    vqkvc_plan_free(&plan);
}

/* Replaces the first `from` in the JSON by `to` and reads; the message holds `words`. */
static void expect_refusal(const vqkvc_buf *bytes, const char *from, const char *to,
                           const char *words)
{
    vqkvc_buf changed = {0};
    vqkvc_err err = {0};
    char *at = strstr(bytes->data, from);
    cr_assert_not_null(at, "no %s in the JSON", from);
    size_t before = (size_t)(at - bytes->data), behind = before + strlen(from);
    vqkvc_buf_put(&changed, bytes->data, before);
    vqkvc_buf_puts(&changed, to);
    vqkvc_buf_put(&changed, bytes->data + behind, bytes->len - behind);
    cr_expect_eq(read_copy(changed.data, changed.len, &err), VQKVC_E_FORMAT, "%s passed", to);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
    free(changed.data);
}

Test(plan, storage_names_the_field_that_is_wrong)
{
    vqkvc_plan plan;
    vqkvc_buf bytes = {0};
    make_toy(&plan);
    write_plan(&plan, &bytes);
    expect_refusal(&bytes, "\"version\":1", "\"version\":2", "$.version is 2");
    expect_refusal(&bytes, "\"block\":16", "\"block\":\"16\"", "$.block is no integer");
    expect_refusal(&bytes, "\"block\":16", "\"blocks\":16", "$.block is missing");
    expect_refusal(&bytes, "\"block\":16", "\"block\":16,\"x\":1", "$ has 1 unknown fields");
    expect_refusal(&bytes, "\"block\":16", "\"block\":16,\"block\":16", "duplicate");
    expect_refusal(&bytes, "\"head_dim\":16", "\"head_dim\":99999999999", "$.geometry.head_dim");
    expect_refusal(&bytes, "\"rope_mscale\":1.0", "\"rope_mscale\":1e300", "rope_mscale");
    expect_refusal(&bytes, "\"rope_freq\":[1.0,", "\"rope_freq\":[", "rope_freq has 7 entries");
    expect_refusal(&bytes, "\"members\":[[0,0]", "\"members\":[[0]", "$.streams[0].members");
    expect_refusal(&bytes, "\"coder\":\"vq\"", "\"coder\":\"vx\"", "$.streams[0].runs[0].coder");
    expect_refusal(&bytes, "\"frame\":\"block\"", "\"frame\":7", "$.streams[0].frame is no text");
    expect_refusal(&bytes, "\"gain\":\"rms\"", "\"gain\":null", "$.streams[0].gain");
    expect_refusal(&bytes, "\"cols\":32", "\"cols\":2147483647", "bytes are left");
    expect_refusal(&bytes, "\"part\":\"K\"", "\"part\":\"V\"", "stream 0");
    free(bytes.data);
    vqkvc_plan_free(&plan);
}

/* ---- presets ---- */

Test(plan, presets_refuse_what_they_cannot_do)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(1, 1, 96);
    cr_assert_eq(vqkvc_plan_preset(&plan, &g, "higgs2", NULL, &err), VQKVC_E_UNSUPPORTED);
    cr_assert_not_null(strstr(err.msg, "head_dim"), "%s", err.msg);
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_plan_preset(&plan, &g, "q5_9", NULL, &err), VQKVC_E_USAGE);
    err = (vqkvc_err){0};
    g.n_layers = 0;
    cr_assert_neq(vqkvc_plan_preset(&plan, &g, "q8_0", NULL, &err), VQKVC_OK);
    cr_assert(plan.arena.head == NULL);
}

Test(plan, presets_adapt_to_odd_shapes)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(1, 1, 80);
    vqkvc_window window = {8, 0, 128};
    cr_assert_eq(vqkvc_plan_preset(&plan, &g, "q4_0", &window, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(plan.streams[0].gain_width, 20, "the largest divisor of 80 up to 32");
    cr_assert(plan.n_sink == 8 && plan.n_recent == 32 && plan.block == 128);
    vqkvc_plan_free(&plan);
    g = toy_geometry(1, 6, 64);
    make_preset(&plan, &g, "higgs2");
    cr_assert_eq(plan.n_streams, 6, "6 heads of 64 make 3 blocks of 128 for each of K and V");
    cr_assert_eq(plan.streams[0].n_in, 128);
    vqkvc_plan_free(&plan);
    g = toy_geometry(1, 32, 128);
    make_preset(&plan, &g, "higgs2");
    cr_assert_eq(plan.streams[0].n_in, 1024);
    vqkvc_plan_free(&plan);
}

/* ---- reference arithmetic ---- */

Test(plan, f16_is_exact_to_binary16)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(2, 2, 64);
    make_preset(&plan, &g, "f16");
    trial t = trial_new(&plan, 5);
    trial_run(&t, &plan, plan.n_streams, 1000);
    for (size_t i = 0; i < t.values; i++) {
        cr_assert_eq(t.k_hat[i], vqkvc_f16_to_f32(vqkvc_f32_to_f16(t.k[i])));
        cr_assert_eq(t.v_hat[i], vqkvc_f16_to_f32(vqkvc_f32_to_f16(t.v[i])));
    }
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

/* llama.cpp's quantize_row_q8_0 and back, written from its description (ggml-quants.c). */
static void plain_q8_0(const float *x, float *y)
{
    float amax = 0;
    for (int i = 0; i < 32; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    float d = amax / 127, id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++)
        y[i] = roundf(x[i] * id) * vqkvc_f16_to_f32(vqkvc_f32_to_f16(d));
}

/* quantize_row_q4_0 and back: the value of largest magnitude becomes -8. */
static void plain_q4_0(const float *x, float *y)
{
    float amax = 0, max = 0;
    for (int i = 0; i < 32; i++)
        if (amax < fabsf(x[i])) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    float d = max / -8, id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++) {
        int q = (int)(x[i] * id + 8.5f);
        y[i] = (float)((q > 15 ? 15 : q) - 8) * vqkvc_f16_to_f32(vqkvc_f32_to_f16(d));
    }
}

static void compare_with_plain(const char *scheme, void (*plain)(const float *x, float *y))
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 2, 64);
    make_preset(&plan, &g, scheme);
    trial t = trial_new(&plan, 64);
    memset(t.k, 0, 32 * sizeof *t.k); /* a group of zeros */
    for (int i = 32; i < 64; i++)
        t.k[i] = (float)(i % 9) - 4; /* ties in magnitude and in rounding */
    trial_run(&t, &plan, plan.n_streams, 0);
    for (size_t i = 0; i < t.values; i += 32) {
        float k[32], v[32];
        plain(t.k + i, k);
        plain(t.v + i, v);
        for (int c = 0; c < 32; c++) {
            cr_assert_eq(t.k_hat[i + c], k[c], "%s K %zu + %d", scheme, i, c);
            cr_assert_eq(t.v_hat[i + c], v[c], "%s V %zu + %d", scheme, i, c);
        }
    }
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan, q8_0_is_that_of_llama_cpp)
{
    compare_with_plain("q8_0", plain_q8_0);
}

Test(plan, q4_0_is_that_of_llama_cpp)
{
    compare_with_plain("q4_0", plain_q4_0);
}

/* The best 16-point grid in the plane has a distortion of 0.1068 or so for Gaussian vectors. */
Test(plan, higgs_distortion_on_gaussian_data)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 2, 128);
    make_preset(&plan, &g, "higgs2");
    trial t = trial_new(&plan, 256);
    trial_run(&t, &plan, plan.n_streams, 64);
    double k = mean_square(t.k, t.k_hat, t.values) / mean_square(t.k, NULL, t.values);
    double v = mean_square(t.v, t.v_hat, t.values) / mean_square(t.v, NULL, t.values);
    cr_log_info("higgs2: relative error %.4f of K, %.4f of V", k, v);
    cr_assert(k > 0.100 && k < 0.115, "K: %g", k);
    cr_assert(v > 0.100 && v < 0.115, "V: %g", v);
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan, hadamard_is_the_orthonormal_sylvester_matrix)
{
    enum { D = 16 };
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(1, 1, D);
    make_preset(&plan, &g, "f16");
    plan.streams[0].transform = VQKVC_TRANSFORM_HADAMARD;
    for (int i = 0; i < D; i++) {
        float x[D] = {0}, x_hat[D];
        int32_t codes[D];
        x[i] = 4; /* its latents are +-1 */
        vqkvc_stream_reference(&plan, &plan.streams[0], 1, x, x_hat, codes, &err);
        for (int j = 0; j < D; j++) {
            int minus = __builtin_popcount((unsigned)(i & j)) & 1;
            cr_assert_eq(codes[j], minus ? 0xbc00 : 0x3c00, "row %d, column %d", i, j);
            cr_assert_eq(x_hat[j], x[j]);
        }
    }
    vqkvc_plan_free(&plan);
}

/* Rotating into a frame and back is the identity up to rounding, whatever is coded there. */
Test(plan, frames_agree_for_exact_codes)
{
    static const vqkvc_frame frames[] = {VQKVC_FRAME_PRE, VQKVC_FRAME_POST, VQKVC_FRAME_BLOCK};
    static const vqkvc_rope_layout layouts[] = {VQKVC_ROPE_NONE, VQKVC_ROPE_INTERLEAVED,
                                                VQKVC_ROPE_HALVES};
    for (int i = 0; i < 9; i++) {
        vqkvc_plan plan;
        vqkvc_geometry g = toy_geometry(2, 2, 32);
        g.rope_layout = layouts[i / 3];
        g.n_rot = 16;
        make_preset(&plan, &g, "f16");
        for (int s = 0; s < plan.n_streams; s++)
            if (plan.streams[s].members[0].part == VQKVC_PART_K)
                plan.streams[s].frame = frames[i % 3];
        trial t = trial_new(&plan, 16);
        trial_run(&t, &plan, plan.n_streams, 4096);
        for (size_t c = 0; c < t.values; c++)
            cr_assert_float_eq(t.k_hat[c], t.k[c], 4e-3, "layout %d, frame %d: %g, not %g", i / 3,
                               i % 3, (double)t.k_hat[c], (double)t.k[c]);
        trial_free(&t);
        vqkvc_plan_free(&plan);
    }
}

/* In frame PRE a key that was rotated by its position costs and decodes like the un-rotated one;
 * in frame BLOCK a block decodes alike wherever it starts, up to the rotation of its base. */
Test(plan, frames_take_the_rotation_out)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(1, 1, 32);
    make_preset(&plan, &g, "q4_0");
    trial at0 = trial_new(&plan, 16), moved = trial_new(&plan, 16);
    const int64_t base = 640;
    for (int frame = VQKVC_FRAME_PRE; frame <= VQKVC_FRAME_BLOCK; frame += 2) {
        plan.streams[0].frame = (vqkvc_frame)frame;
        memcpy(moved.k, at0.k, at0.values * sizeof *at0.k);
        for (int t = 0; t < 16; t++)
            vqkvc_rope_rotate(&g, (double)base, moved.k + t * 32, 1);
        trial_run(&at0, &plan, plan.n_streams, 0);
        trial_run(&moved, &plan, plan.n_streams, base);
        for (int t = 0; t < 16; t++)
            vqkvc_rope_rotate(&g, -(double)base, moved.k_hat + t * 32, 1);
        int differ = 0; /* codes flip where two are equally near */
        for (size_t c = 0; c < at0.values; c++)
            differ += fabsf(moved.k_hat[c] - at0.k_hat[c]) > 1e-4f;
        cr_assert_leq(differ, 2, "frame %d", frame);
    }
    trial_free(&at0);
    trial_free(&moved);
    vqkvc_plan_free(&plan);
}

/* The toy's codes once more, by hand: dense products, exhaustive search. */
Test(plan, basis_gain_and_residual_stages_follow_the_definition)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    const vqkvc_stream *s = &plan.streams[0];
    const vqkvc_table *mean = &plan.tables[s->mean], *enc = &plan.tables[s->enc];
    float x[3 * 32], x_hat[3 * 32];
    int32_t codes[3 * 28];
    fill_normal(x, 3 * 32, 5);
    memset(x + 32, 0, 32 * sizeof *x);
    for (int i = 0; i < 32; i++) /* token 1 is the mean: latents and gain are 0 */
        x[32 + i] = vqkvc_f16_to_f32(mean->f16[i]);
    cr_assert_eq(vqkvc_stream_codes(s), 28);
    cr_assert_eq(vqkvc_stream_reference(&plan, s, 3, x, x_hat, codes, &err), VQKVC_OK);
    for (int t = 0; t < 3; t++) {
        double z[32] = {0}, rms = 0;
        for (int j = 0; j < 32; j++) {
            for (int i = 0; i < 32; i++)
                z[j] += ((double)x[t * 32 + i] - vqkvc_f16_to_f32(mean->f16[i])) *
                        vqkvc_f16_to_f32(enc->f16[i * 32 + j]);
            rms += z[j] * z[j] / 32;
        }
        double step = round((log2(sqrt(rms)) + 6) / 0.0625);
        double gain = rms == 0 ? exp2(-6) : exp2(-6 + 0.0625 * step);
        for (int group = 0; group < 8; group++) {
            double left = z[group] / gain;
            for (int stage = 0; stage < 2; stage++) {
                const uint16_t *row = plan.tables[s->runs[0].book].f16 + (group * 2 + stage) * 16;
                int best = 0;
                for (int c = 1; c < 16; c++)
                    if (fabs(left - vqkvc_f16_to_f32(row[c])) <
                        fabs(left - vqkvc_f16_to_f32(row[best])))
                        best = c;
                left -= vqkvc_f16_to_f32(row[best]);
                cr_assert_eq(codes[t * 28 + group * 2 + stage], best, "token %d group %d stage %d",
                             t, group, stage);
            }
        }
    }
    cr_assert_lt(mean_square(x, x_hat, 32), 0.5 * mean_square(x, NULL, 32));
    vqkvc_plan_free(&plan);
}

Test(plan, a_gain_of_zero_reconstructs_zero)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    float x[16], x_hat[16];
    int32_t codes[24];
    for (int i = 0; i < 16; i++)
        x[i] = i < 8 ? 1e-9f : 1e30f; /* below and above binary16 */
    vqkvc_stream_reference(&plan, &plan.streams[1], 1, x, x_hat, codes, &err);
    for (int i = 0; i < 16; i++)
        cr_assert_eq(x_hat[i], 0, "channel %d", i);
    cr_assert_eq(codes[0], 4, "the level of 0 among 8");
    vqkvc_plan_free(&plan);
}

/* Streams in coding order each take off what they code: more streams, less error; none, zero. */
Test(plan, later_streams_code_what_is_left)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_toy(&plan);
    trial t = trial_new(&plan, 64);
    trial_run(&t, &plan, 0, 64);
    cr_assert_eq(mean_square(t.k_hat, NULL, t.values), 0);
    trial_run(&t, &plan, 1, 64);
    double shared = mean_square(t.k, t.k_hat, t.values);
    cr_assert_eq(mean_square(t.v_hat, NULL, t.values), 0, "V comes later");
    trial_run(&t, &plan, plan.n_streams, 64);
    double all = mean_square(t.k, t.k_hat, t.values);
    cr_assert_lt(all, 0.6 * shared, "%g after %g", all, shared);
    cr_assert_neq(
        vqkvc_plan_reference(&plan, plan.n_streams + 1, t.n, 0, t.k, t.v, t.k_hat, t.v_hat, &err),
        VQKVC_OK);
    trial_free(&t);
    vqkvc_plan_free(&plan);
}

Test(plan, apply_agrees_with_the_reference)
{
    enum { N = 2500 }; /* several turns */
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_matrix_init();
    make_toy(&plan);
    const vqkvc_stream *s = &plan.streams[0];
    float *x = need(N * 32, sizeof *x), *a = need(N * 32, sizeof *a), *b = need(N * 32, sizeof *b);
    int32_t *ca = need(N * 28, sizeof *ca), *cb = need(N * 28, sizeof *cb);
    fill_normal(x, N * 32, 9);
    cr_assert_eq(vqkvc_stream_reference(&plan, s, N, x, a, ca, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_stream_apply(&plan, s, N, x, b, cb, &err), VQKVC_OK);
    int differ = 0;
    for (int i = 0; i < N * 28; i++)
        differ += ca[i] != cb[i];
    cr_assert_leq(differ, 5, "%d codes of %d differ", differ, N * 28);
    cr_assert_lt(mean_square(a, b, N * 32), 1e-4);
    cr_assert_eq(vqkvc_stream_apply(&plan, s, N, x, x, NULL, &err), VQKVC_OK);
    cr_assert_eq(memcmp(x, b, N * 32 * sizeof *x), 0, "in place");
    free(x);
    free(a);
    free(b);
    free(ca);
    free(cb);
    vqkvc_plan_free(&plan);
}
