/* keep.h - the store as commands use it: looked up by recipe, and no store at all (--no-db) is a
 * store that never has anything. Wherever a kvdb is wanted here, NULL stands for that. */
#ifndef VQKVC_COMMAND_KEEP_H
#define VQKVC_COMMAND_KEEP_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "command/options.h"

/* --db, else $VQKVC_DB, else "vqkvc.db". */
const char *vqkvc_store_path(const vqkvc_options *o);

/* *db is NULL after --no-db. */
vqkvc_code vqkvc_store_open(kvdb **db, const vqkvc_options *o, kvdb_mode mode, vqkvc_err *err);

/* After an attempt to read what was found: damage is said on the log and makes it not found, so
 * that making it again mends the store. Other failures become *err. */
vqkvc_code vqkvc_store_forgive(const vqkvc_err *damage, const char *kind, const vqkvc_log *log,
                               int *found, vqkvc_err *err);

/* The bytes of an artifact into buf, which is emptied first; damage is forgiven. */
vqkvc_code vqkvc_store_fetch(kvdb *db, const char *kind, const char *recipe, const vqkvc_log *log,
                             vqkvc_buf *buf, int *found, vqkvc_err *err);

/* model: hash of the weights. parents [n_parents]: recipe hashes of rows that are there. */
vqkvc_code vqkvc_store_keep(kvdb *db, const char *kind, const char *recipe, const vqkvc_hash *model,
                            size_t n_parents, const vqkvc_hash *parents, const vqkvc_buf *bytes,
                            vqkvc_err *err);

vqkvc_code vqkvc_store_keep_model(kvdb *db, const vqkvc_geometry *g, vqkvc_err *err);

/* A whole capture: each part is an artifact "capture-part"; "capture" is part 0, comes last and has
 * the others as parents, so that it is there only if they are. */
vqkvc_code vqkvc_store_keep_capture(kvdb *db, const char *recipe, const vqkvc_capture *c,
                                    vqkvc_err *err);
/* *c is empty unless *found. The caller frees it. */
vqkvc_code vqkvc_store_fetch_capture(kvdb *db, const char *recipe, const vqkvc_log *log,
                                     vqkvc_capture *c, int *found, vqkvc_err *err);

#endif
