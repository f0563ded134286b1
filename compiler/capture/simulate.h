/* simulate.h - a capture of a model that does not exist, for measuring what the tool itself needs.
 *
 * Vectors have the structure that matters for time, memory and the planner, not a model's: every
 * token has 128 latent factors that drift from layer to layer (correlation 0.9 a layer) and a
 * length of its own (log-normal); keys, values and queries are linear maps of them whose weights
 * fall slowly with the factor, plus a tenth of white noise; two channels of each key head have
 * large means. Nothing but one step's vectors and the capture is ever in memory. */
#ifndef VQKVC_CAPTURE_SIMULATE_H
#define VQKVC_CAPTURE_SIMULATE_H

#include "capture/source.h"

/* The geometry behind "LAYERSxHEADSxKV_HEADSxHEAD_DIM"; of Llama-3.1-8B "32x32x8x128". RoPE as
 * there: interleaved pairs, base 500000. Fails with VQKVC_E_USAGE. */
vqkvc_code vqkvc_simulate_geometry(const char *shape, vqkvc_geometry *g, vqkvc_err *err);

/* Fills *c, which the caller frees, after a failure too. Of params it uses n_tokens, n_sample,
 * n_skip, window and seed. Asks vqkvc_interrupted() before each step. */
vqkvc_code vqkvc_capture_simulate(const vqkvc_geometry *g, const vqkvc_capture_params *params,
                                  const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err);

#endif
