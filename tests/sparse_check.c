/* sparse_check.c - landmarks and the exact list of one emitted header, on every instruction set.
 *
 *     cc -DHEADER='"x.h"' sparse_check.c -lm -o check && ./check [ISA]
 *
 * The header's prefix is toy_kv. Random tokens, some of them planted far from all others, are held
 * against plain recomputations in double: what landmarks say, which chunks are chosen, attention
 * over those alone; every vector's error against the bound; copies, and an exact list that is full.
 * The exit status is 1 after a broken promise and 2 where the check itself failed. */
#define TOY_KV_IMPLEMENTATION
#include HEADER

#include <stdio.h>

#include "runtime_check.h"

enum {
    LAYERS = TOY_KV_N_LAYERS,
    HEADS = TOY_KV_N_KV_HEADS,
    Q_HEADS = TOY_KV_N_HEADS,
    GROUP = TOY_KV_GROUP,
    DIM = TOY_KV_HEAD_DIM,
    SINK = TOY_KV_N_SINK,
    BLOCK = TOY_KV_BLOCK,
    CHUNK = TOY_KV__CHUNK,
    N = SINK + TOY_KV_N_RECENT + 6 * BLOCK + BLOCK / 2,
    MAX_Q = 5,
    STEP = HEADS * DIM,
    BATCH = BLOCK + 7
};

typedef struct check {
    float *part[2]; /* [N, LAYERS, HEADS, DIM]: keys, values, of binary16 values */
    toy_kv *kv;
    void *memory, *scratch;
    size_t bytes, scratch_bytes;
    check_rng rng;
    double worst, bound;
    int compared, unsure, failed;
} check;

static void die(const char *what)
{
    fprintf(stderr, "sparse_check: %s\n", what);
    exit(2);
}

static void must(toy_kv_status status, const char *what)
{
    if (status != TOY_KV_OK) {
        fprintf(stderr, "%s: %s\n", what, toy_kv_status_text(status));
        exit(2);
    }
}

static void *need(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL)
        die("out of memory");
    return p;
}

static void expect(check *c, int good, const char *what)
{
    if (!good && c->failed++ < 8)
        printf("  broken: %s\n", what);
}

static int coded(const check *c, int seq)
{
    return toy_kv__n_coded(toy_kv__sequence(c->kv, seq));
}

static const float *input(const check *c, int part, int token, int layer, int head)
{
    return c->part[part] + (((size_t)token * LAYERS + (size_t)layer) * HEADS + (size_t)head) * DIM;
}

/* Neighbouring tokens are alike; one in 37 is large and like nothing else. */
static void fill(check *c)
{
    for (int part = 0; part < 2; part++) {
        size_t row = (size_t)LAYERS * STEP;
        c->part[part] = (float *)need(sizeof(float) * N * row);
        for (int t = 0; t < N; t++)
            for (size_t i = 0; i < row; i++) {
                float *x = c->part[part] + (size_t)t * row + i, new = check_uniform(&c->rng);
                *x = t > 0 && t % 37 != 1 && t % 37 != 0 ? 0.7f * x[-(int)row] + 0.5f * new : new;
                if (t % 37 == 0)
                    *x *= 6;
            }
        for (size_t i = 0; i < N * row; i++)
            c->part[part][i] = toy_kv__from_half(toy_kv__to_half(c->part[part][i]));
    }
}

static void make_cache(check *c, int isa, int n_exact)
{
    toy_kv_config config = {0};
    config.n_ctx = N;
    config.n_seq = 3;
    config.max_batch = BATCH;
    config.isa = (toy_kv_isa)isa;
    config.n_exact = n_exact;
    must(toy_kv_size(&config, &c->bytes), "size");
    c->memory = need(c->bytes);
    memset(c->memory, 0xa5, c->bytes);
    must(toy_kv_init(&c->kv, &config, c->memory, c->bytes), "init");
}

static toy_kv_status append(check *c, int seq, int first, int n)
{
    static float kv[2][BATCH * STEP];
    toy_kv_status status = TOY_KV_OK;
    for (int layer = 0; layer < LAYERS && status == TOY_KV_OK; layer++) {
        for (int part = 0; part < 2; part++)
            for (int t = 0; t < n; t++)
                memcpy(kv[part] + (size_t)t * STEP, input(c, part, first + t, layer, 0),
                       sizeof(float) * STEP);
        status = toy_kv_append(c->kv, seq, layer, n, kv[0], kv[1], TOY_KV_F32, TOY_KV_KEYS_ROTATED);
    }
    return status;
}

/* All N tokens, the last by itself. */
static void tell(check *c, int seq)
{
    for (int t = 0, n; t < N; t += n) {
        n = t == N - 1 ? 1 : N - 1 - t < BATCH ? N - 1 - t : BATCH;
        must(append(c, seq, t, n), "append");
    }
}

static void read_back(check *c, int seq, int layer, int head, int part, float *dst)
{
    must(toy_kv_read(c->kv, seq, layer, head, part == 0 ? TOY_KV_KEY : TOY_KV_VALUE, 0,
                     toy_kv_n_tokens(c->kv, seq), dst, c->scratch, c->scratch_bytes),
         "read");
}

/* ---- the bound ---- */

static double error_of(const float *x, const float *y)
{
    double error = 0, norm = 0;
    for (int d = 0; d < DIM; d++) {
        error += ((double)x[d] - y[d]) * ((double)x[d] - y[d]);
        norm += (double)x[d] * x[d];
    }
    return norm > 0 ? sqrt(error / norm) : error > 0 ? INFINITY : 0;
}

static void check_bound(check *c, int seq)
{
    static float y[N * DIM];
    int exact = 0, n = coded(c, seq);
    double worst = 0;
    for (int slot = 0; slot < 2 * LAYERS * HEADS; slot++) {
        read_back(c, seq, slot / 2 / HEADS, slot / 2 % HEADS, slot % 2, y);
        for (int t = SINK; t < n; t++) {
            double e =
                error_of(input(c, slot % 2, t, slot / 2 / HEADS, slot / 2 % HEADS), y + t * DIM);
            exact += e == 0;
            worst = e > worst ? e : worst;
        }
    }
    printf("  sequence %d: %d of %d vectors kept, worst error %.4f of %.4f\n", seq,
           (int)toy_kv__kept_of(c->kv, seq), (n - SINK) * 2 * LAYERS * HEADS, worst,
           (double)TOY_KV_MAX_ERROR);
    expect(c, TOY_KV_MAX_ERROR == 0 || worst <= (double)TOY_KV_MAX_ERROR, "a vector's bound");
    expect(c, exact >= (int)toy_kv__kept_of(c->kv, seq), "what is kept is exact");
}

/* ---- landmarks ---- */

static void check_landmarks(check *c)
{
    for (int chunk = 0; chunk < (coded(c, 0) - SINK) / CHUNK && TOY_KV_LANDMARKS > 0; chunk++)
        for (int slot = 0; slot < LAYERS * HEADS; slot++) {
            int layer = slot / HEADS, head = slot % HEADS, at = chunk % TOY_KV__CHUNKS;
            const unsigned char *means = toy_kv__landmarks(
                c->kv, layer, head, toy_kv__blocks(c->kv, 0)[chunk / TOY_KV__CHUNKS].block);
            const unsigned char *scales = means + TOY_KV__CHUNKS * DIM;
            double mean[DIM] = {0}, least = 1, step = (double)toy_kv__half_at(scales, (size_t)at);
            for (int t = 0; t < CHUNK * DIM; t++)
                mean[t % DIM] +=
                    (double)input(c, 0, SINK + chunk * CHUNK + t / DIM, layer, head)[t % DIM] /
                    CHUNK;
            for (int t = 0; t < CHUNK; t++) {
                const float *x = input(c, 0, SINK + chunk * CHUNK + t, layer, head);
                double xy = 0, xx = 0, yy = 0;
                for (int d = 0; d < DIM; d++) {
                    xy += x[d] * mean[d];
                    xx += (double)x[d] * x[d];
                    yy += mean[d] * mean[d];
                }
                least = xy / sqrt(xx * yy) < least ? xy / sqrt(xx * yy) : least;
            }
            for (int d = 0; d < DIM; d++)
                expect(c, fabs(((double)means[at * DIM + d] - 128) * step - mean[d]) <= 0.51 * step,
                       "a landmark is its chunk's mean");
            expect(c, fabs((double)scales[2 * TOY_KV__CHUNKS + at] - 127.5 * (least + 1)) <= 0.51,
                   "the least likeness of a chunk");
        }
}

/* ---- choices ---- */

typedef struct wish {
    int n_q, top, outliers, window, first, last;
    float soft_cap;
} wish;

/* Keeps the best `most` of n by score, the earlier ones of equals; returns the least distance of a
 * kept score to another. */
static double keep_best(const double *score, unsigned char *kept, int n, int most)
{
    double least = INFINITY, next = -INFINITY;
    for (int i = 0; i < most; i++) {
        int best = -1;
        for (int j = 0; j < n; j++)
            if (!kept[j] && (best < 0 || score[j] > score[best]))
                best = j;
        kept[best] = 1;
        least = score[best];
    }
    for (int j = 0; j < n; j++)
        if (!kept[j] && score[j] > next)
            next = score[j];
    return most > 0 ? least - next : INFINITY;
}

/* Which tokens rows [n_rows] of q [DIM] each may attend to in first .. last - 1: keep [N] is set to
 * 1 for them. Returns 0 where rounding may have decided otherwise. */
static int choose(check *c, const wish *w, int layer, int head, const double *q, int n_rows,
                  int first, int last, unsigned char *keep)
{
    static double score[N], unlike[N];
    static unsigned char out[N], top[N];
    int low, high, n, k = (w->top + CHUNK - 1) / CHUNK, sure = 1;
    int n_out = w->outliers > 0 ? w->outliers : w->outliers < 0 ? 0 : k * 3 / 16;
    for (int t = first; t < last; t++)
        keep[t] |= w->top == 0 || t < SINK || t >= coded(c, 0);
    first = first > SINK ? first : SINK;
    last = last < coded(c, 0) ? last : coded(c, 0);
    if (first >= last || w->top == 0)
        return 1;
    low = (first - SINK) / CHUNK;
    high = (last - SINK + CHUNK - 1) / CHUNK;
    n = high - low;
    memset(out, 0, sizeof out);
    memset(top, 0, sizeof top);
    for (int i = 0; i < n; i++) {
        const unsigned char *means = toy_kv__landmarks(
            c->kv, layer, head, toy_kv__blocks(c->kv, 0)[(low + i) / TOY_KV__CHUNKS].block);
        const unsigned char *scales = means + TOY_KV__CHUNKS * DIM;
        int at = (low + i) % TOY_KV__CHUNKS;
        unlike[i] = -(double)scales[2 * TOY_KV__CHUNKS + at];
        score[i] = -INFINITY;
        for (int r = 0; r < n_rows; r++) {
            double s = 0;
            for (int d = 0; d < DIM; d++)
                s += q[r * DIM + d] * ((double)means[at * DIM + d] - 128);
            s *= (double)toy_kv__half_at(scales, (size_t)at);
            score[i] = s > score[i] ? s : score[i];
        }
    }
    if (k + n_out >= n) {
        memset(top, 1, sizeof top);
    } else {
        keep_best(unlike, out, n, n_out);
        for (int i = 0; i < n; i++)
            score[i] = out[i] ? -INFINITY : score[i];
        sure = keep_best(score, top, n, k) > 1e-4;
    }
    for (int t = first; t < last; t++)
        keep[t] |= out[(t - SINK) / CHUNK - low] || top[(t - SINK) / CHUNK - low];
    return sure;
}

/* Compares some rows of a head: `got` is [n_q, Q_HEADS, DIM]. keep [N] tells what is attended. */
static void compare(check *c, const wish *w, int layer, int head, int row, int n_rows,
                    const float *q, const float *got, const unsigned char *keep)
{
    static float k[N * DIM], v[N * DIM];
    check_attention plain = {(double)TOY_KV_ATTENTION_SCALE, (double)w->soft_cap, w->window, NULL,
                             keep};
    read_back(c, 0, layer, head, 0, k);
    read_back(c, 0, layer, head, 1, v);
    for (int r = row; r < row + n_rows; r++) {
        double ref[DIM], error;
        size_t at = ((size_t)(r / GROUP) * Q_HEADS + (size_t)(head * GROUP + r % GROUP)) * DIM;
        check_attend(&plain, DIM, N - w->n_q + r / GROUP, q + at, k, v, ref);
        error = check_error(DIM, got + at, ref);
        c->worst = error > c->worst ? error : c->worst;
        c->compared++;
        if (error > c->bound && c->failed++ < 8)
            printf("  layer %d, head %d, row %d, top %d, outliers %d, window %d, cap %g, %d..%d: "
                   "error %g\n",
                   layer, head, r, w->top, w->outliers, w->window, (double)w->soft_cap, w->first,
                   w->last, error);
    }
}

/* Attention under a wish, in two ranges that are chosen in by themselves if w->first lies inside
 * (where they meet), against attention over the plainly chosen tokens. */
static void check_wish(check *c, const wish *w, int layer)
{
    static float q[MAX_Q * Q_HEADS * DIM], out[MAX_Q * Q_HEADS * DIM];
    static float m[2][MAX_Q * GROUP], l[2][MAX_Q * GROUP], o[2][MAX_Q * GROUP * DIM];
    static double rows[MAX_Q * GROUP * DIM];
    int cuts[3] = {0, w->first, N}, step = TOY_KV__PASS_ROWS / GROUP;
    toy_kv_attention a = {0};
    a.soft_cap = w->soft_cap;
    a.sliding_window = w->window;
    a.top_tokens = w->top;
    a.outlier_chunks = w->outliers;
    for (int i = 0; i < w->n_q * Q_HEADS * DIM; i++)
        q[i] = 2 * check_uniform(&c->rng);
    if (w->first == 0)
        must(toy_kv_attend(c->kv, 0, layer, w->n_q, q, out, &a, c->scratch, c->scratch_bytes),
             "attend");
    step = step > 0 ? step : 1;
    for (int head = 0; head < HEADS; head++) {
        for (int i = 0; i < 2 && w->first > 0; i++) {
            toy_kv_partial part = {m[i], l[i], o[i]}, sum = {m[0], l[0], o[0]};
            must(toy_kv_attend_part(c->kv, 0, layer, head, w->n_q, q, cuts[i],
                                    cuts[i + 1] - cuts[i], &a, &part, c->scratch, c->scratch_bytes),
                 "attend_part");
            if (i == 1) {
                toy_kv_merge(&sum, &part, w->n_q * GROUP);
                toy_kv_finish(&sum, head, w->n_q, &a, out);
            }
        }
        for (int query = 0; query < w->n_q; query += step) {
            int n = (w->n_q - query < step ? w->n_q - query : step) * GROUP;
            for (int row = 0; row < n; row += TOY_KV__PASS_ROWS) {
                int first = query * GROUP + row, position = N - w->n_q + first / GROUP, sure = 1;
                int n_rows = n - row < TOY_KV__PASS_ROWS ? n - row : TOY_KV__PASS_ROWS;
                int end = N - w->n_q + (first + n_rows - 1) / GROUP + 1;
                unsigned char keep[N] = {0};
                for (int r = 0; r < n_rows * DIM; r++)
                    rows[r] = (double)TOY_KV_ATTENTION_SCALE *
                              q[((first + r / DIM) / GROUP * Q_HEADS + head * GROUP +
                                 (first + r / DIM) % GROUP) *
                                    DIM +
                                r % DIM];
                for (int i = w->first > 0 ? 0 : 1; i < 2; i++) {
                    int from = w->first > 0 ? cuts[i] : 0,
                        to = cuts[i + 1] < end ? cuts[i + 1] : end;
                    if (w->window > 0 && from < position - w->window + 1)
                        from = position - w->window + 1;
                    sure &= choose(c, w, layer, head, rows, n_rows, from, to, keep);
                }
                c->unsure += !sure;
                if (sure)
                    compare(c, w, layer, head, first, n_rows, q, out, keep);
            }
        }
    }
}

static void check_choices(check *c)
{
    static const wish wishes[] = {{1, 0, 0, 0, 0, 0, 0},
                                  {5, 0, 0, 0, 0, 0, 0},
                                  {1, 1, 0, 0, 0, 0, 0},
                                  {1, 5 * CHUNK, -1, 0, 0, 0, 0},
                                  {5, 6 * CHUNK, 3, 0, 0, 0, 2},
                                  {2, 3 * CHUNK, 2, 3 * BLOCK, 0, 0, 0},
                                  {1, 4 * CHUNK, 0, 0, SINK + 2 * BLOCK + 5, 0, 0},
                                  {3, 2 * CHUNK, 1, 4 * BLOCK, SINK + 3 * BLOCK, 0, 0}};
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        if (wishes[i].top == 0 || TOY_KV_LANDMARKS > 0)
            for (int layer = 0; layer < LAYERS; layer++)
                check_wish(c, &wishes[i], layer);
}

/* As much as there is, or more, is everything; what cannot be is refused. */
static void check_limits(check *c)
{
    static float q[Q_HEADS * DIM], all[Q_HEADS * DIM], some[Q_HEADS * DIM];
    toy_kv_attention a = {0};
    for (int i = 0; i < Q_HEADS * DIM; i++)
        q[i] = 2 * check_uniform(&c->rng);
    must(toy_kv_attend(c->kv, 0, 0, 1, q, all, &a, c->scratch, c->scratch_bytes), "attend");
    a.top_tokens = coded(c, 0) - SINK;
    for (int i = 0; i < 2 && TOY_KV_LANDMARKS > 0; i++, a.top_tokens = TOY_KV_MAX_TOP_TOKENS) {
        must(toy_kv_attend(c->kv, 0, 0, 1, q, some, &a, c->scratch, c->scratch_bytes), "attend");
        expect(c, memcmp(all, some, sizeof all) == 0, "all tokens wanted, bit by bit");
    }
    for (int i = 0; i < 3; i++) {
        a.top_tokens = i == 0 ? -1 : i == 1 ? TOY_KV_MAX_TOP_TOKENS + 1 : 8;
        a.outlier_chunks = i == 2 ? TOY_KV_MAX_OUTLIER_CHUNKS + 1 : 0;
        expect(c,
               toy_kv_attend(c->kv, 0, 0, 1, q, some, &a, c->scratch, c->scratch_bytes) ==
                   TOY_KV_E_ARGUMENT,
               "limits of a choice");
    }
    a.outlier_chunks = 0;
    expect(c,
           toy_kv_attend(c->kv, 0, 0, 1, q, some, &a, c->scratch, c->scratch_bytes) ==
               (TOY_KV_LANDMARKS > 0 ? TOY_KV_OK : TOY_KV_E_ARGUMENT),
           "a codec without landmarks cannot choose");
}

/* ---- copies, and a full list ---- */

/* One query over both sequences gives the same bits. */
static void expect_alike(check *c, int seq, int other, const char *what)
{
    static float q[Q_HEADS * DIM], x[2][Q_HEADS * DIM];
    toy_kv_attention a = {0};
    for (int i = 0; i < Q_HEADS * DIM; i++)
        q[i] = check_uniform(&c->rng);
    for (int top = 0; top <= (TOY_KV_LANDMARKS > 0 ? 3 * CHUNK : 0); top += 3 * CHUNK) {
        a.top_tokens = top;
        for (int layer = 0; layer < LAYERS; layer++) {
            for (int i = 0; i < 2; i++)
                must(toy_kv_attend(c->kv, i == 0 ? seq : other, layer, 1, q, x[i], &a, c->scratch,
                                   c->scratch_bytes),
                     what);
            expect(c, memcmp(x[0], x[1], sizeof x[0]) == 0, what);
        }
    }
}

static int in_use(const check *c)
{
    toy_kv_stats stats;
    must(toy_kv_get_stats(c->kv, &stats), "stats");
    return stats.exact_used;
}

static void check_copies(check *c)
{
    size_t bytes = toy_kv_save_size(c->kv, 0);
    unsigned char *saved = (unsigned char *)need(bytes), *again;
    int kept = in_use(c), cut = SINK + 3 * BLOCK + BLOCK / 2;
    must(toy_kv_save(c->kv, 0, saved, bytes), "save");
    must(toy_kv_fork(c->kv, 0, 1), "fork");
    expect(c, in_use(c) == kept, "a fork shares what is kept");
    expect_alike(c, 0, 1, "a fork");
    must(toy_kv_trim(c->kv, 0, 0), "trim");
    expect(c, in_use(c) == kept, "a fork holds what is kept");
    must(toy_kv_load(c->kv, 0, saved, bytes), "load");
    expect(c, in_use(c) == 2 * kept, "a load has its own");
    expect_alike(c, 0, 1, "a load");
    again = (unsigned char *)need(bytes);
    must(toy_kv_save(c->kv, 0, again, bytes), "save again");
    expect(c, memcmp(saved, again, bytes) == 0, "saved twice");
    must(toy_kv_trim(c->kv, 1, cut), "trim");
    check_bound(c, 1);
    must(toy_kv_trim(c->kv, 1, 0), "trim");
    must(toy_kv_trim(c->kv, 0, 0), "trim");
    expect(c, in_use(c) == 0 && toy_kv_bytes_used(c->kv) == 0, "all is given back");
    free(saved);
    free(again);
}

/* A list that is full refuses tokens and changes nothing else; with room it goes on. */
static void check_full(check *c, int isa, int kept)
{
    int t = 0, n = 1;
    toy_kv_status status = TOY_KV_OK;
    if (kept < 4)
        return;
    make_cache(c, isa, kept + kept / 2);
    tell(c, 0);
    for (; t < N; t += n) {
        n = N - 1 - t < 20 ? 1 : 20;
        status = append(c, 1, t, n);
        if (status != TOY_KV_OK)
            break;
    }
    expect(c, status == TOY_KV_E_FULL && t > SINK, "a full list is told");
    expect(c, toy_kv_n_tokens(c->kv, 1) == t, "no token of a refused step");
    expect(c, append(c, 1, t, n) == TOY_KV_E_FULL, "and again");
    if (t < N) {
        check_bound(c, 1);
        must(toy_kv_trim(c->kv, 0, 0), "trim");
        for (; t < N; t += n) {
            n = t == N - 1 ? 1 : N - 1 - t < 20 ? N - 1 - t : 20;
            must(append(c, 1, t, n), "append");
        }
        must(toy_kv_fork(c->kv, 1, 0), "fork");
        check_bound(c, 0);
        expect(c, in_use(c) == kept, "the same are kept in the end");
    }
    free(c->memory);
}

/* One token: its value. */
static void check_one_token(check *c)
{
    static float q[Q_HEADS * DIM], out[Q_HEADS * DIM];
    toy_kv_attention a = {0};
    a.top_tokens = TOY_KV_LANDMARKS > 0 ? 8 : 0;
    must(append(c, 2, 0, 1), "append");
    must(toy_kv_attend(c->kv, 2, 0, 1, q, out, &a, c->scratch, c->scratch_bytes), "attend");
    for (int i = 0; i < Q_HEADS * DIM; i++)
        expect(c, out[i] == input(c, 1, 0, 0, i / DIM / GROUP)[i % DIM], "attention to one token");
    must(toy_kv_trim(c->kv, 2, 0), "trim");
}

/* Whether attention works in bytes with this instruction set. */
static int in_bytes(int isa)
{
    return isa != TOY_KV_ISA_PORTABLE && isa != TOY_KV_ISA_NEON && BLOCK >= 64;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"auto", "portable", "avx2", "avx512", "neon", "neon-dot"};
    check c = {0};
    int failed = 0;
    c.rng.state = 5;
    fill(&c);
    c.scratch_bytes = toy_kv_scratch_size();
    c.scratch = need(c.scratch_bytes);
    for (int isa = TOY_KV_ISA_PORTABLE; isa <= TOY_KV_ISA_NEON_DOT; isa++) {
        if ((argc > 1 && strncmp(argv[1], names[isa], strlen(argv[1])) != 0) ||
            !toy_kv__has((toy_kv_isa)isa))
            continue;
        printf("%s\n", names[isa]);
        c.worst = c.compared = c.unsure = c.failed = 0;
        /* planted keys make scores six times as large, and so what is rounded of them */
        c.bound = in_bytes(isa) ? 3 * ATTEND_BOUND_BYTES : ATTEND_BOUND;
        make_cache(&c, isa, 0);
        tell(&c, 0);
        int kept = in_use(&c);
        check_bound(&c, 0);
        check_landmarks(&c);
        check_choices(&c);
        check_limits(&c);
        check_one_token(&c);
        check_copies(&c);
        free(c.memory);
        check_full(&c, isa, kept);
        printf("  %d outputs, largest error %.3g, %d choices unsure, %d broken\n", c.compared,
               c.worst, c.unsure, c.failed);
        failed |= c.failed > 0 || c.compared < 20 || c.unsure * 20 > c.compared;
    }
    free(c.scratch);
    free(c.part[0]);
    free(c.part[1]);
    return failed;
}
