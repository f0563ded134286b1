/* Both tokenizers against ids from independent implementations (SentencePiece for ref7m, Hugging
 * Face tokenizers for the toy vocabulary), round trips, and refusals of damaged vocabularies. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "gguf_writer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_internal.h"

#define REF7M "examples/models/ref7m.gguf"
#define TOY   "tests/data/toy_bpe.gguf"
#define MARK  "\xe2\x96\x81"

typedef struct fixture {
    vqkvc_gguf gguf;
    vqkvc_tokenizer *t;
    vqkvc_err err;
} fixture;

/* Opens a file's tokenizer with another pre-tokenizer than the file's (NULL: its own). */
static vqkvc_code open_fixture(fixture *f, const char *path, const char *pre)
{
    *f = (fixture){0};
    cr_assert_eq(vqkvc_gguf_open(&f->gguf, path, &f->err), VQKVC_OK, "%s", f->err.msg);
    for (uint64_t i = 0; pre != NULL && i < f->gguf.n_kv; i++) {
        vqkvc_gguf_kv *kv = &f->gguf.kv[i];
        if (strcmp(kv->key, "tokenizer.ggml.pre") == 0) {
            kv->data = (const uint8_t *)pre;
            kv->n = strlen(pre);
        }
    }
    return vqkvc_tokenizer_open(&f->t, &f->gguf, &f->err);
}

static void close_fixture(fixture *f)
{
    vqkvc_tokenizer_close(f->t);
    vqkvc_gguf_close(&f->gguf);
}

/* The ids of a text, without BOS; the caller frees them. */
static int32_t *encode(fixture *f, const char *text, size_t len, size_t *n)
{
    size_t again;
    vqkvc_code code = vqkvc_tokenizer_encode(f->t, text, len, 0, NULL, 0, n, &f->err);
    cr_assert_eq(code, VQKVC_OK, "%s", f->err.msg);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    cr_assert_not_null(ids);
    vqkvc_tokenizer_encode(f->t, text, len, 0, ids, *n, &again, &f->err);
    cr_assert_eq(again, *n);
    return ids;
}

static vqkvc_buf decode(fixture *f, const int32_t *ids, size_t n)
{
    vqkvc_buf out = {0};
    vqkvc_buf_put(&out, "", 0);
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len;
        vqkvc_code code = vqkvc_tokenizer_bytes(f->t, ids[i], &bytes, &len, &f->err);
        cr_assert_eq(code, VQKVC_OK, "%s", f->err.msg);
        vqkvc_buf_put(&out, bytes, len);
    }
    cr_assert_eq(out.failed, 0);
    return out;
}

/* ---- cases from other implementations ---- */

/* Undoes \n \t \r \\ in place; the length. */
static size_t unescape(char *s)
{
    static const char from[] = "ntr\\", to[] = "\n\t\r\\";
    size_t n = 0;
    for (; *s != '\0'; s++, n++) {
        if (*s != '\\')
            continue;
        memmove(s, s + 1, strlen(s));
        *s = to[strchr(from, *s) - from];
    }
    return n;
}

/* One case: escaped text, a tab, the ids. */
static void check_case(fixture *f, char *line)
{
    char *tab = strchr(line, '\t'), shown[256];
    cr_assert_not_null(tab);
    *tab = '\0';
    snprintf(shown, sizeof shown, "%s", line);
    size_t n, len = unescape(line);
    int32_t *ids = encode(f, line, len, &n);
    vqkvc_buf got = {0};
    for (size_t i = 0; i < n; i++)
        vqkvc_buf_printf(&got, i == 0 ? "%d" : " %d", ids[i]);
    cr_expect_str_eq(got.data, tab + 1, "\"%s\": %s, not %s", shown, got.data, tab + 1);
    free(got.data);
    free(ids);
}

/* Lines of a file, to be walked with strtok. */
static vqkvc_buf read_cases(const char *path)
{
    vqkvc_buf buf = {0};
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_read_file(path, 1 << 20, &buf, &err), VQKVC_OK, "%s", err.msg);
    return buf;
}

Test(tokenizer, sentencepiece_ids_are_those_of_sentencepiece)
{
    fixture f;
    cr_assert_eq(open_fixture(&f, REF7M, NULL), VQKVC_OK, "%s", f.err.msg);
    vqkvc_buf cases = read_cases("tests/data/ref7m_tokenizer_cases.tsv");
    int n = 0;
    for (char *line = strtok(cases.data, "\n"); line != NULL; line = strtok(NULL, "\n"), n++)
        check_case(&f, line);
    cr_expect_eq(n, 12);
    free(cases.data);
    close_fixture(&f);
}

Test(tokenizer, byte_level_ids_are_those_of_hugging_face)
{
    static const char *const pres[] = {"llama-bpe", "qwen2", "gpt-2"};
    for (size_t p = 0; p < 3; p++) {
        fixture f;
        cr_assert_eq(open_fixture(&f, TOY, pres[p]), VQKVC_OK, "%s", f.err.msg);
        vqkvc_buf cases = read_cases("tests/data/toy_bpe_cases.tsv");
        int n = 0;
        for (char *line = strtok(cases.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
            size_t name = strcspn(line, "\t");
            if (name != strlen(pres[p]) || memcmp(line, pres[p], name) != 0)
                continue;
            check_case(&f, line + name + 1);
            n++;
        }
        cr_expect_eq(n, 41);
        free(cases.data);
        close_fixture(&f);
    }
}

/* ---- properties ---- */

/* A character of any plane, written at dst; its length. */
static size_t random_char(vqkvc_rng *rng, char *dst)
{
    static const uint32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
    uint32_t c = (uint32_t)vqkvc_rng_below(rng, limits[vqkvc_rng_below(rng, 5)]);
    if (c >= 0xd800 && c < 0xe000)
        c = ' ';
    if (c < 0x80) {
        dst[0] = (char)c;
        return 1;
    }
    size_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, c >>= 6)
        dst[i] = (char)(0x80 | (c & 0x3f));
    dst[0] = (char)((len == 2 ? 0xc0 : len == 3 ? 0xe0 : 0xf0) | c);
    return len;
}

static void check_round_trip(fixture *f, size_t prefix, const char *text, size_t len)
{
    size_t n;
    int32_t *ids = encode(f, text, len, &n);
    vqkvc_buf back = decode(f, ids, n);
    prefix = len == 0 ? 0 : prefix;
    cr_assert_eq(back.len, len + prefix, "%zu bytes came back as %zu", len, back.len);
    cr_assert_eq(memcmp(back.data + prefix, text, len), 0);
    free(back.data);
    free(ids);
}

static void check_round_trips(const char *path, size_t prefix)
{
    fixture f;
    char text[256];
    vqkvc_rng rng = vqkvc_rng_make(1, prefix);
    cr_assert_eq(open_fixture(&f, path, NULL), VQKVC_OK, "%s", f.err.msg);
    for (int i = 0; i < 3000; i++) {
        size_t target = (size_t)vqkvc_rng_below(&rng, 200), len = 0;
        while (len < target) {
            if (i % 3 == 0)
                text[len++] = (char)vqkvc_rng_u64(&rng);
            else
                len += random_char(&rng, text + len);
        }
        check_round_trip(&f, prefix, text, len);
    }
    close_fixture(&f);
}

/* U+2581 itself comes back as a space, which random text is most unlikely to hold. */
Test(tokenizer, sentencepiece_decodes_what_it_encoded)
{
    check_round_trips(REF7M, 1);
}

Test(tokenizer, byte_level_decodes_what_it_encoded)
{
    check_round_trips(TOY, 0);
}

/* Bytes of the character that p begins with, by decoding it; 0 if it is none. p has 4 bytes. */
static size_t decoded_len(const uint8_t *p)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (len < 2 || p[0] >= 0xf8)
        return len == 1;
    uint32_t c = p[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3fu);
    }
    return c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}

/* PCRE2 is told not to check, so what passes here must be well-formed to the letter. */
Test(tokenizer, only_well_formed_utf8_is_accepted)
{
    static const uint8_t tails[] = {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff};
    for (unsigned i = 0; i < 65536 * 36; i++) {
        uint8_t p[4] = {(uint8_t)(i / 36 >> 8), (uint8_t)(i / 36), tails[i % 6], tails[i / 6 % 6]};
        size_t want = decoded_len(p);
        for (size_t n = 1; n <= 4; n++)
            if (vqkvc_utf8_len((const char *)p, n) != (want <= n ? want : 0))
                cr_assert_fail("%02x %02x %02x %02x, %zu bytes", p[0], p[1], p[2], p[3], n);
    }
}

/* One word of a megabyte: quadratic work or a library's limits would show. */
Test(tokenizer, giant_words_encode, .timeout = 60)
{
    static const char *const units[] = {"a", " ", "1", "\n", "\xff", "\xe6\x97\xa5", " \n"};
    static const char *const paths[] = {REF7M, TOY};
    size_t len = 1000000;
    char *text = malloc(len + 8);
    cr_assert_not_null(text);
    for (size_t p = 0; p < 2; p++) {
        fixture f;
        cr_assert_eq(open_fixture(&f, paths[p], NULL), VQKVC_OK, "%s", f.err.msg);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            size_t n = strlen(units[u]), at = 0;
            for (; at < len; at += n)
                memcpy(text + at, units[u], n);
            check_round_trip(&f, p == 0, text, at);
        }
        close_fixture(&f);
    }
    free(text);
}

Test(tokenizer, counts_without_room_and_puts_bos_first)
{
    fixture f;
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t n;
    cr_assert_eq(open_fixture(&f, REF7M, NULL), VQKVC_OK, "%s", f.err.msg);
    cr_expect_eq(vqkvc_tokenizer_vocab_size(f.t), 4096);
    cr_expect_eq(vqkvc_tokenizer_bos(f.t), 1);
    cr_expect_eq(vqkvc_tokenizer_eos(f.t), 2);
    vqkvc_tokenizer_encode(f.t, "Hello world", 11, 1, ids, 2, &n, &f.err);
    cr_expect_eq(n, 5);
    cr_expect_eq(ids[0], 1);
    cr_expect_eq(ids[1], 447);
    cr_expect_eq(ids[2], -7, "wrote beyond cap");
    vqkvc_tokenizer_encode(f.t, "", 0, 1, ids, 4, &n, &f.err);
    cr_expect_eq(n, 1, "an empty text has no space prefix");
    vqkvc_tokenizer_encode(f.t, "", (size_t)INT32_MAX + 1, 1, ids, 4, &n, &f.err);
    cr_expect_eq(f.err.code, VQKVC_E_UNSUPPORTED);
    close_fixture(&f);
}

Test(tokenizer, control_tokens_are_plain_text_and_decode_to_nothing)
{
    fixture f;
    const char *bytes;
    size_t n;
    cr_assert_eq(open_fixture(&f, REF7M, NULL), VQKVC_OK, "%s", f.err.msg);
    int32_t *ids = encode(&f, "<s>", 3, &n);
    cr_expect_gt(n, 1);
    for (int32_t id = 0; id < 3; id++) {
        cr_expect_eq(vqkvc_tokenizer_bytes(f.t, id, &bytes, &n, &f.err), VQKVC_OK);
        cr_expect_eq(n, 0);
    }
    cr_expect_eq(vqkvc_tokenizer_bytes(f.t, 4096, &bytes, &n, &f.err), VQKVC_E_USAGE);
    cr_expect_not_null(strstr(f.err.msg, "4096"));
    free(ids);
    close_fixture(&f);
}

/* ---- small vocabularies made here ---- */

typedef struct vocab {
    const char *model;
    const char *const *tokens;
    const float *scores;  /* [n] or NULL: absent */
    const int32_t *types; /* [n] or NULL: absent */
    const char *const *merges;
    uint64_t n, n_scores, n_types, n_merges;
    int64_t bos; /* negative: absent */
} vocab;

/* Opens the tokenizer of a GGUF file made from v. */
static vqkvc_code open_vocab(fixture *f, const vocab *v)
{
    char path[] = "/tmp/vqkvc_tokenizer_XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    gw w = gw_make(3, 32);
    gw_str(&w, "tokenizer.ggml.model", v->model);
    gw_array_str(&w, "tokenizer.ggml.tokens", v->n, v->tokens);
    if (v->scores != NULL)
        gw_array_f32(&w, "tokenizer.ggml.scores", v->n_scores, v->scores);
    if (v->types != NULL)
        gw_array_i32(&w, "tokenizer.ggml.token_type", v->n_types, v->types);
    if (v->merges != NULL)
        gw_array_str(&w, "tokenizer.ggml.merges", v->n_merges, v->merges);
    if (v->bos >= 0)
        gw_u32(&w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    gw_write(&w, path);
    vqkvc_code code = open_fixture(f, path, NULL);
    unlink(path);
    return code;
}

static void expect_refusal(const vocab *v, vqkvc_code code, const char *words)
{
    fixture f;
    cr_expect_eq(open_vocab(&f, v), code, "%s: %s", words, f.err.msg);
    cr_expect_not_null(strstr(f.err.msg, words), "\"%s\" is not in \"%s\"", words, f.err.msg);
    cr_expect_null(f.t);
    close_fixture(&f);
}

static void expect_ids(fixture *f, const char *text, size_t n_wanted, const int32_t *wanted)
{
    size_t n;
    int32_t *ids = encode(f, text, strlen(text), &n);
    cr_expect_eq(n, n_wanted, "\"%s\": %zu ids", text, n);
    for (size_t i = 0; i < n && i < n_wanted; i++)
        cr_expect_eq(ids[i], wanted[i], "\"%s\" [%zu]: %d", text, i, ids[i]);
    free(ids);
}

#define SPM_TOKENS 9
static const char *const spm_tokens[SPM_TOKENS] = {"<unk>",  MARK, "a",  "b",    "ab",
                                                   MARK "a", "ba", "b<", "<t x>"};
static const float spm_scores[SPM_TOKENS] = {0, -1, -1, -1, -3, -2, -3, -1, 0};
static const int32_t spm_types[SPM_TOKENS] = {2, 1, 1, 1, 1, 1, 1, 1, 4};

static const vocab spm = {.model = "llama",
                          .tokens = spm_tokens,
                          .scores = spm_scores,
                          .types = spm_types,
                          .n = SPM_TOKENS,
                          .n_scores = SPM_TOKENS,
                          .n_types = SPM_TOKENS,
                          .bos = -1};

Test(tokenizer, sentencepiece_joins_by_score_then_from_the_left)
{
    fixture f;
    cr_assert_eq(open_vocab(&f, &spm), VQKVC_OK, "%s", f.err.msg);
    expect_ids(&f, "ab", 2, (int32_t[]){5, 3});         /* the mark takes the a: greatest score */
    expect_ids(&f, "bab", 3, (int32_t[]){1, 6, 3});     /* ba and ab tie */
    expect_ids(&f, "zzbz", 4, (int32_t[]){1, 0, 3, 0}); /* a run of unknowns is one token */
    expect_ids(&f, "b<t xb<t x>a", 8, (int32_t[]){1, 7, 0, 1, 0, 3, 8, 2});
    close_fixture(&f);
}

Test(tokenizer, pieces_across_words_are_found)
{
    static const char *const tokens[] = {"<unk>", MARK, "a", "a" MARK, "a" MARK "a"};
    static const float scores[] = {0, -9, -9, -1, -2};
    static const int32_t types[] = {2, 1, 1, 1, 1};
    vocab v = spm;
    fixture f;
    v.tokens = tokens, v.scores = scores, v.types = types;
    v.n = v.n_scores = v.n_types = 5;
    cr_assert_eq(open_vocab(&f, &v), VQKVC_OK, "%s", f.err.msg);
    expect_ids(&f, "a a a", 3, (int32_t[]){1, 3, 4});
    close_fixture(&f);
}

Test(tokenizer, text_without_tokens_is_an_error_where_there_is_no_unknown_token)
{
    static const int32_t types[SPM_TOKENS] = {3, 1, 1, 1, 1, 1, 1, 1, 4};
    vocab v = spm;
    fixture f;
    size_t n;
    v.types = types;
    cr_assert_eq(open_vocab(&f, &v), VQKVC_OK, "%s", f.err.msg);
    cr_expect_eq(vqkvc_tokenizer_encode(f.t, "az", 2, 0, NULL, 0, &n, &f.err), VQKVC_E_FORMAT);
    cr_expect_not_null(strstr(f.err.msg, "0x7a"), "%s", f.err.msg);
    close_fixture(&f);
}

Test(tokenizer, damaged_sentencepiece_vocabularies_are_refused)
{
    vocab v = spm;
    v.model = "bert";
    expect_refusal(&v, VQKVC_E_UNSUPPORTED, "known are llama, gpt2");
    v = spm, v.n = 0, v.n_scores = 0, v.n_types = 0;
    expect_refusal(&v, VQKVC_E_FORMAT, "tokenizer.ggml.tokens");
    v = spm, v.scores = NULL;
    expect_refusal(&v, VQKVC_E_FORMAT, "no tokenizer.ggml.scores");
    v = spm, v.n_scores--;
    expect_refusal(&v, VQKVC_E_FORMAT, "8 elements for 9 tokens");
    v = spm, v.n_types--;
    expect_refusal(&v, VQKVC_E_FORMAT, "tokenizer.ggml.token_type");
    v = spm, v.bos = 9;
    expect_refusal(&v, VQKVC_E_FORMAT, "tokenizer.ggml.bos_token_id");
    v = spm, v.bos = UINT32_MAX;
    expect_refusal(&v, VQKVC_E_FORMAT, "tokenizer.ggml.bos_token_id");
    float scores[SPM_TOKENS] = {0, NAN};
    v = spm, v.scores = scores;
    expect_refusal(&v, VQKVC_E_FORMAT, "score of token 1");
    int32_t types[SPM_TOKENS] = {0, 7};
    v = spm, v.types = types;
    expect_refusal(&v, VQKVC_E_FORMAT, "token 1 is of unknown type 7");
    types[1] = 6;
    expect_refusal(&v, VQKVC_E_FORMAT, "byte token 1");
}

Test(tokenizer, damaged_byte_level_vocabularies_are_refused)
{
    static const char *const tokens[] = {"a", "b", "ab"};
    vocab v = {.model = "gpt2", .tokens = tokens, .n = 3, .bos = -1};
    expect_refusal(&v, VQKVC_E_FORMAT, "no tokenizer.ggml.merges");
    v.n_merges = 1;
    v.merges = (const char *const[]){"a b"};
    fixture f;
    cr_assert_eq(open_vocab(&f, &v), VQKVC_OK, "%s", f.err.msg);
    expect_ids(&f, "abb", 2, (int32_t[]){2, 1});
    close_fixture(&f);
    v.merges = (const char *const[]){"ab"};
    expect_refusal(&v, VQKVC_E_FORMAT, "merge 0 is not two pieces");
    v.merges = (const char *const[]){" a"};
    expect_refusal(&v, VQKVC_E_FORMAT, "merge 0 is not two pieces");
    v.merges = (const char *const[]){"b a"};
    expect_refusal(&v, VQKVC_E_FORMAT, "merge 0 (\"b a\")");
}

Test(tokenizer, unknown_pre_tokenizers_are_refused_with_the_known_ones)
{
    static const char *const unknown[] = {"tekken", "", " ", "qwen", "llama-bpe llama3"};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        fixture f;
        cr_expect_eq(open_fixture(&f, TOY, unknown[i]), VQKVC_E_UNSUPPORTED, "%s", unknown[i]);
        cr_expect_not_null(strstr(f.err.msg, "llama-bpe"), "%s", f.err.msg);
        cr_expect_not_null(strstr(f.err.msg, "qwen2"), "%s", f.err.msg);
        close_fixture(&f);
    }
}
