#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/tokenizer_internal.h"

/* ---- table ---- */

struct vqkvc_slot {
    const void *key; /* NULL: empty */
    uint32_t n, hash;
    int32_t value;
};

vqkvc_code vqkvc_token_map_make(vqkvc_token_map *table, vqkvc_arena *arena, size_t n,
                                vqkvc_err *err)
{
    size_t size = 16;
    while (size / 2 < n)
        size *= 2;
    table->mask = size - 1;
    table->slots = vqkvc_arena_alloc(arena, size, sizeof *table->slots, err);
    return table->slots == NULL ? err->code : VQKVC_OK;
}

/* The slot that holds the key, or the empty one where it belongs. */
static struct vqkvc_slot *find_slot(const vqkvc_token_map *table, const void *key, size_t n,
                                    uint32_t hash)
{
    size_t i = hash & table->mask;
    for (;; i = (i + 1) & table->mask) {
        struct vqkvc_slot *s = &table->slots[i];
        if (s->key == NULL || (s->hash == hash && s->n == n && memcmp(s->key, key, n) == 0))
            return s;
    }
}

void vqkvc_token_map_put(vqkvc_token_map *table, const void *key, size_t n, int32_t value)
{
    uint32_t hash = (uint32_t)XXH3_64bits(key, n);
    struct vqkvc_slot *s = find_slot(table, key, n, hash);
    if (s->key == NULL)
        *s = (struct vqkvc_slot){key, (uint32_t)n, hash, value};
}

int32_t vqkvc_token_map_get(const vqkvc_token_map *table, const void *key, size_t n)
{
    const struct vqkvc_slot *s = find_slot(table, key, n, (uint32_t)XXH3_64bits(key, n));
    return s->key == NULL ? -1 : s->value;
}

/* ---- merger ---- */

vqkvc_code vqkvc_merger_reset(vqkvc_merger *m, size_t n, vqkvc_err *err)
{
    m->n_symbols = 0;
    m->n_heap = 0;
    if (n <= m->cap)
        return VQKVC_OK;
    size_t cap = n + n / 2 + 64;
    vqkvc_merger_free(m);
    m->symbols = vqkvc_alloc(cap, sizeof *m->symbols, err);
    /* n - 1 pairs at the start; each of at most n - 1 joins takes one entry and adds at most two.
     */
    m->heap = vqkvc_alloc(2 * cap, sizeof *m->heap, err);
    if (m->symbols == NULL || m->heap == NULL) {
        vqkvc_merger_free(m);
        return err->code;
    }
    m->cap = cap;
    return VQKVC_OK;
}

void vqkvc_merger_free(vqkvc_merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (vqkvc_merger){0};
}

void vqkvc_merger_add(vqkvc_merger *m, uint32_t len, int32_t id)
{
    uint32_t i = m->n_symbols++;
    vqkvc_symbol *s = &m->symbols[i];
    *s = (vqkvc_symbol){0, len, VQKVC_NO_SYMBOL, VQKVC_NO_SYMBOL, id};
    if (i > 0) {
        s->start = s[-1].start + s[-1].len;
        s->prev = i - 1;
        s[-1].next = i;
    }
}

static int comes_before(const vqkvc_bigram *a, const vqkvc_bigram *b)
{
    return a->priority > b->priority || (a->priority == b->priority && a->left < b->left);
}

static void heap_push(vqkvc_merger *m, const vqkvc_bigram *b)
{
    size_t i = m->n_heap++;
    for (; i > 0 && comes_before(b, &m->heap[(i - 1) / 2]); i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = *b;
}

static vqkvc_bigram heap_pop(vqkvc_merger *m)
{
    vqkvc_bigram top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < m->n_heap) {
        if (child + 1 < m->n_heap && comes_before(&m->heap[child + 1], &m->heap[child]))
            child++;
        if (!comes_before(&m->heap[child], &last))
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

static void queue_pair(vqkvc_merger *m, const vqkvc_tokenizer *t, const char *word,
                       vqkvc_join_fn join, uint32_t left, uint32_t right)
{
    if (left == VQKVC_NO_SYMBOL || right == VQKVC_NO_SYMBOL)
        return;
    const vqkvc_symbol *l = &m->symbols[left], *r = &m->symbols[right];
    vqkvc_bigram b = {.left = left, .right = right, .len = l->len + r->len};
    if (join(t, word, l, r, &b))
        heap_push(m, &b);
}

void vqkvc_merger_run(vqkvc_merger *m, const vqkvc_tokenizer *t, const char *word,
                      vqkvc_join_fn join)
{
    for (uint32_t i = 1; i < m->n_symbols; i++)
        queue_pair(m, t, word, join, i - 1, i);
    while (m->n_heap > 0) {
        vqkvc_bigram b = heap_pop(m);
        vqkvc_symbol *l = &m->symbols[b.left], *r = &m->symbols[b.right];
        if (l->len == 0 || r->len == 0 || l->len + r->len != b.len)
            continue;
        l->len += r->len;
        l->id = b.id;
        l->next = r->next;
        r->len = 0;
        if (l->next != VQKVC_NO_SYMBOL)
            m->symbols[l->next].prev = b.left;
        queue_pair(m, t, word, join, l->prev, b.left);
        queue_pair(m, t, word, join, b.left, l->next);
    }
}

/* ---- text ---- */

size_t vqkvc_utf8_len(const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    size_t len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (len > n)
        return 0;
    /* Only the second byte's range depends on the first. */
    uint8_t low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++)
        if (p[i] < 0x80 || p[i] > 0xbf)
            return 0;
    return len;
}

/* The first user-defined token of [lo, hi), all equal before `depth`, whose byte there is at least
 * c. One that ends there sorts before all bytes. */
static size_t verbatim_bound(const vqkvc_tokenizer *t, size_t lo, size_t hi, size_t depth, int c)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const vqkvc_piece *p = &t->verbatim[mid];
        if (depth < p->n && (uint8_t)p->s[depth] >= c)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

size_t vqkvc_match_verbatim(const vqkvc_tokenizer *t, const char *s, size_t n, int32_t *id)
{
    size_t lo = 0, hi = t->n_verbatim, matched = 0;
    if (!t->verbatim_starts[(uint8_t)s[0]])
        return 0;
    for (size_t depth = 0; depth < n && lo < hi; depth++) {
        int c = (uint8_t)s[depth];
        lo = verbatim_bound(t, lo, hi, depth, c);
        hi = verbatim_bound(t, lo, hi, depth, c + 1);
        if (lo < hi && t->verbatim[lo].n == depth + 1) {
            matched = depth + 1;
            *id = t->verbatim_ids[lo];
        }
    }
    return matched;
}

vqkvc_code vqkvc_emit_unknown(const vqkvc_tokenizer *t, const char *s, vqkvc_id_sink *sink,
                              vqkvc_err *err)
{
    if (t->unk < 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: the vocabulary has no token for byte 0x%02x and no unknown token",
                          t->file, (uint8_t)s[0]);
    /* As SentencePiece does, a run of unknown text is one token. */
    if (sink->last != t->unk)
        vqkvc_emit_id(sink, t->unk);
    return VQKVC_OK;
}

/* ---- loading ---- */

const vqkvc_gguf_kv *vqkvc_need_array(const vqkvc_gguf *g, const char *key, int strings, int64_t n,
                                      vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    if (kv == NULL) {
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: no %s", g->map.path, key);
        return NULL;
    }
    int number = kv->element != VQKVC_GGUF_STRING && kv->element != VQKVC_GGUF_ARRAY &&
                 kv->element != VQKVC_GGUF_BOOL;
    if (kv->type != VQKVC_GGUF_ARRAY || (strings ? kv->element != VQKVC_GGUF_STRING : !number)) {
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s at offset %llu is not an array of %s", g->map.path,
                   key, (unsigned long long)kv->offset, strings ? "strings" : "numbers");
        return NULL;
    }
    if (n >= 0 && kv->n != (uint64_t)n) {
        vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s at offset %llu has %llu elements for %lld tokens",
                   g->map.path, key, (unsigned long long)kv->offset, (unsigned long long)kv->n,
                   (long long)n);
        return NULL;
    }
    return kv;
}

static vqkvc_code load_pieces(vqkvc_tokenizer *t, const vqkvc_gguf *g, vqkvc_err *err)
{
    const vqkvc_gguf_kv *kv = vqkvc_need_array(g, "tokenizer.ggml.tokens", 1, -1, err);
    if (kv == NULL)
        return err->code;
    if (kv->n == 0 || kv->n > INT32_MAX)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %s at offset %llu has %llu elements", t->file,
                          kv->key, (unsigned long long)kv->offset, (unsigned long long)kv->n);
    t->n_vocab = (int)kv->n;
    t->pieces = vqkvc_arena_alloc(&t->arena, (size_t)kv->n, sizeof *t->pieces, err);
    t->decoded = vqkvc_arena_alloc(&t->arena, (size_t)kv->n, sizeof *t->decoded, err);
    if (t->pieces == NULL || t->decoded == NULL)
        return err->code;
    for (int i = 0; i < t->n_vocab; i++) {
        size_t n;
        const char *s = vqkvc_gguf_array_string(g, kv, (uint64_t)i, &n);
        if (n > INT32_MAX)
            return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: token %d has %zu bytes", t->file, i, n);
        t->pieces[i] = (vqkvc_piece){s, (uint32_t)n};
    }
    return VQKVC_OK;
}

/* <0xNN>, as SentencePiece writes its byte tokens: the byte, or -1. */
static int byte_of_piece(const vqkvc_piece *p)
{
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";
    if (p->n != 6 || memcmp(p->s, "<0x", 3) != 0 || p->s[5] != '>')
        return -1;
    const char *high = memchr(digits, p->s[3], sizeof digits - 1);
    const char *low = memchr(digits, p->s[4], sizeof digits - 1);
    return high == NULL || low == NULL ? -1
                                       : (int)((high - digits) % 16 * 16 + (low - digits) % 16);
}

static vqkvc_code load_types(vqkvc_tokenizer *t, const vqkvc_gguf *g, vqkvc_err *err)
{
    const char *key = "tokenizer.ggml.token_type";
    const vqkvc_gguf_kv *kv = NULL;
    t->types = vqkvc_arena_alloc(&t->arena, (size_t)t->n_vocab, 1, err);
    if (t->types == NULL)
        return err->code;
    if (vqkvc_gguf_find(g, key) != NULL) {
        kv = vqkvc_need_array(g, key, 0, t->n_vocab, err);
        if (kv == NULL)
            return err->code;
    }
    memset(t->byte_token, 0xff, sizeof t->byte_token);
    for (int i = 0; i < t->n_vocab; i++) {
        int byte = t->is_bpe ? -1 : byte_of_piece(&t->pieces[i]);
        double type = kv != NULL ? vqkvc_gguf_array_number(kv, (uint64_t)i)
                                 : (byte >= 0 ? VQKVC_TOKEN_BYTE : VQKVC_TOKEN_NORMAL);
        if (!(type >= VQKVC_TOKEN_UNDEFINED && type <= VQKVC_TOKEN_BYTE))
            return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: token %d is of unknown type %g", t->file, i,
                              type);
        t->types[i] = (uint8_t)type;
        if (t->types[i] != VQKVC_TOKEN_BYTE)
            continue;
        if (byte < 0)
            return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: byte token %d is not written <0xNN>",
                              t->file, i);
        t->byte_token[byte] = i;
    }
    return VQKVC_OK;
}

static vqkvc_code load_id(const vqkvc_tokenizer *t, const vqkvc_gguf *g, const char *key,
                          int32_t *id, vqkvc_err *err)
{
    int64_t value;
    *id = -1;
    const vqkvc_gguf_kv *kv = vqkvc_gguf_find(g, key);
    if (kv == NULL)
        return VQKVC_OK;
    VQKVC_TRY(vqkvc_gguf_get_int(g, key, -1, &value, err));
    if (value < 0 || value >= t->n_vocab)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: %s at offset %llu is %lld, outside the vocabulary of %d", t->file,
                          key, (unsigned long long)kv->offset, (long long)value, t->n_vocab);
    *id = (int32_t)value;
    return VQKVC_OK;
}

static vqkvc_code load_special_ids(vqkvc_tokenizer *t, const vqkvc_gguf *g, vqkvc_err *err)
{
    VQKVC_TRY(load_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err));
    VQKVC_TRY(load_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err));
    VQKVC_TRY(load_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, err));
    for (int i = 0; i < t->n_vocab && t->unk < 0; i++)
        if (t->types[i] == VQKVC_TOKEN_UNKNOWN)
            t->unk = i;
    return VQKVC_OK;
}

typedef struct vqkvc_verbatim {
    vqkvc_piece piece;
    int32_t id;
} vqkvc_verbatim;

static int compare_verbatim(const void *a, const void *b)
{
    const vqkvc_verbatim *x = a, *y = b;
    int order = memcmp(x->piece.s, y->piece.s, x->piece.n < y->piece.n ? x->piece.n : y->piece.n);
    if (order == 0)
        order = (x->piece.n > y->piece.n) - (x->piece.n < y->piece.n);
    return order != 0 ? order : (x->id > y->id) - (x->id < y->id);
}

/* A user-defined piece as it is looked for: SentencePiece text has its spaces escaped. */
static vqkvc_code verbatim_piece(vqkvc_tokenizer *t, int id, vqkvc_piece *out, vqkvc_err *err)
{
    const vqkvc_piece *p = &t->pieces[id];
    *out = *p;
    if (t->is_bpe || memchr(p->s, ' ', p->n) == NULL)
        return VQKVC_OK;
    vqkvc_buf buf = {0};
    vqkvc_spm_escape(&buf, p->s, p->n);
    if (buf.failed || buf.len > INT32_MAX)
        vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory for token %d", t->file, id);
    else
        *out = (vqkvc_piece){vqkvc_arena_strndup(&t->arena, buf.data, buf.len, err),
                             (uint32_t)buf.len};
    free(buf.data);
    return err->code;
}

static vqkvc_code load_verbatim(vqkvc_tokenizer *t, vqkvc_err *err)
{
    size_t n = 0;
    for (int i = 0; i < t->n_vocab; i++)
        n += t->types[i] == VQKVC_TOKEN_USER_DEFINED && t->pieces[i].n > 0;
    vqkvc_verbatim *sorted = vqkvc_alloc(n, sizeof *sorted, err);
    t->verbatim = vqkvc_arena_alloc(&t->arena, n, sizeof *t->verbatim, err);
    t->verbatim_ids = vqkvc_arena_alloc(&t->arena, n, sizeof *t->verbatim_ids, err);
    for (int i = 0; i < t->n_vocab && err->code == VQKVC_OK; i++) {
        if (t->types[i] != VQKVC_TOKEN_USER_DEFINED || t->pieces[i].n == 0)
            continue;
        vqkvc_verbatim *v = &sorted[t->n_verbatim++];
        v->id = i;
        verbatim_piece(t, i, &v->piece, err);
    }
    if (err->code == VQKVC_OK) {
        qsort(sorted, n, sizeof *sorted, compare_verbatim);
        for (size_t i = 0; i < n; i++) {
            t->verbatim[i] = sorted[i].piece;
            t->verbatim_ids[i] = sorted[i].id;
            t->verbatim_starts[(uint8_t)sorted[i].piece.s[0]] = 1;
        }
    }
    free(sorted);
    return err->code;
}

static vqkvc_code load(vqkvc_tokenizer *t, vqkvc_gguf *g, vqkvc_err *err)
{
    const char *model;
    VQKVC_TRY(vqkvc_gguf_get_string(g, "tokenizer.ggml.model", NULL, &model, err));
    if (model == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: no tokenizer.ggml.model", t->file);
    t->is_bpe = strcmp(model, "gpt2") == 0;
    if (!t->is_bpe && strcmp(model, "llama") != 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: tokenizer.ggml.model is \"%.64s\"; known are llama, gpt2", t->file,
                          model);
    VQKVC_TRY(load_pieces(t, g, err));
    VQKVC_TRY(load_types(t, g, err));
    VQKVC_TRY(load_special_ids(t, g, err));
    VQKVC_TRY(load_verbatim(t, err));
    return t->is_bpe ? vqkvc_bpe_load(t, g, err) : vqkvc_spm_load(t, g, err);
}

/* ---- interface ---- */

vqkvc_code vqkvc_tokenizer_open(vqkvc_tokenizer **out, vqkvc_gguf *g, vqkvc_err *err)
{
    *out = NULL;
    vqkvc_tokenizer *t = vqkvc_alloc(1, sizeof *t, err);
    if (t == NULL)
        return err->code;
    t->file = g->map.path;
    if (load(t, g, err) != VQKVC_OK) {
        vqkvc_tokenizer_close(t);
        return err->code;
    }
    *out = t;
    return VQKVC_OK;
}

void vqkvc_tokenizer_close(vqkvc_tokenizer *t)
{
    if (t == NULL)
        return;
    vqkvc_bpe_unload(t);
    vqkvc_arena_free(&t->arena);
    free(t);
}

vqkvc_code vqkvc_tokenizer_encode(const vqkvc_tokenizer *t, const char *text, size_t len,
                                  int add_bos, int32_t *ids, size_t cap, size_t *n, vqkvc_err *err)
{
    vqkvc_id_sink sink = {ids, cap, 0, -1};
    *n = 0;
    if (len > INT32_MAX)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "a text of %zu bytes is too long to tokenize",
                          len);
    if (add_bos && t->add_bos && t->bos >= 0)
        vqkvc_emit_id(&sink, t->bos);
    if (len > 0)
        VQKVC_TRY(t->is_bpe ? vqkvc_bpe_encode(t, text, len, &sink, err)
                            : vqkvc_spm_encode(t, text, len, &sink, err));
    *n = sink.n;
    return VQKVC_OK;
}

vqkvc_code vqkvc_tokenizer_bytes(const vqkvc_tokenizer *t, int32_t id, const char **bytes,
                                 size_t *n, vqkvc_err *err)
{
    *bytes = "";
    *n = 0;
    if (id < 0 || id >= t->n_vocab)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: token %d is outside the vocabulary of %d",
                          t->file, (int)id, t->n_vocab);
    if (t->decoded[id].n > 0) {
        *bytes = t->decoded[id].s;
        *n = t->decoded[id].n;
    }
    return VQKVC_OK;
}

int vqkvc_tokenizer_vocab_size(const vqkvc_tokenizer *t)
{
    return t->n_vocab;
}

int32_t vqkvc_tokenizer_bos(const vqkvc_tokenizer *t)
{
    return t->bos;
}

int32_t vqkvc_tokenizer_eos(const vqkvc_tokenizer *t)
{
    return t->eos;
}
