/* What is kept beside the codes: outliers, gains, ranges and shifts, by all threads. Each function
 * leaves in z [n_latents, BLOCK] what its successor sees; in the end the quotients that coders
 * take. A thread has one token of one gain group, so that sums are added up in the C header's
 * order. */

/* Which latents of a token are outliers, and so no part of means and extremes: [n_latents, BLOCK],
 * or null where a stream keeps none. */
__device__ inline bool is_out(const unsigned char *mask, int i)
{
    return mask != nullptr && mask[i] != 0;
}

/* Keeps the outliers of every token and puts their centres in their place. rank: room for
 * [n_latents, BLOCK]. */
__device__ inline void encode_outliers(const vqkv__stream &s, unsigned char *codes, float *z,
                                       unsigned char *mask, float *rank)
{
    each(block, [=, &s](int t) {
        int n = s.n_latents, bytes = index_bytes(s);
        double sum = 0.0;
        for (int c = 0; c < n; c++)
            sum += static_cast<double>(z[c * block + t]);
        float centre = static_cast<float>(sum / n);
        for (int c = 0; c < n; c++) {
            float middle = s.spread >= 0 ? table_at(s.spread, c) : centre;
            float inverse = s.spread >= 0 ? table_at(s.spread, n + c) : 1.0f;
            rank[c * block + t] = fabsf(z[c * block + t] - middle) * inverse;
            mask[c * block + t] = 0;
        }
        unsigned char *values = codes + s.kept;
        for (int i = 0; i < s.outliers; i++, values += (2 + bytes) * block) {
            unsigned char *place = values + 2 * block + bytes * t;
            float top = -1.0f;
            int index = 0;
            for (int c = 0; c < n; c++)
                if (rank[c * block + t] > top) {
                    top = rank[c * block + t];
                    index = c;
                }
            int at = index * block + t;
            store_half(values + 2 * t, z[at]);
            z[at] = s.spread >= 0 ? table_at(s.spread, index) : centre;
            rank[at] = -2.0f;
            mask[at] = 1;
            place[0] = static_cast<unsigned char>(index & 255);
            if (bytes == 2)
                place[1] = static_cast<unsigned char>(index >> 8);
        }
    });
    __syncthreads();
}

/* Root mean square of one token's group of latents. */
__device__ inline float group_rms(const vqkv__stream &s, int g, int t, const float *z,
                                  const unsigned char *mask)
{
    double sum = 0.0;
    int left = 0;
    for (int c = g * s.gain_width; c < (g + 1) * s.gain_width; c++)
        if (!is_out(mask, c * block + t)) {
            double x = static_cast<double>(z[c * block + t]);
            sum += x * x;
            left++;
        }
    return left > 0 ? static_cast<float>(sqrt(sum / left)) : 0.0f;
}

/* The first latent of largest magnitude in one token's group. */
__device__ inline float group_top(const vqkv__stream &s, int g, int t, const float *z,
                                  const unsigned char *mask)
{
    float top = 0.0f;
    for (int c = g * s.gain_width; c < (g + 1) * s.gain_width; c++) {
        float x = z[c * block + t];
        if (fabsf(x) > fabsf(top) && !is_out(mask, c * block + t))
            top = x;
    }
    return top;
}

/* Quantizes and stores one gain; returns what it will be read as. */
__device__ inline float store_gain(const vqkv__stream &s, unsigned char *codes, int i, float gain)
{
    int low = 0, high = 255;
    if (s.gain_bytes == 2)
        return store_half(codes + 2 * i, gain);
    while (high - low > 1) { /* the 256 values ascend: take the nearest by ratio */
        int mid = (low + high) / 2;
        if (table_at(s.gain_table, mid) <= gain)
            low = mid;
        else
            high = mid;
    }
    if (gain * gain > table_at(s.gain_table, low) * table_at(s.gain_table, high))
        low = high;
    codes[i] = static_cast<unsigned char>(low);
    return table_at(s.gain_table, low);
}

__device__ inline float inverse_of(float x)
{
    return x != 0.0f ? 1.0f / x : 0.0f;
}

/* Codewords of the uniform coder of a gain group; 0: another coder. */
__device__ inline int levels_of(const vqkv__stream &s, int g)
{
    const vqkv__run *run = vqkv__runs + s.first_run;
    while (run->first + run->planes / run->stages * run->width <= g * s.gain_width)
        run++;
    return run->uniform ? 1 << run->bits : 0;
}

/* RMS, and gains by the largest magnitude, of one token's group. */
__device__ inline void encode_plain(const vqkv__stream &s, unsigned char *codes, int g, int t,
                                    float *z, const unsigned char *mask)
{
    float inverse, kept;
    if (s.gain == VQKV__RMS) {
        kept = store_gain(s, codes, g * block + t, group_rms(s, g, t, z, mask));
        inverse = inverse_of(kept);
    } else {
        float top = group_top(s, g, t, z, mask), levels = static_cast<float>(levels_of(s, g) / 2);
        float exact = s.gain == VQKV__ABSMAX ? fabsf(top) / (levels - 1.0f) : top / -levels;
        kept = store_gain(s, codes, g * block + t, exact);
        inverse = kept != 0.0f ? inverse_of(exact) : 0.0f;
    }
    for (int c = g * s.gain_width; c < (g + 1) * s.gain_width; c++)
        z[c * block + t] *= inverse;
}

/* Offset and step of one group for the i-th tokens that share them. */
__device__ inline void encode_range(const vqkv__stream &s, unsigned char *codes, int g, int i,
                                    float *z, const unsigned char *mask)
{
    int first = g * s.gain_width, levels = levels_of(s, g);
    int from = i * s.gain_tokens, to = from + s.gain_tokens;
    float low = 0.0f, high = 0.0f;
    bool left = false;
    for (int c = first; c < first + s.gain_width; c++)
        for (int t = from; t < to; t++) {
            float x = z[c * block + t];
            if (is_out(mask, c * block + t))
                continue;
            low = !left || x < low ? x : low;
            high = !left || x > high ? x : high;
            left = true;
        }
    float offset = levels > 0 ? low : (low + high) / 2.0f;
    float step = levels > 0 ? (high - low) / static_cast<float>(levels - 1) : (high - low) / 2.0f;
    offset = store_half(codes + range_at(s, g, i), offset);
    step = store_half(codes + range_at(s, g, i) + 2, step);
    for (int c = first; c < first + s.gain_width; c++)
        for (int t = from; t < to; t++) {
            float *x = &z[c * block + t];
            *x = step != 0.0f ? (*x - offset) / step : 0.0f;
        }
}

/* Stores one of the two planes of gains of NSN and divides by it. */
__device__ inline void divide_rms(const vqkv__stream &s, unsigned char *codes, int second, float *z,
                                  const unsigned char *mask)
{
    each(s.n_gains * block, [=, &s](int i) {
        int g = i / block, t = i % block;
        unsigned char *p = codes + 2 * ((2 * g + second) * block + t);
        float inverse = inverse_of(store_half(p, group_rms(s, g, t, z, mask)));
        for (int c = g * s.gain_width; c < (g + 1) * s.gain_width; c++)
            z[c * block + t] *= inverse;
    });
    __syncthreads();
}

/* The shift of one latent for the i-th tokens that share it. */
__device__ inline void encode_shift(const vqkv__stream &s, unsigned char *codes, int c, int i,
                                    float *z, const unsigned char *mask)
{
    int from = i * s.gain_tokens, to = from + s.gain_tokens, left = 0;
    double sum = 0.0;
    for (int t = from; t < to; t++)
        if (!is_out(mask, c * block + t)) {
            sum += static_cast<double>(z[c * block + t]);
            left++;
        }
    float shift = store_half(codes + shift_at(s, i) + 2 * c,
                             left > 0 ? static_cast<float>(sum / left) : 0.0f);
    for (int t = from; t < to; t++)
        z[c * block + t] -= shift;
}

__device__ inline void encode_gains(const vqkv__stream &s, unsigned char *codes, float *z,
                                    const unsigned char *mask)
{
    int spans = block / s.gain_tokens;
    if (s.gain == VQKV__RANGE) {
        each(s.n_gains * spans,
             [=, &s](int i) { encode_range(s, codes, i / spans, i % spans, z, mask); });
    } else if (s.gain == VQKV__NSN) {
        divide_rms(s, codes, 0, z, mask);
        each(s.n_latents * spans,
             [=, &s](int i) { encode_shift(s, codes, i / spans, i % spans, z, mask); });
        __syncthreads();
        divide_rms(s, codes, 1, z, mask);
    } else {
        each(s.n_gains * block,
             [=, &s](int i) { encode_plain(s, codes, i / block, i % block, z, mask); });
    }
    __syncthreads();
}
