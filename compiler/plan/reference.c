/* The definition of every stream's arithmetic, in double and without tricks. The runtime in the
 * emitted header must agree with it up to rounding, and with its codes wherever no two codewords
 * are about equally near. A block is coded by its streams in order; one stream does, in this order:
 *
 *   frame      keys arrive rotated by their position p. PRE turns them back by p, POST leaves them,
 *              BLOCK turns each pair back by the position of the first token of its span
 *              (frame.h; the block, if nothing else is said), so that the rotation by the offset
 *              in that stays. Reconstructions are turned forward again.
 *   predict    before the first stream of a target of a prediction, all its heads lose, and its
 *              reconstruction gains, W'y + b; y are the joined reconstructions of the sources
 *              (every head of the first, then of the second), complete by then, keys un-rotated:
 *                full      sum of y[i] * map[i][j], i over sources, heads and channels
 *                reduced   sum of (sum of y[i] * map[i][k]) * out[k][j]
 *                per_head  head h, channel j: sum over sources s and channels c of y[s][h][c] *
 *                          map[(s * n_kv_heads + h) * head_dim + c][j]
 *   transform  z = enc' (x - mean); IDENTITY takes x - mean itself; HADAMARD multiplies with
 *              H[i][j] = (-1)^popcount(i & j) / sqrt(n_in), which is its own inverse.
 *   outliers   the `outliers` latents of a token with the largest |z[c] - centre[c]| * inverse[c]
 *              (rows 0 and 1 of the table `spread`; without it centre is the mean of the token's z,
 *              over all latents, and inverse 1), the lower index on a tie, are kept as binary16(z),
 *              by descending rank. From here on their z is centre[c], which is coded like any
 *              other; but means, sums and extremes of gains are over the latents that are left (0
 *              where none is), and at the end z^ of an outlier is what was kept.
 *   gain       a gain group is gain_width latents of one token; of RANGE and of the shift of NSN,
 *              of gain_tokens tokens, counted from the block's first (fewer at the end of what is
 *              coded, if that is no whole block):
 *                NONE     t = z, z^ = w
 *                RMS      s = sqrt(mean z^2), rounded to float
 *                ABSMAX   s = max |z| / (2^(bits-1) - 1)               in float
 *                SIGNMAX  s = (first z of largest magnitude) / -2^(bits-1), in float
 *                         all three: t = z / s^, z^ = s^ * w
 *                RANGE    low = min z, high = max z, in float
 *                         UNI  o = low,              s = (high - low) / (2^bits - 1)
 *                         VQ   o = (low + high) / 2, s = (high - low) / 2
 *                         t = (z - o^) / s^, z^ = o^ + s^ * w
 *                NSN      s1 = rms of the token's group, as RMS; u = z / s1^;
 *                         m[c] = mean of u[c] over the tokens; v = u - m^; s2 = rms of the token's
 *                         v, as RMS; t = v / s2^, z^ = s1^ * (m^[c] + s2^ * w)
 *              A quotient by 0 is 0. s^, o^, m^ are binary16 of s, o, m, at most its largest value
 *              in magnitude. Gains of 8 bits: code = round((log2(s) - gain_lo) / gain_step)
 *              clamped to 0..255 (s = 0: code 0), s^ = binary16(exp2(gain_lo + gain_step * code)),
 *              at most its largest.
 *   coders     of t, by run; w is the codeword:
 *                VQ       each stage takes the codeword nearest to what the stages before left (the
 *                         lower index on a tie); w is the sum. With a beam of b > 1 the b best sums
 *                         of codewords are kept from stage to stage (by squared distance to t; on a
 *                         tie the one whose parent came first, then the lower code), and the best
 *                         of the last stage is taken.
 *                UNI      w = code - 2^(bits-1), code clamped to 0 .. 2^bits - 1 of
 *                         - gains NONE and RMS: round(t) + 2^(bits-1), halves away from 0;
 *                         - ABSMAX: round(z * (1 / s)) + 2^(bits-1), halves away from 0;
 *                         - SIGNMAX: floor(z * (1 / s) + 2^(bits-1) + 0.5).
 *                         The last two are q8_0 and q4_0 of llama.cpp (ggml-quants.c): the float
 *                         reciprocal of the gain before it is rounded to binary16, and products in
 *                         float; s^ = 0: 2^(bits-1).
 *                         - RANGE: w = code = round(t), halves away from 0.
 *                F16      w = t as binary16.
 *   back       x^ = mean + dec z^, and later streams see x - x^.
 *
 * At last, with max_error, every vector of one head and token for which |y - x^| > max_error |y|, y
 * being what came as binary16, is y itself. No prediction sees that. */
#include "plan/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "plan/frame.h"
#include "plan/stream.h"

/* One block: what is still to be coded and what has been, keys in their streams' frames. */
typedef struct block {
    int n;
    int64_t base;
    double *rest[2], *sum[2]; /* by part: [n, n_layers, n_kv_heads, head_dim] */
    uint8_t *frame;           /* of keys: [n_layers, n_kv_heads] */
    uint8_t *predicted;       /* [2, n_layers]: whether the prediction of a target is taken off */
} block;

static void block_free(block *b)
{
    for (int part = 0; part < 2; part++) {
        free(b->rest[part]);
        free(b->sum[part]);
    }
    free(b->frame);
    free(b->predicted);
}

static vqkvc_code block_init(block *b, const vqkvc_plan *plan, int n, int64_t base, const float *k,
                             const float *v, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t heads = (size_t)g->n_layers * g->n_kv_heads, values = (size_t)n * heads * g->head_dim;
    *b = (block){.n = n, .base = base};
    b->frame = vqkvc_alloc(heads, 1, err);
    b->predicted = vqkvc_alloc(2 * (size_t)g->n_layers, 1, err);
    for (int part = 0; part < 2; part++) {
        const float *from = part == VQKVC_PART_K ? k : v;
        b->rest[part] = vqkvc_alloc(values, sizeof(double), err);
        b->sum[part] = vqkvc_alloc(values, sizeof(double), err);
        for (size_t i = 0; b->rest[part] != NULL && i < values; i++)
            b->rest[part][i] = from[i];
    }
    if (err->code != VQKVC_OK) {
        block_free(b);
        return err->code;
    }
    memset(b->frame, VQKVC_FRAME_POST, heads);
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        for (int j = 0; j < s->n_members && s->members[j].part == VQKVC_PART_K; j++)
            b->frame[(size_t)s->members[j].layer * g->n_kv_heads + s->members[j].head] =
                (uint8_t)s->frame;
    }
    return VQKVC_OK;
}

/* Turns the keys of one token, [n_layers, n_kv_heads, head_dim], out of (direction -1) or into
 * (+1) the rotation that their frame does without. */
static void turn_keys(const vqkvc_plan *plan, const block *b, int t, int direction, double *keys)
{
    const vqkvc_geometry *g = &plan->geometry;
    int half = g->n_rot / 2, interleaved = g->rope_layout == VQKVC_ROPE_INTERLEAVED;
    int heads = g->n_layers * g->n_kv_heads;
    double at_token = (double)(b->base + t);
    for (int i = 0; i < half; i++) {
        double at_block = (double)vqkvc_frame_base(plan, i, b->base);
        double freq = direction * g->rope_freq[i];
        double cos_block = cos(at_block * freq), sin_block = sin(at_block * freq);
        double cos_token = cos(at_token * freq), sin_token = sin(at_token * freq);
        int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
        for (int h = 0; h < heads; h++) {
            if (b->frame[h] == VQKVC_FRAME_POST)
                continue;
            double *x = keys + (size_t)h * g->head_dim, xa = x[first], xb = x[second];
            double c = b->frame[h] == VQKVC_FRAME_PRE ? cos_token : cos_block;
            double s = b->frame[h] == VQKVC_FRAME_PRE ? sin_token : sin_block;
            x[first] = xa * c - xb * s;
            x[second] = xa * s + xb * c;
        }
    }
}

static void turn_block(const vqkvc_plan *plan, const block *b, int direction, double *keys)
{
    const vqkvc_geometry *g = &plan->geometry;
    if (g->rope_layout == VQKVC_ROPE_NONE)
        return;
    size_t token = (size_t)g->n_layers * g->n_kv_heads * g->head_dim;
    for (int t = 0; t < b->n; t++)
        turn_keys(plan, b, t, direction, keys + t * token);
}

/* Offset of a member's vector of token t in a part's array. */
static size_t member_at(const vqkvc_geometry *g, int t, const vqkvc_member *m)
{
    return (((size_t)t * g->n_layers + m->layer) * g->n_kv_heads + m->head) * g->head_dim;
}

/* The tables of a prediction. */
typedef struct maps {
    double *bias, *map, *out; /* out: NULL unless of reduced rank */
} maps;

static void maps_free(maps *m)
{
    free(m->bias);
    free(m->map);
    free(m->out);
}

static vqkvc_code maps_load(const vqkvc_plan *plan, const vqkvc_prediction *p, maps *m,
                            vqkvc_err *err)
{
    *m = (maps){vqkvc_table_f64(plan, p->bias, err), vqkvc_table_f64(plan, p->map, err), NULL};
    if (p->out >= 0)
        m->out = vqkvc_table_f64(plan, p->out, err);
    if (err->code != VQKVC_OK)
        maps_free(m);
    return err->code;
}

/* to [cols] += from [rows] * map [rows, cols] */
static void add_product(int rows, int cols, const double *from, const double *map, double *to)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            to[j] += from[i] * map[(size_t)i * cols + j];
}

/* What one token's sources say: y [n_sources, n_kv_heads, head_dim] to x [n_kv_heads, head_dim];
 * mid [n_kv_heads * head_dim] is scratch. */
static void predict_token(const vqkvc_plan *plan, const vqkvc_prediction *p, const maps *m,
                          const double *y, double *mid, double *x)
{
    int heads = plan->geometry.n_kv_heads, dim = plan->geometry.head_dim, d = heads * dim;
    memcpy(x, m->bias, (size_t)d * sizeof *x);
    if (p->per_head) {
        for (int i = 0; i < p->n_sources * heads; i++)
            add_product(dim, dim, y + (size_t)i * dim, m->map + (size_t)i * dim * dim,
                        x + (size_t)(i % heads) * dim);
    } else if (m->out == NULL) {
        add_product(p->n_sources * d, d, y, m->map, x);
    } else {
        int rank = plan->tables[p->out].rows;
        memset(mid, 0, (size_t)rank * sizeof *mid);
        add_product(p->n_sources * d, rank, y, m->map, mid);
        add_product(rank, d, mid, m->out, x);
    }
}

/* Moves a prediction from rest to sum of its target. */
static vqkvc_code take_prediction(const vqkvc_plan *plan, const vqkvc_prediction *p, const block *b,
                                  vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t d = (size_t)g->n_kv_heads * g->head_dim;
    maps m;
    VQKVC_TRY(maps_load(plan, p, &m, err));
    double *y = vqkvc_alloc((size_t)(p->n_sources + 2) * d, sizeof *y, err);
    for (int t = 0; y != NULL && t < b->n; t++) {
        double *mid = y + (size_t)p->n_sources * d, *x = mid + d;
        for (int i = 0; i < p->n_sources; i++) {
            vqkvc_member source = {p->sources[i].part, p->sources[i].layer, 0};
            memcpy(y + i * d, b->sum[source.part] + member_at(g, t, &source), d * sizeof *y);
        }
        predict_token(plan, p, &m, y, mid, x);
        size_t at = member_at(g, t, &(vqkvc_member){p->part, p->layer, 0});
        for (size_t c = 0; c < d; c++) {
            b->rest[p->part][at + c] -= x[c];
            b->sum[p->part][at + c] += x[c];
        }
    }
    free(y);
    maps_free(&m);
    return err->code;
}

/* Before the first stream of a target. */
static vqkvc_code predict_target(const vqkvc_plan *plan, const vqkvc_member *target, const block *b,
                                 vqkvc_err *err)
{
    uint8_t *done = &b->predicted[(size_t)target->part * plan->geometry.n_layers + target->layer];
    const vqkvc_prediction *p =
        *done ? NULL : vqkvc_plan_prediction(plan, target->part, target->layer);
    *done = 1;
    return p == NULL ? VQKVC_OK : take_prediction(plan, p, b, err);
}

/* Codes what is left of a stream's members and moves the reconstruction from rest to sum. */
static vqkvc_code code_stream(const vqkvc_plan *plan, const vqkvc_stream *s, const block *b,
                              vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    size_t head_dim = (size_t)g->head_dim;
    double *rest = b->rest[s->members[0].part], *sum = b->sum[s->members[0].part];
    vqkvc_stream_work w;
    VQKVC_TRY(predict_target(plan, &s->members[0], b, err));
    VQKVC_TRY(vqkvc_stream_work_init(&w, plan, s, b->n, 1, err));
    double *x = vqkvc_alloc((size_t)b->n * s->n_in, sizeof *x, err);
    if (x == NULL) {
        vqkvc_stream_work_free(&w);
        return err->code;
    }
    for (int t = 0; t < b->n; t++)
        for (int i = 0; i < s->n_members; i++)
            memcpy(x + (size_t)t * s->n_in + i * head_dim, rest + member_at(g, t, &s->members[i]),
                   head_dim * sizeof *x);
    vqkvc_stream_code_block(plan, s, &w, b->n, x);
    for (int t = 0; t < b->n; t++)
        for (int i = 0; i < s->n_members; i++) {
            const double *from = x + (size_t)t * s->n_in + i * head_dim;
            size_t at = member_at(g, t, &s->members[i]);
            for (size_t c = 0; c < head_dim; c++) {
                rest[at + c] -= from[c];
                sum[at + c] += from[c];
            }
        }
    free(x);
    vqkvc_stream_work_free(&w);
    return VQKVC_OK;
}

/* Puts vectors that are too far off back to binary16: x, x_hat [n_heads, head_dim]. */
static void keep_exact(const vqkvc_plan *plan, size_t n_heads, const float *x, float *x_hat)
{
    size_t dim = (size_t)plan->geometry.head_dim;
    for (size_t h = 0; h < n_heads; h++, x += dim, x_hat += dim) {
        double error = 0, norm = 0;
        for (size_t c = 0; c < dim; c++) {
            double y = vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[c]));
            error += (y - x_hat[c]) * (y - x_hat[c]);
            norm += y * y;
        }
        for (size_t c = 0; c < dim && !(sqrt(error) <= (double)plan->max_error * sqrt(norm)); c++)
            x_hat[c] = vqkvc_f16_to_f32(vqkvc_f32_to_f16(x[c]));
    }
}

vqkvc_code vqkvc_plan_reference(const vqkvc_plan *plan, int n_streams, int n, int64_t base,
                                const float *k, const float *v, float *k_hat, float *v_hat,
                                vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    if (n_streams < 0 || n_streams > plan->n_streams || n < 0)
        return vqkvc_fail(err, VQKVC_E_FAILED, "reference of %d of %d streams over %d tokens",
                          n_streams, plan->n_streams, n);
    block b;
    VQKVC_TRY(block_init(&b, plan, n, base, k, v, err));
    turn_block(plan, &b, -1, b.rest[VQKVC_PART_K]);
    for (int i = 0; i < n_streams && err->code == VQKVC_OK; i++)
        code_stream(plan, &plan->streams[i], &b, err);
    turn_block(plan, &b, +1, b.sum[VQKVC_PART_K]);
    size_t values = (size_t)n * g->n_layers * g->n_kv_heads * g->head_dim;
    for (size_t i = 0; i < values && err->code == VQKVC_OK; i++) {
        k_hat[i] = (float)b.sum[VQKVC_PART_K][i];
        v_hat[i] = (float)b.sum[VQKVC_PART_V][i];
    }
    if (plan->max_error > 0 && n_streams == plan->n_streams && err->code == VQKVC_OK) {
        keep_exact(plan, values / (size_t)g->head_dim, k, k_hat);
        keep_exact(plan, values / (size_t)g->head_dim, v, v_hat);
    }
    block_free(&b);
    return err->code;
}
