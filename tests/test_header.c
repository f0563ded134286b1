/* The emitted header as its users meet it: it compiles without a warning wherever it may be
 * included, and is the same bytes every time. What it computes: test_arithmetic.c.
 *
 * UPDATE_GOLDEN=1 build/tests/test_header --filter 'header/golden*' renews tests/golden/toy_kv.h.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emitted.h"
#include "gen/gen.h"
#include "gen/lower.h"
#include "plan_toy.h"
#include "toy_emitted.h"

#define GOLDEN "tests/golden/toy_kv.h"
#define STRICT "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef -Werror "

TestSuite(header, .init = make_dir, .fini = remove_dir, .timeout = TEST_SECONDS);

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
        for (int threads = 1; threads <= 3; threads += 2) {
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

/* A compiler, its options, whether it reads the header as C, and byte kernels as well, which blocks
 * of 32 tokens have none of. gcc finds part of what it warns about while it optimizes; clang does
 * not, but refuses what no target can do when it makes code. */
typedef struct compilation {
    char program[12], options[40];
    int is_c, in_bytes;
} compilation;

static compilation compilations[] = {{"gcc", "-std=c99 -O2", 1, 1},
                                     {"gcc", "-std=c11 -O3", 1, 0},
                                     {"gcc", "-std=c11 -O2 -DTOY_KV_NO_SIMD", 1, 0},
                                     {"g++", "-x c++ -std=c++11 -O2", 0, 1},
                                     {"gcc", "-std=c99 -O0", 1, 1},
                                     {"clang", "-std=c99 -O2", 1, 0},
                                     {"clang", "-std=c11 -O0", 1, 1},
                                     {"clang", "-std=c11 -O0 -DTOY_KV_NO_SIMD", 1, 0},
                                     {"clang++", "-x c++ -std=c++11 -O0", 0, 0}};

ParameterizedTestParameters(header, is_clean)
{
    return cr_make_param_array(compilation, compilations,
                               sizeof compilations / sizeof *compilations);
}

static const toy_case *case_named(const char *name)
{
    for (int i = 0; i < N_TOY_CASES; i++)
        if (strcmp(toy_cases[i].name, name) == 0)
            return &toy_cases[i];
    cr_assert_fail("no toy plan %s", name);
    return NULL;
}

/* Included once for the declarations and twice with the implementation. */
static void expect_clean(const compilation *c, const char *name)
{
    emit_file(case_named(name), "toy_kv", "toy_kv.h");
    write_source("one.c", "#include \"toy_kv.h\"\n#include \"toy_kv.h\"\n"
                          "#define TOY_KV_IMPLEMENTATION\n"
                          "#include \"toy_kv.h\"\n#include \"toy_kv.h\"\n");
    cr_expect_eq(shell(0, "%s %s " STRICT "%s-c one.c -o one.o", c->program, c->options,
                       c->is_c ? "-Wsign-conversion -Wstrict-prototypes -Wmissing-prototypes "
                                 "-Wcast-align "
                               : ""),
                 0, "%s: %s %s", name, c->program, c->options);
}

ParameterizedTest(compilation *c, header, is_clean)
{
    if (!have(c->program))
        return;
    expect_clean(c, "golden");
    if (c->in_bytes)
        expect_clean(c, "bands");
}

/* So are the byte kernels of AArch64, whatever the command line allows of what they need. */
static compilation arm_compilations[] = {{"gcc", "-std=c99 -O2", 1, 1},
                                         {"gcc", "-std=c11 -O0 -march=armv8-a+crypto", 1, 1},
                                         {"gcc", "-std=c11 -O1 -mcpu=neoverse-n1", 1, 1},
                                         {"clang", "-std=c99 -O2", 1, 1}};

ParameterizedTestParameters(header, is_clean_on_arm)
{
    return cr_make_param_array(compilation, arm_compilations,
                               sizeof arm_compilations / sizeof *arm_compilations);
}

ParameterizedTest(compilation *c, header, is_clean_on_arm)
{
    int is_gcc = strcmp(c->program, "gcc") == 0;
    if (!have(c->program) || !have("aarch64-linux-gnu-gcc"))
        return;
    emit_file(&toy_cases[2], "toy_kv", "toy_kv.h");
    write_source("one.c", "#define TOY_KV_IMPLEMENTATION\n#include \"toy_kv.h\"\n");
    cr_expect_eq(shell(0, "%s %s " STRICT "-Wsign-conversion -Wcast-align -c one.c -o one.o",
                       is_gcc ? "aarch64-linux-gnu-gcc"
                              : "clang --target=aarch64-linux-gnu "
                                "--sysroot=/usr/aarch64-linux-gnu -isystem "
                                "/usr/aarch64-linux-gnu/include",
                       c->options),
                 0, "%s %s", c->program, c->options);
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
    cr_assert_eq(shell(0, "gcc -std=c99 -Og " STRICT "-c both.c -o both.o"), 0);
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
