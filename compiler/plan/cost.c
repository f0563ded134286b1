/* What a plan takes: bits stored, bits read, bytes of tables. */
#include "plan/plan.h"

#include <string.h>

int vqkvc_stream_codes(const vqkvc_stream *s)
{
    int codes = 0;
    for (int r = 0; r < s->n_runs; r++)
        codes += s->runs[r].groups * s->runs[r].stages;
    return codes;
}

double vqkvc_stream_code_bits(const vqkvc_stream *s)
{
    double bits = 0;
    for (int r = 0; r < s->n_runs; r++)
        bits += (double)s->runs[r].groups * s->runs[r].stages * s->runs[r].bits;
    return bits;
}

double vqkvc_stream_gain_bits(const vqkvc_stream *s)
{
    double bits = (double)s->outliers * (16 + (s->n_latents > 256 ? 16 : 8));
    if (s->gain == VQKVC_GAIN_NONE)
        return bits;
    double groups = (double)(s->n_latents / s->gain_width), tokens = s->gain_tokens;
    if (s->gain == VQKVC_GAIN_RANGE)
        return bits + groups * 2 * 16 / tokens;
    if (s->gain == VQKVC_GAIN_NSN)
        return bits + groups * (2 * 16 + s->gain_width * 16 / tokens);
    return bits + groups * s->gain_bits;
}

/* ---- what a layer reads besides its own streams ---- */

enum { MAX_TARGETS = 2 * VQKVC_MAX_LAYERS };

static int target_of(vqkvc_part part, int layer)
{
    return 2 * layer + (part == VQKVC_PART_V);
}

/* Predictions by target, -1 where there is none. */
static void index_predictions(const vqkvc_plan *plan, int *at)
{
    for (int i = 0; i < MAX_TARGETS; i++)
        at[i] = -1;
    for (int i = 0; i < plan->n_predictions; i++)
        at[target_of(plan->predictions[i].part, plan->predictions[i].layer)] = i;
}

/* Marks all that K and V of a layer are predicted from, directly or not: needed [MAX_TARGETS]. */
static void mark_sources(const vqkvc_plan *plan, const int *at, int layer, uint8_t *needed)
{
    int stack[MAX_TARGETS] = {target_of(VQKVC_PART_K, layer), target_of(VQKVC_PART_V, layer)};
    memset(needed, 0, MAX_TARGETS);
    needed[stack[0]] = needed[stack[1]] = 1;
    for (int n = 2; n > 0;) {
        int i = at[stack[--n]];
        for (int j = 0; i >= 0 && j < plan->predictions[i].n_sources; j++) {
            const vqkvc_prediction_source *from = &plan->predictions[i].sources[j];
            int source = target_of(from->part, from->layer);
            if (!needed[source]) {
                needed[source] = 1;
                stack[n++] = source;
            }
        }
    }
}

/* Bits a token of the streams that hold none of a layer's own vectors, but what it is predicted
 * from: the chain is rebuilt once for all its heads. */
static double chain_bits(const vqkvc_plan *plan, const uint8_t *needed, int layer)
{
    double bits = 0;
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        int own = 0, source = 0;
        for (int m = 0; m < s->n_members; m++) {
            own |= s->members[m].layer == layer;
            source |= needed[target_of(s->members[m].part, s->members[m].layer)];
        }
        if (source && !own)
            bits += vqkvc_stream_code_bits(s) + vqkvc_stream_gain_bits(s);
    }
    return bits;
}

/* Bits a token that all layers read of their own streams: each head reads its streams by itself,
 * but a layer whose vectors are rebuilt is rebuilt once for all its heads. Members are ordered by
 * layer. */
static double own_bits(const vqkvc_plan *plan)
{
    double bits = 0;
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        int readers = 0, rebuilt = 0;
        for (int m = 0; m < s->n_members; m++) {
            const vqkvc_member *member = &s->members[m];
            int first = m == 0 || member->layer != s->members[m - 1].layer;
            if (first)
                rebuilt = vqkvc_plan_rebuilds(plan, member->part, member->layer);
            readers += first || !rebuilt;
        }
        bits += (vqkvc_stream_code_bits(s) + vqkvc_stream_gain_bits(s)) * readers;
    }
    return bits;
}

static double all_chain_bits(const vqkvc_plan *plan)
{
    int at[MAX_TARGETS];
    uint8_t needed[MAX_TARGETS];
    double bits = 0;
    index_predictions(plan, at);
    for (int layer = 0; layer < plan->geometry.n_layers; layer++)
        if (at[target_of(VQKVC_PART_K, layer)] >= 0 || at[target_of(VQKVC_PART_V, layer)] >= 0) {
            mark_sources(plan, at, layer, needed);
            bits += chain_bits(plan, needed, layer);
        }
    return bits;
}

/* ---- the plan ---- */

/* Of a vector on the exact list its link; of each head and block what its chain begins with. */
enum { LINK_BITS = 64, CHAIN_BITS = 32 };

double vqkvc_cost_stored(const vqkvc_cost *cost)
{
    return cost->code_bits + cost->gain_bits + cost->landmark_bits + cost->kept_bits;
}

/* Values of the tables that the emitter makes from the plan: the gains of every stream whose gains
 * have 8 bits, the codewords of uniform codes by their bits (a byte is its own codeword). */
static size_t derived_values(const vqkvc_plan *plan)
{
    size_t n = 0;
    unsigned linear = 0; /* bit b: uniform codes of b bits occur */
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        n += s->gain != VQKVC_GAIN_NONE && s->gain_bits == 8 ? 256 : 0;
        for (int r = 0; r < s->n_runs; r++)
            if (s->runs[r].coder == VQKVC_CODER_UNI && s->runs[r].bits < 8)
                linear |= 1u << s->runs[r].bits;
    }
    return n + linear; /* 2^b codewords of b bits */
}

static size_t table_bytes(const vqkvc_plan *plan)
{
    size_t n = derived_values(plan) * sizeof(uint16_t);
    for (int i = 0; i < plan->n_tables; i++)
        n += vqkvc_table_size(&plan->tables[i]);
    return n;
}

void vqkvc_plan_cost(const vqkvc_plan *plan, int context, vqkvc_cost *cost)
{
    const vqkvc_geometry *g = &plan->geometry;
    double values = 2.0 * g->n_layers * g->n_kv_heads * g->head_dim; /* of one token */
    *cost = (vqkvc_cost){.context = context};
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        double code = vqkvc_stream_code_bits(s), gain = vqkvc_stream_gain_bits(s);
        cost->code_bits += code / values;
        cost->gain_bits += gain / values;
    }
    cost->scan_bits = (own_bits(plan) + all_chain_bits(plan)) / values;
    cost->table_bytes = table_bytes(plan);
    /* A token leaves the window with its whole block: half a block more on average. */
    double exact = plan->n_sink + plan->n_recent + (plan->block - 1) / 2.0;
    if (exact > context)
        exact = context;
    if (plan->landmarks > 0) /* of keys alone: half of the values */
        cost->landmark_bits = (g->head_dim * 8 + 24) / (2.0 * g->head_dim * plan->landmarks);
    if (plan->max_error > 0)
        cost->kept_bits = plan->kept_rate * (16 + LINK_BITS / (double)g->head_dim) +
                          CHAIN_BITS / ((double)g->head_dim * plan->block);
    double coded = vqkvc_cost_stored(cost);
    cost->window_bits = exact * (16 - coded) / context;
    cost->table_bits = (double)cost->table_bytes * 8 / (context * values);
    cost->total_bits = coded + cost->window_bits + cost->table_bits;
}
