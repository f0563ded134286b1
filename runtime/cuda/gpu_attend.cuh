/* Attention: passes over rows of queries, one head, one part of the context; and their merging. */

/* Where a row is in [n_seqs, n_q, heads * GROUP]. */
__device__ inline size_t query_at(const attend_job &job, const pass &a, int row)
{
    size_t at = (static_cast<size_t>(a.slot) * static_cast<size_t>(job.n_q) +
                 static_cast<size_t>(row / group)) *
                    static_cast<size_t>(job.range.count) +
                static_cast<size_t>(a.head - job.range.first);
    return at * group + static_cast<size_t>(row % group);
}

/* Loads the queries of a pass and clears its state. All threads. */
template <int rows>
__device__ void begin(const attend_job &job, const pass &a, shared<rows> &sh, sums<rows> &sum)
{
    clear_coded(sum);
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int i = 0; i < out_slots; i++)
            sum.o[i][r] = 0.0f;
    each(rows * head_dim, [&](int i) {
        int row = a.first_row + i / head_dim;
        size_t at = query_at(job, a, row) * head_dim + static_cast<size_t>(i % head_dim);
        float x = row < job.n_q * group ? load_as(job.q, job.t, at) * job.scale : 0.0f;
        sh.q[i] = sh.turned[i] = x;
    });
    each(rows, [&](int r) {
        int row = a.first_row + r;
        sh.position[r] = row < job.n_q * group ? a.n_tokens - job.n_q + row / group : -1;
        sh.m[r] = masked;
        sh.l[r] = sh.coded[r] = 0.0f;
    });
    __syncthreads();
}

/* Adds up the scores of all parts in the first. All threads. */
template <int rows> __device__ void add_parts(shared<rows> &sh)
{
    __syncthreads();
    if (parts == 1)
        return;
    each(rows * tile_tokens, [&](int i) {
        for (int k = 1; k < parts; k++)
            sh.p[i] += sh.p[k * rows * tile_tokens + i];
    });
    __syncthreads();
}

/* Known when the kernel is compiled, for codecs of which nothing is rebuilt. */
__device__ inline bool rebuilds_k(const pass &a)
{
    return VQKV__REBUILDS && a.k != nullptr;
}
__device__ inline bool rebuilds_v(const pass &a)
{
    return VQKV__REBUILDS && a.val != nullptr;
}

/* Blocks first .. last - 1. All threads. */
template <int rows>
__device__ void attend_blocks(const attend_job &job, const pass &a, shared<rows> &sh,
                              sums<rows> &sum, int first, int last)
{
    int n_uses;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
    bool blockwise = vqkv__streams[use[0].stream].frame == VQKV__BLOCKWISE;
    if (!rebuilds_v(a))
        find_codes(job, a, sh);
    if (!rebuilds_k(a) && !blockwise)
        fill_tables(job, a, sh, 0);
    for (int j = first, n; j < last; j += n) {
        n = last - j < tile ? last - j : tile;
        entry e = entry_of(job.v, a.seq, j);
        if (rebuilds_k(a)) {
            rebuild_head(job.v, e, key_part, job.layer, a.head, a.room, a.k);
            score_rebuilt(a, sh);
        } else {
            for (int b = 0; b < n && blockwise; b++) {
                turn_queries(sh, entry_of(job.v, a.seq, j + b).position);
                fill_tables(job, a, sh, b);
            }
            score_absorbed(job, a, sh, j, n);
        }
        if (!rebuilds_v(a))
            load_gains(job, a, sh, j, n);
        add_parts(sh);
        soft_max(job, sh, n_sink + j * block, n * block, true);
        shrink_sums(sh, sum);
        if (rebuilds_v(a)) {
            rebuild_head(job.v, e, value_part, job.layer, a.head, a.room, a.val);
            sum_rebuilt(a, sh, sum);
        } else {
            sum_absorbed(job, a, sh, sum, j, n);
        }
        __syncthreads();
    }
    if (!rebuilds_v(a))
        collect(job, a, sh, sum);
}

/* Writes m, l and o of the rows. */
template <int rows>
__device__ void finish(const attend_job &job, const pass &a, const shared<rows> &sh,
                       const sums<rows> &sum)
{
#pragma unroll
    for (int r = 0; r < rows; r++) {
        int row = a.first_row + r;
        if (row >= job.n_q * group)
            continue;
        size_t at =
            query_at(job, a, row) * static_cast<size_t>(job.splits) + static_cast<size_t>(a.split);
        if (threadIdx.x == 0) {
            job.m[at] = sh.m[r];
            job.l[at] = sh.l[r];
        }
#pragma unroll
        for (int i = 0; i < out_slots; i++) {
            int d = static_cast<int>(threadIdx.x) + i * threads;
            if (d < head_dim)
                job.o[at * head_dim + static_cast<size_t>(d)] = sum.o[i][r];
        }
    }
    __syncthreads();
}

/* One pass: sinks with the first split, its share of the blocks that can be seen, the exact window
 * with the last split. */
template <int rows>
__device__ void attend_rows(const attend_job &job, const pass &a, shared<rows> &sh)
{
    sums<rows> sum;
    begin(job, a, sh, sum);
    int first = 0, coded = n_sink + a.n_sealed * block;
    if (job.window > 0 && sh.position[0] - job.window + 1 > n_sink)
        first = (sh.position[0] - job.window + 1 - n_sink) / block;
    int n = a.n_sealed > first ? a.n_sealed - first : 0;
    int share = (n + job.splits - 1) / job.splits, from = first + a.split * share;
    int to = from + share < a.n_sealed ? from + share : a.n_sealed;
    int sinks = n_sink < a.n_tokens ? n_sink : a.n_tokens;
    for (int t = 0; t < sinks && a.split == 0; t += tile_tokens)
        attend_exact(job, a, sh, sum, t, sinks - t < tile_tokens ? sinks - t : tile_tokens);
    if (from < to)
        attend_blocks(job, a, sh, sum, from, to);
    for (int t = coded; t < a.n_tokens && a.split == job.splits - 1; t += tile_tokens)
        attend_exact(job, a, sh, sum, t,
                     a.n_tokens - t < tile_tokens ? a.n_tokens - t : tile_tokens);
    finish(job, a, sh, sum);
}

/* So many thread blocks a multiprocessor at least: left to itself, the compiler spills for more. */
template <int rows>
__global__ void __launch_bounds__(threads, blocks_wanted(rows)) attend_kernel(attend_job job)
{
    extern __shared__ unsigned char vqkv__shared[];
    shared<rows> &sh = *reinterpret_cast<shared<rows> *>(vqkv__shared);
    float *floats =
        job.workspace + static_cast<size_t>(blockIdx.x) * (rebuild_floats + 2 * head_floats);
    int items = job.row_tiles * job.range.count * job.splits * job.n_seqs;
    for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
        pass a{};
        int rest = i / job.row_tiles;
        a.first_row = i % job.row_tiles * rows;
        a.head = job.range.first + rest % job.range.count;
        rest /= job.range.count;
        a.split = rest % job.splits;
        a.slot = rest / job.splits;
        a.seq = job.seqs != nullptr ? job.seqs[a.slot] : a.slot;
        a.n_tokens = is_seq(job.v, a.seq) ? *tokens_of(job.v, a.seq, job.layer) : 0;
        a.n_sealed = is_seq(job.v, a.seq) ? sealed_of(job.v, a.seq) : 0;
        a.k = job.rebuilt_k ? floats : nullptr;
        a.val = job.rebuilt_v ? floats + head_floats : nullptr;
        a.room = floats + 2 * head_floats;
        attend_rows<rows>(job, a, sh);
    }
}

struct merge_job {
    const float *m, *l, *o; /* of attend_job */
    int splits, n_rows;     /* rows of a sequence */
    const float *sinks;     /* [rows of a query] or null */
    int row_step;           /* heads * GROUP */
    type t;
    void *out;
};

/* One row a thread block: x = row of the sequence, y = sequence. */
__global__ void __launch_bounds__(threads) merge_kernel(merge_job job)
{
    int row = static_cast<int>(blockIdx.x);
    size_t at = static_cast<size_t>(blockIdx.y) * static_cast<size_t>(job.n_rows) +
                static_cast<size_t>(row);
    size_t first = at * static_cast<size_t>(job.splits);
    float top = job.sinks != nullptr ? job.sinks[row % job.row_step] : masked, sum = 0.0f;
    float sink = top;
    for (int i = 0; i < job.splits; i++)
        top = fmaxf(top, job.m[first + static_cast<size_t>(i)]);
    for (int i = 0; i < job.splits; i++)
        sum += job.l[first + static_cast<size_t>(i)] *
               expf(job.m[first + static_cast<size_t>(i)] - top);
    if (job.sinks != nullptr)
        sum += expf(sink - top);
    each(head_dim, [=](int d) {
        float x = 0.0f;
        for (int i = 0; i < job.splits; i++) {
            size_t k = first + static_cast<size_t>(i);
            x += expf(job.m[k] - top) * job.o[k * head_dim + static_cast<size_t>(d)];
        }
        store_as(job.out, job.t, at * head_dim + static_cast<size_t>(d),
                 sum > 0.0f ? x / sum : 0.0f);
    });
}
