/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

/* Blocks of rebuilt vectors that attention holds at once: what is absorbed of the other part is
 * collected as often, so not too few; and all heads of them should stay in a cache. */
#define VQKV__HELD_MOST (((size_t)1 << 18) / VQKV__NODE_FLOATS)
#define VQKV__HELD                                                                                 \
    (VQKV__HELD_MOST < 1 ? 1 : VQKV__HELD_MOST < VQKV__TILE ? (int)VQKV__HELD_MOST : VQKV__TILE)
/* Blocks that are scored together where they have the same score tables: few enough that their
 * scores stay in the first-level cache. */
#define VQKV__TOGETHER 2
/* The last tiles: what comes behind them is asked for while their values are summed in bytes. */
#define VQKV__LATER 3
/* Bytes of a stream's block that are asked for into the first-level cache: more would push out what
 * is at work. */
#define VQKV__MAX_NEAR 8192
/* Queries that meet a block while it is held. */
#define VQKV__QUERIES      32
#define VQKV__STATE_FLOATS VQKV__ROOM(2 * VQKV__QUERIES * VQKV_N_HEADS)
#define VQKV__HELD_FLOATS  (2 * (size_t)VQKV__HELD * VQKV__NODE_FLOATS)
/* Where chunks are chosen so many queries at a time that a head has one pass, and passes that a
 * head has, more than one where a group is larger than a pass. */
#define VQKV__CHOOSERS (VQKV__PASS_ROWS / VQKV_GROUP > 0 ? VQKV__PASS_ROWS / VQKV_GROUP : 1)
#define VQKV__CHOICES  ((VQKV__CHOOSERS * VQKV_GROUP + VQKV__PASS_ROWS - 1) / VQKV__PASS_ROWS)
#define VQKV__CHOICE_FLOATS                                                                        \
    (VQKV_LANDMARKS > 0                                                                            \
         ? VQKV__ROOM(sizeof(vqkv__choice) / 4 * VQKV_N_KV_HEADS * (size_t)VQKV__CHOICES)          \
         : 0)
#define VQKV__CHOICE_AT                                                                            \
    (VQKV__PASS_FLOATS + VQKV__STATE_FLOATS +                                                      \
     (VQKV__REBUILDS ? VQKV__ROOM(VQKV__HELD_FLOATS + VQKV__REBUILD_FLOATS) : 0))
#define VQKV__ATTEND_FLOATS (VQKV__CHOICE_AT + VQKV__CHOICE_FLOATS)
#define VQKV__READ_FLOATS   (VQKV__HEAD_FLOATS + VQKV__REBUILD_FLOATS)
#define VQKV__SCRATCH_FLOATS                                                                       \
    (VQKV__ATTEND_FLOATS > VQKV__READ_FLOATS ? VQKV__ATTEND_FLOATS : VQKV__READ_FLOATS)

/* Whether any row may see tokens of block j. */
static int vqkv__reaches(const vqkv__pass *a, int j)
{
    int token = VQKV_N_SINK + j * VQKV_BLOCK;
    if (token + VQKV_BLOCK <= a->first || token >= a->last)
        return 0;
    return a->window <= 0 || token + VQKV_BLOCK > a->position[0] - a->window + 1;
}

/* Gathers the next blocks from *j on that some row attends to into the tile; returns their number,
 * 0 behind the last. */
static int vqkv__next_tile(vqkv__pass *a, int n_sealed, int *j)
{
    int n = 0;
    for (; *j < n_sealed && n < VQKV__TILE; (*j)++) {
        if (!vqkv__reaches(a, *j) || (a->choice != NULL && !vqkv__picked(a->choice, *j)))
            continue;
        a->tile[n] = a->blocks[*j];
        a->tile_block[n] = *j;
        a->tile_token[n++] = VQKV_N_SINK + *j * VQKV_BLOCK;
    }
    return n;
}

/* Queues some bytes, if there is room. */
static inline int vqkv__piece(vqkv__ahead *q, int list, const unsigned char *p, int bytes)
{
    if (q->n[list] == VQKV__ASKED)
        return 0;
    q->first[list][q->n[list]] = p;
    q->last[list][q->n[list]++] = p + bytes;
    return 1;
}

/* An empty queue. */
static inline void vqkv__ask_nothing(const vqkv__pass *a, vqkv__ahead *q)
{
    const unsigned char *none = (const unsigned char *)a->s; /* any line will do */
    q->n[0] = q->n[1] = q->next[0] = q->next[1] = 0;
    q->now.keys = q->now.keys_end = q->now.values = q->now.values_end = none;
}

/* Queues what comes behind the coded blocks: the bases that sums are mapped back with, and the
 * exact tokens from `coded` on, which lie side by side, so that the hardware sees them coming where
 * there was no time to ask for all. */
static void vqkv__queue_later(vqkv__pass *a, int coded, int n_tokens)
{
    int t, n, u, part;
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        if (s->transform == VQKV__BASIS)
            vqkv__piece(&a->later, 1, vqkv__basis(s, s->dec, a->v_uses[u].member).values,
                        VQKV_HEAD_DIM * s->n_latents * s->basis_bytes);
    }
    for (t = coded; t < n_tokens && t < a->last; t += n) {
        n = n_tokens - t > VQKV_BLOCK ? VQKV_BLOCK : n_tokens - t; /* t is at a block's start */
        for (part = 0; part < 2; part++)
            vqkv__piece(
                &a->later, 1,
                vqkv__exact(a->kv, a->seq, a->layer, part ? VQKV_VALUE : VQKV_KEY, a->head, t),
                n * VQKV_HEAD_DIM * 2);
    }
    vqkv__go_ahead(&a->later);
}

/* Queues the codes of a block. Streams lie apart, and where the next block lies only the block
 * table knows, so no hardware sees it coming. What the queue has no room for is asked for at once.
 */
VQKV__INLINE void vqkv__queue(vqkv__pass *a, const vqkv__use *uses, int n,
                              const unsigned char *const *codes, int block, int far)
{
    vqkv__ahead *q = &a->ahead;
    int u, i;
    for (u = 0; u < n; u++) {
        const int bytes = vqkv__streams[uses[u].stream].bytes;
        const unsigned char *p = codes[u] + (size_t)bytes * (size_t)block;
        const int list = far || bytes > VQKV__MAX_NEAR;
        if (vqkv__piece(q, list, p, bytes))
            continue;
        for (i = 0; i < bytes; i += 64)
            VQKV__PREFETCH(p + i, 2);
    }
}

/* Queues what comes next while blocks b .. b + m - 1 of the tile's n are scored: codes of keys some
 * blocks ahead, and those of these blocks' values. Inlined as well. */
VQKV__INLINE void vqkv__queue_blocks(vqkv__pass *a, int b, int m, int n, int n_sealed)
{
    vqkv__ask_nothing(a, &a->ahead);
    for (; m > 0; m--, b++) {
        /* behind the tile the next blocks are a guess, right unless chunks were chosen */
        int over = b + VQKV__AHEAD - (n - 1);
        int ahead = over > 0 ? a->tile_block[n - 1] + over : a->tile_block[b + VQKV__AHEAD];
        if (a->k_tile == NULL && ahead < n_sealed)
            vqkv__queue(a, a->k_uses, a->n_k_uses, a->k_codes, a->blocks[ahead].block, 0);
        if (a->v_tile == NULL)
            vqkv__queue(a, a->v_uses, a->n_v_uses, a->v_codes, a->tile[b].block, 1);
    }
    vqkv__go_ahead(&a->ahead);
}

/* Asks for what the kernels have left in the queue. */
VQKV__INLINE void vqkv__ask_rest(vqkv__ahead *q)
{
    vqkv__asked now = q->now;
    for (; now.keys < now.keys_end || now.values < now.values_end; now = q->now) {
        for (; now.keys < now.keys_end; now.keys += 64)
            VQKV__PREFETCH(now.keys, 3);
        for (; now.values < now.values_end; now.values += 64)
            VQKV__PREFETCH(now.values, 2);
        q->now = now;
        vqkv__go_ahead(q);
    }
}

/* A rebuilt block: [HEAD_DIM, BLOCK]. */
static inline const float *vqkv__held(const vqkv__pass *a, const float *tile, int j)
{
    return tile + (size_t)(j - a->tile_first) * VQKV__NODE_FLOATS;
}

/* Adds the sums over rebuilt values to o. */
static void vqkv__collect_held(vqkv__pass *a)
{
    int r, d;
    for (r = 0; r < a->rows; r++) {
        const float *acc = a->acc + (size_t)r * VQKV__MAX_SUM_LATENTS * (size_t)a->ops->lanes;
        a->ops->reduce(acc, VQKV_HEAD_DIM, a->turned);
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            a->o[r * VQKV_HEAD_DIM + d] += a->turned[d];
    }
}

static void vqkv__attend_blocks(vqkv__pass *a, int n_sealed, int n_tokens)
{
    int j = 0, b, k, m, n, previous = -1, ready = 0, seen, batch = 0, batch_end, later = 0;
    vqkv__ask_nothing(a, &a->later);
    while ((n = vqkv__next_tile(a, n_sealed, &j)) > 0) {
        batch_end = 0;
        if (!a->coded) {
            vqkv__begin_sums(a);
            if (a->v_tile == NULL)
                vqkv__fill_books(a);
            if (a->k_tile == NULL)
                vqkv__fill_dots(a);
            if (a->batches)
                vqkv__fill_maps(a);
        }
        a->coded = 1;
        for (b = 0; b < a->rows * a->ops->lanes; b++)
            a->high[b] = VQKV__MASKED;
        for (b = 0; b < n; b += m) {
            vqkv__entry entry = a->tile[b];
            float *scores = a->s + b * a->rows * VQKV_BLOCK;
            m = a->k_frame == VQKV__BLOCKWISE || a->k_tile != NULL ? 1
                : n - b < VQKV__TOGETHER                           ? n - b
                                                                   : VQKV__TOGETHER;
            vqkv__queue_blocks(a, b, m, n, n_sealed);
            if (a->k_tile != NULL) {
                a->ops->dense->score_tile(vqkv__held(a, a->k_tile, a->tile_block[b]), a->q, a->rows,
                                          scores);
                vqkv__ask_rest(&a->ahead);
                continue;
            }
            if (a->batches) {
                if (b >= batch_end) {
                    batch = b;
                    batch_end = b + vqkv__map_batch(a, a->tile + b, n - b, previous);
                    previous = a->tile[batch_end - 1].position;
                }
                vqkv__fill_mapped(a, a->mapped +
                                         (size_t)((b - batch) * a->rows) * vqkv__map_stride(a, 1));
            } else if (a->k_frame == VQKV__BLOCKWISE || !ready) {
                if (a->k_frame == VQKV__BLOCKWISE)
                    vqkv__turn_queries(a, entry.position, previous);
                vqkv__fill_tables(a);
                previous = entry.position;
            }
            if (!a->asks)
                vqkv__ask_rest(&a->ahead);
            vqkv__score_blocks(a, a->tile + b, m, scores);
            vqkv__ask_rest(&a->ahead);
            for (k = 0; k < m && VQKV__KEEPS; k++)
                vqkv__score_kept(a->kv, a->ops, a->layer, a->head, a->tile[b + k].block, a->q,
                                 a->rows, scores + k * a->rows * VQKV_BLOCK);
            ready = 1;
        }
        if (!later && n_sealed - j <= VQKV__LATER * VQKV__TILE) {
            vqkv__queue_later(a, VQKV_N_SINK + n_sealed * VQKV_BLOCK, n_tokens);
            later = 1;
        }
        seen = vqkv__soft_max(a, n, VQKV_BLOCK, 1, vqkv__open(a, n));
        for (b = 0; b < n && seen && a->v_tile == NULL && VQKV__KEEPS; b++)
            vqkv__sum_kept(a->kv, a->ops, a->layer, a->head, a->tile[b].block, a->rows,
                           a->s + b * a->rows * VQKV_BLOCK, a->l_coded, a->o);
        for (b = 0; b < n && seen && a->v_tile != NULL; b++)
            a->ops->dense->sum_tile(vqkv__held(a, a->v_tile, a->tile_block[b]),
                                    a->s + b * a->rows * VQKV_BLOCK, a->rows, a->acc,
                                    VQKV__MAX_SUM_LATENTS);
        if (seen && a->v_tile == NULL)
            vqkv__sum_tile(a, a->tile, n, seen == 2);
    }
}

/* Where the codes of the head's streams begin, of those that are absorbed. */
static void vqkv__find_codes(vqkv__pass *a)
{
    int u;
    for (u = 0; u < a->n_k_uses && a->k_tile == NULL; u++)
        a->k_codes[u] = vqkv__codes(a->kv, a->k_uses[u].stream, 0);
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++)
        a->v_codes[u] = vqkv__codes(a->kv, a->v_uses[u].stream, 0);
}

VQKV__INLINE void vqkv__ask_bytes(const unsigned char *p, int n)
{
    int i;
    for (i = 0; i < n; i += 64)
        VQKV__PREFETCH(p + i, 2);
}

/* Asks for what the pass begins with: the bases that queries are mapped with, the codebooks of
 * values. Inlined, or gcc takes it for a function without effects. */
VQKV__INLINE void vqkv__ask_tables(const vqkv__pass *a)
{
    int u, i;
    for (u = 0; u < a->n_k_uses && a->k_tile == NULL; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        if (s->transform == VQKV__BASIS)
            vqkv__ask_bytes(vqkv__basis(s, s->dec, a->k_uses[u].member).values,
                            VQKV_HEAD_DIM * s->n_latents * s->basis_bytes);
    }
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++) {
        const vqkv__stream *s = &vqkv__streams[a->v_uses[u].stream];
        for (i = s->first_run; i < s->first_run + s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[i];
            if (run->coder == VQKV__NIBBLES)
                vqkv__ask_bytes(vqkv__table(run->book),
                                (run->book_step != 0 ? run->planes : run->stages) * run->width *
                                    32);
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
    a->in_lanes = vqkv__sums_lanes(a);
    a->k_frame = vqkv__streams[a->k_uses[0].stream].frame;
    a->batches = a->k_tile == NULL && vqkv__maps_batches(a);
    a->k_bytes = vqkv__scores_bytes(a);
    a->steady_number = -1;
    vqkv__find_codes(a);
    if (q->n_sealed > 0 && a->first < coded)
        vqkv__ask_tables(a);
    if (a->k_tile == NULL)
        vqkv__plan_steps(a);
    a->asks = vqkv__asks(a);
    a->scoring[1] = a->scoring[0];
    a->coded = 0;
    if (a->k_frame == VQKV__BLOCKWISE)
        vqkv__span_angles(a->step);
    for (t = 0; t < VQKV_N_SINK && t < n_tokens; t += n) {
        n = (VQKV_N_SINK < n_tokens ? VQKV_N_SINK : n_tokens) - t;
        n = n > VQKV_BLOCK ? VQKV_BLOCK : n;
        if (t < a->last && t + n > a->first)
            vqkv__attend_exact(a, t, n);
    }
    vqkv__attend_blocks(a, q->n_sealed, n_tokens);
    for (t = coded; t < n_tokens; t += n) {
        n = n_tokens - t > VQKV_BLOCK ? VQKV_BLOCK : n_tokens - t; /* t is at a block's start */
        if (t < a->last && t + n > a->first)
            vqkv__attend_exact(a, t, n);
    }
    if (a->coded && a->v_tile != NULL)
        vqkv__collect_held(a);
    else if (a->coded)
        vqkv__collect(a);
}
