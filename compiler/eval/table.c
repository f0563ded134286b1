#include "eval/table.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_COLUMNS = 18, CELL = 64 };

/* Titles and, for people, what is in each column. */
static const struct {
    const char *title, *words;
} columns[N_COLUMNS] = {
    {"scheme", NULL},
    {"codes", "bits a value: codes alone"},
    {"stored", "codes, gains, landmarks, exact list and block table"},
    {"total", "with the exact window and the tables, at this context"},
    {"scan", "bits read for a layer's attention, a value"},
    {"KL", "mean KL(exact || codec), nats"},
    {"ppl", "perplexity against the exact cache's"},
    {"top-1", "share of positions with the same likeliest token"},
    {"worst KL", "of one position"},
    {"factor", "KL over that of the row it is held against"},
    {"worst x", "error of a key or value read back, a part of its length"},
    {"exact", "share of coded vectors that are kept exactly for their error"},
    {"vectors", "how attention meets them: on codes, or rebuilt"},
    {"header kB", NULL},
    {"compile s", NULL},
    {"attend ns", "a cached token and KV head, one thread: median"},
    {"spread", "of attend ns: least and most of the repeats"},
    {"floor ns", "reading the scanned bytes from memory"},
};

/* The cells of one row as text; "-" where nothing is known. */
static void fill_cells(const vqkvc_row *row, char cells[N_COLUMNS][CELL])
{
    const vqkvc_measured *m = row->measured;
    const vqkvc_timing *t = row->timing;
    for (int i = 0; i < N_COLUMNS; i++)
        snprintf(cells[i], CELL, "-");
    snprintf(cells[0], CELL, "%s", row->scheme);
    if (m != NULL) {
        snprintf(cells[2], CELL, "%.3f", m->stored_bits);
        snprintf(cells[5], CELL, "%.3g", m->late.kl);
        snprintf(cells[6], CELL, "%+.3f %%", 100 * (m->late.ppl_ratio - 1));
        snprintf(cells[7], CELL, "%.2f %%", 100 * m->late.top1);
        snprintf(cells[8], CELL, "%.3g", m->late.worst_kl);
    }
    if (m != NULL && m->worst_error > 0) {
        snprintf(cells[10], CELL, "%.3f", m->worst_error);
        snprintf(cells[11], CELL, "%.2f %%", 100 * m->kept_rate);
    }
    if (row->cost != NULL) {
        snprintf(cells[1], CELL, "%.3f", row->cost->code_bits);
        snprintf(cells[2], CELL, "%.3f", vqkvc_cost_stored(row->cost));
        snprintf(cells[3], CELL, "%.3f", row->cost->total_bits);
        snprintf(cells[4], CELL, "%.3f", row->cost->scan_bits);
    }
    if (row->factor > 0)
        snprintf(cells[9], CELL, "%.3f", row->factor);
    if (row->vectors != NULL)
        snprintf(cells[12], CELL, "%s", row->vectors);
    if (row->codec != NULL) {
        snprintf(cells[13], CELL, "%.0f", (double)row->codec->header_bytes / 1000);
        snprintf(cells[14], CELL, "%.2f", row->codec->compile_seconds);
    }
    if (t != NULL) {
        snprintf(cells[15], CELL, "%.2f", t->ns);
        snprintf(cells[16], CELL, "%.2f-%.2f", t->ns_min, t->ns_max);
        if (t->floor_ns > 0)
            snprintf(cells[17], CELL, "%.2f", t->floor_ns);
    }
}

/* A line a scheme: relative error of each layer's attention output, where it was measured; or
 * (kernels) what the kernels add to it. */
static void put_layer_errors(const vqkvc_row *rows, int n, int kernels, const char *open,
                             const char *between, const char *close, vqkvc_buf *out)
{
    for (int i = 0; i < n; i++) {
        const vqkvc_measured *m = rows[i].measured;
        if (m == NULL || m->n_layers == 0)
            continue;
        vqkvc_buf_printf(out, "%s%-8s", open, rows[i].scheme);
        for (int l = 0; l < m->n_layers; l++)
            vqkvc_buf_printf(out, "%s%.4f", between,
                             kernels ? m->kernel_error[l] : m->layer_error[l]);
        vqkvc_buf_printf(out, "%s\n", close);
    }
}

static int has_layer_errors(const vqkvc_row *rows, int n)
{
    int has = 0;
    for (int i = 0; i < n; i++)
        has |= rows[i].measured != NULL && rows[i].measured->n_layers > 0;
    return has;
}

/* Rows of the table with the fp16 attention as the last one, if it was timed. */
static int row_count(const vqkvc_table_info *info, int n)
{
    return n + (info->speed != NULL);
}

static void cells_of(const vqkvc_table_info *info, const vqkvc_row *rows, int n, int i,
                     char cells[N_COLUMNS][CELL])
{
    if (i < n) {
        fill_cells(&rows[i], cells);
    } else {
        vqkvc_row f16 = {.scheme = "(fp16 attention)", .timing = &info->speed->f16};
        fill_cells(&f16, cells);
        snprintf(cells[4], CELL, "%.3f", 16.0);
    }
}

/* Width of each column, 0 for those that no row has anything in: they are left out. */
static void measure_columns(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                            int width[N_COLUMNS])
{
    char cells[N_COLUMNS][CELL];
    memset(width, 0, N_COLUMNS * sizeof *width);
    for (int i = 0; i < row_count(info, n); i++) {
        cells_of(info, rows, n, i, cells);
        for (int c = 0; c < N_COLUMNS; c++) {
            int length = (int)strlen(cells[c]), title = (int)strlen(columns[c].title);
            if (strcmp(cells[c], "-") == 0)
                continue;
            width[c] = length > width[c] ? length : width[c];
            width[c] = title > width[c] ? title : width[c];
        }
    }
}

static void put_caption(const vqkvc_table_info *info, const char *newline, vqkvc_buf *out)
{
    vqkvc_buf_printf(
        out,
        "%s on %s: %d windows of %d tokens, %d token%s a step; fidelity over positions "
        "from %d on.%s",
        info->model, info->text, info->n_windows, info->context, info->step,
        info->step == 1 ? "" : "s", info->first_counted, newline);
    if (info->speed != NULL)
        vqkvc_buf_printf(out,
                         "Speed: context %d, median of %d; one thread reads %.1f GB/s; fp16 "
                         "attention in %s.%s",
                         info->speed->context, info->speed->repeats, info->speed->bandwidth / 1e9,
                         info->speed->f16_isa, newline);
}

void vqkvc_table_text(const vqkvc_table_info *info, const vqkvc_row *rows, int n, vqkvc_buf *out)
{
    int width[N_COLUMNS];
    char cells[N_COLUMNS][CELL];
    measure_columns(info, rows, n, width);
    put_caption(info, "\n", out);
    for (int i = -1; i < row_count(info, n); i++) {
        if (i >= 0)
            cells_of(info, rows, n, i, cells);
        for (int c = 0; c < N_COLUMNS; c++) {
            const char *cell = i < 0 ? columns[c].title : cells[c];
            if (width[c] == 0)
                continue;
            if (c == 0)
                vqkvc_buf_printf(out, "%-*s", width[c], cell);
            else
                vqkvc_buf_printf(out, "  %*s", width[c], cell);
        }
        vqkvc_buf_puts(out, "\n");
    }
    if (has_layer_errors(rows, n)) {
        vqkvc_buf_puts(out,
                       "\n|o - o_exact| / |o_exact| of the attention output, layer by layer:\n");
        put_layer_errors(rows, n, 0, "", "  ", "", out);
        vqkvc_buf_puts(out,
                       "\nWhat the kernels add to it (against portable C), as a part of it:\n");
        put_layer_errors(rows, n, 1, "", "  ", "", out);
    }
}

void vqkvc_table_markdown(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                          vqkvc_buf *out)
{
    int width[N_COLUMNS];
    char cells[N_COLUMNS][CELL];
    measure_columns(info, rows, n, width);
    put_caption(info, "\n", out);
    for (int i = -2; i < row_count(info, n); i++) {
        if (i >= 0)
            cells_of(info, rows, n, i, cells);
        vqkvc_buf_puts(out, i == -2 ? "\n|" : "|");
        for (int c = 0; c < N_COLUMNS; c++)
            if (width[c] > 0 && i == -1)
                vqkvc_buf_puts(out, c == 0 ? "---|" : "---:|");
            else if (width[c] > 0)
                vqkvc_buf_printf(out, " %s |", i < 0 ? columns[c].title : cells[c]);
        vqkvc_buf_puts(out, "\n");
    }
    vqkvc_buf_puts(out, "\n");
    for (int c = 0; c < N_COLUMNS; c++)
        if (width[c] > 0 && columns[c].words != NULL)
            vqkvc_buf_printf(out, "- *%s*: %s\n", columns[c].title, columns[c].words);
    if (has_layer_errors(rows, n)) {
        vqkvc_buf_puts(out, "\nRelative error of the attention output, layer by layer:\n\n");
        put_layer_errors(rows, n, 0, "- ", " ", "", out);
        vqkvc_buf_puts(out,
                       "\nWhat the kernels add to it (against portable C), as a part of it:\n\n");
        put_layer_errors(rows, n, 1, "- ", " ", "", out);
    }
}

const char *vqkvc_vectors_word(const vqkvc_plan *plan)
{
    static const char *const words[] = {"absorbed", "K rebuilt", "V rebuilt", "rebuilt"};
    int which = 0;
    for (int layer = 0; layer < plan->geometry.n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
            which |= vqkvc_plan_rebuilds(plan, (vqkvc_part)part, layer) ? 1 << part : 0;
    return words[which];
}

/* ---- JSON ---- */

static json_t *json_fidelity(const vqkvc_fidelity *f)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:i}", "positions", (json_int_t)f->n,
                     "kl", f->kl, "ppl_exact", f->ppl_exact, "ppl", f->ppl, "ppl_ratio",
                     f->ppl_ratio, "top1", f->top1, "worst_kl", f->worst_kl, "worst_window",
                     f->worst_window, "worst_position", f->worst_pos);
}

static json_t *json_measured(const vqkvc_measured *m)
{
    json_t *errors = json_array(), *kernels = json_array();
    for (int l = 0; l < m->n_layers; l++) {
        json_array_append_new(errors, json_real(m->layer_error[l]));
        json_array_append_new(kernels, json_real(m->kernel_error[l]));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f}", "late",
                     json_fidelity(&m->late), "all", json_fidelity(&m->all), "layer_error", errors,
                     "kernel_error", kernels, "stored_bits", m->stored_bits, "used_bits",
                     m->used_bits, "forward_seconds", m->seconds, "worst_error", m->worst_error,
                     "kept_rate", m->kept_rate);
}

static json_t *json_cost(const vqkvc_cost *c)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:i}", "code_bits",
                     c->code_bits, "gain_bits", c->gain_bits, "landmark_bits", c->landmark_bits,
                     "kept_bits", c->kept_bits, "scan_bits", c->scan_bits, "window_bits",
                     c->window_bits, "table_bits", c->table_bits, "total_bits", c->total_bits,
                     "table_bytes", (json_int_t)c->table_bytes, "context", c->context);
}

static json_t *json_timing(const vqkvc_timing *t)
{
    return json_pack("{s:f, s:f, s:f, s:o}", "ns", t->ns, "ns_min", t->ns_min, "ns_max", t->ns_max,
                     "floor_ns", t->floor_ns > 0 ? json_real(t->floor_ns) : json_null());
}

static json_t *json_row(const vqkvc_row *row)
{
    const vqkvc_codec *c = row->codec;
    json_t *codec = json_null();
    if (c != NULL)
        codec = json_pack("{s:s, s:I, s:f}", "hash", c->table->codec, "header_bytes",
                          (json_int_t)c->header_bytes, "compile_seconds", c->compile_seconds);
    return json_pack("{s:s, s:s?, s:s?, s:o, s:o, s:o, s:o}", "scheme", row->scheme, "calibration",
                     row->calibration, "vectors", row->vectors, "codec", codec, "cost",
                     row->cost != NULL ? json_cost(row->cost) : json_null(), "fidelity",
                     row->measured != NULL ? json_measured(row->measured) : json_null(), "attend",
                     row->timing != NULL ? json_timing(row->timing) : json_null());
}

static json_t *json_speed(const vqkvc_speed *s)
{
    return json_pack("{s:i, s:i, s:f, s:s, s:o}", "context", s->context, "repeats", s->repeats,
                     "bandwidth", s->bandwidth, "f16_isa", s->f16_isa, "f16", json_timing(&s->f16));
}

vqkvc_code vqkvc_table_json(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                            vqkvc_buf *out, vqkvc_err *err)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_row(&rows[i]));
    json_t *all =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:o, s:o}", "model", info->model, "text",
                  info->text, "context", info->context, "windows", info->n_windows, "step",
                  info->step, "first_counted", info->first_counted, "speed",
                  info->speed != NULL ? json_speed(info->speed) : json_null(), "schemes", list);
    char *text = all != NULL ? json_dumps(all, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(all);
    if (text == NULL)
        return vqkvc_fail(err, VQKVC_E_FAILED, "eval: the table cannot be written as JSON");
    vqkvc_buf_puts(out, text);
    vqkvc_buf_puts(out, "\n");
    free(text);
    return VQKVC_OK;
}
