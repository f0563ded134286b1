#include "plan/bands.h"

#include <stdlib.h>

#include "base/memory.h"

/* Latents of both kinds, by falling variance, and how far each list is used up. */
typedef struct lists {
    int *of[2], n[2], used[2];
} lists;

static int left(const lists *l, int kind)
{
    return l->n[kind] - l->used[kind];
}

/* The kind whose next latent is stronger, which is the one that comes first. */
static int stronger(const lists *l)
{
    if (left(l, 0) == 0 || left(l, 1) == 0)
        return left(l, 0) == 0;
    return l->of[1][l->used[1]] < l->of[0][l->used[0]];
}

/* The next group of `width` latents; its kind. */
static int take_group(lists *l, int width, int *to)
{
    int kind = stronger(l);
    if (left(l, kind) < width && left(l, !kind) >= width)
        kind = !kind;
    if (left(l, kind) >= width) {
        for (int i = 0; i < width; i++)
            to[i] = l->of[kind][l->used[kind]++];
        return kind;
    }
    for (int i = 0; i < width; i++) {
        kind = stronger(l);
        to[i] = l->of[kind][l->used[kind]++];
    }
    return 1;
}

/* groups [n_channels]: latents in the order in which groups take them; kinds: of each group. */
static void put_in_order(const vqkvc_layout *layout, const int *groups, const uint8_t *kinds,
                         vqkvc_bands *bands)
{
    int at = 0;
    for (int kind = 0; kind < 2; kind++) {
        const int *from = groups;
        const uint8_t *k = kinds;
        for (int r = 0; r < layout->n_runs; r++) {
            vqkvc_layout_run run = layout->runs[r];
            int n = 0;
            for (int g = 0; g < run.groups; g++, from += run.width) {
                if (*k++ != kind)
                    continue;
                for (int i = 0; i < run.width; i++)
                    bands->order[at++] = from[i];
                n++;
            }
            run.groups = n;
            if (n > 0)
                bands->runs[bands->n_runs++] = run;
        }
    }
}

vqkvc_code vqkvc_make_bands(const vqkvc_layout *layout, int d, const uint8_t *turning,
                            vqkvc_bands *bands, vqkvc_err *err)
{
    size_t n = (size_t)layout->n_channels;
    lists l = {{vqkvc_alloc((size_t)d, sizeof(int), err), vqkvc_alloc((size_t)d, sizeof(int), err)},
               {0, 0},
               {0, 0}};
    int *groups = vqkvc_alloc(n, sizeof(int), err);
    uint8_t *kinds = vqkvc_alloc(n, 1, err);
    *bands = (vqkvc_bands){.order = vqkvc_alloc(n, sizeof(int), err)};
    if (err->code == VQKVC_OK) {
        int at = 0, group = 0;
        for (int i = 0; i < d; i++) {
            int kind = turning[i] != 0;
            l.of[kind][l.n[kind]++] = i;
        }
        for (int r = 0; r < layout->n_runs; r++)
            for (int g = 0; g < layout->runs[r].groups; g++, at += layout->runs[r].width)
                kinds[group++] = (uint8_t)take_group(&l, layout->runs[r].width, groups + at);
        put_in_order(layout, groups, kinds, bands);
    } else {
        free(bands->order);
        bands->order = NULL;
    }
    free(l.of[0]);
    free(l.of[1]);
    free(groups);
    free(kinds);
    return err->code;
}
