/* The cache itself: memory, trim, fork, read. */

const char *vqkv_status_text(vqkv_status status)
{
    switch (status) {
#define VQKV__X(name, words)                                                                       \
    case VQKV_##name:                                                                              \
        return words;
        VQKV_STATUS_LIST(VQKV__X)
#undef VQKV__X
    }
    return "unknown status";
}

size_t vqkv_scratch_size(void)
{
    return VQKV__SCRATCH_FLOATS * sizeof(float);
}

/* The exact list of a cache with c->n_blocks blocks: its default length, its place at *at. */
static void vqkv__lay_out_kept(vqkv_config *c, vqkv *kv, uint64_t *at)
{
    uint64_t vectors = (uint64_t)c->n_blocks * VQKV_BLOCK * (uint64_t)VQKV__SLOTS, n;
    n = (uint64_t)((double)vectors * VQKV__KEPT_SHARE) + (uint64_t)VQKV__SLOTS;
    if (c->n_exact == 0)
        c->n_exact = n < vectors && n < (1u << 30) ? (int)n
                     : vectors < (1u << 30)        ? (int)vectors
                                                   : 1 << 30;
    if (!VQKV__KEEPS)
        c->n_exact = 0;
    kv->kept_firsts = *at;
    *at += VQKV__ALIGNED((uint64_t)VQKV__CHAIN_BYTES * (uint64_t)c->n_blocks);
    kv->kept_links = *at;
    *at += VQKV__ALIGNED(sizeof(vqkv__link) * (uint64_t)c->n_exact);
    kv->kept_rows = *at;
    *at += VQKV__ALIGNED((uint64_t)VQKV_HEAD_DIM * 2 * (uint64_t)c->n_exact);
}

/* Fills in defaults and offsets; fails where a size would overflow. */
static vqkv_status vqkv__lay_out(const vqkv_config *config, vqkv *kv)
{
    vqkv_config c;
    uint64_t at = VQKV__ALIGNED(sizeof(vqkv)), limit = (uint64_t)(SIZE_MAX / 2), row;
    if (config == NULL || config->n_ctx < 1 || config->n_ctx > (1 << 28) || config->n_seq < 0 ||
        config->n_seq > (1 << 20) || config->max_batch < 0 || config->max_batch > (1 << 24) ||
        config->n_blocks < 0 || config->n_blocks > (1 << 28) || config->n_exact < 0 ||
        config->n_exact > (1 << 30))
        return VQKV_E_ARGUMENT;
    c = *config;
    if (c.n_seq == 0)
        c.n_seq = 1;
    if (c.max_batch == 0)
        c.max_batch = 256;
    if (c.isa == VQKV_ISA_AUTO)
        c.isa = vqkv__best();
    if (!vqkv__has(c.isa))
        return VQKV_E_CPU;
    memset(kv, 0, sizeof *kv);
    kv->seq_blocks = c.n_ctx / VQKV_BLOCK + 1;
    if (c.n_blocks == 0) {
        if ((int64_t)c.n_seq * kv->seq_blocks > (1 << 28))
            return VQKV_E_ARGUMENT;
        c.n_blocks = c.n_seq * kv->seq_blocks;
    }
    /* A step of max_batch tokens begins with less than n_recent + block uncoded ones. */
    kv->ring =
        (VQKV_N_RECENT + VQKV_BLOCK + c.max_batch + VQKV_BLOCK - 1) / VQKV_BLOCK * VQKV_BLOCK;
    kv->n_free = c.n_blocks;
    kv->magic = VQKV__MAGIC;
    kv->seqs = at;
    at += VQKV__ALIGNED(sizeof(vqkv__seq) * (uint64_t)c.n_seq);
    kv->tables = at;
    at += VQKV__ALIGNED(sizeof(vqkv__entry) * (uint64_t)c.n_seq * (uint64_t)kv->seq_blocks);
    kv->references = at;
    at += VQKV__ALIGNED(sizeof(int32_t) * (uint64_t)c.n_blocks);
    kv->work = at;
    at += VQKV__ALIGNED((uint64_t)VQKV__WORK_FLOATS * sizeof(float));
    kv->turns = at;
    at += VQKV__ALIGNED((uint64_t)VQKV__TURN_FLOATS * sizeof(float));
    vqkv__lay_out_kept(&c, kv, &at);
    kv->config = c;
    kv->exact = at;
    row = (uint64_t)VQKV_N_LAYERS * 2 * VQKV_N_KV_HEADS * VQKV_HEAD_DIM * 2;
    if (row * (uint64_t)(VQKV_N_SINK + kv->ring) > limit / 4 / (uint64_t)c.n_seq)
        return VQKV_E_ARGUMENT;
    at += VQKV__ALIGNED(row * (uint64_t)(VQKV_N_SINK + kv->ring) * (uint64_t)c.n_seq);
    kv->pool = at;
    if ((uint64_t)c.n_blocks > limit / 4 / VQKV__POOL_BYTES)
        return VQKV_E_ARGUMENT;
    kv->bytes = at + (uint64_t)c.n_blocks * VQKV__POOL_BYTES;
    if (kv->bytes > limit)
        return VQKV_E_ARGUMENT;
    return VQKV_OK;
}

/* The angles of every offset in a block. */
static void vqkv__fill_turns(vqkv *kv)
{
    float cs[VQKV_N_ROT + 1] = {0.0f}, *turns = vqkv__turns(kv);
    int t, i;
    for (t = 0; t < VQKV_BLOCK && VQKV__TURN_FLOATS > 0; t++) {
        vqkv__angles(t, cs);
        for (i = 0; i < VQKV_N_ROT; i++)
            turns[i * VQKV_BLOCK + t] = cs[i];
    }
}

vqkv_status vqkv_size(const vqkv_config *config, size_t *bytes)
{
    vqkv kv;
    vqkv_status status = bytes == NULL ? VQKV_E_ARGUMENT : vqkv__lay_out(config, &kv);
    if (status == VQKV_OK)
        *bytes = (size_t)kv.bytes;
    return status;
}

vqkv_status vqkv_init(vqkv **kv, const vqkv_config *config, void *memory, size_t bytes)
{
    vqkv laid;
    int32_t i;
    vqkv_status status = vqkv__lay_out(config, &laid);
    if (status != VQKV_OK)
        return status;
    if (kv == NULL || memory == NULL)
        return VQKV_E_ARGUMENT;
    if (bytes < laid.bytes)
        return VQKV_E_SIZE;
    if ((uintptr_t)memory % 64 != 0)
        return VQKV_E_ALIGNMENT;
    memset(memory, 0, (size_t)laid.pool);
    memcpy(memory, &laid, sizeof laid);
    *kv = (vqkv *)memory;
    for (i = (*kv)->config.n_exact; i > 0; i--) {
        vqkv__kept_link(*kv, i)->next = (*kv)->kept_free;
        (*kv)->kept_free = i;
    }
    vqkv__fill_turns(*kv);
    return VQKV_OK;
}

vqkv_isa vqkv_isa_in_use(const vqkv *kv)
{
    return kv->config.isa;
}

int vqkv_n_tokens(const vqkv *kv, int seq)
{
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq)
        return -1;
    return vqkv__least(vqkv__sequence(kv, seq));
}

/* ---- trim and fork ---- */

/* x [HEAD_DIM, BLOCK]: the exact vectors of one head from `token` on. */
static void vqkv__store_exact(vqkv *kv, int seq, const vqkv__node *n, int head, int token,
                              const float *x)
{
    int t, d;
    for (t = 0; t < VQKV_BLOCK; t++) {
        unsigned char *dst = vqkv__exact(kv, seq, n->layer, n->part, head, token + t);
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            vqkv__store_half(dst + 2 * d, x[d * VQKV_BLOCK + t]);
    }
}

/* Decodes the last block of a sequence back into the exact window and gives the block up. */
static void vqkv__reopen_block(vqkv *kv, int seq)
{
    const vqkv__ops *ops = vqkv__select(kv->config.isa);
    vqkv__seq *q = vqkv__sequence(kv, seq);
    vqkv__entry entry = vqkv__blocks(kv, seq)[q->n_sealed - 1];
    float *x = vqkv__work(kv);
    vqkv__room room = vqkv__make_room(x + VQKV__HEAD_FLOATS);
    int node, head, token = vqkv__n_coded(q) - VQKV_BLOCK;
    for (node = 0; node < 2 * VQKV_N_LAYERS; node++) {
        vqkv__rebuild_node(kv, ops, entry.block, node, 0, VQKV_N_KV_HEADS, &room);
        for (head = 0; head < VQKV_N_KV_HEADS; head++) {
            vqkv__hand_out(kv, ops, entry, node, head, 1, &room, x);
            vqkv__store_exact(kv, seq, &vqkv__nodes[node], head, token, x);
        }
    }
    vqkv__release_block(kv, entry.block);
    q->n_sealed--;
}

vqkv_status vqkv_trim(vqkv *kv, int seq, int n_keep)
{
    vqkv__seq *q;
    int i;
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq || n_keep < 0)
        return VQKV_E_ARGUMENT;
    q = vqkv__sequence(kv, seq);
    if (n_keep > vqkv__least(q))
        return VQKV_E_ARGUMENT;
    while (q->n_sealed > 0 && vqkv__n_coded(q) - VQKV_BLOCK >= n_keep) {
        vqkv__release_block(kv, vqkv__blocks(kv, seq)[q->n_sealed - 1].block);
        q->n_sealed--;
    }
    if (q->n_sealed > 0 && vqkv__n_coded(q) > n_keep)
        vqkv__reopen_block(kv, seq);
    for (i = 0; i < VQKV_N_LAYERS; i++)
        q->n_tokens[i] = n_keep;
    q->target = n_keep;
    return VQKV_OK;
}

vqkv_status vqkv_fork(vqkv *kv, int from, int to)
{
    int i;
    size_t bytes;
    vqkv__seq *source;
    if (kv == NULL || from < 0 || from >= kv->config.n_seq || to < 0 || to >= kv->config.n_seq)
        return VQKV_E_ARGUMENT;
    source = vqkv__sequence(kv, from);
    if (!vqkv__in_step(source))
        return VQKV_E_ORDER;
    if (from == to)
        return VQKV_OK;
    vqkv_trim(kv, to, 0);
    for (i = 0; i < source->n_sealed; i++) {
        vqkv__blocks(kv, to)[i] = vqkv__blocks(kv, from)[i];
        vqkv__references(kv)[vqkv__blocks(kv, from)[i].block]++;
    }
    *vqkv__sequence(kv, to) = *source;
    bytes =
        (size_t)(VQKV_N_SINK + kv->ring) * VQKV_N_LAYERS * 2 * VQKV_N_KV_HEADS * VQKV_HEAD_DIM * 2;
    memcpy(vqkv__base(kv) + kv->exact + (size_t)to * bytes,
           vqkv__base(kv) + kv->exact + (size_t)from * bytes, bytes);
    return VQKV_OK;
}

/* ---- reading ---- */

vqkv_status vqkv_read(const vqkv *kv, int seq, int layer, int kv_head, vqkv_part part, int first,
                      int n, float *dst, void *scratch, size_t scratch_bytes)
{
    const vqkv__ops *ops;
    const vqkv__seq *q;
    float *tile = (float *)scratch;
    int t, d, coded, have = -1;
    if (kv == NULL || dst == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= VQKV_N_LAYERS || kv_head < 0 || kv_head >= VQKV_N_KV_HEADS ||
        (part != VQKV_KEY && part != VQKV_VALUE) || first < 0 || n < 0)
        return VQKV_E_ARGUMENT;
    q = vqkv__sequence(kv, seq);
    if (n > q->n_tokens[layer] - first)
        return VQKV_E_ARGUMENT;
    if (scratch == NULL || scratch_bytes < vqkv_scratch_size())
        return VQKV_E_SIZE;
    if ((uintptr_t)scratch % 64 != 0)
        return VQKV_E_ALIGNMENT;
    ops = vqkv__select(kv->config.isa);
    coded = vqkv__n_coded(q);
    for (t = first; t < first + n; t++, dst += VQKV_HEAD_DIM) {
        int block = (t - VQKV_N_SINK) / VQKV_BLOCK;
        if (t < VQKV_N_SINK || t >= coded) {
            const unsigned char *row = vqkv__exact(kv, seq, layer, (int)part, kv_head, t);
            for (d = 0; d < VQKV_HEAD_DIM; d++)
                dst[d] = vqkv__half_at(row, (size_t)d);
            continue;
        }
        if (block != have)
            vqkv__rebuild(kv, ops, vqkv__blocks(kv, seq)[block], layer, kv_head, 1,
                          tile + VQKV__HEAD_FLOATS, part == VQKV_KEY ? tile : NULL,
                          part == VQKV_KEY ? NULL : tile);
        have = block;
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            dst[d] = tile[d * VQKV_BLOCK + (t - VQKV_N_SINK) % VQKV_BLOCK];
    }
    return VQKV_OK;
}

size_t vqkv_bytes_used(const vqkv *kv)
{
    size_t bytes, token = (size_t)VQKV_N_LAYERS * 2 * VQKV_N_KV_HEADS * VQKV_HEAD_DIM * 2;
    int seq;
    if (kv == NULL)
        return 0;
    bytes =
        (size_t)(kv->config.n_blocks - kv->n_free) * ((size_t)VQKV__POOL_BYTES + VQKV__CHAIN_BYTES);
    bytes += (size_t)kv->n_kept * VQKV__KEPT_BYTES;
    for (seq = 0; seq < kv->config.n_seq; seq++) {
        const vqkv__seq *q = vqkv__sequence(kv, seq);
        int exact = vqkv__least(q) - q->n_sealed * VQKV_BLOCK;
        bytes += (size_t)exact * token + (size_t)q->n_sealed * sizeof(vqkv__entry);
    }
    return bytes;
}

vqkv_status vqkv_get_stats(const vqkv *kv, vqkv_stats *stats)
{
    if (kv == NULL || stats == NULL)
        return VQKV_E_ARGUMENT;
    stats->bytes = vqkv_bytes_used(kv);
    stats->n_blocks = kv->config.n_blocks;
    stats->blocks_used = kv->config.n_blocks - kv->n_free;
    stats->n_exact = kv->config.n_exact;
    stats->exact_used = kv->n_kept;
    return VQKV_OK;
}
