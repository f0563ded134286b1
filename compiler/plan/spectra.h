/* spectra.h - what the search knows of one way to group layers and heads: the spectrum of every
 * shared stream, and of what it leaves to the own streams. */
#ifndef VQKVC_PLAN_SPECTRA_H
#define VQKVC_PLAN_SPECTRA_H

#include "fit/fit.h"
#include "plan/search.h"

/* One grouping. Of a shape that vqkvc_grouping_make() is given: layers a scope, heads a scope and
 * heads an own stream. */
typedef struct vqkvc_grouping {
    int layers, heads, own_heads;
    int tables_at;              /* as in vqkvc_auto_params */
    int universal;              /* own streams may be universal (universal.h) */
    int n_scopes, n_own, n_max; /* n_own: own streams of all scopes; n_max: nibbles of curves */
    vqkvc_scope *scopes;        /* [n_scopes], shared and own not set */
    double **u;                 /* [n_scopes][n_in, n_in] latents in its rows, whitened */
    double **lambda;            /* [n_scopes][n_in] their variances */
    double **curve;             /* [n_scopes][n_max + 1] error by nibbles of the shared stream */
    double **time; /* [n_scopes][n_max + 1] what attention takes for its codes, in ns a token of all
                      readers; NULL: no cost model is given */
    double **energy; /* [n_scopes][members][head_dim * head_dim + 1], where own streams may be
                        universal: whose sum of products with the covariance of a member's whitened
                        channels is E |x - mean|^2, and tr(M) / head_dim */
} vqkvc_grouping;

/* n_max: nibbles of a shared stream at most. The caller frees with vqkvc_grouping_free(), after a
 * failure too. */
vqkvc_code vqkvc_grouping_make(vqkvc_grouping *w, const vqkvc_capture *c,
                               const vqkvc_auto_params *params, const vqkvc_metrics *metrics,
                               int n_max, vqkvc_err *err);
void vqkvc_grouping_free(vqkvc_grouping *w);

/* The curves of all own streams, scope by scope, [n_own][n_max + 1], when scope i's shared stream
 * has share[i] nibbles; the time of their codes, times of the same shape, where there is a cost
 * model (else NULL); and the universal codes that curves rest on, picks of the same shape as
 * vqkvc_universal_curve() has them, where streams may be universal (else NULL). */
vqkvc_code vqkvc_grouping_own(const vqkvc_grouping *w, const vqkvc_capture *c,
                              const vqkvc_auto_params *params, const int *share, int n_max,
                              double **curves, double **times, unsigned char **picks,
                              vqkvc_err *err);

/* Who reads the shared stream of a scope, or one of its own streams. */
vqkvc_time_readers vqkvc_scope_readers(const vqkvc_scope *s, const vqkvc_auto_params *params,
                                       int own);

#endif
