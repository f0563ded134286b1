/* Between channels and latents, for coded blocks whose vectors are never rebuilt: queries are
 * mapped into latents, and sums of latents mapped back once. */

/* rows floats at p, aligned to as many. */
template <int rows> __device__ inline void load_rows(const float *p, float (&x)[rows])
{
    if constexpr (rows % 4 == 0) {
#pragma unroll
        for (int i = 0; i < rows; i += 4) {
            float4 v = *reinterpret_cast<const float4 *>(p + i);
            x[i] = v.x;
            x[i + 1] = v.y;
            x[i + 2] = v.z;
            x[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < rows; i++)
            x[i] = p[i];
    }
}

/* Four bytes of a plane. */
__device__ inline uint32_t word_at(const unsigned char *p)
{
    if (VQKV__CUDA_WORDS)
        return *reinterpret_cast<const uint32_t *>(p);
    return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
           static_cast<uint32_t>(p[3]) << 24;
}

/* Groups of latents with one gain a token; without gains all are one. */
__device__ inline int groups_of(const vqkv__stream &s)
{
    return s.gain == VQKV__NO_GAIN ? 1 : s.n_gains;
}

/* Turns the queries into the frame of a block. All threads. */
template <int rows> __device__ void turn_queries(shared<rows> &sh, int position)
{
    each(VQKV_N_ROT / 2 * rows, [&](int at) {
        int i = at / rows, r = at % rows;
        const float *q = sh.q + r * head_dim;
        float c, s, low = q[pair_first(i)], high = q[pair_second(i)];
        angle(base_of(i, position), i, &c, &s);
        sh.turned[r * head_dim + pair_first(i)] = low * c + high * s;
        sh.turned[r * head_dim + pair_second(i)] = high * c - low * s;
    });
    __syncthreads();
}

/* In-place orthonormal Walsh-Hadamard transform of x [n] of each row. All threads. */
template <int rows> __device__ void hadamard_rows(float *x, int stride, int n)
{
    float norm = 1.0f / sqrtf(static_cast<float>(n));
    for (int step = 1; step < n; step *= 2) {
        each(n / 2 * rows, [=](int at) {
            int i = at % (n / 2), low = i / step * 2 * step + i % step;
            float *a = x + at / (n / 2) * stride + low, *b = a + step;
            float p = *a, q = *b;
            *a = p + q;
            *b = p - q;
        });
        __syncthreads();
    }
    each(n * rows, [=](int at) { x[at / n * stride + at % n] *= norm; });
    __syncthreads();
}

/* y [rows, K_LATENTS] = dec' q for one member of a stream, from latent `first` of the head's on.
 * All threads. */
template <int rows>
__device__ void map_queries(const shared<rows> &sh, const vqkv__stream &s, int member, int first,
                            float *to)
{
    constexpr int stride = VQKV__CUDA_K_LATENTS;
    int row = member * head_dim;
    if (s.transform == VQKV__BASIS) {
        matrix table = basis(s, s.dec, member);
        each(s.n_latents, [&](int i) {
            float y[rows], scale = scale_at(table, i);
#pragma unroll
            for (int r = 0; r < rows; r++)
                y[r] = 0.0f;
#pragma unroll 4 /* more, and registers spill */
            for (int d = 0; d < head_dim; d++) {
                float b = raw_at(table, d * s.n_latents + i);
#pragma unroll
                for (int r = 0; r < rows; r++)
                    y[r] = fmaf(sh.turned[r * head_dim + d], b, y[r]);
            }
#pragma unroll
            for (int r = 0; r < rows; r++)
                to[r * stride + first + i] = scale * y[r];
        });
        __syncthreads();
        return;
    }
    each(s.n_latents * rows, [&](int at) {
        int r = at / s.n_latents, i = at % s.n_latents, d = i - row;
        to[r * stride + first + i] = d >= 0 && d < head_dim ? sh.turned[r * head_dim + d] : 0.0f;
    });
    __syncthreads();
    if (s.transform == VQKV__HADAMARD)
        hadamard_rows<rows>(to + first, stride, s.n_in);
}

/* q . mean of a head's keys, for the queries as turned: [rows]. */
template <int rows>
__device__ void dot_means(const attend_job &job, const pass &a, const shared<rows> &sh, float *to)
{
    int n_uses, lane = static_cast<int>(threadIdx.x) % warp;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
    for (int r = static_cast<int>(threadIdx.x) / warp; r < rows; r += warps) {
        float bias = 0.0f;
        for (int u = 0; u < n_uses; u++) {
            const vqkv__stream &s = vqkv__streams[use[u].stream];
            for (int d = lane; d < head_dim && s.mean >= 0; d += warp)
                bias = fmaf(sh.turned[r * head_dim + d],
                            table_at(s.mean, use[u].member * head_dim + d), bias);
        }
        bias = sum_of(bias);
        if (lane == 0)
            to[r] = bias;
    }
}

/* Latents of all V streams of a head. */
__device__ inline int latents_of(int layer, int head)
{
    int n_uses, n = 0;
    const vqkv__use *use = uses_of(value_part, layer, head, &n_uses);
    for (int u = 0; u < n_uses; u++)
        n += vqkv__streams[use[u].stream].n_latents;
    return n;
}

/* Takes sums in latents, y [rows, MAX_SUM_LATENTS], back to channels: o += dec * y + mean. All
 * threads. */
template <int rows>
__device__ void unmap_sums(const attend_job &job, const pass &a, const shared<rows> &sh, float *y,
                           sums<rows> &sum)
{
    constexpr int stride = VQKV__MAX_SUM_LATENTS;
    int n_uses, first = 0;
    const vqkv__use *use = uses_of(value_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        int row = use[u].member * head_dim;
        matrix table = s.transform == VQKV__BASIS ? basis(s, s.dec, use[u].member) : matrix{};
        if (s.transform == VQKV__HADAMARD) {
            hadamard_rows<rows>(y + first, stride, s.n_in);
        } else if (table.scale != nullptr) {
            each(s.n_latents * rows, [&](int at) {
                int i = at % s.n_latents;
                y[at / s.n_latents * stride + first + i] *= scale_at(table, i);
            });
            __syncthreads();
        }
#pragma unroll
        for (int slot = 0; slot < out_slots; slot++) {
            int d = static_cast<int>(threadIdx.x) + slot * threads;
            if (d >= head_dim)
                continue;
            float mean = s.mean >= 0 ? table_at(s.mean, row + d) : 0.0f;
#pragma unroll
            for (int r = 0; r < rows; r++) {
                const float *z = y + r * stride + first;
                float x = s.transform == VQKV__BASIS ? 0.0f : z[row + d];
                for (int i = 0; i < s.n_latents && s.transform == VQKV__BASIS; i++)
                    x = fmaf(raw_at(table, d * s.n_latents + i), z[i], x);
                sum.o[slot][r] += fmaf(mean, sh.coded[r], x);
            }
        }
        first += s.n_latents;
    }
    __syncthreads();
}
