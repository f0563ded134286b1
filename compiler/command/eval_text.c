#include "command/eval_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "eval/measure.h"

/* Self-sampling for calibration uses streams below 2^31 and two at 2^63. */
#define STREAM_EVAL (UINT64_C(1) << 62)

enum { SAMPLE_BATCH = 16 /* windows that are sampled at once */ };

/* ---- files ---- */

static vqkvc_code add_text(const vqkvc_model *model, const vqkvc_map *map, vqkvc_buf *ids,
                           vqkvc_err *err)
{
    size_t n = 0;
    const char *text = map->size > 0 ? (const char *)map->data : "";
    VQKVC_TRY(vqkvc_tokenize(model, text, map->size, 0, NULL, 0, &n, err));
    int32_t *own = vqkvc_alloc(n, sizeof *own, err);
    if (own != NULL && vqkvc_tokenize(model, text, map->size, 0, own, n, &n, err) == VQKVC_OK)
        vqkvc_buf_put(ids, own, n * sizeof *own);
    free(own);
    return err->code;
}

static vqkvc_code add_ids(const vqkvc_model *model, const vqkvc_map *map, vqkvc_buf *ids,
                          vqkvc_err *err)
{
    int vocab = vqkvc_model_vocab_size(model);
    if (map->size % sizeof(int32_t) != 0)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%zu bytes are no whole number of int32 ids",
                          map->size);
    for (size_t at = 0; at < map->size; at += sizeof(int32_t)) {
        int32_t id;
        memcpy(&id, map->data + at, sizeof id);
        if (id < 0 || id >= vocab)
            return vqkvc_fail(err, VQKVC_E_FORMAT,
                              "token id %d at byte offset %zu is not below %d, the size of the "
                              "vocabulary",
                              (int)id, at, vocab);
    }
    if (map->size > 0)
        vqkvc_buf_put(ids, map->data, map->size);
    return VQKVC_OK;
}

static vqkvc_code read_files(const vqkvc_model *model, const vqkvc_words *files, int is_text,
                             vqkvc_buf *ids, vqkvc_err *err)
{
    for (int i = 0; i < files->n && err->code == VQKVC_OK; i++) {
        vqkvc_map map;
        VQKVC_TRY(vqkvc_map_open(&map, files->at[i], err));
        if (is_text)
            add_text(model, &map, ids, err);
        else
            add_ids(model, &map, ids, err);
        if (err->code != VQKVC_OK)
            vqkvc_err_prefix(err, "%s", files->at[i]);
        vqkvc_map_close(&map);
    }
    if (ids->failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the tokens of %s", files->at[0]);
    return err->code;
}

static vqkvc_code cut_files(const vqkvc_model *model, const vqkvc_words *files, int is_text,
                            int n_windows, int context, int32_t *windows, vqkvc_err *err)
{
    vqkvc_buf ids = {0};
    size_t n_bos = 0;
    /* Asks the tokenizer whether the model wants a BOS: then the empty text has one token. */
    if (read_files(model, files, is_text, &ids, err) == VQKVC_OK &&
        vqkvc_tokenize(model, "", 0, 1, NULL, 0, &n_bos, err) == VQKVC_OK)
        vqkvc_cut_windows((const int32_t *)(const void *)ids.data, ids.len / sizeof(int32_t),
                          n_windows, context, n_bos > 0 ? vqkvc_token_bos(model) : -1, windows,
                          err);
    free(ids.data);
    return err->code;
}

/* ---- the model's own samples ---- */

typedef struct sampler {
    vqkvc_model *model;
    vqkvc_cache cache;
    int vocab;
    float *logits; /* [SAMPLE_BATCH, vocab] */
    vqkvc_rng rng[SAMPLE_BATCH];
} sampler;

/* Windows first .. first + n - 1: rows [n, context]. */
static vqkvc_code sample_windows(sampler *s, uint64_t seed, int first, int n, int context,
                                 int32_t *rows, vqkvc_err *err)
{
    int32_t ids[SAMPLE_BATCH], bos = vqkvc_token_bos(s->model);
    int seq[SAMPLE_BATCH], pos[SAMPLE_BATCH];
    for (int i = 0; i < n; i++) {
        s->rng[i] = vqkvc_rng_make(seed, STREAM_EVAL + (uint64_t)(first + i));
        seq[i] = i;
        rows[(size_t)i * (size_t)context] =
            bos >= 0 ? bos : (int32_t)vqkvc_rng_below(&s->rng[i], (uint64_t)s->vocab);
    }
    for (int at = 0; at + 1 < context; at++) {
        for (int i = 0; i < n; i++) {
            ids[i] = rows[(size_t)i * (size_t)context + (size_t)at];
            pos[i] = at;
        }
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while sampling text");
        VQKVC_TRY(vqkvc_forward(s->model, &s->cache, &(vqkvc_batch){n, ids, seq, pos}, NULL,
                                s->logits, err));
        for (int i = 0; i < n; i++)
            rows[(size_t)i * (size_t)context + (size_t)at + 1] =
                vqkvc_sample_token(s->logits + (size_t)i * (size_t)s->vocab, s->vocab, 1, 0, 1,
                                   vqkvc_rng_uniform(&s->rng[i]));
    }
    for (int i = 0; i < n; i++)
        VQKVC_TRY(s->cache.trim(s->cache.self, i, 0, err));
    return VQKVC_OK;
}

static vqkvc_code sample_text(vqkvc_model *model, const vqkvc_options *o, int context,
                              const vqkvc_log *log, int32_t *windows, vqkvc_err *err)
{
    sampler s = {.model = model, .vocab = vqkvc_model_vocab_size(model)};
    vqkvc_progress progress;
    int at_once = o->windows < SAMPLE_BATCH ? o->windows : SAMPLE_BATCH, done = 0;
    s.logits = vqkvc_alloc((size_t)at_once * (size_t)s.vocab, sizeof *s.logits, err);
    vqkvc_progress_begin(&progress, log, "sample text", "windows", (uint64_t)o->windows);
    if (s.logits != NULL && vqkvc_cache_exact(&s.cache, vqkvc_model_geometry(model), at_once,
                                              context, err) == VQKVC_OK) {
        for (; done < o->windows && err->code == VQKVC_OK; done += at_once) {
            int n = o->windows - done < at_once ? o->windows - done : at_once;
            sample_windows(&s, o->seed, done, n, context, windows + (size_t)done * (size_t)context,
                           err);
            vqkvc_progress_step(&progress, (uint64_t)done);
        }
        s.cache.free(s.cache.self);
    }
    vqkvc_progress_end(&progress, (uint64_t)(done < o->windows ? done : o->windows));
    free(s.logits);
    return err->code;
}

vqkvc_code vqkvc_eval_text(vqkvc_model *model, const vqkvc_options *o, int context,
                           const vqkvc_log *log, int32_t *windows, char *name, vqkvc_err *err)
{
    const vqkvc_words *files = o->text.n > 0 ? &o->text : &o->tokens;
    if ((o->self != 0) + (o->text.n > 0) + (o->tokens.n > 0) > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "eval: --self, --text and --tokens exclude each "
                          "other");
    if (files->n == 0) {
        snprintf(name, 256, "self, seed %llu", (unsigned long long)o->seed);
        return sample_text(model, o, context, log, windows, err);
    }
    if (files->n == 1)
        snprintf(name, 256, "%s", vqkvc_base_name(files->at[0]));
    else
        snprintf(name, 256, "%.200s and %d more", vqkvc_base_name(files->at[0]), files->n - 1);
    return cut_files(model, files, o->text.n > 0, o->windows, context, windows, err);
}
