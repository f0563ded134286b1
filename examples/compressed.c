/* An emitted header behind the reference reader's cache interface: five calls, as an engine would
 * put them into its own forward pass. */
#include "compressed.h"

#include <omp.h>
#include <stdlib.h>

#include "base/memory.h"

#define REF7M_KV_IMPLEMENTATION
#include "ref7m_kv.h"

typedef struct compressed {
    ref7m_kv *kv;
    void *memory;           /* of kv */
    unsigned char *scratch; /* [threads, scratch_bytes] */
    size_t scratch_bytes;   /* of one thread */
} compressed;

static vqkvc_code said(ref7m_kv_status status, const char *call, int layer, vqkvc_err *err)
{
    if (status == REF7M_KV_OK)
        return VQKVC_OK;
    return vqkvc_fail(err, VQKVC_E_FAILED, "compressed cache: %s in layer %d: %s", call, layer,
                      ref7m_kv_status_text(status));
}

static vqkvc_code compressed_append(void *self, int seq, int layer, int pos, int n, const float *k,
                                    const float *v, vqkvc_err *err)
{
    const compressed *c = self;
    (void)pos; /* the header counts for itself */
    return said(ref7m_kv_append(c->kv, seq, layer, n, k, v, REF7M_KV_F32, REF7M_KV_KEYS_ROTATED),
                "append", layer, err);
}

static vqkvc_code compressed_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                                    float *out, float scale, vqkvc_err *err)
{
    const compressed *c = self;
    const ref7m_kv_attention attention = {.scale = scale};
    (void)pos;
    return said(ref7m_kv_attend(c->kv, seq, layer, n, q, out, &attention,
                                c->scratch + (size_t)omp_get_thread_num() * c->scratch_bytes,
                                c->scratch_bytes),
                "attend", layer, err);
}

static vqkvc_code compressed_trim(void *self, int seq, int n_keep, vqkvc_err *err)
{
    const compressed *c = self;
    return said(ref7m_kv_trim(c->kv, seq, n_keep), "trim", 0, err);
}

static size_t compressed_bytes(void *self)
{
    const compressed *c = self;
    return ref7m_kv_bytes_used(c->kv);
}

static void compressed_free(void *self)
{
    compressed *c = self;
    free(c->memory);
    free(c->scratch);
    free(c);
}

/* The header is made for one model: another one's shapes would be read wrongly. */
static vqkvc_code check_geometry(const vqkvc_geometry *g, vqkvc_err *err)
{
    if (g->n_layers == REF7M_KV_N_LAYERS && g->n_heads == REF7M_KV_N_HEADS &&
        g->n_kv_heads == REF7M_KV_N_KV_HEADS && g->head_dim == REF7M_KV_HEAD_DIM)
        return VQKVC_OK;
    return vqkvc_fail(err, VQKVC_E_USAGE,
                      "the compressed cache was built for %d layers, %d heads, %d KV heads of %d; "
                      "this model has %d, %d, %d of %d",
                      REF7M_KV_N_LAYERS, REF7M_KV_N_HEADS, REF7M_KV_N_KV_HEADS, REF7M_KV_HEAD_DIM,
                      g->n_layers, g->n_heads, g->n_kv_heads, g->head_dim);
}

vqkvc_code compressed_cache(vqkvc_cache *cache, const vqkvc_geometry *g, int n_ctx, int max_batch,
                            vqkvc_err *err)
{
    const ref7m_kv_config config = {.n_ctx = n_ctx, .max_batch = max_batch};
    size_t bytes = 0;
    VQKVC_TRY(check_geometry(g, err));
    VQKVC_TRY(said(ref7m_kv_size(&config, &bytes), "size", 0, err));
    compressed *c = vqkvc_alloc(1, sizeof *c, err);
    if (c == NULL)
        return err->code;
    c->scratch_bytes = (ref7m_kv_scratch_size() + 63) / 64 * 64;
    c->scratch = vqkvc_alloc((size_t)omp_get_max_threads(), c->scratch_bytes, err);
    c->memory = vqkvc_alloc(1, bytes, err);
    if (err->code == VQKVC_OK)
        said(ref7m_kv_init(&c->kv, &config, c->memory, bytes), "init", 0, err);
    *cache = (vqkvc_cache){c,
                           compressed_append,
                           compressed_attend,
                           compressed_trim,
                           compressed_bytes,
                           compressed_free};
    if (err->code != VQKVC_OK)
        compressed_free(c);
    return err->code;
}
