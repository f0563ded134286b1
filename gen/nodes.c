#include "gen/nodes.h"

/* Everything that a node is predicted from is complete before the node's own first stream, so that
 * the order of last streams is one in which all can be rebuilt. */
static int stands_before(const gen_node *a, const gen_node *b)
{
    if (a->last_stream != b->last_stream)
        return a->last_stream < b->last_stream;
    return a->layer != b->layer ? a->layer < b->layer : a->part < b->part;
}

static void order_nodes(const vqkvc_plan *plan, gen_lowered *low)
{
    const vqkvc_geometry *g = &plan->geometry;
    int n = 0;
    for (int part = 0; part < 2; part++)
        for (int layer = 0; layer < g->n_layers; layer++) {
            gen_node node = {.part = part, .layer = layer, .prediction = -1};
            node.rebuilt = vqkvc_plan_rebuilds(plan, (vqkvc_part)part, layer);
            for (int i = 0; i < plan->n_streams; i++)
                for (int m = 0; m < plan->streams[i].n_members; m++)
                    if ((int)plan->streams[i].members[m].part == part &&
                        plan->streams[i].members[m].layer == layer)
                        node.last_stream = i;
            int at = n++;
            for (; at > 0 && stands_before(&node, &low->nodes[at - 1]); at--)
                low->nodes[at] = low->nodes[at - 1];
            low->nodes[at] = node;
            low->rebuilds |= node.rebuilt;
        }
    for (int i = 0; i < n; i++)
        low->node_at[low->nodes[i].part * g->n_layers + low->nodes[i].layer] = i;
}

static void lower_predictions(const vqkvc_plan *plan, const int *table_first, gen_lowered *low)
{
    const vqkvc_geometry *g = &plan->geometry;
    for (int i = 0; i < plan->n_predictions; i++) {
        const vqkvc_prediction *p = &plan->predictions[i];
        gen_prediction *out = &low->predictions[i];
        out->n_sources = p->n_sources;
        for (int s = 0; s < p->n_sources; s++) {
            out->source[s] =
                low->node_at[(int)p->sources[s].part * g->n_layers + p->sources[s].layer];
            low->nodes[out->source[s]].source = 1;
        }
        out->per_head = p->per_head;
        out->rank = p->out < 0 ? 0 : plan->tables[p->map].cols;
        out->bias = table_first[p->bias];
        out->map = table_first[p->map];
        out->out = p->out < 0 ? -1 : table_first[p->out];
        low->nodes[low->node_at[(int)p->part * g->n_layers + p->layer]].prediction = i;
        if (out->rank > low->max_rank)
            low->max_rank = out->rank;
    }
}

/* The last node that is predicted from node i, or i. */
static int last_user(const gen_lowered *low, int i, int n)
{
    int last = i;
    for (int j = i + 1; j < n; j++) {
        int prediction = low->nodes[j].prediction;
        for (int s = 0; prediction >= 0 && s < low->predictions[prediction].n_sources; s++)
            if (low->predictions[prediction].source[s] == i)
                last = j;
    }
    return last;
}

/* Gives every node the first slot that holds nothing which it or a later one is predicted from. A
 * walk over some of the nodes in the same order then finds its sources unharmed too. */
static void give_slots(gen_lowered *low, int n, int *busy_until)
{
    for (int i = 0; i < n; i++) {
        int slot = 0;
        while (slot < low->n_slots && busy_until[slot] >= i)
            slot++;
        if (slot == low->n_slots)
            low->n_slots++;
        low->nodes[i].slot = slot;
        busy_until[slot] = last_user(low, i, n);
    }
}

vqkvc_code gen_lower_nodes(const vqkvc_plan *plan, const int *table_first, gen_lowered *low,
                           vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int n = 2 * g->n_layers;
    low->nodes = vqkvc_arena_alloc(&low->arena, (size_t)n, sizeof(gen_node), err);
    low->node_at = vqkvc_arena_alloc(&low->arena, (size_t)n, sizeof(int), err);
    low->predictions = vqkvc_arena_alloc(&low->arena, (size_t)plan->n_predictions + 1,
                                         sizeof(gen_prediction), err);
    int *busy_until = vqkvc_arena_alloc(&low->arena, (size_t)n, sizeof(int), err);
    if (err->code != VQKVC_OK)
        return err->code;
    order_nodes(plan, low);
    lower_predictions(plan, table_first, low);
    give_slots(low, n, busy_until);
    return VQKVC_OK;
}
