/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

/* Blocks of rebuilt vectors that attention holds at once: what is absorbed of the other part is
 * collected as often, so not too few; and all heads of them should stay in a cache. */
#define VQKV__HELD_MOST (((size_t)1 << 18) / VQKV__NODE_FLOATS)
#define VQKV__HELD                                                                                 \
    (VQKV__HELD_MOST < 1 ? 1 : VQKV__HELD_MOST < VQKV__TILE ? (int)VQKV__HELD_MOST : VQKV__TILE)
/* Queries that meet a block while it is held. */
#define VQKV__QUERIES      32
#define VQKV__STATE_FLOATS VQKV__ROOM(2 * VQKV__QUERIES * VQKV_N_HEADS)
#define VQKV__HELD_FLOATS  (2 * (size_t)VQKV__HELD * VQKV__NODE_FLOATS)
#define VQKV__ATTEND_FLOATS                                                                        \
    (VQKV__PASS_FLOATS + VQKV__STATE_FLOATS +                                                      \
     (VQKV__REBUILDS ? VQKV__HELD_FLOATS + VQKV__REBUILD_FLOATS : 0))
#define VQKV__READ_FLOATS (VQKV__HEAD_FLOATS + VQKV__REBUILD_FLOATS)
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

/* Asks for the codes of a block: `near`, because they are wanted next. Streams lie apart, and where
 * the next block lies only the block table knows, so no hardware sees it coming. Inlined, or
 * gcc takes it for a function without effects. */
VQKV__INLINE void vqkv__prefetch(const vqkv__pass *a, const vqkv__use *uses, int n, int block,
                                 int near)
{
    int u, i;
    for (u = 0; u < n; u++) {
        const unsigned char *p = vqkv__codes(a->kv, uses[u].stream, block);
        int bytes = vqkv__streams[uses[u].stream].bytes;
        for (i = 0; i < bytes; i += 128) { /* one line too many does no harm */
            if (near) {
                VQKV__PREFETCH(p + i, 3);
                VQKV__PREFETCH(p + i + 64, 3);
            } else {
                VQKV__PREFETCH(p + i, 2);
                VQKV__PREFETCH(p + i + 64, 2);
            }
        }
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
            if (a->v_tile == NULL)
                vqkv__fill_books(a);
            if (a->k_tile == NULL)
                vqkv__fill_dots(a);
            if (a->batches)
                vqkv__fill_maps(a);
        }
        a->coded = 1;
        for (b = 0; b < n; b++) {
            vqkv__entry entry = a->blocks[j + b];
            int ahead = j + b + VQKV__AHEAD;
            float *scores = a->s + b * a->rows * VQKV_BLOCK;
            if (a->k_tile == NULL && ahead < n_sealed)
                vqkv__prefetch(a, a->k_uses, a->n_k_uses, a->blocks[ahead].block, 1);
            if (a->v_tile == NULL)
                vqkv__prefetch(a, a->v_uses, a->n_v_uses, entry.block, 0);
            if (a->k_tile != NULL) {
                a->ops->dense->score(vqkv__held(a, a->k_tile, j + b), a->q, a->rows, scores);
                continue;
            }
            if (a->batches && b % VQKV__MAP_BLOCKS == 0)
                vqkv__map_batch(a, a->blocks + j + b,
                                n - b < VQKV__MAP_BLOCKS ? n - b : VQKV__MAP_BLOCKS, previous);
            else if (a->k_frame == VQKV__BLOCKWISE && !a->batches)
                vqkv__turn_queries(a, entry.position, previous);
            if (a->batches)
                vqkv__fill_tables(a, a->mapped + (size_t)(b % VQKV__MAP_BLOCKS * a->rows) *
                                                     (size_t)a->map_columns);
            else if (a->k_frame == VQKV__BLOCKWISE || !ready)
                vqkv__fill_tables(a, NULL);
            vqkv__score_block(a, entry.block, scores);
            ready = 1;
            previous = a->batches && b % VQKV__MAP_BLOCKS != VQKV__MAP_BLOCKS - 1 ? previous
                                                                                  : entry.position;
        }
        seen = vqkv__soft_max(a, VQKV_N_SINK + j * VQKV_BLOCK, n * VQKV_BLOCK, 1);
        for (b = 0; b < n && seen && a->v_tile != NULL; b++)
            a->ops->dense->sum(vqkv__held(a, a->v_tile, j + b), a->s + b * a->rows * VQKV_BLOCK,
                               a->rows, a->acc, VQKV__MAX_SUM_LATENTS);
        if (seen && a->v_tile == NULL)
            vqkv__sum_tile(a, a->blocks + j, n, seen == 2);
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
    a->k_bytes = a->ops->bytes != NULL &&
                 (a->ops->bytes->map_words != NULL || a->k_frame != VQKV__BLOCKWISE);
    a->batches = a->k_tile == NULL && vqkv__maps_batches(a);
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
    if (a->coded && a->v_tile != NULL)
        vqkv__collect_held(a);
    else if (a->coded)
        vqkv__collect(a);
}

/* ---- heads, ranges, queries ---- */

/* Queries skip .. skip + n - 1 of the latest n_q tokens of a layer, over tokens first .. last - 1.
 */
typedef struct vqkv__job {
    const vqkv *kv;
    const vqkv__ops *ops;
    int seq, layer, n_q, skip, n, n_tokens, first, last, window;
    float scale, soft_cap;
    const float *q; /* [n_q, N_HEADS, HEAD_DIM] */
    float *scratch;
} vqkv__job;

/* Where partial results go: those of query i and the g-th head of its group at index i * step + g.
 */
typedef struct vqkv__result {
    float *m, *l, *o;
    size_t step;
} vqkv__result;

static inline size_t vqkv__result_row(const vqkv__result *out, int row)
{
    return (size_t)(row / VQKV_GROUP) * out->step + (size_t)(row % VQKV_GROUP);
}

/* Fails for arguments that are out of range. */
static vqkv_status vqkv__make_job(vqkv__job *job, const vqkv *kv, int seq, int layer, int n_q,
                                  const float *q, int first, int count,
                                  const vqkv_attention *attention, void *scratch,
                                  size_t scratch_bytes)
{
    int n_tokens;
    if (kv == NULL || q == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= VQKV_N_LAYERS || first < 0 || count < 0)
        return VQKV_E_ARGUMENT;
    n_tokens = vqkv__sequence(kv, seq)->n_tokens[layer];
    if (n_q < 1 || n_q > n_tokens)
        return VQKV_E_ARGUMENT;
    if (scratch == NULL || scratch_bytes < vqkv_scratch_size())
        return VQKV_E_SIZE;
    if ((uintptr_t)scratch % 64 != 0)
        return VQKV_E_ALIGNMENT;
    memset(job, 0, sizeof *job);
    job->kv = kv;
    job->ops = vqkv__select(kv->config.isa);
    job->seq = seq;
    job->layer = layer;
    job->n_q = job->n = n_q;
    job->n_tokens = n_tokens;
    job->first = first;
    job->last = first > n_tokens || count > n_tokens - first ? n_tokens : first + count;
    job->scale =
        attention != NULL && attention->scale != 0.0f ? attention->scale : VQKV_ATTENTION_SCALE;
    job->soft_cap = attention != NULL ? attention->soft_cap : 0.0f;
    job->window = attention != NULL ? attention->sliding_window : 0;
    job->q = q;
    job->scratch = (float *)scratch;
    return VQKV_OK;
}

/* The position of the i-th query of a job. */
static inline int vqkv__position(const vqkv__job *job, int i)
{
    return job->n_tokens - job->n_q + job->skip + i;
}

/* Adds one partial row to another. */
static void vqkv__merge_row(float *m, float *l, float *x, float m_more, float l_more,
                            const float *y)
{
    int d;
    float top = *m > m_more ? *m : m_more, a = expf(*m - top), b = expf(m_more - top);
    *m = top;
    *l = *l * a + l_more * b;
    for (d = 0; d < VQKV_HEAD_DIM; d++)
        x[d] = x[d] * a + y[d] * b;
}

/* All rows of one KV head over a range of tokens, added to what `out` holds of them. */
static void vqkv__attend_head(const vqkv__job *job, vqkv__pass *a, int head,
                              const vqkv__result *out)
{
    int row, r, d, rows = job->n * VQKV_GROUP, last = a->last;
    a->head = head;
    for (row = 0; row < rows; row += a->rows) {
        a->rows = rows - row < VQKV__PASS_ROWS ? rows - row : VQKV__PASS_ROWS;
        for (r = 0; r < a->rows; r++) {
            int query = job->skip + (row + r) / VQKV_GROUP;
            const float *src = job->q + ((size_t)query * VQKV_N_HEADS +
                                         (size_t)(head * VQKV_GROUP + (row + r) % VQKV_GROUP)) *
                                            VQKV_HEAD_DIM;
            a->position[r] = vqkv__position(job, (row + r) / VQKV_GROUP);
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                a->q[r * VQKV_HEAD_DIM + d] = src[d] * job->scale;
        }
        if (a->position[a->rows - 1] < last)
            a->last = a->position[a->rows - 1] + 1;
        vqkv__attend_rows(a);
        a->last = last;
        for (r = 0; r < a->rows; r++) {
            size_t at = vqkv__result_row(out, row + r);
            vqkv__merge_row(out->m + at, out->l + at, out->o + at * VQKV_HEAD_DIM, a->m[r], a->l[r],
                            a->o + r * VQKV_HEAD_DIM);
        }
    }
}

/* Rebuilds the blocks from j on that some query of the job sees, for n_heads heads. */
static void vqkv__hold_blocks(const vqkv__job *job, vqkv__pass *a, int j, int n_sealed, int head,
                              int n_heads, float *k, float *v)
{
    int b;
    float *room = job->scratch + VQKV__PASS_FLOATS + VQKV__STATE_FLOATS + VQKV__HELD_FLOATS;
    a->position[0] = vqkv__position(job, 0);
    a->tile_first = j;
    for (b = 0; b < VQKV__HELD && j + b < n_sealed; b++) {
        size_t at = (size_t)b * VQKV__NODE_FLOATS;
        if (vqkv__reaches(a, j + b))
            vqkv__rebuild(job->kv, job->ops, vqkv__blocks(job->kv, job->seq)[j + b], job->layer,
                          head, n_heads, room, k == NULL ? NULL : k + at,
                          v == NULL ? NULL : v + at);
    }
}

/* Some heads of a layer. Where its vectors must be rebuilt that is done once for all heads and
 * queries: blocks outside, heads inside. */
static void vqkv__attend_job(const vqkv__job *job, int head, int n_heads, vqkv__result out)
{
    vqkv__pass a;
    float *k = job->scratch + VQKV__PASS_FLOATS + VQKV__STATE_FLOATS;
    float *v = k + (size_t)VQKV__HELD * VQKV__NODE_FLOATS;
    int j, h, row, last = vqkv__position(job, job->n - 1) + 1;
    int n_sealed = vqkv__sequence(job->kv, job->seq)->n_sealed, step = VQKV__HELD;
    if (!vqkv__nodes[vqkv__node_at[VQKV_KEY * VQKV_N_LAYERS + job->layer]].rebuilt)
        k = NULL;
    if (!vqkv__nodes[vqkv__node_at[VQKV_VALUE * VQKV_N_LAYERS + job->layer]].rebuilt)
        v = NULL;
    if (k == NULL && v == NULL)
        step = n_sealed + 1;
    last = last < job->last ? last : job->last;
    memset(&a, 0, sizeof a);
    a.kv = job->kv;
    a.ops = job->ops;
    a.seq = job->seq;
    a.layer = job->layer;
    a.soft_cap = job->soft_cap;
    a.window = job->window;
    vqkv__carve(&a, job->scratch);
    for (h = 0; h < n_heads; h++)
        for (row = 0; row < job->n * VQKV_GROUP; row++) {
            size_t at = vqkv__result_row(&out, row) + (size_t)(h * VQKV_GROUP);
            out.m[at] = VQKV__MASKED;
            out.l[at] = 0.0f;
            memset(out.o + at * VQKV_HEAD_DIM, 0, sizeof(float) * VQKV_HEAD_DIM);
        }
    for (j = 0; j == 0 || j < n_sealed; j += step) {
        int from = VQKV_N_SINK + j * VQKV_BLOCK, to = from + step * VQKV_BLOCK;
        a.first = j == 0 || from < job->first ? job->first : from;
        a.last = j + step >= n_sealed || to > last ? last : to;
        if (a.first >= a.last)
            continue;
        if (k != NULL || v != NULL)
            vqkv__hold_blocks(job, &a, j, n_sealed, head, n_heads, k, v);
        for (h = 0; h < n_heads; h++) {
            vqkv__result rows = out;
            rows.m += h * VQKV_GROUP;
            rows.l += h * VQKV_GROUP;
            rows.o += (size_t)(h * VQKV_GROUP) * VQKV_HEAD_DIM;
            a.k_tile = k == NULL ? NULL : k + (size_t)h * VQKV__HEAD_FLOATS;
            a.v_tile = v == NULL ? NULL : v + (size_t)h * VQKV__HEAD_FLOATS;
            vqkv__attend_head(job, &a, head + h, &rows);
        }
    }
}

/* ---- what engines call ---- */

vqkv_status vqkv_attend_part(const vqkv *kv, int seq, int layer, int kv_head, int n_q,
                             const float *q, int first, int count, const vqkv_attention *attention,
                             vqkv_partial *partial, void *scratch, size_t scratch_bytes)
{
    vqkv__job job;
    vqkv__result out;
    vqkv_status status;
    if (partial == NULL || kv_head < 0 || kv_head >= VQKV_N_KV_HEADS)
        return VQKV_E_ARGUMENT;
    status = vqkv__make_job(&job, kv, seq, layer, n_q, q, first, count, attention, scratch,
                            scratch_bytes);
    if (status != VQKV_OK)
        return status;
    out.m = partial->m;
    out.l = partial->l;
    out.o = partial->o;
    out.step = VQKV_GROUP;
    vqkv__attend_job(&job, kv_head, 1, out);
    return VQKV_OK;
}

void vqkv_merge(vqkv_partial *into, const vqkv_partial *from, int rows)
{
    int r;
    for (r = 0; r < rows; r++)
        vqkv__merge_row(into->m + r, into->l + r, into->o + (size_t)r * VQKV_HEAD_DIM, from->m[r],
                        from->l[r], from->o + (size_t)r * VQKV_HEAD_DIM);
}

/* dst [HEAD_DIM] = o divided by l and the sink's share; dst may be o. */
static void vqkv__finish_row(float m, float l, const float *o, const float *sink, float *dst)
{
    int d;
    float shrink = 1.0f;
    if (sink != NULL) {
        float top = m > *sink ? m : *sink;
        shrink = expf(m - top);
        l = l * shrink + expf(*sink - top);
    }
    for (d = 0; d < VQKV_HEAD_DIM; d++)
        dst[d] = l > 0.0f ? o[d] * shrink / l : 0.0f;
}

void vqkv_finish(const vqkv_partial *partial, int kv_head, int n_q, const vqkv_attention *attention,
                 float *out)
{
    int row;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    for (row = 0; row < n_q * VQKV_GROUP; row++) {
        int head = kv_head * VQKV_GROUP + row % VQKV_GROUP;
        size_t at = (size_t)(row / VQKV_GROUP) * VQKV_N_HEADS + (size_t)head;
        vqkv__finish_row(partial->m[row], partial->l[row], partial->o + (size_t)row * VQKV_HEAD_DIM,
                         sinks != NULL ? sinks + head : NULL, out + at * VQKV_HEAD_DIM);
    }
}

vqkv_status vqkv_attend(const vqkv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const vqkv_attention *attention, void *scratch, size_t scratch_bytes)
{
    vqkv__job job;
    vqkv_status status;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    int i;
    if (out == NULL)
        return VQKV_E_ARGUMENT;
    status = vqkv__make_job(&job, kv, seq, layer, n_q, q, 0, INT32_MAX, attention, scratch,
                            scratch_bytes);
    for (i = 0; i < n_q && status == VQKV_OK; i += VQKV__QUERIES) {
        vqkv__result rows;
        int row;
        job.skip = i;
        job.n = n_q - i < VQKV__QUERIES ? n_q - i : VQKV__QUERIES;
        rows.m = job.scratch + VQKV__PASS_FLOATS;
        rows.l = rows.m + VQKV__QUERIES * VQKV_N_HEADS;
        rows.o = out + (size_t)i * VQKV_N_HEADS * VQKV_HEAD_DIM;
        rows.step = VQKV_N_HEADS;
        vqkv__attend_job(&job, 0, VQKV_N_KV_HEADS, rows);
        for (row = 0; row < job.n * VQKV_N_HEADS; row++) {
            float *o = rows.o + (size_t)row * VQKV_HEAD_DIM;
            vqkv__finish_row(rows.m[row], rows.l[row], o,
                             sinks != NULL ? sinks + row % VQKV_N_HEADS : NULL, o);
        }
    }
    return status;
}
