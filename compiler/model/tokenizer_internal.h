/* tokenizer_internal.h - what the two tokenizers share: the loaded vocabulary, a table from strings
 * to ids, and the loop that joins neighbouring symbols. */
#ifndef VQKVC_MODEL_TOKENIZER_INTERNAL_H
#define VQKVC_MODEL_TOKENIZER_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

typedef enum vqkvc_token_type { /* as in tokenizer.ggml.token_type */
                                VQKVC_TOKEN_UNDEFINED = 0,
                                VQKVC_TOKEN_NORMAL = 1,
                                VQKVC_TOKEN_UNKNOWN = 2,
                                VQKVC_TOKEN_CONTROL = 3,
                                VQKVC_TOKEN_USER_DEFINED = 4,
                                VQKVC_TOKEN_UNUSED = 5,
                                VQKVC_TOKEN_BYTE = 6
} vqkvc_token_type;

typedef struct vqkvc_piece {
    const char *s; /* borrowed from the mapping or the tokenizer's arena, not NUL-terminated */
    uint32_t n;    /* bytes */
} vqkvc_piece;

/* ---- byte strings to numbers: open addressing, filled once while loading ---- */

typedef struct vqkvc_token_map {
    struct vqkvc_slot *slots; /* [mask + 1] */
    size_t mask;
} vqkvc_token_map;

/* Room for n keys, from the arena. */
vqkvc_code vqkvc_token_map_make(vqkvc_token_map *table, vqkvc_arena *arena, size_t n,
                                vqkvc_err *err);
/* Keys are borrowed. The first value of a key stays. */
void vqkvc_token_map_put(vqkvc_token_map *table, const void *key, size_t n, int32_t value);
/* The value (>= 0), or -1. */
int32_t vqkvc_token_map_get(const vqkvc_token_map *table, const void *key, size_t n);

/* ---- joining symbols ---- */

#define VQKVC_NO_SYMBOL UINT32_MAX

typedef struct vqkvc_symbol {
    uint32_t start, len; /* bytes of the word; len 0: joined to its left neighbour */
    uint32_t prev, next; /* VQKVC_NO_SYMBOL at the ends */
    int32_t id;          /* -1: the symbol is no token */
} vqkvc_symbol;

typedef struct vqkvc_bigram {
    double priority;
    uint32_t left, right, len; /* len: of both when queued, which tells stale entries */
    int32_t id;                /* what they become */
} vqkvc_bigram;

/* Whether two neighbours in a word join; if so into which token, and how early (greater first). */
typedef int (*vqkvc_join_fn)(const vqkvc_tokenizer *t, const char *word, const vqkvc_symbol *left,
                             const vqkvc_symbol *right, vqkvc_bigram *out);

/* Working memory of one encoding, reused from word to word. Starts as {0}. */
typedef struct vqkvc_merger {
    vqkvc_symbol *symbols;
    vqkvc_bigram *heap;
    size_t cap;
    uint32_t n_symbols;
    size_t n_heap;
} vqkvc_merger;

/* Empties the merger and makes room for n symbols. */
vqkvc_code vqkvc_merger_reset(vqkvc_merger *m, size_t n, vqkvc_err *err);
/* Adds the next symbol of the word, at most as many as were reserved. */
void vqkvc_merger_add(vqkvc_merger *m, uint32_t len, int32_t id);
/* Joins until nothing joins; always the greatest priority first, the leftmost of equals. What is
 * left is read from symbol 0 along `next`. O(n log n). */
void vqkvc_merger_run(vqkvc_merger *m, const vqkvc_tokenizer *t, const char *word,
                      vqkvc_join_fn join);
void vqkvc_merger_free(vqkvc_merger *m);

/* ---- output ---- */

typedef struct vqkvc_id_sink {
    int32_t *ids;  /* [cap] */
    size_t cap, n; /* n counts what did not fit as well */
    int32_t last;  /* the latest id, -1 at the start */
} vqkvc_id_sink;

static inline void vqkvc_emit_id(vqkvc_id_sink *sink, int32_t id)
{
    if (sink->n < sink->cap)
        sink->ids[sink->n] = id;
    sink->n++;
    sink->last = id;
}

/* ---- the tokenizer ---- */

struct vqkvc_tokenizer {
    vqkvc_arena arena;
    const char *file; /* path, for messages; borrowed from the gguf */
    int is_bpe;       /* byte-level BPE; otherwise SentencePiece */
    int n_vocab;
    vqkvc_piece *pieces;  /* [n_vocab] as in the file */
    vqkvc_piece *decoded; /* [n_vocab] as in running text */
    uint8_t *types;       /* [n_vocab] vqkvc_token_type */
    int32_t bos, eos, unk;
    int add_bos;
    vqkvc_token_map by_text; /* piece -> id, of the pieces that text can become */
    int32_t byte_token[256]; /* -1: the vocabulary has none */

    /* User-defined tokens, sorted by text, and which bytes they begin with. */
    vqkvc_piece *verbatim;
    int32_t *verbatim_ids;
    size_t n_verbatim;
    uint8_t verbatim_starts[256];

    struct {                /* SentencePiece */
        float *scores;      /* [n_vocab] */
        uint32_t max_piece; /* bytes of the longest piece */
        int add_space_prefix;
        int crosses_words; /* some piece has U+2581 behind another character */
    } spm;
    struct {                   /* byte-level BPE */
        void *pattern;         /* pcre2_code, owned */
        int whole_words;       /* a word that is a token is taken without merging */
        int32_t (*pairs)[2];   /* [n_merges] ids, by rank */
        int32_t *merged;       /* [n_merges] the id they become */
        vqkvc_token_map ranks; /* pair -> rank */
    } bpe;
};

/* Bytes of the well-formed UTF-8 sequence (RFC 3629: no surrogates, nothing overlong) that s begins
 * with, or 0. n > 0. */
size_t vqkvc_utf8_len(const char *s, size_t n);

/* The longest user-defined token that s begins with: its bytes and id, or 0. n > 0. */
size_t vqkvc_match_verbatim(const vqkvc_tokenizer *t, const char *s, size_t n, int32_t *id);

/* Emits the unknown token for a piece of text without tokens, or fails if there is none. */
vqkvc_code vqkvc_emit_unknown(const vqkvc_tokenizer *t, const char *s, vqkvc_id_sink *sink,
                              vqkvc_err *err);

/* An array of the file with the given number of elements (n < 0: any), of strings or of numbers.
 * NULL with *err set if it is absent, of another type, or of another length. */
const vqkvc_gguf_kv *vqkvc_need_array(const vqkvc_gguf *g, const char *key, int strings, int64_t n,
                                      vqkvc_err *err);

/* Fill the parts of their kind (and by_text, byte_token, decoded), the rest of the vocabulary being
 * loaded. */
vqkvc_code vqkvc_spm_load(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err);
vqkvc_code vqkvc_bpe_load(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err);
void vqkvc_bpe_unload(vqkvc_tokenizer *t);

vqkvc_code vqkvc_spm_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                            vqkvc_id_sink *sink, vqkvc_err *err);
vqkvc_code vqkvc_bpe_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                            vqkvc_id_sink *sink, vqkvc_err *err);

/* Appends text to buf with every space as U+2581. */
void vqkvc_spm_escape(vqkvc_buf *buf, const char *text, size_t len);

#endif
