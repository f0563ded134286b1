#include "command/describe.h"

#include <stdlib.h>
#include <string.h>

json_t *vqkvc_text_to_json(const char *text)
{
    json_t *value = json_string(text);
    return value != NULL ? value : json_string("?");
}

static json_t *frequencies(const vqkvc_geometry *g)
{
    json_t *all = json_array();
    for (int i = 0; g->rope_layout != VQKVC_ROPE_NONE && i < g->n_rot / 2; i++)
        json_array_append_new(all, json_real(g->rope_freq[i]));
    return all;
}

json_t *vqkvc_geometry_to_json(const vqkvc_geometry *g)
{
    json_t *o = json_object();
    json_object_set_new(o, "name", vqkvc_text_to_json(g->name));
    json_object_set_new(o, "arch", vqkvc_text_to_json(g->arch));
    json_object_set_new(o, "weights_hash", json_string(g->weights_hash.hex));
    json_object_set_new(o, "n_layers", json_integer(g->n_layers));
    json_object_set_new(o, "d_model", json_integer(g->d_model));
    json_object_set_new(o, "n_heads", json_integer(g->n_heads));
    json_object_set_new(o, "n_kv_heads", json_integer(g->n_kv_heads));
    json_object_set_new(o, "head_dim", json_integer(g->head_dim));
    json_object_set_new(o, "n_ctx_train", json_integer(g->n_ctx_train));
    json_object_set_new(o, "sliding_window", json_integer(g->sliding_window));
    json_object_set_new(o, "rope_layout", json_string(vqkvc_rope_word((int)g->rope_layout)));
    json_object_set_new(o, "n_rot", json_integer(g->n_rot));
    json_object_set_new(o, "rope_mscale", json_real((double)g->rope_mscale));
    json_object_set_new(o, "rope_freq", frequencies(g));
    return o;
}

json_t *vqkvc_cost_to_json(const vqkvc_cost *cost)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:i}", "code_bits",
                     cost->code_bits, "gain_bits", cost->gain_bits, "landmark_bits",
                     cost->landmark_bits, "kept_bits", cost->kept_bits, "scan_bits",
                     cost->scan_bits, "window_bits", cost->window_bits, "table_bits",
                     cost->table_bits, "total_bits", cost->total_bits, "table_bytes",
                     (json_int_t)cost->table_bytes, "context", cost->context);
}

vqkvc_code vqkvc_put_json(json_t *value, vqkvc_buf *out, vqkvc_err *err)
{
    char *text = value != NULL ? json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) : NULL;
    if (text != NULL) {
        vqkvc_buf_puts(out, text);
        vqkvc_buf_puts(out, "\n");
    }
    if (text == NULL || out->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for JSON");
    free(text);
    json_decref(value);
    return err->code;
}
