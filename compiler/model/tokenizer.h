/* tokenizer.h - the tokenizers that GGUF files carry: SentencePiece-style BPE with byte fallback
 * ("llama") and GPT-2-style byte-level BPE with a pre-tokenizer pattern ("gpt2"). */
#ifndef VQKVC_MODEL_TOKENIZER_H
#define VQKVC_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/gguf.h"

typedef struct vqkvc_tokenizer vqkvc_tokenizer;

/* Reads tokenizer.ggml.* of an open GGUF file, which must outlive the tokenizer. */
vqkvc_code vqkvc_tokenizer_open(vqkvc_tokenizer **t, vqkvc_gguf *g, vqkvc_err *err);
void vqkvc_tokenizer_close(vqkvc_tokenizer *t);

/* As vqkvc_tokenize() and vqkvc_token_bytes() in model.h. */
vqkvc_code vqkvc_tokenizer_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                                  int add_bos, int32_t *ids, size_t cap, size_t *n, vqkvc_err *err);
vqkvc_code vqkvc_tokenizer_bytes(const vqkvc_tokenizer *t, int32_t id, const char **bytes,
                                 size_t *n, vqkvc_err *err);
int vqkvc_tokenizer_vocab_size(const vqkvc_tokenizer *t);
int32_t vqkvc_tokenizer_bos(const vqkvc_tokenizer *t); /* -1: none */
int32_t vqkvc_tokenizer_eos(const vqkvc_tokenizer *t);

#endif
