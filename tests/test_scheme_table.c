/* The table of schemes: words of lists, options that a scheme takes, recipes, and what is written
 * about it. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/pipeline.h"
#include "command/schemes.h"

/* The options of `vqkvc build MODEL` and up to two more words; the last eight of them are good. */
static vqkvc_options parsed(const char *a, const char *b)
{
    static char words[8][4][64], *argv[8][4]; /* options point into them */
    static int turn;
    const char *given[] = {"build", "model.gguf", a, b};
    vqkvc_options o;
    vqkvc_err err = {0};
    int n = 0;
    turn = (turn + 1) % 8;
    for (int i = 0; i < 4; i++)
        if (given[i] != NULL) {
            snprintf(words[turn][n], sizeof words[turn][n], "%s", given[i]);
            argv[turn][n] = words[turn][n];
            n++;
        }
    cr_assert_eq(vqkvc_options_parse(&vqkvc_command_build, n, argv[turn], &o, &err), VQKVC_OK, "%s",
                 err.msg);
    return o;
}

static char *recipe(const vqkvc_options *o)
{
    vqkvc_buf text = {0};
    vqkvc_scheme_recipe(o, &text);
    cr_assert_not(text.failed);
    return text.data;
}

Test(scheme_table, words_name_schemes_and_their_rates)
{
    static const struct {
        const char *word, *scheme;
        double bits, outliers;
        const char *schedule, *values;
    } good[] = {{"auto", "auto", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"auto1.5", "auto", 1.5, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"vqkv", "vqkv", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"vqkv2.75", "vqkv", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"q4_0", "q4_0", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"kivi2", "kivi2", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"kivi4", "kivi4", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"turbo3", "turbo3", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"nsn2", "nsn2", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"kvquant2", "kvquant2", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"kvquant3-1", "kvquant3", 2, 1, "4,2,2,1,1,0,0,0", "f16"},
                {"svdq", "svdq", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"svdq1.25", "svdq", 2, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"svdq2", "svdq", 2, 0, "8,4,2,1,1,0,0,0", "f16"},
                {"svdq2-higgs4", "svdq", 2, 0, "8,4,2,1,1,0,0,0", "higgs4"},
                {"aqua3", "aqua", 3, 0, "4,2,2,1,1,0,0,0", "f16"},
                {"anchor4", "anchor", 4, 0, "4,2,2,1,1,0,0,0", "f16"}};
    static const char *const bad[] = {"",         "auto9.1",    "auto-1",     "autox",
                                      "kivi3",    "kvquant2-x", "kvquant2-",  "kvquant2-99",
                                      "svdq3",    "svdq-svdq",  "higgs2-1",   "vqkv3",
                                      "auto+1.5", "auto 1",     "aqua-higgs2"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        vqkvc_options o = parsed(NULL, NULL);
        vqkvc_err err = {0};
        cr_assert_eq(vqkvc_scheme_apply(good[i].word, &o, &err), VQKVC_OK, "%s", err.msg);
        cr_expect_str_eq(o.scheme, good[i].scheme);
        cr_expect_eq(o.bits, good[i].bits, "%s: %g", good[i].word, o.bits);
        cr_expect_eq(o.outliers, good[i].outliers, "%s: %g", good[i].word, o.outliers);
        cr_expect_str_eq(o.schedule, good[i].schedule);
        cr_expect_str_eq(o.values, good[i].values);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        vqkvc_options o = parsed(NULL, NULL);
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_scheme_apply(bad[i], &o, &err), VQKVC_E_USAGE, "'%s'", bad[i]);
        cr_expect_not_null(strstr(err.msg, bad[i]), "%s", err.msg);
    }
}

Test(scheme_table, every_scheme_parses_and_applies_by_its_own_name)
{
    const vqkvc_scheme *s;
    for (int i = 0; (s = vqkvc_scheme_at(i)) != NULL; i++) {
        char word[64];
        vqkvc_err err = {0};
        snprintf(word, sizeof word, "--scheme=%s", s->name);
        vqkvc_options o = parsed(word, NULL), listed = parsed(NULL, NULL);
        cr_expect_eq(vqkvc_scheme_of(&o), s, "%s", s->name);
        cr_expect_eq(vqkvc_scheme_apply(s->name, &listed, &err), VQKVC_OK, "%s", err.msg);
        cr_expect_eq(vqkvc_scheme_of(&listed), s, "%s", s->name);
        char *a = recipe(&o), *b = recipe(&listed);
        cr_expect_str_eq(a, b);
        free(a);
        free(b);
    }
}

Test(scheme_table, options_of_other_schemes_are_refused_by_name)
{
    vqkvc_err err = {0};
    vqkvc_options o = parsed("--scheme=kivi2", "--outliers=1");
    cr_expect_eq(vqkvc_scheme_check(&o, NULL, &err), VQKVC_E_USAGE);
    cr_expect_str_eq(err.msg, "--outliers belongs to kvquant2, kvquant3, kvquant4, not to kivi2");
    err = (vqkvc_err){0};
    o = parsed("--scheme=svdq", "--max-scan=2");
    cr_expect_eq(vqkvc_scheme_check(&o, NULL, &err), VQKVC_E_USAGE);
    cr_expect_not_null(strstr(err.msg, "--frame"), "%s", err.msg);
    err = (vqkvc_err){0};
    o = parsed("--scheme=aqua", "--bits=3");
    cr_expect_eq(vqkvc_scheme_check(&o, NULL, &err), VQKVC_OK, "%s", err.msg);
    o = parsed("--scheme=q4_0", "--block=128");
    cr_expect_eq(vqkvc_scheme_check(&o, NULL, &err), VQKVC_OK, "%s", err.msg);
}

/* What could not be made from any capture is refused before one is taken. */
Test(scheme_table, values_that_a_scheme_cannot_do_are_refused)
{
    static const struct {
        const char *scheme, *option, *names;
    } bad[] = {{"--scheme=svdq", "--schedule=foo", "schedule 'foo'"},
               {"--scheme=svdq", "--schedule=0,0,0,0,0,0,0,0", "drops every latent"},
               {"--scheme=svdq", "--group=24", "24 tokens share a range"},
               {"--scheme=auto", "--without=typo", "--without is 'typo'"},
               {"--scheme=auto", "--without=gain,typo", "--without is 'typo'"},
               {"--scheme=aqua", "--grid=3", "a grid of 3 channels"},
               {"--scheme=aqua", "--bits=2.5", "--bits is 2.5"},
               {"--scheme=anchor", "--bits=1", "--bits is 1"},
               {"--scheme=anchor", "--anchor-every=100", "every 100 layers"},
               {"--scheme=vqkv", "--stages=56", "--stages is '56'"},
               {"--scheme=vqkv", "--stages=200,16", "200 stages of 10 bits for K"},
               {"--scheme=vqkv", "--stage-bits=10,17", "17 bits for V"},
               {"--scheme=vqkv", "--stage-bits=10,9,8", "--stage-bits is"},
               {"--scheme=vqkv", "--stages=99999999999,1", "--stages is"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        vqkvc_err err = {0};
        vqkvc_options o = parsed(bad[i].scheme, bad[i].option);
        cr_expect_eq(vqkvc_scheme_check(&o, NULL, &err), VQKVC_E_USAGE, "%s %s", bad[i].scheme,
                     bad[i].option);
        cr_expect_not_null(strstr(err.msg, bad[i].names), "'%s' lacks '%s'", err.msg, bad[i].names);
    }
    vqkvc_err err = {0};
    vqkvc_options list = parsed(NULL, NULL);
    cr_expect_eq(vqkvc_scheme_apply("aqua2.5", &list, &err), VQKVC_E_USAGE);
    cr_expect_not_null(strstr(err.msg, "--bits is 2.5"), "%s", err.msg);
    err = (vqkvc_err){0};
    vqkvc_geometry g = {.n_kv_heads = 1, .head_dim = 12, .rope_layout = VQKVC_ROPE_NONE};
    vqkvc_options o = parsed("--scheme=svdq", NULL);
    cr_expect_eq(vqkvc_scheme_check(&o, &g, &err), VQKVC_E_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, "12 channels"), "%s", err.msg);
    err = (vqkvc_err){0};
    o = parsed("--scheme=vqkv", "--branches=2");
    cr_expect_eq(vqkvc_scheme_check(&o, &g, &err), VQKVC_E_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, "0 channels are rotated"), "%s", err.msg);
}

/* Every word that a list takes by default can be built, on a plain model. */
Test(scheme_table, words_of_the_suite_pass_their_checks)
{
    static const char *const words[] = {"auto0.5", "vqkv",         "aqua2",     "aqua3",
                                        "anchor2", "svdq2-higgs2", "kvquant3-1"};
    vqkvc_geometry g = {.n_kv_heads = 8,
                        .n_heads = 8,
                        .head_dim = 128,
                        .rope_layout = VQKVC_ROPE_HALVES,
                        .n_rot = 128};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        vqkvc_err err = {0};
        vqkvc_options o = parsed(NULL, NULL);
        cr_assert_eq(vqkvc_scheme_apply(words[i], &o, &err), VQKVC_OK, "%s", err.msg);
        cr_expect_eq(vqkvc_scheme_check(&o, &g, &err), VQKVC_OK, "%s: %s", words[i], err.msg);
    }
}

/* What a plan depends on is in its recipe, what it does not depend on is not. */
Test(scheme_table, recipes_hold_the_options_of_their_scheme_alone)
{
    vqkvc_options a = parsed("--scheme=svdq", NULL), b = parsed("--scheme=svdq", "--group=16");
    vqkvc_options c = parsed("--scheme=svdq", "--seed=2"), d = parsed("--scheme=svdq", "--sink=2");
    char *texts[] = {recipe(&a), recipe(&b), recipe(&c), recipe(&d)};
    for (int i = 1; i < 4; i++)
        cr_expect_str_neq(texts[0], texts[i]);
    cr_expect_not_null(strstr(texts[1], ";group=16"), "%s", texts[1]);
    cr_expect_null(strstr(texts[0], "max-scan"), "%s", texts[0]);
    for (int i = 0; i < 4; i++)
        free(texts[i]);
    vqkvc_options f16 = parsed("--scheme=f16", NULL), seeded = parsed("--scheme=f16", "--seed=2");
    char *plain = recipe(&f16), *other = recipe(&seeded);
    cr_expect_str_eq(plain, other);
    free(plain);
    free(other);
}

Test(scheme_table, the_canonical_command_says_what_a_list_s_word_means)
{
    vqkvc_options o = parsed(NULL, NULL);
    vqkvc_err err = {0};
    vqkvc_buf text = {0};
    cr_assert_eq(vqkvc_scheme_apply("svdq2-higgs2", &o, &err), VQKVC_OK);
    vqkvc_pipeline_command(&o, &text);
    cr_expect_str_eq(text.data, "vqkvc build model.gguf --scheme svdq --schedule 8,4,2,1,1,0,0,0 "
                                "--values higgs2 --self --seed 1");
    free(text.data);
}

/* Whether `word` stands in the text with no letter or digit next to it. */
static int mentions(const char *text, const char *word)
{
    const char *at = text;
    while ((at = strstr(at, word)) != NULL) {
        char after = at[strlen(word)];
        if ((at == text || strchr(" \"(`", at[-1]) != NULL) && strchr(" \n,;.\"`", after) != NULL)
            return 1;
        at++;
    }
    return 0;
}

Test(scheme_table, the_manual_and_help_describe_every_scheme)
{
    const vqkvc_scheme *s;
    vqkvc_buf manual = {0}, help = {0};
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_read_file("docs/vqkvc.1", 1 << 20, &manual, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_options_help(&vqkvc_command_plan, &help);
    const char *section = strstr(manual.data, ".SH SCHEMES");
    cr_assert_not_null(section);
    for (int i = 0; (s = vqkvc_scheme_at(i)) != NULL; i++) {
        char line[64];
        cr_expect(mentions(section, s->name), "docs/vqkvc.1 has no %s", s->name);
        snprintf(line, sizeof line, "\n  %s ", s->name);
        cr_expect_not_null(strstr(help.data, line), "help has no %s", s->name);
    }
    free(manual.data);
    free(help.data);
}
