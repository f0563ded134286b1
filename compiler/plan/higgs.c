#include "plan/higgs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "fit/fit.h"

vqkvc_code vqkvc_higgs_add_grid(vqkvc_plan *plan, vqkvc_higgs_grid *grid, vqkvc_err *err)
{
    char name[64];
    int n = 1 << grid->bits, width = grid->width;
    double distortion;
    snprintf(name, sizeof name, "gaussian grid %dx%d", width, n);
    for (grid->book = 0; grid->book < plan->n_tables; grid->book++)
        if (strcmp(plan->tables[grid->book].name, name) == 0)
            return VQKVC_OK;
    grid->book = -1;
    float *points = vqkvc_alloc((size_t)n * width, sizeof *points, err);
    if (points != NULL &&
        vqkvc_fit_gaussian_grid(width, n, 1, points, &distortion, err) == VQKVC_OK)
        grid->book = vqkvc_plan_add_table(plan, 1, width * n, err, "%s", name);
    for (int i = 0; grid->book >= 0 && i < n * width; i++)
        plan->tables[grid->book].f16[i % width * n + i / width] = vqkvc_f32_to_f16(points[i]);
    free(points);
    return err->code;
}

vqkvc_code vqkvc_higgs_heads(const vqkvc_geometry *g, int width, int *heads, vqkvc_err *err)
{
    if (g->head_dim < width || (g->head_dim & (g->head_dim - 1)) != 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "it needs a head_dim that is a power of two from %d on, not %d", width,
                          g->head_dim);
    *heads = 1;
    while (g->n_kv_heads % (2 * *heads) == 0 && 2 * *heads * g->head_dim <= VQKVC_HIGGS_MAX_IN)
        *heads *= 2;
    return VQKVC_OK;
}

vqkvc_code vqkvc_higgs_code(vqkvc_plan *plan, vqkvc_stream *s, const vqkvc_higgs_grid *grid,
                            vqkvc_err *err)
{
    vqkvc_run *run = vqkvc_plan_set_runs(plan, s, 1, err);
    if (run == NULL)
        return err->code;
    s->gain = VQKVC_GAIN_RMS;
    s->gain_bits = 16;
    s->gain_width = s->n_latents;
    run->coder = VQKVC_CODER_VQ;
    run->groups = s->n_latents / grid->width;
    run->width = grid->width;
    run->bits = grid->bits;
    run->book = grid->book;
    return VQKVC_OK;
}

vqkvc_stream *vqkvc_higgs_add_stream(vqkvc_plan *plan, vqkvc_part part, int layer, int first, int n,
                                     const vqkvc_higgs_grid *grid, vqkvc_err *err)
{
    vqkvc_member members[VQKVC_HIGGS_MAX_IN]; /* of one channel at least */
    for (int i = 0; i < n; i++)
        members[i] = (vqkvc_member){part, layer, first + i};
    char name[64];
    snprintf(name, sizeof name, "%s %d h%d-%d", vqkvc_part_word(part), layer, first, first + n - 1);
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, name, n, members, err);
    if (s == NULL || vqkvc_higgs_code(plan, s, grid, err) != VQKVC_OK)
        return NULL;
    s->transform = VQKVC_TRANSFORM_HADAMARD;
    return s;
}
