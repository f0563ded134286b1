/* test_synthetic.c - plans that speed is measured on: of every shape, of the rate of their names,
 * of the streams that recipes say. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/recipes.h"
#include "eval/synthetic.h"

static const char *const schemes[] = {"auto1",        "auto2",      "auto2b",       "auto3",
                                      "auto4",        "auto2s",     "auto2b-spans", "auto2s-spans",
                                      "auto2s-bands", "auto2s-post"};

enum { N_SCHEMES = sizeof schemes / sizeof *schemes };

/* Builds and checks one; what it stores and reads, bits a value. */
static vqkvc_cost cost_of(const char *scheme, int layers, int heads, int head_dim)
{
    vqkvc_err err = {0};
    vqkvc_plan plan;
    vqkvc_cost cost;
    vqkvc_geometry g = vqkvc_synthetic_geometry(layers, heads, 4, head_dim);
    vqkvc_code code = vqkvc_synthetic_plan(&plan, &g, scheme, 0, &err);
    cr_assert_eq(code, VQKVC_OK, "%s, %d layers, %d heads of %d: %s", scheme, layers, heads,
                 head_dim, err.msg);
    vqkvc_plan_cost(&plan, 16384, &cost);
    vqkvc_plan_free(&plan);
    return cost;
}

Test(synthetic, every_shape_has_a_plan)
{
    static const int dims[] = {16, 32, 40, 48, 80, 128};
    for (int s = 0; s < N_SCHEMES; s++) {
        for (int d = 0; d < 6; d++)
            cost_of(schemes[s], 8, 2, dims[d]);
        for (int layers = 1; layers <= 9; layers++)
            for (int heads = 1; heads <= 3; heads++)
                cost_of(schemes[s], layers, heads, 32);
    }
}

/* At the shape that the recipes are of, and at twice and four times its layers. */
Test(synthetic, rates_are_those_of_the_names)
{
    for (int s = 0; s < N_SCHEMES; s++)
        for (int layers = 8; layers <= 32; layers *= 2) {
            vqkvc_cost cost = cost_of(schemes[s], layers, 2, VQKVC_RECIPE_DIM);
            double rate = schemes[s][4] - '0', read = schemes[s][5] == 's' ? 5.45 : rate;
            cr_expect_float_eq(vqkvc_cost_stored(&cost), rate, 0.01, "%s: %g stored", schemes[s],
                               vqkvc_cost_stored(&cost));
            cr_expect_float_eq(cost.scan_bits, read, 0.01, "%s: %g read", schemes[s],
                               cost.scan_bits);
        }
}

/* Runs of the own streams of a plan at the recipes' shape are the recipe's. */
Test(synthetic, streams_are_those_of_the_recipe)
{
    vqkvc_err err = {0};
    vqkvc_plan plan;
    vqkvc_geometry g =
        vqkvc_synthetic_geometry(VQKVC_RECIPE_LAYERS, VQKVC_RECIPE_HEADS, 2, VQKVC_RECIPE_DIM);
    const vqkvc_recipe *r = vqkvc_recipe_of("auto2s-post", 6);
    cr_assert(r != NULL && strcmp(r->name, "auto2s") == 0);
    cr_assert_eq(vqkvc_synthetic_plan(&plan, &g, "auto2s", 0, &err), VQKVC_OK, "%s", err.msg);
    int own = 0;
    for (int i = 0; i < plan.n_streams; i++) {
        const vqkvc_stream *s = &plan.streams[i];
        const vqkvc_member *m = s->members;
        if (s->n_members > 1)
            continue;
        vqkvc_recipe_stream got = {{0}};
        for (int j = 0; j < s->n_runs; j++)
            for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++) {
                vqkvc_layout_run option = vqkvc_allocate_option(o);
                if (option.width == s->runs[j].width && option.stages == s->runs[j].stages)
                    got.groups[o] = (short)(got.groups[o] + s->runs[j].groups);
            }
        const vqkvc_recipe_stream *want = &r->own[m->part][m->layer * VQKVC_RECIPE_HEADS + m->head];
        cr_expect_arr_eq(got.groups, want->groups, sizeof got.groups, "layer %d, head %d", m->layer,
                         m->head);
        own++;
    }
    cr_expect_eq(own, 30, "keys of 16 heads, values of 14: %d", own);
    vqkvc_plan_free(&plan);
}

Test(synthetic, names_that_are_none_are_refused)
{
    vqkvc_geometry g = vqkvc_synthetic_geometry(2, 1, 4, 64);
    for (const char *const *s =
             (const char *const[]){"auto", "auto5", "auto2-post", "auto2s-", "auto2s-posts", NULL};
         *s; s++) {
        vqkvc_err err = {0};
        vqkvc_plan plan;
        cr_expect_eq(vqkvc_synthetic_plan(&plan, &g, *s, 0, &err), VQKVC_E_USAGE, "%s", *s);
    }
}
