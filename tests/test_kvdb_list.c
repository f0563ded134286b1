/* test_kvdb_list.c - what people see of a store: ls, show, export, gc. */
#include <sys/stat.h>

#include <jansson.h>

#include "kvdb_fixture.h"

static vqkvc_buf listing(int json)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0};
    kvdb *db = open_store(KVDB_READ_ONLY);
    OK(kvdb_ls(db, json, &out, &err));
    kvdb_close(db);
    return out;
}

static vqkvc_buf shown(const char *id, int json)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0};
    kvdb *db = open_store(KVDB_READ_ONLY);
    OK(kvdb_show(db, id, json, &out, &err));
    kvdb_close(db);
    return out;
}

static void expect_words(vqkvc_buf out, const char *words)
{
    cr_assert_not_null(strstr(out.data, words), "'%s' lacks '%s'", out.data, words);
    free(out.data);
}

Test(kvdb, ls_is_a_table_grouped_by_model)
{
    char weights[13];
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    put_model(db, "other", "second\x1b[31m");
    kvdb_artifact grid = {.kind = "grid",
                          .recipe = "a recipe that is too long for one line, and then even longer"};
    vqkvc_err err = {0};
    OK(kvdb_put_artifact(db, &grid, "", 0, &err));
    kvdb_close(db);
    vqkvc_buf out = listing(0), expected = {0};
    memcpy(weights, vqkvc_hash_text("w").hex, 12);
    weights[12] = '\0';
#define ROW "%-5s  %-13s  %-48s  %-10s  %-9s  %s\n"
    char what[64];
    vqkvc_buf_printf(&expected, ROW, "ID", "KIND", "WHAT", "SIZE", "ERROR", "MODEL");
    snprintf(what, sizeof what, "llama, weights %s", weights);
    vqkvc_buf_printf(&expected, ROW, "m1", "model", what, "-", "-", "toy");
    vqkvc_buf_printf(&expected, ROW, "a1", "capture", "tokens=4096 seed=1", "14 B", "0.125", "toy");
    vqkvc_buf_printf(&expected, ROW, "a2", "basis", "pca layer=3", "11 B", "0.125", "toy");
    vqkvc_buf_printf(&expected, ROW, "a3", "plan", "auto bits=2", "10 B", "0.125", "toy");
    vqkvc_buf_printf(&expected, ROW, "a4", "header", "emit", "14 B", "0.125", "toy");
    vqkvc_buf_printf(&expected, ROW, "a5", "basis", "pca layer=99", "12 B", "0.125", "toy");
    vqkvc_buf_printf(&expected, ROW, "e1", "evaluation", "auto2 of a3", "-", "-", "toy");
    snprintf(what, sizeof what, "llama, weights %.12s", vqkvc_hash_text("other").hex);
    vqkvc_buf_printf(&expected, ROW, "m2", "model", what, "-", "-", "second?[31m");
    vqkvc_buf_printf(&expected, ROW, "a6", "grid",
                     "a recipe that is too long for one line, and t...", "0 B", "-", "-");
    cr_assert_str_eq(out.data, expected.data);
    free(out.data);
    free(expected.data);
}

Test(kvdb, json_is_well_formed_and_complete)
{
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    vqkvc_buf out = listing(1), again = listing(1);
    cr_assert_str_eq(out.data, again.data);
    json_t *all = json_loads(out.data, 0, NULL);
    cr_assert_not_null(all, "%s", out.data);
    cr_assert_eq(json_array_size(json_object_get(all, "artifacts")), 5);
    json_t *e = json_array_get(json_object_get(all, "evaluations"), 0);
    json_t *m = json_array_get(json_object_get(all, "models"), 0);
    cr_assert_eq(json_real_value(json_object_get(json_object_get(e, "result"), "kl")), 0.0017);
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(m, "geometry"), "n_layers")),
                 4);
    json_decref(all);
    free(out.data);
    free(again.data);
    out = shown("a3", 1);
    json_t *row = json_loads(out.data, 0, NULL);
    json_t *child = json_array_get(json_object_get(row, "children"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(child, "id")), "a4");
    json_decref(row);
    free(out.data);
}

Test(kvdb, show_prints_everything_of_a_row)
{
    char prefix[7];
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    expect_words(shown("a2", 0), "recipe         pca layer=3\n");
    expect_words(shown("a2", 0), "parents        a1  capture  tokens=4096 seed=1\n");
    expect_words(shown("a2", 0), "children       a3  plan  auto bits=2\n");
    expect_words(shown("a2", 0), "error_measure  relative mse\nerror          0.125\n");
    expect_words(shown("a1", 0),
                 "a2  basis  pca layer=3\n               a5  basis  pca layer=99\n");
    expect_words(shown("a3", 0), "evaluations    e1  auto2\n");
    expect_words(shown("m1", 0), "\"n_layers\": 4");
    expect_words(shown("e1", 0), "\"kl\": 0.0017");
    memcpy(prefix, kvdb_recipe_hash("plan", "auto bits=2").hex, 6);
    prefix[6] = '\0';
    expect_words(shown(prefix, 0), "id             a3\n");
    expect_words(shown(vqkvc_hash_text("w").hex, 0), "id             m1\n");
}

Test(kvdb, unknown_and_ambiguous_ids_list_what_could_be_meant)
{
    vqkvc_buf out = {0};
    vqkvc_hash hash = vqkvc_hash_text("same");
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    put(db, "grid", "one", NULL, NULL, "same");
    put(db, "grid", "two", NULL, NULL, "same");
    REFUSED(kvdb_show(db, hash.hex, 0, &out, &refusal), "is ambiguous: a6 grid one, a7 grid two");
    REFUSED(kvdb_show(db, "a99", 0, &out, &refusal),
            "there are models m1 to m1, artifacts a1 to a7, evaluations e1 to e1");
    hash.hex[5] = '\0'; /* too few characters of a hash: a mistyped row id would soon be one */
    REFUSED(kvdb_show(db, hash.hex, 0, &out, &refusal),
            "no hash begins so (6 characters at least)");
    REFUSED(kvdb_show(db, "m2", 0, &out, &refusal), "\"m2\"");
    REFUSED(kvdb_show(db, "", 0, &out, &refusal), "no row");
    REFUSED(kvdb_show(db, "a", 1, &out, &refusal), "\"a\"");
    REFUSED(kvdb_show(db, "no\nsense'; DROP TABLE model", 1, &out, &refusal), "no?sense");
    REFUSED(kvdb_export(db, "e1", &out, &refusal), "evaluation");
    kvdb_close(db);
    free(out.data);
}

Test(kvdb, export_gives_the_newest_header_of_a_model)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0};
    kvdb *db = open_store(KVDB_READ_WRITE);
    put_model(db, "w", "toy");
    REFUSED(kvdb_export(db, "m1", &out, &refusal), "no header yet");
    put(db, "header", "one", NULL, NULL, "#if 1");
    put(db, "header", "two", NULL, NULL, "#if 2");
    put(db, "plan", "p", NULL, NULL, "plan");
    OK(kvdb_export(db, "m1", &out, &err));
    cr_assert_str_eq(out.data, "#if 2");
    OK(kvdb_export(db, "a1", &out, &err));
    cr_assert_str_eq(out.data, "#if 1");
    kvdb_close(db);
    free(out.data);
}

Test(kvdb, gc_keeps_what_plans_headers_and_evaluations_lead_to)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0}, buf = {0};
    vqkvc_arena arena = {0};
    vqkvc_hash stray, unused = vqkvc_hash_text("unused bytes");
    kvdb_artifact a;
    int found;
    char *large = calloc(1, 1 << 20);
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    OK(kvdb_put_blob(db, large, 1 << 20, &stray, &err));
    OK(kvdb_gc(db, &out, &err));
    cr_assert_not_null(strstr(out.data, "deleted a5 basis pca layer=99\n"), "%s", out.data);
    cr_assert_not_null(strstr(out.data, "1 artifacts and 2 blobs with 1048588 bytes"), "%s",
                       out.data);
    OK(kvdb_find_artifact(db, "capture", "tokens=4096 seed=1", &arena, &a, &found, &err));
    cr_assert(found, "an ancestor of a plan stays");
    REFUSED(kvdb_get_blob(db, &stray, &buf, &refusal), "no blob");
    REFUSED(kvdb_get_blob(db, &unused, &buf, &refusal), "no blob");
    expect_clean(db);
    kvdb_close(db);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_lt(st.st_size, 1 << 20, "the space is given back");
    free(large);
    free(out.data);
    free(buf.data);
    vqkvc_arena_free(&arena);
}
