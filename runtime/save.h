/* Saving and loading one sequence. Layout, little-endian:
 *   vqkv__saved, then n_sealed times the streams' block contents in stream order and the landmarks
 * of each layer and head, then the exact list, n_kept times vqkv__saved_vector and binary16
 *   [VQKV_HEAD_DIM], ascending, then the exact tokens: for each layer, part and head, binary16
 *   [tokens, VQKV_HEAD_DIM]. */

typedef struct vqkv__saved {
    char magic[8];     /* "VQKVSAVE" */
    uint32_t version;  /* VQKV_ABI_VERSION */
    uint32_t n_sealed; /* blocks */
    uint64_t n_tokens;
    uint64_t n_kept;   /* vectors on the exact list */
    uint64_t bytes;    /* of everything, this header included */
    char codec[32];    /* VQKV_CODEC: identity of the tables */
    uint64_t checksum; /* of all bytes, with this field zero */
} vqkv__saved;

/* Where a vector of the exact list belongs. */
typedef struct vqkv__saved_vector {
    uint32_t token; /* counted from the end of the sinks */
    uint32_t slot;  /* part, layer and head: vqkv__slot() */
} vqkv__saved_vector;

#define VQKV__SAVED_VECTOR (sizeof(vqkv__saved_vector) + 2 * (size_t)VQKV_HEAD_DIM)

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

/* n_kept is no more than the vectors in n_sealed blocks, so nothing overflows. */
static uint64_t vqkv__saved_bytes(uint64_t n_tokens, uint64_t n_sealed, uint64_t n_kept)
{
    uint64_t token = (uint64_t)VQKV_N_LAYERS * 2 * VQKV_N_KV_HEADS * VQKV_HEAD_DIM * 2;
    return sizeof(vqkv__saved) + n_sealed * VQKV__POOL_BYTES + n_kept * VQKV__SAVED_VECTOR +
           (n_tokens - n_sealed * VQKV_BLOCK) * token;
}

static uint64_t vqkv__kept_of(const vqkv *kv, int seq)
{
    int j;
    uint64_t n = 0;
    for (j = 0; j < vqkv__sequence(kv, seq)->n_sealed && VQKV__KEEPS; j++)
        n += (uint64_t)vqkv__count_kept(kv, vqkv__blocks(kv, seq)[j].block);
    return n;
}

size_t vqkv_save_size(const vqkv *kv, int seq)
{
    const vqkv__seq *q;
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq)
        return 0;
    q = vqkv__sequence(kv, seq);
    return (size_t)vqkv__saved_bytes((uint64_t)vqkv__least(q), (uint64_t)q->n_sealed,
                                     vqkv__kept_of(kv, seq));
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

/* Moves the contents of a block of the pool out to bytes (out) or in; returns the end of the bytes.
 */
static unsigned char *vqkv__move_block(const vqkv *kv, int block, int out, unsigned char *bytes)
{
    int stream, head;
    for (stream = 0; stream < VQKV__N_STREAMS; stream++) {
        size_t n = (size_t)vqkv__streams[stream].bytes;
        unsigned char *codes = vqkv__codes(kv, stream, block);
        memcpy(out ? bytes : codes, out ? codes : bytes, n);
        bytes += n;
    }
    for (head = 0; head < VQKV_N_LAYERS * VQKV_N_KV_HEADS && VQKV_LANDMARKS > 0; head++) {
        unsigned char *marks = vqkv__landmarks(kv, 0, head, block);
        memcpy(out ? bytes : marks, out ? marks : bytes, (size_t)VQKV__LANDMARK_BYTES);
        bytes += VQKV__LANDMARK_BYTES;
    }
    return bytes;
}

/* Writes the exact list of one block, the j-th of its sequence; returns the end of the bytes. */
static unsigned char *vqkv__save_kept(const vqkv *kv, int block, int j, unsigned char *bytes)
{
    vqkv__saved_vector head;
    int slot;
    int32_t i;
    for (slot = 0; slot < VQKV__SLOTS && VQKV__KEEPS; slot++)
        for (i = *vqkv__kept_first(kv, slot, block); i != 0; i = vqkv__kept_link(kv, i)->next) {
            head.token = (uint32_t)(j * VQKV_BLOCK + vqkv__kept_link(kv, i)->token);
            head.slot = (uint32_t)slot;
            memcpy(bytes, &head, sizeof head);
            memcpy(bytes + sizeof head, vqkv__kept_row(kv, i), 2 * (size_t)VQKV_HEAD_DIM);
            bytes += VQKV__SAVED_VECTOR;
        }
    return bytes;
}

vqkv_status vqkv_save(const vqkv *kv, int seq, void *dst, size_t bytes)
{
    vqkv__saved head;
    unsigned char *p = (unsigned char *)dst;
    const vqkv__seq *q;
    int j;
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
    head.n_kept = vqkv__kept_of(kv, seq);
    head.bytes = vqkv__saved_bytes(head.n_tokens, head.n_sealed, head.n_kept);
    memcpy(head.codec, VQKV_CODEC, 32);
    p += sizeof head;
    for (j = 0; j < q->n_sealed; j++)
        p = vqkv__move_block(kv, vqkv__blocks(kv, seq)[j].block, 1, p);
    for (j = 0; j < q->n_sealed; j++)
        p = vqkv__save_kept(kv, vqkv__blocks(kv, seq)[j].block, j, p);
    vqkv__move_exact(kv, seq, 1, p);
    memcpy(dst, &head, sizeof head);
    head.checksum = vqkv__checksum(1, (const unsigned char *)dst, (size_t)head.bytes);
    memcpy(dst, &head, sizeof head);
    return VQKV_OK;
}

/* Whether the n vectors of a saved exact list are in order and in blocks. */
static int vqkv__kept_in_order(const unsigned char *p, uint64_t n, uint32_t n_sealed)
{
    uint64_t i, before = 0;
    for (i = 0; i < n; i++, p += VQKV__SAVED_VECTOR) {
        vqkv__saved_vector head;
        uint64_t at;
        memcpy(&head, p, sizeof head);
        if (head.token / VQKV_BLOCK >= n_sealed || head.slot >= VQKV__SLOTS)
            return 0;
        /* by block, slot, token; from 1 up */
        at = ((uint64_t)(head.token / VQKV_BLOCK) * VQKV__SLOTS + head.slot) * VQKV_BLOCK +
             head.token % VQKV_BLOCK + 1;
        if (at <= before)
            return 0;
        before = at;
    }
    return 1;
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
    if (head->n_kept > (VQKV__KEEPS ? (uint64_t)head->n_sealed * VQKV_BLOCK * VQKV__SLOTS : 0) ||
        head->bytes != vqkv__saved_bytes(head->n_tokens, head->n_sealed, head->n_kept) ||
        bytes < head->bytes)
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
    if (!vqkv__kept_in_order(src + sizeof *head + head->n_sealed * (size_t)VQKV__POOL_BYTES,
                             head->n_kept, head->n_sealed))
        return VQKV_E_FORMAT;
    {
        /* What the sequence gives up on being replaced counts as free. */
        int j, free_blocks = kv->n_free, free_kept = kv->config.n_exact - kv->n_kept;
        const vqkv__entry *blocks = vqkv__blocks(kv, seq);
        for (j = 0; j < vqkv__sequence(kv, seq)->n_sealed; j++)
            if (vqkv__references(kv)[blocks[j].block] == 1) {
                free_blocks++;
                free_kept += vqkv__count_kept(kv, blocks[j].block);
            }
        if (head->n_sealed > (uint32_t)free_blocks || head->n_kept > (uint64_t)free_kept)
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
    uint64_t kept;
    int i;
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
        p = vqkv__move_block(kv, entry->block, 0, (unsigned char *)(uintptr_t)p);
    }
    p += head.n_kept * VQKV__SAVED_VECTOR;
    for (kept = 1; kept <= head.n_kept; kept++) { /* backwards: chains grow in front */
        const unsigned char *at = p - kept * VQKV__SAVED_VECTOR;
        vqkv__saved_vector place;
        memcpy(&place, at, sizeof place);
        vqkv__put_kept(kv, (int)place.slot, vqkv__blocks(kv, seq)[place.token / VQKV_BLOCK].block,
                       (int)(place.token % VQKV_BLOCK), at + sizeof place);
    }
    q->n_sealed = (int32_t)head.n_sealed;
    q->target = (int32_t)head.n_tokens;
    for (i = 0; i < VQKV_N_LAYERS; i++)
        q->n_tokens[i] = (int32_t)head.n_tokens;
    vqkv__move_exact(kv, seq, 0, (unsigned char *)(uintptr_t)p);
    return VQKV_OK;
}
