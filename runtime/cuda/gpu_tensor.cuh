/* Coded blocks on tensor cores, for codecs all of whose codes are nibbles. A warp takes 64 tokens
 * of a tile by itself, first for scores, then for sums. */

constexpr int query_blocks = VQKV__CUDA_BLOCKWISE ? tile : 1; /* with queries of their own */
constexpr int value_slots = VQKV__CUDA_V_SIXTEENS * 16;

template <int rows> struct shared {
    alignas(16) float q[head_dim * rows];      /* [rows, HEAD_DIM] scaled */
    alignas(16) float turned[head_dim * rows]; /* the same in the frame of the block */
    /* By turns queries in latents [rows, K_LATENTS], scores and weights [rows, tile], and in the
     * end sums of slots [rows, value_slots] and of latents [rows, MAX_SUM_LATENTS]. */
    alignas(16) float p[larger(larger(VQKV__CUDA_K_LATENTS, tile_tokens),
                               value_slots + VQKV__MAX_SUM_LATENTS) *
                        rows];
    /* [blocks, sixteens, rows / 4, 32]: by lane, which has two columns for each of four rows */
    alignas(16) uint32_t queries[query_blocks * VQKV__CUDA_K_SIXTEENS * rows * 8];
    alignas(16) float key_gain[tile_tokens];                  /* of a gain group */
    alignas(16) float gain[VQKV__CUDA_V_GAINS * tile_tokens]; /* [gains, tile] of values */
    /* [gains, units, rows, high and low, 64] in the order in which lanes take tokens */
    alignas(16) unsigned char weights[VQKV__CUDA_V_GAINS * tile_tokens * rows * 2];
    slot_list<VQKV__CUDA_K_SIXTEENS> k;
    slot_list<VQKV__CUDA_V_SIXTEENS> v;
    float query_unit[query_blocks * VQKV__CUDA_K_GAINS * rows]; /* [blocks, gains, rows] */
    float weight_unit[VQKV__CUDA_V_GAINS * rows];
    float bias[query_blocks * rows];
    float m[rows], l[rows], coded[rows], shrink[rows];
    int position[rows];
};

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
constexpr int blocks_wanted = 3; /* on a multiprocessor: see attend_kernel */
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
        top = fmaxf(top, fabsf(y[sh.k.latent[i]] * sh.k.scale[i]));
    top = largest_of(top);
    float inverse = top > 0.0f ? top_word / top : 0.0f;
    for (int i = first * 4 + lane; i < (first + n) * 4; i += warp) {
        uint32_t words[2] = {0, 0};
        for (int k = 0; k < 4; k++) {
            int high, low, at = 4 * i + k;
            split_word(y[sh.k.latent[at]] * sh.k.scale[at] * inverse, &high, &low);
            words[0] |= static_cast<uint32_t>(high & 255) << 8 * k;
            words[1] |= static_cast<uint32_t>(low & 255) << 8 * k;
        }
        uint32_t *to = sh.queries + ((b * VQKV__CUDA_K_SIXTEENS + i / 4) * (rows / 4) + r / 4) * 32;
        to[r % 4 * 8 + i % 4] = words[0];
        to[r % 4 * 8 + 4 + i % 4] = words[1];
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

/* Products of 64 tokens and sixteen slots: the lane's eight tokens, 4 g .. 4 g + 3 in low nibbles
 * and the same in high ones, and queries [rows / 4]. */
template <int quads>
__device__ inline void score_sixteen(const uint4 (&table)[4], const uint32_t (&word)[4],
                                     const uint32_t (&query)[quads], int (&d)[quads][4][4])
{
    uint32_t x[2][4];
#pragma unroll
    for (int k = 0; k < 4; k++)
        look_up(table[k], word[k], &x[0][k], &x[1][k]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        transpose(x[i]);
#pragma unroll
        for (int q = 0; q < quads; q++) {
            mma_k16(d[q][2 * i], x[i][0], x[i][1], query[q]);
            mma_k16(d[q][2 * i + 1], x[i][2], x[i][3], query[q]);
        }
    }
}

/* At the end of a gain group: adds what its slots give to the scores [rows / 4, 8], and clears it.
 */
template <int rows>
__device__ inline void add_group(const attend_job &job, shared<rows> &sh, const sixteen &x,
                                 const unit_at &at, int b, int unit, int (&d)[rows / 4][4][4],
                                 float (&s)[rows / 4][8])
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    const vqkv__stream &stream = vqkv__streams[x.stream];
    const unsigned char *codes = codes_of(job.v, x.stream, at.where);
    float *gain = sh.key_gain + unit * unit_tokens;
    __syncwarp();
    for (int half = 0; half < 2; half++)
        gain[half * warp + lane] =
            gain_at(stream, codes, x.gain, half * columns + at.offset + lane);
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
                float sum = fmaf(128.0f, static_cast<float>(d[q][k][2 * half]),
                                 static_cast<float>(d[q][k][2 * half + 1]));
                s[q][half * 4 + k] = fmaf(g[k] * count, sum, s[q][half * 4 + k]);
                d[q][k][2 * half] = d[q][k][2 * half + 1] = 0;
            }
        }
    }
}

/* Scores of blocks j .. j + n - 1. */
template <int rows>
__device__ void score_absorbed(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    constexpr int quads = rows / 4;
    int lane = static_cast<int>(threadIdx.x) % warp, first = static_cast<int>(threadIdx.x) / warp;
    int last = n * block_units - 1, d[warp_units][quads][4][4], queries[warp_units];
    float s[warp_units][quads][8];
    unit_at at[warp_units];
    bool blockwise = vqkv__streams[sh.k.of[0].stream].frame == VQKV__BLOCKWISE;
    if (first > last)
        return;
#pragma unroll
    for (int i = 0; i < warp_units; i++) {
        int unit = first + i * warps;
        at[i] = find_unit(job, a, j, unit < last ? unit : last);
        queries[i] = blockwise ? at[i].b : 0;
#pragma unroll
        for (int k = 0; k < quads * 8; k++) {
            s[i][k / 8][k % 8] = sh.bias[queries[i] * rows + k / 8 * 4 + lane % 4];
            d[i][k / 8][k % 4][k / 4 % 2] = d[i][k / 8][k % 4][k / 4 % 2 + 2] = 0;
        }
    }
    for (int step = 0; step < sh.k.n; step++) {
        sixteen x = sh.k.of[step];
        uint4 table[4];
        int4 plane = *reinterpret_cast<const int4 *>(sh.k.plane + step * 16 + lane % 4 * 4);
#pragma unroll
        for (int k = 0; k < 4; k++)
            table[k] = sh.k.table[step * 16 + lane % 4 * 4 + k];
#pragma unroll
        for (int i = 0; i < warp_units; i++) {
            const unsigned char *codes =
                codes_of(job.v, x.stream, at[i].where) + at[i].offset + lane / 4 * 4;
            uint32_t query[quads], word[4] = {word_at(codes + plane.x), word_at(codes + plane.y),
                                              word_at(codes + plane.z), word_at(codes + plane.w)};
#pragma unroll
            for (int q = 0; q < quads; q++)
                query[q] =
                    sh.queries[((queries[i] * VQKV__CUDA_K_SIXTEENS + step) * quads + q) * 32 +
                               lane];
            score_sixteen<quads>(table, word, query, d[i]);
        }
        if (!x.last)
            continue;
#pragma unroll
        for (int i = 0; i < warp_units; i++)
            add_group<rows>(job, sh, x, at[i], queries[i], first + i * warps, d[i], s[i]);
    }
#pragma unroll
    for (int i = 0; i < warp_units; i++)
#pragma unroll
        for (int k = 0; k < quads * 2 && first + i * warps <= last; k++) {
            float *to = sh.p + (k / 2 * 4 + lane % 4) * tile_tokens + at[i].token +
                        k % 2 * columns + lane / 4 * 4;
            const float *from = s[i][k / 2] + k % 2 * 4;
            *reinterpret_cast<float4 *>(to) = float4{from[0], from[1], from[2], from[3]};
        }
}

/* ---- values ---- */

/* Where a lane finds a token's weight among the 64 of its unit: by words of a plane, their bytes,
 * low nibbles before high ones. */
__device__ inline int weight_at(int token, int *unit)
{
    int t = token % block, at = t % columns;
    *unit = token / block * block_units + at / (unit_tokens / 2);
    return at % (unit_tokens / 2) * 2 + t / columns;
}

/* Weights of n tokens times their gains, in words of 15 bits. A warp a row, all threads. */
template <int rows> __device__ void pack_weights(shared<rows> &sh, int n)
{
    int lane = static_cast<int>(threadIdx.x) % warp, gains = sh.v.of[sh.v.n - 1].row + 1;
    for (int r = static_cast<int>(threadIdx.x) / warp; r < rows; r += warps)
        for (int g = 0; g < gains; g++) {
            const float *p = sh.p + r * tile_tokens, *gain = sh.gain + g * tile_tokens;
            float top = 0.0f;
            for (int t = lane; t < n; t += warp)
                top = fmaxf(top, fabsf(p[t] * gain[t]));
            top = largest_of(top);
            float inverse = top > 0.0f ? top_word / top : 0.0f;
            for (int t = lane; t < n; t += warp) {
                int high, low, unit, at = weight_at(t, &unit);
                unsigned char *to =
                    sh.weights + ((g * units + unit) * rows + r) * (2 * unit_tokens);
                split_word(p[t] * gain[t] * inverse, &high, &low);
                to[at] = static_cast<unsigned char>(high & 255);
                to[unit_tokens + at] = static_cast<unsigned char>(low & 255);
            }
            if (lane == 0)
                sh.weight_unit[g * rows + r] = top / top_word;
        }
    __syncthreads();
}

/* Products of 64 tokens and sixteen slots, of which the lane has g and g + 8: added to their sums
 * for a row in four each. */
template <int quads>
__device__ inline void sum_sixteen(const uint4 &low, const uint4 &high, const uint2 &low_codes,
                                   const uint2 &high_codes, const uint4 (&weights)[quads],
                                   const float (&count)[quads], float (&sum)[quads][2])
{
    uint32_t x[8];
    look_up(low, low_codes.x, &x[0], &x[2]);
    look_up(high, high_codes.x, &x[1], &x[3]);
    look_up(low, low_codes.y, &x[4], &x[6]);
    look_up(high, high_codes.y, &x[5], &x[7]);
#pragma unroll
    for (int q = 0; q < quads; q++) {
        int d[4] = {0, 0, 0, 0};
        mma_k32(d, x[0], x[1], x[2], x[3], weights[q].x, weights[q].y);
        mma_k32(d, x[4], x[5], x[6], x[7], weights[q].z, weights[q].w);
#pragma unroll
        for (int k = 0; k < 2; k++)
            sum[q][k] =
                fmaf(count[q],
                     fmaf(128.0f, static_cast<float>(d[2 * k]), static_cast<float>(d[2 * k + 1])),
                     sum[q][k]);
    }
}

/* Adds weight * value of blocks j .. j + n - 1, in slots. All threads. */
template <int rows>
__device__ void sum_absorbed(const attend_job &job, const pass &a, shared<rows> &sh,
                             sums<rows> &sum, int j, int n)
{
    constexpr int quads = rows / 4;
    int lane = static_cast<int>(threadIdx.x) % warp;
    pack_weights(sh, n * block);
    for (int unit = static_cast<int>(threadIdx.x) / warp; unit < n * block_units; unit += warps) {
        unit_at at = find_unit(job, a, j, unit);
        uint4 weights[quads];
        float count[quads];
#pragma unroll
        for (int i = 0; i < VQKV__CUDA_V_SIXTEENS; i++) {
            if (i >= sh.v.n)
                break;
            sixteen x = sh.v.of[i];
            if (i == 0 || sh.v.of[i - 1].last)
#pragma unroll
                for (int q = 0; q < quads; q++) {
                    weights[q] = *reinterpret_cast<const uint4 *>(
                        sh.weights + ((x.row * units + unit) * rows + q * 4) * (2 * unit_tokens) +
                        lane * 16);
                    count[q] = sh.weight_unit[x.row * rows + q * 4 + lane % 4];
                }
            const unsigned char *codes =
                codes_of(job.v, x.stream, at.where) + at.offset + lane % 4 * 8;
            int2 plane = *reinterpret_cast<const int2 *>(sh.v.plane + i * 16 + lane / 4 * 2);
            sum_sixteen<quads>(
                sh.v.table[i * 16 + lane / 4 * 2], sh.v.table[i * 16 + lane / 4 * 2 + 1],
                *reinterpret_cast<const uint2 *>(codes + plane.x),
                *reinterpret_cast<const uint2 *>(codes + plane.y), weights, count, sum.coded[i]);
        }
    }
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
            if (sh.v.stage[i] == stage)
                z[r * VQKV__MAX_SUM_LATENTS + sh.v.latent[i]] +=
                    sh.v.scale[i] * y[r * value_slots + i];
        });
        __syncthreads();
    }
    unmap_sums(job, a, sh, z, sum);
}
