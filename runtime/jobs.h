/* Attention as engines ask for it: heads, ranges of tokens and queries, pass by pass. */

/* Queries skip .. skip + n - 1 of the latest n_q tokens of a layer, over tokens first .. last - 1.
 */
typedef struct vqkv__job {
    const vqkv *kv;
    const vqkv__ops *ops;
    int seq, layer, n_q, skip, n, n_tokens, first, last, window;
    int n_top, n_outliers; /* chunks to choose; n_top 0: all are attended */
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

/* How many chunks to choose. Fails for arguments that are out of range. */
static vqkv_status vqkv__limit_chunks(vqkv__job *job, const vqkv_attention *attention)
{
    int top = attention != NULL ? attention->top_tokens : 0, first, last;
    if (top == 0)
        return VQKV_OK;
    if (VQKV_LANDMARKS == 0 || top < 0 || top > VQKV_MAX_TOP_TOKENS ||
        attention->outlier_chunks > VQKV_MAX_OUTLIER_CHUNKS)
        return VQKV_E_ARGUMENT;
    job->n_top = (top + VQKV__CHUNK - 1) / VQKV__CHUNK;
    first = job->first < VQKV_N_SINK ? VQKV_N_SINK : job->first;
    last = vqkv__n_coded(vqkv__sequence(job->kv, job->seq));
    last = last < job->last ? last : job->last;
    if (job->n_top * VQKV__CHUNK >= last - first) {
        job->n_top = 0; /* nothing to choose */
        return VQKV_OK;
    }
    job->n_outliers = attention->outlier_chunks;
    if (job->n_outliers < 0)
        job->n_outliers = 0;
    else if (job->n_outliers == 0)
        job->n_outliers = job->n_top * 3 / 16;
    if (job->n_outliers > VQKV_MAX_OUTLIER_CHUNKS)
        job->n_outliers = VQKV_MAX_OUTLIER_CHUNKS;
    return VQKV_OK;
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
    return vqkv__limit_chunks(job, attention);
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
    float top = *m > m_more ? *m : m_more, a, b;
    if (*l == 0.0f && *m <= VQKV__MASKED) { /* there is nothing of it yet */
        *m = m_more;
        *l = l_more;
        memcpy(x, y, sizeof(float) * VQKV_HEAD_DIM);
        return;
    }
    a = expf(*m - top);
    b = expf(m_more - top);
    *m = top;
    *l = *l * a + l_more * b;
    for (d = 0; d < VQKV_HEAD_DIM; d++)
        x[d] = x[d] * a + y[d] * b;
}

/* The queries of one pass: those of a KV head from `row` on. */
static void vqkv__load_rows(const vqkv__job *job, vqkv__pass *a, int head, int row)
{
    int r, rows = job->n * VQKV_GROUP;
    a->head = head;
    a->rows = rows - row < VQKV__PASS_ROWS ? rows - row : VQKV__PASS_ROWS;
    for (r = 0; r < a->rows; r++) {
        int query = job->skip + (row + r) / VQKV_GROUP;
        const float *src = job->q + ((size_t)query * VQKV_N_HEADS +
                                     (size_t)(head * VQKV_GROUP + (row + r) % VQKV_GROUP)) *
                                        VQKV_HEAD_DIM;
        a->position[r] = vqkv__position(job, (row + r) / VQKV_GROUP);
        memcpy(a->q + r * VQKV_HEAD_DIM, src, sizeof(float) * VQKV_HEAD_DIM);
    }
    job->ops->shrink(a->q, (size_t)a->rows * VQKV_HEAD_DIM, job->scale);
}

/* What the passes of one head attend to, over all of the job's tokens: choices [CHOICES]. */
static void vqkv__choose_rows(const vqkv__job *job, vqkv__pass *a, int head, vqkv__choice *choices)
{
    const vqkv__seq *q = vqkv__sequence(job->kv, job->seq);
    vqkv__chunks among;
    int row, first, last;
    among.kv = job->kv;
    among.blocks = vqkv__blocks(job->kv, job->seq);
    among.layer = job->layer;
    among.head = head;
    for (row = 0; row < job->n * VQKV_GROUP; row += a->rows) {
        vqkv__load_rows(job, a, head, row);
        first = job->first;
        if (job->window > 0 && first < a->position[0] - job->window + 1)
            first = a->position[0] - job->window + 1;
        last = a->position[a->rows - 1] + 1;
        vqkv__choose(&among, job->ops, q, a->q, a->rows, first, last < job->last ? last : job->last,
                     job->n_top, job->n_outliers, choices++);
    }
}

/* All rows of one KV head over a range of tokens, added to what `out` holds of them. choices
 * [CHOICES] of its passes, or NULL. */
static void vqkv__attend_head(const vqkv__job *job, vqkv__pass *a, int head,
                              const vqkv__choice *choices, const vqkv__result *out)
{
    int row, r, rows = job->n * VQKV_GROUP, last = a->last;
    for (row = 0; row < rows; row += a->rows) {
        vqkv__load_rows(job, a, head, row);
        a->choice = choices == NULL || choices->all ? NULL : choices;
        if (choices != NULL)
            choices++;
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

/* Whether any pass of n_heads heads attends to block j: choices as vqkv__attend_job() has them. */
static int vqkv__wanted(const vqkv__job *job, const vqkv__choice *choices, int n_heads, int j)
{
    int h, i, passes = (job->n * VQKV_GROUP + VQKV__PASS_ROWS - 1) / VQKV__PASS_ROWS;
    if (choices == NULL)
        return 1;
    for (h = 0; h < n_heads; h++)
        for (i = 0; i < passes; i++) {
            const vqkv__choice *one = &choices[h * VQKV__CHOICES + i];
            if (one->all || vqkv__picked(one, j))
                return 1;
        }
    return 0;
}

/* Rebuilds the blocks from j on that some query of the job sees, for n_heads heads; returns their
 * number. */
static int vqkv__hold_blocks(const vqkv__job *job, vqkv__pass *a, const vqkv__choice *choices,
                             int j, int n_sealed, int head, int n_heads, float *k, float *v)
{
    int b, n = 0;
    float *room = job->scratch + VQKV__PASS_FLOATS + VQKV__STATE_FLOATS + VQKV__HELD_FLOATS;
    a->position[0] = vqkv__position(job, 0);
    a->tile_first = j;
    for (b = 0; b < VQKV__HELD && j + b < n_sealed; b++) {
        size_t at = (size_t)b * VQKV__NODE_FLOATS;
        if (!vqkv__reaches(a, j + b) || !vqkv__wanted(job, choices, n_heads, j + b))
            continue;
        vqkv__rebuild(job->kv, job->ops, vqkv__blocks(job->kv, job->seq)[j + b], job->layer, head,
                      n_heads, room, k == NULL ? NULL : k + at, v == NULL ? NULL : v + at);
        n++;
    }
    return n;
}

/* Some heads of a layer. Where its vectors must be rebuilt that is done once for all heads and
 * queries: blocks outside, heads inside. */
static void vqkv__attend_job(const vqkv__job *job, int head, int n_heads, vqkv__result out)
{
    vqkv__pass a;
    float *k = job->scratch + VQKV__PASS_FLOATS + VQKV__STATE_FLOATS;
    float *v = k + (size_t)VQKV__HELD * VQKV__NODE_FLOATS;
    vqkv__choice *choices =
        job->n_top == 0 ? NULL : (vqkv__choice *)(void *)(job->scratch + VQKV__CHOICE_AT);
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
    for (h = 0; h < n_heads && choices != NULL; h++)
        vqkv__choose_rows(job, &a, head + h, choices + h * VQKV__CHOICES);
    for (j = 0; j == 0 || j < n_sealed; j += step) {
        int from = VQKV_N_SINK + j * VQKV_BLOCK, to = from + step * VQKV_BLOCK;
        a.first = j == 0 || from < job->first ? job->first : from;
        a.last = j + step >= n_sealed || to > last ? last : to;
        if (a.first >= a.last)
            continue;
        if ((k != NULL || v != NULL) &&
            vqkv__hold_blocks(job, &a, choices, j, n_sealed, head, n_heads, k, v) == 0 && j > 0 &&
            j + step < n_sealed)
            continue; /* no exact tokens either */
        for (h = 0; h < n_heads; h++) {
            vqkv__result rows = out;
            rows.m += h * VQKV_GROUP;
            rows.l += h * VQKV_GROUP;
            rows.o += (size_t)(h * VQKV_GROUP) * VQKV_HEAD_DIM;
            a.k_tile = k == NULL ? NULL : k + (size_t)h * VQKV__HEAD_FLOATS;
            a.v_tile = v == NULL ? NULL : v + (size_t)h * VQKV__HEAD_FLOATS;
            vqkv__attend_head(job, &a, head + h,
                              choices == NULL ? NULL : choices + h * VQKV__CHOICES, &rows);
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
    int i, step = 1;
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
    for (i = 0; i < n_q; i += step) {
        step = job.n_top > 0 ? VQKV__CHOOSERS : n_q;
        job.skip = i;
        job.n = n_q - i < step ? n_q - i : step;
        vqkv__attend_job(&job, kv_head, 1, out);
        out.m += job.n * VQKV_GROUP;
        out.l += job.n * VQKV_GROUP;
        out.o += (size_t)(job.n * VQKV_GROUP) * VQKV_HEAD_DIM;
    }
    return VQKV_OK;
}

void vqkv_merge(vqkv_partial *into, const vqkv_partial *from, int rows)
{
    int r;
    for (r = 0; r < rows; r++)
        vqkv__merge_row(into->m + r, into->l + r, into->o + (size_t)r * VQKV_HEAD_DIM, from->m[r],
                        from->l[r], from->o + (size_t)r * VQKV_HEAD_DIM);
}

/* What sums of a row are multiplied by in the end: one over l and the sink's share; 0 where the row
 * saw nothing. */
static float vqkv__row_factor(float m, float l, const float *sink)
{
    float shrink = 1.0f;
    if (sink != NULL) {
        float top = m > *sink ? m : *sink;
        shrink = expf(m - top);
        l = l * shrink + expf(*sink - top);
    }
    return l > 0.0f ? shrink / l : 0.0f;
}

void vqkv_finish(const vqkv_partial *partial, int kv_head, int n_q, const vqkv_attention *attention,
                 float *out)
{
    int row, d;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    for (row = 0; row < n_q * VQKV_GROUP; row++) {
        int head = kv_head * VQKV_GROUP + row % VQKV_GROUP;
        size_t at = (size_t)(row / VQKV_GROUP) * VQKV_N_HEADS + (size_t)head;
        const float *o = partial->o + (size_t)row * VQKV_HEAD_DIM;
        float *dst = out + at * VQKV_HEAD_DIM;
        float f =
            vqkv__row_factor(partial->m[row], partial->l[row], sinks != NULL ? sinks + head : NULL);
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            dst[d] = f > 0.0f ? o[d] * f : 0.0f;
    }
}

vqkv_status vqkv_attend(const vqkv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const vqkv_attention *attention, void *scratch, size_t scratch_bytes)
{
    vqkv__job job;
    vqkv_status status;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    int i, step = 1;
    if (out == NULL)
        return VQKV_E_ARGUMENT;
    status = vqkv__make_job(&job, kv, seq, layer, n_q, q, 0, INT32_MAX, attention, scratch,
                            scratch_bytes);
    for (i = 0; i < n_q && status == VQKV_OK; i += step) {
        vqkv__result rows;
        int row;
        job.skip = i;
        step = job.n_top > 0 ? VQKV__CHOOSERS : VQKV__QUERIES;
        job.n = n_q - i < step ? n_q - i : step;
        rows.m = job.scratch + VQKV__PASS_FLOATS;
        rows.l = rows.m + VQKV__QUERIES * VQKV_N_HEADS;
        rows.o = out + (size_t)i * VQKV_N_HEADS * VQKV_HEAD_DIM;
        rows.step = VQKV_N_HEADS;
        vqkv__attend_job(&job, 0, VQKV_N_KV_HEADS, rows);
        for (row = 0; row < job.n * VQKV_N_HEADS; row++) {
            float *o = rows.o + (size_t)row * VQKV_HEAD_DIM;
            float f = vqkv__row_factor(rows.m[row], rows.l[row],
                                       sinks != NULL ? sinks + row % VQKV_N_HEADS : NULL);
            if (f > 0.0f)
                job.ops->shrink(o, VQKV_HEAD_DIM, f);
            else
                memset(o, 0, sizeof(float) * VQKV_HEAD_DIM);
        }
    }
    return status;
}
