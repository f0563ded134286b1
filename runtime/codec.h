/* Encoding a block and decoding it back, on any instruction set. */

/* The gains of one group for all tokens of a block. */
static void vqkv__read_gains(const vqkv__ops *ops, const vqkv__stream *s,
                             const unsigned char *codes, int group, float *gain)
{
    int t;
    if (s->gain != VQKV__NO_GAIN)
        ops->gains(codes + group * VQKV_BLOCK * s->gain_bytes,
                   s->gain_bytes == 1 ? vqkv__table(s->gain_table) : NULL, gain);
    else
        for (t = 0; t < VQKV_BLOCK; t++)
            gain[t] = 1.0f;
}

static inline int vqkv__read_nibble(const unsigned char *plane, int t)
{
    return plane[t % (VQKV_BLOCK / 2)] >> (t / (VQKV_BLOCK / 2) * 4) & 15;
}

static inline void vqkv__write_nibble(unsigned char *plane, int t, int code)
{
    unsigned char *p = plane + t % (VQKV_BLOCK / 2);
    int shift = t / (VQKV_BLOCK / 2) * 4;
    *p = (unsigned char)((*p & ~(15 << shift)) | code << shift);
}

/* z [n_latents] of token t in units of its gain: the codewords. */
static void vqkv__read_codewords(const vqkv__stream *s, const unsigned char *codes, int t, float *z)
{
    int i, p, w;
    for (i = 0; i < s->n_runs; i++) {
        const vqkv__run *run = &vqkv__runs[s->first_run + i];
        const unsigned char *plane = codes + run->codes;
        for (p = 0; p < run->planes; p++) {
            float *dst = z + run->first + p / run->stages * run->width;
            if (run->coder == VQKV__WIDE) {
                if (p % run->stages == 0)
                    vqkv__read_wide_group(run, plane, p / run->stages, t, dst);
            } else if (run->coder == VQKV__HALVES) {
                dst[0] = vqkv__half_at(plane + p * 2 * VQKV_BLOCK, (size_t)t);
            } else if (run->coder == VQKV__BYTES) {
                dst[0] = (float)(plane[p * VQKV_BLOCK + t] - 128);
            } else {
                int code = vqkv__read_nibble(plane + p * (VQKV_BLOCK / 2), t);
                const unsigned char *book =
                    vqkv__table(run->book + (p / run->stages) * run->book_step +
                                p % run->stages * run->width * 16);
                for (w = 0; w < run->width; w++) {
                    float v = vqkv__half_at(book, (size_t)(w * 16 + code));
                    dst[w] = p % run->stages == 0 ? v : dst[w] + v;
                }
            }
        }
    }
}

/* out [BLOCK, HEAD_DIM] += one member's share of a stream's block, in the stream's frame. z: room
 * for VQKV__MAX_LATENTS + VQKV_BLOCK * VQKV__MAX_GAINS floats. */
static void vqkv__decode_member(const vqkv__ops *ops, int stream, const unsigned char *codes,
                                int member, float *z, float *out)
{
    const vqkv__stream *s = &vqkv__streams[stream];
    float *gains = z + VQKV__MAX_LATENTS;
    int t, j, d, row = member * VQKV_HEAD_DIM;
    for (j = 0; j < s->n_gains; j++)
        vqkv__read_gains(ops, s, codes, j, gains + j * VQKV_BLOCK);
    for (t = 0; t < VQKV_BLOCK; t++) {
        float *y = out + t * VQKV_HEAD_DIM;
        vqkv__read_codewords(s, codes, t, z);
        if (s->gain != VQKV__NO_GAIN)
            for (j = 0; j < s->n_latents; j++)
                z[j] *= gains[j / s->gain_width * VQKV_BLOCK + t];
        if (s->transform == VQKV__HADAMARD)
            vqkv__hadamard(z, s->n_in);
        for (d = 0; d < VQKV_HEAD_DIM; d++) {
            if (s->transform == VQKV__BASIS)
                y[d] +=
                    ops->dot_row(vqkv__table(s->dec + (row + d) * s->n_latents), s->n_latents, z);
            else
                y[d] += z[row + d];
            if (s->mean >= 0)
                y[d] += vqkv__half_at(vqkv__table(s->mean), (size_t)(row + d));
        }
    }
}

/* The latents of one token for encoding: z [n_latents] from x [n_in], which is destroyed. */
static void vqkv__transform(const vqkv__ops *ops, const vqkv__stream *s, float *x, float *z)
{
    int i;
    if (s->mean >= 0)
        ops->add_row(vqkv__table(s->mean), s->n_in, -1.0f, x);
    if (s->transform == VQKV__BASIS) {
        ops->map(vqkv__table(s->enc), s->n_in, s->n_latents, x, s->n_in, 1, z);
        return;
    }
    if (s->transform == VQKV__HADAMARD)
        vqkv__hadamard(x, s->n_in);
    for (i = 0; i < s->n_latents; i++)
        z[i] = x[i];
}

/* Chooses, quantizes and stores the gain of one group of latents; *exact is the gain before
 * quantization. levels: codewords of the group's uniform coder. */
static float vqkv__encode_gain(const vqkv__stream *s, unsigned char *codes, int group, int t,
                               const float *z, int levels, float *exact)
{
    unsigned char *p = codes + (group * VQKV_BLOCK + t) * s->gain_bytes;
    int i, n = s->n_latents - group * s->gain_width;
    float top = 0.0f, gain;
    double sum = 0.0;
    uint16_t half;
    if (n > s->gain_width)
        n = s->gain_width;
    for (i = 0; i < n; i++) {
        sum += (double)z[i] * (double)z[i];
        if (fabsf(z[i]) > fabsf(top))
            top = z[i];
    }
    if (s->gain == VQKV__RMS)
        gain = (float)sqrt(sum / n);
    else if (s->gain == VQKV__ABSMAX)
        gain = fabsf(top) / (float)(levels / 2 - 1);
    else
        gain = top / -(float)(levels / 2);
    *exact = gain;
    if (s->gain_bytes == 2) {
        half = vqkv__to_half(gain);
        memcpy(p, &half, 2);
        return vqkv__from_half(half);
    }
    /* The 256 values ascend: take the nearest by ratio. */
    {
        const unsigned char *values = vqkv__table(s->gain_table);
        int low = 0, high = 255;
        while (high - low > 1) {
            int mid = (low + high) / 2;
            if (vqkv__half_at(values, (size_t)mid) <= gain)
                low = mid;
            else
                high = mid;
        }
        if (gain * gain > vqkv__half_at(values, (size_t)low) * vqkv__half_at(values, (size_t)high))
            low = high;
        *p = (unsigned char)low;
        return vqkv__half_at(values, (size_t)low);
    }
}

/* x as a code 0 .. last; a NaN gives 0. */
static inline int vqkv__clamp(float x, int last)
{
    return !(x > 0.0f) ? 0 : x < (float)last ? (int)x : last;
}

/* Codes the latents of one token by one run. z: the run's latents; gain: as stored; exact: before
 * it was rounded, which is what codes with a largest-magnitude gain are divided by. */
static void vqkv__encode_run(const vqkv__ops *ops, const vqkv__stream *s, const vqkv__run *run,
                             unsigned char *codes, int t, const float *z, float gain, float exact)
{
    unsigned char *plane = codes + run->codes;
    float inverse = gain != 0.0f ? 1.0f / gain : 0.0f, rest[VQKV__MAX_WIDTH];
    float inverse_exact = exact != 0.0f ? 1.0f / exact : 0.0f;
    int p, w, code, largest = s->gain == VQKV__ABSMAX || s->gain == VQKV__SIGNMAX;
    if (!largest)
        inverse_exact = inverse;
    for (p = 0; p < run->planes; p++) {
        const float *src = z + p / run->stages * run->width;
        if (run->coder == VQKV__WIDE) {
            if (p % run->stages != 0)
                continue;
            for (w = 0; w < run->width; w++)
                rest[w] = src[w] * inverse;
            vqkv__encode_wide_group(ops, run, plane, p / run->stages, t, rest);
        } else if (run->coder == VQKV__HALVES) {
            uint16_t half = vqkv__to_half(src[0] * inverse);
            memcpy(plane + (p * VQKV_BLOCK + t) * 2, &half, 2);
        } else if (run->coder == VQKV__BYTES) {
            plane[p * VQKV_BLOCK + t] =
                (unsigned char)vqkv__clamp(roundf(src[0] * inverse_exact) + 128.0f, 255);
        } else if (largest) {
            float scaled = src[0] * inverse_exact;
            scaled = s->gain == VQKV__SIGNMAX ? floorf(scaled + 8.5f) : roundf(scaled) + 8.0f;
            vqkv__write_nibble(plane + p * (VQKV_BLOCK / 2), t, vqkv__clamp(scaled, 15));
        } else {
            int stage = p % run->stages;
            const unsigned char *book =
                vqkv__table(run->book + p / run->stages * run->book_step + stage * run->width * 16);
            if (stage == 0)
                for (w = 0; w < run->width; w++)
                    rest[w] = src[w] * inverse;
            code = ops->nearest(book, run->width, rest);
            for (w = 0; w < run->width; w++)
                rest[w] -= vqkv__half_at(book, (size_t)(w * 16 + code));
            vqkv__write_nibble(plane + p * (VQKV_BLOCK / 2), t, code);
        }
    }
}

/* Codes one token's latents z [n_latents] by all runs of a stream. */
static void vqkv__encode_token(const vqkv__ops *ops, const vqkv__stream *s, unsigned char *codes,
                               int t, const float *z)
{
    int i, group = -1;
    float gain = 1.0f, exact = 1.0f;
    for (i = 0; i < s->n_runs; i++) {
        const vqkv__run *run = &vqkv__runs[s->first_run + i];
        if (s->gain != VQKV__NO_GAIN && run->gain != group) {
            group = run->gain;
            gain = vqkv__encode_gain(s, codes, group, t, z + group * s->gain_width,
                                     run->coder == VQKV__BYTES ? 256 : 16, &exact);
        }
        vqkv__encode_run(ops, s, run, codes, t, z + run->first, gain, exact);
    }
}

/* x [BLOCK, ldx]: one member's exact vectors of the block that starts at `token`, in the frame. */
static void vqkv__load_member(const vqkv *kv, const vqkv__ops *ops, int seq, const vqkv__member *m,
                              int frame, int token, float *x, int ldx)
{
    float cs[VQKV_N_ROT + 1] = {0.0f}, v[VQKV_HEAD_DIM];
    int t, d;
    if (m->part == VQKV_KEY && frame == VQKV__BLOCKWISE)
        vqkv__angles(token, cs);
    for (t = 0; t < VQKV_BLOCK; t++) {
        const unsigned char *row = vqkv__exact(kv, seq, m->layer, m->part, m->head, token + t);
        float *dst = x + (size_t)t * (size_t)ldx;
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            v[d] = 0.0f;
        ops->add_row(row, VQKV_HEAD_DIM, 1.0f, v);
        if (m->part == VQKV_KEY && frame == VQKV__PRE)
            vqkv__angles(token + t, cs);
        if (m->part == VQKV_KEY && frame != VQKV__POST)
            vqkv__turn(cs, -1.0f, v, dst);
        else
            memcpy(dst, v, sizeof v);
    }
}

/* Encodes one stream of the block that starts at `token` into pool block `block`. Streams are
 * encoded in order: what earlier ones have coded of a member is taken off first. */
static void vqkv__encode_stream(vqkv *kv, const vqkv__ops *ops, int seq, int stream, int token,
                                int block)
{
    const vqkv__stream *s = &vqkv__streams[stream];
    unsigned char *codes = vqkv__codes(kv, stream, block);
    float *x = vqkv__work(kv), *z = x + (size_t)VQKV_BLOCK * VQKV__MAX_IN;
    float *part = z + VQKV__MAX_LATENTS, *spare = part + VQKV_BLOCK * VQKV_HEAD_DIM;
    int i, u, t, d, n_uses;
    memset(codes, 0, (size_t)s->bytes);
    for (i = 0; i < s->n_members; i++) {
        const vqkv__member *m = &vqkv__members[s->first_member + i];
        const vqkv__use *use = vqkv__uses_of(m->part, m->layer, m->head, &n_uses);
        float *dst = x + i * VQKV_HEAD_DIM;
        vqkv__load_member(kv, ops, seq, m, s->frame, token, dst, s->n_in);
        for (u = 0; u < n_uses && use[u].stream < stream; u++) {
            memset(part, 0, sizeof(float) * VQKV_BLOCK * VQKV_HEAD_DIM);
            vqkv__decode_member(ops, use[u].stream, vqkv__codes(kv, use[u].stream, block),
                                use[u].member, spare, part);
            for (t = 0; t < VQKV_BLOCK; t++)
                for (d = 0; d < VQKV_HEAD_DIM; d++)
                    dst[(size_t)t * (size_t)s->n_in + (size_t)d] -= part[t * VQKV_HEAD_DIM + d];
        }
    }
    for (t = 0; t < VQKV_BLOCK; t++) {
        vqkv__transform(ops, s, x + (size_t)t * (size_t)s->n_in, z);
        vqkv__encode_token(ops, s, codes, t, z);
    }
}

/* out [BLOCK, HEAD_DIM]: one head of a block, all its streams added, keys rotated by their
 * positions. z: room as for vqkv__decode_member. */
static void vqkv__decode_head(const vqkv *kv, const vqkv__ops *ops, vqkv__entry entry, int part,
                              int layer, int head, float *z, float *out)
{
    int u, t, n_uses, frame = VQKV__POST;
    const vqkv__use *use = vqkv__uses_of(part, layer, head, &n_uses);
    float cs[VQKV_N_ROT + 1] = {0.0f};
    memset(out, 0, sizeof(float) * VQKV_BLOCK * VQKV_HEAD_DIM);
    for (u = 0; u < n_uses; u++) {
        vqkv__decode_member(ops, use[u].stream, vqkv__codes(kv, use[u].stream, entry.block),
                            use[u].member, z, out);
        frame = vqkv__streams[use[u].stream].frame;
    }
    if (part != VQKV_KEY || frame == VQKV__POST)
        return;
    vqkv__angles(entry.position, cs);
    for (t = 0; t < VQKV_BLOCK; t++) {
        if (frame == VQKV__PRE)
            vqkv__angles(entry.position + t, cs);
        vqkv__turn(cs, 1.0f, out + t * VQKV_HEAD_DIM, out + t * VQKV_HEAD_DIM);
    }
}
