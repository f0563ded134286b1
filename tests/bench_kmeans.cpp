// k-means of this tree next to faiss's: the same points, initial centroids, iterations and threads.
// `make bench-fit` builds it where faiss is installed; nothing else needs it. Prints, for each
// shape, seconds (the least of three runs in turn) and the objective that each ends with, measured
// by one function: the mean squared distance to the nearest centroid. Ours assigns points once more
// than faiss, after the last move.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>

extern "C" {
#include "base/matrix.h"
#include "base/rng.h"
#include "fit/fit.h"
#include "fit/kmeans_impl.h"
void openblas_set_num_threads(int n);
}

static const int N = 65536, ITERATIONS = 25, RUNS = 3, FACTORS = 16;

struct Result {
    double seconds, objective;
};

// Linear maps of latent factors with lengths that vary, plus noise, as keys and values are.
static std::vector<float> make_points(int d)
{
    vqkvc_rng rng = vqkvc_rng_make(1, static_cast<uint64_t>(d));
    std::vector<float> map(static_cast<size_t>(d * FACTORS)), x(static_cast<size_t>(N) * d);
    for (float &v : map)
        v = static_cast<float>(vqkvc_rng_normal(&rng) / std::sqrt(FACTORS));
    for (int i = 0; i < N; i++) {
        double z[FACTORS], size = std::exp(0.4 * vqkvc_rng_normal(&rng));
        for (double &v : z)
            v = size * vqkvc_rng_normal(&rng);
        for (int j = 0; j < d; j++) {
            double sum = 0.3 * vqkvc_rng_normal(&rng);
            for (int f = 0; f < FACTORS; f++)
                sum += map[static_cast<size_t>(j * FACTORS + f)] * z[f];
            x[static_cast<size_t>(i) * d + j] = static_cast<float>(sum);
        }
    }
    return x;
}

static double objective(int d, const std::vector<float> &x, int k, const float *centroids)
{
    std::vector<int32_t> nearest(N);
    double sum = 0;
    vqkvc_kmeans_assign(N, d, x.data(), static_cast<size_t>(d), k, centroids, nearest.data());
    for (int i = 0; i < N; i++)
        for (int j = 0; j < d; j++) {
            double e = static_cast<double>(x[static_cast<size_t>(i) * d + j]) -
                       centroids[static_cast<size_t>(nearest[i]) * d + j];
            sum += e * e;
        }
    return sum / N;
}

static double now()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

static Result run_ours(int d, const std::vector<float> &x, int k, std::vector<float> centroids)
{
    vqkvc_points points = {N, d, x.data(), static_cast<size_t>(d), nullptr, N};
    std::vector<int32_t> assign(N);
    vqkvc_err err = {};
    double reached = 0, start = now();
    openblas_set_num_threads(1); // threads are the program's own
    vqkvc_kmeans_lloyd(&points, k, ITERATIONS, 0, centroids.data(), assign.data(), &reached, &err);
    double seconds = now() - start;
    return {seconds, objective(d, x, k, centroids.data())};
}

static Result run_faiss(int d, const std::vector<float> &x, int k,
                        const std::vector<float> &centroids)
{
    faiss::ClusteringParameters parameters;
    parameters.niter = ITERATIONS;
    parameters.max_points_per_centroid = N;
    parameters.min_points_per_centroid = 1;
    faiss::Clustering clustering(d, k, parameters);
    clustering.centroids = centroids;
    faiss::IndexFlatL2 index(d);
    double start = now();
    openblas_set_num_threads(omp_get_max_threads());
    clustering.train(N, x.data(), index);
    double seconds = now() - start;
    openblas_set_num_threads(1);
    return {seconds, objective(d, x, k, clustering.centroids.data())};
}

static void compare(int d, int k)
{
    std::vector<float> x = make_points(d), start(static_cast<size_t>(k) * d);
    for (int c = 0; c < k; c++)
        std::memcpy(&start[static_cast<size_t>(c) * d],
                    &x[static_cast<size_t>(c) * (N / k) * static_cast<size_t>(d)],
                    static_cast<size_t>(d) * sizeof(float));
    Result ours = {INFINITY, 0}, theirs = {INFINITY, 0};
    for (int r = 0; r < RUNS; r++) {
        Result a = run_ours(d, x, k, start), b = run_faiss(d, x, k, start);
        ours = {std::min(ours.seconds, a.seconds), a.objective};
        theirs = {std::min(theirs.seconds, b.seconds), b.objective};
    }
    std::printf(
        "kmeans n %d d %d k %d: vqkvc %.3f s, objective %.6g; faiss %.3f s, objective %.6g; "
        "ratios %.2f, %.5f\n",
        N, d, k, ours.seconds, ours.objective, theirs.seconds, theirs.objective,
        ours.seconds / theirs.seconds, ours.objective / theirs.objective);
}

int main()
{
    vqkvc_matrix_init();
    compare(2, 16);
    compare(8, 16);
    compare(128, 1024);
    return 0;
}
