#include "capture/choose.h"

#include "base/rng.h"

void vqkvc_choose(uint64_t seed, uint64_t stream, int64_t n, int64_t want, int64_t *out)
{
    vqkvc_rng rng = vqkvc_rng_make(seed, stream);
    for (int64_t i = 0, taken = 0; taken < want; i++)
        if (vqkvc_rng_below(&rng, (uint64_t)(n - i)) < (uint64_t)(want - taken))
            out[taken++] = i;
}
