/* Landmarks of sealed blocks, byte for byte where the C header has them (its landmarks.h): of every
 * chunk of tokens the mean of the exact keys and the least cosine of a key to it. They are written
 * so that a cache may go on in the C header; attention here reads all tokens. */

/* cos [0, 255] of a key, binary16 [HEAD_DIM], and the mean; 128 where one is zero. */
__device__ inline int likeness(const unsigned char *key, const float *mean)
{
    float xx = 0.0f, yy = 0.0f, xy = 0.0f;
    for (int d = 0; d < head_dim; d++) {
        float x = exact_at(key, d), y = mean[d];
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    xy = xx > 0.0f && yy > 0.0f ? xy / (sqrtf(xx) * sqrtf(yy)) : 0.0f;
    xy = xy < -1.0f ? -1.0f : xy > 1.0f ? 1.0f : xy;
    return static_cast<int>(127.5f * (xy + 1.0f) + 0.5f);
}

/* What the threads of a block share. */
struct mark_room {
    float mean[head_dim];
    int like[chunk]; /* of each key */
};

/* One chunk, whose keys [CHUNK, HEAD_DIM] are neighbours in memory. All threads. */
__device__ inline void write_landmark(mark_room &sh, const unsigned char *keys,
                                      unsigned char *means, unsigned char *scale,
                                      unsigned char *least)
{
    each(head_dim, [&](int d) {
        float sum = 0.0f; /* parts of binary16 numbers by a power of two: the C header's bits */
        for (int t = 0; t < chunk; t++)
            sum += exact_at(keys + static_cast<size_t>(t) * head_dim * 2, d) * (1.0f / chunk);
        sh.mean[d] = sum;
    });
    __syncthreads();
    each(chunk, [&](int t) {
        sh.like[t] = likeness(keys + static_cast<size_t>(t) * head_dim * 2, sh.mean);
    });
    float top = 0.0f; /* each thread for itself: the means are at hand */
    for (int d = 0; d < head_dim; d++)
        top = fmaxf(top, fabsf(sh.mean[d]));
    float step = from_half(to_half(top / 127.0f));
    each(head_dim, [&](int d) {
        float code = step > 0.0f ? roundf(sh.mean[d] / step) : 0.0f;
        code = code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code;
        means[d] = static_cast<unsigned char>(static_cast<int>(code) + 128);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
        int worst = 255;
        for (int t = 0; t < chunk; t++)
            worst = sh.like[t] < worst ? sh.like[t] : worst;
        *least = static_cast<unsigned char>(worst);
        store_half(scale, top / 127.0f);
    }
    __syncthreads();
}

/* x = (layer, head, chunk), y = job. */
__global__ void __launch_bounds__(threads) mark_kernel(seal_jobs a)
{
    extern __shared__ unsigned char vqkv__shared[];
    mark_room &sh = *reinterpret_cast<mark_room *>(vqkv__shared);
    int c = static_cast<int>(blockIdx.x) % chunks, slot = static_cast<int>(blockIdx.x) / chunks;
    int layer = slot / a.range.count, head = a.range.first + slot % a.range.count;
    for (int i = static_cast<int>(blockIdx.y); i < a.n; i += static_cast<int>(gridDim.y)) {
        seal_job job = a.jobs[i];
        if (!is_job(a.v, job))
            continue;
        unsigned char *means = landmarks_of(a.v, layer, head, job.block);
        unsigned char *scales = means + chunks * head_dim;
        /* a block has no end of the ring inside */
        int token = n_sink + job.index * block + c * chunk;
        write_landmark(sh, exact_of(a.v, job.seq, layer, key_part, head, token),
                       means + c * head_dim, scales + 2 * c, scales + 2 * chunks + c);
    }
}
