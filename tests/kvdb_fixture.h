/* kvdb_fixture.h - a store in a folder of its own for every test, and something to put in it. */
#ifndef VQKVC_TESTS_KVDB_FIXTURE_H
#define VQKVC_TESTS_KVDB_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "calib_db/kvdb_internal.h"

/* ---- a folder of its own per test ---- */

static char folder[64], path[80];

static inline void make_folder(void)
{
    strcpy(folder, "/tmp/vqkvc_kvdb_XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/store.db", folder);
}

static inline void remove_folder(void)
{
    static const char *const name[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        char file[96];
        snprintf(file, sizeof file, "%s%s", path, name[i]);
        unlink(file);
    }
    rmdir(folder);
}

TestSuite(kvdb, .init = make_folder, .fini = remove_folder, .timeout = 60);

#define OK(expr)                                                                                   \
    do {                                                                                           \
        vqkvc_code code_ = (expr);                                                                 \
        cr_assert_eq(code_, VQKVC_OK, #expr ": %s", err.msg);                                      \
    } while (0)

/* expr fails, and says words in `refusal`. */
#define REFUSED(expr, words)                                                                       \
    do {                                                                                           \
        vqkvc_err refusal = {0};                                                                   \
        cr_assert_neq((expr), VQKVC_OK, #expr " should say '%s'", words);                          \
        cr_assert_not_null(strstr(refusal.msg, words), "'%s' lacks '%s'", refusal.msg, words);     \
    } while (0)

static inline kvdb *open_store(kvdb_mode mode)
{
    vqkvc_err err = {0};
    kvdb *db;
    OK(kvdb_open(&db, path, mode, &err));
    return db;
}

static inline vqkvc_code try_open(kvdb_mode mode, vqkvc_err *err)
{
    kvdb *db;
    vqkvc_code code = kvdb_open(&db, path, mode, err);
    kvdb_close(db);
    return code;
}

static inline void put_model(kvdb *db, const char *weights, const char *name)
{
    vqkvc_err err = {0};
    kvdb_model m = {vqkvc_hash_text(weights), name, "llama", "{\"n_layers\": 4}"};
    OK(kvdb_put_model(db, &m, &err));
}

/* An artifact of the model "w" made from up to one other; its id. */
static inline int64_t put(kvdb *db, const char *kind, const char *recipe, const char *parent_kind,
                          const char *parent_recipe, const char *content)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = {0};
    if (parent_kind != NULL)
        parent = kvdb_recipe_hash(parent_kind, parent_recipe);
    kvdb_artifact a = {.kind = kind,
                       .recipe = recipe,
                       .model = vqkvc_hash_text("w"),
                       .error_measure = "relative mse",
                       .error = 0.125,
                       .n_parents = parent_kind != NULL,
                       .parents = &parent};
    OK(kvdb_put_artifact(db, &a, content, strlen(content), &err));
    return a.id;
}

static inline void put_evaluation(kvdb *db, const char *plan, const char *label)
{
    vqkvc_err err = {0};
    kvdb_evaluation e = {kvdb_recipe_hash("plan", plan), vqkvc_hash_text("text"), label,
                         "{\"kl\": 0.0017}"};
    OK(kvdb_put_evaluation(db, &e, &err));
}

/* m1; a1 capture -> a2 basis -> a3 plan -> a4 header; a5 an unused basis; e1 of the plan. */
static inline void fill(kvdb *db)
{
    put_model(db, "w", "toy");
    put(db, "capture", "tokens=4096 seed=1", NULL, NULL, "captured bytes");
    put(db, "basis", "pca layer=3", "capture", "tokens=4096 seed=1", "basis bytes");
    put(db, "plan", "auto bits=2", "basis", "pca layer=3", "plan bytes");
    put(db, "header", "emit", "plan", "auto bits=2", "#ifndef HEADER");
    put(db, "basis", "pca layer=99", "capture", "tokens=4096 seed=1", "unused bytes");
    put_evaluation(db, "auto bits=2", "auto2");
}

static inline void expect_clean(kvdb *db)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0};
    vqkvc_code code = kvdb_verify(db, &out, &err);
    cr_assert_eq(code, VQKVC_OK, "%s: %s", err.msg, out.data);
    free(out.data);
}

/* Statements on the file behind the store's back. */
static inline void run_sql(const char *sql)
{
    vqkvc_err err = {0};
    kvdb_sql *raw;
    OK(kvdb_sql_open(&raw, path, KVDB_SQL_CREATE, &err));
    OK(kvdb_sql_exec(raw, "prepare a test", sql, &err));
    kvdb_sql_close(raw);
}

static inline vqkvc_buf read_all(void)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    OK(vqkvc_read_file(path, (size_t)1 << 30, &buf, &err));
    return buf;
}

static inline void write_all(const void *bytes, size_t n)
{
    vqkvc_err err = {0};
    OK(vqkvc_write_file(path, bytes, n, &err));
}

#endif
