/* shim.h - text that load.c compiles behind an emitted header, never part of the tool itself. It
 * finds defined: kv(name) and KV(name), a name under the header's prefix in lower and upper case;
 * vqkvc_shim_cache, the type of a cache. */

static void vqkvc_shim_config(const struct vqkvc_codec_shape *shape, kv(config) * config)
{
    static const kv(config) zero;
    *config = zero;
    config->n_seq = shape->n_seq;
    config->n_ctx = shape->n_ctx;
    config->max_batch = shape->max_batch;
    config->isa = (kv(isa))shape->isa;
    config->n_exact = shape->n_exact;
}

static const char *vqkvc_shim_status_text(int status)
{
    return kv(status_text)((kv(status))status);
}

static int vqkvc_shim_size(const struct vqkvc_codec_shape *shape, size_t *bytes)
{
    kv(config) config;
    vqkvc_shim_config(shape, &config);
    return kv(size)(&config, bytes);
}

static int vqkvc_shim_init(void **cache, const struct vqkvc_codec_shape *shape, void *memory,
                           size_t bytes)
{
    kv(config) config;
    vqkvc_shim_cache *made = 0;
    int status;
    vqkvc_shim_config(shape, &config);
    status = kv(init)(&made, &config, memory, bytes);
    *cache = made;
    return status;
}

static int vqkvc_shim_isa_in_use(const void *cache)
{
    return kv(isa_in_use)(cache);
}

static int vqkvc_shim_append(void *cache, int seq, int layer, int n, const float *k, const float *v)
{
    return kv(append)(cache, seq, layer, n, k, v, KV(F32), KV(KEYS_ROTATED));
}

static int vqkvc_shim_attend(const void *cache, int seq, int layer, int n_q, const float *q,
                             float *out, float scale, int sliding_window, int top_tokens,
                             void *scratch, size_t scratch_bytes)
{
    static const kv(attention) zero;
    kv(attention) attention = zero;
    attention.scale = scale;
    attention.sliding_window = sliding_window;
    attention.top_tokens = top_tokens;
    return kv(attend)(cache, seq, layer, n_q, q, out, &attention, scratch, scratch_bytes);
}

static int vqkvc_shim_trim(void *cache, int seq, int n_keep)
{
    return kv(trim)(cache, seq, n_keep);
}

static int vqkvc_shim_read(const void *cache, int seq, int layer, int kv_head, int part, int first,
                           int n, float *dst, void *scratch, size_t scratch_bytes)
{
    return kv(read)(cache, seq, layer, kv_head, part == 0 ? KV(KEY) : KV(VALUE), first, n, dst,
                    scratch, scratch_bytes);
}

static size_t vqkvc_shim_bytes_used(const void *cache)
{
    return kv(bytes_used)(cache);
}

static int vqkvc_shim_exact_used(const void *cache)
{
    kv(stats) stats;
    return kv(get_stats)(cache, &stats) == KV(OK) ? stats.exact_used : -1;
}

static size_t vqkvc_shim_save_size(const void *cache, int seq)
{
    return kv(save_size)(cache, seq);
}

static int vqkvc_shim_save(const void *cache, int seq, void *dst, size_t bytes)
{
    return kv(save)(cache, seq, dst, bytes);
}

static int vqkvc_shim_load(void *cache, int seq, const void *src, size_t bytes)
{
    return kv(load)(cache, seq, src, bytes);
}

const struct vqkvc_codec_table vqkvc_codec_exports = {
    KV(N_LAYERS),
    KV(N_HEADS),
    KV(N_KV_HEADS),
    KV(HEAD_DIM),
    KV(N_ROT),
    KV(ROPE_INTERLEAVED),
    KV(BLOCK),
    KV(N_SINK),
    KV(N_RECENT),
    KV(LANDMARKS),
    KV(MAX_ERROR),
    KV(CODEC),
    vqkvc_shim_status_text,
    vqkvc_shim_size,
    vqkvc_shim_init,
    kv(scratch_size),
    vqkvc_shim_isa_in_use,
    vqkvc_shim_append,
    vqkvc_shim_attend,
    vqkvc_shim_trim,
    vqkvc_shim_read,
    vqkvc_shim_bytes_used,
    vqkvc_shim_exact_used,
    vqkvc_shim_save_size,
    vqkvc_shim_save,
    vqkvc_shim_load,
};
