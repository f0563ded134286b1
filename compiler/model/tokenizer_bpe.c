/* GPT-2's byte-level BPE (Radford et al. 2019): a pattern cuts text into words, each byte of a word
 * is a character of its own, and ranked merges join them. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

/* ---- patterns ---- */

/* White space as Unicode defines it. PCRE2's \s is Perl's, which counts U+180E as well. */
#define WS     "\\t-\\r\\x{85}\\p{Z}"
#define SPACE  "[" WS "]"
#define L      "\\p{L}"
#define N      "\\p{N}"
#define SPACES SPACE "+(?![^" WS "])|" SPACE "+"
#define GPT2   "'s|'t|'re|'ve|'m|'ll|'d| ?" L "+| ?" N "+| ?[^" WS L N "]+|" SPACES
#define CL100K(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n" L N "]?" L "+|" N digits "| ?[^" WS L N                \
    "]+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACES

typedef struct vqkvc_pretokenizer {
    const char *names; /* of tokenizer.ggml.pre, space before and behind each */
    const char *pattern;
    int whole_words; /* a word that is a token is not merged ("ignore_merges") */
    int add_bos;     /* when the file does not say: Llama 3 files leave it to the reader */
} vqkvc_pretokenizer;

static const vqkvc_pretokenizer pretokenizers[] = {
    {" default gpt-2 phi-2 ", GPT2, 0, 0},
    {" llama-bpe llama3 llama-v3 ", CL100K("{1,3}"), 1, 1},
    {" smaug-bpe dbrx ", CL100K("{1,3}"), 0, 0},
    {" qwen2 deepseek-r1-qwen stablelm2 ", CL100K(""), 0, 0},
};

#define N_PRETOKENIZERS (sizeof pretokenizers / sizeof pretokenizers[0])

static const vqkvc_pretokenizer *find_pretokenizer(const char *name)
{
    char padded[64];
    size_t n = strlen(name);
    if (n == 0 || n + 3 > sizeof padded || strchr(name, ' ') != NULL)
        return NULL;
    padded[0] = ' ';
    memcpy(padded + 1, name, n);
    memcpy(padded + 1 + n, " ", 2);
    for (size_t i = 0; i < N_PRETOKENIZERS; i++)
        if (strstr(pretokenizers[i].names, padded) != NULL)
            return &pretokenizers[i];
    return NULL;
}

static vqkvc_code refuse_pretokenizer(const vqkvc_tokenizer *t, const char *name, vqkvc_err *err)
{
    vqkvc_buf known = {0};
    for (size_t i = 0; i < N_PRETOKENIZERS; i++)
        vqkvc_buf_put(&known, pretokenizers[i].names, strlen(pretokenizers[i].names) - 1);
    vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "%s: tokenizer.ggml.pre is \"%.64s\"; known are%s",
               t->file, name, known.failed ? "" : known.data);
    free(known.data);
    return err->code;
}

static vqkvc_code load_pattern(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err)
{
    const char *name;
    int number;
    PCRE2_SIZE at;
    VQKVC_TRY(vqkvc_gguf_get_string(g, "tokenizer.ggml.pre", "default", &name, err));
    const vqkvc_pretokenizer *pre = find_pretokenizer(name);
    if (pre == NULL)
        return refuse_pretokenizer(t, name, err);
    t->bpe.whole_words = pre->whole_words;
    VQKVC_TRY(
        vqkvc_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", pre->add_bos, &t->add_bos, err));
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pre->pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &number, &at, NULL);
    if (code == NULL)
        return vqkvc_fail(err, VQKVC_E_FAILED, "PCRE2 error %d in the pattern of \"%s\" at %zu",
                          number, name, (size_t)at);
    /* Without a just-in-time compiler the same pattern is interpreted. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    t->bpe.pattern = code;
    return VQKVC_OK;
}

void vqkvc_bpe_unload(vqkvc_tokenizer *t)
{
    pcre2_code_free(t->bpe.pattern);
}

/* ---- bytes as characters ---- */

/* The character that stands for a byte: itself if it prints in Latin-1, else one from U+0100 on. */
static unsigned char_of_byte(unsigned byte)
{
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121 + (byte - 0x7f);
    return byte == 0xad ? 0x143 : byte;
}

/* Its UTF-8, one or two bytes; returns how many. */
static size_t write_byte_char(unsigned byte, char *dst)
{
    unsigned c = char_of_byte(byte);
    if (c < 0x80) {
        dst[0] = (char)c;
        return 1;
    }
    dst[0] = (char)(0xc0 | c >> 6);
    dst[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

enum { N_BYTE_CHARS = 0x144 };

/* Inverse of char_of_byte: -1 where no byte has the character. */
static void invert_byte_chars(int16_t byte_of_char[N_BYTE_CHARS])
{
    memset(byte_of_char, 0xff, N_BYTE_CHARS * sizeof *byte_of_char);
    for (unsigned byte = 0; byte < 256; byte++)
        byte_of_char[char_of_byte(byte)] = (int16_t)byte;
}

/* Writes a piece as running text; characters that stand for no byte stay as they are. */
static uint32_t decode_piece(const vqkvc_piece *p, const int16_t *byte_of_char, char *dst)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n;) {
        const uint8_t *s = (const uint8_t *)p->s + i;
        uint32_t len = (uint32_t)vqkvc_utf8_len(p->s + i, p->n - i);
        len = len == 0 ? 1 : len;
        unsigned c = len == 2 ? (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu) : s[0];
        int byte = len <= 2 && c < N_BYTE_CHARS ? byte_of_char[c] : -1;
        if (byte >= 0) {
            dst[n++] = (char)byte;
        } else {
            memcpy(dst + n, s, len);
            n += len;
        }
        i += len;
    }
    return n;
}

/* ---- loading ---- */

static vqkvc_code index_pieces(vqkvc_tokenizer *t, vqkvc_err *err)
{
    int16_t byte_of_char[N_BYTE_CHARS];
    size_t total = 0;
    for (int i = 0; i < t->n_vocab; i++)
        total += t->pieces[i].n;
    char *dst = vqkvc_arena_alloc(&t->arena, total, 1, err);
    VQKVC_TRY(vqkvc_token_map_make(&t->by_text, &t->arena, (size_t)t->n_vocab, err));
    if (dst == NULL)
        return err->code;
    invert_byte_chars(byte_of_char);
    for (int i = 0; i < t->n_vocab; i++) {
        const vqkvc_piece *p = &t->pieces[i];
        if (p->n == 0)
            continue;
        vqkvc_token_map_put(&t->by_text, p->s, p->n, i);
        if (t->types[i] == VQKVC_TOKEN_USER_DEFINED) {
            t->decoded[i] = *p;
        } else if (t->types[i] != VQKVC_TOKEN_CONTROL && t->types[i] != VQKVC_TOKEN_UNKNOWN) {
            t->decoded[i] = (vqkvc_piece){dst, decode_piece(p, byte_of_char, dst)};
            dst += t->decoded[i].n;
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char c[2];
        size_t n = write_byte_char(byte, c);
        t->byte_token[byte] = vqkvc_token_map_get(&t->by_text, c, n);
    }
    return VQKVC_OK;
}

/* Merge `rank` is "a b"; both and their concatenation have to be tokens. */
static vqkvc_code load_merge(vqkvc_tokenizer *t, size_t rank, const char *s, size_t n,
                             vqkvc_buf *joined, vqkvc_err *err)
{
    /* A piece may begin with a space of its own in files that are not byte-level throughout. */
    const char *space = n > 2 ? memchr(s + 1, ' ', n - 2) : NULL;
    if (space == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: merge %zu is not two pieces and a space",
                          t->file, rank);
    size_t n_left = (size_t)(space - s), n_right = n - n_left - 1;
    joined->len = 0;
    vqkvc_buf_put(joined, s, n_left);
    vqkvc_buf_put(joined, space + 1, n_right);
    if (joined->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory for merge %zu", t->file, rank);
    int32_t *pair = t->bpe.pairs[rank];
    pair[0] = vqkvc_token_map_get(&t->by_text, s, n_left);
    pair[1] = vqkvc_token_map_get(&t->by_text, space + 1, n_right);
    t->bpe.merged[rank] = vqkvc_token_map_get(&t->by_text, joined->data, joined->len);
    if (pair[0] < 0 || pair[1] < 0 || t->bpe.merged[rank] < 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: merge %zu (\"%.*s\") is of unknown tokens",
                          t->file, rank, (int)(n < 64 ? n : 64), s);
    vqkvc_token_map_put(&t->bpe.ranks, pair, sizeof *t->bpe.pairs, (int32_t)rank);
    return VQKVC_OK;
}

static vqkvc_code load_merges(vqkvc_tokenizer *t, const vqkvc_gguf *g, vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_need_array(g, "tokenizer.ggml.merges", 1, -1, err);
    if (kv == NULL)
        return err->code;
    if (kv->n > INT32_MAX)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s at offset %llu has %llu elements", t->file,
                          kv->key, (unsigned long long)kv->offset, (unsigned long long)kv->n);
    size_t n_merges = (size_t)kv->n;
    t->bpe.pairs = vqkvc_arena_alloc(&t->arena, n_merges, sizeof *t->bpe.pairs, err);
    t->bpe.merged = vqkvc_arena_alloc(&t->arena, n_merges, sizeof *t->bpe.merged, err);
    vqkvc_token_map_make(&t->bpe.ranks, &t->arena, n_merges, err);
    vqkvc_buf joined = {0};
    for (size_t rank = 0; rank < n_merges && err->code == VQKVC_OK; rank++) {
        size_t n;
        const char *s = vqkvc_gguf_array_string(g, kv, rank, &n);
        load_merge(t, rank, s, n, &joined, err);
    }
    free(joined.data);
    return err->code;
}

vqkvc_code vqkvc_bpe_load(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err)
{
    VQKVC_TRY(load_pattern(t, g, err));
    VQKVC_TRY(index_pieces(t, err));
    return load_merges(t, g, err);
}

/* ---- encoding ---- */

typedef struct vqkvc_bpe_run { /* what one encoding carries along */
    const vqkvc_tokenizer *t;
    vqkvc_merger merger;
    vqkvc_buf chars; /* a word in byte characters */
    pcre2_match_data *match;
    pcre2_match_context *limits;
    vqkvc_id_sink *sink;
    vqkvc_err *err;
} vqkvc_bpe_run;

static int join_by_rank(const vqkvc_tokenizer *t, const char *word, const vqkvc_symbol *left,
                        const vqkvc_symbol *right, vqkvc_bigram *out)
{
    int32_t pair[2] = {left->id, right->id};
    (void)word;
    int32_t rank = vqkvc_token_map_get(&t->bpe.ranks, pair, sizeof pair);
    if (rank < 0)
        return 0;
    out->id = t->bpe.merged[rank];
    out->priority = -(double)rank;
    return 1;
}

/* The token that is the whole word, or -1. */
static int32_t whole_word(vqkvc_bpe_run *run, const char *word, size_t n)
{
    run->chars.len = 0;
    for (size_t i = 0; i < n; i++) {
        char c[2];
        vqkvc_buf_put(&run->chars, c, write_byte_char((uint8_t)word[i], c));
    }
    if (run->chars.failed) {
        vqkvc_fail(run->err, VQKVC_E_MEMORY, "cannot allocate for a word of %zu bytes", n);
        return -1;
    }
    int32_t id = vqkvc_token_map_get(&run->t->by_text, run->chars.data, run->chars.len);
    int plain = id >= 0 && run->t->types[id] != VQKVC_TOKEN_CONTROL &&
                run->t->types[id] != VQKVC_TOKEN_UNKNOWN;
    return plain ? id : -1;
}

static vqkvc_code encode_word(vqkvc_bpe_run *run, const char *word, size_t n)
{
    vqkvc_merger *m = &run->merger;
    if (run->t->bpe.whole_words) {
        int32_t id = whole_word(run, word, n);
        if (run->err->code != VQKVC_OK)
            return run->err->code;
        if (id >= 0) {
            vqkvc_emit_id(run->sink, id);
            return VQKVC_OK;
        }
    }
    VQKVC_TRY(vqkvc_merger_reset(m, n, run->err));
    for (size_t i = 0; i < n; i++)
        vqkvc_merger_add(m, 1, run->t->byte_token[(uint8_t)word[i]]);
    vqkvc_merger_run(m, run->t, word, join_by_rank);
    for (uint32_t i = 0; i != VQKVC_NO_SYMBOL; i = m->symbols[i].next) {
        const vqkvc_symbol *s = &m->symbols[i];
        if (s->id >= 0)
            vqkvc_emit_id(run->sink, s->id);
        else
            VQKVC_TRY(vqkvc_emit_unknown(run->t, word + s->start, run->sink, run->err));
    }
    return VQKVC_OK;
}

/* Well-formed UTF-8, cut by the pattern; what it leaves out is a word too. */
static vqkvc_code encode_utf8(vqkvc_bpe_run *run, const char *s, size_t n)
{
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(run->match);
    size_t at = 0;
    while (at < n) {
        int rc = pcre2_match(run->t->bpe.pattern, (PCRE2_SPTR)s, n, at,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, run->match, run->limits);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            return vqkvc_fail(run->err, VQKVC_E_FAILED, "PCRE2 error %d at byte %zu of the text",
                              rc, at);
        size_t start = rc < 0 ? n : span[0], end = rc < 0 ? n : span[1];
        if (start > at)
            VQKVC_TRY(encode_word(run, s + at, start - at));
        if (end > start)
            VQKVC_TRY(encode_word(run, s + start, end - start));
        at = end;
    }
    return VQKVC_OK;
}

/* Text without user-defined tokens. Runs of bytes that are no UTF-8 are words of their own, so that
 * PCRE2 never sees them. */
static vqkvc_code encode_plain(vqkvc_bpe_run *run, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t good = i, bad, len;
        while (good < n && (len = vqkvc_utf8_len(s + good, n - good)) > 0)
            good += len;
        for (bad = good; bad < n && vqkvc_utf8_len(s + bad, n - bad) == 0;)
            bad++;
        VQKVC_TRY(encode_utf8(run, s + i, good - i));
        if (bad > good)
            VQKVC_TRY(encode_word(run, s + good, bad - good));
        i = bad;
    }
    return VQKVC_OK;
}

static vqkvc_code encode_text(vqkvc_bpe_run *run, const char *s, size_t n)
{
    size_t start = 0;
    for (size_t i = 0; run->t->n_verbatim > 0 && i < n;) {
        int32_t id;
        size_t len = vqkvc_match_verbatim(run->t, s + i, n - i, &id);
        if (len == 0) {
            i++;
            continue;
        }
        VQKVC_TRY(encode_plain(run, s + start, i - start));
        vqkvc_emit_id(run->sink, id);
        i += len;
        start = i;
    }
    return encode_plain(run, s + start, n - start);
}

vqkvc_code vqkvc_bpe_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                            vqkvc_id_sink *sink, vqkvc_err *err)
{
    vqkvc_bpe_run run = {.t = t, .sink = sink, .err = err};
    run.match = pcre2_match_data_create(1, NULL);
    run.limits = pcre2_match_context_create(NULL);
    if (run.match == NULL || run.limits == NULL) {
        vqkvc_fail(err, VQKVC_E_MEMORY, "cannot allocate for pattern matching");
    } else {
        /* The patterns cannot backtrack without bound; long runs of spaces need more than the
         * library's default. */
        pcre2_set_match_limit(run.limits, UINT32_MAX);
        encode_text(&run, text, len);
    }
    pcre2_match_context_free(run.limits);
    pcre2_match_data_free(run.match);
    vqkvc_merger_free(&run.merger);
    free(run.chars.data);
    return err->code;
}
