/* From the codes of a block to vectors, by all threads. Tiles are [channels, BLOCK] in the
 * workspace; the arithmetic is that of the C header, operation by operation. */

constexpr int width = n_kv_heads * head_dim; /* channels of a node */
constexpr size_t node_floats = static_cast<size_t>(width) * block;
constexpr size_t head_floats = static_cast<size_t>(head_dim) * block;
constexpr size_t rebuild_floats =
    VQKV__N_SLOTS * node_floats +
    (static_cast<size_t>(VQKV__MAX_LATENTS) + static_cast<size_t>(VQKV__MAX_RANK)) * block;

/* Room for one walk down a chain of predictions. */
struct room {
    float *slots;  /* [N_SLOTS, width, BLOCK] */
    float *z;      /* [MAX_LATENTS, BLOCK] */
    float *hidden; /* [MAX_RANK, BLOCK] */
    int have;      /* stream whose latents are in z; -1: none */
};

__device__ inline room make_room(float *floats)
{
    float *z = floats + VQKV__N_SLOTS * node_floats;
    return room{floats, z, z + static_cast<size_t>(VQKV__MAX_LATENTS) * block, -1};
}

__device__ inline float *slot_of(const room &r, int node)
{
    return r.slots + static_cast<size_t>(vqkv__nodes[node].slot) * node_floats;
}

__device__ inline void clear(int n, float *x)
{
    each(n, [=](int i) { x[i] = 0.0f; });
    __syncthreads();
}

/* y [n_out, BLOCK] += sign * x [n_in, BLOCK] through a table: input i counts for output o by its
 * entry i * ld + o, or o * ld + i if `across`. Four outputs a thread share what is loaded of x. */
__device__ inline void product(matrix table, int ld, int across, int n_in, int n_out, float sign,
                               const float *x, float *y)
{
    constexpr int depth = 128, strip = 4; /* the C header adds up in steps of `depth` */
    each((n_out + strip - 1) / strip * block, [=](int at) {
        int t = at % block, o = at / block * strip, step = across ? 1 : ld;
        int m = n_out - o < strip ? n_out - o : strip;
        float column[strip]; /* scales of the outputs' columns */
        for (int k = 0; k < strip; k++)
            column[k] = across ? 1.0f : scale_at(table, o + (k < m ? k : 0));
        for (int first = 0; first < n_in; first += depth) {
            int n = n_in - first < depth ? n_in - first : depth;
            float sum[strip] = {0.0f, 0.0f, 0.0f, 0.0f};
            int of[strip];
            for (int k = 0; k < strip; k++)
                of[k] = (o + (k < m ? k : 0)) * (across ? ld : 1) + first * step;
            for (int i = 0; i < n; i++) {
                float value = x[static_cast<size_t>(first + i) * block + static_cast<size_t>(t)];
                float row = across ? scale_at(table, first + i) : 1.0f;
                for (int k = 0; k < strip; k++)
                    sum[k] =
                        fmaf(raw_at(table, of[k] + i * step) * (row * column[k]), value, sum[k]);
            }
            for (int k = 0; k < m; k++)
                y[static_cast<size_t>(o + k) * block + static_cast<size_t>(t)] += sign * sum[k];
        }
    });
    __syncthreads();
}

/* In-place orthonormal Walsh-Hadamard transform of every token of x [n, BLOCK]. */
__device__ inline void hadamard_tile(float *x, int n)
{
    float norm = 1.0f / sqrtf(static_cast<float>(n));
    for (int step = 1; step < n; step *= 2) {
        each(n / 2 * block, [=](int at) {
            int t = at % block, i = at / block, low = i / step * 2 * step + i % step;
            float *a = x + low * block + t, *b = a + step * block;
            float p = *a, q = *b;
            *a = p + q;
            *b = p - q;
        });
        __syncthreads();
    }
    each(n * block, [=](int i) { x[i] *= norm; });
    __syncthreads();
}

/* Offset and step of a gain group for the i-th tokens that share them: two binary16. */
__device__ inline size_t range_at(const vqkv__stream &s, int g, int i)
{
    return static_cast<size_t>(g * (block / s.gain_tokens) + i) * 4;
}

/* The shifts of all latents for the i-th tokens that share them: binary16 [n_latents]. */
__device__ inline size_t shift_at(const vqkv__stream &s, int i)
{
    return static_cast<size_t>(s.n_gains) * 4 * block + static_cast<size_t>(i * s.n_latents) * 2;
}

/* A codeword's channel with what its gain, range or shift makes of it. */
__device__ inline float gained(const vqkv__stream &s, const vqkv__run &run,
                               const unsigned char *codes, int latent, int t, float x)
{
    if (s.gain == VQKV__NO_GAIN)
        return x;
    int g = latent / s.gain_width;
    if (s.gain == VQKV__RANGE) {
        const unsigned char *p = codes + range_at(s, g, t / s.gain_tokens);
        float middle = run.uniform ? static_cast<float>(1 << (run.bits - 1)) : 0.0f;
        float step = half_at(p, 1);
        return fmaf(step, x, half_at(p, 0) + step * middle);
    }
    if (s.gain == VQKV__NSN) {
        float shift = half_at(codes + shift_at(s, t / s.gain_tokens), static_cast<size_t>(latent));
        float inner = half_at(codes, static_cast<size_t>((2 * g + 1) * block + t));
        return half_at(codes, static_cast<size_t>(2 * g * block + t)) * fmaf(inner, x, shift);
    }
    return gain_at(s, codes, g, t) * x;
}

__device__ inline int index_bytes(const vqkv__stream &s)
{
    return s.n_latents <= 256 ? 1 : 2;
}

/* Puts kept latents where they belong: for each slot BLOCK of binary16, then BLOCK indices. */
__device__ inline void place_outliers(const vqkv__stream &s, const unsigned char *codes, float *z)
{
    each(block, [=, &s](int t) {
        const unsigned char *values = codes + s.kept;
        int bytes = index_bytes(s);
        for (int i = 0; i < s.outliers; i++, values += (2 + bytes) * block) {
            const unsigned char *index = values + 2 * block + bytes * t;
            int c = bytes == 2 ? index[0] | index[1] << 8 : index[0];
            if (c < s.n_latents)
                z[c * block + t] = half_at(values, static_cast<size_t>(t));
        }
    });
    __syncthreads();
}

/* z [n_latents, BLOCK] of a stream's block; what a Hadamard transform mixed is unmixed already. */
__device__ inline void decode_latents(const vqkv__stream &s, const unsigned char *codes, float *z)
{
    for (int r = s.first_run; r < s.first_run + s.n_runs; r++) {
        const vqkv__run &run = vqkv__runs[r];
        each(run.planes / run.stages * run.width * block, [=, &s, &run](int at) {
            int t = at % block, c = at / block, w = c % run.width;
            int plane = c / run.width * run.stages;
            float x = value_at(run, codes + run.codes, plane, w, t);
            for (int i = 1; i < run.stages; i++)
                x += value_at(run, codes + run.codes, plane + i, w, t);
            z[(run.first + c) * block + t] = gained(s, run, codes, run.first + c, t, x);
        });
    }
    __syncthreads();
    if (s.outliers > 0)
        place_outliers(s, codes, z);
    if (s.transform == VQKV__HADAMARD)
        hadamard_tile(z, s.n_in);
}

/* out [HEAD_DIM, BLOCK] += sign * one member's share of a stream with latents z. */
__device__ inline void add_member(const vqkv__stream &s, int member, float sign, const float *z,
                                  float *out)
{
    int row = member * head_dim;
    if (s.transform == VQKV__BASIS)
        product(basis(s, s.dec, member), s.n_latents, 1, s.n_latents, head_dim, sign, z, out);
    each(head_dim * block, [=, &s](int i) {
        float x = out[i];
        if (s.transform != VQKV__BASIS)
            x = fmaf(sign, z[row * block + i], x);
        if (s.mean >= 0)
            x += sign * table_at(s.mean, row + i / block);
        out[i] = x;
    });
    __syncthreads();
}

/* Turns x [HEAD_DIM, BLOCK] of a block at `position` from its frame into rotation by the tokens'
 * positions (direction 1) or back (-1); y may be x. */
__device__ inline void turn_tile(int frame, int position, float direction, const float *x, float *y)
{
    int n_turned = frame == VQKV__POST ? 0 : VQKV_N_ROT / 2;
    each(n_turned * block, [=](int at) {
        int i = at / block, t = at % block;
        int a = pair_first(i) * block + t, b = pair_second(i) * block + t;
        float c, s, low = x[a], high = x[b];
        angle(frame == VQKV__PRE ? position + t : base_of(i, position), i, &c, &s);
        s *= direction;
        y[a] = fmaf(-s, high, c * low);
        y[b] = fmaf(s, low, c * high);
    });
    each((head_dim - 2 * n_turned) * block,
         [=](int i) { y[2 * n_turned * block + i] = x[2 * n_turned * block + i]; });
    __syncthreads();
}
