/* Coded blocks whose vectors are never rebuilt: scores are looked up for queries in latents,
 * probabilities are summed in latents and mapped back once. */

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

/* Whether some of them are summed in fp32, lane by lane. */
static int vqkv__sums_lanes(const vqkv__pass *a)
{
    int u, i;
    for (u = 0; u < a->n_v_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        for (i = s->first_run; i < s->first_run + s->n_runs; i++)
            if (vqkv__runs[i].coder != VQKV__WIDE &&
                !(a->in_bytes && vqkv__runs[i].coder == VQKV__NIBBLES))
                return 1;
    }
    return a->v_tile != NULL;
}

/* Makes room for sums of coded values: nothing is summed yet. */
static void vqkv__begin_sums(const vqkv__pass *a)
{
    const size_t rows = sizeof(float) * (size_t)a->rows;
    memset(a->sums, 0, rows * VQKV__MAX_SUM_LATENTS);
    if (a->in_lanes)
        memset(a->acc, 0, rows * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes);
    memset(a->bins, 0, rows * VQKV__MAX_WIDE_BINS);
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
            /* planes whose codewords lie side by side are taken together */
            const int each = run->book_step == run->stages * run->width * 16 ? run->planes : 1;
            for (p = 0; p < run->planes && run->coder == VQKV__NIBBLES; p += each) {
                const unsigned char *from =
                    vqkv__table(run->book + p / run->stages * run->book_step +
                                p % run->stages * run->width * 16);
                n = each * run->width;
                if (a->in_bytes) {
                    a->ops->bytes->pack_books(from, n, bytes, scale);
                    bytes += n * 16;
                    scale += n;
                    continue;
                }
                memset(book, 0, sizeof(float) * (size_t)(n * 16));
                a->ops->add_row(from, n * 16, 1.0f, book);
                book += n * 16;
            }
        }
    }
}

/* Goes on to the next streams where all of one is asked for. */
static void vqkv__go_ahead(vqkv__ahead *q)
{
    if (q->now.keys >= q->now.keys_end && q->next[0] < q->n[0]) {
        q->now.keys = q->first[0][q->next[0]];
        q->now.keys_end = q->last[0][q->next[0]++];
    }
    if (q->now.values >= q->now.values_end && q->next[1] < q->n[1]) {
        q->now.values = q->first[1][q->next[1]];
        q->now.values_end = q->last[1][q->next[1]++];
    }
}

/* Scores of one step that no byte kernel takes, added to a->part [n, rows, BLOCK]. */
static void vqkv__score_run(vqkv__pass *a, const unsigned char *const *codes, int n,
                            const vqkv__run *run, const float *lut)
{
    int b, nibbles = run->coder == VQKV__NIBBLES;
    float *s = a->part;
    for (b = 0; b < n; b++, s += a->rows * VQKV_BLOCK) {
        if (nibbles)
            a->ops->score_nibbles(codes[b] + run->codes, run->planes, lut, a->rows, s);
        else
            a->ops->score_scalars(codes[b] + run->codes, run->planes, run->coder == VQKV__HALVES,
                                  lut, a->rows, &a->ahead.now, s);
        vqkv__go_ahead(&a->ahead);
    }
}

/* The gains of n blocks for one group of latents of a stream: a->gain [n, BLOCK]. */
static void vqkv__read_tile(vqkv__pass *a, const vqkv__stream *s, const unsigned char *const *codes,
                            int n, int group)
{
    int b;
    for (b = 0; b < n; b++)
        vqkv__read_gains(a->ops, s, codes[b], group, a->gain + b * VQKV_BLOCK);
}

/* Where a stream's codes of n blocks begin, those of block 0 at `from`. */
static inline void vqkv__codes_of(const unsigned char *from, const vqkv__stream *s,
                                  const vqkv__entry *entries, int n, const unsigned char **codes)
{
    int b;
    for (b = 0; b < n; b++)
        codes[b] = from + (size_t)s->bytes * (size_t)entries[b].block;
}

/* scores [n, rows, BLOCK] of n blocks through the same score tables. What runs of one gain add up
 * to is set by the first of them, or begins at 0 where its kernel can only add. */
static void vqkv__score_blocks(vqkv__pass *a, const vqkv__entry *entries, int n, float *scores)
{
    int b, add = 0;
    const int size = a->rows * VQKV_BLOCK;
    const float *bias = a->bias;
    const vqkv__byte_ops *ops = a->ops->bytes;
    const vqkv__step *step, *end = a->steps + a->n_steps;
    const unsigned char *codes[VQKV__TILE];
    for (step = a->steps; step < end; step++) {
        const vqkv__run *run = step->run;
        const vqkv__scoring *by = &step->at;
        if (step->first) {
            add = 0;
            vqkv__codes_of(a->k_codes[step->use], step->stream, entries, n, codes);
        }
        if (!add && step->kernel > VQKV__BY_PACKED)
            memset(a->part, 0, sizeof(float) * (size_t)(n * size));
        switch (step->kernel) {
        case VQKV__BY_DOTS:
            ops->dot_scores(codes, (size_t)run->codes, n, run, by->table, by->lanes, by->unit,
                            a->rows, add, &a->ahead.now, a->part);
            vqkv__go_ahead(&a->ahead);
            break;
        case VQKV__BY_FILLED:
        case VQKV__BY_PACKED: {
            const vqkv__packed *head = (const vqkv__packed *)(const void *)by->packed;
            ops->score_bytes(codes, (size_t)run->codes, n, step->planes, head,
                             (const signed char *)(head + 1), a->rows, add, &a->ahead.now, a->part);
            vqkv__go_ahead(&a->ahead);
            break;
        }
        case VQKV__BY_WIDE:
            for (b = 0; b < n; b++)
                vqkv__score_wide(run, codes[b] + run->codes, by->wide, a->rows, a->part + b * size);
            break;
        default:
            vqkv__score_run(a, codes, n, run, by->lut);
        }
        add = 1;
        if (!step->last)
            continue;
        vqkv__read_tile(a, step->stream, codes, n, run->gain);
        for (b = 0; b < n; b++)
            a->ops->gain_scores(a->gain + b * VQKV_BLOCK, a->part + b * size, bias, a->rows,
                                scores + b * size, step + 1 < end ? NULL : a->high);
        bias = NULL;
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

/* a->part [n, rows, BLOCK] = the probabilities times the gains at hand. */
static void vqkv__scale_tile(vqkv__pass *a, int n)
{
    int b, step = a->rows * VQKV_BLOCK;
    for (b = 0; b < n; b++)
        a->ops->scale_rows(a->gain + b * VQKV_BLOCK, a->s + b * step, a->rows, a->part + b * step);
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
    float *bins = a->bins;
    size_t first = 0;                       /* latent of the stream at hand */
    int u, i, b, r, packed = 0, scaled = 0; /* the weights at hand are in a->bytes, in a->part */
    for (u = 0; u < a->n_v_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        vqkv__codes_of(a->v_codes[u], s, entries, n, codes);
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            const size_t latent = first + (size_t)run->first;
            int in_bytes = run->coder == VQKV__NIBBLES && a->in_bytes;
            if (i == 0 || run[-1].gain != run->gain) {
                vqkv__read_tile(a, s, codes, n, run->gain);
                packed = scaled = 0;
            }
            if (!in_bytes && !scaled) {
                vqkv__scale_tile(a, n);
                scaled = 1;
            }
            if (run->coder == VQKV__WIDE) {
                for (b = 0; b < n; b++)
                    vqkv__sum_wide(run, codes[b] + run->codes, a->part + b * a->rows * VQKV_BLOCK,
                                   a->rows, bins);
                bins += (size_t)run->planes << run->bits;
                continue;
            }
            if (!in_bytes) {
                vqkv__sum_run(a, codes, n, run, book, a->part,
                              a->acc + latent * (size_t)a->ops->lanes);
                book += run->coder == VQKV__NIBBLES ? run->planes * run->width * 16 : 0;
                continue;
            }
            if (!packed) {
                ops->pack_weights(a->s, a->gain, n, a->rows, a->bytes, fine ? rest : NULL, scale);
                for (r = 0; r < a->rows; r++)
                    rest_scale[r] = scale[r] / ops->rest;
                packed = 1;
            }
            ops->sum_bytes(codes, (size_t)run->codes, n, run, book_bytes, book_scale, a->bytes,
                           scale, a->rows, &a->later.now, a->sums + latent, VQKV__MAX_SUM_LATENTS);
            vqkv__go_ahead(&a->later);
            if (fine)
                ops->sum_bytes(codes, (size_t)run->codes, n, run, book_bytes, book_scale, rest,
                               rest_scale, a->rows, &a->later.now, a->sums + latent,
                               VQKV__MAX_SUM_LATENTS);
            book_bytes += run->planes * run->width * 16;
            book_scale += run->planes * run->width;
        }
        first += (size_t)s->n_latents;
    }
}

/* y [rows, n_latents] = what was summed of one V stream, whose sums begin at latent `first` and bin
 * `bin`; returns the bin behind it. */
static size_t vqkv__collect_latents(vqkv__pass *a, const vqkv__stream *s, size_t first, size_t bin)
{
    const float *end = a->bins + bin;
    int r, i;
    for (r = 0; r < a->rows; r++) {
        float *y = a->y + (size_t)r * (size_t)s->n_latents;
        const float *bins = a->bins + (size_t)r * VQKV__MAX_WIDE_BINS + bin;
        const size_t at = (size_t)r * VQKV__MAX_SUM_LATENTS + first;
        if (a->in_lanes)
            a->ops->reduce(a->acc + at * (size_t)a->ops->lanes, s->n_latents, y);
        for (i = 0; i < s->n_latents; i++)
            y[i] = a->sums[at + (size_t)i] + (a->in_lanes ? y[i] : 0.0f);
        for (i = s->first_run; i < s->first_run + s->n_runs; i++)
            if (vqkv__runs[i].coder == VQKV__WIDE)
                bins = vqkv__collect_wide(a->ops, &vqkv__runs[i], bins, y);
        if (s->transform == VQKV__HADAMARD)
            vqkv__hadamard(y, s->n_in);
        if (r == 0)
            end = bins;
    }
    return (size_t)(end - a->bins);
}

/* Adds dec * acc + mean of every V stream to o. */
static void vqkv__collect(vqkv__pass *a)
{
    int u, r, d;
    size_t first = 0, bin = 0;
    for (u = 0; u < a->n_v_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        int row = a->v_uses[u].member * VQKV_HEAD_DIM;
        bin = vqkv__collect_latents(a, s, first, bin);
        first += (size_t)s->n_latents;
        if (s->transform == VQKV__BASIS)
            a->ops->unmap(vqkv__basis(s, s->dec, a->v_uses[u].member), VQKV_HEAD_DIM, s->n_latents,
                          a->y, a->rows, a->o);
        for (r = 0; r < a->rows; r++) {
            float *o = a->o + r * VQKV_HEAD_DIM;
            const float *y = a->y + (size_t)r * (size_t)s->n_latents + row;
            for (d = 0; d < VQKV_HEAD_DIM && s->transform != VQKV__BASIS; d++)
                o[d] += y[d];
            if (s->mean >= 0)
                a->ops->add_row(vqkv__table(s->mean + row), VQKV_HEAD_DIM, a->l_coded[r], o);
        }
    }
}
