/* report.h - what a fit says of itself, layer by layer: how much predictions explain, how a paper's
 * claim holds. It is no part of the plan, but is kept with it, so that it is not said on the log of
 * the fit alone.
 *
 * An array of objects: "part", "layer", the figures, and "text", the same for people. */
#ifndef VQKVC_COMMAND_REPORT_H
#define VQKVC_COMMAND_REPORT_H

#include <jansson.h>

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "plan/predict.h"
#include "plan/svdq.h"

/* Appends a line for each of e [n]. report may be NULL. */
void vqkvc_report_explained(const vqkvc_explained *e, int n, json_t *report);
/* The same for the claims [n_layers] of keys. */
void vqkvc_report_claims(const vqkvc_svdq_claim *claims, int n_layers, json_t *report);

/* Keeps a report that is not empty under the recipe of its plan; *hash, of the plan's parent, is
 * "" where it is. db may be NULL. */
vqkvc_code vqkvc_report_keep(kvdb *db, const char *plan_recipe, const vqkvc_hash *model,
                             const json_t *report, vqkvc_hash *hash, vqkvc_err *err);
/* The report of a stored plan, by its recipe; NULL if there is none. The caller releases it. */
json_t *vqkvc_report_fetch(kvdb *db, const char *plan_recipe, const vqkvc_log *log, vqkvc_err *err);
/* From the bytes that are kept; NULL if they are none. */
json_t *vqkvc_report_read(const vqkvc_buf *bytes);

/* Appends "report" and a line of text each; nothing for NULL or an empty one. */
void vqkvc_report_print(const json_t *report, vqkvc_buf *out);

#endif
