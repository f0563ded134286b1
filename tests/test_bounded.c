/* The bound on every vector's error, in the reference and in the rate that calibration expects. */
#include <criterion/criterion.h>

#include "linear_capture.h"
#include "plan/bounded.h"

TestSuite(bounded, .timeout = 60);

static double error_of(int n, const float *x, const float *y)
{
    double error = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        double exact = (double)vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[i]));
        error += (exact - y[i]) * (exact - y[i]);
        norm += exact * exact;
    }
    return sqrt(error / norm);
}

static void make_plan(vqkvc_plan *plan, const vqkvc_geometry *g)
{
    vqkvc_err err = {0};
    vqkvc_window window = {4, 16, 32};
    cr_assert_eq(vqkvc_plan_preset(plan, g, "higgs2", &window, &err), VQKVC_OK, "%s", err.msg);
}

/* No vector is beyond the bound; one that was is binary16 now, any other is as it was. */
Test(bounded, reference_holds_the_bound)
{
    vqkvc_geometry g = toy_geometry(2, 2, 32);
    vqkvc_plan plan;
    vqkvc_err err = {0};
    int n = 32, row = 2 * 2 * 32, kept = 0;
    make_plan(&plan, &g);
    float *x = need((size_t)(6 * n * row), sizeof *x), *plain = x + 2 * n * row,
          *bound = plain + 2 * n * row;
    vqkvc_rng rng = vqkvc_rng_make(3, 0);
    for (int i = 0; i < 2 * n * row; i++)
        x[i] = (float)vqkvc_rng_normal(&rng) * (i / 32 % 9 == 0 && i % 32 == 5 ? 30 : 1);
    for (int way = 0; way < 2; way++) {
        float *to = way == 0 ? plain : bound;
        plan.max_error = way == 0 ? 0 : 0.4f;
        cr_assert_eq(vqkvc_plan_reference(&plan, plan.n_streams, n, 4, x, x + n * row, to,
                                          to + n * row, &err),
                     VQKVC_OK, "%s", err.msg);
    }
    for (int i = 0; i < 2 * n * row; i += 32) {
        double before = error_of(32, x + i, plain + i);
        cr_assert_leq(error_of(32, x + i, bound + i), (double)plan.max_error);
        cr_assert(before > (double)plan.max_error
                      ? error_of(32, x + i, bound + i) == 0
                      : memcmp(plain + i, bound + i, 32 * sizeof *x) == 0);
        kept += before > (double)plan.max_error;
    }
    cr_assert(kept > 0 && kept < 2 * n * row / 32 / 2, "%d kept", kept);
    free(x);
    vqkvc_plan_free(&plan);
}

/* The rate falls as the bound rises, is 1 where no vector can be coded so well and 0 where any is
 * good enough; and the same for any number of threads. */
Test(bounded, rate_is_of_the_sample)
{
    vqkvc_capture c;
    vqkvc_plan plan;
    vqkvc_err err = {0};
    static const float bounds[] = {0.01f, 0.3f, 0.45f, 0.6f, 16};
    double last = 1;
    make_linear(&c, UNLINKED, 0, VQKVC_ROPE_HALVES);
    make_plan(&plan, &c.geometry);
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        cr_assert_eq(vqkvc_plan_bound(&plan, &c, bounds[i], &err), VQKVC_OK, "%s", err.msg);
        cr_assert_leq(plan.kept_rate, last);
        cr_assert(i > 0 || plan.kept_rate == 1);
        cr_assert_eq(plan.max_error, bounds[i]);
        last = plan.kept_rate;
    }
    cr_assert_eq(last, 0);
    vqkvc_plan_bound(&plan, &c, 0.45f, &err);
    cr_assert(plan.kept_rate > 0 && plan.kept_rate < 1, "%g", plan.kept_rate);
    c.n_sample = plan.block - 1;
    cr_assert_eq(vqkvc_plan_bound(&plan, &c, 0.45f, &err), VQKVC_E_USAGE);
    vqkvc_capture_free(&c);
    vqkvc_plan_free(&plan);
}
