#include "command/keep.h"

#include <stdlib.h>

#include "capture/blob.h"
#include "command/describe.h"

const char *vqkvc_store_path(const vqkvc_options *o)
{
    const char *path = o->db != NULL ? o->db : getenv("VQKVC_DB");
    return path != NULL && path[0] != '\0' ? path : "vqkvc.db";
}

vqkvc_code vqkvc_store_open(kvdb **db, const vqkvc_options *o, kvdb_mode mode, vqkvc_err *err)
{
    *db = NULL;
    return o->no_db ? VQKVC_OK : kvdb_open(db, vqkvc_store_path(o), mode, err);
}

vqkvc_code vqkvc_store_forgive(const vqkvc_err *damage, const char *kind, const vqkvc_log *log,
                               int *found, vqkvc_err *err)
{
    if (damage->code == VQKVC_OK)
        return VQKVC_OK;
    *found = 0;
    if (damage->code != VQKVC_E_STORE && damage->code != VQKVC_E_FORMAT)
        return vqkvc_fail(err, damage->code, "%s", damage->msg);
    vqkvc_say(log, -1, "the stored %s is made again: %s", kind, damage->msg);
    return VQKVC_OK;
}

vqkvc_code vqkvc_store_fetch(kvdb *db, const char *kind, const char *recipe, const vqkvc_log *log,
                             vqkvc_buf *buf, int *found, vqkvc_err *err)
{
    vqkvc_arena arena = {0};
    vqkvc_err damage = {0};
    kvdb_artifact a;
    buf->len = 0;
    *found = 0;
    if (db == NULL)
        return VQKVC_OK;
    kvdb_find_artifact(db, kind, recipe, &arena, &a, found, err);
    vqkvc_arena_free(&arena);
    if (err->code != VQKVC_OK || !*found)
        return err->code;
    kvdb_get_blob(db, &a.content, buf, &damage);
    return vqkvc_store_forgive(&damage, kind, log, found, err);
}

vqkvc_code vqkvc_store_keep(kvdb *db, const char *kind, const char *recipe, const vqkvc_hash *model,
                            size_t n_parents, const vqkvc_hash *parents, const vqkvc_buf *bytes,
                            vqkvc_err *err)
{
    if (bytes->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a %s", kind);
    kvdb_artifact a = {.kind = kind,
                       .recipe = recipe,
                       .model = *model,
                       .n_parents = n_parents,
                       .parents = parents};
    return db == NULL ? VQKVC_OK : kvdb_put_artifact(db, &a, bytes->data, bytes->len, err);
}

vqkvc_code vqkvc_store_keep_model(kvdb *db, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_buf json = {0};
    if (db == NULL)
        return VQKVC_OK;
    if (vqkvc_put_json(vqkvc_geometry_to_json(g), &json, err) == VQKVC_OK)
        kvdb_put_model(db, &(kvdb_model){g->weights_hash, g->name, g->arch, json.data}, err);
    free(json.data);
    return err->code;
}

/* ---- captures ---- */

static const char *part_recipe(const char *recipe, int part, vqkvc_arena *arena, vqkvc_err *err)
{
    return vqkvc_arena_printf(arena, err, "%s;part=%d", recipe, part);
}

vqkvc_code vqkvc_store_keep_capture(kvdb *db, const char *recipe, const vqkvc_capture *c,
                                    vqkvc_err *err)
{
    if (db == NULL)
        return VQKVC_OK;
    int n = vqkvc_capture_n_parts(&c->geometry);
    const vqkvc_hash *model = &c->geometry.weights_hash;
    vqkvc_arena arena = {0};
    vqkvc_buf buf = {0};
    vqkvc_hash *parents = vqkvc_arena_alloc(&arena, (size_t)n, sizeof *parents, err);
    for (int part = n - 1; part >= 0 && err->code == VQKVC_OK; part--) {
        const char *own = part == 0 ? recipe : part_recipe(recipe, part, &arena, err);
        buf.len = 0;
        if (own == NULL || vqkvc_capture_part_write(c, part, &buf, err) != VQKVC_OK)
            break;
        if (part == 0) {
            vqkvc_store_keep(db, "capture", own, model, (size_t)n - 1, parents + 1, &buf, err);
        } else {
            parents[part] = kvdb_recipe_hash("capture-part", own);
            vqkvc_store_keep(db, "capture-part", own, model, 0, NULL, &buf, err);
        }
    }
    free(buf.data);
    vqkvc_arena_free(&arena);
    return err->code;
}

/* Parts 1 .. of a capture whose part 0 has been read. */
static vqkvc_code fetch_parts(kvdb *db, const char *recipe, const vqkvc_log *log, vqkvc_capture *c,
                              vqkvc_buf *buf, int *found, vqkvc_err *err)
{
    int n = vqkvc_capture_n_parts(&c->geometry);
    vqkvc_arena arena = {0};
    for (int part = 1; part < n && *found && err->code == VQKVC_OK; part++) {
        const char *own = part_recipe(recipe, part, &arena, err);
        if (own != NULL &&
            vqkvc_store_fetch(db, "capture-part", own, log, buf, found, err) == VQKVC_OK && *found)
            vqkvc_capture_part_read(c, part, buf->data, buf->len, err);
    }
    vqkvc_arena_free(&arena);
    return err->code;
}

vqkvc_code vqkvc_store_fetch_capture(kvdb *db, const char *recipe, const vqkvc_log *log,
                                     vqkvc_capture *c, int *found, vqkvc_err *err)
{
    vqkvc_buf buf = {0};
    vqkvc_err damage = {0};
    *c = (vqkvc_capture){0};
    VQKVC_TRY(vqkvc_store_fetch(db, "capture", recipe, log, &buf, found, err));
    if (*found && vqkvc_capture_part_read(c, 0, buf.data, buf.len, &damage) == VQKVC_OK)
        fetch_parts(db, recipe, log, c, &buf, found, &damage);
    vqkvc_store_forgive(&damage, "capture", log, found, err);
    if (!*found) {
        vqkvc_capture_free(c);
        *c = (vqkvc_capture){0};
    }
    free(buf.data);
    return err->code;
}
