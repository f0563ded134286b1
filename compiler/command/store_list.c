#include "command/store_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "capture/blob.h"
#include "command/stored.h"
#include "plan/plan.h"

enum { ID, KIND, NAME, MODEL, BITS, KL, TEXT, SIZE, MADE_BY, N_COLUMNS };

/* Cells in the order of rows; they live in the arena. */
typedef struct listing {
    kvdb *db;
    json_t *all; /* as kvdb_ls() tells it */
    vqkvc_arena arena;
    const char *(*rows)[N_COLUMNS];
    size_t n_rows;
} listing;

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text != NULL ? text : "";
}

static int is_kind(const json_t *row, const char *kind)
{
    return strcmp(text_of(row, "kind"), kind) == 0;
}

/* A row of the store by its id, or NULL. */
static const json_t *artifact(const listing *l, const char *id)
{
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(l->all, "artifacts"), i, row)
    {
        if (strcmp(text_of(row, "id"), id) == 0)
            return row;
    }
    return NULL;
}

/* Text out of a blob, which may hold anything, as a terminal can take it. */
static const char *text_cell(listing *l, const char *text, vqkvc_err *err)
{
    char *cell = vqkvc_arena_printf(&l->arena, err, "%s", text);
    for (char *c = cell; c != NULL && *c != '\0'; c++)
        *c = (char)(*c < ' ' || *c > '~' ? '?' : *c);
    return cell;
}

static const char *size_cell(listing *l, double bytes, vqkvc_err *err)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; u < 4 && bytes >= 1024; u++)
        bytes /= 1024;
    return vqkvc_arena_printf(&l->arena, err, "%.*f %s", u > 0, bytes, units[u]);
}

/* ---- plans ---- */

/* A measurement through all tokens: one with "top N" in its label attended to some of them. */
static void put_measured(listing *l, const char *plan, const char **cells, vqkvc_err *err)
{
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(l->all, "evaluations"), i, row)
    {
        const json_t *result = json_object_get(row, "result"), *kl;
        if (strcmp(text_of(row, "plan"), plan) != 0 ||
            strstr(text_of(row, "label"), " top ") != NULL)
            continue;
        kl = json_array_get(json_object_get(result, "schemes"), 0);
        kl = json_object_get(json_object_get(json_object_get(kl, "fidelity"), "late"), "kl");
        if (!json_is_number(kl))
            continue;
        cells[KL] = vqkvc_arena_printf(&l->arena, err, "%.3g", json_number_value(kl));
        cells[TEXT] = text_of(result, "text");
    }
}

static void put_plan(listing *l, const char **cells, vqkvc_err *err)
{
    vqkvc_plan plan;
    vqkvc_cost cost;
    vqkvc_err damage = {0};
    cells[NAME] = cells[BITS] = "?";
    if (vqkvc_stored_plan(l->db, cells[ID], &plan, NULL, NULL, &damage) != VQKVC_OK)
        return;
    vqkvc_plan_cost(&plan, 1, &cost);
    cells[NAME] = text_cell(l, plan.scheme, err);
    cells[BITS] = vqkvc_arena_printf(&l->arena, err, "%.3f", vqkvc_cost_stored(&cost));
    vqkvc_plan_free(&plan);
}

/* What the plan came from and what came from it. */
static void put_relatives(listing *l, const json_t *shown, const char **cells, vqkvc_err *err)
{
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(shown, "parents"), i, row)
    {
        if (is_kind(row, "request"))
            cells[MADE_BY] = vqkvc_arena_printf(&l->arena, err, "%s", text_of(row, "recipe"));
    }
    json_array_foreach(json_object_get(shown, "children"), i, row)
    {
        const json_t *header = is_kind(row, "header") ? artifact(l, text_of(row, "id")) : NULL;
        if (header != NULL)
            cells[SIZE] = size_cell(l, json_number_value(json_object_get(header, "bytes")), err);
    }
}

/* ---- captures ---- */

static void put_capture(listing *l, const char **cells, vqkvc_err *err)
{
    vqkvc_capture capture = {0};
    vqkvc_err damage = {0};
    vqkvc_buf bytes = {0};
    cells[NAME] = "?";
    if (kvdb_export(l->db, cells[ID], &bytes, &damage) == VQKVC_OK &&
        vqkvc_capture_part_read(&capture, 0, bytes.data, bytes.len, &damage) == VQKVC_OK)
        cells[NAME] = vqkvc_arena_printf(&l->arena, err, "%llu tokens of %s",
                                         (unsigned long long)capture.n_tokens,
                                         text_cell(l, capture.source, err));
    vqkvc_capture_free(&capture);
    free(bytes.data);
}

/* Bytes of a capture and its parts. */
static double capture_bytes(const listing *l, const json_t *shown)
{
    size_t i;
    json_t *row;
    double bytes = json_number_value(json_object_get(shown, "bytes"));
    json_array_foreach(json_object_get(shown, "parents"), i, row)
    {
        if (is_kind(row, "capture-part"))
            bytes += json_number_value(json_object_get(artifact(l, text_of(row, "id")), "bytes"));
    }
    return bytes;
}

/* ---- the table ---- */

static void put_row(listing *l, const json_t *row, vqkvc_err *err)
{
    const char **cells = l->rows[l->n_rows++];
    json_t *shown = vqkvc_stored_row(l->db, text_of(row, "id"), err);
    for (int c = 0; c < N_COLUMNS; c++)
        cells[c] = "-";
    cells[ID] = text_of(row, "id");
    cells[KIND] = text_of(row, "kind");
    if (text_of(row, "model_name")[0] != '\0')
        cells[MODEL] = text_of(row, "model_name");
    if (is_kind(row, "plan")) {
        put_plan(l, cells, err);
        put_measured(l, cells[ID], cells, err);
        put_relatives(l, shown, cells, err);
    } else {
        put_capture(l, cells, err);
        cells[SIZE] = size_cell(l, capture_bytes(l, shown), err);
        cells[MADE_BY] = text_of(row, "recipe");
    }
    json_decref(shown);
}

/* Columns as wide as their widest cell; the last one is not padded. */
static void print_rows(const listing *l, vqkvc_buf *out)
{
    int width[N_COLUMNS] = {0};
    for (size_t r = 0; r < l->n_rows; r++)
        for (int c = 0; c < N_COLUMNS; c++)
            width[c] =
                (int)strlen(l->rows[r][c]) > width[c] ? (int)strlen(l->rows[r][c]) : width[c];
    for (size_t r = 0; r < l->n_rows; r++)
        for (int c = 0; c < N_COLUMNS; c++)
            vqkvc_buf_printf(out, "%-*s%s", c < N_COLUMNS - 1 ? width[c] : 0, l->rows[r][c],
                             c < N_COLUMNS - 1 ? "  " : "\n");
}

static vqkvc_code make_rows(listing *l, vqkvc_buf *out, vqkvc_err *err)
{
    static const char *const titles[N_COLUMNS] = {"ID", "KIND", "NAME", "MODEL",  "BITS",
                                                  "KL", "TEXT", "SIZE", "MADE BY"};
    const json_t *rows = json_object_get(l->all, "artifacts");
    size_t i;
    json_t *row;
    l->rows = vqkvc_arena_alloc(&l->arena, json_array_size(rows) + 1, sizeof *l->rows, err);
    VQKVC_TRY(err->code);
    memcpy(l->rows[l->n_rows++], titles, sizeof titles);
    json_array_foreach(rows, i, row)
    {
        if ((is_kind(row, "plan") || is_kind(row, "capture")) && err->code == VQKVC_OK)
            put_row(l, row, err);
    }
    VQKVC_TRY(err->code);
    print_rows(l, out);
    return out->failed ? vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a list of the store")
                       : VQKVC_OK;
}

vqkvc_code vqkvc_store_list(kvdb *db, vqkvc_buf *out, vqkvc_err *err)
{
    listing l = {.db = db};
    vqkvc_buf text = {0};
    if (kvdb_ls(db, 1, &text, err) == VQKVC_OK) {
        l.all = json_loadb(text.data, text.len, 0, NULL);
        make_rows(&l, out, err);
    }
    json_decref(l.all);
    vqkvc_arena_free(&l.arena);
    free(text.data);
    return err->code;
}
