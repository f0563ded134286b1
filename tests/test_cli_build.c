/* Builds: the same bytes whatever the number of threads, and whatever ended the one before. */
#include "cli_run.h"

TestSuite(cli_build, .init = make_folder, .fini = remove_folder);

/* ---- a build without calibration ---- */

Test(cli_build, a_preset_gives_a_header_that_compiles_and_the_store_emits_it_again)
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

Test(cli_build, the_summary_says_what_attention_rebuilds)
{
    result r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--json", "-o", in("a.h"));
    json_t *summary = parse(&r);
    cr_assert_str_eq(json_string_value(json_object_get(summary, "vectors")), "absorbed");
    json_decref(summary);
    r = RUN("build", MODEL, "--scheme", "kivi2", "--no-db", "-o", in("b.h"));
    cr_assert_not_null(strstr(r.out.data, "attention rebuilds vectors"), "%s", r.out.data);
}

/* --target both is the C header as ever, and beside it what --target cuda writes. */
Test(cli_build, a_target_says_which_headers_are_written)
{
    result r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "-o", in("c.h"));
    expect(&r, 0, NULL);
    r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--target", "both", "-o", in("b.h"),
            "--depfile", in("b.d"));
    expect(&r, 0, NULL);
    text rule = read_text(in("b.d"));
    vqkvc_err err = {0};
    cr_assert_str_eq(
        rule.data, vqkvc_arena_printf(&memory, &err, "%s %s: %s\n", in("b.h"), in("b.cuh"), MODEL));
    expect_same(in("c.h"), in("b.h"));
    r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--target", "cuda", "-o", in("g.cuh"));
    expect(&r, 0, NULL);
    cr_assert_null(strstr(r.out.data, "--header"));
    expect_same(in("b.cuh"), in("g.cuh"));
    r = RUN("build", MODEL, "--scheme", "q4_0", "--no-db", "--target", "both", "-o", "-");
    expect(&r, 2, "--target both wants a file");
}

Test(cli_build, the_prefix_names_every_symbol)
{
    result r = RUN("build", MODEL, "--scheme", "f16", "--no-db", "--prefix", "other_kv", "-o", "-");
    expect(&r, 0, NULL);
    cr_assert_not_null(strstr(r.out.data, "other_kv_append("));
    cr_assert_null(strstr(r.out.data, "ref7m_kv_append"));
    cr_assert_not_null(strstr(r.out.data, "--prefix other_kv -o other_kv.h\n"));
}

/* ---- a build with calibration ---- */

/* 16 windows: two shards. */
#define AUTO                                                                                       \
    "build", MODEL, "--tokens", in("ids.i32"), "--n-tokens", "512", "--window", "32", "--sample",  \
        "256", "--layers-shared", "2"

/* Rates without a plan have too few bits, and end no search; what calibration left is measured. */
Test(cli_build, a_search_for_bits_ends_at_the_fewest_that_can_be_had)
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
Test(cli_build, little_text_is_enough_for_a_build)
{
    write_toy_ids(300);
    result r = RUN("plan", TOY, "--tokens", in("toy.i32"), "--layers-shared", "1", "--no-db");
    expect(&r, 0, "probe");
}

Test(cli_build, limits_of_shapes_and_missing_probes_are_said)
{
    result r = RUN("plan", "--simulate", "16x2x1x128", "--layers-shared", "16", "--no-db");
    expect(&r, 2, "1024 channels");
    r = RUN("plan", "--simulate", "1x2x1x16", "--n-tokens", "300", "--no-db");
    expect(&r, 0, "no probes without a model");
}

Test(cli_build, any_thread_count_and_any_kill_give_the_same_bytes)
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

Test(cli_build, an_interrupt_exits_130_without_output_and_says_how_to_go_on)
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
