/* vqkvc emit: from a plan of the store to its header; the model is not needed. */
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "command/stored.h"

static vqkvc_code emit(const vqkvc_options *o, const vqkvc_plan *plan, const char *command,
                       vqkvc_arena *arena, vqkvc_buf *header, const vqkvc_log *log, vqkvc_err *err)
{
    const char *prefix;
    VQKVC_TRY(vqkvc_emit_plan(plan, command, o->prefix, arena, &prefix, header, err));
    const char *output = vqkvc_output_name(o, prefix, arena, err);
    if (output == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_check_output(output, err));
    VQKVC_TRY(vqkvc_emit_target(o, plan, command, prefix, output, arena, header, log, err));
    VQKVC_TRY(vqkvc_write_file(output, header->data, header->len, err));
    if (output[0] != '-' || output[1] != '\0')
        printf("%s: scheme %s, prefix %s, %zu bytes\n", output, plan->scheme, prefix, header->len);
    return VQKVC_OK;
}

static vqkvc_code run_emit(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    kvdb *db = NULL;
    vqkvc_plan plan = {0};
    vqkvc_arena arena = {0};
    vqkvc_buf command = {0}, header = {0};
    if (o->no_db)
        return vqkvc_fail(err, VQKVC_E_USAGE, "emit: plans are in a store: --no-db has none");
    VQKVC_TRY(vqkvc_check_output(o->output != NULL ? o->output : "header.h", err));
    if (vqkvc_store_open(&db, o, KVDB_READ_ONLY, err) == VQKVC_OK &&
        vqkvc_stored_plan(db, o->args[0], &plan, NULL, &command, err) == VQKVC_OK)
        emit(o, &plan, command.data, &arena, &header, log, err);
    free(command.data);
    free(header.data);
    vqkvc_plan_free(&plan);
    vqkvc_arena_free(&arena);
    kvdb_close(db);
    return err->code;
}

const vqkvc_command vqkvc_command_emit = {
    .name = "emit",
    .usage = "PLAN [option...]",
    .summary = "write the header of a plan in the store",
    .about = "PLAN is a row id (a12) or the beginning of a hash (6 characters at least), as `vqkvc "
             "db ls` prints them. The "
             "bytes are those that `vqkvc build` writes.",
    .examples = "  vqkvc emit a12 -o model_kv.h\n"
                "  vqkvc emit 3f0c9a --prefix other_kv --db models.db\n",
    .min_args = 1,
    .max_args = 1,
    .groups = {vqkvc_options_emit, vqkvc_options_store, vqkvc_options_general},
    .run = run_emit};
