#include "plan/universal.h"

#include <math.h>
#include <stdlib.h>

#include "base/half.h"
#include "plan/higgs.h"
#include "plan/search.h"

/* Nibbles where there are any of the rate, since these have the fastest kernels; pairs of channels
 * up to 8 bits, which beat single ones by 0.2 bits; the bytes of q8_0 at the end. `error` was
 * measured with vqkvc_fit_gaussian_grid. */
static const struct {
    int width, bits;
    double error; /* of one channel; 0: uniform codes, by universal_error() */
} codes[VQKVC_UNIVERSALS] = {
    {8, 4, 0.6046}, {4, 4, 0.3420},  {4, 6, 0.1850},  {2, 4, 0.1074},
    {2, 5, 0.0569}, {2, 6, 0.02972}, {2, 7, 0.01543}, {2, 8, 0.00786},
    {1, 5, 0.0025}, {1, 6, 6.44e-4}, {1, 8, 0},
};

/* Next to errors of 8 bits those of a gain of 8 bits, about 1e-5, would count. */
enum { EXACT_GAIN_BITS = 16 };

static int is_uniform(int code)
{
    return codes[code].error == 0;
}

int vqkvc_universal_fits(int d)
{
    return d >= 8 && (d & (d - 1)) == 0;
}

int vqkvc_universal_nibbles(int code, int d)
{
    int bits = d / codes[code].width * codes[code].bits;
    if (is_uniform(code))
        bits += EXACT_GAIN_BITS - VQKVC_GAIN_BITS;
    return (bits + 3) / 4;
}

double vqkvc_universal_error(int code, int d)
{
    if (!is_uniform(code))
        return codes[code].error;
    /* Steps of the largest magnitude over 127, evenly spread errors in each. The largest of d
     * normal magnitudes has a mean square of about 2 ln d - ln ln d - ln pi + 2 * 0.577 (extreme
     * value theory: the first terms of the expansion). */
    double largest = 2 * log(d) - log(log(d)) - log(3.14159265) + 2 * 0.5772;
    return largest / (127.0 * 127 * 12);
}

double vqkvc_universal_book_bits(int code)
{
    return is_uniform(code) ? 0 : 16.0 * codes[code].width * (1 << codes[code].bits);
}

void vqkvc_universal_curve(int d, double energy, int n_max, double *curve, unsigned char *pick)
{
    for (int j = 0; j <= n_max; j++)
        pick[j] = 0;
    for (int code = 0; code < VQKVC_UNIVERSALS; code++) {
        double error = energy * vqkvc_universal_error(code, d);
        for (int j = vqkvc_universal_nibbles(code, d); j <= n_max; j++)
            if (error < curve[j]) {
                curve[j] = error;
                pick[j] = (unsigned char)(1 + code);
            }
    }
}

/* ---- streams ---- */

/* Sets the mean of s, and the range of its gain so that it covers the samples with room of a factor
 * of 2 below and 4 above. */
static vqkvc_code fit_mean_and_gain(vqkvc_plan *plan, vqkvc_stream *s, int n, const float *x,
                                    vqkvc_err *err)
{
    size_t d = (size_t)s->n_in;
    double *mean = vqkvc_alloc(d, sizeof *mean, err), low = INFINITY, high = -INFINITY;
    if (mean == NULL)
        return err->code;
    for (int t = 0; t < n; t++)
        for (size_t i = 0; i < d; i++)
            mean[i] += (double)x[(size_t)t * d + i] / n;
    for (size_t i = 0; i < d; i++) {
        plan->tables[s->mean].f16[i] = vqkvc_f32_to_f16((float)mean[i]);
        mean[i] = (double)vqkvc_f16_to_f32(plan->tables[s->mean].f16[i]);
    }
    for (int t = 0; t < n; t++) {
        double sum = 0;
        for (size_t i = 0; i < d; i++) {
            double v = (double)x[(size_t)t * d + i] - mean[i];
            sum += v * v;
        }
        double g = log2(fmax(sqrt(sum / (double)d), 1e-4));
        low = fmin(low, g);
        high = fmax(high, g);
    }
    s->gain_lo = (float)(low - 1);
    s->gain_step = (float)((high + 2 - (low - 1)) / 255);
    free(mean);
    return VQKVC_OK;
}

static vqkvc_code set_uniform(vqkvc_plan *plan, vqkvc_stream *s, int bits, vqkvc_err *err)
{
    vqkvc_run *run = vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    s->gain = VQKVC_GAIN_ABSMAX;
    s->gain_bits = EXACT_GAIN_BITS;
    s->gain_lo = s->gain_step = 0;
    s->gain_width = s->n_latents;
    run->coder = VQKVC_CODER_UNI;
    run->groups = s->n_latents;
    run->bits = bits;
    return VQKVC_OK;
}

vqkvc_code vqkvc_universal_stream(vqkvc_plan *plan, const vqkvc_stream_spec *spec, int code, int n,
                                  const float *x, vqkvc_err *err)
{
    vqkvc_higgs_grid grid = {.width = codes[code].width, .bits = codes[code].bits};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, spec->name, spec->n_members, spec->members, err);
    if (s == NULL)
        return err->code;
    s->frame = spec->frame.frame;
    s->transform = VQKVC_TRANSFORM_HADAMARD;
    s->mean = vqkvc_plan_add_table(plan, 1, s->n_in, err, "mean %s", spec->name);
    if (s->mean < 0 || fit_mean_and_gain(plan, s, n, x, err) != VQKVC_OK)
        return err->code;
    if (is_uniform(code))
        return set_uniform(plan, s, grid.bits, err);
    VQKVC_TRY(vqkvc_higgs_add_grid(plan, &grid, err));
    VQKVC_TRY(vqkvc_higgs_code(plan, s, &grid, err));
    s->gain_bits = VQKVC_GAIN_BITS;
    return VQKVC_OK;
}
