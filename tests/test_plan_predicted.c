/* Plans with predictions, ranges, shifts, outliers and beams: what is refused, what it costs, what
 * is stored, and predictions against a plain recomputation. */
#include "plan_toy.h"

/* ---- validation ---- */

/* Streams: 0 K 0 (range), 1 V 0 (nsn), 2 K 1, 3 V 1 (outliers), 4 K 2, 5 V 2 (f16). */
#define MUTATIONS(X)                                                                               \
    X(s[0].gain_tokens = 0, "stream 0 (K): gain_tokens is 0")                                      \
    X(s[0].gain_tokens = 3, "gain_tokens (3) does not divide the block (16)")                      \
    X(s[0].gain_tokens = 32, "gain_tokens is 32")                                                  \
    X(s[2].gain_tokens = 2, "stream 2 (K): gain_tokens is 2")                                      \
    X(s[4].gain_tokens = 0, "stream 4 (K): gain_tokens is 0")                                      \
    X(s[0].gain_bits = 8, "gain range takes 16 bits")                                              \
    X(s[1].gain_bits = 8, "gain nsn takes 16 bits")                                                \
    X(s[2].gain = VQKVC_GAIN_NSN, "gain nsn is for coder vq only")                                 \
    X((s[4].gain = VQKVC_GAIN_RANGE, s[4].gain_bits = 16, s[4].gain_width = 16), "takes no gain")  \
    X(s[0].runs[0].beam = 2, "no beam")                                                            \
    X(s[1].runs[0].beam = -1, "beam is -1")                                                        \
    X(s[1].runs[0].beam = VQKVC_MAX_BEAM + 1, "beam is 17")                                        \
    X(s[2].outliers = -1, "outliers is -1")                                                        \
    X(s[2].outliers = 17, "outliers is 17, not in 0..16")                                          \
    X(s[2].outliers = 0, "spread: there are no outliers")                                          \
    X(s[2].spread = 0, "spread: table book is [3, 16], not [2, 16]")                               \
    X(s[2].spread = 7, "spread: table 7")                                                          \
    X(s[5].frame = VQKVC_FRAME_PRE, "frame of values")                                             \
    X(s[4].frame = VQKVC_FRAME_POST, "stream 4 (K): frame is post, but predictions take keys")     \
    X(p->n_predictions = 7, "n_predictions is 7")                                                  \
    X(q[0].part = (vqkvc_part)2, "prediction 0: part is 2")                                        \
    X(q[0].layer = 3, "prediction 0: layer 3 of 3")                                                \
    X(q[1].part = VQKVC_PART_K, "prediction 1: K of layer 1 is out of order or named twice")       \
    X(q[2].layer = 0, "prediction 2: K of layer 0 is out of order")                                \
    X(q[0].n_sources = 0, "n_sources is 0")                                                        \
    X(q[0].n_sources = 3, "n_sources is 3")                                                        \
    X(q[0].sources[0].part = (vqkvc_part)-1, "source 0: part is -1")                               \
    X(q[0].sources[0].layer = 3, "source 0: layer 3 of 3")                                         \
    X(q[0].sources[0].layer = 1, "source 0: stream 2 of K of layer 1 is not before stream 2")      \
    X(q[0].sources[0].layer = 2, "source 0: stream 4 of K of layer 2 is not before stream 2")      \
    X(q[1].sources[1] = q[1].sources[0], "source 1 is source 0 again")                             \
    X(q[0].per_head = 2, "per_head is 2")                                                          \
    X(q[0].bias = -1, "bias: table -1")                                                            \
    X(q[0].bias = 0, "bias: table book")                                                           \
    X(q[0].map = -1, "map: table -1")                                                              \
    X(q[0].per_head = 1, "map: table full is [16, 16], not [16, 8]")                               \
    X(q[1].n_sources = 1, "map: table map is [32, 3], not [16, 3]")                                \
    X(q[1].out = 9, "out: table 9")                                                                \
    X(q[1].out = 1, "map: table map is [32, 3], not [32, 2]")                                      \
    X(q[1].out = 3, "map: table map is [32, 3], not [32, 16]")                                     \
    X(q[1].per_head = 1, "out: it is predicted per head")

Test(plan_predicted, validation_names_each_broken_field)
{
    enum {
#define X(mutation, words) +1
        N = 0 MUTATIONS(X)
#undef X
    };
    for (int i = 0; i < N; i++) {
        vqkvc_plan plan, *p = &plan;
        vqkvc_err err = {0};
        make_predicted(p);
        vqkvc_stream *s = p->streams;
        vqkvc_prediction *q = p->predictions;
        const char *expected = "";
        int at = 0;
#define X(mutation, words)                                                                         \
    if (at++ == i) {                                                                               \
        mutation;                                                                                  \
        expected = words;                                                                          \
    }
        MUTATIONS(X)
#undef X
        cr_expect_neq(vqkvc_plan_validate(p, &err), VQKVC_OK, "mutation %d (%s) passed", i,
                      expected);
        cr_expect_not_null(strstr(err.msg, expected), "mutation %d: '%s' lacks '%s'", i, err.msg,
                           expected);
        vqkvc_plan_free(p);
    }
}

Test(plan_predicted, a_target_shares_no_stream_with_another_layer)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_predicted(&plan);
    /* One more stream of V, of layers 1 and 2. */
    vqkvc_member members[2] = {{VQKVC_PART_V, 1, 0}, {VQKVC_PART_V, 2, 0}};
    vqkvc_stream *s = vqkvc_plan_add_stream(&plan, "both", 2, members, &err);
    vqkvc_run *r = vqkvc_plan_set_runs(&plan, s, 1, &err);
    *r = (vqkvc_run){
        .coder = VQKVC_CODER_F16, .groups = 16, .width = 1, .bits = 16, .stages = 1, .book = -1};
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "stream 6 (both) of the target holds other layers"), "%s",
                       err.msg);
    vqkvc_plan_free(&plan);
}

Test(plan_predicted, runs_of_one_range_are_of_one_kind)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    make_predicted(&plan);
    vqkvc_stream *s = &plan.streams[0];
    vqkvc_run first = s->runs[0];
    vqkvc_run *r = vqkvc_plan_set_runs(&plan, s, 2, &err);
    r[0] = r[1] = first;
    r[0].groups = r[1].groups = 8;
    r[1].first = 8;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    r[1].bits = 2;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "run 1: bits differ"), "%s", err.msg);
    err = (vqkvc_err){0};
    s->gain_width = 8; /* two groups: each may have its own */
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    s->gain_width = 16;
    r[1] = plan.streams[1].runs[0];
    r[1].first = 8;
    r[1].groups = 4;
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "run 1: coders differ"), "%s", err.msg);
    vqkvc_plan_free(&plan);
}

/* ---- accounting, text and storage ---- */

Test(plan_predicted, cost_counts_side_information_and_the_chain)
{
    vqkvc_plan plan;
    vqkvc_cost cost;
    make_predicted(&plan);
    double k0 = 16 * 3, v0 = 8 * 3 * 3, k1 = 16 * 3, v1 = 16 * 3, f16 = 16 * 16, values = 96;
    double range = 32 / 4.0, nsn = 32 + 16 * 16 / 8.0, k1_gain = 16 + 3 * 24, v1_gain = 16 + 24;
    cr_expect_float_eq(vqkvc_stream_gain_bits(&plan.streams[0]), range, 1e-12);
    cr_expect_float_eq(vqkvc_stream_gain_bits(&plan.streams[1]), nsn, 1e-12);
    cr_expect_float_eq(vqkvc_stream_gain_bits(&plan.streams[2]), k1_gain, 1e-12);
    vqkvc_plan_cost(&plan, 1000, &cost);
    cr_expect_float_eq(cost.code_bits, (k0 + v0 + k1 + v1 + 2 * f16) / values, 1e-12);
    cr_expect_float_eq(cost.gain_bits, (range + nsn + k1_gain + v1_gain) / values, 1e-12);
    k0 += range, v0 += nsn, k1 += k1_gain, v1 += v1_gain;
    /* Both heads read V of layer 2, which is absorbed; everything else is rebuilt, once for both.
     * Layer 1 reads layer 0 once more, layer 2 K 1 and K 0. */
    double own = k0 + v0 + k1 + v1 + f16 + 2 * f16, chain = (k0 + v0) + (k1 + k0);
    cr_expect_float_eq(cost.scan_bits, (own + chain) / values, 1e-12);
    plan.n_predictions = 0;
    vqkvc_plan_cost(&plan, 1000, &cost);
    cr_expect_float_eq(cost.scan_bits, own / values, 1e-12);
    plan.n_predictions = 3;
    vqkvc_plan_free(&plan);
}

Test(plan_predicted, an_index_over_256_latents_takes_16_bits)
{
    vqkvc_stream s = {.n_latents = 256, .outliers = 2};
    cr_expect_eq(vqkvc_stream_gain_bits(&s), 48);
    s.n_latents = 257;
    cr_expect_eq(vqkvc_stream_gain_bits(&s), 64);
}

Test(plan_predicted, text_names_what_is_kept)
{
    static const char *const words[] = {"range 16b/16x4",
                                        "nsn 16b/16x8",
                                        " 8x2:3b*3~4\n",
                                        " 16x1:u3 + 3 outliers\n",
                                        " + 1 outlier\n",
                                        "\nK 1 from K 0, full rank\n",
                                        "\nV 1 from K 1, V 0, rank 3\n",
                                        "\nK 2 from K 1, per head\n"};
    vqkvc_plan plan;
    vqkvc_buf out = {0};
    make_predicted(&plan);
    vqkvc_plan_print(&plan, &out);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        cr_expect_not_null(strstr(out.data, words[i]), "no '%s' in:\n%s", words[i], out.data);
    free(out.data);
    vqkvc_plan_free(&plan);
}

Test(plan_predicted, storage_keeps_every_new_field)
{
    vqkvc_plan plan, again;
    vqkvc_err err = {0};
    vqkvc_buf first = {0}, second = {0};
    make_predicted(&plan);
    cr_assert_eq(vqkvc_plan_write(&plan, &first, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_plan_read(&again, first.data, first.len, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_plan_write(&again, &second, &err), VQKVC_OK, "%s", err.msg);
    cr_assert(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
    for (int i = 0; i < plan.n_streams; i++) {
        const vqkvc_stream *a = &plan.streams[i], *b = &again.streams[i];
        cr_expect(a->gain_tokens == b->gain_tokens && a->outliers == b->outliers &&
                      a->spread == b->spread && a->runs[0].beam == b->runs[0].beam,
                  "stream %d", i);
    }
    cr_assert_eq(again.n_predictions, 3);
    for (int i = 0; i < 3; i++) {
        const vqkvc_prediction *a = &plan.predictions[i], *b = &again.predictions[i];
        cr_expect(a->part == b->part && a->layer == b->layer && a->n_sources == b->n_sources &&
                      a->sources[0].part == b->sources[0].part &&
                      a->sources[0].layer == b->sources[0].layer &&
                      a->sources[1].part == b->sources[1].part &&
                      a->sources[1].layer == b->sources[1].layer && a->per_head == b->per_head &&
                      a->bias == b->bias && a->map == b->map && a->out == b->out,
                  "prediction %d", i);
    }
    free(first.data);
    free(second.data);
    vqkvc_plan_free(&plan);
    vqkvc_plan_free(&again);
}

Test(plan_predicted, what_takes_rebuilt_vectors)
{
    vqkvc_plan plan;
    make_predicted(&plan);
    for (int layer = 0; layer < 3; layer++) {
        cr_expect_eq(vqkvc_plan_rebuilds(&plan, VQKVC_PART_K, layer), 1);
        cr_expect_eq(vqkvc_plan_rebuilds(&plan, VQKVC_PART_V, layer), layer < 2);
    }
    vqkvc_plan_free(&plan);
}

/* ---- the arithmetic of predictions ---- */

/* K and V of n tokens, [n, 3, 2, 8]. */
enum { N = 16, LAYERS = 3, D = 16, VALUES = N * LAYERS * D };

typedef struct tokens {
    float k[VALUES], v[VALUES], k_hat[VALUES], v_hat[VALUES];
} tokens;

static void run_tokens(const vqkvc_plan *plan, int64_t base, tokens *x)
{
    vqkvc_err err = {0};
    cr_assert_eq(
        vqkvc_plan_reference(plan, plan->n_streams, N, base, x->k, x->v, x->k_hat, x->v_hat, &err),
        VQKVC_OK, "%s", err.msg);
}

static void fill_tokens(tokens *x)
{
    vqkvc_rng rng = vqkvc_rng_make(5, 1);
    for (int i = 0; i < VALUES; i++) {
        x->k[i] = (float)vqkvc_rng_normal(&rng);
        x->v[i] = (float)vqkvc_rng_normal(&rng);
    }
}

static double entry(const vqkvc_plan *plan, int table, int row, int col)
{
    const vqkvc_table *t = &plan->tables[table];
    return vqkvc_f16_to_f32(t->f16[row * t->cols + col]);
}

static const float *row_of(const float *x, int t, int layer)
{
    return x + (t * LAYERS + layer) * D;
}

/* Channel j of what the plan says of p's target at token t; x holds the reconstructions. */
static double plain_prediction(const vqkvc_plan *plan, const vqkvc_prediction *p, const tokens *x,
                               int t, int j)
{
    double sum = entry(plan, p->bias, 0, j);
    for (int i = 0; i < p->n_sources * D; i++) {
        const vqkvc_prediction_source *from = &p->sources[i / D];
        const float *y = row_of(from->part == VQKVC_PART_K ? x->k_hat : x->v_hat, t, from->layer);
        double weight = 0;
        if (p->per_head)
            weight = i % D / 8 == j / 8 ? entry(plan, p->map, i, j % 8) : 0;
        else if (p->out < 0)
            weight = entry(plan, p->map, i, j);
        else
            for (int k = 0; k < plan->tables[p->out].rows; k++)
                weight += entry(plan, p->map, i, k) * entry(plan, p->out, k, j);
        sum += weight * (double)y[i % D];
    }
    return sum;
}

/* Everything exact but for the prediction: each reconstruction is the prediction and the binary16
 * of what it leaves. Keys are not rotated here. */
Test(plan_predicted, predictions_full_reduced_and_per_head_by_their_definition)
{
    vqkvc_plan plan;
    tokens *x = need(1, sizeof *x);
    make_predicted(&plan);
    plan.geometry.rope_layout = VQKVC_ROPE_NONE;
    for (int i = 0; i < plan.n_streams; i++) {
        vqkvc_stream *s = &plan.streams[i];
        s->gain = VQKVC_GAIN_NONE;
        s->gain_tokens = 1;
        s->outliers = 0;
        s->spread = -1;
        s->runs[0] = plan.streams[5].runs[0];
    }
    fill_tokens(x);
    run_tokens(&plan, 7, x);
    for (int t = 0; t < N; t++)
        for (int i = 0; i < plan.n_predictions; i++) {
            const vqkvc_prediction *p = &plan.predictions[i];
            int keys = p->part == VQKVC_PART_K;
            for (int j = 0; j < D; j++) {
                double said = plain_prediction(&plan, p, x, t, j);
                float exact = row_of(keys ? x->k : x->v, t, p->layer)[j];
                float got = row_of(keys ? x->k_hat : x->v_hat, t, p->layer)[j];
                double rest = vqkvc_f16_to_f32(vqkvc_f32_to_f16((float)(exact - said)));
                cr_assert_float_eq(got, said + rest, 1e-5, "prediction %d token %d channel %d", i,
                                   t, j);
            }
        }
    vqkvc_plan_free(&plan);
    free(x);
}

/* Keys of layer 1 that are what layer 0 says, rotated: nothing is left to code, wherever the block
 * stands. The streams of K 1 code nothing here, so that the prediction stands alone. */
Test(plan_predicted, predictions_see_keys_unrotated)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    tokens *x = need(1, sizeof *x), *plain = need(1, sizeof *plain);
    const int64_t base = 1000;
    make_predicted(&plan);
    int nothing = add_table(&plan, 1, 2, "nothing");
    plan.streams[2].gain = VQKVC_GAIN_NONE;
    plan.streams[2].outliers = 0;
    plan.streams[2].spread = -1;
    plan.streams[2].runs[0] = (vqkvc_run){
        .coder = VQKVC_CODER_VQ, .groups = D, .width = 1, .bits = 1, .stages = 1, .book = nothing};
    cr_assert_eq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "%s", err.msg);
    fill_tokens(x);
    run_tokens(&plan, base, x);
    memcpy(plain, x, sizeof *x);
    for (int t = 0; t < N; t++)
        vqkvc_rope_rotate(&plan.geometry, -(double)(base + t), plain->k_hat + t * LAYERS * D,
                          LAYERS * 2);
    for (int t = 0; t < N; t++)
        for (int j = 0; j < D; j++)
            cr_assert_float_eq(row_of(plain->k_hat, t, 1)[j],
                               plain_prediction(&plan, &plan.predictions[0], plain, t, j), 1e-5,
                               "token %d channel %d", t, j);
    vqkvc_plan_free(&plan);
    free(x);
    free(plain);
}

/* Only what stands before its first stream is predicted: fitting goes stream by stream. */
Test(plan_predicted, a_target_without_streams_is_not_predicted)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    tokens *x = need(1, sizeof *x);
    make_predicted(&plan);
    fill_tokens(x);
    cr_assert_eq(vqkvc_plan_reference(&plan, 3, N, 0, x->k, x->v, x->k_hat, x->v_hat, &err),
                 VQKVC_OK, "%s", err.msg);
    for (int t = 0; t < N; t++)
        for (int j = 0; j < D; j++) {
            cr_assert_neq(row_of(x->k_hat, t, 1)[j], 0);
            cr_assert_eq(row_of(x->k_hat, t, 2)[j], 0);
            cr_assert_eq(row_of(x->v_hat, t, 1)[j], 0);
        }
    vqkvc_plan_free(&plan);
    free(x);
}
