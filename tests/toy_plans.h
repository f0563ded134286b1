/* toy_plans.h - plans from a seed, one for each family of what the emitter supports.
 *
 * Tables are uniform random numbers and frequencies are quotients, so that the bytes do not depend
 * on the accuracy of a libm: tests/golden/toy_kv.h is emitted from case 0. */
#ifndef VQKVC_TESTS_TOY_PLANS_H
#define VQKVC_TESTS_TOY_PLANS_H

#include "toy_methods.h"

/* name, scheme; layers, KV heads, group, head_dim; rope, n_rot; sinks, recent, block; frame; gain,
 * its bits, groups; V layers shared, means. The last five mean nothing to presets, and what stands
 * behind the block nothing to methods. */
static const toy_case toy_cases[] = {
    {"golden", NULL, 3, 1, 8, 16, HALVES, 16, 4, 24, 32, IN_BLOCK, RMS, 8, 1, 2, 1, NULL},
    {"pre", NULL, 3, 2, 3, 40, PAIRS, 24, 0, 0, 32, PRE, NO_GAIN, 0, 1, 2, 1, NULL},
    {"post", NULL, 5, 1, 2, 64, HALVES, 64, 33, 40, 64, POST, RMS, 16, 2, 3, 0, NULL},
    {"unturned", NULL, 2, 1, 4, 80, UNTURNED, 0, 2, 16, 128, IN_BLOCK, RMS, 8, 2, 2, 0, NULL},
    {"f16", "f16", 2, 2, 1, 64, PAIRS, 64, 4, 32, 64, POST, NO_GAIN, 0, 0, 0, 0, NULL},
    {"q8_0", "q8_0", 2, 1, 2, 80, PAIRS, 80, 4, 32, 32, PRE, NO_GAIN, 0, 0, 0, 0, NULL},
    {"q4_0", "q4_0", 2, 2, 3, 96, HALVES, 48, 4, 32, 128, IN_BLOCK, NO_GAIN, 0, 0, 0, 0, NULL},
    {"higgs2", "higgs2", 2, 2, 4, 128, HALVES, 128, 4, 32, 64, POST, NO_GAIN, 0, 0, 0, 0, NULL},
    {"wide", NULL, 2, 1, 5, 48, HALVES, 48, 4, 32, 64, POST, RMS, 16, 1, 0, 0, NULL},
    {"wide block", NULL, 1, 2, 2, 48, PAIRS, 24, 0, 8, 32, IN_BLOCK, NO_GAIN, 0, 1, 0, 1, NULL},
    {"higgs3", "higgs3", 1, 2, 1, 64, HALVES, 64, 4, 32, 32, PRE, NO_GAIN, 0, 0, 0, 0, NULL},
    {"ranges", NULL, 2, 2, 2, 48, PAIRS, 24, 4, 16, 64, PRE, NO_GAIN, 0, 0, 0, 0, toy_ranges},
    {"shifts", NULL, 2, 1, 9, 32, HALVES, 32, 2, 16, 64, IN_BLOCK, NO_GAIN, 0, 0, 0, 0, toy_shifts},
    {"outliers", NULL, 3, 1, 2, 96, HALVES, 96, 0, 8, 32, POST, NO_GAIN, 0, 0, 0, 0, toy_outliers},
    {"chain", NULL, 3, 2, 3, 24, HALVES, 16, 4, 16, 32, PRE, NO_GAIN, 0, 0, 0, 0, toy_chain},
    {"falling", NULL, 1, 2, 5, 48, HALVES, 48, 4, 24, 64, IN_BLOCK, RMS, 8, 1, 1, 1, toy_falling},
    {"still", NULL, 1, 1, 2, 48, UNTURNED, 48, 4, 24, 64, IN_BLOCK, RMS, 8, 1, 1, 1, toy_falling},
    {"idle", NULL, 1, 2, 5, 48, HALVES, 48, 4, 24, 64, IN_BLOCK, RMS, 8, 1, 1, 1, toy_idle},
    {"bands", NULL, 2, 1, 5, 48, HALVES, 40, 4, 24, 256, IN_BLOCK, RMS, 8, 1, 1, 1, toy_bands},
    {"weak", NULL, 1, 1, 4, 160, HALVES, 160, 4, 24, 64, IN_BLOCK, RMS, 8, 1, 1, 1, toy_weak},
    {"spans", NULL, 2, 1, 2, 32, PAIRS, 32, 3, 16, 128, IN_BLOCK, RMS, 8, 1, 1, 0, toy_spans},
};
enum { N_TOY_CASES = sizeof toy_cases / sizeof *toy_cases };

static inline void toy_plan_streams(vqkvc_plan *plan, const toy_case *c)
{
    for (int slot = 0; c->share == 0 && slot < 2 * c->n_layers * c->n_kv_heads; slot++)
        toy_wide(plan, c, slot % 2 ? VQKVC_PART_V : VQKVC_PART_K, slot / 2 / c->n_kv_heads,
                 slot / 2 % c->n_kv_heads);
    for (int head = 0; head < c->n_kv_heads && c->share > 0; head++) {
        toy_shared(plan, c, VQKVC_PART_K, 0, c->n_layers, head);
        for (int layer = 0; layer < c->n_layers; layer++)
            toy_own(plan, c, VQKVC_PART_K, layer, head);
        for (int layer = 0; layer < c->n_layers; layer += c->share)
            toy_shared(plan, c, VQKVC_PART_V, layer,
                       layer + c->share > c->n_layers ? c->n_layers - layer : c->share, head);
        toy_own(plan, c, VQKVC_PART_V, 0, head);
    }
}

/* The plan of a case; the caller frees it. The golden one has landmarks and a bound on every error,
 * so that all tests of caches meet them. */
static inline void toy_plan(vqkvc_plan *plan, const toy_case *c)
{
    vqkvc_err err = {0};
    vqkvc_geometry g = toy_case_geometry(c);
    vqkvc_window window = {c->n_sink, c->n_recent, c->block};
    if (c->scheme != NULL) {
        vqkvc_plan_preset(plan, &g, c->scheme, &window, &err);
        for (int i = 0; i < plan->n_streams; i++)
            if (plan->streams[i].members[0].part == VQKVC_PART_K)
                plan->streams[i].frame = c->frame;
    } else {
        *plan = (vqkvc_plan){.geometry = g,
                             .scheme = "toy",
                             .n_sink = c->n_sink,
                             .n_recent = c->n_recent,
                             .block = c->block};
        if (c->method != NULL)
            c->method(plan, c);
        else
            toy_plan_streams(plan, c);
    }
    if (strcmp(c->name, "golden") == 0) {
        plan->landmarks = 8;
        plan->max_error = 0.9f;
        plan->kept_rate = 0.125;
    }
    cr_assert_eq(vqkvc_plan_validate(plan, &err), VQKVC_OK, "%s: %s", c->name, err.msg);
}

#endif
