#include "plan/fit_stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/matrix.h"
#include "fit/fit.h"
#include "plan/allocate.h"
#include "plan/bands.h"
#include "plan/calibration.h"
#include "plan/stream.h"

/* What a basis artifact holds: int32 n_in, then these arrays. */
typedef struct basis_part {
    double *lambda;      /* [n_in] */
    uint16_t *mean;      /* [n_in] */
    uint16_t *enc, *dec; /* [n_in, n_in], all latents: the layout decides how many are used */
} basis_part;

static size_t basis_bytes(int n_in)
{
    size_t n = (size_t)n_in;
    return n * sizeof(double) + (n + 2 * n * n) * sizeof(uint16_t);
}

static void basis_point(basis_part *b, void *bytes, int n_in)
{
    size_t n = (size_t)n_in;
    b->lambda = bytes;
    b->mean = (uint16_t *)(b->lambda + n);
    b->enc = b->mean + n;
    b->dec = b->enc + n * n;
}

static vqkvc_code fit_basis(basis_part *b, const vqkvc_geometry *g, const vqkvc_key_frame *frame,
                            int n, int n_in, const float *x, const double *const *metric,
                            vqkvc_err *err)
{
    size_t d = (size_t)n_in;
    int dim = g->head_dim;
    vqkvc_basis basis = {0};
    double *cov = vqkvc_alloc(d * d, sizeof(double), err);
    double *full = vqkvc_alloc(d * d, sizeof(double), err);
    double *mean = vqkvc_alloc(d, sizeof(double), err);
    if (err->code == VQKVC_OK) {
        for (int i = 0; i < n_in; i++)
            for (int j = i / dim * dim; j < (i / dim + 1) * dim; j++)
                full[(size_t)i * d + (size_t)j] = metric[i / dim][i % dim * dim + j % dim];
        if (vqkvc_fit_moments(n, n_in, x, d, NULL, mean, cov, err) == VQKVC_OK)
            vqkvc_frame_separate(g, frame, n_in, cov);
        if (err->code == VQKVC_OK &&
            vqkvc_fit_basis(n_in, n_in, cov, full, VQKVC_METRIC_RIDGE, &basis, err) == VQKVC_OK) {
            /* The metric's unit is arbitrary: scale so that the strongest latent has variance 1 and
             * all values suit binary16. */
            double unit = basis.lambda[0] > 0 ? 1 / sqrt(basis.lambda[0]) : 1;
            for (size_t i = 0; i < d; i++) {
                b->lambda[i] = basis.lambda[i] > 0 ? basis.lambda[i] * unit * unit : 0;
                b->mean[i] = vqkvc_f32_to_f16((float)mean[i]);
            }
            for (size_t i = 0; i < d * d; i++) {
                b->enc[i] = vqkvc_f32_to_f16((float)(basis.enc[i] * unit));
                b->dec[i] = vqkvc_f32_to_f16((float)(basis.dec[i] / unit));
            }
        }
        vqkvc_basis_free(&basis);
    }
    free(cov);
    free(full);
    free(mean);
    return err->code;
}

vqkvc_code vqkvc_fit_find(const vqkvc_fit_store *store, const char *kind, const char *recipe,
                          size_t bytes, void *dst, int *found, vqkvc_err *err)
{
    vqkvc_arena arena = {0};
    kvdb_artifact a;
    *found = 0;
    if (store->db == NULL)
        return VQKVC_OK;
    vqkvc_buf buf = {0};
    vqkvc_err damage = {0};
    if (kvdb_find_artifact(store->db, kind, recipe, &arena, &a, found, err) == VQKVC_OK && *found) {
        if (kvdb_get_blob(store->db, &a.content, &buf, &damage) == VQKVC_OK && buf.len != bytes)
            vqkvc_fail(&damage, VQKVC_E_FORMAT, "it has %zu bytes, not %zu", buf.len, bytes);
        *found = damage.code == VQKVC_OK;
        if (*found)
            memcpy(dst, buf.data, bytes);
        else if (damage.code == VQKVC_E_STORE || damage.code == VQKVC_E_FORMAT)
            vqkvc_say(store->log, -1, "the stored %s is made again: %s", kind, damage.msg);
        else
            vqkvc_fail(err, damage.code, "%s", damage.msg);
    }
    free(buf.data);
    vqkvc_arena_free(&arena);
    return err->code;
}

vqkvc_code vqkvc_fit_keep(const vqkvc_fit_store *store, const char *kind, const char *recipe,
                          const vqkvc_hash *parent, const char *measure, double error,
                          const void *bytes, size_t n, vqkvc_err *err)
{
    if (store->db == NULL)
        return VQKVC_OK;
    kvdb_artifact a = {.kind = kind,
                       .recipe = recipe,
                       .model = store->model,
                       .error_measure = measure,
                       .error = error,
                       .n_parents = 1,
                       .parents = parent};
    return kvdb_put_artifact(store->db, &a, bytes, n, err);
}

/* Which latents of a basis turn, with bands: [n_in]. None mixes bands but by rounding. */
static void find_turning(const vqkvc_geometry *g, const vqkvc_key_frame *frame, const basis_part *b,
                         int n_in, uint8_t *turning)
{
    size_t n = (size_t)n_in;
    for (size_t j = 0; j < n && frame->bands; j++) {
        double of[2] = {0, 0};
        for (size_t i = 0; i < n; i++) {
            double x = (double)vqkvc_f16_to_f32(b->dec[i * n + j]);
            of[vqkvc_frame_is_turning(g, frame, (int)(i % (size_t)g->head_dim))] += x * x;
        }
        turning[j] = of[1] > of[0];
    }
}

/* Columns `order` [cols] of values [n, n] to a table of bytes. */
static vqkvc_code cut_basis(const uint16_t *values, int n, const int *order, vqkvc_table *table,
                            vqkvc_err *err)
{
    size_t cols = (size_t)table->cols;
    uint16_t *cut = vqkvc_alloc((size_t)n * cols, sizeof *cut, err);
    if (cut == NULL)
        return err->code;
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t j = 0; j < cols; j++)
            cut[i * cols + j] = values[i * (size_t)n + (size_t)order[j]];
    vqkvc_table_round(table, cut, cols);
    free(cut);
    return VQKVC_OK;
}

/* Adds the runs, with empty books. */
static vqkvc_code add_runs(vqkvc_plan *plan, vqkvc_stream *s, const vqkvc_bands *bands,
                           vqkvc_err *err)
{
    vqkvc_run *runs = vqkvc_plan_set_runs(plan, s, bands->n_runs, err);
    for (int r = 0, at = 0; r < bands->n_runs && err->code == VQKVC_OK; r++) {
        const vqkvc_layout_run *from = &bands->runs[r];
        runs[r] = (vqkvc_run){.coder = VQKVC_CODER_VQ,
                              .first = at,
                              .groups = from->groups,
                              .width = from->width,
                              .bits = 4,
                              .stages = from->stages};
        runs[r].book =
            vqkvc_plan_add_table(plan, from->groups * from->stages, from->width * 16, err,
                                 "codebooks %s, groups of %d", s->name, from->width);
        at += from->groups * from->width;
    }
    return err->code;
}

/* Adds the tables of the basis, cut to the layout's channels, and the runs: for steady latents,
 * then for turning ones. */
static vqkvc_stream *add_stream(vqkvc_plan *plan, const vqkvc_stream_spec *spec,
                                const basis_part *b, const vqkvc_layout *layout, vqkvc_err *err)
{
    vqkvc_stream *s = vqkvc_plan_add_stream(plan, spec->name, spec->n_members, spec->members, err);
    if (s == NULL)
        return NULL;
    int n_in = s->n_in, n = layout->n_channels, dim = plan->geometry.head_dim;
    s->frame = spec->frame.frame;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->n_latents = n;
    s->gain = spec->gain_bits > 0 ? VQKVC_GAIN_RMS : VQKVC_GAIN_NONE;
    s->gain_bits = spec->gain_bits;
    s->gain_width = n;
    s->mean = vqkvc_plan_add_table(plan, 1, n_in, err, "mean %s", spec->name);
    s->enc = vqkvc_plan_add_bytes(plan, n_in, n, dim, err, "enc %s", spec->name);
    s->dec = vqkvc_plan_add_bytes(plan, n_in, n, dim, err, "dec %s", spec->name);
    uint8_t *turning = vqkvc_alloc((size_t)n_in, 1, err);
    vqkvc_bands bands = {0};
    if (err->code == VQKVC_OK) {
        memcpy(plan->tables[s->mean].f16, b->mean, (size_t)n_in * sizeof(uint16_t));
        find_turning(&plan->geometry, &spec->frame, b, n_in, turning);
        if (vqkvc_make_bands(layout, n_in, turning, &bands, err) == VQKVC_OK &&
            cut_basis(b->enc, n_in, bands.order, &plan->tables[s->enc], err) == VQKVC_OK &&
            cut_basis(b->dec, n_in, bands.order, &plan->tables[s->dec], err) == VQKVC_OK)
            add_runs(plan, s, &bands, err);
    }
    free(turning);
    free(bands.order);
    return err->code == VQKVC_OK ? s : NULL;
}

/* z [n, n_latents] = (x - mean) enc, with the tables as they will be baked in. */
static vqkvc_code latents(const vqkvc_plan *plan, const vqkvc_stream *s, int n, const float *x,
                          float *z, vqkvc_err *err)
{
    size_t n_in = (size_t)s->n_in, n_out = (size_t)s->n_latents;
    float *centred = vqkvc_alloc((size_t)n * n_in, sizeof(float), err);
    float *enc = vqkvc_table_f32(plan, s->enc, err);
    if (err->code == VQKVC_OK) {
#pragma omp parallel for schedule(static)
        for (int i = 0; i < n; i++)
            for (size_t j = 0; j < n_in; j++)
                centred[(size_t)i * n_in + j] =
                    x[(size_t)i * n_in + j] - vqkvc_f16_to_f32(plan->tables[s->mean].f16[j]);
        vqkvc_sgemm_nn(n, s->n_latents, s->n_in, centred, n_in, enc, n_out, z, n_out);
    }
    free(centred);
    free(enc);
    return err->code;
}

/* Divides every row of z by its quantized gain; weight [n]: the gain squared. The gain's range
 * covers the samples with room of a factor of 2 below and 4 above. */
static void normalise(vqkvc_stream *s, int n, float *z, float *weight)
{
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < s->n_latents; j++) {
            double v = (double)z[(size_t)i * (size_t)s->n_latents + (size_t)j];
            sum += v * v;
        }
        weight[i] = (float)sqrt(sum / s->n_latents);
        double g = log2((double)weight[i] > 1e-4 ? (double)weight[i] : 1e-4);
        low = fmin(low, g);
        high = fmax(high, g);
    }
    s->gain_lo = (float)(low - 1);
    s->gain_step = (float)((high + 2 - (low - 1)) / 255);
    for (int i = 0; i < n; i++) {
        double code = round((log2(fmax((double)weight[i], 1e-9)) - (double)s->gain_lo) /
                            (double)s->gain_step);
        float g = vqkvc_f16_to_f32(vqkvc_stream_gain(s, (int)fmin(fmax(code, 0), 255)));
        for (int j = 0; j < s->n_latents; j++)
            z[(size_t)i * (size_t)s->n_latents + (size_t)j] /= g;
        weight[i] = g * g;
    }
}

/* One channel's codewords c [16, stride] to multiples k of one step, the largest 127 of it: byte
 * kernels hold them so (runtime/sums_avx512.h), and then lose nothing of what the encoder chose by.
 * Of steps that round the largest to 127, the one with the least squared error. */
static void snap_codewords(const float *c, int stride, uint16_t *book)
{
    enum { STEPS = 16, TOP = 127 };
    double top = 0, best = INFINITY, step = 0;
    for (int i = 0; i < 16; i++)
        top = fmax(top, fabs((double)c[i * stride]));
    for (int j = 1 - STEPS; j < STEPS; j++) { /* within half a step of 127 */
        double s = top / (TOP + 0.5 * j / STEPS), error = 0;
        for (int i = 0; i < 16 && s > 0; i++) {
            double off = (double)c[i * stride] - s * round((double)c[i * stride] / s);
            error += off * off;
        }
        if (error < best) {
            best = error;
            step = s;
        }
    }
    for (int i = 0; i < 16; i++)
        book[i] =
            vqkvc_f32_to_f16(step > 0 ? (float)(step * round((double)c[i * stride] / step)) : 0.0f);
}

/* Fits the codebooks of one group of channels: `stages` tables of 16 codewords one after the other,
 * each on what the one before has left. z: the group's first channel, rows at ldz. */
static vqkvc_code fit_group(const vqkvc_run *run, int n, float *z, size_t ldz, const float *weight,
                            uint64_t seed, uint16_t *book, double *error, vqkvc_err *err)
{
    float centroids[16 * 8];
    int32_t *assign = vqkvc_alloc((size_t)n, sizeof(int32_t), err);
    for (int stage = 0; stage < run->stages && err->code == VQKVC_OK; stage++) {
        vqkvc_kmeans_params params = {
            .k = 16, .max_iters = 30, .restarts = 2, .seed = seed + (uint64_t)stage};
        if (vqkvc_fit_kmeans(n, run->width, z, ldz, weight, &params, centroids, assign, error,
                             err) != VQKVC_OK)
            break;
        for (int w = 0; w < run->width; w++)
            snap_codewords(centroids + w, run->width, book + (stage * run->width + w) * 16);
        for (int i = 0; i < n; i++)
            for (int w = 0; w < run->width; w++)
                z[(size_t)i * ldz + (size_t)w] -=
                    vqkvc_f16_to_f32(book[(stage * run->width + w) * 16 + assign[i]]);
    }
    free(assign);
    return err->code;
}

/* All groups of a stream, in parallel: each is a problem of its own. *relative: squared error that
 * is left of the coded latents, as a fraction. */
static vqkvc_code fit_codebooks(vqkvc_plan *plan, vqkvc_stream *s, int n, const float *x,
                                uint64_t seed, double *relative, vqkvc_err *err)
{
    size_t ld = (size_t)s->n_latents;
    float *z = vqkvc_alloc((size_t)n * ld, sizeof(float), err);
    float *weight = vqkvc_alloc((size_t)n, sizeof(float), err);
    int total = 0;
    double left = 0;
    if (err->code == VQKVC_OK && latents(plan, s, n, x, z, err) == VQKVC_OK) {
        if (s->gain == VQKVC_GAIN_NONE)
            for (int i = 0; i < n; i++)
                weight[i] = 1;
        else
            normalise(s, n, z, weight);
        for (int r = 0; r < s->n_runs; r++)
            total += s->runs[r].groups;
        double *errors = vqkvc_alloc((size_t)total, sizeof(double), err);
        for (int r = 0, done = 0; r < s->n_runs && err->code == VQKVC_OK; r++) {
            const vqkvc_run *run = &s->runs[r];
            size_t step = (size_t)(run->stages * run->width * 16);
#pragma omp parallel for schedule(dynamic)
            for (int group = 0; group < run->groups; group++) {
                vqkvc_err mine = {0};
                if (fit_group(run, n, z + run->first + group * run->width, ld, weight,
                              seed + (uint64_t)(run->first + group) * 8,
                              plan->tables[run->book].f16 + (size_t)group * step,
                              &errors[done + group], &mine) != VQKVC_OK)
#pragma omp critical
                    vqkvc_fail(err, mine.code, "%s, group %d of %d channels: %s", s->name, group,
                               run->width, mine.msg);
            }
            for (int group = 0; group < run->groups; group++)
                left += errors[done + group];
            done += run->groups;
        }
        free(errors);
    }
    /* Latents over their gain have a mean square of 1 by construction. */
    *relative = left / (s->n_latents > 0 ? s->n_latents : 1);
    free(z);
    free(weight);
    return err->code;
}

/* Gain range and codebooks of a stream as one run of bytes, out of the plan or into it. */
static size_t move_codebooks(vqkvc_plan *plan, vqkvc_stream *s, char *bytes, int out)
{
    size_t at = 0;
    if (bytes != NULL) {
        memcpy(out ? (void *)bytes : (void *)&s->gain_lo, out ? (void *)&s->gain_lo : (void *)bytes,
               4);
        memcpy(out ? (void *)(bytes + 4) : (void *)&s->gain_step,
               out ? (void *)&s->gain_step : (void *)(bytes + 4), 4);
    }
    at += 8;
    for (int r = 0; r < s->n_runs; r++) {
        vqkvc_table *t = &plan->tables[s->runs[r].book];
        size_t n = (size_t)t->rows * (size_t)t->cols * sizeof(uint16_t);
        if (bytes != NULL)
            memcpy(out ? (void *)(bytes + at) : (void *)t->f16,
                   out ? (void *)t->f16 : (void *)(bytes + at), n);
        at += n;
    }
    return at;
}

static vqkvc_code basis_of(const vqkvc_stream_spec *spec, const vqkvc_geometry *g, int n,
                           const float *x, const double *const *metric,
                           const vqkvc_fit_store *store, const char *recipe, void *bytes,
                           vqkvc_err *err)
{
    int n_in = spec->n_members * g->head_dim, found;
    basis_part b;
    basis_point(&b, bytes, n_in);
    VQKVC_TRY(vqkvc_fit_find(store, "basis", recipe, basis_bytes(n_in), bytes, &found, err));
    if (found)
        return VQKVC_OK;
    VQKVC_TRY(fit_basis(&b, g, &spec->frame, n, n_in, x, metric, err));
    double total = 0, head = 0;
    for (int i = 0; i < n_in; i++) {
        total += b.lambda[i];
        head += i < n_in / 4 ? b.lambda[i] : 0;
    }
    return vqkvc_fit_keep(store, "basis", recipe, &store->parent,
                          "variance outside the first quarter of the latents",
                          total > 0 ? 1 - head / total : 0, bytes, basis_bytes(n_in), err);
}

static vqkvc_code codebooks_of(vqkvc_plan *plan, vqkvc_stream *s, int n, const float *x,
                               uint64_t seed, const vqkvc_fit_store *store, const char *recipe,
                               const vqkvc_hash *parent, vqkvc_hash *hash, vqkvc_err *err)
{
    size_t size = move_codebooks(plan, s, NULL, 1);
    int found;
    double relative = 0;
    char *bytes = vqkvc_alloc(size, 1, err);
    if (bytes != NULL &&
        vqkvc_fit_find(store, "codebook", recipe, size, bytes, &found, err) == VQKVC_OK) {
        if (found) {
            move_codebooks(plan, s, bytes, 0);
        } else if (fit_codebooks(plan, s, n, x, seed, &relative, err) == VQKVC_OK) {
            move_codebooks(plan, s, bytes, 1);
            vqkvc_fit_keep(store, "codebook", recipe, parent,
                           "relative squared error of coded latents", relative, bytes, size, err);
        }
        *hash = vqkvc_hash_bytes(bytes, size);
    }
    free(bytes);
    return err->code;
}

vqkvc_code vqkvc_fit_stream(vqkvc_plan *plan, const vqkvc_stream_spec *spec, int n, const float *x,
                            const double *const *metric, uint64_t seed,
                            const vqkvc_fit_store *store, vqkvc_hash *codebooks, vqkvc_err *err)
{
    int dim = plan->geometry.head_dim, n_in = spec->n_members * dim;
    vqkvc_arena arena = {0};
    vqkvc_layout layout;
    void *bytes = vqkvc_arena_alloc(&arena, basis_bytes(n_in), 1, err);
    const char *recipe = vqkvc_arena_printf(
        &arena, err, VQKVC_FIT_VERSION " basis stream='%s' %s residual=%s from=%s", spec->name,
        store->settings, spec->residual.hex[0] != '\0' ? spec->residual.hex : "none",
        store->parent.hex);
    if (err->code == VQKVC_OK &&
        basis_of(spec, &plan->geometry, n, x, metric, store, recipe, bytes, err) == VQKVC_OK) {
        basis_part b;
        basis_point(&b, bytes, n_in);
        vqkvc_hash parent = kvdb_recipe_hash("basis", recipe);
        const char *books = vqkvc_arena_printf(
            &arena, err,
            VQKVC_FIT_VERSION
            " codebook stream='%s' nibbles=%d tables=%d gain=%d seed=%llu from=%s",
            spec->name, spec->n_nibbles, spec->tables_at, spec->gain_bits, (unsigned long long)seed,
            parent.hex);
        vqkvc_stream *s = NULL;
        if (books != NULL &&
            vqkvc_allocate_layout(n_in, b.lambda, vqkvc_allocate_table(n_in, dim, spec->tables_at),
                                  spec->n_nibbles, &layout, err) == VQKVC_OK)
            s = add_stream(plan, spec, &b, &layout, err);
        if (s != NULL &&
            codebooks_of(plan, s, n, x, seed, store, books, &parent, codebooks, err) == VQKVC_OK) {
            vqkvc_hash fitted = kvdb_recipe_hash("codebook", books);
            vqkvc_plan_add_parent(plan, &fitted, err);
        }
    }
    if (err->code != VQKVC_OK)
        vqkvc_err_prefix(err, "stream %s", spec->name);
    vqkvc_arena_free(&arena);
    return err->code;
}
