/* grid.c - fixed grids for standard normal vectors.
 *
 * Scalar grids are symmetric: point i and point n - 1 - i are opposite. Others are not, since that
 * costs: the best symmetric grids found had 1.5 % (d 2, n 16), 0.3 % (d 2, n 64) and 0.1 to 0.2 %
 * (d 2, 4 and 8, n 256) more distortion than the best free ones. Their means are close to zero all
 * the same, because samples come in opposite pairs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "fit/fit.h"

enum { MAX_DIM = 64, MAX_POINTS = 1 << 16 };

/* Samples that start a grid and that each later step sees; both grow with the number of points. */
enum { START_SAMPLES = 1 << 15, STEP_SAMPLES = 1 << 17, SAMPLES_A_POINT = 64 };
/* Distortion after 0, 10, 40 and 150 steps: d 2, n 256: 0.00809, 0.00788, 0.00784, 0.00781; d 4,
 * n 256: 0.0995, 0.0980, 0.0976, 0.0972. */
enum { STEPS = 40, MANY_RESTARTS = 16, FEW_RESTARTS = 2 };

/* ---- one dimension: Lloyd-Max by integration (Max 1960) ---- */

static double normal_pdf(double x)
{
    return exp(-0.5 * x * x) * 0.3989422804014327;
}

/* P(X > x); exact in the tail, where 1 - P(X <= x) is not. */
static double normal_tail(double x)
{
    return 0.5 * erfc(x * 0.7071067811865476);
}

/* The positive half of a symmetric quantizer; an odd one has a level at zero besides. */
typedef struct half_quantizer {
    int m, odd;
    double *level; /* [m] ascending, > 0 */
    double *next;  /* [m] scratch */
    double *upper; /* [m] super-diagonal of the Jacobian, divided */
} half_quantizer;

/* The border between level i - 1 and level i. */
static double border(const half_quantizer *q, int i)
{
    if (i == 0)
        return q->odd ? 0.5 * q->level[0] : 0;
    return i == q->m ? INFINITY : 0.5 * (q->level[i - 1] + q->level[i]);
}

static double cell_mass(double low, double high)
{
    return normal_tail(low) - normal_tail(high);
}

static double cell_moment(double low, double high)
{
    return normal_pdf(low) - normal_pdf(high);
}

/* Half of how far the mean of a cell moves with one of its borders: a border lies midway between
 * two levels. */
static double border_pull(double mean, double mass, double at)
{
    return isinf(at) ? 0 : 0.5 * fabs(at - mean) * normal_pdf(at) / mass;
}

/* next = the levels after one Newton step on level_i = mean of cell i. The system is tridiagonal
 * and diagonally dominant, because the density is log-concave. */
static void newton_step(half_quantizer *q)
{
    double carried = 0; /* the right side of the row before, eliminated */
    for (int i = 0; i < q->m; i++) {
        double low = border(q, i), high = border(q, i + 1), mass = cell_mass(low, high);
        double mean = cell_moment(low, high) / mass;
        double to_low = border_pull(mean, mass, low), to_high = border_pull(mean, mass, high);
        double diagonal = 1 - to_high, value = q->level[i] - mean;
        if (i > 0 || q->odd)
            diagonal -= to_low;
        if (i > 0) {
            diagonal -= to_low * q->upper[i - 1];
            value += to_low * carried;
        }
        q->upper[i] = to_high / diagonal;
        q->next[i] = carried = value / diagonal;
    }
    for (int i = q->m - 2; i >= 0; i--)
        q->next[i] += q->upper[i] * q->next[i + 1];
    for (int i = 0; i < q->m; i++)
        q->next[i] = q->level[i] - q->next[i];
}

/* next = the centroids of the cells: always an improvement, but slow for many levels. */
static void lloyd_step(half_quantizer *q)
{
    for (int i = 0; i < q->m; i++) {
        double low = border(q, i), high = border(q, i + 1);
        q->next[i] = cell_moment(low, high) / cell_mass(low, high);
    }
}

static int ascending(const half_quantizer *q)
{
    for (int i = 0; i < q->m; i++)
        if (!(q->next[i] > (i ? q->next[i - 1] : 0)) || isinf(q->next[i]))
            return 0;
    return 1;
}

/* Takes next as the levels; returns the largest change. */
static double accept(half_quantizer *q)
{
    double change = 0;
    for (int i = 0; i < q->m; i++) {
        change = fmax(change, fabs(q->next[i] - q->level[i]));
        q->level[i] = q->next[i];
    }
    return change;
}

/* The x with P(X > x) = p, 0 < p <= 0.5, to a few digits. */
static double tail_quantile(double p)
{
    double low = 0, high = 40;
    for (int i = 0; i < 40; i++) {
        double middle = 0.5 * (low + high);
        if (normal_tail(middle) > p)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The normal density is log-concave, so there is one optimum (Kieffer 1983) and any way there will
 * do. The start is what many levels tend to, the cube root of the density (Panter and Dite 1951).
 */
static void lloyd_max(half_quantizer *q)
{
    double cells = 2.0 * q->m + q->odd;
    for (int i = 0; i < q->m; i++)
        q->level[i] = sqrt(3) * tail_quantile((q->m - i - 0.5) / cells);
    for (int step = 0; step < 100; step++) {
        newton_step(q);
        if (!ascending(q))
            lloyd_step(q);
        if (accept(q) < 1e-12)
            break;
    }
}

/* E (X - level)^2 over all cells. */
static double quantizer_error(const half_quantizer *q)
{
    double kept = 0;
    for (int i = 0; i < q->m; i++) {
        double low = border(q, i), high = border(q, i + 1), level = q->level[i];
        kept += 2 * level * cell_moment(low, high) - level * level * cell_mass(low, high);
    }
    return 1 - 2 * kept;
}

static vqkvc_code scalar_grid(int n, float *points, double *distortion, vqkvc_err *err)
{
    half_quantizer q = {.m = n / 2, .odd = n % 2};
    size_t m = (size_t)q.m;
    double *memory = vqkvc_alloc(3 * m, sizeof *memory, err);
    if (!memory)
        return err->code;
    q.level = memory;
    q.next = memory + m;
    q.upper = memory + 2 * m;
    lloyd_max(&q);
    for (int i = 0; i < q.m; i++) {
        points[n - q.m + i] = (float)q.level[i];
        points[q.m - 1 - i] = -(float)q.level[i];
    }
    if (q.odd)
        points[q.m] = 0;
    *distortion = quantizer_error(&q);
    free(memory);
    return VQKVC_OK;
}

/* ---- more dimensions: k-means on samples ---- */

enum { STREAM_START, STREAM_MEASURE, STREAM_STEP };

/* x [n, d]: n / 2 normal vectors and behind them their opposites, so that the mean is zero. */
static void mirrored_samples(int n, int d, uint64_t seed, uint64_t stream, float *x)
{
    vqkvc_rng rng = vqkvc_rng_make(seed, stream);
    size_t half = (size_t)(n / 2) * (size_t)d;
    for (size_t i = 0; i < half; i++) {
        x[i] = (float)vqkvc_rng_normal(&rng);
        x[half + i] = -x[i];
    }
}

static int sample_count(int least, int n)
{
    return n > least / SAMPLES_A_POINT ? n * SAMPLES_A_POINT : least;
}

typedef struct sampling {
    int d, n;        /* of the grid */
    int most;        /* room for so many samples */
    float *x;        /* [most, d] */
    int32_t *assign; /* [most] */
    double *sum;     /* [n, d + 1] of the samples of a cell, and how many */
} sampling;

/* Moves each point by `rate` of the way to the mean of its cell, over fresh samples. Lloyd's
 * iterations on one set fit its accidents: 2 % at n 256 and 2^18 samples. */
static void stochastic_step(const sampling *s, int samples, uint64_t seed, uint64_t stream,
                            double rate, float *points)
{
    size_t d = (size_t)s->d;
    mirrored_samples(samples, s->d, seed, stream, s->x);
    vqkvc_kmeans_assign(samples, s->d, s->x, d, s->n, points, s->assign);
    memset(s->sum, 0, (size_t)s->n * (d + 1) * sizeof *s->sum);
    for (size_t i = 0; i < (size_t)samples; i++) {
        double *sum = s->sum + (size_t)s->assign[i] * (d + 1);
        for (size_t j = 0; j < d; j++)
            sum[j] += s->x[i * d + j];
        sum[d]++;
    }
    for (size_t c = 0; c < (size_t)s->n; c++) {
        const double *sum = s->sum + c * (d + 1);
        for (size_t j = 0; j < d && sum[d] > 0; j++) {
            double old = points[c * d + j];
            points[c * d + j] = (float)(old + rate * (sum[j] / sum[d] - old));
        }
    }
}

/* Mean squared error per dimension of the nearest points. */
static double sampled_error(const sampling *s, int samples, const float *points)
{
    size_t d = (size_t)s->d;
    double error = 0;
    vqkvc_kmeans_assign(samples, s->d, s->x, d, s->n, points, s->assign);
    for (size_t i = 0; i < (size_t)samples; i++)
        for (size_t j = 0; j < d; j++) {
            double e = (double)s->x[i * d + j] - points[(size_t)s->assign[i] * d + j];
            error += e * e;
        }
    return error / samples / s->d;
}

static vqkvc_code fit_samples(const sampling *s, uint64_t seed, float *points, double *distortion,
                              vqkvc_err *err)
{
    /* Few points have local optima that differ by more, and cost little to start again. */
    vqkvc_kmeans_params params = {.k = s->n,
                                  .max_iters = 100,
                                  .restarts = s->n <= 64 ? MANY_RESTARTS : FEW_RESTARTS,
                                  .tolerance = 1e-4,
                                  .seed = seed};
    int start = sample_count(START_SAMPLES, s->n), step = sample_count(STEP_SAMPLES, s->n);
    mirrored_samples(start, s->d, seed, STREAM_START, s->x);
    VQKVC_TRY(vqkvc_fit_kmeans(start, s->d, s->x, (size_t)s->d, NULL, &params, points, NULL,
                               distortion, err));
    for (int i = 0; i < STEPS; i++) {
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted in a Gaussian grid");
        stochastic_step(s, step, seed, STREAM_STEP + (uint64_t)i, pow(i + 1, -0.6), points);
    }
    mirrored_samples(s->most, s->d, seed, STREAM_MEASURE, s->x);
    *distortion = sampled_error(s, s->most, points);
    return VQKVC_OK;
}

static vqkvc_code vector_grid(int d, int n, uint64_t seed, float *points, double *distortion,
                              vqkvc_err *err)
{
    sampling s = {.d = d, .n = n, .most = 2 * sample_count(STEP_SAMPLES, n)};
    size_t most = (size_t)s.most;
    s.x = vqkvc_alloc(most, (size_t)d * sizeof *s.x, err);
    s.assign = vqkvc_alloc(most, sizeof *s.assign, err);
    s.sum = vqkvc_alloc((size_t)n, ((size_t)d + 1) * sizeof *s.sum, err);
    if (s.x && s.assign && s.sum)
        (void)fit_samples(&s, seed, points, distortion, err);
    free(s.x);
    free(s.assign);
    free(s.sum);
    return err->code;
}

vqkvc_code vqkvc_fit_gaussian_grid(int d, int n, uint64_t seed, float *points, double *distortion,
                                   vqkvc_err *err)
{
    if (d < 1 || d > MAX_DIM || n < 1 || n > MAX_POINTS)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "a Gaussian grid of %d points in %d dimensions: at most %d and %d", n, d,
                          MAX_POINTS, MAX_DIM);
    return d == 1 ? scalar_grid(n, points, distortion, err)
                  : vector_grid(d, n, seed, points, distortion, err);
}
