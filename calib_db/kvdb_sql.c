#include "calib_db/kvdb_sql.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "base/memory.h"

#define BUSY_MS 10000
/* The longest value that a file may hold: a chunk of 64 MiB and some. */
#define LONGEST_VALUE ((64 << 20) + (1 << 20))

struct kvdb_sql {
    sqlite3 *handle;
    char *path;
    int timeout_ms;
};

struct kvdb_stmt {
    kvdb_sql *sql;
    sqlite3_stmt *handle;
    const char *what;
    int bind_status; /* of the first bind that failed */
};

static vqkvc_code sql_fail(kvdb_sql *sql, const char *what, int status, vqkvc_err *err)
{
    int primary = status & 0xff;
    if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED)
        return vqkvc_fail(err, VQKVC_E_STORE,
                          "%s: cannot %s: the file is locked by another process (waited %.3g s)",
                          sql->path, what, sql->timeout_ms / 1000.0);
    if (primary == SQLITE_NOMEM)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "%s: cannot %s: out of memory", sql->path, what);
    /* SQLite keeps the reason of a failed system call to itself. */
    int reason = sql->handle == NULL ? 0 : sqlite3_system_errno(sql->handle);
    int is_io = primary == SQLITE_IOERR || primary == SQLITE_CANTOPEN || primary == SQLITE_FULL;
    const char *words = sql->handle == NULL ? sqlite3_errstr(status) : sqlite3_errmsg(sql->handle);
    return vqkvc_fail(err, VQKVC_E_STORE, "%s: cannot %s: %s%s%s%s", sql->path, what, words,
                      is_io && reason != 0 ? " (" : "",
                      is_io && reason != 0 ? strerror(reason) : "",
                      is_io && reason != 0 ? ")" : "");
}

/* The name that SQLite is given. A relative path gets "./" in front, or "file:x", ":memory:" and
 * the like would have a meaning; an immutable file is named by a URI. */
static char *sqlite_name(const char *path, kvdb_sql_mode mode, vqkvc_err *err)
{
    vqkvc_buf name = {0};
    const char *folder = path[0] == '/' ? "" : "./";
    if (mode == KVDB_SQL_MEMORY) {
        vqkvc_buf_puts(&name, ":memory:");
    } else if (mode == KVDB_SQL_IMMUTABLE) {
        vqkvc_buf_printf(&name, "file:%s", folder);
        for (const char *p = path; *p != '\0'; p++)
            vqkvc_buf_printf(&name, strchr("%?#", *p) != NULL ? "%%%02X" : "%c", *p);
        vqkvc_buf_puts(&name, "?immutable=1");
    } else {
        vqkvc_buf_printf(&name, "%s%s", folder, path);
    }
    if (name.failed) {
        free(name.data);
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", path);
        return NULL;
    }
    return name.data;
}

/* Nothing that a file says may run: our own schema has no triggers, views or functions. */
static void harden(sqlite3 *handle)
{
    static const int switches[][2] = {
        {SQLITE_DBCONFIG_DEFENSIVE, 1},       {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
        {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},  {SQLITE_DBCONFIG_ENABLE_VIEW, 0},
        {SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0}, {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
        {SQLITE_DBCONFIG_DQS_DDL, 0},         {SQLITE_DBCONFIG_DQS_DML, 0},
        {SQLITE_DBCONFIG_ENABLE_FKEY, 1},
    };
    for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++)
        sqlite3_db_config(handle, switches[i][0], switches[i][1], NULL);
    sqlite3_limit(handle, SQLITE_LIMIT_ATTACHED, 1); /* VACUUM needs one for itself */
    sqlite3_limit(handle, SQLITE_LIMIT_LENGTH, LONGEST_VALUE);
    sqlite3_limit(handle, SQLITE_LIMIT_WORKER_THREADS, 0);
}

vqkvc_code kvdb_sql_open(kvdb_sql **sql, const char *path, kvdb_sql_mode mode, vqkvc_err *err)
{
    static const int flags[] = {
        [KVDB_SQL_EXISTING] = SQLITE_OPEN_READWRITE,
        [KVDB_SQL_CREATE] = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
        [KVDB_SQL_IMMUTABLE] = SQLITE_OPEN_READONLY | SQLITE_OPEN_URI,
        [KVDB_SQL_MEMORY] = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
    };
    *sql = NULL;
    char *name = sqlite_name(path, mode, err);
    kvdb_sql *made = vqkvc_alloc(1, sizeof *made, err);
    char *copy = vqkvc_alloc(strlen(path) + 1, 1, err);
    if (err->code == VQKVC_OK) {
        memcpy(copy, path, strlen(path) + 1);
        made->path = copy;
        int status =
            sqlite3_open_v2(name, &made->handle, flags[mode] | SQLITE_OPEN_EXRESCODE, NULL);
        if (status != SQLITE_OK)
            sql_fail(made, "open the store", status, err);
    }
    free(name);
    if (err->code != VQKVC_OK) {
        if (made != NULL)
            sqlite3_close(made->handle);
        free(copy);
        free(made);
        return err->code;
    }
    harden(made->handle);
    kvdb_sql_set_timeout(made, BUSY_MS);
    *sql = made;
    return VQKVC_OK;
}

void kvdb_sql_close(kvdb_sql *sql)
{
    if (sql == NULL)
        return;
    sqlite3_close(sql->handle);
    free(sql->path);
    free(sql);
}

vqkvc_code kvdb_sql_read_head(kvdb_sql *sql, void *head, int n, vqkvc_err *err)
{
    sqlite3_file *file = NULL;
    int status = sqlite3_file_control(sql->handle, "main", SQLITE_FCNTL_FILE_POINTER, &file);
    if (status == SQLITE_OK && file != NULL && file->pMethods != NULL)
        status = file->pMethods->xRead(file, head, n, 0);
    else
        status = SQLITE_CANTOPEN;
    if (status != SQLITE_OK && status != SQLITE_IOERR_SHORT_READ)
        return sql_fail(sql, "read the head of the file", status, err);
    return VQKVC_OK;
}

void kvdb_sql_set_timeout(kvdb_sql *sql, int ms)
{
    sql->timeout_ms = ms;
    sqlite3_busy_timeout(sql->handle, ms);
}

int kvdb_sql_is_read_only(const kvdb_sql *sql)
{
    return sqlite3_db_readonly(sql->handle, "main") != 0;
}

int kvdb_sql_in_transaction(const kvdb_sql *sql)
{
    return !sqlite3_get_autocommit(sql->handle);
}

int kvdb_sql_is_busy(const kvdb_sql *sql)
{
    return (sqlite3_errcode(sql->handle) & 0xff) == SQLITE_BUSY;
}

vqkvc_code kvdb_sql_exec(kvdb_sql *sql, const char *what, const char *text, vqkvc_err *err)
{
    if (err->code != VQKVC_OK)
        return err->code;
    int status = sqlite3_exec(sql->handle, text, NULL, NULL, NULL);
    return status == SQLITE_OK ? VQKVC_OK : sql_fail(sql, what, status, err);
}

vqkvc_code kvdb_sql_value(kvdb_sql *sql, const char *what, const char *text, int64_t *value,
                          vqkvc_err *err)
{
    *value = 0;
    kvdb_stmt *st = kvdb_prepare(sql, what, text, err);
    if (kvdb_step(st, err))
        *value = kvdb_col_int(st, 0);
    kvdb_finish(st);
    return err->code;
}

kvdb_stmt *kvdb_prepare(kvdb_sql *sql, const char *what, const char *text, vqkvc_err *err)
{
    if (err->code != VQKVC_OK)
        return NULL;
    kvdb_stmt *st = vqkvc_alloc(1, sizeof *st, err);
    if (st == NULL)
        return NULL;
    st->sql = sql;
    st->what = what;
    int status = sqlite3_prepare_v2(sql->handle, text, -1, &st->handle, NULL);
    if (status != SQLITE_OK) {
        sql_fail(sql, what, status, err);
        free(st);
        return NULL;
    }
    return st;
}

static void note_bind(kvdb_stmt *st, int status)
{
    if (st->bind_status == SQLITE_OK)
        st->bind_status = status;
}

void kvdb_bind_text(kvdb_stmt *st, int i, const char *s)
{
    if (st != NULL)
        note_bind(st, s == NULL ? sqlite3_bind_null(st->handle, i)
                                : sqlite3_bind_text64(st->handle, i, s, strlen(s), SQLITE_STATIC,
                                                      SQLITE_UTF8));
}

void kvdb_bind_int(kvdb_stmt *st, int i, int64_t value)
{
    if (st != NULL)
        note_bind(st, sqlite3_bind_int64(st->handle, i, value));
}

void kvdb_bind_double(kvdb_stmt *st, int i, double value)
{
    if (st != NULL)
        note_bind(st, sqlite3_bind_double(st->handle, i, value));
}

void kvdb_bind_blob(kvdb_stmt *st, int i, const void *bytes, size_t n)
{
    if (st != NULL)
        note_bind(st, sqlite3_bind_blob64(st->handle, i, bytes, n, SQLITE_STATIC));
}

int kvdb_step(kvdb_stmt *st, vqkvc_err *err)
{
    if (st == NULL || err->code != VQKVC_OK)
        return 0;
    int status = st->bind_status != SQLITE_OK ? st->bind_status : sqlite3_step(st->handle);
    if (status != SQLITE_ROW && status != SQLITE_DONE)
        sql_fail(st->sql, st->what, status, err);
    return status == SQLITE_ROW;
}

void kvdb_reset(kvdb_stmt *st)
{
    if (st != NULL)
        sqlite3_reset(st->handle);
}

void kvdb_finish(kvdb_stmt *st)
{
    if (st == NULL)
        return;
    sqlite3_finalize(st->handle);
    free(st);
}

int kvdb_col_count(kvdb_stmt *st)
{
    return sqlite3_column_count(st->handle);
}

const char *kvdb_col_name(kvdb_stmt *st, int col)
{
    const char *name = sqlite3_column_name(st->handle, col);
    return name == NULL ? "" : name;
}

kvdb_type kvdb_col_type(kvdb_stmt *st, int col)
{
    switch (sqlite3_column_type(st->handle, col)) {
    case SQLITE_INTEGER:
        return KVDB_INT;
    case SQLITE_FLOAT:
        return KVDB_DOUBLE;
    case SQLITE_TEXT:
        return KVDB_TEXT;
    case SQLITE_BLOB:
        return KVDB_BLOB;
    default:
        return KVDB_NULL;
    }
}

int64_t kvdb_col_int(kvdb_stmt *st, int col)
{
    return sqlite3_column_int64(st->handle, col);
}

double kvdb_col_double(kvdb_stmt *st, int col)
{
    return sqlite3_column_double(st->handle, col);
}

const char *kvdb_col_text(kvdb_stmt *st, int col)
{
    const unsigned char *text = sqlite3_column_text(st->handle, col);
    return text == NULL ? "" : (const char *)text;
}

const void *kvdb_col_blob(kvdb_stmt *st, int col, size_t *n)
{
    const void *bytes = sqlite3_column_blob(st->handle, col);
    *n = bytes == NULL ? 0 : (size_t)sqlite3_column_bytes(st->handle, col);
    return bytes;
}
