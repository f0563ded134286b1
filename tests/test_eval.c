/* The eval stage: that what it measures is the emitted code, that its figures order codecs as they
 * should and do not depend on threads, and that headers which are wrong in any way are refused by
 * name and leave nothing behind. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/half.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "model/attend_f16.h"
#include "eval/table.h"
#include "gen/gen.h"

enum { CONTEXT = 192, N_WINDOWS = 2, N_SCHEMES = 5 };

static vqkvc_model *open_model(void)
{
    vqkvc_model *model;
    vqkvc_err err = {0};
    vqkvc_matrix_init();
    vqkvc_code code = vqkvc_model_open(&model, "examples/models/ref7m.gguf", 0, &err);
    cr_assert_eq(code, VQKVC_OK, "%s", err.msg);
    return model;
}

/* The emitted header of a scheme, for free(.data). Portable ones compile in a third of the time. */
static vqkvc_buf emit(const vqkvc_geometry *g, const char *scheme, int portable, vqkvc_cost *cost)
{
    vqkvc_plan plan;
    vqkvc_window window = {-1, -1, 0};
    vqkvc_buf header = {0};
    vqkvc_err err = {0};
    gen_options options = {.prefix = "m7_kv", .command = "vqkvc build"};
    cr_assert_eq(vqkvc_plan_preset(&plan, g, scheme, &window, &err), VQKVC_OK, "%s", err.msg);
    if (cost != NULL)
        vqkvc_plan_cost(&plan, CONTEXT, cost);
    if (portable)
        vqkvc_buf_puts(&header, "#define M7_KV_NO_SIMD\n");
    cr_assert_eq(gen_header(&plan, &options, &header, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_plan_free(&plan);
    return header;
}

static vqkvc_codec load(const char *scheme, vqkvc_buf header)
{
    vqkvc_codec codec;
    vqkvc_err err = {0};
    vqkvc_code code = vqkvc_codec_load(&codec, scheme, header.data, header.len, &err);
    cr_assert_eq(code, VQKVC_OK, "%s", err.msg);
    free(header.data);
    return codec;
}

/* Headers are compiled in a third of the time. */
static void compile_quickly(void)
{
    setenv("CC", "sh tests/quick_cc.sh", 1);
}

TestSuite(eval, .init = compile_quickly);

/* Changes the top bit of the mantissa of every value in the header's tables. */
static void corrupt_tables(vqkvc_buf header)
{
    char *at = strstr(header.data, "m7_kv__tables[] = {");
    cr_assert_not_null(at);
    char *end = strstr(at, "};");
    int flipped = 0;
    for (at = strstr(at, "0x"); at != NULL && at < end; at = strstr(at + 1, "0x"))
        for (int digit = 2 + 1; digit < 2 + 16; digit += 4, flipped++) {
            char text[2] = {at[digit], '\0'};
            at[digit] = "0123456789abcdef"[strtol(text, NULL, 16) ^ 2];
        }
    cr_assert_geq(flipped, 32);
}

/* Makes a directory the home of temporary files. */
static void private_tmpdir(char path[32])
{
    strcpy(path, "/tmp/vqkvc_eval_XXXXXX");
    cr_assert_not_null(mkdtemp(path));
    setenv("TMPDIR", path, 1);
}

static void assert_empty_and_remove(const char *path)
{
    DIR *d = opendir(path);
    cr_assert_not_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        cr_assert(strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0, "left behind: %s",
                  e->d_name);
    closedir(d);
    cr_assert_eq(rmdir(path), 0);
}

/* ---- fidelity ---- */

typedef struct suite {
    vqkvc_model *model;
    vqkvc_cost costs[N_SCHEMES];
    vqkvc_codec codecs[N_SCHEMES];
    vqkvc_subject subjects[N_SCHEMES];
    vqkvc_measured results[N_SCHEMES];
    int32_t windows[N_WINDOWS * CONTEXT];
} suite;

/* Schemes first .. N_SCHEMES - 1 are compiled: the last of them is higgs2 with other tables. */
static void open_suite(suite *s, int first)
{
    static const char *const schemes[N_SCHEMES] = {"f16", "q8_0", "q4_0", "higgs2", "higgs2"};
    vqkvc_buf text = {0};
    vqkvc_err err = {0};
    int32_t ids[512];
    s->model = open_model();
    for (int i = first; i < N_SCHEMES; i++) {
        vqkvc_buf header = emit(vqkvc_model_geometry(s->model), schemes[i], 0, &s->costs[i]);
        if (i == N_SCHEMES - 1)
            corrupt_tables(header);
        s->codecs[i] = load(schemes[i], header);
        s->subjects[i] = (vqkvc_subject){schemes[i], &s->codecs[i], 0};
    }
    cr_assert_eq(vqkvc_read_file("tests/data/ref7m_tokens.i32", sizeof ids, &text, &err), VQKVC_OK);
    cr_assert_eq(text.len, sizeof ids);
    memcpy(ids, text.data, sizeof ids);
    free(text.data);
    cr_assert_eq(vqkvc_cut_windows(ids, 512, N_WINDOWS, CONTEXT, -1, s->windows, &err), VQKVC_OK);
}

static void close_suite(suite *s)
{
    for (int i = 0; i < N_SCHEMES; i++)
        vqkvc_codec_free(&s->codecs[i]);
    vqkvc_model_close(s->model);
}

static void measure(suite *s, int first, int threads, int step, int probe)
{
    vqkvc_log quiet = {-1};
    vqkvc_err err = {0};
    vqkvc_measure_options options = {
        .context = CONTEXT, .n_windows = N_WINDOWS, .step = step, .probe = probe, .log = &quiet};
    omp_set_num_threads(threads);
    vqkvc_code code = vqkvc_measure(s->model, s->windows, N_SCHEMES - first, s->subjects + first,
                                    &options, s->results + first, &err);
    cr_assert_eq(code, VQKVC_OK, "%s", err.msg);
}

Test(eval, finer_codecs_cost_less_and_the_emitted_tables_matter)
{
    static suite s;
    open_suite(&s, 0);
    measure(&s, 0, 2, 4, 1);
    const vqkvc_measured *f16 = &s.results[0], *q8 = &s.results[1], *q4 = &s.results[2];
    const vqkvc_measured *higgs = &s.results[3], *corrupt = &s.results[4];
    cr_assert_lt(f16->late.kl, 1e-4);
    cr_assert_lt(f16->late.kl, q8->late.kl);
    cr_assert_lt(q8->late.kl, q4->late.kl);
    cr_assert_lt(q4->late.kl, higgs->late.kl);
    cr_assert_gt(corrupt->late.kl, 1.5 * higgs->late.kl, "%g %g", corrupt->late.kl, higgs->late.kl);
    for (int l = 0; l < f16->n_layers; l++) {
        cr_assert_lt(f16->layer_error[l], 2e-3);
        cr_assert_lt(q4->layer_error[l], higgs->layer_error[l]);
        cr_assert_lt(higgs->layer_error[l], 1);
        cr_assert_lt(higgs->kernel_error[l], 0.05);
        cr_assert_lt(q4->kernel_error[l], 0.05);
    }
    for (int i = 0; i < N_SCHEMES; i++) {
        const vqkvc_measured *r = &s.results[i];
        double bits = s.costs[i].code_bits + s.costs[i].gain_bits;
        cr_assert_eq(r->late.n, N_WINDOWS * (CONTEXT - 128));
        cr_assert_eq(r->all.n, N_WINDOWS * CONTEXT);
        cr_assert_geq(r->late.worst_kl, r->late.kl);
        cr_assert_geq(r->late.worst_pos, 128);
        cr_assert_float_eq(r->stored_bits, bits, 0.01, "%g bits, not %g", r->stored_bits, bits);
        /* Two blocks of 64 tokens are coded at the end; the others are exact in 16 bits. */
        cr_assert_float_eq(r->used_bits, (bits * 128 + 16 * (CONTEXT - 128)) / CONTEXT, 0.01);
    }
    close_suite(&s);
}

Test(eval, figures_do_not_depend_on_the_number_of_threads)
{
    static suite s;
    vqkvc_measured one[N_SCHEMES];
    open_suite(&s, 3);
    measure(&s, 3, 1, 8, 1);
    memcpy(one, s.results, sizeof one);
    measure(&s, 3, 2, 8, 1);
    for (int i = 3; i < N_SCHEMES; i++) {
        cr_assert_eq(memcmp(&one[i].late, &s.results[i].late, sizeof one[i].late), 0);
        cr_assert_eq(memcmp(&one[i].all, &s.results[i].all, sizeof one[i].all), 0);
        cr_assert_eq(
            memcmp(one[i].layer_error, s.results[i].layer_error, sizeof one[i].layer_error), 0);
        cr_assert_eq(
            memcmp(one[i].kernel_error, s.results[i].kernel_error, sizeof one[i].kernel_error), 0);
    }
    close_suite(&s);
}

Test(eval, divergence_of_known_distributions)
{
    const float exact[3] = {0, logf(2), logf(5)}, other[3] = {logf(4), logf(2), logf(2)};
    float broken[3] = {0, NAN, 1};
    double p[3],
        kl = 0.125 * log(0.125 / 0.5) + 0.25 * log(0.25 / 0.25) + 0.625 * log(0.625 / 0.25);
    vqkvc_point e, c;
    double lse = vqkvc_point_exact(exact, 3, 0, p, &e);
    vqkvc_point_codec(exact, p, lse, other, 3, 0, &c);
    cr_assert_float_eq(c.kl, kl, 1e-7);
    cr_assert_float_eq(e.nll, log(8), 1e-6);
    cr_assert_float_eq(c.nll, log(2), 1e-6);
    cr_assert(e.top == 2 && c.top == 0);
    vqkvc_point_codec(exact, p, lse, broken, 3, 0, &c);
    cr_assert(isnan(c.kl));
}

Test(eval, windows_are_spread_over_the_text)
{
    int32_t text[10], windows[6];
    vqkvc_err err = {0};
    for (int i = 0; i < 10; i++)
        text[i] = i;
    cr_assert_eq(vqkvc_cut_windows(text, 10, 2, 3, -1, windows, &err), VQKVC_OK);
    cr_assert(windows[0] == 0 && windows[2] == 2 && windows[3] == 5 && windows[5] == 7);
    cr_assert_eq(vqkvc_cut_windows(text, 10, 2, 3, 42, windows, &err), VQKVC_OK);
    cr_assert(windows[0] == 42 && windows[1] == 1 && windows[3] == 42);
    cr_assert_eq(vqkvc_cut_windows(text, 10, 4, 3, -1, windows, &err), VQKVC_E_USAGE);
}

/* ---- loading ---- */

Test(eval, a_header_that_does_not_compile_is_refused_with_the_compilers_words)
{
    char dir[32];
    vqkvc_codec codec;
    vqkvc_err err = {0};
    const char *header = "#define ODD_ABI_VERSION 2 /* x */\n#define ODD_CODEC \"0\"\n"
                         "int odd_thing = undeclared_thing;\n";
    private_tmpdir(dir);
    cr_assert_eq(vqkvc_codec_load(&codec, "odd.h", header, strlen(header), &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "odd.h"), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "undeclared_thing"), "%s", err.msg);
    cr_assert_null(strstr(err.msg, dir), "%s", err.msg);
    cr_assert_null(codec.handle);

    err = (vqkvc_err){0};
    setenv("CC", "no-such-compiler -x", 1);
    cr_assert_eq(vqkvc_codec_load(&codec, "odd.h", header, strlen(header), &err), VQKVC_E_IO);
    cr_assert_not_null(strstr(err.msg, "no-such-compiler"), "%s", err.msg);
    assert_empty_and_remove(dir);
}

Test(eval, an_interrupted_compilation_ends_at_once_and_leaves_nothing)
{
    static const char script[] = "#!/bin/sh\nexec sleep 20\n";
    static const char header[] = "#define A_ABI_VERSION 2\n#define A_CODEC \"0\"\n";
    char dir[32], cc[64];
    vqkvc_codec codec;
    vqkvc_err err = {0};
    private_tmpdir(dir);
    snprintf(cc, sizeof cc, "%s/cc", dir);
    cr_assert_eq(vqkvc_write_file(cc, script, strlen(script), &err), VQKVC_OK, "%s", err.msg);
    chmod(cc, 0700);
    setenv("CC", cc, 1);
    vqkvc_catch_interrupts();
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        usleep(300 * 1000);
        kill(parent, SIGINT);
        _exit(0);
    }
    double started = vqkvc_seconds();
    cr_assert_eq(vqkvc_codec_load(&codec, "a.h", header, strlen(header), &err), VQKVC_E_INTERRUPTED,
                 "%s", err.msg);
    cr_assert_lt(vqkvc_seconds() - started, 10);
    waitpid(child, NULL, 0);
    unlink(cc);
    assert_empty_and_remove(dir);
}

Test(eval, what_is_no_header_of_a_known_version_is_refused_before_it_is_compiled)
{
    static const struct {
        const char *text;
        vqkvc_code code;
    } cases[] = {
        {"", VQKVC_E_FORMAT},
        {"#define A_ABI_VERSION 2", VQKVC_E_FORMAT},
        {"#define A_ABI_VERSION 2\n#define B_CODEC \"0\"\n", VQKVC_E_FORMAT},
        {"#define A;B_ABI_VERSION 2\n#define A;B_CODEC \"0\"\n", VQKVC_E_FORMAT},
        {"#define 1A_ABI_VERSION 2\n#define 1A_CODEC \"0\"\n", VQKVC_E_FORMAT},
        {"#define a_ABI_VERSION 2\n#define a_CODEC \"0\"\n", VQKVC_E_FORMAT},
        {"#define A_ABI_VERSION x\n#define A_CODEC \"0\"\n", VQKVC_E_FORMAT},
        {"#define A_ABI_VERSION 2\n#define B_ABI_VERSION 2\n#define A_CODEC \"0\"\n",
         VQKVC_E_FORMAT},
        {"#define A_ABI_VERSION 1 /* of */\n#define A_CODEC \"0\"\n", VQKVC_E_UNSUPPORTED},
        {"#define A_ABI_VERSION 1234567890\n#define A_CODEC \"0\"\n", VQKVC_E_FORMAT},
    };
    setenv("CC", "false", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vqkvc_codec codec;
        vqkvc_err err = {0};
        vqkvc_code code =
            vqkvc_codec_load(&codec, "x.h", cases[i].text, strlen(cases[i].text), &err);
        cr_assert_eq(code, cases[i].code, "case %zu: %s", i, err.msg);
    }
}

Test(eval, a_header_for_another_shape_of_model_is_refused_by_field)
{
    char dir[32];
    vqkvc_model *model = open_model();
    vqkvc_geometry g = *vqkvc_model_geometry(model);
    private_tmpdir(dir);
    vqkvc_codec codec = load("q4_0", emit(&g, "q4_0", 1, NULL));
    assert_empty_and_remove(dir);
    vqkvc_err err = {0};
    vqkvc_cache cache;
    cr_assert_eq(vqkvc_codec_check(&codec, "q4_0", &g, &err), VQKVC_OK);
    g.n_layers++;
    cr_assert_eq(vqkvc_cache_header(&cache, &codec, "q4_0", &g, 1, 64, 1, VQKVC_ISA_AUTO, &err),
                 VQKVC_E_USAGE);
    cr_assert_not_null(strstr(err.msg, "n_layers is 8, but 9"), "%s", err.msg);
    cr_assert_null(cache.self);
    vqkvc_codec_free(&codec);
    vqkvc_model_close(model);
}

/* ---- the cache ---- */

static void fill_normal(vqkvc_rng *rng, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)vqkvc_rng_normal(rng);
}

/* Appends n random tokens at pos to one layer of both caches and compares their attention. */
static void compare_step(const vqkvc_geometry *g, const vqkvc_cache *a, const vqkvc_cache *b,
                         vqkvc_rng *rng, int seq, int layer, int pos, int n)
{
    enum { MOST = 32 * 256 };
    static float k[MOST], v[MOST], q[MOST], x[MOST], y[MOST];
    size_t kv = (size_t)n * g->n_kv_heads * g->head_dim, out = (size_t)n * g->n_heads * g->head_dim;
    vqkvc_err err = {0};
    fill_normal(rng, k, kv);
    fill_normal(rng, v, kv);
    fill_normal(rng, q, out);
    a->append(a->self, seq, layer, pos, n, k, v, &err);
    b->append(b->self, seq, layer, pos, n, k, v, &err);
    a->attend(a->self, seq, layer, pos, n, q, x, 0.1f, &err);
    b->attend(b->self, seq, layer, pos, n, q, y, 0.1f, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    for (size_t i = 0; i < out; i++)
        cr_assert_float_eq(x[i], y[i], 2e-3, "layer %d, position %d: %g, %g", layer, pos,
                           (double)x[i], (double)y[i]);
}

/* By the compiler that users have, with its options. */
Test(eval, f16_header_attends_as_the_exact_cache_does)
{
    unsetenv("CC");
    vqkvc_model *model = open_model();
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    vqkvc_codec codec = load("f16", emit(g, "f16", 0, NULL));
    vqkvc_cache exact, header;
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(3, 0);
    float x[64 * 4];
    cr_assert_eq(vqkvc_cache_exact(&exact, g, 2, 300, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_cache_header(&header, &codec, "f16", g, 2, 300, 32, VQKVC_ISA_AUTO, &err),
                 VQKVC_OK, "%s", err.msg);
    for (int seq = 0; seq < 2; seq++)
        for (int pos = 0, n; pos < 260; pos += n) {
            n = pos % 3 == 0 ? 32 : 1;
            for (int l = 0; l < g->n_layers; l++)
                compare_step(g, &exact, &header, &rng, seq, l, pos, n);
        }
    size_t full = header.bytes(header.self);
    cr_assert_eq(exact.trim(exact.self, 0, 150, &err), VQKVC_OK);
    cr_assert_eq(header.trim(header.self, 0, 150, &err), VQKVC_OK);
    cr_assert_lt(header.bytes(header.self), full);
    for (int l = 0; l < g->n_layers; l++)
        compare_step(g, &exact, &header, &rng, 0, l, 150, 5);
    memset(x, 0, sizeof x);
    cr_assert_eq(header.append(header.self, 0, 2, 7, 1, x, x, &err), VQKVC_E_USAGE);
    cr_assert_not_null(strstr(err.msg, "sequence 0, layer 2 holds 155"), "%s", err.msg);
    err = (vqkvc_err){0};
    x[0] = NAN;
    cr_assert_eq(header.append(header.self, 0, 3, 155, 1, x, x, &err), VQKVC_E_FAILED);
    cr_assert_not_null(strstr(err.msg, "sequence 0, layer 3: "), "%s", err.msg);
    header.free(header.self);
    exact.free(exact.self);
    vqkvc_codec_free(&codec);
    vqkvc_model_close(model);
}

/* ---- speed ---- */

/* Attention over binary16 in double. */
static void attend_plainly(const uint16_t *k, const uint16_t *v, int n, int d, const float *q,
                           double scale, double *out)
{
    double l = 0;
    memset(out, 0, (size_t)d * sizeof *out);
    for (int t = 0; t < n; t++) {
        double s = 0;
        for (int i = 0; i < d; i++)
            s += (double)q[i] * (double)vqkvc_f16_to_f32(k[t * d + i]);
        double w = exp(scale * s);
        l += w;
        for (int i = 0; i < d; i++)
            out[i] += w * (double)vqkvc_f16_to_f32(v[t * d + i]);
    }
    for (int i = 0; i < d; i++)
        out[i] /= l;
}

Test(eval, the_yardstick_is_attention_in_every_instruction_set)
{
    enum { MOST = 200, WIDEST = 112, GROUP = 5 };
    static const vqkvc_isa isas[] = {VQKVC_ISA_AUTO, VQKVC_ISA_AVX2, VQKVC_ISA_PORTABLE};
    /* AVX-512 wants multiples of 16, AVX2 of 8: on any machine 20 is the portable code. */
    static const int dims[] = {64, 112, 16, 40, 24, 20}, lengths[] = {1, 3, 64, 200};
    static uint16_t k[MOST * WIDEST], v[MOST * WIDEST];
    float q[GROUP * WIDEST], out[GROUP * WIDEST];
    double want[WIDEST];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    for (int i = 0; i < MOST * WIDEST; i++) {
        k[i] = vqkvc_f32_to_f16((float)vqkvc_rng_normal(&rng));
        v[i] = vqkvc_f32_to_f16((float)vqkvc_rng_normal(&rng));
    }
    fill_normal(&rng, q, GROUP * WIDEST);
    for (size_t c = 0; c < 3 * 6 * 4 * GROUP; c++) {
        int d = dims[c / 3 % 6], n = lengths[c / 18 % 4], group = (int)(c / 72) + 1;
        float *scratch = vqkvc_alloc(vqkvc_attend_f16_scratch(group, d), sizeof *scratch, &err);
        cr_assert_not_null(scratch);
        vqkvc_attend_f16(k, v, n, group, d, q, out, 0.3f, isas[c % 3], scratch);
        free(scratch);
        for (int r = 0; r < group; r++) {
            attend_plainly(k, v, n, d, q + r * d, 0.3f, want);
            for (int i = 0; i < d; i++)
                cr_assert_float_eq((double)out[r * d + i], want[i], 2e-5,
                                   "d %d, n %d, group %d, row %d: %g, not %g", d, n, group, r,
                                   (double)out[r * d + i], want[i]);
        }
    }
}

Test(eval, speed_and_table_hold_what_was_measured_and_dashes_for_the_rest)
{
    vqkvc_model *model = open_model();
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    vqkvc_cost cost;
    vqkvc_codec codec = load("q4_0", emit(g, "q4_0", 1, &cost));
    vqkvc_subject subject = {"q4_0", &codec, 0};
    vqkvc_log quiet = {-1};
    vqkvc_speed_options options = {.context = 300, .repeats = 3, .log = &quiet};
    vqkvc_timing timing;
    vqkvc_speed speed;
    vqkvc_err err = {0};
    cr_assert_eq(
        vqkvc_speed_measure(g, 1, &subject, &cost.scan_bits, &options, &timing, &speed, &err),
        VQKVC_E_USAGE);
    err = (vqkvc_err){0};
    options.repeats = 9;
    cr_assert_eq(
        vqkvc_speed_measure(g, 1, &subject, &cost.scan_bits, &options, &timing, &speed, &err),
        VQKVC_OK, "%s", err.msg);
    cr_assert(0 < timing.ns_min && timing.ns_min <= timing.ns && timing.ns <= timing.ns_max);
    cr_assert_float_eq(speed.f16.floor_ns / timing.floor_ns, 16 / cost.scan_bits, 1e-9);

    vqkvc_table_info info = {"ref7m", "books", CONTEXT, N_WINDOWS, 1, 128, &speed};
    vqkvc_row rows[2] = {{.scheme = "q4_0", .cost = &cost, .codec = &codec, .timing = &timing},
                         {.scheme = "bare"}};
    vqkvc_buf text = {0}, json = {0};
    vqkvc_table_text(&info, rows, 2, &text);
    cr_assert_not_null(strstr(text.data, "\nq4_0 "));
    cr_assert_not_null(strstr(text.data, " 4.500 "));
    vqkvc_table_markdown(&info, rows, 2, &text);
    cr_assert_not_null(strstr(text.data, "\n| bare | - | - |"));
    cr_assert_eq(vqkvc_table_json(&info, rows, 2, &json, &err), VQKVC_OK, "%s", err.msg);
    json_t *parsed = json_loads(json.data, 0, NULL), *list = json_object_get(parsed, "schemes");
    json_t *attend = json_object_get(json_array_get(list, 0), "attend");
    cr_assert_float_eq(json_real_value(json_object_get(attend, "ns")), timing.ns, 1e-9);
    cr_assert(json_is_null(json_object_get(json_array_get(list, 1), "fidelity")));
    json_decref(parsed);
    free(text.data);
    free(json.data);
    vqkvc_codec_free(&codec);
    vqkvc_model_close(model);
}
