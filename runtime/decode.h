/* Decoding: from the codes of a block to latents and vectors. Tiles are [channels, BLOCK]. */

static inline float *vqkv__row(float *tile, int row)
{
    return tile + (size_t)row * VQKV_BLOCK;
}

/* The gains of one group for all tokens of a block. NSN has two planes for each group. */
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

/* Offset and step of a gain group for the i-th tokens that share them: two binary16. */
static inline unsigned char *vqkv__range_at(const vqkv__stream *s, unsigned char *codes, int group,
                                            int i)
{
    return codes + (group * (VQKV_BLOCK / s->gain_tokens) + i) * 4;
}

/* The shifts of all latents for the i-th tokens that share them: binary16 [n_latents]. */
static inline unsigned char *vqkv__shift_at(const vqkv__stream *s, unsigned char *codes, int i)
{
    return codes + s->n_gains * 4 * VQKV_BLOCK + i * s->n_latents * 2;
}

/* x [width, BLOCK], or what is added to it, = codewords of a plane of another width than 4 bits. */
static void vqkv__decode_wide(const vqkv__ops *ops, const vqkv__run *run,
                              const unsigned char *plane, const unsigned char *book, int add,
                              float *x)
{
    unsigned char bytes[VQKV_BLOCK];
    unsigned short code[VQKV_BLOCK];
    float words[VQKV_BLOCK];
    int w, t;
    if (run->bits < 8)
        vqkv__unpack_rest(plane, run->bits, bytes);
    else if (run->bits > 8)
        vqkv__unpack_wide(plane, run->bits, code);
    for (w = 0; w < run->width; w++, x += VQKV_BLOCK, book += (size_t)2 << run->bits) {
        float *dst = add ? words : x;
        if (run->bits <= 8)
            ops->gains(run->bits < 8 ? bytes : plane, book, dst);
        else
            for (t = 0; t < VQKV_BLOCK; t++)
                dst[t] = vqkv__half_at(book, code[t]);
        if (add)
            ops->dense->add_scaled(VQKV_BLOCK, 1.0f, words, x);
    }
}

/* x [groups * width, BLOCK]: the codewords of one run. */
static void vqkv__decode_run(const vqkv__ops *ops, const vqkv__run *run, const unsigned char *codes,
                             float *x)
{
    unsigned char bytes[VQKV_BLOCK];
    int p;
    size_t size = vqkv__wide_bytes(run);
    for (p = 0; p < run->planes; p++, codes += size) {
        float *dst = vqkv__row(x, p / run->stages * run->width);
        int add = p % run->stages != 0;
        const unsigned char *book = vqkv__table(vqkv__wide_book(run, p));
        if (run->coder == VQKV__HALVES) {
            ops->gains(codes, NULL, dst);
        } else if (run->coder == VQKV__BYTES) {
            ops->dense->from_bytes(codes, -128.0f, dst);
        } else if (run->coder == VQKV__NIBBLES) {
            ops->dense->from_nibbles(codes, book, run->width, add, dst);
        } else if (run->uniform) {
            vqkv__unpack_rest(codes, run->bits, bytes);
            ops->dense->from_bytes(bytes, -(float)(1 << (run->bits - 1)), dst);
        } else {
            vqkv__decode_wide(ops, run, codes, book, add, dst);
        }
    }
}

/* z^ = o + s w of one gain group. Codewords of uniform codes count from their middle, `middle`,
 * offsets from code 0. */
static void vqkv__apply_range(const vqkv__ops *ops, const vqkv__stream *s,
                              const unsigned char *codes, int group, float middle, float *z)
{
    float step[VQKV_BLOCK], offset[VQKV_BLOCK];
    int i, t, c, n = VQKV_BLOCK / s->gain_tokens;
    for (i = 0; i < n; i++) {
        const unsigned char *p = vqkv__range_at(s, (unsigned char *)(uintptr_t)codes, group, i);
        float scale = vqkv__half_at(p, 1), shift = vqkv__half_at(p, 0) + scale * middle;
        if (s->gain_tokens >= 16)
            for (c = 0; c < s->gain_width; c++)
                ops->dense->affine_row(s->gain_tokens, scale, shift,
                                       vqkv__row(z, c) + i * s->gain_tokens);
        else
            for (t = i * s->gain_tokens; t < (i + 1) * s->gain_tokens; t++) {
                step[t] = scale;
                offset[t] = shift;
            }
    }
    if (s->gain_tokens < 16)
        ops->dense->affine(step, offset, s->gain_width, z);
}

/* z^ = s1 (m + s2 w) of one gain group. */
static void vqkv__apply_shifts(const vqkv__ops *ops, const vqkv__stream *s,
                               const unsigned char *codes, int group, float *z)
{
    float outer[VQKV_BLOCK], inner[VQKV_BLOCK], shift[VQKV_BLOCK];
    int c, t;
    vqkv__read_gains(ops, s, codes, 2 * group, outer);
    vqkv__read_gains(ops, s, codes, 2 * group + 1, inner);
    for (c = 0; c < s->gain_width; c++) {
        for (t = 0; t < VQKV_BLOCK; t++)
            shift[t] = vqkv__half_at(
                vqkv__shift_at(s, (unsigned char *)(uintptr_t)codes, t / s->gain_tokens),
                (size_t)(group * s->gain_width + c));
        ops->dense->affine(inner, shift, 1, vqkv__row(z, c));
    }
    ops->scale_rows(outer, z, s->gain_width, z);
}

static void vqkv__apply_gains(const vqkv__ops *ops, const vqkv__stream *s,
                              const unsigned char *codes, float *z)
{
    float gain[VQKV_BLOCK];
    const vqkv__run *run = &vqkv__runs[s->first_run];
    int group;
    for (group = 0; group < s->n_gains; group++) {
        int first = group * s->gain_width;
        float *rows = vqkv__row(z, first);
        while (run->first + run->planes / run->stages * run->width <= first)
            run++;
        if (s->gain == VQKV__RANGE) {
            float middle = run->uniform ? (float)(1 << (run->bits - 1)) : 0.0f;
            vqkv__apply_range(ops, s, codes, group, middle, rows);
        } else if (s->gain == VQKV__NSN) {
            vqkv__apply_shifts(ops, s, codes, group, rows);
        } else {
            vqkv__read_gains(ops, s, codes, group, gain);
            ops->scale_rows(gain, rows, s->gain_width, rows);
        }
    }
}

static inline int vqkv__index_bytes(const vqkv__stream *s)
{
    return s->n_latents <= 256 ? 1 : 2;
}

/* Puts kept latents where they belong: for each slot BLOCK of binary16, then BLOCK indices, which
 * may be anything where a saved cache was tampered with. */
static void vqkv__place_outliers(const vqkv__stream *s, const unsigned char *codes, float *z)
{
    int i, t, wide = vqkv__index_bytes(s) == 2;
    const unsigned char *values = codes + s->kept;
    for (i = 0; i < s->outliers; i++) {
        const unsigned char *index = values + 2 * VQKV_BLOCK;
        for (t = 0; t < VQKV_BLOCK; t++) {
            int c = wide ? index[2 * t] | index[2 * t + 1] << 8 : index[t];
            if (c < s->n_latents)
                vqkv__row(z, c)[t] = vqkv__half_at(values, (size_t)t);
        }
        values = index + (wide ? 2 : 1) * VQKV_BLOCK;
    }
}

/* In-place orthonormal Walsh-Hadamard transform of every token of x [n, BLOCK]. */
static void vqkv__hadamard_tile(const vqkv__ops *ops, float *x, int n)
{
    int step, i, j, t;
    for (step = 1; step < n; step *= 2)
        for (i = 0; i < n; i += 2 * step)
            for (j = i; j < i + step; j++) {
                float *a = vqkv__row(x, j), *b = vqkv__row(x, j + step);
                for (t = 0; t < VQKV_BLOCK; t++) {
                    float low = a[t], high = b[t];
                    a[t] = low + high;
                    b[t] = low - high;
                }
            }
    ops->shrink(x, (size_t)n * VQKV_BLOCK, 1.0f / sqrtf((float)n));
}

/* z [n_latents, BLOCK] of a stream's block; what a Hadamard transform mixed is unmixed already. */
static void vqkv__decode_latents(const vqkv__ops *ops, const vqkv__stream *s,
                                 const unsigned char *codes, float *z)
{
    int i;
    for (i = 0; i < s->n_runs; i++) {
        const vqkv__run *run = &vqkv__runs[s->first_run + i];
        vqkv__decode_run(ops, run, codes + run->codes, vqkv__row(z, run->first));
    }
    vqkv__apply_gains(ops, s, codes, z);
    vqkv__place_outliers(s, codes, z);
    if (s->transform == VQKV__HADAMARD)
        vqkv__hadamard_tile(ops, z, s->n_in);
}

/* out [HEAD_DIM, BLOCK] += sign * one member's share of a stream with latents z, which carry the
 * sign already where there is a basis. */
static void vqkv__add_member(const vqkv__ops *ops, const vqkv__stream *s, int member, float sign,
                             const float *z, float *out)
{
    int d, row = member * VQKV_HEAD_DIM;
    if (s->transform == VQKV__BASIS)
        ops->dense->product(vqkv__basis(s, s->dec, member), (size_t)s->n_latents, 1, s->n_latents,
                            VQKV_HEAD_DIM, z, out);
    else
        ops->dense->add_scaled((size_t)VQKV_HEAD_DIM * VQKV_BLOCK, sign,
                               z + (size_t)row * VQKV_BLOCK, out);
    for (d = 0; d < VQKV_HEAD_DIM && s->mean >= 0; d++)
        ops->dense->affine_row(VQKV_BLOCK, 1.0f,
                               sign * vqkv__half_at(vqkv__table(s->mean), (size_t)(row + d)),
                               vqkv__row(out, d));
}
