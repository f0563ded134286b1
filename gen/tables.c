#include "gen/tables.h"

#include <string.h>

#include "gen/parts.h"
#include "plan/frame.h"

/* Four binary16 values make one little-endian word: the quickest constants for compilers to read
 * that are still pedantic C (style.md has the measurements). */
static void print_values(const gen_lowered *low, vqkvc_buf *out)
{
    vqkvc_buf_puts(
        out,
        "\n/* Bases, means and codebooks: binary16, four to a little-endian word; or scales in\n"
        " * binary16 and bytes. */\n"
        "static const uint64_t vqkv__tables[] = {\n");
    for (int i = 0; i < low->n_sections; i++) {
        const gen_section *section = &low->sections[i];
        vqkvc_buf_puts(out, "    /* ");
        gen_put_user(out, section->title);
        vqkvc_buf_puts(out, " */\n");
        for (int v = 0; v < section->n; v += 4) {
            const uint16_t *p = low->values + section->first + v;
            int last = v + 4 >= section->n, full = v / 4 % 4 == 3;
            vqkvc_buf_printf(out, "%s0x%04x%04x%04x%04xu,%s", v / 4 % 4 == 0 ? "    " : " ", p[3],
                             p[2], p[1], p[0], last || full ? "\n" : "");
        }
    }
    vqkvc_buf_puts(out, "};\n");
}

static void print_streams(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    static const char *const frames[] = {"VQKV__PRE", "VQKV__POST", "VQKV__BLOCKWISE"};
    static const char *const transforms[] = {"VQKV__IDENTITY", "VQKV__HADAMARD", "VQKV__BASIS"};
    static const char *const gains[] = {"VQKV__NO_GAIN", "VQKV__RMS",   "VQKV__ABSMAX",
                                        "VQKV__SIGNMAX", "VQKV__RANGE", "VQKV__NSN"};
    vqkvc_buf_puts(
        out,
        "\n/* frame, transform, gain, bytes of it, of the basis; members, first; n_in, n_latents, "
        "steady; mean, enc, dec;\n * gains, width, table, tokens; outliers, spread, place; "
        "first run, runs; "
        "bytes, start */\n"
        "static const vqkv__stream vqkv__streams[] = {\n");
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        const gen_stream *l = &low->streams[i];
        int width = s->gain == VQKVC_GAIN_NONE ? s->n_latents : s->gain_width;
        vqkvc_buf_printf(out,
                         "    {%s, %s, %s, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, "
                         "%d, %d, %d, %d, %d, %d, %d}, /* ",
                         frames[s->frame], transforms[s->transform], gains[s->gain],
                         s->gain == VQKVC_GAIN_NONE ? 0 : s->gain_bits / 8, l->basis_bytes,
                         s->n_members, l->first_member, s->n_in, s->n_latents, l->n_steady, l->mean,
                         l->enc, l->dec, l->n_gains, width, l->gain_table, s->gain_tokens,
                         s->outliers, l->spread, l->kept, l->first_run, l->n_runs, l->bytes,
                         l->start);
        gen_put_user(out, s->name);
        vqkvc_buf_puts(out, " */\n");
    }
    vqkvc_buf_puts(out, "};\n");
}

static void print_runs(const gen_lowered *low, vqkvc_buf *out)
{
    static const char *const coders[] = {"VQKV__NIBBLES", "VQKV__BYTES", "VQKV__HALVES",
                                         "VQKV__WIDE"};
    vqkvc_buf_puts(
        out, "\n/* coder, uniform, stages, beam, bits, words, steady, width; first latent, planes, "
             "codes; book, its step; gain "
             "*/\nstatic const vqkv__run vqkv__runs[] = {\n");
    for (int i = 0; i < low->n_runs; i++) {
        const gen_run *r = &low->runs[i];
        vqkvc_buf_printf(out, "    {%s, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d, %d},\n",
                         coders[r->coder], r->uniform, r->stages, r->beam, r->bits, r->words,
                         r->steady, r->width, r->first, r->planes, r->codes, r->book, r->book_step,
                         r->gain);
    }
    vqkvc_buf_puts(out, "};\n");
}

static void print_members(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    int slots = 2 * plan->geometry.n_layers * plan->geometry.n_kv_heads + 1;
    vqkvc_buf_puts(out, "\n/* The rows of each stream: part, layer, KV head */\n"
                        "static const vqkv__member vqkv__members[] = {");
    for (int i = 0; i < low->n_members; i++)
        vqkvc_buf_printf(out, "%s{%d, %d, %d},", i % 8 == 0 ? "\n    " : " ",
                         (int)low->members[i]->part, low->members[i]->layer, low->members[i]->head);
    vqkvc_buf_puts(out,
                   "\n};\n\n/* The streams of each head, by part, layer and head: stream, row */\n"
                   "static const vqkv__use vqkv__uses[] = {");
    for (int i = 0; i < low->n_uses; i++)
        vqkvc_buf_printf(out, "%s{%d, %d},", i % 10 == 0 ? "\n    " : " ", low->uses[i].stream,
                         low->uses[i].member);
    vqkvc_buf_puts(out, "\n};\nstatic const int vqkv__use_first[] = {");
    for (int i = 0; i < slots; i++)
        vqkvc_buf_printf(out, "%s%d,", i % 16 == 0 ? "\n    " : " ", low->use_first[i]);
    vqkvc_buf_puts(out, "\n};\n");
}

static void print_nodes(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    int n = 2 * plan->geometry.n_layers;
    vqkvc_buf_puts(out, "\n/* K and V of each layer, behind what they are predicted from: part, "
                        "layer; rebuilt, source;\n * slot, prediction, last stream */\n"
                        "static const vqkv__node vqkv__nodes[] = {");
    for (int i = 0; i < n; i++) {
        const gen_node *node = &low->nodes[i];
        vqkvc_buf_printf(out, "%s{%d, %d, %d, %d, %d, %d, %d},", i % 4 == 0 ? "\n    " : " ",
                         node->part, node->layer, node->rebuilt, node->source, node->slot,
                         node->prediction, node->last_stream);
    }
    vqkvc_buf_puts(out, "\n};\nstatic const int vqkv__node_at[] = {");
    for (int i = 0; i < n; i++)
        vqkvc_buf_printf(out, "%s%d,", i % 16 == 0 ? "\n    " : " ", low->node_at[i]);
    vqkvc_buf_puts(out, "\n};\n\n/* sources; per head, rank; bias, map, out */\n"
                        "static const vqkv__prediction vqkv__predictions[] = {");
    for (int i = 0; i < plan->n_predictions || i == 0; i++) { /* C knows no empty array */
        const gen_prediction *p = &low->predictions[i];
        vqkvc_buf_printf(out, "\n    {%d, {%d, %d}, %d, %d, %d, %d, %d},", p->n_sources,
                         p->source[0], p->source[1], p->per_head, p->rank, p->bias, p->map, p->out);
    }
    vqkvc_buf_puts(out, "\n};\n");
}

/* Bit patterns: decimal does not round-trip every double, and C++11 has no hexadecimal floats. */
static void print_rope(const vqkvc_plan *plan, vqkvc_buf *out)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_buf_puts(out, "\n/* Rotation of each pair in radians a token: bits of a double */\n"
                        "static const uint64_t vqkv__rope_bits[] = {");
    for (int i = 0; i < g->n_rot / 2 || i == 0; i++) {
        uint64_t bits;
        memcpy(&bits, &g->rope_freq[i], sizeof bits);
        vqkvc_buf_printf(out, "%s0x%016llxu,", i % 4 == 0 ? "\n    " : " ",
                         (unsigned long long)bits);
    }
    vqkvc_buf_puts(out, "\n};\n\n/* Tokens of the span at whose first one a pair of a blockwise "
                        "frame counts as un-rotated; 0: it\n * stays as it is. */\n"
                        "static const int vqkv__spans[] = {");
    for (int i = 0; i < g->n_rot / 2 || i == 0; i++)
        vqkvc_buf_printf(out, "%s%d,", i % 16 == 0 ? "\n    " : " ",
                         vqkvc_frame_span(plan->block, plan->stretch[i]));
    vqkvc_buf_puts(out, "\n};\n");
}

void gen_print_tables(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    const struct {
        const char *name;
        int value;
    } sizes[] = {
        {"N_STREAMS", plan->n_streams},
        {"BLOCK_BYTES", low->block_bytes},
        {"MAX_IN", low->max_in},
        {"MAX_LATENTS", low->max_latents},
        {"MAX_OUT_LATENTS", low->max_out_latents},
        {"MAX_WIDTH", low->max_width},
        {"MAX_LUT", low->max_lut},
        {"MAX_BOOK", low->max_book},
        {"MAX_WIDE_LUT", (int)low->max_wide_lut},
        {"MAX_WIDE_BINS", (int)low->max_wide_bins},
        {"MAX_SUM_LATENTS", low->max_sum_latents},
        {"MAX_RUNS", low->max_runs > 0 ? low->max_runs : 1},
        {"MAX_USES", low->max_uses > 0 ? low->max_uses : 1},
        {"MAX_DOT_GROUPS", low->max_dot_groups > 0 ? low->max_dot_groups : 1},
        {"MAX_COLUMNS", low->max_columns},
        {"MAX_STAGES", low->max_stages},
        {"MAX_BEAM", low->max_beam},
        {"MAX_RANK", low->max_rank},
        {"N_PREDICTIONS", plan->n_predictions},
        {"N_SLOTS", low->n_slots},
        {"REBUILDS", low->rebuilds},
        {"TURN_FLOATS", low->turns ? plan->geometry.n_rot * plan->block : 0},
    };
    vqkvc_buf_printf(out,
                     "\n/* What the model's rotation multiplies by besides turning (YaRN). */\n"
                     "#define VQKV__ROPE_SCALE %.9ef\n",
                     (double)plan->geometry.rope_mscale);
    vqkvc_buf_printf(out,
                     "/* The part of all vectors that the exact list has room for by default. */\n"
                     "#define VQKV__KEPT_SHARE %.9e\n",
                     plan->max_error > 0 ? 2 * plan->kept_rate + 0.01 : 0.0);
    vqkvc_buf_puts(out, "\n/* The most that any stream or head needs. */\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        vqkvc_buf_printf(out, "#define VQKV__%s %d\n", sizes[i].name, sizes[i].value);
    print_rope(plan, out);
    print_members(plan, low, out);
    print_nodes(plan, low, out);
    print_runs(low, out);
    print_streams(plan, low, out);
    print_values(low, out);
}

/* One line a sixteen. */
static void print_shorts(const char *name, const int *values, int n, vqkvc_buf *out)
{
    vqkvc_buf_printf(out, "static const short vqkv__%s[] = {", name);
    for (int i = 0; i < n || i == 0; i++)
        vqkvc_buf_printf(out, "%s%d,", i % 16 == 0 ? "\n    " : " ", n == 0 ? 0 : values[i]);
    vqkvc_buf_puts(out, "\n};\n");
}

void gen_print_turning(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    const gen_turning *t = &low->turning;
    vqkvc_buf_printf(
        out,
        "\n/* Pairs and channels of a head that keep their turn for STEADY_SPAN tokens "
        "in a blockwise frame\n * stand in front of those that turn from block to block. "
        "*/\n#define VQKV__STEADY_SPAN %d\n#define VQKV__STEADY_PAIRS %d\n"
        "#define VQKV__STEADY_DIMS %d\n",
        VQKVC_STEADY_SPAN, t->steady_pairs, t->steady_dims);
    print_shorts("pairs", t->pairs, t->n_pairs, out);
    print_shorts("order", t->order, plan->geometry.head_dim, out);
}
