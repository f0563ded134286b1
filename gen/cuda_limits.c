/* What the CUDA kernels do not do, said by name before anything is printed. */
#include "gen/cuda.h"

#include <stddef.h>

/* As in runtime/cuda/: threads of a block; sums that a thread has room for; shared memory that
 * every GPU from sm_80 on lends a block. gpu_pass.cuh holds the header to the same figures. */
enum { THREADS = 128, MAX_SLOTS = 32, SHARED_LIMIT = 96 * 1024 };

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of n floats at a multiple of 16. */
static size_t aligned_floats(size_t n)
{
    return (n * sizeof(float) + 15) / 16 * 16;
}

/* sizeof(shared<1>) of gpu_pass.cuh. */
size_t gen_cuda_shared_bytes(const vqkvc_plan *plan, const gen_lowered *low,
                             const gen_cuda_layout *layout)
{
    size_t dim = (size_t)plan->geometry.head_dim, block = (size_t)plan->block;
    size_t columns = block / 2, sums = (size_t)low->max_sum_latents;
    size_t tile = layout->blockwise || low->rebuilds || THREADS < columns ? 1 : THREADS / columns;
    size_t parts = THREADS > tile * columns ? THREADS / (tile * columns) : 1;
    size_t books = (size_t)layout->v_stages * 16 * sums;
    books = books * sizeof(float) <= SHARED_LIMIT / 3 ? books : 1;
    size_t bytes = aligned_floats(larger((size_t)layout->k_planes * 16, sums));
    bytes += aligned_floats((size_t)layout->k_latents) + 2 * aligned_floats(dim);
    bytes += aligned_floats(parts * tile * block);
    bytes += aligned_floats(tile * (size_t)layout->v_gains * block);
    bytes += (books + 5 * sums + 6) * sizeof(float); /* books, latents, state of the row */
    return (bytes + 15) / 16 * 16;
}

vqkvc_code gen_check_cuda(const vqkvc_plan *plan, const gen_lowered *low,
                          const gen_cuda_layout *layout, vqkvc_err *err)
{
    size_t bytes = gen_cuda_shared_bytes(plan, low, layout);
    if (plan->max_error > 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "CUDA: streams %s, ...: no vector may be off by more than %g, and GPU "
                          "kernels keep no exact list; build without --max-error, or take "
                          "--target c",
                          plan->streams[0].name, (double)plan->max_error);
    if (low->max_sum_latents > MAX_SLOTS * THREADS)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "CUDA: stream %s: values of one head are summed in %d latents, %d at "
                          "most; share fewer layers and heads, or take --target c",
                          layout->widest_v, low->max_sum_latents, MAX_SLOTS * THREADS);
    if (bytes > SHARED_LIMIT)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "CUDA: streams %s and %s: tables for one query take %zu bytes of shared "
                          "memory, %d at most; share fewer layers and heads, take fewer codes, or "
                          "--target c",
                          layout->widest_k, layout->widest_v, bytes, SHARED_LIMIT);
    return VQKVC_OK;
}
