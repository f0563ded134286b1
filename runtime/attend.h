/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

/* The state of up to VQKV__MAX_ROWS queries of one KV head. All pointers lie in the scratch. */
typedef struct vqkv__pass {
    const vqkv *kv;
    const vqkv__ops *ops;
    const vqkv__entry *blocks;
    int seq, layer, head, rows, first, last; /* tokens first .. last - 1 */
    int position[VQKV__MAX_ROWS];            /* of each query */
    float soft_cap;
    int window, coded; /* coded: some block was attended, so acc holds something */
    const vqkv__use *k_uses, *v_uses;
    int n_k_uses, n_v_uses, k_frame, lut_base;
    float *q;         /* [rows, HEAD_DIM], scaled */
    float *turned;    /* [rows, HEAD_DIM], in the frame of the block at hand */
    float *y;         /* [rows, MAX_LATENTS] query in latents */
    float *lut;       /* score tables of all K streams of the head */
    float *book;      /* codewords of all V streams of the head, fp32 */
    float *acc;       /* [rows, MAX_SUM_LATENTS, lanes] sums of probability * codeword * gain */
    float *s, *part;  /* [rows, BLOCK] */
    float *gain;      /* [BLOCK] */
    float *step, *cs; /* angles of one block, and of the block at hand, [N_ROT] */
    float *tile;      /* [BLOCK, HEAD_DIM] and room to decode */
    float bias[VQKV__MAX_ROWS]; /* q . mean of the coded keys */
    float m[VQKV__MAX_ROWS], l[VQKV__MAX_ROWS], l_coded[VQKV__MAX_ROWS];
    float *o; /* [rows, HEAD_DIM] */
} vqkv__pass;

/* Floats of scratch, in the order of carve() below; each part is rounded up to 16 floats. */
#define VQKV__ROOM(n)     (((size_t)(n) + 15u) / 16u * 16u)
#define VQKV__DECODE_ROOM (VQKV__MAX_LATENTS + VQKV_BLOCK * VQKV__MAX_GAINS)
#define VQKV__SCRATCH_FLOATS                                                                       \
    (VQKV__ROOM(VQKV__MAX_ROWS * VQKV_HEAD_DIM) * 3 +                                              \
     VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LATENTS) + VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LUT) + \
     VQKV__ROOM(VQKV__MAX_BOOK) +                                                                  \
     VQKV__ROOM((size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16) +                             \
     VQKV__ROOM(VQKV__MAX_ROWS * VQKV_BLOCK) * 2 + VQKV__ROOM(VQKV_BLOCK) +                        \
     VQKV__ROOM(VQKV_N_ROT + 1) * 2 + VQKV__ROOM(VQKV_BLOCK * VQKV_HEAD_DIM) +                     \
     VQKV__ROOM(VQKV__DECODE_ROOM))

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
    a->book = vqkv__take(&room, VQKV__MAX_BOOK);
    a->acc = vqkv__take(&room, (size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16);
    a->s = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_BLOCK);
    a->part = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_BLOCK);
    a->gain = vqkv__take(&room, VQKV_BLOCK);
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

/* Score tables of every K stream of the head for the queries as turned; also bias. */
static void vqkv__fill_tables(vqkv__pass *a)
{
    int u, i, p, r;
    float *lut = a->lut;
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
            for (p = 0; p < run->planes; p++)
                for (r = 0; r < a->rows; r++) {
                    const float *y = a->y + (size_t)r * (size_t)s->n_latents + run->first +
                                     p / run->stages * run->width;
                    if (run->coder != VQKV__NIBBLES) {
                        *lut++ = *y;
                        continue;
                    }
                    a->ops->fill_table(vqkv__table(run->book + p / run->stages * run->book_step +
                                                   p % run->stages * run->width * 16),
                                       run->width, y, lut);
                    lut += 16;
                }
        }
    }
}

/* The codewords of every V stream of the head in fp32, as the sums want them. */
static void vqkv__fill_books(vqkv__pass *a)
{
    int u, i, p, n;
    float *book = a->book;
    for (u = 0; u < a->n_v_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            for (p = 0; p < run->planes && run->coder == VQKV__NIBBLES; p++) {
                n = run->width * 16;
                memset(book, 0, sizeof(float) * (size_t)n);
                a->ops->add_row(
                    vqkv__table(run->book + p / run->stages * run->book_step + p % run->stages * n),
                    n, 1.0f, book);
                book += n;
            }
        }
    }
}

/* s [rows, BLOCK] of a block through the score tables. */
static void vqkv__score_block(vqkv__pass *a, int block)
{
    int u, i, r, t;
    const float *lut = a->lut;
    for (r = 0; r < a->rows; r++)
        for (t = 0; t < VQKV_BLOCK; t++)
            a->s[r * VQKV_BLOCK + t] = a->bias[r];
    for (u = 0; u < a->n_k_uses; u++) {
        int stream = a->k_uses[u].stream;
        const vqkv__stream *s = &vqkv__streams[stream];
        const unsigned char *codes = vqkv__codes(a->kv, stream, block);
        float *dst = s->gain == VQKV__NO_GAIN ? a->s : a->part;
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            int opens = i == 0 || run[-1].gain != run->gain;
            int closes = i == s->n_runs - 1 || run[1].gain != run->gain;
            if (dst == a->part && opens)
                memset(a->part, 0, sizeof(float) * (size_t)a->rows * VQKV_BLOCK);
            if (run->coder == VQKV__NIBBLES)
                a->ops->score_nibbles(codes + run->codes, run->planes, lut, a->rows, dst);
            else
                a->ops->score_scalars(codes + run->codes, run->planes, run->coder == VQKV__HALVES,
                                      lut, a->rows, dst);
            lut += run->planes * a->rows * (run->coder == VQKV__NIBBLES ? 16 : 1);
            if (dst == a->part && closes) {
                vqkv__read_gains(s, codes, run->gain, a->gain);
                a->ops->scale_rows(a->gain, a->part, a->rows, 1, a->s);
            }
        }
    }
}

/* Adds probability * value of a block, in latents. a->s holds the probabilities. */
static void vqkv__sum_block(vqkv__pass *a, int block)
{
    int u, i;
    const float *book = a->book;
    float *acc = a->acc;
    for (u = 0; u < a->n_v_uses; u++) {
        int stream = a->v_uses[u].stream;
        const vqkv__stream *s = &vqkv__streams[stream];
        const unsigned char *codes = vqkv__codes(a->kv, stream, block);
        const float *p = a->s;
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            float *dst = acc + (size_t)run->first * (size_t)a->ops->lanes;
            if (s->gain != VQKV__NO_GAIN && (i == 0 || run[-1].gain != run->gain)) {
                vqkv__read_gains(s, codes, run->gain, a->gain);
                a->ops->scale_rows(a->gain, a->s, a->rows, 0, a->part);
                p = a->part;
            }
            if (run->coder == VQKV__NIBBLES) {
                a->ops->sum_nibbles(codes + run->codes, run->planes, run->stages, run->width, book,
                                    p, a->rows, dst, VQKV__MAX_SUM_LATENTS);
                book += run->planes * run->width * 16;
            } else {
                a->ops->sum_scalars(codes + run->codes, run->planes, run->coder == VQKV__HALVES, p,
                                    a->rows, dst, VQKV__MAX_SUM_LATENTS);
            }
        }
        acc += (size_t)s->n_latents * (size_t)a->ops->lanes;
    }
}

/* Soft cap, masks and softmax of a->s over the n tokens from `token` on; what was summed before is
 * shrunk where a row's maximum rises. Returns 0 if no row sees any of them. */
static int vqkv__soft_max(vqkv__pass *a, int token, int n, int coded)
{
    int r, t, seen = 0;
    for (r = 0; r < a->rows; r++) {
        float *s = a->s + r * VQKV_BLOCK, shrink, sum;
        int from = a->first, to = a->last;
        if (a->window > 0 && from < a->position[r] - a->window + 1)
            from = a->position[r] - a->window + 1;
        if (to > a->position[r] + 1)
            to = a->position[r] + 1;
        from = from < token ? 0 : from - token;
        to = to > token + n ? n : to - token;
        if (from >= to) {
            memset(s, 0, sizeof(float) * VQKV_BLOCK);
            continue;
        }
        if (a->soft_cap > 0.0f)
            for (t = from; t < to; t++)
                s[t] = a->soft_cap * tanhf(s[t] / a->soft_cap);
        for (t = 0; t < from; t++)
            s[t] = VQKV__MASKED;
        for (t = to; t < VQKV_BLOCK; t++)
            s[t] = VQKV__MASKED;
        sum = a->ops->softmax(s, &a->m[r], &shrink);
        if (shrink != 1.0f) {
            a->ops->shrink(a->o + r * VQKV_HEAD_DIM, VQKV_HEAD_DIM, shrink);
            if (a->coded)
                a->ops->shrink(a->acc + (size_t)r * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes,
                               VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes, shrink);
        }
        a->l[r] = a->l[r] * shrink + sum;
        a->l_coded[r] = a->l_coded[r] * shrink + (coded ? sum : 0.0f);
        seen = 1;
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
static void vqkv__score_rebuilt(vqkv__pass *a, vqkv__entry entry)
{
    int r, t, d;
    vqkv__decode_head(a->kv, a->ops, entry, VQKV_KEY, a->layer, a->head,
                      a->tile + VQKV__ROOM(VQKV_BLOCK * VQKV_HEAD_DIM), a->tile);
    for (r = 0; r < a->rows; r++)
        for (t = 0; t < VQKV_BLOCK; t++) {
            float sum = 0.0f;
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                sum += a->q[r * VQKV_HEAD_DIM + d] * a->tile[t * VQKV_HEAD_DIM + d];
            a->s[r * VQKV_BLOCK + t] = sum;
        }
}

static void vqkv__attend_blocks(vqkv__pass *a, int n_sealed)
{
    int j, previous = -1, ready = 0;
    for (j = 0; j < n_sealed; j++) {
        int token = VQKV_N_SINK + j * VQKV_BLOCK;
        vqkv__entry entry = a->blocks[j];
        if (token + VQKV_BLOCK <= a->first || token >= a->last)
            continue;
        if (a->window > 0 && token + VQKV_BLOCK <= a->position[0] - a->window + 1)
            continue;
        if (!a->coded)
            memset(a->acc, 0,
                   sizeof(float) * (size_t)a->rows * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes);
        if (!a->coded)
            vqkv__fill_books(a);
        a->coded = 1;
        if (a->k_frame == VQKV__PRE) {
            vqkv__score_rebuilt(a, entry);
        } else {
            if (a->k_frame == VQKV__BLOCKWISE)
                vqkv__turn_queries(a, entry.position, previous);
            if (a->k_frame == VQKV__BLOCKWISE || !ready)
                vqkv__fill_tables(a);
            vqkv__score_block(a, entry.block);
        }
        ready = 1;
        previous = entry.position;
        if (vqkv__soft_max(a, token, VQKV_BLOCK, 1))
            vqkv__sum_block(a, entry.block);
    }
}

/* Adds dec * acc + mean of every V stream to o. */
static void vqkv__collect(vqkv__pass *a)
{
    int u, r, d;
    for (r = 0; r < a->rows; r++) {
        const float *acc = a->acc + (size_t)r * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes;
        float *o = a->o + r * VQKV_HEAD_DIM;
        for (u = 0; u < a->n_v_uses; u++) {
            const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
            int row = a->v_uses[u].member * VQKV_HEAD_DIM;
            a->ops->reduce(acc, s->n_latents, a->y);
            acc += (size_t)s->n_latents * (size_t)a->ops->lanes;
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
        a.rows = rows - row < VQKV__MAX_ROWS ? rows - row : VQKV__MAX_ROWS;
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
