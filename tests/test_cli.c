/* The words of the program: help, the manual, wrong usage, files that cannot be read or written. */
#include "cli_run.h"

TestSuite(cli, .init = make_folder, .fini = remove_folder);

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
