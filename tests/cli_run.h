/* cli_run.h - the program as people run it: through fork and exec, in a folder of its own.
 *
 * $VQKVC names the program, build/vqkvc by default. */
#ifndef VQKVC_TESTS_CLI_RUN_H
#define VQKVC_TESTS_CLI_RUN_H

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "base/file.h"
#include "base/log.h"
#include "base/rng.h"

#define MODEL "examples/models/ref7m.gguf"
#define TOY   "tests/data/toy_llama.gguf"

enum { MAX_ARGS = 40, MAX_BYTES = 64 << 20 };

static char folder[64];
static vqkvc_arena memory; /* of the test that runs */

static inline void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/vqkvc-cli-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    unsetenv("VQKVC_DB");
    setenv("CC", "sh tests/quick_cc.sh", 1);
}

/* How many files of the folder have `part` in their names. */
static inline int count_files(const char *part)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
        n += e->d_name[0] != '.' && strstr(e->d_name, part) != NULL;
    if (dir != NULL)
        closedir(dir);
    return n;
}

static inline void remove_folder(void)
{
    char path[512];
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (dir != NULL)
        closedir(dir);
    rmdir(folder);
    vqkvc_arena_free(&memory);
}

/* ---- running ---- */

/* Owned by the test, with a NUL behind it. */
typedef struct text {
    char *data;
    size_t len;
} text;

typedef struct result {
    int status;    /* exit status, or 128 + signal */
    text out, err; /* standard output and error */
} result;

/* How the next run differs from a plain one. */
typedef struct manner {
    int signal_no; /* sent after `seconds`; 0: none */
    double seconds;
    rlim_t max_file;     /* bytes a file may have; 0: any */
    const char *to_file; /* stdout goes there */
} manner;

/* A path in the folder, owned by the test. */
static inline const char *in(const char *name)
{
    vqkvc_err err = {0};
    return vqkvc_arena_printf(&memory, &err, "%s/%s", folder, name);
}

static inline void start(char **argv, const manner *how)
{
    const char *out = how->to_file != NULL ? how->to_file : in("stdout.txt");
    int fd_out = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int fd_err = open(in("stderr.txt"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd_out < 0 || fd_err < 0 || dup2(fd_out, 1) < 0 || dup2(fd_err, 2) < 0)
        _exit(99);
    if (how->max_file > 0)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){how->max_file, how->max_file});
    execv(argv[0], argv);
    _exit(98);
}

static inline int finish(pid_t pid, const manner *how)
{
    int status;
    if (how->signal_no != 0) {
        usleep((useconds_t)(how->seconds * 1e6));
        kill(pid, how->signal_no);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline text read_text(const char *path)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    cr_assert_eq(vqkvc_read_file(path, MAX_BYTES, &buf, &err), VQKVC_OK, "%s", err.msg);
    text t = {vqkvc_arena_alloc(&memory, buf.len + 1, 1, &err), buf.len};
    memcpy(t.data, buf.data, buf.len);
    free(buf.data);
    return t;
}

/* Words up to a NULL. */
static inline result run_how(const manner *how, ...)
{
    char *argv[MAX_ARGS + 2] = {getenv("VQKVC")};
    result r = {0};
    va_list ap;
    int n = 1;
    if (argv[0] == NULL)
        argv[0] = "build/vqkvc";
    va_start(ap, how);
    while (n <= MAX_ARGS && (argv[n] = va_arg(ap, char *)) != NULL)
        n++;
    va_end(ap);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        start(argv, how);
    cr_assert_gt(pid, 0);
    r.status = finish(pid, how);
    cr_assert(r.status != 98 && r.status != 99, "%s cannot be run", argv[0]);
    if (how->to_file == NULL)
        r.out = read_text(in("stdout.txt"));
    r.err = read_text(in("stderr.txt"));
    return r;
}

#define RUN(...) run_how(&(manner){0}, __VA_ARGS__, NULL)

static inline void expect(const result *r, int status, const char *in_err)
{
    cr_assert_eq(r->status, status, "status %d, wanted %d: %s", r->status, status, r->err.data);
    cr_assert(in_err == NULL || strstr(r->err.data, in_err) != NULL, "no '%s' in: %s", in_err,
              r->err.data);
}

static inline void expect_same(const char *a, const char *b)
{
    text x = read_text(a), y = read_text(b);
    cr_assert(x.len == y.len && x.len > 0 && memcmp(x.data, y.data, x.len) == 0, "%s and %s differ",
              a, b);
}

static inline json_t *parse(const result *r)
{
    json_error_t e;
    json_t *value = json_loadb(r->out.data, r->out.len, 0, &e);
    cr_assert_not_null(value, "%s in: %.200s", e.text, r->out.data);
    return value;
}

/* ---- tokens ---- */

/* Random ids: what they say does not matter here, and they are quickly made. */
static inline void write_ids(void)
{
    enum { N = 1024 };
    static int32_t ids[N];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    for (int i = 0; i < N; i++)
        ids[i] = 3 + (int32_t)vqkvc_rng_below(&rng, 4000);
    cr_assert_eq(vqkvc_write_file(in("ids.i32"), ids, sizeof ids, &err), VQKVC_OK);
}

static inline void write_toy_ids(int n)
{
    int32_t ids[4096];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(6, 0);
    for (int i = 0; i < n; i++)
        ids[i] = 3 + (int32_t)vqkvc_rng_below(&rng, 60);
    cr_assert_eq(vqkvc_write_file(in("toy.i32"), ids, (size_t)n * sizeof *ids, &err), VQKVC_OK);
}

#endif
