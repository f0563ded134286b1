/* What the emitted header computes: on every instruction set the plan's arithmetic, under the
 * sanitizers too. runtime_check.c runs it. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "runtime_check.h"
#include "toy_emitted.h"

TestSuite(arithmetic, .init = make_dir, .fini = remove_dir, .timeout = TEST_SECONDS);

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

/* So many that spans of 1024 tokens end. */
static int enough_blocks(int index, int least)
{
    return toy_cases[index].method == toy_bands ? 5 : least;
}

/* Books of 2^13 words, which are slow to search where nothing is optimized: fewer blocks will do.
 */
static int slow_blocks(int index)
{
    return strncmp(toy_cases[index].name, "wide", 4) == 0 ? 1 : 2;
}

/* Compiled in a third of the time that -O2 takes, and run in about the same. With -O2 itself three
 * cases are tested, which between them absorb, in bytes and not, and rebuild. */
#define QUICK "gcc -Og"

static int case_indices[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10,
                             11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
_Static_assert(sizeof case_indices / sizeof *case_indices == N_TOY_CASES, "a case without a test");

ParameterizedTestParameters(arithmetic, does_the_plans_arithmetic)
{
    return cr_make_param_array(int, case_indices, N_TOY_CASES);
}

ParameterizedTest(int *index, arithmetic, does_the_plans_arithmetic)
{
    int optimized = *index == 0 || *index == 2 || *index == 12 || *index == 18;
    check_arithmetic(*index, optimized ? "gcc -O2" : QUICK, "", "", enough_blocks(*index, 4));
}

ParameterizedTestParameters(arithmetic, does_the_plans_arithmetic_in_neon)
{
    return cr_make_param_array(int, case_indices, N_TOY_CASES);
}

ParameterizedTest(int *index, arithmetic, does_the_plans_arithmetic_in_neon)
{
    if (have("aarch64-linux-gnu-gcc") && have("qemu-aarch64"))
        check_arithmetic(*index, "aarch64-linux-gnu-" QUICK " -static", "qemu-aarch64", "neon",
                         slow_blocks(*index));
}

static int sanitized_indices[] = {0, 1, 2, 9, 12, 14, 15, 18, 19};

ParameterizedTestParameters(arithmetic, is_sound_under_sanitizers)
{
    return cr_make_param_array(int, sanitized_indices,
                               sizeof sanitized_indices / sizeof *sanitized_indices);
}

#define SANITIZED                                                                                  \
    "-O0 -g -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"

/* Together these have every coder, gain, frame, transform and prediction. Unoptimized: instrumented
 * code of all kernels takes a compiler longer than it saves. By clang, which is quicker at it and
 * sees offsets from NULL; test_sparse.c has gcc's sanitizers. */
ParameterizedTest(int *index, arithmetic, is_sound_under_sanitizers)
{
    check_arithmetic(*index, have("clang") ? "clang " SANITIZED : "gcc " SANITIZED, "", "",
                     enough_blocks(*index, slow_blocks(*index)));
}
