#include "eval/load.h"

#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/embed.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "gen/gen.h"

VQKVC_EMBED(eval_codec_table_text, "compiler/eval/codec_table.h");
VQKVC_EMBED(eval_shim_text, "compiler/eval/shim.h");

enum {
    MAX_PREFIX = 63,
    MAX_DIR = 512,
    MAX_PATH = MAX_DIR + 32,
    MAX_WORDS = 8,                 /* of $CC */
    MAX_LOG = 4096,                /* bytes of the compiler's words that are looked at */
    MAX_HEADER = 256 * 1024 * 1024 /* bytes */
};

/* ---- what the header says of itself ---- */

typedef struct identity {
    char upper[MAX_PREFIX + 1], lower[MAX_PREFIX + 1];
    long abi;
} identity;

/* If the line is "#define <PREFIX><suffix> ...", copies PREFIX, which must be an identifier in
 * upper case, and returns what follows; else NULL. */
static const char *match_define(const char *line, const char *end, const char *suffix,
                                char prefix[MAX_PREFIX + 1])
{
    static const char define[] = "#define ";
    size_t skip = sizeof define - 1, tail = strlen(suffix), n = 0;
    if ((size_t)(end - line) <= skip || memcmp(line, define, skip) != 0)
        return NULL;
    line += skip;
    while (line + n < end &&
           (isupper((unsigned char)line[n]) || isdigit((unsigned char)line[n]) || line[n] == '_'))
        n++;
    if (n <= tail || n - tail > MAX_PREFIX || memcmp(line + n - tail, suffix, tail) != 0 ||
        !isupper((unsigned char)line[0]) || line + n >= end || line[n] != ' ')
        return NULL;
    memcpy(prefix, line, n - tail);
    prefix[n - tail] = '\0';
    return line + n + 1;
}

/* The decimal number at s, ended by a space or the line's end; -1 for anything else. */
static long number_at(const char *s, const char *end)
{
    long value = 0;
    int digits = 0;
    for (; s < end && isdigit((unsigned char)*s) && digits < 9; s++, digits++)
        value = value * 10 + (*s - '0');
    return digits > 0 && (s == end || isspace((unsigned char)*s)) ? value : -1;
}

/* Finds the header's prefix and ABI version; the rest of its claims are read from compiled code. */
static vqkvc_code identify(identity *id, const char *name, const char *text, size_t n,
                           vqkvc_err *err)
{
    char codec[MAX_PREFIX + 1] = "", prefix[MAX_PREFIX + 1];
    *id = (identity){.abi = -1};
    for (const char *line = text, *last = text + n; line < last;) {
        const char *end = memchr(line, '\n', (size_t)(last - line)), *value;
        if (end == NULL)
            end = last;
        value = match_define(line, end, "_ABI_VERSION", prefix);
        if (value != NULL && id->abi < 0) {
            memcpy(id->upper, prefix, sizeof prefix);
            id->abi = number_at(value, end);
        } else if (value != NULL) {
            return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: offset %zu: a second ABI version", name,
                              (size_t)(line - text));
        } else if (codec[0] == '\0' && match_define(line, end, "_CODEC", prefix) != NULL) {
            memcpy(codec, prefix, sizeof prefix);
        }
        line = end + 1;
    }
    if (id->abi < 0 || strcmp(codec, id->upper) != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: not an emitted header: no #define of <PREFIX>_ABI_VERSION and "
                          "<PREFIX>_CODEC",
                          name);
    if (id->abi != GEN_ABI_VERSION)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: ABI version %ld; this vqkvc knows %d: rebuild the header", name,
                          id->abi, GEN_ABI_VERSION);
    for (size_t i = 0; id->upper[i] != '\0'; i++)
        id->lower[i] = (char)tolower((unsigned char)id->upper[i]);
    return VQKVC_OK;
}

/* ---- the private directory ---- */

static vqkvc_code make_directory(char dir[MAX_DIR], vqkvc_err *err)
{
    const char *base = getenv("TMPDIR");
    if (base == NULL || base[0] == '\0')
        base = "/tmp";
    int n = snprintf(dir, MAX_DIR, "%s/vqkvc-eval-XXXXXX", base);
    if (n < 0 || n >= MAX_DIR)
        return vqkvc_fail(err, VQKVC_E_IO, "TMPDIR: the path is too long");
    if (mkdtemp(dir) == NULL)
        return vqkvc_fail(err, VQKVC_E_IO, "%s: cannot create a directory: %s", base,
                          strerror(errno));
    return VQKVC_OK;
}

/* Nothing that lies in it is a directory. */
static void remove_directory(const char *dir)
{
    DIR *d = opendir(dir);
    if (d != NULL) {
        for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
            if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
                unlinkat(dirfd(d), e->d_name, 0);
        closedir(d);
    }
    rmdir(dir);
}

static void path_in(char path[MAX_PATH], const char *dir, const char *file)
{
    snprintf(path, MAX_PATH, "%s/%s", dir, file);
}

static vqkvc_code write_in(const char *dir, const char *file, const void *bytes, size_t n,
                           vqkvc_err *err)
{
    char path[MAX_PATH];
    path_in(path, dir, file);
    return vqkvc_write_file(path, bytes, n, err);
}

static vqkvc_code write_sources(const char *dir, const identity *id, const void *header, size_t n,
                                vqkvc_err *err)
{
    char shim[8 * MAX_PREFIX + 256];
    int length = snprintf(shim, sizeof shim,
                          "#define %s_IMPLEMENTATION\n"
                          "#include \"codec.h\"\n"
                          "#define vqkvc_shim_cache %s\n"
                          "#define kv(name) %s_##name\n"
                          "#define KV(name) %s_##name\n"
                          "#include \"codec_table.h\"\n"
                          "#include \"shim.h\"\n",
                          id->upper, id->lower, id->lower, id->upper);
    VQKVC_TRY(write_in(dir, "codec.h", header, n, err));
    VQKVC_TRY(write_in(dir, "codec_table.h", eval_codec_table_text,
                       (size_t)(eval_codec_table_text_end - eval_codec_table_text), err));
    VQKVC_TRY(write_in(dir, "shim.h", eval_shim_text, (size_t)(eval_shim_text_end - eval_shim_text),
                       err));
    return write_in(dir, "shim.c", shim, (size_t)length, err);
}

/* ---- the compiler ---- */

/* The environment with TMPDIR set to the private directory, so that a compiler that is ended leaves
 * its own temporary files where they are removed. The array is the caller's to free; `setting`
 * must outlive it. */
static char **environment_for(char *setting, vqkvc_err *err)
{
    size_t n = 0, kept = 0;
    while (environ[n] != NULL)
        n++;
    char **env = vqkvc_alloc(n + 2, sizeof *env, err);
    if (env == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++)
        if (strncmp(environ[i], "TMPDIR=", 7) != 0)
            env[kept++] = environ[i];
    env[kept] = setting;
    return env;
}

/* Waits for the child; an interruption of this program ends it. The status of waitpid. */
static int wait_for(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return -1;
        if (vqkvc_interrupted())
            kill(pid, SIGTERM);
    }
    return status;
}

/* Runs argv with all output going to the file `log`; *status is that of waitpid. */
static vqkvc_code run_logged(char **argv, char **env, const char *log, int *status, vqkvc_err *err)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    if (posix_spawn_file_actions_init(&actions) != 0)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "cannot prepare the C compiler's start");
    int bad = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0) != 0 ||
              posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT, 0600) != 0 ||
              posix_spawn_file_actions_adddup2(&actions, 1, 2) != 0;
    int code = bad ? ENOMEM : posix_spawnp(&pid, argv[0], &actions, NULL, argv, env);
    posix_spawn_file_actions_destroy(&actions);
    if (code != 0)
        return vqkvc_fail(err, VQKVC_E_IO, "cannot run the C compiler '%s' (set CC): %s", argv[0],
                          strerror(code));
    *status = wait_for(pid);
    return VQKVC_OK;
}

/* The compiler's words on one line, from its first error on, without the directory's name. */
static void read_log(const char *dir, const char *log, char words[MAX_LOG])
{
    char text[MAX_LOG], *from = text;
    size_t n = 0, skip = strlen(dir);
    FILE *f = fopen(log, "r");
    words[0] = '\0';
    if (f == NULL)
        return;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    char *error = strstr(text, "error");
    if (error != NULL)
        for (from = error; from > text && from[-1] != '\n';)
            from--;
    while (*from != '\0') {
        if (strncmp(from, dir, skip) == 0 && from[skip] == '/')
            from += skip + 1;
        else if (*from == '\n' && from[1] != '\0')
            words[n++] = '|', from++;
        else
            words[n++] = isspace((unsigned char)*from) ? ' ' : *from, from++;
    }
    words[n] = '\0';
}

static const char *compiler(void)
{
    const char *cc = getenv("CC");
    return cc != NULL && cc[strspn(cc, " ")] != '\0' ? cc : "cc";
}

/* The words of $CC into argv [MAX_WORDS], their number to *n; they lie in words [size]. */
static vqkvc_code compiler_words(char *words, size_t size, char **argv, int *n, vqkvc_err *err)
{
    const char *cc = compiler();
    char *rest = NULL;
    *n = 0;
    if (strlen(cc) >= size)
        return vqkvc_fail(err, VQKVC_E_USAGE, "CC: too long");
    memcpy(words, cc, strlen(cc) + 1);
    for (char *w = strtok_r(words, " ", &rest); w != NULL; w = strtok_r(NULL, " ", &rest)) {
        if (*n == MAX_WORDS)
            return vqkvc_fail(err, VQKVC_E_USAGE, "CC: more than %d words", MAX_WORDS);
        argv[(*n)++] = w;
    }
    return VQKVC_OK;
}

/* Runs the compiler in the private directory; its output goes to the file `log`. */
static vqkvc_code run_compiler(const char *dir, char **argv, const char *log, int *status,
                               vqkvc_err *err)
{
    char setting[MAX_DIR + 8];
    snprintf(setting, sizeof setting, "TMPDIR=%s", dir);
    char **env = environment_for(setting, err);
    if (env == NULL)
        return err->code;
    vqkvc_code code = run_logged(argv, env, log, status, err);
    free(env);
    VQKVC_TRY(code);
    return vqkvc_interrupted() ? vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted") : VQKVC_OK;
}

static vqkvc_code compile_in(const char *name, const char *dir, vqkvc_err *err)
{
    static const char *const flags[] = {"-std=c99", "-O2", "-fPIC", "-shared", "-w", "-o"};
    enum { N_FLAGS = sizeof flags / sizeof *flags };
    char words[256], object[MAX_PATH], source[MAX_PATH], log[MAX_PATH];
    char *argv[MAX_WORDS + N_FLAGS + 4], text[MAX_LOG];
    int n, status = 0;
    VQKVC_TRY(compiler_words(words, sizeof words, argv, &n, err));
    path_in(object, dir, "codec.so");
    path_in(source, dir, "shim.c");
    path_in(log, dir, "log");
    for (int i = 0; i < N_FLAGS; i++)
        argv[n++] = (char *)(uintptr_t)flags[i];
    argv[n++] = object;
    argv[n++] = source;
    argv[n++] = (char *)(uintptr_t) "-lm";
    argv[n] = NULL;
    VQKVC_TRY(run_compiler(dir, argv, log, &status, err));
    if (status == 0)
        return VQKVC_OK;
    read_log(dir, log, text);
    return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: the C compiler '%s' refuses it: %s", name,
                      compiler(), text[0] != '\0' ? text : "(it says nothing)");
}

vqkvc_code vqkvc_compiler_version(char *text, size_t size, vqkvc_err *err)
{
    char words[256], dir[MAX_DIR], log[MAX_PATH], all[MAX_LOG] = "", *argv[MAX_WORDS + 2];
    int n, status = 0;
    VQKVC_TRY(compiler_words(words, sizeof words, argv, &n, err));
    argv[n++] = (char *)(uintptr_t) "--version";
    argv[n] = NULL;
    VQKVC_TRY(make_directory(dir, err));
    path_in(log, dir, "log");
    if (run_compiler(dir, argv, log, &status, err) == VQKVC_OK)
        read_log(dir, log, all);
    remove_directory(dir);
    snprintf(text, size, "%.*s", (int)strcspn(all, "|"), all);
    return err->code;
}

/* ---- loading ---- */

static vqkvc_code open_object(vqkvc_codec *codec, const char *name, const char *dir, vqkvc_err *err)
{
    char object[MAX_PATH];
    path_in(object, dir, "codec.so");
    codec->handle = dlopen(object, RTLD_NOW | RTLD_LOCAL);
    if (codec->handle != NULL)
        codec->table = dlsym(codec->handle, "vqkvc_codec_exports");
    if (codec->table != NULL)
        return VQKVC_OK;
    vqkvc_fail(err, VQKVC_E_FAILED, "%s: cannot load the compiled codec: %s", name, dlerror());
    vqkvc_codec_free(codec);
    return err->code;
}

vqkvc_code vqkvc_codec_load(vqkvc_codec *codec, const char *name, const void *header, size_t n,
                            vqkvc_err *err)
{
    identity id;
    char dir[MAX_DIR];
    *codec = (vqkvc_codec){.header_bytes = n};
    VQKVC_TRY(identify(&id, name, header, n, err));
    VQKVC_TRY(make_directory(dir, err));
    vqkvc_code code = write_sources(dir, &id, header, n, err);
    double started = vqkvc_seconds();
    if (code == VQKVC_OK)
        code = compile_in(name, dir, err);
    codec->compile_seconds = vqkvc_seconds() - started;
    if (code == VQKVC_OK)
        code = open_object(codec, name, dir, err);
    remove_directory(dir);
    if (code != VQKVC_OK)
        *codec = (vqkvc_codec){0};
    return code;
}

vqkvc_code vqkvc_codec_load_file(vqkvc_codec *codec, const char *path, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    *codec = (vqkvc_codec){0};
    vqkvc_code code = vqkvc_read_file(path, MAX_HEADER, &text, err);
    if (code == VQKVC_OK)
        code = vqkvc_codec_load(codec, path, text.data, text.len, err);
    free(text.data);
    return code;
}

vqkvc_code vqkvc_codec_check(const vqkvc_codec *codec, const char *name, const vqkvc_geometry *g,
                             vqkvc_err *err)
{
    const struct vqkvc_codec_table *t = codec->table;
    int interleaved = g->rope_layout == VQKVC_ROPE_INTERLEAVED;
    int n_rot = g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot;
    const struct {
        const char *field;
        int header, model;
    } fields[] = {
        {"n_layers", t->n_layers, g->n_layers},
        {"n_heads", t->n_heads, g->n_heads},
        {"n_kv_heads", t->n_kv_heads, g->n_kv_heads},
        {"head_dim", t->head_dim, g->head_dim},
        {"n_rot", t->n_rot, n_rot},
        {"rope_interleaved", t->rope_interleaved, n_rot > 0 ? interleaved : t->rope_interleaved},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].header != fields[i].model)
            return vqkvc_fail(err, VQKVC_E_USAGE,
                              "%s: made for another model: %s is %d, but %d in \"%s\"", name,
                              fields[i].field, fields[i].header, fields[i].model, g->name);
    if (t->block < 1 || t->n_sink < 0 || t->n_recent < 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: block %d, n_sink %d, n_recent %d", name,
                          t->block, t->n_sink, t->n_recent);
    return VQKVC_OK;
}

void vqkvc_codec_free(vqkvc_codec *codec)
{
    if (codec->handle != NULL)
        dlclose(codec->handle);
    *codec = (vqkvc_codec){0};
}
