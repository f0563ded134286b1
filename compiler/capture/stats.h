/* stats.h - mergeable statistics: sums over fixed chunks of tokens, in double.
 *
 * A vqkvc_stats is either *open* (mean and moment hold raw sums, between the first
 * vqkvc_stats_add() and vqkvc_stats_finish()) or *closed* (they hold means); merging and reading
 * need closed ones. The chunks follow the order of the tokens, so the bytes do not depend on
 * threads. */
#ifndef VQKVC_CAPTURE_STATS_H
#define VQKVC_CAPTURE_STATS_H

#include <stddef.h>

#include "capture/capture.h"

enum { VQKVC_STATS_CHUNK = 256 }; /* tokens */

/* Doubles in a moment: width^2 for keys and values, n_heads * head_dim^2 for queries. */
size_t vqkvc_stats_moment_size(const vqkvc_geometry *g, vqkvc_kind kind);

/* Scratch for vqkvc_stats_add(): a chunk widened [VQKVC_STATS_CHUNK, width], sized for all kinds
 * of g. Freed with vqkvc_stats_scratch_free(). */
typedef struct vqkvc_stats_scratch {
    double *wide;
} vqkvc_stats_scratch;

vqkvc_code vqkvc_stats_scratch_alloc(vqkvc_stats_scratch *s, const vqkvc_geometry *g,
                                     vqkvc_err *err);
void vqkvc_stats_scratch_free(vqkvc_stats_scratch *s);

/* Adds n <= VQKVC_STATS_CHUNK vectors x [n, width] to the sums. */
void vqkvc_stats_add(vqkvc_stats *s, const vqkvc_geometry *g, vqkvc_kind kind, int n,
                     const float *x, const vqkvc_stats_scratch *scratch);
/* Sums to means; moments are made exactly symmetric. */
void vqkvc_stats_finish(vqkvc_stats *s, const vqkvc_geometry *g, vqkvc_kind kind);
/* Closed dst becomes the statistics of both; an empty dst becomes a copy of src. */
void vqkvc_stats_merge(vqkvc_stats *dst, const vqkvc_stats *src, const vqkvc_geometry *g,
                       vqkvc_kind kind);

/* The metric of values in one layer: Wo_h' Wo_h averaged over the query heads of each KV head, from
 * wo [d_model, n_heads * head_dim]. metric: [n_kv_heads, head_dim, head_dim]. */
vqkvc_code vqkvc_value_metric(const vqkvc_geometry *g, const float *wo, float *metric,
                              vqkvc_err *err);

#endif
