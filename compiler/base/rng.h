/* rng.h - seeded random numbers: xoshiro256** seeded through splitmix64 (Blackman and Vigna).
 *
 * Every consumer makes its own generator from (seed, stream), so that results do not depend on the
 * order in which threads run. */
#ifndef VQKVC_BASE_RNG_H
#define VQKVC_BASE_RNG_H

#include <stdint.h>

typedef struct vqkvc_rng {
    uint64_t s[4];
} vqkvc_rng;

vqkvc_rng vqkvc_rng_make(uint64_t seed, uint64_t stream);
uint64_t vqkvc_rng_u64(vqkvc_rng *rng);
/* Uniform in [0, n) without bias; n > 0. */
uint64_t vqkvc_rng_below(vqkvc_rng *rng, uint64_t n);
/* Uniform in [0, 1), 53 bits. */
double vqkvc_rng_uniform(vqkvc_rng *rng);
/* Standard normal (Box-Muller, one of the two values is dropped). */
double vqkvc_rng_normal(vqkvc_rng *rng);

#endif
