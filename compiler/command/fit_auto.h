/* fit_auto.h - the scheme auto as commands make it: probes, then search and fit. */
#ifndef VQKVC_COMMAND_FIT_AUTO_H
#define VQKVC_COMMAND_FIT_AUTO_H

#include "command/pipeline.h"

/* Fills p->plan from p->capture. Where a model is at hand its sensitivities are probed first, or
 * found in the store. */
vqkvc_code vqkvc_fit_auto(vqkvc_pipeline *p, vqkvc_err *err);

#endif
