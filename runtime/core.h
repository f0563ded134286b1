/* Scalar helpers, rotation, and places in the caller's memory. */

static inline float vqkv__from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t vqkv__to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* binary16 to float: scaling by 2^112 corrects the exponent bias and normalises subnormals. */
static inline float vqkv__from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7fffu) << 13;
    if (mag >= 0x0f800000u)
        return vqkv__from_bits(sign | mag | 0x7f800000u);
    return vqkv__from_bits(sign |
                           vqkv__to_bits(vqkv__from_bits(mag) * vqkv__from_bits(0x77800000u)));
}

/* float to binary16, to nearest even; what is too large becomes the largest finite value. */
static inline uint16_t vqkv__to_half(float f)
{
    uint32_t bits = vqkv__to_bits(f), sign = (bits >> 16) & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag >= 0x477ff000u)
        return (uint16_t)(sign | 0x7bffu);
    if (mag < 0x38800000u)
        return (uint16_t)(sign | (vqkv__to_bits(vqkv__from_bits(mag) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13));
}

/* The i-th binary16 value at p, which need not be aligned. */
static inline float vqkv__half_at(const unsigned char *p, size_t i)
{
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return vqkv__from_half(h);
}

static inline const unsigned char *vqkv__table(int offset)
{
    return (const unsigned char *)vqkv__tables + 2 * (size_t)offset;
}

/* A table of binary16 from its i-th value on. */
static inline vqkv__matrix vqkv__halves(int offset, size_t i)
{
    vqkv__matrix m;
    m.values = vqkv__table(offset) + 2 * i;
    m.scale = NULL;
    return m;
}

/* Entry i of a table as it stands: in bytes, without the scale of its column. */
static inline float vqkv__raw_at(const vqkv__matrix *m, size_t i)
{
    return m->scale == NULL ? vqkv__half_at(m->values, i) : (float)(signed char)m->values[i];
}

/* o [rows, n_out] += table [n_out, n_in], without scales, times y [rows, n_in]: inputs that are
 * fewer than a vector has lanes. */
static void vqkv__unmap_short(const vqkv__matrix *table, int n_out, int n_in, const float *y,
                              int rows, float *o)
{
    int r, d, j;
    for (r = 0; r < rows; r++, y += n_in, o += n_out)
        for (d = 0; d < n_out; d++)
            for (j = 0; j < n_in; j++)
                o[d] += y[j] * vqkv__raw_at(table, (size_t)d * (size_t)n_in + (size_t)j);
}

/* One member's rows of a stream's basis, enc or dec. */
static inline vqkv__matrix vqkv__basis(const vqkv__stream *s, int offset, int member)
{
    vqkv__matrix m = vqkv__halves(offset, 0);
    size_t latents = (size_t)s->n_latents, rows = (size_t)member * VQKV_HEAD_DIM;
    if (s->basis_bytes == 2) {
        m.values += 2 * rows * latents;
        return m;
    }
    m.scale = m.values + 2 * (size_t)member * latents;
    m.values += 2 * (size_t)s->n_members * latents + rows * latents;
    return m;
}

static inline double vqkv__rope_freq(int pair)
{
    double f;
    memcpy(&f, &vqkv__rope_bits[pair], sizeof f);
    return f;
}

/* cs [VQKV_N_ROT]: cosine and sine of `position` for each pair. Angles in double: positions reach
 * millions of radians. */
static void vqkv__angles(double position, float *cs)
{
    int i;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        cs[2 * i] = (float)cos(position * vqkv__rope_freq(i));
        cs[2 * i + 1] = (float)sin(position * vqkv__rope_freq(i));
    }
}

/* The position that a pair counts as un-rotated at in the frame of a block at `position`. */
static inline int vqkv__base_of(int pair, int position)
{
    int span = vqkv__spans[pair];
    return span > 0 ? position - ((position - VQKV_N_SINK) & (span - 1)) : 0; /* a power of two */
}

/* cs [VQKV_N_ROT]: of the angles that keys of a block at `position` are turned back by in a frame,
 * besides those of their offsets in PRE. */
static void vqkv__frame_angles(int frame, int position, float *cs)
{
    int i;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        double at = frame == VQKV__PRE ? position : vqkv__base_of(i, position);
        cs[2 * i] = (float)cos(at * vqkv__rope_freq(i));
        cs[2 * i + 1] = (float)sin(at * vqkv__rope_freq(i));
    }
}

/* In-place orthonormal Walsh-Hadamard transform of x [n], n a power of two. */
static void vqkv__hadamard(float *x, int n)
{
    int step, i, j;
    float norm = 1.0f / sqrtf((float)n);
    for (step = 1; step < n; step *= 2)
        for (i = 0; i < n; i += 2 * step)
            for (j = i; j < i + step; j++) {
                float a = x[j], b = x[j + step];
                x[j] = a + b;
                x[j + step] = a - b;
            }
    for (i = 0; i < n; i++)
        x[i] *= norm;
}

/* ---- places in the caller's memory ---- */

static inline unsigned char *vqkv__base(const vqkv *kv)
{
    return (unsigned char *)(uintptr_t)(const void *)kv;
}

static inline vqkv__seq *vqkv__sequence(const vqkv *kv, int seq)
{
    return (vqkv__seq *)(void *)(vqkv__base(kv) + kv->seqs) + seq;
}

static inline vqkv__entry *vqkv__blocks(const vqkv *kv, int seq)
{
    return (vqkv__entry *)(void *)(vqkv__base(kv) + kv->tables) +
           (size_t)seq * (size_t)kv->seq_blocks;
}

/* How many sequences hold each block of the pool; 0: free. */
static inline int32_t *vqkv__references(const vqkv *kv)
{
    return (int32_t *)(void *)(vqkv__base(kv) + kv->references);
}

static inline float *vqkv__work(const vqkv *kv)
{
    return (float *)(void *)(vqkv__base(kv) + kv->work);
}

/* Cosines and sines of the offsets of tokens in a block: [N_ROT / 2, 2, BLOCK]. */
static inline float *vqkv__turns(const vqkv *kv)
{
    return (float *)(void *)(vqkv__base(kv) + kv->turns);
}

/* A stream's part of a block: streams lie one after the other, each contiguous over the pool. */
static inline unsigned char *vqkv__codes(const vqkv *kv, int stream, int block)
{
    const vqkv__stream *s = &vqkv__streams[stream];
    return vqkv__base(kv) + kv->pool + (size_t)s->start * (size_t)kv->config.n_blocks +
           (size_t)s->bytes * (size_t)block;
}

/* The landmarks of one head in a block: behind the streams, head by head. */
static inline unsigned char *vqkv__landmarks(const vqkv *kv, int layer, int head, int block)
{
    size_t start = (size_t)VQKV__BLOCK_BYTES +
                   (size_t)(layer * VQKV_N_KV_HEADS + head) * (size_t)VQKV__LANDMARK_BYTES;
    return vqkv__base(kv) + kv->pool + start * (size_t)kv->config.n_blocks +
           (size_t)VQKV__LANDMARK_BYTES * (size_t)block;
}

static inline int vqkv__slot(int part, int layer, int head)
{
    return (part * VQKV_N_LAYERS + layer) * VQKV_N_KV_HEADS + head;
}

/* The exact list: the chain of a head in a block, a link, its vector. */
static inline int32_t *vqkv__kept_first(const vqkv *kv, int slot, int block)
{
    return (int32_t *)(void *)(vqkv__base(kv) + kv->kept_firsts) +
           (size_t)slot * (size_t)kv->config.n_blocks + block;
}

static inline vqkv__link *vqkv__kept_link(const vqkv *kv, int32_t i)
{
    return (vqkv__link *)(void *)(vqkv__base(kv) + kv->kept_links) + (i - 1);
}

static inline unsigned char *vqkv__kept_row(const vqkv *kv, int32_t i)
{
    return vqkv__base(kv) + kv->kept_rows + (size_t)(i - 1) * VQKV_HEAD_DIM * 2;
}

/* Tokens before this one are sinks or lie in blocks. */
static inline int vqkv__n_coded(const vqkv__seq *q)
{
    return VQKV_N_SINK + q->n_sealed * VQKV_BLOCK;
}

/* The exact vector of one token: binary16 [VQKV_HEAD_DIM], keys rotated. Neighbouring tokens are
 * neighbours up to the end of the ring. */
static inline unsigned char *vqkv__exact(const vqkv *kv, int seq, int layer, int part, int head,
                                         int token)
{
    int slot = token < VQKV_N_SINK ? token : VQKV_N_SINK + (token - VQKV_N_SINK) % kv->ring;
    size_t row =
        (((size_t)seq * VQKV_N_LAYERS + (size_t)layer) * 2 + (size_t)part) * VQKV_N_KV_HEADS +
        (size_t)head;
    row = row * (size_t)(VQKV_N_SINK + kv->ring) + (size_t)slot;
    return vqkv__base(kv) + kv->exact + row * VQKV_HEAD_DIM * 2;
}

/* The streams that hold one head: uses first .. first + n - 1. */
static inline const vqkv__use *vqkv__uses_of(int part, int layer, int head, int *n)
{
    int i = (part * VQKV_N_LAYERS + layer) * VQKV_N_KV_HEADS + head;
    *n = vqkv__use_first[i + 1] - vqkv__use_first[i];
    return vqkv__uses + vqkv__use_first[i];
}
