/* kmeans.c - Lloyd's iterations, restarts, and the repair of empty clusters. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "fit/checks.h"
#include "fit/fit.h"
#include "fit/kmeans_impl.h"

/* Squares of differences up to this size stay finite in float for any head vector. */
static const double LARGEST = 1e16;

static const double PARALLEL_WORK = 1 << 18;

/* The clusters of one assignment. Points are listed cluster by cluster in ascending order, so that
 * one thread sums a cluster and the sum does not depend on how many there are. */
typedef struct clusters {
    int k;
    int32_t *start; /* [k + 1] where each begins in order */
    int32_t *order; /* [n] rows */
    double *sum;    /* [k, d] weighted */
    double *weight; /* [k] */
    double *cost;   /* [k] weighted squared distance to the centroid */
} clusters;

static void clusters_free(clusters *cl)
{
    free(cl->start);
    free(cl->order);
    free(cl->sum);
    free(cl->weight);
    free(cl->cost);
}

static vqkvc_code clusters_alloc(clusters *cl, int n, int d, vqkvc_err *err)
{
    size_t k = (size_t)cl->k;
    cl->start = vqkvc_alloc(k + 2, sizeof *cl->start, err);
    cl->order = vqkvc_alloc((size_t)n, sizeof *cl->order, err);
    cl->sum = vqkvc_alloc(k, (size_t)d * sizeof *cl->sum, err);
    cl->weight = vqkvc_alloc(k, sizeof *cl->weight, err);
    cl->cost = vqkvc_alloc(k, sizeof *cl->cost, err);
    return err->code;
}

/* Counting sort of the rows by cluster. While filling, start[c + 1] is the next free place of
 * cluster c; afterwards it is where c ends. */
static void list_members(clusters *cl, int n, const int32_t *assign)
{
    memset(cl->start, 0, ((size_t)cl->k + 2) * sizeof *cl->start);
    for (int i = 0; i < n; i++)
        cl->start[assign[i] + 2]++;
    for (int c = 0; c < cl->k; c++)
        cl->start[c + 2] += cl->start[c + 1];
    for (int i = 0; i < n; i++)
        cl->order[cl->start[assign[i] + 1]++] = i;
}

static void sum_cluster(clusters *cl, int c, const vqkvc_points *p, const float *centroid)
{
    double *sum = cl->sum + (size_t)c * (size_t)p->d;
    memset(sum, 0, (size_t)p->d * sizeof *sum);
    cl->weight[c] = cl->cost[c] = 0;
    for (int32_t m = cl->start[c]; m < cl->start[c + 1]; m++) {
        int32_t row = cl->order[m];
        const float *x = p->x + (size_t)row * p->ldx;
        double weight = p->weights ? p->weights[row] : 1, distance = 0;
        for (int j = 0; j < p->d; j++) {
            double e = (double)x[j] - centroid[j];
            distance += e * e;
            sum[j] += weight * x[j];
        }
        cl->weight[c] += weight;
        cl->cost[c] += weight * distance;
    }
}

/* Fills the clusters of an assignment; returns the objective. */
static double gather(clusters *cl, const vqkvc_points *p, const int32_t *assign,
                     const float *centroids)
{
    list_members(cl, p->n, assign);
#pragma omp parallel for schedule(dynamic) if ((double)p->n * p->d > PARALLEL_WORK)
    for (int c = 0; c < cl->k; c++)
        sum_cluster(cl, c, p, centroids + (size_t)c * (size_t)p->d);
    double cost = 0;
    for (int c = 0; c < cl->k; c++)
        cost += cl->cost[c];
    return cost / p->total;
}

/* ---- empty clusters ---- */

static double point_cost(const vqkvc_points *p, int row, const float *centroid)
{
    const float *x = p->x + (size_t)row * p->ldx;
    double distance = 0;
    for (int j = 0; j < p->d; j++) {
        double e = (double)x[j] - centroid[j];
        distance += e * e;
    }
    return p->weights ? distance * p->weights[row] : distance;
}

/* Gives each empty cluster the point that costs most, counting the clusters repaired before it.
 * Where nothing costs any more the centroid stays what it is. */
static vqkvc_code repair(const clusters *cl, const vqkvc_points *p, const int32_t *assign,
                         float *centroids, vqkvc_err *err)
{
    size_t d = (size_t)p->d;
    double *cost = vqkvc_alloc((size_t)p->n, sizeof *cost, err);
    if (!cost)
        return err->code;
    for (int i = 0; i < p->n; i++)
        cost[i] = point_cost(p, i, centroids + (size_t)assign[i] * d);
    for (int c = 0; c < cl->k; c++) {
        if (cl->weight[c] > 0)
            continue;
        int dearest = 0;
        for (int i = 1; i < p->n; i++)
            if (cost[i] > cost[dearest])
                dearest = i;
        if (cost[dearest] == 0)
            break;
        memcpy(centroids + (size_t)c * d, p->x + (size_t)dearest * p->ldx, d * sizeof(float));
        for (int i = 0; i < p->n; i++)
            cost[i] = fmin(cost[i], point_cost(p, i, centroids + (size_t)c * d));
    }
    free(cost);
    return VQKVC_OK;
}

/* Moves every centroid to the mean of its cluster. */
static vqkvc_code move_centroids(const clusters *cl, const vqkvc_points *p, const int32_t *assign,
                                 float *centroids, vqkvc_err *err)
{
    int empty = 0;
    for (int c = 0; c < cl->k; c++) {
        size_t row = (size_t)c * (size_t)p->d;
        empty += !(cl->weight[c] > 0);
        if (cl->weight[c] > 0)
            for (int j = 0; j < p->d; j++)
                centroids[row + j] = (float)(cl->sum[row + j] / cl->weight[c]);
    }
    return empty ? repair(cl, p, assign, centroids, err) : VQKVC_OK;
}

/* ---- the iterations ---- */

vqkvc_code vqkvc_kmeans_lloyd(const vqkvc_points *p, int k, int max_iters, double tolerance,
                              float *centroids, int32_t *assign, double *objective, vqkvc_err *err)
{
    clusters cl = {.k = k};
    vqkvc_code code = clusters_alloc(&cl, p->n, p->d, err);
    double last = INFINITY;
    for (int iter = 0; code == VQKVC_OK; iter++) {
        vqkvc_kmeans_assign(p->n, p->d, p->x, p->ldx, k, centroids, assign);
        *objective = gather(&cl, p, assign, centroids);
        if (iter == max_iters || *objective == 0 || last - *objective < tolerance * last)
            break;
        last = *objective;
        if (vqkvc_interrupted())
            code = vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted in k-means");
        else
            code = move_centroids(&cl, p, assign, centroids, err);
    }
    clusters_free(&cl);
    return code;
}

/* One row of each of k stretches of equal length. */
static void seed_by_rows(const vqkvc_points *p, int k, vqkvc_rng *rng, float *centroids)
{
    size_t d = (size_t)p->d;
    for (int c = 0; c < k; c++) {
        size_t row = (size_t)((c + vqkvc_rng_uniform(rng)) * p->n / k);
        row = row < (size_t)p->n ? row : (size_t)p->n - 1;
        memcpy(centroids + (size_t)c * d, p->x + row * p->ldx, d * sizeof *centroids);
    }
}

/* One run from a seeding of its own; replaces best and best_assign where it is better. */
static vqkvc_code try_run(const vqkvc_points *p, const vqkvc_kmeans_params *params, int run,
                          float *centroids, int32_t *assign, float *best, int32_t *best_assign,
                          double *objective, vqkvc_err *err)
{
    vqkvc_rng rng = vqkvc_rng_make(params->seed, (uint64_t)run);
    double reached;
    if (params->seed_by_rows)
        seed_by_rows(p, params->k, &rng, centroids);
    else
        VQKVC_TRY(vqkvc_kmeans_seed(p, params->k, &rng, centroids, err));
    VQKVC_TRY(vqkvc_kmeans_lloyd(p, params->k, params->max_iters ? params->max_iters : 25,
                                 params->tolerance > 0 ? params->tolerance : 1e-4, centroids,
                                 assign, &reached, err));
    if (run > 0 && reached >= *objective)
        return VQKVC_OK;
    *objective = reached;
    memcpy(best, centroids, (size_t)params->k * (size_t)p->d * sizeof *best);
    if (best_assign)
        memcpy(best_assign, assign, (size_t)p->n * sizeof *best_assign);
    return VQKVC_OK;
}

static vqkvc_code run_all(const vqkvc_points *p, const vqkvc_kmeans_params *params,
                          float *centroids, int32_t *assign, double *objective, vqkvc_err *err)
{
    int runs = params->restarts ? params->restarts : 1;
    float *trial = vqkvc_alloc((size_t)params->k, (size_t)p->d * sizeof *trial, err);
    int32_t *trial_assign = vqkvc_alloc((size_t)p->n, sizeof *trial_assign, err);
    for (int run = 0; run < runs && err->code == VQKVC_OK; run++)
        (void)try_run(p, params, run, trial, trial_assign, centroids, assign, objective, err);
    free(trial);
    free(trial_assign);
    return err->code;
}

/* The rows of points->x close together, so that a few columns out of many stay in the cache; the
 * caller frees what it returns. */
static float *pack(vqkvc_points *p, vqkvc_err *err)
{
    size_t d = (size_t)p->d;
    float *packed = vqkvc_alloc((size_t)p->n, d * sizeof *packed, err);
    if (!packed)
        return NULL;
    for (int i = 0; i < p->n; i++)
        memcpy(packed + (size_t)i * d, p->x + (size_t)i * p->ldx, d * sizeof *packed);
    p->x = packed;
    p->ldx = d;
    return packed;
}

vqkvc_code vqkvc_fit_kmeans(int n, int d, const float *x, size_t ldx, const float *weights,
                            const vqkvc_kmeans_params *params, float *centroids, int32_t *assign,
                            double *objective, vqkvc_err *err)
{
    vqkvc_points points = {.n = n, .d = d, .x = x, .ldx = ldx, .weights = weights};
    if (n < 1 || d < 1 || ldx < (size_t)d || params->k < 1 || params->max_iters < 0 ||
        params->restarts < 0 || !(params->tolerance >= 0))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "k-means of %d x %d samples: k %d, %d iterations, %d restarts, "
                          "tolerance %g",
                          n, d, params->k, params->max_iters, params->restarts, params->tolerance);
    VQKVC_TRY(vqkvc_check_f32("k-means samples", n, d, x, ldx, LARGEST, err));
    VQKVC_TRY(vqkvc_check_weights(n, weights, &points.total, err));
    float *packed = NULL;
    if (ldx > (size_t)d && !(packed = pack(&points, err)))
        return err->code;
    vqkvc_code code = run_all(&points, params, centroids, assign, objective, err);
    free(packed);
    return code;
}
