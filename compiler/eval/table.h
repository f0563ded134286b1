/* table.h - the table of an evaluation: aligned text, Markdown, JSON. */
#ifndef VQKVC_EVAL_TABLE_H
#define VQKVC_EVAL_TABLE_H

#include "base/memory.h"
#include "base/status.h"
#include "eval/measure.h"
#include "eval/speed.h"
#include "plan/plan.h"

/* One scheme; every pointer is borrowed and may be NULL where nothing is known: "-" in the table,
 * null in JSON. */
typedef struct vqkvc_row {
    const char *scheme;
    const vqkvc_measured *measured;
    const vqkvc_cost *cost; /* of the plan, at the table's context */
    const vqkvc_codec *codec;
    const vqkvc_timing *timing;
    const char *calibration; /* what the plan was fitted to: "self", a file's base name */
    const char *vectors;     /* vqkvc_vectors_word() */
    double factor;           /* KL over that of the row it is held against; 0: none */
} vqkvc_row;

typedef struct vqkvc_table_info {
    const char *model, *text; /* what was measured on, for the caption */
    int context, n_windows, step, first_counted;
    const vqkvc_speed *speed; /* floor and yardstick, or NULL */
} vqkvc_table_info;

/* How attention meets what a plan coded: "absorbed" (on codes), or which vectors are rebuilt: "K
 * rebuilt", "V rebuilt", "rebuilt". */
const char *vqkvc_vectors_word(const vqkvc_plan *plan);

/* For terminals: aligned columns, those without any figure left out, the caption above. */
void vqkvc_table_text(const vqkvc_table_info *info, const vqkvc_row *rows, int n, vqkvc_buf *out);
/* For README files. */
void vqkvc_table_markdown(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                          vqkvc_buf *out);
/* One line a figure: "fidelity.kl.auto2 0.00095 nats" (figures.c). */
void vqkvc_table_figures(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                         vqkvc_buf *out);
/* One line a scheme (csv.c), the columns' names in front if `head`: text, context, windows, step,
 * scheme, calibration, vectors, bits (codes, stored, total, scan), KL, perplexity above the exact
 * cache's in percent, top-1, worst KL, factor. Figures in fixed formats; empty where nothing is
 * known. */
void vqkvc_table_csv(const vqkvc_table_info *info, const vqkvc_row *rows, int n, int head,
                     vqkvc_buf *out);
/* Everything, the per-layer errors too; keys sorted, one object. */
vqkvc_code vqkvc_table_json(const vqkvc_table_info *info, const vqkvc_row *rows, int n,
                            vqkvc_buf *out, vqkvc_err *err);
/* Reads back the figures of the one scheme in what vqkvc_table_json() wrote, to the last bit, but
 * for the per-layer errors (table_read.c). Fails with E_FORMAT for anything else. */
vqkvc_code vqkvc_table_read(const char *json, vqkvc_measured *measured, vqkvc_err *err);

#endif
