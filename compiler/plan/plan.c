#include "plan/plan.h"

#include "base/half.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keeps every product of counts inside an int, whatever a file says. */
enum { MAX_ROWS_COLS = 1 << 28 };

#define DEFINE_WORD(name, ...)                                                                     \
    const char *vqkvc_##name##_word(int name)                                                      \
    {                                                                                              \
        static const char *const words[] = {__VA_ARGS__};                                          \
        int n = (int)(sizeof words / sizeof words[0]);                                             \
        return name >= 0 && name < n ? words[name] : NULL;                                         \
    }
#define X(name, word) word,
DEFINE_WORD(part, "K", "V")
DEFINE_WORD(rope, "none", "interleaved", "halves")
DEFINE_WORD(frame, VQKVC_FRAME_LIST(X))
DEFINE_WORD(transform, VQKVC_TRANSFORM_LIST(X))
DEFINE_WORD(gain, VQKVC_GAIN_LIST(X))
DEFINE_WORD(coder, VQKVC_CODER_LIST(X))
#undef X

void vqkvc_plan_free(vqkvc_plan *plan)
{
    vqkvc_arena_free(&plan->arena);
    memset(plan, 0, sizeof *plan);
}

/* ---- building ---- */

/* Room for one more element behind n in an arena array. Capacities are 8 and the powers of two
 * above it, so that the count alone says when it is full; the old array stays in the arena. */
static void *grow(vqkvc_arena *arena, void *old, int n, size_t size, vqkvc_err *err)
{
    if (n != 0 && (n < 8 || (n & (n - 1)) != 0))
        return old;
    void *p = vqkvc_arena_alloc(arena, n == 0 ? 8 : (size_t)n * 2, size, err);
    if (p != NULL && n != 0)
        memcpy(p, old, (size_t)n * size);
    return p;
}

/* A table without values, not yet counted; NULL with *err. */
static vqkvc_table *new_table(vqkvc_plan *plan, int rows, int cols, vqkvc_err *err,
                              const char *name_fmt, va_list ap)
{
    char name[128];
    vsnprintf(name, sizeof name, name_fmt, ap);
    if (rows < 1 || cols < 1 || (int64_t)rows * cols > MAX_ROWS_COLS) {
        vqkvc_fail(err, VQKVC_E_FAILED, "table %s: shape [%d, %d] is out of range", name, rows,
                   cols);
        return NULL;
    }
    vqkvc_table *tables =
        grow(&plan->arena, plan->tables, plan->n_tables, sizeof *plan->tables, err);
    if (tables == NULL)
        return NULL;
    plan->tables = tables;
    vqkvc_table *t = &tables[plan->n_tables];
    *t = (vqkvc_table){.rows = rows, .cols = cols};
    t->name = vqkvc_arena_strndup(&plan->arena, name, strlen(name), err);
    return t->name == NULL ? NULL : t;
}

int vqkvc_plan_add_table(vqkvc_plan *plan, int rows, int cols, vqkvc_err *err, const char *name_fmt,
                         ...)
{
    va_list ap;
    va_start(ap, name_fmt);
    vqkvc_table *t = new_table(plan, rows, cols, err, name_fmt, ap);
    va_end(ap);
    if (t == NULL)
        return -1;
    t->f16 = vqkvc_arena_alloc(&plan->arena, (size_t)rows * cols, sizeof *t->f16, err);
    return t->f16 == NULL ? -1 : plan->n_tables++;
}

int vqkvc_plan_add_bytes(vqkvc_plan *plan, int rows, int cols, int scale_rows, vqkvc_err *err,
                         const char *name_fmt, ...)
{
    va_list ap;
    va_start(ap, name_fmt);
    vqkvc_table *t = new_table(plan, rows, cols, err, name_fmt, ap);
    va_end(ap);
    if (t == NULL)
        return -1;
    size_t scales = (size_t)(rows / scale_rows) * (size_t)cols;
    t->scale_rows = scale_rows;
    t->bytes = vqkvc_arena_alloc(&plan->arena, (size_t)rows * cols, 1, err);
    t->scale = vqkvc_arena_alloc(&plan->arena, scales, sizeof *t->scale, err);
    return t->bytes == NULL || t->scale == NULL ? -1 : plan->n_tables++;
}

enum { SMALLEST_NORMAL = 0x0400 /* of binary16 */ };

void vqkvc_table_round(vqkvc_table *t, const uint16_t *values, size_t ld)
{
    for (int row = 0; row < t->rows; row += t->scale_rows)
        for (int col = 0; col < t->cols; col++) {
            const uint16_t *from = values + (size_t)row * ld + col;
            float most = 0;
            for (int i = 0; i < t->scale_rows; i++)
                most = fmaxf(most, fabsf(vqkvc_f16_to_f32(from[(size_t)i * ld])));
            uint16_t half = vqkvc_f32_to_f16(most / 127);
            if (half < SMALLEST_NORMAL && vqkvc_f16_to_f32(half) * 127 < most)
                half++; /* subnormal steps are coarse: rounded down, they would cut off the top */
            float scale = vqkvc_f16_to_f32(half);
            t->scale[(size_t)(row / t->scale_rows) * t->cols + col] = half;
            for (int i = 0; i < t->scale_rows; i++) {
                float v = vqkvc_f16_to_f32(from[(size_t)i * ld]);
                v = scale > 0 ? fmaxf(fminf(roundf(v / scale), 127), -127) : 0;
                t->bytes[(size_t)(row + i) * t->cols + col] = (int8_t)v;
            }
        }
}

float vqkvc_table_at(const vqkvc_table *t, int row, int col)
{
    size_t i = (size_t)row * t->cols + col;
    if (t->bytes == NULL)
        return vqkvc_f16_to_f32(t->f16[i]);
    return (float)t->bytes[i] *
           vqkvc_f16_to_f32(t->scale[(size_t)(row / t->scale_rows) * t->cols + col]);
}

size_t vqkvc_table_size(const vqkvc_table *t)
{
    size_t values = (size_t)t->rows * t->cols;
    return t->bytes == NULL ? values * 2 : values + values / (size_t)t->scale_rows * 2;
}

vqkvc_stream *vqkvc_plan_add_stream(vqkvc_plan *plan, const char *name, int n_members,
                                    const vqkvc_member *members, vqkvc_err *err)
{
    int64_t n_in = (int64_t)n_members * plan->geometry.head_dim;
    if (n_members < 1 || n_in < 1 || n_in > MAX_ROWS_COLS) {
        vqkvc_fail(err, VQKVC_E_FAILED, "stream %s: %d members of %d channels are out of range",
                   name, n_members, plan->geometry.head_dim);
        return NULL;
    }
    vqkvc_stream *streams =
        grow(&plan->arena, plan->streams, plan->n_streams, sizeof *plan->streams, err);
    if (streams == NULL)
        return NULL;
    plan->streams = streams;
    vqkvc_stream *s = &streams[plan->n_streams];
    *s = (vqkvc_stream){.n_members = n_members,
                        .frame = VQKVC_FRAME_POST,
                        .mean = -1,
                        .gain_tokens = 1,
                        .spread = -1,
                        .enc = -1,
                        .dec = -1,
                        .n_in = (int)n_in,
                        .n_latents = (int)n_in};
    s->name = vqkvc_arena_strndup(&plan->arena, name, strlen(name), err);
    s->members = vqkvc_arena_alloc(&plan->arena, (size_t)n_members, sizeof *members, err);
    if (s->name == NULL || s->members == NULL)
        return NULL;
    memcpy(s->members, members, (size_t)n_members * sizeof *members);
    plan->n_streams++;
    return s;
}

vqkvc_run *vqkvc_plan_set_runs(vqkvc_plan *plan, vqkvc_stream *s, int n_runs, vqkvc_err *err)
{
    if (n_runs < 1) {
        vqkvc_fail(err, VQKVC_E_FAILED, "stream %s: %d runs", s->name, n_runs);
        return NULL;
    }
    vqkvc_run *runs = vqkvc_arena_alloc(&plan->arena, (size_t)n_runs, sizeof *runs, err);
    if (runs == NULL)
        return NULL;
    for (int r = 0; r < n_runs; r++)
        runs[r] = (vqkvc_run){.width = 1, .stages = 1, .book = -1};
    s->runs = runs;
    s->n_runs = n_runs;
    return runs;
}

vqkvc_prediction *vqkvc_plan_add_prediction(vqkvc_plan *plan, vqkvc_part part, int layer,
                                            vqkvc_err *err)
{
    vqkvc_prediction *grown =
        grow(&plan->arena, plan->predictions, plan->n_predictions, sizeof *plan->predictions, err);
    if (grown == NULL)
        return NULL;
    plan->predictions = grown;
    vqkvc_prediction *p = &grown[plan->n_predictions++];
    *p = (vqkvc_prediction){.part = part, .layer = layer, .bias = -1, .map = -1, .out = -1};
    return p;
}

vqkvc_code vqkvc_plan_add_parent(vqkvc_plan *plan, const vqkvc_hash *recipe, vqkvc_err *err)
{
    int n = plan->n_parents;
    if ((n & (n - 1)) == 0) { /* a power of two, or none: full */
        vqkvc_hash *grown =
            vqkvc_arena_alloc(&plan->arena, n > 0 ? (size_t)n * 2 : 1, sizeof *grown, err);
        if (grown == NULL)
            return err->code;
        if (n > 0)
            memcpy(grown, plan->parents, (size_t)n * sizeof *grown);
        plan->parents = grown;
    }
    plan->parents[plan->n_parents++] = *recipe;
    return VQKVC_OK;
}

/* ---- asking ---- */

const vqkvc_prediction *vqkvc_plan_prediction(const vqkvc_plan *plan, vqkvc_part part, int layer)
{
    for (int i = 0; i < plan->n_predictions; i++)
        if (plan->predictions[i].part == part && plan->predictions[i].layer == layer)
            return &plan->predictions[i];
    return NULL;
}

int vqkvc_plan_rebuilds(const vqkvc_plan *plan, vqkvc_part part, int layer)
{
    if (vqkvc_plan_prediction(plan, part, layer) != NULL)
        return 1;
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        int special = s->gain == VQKVC_GAIN_RANGE || s->gain == VQKVC_GAIN_NSN || s->outliers > 0 ||
                      s->frame == VQKVC_FRAME_PRE;
        for (int m = 0; m < s->n_members && special; m++)
            if (s->members[m].part == part && s->members[m].layer == layer)
                return 1;
    }
    return 0;
}

uint16_t vqkvc_stream_gain(const vqkvc_stream *s, int code)
{
    return vqkvc_f32_to_f16(fminf(exp2f(s->gain_lo + s->gain_step * (float)code), 65504.0f));
}
