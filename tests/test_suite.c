/* The fidelity table: vqkvc suite as people run it, and the parts that write its CSV and its
 * picture.
 *
 * $VQKVC names the program, build/vqkvc by default. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "eval/plot.h"
#include "eval/table.h"

#define MODEL  "examples/models/ref7m.gguf"
#define TOKENS "tests/data/ref7m_tokens.i32"
#define HEAD   "text,context,windows,step,scheme,codes,stored,total,scan,kl,ppl_ratio,top1,worst_kl\n"

static char folder[64];

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/vqkvc-suite-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    unsetenv("VQKVC_DB");
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(suite, .init = make_folder, .fini = remove_folder);

/* Runs `vqkvc suite MODEL` with more words, %s in them the folder; its exit status. Both outputs go
 * to the folder. */
static int run(const char *words)
{
    const char *program = getenv("VQKVC");
    char command[2048], args[1024];
    snprintf(args, sizeof args, words, folder, folder);
    snprintf(command, sizeof command, "%s suite " MODEL " --no-db %s >%s/out 2>%s/err",
             program != NULL ? program : "build/vqkvc", args, folder, folder);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* For free(). */
static char *read_back(const char *name)
{
    char path[96];
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    cr_assert_eq(vqkvc_read_file(path, 1 << 20, &buf, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_not_null(buf.data);
    return buf.data;
}

/* Elements nest and close, attributes are quoted, text has no stray < or &: well-formed, for the
 * simple documents that the tool writes. */
static void expect_well_formed(const char *svg)
{
    char open[32][16];
    int depth = 0, elements = 0;
    for (const char *at = svg; *at != '\0'; at++) {
        if (*at == '&')
            cr_assert(strncmp(at, "&amp;", 5) == 0 || strncmp(at, "&lt;", 4) == 0 ||
                          strncmp(at, "&gt;", 4) == 0,
                      "stray & at %.20s", at);
        cr_assert(*at == '\n' || (unsigned char)*at >= ' ');
        if (*at != '<')
            continue;
        const char *end = strchr(at, '>');
        cr_assert_not_null(end, "no end of %.20s", at);
        int closes = at[1] == '/', empty = end[-1] == '/', quotes = 0;
        for (const char *c = at + 1; c < end; c++) {
            cr_assert_neq(*c, '<');
            quotes += *c == '"';
        }
        cr_assert_eq(quotes % 2, 0, "quotes of %.40s", at);
        char name[16];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 1 + closes, " >/"), at + 1 + closes);
        elements++;
        if (closes) {
            cr_assert_gt(depth, 0);
            cr_assert_str_eq(open[--depth], name);
        } else if (!empty) {
            cr_assert_lt(depth, 32);
            strcpy(open[depth++], name);
        }
        cr_assert(depth > 0 || *(end + 1) == '\n', "text behind the root");
        at = end;
    }
    cr_assert_eq(depth, 0);
    cr_assert_gt(elements, 10);
}

/* ---- the command ---- */

/* The fields of a line of the CSV, which has no quoted ones here. */
typedef struct line {
    char scheme[32];
    double codes, stored, total, scan, kl, ppl_ratio, top1, worst;
} line;

static line parse_line(const char *text)
{
    line l;
    int n = sscanf(text, "ref7m_tokens.i32,256,1,16,%31[^,],%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf\n",
                   l.scheme, &l.codes, &l.stored, &l.total, &l.scan, &l.kl, &l.ppl_ratio, &l.top1,
                   &l.worst);
    cr_assert_eq(n, 9, "not a line of the table: %.120s", text);
    cr_assert(l.codes <= l.stored && l.stored <= 16 && l.kl >= 0 && l.kl <= l.worst &&
              l.top1 >= 0 && l.top1 <= 1 && l.ppl_ratio > 0);
    return l;
}

Test(suite, rates_and_baselines_make_one_table_and_a_picture)
{
    static const char *const schemes[] = {"auto1", "auto3", "q8_0", "higgs2"};
    cr_assert_eq(run("--rates 1,3 --schemes q8_0,higgs2 --n-tokens 512 --tokens " TOKENS
                     " --windows 1 --context 256 --step 16 --csv %s/t.csv --svg %s/t.svg"),
                 0);
    char *csv = read_back("t.csv"), *svg = read_back("t.svg"), *out = read_back("out");
    line lines[4];
    cr_assert_eq(strncmp(csv, HEAD, strlen(HEAD)), 0);
    const char *at = csv;
    for (int i = 0; i < 4; i++) {
        at = strchr(at, '\n') + 1;
        lines[i] = parse_line(at);
        cr_assert_str_eq(lines[i].scheme, schemes[i]);
        cr_assert_not_null(strstr(out, schemes[i]));
        char label[40];
        snprintf(label, sizeof label, ">%s</text>", schemes[i]);
        cr_assert_not_null(strstr(svg, label));
    }
    cr_assert_str_eq(strchr(at, '\n'), "\n", "more than four lines");
    expect_well_formed(svg);
    cr_assert(lines[0].stored <= 1 + 1e-9 && lines[1].stored <= 3 + 1e-9);
    cr_assert_lt(lines[1].kl, lines[0].kl, "3 bits are worse than 1");
    cr_assert_lt(lines[2].kl, lines[3].kl, "8 bits are worse than 2");
    cr_assert_lt(lines[2].kl, lines[1].kl, "8 bits are worse than 3");
    free(csv);
    free(svg);
    free(out);
}

Test(suite, presets_alone_need_no_calibration_and_outputs_go_where_they_should)
{
    const char *words = "--rates none --schemes q8_0 --tokens " TOKENS
                        " --windows 1 --context 140 --step 70 --csv -";
    cr_assert_eq(run(words), 0);
    char *err = read_back("err"), *out = read_back("out");
    cr_assert_null(strstr(err, "capture"));
    cr_assert_eq(strncmp(out, HEAD, strlen(HEAD)), 0);
    cr_assert_null(strstr(out, "tokens a step"), "a table in the CSV");
    free(err);
    free(out);
}

Test(suite, wrong_words_are_refused_before_any_work)
{
    static const struct {
        const char *words, *says;
        int status;
    } cases[] = {
        {"--rates 2x", "--rates", 2},      {"--rates 99", "--rates", 2},
        {"--rates 1,,2", "list", 2},       {"--rates none --schemes none", "neither", 2},
        {"--schemes q4_9", "q4_9", 2},     {"--csv - --figures", "exclude", 2},
        {"--context 100", "at least", 2},  {"--text %s/absent.txt", "absent.txt", 3},
        {"--svg %s/no/t.svg", "t.svg", 3}, {"--tokens " TOKENS " --windows 9", "do not fit", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(run(cases[i].words), cases[i].status, "%s", cases[i].words);
        char *err = read_back("err");
        cr_assert_not_null(strstr(err, cases[i].says), "%s: %s", cases[i].words, err);
        cr_assert_null(strstr(err, "capture:"));
        free(err);
    }
}

/* ---- its parts ---- */

Test(parts, csv_quotes_names_and_leaves_unknown_figures_empty)
{
    vqkvc_buf out = {0};
    vqkvc_table_info info = {.text = "a \"b\", c", .context = 8, .n_windows = 2, .step = 1};
    vqkvc_cost cost = {.code_bits = 1, .gain_bits = .25, .total_bits = 4, .scan_bits = 2};
    vqkvc_measured measured = {.late = {.kl = 1.25e-3, .ppl_ratio = 1, .top1 = .5, .worst_kl = 2}};
    vqkvc_row rows[] = {{.scheme = "x"}, {.scheme = "y", .cost = &cost, .measured = &measured}};
    vqkvc_table_csv(&info, rows, 2, 1, &out);
    vqkvc_table_csv(&info, rows, 1, 0, &out);
    cr_assert_str_eq(out.data,
                     HEAD "\"a \"\"b\"\", c\",8,2,1,x,,,,,,,,\n"
                          "\"a \"\"b\"\", c\",8,2,1,y,1.0000,1.2500,4.0000,2.0000,1.250e-03,"
                          "1.00000,0.5000,2.00e+00\n"
                          "\"a \"\"b\"\", c\",8,2,1,x,,,,,,,,\n");
    free(out.data);
}

/* Coordinates of the first line's points, in order. */
static int path_points(const char *svg, double x[8])
{
    const char *at = strstr(svg, "class=\"line f0\" d=\"");
    int n = 0, used;
    double y;
    cr_assert_not_null(at);
    at = strchr(strstr(at, "d=") + 2, '"') + 1;
    while (n < 8 && sscanf(at + 1, "%lf %lf%n", &x[n], &y, &used) == 2) {
        at += 1 + used;
        n++;
    }
    return n;
}

Test(parts, a_picture_joins_families_in_order_and_is_the_same_bytes_each_time)
{
    static const vqkvc_plot_point points[] = {{"c4", "c", 4, 1e-4},
                                              {"zero & <none>", NULL, 16, 0},
                                              {"c1", "c", 1, 1e-2},
                                              {"d2", "d", 2, 3e-3},
                                              {"c2", "c", 2, 1e-3}};
    const vqkvc_plot plot = {"<T> & more\x01", "bits", "KL"};
    vqkvc_buf a = {0}, b = {0};
    double x[8];
    vqkvc_plot_svg(&plot, points, 5, &a);
    vqkvc_plot_svg(&plot, points, 5, &b);
    expect_well_formed(a.data);
    cr_assert_str_eq(a.data, b.data);
    cr_assert_not_null(strstr(a.data, ">zero &amp; &lt;none&gt;</text>"));
    cr_assert_not_null(strstr(a.data, "prefers-color-scheme:dark"));
    cr_assert_null(strstr(a.data, "nan"));
    cr_assert_eq(path_points(a.data, x), 3);
    cr_assert(x[0] < x[1] && x[1] < x[2]);
    cr_assert_float_eq(x[1] - x[0], x[2] - x[1], 0.11, "the axis is not logarithmic");
    cr_assert_not_null(strstr(a.data, "class=\"line f1\""));
    free(a.data);
    free(b.data);
}

Test(parts, a_picture_of_one_point_or_none_is_sound)
{
    static const vqkvc_plot_point point = {"one", "one", 2, 1e-3};
    const vqkvc_plot plot = {"t", "x", "y"};
    for (int n = 0; n <= 1; n++) {
        vqkvc_buf out = {0};
        vqkvc_plot_svg(&plot, &point, n, &out);
        expect_well_formed(out.data);
        cr_assert_null(strstr(out.data, "nan"));
        cr_assert_null(strstr(out.data, "inf"));
        free(out.data);
    }
}
