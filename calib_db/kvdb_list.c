/* What people see: tables and single rows, as text or as JSON. Both come from the same JSON values,
 * whose keys are the column names of the queries below, in their order. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "calib_db/kvdb_internal.h"

#define MODEL_SQL                                                                                  \
    "SELECT 'm' || id AS id, name, arch, weights, geometry AS geometry_json FROM model "
#define ARTIFACT_SQL                                                                               \
    "SELECT 'a' || a.id AS id, a.kind AS kind, a.recipe AS recipe, "                               \
    "a.recipe_hash AS recipe_hash, a.content AS content, b.n AS bytes, "                           \
    "a.error_measure AS error_measure, iif(a.error_measure = '', NULL, a.error) AS error, "        \
    "'m' || m.id AS model, m.name AS model_name FROM artifact a LEFT JOIN blob b ON b.hash = "     \
    "a.content "                                                                                   \
    "LEFT JOIN model m ON m.weights = a.model "
#define EVALUATION_SQL                                                                             \
    "SELECT 'e' || e.id AS id, e.label AS label, 'a' || a.id AS plan, e.text AS text, "            \
    "'m' || m.id AS model, m.name AS model_name, e.result AS result_json FROM evaluation e "       \
    "LEFT JOIN artifact a ON a.recipe_hash = e.plan LEFT JOIN model m ON m.weights = a.model "

/* ---- rows as JSON ---- */

static json_t *text_value(const char *text)
{
    json_t *value = json_string(text);
    if (value != NULL)
        return value;
    vqkvc_buf clean = {0}; /* malformed UTF-8 */
    kvdb_put_printable(&clean, text, 0);
    value = json_string(clean.failed ? "" : clean.data);
    free(clean.data);
    return value;
}

/* A column whose name ends in _json holds JSON; should it be damaged, it is shown as text. */
static json_t *column_value(kvdb_stmt *st, int col, int is_json)
{
    json_t *value = NULL;
    switch (kvdb_col_type(st, col)) {
    case KVDB_NULL:
        return json_null();
    case KVDB_INT:
        return json_integer(kvdb_col_int(st, col));
    case KVDB_DOUBLE:
        value = json_real(kvdb_col_double(st, col));
        return value == NULL ? json_null() : value;
    case KVDB_TEXT:
    case KVDB_BLOB:
        break;
    }
    if (is_json)
        value = json_loads(kvdb_col_text(st, col), JSON_DECODE_ANY, NULL);
    return value == NULL ? text_value(kvdb_col_text(st, col)) : value;
}

static json_t *row_value(kvdb_stmt *st)
{
    json_t *row = json_object();
    for (int i = 0; i < kvdb_col_count(st); i++) {
        const char *name = kvdb_col_name(st, i);
        size_t len = strlen(name);
        int is_json = len > 5 && strcmp(name + len - 5, "_json") == 0;
        char key[32];
        if (len >= sizeof key)
            continue;
        memcpy(key, name, len + 1);
        if (is_json)
            key[len - 5] = '\0';
        json_object_set_new(row, key, column_value(st, i, is_json));
    }
    return row;
}

/* All rows of a query with at most one parameter (a text, or a number if param is NULL). */
static json_t *rows_value(kvdb *db, const char *sql, const char *param, int64_t number,
                          vqkvc_err *err)
{
    json_t *rows = json_array();
    kvdb_stmt *st = kvdb_prepare(db->sql, "list rows", sql, err);
    if (param != NULL)
        kvdb_bind_text(st, 1, param);
    else if (number != 0)
        kvdb_bind_int(st, 1, number);
    while (kvdb_step(st, err))
        json_array_append_new(rows, row_value(st));
    kvdb_finish(st);
    return rows;
}

static const char *field(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text == NULL ? "" : text;
}

/* digits: 17 for programs, which want the same number back; fewer for people. */
static vqkvc_code put_json(vqkvc_buf *out, const json_t *value, size_t digits, vqkvc_err *err)
{
    size_t flags = JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits);
    char *text = json_dumps(value, flags);
    if (text != NULL) {
        vqkvc_buf_puts(out, text);
        vqkvc_buf_puts(out, "\n");
    }
    if (text == NULL || out->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a list of the store");
    free(text);
    return err->code;
}

/* ---- ls ---- */

static void put_padded(vqkvc_buf *out, const char *text, size_t width)
{
    size_t start = out->len;
    kvdb_put_printable(out, text, width);
    size_t used = out->len - start;
    vqkvc_buf_printf(out, "%*s  ", used < width ? (int)(width - used) : 0, "");
}

static void put_row(vqkvc_buf *out, const char *const cell[6])
{
    static const size_t width[5] = {5, 13, 48, 10, 9};
    for (int i = 0; i < 5; i++)
        put_padded(out, cell[i], width[i]);
    kvdb_put_printable(out, cell[5], 0);
    vqkvc_buf_puts(out, "\n");
}

static void format_size(int64_t n, char text[32])
{
    static const char *const unit[] = {"KiB", "MiB", "GiB", "TiB"};
    double size = (double)n / 1024;
    int u = 0;
    for (; u < 3 && size >= 1024; u++)
        size /= 1024;
    if (n < 1024)
        snprintf(text, 32, "%lld B", (long long)n);
    else
        snprintf(text, 32, "%.1f %s", size, unit[u]);
}

static void put_artifact_row(vqkvc_buf *out, const json_t *row, const char *model)
{
    char size[32] = "?", error[32] = "-";
    const json_t *e = json_object_get(row, "error"), *n = json_object_get(row, "bytes");
    if (json_is_integer(n))
        format_size(json_integer_value(n), size);
    if (json_is_number(e))
        snprintf(error, sizeof error, "%.4g", json_number_value(e));
    put_row(out, (const char *const[]){field(row, "id"), field(row, "kind"), field(row, "recipe"),
                                       size, error, model});
}

/* The rows of one model, or of none (id ""). */
static void put_group(vqkvc_buf *out, const json_t *all, const char *id, const char *name)
{
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(all, "artifacts"), i, row)
    {
        if (strcmp(field(row, "model"), id) == 0)
            put_artifact_row(out, row, name);
    }
    json_array_foreach(json_object_get(all, "evaluations"), i, row)
    {
        if (strcmp(field(row, "model"), id) == 0) {
            char what[160];
            snprintf(what, sizeof what, "%.60s of %.20s", field(row, "label"), field(row, "plan"));
            put_row(out,
                    (const char *const[]){field(row, "id"), "evaluation", what, "-", "-", name});
        }
    }
}

static void put_table(vqkvc_buf *out, const json_t *all)
{
    size_t i;
    json_t *row;
    put_row(out, (const char *const[]){"ID", "KIND", "WHAT", "SIZE", "ERROR", "MODEL"});
    json_array_foreach(json_object_get(all, "models"), i, row)
    {
        char what[160];
        snprintf(what, sizeof what, "%.60s, weights %.12s", field(row, "arch"),
                 field(row, "weights"));
        put_row(out, (const char *const[]){field(row, "id"), "model", what, "-", "-",
                                           field(row, "name")});
        put_group(out, all, field(row, "id"), field(row, "name"));
    }
    put_group(out, all, "", "-");
}

vqkvc_code kvdb_ls(kvdb *db, int json, vqkvc_buf *out, vqkvc_err *err)
{
    json_t *all = json_object();
    json_object_set_new(all, "models", rows_value(db, MODEL_SQL "ORDER BY model.id", NULL, 0, err));
    json_object_set_new(all, "artifacts",
                        rows_value(db, ARTIFACT_SQL "ORDER BY a.id", NULL, 0, err));
    json_object_set_new(all, "evaluations",
                        rows_value(db, EVALUATION_SQL "ORDER BY e.id", NULL, 0, err));
    if (err->code == VQKVC_OK) {
        if (json)
            put_json(out, all, 17, err);
        else
            put_table(out, all);
        if (out->failed)
            vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    }
    json_decref(all);
    return err->code;
}

/* ---- finding a row by what people type ---- */

typedef struct row_ref {
    char table; /* 'a', 'm', 'e' */
    int64_t id;
} row_ref;

static const char *const by_id_sql[] = {"SELECT id FROM artifact WHERE id = ?1",
                                        "SELECT id FROM model WHERE id = ?1",
                                        "SELECT id FROM evaluation WHERE id = ?1"};

/* "a12": 1 if there is such a row. */
static int find_by_id(kvdb *db, const char *id, row_ref *ref, vqkvc_err *err)
{
    static const char tables[] = "ame";
    const char *table = id[0] == '\0' ? NULL : strchr(tables, id[0]);
    size_t n_digits = strlen(id) - 1;
    if (table == NULL || n_digits < 1 || n_digits > 18 || strspn(id + 1, "0123456789") != n_digits)
        return 0;
    *ref = (row_ref){*table, strtoll(id + 1, NULL, 10)};
    kvdb_stmt *st = kvdb_prepare(db->sql, "look up a row", by_id_sql[table - tables], err);
    kvdb_bind_int(st, 1, ref->id);
    int found = kvdb_step(st, err);
    kvdb_finish(st);
    return found;
}

/* Characters that the beginning of a hash has at least. With fewer, a mistyped "a99" would soon be
 * the beginning of some hash and name a row that nobody meant. */
enum { MIN_HASH_CHARS = 6 };

/* A beginning of a hash: the number of rows that it may mean; the first in *ref, the first few
 * listed in *candidates. */
static int find_by_hash(kvdb *db, const char *id, row_ref *ref, vqkvc_buf *candidates,
                        vqkvc_err *err)
{
    int n = 0;
    size_t len = strlen(id);
    if (len < MIN_HASH_CHARS || len >= VQKVC_HASH_CHARS ||
        strspn(id, "0123456789abcdefABCDEF") != len)
        return 0;
    kvdb_stmt *st =
        kvdb_prepare(db->sql, "look up a hash",
                     "SELECT 'a' AS tab, id, kind || ' ' || recipe FROM artifact "
                     "WHERE substr(recipe_hash, 1, length(?1)) = lower(?1) "
                     "OR substr(content, 1, length(?1)) = lower(?1) "
                     "UNION ALL SELECT 'm', id, 'model ' || name FROM model "
                     "WHERE substr(weights, 1, length(?1)) = lower(?1) ORDER BY tab, id",
                     err);
    kvdb_bind_text(st, 1, id);
    for (; kvdb_step(st, err); n++) {
        row_ref hit = {kvdb_col_text(st, 0)[0], kvdb_col_int(st, 1)};
        if (n == 0)
            *ref = hit;
        if (n < 8) {
            vqkvc_buf_printf(candidates, "%s%c%lld ", n == 0 ? "" : ", ", hit.table,
                             (long long)hit.id);
            kvdb_put_printable(candidates, kvdb_col_text(st, 2), 48);
        } else if (n == 8) {
            vqkvc_buf_puts(candidates, ", ...");
        }
    }
    kvdb_finish(st);
    return n;
}

/* "models m1 to m2, artifacts a1 to a31, no evaluations": the ids that one could have meant. */
static void put_ranges(kvdb *db, vqkvc_buf *out, vqkvc_err *err)
{
    static const char *const sql[] = {"SELECT min(id), max(id) FROM model",
                                      "SELECT min(id), max(id) FROM artifact",
                                      "SELECT min(id), max(id) FROM evaluation"};
    static const char *const name[] = {"models", "artifacts", "evaluations"};
    for (int i = 0; i < 3; i++) {
        kvdb_stmt *st = kvdb_prepare(db->sql, "list the ids", sql[i], err);
        const char *separator = i == 0 ? "" : ", ";
        if (kvdb_step(st, err) && kvdb_col_type(st, 0) == KVDB_INT)
            vqkvc_buf_printf(out, "%s%s %c%lld to %c%lld", separator, name[i], name[i][0],
                             (long long)kvdb_col_int(st, 0), name[i][0],
                             (long long)kvdb_col_int(st, 1));
        else
            vqkvc_buf_printf(out, "%sno %s", separator, name[i]);
        kvdb_finish(st);
    }
}

/* Row ids win over hashes: "a123456" is that row if there is one, else the beginning of a hash. */
static vqkvc_code find_row(kvdb *db, const char *id, row_ref *ref, vqkvc_err *err)
{
    vqkvc_buf words = {0}, shown = {0};
    kvdb_put_printable(&shown, id, 40);
    int n = find_by_id(db, id, ref, err);
    if (n == 0)
        n = find_by_hash(db, id, ref, &words, err);
    if (n == 0)
        put_ranges(db, &words, err);
    if (words.failed || shown.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    else if (n == 0)
        vqkvc_fail(err, VQKVC_E_USAGE,
                   "%s: no row has the id \"%s\", and no hash begins so (%d characters at least); "
                   "there are %s",
                   db->path, shown.data, MIN_HASH_CHARS, words.data);
    else if (n > 1)
        vqkvc_fail(err, VQKVC_E_USAGE, "%s: \"%s\" is ambiguous: %s", db->path, shown.data,
                   words.data);
    free(words.data);
    free(shown.data);
    return err->code;
}

/* ---- show ---- */

#define SHORT_ARTIFACT "SELECT 'a' || a.id AS id, a.kind AS kind, a.recipe AS recipe "

static json_t *row_of(kvdb *db, const char *sql, int64_t id, vqkvc_err *err)
{
    json_t *rows = rows_value(db, sql, NULL, id, err);
    json_t *row = json_incref(json_array_get(rows, 0));
    json_decref(rows);
    return row == NULL ? json_object() : row;
}

static json_t *show_artifact(kvdb *db, int64_t id, vqkvc_err *err)
{
    json_t *row = row_of(db, ARTIFACT_SQL "WHERE a.id = ?1", id, err);
    const char *hash = field(row, "recipe_hash");
    json_object_set_new(row, "parents",
                        rows_value(db,
                                   SHORT_ARTIFACT "FROM artifact_parent p JOIN artifact a "
                                                  "ON a.recipe_hash = p.parent WHERE p.child = ?1 "
                                                  "ORDER BY p.i",
                                   hash, 0, err));
    json_object_set_new(row, "children",
                        rows_value(db,
                                   SHORT_ARTIFACT "FROM artifact a WHERE a.recipe_hash IN "
                                                  "(SELECT child FROM artifact_parent WHERE "
                                                  "parent = ?1) ORDER BY a.id",
                                   hash, 0, err));
    json_object_set_new(row, "evaluations",
                        rows_value(db,
                                   "SELECT 'e' || id AS id, label FROM evaluation "
                                   "WHERE plan = ?1 ORDER BY evaluation.id",
                                   hash, 0, err));
    return row;
}

static json_t *show_model(kvdb *db, int64_t id, vqkvc_err *err)
{
    json_t *row = row_of(db, MODEL_SQL "WHERE model.id = ?1", id, err);
    json_object_set_new(row, "artifacts",
                        rows_value(db,
                                   SHORT_ARTIFACT "FROM artifact a WHERE a.model = ?1 "
                                                  "ORDER BY a.id",
                                   field(row, "weights"), 0, err));
    return row;
}

static void put_value(vqkvc_buf *out, const json_t *value, vqkvc_err *err)
{
    if (json_is_string(value)) {
        kvdb_put_printable(out, json_string_value(value), 0);
        vqkvc_buf_puts(out, "\n");
    } else if (json_is_real(value)) {
        vqkvc_buf_printf(out, "%.9g\n", json_real_value(value));
    } else if (json_is_null(value) || (json_is_array(value) && json_array_size(value) == 0)) {
        vqkvc_buf_puts(out, "-\n");
    } else {
        put_json(out, value, 9, err);
    }
}

/* One line per related row: "a7 codebook k=16 ...". */
static void put_related(vqkvc_buf *out, const json_t *rows)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        const char *key;
        json_t *value;
        vqkvc_buf_printf(out, "%*s", i == 0 ? 0 : 15, "");
        json_object_foreach(row, key, value)
        {
            if (strcmp(key, "id") != 0)
                vqkvc_buf_puts(out, "  ");
            kvdb_put_printable(out, json_string_value(value), 0);
        }
        vqkvc_buf_puts(out, "\n");
    }
}

static void put_fields(vqkvc_buf *out, json_t *row, vqkvc_err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(row, key, value)
    {
        vqkvc_buf_printf(out, "%-13s  ", key);
        if (json_is_array(value) && json_is_object(json_array_get(value, 0)) &&
            strcmp(key, "result") != 0 && strcmp(key, "geometry") != 0)
            put_related(out, value);
        else
            put_value(out, value, err);
    }
}

vqkvc_code kvdb_show(kvdb *db, const char *id, int json, vqkvc_buf *out, vqkvc_err *err)
{
    row_ref ref = {0};
    VQKVC_TRY(find_row(db, id, &ref, err));
    json_t *row = ref.table == 'a'   ? show_artifact(db, ref.id, err)
                  : ref.table == 'm' ? show_model(db, ref.id, err)
                                     : row_of(db, EVALUATION_SQL "WHERE e.id = ?1", ref.id, err);
    if (err->code == VQKVC_OK) {
        if (json)
            put_json(out, row, 17, err);
        else
            put_fields(out, row, err);
        if (out->failed)
            vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", db->path);
    }
    json_decref(row);
    return err->code;
}

/* ---- export ---- */

vqkvc_code kvdb_export(kvdb *db, const char *id, vqkvc_buf *bytes, vqkvc_err *err)
{
    row_ref ref = {0};
    vqkvc_hash hash = {0};
    VQKVC_TRY(find_row(db, id, &ref, err));
    if (ref.table == 'e')
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: \"%s\" is an evaluation, which has nothing to export", db->path, id);
    kvdb_stmt *st = kvdb_prepare(db->sql, "export",
                                 ref.table == 'a' ? "SELECT content FROM artifact WHERE id = ?1"
                                                  : "SELECT a.content FROM artifact a JOIN model m "
                                                    "ON m.weights = a.model WHERE m.id = ?1 AND "
                                                    "a.kind = 'header' ORDER BY a.id DESC LIMIT 1",
                                 err);
    kvdb_bind_int(st, 1, ref.id);
    if (kvdb_step(st, err))
        kvdb_col_hash(db, st, 0, "an artifact", &hash, err);
    else
        vqkvc_fail(err, VQKVC_E_USAGE, "%s: model m%lld has no header yet", db->path,
                   (long long)ref.id);
    kvdb_finish(st);
    VQKVC_TRY(err->code);
    return kvdb_get_blob(db, &hash, bytes, err);
}
