/* test_cli_time.c - a limit of time on the command line, and the cost model in the store. */
#include "cli_run.h"

TestSuite(cli_time, .init = make_folder, .fini = remove_folder);

#define SHAPE     "--simulate", "2x2x1x32", "--n-tokens", "1024", "--sample", "512"
#define NARROW    "--simulate", "2x2x1x8", "--n-tokens", "1024", "--sample", "512"
#define ATTENTION "attention by the cost model: "

/* Measured once; the command in the header's banner says it, and makes the same header elsewhere
 * without measuring. Plans without a limit say their time as soon as a model is known. */
Test(cli_time, a_cost_model_is_measured_once_and_goes_with_the_plan)
{
    result r = RUN("plan", SHAPE, "--db", in("a.db"));
    expect(&r, 0, NULL);
    cr_expect_null(strstr(r.out.data, ATTENTION));
    r = RUN("build", SHAPE, "--max-ns", "200", "--db", in("a.db"), "-o", in("a.h"));
    expect(&r, 0, "cost model: measured");
    r = RUN("plan", SHAPE, "--max-ns", "150", "--bits", "1", "-v", "--db", in("a.db"));
    expect(&r, 0, "cost model: found");
    cr_expect_null(strstr(r.err.data, "cost model: measured"));
    r = RUN("plan", SHAPE, "--db", in("a.db"));
    expect(&r, 0, NULL);
    cr_expect_not_null(strstr(r.out.data, ATTENTION), "%s", r.out.data);
    text header = read_text(in("a.h"));
    const char *model = strstr(header.data, "isa=");
    cr_assert_not_null(model, "the command in the banner has no model");
    char *given = strndup(model, strcspn(model, " \n'\""));
    r = RUN("build", SHAPE, "--max-ns", "200", "--cost-model", given, "--no-db", "-o", in("b.h"));
    free(given);
    expect(&r, 0, NULL);
    cr_expect_null(strstr(r.err.data, "cost model: measured"));
    expect_same(in("a.h"), in("b.h"));
}

/* The time of a plan without a limit is one more line: neither a compiler that is not there nor
 * heads that no model can be measured for keep a header from being made. */
Test(cli_time, a_figure_that_cannot_be_had_fails_nothing)
{
    result r = RUN("plan", SHAPE, "--max-ns", "200", "--db", in("a.db"));
    expect(&r, 0, "cost model: measured");
    setenv("CC", "/nonexistent/cc", 1);
    r = RUN("plan", SHAPE, "-v", "--db", in("a.db"));
    expect(&r, 0, "cost model: not looked up: ");
    cr_expect_null(strstr(r.out.data, ATTENTION));
    r = RUN("build", SHAPE, "--scheme", "q8_0", "-v", "--db", in("a.db"), "-o", in("x.h"));
    expect(&r, 0, NULL);
    cr_expect_null(strstr(r.err.data, "not looked up"), "q8_0 has no time to look up");
    r = RUN("build", SHAPE, "-v", "--db", in("none.db"), "-o", in("y.h"));
    expect(&r, 0, NULL);
    cr_expect_null(strstr(r.err.data, "not looked up"), "the compiler was run for nothing");
    r = RUN("build", NARROW, "--db", in("a.db"), "-o", in("z.h"));
    expect(&r, 0, NULL);
    r = RUN("build", NARROW, "--max-ns", "200", "--db", in("a.db"), "-o", in("never.h"));
    expect(&r, 5, "heads of 16 channels or more, not of 8");
    cr_expect_eq(count_files("never.h"), 0);
}

Test(cli_time, wrong_models_and_impossible_limits_are_refused)
{
    static const char terms[] =
        "token=1,exact=100,k=1,k1=0.1,k2=0.1,kd=0.1,v=1,v1=0.1,v2=0.1,v4=0.1,"
        "v8=0.1,block=100,map1=4,map2=8,map4=16,map8=32,rebuilt=30,"
        "decode=0.1,product=1";
    char right[512], wide[512];
    snprintf(right, sizeof right, "isa=avx2,head_dim=32,group=2,%s", terms);
    snprintf(wide, sizeof wide, "isa=avx2,head_dim=64,group=2,%s", terms);
    result r = RUN("plan", SHAPE, "--max-ns", "1", "--cost-model", right, "--no-db");
    expect(&r, r.status, "in 1 ns a cached token and KV head: the least that was found takes ");
    cr_expect_neq(r.status, 0);
    r = RUN("plan", SHAPE, "--max-ns", "50", "--cost-model", wide, "--no-db");
    expect(&r, 2, "heads of 64 channels");
    r = RUN("plan", SHAPE, "--cost-model", "isa=avx2", "--no-db");
    expect(&r, 2, "offset");
    r = RUN("plan", SHAPE, "--scheme", "higgs2", "--max-ns", "9", "--no-db");
    expect(&r, 2, "belong");
    r = RUN("bench", "--head-dim", "32", "--group", "2", "--isa", "portable", "--cost-model",
            right);
    expect(&r, 2, "--cost-model is of avx2, --isa asks for portable");
    r = RUN("bench", "--calibrate", "--context", "4095");
    expect(&r, 2, "4096 tokens or more, not 4095");
    r = RUN("plan", "--import", in("none"), "--max-ns", "9", "--no-db");
    expect(&r, 2, "wants --cost-model");
}
