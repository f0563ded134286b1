/* Encoding what is kept beside the codes: outliers, gains, ranges and shifts. Each function leaves
 * in z [n_latents, BLOCK] what its successor sees; in the end the quotients that coders take. */

/* Which latents of a token are outliers, and so no part of means and extremes: [n_latents, BLOCK],
 * or NULL where a stream keeps none. */
typedef const unsigned char *vqkv__outs;

static inline int vqkv__is_out(vqkv__outs mask, int c, int t)
{
    return mask != NULL && mask[(size_t)c * VQKV_BLOCK + (size_t)t];
}

static inline float vqkv__store_half(unsigned char *p, float x)
{
    uint16_t half = vqkv__to_half(x);
    memcpy(p, &half, 2);
    return vqkv__from_half(half);
}

/* rank [n_latents, BLOCK]: how far latents are from their centres; centre [BLOCK]: of tokens, where
 * there is no table. */
static void vqkv__rank_latents(const vqkv__stream *s, const float *z, float *rank, float *centre)
{
    double sum[VQKV_BLOCK] = {0.0};
    const unsigned char *table = s->spread >= 0 ? vqkv__table(s->spread) : NULL;
    int c, t;
    for (c = 0; c < s->n_latents; c++)
        for (t = 0; t < VQKV_BLOCK; t++)
            sum[t] += (double)z[(size_t)c * VQKV_BLOCK + (size_t)t];
    for (t = 0; t < VQKV_BLOCK; t++)
        centre[t] = (float)(sum[t] / s->n_latents);
    for (c = 0; c < s->n_latents; c++) {
        const float *x = z + (size_t)c * VQKV_BLOCK;
        float middle = table != NULL ? vqkv__half_at(table, (size_t)c) : 0.0f;
        float inverse =
            table != NULL ? vqkv__half_at(table, (size_t)s->n_latents + (size_t)c) : 1.0f;
        for (t = 0; t < VQKV_BLOCK; t++)
            vqkv__row(rank, c)[t] = fabsf(x[t] - (table != NULL ? middle : centre[t])) * inverse;
    }
}

/* Keeps the outliers of every token and puts their centres in their place. rank: room for
 * [n_latents, BLOCK]. */
static void vqkv__encode_outliers(const vqkv__stream *s, unsigned char *codes, float *z,
                                  unsigned char *mask, float *rank)
{
    float centre[VQKV_BLOCK], top[VQKV_BLOCK];
    int index[VQKV_BLOCK], wide = vqkv__index_bytes(s) == 2, i, c, t;
    unsigned char *values = codes + s->kept;
    memset(mask, 0, (size_t)s->n_latents * VQKV_BLOCK);
    vqkv__rank_latents(s, z, rank, centre);
    for (i = 0; i < s->outliers; i++) {
        unsigned char *place = values + 2 * VQKV_BLOCK;
        for (t = 0; t < VQKV_BLOCK; t++) {
            top[t] = -1.0f;
            index[t] = 0;
        }
        for (c = 0; c < s->n_latents; c++)
            for (t = 0; t < VQKV_BLOCK; t++)
                if (vqkv__row(rank, c)[t] > top[t]) {
                    top[t] = vqkv__row(rank, c)[t];
                    index[t] = c;
                }
        for (t = 0; t < VQKV_BLOCK; t++) {
            float *x = &vqkv__row(z, index[t])[t];
            vqkv__store_half(values + 2 * t, *x);
            *x = s->spread >= 0 ? vqkv__half_at(vqkv__table(s->spread), (size_t)index[t])
                                : centre[t];
            vqkv__row(rank, index[t])[t] = -2.0f;
            mask[(size_t)index[t] * VQKV_BLOCK + (size_t)t] = 1;
            place[wide ? 2 * t : t] = (unsigned char)(index[t] & 255);
            if (wide)
                place[2 * t + 1] = (unsigned char)(index[t] >> 8);
        }
        values = place + (wide ? 2 : 1) * VQKV_BLOCK;
    }
}

/* rms [BLOCK] of every token's group of latents. */
static void vqkv__group_rms(const vqkv__ops *ops, const vqkv__stream *s, int group, const float *z,
                            vqkv__outs mask, float *rms)
{
    double sum[VQKV_BLOCK] = {0.0};
    int left[VQKV_BLOCK] = {0}, c, t;
    if (mask == NULL) {
        ops->code->squares(z + (size_t)(group * s->gain_width) * VQKV_BLOCK, s->gain_width, rms);
        for (t = 0; t < VQKV_BLOCK; t++)
            rms[t] = sqrtf(rms[t] / (float)s->gain_width);
        return;
    }
    for (c = group * s->gain_width; c < (group + 1) * s->gain_width; c++)
        for (t = 0; t < VQKV_BLOCK; t++) {
            double x = (double)z[(size_t)c * VQKV_BLOCK + (size_t)t];
            int in = !vqkv__is_out(mask, c, t);
            sum[t] += in ? x * x : 0.0;
            left[t] += in;
        }
    for (t = 0; t < VQKV_BLOCK; t++)
        rms[t] = left[t] > 0 ? (float)sqrt(sum[t] / left[t]) : 0.0f;
}

/* top [BLOCK]: the first latent of largest magnitude in every token's group. */
static void vqkv__group_top(const vqkv__stream *s, int group, const float *z, vqkv__outs mask,
                            float *top)
{
    int c, t;
    memset(top, 0, sizeof(float) * VQKV_BLOCK);
    for (c = group * s->gain_width; c < (group + 1) * s->gain_width; c++)
        for (t = 0; t < VQKV_BLOCK; t++) {
            float x = z[(size_t)c * VQKV_BLOCK + (size_t)t];
            if (fabsf(x) > fabsf(top[t]) && !vqkv__is_out(mask, c, t))
                top[t] = x;
        }
}

/* About where gain stands among the 256 values of a stream's table, 0 .. 254. */
static int vqkv__guess_gain(const vqkv__stream *s, const unsigned char *values, float gain)
{
    /* The last value, where gains take one byte. A constant instead makes gcc warn of headers whose
     * tables are shorter, since none of their streams comes here. */
    size_t end = (size_t)s->gain_bytes * 255;
    float first = (float)vqkv__to_bits(vqkv__half_at(values, 0));
    float last = (float)vqkv__to_bits(vqkv__half_at(values, end));
    float at = ((float)vqkv__to_bits(gain) - first) / (last - first) * 255.0f;
    return !(at > 0.0f) ? 0 : at < 254.0f ? (int)at : 254;
}

/* Quantizes and stores one gain; returns what it will be read as. */
static float vqkv__store_gain(const vqkv__stream *s, unsigned char *p, float gain)
{
    const unsigned char *values = vqkv__table(s->gain_table);
    int low, high;
    if (s->gain_bytes == 2)
        return vqkv__store_half(p, gain);
    /* The 256 values ascend, nearly in steps of equal ratio, so the bits of a float, nearly its
     * logarithm, say where to begin. Take the nearest by ratio. */
    low = vqkv__guess_gain(s, values, gain);
    while (low < 254 && vqkv__half_at(values, (size_t)low + 1) <= gain)
        low++;
    while (low > 0 && vqkv__half_at(values, (size_t)low) > gain)
        low--;
    high = low + 1;
    if (gain * gain > vqkv__half_at(values, (size_t)low) * vqkv__half_at(values, (size_t)high))
        low = high;
    *p = (unsigned char)low;
    return vqkv__half_at(values, (size_t)low);
}

static inline float vqkv__inverse(float x)
{
    return x != 0.0f ? 1.0f / x : 0.0f;
}

/* RMS, and gains by the largest magnitude; levels: codewords of the group's uniform coder. */
static void vqkv__encode_plain(const vqkv__ops *ops, const vqkv__stream *s, unsigned char *codes,
                               int group, int levels, float *z, vqkv__outs mask)
{
    float gain[VQKV_BLOCK], inverse[VQKV_BLOCK], *rows = vqkv__row(z, group * s->gain_width);
    int t;
    if (s->gain == VQKV__RMS)
        vqkv__group_rms(ops, s, group, z, mask, gain);
    else
        vqkv__group_top(s, group, z, mask, gain);
    for (t = 0; t < VQKV_BLOCK; t++) {
        float exact = s->gain == VQKV__RMS      ? gain[t]
                      : s->gain == VQKV__ABSMAX ? fabsf(gain[t]) / (float)(levels / 2 - 1)
                                                : gain[t] / -(float)(levels / 2);
        float kept = vqkv__store_gain(s, codes + (group * VQKV_BLOCK + t) * s->gain_bytes, exact);
        inverse[t] = s->gain == VQKV__RMS ? vqkv__inverse(kept)
                     : kept != 0.0f       ? vqkv__inverse(exact)
                                          : 0.0f;
    }
    ops->scale_rows(inverse, rows, s->gain_width, rows);
}

/* levels: codewords of uniform codes; 0: others. */
static void vqkv__encode_range(const vqkv__stream *s, unsigned char *codes, int group, int levels,
                               float *z, vqkv__outs mask)
{
    int first = group * s->gain_width, i, c, t;
    for (i = 0; i < VQKV_BLOCK / s->gain_tokens; i++) {
        float low = 0.0f, high = 0.0f, offset, step;
        int left = 0, from = i * s->gain_tokens, to = from + s->gain_tokens;
        unsigned char *p = vqkv__range_at(s, codes, group, i);
        for (c = first; c < first + s->gain_width; c++)
            for (t = from; t < to; t++) {
                float x = vqkv__row(z, c)[t];
                if (vqkv__is_out(mask, c, t))
                    continue;
                low = left == 0 || x < low ? x : low;
                high = left == 0 || x > high ? x : high;
                left = 1;
            }
        offset = levels > 0 ? low : (low + high) / 2.0f;
        step = levels > 0 ? (high - low) / (float)(levels - 1) : (high - low) / 2.0f;
        offset = vqkv__store_half(p, offset);
        step = vqkv__store_half(p + 2, step);
        /* True quotients: with offsets that are latents, halves between two codes are common. */
        for (c = first; c < first + s->gain_width; c++)
            for (t = from; t < to; t++) {
                float *x = &vqkv__row(z, c)[t];
                *x = step != 0.0f ? (*x - offset) / step : 0.0f;
            }
    }
}

/* Stores one of the two planes of gains of NSN and divides by it. */
static void vqkv__divide_rms(const vqkv__ops *ops, const vqkv__stream *s, unsigned char *plane,
                             int group, float *z, vqkv__outs mask)
{
    float gain[VQKV_BLOCK], *rows = vqkv__row(z, group * s->gain_width);
    int t;
    vqkv__group_rms(ops, s, group, z, mask, gain);
    for (t = 0; t < VQKV_BLOCK; t++)
        gain[t] = vqkv__inverse(vqkv__store_half(plane + 2 * t, gain[t]));
    ops->scale_rows(gain, rows, s->gain_width, rows);
}

static void vqkv__encode_shifts(const vqkv__ops *ops, const vqkv__stream *s, unsigned char *codes,
                                int group, float *z, vqkv__outs mask)
{
    int first = group * s->gain_width, i, c, t;
    unsigned char *planes = codes + group * 4 * VQKV_BLOCK;
    vqkv__divide_rms(ops, s, planes, group, z, mask);
    for (c = first; c < first + s->gain_width; c++)
        for (i = 0; i < VQKV_BLOCK / s->gain_tokens; i++) {
            float *x = vqkv__row(z, c), shift;
            double sum = 0.0;
            int left = 0, from = i * s->gain_tokens, to = from + s->gain_tokens;
            for (t = from; t < to; t++)
                if (!vqkv__is_out(mask, c, t)) {
                    sum += (double)x[t];
                    left++;
                }
            shift = vqkv__store_half(vqkv__shift_at(s, codes, i) + 2 * c,
                                     left > 0 ? (float)(sum / left) : 0.0f);
            for (t = from; t < to; t++)
                x[t] -= shift;
        }
    vqkv__divide_rms(ops, s, planes + 2 * VQKV_BLOCK, group, z, mask);
}

static void vqkv__encode_gains(const vqkv__ops *ops, const vqkv__stream *s, unsigned char *codes,
                               float *z, vqkv__outs mask)
{
    const vqkv__run *run = &vqkv__runs[s->first_run];
    int group;
    for (group = 0; group < s->n_gains; group++) {
        int levels = 0;
        while (run->first + run->planes / run->stages * run->width <= group * s->gain_width)
            run++;
        if (run->uniform)
            levels = 1 << run->bits;
        if (s->gain == VQKV__RANGE)
            vqkv__encode_range(s, codes, group, levels, z, mask);
        else if (s->gain == VQKV__NSN)
            vqkv__encode_shifts(ops, s, codes, group, z, mask);
        else
            vqkv__encode_plain(ops, s, codes, group, levels, z, mask);
    }
}
