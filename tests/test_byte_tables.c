/* Tables of bytes: what they round to, what storage and validation make of them, how codes come
 * out. Emitted headers meet them in every test that goes over toy_plans.h. */
#include <criterion/criterion.h>

#include "plan_toy.h"
#include "toy_streams.h"

/* The toy of plan_toy.h with its shared stream's bases in bytes. */
static void make_byte_toy(vqkvc_plan *plan)
{
    make_toy(plan);
    toy_bytes(plan, plan->streams[0].enc, 16);
    toy_bytes(plan, plan->streams[0].dec, 16);
}

Test(byte_tables, values_are_within_half_a_step_of_what_they_round)
{
    vqkvc_plan plan, exact;
    make_byte_toy(&plan);
    make_toy(&exact);
    const vqkvc_table *t = &plan.tables[plan.streams[0].enc];
    const vqkvc_table *from = &exact.tables[exact.streams[0].enc];
    for (int head = 0; head < 2; head++)
        for (int col = 0; col < 32; col++) {
            float most = 0;
            for (int row = 16 * head; row < 16 * head + 16; row++)
                most = fmaxf(most, fabsf(vqkvc_table_at(from, row, col)));
            for (int row = 16 * head; row < 16 * head + 16; row++) {
                float off = vqkvc_table_at(t, row, col) - vqkvc_table_at(from, row, col);
                /* half a step, and binary16's rounding of the step 127 times over */
                cr_assert_leq(fabsf(off), most / 127 * 0.5f + most / 2048, "row %d column %d", row,
                              col);
            }
        }
    vqkvc_plan_free(&plan);
    vqkvc_plan_free(&exact);
}

Test(byte_tables, a_column_of_zeros_stays_so)
{
    vqkvc_plan plan = {0};
    vqkvc_err err = {0};
    uint16_t values[4 * 2] = {0};
    values[1] = vqkvc_f32_to_f16(-2.54f);
    int index = vqkvc_plan_add_bytes(&plan, 4, 2, 2, &err, "t");
    cr_assert_geq(index, 0, "%s", err.msg);
    vqkvc_table *t = &plan.tables[index];
    vqkvc_table_round(t, values, 2);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(t->bytes[i], i == 1 ? -127 : 0, "value %d", i);
    cr_assert_float_eq(vqkvc_table_at(t, 0, 1), -2.54f, 2e-3);
    cr_assert_eq(vqkvc_table_size(t), 8 + 2 * 2 * 2);
    vqkvc_plan_free(&plan);
}

/* Columns so small that their scales are subnormal lose resolution, but not their largest. */
Test(byte_tables, small_columns_keep_their_largest)
{
    for (float most = 7e-3f; most > 5e-7f; most *= 0.61f) {
        vqkvc_plan plan = {0};
        vqkvc_err err = {0};
        const uint16_t values[2] = {vqkvc_f32_to_f16(most), vqkvc_f32_to_f16(-most / 2)};
        int index = vqkvc_plan_add_bytes(&plan, 2, 1, 2, &err, "t");
        cr_assert_geq(index, 0, "%s", err.msg);
        vqkvc_table_round(&plan.tables[index], values, 1);
        float got = vqkvc_table_at(&plan.tables[index], 0, 0), is = vqkvc_f16_to_f32(values[0]);
        cr_assert_float_eq(got, is, fmaxf(6e-8f, 0.005f * is), "%g, not %g", (double)got,
                           (double)is);
        vqkvc_plan_free(&plan);
    }
}

Test(byte_tables, writing_and_reading_gives_the_same_plan)
{
    vqkvc_plan plan, back;
    vqkvc_err err = {0};
    vqkvc_buf first = {0}, second = {0};
    make_byte_toy(&plan);
    cr_assert_eq(vqkvc_plan_write(&plan, &first, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_plan_read(&back, first.data, first.len, &err), VQKVC_OK, "%s", err.msg);
    const vqkvc_table *a = &plan.tables[plan.streams[0].dec];
    const vqkvc_table *b = &back.tables[back.streams[0].dec];
    cr_assert_eq(b->scale_rows, 16);
    cr_assert_arr_eq(a->bytes, b->bytes, 32 * 32);
    cr_assert_arr_eq(a->scale, b->scale, 2 * 32 * sizeof *a->scale);
    cr_assert_eq(vqkvc_plan_write(&back, &second, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(first.len, second.len);
    cr_assert_arr_eq(first.data, second.data, first.len);
    vqkvc_plan_free(&back);
    cr_assert_eq(vqkvc_plan_read(&back, first.data, first.len - 1, &err), VQKVC_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "bytes are left"), "%s", err.msg);
    free(first.data);
    free(second.data);
    vqkvc_plan_free(&plan);
}

/* X(mutation of the toy p with its stream s, words of the message) */
#define MUTATIONS(X)                                                                               \
    X(p->tables[s->enc].scale_rows = 0, "scale_rows (0)")                                          \
    X(p->tables[s->enc].scale_rows = 5, "scale_rows (5) do not divide 32 rows")                    \
    X(p->tables[s->enc].scale_rows = 32, "enc has scales for 32 rows, dec for 16")                 \
    X(p->tables[s->dec].scale[33] = 0x7c00, "table 2 (dec): scale [1, 1] is not finite")           \
    X((p->tables[s->dec].f16 = p->tables[0].f16, p->tables[s->dec].bytes = NULL), "scale_rows")    \
    X(s->enc = 5, "enc: table book rest")                                                          \
    X(s->mean = s->enc, "mean: table enc is [32, 32]")                                             \
    X(toy_bytes(p, s->mean, 1), "mean: table mean is in bytes")

Test(byte_tables, validation_names_each_broken_field)
{
    enum {
#define X(mutation, words) +1
        N = 0 MUTATIONS(X)
#undef X
    };
    for (int i = 0; i < N; i++) {
        vqkvc_plan plan, *p = &plan;
        vqkvc_err err = {0};
        const char *wanted = "";
        int at = 0;
        make_byte_toy(&plan);
        vqkvc_stream *s = &plan.streams[0];
#define X(mutation, words)                                                                         \
    if (at++ == i) {                                                                               \
        mutation;                                                                                  \
        wanted = words;                                                                            \
    }
        MUTATIONS(X)
#undef X
        cr_assert_neq(vqkvc_plan_validate(&plan, &err), VQKVC_OK, "mutation %d is valid", i);
        cr_assert_not_null(strstr(err.msg, wanted), "mutation %d: '%s' lacks '%s'", i, err.msg,
                           wanted);
        vqkvc_plan_free(&plan);
    }
}

/* Codes of bytes are codes of the values that they stand for. */
Test(byte_tables, a_stream_codes_as_with_the_same_values_in_binary16)
{
    enum { N = 40, D = 32, CODES = 28 };
    vqkvc_plan bytes, halves;
    vqkvc_err err = {0};
    float x[N * D], a[N * D], b[N * D];
    int32_t codes_a[N * CODES], codes_b[N * CODES];
    make_byte_toy(&bytes);
    make_toy(&halves);
    vqkvc_rng rng = vqkvc_rng_make(4, 4);
    for (int i = 0; i < N * D; i++)
        x[i] = (float)vqkvc_rng_normal(&rng);
    /* scales that are powers of two: values of bytes are then values of binary16 */
    for (int t = bytes.streams[0].enc; t <= bytes.streams[0].dec; t++)
        for (int row = 0; row < D; row++)
            for (int col = 0; col < D; col++) {
                bytes.tables[t].scale[row / 16 * D + col] = vqkvc_f32_to_f16(1.0f / 256);
                halves.tables[t].f16[row * D + col] =
                    vqkvc_f32_to_f16(vqkvc_table_at(&bytes.tables[t], row, col));
            }
    cr_assert_eq(vqkvc_stream_reference(&bytes, bytes.streams, N, x, a, codes_a, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_stream_reference(&halves, halves.streams, N, x, b, codes_b, &err), VQKVC_OK);
    cr_assert_arr_eq(codes_a, codes_b, sizeof codes_a);
    cr_assert_arr_eq(a, b, sizeof a);
    vqkvc_plan_free(&bytes);
    vqkvc_plan_free(&halves);
}
