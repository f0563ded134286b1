#include "calib_db/kvdb.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/embed.h"
#include "base/log.h"
#include "calib_db/kvdb_internal.h"

VQKVC_EMBED(kvdb_schema_sql, "calib_db/schema.sql");

#define CHUNK_BYTES ((size_t)64 << 20)

/* step[v - 1] leads from schema version v to v + 1, and ends with what schema.sql says. */
static const char *const step[] = {
    "CREATE INDEX artifact_by_content ON artifact (content);\n"
    "CREATE INDEX artifact_parent_by_parent ON artifact_parent (parent);\n",
};

#define SCHEMA_VERSION (1 + (int)(sizeof step / sizeof step[0]))

/* ---- transactions ---- */

vqkvc_code kvdb_begin(kvdb *db, vqkvc_err *err)
{
    return kvdb_sql_exec(db->sql, "begin a transaction", "BEGIN IMMEDIATE", err);
}

vqkvc_code kvdb_end(kvdb *db, vqkvc_err *err)
{
    kvdb_sql_exec(db->sql, "commit", "COMMIT", err);
    /* SQLite has rolled back by itself after some failures, and not after others. */
    if (kvdb_sql_in_transaction(db->sql)) {
        vqkvc_err ignored = {0};
        kvdb_sql_exec(db->sql, "roll back", "ROLLBACK", &ignored);
    }
    return err->code;
}

/* ---- is it ours? ---- */

static int has_companion(const char *path, const char *suffix)
{
    char name[4096];
    int n = snprintf(name, sizeof name, "%s%s", path, suffix);
    return n > 0 && (size_t)n < sizeof name && access(name, F_OK) == 0;
}

/* Looks at the head of the file before SQLite works with it, which would begin by recovering it and
 * so write to a file that is not ours. Only the head: after a kill in the middle of a checkpoint
 * the rest makes sense with the log alone. */
static vqkvc_code check_head(const char *path, vqkvc_err *err)
{
    kvdb_sql *sql = NULL;
    unsigned char head[100] = {0};
    VQKVC_TRY(kvdb_sql_open(&sql, path, KVDB_SQL_IMMUTABLE, err));
    kvdb_sql_read_head(sql, head, sizeof head, err);
    kvdb_sql_close(sql);
    VQKVC_TRY(err->code);
    if (memcmp(head, "SQLite format 3", 16) != 0)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: is no vqkvc store (no SQLite file)", path);
    uint32_t id = (uint32_t)head[68] << 24 | (uint32_t)head[69] << 16 | (uint32_t)head[70] << 8 |
                  (uint32_t)head[71];
    if (id != KVDB_APPLICATION_ID)
        return vqkvc_fail(err, VQKVC_E_STORE,
                          "%s: is no vqkvc store, but an SQLite file of another program "
                          "(application id 0x%08x)",
                          path, id);
    return VQKVC_OK;
}

/* A missing or empty file is fine if we may make a store of it. */
static vqkvc_code check_file(const char *path, kvdb_mode mode, vqkvc_err *err)
{
    struct stat st;
    if (path[0] == '\0')
        return vqkvc_fail(err, VQKVC_E_USAGE, "the store needs a file name");
    if (stat(path, &st) != 0) {
        if (errno == ENOENT && mode == KVDB_READ_WRITE)
            return VQKVC_OK;
        return vqkvc_fail(err, VQKVC_E_IO, "%s: cannot open the store: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode))
        return vqkvc_fail(err, VQKVC_E_IO, "%s: cannot open the store: not a regular file", path);
    if (st.st_size == 0 && mode == KVDB_READ_ONLY)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: is no vqkvc store (an empty file)", path);
    /* With a rollback journal the head may be one that was never committed: let SQLite see. */
    if (st.st_size == 0 || has_companion(path, "-journal"))
        return VQKVC_OK;
    return check_head(path, err);
}

/* ---- schema ---- */

/* Everything that SQLite's schema table says, as one text. */
static vqkvc_code schema_text(kvdb_sql *sql, vqkvc_buf *out, vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(sql, "read the schema",
                                 "SELECT type, name, tbl_name, sql FROM sqlite_schema "
                                 "ORDER BY type, name",
                                 err);
    while (kvdb_step(st, err)) {
        for (int i = 0; i < 4; i++)
            vqkvc_buf_printf(out, "%s\n", kvdb_col_text(st, i));
    }
    kvdb_finish(st);
    if (out->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory");
    return err->code;
}

/* Compares the file's schema with the one that schema.sql makes, statement for statement. */
static vqkvc_code check_schema(kvdb *db, vqkvc_err *err)
{
    kvdb_sql *model = NULL;
    vqkvc_buf expected = {0}, found = {0};
    kvdb_sql_open(&model, db->path, KVDB_SQL_MEMORY, err);
    if (model != NULL) {
        kvdb_sql_exec(model, "make the schema", kvdb_schema_sql, err);
        schema_text(model, &expected, err);
    }
    schema_text(db->sql, &found, err);
    if (err->code == VQKVC_OK &&
        (found.len != expected.len || memcmp(found.data, expected.data, found.len) != 0))
        vqkvc_fail(err, VQKVC_E_STORE,
                   "%s: its tables are not those of schema %d: the file is damaged, or was changed "
                   "by another program",
                   db->path, SCHEMA_VERSION);
    kvdb_sql_close(model);
    free(expected.data);
    free(found.data);
    return err->code;
}

/* *version: 0 for a file without anything. Refuses what is not ours or too new. */
static vqkvc_code read_version(kvdb *db, int64_t *version, vqkvc_err *err)
{
    int64_t id = 0, n_tables = 0;
    kvdb_sql_value(db->sql, "read the schema version", "PRAGMA application_id", &id, err);
    kvdb_sql_value(db->sql, "read the schema version", "PRAGMA user_version", version, err);
    kvdb_sql_value(db->sql, "read the schema", "SELECT count(*) FROM sqlite_schema", &n_tables,
                   err);
    if (err->code != VQKVC_OK)
        return err->code;
    if (id == 0 && *version == 0 && n_tables == 0)
        return VQKVC_OK;
    if (id != KVDB_APPLICATION_ID)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: is no vqkvc store (application id 0x%08llx)",
                          db->path, (unsigned long long)id);
    if (*version > SCHEMA_VERSION)
        return vqkvc_fail(err, VQKVC_E_STORE,
                          "%s: made by a newer vqkvc (schema %lld, this program knows %d)",
                          db->path, (long long)*version, SCHEMA_VERSION);
    if (*version < 1)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: schema version %lld", db->path,
                          (long long)*version);
    return VQKVC_OK;
}

/* Inside a transaction: brings the file from version (0: empty) to today's schema. */
static vqkvc_code migrate(kvdb *db, int64_t version, vqkvc_err *err)
{
    char text[96];
    if (version == 0)
        kvdb_sql_exec(db->sql, "make the tables", kvdb_schema_sql, err);
    else
        for (int64_t v = version; v < SCHEMA_VERSION; v++)
            kvdb_sql_exec(db->sql, "migrate the tables", step[v - 1], err);
    snprintf(text, sizeof text, "PRAGMA application_id = %d; PRAGMA user_version = %d",
             KVDB_APPLICATION_ID, SCHEMA_VERSION);
    kvdb_sql_exec(db->sql, "set the schema version", text, err);
    return check_schema(db, err);
}

static vqkvc_code prepare_schema(kvdb *db, kvdb_mode mode, vqkvc_err *err)
{
    int64_t version = 0;
    VQKVC_TRY(read_version(db, &version, err));
    if (version == SCHEMA_VERSION)
        return check_schema(db, err);
    if (mode == KVDB_READ_ONLY)
        return vqkvc_fail(
            err, VQKVC_E_STORE,
            "%s: made by an older vqkvc (schema %lld, this program needs %d): a "
            "command that writes to the store, such as `vqkvc db gc`, brings it up to "
            "date",
            db->path, (long long)version, SCHEMA_VERSION);
    /* Two processes may make or migrate the same file: the second one finds it done. */
    VQKVC_TRY(kvdb_begin(db, err));
    if (read_version(db, &version, err) == VQKVC_OK && version != SCHEMA_VERSION)
        migrate(db, version, err);
    return kvdb_end(db, err);
}

/* ---- open and close ---- */

/* Reading a file in WAL mode needs its folder to be writable, except if it is declared immutable;
 * that is safe where nobody has the log open and we could not either. */
static int is_immutable(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    if (n >= sizeof folder - 1)
        return 0;
    memcpy(folder, n == 0 ? "." : path, n == 0 ? 1 : n);
    folder[n == 0 ? 1 : n] = '\0';
    return faccessat(AT_FDCWD, folder, W_OK, AT_EACCESS) != 0 && !has_companion(path, "-wal");
}

/* Going over to WAL needs the file for itself for a moment, and SQLite does not wait for that when
 * another process does the same; so this waits. */
static vqkvc_code set_wal(kvdb *db, vqkvc_err *err)
{
    double deadline = vqkvc_seconds() + 10;
    for (;;) {
        vqkvc_err attempt = {0};
        kvdb_sql_exec(db->sql, "use a write-ahead log", "PRAGMA journal_mode = WAL", &attempt);
        if (attempt.code == VQKVC_OK)
            return VQKVC_OK;
        if (!kvdb_sql_is_busy(db->sql) || vqkvc_seconds() > deadline)
            return vqkvc_fail(err, attempt.code, "%s", attempt.msg);
        usleep(10000);
    }
}

static vqkvc_code open_file(kvdb *db, kvdb_mode mode, vqkvc_err *err)
{
    kvdb_sql_mode how = KVDB_SQL_CREATE;
    VQKVC_TRY(check_file(db->path, mode, err));
    /* A reader opens for writing as well, and promises not to: only so does SQLite take away the
     * log files that it makes for reading. */
    if (mode == KVDB_READ_ONLY)
        how = is_immutable(db->path) ? KVDB_SQL_IMMUTABLE : KVDB_SQL_EXISTING;
    VQKVC_TRY(kvdb_sql_open(&db->sql, db->path, how, err));
    if (mode == KVDB_READ_WRITE && kvdb_sql_is_read_only(db->sql))
        return vqkvc_fail(err, VQKVC_E_IO, "%s: cannot open the store for writing: %s", db->path,
                          strerror(EACCES));
    VQKVC_TRY(kvdb_sql_exec(db->sql, "configure the store",
                            mode == KVDB_READ_ONLY
                                ? "PRAGMA cell_size_check = ON; PRAGMA query_only = ON"
                                : "PRAGMA cell_size_check = ON; PRAGMA synchronous = NORMAL",
                            err));
    VQKVC_TRY(prepare_schema(db, mode, err));
    /* Only now: the tables are made under a rollback journal, so that the head of the file names us
     * from its first commit on. */
    return mode == KVDB_READ_ONLY ? VQKVC_OK : set_wal(db, err);
}

vqkvc_code kvdb_open(kvdb **db, const char *path, kvdb_mode mode, vqkvc_err *err)
{
    *db = NULL;
    kvdb *made = vqkvc_alloc(1, sizeof *made, err);
    if (made == NULL)
        return err->code;
    made->chunk_bytes = CHUNK_BYTES;
    made->path = vqkvc_alloc(strlen(path) + 1, 1, err);
    if (made->path != NULL) {
        memcpy(made->path, path, strlen(path) + 1);
        open_file(made, mode, err);
    }
    if (err->code != VQKVC_OK) {
        kvdb_close(made);
        return err->code;
    }
    *db = made;
    return VQKVC_OK;
}

void kvdb_close(kvdb *db)
{
    if (db == NULL)
        return;
    kvdb_sql_close(db->sql);
    free(db->path);
    free(db);
}
