#include "gen/parts.h"

#include <ctype.h>
#include <string.h>

#include "base/embed.h"

#define PART_LIST(X)                                                                               \
    X(api)                                                                                         \
    X(types)                                                                                       \
    X(core)                                                                                        \
    X(vec_portable)                                                                                \
    X(vec_avx2)                                                                                    \
    X(vec_avx512)                                                                                  \
    X(vec_neon)                                                                                    \
    X(codes)                                                                                       \
    X(dense)                                                                                       \
    X(maps)                                                                                        \
    X(rows)                                                                                        \
    X(kernels)                                                                                     \
    X(lookup_avx2)                                                                                 \
    X(maps_avx2)                                                                                   \
    X(sums_avx2)                                                                                   \
    X(dots_avx2)                                                                                   \
    X(fill_avx2)                                                                                   \
    X(bytes_avx2)                                                                                  \
    X(maps_avx512)                                                                                 \
    X(dots_avx512)                                                                                 \
    X(sums_avx512)                                                                                 \
    X(bytes_avx512)                                                                                \
    X(lookup_neon)                                                                                 \
    X(sums_neon)                                                                                   \
    X(dots_neon)                                                                                   \
    X(bytes_neon)                                                                                  \
    X(dispatch)                                                                                    \
    X(wide)                                                                                        \
    X(decode)                                                                                      \
    X(exceptions)                                                                                  \
    X(rebuild)                                                                                     \
    X(gains)                                                                                       \
    X(encode)                                                                                      \
    X(landmarks)                                                                                   \
    X(pass)                                                                                        \
    X(query_map)                                                                                   \
    X(steps)                                                                                       \
    X(queries)                                                                                     \
    X(absorbed)                                                                                    \
    X(attend)                                                                                      \
    X(jobs)                                                                                        \
    X(append)                                                                                      \
    X(kvcache)                                                                                     \
    X(save)

#define X(name) VQKVC_EMBED(gen_part_##name, "runtime/" #name ".h");
PART_LIST(X)
#undef X

/* Between these gen_text() changes nothing; they are dropped. */
enum { RAW_OPEN = 2, RAW_CLOSE = 3 };

void gen_put_user(vqkvc_buf *out, const char *s)
{
    char before = ' ';
    const char open = RAW_OPEN, close = RAW_CLOSE;
    vqkvc_buf_put(out, &open, 1);
    for (; *s != '\0'; s++) {
        char c = *s;
        if ((unsigned char)c < 32 || (unsigned char)c > 126 || c == '"' || c == '\\' || c == '?' ||
            (c == '/' && before == '*') || (c == '*' && before == '/'))
            c = '_';
        vqkvc_buf_put(out, &c, 1);
        before = c;
    }
    vqkvc_buf_put(out, &close, 1);
}

static int is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* One identifier or number of n characters, with its prefix and suffix replaced. */
static void put_word(vqkvc_buf *out, const char *word, size_t n, const char *prefix,
                     const char *isa)
{
    static const char suffix[] = "_ISA";
    size_t tail = sizeof suffix - 1;
    int has_suffix = isa != NULL && n >= tail && memcmp(word + n - tail, suffix, tail) == 0;
    if (has_suffix)
        n -= tail;
    if (n >= 4 && (n == 4 || word[4] == '_') &&
        (memcmp(word, "vqkv", 4) == 0 || memcmp(word, "VQKV", 4) == 0)) {
        for (const char *p = prefix; *p != '\0'; p++) {
            char c = word[0] == 'V' ? (char)toupper((unsigned char)*p) : *p;
            vqkvc_buf_put(out, &c, 1);
        }
        word += 4;
        n -= 4;
    }
    vqkvc_buf_put(out, word, n);
    if (has_suffix)
        vqkvc_buf_printf(out, "_%s", isa);
}

void gen_text(vqkvc_buf *out, const char *text, size_t n, const char *prefix, const char *isa)
{
    for (size_t i = 0, j; i < n; i = j) {
        j = i;
        if (text[i] == RAW_OPEN) {
            while (j < n && text[j] != RAW_CLOSE)
                j++;
            vqkvc_buf_put(out, text + i + 1, j - i - 1);
            j += j < n;
        } else if (is_word(text[i])) {
            while (j < n && is_word(text[j]))
                j++;
            put_word(out, text + i, j - i, prefix, isa);
        } else {
            while (j < n && !is_word(text[j]) && text[j] != RAW_OPEN)
                j++;
            vqkvc_buf_put(out, text + i, j - i);
        }
    }
}

void gen_part(vqkvc_buf *out, const char *name, const char *prefix, const char *isa)
{
#define X(part)                                                                                    \
    if (strcmp(name, #part) == 0)                                                                  \
        gen_text(out, gen_part_##part, (size_t)(gen_part_##part##_end - gen_part_##part), prefix,  \
                 isa);
    PART_LIST(X)
#undef X
}

static int text_has_word(const char *text, size_t n, const char *word)
{
    size_t length = strlen(word);
    for (size_t i = 0, j; i < n; i = j) {
        const char *end =
            n - i > 2 && memcmp(text + i, "/*", 2) == 0 ? strstr(text + i, "*/") : NULL;
        j = end != NULL ? (size_t)(end - text) + 2 : i + 1;
        if (!is_word(text[i]))
            continue;
        while (j < n && is_word(text[j]))
            j++;
        if (j - i >= length && memcmp(text + i, word, length) == 0 &&
            (j - i == length || text[i + length] == '_'))
            return 1;
    }
    return 0;
}

int gen_word_is_taken(const char *word)
{
    int taken = 0;
    if (strncmp(word, "vqkv", 4) == 0)
        return 0; /* what the parts write for the prefix */
#define X(part)                                                                                    \
    taken |=                                                                                       \
        text_has_word(gen_part_##part, (size_t)(gen_part_##part##_end - gen_part_##part), word);
    PART_LIST(X)
#undef X
    return taken;
}
