/* Coded blocks on tensor cores, for codecs all of whose codes are nibbles. A warp takes 64 tokens
 * of a tile by itself, first for scores, then for sums. */

constexpr int query_blocks = VQKV__CUDA_BLOCKWISE ? tile : 1; /* with queries of their own */
constexpr int value_slots = VQKV__CUDA_V_SIXTEENS * 16;

/* Floats that scores of a tile take: scores, then weights [rows, tile]; gains of values [gains,
 * tile] and, by warp, of keys; weights in words [gains, units, rows, high and low, 64] in the order
 * in which lanes take tokens. */
constexpr int gains_floats = VQKV__CUDA_V_GAINS * tile_tokens;
constexpr int tile_floats(int rows)
{
    return rows * tile_tokens + gains_floats + warps * unit_tokens + gains_floats * rows / 2;
}

template <int rows> struct shared {
    alignas(16) float q[head_dim * rows];      /* [rows, HEAD_DIM] scaled */
    alignas(16) float turned[head_dim * rows]; /* the same in the frame of the block */
    /* By turns queries in latents [rows, K_LATENTS], what a tile takes, and in the end sums of
     * slots [rows, value_slots] and of latents [rows, MAX_SUM_LATENTS]. */
    alignas(
        16) float p[larger(larger(VQKV__CUDA_K_LATENTS, value_slots + VQKV__MAX_SUM_LATENTS) * rows,
                           tile_floats(rows))];
    /* [blocks, sixteens, rows / 4, 32]: by lane, which has two columns for each of four rows */
    alignas(16) uint32_t queries[query_blocks * VQKV__CUDA_K_SIXTEENS * rows * 8];
    slot_list<VQKV__CUDA_K_SIXTEENS> k;
    slot_list<VQKV__CUDA_V_SIXTEENS> v;
    float query_unit[query_blocks * VQKV__CUDA_K_GAINS * rows]; /* [blocks, gains, rows] */
    float weight_unit[VQKV__CUDA_V_GAINS * rows];
    float bias[query_blocks * rows];
    float m[rows], l[rows], coded[rows], shrink[rows];
    int position[rows];
};

template <int rows> __device__ inline float *gains_in(shared<rows> &sh)
{
    return sh.p + rows * tile_tokens;
}
template <int rows> __device__ inline float *key_gains_in(shared<rows> &sh)
{
    return gains_in(sh) + gains_floats + static_cast<int>(threadIdx.x) / warp * unit_tokens;
}
template <int rows> __device__ inline unsigned char *weights_in(shared<rows> &sh)
{
    return reinterpret_cast<unsigned char *>(gains_in(sh) + gains_floats + warps * unit_tokens);
}

template <int rows> struct sums {
    float coded[VQKV__CUDA_V_SIXTEENS][rows / 4][2]; /* of a lane's slots, for a row in four */
    float o[out_slots][rows];                        /* of channels */
};

/* Eight rows decode codes half as often, where registers suffice. */
constexpr int fitting_rows(int wanted)
{
    return wanted > 4 && sizeof(shared<8>) <= shared_limit && VQKV__CUDA_V_SIXTEENS <= 16 ? 8 : 4;
}
constexpr int decode_rows = fitting_rows(group), prefill_rows = fitting_rows(8);
/* On a multiprocessor: see attend_kernel. */
constexpr int blocks_wanted(int rows)
{
    return rows > 4 ? 2 : 3;
}
static_assert(sizeof(shared<4>) == VQKV__CUDA_SHARED && VQKV__CUDA_SHARED <= shared_limit,
              "the emitter, which takes other codecs to plain arithmetic, counts otherwise");

template <int rows> __device__ inline void clear_coded(sums<rows> &sum)
{
#pragma unroll
    for (int i = 0; i < VQKV__CUDA_V_SIXTEENS; i++)
#pragma unroll
        for (int k = 0; k < rows / 2; k++)
            sum.coded[i][k / 2][k % 2] = 0.0f;
}

template <int rows> __device__ inline void shrink_coded(const shared<rows> &sh, sums<rows> &sum)
{
#pragma unroll
    for (int i = 0; i < VQKV__CUDA_V_SIXTEENS; i++)
#pragma unroll
        for (int k = 0; k < rows / 2; k++)
            sum.coded[i][k / 2][k % 2] *= sh.shrink[k / 2 * 4 + static_cast<int>(threadIdx.x) % 4];
}

/* Where codes of the head are, and their codebooks. All threads. */
template <int rows>
__device__ void find_codes(const attend_job &job, const pass &a, shared<rows> &sh)
{
    list_slots(sh.k, key_part, job.layer, a.head, place_of_column);
    list_slots(sh.v, value_part, job.layer, a.head, place_of_row);
    __syncthreads();
}

/* ---- scores ---- */

/* One row of queries in latents for the sixteens first .. first + n - 1, in words of 15 bits that
 * count `unit` each, which is returned. By a warp. */
template <int rows>
__device__ inline float pack_queries(shared<rows> &sh, int b, int r, int first, int n)
{
    const float *y = sh.p + r * VQKV__CUDA_K_LATENTS;
    int lane = static_cast<int>(threadIdx.x) % warp;
    float top = 0.0f;
    for (int i = first * 16 + lane; i < (first + n) * 16; i += warp)
        top = fmaxf(top, fabsf(y[sh.k.latent[i] & latent_mask] * sh.k.scale[i]));
    top = largest_of(top);
    float inverse = top > 0.0f ? top_word / top : 0.0f;
    for (int i = first * 4 + lane; i < (first + n) * 4; i += warp) {
        float x[4];
        for (int k = 0; k < 4; k++)
            x[k] = y[sh.k.latent[4 * i + k] & latent_mask] * sh.k.scale[4 * i + k];
        uint32_t *to = sh.queries + ((b * VQKV__CUDA_K_SIXTEENS + i / 4) * (rows / 4) + r / 4) * 32;
        to += r % 4 * 8 + i % 4;
        split_words(x, inverse, to, to + 4);
    }
    return top / top_word;
}

/* Queries as turned for the tile's block b: in slots, and q . mean. All threads. */
template <int rows>
__device__ void fill_tables(const attend_job &job, const pass &a, shared<rows> &sh, int b)
{
    int n_uses, first = 0;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        map_queries(sh, s, use[u].member, first, sh.p);
        first += s.n_latents;
    }
    dot_means(job, a, sh, sh.bias + b * rows);
    for (int r = static_cast<int>(threadIdx.x) / warp; r < rows; r += warps)
        for (int from = 0, i = 0; i < sh.k.n; i++) {
            if (!sh.k.of[i].last)
                continue;
            float unit = pack_queries(sh, b, r, from, i + 1 - from);
            if (threadIdx.x % warp == 0)
                sh.query_unit[(b * VQKV__CUDA_K_GAINS + sh.k.of[i].row) * rows + r] = unit;
            from = i + 1;
        }
    __syncthreads();
}

/* Products of 64 tokens and sixteen slots: of the lane's eight tokens, four neighbours of low and
 * of high nibbles, and queries [rows / 4]. A look-up gives four tokens of one slot, where a product
 * wants four slots of a token; so the other slots' queries are zero in four products, y [slot,
 * token], which are quicker than turning bytes over. */
template <int quads>
__device__ inline void score_sixteen(const uint4 *table, const uint32_t (&word)[4],
                                     const uint32_t (&y)[quads][4][4], int (&d)[quads][4][4])
{
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
        uint32_t a[2][2], b[2][2];
        look_up(table[pair], word[pair], a);
        look_up(table[pair + 1], word[pair + 1], b);
#pragma unroll
        for (int i = 0; i < 2 * 4 * quads; i++) {
            int k = i / 4 % 2, t = i % 4, q = i / 8;
            multiply(d[q][t], a[k][0], a[k][1], b[k][0], b[k][1], y[q][pair][t], y[q][pair + 1][t]);
        }
    }
}

/* Gains of 64 tokens, those in low nibbles, then, `step` behind them, those in high ones. By a
 * warp. */
__device__ inline void load_unit_gains(const attend_job &job, const unit_at &at, const sixteen &x,
                                       int step, float *to)
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    const vqkv__stream &s = vqkv__streams[x.stream];
    const unsigned char *codes = codes_of(job.v, x.stream, at.where);
#pragma unroll
    for (int half = 0; half < 2; half++)
        to[half * step + lane] = gain_at(s, codes, x.gain, half * columns + at.offset + lane);
}

/* At the end of a gain group: adds what its slots give to the scores [rows / 4, 8], and clears it.
 */
template <int rows>
__device__ inline void add_group(const attend_job &job, shared<rows> &sh, const sixteen &x,
                                 const unit_at &at, int b, int (&d)[rows / 4][4][4],
                                 float (&s)[rows / 4][8])
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    float *gain = key_gains_in(sh);
    __syncwarp();
    load_unit_gains(job, at, x, warp, gain);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float g[4];
        load_rows<4>(gain + half * warp + lane / 4 * 4, g);
#pragma unroll
        for (int q = 0; q < rows / 4; q++) {
            float count = sh.query_unit[(b * VQKV__CUDA_K_GAINS + x.row) * rows + q * 4 + lane % 4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int *sums = d[q][k % 2 * 2 + half] + k / 2 * 2;
                float sum = fmaf(128.0f, static_cast<float>(sums[0]), static_cast<float>(sums[1]));
                s[q][half * 4 + k] = fmaf(g[k] * count, sum, s[q][half * 4 + k]);
                sums[0] = sums[1] = 0;
            }
        }
    }
}

/* Scores of as many units at once as registers hold, [together, rows / 4, ...]: two share what is
 * loaded of codebooks and queries. */
template <int rows> struct scores {
    static constexpr int together = rows > 4 ? 1 : warp_units;
    int d[together][rows / 4][4][4];
    float s[together][rows / 4][8];
    unit_at at[together];
    const unsigned char *codes[together]; /* of a stream, from the lane's on */
};

/* What the lane scores of a sixteen's codes: [together, slots]. */
template <int rows>
__device__ inline void fetch(const shared<rows> &sh, int step, const scores<rows> &of,
                             uint32_t (&word)[scores<rows>::together][4])
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    uint4 plane = *reinterpret_cast<const uint4 *>(sh.k.plane + step * 16 + lane % 4 * 4);
#pragma unroll
    for (int i = 0; i < scores<rows>::together; i++) {
        word[i][0] = word_at(of.codes[i] + plane.x);
        word[i][1] = word_at(of.codes[i] + plane.y);
        word[i][2] = word_at(of.codes[i] + plane.z);
        word[i][3] = word_at(of.codes[i] + plane.w);
    }
}

/* The sixteens of a gain group, from `step` on; returns the next one. `b` has queries. Codes are
 * asked for one sixteen ahead, since few warps hide the wait for memory. */
template <int rows>
__device__ inline int score_group(const shared<rows> &sh, int step, int b, scores<rows> &to)
{
    constexpr int quads = rows / 4, together = scores<rows>::together;
    int lane = static_cast<int>(threadIdx.x) % warp;
    uint32_t word[together][4], next[together][4];
    fetch(sh, step, to, word);
    for (bool more = true; more; step++) {
        uint32_t y[quads][4][4];
        more = !sh.k.of[step].last;
        if (more)
            fetch(sh, step + 1, to, next);
#pragma unroll
        for (int i = 0; i < quads * 16; i++) {
            int q = i / 16, slot = i / 4 % 4, t = i % 4;
            uint32_t four =
                sh.queries[((b * VQKV__CUDA_K_SIXTEENS + step) * quads + q) * 32 + lane];
            y[q][slot][t] = (four >> 8 * slot & 255u) << 8 * t;
        }
#pragma unroll
        for (int i = 0; i < together; i++)
            score_sixteen<quads>(sh.k.table + step * 16 + lane % 4 * 4, word[i], y, to.d[i]);
#pragma unroll
        for (int i = 0; i < together * 4; i++)
            word[i / 4][i % 4] = next[i / 4][i % 4];
    }
    return step;
}

/* Scores of the units first, first + warps, ... of a tile whose last one is `last`. */
template <int rows>
__device__ inline void score_units(const attend_job &job, const pass &a, shared<rows> &sh, int j,
                                   int first, int last)
{
    constexpr int together = scores<rows>::together;
    int lane = static_cast<int>(threadIdx.x) % warp, b = 0;
    scores<rows> to;
#pragma unroll
    for (int i = 0; i < together; i++) {
        int unit = first + i * warps;
        to.at[i] = find_unit(job, a, j, unit < last ? unit : last);
        if (vqkv__streams[sh.k.of[0].stream].frame == VQKV__BLOCKWISE)
            b = to.at[i].b; /* units of one block: see the tile */
#pragma unroll
        for (int k = 0; k < rows * 2; k++) {
            to.s[i][k / 8][k % 8] = sh.bias[b * rows + k / 8 * 4 + lane % 4];
            to.d[i][k / 8][k % 4][k / 4 % 2] = to.d[i][k / 8][k % 4][k / 4 % 2 + 2] = 0;
        }
    }
    for (int step = 0; step < sh.k.n;) {
        sixteen x = sh.k.of[step];
#pragma unroll
        for (int i = 0; i < together; i++)
            to.codes[i] =
                codes_of(job.v, x.stream, to.at[i].where) + to.at[i].offset + lane / 4 * 4;
        step = score_group<rows>(sh, step, b, to);
#pragma unroll
        for (int i = 0; i < together; i++)
            add_group<rows>(job, sh, x, to.at[i], b, to.d[i], to.s[i]);
    }
#pragma unroll
    for (int i = 0; i < together; i++)
#pragma unroll
        for (int k = 0; k < rows / 2 && first + i * warps <= last; k++) {
            float *dst = sh.p + (k / 2 * 4 + lane % 4) * tile_tokens + token_of(first + i * warps) +
                         k % 2 * columns + lane / 4 * 4;
            const float *from = to.s[i][k / 2] + k % 2 * 4;
            *reinterpret_cast<float4 *>(dst) = float4{from[0], from[1], from[2], from[3]};
        }
}

/* Scores of blocks j .. j + n - 1. */
template <int rows>
__device__ void score_absorbed(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    int last = n * block_units - 1;
    for (int unit = static_cast<int>(threadIdx.x) / warp; unit <= last;
         unit += warps * scores<rows>::together)
        score_units(job, a, sh, j, unit, last);
}

/* ---- values ---- */

/* Gains of the values of blocks j .. j + n - 1. */
template <int rows>
__device__ void load_gains(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    for (int unit = static_cast<int>(threadIdx.x) / warp; unit < n * block_units; unit += warps) {
        unit_at at = find_unit(job, a, j, unit);
        for (int i = 0; i < sh.v.n; i++)
            if (sh.v.of[i].last)
                load_unit_gains(job, at, sh.v.of[i], columns,
                                gains_in(sh) + sh.v.of[i].row * tile_tokens + token_of(unit));
    }
}

/* Weights of n tokens times their gains of row g, in words of 15 bits that count as much each as is
 * returned. A word of a plane has eight tokens, four neighbours in low nibbles and four in high
 * ones, and a lane one or two such words; sums take them by bytes, low nibbles before high ones. By
 * a warp. */
template <int rows> __device__ inline float pack_row(shared<rows> &sh, int r, int g, int n)
{
    constexpr int words = tile_tokens / 8 / warp;
    int lane = static_cast<int>(threadIdx.x) % warp;
    float x[words][2][4], top = 0.0f;
#pragma unroll
    for (int i = 0; i < words * 2; i++) {
        int word = lane + i / 2 * warp, unit = word / 8;
        int t = token_of(unit) + word % 8 * 4 + i % 2 * columns;
        float p[4] = {0.0f, 0.0f, 0.0f, 0.0f}, gain[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (word * 8 < n) {
            load_rows<4>(sh.p + r * tile_tokens + t, p);
            load_rows<4>(gains_in(sh) + g * tile_tokens + t, gain);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float w = p[k] * gain[k];
            x[i / 2][k / 2][k % 2 * 2 + i % 2] = w;
            top = fmaxf(top, fabsf(w));
        }
    }
    top = largest_of(top);
    float inverse = top > 0.0f ? top_word / top : 0.0f;
#pragma unroll
    for (int i = 0; i < words; i++) {
        int word = lane + i * warp, unit = word / 8;
        uint32_t high[2], low[2];
        auto *to = reinterpret_cast<uint2 *>(
            weights_in(sh) + ((g * units + unit) * rows + r) * (2 * unit_tokens) + word % 8 * 8);
        split_words(x[i][0], inverse, &high[0], &low[0]);
        split_words(x[i][1], inverse, &high[1], &low[1]);
        to[0] = uint2{high[0], high[1]};
        to[unit_tokens / 8] = uint2{low[0], low[1]};
    }
    return top / top_word;
}

/* Weights of n tokens for the sums. A warp a row, all threads. */
template <int rows> __device__ void pack_weights(shared<rows> &sh, int n)
{
    int gains = sh.v.of[sh.v.n - 1].row + 1;
    for (int r = static_cast<int>(threadIdx.x) / warp; r < rows; r += warps)
        for (int g = 0; g < gains; g++) {
            float unit = pack_row(sh, r, g, n);
            if (threadIdx.x % warp == 0)
                sh.weight_unit[g * rows + r] = unit;
        }
    __syncthreads();
}

/* Products of 64 tokens and sixteen slots, of which the lane has two, with their codes: added to
 * their sums for a row in four each. */
template <int quads>
__device__ inline void sum_sixteen(const uint4 *table, const uint2 (&codes)[2],
                                   const uint4 (&weights)[quads], const float (&count)[quads],
                                   float (&sum)[quads][2])
{
    uint32_t x[4][2][2];
    look_up(table[0], codes[0].x, x[0]);
    look_up(table[1], codes[1].x, x[1]);
    look_up(table[0], codes[0].y, x[2]);
    look_up(table[1], codes[1].y, x[3]);
#pragma unroll
    for (int q = 0; q < quads; q++) {
        int d[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            multiply(d, x[0][k][0], x[1][k][0], x[0][k][1], x[1][k][1], weights[q].x, weights[q].y);
            multiply(d, x[2][k][0], x[3][k][0], x[2][k][1], x[3][k][1], weights[q].z, weights[q].w);
        }
#pragma unroll
        for (int k = 0; k < 2; k++)
            sum[q][k] =
                fmaf(count[q],
                     fmaf(128.0f, static_cast<float>(d[2 * k]), static_cast<float>(d[2 * k + 1])),
                     sum[q][k]);
    }
}

/* Codes of the lane's two slots of sixteen i; `from` is the stream's part of the block. */
template <int rows>
__device__ inline void fetch_sums(const attend_job &job, const shared<rows> &sh, const unit_at &at,
                                  int i, const unsigned char **from, uint2 (&codes)[2])
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    uint2 plane = *reinterpret_cast<const uint2 *>(sh.v.plane + i * 16 + lane / 4 * 2);
    if (i == 0 || sh.v.of[i - 1].last)
        *from = codes_of(job.v, sh.v.of[i].stream, at.where) + at.offset + lane % 4 * 8;
    codes[0] = *reinterpret_cast<const uint2 *>(*from + plane.x);
    codes[1] = *reinterpret_cast<const uint2 *>(*from + plane.y);
}

/* Adds weight * value of 64 tokens, in slots. By a warp; codes are asked for one sixteen ahead. */
template <int rows>
__device__ inline void sum_unit(const attend_job &job, const pass &a, shared<rows> &sh,
                                sums<rows> &sum, int j, int unit)
{
    constexpr int quads = rows / 4;
    int lane = static_cast<int>(threadIdx.x) % warp;
    unit_at at = find_unit(job, a, j, unit);
    const unsigned char *from = nullptr;
    uint4 weights[quads];
    float count[quads];
    uint2 codes[2], next[2];
    fetch_sums(job, sh, at, 0, &from, codes);
#pragma unroll
    for (int i = 0; i < VQKV__CUDA_V_SIXTEENS; i++) {
        if (i >= sh.v.n)
            break;
        int row = sh.v.of[i].row;
        if (i + 1 < sh.v.n)
            fetch_sums(job, sh, at, i + 1, &from, next);
#pragma unroll
        for (int q = 0; q < quads && (i == 0 || sh.v.of[i - 1].last); q++) {
            weights[q] = *reinterpret_cast<const uint4 *>(
                weights_in(sh) + ((row * units + unit) * rows + q * 4) * (2 * unit_tokens) +
                lane * 16);
            count[q] = sh.weight_unit[row * rows + q * 4 + lane % 4];
        }
        sum_sixteen<quads>(sh.v.table + i * 16 + lane / 4 * 2, codes, weights, count, sum.coded[i]);
        codes[0] = next[0];
        codes[1] = next[1];
    }
}

/* Adds weight * value of blocks j .. j + n - 1, in slots. All threads. */
template <int rows>
__device__ void sum_absorbed(const attend_job &job, const pass &a, shared<rows> &sh,
                             sums<rows> &sum, int j, int n)
{
    pack_weights(sh, n * block);
    for (int unit = static_cast<int>(threadIdx.x) / warp; unit < n * block_units; unit += warps)
        sum_unit(job, a, sh, sum, j, unit);
}

/* Adds up the warps' sums of slots, in their order: y [rows, value_slots]. All threads. */
template <int rows> __device__ void add_warps(const sums<rows> &sum, int n, float *y)
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    for (int turn = 0; turn < warps; turn++) {
#pragma unroll
        for (int i = 0; i < VQKV__CUDA_V_SIXTEENS; i++) {
            if (i >= n || static_cast<int>(threadIdx.x) / warp != turn)
                break;
#pragma unroll
            for (int k = 0; k < rows / 2; k++) {
                float *to =
                    y + (k / 2 * 4 + lane % 4) * value_slots + i * 16 + lane / 4 * 2 + k % 2;
                *to = sum.coded[i][k / 2][k % 2] + (turn > 0 ? *to : 0.0f);
            }
        }
        __syncthreads();
    }
}

/* Takes the sums back to channels. All threads. */
template <int rows>
__device__ void collect(const attend_job &job, const pass &a, shared<rows> &sh, sums<rows> &sum)
{
    float *y = sh.p, *z = sh.p + rows * value_slots;
    add_warps(sum, sh.v.n, y);
    clear(rows * VQKV__MAX_SUM_LATENTS, z);
    for (int stage = 0; stage < VQKV__CUDA_V_STAGES; stage++) {
        each(sh.v.n * 16 * rows, [&](int at) {
            int r = at % rows, i = at / rows;
            if (sh.v.latent[i] >> stage_bit == stage)
                z[r * VQKV__MAX_SUM_LATENTS + (sh.v.latent[i] & latent_mask)] +=
                    sh.v.scale[i] * y[r * value_slots + i];
        });
        __syncthreads();
    }
    unmap_sums(job, a, sh, z, sum);
}
