/* kvdb_sql.h - the thin layer between the store and SQLite, and the only part that knows SQLite.
 *
 * Failures become VQKVC_E_STORE with the file, the operation in words and what SQLite says. All
 * calls do nothing once *err holds a failure, and accept a NULL statement, so that a sequence of
 * prepare, bind, step and finish is written straight and checked once, at its end. */
#ifndef KVDB_KVDB_SQL_H
#define KVDB_KVDB_SQL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kvdb_sql kvdb_sql;
typedef struct kvdb_stmt kvdb_stmt;

typedef enum kvdb_sql_mode {
    KVDB_SQL_EXISTING,  /* opens a file that is there, for writing if it can be written */
    KVDB_SQL_CREATE,    /* opens for writing, makes the file if need be */
    KVDB_SQL_IMMUTABLE, /* reads a file that nobody can change meanwhile: no locks, no log */
    KVDB_SQL_MEMORY     /* an empty database in memory; path is only its name in messages */
} kvdb_sql_mode;

/* Opens path with everything off that a hostile file could use: triggers, views, extensions,
 * writable schemas, functions with side effects, attached files. */
vqkvc_code kvdb_sql_open(kvdb_sql **sql, const char *path, kvdb_sql_mode mode, vqkvc_err *err);
void kvdb_sql_close(kvdb_sql *sql);

/* The first n bytes of the file as they lie there, without locks, logs or recovery. (Not with
 * fopen(): closing a file drops the locks that this process has on it through SQLite.) Zeros stand
 * for what is behind the end. */
vqkvc_code kvdb_sql_read_head(kvdb_sql *sql, void *head, int n, vqkvc_err *err);

/* How long a call waits for other processes, in milliseconds; 10000 at first. */
void kvdb_sql_set_timeout(kvdb_sql *sql, int ms);
int kvdb_sql_is_read_only(const kvdb_sql *sql);
int kvdb_sql_in_transaction(const kvdb_sql *sql);
/* Whether the last call failed because another process has the file. */
int kvdb_sql_is_busy(const kvdb_sql *sql);

/* Runs one or several statements without parameters. what: the operation, "cannot WHAT: ...". */
vqkvc_code kvdb_sql_exec(kvdb_sql *sql, const char *what, const char *text, vqkvc_err *err);
/* The first column of the first row as an integer; 0 if there is no row. */
vqkvc_code kvdb_sql_value(kvdb_sql *sql, const char *what, const char *text, int64_t *value,
                          vqkvc_err *err);

/* NULL on failure. what and text are borrowed until kvdb_finish(). */
kvdb_stmt *kvdb_prepare(kvdb_sql *sql, const char *what, const char *text, vqkvc_err *err);
/* Parameters count from 1; texts and bytes are borrowed until kvdb_reset() or kvdb_finish(). A NULL
 * text binds NULL. A failure is reported by the next kvdb_step(). */
void kvdb_bind_text(kvdb_stmt *st, int i, const char *s);
void kvdb_bind_int(kvdb_stmt *st, int i, int64_t value);
void kvdb_bind_double(kvdb_stmt *st, int i, double value);
void kvdb_bind_blob(kvdb_stmt *st, int i, const void *bytes, size_t n);
/* 1: there is a row; 0: no more rows, or *err is set. */
int kvdb_step(kvdb_stmt *st, vqkvc_err *err);
/* Makes the statement ready for new parameters. */
void kvdb_reset(kvdb_stmt *st);
void kvdb_finish(kvdb_stmt *st);

/* Columns of the current row count from 0. Texts and bytes live until the next step. A column of
 * another type is converted (files may hold anything); a NULL is 0 or "". */
typedef enum kvdb_type { KVDB_NULL, KVDB_INT, KVDB_DOUBLE, KVDB_TEXT, KVDB_BLOB } kvdb_type;
int kvdb_col_count(kvdb_stmt *st);
const char *kvdb_col_name(kvdb_stmt *st, int col);
kvdb_type kvdb_col_type(kvdb_stmt *st, int col);
int64_t kvdb_col_int(kvdb_stmt *st, int col);
double kvdb_col_double(kvdb_stmt *st, int col);
const char *kvdb_col_text(kvdb_stmt *st, int col);
const void *kvdb_col_blob(kvdb_stmt *st, int col, size_t *n);

#endif
