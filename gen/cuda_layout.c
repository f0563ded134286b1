#include "gen/cuda.h"

#include <string.h>

/* The representative of a stream's component; shortens the way there. */
static int root_of(int *parent, int i)
{
    while (parent[i] != i)
        i = parent[i] = parent[parent[i]];
    return i;
}

static void join(int *parent, int a, int b)
{
    a = root_of(parent, a);
    b = root_of(parent, b);
    parent[a > b ? a : b] = a < b ? a : b;
}

/* The first stream of each node, all of whose streams are joined where it is part of a prediction.
 */
static void join_node(const vqkvc_plan *plan, const gen_lowered *low, int node, int *parent)
{
    const vqkvc_geometry *g = &plan->geometry;
    int slot = (low->nodes[node].part * g->n_layers + low->nodes[node].layer) * g->n_kv_heads;
    int first = low->use_first[slot], last = low->use_first[slot + g->n_kv_heads];
    for (int u = first; u < last; u++)
        join(parent, low->uses[first].stream, low->uses[u].stream);
}

static int first_stream(const vqkvc_plan *plan, const gen_lowered *low, int node)
{
    const vqkvc_geometry *g = &plan->geometry;
    int slot = (low->nodes[node].part * g->n_layers + low->nodes[node].layer) * g->n_kv_heads;
    return low->uses[low->use_first[slot]].stream;
}

static void join_streams(const vqkvc_plan *plan, const gen_lowered *low, int *parent)
{
    const vqkvc_geometry *g = &plan->geometry;
    for (int i = 0; i < plan->n_streams; i++)
        parent[i] = i;
    for (int slot = 0; slot < 2 * g->n_layers * g->n_kv_heads; slot++)
        for (int u = low->use_first[slot]; u < low->use_first[slot + 1]; u++)
            join(parent, low->uses[low->use_first[slot]].stream, low->uses[u].stream);
    for (int i = 0; i < 2 * g->n_layers; i++) {
        if (low->nodes[i].prediction < 0)
            continue;
        const gen_prediction *p = &low->predictions[low->nodes[i].prediction];
        join_node(plan, low, i, parent);
        for (int s = 0; s < p->n_sources; s++) {
            join_node(plan, low, p->source[s], parent);
            join(parent, first_stream(plan, low, i), first_stream(plan, low, p->source[s]));
        }
    }
}

static void list_components(const vqkvc_plan *plan, const gen_lowered *low, int *parent,
                            int *component, gen_cuda_layout *layout)
{
    int at = 0;
    for (int root = 0; root < plan->n_streams; root++) {
        if (root_of(parent, root) != root)
            continue;
        gen_component *c = &layout->components[layout->n_components];
        *c = (gen_component){.first = at, .first_head = plan->geometry.n_kv_heads};
        for (int i = root; i < plan->n_streams; i++) {
            if (root_of(parent, i) != root)
                continue;
            component[i] = layout->n_components;
            layout->streams[at++] = i;
            for (int m = 0; m < plan->streams[i].n_members; m++) {
                int head = plan->streams[i].members[m].head;
                c->first_head = head < c->first_head ? head : c->first_head;
                c->last_head = head > c->last_head ? head : c->last_head;
            }
        }
        c->n = at - c->first;
        layout->n_components++;
    }
    for (int i = 0; i < 2 * plan->geometry.n_layers; i++)
        layout->node_component[i] = component[first_stream(plan, low, i)];
}

/* The nodes that node `target` rests on, marked. */
static void mark_sources(const vqkvc_plan *plan, const gen_lowered *low, int target, char *need)
{
    memset(need, 0, 2 * (size_t)plan->geometry.n_layers);
    need[target] = 1;
    for (int i = target; i >= 0; i--) {
        if (!need[i] || low->nodes[i].prediction < 0)
            continue;
        const gen_prediction *p = &low->predictions[low->nodes[i].prediction];
        for (int s = 0; s < p->n_sources; s++)
            need[p->source[s]] = 1;
    }
    need[target] = 0;
}

/* Fills in the walks, or only their lengths where layout->walk is NULL. */
static void list_walks(const vqkvc_plan *plan, const gen_lowered *low, char *need,
                       gen_cuda_layout *layout)
{
    int n = 2 * plan->geometry.n_layers;
    layout->n_walk = 0;
    for (int at = 0; at < n; at++) {
        layout->walk_first[at] = layout->n_walk;
        mark_sources(plan, low, low->node_at[at], need);
        for (int i = 0; i < n; i++) {
            if (!need[i])
                continue;
            if (layout->walk != NULL)
                layout->walk[layout->n_walk] = i;
            layout->n_walk++;
        }
    }
    layout->walk_first[n] = layout->n_walk;
}

/* Sixteens of slots of a stream: each gain group, whose runs are neighbours, fills its own. */
static int sixteens_of(const gen_lowered *low, int stream)
{
    int n = 0, slots = 0;
    for (int r = 0; r < low->streams[stream].n_runs; r++) {
        const gen_run *run = &low->runs[low->streams[stream].first_run + r];
        if (r > 0 && run->gain != run[-1].gain) {
            n += (slots + 15) / 16;
            slots = 0;
        }
        slots += run->planes * run->width;
    }
    return n + (slots + 15) / 16;
}

static int most(int a, int b)
{
    return a > b ? a : b;
}

/* The most that any head which is attended in latents has. */
static void note_head(const vqkvc_plan *plan, const gen_lowered *low, int part, int slot,
                      gen_cuda_layout *layout)
{
    int latents = 0, planes = 0, gains = 0, sixteens = 0;
    for (int u = low->use_first[slot]; u < low->use_first[slot + 1]; u++) {
        int i = low->uses[u].stream;
        latents += plan->streams[i].n_latents;
        gains += most(low->streams[i].n_gains, 1);
        sixteens += sixteens_of(low, i);
        for (int r = 0; r < low->streams[i].n_runs; r++) {
            const gen_run *run = &low->runs[low->streams[i].first_run + r];
            layout->nibbles &= run->coder == GEN_NIBBLES;
            if (run->coder != GEN_NIBBLES)
                continue;
            planes += run->planes;
            if (part == VQKVC_PART_V && run->stages > layout->v_stages)
                layout->v_stages = run->stages;
        }
        layout->blockwise |= part == VQKVC_PART_K && plan->streams[i].frame == VQKVC_FRAME_BLOCK;
    }
    const char *name = plan->streams[low->uses[low->use_first[slot]].stream].name;
    if (part == VQKVC_PART_V) {
        layout->widest_v = latents > layout->v_latents ? name : layout->widest_v;
        layout->v_latents = most(latents, layout->v_latents);
        layout->v_gains = most(gains, layout->v_gains);
        layout->v_sixteens = most(sixteens, layout->v_sixteens);
    } else {
        layout->widest_k = 16 * planes + latents > 16 * layout->k_planes + layout->k_latents
                               ? name
                               : layout->widest_k;
        layout->k_latents = most(latents, layout->k_latents);
        layout->k_planes = most(planes, layout->k_planes);
        layout->k_gains = most(gains, layout->k_gains);
        layout->k_sixteens = most(sixteens, layout->k_sixteens);
    }
}

static int planes_begin_at(const vqkvc_plan *plan, const gen_lowered *low, int multiple)
{
    for (int i = 0; i < plan->n_streams; i++)
        if (low->streams[i].start % multiple != 0 || low->streams[i].bytes % multiple != 0)
            return 0;
    for (int i = 0; i < low->n_runs; i++)
        if (low->runs[i].codes % multiple != 0)
            return 0;
    return 1;
}

/* Tokens of a tile on tensor cores, where lanes load 8 bytes of a plane and a warp meets 64 tokens;
 * 0: the codec, or its block, is not for them. Sums beyond 32 sixteens leave registers, and blocks
 * whose queries are their own take shared memory. */
static int tensor_tile(const vqkvc_plan *plan, const gen_lowered *low, gen_cuda_layout *layout)
{
    int fits = layout->nibbles && !low->rebuilds && layout->v_sixteens <= 32 &&
               layout->v_stages < 15 &&
               (plan->block == 64 || plan->block == 128 || plan->block == 256) &&
               planes_begin_at(plan, low, 8);
    layout->tensor = !fits ? 0 : layout->blockwise ? 256 : 512;
    return gen_cuda_shared_bytes(plan, low, layout) <= GEN_CUDA_SHARED ? layout->tensor : 0;
}

vqkvc_code gen_lay_out_cuda(const vqkvc_plan *plan, gen_lowered *low, gen_cuda_layout *layout,
                            vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t n = (size_t)plan->n_streams, nodes = 2 * (size_t)g->n_layers;
    *layout = (gen_cuda_layout){.k_latents = 1,
                                .v_gains = 1,
                                .v_stages = 1,
                                .words = 1,
                                .nibbles = 1,
                                .k_gains = 1,
                                .k_sixteens = 1,
                                .v_sixteens = 1,
                                .widest_k = "none",
                                .widest_v = "none"};
    int *parent = vqkvc_arena_alloc(&low->arena, n, sizeof(int), err);
    int *component = vqkvc_arena_alloc(&low->arena, n, sizeof(int), err);
    char *need = vqkvc_arena_alloc(&low->arena, nodes, 1, err);
    layout->streams = vqkvc_arena_alloc(&low->arena, n, sizeof(int), err);
    layout->components = vqkvc_arena_alloc(&low->arena, n, sizeof(gen_component), err);
    layout->node_component = vqkvc_arena_alloc(&low->arena, nodes, sizeof(int), err);
    layout->walk_first = vqkvc_arena_alloc(&low->arena, nodes + 1, sizeof(int), err);
    if (err->code != VQKVC_OK)
        return err->code;
    join_streams(plan, low, parent);
    list_components(plan, low, parent, component, layout);
    list_walks(plan, low, need, layout);
    layout->walk = vqkvc_arena_alloc(&low->arena, (size_t)layout->n_walk + 1, sizeof(int), err);
    if (layout->walk == NULL)
        return err->code;
    list_walks(plan, low, need, layout);
    for (int part = 0, slot = 0; part < 2; part++)
        for (int layer = 0; layer < g->n_layers; layer++)
            for (int head = 0; head < g->n_kv_heads; head++, slot++)
                if (!low->nodes[low->node_at[part * g->n_layers + layer]].rebuilt)
                    note_head(plan, low, part, slot, layout);
    layout->words = planes_begin_at(plan, low, 4);
    layout->tensor = tensor_tile(plan, low, layout);
    return VQKVC_OK;
}
