/* test_examples.c - the examples as a reader would build them: by a compiler, against an emitted
 * header, in a folder of their own.
 *
 * The headers are of the presets, which need no calibration: q4_0 is a codec that loses little on
 * any vectors, f16 one that loses next to nothing. */
#include <criterion/criterion.h>
#include <libgen.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/matrix.h"
#include "gen/gen.h"
#include "model/model.h"

#define MODEL  "examples/models/ref7m.gguf"
#define TOKENS "tests/data/ref7m_tokens.i32"
#define STRICT "-Wall -Wextra -Wpedantic -Werror"

/* The library was built by the compiler of this file, with the same sanitizers. */
#ifdef __clang__
#define COMPILER "clang"
#else
#define COMPILER "gcc"
#endif
#ifdef __SANITIZE_ADDRESS__
#define SANITIZERS "-fsanitize=address,undefined"
#else
#define SANITIZERS ""
#endif
#define PACKAGES "sqlite3 openblas lapacke jansson libpcre2-8 libxxhash"

enum { MAX_OUTPUT = 1 << 20 };

static char folder[64];
static char build[512]; /* where the library is: this program is in tests/ below it */

static void make_folder(void)
{
    ssize_t n = readlink("/proc/self/exe", build, sizeof build - 1);
    cr_assert_gt(n, 0);
    build[n] = '\0';
    cr_assert_eq(dirname(dirname(build)), build); /* which it shortens in place */
    snprintf(folder, sizeof folder, "/tmp/vqkvc-examples-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_expect_eq(system(command), 0);
}

TestSuite(examples, .init = make_folder, .fini = remove_folder, .timeout = 600);

/* Runs a shell command, with the folder as $D and the library's as $B: its exit status. Its
 * standard output goes to out [MAX_OUTPUT] as text, or is dropped. */
static int shell(char *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int shell(char *out, const char *fmt, ...)
{
    char command[2048];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    cr_assert(n > 0 && (size_t)n < sizeof command);
    setenv("D", folder, 1);
    setenv("B", build, 1);
    setenv("OMP_WAIT_POLICY", "passive", 1); /* spinning is slow beside other tests */
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    char *text = malloc(MAX_OUTPUT);
    text[fread(text, 1, MAX_OUTPUT - 1, pipe)] = '\0';
    if (out != NULL)
        strcpy(out, text);
    free(text);
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* Puts ref7m_kv.h of a preset into the folder. */
static void emit(const char *scheme)
{
    vqkvc_err err = {0};
    vqkvc_model *model = NULL;
    vqkvc_plan plan = {0};
    vqkvc_buf header = {0};
    char path[128];
    const gen_options options = {.prefix = "ref7m_kv", .command = "test_examples"};
    snprintf(path, sizeof path, "%s/ref7m_kv.h", folder);
    vqkvc_model_open(&model, MODEL, 0, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    vqkvc_plan_preset(&plan, vqkvc_model_geometry(model), scheme, NULL, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    gen_header(&plan, &options, &header, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    vqkvc_write_file(path, header.data, header.len, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    free(header.data);
    vqkvc_plan_free(&plan);
    vqkvc_model_close(model);
}

/* Builds an example that uses the reference model reader: $D/NAME. */
static void build_with_reader(const char *name, const char *sources, const char *opt)
{
    cr_assert_eq(shell(NULL,
                       COMPILER
                       " -std=c11 -D_GNU_SOURCE %s -Wall -Wextra -Werror -fopenmp " SANITIZERS
                       " -Icompiler -I. -I$D %s $B/libvqkvc.a -o $D/%s "
                       "$(pkg-config --cflags --libs " PACKAGES ") -ldl -lm",
                       opt, sources, name),
                 0);
}

/* ---- minimal.c ---- */

Test(examples, minimal_has_under_80_lines)
{
    vqkvc_err err = {0};
    vqkvc_buf text = {0};
    int lines = 0;
    cr_assert_eq(vqkvc_read_file("examples/minimal.c", 1 << 16, &text, &err), VQKVC_OK, "%s",
                 err.msg);
    for (size_t i = 0; i < text.len; i++)
        lines += text.data[i] == '\n';
    cr_expect_lt(lines, 80);
    free(text.data);
}

/* Compiles without a warning, is near exact attention, and takes about 4.5 of 16 bits and what the
 * exact window adds; says what it cannot read. */
static void check_minimal(const char *compiler)
{
    static char out[MAX_OUTPUT];
    double error;
    long bytes, fp16;
    emit("q4_0");
    cr_assert_eq(shell(NULL, "%s " STRICT " -I$D examples/minimal.c -o $D/minimal -lm", compiler),
                 0);
    cr_assert_eq(shell(out, "$D/minimal"), 0);
    cr_assert_eq(sscanf(out, "relative error of attention %lf; cache %ld bytes, in fp16 %ld",
                        &error, &bytes, &fp16),
                 3, "%s", out);
    cr_expect(error > 0 && error < 0.05, "%g", error);
    cr_expect_eq(fp16, 512L * 8 * 2 * 2 * 64 * 2);
    cr_expect(bytes > fp16 / 4 && bytes < fp16 / 2, "%ld of %ld", bytes, fp16);
    cr_expect_eq(shell(NULL, "$D/minimal $D/absent 2>$D/err"), 1);
    cr_expect_eq(shell(NULL, "grep -q absent $D/err"), 0);
    cr_expect_eq(shell(NULL, "$D/minimal Makefile 2>$D/err"), 1);
}

Test(examples, minimal_compiles_as_c99_and_is_near_exact_attention)
{
    check_minimal("gcc -std=c99 -O2");
}

Test(examples, minimal_compiles_as_cxx11_and_is_near_exact_attention)
{
    check_minimal("g++ -x c++ -std=c++11 -Og");
}

/* ---- vectors.c ---- */

enum { N_TAPPED = 12, LAYERS = 8, HEADS = 4, KV_HEADS = 2, DIM = 64 };

typedef struct projections {
    float q[HEADS * DIM], k[KV_HEADS * DIM], v[KV_HEADS * DIM];
} projections;

/* What the file should hold, from the forward pass's own tap, which sees no rotation. */
static projections tapped[N_TAPPED][LAYERS];

static vqkvc_code tap(void *self, int layer, int n, const int *seq, const int *pos, const float *q,
                      const float *k, const float *v, vqkvc_err *err)
{
    const vqkvc_geometry *g = self;
    (void)seq;
    (void)err;
    for (int i = 0; i < n; i++) {
        projections *p = &tapped[pos[i]][layer];
        memcpy(p->q, q + i * HEADS * DIM, sizeof p->q);
        memcpy(p->k, k + i * KV_HEADS * DIM, sizeof p->k);
        memcpy(p->v, v + i * KV_HEADS * DIM, sizeof p->v);
        vqkvc_rope_rotate(g, pos[i], p->q, HEADS);
        vqkvc_rope_rotate(g, pos[i], p->k, KV_HEADS);
    }
    return VQKVC_OK;
}

static void run_tapped(const int32_t *ids)
{
    vqkvc_err err = {0};
    vqkvc_model *model = NULL;
    vqkvc_cache cache;
    int seq[N_TAPPED] = {0}, pos[N_TAPPED];
    vqkvc_matrix_init();
    vqkvc_model_open(&model, MODEL, 0, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    vqkvc_geometry g = *vqkvc_model_geometry(model);
    for (int i = 0; i < N_TAPPED; i++)
        pos[i] = i;
    vqkvc_cache_exact(&cache, &g, 1, N_TAPPED, &err);
    vqkvc_forward(model, &cache, &(vqkvc_batch){N_TAPPED, ids, seq, pos},
                  &(vqkvc_tap){.self = &g, .qkv = tap}, NULL, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    cache.free(cache.self);
    vqkvc_model_close(model);
}

Test(examples, vectors_are_those_of_the_forward_pass)
{
    vqkvc_err err = {0};
    vqkvc_buf ids = {0}, file = {0};
    char path[128];
    build_with_reader("vectors", "examples/vectors.c", "-O0");
    cr_assert_eq(shell(NULL, "head -c %d " TOKENS " >$D/ids", 4 * N_TAPPED), 0);
    cr_assert_eq(shell(NULL, "$D/vectors " MODEL " $D/ids $D/vectors.f32"), 0);
    snprintf(path, sizeof path, "%s/vectors.f32", folder);
    vqkvc_read_file(path, 1 << 24, &file, &err);
    vqkvc_read_file(TOKENS, 1 << 20, &ids, &err);
    cr_assert_eq(err.code, VQKVC_OK, "%s", err.msg);
    cr_assert_eq(file.len, sizeof tapped);
    run_tapped((const int32_t *)(const void *)ids.data);
    const float *got = (const float *)(const void *)file.data;
    double worst = 0;
    for (size_t i = 0; i < file.len / sizeof *got; i++)
        worst = fmax(worst, fabs((double)got[i] - (double)((const float *)tapped)[i]));
    cr_expect_lt(worst, 1e-4);
    free(ids.data);
    free(file.data);
}

/* ---- generate.c ---- */

static void build_generate(const char *scheme, const char *opt)
{
    emit(scheme);
    build_with_reader("generate", "examples/generate.c examples/compressed.c", opt);
}

/* The context is long enough that blocks are encoded, in more than one step of the prompt. */
Test(examples, generate_says_the_same_with_the_f16_codec_as_with_the_f16_cache)
{
    static char exact[MAX_OUTPUT], compressed[MAX_OUTPUT], both[MAX_OUTPUT];
    const char *run = "$D/generate -n 64 --context " TOKENS " --context-tokens 300 --cache %s "
                      "2>$D/err";
    build_generate("f16", "-Og");
    cr_assert_eq(shell(exact, run, "f16"), 0);
    cr_assert_eq(shell(compressed, run, "compressed"), 0);
    cr_assert_eq(shell(both, run, "both"), 0);
    cr_expect_gt(strlen(exact), 64);
    cr_expect_str_eq(compressed, exact);
    cr_expect_not_null(strstr(both, "agree  64 of 64\n"), "%s", both);
    const char *first = strstr(both, exact);
    cr_assert_not_null(first, "%s", both);
    cr_expect_not_null(strstr(first + 1, exact), "the second text is another: %s", both);
}

/* Were the header not what answers, q4_0 would take as many bytes as f16. */
Test(examples, generate_shows_a_smaller_cache_and_samples_by_its_seed)
{
    static char a[MAX_OUTPUT], b[MAX_OUTPUT], c[MAX_OUTPUT];
    long exact = 0, compressed = 0;
    build_generate("q4_0", "-Og");
    cr_assert_eq(shell(a, "$D/generate -n 8 --context " TOKENS), 0);
    const char *bytes = strstr(a, "cache, bytes");
    cr_assert_not_null(bytes, "%s", a);
    cr_assert_eq(sscanf(bytes, "cache, bytes fp16 %ld, compressed %ld:", &exact, &compressed), 2);
    cr_expect_eq(exact, (512L + 8 - 1) * 8 * 2 * 2 * 64 * 2);
    cr_expect(compressed > exact / 4 && compressed < exact / 2, "%ld of %ld", compressed, exact);
    const char *sampled = "$D/generate -n 32 --cache compressed --temperature 1 --seed %d 2>$D/err";
    cr_assert_eq(shell(a, sampled, 1), 0);
    cr_assert_eq(shell(b, sampled, 1), 0);
    cr_assert_eq(shell(c, sampled, 2), 0);
    cr_expect_str_eq(a, b);
    cr_expect_str_neq(a, c);
}

Test(examples, generate_ends_with_2_for_wrong_usage_and_explains_itself)
{
    static char out[MAX_OUTPUT];
    static const char *const wrong[] = {
        "--absent",          "-n 0",  "-n 9x",   "--cache fp8", "--seed -1",
        "--temperature nan", "stray", "--cache", "-p ''",       "--context-tokens 0"};
    build_generate("f16", "-O0");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_expect_eq(shell(out, "$D/generate %s 2>$D/err", wrong[i]), 2, "%s", wrong[i]);
        cr_expect_str_empty(out, "%s", wrong[i]);
        cr_expect_eq(shell(NULL, "grep -q -- '--help' $D/err"), 0, "%s", wrong[i]);
    }
    cr_expect_eq(shell(out, "$D/generate --help"), 0);
    cr_expect_not_null(strstr(out, "--cache WHICH"), "%s", out);
    cr_expect_eq(shell(NULL, "$D/generate -m $D/absent.gguf 2>$D/err"), 3);
}
