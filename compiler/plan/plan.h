/* plan.h - the intermediate representation: everything an emitted header does, frozen.
 *
 * A plan is geometry, window policy, predictors and a list of streams of codes over tables. A
 * stream takes the concatenated vectors of its members (one member: K or V of one KV head in one
 * layer), and codes what its predictor and the streams before it have left of them:
 *
 *     x = members, keys in the stream's frame, minus the prediction of their layer, minus the
 *         reconstructions of earlier streams
 *     z = enc' (x - mean)                        transform: latents, one per coded channel
 *     s = gain of z (per gain group)             quantized itself
 *     code = nearest codeword of z / s           per group of channels, by the runs
 *     x^ = mean + dec (s * codeword)
 *
 * What a layer attends to is the prediction plus the sum of the streams that hold its members: its
 * own, and those that it shares with other layers or heads. Because every map is linear, scores and
 * sums are taken on latents: q . x^ = q . mean + (dec' q) . (s * codeword). Not so where
 * vqkvc_plan_rebuilds() says that vectors must be rebuilt before queries meet them.
 *
 * The published methods and the baselines are presets of this one form (plan/presets.c); `auto` is
 * ours (plan/auto.c). */
#ifndef VQKVC_PLAN_PLAN_H
#define VQKVC_PLAN_PLAN_H

#include <stdint.h>

#include "base/geometry.h"
#include "base/memory.h"
#include "base/status.h"

enum { VQKVC_PLAN_VERSION = 5 };

/* The most that a pair's span is stretched, and what stands for a span without end. */
enum { VQKVC_MAX_STRETCH = 8, VQKVC_STRETCH_ENDLESS = 255 };
/* Bounds of plans that are valid: stages of a run; candidates of a beam, and the width of groups
 * that are coded with one. */
enum { VQKVC_MAX_STAGES = 128, VQKVC_MAX_BEAM = 16, VQKVC_MAX_BEAM_WIDTH = 512 };

typedef enum vqkvc_part { VQKVC_PART_K, VQKVC_PART_V } vqkvc_part;

typedef struct vqkvc_member {
    vqkvc_part part;
    int layer, head; /* KV head */
} vqkvc_member;

/* Rules that validate.c checks and the words below leave open: ABSMAX and SIGNMAX are for UNI runs,
 * of equal bits inside a gain group, and SIGNMAX has gains of 16 bits, as RANGE and NSN have; the
 * runs of a gain group of RANGE are all VQ, or all UNI of equal bits; NSN is for VQ runs; F16 runs
 * take no gain; every value of every layer and head is in a stream; where there are predictors, all
 * keys are in frame PRE, and the streams of a predictor's sources stand before those of its target,
 * which hold no other part or layer. reference.c states the arithmetic to the last bit. */

/* Which rotation keys carry when they are coded. Streams over the same key agree. */
#define VQKVC_FRAME_LIST(X)                                                                        \
    X(PRE, "pre")     /* un-rotated; attended by reconstruction */                                 \
    X(POST, "post")   /* rotated by their position */                                              \
    X(BLOCK, "block") /* rotated by their offset in the block, or in a longer span (frame.h);      \
                         queries turn back by its base */
#define VQKVC_TRANSFORM_LIST(X)                                                                    \
    X(IDENTITY, "identity")                                                                        \
    X(HADAMARD, "hadamard") /* orthonormal Sylvester matrix over the whole vector */               \
    X(BASIS, "basis")       /* tables enc and dec */
#define VQKVC_GAIN_LIST(X)                                                                         \
    X(NONE, "none")                                                                                \
    X(RMS, "rms")         /* root mean square of the group's latents */                            \
    X(ABSMAX, "absmax")   /* largest magnitude / (levels / 2 - 1): q8_0 */                         \
    X(SIGNMAX, "signmax") /* the value of largest magnitude / -(levels / 2): q4_0 */               \
    X(RANGE, "range")     /* offset and step from the smallest and the largest value: KIVI */      \
    X(NSN, "nsn")         /* rms, then shift of each channel, then rms again: NSNQuant */
#define VQKVC_CODER_LIST(X)                                                                        \
    X(VQ, "vq")   /* nearest of `codes` codewords a stage, for each group of `width` channels */   \
    X(UNI, "uni") /* codeword = code - 2^(bits - 1), each channel by itself */                     \
    X(F16, "f16") /* binary16 as it is */

#define X(name, word) VQKVC_FRAME_##name,
typedef enum vqkvc_frame { VQKVC_FRAME_LIST(X) } vqkvc_frame;
#undef X
#define X(name, word) VQKVC_TRANSFORM_##name,
typedef enum vqkvc_transform { VQKVC_TRANSFORM_LIST(X) } vqkvc_transform;
#undef X
#define X(name, word) VQKVC_GAIN_##name,
typedef enum vqkvc_gain { VQKVC_GAIN_LIST(X) } vqkvc_gain;
#undef X
#define X(name, word) VQKVC_CODER_##name,
typedef enum vqkvc_coder { VQKVC_CODER_LIST(X) } vqkvc_coder;
#undef X

/* A constant table; values are exactly what the header holds: in binary16 (f16), or in bytes that
 * each count the scale of their column and of their scale_rows rows. The other pointers are NULL.
 */
typedef struct vqkvc_table {
    const char *name; /* "enc K 0-7 h0": for comments and messages */
    int rows, cols;
    uint16_t *f16;   /* [rows, cols] binary16 */
    int8_t *bytes;   /* [rows, cols] */
    uint16_t *scale; /* [rows / scale_rows, cols] binary16 */
    int scale_rows;  /* divides rows; 0 where values are binary16 */
} vqkvc_table;

/* Consecutive groups of channels with one coder. Runs cover the latents 0 .. n_latents - 1 without
 * gaps; channels that are dropped are not latents. A run lies inside one gain group. */
typedef struct vqkvc_run {
    vqkvc_coder coder;
    int first;  /* first latent */
    int groups; /* groups of channels */
    int width;  /* channels a group (1 for UNI and F16) */
    int bits;   /* of one code: log2 of the codewords a stage; 16 for F16 */
    int stages; /* residual stages (1 for UNI and F16) */
    int beam;   /* VQ: candidates kept from stage to stage when encoding; 0 or 1: greedy */
    int book;   /* VQ: table [groups * stages, width * 2^bits], a row holds channel by channel the
                   2^bits values of that channel, row group * stages + stage; one row block for all
                   groups if the table has `stages` rows only. -1 otherwise */
} vqkvc_run;

typedef struct vqkvc_stream {
    const char *name; /* "K 0-7 h0 shared" */
    int n_members;
    vqkvc_member *members; /* of one part; ordered by layer, then head */
    vqkvc_frame frame;     /* of keys; POST for values, which carry no rotation */
    vqkvc_transform transform;
    int mean;     /* table [1, n_in] or -1 */
    int enc, dec; /* tables [n_in, n_latents] or -1; both in binary16, or in bytes with a scale for
                     each member and latent. All other tables are binary16 */
    int n_in;     /* n_members * head_dim */
    int n_latents;
    vqkvc_gain gain;
    int gain_bits;   /* 16: binary16; 8: binary16(exp2(gain_lo + gain_step * code)) */
    int gain_width;  /* latents that share a gain; n_latents: one gain a token */
    int gain_tokens; /* consecutive tokens of a block that share a RANGE, or the shift of NSN; 1
                        otherwise; divides the block */
    float gain_lo, gain_step;
    int outliers; /* latents of every token that are kept in binary16 beside the codes: those
                     farthest from their channel's centre in units of its spread */
    int spread;   /* table [2, n_latents]: centres and 1 / spreads that outliers are judged by, or
                     -1: the token's mean and 1 */
    int n_runs;
    vqkvc_run *runs;
} vqkvc_stream;

/* What an earlier reconstruction says of K or V of one layer, all KV heads joined, before any
 * stream codes them: W x + b with x the joined reconstructions of the sources (AQUA-KV, section 3;
 * keys un-rotated). d = n_kv_heads * head_dim. */
typedef struct vqkvc_prediction_source {
    vqkvc_part part;
    int layer;
} vqkvc_prediction_source;

typedef struct vqkvc_prediction {
    vqkvc_part part; /* the target */
    int layer;
    int n_sources; /* 1 or 2 */
    vqkvc_prediction_source sources[2];
    int per_head; /* a head is predicted from the same head of the sources only */
    int bias;     /* table [1, d] */
    int map;      /* full: table [n_sources * d, d]; reduced rank: [n_sources * d, rank]; per_head:
                     [n_sources * d, head_dim], rows by source, head, channel */
    int out;      /* reduced rank: table [rank, d]; -1 otherwise */
} vqkvc_prediction;

typedef struct vqkvc_plan {
    vqkvc_arena arena; /* owns everything below */
    char scheme[32];   /* "auto2", "higgs2", "q8_0", ... */
    vqkvc_geometry geometry;
    int n_sink;   /* first tokens, exact in fp16 for ever */
    int n_recent; /* the latest tokens that are exact at least */
    int block;    /* tokens a block: encoded together */
    /* Keys in frame BLOCK: the span of pair i, at whose first token it counts as un-rotated, has
     * 2^stretch[i] blocks, counted from the first coded token; ENDLESS: it stays rotated by its
     * position. [n_rot / 2], 0 of pairs that there are not. */
    uint8_t stretch[VQKVC_MAX_HEAD_DIM / 2];
    /* With landmarks a block has, for each layer, KV head and chunk of so many of its tokens, the
     * mean of the keys in their rotation (8 bits a channel, a binary16 scale) and, in 8 bits, the
     * least cosine of a key to it: attention may then be asked for the best chunks only
     * (ShadowKV). 0: none; else 8, 16 or 32. */
    int landmarks;
    /* A vector x of one head and token whose reconstruction x^ is farther off than max_error |x|,
     * in binary16 as it came, is kept in binary16 instead. 0: none is. */
    float max_error;
    double kept_rate; /* the part of all vectors that calibration expects this for */
    int n_streams;
    vqkvc_stream *streams; /* in coding order */
    int n_predictions;
    vqkvc_prediction *predictions; /* one for a target at most; by layer, K before V */
    int n_tables;
    vqkvc_table *tables;
    vqkvc_hash calibration; /* of the capture; empty for schemes without one */
    /* Recipe hashes of the fitted parts, for the store's lineage; no part of the plan's bytes. */
    int n_parents;
    vqkvc_hash *parents;
} vqkvc_plan;

void vqkvc_plan_free(vqkvc_plan *plan);

/* The words of the lists above, of parts ("K", "V") and of vqkvc_rope_layout; NULL outside a list.
 */
const char *vqkvc_part_word(int part);
const char *vqkvc_rope_word(int layout);
const char *vqkvc_frame_word(int frame);
const char *vqkvc_transform_word(int transform);
const char *vqkvc_gain_word(int gain);
const char *vqkvc_coder_word(int coder);

/* ---- building (plan.c) ---- */

/* Adds a table of zeros; its index, or -1 with *err. */
int vqkvc_plan_add_table(vqkvc_plan *plan, int rows, int cols, vqkvc_err *err, const char *name_fmt,
                         ...) __attribute__((format(printf, 5, 6)));
/* The same in bytes, with scales for every scale_rows rows (which divide rows) and column. */
int vqkvc_plan_add_bytes(vqkvc_plan *plan, int rows, int cols, int scale_rows, vqkvc_err *err,
                         const char *name_fmt, ...) __attribute__((format(printf, 6, 7)));
/* Rounds binary16 values [rows, cols], rows at distance ld, to a table of bytes: the largest
 * magnitude of each column and scale_rows rows is 127 scales. */
void vqkvc_table_round(vqkvc_table *table, const uint16_t *values, size_t ld);
/* One value. */
float vqkvc_table_at(const vqkvc_table *table, int row, int col);
/* What it takes, scales included. */
size_t vqkvc_table_size(const vqkvc_table *table);
/* Adds a stream over the given members (copied) with n_in filled in, identity transform, no gain,
 * no runs; NULL with *err. Pointers to earlier streams (not their members and runs) are invalid
 * after it. */
vqkvc_stream *vqkvc_plan_add_stream(vqkvc_plan *plan, const char *name, int n_members,
                                    const vqkvc_member *members, vqkvc_err *err);
/* Adds a predictor of `part` of `layer`: zeroed, no sources, tables -1; NULL with *err. Pointers to
 * earlier predictors are invalid after it. */
vqkvc_prediction *vqkvc_plan_add_prediction(vqkvc_plan *plan, vqkvc_part part, int layer,
                                            vqkvc_err *err);
/* Notes a fitted part that the plan was made from. */
vqkvc_code vqkvc_plan_add_parent(vqkvc_plan *plan, const vqkvc_hash *recipe, vqkvc_err *err);
/* Gives a stream n_runs zeroed runs (book -1, width and stages 1), owned by the arena. */
vqkvc_run *vqkvc_plan_set_runs(vqkvc_plan *plan, vqkvc_stream *s, int n_runs, vqkvc_err *err);
/* The binary16 value of an 8-bit gain code. */
uint16_t vqkvc_stream_gain(const vqkvc_stream *s, int code);
/* The predictor of a target, or NULL. */
const vqkvc_prediction *vqkvc_plan_prediction(const vqkvc_plan *plan, vqkvc_part part, int layer);
/* Whether attending to this part of a layer takes rebuilt vectors: keys in frame PRE, a predictor,
 * or a stream with outliers or a gain of RANGE or NSN. */
int vqkvc_plan_rebuilds(const vqkvc_plan *plan, vqkvc_part part, int layer);
/* Checks all that the emitter relies on; the message names the stream and the run. */
vqkvc_code vqkvc_plan_validate(const vqkvc_plan *plan, vqkvc_err *err);

/* ---- accounting (cost.c) ---- */

typedef struct vqkvc_cost {
    double code_bits;   /* a value: codes alone */
    double gain_bits;   /* a value: gains, ranges, shifts and outliers */
    double scan_bits;   /* bits read per cached token for a layer's K and V, a value: shared streams
                           count for every layer, joint streams for every head, or once where the
                           layer's vectors are rebuilt, and what a layer is predicted from for
                           that layer */
    double window_bits; /* a value, at the context: what exact tokens take beyond their codes */
    double landmark_bits; /* a value: landmarks */
    double kept_bits; /* a value: vectors kept exactly, at the expected rate, and what finds them */
    double table_bits; /* a value, at the context: constant tables, with those that the emitter
                          makes from gains and uniform codes */
    double total_bits; /* code + gain + landmarks + kept + window + tables */
    size_t table_bytes;
    int context; /* tokens that window_bits and table_bits are amortised over */
} vqkvc_cost;

/* Code, gain, landmark and kept bits: what a coded token takes for ever. */
double vqkvc_cost_stored(const vqkvc_cost *cost);

/* context > 0 */
void vqkvc_plan_cost(const vqkvc_plan *plan, int context, vqkvc_cost *cost);

/* Of one stream, a token: codes, their bits, and the bits of its gains, shifts and outliers. An
 * outlier takes 16 bits and its index 8, or 16 where there are more than 256 latents; a RANGE two
 * binary16 for gain_tokens tokens; NSN two gains a token and gain_width binary16 for gain_tokens
 * tokens. */
int vqkvc_stream_codes(const vqkvc_stream *s);
double vqkvc_stream_code_bits(const vqkvc_stream *s);
double vqkvc_stream_gain_bits(const vqkvc_stream *s);

/* ---- text and storage (print.c, serial.c) ---- */

/* For people: one line a stream. */
void vqkvc_plan_print(const vqkvc_plan *plan, vqkvc_buf *out);
/* JSON with sorted keys; tables by name, shape and hash. */
vqkvc_code vqkvc_plan_json(const vqkvc_plan *plan, vqkvc_buf *out, vqkvc_err *err);
/* The JSON, a NUL, and all table bytes: what the store keeps. Writing validates first.
 * Reading checks everything and overwrites *plan, which is empty after a failure. */
vqkvc_code vqkvc_plan_write(const vqkvc_plan *plan, vqkvc_buf *out, vqkvc_err *err);
vqkvc_code vqkvc_plan_read(vqkvc_plan *plan, const void *bytes, size_t n, vqkvc_err *err);
/* Appends the values as little-endian words, or the scales as such and the bytes: what is stored
 * and hashed. */
void vqkvc_table_put(const vqkvc_table *table, vqkvc_buf *out);
/* Hash of the bytes that vqkvc_plan_write gives. */
vqkvc_code vqkvc_plan_hash(const vqkvc_plan *plan, vqkvc_hash *hash, vqkvc_err *err);

/* ---- reference arithmetic in double (reference.c) ---- */

/* Encodes and decodes one block of `n` tokens whose first token is at position `base`, plainly:
 * what tests hold emitted headers against, and what fitting a later stream uses.
 * k, v: [n, n_layers, n_kv_heads, head_dim], keys rotated by their positions (without rope_mscale
 * or with it: it passes through); k_hat, v_hat out: the same shape, keys rotated. Only the first
 * n_streams streams are applied (the rest adds nothing). */
vqkvc_code vqkvc_plan_reference(const vqkvc_plan *plan, int n_streams, int n, int64_t base,
                                const float *k, const float *v, float *k_hat, float *v_hat,
                                vqkvc_err *err);

/* One stream on its own vectors x [n, n_in] (members concatenated, keys in the stream's frame, what
 * earlier streams coded already taken off): x_hat [n, n_in] out, codes out or NULL:
 * [n, vqkvc_stream_codes(s)] by run, group, stage; a F16 code is its bit pattern. Arithmetic as in
 * vqkvc_plan_reference(); needs only a stream and tables that are sound. x_hat may be x. */
vqkvc_code vqkvc_stream_reference(const vqkvc_plan *plan, const vqkvc_stream *s, int n,
                                  const float *x, float *x_hat, int32_t *codes, vqkvc_err *err);
/* The same with the two products of the transform in float: for fitting on many samples. Codes
 * differ from the reference where two codewords are about equally near. */
vqkvc_code vqkvc_stream_apply(const vqkvc_plan *plan, const vqkvc_stream *s, int n, const float *x,
                              float *x_hat, int32_t *codes, vqkvc_err *err);

/* ---- schemes ---- */

typedef struct vqkvc_window {
    int n_sink, n_recent, block; /* negative or 0: the scheme's default */
} vqkvc_window;

/* Schemes without calibration, by name ("f16", "q8_0", "kivi2", ...: presets.c has the list). *plan
 * is overwritten; after a failure it is empty. */
vqkvc_code vqkvc_plan_preset(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                             const vqkvc_window *window, vqkvc_err *err);

#endif
