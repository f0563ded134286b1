/* SentencePiece BPE with byte fallback (Kudo and Richardson 2018, "SentencePiece"). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define MARK     "\xe2\x96\x81" /* U+2581, which stands for a space */
#define MARK_LEN 3u

static int is_mark(const char *s, size_t n)
{
    return n >= MARK_LEN && memcmp(s, MARK, MARK_LEN) == 0;
}

void vqkvc_spm_escape(vqkvc_buf *buf, const char *text, size_t len)
{
    while (len > 0) {
        const char *space = memchr(text, ' ', len);
        size_t n = space == NULL ? len : (size_t)(space - text);
        vqkvc_buf_put(buf, text, n);
        if (space == NULL)
            break;
        vqkvc_buf_put(buf, MARK, MARK_LEN);
        text += n + 1;
        len -= n + 1;
    }
}

/* ---- loading ---- */

static vqkvc_code load_scores(vqkvc_tokenizer *t, const vqkvc_gguf *g, vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_need_array(g, "tokenizer.ggml.scores", 0, t->n_vocab, err);
    if (kv == NULL)
        return err->code;
    t->spm.scores = vqkvc_arena_alloc(&t->arena, (size_t)t->n_vocab, sizeof(float), err);
    if (t->spm.scores == NULL)
        return err->code;
    for (int i = 0; i < t->n_vocab; i++) {
        t->spm.scores[i] = (float)vqkvc_gguf_array_number(kv, (uint64_t)i);
        if (isnan(t->spm.scores[i]))
            return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: the score of token %d is not a number",
                              t->file, i);
    }
    return VQKVC_OK;
}

/* Control, unknown and byte tokens are never what text is read as. */
static int is_readable(uint8_t type)
{
    return type != VQKVC_TOKEN_CONTROL && type != VQKVC_TOKEN_UNKNOWN && type != VQKVC_TOKEN_BYTE;
}

static int has_inner_mark(const vqkvc_piece *p)
{
    for (uint32_t i = 1; i + MARK_LEN <= p->n; i++)
        if (is_mark(p->s + i, p->n - i) && !(i >= MARK_LEN && is_mark(p->s + i - MARK_LEN, i)))
            return 1;
    return 0;
}

static vqkvc_code index_pieces(vqkvc_tokenizer *t, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_token_map_make(&t->by_text, &t->arena, (size_t)t->n_vocab, err));
    for (int i = 0; i < t->n_vocab; i++) {
        const vqkvc_piece *p = &t->pieces[i];
        if (p->n == 0 || !is_readable(t->types[i]))
            continue;
        vqkvc_token_map_put(&t->by_text, p->s, p->n, i);
        t->spm.max_piece = p->n > t->spm.max_piece ? p->n : t->spm.max_piece;
        t->spm.crosses_words |= has_inner_mark(p);
    }
    return VQKVC_OK;
}

/* Writes a piece as running text and returns its length, which is at most the piece's. */
static uint32_t decode_piece(const vqkvc_piece *p, char *dst)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n;) {
        int mark = is_mark(p->s + i, p->n - i);
        dst[n++] = mark ? ' ' : p->s[i];
        i += mark ? MARK_LEN : 1;
    }
    return n;
}

static vqkvc_code decode_pieces(vqkvc_tokenizer *t, vqkvc_err *err)
{
    size_t total = 256;
    for (int i = 0; i < t->n_vocab; i++)
        total += t->pieces[i].n;
    char *dst = vqkvc_arena_alloc(&t->arena, total, 1, err);
    if (dst == NULL)
        return err->code;
    for (int i = 0; i < t->n_vocab; i++) {
        if (!is_readable(t->types[i]))
            continue;
        t->decoded[i] = (vqkvc_piece){dst, decode_piece(&t->pieces[i], dst)};
        dst += t->decoded[i].n;
    }
    for (int byte = 0; byte < 256; byte++) {
        if (t->byte_token[byte] < 0)
            continue;
        *dst = (char)byte;
        t->decoded[t->byte_token[byte]] = (vqkvc_piece){dst++, 1};
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_spm_load(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err)
{
    VQKVC_TRY(load_scores(t, g, err));
    VQKVC_TRY(vqkvc_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", 1, &t->spm.add_space_prefix,
                                  err));
    VQKVC_TRY(vqkvc_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", 1, &t->add_bos, err));
    VQKVC_TRY(index_pieces(t, err));
    return decode_pieces(t, err);
}

/* ---- encoding ---- */

static int join_by_score(const vqkvc_tokenizer *t, const char *word, const vqkvc_symbol *left,
                         const vqkvc_symbol *right, vqkvc_bigram *out)
{
    (void)right;
    if (out->len > t->spm.max_piece)
        return 0;
    out->id = vqkvc_token_map_get(&t->by_text, word + left->start, out->len);
    if (out->id < 0)
        return 0;
    out->priority = (double)t->spm.scores[out->id];
    return 1;
}

/* A symbol that is no token: its bytes if the vocabulary has them all, else the unknown token. */
static vqkvc_code emit_fallback(const vqkvc_tokenizer *t, const char *s, size_t n,
                                vqkvc_id_sink *sink, vqkvc_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (t->byte_token[(uint8_t)s[i]] < 0)
            return vqkvc_emit_unknown(t, s + i, sink, err);
    for (size_t i = 0; i < n; i++)
        vqkvc_emit_id(sink, t->byte_token[(uint8_t)s[i]]);
    return VQKVC_OK;
}

/* Bytes of the first symbol: a character, or a byte that is no UTF-8. */
static size_t symbol_len(const char *s, size_t n)
{
    size_t len = vqkvc_utf8_len(s, n);
    return len == 0 ? 1 : len;
}

/* Text between two places that no piece spans. */
static vqkvc_code encode_word(const vqkvc_tokenizer *t, vqkvc_merger *m, const char *word, size_t n,
                              vqkvc_id_sink *sink, vqkvc_err *err)
{
    size_t n_symbols = 0;
    if (n == 0)
        return VQKVC_OK;
    for (size_t i = 0; i < n; i += symbol_len(word + i, n - i))
        n_symbols++;
    VQKVC_TRY(vqkvc_merger_reset(m, n_symbols, err));
    for (size_t i = 0, len; i < n; i += len) {
        len = symbol_len(word + i, n - i);
        vqkvc_merger_add(m, (uint32_t)len, vqkvc_token_map_get(&t->by_text, word + i, len));
    }
    vqkvc_merger_run(m, t, word, join_by_score);
    for (uint32_t i = 0; i != VQKVC_NO_SYMBOL; i = m->symbols[i].next) {
        const vqkvc_symbol *s = &m->symbols[i];
        if (s->id >= 0)
            vqkvc_emit_id(sink, s->id);
        else
            VQKVC_TRY(emit_fallback(t, word + s->start, s->len, sink, err));
    }
    return VQKVC_OK;
}

/* Whether a word begins at s + i when the current one began at s. Cutting there keeps the queue
 * short, and is exact as long as no piece has a mark behind another character. */
static int begins_word(const vqkvc_tokenizer *t, const char *s, size_t i, size_t n)
{
    return !t->spm.crosses_words && is_mark(s + i, n - i) && i > 0 &&
           !(i >= MARK_LEN && is_mark(s + i - MARK_LEN, MARK_LEN));
}

static vqkvc_code encode_escaped(const vqkvc_tokenizer *t, vqkvc_merger *m, const char *s, size_t n,
                                 vqkvc_id_sink *sink, vqkvc_err *err)
{
    size_t start = 0, i = 0;
    while (i < n) {
        int32_t id;
        size_t verbatim = vqkvc_match_verbatim(t, s + i, n - i, &id);
        if (verbatim > 0) {
            VQKVC_TRY(encode_word(t, m, s + start, i - start, sink, err));
            vqkvc_emit_id(sink, id);
            i += verbatim;
            start = i;
            continue;
        }
        if (begins_word(t, s + start, i - start, n - start)) {
            VQKVC_TRY(encode_word(t, m, s + start, i - start, sink, err));
            start = i;
        }
        i += symbol_len(s + i, n - i);
    }
    return encode_word(t, m, s + start, n - start, sink, err);
}

vqkvc_code vqkvc_spm_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                            vqkvc_id_sink *sink, vqkvc_err *err)
{
    vqkvc_buf buf = {0};
    vqkvc_merger merger = {0};
    if (t->spm.add_space_prefix)
        vqkvc_buf_puts(&buf, MARK);
    vqkvc_spm_escape(&buf, text, len);
    if (buf.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "cannot allocate a copy of %zu bytes of text", len);
    else if (buf.len > INT32_MAX)
        vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "a text of %zu bytes is too long to tokenize", len);
    else
        encode_escaped(t, &merger, buf.data, buf.len, sink, err);
    vqkvc_merger_free(&merger);
    free(buf.data);
    return err->code;
}
