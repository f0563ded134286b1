/* vqkvc bench: how fast attention is at a shape, whatever model has it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/commands.h"
#include "command/pipeline.h"
#include "command/time_store.h"
#include "eval/calibrate.h"
#include "eval/speed.h"
#include "eval/speed_encode.h"
#include "eval/synthetic.h"

/* Below this context the window of exact tokens is a good part of what is timed, or all of it. */
enum { MAX_SCHEMES = 32, ENCODED_HEADS = 8, LEAST_CALIBRATED = 4096 };

typedef struct bench {
    const vqkvc_options *options;
    vqkvc_arena arena;
    vqkvc_geometry g;
    int n;
    char names[MAX_SCHEMES][32];
    vqkvc_codec codecs[MAX_SCHEMES];
    vqkvc_subject subjects[MAX_SCHEMES];
    int blocks[MAX_SCHEMES]; /* tokens that are coded together */
    double scan_bits[MAX_SCHEMES];
    vqkvc_timing timings[MAX_SCHEMES];
    vqkvc_encode_timing encoding[MAX_SCHEMES];
    vqkvc_speed speed;
    vqkvc_time_model model; /* head_dim 0: none is given */
    double predicted[MAX_SCHEMES], least[MAX_SCHEMES];
} bench;

static vqkvc_code load_scheme(bench *b, int i, vqkvc_err *err)
{
    vqkvc_plan plan = {0};
    vqkvc_cost cost;
    const char *prefix;
    vqkvc_buf header = {0};
    VQKVC_TRY(vqkvc_synthetic_plan(&plan, &b->g, b->names[i], b->options->block, err));
    vqkvc_plan_cost(&plan, b->options->context, &cost);
    b->blocks[i] = plan.block;
    b->scan_bits[i] = cost.scan_bits;
    b->predicted[i] = b->model.head_dim > 0 ? vqkvc_time_predict(&b->model, &plan) : -1;
    if (vqkvc_emit_plan(&plan, "vqkvc bench", "bench_kv", &b->arena, &prefix, &header, err) ==
        VQKVC_OK)
        vqkvc_codec_load(&b->codecs[i], b->names[i], header.data, header.len, err);
    b->subjects[i] = (vqkvc_subject){b->names[i], &b->codecs[i], 0};
    free(header.data);
    vqkvc_plan_free(&plan);
    return err->code;
}

static vqkvc_code load_schemes(bench *b, vqkvc_err *err)
{
    for (const char *names = b->options->schemes; *names != '\0';) {
        size_t n = strcspn(names, ",");
        if (b->n == MAX_SCHEMES || n >= sizeof *b->names)
            return vqkvc_fail(err, VQKVC_E_USAGE, "bench: --schemes: more than %d, or too long",
                              MAX_SCHEMES);
        memcpy(b->names[b->n], names, n);
        VQKVC_TRY(load_scheme(b, b->n++, err));
        names += n + (names[n] == ',');
    }
    return VQKVC_OK;
}

/* ---- results ---- */

typedef struct in_tree_row {
    const char *name;
    double bits;
    const vqkvc_timing *timing;
} in_tree_row;

/* block: 0 for none. */
static void put_line(const bench *b, const char *name, int block, double bits,
                     const vqkvc_timing *t, const vqkvc_encode_timing *e, vqkvc_buf *text,
                     vqkvc_buf *csv)
{
    const vqkvc_options *o = b->options;
    vqkvc_buf_printf(text, "%-12s %5.2f  %8.2f  %8.2f .. %-8.2f %6.2f  %5.1f %%  %6.2f\n", name,
                     bits, t->ns, t->ns_min, t->ns_max, t->floor_ns, 100 * t->floor_ns / t->ns,
                     b->speed.f16.ns / t->ns);
    vqkvc_buf_printf(csv, "%s,%s,%d,%d,%d,%d,%d,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f\n",
                     name, o->isa, o->head_dim, o->query_group, o->context, block, o->workers, bits,
                     t->ns, t->ns_min, t->ns_max, t->floor_ns, t->prefill_ns, e->decode, e->prefill,
                     e->worst);
}

/* The in-tree attentions; those that were not timed have no name. */
static int in_tree(const bench *b, in_tree_row *rows)
{
    const vqkvc_speed *s = &b->speed;
    rows[0] = (in_tree_row){"f16 in tree", 16, &s->f16};
    rows[1] = (in_tree_row){"q8_0 in tree", 8.5, &s->q8_0};
    rows[2] = (in_tree_row){"q4_0 in tree", 4.5, &s->q4_0};
    return s->q8_0.ns > 0 ? 3 : 1;
}

/* Writing, and attention of many queries. */
static void put_writing(const bench *b, vqkvc_buf *text)
{
    in_tree_row rows[3];
    int n = in_tree(b, rows);
    vqkvc_buf_puts(text,
                   "\nscheme        us to append a token to a layer        longest   32 queries  "
                   "x f16\n"
                   "                  one a call   256 a call      call, us  ns/token\n");
    for (int i = 0; i < b->n + n; i++) {
        const vqkvc_timing *t = i < b->n ? &b->timings[i] : rows[i - b->n].timing;
        vqkvc_buf_printf(text, "%-12s", i < b->n ? b->names[i] : rows[i - b->n].name);
        if (i < b->n)
            vqkvc_buf_printf(text, "  %14.2f  %11.2f  %12.0f", b->encoding[i].decode,
                             b->encoding[i].prefill, b->encoding[i].worst);
        else
            vqkvc_buf_printf(text, "%43s", "");
        vqkvc_buf_printf(text, "  %8.2f  %5.2f\n", t->prefill_ns,
                         b->speed.f16.prefill_ns / t->prefill_ns);
    }
}

/* What the cost model says, next to what is measured as the model was. */
static void put_predicted(const bench *b, vqkvc_buf *text)
{
    if (b->model.head_dim == 0)
        return;
    vqkvc_buf_puts(text, "\nscheme      cost model, ns  measured, ns  model / measured\n");
    for (int i = 0; i < b->n; i++)
        if (b->predicted[i] >= 0)
            vqkvc_buf_printf(text, "%-10s  %14.2f  %12.2f  %16.2f\n", b->names[i], b->predicted[i],
                             b->least[i], b->predicted[i] / b->least[i]);
}

/* The mean over layers of the least time. */
static vqkvc_code time_like_model(bench *b, const vqkvc_log *log, vqkvc_err *err)
{
    const vqkvc_options *o = b->options;
    vqkvc_calibration options = {
        .context = o->context, .isa = vqkvc_isa_of(o), .seed = o->seed, .log = log};
    const vqkvc_geometry *g[MAX_SCHEMES];
    double *ns[MAX_SCHEMES];
    if (b->model.head_dim == 0)
        return VQKVC_OK;
    for (int i = 0; i < b->n; i++) {
        g[i] = &b->g;
        ns[i] = vqkvc_arena_alloc(&b->arena, (size_t)b->g.n_layers, sizeof *ns[i], err);
    }
    if (err->code == VQKVC_OK)
        vqkvc_calibrate(b->n, g, b->codecs, &options, ns, err);
    for (int i = 0; i < b->n && err->code == VQKVC_OK; i++)
        for (int l = 0; l < b->g.n_layers; l++)
            b->least[i] += ns[i][l] / b->g.n_layers;
    return err->code;
}

static void put_tables(const bench *b, vqkvc_buf *text, vqkvc_buf *csv)
{
    const vqkvc_options *o = b->options;
    const vqkvc_encode_timing none = {0};
    in_tree_row rows[3];
    int n = in_tree(b, rows);
    vqkvc_buf_printf(
        text,
        "head_dim %d, %d query heads a KV head, %d tokens, %s; %d thread%s; "
        "%.1f GB/s read; in tree in %s\n"
        "scheme        scan   ns/token       range            floor  of floor  x f16\n",
        o->head_dim, o->query_group, o->context, o->isa, o->workers, o->workers > 1 ? "s" : "",
        b->speed.bandwidth * 1e-9, b->speed.f16_isa);
    vqkvc_buf_puts(csv,
                   "scheme,isa,head_dim,group,context,block,workers,scan_bits,ns,ns_min,ns_max,"
                   "floor_ns,prefill_ns,append_us,append256_us,longest_us\n");
    for (int i = 0; i < b->n; i++)
        put_line(b, b->names[i], b->blocks[i], b->scan_bits[i], &b->timings[i], &b->encoding[i],
                 text, csv);
    for (int i = 0; i < n; i++)
        put_line(b, rows[i].name, 0, rows[i].bits, rows[i].timing, &none, text, csv);
    put_writing(b, text);
}

/* "speed.attend_ns.auto2.16k 4.1 ns": the least of the repeats, which other work on the machine
 * disturbs least; and what a token's K and V of 8 KV heads of a layer take to encode. With an
 * instruction set that was asked for behind it, and then nothing in tree: that has the best. */
static void put_figures(const bench *b, vqkvc_buf *text)
{
    static const char *const names[] = {"f16", "q8_0", "q4_0"};
    const vqkvc_options *o = b->options;
    int best = strcmp(o->isa, "best") == 0, k = o->context / 1024;
    const char *dot = best ? "" : ".", *isa = best ? "" : o->isa;
    in_tree_row rows[3];
    int n = best ? in_tree(b, rows) : 0;
    for (int i = 0; i < b->n; i++) {
        vqkvc_buf_printf(text, "speed.attend_ns.%s.%dk%s%s %.3g ns\n", b->names[i], k, dot, isa,
                         b->timings[i].ns_min);
        vqkvc_buf_printf(text, "speed.encode_ns.%s%s%s %.4g ns\n", b->names[i], dot, isa,
                         b->encoding[i].prefill * 1000 * ENCODED_HEADS / o->kv_heads);
        if (best)
            vqkvc_buf_printf(text, "speed.memory_floor_ns.%s.%dk %.3g ns\n", b->names[i], k,
                             b->timings[i].floor_ns);
    }
    for (int i = 0; i < n; i++) {
        vqkvc_buf_printf(text, "speed.attend_ns.%s.%dk %.3g ns\n", names[i], k,
                         rows[i].timing->ns_min);
        vqkvc_buf_printf(text, "speed.memory_floor_ns.%s.%dk %.3g ns\n", names[i], k,
                         rows[i].timing->floor_ns);
    }
}

static vqkvc_code print_results(const bench *b, vqkvc_err *err)
{
    const vqkvc_options *o = b->options;
    vqkvc_buf text = {0}, csv = {0}, figures = {0};
    put_tables(b, &text, &csv);
    put_predicted(b, &text);
    put_figures(b, &figures);
    if (text.failed || csv.failed || figures.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the table");
    else if (o->csv != NULL)
        vqkvc_write_file(o->csv, csv.data, csv.len, err);
    if (err->code == VQKVC_OK)
        fputs(o->figures ? figures.data : text.data, stdout);
    free(text.data);
    free(csv.data);
    free(figures.data);
    return err->code;
}

static vqkvc_code time_writing(bench *b, vqkvc_err *err)
{
    for (int i = 0; i < b->n; i++)
        VQKVC_TRY(vqkvc_speed_encode(&b->g, &b->subjects[i], vqkvc_isa_of(b->options),
                                     b->options->seed, &b->encoding[i], err));
    return VQKVC_OK;
}

/* --calibrate: prints the model. */
static vqkvc_code run_calibration(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    vqkvc_time_shape shape = {.head_dim = o->head_dim,
                              .group = o->query_group,
                              .isa = vqkvc_isa_of(o),
                              .context = o->context,
                              .seed = o->seed};
    vqkvc_time_model m;
    vqkvc_buf text = {0};
    int found;
    if (o->context < LEAST_CALIBRATED)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "bench: --calibrate wants a --context of %d tokens or more, not %d",
                          LEAST_CALIBRATED, o->context);
    VQKVC_TRY(vqkvc_time_find(NULL, &shape, 0, log, &m, &found, NULL, err));
    vqkvc_time_print(&m, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a cost model");
    else
        puts(text.data);
    free(text.data);
    return err->code;
}

static vqkvc_code take_model(bench *b, vqkvc_err *err)
{
    const vqkvc_options *o = b->options;
    if (o->cost_model == NULL)
        return VQKVC_OK;
    VQKVC_TRY(vqkvc_time_given(o->cost_model, &b->g, &b->model, err));
    if (strcmp(o->isa, "best") != 0 && strcmp(o->isa, b->model.isa) != 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "bench: --cost-model is of %s, --isa asks for %s",
                          b->model.isa, o->isa);
    return VQKVC_OK;
}

static vqkvc_code run_bench(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err)
{
    if (o->calibrate_time)
        return run_calibration(o, log, err);
    bench *b = vqkvc_alloc(1, sizeof *b, err);
    if (b == NULL)
        return err->code;
    b->options = o;
    b->g = vqkvc_synthetic_geometry(o->bench_layers, o->kv_heads, o->query_group, o->head_dim);
    vqkvc_speed_options options = {.context = o->context,
                                   .repeats = o->repeats,
                                   .workers = o->workers,
                                   .isa = vqkvc_isa_of(o),
                                   .seed = o->seed,
                                   .log = log};
    if (take_model(b, err) == VQKVC_OK && load_schemes(b, err) == VQKVC_OK &&
        vqkvc_speed_measure(&b->g, b->n, b->subjects, b->scan_bits, &options, b->timings, &b->speed,
                            err) == VQKVC_OK &&
        time_writing(b, err) == VQKVC_OK && time_like_model(b, log, err) == VQKVC_OK)
        print_results(b, err);
    for (int i = 0; i < b->n; i++)
        vqkvc_codec_free(&b->codecs[i]);
    vqkvc_arena_free(&b->arena);
    free(b);
    return err->code;
}

const vqkvc_command vqkvc_command_bench = {
    .name = "bench",
    .usage = "[option...]",
    .summary = "time attention at a shape that no model at hand needs to have",
    .about =
        "Emits headers of plans with random tables, of the shapes that auto makes, fills their "
        "caches with random tokens and times attention to them, in-tree attention over fp16, "
        "q8_0 and q4_0 and a loop that only reads memory, in turn within one run. Nanoseconds are "
        "per cached token and KV head: K and V, all query heads of the group; medians with "
        "their range. Then what it costs to append (microseconds a token and layer, all KV heads, "
        "encoding included) and attention of the latest 32 tokens at once. Schemes: auto1 to auto4 "
        "(own streams, keys rotated), auto2b (keys "
        "rotated within their block), auto2s (2 bits stored, 5.3 read: streams shared by four "
        "layers and two heads; with --frame spans, bands and post of build: auto2s-spans, "
        "auto2s-bands, auto2s-post; auto2b alike), each stream as the planner made one for the "
        "bundled model, and the baselines. With --calibrate it measures the cost model of "
        "attention for the shape and prints it, for --cost-model of build on another machine.",
    .examples = "  vqkvc bench\n"
                "  vqkvc bench --schemes auto2,q4_0 --head-dim 64 --group 8 --isa avx2\n",
    .groups = {vqkvc_options_bench, vqkvc_options_run, vqkvc_options_table, vqkvc_options_general},
    .run = run_bench};
