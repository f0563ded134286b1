/* time_model.h - how long attention takes: nanoseconds per cached token and KV head, as a linear
 * function of what a plan has attention do. The coefficients are measured on a machine, for one
 * instruction set and shape of head; the function itself is pure.
 *
 * What is told apart: scores meet a plane of nibbles through tables or codewords, by how many
 * channels share it; sums decode it; keys rotated in their block have the query mapped once a
 * block, and codewords that meet it; keys without rotation are rebuilt by a dense product. */
#ifndef VQKVC_PLAN_TIME_MODEL_H
#define VQKVC_PLAN_TIME_MODEL_H

#include "plan/allocate.h"
#include "plan/plan.h"

/* Each in nanoseconds per cached token. A plane is one nibble of every token; "by width": shared by
 * 1, 2, 4, 8 channels, in this order. */
#define VQKVC_TIME_LIST(X)                                                                         \
    X(TOKEN, "token") /* a KV head of a layer, whatever it reads: softmax, calls */                \
    X(EXACT, "exact") /* times exact tokens / tokens: such a head's window */                      \
    X(K_STREAM, "k")  /* a stream of its keys: gains */                                            \
    X(K1, "k1")       /* a plane of its keys with a channel of its own: by codewords */            \
    X(K2, "k2")       /* a plane of its keys for more channels: by tables, however many */         \
    X(KD, "kd")       /* where queries turn: by codewords, up to four channels of it */            \
    X(V_STREAM, "v")  /* a stream of its values */                                                 \
    X(V1, "v1")       /* a plane of its values, by width */                                        \
    X(V2, "v2")                                                                                    \
    X(V4, "v4")                                                                                    \
    X(V8, "v8")                                                                                    \
    X(BLOCK, "block") /* times 1 / block: a head whose queries turn to every block */              \
    X(MAP1, "map1")   /* times 1 / block: such a head's plane of keys, by width */                 \
    X(MAP2, "map2")                                                                                \
    X(MAP4, "map4")                                                                                \
    X(MAP8, "map8")                                                                                \
    X(REBUILT, "rebuilt") /* a head whose keys are rebuilt */                                      \
    X(DECODE, "decode")   /* a plane that is decoded for that, once for all heads of a layer */    \
    X(PRODUCT, "product") /* a latent that each such head multiplies by the basis */

#define X(name, word) VQKVC_TIME_##name,
enum { VQKVC_TIME_LIST(X) VQKVC_TIME_TERMS };
#undef X

typedef struct vqkvc_time_model {
    char isa[16]; /* "avx512" */
    int head_dim, group;
    double ns[VQKVC_TIME_TERMS]; /* none negative */
} vqkvc_time_model;

/* Who reads a stream, and how. */
typedef struct vqkvc_time_readers {
    vqkvc_part part;
    vqkvc_frame frame;      /* of keys */
    int block;              /* tokens */
    int members;            /* KV heads of layers that read it */
    int layers;             /* that these are of */
    double steady_channels; /* in frame BLOCK, the part of a head's channels that are (frame.h) */
    double steady_latents;  /* and of its latents */
} vqkvc_time_readers;

/* Tokens in the cache: some are exact, and calls take time of their own. */
enum { VQKVC_TIME_CONTEXT = 16384 };

/* What a plan has attention do for a token in all heads of one layer (-1: of all layers) when
 * `context` tokens are cached: terms [VQKVC_TIME_TERMS] out, so that time = sum of ns * terms.
 * Returns 0 where the model does not say how long that takes (other codes than nibbles of 1, 2, 4
 * or 8 channels, predictors, other gains than RMS); landmarks and vectors kept exactly are not
 * counted. */
int vqkvc_time_terms(const vqkvc_plan *plan, int layer, int context, double *terms);

/* Nanoseconds per cached token and KV head of VQKVC_TIME_CONTEXT tokens, the mean over layers and
 * KV heads; negative where the model does not say. */
double vqkvc_time_predict(const vqkvc_time_model *m, const vqkvc_plan *plan);

/* The same piece by piece, for a search; nanoseconds per cached token in all its readers. A plan's
 * time is the sum of its streams' (what each takes whatever it codes, and groups of channels by
 * option of allocate.h, each [VQKVC_LAYOUT_RUNS] out) and of the heads', over layers * heads. */
double vqkvc_time_stream(const vqkvc_time_model *m, const vqkvc_time_readers *r);
void vqkvc_time_groups(const vqkvc_time_model *m, const vqkvc_time_readers *r, double *each);
double vqkvc_time_heads(const vqkvc_time_model *m, vqkvc_frame frame, const vqkvc_window *window,
                        int heads);

/* ---- as text: what recipes, command lines and the store hold ---- */

/* Appends "isa=avx512,head_dim=128,group=4,token=1.25,k=0.03125,..." */
void vqkvc_time_print(const vqkvc_time_model *m, vqkvc_buf *out);
/* Reads exactly that; fails with VQKVC_E_USAGE, naming the field and its offset. */
vqkvc_code vqkvc_time_parse(const char *text, vqkvc_time_model *m, vqkvc_err *err);

/* ---- measuring ---- */

/* The coefficients that fit n measurements best: terms [n, VQKVC_TIME_TERMS], ns [n] (positive).
 * Least squares of the relative errors, no coefficient below 0, rounded to what
 * vqkvc_time_print() shows. The largest relative error to *worst. */
vqkvc_code vqkvc_time_fit(int n, const double *terms, const double *ns, vqkvc_time_model *m,
                          double *worst, vqkvc_err *err);

#endif
