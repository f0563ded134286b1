/* sensitivity.h - probes: what errors in each head's keys and values cost the model.
 *
 * One head at a time gets seeded Gaussian errors, everything else stays exact, and the KL
 * divergence is measured. For errors as small as codecs make, it grows in proportion to their
 * square and roughly adds up over
 * heads, so that these figures turn the squared errors of a plan into nats. */
#ifndef VQKVC_EVAL_SENSITIVITY_H
#define VQKVC_EVAL_SENSITIVITY_H

#include "base/log.h"
#include "model/model.h"
#include "plan/calibration.h"

enum { VQKVC_PROBE_LEAST = 192 /* tokens */ };

/* tokens [n_tokens]: one window of text, VQKVC_PROBE_LEAST at least. m: the metrics of un-rotated
 * keys and of values that the figures are per unit of. at out: [2, n_layers, n_kv_heads, groups],
 * see vqkvc_sensitivity. Time: a forward pass over the window a figure; memory: the logits of it
 * twice.
 */
vqkvc_code vqkvc_sensitivity_measure(vqkvc_model *model, const int32_t *tokens, int n_tokens,
                                     const vqkvc_capture *c, const vqkvc_metrics *m, uint64_t seed,
                                     int groups, const vqkvc_log *log, double *at, vqkvc_err *err);

#endif
