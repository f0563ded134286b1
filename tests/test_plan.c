/* Plans: validation, accounting, storage and presets. */
#include "plan_toy.h"

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
    X(p->stretch[255] = 1, "stretch of pair 255 is 1, but there are")                              \
    X(p->landmarks = 12, "landmarks (12)")                                                         \
    X(p->landmarks = 32, "landmarks (32) are longer than a block")                                 \
    X(p->max_error = -1, "max_error")                                                              \
    X(p->max_error = NAN, "max_error")                                                             \
    X(p->kept_rate = 1.5, "kept_rate")                                                             \
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
    } known[] = {{"f16", 16},       {"q8_0", 8.5},     {"q4_0", 4.5},
                 {"higgs2", 2.125}, {"higgs3", 3.125}, {"higgs4", 4.125}};
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
    /* the plan's, the gains of one stream, the codewords of 3-bit and 4-bit uniform codes */
    size_t bytes = 2 * (32 + 2 * 1024 + 16 * 16 + 32 + 64 + 256 + 8 + 16);
    cr_assert_eq(cost.table_bytes, bytes);
    cr_assert_float_eq(cost.table_bits, (double)bytes * 8 / (100 * values), 1e-12);
    cr_assert_float_eq(cost.total_bits,
                       cost.code_bits + cost.gain_bits + cost.window_bits + cost.table_bits, 1e-12);
    vqkvc_plan_cost(&plan, 10, &cost);
    cr_assert_float_eq(cost.window_bits + cost.code_bits + cost.gain_bits, 16, 1e-12,
                       "a context inside the window is exact");
    vqkvc_plan_free(&plan);
}

/* A landmark of 8 tokens: 8 bits a channel, 24 bits besides, for keys. A kept vector: 16 bits a
 * value and 64 besides, and 32 for each head's vectors of a block. */
Test(plan, cost_counts_landmarks_and_what_is_kept)
{
    vqkvc_plan plan;
    vqkvc_cost plain, cost;
    make_toy(&plan);
    double dim = plan.geometry.head_dim;
    vqkvc_plan_cost(&plan, 100, &plain);
    plan.landmarks = 8;
    plan.max_error = 0.5f;
    plan.kept_rate = 0.01;
    vqkvc_plan_cost(&plan, 100, &cost);
    cr_assert_float_eq(cost.landmark_bits, (8 * dim + 24) / (8 * dim) / 2, 1e-12);
    cr_assert_float_eq(cost.kept_bits, 0.01 * (16 + 64 / dim) + 32 / (dim * plan.block), 1e-12);
    cr_assert_float_eq(vqkvc_cost_stored(&cost) - vqkvc_cost_stored(&plain),
                       cost.landmark_bits + cost.kept_bits, 1e-12);
    cr_assert_float_eq(cost.total_bits,
                       vqkvc_cost_stored(&cost) + cost.window_bits + cost.table_bits, 1e-12);
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
    static const char *const schemes[] = {NULL, "f16", "q8_0", "q4_0", "higgs2", "higgs3"};
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
        plan.landmarks = i % 2 == 0 ? 8 : 0;
        for (int p = 0; p < plan.geometry.n_rot / 2; p++)
            plan.stretch[p] = (uint8_t)(p % 4 == 3 ? VQKVC_STRETCH_ENDLESS : p % 4);
        plan.max_error = i % 3 == 0 ? 0.3f : 0;
        plan.kept_rate = plan.max_error > 0 ? 1.0 / 3 : 0;
        write_plan(&plan, &first);
        cr_assert_eq(vqkvc_plan_read(&again, first.data, first.len, &err), VQKVC_OK, "%s", err.msg);
        write_plan(&again, &second);
        cr_assert_eq(first.len, second.len);
        cr_assert_eq(memcmp(first.data, second.data, first.len), 0);
        vqkvc_plan_hash(&plan, &a, &err);
        vqkvc_plan_hash(&again, &b, &err);
        cr_assert_str_eq(a.hex, b.hex);
        cr_assert_eq(memcmp(again.stretch, plan.stretch, sizeof plan.stretch), 0);
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
    expect_refusal(&bytes, "\"version\":5", "\"version\":4", "$.version is 4, but");
    expect_refusal(&bytes, "\"version\":5", "\"version\":6", "by a newer program");
    expect_refusal(&bytes, "\"block\":16", "\"block\":\"16\"", "$.block is no integer");
    expect_refusal(&bytes, "\"block\":16", "\"blocks\":16", "$.block is missing");
    expect_refusal(&bytes, "\"block\":16", "\"block\":16,\"x\":1", "$ has 1 unknown fields");
    expect_refusal(&bytes, "\"block\":16", "\"block\":16,\"block\":16", "duplicate");
    expect_refusal(&bytes, "\"head_dim\":16", "\"head_dim\":99999999999", "$.geometry.head_dim");
    expect_refusal(&bytes, "\"rope_mscale\":1.0", "\"rope_mscale\":1e300", "rope_mscale");
    expect_refusal(&bytes, "\"rope_freq\":[1.0,", "\"rope_freq\":[", "rope_freq has 7 entries");
    expect_refusal(&bytes, "\"stretch\":[0,", "\"stretch\":[", "stretch has 7 entries");
    expect_refusal(&bytes, "\"stretch\":[0,", "\"stretch\":[9,", "stretch of pair 0 is 9");
    expect_refusal(&bytes, "\"stretch\":[0,", "\"stretch\":[-1,", "stretch[] is -1");
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
