/* synthetic.h - plans of the shapes that `auto` makes, for geometries that no model at hand has:
 * what speed is measured on. Their tables are random, so they say nothing about fidelity. */
#ifndef VQKVC_EVAL_SYNTHETIC_H
#define VQKVC_EVAL_SYNTHETIC_H

#include "plan/plan.h"

/* n_layers layers of a Llama-like geometry, keys rotated in halves, base 500000. */
vqkvc_geometry vqkvc_synthetic_geometry(int n_layers, int n_kv_heads, int group, int head_dim);

/* The plan of a scheme by name: "auto1" .. "auto4" (streams of a layer's own, keys rotated),
 * "auto2b" (auto2 with keys rotated within their block), "auto2s" (2 bits stored, 5.3 scanned:
 * streams shared by four layers and two heads, and own ones) and its variants by frame,
 * "auto2s-spans", "auto2s-bands" and "auto2s-post" (auto2b has them too), or a preset. Every stream
 * has the runs that one of the bundled model has (recipes.h), scaled to head_dim; block 0: as auto.
 * *plan is overwritten and the caller's to free; empty after a failure. Fails with E_USAGE for an
 * unknown name. */
vqkvc_code vqkvc_synthetic_plan(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                                int block, vqkvc_err *err);

/* A plan to calibrate a cost model of attention on: one KV head, and in every layer another mix of
 * frames, widths of codes and numbers of streams, so that each layer by itself is a measurement.
 * *plan as above. Fails with E_UNSUPPORTED for heads of less than 16 channels. */
vqkvc_code vqkvc_synthetic_mixes(vqkvc_plan *plan, int group, int head_dim, int block,
                                 vqkvc_err *err);

#endif
