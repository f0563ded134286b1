/* choose.h - a uniform choice without replacement, in order. */
#ifndef VQKVC_CAPTURE_CHOOSE_H
#define VQKVC_CAPTURE_CHOOSE_H

#include <stdint.h>

/* Streams of vqkvc_rng_make(seed, stream). Self-sampling uses the index of the sequence, below
 * 2^31, so these lie far above. */
#define VQKVC_STREAM_SAMPLE  (UINT64_C(1) << 63)
#define VQKVC_STREAM_WINDOWS (VQKVC_STREAM_SAMPLE + 1)

/* Writes `want` <= n of the integers 0 .. n - 1 to out [want], ascending; every subset is equally
 * likely (Knuth, TAOCP 3.4.2, algorithm S). */
void vqkvc_choose(uint64_t seed, uint64_t stream, int64_t n, int64_t want, int64_t *out);

#endif
