/* suite.h - the fidelity table in parts: which rows (suite_rows.c), their headers
 * (suite_build.c), the texts (suite_texts.c), measuring and keeping (suite_measure.c), tables and
 * picture (suite_report.c). cmd_suite.c runs them in this order. */
#ifndef VQKVC_COMMAND_SUITE_H
#define VQKVC_COMMAND_SUITE_H

#include "calib_db/kvdb.h"
#include "command/options.h"
#include "eval/table.h"

enum {
    VQKVC_SUITE_MAX_SUBJECTS = 256,
    VQKVC_SUITE_MAX_CALIBRATIONS = 4,
    VQKVC_SUITE_FIRST_COUNTED = 128,
    VQKVC_SUITE_LONG = 2,  /* windows of --long */
    VQKVC_SUITE_TEXTS = -1 /* all passages but those */
};

/* What plans are fitted to. */
typedef struct vqkvc_suite_calibration {
    const char *name; /* in arena; "self", "books.txt", "books.txt 1/8" */
    vqkvc_words text; /* none: the model's own samples */
    int64_t n_tokens; /* 0: the default */
    int share;        /* 8: an eighth of the tokens and of the sample; else 1 */
} vqkvc_suite_calibration;

/* Which table a row belongs to: the fidelity table, auto without one of its ideas, or a calibration
 * that is held against the matched one. */
typedef enum vqkvc_suite_kind {
    VQKVC_SUITE_TABLE,
    VQKVC_SUITE_ABLATION,
    VQKVC_SUITE_ROBUST
} vqkvc_suite_kind;

/* One scheme under test. */
typedef struct vqkvc_suite_subject {
    vqkvc_suite_kind kind;
    int calibration;
    const char *label; /* in arena; before the build NULL where the plan's scheme will do */
    const char *scheme;
    int calibrated; /* the plan is fitted to something */
    int is_for;     /* 0: all passages; VQKVC_SUITE_TEXTS; the tokens of a long one, else */
    vqkvc_options options;
    vqkvc_hash plan_hash, header_hash; /* of the plan's recipe, of the header's bytes */
    int twin;                          /* an earlier subject with the same header, or -1 */
    int left_out;                      /* it cannot be built; said on the log */
    const char *vectors;
    vqkvc_cost *costs; /* [n_passages] */
    vqkvc_buf header;  /* empty where no figure is missing any more */
} vqkvc_suite_subject;

/* One text at one context. */
typedef struct vqkvc_suite_passage {
    int n_windows, context, is_long;
    int32_t *windows; /* [n_windows, context] */
    char name[256];
    char key[256];            /* what figures on it are kept under, but for the header */
    vqkvc_measured *measured; /* [n subjects]; late.n 0: not measured yet */
} vqkvc_suite_passage;

typedef struct vqkvc_suite {
    const vqkvc_options *options;
    const vqkvc_log *log;
    vqkvc_arena arena;
    vqkvc_geometry geometry;
    int n_calibrations;
    vqkvc_suite_calibration calibrations[VQKVC_SUITE_MAX_CALIBRATIONS];
    int n;
    vqkvc_suite_subject *subjects; /* [VQKVC_SUITE_MAX_SUBJECTS] */
    int n_passages;
    vqkvc_suite_passage *passages;
    double started, work, done; /* seconds; tokens times subjects in all and measured */
} vqkvc_suite;

/* Tokens of the windows of --long. */
extern const int vqkvc_suite_long[VQKVC_SUITE_LONG];

vqkvc_code vqkvc_suite_choose_rows(vqkvc_suite *s, vqkvc_err *err);
/* Passages: texts, token files, then --long; `model` samples one where there is none. */
vqkvc_code vqkvc_suite_choose_texts(vqkvc_suite *s, vqkvc_model *model, vqkvc_err *err);
/* Plans and headers of all subjects, as `vqkvc build` makes them. */
vqkvc_code vqkvc_suite_build(vqkvc_suite *s, vqkvc_err *err);
/* Fills passages[].measured: from the store what it has, and it is given what it has not. */
vqkvc_code vqkvc_suite_measure(vqkvc_suite *s, vqkvc_err *err);
/* Tables or figures to stdout, --csv, --svg. */
vqkvc_code vqkvc_suite_report(const vqkvc_suite *s, vqkvc_err *err);

/* Whether a subject is measured on a passage: ablations on the first text, calibrations on the
 * first and the last, everything else on all. */
int vqkvc_suite_applies(const vqkvc_suite *s, const vqkvc_suite_subject *subject, int passage);
/* The last passage that is not long. */
int vqkvc_suite_last_text(const vqkvc_suite *s);
/* The model's name, or its file's. */
const char *vqkvc_suite_model_name(const vqkvc_suite *s);

#endif
