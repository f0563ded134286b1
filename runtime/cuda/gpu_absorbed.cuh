/* Coded blocks whose vectors are never rebuilt: queries are mapped into latents, scores are looked
 * up in shared memory, weights are summed in latents and mapped back once. */

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

/* Turns the queries into the frame of a block. All threads. */
template <int rows> __device__ void turn_queries(shared<rows> &sh, int position)
{
    each(VQKV_N_ROT / 2 * rows, [&](int at) {
        int i = at / rows, r = at % rows;
        const float *q = sh.q + r * head_dim;
        float c, s, low = q[pair_first(i)], high = q[pair_second(i)];
        angle(position, i, &c, &s);
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

/* y = dec' q for one member of a stream, from latent `first` of the head's on. All threads. */
template <int rows>
__device__ void map_queries(shared<rows> &sh, const vqkv__stream &s, int member, int first)
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
                sh.y[r * stride + first + i] = scale * y[r];
        });
        __syncthreads();
        return;
    }
    each(s.n_latents * rows, [&](int at) {
        int r = at / s.n_latents, i = at % s.n_latents, d = i - row;
        sh.y[r * stride + first + i] = d >= 0 && d < head_dim ? sh.turned[r * head_dim + d] : 0.0f;
    });
    __syncthreads();
    if (s.transform == VQKV__HADAMARD)
        hadamard_rows<rows>(sh.y + first, stride, s.n_in);
}

/* Queries in latents, score tables of nibbles, and q . mean, for the queries as turned. All
 * threads. */
template <int rows>
__device__ void fill_tables(const attend_job &job, const pass &a, shared<rows> &sh)
{
    int n_uses, first = 0, planes = 0, lane = static_cast<int>(threadIdx.x) % warp;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        map_queries(sh, s, use[u].member, first);
        for (int i = s.first_run; i < s.first_run + s.n_runs; i++) {
            const vqkv__run &run = vqkv__runs[i];
            if (run.coder != VQKV__NIBBLES)
                continue;
            each(run.planes * 16 * rows, [&](int at) {
                int r = at % rows, code = at / rows % 16, p = at / rows / 16;
                const float *y = sh.y + r * VQKV__CUDA_K_LATENTS + first + run.first +
                                 p / run.stages * run.width;
                int book = book_of(run, p);
                float sum = 0.0f;
                for (int w = 0; w < run.width; w++)
                    sum = fmaf(y[w], table_at(book, w * 16 + code), sum);
                sh.lut[((planes + p) * 16 + code) * rows + r] = sum;
            });
            planes += run.planes;
        }
        first += s.n_latents;
    }
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
            sh.bias[r] = bias;
    }
    __syncthreads();
}

/* What the planes share, share + parts, ... of one run add to the scores of two tokens. */
template <int rows>
__device__ inline void score_run(const shared<rows> &sh, const vqkv__run &run,
                                 const unsigned char *codes, int column, int share, int first,
                                 int planes, float (&low)[rows], float (&high)[rows])
{
    if (run.coder == VQKV__NIBBLES) {
        const unsigned char *p = codes + column;
#pragma unroll 8
        for (int i = share; i < run.planes; i += parts) {
            int byte = p[i * columns];
            float x[rows], y[rows];
            load_rows<rows>(sh.lut + ((planes + i) * 16 + (byte & 15)) * rows, x);
            load_rows<rows>(sh.lut + ((planes + i) * 16 + (byte >> 4)) * rows, y);
#pragma unroll
            for (int r = 0; r < rows; r++) {
                low[r] += x[r];
                high[r] += y[r];
            }
        }
        return;
    }
    for (int i = share; i < run.planes; i += parts)
        for (int w = 0; w < run.width; w++) {
            float x = value_at(run, codes, i, w, column);
            float y = value_at(run, codes, i, w, column + columns);
            const float *q = sh.y + first + run.first + i / run.stages * run.width + w;
#pragma unroll
            for (int r = 0; r < rows; r++) {
                low[r] = fmaf(q[r * VQKV__CUDA_K_LATENTS], x, low[r]);
                high[r] = fmaf(q[r * VQKV__CUDA_K_LATENTS], y, high[r]);
            }
        }
}

/* Scores of two tokens of one block by one share of its planes. */
template <int rows>
__device__ inline void score_column(const attend_job &job, const pass &a, shared<rows> &sh,
                                    int where, int column, int share, float *dst)
{
    float low[rows], high[rows];
    int n_uses, first = 0, planes = 0;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
#pragma unroll
    for (int r = 0; r < rows; r++)
        low[r] = high[r] = share == 0 ? sh.bias[r] : 0.0f;
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        const unsigned char *codes = codes_of(job.v, use[u].stream, where);
        for (int i = s.first_run; i < s.first_run + s.n_runs;) {
            int g = vqkv__runs[i].gain;
            float x[rows], y[rows];
#pragma unroll
            for (int r = 0; r < rows; r++)
                x[r] = y[r] = 0.0f;
            for (; i < s.first_run + s.n_runs && vqkv__runs[i].gain == g; i++) {
                const vqkv__run &run = vqkv__runs[i];
                score_run<rows>(sh, run, codes + run.codes, column, share, first, planes, x, y);
                planes += run.coder == VQKV__NIBBLES ? run.planes : 0;
            }
            float gain_low = gain_at(s, codes, g, column);
            float gain_high = gain_at(s, codes, g, column + columns);
#pragma unroll
            for (int r = 0; r < rows; r++) {
                low[r] = fmaf(gain_low, x[r], low[r]);
                high[r] = fmaf(gain_high, y[r], high[r]);
            }
        }
        first += s.n_latents;
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        dst[r * tile_tokens + column] = low[r];
        dst[r * tile_tokens + column + columns] = high[r];
    }
}

/* Scores of blocks j .. j + n - 1. */
template <int rows>
__device__ void score_absorbed(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    each(n * columns * parts, [&](int i) {
        int column = i % columns, b = i / columns % n, share = i / columns / n;
        score_column<rows>(job, a, sh, entry_of(job.v, a.seq, j + b).block, column, share,
                           sh.p + share * rows * tile_tokens + b * block);
    });
}

/* ---- values ---- */

/* Where the latents of the head's values are, and their codebooks. All threads. */
template <int rows>
__device__ void find_latents(const attend_job &job, const pass &a, shared<rows> &sh)
{
    int n_uses, first = 0, gains = 0;
    const vqkv__use *use = uses_of(value_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        int stream = use[u].stream;
        const vqkv__stream &s = vqkv__streams[stream];
        each(s.n_latents, [&](int i) {
            int at = s.first_run;
            while (vqkv__runs[at].first +
                       vqkv__runs[at].planes / vqkv__runs[at].stages * vqkv__runs[at].width <=
                   i)
                at++;
            const vqkv__run &run = vqkv__runs[at];
            int c = i - run.first, plane = c / run.width * run.stages, w = c % run.width;
            sh.latents[first + i] =
                latent{stream, at, plane, w, s.gain == VQKV__NO_GAIN ? -1 : gains + run.gain};
            for (int k = 0; k < run.stages * 16 && shares_books && run.coder == VQKV__NIBBLES; k++)
                sh.book[k * VQKV__MAX_SUM_LATENTS + first + i] =
                    table_at(book_of(run, plane + k / 16), w * 16 + k % 16);
        });
        first += s.n_latents;
        gains += s.n_gains;
    }
    __syncthreads();
}

/* Gains of the values of blocks j .. j + n - 1. */
template <int rows>
__device__ void load_gains(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    int n_uses, gains = 0;
    const vqkv__use *use = uses_of(value_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        each(n * s.n_gains * block, [&](int i) {
            int b = i / (s.n_gains * block), g = i / block % s.n_gains, t = i % block;
            const unsigned char *codes =
                codes_of(job.v, use[u].stream, entry_of(job.v, a.seq, j + b).block);
            sh.gain[(b * VQKV__CUDA_V_GAINS + gains + g) * block + t] = gain_at(s, codes, g, t);
        });
        gains += s.n_gains;
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

/* acc += weight * gain * codeword of one latent, over the tokens of a block. p: weights [rows,
 * tile]; gain [BLOCK] or null. */
template <int rows>
__device__ inline void sum_nibbles(const shared<rows> &sh, const vqkv__run &run, const latent &x,
                                   int i, const unsigned char *codes, const float *p,
                                   const float *gain, float (&acc)[rows])
{
    const unsigned char *plane = codes + x.plane * columns;
    for (int t = 0; t < columns; t += 4) {
        float v[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (int stage = 0; stage < run.stages; stage++) {
            uint32_t word = word_at(plane + stage * columns + t);
            int book = shares_books ? 0 : book_of(run, x.plane + stage) + x.w * 16;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                int code = static_cast<int>(word >> (8 * (k % 4) + 4 * (k / 4)) & 15u);
                v[k] += shares_books ? sh.book[(stage * 16 + code) * VQKV__MAX_SUM_LATENTS + i]
                                     : table_at(book, code);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float g[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (gain != nullptr)
                load_rows<4>(gain + half * columns + t, g);
#pragma unroll
            for (int r = 0; r < rows; r++) {
                float weight[4];
                load_rows<4>(p + r * tile_tokens + half * columns + t, weight);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    acc[r] = fmaf(weight[k], v[half * 4 + k] * g[k], acc[r]);
            }
        }
    }
}

template <int rows>
__device__ inline void sum_latent(const attend_job &job, const shared<rows> &sh, int where, int b,
                                  int i, float (&acc)[rows])
{
    latent x = sh.latents[i];
    const vqkv__run &run = vqkv__runs[x.run];
    const unsigned char *codes = codes_of(job.v, x.stream, where) + run.codes;
    const float *p = sh.p + b * block;
    const float *gain = x.gain < 0 ? nullptr : sh.gain + (b * VQKV__CUDA_V_GAINS + x.gain) * block;
    if (run.coder == VQKV__NIBBLES) {
        sum_nibbles<rows>(sh, run, x, i, codes, p, gain, acc);
        return;
    }
    for (int t = 0; t < block; t++) {
        float v = 0.0f;
        for (int stage = 0; stage < run.stages; stage++)
            v += value_at(run, codes, x.plane + stage, x.w, t);
        v *= gain != nullptr ? gain[t] : 1.0f;
#pragma unroll
        for (int r = 0; r < rows; r++)
            acc[r] = fmaf(p[r * tile_tokens + t], v, acc[r]);
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

/* Adds weight * value of blocks j .. j + n - 1, in latents. */
template <int rows>
__device__ void sum_absorbed(const attend_job &job, const pass &a, const shared<rows> &sh,
                             sums<rows> &sum, int j, int n)
{
    int total = latents_of(job.layer, a.head);
    for (int b = 0; b < n; b++) {
        int where = entry_of(job.v, a.seq, j + b).block;
#pragma unroll
        for (int slot = 0; slot < sum_slots; slot++) {
            int i = static_cast<int>(threadIdx.x) + slot * threads;
            if (i < total)
                sum_latent<rows>(job, sh, where, b, i, sum.coded[slot]);
        }
    }
}

/* Takes the sums back to channels: o += dec * sums + mean. All threads. */
template <int rows>
__device__ void collect(const attend_job &job, const pass &a, shared<rows> &sh, sums<rows> &sum)
{
    constexpr int stride = VQKV__MAX_SUM_LATENTS;
    int n_uses, first = 0;
    const vqkv__use *use = uses_of(value_part, job.layer, a.head, &n_uses);
#pragma unroll
    for (int slot = 0; slot < sum_slots; slot++)
#pragma unroll
        for (int r = 0; r < rows; r++) {
            int i = static_cast<int>(threadIdx.x) + slot * threads;
            if (i < stride)
                sh.lut[r * stride + i] = sum.coded[slot][r];
        }
    __syncthreads();
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        int row = use[u].member * head_dim;
        matrix table = s.transform == VQKV__BASIS ? basis(s, s.dec, use[u].member) : matrix{};
        if (s.transform == VQKV__HADAMARD) {
            hadamard_rows<rows>(sh.lut + first, stride, s.n_in);
        } else if (table.scale != nullptr) {
            each(s.n_latents * rows, [&](int at) {
                int i = at % s.n_latents;
                sh.lut[at / s.n_latents * stride + first + i] *= scale_at(table, i);
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
                const float *y = sh.lut + r * stride + first;
                float x = s.transform == VQKV__BASIS ? 0.0f : y[row + d];
                for (int i = 0; i < s.n_latents && s.transform == VQKV__BASIS; i++)
                    x = fmaf(raw_at(table, d * s.n_latents + i), y[i], x);
                sum.o[slot][r] += fmaf(mean, sh.coded[r], x);
            }
        }
        first += s.n_latents;
    }
    __syncthreads();
}
