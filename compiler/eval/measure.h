/* measure.h - what emitted headers cost in fidelity: teacher-forced runs of the model over windows
 * of held-out text, the exact cache and every codec in lockstep.
 *
 * Memory: windows run in groups, one sequence each, as many at once as keep the caches (exact:
 * 8 * context * n_layers * n_kv_heads * head_dim bytes a window; codecs: what their size call says,
 * three times with probe) and the logits ((4 n + 12) * step * vocab bytes a window) within
 * max_bytes, one at least; besides these, 24 * (n + 1) bytes a token. */
#ifndef VQKVC_EVAL_MEASURE_H
#define VQKVC_EVAL_MEASURE_H

#include "base/log.h"
#include "eval/cache_header.h"
#include "eval/compare.h"
#include "eval/load.h"
#include "model/model.h"

/* A loaded header under test; both pointers are borrowed. */
typedef struct vqkvc_subject {
    const char *name; /* the scheme or the file, for messages and tables */
    const vqkvc_codec *codec;
    int top_tokens; /* of the coded ones that attention goes to; 0: all */
} vqkvc_subject;

/* Zero means the default everywhere but in context, n_windows and log. */
typedef struct vqkvc_measure_options {
    int context;       /* tokens of a window */
    int n_windows;     /* windows */
    int step;          /* tokens a forward pass; 1: as decoding does it. Blocks are encoded between
                          passes, so a longer step leaves tokens exact for longer */
    int first_counted; /* the main figures count positions from here on; 128: then every scheme
                          with the default window has coded tokens */
    size_t max_bytes;  /* see above; 1 GiB */
    vqkvc_isa isa;     /* of the codecs; the best there is */
    int watch;         /* also measure worst_error and kept_rate (a copy of all keys and values) */
    int probe;         /* also measure layer_error and kernel_error (several times as long) */
    const vqkvc_log *log; /* for progress */
} vqkvc_measure_options;

typedef struct vqkvc_measured {
    vqkvc_fidelity late; /* positions >= first_counted: the main figures */
    vqkvc_fidelity all;  /* all positions */
    double stored_bits;  /* a value: one coded block, see vqkvc_stored_bits() */
    double used_bits;    /* a value: bytes_used at the end of the windows / tokens held */
    double worst_error;  /* with watch: of all vectors read back, |x - x^| / |x|, x in binary16 */
    double kept_rate;    /* with watch: vectors on the exact list / coded ones at the end */
    double layer_error[VQKVC_MAX_LAYERS];  /* with probe: |o - o_ref| / |o_ref| of the attention
                              output, root of sums of squares over queries >= first_counted */
    double kernel_error[VQKVC_MAX_LAYERS]; /* with probe: |o - o_plain| / |o - o_ref|, where o_plain
                             is of the same codec in portable C: what the kernels add */
    int n_layers;                          /* entries of these; 0 without probe */
    double seconds;                        /* in this codec's forward passes */
} vqkvc_measured;

/* Measures n subjects on tokens [n_windows, context]; results [n]. The same figures for any number
 * of threads. Fails with E_USAGE for a codec of another geometry or a context that is not longer
 * than first_counted, with E_NUMERIC, naming window and position, for logits that are not finite.
 */
vqkvc_code vqkvc_measure(vqkvc_model *model, const int32_t *tokens, int n,
                         const vqkvc_subject *subjects, const vqkvc_measure_options *options,
                         vqkvc_measured *results, vqkvc_err *err);

/* Cuts n_windows windows of `context` tokens, evenly spread and not overlapping, out of a text of
 * n_tokens: windows [n_windows, context]. bos >= 0 takes the place of each window's first token. */
vqkvc_code vqkvc_cut_windows(const int32_t *tokens, size_t n_tokens, int n_windows, int context,
                             int32_t bos, int32_t *windows, vqkvc_err *err);

#endif
