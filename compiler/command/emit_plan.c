/* From a plan to the bytes of its header: prefix and command line of the banner. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "command/pipeline.h"
#include "gen/gen.h"

enum { MAX_NAME = 44 /* so that "_kv" fits the emitter's limit */ };

/* "Llama 3.2 1B" as "llama_3_2_1b_kv". */
static const char *default_prefix(const vqkvc_geometry *g, vqkvc_arena *arena, vqkvc_err *err)
{
    char name[MAX_NAME + 1];
    size_t n = 0;
    for (const char *s = g->name; *s != '\0' && n < MAX_NAME; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 128 && isalnum(c))
            name[n++] = (char)tolower(c);
        else if (n > 0 && name[n - 1] != '_')
            name[n++] = '_';
    }
    while (n > 0 && name[n - 1] == '_')
        n--;
    name[n] = '\0';
    const char *lead = n == 0 ? "model" : islower((unsigned char)name[0]) ? "" : "m";
    return vqkvc_arena_printf(arena, err, "%s%s_kv", lead, name);
}

/* The command line that writes a header of this prefix; `ending` has its other options and the
 * extension. The file may have any name: the bytes depend on the prefix alone. */
static const char *whole_command(const vqkvc_plan *plan, const char *command, const char *prefix,
                                 const char *options, const char *extension, vqkvc_arena *arena,
                                 vqkvc_err *err)
{
    const char *usual = default_prefix(&plan->geometry, arena, err);
    if (usual == NULL)
        return NULL;
    int named = strcmp(prefix, usual) != 0;
    return vqkvc_arena_printf(arena, err, "%s%s%s%s -o %s%s", command, named ? " --prefix " : "",
                              named ? prefix : "", options, prefix, extension);
}

vqkvc_code vqkvc_emit_plan(const vqkvc_plan *plan, const char *command, const char *prefix,
                           vqkvc_arena *arena, const char **prefix_used, vqkvc_buf *header,
                           vqkvc_err *err)
{
    *prefix_used = prefix != NULL ? prefix : default_prefix(&plan->geometry, arena, err);
    const char *whole = *prefix_used == NULL
                            ? NULL
                            : whole_command(plan, command, *prefix_used, "", ".h", arena, err);
    if (whole == NULL)
        return err->code;
    header->len = 0;
    return gen_header(plan, &(gen_options){*prefix_used, whole}, header, err);
}

const char *vqkvc_output_name(const vqkvc_options *o, const char *prefix, vqkvc_arena *arena,
                              vqkvc_err *err)
{
    if (o->output != NULL)
        return o->output;
    return vqkvc_arena_printf(arena, err, "%s%s", prefix,
                              strcmp(o->target, "cuda") == 0 ? ".cuh" : ".h");
}

const char *vqkvc_beside_name(const char *output, vqkvc_arena *arena, vqkvc_err *err)
{
    size_t n = strlen(output);
    n -= n > 2 && strcmp(output + n - 2, ".h") == 0 ? 2 : 0;
    return vqkvc_arena_printf(arena, err, "%.*s.cuh", (int)n, output);
}

static vqkvc_code write_beside(const char *output, const vqkvc_buf *text, vqkvc_arena *arena,
                               const vqkvc_log *log, vqkvc_err *err)
{
    const char *path = vqkvc_beside_name(output, arena, err);
    if (path == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_check_output(path, err));
    VQKVC_TRY(vqkvc_write_file(path, text->data, text->len, err));
    vqkvc_say(log, 0, "%s: for CUDA, %zu bytes", path, text->len);
    return VQKVC_OK;
}

vqkvc_code vqkvc_emit_target(const vqkvc_options *o, const vqkvc_plan *plan, const char *command,
                             const char *prefix, const char *output, vqkvc_arena *arena,
                             vqkvc_buf *header, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    if (strcmp(o->target, "c") == 0)
        return VQKVC_OK;
    if (strcmp(o->target, "both") == 0 && strcmp(output, "-") == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "--target both wants a file for -o, not -");
    const char *whole = whole_command(plan, command, prefix, " --target cuda", ".cuh", arena, err);
    if (whole != NULL && gen_cuda(plan, &(gen_options){prefix, whole}, &text, err) == VQKVC_OK) {
        if (strcmp(o->target, "both") == 0) {
            write_beside(output, &text, arena, log, err);
        } else {
            vqkvc_buf c = *header;
            *header = text;
            text = c;
        }
    }
    free(text.data);
    return err->code;
}

vqkvc_code vqkvc_check_output(const char *path, vqkvc_err *err)
{
    struct stat st;
    if (strcmp(path, "-") == 0)
        return VQKVC_OK;
    /* Outputs are renamed into place, which would replace a device by a file. */
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return vqkvc_fail(err, VQKVC_E_IO,
                          "%s: cannot write: not a regular file (- is standard output)", path);
    size_t n = (size_t)(vqkvc_base_name(path) - path);
    char *folder = vqkvc_alloc(n + 2, 1, err);
    if (folder == NULL)
        return err->code;
    memcpy(folder, n == 0 ? "." : path, n == 0 ? 1 : n);
    if (access(folder, W_OK | X_OK) != 0)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot write to %s: %s", path, folder, strerror(errno));
    free(folder);
    return err->code;
}
