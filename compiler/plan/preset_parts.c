#include "plan/preset_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

void vqkvc_preset_begin(vqkvc_plan *plan, const vqkvc_geometry *g, const char *scheme,
                        const vqkvc_window *defaults, const vqkvc_window *window)
{
    *plan = (vqkvc_plan){.geometry = *g,
                         .n_sink = defaults->n_sink,
                         .n_recent = defaults->n_recent,
                         .block = defaults->block};
    snprintf(plan->scheme, sizeof plan->scheme, "%s", scheme);
    if (window == NULL)
        return;
    plan->n_sink = window->n_sink > 0 ? window->n_sink : plan->n_sink;
    plan->n_recent = window->n_recent > 0 ? window->n_recent : plan->n_recent;
    plan->block = window->block > 0 ? window->block : plan->block;
}

/* ---- streams ---- */

vqkvc_stream *vqkvc_preset_head(vqkvc_plan *plan, vqkvc_part part, int layer, int head,
                                vqkvc_err *err)
{
    char name[64];
    vqkvc_member member = {part, layer, head};
    snprintf(name, sizeof name, "%s %d h%d", vqkvc_part_word((int)part), layer, head);
    return vqkvc_plan_add_stream(plan, name, 1, &member, err);
}

vqkvc_stream *vqkvc_preset_joined(vqkvc_plan *plan, vqkvc_part part, int layer, vqkvc_err *err)
{
    char name[64];
    vqkvc_member members[VQKVC_MAX_HEADS];
    int n = plan->geometry.n_kv_heads;
    for (int head = 0; head < n; head++)
        members[head] = (vqkvc_member){part, layer, head};
    snprintf(name, sizeof name, "%s %d", vqkvc_part_word((int)part), layer);
    return vqkvc_plan_add_stream(plan, name, n, members, err);
}

vqkvc_code vqkvc_preset_heads(vqkvc_plan *plan,
                              vqkvc_code (*fill)(vqkvc_plan *plan, vqkvc_stream *s, const void *how,
                                                 vqkvc_err *err),
                              const void *how, vqkvc_err *err)
{
    for (int layer = 0; layer < plan->geometry.n_layers; layer++)
        for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
            for (int head = 0; head < plan->geometry.n_kv_heads; head++) {
                vqkvc_stream *s = vqkvc_preset_head(plan, (vqkvc_part)part, layer, head, err);
                if (s == NULL || fill(plan, s, how, err) != VQKVC_OK)
                    return err->code;
            }
    return VQKVC_OK;
}

vqkvc_code vqkvc_preset_range(vqkvc_plan *plan, vqkvc_stream *s, int width, int tokens,
                              const uint8_t *bits, vqkvc_err *err)
{
    s->gain = VQKVC_GAIN_RANGE;
    s->gain_bits = 16;
    s->gain_width = width;
    s->gain_tokens = tokens;
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, s->n_latents / width, err);
    for (int r = 0; runs != NULL && r < s->n_runs; r++) {
        runs[r].coder = VQKVC_CODER_UNI;
        runs[r].first = r * width;
        runs[r].groups = width;
        runs[r].bits = bits[r];
    }
    return runs == NULL ? err->code : VQKVC_OK;
}

/* The table of 2^bits centres in -1 .. 1, which all streams share; its index, or -1. */
static int add_centres(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    char name[48];
    int n = 1 << bits;
    snprintf(name, sizeof name, "uniform levels %d", n);
    for (int i = 0; i < plan->n_tables; i++)
        if (strcmp(plan->tables[i].name, name) == 0)
            return i;
    int book = vqkvc_plan_add_table(plan, 1, n, err, "%s", name);
    for (int i = 0; book >= 0 && i < n; i++)
        plan->tables[book].f16[i] = vqkvc_f32_to_f16((float)(2 * i + 1 - n) / (float)n);
    return book;
}

vqkvc_code vqkvc_preset_centres(vqkvc_plan *plan, vqkvc_stream *s, int width, int tokens,
                                const uint8_t *bits, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_preset_range(plan, s, width, tokens, bits, err));
    for (int r = 0; r < s->n_runs; r++) {
        s->runs[r].coder = VQKVC_CODER_VQ;
        s->runs[r].book = add_centres(plan, bits[r], err);
        if (s->runs[r].book < 0)
            return err->code;
    }
    return VQKVC_OK;
}

int vqkvc_preset_group(int n, int most)
{
    int group = n < most ? n : most;
    while (n % group != 0)
        group--;
    return group;
}

/* ---- copies ---- */

/* The copy of table `index` (-1 stays that); map[index] is 1 + its new index once there is one. */
static vqkvc_code copy_table(vqkvc_plan *plan, const vqkvc_plan *from, int *map, int *index,
                             vqkvc_err *err)
{
    if (*index < 0)
        return VQKVC_OK;
    const vqkvc_table *t = &from->tables[*index];
    if (map[*index] == 0) {
        int made = vqkvc_plan_add_table(plan, t->rows, t->cols, err, "%s", t->name);
        if (made < 0)
            return err->code;
        memcpy(plan->tables[made].f16, t->f16, (size_t)t->rows * (size_t)t->cols * sizeof *t->f16);
        map[*index] = 1 + made;
    }
    *index = map[*index] - 1;
    return VQKVC_OK;
}

static vqkvc_code copy_stream(vqkvc_plan *plan, const vqkvc_plan *from, const vqkvc_stream *s,
                              int *map, vqkvc_err *err)
{
    vqkvc_stream *to = vqkvc_plan_add_stream(plan, s->name, s->n_members, s->members, err);
    if (to == NULL)
        return err->code;
    vqkvc_stream made = *to, copy = *s;
    copy.name = made.name;
    copy.members = made.members;
    *to = copy;
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, to, s->n_runs, err);
    if (runs == NULL)
        return err->code;
    memcpy(runs, s->runs, (size_t)s->n_runs * sizeof *runs);
    for (int r = 0; r < s->n_runs; r++)
        VQKVC_TRY(copy_table(plan, from, map, &runs[r].book, err));
    VQKVC_TRY(copy_table(plan, from, map, &to->mean, err));
    VQKVC_TRY(copy_table(plan, from, map, &to->enc, err));
    VQKVC_TRY(copy_table(plan, from, map, &to->dec, err));
    return copy_table(plan, from, map, &to->spread, err);
}

vqkvc_code vqkvc_preset_copy(vqkvc_plan *plan, const vqkvc_plan *from, vqkvc_part part,
                             vqkvc_err *err)
{
    int *map = vqkvc_alloc((size_t)from->n_tables + 1, sizeof *map, err);
    for (int i = 0; i < from->n_streams && err->code == VQKVC_OK; i++)
        if (from->streams[i].members[0].part == part)
            copy_stream(plan, from, &from->streams[i], map, err);
    free(map);
    return err->code;
}
