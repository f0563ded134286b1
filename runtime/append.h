/* Appending tokens: they are kept exact until every layer has a block of them, then encoded. */

/* ---- blocks ---- */

static int vqkv__take_block(vqkv *kv)
{
    int32_t *references = vqkv__references(kv);
    int i = kv->next;
    while (references[i] != 0) /* n_free > 0: there is one */
        i = i + 1 < kv->config.n_blocks ? i + 1 : 0;
    references[i] = 1;
    kv->n_free--;
    kv->next = i + 1 < kv->config.n_blocks ? i + 1 : 0;
    return i;
}

static void vqkv__release_block(vqkv *kv, int block)
{
    if (--vqkv__references(kv)[block] > 0)
        return;
    if (VQKV__KEEPS)
        vqkv__drop_kept(kv, block);
    kv->n_free++;
}

/* The fewest tokens that a layer holds. */
static int vqkv__least(const vqkv__seq *q)
{
    int i, n = q->n_tokens[0];
    for (i = 1; i < VQKV_N_LAYERS; i++)
        if (q->n_tokens[i] < n)
            n = q->n_tokens[i];
    return n;
}

static int vqkv__in_step(const vqkv__seq *q)
{
    int i;
    for (i = 1; i < VQKV_N_LAYERS; i++)
        if (q->n_tokens[i] != q->n_tokens[0])
            return 0;
    return 1;
}

/* Blocks that are full and have left the exact window. */
static int vqkv__due(const vqkv__seq *q)
{
    int uncoded = q->n_tokens[0] - vqkv__n_coded(q) - VQKV_N_RECENT;
    return uncoded < VQKV_BLOCK ? 0 : uncoded / VQKV_BLOCK;
}

/* Encodes the oldest uncoded tokens of a sequence; where that takes more room on the exact list
 * than there is, nothing has changed. */
static vqkv_status vqkv__encode_block(vqkv *kv, int seq)
{
    const vqkv__ops *ops = vqkv__select(kv->config.isa);
    vqkv__seq *q = vqkv__sequence(kv, seq);
    int token = vqkv__n_coded(q), block = vqkv__take_block(kv);
    vqkv__entry *entry = &vqkv__blocks(kv, seq)[q->n_sealed];
    vqkv__encode_tokens(kv, ops, seq, token, block);
    if (VQKV_LANDMARKS > 0)
        vqkv__write_landmarks(kv, ops, seq, token, block);
    entry->block = block;
    entry->position = token;
    if (VQKV__KEEPS && !vqkv__keep_bad(kv, ops, seq, *entry)) {
        vqkv__release_block(kv, block);
        return VQKV_E_FULL;
    }
    q->n_sealed++;
    return VQKV_OK;
}

/* ---- append ---- */

static inline size_t vqkv__type_bytes(vqkv_type type)
{
    return type == VQKV_F32 ? 4 : 2;
}

/* By the exponents, since an engine's compiler may assume that numbers are finite; eight bytes at a
 * time: one added to an exponent of ones carries into the bit of the sign, which is masked. */
static int vqkv__all_finite(const void *src, vqkv_type type, size_t n)
{
    static const uint64_t exponents[] = {0x7f8000007f800000u, 0x7c007c007c007c00u,
                                         0x7f807f807f807f80u};
    static const uint64_t ones[] = {0x0080000000800000u, 0x0400040004000400u, 0x0080008000800080u};
    const unsigned char *p = (const unsigned char *)src;
    uint64_t mask = exponents[type], one = ones[type], bad = 0, word = 0;
    size_t i, bytes = n * vqkv__type_bytes(type);
    for (i = 0; i + 8 <= bytes; i += 8) {
        memcpy(&word, p + i, 8);
        bad |= (word & mask) + one;
    }
    word = 0;
    memcpy(&word, p + i, bytes - i);
    bad |= (word & mask) + one;
    return !(bad & ~mask & (mask << 1));
}

/* x [HEAD_DIM] of `type`, to fp32. */
static void vqkv__read_input(const vqkv__ops *ops, const unsigned char *src, vqkv_type type,
                             float *x)
{
    int d;
    if (type == VQKV_F32) {
        memcpy(x, src, sizeof(float) * VQKV_HEAD_DIM);
    } else if (type == VQKV_F16) {
        memset(x, 0, sizeof(float) * VQKV_HEAD_DIM);
        ops->add_row(src, VQKV_HEAD_DIM, 1.0f, x);
    } else {
        for (d = 0; d < VQKV_HEAD_DIM; d++) {
            uint16_t h;
            memcpy(&h, src + 2 * d, 2);
            x[d] = vqkv__from_bits((uint32_t)h << 16);
        }
    }
}

/* Angles of one token after the other. */
typedef struct vqkv__turning {
    double at[VQKV_N_ROT + 1], step[VQKV_N_ROT + 1]; /* cosine and sine of each pair */
    float cosines[VQKV_N_ROT / 2 + 1], sines[VQKV_N_ROT / 2 + 1];
} vqkv__turning;

static void vqkv__exact_angles(double position, double *cs)
{
    int i;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        cs[2 * i] = cos(position * vqkv__rope_freq(i));
        cs[2 * i + 1] = sin(position * vqkv__rope_freq(i));
    }
}

/* To the i-th of n tokens from `first` on, in order. Each 64th has its own sines; those between
 * turn on by one token, in double, which is exact enough for any fp32 and many times quicker. */
static void vqkv__turn_on(vqkv__turning *a, int first, int i, int n)
{
    int j;
    if (i == 0 && n > 1)
        vqkv__exact_angles(1.0, a->step);
    if (i % 64 == 0)
        vqkv__exact_angles(first + i, a->at);
    for (j = 0; j < VQKV_N_ROT / 2; j++) {
        double c = a->at[2 * j], s = a->at[2 * j + 1];
        if (i % 64 != 0) {
            a->at[2 * j] = c * a->step[2 * j] - s * a->step[2 * j + 1];
            a->at[2 * j + 1] = c * a->step[2 * j + 1] + s * a->step[2 * j];
        }
        a->cosines[j] = (float)a->at[2 * j] * VQKV__ROPE_SCALE;
        a->sines[j] = (float)a->at[2 * j + 1] * VQKV__ROPE_SCALE;
    }
}

/* All heads of one token of a layer; `turning`: of keys that come without their rotation, or NULL.
 */
static void vqkv__store_token(vqkv *kv, const vqkv__ops *ops, int seq, int layer, int token,
                              const unsigned char *src, vqkv_type type, int part,
                              const vqkv__turning *turning)
{
    float x[VQKV_HEAD_DIM];
    int head;
    for (head = 0; head < VQKV_N_KV_HEADS; head++, src += VQKV_HEAD_DIM * vqkv__type_bytes(type)) {
        unsigned char *dst = vqkv__exact(kv, seq, layer, part, head, token);
        if (type == VQKV_F16 && turning == NULL) {
            memcpy(dst, src, 2 * VQKV_HEAD_DIM);
            continue;
        }
        vqkv__read_input(ops, src, type, x);
        if (turning != NULL)
            ops->code->turn_row(turning->cosines, turning->sines, x);
        ops->code->store_row(x, VQKV_HEAD_DIM, dst);
    }
}

vqkv_status vqkv_append(vqkv *kv, int seq, int layer, int n, const void *k, const void *v,
                        vqkv_type type, vqkv_keys keys)
{
    size_t row = (size_t)VQKV_N_KV_HEADS * VQKV_HEAD_DIM, bytes;
    const vqkv__ops *ops;
    vqkv__turning turning;
    vqkv_status status = VQKV_OK;
    vqkv__seq *q;
    int i, held;
    if (kv == NULL || k == NULL || v == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= VQKV_N_LAYERS || n < 1 || (unsigned)type > VQKV_BF16 ||
        (unsigned)keys > VQKV_KEYS_UNROTATED)
        return VQKV_E_ARGUMENT;
    if (n > kv->config.max_batch)
        return VQKV_E_BATCH;
    q = vqkv__sequence(kv, seq);
    held = q->n_tokens[layer];
    if (n > kv->config.n_ctx - held)
        return VQKV_E_CONTEXT;
    if (!vqkv__all_finite(k, type, (size_t)n * row) || !vqkv__all_finite(v, type, (size_t)n * row))
        return VQKV_E_VALUE;
    if (vqkv__in_step(q)) {
        if (vqkv__due(q) > kv->n_free)
            return VQKV_E_FULL;
        while (status == VQKV_OK && vqkv__due(q) > 0)
            status = vqkv__encode_block(kv, seq);
        if (status != VQKV_OK)
            return status;
        q->target = held + n;
    } else if (held + n != q->target) {
        return VQKV_E_ORDER;
    }
    ops = vqkv__select(kv->config.isa);
    bytes = row * vqkv__type_bytes(type);
    for (i = 0; i < n; i++) {
        if (keys == VQKV_KEYS_UNROTATED)
            vqkv__turn_on(&turning, held, i, n);
        vqkv__store_token(kv, ops, seq, layer, held + i,
                          (const unsigned char *)k + (size_t)i * bytes, type, VQKV_KEY,
                          keys == VQKV_KEYS_UNROTATED ? &turning : NULL);
        vqkv__store_token(kv, ops, seq, layer, held + i,
                          (const unsigned char *)v + (size_t)i * bytes, type, VQKV_VALUE, NULL);
    }
    q->n_tokens[layer] = held + n;
    return VQKV_OK;
}
