/* Landmarks and the exact list in emitted headers, for codecs of every kind: sparse_check.c holds
 * them against plain recomputations on every instruction set. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <math.h>

#include "emitted.h"
#include "gen/gen.h"
#include "gen/lower.h"
#include "toy_plans.h"

/* Which toy plan, by name; landmarks; a bound that some of its vectors break, not most. */
static const struct {
    const char *name;
    int landmarks;
    float max_error;
} cases[] = {
    {"golden", 8, 0.9f},                       /* absorbed, in its block's frame, blocks of 32 */
    {"post", 16, 0.9f},                        /* byte kernels, two gains */
    {"pre", 8, 0},                             /* keys rebuilt, groups of three */
    {"higgs2", 32, 0.42f}, {"wide", 8, 0.38f}, /* wide codes, a group of five */
    {"shifts", 8, 0.72f},                      /* all rebuilt, a group of nine: two passes */
    {"chain", 0, 0.7f},                        /* predicted */
    {"bands", 16, 0},                          /* chunks in several spans */
    {"q4_0", 0, 0.09f},                        /* negative weights */
};
enum { N_CASES = sizeof cases / sizeof *cases };

static int case_indices[N_CASES] = {0, 1, 2, 3, 4, 5, 6, 7, 8};

TestSuite(sparse, .init = make_dir, .fini = remove_dir, .timeout = TEST_SECONDS);

static void make_plan(vqkvc_plan *plan, int index)
{
    int i = 0;
    while (i < N_TOY_CASES && strcmp(toy_cases[i].name, cases[index].name) != 0)
        i++;
    cr_assert_lt(i, N_TOY_CASES);
    toy_plan(plan, &toy_cases[i]);
    plan->landmarks = cases[index].landmarks;
    plan->max_error = cases[index].max_error;
    plan->kept_rate = plan->max_error > 0 ? 0.4 : 0;
}

static void check(int index, const char *compiler, const char *runner, const char *isa)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_buf header = {0};
    gen_options options = {"toy_kv", "vqkvc emit toy"};
    make_plan(&plan, index);
    cr_assert_eq(gen_header(&plan, &options, &header, &err), VQKVC_OK, "%s", err.msg);
    write_text("toy_kv.h", header.data, header.len);
    cr_assert_eq(shell(0,
                       "%s -std=c11 -Wall -Wextra -Werror -DHEADER='\"toy_kv.h\"' -I. "
                       "-I$root/tests $root/tests/sparse_check.c -lm -o check",
                       compiler),
                 0, "%s", cases[index].name);
    cr_expect_eq(shell(0, "%s ./check %s", runner, isa), 0, "%s", cases[index].name);
    show_log(cases[index].name);
    free(header.data);
    vqkvc_plan_free(&plan);
}

/* Compiled in a third of the time that -O2 takes, and run in about the same; the case of the byte
 * kernels is tested with -O2 itself. */
#define QUICK "gcc -Og"

ParameterizedTestParameters(sparse, promises_are_kept)
{
    return cr_make_param_array(int, case_indices, N_CASES);
}

ParameterizedTest(int *index, sparse, promises_are_kept)
{
    check(*index, *index == 1 ? "gcc -O2" : QUICK, "", "");
}

/* Unoptimized: instrumented code of all kernels takes a compiler longer than it saves. */
static int sanitized_indices[] = {0, 1, 5, 6};

ParameterizedTestParameters(sparse, is_sound_under_sanitizers)
{
    return cr_make_param_array(int, sanitized_indices,
                               sizeof sanitized_indices / sizeof *sanitized_indices);
}

ParameterizedTest(int *index, sparse, is_sound_under_sanitizers)
{
    check(*index,
          "gcc -O0 -g -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all",
          "", "");
}

ParameterizedTestParameters(sparse, promises_are_kept_in_neon)
{
    return cr_make_param_array(int, sanitized_indices, 2);
}

ParameterizedTest(int *index, sparse, promises_are_kept_in_neon)
{
    if (have("aarch64-linux-gnu-gcc") && have("qemu-aarch64"))
        check(*index, "aarch64-linux-gnu-" QUICK " -static", "qemu-aarch64", "neon");
}
