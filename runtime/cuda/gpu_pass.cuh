/* One pass of attention: what the threads of a block share, the online softmax, exact tokens, and
 * blocks that had to be rebuilt. */

constexpr int columns = block / 2; /* a byte of nibbles holds tokens t and t + columns */
/* A tile is so many blocks that each thread scores two tokens; where blocks have tables or vectors
 * of their own it is one, and threads split the planes instead. On tensor cores a warp takes 64
 * tokens at once or, unless blocks have queries of their own, twice 64. */
constexpr int tile = VQKV__CUDA_TENSOR ? VQKV__CUDA_TENSOR / block
                     : VQKV__CUDA_BLOCKWISE || VQKV__REBUILDS || threads < columns
                         ? 1
                         : threads / columns;
constexpr int tile_tokens = tile * block;
constexpr int parts = !VQKV__CUDA_TENSOR && threads > tile *columns ? threads / (tile * columns)
                                                                    : 1;
constexpr int out_slots = (head_dim + threads - 1) / threads;

constexpr int larger(int a, int b)
{
    return a > b ? a : b;
}

/* The most bytes of shared memory that every GPU from sm_80 on lends a block, some left over for
 * what the system takes. */
constexpr size_t shared_limit = 96 * 1024;

/* What the threads of a block share, and what each keeps: gpu_lookup.cuh or gpu_tensor.cuh. */
template <int rows> struct shared;
template <int rows> struct sums;

struct attend_job {
    view v;
    const int *seqs;
    int layer, n_seqs, n_q, splits, row_tiles, rebuilt_k, rebuilt_v;
    heads range;
    float scale, soft_cap;
    int window;
    type t;
    const void *q;
    float *m, *l, *o; /* [n_seqs, n_q, heads * GROUP, splits], o [..., HEAD_DIM] */
    float *workspace; /* of each thread block, where vectors are rebuilt */
};

/* What every thread knows of a pass. */
struct pass {
    int slot, seq, head, first_row, split, n_tokens, n_sealed;
    float *k, *val, *room; /* rebuilt tiles [HEAD_DIM, BLOCK]; null: absorbed */
};

__device__ inline float largest_of(float x)
{
    for (int step = warp / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ inline float sum_of(float x)
{
    for (int step = warp / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Weights [rows, tile] of the tokens first .. first + n - 1 from their scores; the state of each
 * row, and by what earlier sums shrink. A warp a row. All threads. */
template <int rows>
__device__ void soft_max(const attend_job &job, shared<rows> &sh, int first, int n, bool coded)
{
    int lane = static_cast<int>(threadIdx.x) % warp;
    for (int r = static_cast<int>(threadIdx.x) / warp; r < rows; r += warps) {
        int from = job.window > 0 ? sh.position[r] - job.window + 1 - first : 0;
        int to = sh.position[r] + 1 - first < n ? sh.position[r] + 1 - first : n;
        float top = masked, sum = 0.0f, m = sh.m[r];
        for (int t = lane; t < tile_tokens; t += warp) {
            float x = sh.p[r * tile_tokens + t];
            if (job.soft_cap > 0.0f)
                x = job.soft_cap * tanhf(x / job.soft_cap);
            x = t >= from && t < to ? x : masked;
            sh.p[r * tile_tokens + t] = x;
            top = fmaxf(top, x);
        }
        top = fmaxf(largest_of(top), m);
        for (int t = lane; t < tile_tokens; t += warp) {
            float x = sh.p[r * tile_tokens + t];
            float e = expf(x - top); /* not only where it is wanted: that would be a branch */
            x = x > masked ? e : 0.0f;
            sh.p[r * tile_tokens + t] = x;
            sum += x;
        }
        sum = sum_of(sum);
        float shrink = m > masked ? expf(m - top) : 1.0f;
        if (lane == 0) {
            sh.m[r] = top;
            sh.shrink[r] = shrink;
            sh.l[r] = sh.l[r] * shrink + sum;
            sh.coded[r] = sh.coded[r] * shrink + (coded ? sum : 0.0f);
        }
        __syncwarp();
    }
    __syncthreads();
}

template <int rows> __device__ inline void shrink_sums(const shared<rows> &sh, sums<rows> &sum)
{
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int i = 0; i < out_slots; i++)
            sum.o[i][r] *= sh.shrink[r];
    shrink_coded(sh, sum);
}

/* Tokens token .. token + n - 1 of the exact window, n <= tile_tokens. All threads. */
template <int rows>
__device__ void attend_exact(const attend_job &job, const pass &a, shared<rows> &sh,
                             sums<rows> &sum, int token, int n)
{
    each(n * rows, [&](int i) {
        int r = i / n, t = i % n;
        const unsigned char *k = exact_of(job.v, a.seq, job.layer, key_part, a.head, token + t);
        const float *q = sh.q + r * head_dim;
        float s = 0.0f;
        for (int d = 0; d < head_dim; d++)
            s = fmaf(q[d], exact_at(k, d), s);
        sh.p[r * tile_tokens + t] = s;
    });
    __syncthreads();
    soft_max(job, sh, token, n, false);
    shrink_sums(sh, sum);
#pragma unroll
    for (int i = 0; i < out_slots; i++) {
        int d = static_cast<int>(threadIdx.x) + i * threads;
        for (int t = 0; t < n && d < head_dim; t++) {
            float x = exact_at(exact_of(job.v, a.seq, job.layer, value_part, a.head, token + t), d);
#pragma unroll
            for (int r = 0; r < rows; r++)
                sum.o[i][r] = fmaf(sh.p[r * tile_tokens + t], x, sum.o[i][r]);
        }
    }
    __syncthreads();
}

/* Scores of a rebuilt block, one share of its channels for each part. */
template <int rows> __device__ void score_rebuilt(const pass &a, shared<rows> &sh)
{
    each(parts * block, [&](int i) {
        int share = i / block, t = i % block;
        float s[rows];
#pragma unroll
        for (int r = 0; r < rows; r++)
            s[r] = 0.0f;
        for (int d = share; d < head_dim; d += parts) {
            float x = a.k[d * block + t];
#pragma unroll
            for (int r = 0; r < rows; r++)
                s[r] = fmaf(sh.q[r * head_dim + d], x, s[r]);
        }
#pragma unroll
        for (int r = 0; r < rows; r++)
            sh.p[(share * rows + r) * tile_tokens + t] = s[r];
    });
}

/* Adds weight * value of a rebuilt block. */
template <int rows>
__device__ void sum_rebuilt(const pass &a, const shared<rows> &sh, sums<rows> &sum)
{
#pragma unroll
    for (int i = 0; i < out_slots; i++) {
        int d = static_cast<int>(threadIdx.x) + i * threads;
        for (int t = 0; t < block && d < head_dim; t++) {
            float x = a.val[d * block + t];
#pragma unroll
            for (int r = 0; r < rows; r++)
                sum.o[i][r] = fmaf(sh.p[r * tile_tokens + t], x, sum.o[i][r]);
        }
    }
}
