/* Encoding blocks. A thread block takes one block of tokens and one component of the codec: the
 * streams that rest on each other, in their order. */

/* x as a code 0 .. last; a NaN gives 0. */
__device__ inline int clamp_code(float x, int last)
{
    return !(x > 0.0f) ? 0 : x < static_cast<float>(last) ? static_cast<int>(x) : last;
}

/* Neighbouring tokens share bytes: codes are added to a plane that is zero, in words. */
__device__ inline void or_byte(unsigned char *p, int bits)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(p);
    atomicOr(reinterpret_cast<unsigned *>(at & ~static_cast<uintptr_t>(3)),
             static_cast<unsigned>(bits & 255) << 8 * (at & 3));
}

__device__ inline void write_code(const vqkv__run &run, unsigned char *plane, int t, int code)
{
    int whole = run.bits / 8, rest = run.bits % 8;
    if (run.bits == 4) {
        or_byte(plane + t % (block / 2), code << t / (block / 2) * 4);
        return;
    }
    for (int i = 0; i < whole; i++, code >>= 8)
        or_byte(plane + i * block + t, code);
    if (rest == 0)
        return;
    unsigned char *p = plane + whole * block + t * rest / 8;
    int shift = t * rest % 8;
    or_byte(p, code << shift);
    if (shift + rest > 8)
        or_byte(p + 1, code >> (8 - shift));
}

/* One token's group of channels: z [width], BLOCK apart. */
struct column_of {
    float *z;
    __device__ float &operator[](int w) const
    {
        return z[w * block];
    }
};

/* Squared distance of z to a codeword. */
__device__ inline float distance_to(const vqkv__run &run, int book, int code, column_of z)
{
    float sum = 0.0f;
    for (int w = 0; w < run.width; w++) {
        float d = table_at(book, (w << run.bits) + code) - z[w];
        sum = fmaf(d, d, sum);
    }
    return sum;
}

__device__ inline void take_off(const vqkv__run &run, int book, int code, column_of z)
{
    for (int w = 0; w < run.width; w++)
        z[w] -= table_at(book, (w << run.bits) + code);
}

/* Codes one token's group stage by stage, each time by the nearest codeword, the first of equals; z
 * is destroyed. */
__device__ inline void search_greedy(const vqkv__run &run, unsigned char *codes, int plane, int t,
                                     column_of z)
{
    for (int stage = 0; stage < run.stages; stage++) {
        int book = book_of(run, plane + stage), best = 0;
        float least = distance_to(run, book, 0, z);
        for (int i = 1; i < 1 << run.bits; i++) {
            float d = distance_to(run, book, i, z);
            if (d < least) {
                least = d;
                best = i;
            }
        }
        take_off(run, book, best, z);
        write_code(run, codes + static_cast<size_t>(plane + stage) * plane_bytes(run), t, best);
    }
}

/* A sum of codewords, one a stage, that a beam keeps: the codes, and its squared distance. */
struct candidate {
    float distance;
    int parent;
    unsigned short code[VQKV__MAX_STAGES];
};

/* Puts a sum among the *n best, which ascend; a tie goes behind. */
__device__ inline void keep_best(candidate *best, int *n, int beam, float distance, int parent,
                                 int stage, int code)
{
    int i = *n < beam ? (*n)++ : beam - 1;
    for (; i > 0 && distance < best[i - 1].distance; i--) {
        best[i].distance = best[i - 1].distance;
        best[i].parent = best[i - 1].parent;
        best[i].code[stage] = best[i - 1].code[stage];
    }
    best[i].distance = distance;
    best[i].parent = parent;
    best[i].code[stage] = static_cast<unsigned short>(code);
}

/* The same by the best sums of codewords over all stages. What a candidate leaves of z is worked
 * out in `rest`. */
__device__ inline void search_beam(const vqkv__run &run, unsigned char *codes, int plane, int t,
                                   column_of z, column_of rest)
{
    candidate kept[2][VQKV__MAX_BEAM];
    int n_kept = 1, now = 0;
    for (int stage = 0; stage < run.stages; stage++, now ^= 1) {
        candidate *old = kept[now], *best = kept[now ^ 1];
        int n = 0;
        for (int i = 0; i < n_kept; i++) {
            for (int w = 0; w < run.width; w++)
                rest[w] = z[w];
            for (int k = 0; k < stage; k++)
                take_off(run, book_of(run, plane + k), old[i].code[k], rest);
            for (int j = 0; j < 1 << run.bits; j++) {
                float d = distance_to(run, book_of(run, plane + stage), j, rest);
                if (n < run.beam || d < best[n - 1].distance)
                    keep_best(best, &n, run.beam, d, i, stage, j);
            }
        }
        for (int i = 0; i < n; i++)
            for (int k = 0; k < stage; k++)
                best[i].code[k] = old[best[i].parent].code[k];
        n_kept = n;
    }
    for (int stage = 0; stage < run.stages; stage++)
        write_code(run, codes + static_cast<size_t>(plane + stage) * plane_bytes(run), t,
                   kept[now][0].code[stage]);
}

/* Codes z of one run; rest: room for as many latents. */
__device__ inline void encode_run(const vqkv__stream &s, const vqkv__run &run, unsigned char *codes,
                                  float *z, float *rest)
{
    unsigned char *planes = codes + run.codes;
    int groups = run.planes / run.stages;
    each(groups * block, [=, &s, &run](int at) {
        int g = at / block, t = at % block;
        column_of x{z + g * run.width * block + t}, y{rest + g * run.width * block + t};
        if (run.coder == VQKV__HALVES) {
            store_half(planes + 2 * at, x[0]);
        } else if (run.uniform) {
            float half = s.gain == VQKV__RANGE ? 0.0f : static_cast<float>(1 << (run.bits - 1));
            float level =
                s.gain == VQKV__SIGNMAX ? floorf(x[0] + (half + 0.5f)) : roundf(x[0]) + half;
            write_code(run, planes + static_cast<size_t>(g) * plane_bytes(run), t,
                       clamp_code(level, (1 << run.bits) - 1));
        } else if (VQKV__MAX_BEAM > 1 && run.beam > 1) {
            search_beam(run, planes, g * run.stages, t, x, y);
        } else {
            search_greedy(run, planes, g * run.stages, t, x);
        }
    });
}

/* Encoding one block, in the workspace. */
struct coding {
    view v;
    int seq, token, where, component; /* first token of the block, its place in the pool */
    float *x, *z;                     /* [MAX_IN, BLOCK], [MAX_LATENTS, BLOCK] */
    float *predicted;                 /* [width, BLOCK] */
    unsigned char *mask;              /* [MAX_OUT_LATENTS, BLOCK] */
    room r;
    int n_rebuilt; /* nodes behind us that later ones are predicted from are in their slots */
    int of;        /* the node in `predicted`; -1: none */
};

constexpr size_t encode_floats =
    (static_cast<size_t>(VQKV__MAX_IN) + static_cast<size_t>(VQKV__MAX_LATENTS)) * block +
    (VQKV__N_PREDICTIONS > 0 ? node_floats : 0) +
    static_cast<size_t>(VQKV__MAX_OUT_LATENTS) * block / 4 + rebuild_floats;

__device__ inline coding make_coding(const view &v, const seal_job &job, int component,
                                     float *floats)
{
    float *z = floats + static_cast<size_t>(VQKV__MAX_IN) * block;
    float *predicted = z + static_cast<size_t>(VQKV__MAX_LATENTS) * block;
    float *mask = predicted + (VQKV__N_PREDICTIONS > 0 ? node_floats : 0);
    float *rest = mask + static_cast<size_t>(VQKV__MAX_OUT_LATENTS) * block / 4;
    return coding{v,
                  job.seq,
                  n_sink + job.index * block,
                  job.block,
                  component,
                  floats,
                  z,
                  predicted,
                  reinterpret_cast<unsigned char *>(mask),
                  make_room(rest),
                  0,
                  -1};
}

/* Brings the prediction of a stream's node into c->predicted. Nodes are rebuilt in their order,
 * each once a block, when the first stream comes that is coded against a later one. */
__device__ inline void bring_prediction(coding *c, int stream, int node)
{
    if (c->of == node)
        return;
    for (; vqkv__nodes[c->n_rebuilt].last_stream < stream; c->n_rebuilt++) {
        int i = c->n_rebuilt;
        if (vqkv__nodes[i].source && vqkv__node_component[i] == c->component)
            rebuild_node(c->v, c->where, i, 0, n_kv_heads, &c->r);
    }
    predict(c->r, vqkv__nodes[node].prediction, 0, n_kv_heads, c->predicted);
    __syncthreads();
    c->of = node;
}

/* x [HEAD_DIM, BLOCK]: what is left of one member for a stream to code. */
__device__ inline void gather_member(coding *c, int stream, const vqkv__member &m, float *x)
{
    const vqkv__stream &s = vqkv__streams[stream];
    int n_uses, node = vqkv__node_at[m.part * n_layers + m.layer];
    const vqkv__use *use = uses_of(m.part, m.layer, m.head, &n_uses);
    each(head_dim * block, [=, &m](int i) {
        x[i] = exact_at(exact_of(c->v, c->seq, m.layer, m.part, m.head, c->token + i % block),
                        i / block);
    });
    __syncthreads();
    if (m.part == key_part)
        turn_tile(s.frame, c->token, -1.0f, x, x);
    if (vqkv__nodes[node].prediction >= 0) {
        bring_prediction(c, stream, node);
        const float *p = c->predicted + static_cast<size_t>(m.head) * head_floats;
        each(head_dim * block, [=](int i) { x[i] -= p[i]; });
        __syncthreads();
    }
    for (int u = 0; u < n_uses && use[u].stream < stream; u++)
        add_use(c->v, c->where, use[u], -1.0f, &c->r, x);
}

__device__ inline void encode_stream(coding *c, int stream)
{
    const vqkv__stream &s = vqkv__streams[stream];
    unsigned char *codes = codes_of(c->v, stream, c->where);
    float *x = c->x, *z = s.transform == VQKV__BASIS ? c->z : c->x;
    unsigned char *mask = s.outliers > 0 ? c->mask : nullptr;
    each(s.bytes, [=](int i) { codes[i] = 0; });
    for (int i = 0; i < s.n_members; i++)
        gather_member(c, stream, vqkv__members[s.first_member + i],
                      x + static_cast<size_t>(i) * head_floats);
    if (s.mean >= 0) {
        each(s.n_in * block, [=, &s](int i) { x[i] -= table_at(s.mean, i / block); });
        __syncthreads();
    }
    if (s.transform == VQKV__BASIS) {
        clear(s.n_latents * block, z);
        for (int i = 0; i < s.n_members; i++)
            product(basis(s, s.enc, i), s.n_latents, 0, head_dim, s.n_latents, 1.0f,
                    x + static_cast<size_t>(i) * head_floats, z);
    } else if (s.transform == VQKV__HADAMARD) {
        hadamard_tile(z, s.n_in);
    }
    c->r.have = -1; /* its latents make room for ranks and rests */
    if (s.outliers > 0)
        encode_outliers(s, codes, z, mask, c->r.z);
    if (s.gain != VQKV__NO_GAIN)
        encode_gains(s, codes, z, mask);
    for (int i = s.first_run; i < s.first_run + s.n_runs; i++)
        encode_run(s, vqkv__runs[i], codes, z + vqkv__runs[i].first * block,
                   c->r.z + vqkv__runs[i].first * block);
    __syncthreads();
}

/* Jobs are written on the device, where nobody checks them: those out of range do nothing. */
__device__ inline bool is_job(const view &v, const seal_job &job)
{
    return job.block >= 0 && job.block < v.n_blocks && is_seq(v, job.seq) && job.index >= 0 &&
           job.index < v.seq_blocks;
}

struct seal_jobs {
    view v;
    const seal_job *jobs;
    int n;
    heads range;
    float *workspace;
};

__global__ void __launch_bounds__(threads, workers_wanted) seal_kernel(seal_jobs a)
{
    float *floats = a.workspace + static_cast<size_t>(blockIdx.x) * encode_floats;
    for (int i = static_cast<int>(blockIdx.x); i < a.n * VQKV__N_COMPONENTS;
         i += static_cast<int>(gridDim.x)) {
        seal_job job = a.jobs[i / VQKV__N_COMPONENTS];
        const vqkv__component &part = vqkv__components[i % VQKV__N_COMPONENTS];
        if (!is_job(a.v, job) || part.last_head < a.range.first ||
            part.first_head >= a.range.first + a.range.count)
            continue;
        coding c = make_coding(a.v, job, i % VQKV__N_COMPONENTS, floats);
        for (int s = 0; s < part.n; s++)
            encode_stream(&c, vqkv__component_streams[part.first + s]);
    }
}

/* Enters sealed blocks in the tables. */
__global__ void __launch_bounds__(threads) commit_kernel(view v, const seal_job *jobs, int n)
{
    int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
    if (i >= n || !is_job(v, jobs[i]))
        return;
    seal_job job = jobs[i];
    v.tables[static_cast<size_t>(job.seq) * static_cast<size_t>(v.seq_blocks) +
             static_cast<size_t>(job.index)] = entry{job.block, n_sink + job.index * block};
    atomicMax(v.state + static_cast<size_t>(job.seq) * (2 + n_layers), job.index + 1);
}

/* ---- exact tokens ---- */

struct append_job {
    view v;
    int layer, n, unrotated;
    const int *seqs, *counts;
    heads range;
    type t;
    const void *k, *val;
};

/* Tokens of one sequence; what device memory says is kept to what the host has checked. */
__device__ inline int count_of(const append_job &a, int slot)
{
    int n = a.counts != nullptr ? a.counts[slot] : a.n;
    return n < 0 ? 0 : n < a.n ? n : a.n;
}

/* One token and head a thread block: x = (token, head), y = sequence. */
__global__ void __launch_bounds__(threads, workers_wanted) append_kernel(append_job a)
{
    int i = static_cast<int>(blockIdx.x) / a.range.count, slot = static_cast<int>(blockIdx.y);
    int head = static_cast<int>(blockIdx.x) % a.range.count;
    int seq = a.seqs != nullptr ? a.seqs[slot] : slot;
    if (!is_seq(a.v, seq) || i >= count_of(a, slot))
        return;
    int token = *tokens_of(a.v, seq, a.layer) + i;
    size_t at = ((static_cast<size_t>(slot) * static_cast<size_t>(a.n) + static_cast<size_t>(i)) *
                     static_cast<size_t>(a.range.count) +
                 static_cast<size_t>(head)) *
                head_dim;
    auto *k = reinterpret_cast<uint16_t *>(
        exact_of(a.v, seq, a.layer, key_part, a.range.first + head, token));
    auto *val = reinterpret_cast<uint16_t *>(
        exact_of(a.v, seq, a.layer, value_part, a.range.first + head, token));
    each(head_dim,
         [=](int d) { val[d] = to_half(load_as(a.val, a.t, at + static_cast<size_t>(d))); });
    int n_turned = a.unrotated ? VQKV_N_ROT / 2 : 0;
    each(n_turned, [=](int p) {
        float c, s;
        angle(token, p, &c, &s);
        c *= VQKV__ROPE_SCALE;
        s *= VQKV__ROPE_SCALE;
        float low = load_as(a.k, a.t, at + static_cast<size_t>(pair_first(p)));
        float high = load_as(a.k, a.t, at + static_cast<size_t>(pair_second(p)));
        k[pair_first(p)] = to_half(low * c - high * s);
        k[pair_second(p)] = to_half(low * s + high * c);
    });
    each(head_dim - 2 * n_turned, [=](int d) {
        d += 2 * n_turned;
        k[d] = to_half(load_as(a.k, a.t, at + static_cast<size_t>(d)));
    });
}

/* Counts the tokens once all are stored. */
__global__ void __launch_bounds__(threads) count_kernel(append_job a, int n_seqs)
{
    int slot = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
    if (slot >= n_seqs)
        return;
    int seq = a.seqs != nullptr ? a.seqs[slot] : slot;
    if (!is_seq(a.v, seq))
        return;
    int32_t *n = tokens_of(a.v, seq, a.layer);
    *n += count_of(a, slot);
    a.v.state[static_cast<size_t>(seq) * (2 + n_layers) + 1] = *n;
}
