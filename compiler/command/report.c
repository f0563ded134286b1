#include "command/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "command/describe.h"
#include "command/keep.h"

/* Figures that are no number, such as the bits of what is explained entirely, are left out. */
static void put_real(json_t *line, const char *key, double value)
{
    if (isfinite(value))
        json_object_set_new(line, key, json_real(value));
}

static json_t *sources_of(const vqkvc_explained *e)
{
    json_t *from = json_array();
    for (int i = 0; i < e->n_sources; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s %d", vqkvc_part_word(e->sources[i].part),
                 e->sources[i].layer);
        json_array_append_new(from, json_string(name));
    }
    return from;
}

static json_t *line_of(vqkvc_part part, int layer, const char *text)
{
    json_t *line = json_object();
    json_object_set_new(line, "part", json_string(vqkvc_part_word(part)));
    json_object_set_new(line, "layer", json_integer(layer));
    json_object_set_new(line, "text", json_string(text));
    return line;
}

void vqkvc_report_explained(const vqkvc_explained *e, int n, json_t *report)
{
    for (int i = 0; i < n && report != NULL; i++) {
        char text[160];
        vqkvc_explained_text(&e[i], text, sizeof text);
        json_t *line = line_of(e[i].part, e[i].layer, text);
        json_object_set_new(line, "from", sources_of(&e[i]));
        put_real(line, "explained", 1 - e[i].relative_mse);
        put_real(line, "bits_gained", vqkvc_explained_bits(&e[i]));
        json_array_append_new(report, line);
    }
}

void vqkvc_report_claims(const vqkvc_svdq_claim *claims, int n_layers, json_t *report)
{
    for (int layer = 0; layer < n_layers && report != NULL; layer++) {
        char text[160];
        vqkvc_svdq_claim_text(&claims[layer], layer, text, sizeof text);
        json_t *line = line_of(VQKVC_PART_K, layer, text);
        put_real(line, "bits", claims[layer].bits);
        put_real(line, "error", claims[layer].error);
        put_real(line, "error_per_channel", claims[layer].per_channel);
        json_array_append_new(report, line);
    }
}

vqkvc_code vqkvc_report_keep(kvdb *db, const char *plan_recipe, const vqkvc_hash *model,
                             const json_t *report, vqkvc_hash *hash, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    *hash = (vqkvc_hash){0};
    if (db == NULL || json_array_size(report) == 0)
        return VQKVC_OK;
    if (vqkvc_put_json(json_deep_copy(report), &bytes, err) == VQKVC_OK &&
        vqkvc_store_keep(db, "report", plan_recipe, model, 0, NULL, &bytes, err) == VQKVC_OK)
        *hash = kvdb_recipe_hash("report", plan_recipe);
    free(bytes.data);
    return err->code;
}

json_t *vqkvc_report_read(const vqkvc_buf *bytes)
{
    json_t *report = json_loadb(bytes->data, bytes->len, 0, NULL);
    if (!json_is_array(report)) {
        json_decref(report);
        return NULL;
    }
    return report;
}

json_t *vqkvc_report_fetch(kvdb *db, const char *plan_recipe, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_buf bytes = {0};
    int found;
    json_t *report = NULL;
    if (vqkvc_store_fetch(db, "report", plan_recipe, log, &bytes, &found, err) == VQKVC_OK && found)
        report = vqkvc_report_read(&bytes);
    free(bytes.data);
    return report;
}

void vqkvc_report_print(const json_t *report, vqkvc_buf *out)
{
    size_t i;
    const json_t *line;
    if (json_array_size(report) > 0)
        vqkvc_buf_puts(out, "report of the fit\n");
    json_array_foreach(report, i, line)
    {
        const char *text = json_string_value(json_object_get(line, "text"));
        vqkvc_buf_printf(out, "%s\n", text != NULL ? text : "");
    }
}
