/* probe.h - attention-output error, layer by layer, of codecs that are fed an exact run's K and V
 * and asked the exact run's queries: what a codec does to one layer by itself, without the drift of
 * the layers below. */
#ifndef VQKVC_EVAL_PROBE_H
#define VQKVC_EVAL_PROBE_H

#include "base/geometry.h"
#include "base/status.h"
#include "model/cache.h"

/* Makes *probe a cache that answers as `exact` and feeds n_codecs other caches on the way, and for
 * each the same codec in portable C, plain. `exact`, codecs [n_codecs] and plain [n_codecs] are
 * borrowed. step: most tokens of one attend. Only queries at positions >= first_counted count. */
vqkvc_code vqkvc_probe_make(vqkvc_cache *probe, const vqkvc_cache *exact, const vqkvc_cache *codecs,
                            const vqkvc_cache *plain, int n_codecs, const vqkvc_geometry *g,
                            int n_seq, int step, int first_counted, vqkvc_err *err);

/* What a probe has seen of one codec in one layer: sums over queries of squared lengths. */
typedef struct vqkvc_probe_sum {
    double error;     /* |o - o_ref|^2 */
    double kernels;   /* |o - o_plain|^2: rounding of the kernels, and codes that differ by it */
    double reference; /* |o_ref|^2 */
} vqkvc_probe_sum;

/* Adds these to *sum; sequences are added in order. */
void vqkvc_probe_add(const vqkvc_cache *probe, int codec, int layer, vqkvc_probe_sum *sum);

#endif
