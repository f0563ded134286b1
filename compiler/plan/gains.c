/* What latents go through before they are coded, and their codewords after: outliers are taken out,
 * gains, offsets and shifts taken off. The definition stands at the top of reference.c. */
#include "plan/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

/* 0 for a divisor of 0. */
static double quotient(double a, double b)
{
    return b == 0 ? 0 : a / b;
}

/* The binary16 nearest to x, at most the largest; a NaN, of a broken token, becomes 0. */
static double as_half(double x)
{
    float f = isnan(x) ? 0 : fminf(fmaxf((float)x, -65504.0f), 65504.0f);
    return vqkvc_f16_to_f32(vqkvc_f32_to_f16(f));
}

/* ---- outliers ---- */

/* Indices of the n entries of key [n_latents] that are largest, descending, the lower index first
 * on a tie; held [n] is room for their keys. */
static void find_largest(int n_latents, const double *key, int n, int32_t *index, double *held)
{
    int found = 0;
    for (int c = 0; c < n_latents; c++) {
        double k = isnan(key[c]) ? -1 : key[c];
        if (found == n && k <= held[n - 1])
            continue;
        int at = found < n ? found++ : n - 1;
        for (; at > 0 && held[at - 1] < k; at--) {
            held[at] = held[at - 1];
            index[at] = index[at - 1];
        }
        held[at] = k;
        index[at] = c;
    }
}

/* Token t of w->z: its outliers go to w->outlier and w->kept, their centres take their place. key
 * [n_latents] is scratch. */
static void take_outliers(const vqkvc_stream *s, const vqkvc_stream_work *w, int t, double *key)
{
    int m = s->n_latents, n = s->outliers;
    double *z = w->z + (size_t)t * m, *kept = w->kept + (size_t)t * n, mean = 0;
    int32_t *index = w->outlier + (size_t)t * n;
    uint8_t *out = w->out + (size_t)t * m;
    for (int c = 0; c < m && w->spread == NULL; c++)
        mean += z[c] / m;
    for (int c = 0; c < m; c++)
        key[c] =
            w->spread == NULL ? fabs(z[c] - mean) : fabs(z[c] - w->spread[c]) * w->spread[m + c];
    find_largest(m, key, n, index, kept);
    memset(out, 0, (size_t)m);
    for (int i = 0; i < n; i++) {
        int c = index[i];
        kept[i] = as_half(z[c]);
        z[c] = w->spread == NULL ? mean : w->spread[c];
        out[c] = 1;
    }
}

/* ---- gains of one token ---- */

/* One gain group of one token; out [gain_width] or NULL marks outliers. */
static double root_mean_square(const vqkvc_stream *s, const double *z, const uint8_t *out)
{
    double sum = 0;
    int n = 0;
    for (int c = 0; c < s->gain_width; c++)
        if (out == NULL || !out[c]) {
            sum += z[c] * z[c];
            n++;
        }
    return n == 0 ? 0 : (float)sqrt(sum / n);
}

static float gain_exact(const vqkvc_stream *s, const double *z, const uint8_t *out, int bits)
{
    if (s->gain == VQKVC_GAIN_RMS)
        return (float)root_mean_square(s, z, out);
    float largest = 0;
    for (int c = 0; c < s->gain_width; c++)
        if ((out == NULL || !out[c]) && fabsf((float)z[c]) > fabsf(largest))
            largest = (float)z[c];
    int half = 1 << (bits - 1);
    if (s->gain == VQKVC_GAIN_ABSMAX)
        return fabsf(largest) / (float)(half - 1);
    return largest / (float)-half;
}

/* RMS, ABSMAX and SIGNMAX of one group; bits: of its UNI runs. z becomes t. */
static void take_gain(const vqkvc_stream *s, double *z, const uint8_t *out, int bits,
                      vqkvc_norm *norm)
{
    float exact = gain_exact(s, z, out, bits);
    if (s->gain_bits == 8) {
        /* fmax() also turns the NaN of a broken token into code 0. */
        double code = exact == 0 ? 0 : round((log2(exact) - s->gain_lo) / s->gain_step);
        norm->scale = vqkvc_f16_to_f32(vqkvc_stream_gain(s, (int)fmin(fmax(code, 0), 255)));
    } else {
        norm->scale = as_half(exact);
    }
    float reciprocal = norm->scale == 0 || exact == 0 ? 0 : 1 / exact;
    for (int c = 0; c < s->gain_width; c++)
        z[c] = s->gain == VQKVC_GAIN_RMS ? quotient(z[c], norm->scale) : (float)z[c] * reciprocal;
}

/* ---- gains of several tokens ---- */

/* One gain group of n tokens: z [n, gain_width], rows at distance n_latents, as out and norms. */
typedef struct group {
    int n;
    double *z;
    const uint8_t *out;
    vqkvc_norm *norm; /* rows at distance w->n_groups */
    double *shift;    /* [gain_width], of NSN */
} group;

static void take_range(const vqkvc_stream *s, const vqkvc_stream_work *w, const vqkvc_run *r,
                       const group *g)
{
    float low = INFINITY, high = -INFINITY;
    for (int t = 0; t < g->n; t++)
        for (int c = 0; c < s->gain_width; c++) {
            size_t at = (size_t)t * s->n_latents + c;
            if (g->out == NULL || !g->out[at]) {
                low = fminf(low, (float)g->z[at]);
                high = fmaxf(high, (float)g->z[at]);
            }
        }
    if (low > high)
        low = high = 0;
    int uni = r->coder == VQKVC_CODER_UNI;
    double offset = as_half(uni ? low : (low + high) / 2);
    double scale = as_half((high - low) / (float)(uni ? (1 << r->bits) - 1 : 2));
    for (int t = 0; t < g->n; t++) {
        g->norm[(size_t)t * w->n_groups] = (vqkvc_norm){.scale = scale, .offset = offset};
        double *z = g->z + (size_t)t * s->n_latents;
        for (int c = 0; c < s->gain_width; c++)
            z[c] = quotient(z[c] - offset, scale);
    }
}

static void take_nsn(const vqkvc_stream *s, const vqkvc_stream_work *w, const group *g)
{
    for (int t = 0; t < g->n; t++) {
        size_t row = (size_t)t * s->n_latents;
        vqkvc_norm *norm = &g->norm[(size_t)t * w->n_groups];
        norm->scale =
            as_half(root_mean_square(s, g->z + row, g->out == NULL ? NULL : g->out + row));
        for (int c = 0; c < s->gain_width; c++)
            g->z[row + c] = quotient(g->z[row + c], norm->scale);
    }
    for (int c = 0; c < s->gain_width; c++) {
        double sum = 0;
        int n = 0;
        for (int t = 0; t < g->n; t++) {
            size_t at = (size_t)t * s->n_latents + c;
            if (g->out == NULL || !g->out[at]) {
                sum += g->z[at];
                n++;
            }
        }
        g->shift[c] = n == 0 ? 0 : as_half(sum / n);
    }
    for (int t = 0; t < g->n; t++) {
        size_t row = (size_t)t * s->n_latents;
        vqkvc_norm *norm = &g->norm[(size_t)t * w->n_groups];
        for (int c = 0; c < s->gain_width; c++)
            g->z[row + c] -= g->shift[c];
        norm->inner =
            as_half(root_mean_square(s, g->z + row, g->out == NULL ? NULL : g->out + row));
        for (int c = 0; c < s->gain_width; c++)
            g->z[row + c] = quotient(g->z[row + c], norm->inner);
    }
}

/* ---- a token group ---- */

static void take_group(const vqkvc_stream *s, const vqkvc_stream_work *w, const vqkvc_run *r,
                       const group *g)
{
    if (s->gain == VQKVC_GAIN_RANGE)
        take_range(s, w, r, g);
    else if (s->gain == VQKVC_GAIN_NSN)
        take_nsn(s, w, g);
    else
        take_gain(s, g->z, g->out, r->bits, g->norm);
}

void vqkvc_gains_take(const vqkvc_stream *s, const vqkvc_stream_work *w, int first, int n)
{
    size_t row = (size_t)first * s->n_latents;
    for (int t = first; t < first + n && s->outliers > 0; t++)
        take_outliers(s, w, t, w->z_hat + (size_t)t * s->n_latents);
    for (int i = 0; i < s->n_runs && s->gain != VQKVC_GAIN_NONE; i++) {
        const vqkvc_run *r = &s->runs[i];
        if (r->first % s->gain_width != 0)
            continue; /* a group begins with a run */
        group g = {.n = n,
                   .z = w->z + row + r->first,
                   .out = w->out == NULL ? NULL : w->out + row + r->first,
                   .norm = w->norm + (size_t)first * w->n_groups + r->first / s->gain_width,
                   .shift =
                       w->shift == NULL
                           ? NULL
                           : w->shift + (size_t)(first / s->gain_tokens) * s->n_latents + r->first};
        take_group(s, w, r, &g);
    }
}

void vqkvc_gains_put(const vqkvc_stream *s, const vqkvc_stream_work *w, int t)
{
    double *z_hat = w->z_hat + (size_t)t * s->n_latents;
    const double *shift =
        w->shift == NULL ? NULL : w->shift + (size_t)(t / s->gain_tokens) * s->n_latents;
    for (int c = 0; c < s->n_latents && s->gain != VQKVC_GAIN_NONE; c++) {
        const vqkvc_norm *norm = &w->norm[(size_t)t * w->n_groups + c / s->gain_width];
        if (shift != NULL)
            z_hat[c] = norm->scale * (shift[c] + norm->inner * z_hat[c]);
        else
            z_hat[c] = norm->offset + norm->scale * z_hat[c];
    }
    for (int i = 0; i < s->outliers; i++)
        z_hat[w->outlier[(size_t)t * s->outliers + i]] = w->kept[(size_t)t * s->outliers + i];
}
