/* Blobs: bytes under the hash of their content, cut into chunks. */
#include <stdlib.h>
#include <string.h>

#include "calib_db/kvdb_internal.h"

/* Whether the stored copy of a blob has just these bytes. */
static int is_stored(kvdb *db, const char *hash, const unsigned char *bytes, size_t n,
                     vqkvc_err *err)
{
    size_t at = 0, len;
    int same = 0;
    kvdb_stmt *st = kvdb_prepare(db->sql, "compare a blob",
                                 "SELECT b.n, c.bytes FROM blob b LEFT JOIN blob_chunk c "
                                 "ON c.hash = b.hash WHERE b.hash = ?1 ORDER BY c.i",
                                 err);
    kvdb_bind_text(st, 1, hash);
    while (kvdb_step(st, err)) {
        const void *chunk = kvdb_col_blob(st, 1, &len);
        same = kvdb_col_int(st, 0) == (int64_t)n && len <= n - at &&
               (len == 0 || memcmp(chunk, bytes + at, len) == 0);
        if (!same)
            break;
        at += len;
    }
    kvdb_finish(st);
    return same && at == n;
}

/* Runs a statement on a hash (?1) and, if it has one, a length (?2). */
static void run_with_hash(kvdb *db, const char *sql, const char *hash, size_t n, vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(db->sql, "store a blob", sql, err);
    kvdb_bind_text(st, 1, hash);
    if (strstr(sql, "?2") != NULL)
        kvdb_bind_int(st, 2, (int64_t)n);
    kvdb_step(st, err);
    kvdb_finish(st);
}

/* A copy that is there but damaged is replaced: else no rebuild could ever mend the store. */
vqkvc_code kvdb_put_blob_rows(kvdb *db, const void *bytes, size_t n, vqkvc_hash *hash,
                              vqkvc_err *err)
{
    *hash = vqkvc_hash_bytes(bytes, n);
    if (is_stored(db, hash->hex, bytes, n, err) || err->code != VQKVC_OK)
        return err->code;
    run_with_hash(db, "DELETE FROM blob_chunk WHERE hash = ?1", hash->hex, n, err);
    run_with_hash(db,
                  "INSERT INTO blob (hash, n) VALUES (?1, ?2) "
                  "ON CONFLICT (hash) DO UPDATE SET n = excluded.n",
                  hash->hex, n, err);
    kvdb_stmt *st =
        kvdb_prepare(db->sql, "store a blob",
                     "INSERT INTO blob_chunk (hash, i, bytes) VALUES (?1, ?2, ?3)", err);
    size_t len = 0;
    for (size_t at = 0; at < n && err->code == VQKVC_OK; at += len) {
        len = n - at < db->chunk_bytes ? n - at : db->chunk_bytes;
        kvdb_bind_text(st, 1, hash->hex);
        kvdb_bind_int(st, 2, (int64_t)(at / db->chunk_bytes));
        kvdb_bind_blob(st, 3, (const char *)bytes + at, len);
        kvdb_step(st, err);
        kvdb_reset(st);
    }
    kvdb_finish(st);
    return err->code;
}

vqkvc_code kvdb_put_blob(kvdb *db, const void *bytes, size_t n, vqkvc_hash *hash, vqkvc_err *err)
{
    VQKVC_TRY(kvdb_begin(db, err));
    kvdb_put_blob_rows(db, bytes, n, hash, err);
    return kvdb_end(db, err);
}

/* Makes room for n bytes and the NUL in one go: the buffer's own growth would take twice as much.
 */
static vqkvc_code reserve(vqkvc_buf *buf, size_t n, vqkvc_err *err)
{
    if (n < buf->cap)
        return VQKVC_OK;
    char *grown = realloc(buf->data, n + 1);
    if (grown == NULL)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "cannot allocate %zu bytes for a blob", n);
    buf->data = grown;
    buf->cap = n + 1;
    return VQKVC_OK;
}

/* A blob is inside the file, so a length beyond the file's is damage, and no reason to allocate. */
static vqkvc_code check_length(kvdb *db, int64_t n, const char *hash, vqkvc_err *err)
{
    int64_t pages = 0, page_bytes = 0;
    kvdb_sql_value(db->sql, "measure the store", "PRAGMA page_count", &pages, err);
    kvdb_sql_value(db->sql, "measure the store", "PRAGMA page_size", &page_bytes, err);
    if (err->code == VQKVC_OK && (n < 0 || n / page_bytes > pages))
        vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: blob %s claims %lld bytes", db->path, hash,
                   (long long)n);
    return err->code;
}

/* Reads row after row of (n, i, bytes) into buf; *rows counts them. */
static vqkvc_code read_chunks(kvdb *db, kvdb_stmt *st, const char *hash, vqkvc_buf *buf,
                              vqkvc_err *err)
{
    int64_t n = -1;
    for (int64_t i = 0; kvdb_step(st, err); i++) {
        if (i == 0) {
            n = kvdb_col_int(st, 0);
            if (check_length(db, n, hash, err) != VQKVC_OK ||
                reserve(buf, (size_t)n, err) != VQKVC_OK)
                return err->code;
        }
        size_t len;
        const void *bytes = kvdb_col_blob(st, 2, &len);
        if (kvdb_col_int(st, 1) != i || len > (size_t)n - buf->len)
            return vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: blob %s: chunk %lld does not fit",
                              db->path, hash, (long long)i);
        vqkvc_buf_put(buf, bytes, len);
    }
    if (err->code != VQKVC_OK)
        return err->code;
    if (n < 0)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: there is no blob %s", db->path, hash);
    if (buf->len != (size_t)n)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: blob %s has %zu bytes instead of %lld",
                          db->path, hash, buf->len, (long long)n);
    return VQKVC_OK;
}

vqkvc_code kvdb_get_blob(kvdb *db, const vqkvc_hash *hash, vqkvc_buf *buf, vqkvc_err *err)
{
    buf->len = 0;
    kvdb_stmt *st = kvdb_prepare(db->sql, "read a blob",
                                 "SELECT b.n, c.i, c.bytes FROM blob b LEFT JOIN blob_chunk c "
                                 "ON c.hash = b.hash WHERE b.hash = ?1 ORDER BY c.i",
                                 err);
    kvdb_bind_text(st, 1, hash->hex);
    read_chunks(db, st, hash->hex, buf, err);
    kvdb_finish(st);
    vqkvc_buf_put(buf, "", 0);
    if (buf->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    if (err->code == VQKVC_OK && strcmp(vqkvc_hash_bytes(buf->data, buf->len).hex, hash->hex) != 0)
        vqkvc_fail(err, VQKVC_E_STORE,
                   "%s: damaged: blob %s: its %zu bytes have another hash; build its artifact anew",
                   db->path, hash->hex, buf->len);
    if (err->code != VQKVC_OK)
        buf->len = 0;
    return err->code;
}
