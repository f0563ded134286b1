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
#include "base/rng.h"
#include "eval/plot.h"
#include "eval/table.h"

#define MODEL "tests/data/toy_llama.gguf"
#define HEAD                                                                                       \
    "text,context,windows,step,scheme,calibration,vectors,codes,stored,total,scan,kl,ppl_percent," \
    "top1,worst_kl,factor\n"

static char folder[64];

static void write_file(const char *name, const char *text, size_t n)
{
    char path[96];
    vqkvc_err err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    cr_assert_eq(vqkvc_write_file(path, text, n, &err), VQKVC_OK, "%s", err.msg);
}

/* Most of the time would go into optimising headers that are run for a moment: a compiler that does
 * not, and that leaves vector kernels out. */
static void make_compiler(void)
{
    static const char text[] = "exec cc \"$@\" -O0 -DTOY_KV_NO_SIMD\n";
    char command[96];
    write_file("cc.sh", text, sizeof text - 1);
    snprintf(command, sizeof command, "sh %s/cc.sh", folder);
    setenv("CC", command, 1);
}

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/vqkvc-suite-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    unsetenv("VQKVC_DB");
    make_compiler();
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(suite, .init = make_folder, .fini = remove_folder);

/* Runs `vqkvc COMMAND MODEL` with more words, %s in them the folder; its exit status. Both outputs
 * go to the folder. */
static int run_command(const char *command, const char *words)
{
    const char *program = getenv("VQKVC");
    char line[2048], args[1024];
    snprintf(args, sizeof args, words, folder, folder, folder);
    snprintf(line, sizeof line, "%s %s " MODEL " %s >%s/out 2>%s/err",
             program != NULL ? program : "build/vqkvc", command, args, folder, folder);
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int run(const char *words)
{
    return run_command("suite --no-db", words);
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
    char scheme[32], calibration[40], vectors[16];
    double codes, stored, total, scan, kl, ppl_percent, top1, worst, factor;
} line;

static line parse_line(const char *text)
{
    line l = {.factor = 0};
    const char *at = strstr(text, ",1,16,"); /* behind the text's name, which may be quoted */
    cr_assert_not_null(at);
    int n = sscanf(at,
                   ",1,16,%31[^,],%39[^,],%15[^,],%lf,%lf,%lf,%lf,%lf,%lf,%lf,"
                   "%lf,%lf\n",
                   l.scheme, l.calibration, l.vectors, &l.codes, &l.stored, &l.total, &l.scan,
                   &l.kl, &l.ppl_percent, &l.top1, &l.worst, &l.factor);
    cr_assert(n == 11 || n == 12, "not a line of the table: %.120s", text);
    cr_assert(l.codes <= l.stored && l.stored <= l.total && l.stored <= 16 && l.kl >= 0 &&
              l.kl <= l.worst && l.top1 >= 0 && l.top1 <= 1 && l.ppl_percent > -100);
    return l;
}

/* The lines behind the head; their number. */
static int parse_csv(const char *csv, line lines[16])
{
    int n = 0;
    cr_assert_eq(strncmp(csv, HEAD, strlen(HEAD)), 0, "%.200s", csv);
    for (const char *at = strchr(csv, '\n') + 1; *at != '\0'; at = strchr(at, '\n') + 1) {
        cr_assert_lt(n, 16);
        lines[n++] = parse_line(at);
    }
    return n;
}

Test(suite, rates_and_schemes_make_one_table_and_a_picture)
{
    static const char *const schemes[] = {"auto1",     "auto3", "auto1-any",
                                          "auto3-any", "q8_0",  "higgs2"};
    static const char *const legend[] = {"auto", "q8_0", "higgs2"};
    cr_assert_eq(run("--rates 1,3 --any-scan --schemes q8_0,higgs2 --n-tokens 1024 --windows 1 "
                     "--context 192 --step 16 --csv %s/t.csv --svg %s/t.svg"),
                 0);
    char *csv = read_back("t.csv"), *svg = read_back("t.svg"), *out = read_back("out");
    line lines[16];
    cr_assert_eq(parse_csv(csv, lines), 6);
    for (int i = 0; i < 6; i++) {
        cr_assert_str_eq(lines[i].scheme, schemes[i]);
        cr_assert_str_eq(lines[i].calibration, i < 4 ? "self" : "none");
        cr_assert(i == 2 || i == 3 || strcmp(lines[i].vectors, "absorbed") == 0);
        cr_assert_not_null(strstr(out, schemes[i]));
    }
    for (int i = 0; i < 3; i++) {
        char label[40];
        snprintf(label, sizeof label, ">%s</text>", legend[i]);
        cr_assert_not_null(strstr(svg, label));
    }
    expect_well_formed(svg);
    cr_assert(lines[0].stored <= 1 + 1e-9 && lines[1].stored <= 3 + 1e-9);
    cr_assert_lt(lines[1].kl, lines[0].kl, "3 bits are worse than 1");
    cr_assert_lt(lines[3].kl, lines[2].kl, "3 bits are worse than 1");
    cr_assert_lt(lines[4].kl, lines[5].kl, "8 bits are worse than 2");
    cr_assert_lt(lines[4].kl, lines[1].kl, "8 bits are worse than 3");
    free(csv);
    free(svg);
    free(out);
}

/* Rows that count tables are there at their own rates, which hold them. */
Test(suite, rows_that_count_tables_have_rates_of_their_own)
{
    line lines[16];
    cr_assert_eq(run("--rates 1 --tables-at 192 --tables-rates 3,7 --schemes none --n-tokens 1024 "
                     "--windows 1 --context 192 --step 16 --csv %s/t.csv"),
                 0);
    char *csv = read_back("t.csv");
    cr_assert_eq(parse_csv(csv, lines), 3);
    cr_assert_str_eq(lines[0].scheme, "auto1");
    cr_assert_str_eq(lines[1].scheme, "auto3-tables");
    cr_assert_str_eq(lines[2].scheme, "auto7-tables");
    cr_assert_lt(lines[1].stored, 3);
    cr_assert_lt(lines[2].kl, lines[1].kl);
    free(csv);
}

/* What a run measured, the next one finds; only what is new in it is measured. */
Test(suite, figures_are_kept_and_not_measured_again)
{
    static const char words[] =
        "--db %s/t.db --rates none --windows 1 --context 140 --step 16 --csv %s/t.csv --schemes ";
    char first[256], second[256];
    snprintf(first, sizeof first, "%sq8_0", words);
    snprintf(second, sizeof second, "%sq4_0,q8_0", words);
    cr_assert_eq(run_command("suite", first), 0);
    char *before = read_back("t.csv");
    cr_assert_eq(run_command("eval --suite", second), 0);
    char *after = read_back("t.csv"), *err = read_back("err");
    cr_assert_not_null(strstr(err, "1 figures to measure, 1 found"), "%s", err);
    cr_assert_not_null(strstr(err, "compile: 1 headers"), "%s", err);
    cr_assert_not_null(strstr(after, strchr(before, '\n') + 1), "the line of q8_0 has changed");
    free(before);
    free(after);
    free(err);
}

Test(suite, ablations_are_held_against_the_whole)
{
    line lines[16];
    cr_assert_eq(run("--rates none --schemes none --ablations --n-tokens 1024 "
                     "--windows 1 --context 160 --step 16 --csv %s/t.csv"),
                 0);
    char *csv = read_back("t.csv");
    int n = parse_csv(csv, lines);
    cr_assert_geq(n, 3);
    cr_assert_str_eq(lines[0].scheme, "auto2");
    cr_assert_eq(lines[0].factor, 1);
    for (int i = 1; i < n; i++) {
        cr_assert_eq(strncmp(lines[i].scheme, "auto2 without ", 14), 0, "%s", lines[i].scheme);
        cr_assert_float_eq(lines[i].factor / (lines[i].kl / lines[0].kl), 1, 2e-3);
    }
    free(csv);
}

/* Words of letters that come and go, for the toy's tokenizer; seed: another text. */
static void write_text(const char *name, uint64_t seed)
{
    char text[6000];
    vqkvc_rng rng = vqkvc_rng_make(seed, 0);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = " abcdefghijklmnop"[vqkvc_rng_below(&rng, 8 + i % 9)];
    write_file(name, text, sizeof text);
}

/* A text and a calibration of each of two kinds. */
Test(suite, other_calibrations_are_held_against_the_matched_one)
{
    static const char *const names[] = {"a.txt", "b.txt", "a.txt 1/8", "self"};
    char words[512];
    line lines[16];
    write_text("a.txt", 1);
    write_text("b.txt", 2);
    snprintf(words, sizeof words,
             "--rates none --schemes none --n-tokens 4096 --calibrate %s/a.txt --robust %s/b.txt "
             "--text %s/a.txt --text %s/b.txt --windows 1 --context 140 --step 16 --csv %s/t.csv",
             folder, folder, folder, folder, folder);
    cr_assert_eq(run(words), 0);
    char *csv = read_back("t.csv");
    cr_assert_eq(parse_csv(csv, lines), 8);
    for (int i = 0; i < 8; i++) {
        const line *matched = &lines[i < 4 ? 0 : 5];
        cr_assert_str_eq(lines[i].scheme, "auto2");
        cr_assert_str_eq(lines[i].calibration, names[i % 4]);
        cr_assert_float_eq(lines[i].factor / (lines[i].kl / matched->kl), 1, 2e-3);
    }
    free(csv);
}

Test(suite, presets_alone_need_no_calibration_and_outputs_go_where_they_should)
{
    const char *words = "--rates none --schemes q8_0 --windows 1 --context 140 --step 70 --csv -";
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
        {"--svg %s/no/t.svg", "t.svg", 3}, {"--text Makefile --windows 999", "do not fit", 2},
        {"--robust %s/x", "two texts", 2},
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
    vqkvc_measured measured = {
        .late = {.kl = 1.25e-3, .ppl_ratio = 1.5, .top1 = .5, .worst_kl = 2}};
    vqkvc_row rows[] = {{.scheme = "x"},
                        {.scheme = "y",
                         .cost = &cost,
                         .measured = &measured,
                         .calibration = "c,d",
                         .vectors = "absorbed",
                         .factor = 2}};
    vqkvc_table_csv(&info, rows, 2, 1, &out);
    vqkvc_table_csv(&info, rows, 1, 0, &out);
    cr_assert_str_eq(out.data,
                     HEAD "\"a \"\"b\"\", c\",8,2,1,x,,,,,,,,,,,\n"
                          "\"a \"\"b\"\", c\",8,2,1,y,\"c,d\",absorbed,1.0000,1.2500,4.0000,"
                          "2.0000,1.250e-03,50.000,0.5000,2.00e+00,2.000\n"
                          "\"a \"\"b\"\", c\",8,2,1,x,,,,,,,,,,,\n");
    free(out.data);
}

Test(parts, tables_leave_out_columns_without_figures)
{
    vqkvc_buf out = {0};
    vqkvc_table_info info = {.model = "m", .text = "t", .context = 8, .n_windows = 2, .step = 1};
    vqkvc_measured measured = {
        .late = {.kl = 1.25e-3, .ppl_ratio = 1.5, .top1 = .5, .worst_kl = 2}};
    vqkvc_row row = {.scheme = "y", .measured = &measured};
    vqkvc_table_markdown(&info, &row, 1, &out);
    cr_assert_not_null(strstr(out.data, "| scheme | stored | KL | ppl | top-1 | worst KL |\n"
                                        "|---|---:|---:|---:|---:|---:|\n"
                                        "| y | 0.000 | 0.00125 | +50.000 % | 50.00 % | 2 |\n"),
                       "%s", out.data);
    free(out.data);
}

Test(parts, figures_come_back_from_json_to_the_last_bit)
{
    vqkvc_buf json = {0};
    vqkvc_err err = {0};
    vqkvc_table_info info = {.model = "m", .text = "t", .context = 8, .n_windows = 2, .step = 1};
    vqkvc_fidelity f = {9, 1. / 3, 2. / 7, 1e-17, 1 + 1e-15, .123456789012345678, 2, 1, 5};
    vqkvc_measured measured = {.late = f, .all = f, .stored_bits = 1e300, .used_bits = 0};
    vqkvc_measured back;
    vqkvc_row row = {.scheme = "y", .measured = &measured};
    cr_assert_eq(vqkvc_table_json(&info, &row, 1, &json, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_table_read(json.data, &back, &err), VQKVC_OK, "%s", err.msg);
    cr_assert(back.late.n == 9 && back.late.kl == f.kl && back.late.ppl_exact == f.ppl_exact &&
              back.late.ppl == f.ppl && back.late.ppl_ratio == f.ppl_ratio &&
              back.all.top1 == f.top1 && back.late.worst_kl == 2 && back.all.worst_window == 1 &&
              back.all.worst_pos == 5 && back.stored_bits == 1e300);
    static const char *const wrong[] = {"",
                                        "[]",
                                        "{}",
                                        "{\"schemes\":[]}",
                                        "{\"schemes\":[{}]}",
                                        "{\"schemes\":[{\"fidelity\":{\"late\":3}}]}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err = (vqkvc_err){0};
        cr_assert_eq(vqkvc_table_read(wrong[i], &back, &err), VQKVC_E_FORMAT, "%s", wrong[i]);
    }
    free(json.data);
}

/* Coordinates of the points of a line of class f0, in order. */
static int path_points(const char *svg, double x[8])
{
    const char *at = strstr(svg, "class=\"line f0 thick\" d=\"");
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
    static const vqkvc_plot_point points[] = {{"d2", "d", 2, 3e-3},
                                              {"c1", "c", 1, 1e-2},
                                              {"zero & <none>", "zero", 16, 0},
                                              {"c2", "c", 2, 1e-3},
                                              {"c4", "c", 4, 1e-4}};
    const vqkvc_plot_panel panels[] = {{"left", "bits", 5, points}, {"right", "bits", 1, points}};
    const vqkvc_plot plot = {"<T> & more\x01", "KL", "c"};
    vqkvc_buf a = {0}, b = {0};
    double x[8];
    vqkvc_plot_svg(&plot, panels, 2, &a);
    vqkvc_plot_svg(&plot, panels, 2, &b);
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
    const vqkvc_plot plot = {"t", "y", NULL};
    for (int n = 0; n <= 1; n++) {
        vqkvc_buf out = {0};
        const vqkvc_plot_panel panel = {"p", "x", n, &point};
        vqkvc_plot_svg(&plot, &panel, 1, &out);
        expect_well_formed(out.data);
        cr_assert_null(strstr(out.data, "nan"));
        cr_assert_null(strstr(out.data, "inf"));
        free(out.data);
    }
}
