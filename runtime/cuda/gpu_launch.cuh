/* Host side: checks, sizes, launches. */

const char *status_text(status code)
{
    switch (code) {
#define VQKV_CUDA__X(name, words)                                                                  \
    case status::name:                                                                             \
        return words;
        VQKV_CUDA_STATUS_LIST(VQKV_CUDA__X)
#undef VQKV_CUDA__X
    }
    return "unknown status";
}

constexpr int max_grid = 65535;

/* The most thread blocks that rebuild vectors or encode at once: each has its own workspace. */
constexpr int max_workers = 512;

/* Thread blocks that attention is cut into where the caller leaves that open. */
constexpr int wanted_blocks = 512;

constexpr size_t rounded(size_t n)
{
    return (n + 255) / 256 * 256;
}

template <class... P>
static status launch(void (*kernel)(P...), dim3 grid, size_t shared_bytes, cudaStream_t stream,
                     P... args)
{
    void *list[] = {static_cast<void *>(&args)...};
    /* more than 48 KiB must be asked for */
    if (shared_bytes > 48 * 1024 &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)) != cudaSuccess)
        return status::launch_failed;
    cudaError_t error = cudaLaunchKernel(kernel, grid, dim3(threads), list, shared_bytes, stream);
    return error == cudaSuccess ? status::ok : status::launch_failed;
}

static dim3 grid_of(int x, int y = 1)
{
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

static bool is_aligned(const void *p, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/* Whether p [...] of type t is there and aligned. */
static bool is_array(const void *p, type t)
{
    return p != nullptr && is_aligned(p, t == type::f32 ? 4 : 2);
}

static bool is_view(const view &v)
{
    return v.n_seq > 0 && v.n_blocks > 0 && v.seq_blocks > 0 && v.ring > 0 && v.ring % block == 0 &&
           v.state != nullptr && v.tables != nullptr && v.exact != nullptr && v.pool != nullptr &&
           is_aligned(v.state, 4) && is_aligned(v.tables, 4) && is_aligned(v.exact, 64) &&
           is_aligned(v.pool, 64);
}

/* Fills in the default; false for a range that the model does not have. */
static bool resolve(heads *range)
{
    if (range->first < 0 || range->first >= n_kv_heads || range->count < 0)
        return false;
    if (range->count == 0)
        range->count = n_kv_heads - range->first;
    return range->count <= n_kv_heads - range->first;
}

static status check_room(const void *workspace, size_t bytes, size_t wanted)
{
    if (workspace == nullptr || bytes < wanted)
        return status::too_small;
    return is_aligned(workspace, 256) ? status::ok : status::misaligned;
}

/* ---- memory ---- */

size_t state_bytes(const view &v)
{
    return static_cast<size_t>(v.n_seq) * (2 + n_layers) * sizeof(int32_t);
}

size_t tables_bytes(const view &v)
{
    return static_cast<size_t>(v.n_seq) * static_cast<size_t>(v.seq_blocks) * sizeof(entry);
}

size_t exact_bytes(const view &v)
{
    return static_cast<size_t>(v.n_seq) * n_layers * 2 * n_kv_heads *
           static_cast<size_t>(n_sink + v.ring) * head_dim * 2;
}

size_t pool_bytes(const view &v)
{
    return (static_cast<size_t>(v.n_blocks) * block_bytes + 3) / 4 * 4;
}

/* The head of a C cache's memory. */
struct image_head {
    uint64_t magic;
    int32_t n_seq, n_ctx, max_batch, n_blocks, isa, n_exact;
    int32_t ring, seq_blocks, n_free, next, n_kept, kept_free;
    uint64_t seqs, tables, references, kept_firsts, kept_links, kept_rows, exact, pool;
    uint64_t work, turns, bytes;
};

/* Whether n things of `size` bytes, and what aligns their end to 64, fill an image from `at` to
 * `end`. */
static bool fills(uint64_t at, uint64_t end, int n, uint64_t size)
{
    uint64_t many = static_cast<uint64_t>(n);
    return at % 64 == 0 && at <= end && many <= (end - at) / size &&
           end - at == (many * size + 63) / 64 * 64;
}

/* Whether the numbers and places are those that the C header gives a cache of this geometry, window
 * and block (its kvcache.h). An exact list is another codec's: there is none here. The limits keep
 * sums from overflowing. */
static bool is_image(const image_head &h)
{
    if (h.magic != 0x31766b7176716b76u || h.n_seq < 1 || h.n_blocks < 1 || h.n_blocks > 1 << 28 ||
        h.n_exact != 0 || h.n_ctx < 1 || h.n_ctx > 1 << 28 || h.max_batch < 1 ||
        h.max_batch > 1 << 24 || h.seq_blocks != h.n_ctx / block + 1 ||
        h.ring != (n_recent + h.max_batch + 2 * block - 1) / block * block)
        return false;
    uint64_t state = (2 + n_layers) * sizeof(int32_t);
    uint64_t table = static_cast<uint64_t>(h.seq_blocks) * sizeof(entry);
    uint64_t exact = static_cast<uint64_t>(n_sink + h.ring) * n_layers * 2 * n_kv_heads * head_dim *
                     sizeof(uint16_t);
    return h.seqs >= sizeof h && h.references <= h.exact && h.pool <= h.bytes &&
           fills(h.seqs, h.tables, h.n_seq, state) &&
           fills(h.tables, h.references, h.n_seq, table) &&
           fills(h.exact, h.pool, h.n_seq, exact) &&
           h.bytes - h.pool == static_cast<uint64_t>(h.n_blocks) * block_bytes;
}

status open_image(view *v, const void *image, size_t bytes, void *device)
{
    image_head h;
    if (v == nullptr || image == nullptr || device == nullptr)
        return status::bad_argument;
    if (bytes < sizeof h)
        return status::too_small;
    memcpy(&h, image, sizeof h);
    if (!is_image(h))
        return status::bad_image;
    if (!is_aligned(device, 256))
        return status::misaligned;
    auto *base = static_cast<unsigned char *>(device);
    *v = view{h.n_seq,
              h.n_blocks,
              h.seq_blocks,
              h.ring,
              reinterpret_cast<int32_t *>(base + h.seqs),
              reinterpret_cast<entry *>(base + h.tables),
              base + h.exact,
              base + h.pool};
    return status::ok;
}

/* ---- append and seal ---- */

status append(const view &v, int layer, const int *seqs, int n_seqs, int n, const int *counts,
              const void *k, const void *val, type t, keys rotation, heads range,
              cudaStream_t stream)
{
    if (!is_view(v) || !resolve(&range) || layer < 0 || layer >= n_layers || n < 1 ||
        n > v.ring - n_recent - block || n_seqs < 1 || n_seqs > max_grid || n_seqs > v.n_seq ||
        !is_array(k, t) || !is_array(val, t) || !is_aligned(seqs, 4) || !is_aligned(counts, 4))
        return status::bad_argument;
    append_job job{v, layer, n, rotation == keys::unrotated, seqs, counts, range, t, k, val};
    status code = launch(append_kernel, grid_of(n * range.count, n_seqs), 0, stream, job);
    if (code != status::ok)
        return code;
    return launch(count_kernel, grid_of((n_seqs + threads - 1) / threads), 0, stream, job, n_seqs);
}

static int seal_workers(int n)
{
    return n < max_workers / VQKV__N_COMPONENTS ? n * VQKV__N_COMPONENTS : max_workers;
}

size_t seal_workspace(int n)
{
    return n < 1 ? 0 : static_cast<size_t>(seal_workers(n)) * encode_floats * sizeof(float);
}

status seal(const view &v, const seal_job *jobs, int n, heads range, void *workspace, size_t bytes,
            cudaStream_t stream)
{
    if (!is_view(v) || !resolve(&range) || jobs == nullptr || n < 1 ||
        n > (1 << 30) / VQKV__N_COMPONENTS)
        return status::bad_argument;
    for (const short(&part)[2] : vqkv__component_heads)
        if (part[0] < range.first + range.count && part[1] >= range.first &&
            (part[0] < range.first || part[1] >= range.first + range.count))
            return status::split_heads;
    status code = check_room(workspace, bytes, seal_workspace(n));
    if (code != status::ok)
        return code;
    seal_jobs a{v, jobs, n, range, static_cast<float *>(workspace)};
    code = launch(seal_kernel, grid_of(seal_workers(n)), 0, stream, a);
    if (code == status::ok && VQKV_LANDMARKS > 0)
        code = launch(mark_kernel,
                      grid_of(n_layers * range.count * chunks, n < max_grid ? n : max_grid),
                      sizeof(mark_room), stream, a);
    if (code != status::ok)
        return code;
    return launch(commit_kernel, grid_of((n + threads - 1) / threads), 0, stream, v, jobs, n);
}

/* ---- attend ---- */

/* How a call is cut into thread blocks, and what memory it takes. */
struct cut {
    int rows, row_tiles, splits, items;
    size_t partials; /* queries of all sequences, times splits */
    size_t bytes;
};

static bool cut_up(int n_seqs, int n_q, heads range, int splits, cut *c)
{
    if (!resolve(&range) || n_seqs < 1 || n_seqs > max_grid || n_q < 1 || splits < 0 ||
        splits > 4096 || n_q > (1 << 30) / n_heads)
        return false;
    c->rows = n_q * group <= decode_rows ? decode_rows : prefill_rows;
    c->row_tiles = (n_q * group + c->rows - 1) / c->rows;
    int64_t each_split = static_cast<int64_t>(c->row_tiles) * range.count * n_seqs;
    if (splits == 0)
        splits = each_split >= wanted_blocks ? 1 : static_cast<int>(wanted_blocks / each_split);
    if (each_split * splits > (1 << 30))
        return false;
    c->splits = splits;
    c->items = static_cast<int>(each_split) * splits;
    c->partials = static_cast<size_t>(n_seqs) * static_cast<size_t>(n_q) *
                  static_cast<size_t>(range.count) * group * static_cast<size_t>(splits);
    c->bytes =
        2 * rounded(c->partials * sizeof(float)) + rounded(c->partials * head_dim * sizeof(float));
    if (VQKV__REBUILDS)
        c->bytes += static_cast<size_t>(c->items < max_workers ? c->items : max_workers) *
                    (rebuild_floats + 2 * head_floats) * sizeof(float);
    return true;
}

size_t attend_workspace(int n_seqs, int n_q, heads range, int splits)
{
    cut c;
    return cut_up(n_seqs, n_q, range, splits, &c) ? c.bytes : 0;
}

status attend(const view &v, int layer, const int *seqs, int n_seqs, int n_q, const void *q,
              void *out, type t, const attention *options, heads range, int splits, void *workspace,
              size_t bytes, cudaStream_t stream)
{
    cut c;
    if (!is_view(v) || !resolve(&range) || layer < 0 || layer >= n_layers || n_seqs > v.n_seq ||
        !is_array(q, t) || !is_array(out, t) || !is_aligned(seqs, 4) ||
        !cut_up(n_seqs, n_q, range, splits, &c))
        return status::bad_argument;
    status code = check_room(workspace, bytes, c.bytes);
    if (code != status::ok)
        return code;
    attention a = options != nullptr ? *options : attention{};
    bool rebuilt_k = vqkv__rebuilt[layer], rebuilt_v = vqkv__rebuilt[n_layers + layer];
    auto *m = static_cast<float *>(workspace), *l = m + rounded(c.partials * sizeof(float)) / 4;
    float *o = l + rounded(c.partials * sizeof(float)) / 4;
    attend_job job{v,
                   seqs,
                   layer,
                   n_seqs,
                   n_q,
                   c.splits,
                   c.row_tiles,
                   rebuilt_k,
                   rebuilt_v,
                   range,
                   a.scale != 0.0f ? a.scale : VQKV_ATTENTION_SCALE,
                   a.soft_cap,
                   a.sliding_window,
                   t,
                   q,
                   m,
                   l,
                   o,
                   o + rounded(c.partials * head_dim * sizeof(float)) / 4};
    int blocks = (rebuilt_k || rebuilt_v) && c.items > max_workers ? max_workers : c.items;
    if (c.rows == decode_rows)
        code = launch(attend_kernel<decode_rows>, grid_of(blocks), sizeof(shared<decode_rows>),
                      stream, job);
    else
        code = launch(attend_kernel<prefill_rows>, grid_of(blocks), sizeof(shared<prefill_rows>),
                      stream, job);
    if (code != status::ok)
        return code;
    merge_job merge{
        m, l, o, c.splits, n_q * range.count * group, a.sink_logits, range.count * group, t, out};
    return launch(merge_kernel, grid_of(merge.n_rows, n_seqs), 0, stream, merge);
}

/* ---- read ---- */

constexpr int read_workers = 64;

size_t read_workspace()
{
    return read_workers * (rebuild_floats + head_floats) * sizeof(float);
}

status read(const view &v, int seq, int layer, int kv_head, part which, int first, int n,
            float *dst, void *workspace, size_t bytes, cudaStream_t stream)
{
    if (!is_view(v) || seq < 0 || seq >= v.n_seq || layer < 0 || layer >= n_layers || kv_head < 0 ||
        kv_head >= n_kv_heads || first < 0 || n < 1 || n > (1 << 28) || first > (1 << 28) ||
        dst == nullptr)
        return status::bad_argument;
    status code = check_room(workspace, bytes, read_workspace());
    if (code != status::ok)
        return code;
    read_job job{v,
                 seq,
                 layer,
                 kv_head,
                 which == part::key ? key_part : value_part,
                 first,
                 n,
                 dst,
                 static_cast<float *>(workspace)};
    return launch(read_kernel, grid_of(read_workers), 0, stream, job);
}
