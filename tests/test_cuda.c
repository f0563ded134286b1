/* The emitted CUDA header, run on the host: cuda_check.cpp compiled with the shim in cuda_shim/ for
 * the plans of cuda_plans.h. Where nvcc is installed it compiles the header as well (make cuda does
 * that for every GPU, and looks at registers). */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/file.h"
#include "cuda_plans.h"
#include "gen/gen.h"

#define STRICT "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-unknown-pragmas -Werror "

static char dir[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/test_cuda_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_expect_eq(system(command), 0);
}

/* Runs a shell command in the directory; its exit status. What it says goes to stderr. */
static int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int shell(const char *fmt, ...)
{
    char words[1024], command[1400];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(words, sizeof words, fmt, args);
    va_end(args);
    cr_assert(n > 0 && (size_t)n < sizeof words);
    snprintf(command, sizeof command, "root=$PWD; cd %s && { %s; } >&2", dir, words);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int have(const char *program)
{
    if (shell("command -v %s >/dev/null", program) == 0)
        return 1;
    cr_log_warn("%s is not installed: its part is skipped", program);
    return 0;
}

static void write_header(const vqkvc_plan *plan, int cuda, const char *name)
{
    vqkvc_buf text = {0};
    vqkvc_err err = {0};
    char path[128];
    gen_options options = {"toy_kv", "vqkvc emit toy"};
    vqkvc_code code = (cuda ? gen_cuda : gen_header)(plan, &options, &text, &err);
    cr_assert_eq(code, VQKVC_OK, "%s", err.msg);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    cr_assert_eq(vqkvc_write_file(path, text.data, text.len, &err), VQKVC_OK, "%s", err.msg);
    free(text.data);
}

static void emit_both(const toy_case *c)
{
    vqkvc_plan plan;
    cuda_plan(&plan, c);
    write_header(&plan, 0, "toy.h");
    write_header(&plan, 1, "toy.cuh");
    vqkvc_plan_free(&plan);
}

TestSuite(cuda, .init = make_dir, .fini = remove_dir, .timeout = 240);

ParameterizedTestParameters(cuda, does_what_the_c_header_does)
{
    static int indices[N_CUDA_CASES];
    for (int i = 0; i < N_CUDA_CASES; i++)
        indices[i] = i;
    return cr_make_param_array(int, indices, N_CUDA_CASES);
}

ParameterizedTest(int *index, cuda, does_what_the_c_header_does, .timeout = 240)
{
    const toy_case *c = cuda_case(*index);
    emit_both(c);
    cr_assert_eq(shell("g++ -std=c++17 -O0 -g1 -fsanitize=address " STRICT
                       "-DTOY_KV_NO_SIMD -DC_HEADER='\"toy.h\"' -DCUDA_HEADER='\"toy.cuh\"' -I. "
                       "-I$root/tests -I$root/tests/cuda_shim $root/tests/cuda_check.cpp -o check"),
                 0, "%s", c->name);
    cr_expect_eq(shell("./check"), 0, "%s", c->name);
}

/* The same plan and options give the same bytes; a prefix replaces every name. */
Test(cuda, bytes_depend_on_plan_and_options_alone)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_buf text[3] = {{0}};
    static const char *const prefixes[3] = {"toy_kv", "toy_kv", "other"};
    cuda_plan(&plan, cuda_case(0));
    for (int i = 0; i < 3; i++) {
        gen_options options = {prefixes[i], "vqkvc emit toy"};
        cr_assert_eq(gen_cuda(&plan, &options, &text[i], &err), VQKVC_OK, "%s", err.msg);
    }
    cr_expect_eq(text[0].len, text[1].len);
    cr_expect_eq(memcmp(text[0].data, text[1].data, text[0].len), 0);
    cr_expect_null(strstr(text[2].data, "toy_kv"));
    cr_expect_null(strstr(text[2].data, "vqkv_"));
    gen_options bad = {"a__b", ""};
    cr_expect_eq(gen_cuda(&plan, &bad, &text[0], &err), VQKVC_E_USAGE);
    for (int i = 0; i < 3; i++)
        free(text[i].data);
    vqkvc_plan_free(&plan);
}

/* What gen_cuda() says of a plan that it refuses. */
static void expect_refusal(const vqkvc_plan *plan, const char *what, const char *stream)
{
    vqkvc_buf text = {0};
    vqkvc_err err = {0};
    gen_options options = {"toy_kv", "vqkvc emit toy"};
    cr_expect_eq(gen_cuda(plan, &options, &text, &err), VQKVC_E_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, what), "%s", err.msg);
    cr_expect_not_null(strstr(err.msg, stream), "%s", err.msg);
    cr_expect_eq(text.len, 0);
    free(text.data);
}

/* What the kernels do not do is refused by name, and the C header of the same plan is not. */
Test(cuda, refuses_what_it_does_not_do)
{
    static const toy_case wide = {"many", NULL, 16,   1,       2, 128, HALVES, 128, 4,
                                  16,     64,   POST, NO_GAIN, 0, 1,   1,      0,   NULL};
    vqkvc_plan plan;
    vqkvc_buf text = {0};
    vqkvc_err err = {0};
    gen_options options = {"toy_kv", "vqkvc emit toy"};
    toy_plan(&plan, &toy_cases[0]);
    expect_refusal(&plan, "max-error", plan.streams[0].name);
    vqkvc_plan_free(&plan);
    plan = (vqkvc_plan){.geometry = toy_case_geometry(&wide), .n_sink = 4, .n_recent = 16};
    plan.block = 64;
    strcpy(plan.scheme, "toy");
    toy_levels(&plan, toy_stream(&plan, &wide, VQKVC_PART_K, 0, 16, 0, "K of all"), 4);
    toy_levels(&plan, toy_stream(&plan, &wide, VQKVC_PART_V, 0, 16, 0, "V of all"), 8);
    expect_refusal(&plan, "shared memory", "K of all");
    cr_expect_eq(gen_header(&plan, &options, &text, &err), VQKVC_OK, "%s", err.msg);
    free(text.data);
    vqkvc_plan_free(&plan);
}

/* With the C header in front, as engines may have it, and declarations alone. */
Test(cuda, is_clean_in_nvcc)
{
    vqkvc_err err = {0};
    static const char source[] = "#include \"toy.h\"\n#include \"toy.cuh\"\n#include \"toy.cuh\"\n"
                                 "#define TOY_KV_CUDA_IMPLEMENTATION\n#include \"toy.cuh\"\n";
    char path[128];
    if (!have("nvcc"))
        return;
    emit_both(cuda_case(0));
    snprintf(path, sizeof path, "%s/one.cu", dir);
    cr_assert_eq(vqkvc_write_file(path, source, sizeof source - 1, &err), VQKVC_OK, "%s", err.msg);
    cr_expect_eq(shell("nvcc -std=c++17 -arch=sm_80 -Xcicc -O1 -Xptxas -O1 -Werror all-warnings "
                       "-Wno-deprecated-gpu-targets "
                       "-Xcompiler -Wall,-Wextra,-Wshadow,-Wconversion,-Werror -c one.cu -o one.o"),
                 0);
}
