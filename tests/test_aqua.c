/* The scheme aqua against its definition, recomputed plainly in double. */
#include <criterion/criterion.h>

#include "linear_capture.h"
#include "plan/aqua.h"

static const vqkvc_log quiet_log = {.level = -1};

static void make_plan(vqkvc_plan *plan, const vqkvc_capture *c, const vqkvc_aqua_params *p)
{
    vqkvc_err err = {0};
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    cr_assert_eq(vqkvc_plan_aqua(plan, c, p, NULL, &parent, &quiet_log, &err), VQKVC_OK, "%s",
                 err.msg);
}

static double entry(const vqkvc_plan *plan, int table, int row, int col)
{
    const vqkvc_table *t = &plan->tables[table];
    return (double)vqkvc_f16_to_f32(t->f16[row * t->cols + col]);
}

/* The tables of a full prediction must be what an own regression of y on x gives. */
static void expect_tables(const vqkvc_plan *plan, const vqkvc_prediction *p, const double *x,
                          const double *y)
{
    int dx = p->n_sources * D;
    double *w = need((size_t)(dx + 1) * D, sizeof *w);
    plain_ridge(N - N / 8, dx, x, D, y, w);
    for (int i = 0; i <= dx; i++)
        for (int j = 0; j < D; j++) {
            double baked = i < dx ? entry(plan, p->map, i, j) : entry(plan, p->bias, 0, j);
            cr_assert_float_eq(baked, w[i * D + j], 1e-3, "%s %d, row %d, column %d: %g, not %g",
                               vqkvc_part_word(p->part), p->layer, i, j, baked, w[i * D + j]);
        }
    free(w);
}

/* Joins the sources of a target: x [N, n D]; the number of sources. */
static int join(vqkvc_part part, double hat[2][N * D], double *x)
{
    int n = part == VQKVC_PART_V ? 2 : 1;
    for (int t = 0; t < N; t++)
        for (int i = 0; i < n * D; i++)
            x[t * n * D + i] = hat[n == 2 && i < D ? VQKVC_PART_K : part][t * D + i % D];
    return n;
}

/* Codes a target into hat[part], which holds the layer below, and checks the prediction of it. */
static void plain_target(const vqkvc_plan *plan, const vqkvc_capture *c, vqkvc_part part, int layer,
                         double hat[2][N * D])
{
    const vqkvc_prediction *p = vqkvc_plan_prediction(plan, part, layer);
    const vqkvc_run *run = &plan->streams[2 * layer + part].runs[0];
    double *y = need((size_t)N * D, sizeof *y), *x = need((size_t)N * 2 * D, sizeof *x);
    read_layer(c, part, layer, y);
    cr_assert_eq(p == NULL, layer == 0);
    int n = p == NULL ? 0 : join(part, hat, x);
    if (p != NULL) {
        cr_assert(p->n_sources == n && p->out == -1 && !p->per_head);
        cr_assert(p->sources[0].part == VQKVC_PART_K && p->sources[n - 1].part == part &&
                  p->sources[n - 1].layer == layer - 1 && p->sources[0].layer == layer - 2 + n);
        expect_tables(plan, p, x, y);
    }
    for (int t = 0; t < N; t++) {
        double said[D] = {0}, rest[D], coded[D];
        for (int j = 0; j < D; j++) {
            for (int i = 0; i < n * D; i++)
                said[j] += x[t * n * D + i] * entry(plan, p->map, i, j);
            said[j] += p == NULL ? 0 : entry(plan, p->bias, 0, j);
            rest[j] = y[t * D + j] - said[j];
        }
        plain_higgs(&plan->tables[run->book], run->width, 1, D, rest, coded);
        for (int j = 0; j < D; j++)
            hat[part][t * D + j] = said[j] + coded[j];
    }
    free(x);
    free(y);
}

/* What the plan's reference makes of the first `n` sampled tokens as a block at `base`: x_hat [n,
 * LAYERS, D] by part, keys un-rotated. */
static void by_reference(const vqkvc_plan *plan, const vqkvc_capture *c, int n, int base,
                         float *x_hat[2])
{
    float *x[2];
    vqkvc_err err = {0};
    for (int part = 0; part < 2; part++) {
        x[part] = need((size_t)n * LAYERS * D, sizeof(float));
        for (int layer = 0; layer < LAYERS; layer++)
            for (int t = 0; t < n; t++)
                for (int j = 0; j < D; j++)
                    x[part][(t * LAYERS + layer) * D + j] =
                        vqkvc_f16_to_f32(c->sample[part][layer][t * D + j]);
    }
    for (int t = 0; t < n; t++)
        vqkvc_rope_rotate(&plan->geometry, base + t, x[0] + t * LAYERS * D, LAYERS * HEADS);
    cr_assert_eq(
        vqkvc_plan_reference(plan, plan->n_streams, n, base, x[0], x[1], x_hat[0], x_hat[1], &err),
        VQKVC_OK, "%s", err.msg);
    for (int t = 0; t < n; t++)
        vqkvc_rope_rotate(&plan->geometry, -(base + t), x_hat[0] + t * LAYERS * D, LAYERS * HEADS);
    free(x[0]);
    free(x[1]);
}

/* Rates, Hadamard blocks, gains, frames and the window as published. */
static void expect_published(const vqkvc_plan *plan, int bits)
{
    cr_expect(plan->n_sink == 4 && plan->block == 128 && plan->n_recent <= 1);
    cr_expect_eq(plan->n_streams, 2 * LAYERS, "all heads of a layer are joined");
    cr_expect_eq(plan->n_predictions, 2 * (LAYERS - 1));
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        cr_expect_eq(s->transform, VQKVC_TRANSFORM_HADAMARD);
        cr_expect(s->gain == VQKVC_GAIN_RMS && s->gain_bits == 16 && s->gain_width == D);
        cr_expect_eq(s->frame,
                     s->members[0].part == VQKVC_PART_K ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST);
        cr_expect_float_eq(vqkvc_stream_code_bits(s) / D, s->members[0].layer == 0 ? 4 : bits,
                           1e-12);
    }
}

static void compare_with_definition(const vqkvc_aqua_params *params)
{
    enum { BLOCK = 64 };
    static double hat[2][N * D];
    vqkvc_capture capture;
    vqkvc_plan plan;
    float *x_hat[2];
    make_linear(&capture, LINKED, 1, VQKVC_ROPE_HALVES);
    make_plan(&plan, &capture, params);
    expect_published(&plan, params->bits == 0 ? 2 : params->bits);
    for (int part = 0; part < 2; part++)
        x_hat[part] = need((size_t)BLOCK * LAYERS * D, sizeof(float));
    by_reference(&plan, &capture, BLOCK, 1000, x_hat);
    for (int layer = 0; layer < LAYERS; layer++)
        for (int part = 0; part < 2; part++) {
            plain_target(&plan, &capture, (vqkvc_part)part, layer, hat);
            for (int t = 0; t < BLOCK; t++)
                for (int j = 0; j < D; j++)
                    cr_assert_float_eq((double)x_hat[part][(t * LAYERS + layer) * D + j],
                                       hat[part][t * D + j], 1e-4, "part %d, layer %d, token %d",
                                       part, layer, t);
        }
    free(x_hat[0]);
    free(x_hat[1]);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&capture);
}

Test(aqua, tables_and_reconstructions_are_the_definitions, .timeout = 60)
{
    compare_with_definition(&(vqkvc_aqua_params){0});
    compare_with_definition(&(vqkvc_aqua_params){.grid = 4});
    compare_with_definition(&(vqkvc_aqua_params){.bits = 3});
}

static void explained_of(links how, int two, const vqkvc_aqua_params *given,
                         vqkvc_explained report[2 * LAYERS])
{
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_aqua_params params = *given;
    params.report = report;
    make_linear(&capture, how, two, VQKVC_ROPE_HALVES);
    make_plan(&plan, &capture, &params);
    vqkvc_plan_free(&plan);
    vqkvc_capture_free(&capture);
}

Test(aqua, explains_what_is_linked_and_nothing_else)
{
    vqkvc_explained linked[2 * LAYERS], unlinked[2 * LAYERS];
    vqkvc_aqua_params params = {.bits = 4};
    explained_of(LINKED, 1, &params, linked);
    explained_of(UNLINKED, 1, &params, unlinked);
    for (int i = 0; i < 2 * LAYERS; i++) {
        cr_expect(linked[i].layer == i / 2 && linked[i].part == (vqkvc_part)(i % 2));
        cr_expect_eq(linked[i].n_sources, i < 2 ? 0 : 1 + i % 2);
        if (i < 2)
            cr_expect_eq(linked[i].relative_mse, 1);
        else
            cr_expect_lt(linked[i].relative_mse, 0.1, "target %d: %g", i, linked[i].relative_mse);
        cr_expect_gt(unlinked[i].relative_mse, 0.95, "target %d: %g", i, unlinked[i].relative_mse);
    }
    char text[160];
    vqkvc_explained e = {.part = VQKVC_PART_V,
                         .layer = 3,
                         .n_sources = 2,
                         .sources = {{VQKVC_PART_K, 3}, {VQKVC_PART_V, 2}},
                         .relative_mse = 0.0625};
    vqkvc_explained_text(&e, text, sizeof text);
    cr_expect_str_eq(text, "V 3: 93.8 % explained by K 3 and V 2, 2.00 bits gained");
}

static vqkvc_hash hash_of(const vqkvc_capture *c, const vqkvc_aqua_params *params)
{
    vqkvc_plan plan;
    vqkvc_hash hash;
    vqkvc_err err = {0};
    make_plan(&plan, c, params);
    cr_assert_eq(vqkvc_plan_hash(&plan, &hash, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_plan_free(&plan);
    return hash;
}

Test(aqua, plans_do_not_change_from_run_to_run_and_full_rank_is_full)
{
    vqkvc_capture capture;
    make_linear(&capture, LINKED, 1, VQKVC_ROPE_HALVES);
    vqkvc_hash full = hash_of(&capture, &(vqkvc_aqua_params){0});
    vqkvc_hash again = hash_of(&capture, &(vqkvc_aqua_params){0});
    vqkvc_hash rank_d = hash_of(&capture, &(vqkvc_aqua_params){.rank = D});
    vqkvc_hash lower = hash_of(&capture, &(vqkvc_aqua_params){.rank = D - 1});
    cr_expect_str_eq(full.hex, again.hex);
    cr_expect_str_eq(full.hex, rank_d.hex);
    cr_expect_str_neq(full.hex, lower.hex);
    vqkvc_capture_free(&capture);
}

/* Published: directions are ranked by how much of |Y|^2 they explain, the mean of Y included, which
 * takes a rank of its own. */
Test(aqua, as_many_ranks_as_there_are_links_and_one_for_the_mean_are_enough)
{
    vqkvc_explained full[2 * LAYERS], three[2 * LAYERS], one[2 * LAYERS];
    explained_of(LINKED_TWO, 0, &(vqkvc_aqua_params){.bits = 4}, full);
    explained_of(LINKED_TWO, 0, &(vqkvc_aqua_params){.bits = 4, .rank = 3}, three);
    explained_of(LINKED_TWO, 0, &(vqkvc_aqua_params){.bits = 4, .rank = 1}, one);
    for (int i = 2; i < 2 * LAYERS; i++) {
        cr_expect_lt(three[i].relative_mse, 1.2 * full[i].relative_mse + 0.01, "target %d: %g, %g",
                     i, three[i].relative_mse, full[i].relative_mse);
        cr_expect_gt(one[i].relative_mse, 2 * full[i].relative_mse, "target %d: %g, %g", i,
                     one[i].relative_mse, full[i].relative_mse);
    }
}

/* Other heads do not matter: with the second head replaced by noise, the first head's tables stay.
 */
Test(aqua, predictions_by_head_ignore_other_heads)
{
    vqkvc_capture capture;
    vqkvc_plan before, after;
    vqkvc_explained report[2 * LAYERS], joined[2 * LAYERS];
    vqkvc_aqua_params params = {.bits = 4, .per_head = 1};
    explained_of(LINKED_HEAD, 1, &params, report);
    for (int i = 2; i < 2 * LAYERS; i++)
        cr_expect_lt(report[i].relative_mse, 0.1, "target %d: %g", i, report[i].relative_mse);
    explained_of(LINKED, 1, &params, report);
    explained_of(LINKED, 1, &(vqkvc_aqua_params){.bits = 4}, joined);
    for (int i = 2; i < 2 * LAYERS; i++)
        cr_expect_gt(report[i].relative_mse, 3 * joined[i].relative_mse, "target %d: %g, %g", i,
                     report[i].relative_mse, joined[i].relative_mse);
    make_linear(&capture, LINKED_HEAD, 1, VQKVC_ROPE_HALVES);
    make_plan(&before, &capture, &params);
    for (int t = 0; t < N; t++) /* K of layer 1 is the target of layer 0's reconstruction */
        for (int j = DIM; j < D; j++)
            capture.sample[VQKVC_KEY][1][t * D + j] = vqkvc_f32_to_f16((float)(t * j % 7 - 3));
    make_plan(&after, &capture, &params);
    const vqkvc_table *a = &before.tables[vqkvc_plan_prediction(&before, VQKVC_PART_K, 1)->map];
    const vqkvc_table *b = &after.tables[vqkvc_plan_prediction(&after, VQKVC_PART_K, 1)->map];
    cr_assert(a->rows == D && a->cols == DIM);
    cr_expect_eq(memcmp(a->f16, b->f16, DIM * DIM * sizeof *a->f16), 0, "head 0");
    cr_expect_neq(memcmp(a->f16 + DIM * DIM, b->f16 + DIM * DIM, DIM * DIM * sizeof *a->f16), 0,
                  "head 1");
    vqkvc_plan_free(&before);
    vqkvc_plan_free(&after);
    vqkvc_capture_free(&capture);
}

Test(aqua, refuses_what_it_cannot_do)
{
    static const vqkvc_aqua_params wrong[] = {
        {.bits = 5}, {.bits = 3, .grid = 4}, {.grid = 3}, {.rank = -1}, {.rank = 4, .per_head = 1}};
    vqkvc_capture capture;
    vqkvc_plan plan;
    vqkvc_hash parent = vqkvc_hash_bytes("capture", 7);
    make_linear(&capture, LINKED, 1, VQKVC_ROPE_HALVES);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_plan_aqua(&plan, &capture, &wrong[i], NULL, &parent, &quiet_log, &err),
                     VQKVC_E_USAGE, "%zu", i);
    }
    vqkvc_err err = {0};
    capture.n_sample = 100;
    cr_expect_eq(vqkvc_plan_aqua(&plan, &capture, &wrong[4], NULL, &parent, &quiet_log, &err),
                 VQKVC_E_USAGE);
    capture.n_sample = N;
    capture.geometry.head_dim = 12;
    err = (vqkvc_err){0};
    cr_expect_eq(
        vqkvc_plan_aqua(&plan, &capture, &(vqkvc_aqua_params){0}, NULL, &parent, &quiet_log, &err),
        VQKVC_E_UNSUPPORTED);
    capture.geometry.head_dim = DIM;
    vqkvc_capture_free(&capture);
}
