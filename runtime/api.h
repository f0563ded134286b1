/* ---- status ---------------------------------------------------------------------------------- */

#define VQKV_STATUS_LIST(X)                                                                        \
    X(OK, "ok")                                                                                    \
    X(E_ARGUMENT, "an argument is out of range or NULL")                                           \
    X(E_SIZE, "the memory handed in is too small; ask the matching _size function")                \
    X(E_ALIGNMENT, "the memory handed in is not aligned to 64 bytes")                              \
    X(E_CONTEXT, "the sequence would grow beyond n_ctx")                                           \
    X(E_BATCH, "more tokens at once than max_batch allows; split the prompt")                      \
    X(E_ORDER, "layers are out of step: append every step to every layer, in any order")           \
    X(E_FULL, "no free block is left in the pool, or no place on the exact list")                  \
    X(E_VALUE, "a key or value is not a finite number")                                            \
    X(E_CPU, "this processor lacks the instruction set asked for")                                 \
    X(E_FORMAT, "not a saved cache, or cut short")                                                 \
    X(E_VERSION, "a cache saved by another version or another codec")                              \
    X(E_CHECKSUM, "a saved cache is damaged")

typedef enum vqkv_status {
#define VQKV__X(name, words) VQKV_##name,
    VQKV_STATUS_LIST(VQKV__X)
#undef VQKV__X
} vqkv_status;

/* Words for a status; never NULL. */
const char *vqkv_status_text(vqkv_status status);

/* ---- memory: all of it is the caller's ------------------------------------------------------- */

typedef enum vqkv_isa {
    VQKV_ISA_AUTO, /* the best that this processor has */
    VQKV_ISA_PORTABLE,
    VQKV_ISA_AVX2,   /* with FMA and F16C */
    VQKV_ISA_AVX512, /* F, BW, VL, DQ, VBMI, VNNI: Ice Lake, Zen 4 and later */
    VQKV_ISA_NEON,
    VQKV_ISA_NEON_DOT /* with dot products of bytes: Cortex-A75, Neoverse N1, Apple M1 and later */
} vqkv_isa;

/* Zero means the default everywhere but in n_ctx. */
typedef struct vqkv_config {
    int n_seq;     /* sequences; 1 */
    int n_ctx;     /* most tokens of a sequence */
    int max_batch; /* most tokens of one append; 256 */
    int n_blocks;  /* blocks of VQKV_BLOCK tokens in the pool; enough for n_seq full sequences */
    vqkv_isa isa;
    int n_exact; /* vectors on the exact list, which codecs with a bound on every error
                    (VQKV_MAX_ERROR) have; twice what calibration expects, and some */
} vqkv_config;

typedef struct vqkv vqkv; /* lives in the caller's memory; holds no pointers: may be moved */

/* Bytes that a cache of this shape takes. */
vqkv_status vqkv_size(const vqkv_config *config, size_t *bytes);
/* Makes an empty cache in memory[bytes], aligned to 64. *kv points into memory. */
vqkv_status vqkv_init(vqkv **kv, const vqkv_config *config, void *memory, size_t bytes);
/* Bytes of scratch that attend needs, aligned to 64; one scratch a thread. Codecs with codebooks of
 * thousands of codewords need megabytes: a table of scores with an entry for each of them. Codecs
 * whose vectors are rebuilt hold a few blocks of one layer, all KV heads, in fp32; those with
 * predictions also the blocks of the layers that are predicted from, one at a time. */
size_t vqkv_scratch_size(void);
/* The instruction set in use. */
vqkv_isa vqkv_isa_in_use(const vqkv *kv);

/* ---- writing --------------------------------------------------------------------------------- */

typedef enum vqkv_type { VQKV_F32, VQKV_F16, VQKV_BF16 } vqkv_type;
typedef enum vqkv_keys { VQKV_KEYS_ROTATED, VQKV_KEYS_UNROTATED } vqkv_keys;

/* Appends n tokens to one layer of a sequence: k, v [n, VQKV_N_KV_HEADS, VQKV_HEAD_DIM] of `type`.
 * A step appends the same tokens to every layer. Blocks that have left the exact window are encoded
 * when the next step begins; that is the only slow case (see the banner). Unrotated keys are
 * rotated here by their positions, which count from 0. Values are kept in fp16 at first: what is
 * beyond its range becomes its largest value. With VQKV_MAX_ERROR > 0 every vector is held back to
 * |x - x^| <= VQKV_MAX_ERROR |x|: codes that would break this are corrected by the exact list, and
 * where it is full, E_FULL comes before a token is taken. One thread at a time for a cache. */
vqkv_status vqkv_append(vqkv *kv, int seq, int layer, int n, const void *k, const void *v,
                        vqkv_type type, vqkv_keys keys);

/* Forgets all tokens of a sequence from n_keep on. A block that is cut in the middle is decoded
 * back into the exact window. Also the way to give a step up that not every layer has seen: n_keep
 * may be what the least layer holds. */
vqkv_status vqkv_trim(vqkv *kv, int seq, int n_keep);

/* Makes sequence `to` a copy of `from`. Blocks are shared by reference count and never written
 * again; only the exact window is copied. What `to` held is forgotten. */
vqkv_status vqkv_fork(vqkv *kv, int from, int to);

/* ---- reading --------------------------------------------------------------------------------- */

/* Tokens that every layer of a sequence holds; -1 for a bad argument. */
int vqkv_n_tokens(const vqkv *kv, int seq);

/* The most that vqkv_attention may ask for; scratch has room for so many. */
#define VQKV_MAX_TOP_TOKENS     8192
#define VQKV_MAX_OUTLIER_CHUNKS 128

/* Zero means the default. */
typedef struct vqkv_attention {
    float scale;              /* on q . k; VQKV_ATTENTION_SCALE */
    float soft_cap;           /* scores become cap * tanh(score / cap); 0: none */
    int sliding_window;       /* a query sees this many latest tokens, its own included; 0: all */
    const float *sink_logits; /* [VQKV_N_HEADS] extra logit in every softmax; NULL: none */
    /* For codecs with VQKV_LANDMARKS > 0: of all coded tokens in the range, attend only to so many,
     * in chunks of VQKV_LANDMARKS: those whose mean key scores highest with any of a few queries of
     * a KV head (one decoded token's, all its heads), the earlier ones of equals. First tokens and
     * the exact window are always attended. 0: all; at most VQKV_MAX_TOP_TOKENS. */
    int top_tokens;
    /* With top_tokens: chunks besides that are always attended, those with a key farthest from
     * their mean. 0: three for sixteen of the others; negative: none; at most
     * VQKV_MAX_OUTLIER_CHUNKS. */
    int outlier_chunks;
} vqkv_attention;

/* Causal attention of the latest n_q tokens of a layer. q, out: [n_q, VQKV_N_HEADS, VQKV_HEAD_DIM]
 * fp32, queries rotated. attention may be NULL. The cache is only read: any number of threads may
 * attend at once, each with its own scratch. Where the codec must rebuild vectors, that is done
 * once for all heads and up to 32 queries of a call; with predictions it takes time in proportion
 * to the layers below that are predicted from. */
vqkv_status vqkv_attend(const vqkv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const vqkv_attention *attention, void *scratch, size_t scratch_bytes);

/* A softmax in pieces, for an engine's own threads: rows are n_q * VQKV_GROUP queries of one KV
 * head, token by token. o is not yet divided by l. */
typedef struct vqkv_partial {
    float *m; /* [rows] largest score so far */
    float *l; /* [rows] sum of exp(score - m) */
    float *o; /* [rows, VQKV_HEAD_DIM] sum of exp(score - m) * value */
} vqkv_partial;

/* As vqkv_attend, for one KV head and the tokens first .. first + count - 1 only; sink_logits are
 * not applied here. Ranges that start and end at multiples of VQKV_BLOCK (counted from
 * VQKV_N_SINK) are quickest; threads that split the context rather than the heads rebuild vectors
 * once only, where the codec must. q: [n_q, VQKV_N_HEADS, VQKV_HEAD_DIM] as in vqkv_attend. */
vqkv_status vqkv_attend_part(const vqkv *kv, int seq, int layer, int kv_head, int n_q,
                             const float *q, int first, int count, const vqkv_attention *attention,
                             vqkv_partial *partial, void *scratch, size_t scratch_bytes);
/* into += from, both over rows rows. */
void vqkv_merge(vqkv_partial *into, const vqkv_partial *from, int rows);
/* Writes one KV head's rows to out [n_q, VQKV_N_HEADS, VQKV_HEAD_DIM]. */
void vqkv_finish(const vqkv_partial *partial, int kv_head, int n_q, const vqkv_attention *attention,
                 float *out);

typedef enum vqkv_part { VQKV_KEY, VQKV_VALUE } vqkv_part;

/* Tokens first .. first + n - 1 of one head as the cache holds them: dst [n, VQKV_HEAD_DIM] fp32,
 * keys rotated. */
vqkv_status vqkv_read(const vqkv *kv, int seq, int layer, int kv_head, vqkv_part part, int first,
                      int n, float *dst, void *scratch, size_t scratch_bytes);

/* Bytes that the tokens held take: codes, gains, landmarks, exact list, exact window, block tables.
 */
size_t vqkv_bytes_used(const vqkv *kv);

typedef struct vqkv_stats {
    size_t bytes;              /* vqkv_bytes_used() */
    int blocks_used, n_blocks; /* of the pool */
    int exact_used, n_exact;   /* vectors on the exact list, and its places */
} vqkv_stats;

/* For engines that plan ahead: how full a cache is. */
vqkv_status vqkv_get_stats(const vqkv *kv, vqkv_stats *stats);

/* ---- save and load --------------------------------------------------------------------------- */

/* Bytes that vqkv_save needs for a sequence; 0 for a bad argument. */
size_t vqkv_save_size(const vqkv *kv, int seq);
/* Writes one sequence: a versioned header with the codec's identity, the tokens, a checksum.
 * Layers must be in step. The bytes hold no pointers and do not depend on the pool. */
vqkv_status vqkv_save(const vqkv *kv, int seq, void *dst, size_t bytes);
/* Replaces a sequence by a saved one. All is checked before anything changes: on failure the
 * sequence is as it was. A cache with a smaller max_batch may have too short an exact window for
 * it: E_BATCH. */
vqkv_status vqkv_load(vqkv *kv, int seq, const void *src, size_t bytes);
