/* generate.c - text from the bundled model, with an fp16 cache and with the compressed one.
 *
 * The compressed cache is an emitted header that is compiled in (compressed.c). Standard output
 * holds the text; with both caches, titles and figures as well. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/matrix.h"
#include "base/rng.h"
#include "compressed.h"
#include "model/model.h"

#define DEFAULT_PROMPT "It was late in the evening when the old man came to the door, and"

enum {
    CHUNK = 256, /* tokens of a prompt that go through the model at once */
    SHOWN = 48,  /* latest tokens of a long context that are printed */
    MAX_TOKENS = 1 << 24,
    MAX_FILE = 1 << 28 /* bytes */
};

typedef struct options {
    const char *model, *prompt, *context; /* context: a file, or NULL */
    int f16, compressed;                  /* which caches */
    int n;                                /* tokens to generate */
    int context_tokens;                   /* at most; 0: all of the file */
    float temperature;
    uint64_t seed;
} options;

/* ---- what is read: a prompt, or a long text to go on with ---- */

/* Appends the ids of a text to `ids`, an array of int32. */
static vqkvc_code add_text(const vqkvc_model *model, const char *text, size_t len, int add_bos,
                           vqkvc_buf *ids, vqkvc_err *err)
{
    size_t n = 0;
    VQKVC_TRY(vqkvc_tokenize(model, text, len, add_bos, NULL, 0, &n, err));
    int32_t *own = vqkvc_alloc(n, sizeof *own, err);
    if (own != NULL && vqkvc_tokenize(model, text, len, add_bos, own, n, &n, err) == VQKVC_OK)
        vqkvc_buf_put(ids, own, n * sizeof *own);
    free(own);
    return err->code;
}

/* Appends ids as they lie in a file, little-endian int32: texts are kept so for evaluations. */
static vqkvc_code add_ids(const vqkvc_model *model, const vqkvc_buf *file, vqkvc_buf *ids,
                          vqkvc_err *err)
{
    for (size_t at = 0; at + sizeof(int32_t) <= file->len; at += sizeof(int32_t)) {
        int32_t id;
        memcpy(&id, file->data + at, sizeof id);
        if (id < 0 || id >= vqkvc_model_vocab_size(model))
            return vqkvc_fail(err, VQKVC_E_FORMAT, "id %d at byte %zu is no token of the model",
                              (int)id, at);
        vqkvc_buf_put(ids, &id, sizeof id);
    }
    return VQKVC_OK;
}

static vqkvc_code add_context(const vqkvc_model *model, const options *o, vqkvc_buf *ids,
                              vqkvc_err *err)
{
    size_t length = strlen(o->context);
    int holds_ids = length > 4 && strcmp(o->context + length - 4, ".i32") == 0;
    vqkvc_buf file = {0};
    VQKVC_TRY(vqkvc_read_file(o->context, MAX_FILE, &file, err));
    if (holds_ids)
        add_ids(model, &file, ids, err);
    else
        add_text(model, file.data, file.len, 1, ids, err);
    if (err->code != VQKVC_OK)
        vqkvc_err_prefix(err, "%s", o->context);
    free(file.data);
    if (o->context_tokens > 0 && ids->len > (size_t)o->context_tokens * sizeof(int32_t))
        ids->len = (size_t)o->context_tokens * sizeof(int32_t);
    return err->code;
}

/* ---- one run with one cache ---- */

typedef struct run {
    int32_t *ids; /* [n] generated */
    int n;
    double prefill, decoding; /* seconds; decoding: of n - 1 steps */
    size_t cache_bytes;       /* at the end */
} run;

typedef struct generator {
    const options *o;
    vqkvc_model *model;
    vqkvc_buf prompt;          /* owns prompt_ids */
    const int32_t *prompt_ids; /* [n_prompt], the context included */
    int n_prompt;
    int vocab;
    float *logits; /* [CHUNK, vocab] */
    FILE *notes;   /* titles and figures */
} generator;

/* ids [n] at positions from pos on; the logits of the last one are left in g->logits. */
static vqkvc_code feed(generator *g, const vqkvc_cache *cache, const int32_t *ids, int n, int pos,
                       const float **last, vqkvc_err *err)
{
    int seq[CHUNK] = {0}, positions[CHUNK];
    for (int i = 0; i < n; i++)
        positions[i] = pos + i;
    const vqkvc_batch batch = {n, ids, seq, positions};
    *last = g->logits + (size_t)(n - 1) * (size_t)g->vocab;
    return vqkvc_forward(g->model, cache, &batch, NULL, g->logits, err);
}

static vqkvc_code print_token(const vqkvc_model *model, int32_t id, FILE *to, vqkvc_err *err)
{
    const char *bytes;
    size_t n;
    VQKVC_TRY(vqkvc_token_bytes(model, id, &bytes, &n, err));
    if (fwrite(bytes, 1, n, to) != n || fflush(to) != 0)
        return vqkvc_fail(err, VQKVC_E_IO, "cannot write: %s", strerror(errno));
    return VQKVC_OK;
}

/* Prints tokens as they come, until o->n of them or the end of the sequence. */
static vqkvc_code decode(generator *g, const vqkvc_cache *cache, const float *logits, run *r,
                         vqkvc_err *err)
{
    const options *o = g->o;
    vqkvc_rng rng = vqkvc_rng_make(o->seed, 0);
    int pos = g->n_prompt;
    double start = vqkvc_seconds();
    for (;;) {
        int32_t id =
            vqkvc_sample_token(logits, g->vocab, o->temperature, 0, 1, vqkvc_rng_uniform(&rng));
        r->ids[r->n++] = id;
        VQKVC_TRY(print_token(g->model, id, stdout, err));
        r->decoding = vqkvc_seconds() - start;
        if (r->n == o->n || id == vqkvc_token_eos(g->model))
            return VQKVC_OK;
        VQKVC_TRY(feed(g, cache, &id, 1, pos++, &logits, err));
    }
}

static vqkvc_code run_cache(generator *g, const vqkvc_cache *cache, run *r, vqkvc_err *err)
{
    const float *logits = NULL;
    double start = vqkvc_seconds();
    r->ids = vqkvc_alloc((size_t)g->o->n, sizeof *r->ids, err);
    if (r->ids == NULL)
        return err->code;
    for (int at = 0, n; at < g->n_prompt; at += n) {
        n = g->n_prompt - at < CHUNK ? g->n_prompt - at : CHUNK;
        VQKVC_TRY(feed(g, cache, g->prompt_ids + at, n, at, &logits, err));
    }
    r->prefill = vqkvc_seconds() - start;
    VQKVC_TRY(decode(g, cache, logits, r, err));
    r->cache_bytes = cache->bytes(cache->self);
    return VQKVC_OK;
}

/* ---- the caches side by side ---- */

static double rate(const run *r)
{
    return r->decoding > 0 ? (r->n - 1) / r->decoding : 0;
}

static void print_figures(const generator *g, const run *r)
{
    fprintf(g->notes,
            "\n[prompt: %d tokens in %.2f s; text: %d tokens, %.0f a second; cache: %zu bytes]\n",
            g->n_prompt, r->prefill, r->n, rate(r), r->cache_bytes);
}

static vqkvc_code run_f16(generator *g, int n_ctx, run *r, vqkvc_err *err)
{
    vqkvc_cache cache;
    VQKVC_TRY(vqkvc_cache_f16(&cache, vqkvc_model_geometry(g->model), 1, n_ctx, err));
    fprintf(g->notes, "\n--- fp16 cache ---\n");
    run_cache(g, &cache, r, err);
    cache.free(cache.self);
    print_figures(g, r);
    return err->code;
}

static vqkvc_code run_compressed(generator *g, int n_ctx, run *r, vqkvc_err *err)
{
    vqkvc_cache cache;
    VQKVC_TRY(compressed_cache(&cache, vqkvc_model_geometry(g->model), n_ctx, CHUNK, err));
    fprintf(g->notes, "\n--- compressed cache ---\n");
    run_cache(g, &cache, r, err);
    cache.free(cache.self);
    print_figures(g, r);
    return err->code;
}

static void print_comparison(const generator *g, const run *half, const run *small)
{
    int same = 0;
    while (same < half->n && same < small->n && half->ids[same] == small->ids[same])
        same++;
    fprintf(g->notes,
            "\n--- comparison ---\n"
            "first tokens that agree  %d of %d\n"
            "tokens a second          fp16 %.0f, compressed %.0f: %.2f times as many\n"
            "cache, bytes             fp16 %zu, compressed %zu: %.2f times smaller\n",
            same, half->n, rate(half), rate(small), rate(half) > 0 ? rate(small) / rate(half) : 0,
            half->cache_bytes, small->cache_bytes,
            (double)half->cache_bytes / (double)small->cache_bytes);
}

/* The prompt, or the end of a long context. */
static vqkvc_code print_prompt(const generator *g, vqkvc_err *err)
{
    int first = g->o->context != NULL && g->n_prompt > SHOWN ? g->n_prompt - SHOWN : 0;
    fprintf(g->notes, "--- prompt, %d tokens%s ---\n%s", g->n_prompt,
            first > 0 ? " of which these are the last" : "", first > 0 ? "... " : "");
    for (int i = first; i < g->n_prompt; i++)
        if (g->prompt_ids[i] != vqkvc_token_bos(g->model))
            VQKVC_TRY(print_token(g->model, g->prompt_ids[i], g->notes, err));
    fprintf(g->notes, "\n");
    return VQKVC_OK;
}

/* The context, if there is one, and the prompt behind it. */
static vqkvc_code take_prompt(generator *g, vqkvc_err *err)
{
    const options *o = g->o;
    vqkvc_buf *ids = &g->prompt;
    if (o->context != NULL)
        VQKVC_TRY(add_context(g->model, o, ids, err));
    if (o->prompt[0] != '\0')
        VQKVC_TRY(add_text(g->model, o->prompt, strlen(o->prompt), o->context == NULL, ids, err));
    if (ids->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for the prompt");
    if (ids->len == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "there is nothing to go on with: give a prompt");
    if (ids->len / sizeof(int32_t) > MAX_TOKENS)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%zu tokens of context and prompt are more than %d",
                          ids->len / sizeof(int32_t), (int)MAX_TOKENS);
    g->n_prompt = (int)(ids->len / sizeof(int32_t));
    g->prompt_ids = (const int32_t *)(const void *)ids->data;
    return VQKVC_OK;
}

static vqkvc_code generate(generator *g, vqkvc_err *err)
{
    const options *o = g->o;
    run half = {0}, small = {0};
    VQKVC_TRY(vqkvc_model_open(&g->model, o->model, 0, err));
    VQKVC_TRY(take_prompt(g, err));
    g->vocab = vqkvc_model_vocab_size(g->model);
    g->logits = vqkvc_alloc((size_t)CHUNK * (size_t)g->vocab, sizeof *g->logits, err);
    if (g->logits == NULL)
        return err->code;
    int n_ctx = g->n_prompt + o->n, trained = vqkvc_model_geometry(g->model)->n_ctx_train;
    if (trained > 0 && n_ctx > trained)
        fprintf(stderr, "generate: %d tokens in all, but the model was trained for %d\n", n_ctx,
                trained);
    print_prompt(g, err);
    if (o->f16 && err->code == VQKVC_OK)
        run_f16(g, n_ctx, &half, err);
    if (o->compressed && err->code == VQKVC_OK)
        run_compressed(g, n_ctx, &small, err);
    if (o->f16 && o->compressed && err->code == VQKVC_OK)
        print_comparison(g, &half, &small);
    free(half.ids);
    free(small.ids);
    return err->code;
}

/* ---- the command line ---- */

static const char help[] =
    "usage: generate [option...]\n"
    "\n"
    "Generates text with an fp16 cache and with the compressed one that is compiled in.\n"
    "\n"
    "  -m, --model FILE        GGUF model (default: examples/models/ref7m.gguf)\n"
    "  -p, --prompt TEXT       what to go on with (default: a sentence; after a context: nothing)\n"
    "  -n, --tokens N          tokens to generate (default: 96)\n"
    "      --cache WHICH       f16, compressed or both (default: both)\n"
    "      --temperature T     0 takes the likeliest token (default: 0)\n"
    "      --seed S            of sampling (default: 1)\n"
    "      --context FILE      put a long text before the prompt; NAME.i32 holds token ids\n"
    "      --context-tokens N  of that, the first N tokens (default: all)\n"
    "  -h, --help              print this help and end\n"
    "\n"
    "Standard output holds the text alone; with both caches, the figures as well.\n";

/* A whole number from low to high; -1 with *err. */
static long whole(const char *option, const char *text, long low, long high, vqkvc_err *err)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end != text && *end == '\0' && errno == 0 && value >= low && value <= high)
        return value;
    vqkvc_fail(err, VQKVC_E_USAGE, "%s: wanted a number from %ld to %ld, not '%s'", option, low,
               high, text);
    return -1;
}

static float temperature(const char *text, vqkvc_err *err)
{
    char *end;
    float value = strtof(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= 100))
        vqkvc_fail(err, VQKVC_E_USAGE, "--temperature: wanted 0 to 100, not '%s'", text);
    return value;
}

static void choose_caches(options *o, const char *which, vqkvc_err *err)
{
    o->f16 = strcmp(which, "compressed") != 0;
    o->compressed = strcmp(which, "f16") != 0;
    if (o->f16 && o->compressed && strcmp(which, "both") != 0)
        vqkvc_fail(err, VQKVC_E_USAGE, "--cache: wanted f16, compressed or both, not '%s'", which);
}

enum { OPT_CACHE = 256, OPT_TEMPERATURE, OPT_SEED, OPT_CONTEXT, OPT_CONTEXT_TOKENS };

static const struct option long_options[] = {
    {"model", required_argument, NULL, 'm'},
    {"prompt", required_argument, NULL, 'p'},
    {"tokens", required_argument, NULL, 'n'},
    {"help", no_argument, NULL, 'h'},
    {"cache", required_argument, NULL, OPT_CACHE},
    {"temperature", required_argument, NULL, OPT_TEMPERATURE},
    {"seed", required_argument, NULL, OPT_SEED},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"context-tokens", required_argument, NULL, OPT_CONTEXT_TOKENS},
    {NULL, 0, NULL, 0}};

/* Applies one option. *wants_help is set where the help is all that is wanted. */
static void apply(options *o, int option, int *wants_help, vqkvc_err *err)
{
    switch (option) {
    case 'm':
        o->model = optarg;
        break;
    case 'p':
        o->prompt = optarg;
        break;
    case 'n':
        o->n = (int)whole("--tokens", optarg, 1, MAX_TOKENS, err);
        break;
    case 'h':
        *wants_help = 1;
        break;
    case OPT_CACHE:
        choose_caches(o, optarg, err);
        break;
    case OPT_TEMPERATURE:
        o->temperature = temperature(optarg, err);
        break;
    case OPT_SEED:
        o->seed = (uint64_t)whole("--seed", optarg, 0, LONG_MAX, err);
        break;
    case OPT_CONTEXT:
        o->context = optarg;
        break;
    case OPT_CONTEXT_TOKENS:
        o->context_tokens = (int)whole("--context-tokens", optarg, 1, MAX_TOKENS, err);
        break;
    default: /* getopt has said what is wrong */
        vqkvc_fail(err, VQKVC_E_USAGE, "wrong usage");
    }
}

static vqkvc_code read_options(options *o, int argc, char **argv, int *wants_help, vqkvc_err *err)
{
    int option;
    *o = (options){
        .model = "examples/models/ref7m.gguf", .f16 = 1, .compressed = 1, .n = 96, .seed = 1};
    while (err->code == VQKVC_OK && !*wants_help &&
           (option = getopt_long(argc, argv, "m:p:n:h", long_options, NULL)) != -1)
        apply(o, option, wants_help, err);
    if (err->code == VQKVC_OK && !*wants_help && optind < argc)
        vqkvc_fail(err, VQKVC_E_USAGE, "'%s' is no option; a prompt goes behind -p", argv[optind]);
    if (o->prompt == NULL)
        o->prompt = o->context == NULL ? DEFAULT_PROMPT : "";
    return err->code;
}

int main(int argc, char **argv)
{
    vqkvc_err err = {0};
    options o;
    int wants_help = 0;
    if (read_options(&o, argc, argv, &wants_help, &err) == VQKVC_OK && !wants_help) {
        generator g = {.o = &o, .notes = o.f16 && o.compressed ? stdout : stderr};
        vqkvc_matrix_init();
        generate(&g, &err);
        vqkvc_model_close(g.model);
        free(g.prompt.data);
        free(g.logits);
    }
    if (wants_help)
        fputs(help, stdout);
    if (fflush(stdout) != 0 || ferror(stdout))
        vqkvc_fail(&err, VQKVC_E_IO, "cannot write to standard output");
    if (err.code != VQKVC_OK)
        fprintf(stderr, "generate: %s%s\n", err.msg,
                err.code == VQKVC_E_USAGE ? " (generate --help lists the options)" : "");
    return vqkvc_exit_status(err.code);
}
