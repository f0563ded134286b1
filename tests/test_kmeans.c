/* Properties of k-means. */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "base/rng.h"
#include "fit/fit.h"
#include "fit/kmeans_impl.h"

TestSuite(kmeans, .init = vqkvc_matrix_init);

static void make_normal(size_t n, double offset, uint64_t seed, float *x)
{
    vqkvc_rng rng = vqkvc_rng_make(seed, 0);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(offset + vqkvc_rng_normal(&rng));
}

static double distance(int d, const float *a, const float *b)
{
    double sum = 0;
    for (int j = 0; j < d; j++)
        sum += ((double)a[j] - b[j]) * ((double)a[j] - b[j]);
    return sum;
}

static double fit(int n, int d, const float *x, size_t ldx, const float *w,
                  vqkvc_kmeans_params params, float *centroids, int32_t *assign)
{
    double objective;
    vqkvc_err err = {0};
    vqkvc_code code =
        vqkvc_fit_kmeans(n, d, x, ldx, w, &params, centroids, assign, &objective, &err);
    cr_assert_eq(code, VQKVC_OK, "%s", err.msg);
    return objective;
}

Test(kmeans, the_objective_never_rises)
{
    enum { N = 4000 };
    static float x[N * 40], centroids[40 * 40];
    make_normal(N * 40, 0, 1, x);
    const int shapes[][2] = {{1, 16}, {2, 16}, {3, 5}, {8, 16}, {40, 40}};
    for (int s = 0; s < 5; s++) {
        double last = INFINITY;
        for (int iters = 1; iters < 15; iters++) {
            vqkvc_kmeans_params p = {
                .k = shapes[s][1], .max_iters = iters, .tolerance = 1e-300, .seed = 3};
            double objective = fit(N, shapes[s][0], x, 40, NULL, p, centroids, NULL);
            cr_assert_leq(objective, last * (1 + 1e-6));
            last = objective;
        }
    }
}

Test(kmeans, the_result_belongs_together)
{
    enum { N = 1500 };
    static float x[N * 40], w[N], centroids[50 * 40];
    static int32_t assign[N], again[N];
    make_normal(N * 40, 2, 2, x);
    for (int i = 0; i < N; i++)
        w[i] = (float)(i % 5);
    const int shapes[][2] = {{1, 16}, {5, 16}, {40, 50}};
    for (int s = 0; s < 3; s++) {
        int d = shapes[s][0], k = shapes[s][1];
        double objective = fit(N, d, x, 40, w, (vqkvc_kmeans_params){.k = k}, centroids, assign);
        double cost = 0, total = 0;
        vqkvc_kmeans_assign(N, d, x, 40, k, centroids, again);
        cr_assert_eq(memcmp(assign, again, sizeof assign), 0);
        for (int i = 0; i < N; i++) {
            double mine = distance(d, x + i * 40, centroids + assign[i] * d);
            cost += w[i] * mine;
            total += w[i];
            for (int c = 0; c < k; c++)
                cr_assert_leq(mine, distance(d, x + i * 40, centroids + c * d) * (1 + 1e-5) + 1e-9);
        }
        cr_assert_float_eq(objective, cost / total, 1e-9 * objective);
    }
}

Test(kmeans, assignment_is_exact_for_long_vectors_far_from_zero)
{
    enum { N = 400, D = 64, K = 300 };
    static float x[N * D], centroids[K * D];
    static int32_t assign[N];
    make_normal(N * D, 1000, 3, x);
    make_normal(K * D, 1000, 4, centroids);
    for (int c = 100; c < 200; c++) /* copies far apart: the lower index has to win */
        memcpy(centroids + (c + 100) * D, centroids + (c - 100) * D, D * sizeof *x);
    vqkvc_kmeans_assign(N, D, x, D, K, centroids, assign);
    for (int i = 0; i < N; i++) {
        int nearest = 0;
        for (int c = 1; c < K; c++)
            if (distance(D, x + i * D, centroids + c * D) <
                distance(D, x + i * D, centroids + nearest * D))
                nearest = c;
        cr_assert_eq(assign[i], nearest);
    }
}

Test(kmeans, ties_go_to_the_lower_index)
{
    const float x[] = {0, 1, -1, 3}, centroids[] = {-1, 1, 1, -1};
    int32_t assign[4];
    vqkvc_kmeans_assign(4, 1, x, 1, 4, centroids, assign);
    const int32_t expected[] = {0, 1, 0, 1};
    cr_assert_eq(memcmp(assign, expected, sizeof assign), 0);
}

Test(kmeans, separated_clusters_are_found)
{
    enum { K = 16, N = 3200 };
    static float x[N * 2], centroids[K * 2];
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    for (int i = 0; i < N; i++) {
        x[2 * i] = (float)(10 * (i % 4) + 0.1 * vqkvc_rng_normal(&rng));
        x[2 * i + 1] = (float)(10 * (i / 4 % 4) + 0.1 * vqkvc_rng_normal(&rng));
    }
    for (uint64_t seed = 0; seed < 20; seed++) {
        vqkvc_kmeans_params p = {.k = K, .restarts = 4, .seed = seed};
        cr_assert_lt(fit(N, 2, x, 2, NULL, p, centroids, NULL), 0.03, "seed %d", (int)seed);
    }
}

/* The least cost of n points in k groups, over all k^n labellings. */
static double best_partition(int n, int k, const float *x)
{
    double best = INFINITY;
    int count = 1;
    for (int i = 0; i < n; i++)
        count *= k;
    for (int code = 0; code < count; code++) {
        double sum[3] = {0}, square[3] = {0}, size[3] = {0}, cost = 0;
        for (int i = 0, rest = code; i < n; i++, rest /= k) {
            sum[rest % k] += x[i];
            square[rest % k] += (double)x[i] * x[i];
            size[rest % k]++;
        }
        for (int c = 0; c < k; c++)
            cost += size[c] > 0 ? square[c] - sum[c] * sum[c] / size[c] : 0;
        best = cost < best ? cost : best;
    }
    return best / n;
}

Test(kmeans, restarts_reach_the_optimum_of_tiny_sets)
{
    float x[8], centroids[3];
    for (uint64_t seed = 0; seed < 25; seed++) {
        make_normal(8, 0, seed, x);
        vqkvc_kmeans_params p = {.k = 3, .restarts = 60, .tolerance = 1e-12, .seed = seed};
        double best = best_partition(8, 3, x);
        cr_assert_float_eq(fit(8, 1, x, 1, NULL, p, centroids, NULL), best, 1e-6 + 1e-5 * best);
    }
}

Test(kmeans, a_weight_counts_like_repeated_points)
{
    enum { N = 60 };
    static float x[N * 2], many[N * 6], w[N], weighted[4 * 2], repeated[4 * 2];
    int rows = 0;
    make_normal(N * 2, 0, 6, x);
    for (int i = 0; i < N; i++) {
        w[i] = (float)(i % 4);
        for (int r = 0; r < i % 4; r++, rows++)
            memcpy(many + 2 * rows, x + 2 * i, 2 * sizeof *x);
    }
    vqkvc_kmeans_params p = {.k = 4, .restarts = 100, .tolerance = 1e-12, .max_iters = 100};
    double a = fit(N, 2, x, 2, w, p, weighted, NULL);
    double b = fit(rows, 2, many, 2, NULL, p, repeated, NULL);
    cr_assert_float_eq(a, b, 1e-6 * a);
}

Test(kmeans, points_of_weight_zero_attract_no_centroid)
{
    float x[20], w[20], centroids[4];
    for (int i = 0; i < 20; i++) {
        x[i] = i < 10 ? (float)(i % 4) : 1000 + (float)i;
        w[i] = i < 10;
    }
    cr_assert_eq(fit(20, 1, x, 1, w, (vqkvc_kmeans_params){.k = 4}, centroids, NULL), 0);
    for (int c = 0; c < 4; c++)
        cr_assert_lt(centroids[c], 4);
}

Test(kmeans, degenerate_sets)
{
    float x[300 * 3], centroids[16 * 3];
    int32_t assign[300];
    make_normal(15, 0, 7, x); /* n < k */
    cr_assert_eq(fit(5, 3, x, 3, NULL, (vqkvc_kmeans_params){.k = 16}, centroids, assign), 0);
    for (int c = 0; c < 16; c++) {
        int known = 0;
        for (int i = 0; i < 5; i++)
            known |= memcmp(centroids + 3 * c, x + 3 * i, 3 * sizeof *x) == 0;
        cr_assert(known, "a surplus centroid repeats a point");
    }
    for (int i = 0; i < 900; i++) /* all equal */
        x[i] = 0.1f;
    cr_assert_eq(fit(300, 3, x, 3, NULL, (vqkvc_kmeans_params){.k = 16}, centroids, assign), 0);
    for (int i = 0; i < 300; i++)
        cr_assert_eq(assign[i], 0);
    make_normal(900, 0, 8, x); /* a constant column changes nothing */
    for (int i = 0; i < 300; i++)
        x[3 * i + 2] = -5;
    double with = fit(300, 3, x, 3, NULL, (vqkvc_kmeans_params){.k = 16}, centroids, NULL);
    for (int c = 0; c < 16; c++)
        cr_assert_eq(centroids[3 * c + 2], -5);
    double without = fit(300, 2, x, 3, NULL, (vqkvc_kmeans_params){.k = 16}, centroids, NULL);
    cr_assert_float_eq(with, without, 1e-9);
}

Test(kmeans, empty_clusters_take_the_dearest_points)
{
    const float x[] = {0, 1, 100, 101, 1000, 1001, 1000, 1001};
    const float w[] = {1, 1, 1, 1, 1e-6f, 1e-6f, 0, 0};
    float centroids[3] = {5, 5, 5}; /* two of them are empty at first */
    int32_t assign[8];
    double objective;
    vqkvc_err err = {0};
    vqkvc_points points = {.n = 8, .d = 1, .x = x, .ldx = 1, .weights = w, .total = 4.000002};
    cr_assert_eq(vqkvc_kmeans_lloyd(&points, 3, 10, 1e-9, centroids, assign, &objective, &err),
                 VQKVC_OK);
    const int32_t same[][2] = {{0, 1}, {2, 3}, {4, 5}};
    for (int i = 0; i < 3; i++)
        cr_assert_eq(assign[same[i][0]], assign[same[i][1]]);
    cr_assert(assign[0] != assign[2] && assign[2] != assign[4] && assign[0] != assign[4]);
    cr_assert_float_eq(objective, 0.25, 1e-3);
}

Test(kmeans, one_centroid_is_the_mean)
{
    static float x[1000];
    float centroid;
    double mean = 0;
    make_normal(1000, 3, 9, x);
    for (int i = 0; i < 1000; i++)
        mean += x[i] / 1000.0;
    (void)fit(1000, 1, x, 1, NULL, (vqkvc_kmeans_params){.k = 1}, &centroid, NULL);
    cr_assert_float_eq(centroid, mean, 1e-6);
}

/* All outcomes for 1, 2 and 3 threads, and from inside a parallel region, have the same bytes. */
static void check_threads(int n, int d, int k)
{
    float *x = malloc((size_t)n * (size_t)d * sizeof *x);
    float *centroids = calloc(4 * (size_t)k * (size_t)d, sizeof *centroids);
    double objective[4];
    size_t size = (size_t)k * (size_t)d;
    vqkvc_kmeans_params p = {.k = k, .max_iters = 5};
    make_normal((size_t)n * (size_t)d, 1, 10, x);
    for (int t = 0; t < 3; t++) {
        omp_set_num_threads(t + 1);
        objective[t] = fit(n, d, x, (size_t)d, NULL, p, centroids + (size_t)t * size, NULL);
    }
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < 2; i++)
        if (i == 1) {
            vqkvc_err err = {0};
            (void)vqkvc_fit_kmeans(n, d, x, (size_t)d, NULL, &p, centroids + 3 * size, NULL,
                                   &objective[3], &err);
        }
    for (int t = 1; t < 4; t++) {
        cr_assert_eq(objective[0], objective[t]);
        cr_assert_eq(memcmp(centroids, centroids + (size_t)t * size, size * sizeof *x), 0);
    }
    free(x);
    free(centroids);
}

Test(kmeans, the_same_for_any_number_of_threads)
{
    check_threads(20000, 2, 16);
    check_threads(70000, 8, 16);
    check_threads(6000, 40, 300);
}

Test(kmeans, unusable_input_is_refused_with_its_place)
{
    float x[40 * 4], w[40], centroids[2 * 4];
    double objective;
    vqkvc_err err = {0};
    vqkvc_kmeans_params p = {.k = 2};
    make_normal(160, 0, 11, x);
    x[17 * 4 + 2] = NAN;
    vqkvc_code code = vqkvc_fit_kmeans(40, 4, x, 4, NULL, &p, centroids, NULL, &objective, &err);
    cr_assert_eq(code, VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "row 17, column 2"));
    err = (vqkvc_err){0};
    x[17 * 4 + 2] = 1e30f;
    code = vqkvc_fit_kmeans(40, 4, x, 4, NULL, &p, centroids, NULL, &objective, &err);
    cr_assert_eq(code, VQKVC_E_NUMERIC);
    err = (vqkvc_err){0};
    x[17 * 4 + 2] = 0;
    for (int i = 0; i < 40; i++)
        w[i] = i == 31 ? -1 : 1;
    code = vqkvc_fit_kmeans(40, 4, x, 4, w, &p, centroids, NULL, &objective, &err);
    cr_assert_eq(code, VQKVC_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "row 31"));
    err = (vqkvc_err){0};
    memset(w, 0, sizeof w);
    code = vqkvc_fit_kmeans(40, 4, x, 4, w, &p, centroids, NULL, &objective, &err);
    cr_assert_eq(code, VQKVC_E_NUMERIC);
    err = (vqkvc_err){0};
    p.k = 0;
    code = vqkvc_fit_kmeans(40, 4, x, 4, NULL, &p, centroids, NULL, &objective, &err);
    cr_assert_eq(code, VQKVC_E_USAGE);
}
