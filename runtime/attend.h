/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

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
        for (i = 0; i < bytes; i += 64) {
            if (near)
                VQKV__PREFETCH(p + i, 3);
            else
                VQKV__PREFETCH(p + i, 2);
        }
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
            vqkv__fill_books(a);
            vqkv__fill_dots(a);
        }
        a->coded = 1;
        for (b = 0; b < n; b++) {
            vqkv__entry entry = a->blocks[j + b];
            int ahead = j + b + VQKV__AHEAD;
            float *scores = a->s + b * a->rows * VQKV_BLOCK;
            if (ahead < n_sealed)
                vqkv__prefetch(a, a->k_uses, a->n_k_uses, a->blocks[ahead].block, 1);
            vqkv__prefetch(a, a->v_uses, a->n_v_uses, entry.block, 0);
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
