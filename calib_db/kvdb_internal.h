/* kvdb_internal.h - what the files of the store share, and what its tests look into. */
#ifndef KVDB_KVDB_INTERNAL_H
#define KVDB_KVDB_INTERNAL_H

#include "calib_db/kvdb.h"
#include "calib_db/kvdb_sql.h"

/* "vqkv": marks our files, at offset 68 of an SQLite file. */
#define KVDB_APPLICATION_ID 0x76716b76

struct kvdb {
    kvdb_sql *sql;
    char *path;         /* for messages; owned */
    size_t chunk_bytes; /* blobs are cut into chunks of this size when they are written */
};

/* A write transaction: kvdb_begin(), work, kvdb_end(), which commits if *err holds no failure and
 * rolls back otherwise. Both return err->code. */
vqkvc_code kvdb_begin(kvdb *db, vqkvc_err *err);
vqkvc_code kvdb_end(kvdb *db, vqkvc_err *err);

/* Inside a transaction: stores n bytes under their hash, as kvdb_put_blob(). */
vqkvc_code kvdb_put_blob_rows(kvdb *db, const void *bytes, size_t n, vqkvc_hash *hash,
                              vqkvc_err *err);

/* Copies a hash out of a column; fails if it is no hash. what: the row, for the message. */
vqkvc_code kvdb_col_hash(kvdb *db, kvdb_stmt *st, int col, const char *what, vqkvc_hash *hash,
                         vqkvc_err *err);

/* Appends s without what could harm a terminal or JSON: control characters and malformed UTF-8
 * become '?'. Stops before max bytes ("..." replaces the rest); max 0: no limit. */
void kvdb_put_printable(vqkvc_buf *out, const char *s, size_t max);

#endif
