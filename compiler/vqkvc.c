/* vqkvc.c - the program: a table of commands. The only file that ends it. */
#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/matrix.h"
#include "command/commands.h"

static const vqkvc_command *const COMMANDS[] = {
    &vqkvc_command_build, &vqkvc_command_capture, &vqkvc_command_plan,
    &vqkvc_command_emit,  &vqkvc_command_eval,    &vqkvc_command_suite,
    &vqkvc_command_bench, &vqkvc_command_model,   &vqkvc_command_db};

enum { N_COMMANDS = sizeof COMMANDS / sizeof COMMANDS[0] };

static const char *command_name(const void *commands, int i)
{
    return i < N_COMMANDS ? ((const vqkvc_command *const *)commands)[i]->name : NULL;
}

static const vqkvc_command *find_command(const char *name, vqkvc_err *err)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(COMMANDS[i]->name, name) == 0)
            return COMMANDS[i];
    const char *nearest = vqkvc_nearest(name, command_name, COMMANDS);
    vqkvc_fail(err, VQKVC_E_USAGE, "unknown command '%.60s'%s%s%s", name,
               nearest != NULL ? "; did you mean '" : "; `vqkvc help` lists them",
               nearest != NULL ? nearest : "", nearest != NULL ? "'?" : "");
    return NULL;
}

static void print_overview(void)
{
    printf("usage: vqkvc COMMAND [option...] [argument...]\n\n"
           "Makes a key-value cache codec for one language model, as one C header.\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  %-9s %s\n", COMMANDS[i]->name, COMMANDS[i]->summary);
    printf("  %-9s %s\n", "help", "print this, or the help of a command");
    printf("\n`vqkvc help COMMAND` or `vqkvc COMMAND --help` prints its options; "
           "`vqkvc --version` the version.\n\nexamples:\n"
           "  vqkvc build model.gguf --bits 2 -o model_kv.h\n"
           "  vqkvc eval model.gguf --header model_kv.h\n"
           "  vqkvc db ls\n");
}

static vqkvc_code print_help(const vqkvc_command *command, vqkvc_err *err)
{
    vqkvc_buf text = {0};
    vqkvc_options_help(command, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the help");
    else
        fputs(text.data, stdout);
    free(text.data);
    return err->code;
}

static vqkvc_code run_command(const vqkvc_command *command, int argc, char **argv, vqkvc_err *err)
{
    vqkvc_options o;
    VQKVC_TRY(vqkvc_options_parse(command, argc, argv, &o, err));
    if (o.help)
        return print_help(command, err);
    vqkvc_log log = {o.quiet ? -1 : o.verbose ? 1 : 0};
    if (o.threads > 0)
        omp_set_num_threads(o.threads);
    vqkvc_matrix_init();
    vqkvc_catch_interrupts();
    /* A file that may not grow gives an error then, which takes the temporary file away. */
    signal(SIGXFSZ, SIG_IGN);
    return command->run(&o, &log, err);
}

/* `vqkvc eval MODEL --suite` is `vqkvc suite MODEL`: takes the word out and says so. */
static int take_suite_word(int *argc, char **argv)
{
    for (int i = 2; i < *argc; i++)
        if (strcmp(argv[i], "--suite") == 0) {
            memmove(argv + i, argv + i + 1, (size_t)(*argc - i) * sizeof *argv);
            --*argc;
            return 1;
        }
    return 0;
}

static int is_any(const char *word, const char *a, const char *b, const char *c)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0 || strcmp(word, c) == 0;
}

static vqkvc_code dispatch(int argc, char **argv, vqkvc_err *err)
{
    if (argc < 2)
        return vqkvc_fail(err, VQKVC_E_USAGE, "which command? `vqkvc help` lists them");
    if (is_any(argv[1], "--version", "-V", "version")) {
        printf("vqkvc %s\n", VQKVC_VERSION);
        return VQKVC_OK;
    }
    if (is_any(argv[1], "help", "--help", "-h")) {
        const vqkvc_command *command = argc > 2 ? find_command(argv[2], err) : NULL;
        if (command != NULL)
            return print_help(command, err);
        if (err->code == VQKVC_OK)
            print_overview();
        return err->code;
    }
    if (argv[1][0] == '-')
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "unknown option '%.60s' in front of the command; `vqkvc help` lists the "
                          "commands",
                          argv[1]);
    const vqkvc_command *command = find_command(argv[1], err);
    if (command == &vqkvc_command_eval && take_suite_word(&argc, argv))
        command = &vqkvc_command_suite;
    return command == NULL ? err->code : run_command(command, argc - 1, argv + 1, err);
}

/* OpenMP's threads spin while they wait, by default, which makes everything some ten times slower
 * where another process wants the processors. The runtime reads its environment before main(), so
 * the program starts itself again with the other policy, unless the user has chosen one. */
static void wait_passively(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") == NULL && setenv("OMP_WAIT_POLICY", "passive", 0) == 0)
        execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    vqkvc_err err = {0};
    wait_passively(argv);
    dispatch(argc, argv, &err);
    if (fflush(stdout) != 0 || ferror(stdout))
        vqkvc_fail(&err, VQKVC_E_IO, "standard output: %s", strerror(errno));
    if (err.code != VQKVC_OK)
        fprintf(stderr, "vqkvc: %s\n", err.msg);
    return vqkvc_exit_status(err.code);
}
