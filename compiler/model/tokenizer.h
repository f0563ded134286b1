/* tokenizer.h - the tokenizers that GGUF files carry: SentencePiece-style BPE with byte fallback
 * ("llama") and GPT-2-style byte-level BPE with a pre-tokenizer pattern ("gpt2"). */
#ifndef VQKVC_MODEL_TOKENIZER_H
#define VQKVC_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/gguf.h"

typedef struct vqkvc_tokenizer vqkvc_tokenizer;

/* Reads tokenizer.ggml.* of an open GGUF file, which must outlive the tokenizer. Refused, with the
 * key or the token named: another tokenizer, a pre-tokenizer that is not known (BPE), arrays whose
 * lengths disagree, special ids outside the vocabulary, merges of unknown tokens. add_bos_token,
 * where the file does not say: yes for SentencePiece and for Llama 3's patterns, else no. */
vqkvc_code vqkvc_tokenizer_open(vqkvc_tokenizer **t, vqkvc_gguf *g, vqkvc_err *err);
void vqkvc_tokenizer_close(vqkvc_tokenizer *t);

/* As vqkvc_tokenize() and vqkvc_token_bytes() in model.h.
 *
 * Encoding takes text for text: control tokens written out ("<s>") are ordinary characters; only
 * user-defined tokens are found verbatim, the longest first, before anything else. Text is not
 * normalised. Bytes that are no UTF-8 become byte tokens. What the vocabulary cannot say becomes
 * its unknown token, or an error where it has none. At most INT32_MAX bytes; O(n log n).
 *
 * Bytes are those of running text: spaces for U+2581, the byte of <0xNN>, decoded byte characters;
 * control and unknown tokens have none. *bytes is not NUL-terminated. */
vqkvc_code vqkvc_tokenizer_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                                  int add_bos, int32_t *ids, size_t cap, size_t *n, vqkvc_err *err);
vqkvc_code vqkvc_tokenizer_bytes(const vqkvc_tokenizer *t, int32_t id, const char **bytes,
                                 size_t *n, vqkvc_err *err);
int vqkvc_tokenizer_vocab_size(const vqkvc_tokenizer *t);
int32_t vqkvc_tokenizer_bos(const vqkvc_tokenizer *t); /* -1: none */
int32_t vqkvc_tokenizer_eos(const vqkvc_tokenizer *t);

#endif
