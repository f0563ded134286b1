#include "command/stored.h"

#include <stdlib.h>
#include <string.h>

#include "command/report.h"

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text != NULL ? text : "";
}

json_t *vqkvc_stored_row(kvdb *db, const char *id, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    json_t *row = NULL;
    if (kvdb_show(db, id, 1, &text, err) == VQKVC_OK)
        row = json_loadb(text.data, text.len, 0, NULL);
    free(text.data);
    if (row == NULL)
        vqkvc_fail(err, VQKVC_E_STORE, "%s: the store cannot show it", id);
    return row;
}

/* The bytes of the parent of a kind; *found = 0 and VQKVC_OK if there is none. */
static vqkvc_code read_parent(kvdb *db, const json_t *row, const char *kind, vqkvc_buf *bytes,
                              int *found, vqkvc_err *err)
{
    size_t i;
    json_t *parent;
    *found = 0;
    json_array_foreach(json_object_get(row, "parents"), i, parent)
    {
        if (strcmp(text_of(parent, "kind"), kind) != 0)
            continue;
        *found = 1;
        return kvdb_export(db, text_of(parent, "id"), bytes, err);
    }
    return VQKVC_OK;
}

static vqkvc_code read_request(kvdb *db, const json_t *row, vqkvc_buf *command, vqkvc_err *err)
{
    int found;
    VQKVC_TRY(read_parent(db, row, "request", command, &found, err));
    if (found)
        return VQKVC_OK;
    return vqkvc_fail(err, VQKVC_E_STORE, "the plan %s has no request in the store",
                      text_of(row, "id"));
}

static vqkvc_code read_plan(kvdb *db, const json_t *row, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    if (kvdb_export(db, text_of(row, "id"), &bytes, err) == VQKVC_OK &&
        vqkvc_plan_read(plan, bytes.data, bytes.len, err) != VQKVC_OK)
        vqkvc_err_prefix(err, "plan %s", text_of(row, "id"));
    free(bytes.data);
    return err->code;
}

vqkvc_code vqkvc_stored_plan(kvdb *db, const char *id, vqkvc_plan *plan, vqkvc_hash *recipe_hash,
                             vqkvc_buf *command, vqkvc_err *err)
{
    *plan = (vqkvc_plan){0};
    json_t *row = vqkvc_stored_row(db, id, err);
    if (row == NULL)
        return err->code;
    const char *kind = text_of(row, "kind"), *hash = text_of(row, "recipe_hash");
    if (strcmp(kind, "plan") != 0 || strlen(hash) != VQKVC_HASH_CHARS - 1)
        vqkvc_fail(err, VQKVC_E_USAGE, "%.60s is no plan, but a %s; `vqkvc db ls` lists them", id,
                   kind[0] != '\0' ? kind : "model or an evaluation");
    else if (read_plan(db, row, plan, err) == VQKVC_OK && command != NULL)
        read_request(db, row, command, err);
    if (err->code == VQKVC_OK && recipe_hash != NULL)
        memcpy(recipe_hash->hex, hash, VQKVC_HASH_CHARS);
    json_decref(row);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}

vqkvc_code vqkvc_stored_report(kvdb *db, const char *id, json_t **report, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    int found;
    *report = NULL;
    json_t *row = vqkvc_stored_row(db, id, err);
    if (row != NULL && read_parent(db, row, "report", &bytes, &found, err) == VQKVC_OK && found)
        *report = vqkvc_report_read(&bytes);
    json_decref(row);
    free(bytes.data);
    return err->code;
}

vqkvc_code vqkvc_stored_plan_by_content(kvdb *db, const char *content, vqkvc_plan *plan,
                                        vqkvc_hash *recipe_hash, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    const char *id = NULL;
    size_t i;
    json_t *all = NULL, *row;
    *plan = (vqkvc_plan){0};
    if (kvdb_ls(db, 1, &text, err) == VQKVC_OK)
        all = json_loadb(text.data, text.len, 0, NULL);
    json_array_foreach(json_object_get(all, "artifacts"), i, row)
    {
        if (strcmp(text_of(row, "kind"), "plan") == 0 &&
            strcmp(text_of(row, "content"), content) == 0)
            id = text_of(row, "id");
    }
    if (id != NULL)
        vqkvc_stored_plan(db, id, plan, recipe_hash, NULL, err);
    else
        vqkvc_fail(err, VQKVC_E_STORE, "no plan in the store has the hash %.40s", content);
    json_decref(all);
    free(text.data);
    return err->code;
}
