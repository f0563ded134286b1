/* From a plan to the bytes of its header: prefix and command line of the banner. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

vqkvc_code vqkvc_emit_plan(const vqkvc_plan *plan, const char *command, const char *prefix,
                           vqkvc_arena *arena, const char **prefix_used, vqkvc_buf *header,
                           vqkvc_err *err)
{
    const char *usual = default_prefix(&plan->geometry, arena, err);
    if (usual == NULL)
        return err->code;
    *prefix_used = prefix != NULL ? prefix : usual;
    int named = strcmp(*prefix_used, usual) != 0;
    /* The file may have any name: its bytes depend on the prefix alone. */
    const char *whole =
        vqkvc_arena_printf(arena, err, "%s%s%s -o %s.h", command, named ? " --prefix " : "",
                           named ? *prefix_used : "", *prefix_used);
    if (whole == NULL)
        return err->code;
    header->len = 0;
    return gen_header(plan, &(gen_options){*prefix_used, whole}, header, err);
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
