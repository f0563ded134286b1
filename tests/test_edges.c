/* Calibration at its numerical edges: what captures may hold that no healthy model gives. Every
 * scheme that is fitted gives a plan that is sound and codes the very sample about as well as any,
 * and of what does not vary, nearly to itself; too few samples are refused. (NaN and infinity never
 * get as far: test_capture.c.) */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "capture/collect.h"
#include "command/commands.h"
#include "command/schemes.h"
#include "plan_toy.h"

enum { LAYERS = 2, HEADS = 2, DIM = 16, TOKENS = 288, WIDTH = HEADS * DIM };

static const char *const SCHEMES[] = {"auto2",    "auto1",      "vqkv",  "svdq",
                                      "kvquant2", "kvquant3-1", "aqua2", "anchor2"};

enum { N_SCHEMES = sizeof SCHEMES / sizeof *SCHEMES };

/* What is odd about a capture. */
typedef enum oddity {
    ORDINARY,
    CONSTANT_CHANNELS, /* every third channel never changes */
    DEAD_HEAD,         /* head 1 of layer 1 is all zeros, in keys, values and queries */
    EQUAL_TOKENS,      /* every token is the same */
    ALL_ZERO,
    SMALL,       /* a thousandth of the usual */
    HUGE_CHANNEL /* one channel 100 times the others */
} oddity;

static double value_of(oddity odd, int kind, int layer, int channel, vqkvc_rng *rng)
{
    double x = (1 + channel % 4) * vqkvc_rng_normal(rng) + 0.5 * (channel % 3);
    int head = channel / DIM;
    switch (odd) {
    case CONSTANT_CHANNELS:
        return channel % 3 == 0 ? 1.25 : x;
    case DEAD_HEAD: /* two query heads a KV head */
        return layer == 1 && (kind == VQKVC_QUERY ? head / 2 : head) == 1 ? 0 : x;
    case EQUAL_TOKENS:
        return 0.25 * (channel % 7) - 0.5;
    case ALL_ZERO:
        return 0;
    case SMALL:
        return 1e-3 * x;
    case HUGE_CHANNEL:
        return channel == 5 ? 100 * x : x;
    default:
        return x;
    }
}

/* A capture of n tokens with true statistics. */
static void make_capture(vqkvc_capture *c, oddity odd, int n)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_geometry(LAYERS, HEADS, DIM);
    vqkvc_collector collector;
    vqkvc_rng rng = vqkvc_rng_make(5, (uint64_t)odd);
    float *x = need(2 * (size_t)n * WIDTH, sizeof *x);
    vqkvc_where *where = need((size_t)n, sizeof *where);
    for (int i = 0; i < n; i++)
        where[i] = (vqkvc_where){.slot = i, .doc = 0, .pos = 4 + i};
    cr_assert_eq(vqkvc_capture_alloc(c, &g, n, &err), VQKVC_OK, "%s", err.msg);
    c->n_sample = n;
    c->n_tokens = (uint64_t)n;
    cr_assert_eq(vqkvc_collector_begin(&collector, c, &err), VQKVC_OK);
    for (int layer = 0; layer < LAYERS; layer++)
        for (int kind = 0; kind < 3; kind++) {
            int width = vqkvc_kind_width(&g, (vqkvc_kind)kind);
            for (int i = 0; i < n * width; i++)
                x[i] = (float)value_of(odd, kind, layer, i % width, &rng);
            cr_assert_eq(
                vqkvc_collector_put(&collector, (vqkvc_kind)kind, layer, n, where, x, &err),
                VQKVC_OK, "%s", err.msg);
        }
    vqkvc_collector_finish(&collector);
    vqkvc_collector_free(&collector);
    free(x);
    free(where);
}

/* As `vqkvc build --scheme` makes it. */
static vqkvc_code make_plan(const char *word, const vqkvc_capture *c, vqkvc_plan *plan,
                            vqkvc_err *err)
{
    static const vqkvc_log quiet = {.level = -1};
    char build[] = "build", model[] = "model.gguf", *words[] = {build, model};
    vqkvc_options o;
    vqkvc_hash parent = vqkvc_hash_text("capture");
    vqkvc_matrix_init();
    *plan = (vqkvc_plan){0};
    VQKVC_TRY(vqkvc_options_parse(&vqkvc_command_build, 2, words, &o, err));
    VQKVC_TRY(vqkvc_scheme_apply(word, &o, err));
    vqkvc_scheme_input in = {
        .options = &o, .geometry = &c->geometry, .capture = c, .parent = &parent, .log = &quiet};
    return vqkvc_scheme_of(&o)->make(&in, plan, err);
}

/* Squared error of a block of the sample through the plan over its squares; fails for what is not
 * finite. */
static double relative_error(const vqkvc_plan *plan, const vqkvc_capture *c)
{
    const vqkvc_geometry *g = &c->geometry;
    int n = plan->block;
    size_t row = (size_t)LAYERS * WIDTH, total = (size_t)n * row;
    float *k = need(4 * total, sizeof *k), *v = k + total, *k_hat = v + total,
          *v_hat = k_hat + total;
    vqkvc_err err = {0};
    double error = 0, square = 0;
    cr_assert_leq(n, c->n_sample);
    for (int t = 0; t < n; t++)
        for (int layer = 0; layer < LAYERS; layer++) {
            float *key = k + (size_t)t * row + (size_t)layer * WIDTH;
            vqkvc_capture_read(c, VQKVC_KEY, layer, t, 1, key);
            vqkvc_rope_rotate(g, t, key, HEADS);
            vqkvc_capture_read(c, VQKVC_VALUE, layer, t, 1, key - k + v);
        }
    cr_assert_eq(vqkvc_plan_reference(plan, plan->n_streams, n, 0, k, v, k_hat, v_hat, &err),
                 VQKVC_OK, "%s", err.msg);
    for (size_t i = 0; i < 2 * total; i++) {
        double e = (double)k_hat[i] - (double)k[i];
        cr_assert(isfinite(k_hat[i]));
        error += e * e;
        square += (double)k[i] * (double)k[i];
    }
    free(k);
    return square > 0 ? error / square : error;
}

/* most: the relative error that every scheme stays within. */
static void check(oddity odd, double most)
{
    vqkvc_capture c;
    make_capture(&c, odd, TOKENS);
    for (int i = 0; i < N_SCHEMES; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        cr_assert_eq(make_plan(SCHEMES[i], &c, &plan, &err), VQKVC_OK, "%s: %s", SCHEMES[i],
                     err.msg);
        cr_expect_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s: %s", SCHEMES[i], err.msg);
        double error = relative_error(&plan, &c);
        cr_expect_leq(error, most, "%s: relative error %g", SCHEMES[i], error);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&c);
}

/* The largest errors of all are auto's at 1 bit of white noise: 0.4. */
Test(edges, channels_that_never_change)
{
    check(CONSTANT_CHANNELS, 0.35);
}

Test(edges, a_head_of_zeros_that_no_query_meets)
{
    check(DEAD_HEAD, 0.45);
}

Test(edges, equal_tokens)
{
    check(EQUAL_TOKENS, 0.03);
}

Test(edges, zeros_stay_zeros)
{
    check(ALL_ZERO, 0);
}

Test(edges, small_values)
{
    check(SMALL, 0.45);
}

Test(edges, one_huge_channel)
{
    check(HUGE_CHANNEL, 0.1);
}

/* 200 tokens for 256 codewords and more. */
Test(edges, too_few_samples_are_counted_in_the_message)
{
    vqkvc_capture c;
    make_capture(&c, ORDINARY, 200);
    for (int i = 0; i < N_SCHEMES; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        cr_expect_eq(make_plan(SCHEMES[i], &c, &plan, &err), VQKVC_E_USAGE, "%s", SCHEMES[i]);
        cr_expect_not_null(strstr(err.msg, "200 sampled tokens are too few"), "%s: %s", SCHEMES[i],
                           err.msg);
        cr_expect_eq(plan.n_streams, 0);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&c);
}
