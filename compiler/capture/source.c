#include "capture/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "capture/choose.h"

/* All ids of all files, and the pieces they fall into: a piece becomes a window. */
typedef struct piece {
    int64_t first;
    int n;
} piece;

typedef struct pool {
    vqkvc_buf ids;     /* int32 */
    vqkvc_buf pieces;  /* piece */
    vqkvc_buf partial; /* piece: shorter than a window, at the end of a file */
    vqkvc_buf ends;    /* int64: ids up to the end of each file */
    int body;          /* ids a full window takes: window less BOS */
    int32_t bos;       /* -1: none wanted */
} pool;

static void pool_free(pool *p)
{
    free(p->ids.data);
    free(p->pieces.data);
    free(p->partial.data);
    free(p->ends.data);
}

/* The model's BOS if its tokenizer puts one in front of text, else -1. */
static vqkvc_code wanted_bos(const vqkvc_model *model, int32_t *bos, vqkvc_err *err)
{
    size_t n = 0;
    VQKVC_TRY(vqkvc_tokenize(model, "", 0, 1, NULL, 0, &n, err));
    *bos = n > 0 ? vqkvc_token_bos(model) : -1;
    return VQKVC_OK;
}

static vqkvc_code pool_begin(pool *p, const vqkvc_model *model, int window, vqkvc_err *err)
{
    *p = (pool){.bos = -1};
    VQKVC_TRY(wanted_bos(model, &p->bos, err));
    p->body = p->bos >= 0 ? window - 1 : window;
    return VQKVC_OK;
}

/* Windows never reach across files. */
static vqkvc_code pool_add(pool *p, const char *path, const void *ids, size_t n, vqkvc_err *err)
{
    int64_t first = (int64_t)(p->ids.len / sizeof(int32_t)), end = first + (int64_t)n;
    vqkvc_buf_put(&p->ids, ids, n * sizeof(int32_t));
    for (; end - first >= p->body; first += p->body)
        vqkvc_buf_put(&p->pieces, &(piece){first, p->body}, sizeof(piece));
    if (end > first)
        vqkvc_buf_put(&p->partial, &(piece){first, (int)(end - first)}, sizeof(piece));
    vqkvc_buf_put(&p->ends, &end, sizeof end);
    if (p->ids.failed || p->pieces.failed || p->partial.failed || p->ends.failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory for its tokens", path);
    return VQKVC_OK;
}

static vqkvc_code add_text(pool *p, const vqkvc_model *model, const char *path, vqkvc_err *err)
{
    vqkvc_map map;
    int32_t *ids = NULL;
    size_t n = 0;
    VQKVC_TRY(vqkvc_map_open(&map, path, err));
    const char *text = map.size > 0 ? (const char *)map.data : "";
    if (vqkvc_tokenize(model, text, map.size, 0, NULL, 0, &n, err) == VQKVC_OK &&
        (ids = vqkvc_alloc(n, sizeof *ids, err)) != NULL &&
        vqkvc_tokenize(model, text, map.size, 0, ids, n, &n, err) == VQKVC_OK)
        pool_add(p, path, ids, n, err);
    else
        vqkvc_err_prefix(err, "%s", path);
    free(ids);
    vqkvc_map_close(&map);
    return err->code;
}

static vqkvc_code check_ids(const vqkvc_map *map, int vocab, vqkvc_err *err)
{
    if (map->size % sizeof(int32_t) != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: %zu bytes are no whole number of int32 ids",
                          map->path, map->size);
    for (size_t at = 0; at < map->size; at += sizeof(int32_t)) {
        int32_t id;
        memcpy(&id, map->data + at, sizeof id);
        if (id < 0 || id >= vocab)
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "%s: token id %d at byte offset %zu is not below %d, the size of the "
                              "vocabulary",
                              map->path, (int)id, at, vocab);
    }
    return VQKVC_OK;
}

static vqkvc_code add_ids(pool *p, const vqkvc_model *model, const char *path, vqkvc_err *err)
{
    vqkvc_map map;
    VQKVC_TRY(vqkvc_map_open(&map, path, err));
    if (check_ids(&map, vqkvc_model_vocab_size(model), err) == VQKVC_OK)
        pool_add(p, path, map.data, map.size / sizeof(int32_t), err);
    vqkvc_map_close(&map);
    return err->code;
}

static size_t piece_count(const vqkvc_buf *pieces)
{
    return pieces->len / sizeof(piece);
}

static int by_first(const void *a, const void *b)
{
    const piece *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Reduces p->pieces to those that make n_tokens: full windows if they suffice, else all pieces. */
static vqkvc_code choose_pieces(pool *p, const vqkvc_capture_params *params, vqkvc_err *err)
{
    int64_t n = (int64_t)piece_count(&p->pieces);
    int64_t want = (params->n_tokens + params->window - 1) / params->window;
    if (n < want) {
        vqkvc_buf_put(&p->pieces, p->partial.data, p->partial.len);
        if (p->pieces.failed)
            return vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for windows");
        if (p->pieces.len > 0)
            qsort(p->pieces.data, piece_count(&p->pieces), sizeof(piece), by_first);
        return VQKVC_OK;
    }
    piece *pieces = (piece *)(void *)p->pieces.data;
    int64_t *chosen = vqkvc_alloc((size_t)want, sizeof *chosen, err);
    if (chosen == NULL)
        return err->code;
    if (params->random_windows)
        vqkvc_choose(params->seed, VQKVC_STREAM_WINDOWS, n, want, chosen);
    for (int64_t i = 0; i < want; i++)
        pieces[i] = pieces[params->random_windows ? chosen[i] : i * n / want];
    p->pieces.len = (size_t)want * sizeof(piece);
    free(chosen);
    return VQKVC_OK;
}

/* Copies the chosen pieces, BOS in front, until n_tokens are there. */
static vqkvc_code build_windows(vqkvc_source *s, const pool *p, int64_t n_tokens, vqkvc_err *err)
{
    size_t n = piece_count(&p->pieces);
    const piece *pieces = (const piece *)(const void *)p->pieces.data;
    const int32_t *ids = (const int32_t *)(const void *)p->ids.data;
    size_t room = p->ids.len / sizeof(int32_t) + n;
    s->start = vqkvc_alloc(n + 1, sizeof *s->start, err);
    s->ids = vqkvc_alloc(room < (size_t)n_tokens ? room : (size_t)n_tokens, sizeof *s->ids, err);
    if (s->start == NULL || s->ids == NULL)
        return err->code;
    for (size_t i = 0; i < n && s->start[s->n_seq] < n_tokens; i++) {
        const int32_t *body = ids + pieces[i].first;
        int64_t at = s->start[s->n_seq], left = n_tokens - at, len = pieces[i].n;
        if (p->bos >= 0 && body[0] != p->bos) {
            s->ids[at++] = p->bos;
            left--;
        }
        len = len < left ? len : left;
        memcpy(s->ids + at, body, (size_t)len * sizeof(int32_t));
        s->start[++s->n_seq] = at + len;
    }
    return VQKVC_OK;
}

/* Names ids and the cuts between them. */
static vqkvc_hash hash_runs(const int32_t *ids, int n, const int64_t *start)
{
    char text[2 * VQKVC_HASH_CHARS + 16];
    vqkvc_hash all = vqkvc_hash_bytes(ids, (size_t)start[n] * sizeof *ids);
    vqkvc_hash cuts = vqkvc_hash_bytes(start, ((size_t)n + 1) * sizeof *start);
    snprintf(text, sizeof text, "ids=%s;cuts=%s", all.hex, cuts.hex);
    return vqkvc_hash_text(text);
}

static vqkvc_code hash_windows(vqkvc_source *s, vqkvc_err *err)
{
    if (s->start[s->n_seq] == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: no tokens", s->name);
    s->hash = hash_runs(s->ids, s->n_seq, s->start);
    return VQKVC_OK;
}

/* ---- what is left ---- */

static void add_run(vqkvc_source *s, const int32_t *ids, int64_t first, int64_t end)
{
    int64_t at = s->spare_start[s->n_spare], n = end - first;
    if (n <= 0)
        return;
    memcpy(s->spare + at, ids + first, (size_t)n * sizeof *ids);
    s->spare_start[++s->n_spare] = at + n;
}

/* The ids between the chosen pieces, file by file. The last piece counts as used whole, though
 * n_tokens may end within it. */
static vqkvc_code keep_spare(vqkvc_source *s, const pool *p, vqkvc_err *err)
{
    size_t n = piece_count(&p->pieces), n_files = p->ends.len / sizeof(int64_t);
    const piece *pieces = (const piece *)(const void *)p->pieces.data;
    const int64_t *ends = (const int64_t *)(const void *)p->ends.data;
    const int32_t *ids = (const int32_t *)(const void *)p->ids.data;
    int64_t total = (int64_t)(p->ids.len / sizeof *ids), at = 0, used = 0;
    for (size_t i = 0; i < n; i++)
        used += pieces[i].n;
    s->bos = p->bos;
    s->spare_start = vqkvc_alloc(n + n_files + 1, sizeof *s->spare_start, err);
    s->spare = vqkvc_alloc((size_t)(total - used), sizeof *s->spare, err);
    if (err->code != VQKVC_OK)
        return err->code;
    for (size_t file = 0, i = 0; file < n_files; file++) {
        for (; i < n && pieces[i].first < ends[file]; at = pieces[i].first + pieces[i].n, i++)
            add_run(s, ids, at, pieces[i].first);
        add_run(s, ids, at, ends[file]);
        at = ends[file];
    }
    s->spare_hash = hash_runs(s->spare, s->n_spare, s->spare_start);
    return VQKVC_OK;
}

vqkvc_code vqkvc_source_spare(const vqkvc_source *s, int n_windows, int context, int32_t *windows,
                              int *found, vqkvc_err *err)
{
    int body = s->bos >= 0 ? context - 1 : context;
    int64_t n = 0, *first;
    for (int run = 0; run < s->n_spare; run++)
        n += (s->spare_start[run + 1] - s->spare_start[run]) / body;
    *found = n >= n_windows;
    if (!*found)
        return VQKVC_OK;
    if ((first = vqkvc_alloc((size_t)n, sizeof *first, err)) == NULL)
        return err->code;
    n = 0;
    for (int run = 0; run < s->n_spare; run++)
        for (int64_t at = s->spare_start[run]; at + body <= s->spare_start[run + 1]; at += body)
            first[n++] = at;
    for (int i = 0; i < n_windows; i++, windows += context) {
        windows[0] = s->bos; /* replaced where none is wanted */
        memcpy(windows + (context - body), s->spare + first[i * n / n_windows],
               (size_t)body * sizeof *windows);
    }
    free(first);
    return VQKVC_OK;
}

/* ---- sources ---- */

static void name_files(vqkvc_source *s, const char *const *paths, int n_paths)
{
    const char *slash = strrchr(paths[0], '/');
    const char *base = slash != NULL ? slash + 1 : paths[0];
    if (n_paths == 1)
        snprintf(s->name, sizeof s->name, "%s", base);
    else
        snprintf(s->name, sizeof s->name, "%.200s and %d more", base, n_paths - 1);
}

typedef vqkvc_code (*add_file)(pool *p, const vqkvc_model *model, const char *path, vqkvc_err *err);

static vqkvc_code source_files(vqkvc_source *s, const vqkvc_model *model, add_file add,
                               const char *const *paths, int n_paths,
                               const vqkvc_capture_params *asked, const vqkvc_log *log,
                               vqkvc_err *err)
{
    vqkvc_capture_params params;
    pool p;
    *s = (vqkvc_source){0};
    if (n_paths < 1)
        return vqkvc_fail(err, VQKVC_E_USAGE, "capture: no files given");
    VQKVC_TRY(vqkvc_capture_params_resolve(asked, vqkvc_model_geometry(model), 0, &params, err));
    VQKVC_TRY(pool_begin(&p, model, params.window, err));
    name_files(s, paths, n_paths);
    for (int i = 0; i < n_paths && err->code == VQKVC_OK; i++)
        add(&p, model, paths[i], err);
    if (err->code == VQKVC_OK && choose_pieces(&p, &params, err) == VQKVC_OK &&
        build_windows(s, &p, params.n_tokens, err) == VQKVC_OK &&
        hash_windows(s, err) == VQKVC_OK && keep_spare(s, &p, err) == VQKVC_OK &&
        s->start[s->n_seq] < params.n_tokens)
        vqkvc_say(log, 0, "%s: only %lld of the %lld tokens asked for", s->name,
                  (long long)s->start[s->n_seq], (long long)params.n_tokens);
    pool_free(&p);
    return err->code;
}

vqkvc_code vqkvc_source_text(vqkvc_source *s, const vqkvc_model *model, const char *const *paths,
                             int n_paths, const vqkvc_capture_params *params, const vqkvc_log *log,
                             vqkvc_err *err)
{
    return source_files(s, model, add_text, paths, n_paths, params, log, err);
}

vqkvc_code vqkvc_source_ids(vqkvc_source *s, const vqkvc_model *model, const char *const *paths,
                            int n_paths, const vqkvc_capture_params *params, const vqkvc_log *log,
                            vqkvc_err *err)
{
    return source_files(s, model, add_ids, paths, n_paths, params, log, err);
}

vqkvc_code vqkvc_source_self(vqkvc_source *s, const vqkvc_model *model,
                             const vqkvc_capture_params *asked, vqkvc_err *err)
{
    vqkvc_capture_params p;
    char text[256];
    *s = (vqkvc_source){.name = "self", .bos = -1};
    VQKVC_TRY(vqkvc_capture_params_resolve(asked, vqkvc_model_geometry(model), 0, &p, err));
    s->n_seq = (int)((p.n_tokens + p.window - 1) / p.window);
    s->start = vqkvc_alloc((size_t)s->n_seq + 1, sizeof *s->start, err);
    if (s->start == NULL)
        return err->code;
    for (int i = 1; i <= s->n_seq; i++)
        s->start[i] = i < s->n_seq ? (int64_t)i * p.window : p.n_tokens;
    snprintf(text, sizeof text,
             "self;tokens=%lld;window=%d;batch=%d;seed=%llu;temperature=%.9g;top_k=%d;top_p=%.9g",
             (long long)p.n_tokens, p.window, p.batch, (unsigned long long)p.seed,
             (double)p.temperature, p.top_k, (double)p.top_p);
    s->hash = vqkvc_hash_text(text);
    return VQKVC_OK;
}

void vqkvc_source_free(vqkvc_source *s)
{
    free(s->start);
    free(s->ids);
    free(s->spare_start);
    free(s->spare);
    *s = (vqkvc_source){0};
}
