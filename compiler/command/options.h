/* options.h - the command line: tables of options, one strict parser, the help made from them.
 *
 * Every default that help shows is the text that the parser reads to set it, so the two cannot
 * disagree. Numbers are whole words within stated ranges: "12x", "" and "1e3" for an integer are
 * refused. */
#ifndef VQKVC_COMMAND_OPTIONS_H
#define VQKVC_COMMAND_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/status.h"

enum { VQKVC_MAX_WORDS = 64 };

/* What an option that may be repeated has been given. */
typedef struct vqkvc_words {
    int n;
    const char *at[VQKVC_MAX_WORDS]; /* borrowed from argv */
} vqkvc_words;

/* Which options have been used (vqkvc_options.given): those of a calibration source, and those that
 * only some schemes take, a mark for each set of options that always go together. */
enum {
    VQKVC_GIVEN_SOURCE = 1,
    VQKVC_GIVEN_BITS = 2, /* --bits alone, which several schemes take */
    VQKVC_GIVEN_AUTO = 4,
    VQKVC_GIVEN_VQKV = 8,
    VQKVC_GIVEN_SVDQ = 16,
    VQKVC_GIVEN_KVQUANT = 32,
    VQKVC_GIVEN_HEADS = 64, /* --per-head of what is predicted from other layers */
    VQKVC_GIVEN_AQUA = 128,
    VQKVC_GIVEN_ANCHOR = 256,
    VQKVC_GIVEN_SCHEME = ~VQKVC_GIVEN_SOURCE
};

/* The values of all options of all commands; a command sees those of its own groups. Strings are
 * borrowed from argv. */
typedef struct vqkvc_options {
    int help, quiet, verbose, json, threads;
    /* store */
    const char *db;
    int no_db, all;
    /* calibration source */
    int self;
    vqkvc_words text, tokens;
    const char *import_path, *simulate;
    int64_t n_tokens;
    int sample, window;
    uint64_t seed;
    double temperature;
    /* scheme */
    const char *scheme, *frame, *without, *share, *schedule, *values, *stages, *stage_bits;
    double outliers;
    double max_error;
    int landmarks, top_tokens;
    int group, rank, grid, per_head, anchor_every, anchor_bits;
    double bits, max_scan, max_ns, max_kl, max_ppl;
    const char *cost_model;
    int layers_shared, tables_at, probes, beam, branches, block, sink, recent;
    /* output */
    const char *prefix, *output, *target, *depfile, *show;
    /* evaluation */
    vqkvc_words headers;
    const char *schemes;
    int windows, context, step, speed, layers, markdown, figures;
    /* suite */
    vqkvc_words calibrate, robust;
    const char *rates, *tables_rates, *long_text, *isa, *csv, *svg;
    int ablations, any_scan;
    /* bench */
    int head_dim, query_group, kv_heads, bench_layers, repeats, workers, calibrate_time;
    unsigned given;
    /* arguments that are no options, in order */
    int n_args;
    char **args;
} vqkvc_options;

typedef enum vqkvc_option_type {
    VQKVC_OPT_FLAG,   /* int: 1 */
    VQKVC_OPT_INT,    /* int, low .. high */
    VQKVC_OPT_INT64,  /* int64_t, low .. high */
    VQKVC_OPT_UINT64, /* uint64_t */
    VQKVC_OPT_NUMBER, /* double, low .. high */
    VQKVC_OPT_TEXT,   /* const char *, not empty */
    VQKVC_OPT_CHOICE, /* const char *, one of the words in choices */
    VQKVC_OPT_WORDS   /* vqkvc_words: may be repeated */
} vqkvc_option_type;

typedef struct vqkvc_option {
    char letter; /* 0: none */
    const char *name;
    const char *arg;     /* what help calls its argument; NULL for flags */
    const char *choices; /* of a choice "one|two"; NULL: arg is that */
    vqkvc_option_type type;
    size_t offset; /* in vqkvc_options */
    double low, high;
    const char *zero;     /* a word that stands for the number 0; NULL: none */
    const char *fallback; /* parsed before the command line; NULL: zero */
    unsigned mark;        /* VQKVC_GIVEN_*, set when the option is used */
    int is_file;          /* a path: its base name is what matters */
    int always;           /* part of a canonical command line even at its default */
    const char *help;     /* says the default itself where fallback is NULL */
} vqkvc_option;

/* For the tables: the field of an option, and the option without a name that ends a table. */
#define VQKVC_AT(field) offsetof(vqkvc_options, field)
#define VQKVC_OPTIONS_END                                                                          \
    {                                                                                              \
        .name = NULL                                                                               \
    }

extern const vqkvc_option vqkvc_options_general[], vqkvc_options_store[], vqkvc_options_source[],
    vqkvc_options_scheme[], vqkvc_options_emit[], vqkvc_options_json[], vqkvc_options_eval[],
    vqkvc_options_suite[], vqkvc_options_bench[], vqkvc_options_measure[], vqkvc_options_table[],
    vqkvc_options_run[];

enum { VQKVC_MAX_GROUPS = 8 };

typedef struct vqkvc_command {
    const char *name;
    const char *usage;   /* behind the name: "MODEL.gguf [option...]" */
    const char *summary; /* one line, for the list of commands */
    const char *about;   /* paragraphs of help, wrapped */
    const char *examples;
    int min_args, max_args;
    const vqkvc_option *groups[VQKVC_MAX_GROUPS + 1]; /* ended by NULL */
    vqkvc_code (*run)(const vqkvc_options *o, const vqkvc_log *log, vqkvc_err *err);
} vqkvc_command;

/* argv[0] is the command's name; argv is reordered. Fails with VQKVC_E_USAGE and one line that
 * names the word that is wrong and, where one is near, what may have been meant. With -h nothing
 * else is checked. */
vqkvc_code vqkvc_options_parse(const vqkvc_command *command, int argc, char **argv,
                               vqkvc_options *o, vqkvc_err *err);

/* Appends the options of one group as a command line has them (" --bits 2"): those that differ from
 * their default or are `always` there, but none whose mark is in `without`; files by their base
 * names. The same options give the same text in whatever order they were given. */
void vqkvc_options_canonical(const vqkvc_options *o, const vqkvc_option *group, unsigned without,
                             vqkvc_buf *out);

/* Appends the values of all options of a group but those whose mark is in `without`, defaults too:
 * ";bits=2;frame=block". */
void vqkvc_options_values(const vqkvc_options *o, const vqkvc_option *group, unsigned without,
                          vqkvc_buf *out);

/* Appends a space and the word, in quotes where a shell would want them. */
void vqkvc_options_canonical_word(const char *word, vqkvc_buf *out);

/* Appends the help of one command. */
void vqkvc_options_help(const vqkvc_command *command, vqkvc_buf *out);

/* The word of a list that `typed` is a slip of the finger away from, or NULL. get(list, i) gives
 * word i, NULL at the end. */
const char *vqkvc_nearest(const char *typed, const char *(*get)(const void *list, int i),
                          const void *list);

/* What follows the last slash. */
const char *vqkvc_base_name(const char *path);

#endif
