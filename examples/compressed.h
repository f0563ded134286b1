/* compressed.h - the cache that an emitted header makes, for the reference forward pass. */
#ifndef EXAMPLES_COMPRESSED_H
#define EXAMPLES_COMPRESSED_H

#include "model/cache.h"

/* A cache for one sequence of n_ctx tokens, at most max_batch of them an append, in the codec of
 * ref7m_kv.h, which is compiled in. Fails with VQKVC_E_USAGE for a model of another shape than the
 * codec's. The cache's free() releases all. */
vqkvc_code compressed_cache(vqkvc_cache *cache, const vqkvc_geometry *g, int n_ctx, int max_batch,
                            vqkvc_err *err);

#endif
