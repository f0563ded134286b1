#include "model/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/matrix.h"
#include "model/vector.h"

/* Rows that are widened and multiplied at a time. A multiple of the column tile of matrix.c, so
 * that a matrix widened in panels gives the same bits as one that is kept. */
enum { PANEL_ROWS = 4096 };

/* Up to this many tokens, BLAS spends more on packing the matrix than on multiplying. */
enum { FEW_TOKENS = 4 };

/* Rows of one task of the few-token path. */
enum { TASK_ROWS = 32 };

/* Checks that a tensor exists, has the shape, and that its bytes are there. */
static vqkvc_code check_tensor(const vqkvc_gguf *gguf, const char *name, const vqkvc_gguf_tensor *t,
                               int rows, int cols, const vqkvc_quant_type **type, vqkvc_err *err)
{
    const char *path = gguf->map.path;
    if (t == NULL)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: tensor %s is missing", path, name);
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: tensor %s is [%" PRId64 ", %" PRId64 "] in %d dimensions, not "
                          "[%d, %d] (fastest first)",
                          path, name, t->dims[0], t->dims[1], t->n_dims, cols, rows);
    *type = vqkvc_quant_find(t->type);
    if (*type == NULL)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "%s: tensor %s has ggml type %" PRIu32 ", which is not supported", path,
                          name, t->type);
    uint64_t row_bytes = (uint64_t)(cols / (*type)->block) * (uint64_t)(*type)->bytes;
    if (cols % (*type)->block != 0 || t->n_bytes < (uint64_t)rows * row_bytes)
        return vqkvc_fail(err, VQKVC_E_FORMAT,
                          "%s: tensor %s: %d rows of %d elements of type %s do not fit %" PRIu64
                          " bytes",
                          path, name, rows, cols, (*type)->name, t->n_bytes);
    return VQKVC_OK;
}

vqkvc_code vqkvc_vector_find(vqkvc_weight_source *src, const char *name, int n, int required,
                             const float **v, vqkvc_err *err)
{
    const vqkvc_gguf_tensor *t = vqkvc_gguf_find_tensor(src->gguf, name);
    const vqkvc_quant_type *type;
    *v = NULL;
    if (t == NULL && !required)
        return VQKVC_OK;
    VQKVC_TRY(check_tensor(src->gguf, name, t, 1, n, &type, err));
    float *copy = vqkvc_arena_alloc(src->arena, (size_t)n, sizeof *copy, err);
    if (copy == NULL)
        return err->code;
    vqkvc_quant_to_f32(type, t->data, n, copy);
    *v = copy;
    return VQKVC_OK;
}

/* Widens rows first .. first + n - 1 on all threads. */
static void widen(const vqkvc_weight *w, int first, int n, float *dst)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < n; r++)
        vqkvc_weight_rows(w, first + r, 1, dst + (size_t)r * w->cols);
}

/* Makes w->f32 if there is room for it. */
static vqkvc_code keep(vqkvc_weight_source *src, vqkvc_weight *w, vqkvc_err *err)
{
    const uint32_t ggml_f32 = 0;
    if (w->tensor->type == ggml_f32 && (uintptr_t)w->tensor->data % sizeof(float) == 0) {
        w->f32 = (const float *)(const void *)w->tensor->data;
        return VQKVC_OK;
    }
    size_t bytes = (size_t)w->rows * (size_t)w->cols * sizeof(float);
    if (bytes > src->max_f32_bytes)
        return VQKVC_OK;
    float *f32 = vqkvc_arena_alloc(src->arena, bytes, 1, err);
    if (f32 == NULL)
        return err->code;
    src->max_f32_bytes -= bytes;
    widen(w, 0, w->rows, f32);
    w->f32 = f32;
    return VQKVC_OK;
}

vqkvc_code vqkvc_weight_find(vqkvc_weight_source *src, const char *name, int rows, int cols,
                             vqkvc_weight *w, vqkvc_err *err)
{
    char full[128];
    snprintf(full, sizeof full, "%s.weight", name);
    *w = (vqkvc_weight){
        .tensor = vqkvc_gguf_find_tensor(src->gguf, full), .rows = rows, .cols = cols};
    VQKVC_TRY(check_tensor(src->gguf, full, w->tensor, rows, cols, &w->type, err));
    snprintf(full, sizeof full, "%s.bias", name);
    VQKVC_TRY(vqkvc_vector_find(src, full, rows, 0, &w->bias, err));
    return keep(src, w, err);
}

void vqkvc_weight_rows(const vqkvc_weight *w, int first, int n, float *dst)
{
    size_t cols = (size_t)w->cols, row_bytes = cols / w->type->block * w->type->bytes;
    if (w->f32 != NULL)
        memcpy(dst, w->f32 + (size_t)first * cols, (size_t)n * cols * sizeof *dst);
    else
        vqkvc_quant_to_f32(w->type, w->tensor->data + (size_t)first * row_bytes,
                           (int64_t)n * w->cols, dst);
}

size_t vqkvc_weight_scratch(const vqkvc_weight *w)
{
    if (w->f32 != NULL)
        return 0;
    return (size_t)(w->rows < PANEL_ROWS ? w->rows : PANEL_ROWS) * (size_t)w->cols;
}

/* y[:, first ...] = x * rows', where rows [count, k] lie in fp32. */
static void multiply(int n, int count, int k, const float *x, const float *rows, float *y,
                     size_t ldy)
{
    if (n > FEW_TOKENS) {
        vqkvc_sgemm_nt(n, count, k, x, (size_t)k, rows, (size_t)k, y, ldy);
        return;
    }
    int tasks = (count + TASK_ROWS - 1) / TASK_ROWS;
    size_t work = (size_t)n * (size_t)count * (size_t)k;
#pragma omp parallel for schedule(static) if (work >= VQKVC_PARALLEL_WORK)
    for (int t = 0; t < tasks; t++) {
        int last = (t + 1) * TASK_ROWS < count ? (t + 1) * TASK_ROWS : count;
        for (int r = t * TASK_ROWS; r < last; r++)
            for (int i = 0; i < n; i++)
                y[(size_t)i * ldy + r] = vqkvc_dot(x + (size_t)i * k, rows + (size_t)r * k, k);
    }
}

void vqkvc_weight_apply(const vqkvc_weight *w, int n, const float *x, float *y, float *scratch)
{
    for (int first = 0; first < w->rows; first += PANEL_ROWS) {
        int count = w->rows - first < PANEL_ROWS ? w->rows - first : PANEL_ROWS;
        const float *rows = scratch;
        if (w->f32 != NULL)
            rows = w->f32 + (size_t)first * w->cols;
        else
            widen(w, first, count, scratch);
        multiply(n, count, w->cols, x, rows, y + first, (size_t)w->rows);
    }
    if (w->bias == NULL)
        return;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < w->rows; r++)
            y[(size_t)i * w->rows + r] += w->bias[r];
}
