/* Which rotation coded keys carry: spans, and latents in bands. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan/bands.h"
#include "plan/frame.h"
#include "plan_toy.h"

/* A large model's heads: 128 channels, a RoPE base of 500000. */
static vqkvc_geometry large(void)
{
    vqkvc_geometry g = toy_geometry(1, 1, 128);
    g.rope_layout = VQKVC_ROPE_HALVES;
    g.n_rot = 128;
    for (int i = 0; i < 64; i++)
        g.rope_freq[i] = pow(500000, -2.0 * i / 128);
    return g;
}

Test(frame, spans_are_as_long_as_a_pair_turns_little)
{
    static const double in_span[] = {0.5, 1}, in_block[] = {12, 2 * 3.14159265358979};
    vqkvc_geometry g = large();
    for (int bands = 0; bands < 2; bands++)
        for (int block = 64; block <= 256; block *= 2) {
            uint8_t stretch[VQKVC_MAX_HEAD_DIM / 2];
            int kinds[3] = {0};
            vqkvc_frame_stretch(&g, block, bands, stretch);
            for (int i = 0; i < 64; i++) {
                int span = vqkvc_frame_span(block, stretch[i]);
                double f = g.rope_freq[i];
                cr_expect_eq(span == 0, f * block > in_block[bands], "pair %d", i);
                if (span > block)
                    cr_expect_leq(f * span, in_span[bands], "pair %d", i);
                if (span > 0 && span < VQKVC_STEADY_SPAN)
                    cr_expect_gt(f * 2 * span, in_span[bands], "pair %d", i);
                cr_expect_leq(span, VQKVC_STEADY_SPAN);
                kinds[span == 0 ? 0 : span < VQKVC_STEADY_SPAN ? 1 : 2]++;
            }
            cr_expect(kinds[0] > 0 && kinds[1] > 0 && kinds[2] > 0, "block %d: %d, %d, %d", block,
                      kinds[0], kinds[1], kinds[2]);
            vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, block, stretch, bands};
            cr_expect_float_eq(vqkvc_frame_turning_share(&g, &frame), kinds[1] / 64.0, 1e-12);
        }
}

/* A key's turn is its distance from the base that its pair is turned back by, for every pair, and
 * all distances below a span are equally frequent. */
Test(frame, turns_are_distances_from_bases)
{
    vqkvc_plan plan = {.geometry = large(), .n_sink = 4, .block = 64};
    double turns[64], sum[64] = {0};
    vqkvc_frame_stretch(&plan.geometry, plan.block, 1, plan.stretch);
    vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, plan.block, plan.stretch, 1};
    for (int at = 0; at < 4096; at++) {
        vqkvc_frame_turns(&plan.geometry, &frame, at, turns);
        int64_t position = plan.n_sink + at / plan.block * plan.block;
        for (int i = 0; i < 64; i++) {
            int64_t base = vqkvc_frame_base(&plan, i, position);
            int endless = plan.stretch[i] == VQKVC_STRETCH_ENDLESS;
            cr_assert_eq((int64_t)turns[i], endless ? at : plan.n_sink + at - base, "pair %d", i);
            cr_assert(endless ? base == 0 : base <= position);
            sum[i] += turns[i];
        }
    }
    for (int i = 0; i < 64; i++) {
        int span = vqkvc_frame_span(plan.block, plan.stretch[i]);
        cr_expect_float_eq(sum[i] / 4096, ((span > 0 ? span : 4096) - 1) / 2.0, 1e-9);
    }
    cr_expect_eq(vqkvc_frame_period(&plan.geometry, &frame) % 1024, 0);
    frame.stretch = NULL;
    cr_expect_eq(vqkvc_frame_period(&plan.geometry, &frame), plan.block);
}

Test(frame, bands_part_what_they_should_and_nothing_else)
{
    enum { N = 256 };
    vqkvc_geometry g = large();
    uint8_t stretch[VQKVC_MAX_HEAD_DIM / 2];
    double *m = need(N * N, sizeof *m);
    vqkvc_frame_stretch(&g, 128, 1, stretch);
    vqkvc_key_frame frame = {VQKVC_FRAME_BLOCK, 128, stretch, 0};
    for (int bands = 0; bands < 2; bands++) {
        frame.bands = bands;
        for (int i = 0; i < N * N; i++)
            m[i] = 1 + i;
        vqkvc_frame_separate(&g, &frame, N, m);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                int apart = vqkvc_frame_is_turning(&g, &frame, i % 128) !=
                            vqkvc_frame_is_turning(&g, &frame, j % 128);
                cr_assert_eq(m[i * N + j], bands && apart ? 0 : 1 + i * N + j);
            }
    }
    free(m);
}

/* ---- latents in bands ---- */

static const vqkvc_layout layout = {.n_runs = 4,
                                    .n_channels = 6 + 10 + 12 + 16,
                                    .runs = {{1, 1, 6}, {2, 1, 5}, {4, 2, 3}, {8, 1, 2}}};
enum { LATENTS = 60 };

/* Every group keeps its width and stages; latents are taken once, by falling variance in each band;
 * steady groups stand in front and have steady latents only. */
static void check_bands(const uint8_t *turning, int mixes)
{
    vqkvc_err err = {0};
    vqkvc_bands bands;
    int seen[LATENTS] = {0}, left[4] = {6, 5, 3, 2}, at = 0, mixed = 0, turned = 0;
    cr_assert_eq(vqkvc_make_bands(&layout, LATENTS, turning, &bands, &err), VQKVC_OK);
    for (int r = 0; r < bands.n_runs; r++) {
        const vqkvc_layout_run *run = &bands.runs[r];
        int option = run->width == 1 ? 0 : run->width == 2 ? 1 : run->width == 4 ? 2 : 3;
        cr_expect_eq(run->stages, layout.runs[option].stages);
        left[option] -= run->groups;
        for (int g = 0; g < run->groups; g++) {
            int n = 0;
            for (int i = 0; i < run->width; i++, at++) {
                cr_assert(bands.order[at] >= 0 && bands.order[at] < LATENTS);
                seen[bands.order[at]]++;
                n += turning[bands.order[at]];
                cr_expect(i == 0 || bands.order[at] > bands.order[at - 1]);
            }
            mixed += n > 0 && n < run->width;
            cr_expect(n > 0 || !turned, "a steady group behind a turning one");
            turned |= n > 0;
        }
    }
    cr_expect_eq(at, layout.n_channels);
    for (int o = 0; o < 4; o++)
        cr_expect_eq(left[o], 0, "groups of option %d", o);
    for (int i = 0; i < LATENTS; i++)
        cr_expect_leq(seen[i], 1, "latent %d", i);
    cr_expect_eq(mixed > 0, mixes);
    free(bands.order);
}

Test(frame, latents_are_put_in_bands)
{
    uint8_t turning[LATENTS] = {0};
    check_bands(turning, 0);
    for (int i = 0; i < LATENTS; i++)
        turning[i] = i % 3 == 1;
    check_bands(turning, 0);
    for (int i = 0; i < LATENTS; i++)
        turning[i] = i % 5 != 0;
    check_bands(turning, 0);
    memset(turning, 1, sizeof turning);
    check_bands(turning, 0);
}

/* Without turning latents, and with nothing else, a layout stays as it is. */
Test(frame, one_band_changes_nothing)
{
    for (int kind = 0; kind < 2; kind++) {
        vqkvc_err err = {0};
        vqkvc_bands bands;
        uint8_t turning[LATENTS];
        memset(turning, kind, sizeof turning);
        cr_assert_eq(vqkvc_make_bands(&layout, LATENTS, turning, &bands, &err), VQKVC_OK);
        cr_expect_eq(bands.n_runs, layout.n_runs);
        cr_expect_eq(memcmp(bands.runs, layout.runs, sizeof *layout.runs * 4), 0);
        for (int i = 0; i < layout.n_channels; i++)
            cr_expect_eq(bands.order[i], i);
        free(bands.order);
    }
}

/* Where both kinds run out in the middle of a group, it has some of each. */
Test(frame, groups_are_mixed_where_nothing_else_is_left)
{
    vqkvc_err err = {0};
    vqkvc_bands bands;
    const vqkvc_layout eights = {.n_runs = 1, .n_channels = 16, .runs = {{8, 1, 2}}};
    uint8_t turning[16];
    for (int i = 0; i < 16; i++)
        turning[i] = i >= 11;
    cr_assert_eq(vqkvc_make_bands(&eights, 16, turning, &bands, &err), VQKVC_OK);
    int seen[16] = {0};
    for (int i = 0; i < 16; i++)
        seen[bands.order[i]]++;
    for (int i = 0; i < 16; i++) {
        cr_expect_eq(seen[i], 1);
        cr_expect(i >= 8 || bands.order[i] == i, "the first group is steady");
    }
    free(bands.order);
}
