/* attend_f16.h - the yardstick of speed: attention of one token over an fp16 cache, as an engine
 * would write it. K and V lie contiguously for each KV head; tokens are taken in tiles that stay in
 * the first-level cache, all query heads of a group meet a tile in one pass, with an online
 * softmax. AVX-512 or AVX2 with F16C where the processor has them, else portable C. */
#ifndef VQKVC_MODEL_ATTEND_F16_H
#define VQKVC_MODEL_ATTEND_F16_H

#include <stddef.h>
#include <stdint.h>

#include "base/isa.h"

/* Floats of scratch for a group of query heads. */
size_t vqkvc_attend_f16_scratch(int group, int head_dim);

/* k, v: [n_tokens, head_dim] binary16 of one KV head, n_tokens > 0; q, out: [group, head_dim] fp32;
 * scores are multiplied by scale. isa: the best that may be used. scratch: 64-byte aligned. Differs
 * from attention in double on the same values by fp32 rounding alone. */
void vqkvc_attend_f16(const uint16_t *k, const uint16_t *v, int n_tokens, int group, int head_dim,
                      const float *q, float *out, float scale, vqkvc_isa isa, float *scratch);

/* "avx512", "avx2" or "portable": the best that vqkvc_attend_f16() may use here. */
const char *vqkvc_attend_f16_isa(void);

#endif
