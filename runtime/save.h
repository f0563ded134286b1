/* Saving and loading one sequence. Layout, little-endian:
 *   vqkv__saved, then n_sealed times the streams' block contents in stream order, then the exact
 *   tokens: for each layer, part and head, binary16 [tokens, VQKV_HEAD_DIM]. */

typedef struct vqkv__saved {
    char magic[8];     /* "VQKVSAVE" */
    uint32_t version;  /* VQKV_ABI_VERSION */
    uint32_t n_sealed; /* blocks */
    uint64_t n_tokens;
    uint64_t bytes;    /* of everything, this header included */
    char codec[32];    /* VQKV_CODEC: identity of the tables */
    uint64_t checksum; /* of all bytes, with this field zero */
} vqkv__saved;

/* Mixes 8 bytes at a time by xor, multiply and rotate; guards against damage, not malice. */
static uint64_t vqkv__checksum(uint64_t sum, const unsigned char *p, size_t n)
{
    uint64_t word;
    size_t i;
    for (i = 0; i + 8 <= n; i += 8) {
        memcpy(&word, p + i, 8);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    for (; i < n; i++) {
        sum = (sum ^ p[i]) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

static uint64_t vqkv__saved_bytes(uint64_t n_tokens, uint64_t n_sealed)
{
    uint64_t token = (uint64_t)VQKV_N_LAYERS * 2 * VQKV_N_KV_HEADS * VQKV_HEAD_DIM * 2;
    return sizeof(vqkv__saved) + n_sealed * VQKV__BLOCK_BYTES +
           (n_tokens - n_sealed * VQKV_BLOCK) * token;
}

size_t vqkv_save_size(const vqkv *kv, int seq)
{
    const vqkv__seq *q;
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq)
        return 0;
    q = vqkv__sequence(kv, seq);
    return (size_t)vqkv__saved_bytes((uint64_t)vqkv__least(q), (uint64_t)q->n_sealed);
}

/* Moves the exact tokens of a sequence out to bytes (out) or in; returns the end of the bytes. */
static unsigned char *vqkv__move_exact(const vqkv *kv, int seq, int out, unsigned char *bytes)
{
    const vqkv__seq *q = vqkv__sequence(kv, seq);
    int layer, part, head, t, coded = vqkv__n_coded(q), n_tokens = q->n_tokens[0];
    for (layer = 0; layer < VQKV_N_LAYERS; layer++)
        for (part = 0; part < 2; part++)
            for (head = 0; head < VQKV_N_KV_HEADS; head++)
                for (t = 0; t < n_tokens; t++) {
                    unsigned char *row;
                    if (t >= VQKV_N_SINK && t < coded)
                        continue;
                    row = vqkv__exact(kv, seq, layer, part, head, t);
                    memcpy(out ? bytes : row, out ? row : bytes, VQKV_HEAD_DIM * 2);
                    bytes += VQKV_HEAD_DIM * 2;
                }
    return bytes;
}

vqkv_status vqkv_save(const vqkv *kv, int seq, void *dst, size_t bytes)
{
    vqkv__saved head;
    unsigned char *p = (unsigned char *)dst;
    const vqkv__seq *q;
    int j, stream;
    if (kv == NULL || dst == NULL || seq < 0 || seq >= kv->config.n_seq)
        return VQKV_E_ARGUMENT;
    q = vqkv__sequence(kv, seq);
    if (!vqkv__in_step(q))
        return VQKV_E_ORDER;
    if (bytes < vqkv_save_size(kv, seq))
        return VQKV_E_SIZE;
    memset(&head, 0, sizeof head);
    memcpy(head.magic, "VQKVSAVE", 8);
    head.version = VQKV_ABI_VERSION;
    head.n_tokens = (uint64_t)q->n_tokens[0];
    head.n_sealed = (uint32_t)q->n_sealed;
    head.bytes = vqkv__saved_bytes(head.n_tokens, head.n_sealed);
    memcpy(head.codec, VQKV_CODEC, 32);
    p += sizeof head;
    for (j = 0; j < q->n_sealed; j++)
        for (stream = 0; stream < VQKV__N_STREAMS; stream++) {
            size_t n = (size_t)vqkv__streams[stream].bytes;
            memcpy(p, vqkv__codes(kv, stream, vqkv__blocks(kv, seq)[j].block), n);
            p += n;
        }
    vqkv__move_exact(kv, seq, 1, p);
    memcpy(dst, &head, sizeof head);
    head.checksum = vqkv__checksum(1, (const unsigned char *)dst, (size_t)head.bytes);
    memcpy(dst, &head, sizeof head);
    return VQKV_OK;
}

/* Everything about a saved sequence that can be known before it is loaded. */
static vqkv_status vqkv__check_saved(const vqkv *kv, int seq, const unsigned char *src,
                                     size_t bytes, vqkv__saved *head)
{
    uint64_t sum, stored, uncoded;
    if (bytes < sizeof *head)
        return VQKV_E_FORMAT;
    memcpy(head, src, sizeof *head);
    if (memcmp(head->magic, "VQKVSAVE", 8) != 0)
        return VQKV_E_FORMAT;
    if (head->version != VQKV_ABI_VERSION || memcmp(head->codec, VQKV_CODEC, 32) != 0)
        return VQKV_E_VERSION;
    if (head->n_tokens > (uint64_t)kv->config.n_ctx)
        return VQKV_E_CONTEXT;
    if (head->n_sealed > 0 && (uint64_t)head->n_sealed * VQKV_BLOCK + VQKV_N_SINK > head->n_tokens)
        return VQKV_E_FORMAT;
    if (head->bytes != vqkv__saved_bytes(head->n_tokens, head->n_sealed) || bytes < head->bytes)
        return VQKV_E_FORMAT;
    uncoded = head->n_tokens - (uint64_t)head->n_sealed * VQKV_BLOCK;
    if (uncoded > (uint64_t)(VQKV_N_SINK + kv->ring))
        return VQKV_E_BATCH;
    stored = head->checksum;
    head->checksum = 0;
    sum = vqkv__checksum(1, (const unsigned char *)head, sizeof *head);
    sum = vqkv__checksum(sum, src + sizeof *head, (size_t)head->bytes - sizeof *head);
    if (sum != stored)
        return VQKV_E_CHECKSUM;
    {
        /* What the sequence gives up on being replaced counts as free. */
        int j, free_blocks = kv->n_free;
        const vqkv__entry *blocks = vqkv__blocks(kv, seq);
        for (j = 0; j < vqkv__sequence(kv, seq)->n_sealed; j++)
            free_blocks += vqkv__references(kv)[blocks[j].block] == 1;
        if (head->n_sealed > (uint32_t)free_blocks)
            return VQKV_E_FULL;
    }
    return VQKV_OK;
}

vqkv_status vqkv_load(vqkv *kv, int seq, const void *src, size_t bytes)
{
    vqkv__saved head;
    vqkv__seq *q;
    const unsigned char *p = (const unsigned char *)src;
    vqkv_status status;
    int i, stream;
    if (kv == NULL || src == NULL || seq < 0 || seq >= kv->config.n_seq)
        return VQKV_E_ARGUMENT;
    status = vqkv__check_saved(kv, seq, p, bytes, &head);
    if (status != VQKV_OK)
        return status;
    q = vqkv__sequence(kv, seq);
    for (i = 0; i < q->n_sealed; i++)
        vqkv__release_block(kv, vqkv__blocks(kv, seq)[i].block);
    p += sizeof head;
    for (i = 0; i < (int)head.n_sealed; i++) {
        vqkv__entry *entry = &vqkv__blocks(kv, seq)[i];
        entry->block = vqkv__take_block(kv);
        entry->position = VQKV_N_SINK + i * VQKV_BLOCK;
        for (stream = 0; stream < VQKV__N_STREAMS; stream++) {
            size_t n = (size_t)vqkv__streams[stream].bytes;
            memcpy(vqkv__codes(kv, stream, entry->block), p, n);
            p += n;
        }
    }
    q->n_sealed = (int32_t)head.n_sealed;
    q->target = (int32_t)head.n_tokens;
    for (i = 0; i < VQKV_N_LAYERS; i++)
        q->n_tokens[i] = (int32_t)head.n_tokens;
    vqkv__move_exact(kv, seq, 0, (unsigned char *)(uintptr_t)p);
    return VQKV_OK;
}
