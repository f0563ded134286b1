/* Scalars, rotation, and places in the memory of a cache. Kernels are run by blocks of `threads`
 * threads; a function that says "all threads" is called by all of them and ends with a barrier. */

constexpr int threads = 128, warp = 32, warps = threads / warp;
/* Thread blocks that encode, store or rebuild on a multiprocessor, at least: left to itself, the
 * compiler takes fewer registers than there are, and spills. */
constexpr int workers_wanted = 4;
constexpr float masked = -1e30f; /* the score of a token that a query does not see */

enum { key_part = 0, value_part = 1 };

/* f(i) for i < n, by all threads; no barrier. */
template <class F> __device__ inline void each(int n, F f)
{
    for (int i = static_cast<int>(threadIdx.x); i < n; i += threads)
        f(i);
}

__device__ inline float from_half(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

/* To nearest even; what is too large becomes the largest finite value. */
__device__ inline uint16_t to_half(float f)
{
    uint32_t bits = __float_as_uint(f), sign = (bits >> 16) & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag >= 0x477ff000u)
        return static_cast<uint16_t>(sign | 0x7bffu);
    if (mag < 0x38800000u)
        return static_cast<uint16_t>(sign |
                                     (__float_as_uint(__uint_as_float(mag) + 0.5f) - 0x3f000000u));
    return static_cast<uint16_t>(sign | ((mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13));
}

/* The i-th binary16 value at p, which need not be aligned to more than a byte. */
__device__ inline float half_at(const unsigned char *p, size_t i)
{
    return from_half(static_cast<uint16_t>(p[2 * i] | p[2 * i + 1] << 8));
}

/* The i-th binary16 value behind an offset of the tables. */
__device__ inline float table_at(int offset, int i)
{
    return from_half(reinterpret_cast<const uint16_t *>(vqkv__tables)[offset + i]);
}

/* Entries of a constant table: binary16, or bytes that count the scale of their column each. */
struct matrix {
    const unsigned char *values;
    const uint16_t *scale; /* binary16 [columns]; null: entries are binary16 */
};

__device__ inline matrix halves(int offset)
{
    return matrix{reinterpret_cast<const unsigned char *>(vqkv__tables) +
                      2 * static_cast<size_t>(offset),
                  nullptr};
}

/* One member's rows of a stream's basis, enc or dec. */
__device__ inline matrix basis(const vqkv__stream &s, int offset, int member)
{
    matrix m = halves(offset);
    size_t latents = static_cast<size_t>(s.n_latents);
    size_t rows = static_cast<size_t>(member) * head_dim * latents;
    if (s.basis_bytes == 2) {
        m.values += 2 * rows;
        return m;
    }
    m.scale = reinterpret_cast<const uint16_t *>(m.values) + static_cast<size_t>(member) * latents;
    m.values += 2 * static_cast<size_t>(s.n_members) * latents + rows;
    return m;
}

/* The i-th entry as it stands: in bytes, without the scale of its column. */
__device__ inline float raw_at(const matrix &m, int i)
{
    return m.scale == nullptr ? from_half(reinterpret_cast<const uint16_t *>(m.values)[i])
                              : static_cast<float>(static_cast<signed char>(m.values[i]));
}

__device__ inline float scale_at(const matrix &m, int column)
{
    return m.scale == nullptr ? 1.0f : from_half(m.scale[column]);
}

/* Stores a value in two bytes; returns what it will be read as. */
__device__ inline float store_half(unsigned char *p, float x)
{
    uint16_t h = to_half(x);
    p[0] = static_cast<unsigned char>(h & 255);
    p[1] = static_cast<unsigned char>(h >> 8);
    return from_half(h);
}

__device__ inline float load_as(const void *p, type t, size_t i)
{
    if (t == type::f32)
        return static_cast<const float *>(p)[i];
    uint16_t h = static_cast<const uint16_t *>(p)[i];
    return t == type::f16 ? from_half(h) : __uint_as_float(static_cast<uint32_t>(h) << 16);
}

/* A NaN stays one: rounding would turn it into a number. */
__device__ inline void store_as(void *p, type t, size_t i, float x)
{
    uint32_t bits = __float_as_uint(x);
    if (t == type::f32)
        static_cast<float *>(p)[i] = x;
    else if ((bits & 0x7fffffffu) > 0x7f800000u)
        static_cast<uint16_t *>(p)[i] = static_cast<uint16_t>(t == type::f16 ? 0x7e00u : 0x7fc0u);
    else if (t == type::f16)
        static_cast<uint16_t *>(p)[i] = to_half(x);
    else
        static_cast<uint16_t *>(p)[i] =
            static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Cosine and sine of a position for one pair. The turns are counted in double, since positions
 * reach millions of radians; what is left of a turn is small enough for float. */
__device__ inline void angle(int position, int pair, float *c, float *s)
{
    double freq = __longlong_as_double(static_cast<long long>(vqkv__rope_bits[pair]));
    double turns = position * (freq * 0.15915494309189533577);
    sincospif(2.0f * static_cast<float>(turns - rint(turns)), s, c);
}

/* The position that a pair counts as un-rotated at in the frame of a block at `position`. */
__device__ inline int base_of(int pair, int position)
{
    int span = vqkv__spans[pair];
    return span > 0 ? position - ((position - n_sink) & (span - 1)) : 0; // a power of two
}

/* The channels of a pair. */
__device__ constexpr int pair_first(int i)
{
    return VQKV_ROPE_INTERLEAVED ? 2 * i : i;
}
__device__ constexpr int pair_second(int i)
{
    return VQKV_ROPE_INTERLEAVED ? 2 * i + 1 : i + VQKV_N_ROT / 2;
}

/* ---- places ---- */

__device__ inline bool is_seq(const view &v, int seq)
{
    return seq >= 0 && seq < v.n_seq;
}

__device__ inline int sealed_of(const view &v, int seq)
{
    return v.state[static_cast<size_t>(seq) * (2 + n_layers)];
}

__device__ inline int32_t *tokens_of(const view &v, int seq, int layer)
{
    return v.state + static_cast<size_t>(seq) * (2 + n_layers) + 2 + layer;
}

__device__ inline entry entry_of(const view &v, int seq, int index)
{
    return v.tables[static_cast<size_t>(seq) * static_cast<size_t>(v.seq_blocks) +
                    static_cast<size_t>(index)];
}

/* A stream's part of a block. */
__device__ inline unsigned char *codes_of(const view &v, int stream, int where)
{
    const vqkv__stream &s = vqkv__streams[stream];
    return v.pool + static_cast<size_t>(s.start) * static_cast<size_t>(v.n_blocks) +
           static_cast<size_t>(s.bytes) * static_cast<size_t>(where);
}

/* Tokens that share a landmark, and their number in a block; without landmarks a whole block. */
constexpr int chunk = VQKV_LANDMARKS > 0 ? VQKV_LANDMARKS : block, chunks = block / chunk;
/* Landmarks of one layer and KV head in a block: means, scales, likenesses (gpu_landmarks.cuh). */
constexpr size_t landmark_bytes = VQKV_LANDMARKS > 0 ? static_cast<size_t>(chunks) * (head_dim + 3)
                                                     : 0;
/* Of a block in the pool. */
constexpr size_t block_bytes = VQKV__BLOCK_BYTES + n_layers * n_kv_heads * landmark_bytes;

/* The landmarks of one head in a block: behind the streams, head by head. */
__device__ inline unsigned char *landmarks_of(const view &v, int layer, int head, int where)
{
    size_t before = static_cast<size_t>(layer * n_kv_heads + head) * landmark_bytes;
    return v.pool + (VQKV__BLOCK_BYTES + before) * static_cast<size_t>(v.n_blocks) +
           landmark_bytes * static_cast<size_t>(where);
}

/* The exact vector of one token: binary16 [HEAD_DIM]. */
__device__ inline unsigned char *exact_of(const view &v, int seq, int layer, int which, int head,
                                          int token)
{
    int slot = token < n_sink ? token : n_sink + (token - n_sink) % v.ring;
    size_t row = ((static_cast<size_t>(seq) * n_layers + static_cast<size_t>(layer)) * 2 +
                  static_cast<size_t>(which)) *
                     n_kv_heads +
                 static_cast<size_t>(head);
    row = row * static_cast<size_t>(n_sink + v.ring) + static_cast<size_t>(slot);
    return v.exact + row * head_dim * 2;
}

__device__ inline float exact_at(const unsigned char *row, int d)
{
    return from_half(reinterpret_cast<const uint16_t *>(row)[d]);
}

/* The streams that hold one head: n uses. */
__device__ inline const vqkv__use *uses_of(int which, int layer, int head, int *n)
{
    int i = (which * n_layers + layer) * n_kv_heads + head;
    *n = vqkv__use_first[i + 1] - vqkv__use_first[i];
    return vqkv__uses + vqkv__use_first[i];
}

/* ---- codes ---- */

/* Bytes of a plane: one code of each token of a block. */
__device__ inline size_t plane_bytes(const vqkv__run &run)
{
    return static_cast<size_t>(block / 8) * run.bits;
}

/* The codewords of a plane. */
__device__ inline int book_of(const vqkv__run &run, int plane)
{
    return run.book + plane / run.stages * run.book_step +
           plane % run.stages * (run.width << run.bits);
}

/* The code of token t in a plane: nibbles of the block's halves, or whole bytes and then what is
 * left, packed from the lowest bit up. */
__device__ inline int code_at(const vqkv__run &run, const unsigned char *plane, int t)
{
    int whole = run.bits / 8, rest = run.bits % 8, code = 0;
    if (run.bits == 4)
        return plane[t % (block / 2)] >> (t / (block / 2) * 4) & 15;
    for (int i = 0; i < whole; i++)
        code |= plane[i * block + t] << 8 * i;
    if (rest != 0) {
        const unsigned char *p = plane + whole * block + t * rest / 8;
        int shift = t * rest % 8, word = p[0];
        if (shift + rest > 8)
            word |= p[1] << 8;
        code |= (word >> shift & ((1 << rest) - 1)) << 8 * whole;
    }
    return code;
}

/* The codeword's w-th channel of token t in a plane of a run whose planes begin at `codes`. */
__device__ inline float value_at(const vqkv__run &run, const unsigned char *codes, int plane, int w,
                                 int t)
{
    const unsigned char *p = codes + static_cast<size_t>(plane) * plane_bytes(run);
    if (run.coder == VQKV__HALVES)
        return half_at(p, static_cast<size_t>(t));
    int code = code_at(run, p, t);
    if (run.uniform)
        return static_cast<float>(code - (1 << (run.bits - 1)));
    return table_at(book_of(run, plane), (w << run.bits) + code);
}

/* The gain of one group and token, of gains that are only multiplied by. */
__device__ inline float gain_at(const vqkv__stream &s, const unsigned char *codes, int g, int t)
{
    if (s.gain == VQKV__NO_GAIN)
        return 1.0f;
    if (s.gain_bytes == 1)
        return table_at(s.gain_table, codes[g * block + t]);
    return half_at(codes, static_cast<size_t>(g * block + t));
}
