#include "fit/checks.h"

#include <math.h>

/* The comparison is false for NaN, so one test finds NaN, infinity and what is too large. */
#define DEFINE_CHECK(name, type)                                                                   \
    vqkvc_code name(const char *what, int n, int d, const type *x, size_t ldx, double limit,       \
                    vqkvc_err *err)                                                                \
    {                                                                                              \
        for (int i = 0; i < n; i++)                                                                \
            for (int j = 0; j < d; j++) {                                                          \
                double v = x[(size_t)i * ldx + (size_t)j];                                         \
                if (!(fabs(v) <= limit))                                                           \
                    return vqkvc_fail(err, VQKVC_E_NUMERIC,                                        \
                                      "%s: row %d, column %d is %g, outside what can be fitted",   \
                                      what, i, j, v);                                              \
            }                                                                                      \
        return VQKVC_OK;                                                                           \
    }

DEFINE_CHECK(vqkvc_check_f32, float)
DEFINE_CHECK(vqkvc_check_f64, double)

vqkvc_code vqkvc_check_weights(int n, const float *weights, double *total, vqkvc_err *err)
{
    *total = n;
    if (!weights)
        return VQKVC_OK;
    *total = 0;
    for (int i = 0; i < n; i++) {
        if (!(weights[i] >= 0) || isinf(weights[i]))
            return vqkvc_fail(err, VQKVC_E_NUMERIC, "weights: row %d is %g", i, weights[i]);
        *total += weights[i];
    }
    if (*total == 0)
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "weights: all %d are zero", n);
    return VQKVC_OK;
}
