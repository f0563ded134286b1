/* test_time_model.c - the cost model of attention: its function, its text, its fit, and what the
 * search makes of a limit of time. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "base/rng.h"
#include "capture/simulate.h"
#include "eval/header_isa.h"
#include "eval/synthetic.h"
#include "gen/gen.h"
#include "plan/auto.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        vqkvc_code code_ = (call);                                                                 \
        cr_assert_eq(code_, VQKVC_OK, "%s: %s", #call, err.msg);                                   \
    } while (0)

static const vqkvc_log quiet_log = {.level = -1};

/* No term is free, no two are alike; figures as on a machine with AVX-512. */
static vqkvc_time_model model(int head_dim)
{
    return (vqkvc_time_model){.isa = "avx512",
                              .head_dim = head_dim,
                              .group = 4,
                              .ns = {0.5, 150, 1.2, 0.06, 0.065, 0.07, 1.4, 0.03, 0.032, 0.034,
                                     0.055, 190, 4.6, 10.2, 30, 48, 35, 0.15, 1.2}};
}

static double time_of(const vqkvc_time_model *m, const char *scheme, int block)
{
    vqkvc_err err = {0};
    vqkvc_plan plan;
    vqkvc_geometry g = vqkvc_synthetic_geometry(4, 2, 4, 64);
    OK(vqkvc_synthetic_plan(&plan, &g, scheme, block, &err));
    double ns = vqkvc_time_predict(m, &plan);
    vqkvc_plan_free(&plan);
    return ns;
}

/* All but those of keys that are rebuilt, and of tables that queries meet where they do not turn.
 */
static int used_by_auto2s(int term)
{
    return term != VQKVC_TIME_K2 && term != VQKVC_TIME_REBUILT && term != VQKVC_TIME_DECODE &&
           term != VQKVC_TIME_PRODUCT;
}

Test(time_model, more_work_takes_longer)
{
    vqkvc_time_model m = model(64);
    double own1 = time_of(&m, "auto1", 64), own2 = time_of(&m, "auto2", 64);
    double turned = time_of(&m, "auto2b", 64), shared = time_of(&m, "auto2s", 64);
    cr_expect(0 < own1 && own1 < own2 && own2 < turned && turned < shared, "%g %g %g %g", own1,
              own2, turned, shared);
    cr_expect_lt(time_of(&m, "auto2s", 256), shared, "longer blocks turn queries less often");
    for (int i = 0; i < VQKVC_TIME_TERMS; i++) {
        vqkvc_time_model slower = m;
        slower.ns[i] *= 2;
        if (used_by_auto2s(i))
            cr_expect_gt(time_of(&slower, "auto2s", 64), shared, "term %d", i);
        else
            cr_expect_eq(time_of(&slower, "auto2s", 64), shared, "term %d", i);
    }
    for (const char *const *s = (const char *const[]){"q8_0", "kivi2", "f16", NULL}; *s; s++)
        cr_expect_lt(time_of(&m, *s, 64), 0, "%s is of codes that the model does not know", *s);
}

/* Pieces that the search adds up are the whole that is promised. */
Test(time_model, pieces_make_up_the_plan)
{
    vqkvc_err err = {0};
    vqkvc_plan plan;
    vqkvc_time_model m = model(64);
    vqkvc_geometry g = vqkvc_synthetic_geometry(3, 2, 4, 64);
    OK(vqkvc_synthetic_plan(&plan, &g, "auto2s", 64, &err));
    const vqkvc_window window = {plan.n_sink, plan.n_recent, plan.block};
    double ns = vqkvc_time_heads(&m, VQKVC_FRAME_BLOCK, &window, 6);
    for (int i = 0; i < plan.n_streams; i++) {
        const vqkvc_stream *s = &plan.streams[i];
        const vqkvc_time_readers r = {s->members[0].part, s->frame, plan.block, s->n_members,
                                      s->n_members,       0,        0};
        double each[VQKVC_LAYOUT_RUNS];
        vqkvc_time_groups(&m, &r, each);
        ns += vqkvc_time_stream(&m, &r);
        for (int j = 0; j < s->n_runs; j++)
            for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++) {
                vqkvc_layout_run option = vqkvc_allocate_option(o);
                if (option.width == s->runs[j].width && option.stages == s->runs[j].stages)
                    ns += each[o] * s->runs[j].groups;
            }
    }
    cr_expect_float_eq(ns / 6, vqkvc_time_predict(&m, &plan), 1e-9 * ns);
    vqkvc_plan_free(&plan);
}

Test(time_model, text_is_read_as_it_was_printed)
{
    vqkvc_err err = {0};
    vqkvc_time_model m = model(128), again;
    vqkvc_buf text = {0}, twice = {0};
    vqkvc_time_print(&m, &text);
    OK(vqkvc_time_parse(text.data, &again, &err));
    vqkvc_time_print(&again, &twice);
    cr_expect_str_eq(text.data, twice.data);
    cr_expect(strcmp(again.isa, "avx512") == 0 && again.head_dim == 128 && again.group == 4);
    for (size_t n = 0; n < text.len; n++) { /* a part of it is no model, unless a digit is lost */
        char *part = strndup(text.data, n);
        vqkvc_err cut = {0};
        if (n + 4 < text.len)
            cr_expect_eq(vqkvc_time_parse(part, &again, &cut), VQKVC_E_USAGE, "%s", part);
        free(part);
    }
    free(text.data);
    free(twice.data);
}

Test(time_model, wrong_texts_are_refused_by_field_and_offset)
{
    static const char *const wrong[] = {"",
                                        "isa=AVX,head_dim=1",
                                        "isa=avx2,head_dim=0,",
                                        "isa=avx2,head_dim=64,group=1.5,",
                                        "isa=avx2,head_dim=64,group=4,token=-1,",
                                        "isa=avx2,head_dim=64,group=4,token=nan,",
                                        "isa=avx2,head_dim=64,group=4,tokens=1,"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        vqkvc_time_model m;
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_time_parse(wrong[i], &m, &err), VQKVC_E_USAGE, "'%s'", wrong[i]);
        cr_expect_not_null(strstr(err.msg, "offset"), "%s", err.msg);
    }
    vqkvc_time_model m = model(64);
    vqkvc_buf text = {0};
    vqkvc_time_print(&m, &text);
    vqkvc_buf_puts(&text, ",more=1");
    cr_expect_eq(vqkvc_time_parse(text.data, &m, &(vqkvc_err){0}), VQKVC_E_USAGE);
    free(text.data);
}

/* Measurements that a model made, off by 2 % at most, give a model that predicts as well. */
Test(time_model, a_fit_finds_what_made_the_measurements)
{
    enum { BLOCKS = 2, N = VQKVC_TIME_TERMS };
    vqkvc_err err = {0};
    vqkvc_plan plan = {0};
    vqkvc_time_model m = model(64), fitted = model(64);
    vqkvc_rng rng = vqkvc_rng_make(3, 0);
    double terms[BLOCKS * 64 * N], ns[BLOCKS * 64], worst;
    int n = 0;
    for (int b = 0; b < BLOCKS; b++) {
        OK(vqkvc_synthetic_mixes(&plan, 4, 64, b == 0 ? 64 : 256, &err));
        cr_assert_leq(plan.geometry.n_layers, 64);
        for (int l = 0; l < plan.geometry.n_layers; l++, n++) {
            cr_assert(vqkvc_time_terms(&plan, l, VQKVC_TIME_CONTEXT, terms + n * N));
            ns[n] = 0;
            for (int i = 0; i < N; i++)
                ns[n] += m.ns[i] * terms[n * N + i];
            ns[n] *= 1 + 0.02 * (2 * vqkvc_rng_uniform(&rng) - 1);
        }
        vqkvc_plan_free(&plan);
    }
    OK(vqkvc_time_fit(n, terms, ns, &fitted, &worst, &err));
    cr_expect_lt(worst, 0.04);
    for (int i = 0; i < N; i++)
        cr_expect_geq(fitted.ns[i], 0);
    for (const char *const *s = (const char *const[]){"auto2", "auto2b", "auto2s", NULL}; *s; s++)
        cr_expect_float_eq(time_of(&fitted, *s, 128) / time_of(&m, *s, 128), 1, 0.05, "%s", *s);
    ns[1] = 0;
    cr_expect_eq(vqkvc_time_fit(n, terms, ns, &fitted, &worst, &err), VQKVC_E_NUMERIC);
}

/* Recipes name the instruction set that a header chooses, before there is a header to ask. */
Test(time_model, headers_choose_the_instruction_set_that_is_foretold)
{
    vqkvc_err err = {0};
    vqkvc_plan plan;
    vqkvc_codec codec;
    vqkvc_buf header = {0};
    const struct vqkvc_codec_shape shape = {.n_seq = 1, .n_ctx = 64, .max_batch = 1};
    const vqkvc_geometry g = vqkvc_synthetic_geometry(1, 1, 1, 32);
    size_t bytes;
    void *kv;
    setenv("CC", "sh tests/quick_cc.sh", 1);
    OK(vqkvc_synthetic_plan(&plan, &g, "q8_0", 64, &err));
    OK(gen_header(&plan, &(gen_options){.prefix = "t_kv", .command = ""}, &header, &err));
    OK(vqkvc_codec_load(&codec, "t", header.data, header.len, &err));
    cr_assert_eq(codec.table->size(&shape, &bytes), 0);
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    cr_assert_eq(codec.table->init(&kv, &shape, memory, bytes), 0);
    cr_expect_eq(codec.table->isa_in_use(kv), (int)vqkvc_header_isa_best());
    free(memory);
    vqkvc_codec_free(&codec);
    free(header.data);
    vqkvc_plan_free(&plan);
}

/* ---- the search ---- */

static vqkvc_capture simulate(void)
{
    vqkvc_err err = {0};
    vqkvc_geometry g;
    vqkvc_capture c;
    vqkvc_capture_params params = {.n_tokens = 2048, .n_sample = 1024, .seed = 1};
    vqkvc_matrix_init();
    OK(vqkvc_simulate_geometry("2x4x2x32", &g, &err));
    OK(vqkvc_capture_simulate(&g, &params, &quiet_log, &c, &err));
    return c;
}

/* The time of the plan that a limit gives, its bits to *bits; negative if there is none. */
static double plan_within(const vqkvc_capture *c, vqkvc_auto_params p, double *bits,
                          vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_hash parent = kvdb_recipe_hash("capture", "r");
    vqkvc_cost cost;
    if (vqkvc_plan_auto(plan, c, &p, NULL, &parent, &quiet_log, err) != VQKVC_OK)
        return -1;
    vqkvc_plan_cost(plan, 4096, &cost);
    *bits = vqkvc_cost_stored(&cost);
    return vqkvc_time_predict(p.time, plan);
}

Test(time_model, plans_keep_their_limit_of_time)
{
    vqkvc_capture c = simulate();
    vqkvc_time_model m = model(32);
    vqkvc_plan plan;
    vqkvc_err err = {0};
    vqkvc_auto_params p = {
        .bits = 2, .max_scan = -1, .frame = VQKVC_FRAME_BLOCK, .window = {0, 0, 64}, .time = &m};
    double all_bits, bits, free_ns = plan_within(&c, p, &all_bits, &plan, &err);
    cr_assert_gt(free_ns, 0, "%s", err.msg);
    vqkvc_plan_free(&plan);
    for (double part = 0.8; part > 0.5; part -= 0.15) {
        p.max_ns = free_ns * part;
        double ns = plan_within(&c, p, &bits, &plan, &err);
        cr_assert_gt(ns, 0, "%g of %g ns: %s", p.max_ns, free_ns, err.msg);
        cr_expect_leq(ns, p.max_ns);
        cr_expect_lt(ns, free_ns);
        cr_expect_leq(bits, 2 + 1e-9);
        vqkvc_plan_free(&plan);
    }
    p.any_frame = 1; /* keys rotated by their positions take no map at all */
    p.max_ns = 4.5;
    double ns = plan_within(&c, p, &bits, &plan, &err);
    cr_expect(0 < ns && ns <= p.max_ns, "%g of %g ns: %s", ns, p.max_ns, err.msg);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}

/* A model alone, without a limit, and a limit that does not bind, change nothing. */
Test(time_model, a_limit_that_does_not_bind_changes_nothing)
{
    vqkvc_capture c = simulate();
    vqkvc_time_model m = model(32);
    vqkvc_hash parent = kvdb_recipe_hash("capture", "r"), hash[3];
    vqkvc_auto_params p = {
        .bits = 1.5, .max_scan = 4, .frame = VQKVC_FRAME_BLOCK, .window = {0, 0, 64}};
    for (int i = 0; i < 3; i++) {
        vqkvc_plan plan;
        vqkvc_err err = {0};
        p.time = i > 0 ? &m : NULL;
        p.max_ns = i > 1 ? 1e6 : 0;
        OK(vqkvc_plan_auto(&plan, &c, &p, NULL, &parent, &quiet_log, &err));
        OK(vqkvc_plan_hash(&plan, &hash[i], &err));
        vqkvc_plan_free(&plan);
    }
    cr_expect_str_eq(hash[0].hex, hash[1].hex);
    cr_expect_str_eq(hash[0].hex, hash[2].hex);
    vqkvc_capture_free(&c);
}

/* What the message names as the least can be had. */
Test(time_model, an_impossible_limit_says_what_is_possible)
{
    vqkvc_capture c = simulate();
    vqkvc_time_model m = model(32);
    vqkvc_plan plan;
    vqkvc_err err = {0}, again = {0};
    double bits, least;
    vqkvc_auto_params p = {.bits = 2, .max_scan = 5.5, .max_ns = 0.5, .any_frame = 1, .time = &m};
    cr_expect_lt(plan_within(&c, p, &bits, &plan, &err), 0);
    cr_expect_eq(err.code, VQKVC_E_INFEASIBLE);
    const char *words = "the least that was found takes ";
    const char *at = strstr(err.msg, words);
    cr_assert(at != NULL && strstr(err.msg, "0.5 ns") != NULL, "%s", err.msg);
    cr_assert_eq(sscanf(at + strlen(words), "%lf", &least), 1);
    p.max_ns = least * 1.02;
    double ns = plan_within(&c, p, &bits, &plan, &again);
    cr_expect(0 < ns && ns <= p.max_ns, "%g of %g ns: %s", ns, p.max_ns, again.msg);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&c);
}
