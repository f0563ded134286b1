/* universal.h - streams without tables of their own: the Hadamard transform, a gain a token, and
 * codes for Gaussian vectors that all streams of a plan share, as HIGGS has them (arXiv
 * 2411.17525).
 *
 * The transform spreads a token's error evenly over its channels, whatever direction it had; so the
 * expected error of coding x in a metric M is known without fitting anything:
 *     E (x - x^)' M (x - x^) = tr(M) / d * D * E |x - mean|^2,
 * D the mean squared error of the code for normal numbers. A learned basis codes better, but for
 * its tables: where these count and tokens are few, such streams win. */
#ifndef VQKVC_PLAN_UNIVERSAL_H
#define VQKVC_PLAN_UNIVERSAL_H

#include "plan/fit_stream.h"

enum { VQKVC_UNIVERSALS = 11 }; /* codes, by rising rate */

/* Whether there are such streams over d channels. */
int vqkvc_universal_fits(int d);

/* Nibbles of a token's codes of d channels, with what its gain takes beyond VQKVC_GAIN_BITS. */
int vqkvc_universal_nibbles(int code, int d);

/* D of coding d channels. */
double vqkvc_universal_error(int code, int d);

/* Bits of the table that all streams of a code share. */
double vqkvc_universal_book_bits(int code);

/* Lowers curve [n_max + 1], the error of d channels by nibbles, where a universal code has less of
 * `energy`, tr(M) / d E |x - mean|^2; pick [n_max + 1]: 1 + that code, else 0. */
void vqkvc_universal_curve(int d, double energy, int n_max, double *curve, unsigned char *pick);

/* Adds the stream of spec (whose n_nibbles, tables_at and gain_bits say nothing) over x [n, n_in],
 * which its mean and the range of its gain are of. */
vqkvc_code vqkvc_universal_stream(vqkvc_plan *plan, const vqkvc_stream_spec *spec, int code, int n,
                                  const float *x, vqkvc_err *err);

#endif
