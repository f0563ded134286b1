/* checks.h - refusing samples that no fit can use. */
#ifndef VQKVC_FIT_CHECKS_H
#define VQKVC_FIT_CHECKS_H

#include <stddef.h>

#include "base/status.h"

/* Every entry of x [n, d], rows at distance ldx, is finite and at most `limit` in magnitude;
 * VQKVC_E_NUMERIC otherwise, naming `what`, the row and the column of the first offender. */
vqkvc_code vqkvc_check_f32(const char *what, int n, int d, const float *x, size_t ldx, double limit,
                           vqkvc_err *err);
vqkvc_code vqkvc_check_f64(const char *what, int n, int d, const double *x, size_t ldx,
                           double limit, vqkvc_err *err);

/* weights [n] or NULL (all 1): finite, none negative, not all zero. *total is their sum. */
vqkvc_code vqkvc_check_weights(int n, const float *weights, double *total, vqkvc_err *err);

#endif
