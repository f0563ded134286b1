/* vqkvc db: a look into the store, and its upkeep. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "command/store_list.h"

static const vqkvc_option db_options[] = {
    {.name = "all",
     .type = VQKVC_OPT_FLAG,
     .offset = VQKVC_AT(all),
     .help = "of ls: every row, with the parts that plans and captures were made from (default: "
             "plans and captures)"},
    {.letter = 'o',
     .name = "output",
     .arg = "FILE",
     .type = VQKVC_OPT_TEXT,
     .offset = VQKVC_AT(output),
     .is_file = 1,
     .help = "of export: what to write (default: -, standard output)"},
    VQKVC_OPTIONS_END};

static vqkvc_code list(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err)
{
    if (o->all || o->json)
        return kvdb_ls(db, o->json, out, err);
    return vqkvc_store_list(db, out, err);
}

static vqkvc_code show(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err)
{
    return kvdb_show(db, o->args[1], o->json, out, err);
}

static vqkvc_code verify(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err)
{
    (void)o;
    return kvdb_verify(db, out, err);
}

static vqkvc_code collect(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err)
{
    (void)o;
    return kvdb_gc(db, out, err);
}

static vqkvc_code export_bytes(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err)
{
    return kvdb_export(db, o->args[1], out, err);
}

static const struct action {
    const char *name;
    int wants_id, has_json, to_file;
    kvdb_mode mode;
    vqkvc_code (*run)(kvdb *db, const vqkvc_options *o, vqkvc_buf *out, vqkvc_err *err);
} ACTIONS[] = {{"ls", 0, 1, 0, KVDB_READ_ONLY, list},
               {"show", 1, 1, 0, KVDB_READ_ONLY, show},
               {"verify", 0, 0, 0, KVDB_READ_ONLY, verify},
               {"gc", 0, 0, 0, KVDB_READ_WRITE, collect},
               {"export", 1, 0, 1, KVDB_READ_ONLY, export_bytes}};

enum { N_ACTIONS = sizeof ACTIONS / sizeof ACTIONS[0] };

static const char *action_name(const void *actions, int i)
{
    return i < N_ACTIONS ? ((const struct action *)actions)[i].name : NULL;
}

static const struct action *find_action(const char *name, vqkvc_err *err)
{
    for (int i = 0; i < N_ACTIONS; i++)
        if (strcmp(ACTIONS[i].name, name) == 0)
            return &ACTIONS[i];
    const char *nearest = vqkvc_nearest(name, action_name, ACTIONS);
    vqkvc_fail(err, VQKVC_E_USAGE, "db: unknown action '%.60s'%s%s%s", name,
               nearest != NULL ? "; did you mean '" : ", not one of ls, show, verify, gc, export",
               nearest != NULL ? nearest : "", nearest != NULL ? "'?" : "");
    return NULL;
}

static vqkvc_code check(const struct action *action, const vqkvc_options *o, vqkvc_err *err)
{
    if (o->no_db)
        return vqkvc_fail(err, VQKVC_E_USAGE, "db: --no-db leaves nothing to look at");
    if (o->n_args != 1 + action->wants_id)
        return vqkvc_fail(err, VQKVC_E_USAGE, "db %s: wanted %s", action->name,
                          action->wants_id ? "one ID, as `vqkvc db ls` prints them"
                                           : "no further argument");
    if (o->json && !action->has_json)
        return vqkvc_fail(err, VQKVC_E_USAGE, "db %s: has no --json", action->name);
    if (o->all && action->run != list)
        return vqkvc_fail(err, VQKVC_E_USAGE, "db %s: --all belongs to ls", action->name);
    if (o->output != NULL && !action->to_file)
        return vqkvc_fail(err, VQKVC_E_USAGE, "db %s: -o belongs to export", action->name);
    return o->output != NULL ? vqkvc_check_output(o->output, err) : VQKVC_OK;
}

static vqkvc_code run_db(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    kvdb *db = NULL;
    vqkvc_buf out = {0};
    (void)log;
    const struct action *action = find_action(o->args[0], err);
    if (action == NULL || check(action, o, err) != VQKVC_OK)
        return err->code;
    if (vqkvc_store_open(&db, o, action->mode, err) == VQKVC_OK)
        action->run(db, o, &out, err);
    kvdb_close(db);
    /* What verify found wrong is its result, even though it fails. */
    if (out.len > 0 && (err->code == VQKVC_OK || !action->to_file)) {
        vqkvc_err late = {0};
        if (vqkvc_write_file(o->output != NULL ? o->output : "-", out.data, out.len, &late) !=
            VQKVC_OK)
            vqkvc_fail(err, late.code, "%s", late.msg);
    }
    free(out.data);
    return err->code;
}

const vqkvc_command vqkvc_command_db = {
    .name = "db",
    .usage = "ls | show ID | verify | gc | export ID  [option...]",
    .summary = "list, show, check, clean or export what the store holds",
    .about = "ls lists plans and captures: name, model, bits a value of a coded token, KL of the "
             "newest evaluation and its text, size of the newest header or of the capture, and "
             "what made it; --all lists every row instead, and so does --json. show prints one "
             "row, with what it was made from and what was made "
             "from it. verify checks every byte and every reference. gc deletes what no plan, "
             "header or evaluation was made from, such as shards of finished captures. export "
             "writes the bytes of one artifact; of a model, its newest header.\n"
             "ID is a row id (a12, m1, e3) or the beginning of a hash (6 characters at least).",
    .examples = "  vqkvc db ls\n"
                "  vqkvc db ls --all\n"
                "  vqkvc db show a12 --json\n"
                "  vqkvc db export m1 -o model_kv.h --db models.db\n",
    .min_args = 1,
    .max_args = 2,
    .groups = {db_options, vqkvc_options_json, vqkvc_options_store, vqkvc_options_general},
    .run = run_db};
