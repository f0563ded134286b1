/* test_kvdb.c - the store: what is put comes back, and which files are accepted. */
#include <math.h>
#include <sys/stat.h>

#include "base/rng.h"
#include "kvdb_fixture.h"

/* ---- what is put comes back ---- */

Test(kvdb, blobs_come_back_whatever_their_size)
{
    static const size_t size[] = {0, 1, 999, 1000, 1001, 2000, 100000};
    unsigned char *bytes = malloc(100000);
    vqkvc_rng rng = vqkvc_rng_make(1, 0);
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    for (size_t i = 0; i < 100000; i++)
        bytes[i] = (unsigned char)vqkvc_rng_u64(&rng);
    kvdb *db = open_store(KVDB_READ_WRITE);
    db->chunk_bytes = 1000;
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        vqkvc_hash hash, expected = vqkvc_hash_bytes(bytes, size[i]);
        OK(kvdb_put_blob(db, bytes, size[i], &hash, &err));
        OK(kvdb_put_blob(db, bytes, size[i], &hash, &err));
        cr_assert_str_eq(hash.hex, expected.hex);
        OK(kvdb_get_blob(db, &hash, &buf, &err));
        cr_assert_eq(buf.len, size[i]);
        cr_assert(memcmp(buf.data, bytes, size[i]) == 0);
    }
    int64_t n_chunks;
    OK(kvdb_sql_value(db->sql, "count", "SELECT count(*) FROM blob_chunk", &n_chunks, &err));
    cr_assert_eq(n_chunks, 0 + 1 + 1 + 1 + 2 + 2 + 100, "%lld chunks", (long long)n_chunks);
    expect_clean(db);
    vqkvc_hash absent = vqkvc_hash_text("never put");
    REFUSED(kvdb_get_blob(db, &absent, &buf, &refusal), absent.hex);
    kvdb_close(db);
    free(bytes);
    free(buf.data);
}

Test(kvdb, artifacts_are_found_by_kind_and_recipe_after_reopening)
{
    vqkvc_err err = {0};
    vqkvc_arena arena = {0};
    kvdb_artifact a;
    int found;
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    db = open_store(KVDB_READ_ONLY);
    OK(kvdb_find_artifact(db, "basis", "pca layer=3", &arena, &a, &found, &err));
    cr_assert(found);
    cr_assert_eq(a.id, 2);
    cr_assert_eq(a.n_bytes, strlen("basis bytes"));
    cr_assert_str_eq(a.content.hex, vqkvc_hash_text("basis bytes").hex);
    cr_assert_str_eq(a.model.hex, vqkvc_hash_text("w").hex);
    cr_assert_str_eq(a.kind, "basis");
    cr_assert_str_eq(a.recipe, "pca layer=3");
    cr_assert_str_eq(a.error_measure, "relative mse");
    cr_assert_eq(a.error, 0.125);
    cr_assert_eq(a.n_parents, 1);
    cr_assert_str_eq(a.parents[0].hex, kvdb_recipe_hash("capture", "tokens=4096 seed=1").hex);
    OK(kvdb_find_artifact(db, "grid", "pca layer=3", &arena, &a, &found, &err));
    cr_assert_not(found, "the kind is part of the key");
    OK(kvdb_has_artifact(db, "basis", "pca la", &found, &err));
    cr_assert(found);
    OK(kvdb_has_artifact(db, "grid", "pca la", &found, &err));
    cr_assert_not(found);
    OK(kvdb_has_artifact(db, "basis", "layer=3", &found, &err));
    cr_assert_not(found, "a recipe begins with it or does not");
    kvdb_close(db);
    vqkvc_arena_free(&arena);
}

Test(kvdb, a_second_put_replaces_the_row_and_keeps_its_id)
{
    vqkvc_err err = {0};
    vqkvc_arena arena = {0};
    kvdb_artifact a;
    int found;
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    cr_assert_eq(put(db, "basis", "pca layer=3", NULL, NULL, "better bytes"), 2);
    OK(kvdb_find_artifact(db, "basis", "pca layer=3", &arena, &a, &found, &err));
    cr_assert(found && a.n_parents == 0);
    cr_assert_str_eq(a.content.hex, vqkvc_hash_text("better bytes").hex);
    expect_clean(db);
    kvdb_close(db);
    vqkvc_arena_free(&arena);
}

Test(kvdb, recipe_hashes_do_not_mix_kind_and_recipe)
{
    cr_assert_str_neq(kvdb_recipe_hash("ab", "c").hex, kvdb_recipe_hash("a", "bc").hex);
    cr_assert_str_eq(kvdb_recipe_hash("a", "b").hex, kvdb_recipe_hash("a", "b").hex);
}

Test(kvdb, rows_that_would_lead_nowhere_are_refused)
{
    kvdb *db = open_store(KVDB_READ_WRITE);
    vqkvc_hash nowhere = vqkvc_hash_text("nowhere");
    kvdb_artifact orphan = {.kind = "plan", .recipe = "r", .n_parents = 1, .parents = &nowhere};
    kvdb_artifact modelless = {.kind = "plan", .recipe = "r", .model = nowhere};
    kvdb_artifact infinite = {.kind = "plan", .recipe = "r", .error = (double)INFINITY};
    kvdb_evaluation e = {nowhere, nowhere, "l", "{}"};
    kvdb_model m = {nowhere, "n", "a", "{no json"};
    REFUSED(kvdb_put_artifact(db, &orphan, "x", 1, &refusal), nowhere.hex);
    REFUSED(kvdb_put_artifact(db, &modelless, "x", 1, &refusal), "the model");
    REFUSED(kvdb_put_artifact(db, &infinite, "x", 1, &refusal), "not finite");
    REFUSED(kvdb_put_evaluation(db, &e, &refusal), "plan");
    REFUSED(kvdb_put_model(db, &m, &refusal), "JSON");
    vqkvc_err err = {0};
    int64_t n;
    OK(kvdb_sql_value(db->sql, "count", "SELECT count(*) FROM blob", &n, &err));
    cr_assert_eq(n, 0, "a refused put leaves nothing behind");
    kvdb_close(db);
}

/* ---- which files are accepted ---- */

Test(kvdb, foreign_files_are_refused_and_left_alone)
{
    static const char *const text[] = {"some notes, kept in a text file that is long enough to "
                                       "have a head of one hundred bytes, and then some more.",
                                       "short"};
    for (int i = 0; i < 2; i++) {
        write_all(text[i], strlen(text[i]));
        REFUSED(try_open(KVDB_READ_WRITE, &refusal), path);
        REFUSED(try_open(KVDB_READ_ONLY, &refusal), "no SQLite file");
        vqkvc_buf now = read_all();
        cr_assert_str_eq(now.data, text[i]);
        free(now.data);
    }
    unlink(path);
    run_sql("PRAGMA application_id = 17; CREATE TABLE model (id INTEGER)");
    vqkvc_buf before = read_all();
    REFUSED(try_open(KVDB_READ_WRITE, &refusal), "application id 0x00000011");
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), "another program");
    vqkvc_buf after = read_all();
    cr_assert(before.len == after.len && memcmp(before.data, after.data, after.len) == 0);
    free(before.data);
    free(after.data);
}

Test(kvdb, missing_files_and_folders_are_named)
{
    char store[80];
    strcpy(store, path);
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), store);
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), "No such file");
    snprintf(path, sizeof path, "%s/no/store.db", folder);
    REFUSED(try_open(KVDB_READ_WRITE, &refusal), path);
    strcpy(path, folder);
    REFUSED(try_open(KVDB_READ_WRITE, &refusal), "not a regular file");
    strcpy(path, store);
    write_all("", 0);
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), "empty");
    kvdb_close(open_store(KVDB_READ_WRITE));
}

Test(kvdb, a_newer_schema_is_refused)
{
    kvdb_close(open_store(KVDB_READ_WRITE));
    run_sql("PRAGMA user_version = 7");
    REFUSED(try_open(KVDB_READ_WRITE, &refusal),
            "made by a newer vqkvc (schema 7, this program knows 2)");
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), "newer");
}

/* A file as version 1 left it, with two artifacts. */
static const char version_1[] =
    "PRAGMA application_id = 1987144566; PRAGMA user_version = 1;\n"
    "CREATE TABLE model (\n    id INTEGER PRIMARY KEY,\n    weights TEXT NOT NULL UNIQUE,\n"
    "    name TEXT NOT NULL,\n    arch TEXT NOT NULL,\n    geometry TEXT NOT NULL\n) STRICT;\n"
    "CREATE TABLE blob (\n    hash TEXT NOT NULL PRIMARY KEY,\n    n INTEGER NOT NULL\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE blob_chunk (\n    hash TEXT NOT NULL REFERENCES blob (hash),\n"
    "    i INTEGER NOT NULL,\n    bytes BLOB NOT NULL,\n    PRIMARY KEY (hash, i)\n) STRICT;\n"
    "CREATE TABLE artifact (\n    id INTEGER PRIMARY KEY,\n    kind TEXT NOT NULL,\n"
    "    recipe TEXT NOT NULL,\n    recipe_hash TEXT NOT NULL UNIQUE,\n"
    "    content TEXT NOT NULL REFERENCES blob (hash),\n"
    "    model TEXT REFERENCES model (weights),\n    error_measure TEXT NOT NULL,\n"
    "    error REAL NOT NULL\n) STRICT;\n"
    "CREATE TABLE artifact_parent (\n"
    "    child TEXT NOT NULL REFERENCES artifact (recipe_hash),\n    i INTEGER NOT NULL,\n"
    "    parent TEXT NOT NULL REFERENCES artifact (recipe_hash),\n    PRIMARY KEY (child, i)\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE evaluation (\n    id INTEGER PRIMARY KEY,\n"
    "    plan TEXT NOT NULL REFERENCES artifact (recipe_hash),\n    text TEXT NOT NULL,\n"
    "    label TEXT NOT NULL,\n    result TEXT NOT NULL,\n    UNIQUE (plan, text, label)\n"
    ") STRICT;\n";

static void make_version_1(void)
{
    vqkvc_buf sql = {0};
    vqkvc_hash content = vqkvc_hash_text("old bytes");
    vqkvc_hash capture = kvdb_recipe_hash("capture", "c"), basis = kvdb_recipe_hash("basis", "b");
    vqkvc_buf_puts(&sql, version_1);
    vqkvc_buf_printf(&sql, "INSERT INTO blob VALUES ('%s', 9);", content.hex);
    vqkvc_buf_printf(&sql, "INSERT INTO blob_chunk VALUES ('%s', 0, CAST('old bytes' AS BLOB));",
                     content.hex);
    vqkvc_buf_printf(&sql,
                     "INSERT INTO artifact VALUES (1, 'capture', 'c', '%s', '%s', NULL, '', 0);",
                     capture.hex, content.hex);
    vqkvc_buf_printf(&sql,
                     "INSERT INTO artifact VALUES (2, 'basis', 'b', '%s', '%s', NULL, 'mse', 0.5);",
                     basis.hex, content.hex);
    vqkvc_buf_printf(&sql, "INSERT INTO artifact_parent VALUES ('%s', 0, '%s');", basis.hex,
                     capture.hex);
    run_sql(sql.data);
    free(sql.data);
}

Test(kvdb, an_older_schema_is_migrated_with_its_rows)
{
    vqkvc_err err = {0};
    vqkvc_arena arena = {0};
    kvdb_artifact a;
    int found;
    make_version_1();
    REFUSED(try_open(KVDB_READ_ONLY, &refusal), "made by an older vqkvc (schema 1");
    kvdb *db = open_store(KVDB_READ_WRITE);
    OK(kvdb_find_artifact(db, "basis", "b", &arena, &a, &found, &err));
    cr_assert(found && a.n_parents == 1 && a.error == 0.5);
    expect_clean(db);
    kvdb_close(db);
    db = open_store(KVDB_READ_ONLY);
    expect_clean(db);
    kvdb_close(db);
    vqkvc_arena_free(&arena);
}

Test(kvdb, a_migration_that_ends_elsewhere_changes_nothing)
{
    vqkvc_err err = {0};
    kvdb_sql *raw;
    int64_t version, n;
    make_version_1();
    run_sql("CREATE TRIGGER t AFTER INSERT ON artifact BEGIN DELETE FROM blob; END");
    REFUSED(try_open(KVDB_READ_WRITE, &refusal), "tables are not those of schema 2");
    OK(kvdb_sql_open(&raw, path, KVDB_SQL_EXISTING, &err));
    OK(kvdb_sql_value(raw, "read", "PRAGMA user_version", &version, &err));
    OK(kvdb_sql_value(raw, "read",
                      "SELECT count(*) FROM sqlite_schema WHERE name GLOB 'artifact_by*'", &n,
                      &err));
    kvdb_sql_close(raw);
    cr_assert(version == 1 && n == 0);
}

Test(kvdb, tables_that_others_added_are_refused)
{
    static const char *const hostile[] = {
        "CREATE TRIGGER t AFTER INSERT ON artifact BEGIN DELETE FROM blob; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE extra (x)",
        "ALTER TABLE model ADD COLUMN x TEXT",
        "DROP INDEX artifact_by_content",
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        unlink(path);
        kvdb_close(open_store(KVDB_READ_WRITE));
        run_sql(hostile[i]);
        REFUSED(try_open(KVDB_READ_WRITE, &refusal), "tables are not those of schema 2");
        REFUSED(try_open(KVDB_READ_ONLY, &refusal), path);
    }
}

Test(kvdb, reading_leaves_no_files_and_no_changes)
{
    vqkvc_buf out = {0};
    vqkvc_err err = {0};
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    vqkvc_buf before = read_all();
    db = open_store(KVDB_READ_ONLY);
    OK(kvdb_ls(db, 0, &out, &err));
    kvdb_model m = {vqkvc_hash_text("x"), "x", "x", "{}"};
    REFUSED(kvdb_put_model(db, &m, &refusal), "readonly");
    REFUSED(kvdb_gc(db, &out, &refusal), "readonly");
    kvdb_close(db);
    vqkvc_buf after = read_all();
    cr_assert(before.len == after.len && memcmp(before.data, after.data, after.len) == 0);
    char log[96];
    snprintf(log, sizeof log, "%s-wal", path);
    cr_assert_neq(access(log, F_OK), 0);
    free(out.data);
    free(before.data);
    free(after.data);
}

Test(kvdb, a_store_in_a_read_only_folder_can_be_read_only)
{
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    cr_assert_eq(chmod(path, 0444), 0);
    cr_assert_eq(chmod(folder, 0555), 0);
    if (geteuid() == 0)
        cr_assert_eq(seteuid(65534), 0);
    db = open_store(KVDB_READ_ONLY);
    expect_clean(db);
    kvdb_close(db);
    REFUSED(try_open(KVDB_READ_WRITE, &refusal), "for writing");
    if (geteuid() == 65534 && getuid() == 0)
        cr_assert_eq(seteuid(0), 0);
    chmod(folder, 0755);
}
