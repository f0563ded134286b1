/* Rebuilding a block of K or V of one layer: what its prediction says plus what its streams hold.
 * Predictions make chains down the layers: all that the wanted node rests on is rebuilt first, each
 * in a slot that is given to another node as soon as nothing needs it any more. */

/* out [n, HEAD_DIM, BLOCK]: what the sources, in their slots, say of heads head .. head + n - 1. */
__device__ inline void predict(const room &r, int prediction, int head, int n, float *out)
{
    const vqkv__prediction &p = vqkv__predictions[prediction];
    int first = head * head_dim, channels = n * head_dim;
    each(channels * block, [=, &p](int i) { out[i] = table_at(p.bias, first + i / block); });
    clear(p.rank * block, r.hidden);
    for (int s = 0; s < p.n_sources; s++) {
        const float *x = slot_of(r, p.source[s]);
        int row = s * width;
        for (int h = head; h < head + n && p.per_head; h++)
            product(halves(p.map + (row + h * head_dim) * head_dim), head_dim, 0, head_dim,
                    head_dim, 1.0f, x + static_cast<size_t>(h) * head_floats,
                    out + static_cast<size_t>(h - head) * head_floats);
        if (p.rank > 0)
            product(halves(p.map + row * p.rank), p.rank, 0, width, p.rank, 1.0f, x, r.hidden);
        else if (!p.per_head)
            product(halves(p.map + row * width + first), width, 0, width, channels, 1.0f, x, out);
    }
    if (p.rank > 0)
        product(halves(p.out + first), width, 0, p.rank, channels, 1.0f, r.hidden, out);
}

/* out [HEAD_DIM, BLOCK] += sign * what one stream holds of a head. */
__device__ inline void add_use(const view &v, int where, vqkv__use use, float sign, room *r,
                               float *out)
{
    const vqkv__stream &s = vqkv__streams[use.stream];
    if (r->have != use.stream) {
        decode_latents(s, codes_of(v, use.stream, where), r->z);
        r->have = use.stream;
    }
    add_member(s, use.member, sign, r->z, out);
}

/* Some heads of a node, in their slot: keys in the frame that they were coded in. Streams outside,
 * heads inside, so that latents which several heads share are decoded once. */
__device__ inline void rebuild_node(const view &v, int where, int node, int head, int n, room *r)
{
    const vqkv__node &at = vqkv__nodes[node];
    float *out = slot_of(*r, node) + static_cast<size_t>(head) * head_floats;
    if (at.prediction >= 0)
        predict(*r, at.prediction, head, n, out);
    else
        clear(n * head_dim * block, out);
    for (int u = 0, more = 1; more; u++) {
        more = 0;
        for (int h = 0; h < n; h++) {
            int n_uses;
            const vqkv__use *use = uses_of(at.part, at.layer, head + h, &n_uses);
            if (u < n_uses)
                add_use(v, where, use[u], 1.0f, r, out + static_cast<size_t>(h) * head_floats);
            more |= u + 1 < n_uses;
        }
    }
}

/* out [HEAD_DIM, BLOCK]: K or V of one head in one block, keys rotated by their positions. */
__device__ inline void rebuild_head(const view &v, entry e, int which, int layer, int head,
                                    float *floats, float *out)
{
    room r = make_room(floats);
    int n_uses, at = which * n_layers + layer, node = vqkv__node_at[at];
    const vqkv__use *use = uses_of(which, layer, head, &n_uses);
    for (int i = vqkv__walk_first[at]; i < vqkv__walk_first[at + 1]; i++)
        rebuild_node(v, e.block, vqkv__walk[i], 0, n_kv_heads, &r);
    rebuild_node(v, e.block, node, head, 1, &r);
    turn_tile(which == key_part ? int(vqkv__streams[use[0].stream].frame) : int(VQKV__POST),
              e.position, 1.0f, slot_of(r, node) + static_cast<size_t>(head) * head_floats, out);
}

/* ---- reading back ---- */

struct read_job {
    view v;
    int seq, layer, head, which, first, n;
    float *dst, *workspace;
};

/* Tokens in pieces: the sinks, then blocks, whether coded or exact. */
__global__ void __launch_bounds__(threads, workers_wanted) read_kernel(read_job job)
{
    float *tile = job.workspace + static_cast<size_t>(blockIdx.x) * (rebuild_floats + head_floats);
    int n_tokens = *tokens_of(job.v, job.seq, job.layer), n_sealed = sealed_of(job.v, job.seq);
    int last = job.first + job.n < n_tokens ? job.first + job.n : n_tokens;
    int pieces = last <= n_sink ? 1 : 1 + (last - n_sink + block - 1) / block;
    int piece = job.first < n_sink ? 0 : 1 + (job.first - n_sink) / block;
    for (piece += static_cast<int>(blockIdx.x); piece < pieces;
         piece += static_cast<int>(gridDim.x)) {
        int from = piece == 0 ? 0 : n_sink + (piece - 1) * block;
        int to = piece == 0 ? n_sink : from + block, coded = piece > 0 && piece <= n_sealed;
        if (coded)
            rebuild_head(job.v, entry_of(job.v, job.seq, piece - 1), job.which, job.layer, job.head,
                         tile + head_floats, tile);
        each((to - from) * head_dim, [=](int i) {
            int t = from + i / head_dim, d = i % head_dim;
            if (t < job.first || t >= last)
                return;
            const unsigned char *row = exact_of(job.v, job.seq, job.layer, job.which, job.head, t);
            job.dst[static_cast<size_t>(t - job.first) * head_dim + static_cast<size_t>(d)] =
                coded ? tile[d * block + t - from] : exact_at(row, d);
        });
        __syncthreads();
    }
}
