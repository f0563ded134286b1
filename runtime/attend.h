/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

/* The state of up to VQKV__MAX_ROWS queries of one KV head. All pointers lie in the scratch. A tile
 * is VQKV__TILE blocks: scores of all of them, one softmax, sums. Rows of a tile lie block by
 * block: [blocks, rows, BLOCK]. */
typedef struct vqkv__pass {
    const vqkv *kv;
    const vqkv__ops *ops;
    const vqkv__entry *blocks;
    int seq, layer, head, rows, first, last; /* tokens first .. last - 1 */
    int position[VQKV__MAX_ROWS];            /* of each query */
    float soft_cap;
    int window, coded; /* coded: some block was attended, so acc holds something */
    int in_bytes;      /* V streams are summed by byte kernels */
    const vqkv__use *k_uses, *v_uses;
    int n_k_uses, n_v_uses, k_frame;
    float *q;             /* [rows, HEAD_DIM], scaled */
    float *turned;        /* [rows, HEAD_DIM], in the frame of the block at hand */
    float *y;             /* [rows, MAX_LATENTS] query in latents */
    float *lut;           /* score tables of all K streams of the head */
    float *packed;        /* the same in bytes: vqkv__packed, then tables, for each run of planes */
    float *wide;          /* [rows, MAX_WIDE_LUT] score tables of wide codes */
    float *bins;          /* [rows, MAX_WIDE_BINS] sums of probability * gain for each wide code */
    float *book;          /* codewords of all V streams of the head: fp32, or bytes and scales */
    float *acc;           /* [rows, MAX_SUM_LATENTS, lanes] sums of probability * codeword * gain */
    float *s, *part;      /* [TILE, rows, BLOCK] */
    float *gain;          /* [BLOCK] */
    unsigned char *bytes; /* [2, TILE, rows, BLOCK] weights in 8 bits, and what is left of them */
    float *step, *cs;     /* angles of one block, and of the block at hand, [N_ROT] */
    float *tile;          /* [BLOCK, HEAD_DIM] and room to decode */
    float bias[VQKV__MAX_ROWS]; /* q . mean of the coded keys */
    float m[VQKV__MAX_ROWS], l[VQKV__MAX_ROWS], l_coded[VQKV__MAX_ROWS];
    float *o; /* [rows, HEAD_DIM] */
} vqkv__pass;

#define VQKV__TILE (512 / VQKV_BLOCK > 0 ? 512 / VQKV_BLOCK : 1)

/* Floats of scratch, in the order of carve() below; each part is rounded up to 16 floats. */
#define VQKV__ROOM(n)     (((size_t)(n) + 15u) / 16u * 16u)
#define VQKV__DECODE_ROOM (VQKV__MAX_LATENTS + VQKV_BLOCK * VQKV__MAX_GAINS)
/* Each run of planes has a head, up to three planes to fill a quad, and two bytes an entry. */
#define VQKV__PACKED_ROOM                                                                          \
    ((size_t)VQKV__MAX_RUNS * (sizeof(vqkv__packed) / 4 + (size_t)VQKV__MAX_ROWS * 24) +           \
     (size_t)VQKV__MAX_ROWS * VQKV__MAX_LUT / 2)
/* Tables and bins of wide codes may be large: so many rows share a pass that they stay within 1 MiB
 * where one row does. */
#define VQKV__MAX_WIDE (VQKV__MAX_WIDE_LUT + VQKV__MAX_WIDE_BINS)
#define VQKV__PASS_ROWS                                                                            \
    (VQKV__MAX_WIDE <= (1 << 18) / VQKV__MAX_ROWS ? VQKV__MAX_ROWS                                 \
     : VQKV__MAX_WIDE <= 1 << 16                  ? 4                                              \
     : VQKV__MAX_WIDE <= 1 << 17                  ? 2                                              \
                                                  : 1)
#define VQKV__TILE_FLOATS ((size_t)VQKV__TILE * VQKV__MAX_ROWS * VQKV_BLOCK)
#define VQKV__SCRATCH_FLOATS                                                                       \
    (VQKV__ROOM(VQKV__MAX_ROWS * VQKV_HEAD_DIM) * 3 +                                              \
     VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LATENTS) + VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LUT) + \
     VQKV__ROOM((size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_LUT) +                                    \
     VQKV__ROOM((size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_BINS) + VQKV__ROOM(VQKV__PACKED_ROOM) +   \
     VQKV__ROOM(VQKV__MAX_BOOK) +                                                                  \
     VQKV__ROOM((size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16) +                             \
     VQKV__ROOM(VQKV__TILE_FLOATS) * 2 + VQKV__ROOM(VQKV_BLOCK) +                                  \
     VQKV__ROOM(VQKV__TILE_FLOATS / 2) + VQKV__ROOM(VQKV_N_ROT + 1) * 2 +                          \
     VQKV__ROOM(VQKV_BLOCK * VQKV_HEAD_DIM) + VQKV__ROOM(VQKV__DECODE_ROOM))

static float *vqkv__take(float **room, size_t n)
{
    float *p = *room;
    *room += VQKV__ROOM(n);
    return p;
}

static void vqkv__carve(vqkv__pass *a, void *scratch)
{
    float *room = (float *)scratch;
    a->q = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->turned = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->o = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->y = vqkv__take(&room, VQKV__MAX_ROWS * VQKV__MAX_LATENTS);
    a->lut = vqkv__take(&room, VQKV__MAX_ROWS * VQKV__MAX_LUT);
    a->wide = vqkv__take(&room, (size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_LUT);
    a->bins = vqkv__take(&room, (size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_BINS);
    a->packed = vqkv__take(&room, VQKV__PACKED_ROOM);
    a->book = vqkv__take(&room, VQKV__MAX_BOOK);
    a->acc = vqkv__take(&room, (size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16);
    a->s = vqkv__take(&room, VQKV__TILE_FLOATS);
    a->part = vqkv__take(&room, VQKV__TILE_FLOATS);
    a->gain = vqkv__take(&room, VQKV_BLOCK);
    a->bytes = (unsigned char *)vqkv__take(&room, VQKV__TILE_FLOATS / 2);
    a->step = vqkv__take(&room, VQKV_N_ROT + 1);
    a->cs = vqkv__take(&room, VQKV_N_ROT + 1);
    a->tile = vqkv__take(&room, VQKV_BLOCK * VQKV_HEAD_DIM);
}

/* y [rows, n_latents] = dec' q for one member of a stream. */
static void vqkv__map_queries(vqkv__pass *a, const vqkv__stream *s, int member)
{
    int r, d, row = member * VQKV_HEAD_DIM;
    if (s->transform == VQKV__BASIS) {
        a->ops->map(vqkv__table(s->dec + row * s->n_latents), VQKV_HEAD_DIM, s->n_latents,
                    a->turned, VQKV_HEAD_DIM, a->rows, a->y);
        return;
    }
    memset(a->y, 0, sizeof(float) * (size_t)a->rows * (size_t)s->n_latents);
    for (r = 0; r < a->rows; r++) {
        float *y = a->y + (size_t)r * (size_t)s->n_latents;
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            y[row + d] = a->turned[r * VQKV_HEAD_DIM + d];
        if (s->transform == VQKV__HADAMARD)
            vqkv__hadamard(y, s->n_in);
    }
}

/* Whether run i of a stream goes on from the one before: the same gain, and nibbles both. */
static int vqkv__continues(const vqkv__stream *s, int i)
{
    const vqkv__run *run = &vqkv__runs[s->first_run + i];
    return i > 0 && i < s->n_runs && run[-1].gain == run->gain && run->coder == VQKV__NIBBLES &&
           run[-1].coder == VQKV__NIBBLES;
}

/* Score tables in fp32 of one run for the queries in a->y; returns their end. */
static float *vqkv__fill_run(vqkv__pass *a, const vqkv__stream *s, const vqkv__run *run, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++)
        for (r = 0; r < a->rows; r++) {
            const float *y =
                a->y + (size_t)r * (size_t)s->n_latents + run->first + p / run->stages * run->width;
            if (run->coder != VQKV__NIBBLES) {
                *lut++ = *y;
                continue;
            }
            a->ops->fill_table(vqkv__table(run->book + p / run->stages * run->book_step +
                                           p % run->stages * run->width * 16),
                               run->width, y, lut);
            lut += 16;
        }
    return lut;
}

/* Score tables of every K stream of the head for the queries as turned; also bias. Nibbles end up
 * in a->packed where there are byte kernels, else in a->lut like the others. */
static void vqkv__fill_tables(vqkv__pass *a)
{
    int u, i, r, planes = 0;
    float *lut = a->lut, *start = a->lut;
    size_t wide = 0;
    char *packed = (char *)a->packed;
    for (r = 0; r < a->rows; r++)
        a->bias[r] = 0.0f;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        int row = a->k_uses[u].member * VQKV_HEAD_DIM;
        vqkv__map_queries(a, s, a->k_uses[u].member);
        for (r = 0; r < a->rows && s->mean >= 0; r++)
            a->bias[r] += a->ops->dot_row(vqkv__table(s->mean + row), VQKV_HEAD_DIM,
                                          a->turned + r * VQKV_HEAD_DIM);
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            if (!vqkv__continues(s, i)) {
                start = lut;
                planes = 0;
            }
            if (run->coder == VQKV__WIDE) {
                for (r = 0; r < a->rows; r++)
                    vqkv__fill_wide(a->ops, run, a->y + (size_t)r * (size_t)s->n_latents,
                                    a->wide + (size_t)r * VQKV__MAX_WIDE_LUT + wide);
                wide += (size_t)run->planes << run->bits;
                continue;
            }
            lut = vqkv__fill_run(a, s, run, lut);
            planes += run->planes;
            if (a->ops->bytes != NULL && run->coder == VQKV__NIBBLES &&
                !vqkv__continues(s, i + 1)) {
                vqkv__packed *head = (vqkv__packed *)(void *)packed;
                packed += sizeof *head;
                packed +=
                    a->ops->bytes->pack_tables(start, planes, a->rows, head, (signed char *)packed);
                lut = start;
            }
        }
    }
}

/* Whether the head's V streams are summed in bytes: weights must not be negative then, as they are
 * with q4_0's gains. */
static int vqkv__sums_bytes(const vqkv__pass *a)
{
    int u;
    for (u = 0; u < a->n_v_uses; u++)
        if (vqkv__streams[a->v_uses[u].stream].gain == VQKV__SIGNMAX)
            return 0;
    return a->ops->bytes != NULL;
}

/* The codewords of every V stream of the head as the sums want them: fp32, or bytes with a scale
 * for each sixteen, which begin at a->book + MAX_BOOK / 2. */
static void vqkv__fill_books(vqkv__pass *a)
{
    int u, i, p, n;
    float *book = a->book, *scale = a->book + VQKV__MAX_BOOK / 2;
    signed char *bytes = (signed char *)a->book;
    for (u = 0; u < a->n_v_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            for (p = 0; p < run->planes && run->coder == VQKV__NIBBLES; p++) {
                float *dst = a->in_bytes ? a->lut : book;
                n = run->width * 16;
                memset(dst, 0, sizeof(float) * (size_t)n);
                a->ops->add_row(
                    vqkv__table(run->book + p / run->stages * run->book_step + p % run->stages * n),
                    n, 1.0f, dst);
                if (!a->in_bytes) {
                    book += n;
                    continue;
                }
                a->ops->bytes->pack_books(dst, run->width, bytes, scale);
                bytes += n;
                scale += run->width;
            }
        }
    }
}

/* s [rows, BLOCK] of a block through the score tables. */
static void vqkv__score_block(vqkv__pass *a, int block, float *scores)
{
    int u, i, r, t, planes = 0, first = 0;
    const float *lut = a->lut, *wide = a->wide;
    const char *packed = (const char *)a->packed;
    for (r = 0; r < a->rows; r++)
        for (t = 0; t < VQKV_BLOCK; t++)
            scores[r * VQKV_BLOCK + t] = a->bias[r];
    for (u = 0; u < a->n_k_uses; u++) {
        int stream = a->k_uses[u].stream;
        const vqkv__stream *s = &vqkv__streams[stream];
        const unsigned char *codes = vqkv__codes(a->kv, stream, block);
        float *dst = s->gain == VQKV__NO_GAIN ? scores : a->part;
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            int opens = i == 0 || run[-1].gain != run->gain;
            int closes = i == s->n_runs - 1 || run[1].gain != run->gain;
            if (dst == a->part && opens)
                memset(a->part, 0, sizeof(float) * (size_t)a->rows * VQKV_BLOCK);
            if (!vqkv__continues(s, i)) {
                planes = 0;
                first = run->codes;
            }
            planes += run->planes;
            if (run->coder == VQKV__WIDE) {
                vqkv__score_wide(run, codes + run->codes, wide, a->rows, dst);
                wide += (size_t)run->planes << run->bits;
            } else if (run->coder != VQKV__NIBBLES) {
                a->ops->score_scalars(codes + run->codes, run->planes, run->coder == VQKV__HALVES,
                                      lut, a->rows, dst);
                lut += run->planes * a->rows;
            } else if (a->ops->bytes == NULL) {
                a->ops->score_nibbles(codes + run->codes, run->planes, lut, a->rows, dst);
                lut += run->planes * a->rows * 16;
            } else if (!vqkv__continues(s, i + 1)) {
                const vqkv__packed *head = (const vqkv__packed *)(const void *)packed;
                packed += sizeof *head;
                a->ops->bytes->score(codes + first, planes, head, (const signed char *)packed,
                                     a->rows, dst);
                packed += (size_t)a->rows * 64 * (size_t)((planes + 3) / 4 + head->wide);
            }
            if (dst == a->part && closes) {
                vqkv__read_gains(a->ops, s, codes, run->gain, a->gain);
                a->ops->scale_rows(a->gain, a->part, a->rows, 1, scores);
            }
        }
    }
}

/* One run of a V stream over a tile, in fp32. p: weights [n, rows, BLOCK]. */
static void vqkv__sum_run(vqkv__pass *a, const unsigned char *const *codes, int n,
                          const vqkv__run *run, const float *book, const float *p, float *acc)
{
    int b;
    for (b = 0; b < n; b++, p += a->rows * VQKV_BLOCK) {
        if (run->coder == VQKV__NIBBLES)
            a->ops->sum_nibbles(codes[b] + run->codes, run->planes, run->stages, run->width, book,
                                p, a->rows, acc, VQKV__MAX_SUM_LATENTS);
        else
            a->ops->sum_scalars(codes[b] + run->codes, run->planes, run->coder == VQKV__HALVES, p,
                                a->rows, acc, VQKV__MAX_SUM_LATENTS);
    }
}

/* Adds probability * value of the n blocks of a tile, in latents. a->s holds the probabilities;
 * fine: one of them is so large that 8 bits would not do. */
static void vqkv__sum_tile(vqkv__pass *a, const vqkv__entry *entries, int n, int fine)
{
    const vqkv__byte_ops *ops = a->ops->bytes;
    const unsigned char *codes[VQKV__TILE];
    float scale[VQKV__MAX_ROWS], rest_scale[VQKV__MAX_ROWS];
    const float *book = a->book, *book_scale = a->book + VQKV__MAX_BOOK / 2;
    const signed char *book_bytes = (const signed char *)a->book;
    unsigned char *rest = a->bytes + VQKV__TILE_FLOATS;
    float *acc = a->acc, *bins = a->bins;
    int u, i, b, r, packed;
    for (u = 0; u < a->n_v_uses; u++) {
        int stream = a->v_uses[u].stream;
        const vqkv__stream *s = &vqkv__streams[stream];
        const float *p = a->s;
        packed = 0; /* the weights at hand are in a->bytes */
        for (b = 0; b < n; b++)
            codes[b] = vqkv__codes(a->kv, stream, entries[b].block);
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            float *dst = acc + (size_t)run->first * (size_t)a->ops->lanes;
            int opens = i == 0 || run[-1].gain != run->gain;
            if (s->gain != VQKV__NO_GAIN && opens) {
                for (b = 0; b < n; b++) {
                    int at = b * a->rows * VQKV_BLOCK;
                    vqkv__read_gains(a->ops, s, codes[b], run->gain, a->gain);
                    a->ops->scale_rows(a->gain, a->s + at, a->rows, 0, a->part + at);
                }
                p = a->part;
                packed = 0;
            }
            if (run->coder == VQKV__WIDE) {
                for (b = 0; b < n; b++)
                    vqkv__sum_wide(run, codes[b] + run->codes, p + b * a->rows * VQKV_BLOCK,
                                   a->rows, bins);
                bins += (size_t)run->planes << run->bits;
                continue;
            }
            if (run->coder != VQKV__NIBBLES || !a->in_bytes) {
                vqkv__sum_run(a, codes, n, run, book, p, dst);
                book += run->coder == VQKV__NIBBLES ? run->planes * run->width * 16 : 0;
                continue;
            }
            if (!packed) {
                ops->pack_weights(p, n, a->rows, a->bytes, fine ? rest : NULL, scale);
                for (r = 0; r < a->rows; r++)
                    rest_scale[r] = scale[r] / 255.0f;
                packed = 1;
            }
            ops->sum(codes, (size_t)run->codes, n, run, book_bytes, book_scale, a->bytes, scale,
                     a->rows, dst, VQKV__MAX_SUM_LATENTS);
            if (fine)
                ops->sum(codes, (size_t)run->codes, n, run, book_bytes, book_scale, rest,
                         rest_scale, a->rows, dst, VQKV__MAX_SUM_LATENTS);
            book_bytes += run->planes * run->width * 16;
            book_scale += run->planes * run->width;
        }
        acc += (size_t)s->n_latents * (size_t)a->ops->lanes;
    }
}

/* Which of the n tokens from `token` on a row sees: *from .. *to - 1, counted from `token`. */
static void vqkv__seen(const vqkv__pass *a, int r, int token, int n, int *from, int *to)
{
    *from = a->first;
    *to = a->last;
    if (a->window > 0 && *from < a->position[r] - a->window + 1)
        *from = a->position[r] - a->window + 1;
    if (*to > a->position[r] + 1)
        *to = a->position[r] + 1;
    *from = *from < token ? 0 : *from - token;
    *to = *to > token + n ? n : *to - token;
}

/* Soft cap and masks on one block of a row; tokens from .. to - 1 of it are seen. */
static void vqkv__mask(const vqkv__pass *a, float *s, int from, int to)
{
    int t;
    from = from < 0 ? 0 : from > VQKV_BLOCK ? VQKV_BLOCK : from;
    to = to < from ? from : to > VQKV_BLOCK ? VQKV_BLOCK : to;
    if (a->soft_cap > 0.0f)
        for (t = from; t < to; t++)
            s[t] = a->soft_cap * tanhf(s[t] / a->soft_cap);
    for (t = 0; t < from; t++)
        s[t] = VQKV__MASKED;
    for (t = to; t < VQKV_BLOCK; t++)
        s[t] = VQKV__MASKED;
}

/* Softmax of a->s over the n tokens from `token` on, in blocks; what was summed before is shrunk
 * where a row's maximum rises. Returns 0 if no row sees any of them, 2 if some probability is so
 * large a part of its row's sum that rounding it to 8 bits would show, else 1. */
static int vqkv__soft_max(vqkv__pass *a, int token, int n, int coded)
{
    int r, b, blocks = (n + VQKV_BLOCK - 1) / VQKV_BLOCK, seen = 0;
    for (r = 0; r < a->rows; r++) {
        float *s = a->s + r * VQKV_BLOCK, top = VQKV__MASKED, sum = 0.0f, shrink = 1.0f;
        int from, to, step = a->rows * VQKV_BLOCK;
        vqkv__seen(a, r, token, n, &from, &to);
        if (from >= to) {
            for (b = 0; b < blocks; b++)
                memset(s + b * step, 0, sizeof(float) * VQKV_BLOCK);
            continue;
        }
        for (b = 0; b < blocks; b++) {
            float high;
            if (a->soft_cap > 0.0f || from > b * VQKV_BLOCK || to < (b + 1) * VQKV_BLOCK)
                vqkv__mask(a, s + b * step, from - b * VQKV_BLOCK, to - b * VQKV_BLOCK);
            high = a->ops->largest(s + b * step, VQKV_BLOCK);
            top = high > top ? high : top;
        }
        if (top > a->m[r]) {
            shrink = a->m[r] > VQKV__MASKED ? expf(a->m[r] - top) : 0.0f;
            a->m[r] = top;
        }
        for (b = 0; b < blocks; b++)
            sum += a->ops->exponentials(s + b * step, VQKV_BLOCK, a->m[r]);
        if (shrink != 1.0f) {
            a->ops->shrink(a->o + r * VQKV_HEAD_DIM, VQKV_HEAD_DIM, shrink);
            if (a->coded)
                a->ops->shrink(a->acc + (size_t)r * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes,
                               VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes, shrink);
            if (a->coded)
                a->ops->shrink(a->bins + (size_t)r * VQKV__MAX_WIDE_BINS, VQKV__MAX_WIDE_BINS,
                               shrink);
        }
        a->l[r] = a->l[r] * shrink + sum;
        a->l_coded[r] = a->l_coded[r] * shrink + (coded ? sum : 0.0f);
        seen = seen > 1 || expf(top - a->m[r]) > VQKV__FINE * a->l[r] ? 2 : 1;
    }
    return seen;
}

/* Exact tokens token .. token + n - 1, n <= BLOCK and contiguous in memory. */
static void vqkv__attend_exact(vqkv__pass *a, int token, int n)
{
    int r, t;
    const unsigned char *k = vqkv__exact(a->kv, a->seq, a->layer, VQKV_KEY, a->head, token);
    const unsigned char *v = vqkv__exact(a->kv, a->seq, a->layer, VQKV_VALUE, a->head, token);
    for (t = 0; t < n; t++)
        for (r = 0; r < a->rows; r++)
            a->s[r * VQKV_BLOCK + t] = a->ops->dot_row(k + (size_t)t * VQKV_HEAD_DIM * 2,
                                                       VQKV_HEAD_DIM, a->q + r * VQKV_HEAD_DIM);
    if (!vqkv__soft_max(a, token, n, 0))
        return;
    for (t = 0; t < n; t++)
        for (r = 0; r < a->rows; r++)
            if (a->s[r * VQKV_BLOCK + t] != 0.0f)
                a->ops->add_row(v + (size_t)t * VQKV_HEAD_DIM * 2, VQKV_HEAD_DIM,
                                a->s[r * VQKV_BLOCK + t], a->o + r * VQKV_HEAD_DIM);
}

/* Turns the queries into the frame of a block at `position`. The angles go on from block to block
 * by one complex product a pair, and start afresh every 64 blocks. */
static void vqkv__turn_queries(vqkv__pass *a, int position, int previous)
{
    int i, r;
    if (previous < 0 || position != previous + VQKV_BLOCK || position / VQKV_BLOCK % 64 == 0) {
        vqkv__angles(position, a->cs);
    } else {
        for (i = 0; i < VQKV_N_ROT / 2; i++) {
            float c = a->cs[2 * i], s = a->cs[2 * i + 1];
            a->cs[2 * i] = c * a->step[2 * i] - s * a->step[2 * i + 1];
            a->cs[2 * i + 1] = s * a->step[2 * i] + c * a->step[2 * i + 1];
        }
    }
    for (r = 0; r < a->rows; r++)
        vqkv__turn(a->cs, -1.0f, a->q + r * VQKV_HEAD_DIM, a->turned + r * VQKV_HEAD_DIM);
}

/* s [rows, BLOCK] of a block whose keys must be rebuilt and rotated before they meet queries. */
static void vqkv__score_rebuilt(vqkv__pass *a, vqkv__entry entry, float *scores)
{
    int r, t, d;
    vqkv__decode_head(a->kv, a->ops, entry, VQKV_KEY, a->layer, a->head,
                      a->tile + VQKV__ROOM(VQKV_BLOCK * VQKV_HEAD_DIM), a->tile);
    for (r = 0; r < a->rows; r++)
        for (t = 0; t < VQKV_BLOCK; t++) {
            float sum = 0.0f;
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                sum += a->q[r * VQKV_HEAD_DIM + d] * a->tile[t * VQKV_HEAD_DIM + d];
            scores[r * VQKV_BLOCK + t] = sum;
        }
}

/* Whether any row may see tokens of block j. */
static int vqkv__reaches(const vqkv__pass *a, int j)
{
    int token = VQKV_N_SINK + j * VQKV_BLOCK;
    if (token + VQKV_BLOCK <= a->first || token >= a->last)
        return 0;
    return a->window <= 0 || token + VQKV_BLOCK > a->position[0] - a->window + 1;
}

static void vqkv__attend_blocks(vqkv__pass *a, int n_sealed)
{
    int j, b, n, previous = -1, ready = 0, seen;
    for (j = 0; j < n_sealed; j += n) {
        n = 1;
        if (!vqkv__reaches(a, j))
            continue;
        while (n < VQKV__TILE && j + n < n_sealed && vqkv__reaches(a, j + n))
            n++;
        if (!a->coded) {
            memset(a->acc, 0,
                   sizeof(float) * (size_t)a->rows * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes);
            memset(a->bins, 0, sizeof(float) * (size_t)a->rows * VQKV__MAX_WIDE_BINS);
            vqkv__fill_books(a);
        }
        a->coded = 1;
        for (b = 0; b < n; b++) {
            vqkv__entry entry = a->blocks[j + b];
            float *scores = a->s + b * a->rows * VQKV_BLOCK;
            if (a->k_frame == VQKV__PRE) {
                vqkv__score_rebuilt(a, entry, scores);
                continue;
            }
            if (a->k_frame == VQKV__BLOCKWISE)
                vqkv__turn_queries(a, entry.position, previous);
            if (a->k_frame == VQKV__BLOCKWISE || !ready)
                vqkv__fill_tables(a);
            vqkv__score_block(a, entry.block, scores);
            ready = 1;
            previous = entry.position;
        }
        seen = vqkv__soft_max(a, VQKV_N_SINK + j * VQKV_BLOCK, n * VQKV_BLOCK, 1);
        if (seen)
            vqkv__sum_tile(a, a->blocks + j, n, seen == 2);
    }
}

/* Adds dec * acc + mean of every V stream to o. */
static void vqkv__collect(vqkv__pass *a)
{
    int u, r, d, i;
    for (r = 0; r < a->rows; r++) {
        const float *acc = a->acc + (size_t)r * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes;
        const float *bins = a->bins + (size_t)r * VQKV__MAX_WIDE_BINS;
        float *o = a->o + r * VQKV_HEAD_DIM;
        for (u = 0; u < a->n_v_uses; u++) {
            const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
            int row = a->v_uses[u].member * VQKV_HEAD_DIM;
            a->ops->reduce(acc, s->n_latents, a->y);
            acc += (size_t)s->n_latents * (size_t)a->ops->lanes;
            for (i = s->first_run; i < s->first_run + s->n_runs; i++)
                if (vqkv__runs[i].coder == VQKV__WIDE)
                    bins = vqkv__collect_wide(a->ops, &vqkv__runs[i], bins, a->y);
            if (s->transform == VQKV__HADAMARD)
                vqkv__hadamard(a->y, s->n_in);
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                o[d] += s->transform == VQKV__BASIS
                            ? a->ops->dot_row(vqkv__table(s->dec + (row + d) * s->n_latents),
                                              s->n_latents, a->y)
                            : a->y[row + d];
            if (s->mean >= 0)
                a->ops->add_row(vqkv__table(s->mean + row), VQKV_HEAD_DIM, a->l_coded[r], o);
        }
    }
}

/* One pass for a->rows queries whose a->q, positions and range are set. */
static void vqkv__attend_rows(vqkv__pass *a)
{
    const vqkv__seq *q = vqkv__sequence(a->kv, a->seq);
    int r, t, n, coded = vqkv__n_coded(q), n_tokens = q->n_tokens[a->layer];
    for (r = 0; r < a->rows; r++) {
        a->m[r] = VQKV__MASKED;
        a->l[r] = a->l_coded[r] = 0.0f;
    }
    memset(a->o, 0, sizeof(float) * (size_t)a->rows * VQKV_HEAD_DIM);
    memcpy(a->turned, a->q, sizeof(float) * (size_t)a->rows * VQKV_HEAD_DIM);
    a->blocks = vqkv__blocks(a->kv, a->seq);
    a->k_uses = vqkv__uses_of(VQKV_KEY, a->layer, a->head, &a->n_k_uses);
    a->v_uses = vqkv__uses_of(VQKV_VALUE, a->layer, a->head, &a->n_v_uses);
    a->in_bytes = vqkv__sums_bytes(a);
    a->k_frame = vqkv__streams[a->k_uses[0].stream].frame;
    a->coded = 0;
    if (a->k_frame == VQKV__BLOCKWISE)
        vqkv__angles(VQKV_BLOCK, a->step);
    for (t = 0; t < VQKV_N_SINK && t < n_tokens; t += n) {
        n = (VQKV_N_SINK < n_tokens ? VQKV_N_SINK : n_tokens) - t;
        n = n > VQKV_BLOCK ? VQKV_BLOCK : n;
        if (t < a->last && t + n > a->first)
            vqkv__attend_exact(a, t, n);
    }
    vqkv__attend_blocks(a, q->n_sealed);
    for (t = coded; t < n_tokens; t += n) {
        n = n_tokens - t > VQKV_BLOCK ? VQKV_BLOCK : n_tokens - t; /* t is at a block's start */
        if (t < a->last && t + n > a->first)
            vqkv__attend_exact(a, t, n);
    }
    if (a->coded)
        vqkv__collect(a);
}

/* Queries skip .. skip + n - 1 of the latest n_q tokens; q and partial begin at query `skip`. */
static vqkv_status vqkv__attend_some(const vqkv *kv, int seq, int layer, int kv_head, int n_q,
                                     int skip, int n, const float *q, int first, int count,
                                     const vqkv_attention *attention, vqkv_partial *partial,
                                     void *scratch, size_t scratch_bytes)
{
    vqkv__pass a;
    int row, r, d, rows = n * VQKV_GROUP, n_tokens;
    float scale = VQKV_ATTENTION_SCALE;
    if (kv == NULL || q == NULL || partial == NULL || seq < 0 || seq >= kv->config.n_seq ||
        layer < 0 || layer >= VQKV_N_LAYERS || kv_head < 0 || kv_head >= VQKV_N_KV_HEADS ||
        first < 0 || count < 0)
        return VQKV_E_ARGUMENT;
    n_tokens = vqkv__sequence(kv, seq)->n_tokens[layer];
    if (n_q < 1 || n_q > n_tokens)
        return VQKV_E_ARGUMENT;
    if (scratch == NULL || scratch_bytes < vqkv_scratch_size())
        return VQKV_E_SIZE;
    if ((uintptr_t)scratch % 64 != 0)
        return VQKV_E_ALIGNMENT;
    if (attention != NULL && attention->scale != 0.0f)
        scale = attention->scale;
    memset(&a, 0, sizeof a);
    a.kv = kv;
    a.ops = vqkv__select(kv->config.isa);
    a.seq = seq;
    a.layer = layer;
    a.head = kv_head;
    a.first = first;
    a.last = first > n_tokens || count > n_tokens - first ? n_tokens : first + count;
    a.soft_cap = attention != NULL ? attention->soft_cap : 0.0f;
    a.window = attention != NULL ? attention->sliding_window : 0;
    vqkv__carve(&a, scratch);
    for (row = 0; row < rows; row += a.rows) {
        a.rows = rows - row < VQKV__PASS_ROWS ? rows - row : VQKV__PASS_ROWS;
        for (r = 0; r < a.rows; r++) {
            const float *src = q + ((size_t)((row + r) / VQKV_GROUP) * VQKV_N_HEADS +
                                    (size_t)(kv_head * VQKV_GROUP + (row + r) % VQKV_GROUP)) *
                                       VQKV_HEAD_DIM;
            a.position[r] = n_tokens - n_q + skip + (row + r) / VQKV_GROUP;
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                a.q[r * VQKV_HEAD_DIM + d] = src[d] * scale;
        }
        vqkv__attend_rows(&a);
        memcpy(partial->m + row, a.m, sizeof(float) * (size_t)a.rows);
        memcpy(partial->l + row, a.l, sizeof(float) * (size_t)a.rows);
        memcpy(partial->o + (size_t)row * VQKV_HEAD_DIM, a.o,
               sizeof(float) * (size_t)a.rows * VQKV_HEAD_DIM);
    }
    return VQKV_OK;
}

vqkv_status vqkv_attend_part(const vqkv *kv, int seq, int layer, int kv_head, int n_q,
                             const float *q, int first, int count, const vqkv_attention *attention,
                             vqkv_partial *partial, void *scratch, size_t scratch_bytes)
{
    return vqkv__attend_some(kv, seq, layer, kv_head, n_q, 0, n_q, q, first, count, attention,
                             partial, scratch, scratch_bytes);
}

void vqkv_merge(vqkv_partial *into, const vqkv_partial *from, int rows)
{
    int r, d;
    for (r = 0; r < rows; r++) {
        float top = into->m[r] > from->m[r] ? into->m[r] : from->m[r];
        float a = expf(into->m[r] - top), b = expf(from->m[r] - top);
        float *x = into->o + (size_t)r * VQKV_HEAD_DIM;
        const float *y = from->o + (size_t)r * VQKV_HEAD_DIM;
        into->m[r] = top;
        into->l[r] = into->l[r] * a + from->l[r] * b;
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            x[d] = x[d] * a + y[d] * b;
    }
}

void vqkv_finish(const vqkv_partial *partial, int kv_head, int n_q, const vqkv_attention *attention,
                 float *out)
{
    int row, d;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    for (row = 0; row < n_q * VQKV_GROUP; row++) {
        int head = kv_head * VQKV_GROUP + row % VQKV_GROUP;
        float l = partial->l[row], shrink = 1.0f;
        float *dst =
            out + ((size_t)(row / VQKV_GROUP) * VQKV_N_HEADS + (size_t)head) * VQKV_HEAD_DIM;
        if (sinks != NULL) {
            float top = partial->m[row] > sinks[head] ? partial->m[row] : sinks[head];
            shrink = expf(partial->m[row] - top);
            l = l * shrink + expf(sinks[head] - top);
        }
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            dst[d] =
                l > 0.0f ? partial->o[(size_t)row * VQKV_HEAD_DIM + (size_t)d] * shrink / l : 0.0f;
    }
}

vqkv_status vqkv_attend(const vqkv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const vqkv_attention *attention, void *scratch, size_t scratch_bytes)
{
    enum { STEP = VQKV__MAX_ROWS / VQKV_GROUP > 0 ? VQKV__MAX_ROWS / VQKV_GROUP : 1 };
    float m[STEP * VQKV_GROUP], l[STEP * VQKV_GROUP], o[STEP * VQKV_GROUP * VQKV_HEAD_DIM];
    vqkv_partial partial;
    vqkv_status status;
    int head, i;
    if (q == NULL || out == NULL || n_q < 1)
        return VQKV_E_ARGUMENT;
    partial.m = m;
    partial.l = l;
    partial.o = o;
    for (i = 0; i < n_q; i += STEP) {
        int n = n_q - i < STEP ? n_q - i : STEP;
        for (head = 0; head < VQKV_N_KV_HEADS; head++) {
            status = vqkv__attend_some(kv, seq, layer, head, n_q, i, n,
                                       q + (size_t)i * VQKV_N_HEADS * VQKV_HEAD_DIM, 0, INT32_MAX,
                                       attention, &partial, scratch, scratch_bytes);
            if (status != VQKV_OK)
                return status;
            vqkv_finish(&partial, head, n, attention,
                        out + (size_t)i * VQKV_N_HEADS * VQKV_HEAD_DIM);
        }
    }
    return VQKV_OK;
}
