/* pipeline.h - the steps that commands share: source -> capture -> plan -> header, each looked up
 * in the store before it is made and put there when it is.
 *
 * What a step makes is named by a recipe: a text that holds all that its bytes depend on. A build
 * that was interrupted therefore goes on where it was, shards of a capture included. */
#ifndef VQKVC_COMMAND_PIPELINE_H
#define VQKVC_COMMAND_PIPELINE_H

#include <jansson.h>

#include "calib_db/kvdb.h"
#include "capture/source.h"
#include "command/options.h"
#include "eval/cache_header.h"
#include "plan/plan.h"

typedef struct vqkvc_pipeline {
    const vqkvc_options *options; /* borrowed, or `timed` */
    vqkvc_options timed;          /* the same with the cost model that was measured */
    vqkvc_hash time_hash;         /* of the recipe of that model; "": none was needed */
    const vqkvc_log *log;
    vqkvc_arena arena; /* owns the strings below */
    kvdb *db;          /* NULL: nothing is kept */
    const char *model_path;
    vqkvc_model *model;      /* NULL: an imported dump */
    int calibrated;          /* the scheme or the command needs a capture */
    vqkvc_geometry geometry; /* of a dump: once it is read */
    vqkvc_source source;
    vqkvc_capture_params params;
    vqkvc_capture capture; /* n_tokens 0: not there */
    vqkvc_plan plan;
    json_t *report; /* of the plan (report.h); NULL: none */
    const char *capture_recipe, *plan_recipe;
    vqkvc_hash capture_hash, plan_hash; /* of the recipes */
    const char *prefix;                 /* of the header, once it is emitted */
    vqkvc_buf header;
} vqkvc_pipeline;

/* Opens model, source and store after o. capture_only: for a command that has no scheme. Close with
 * vqkvc_pipeline_close(), after a failure too. */
vqkvc_code vqkvc_pipeline_open(vqkvc_pipeline *p, const vqkvc_options *o, int capture_only,
                               const vqkvc_log *log, vqkvc_err *err);
/* The same model, store, source and capture for another scheme: o takes the place of the options
 * (it may differ in those of the scheme alone) and must outlive p; plan and header are dropped. */
vqkvc_code vqkvc_pipeline_next(vqkvc_pipeline *p, const vqkvc_options *o, vqkvc_err *err);
/* Fills p->capture, if it is not there yet. */
vqkvc_code vqkvc_pipeline_capture(vqkvc_pipeline *p, vqkvc_err *err);
/* Fills p->plan, and p->capture if it takes one and the plan is not in the store. */
vqkvc_code vqkvc_pipeline_plan(vqkvc_pipeline *p, vqkvc_err *err);
/* Fills p->header from p->plan. It is kept in the store, but not looked up there: making it again
 * takes milliseconds. */
vqkvc_code vqkvc_pipeline_emit(vqkvc_pipeline *p, vqkvc_err *err);
/* After an interruption it says how to go on. */
void vqkvc_pipeline_close(vqkvc_pipeline *p, const vqkvc_err *err);

/* The command line that makes a plan, without output: base names only, no option that does not
 * matter. "vqkvc build ref7m.gguf --scheme q4_0". Appends. */
void vqkvc_pipeline_command(const vqkvc_options *o, vqkvc_buf *out);

/* The text that names a plan, in arena; for a scheme without calibration from the weights, if they
 * are known (not NULL), else from the capture's recipe hash. source: where a search for bits finds
 * its text. */
const char *vqkvc_plan_recipe(const vqkvc_options *o, const vqkvc_hash *weights,
                              const vqkvc_hash *capture, const vqkvc_source *source,
                              vqkvc_arena *arena, vqkvc_err *err);

/* Emits a plan. command: as above; " --prefix P" and " -o P.h" are added. prefix NULL: the default,
 * which *prefix_used (in arena) then is. */
vqkvc_code vqkvc_emit_plan(const vqkvc_plan *plan, const char *command, const char *prefix,
                           vqkvc_arena *arena, const char **prefix_used, vqkvc_buf *header,
                           vqkvc_err *err);

/* Where --target both puts the CUDA header of an output: "x.h" as "x.cuh" (in arena). NULL: no
 * memory. */
const char *vqkvc_beside_name(const char *output, vqkvc_arena *arena, vqkvc_err *err);

/* What --target asks for besides the C header: the CUDA header of a plan takes the place of *header
 * ("cuda"), or is written beside `output` ("both"; log says so). command, prefix: as above. */
vqkvc_code vqkvc_emit_target(const vqkvc_options *o, const vqkvc_plan *plan, const char *command,
                             const char *prefix, const char *output, vqkvc_arena *arena,
                             vqkvc_buf *header, const vqkvc_log *log, vqkvc_err *err);
/* The name of what --target writes: o->output, or the prefix and its ending; in arena. */
const char *vqkvc_output_name(const vqkvc_options *o, const char *prefix, vqkvc_arena *arena,
                              vqkvc_err *err);

/* Refuses an output that could not be written, before hours are spent on what belongs there, and
 * one that is a device or a folder. */
vqkvc_code vqkvc_check_output(const char *path, vqkvc_err *err);

/* What --isa says. */
vqkvc_isa vqkvc_isa_of(const vqkvc_options *o);

#endif
