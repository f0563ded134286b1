/* fit_auto.h - the scheme auto as commands make it: probes, then search and fit; and the search for
 * the fewest bits that keep a loss. */
#ifndef VQKVC_COMMAND_FIT_AUTO_H
#define VQKVC_COMMAND_FIT_AUTO_H

#include "command/schemes.h"
#include "plan/auto.h"

/* Makes *plan from in->capture. Where a model is at hand its sensitivities are probed first, or
 * found in the store. *plan is empty after a failure. */
vqkvc_code vqkvc_fit_auto(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err);

/* Refuses words of --without that are none, and what no model of this geometry (if it is known, not
 * NULL) can have. */
vqkvc_code vqkvc_fit_auto_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err);

/* Word i of --without, NULL behind the last. */
const char *vqkvc_auto_idea(int i);

/* The plan of fewest bits that keeps --max-kl and --max-ppl, for the parameters *params but their
 * bits, where the search begins. The loss is measured through the emitted header on what the
 * calibration left of its files, or else on text that the model samples; figures and fitted parts
 * are kept in the store, so that a search that was interrupted goes on. */
vqkvc_code vqkvc_seek_bits(const vqkvc_scheme_input *in, const vqkvc_auto_params *params,
                           vqkvc_plan *plan, vqkvc_err *err);

/* Whether the bits are sought: --max-kl or --max-ppl is given. */
int vqkvc_seeks(const vqkvc_options *o);

/* What the text that the model samples is for, which keeps it apart from the calibration's. */
enum { VQKVC_TEXT_PROBES = 1, VQKVC_TEXT_SEEK = 2 };

/* Windows [n_windows, context] that the model samples itself. */
vqkvc_code vqkvc_own_text(const vqkvc_scheme_input *in, int purpose, int n_windows, int context,
                          int32_t *windows, vqkvc_err *err);

#endif
