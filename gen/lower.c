#include "gen/lower.h"

#include <string.h>

#include "base/half.h"

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* Reserves n binary16 values of the table, at a multiple of 4 (one 64-bit word). */
static int reserve(gen_lowered *low, const char *title, int n)
{
    gen_section *section = &low->sections[low->n_sections++];
    section->title = title;
    section->first = low->n_values;
    section->n = n;
    low->n_values += (n + 3) / 4 * 4;
    return section->first;
}

/* The most floats of score tables or bins for one row: 64 MiB. */
enum { MAX_WIDE = 1 << 24 };

static vqkvc_code coder_of(const vqkvc_stream *s, const vqkvc_run *run, gen_coder *coder,
                           vqkvc_err *err)
{
    if (run->coder == VQKVC_CODER_F16)
        *coder = GEN_HALVES;
    else if (run->coder == VQKVC_CODER_UNI && run->bits == 8)
        *coder = GEN_BYTES;
    else if (run->bits == 4)
        *coder = GEN_NIBBLES;
    else if (run->coder == VQKVC_CODER_VQ)
        *coder = GEN_WIDE;
    else
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "stream %s: the runtime has no uniform codes of %d bits, but of 4 and 8",
                          s->name, run->bits);
    return VQKVC_OK;
}

/* Lowers the runs of one stream; *at is the offset in the stream's block behind the gains. */
static vqkvc_code lower_runs(const vqkvc_plan *plan, const vqkvc_stream *s, gen_lowered *low,
                             const int *table_first, int linear, int *at, vqkvc_err *err)
{
    for (int i = 0; i < s->n_runs; i++) {
        const vqkvc_run *run = &s->runs[i];
        gen_run *out = &low->runs[low->n_runs++];
        VQKVC_TRY(coder_of(s, run, &out->coder, err));
        out->stages = run->stages;
        out->bits = run->bits;
        out->width = run->width;
        out->first = run->first;
        out->planes = run->groups * run->stages;
        out->codes = *at;
        out->gain = s->gain == VQKVC_GAIN_NONE ? 0 : run->first / s->gain_width;
        if (run->coder == VQKVC_CODER_VQ) {
            out->book = table_first[run->book];
            int shared = plan->tables[run->book].rows == run->stages && run->groups > 1;
            out->book_step = shared ? 0 : run->stages * (run->width << run->bits);
        } else if (out->coder == GEN_NIBBLES) {
            out->book = linear;
        }
        *at += out->planes * (plan->block * run->bits / 8); /* a block is a multiple of 8 */
        low->max_width = larger(low->max_width, run->width);
        if (out->coder == GEN_NIBBLES) /* books on their way to bytes pass through score tables */
            low->max_lut = larger(low->max_lut, 2 * run->width);
    }
    return VQKVC_OK;
}

/* Copies the plan's tables, a table of gains for each stream with 8-bit ones, and the linear
 * codebook of 4-bit uniform codes. */
static vqkvc_code lower_tables(const vqkvc_plan *plan, gen_lowered *low, int *table_first,
                               int *linear, vqkvc_err *err)
{
    int64_t total = 16 + 4; /* the linear codebook; a spare word for gathers to read */
    for (int i = 0; i < plan->n_tables; i++)
        total += (int64_t)plan->tables[i].rows * plan->tables[i].cols + 3;
    total += (int64_t)plan->n_streams * 256;
    if (total > INT32_MAX / 4)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "tables of %lld values are too large to bake in", (long long)total);
    low->sections = vqkvc_arena_alloc(&low->arena, plan->n_tables + plan->n_streams + 2,
                                      sizeof(gen_section), err);
    low->values = vqkvc_arena_alloc(&low->arena, (size_t)total, sizeof(uint16_t), err);
    if (low->sections == NULL || low->values == NULL)
        return err->code;
    for (int i = 0; i < plan->n_tables; i++) {
        const vqkvc_table *t = &plan->tables[i];
        int n = t->rows * t->cols;
        char *title =
            vqkvc_arena_printf(&low->arena, err, "%s [%d, %d]", t->name, t->rows, t->cols);
        if (title == NULL)
            return err->code;
        table_first[i] = reserve(low, title, n);
        memcpy(low->values + table_first[i], t->f16, (size_t)n * sizeof(uint16_t));
    }
    *linear = reserve(low, "codewords of 4-bit uniform codes [16]", 16);
    for (int i = 0; i < 16; i++)
        low->values[*linear + i] = vqkvc_f32_to_f16((float)(i - 8));
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        if (s->gain == VQKVC_GAIN_NONE || s->gain_bits != 8)
            continue;
        char *title = vqkvc_arena_printf(&low->arena, err, "gains %s [256]", s->name);
        if (title == NULL)
            return err->code;
        low->streams[i].gain_table = reserve(low, title, 256);
        for (int c = 0; c < 256; c++)
            low->values[low->streams[i].gain_table + c] = vqkvc_stream_gain(s, c);
    }
    reserve(low, "spare: gathers read two bytes behind an entry [4]", 4);
    return VQKVC_OK;
}

static vqkvc_code lower_stream(const vqkvc_plan *plan, int i, gen_lowered *low,
                               const int *table_first, int linear, vqkvc_err *err)
{
    const vqkvc_stream *s = &plan->streams[i];
    gen_stream *out = &low->streams[i];
    out->first_member = low->n_members;
    for (int m = 0; m < s->n_members; m++)
        low->members[low->n_members++] = &s->members[m];
    out->mean = s->mean < 0 ? -1 : table_first[s->mean];
    out->enc = s->enc < 0 ? -1 : table_first[s->enc];
    out->dec = s->dec < 0 ? -1 : table_first[s->dec];
    out->n_gains =
        s->gain == VQKVC_GAIN_NONE ? 0 : (s->n_latents + s->gain_width - 1) / s->gain_width;
    out->first_run = low->n_runs;
    int at = out->n_gains * plan->block * s->gain_bits / 8;
    VQKVC_TRY(lower_runs(plan, s, low, table_first, linear, &at, err));
    out->bytes = at; /* no bit is stored that is not counted */
    out->start = low->block_bytes;
    if (at > INT32_MAX - low->block_bytes)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "a block of %d tokens takes more than 2 GiB",
                          plan->block);
    low->block_bytes += out->bytes;
    low->max_in = larger(low->max_in, s->n_in);
    low->max_latents = larger(low->max_latents, s->n_latents);
    low->max_gains = larger(low->max_gains, out->n_gains);
    return VQKVC_OK;
}

/* The streams of each head, and what attending to it takes. */
static void lower_uses(const vqkvc_plan *plan, gen_lowered *low)
{
    const vqkvc_geometry *g = &plan->geometry;
    int slot = 0;
    for (int part = 0; part < 2; part++)
        for (int layer = 0; layer < g->n_layers; layer++)
            for (int head = 0; head < g->n_kv_heads; head++) {
                int lut = 0, book = 0, latents = 0, runs = 0;
                int64_t wide = 0;
                low->use_first[slot++] = low->n_uses;
                for (int i = 0; i < plan->n_streams; i++) {
                    const vqkvc_stream *s = &plan->streams[i];
                    for (int m = 0; m < s->n_members; m++) {
                        if ((int)s->members[m].part != part || s->members[m].layer != layer ||
                            s->members[m].head != head)
                            continue;
                        low->uses[low->n_uses++] = (gen_use){.stream = i, .member = m};
                        latents += s->n_latents;
                        runs += s->n_runs;
                        for (int r = 0; r < s->n_runs; r++) {
                            const gen_run *run = &low->runs[low->streams[i].first_run + r];
                            if (run->coder == GEN_WIDE)
                                wide += (int64_t)run->planes << run->bits;
                            else
                                lut += run->planes * (run->coder == GEN_NIBBLES ? 16 : 1);
                            if (run->coder == GEN_NIBBLES)
                                book += run->planes * run->width * 16;
                        }
                    }
                }
                if (part == VQKVC_PART_K) {
                    low->max_lut = larger(low->max_lut, lut);
                    low->max_runs = larger(low->max_runs, runs);
                    low->max_wide_lut = wide > low->max_wide_lut ? wide : low->max_wide_lut;
                } else {
                    low->max_book = larger(low->max_book, book);
                    low->max_wide_bins = wide > low->max_wide_bins ? wide : low->max_wide_bins;
                    low->max_sum_latents = larger(low->max_sum_latents, latents);
                }
            }
    low->use_first[slot] = low->n_uses;
}

vqkvc_code gen_lower(const vqkvc_plan *plan, gen_lowered *low, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t n_runs = 0, n_members = 0;
    int linear = 0;
    for (int i = 0; i < plan->n_streams; i++) {
        n_runs += (size_t)plan->streams[i].n_runs;
        n_members += (size_t)plan->streams[i].n_members;
    }
    if (plan->n_streams > INT16_MAX)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "more than %d streams", INT16_MAX);
    int *table_first = vqkvc_arena_alloc(&low->arena, plan->n_tables + 1, sizeof(int), err);
    low->streams = vqkvc_arena_alloc(&low->arena, plan->n_streams, sizeof(gen_stream), err);
    low->runs = vqkvc_arena_alloc(&low->arena, n_runs, sizeof(gen_run), err);
    low->members = vqkvc_arena_alloc(&low->arena, n_members, sizeof(vqkvc_member *), err);
    low->uses = vqkvc_arena_alloc(&low->arena, n_members, sizeof(gen_use), err);
    low->use_first = vqkvc_arena_alloc(
        &low->arena, (size_t)2 * (size_t)g->n_layers * (size_t)g->n_kv_heads + 1, sizeof(int), err);
    if (err->code != VQKVC_OK)
        return err->code;
    low->max_width = low->max_gains = low->max_book = low->max_lut = 1;
    if (plan->block < 32)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "blocks of %d tokens: the runtime needs 32 or more", plan->block);
    VQKVC_TRY(lower_tables(plan, low, table_first, &linear, err));
    for (int i = 0; i < plan->n_streams; i++)
        VQKVC_TRY(lower_stream(plan, i, low, table_first, linear, err));
    lower_uses(plan, low);
    /* The runtime also unpacks one plane's codewords, width * 16 values, where the score tables of
     * all rows go. */
    low->max_lut = larger(low->max_lut, 2 * low->max_width);
    if (low->max_wide_lut + low->max_wide_bins > MAX_WIDE)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "codes of one head have %lld codewords: tables for one query would be "
                          "larger than %d MiB",
                          (long long)(low->max_wide_lut + low->max_wide_bins), MAX_WIDE >> 18);
    return VQKVC_OK;
}
