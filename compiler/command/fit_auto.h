/* fit_auto.h - the scheme auto as commands make it: probes, then search and fit; and the search for
 * the fewest bits that keep a loss. */
#ifndef VQKVC_COMMAND_FIT_AUTO_H
#define VQKVC_COMMAND_FIT_AUTO_H

#include "command/schemes.h"
#include "plan/auto.h"

/* Makes *plan from in->capture. Where a model is at hand its sensitivities are probed first, or
 * found in the store. *plan is empty after a failure. */
vqkvc_code vqkvc_fit_auto(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err);

/* Refuses words of --without that are none; g is not looked at. */
vqkvc_code vqkvc_auto_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err);

/* Word i of --without, NULL behind the last. */
const char *vqkvc_auto_idea(int i);

/* The plan of fewest bits that keeps --max-kl and --max-ppl, for the parameters *params but their
 * bits, where the search begins. The loss is measured through the emitted header on text that
 * neither the calibration nor an evaluation sees; figures and fitted parts are kept in the store,
 * so that a search that was interrupted goes on. */
vqkvc_code vqkvc_seek_bits(const vqkvc_scheme_input *in, const vqkvc_auto_params *params,
                           vqkvc_plan *plan, vqkvc_err *err);

/* Windows [n_windows, context] of the calibration's kind of text. Where the model samples it
 * itself, `purpose` keeps it apart from the calibration's, and from other purposes'. */
vqkvc_code vqkvc_side_text(const vqkvc_scheme_input *in, int purpose, int n_windows, int context,
                           int32_t *windows, vqkvc_err *err);

#endif
