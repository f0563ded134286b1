/* Looking after a store: verify and gc. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib_db/kvdb_internal.h"

/* ---- text that is safe to print ---- */

/* Length of the well-formed UTF-8 character at s, 0 if it is malformed or a control character. */
static size_t printable_char(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    if (n == 1)
        return s[0] >= 0x20 && s[0] != 0x7f;
    for (size_t i = 1; i < n; i++) {
        if (s[i] >> 6 != 2)
            return 0;
    }
    unsigned second = n > 1 ? s[1] : 0;
    int overlong = (n == 2 && s[0] < 0xc2) || (n == 3 && s[0] == 0xe0 && second < 0xa0) ||
                   (n == 4 && s[0] == 0xf0 && second < 0x90);
    int beyond = (n == 3 && s[0] == 0xed && second >= 0xa0) ||
                 (n == 4 && (s[0] > 0xf4 || (s[0] == 0xf4 && second >= 0x90)));
    int control = n == 2 && s[0] == 0xc2 && second < 0xa0;
    return overlong || beyond || control ? 0 : n;
}

void kvdb_put_printable(vqkvc_buf *out, const char *s, size_t max)
{
    size_t used = 0, room = max == 0 ? SIZE_MAX : max;
    if (s == NULL)
        return;
    if (max > 3 && strlen(s) > max)
        room = max - 3;
    while (*s != '\0') {
        size_t n = printable_char((const unsigned char *)s);
        size_t take = n == 0 ? 1 : n;
        if (take > room - used) {
            vqkvc_buf_puts(out, "...");
            return;
        }
        vqkvc_buf_put(out, n == 0 ? "?" : s, take);
        s += take;
        used += take;
    }
    vqkvc_buf_put(out, "", 0);
}

/* ---- verify ---- */

typedef struct check {
    kvdb *db;
    vqkvc_buf *out;
    int64_t n_faults;
} check;

static void add_fault(check *c, const char *text)
{
    kvdb_put_printable(c->out, text, 0);
    vqkvc_buf_puts(c->out, "\n");
    c->n_faults++;
}

/* Every row of the query is a fault, worded by its first column, except "ok". */
static void add_rows(check *c, const char *what, const char *sql)
{
    vqkvc_err err = {0};
    kvdb_stmt *st = kvdb_prepare(c->db->sql, what, sql, &err);
    while (kvdb_step(st, &err)) {
        if (strcmp(kvdb_col_text(st, 0), "ok") != 0)
            add_fault(c, kvdb_col_text(st, 0));
    }
    kvdb_finish(st);
    if (err.code != VQKVC_OK)
        add_fault(c, err.msg);
}

/* A hash of every blob; the row that it belongs to helps to find what has to be built anew. */
static int64_t check_blobs(check *c)
{
    int64_t n = 0;
    vqkvc_err err = {0};
    vqkvc_buf bytes = {0};
    kvdb_stmt *st = kvdb_prepare(c->db->sql, "list the blobs",
                                 "SELECT b.hash, (SELECT 'a' || a.id || ' ' || a.kind || ' ' || "
                                 "a.recipe FROM artifact a WHERE a.content = b.hash "
                                 "ORDER BY a.id) FROM blob b ORDER BY b.hash",
                                 &err);
    for (; kvdb_step(st, &err); n++) {
        vqkvc_hash hash = {0};
        vqkvc_err fault = {0};
        if (kvdb_col_hash(c->db, st, 0, "a blob", &hash, &fault) == VQKVC_OK)
            kvdb_get_blob(c->db, &hash, &bytes, &fault);
        if (fault.code != VQKVC_OK) {
            kvdb_put_printable(c->out, kvdb_col_text(st, 1), 80);
            vqkvc_buf_puts(c->out, kvdb_col_type(st, 1) == KVDB_NULL ? "" : ": ");
            add_fault(c, fault.msg);
        }
    }
    kvdb_finish(st);
    free(bytes.data);
    if (err.code != VQKVC_OK)
        add_fault(c, err.msg);
    return n;
}

/* recipe_hash is what references go by, so it must be that of the recipe. */
static int64_t check_recipes(check *c)
{
    int64_t n = 0;
    vqkvc_err err = {0};
    kvdb_stmt *st = kvdb_prepare(c->db->sql, "list the artifacts",
                                 "SELECT id, kind, recipe, recipe_hash "
                                 "FROM artifact ORDER BY id",
                                 &err);
    for (; kvdb_step(st, &err); n++) {
        vqkvc_hash hash = kvdb_recipe_hash(kvdb_col_text(st, 1), kvdb_col_text(st, 2));
        if (strcmp(hash.hex, kvdb_col_text(st, 3)) != 0) {
            char text[96];
            snprintf(text, sizeof text, "a%lld: the recipe has another hash than the row states",
                     (long long)kvdb_col_int(st, 0));
            add_fault(c, text);
        }
    }
    kvdb_finish(st);
    if (err.code != VQKVC_OK)
        add_fault(c, err.msg);
    return n;
}

static void check_references(check *c)
{
    static const char *const sql[] = {
        "SELECT 'a' || id || ': its blob ' || content || ' is missing' FROM artifact "
        "WHERE content NOT IN (SELECT hash FROM blob) ORDER BY id",
        "SELECT 'a' || id || ': its model ' || model || ' is missing' FROM artifact "
        "WHERE model IS NOT NULL AND model NOT IN (SELECT weights FROM model) ORDER BY id",
        "SELECT 'artifact ' || child || ': named as a child, is missing' FROM artifact_parent "
        "WHERE child NOT IN (SELECT recipe_hash FROM artifact) ORDER BY child, i",
        "SELECT 'artifact ' || parent || ': the parent of ' || child || ', is missing' "
        "FROM artifact_parent WHERE parent NOT IN (SELECT recipe_hash FROM artifact) "
        "ORDER BY child, i",
        "SELECT 'e' || id || ': its plan ' || plan || ' is missing' FROM evaluation "
        "WHERE plan NOT IN (SELECT recipe_hash FROM artifact) ORDER BY id",
        "SELECT 'blob ' || hash || ': chunk ' || i || ' has no blob' FROM blob_chunk "
        "WHERE hash NOT IN (SELECT hash FROM blob) ORDER BY hash, i",
    };
    for (size_t i = 0; i < sizeof sql / sizeof sql[0]; i++)
        add_rows(c, "follow the references", sql[i]);
}

vqkvc_code kvdb_verify(kvdb *db, vqkvc_buf *out, vqkvc_err *err)
{
    check c = {db, out, 0};
    /* One snapshot, or a change by another process would look like damage. */
    VQKVC_TRY(kvdb_sql_exec(db->sql, "begin a transaction", "BEGIN", err));
    add_rows(&c, "check the file", "PRAGMA integrity_check");
    int64_t n_blobs = check_blobs(&c);
    int64_t n_artifacts = check_recipes(&c);
    check_references(&c);
    kvdb_end(db, err);
    if (c.n_faults != 0)
        vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: %lld fault%s found", db->path,
                   (long long)c.n_faults, c.n_faults == 1 ? "" : "s");
    else
        vqkvc_buf_printf(out, "%s: all is well: %lld artifacts, %lld blobs\n", db->path,
                         (long long)n_artifacts, (long long)n_blobs);
    if (out->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    return err->code;
}

/* ---- gc ---- */

/* Artifacts that a plan, a header or an evaluation leads to, along the parents. */
#define LIVE                                                                                       \
    "WITH RECURSIVE live (hash) AS (SELECT recipe_hash FROM artifact "                             \
    "WHERE kind IN ('plan', 'header') UNION SELECT plan FROM evaluation UNION "                    \
    "SELECT p.parent FROM artifact_parent p JOIN live ON p.child = live.hash) "

/* Says what will go; *n rows. */
static vqkvc_code list_dead(kvdb *db, vqkvc_buf *out, int64_t *n, vqkvc_err *err)
{
    *n = 0;
    kvdb_stmt *st = kvdb_prepare(db->sql, "list what nothing leads to",
                                 LIVE "SELECT 'a' || id || ' ' || kind || ' ' || recipe "
                                      "FROM artifact WHERE recipe_hash NOT IN live ORDER BY id",
                                 err);
    for (; kvdb_step(st, err); (*n)++) {
        vqkvc_buf_puts(out, "deleted ");
        kvdb_put_printable(out, kvdb_col_text(st, 0), 80);
        vqkvc_buf_puts(out, "\n");
    }
    kvdb_finish(st);
    return err->code;
}

#define DEAD_BLOB "hash NOT IN (SELECT content FROM artifact)"

/* Inside a transaction. Children go before what they refer to. */
static void delete_dead(kvdb *db, int64_t *n_blobs, int64_t *n_bytes, vqkvc_err *err)
{
    static const char what[] = "delete what nothing leads to";
    kvdb_sql_exec(db->sql, what, LIVE "DELETE FROM artifact_parent WHERE child NOT IN live", err);
    kvdb_sql_exec(db->sql, what, LIVE "DELETE FROM artifact WHERE recipe_hash NOT IN live", err);
    kvdb_sql_value(db->sql, what, "SELECT count(*) FROM blob WHERE " DEAD_BLOB, n_blobs, err);
    kvdb_sql_value(db->sql, what, "SELECT sum(n) FROM blob WHERE " DEAD_BLOB, n_bytes, err);
    kvdb_sql_exec(db->sql, what, "DELETE FROM blob_chunk WHERE " DEAD_BLOB, err);
    kvdb_sql_exec(db->sql, what, "DELETE FROM blob WHERE " DEAD_BLOB, err);
}

vqkvc_code kvdb_gc(kvdb *db, vqkvc_buf *out, vqkvc_err *err)
{
    int64_t n_rows = 0, n_blobs = 0, n_bytes = 0;
    vqkvc_buf list = {0};
    VQKVC_TRY(kvdb_begin(db, err));
    list_dead(db, &list, &n_rows, err);
    delete_dead(db, &n_blobs, &n_bytes, err);
    if (kvdb_end(db, err) == VQKVC_OK) {
        vqkvc_buf_put(out, list.data, list.len);
        vqkvc_buf_printf(out, "%s: deleted %lld artifacts and %lld blobs with %lld bytes\n",
                         db->path, (long long)n_rows, (long long)n_blobs, (long long)n_bytes);
        /* SQLite would keep the freed pages for itself. */
        if (n_blobs != 0)
            kvdb_sql_exec(db->sql, "give back the space", "VACUUM", err);
    }
    if (list.failed || out->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    free(list.data);
    return err->code;
}
