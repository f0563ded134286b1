/* eval_text.h - the windows of tokens that an evaluation runs over. */
#ifndef VQKVC_COMMAND_EVAL_TEXT_H
#define VQKVC_COMMAND_EVAL_TEXT_H

#include "command/options.h"
#include "model/model.h"

/* Fills windows [o->windows, context] after o: from files, evenly spread; else sampled by the
 * model, from random numbers that no calibration uses. name [256]: what it is, for captions. */
vqkvc_code vqkvc_eval_text(vqkvc_model *model, const vqkvc_options *o, int context,
                           const vqkvc_log *log, int32_t *windows, char *name, vqkvc_err *err);

#endif
