/* What engines call. All pointers but those to `view`, `attention` and `size` are to device memory,
 * which is the caller's: nothing here allocates, copies or waits, so that every call can be
 * captured in a graph. A call puts its kernels into the stream and returns. */

#define VQKV_CUDA_STATUS_LIST(X)                                                                   \
    X(ok, "ok")                                                                                    \
    X(bad_argument, "an argument is out of range or null")                                         \
    X(too_small, "the memory handed in is too small; ask the matching _workspace function")        \
    X(misaligned, "the memory handed in is not aligned to 256 bytes")                              \
    X(split_heads, "the codec joins heads inside and outside of the range")                        \
    X(bad_image, "not the memory of a cache of this codec")                                        \
    X(launch_failed, "a kernel could not be launched; cudaGetLastError() says why")

enum class status {
#define VQKV_CUDA__X(name, words) name,
    VQKV_CUDA_STATUS_LIST(VQKV_CUDA__X)
#undef VQKV_CUDA__X
};

/* Words for a status; never null. */
const char *status_text(status code);

/* Where a block of a sequence lies in the pool, and the position of its first token. */
struct entry {
    int32_t block, position;
};

/* The device memory of a cache: the arrays that the C header keeps, byte for byte. An engine may
 * lay them out as it likes, or copy the whole memory of a C cache to the device (open_image).
 * Blocks are handed out by the engine: `tables` and reference counts are its own. */
struct view {
    int n_seq, n_blocks; /* sequences; blocks in the pool */
    int seq_blocks;      /* entries of a sequence's block table */
    int ring;            /* exact tokens behind the sinks; a multiple of the block, and at least
                            N_RECENT + BLOCK + the most tokens of one append, which is checked */
    int32_t *state; /* [n_seq, 2 + N_LAYERS]: encoded blocks; tokens of the step; tokens of each
                       layer */
    entry *tables;  /* [n_seq, seq_blocks] */
    unsigned char *exact; /* binary16 [n_seq, N_LAYERS, 2, N_KV_HEADS, N_SINK + ring, HEAD_DIM],
                             keys rotated; aligned to 64 */
    unsigned char *pool;  /* stream by stream [n_blocks, bytes of the stream's block], then the
                             landmarks of each layer and KV head, where the codec has them;
                             aligned to 64, its size rounded up to 4 */
};

constexpr int n_layers = VQKV_N_LAYERS, n_heads = VQKV_N_HEADS, n_kv_heads = VQKV_N_KV_HEADS;
constexpr int group = VQKV_GROUP, head_dim = VQKV_HEAD_DIM, block = VQKV_BLOCK;
constexpr int n_sink = VQKV_N_SINK, n_recent = VQKV_N_RECENT;

/* Bytes of the arrays of a view, by its numbers. */
size_t state_bytes(const view &v);
size_t tables_bytes(const view &v);
size_t exact_bytes(const view &v);
size_t pool_bytes(const view &v);

/* The view of a cache whose memory (of the C header, vqkv_init) was copied to `device` as it is.
 * image: the first `bytes` bytes of that memory on the host, 256 or more. It names no codec, unlike
 * what vqkv_save writes: a cache of other geometry, window, block or bytes is found out, but not
 * one of the same shape with other tables; there the caller compares VQKV_CODEC of both headers.
 * Copied back, it is a C cache again with the tokens that it has by then; blocks sealed here must
 * be counted as taken by whoever keeps the free list (vqkv_save and vqkv_load on the C side do that
 * by themselves). */
status open_image(view *v, const void *image, size_t bytes, void *device);

/* What is in device memory the host cannot see without waiting. Kernels leave sequences alone that
 * the view does not have (attend gives zeros for them) and jobs that are out of range, and take
 * counts as 0 .. n. They trust all else there: that `state` and the entries of block tables are
 * within the view, that no sequence is named twice in one append and no block sealed twice, and
 * that arrays are as long as their shapes say. */

enum class type { f32, f16, bf16 };
enum class keys { rotated, unrotated };
enum class part { key, value };

/* KV heads first .. first + count - 1: what a rank of a tensor-parallel engine holds. count 0: all.
 * Keys, values, queries and outputs then have these heads only; caches have all. */
struct heads {
    int first = 0, count = 0;
};

/* Appends up to n tokens to one layer of n_seqs sequences. seqs [n_seqs]: which; null: 0, 1, ...
 * counts [n_seqs]: tokens of each, at most n; null: n. k, v: [n_seqs, n, heads, HEAD_DIM]. Before
 * the first layer of a step the blocks that are due must be sealed. What is beyond the range of
 * binary16 becomes its largest value. */
status append(const view &v, int layer, const int *seqs, int n_seqs, int n, const int *counts,
              const void *k, const void *val, type t, keys rotation, heads range,
              cudaStream_t stream);

/* Blocks that have left the exact window of a sequence with so many tokens. */
constexpr int blocks_due(int n_tokens, int n_sealed)
{
    int uncoded = n_tokens - n_sink - n_sealed * block - n_recent;
    return uncoded < block ? 0 : uncoded / block;
}

/* One block to encode: the index-th of a sequence, into a block of the pool; block -1: nothing. So
 * does a job whose sequence, index or block the view does not have. */
struct seal_job {
    int seq, index, block;
};

/* Encodes n blocks, jobs [n], of all layers, enters them in the block tables and counts them. */
size_t seal_workspace(int n);
status seal(const view &v, const seal_job *jobs, int n, heads range, void *workspace, size_t bytes,
            cudaStream_t stream);

/* Zero means the default everywhere. */
struct attention {
    float scale;              /* on q . k; 1 / sqrt(HEAD_DIM) */
    float soft_cap;           /* scores become cap * tanh(score / cap); 0: none */
    int sliding_window;       /* a query sees this many latest tokens, its own included; 0: all */
    const float *sink_logits; /* [heads * GROUP] extra logit in every softmax; null: none */
};

/* Causal attention of the latest n_q tokens of n_seqs sequences in one layer: q, out [n_seqs, n_q,
 * heads * GROUP, HEAD_DIM] of type t, queries rotated. Sequences may have any lengths; a query
 * before a sequence's first token gives zeros. splits: parts of the context that are attended side
 * by side; 0: chosen from the sizes. */
size_t attend_workspace(int n_seqs, int n_q, heads range, int splits);
status attend(const view &v, int layer, const int *seqs, int n_seqs, int n_q, const void *q,
              void *out, type t, const attention *options, heads range, int splits, void *workspace,
              size_t bytes, cudaStream_t stream);

/* Tokens first .. first + n - 1 of one head as the cache holds them: dst [n, HEAD_DIM] fp32, keys
 * rotated. Tokens that the sequence does not have are left alone. */
size_t read_workspace();
status read(const view &v, int seq, int layer, int kv_head, part which, int first, int n,
            float *dst, void *workspace, size_t bytes, cudaStream_t stream);
