/* Sampling: the drawn token follows the distribution that the parameters describe. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>

#include "model/model.h"

/* Probabilities 0.4, 0.1, 0.2, 0.3 at temperature 1. */
static const float logits[4] = {-0.916290732f, -2.302585093f, -1.609437912f, -1.203972804f};

/* How often each token is drawn over an even grid of random numbers. */
static void draw(float temperature, int top_k, float top_p, double share[4])
{
    enum { DRAWS = 10000 };
    for (int i = 0; i < 4; i++)
        share[i] = 0;
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = vqkvc_sample_token(logits, 4, temperature, top_k, top_p, (i + 0.5) / DRAWS);
        cr_assert(id >= 0 && id < 4);
        share[id] += 1.0 / DRAWS;
    }
}

static void expect(const double share[4], double a, double b, double c, double d)
{
    const double want[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        cr_assert_float_eq(share[i], want[i], 2e-4, "token %d: %g, not %g", i, share[i], want[i]);
}

Test(sample, unrestricted_draws_follow_the_softmax)
{
    double share[4];
    draw(1, 0, 1, share);
    expect(share, 0.4, 0.1, 0.2, 0.3);
    draw(0.5f, 0, 1, share); /* squares, normalised */
    expect(share, 16.0 / 30, 1.0 / 30, 4.0 / 30, 9.0 / 30);
}

Test(sample, temperature_zero_and_top_one_take_the_largest)
{
    double share[4];
    draw(0, 0, 1, share);
    expect(share, 1, 0, 0, 0);
    draw(5, 1, 1, share);
    expect(share, 1, 0, 0, 0);
    draw(1, 0, 0, share); /* the smallest set holds one token at least */
    expect(share, 1, 0, 0, 0);
}

Test(sample, top_k_and_top_p_renormalise_what_is_left)
{
    double share[4];
    draw(1, 2, 1, share);
    expect(share, 4.0 / 7, 0, 0, 3.0 / 7);
    draw(1, 0, 0.75f, share); /* 0.4 + 0.3 < 0.75: the third one is needed */
    expect(share, 4.0 / 9, 0, 2.0 / 9, 3.0 / 9);
    draw(1, 2, 0.5f, share); /* of the two that top_k leaves, 4/7 already reach a half */
    expect(share, 1, 0, 0, 0);
    draw(1, 100, 2, share);
    expect(share, 0.4, 0.1, 0.2, 0.3);
}

Test(sample, equal_logits_are_ordered_by_id)
{
    const float equal[3] = {1, 1, 1};
    cr_assert_eq(vqkvc_sample_token(equal, 3, 0, 0, 1, 0.9), 0);
    cr_assert_eq(vqkvc_sample_token(equal, 3, 1, 0, 1, 0.1), 0);
    cr_assert_eq(vqkvc_sample_token(equal, 3, 1, 0, 1, 0.5), 1);
    cr_assert_eq(vqkvc_sample_token(equal, 3, 1, 0, 1, 0.9999), 2);
}

Test(sample, extreme_logits_give_a_token)
{
    const float extreme[4] = {-INFINITY, 3e38f, -3e38f, NAN};
    cr_assert_eq(vqkvc_sample_token(extreme, 4, 1, 0, 1, 0.5), 1);
    cr_assert_eq(vqkvc_sample_token(extreme, 4, 0, 0, 1, 0.5), 1);
    const float none[2] = {NAN, NAN};
    int32_t id = vqkvc_sample_token(none, 2, 1, 0, 1, 0.5);
    cr_assert(id == 0 || id == 1);
}
