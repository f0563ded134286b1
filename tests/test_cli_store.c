/* What is kept: reports, evaluations, and what `vqkvc db` says of them. */
#include "cli_run.h"

TestSuite(cli_store, .init = make_folder, .fini = remove_folder);

/* What a fit found out is no secret of its log: it comes with the plan, made or found. */
Test(cli_store, reports_of_a_fit_are_kept_with_its_plan)
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

Test(cli_store, an_evaluation_is_printed_and_kept)
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

/* How often a word stands in a text. */
static int count(const char *in_text, const char *word)
{
    int n = 0;
    for (const char *at = strstr(in_text, word); at != NULL; at = strstr(at + 1, word))
        n++;
    return n;
}

Test(cli_store, a_list_has_plans_and_captures_and_all_of_it_every_part)
{
    write_toy_ids(300);
    result made = RUN("plan", TOY, "--tokens", in("toy.i32"), "--layers-shared", "1", "--probes",
                      "0", "--db", in("l.db"));
    expect(&made, 0, NULL);
    result header = RUN("build", TOY, "--scheme", "f16", "--db", in("l.db"), "-o", in("f16.h"));
    expect(&header, 0, NULL);
    result list = RUN("db", "ls", "--db", in("l.db"));
    expect(&list, 0, NULL);
    cr_assert_eq(count(list.out.data, "\n"), 4, "%s", list.out.data);
    cr_assert_eq(strncmp(list.out.data, "ID ", 3), 0);
    cr_assert_not_null(strstr(list.out.data, " tokens of toy.i32  "), "%s", list.out.data);
    cr_assert_not_null(strstr(list.out.data, "  auto2 "), "%s", list.out.data);
    cr_assert_not_null(strstr(list.out.data, "  16.000  -   -     "), "%s", list.out.data);
    cr_assert_not_null(strstr(list.out.data, "vqkvc build toy_llama.gguf --scheme f16\n"), "%s",
                       list.out.data);
    result all = RUN("db", "ls", "--all", "--db", in("l.db"));
    expect(&all, 0, NULL);
    cr_assert_gt(count(all.out.data, "  capture-part  "), 1);
    cr_assert_gt(count(all.out.data, "\n"), 10);
}

Test(cli_store, ids_that_name_nothing_are_wrong_usage_and_a_file_that_is_no_store_is_not)
{
    vqkvc_err err = {0};
    result r = RUN("build", TOY, "--scheme", "f16", "--db", in("u.db"), "-o", in("f16.h"));
    expect(&r, 0, NULL);
    r = RUN("db", "show", "a99", "--db", in("u.db"));
    expect(&r, 2, "no row has the id \"a99\"");
    r = RUN("emit", "nonsense", "--db", in("u.db"));
    expect(&r, 2, "no row has the id \"nonsense\"");
    r = RUN("db", "export", "m7", "--db", in("u.db"));
    expect(&r, 2, "no row has the id \"m7\"");
    r = RUN("db", "verify", "--all", "--db", in("u.db"));
    expect(&r, 2, "--all belongs to ls");
    cr_assert_eq(vqkvc_write_file(in("u.txt"), "no store", 8, &err), VQKVC_OK);
    r = RUN("db", "ls", "--db", in("u.txt"));
    expect(&r, 8, "is no vqkvc store");
    r = RUN("db", "ls", "--db", in("absent.db"));
    expect(&r, 3, "absent.db");
}
