/* cuda.h - what a plan's kernels for GPUs need to know beyond what the C header has. */
#ifndef GEN_CUDA_H
#define GEN_CUDA_H

#include "gen/lower.h"

/* As in runtime/cuda/gpu_pass.cuh: shared memory that every GPU from sm_80 on lends a block. */
#define GEN_CUDA_SHARED ((size_t)(96 * 1024))

/* Streams that can be encoded without regard to the others. */
typedef struct gen_component {
    int first, n, first_head, last_head;
} gen_component;

typedef struct gen_cuda_layout {
    int n_components;
    gen_component *components;
    int *streams;        /* [n_streams] by component, in coding order */
    int *node_component; /* [2 * n_layers] */
    int *walk_first;     /* [2 * n_layers + 1]: part * n_layers + layer */
    int *walk, n_walk;   /* nodes that the prediction of each part and layer rests on, in order */
    int k_latents, k_planes, k_gains, v_latents, v_gains,
        v_stages;  /* the most that an absorbed head has */
    int blockwise; /* some absorbed keys are in frame BLOCK */
    int nibbles;   /* all absorbed codes are */
    int words;     /* planes begin at multiples of 4 bytes */
    /* Attention on tensor cores: tokens of a tile, or 0 for plain arithmetic; the most sixteens of
     * slots (runtime/cuda/gpu_slots.cuh) of an absorbed head's keys and values. */
    int tensor, k_sixteens, v_sixteens;
    /* For messages: a stream of the absorbed head with the largest score tables, and with the most
     * latents to sum; "none" where all is rebuilt. */
    const char *widest_k, *widest_v;
} gen_cuda_layout;

/* Arrays live in low's arena. */
vqkvc_code gen_lay_out_cuda(const vqkvc_plan *plan, gen_lowered *low, gen_cuda_layout *layout,
                            vqkvc_err *err);
/* Bytes of shared memory that attention takes for the fewest queries at a time: one, or four on
 * tensor cores. */
size_t gen_cuda_shared_bytes(const vqkvc_plan *plan, const gen_lowered *low,
                             const gen_cuda_layout *layout);
/* VQKVC_E_UNSUPPORTED, naming streams, for what the kernels do not do. */
vqkvc_code gen_check_cuda(const vqkvc_plan *plan, const gen_lowered *low,
                          const gen_cuda_layout *layout, vqkvc_err *err);

#endif
