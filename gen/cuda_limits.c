/* What the CUDA kernels do not do, said by name before anything is printed. */
#include "gen/cuda.h"

#include <stddef.h>
#include <stdint.h>

/* As in runtime/cuda/: threads of a block; sums that a thread has room for. Its headers are held to
 * the same figures. */
enum { THREADS = 128, MAX_SLOTS = 32, WARP_TOKENS = THREADS / 32 * 64 };

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of n floats at a multiple of 16. */
static size_t aligned_floats(size_t n)
{
    return (n * sizeof(float) + 15) / 16 * 16;
}

/* sizeof(slot_list) of gpu_slots.cuh. */
static size_t slot_list_bytes(int sixteens)
{
    return ((size_t)sixteens * (16 * (16 + 2 * 4 + 2) + 8) + sizeof(int) + 15) / 16 * 16;
}

/* sizeof(shared<4>) of gpu_tensor.cuh. */
static size_t tensor_bytes(const vqkvc_plan *plan, const gen_lowered *low,
                           const gen_cuda_layout *layout)
{
    enum { ROWS = 4 };
    size_t tile = (size_t)layout->tensor, v_gains = (size_t)layout->v_gains;
    size_t blocks = layout->blockwise ? tile / (size_t)plan->block : 1;
    size_t sums = (size_t)layout->v_sixteens * 16 + (size_t)low->max_sum_latents;
    size_t gains = v_gains * tile,
           tile_floats = ROWS * tile + gains + WARP_TOKENS + gains * ROWS / 2;
    size_t scratch = larger(larger((size_t)layout->k_latents, sums) * ROWS, tile_floats);
    size_t bytes = (2 * (size_t)plan->geometry.head_dim * ROWS + scratch) * sizeof(float);
    bytes += blocks * (size_t)layout->k_sixteens * ROWS * 8 * sizeof(uint32_t);
    bytes += slot_list_bytes(layout->k_sixteens) + slot_list_bytes(layout->v_sixteens);
    bytes += (blocks * (size_t)layout->k_gains + v_gains + blocks + 5) * ROWS * sizeof(float);
    return (bytes + 15) / 16 * 16;
}

/* sizeof(shared<1>) of gpu_lookup.cuh. */
size_t gen_cuda_shared_bytes(const vqkvc_plan *plan, const gen_lowered *low,
                             const gen_cuda_layout *layout)
{
    if (layout->tensor > 0)
        return tensor_bytes(plan, low, layout);
    size_t dim = (size_t)plan->geometry.head_dim, block = (size_t)plan->block;
    size_t columns = block / 2, sums = (size_t)low->max_sum_latents;
    size_t tile = layout->blockwise || low->rebuilds || THREADS < columns ? 1 : THREADS / columns;
    size_t parts = THREADS > tile * columns ? THREADS / (tile * columns) : 1;
    size_t books = (size_t)layout->v_stages * 16 * sums;
    books = books * sizeof(float) <= GEN_CUDA_SHARED / 3 ? books : 1;
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
    if (bytes > GEN_CUDA_SHARED)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "CUDA: streams %s and %s: tables for one query take %zu bytes of shared "
                          "memory, %zu at most; share fewer layers and heads, take fewer codes, or "
                          "--target c",
                          layout->widest_k, layout->widest_v, bytes, GEN_CUDA_SHARED);
    return VQKVC_OK;
}
