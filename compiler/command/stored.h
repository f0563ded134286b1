/* stored.h - rows of the store, plans above all, found by what people type. */
#ifndef VQKVC_COMMAND_STORED_H
#define VQKVC_COMMAND_STORED_H

#include <jansson.h>

#include "calib_db/kvdb.h"
#include "plan/plan.h"

/* The row as the store shows it in JSON, with kinds and ids of its parents and children; the caller
 * releases it. NULL after a failure: VQKVC_E_USAGE if id names nothing. */
json_t *vqkvc_stored_row(kvdb *db, const char *id, vqkvc_err *err);

/* Reads the plan artifact `id` names (a row id or the beginning of a hash) into *plan, which the
 * caller frees. recipe_hash (or NULL): of the plan. command (or NULL): appended, the command line
 * that made it. VQKVC_E_USAGE if id names something else. */
vqkvc_code vqkvc_stored_plan(kvdb *db, const char *id, vqkvc_plan *plan, vqkvc_hash *recipe_hash,
                             vqkvc_buf *command, vqkvc_err *err);

/* The report (report.h) of the plan artifact `id`; *report is NULL if it has none. The caller
 * releases it. */
vqkvc_code vqkvc_stored_report(kvdb *db, const char *id, json_t **report, vqkvc_err *err);

/* The same as vqkvc_stored_plan() by the hash of the plan's bytes, which headers carry; the newest
 * plan with these bytes, for several recipes may have made the same. */
vqkvc_code vqkvc_stored_plan_by_content(kvdb *db, const char *content, vqkvc_plan *plan,
                                        vqkvc_hash *recipe_hash, vqkvc_err *err);

#endif
