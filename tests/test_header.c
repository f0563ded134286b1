/* The emitted header as its users meet it: it compiles without a warning wherever it may be
 * included, is the same bytes every time, and on every instruction set does the plan's arithmetic.
 *
 * UPDATE_GOLDEN=1 build/tests/test_header --filter 'header/golden*' renews tests/golden/toy_kv.h.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "emitted.h"
#include "gen/gen.h"
#include "gen/lower.h"
#include "plan_toy.h"
#include "runtime_check.h"
#include "toy_plans.h"

#define GOLDEN "tests/golden/toy_kv.h"
#define STRICT "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef -Werror "

static void emit(const toy_case *c, const char *prefix, vqkvc_buf *out)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    gen_options options = {prefix, "vqkvc emit toy"};
    toy_plan(&plan, c);
    cr_assert_eq(gen_header(&plan, &options, out, &err), VQKVC_OK, "%s: %s", c->name, err.msg);
    vqkvc_plan_free(&plan);
}

static void emit_file(const toy_case *c, const char *prefix, const char *name)
{
    vqkvc_buf header = {0};
    emit(c, prefix, &header);
    write_text(name, header.data, header.len);
    free(header.data);
}

TestSuite(header, .init = make_dir, .fini = remove_dir, .timeout = 120);

/* ---- the bytes ---- */

Test(header, golden_file_is_what_the_emitter_writes)
{
    vqkvc_buf header = {0}, golden = {0};
    vqkvc_err err = {0};
    emit(&toy_cases[0], "toy_kv", &header);
    if (getenv("UPDATE_GOLDEN") != NULL)
        vqkvc_write_file(GOLDEN, header.data, header.len, &err);
    vqkvc_read_file(GOLDEN, (size_t)1 << 20, &golden, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    size_t same = 0, line = 1;
    while (same < header.len && same < golden.len && header.data[same] == golden.data[same])
        line += header.data[same++] == '\n';
    cr_assert(same == header.len && same == golden.len,
              "%s: line %zu is not what the emitter writes; if that is meant, run\n"
              "UPDATE_GOLDEN=1 build/tests/test_header --filter 'header/golden*'",
              GOLDEN, line);
    free(header.data);
    free(golden.data);
}

Test(header, bytes_do_not_depend_on_threads_or_runs)
{
    for (int i = 0; i < N_TOY_CASES; i++) {
        vqkvc_buf first = {0};
        emit(&toy_cases[i], "toy_kv", &first);
        for (int threads = 1; threads <= 3; threads++) {
            vqkvc_buf again = {0};
            omp_set_num_threads(threads);
            emit(&toy_cases[i], "toy_kv", &again);
            cr_assert(again.len == first.len && memcmp(again.data, first.data, first.len) == 0,
                      "%s with %d threads", toy_cases[i].name, threads);
            free(again.data);
        }
        free(first.data);
    }
}

Test(header, prefix_changes_every_symbol)
{
    vqkvc_buf a = {0}, b = {0};
    emit(&toy_cases[0], "toy_kv", &a);
    emit(&toy_cases[0], "a1_b2", &b);
    cr_assert_null(strstr(b.data, "vqkv_"));
    cr_assert_null(strstr(b.data, "VQKV_"));
    cr_assert_null(strstr(b.data, "toy_kv"));
    free(a.data);
    free(b.data);
}

Test(header, prefixes_that_collide_are_refused)
{
    static const char *const bad[] = {"",    "Kv",  "1kv", "a__b",  "a-b",    "kv",
                                      "int", "new", "or",  "class", "size_t", "n_tokens"};
    vqkvc_plan plan;
    toy_plan(&plan, &toy_cases[0]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        vqkvc_err err = {0};
        vqkvc_buf out = {0};
        gen_options options = {bad[i], "vqkvc emit toy"};
        cr_expect_eq(gen_header(&plan, &options, &out, &err), VQKVC_E_USAGE, "prefix '%s'", bad[i]);
        free(out.data);
    }
    vqkvc_plan_free(&plan);
}

/* No bit is stored that is not counted, and none is counted that is not stored. */
Test(header, blocks_take_what_the_plan_counts)
{
    for (int i = 0; i < N_TOY_CASES; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        vqkvc_cost cost;
        gen_lowered low = {0};
        toy_plan(&plan, &toy_cases[i]);
        cr_assert_eq(gen_lower(&plan, &low, &err), VQKVC_OK, "%s", err.msg);
        vqkvc_plan_cost(&plan, 4096, &cost);
        const vqkvc_geometry *g = &plan.geometry;
        double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim * plan.block;
        cr_expect_float_eq((cost.code_bits + cost.gain_bits) * values / 8, low.block_bytes, 1e-6,
                           "%s: %d bytes", toy_cases[i].name, low.block_bytes);
        vqkvc_arena_free(&low.arena);
        vqkvc_plan_free(&plan);
    }
}

/* The tables that the plan counts are those that are baked in, but for a spare word at the end. */
Test(header, tables_take_what_the_plan_counts)
{
    for (int i = 0; i < N_TOY_CASES; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        vqkvc_cost cost;
        gen_lowered low = {0};
        size_t values = 0;
        toy_plan(&plan, &toy_cases[i]);
        cr_assert_eq(gen_lower(&plan, &low, &err), VQKVC_OK, "%s", err.msg);
        vqkvc_plan_cost(&plan, 4096, &cost);
        for (int section = 0; section < low.n_sections - 1; section++)
            values += (size_t)low.sections[section].n;
        cr_expect_eq(cost.table_bytes, 2 * values, "%s: %zu bytes counted, %zu baked in",
                     toy_cases[i].name, cost.table_bytes, 2 * values);
        vqkvc_arena_free(&low.arena);
        vqkvc_plan_free(&plan);
    }
}

static void expect_unsupported(vqkvc_plan *plan, const char *words)
{
    vqkvc_err err = {0};
    gen_lowered low = {0};
    cr_assert_eq(vqkvc_plan_validate(plan, &err), VQKVC_OK, "%s", err.msg);
    cr_expect_eq(gen_lower(plan, &low, &err), VQKVC_E_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, words), "%s", err.msg);
    vqkvc_arena_free(&low.arena);
    vqkvc_plan_free(plan);
}

/* One stream of fp16 over all heads of all layers, for each part. */
static void make_joined(vqkvc_plan *plan, const vqkvc_geometry *g)
{
    vqkvc_err err = {0};
    int n = g->n_layers * g->n_kv_heads;
    vqkvc_member *members = need((size_t)n, sizeof *members);
    *plan = (vqkvc_plan){.scheme = "joined", .geometry = *g, .block = 64};
    for (int part = 0; part < 2; part++) {
        for (int i = 0; i < n; i++)
            members[i] = (vqkvc_member){(vqkvc_part)part, i / g->n_kv_heads, i % g->n_kv_heads};
        vqkvc_stream *s = vqkvc_plan_add_stream(plan, "all", n, members, &err);
        s->frame = VQKVC_FRAME_POST;
        vqkvc_run *run = vqkvc_plan_set_runs(plan, s, 1, &err);
        *run = (vqkvc_run){.coder = VQKVC_CODER_F16,
                           .groups = s->n_in,
                           .width = 1,
                           .bits = 16,
                           .stages = 1,
                           .book = -1};
    }
    free(members);
}

/* The emitted descriptors have 16 bits for these: what does not fit is refused, not cut. */
Test(header, counts_that_descriptors_cannot_hold_are_refused)
{
    vqkvc_plan plan;
    vqkvc_geometry g = toy_geometry(129, 256, 1);
    g.rope_layout = VQKVC_ROPE_NONE;
    g.n_rot = 0;
    make_joined(&plan, &g);
    expect_unsupported(&plan, "stream all: more than 32767 members");
    g = toy_geometry(1, 128, 512);
    make_joined(&plan, &g);
    vqkvc_run *run = &plan.streams[1].runs[0];
    *run = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                       .groups = 1,
                       .width = plan.streams[1].n_in,
                       .bits = 1,
                       .stages = 1,
                       .book = add_table(&plan, 1, 2 * plan.streams[1].n_in, "book")};
    expect_unsupported(&plan, "stream all: run 0: codes of 65536 channels, 65535 at most");
}

/* ---- compilers ---- */

static void check_compiler(const char *c, const char *cpp)
{
    static const char *const c_options[] = {"-std=c99 -O2", "-std=c11 -O3",
                                            "-std=c11 -O2 -DTOY_KV_NO_SIMD"};
    if (!have(c))
        return;
    emit_file(&toy_cases[0], "toy_kv", "toy_kv.h");
    /* once for the declarations, twice with the implementation */
    write_source("one.c", "#include \"toy_kv.h\"\n#include \"toy_kv.h\"\n"
                          "#define TOY_KV_IMPLEMENTATION\n"
                          "#include \"toy_kv.h\"\n#include \"toy_kv.h\"\n");
    for (size_t i = 0; i < sizeof c_options / sizeof *c_options; i++)
        cr_expect_eq(shell(0,
                           "%s %s " STRICT "-Wsign-conversion -Wstrict-prototypes "
                           "-Wmissing-prototypes -Wcast-align -c one.c -o one.o",
                           c, c_options[i]),
                     0, "%s %s", c, c_options[i]);
    if (!have(cpp))
        return;
    for (int level = 2; level <= 3; level++)
        cr_expect_eq(shell(0, "%s -x c++ -std=c++11 -O%d " STRICT "-c one.c -o one.o", cpp, level),
                     0, "%s -O%d", cpp, level);
}

Test(header, is_clean_in_gcc)
{
    check_compiler("gcc", "g++");
}

Test(header, is_clean_in_clang)
{
    check_compiler("clang", "clang++");
}

/* Two models in one program; one of them is declared in C++ and implemented in C. */
Test(header, two_prefixes_and_two_units_make_one_program)
{
    emit_file(&toy_cases[0], "toy_kv", "toy_kv.h");
    emit_file(&toy_cases[3], "other_kv", "other_kv.h");
    write_source("both.c", "#define TOY_KV_IMPLEMENTATION\n#define OTHER_KV_IMPLEMENTATION\n"
                           "#include \"toy_kv.h\"\n#include \"other_kv.h\"\n");
    write_source("main.cpp", "#include \"other_kv.h\"\n#include \"toy_kv.h\"\n"
                             "int main() {\n"
                             "    toy_kv_config a = toy_kv_config();\n"
                             "    other_kv_config b = other_kv_config();\n"
                             "    size_t m = 0, n = 0;\n"
                             "    a.n_ctx = b.n_ctx = 100;\n"
                             "    return toy_kv_size(&a, &m) != TOY_KV_OK ||\n"
                             "        other_kv_size(&b, &n) != OTHER_KV_OK || m == n ||\n"
                             "        TOY_KV_HEAD_DIM == OTHER_KV_HEAD_DIM;\n"
                             "}\n");
    cr_assert_eq(shell(0, "gcc -std=c99 -O1 " STRICT "-c both.c -o both.o"), 0);
    cr_assert_eq(shell(0, "g++ -std=c++11 " STRICT "main.cpp both.o -lm -o main && ./main"), 0);
}

/* No writable data, and nothing from libc but what moves bytes and computes. Without -fno-pie the
 * tables of kernels lie in .data.rel.ro, which only the loader writes. */
Test(header, has_no_globals_and_calls_nothing_it_should_not)
{
    emit_file(&toy_cases[2], "toy_kv", "toy_kv.h");
    write_source("one.c", "#define TOY_KV_IMPLEMENTATION\n#include \"toy_kv.h\"\n");
    cr_assert_eq(shell(0, "gcc -std=c99 -O2 -fno-pie -c one.c -o one.o && nm one.o >symbols"), 0);
    cr_expect_eq(shell(0, "cat symbols; ! grep -E ' [dDbBcCsSgG] ' symbols"), 0);
    cr_expect_eq(
        shell(0,
              "! grep ' U ' symbols | grep -vE ' U (mem(cpy|set|cmp|move)|__cpu_(model|features2)|"
              "(cos|sin|sincos|sqrt|exp|tanh|round|floor|rint)f?|"
              "_GLOBAL_OFFSET_TABLE_)$'"),
        0);
}

/* ---- arithmetic ---- */

/* A vector whose distance from the reference is within this part of its length has the same codes
 * and gains; the rest is rounding. */
#define SAME 2e-5
/* Part of the vectors that may have another code somewhere, where two were about equally near, and
 * by how much that may change the mean squared error of the codec. */
#define MAX_OTHER        0.03
#define MAX_ERROR_CHANGE 2e-3

/* Tokens, and what was made of them: [n, n_layers, n_kv_heads, head_dim] by part. */
typedef struct trial {
    const toy_case *c;
    vqkvc_plan plan;
    int n, coded; /* coded: tokens before this one are sinks or in blocks */
    size_t row;   /* values of a token and part */
    float *x[2], *ref[2];
} trial;

static float *values(size_t n)
{
    vqkvc_err err = {0};
    float *p = vqkvc_alloc(n, sizeof *p, &err);
    cr_assert_not_null(p);
    return p;
}

/* Vectors of binary16 values, alike in neighbouring layers, of lengths that vary; keys rotated. */
static void fill_tokens(trial *t)
{
    const vqkvc_geometry *g = &t->plan.geometry;
    size_t layer_row = (size_t)g->n_kv_heads * (size_t)g->head_dim;
    check_rng rng = {3};
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < t->n; i++) {
            float *x = t->x[part] + (size_t)i * t->row;
            float size = 0.25f + (float)check_below(&rng, 8) / 4;
            for (size_t j = 0; j < t->row; j++)
                x[j] = size * (0.6f * check_uniform(&rng) +
                               (j < layer_row ? check_uniform(&rng) : 0.8f * x[j % layer_row]));
            if (part == VQKVC_PART_K)
                vqkvc_rope_rotate(g, i, x, g->n_layers * g->n_kv_heads);
            for (size_t j = 0; j < t->row; j++)
                x[j] = vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[j]));
        }
}

static void trial_init(trial *t, const toy_case *c, int blocks)
{
    *t = (trial){.c = c, .n = c->n_sink + c->n_recent + blocks * c->block + c->block / 2 + 8};
    vqkvc_err err = {0};
    vqkvc_matrix_init();
    toy_plan(&t->plan, c);
    const vqkvc_plan *p = &t->plan;
    const vqkvc_geometry *g = &p->geometry;
    t->row = (size_t)g->n_layers * (size_t)g->n_kv_heads * (size_t)g->head_dim;
    t->coded = p->n_sink + (t->n - 1 - p->n_sink - p->n_recent) / p->block * p->block;
    for (int part = 0; part < 2; part++) {
        t->x[part] = values((size_t)t->n * t->row);
        t->ref[part] = values((size_t)t->n * t->row);
    }
    fill_tokens(t);
    for (int part = 0; part < 2; part++)
        memcpy(t->ref[part], t->x[part], (size_t)t->n * t->row * sizeof(float));
    for (int first = p->n_sink; first < t->coded; first += p->block) {
        size_t at = (size_t)first * t->row;
        cr_assert_eq(vqkvc_plan_reference(p, p->n_streams, p->block, first, t->x[0] + at,
                                          t->x[1] + at, t->ref[0] + at, t->ref[1] + at, &err),
                     VQKVC_OK, "%s", err.msg);
    }
}

static void trial_free(trial *t)
{
    for (int part = 0; part < 2; part++) {
        free(t->x[part]);
        free(t->ref[part]);
    }
    vqkvc_plan_free(&t->plan);
}

static double square_distance(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sum;
}

/* y: what was read back of one part, compared with the reference vector by vector. */
static void compare_part(const trial *t, int isa, int part, const float *y)
{
    size_t dim = (size_t)t->c->head_dim, vectors = 0, other = 0, first = (size_t)t->c->n_sink;
    double largest = 0, error = 0, error_ref = 0;
    for (size_t at = 0; at < (size_t)t->n * t->row; at += dim) {
        const float *x = t->x[part] + at, *ref = t->ref[part] + at;
        double length = 0;
        if (at / t->row < first || at / t->row >= (size_t)t->coded) {
            cr_assert_eq(memcmp(y + at, x, dim * sizeof *x), 0, "%s: exact token %zu", t->c->name,
                         at / t->row);
            continue;
        }
        for (size_t d = 0; d < dim; d++)
            length += (double)x[d] * x[d];
        double off = sqrt(square_distance(y + at, ref, dim) / length);
        vectors++;
        other += !(off <= SAME);
        largest = off <= SAME && off > largest ? off : largest;
        error += square_distance(y + at, x, dim);
        error_ref += square_distance(ref, x, dim);
    }
    double change = error_ref > 0 ? error / error_ref - 1 : error;
    cr_log_info("%s: isa %d, %s: %zu of %zu vectors with another code, else within %.2g; squared "
                "error changed by %+.2g",
                t->c->name, isa, vqkvc_part_word(part), other, vectors, largest, change);
    cr_expect((double)other <= MAX_OTHER * (double)vectors,
              "%s: isa %d, %s: %zu of %zu vectors differ", t->c->name, isa, vqkvc_part_word(part),
              other, vectors);
    cr_expect(fabs(change) <= MAX_ERROR_CHANGE, "%s: isa %d, %s: squared error changed by %g",
              t->c->name, isa, vqkvc_part_word(part), change);
}

static void write_input(const trial *t)
{
    vqkvc_buf in = {0};
    int32_t n = t->n;
    vqkvc_buf_put(&in, &n, sizeof n);
    for (int part = 0; part < 2; part++)
        vqkvc_buf_put(&in, t->x[part], (size_t)t->n * t->row * sizeof(float));
    write_text("in", in.data, in.len);
    free(in.data);
}

/* Compares all that the program wrote; the number of instruction sets. */
static int compare_output(const trial *t)
{
    vqkvc_buf out = {0};
    vqkvc_err err = {0};
    char path[128];
    size_t part_bytes = (size_t)t->n * t->row * sizeof(float), record = 4 + 2 * part_bytes;
    float *y = values((size_t)t->n * t->row);
    snprintf(path, sizeof path, "%s/out", dir);
    cr_assert_eq(vqkvc_read_file(path, (size_t)1 << 30, &out, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(out.len % record, 0);
    for (size_t at = 0; at < out.len; at += record) {
        int32_t isa;
        memcpy(&isa, out.data + at, sizeof isa);
        for (int part = 0; part < 2; part++) {
            memcpy(y, out.data + at + 4 + (size_t)part * part_bytes, part_bytes);
            compare_part(t, isa, part, y);
        }
    }
    free(y);
    free(out.data);
    return (int)((double)out.len / (double)record);
}

/* Compiles runtime_check.c by `compiler`, runs it by `runner` on the named instruction set or ""
 * for all, compares. */
static void check_arithmetic(int index, const char *compiler, const char *runner, const char *isa,
                             int blocks)
{
    trial t;
    trial_init(&t, &toy_cases[index], blocks);
    emit_file(t.c, "toy_kv", "toy_kv.h");
    write_input(&t);
    cr_assert_eq(shell(0,
                       "%s -std=c11 -Wall -Wextra -Werror -DHEADER='\"toy_kv.h\"' -I. "
                       "-I$root/tests $root/tests/runtime_check.c -lm -o check",
                       compiler),
                 0, "%s", t.c->name);
    cr_expect_eq(shell(0, "%s ./check in out %s", runner, isa), 0, "%s", t.c->name);
    show_log(t.c->name);
    cr_expect_geq(compare_output(&t), 1);
    trial_free(&t);
}

static int case_indices[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
_Static_assert(sizeof case_indices / sizeof *case_indices == N_TOY_CASES, "a case without a test");

ParameterizedTestParameters(header, does_the_plans_arithmetic)
{
    return cr_make_param_array(int, case_indices, N_TOY_CASES);
}

ParameterizedTest(int *index, header, does_the_plans_arithmetic, .timeout = 120)
{
    check_arithmetic(*index, "gcc -O2", "", "", 4);
}

ParameterizedTestParameters(header, does_the_plans_arithmetic_in_neon)
{
    return cr_make_param_array(int, case_indices, N_TOY_CASES);
}

ParameterizedTest(int *index, header, does_the_plans_arithmetic_in_neon, .timeout = 120)
{
    if (have("aarch64-linux-gnu-gcc") && have("qemu-aarch64"))
        check_arithmetic(*index, "aarch64-linux-gnu-gcc -O1 -static", "qemu-aarch64", "neon", 2);
}

static int sanitized_indices[] = {0, 1, 2, 9, 12, 14};

ParameterizedTestParameters(header, is_sound_under_sanitizers)
{
    return cr_make_param_array(int, sanitized_indices,
                               sizeof sanitized_indices / sizeof *sanitized_indices);
}

/* Together these have every coder, gain, frame, transform and prediction. Unoptimized: instrumented
 * code of all kernels takes a compiler longer than it saves. */
ParameterizedTest(int *index, header, is_sound_under_sanitizers, .timeout = 120)
{
    check_arithmetic(*index,
                     "gcc -O0 -g -fsanitize=address,undefined,float-cast-overflow "
                     "-fno-sanitize-recover=all",
                     "", "", 3);
}
