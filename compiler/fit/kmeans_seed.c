/* kmeans_seed.c - where k-means starts: k-means++ over a sample of the points. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "fit/kmeans_impl.h"

/* Seeding reads every point once a trial, so large sets are thinned to this many points a
 * centroid; Lloyd's iterations then see them all. */
enum { POINTS_PER_CENTROID = 16, MIN_POINTS = 16384 };

/* Candidates for each centroid, of which the best is kept. On Gaussian samples, k = 16, three cost
 * 10 % of a run and lower the objective by 0 to 1.7 %; more brought nothing that a restart does not
 * bring better. */
enum { TRIALS = 3 };

/* Sums run over blocks of points and are added in order. */
enum { BLOCK = 1024 };

static const double PARALLEL_WORK = 1 << 19;

/* Squared distance of every point to its nearest centroid, and what follows from it. */
typedef struct reach {
    float *distance; /* [n, padded] */
    double *sums;    /* [blocks] weighted */
    double total;
} reach;

typedef struct seeding {
    int n, d, blocks;
    float *tiles;           /* [n / VQKVC_TILE, d, VQKVC_TILE] the points */
    float *weights;         /* [n, padded to whole blocks with zeros] */
    reach any;              /* distance NULL: the weights alone */
    reach now, trial, best; /* with the centroids so far; with one candidate more; the best one */
} seeding;

static void seeding_free(seeding *s)
{
    free(s->tiles);
    free(s->weights);
    free(s->any.sums);
    reach *all[] = {&s->now, &s->trial, &s->best};
    for (int i = 0; i < 3; i++) {
        free(all[i]->distance);
        free(all[i]->sums);
    }
}

static vqkvc_code seeding_alloc(seeding *s, vqkvc_err *err)
{
    size_t padded = (size_t)s->blocks * BLOCK;
    s->tiles = vqkvc_alloc(padded, (size_t)s->d * sizeof(float), err);
    s->weights = vqkvc_alloc(padded, sizeof(float), err);
    s->any.sums = vqkvc_alloc((size_t)s->blocks, sizeof(double), err);
    reach *all[] = {&s->now, &s->trial, &s->best};
    for (int i = 0; i < 3; i++) {
        all[i]->distance = vqkvc_alloc(padded, sizeof(float), err);
        all[i]->sums = vqkvc_alloc((size_t)s->blocks, sizeof(double), err);
    }
    return err->code;
}

/* All points, or one from each of s->n equal stretches; none is within reach yet. */
static void take_points(seeding *s, const vqkvc_points *points, vqkvc_rng *rng)
{
    for (int i = 0; i < s->n; i++) {
        size_t row = (size_t)i;
        if (s->n < points->n)
            row = (size_t)((i + vqkvc_rng_uniform(rng)) * points->n / s->n);
        const float *x = points->x + row * points->ldx;
        float *tile = s->tiles + (size_t)(i / VQKVC_TILE) * VQKVC_TILE * (size_t)s->d;
        for (int j = 0; j < s->d; j++)
            tile[j * VQKVC_TILE + i % VQKVC_TILE] = x[j];
        s->weights[i] = points->weights ? points->weights[row] : 1;
        s->any.sums[i / BLOCK] += s->weights[i];
    }
    for (int b = 0; b < s->blocks; b++)
        s->any.total += s->any.sums[b];
    for (size_t i = 0; i < (size_t)s->blocks * BLOCK; i++)
        s->now.distance[i] = INFINITY;
}

static void read_point(const seeding *s, int i, float *x)
{
    const float *tile = s->tiles + (size_t)(i / VQKVC_TILE) * VQKVC_TILE * (size_t)s->d;
    for (int j = 0; j < s->d; j++)
        x[j] = tile[j * VQKVC_TILE + i % VQKVC_TILE];
}

/* out = min(distance, |x - centroid|^2) over one tile; returns the weighted sum. */
VQKVC_CLONES static double approach_tile(int d, const float *tile, const float *weights,
                                         const float *centroid, const float *distance, float *out)
{
    const int stride = VQKVC_TILE / VQKVC_LANES;
    const vqkvc_lanes *t = (const vqkvc_lanes *)tile, *w = (const vqkvc_lanes *)weights;
    const vqkvc_lanes *old = (const vqkvc_lanes *)distance;
    vqkvc_lanes_d total = {0};
    for (int p = 0; p < stride; p++) {
        vqkvc_lanes sum = {0};
        for (int j = 0; j < d; j++) {
            vqkvc_lanes e = t[j * stride + p] - centroid[j];
            sum += e * e;
        }
        vqkvc_lanes_i less = sum < old[p];
        sum = (vqkvc_lanes)((less & (vqkvc_lanes_i)sum) | (~less & (vqkvc_lanes_i)old[p]));
        ((vqkvc_lanes *)out)[p] = sum;
        total += __builtin_convertvector(sum * w[p], vqkvc_lanes_d);
    }
    return ((total[0] + total[1]) + (total[2] + total[3])) +
           ((total[4] + total[5]) + (total[6] + total[7]));
}

/* s->trial = s->now with `centroid` [d] taken as well. */
static void approach(seeding *s, const float *centroid)
{
    const int tiles = BLOCK / VQKVC_TILE;
#pragma omp parallel for schedule(static) if ((double)s->n * s->d > PARALLEL_WORK)
    for (int b = 0; b < s->blocks; b++) {
        s->trial.sums[b] = 0;
        for (int t = b * tiles; t < (b + 1) * tiles; t++) {
            size_t at = (size_t)t * VQKVC_TILE;
            s->trial.sums[b] +=
                approach_tile(s->d, s->tiles + at * (size_t)s->d, s->weights + at, centroid,
                              s->now.distance + at, s->trial.distance + at);
        }
    }
    s->trial.total = 0;
    for (int b = 0; b < s->blocks; b++)
        s->trial.total += s->trial.sums[b];
}

/* A point drawn with probability in proportion to its weight times its distance. */
static int draw(const seeding *s, const reach *r, vqkvc_rng *rng)
{
    double target = vqkvc_rng_uniform(rng) * r->total;
    int b = 0, last = 0;
    while (b + 1 < s->blocks && target >= r->sums[b])
        target -= r->sums[b++];
    int end = s->n - b * BLOCK < BLOCK ? s->n : (b + 1) * BLOCK;
    for (int i = b * BLOCK; i < end; i++) {
        float mass = r->distance ? s->weights[i] * r->distance[i] : s->weights[i];
        if (mass > 0)
            last = i;
        target -= mass;
        if (target < 0)
            return i;
    }
    return last; /* rounding: the target lay just behind the last point */
}

static void swap(reach *a, reach *b)
{
    reach t = *a;
    *a = *b;
    *b = t;
}

/* The next centroid [d]: the candidate that leaves least distance; `candidate` [d] is scratch. */
static void next_centroid(seeding *s, int trials, vqkvc_rng *rng, float *candidate, float *centroid)
{
    /* Every point has its centroid already: repeat any. */
    if (s->now.total == 0)
        trials = 1;
    for (int t = 0; t < trials; t++) {
        read_point(s, draw(s, s->now.total > 0 ? &s->now : &s->any, rng), candidate);
        approach(s, candidate);
        if (t == 0 || s->trial.total < s->best.total) {
            swap(&s->trial, &s->best);
            memcpy(centroid, candidate, (size_t)s->d * sizeof *centroid);
        }
    }
    swap(&s->best, &s->now);
}

vqkvc_code vqkvc_kmeans_seed(const vqkvc_points *points, int k, vqkvc_rng *rng, float *centroids,
                             vqkvc_err *err)
{
    double limit = fmax((double)k * POINTS_PER_CENTROID, MIN_POINTS);
    seeding s = {.n = points->n < limit ? points->n : (int)limit, .d = points->d};
    s.blocks = s.n / BLOCK + (s.n % BLOCK != 0);

    float *candidate = vqkvc_alloc((size_t)s.d, sizeof *candidate, err);
    if (candidate && seeding_alloc(&s, err) == VQKVC_OK) {
        take_points(&s, points, rng);
        for (int c = 0; c < k; c++)
            next_centroid(&s, TRIALS, rng, candidate, centroids + (size_t)c * (size_t)s.d);
    }
    free(candidate);
    seeding_free(&s);
    return err->code;
}
