/* probe.h - attention-output error, layer by layer, of codecs that are fed an exact run's K and V
 * and asked the exact run's queries: what a codec does to one layer by itself, without the drift of
 * the layers below. */
#ifndef VQKVC_EVAL_PROBE_H
#define VQKVC_EVAL_PROBE_H

#include "base/geometry.h"
#include "base/status.h"
#include "model/cache.h"

/* Makes *probe a cache that answers as `exact` and feeds n_codecs other caches on the way. `exact`
 * and codecs [n_codecs] are borrowed. step: most tokens of one attend. Only queries at positions
 * >= first_counted count. */
vqkvc_code vqkvc_probe_make(vqkvc_cache *probe, const vqkvc_cache *exact, const vqkvc_cache *codecs,
                            int n_codecs, const vqkvc_geometry *g, int n_seq, int step,
                            int first_counted, vqkvc_err *err);

/* Adds what a probe has seen of one codec in one layer: sums over queries of |o - o_ref|^2 and of
 * |o_ref|^2. Sequences are added in order. */
void vqkvc_probe_sums(const vqkvc_cache *probe, int codec, int layer, double *error,
                      double *reference);

#endif
