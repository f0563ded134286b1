/* allocate.h - how many channels share a nibble, and which streams get how many nibbles. */
#ifndef VQKVC_PLAN_ALLOCATE_H
#define VQKVC_PLAN_ALLOCATE_H

#include "base/status.h"

/* A run of groups of channels: every group takes `stages` nibbles. */
typedef struct vqkvc_layout_run {
    int width, stages, groups;
} vqkvc_layout_run;

enum { VQKVC_LAYOUT_RUNS = 5 }; /* two nibbles a channel; one for 1, 2, 4, 8 channels */

/* One group of option o < VQKVC_LAYOUT_RUNS, in the order of that list. */
vqkvc_layout_run vqkvc_allocate_option(int o);

typedef struct vqkvc_layout {
    int n_runs, n_channels, n_nibbles;
    vqkvc_layout_run runs[VQKVC_LAYOUT_RUNS];
    double distortion; /* expected squared error, dropped channels included */
} vqkvc_layout;

/* Where tables count, a channel that is coded takes `table` nibbles of a token for its part of the
 * tables (vqkvc_allocate_table()); 0 otherwise. All sizes in nibbles hold these as well. */
double vqkvc_allocate_table(int d, int head_dim, int tables_at);

/* Expected squared error of coding channels of variances lambda [d] (descending) with 0 .. n_max
 * nibbles: curve [n_max + 1]. Dynamic programming over (channels, nibbles); a group of w channels
 * costs the Gaussian rate-distortion bound at 4 bits times the measured loss of a 16-point codebook
 * of that width. */
vqkvc_code vqkvc_allocate_curve(int d, const double *lambda, double table, int n_max, double *curve,
                                vqkvc_err *err);
/* The same, and what the layouts cost when a group of option o costs each[o]: cost [n_max + 1]. */
vqkvc_code vqkvc_allocate_priced(int d, const double *lambda, double table, int n_max,
                                 const double *each, double *curve, double *cost, vqkvc_err *err);
/* The layout that reaches curve[n_nibbles]. At least one channel is coded. */
vqkvc_code vqkvc_allocate_layout(int d, const double *lambda, double table, int n_nibbles,
                                 vqkvc_layout *layout, vqkvc_err *err);
/* The expected squared error of each channel [d] under a layout. */
void vqkvc_layout_distortions(const vqkvc_layout *layout, int d, const double *lambda,
                              double *distortion);

/* Shares `total` nibbles among n curves [n][n_max + 1] so that the sum of errors is least: always
 * to the curve that falls steepest over the next few, where it is flat at first over the few behind
 * that. share [n] holds the least of each on entry.
 */
vqkvc_code vqkvc_allocate_shares(int n, int n_max, const double *const *curves, long total,
                                 int *share, vqkvc_err *err);

#endif
