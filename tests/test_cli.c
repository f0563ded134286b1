/* test_cli.c - the program as people run it: through fork and exec, in a folder of its own.
 *
 * $VQKVC names the program, build/vqkvc by default. */
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

enum { MAX_ARGS = 40, MAX_BYTES = 64 << 20 };

static char folder[64];
static vqkvc_arena memory; /* of the test that runs */

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/vqkvc-cli-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    unsetenv("VQKVC_DB");
}

/* How many files of the folder have `part` in their names. */
static int count_files(const char *part)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
        n += e->d_name[0] != '.' && strstr(e->d_name, part) != NULL;
    if (dir != NULL)
        closedir(dir);
    return n;
}

static void remove_folder(void)
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

TestSuite(cli, .init = make_folder, .fini = remove_folder);

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
static const char *in(const char *name)
{
    vqkvc_err err = {0};
    return vqkvc_arena_printf(&memory, &err, "%s/%s", folder, name);
}

static void start(char **argv, const manner *how)
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

static int finish(pid_t pid, const manner *how)
{
    int status;
    if (how->signal_no != 0) {
        usleep((useconds_t)(how->seconds * 1e6));
        kill(pid, how->signal_no);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static text read_text(const char *path)
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
static result run_how(const manner *how, ...)
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

static void expect(const result *r, int status, const char *in_err)
{
    cr_assert_eq(r->status, status, "status %d, wanted %d: %s", r->status, status, r->err.data);
    cr_assert(in_err == NULL || strstr(r->err.data, in_err) != NULL, "no '%s' in: %s", in_err,
              r->err.data);
}

static void expect_same(const char *a, const char *b)
{
    text x = read_text(a), y = read_text(b);
    cr_assert(x.len == y.len && x.len > 0 && memcmp(x.data, y.data, x.len) == 0, "%s and %s differ",
              a, b);
}

static json_t *parse(const result *r)
{
    json_error_t e;
    json_t *value = json_loadb(r->out.data, r->out.len, 0, &e);
    cr_assert_not_null(value, "%s in: %.200s", e.text, r->out.data);
    return value;
}

/* ---- help ---- */

static const char *const commands[] = {"build", "capture", "plan",  "emit", "eval",
                                       "suite", "bench",   "model", "db"};

enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

/* The manual writes "-" as "\-". */
static int manual_has(const text *manual, const char *option)
{
    char word[96] = "";
    for (const char *c = option; *c != '\0'; c++)
        snprintf(word + strlen(word), sizeof word - strlen(word), *c == '-' ? "\\%c" : "%c", *c);
    const char *at = strstr(manual->data, word);
    while (at != NULL && strchr(" \n", at[strlen(word)]) == NULL)
        at = strstr(at + 1, word);
    return at != NULL;
}

Test(cli, help_of_every_command_lists_options_that_the_manual_has_too)
{
    text manual = read_text("docs/vqkvc.1");
    for (int i = 0; i < N_COMMANDS; i++) {
        result a = RUN("help", commands[i]), b = RUN(commands[i], "--help"), c = RUN("help");
        int n = 0;
        expect(&a, 0, NULL);
        expect(&b, 0, NULL);
        cr_assert_str_eq(a.out.data, b.out.data);
        cr_assert_eq(a.err.len, 0);
        cr_assert_not_null(strstr(c.out.data, commands[i]));
        cr_assert_not_null(strstr(a.out.data, "\nexamples:\n  vqkvc "));
        for (char *line = strtok(a.out.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
            char option[48];
            if (strlen(line) < 8 || line[0] != ' ' || strncmp(line + 6, "--", 2) != 0)
                continue;
            snprintf(option, sizeof option, "%.*s", (int)strcspn(line + 6, " "), line + 6);
            cr_assert(manual_has(&manual, option), "docs/vqkvc.1 has no %s", option);
            n++;
        }
        cr_assert_geq(n, 5, "%s has %d options", commands[i], n);
    }
}

Test(cli, version_and_defaults_are_shown)
{
    result version = RUN("--version"), build = RUN("build", "-h");
    expect(&version, 0, NULL);
    cr_assert_eq(strncmp(version.out.data, "vqkvc ", 6), 0);
    cr_assert_not_null(strstr(build.out.data, "(default: 5.5)"));
    cr_assert_not_null(strstr(build.out.data, "(default: 8192)"));
}

/* ---- failures ---- */

Test(cli, wrong_usage_is_one_line_that_names_the_word_and_exits_2)
{
    static const struct {
        const char *args[5], *names;
    } cases[] = {
        {{"bild"}, "did you mean 'build'?"},
        {{"frobnicate"}, "unknown command 'frobnicate'"},
        {{"--frob"}, "--frob"},
        {{"build", MODEL, "--bots", "2"}, "unknown option --bots; did you mean --bits?"},
        {{"build", MODEL, "--xyzzy"}, "unknown option --xyzzy"},
        {{"build", MODEL, "-z"}, "unknown option -z"},
        {{"build", MODEL, "--bits"}, "--bits wants an argument"},
        {{"build", MODEL, "--self=1"}, "--self takes no argument"},
        {{"build", MODEL, "--bits", "2x"}, "--bits is '2x'"},
        {{"build", MODEL, "--bits", "nan"}, "--bits is 'nan'"},
        {{"build", MODEL, "--bits", "99"}, "--bits is '99'"},
        {{"build", MODEL, "--seed", "-1"}, "--seed is '-1'"},
        {{"build", MODEL, "--sample", "1e3"}, "--sample is '1e3'"},
        {{"build", MODEL, "--sample", " 5"}, "--sample is ' 5'"},
        {{"build", MODEL, "--sample", "99999999999999999999"}, "--sample is '9999"},
        {{"build", MODEL, "--scheme", "q4_1"}, "did you mean 'q4_0'?"},
        {{"build", MODEL, "--db", ""}, "--db is empty"},
        {{"build", MODEL, "second.gguf"}, "unexpected argument 'second.gguf'"},
        {{"build"}, "which model?"},
        {{"build", MODEL, "--prefix", "Two Words", "--no-db"}, "prefix 'Two Words'"},
        {{"build", MODEL, "--self", "--text", "x"}, "exclude each other"},
        {{"build", MODEL, "--scheme=svdq", "--schedule=foo"}, "schedule 'foo'"},
        {{"build", MODEL, "--without=typo"}, "--without is 'typo'"},
        {{"suite", MODEL, "--schemes=aqua2.5"}, "--bits is 2.5"},
        {{"model"}, "usage: vqkvc model"},
        {{"db", "sow", "a1"}, "did you mean 'show'?"},
        {{"db", "show"}, "db show"},
        {{"eval", MODEL, "--schemes", "none", "--no-db"}, "neither --header nor --schemes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const *a = cases[i].args;
        result r = RUN(a[0], a[1], a[2], a[3], a[4]);
        expect(&r, 2, cases[i].names);
        cr_assert_eq(r.out.len, 0);
        cr_assert_eq(strchr(r.err.data, '\n'), r.err.data + r.err.len - 1, "not one line: %s",
                     r.err.data);
    }
    result r = RUN("build", MODEL, "--scheme", "q4_0", "--bits", "2");
    expect(&r, 2, "--bits");
}

Test(cli, missing_and_truncated_models_are_named)
{
    vqkvc_err err = {0};
    vqkvc_map map;
    result r = RUN("build", in("absent.gguf"), "--no-db");
    expect(&r, 3, "absent.gguf");
    cr_assert_eq(vqkvc_map_open(&map, MODEL, &err), VQKVC_OK);
    static const size_t lengths[] = {3, 3000, 5000000};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        vqkvc_write_file(in("cut.gguf"), map.data, lengths[i], &err);
        r = RUN("model", in("cut.gguf"));
        expect(&r, 4, "cut.gguf");
        expect(&r, 4, "offset");
    }
    vqkvc_map_close(&map);
}

Test(cli, an_output_that_cannot_be_written_is_refused_before_any_work)
{
    result r = RUN("build", MODEL, "--no-db", "-o", in("no/such/folder.h"));
    expect(&r, 3, "folder.h");
    cr_assert_null(strstr(r.err.data, "capture"));
    r = RUN("build", MODEL, "--no-db", "-o", folder);
    expect(&r, 3, "not a regular file");
    cr_assert_eq(mkfifo(in("pipe"), 0600), 0);
    r = RUN("build", MODEL, "--scheme", "f16", "--no-db", "-o", in("pipe"));
    expect(&r, 3, "not a regular file");
    struct stat st;
    cr_assert(stat(in("pipe"), &st) == 0 && S_ISFIFO(st.st_mode));
}

Test(cli, a_full_disk_leaves_no_file_and_full_stdout_is_an_error)
{
    result r = run_how(&(manner){.max_file = 50000}, "build", MODEL, "--scheme", "q4_0", "--no-db",
                       "-o", in("full.h"), NULL);
    expect(&r, 3, "full.h");
    cr_assert_eq(count_files("full.h"), 0);
    if (access("/dev/full", W_OK) != 0)
        cr_skip("no /dev/full\n");
    r = run_how(&(manner){.to_file = "/dev/full"}, "model", MODEL, NULL);
    expect(&r, 3, "standard output");
}

/* ---- a build without calibration ---- */

Test(cli, a_preset_gives_a_header_that_compiles_and_the_store_emits_it_again)
{
    const char *db = in("s.db"), *h = in("q4.h");
    result r =
        RUN("build", MODEL, "--scheme", "q4_0", "--db", db, "-o", h, "--depfile", in("q4.d"));
    expect(&r, 0, NULL);
    cr_assert_not_null(strstr(r.out.data, "codes 4.000"));
    cr_assert_not_null(strstr(r.out.data, "next: vqkvc eval " MODEL));
    char command[512];
    snprintf(command, sizeof command,
             "cc -std=c99 -Wall -Wextra -Wpedantic -Werror -O0 -c -DREF7M_KV_IMPLEMENTATION "
             "-x c -o %s %s",
             in("q4.o"), h);
    cr_assert_eq(system(command), 0, "%s", command);

    text rule = read_text(in("q4.d")), header = read_text(h);
    vqkvc_err err = {0};
    cr_assert_str_eq(rule.data, vqkvc_arena_printf(&memory, &err, "%s: %s\n", h, MODEL));
    cr_assert_not_null(strstr(header.data, "vqkvc build ref7m.gguf --scheme q4_0 -o ref7m_kv.h\n"));
    cr_assert_null(strstr(header.data, folder));

    r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--threads", "1", "-o", in("b.h"));
    expect(&r, 0, NULL);
    expect_same(h, in("b.h"));
    r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "-o", "-");
    cr_assert_eq(r.out.len, header.len);
    cr_assert_eq(memcmp(r.out.data, header.data, header.len), 0);
    expect(&r, 0, "standard output: scheme q4_0");
    cr_assert_null(strstr(r.err.data, "--header"));

    r = RUN("db", "ls", "--json", "--db", db);
    json_t *all = parse(&r), *row;
    size_t i;
    int plans = 0;
    json_array_foreach(json_object_get(all, "artifacts"), i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "kind")), "plan") != 0)
            continue;
        const char *id = json_string_value(json_object_get(row, "id"));
        result e = RUN("emit", id, "--db", db, "-o", in("c.h"));
        expect(&e, 0, NULL);
        expect_same(h, in("c.h"));
        result shown = RUN("plan", "--show", id, "--db", db);
        result made = RUN("plan", MODEL, "--scheme", "q4_0", "--no-db");
        cr_assert_str_eq(shown.out.data, made.out.data);
        plans++;
    }
    cr_assert_eq(plans, 1);
    json_decref(all);
    r = RUN("db", "export", "m1", "--db", db, "-o", in("d.h"));
    expect_same(h, in("d.h"));
    r = RUN("db", "verify", "--db", db);
    expect(&r, 0, NULL);
}

/* What a fit found out is no secret of its log: it comes with the plan, made or found. */
Test(cli, reports_of_a_fit_are_kept_with_its_plan)
{
    static const char *const schemes[][2] = {{"svdq", "uniform channels"},
                                             {"aqua", "% explained by K 0"}};
    const char *db = in("s.db");
    for (int i = 0; i < 2; i++) {
        result made, found;
        made = RUN("plan", "--simulate", "2x2x2x32", "--scheme", schemes[i][0], "--n-tokens", "512",
                   "--sample", "512", "-q", "--db", db);
        expect(&made, 0, NULL);
        cr_assert_not_null(strstr(made.out.data, schemes[i][1]), "%s", made.out.data);
        found = RUN("plan", "--simulate", "2x2x2x32", "--scheme", schemes[i][0], "--n-tokens",
                    "512", "--sample", "512", "--db", db);
        expect(&found, 0, "plan: found");
        cr_assert_str_eq(found.out.data, made.out.data);
    }
    result r = RUN("db", "gc", "--db", db);
    expect(&r, 0, NULL);
    r = RUN("db", "ls", "--json", "--db", db);
    json_t *all = parse(&r), *row;
    size_t i;
    int plans = 0;
    json_array_foreach(json_object_get(all, "artifacts"), i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "kind")), "plan") != 0)
            continue;
        result shown = RUN("plan", "--show", json_string_value(json_object_get(row, "id")),
                           "--json", "--db", db);
        json_t *plan = parse(&shown), *report = json_object_get(plan, "report");
        cr_assert_gt(json_array_size(report), 0);
        json_t *line = json_array_get(report, json_array_size(report) - 1);
        cr_assert_eq(json_integer_value(json_object_get(line, "layer")), 1);
        cr_assert(json_is_real(json_object_get(line, plans == 0 ? "error" : "explained")));
        json_decref(plan);
        plans++;
    }
    cr_assert_eq(plans, 2);
    json_decref(all);
}

Test(cli, the_summary_says_what_attention_rebuilds)
{
    result r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--json", "-o", in("a.h"));
    json_t *summary = parse(&r);
    cr_assert_str_eq(json_string_value(json_object_get(summary, "vectors")), "absorbed");
    json_decref(summary);
    r = RUN("build", MODEL, "--scheme", "kivi2", "--no-db", "-o", in("b.h"));
    cr_assert_not_null(strstr(r.out.data, "attention rebuilds vectors"), "%s", r.out.data);
}

Test(cli, the_prefix_names_every_symbol)
{
    result r = RUN("build", MODEL, "--scheme", "f16", "--no-db", "--prefix", "other_kv", "-o", "-");
    expect(&r, 0, NULL);
    cr_assert_not_null(strstr(r.out.data, "other_kv_append("));
    cr_assert_null(strstr(r.out.data, "ref7m_kv_append"));
    cr_assert_not_null(strstr(r.out.data, "--prefix other_kv -o other_kv.h\n"));
}

Test(cli, a_model_is_described)
{
    result r = RUN("model", MODEL, "--json");
    expect(&r, 0, NULL);
    json_t *o = parse(&r), *g = json_object_get(o, "geometry");
    cr_assert_eq(json_integer_value(json_object_get(g, "n_layers")), 8);
    cr_assert_eq(json_integer_value(json_object_get(g, "n_kv_heads")), 2);
    cr_assert_str_eq(json_string_value(json_object_get(g, "rope_layout")), "interleaved");
    cr_assert_eq(json_integer_value(json_object_get(o, "cache_bytes_a_token")), 4096);
    cr_assert_not_null(json_object_get(json_object_get(o, "tensors"), "F16"));
    json_decref(o);
}

/* ---- a build with calibration ---- */

/* Random ids: what they say does not matter here, and they are quickly made. */
static void write_ids(void)
{
    enum { N = 1024 };
    static int32_t ids[N];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(5, 0);
    for (int i = 0; i < N; i++)
        ids[i] = 3 + (int32_t)vqkvc_rng_below(&rng, 4000);
    cr_assert_eq(vqkvc_write_file(in("ids.i32"), ids, sizeof ids, &err), VQKVC_OK);
}

/* 16 windows: two shards. */
#define AUTO                                                                                       \
    "build", MODEL, "--tokens", in("ids.i32"), "--n-tokens", "512", "--window", "32", "--sample",  \
        "256", "--layers-shared", "2"

#define TOY "tests/data/toy_llama.gguf"

static void write_toy_ids(int n)
{
    int32_t ids[4096];
    vqkvc_err err = {0};
    vqkvc_rng rng = vqkvc_rng_make(6, 0);
    for (int i = 0; i < n; i++)
        ids[i] = 3 + (int32_t)vqkvc_rng_below(&rng, 60);
    cr_assert_eq(vqkvc_write_file(in("toy.i32"), ids, (size_t)n * sizeof *ids, &err), VQKVC_OK);
}

/* Rates without a plan have too few bits, and end no search; what calibration left is measured. */
Test(cli, a_search_for_bits_ends_at_the_fewest_that_can_be_had)
{
    write_toy_ids(4096);
    result r = RUN("build", TOY, "--tokens", in("toy.i32"), "--n-tokens", "1024", "--sample", "512",
                   "--bits", "0.75", "--max-kl", "9", "--without", "sharing", "--no-db", "-o",
                   in("least.h"));
    expect(&r, 0, "bits are too few");
    cr_expect_not_null(strstr(r.out.data, "auto0.75"), "%s", r.out.data);
    cr_expect_null(strstr(r.err.data, "text that the model samples"), "%s", r.err.data);
}

/* 300 tokens are fewer than a window of probes or of a search. */
Test(cli, little_text_is_enough_for_a_build)
{
    write_toy_ids(300);
    result r = RUN("plan", TOY, "--tokens", in("toy.i32"), "--layers-shared", "1", "--no-db");
    expect(&r, 0, "probe");
}

Test(cli, limits_of_shapes_and_missing_probes_are_said)
{
    result r = RUN("plan", "--simulate", "16x2x1x128", "--layers-shared", "16", "--no-db");
    expect(&r, 2, "1024 channels");
    r = RUN("plan", "--simulate", "1x2x1x16", "--n-tokens", "300", "--no-db");
    expect(&r, 0, "no probes without a model");
}

Test(cli, any_thread_count_and_any_kill_give_the_same_bytes)
{
    write_ids();
    result r = RUN(AUTO, "--no-db", "--threads", "2", "-o", in("whole.h"));
    expect(&r, 0, NULL);
    double began = vqkvc_seconds();
    r = RUN(AUTO, "--no-db", "--threads", "1", "-o", in("one.h"));
    double seconds = vqkvc_seconds() - began;
    expect(&r, 0, NULL);
    expect_same(in("whole.h"), in("one.h"));

    /* The same store three times over: each run gets further. */
    static const double part[] = {0.3, 0.5, 0.7};
    for (int i = 0; i < 3; i++) {
        r = run_how(&(manner){.signal_no = SIGKILL, .seconds = part[i] * seconds}, AUTO,
                    "--threads", "1", "--db", in("k.db"), "-o", in("k.h"), NULL);
        cr_assert(r.status == 128 + SIGKILL || r.status == 0, "status %d", r.status);
        if (r.status != 0)
            cr_assert_eq(count_files("k.h"), 0);
        if (access(in("k.db"), F_OK) == 0 && r.status != 0) {
            r = RUN("db", "verify", "--db", in("k.db"));
            cr_assert(r.status == 0 || strstr(r.err.data, "empty file") != NULL, "%s", r.err.data);
        }
    }
    r = RUN(AUTO, "--threads", "1", "--db", in("k.db"), "-o", in("k.h"));
    expect(&r, 0, NULL);
    expect_same(in("whole.h"), in("k.h"));
    unlink(in("k.h"));
    r = RUN(AUTO, "--db", in("k.db"), "-o", in("k.h"));
    expect(&r, 0, "plan: found");
    cr_assert_null(strstr(r.err.data, "capture:"), "%s", r.err.data);
    expect_same(in("whole.h"), in("k.h"));
    r = RUN("db", "gc", "--db", in("k.db"));
    expect(&r, 0, NULL);
    r = RUN("capture", MODEL, "--tokens", in("ids.i32"), "--n-tokens", "512", "--window", "32",
            "--sample", "256", "--db", in("k.db"));
    expect(&r, 0, "capture: found");
    r = RUN("db", "verify", "--db", in("k.db"));
    expect(&r, 0, NULL);
}

Test(cli, an_interrupt_exits_130_without_output_and_says_how_to_go_on)
{
    /* Self-sampling of this many tokens takes longer than anybody waits. */
    result r = run_how(&(manner){.signal_no = SIGINT, .seconds = 1}, "build", MODEL, "--db",
                       in("i.db"), "--n-tokens", "1000000", "-o", in("i.h"), NULL);
    expect(&r, 130, "interrupted");
    expect(&r, 130, "the same command again goes on");
    cr_assert_eq(count_files("i.h"), 0);
    r = RUN("db", "verify", "--db", in("i.db"));
    expect(&r, 0, NULL);
}

/* ---- evaluation ---- */

Test(cli, an_evaluation_is_printed_and_kept)
{
    write_ids();
    result r = RUN("build", MODEL, "--scheme", "q8_0", "--db", in("e.db"), "-o", in("q8.h"));
    expect(&r, 0, NULL);
    r = RUN("eval", MODEL, "--header", in("q8.h"), "--schemes", "f16", "--tokens", in("ids.i32"),
            "--windows", "1", "--context", "192", "--step", "64", "--json", "--db", in("e.db"));
    expect(&r, 0, NULL);
    json_decref(parse(&r));
    cr_assert_not_null(strstr(r.out.data, "\"q8_0\""));
    cr_assert_not_null(strstr(r.out.data, "\"f16\""));
    r = RUN("db", "ls", "--json", "--db", in("e.db"));
    json_t *all = parse(&r);
    cr_assert_eq(json_array_size(json_object_get(all, "evaluations")), 2);
    json_decref(all);
}
