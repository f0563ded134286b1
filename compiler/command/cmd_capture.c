/* vqkvc capture: the first step of a build by itself. */
#include <stdio.h>
#include <stdlib.h>

#include "command/commands.h"
#include "command/describe.h"
#include "command/pipeline.h"

static vqkvc_code print_capture(const vqkvc_pipeline *p, vqkvc_err *err)
{
    const vqkvc_capture *c = &p->capture;
    if (!p->options->json) {
        printf("capture %.12s: %s, %llu tokens seen, %d kept, %d layers\n", p->capture_hash.hex,
               c->source, (unsigned long long)c->n_tokens, c->n_sample, c->geometry.n_layers);
        return VQKVC_OK;
    }
    vqkvc_buf text = {0};
    json_t *o = json_object();
    json_object_set_new(o, "recipe_hash", json_string(p->capture_hash.hex));
    json_object_set_new(o, "recipe", vqkvc_text_to_json(p->capture_recipe));
    json_object_set_new(o, "source", vqkvc_text_to_json(c->source));
    json_object_set_new(o, "source_hash", json_string(c->source_hash.hex));
    json_object_set_new(o, "n_tokens", json_integer((json_int_t)c->n_tokens));
    json_object_set_new(o, "n_sample", json_integer(c->n_sample));
    json_object_set_new(o, "geometry", vqkvc_geometry_to_json(&c->geometry));
    if (vqkvc_put_json(o, &text, err) == VQKVC_OK)
        fputs(text.data, stdout);
    free(text.data);
    return err->code;
}

static vqkvc_code run_capture(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_pipeline p = {0};
    if (vqkvc_pipeline_open(&p, o, 1, log, err) == VQKVC_OK &&
        vqkvc_pipeline_capture(&p, err) == VQKVC_OK)
        print_capture(&p, err);
    vqkvc_pipeline_close(&p, err);
    return err->code;
}

const vqkvc_command vqkvc_command_capture = {
    .name = "capture",
    .usage = "MODEL.gguf [option...] | --import DUMP.safetensors [option...]",
    .summary = "run a model over text and keep statistics of its keys, values and queries",
    .about =
        "Keeps, in the store, mergeable statistics of every token and a seeded sample of tokens, "
        "taken before rotation. `vqkvc build` with the same options finds them there.\n"
        "Memory is bounded whatever the length of the text: with d = KV heads x head dimension, "
        "statistics take 8 x layers x (2 d^2 + 2 d) bytes (twice while a model runs), those of "
        "queries 8 x layers x heads x (head dimension)^2, and the sample 4 x sample x layers x "
        "KV heads x head dimension.",
    .examples = "  vqkvc capture model.gguf --self --n-tokens 65536\n"
                "  vqkvc capture model.gguf --text a.txt --text b.txt --seed 7\n"
                "  vqkvc capture --import dump.safetensors --json\n"
                "  vqkvc capture --simulate 32x32x8x128 --n-tokens 65536\n",
    .min_args = 0,
    .max_args = 1,
    .groups = {vqkvc_options_source, vqkvc_options_json, vqkvc_options_store,
               vqkvc_options_general},
    .run = run_capture};
