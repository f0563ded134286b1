/* Properties of grids for standard normal vectors; figures from the literature and from other
 * implementations. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/matrix.h"
#include "fit/fit.h"

TestSuite(grid, .init = vqkvc_matrix_init);

/* E (X - nearest point)^2 by the midpoint rule. */
static double integrate(int n, const float *points)
{
    const double step = 1e-4;
    double sum = 0;
    int at = 0;
    for (double x = -9; x < 9; x += step) {
        while (at + 1 < n && fabs(x - points[at + 1]) < fabs(x - points[at]))
            at++;
        sum += (x - points[at]) * (x - points[at]) * exp(-0.5 * x * x) * step;
    }
    return sum * 0.3989422804014327;
}

Test(grid, scalar_grids_are_lloyd_max)
{
    const int sizes[] = {1, 2, 3, 4, 8, 16, 64, 255, 256};
    const double known[] = {1, 0.36338, 0.19017, 0.11748, 0.034548, 0.0095010, 0, 0, 0};
    for (int s = 0; s < 9; s++) {
        int n = sizes[s];
        float points[256];
        double distortion;
        vqkvc_err err = {0};
        cr_assert_eq(vqkvc_fit_gaussian_grid(1, n, 0, points, &distortion, &err), VQKVC_OK);
        if (known[s] > 0)
            cr_assert_float_eq(distortion, known[s], 1e-4 * known[s], "n %d: %g", n, distortion);
        cr_assert_float_eq(distortion, integrate(n, points), 2e-3 * distortion, "n %d", n);
        for (int i = 0; i < n; i++) {
            cr_assert_eq(points[i], -points[n - 1 - i]);
            cr_assert(i == 0 || points[i] > points[i - 1]);
        }
    }
}

Test(grid, scalar_levels_are_the_means_of_their_cells)
{
    enum { LEVELS = 128 };
    float points[LEVELS];
    double distortion;
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_fit_gaussian_grid(1, LEVELS, 0, points, &distortion, &err), VQKVC_OK);
    for (int i = 0; i < LEVELS; i++) {
        double low = i ? 0.5 * ((double)points[i - 1] + points[i]) : -INFINITY;
        double high = i + 1 < LEVELS ? 0.5 * ((double)points[i] + points[i + 1]) : INFINITY;
        double mass = 0.5 * (erf(high / sqrt(2)) - erf(low / sqrt(2)));
        double moment = (exp(-0.5 * low * low) - exp(-0.5 * high * high)) / sqrt(2 * acos(-1));
        cr_assert_float_eq(points[i], moment / mass, 1e-4, "level %d", i);
    }
}

static double distortion_of(int d, int n, uint64_t seed, float *points)
{
    double distortion;
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_fit_gaussian_grid(d, n, seed, points, &distortion, &err), VQKVC_OK);
    return distortion;
}

Test(grid, plane_of_16_points)
{
    static float points[16 * 2];
    cr_assert_float_eq(distortion_of(2, 16, 1, points), 0.1075, 0.02 * 0.1075);
    double mean[2] = {0};
    for (int i = 0; i < 32; i++)
        mean[i % 2] += points[i] / 16;
    cr_assert_lt(fabs(mean[0]) + fabs(mean[1]), 0.2);
}

Test(grid, plane_of_64_points)
{
    static float points[64 * 2];
    cr_assert_float_eq(distortion_of(2, 64, 1, points), 0.0296, 0.02 * 0.0296);
}

Test(grid, plane_of_256_points)
{
    static float points[256 * 2];
    cr_assert_float_eq(distortion_of(2, 256, 1, points), 0.0078, 0.02 * 0.0078);
}

Test(grid, four_dimensions_of_256_points)
{
    static float points[256 * 4];
    cr_assert_float_eq(distortion_of(4, 256, 1, points), 0.0965, 0.02 * 0.0965);
}

Test(grid, the_same_for_any_number_of_threads)
{
    static float points[3][8 * 3];
    for (int t = 0; t < 3; t++) {
        omp_set_num_threads(t + 1);
        (void)distortion_of(3, 8, 5, points[t]);
        cr_assert_eq(memcmp(points[0], points[t], sizeof points[0]), 0);
    }
}

Test(grid, one_point_and_wrong_sizes)
{
    float points[3];
    double distortion;
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_fit_gaussian_grid(3, 1, 0, points, &distortion, &err), VQKVC_OK);
    cr_assert_float_eq(distortion, 1, 0.01);
    cr_assert_eq(vqkvc_fit_gaussian_grid(0, 4, 0, points, &distortion, &err), VQKVC_E_USAGE);
    err = (vqkvc_err){0};
    cr_assert_eq(vqkvc_fit_gaussian_grid(2, 1 << 20, 0, points, &distortion, &err), VQKVC_E_USAGE);
}
