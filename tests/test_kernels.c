/* Every kernel by itself against the same in double, on every instruction set: an emitted header
 * compiled with kernel_check.c. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <string.h>

#include "toy_emitted.h"

TestSuite(kernels, .init = make_dir, .fini = remove_dir, .timeout = TEST_SECONDS);

/* Codes of one to eight channels in one stage and more, blocks of 64 and 128, streams that turn and
 * not; scalars of one and two bytes. */
static const char *const cases[] = {"post", "unturned", "higgs2", "falling", "f16", "q8_0", "weak"};
enum { N_CASES = sizeof cases / sizeof *cases };
static int indices[] = {0, 1, 2, 3, 4, 5, 6};
_Static_assert(sizeof indices / sizeof *indices == N_CASES, "a case without a test");

static const toy_case *case_named(const char *name)
{
    int i = 0;
    while (strcmp(toy_cases[i].name, name) != 0)
        i++;
    return &toy_cases[i];
}

static void check_kernels(const toy_case *c, const char *compiler, const char *runner)
{
    emit_file(c, "toy_kv", "toy_kv.h");
    cr_assert_eq(shell(0,
                       "%s -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Werror "
                       "-DHEADER='\"toy_kv.h\"' -I. -I$root/tests $root/tests/kernel_check.c -lm "
                       "-o kernels",
                       compiler),
                 0, "%s", c->name);
    cr_expect_eq(shell(0, "%s ./kernels", runner), 0, "%s", c->name);
    show_log(c->name);
}

ParameterizedTestParameters(kernels, compute_what_they_say)
{
    return cr_make_param_array(int, indices, N_CASES);
}

ParameterizedTest(int *index, kernels, compute_what_they_say)
{
    check_kernels(case_named(cases[*index]), "gcc -Og", "");
}

ParameterizedTestParameters(kernels, compute_what_they_say_in_neon)
{
    return cr_make_param_array(int, indices, N_CASES);
}

ParameterizedTest(int *index, kernels, compute_what_they_say_in_neon)
{
    if (have("aarch64-linux-gnu-gcc") && have("qemu-aarch64"))
        check_kernels(case_named(cases[*index]), "aarch64-linux-gnu-gcc -Og -static",
                      "qemu-aarch64");
}
