/* Coded blocks of any coder by plain arithmetic: scores are looked up in shared memory, weights are
 * summed in latents, one latent a thread. For codecs that gpu_tensor.cuh does not take. */

constexpr int sum_slots = (VQKV__MAX_SUM_LATENTS + threads - 1) / threads; /* latents a thread */

/* Where the codes of a latent of the values are. */
struct latent {
    int stream, run, plane, w;
    int gain; /* row of the gains in shared memory */
};

constexpr size_t book_floats =
    static_cast<size_t>(VQKV__CUDA_V_STAGES) * 16 * VQKV__MAX_SUM_LATENTS;
/* Codebooks of values are read from the tables where they are large. */
constexpr bool shares_books = book_floats * sizeof(float) <= shared_limit / 3;

template <int rows> struct shared {
    /* score tables [planes, 16, rows], and in the end sums [rows, MAX_SUM_LATENTS] */
    alignas(16) float lut[larger(VQKV__CUDA_K_PLANES * 16, VQKV__MAX_SUM_LATENTS) * rows];
    alignas(16) float y[VQKV__CUDA_K_LATENTS * rows]; /* [rows, latents] queries in latents */
    alignas(16) float q[head_dim * rows];             /* [rows, HEAD_DIM] scaled */
    alignas(16) float turned[head_dim * rows];        /* the same in the frame of the block */
    alignas(16) float p[parts * tile_tokens * rows];  /* [parts, rows, tile] scores, then weights */
    alignas(16) float gain[VQKV__CUDA_V_GAINS * tile_tokens]; /* [gains, tile] */
    float book[shares_books ? book_floats : 1];               /* [stage, 16, MAX_SUM_LATENTS] */
    latent latents[VQKV__MAX_SUM_LATENTS];
    float m[rows], l[rows], coded[rows], shrink[rows], bias[rows];
    int position[rows];
};

template <int rows> struct sums {
    float coded[sum_slots][rows]; /* of latents, in the thread's own */
    float o[out_slots][rows];     /* of channels */
};

/* Rows share tables: as many as fit. */
constexpr int fitting_rows(int wanted)
{
    return wanted >= 8 && sizeof(shared<8>) <= shared_limit && sum_slots <= 4    ? 8
           : wanted >= 4 && sizeof(shared<4>) <= shared_limit && sum_slots <= 8  ? 4
           : wanted >= 2 && sizeof(shared<2>) <= shared_limit && sum_slots <= 16 ? 2
                                                                                 : 1;
}
constexpr int decode_rows = fitting_rows(group > 4 ? 8 : group > 2 ? 4 : group);
constexpr int prefill_rows = fitting_rows(8);
/* On a multiprocessor: see attend_kernel. */
constexpr int blocks_wanted(int)
{
    return VQKV__REBUILDS ? 2 : 3;
}
static_assert(sizeof(shared<1>) == VQKV__CUDA_SHARED && VQKV__CUDA_SHARED <= shared_limit &&
                  sum_slots <= 32,
              "the emitter, which refuses codecs with too large tables, counts otherwise");

template <int rows> __device__ inline void clear_coded(sums<rows> &sum)
{
#pragma unroll
    for (int i = 0; i < sum_slots; i++)
#pragma unroll
        for (int r = 0; r < rows; r++)
            sum.coded[i][r] = 0.0f;
}

template <int rows> __device__ inline void shrink_coded(const shared<rows> &sh, sums<rows> &sum)
{
#pragma unroll
    for (int i = 0; i < sum_slots; i++)
#pragma unroll
        for (int r = 0; r < rows; r++)
            sum.coded[i][r] *= sh.shrink[r];
}

/* Queries in latents, score tables of nibbles, and q . mean, for the queries as turned: of the only
 * block of a tile, or of all blocks. All threads. */
template <int rows>
__device__ void fill_tables(const attend_job &job, const pass &a, shared<rows> &sh, int)
{
    int n_uses, first = 0, planes = 0;
    const vqkv__use *use = uses_of(key_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        map_queries(sh, s, use[u].member, first, sh.y);
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
    dot_means(job, a, sh, sh.bias);
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
__device__ void find_codes(const attend_job &job, const pass &a, shared<rows> &sh)
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
            sh.latents[first + i] = latent{stream, at, plane, w, gains + run.gain};
            for (int k = 0; k < run.stages * 16 && shares_books && run.coder == VQKV__NIBBLES; k++)
                sh.book[k * VQKV__MAX_SUM_LATENTS + first + i] =
                    table_at(book_of(run, plane + k / 16), w * 16 + k % 16);
        });
        first += s.n_latents;
        gains += groups_of(s);
    }
    __syncthreads();
}

/* Gains [gains, tile] of the values of blocks j .. j + n - 1. */
template <int rows>
__device__ void load_gains(const attend_job &job, const pass &a, shared<rows> &sh, int j, int n)
{
    int n_uses, gains = 0;
    const vqkv__use *use = uses_of(value_part, job.layer, a.head, &n_uses);
    for (int u = 0; u < n_uses; u++) {
        const vqkv__stream &s = vqkv__streams[use[u].stream];
        each(n * groups_of(s) * block, [&](int i) {
            int b = i / (groups_of(s) * block), g = i / block % groups_of(s), t = i % block;
            const unsigned char *codes =
                codes_of(job.v, use[u].stream, entry_of(job.v, a.seq, j + b).block);
            sh.gain[(gains + g) * tile_tokens + b * block + t] = gain_at(s, codes, g, t);
        });
        gains += groups_of(s);
    }
}

/* acc += weight * gain * codeword of one latent, over the tokens of a block. p: weights [rows,
 * tile]; gain [BLOCK]. */
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
            float g[4];
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
    const float *gain = sh.gain + x.gain * tile_tokens + b * block;
    if (run.coder == VQKV__NIBBLES) {
        sum_nibbles<rows>(sh, run, x, i, codes, p, gain, acc);
        return;
    }
    for (int t = 0; t < block; t++) {
        float v = 0.0f;
        for (int stage = 0; stage < run.stages; stage++)
            v += value_at(run, codes, x.plane + stage, x.w, t);
        v *= gain[t];
#pragma unroll
        for (int r = 0; r < rows; r++)
            acc[r] = fmaf(p[r * tile_tokens + t], v, acc[r]);
    }
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

/* Takes the sums back to channels. All threads. */
template <int rows>
__device__ void collect(const attend_job &job, const pass &a, shared<rows> &sh, sums<rows> &sum)
{
    constexpr int stride = VQKV__MAX_SUM_LATENTS;
#pragma unroll
    for (int slot = 0; slot < sum_slots; slot++)
#pragma unroll
        for (int r = 0; r < rows; r++) {
            int i = static_cast<int>(threadIdx.x) + slot * threads;
            if (i < stride)
                sh.lut[r * stride + i] = sum.coded[slot][r];
        }
    __syncthreads();
    unmap_sums(job, a, sh, sh.lut, sum);
}
