/* cuda_plans.h - the plans that CUDA kernels are tested on: of toy_plans.h those that differ for
 * them, and others that are small, since threads are run one by one. Together they have every
 * coder, gain, frame, transform and prediction, absorbed where that is possible, head sizes 64, 80,
 * 96, 128 and 256, and groups of 1 to 9 heads. */
#ifndef VQKVC_TESTS_CUDA_PLANS_H
#define VQKVC_TESTS_CUDA_PLANS_H

#include "toy_plans.h"

/* A stream of one head, all of whose latents have codes of 6 bits, but for the first eight: 3 bits
 * in two stages, 9 and 13 bits. */
static inline void cuda_wide_codes(vqkvc_plan *plan, const toy_case *c, vqkvc_part part, int layer)
{
    static const vqkvc_run pattern[] = {{VQKVC_CODER_VQ, 0, 1, 2, 3, 2, 0, -1},
                                        {VQKVC_CODER_VQ, 2, 1, 4, 9, 1, 0, -1},
                                        {VQKVC_CODER_VQ, 6, 1, 2, 13, 1, 0, -1},
                                        {VQKVC_CODER_VQ, 8, 0, 4, 6, 1, 0, -1}};
    vqkvc_stream *s = toy_stream(plan, c, part, layer, 1, 0, "wide codes");
    vqkvc_run *runs = toy_set_runs(plan, s, 4);
    for (int r = 0; r < 4; r++) {
        runs[r] = pattern[r];
        if (r == 3)
            runs[r].groups = (s->n_latents - runs[r].first) / runs[r].width;
        runs[r].book = toy_table(plan, runs[r].groups * runs[r].stages,
                                 runs[r].width << runs[r].bits, 0.9, "book");
    }
}

/* A stream of one head in a Hadamard basis. */
static inline void cuda_mixed(vqkvc_plan *plan, const toy_case *c, vqkvc_part part, int layer)
{
    vqkvc_stream *s = toy_stream(plan, c, part, layer, 1, 0, "mixed");
    s->frame = VQKVC_FRAME_POST;
    s->transform = VQKVC_TRANSFORM_HADAMARD;
    toy_set_gain(s, VQKVC_GAIN_RMS, s->n_latents / 2, 1);
    toy_books(plan, s, 2, 4, 2, 0);
}

/* Wide codes and Hadamard bases by turns, all absorbed. */
static inline void cuda_wide(vqkvc_plan *plan, const toy_case *c)
{
    cuda_wide_codes(plan, c, VQKVC_PART_K, 0);
    cuda_mixed(plan, c, VQKVC_PART_V, 0);
    cuda_mixed(plan, c, VQKVC_PART_K, 1);
    cuda_wide_codes(plan, c, VQKVC_PART_V, 1);
}

/* Keys as q4_0 has them, values as they are. */
static inline void cuda_halves(vqkvc_plan *plan, const toy_case *c)
{
    for (int head = 0; head < c->n_kv_heads; head++) {
        vqkvc_stream *s = toy_stream(plan, c, VQKVC_PART_K, 0, 1, head, "K levels");
        toy_set_gain(s, VQKVC_GAIN_SIGNMAX, 32, 1);
        toy_levels(plan, s, 4);
        s = toy_stream(plan, c, VQKVC_PART_V, 0, 1, head, "V as it is");
        toy_set_runs(plan, s, 1)[0] =
            (vqkvc_run){VQKVC_CODER_F16, 0, s->n_latents, 1, 16, 1, 0, -1};
    }
}

/* Nibbles alone, as tensor cores take them. Keys: a stream of all layers, with codes of every width
 * and number of stages, and what it leaves of each head; values likewise by two layers. */
static inline void cuda_nibbles(vqkvc_plan *plan, const toy_case *c)
{
    for (int head = 0; head < c->n_kv_heads; head++)
        for (int part = 0; part < 2; part++) {
            toy_shared(plan, c, (vqkvc_part)part, 0, c->n_layers, head);
            for (int layer = 0; layer < c->n_layers; layer++) {
                vqkvc_stream *s = toy_stream(plan, c, (vqkvc_part)part, layer, 1, head, "own");
                if (layer % 2 == 1)
                    toy_gain(c, s);
                toy_books(plan, s, layer % 2 == 1 ? 2 : 4, 4, layer % 2 == 1 ? 2 : 1, 1);
            }
        }
}

/* Uniform codes alone, whose codewords are exact in 8 bits: keys in a basis, with gains of either
 * sign, values in groups. */
static inline void cuda_levels(vqkvc_plan *plan, const toy_case *c)
{
    for (int i = 0; i < c->n_kv_heads * c->n_layers * 2; i++) {
        int head = i / 2 % c->n_kv_heads, layer = i / 2 / c->n_kv_heads;
        vqkvc_part part = i % 2 == 0 ? VQKVC_PART_K : VQKVC_PART_V;
        vqkvc_stream *s = toy_stream(plan, c, part, layer, 1, head, "levels");
        if (part == VQKVC_PART_K && layer == 0)
            toy_basis(plan, s);
        toy_set_gain(s, VQKVC_GAIN_SIGNMAX, part == VQKVC_PART_K ? s->n_latents : 16, 1);
        toy_levels(plan, s, 4);
    }
}

/* As in toy_plans.h. */
static const toy_case cuda_own_cases[] = {
    {"dim 80", NULL, 1, 1, 4, 80, UNTURNED, 0, 2, 16, 128, IN_BLOCK, RMS, 8, 2, 1, 0, NULL},
    {"dim 256", NULL, 1, 1, 6, 256, HALVES, 128, 4, 16, 32, POST, RMS, 8, 2, 1, 1, NULL},
    {"group 7", NULL, 1, 1, 7, 128, HALVES, 128, 2, 8, 32, IN_BLOCK, RMS, 16, 1, 1, 0, NULL},
    {"wide", NULL, 2, 1, 1, 64, PAIRS, 24, 0, 8, 32, IN_BLOCK, NO_GAIN, 0, 1, 0, 1, cuda_wide},
    {"nibbles", NULL, 2, 1, 4, 64, HALVES, 32, 4, 16, 64, IN_BLOCK, RMS, 8, 2, 2, 1, cuda_nibbles},
    {"levels", NULL, 1, 2, 5, 48, PAIRS, 48, 2, 8, 64, POST, NO_GAIN, 0, 1, 1, 1, cuda_levels},
    {"long", NULL, 1, 1, 2, 32, PAIRS, 16, 1, 8, 256, POST, NO_GAIN, 0, 1, 1, 0, cuda_levels},
    {"halves", NULL, 1, 2, 5, 96, PAIRS, 96, 4, 16, 128, IN_BLOCK, RMS, 0, 1, 0, 0, cuda_halves},
};
enum { N_CUDA_OWN = sizeof cuda_own_cases / sizeof *cuda_own_cases };

/* Those of toy_plans.h that are taken. */
static const char *const cuda_toys[] = {"golden", "shifts", "outliers", "chain", "spans"};
enum {
    N_CUDA_TOYS = sizeof cuda_toys / sizeof *cuda_toys,
    N_CUDA_CASES = N_CUDA_TOYS + N_CUDA_OWN
};

static inline const toy_case *cuda_case(int i)
{
    if (i >= N_CUDA_TOYS)
        return &cuda_own_cases[i - N_CUDA_TOYS];
    for (int k = 0; k < N_TOY_CASES; k++)
        if (strcmp(toy_cases[k].name, cuda_toys[i]) == 0)
            return &toy_cases[k];
    cr_assert(0, "no case %s", cuda_toys[i]);
    return NULL;
}

/* The plan of a case without a bound on errors, which the CUDA header does not have; the golden one
 * keeps its landmarks. */
static inline void cuda_plan(vqkvc_plan *plan, const toy_case *c)
{
    toy_plan(plan, c);
    plan->max_error = 0;
    plan->kept_rate = 0;
}

#endif
