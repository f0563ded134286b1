/* attend_blocks.h - yardsticks of speed: attention of one token over a cache in the block formats
 * that engines keep caches in today, q8_0 and q4_0 of ggml (blocks of 32 channels with a binary16
 * scale), written with the same care as attend_f16.h. Queries are rounded to 8 bits and meet keys
 * in integers, as engines do it; values are summed in fp32. AVX-512 with VNNI or AVX2 where the
 * processor has them, else portable C. */
#ifndef VQKVC_EVAL_ATTEND_BLOCKS_H
#define VQKVC_EVAL_ATTEND_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "eval/cache_header.h"

typedef enum vqkvc_blocks { VQKVC_BLOCKS_Q8_0, VQKVC_BLOCKS_Q4_0 } vqkvc_blocks;

enum { VQKVC_BLOCK_CHANNELS = 32 };

/* Bytes of a vector; head_dim must be a multiple of VQKVC_BLOCK_CHANNELS. */
size_t vqkvc_blocks_row(vqkvc_blocks format, int head_dim);
/* x [head_dim] to row, as ggml-quants.c rounds. */
void vqkvc_blocks_pack(vqkvc_blocks format, const float *x, int head_dim, uint8_t *row);
/* row to x [head_dim]. */
void vqkvc_blocks_unpack(vqkvc_blocks format, const uint8_t *row, int head_dim, float *x);

/* Floats of scratch for a group of query heads. */
size_t vqkvc_attend_blocks_scratch(int group, int head_dim);

/* k, v: [n_tokens] rows of one KV head, n_tokens > 0; q, out: [group, head_dim] fp32; scores are
 * multiplied by scale. isa: the best that may be used. scratch: 64-byte aligned. Differs from
 * attention in double on the same values by fp32 rounding and by the queries' 8 bits: each is off
 * by 1/254 of its largest channel at most. */
void vqkvc_attend_blocks(vqkvc_blocks format, const uint8_t *k, const uint8_t *v, int n_tokens,
                         int group, int head_dim, const float *q, float *out, float scale,
                         vqkvc_isa isa, float *scratch);

#endif
