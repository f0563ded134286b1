/* source.h - which token sequences a capture sees: the model's own samples, text, or token ids.
 *
 * A source is a list of sequences of at most `window` tokens. Token number t of a capture is token
 * t - start[s] of the sequence s that holds it. */
#ifndef VQKVC_CAPTURE_SOURCE_H
#define VQKVC_CAPTURE_SOURCE_H

#include "capture/capture.h"
#include "model/model.h"

/* What a capture is asked for. 0 stands for the default everywhere. */
typedef struct vqkvc_capture_params {
    int64_t n_tokens;   /* tokens to see; 32768, for an imported dump all of it; below 2^31 */
    int n_sample;       /* tokens to keep; 8192 */
    int n_skip;         /* first positions of each sequence that are not kept; 4, -1 for none */
    int window;         /* tokens a sequence; 1024, at most what the model was trained for */
    int random_windows; /* text and ids: choose windows by the seed, not evenly */
    int shard;          /* sequences a shard of text or ids; 8 */
    int batch;          /* self-sampling: sequences in one step and in one shard; 16 */
    uint64_t seed;      /* 1 */
    float temperature;  /* self-sampling; 1.0 */
    int top_k;          /* self-sampling; 0: all */
    float top_p;        /* self-sampling; 1.0 */
    void *self;         /* for the two callbacks, which may be NULL */
    /* Every finished shard, in order; part is borrowed. A failure ends the capture. */
    vqkvc_code (*shard_done)(void *self, int shard, const vqkvc_capture *part, vqkvc_err *err);
    /* Is there a finished shard of an earlier run with the same vqkvc_capture_recipe()? Sets *found
     * and then fills *part, which the caller of the callback frees. */
    vqkvc_code (*shard_load)(void *self, int shard, vqkvc_capture *part, int *found,
                             vqkvc_err *err);
} vqkvc_capture_params;

/* Defaults filled in; refuses what is out of range with VQKVC_E_USAGE. n_tokens 0 stays 0 if
 * all_tokens (import). g may be NULL (no trained context to keep to). */
vqkvc_code vqkvc_capture_params_resolve(const vqkvc_capture_params *in, const vqkvc_geometry *g,
                                        int all_tokens, vqkvc_capture_params *out, vqkvc_err *err);

typedef struct vqkvc_source {
    char name[256];  /* "self" or base names of files */
    vqkvc_hash hash; /* of the token ids, or of the parameters of self-sampling */
    int n_seq;
    int64_t *start; /* [n_seq + 1] first token of each sequence, then the number of tokens */
    int32_t *ids;   /* [start[n_seq]], or NULL: sampled from the model while capturing */
    /* What the files hold besides, in runs that reach neither across files nor across a sequence.
     */
    int n_spare;
    int64_t *spare_start; /* [n_spare + 1], as start */
    int32_t *spare;       /* [spare_start[n_spare]] */
    int32_t bos;          /* that windows begin with; -1: none wanted */
    vqkvc_hash spare_hash;
} vqkvc_source;

/* Sequences that the model samples itself. Each starts with BOS (EOS or a random token where there
 * is none) and runs on past any EOS, as text of several documents does. */
vqkvc_code vqkvc_source_self(vqkvc_source *s, const vqkvc_model *model,
                             const vqkvc_capture_params *params, vqkvc_err *err);

/* UTF-8 text files, each tokenized whole and cut into windows with BOS in front of each (if the
 * model wants one); so many windows, spread over all files, as n_tokens needs. If the text is too
 * short all of it is taken, which is said on the log. */
vqkvc_code vqkvc_source_text(vqkvc_source *s, const vqkvc_model *model, const char *const *paths,
                             int n_paths, const vqkvc_capture_params *params, const vqkvc_log *log,
                             vqkvc_err *err);

/* The same from files of token ids, little-endian int32. An id outside the vocabulary is an error
 * that names file and byte offset. */
vqkvc_code vqkvc_source_ids(vqkvc_source *s, const vqkvc_model *model, const char *const *paths,
                            int n_paths, const vqkvc_capture_params *params, const vqkvc_log *log,
                            vqkvc_err *err);

/* Cuts n_windows windows of `context` tokens, evenly spread, BOS in front, out of what the
 * sequences left of the files: windows [n_windows, context]. *found is 0 where too little is left,
 * or where there are no files. */
vqkvc_code vqkvc_source_spare(const vqkvc_source *s, int n_windows, int context, int32_t *windows,
                              int *found, vqkvc_err *err);

/* Also after a failure. */
void vqkvc_source_free(vqkvc_source *s);

#endif
