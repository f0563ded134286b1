/* emitted.h - a directory of its own for each test, and commands in it: for tests that compile what
 * the emitter writes. */
#ifndef VQKVC_TESTS_EMITTED_H
#define VQKVC_TESTS_EMITTED_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/file.h"

/* Limits of a test, and of the processor time of a command in it: on a busy machine a compiler
 * takes many times as long as it works. */
enum { TEST_SECONDS = 900, COMMAND_SECONDS = 120 };

static char dir[64];

static inline void make_dir(void)
{
    strcpy(dir, "/tmp/test_header_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static inline void remove_dir(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_expect_eq(system(command), 0);
}

/* Runs a shell command in the directory; its exit status. The words of a command that fails are
 * shown unless `quiet`. */
static inline int shell(int quiet, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static inline int shell(int quiet, const char *fmt, ...)
{
    char words[1024], command[1400];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(words, sizeof words, fmt, args);
    va_end(args);
    cr_assert(n > 0 && (size_t)n < sizeof words);
    snprintf(command, sizeof command, "root=$PWD; cd %s && ulimit -t %d && { %s; } >log 2>&1", dir,
             (int)COMMAND_SECONDS, words);
    int status = system(command);
    status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    if (status != 0 && !quiet) {
        fprintf(stderr, "%s\n", words);
        snprintf(command, sizeof command, "head -n 40 %s/log >&2", dir);
        if (system(command) != 0)
            fprintf(stderr, "(no output)\n");
    }
    return status;
}

/* Whether a program is there; if not, says that its tests are skipped. */
static inline int have(const char *program)
{
    if (shell(1, "command -v %s", program) == 0)
        return 1;
    cr_log_warn("%s is not installed: its part is skipped", program);
    return 0;
}

static inline void write_text(const char *name, const void *bytes, size_t n)
{
    vqkvc_err err = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    cr_assert_eq(vqkvc_write_file(path, bytes, n, &err), VQKVC_OK, "%s", err.msg);
}

static inline void write_source(const char *name, const char *text)
{
    write_text(name, text, strlen(text));
}

/* What the last command said. */
static inline void show_log(const char *name)
{
    char path[128];
    vqkvc_buf log = {0};
    vqkvc_err err = {0};
    snprintf(path, sizeof path, "%s/log", dir);
    if (vqkvc_read_file(path, (size_t)1 << 20, &log, &err) == VQKVC_OK)
        cr_log_info("%s: %s", name, log.data);
    free(log.data);
}

#endif
