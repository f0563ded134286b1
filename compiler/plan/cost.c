#include "plan/plan.h"

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
    if (s->gain == VQKVC_GAIN_NONE)
        return 0;
    return (double)(s->n_latents / s->gain_width) * s->gain_bits;
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
        cost->scan_bits += (code + gain) * s->n_members / values;
    }
    for (int i = 0; i < plan->n_tables; i++)
        cost->table_bytes += (size_t)plan->tables[i].rows * plan->tables[i].cols * sizeof(uint16_t);
    /* A token leaves the window with its whole block: half a block more on average. */
    double exact = plan->n_sink + plan->n_recent + (plan->block - 1) / 2.0;
    if (exact > context)
        exact = context;
    cost->window_bits = exact * (16 - cost->code_bits - cost->gain_bits) / context;
    cost->table_bits = (double)cost->table_bytes * 8 / (context * values);
    cost->total_bits = cost->code_bits + cost->gain_bits + cost->window_bits + cost->table_bits;
}
