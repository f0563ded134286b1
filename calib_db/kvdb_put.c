/* Rows: models, artifacts with their parents, evaluations. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "calib_db/kvdb_internal.h"

/* ---- hashes ---- */

static int is_hash(const char *s)
{
    return strspn(s, "0123456789abcdef") == VQKVC_HASH_CHARS - 1 && s[VQKVC_HASH_CHARS - 1] == '\0';
}

vqkvc_code kvdb_col_hash(kvdb *db, kvdb_stmt *st, int col, const char *what, vqkvc_hash *hash,
                         vqkvc_err *err)
{
    const char *text = kvdb_col_text(st, col);
    if (!is_hash(text))
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: damaged: %s has a malformed hash", db->path,
                          what);
    memcpy(hash->hex, text, VQKVC_HASH_CHARS);
    return VQKVC_OK;
}

/* The hash of two hashes: it needs no memory that could run out, and no separator that a kind could
 * contain. */
vqkvc_hash kvdb_recipe_hash(const char *kind, const char *recipe)
{
    vqkvc_hash parts[2] = {vqkvc_hash_text(kind), vqkvc_hash_text(recipe)};
    char both[2 * (VQKVC_HASH_CHARS - 1)];
    memcpy(both, parts[0].hex, VQKVC_HASH_CHARS - 1);
    memcpy(both + VQKVC_HASH_CHARS - 1, parts[1].hex, VQKVC_HASH_CHARS - 1);
    return vqkvc_hash_bytes(both, sizeof both);
}

/* ---- models and evaluations ---- */

static vqkvc_code check_json(kvdb *db, const char *what, const char *text, vqkvc_err *err)
{
    json_error_t e;
    json_t *json = text == NULL ? NULL : json_loads(text, JSON_DECODE_ANY, &e);
    if (json == NULL)
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: cannot store %s: it is no JSON: %s", db->path,
                          what, text == NULL ? "missing" : e.text);
    json_decref(json);
    return VQKVC_OK;
}

vqkvc_code kvdb_put_model(kvdb *db, const kvdb_model *model, vqkvc_err *err)
{
    if (!is_hash(model->weights.hex))
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: cannot store a model: malformed hash of weights",
                          db->path);
    VQKVC_TRY(check_json(db, "the geometry of a model", model->geometry_json, err));
    VQKVC_TRY(kvdb_begin(db, err));
    kvdb_stmt *st = kvdb_prepare(db->sql, "store a model",
                                 "INSERT INTO model (weights, name, arch, geometry) "
                                 "VALUES (?1, ?2, ?3, ?4) ON CONFLICT (weights) DO UPDATE SET "
                                 "name = excluded.name, arch = excluded.arch, "
                                 "geometry = excluded.geometry",
                                 err);
    kvdb_bind_text(st, 1, model->weights.hex);
    kvdb_bind_text(st, 2, model->name == NULL ? "" : model->name);
    kvdb_bind_text(st, 3, model->arch == NULL ? "" : model->arch);
    kvdb_bind_text(st, 4, model->geometry_json);
    kvdb_step(st, err);
    kvdb_finish(st);
    return kvdb_end(db, err);
}

/* Inside a transaction: the row that a reference needs. sql: SELECT 1 ... WHERE key = ?1. */
static vqkvc_code require(kvdb *db, const char *sql, const char *key, const char *what,
                          vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(db->sql, "follow a reference", sql, err);
    kvdb_bind_text(st, 1, key);
    if (!kvdb_step(st, err))
        vqkvc_fail(err, VQKVC_E_STORE, "%s: %s %.*s is not in the store: put it first", db->path,
                   what, VQKVC_HASH_CHARS - 1, key);
    kvdb_finish(st);
    return err->code;
}

vqkvc_code kvdb_put_evaluation(kvdb *db, const kvdb_evaluation *e, vqkvc_err *err)
{
    VQKVC_TRY(check_json(db, "the result of an evaluation", e->result_json, err));
    VQKVC_TRY(kvdb_begin(db, err));
    require(db, "SELECT 1 FROM artifact WHERE recipe_hash = ?1", e->plan.hex, "the evaluated plan",
            err);
    kvdb_stmt *st = kvdb_prepare(db->sql, "store an evaluation",
                                 "INSERT INTO evaluation (plan, text, label, result) "
                                 "VALUES (?1, ?2, ?3, ?4) ON CONFLICT (plan, text, label) "
                                 "DO UPDATE SET result = excluded.result",
                                 err);
    kvdb_bind_text(st, 1, e->plan.hex);
    kvdb_bind_text(st, 2, e->text.hex);
    kvdb_bind_text(st, 3, e->label == NULL ? "" : e->label);
    kvdb_bind_text(st, 4, e->result_json);
    kvdb_step(st, err);
    kvdb_finish(st);
    return kvdb_end(db, err);
}

vqkvc_code kvdb_find_evaluation(kvdb *db, const kvdb_evaluation *e, vqkvc_buf *result_json,
                                int *found, vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(db->sql, "look up an evaluation",
                                 "SELECT result FROM evaluation "
                                 "WHERE plan = ?1 AND text = ?2 AND label = ?3",
                                 err);
    kvdb_bind_text(st, 1, e->plan.hex);
    kvdb_bind_text(st, 2, e->text.hex);
    kvdb_bind_text(st, 3, e->label == NULL ? "" : e->label);
    *found = kvdb_step(st, err);
    if (*found)
        vqkvc_buf_puts(result_json, kvdb_col_text(st, 0));
    kvdb_finish(st);
    if (result_json->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for an evaluation");
    return err->code;
}

/* ---- artifacts ---- */

static vqkvc_code put_parents(kvdb *db, const vqkvc_hash *child, const kvdb_artifact *a,
                              vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(db->sql, "store an artifact",
                                 "DELETE FROM artifact_parent WHERE child = ?1", err);
    kvdb_bind_text(st, 1, child->hex);
    kvdb_step(st, err);
    kvdb_finish(st);
    st = kvdb_prepare(db->sql, "store an artifact",
                      "INSERT INTO artifact_parent (child, i, parent) "
                      "VALUES (?1, ?2, ?3)",
                      err);
    for (size_t i = 0; i < a->n_parents && err->code == VQKVC_OK; i++) {
        require(db, "SELECT 1 FROM artifact WHERE recipe_hash = ?1", a->parents[i].hex,
                "the parent artifact", err);
        kvdb_bind_text(st, 1, child->hex);
        kvdb_bind_int(st, 2, (int64_t)i);
        kvdb_bind_text(st, 3, a->parents[i].hex);
        kvdb_step(st, err);
        kvdb_reset(st);
    }
    kvdb_finish(st);
    return err->code;
}

/* A row that is there keeps its id, so that what people wrote down stays true. */
static vqkvc_code put_row(kvdb *db, const vqkvc_hash *recipe_hash, kvdb_artifact *a, vqkvc_err *err)
{
    const char *model = a->model.hex[0] == '\0' ? NULL : a->model.hex;
    if (model != NULL)
        require(db, "SELECT 1 FROM model WHERE weights = ?1", model, "the model", err);
    kvdb_stmt *st = kvdb_prepare(db->sql, "store an artifact",
                                 "INSERT INTO artifact (kind, recipe, recipe_hash, content, model, "
                                 "error_measure, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) "
                                 "ON CONFLICT (recipe_hash) DO UPDATE SET "
                                 "content = excluded.content, model = excluded.model, "
                                 "error_measure = excluded.error_measure, error = excluded.error",
                                 err);
    kvdb_bind_text(st, 1, a->kind);
    kvdb_bind_text(st, 2, a->recipe);
    kvdb_bind_text(st, 3, recipe_hash->hex);
    kvdb_bind_text(st, 4, a->content.hex);
    kvdb_bind_text(st, 5, model);
    kvdb_bind_text(st, 6, a->error_measure == NULL ? "" : a->error_measure);
    kvdb_bind_double(st, 7, a->error);
    kvdb_step(st, err);
    kvdb_finish(st);
    st = kvdb_prepare(db->sql, "store an artifact",
                      "SELECT id FROM artifact WHERE recipe_hash = ?1", err);
    kvdb_bind_text(st, 1, recipe_hash->hex);
    if (kvdb_step(st, err))
        a->id = kvdb_col_int(st, 0);
    kvdb_finish(st);
    return err->code;
}

vqkvc_code kvdb_put_artifact(kvdb *db, kvdb_artifact *a, const void *bytes, size_t n,
                             vqkvc_err *err)
{
    if (a->kind == NULL || a->kind[0] == '\0' || a->recipe == NULL || a->recipe[0] == '\0')
        return vqkvc_fail(err, VQKVC_E_STORE, "%s: an artifact needs a kind and a recipe",
                          db->path);
    if (!isfinite(a->error))
        return vqkvc_fail(err, VQKVC_E_NUMERIC, "%s: the error of %s \"%.200s\" is not finite",
                          db->path, a->kind, a->recipe);
    vqkvc_hash recipe_hash = kvdb_recipe_hash(a->kind, a->recipe);
    VQKVC_TRY(kvdb_begin(db, err));
    kvdb_put_blob_rows(db, bytes, n, &a->content, err);
    put_row(db, &recipe_hash, a, err);
    put_parents(db, &recipe_hash, a, err);
    a->n_bytes = n;
    return kvdb_end(db, err);
}

static const char *keep_text(kvdb_stmt *st, int col, vqkvc_arena *arena, vqkvc_err *err)
{
    const char *text = kvdb_col_text(st, col);
    return vqkvc_arena_strndup(arena, text, strlen(text), err);
}

static vqkvc_code find_parents(kvdb *db, const char *recipe_hash, vqkvc_arena *arena,
                               kvdb_artifact *a, vqkvc_err *err)
{
    static const char *const sql[] = {"SELECT count(*) FROM artifact_parent WHERE child = ?1",
                                      "SELECT parent FROM artifact_parent WHERE child = ?1 "
                                      "ORDER BY i"};
    size_t cap = 0;
    vqkvc_hash *parents = NULL;
    kvdb_stmt *st = kvdb_prepare(db->sql, "count the parents of an artifact", sql[0], err);
    kvdb_bind_text(st, 1, recipe_hash);
    if (kvdb_step(st, err))
        cap = (size_t)kvdb_col_int(st, 0);
    kvdb_finish(st);
    if (err->code == VQKVC_OK)
        parents = vqkvc_arena_alloc(arena, cap, sizeof *parents, err);
    st = kvdb_prepare(db->sql, "read the parents of an artifact", sql[1], err);
    kvdb_bind_text(st, 1, recipe_hash);
    size_t n = 0;
    while (n < cap && kvdb_step(st, err))
        kvdb_col_hash(db, st, 0, "a parent", &parents[n++], err);
    kvdb_finish(st);
    a->n_parents = n;
    a->parents = parents;
    return err->code;
}

/* From one row of the statement in kvdb_find_artifact(). */
static void read_artifact(kvdb *db, kvdb_stmt *st, vqkvc_arena *arena, kvdb_artifact *a,
                          vqkvc_err *err)
{
    a->id = kvdb_col_int(st, 0);
    kvdb_col_hash(db, st, 1, "an artifact", &a->content, err);
    if (kvdb_col_type(st, 2) != KVDB_NULL)
        kvdb_col_hash(db, st, 2, "an artifact", &a->model, err);
    a->error_measure = keep_text(st, 3, arena, err);
    a->error = kvdb_col_double(st, 4);
    a->n_bytes = (size_t)kvdb_col_int(st, 5);
}

vqkvc_code kvdb_find_artifact(kvdb *db, const char *kind, const char *recipe, vqkvc_arena *arena,
                              kvdb_artifact *a, int *found, vqkvc_err *err)
{
    vqkvc_hash recipe_hash = kvdb_recipe_hash(kind, recipe);
    *a = (kvdb_artifact){0};
    *found = 0;
    kvdb_stmt *st = kvdb_prepare(db->sql, "look up an artifact",
                                 "SELECT a.id, a.content, a.model, a.error_measure, a.error, b.n "
                                 "FROM artifact a JOIN blob b ON b.hash = a.content "
                                 "WHERE a.recipe_hash = ?1 AND a.kind = ?2 AND a.recipe = ?3",
                                 err);
    kvdb_bind_text(st, 1, recipe_hash.hex);
    kvdb_bind_text(st, 2, kind);
    kvdb_bind_text(st, 3, recipe);
    int there = kvdb_step(st, err);
    if (there)
        read_artifact(db, st, arena, a, err);
    kvdb_finish(st);
    if (!there || err->code != VQKVC_OK)
        return err->code;
    a->kind = vqkvc_arena_strndup(arena, kind, strlen(kind), err);
    a->recipe = vqkvc_arena_strndup(arena, recipe, strlen(recipe), err);
    *found = find_parents(db, recipe_hash.hex, arena, a, err) == VQKVC_OK;
    return err->code;
}

vqkvc_code kvdb_has_artifact(kvdb *db, const char *kind, const char *beginning, int *found,
                             vqkvc_err *err)
{
    kvdb_stmt *st = kvdb_prepare(db->sql, "look for artifacts",
                                 "SELECT 1 FROM artifact WHERE kind = ?1 AND "
                                 "substr(recipe, 1, length(?2)) = ?2 LIMIT 1",
                                 err);
    kvdb_bind_text(st, 1, kind);
    kvdb_bind_text(st, 2, beginning);
    *found = kvdb_step(st, err);
    kvdb_finish(st);
    return err->code;
}
