/* vqkvc model: a look at a model file. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/describe.h"
#include "model/gguf.h"
#include "model/model.h"
#include "model/quant.h"

enum { MAX_TYPES = 64 };

typedef struct type_count {
    uint32_t type;
    uint64_t tensors, bytes;
} type_count;

/* How many tensors of each type there are; returns the number of types. */
static int count_types(const vqkvc_gguf *g, type_count *counts)
{
    int n = 0;
    for (uint64_t t = 0; t < g->n_tensors; t++) {
        int i = 0;
        while (i < n && counts[i].type != g->tensors[t].type)
            i++;
        if (i == MAX_TYPES)
            continue;
        if (i == n)
            counts[n++] = (type_count){.type = g->tensors[t].type};
        counts[i].tensors++;
        counts[i].bytes += g->tensors[t].n_bytes;
    }
    return n;
}

static const char *type_name(uint32_t type, char *buf, size_t cap)
{
    const vqkvc_quant_type *known = vqkvc_quant_find(type);
    if (known != NULL)
        return known->name;
    snprintf(buf, cap, "type %" PRIu32, type);
    return buf;
}

/* A string of the file's metadata, or "none". */
static const char *metadata(vqkvc_gguf *g, const char *key)
{
    const char *value = NULL;
    vqkvc_err ignored = {0};
    vqkvc_gguf_get_string(g, key, "none", &value, &ignored);
    return value != NULL ? value : "none";
}

static const char *arch_metadata(vqkvc_gguf *g, const char *arch, const char *name)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    return metadata(g, key);
}

/* fp16 keys and values of one token, all layers. */
static int64_t cache_bytes(const vqkvc_geometry *g)
{
    return INT64_C(4) * g->n_layers * g->n_kv_heads * g->head_dim;
}

/* ---- text ---- */

static void print_rope(vqkvc_gguf *file, const vqkvc_geometry *g)
{
    if (g->rope_layout == VQKVC_ROPE_NONE || g->n_rot < 2) {
        printf("rope         none\n");
        return;
    }
    printf("rope         %s, %d of %d channels, %.6g to %.6g radians a token, magnitude %.6g, "
           "scaling %s\n",
           vqkvc_rope_word((int)g->rope_layout), g->n_rot, g->head_dim, g->rope_freq[0],
           g->rope_freq[g->n_rot / 2 - 1], (double)g->rope_mscale,
           arch_metadata(file, g->arch, "rope.scaling.type"));
}

static void print_text(const vqkvc_model *model, vqkvc_gguf *file)
{
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    type_count counts[MAX_TYPES];
    char buf[32];
    int n = count_types(file, counts);
    printf("name         %s\narchitecture %s\n", g->name[0] != '\0' ? g->name : "-", g->arch);
    printf("weights      %s, %zu bytes, GGUF v%" PRIu32 "\n", g->weights_hash.hex, file->map.size,
           file->version);
    printf("layers       %d of width %d\n", g->n_layers, g->d_model);
    printf("heads        %d, %d of keys and values, %d channels each\n", g->n_heads, g->n_kv_heads,
           g->head_dim);
    printf("context      %d tokens%s", g->n_ctx_train, g->sliding_window > 0 ? "" : "\n");
    if (g->sliding_window > 0)
        printf(", sliding window of %d\n", g->sliding_window);
    print_rope(file, g);
    printf("tokenizer    %s, pre-tokenizer %s, %d tokens, bos %d, eos %d\n",
           metadata(file, "tokenizer.ggml.model"), metadata(file, "tokenizer.ggml.pre"),
           vqkvc_model_vocab_size(model), (int)vqkvc_token_bos(model), (int)vqkvc_token_eos(model));
    printf("tensors     ");
    for (int i = 0; i < n; i++)
        printf("%s %" PRIu64 " %s (%" PRIu64 " bytes)", i == 0 ? "" : ",", counts[i].tensors,
               type_name(counts[i].type, buf, sizeof buf), counts[i].bytes);
    printf("\ncache        %" PRId64 " bytes a token in fp16\n", cache_bytes(g));
}

/* ---- JSON ---- */

static json_t *tokenizer_json(const vqkvc_model *model, vqkvc_gguf *file)
{
    json_t *o = json_object();
    json_object_set_new(o, "model", vqkvc_text_to_json(metadata(file, "tokenizer.ggml.model")));
    json_object_set_new(o, "pre", vqkvc_text_to_json(metadata(file, "tokenizer.ggml.pre")));
    json_object_set_new(o, "tokens", json_integer(vqkvc_model_vocab_size(model)));
    json_object_set_new(o, "bos", json_integer(vqkvc_token_bos(model)));
    json_object_set_new(o, "eos", json_integer(vqkvc_token_eos(model)));
    return o;
}

static json_t *tensors_json(const vqkvc_gguf *file)
{
    type_count counts[MAX_TYPES];
    char buf[32];
    int n = count_types(file, counts);
    json_t *all = json_object();
    for (int i = 0; i < n; i++) {
        json_t *o = json_object();
        json_object_set_new(o, "tensors", json_integer((json_int_t)counts[i].tensors));
        json_object_set_new(o, "bytes", json_integer((json_int_t)counts[i].bytes));
        json_object_set_new(all, type_name(counts[i].type, buf, sizeof buf), o);
    }
    return all;
}

static vqkvc_code print_json(const vqkvc_model *model, vqkvc_gguf *file, vqkvc_err *err)
{
    const vqkvc_geometry *g = vqkvc_model_geometry(model);
    vqkvc_buf text = {0};
    json_t *o = json_object();
    json_object_set_new(o, "geometry", vqkvc_geometry_to_json(g));
    json_object_set_new(o, "bytes", json_integer((json_int_t)file->map.size));
    json_object_set_new(o, "gguf_version", json_integer(file->version));
    json_object_set_new(o, "rope_scaling",
                        vqkvc_text_to_json(arch_metadata(file, g->arch, "rope.scaling.type")));
    json_object_set_new(o, "tokenizer", tokenizer_json(model, file));
    json_object_set_new(o, "tensors", tensors_json(file));
    json_object_set_new(o, "cache_bytes_a_token", json_integer(cache_bytes(g)));
    if (vqkvc_put_json(o, &text, err) == VQKVC_OK)
        fputs(text.data, stdout);
    free(text.data);
    return err->code;
}

static vqkvc_code run_model(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_model *model = NULL;
    vqkvc_gguf file = {0};
    (void)log;
    /* A second look at the file, for what a model does not keep; one byte: nothing is widened. */
    VQKVC_TRY(vqkvc_model_open(&model, o->args[0], 1, err));
    if (vqkvc_gguf_open(&file, o->args[0], err) == VQKVC_OK) {
        if (o->json)
            print_json(model, &file, err);
        else
            print_text(model, &file);
        vqkvc_gguf_close(&file);
    }
    vqkvc_model_close(model);
    return err->code;
}

const vqkvc_command vqkvc_command_model = {
    .name = "model",
    .usage = "MODEL.gguf [option...]",
    .summary = "print what a model file holds: geometry, RoPE, tokenizer, tensor types",
    .about = "Reads and checks the file as a build does, and runs nothing.",
    .examples = "  vqkvc model model.gguf\n"
                "  vqkvc model model.gguf --json\n",
    .min_args = 1,
    .max_args = 1,
    .groups = {vqkvc_options_json, vqkvc_options_general},
    .run = run_model};
