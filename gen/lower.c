#include "gen/lower.h"

#include <string.h>

#include "base/half.h"
#include "gen/nodes.h"
#include "gen/turning.h"

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

/* Where the codewords of uniform codes lie in the table, by bits; of those that are used. */
typedef struct linear_books {
    int at[8];
} linear_books;

static gen_coder coder_of(const vqkvc_run *run)
{
    if (run->coder == VQKVC_CODER_F16)
        return GEN_HALVES;
    if (run->coder == VQKVC_CODER_UNI && run->bits == 8)
        return GEN_BYTES;
    return run->bits == 4 ? GEN_NIBBLES : GEN_WIDE;
}

/* Whether a run only goes on with what the one before it does: ranges are read by latent, so that
 * channels with a range of their own need no run of their own. */
static int goes_on(const vqkvc_stream *s, const vqkvc_run *run)
{
    return s->gain == VQKVC_GAIN_RANGE && run > s->runs && run->coder == VQKVC_CODER_UNI &&
           run[-1].coder == VQKVC_CODER_UNI && run[-1].bits == run->bits;
}

static void lower_run(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_run *run,
                      gen_lowered *low, const int *table_first, const linear_books *linear,
                      int codes)
{
    gen_run *out = &low->runs[low->n_runs++];
    out->coder = coder_of(run);
    out->uniform = run->coder == VQKVC_CODER_UNI;
    out->beam = run->coder == VQKVC_CODER_VQ && run->beam > 1 ? run->beam : 1;
    out->stages = run->stages;
    out->bits = run->bits;
    out->width = run->width;
    out->first = run->first;
    out->planes = run->groups * run->stages;
    out->codes = codes;
    out->gain = s->gain == VQKVC_GAIN_NONE ? 0 : run->first / s->gain_width;
    if (run->coder == VQKVC_CODER_VQ) {
        out->book = table_first[run->book];
        int shared = plan->tables[run->book].rows == run->stages && run->groups > 1;
        out->book_step = shared ? 0 : run->stages * (run->width << run->bits);
    } else if (out->uniform && run->bits < 8) {
        out->book = linear->at[run->bits];
    }
    low->max_width = larger(low->max_width, run->width);
    low->max_stages = larger(low->max_stages, run->stages);
    low->max_beam = larger(low->max_beam, out->beam);
}

/* The sum of the mean squares of a run's codewords, over channels and stages. */
static double energy_of(const vqkvc_plan *plan, const vqkvc_run *run)
{
    const vqkvc_table *book = &plan->tables[run->book];
    double sum = 0;
    for (int row = 0; row < book->rows; row++)
        for (int col = 0; col < book->cols; col++) {
            double x = (double)vqkvc_table_at(book, row, col);
            sum += x * x;
        }
    int shared = book->rows == run->stages && run->groups > 1;
    return sum / (1 << run->bits) * (shared ? run->groups : 1);
}

/* Codewords in 8 bits are off by 0.6 % of their size, root mean square, and so are queries that
 * meet them and that are mapped in 8 bits; in 16 by nothing that matters. Where the codes of the
 * most channels, of two at least, hold an eighth of a stream's energy at most together, which is
 * what reverse water-filling leaves them, that is 0.4 % of its scores. */
static void choose_words(const vqkvc_plan *plan, const vqkvc_stream *s, gen_run *runs, int n)
{
    double all = 0;
    for (int r = 0; r < s->n_runs; r++)
        all += s->runs[r].coder == VQKVC_CODER_VQ ? energy_of(plan, &s->runs[r]) : 0;
    for (int r = 0; r < n; r++) {
        double many = 0;
        for (int i = 0; i < s->n_runs; i++)
            if (s->runs[i].coder == VQKVC_CODER_VQ && s->runs[i].width >= runs[r].width)
                many += energy_of(plan, &s->runs[i]);
        runs[r].words = (runs[r].width % 4 != 0 && runs[r].width != 2) || many > all / 8;
    }
}

/* Lowers the runs of one stream; returns the bytes of a block up to their end, or more than
 * INT32_MAX. at: bytes before them. */
static int64_t lower_runs(const vqkvc_plan *plan, int i, gen_lowered *low, const int *table_first,
                          const linear_books *linear, int64_t at)
{
    const vqkvc_stream *s = &plan->streams[i];
    for (int r = 0; r < s->n_runs && at <= INT32_MAX; r++) {
        const vqkvc_run *run = &s->runs[r];
        if (goes_on(s, run))
            low->runs[low->n_runs - 1].planes += run->groups;
        else
            lower_run(plan, s, run, low, table_first, linear, (int)at);
        /* a block is a multiple of 8 */
        at += (int64_t)run->groups * run->stages * (plan->block / 8) * run->bits;
    }
    low->streams[i].n_runs = low->n_runs - low->streams[i].first_run;
    choose_words(plan, s, low->runs + low->streams[i].first_run, low->streams[i].n_runs);
    return at;
}

/* The codewords of uniform codes of every number of bits that occurs. */
static vqkvc_code lower_linear(const vqkvc_plan *plan, gen_lowered *low, linear_books *linear,
                               vqkvc_err *err)
{
    int used[9] = {0};
    for (int i = 0; i < plan->n_streams; i++)
        for (int r = 0; r < plan->streams[i].n_runs; r++)
            if (plan->streams[i].runs[r].coder == VQKVC_CODER_UNI)
                used[plan->streams[i].runs[r].bits] = 1;
    for (int bits = 1; bits < 8; bits++) {
        int n = 1 << bits;
        if (!used[bits])
            continue;
        char *title =
            vqkvc_arena_printf(&low->arena, err, "codewords of %d-bit uniform codes [%d]", bits, n);
        if (title == NULL)
            return err->code;
        linear->at[bits] = reserve(low, title, n);
        for (int c = 0; c < n; c++)
            low->values[linear->at[bits] + c] = vqkvc_f32_to_f16((float)(c - n / 2));
    }
    return VQKVC_OK;
}

/* The values as binary16, or the scales and then the bytes, two to a value. */
static void put_table(const vqkvc_table *t, uint16_t *out)
{
    size_t n = (size_t)t->rows * t->cols;
    if (t->bytes == NULL) {
        memcpy(out, t->f16, n * sizeof *out);
        return;
    }
    size_t n_scales = n / (size_t)t->scale_rows;
    memcpy(out, t->scale, n_scales * sizeof *out);
    for (size_t i = 0; i < n; i++) /* arena memory is zero */
        out[n_scales + i / 2] |= (uint16_t)((uint8_t)t->bytes[i] << i % 2 * 8);
}

/* Copies the plan's tables, a table of gains for each stream with 8-bit ones, and the codebooks of
 * uniform codes. */
static vqkvc_code lower_tables(const vqkvc_plan *plan, gen_lowered *low, int *table_first,
                               linear_books *linear, vqkvc_err *err)
{
    int64_t total = 256 + 16; /* linear codebooks; spare words */
    for (int i = 0; i < plan->n_tables; i++)
        total += (int64_t)(vqkvc_table_size(&plan->tables[i]) + 1) / 2 + 3;
    total += (int64_t)plan->n_streams * 256;
    if (total > INT32_MAX / 4)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "tables of %lld values are too large to bake in", (long long)total);
    low->sections = vqkvc_arena_alloc(&low->arena, plan->n_tables + plan->n_streams + 8,
                                      sizeof(gen_section), err);
    low->values = vqkvc_arena_alloc(&low->arena, (size_t)total, sizeof(uint16_t), err);
    if (low->sections == NULL || low->values == NULL)
        return err->code;
    for (int i = 0; i < plan->n_tables; i++) {
        const vqkvc_table *t = &plan->tables[i];
        char *title = vqkvc_arena_printf(
            &low->arena, err, t->bytes != NULL ? "%s [%d, %d]: scales, then bytes" : "%s [%d, %d]",
            t->name, t->rows, t->cols);
        if (title == NULL)
            return err->code;
        table_first[i] = reserve(low, title, (int)((vqkvc_table_size(t) + 1) / 2));
        put_table(t, low->values + table_first[i]);
    }
    VQKVC_TRY(lower_linear(plan, low, linear, err));
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
    reserve(low, "spare: gathers read two bytes behind an entry, vectors never less than 32 [16]",
            16);
    return VQKVC_OK;
}

/* Bytes of a block before the codes: gains, ranges, shifts, outliers. No bit is stored that
 * vqkvc_stream_gain_bits() does not count. */
static int64_t lower_gains(const vqkvc_plan *plan, const vqkvc_stream *s, gen_stream *out)
{
    int64_t at = 0, block = plan->block;
    if (s->gain == VQKVC_GAIN_NONE)
        out->n_gains = 0;
    else
        out->n_gains = s->n_latents / s->gain_width;
    if (s->gain == VQKVC_GAIN_RANGE)
        at = out->n_gains * (block / s->gain_tokens) * 4;
    else if (s->gain == VQKVC_GAIN_NSN)
        at = out->n_gains * block * 4 + block / s->gain_tokens * s->n_latents * 2;
    else
        at = out->n_gains * block * s->gain_bits / 8;
    out->kept = at > INT32_MAX ? 0 : (int)at;
    return at + s->outliers * block * (s->n_latents > 256 ? 4 : 3);
}

static vqkvc_code lower_stream(const vqkvc_plan *plan, int i, gen_lowered *low,
                               const int *table_first, const linear_books *linear, vqkvc_err *err)
{
    const vqkvc_stream *s = &plan->streams[i];
    gen_stream *out = &low->streams[i];
    out->first_member = low->n_members;
    for (int m = 0; m < s->n_members; m++)
        low->members[low->n_members++] = &s->members[m];
    out->mean = s->mean < 0 ? -1 : table_first[s->mean];
    out->basis_bytes = s->enc >= 0 && plan->tables[s->enc].bytes != NULL ? 1 : 2;
    out->enc = s->enc < 0 ? -1 : table_first[s->enc];
    out->dec = s->dec < 0 ? -1 : table_first[s->dec];
    out->spread = s->spread < 0 ? -1 : table_first[s->spread];
    out->first_run = low->n_runs;
    int64_t at = lower_gains(plan, s, out);
    at = lower_runs(plan, i, low, table_first, linear, at);
    gen_mark_steady(plan, s, out, low->runs + out->first_run);
    if (at > INT32_MAX - low->block_bytes)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "a block of %d tokens takes more than 2 GiB",
                          plan->block);
    if (s->outliers > 0 && s->n_latents > 1 << 16)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "stream %s: outliers among %d latents, more than 16 bits can name",
                          s->name, s->n_latents);
    out->bytes = (int)at;
    out->start = low->block_bytes;
    low->block_bytes += out->bytes;
    low->max_in = larger(low->max_in, s->n_in);
    low->max_latents = larger(low->max_latents, s->n_latents);
    if (s->outliers > 0)
        low->max_out_latents = larger(low->max_out_latents, s->n_latents);
    low->turns |= s->frame == VQKVC_FRAME_PRE;
    return VQKVC_OK;
}

/* What absorbing one stream of a head takes. */
typedef struct absorbing {
    int lut, book, latents, runs, columns, groups, uses;
    int64_t wide;
} absorbing;

static void add_absorbing(const gen_lowered *low, const vqkvc_stream *s, const gen_stream *lowered,
                          absorbing *sum)
{
    sum->uses++;
    sum->latents += s->n_latents;
    sum->runs += lowered->n_runs;
    if (s->frame == VQKVC_FRAME_BLOCK && s->transform == VQKVC_TRANSFORM_BASIS)
        sum->columns +=
            (s->n_latents + 16) / 16 * 16 + 16; /* COLUMNS and BYTE_COLUMNS of types.h */
    for (int r = 0; r < lowered->n_runs; r++) {
        const gen_run *run = &low->runs[lowered->first_run + r];
        if (run->coder == GEN_WIDE)
            sum->wide += (int64_t)run->planes << run->bits;
        else
            sum->lut += run->planes * (run->coder == GEN_NIBBLES ? 16 : 1);
        if (run->coder != GEN_NIBBLES)
            continue;
        sum->book += run->planes * run->width * 16;
        sum->groups += run->words ? (run->planes * run->width + 1) / 2 /* vqkv__dot_groups() */
                                  : (run->planes * run->width + 3) / 4;
    }
}

static void note_absorbing(gen_lowered *low, int part, const absorbing *sum)
{
    low->max_uses = larger(low->max_uses, sum->uses);
    if (part == VQKVC_PART_K) {
        low->max_lut = larger(low->max_lut, sum->lut);
        low->max_runs = larger(low->max_runs, sum->runs);
        low->max_dot_groups = larger(low->max_dot_groups, sum->groups);
        low->max_columns = larger(low->max_columns, sum->columns);
        low->max_wide_lut = sum->wide > low->max_wide_lut ? sum->wide : low->max_wide_lut;
    } else {
        low->max_book = larger(low->max_book, sum->book);
        low->max_wide_bins = sum->wide > low->max_wide_bins ? sum->wide : low->max_wide_bins;
        low->max_sum_latents = larger(low->max_sum_latents, sum->latents);
    }
}

/* The streams of each head, and what attending to it takes. */
static void lower_uses(const vqkvc_plan *plan, gen_lowered *low)
{
    const vqkvc_geometry *g = &plan->geometry;
    int slot = 0;
    for (int part = 0; part < 2; part++)
        for (int layer = 0; layer < g->n_layers; layer++)
            for (int head = 0; head < g->n_kv_heads; head++) {
                absorbing sum = {0};
                low->use_first[slot++] = low->n_uses;
                for (int i = 0; i < plan->n_streams; i++) {
                    const vqkvc_stream *s = &plan->streams[i];
                    for (int m = 0; m < s->n_members; m++) {
                        if ((int)s->members[m].part != part || s->members[m].layer != layer ||
                            s->members[m].head != head)
                            continue;
                        low->uses[low->n_uses++] = (gen_use){.stream = i, .member = m};
                        add_absorbing(low, s, &low->streams[i], &sum);
                    }
                }
                if (!low->nodes[low->node_at[part * g->n_layers + layer]].rebuilt)
                    note_absorbing(low, part, &sum);
                else if (part == VQKVC_PART_V) /* sums are over channels */
                    low->max_sum_latents = larger(low->max_sum_latents, g->head_dim);
            }
    low->use_first[slot] = low->n_uses;
}

/* The largest tiles, in floats, that the runtime's offsets are made for: 1 GiB. */
enum { MAX_TILE = 1 << 28 };

static vqkvc_code check_sizes(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int64_t width = (int64_t)g->n_kv_heads * g->head_dim;
    int64_t rows = larger(low->max_in, low->max_latents) + width * (low->n_slots + 1);
    if (rows * plan->block > MAX_TILE)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "rebuilding a block takes %lld vectors of %d tokens: more than 1 GiB",
                          (long long)rows, plan->block);
    if (low->max_wide_lut + low->max_wide_bins > MAX_WIDE)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "codes of one head have %lld codewords: tables for one query would be "
                          "larger than %d MiB",
                          (long long)(low->max_wide_lut + low->max_wide_bins), MAX_WIDE >> 18);
    return VQKVC_OK;
}

/* What the runtime's descriptors hold in 16 bits. */
static vqkvc_code check_counts(const vqkvc_plan *plan, vqkvc_err *err)
{
    if (plan->n_streams > INT16_MAX)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "more than %d streams", INT16_MAX);
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        if (s->n_members > INT16_MAX)
            return vqkvc_fail(err, VQKVC_E_UNSUPPORTED, "stream %s: more than %d members", s->name,
                              INT16_MAX);
        for (int r = 0; r < s->n_runs; r++)
            if (s->runs[r].width > UINT16_MAX)
                return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                                  "stream %s: run %d: codes of %d channels, %d at most", s->name, r,
                                  s->runs[r].width, UINT16_MAX);
    }
    return VQKVC_OK;
}

vqkvc_code gen_lower(const vqkvc_plan *plan, gen_lowered *low, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t n_runs = 0, n_members = 0;
    linear_books linear = {{0}};
    for (int i = 0; i < plan->n_streams; i++) {
        n_runs += (size_t)plan->streams[i].n_runs;
        n_members += (size_t)plan->streams[i].n_members;
    }
    VQKVC_TRY(check_counts(plan, err));
    int *table_first = vqkvc_arena_alloc(&low->arena, plan->n_tables + 1, sizeof(int), err);
    low->streams = vqkvc_arena_alloc(&low->arena, plan->n_streams, sizeof(gen_stream), err);
    low->runs = vqkvc_arena_alloc(&low->arena, n_runs, sizeof(gen_run), err);
    low->members = vqkvc_arena_alloc(&low->arena, n_members, sizeof(vqkvc_member *), err);
    low->uses = vqkvc_arena_alloc(&low->arena, n_members, sizeof(gen_use), err);
    low->use_first = vqkvc_arena_alloc(
        &low->arena, (size_t)2 * (size_t)g->n_layers * (size_t)g->n_kv_heads + 1, sizeof(int), err);
    if (err->code != VQKVC_OK)
        return err->code;
    low->max_width = low->max_book = low->max_lut = low->max_stages = low->max_beam = 1;
    if (plan->block < 32)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "blocks of %d tokens: the runtime needs 32 or more", plan->block);
    VQKVC_TRY(lower_tables(plan, low, table_first, &linear, err));
    gen_lower_turning(plan, &low->turning);
    for (int i = 0; i < plan->n_streams; i++)
        VQKVC_TRY(lower_stream(plan, i, low, table_first, &linear, err));
    VQKVC_TRY(gen_lower_nodes(plan, table_first, low, err));
    lower_uses(plan, low);
    return check_sizes(plan, low, err);
}
