/* fuzz_plan.c - any bytes as a stored plan: what reads is valid, prints, codes, and reads again. */
#include <math.h>
#include <string.h>

#include "base/geometry.h"
#include "fuzz.h"
#include "plan/plan.h"

/* Codes two tokens if that takes little: plans of absurd size are valid too. */
static void code_tokens(const vqkvc_plan *plan)
{
    enum { TOKENS = 2, MAX_VALUES = 4096, MAX_WORK = 1 << 22 };
    const vqkvc_geometry *g = &plan->geometry;
    size_t n = (size_t)TOKENS * g->n_layers * g->n_kv_heads * g->head_dim, work = 0;
    for (int i = 0; i < plan->n_streams; i++)
        for (int r = 0; r < plan->streams[i].n_runs; r++) {
            const vqkvc_run *run = &plan->streams[i].runs[r];
            size_t beam = run->beam > 1 ? (size_t)run->beam : 1;
            work += (size_t)run->groups * run->width * run->stages * beam << run->bits;
        }
    if (n > MAX_VALUES || work > MAX_WORK)
        return;
    float x[MAX_VALUES], k_hat[MAX_VALUES], v_hat[MAX_VALUES];
    vqkvc_err err = {0};
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(i % 17) - 8;
    if (vqkvc_plan_reference(plan, plan->n_streams, TOKENS, 100, x, x, k_hat, v_hat, &err) !=
        VQKVC_OK)
        abort();
    fuzz_use(k_hat);
}

static void write_and_read_again(const vqkvc_plan *plan)
{
    vqkvc_buf first = {0}, second = {0};
    vqkvc_err err = {0};
    vqkvc_plan again;
    if (vqkvc_plan_write(plan, &first, &err) != VQKVC_OK ||
        vqkvc_plan_read(&again, first.data, first.len, &err) != VQKVC_OK ||
        vqkvc_plan_write(&again, &second, &err) != VQKVC_OK || first.len != second.len ||
        memcmp(first.data, second.data, first.len) != 0)
        abort();
    free(first.data);
    free(second.data);
    vqkvc_plan_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    if (vqkvc_plan_read(&plan, data, size, &err) != VQKVC_OK) {
        if (err.msg[0] == '\0' || plan.arena.head != NULL)
            abort(); /* a refusal says why and leaves nothing */
        return 0;
    }
    vqkvc_buf text = {0};
    vqkvc_cost cost;
    vqkvc_plan_print(&plan, &text);
    free(text.data);
    vqkvc_plan_cost(&plan, 4096, &cost);
    if (!isfinite(cost.total_bits))
        abort();
    code_tokens(&plan);
    write_and_read_again(&plan);
    vqkvc_plan_free(&plan);
    return 0;
}

/* One stream over the head of one layer, all of whose latents are in one gain group. */
static vqkvc_stream *add_whole_stream(vqkvc_plan *plan, vqkvc_part part, int layer, vqkvc_gain gain,
                                      vqkvc_run run, vqkvc_err *err)
{
    vqkvc_member member = {part, layer, 0};
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, "whole", 1, &member, err);
    vqkvc_run *r = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, err);
    if (r == NULL)
        return NULL;
    s->frame = part == VQKVC_PART_K ? VQKVC_FRAME_PRE : VQKVC_FRAME_POST;
    s->gain = gain;
    s->gain_bits = 16;
    s->gain_width = s->n_latents;
    *r = run;
    return s;
}

/* V by ranges with outliers, then K by shifts with a beam, the second layer's predicted. */
static vqkvc_code add_predicted_streams(vqkvc_plan *plan, vqkvc_err *err)
{
    int book = vqkvc_plan_add_table(plan, 2, 2 << 2, err, "book");
    int spread = vqkvc_plan_add_table(plan, 2, 8, err, "spread");
    int bias = vqkvc_plan_add_table(plan, 1, 8, err, "bias");
    int map = vqkvc_plan_add_table(plan, 16, 2, err, "map");
    int out = vqkvc_plan_add_table(plan, 2, 8, err, "out");
    int square = vqkvc_plan_add_table(plan, 8, 8, err, "square");
    for (int layer = 0; layer < 2; layer++) {
        vqkvc_stream *s = add_whole_stream(plan, VQKVC_PART_V, layer, VQKVC_GAIN_RANGE,
                                           (vqkvc_run){VQKVC_CODER_UNI, 0, 8, 1, 2, 1, 0, -1}, err);
        if (s == NULL)
            return err->code;
        s->gain_tokens = 2;
        s->outliers = 1 + layer;
        s->spread = layer == 0 ? spread : -1;
        s = add_whole_stream(plan, VQKVC_PART_K, layer, VQKVC_GAIN_NSN,
                             (vqkvc_run){VQKVC_CODER_VQ, 0, 4, 2, 2, 2, 3, book}, err);
        if (s == NULL)
            return err->code;
        s->gain_tokens = 16;
    }
    vqkvc_prediction *p = vqkvc_plan_add_prediction(plan, VQKVC_PART_K, 1, err);
    if (p == NULL)
        return err->code;
    *p = (vqkvc_prediction){VQKVC_PART_K, 1,   2,  {{VQKVC_PART_K, 0}, {VQKVC_PART_V, 1}}, 0,
                            bias,         map, out};
    p = vqkvc_plan_add_prediction(plan, VQKVC_PART_V, 1, err);
    if (p == NULL)
        return err->code;
    *p = (vqkvc_prediction){VQKVC_PART_V, 1, 1, {{VQKVC_PART_V, 0}}, 1, bias, square, -1};
    return VQKVC_OK;
}

/* K of two layers in a basis with every kind of coder, V by itself. */
static vqkvc_code add_mixed_streams(vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_member keys[2] = {{VQKVC_PART_K, 0, 0}, {VQKVC_PART_K, 1, 0}};
    int mean = vqkvc_plan_add_table(plan, 1, 16, err, "mean");
    int enc = vqkvc_plan_add_bytes(plan, 16, 12, 8, err, "enc");
    int book = vqkvc_plan_add_table(plan, 2 * 2, 2 << 2, err, "book");
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, "K", 2, keys, err);
    vqkvc_run *r = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 3, err);
    if (r == NULL)
        return err->code;
    s->frame = VQKVC_FRAME_BLOCK;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->mean = mean;
    s->enc = s->dec = enc;
    s->n_latents = 12;
    r[0] = (vqkvc_run){VQKVC_CODER_VQ, 0, 2, 2, 2, 2, 0, book};
    r[1] = (vqkvc_run){VQKVC_CODER_UNI, 4, 4, 1, 3, 1, 0, -1};
    r[2] = (vqkvc_run){VQKVC_CODER_F16, 8, 4, 1, 16, 1, 0, -1};
    for (int layer = 0; layer < 2; layer++) {
        vqkvc_member value = {VQKVC_PART_V, layer, 0};
        s = vqkvc_plan_add_stream(plan, "V", 1, &value, err);
        r = s == NULL ? NULL : vqkvc_plan_set_runs(plan, s, 1, err);
        if (r == NULL)
            return err->code;
        s->gain = VQKVC_GAIN_RMS;
        s->gain_bits = 8;
        s->gain_width = 8;
        s->gain_lo = -4;
        s->gain_step = 0.125f;
        r[0] = (vqkvc_run){VQKVC_CODER_UNI, 0, 8, 1, 4, 1, 0, -1};
    }
    return VQKVC_OK;
}

size_t fuzz_seed(int i, uint8_t *dst, size_t cap)
{
    static const char *const schemes[] = {"mixed", "predicted", "f16", "q8_0", "q4_0"};
    if (i < 0 || (size_t)i >= sizeof schemes / sizeof schemes[0])
        return 0;
    vqkvc_geometry g = {.name = "seed",
                        .arch = "llama",
                        .n_layers = 2,
                        .d_model = 16,
                        .n_heads = 2,
                        .n_kv_heads = 1,
                        .head_dim = 8,
                        .rope_layout = VQKVC_ROPE_INTERLEAVED,
                        .n_rot = 4,
                        .rope_freq = {1, 0.01},
                        .rope_mscale = 1};
    vqkvc_plan plan = {.scheme = "mixed", .geometry = g, .n_recent = 8, .block = 16};
    vqkvc_err err = {0};
    vqkvc_buf bytes = {0};
    if (i == 0)
        add_mixed_streams(&plan, &err);
    else if (i == 1)
        add_predicted_streams(&plan, &err);
    else
        vqkvc_plan_preset(&plan, &g, schemes[i], NULL, &err);
    if (err.code != VQKVC_OK || vqkvc_plan_write(&plan, &bytes, &err) != VQKVC_OK)
        abort();
    size_t n = bytes.len <= cap ? bytes.len : 0;
    memcpy(dst, bytes.data, n);
    free(bytes.data);
    vqkvc_plan_free(&plan);
    return n;
}
