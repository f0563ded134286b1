/* lower.h - a plan in the terms of the runtime: descriptors, offsets and one table of 16-bit words.
 */
#ifndef GEN_LOWER_H
#define GEN_LOWER_H

#include "base/memory.h"
#include "plan/plan.h"

/* as in runtime/types.h */
typedef enum gen_coder { GEN_NIBBLES, GEN_BYTES, GEN_HALVES, GEN_WIDE } gen_coder;

typedef struct gen_run {
    gen_coder coder;
    int uniform, beam, stages, bits, words, steady, width, first, planes, codes, book, book_step,
        gain;
} gen_run;

typedef struct gen_stream {
    int first_member, first_run, n_runs, n_gains, gain_table, bytes, start;
    int basis_bytes;            /* of an entry of enc and dec */
    int n_steady;               /* latents of steady runs */
    int mean, enc, dec, spread; /* offsets in binary16 values, -1: none */
    int kept;                   /* place of outliers in a block's bytes */
} gen_stream;

typedef struct gen_section { /* of the table, for its comment */
    const char *title;
    int first, n; /* values */
} gen_section;

typedef struct gen_use {
    int stream, member;
} gen_use;

typedef struct gen_node { /* K or V of one layer */
    int part, layer, rebuilt, source, slot, prediction, last_stream;
} gen_node;

typedef struct gen_prediction {
    int n_sources, source[2], per_head, rank, bias, map, out;
} gen_prediction;

/* Which pairs and channels of a head turn from block to block in frame BLOCK; the others keep the
 * same turn for VQKVC_STEADY_SPAN tokens at least. */
typedef struct gen_turning {
    int n_pairs, steady_pairs, steady_dims;
    int pairs[VQKVC_MAX_HEAD_DIM / 2]; /* [n_pairs] steady ones, then turning ones */
    /* [head_dim] Steady channels: the first of each pair, the second of each, those without a pair;
     * then the turning ones alike. */
    int order[VQKVC_MAX_HEAD_DIM];
} gen_turning;

/* Everything of the plan that the emitter prints. All arrays live in the arena. */
typedef struct gen_lowered {
    vqkvc_arena arena;
    gen_stream *streams; /* [plan->n_streams] */
    int n_runs, n_members, n_uses, n_sections;
    gen_run *runs;
    const vqkvc_member **members;
    gen_use *uses;
    int *use_first; /* [2 * n_layers * n_kv_heads + 1] */
    gen_section *sections;
    gen_node *nodes; /* [2 * n_layers], each behind what it is predicted from */
    int *node_at;    /* [2, n_layers] */
    gen_prediction *predictions;
    int n_slots, rebuilds;
    gen_turning turning;
    int n_values; /* a multiple of 4 */
    uint16_t *values;
    int block_bytes;
    /* the most that any stream or head needs */
    int max_in, max_latents, max_width, max_lut, max_book, max_sum_latents, max_runs,
        max_dot_groups, max_uses; /* max_uses: streams of a head that are absorbed */
    int max_columns; /* of the bases of one head's keys, as batches of queries are mapped */
    int max_stages, max_beam, max_rank;
    int max_out_latents;                 /* of streams that keep outliers */
    int turns;                           /* keys are coded without their rotation */
    int64_t max_wide_lut, max_wide_bins; /* floats for one row of queries */
} gen_lowered;

/* low starts as {0}; the caller frees low->arena in any case. */
vqkvc_code gen_lower(const vqkvc_plan *plan, gen_lowered *low, vqkvc_err *err);

#endif
