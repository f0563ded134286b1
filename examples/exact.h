/* exact.h - the cache that engines have today: exact, in fp16, attended by fp16 kernels. */
#ifndef EXAMPLES_EXACT_H
#define EXAMPLES_EXACT_H

#include "model/cache.h"

/* A cache for one sequence of n_ctx tokens. The cache's free() releases all. */
vqkvc_code exact_cache(vqkvc_cache *cache, const vqkvc_geometry *g, int n_ctx, vqkvc_err *err);

#endif
