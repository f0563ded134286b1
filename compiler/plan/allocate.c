#include "plan/allocate.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* What a group can be. `loss` is the mean squared error of a 16-point codebook fitted to Gaussian
 * vectors of that width, over the rate-distortion bound 2^(-8 / width) at 4 bits (measured with
 * vqkvc_fit_gaussian_grid: 0.0095, 0.1075, 0.329, 0.576 a channel); for two stages, over the bound
 * at 8 bits (6.1e-5 measured). */
static const struct {
    int width, stages;
    double bits, loss;
} options[VQKVC_LAYOUT_RUNS] = {
    {1, 2, 8, 4.0}, {1, 1, 4, 2.43}, {2, 1, 4, 1.72}, {4, 1, 4, 1.32}, {8, 1, 4, 1.15},
};

/* Reverse water-filling (Cover and Thomas, 10.3.3) of `bits` over w descending variances: d_i =
 * min(theta, lambda_i). Writes each channel's share of the error times loss; returns their sum. */
static double group_distortion(int w, const double *lambda, double bits, double loss, double *each)
{
    int n = w;
    double log_theta = 0;
    while (n > 0) {
        double sum = 0;
        for (int i = 0; i < n; i++)
            sum += log2(lambda[i] > DBL_MIN ? lambda[i] : DBL_MIN);
        log_theta = (sum - 2 * bits) / n;
        if (log_theta <= log2(lambda[n - 1] > DBL_MIN ? lambda[n - 1] : DBL_MIN))
            break;
        n--;
    }
    double theta = exp2(log_theta), total = 0;
    for (int i = 0; i < w; i++) {
        double d = i < n ? theta * loss : lambda[i];
        if (d > lambda[i])
            d = lambda[i];
        if (each != NULL)
            each[i] = d;
        total += d;
    }
    return total;
}

/* The table of the dynamic programme: cell (i, j) is the least error of the first i channels with j
 * nibbles. Options are taken in order of falling rate, so that a layout has few runs; used[o] marks
 * the cells whose last group is of option o when options up to o are allowed. */
typedef struct grid {
    int d, n_max;
    double table; /* nibbles of a coded channel for its tables */
    double *best;
    uint8_t *used[VQKVC_LAYOUT_RUNS];
} grid;

static size_t cell(const grid *g, int i, int j)
{
    return (size_t)i * (size_t)(g->n_max + 1) + (size_t)j;
}

/* Nibbles of a group of option o whose first channel is i. Its part of the tables is what rounding
 * the running total leaves to it, so that a layout's is
 * right to a nibble, and rather too much. */
static int group_size(const grid *g, int o, int i)
{
    return options[o].stages + (int)ceil((i + options[o].width) * g->table) -
           (int)ceil(i * g->table);
}

static void grid_free(grid *g)
{
    free(g->best);
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
        free(g->used[o]);
}

static vqkvc_code grid_fill(grid *g, int d, const double *lambda, double table, int n_max,
                            vqkvc_err *err)
{
    *g = (grid){.d = d, .n_max = n_max, .table = table};
    size_t cells = (size_t)(d + 1) * (size_t)(n_max + 1);
    g->best = vqkvc_alloc(cells, sizeof(double), err);
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
        g->used[o] = vqkvc_alloc(cells, 1, err);
    if (err->code != VQKVC_OK)
        return err->code;
    for (size_t c = 1; c < cells; c++)
        g->best[c] = INFINITY;
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
        for (int i = 0; i + options[o].width <= d; i++) {
            double cost = group_distortion(options[o].width, lambda + i, options[o].bits,
                                           options[o].loss, NULL);
            int size = group_size(g, o, i);
            for (int j = 0; j + size <= n_max; j++) {
                size_t to = cell(g, i + options[o].width, j + size);
                double total = g->best[cell(g, i, j)] + cost;
                if (total < g->best[to]) {
                    g->best[to] = total;
                    g->used[o][to] = 1;
                    for (int later = o + 1; later < VQKVC_LAYOUT_RUNS; later++)
                        g->used[later][to] = 0;
                }
            }
        }
    return VQKVC_OK;
}

/* The best number of coded channels for j nibbles, and the error with the rest dropped. */
static double grid_end(const grid *g, const double *lambda, int j, int *channels)
{
    double tail = 0, least = INFINITY;
    *channels = 0;
    for (int i = g->d; i >= 0; i--) {
        double total = g->best[cell(g, i, j)] + tail;
        if (total < least) {
            least = total;
            *channels = i;
        }
        if (i > 0)
            tail += lambda[i - 1];
    }
    return least;
}

double vqkvc_allocate_table(int d, int head_dim, int tables_at)
{
    /* A column of enc and one of dec in bytes, with a binary16 scale for each head, and 16
     * codewords in binary16. */
    double bits = 2.0 * d * (8 + 16.0 / head_dim) + 16 * 16;
    return tables_at > 0 ? bits / (4.0 * tables_at) : 0;
}

vqkvc_layout_run vqkvc_allocate_option(int o)
{
    return (vqkvc_layout_run){.width = options[o].width, .stages = options[o].stages, .groups = 1};
}

/* How many groups of each option the best layout of i channels with j nibbles has. */
static void grid_trace(const grid *g, int i, int j, int *counts)
{
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
        counts[o] = 0;
    for (int o = VQKVC_LAYOUT_RUNS - 1; o >= 0 && i > 0;) {
        if (!g->used[o][cell(g, i, j)]) {
            o--;
            continue;
        }
        counts[o]++;
        i -= options[o].width;
        j -= group_size(g, o, i);
    }
}

vqkvc_code vqkvc_allocate_priced(int d, const double *lambda, double table, int n_max,
                                 const double *each, double *curve, double *cost, vqkvc_err *err)
{
    grid g;
    int channels, counts[VQKVC_LAYOUT_RUNS];
    if (grid_fill(&g, d, lambda, table, n_max, err) == VQKVC_OK)
        for (int j = 0; j <= n_max; j++) {
            double error = grid_end(&g, lambda, j, &channels);
            curve[j] = error;
            /* More nibbles than are of use are left unused. */
            if (j > 0 && curve[j] > curve[j - 1])
                curve[j] = curve[j - 1];
            if (cost == NULL)
                continue;
            cost[j] = isinf(error) && j > 0 ? cost[j - 1] : 0;
            grid_trace(&g, isinf(error) ? 0 : channels, j, counts);
            for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
                cost[j] += counts[o] * each[o];
        }
    grid_free(&g);
    return err->code;
}

vqkvc_code vqkvc_allocate_curve(int d, const double *lambda, double table, int n_max, double *curve,
                                vqkvc_err *err)
{
    return vqkvc_allocate_priced(d, lambda, table, n_max, NULL, curve, NULL, err);
}

vqkvc_code vqkvc_allocate_layout(int d, const double *lambda, double table, int n_nibbles,
                                 vqkvc_layout *layout, vqkvc_err *err)
{
    grid g;
    memset(layout, 0, sizeof *layout);
    if (grid_fill(&g, d, lambda, table, n_nibbles, err) == VQKVC_OK) {
        int counts[VQKVC_LAYOUT_RUNS], i, j = n_nibbles;
        layout->distortion = grid_end(&g, lambda, j, &i);
        while (j > 1 && isinf(layout->distortion))
            layout->distortion = grid_end(&g, lambda, --j, &i);
        layout->n_channels = i;
        layout->n_nibbles = j;
        grid_trace(&g, i, j, counts);
        for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++)
            if (counts[o] > 0)
                layout->runs[layout->n_runs++] = (vqkvc_layout_run){
                    .width = options[o].width, .stages = options[o].stages, .groups = counts[o]};
    }
    grid_free(&g);
    return err->code;
}

void vqkvc_layout_distortions(const vqkvc_layout *layout, int d, const double *lambda,
                              double *distortion)
{
    int i = 0;
    for (int r = 0; r < layout->n_runs; r++) {
        const vqkvc_layout_run *run = &layout->runs[r];
        int o = 0;
        while (options[o].width != run->width || options[o].stages != run->stages)
            o++;
        for (int k = 0; k < run->groups; k++, i += run->width)
            group_distortion(run->width, lambda + i, options[o].bits, options[o].loss,
                             distortion + i);
    }
    for (; i < d; i++)
        distortion[i] = lambda[i];
}

/* Nibbles past the first that change anything. A stream's curve begins flat, for as long as its
 * gain, its means and its first group of channels take, tables included: that can be many more than
 * these, and a look that ended in there would never begin the stream. */
enum { LOOK_AHEAD = 8 };

/* The steepest mean fall of a curve from j on, and over how many nibbles. */
static double steepest(const double *curve, int j, int n_max, long room, int *step)
{
    double best = -1;
    int seen = 0;
    *step = 0;
    for (int k = 1; seen < LOOK_AHEAD && j + k <= n_max && k <= room; k++) {
        double fall = (curve[j] - curve[j + k]) / k;
        seen += fall > 0;
        if (fall > best) {
            best = fall;
            *step = k;
        }
    }
    return best;
}

vqkvc_code vqkvc_allocate_shares(int n, int n_max, const double *const *curves, long total,
                                 int *share, vqkvc_err *err)
{
    long left = total;
    double *fall = vqkvc_alloc((size_t)n, sizeof *fall, err);
    int *step = vqkvc_alloc((size_t)n, sizeof *step, err);
    for (int i = 0; i < n; i++)
        left -= share[i];
    for (int which = -1; left > 0 && err->code == VQKVC_OK;) {
        /* Only the stream that moved has another fall, and those whose step no longer fits. */
        for (int i = 0; i < n; i++)
            if (which < 0 || i == which || step[i] > left)
                fall[i] = steepest(curves[i], share[i], n_max, left, &step[i]);
        which = -1;
        for (int i = 0; i < n; i++)
            if (fall[i] > (which < 0 ? 0 : fall[which]))
                which = i;
        if (which < 0)
            break;
        share[which] += step[which];
        left -= step[which];
    }
    free(fall);
    free(step);
    return err->code;
}
