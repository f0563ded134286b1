/* toy_kv.h - a compressed KV cache for the model "golden", scheme toy.
 * Made by vqkvc 0.1.0, ABI 2. Do not edit: run the command below again.
 *
 * USE. In one C or C++ file:
 *     #define TOY_KV_IMPLEMENTATION
 *     #include "toy_kv.h"
 * elsewhere only the #include. Link with -lm. Then:
 *     toy_kv_config config = {0};
 *     config.n_ctx = 8192;
 *     toy_kv_size(&config, &bytes);                // memory is yours
 *     toy_kv_init(&kv, &config, memory, bytes);    // aligned to 64
 *     for each layer:
 *         toy_kv_append(kv, 0, layer, n, k, v, TOY_KV_F32, TOY_KV_KEYS_ROTATED);
 *         toy_kv_attend(kv, 0, layer, n, q, out, NULL, scratch, scratch_bytes);
 * Calls that can fail return a status (toy_kv_status_text). Nothing is allocated, printed or
 * kept in globals. #define TOY_KV_NO_SIMD leaves only portable C.
 *
 * MODEL. 3 layers, 8 query heads, 1 KV heads of 16 channels; rotary embedding on 16
 * channels, pairs (i, i + half).
 *
 * COST, bits a value (one of 96 a token): codes 7.125 + gains, landmarks, exact list 3.906 = 11.031 stored; attention
 * reads 10.208. With the exact window (first 4 tokens, latest 24 to 55) and 10560 bytes of
 * tables, at a context of 4096 tokens: 11.299. A block of 32 tokens is encoded at once, in the
 * append that begins the step after it has left the exact window.
 *
 * FROM. weights unknown
 *       calibration none
 *       plan a562af91939b89efb21f8fb65884f25d
 *       vqkvc emit toy
 *
 * STREAMS
 *   scheme    toy for golden (llama)
 *   geometry  3 layers, 8 heads, 1 KV heads of 16, 16 channels rotated
 *   window    first 4 and latest 24 tokens exact, blocks of 32
 *   cost      11.299 bits a value at 4096 tokens: codes 7.125, gains 0.750, window 0.053, tables 0.215 (10560 bytes); scan 10.208
 *   landmarks one for 8 tokens: 0.594 bits a value
 *   bound     every vector within 0.9 of its length; 12.500 % kept exactly: 2.562 bits a value
 *   stream                members           frame map      latents    gain             bits  runs
 *   shared                K 0-2 h0          block basis      48->24   rms 8b/24       1.583  4x1:4b*2 2x2:4b 1x4:4b*2 1x8:4b 4x1:u4
 *   own                   K 0 h0            block identity   16->16   absmax 16b/8   10.000  2(8x1:u8)
 *   own                   K 1 h0            block identity   16->16   rms 16b/16      9.000  16x1:u8
 *   own                   K 2 h0            block identity   16->16   none            8.000  16x1:u8
 *   shared                V 0-1 h0          post  basis      32->16   rms 8b/16       2.250  4x1:4b*2 2x2:4b 1x4:4b*2 4x1:u4
 *   shared                V 2 h0            post  basis      16->8    rms 8b/8        3.000  4x1:4b*2 2x2:4b
 *   own                   V 0 h0            post  identity   16->16   none            8.000  16x1:u8
 */

#ifndef TOY_KV_H
#define TOY_KV_H

#include <stddef.h>
#include <stdint.h>

#define TOY_KV_ABI_VERSION 2 /* of this interface and of saved caches */
#define TOY_KV_N_LAYERS 3
#define TOY_KV_N_HEADS 8 /* query heads */
#define TOY_KV_N_KV_HEADS 1
#define TOY_KV_GROUP 8 /* query heads that share a KV head */
#define TOY_KV_HEAD_DIM 16
#define TOY_KV_N_ROT 16 /* rotated channels of a head */
#define TOY_KV_ROPE_INTERLEAVED 0 /* 1: pairs (2 i, 2 i + 1); 0: (i, i + N_ROT / 2) */
#define TOY_KV_BLOCK 32 /* tokens that are encoded together */
#define TOY_KV_N_SINK 4 /* first tokens, exact for ever */
#define TOY_KV_N_RECENT 24 /* latest tokens, exact at least */
#define TOY_KV_LANDMARKS 8 /* tokens that share a landmark; 0: none, and no top_tokens */
#define TOY_KV_ATTENTION_SCALE 2.500000000e-01f /* 1 / sqrt(HEAD_DIM) */
#define TOY_KV_MAX_ERROR 8.999999762e-01f /* of every vector, a part of its length; 0: no bound */
#define TOY_KV_CODEC "a562af91939b89efb21f8fb65884f25d" /* hash of the plan and all tables */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------- */

#define TOY_KV_STATUS_LIST(X)                                                                        \
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

typedef enum toy_kv_status {
#define TOY_KV__X(name, words) TOY_KV_##name,
    TOY_KV_STATUS_LIST(TOY_KV__X)
#undef TOY_KV__X
} toy_kv_status;

/* Words for a status; never NULL. */
const char *toy_kv_status_text(toy_kv_status status);

/* ---- memory: all of it is the caller's ------------------------------------------------------- */

typedef enum toy_kv_isa {
    TOY_KV_ISA_AUTO, /* the best that this processor has */
    TOY_KV_ISA_PORTABLE,
    TOY_KV_ISA_AVX2,   /* with FMA and F16C */
    TOY_KV_ISA_AVX512, /* F, BW, VL, DQ, VBMI, VNNI: Ice Lake, Zen 4 and later */
    TOY_KV_ISA_NEON,
    TOY_KV_ISA_NEON_DOT /* with dot products of bytes: Cortex-A75, Neoverse N1, Apple M1 and later */
} toy_kv_isa;

/* Zero means the default everywhere but in n_ctx. */
typedef struct toy_kv_config {
    int n_seq;     /* sequences; 1 */
    int n_ctx;     /* most tokens of a sequence */
    int max_batch; /* most tokens of one append; 256 */
    int n_blocks;  /* blocks of TOY_KV_BLOCK tokens in the pool; enough for n_seq full sequences */
    toy_kv_isa isa;
    int n_exact; /* vectors on the exact list, which codecs with a bound on every error
                    (TOY_KV_MAX_ERROR) have; twice what calibration expects, and some */
} toy_kv_config;

typedef struct toy_kv toy_kv; /* lives in the caller's memory; holds no pointers: may be moved */

/* Bytes that a cache of this shape takes. */
toy_kv_status toy_kv_size(const toy_kv_config *config, size_t *bytes);
/* Makes an empty cache in memory[bytes], aligned to 64. *kv points into memory. */
toy_kv_status toy_kv_init(toy_kv **kv, const toy_kv_config *config, void *memory, size_t bytes);
/* Bytes of scratch that attend needs, aligned to 64; one scratch a thread. Codecs with codebooks of
 * thousands of codewords need megabytes: a table of scores with an entry for each of them. Codecs
 * whose vectors are rebuilt hold a few blocks of one layer, all KV heads, in fp32; those with
 * predictions also the blocks of the layers that are predicted from, one at a time. */
size_t toy_kv_scratch_size(void);
/* The instruction set in use. */
toy_kv_isa toy_kv_isa_in_use(const toy_kv *kv);

/* ---- writing --------------------------------------------------------------------------------- */

typedef enum toy_kv_type { TOY_KV_F32, TOY_KV_F16, TOY_KV_BF16 } toy_kv_type;
typedef enum toy_kv_keys { TOY_KV_KEYS_ROTATED, TOY_KV_KEYS_UNROTATED } toy_kv_keys;

/* Appends n tokens to one layer of a sequence: k, v [n, TOY_KV_N_KV_HEADS, TOY_KV_HEAD_DIM] of `type`.
 * A step appends the same tokens to every layer. Blocks that have left the exact window are encoded
 * when the next step begins; that is the only slow case (see the banner). Unrotated keys are
 * rotated here by their positions, which count from 0. Values are kept in fp16 at first: what is
 * beyond its range becomes its largest value. With TOY_KV_MAX_ERROR > 0 every vector is held back to
 * |x - x^| <= TOY_KV_MAX_ERROR |x|: codes that would break this are corrected by the exact list, and
 * where it is full, E_FULL comes before a token is taken. One thread at a time for a cache. */
toy_kv_status toy_kv_append(toy_kv *kv, int seq, int layer, int n, const void *k, const void *v,
                        toy_kv_type type, toy_kv_keys keys);

/* Forgets all tokens of a sequence from n_keep on. A block that is cut in the middle is decoded
 * back into the exact window. Also the way to give a step up that not every layer has seen: n_keep
 * may be what the least layer holds. */
toy_kv_status toy_kv_trim(toy_kv *kv, int seq, int n_keep);

/* Makes sequence `to` a copy of `from`. Blocks are shared by reference count and never written
 * again; only the exact window is copied. What `to` held is forgotten. */
toy_kv_status toy_kv_fork(toy_kv *kv, int from, int to);

/* ---- reading --------------------------------------------------------------------------------- */

/* Tokens that every layer of a sequence holds; -1 for a bad argument. */
int toy_kv_n_tokens(const toy_kv *kv, int seq);

/* The most that toy_kv_attention may ask for; scratch has room for so many. */
#define TOY_KV_MAX_TOP_TOKENS     8192
#define TOY_KV_MAX_OUTLIER_CHUNKS 128

/* Zero means the default. */
typedef struct toy_kv_attention {
    float scale;              /* on q . k; TOY_KV_ATTENTION_SCALE */
    float soft_cap;           /* scores become cap * tanh(score / cap); 0: none */
    int sliding_window;       /* a query sees this many latest tokens, its own included; 0: all */
    const float *sink_logits; /* [TOY_KV_N_HEADS] extra logit in every softmax; NULL: none */
    /* For codecs with TOY_KV_LANDMARKS > 0: of all coded tokens in the range, attend only to so many,
     * in chunks of TOY_KV_LANDMARKS: those whose mean key scores highest with any of a few queries of
     * a KV head (one decoded token's, all its heads), the earlier ones of equals. First tokens and
     * the exact window are always attended. 0: all; at most TOY_KV_MAX_TOP_TOKENS. */
    int top_tokens;
    /* With top_tokens: chunks besides that are always attended, those with a key farthest from
     * their mean. 0: three for sixteen of the others; negative: none; at most
     * TOY_KV_MAX_OUTLIER_CHUNKS. */
    int outlier_chunks;
} toy_kv_attention;

/* Causal attention of the latest n_q tokens of a layer. q, out: [n_q, TOY_KV_N_HEADS, TOY_KV_HEAD_DIM]
 * fp32, queries rotated. attention may be NULL. The cache is only read: any number of threads may
 * attend at once, each with its own scratch. Where the codec must rebuild vectors, that is done
 * once for all heads and up to 32 queries of a call; with predictions it takes time in proportion
 * to the layers below that are predicted from. */
toy_kv_status toy_kv_attend(const toy_kv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const toy_kv_attention *attention, void *scratch, size_t scratch_bytes);

/* A softmax in pieces, for an engine's own threads: rows are n_q * TOY_KV_GROUP queries of one KV
 * head, token by token. o is not yet divided by l. */
typedef struct toy_kv_partial {
    float *m; /* [rows] largest score so far */
    float *l; /* [rows] sum of exp(score - m) */
    float *o; /* [rows, TOY_KV_HEAD_DIM] sum of exp(score - m) * value */
} toy_kv_partial;

/* As toy_kv_attend, for one KV head and the tokens first .. first + count - 1 only; sink_logits are
 * not applied here. Ranges that start and end at multiples of TOY_KV_BLOCK (counted from
 * TOY_KV_N_SINK) are quickest; threads that split the context rather than the heads rebuild vectors
 * once only, where the codec must. q: [n_q, TOY_KV_N_HEADS, TOY_KV_HEAD_DIM] as in toy_kv_attend. */
toy_kv_status toy_kv_attend_part(const toy_kv *kv, int seq, int layer, int kv_head, int n_q,
                             const float *q, int first, int count, const toy_kv_attention *attention,
                             toy_kv_partial *partial, void *scratch, size_t scratch_bytes);
/* into += from, both over rows rows. */
void toy_kv_merge(toy_kv_partial *into, const toy_kv_partial *from, int rows);
/* Writes one KV head's rows to out [n_q, TOY_KV_N_HEADS, TOY_KV_HEAD_DIM]. */
void toy_kv_finish(const toy_kv_partial *partial, int kv_head, int n_q, const toy_kv_attention *attention,
                 float *out);

typedef enum toy_kv_part { TOY_KV_KEY, TOY_KV_VALUE } toy_kv_part;

/* Tokens first .. first + n - 1 of one head as the cache holds them: dst [n, TOY_KV_HEAD_DIM] fp32,
 * keys rotated. */
toy_kv_status toy_kv_read(const toy_kv *kv, int seq, int layer, int kv_head, toy_kv_part part, int first,
                      int n, float *dst, void *scratch, size_t scratch_bytes);

/* Bytes that the tokens held take: codes, gains, landmarks, exact list, exact window, block tables.
 */
size_t toy_kv_bytes_used(const toy_kv *kv);

typedef struct toy_kv_stats {
    size_t bytes;              /* toy_kv_bytes_used() */
    int blocks_used, n_blocks; /* of the pool */
    int exact_used, n_exact;   /* vectors on the exact list, and its places */
} toy_kv_stats;

/* For engines that plan ahead: how full a cache is. */
toy_kv_status toy_kv_get_stats(const toy_kv *kv, toy_kv_stats *stats);

/* ---- save and load --------------------------------------------------------------------------- */

/* Bytes that toy_kv_save needs for a sequence; 0 for a bad argument. */
size_t toy_kv_save_size(const toy_kv *kv, int seq);
/* Writes one sequence: a versioned header with the codec's identity, the tokens, a checksum.
 * Layers must be in step. The bytes hold no pointers and do not depend on the pool. */
toy_kv_status toy_kv_save(const toy_kv *kv, int seq, void *dst, size_t bytes);
/* Replaces a sequence by a saved one. All is checked before anything changes: on failure the
 * sequence is as it was. A cache with a smaller max_batch may have too short an exact window for
 * it: E_BATCH. */
toy_kv_status toy_kv_load(toy_kv *kv, int seq, const void *src, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* TOY_KV_H */

#if defined(TOY_KV_IMPLEMENTATION) && !defined(TOY_KV__IMPLEMENTED)
#define TOY_KV__IMPLEMENTED

#include <math.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "toy_kv.h: tables and saved caches are little-endian; this machine is not"
#endif

#if !defined(TOY_KV_NO_SIMD) && defined(__GNUC__) && defined(__x86_64__)
#define TOY_KV__X86
#include <immintrin.h>
#elif !defined(TOY_KV_NO_SIMD) && defined(__GNUC__) && defined(__aarch64__)
#define TOY_KV__ARM
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

/* Private types: descriptors of the codec, and the layout of the caller's memory. */

#define TOY_KV__MASKED   (-1e30f) /* the score of a token that a query does not see */
#define TOY_KV__MAX_ROWS 8        /* queries that share one pass over the codes */

#ifdef __GNUC__
#define TOY_KV__PREFETCH(p, locality) __builtin_prefetch(p, 0, locality)
#define TOY_KV__INLINE                static inline __attribute__((always_inline))
#else
#define TOY_KV__PREFETCH(p, locality) (void)(p)
#define TOY_KV__INLINE                static inline
#endif

/* Calls F(n) for rows r .. r + n - 1 until `rows` are done: by fours, then for those that are left.
 * n is a constant there, so that kernels keep n rows in registers. */
#define TOY_KV__BY_ROWS(r, rows, F)                                                                  \
    do {                                                                                           \
        for ((r) = 0; (r) + 4 <= (rows); (r) += 4)                                                 \
            F(4);                                                                                  \
        if ((rows) - (r) == 3)                                                                     \
            F(3);                                                                                  \
        else if ((rows) - (r) == 2)                                                                \
            F(2);                                                                                  \
        else if ((rows) - (r) == 1)                                                                \
            F(1);                                                                                  \
    } while (0)

#define TOY_KV__AHEAD 3 /* blocks that codes of keys are asked for in advance */
#define TOY_KV__ASKED 8 /* pieces that are asked for by and by, near ones and far ones */

enum toy_kv__coder { TOY_KV__NIBBLES, TOY_KV__BYTES, TOY_KV__HALVES, TOY_KV__WIDE };
enum toy_kv__frame { TOY_KV__PRE, TOY_KV__POST, TOY_KV__BLOCKWISE };
enum toy_kv__transform { TOY_KV__IDENTITY, TOY_KV__HADAMARD, TOY_KV__BASIS };
enum toy_kv__gain { TOY_KV__NO_GAIN, TOY_KV__RMS, TOY_KV__ABSMAX, TOY_KV__SIGNMAX, TOY_KV__RANGE, TOY_KV__NSN };

/* Groups of channels with one coder. Offsets into the constant tables are in binary16 values. */
typedef struct toy_kv__run {
    unsigned char coder, uniform, stages, beam, bits;
    unsigned char words;  /* whether what meets queries does in 16 bits, not 8 */
    unsigned char steady; /* keys: whether queries, for it, turn every STEADY_SPAN tokens only */
    unsigned short width; /* channels that share a code */
    int first;            /* latent of the first channel */
    int planes;           /* groups * stages */
    int codes;            /* offset of the first plane in the stream's part of a block, bytes */
    int book;             /* offset of the codewords [width, 2^bits] of the first plane */
    int book_step;        /* from one group's codewords to the next's; 0: one book for all */
    int gain;             /* gain group of the first channel */
} toy_kv__run;

typedef struct toy_kv__stream {
    unsigned char frame, transform, gain, gain_bytes, basis_bytes;
    int n_members, first_member;   /* members are rows of the concatenated input */
    int n_in, n_latents, n_steady; /* n_steady: latents of steady runs, which are the first */
    int mean, enc, dec; /* offsets of tables, -1: none. Bases whose entries have one byte begin with
                           their scales, binary16 [members, n_latents] */
    int n_gains, gain_width, gain_table; /* gain_table: 256 values of an 8-bit gain */
    int gain_tokens;                     /* that share a RANGE, or the shift of NSN */
    int outliers, spread, kept;          /* their number, table or -1, place in a block's bytes */
    int first_run, n_runs;
    int bytes; /* of a block */
    int start; /* bytes of the streams before this one */
} toy_kv__stream;

typedef struct toy_kv__member {
    short part, layer, head;
} toy_kv__member;

/* A stream that holds a given head, and which of its members the head is. */
typedef struct toy_kv__use {
    short stream, member;
} toy_kv__use;

/* K or V of one layer, all its heads. Nodes are in an order in which everything that one is
 * predicted from stands before it. */
typedef struct toy_kv__node {
    short part, layer;
    short rebuilt;     /* attention needs its vectors themselves */
    short source;      /* others are predicted from it */
    short slot;        /* of the scratch where it is rebuilt; kept until the last that needs it */
    short prediction;  /* -1: none */
    short last_stream; /* that holds something of it */
} toy_kv__node;

typedef struct toy_kv__prediction {
    int n_sources, source[2]; /* nodes */
    int per_head, rank;       /* rank 0: one full map */
    int bias, map, out;       /* offsets of tables */
} toy_kv__prediction;

/* Entries of a constant table: binary16, or bytes that count the scale of their column each. */
typedef struct toy_kv__matrix {
    const unsigned char *values, *scale; /* scale: binary16 [columns], NULL: entries are binary16 */
} toy_kv__matrix;

/* How score tables of consecutive planes were packed. AVX-512: for each quad of planes [rows, 64]
 * entries of 8 bits and behind them [MAX_ROWS, 4] bytes, how many times scale[2 row + 1] an entry
 * of each plane counts; of the first `wide` quads a second such table, which adds to the first.
 * AVX2: for each of the first `wide` quads [rows, 2, 64] high and low bytes of 16-bit entries,
 * which count scale[2 row], for each quad behind them as many bytes of narrow ones, scale[2 row +
 * 1]. NEON: for each of the first `wide` planes [rows, 2, 16] low and high bytes of such entries,
 * for each two planes behind them [rows, 2, 16] entries of 8 bits. */
typedef struct toy_kv__packed {
    int wide;
    int bytes;                      /* of the tables */
    int32_t offset[TOY_KV__MAX_ROWS]; /* what entries of 8 bits add up to more than they should */
    float scale[2 * TOY_KV__MAX_ROWS];
    char pad[64 - (2 * sizeof(int) + (sizeof(int32_t) + 2 * sizeof(float)) * TOY_KV__MAX_ROWS) % 64];
} toy_kv__packed;

/* The rounding error of packed score tables, as a fraction of the stream's scores (both root mean
 * square, codes taken as equally likely). */
#define TOY_KV__TABLE_ERROR 0.0018f

/* Bases in words: the largest of a column is MAP_TOP; columns lie in sixteens, each [n_in / 2]
 * pairs of inputs [16, 2]. */
#define TOY_KV__MAP_TOP    2047.0f
#define TOY_KV__COLUMNS(n) (((n) + 16) / 16 * 16)
/* Bases in bytes: columns in sixteens, each [BYTE_ROWS(n_in) / 4] fours of inputs [16, 4]. */
#define TOY_KV__BYTE_COLUMNS(n) (((n) + 15) / 16 * 16)
#define TOY_KV__BYTE_ROWS(n)    (((n) + 3) / 4 * 4)

/* Columns first .. first + n_out - 1, rows row[0 .. n_in - 1], of a matrix of `columns`. */
typedef struct toy_kv__slice {
    const short *row;
    int n_in, first, n_out, columns;
} toy_kv__slice;

/* Groups of a run's channels that meet a query together in a 32-bit lane. */
static inline int toy_kv__dot_groups(const toy_kv__run *run)
{
    const int each = run->words ? 2 : 4;
    return (run->planes * run->width + each - 1) / each;
}

/* Whether score tables of a run can be filled by fill_bytes. */
static inline int toy_kv__fillable(const toy_kv__run *run)
{
    return run->coder == TOY_KV__NIBBLES && (run->width == 2 || run->width == 4 || run->width == 8);
}

/* What kernels ask the memory for, a line now and then: all at once would fill the queue of misses,
 * and what is at work would wait for its end. Codes that come next: `keys` into the first-level
 * cache, `values` and keys that would fill it into the second. Kernels hold it in registers. */
typedef struct toy_kv__asked {
    const unsigned char *keys, *keys_end, *values, *values_end;
} toy_kv__asked;

/* Inlined, or gcc takes it for a function without effects. */
TOY_KV__INLINE void toy_kv__ask(toy_kv__asked *a)
{
    TOY_KV__PREFETCH(a->keys, 3);
    TOY_KV__PREFETCH(a->values, 2);
    a->keys += a->keys < a->keys_end ? 64 : 0;
    a->values += a->values < a->values_end ? 64 : 0;
}

/* One line of values alone. */
TOY_KV__INLINE void toy_kv__ask_far(toy_kv__asked *a)
{
    TOY_KV__PREFETCH(a->values, 2);
    a->values += a->values < a->values_end ? 64 : 0;
}

/* ---- kernels ----
 *
 * A kernel's name is toy_kv__ <verb> [ _ <operand> ] _ <instruction set>:
 *
 *   verb             score, dot (queries meet codes), sum (weights meet codes), code and leave
 *                    (encoding), from (decoding), map and unmap (bases), fill and pack (what other
 *                    kernels read), turn (rotation), and what arithmetic calls itself
 *   operand          nibbles, scalars, wide: codes of 4 bits, one value each, any number of bits
 *                    bytes, words: arithmetic in 8 and 16 bits
 *                    books, tables, weights, queries, gains, basis: what is read
 *                    row, rows, tile: vectors one by one, [rows, BLOCK], [HEAD_DIM, BLOCK]
 *   instruction set  portable, avx2, avx512, neon (of neon_dot too, which has byte kernels besides)
 *
 * The lists below are all there are, in the order of the tables that dispatch goes by. Tests and
 * timings of single kernels (tests/kernel_check.c) go by them too. */
#define TOY_KV__KERNELS(X)                                                                           \
    X(score_nibbles)                                                                               \
    X(sum_nibbles)                                                                                 \
    X(score_scalars)                                                                               \
    X(sum_scalars)                                                                                 \
    X(scale_rows)                                                                                  \
    X(gain_scores)                                                                                 \
    X(gains)                                                                                       \
    X(add_row)                                                                                     \
    X(dot_row)                                                                                     \
    X(map)                                                                                         \
    X(unmap)                                                                                       \
    X(fill_tables)                                                                                 \
    X(largest)                                                                                     \
    X(exponentials)                                                                                \
    X(exact_scores)                                                                                \
    X(exact_sums)                                                                                  \
    X(reduce)                                                                                      \
    X(shrink)                                                                                      \
    X(turn_on)                                                                                     \
    X(nearest_wide)
#define TOY_KV__MAP_KERNELS(X)      X(map_basis) X(to_words) X(turn_words) X(map_words)
#define TOY_KV__BYTE_MAP_KERNELS(X) X(byte_basis) X(to_bytes) X(map_bytes)
#define TOY_KV__DOT_KERNELS(X)      X(dot_books) X(dot_queries) X(dot_scores)
#define TOY_KV__FILL_KERNELS(X)     X(fill_bytes)
#define TOY_KV__BYTE_KERNELS(X)                                                                      \
    X(pack_tables) X(score_bytes) X(pack_books) X(pack_weights) X(sum_bytes)
/* All of toy_kv__byte_ops; MAP, BYTE_MAP, FILL: X, or NO_KERNEL where an instruction set has none of
 * those. */
#define TOY_KV__ALL_BYTE_KERNELS(X, MAP, BYTE_MAP, FILL)                                             \
    TOY_KV__MAP_KERNELS(MAP)                                                                         \
    TOY_KV__BYTE_MAP_KERNELS(BYTE_MAP)                                                               \
    TOY_KV__DOT_KERNELS(X) TOY_KV__FILL_KERNELS(FILL) TOY_KV__BYTE_KERNELS(X)
#define TOY_KV__NO_KERNEL(name) NULL,
#define TOY_KV__DENSE_KERNELS(X)                                                                     \
    X(product)                                                                                     \
    X(add_scaled)                                                                                  \
    X(affine)                                                                                      \
    X(affine_row)                                                                                  \
    X(from_bytes)                                                                                  \
    X(from_nibbles)                                                                                \
    X(turn_tile)                                                                                   \
    X(score_tile)                                                                                  \
    X(sum_tile)                                                                                    \
    X(distances)                                                                                   \
    X(landmark_scores)
#define TOY_KV__CODE_KERNELS(X)                                                                      \
    X(code_nibbles) X(leave_nibbles) X(squares) X(load_rows) X(store_row) X(turn_row)

/* Kernels in 8-bit and 16-bit arithmetic, for blocks of 64 tokens and more. */
typedef struct toy_kv__byte_ops {
    /* The next four may be NULL, all of them: queries are mapped in fp32 then. */
    /* Some rows of a basis and of its mean, binary16 or NULL, which is one more column: words and
     * the scale of each column; COLUMNS(n_out) of them. */
    void (*map_basis)(toy_kv__matrix, const unsigned char *, const toy_kv__slice *, short *, float *);
    /* x [n] in words that count `unit` each. */
    void (*to_words)(const float *, int, float, short *);
    /* The same of x [2, pairs] turned back by cosines and sines [pairs]. */
    void (*turn_words)(const float *, const float *, const float *, int, float, short *);
    /* The first `columns` of y [m, stride] = the words x [m, n_in] times a basis, plus those of
     * base [rows, stride] or nothing; row i of x counts unit [i % rows], and has row i % rows of
     * the base. */
    void (*map_words)(const short *, int, int, const short *, const float *, int, const float *,
                      int, const float *, size_t, float *);
    /* The next three may be NULL, all of them: every latent is mapped in words then. */
    /* Some rows of a basis whose entries have one byte, without a mean: entries + 128 and the scale
     * of each column; BYTE_COLUMNS(n_out) of them. */
    void (*byte_basis)(toy_kv__matrix, const toy_kv__slice *, unsigned char *, float *);
    /* Words x [m, n_in] to bytes [m, BYTE_ROWS(n_in)], 32768 of a word to `steps` [i % rows] of a
     * byte; and 128 times the sum of each row. */
    void (*to_bytes)(const short *, int, int, const short *, int, signed char *, int32_t *);
    /* The same as map_words of such bytes x and what 128 too much of each entry adds up to. */
    void (*map_bytes)(const signed char *, const int32_t *, int, int, const unsigned char *,
                      const float *, int, const float *, int, const float *, size_t, float *);
    /* The next three may be NULL, all of them: keys are scored through tables then. Codewords of a
     * run of one channel a code, or where queries turn of two, four or more: table [groups, 64]
     * bytes and the scale of each channel [4 * groups]; those of more than one are for fill_bytes
     * where there is one. */
    void (*dot_books)(const toy_kv__run *, unsigned char *, float *);
    /* Queries in latents [rows, stride], from the run's first on, to lanes [rows, groups, 4] bytes
     * and units [rows, 2]: what a step of a score is worth, and the sum that stands for 0. Adds to
     * energy [rows], if not NULL, the mean square that the run's scores will have. */
    void (*dot_queries)(const toy_kv__run *, const float *, const float *, size_t, int,
                        unsigned char *, float *, float *);
    /* s [blocks, rows, BLOCK] = (add ? s : 0) + the scores of a run: block pointers, offset of the
     * run in each, table, lanes, units; what to ask for meanwhile. */
    void (*dot_scores)(const unsigned char *const *, size_t, int, const toy_kv__run *,
                       const unsigned char *, const unsigned char *, const float *, int, int,
                       toy_kv__asked *, float *);
    /* May be NULL: where queries turn, codes of an even number of channels meet them themselves
     * then. Packed score tables of such a run, of which toy_kv__fillable() says so: what dot_books
     * left, queries in latents [rows, stride], from the run's first on; adds to energy. */
    void (*fill_bytes)(const toy_kv__run *, const unsigned char *, const float *, const float *,
                       size_t, int, float *, toy_kv__packed *, signed char *);
    /* Packs score tables [planes, rows, 16] of fp32; energy [rows]: the mean square of scores that
     * are added to theirs. */
    void (*pack_tables)(const float *, int, int, const float *, toy_kv__packed *, signed char *);
    /* s [blocks, rows, BLOCK] = (add ? s : 0) + the scores of consecutive planes: block pointers,
     * offset of the first plane in each. */
    void (*score_bytes)(const unsigned char *const *, size_t, int, int, const toy_kv__packed *,
                        const signed char *, int, int, toy_kv__asked *, float *);
    /* Codewords [n, 16] of binary16 to 8 bits, and the scale of each sixteen. */
    void (*pack_books)(const unsigned char *, int, signed char *, float *);
    /* Weights p [blocks, rows, BLOCK] * gain [blocks, BLOCK] >= 0 of fp32 to 8 bits with a scale a
     * row; if `rest` is not NULL, it gets what is left, in units of scale / rest. */
    void (*pack_weights)(const float *, const float *, int, int, unsigned char *, unsigned char *,
                         float *);
    /* sums [rows, stride] += weight * codeword of one run, over the tokens of `blocks` blocks:
     * block pointers, offset of the run in each; what to ask for meanwhile. */
    void (*sum_bytes)(const unsigned char *const *, size_t, int, const toy_kv__run *,
                      const signed char *, const float *, const unsigned char *, const float *, int,
                      toy_kv__asked *, float *, size_t);
    float rest; /* what is left of a weight counts scale / rest */
    /* A probability above this part of its row's sum so far is worth the rest as well. */
    float fine;
} toy_kv__byte_ops;

/* Kernels over tiles of a block: rows are channels, each of BLOCK tokens. */
typedef struct toy_kv__dense_ops {
    /* y [n_out, BLOCK] += x [n_in, BLOCK] through a table: input i counts for output o by its entry
     * i * ld + o, or o * ld + i if `across`. */
    void (*product)(toy_kv__matrix, size_t, int, int, int, const float *, float *);
    /* y [n] += a * x */
    void (*add_scaled)(size_t, float, const float *, float *);
    /* x [rows, BLOCK] = shift [BLOCK] + scale [BLOCK] * x */
    void (*affine)(const float *, const float *, int, float *);
    /* x [n] = shift + scale * x */
    void (*affine_row)(int, float, float, float *);
    /* dst [BLOCK] = bytes + bias */
    void (*from_bytes)(const unsigned char *, float, float *);
    /* dst [width, BLOCK], or what is added to it, = codewords of a plane of nibbles. */
    void (*from_nibbles)(const unsigned char *, const unsigned char *, int, int, float *);
    /* Turns x [HEAD_DIM, BLOCK] by angles of the block, and of each token if not NULL, to y. */
    void (*turn_tile)(const float *, const float *, float, const float *, float *);
    /* s [rows, BLOCK] = q [rows, HEAD_DIM] . k [HEAD_DIM, BLOCK] */
    void (*score_tile)(const float *, const float *, int, float *);
    /* acc [rows, stride, LANES] += p [rows, BLOCK] * v [HEAD_DIM, BLOCK] */
    void (*sum_tile)(const float *, const float *, int, float *, size_t);
    /* Squared distances of z [width] to `count` of the n codewords, binary16 [width, n]. */
    void (*distances)(const unsigned char *, int, int, int, const float *, float *);
    /* best [n] = the most that a query [rows, HEAD_DIM] scores with bytes [n, HEAD_DIM] - 128. */
    void (*landmark_scores)(const unsigned char *, int, const float *, int, float *);
} toy_kv__dense_ops;

/* Kernels of encoding. */
typedef struct toy_kv__code_ops {
    /* A plane of nibbles: the nearest of 16 codewords, binary16 [width, 16], to each token of z
     * [width, BLOCK], the lower one on ties. Room for [width + 1, 16] floats. */
    void (*code_nibbles)(const unsigned char *, int, const float *, float *, unsigned char *);
    /* z [width, BLOCK] -= codewords of a plane of nibbles. */
    void (*leave_nibbles)(const unsigned char *, const unsigned char *, int, float *);
    /* sum [BLOCK] of the squares of x [rows, BLOCK] */
    void (*squares)(const float *, int, float *);
    /* x [HEAD_DIM, BLOCK] from binary16 [BLOCK, HEAD_DIM] */
    void (*load_rows)(const unsigned char *, float *);
    /* Binary16 [n] from x [n]. */
    void (*store_row)(const float *, int, unsigned char *);
    /* Turns x [HEAD_DIM] by cosines and sines [N_ROT / 2]. */
    void (*turn_row)(const float *, const float *, float *);
} toy_kv__code_ops;

typedef struct toy_kv__ops {
    int lanes;
    void (*score_nibbles)(const unsigned char *, int, const float *, int, float *);
    void (*sum_nibbles)(const unsigned char *, int, int, int, const float *, const float *, int,
                        float *, size_t);
    void (*score_scalars)(const unsigned char *, int, int, const float *, int, toy_kv__asked *,
                          float *);
    void (*sum_scalars)(const unsigned char *, int, int, const float *, int, float *, size_t);
    void (*scale_rows)(const float *, const float *, int, float *);
    void (*gain_scores)(const float *, const float *, const float *, int, float *, float *);
    void (*gains)(const unsigned char *, const unsigned char *, float *);
    void (*add_row)(const unsigned char *, int, float, float *);
    float (*dot_row)(const unsigned char *, int, const float *);
    void (*map)(toy_kv__matrix, int, int, const float *, int, int, float *);
    void (*unmap)(toy_kv__matrix, int, int, float *, int, float *);
    void (*fill_tables)(const toy_kv__run *, const float *, size_t, int, float *);
    float (*largest)(const float *, int, size_t);
    float (*exponentials)(float *, int, size_t, float);
    void (*exact_scores)(const unsigned char *, int, const float *, int, float *);
    void (*exact_sums)(const unsigned char *, int, const float *, int, float *);
    void (*reduce)(const float *, int, float *);
    void (*shrink)(float *, size_t, float);
    void (*turn_on)(const float *, const float *, int, float *, float *);
    int (*nearest_wide)(const unsigned char *, int, int, const float *);
    const toy_kv__byte_ops *bytes; /* NULL: none */
    const toy_kv__dense_ops *dense;
    const toy_kv__code_ops *code;
} toy_kv__ops;

/* A vector on the exact list (exceptions.h): the next of its chain, its token in the block. */
typedef struct toy_kv__link {
    int32_t next, token;
} toy_kv__link;

/* Where a block of a sequence lies in the pool, and the position of its first token. */
typedef struct toy_kv__entry {
    int32_t block, position;
} toy_kv__entry;

typedef struct toy_kv__seq {
    int32_t n_sealed; /* encoded blocks */
    int32_t target;   /* tokens of every layer when the step in progress is complete */
    int32_t n_tokens[TOY_KV_N_LAYERS];
} toy_kv__seq;

struct toy_kv {
    uint64_t magic;
    toy_kv_config config;
    int32_t ring;         /* tokens of the exact window behind the sinks, a multiple of the block */
    int32_t seq_blocks;   /* entries of a sequence's block table */
    int32_t n_free, next; /* free blocks; where to look for the next one */
    int32_t n_kept, kept_free; /* vectors on the exact list; the first free place, 0: none */
    /* offsets from here */
    uint64_t seqs, tables, references, kept_firsts, kept_links, kept_rows, exact, pool;
    uint64_t work, turns, bytes;
};

/* Tokens that share a landmark, and their number in a block; without landmarks a whole block. */
#define TOY_KV__CHUNK  (TOY_KV_LANDMARKS > 0 ? TOY_KV_LANDMARKS : TOY_KV_BLOCK)
#define TOY_KV__CHUNKS (TOY_KV_BLOCK / TOY_KV__CHUNK)
/* Of one layer and KV head in a block (landmarks.h). */
#define TOY_KV__LANDMARK_BYTES (TOY_KV_LANDMARKS > 0 ? TOY_KV__CHUNKS * (TOY_KV_HEAD_DIM + 3) : 0)
/* Whether vectors are kept exactly where their error is too large (exceptions.h). */
#define TOY_KV__KEEPS (TOY_KV_MAX_ERROR > 0.0f)
#define TOY_KV__SLOTS (2 * TOY_KV_N_LAYERS * TOY_KV_N_KV_HEADS) /* heads with keys or values */
/* Of a block in the pool, and what heads its chains on the exact list. */
#define TOY_KV__POOL_BYTES                                                                           \
    ((uint64_t)TOY_KV__BLOCK_BYTES +                                                                 \
     (uint64_t)TOY_KV_N_LAYERS * TOY_KV_N_KV_HEADS * (uint64_t)TOY_KV__LANDMARK_BYTES)
#define TOY_KV__CHAIN_BYTES (TOY_KV__KEEPS ? sizeof(int32_t) * (size_t)TOY_KV__SLOTS : 0)

#define TOY_KV__MAGIC      0x31766b7176716b76u
#define TOY_KV__ALIGNED(n) (((uint64_t)(n) + 63u) / 64u * 64u)

/* What the model's rotation multiplies by besides turning (YaRN). */
#define TOY_KV__ROPE_SCALE 1.000000000e+00f
/* The part of all vectors that the exact list has room for by default. */
#define TOY_KV__KEPT_SHARE 2.600000000e-01

/* The most that any stream or head needs. */
#define TOY_KV__N_STREAMS 7
#define TOY_KV__BLOCK_BYTES 3024
#define TOY_KV__MAX_IN 48
#define TOY_KV__MAX_LATENTS 24
#define TOY_KV__MAX_OUT_LATENTS 0
#define TOY_KV__MAX_WIDTH 8
#define TOY_KV__MAX_LUT 288
#define TOY_KV__MAX_BOOK 384
#define TOY_KV__MAX_WIDE_LUT 0
#define TOY_KV__MAX_WIDE_BINS 0
#define TOY_KV__MAX_SUM_LATENTS 32
#define TOY_KV__MAX_RUNS 7
#define TOY_KV__MAX_USES 2
#define TOY_KV__MAX_DOT_GROUPS 16
#define TOY_KV__MAX_COLUMNS 48
#define TOY_KV__MAX_STAGES 2
#define TOY_KV__MAX_BEAM 1
#define TOY_KV__MAX_RANK 0
#define TOY_KV__N_PREDICTIONS 0
#define TOY_KV__N_SLOTS 1
#define TOY_KV__REBUILDS 0
#define TOY_KV__TURN_FLOATS 0

/* Rotation of each pair in radians a token: bits of a double */
static const uint64_t toy_kv__rope_bits[] = {
    0x3ff0000000000000u, 0x3fd0000000000000u, 0x3fb3b13b13b13b14u, 0x3fa2492492492492u,
    0x3f94e5e0a72f0539u, 0x3f8af286bca1af28u, 0x3f82c9fb4d812ca0u, 0x3f7bacf914c1bad0u,
};

/* Tokens of the span at whose first one a pair of a blockwise frame counts as un-rotated; 0: it
 * stays as it is. */
static const int toy_kv__spans[] = {
    32, 32, 32, 32, 32, 32, 32, 32,
};

/* The rows of each stream: part, layer, KV head */
static const toy_kv__member toy_kv__members[] = {
    {0, 0, 0}, {0, 1, 0}, {0, 2, 0}, {0, 0, 0}, {0, 1, 0}, {0, 2, 0}, {1, 0, 0}, {1, 1, 0},
    {1, 2, 0}, {1, 0, 0},
};

/* The streams of each head, by part, layer and head: stream, row */
static const toy_kv__use toy_kv__uses[] = {
    {0, 0}, {1, 0}, {0, 1}, {2, 0}, {0, 2}, {3, 0}, {4, 0}, {6, 0}, {4, 1}, {5, 0},
};
static const int toy_kv__use_first[] = {
    0, 2, 4, 6, 8, 9, 10,
};

/* K and V of each layer, behind what they are predicted from: part, layer; rebuilt, source;
 * slot, prediction, last stream */
static const toy_kv__node toy_kv__nodes[] = {
    {0, 0, 0, 0, 0, -1, 1}, {0, 1, 0, 0, 0, -1, 2}, {0, 2, 0, 0, 0, -1, 3}, {1, 1, 0, 0, 0, -1, 4},
    {1, 2, 0, 0, 0, -1, 5}, {1, 0, 0, 0, 0, -1, 6},
};
static const int toy_kv__node_at[] = {
    0, 1, 2, 5, 3, 4,
};

/* sources; per head, rank; bias, map, out */
static const toy_kv__prediction toy_kv__predictions[] = {
    {0, {0, 0}, 0, 0, 0, 0, 0},
};

/* coder, uniform, stages, beam, bits, words, steady, width; first latent, planes, codes; book, its step; gain */
static const toy_kv__run toy_kv__runs[] = {
    {TOY_KV__NIBBLES, 0, 2, 1, 4, 1, 0, 1, 0, 8, 32, 2352, 32, 0},
    {TOY_KV__NIBBLES, 0, 1, 1, 4, 1, 0, 2, 4, 2, 160, 2480, 0, 0},
    {TOY_KV__NIBBLES, 0, 2, 1, 4, 1, 0, 4, 8, 2, 192, 2512, 128, 0},
    {TOY_KV__NIBBLES, 0, 1, 1, 4, 1, 0, 8, 12, 1, 224, 2640, 128, 0},
    {TOY_KV__NIBBLES, 1, 1, 1, 4, 1, 0, 1, 20, 4, 240, 4496, 0, 0},
    {TOY_KV__BYTES, 1, 1, 1, 8, 1, 0, 1, 0, 8, 128, 0, 0, 0},
    {TOY_KV__BYTES, 1, 1, 1, 8, 1, 0, 1, 8, 8, 384, 0, 0, 1},
    {TOY_KV__BYTES, 1, 1, 1, 8, 1, 0, 1, 0, 16, 64, 0, 0, 0},
    {TOY_KV__BYTES, 1, 1, 1, 8, 1, 0, 1, 0, 16, 0, 0, 0, 0},
    {TOY_KV__NIBBLES, 0, 2, 1, 4, 1, 0, 1, 0, 8, 32, 3872, 32, 0},
    {TOY_KV__NIBBLES, 0, 1, 1, 4, 1, 0, 2, 4, 2, 160, 4000, 0, 0},
    {TOY_KV__NIBBLES, 0, 2, 1, 4, 1, 0, 4, 8, 2, 192, 4032, 128, 0},
    {TOY_KV__NIBBLES, 1, 1, 1, 4, 1, 0, 1, 12, 4, 224, 4496, 0, 0},
    {TOY_KV__NIBBLES, 0, 2, 1, 4, 1, 0, 1, 0, 8, 32, 4320, 32, 0},
    {TOY_KV__NIBBLES, 0, 1, 1, 4, 1, 0, 2, 4, 2, 160, 4448, 0, 0},
    {TOY_KV__BYTES, 1, 1, 1, 8, 1, 0, 1, 0, 16, 0, 0, 0, 0},
};

/* frame, transform, gain, bytes of it, of the basis; members, first; n_in, n_latents, steady; mean, enc, dec;
 * gains, width, table, tokens; outliers, spread, place; first run, runs; bytes, start */
static const toy_kv__stream toy_kv__streams[] = {
    {TOY_KV__BLOCKWISE, TOY_KV__BASIS, TOY_KV__RMS, 1, 2, 3, 0, 48, 24, 0, 0, 48, 1200, 1, 24, 4512, 1, 0, -1, 32, 0, 5, 304, 0}, /* shared */
    {TOY_KV__BLOCKWISE, TOY_KV__IDENTITY, TOY_KV__ABSMAX, 2, 2, 1, 3, 16, 16, 0, 2768, -1, -1, 2, 8, 0, 1, 0, -1, 128, 5, 2, 640, 304}, /* own */
    {TOY_KV__BLOCKWISE, TOY_KV__IDENTITY, TOY_KV__RMS, 2, 2, 1, 4, 16, 16, 0, 2784, -1, -1, 1, 16, 0, 1, 0, -1, 64, 7, 1, 576, 944}, /* own */
    {TOY_KV__BLOCKWISE, TOY_KV__IDENTITY, TOY_KV__NO_GAIN, 0, 2, 1, 5, 16, 16, 0, 2800, -1, -1, 0, 16, 0, 1, 0, -1, 0, 8, 1, 512, 1520}, /* own */
    {TOY_KV__POST, TOY_KV__BASIS, TOY_KV__RMS, 1, 2, 2, 6, 32, 16, 0, 2816, 2848, 3360, 1, 16, 4768, 1, 0, -1, 32, 9, 4, 288, 2032}, /* shared */
    {TOY_KV__POST, TOY_KV__BASIS, TOY_KV__RMS, 1, 1, 1, 8, 16, 8, 0, 4160, 4176, 4248, 1, 8, 5024, 1, 0, -1, 32, 13, 2, 192, 2320}, /* shared */
    {TOY_KV__POST, TOY_KV__IDENTITY, TOY_KV__NO_GAIN, 0, 2, 1, 9, 16, 16, 0, 4480, -1, -1, 0, 16, 0, 1, 0, -1, 0, 15, 1, 512, 2512}, /* own */
};

/* Bases, means and codebooks: binary16, four to a little-endian word; or scales in
 * binary16 and bytes. */
static const uint64_t toy_kv__tables[] = {
    /* mean [1, 48] */
    0xac951da23565a741u, 0xb68c3612b6d73598u, 0xb3569b80349a30d3u, 0x2ef9b438b395b78cu,
    0x290eb64a323d31bcu, 0x311236f4a64a3784u, 0x3164b0f1b238333bu, 0x19ebb045b415ae84u,
    0x34b3b4082e362a72u, 0x2f59375cace1b7aeu, 0x353eb61a35b335f5u, 0x2b95b3fc3057b34du,
    /* enc [48, 24] */
    0xb2edaea12a68ab1fu, 0xb084301030cab3aau, 0x2829ad662f48afacu, 0x2c66aa4313643251u,
    0x2a4b96f3ad3ab070u, 0xb12fb1ca306b25d3u, 0xb276b15aa9c03052u, 0xb49c2a88349931fcu,
    0xa751aa1e2cf6b468u, 0xa4b6323a28eeb088u, 0x242eb1e1b34c29afu, 0xb1cdaba0a8faad27u,
    0xb103aca2b0f22e47u, 0x31b7ac98a6642ac3u, 0x280929bdb35c2c1fu, 0x2d7fa95cae95abddu,
    0x3233b5beb4412838u, 0x9f80b3122a553270u, 0x2ee2ad77301130d5u, 0x0696b3f8acefb2b3u,
    0xb1beafeab208ae6au, 0x9efcac0c2c8db29fu, 0xb28c9dd8a8bfa718u, 0xab29a86fa3cc2ef4u,
    0x2381b2452f57b357u, 0xae92b20ab293b089u, 0xb380ac9f2063ac55u, 0xaf51b356336eb118u,
    0x2ed0adc82bdf2fc7u, 0xac43a63bb1d82cb2u, 0xae19b25c2b90326eu, 0xafc82502b08330c1u,
    0xb2dd2a5c30122d98u, 0x3124304fb24e2913u, 0x2ec1a76cb09fa9a6u, 0x2ce0333831fdb0dfu,
    0x2d7a2eaf3189a9d6u, 0xaba63289b16e2382u, 0xb4cb258db0c22fbfu, 0xa8d6314f302586c5u,
    0x2f93b2fc3293adceu, 0x345cb36e2f4e2e5bu, 0xb2eba8621dd632d2u, 0xaf86312d32cfb1ffu,
    0x2bd3ad28b1032d12u, 0x2bb132923572b356u, 0xb0fbac6428262daau, 0x10162f1eadcb97e9u,
    0xb0dda7b42d1e284cu, 0x2b42ad8c16882bfeu, 0xb335b24231c72eb4u, 0x3404288131703377u,
    0xaeff3025b06b2febu, 0x31f32ec1b0ddac9eu, 0xb0e62d4fab6a27bfu, 0x3304b4252574af00u,
    0x2dbf26b7b37d315du, 0xb2e52f26a8faaebfu, 0x2cf2298f2c6f3198u, 0x29ab2c4d334fb043u,
    0xa8d4a6e830cfab79u, 0xb400a97baf43305au, 0xb22c26e7aea33009u, 0xb379328fb450a809u,
    0xb12eadc1b3bc347du, 0x2a2722541973209au, 0xb2b9a8e333812fb7u, 0x2dd4b30ba642aaf8u,
    0x305cb0bfa7bbab67u, 0xb0413066b21aa9fdu, 0x04263532af41ae0bu, 0x2de3311bb4352e72u,
    0x2cc533a22f302fabu, 0xb1ec3245b2e1af4cu, 0x3048b2c1b247321fu, 0x31d2309d31252ccbu,
    0x2c2f2d4cb064b2afu, 0xb49c9959b2272cf4u, 0x2ccab1a72605ab02u, 0xb195b1b92346b35cu,
    0x2933324db3f6b11eu, 0xa9cb33feb37631b6u, 0x31adaf3c2a3f253eu, 0xb08fa1cbb499b095u,
    0x256431dc2c172910u, 0x9e75302a3148b1c6u, 0xad15b0efb0e2ac60u, 0x30203378265f280du,
    0xa666a81c30f02fc5u, 0x300f2fab3154a8e7u, 0x3012301c3209b3dcu, 0xb4b125283348313du,
    0xaaa62fdcb45e3042u, 0xadebaf78ad7d3038u, 0x2e8433a4b035a8cdu, 0x2024249631192b6cu,
    0xae5b3078b3e9af7au, 0x2afcb133ac872cc5u, 0xab012eea2c14b09au, 0xac0b32ba31ea2c05u,
    0xafeba8d530792f5cu, 0xb59834d8321b2d5du, 0xb02fabe9b142325cu, 0x2bab2ef3305c2662u,
    0xae35b29e2f083026u, 0xb1f3b1dd2b013198u, 0x3101abad311c3474u, 0x3055b149b384ab7fu,
    0xb40c34933225327du, 0x31a2287ca74d2a44u, 0xb50b311cad8c29f1u, 0xa99cb012aa28ae26u,
    0xb1eaaf70aae7ab3bu, 0xb1ecb0cbae31a24fu, 0x310033ad317ab227u, 0x258f31ac326326b8u,
    0x2fbfafa22727b024u, 0xafef2df8b0992e34u, 0xb30db14b2973319du, 0x2b24b111b17428a1u,
    0x3058b355a8781a95u, 0x330434a4ae662c26u, 0x2c71b201b23daf59u, 0x2a5c27f2af322934u,
    0x3022b1ee281b30a5u, 0x26f1327331153071u, 0xa93e30adb23baf59u, 0x310731b732c6b0f1u,
    0xb3662c95ab51ab93u, 0xa667aa20b413aee6u, 0x343d30ce96d7ad11u, 0xaebb327fb52a3216u,
    0xb2b32d32ad1e32cbu, 0xaf3026f0b2bbb3a5u, 0x245932aaa8221f30u, 0xb069b097a9472d1au,
    0x29c331a42ea32fd6u, 0xae76ae9831fe322bu, 0x30b631fe306c2e9cu, 0x1a9b2d41b3122729u,
    0xb525a688328ca645u, 0x0c922abea753ade0u, 0x2ff42b12ac4930cbu, 0xae10323fab1a1fffu,
    0x340b32e5b29c33d0u, 0xad54aff9ac462fd5u, 0xac09b438a9dcb0b9u, 0xa90c21faa84131b6u,
    0x306c2d5b2267311du, 0xb2fead5fa1a6b359u, 0xa42229d8b291b25bu, 0xaa88ae43b1bba0d5u,
    0xac54299caece2c1du, 0x300c32652f543329u, 0xaf3f9b79acfb308bu, 0xaf60b023a0f43323u,
    0xac41af34b04a2b0cu, 0x2b012e5cae01aa43u, 0xb1772fa2af52b0dfu, 0xab86350dadcf2888u,
    0xac88302a3084ae9fu, 0x33dcac2023cdb10bu, 0x0b0f3122b3bcaa93u, 0xb0efb01eae4c3028u,
    0x24fb310633ccae12u, 0xab4e2af3214b293au, 0xb078ad591679af50u, 0x342b2c9cb07930a0u,
    0x294831e631aaa72fu, 0x9c53b2ca2e56ac10u, 0x3020ada232cb3058u, 0x309b2ca7b39eb278u,
    0xa32bb58030c9ac94u, 0x24fd328b1813330au, 0xb35c335d32beb32bu, 0x32579ca8af4c0fc1u,
    0x935badcb2d1ab582u, 0xaddc2ff332802a52u, 0x36b9a8a3b20db281u, 0x2c7324b530b9b0b9u,
    0xb04f3196a102ab5eu, 0xb063adb3aeac3152u, 0x30e3afb2b418b3ddu, 0x9f4bb1b62d49b1a6u,
    0xafd931f8a81e2c21u, 0x3459ace7238ca82bu, 0xa685ad21af1ab1ceu, 0xb0f5aabb2e89311cu,
    0xab65b16fa170342au, 0xa9343099312ab041u, 0x346230a232772e6eu, 0xa8dd2e05ab0e32a0u,
    0x17a5ac60b2b8afc8u, 0x290c2f2c2c6530b9u, 0xb0e52ecfb172329du, 0x2cc2aa19281db42du,
    0x2be82e77ae6ab13bu, 0x28722957b061b34cu, 0x32d43156b2562ca7u, 0xb00b298d3296b22cu,
    0xab88a4252b74aad8u, 0x1d13ae5425aeb400u, 0x26b02d02b668309eu, 0x2e842c9234cb2c62u,
    0xb2f9aa17a4d1b04du, 0xaac2ae3231b52d77u, 0xad6aabafaf24319eu, 0xb17c202131533316u,
    0xafe8b00ea56fb46fu, 0xa21630c92cd62b6au, 0x27d52ecbb396af53u, 0x2cfa2257aa419acdu,
    0xb015b0b2b0c7b120u, 0xb1c7adac2b65ae5bu, 0xade9b43cae7cafcbu, 0x20033042b073adc2u,
    0x32c3aa28282b33c7u, 0x3028ac4e300f2c0eu, 0xaf0c331eb200ad4au, 0x3310aeba2e583193u,
    0xadbf13d12a73b283u, 0x206b319d24c22ed0u, 0xb22c3028aec13098u, 0x2697abdd2c4f2c4fu,
    0xac84b4b82718310eu, 0xb109a791b3c23107u, 0x2a861e6b9b36b088u, 0xa35daac830a3332fu,
    0x25e0265eafb3b0ccu, 0x32d12c542e48b0d9u, 0xb0532c8233492b5au, 0x27873571aa25b1c3u,
    0xb0b733bca852a9ceu, 0xac2db5dc292528bcu, 0xaf40af423106b2a4u, 0x32b5a244add73083u,
    0x2f05ae1aab0e2d25u, 0x34031ca6acfdb25du, 0x918e2d7d278f332du, 0xb2afac202e1aae4au,
    0x2fc5ad27306f2469u, 0x33ae25a02f7db415u, 0x24352d8ca3b02df1u, 0xb4752a42325f330cu,
    0xa6d728b5b3783265u, 0x304b32b8a5982288u, 0x261631652c2cae29u, 0x315bb47d3404284eu,
    0xae823084a7cf2f00u, 0x3426a94f2cb631e9u, 0x2c79ae79b08e31d3u, 0xaa45b003abdab1bau,
    0xab4f267c2ce2ae60u, 0xb15ba52f2f6cb329u, 0xb250ad102adf2b85u, 0xacc5b212affca8fau,
    0xac30ac4e34d4acc9u, 0xb0b12dff31f1b63eu, 0x2fa82fdeafc62f03u, 0xb040b433ac53b365u,
    0x30c4270b2dc233c2u, 0x28ab30322c80ae61u, 0x3420b0a1abc9af3du, 0x327eaecfa81ab20eu,
    0x323bab4c2b42315fu, 0x2e69b4d733b432e8u, 0xb126b248aecfb17au, 0x9f0c30ee2735ac1au,
    0x2b0d30233262b078u, 0x1a72b1f32cf52e85u, 0x2f6db430aa8eb1b6u, 0xa0c9aff0a4eab437u,
    0xb32db4622bc6ac3fu, 0x2cb5abd4acb42c7bu, 0xac9825beb175aec2u, 0x29e2ae102f793140u,
    0x33a7ada4a91c2268u, 0x31da2bb7af482deeu, 0x2f1ab17029d833e4u, 0xb5a32d9925c4a19du,
    0xb1e2a687b154b38eu, 0xb2cfa800282bb288u, 0x3079af4c33b43133u, 0x95ea2158300b30c9u,
    0x2122340331e7a977u, 0xb49a2a83337caf2au, 0x3230a0d2226b210eu, 0xb040ae53291b31a2u,
    /* dec [48, 24] */
    0xb2edaea12a68ab1fu, 0xb084301030cab3aau, 0x2829ad662f48afacu, 0x2c66aa4313643251u,
    0x2a4b96f3ad3ab070u, 0xb12fb1ca306b25d3u, 0xb276b15aa9c03052u, 0xb49c2a88349931fcu,
    0xa751aa1e2cf6b468u, 0xa4b6323a28eeb088u, 0x242eb1e1b34c29afu, 0xb1cdaba0a8faad27u,
    0xb103aca2b0f22e47u, 0x31b7ac98a6642ac3u, 0x280929bdb35c2c1fu, 0x2d7fa95cae95abddu,
    0x3233b5beb4412838u, 0x9f80b3122a553270u, 0x2ee2ad77301130d5u, 0x0696b3f8acefb2b3u,
    0xb1beafeab208ae6au, 0x9efcac0c2c8db29fu, 0xb28c9dd8a8bfa718u, 0xab29a86fa3cc2ef4u,
    0x2381b2452f57b357u, 0xae92b20ab293b089u, 0xb380ac9f2063ac55u, 0xaf51b356336eb118u,
    0x2ed0adc82bdf2fc7u, 0xac43a63bb1d82cb2u, 0xae19b25c2b90326eu, 0xafc82502b08330c1u,
    0xb2dd2a5c30122d98u, 0x3124304fb24e2913u, 0x2ec1a76cb09fa9a6u, 0x2ce0333831fdb0dfu,
    0x2d7a2eaf3189a9d6u, 0xaba63289b16e2382u, 0xb4cb258db0c22fbfu, 0xa8d6314f302586c5u,
    0x2f93b2fc3293adceu, 0x345cb36e2f4e2e5bu, 0xb2eba8621dd632d2u, 0xaf86312d32cfb1ffu,
    0x2bd3ad28b1032d12u, 0x2bb132923572b356u, 0xb0fbac6428262daau, 0x10162f1eadcb97e9u,
    0xb0dda7b42d1e284cu, 0x2b42ad8c16882bfeu, 0xb335b24231c72eb4u, 0x3404288131703377u,
    0xaeff3025b06b2febu, 0x31f32ec1b0ddac9eu, 0xb0e62d4fab6a27bfu, 0x3304b4252574af00u,
    0x2dbf26b7b37d315du, 0xb2e52f26a8faaebfu, 0x2cf2298f2c6f3198u, 0x29ab2c4d334fb043u,
    0xa8d4a6e830cfab79u, 0xb400a97baf43305au, 0xb22c26e7aea33009u, 0xb379328fb450a809u,
    0xb12eadc1b3bc347du, 0x2a2722541973209au, 0xb2b9a8e333812fb7u, 0x2dd4b30ba642aaf8u,
    0x305cb0bfa7bbab67u, 0xb0413066b21aa9fdu, 0x04263532af41ae0bu, 0x2de3311bb4352e72u,
    0x2cc533a22f302fabu, 0xb1ec3245b2e1af4cu, 0x3048b2c1b247321fu, 0x31d2309d31252ccbu,
    0x2c2f2d4cb064b2afu, 0xb49c9959b2272cf4u, 0x2ccab1a72605ab02u, 0xb195b1b92346b35cu,
    0x2933324db3f6b11eu, 0xa9cb33feb37631b6u, 0x31adaf3c2a3f253eu, 0xb08fa1cbb499b095u,
    0x256431dc2c172910u, 0x9e75302a3148b1c6u, 0xad15b0efb0e2ac60u, 0x30203378265f280du,
    0xa666a81c30f02fc5u, 0x300f2fab3154a8e7u, 0x3012301c3209b3dcu, 0xb4b125283348313du,
    0xaaa62fdcb45e3042u, 0xadebaf78ad7d3038u, 0x2e8433a4b035a8cdu, 0x2024249631192b6cu,
    0xae5b3078b3e9af7au, 0x2afcb133ac872cc5u, 0xab012eea2c14b09au, 0xac0b32ba31ea2c05u,
    0xafeba8d530792f5cu, 0xb59834d8321b2d5du, 0xb02fabe9b142325cu, 0x2bab2ef3305c2662u,
    0xae35b29e2f083026u, 0xb1f3b1dd2b013198u, 0x3101abad311c3474u, 0x3055b149b384ab7fu,
    0xb40c34933225327du, 0x31a2287ca74d2a44u, 0xb50b311cad8c29f1u, 0xa99cb012aa28ae26u,
    0xb1eaaf70aae7ab3bu, 0xb1ecb0cbae31a24fu, 0x310033ad317ab227u, 0x258f31ac326326b8u,
    0x2fbfafa22727b024u, 0xafef2df8b0992e34u, 0xb30db14b2973319du, 0x2b24b111b17428a1u,
    0x3058b355a8781a95u, 0x330434a4ae662c26u, 0x2c71b201b23daf59u, 0x2a5c27f2af322934u,
    0x3022b1ee281b30a5u, 0x26f1327331153071u, 0xa93e30adb23baf59u, 0x310731b732c6b0f1u,
    0xb3662c95ab51ab93u, 0xa667aa20b413aee6u, 0x343d30ce96d7ad11u, 0xaebb327fb52a3216u,
    0xb2b32d32ad1e32cbu, 0xaf3026f0b2bbb3a5u, 0x245932aaa8221f30u, 0xb069b097a9472d1au,
    0x29c331a42ea32fd6u, 0xae76ae9831fe322bu, 0x30b631fe306c2e9cu, 0x1a9b2d41b3122729u,
    0xb525a688328ca645u, 0x0c922abea753ade0u, 0x2ff42b12ac4930cbu, 0xae10323fab1a1fffu,
    0x340b32e5b29c33d0u, 0xad54aff9ac462fd5u, 0xac09b438a9dcb0b9u, 0xa90c21faa84131b6u,
    0x306c2d5b2267311du, 0xb2fead5fa1a6b359u, 0xa42229d8b291b25bu, 0xaa88ae43b1bba0d5u,
    0xac54299caece2c1du, 0x300c32652f543329u, 0xaf3f9b79acfb308bu, 0xaf60b023a0f43323u,
    0xac41af34b04a2b0cu, 0x2b012e5cae01aa43u, 0xb1772fa2af52b0dfu, 0xab86350dadcf2888u,
    0xac88302a3084ae9fu, 0x33dcac2023cdb10bu, 0x0b0f3122b3bcaa93u, 0xb0efb01eae4c3028u,
    0x24fb310633ccae12u, 0xab4e2af3214b293au, 0xb078ad591679af50u, 0x342b2c9cb07930a0u,
    0x294831e631aaa72fu, 0x9c53b2ca2e56ac10u, 0x3020ada232cb3058u, 0x309b2ca7b39eb278u,
    0xa32bb58030c9ac94u, 0x24fd328b1813330au, 0xb35c335d32beb32bu, 0x32579ca8af4c0fc1u,
    0x935badcb2d1ab582u, 0xaddc2ff332802a52u, 0x36b9a8a3b20db281u, 0x2c7324b530b9b0b9u,
    0xb04f3196a102ab5eu, 0xb063adb3aeac3152u, 0x30e3afb2b418b3ddu, 0x9f4bb1b62d49b1a6u,
    0xafd931f8a81e2c21u, 0x3459ace7238ca82bu, 0xa685ad21af1ab1ceu, 0xb0f5aabb2e89311cu,
    0xab65b16fa170342au, 0xa9343099312ab041u, 0x346230a232772e6eu, 0xa8dd2e05ab0e32a0u,
    0x17a5ac60b2b8afc8u, 0x290c2f2c2c6530b9u, 0xb0e52ecfb172329du, 0x2cc2aa19281db42du,
    0x2be82e77ae6ab13bu, 0x28722957b061b34cu, 0x32d43156b2562ca7u, 0xb00b298d3296b22cu,
    0xab88a4252b74aad8u, 0x1d13ae5425aeb400u, 0x26b02d02b668309eu, 0x2e842c9234cb2c62u,
    0xb2f9aa17a4d1b04du, 0xaac2ae3231b52d77u, 0xad6aabafaf24319eu, 0xb17c202131533316u,
    0xafe8b00ea56fb46fu, 0xa21630c92cd62b6au, 0x27d52ecbb396af53u, 0x2cfa2257aa419acdu,
    0xb015b0b2b0c7b120u, 0xb1c7adac2b65ae5bu, 0xade9b43cae7cafcbu, 0x20033042b073adc2u,
    0x32c3aa28282b33c7u, 0x3028ac4e300f2c0eu, 0xaf0c331eb200ad4au, 0x3310aeba2e583193u,
    0xadbf13d12a73b283u, 0x206b319d24c22ed0u, 0xb22c3028aec13098u, 0x2697abdd2c4f2c4fu,
    0xac84b4b82718310eu, 0xb109a791b3c23107u, 0x2a861e6b9b36b088u, 0xa35daac830a3332fu,
    0x25e0265eafb3b0ccu, 0x32d12c542e48b0d9u, 0xb0532c8233492b5au, 0x27873571aa25b1c3u,
    0xb0b733bca852a9ceu, 0xac2db5dc292528bcu, 0xaf40af423106b2a4u, 0x32b5a244add73083u,
    0x2f05ae1aab0e2d25u, 0x34031ca6acfdb25du, 0x918e2d7d278f332du, 0xb2afac202e1aae4au,
    0x2fc5ad27306f2469u, 0x33ae25a02f7db415u, 0x24352d8ca3b02df1u, 0xb4752a42325f330cu,
    0xa6d728b5b3783265u, 0x304b32b8a5982288u, 0x261631652c2cae29u, 0x315bb47d3404284eu,
    0xae823084a7cf2f00u, 0x3426a94f2cb631e9u, 0x2c79ae79b08e31d3u, 0xaa45b003abdab1bau,
    0xab4f267c2ce2ae60u, 0xb15ba52f2f6cb329u, 0xb250ad102adf2b85u, 0xacc5b212affca8fau,
    0xac30ac4e34d4acc9u, 0xb0b12dff31f1b63eu, 0x2fa82fdeafc62f03u, 0xb040b433ac53b365u,
    0x30c4270b2dc233c2u, 0x28ab30322c80ae61u, 0x3420b0a1abc9af3du, 0x327eaecfa81ab20eu,
    0x323bab4c2b42315fu, 0x2e69b4d733b432e8u, 0xb126b248aecfb17au, 0x9f0c30ee2735ac1au,
    0x2b0d30233262b078u, 0x1a72b1f32cf52e85u, 0x2f6db430aa8eb1b6u, 0xa0c9aff0a4eab437u,
    0xb32db4622bc6ac3fu, 0x2cb5abd4acb42c7bu, 0xac9825beb175aec2u, 0x29e2ae102f793140u,
    0x33a7ada4a91c2268u, 0x31da2bb7af482deeu, 0x2f1ab17029d833e4u, 0xb5a32d9925c4a19du,
    0xb1e2a687b154b38eu, 0xb2cfa800282bb288u, 0x3079af4c33b43133u, 0x95ea2158300b30c9u,
    0x2122340331e7a977u, 0xb49a2a83337caf2au, 0x3230a0d2226b210eu, 0xb040ae53291b31a2u,
    /* book [8, 16] */
    0x39adbbe03610bcfcu, 0x3bf4bc6721ab3d3bu, 0xb780b9c934fb3cd2u, 0xba903ce33d2736cdu,
    0x3d3faf983c6fbcfau, 0xbe0d3655bd7932abu, 0x3d5b3cc709d03dc0u, 0xb953b365b0c03db4u,
    0xba6a3c0cbd3032cbu, 0xbd203bd1b66aaaa3u, 0xbca8bc57bc743a5cu, 0x3d843d3d306b3db8u,
    0x3cfabae63d22b86du, 0x2fa7bdad3902a55du, 0xbcb2b84fbd26bd3fu, 0xb5c93d7f3328af92u,
    0xbab23b5d2c3d3be5u, 0xaed7afd0b88334beu, 0xac58301ebb1f3c18u, 0xb32badd0b78c3b55u,
    0x2cb43c4e3963babfu, 0xbd25b4a7bd83b5eau, 0x356a38efbc923c8eu, 0x36713beb3c7d3972u,
    0xba7ab9363a2b3cdau, 0x370ebe0eb89a3a6du, 0x3d453e05b8e5bb8du, 0x3881b9703403bb48u,
    0x3decbbc5ba643a7bu, 0x3c39b61bb457ba0du, 0x3c863b373c853919u, 0x3ddfbc272c95b9ebu,
    /* book [1, 32] */
    0xbc2abd2d343dbae6u, 0xb8a32f973a843a54u, 0x3597bcce37803984u, 0xb87ab7893a053443u,
    0xbc7bbb993d8b3cc1u, 0x38de39283bb1b8a6u, 0xbc6eb81c3c373c25u, 0xb08ab6e6b154bd2eu,
    /* book [2, 64] */
    0x39f5385c328c3dc7u, 0x35d9bd34bcc33dc3u, 0xbb0fb859bdc03c1bu, 0xbbc2b4b1b261b830u,
    0xbcddbd9abafdb95au, 0x3a9d39c7bcb8355bu, 0x3b5836763c48bcb3u, 0x3da2bc4ba4d5387cu,
    0x3dfa34292f17bc50u, 0xb9c43785a5f0ad54u, 0x3c25b863aea83ce3u, 0x3dfa392c37e2ae8au,
    0x3dbdbcfbb8efb315u, 0xbcebbdd9b4773d5cu, 0xbd8cb977bab73627u, 0x3ae13297380236cau,
    0xbd8e395d353c311bu, 0xa290bb3ca30d3dd0u, 0x3b15b2eb3bacb248u, 0xbd2234a633023de4u,
    0x3854bb6ab69ab639u, 0xb853b17cbb6dbda1u, 0xbc9738e8b93a355au, 0xb86fb859332335d9u,
    0x3c26398e2c9cbcbbu, 0xb930bc683dfc30e3u, 0xb2bc341fbde539efu, 0x31f0b9d83921bdd0u,
    0x3cac3ccbb2debd2du, 0xbca9b61abd17356du, 0x3d8e33323d7830e7u, 0x36fabda72f19ae0du,
    /* book [1, 128] */
    0xb4393b75b4c03d71u, 0xad7ebc9dbd45bd4au, 0x3d45356e386539feu, 0x39a139663b201f51u,
    0xba7536d53c763ba5u, 0x3bc8bade3419b9f3u, 0xb0cf31cc2c54bdc8u, 0xb1b7366d3d97385eu,
    0x393d39cf39dc364fu, 0xbcb13c61ad853b7du, 0xb64c3987b28db9e5u, 0xbc3fba82bc183bfeu,
    0xbdabbccfbd4637b8u, 0x3d883d25afbf3d6bu, 0x3c43b8ba3daa3c01u, 0x3792b28f39173c1cu,
    0xb897bbcb3cb9bcc2u, 0xaa86b8aea3e4a84au, 0x3ba9b50238bb34a0u, 0x3b66af7f34acbca3u,
    0xb81bb884a41438beu, 0xa5ac3aa3b1d739d0u, 0x3119b0f5ba6c3cceu, 0x3a03b8a7ba2ab08du,
    0x386abae0b8eeb500u, 0x3a1a3e1ab561bd81u, 0xb8c23cc03650b54du, 0xb1583cef37fbbcf5u,
    0xb9c6b98ebafa3419u, 0xb8023d1eb77cbcbcu, 0x3e19ba85b4fe3972u, 0xaa643d7bba09323cu,
    /* mean [1, 16] */
    0x1f23b7ba3547aeceu, 0xb681319933bfafd0u, 0x2a223122312cb606u, 0xb50834233778b12au,
    /* mean [1, 16] */
    0xb445b06cb78936ceu, 0x3435b6183427b6a8u, 0xadf730a735ff35c5u, 0xb29db57c37812d7au,
    /* mean [1, 16] */
    0xad09b6d037fbaab3u, 0x31ed2c9fb454b566u, 0xb182b21eb77030e3u, 0xb75db75e30a0357eu,
    /* mean [1, 32] */
    0xb092b7c0b5ec37a2u, 0x34b83483b5e0b56bu, 0xb52f3712b4ceae2bu, 0x34b3ad142d6128b8u,
    0x1c5c32d834cda2bbu, 0xb4afb76f36c034d0u, 0x35b630b8b04c2f61u, 0x3422b016ad9e2ac3u,
    /* enc [32, 16] */
    0x30903247310d2e91u, 0x2c5233de32a5ae2cu, 0x2c812af4a840add2u, 0xa468b2b3ad39b446u,
    0xabd02ee1341eb27eu, 0x35bf2885ab2b2be2u, 0x31a7ae4d2e85b24du, 0xa6c6311a329b2d2du,
    0xb3cd29a43092307eu, 0x34fba5d730012a2bu, 0xac9b35803210ac6bu, 0xac8331bfa7543032u,
    0x346db28328d234d5u, 0x24ddaff22179a7aeu, 0xaf37ab0f3452b288u, 0xb1d0308eae1b3376u,
    0xb460a9e1270cb265u, 0xb4a39db9b293af0au, 0x9305acb6ae1eb47au, 0xb20bafeeb3582b7bu,
    0xa99db35bb2c8b218u, 0x9f29a84f281fb544u, 0x3116a9263018b46du, 0xaec5b386226134e6u,
    0xb467304bafe13422u, 0x34983381b4e01a4bu, 0xae4ca74c2a2bb061u, 0xab11b12f28c4acb2u,
    0x342f941b306bb4efu, 0xa53dac72b0a8aba8u, 0xb45b3235b0a1b237u, 0xa49bb2a2b1cf3197u,
    0xb27eadf632192a0bu, 0x335eb2fab01fb075u, 0x2a373225aff1aef3u, 0x32bcb4f9344c2944u,
    0x31aa2ffe33ea34e4u, 0xb19eae6f2f50b25fu, 0xb254b417aeddb46fu, 0x31962c2335f91ef8u,
    0x28bdb54733402f10u, 0xada52e442c33b444u, 0xae7dad39af9d2dbau, 0x35e193ddb524b23eu,
    0x3018340f2f27b415u, 0x34b2b1b5b29eb47au, 0xae41b0f034a6af5bu, 0x292228d1b067b207u,
    0x2e17adaeb2de3161u, 0x33642f2d342f3469u, 0x2c9eaff5ac55b38du, 0x308db5cb9fd431e5u,
    0x2129a8c1346db29fu, 0x20cd353632f5343bu, 0x302aaa22b0b6afc7u, 0xab62ac33ac5a315cu,
    0x318a3077b3373086u, 0x282c3461af5b9270u, 0x2dcdaf33b20fb0f3u, 0xb58b3107a353a81fu,
    0xb40db1612b9a2927u, 0xb05b3225b080b471u, 0xab9730fe16bb2b75u, 0xafeb301c33562f1cu,
    0xae51260f32912d10u, 0xb02fa8962f933332u, 0xb620b118355ab25du, 0xaec8b043b2ba296eu,
    0x285db18b2c44b45eu, 0x28a4308b34919cb0u, 0xac571e5634e92d4eu, 0xac30b08f361db54eu,
    0x2b1ab49bad1ba8aeu, 0x32feaf332c4fa44eu, 0xb34f3100b6d1afedu, 0xae5b342c2f6f2960u,
    0x34b626fdb1250f68u, 0x30583204b41ba48au, 0x30fe31ef2e65b2b2u, 0x358d3253b26bafe5u,
    0x34462b1d3478b134u, 0x2a77aa03b34f30afu, 0x2ddca98cb50e2d6bu, 0xafc5b27a2e97a946u,
    0x2e2c324ab035b2b1u, 0xaac9b069321b2a5cu, 0xac1f33242efc3205u, 0xafa22a7fac452f7au,
    0xaa1cb35ba90cb06fu, 0xae122b44b335356au, 0xa431b3ce2ee9ae2cu, 0x359133b8315e2f02u,
    0xadc02cbc342f32c7u, 0xad71b3a23284a54au, 0x37743439a9d6b15du, 0x25f32dbfb276148cu,
    0x3045b10f2fe931a1u, 0xb089b51fb44c340cu, 0x31f1a4312cfead57u, 0xb5b9a7f9301ab4bbu,
    0xae4e349222a12d64u, 0xb29ea492b127a9e2u, 0x342cb1962d75313eu, 0x3171b1f52c533460u,
    0x3630b27c30fb2e57u, 0xae213510b093b089u, 0x30e0343c34b230acu, 0xabc5ae0c30f533d6u,
    0xb2f4b42c34131e67u, 0x2d1a34b3ad8aa601u, 0x2e99b0ac210729bfu, 0xb2052bfbb2e2b17au,
    0x2ce6a726320f263au, 0x352daddf2c7db115u, 0x2ccab6dfac2c35d3u, 0xafd330c5afe33561u,
    0xa54d343c3377305du, 0xabb932dcb205307fu, 0xb5b832c8ad353093u, 0x248aa06f24073234u,
    0xab10ad2f3124b06du, 0xabbdac37ad773486u, 0x2e332fdc2d53a979u, 0x31c83131ab892dc2u,
    0xa671344c2c5ab1abu, 0xb38431d53201b13au, 0x2cb8a978aaf4b4d0u, 0xa48a3540310b273eu,
    /* dec [32, 16] */
    0x30903247310d2e91u, 0x2c5233de32a5ae2cu, 0x2c812af4a840add2u, 0xa468b2b3ad39b446u,
    0xabd02ee1341eb27eu, 0x35bf2885ab2b2be2u, 0x31a7ae4d2e85b24du, 0xa6c6311a329b2d2du,
    0xb3cd29a43092307eu, 0x34fba5d730012a2bu, 0xac9b35803210ac6bu, 0xac8331bfa7543032u,
    0x346db28328d234d5u, 0x24ddaff22179a7aeu, 0xaf37ab0f3452b288u, 0xb1d0308eae1b3376u,
    0xb460a9e1270cb265u, 0xb4a39db9b293af0au, 0x9305acb6ae1eb47au, 0xb20bafeeb3582b7bu,
    0xa99db35bb2c8b218u, 0x9f29a84f281fb544u, 0x3116a9263018b46du, 0xaec5b386226134e6u,
    0xb467304bafe13422u, 0x34983381b4e01a4bu, 0xae4ca74c2a2bb061u, 0xab11b12f28c4acb2u,
    0x342f941b306bb4efu, 0xa53dac72b0a8aba8u, 0xb45b3235b0a1b237u, 0xa49bb2a2b1cf3197u,
    0xb27eadf632192a0bu, 0x335eb2fab01fb075u, 0x2a373225aff1aef3u, 0x32bcb4f9344c2944u,
    0x31aa2ffe33ea34e4u, 0xb19eae6f2f50b25fu, 0xb254b417aeddb46fu, 0x31962c2335f91ef8u,
    0x28bdb54733402f10u, 0xada52e442c33b444u, 0xae7dad39af9d2dbau, 0x35e193ddb524b23eu,
    0x3018340f2f27b415u, 0x34b2b1b5b29eb47au, 0xae41b0f034a6af5bu, 0x292228d1b067b207u,
    0x2e17adaeb2de3161u, 0x33642f2d342f3469u, 0x2c9eaff5ac55b38du, 0x308db5cb9fd431e5u,
    0x2129a8c1346db29fu, 0x20cd353632f5343bu, 0x302aaa22b0b6afc7u, 0xab62ac33ac5a315cu,
    0x318a3077b3373086u, 0x282c3461af5b9270u, 0x2dcdaf33b20fb0f3u, 0xb58b3107a353a81fu,
    0xb40db1612b9a2927u, 0xb05b3225b080b471u, 0xab9730fe16bb2b75u, 0xafeb301c33562f1cu,
    0xae51260f32912d10u, 0xb02fa8962f933332u, 0xb620b118355ab25du, 0xaec8b043b2ba296eu,
    0x285db18b2c44b45eu, 0x28a4308b34919cb0u, 0xac571e5634e92d4eu, 0xac30b08f361db54eu,
    0x2b1ab49bad1ba8aeu, 0x32feaf332c4fa44eu, 0xb34f3100b6d1afedu, 0xae5b342c2f6f2960u,
    0x34b626fdb1250f68u, 0x30583204b41ba48au, 0x30fe31ef2e65b2b2u, 0x358d3253b26bafe5u,
    0x34462b1d3478b134u, 0x2a77aa03b34f30afu, 0x2ddca98cb50e2d6bu, 0xafc5b27a2e97a946u,
    0x2e2c324ab035b2b1u, 0xaac9b069321b2a5cu, 0xac1f33242efc3205u, 0xafa22a7fac452f7au,
    0xaa1cb35ba90cb06fu, 0xae122b44b335356au, 0xa431b3ce2ee9ae2cu, 0x359133b8315e2f02u,
    0xadc02cbc342f32c7u, 0xad71b3a23284a54au, 0x37743439a9d6b15du, 0x25f32dbfb276148cu,
    0x3045b10f2fe931a1u, 0xb089b51fb44c340cu, 0x31f1a4312cfead57u, 0xb5b9a7f9301ab4bbu,
    0xae4e349222a12d64u, 0xb29ea492b127a9e2u, 0x342cb1962d75313eu, 0x3171b1f52c533460u,
    0x3630b27c30fb2e57u, 0xae213510b093b089u, 0x30e0343c34b230acu, 0xabc5ae0c30f533d6u,
    0xb2f4b42c34131e67u, 0x2d1a34b3ad8aa601u, 0x2e99b0ac210729bfu, 0xb2052bfbb2e2b17au,
    0x2ce6a726320f263au, 0x352daddf2c7db115u, 0x2ccab6dfac2c35d3u, 0xafd330c5afe33561u,
    0xa54d343c3377305du, 0xabb932dcb205307fu, 0xb5b832c8ad353093u, 0x248aa06f24073234u,
    0xab10ad2f3124b06du, 0xabbdac37ad773486u, 0x2e332fdc2d53a979u, 0x31c83131ab892dc2u,
    0xa671344c2c5ab1abu, 0xb38431d53201b13au, 0x2cb8a978aaf4b4d0u, 0xa48a3540310b273eu,
    /* book [8, 16] */
    0xaece39a7bdf53398u, 0xb6873954bd6f3919u, 0xba663636b5a73de6u, 0xbd33bc05bcafb7adu,
    0xb89939cd281e3ac9u, 0x3dd73bea963fbd7bu, 0x38f83ccfb3fe2b9cu, 0xbceb3d67bcf4bce6u,
    0x3497b3ccbe083bb7u, 0x2ca23da8bd99bceau, 0x3dc8bdc7bbd0b77cu, 0xbd6e3c403d2b23b2u,
    0xbd4c3cb83327b5c1u, 0xbb4538cabb4fb469u, 0x3d33b5e3bdcfb9f5u, 0xb8f1bc39395b2f4fu,
    0x3be43c7a3d023d36u, 0xb950b875b44ab803u, 0xb9cca8ca3e1cbb71u, 0xb8d5355fb1fbb61cu,
    0x360bbd663b5dbe0bu, 0x3aaf3da93d543c2au, 0x3af5b914b988bc65u, 0xb499b5c6bdb6bc9au,
    0xb9b73a78b2933a74u, 0xbc833d7dbc9dabdcu, 0xbc37b445bb7833f3u, 0x3dc636502e2e32ebu,
    0x3cce3d363835be0bu, 0x3ab4364929993d00u, 0xbb0cbb5c3d69bc0bu, 0x389b378a3cd53d6cu,
    /* book [1, 32] */
    0x3dfdbd76b953bbfau, 0xbdfd389a28f6bb5eu, 0x3d873db139963b96u, 0x2a5bb8603c83bb99u,
    0xb0e8bd4c2d49335fu, 0x30543c173566bda6u, 0xb438b6f9b50fbbb5u, 0x3585b5e93aae32aau,
    /* book [2, 64] */
    0xb54138b9b53c3a81u, 0xb9e9bd4bbcdb3c97u, 0xb0f5aec0aac73df9u, 0xbc72b9a32af93b2fu,
    0xb66b3b6db5d6bd64u, 0xbdc73ae8bad1ad32u, 0xbae0b99e2ae4be07u, 0x3ab8b815bbae3c5au,
    0x3b18342239233db9u, 0x3af631863cbabde1u, 0x310c3c36b542b85cu, 0xb912bb8daf3e3d09u,
    0xbc2d3d3cb4293cd8u, 0xbc502a2d3db8bb2du, 0x28d539c935d5bd8eu, 0x37e3b70ab12f3d9au,
    0xb59ebc44b6cabda3u, 0xbc9e31e4368a3dc2u, 0xbc29b646baa93d24u, 0xbcf9bcc03c6838dcu,
    0x17a9b995aa883c39u, 0x3dcc386bb6b4a0c2u, 0x3d14bb05309c3ae8u, 0x3c36be143ced212du,
    0xbe01394138eeb87fu, 0xb01639bc34d63e0cu, 0xb039b535376a3c82u, 0x30e0bc03b83c3b68u,
    0xba2ebd55bd893e18u, 0x3b113c80bc17bc8du, 0x3c4cb88cb921bcadu, 0x3b0cbd22351b3b60u,
    /* mean [1, 16] */
    0xa5ddb54bb1603513u, 0x2d0d36772d2434a6u, 0x284f30d3b6292a98u, 0x3054aca0344ab4c9u,
    /* enc [16, 8]: scales, then bytes */
    0x1c741b701a381bd7u, 0x1b1f1b811a6b1c32u, 0x0443d9f004cbc3ccu, 0x3def9104041a85e5u,
    0x7f0e8e44370c41c2u, 0x9d0efa137f259c1eu, 0xc8e98509e28a2a81u, 0xb74ad9c6436c0893u,
    0xbf8128043a077d19u, 0x6b6302f91d127f27u, 0x39410cd05caa9e44u, 0xa944816f1dd45e69u,
    0xd8452bd2112c48c9u, 0x22a8a021f94c9d26u, 0xa2393b52e3baa9e4u, 0xf244c99cb8d2004au,
    0x25506d7fd145e1e5u, 0x45d569124e8101cbu,
    /* dec [16, 8]: scales, then bytes */
    0x1c741b701a381bd7u, 0x1b1f1b811a6b1c32u, 0x0443d9f004cbc3ccu, 0x3def9104041a85e5u,
    0x7f0e8e44370c41c2u, 0x9d0efa137f259c1eu, 0xc8e98509e28a2a81u, 0xb74ad9c6436c0893u,
    0xbf8128043a077d19u, 0x6b6302f91d127f27u, 0x39410cd05caa9e44u, 0xa944816f1dd45e69u,
    0xd8452bd2112c48c9u, 0x22a8a021f94c9d26u, 0xa2393b52e3baa9e4u, 0xf244c99cb8d2004au,
    0x25506d7fd145e1e5u, 0x45d569124e8101cbu,
    /* book [8, 16] */
    0xbd6133aa3927ba9eu, 0xbd98b301b922b7b8u, 0xb91bbb601ce6b7dbu, 0x3520bc8f3db63c28u,
    0xbc31ba79bc0cb07fu, 0x39b6329f3d8cafc6u, 0xb96d3c8a3c68bd02u, 0x3c52b6ac3ca83afeu,
    0xb04ab859bdd02991u, 0xbb513c3cbdaab538u, 0x3cb4b95ebdb7b3a8u, 0x3dc03a9034cb2ef3u,
    0xbc0fb2a53ddbb980u, 0x3cb133fa30cb2c91u, 0xbcb42f8db968bcb6u, 0xbcfe3cb0baceb6fau,
    0xba4b3d6ebcd139d3u, 0x3d4fb355be05bd0bu, 0xb7f53cf936dd2829u, 0xb9693487bd0b37a6u,
    0x3dd7a9ff39423490u, 0xbbc0bd703d7a30d6u, 0x36a9366c3c1a3bd2u, 0x37453715b0393625u,
    0xb963bcedb9f3b9efu, 0x327d38d83461bc8eu, 0xbadf3c7f3c83ba8au, 0xbc35b4b7b9a4babeu,
    0x3c07bc6b3cf2bd98u, 0x313a394b3b8dba39u, 0xbc283dd43e12bb97u, 0x30eebd0132b23d53u,
    /* book [1, 32] */
    0xbd7ab9d9bd073d52u, 0xbac5b49d3a53b483u, 0xb1bd347cbb08bb28u, 0xbd733c7e3b763d03u,
    0x3c833d79b479396cu, 0xbc822c5f3b59b0eau, 0x3b3f3dcebd2a3448u, 0x3e1334e8b8c33d42u,
    /* mean [1, 16] */
    0xb24ba474b0dd3066u, 0x34612ba4aa33aaf6u, 0x307cb60d328cac0bu, 0x31122f3b341bb3dfu,
    /* codewords of 4-bit uniform codes [16] */
    0xc500c600c700c800u, 0xbc00c000c200c400u, 0x420040003c000000u, 0x4700460045004400u,
    /* gains shared [256] */
    0x248e245d242d2400u, 0x256b253024f824c2u, 0x2671262b25e825a8u, 0x27a92756270626bau,
    0x288e285d282d2800u, 0x296b293028f828c2u, 0x2a712a2b29e829a8u, 0x2ba92b562b062abau,
    0x2c8e2c5d2c2d2c00u, 0x2d6b2d302cf82cc2u, 0x2e712e2b2de82da8u, 0x2fa92f562f062ebau,
    0x308e305d302d3000u, 0x316b313030f830c2u, 0x3271322b31e831a8u, 0x33a93356330632bau,
    0x348e345d342d3400u, 0x356b353034f834c2u, 0x3671362b35e835a8u, 0x37a93756370636bau,
    0x388e385d382d3800u, 0x396b393038f838c2u, 0x3a713a2b39e839a8u, 0x3ba93b563b063abau,
    0x3c8e3c5d3c2d3c00u, 0x3d6b3d303cf83cc2u, 0x3e713e2b3de83da8u, 0x3fa93f563f063ebau,
    0x408e405d402d4000u, 0x416b413040f840c2u, 0x4271422b41e841a8u, 0x43a94356430642bau,
    0x448e445d442d4400u, 0x456b453044f844c2u, 0x4671462b45e845a8u, 0x47a94756470646bau,
    0x488e485d482d4800u, 0x496b493048f848c2u, 0x4a714a2b49e849a8u, 0x4ba94b564b064abau,
    0x4c8e4c5d4c2d4c00u, 0x4d6b4d304cf84cc2u, 0x4e714e2b4de84da8u, 0x4fa94f564f064ebau,
    0x508e505d502d5000u, 0x516b513050f850c2u, 0x5271522b51e851a8u, 0x53a95356530652bau,
    0x548e545d542d5400u, 0x556b553054f854c2u, 0x5671562b55e855a8u, 0x57a95756570656bau,
    0x588e585d582d5800u, 0x596b593058f858c2u, 0x5a715a2b59e859a8u, 0x5ba95b565b065abau,
    0x5c8e5c5d5c2d5c00u, 0x5d6b5d305cf85cc2u, 0x5e715e2b5de85da8u, 0x5fa95f565f065ebau,
    0x608e605d602d6000u, 0x616b613060f860c2u, 0x6271622b61e861a8u, 0x63a96356630662bau,
    /* gains shared [256] */
    0x248e245d242d2400u, 0x256b253024f824c2u, 0x2671262b25e825a8u, 0x27a92756270626bau,
    0x288e285d282d2800u, 0x296b293028f828c2u, 0x2a712a2b29e829a8u, 0x2ba92b562b062abau,
    0x2c8e2c5d2c2d2c00u, 0x2d6b2d302cf82cc2u, 0x2e712e2b2de82da8u, 0x2fa92f562f062ebau,
    0x308e305d302d3000u, 0x316b313030f830c2u, 0x3271322b31e831a8u, 0x33a93356330632bau,
    0x348e345d342d3400u, 0x356b353034f834c2u, 0x3671362b35e835a8u, 0x37a93756370636bau,
    0x388e385d382d3800u, 0x396b393038f838c2u, 0x3a713a2b39e839a8u, 0x3ba93b563b063abau,
    0x3c8e3c5d3c2d3c00u, 0x3d6b3d303cf83cc2u, 0x3e713e2b3de83da8u, 0x3fa93f563f063ebau,
    0x408e405d402d4000u, 0x416b413040f840c2u, 0x4271422b41e841a8u, 0x43a94356430642bau,
    0x448e445d442d4400u, 0x456b453044f844c2u, 0x4671462b45e845a8u, 0x47a94756470646bau,
    0x488e485d482d4800u, 0x496b493048f848c2u, 0x4a714a2b49e849a8u, 0x4ba94b564b064abau,
    0x4c8e4c5d4c2d4c00u, 0x4d6b4d304cf84cc2u, 0x4e714e2b4de84da8u, 0x4fa94f564f064ebau,
    0x508e505d502d5000u, 0x516b513050f850c2u, 0x5271522b51e851a8u, 0x53a95356530652bau,
    0x548e545d542d5400u, 0x556b553054f854c2u, 0x5671562b55e855a8u, 0x57a95756570656bau,
    0x588e585d582d5800u, 0x596b593058f858c2u, 0x5a715a2b59e859a8u, 0x5ba95b565b065abau,
    0x5c8e5c5d5c2d5c00u, 0x5d6b5d305cf85cc2u, 0x5e715e2b5de85da8u, 0x5fa95f565f065ebau,
    0x608e605d602d6000u, 0x616b613060f860c2u, 0x6271622b61e861a8u, 0x63a96356630662bau,
    /* gains shared [256] */
    0x248e245d242d2400u, 0x256b253024f824c2u, 0x2671262b25e825a8u, 0x27a92756270626bau,
    0x288e285d282d2800u, 0x296b293028f828c2u, 0x2a712a2b29e829a8u, 0x2ba92b562b062abau,
    0x2c8e2c5d2c2d2c00u, 0x2d6b2d302cf82cc2u, 0x2e712e2b2de82da8u, 0x2fa92f562f062ebau,
    0x308e305d302d3000u, 0x316b313030f830c2u, 0x3271322b31e831a8u, 0x33a93356330632bau,
    0x348e345d342d3400u, 0x356b353034f834c2u, 0x3671362b35e835a8u, 0x37a93756370636bau,
    0x388e385d382d3800u, 0x396b393038f838c2u, 0x3a713a2b39e839a8u, 0x3ba93b563b063abau,
    0x3c8e3c5d3c2d3c00u, 0x3d6b3d303cf83cc2u, 0x3e713e2b3de83da8u, 0x3fa93f563f063ebau,
    0x408e405d402d4000u, 0x416b413040f840c2u, 0x4271422b41e841a8u, 0x43a94356430642bau,
    0x448e445d442d4400u, 0x456b453044f844c2u, 0x4671462b45e845a8u, 0x47a94756470646bau,
    0x488e485d482d4800u, 0x496b493048f848c2u, 0x4a714a2b49e849a8u, 0x4ba94b564b064abau,
    0x4c8e4c5d4c2d4c00u, 0x4d6b4d304cf84cc2u, 0x4e714e2b4de84da8u, 0x4fa94f564f064ebau,
    0x508e505d502d5000u, 0x516b513050f850c2u, 0x5271522b51e851a8u, 0x53a95356530652bau,
    0x548e545d542d5400u, 0x556b553054f854c2u, 0x5671562b55e855a8u, 0x57a95756570656bau,
    0x588e585d582d5800u, 0x596b593058f858c2u, 0x5a715a2b59e859a8u, 0x5ba95b565b065abau,
    0x5c8e5c5d5c2d5c00u, 0x5d6b5d305cf85cc2u, 0x5e715e2b5de85da8u, 0x5fa95f565f065ebau,
    0x608e605d602d6000u, 0x616b613060f860c2u, 0x6271622b61e861a8u, 0x63a96356630662bau,
    /* spare: gathers read two bytes behind an entry, vectors never less than 32 [16] */
    0x0000000000000000u, 0x0000000000000000u, 0x0000000000000000u, 0x0000000000000000u,
};

/* Pairs and channels of a head that keep their turn for STEADY_SPAN tokens in a blockwise frame
 * stand in front of those that turn from block to block. */
#define TOY_KV__STEADY_SPAN 1024
#define TOY_KV__STEADY_PAIRS 0
#define TOY_KV__STEADY_DIMS 0
static const short toy_kv__pairs[] = {
    0, 1, 2, 3, 4, 5, 6, 7,
};
static const short toy_kv__order[] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
};

/* Scalar helpers, rotation, and places in the caller's memory. */

static inline float toy_kv__from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t toy_kv__to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* binary16 to float: scaling by 2^112 corrects the exponent bias and normalises subnormals. */
static inline float toy_kv__from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7fffu) << 13;
    if (mag >= 0x0f800000u)
        return toy_kv__from_bits(sign | mag | 0x7f800000u);
    return toy_kv__from_bits(sign |
                           toy_kv__to_bits(toy_kv__from_bits(mag) * toy_kv__from_bits(0x77800000u)));
}

/* float to binary16, to nearest even; what is too large becomes the largest finite value. */
static inline uint16_t toy_kv__to_half(float f)
{
    uint32_t bits = toy_kv__to_bits(f), sign = (bits >> 16) & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag >= 0x477ff000u)
        return (uint16_t)(sign | 0x7bffu);
    if (mag < 0x38800000u)
        return (uint16_t)(sign | (toy_kv__to_bits(toy_kv__from_bits(mag) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((mag - 0x38000000u + 0xfffu + ((mag >> 13) & 1u)) >> 13));
}

/* The i-th binary16 value at p, which need not be aligned. */
static inline float toy_kv__half_at(const unsigned char *p, size_t i)
{
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return toy_kv__from_half(h);
}

static inline const unsigned char *toy_kv__table(int offset)
{
    return (const unsigned char *)toy_kv__tables + 2 * (size_t)offset;
}

/* A table of binary16 from its i-th value on. */
static inline toy_kv__matrix toy_kv__halves(int offset, size_t i)
{
    toy_kv__matrix m;
    m.values = toy_kv__table(offset) + 2 * i;
    m.scale = NULL;
    return m;
}

/* Entry i of a table as it stands: in bytes, without the scale of its column. */
static inline float toy_kv__raw_at(const toy_kv__matrix *m, size_t i)
{
    return m->scale == NULL ? toy_kv__half_at(m->values, i) : (float)(signed char)m->values[i];
}

/* o [rows, n_out] += table [n_out, n_in], without scales, times y [rows, n_in]: inputs that are
 * fewer than a vector has lanes. */
static void toy_kv__unmap_short(const toy_kv__matrix *table, int n_out, int n_in, const float *y,
                              int rows, float *o)
{
    int r, d, j;
    for (r = 0; r < rows; r++, y += n_in, o += n_out)
        for (d = 0; d < n_out; d++)
            for (j = 0; j < n_in; j++)
                o[d] += y[j] * toy_kv__raw_at(table, (size_t)d * (size_t)n_in + (size_t)j);
}

/* One member's rows of a stream's basis, enc or dec. */
static inline toy_kv__matrix toy_kv__basis(const toy_kv__stream *s, int offset, int member)
{
    toy_kv__matrix m = toy_kv__halves(offset, 0);
    size_t latents = (size_t)s->n_latents, rows = (size_t)member * TOY_KV_HEAD_DIM;
    if (s->basis_bytes == 2) {
        m.values += 2 * rows * latents;
        return m;
    }
    m.scale = m.values + 2 * (size_t)member * latents;
    m.values += 2 * (size_t)s->n_members * latents + rows * latents;
    return m;
}

static inline double toy_kv__rope_freq(int pair)
{
    double f;
    memcpy(&f, &toy_kv__rope_bits[pair], sizeof f);
    return f;
}

/* cs [TOY_KV_N_ROT]: cosine and sine of `position` for each pair. Angles in double: positions reach
 * millions of radians. */
static void toy_kv__angles(double position, float *cs)
{
    int i;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        cs[2 * i] = (float)cos(position * toy_kv__rope_freq(i));
        cs[2 * i + 1] = (float)sin(position * toy_kv__rope_freq(i));
    }
}

/* The position that a pair counts as un-rotated at in the frame of a block at `position`. */
static inline int toy_kv__base_of(int pair, int position)
{
    int span = toy_kv__spans[pair];
    return span > 0 ? position - ((position - TOY_KV_N_SINK) & (span - 1)) : 0; /* a power of two */
}

/* cs [TOY_KV_N_ROT]: of the angles that keys of a block at `position` are turned back by in a frame,
 * besides those of their offsets in PRE. */
static void toy_kv__frame_angles(int frame, int position, float *cs)
{
    int i;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        double at = frame == TOY_KV__PRE ? position : toy_kv__base_of(i, position);
        cs[2 * i] = (float)cos(at * toy_kv__rope_freq(i));
        cs[2 * i + 1] = (float)sin(at * toy_kv__rope_freq(i));
    }
}

/* In-place orthonormal Walsh-Hadamard transform of x [n], n a power of two. */
static void toy_kv__hadamard(float *x, int n)
{
    int step, i, j;
    float norm = 1.0f / sqrtf((float)n);
    for (step = 1; step < n; step *= 2)
        for (i = 0; i < n; i += 2 * step)
            for (j = i; j < i + step; j++) {
                float a = x[j], b = x[j + step];
                x[j] = a + b;
                x[j + step] = a - b;
            }
    for (i = 0; i < n; i++)
        x[i] *= norm;
}

/* ---- places in the caller's memory ---- */

static inline unsigned char *toy_kv__base(const toy_kv *kv)
{
    return (unsigned char *)(uintptr_t)(const void *)kv;
}

static inline toy_kv__seq *toy_kv__sequence(const toy_kv *kv, int seq)
{
    return (toy_kv__seq *)(void *)(toy_kv__base(kv) + kv->seqs) + seq;
}

static inline toy_kv__entry *toy_kv__blocks(const toy_kv *kv, int seq)
{
    return (toy_kv__entry *)(void *)(toy_kv__base(kv) + kv->tables) +
           (size_t)seq * (size_t)kv->seq_blocks;
}

/* How many sequences hold each block of the pool; 0: free. */
static inline int32_t *toy_kv__references(const toy_kv *kv)
{
    return (int32_t *)(void *)(toy_kv__base(kv) + kv->references);
}

static inline float *toy_kv__work(const toy_kv *kv)
{
    return (float *)(void *)(toy_kv__base(kv) + kv->work);
}

/* Cosines and sines of the offsets of tokens in a block: [N_ROT / 2, 2, BLOCK]. */
static inline float *toy_kv__turns(const toy_kv *kv)
{
    return (float *)(void *)(toy_kv__base(kv) + kv->turns);
}

/* A stream's part of a block: streams lie one after the other, each contiguous over the pool. */
static inline unsigned char *toy_kv__codes(const toy_kv *kv, int stream, int block)
{
    const toy_kv__stream *s = &toy_kv__streams[stream];
    return toy_kv__base(kv) + kv->pool + (size_t)s->start * (size_t)kv->config.n_blocks +
           (size_t)s->bytes * (size_t)block;
}

/* The landmarks of one head in a block: behind the streams, head by head. */
static inline unsigned char *toy_kv__landmarks(const toy_kv *kv, int layer, int head, int block)
{
    size_t start = (size_t)TOY_KV__BLOCK_BYTES +
                   (size_t)(layer * TOY_KV_N_KV_HEADS + head) * (size_t)TOY_KV__LANDMARK_BYTES;
    return toy_kv__base(kv) + kv->pool + start * (size_t)kv->config.n_blocks +
           (size_t)TOY_KV__LANDMARK_BYTES * (size_t)block;
}

static inline int toy_kv__slot(int part, int layer, int head)
{
    return (part * TOY_KV_N_LAYERS + layer) * TOY_KV_N_KV_HEADS + head;
}

/* The exact list: the chain of a head in a block, a link, its vector. */
static inline int32_t *toy_kv__kept_first(const toy_kv *kv, int slot, int block)
{
    return (int32_t *)(void *)(toy_kv__base(kv) + kv->kept_firsts) +
           (size_t)slot * (size_t)kv->config.n_blocks + block;
}

static inline toy_kv__link *toy_kv__kept_link(const toy_kv *kv, int32_t i)
{
    return (toy_kv__link *)(void *)(toy_kv__base(kv) + kv->kept_links) + (i - 1);
}

static inline unsigned char *toy_kv__kept_row(const toy_kv *kv, int32_t i)
{
    return toy_kv__base(kv) + kv->kept_rows + (size_t)(i - 1) * TOY_KV_HEAD_DIM * 2;
}

/* Tokens before this one are sinks or lie in blocks. */
static inline int toy_kv__n_coded(const toy_kv__seq *q)
{
    return TOY_KV_N_SINK + q->n_sealed * TOY_KV_BLOCK;
}

/* The exact vector of one token: binary16 [TOY_KV_HEAD_DIM], keys rotated. Neighbouring tokens are
 * neighbours up to the end of the ring. */
static inline unsigned char *toy_kv__exact(const toy_kv *kv, int seq, int layer, int part, int head,
                                         int token)
{
    int slot = token < TOY_KV_N_SINK ? token : TOY_KV_N_SINK + (token - TOY_KV_N_SINK) % kv->ring;
    size_t row =
        (((size_t)seq * TOY_KV_N_LAYERS + (size_t)layer) * 2 + (size_t)part) * TOY_KV_N_KV_HEADS +
        (size_t)head;
    row = row * (size_t)(TOY_KV_N_SINK + kv->ring) + (size_t)slot;
    return toy_kv__base(kv) + kv->exact + row * TOY_KV_HEAD_DIM * 2;
}

/* The streams that hold one head: uses first .. first + n - 1. */
static inline const toy_kv__use *toy_kv__uses_of(int part, int layer, int head, int *n)
{
    int i = (part * TOY_KV_N_LAYERS + layer) * TOY_KV_N_KV_HEADS + head;
    *n = toy_kv__use_first[i + 1] - toy_kv__use_first[i];
    return toy_kv__uses + toy_kv__use_first[i];
}
/* Vector vocabulary, portable C: one lane. See kernels.h for what each word means. */
#define TOY_KV__LANES_portable    1
#define TOY_KV__GATHERED_portable 1
#define TOY_KV__BYTE_OPS_portable NULL
#define TOY_KV__TARGET_portable
/* Outputs that a pass of dense.h holds sums of. */
#define TOY_KV__N_OUTS_portable  4
#define TOY_KV__OUTS_portable(X) X(0) X(1) X(2) X(3)
#define TOY_KV__REST_portable(X, of)
typedef float toy_kv__vf_portable;
typedef const float *toy_kv__vt_portable;
typedef unsigned toy_kv__vi_portable;

static inline float toy_kv__set1_portable(float x)
{
    return x;
}
static inline float toy_kv__load_portable(const float *p)
{
    return *p;
}
static inline void toy_kv__store_portable(float *p, float x)
{
    *p = x;
}
static inline float toy_kv__loadh_portable(const unsigned char *p)
{
    return toy_kv__half_at(p, 0);
}
static inline float toy_kv__loadu8_portable(const unsigned char *p)
{
    return (float)*p;
}
static inline float toy_kv__loads8_portable(const unsigned char *p)
{
    return (float)(signed char)*p;
}
static inline float toy_kv__add_portable(float a, float b)
{
    return a + b;
}
static inline float toy_kv__sub_portable(float a, float b)
{
    return a - b;
}
static inline float toy_kv__mul_portable(float a, float b)
{
    return a * b;
}
static inline float toy_kv__fma_portable(float a, float b, float c)
{
    return a * b + c;
}
static inline float toy_kv__max_portable(float a, float b)
{
    return a > b ? a : b;
}
static inline float toy_kv__round_portable(float x)
{
    return rintf(x);
}
static inline float toy_kv__scale2_portable(float x, float n)
{
    /* more than 127 only after a NaN, which must not make the conversion undefined */
    return x * toy_kv__from_bits((uint32_t)((int)(n < 127.0f ? n : 127.0f) + 127) << 23);
}
static inline float toy_kv__hsum_portable(float x)
{
    return x;
}
static inline void toy_kv__hsum4_portable(float a, float b, float c, float d, float *sum)
{
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}
static inline float toy_kv__hmax_portable(float x)
{
    return x;
}
static inline const float *toy_kv__table_portable(const float *p)
{
    return p;
}
static inline unsigned toy_kv__nibbles_portable(const unsigned char *plane, int t)
{
    return (unsigned)(plane[t % (TOY_KV_BLOCK / 2)] >> (t / (TOY_KV_BLOCK / 2) * 4)) & 15u;
}
static inline float toy_kv__lookup_portable(const float *table, unsigned index)
{
    return table[index];
}
static inline void toy_kv__gather_portable(const unsigned char *table, const unsigned char *codes,
                                         float *x)
{
    *x = toy_kv__half_at(table, *codes);
}
static inline void toy_kv__storeu8_portable(unsigned char *p, float x)
{
    *p = (unsigned char)x;
}
static inline void toy_kv__storeh_portable(unsigned char *p, float x)
{
    uint16_t half = toy_kv__to_half(x);
    memcpy(p, &half, 2);
}
static inline void toy_kv__keep_less_portable(float x, float i, float *least, float *index)
{
    *index = x < *least ? i : *index;
    *least = x < *least ? x : *least;
}
static inline void toy_kv__transpose_portable(const unsigned char *src, size_t src_step,
                                            unsigned char *dst, size_t dst_step)
{
    size_t i, j;
    for (i = 0; i < 8; i++)
        for (j = 0; j < 8; j++)
            memcpy(dst + j * dst_step + 2 * i, src + i * src_step + 2 * j, 2);
}
/* Kernels over rebuilt tiles, and landmarks, for one instruction set, in the vocabulary of
 * kernels.h. A tile is [channels, BLOCK]: what is done to one token is done to LANES of them at
 * once, and no kernel over tiles adds up across lanes. Sizes of tables may be any; BLOCK is a
 * multiple of the lanes. */

/* Inputs and outputs that are unpacked to fp32 at a time. */
enum { TOY_KV__DEPTH_portable = 128, TOY_KV__STRIP_portable = 16 };

/* The second vector of tokens that a pass holds; the first one again where a block has no other. */
enum { TOY_KV__NEXT_portable = TOY_KV_BLOCK > TOY_KV__LANES_portable ? TOY_KV__LANES_portable : 0 };

/* y [m, BLOCK] += x [n, BLOCK] by m outputs' coefficients, OUTS at most, at coef[i * of_in + k *
 * of_out]. A macro, so that both strides are constants. Two vectors of tokens and OUTS outputs are
 * as many sums as registers hold: a coefficient is loaded once for both. */
#define TOY_KV__OUTPUTS(name, of_in, of_out)                                                         \
    TOY_KV__TARGET_portable static void name(const float *coef, int n, int m, const float *x, float *y)   \
    {                                                                                              \
        int i, t;                                                                                  \
        for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_portable) {                                    \
            const float *c = coef, *src = x + t;                                                   \
            float *dst = y + t;                                                                    \
            TOY_KV__OUTS_portable(TOY_KV__ZERO)                                                             \
            for (i = 0; i < n; i++, c += (of_in), src += TOY_KV_BLOCK) {                             \
                toy_kv__vf_portable v = toy_kv__load_portable(src), w = toy_kv__load_portable(src + TOY_KV__NEXT_portable), f; \
                TOY_KV__STEP(0, of_out)                                                              \
                TOY_KV__STEP(1, of_out)                                                              \
                TOY_KV__STEP(2, of_out)                                                              \
                TOY_KV__STEP(3, of_out)                                                              \
                TOY_KV__REST_portable(TOY_KV__STEP, of_out)                                                 \
            }                                                                                      \
            TOY_KV__OUTS_portable(TOY_KV__KEEP)                                                             \
        }                                                                                          \
    }
#define TOY_KV__ZERO(k) toy_kv__vf_portable a##k = toy_kv__set1_portable(0.0f), b##k = a##k;
#define TOY_KV__STEP(k, of_out)                                                                      \
    f = toy_kv__set1_portable(c[(k) * (of_out)]);                                                         \
    a##k = toy_kv__fma_portable(f, v, a##k);                                                              \
    b##k = toy_kv__fma_portable(f, w, b##k);
#define TOY_KV__KEEP(k)                                                                              \
    if (k < m) {                                                                                   \
        float *row = dst + k * TOY_KV_BLOCK;                                                         \
        b##k = toy_kv__add_portable(toy_kv__load_portable(row + TOY_KV__NEXT_portable), b##k);                          \
        toy_kv__store_portable(row, toy_kv__add_portable(toy_kv__load_portable(row), a##k));                            \
        toy_kv__store_portable(row + TOY_KV__NEXT_portable, b##k);                                               \
    }
TOY_KV__OUTPUTS(toy_kv__outputs_down_portable, TOY_KV__STRIP_portable, 1)
TOY_KV__OUTPUTS(toy_kv__outputs_across_portable, 1, TOY_KV__DEPTH_portable)
#undef TOY_KV__OUTPUTS
#undef TOY_KV__ZERO
#undef TOY_KV__STEP
#undef TOY_KV__KEEP

/* x [n] of fp32 from binary16. */
TOY_KV__TARGET_portable static inline void toy_kv__widen_portable(const unsigned char *row, int n, float *x)
{
    int j = 0;
    for (; j + TOY_KV__LANES_portable <= n; j += TOY_KV__LANES_portable)
        toy_kv__store_portable(x + j, toy_kv__loadh_portable(row + 2 * j));
    for (; j < n; j++)
        x[j] = toy_kv__half_at(row, (size_t)j);
}

/* x [n] of fp32 from entries of a table: the i-th on, the first of them in column `col`. */
TOY_KV__TARGET_portable static inline void toy_kv__unpack_portable(const toy_kv__matrix *m, size_t i, size_t col,
                                                     int n, float *x)
{
    int j = 0;
    if (m->scale == NULL) {
        toy_kv__widen_portable(m->values + 2 * i, n, x);
        return;
    }
    for (; j + TOY_KV__LANES_portable <= n; j += TOY_KV__LANES_portable)
        toy_kv__store_portable(x + j, toy_kv__mul_portable(toy_kv__loads8_portable(m->values + i + j),
                                             toy_kv__loadh_portable(m->scale + 2 * (col + (size_t)j))));
    for (; j < n; j++)
        x[j] = toy_kv__raw_at(m, i + (size_t)j) * toy_kv__half_at(m->scale, col + (size_t)j);
}

TOY_KV__TARGET_portable static void toy_kv__product_portable(toy_kv__matrix table, size_t ld, int across, int n_in,
                                               int n_out, const float *x, float *y)
{
    float coef[TOY_KV__STRIP_portable * TOY_KV__DEPTH_portable];
    int i, o, k, first;
    memset(coef, 0, sizeof coef);
    for (o = 0; o < n_out; o += TOY_KV__STRIP_portable)
        for (first = 0; first < n_in; first += TOY_KV__DEPTH_portable) {
            int m = n_out - o < TOY_KV__STRIP_portable ? n_out - o : TOY_KV__STRIP_portable;
            int n = n_in - first < TOY_KV__DEPTH_portable ? n_in - first : TOY_KV__DEPTH_portable;
            const float *src = x + (size_t)first * TOY_KV_BLOCK;
            for (k = 0; k < m && across; k++)
                toy_kv__unpack_portable(&table, (size_t)(o + k) * ld + (size_t)first, (size_t)first, n,
                                 coef + k * TOY_KV__DEPTH_portable);
            for (i = 0; i < n && !across; i++)
                toy_kv__unpack_portable(&table, (size_t)(first + i) * ld + (size_t)o, (size_t)o, m,
                                 coef + i * TOY_KV__STRIP_portable);
            for (k = 0; k < m; k += TOY_KV__N_OUTS_portable) {
                float *dst = y + (size_t)(o + k) * TOY_KV_BLOCK;
                if (across)
                    toy_kv__outputs_across_portable(coef + k * TOY_KV__DEPTH_portable, n, m - k, src, dst);
                else
                    toy_kv__outputs_down_portable(coef + k, n, m - k, src, dst);
            }
        }
}

TOY_KV__TARGET_portable static void toy_kv__add_scaled_portable(size_t n, float a, const float *x, float *y)
{
    size_t i;
    toy_kv__vf_portable factor = toy_kv__set1_portable(a);
    for (i = 0; i < n; i += TOY_KV__LANES_portable)
        toy_kv__store_portable(y + i, toy_kv__fma_portable(factor, toy_kv__load_portable(x + i), toy_kv__load_portable(y + i)));
}

TOY_KV__TARGET_portable static void toy_kv__affine_portable(const float *scale, const float *shift, int rows,
                                              float *x)
{
    int t, r;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a = toy_kv__load_portable(scale + t), b = toy_kv__load_portable(shift + t);
        float *p = x + t;
        for (r = 0; r < rows; r++, p += TOY_KV_BLOCK)
            toy_kv__store_portable(p, toy_kv__fma_portable(a, toy_kv__load_portable(p), b));
    }
}

TOY_KV__TARGET_portable static void toy_kv__affine_row_portable(int n, float scale, float shift, float *x)
{
    int i = 0;
    toy_kv__vf_portable a = toy_kv__set1_portable(scale), b = toy_kv__set1_portable(shift);
    for (; i + TOY_KV__LANES_portable <= n; i += TOY_KV__LANES_portable)
        toy_kv__store_portable(x + i, toy_kv__fma_portable(a, toy_kv__load_portable(x + i), b));
    for (; i < n; i++)
        x[i] = scale * x[i] + shift;
}

TOY_KV__TARGET_portable static void toy_kv__from_bytes_portable(const unsigned char *bytes, float bias,
                                                  float *dst)
{
    int t;
    toy_kv__vf_portable b = toy_kv__set1_portable(bias);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable)
        toy_kv__store_portable(dst + t, toy_kv__add_portable(toy_kv__loadu8_portable(bytes + t), b));
}

TOY_KV__TARGET_portable static void toy_kv__from_nibbles_portable(const unsigned char *plane,
                                                    const unsigned char *book, int width, int add,
                                                    float *dst)
{
    float words[16];
    int t, w;
    for (w = 0; w < width; w++, dst += TOY_KV_BLOCK) {
        toy_kv__vt_portable table;
        toy_kv__widen_portable(book + 2 * 16 * w, 16, words);
        table = toy_kv__table_portable(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
            toy_kv__vf_portable v = toy_kv__lookup_portable(table, toy_kv__nibbles_portable(plane, t));
            toy_kv__store_portable(dst + t, add ? toy_kv__add_portable(toy_kv__load_portable(dst + t), v) : v);
        }
    }
}

/* The angle of a token is the block's and the token's own, one complex product a pair. */
TOY_KV__TARGET_portable static void toy_kv__turn_tile_portable(const float *block, const float *tokens,
                                                 float direction, const float *x, float *y)
{
    int i, t;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        int first = (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i) * TOY_KV_BLOCK;
        int second = (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2) * TOY_KV_BLOCK;
        toy_kv__vf_portable block_cos = toy_kv__set1_portable(block[2 * i]), c = block_cos;
        toy_kv__vf_portable block_sin = toy_kv__set1_portable(direction * block[2 * i + 1]), s = block_sin;
        toy_kv__vf_portable sign = toy_kv__set1_portable(direction), minus = toy_kv__set1_portable(-1.0f);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
            toy_kv__vf_portable a = toy_kv__load_portable(x + first + t), b = toy_kv__load_portable(x + second + t);
            if (tokens != NULL) {
                const float *own = tokens + 2 * i * TOY_KV_BLOCK + t;
                toy_kv__vf_portable own_cos = toy_kv__load_portable(own);
                toy_kv__vf_portable own_sin = toy_kv__mul_portable(sign, toy_kv__load_portable(own + TOY_KV_BLOCK));
                c = toy_kv__fma_portable(toy_kv__mul_portable(minus, block_sin), own_sin,
                                  toy_kv__mul_portable(block_cos, own_cos));
                s = toy_kv__fma_portable(block_sin, own_cos, toy_kv__mul_portable(block_cos, own_sin));
            }
            toy_kv__store_portable(y + first + t,
                            toy_kv__fma_portable(toy_kv__mul_portable(minus, s), b, toy_kv__mul_portable(c, a)));
            toy_kv__store_portable(y + second + t, toy_kv__fma_portable(s, a, toy_kv__mul_portable(c, b)));
        }
    }
    if (x != y)
        memcpy(y + TOY_KV_N_ROT * TOY_KV_BLOCK, x + TOY_KV_N_ROT * TOY_KV_BLOCK,
               sizeof(float) * (TOY_KV_HEAD_DIM - TOY_KV_N_ROT) * TOY_KV_BLOCK);
}

/* s [n, BLOCK] = q [n, HEAD_DIM] against a tile k. n: a constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__score_held_portable(const float *k, const float *q, const int n,
                                                        float *s)
{
    int d, t, i;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a[4];
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            a[i] = toy_kv__set1_portable(0.0f);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            toy_kv__vf_portable v = toy_kv__load_portable(k + d * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (i = 0; i < n; i++)
                a[i] = toy_kv__fma_portable(toy_kv__set1_portable(q[i * TOY_KV_HEAD_DIM + d]), v, a[i]);
        }
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            toy_kv__store_portable(s + i * TOY_KV_BLOCK + t, a[i]);
    }
}

TOY_KV__TARGET_portable static void toy_kv__score_tile_portable(const float *k, const float *q, int rows,
                                                  float *s)
{
    int r;
#define TOY_KV__X(n) toy_kv__score_held_portable(k, q + r * TOY_KV_HEAD_DIM, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times v [BLOCK]. n: a constant, 4
 * at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__sum_held_portable(const float *v, const float *p, const int n,
                                                      float *acc, size_t stride)
{
    toy_kv__vf_portable a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable x = toy_kv__load_portable(v + t);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_portable(toy_kv__load_portable(p + k * TOY_KV_BLOCK + t), x, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable, a[k]);
}

TOY_KV__TARGET_portable static void toy_kv__sum_tile_portable(const float *v, const float *p, int rows,
                                                float *acc, size_t stride)
{
    int r, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_held_portable(v, p + r * TOY_KV_BLOCK, n, acc + (size_t)r * stride * TOY_KV__LANES_portable, stride)
    for (d = 0; d < TOY_KV_HEAD_DIM; d++, v += TOY_KV_BLOCK, acc += TOY_KV__LANES_portable)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

TOY_KV__TARGET_portable static void toy_kv__distances_portable(const unsigned char *book, int n, int width,
                                                 int count, const float *z, float *distance)
{
    int i = 0, w;
    for (; i + TOY_KV__LANES_portable <= count; i += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a = toy_kv__set1_portable(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_portable d =
                toy_kv__add_portable(toy_kv__loadh_portable(book + 2 * ((size_t)w * (size_t)n + (size_t)i)),
                              toy_kv__set1_portable(-z[w]));
            a = toy_kv__fma_portable(d, d, a);
        }
        toy_kv__store_portable(distance + i, a);
    }
    for (; i < count; i++) {
        distance[i] = 0.0f;
        for (w = 0; w < width; w++) {
            float d = toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i) - z[w];
            distance[i] += d * d;
        }
    }
}

TOY_KV__TARGET_portable static void toy_kv__landmark_scores_portable(const unsigned char *codes, int n,
                                                       const float *q, int rows, float *best)
{
    toy_kv__vf_portable bias = toy_kv__set1_portable(-128.0f);
    int i, r, d;
    for (i = 0; i < n; i++, codes += TOY_KV_HEAD_DIM)
        for (r = 0; r < rows; r++) {
            const float *x = q + r * TOY_KV_HEAD_DIM;
            toy_kv__vf_portable a = toy_kv__set1_portable(0.0f);
            float sum;
            for (d = 0; d + TOY_KV__LANES_portable <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_portable)
                a = toy_kv__fma_portable(toy_kv__load_portable(x + d),
                                  toy_kv__add_portable(toy_kv__loadu8_portable(codes + d), bias), a);
            sum = toy_kv__hsum_portable(a);
            for (; d < TOY_KV_HEAD_DIM; d++)
                sum += x[d] * ((float)codes[d] - 128.0f);
            best[i] = r == 0 || sum > best[i] ? sum : best[i];
        }
}

#define TOY_KV__X(name) toy_kv__##name##_portable,
static const toy_kv__dense_ops toy_kv__dense_portable = {TOY_KV__DENSE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Kernels of encoding for one instruction set, in the vocabulary of kernels.h and over the tiles of
 * dense.h: LANES tokens at once. Besides:
 *
 *   storeu8 (integral 0..15 to bytes)   storeh (to binary16; what is too large becomes the largest)
 *   keep_less(x, i, &least, &index): where x < least, least = x and index = i
 *   transpose(src, step, dst, step): eight by eight binary16 values, steps of rows in bytes */

/* The codewords i .. i + 3 against LANES tokens z [width, BLOCK]: least and index are what was
 * found before. book: |c|^2 / 2 [16], then -c [width, 16]; |z - c|^2 / 2 less these is the same for
 * all codewords. */
#define TOY_KV__FOUR(i)                                                                              \
    {                                                                                              \
        toy_kv__vf_portable a0 = toy_kv__set1_portable(book[i]), a1 = toy_kv__set1_portable(book[(i) + 1]);             \
        toy_kv__vf_portable a2 = toy_kv__set1_portable(book[(i) + 2]), a3 = toy_kv__set1_portable(book[(i) + 3]);       \
        for (w = 0; w < width; w++) {                                                              \
            toy_kv__vf_portable v = toy_kv__load_portable(z + w * TOY_KV_BLOCK);                                   \
            const float *c = book + 16 * (w + 1) + (i);                                            \
            a0 = toy_kv__fma_portable(toy_kv__set1_portable(c[0]), v, a0);                                       \
            a1 = toy_kv__fma_portable(toy_kv__set1_portable(c[1]), v, a1);                                       \
            a2 = toy_kv__fma_portable(toy_kv__set1_portable(c[2]), v, a2);                                       \
            a3 = toy_kv__fma_portable(toy_kv__set1_portable(c[3]), v, a3);                                       \
        }                                                                                          \
        toy_kv__keep_less_portable(a0, (float)(i), &least, &index);                                       \
        toy_kv__keep_less_portable(a1, (float)((i) + 1), &least, &index);                                 \
        toy_kv__keep_less_portable(a2, (float)((i) + 2), &least, &index);                                 \
        toy_kv__keep_less_portable(a3, (float)((i) + 3), &least, &index);                                 \
    }

/* Inlined with a constant width. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__search_tile_portable(const float *book, int width,
                                                         const float *tile, unsigned char *code)
{
    int t, w;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        const float *z = tile + t;
        toy_kv__vf_portable least = toy_kv__set1_portable(3.4e38f), index = toy_kv__set1_portable(0.0f);
        TOY_KV__FOUR(0)
        TOY_KV__FOUR(4)
        TOY_KV__FOUR(8)
        TOY_KV__FOUR(12)
        toy_kv__storeu8_portable(code + t, index);
    }
}
#undef TOY_KV__FOUR

/* The nearest of 16 codewords, binary16 [width, 16], to each token of z [width, BLOCK], the lower
 * one on ties: a plane of nibbles. words: room for [width + 1, 16]. */
TOY_KV__TARGET_portable static void toy_kv__code_nibbles_portable(const unsigned char *book, int width,
                                                    const float *z, float *words,
                                                    unsigned char *plane)
{
    unsigned char code[TOY_KV_BLOCK];
    toy_kv__vf_portable half = toy_kv__set1_portable(0.5f), minus = toy_kv__set1_portable(-1.0f);
    int i, w, t;
    for (i = 0; i < 16; i += TOY_KV__LANES_portable) {
        toy_kv__vf_portable norm = toy_kv__set1_portable(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_portable c = toy_kv__loadh_portable(book + 2 * (16 * w + i));
            norm = toy_kv__fma_portable(toy_kv__mul_portable(half, c), c, norm);
            toy_kv__store_portable(words + 16 * (w + 1) + i, toy_kv__mul_portable(minus, c));
        }
        toy_kv__store_portable(words + i, norm);
    }
    switch (width) {
    case 1:
        toy_kv__search_tile_portable(words, 1, z, code);
        break;
    case 2:
        toy_kv__search_tile_portable(words, 2, z, code);
        break;
    case 4:
        toy_kv__search_tile_portable(words, 4, z, code);
        break;
    default:
        toy_kv__search_tile_portable(words, width, z, code);
    }
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 8) {
        uint64_t low, high;
        memcpy(&low, code + t, 8);
        memcpy(&high, code + TOY_KV_BLOCK / 2 + t, 8);
        low |= high << 4;
        memcpy(plane + t, &low, 8);
    }
}

/* z [width, BLOCK] -= the codewords of a plane of nibbles. */
TOY_KV__TARGET_portable static void toy_kv__leave_nibbles_portable(const unsigned char *plane,
                                                     const unsigned char *book, int width, float *z)
{
    float words[16];
    int i, t, w;
    toy_kv__vf_portable minus = toy_kv__set1_portable(-1.0f);
    for (w = 0; w < width; w++, z += TOY_KV_BLOCK) {
        toy_kv__vt_portable table;
        for (i = 0; i < 16; i += TOY_KV__LANES_portable)
            toy_kv__store_portable(words + i, toy_kv__loadh_portable(book + 2 * (16 * w + i)));
        table = toy_kv__table_portable(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable)
            toy_kv__store_portable(
                z + t, toy_kv__fma_portable(minus, toy_kv__lookup_portable(table, toy_kv__nibbles_portable(plane, t)),
                                     toy_kv__load_portable(z + t)));
    }
}

/* sum [BLOCK]: of the squares of x [rows, BLOCK]. */
TOY_KV__TARGET_portable static void toy_kv__squares_portable(const float *x, int rows, float *sum)
{
    int r, t, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_portable(0.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_portable v = toy_kv__load_portable(x + (size_t)(r + k) * TOY_KV_BLOCK + t);
                a[k] = toy_kv__fma_portable(v, v, a[k]);
            }
        }
        for (; r < rows; r++) {
            toy_kv__vf_portable v = toy_kv__load_portable(x + (size_t)r * TOY_KV_BLOCK + t);
            a[0] = toy_kv__fma_portable(v, v, a[0]);
        }
        toy_kv__store_portable(sum + t,
                        toy_kv__add_portable(toy_kv__add_portable(a[0], a[1]), toy_kv__add_portable(a[2], a[3])));
    }
}

/* x [HEAD_DIM, BLOCK] from rows of binary16 [BLOCK, HEAD_DIM]. */
TOY_KV__TARGET_portable static void toy_kv__load_rows_portable(const unsigned char *rows, float *x)
{
    unsigned char tile[8 * 2 * TOY_KV_BLOCK];
    int d, t, i;
    for (d = 0; d + 8 <= TOY_KV_HEAD_DIM; d += 8, x += 8 * TOY_KV_BLOCK) {
        for (t = 0; t < TOY_KV_BLOCK; t += 8)
            toy_kv__transpose_portable(rows + 2 * (t * TOY_KV_HEAD_DIM + d), 2 * TOY_KV_HEAD_DIM, tile + 2 * t,
                                2 * TOY_KV_BLOCK);
        for (i = 0; i < 8 * TOY_KV_BLOCK; i += TOY_KV__LANES_portable)
            toy_kv__store_portable(x + i, toy_kv__loadh_portable(tile + 2 * i));
    }
    for (; d < TOY_KV_HEAD_DIM; d++, x += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++)
            x[t] = toy_kv__half_at(rows, (size_t)(t * TOY_KV_HEAD_DIM + d));
}

/* A row of binary16 [n] from x [n]. */
TOY_KV__TARGET_portable static void toy_kv__store_row_portable(const float *x, int n, unsigned char *row)
{
    int i = 0;
    for (; i + TOY_KV__LANES_portable <= n; i += TOY_KV__LANES_portable)
        toy_kv__storeh_portable(row + 2 * i, toy_kv__load_portable(x + i));
    for (; i < n; i++)
        toy_kv__storeh_portable(row + 2 * i, x[i]);
}

/* Turns a head's vector x [HEAD_DIM] by cosines and sines, each [N_ROT / 2]. */
TOY_KV__TARGET_portable static void toy_kv__turn_row_portable(const float *cosines, const float *sines, float *x)
{
    int i = 0, half = TOY_KV_N_ROT / 2;
    toy_kv__vf_portable minus = toy_kv__set1_portable(-1.0f);
    for (; !TOY_KV_ROPE_INTERLEAVED && i + TOY_KV__LANES_portable <= half; i += TOY_KV__LANES_portable) {
        toy_kv__vf_portable c = toy_kv__load_portable(cosines + i), s = toy_kv__load_portable(sines + i);
        toy_kv__vf_portable a = toy_kv__load_portable(x + i), b = toy_kv__load_portable(x + half + i);
        toy_kv__store_portable(x + i, toy_kv__fma_portable(toy_kv__mul_portable(minus, s), b, toy_kv__mul_portable(c, a)));
        toy_kv__store_portable(x + half + i, toy_kv__fma_portable(s, a, toy_kv__mul_portable(c, b)));
    }
    for (; i < half; i++) {
        float *first = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i);
        float *second = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + half);
        float a = *first, b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

#define TOY_KV__X(name) toy_kv__##name##_portable,
static const toy_kv__code_ops toy_kv__code_portable = {TOY_KV__CODE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
TOY_KV__TARGET_portable static inline toy_kv__vf_portable toy_kv__entries_portable(const toy_kv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? toy_kv__loads8_portable(m->values + i) : toy_kv__loadh_portable(m->values + 2 * i);
}

/* sum [n]: the sums over the lanes of x [n], n a constant, 4 at most; what stands behind is
 * anything.
 */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__lane_sums_portable(const toy_kv__vf_portable *x, const int n,
                                                       float *sum)
{
    toy_kv__hsum4_portable(x[0], x[n > 1 ? 1 : 0], x[n > 2 ? 2 : 0], x[n > 3 ? 3 : 0], sum);
}

/* Latents j .. j + m LANES - 1 of n queries x [n, ldx]: y [n, n_out]. n and m, 1 or 2: constants.
 */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__map_some_portable(const toy_kv__matrix *table, const int bytes,
                                                      int n_in, int n_out, int j, const int m,
                                                      const float *x, int ldx, const int n,
                                                      float *y)
{
    const size_t next = m > 1 ? TOY_KV__LANES_portable : 0;
    toy_kv__vf_portable a[4], b[4], scale = toy_kv__set1_portable(1.0f), more = scale;
    int d, k;
    if (bytes) {
        scale = toy_kv__loadh_portable(table->scale + 2 * (size_t)j);
        more = toy_kv__loadh_portable(table->scale + 2 * ((size_t)j + next));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = b[k] = toy_kv__set1_portable(0.0f);
    for (d = 0; d < n_in; d++) {
        const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
        toy_kv__vf_portable u = toy_kv__entries_portable(table, at, bytes);
        toy_kv__vf_portable v = m > 1 ? toy_kv__entries_portable(table, at + next, bytes) : u;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_portable q = toy_kv__set1_portable(x[k * ldx + d]);
            a[k] = toy_kv__fma_portable(q, u, a[k]);
            if (m > 1)
                b[k] = toy_kv__fma_portable(q, v, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = y + (size_t)k * (size_t)n_out + j;
        toy_kv__store_portable(to, toy_kv__mul_portable(scale, a[k]));
        if (m > 1)
            toy_kv__store_portable(to + next, toy_kv__mul_portable(more, b[k]));
    }
}

TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__map_entries_portable(const toy_kv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_portable(table, bytes, n_in, n_out, j, 2, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j + 2 * TOY_KV__LANES_portable <= n_out; j += 2 * TOY_KV__LANES_portable)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_portable(table, bytes, n_in, n_out, j, 1, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j < n_out && n_out >= TOY_KV__LANES_portable; j += TOY_KV__LANES_portable) {
        if (j + TOY_KV__LANES_portable > n_out) /* the last LANES, some of them once more */
            j = n_out - TOY_KV__LANES_portable;
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
    for (; j < n_out; j++)
        for (r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (d = 0; d < n_in; d++)
                sum += x[(size_t)r * (size_t)ldx + (size_t)d] *
                       toy_kv__raw_at(table, (size_t)d * (size_t)n_out + (size_t)j);
            y[(size_t)r * (size_t)n_out + (size_t)j] =
                bytes ? sum * toy_kv__half_at(table->scale, (size_t)j) : sum;
        }
}

/* y [rows, n_out] = x [rows, n_in] * table [n_in, n_out]: the query map. */
TOY_KV__TARGET_portable static void toy_kv__map_portable(toy_kv__matrix table, int n_in, int n_out, const float *x,
                                           int ldx, int rows, float *y)
{
    if (table.scale != NULL)
        toy_kv__map_entries_portable(&table, 1, n_in, n_out, x, ldx, rows, y);
    else
        toy_kv__map_entries_portable(&table, 0, n_in, n_out, x, ldx, rows, y);
}

/* Outputs that a pass of unmap holds sums of for four rows: as many as 32 registers hold, or 16. */
#define TOY_KV__UNMAPPED_portable (TOY_KV__LANES_portable >= 16 ? 4 : 2)

/* Outputs d .. d + m - 1 of n rows x [n, n_in], whose last LANES are `rest`, 0 where whole ones
 * end: o [n, n_out]. n_in: LANES at least. n, 4 at most, and m, 1, 2 or 4: constants; outputs share
 * what is loaded of x. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__unmap_some_portable(const toy_kv__matrix *table, const int bytes,
                                                        int d, const int m, int n_in,
                                                        const float *x,
                                                        float (*rest)[TOY_KV__LANES_portable], const int n,
                                                        float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in;
    const int whole = n_in / TOY_KV__LANES_portable * TOY_KV__LANES_portable;
    toy_kv__vf_portable a[4][4]; /* [row][output] */
    float sum[4];
    int i, j, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            a[k][i] = toy_kv__set1_portable(0.0f);
    for (j = 0; j < n_in; j += TOY_KV__LANES_portable) {
        /* the last LANES, some of them once more, where no whole ones are left */
        const int last = j == whole, at = last ? n_in - TOY_KV__LANES_portable : j;
        toy_kv__vf_portable u[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            u[i] = toy_kv__entries_portable(table, row + (size_t)(i * n_in + at), bytes);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_portable y = toy_kv__load_portable(last ? rest[k] : x + k * n_in + j);
#pragma GCC unroll 4
            for (i = 0; i < m; i++)
                a[k][i] = toy_kv__fma_portable(y, u[i], a[k][i]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = o + k * n_out + d;
        toy_kv__hsum4_portable(a[k][0], a[k][1], a[k][2], a[k][3], sum);
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            to[i] += sum[i];
    }
}

/* All outputs of n rows. n: a constant. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__unmap_rows_portable(const toy_kv__matrix *table, const int bytes,
                                                        int n_out, int n_in, const float *x,
                                                        float (*rest)[TOY_KV__LANES_portable], const int n,
                                                        float *o)
{
    int d = 0;
    for (; d + TOY_KV__UNMAPPED_portable <= n_out; d += TOY_KV__UNMAPPED_portable)
        toy_kv__unmap_some_portable(table, bytes, d, TOY_KV__UNMAPPED_portable, n_in, x, rest, n, o, n_out);
    for (; d < n_out; d++)
        toy_kv__unmap_some_portable(table, bytes, d, 1, n_in, x, rest, n, o, n_out);
}

TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__unmap_entries_portable(const toy_kv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[TOY_KV__MAX_ROWS][TOY_KV__LANES_portable]; /* the last LANES of y, 0 where whole ones end */
    const int whole = n_in / TOY_KV__LANES_portable * TOY_KV__LANES_portable;
    int r, j;
    if (n_in < TOY_KV__LANES_portable) {
        toy_kv__unmap_short(table, n_out, n_in, y, rows, o);
        return;
    }
    memset(rest, 0, sizeof rest);
    for (r = 0; r < rows; r++) {
        const float *end = y + (size_t)(r + 1) * (size_t)n_in;
        for (j = whole - n_in; j < 0; j++)
            rest[r][TOY_KV__LANES_portable + j] = end[j];
    }
#define TOY_KV__X(n)                                                                                 \
    toy_kv__unmap_rows_portable(table, bytes, n_out, n_in, y + (size_t)r * (size_t)n_in, rest + r, n,     \
                         o + r * n_out)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [rows, n] times scale [n], binary16. */
TOY_KV__TARGET_portable static inline void toy_kv__scale_latents_portable(const unsigned char *scale, int n,
                                                            int rows, float *y)
{
    int r, j = 0;
    for (; j + TOY_KV__LANES_portable <= n; j += TOY_KV__LANES_portable) {
        const toy_kv__vf_portable f = toy_kv__loadh_portable(scale + 2 * j);
        for (r = 0; r < rows; r++) {
            float *x = y + (size_t)r * (size_t)n + j;
            toy_kv__store_portable(x, toy_kv__mul_portable(toy_kv__load_portable(x), f));
        }
    }
    for (; j < n; j++) {
        const float f = toy_kv__half_at(scale, (size_t)j);
        for (r = 0; r < rows; r++)
            y[(size_t)r * (size_t)n + (size_t)j] *= f;
    }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
TOY_KV__TARGET_portable static void toy_kv__unmap_portable(toy_kv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    if (table.scale == NULL) {
        toy_kv__unmap_entries_portable(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    toy_kv__scale_latents_portable(table.scale, n_in, rows, y);
    toy_kv__unmap_entries_portable(&table, 1, n_out, n_in, y, rows, o);
}
/* Arithmetic on rows of numbers for one instruction set, in the vocabulary of kernels.h: gains and
 * softmax of scores, exact tokens, sums over lanes, angles. */

/* exp(x) for x <= 0, down to x = -87, where it stays: relative error below 2e-7 near 0 and below
 * 6e-8 |x| elsewhere, so that no sum of them errs by more than the first. A polynomial for 2^r with
 * the least relative error on [-1/2, 1/2], its terms in pairs: what waits for operands fills the
 * processor's queues, so that a long chain is slower than one product more. */
TOY_KV__TARGET_portable static inline toy_kv__vf_portable toy_kv__exp_portable(toy_kv__vf_portable x)
{
    toy_kv__vf_portable n, r, square, low, high;
    x = toy_kv__mul_portable(toy_kv__max_portable(x, toy_kv__set1_portable(-87.0f)), toy_kv__set1_portable(1.44269504f));
    n = toy_kv__round_portable(x);
    r = toy_kv__sub_portable(x, n);
    square = toy_kv__mul_portable(r, r);
    low = toy_kv__fma_portable(toy_kv__set1_portable(0.693147004f), r, toy_kv__set1_portable(1.0f));
    high = toy_kv__fma_portable(toy_kv__set1_portable(0.0555073358f), r, toy_kv__set1_portable(0.240222424f));
    x = toy_kv__fma_portable(toy_kv__set1_portable(0.00132647273f), r, toy_kv__set1_portable(0.00967151299f));
    high = toy_kv__fma_portable(x, square, high);
    low = toy_kv__fma_portable(high, square, low);
    return toy_kv__scale2_portable(low, n);
}

/* dst [rows, BLOCK] = gain [BLOCK] * src [rows, BLOCK] */
TOY_KV__TARGET_portable static void toy_kv__scale_rows_portable(const float *gain, const float *src, int rows,
                                                  float *dst)
{
    int r, t;
    for (r = 0; r < rows; r++)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
            int i = r * TOY_KV_BLOCK + t;
            toy_kv__store_portable(dst + i,
                            toy_kv__mul_portable(toy_kv__load_portable(gain + t), toy_kv__load_portable(src + i)));
        }
}

/* s [rows, BLOCK] = (bias [rows], or s if NULL) + gain [BLOCK] * part [rows, BLOCK]; high [rows,
 * LANES], if not NULL, rises to the highest of each lane. */
TOY_KV__TARGET_portable static void toy_kv__gain_scores_portable(const float *gain, const float *part,
                                                   const float *bias, int rows, float *s,
                                                   float *high)
{
    int r, t;
    for (r = 0; r < rows; r++, part += TOY_KV_BLOCK, s += TOY_KV_BLOCK) {
        const toy_kv__vf_portable base = toy_kv__set1_portable(bias != NULL ? bias[r] : 0.0f);
        toy_kv__vf_portable top = toy_kv__set1_portable(TOY_KV__MASKED);
#pragma GCC unroll 4
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
            toy_kv__vf_portable x = toy_kv__fma_portable(toy_kv__load_portable(gain + t), toy_kv__load_portable(part + t),
                                           bias != NULL ? base : toy_kv__load_portable(s + t));
            toy_kv__store_portable(s + t, x);
            top = toy_kv__max_portable(top, x);
        }
        if (high != NULL)
            toy_kv__store_portable(high + r * TOY_KV__LANES_portable,
                            toy_kv__max_portable(top, toy_kv__load_portable(high + r * TOY_KV__LANES_portable)));
    }
}

/* gain [BLOCK]: binary16 at p, or where there is a table its entries at the bytes at p. */
TOY_KV__TARGET_portable static void toy_kv__gains_portable(const unsigned char *p, const unsigned char *table,
                                             float *gain)
{
    int t;
    for (t = 0; t < TOY_KV_BLOCK && table != NULL; t += TOY_KV__GATHERED_portable)
        toy_kv__gather_portable(table, p + t, gain + t);
    for (t = 0; t < TOY_KV_BLOCK && table == NULL; t += TOY_KV__LANES_portable)
        toy_kv__store_portable(gain + t, toy_kv__loadh_portable(p + 2 * t));
}

/* y [n] += x * table row, binary16 [n] */
TOY_KV__TARGET_portable static void toy_kv__add_row_portable(const unsigned char *row, int n, float x, float *y)
{
    int j = 0;
    toy_kv__vf_portable xs = toy_kv__set1_portable(x);
    for (; j + TOY_KV__LANES_portable <= n; j += TOY_KV__LANES_portable)
        toy_kv__store_portable(y + j,
                        toy_kv__fma_portable(xs, toy_kv__loadh_portable(row + 2 * j), toy_kv__load_portable(y + j)));
    for (; j < n; j++)
        y[j] += x * toy_kv__half_at(row, (size_t)j);
}

/* x . table row, binary16 [n] */
TOY_KV__TARGET_portable static float toy_kv__dot_row_portable(const unsigned char *row, int n, const float *x)
{
    int j = 0;
    float sum;
    toy_kv__vf_portable a = toy_kv__set1_portable(0.0f);
    for (; j + TOY_KV__LANES_portable <= n; j += TOY_KV__LANES_portable)
        a = toy_kv__fma_portable(toy_kv__load_portable(x + j), toy_kv__loadh_portable(row + 2 * j), a);
    sum = toy_kv__hsum_portable(a);
    for (; j < n; j++)
        sum += x[j] * toy_kv__half_at(row, (size_t)j);
    return sum;
}

/* The largest of s, BLOCK numbers in each of `blocks` blocks `step` apart. */
TOY_KV__TARGET_portable static float toy_kv__largest_portable(const float *s, int blocks, size_t step)
{
    int b, t;
    toy_kv__vf_portable high = toy_kv__load_portable(s);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable)
            high = toy_kv__max_portable(high, toy_kv__load_portable(s + t));
    return toy_kv__hmax_portable(high);
}

/* The same numbers become exp(s - m); returns their sum. */
TOY_KV__TARGET_portable static float toy_kv__exponentials_portable(float *s, int blocks, size_t step, float m)
{
    int b, t;
    toy_kv__vf_portable shift = toy_kv__set1_portable(-m), sum = toy_kv__set1_portable(0.0f);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
            toy_kv__vf_portable e = toy_kv__exp_portable(toy_kv__add_portable(toy_kv__load_portable(s + t), shift));
            toy_kv__store_portable(s + t, e);
            sum = toy_kv__add_portable(sum, e);
        }
    return toy_kv__hsum_portable(sum);
}

/* s [n, BLOCK] at token 0 = q [n, HEAD_DIM] . k, and at `next` tokens on = q . l, which may be k.
 * n: a constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__exact_pair_portable(const unsigned char *k,
                                                        const unsigned char *l, const float *q,
                                                        const int n, int next, float *s)
{
    toy_kv__vf_portable a[4], b[4];
    float sum[2][4];
    int d, i;
#pragma GCC unroll 4
    for (i = 0; i < n; i++)
        a[i] = b[i] = toy_kv__set1_portable(0.0f);
    for (d = 0; d + TOY_KV__LANES_portable <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_portable) {
        toy_kv__vf_portable x = toy_kv__loadh_portable(k + 2 * d), y = toy_kv__loadh_portable(l + 2 * d);
#pragma GCC unroll 4
        for (i = 0; i < n; i++) {
            toy_kv__vf_portable query = toy_kv__load_portable(q + i * TOY_KV_HEAD_DIM + d);
            a[i] = toy_kv__fma_portable(query, x, a[i]);
            b[i] = toy_kv__fma_portable(query, y, b[i]);
        }
    }
    toy_kv__lane_sums_portable(a, n, sum[0]);
    toy_kv__lane_sums_portable(b, n, sum[1]);
    for (; d < TOY_KV_HEAD_DIM; d++) {
        float x = toy_kv__half_at(k, (size_t)d), y = toy_kv__half_at(l, (size_t)d);
        for (i = 0; i < n; i++) {
            sum[0][i] += q[i * TOY_KV_HEAD_DIM + d] * x;
            sum[1][i] += q[i * TOY_KV_HEAD_DIM + d] * y;
        }
    }
#pragma GCC unroll 4
    for (i = 0; i < n; i++) {
        s[i * TOY_KV_BLOCK] = sum[0][i];
        s[i * TOY_KV_BLOCK + next] = sum[1][i];
    }
}

/* s [rows, BLOCK] = q [rows, HEAD_DIM] . the n rows of k, binary16 [n, HEAD_DIM]: exact tokens, two
 * at a time. */
TOY_KV__TARGET_portable static void toy_kv__exact_scores_portable(const unsigned char *k, int n, const float *q,
                                                    int rows, float *s)
{
    int t, r;
    for (t = 0; t < n; t += 2) {
        const unsigned char *x = k + 2 * (size_t)t * TOY_KV_HEAD_DIM;
        int next = t + 1 < n;
        const unsigned char *y = x + 2 * next * TOY_KV_HEAD_DIM;
#define TOY_KV__X(n_rows)                                                                            \
    toy_kv__exact_pair_portable(x, y, q + r * TOY_KV_HEAD_DIM, n_rows, next, s + r * TOY_KV_BLOCK + t)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* o [m, HEAD_DIM] += p [m, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. m: a constant, 4
 * at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__exact_add_portable(const unsigned char *v, int n,
                                                       const float *p, const int m, float *o)
{
    int t, i, d;
    for (d = 0; d + 2 * TOY_KV__LANES_portable <= TOY_KV_HEAD_DIM; d += 2 * TOY_KV__LANES_portable) {
        float *dst = o + d, *next = dst + TOY_KV__LANES_portable;
        toy_kv__vf_portable a[4], b[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            a[i] = toy_kv__load_portable(dst + i * TOY_KV_HEAD_DIM);
            b[i] = toy_kv__load_portable(next + i * TOY_KV_HEAD_DIM);
        }
        for (t = 0; t < n; t++) {
            const unsigned char *row = v + 2 * ((size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            toy_kv__vf_portable x = toy_kv__loadh_portable(row), y = toy_kv__loadh_portable(row + 2 * TOY_KV__LANES_portable);
#pragma GCC unroll 4
            for (i = 0; i < m; i++) {
                toy_kv__vf_portable w = toy_kv__set1_portable(p[i * TOY_KV_BLOCK + t]);
                a[i] = toy_kv__fma_portable(w, x, a[i]);
                b[i] = toy_kv__fma_portable(w, y, b[i]);
            }
        }
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            toy_kv__store_portable(dst + i * TOY_KV_HEAD_DIM, a[i]);
            toy_kv__store_portable(next + i * TOY_KV_HEAD_DIM, b[i]);
        }
    }
    for (; d < TOY_KV_HEAD_DIM; d++)
        for (t = 0; t < n; t++) {
            float x = toy_kv__half_at(v, (size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            for (i = 0; i < m; i++)
                o[i * TOY_KV_HEAD_DIM + d] += p[i * TOY_KV_BLOCK + t] * x;
        }
}

/* o [rows, HEAD_DIM] += p [rows, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. */
TOY_KV__TARGET_portable static void toy_kv__exact_sums_portable(const unsigned char *v, int n, const float *p,
                                                  int rows, float *o)
{
    int r;
#define TOY_KV__X(n_rows) toy_kv__exact_add_portable(v, n, p + r * TOY_KV_BLOCK, n_rows, o + r * TOY_KV_HEAD_DIM)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [n] = sums over the lanes of acc [n, LANES] */
TOY_KV__TARGET_portable static void toy_kv__reduce_portable(const float *acc, int n, float *y)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        const float *four = acc + (size_t)i * TOY_KV__LANES_portable;
        toy_kv__hsum4_portable(toy_kv__load_portable(four), toy_kv__load_portable(four + TOY_KV__LANES_portable),
                        toy_kv__load_portable(four + 2 * TOY_KV__LANES_portable),
                        toy_kv__load_portable(four + 3 * TOY_KV__LANES_portable), y + i);
    }
    for (; i < n; i++)
        y[i] = toy_kv__hsum_portable(toy_kv__load_portable(acc + (size_t)i * TOY_KV__LANES_portable));
}

/* x [n] *= factor */
TOY_KV__TARGET_portable static void toy_kv__shrink_portable(float *x, size_t n, float factor)
{
    size_t i;
    toy_kv__vf_portable f = toy_kv__set1_portable(factor);
    for (i = 0; i + TOY_KV__LANES_portable <= n; i += TOY_KV__LANES_portable)
        toy_kv__store_portable(x + i, toy_kv__mul_portable(toy_kv__load_portable(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

/* c, s [n]: cosines and sines of angles, which grow by those of dc, ds [n]. */
TOY_KV__TARGET_portable static void toy_kv__turn_on_portable(const float *dc, const float *ds, int n, float *c,
                                               float *s)
{
    int i;
    for (i = 0; i + TOY_KV__LANES_portable <= n; i += TOY_KV__LANES_portable) {
        toy_kv__vf_portable x = toy_kv__load_portable(c + i), y = toy_kv__load_portable(s + i);
        toy_kv__vf_portable u = toy_kv__load_portable(dc + i), v = toy_kv__load_portable(ds + i);
        toy_kv__store_portable(c + i, toy_kv__sub_portable(toy_kv__mul_portable(x, u), toy_kv__mul_portable(y, v)));
        toy_kv__store_portable(s + i, toy_kv__fma_portable(y, u, toy_kv__mul_portable(x, v)));
    }
    for (; i < n; i++) {
        float x = c[i], y = s[i];
        c[i] = x * dc[i] - y * ds[i];
        s[i] = y * dc[i] + x * ds[i];
    }
}
/* Kernels for one instruction set, in terms of its vector vocabulary:
 *
 *   vf: LANES floats    set1 load store loadh (from binary16) loadu8 loads8 (from bytes) add sub
 *                       mul fma max round scale2 (x * 2^n, n integral) hsum hmax
 *   vi: LANES codes     nibbles(plane, t): the 4-bit codes of tokens t .. t + LANES - 1
 *   vt: sixteen floats  table(p), lookup(table, codes)
 *   gather(table, bytes, x): binary16 values of a table at GATHERED byte codes
 *
 * A plane holds one code of each token of a block: the low nibbles are tokens 0 .. BLOCK/2 - 1, the
 * high nibbles the rest. Rows are queries that share one pass over the codes; kernels take them
 * four at a time, so that a plane is unpacked once for four queries. */

/* s [n, BLOCK] += sum over planes of lut [planes, step] at each token's code, n tables of sixteen
 * from the first on. n: a constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__score_some_portable(const unsigned char *codes, int planes,
                                                        const float *lut, size_t step, const int n,
                                                        float *s)
{
    int t, p, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__load_portable(s + k * TOY_KV_BLOCK + t);
        for (p = 0; p < planes; p++) {
            toy_kv__vi_portable code = toy_kv__nibbles_portable(codes + p * (TOY_KV_BLOCK / 2), t);
            const float *tab = lut + (size_t)p * step;
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__add_portable(a[k], toy_kv__lookup_portable(toy_kv__table_portable(tab + k * 16), code));
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_portable(s + k * TOY_KV_BLOCK + t, a[k]);
    }
}

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
TOY_KV__TARGET_portable static void toy_kv__score_nibbles_portable(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_some_portable(codes, planes, lut + r * 16, (size_t)rows * 16, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times the codewords of one
 * channel. n: a constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__sum_some_portable(const unsigned char *plane, const float *book,
                                                      const float *p, const int n, float *acc,
                                                      size_t stride)
{
    const toy_kv__vt_portable table = toy_kv__table_portable(book);
    toy_kv__vf_portable a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable v = toy_kv__lookup_portable(table, toy_kv__nibbles_portable(plane, t));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_portable(toy_kv__load_portable(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable, a[k]);
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
TOY_KV__TARGET_portable static void toy_kv__sum_nibbles_portable(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, i, w;
    for (i = 0; i < planes; i++, codes += TOY_KV_BLOCK / 2)
        for (w = 0; w < width; w++, book += 16) {
            float *to = acc + (size_t)(i / stages * width + w) * TOY_KV__LANES_portable;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_some_portable(codes, book, p + r * TOY_KV_BLOCK, n,                                         \
                       to + (size_t)r * stride * TOY_KV__LANES_portable, stride)
            TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
        }
}

/* Values of tokens t and on of a plane of one channel. `half`: binary16, two bytes a token; else a
 * byte a token whose value is code - 128. */
TOY_KV__TARGET_portable static inline toy_kv__vf_portable toy_kv__scalars_portable(const unsigned char *plane, int t,
                                                              int half)
{
    return half ? toy_kv__loadh_portable(plane + 2 * t)
                : toy_kv__add_portable(toy_kv__loadu8_portable(plane + t), toy_kv__set1_portable(-128.0f));
}

/* s [n, BLOCK] at tokens t .. t + 2 LANES - 1 += q [planes, step] * value. n: a constant, 4 at
 * most. asked: NULL, or what is asked for meanwhile. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__score_values_portable(const unsigned char *codes, int planes,
                                                          int half, int t, const float *q,
                                                          size_t step, const int n,
                                                          toy_kv__asked *asked, float *s)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    toy_kv__vf_portable a[4], b[4];
    int c, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        a[k] = toy_kv__load_portable(s + k * TOY_KV_BLOCK + t);
        b[k] = toy_kv__load_portable(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_portable);
    }
    for (c = 0; c < planes; c++, codes += bytes, q += step) {
        toy_kv__vf_portable v = toy_kv__scalars_portable(codes, t, half);
        toy_kv__vf_portable w = toy_kv__scalars_portable(codes, t + TOY_KV__LANES_portable, half);
        if (TOY_KV__LANES_portable >= 8 && asked != NULL)
            toy_kv__ask(asked);
        if (TOY_KV__LANES_portable >= 16 && half && asked != NULL)
            toy_kv__ask(asked);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_portable x = toy_kv__set1_portable(q[k]);
            a[k] = toy_kv__fma_portable(x, v, a[k]);
            b[k] = toy_kv__fma_portable(x, w, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        toy_kv__store_portable(s + k * TOY_KV_BLOCK + t, a[k]);
        toy_kv__store_portable(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_portable, b[k]);
    }
}

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. With four rows or more, as many
 * lines are asked for as a block of keys has together with one of values. */
TOY_KV__TARGET_portable static void toy_kv__score_scalars_portable(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r, t;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_values_portable(codes, planes, half, t, q + r, (size_t)rows, n,                         \
                           n == 4 && r == 0 ? &asked : NULL, s + r * TOY_KV_BLOCK)
    for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_portable)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times a plane's values. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__sum_values_portable(const unsigned char *plane, int half,
                                                        const float *p, const int n, float *acc,
                                                        size_t stride)
{
    toy_kv__vf_portable a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_portable) {
        toy_kv__vf_portable v = toy_kv__scalars_portable(plane, t, half);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_portable(toy_kv__load_portable(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_portable(acc + (size_t)k * stride * TOY_KV__LANES_portable, a[k]);
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
TOY_KV__TARGET_portable static void toy_kv__sum_scalars_portable(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    int r, c;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_values_portable(codes, half, p + r * TOY_KV_BLOCK, n,                                       \
                         acc + (size_t)r * stride * TOY_KV__LANES_portable, stride)
    for (c = 0; c < planes; c++, codes += bytes, acc += TOY_KV__LANES_portable)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* lut [n, 16]: the scores of codewords with the queries y [n, stride] of a plane's channels. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_portable TOY_KV__INLINE void toy_kv__fill_some_portable(const unsigned char *book, int width,
                                                       const float *y, size_t stride, const int n,
                                                       float *lut)
{
    int i, w, k;
    for (i = 0; i < 16; i += TOY_KV__LANES_portable) {
        toy_kv__vf_portable a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__set1_portable(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_portable b = toy_kv__loadh_portable(book + 2 * (w * 16 + i));
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__fma_portable(toy_kv__set1_portable(y[(size_t)k * stride + (size_t)w]), b, a[k]);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_portable(lut + k * 16 + i, a[k]);
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
TOY_KV__TARGET_portable static void toy_kv__fill_tables_portable(const toy_kv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = toy_kv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
#define TOY_KV__X(n)                                                                                 \
    toy_kv__fill_some_portable(book, run->width, q + (size_t)r * stride, stride, n, lut + r * 16)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
TOY_KV__TARGET_portable static int toy_kv__nearest_wide_portable(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * TOY_KV__LANES_portable };
    const toy_kv__vf_portable one = toy_kv__set1_portable(-1.0f);
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
        toy_kv__vf_portable a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_portable(0.0f);
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            toy_kv__vf_portable minus = toy_kv__set1_portable(-z[w]);
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_portable d =
                    toy_kv__add_portable(toy_kv__loadh_portable(row + 2 * k * TOY_KV__LANES_portable), minus);
                a[k] = toy_kv__fma_portable(d, toy_kv__mul_portable(d, one), a[k]);
            }
        }
        if (!(toy_kv__hmax_portable(toy_kv__max_portable(toy_kv__max_portable(a[0], a[1]), toy_kv__max_portable(a[2], a[3]))) >
              top))
            continue;
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            toy_kv__store_portable(negative + k * TOY_KV__LANES_portable, a[k]);
        for (k = 0; k < STEP; k++)
            if (negative[k] > top) {
                top = negative[k];
                best = i + k;
            }
    }
    for (; i < n; i++) {
        float sum = 0.0f;
        for (w = 0; w < width; w++) {
            float d = z[w] - toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i);
            sum -= d * d;
        }
        if (sum > top) {
            top = sum;
            best = i;
        }
    }
    return best;
}

#define TOY_KV__X(name) toy_kv__##name##_portable,
static const toy_kv__ops toy_kv__ops_portable = {TOY_KV__LANES_portable, TOY_KV__KERNELS(TOY_KV__X) TOY_KV__BYTE_OPS_portable,
                                        &toy_kv__dense_portable, &toy_kv__code_portable};
#undef TOY_KV__X

#ifdef TOY_KV__X86
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
/* Vector vocabulary, AVX2 with FMA and F16C: eight lanes. See kernels.h. */
#define TOY_KV__LANES_avx2    8
#define TOY_KV__GATHERED_avx2 8
#if TOY_KV_BLOCK >= 64
#define TOY_KV__BYTE_OPS_avx2 &toy_kv__byte_ops_avx2
#else
#define TOY_KV__BYTE_OPS_avx2 NULL
#endif
#define TOY_KV__TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
/* Outputs that a pass of dense.h holds sums of. */
#define TOY_KV__N_OUTS_avx2  4
#define TOY_KV__OUTS_avx2(X) X(0) X(1) X(2) X(3)
#define TOY_KV__REST_avx2(X, of)
#define TOY_KV__INLINE_avx2 TOY_KV__TARGET_avx2 static inline __attribute__((always_inline))
typedef __m256 toy_kv__vf_avx2;
typedef __m256i toy_kv__vi_avx2;
typedef struct toy_kv__vt_avx2 {
    __m256 low, high; /* entries 0..7 and 8..15 */
} toy_kv__vt_avx2;

TOY_KV__TARGET_avx2 static inline __m256 toy_kv__set1_avx2(float x)
{
    return _mm256_set1_ps(x);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__load_avx2(const float *p)
{
    return _mm256_loadu_ps(p);
}
TOY_KV__TARGET_avx2 static inline void toy_kv__store_avx2(float *p, __m256 x)
{
    _mm256_storeu_ps(p, x);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__loadh_avx2(const unsigned char *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__loadu8_avx2(const unsigned char *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__loads8_avx2(const unsigned char *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__add_avx2(__m256 a, __m256 b)
{
    return _mm256_add_ps(a, b);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__sub_avx2(__m256 a, __m256 b)
{
    return _mm256_sub_ps(a, b);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__mul_avx2(__m256 a, __m256 b)
{
    return _mm256_mul_ps(a, b);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__fma_avx2(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__max_avx2(__m256 a, __m256 b)
{
    return _mm256_max_ps(a, b);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__round_avx2(__m256 x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__scale2_avx2(__m256 x, __m256 n)
{
    return _mm256_mul_ps(x,
                         _mm256_castsi256_ps(_mm256_slli_epi32(
                             _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
TOY_KV__TARGET_avx2 static inline float toy_kv__hsum_avx2(__m256 x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
TOY_KV__TARGET_avx2 static inline void toy_kv__hsum4_avx2(__m256 a, __m256 b, __m256 c, __m256 d,
                                                      float *sum)
{
    a = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
TOY_KV__TARGET_avx2 static inline float toy_kv__hmax_avx2(__m256 x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
TOY_KV__TARGET_avx2 static inline toy_kv__vt_avx2 toy_kv__table_avx2(const float *p)
{
    toy_kv__vt_avx2 t;
    t.low = _mm256_loadu_ps(p);
    t.high = _mm256_loadu_ps(p + 8);
    return t;
}
/* The code is left in the low nibble; bits above it are ignored by the lookup. */
TOY_KV__TARGET_avx2 static inline __m256i toy_kv__nibbles_avx2(const unsigned char *plane, int t)
{
    __m256i bytes = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64((const __m128i *)(const void *)(plane + t % (TOY_KV_BLOCK / 2))));
    return t < TOY_KV_BLOCK / 2 ? bytes : _mm256_srli_epi32(bytes, 4);
}
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__lookup_avx2(toy_kv__vt_avx2 table, __m256i index)
{
    __m256 low = _mm256_permutevar8x32_ps(table.low, index);
    __m256 high = _mm256_permutevar8x32_ps(table.high, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
/* Loads one by one: four times as fast as the gather instruction, on Zen 5. */
static inline short toy_kv__half_bits(const unsigned char *table, unsigned char code)
{
    short h;
    memcpy(&h, table + 2 * (size_t)code, 2);
    return h;
}
TOY_KV__TARGET_avx2 static inline void toy_kv__gather_avx2(const unsigned char *table,
                                                       const unsigned char *codes, float *x)
{
#define TOY_KV__X(i) toy_kv__half_bits(table, codes[i])
    _mm256_storeu_ps(
        x, _mm256_cvtph_ps(_mm_setr_epi16(TOY_KV__X(0), TOY_KV__X(1), TOY_KV__X(2), TOY_KV__X(3),
                                          TOY_KV__X(4), TOY_KV__X(5), TOY_KV__X(6), TOY_KV__X(7))));
#undef TOY_KV__X
}
TOY_KV__TARGET_avx2 static inline void toy_kv__storeu8_avx2(unsigned char *p, __m256 x)
{
    __m256i code = _mm256_cvttps_epi32(x);
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(words, words));
}
/* The second operand is what comes out for a NaN. */
TOY_KV__TARGET_avx2 static inline void toy_kv__storeh_avx2(unsigned char *p, __m256 x)
{
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(65504.0f)), _mm256_set1_ps(-65504.0f));
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
TOY_KV__TARGET_avx2 static inline void toy_kv__keep_less_avx2(__m256 x, float i, __m256 *least,
                                                          __m256 *index)
{
    __m256 less = _mm256_cmp_ps(x, *least, _CMP_LT_OQ);
    *index = _mm256_blendv_ps(*index, _mm256_set1_ps(i), less);
    *least = _mm256_min_ps(x, *least);
}
TOY_KV__TARGET_avx2 static inline __m128i toy_kv__load8h_avx2(const unsigned char *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
TOY_KV__TARGET_avx2 static inline void toy_kv__store8h_avx2(unsigned char *p, __m128i x)
{
    _mm_storeu_si128((__m128i *)(void *)p, x);
}
TOY_KV__TARGET_avx2 static inline void toy_kv__transpose_avx2(const unsigned char *src, size_t src_step,
                                                          unsigned char *dst, size_t dst_step)
{
    __m128i pair[8], quad[8];
    int i;
    for (i = 0; i < 8; i += 2) {
        __m128i a = toy_kv__load8h_avx2(src + (size_t)i * src_step);
        __m128i b = toy_kv__load8h_avx2(src + (size_t)(i + 1) * src_step);
        pair[i] = _mm_unpacklo_epi16(a, b);
        pair[i + 1] = _mm_unpackhi_epi16(a, b);
    }
    for (i = 0; i < 8; i += 4) { /* rows i .. i + 3 of two columns each */
        quad[i] = _mm_unpacklo_epi32(pair[i], pair[i + 2]);
        quad[i + 1] = _mm_unpackhi_epi32(pair[i], pair[i + 2]);
        quad[i + 2] = _mm_unpacklo_epi32(pair[i + 1], pair[i + 3]);
        quad[i + 3] = _mm_unpackhi_epi32(pair[i + 1], pair[i + 3]);
    }
    for (i = 0; i < 4; i++, dst += 2 * dst_step) {
        toy_kv__store8h_avx2(dst, _mm_unpacklo_epi64(quad[i], quad[i + 4]));
        toy_kv__store8h_avx2(dst + dst_step, _mm_unpackhi_epi64(quad[i], quad[i + 4]));
    }
}
/* What the byte kernels for AVX2 have in common: words and bytes from floats, codes and sixteen
 * entries that a shuffle looks up, sums. */

#if TOY_KV_BLOCK >= 64

/* Planes whose scores are summed in 16 bits; of wide entries of score tables, which the sum makes
 * the coarser the more there are. */
#define TOY_KV__CHUNK_avx2      64
#define TOY_KV__WIDE_CHUNK_avx2 48

/* Narrow entries of score tables: bits of the lower byte, and what entries of the planes of a quad
 * that stand for 0 add up to, in steps: twice that and the rounding of two quads fill the higher
 * byte. */
#define TOY_KV__LOW_BITS_avx2 5
#define TOY_KV__ZERO_avx2     2044

TOY_KV__INLINE_avx2 __m256i toy_kv__load_bytes_avx2(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

TOY_KV__INLINE_avx2 __m256i toy_kv__table_bytes_avx2(const signed char *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* sum += x: words, bytes or 32-bit numbers. Left to itself gcc 12 keeps two copies of every sum,
 * and so most of them in memory. */
TOY_KV__INLINE_avx2 void toy_kv__add_words_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(x));
}
TOY_KV__INLINE_avx2 void toy_kv__add_bytes_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddb %1, %0, %0" : "+x"(*sum) : "x"(x));
}
TOY_KV__INLINE_avx2 void toy_kv__add_longs_avx2(__m256i *sum, __m256i x)
{
    __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(x));
}

/* The low bytes of sixteen words; what does not fit a signed byte is cut. */
TOY_KV__TARGET_avx2 static inline __m128i toy_kv__narrowed_avx2(__m256i x)
{
    return _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

/* Sixteen floats times factor, rounded to words. */
TOY_KV__TARGET_avx2 static inline __m256i toy_kv__sixteen_avx2(const float *x, float factor)
{
    __m256 f = _mm256_set1_ps(factor);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

/* The largest magnitude of sixteen floats; *square += their squares, over lanes. */
TOY_KV__TARGET_avx2 static inline float toy_kv__reach_avx2(const float *x, __m256 *square)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    *square = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, *square));
    return toy_kv__hmax_avx2(_mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)));
}

/* The low bytes of sixteen words. */
TOY_KV__TARGET_avx2 static inline void toy_kv__store_bytes_avx2(signed char *out, __m256i x)
{
    x = _mm256_and_si256(x, _mm256_set1_epi16(255));
    _mm_storeu_si128((__m128i *)(void *)out,
                     _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

/* Codes of 32 tokens of a plane, low nibbles or (`second`) high ones. */
TOY_KV__INLINE_avx2 __m256i toy_kv__codes_avx2(const unsigned char *plane, const int second)
{
    __m256i x = toy_kv__load_bytes_avx2(plane);
    return _mm256_and_si256(second ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
}

/* dst [32] = (add ? dst : 0) + scale * words of tokens 0..7, 16..23 and of 8..15, 24..31. */
TOY_KV__INLINE_avx2 void toy_kv__flush_avx2(const __m256i *part, float scale, int add, float *dst)
{
    const __m256 f = _mm256_set1_ps(scale);
    int i, k;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++)
#pragma GCC unroll 2
        for (k = 0; k < 2; k++) {
            __m128i words =
                k == 0 ? _mm256_castsi256_si128(part[i]) : _mm256_extracti128_si256(part[i], 1);
            float *to = dst + 16 * k + 8 * i;
            __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
            _mm256_storeu_ps(to, add ? _mm256_fmadd_ps(x, f, _mm256_loadu_ps(to))
                                     : _mm256_mul_ps(x, f));
        }
}

#endif /* TOY_KV_BLOCK >= 64 */
/* The query map in 16-bit words, AVX2: what toy_kv__byte_ops promises (types.h). A product of words
 * adds up two inputs of eight columns. */

#if TOY_KV_BLOCK >= 64

/* The first n of 8 lanes. */
TOY_KV__TARGET_avx2 static inline __m256i toy_kv__first_lanes_avx2(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Columns i .. i + 7 of a row of a slice of a basis in binary16; 0 where they end. */
TOY_KV__TARGET_avx2 static inline __m256 toy_kv__map_row_avx2(const toy_kv__matrix *table,
                                                          const toy_kv__slice *slice, int d, int i)
{
    const size_t row = (size_t)slice->row[d];
    const size_t at = row * (size_t)slice->columns + (size_t)(slice->first + i);
    const int left = slice->n_out - i;
    short x[8] = {0};
    if (left >= 8)
        return toy_kv__loadh_avx2(table->values + 2 * at);
    if (left > 0)
        memcpy(x, table->values + 2 * at, 2 * (size_t)left);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x));
}

/* Columns i .. i + 7 of pairs of rows to words, each pair 32 words behind the one before. */
TOY_KV__TARGET_avx2 static void toy_kv__map_eight_avx2(const toy_kv__matrix *table,
                                                   const toy_kv__slice *slice, int i, short *words,
                                                   float *scale)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 high = _mm256_setzero_ps(), factor;
    int d;
    for (d = 0; d < slice->n_in; d++)
        high = _mm256_max_ps(high, _mm256_andnot_ps(sign, toy_kv__map_row_avx2(table, slice, d, i)));
    factor = _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(TOY_KV__MAP_TOP), high),
                           _mm256_cmp_ps(high, _mm256_setzero_ps(), _CMP_GT_OQ));
    _mm256_storeu_ps(scale, _mm256_mul_ps(high, _mm256_set1_ps(1.0f / TOY_KV__MAP_TOP)));
    for (d = 0; d < slice->n_in; d += 2, words += 32) {
        __m256 x = toy_kv__map_row_avx2(table, slice, d, i);
        __m256 y = toy_kv__map_row_avx2(table, slice, d + 1, i);
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(y, factor));
        _mm256_storeu_si256((__m256i *)(void *)words,
                            _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa));
    }
}

/* The same for sixteen columns of a basis in bytes, 16 units each. */
TOY_KV__TARGET_avx2 static void toy_kv__map_bytes_avx2(const toy_kv__matrix *table,
                                                   const toy_kv__slice *slice, int i, short *words,
                                                   float *scale)
{
    const unsigned char *from = table->values + slice->first + i;
    const size_t columns = (size_t)slice->columns;
    const int n = slice->n_out - i < 16 ? slice->n_out - i : 16;
    int d, k;
    for (k = 0; k < 16; k++)
        scale[k] =
            k < n ? toy_kv__half_at(table->scale, (size_t)(slice->first + i + k)) / 16.0f : 0.0f;
    for (d = 0; d < slice->n_in; d += 2, words += 32) {
        const unsigned char *a = from + (size_t)slice->row[d] * columns;
        const unsigned char *b = from + (size_t)slice->row[d + 1] * columns;
        __m128i x = _mm_setzero_si128(), y = x;
        if (n == 16) {
            x = _mm_loadu_si128((const __m128i *)(const void *)a);
            y = _mm_loadu_si128((const __m128i *)(const void *)b);
        } else {
            memcpy(&x, a, (size_t)n);
            memcpy(&y, b, (size_t)n);
        }
        _mm256_storeu_si256((__m256i *)(void *)words,
                            _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)), 4));
        _mm256_storeu_si256((__m256i *)(void *)(words + 16),
                            _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y)), 4));
    }
}

/* The mean alone to words and their scale. */
TOY_KV__TARGET_avx2 static void
toy_kv__map_mean_avx2(const unsigned char *mean, const toy_kv__slice *slice, short *words, float *scale)
{
    float high = 0.0f, factor;
    int d;
    for (d = 0; d < slice->n_in; d++) {
        const float x = fabsf(toy_kv__half_at(mean, (size_t)slice->row[d]));
        high = x > high ? x : high;
    }
    *scale = high / TOY_KV__MAP_TOP;
    factor = high > 0.0f ? TOY_KV__MAP_TOP / high : 0.0f;
    for (d = 0; d < slice->n_in; d++)
        words[d / 2 * 32 + d % 2] =
            (short)_mm_cvtss_si32(_mm_set_ss(factor * toy_kv__half_at(mean, (size_t)slice->row[d])));
}

TOY_KV__TARGET_avx2 static void toy_kv__map_basis_avx2(toy_kv__matrix table, const unsigned char *mean,
                                                   const toy_kv__slice *slice, short *words,
                                                   float *scale)
{
    const int left = slice->n_out % 16;
    int i;
    for (i = 0; i <= slice->n_out; i += 16, words += 16 * slice->n_in, scale += 16) {
        if (table.scale != NULL) {
            toy_kv__map_bytes_avx2(&table, slice, i, words, scale);
        } else {
            toy_kv__map_eight_avx2(&table, slice, i, words, scale);
            toy_kv__map_eight_avx2(&table, slice, i + 8, words + 16, scale + 8);
        }
    }
    if (mean != NULL) /* the column behind the last, which lies in the last sixteen */
        toy_kv__map_mean_avx2(mean, slice, words - 16 * slice->n_in + 2 * left, scale - 16 + left);
}

/* The first n words of eight numbers. */
TOY_KV__INLINE_avx2 void toy_kv__store_words_avx2(__m256 x, int n, short *out)
{
    const __m256i y = _mm256_cvtps_epi32(x);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    if (n >= 8)
        _mm_storeu_si128((__m128i *)(void *)out, words);
    else
        memcpy(out, &words, sizeof *out * (size_t)n);
}

TOY_KV__TARGET_avx2 static void toy_kv__to_words_avx2(const float *x, int n, float unit, short *out)
{
    const __m256 factor = _mm256_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < n; i += 8) {
        __m256 y = _mm256_maskload_ps(x + i, toy_kv__first_lanes_avx2(n - i));
        toy_kv__store_words_avx2(_mm256_mul_ps(y, factor), n - i, out + i);
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__turn_words_avx2(const float *x, const float *c, const float *s,
                                                    int pairs, float unit, short *out)
{
    const __m256 factor = _mm256_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < pairs; i += 8) {
        const __m256i some = toy_kv__first_lanes_avx2(pairs - i);
        const __m256 u = _mm256_mul_ps(_mm256_maskload_ps(x + i, some), factor);
        const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + pairs + i, some), factor);
        const __m256 cosine = _mm256_maskload_ps(c + i, some);
        const __m256 sine = _mm256_maskload_ps(s + i, some);
        toy_kv__store_words_avx2(_mm256_fmadd_ps(v, sine, _mm256_mul_ps(u, cosine)), pairs - i,
                               out + i);
        toy_kv__store_words_avx2(_mm256_fmsub_ps(v, cosine, _mm256_mul_ps(u, sine)), pairs - i,
                               out + pairs + i);
    }
}

/* Rows of x at distance n_in, of y at distance `stride`; `n` rows, a constant where it is called,
 * and sixteen columns. */
TOY_KV__INLINE_avx2 void toy_kv__map_tile_avx2(const short *x, int n_in, const short *words,
                                           const float *scale, size_t stride, const float *unit,
                                           const float *const *base, const int n, float *y)
{
    __m256i sum[4][2];
    int d, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = _mm256_setzero_si256();
    for (d = 0; d < n_in; d += 2, words += 32) {
        const __m256i a = toy_kv__load_bytes_avx2(words), b = toy_kv__load_bytes_avx2(words + 16);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            int32_t two;
            __m256i q;
            memcpy(&two, x + k * n_in + d, 4);
            q = _mm256_set1_epi32(two);
            toy_kv__add_longs_avx2(&sum[k][0], _mm256_madd_epi16(a, q));
            toy_kv__add_longs_avx2(&sum[k][1], _mm256_madd_epi16(b, q));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 2
        for (i = 0; i < 2; i++) {
            __m256 f = _mm256_mul_ps(_mm256_loadu_ps(scale + 8 * i), _mm256_set1_ps(unit[k]));
            __m256 from = base[k] != NULL ? _mm256_loadu_ps(base[k] + 8 * i) : _mm256_setzero_ps();
            _mm256_storeu_ps(y + (size_t)k * stride + 8 * i,
                             _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k][i]), f, from));
        }
}

TOY_KV__TARGET_avx2 static void toy_kv__map_words_avx2(const short *x, int m, int n_in,
                                                   const short *words, const float *scale,
                                                   int columns, const float *unit, int rows,
                                                   const float *base, size_t stride, float *y)
{
    const float *bases[4];
    int c, r, k;
    float units[TOY_KV__MAX_ROWS + 3]; /* of four rows from any one on */
    for (r = 0; r < rows + 3; r++)
        units[r] = unit[r % rows];
    for (c = 0; c < columns; c += 16, words += 16 * n_in)
        for (r = 0; r < m;) {
            const short *q = x + (size_t)r * (size_t)n_in;
            float *dst = y + (size_t)r * stride + c;
            for (k = 0; k < 4; k++)
                bases[k] = base == NULL ? NULL : base + (size_t)((r + k) % rows) * stride + c;
#define TOY_KV__MAP(n)                                                                               \
    toy_kv__map_tile_avx2(q, n_in, words, scale + c, stride, units + r % rows, bases, n, dst)
            if (m - r >= 4) {
                TOY_KV__MAP(4);
                r += 4;
            } else {
                TOY_KV__MAP(1);
                r++;
            }
#undef TOY_KV__MAP
        }
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Sums of values in bytes, AVX2: what toy_kv__byte_ops promises (types.h).
 *
 * Codewords looked up by a shuffle times weights of 7 bits, so that no pair of products leaves 16
 * bits, nor the two pairs of both halves of a block. */

#if TOY_KV_BLOCK >= 64

/* Weights: the largest, and what four that end up in the same word add up to: times 127, the
 * largest codeword, it is at most 32767, were each as much larger as rounding makes it. What is
 * left of them counts REST to a step, and four times that is no more. */
#define TOY_KV__MOST_WEIGHT_avx2  126.0f
#define TOY_KV__MOST_WEIGHTS_avx2 254.0f
#define TOY_KV__WEIGHT_REST_avx2  64.0f

/* Sixteen bytes of what two registers of floats say, rounded to the nearest. */
TOY_KV__TARGET_avx2 static inline void toy_kv__store_rounded_avx2(__m256 a, __m256 b,
                                                              unsigned char *out)
{
    __m256i x = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
    _mm_storeu_si128((__m128i *)(void *)out, toy_kv__narrowed_avx2(x));
}

/* Sixteen weights p * gain * factor. Small ones are added to `dither` before they are rounded, lest
 * they are all rounded away; of large ones that would only make the error larger. */
TOY_KV__INLINE_avx2 void toy_kv__pack_sixteen_avx2(const float *p, const float *gain, __m256 factor,
                                               const float *dither, unsigned char *out)
{
    __m256 x[2];
    int i;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        __m256 w = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(gain + 8 * i));
        w = _mm256_mul_ps(w, factor);
        x[i] = _mm256_add_ps(w, _mm256_and_ps(_mm256_loadu_ps(dither + 8 * i),
                                              _mm256_cmp_ps(w, _mm256_set1_ps(8.0f), _CMP_LT_OQ)));
    }
    toy_kv__store_rounded_avx2(x[0], x[1], out);
}

/* The same, rounded down; rest gets what is left. */
TOY_KV__INLINE_avx2 void toy_kv__split_sixteen_avx2(const float *p, const float *gain, __m256 factor,
                                                unsigned char *out, unsigned char *rest)
{
    __m256 whole[2], left[2];
    int i;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        __m256 w = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(gain + 8 * i));
        w = _mm256_mul_ps(w, factor);
        whole[i] = _mm256_floor_ps(w);
        left[i] = _mm256_mul_ps(_mm256_sub_ps(w, whole[i]), _mm256_set1_ps(TOY_KV__WEIGHT_REST_avx2));
    }
    toy_kv__store_rounded_avx2(whole[0], whole[1], out);
    toy_kv__store_rounded_avx2(left[0], left[1], rest);
}

/* What a step of weights p [blocks, rows, BLOCK] * gain [blocks, BLOCK] of one row is worth: the
 * largest becomes MOST_WEIGHT, or four that end up in the same word, two neighbours of each half of
 * a block, become MOST_WEIGHTS. The latter takes up to a bit from weights that are all large. */
TOY_KV__TARGET_avx2 static float toy_kv__weight_step_avx2(const float *p, const float *gain, int blocks,
                                                      size_t step)
{
    __m256 high = _mm256_setzero_ps(), most = high;
    float top, sum;
    int b, t;
    for (b = 0; b < blocks; b++, p += step, gain += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK / 2; t += 8) {
            const int u = t + TOY_KV_BLOCK / 2;
            __m256 x = _mm256_mul_ps(_mm256_loadu_ps(p + t), _mm256_loadu_ps(gain + t));
            __m256 y = _mm256_mul_ps(_mm256_loadu_ps(p + u), _mm256_loadu_ps(gain + u));
            high = _mm256_max_ps(high, _mm256_max_ps(x, y));
            x = _mm256_add_ps(x, y);
            most = _mm256_max_ps(most, _mm256_add_ps(x, _mm256_permute_ps(x, 0xb1)));
        }
    top = toy_kv__hmax_avx2(high) / TOY_KV__MOST_WEIGHT_avx2;
    sum = toy_kv__hmax_avx2(most) / TOY_KV__MOST_WEIGHTS_avx2;
    return top > sum ? top : sum;
}

TOY_KV__TARGET_avx2 static void toy_kv__pack_weights_avx2(const float *p, const float *gain, int blocks,
                                                      int rows, unsigned char *out,
                                                      unsigned char *rest, float *scale)
{
    /* The thresholds of the AVX-512 kernel less one half. */
    static const float dither[16] = {-0.46875f, 0.03125f, -0.21875f, 0.28125f, -0.34375f, 0.15625f,
                                     -0.09375f, 0.40625f, -0.40625f, 0.09375f, -0.15625f, 0.34375f,
                                     -0.28125f, 0.21875f, -0.03125f, 0.46875f};
    const size_t step = (size_t)rows * TOY_KV_BLOCK;
    int b, r, t;
    for (r = 0; r < rows; r++, p += TOY_KV_BLOCK, out += TOY_KV_BLOCK) {
        __m256 factor;
        scale[r] = toy_kv__weight_step_avx2(p, gain, blocks, step);
        factor = _mm256_set1_ps(scale[r] > 0.0f ? 1.0f / scale[r] : 0.0f);
        for (b = 0; b < blocks; b++)
            for (t = 0; t < TOY_KV_BLOCK; t += 16) {
                const size_t at = (size_t)b * step + (size_t)t;
                const float *g = gain + b * TOY_KV_BLOCK + t;
                if (rest == NULL)
                    toy_kv__pack_sixteen_avx2(p + at, g, factor, dither, out + at);
                else
                    toy_kv__split_sixteen_avx2(p + at, g, factor, out + at, rest + at);
            }
        if (rest != NULL)
            rest += TOY_KV_BLOCK;
    }
}

/* Two channels of a run: the first token of their planes in a block, and their latents. */
typedef struct toy_kv__two {
    size_t plane[2], latent[2];
} toy_kv__two;

/* Channels c and c + 1 of the run's n, counted plane by plane; behind the last it stands again. By
 * a pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void toy_kv__two_of(const toy_kv__run *run, size_t offset, int c, int n, toy_kv__two *two)
{
    int i;
    for (i = 0; i < 2; i++) {
        const int channel = c + i < n ? c + i : n - 1, plane = channel / run->width;
        two->plane[i] = offset + (size_t)plane * (TOY_KV_BLOCK / 2);
        two->latent[i] = (size_t)(plane / run->stages * run->width + channel - plane * run->width);
    }
}

/* In lane k the sum over lanes of x[k][i], of n rows; n is a constant. */
TOY_KV__INLINE_avx2 __m128i toy_kv__row_sums_avx2(__m256i (*x)[2], const int n, const int i)
{
    const __m256i a = _mm256_hadd_epi32(x[0][i], x[n > 1 ? 1 : 0][i]);
    const __m256i b = n > 2 ? _mm256_hadd_epi32(x[2][i], x[n > 3 ? 3 : 2][i]) : a;
    const __m256i c = _mm256_hadd_epi32(a, b);
    return _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
}

/* Two channels, of the `same` plane or of two, for n rows from row r on; `real` of the channels are
 * there. n and `same` are constants where it is called. */
TOY_KV__INLINE_avx2 void toy_kv__sum_two_avx2(const unsigned char *const *codes, int blocks,
                                          const toy_kv__two *two, const int same, int real,
                                          const signed char *book, const float *book_scale,
                                          const unsigned char *weights, const float *scale,
                                          int rows, int r, const int n, float *sums, size_t stride)
{
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const unsigned char *w = weights + (size_t)r * TOY_KV_BLOCK;
    __m256i sum[4][2], table[2];
    int b, i, k, t;
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        table[i] = toy_kv__table_bytes_avx2(book + 16 * (i < real ? i : 0));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = _mm256_setzero_si256();
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK / 2; t += 32) {
            const unsigned char *plane = codes[b] + two->plane[0] + t;
            __m256i x[2], low[2], high[2];
            x[0] = toy_kv__load_bytes_avx2(plane);
            x[1] = same ? x[0] : toy_kv__load_bytes_avx2(codes[b] + two->plane[1] + t);
            TOY_KV__PREFETCH(plane + (same ? 64 : TOY_KV_BLOCK), 3); /* for the next ones */
#pragma GCC unroll 2
            for (i = 0; i < 2; i++) {
                low[i] = _mm256_shuffle_epi8(table[i], _mm256_and_si256(x[i], nibble));
                high[i] = _mm256_shuffle_epi8(table[i],
                                              _mm256_and_si256(_mm256_srli_epi16(x[i], 4), nibble));
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                const __m256i p = toy_kv__load_bytes_avx2(w + k * TOY_KV_BLOCK + t);
                const __m256i q = toy_kv__load_bytes_avx2(w + k * TOY_KV_BLOCK + t + TOY_KV_BLOCK / 2);
#pragma GCC unroll 2
                for (i = 0; i < 2; i++) {
                    __m256i u = _mm256_maddubs_epi16(p, low[i]);
                    __m256i v = _mm256_maddubs_epi16(q, high[i]);
                    toy_kv__add_words_avx2(&v, u);
                    toy_kv__add_longs_avx2(&sum[k][i], _mm256_madd_epi16(v, ones));
                }
            }
        }
#pragma GCC unroll 2
    for (i = 0; i < 2; i++) {
        float total[4];
        _mm_storeu_ps(total, _mm_cvtepi32_ps(toy_kv__row_sums_avx2(sum, n, i)));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            if (i < real)
                sums[(size_t)(r + k) * stride + two->latent[i]] +=
                    total[k] * (scale[r + k] * book_scale[i]);
    }
}

/* All channels of a run for n rows from row r on. */
TOY_KV__INLINE_avx2 void toy_kv__sum_rows_avx2(const unsigned char *const *codes, size_t offset,
                                           int blocks, const toy_kv__run *run,
                                           const signed char *book, const float *book_scale,
                                           const unsigned char *weights, const float *scale,
                                           int rows, int r, const int n, float *sums, size_t stride)
{
    const int channels = run->planes * run->width;
    int c;
#define TOY_KV__TWO(same)                                                                            \
    toy_kv__sum_two_avx2(codes, blocks, &two, same, real, book, book_scale, weights, scale, rows, r, \
                       n, sums, stride)
    for (c = 0; c < channels; c += 2, book += 32, book_scale += 2) {
        toy_kv__two two;
        const int real = channels - c < 2 ? channels - c : 2;
        toy_kv__two_of(run, offset, c, channels, &two);
        if (two.plane[0] == two.plane[1])
            TOY_KV__TWO(1);
        else
            TOY_KV__TWO(0);
    }
#undef TOY_KV__TWO
}

TOY_KV__TARGET_avx2 static void toy_kv__sum_bytes_avx2(const unsigned char *const *codes, size_t offset,
                                                   int blocks, const toy_kv__run *run,
                                                   const signed char *book, const float *book_scale,
                                                   const unsigned char *weights, const float *scale,
                                                   int rows, toy_kv__asked *ahead, float *sums,
                                                   size_t stride)
{
    int r = 0;
    (void)ahead; /* little is to be gained where sums take so long */
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_rows_avx2(codes, offset, blocks, run, book, book_scale, weights, scale, rows, r, n,  \
                        sums, stride)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Scores of codes of one channel, and codewords for score tables of others (fill_avx2.h), AVX2:
 * what toy_kv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, high and low bytes, which one lookup does for every row,
 * and meet the query in products of words of which the high half is kept: units are such that no
 * sum of them leaves 16 bits. A group is two channels. */

#if TOY_KV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps. */
#define TOY_KV__DOT_TOP_avx2 32767.0f

/* The same of codewords in words, or in bytes, which are high ones of words. */
static inline float toy_kv__dot_top_avx2(int words)
{
    return words ? TOY_KV__DOT_TOP_avx2 : 127.0f * 256.0f;
}

/* The codewords of a channel to table [32]: sixteen low and sixteen high bytes; for tables of codes
 * of many channels sixteen words, or only their high bytes to table [16]. */
TOY_KV__TARGET_avx2 static inline void toy_kv__dot_book_avx2(const float *book, float top,
                                                         const toy_kv__run *run, signed char *table)
{
    const float limit = run->words ? TOY_KV__DOT_TOP_avx2 : 127.0f;
    const __m256i x = toy_kv__sixteen_avx2(book, top > 0.0f ? limit / top : 0.0f);
    if (run->width > 1 && run->words) {
        _mm256_storeu_si256((__m256i *)(void *)table, x);
        return;
    }
    toy_kv__store_bytes_avx2(table, x);
    if (run->words)
        toy_kv__store_bytes_avx2(table + 16, _mm256_srli_epi16(x, 8));
}

/* table [groups, 64], channel by channel; scale [4 * groups]: what a step of a word is worth. */
TOY_KV__TARGET_avx2 static void toy_kv__dot_books_avx2(const toy_kv__run *run, unsigned char *table,
                                                   float *scale)
{
    const int each = run->words ? 2 : 4, room = 4 * toy_kv__dot_groups(run);
    const float limit = toy_kv__dot_top_avx2(run->words);
    int c;
    for (c = 0; c < room; c++) {
        float book[16] = {0.0f}, top;
        __m256 square = _mm256_setzero_ps();
        if (c < run->planes * run->width) {
            const int plane = c / run->width;
            const unsigned char *from =
                toy_kv__table(run->book + plane / run->stages * run->book_step +
                            (plane % run->stages * run->width + c % run->width) * 16);
            _mm256_storeu_ps(book, toy_kv__loadh_avx2(from));
            _mm256_storeu_ps(book + 8, toy_kv__loadh_avx2(from + 16));
        }
        top = toy_kv__reach_avx2(book, &square);
        scale[c] = top / limit;
        if (c < each * toy_kv__dot_groups(run)) /* the table has room for so many */
            toy_kv__dot_book_avx2(book, top, run, (signed char *)table + 64 / each * c);
    }
}

/* Channels c .. c + 7 of a row's latents y times their scales; 0 behind the last. */
TOY_KV__TARGET_avx2 static __m256 toy_kv__dot_rest_avx2(const toy_kv__run *run, const float *y,
                                                    const float *scale, int c)
{
    const int channels = run->planes * run->width, width = run->width;
    float lane[8];
    int i;
    for (i = 0; i < 8; i++)
        lane[i] = c + i < channels
                      ? y[(c + i) / width / run->stages * width + (c + i) % width] * scale[c + i]
                      : 0.0f;
    return _mm256_loadu_ps(lane);
}
TOY_KV__INLINE_avx2 __m256 toy_kv__dot_latents_avx2(const toy_kv__run *run, const float *y,
                                                const float *scale, int c)
{
    if (run->stages == 1 && c + 8 <= run->planes * run->width)
        return _mm256_mul_ps(_mm256_loadu_ps(y + c), _mm256_loadu_ps(scale + c));
    if (c >= run->planes * run->width)
        return _mm256_setzero_ps();
    return toy_kv__dot_rest_avx2(run, y, scale, c);
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 2] words
 * and unit [rows, 2], of which the second stays unused. */
TOY_KV__TARGET_avx2 static void toy_kv__dot_queries_avx2(const toy_kv__run *run, const float *scale,
                                                     const float *y, size_t stride, int rows,
                                                     unsigned char *lanes, float *unit,
                                                     float *energy)
{
    const int room = 2 * toy_kv__dot_groups(run);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    int r, c;
    for (r = 0; r < rows; r++, y += stride, lanes += 2 * room) {
        __m256 square = _mm256_setzero_ps(), sum = square, factor;
        float most = 0.0f, all;
        for (c = 0; c < room; c += 8) {
            __m256 x = toy_kv__dot_latents_avx2(run, y, scale, c);
            sum = c % TOY_KV__CHUNK_avx2 == 0 ? _mm256_andnot_ps(sign, x)
                                            : _mm256_add_ps(sum, _mm256_andnot_ps(sign, x));
            square = _mm256_fmadd_ps(x, x, square);
            if (c + 8 < room && (c + 8) % TOY_KV__CHUNK_avx2 != 0)
                continue;
            all = toy_kv__hsum_avx2(sum);
            most = all > most ? all : most;
        }
        /* Rounding of a channel's word, and of its products, may add half a unit each. */
        unit[2 * r] = most * (32768.0f / (32767.0f - TOY_KV__CHUNK_avx2));
        unit[2 * r + 1] = 0.0f;
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        if (energy != NULL)
            energy[r] += toy_kv__hsum_avx2(square) * (TOY_KV__DOT_TOP_avx2 * TOY_KV__DOT_TOP_avx2 / 7.0f);
        factor = _mm256_set1_ps(most > 0.0f ? 32768.0f / unit[2 * r] : 0.0f);
        for (c = 0; c < room; c += 8) {
            __m256i x =
                _mm256_cvtps_epi32(_mm256_mul_ps(toy_kv__dot_latents_avx2(run, y, scale, c), factor));
            const __m128i words =
                _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            if (room - c >= 8)
                _mm_storeu_si128((__m128i *)(void *)(lanes + 2 * c), words);
            else
                memcpy(lanes + 2 * c, &words, 2 * (size_t)(room - c));
        }
    }
}

/* Queries of n rows [n, groups, 2] words to pairs of the same word [n, 2 * MAX_DOT_GROUPS], which
 * one load spreads over a register. */
TOY_KV__TARGET_avx2 static void toy_kv__double_words_avx2(const unsigned char *lanes, int groups, int n,
                                                      int32_t *doubled)
{
    int r, g;
    for (r = 0; r < n; r++, doubled += 2 * TOY_KV__MAX_DOT_GROUPS, lanes += 4 * groups)
        for (g = 0; g < groups; g += 4) {
            __m128i x = _mm_setzero_si128();
            if (g + 4 <= groups)
                x = _mm_loadu_si128((const __m128i *)(const void *)(lanes + 4 * g));
            else
                memcpy(&x, lanes + 4 * g, 4 * (size_t)(groups - g));
            _mm_storeu_si128((__m128i *)(void *)(doubled + 2 * g), _mm_unpacklo_epi16(x, x));
            if (g + 2 < groups)
                _mm_storeu_si128((__m128i *)(void *)(doubled + 2 * g + 4),
                                 _mm_unpackhi_epi16(x, x));
        }
}

/* Scores of 32 tokens, the codes' low nibbles or (`second`) high ones, for n rows from row r on:
 * planes from .. to - 1, at most CHUNK. n and `second` are constants. */
TOY_KV__INLINE_avx2 void toy_kv__dot_rows_avx2(const unsigned char *codes, int from, int to,
                                           const unsigned char *table, const int32_t *queries,
                                           const float *unit, int r, const int n, const int second,
                                           int add, toy_kv__asked *ahead, float *s)
{
    __m256i sum[4][2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = _mm256_setzero_si256();
    for (p = from; p < to; p++) {
        const __m256i x = toy_kv__codes_avx2(codes + (size_t)p * (TOY_KV_BLOCK / 2), second);
        const signed char *t = (const signed char *)table + 32 * p;
        const __m256i low = _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(t), x);
        const __m256i high = _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(t + 16), x);
        const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
        if (!second && p % 2 == 0)
            toy_kv__ask(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256i q = _mm256_set1_epi32(queries[2 * TOY_KV__MAX_DOT_GROUPS * k + p]);
            toy_kv__add_words_avx2(&sum[k][0], _mm256_mulhrs_epi16(a, q));
            toy_kv__add_words_avx2(&sum[k][1], _mm256_mulhrs_epi16(b, q));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__flush_avx2(sum[k], unit[2 * (r + k)], add, s + (r + k) * TOY_KV_BLOCK);
}

/* Some blocks for n rows from row r on, a constant where it is called. */
TOY_KV__INLINE_avx2 void toy_kv__dot_blocks_avx2(const unsigned char *const *codes, size_t offset,
                                             int blocks, const toy_kv__run *run,
                                             const unsigned char *table, const unsigned char *lanes,
                                             const float *unit, int rows, int r, const int n,
                                             int add, toy_kv__asked *ahead, float *s)
{
    const int groups = toy_kv__dot_groups(run);
    int32_t queries[8 * TOY_KV__MAX_DOT_GROUPS + 4]; /* words are written by fours */
    int b, t, from, to;
    toy_kv__double_words_avx2(lanes + (size_t)r * 4 * (size_t)groups, groups, n, queries);
    for (b = 0; b < blocks; b++, s += rows * TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK / 2; t += 32)
            for (from = 0; from < run->planes; from = to) {
                to = run->planes - from < TOY_KV__CHUNK_avx2 ? run->planes : from + TOY_KV__CHUNK_avx2;
                toy_kv__dot_rows_avx2(codes[b] + offset + t, from, to, table, queries, unit, r, n, 0,
                                    add || from > 0, ahead, s + t);
                toy_kv__dot_rows_avx2(codes[b] + offset + t, from, to, table, queries, unit, r, n, 1,
                                    add || from > 0, ahead, s + t + TOY_KV_BLOCK / 2);
            }
}

TOY_KV__TARGET_avx2 static void toy_kv__dot_scores_avx2(const unsigned char *const *codes,
                                                    size_t offset, int blocks, const toy_kv__run *run,
                                                    const unsigned char *table,
                                                    const unsigned char *lanes, const float *unit,
                                                    int rows, int add, toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r = 0;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__dot_blocks_avx2(codes, offset, blocks, run, table, lanes, unit, rows, r, n, add, &asked, \
                          s)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Score tables in bytes of codes of several channels, filled by products of words: what
 * toy_kv__byte_ops promises (types.h).
 *
 * Where every block has a query of its own, tables in fp32 that are packed then take longer than
 * scores do. Here codewords have been words or bytes from the pass's beginning (dots_avx2.h); what
 * an entry may count follows from a bound of each plane's entries, the magnitudes of its latents
 * times their largest codewords, and entries themselves are high halves of products. Planes go in
 * pairs, the first in the low halves of registers. Entries are wide where the run's codewords have
 * 16 bits, narrow where they have 8. */

#if TOY_KV_BLOCK >= 64

/* Narrow entries are added up in so many parts of a step each. */
#define TOY_KV__PARTS_avx2 8.0f

/* Channels that a run may have here, and as many as fill up a quad of planes, which have two
 * channels at least. */
#define TOY_KV__FILL_ROOM_avx2 (4 * TOY_KV__MAX_DOT_GROUPS + 32)

/* What entries of rows count; their latents in steps of codewords, channel by channel, the same in
 * words, and of narrow entries for each plane what stands for 0, in parts. */
typedef struct toy_kv__filling_avx2 {
    float scale[4];
    float latent[4][TOY_KV__FILL_ROOM_avx2];
    short word[4][TOY_KV__FILL_ROOM_avx2], zero[4][TOY_KV__FILL_ROOM_avx2 / 2];
} toy_kv__filling_avx2;

/* The magnitudes of the channels of each of four planes, added up. */
TOY_KV__INLINE_avx2 __m128 toy_kv__fill_reach_avx2(const __m256 *x, const int width)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 a[4];
    int i;
#pragma GCC unroll 4
    for (i = 0; i < width / 2; i++)
        a[i] = _mm256_andnot_ps(sign, x[i]);
    if (width == 8) { /* a plane a register */
        a[0] = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
        return _mm_add_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
    }
    if (width == 4) { /* planes 0, 1 and 2, 3 */
        a[0] = _mm256_hadd_ps(a[0], a[1]);
        a[0] = _mm256_hadd_ps(a[0], a[0]);
        return _mm_unpacklo_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
    }
    return _mm_hadd_ps(_mm256_castps256_ps128(a[0]), _mm256_extractf128_ps(a[0], 1));
}

/* The sum of four lanes. */
TOY_KV__TARGET_avx2 static inline float toy_kv__four_avx2(__m128 x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

/* Latents y [n rows, stride] in steps, and what entries count: of wide ones the planes of a chunk
 * stay within 16 bits, of narrow ones those of a quad within what stands for 0. */
TOY_KV__INLINE_avx2 void toy_kv__fill_latents_avx2(const toy_kv__run *run, const float *scale,
                                               const float *y, size_t stride, const int n,
                                               const int width, const int wide, float *energy,
                                               toy_kv__filling_avx2 *f)
{
    /* rounding, of a channel's word and of its product, may add a half each of a step or a part */
    const float slack = wide ? (float)(width * TOY_KV__WIDE_CHUNK_avx2) : 10.0f;
    const float most = toy_kv__dot_top_avx2(wide);
    __m256 square[4], x[4];
    __m128 sum[4], top[4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        square[k] = _mm256_setzero_ps();
        sum[k] = top[k] = _mm_setzero_ps();
    }
    for (p = 0; p < run->planes; p += 4) {
        const int chunk = p % TOY_KV__WIDE_CHUNK_avx2 == 0;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m128 reach;
#pragma GCC unroll 4
            for (i = 0; i < width / 2; i++) {
                const int c = p * width + 8 * i;
                x[i] = toy_kv__dot_latents_avx2(run, y + (size_t)k * stride, scale, c);
                _mm256_storeu_ps(f->latent[k] + c, x[i]);
                square[k] = _mm256_fmadd_ps(x[i], x[i], square[k]);
            }
            reach = toy_kv__fill_reach_avx2(x, width);
            if (!wide) {
                reach = _mm_hadd_ps(reach, reach);
                top[k] = _mm_max_ss(top[k], _mm_hadd_ps(reach, reach));
                continue;
            }
            if (chunk)
                top[k] = _mm_max_ss(top[k], _mm_set_ss(toy_kv__four_avx2(sum[k])));
            sum[k] = chunk ? reach : _mm_add_ps(sum[k], reach);
        }
    }
    for (k = 0; k < n; k++) {
        if (wide)
            top[k] = _mm_max_ss(top[k], _mm_set_ss(toy_kv__four_avx2(sum[k])));
        f->scale[k] =
            _mm_cvtss_f32(top[k]) * most / ((wide ? 32767.0f : (float)TOY_KV__ZERO_avx2) - slack);
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        energy[k] += toy_kv__hsum_avx2(square[k]) * (most * most / 7.0f);
    }
}

/* What stands for 0 in each of four planes from p on in narrow tables: no entry is below 0, and
 * those of a quad together stand for ZERO. factor: entries that a step is worth. */
TOY_KV__INLINE_avx2 void toy_kv__fill_zeros_avx2(const __m256 *x, float factor, int planes, int p,
                                             const int width, short *zero)
{
    const __m128 f = _mm_set1_ps(factor * toy_kv__dot_top_avx2(0)), more = _mm_set1_ps(2.5f);
    const __m128i first = _mm_setr_epi32(-1, 0, 0, 0), lane = _mm_setr_epi32(0, 1, 2, 3);
    /* of planes that are there */
    const __m128i some = _mm_cmpgt_epi32(_mm_set1_epi32(planes - p), lane);
    const int parts = (int)TOY_KV__PARTS_avx2;
    __m128i steps = _mm_cvttps_epi32(_mm_fmadd_ps(toy_kv__fill_reach_avx2(x, width), f, more)), sum;
    steps = _mm_andnot_si128(first, _mm_and_si128(steps, some));
    sum = _mm_hadd_epi32(steps, steps);
    sum = _mm_sub_epi32(_mm_set1_epi32(TOY_KV__ZERO_avx2), _mm_hadd_epi32(sum, sum));
    steps = _mm_or_si128(steps, _mm_and_si128(first, sum)); /* the first plane gets what is left */
    /* and half a step, to round */
    steps = _mm_add_epi32(_mm_slli_epi32(steps, 3), _mm_set1_epi32(parts / 2));
    _mm_storel_epi64((__m128i *)(void *)zero, _mm_packs_epi32(steps, steps));
}

/* The n rows' latents in words. */
TOY_KV__INLINE_avx2 void toy_kv__fill_words_avx2(const toy_kv__run *run, const int n, const int width,
                                             const int wide, toy_kv__filling_avx2 *f)
{
    float factor[4];
    int p, k, i;
    for (k = 0; k < n; k++)
        factor[k] = f->scale[k] > 0.0f ? 1.0f / f->scale[k] : 0.0f;
    for (p = 0; p < run->planes; p += 4) {
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256 by =
                _mm256_set1_ps(32768.0f * (wide ? 1.0f : TOY_KV__PARTS_avx2) * factor[k]);
            __m256 x[4];
#pragma GCC unroll 4
            for (i = 0; i < width / 2; i++) {
                const int c = p * width + 8 * i;
                __m256i z;
                x[i] = _mm256_loadu_ps(f->latent[k] + c);
                z = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], by));
                _mm_storeu_si128(
                    (__m128i *)(void *)(f->word[k] + c),
                    _mm_packs_epi32(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1)));
            }
            if (!wide)
                toy_kv__fill_zeros_avx2(x, factor[k], run->planes, p, width, f->zero[k] + p);
        }
    }
}

/* Codewords i .. i + 7 of a channel of two planes, in words: what the table of dot_books has at a
 * and at b, where the second plane's are. */
TOY_KV__INLINE_avx2 void toy_kv__fill_books_avx2(const unsigned char *a, const unsigned char *b,
                                             const int words, __m256i *w)
{
    const __m128i *low = (const __m128i *)(const void *)a, *high = (const __m128i *)(const void *)b;
    __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                        _mm_loadu_si128(high), 1);
    if (words) {
        w[0] = x;
        w[1] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low + 1)),
                                       _mm_loadu_si128(high + 1), 1);
    } else {
        w[0] = _mm256_unpacklo_epi8(_mm256_setzero_si256(), x);
        w[1] = _mm256_unpackhi_epi8(_mm256_setzero_si256(), x);
    }
}

/* Words of a query for two planes: those of the first in the low half, of the second in the high
 * half. Which word of them is channel c's: fill_pick. */
TOY_KV__INLINE_avx2 __m256i toy_kv__fill_two_avx2(const short *query, const int width)
{
    int64_t four;
    if (width == 8)
        return toy_kv__load_bytes_avx2(query);
    if (width == 4)
        return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)query));
    memcpy(&four, query, sizeof four);
    return _mm256_set1_epi64x(four);
}
TOY_KV__INLINE_avx2 __m256i toy_kv__fill_pick_avx2(const int width, const int c)
{
    const int second = width == 8 ? c : width + c;
    return _mm256_inserti128_si256(_mm256_set1_epi16((short)(2 * c | (2 * c + 1) << 8)),
                                   _mm_set1_epi16((short)(2 * second | (2 * second + 1) << 8)), 1);
}

/* Two planes of n rows: entries to out, row behind row. n, width and `wide` are constants. */
TOY_KV__INLINE_avx2 void toy_kv__fill_planes_avx2(const unsigned char *a, const unsigned char *b,
                                              const toy_kv__filling_avx2 *f, int p, const int n,
                                              const int width, const int wide, signed char *out)
{
    /* low bytes of words, and behind them high ones */
    const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0,
                                           2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m256i sum[4][2], w[2];
    int c, k;
    if (!wide)
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            int32_t two;
            memcpy(&two, f->zero[k] + p, sizeof two);
            sum[k][0] = sum[k][1] = _mm256_shuffle_epi8(
                _mm256_set1_epi32(two),
                _mm256_inserti128_si256(_mm256_set1_epi16(0x0100), _mm_set1_epi16(0x0302), 1));
        }
#pragma GCC unroll 8
    for (c = 0; c < width; c++) {
        toy_kv__fill_books_avx2(a + (wide ? 32 : 16) * c, b + (wide ? 32 : 16) * c, wide, w);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const __m256i q = _mm256_shuffle_epi8(
                toy_kv__fill_two_avx2(f->word[k] + p * width, width), toy_kv__fill_pick_avx2(width, c));
            const __m256i x = _mm256_mulhrs_epi16(w[0], q), y = _mm256_mulhrs_epi16(w[1], q);
            if (c == 0 && wide) {
                sum[k][0] = x;
                sum[k][1] = y;
                continue;
            }
            toy_kv__add_words_avx2(&sum[k][0], x);
            toy_kv__add_words_avx2(&sum[k][1], y);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++, out += 128) {
        const __m256i x = _mm256_shuffle_epi8(sum[k][0], split);
        const __m256i y = _mm256_shuffle_epi8(sum[k][1], split);
        __m256i low = _mm256_unpacklo_epi64(x, y);
        if (!wide) /* without parts of a step */
            low = _mm256_and_si256(_mm256_srli_epi16(low, 3),
                                   _mm256_set1_epi8((1 << TOY_KV__LOW_BITS_avx2) - 1));
        _mm256_storeu_si256((__m256i *)(void *)out, _mm256_unpackhi_epi64(x, y));
        _mm256_storeu_si256((__m256i *)(void *)(out + 64), low);
    }
}

/* Rows r .. r + n - 1. n, width and `wide` are constants. */
TOY_KV__INLINE_avx2 void toy_kv__fill_rows_avx2(const toy_kv__run *run, const unsigned char *table,
                                            const float *scale, const float *y, size_t stride,
                                            int rows, int r, const int n, const int width,
                                            const int wide, float *energy, toy_kv__packed *head,
                                            signed char *out)
{
    const int bytes = (wide ? 32 : 16) * width; /* of a plane's codewords */
    toy_kv__filling_avx2 f;
    int p, k;
    toy_kv__fill_latents_avx2(run, scale, y + (size_t)r * stride, stride, n, width, wide, energy + r,
                            &f);
    toy_kv__fill_words_avx2(run, n, width, wide, &f);
    for (k = 0; k < n; k++)
        head->scale[2 * (r + k)] = head->scale[2 * (r + k) + 1] = f.scale[k];
    for (p = 0; p < run->planes; p += 2) {
        const unsigned char *a = table + (size_t)p * (size_t)bytes;
        toy_kv__fill_planes_avx2(a, p + 1 < run->planes ? a + bytes : a, &f, p, n, width, wide,
                               out + (size_t)(p / 4 * rows + r) * 128 + p % 4 * 16);
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__fill_bytes_avx2(const toy_kv__run *run,
                                                    const unsigned char *table, const float *scale,
                                                    const float *y, size_t stride, int rows,
                                                    float *energy, toy_kv__packed *head,
                                                    signed char *out)
{
    const int quads = (run->planes + 3) / 4;
    int r, n;
    head->wide = run->words ? quads : 0;
    head->bytes = rows * 128 * quads;
#define TOY_KV__X(n, width, wide)                                                                    \
    toy_kv__fill_rows_avx2(run, table, scale, y, stride, rows, r, n, width, wide, energy, head, out)
#define TOY_KV__WIDTHS(n)                                                                            \
    if (run->width == 2 && run->words)                                                             \
        TOY_KV__X(n, 2, 1);                                                                          \
    else if (run->width == 2)                                                                      \
        TOY_KV__X(n, 2, 0);                                                                          \
    else if (run->width == 4 && run->words)                                                        \
        TOY_KV__X(n, 4, 1);                                                                          \
    else if (run->width == 4)                                                                      \
        TOY_KV__X(n, 4, 0);                                                                          \
    else if (run->words)                                                                           \
        TOY_KV__X(n, 8, 1);                                                                          \
    else                                                                                           \
        TOY_KV__X(n, 8, 0)
    for (r = 0; r < rows; r += n) {
        n = r + 4 <= rows ? 4 : 1;
        if (n == 4) {
            TOY_KV__WIDTHS(4);
        } else {
            TOY_KV__WIDTHS(1);
        }
    }
#undef TOY_KV__WIDTHS
#undef TOY_KV__X
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Byte kernels, AVX2: what toy_kv__byte_ops promises (types.h). Scores: a shuffle looks up 32 tokens
 * of a plane, in units such that no sum leaves 16 bits. Entries have 16 bits, and are summed modulo
 * 2^16, byte by byte. Or they have about 10, high bits in one byte and 5 in the other, so that
 * bytes of two quads of planes can be added before anything has to be widened. */

#if TOY_KV_BLOCK >= 64

/* Planes whose bytes of narrow entries can be added. */
#define TOY_KV__BUNCH_avx2 8

/* The table of plane p for row r in lut [planes, rows, 16]. */
static inline const float *toy_kv__lut_avx2(const float *lut, int p, int rows, int r)
{
    return lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
}

/* The largest entries of a quad's planes for row r, added up. */
TOY_KV__TARGET_avx2 static float toy_kv__quad_reach_avx2(const float *lut, int q, int planes, int rows,
                                                     int r)
{
    __m256 square = _mm256_setzero_ps();
    float sum = 0.0f;
    int p;
    for (p = 4 * q; p < 4 * q + 4 && p < planes; p++)
        sum += toy_kv__reach_avx2(toy_kv__lut_avx2(lut, p, rows, r), &square);
    return sum;
}

/* What a narrow entry counts where planes of a quad reach so far: each may round up. */
static inline float toy_kv__narrow_scale_avx2(float reach)
{
    return reach / (float)(TOY_KV__ZERO_avx2 - 2);
}

/* Wide quads: from the last quad on, as many narrow ones as are allowed. */
TOY_KV__TARGET_avx2 static int toy_kv__wide_quads_avx2(const float *lut, int planes, int rows,
                                                   const float *energy)
{
    int q, r, p, quads = (planes + 3) / 4, wide = 0;
    for (r = 0; r < rows; r++) {
        __m256 square = _mm256_setzero_ps();
        float limit, top = 0.0f;
        for (p = 0; p < planes; p++)
            toy_kv__reach_avx2(toy_kv__lut_avx2(lut, p, rows, r), &square);
        /* Half the tolerance: weights of 7 bits err more than those of 8 do. */
        limit = 0.25f * TOY_KV__TABLE_ERROR * TOY_KV__TABLE_ERROR *
                (energy[r] + toy_kv__hsum_avx2(square) / 16.0f);
        for (q = quads - 1; q >= wide; q--) {
            float m = toy_kv__quad_reach_avx2(lut, q, planes, rows, r), scale;
            top = m > top ? m : top;
            scale = toy_kv__narrow_scale_avx2(top);
            if (scale * scale / 12.0f * (float)(planes - 4 * q) > limit)
                wide = q + 1;
        }
    }
    return wide;
}

/* What an entry of row r counts in wide quads, and in narrow ones. */
TOY_KV__TARGET_avx2 static void toy_kv__scales_avx2(const float *lut, int planes, int wide, int rows,
                                                int r, float *scale)
{
    float sum = 0.0f, m;
    int q;
    scale[0] = scale[1] = 0.0f;
    for (q = 0; q < (planes + 3) / 4; q++) {
        m = toy_kv__quad_reach_avx2(lut, q, planes, rows, r);
        sum = q % (TOY_KV__WIDE_CHUNK_avx2 / 4) == 0 ? m : sum + m;
        if (q < wide)
            scale[0] = sum > scale[0] ? sum : scale[0];
        else
            scale[1] = m > scale[1] ? m : scale[1];
    }
    scale[0] /= 32767.0f - TOY_KV__WIDE_CHUNK_avx2; /* rounding may add half a unit a plane */
    scale[1] = toy_kv__narrow_scale_avx2(scale[1]);
}

/* Two bytes of each of 64 entries of a quad, the higher ones first. */
TOY_KV__TARGET_avx2 static inline void toy_kv__store_entries_avx2(__m256i x, const int wide,
                                                              signed char *out)
{
    const __m256i low = _mm256_set1_epi16((1 << TOY_KV__LOW_BITS_avx2) - 1);
    toy_kv__store_bytes_avx2(out, _mm256_srli_epi16(x, wide ? 8 : TOY_KV__LOW_BITS_avx2));
    toy_kv__store_bytes_avx2(out + 64, wide ? x : _mm256_and_si256(x, low));
}

/* A narrow quad of row r: no entry is below 0, and together they stand for 0 with ZERO. */
TOY_KV__TARGET_avx2 static void toy_kv__pack_narrow_avx2(const float *lut, int q, int planes, int rows,
                                                     int r, float scale, signed char *out)
{
    const float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
    int i, left = TOY_KV__ZERO_avx2;
    for (i = 3; i >= 0; i--) {
        __m256i x = _mm256_setzero_si256();
        int zero = 0;
        if (4 * q + i < planes) {
            const float *from = toy_kv__lut_avx2(lut, 4 * q + i, rows, r);
            __m256 square = _mm256_setzero_ps();
            x = toy_kv__sixteen_avx2(from, factor);
            zero = _mm_cvtss_si32(_mm_set_ss(toy_kv__reach_avx2(from, &square) * factor));
        }
        zero = i == 0 ? left : zero; /* what is left of it goes to the first plane */
        left -= zero;
        toy_kv__store_entries_avx2(_mm256_add_epi16(x, _mm256_set1_epi16((short)zero)), 0,
                                 out + 16 * i);
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__pack_tables_avx2(const float *lut, int planes, int rows,
                                                     const float *energy, toy_kv__packed *head,
                                                     signed char *out)
{
    int q, r, i, quads = (planes + 3) / 4;
    head->wide = toy_kv__wide_quads_avx2(lut, planes, rows, energy);
    for (r = 0; r < rows; r++)
        toy_kv__scales_avx2(lut, planes, head->wide, rows, r, head->scale + 2 * r);
    for (q = 0; q < quads; q++)
        for (r = 0; r < rows; r++, out += 128) {
            const float *scale = head->scale + 2 * r;
            if (q >= head->wide)
                toy_kv__pack_narrow_avx2(lut, q, planes, rows, r, scale[1], out);
            for (i = 0; i < 4 && q < head->wide; i++) {
                __m256i x = _mm256_setzero_si256();
                if (4 * q + i < planes && scale[0] > 0.0f)
                    x = toy_kv__sixteen_avx2(toy_kv__lut_avx2(lut, 4 * q + i, rows, r),
                                           1.0f / scale[0]);
                toy_kv__store_entries_avx2(x, 1, out + 16 * i);
            }
        }
    head->bytes = rows * 128 * quads;
}

/* Scores of 32 tokens, the codes' low nibbles or (`second`) high ones, for n rows from row r on,
 * through wide tables of planes from .. to - 1, at most WIDE_CHUNK; n and `second` are constants.
 * Unsigned bytes are summed as words of two each and as their high halves; high bytes of 16-bit
 * entries modulo 2^8, since nothing of their sums beyond that counts. */
TOY_KV__INLINE_avx2 void toy_kv__score_wide_avx2(const unsigned char *codes, int from, int to,
                                             const toy_kv__packed *head, const signed char *tables,
                                             int rows, int r, const int n, const int second,
                                             int add, toy_kv__asked *ahead, float *s)
{
    const size_t step = (size_t)rows * 128;
    __m256i all[4], odd[4], high[4], part[2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        all[k] = odd[k] = high[k] = _mm256_setzero_si256();
    tables += (size_t)r * 128;
    for (p = from; p < to; p++) {
        const signed char *t = tables + (size_t)((p - from) / 4) * step + p % 4 * 16;
        const __m256i x = toy_kv__codes_avx2(codes + (size_t)p * (TOY_KV_BLOCK / 2), second);
        if (!second)
            toy_kv__ask(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const signed char *e = t + (size_t)k * 128;
            __m256i low = _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(e + 64), x);
            toy_kv__add_words_avx2(&all[k], low);
            toy_kv__add_words_avx2(&odd[k], _mm256_srli_epi16(low, 8));
            toy_kv__add_bytes_avx2(&high[k], _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(e), x));
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m256i even = _mm256_sub_epi16(all[k], _mm256_slli_epi16(odd[k], 8));
        even = _mm256_add_epi16(even, _mm256_slli_epi16(high[k], 8));
        odd[k] = _mm256_add_epi16(odd[k], _mm256_and_si256(high[k], _mm256_set1_epi16(-256)));
        part[0] = _mm256_unpacklo_epi16(even, odd[k]);
        part[1] = _mm256_unpackhi_epi16(even, odd[k]);
        toy_kv__flush_avx2(part, head->scale[2 * (r + k)], add, s + (r + k) * TOY_KV_BLOCK);
    }
}

/* low and high [n] += narrow entries of one plane, t: of row r. n and `second` are constants. */
TOY_KV__INLINE_avx2 void toy_kv__score_plane_avx2(const unsigned char *codes, const signed char *t,
                                              const int n, const int second, __m256i *low,
                                              __m256i *high)
{
    const __m256i x = toy_kv__codes_avx2(codes, second);
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        const signed char *e = t + k * 128;
        toy_kv__add_bytes_avx2(&high[k], _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(e), x));
        toy_kv__add_bytes_avx2(&low[k], _mm256_shuffle_epi8(toy_kv__table_bytes_avx2(e + 64), x));
    }
}

/* part [n, 2] += narrow entries of at most BUNCH planes, t: row r's of the first, which begins
 * a quad. n and `second` are constants. */
TOY_KV__INLINE_avx2 void toy_kv__score_bunch_avx2(const unsigned char *codes, int planes,
                                              const signed char *t, size_t step, const int n,
                                              const int second, toy_kv__asked *ahead,
                                              __m256i (*part)[2])
{
    const __m256i value = _mm256_set1_epi16(1 | 1 << (8 + TOY_KV__LOW_BITS_avx2));
    __m256i low[4], high[4];
    int q, i, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        low[k] = high[k] = _mm256_setzero_si256();
    for (q = 0; q < planes; q += 4, t += step) {
        if (!second) {
            toy_kv__ask(ahead);
            toy_kv__ask(ahead);
        }
        for (i = 0; i < 4 && q + i < planes; i++, codes += TOY_KV_BLOCK / 2)
            toy_kv__score_plane_avx2(codes, t + 16 * i, n, second, low, high);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        part[k][0] = _mm256_add_epi16(
            part[k][0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(low[k], high[k]), value));
        part[k][1] = _mm256_add_epi16(
            part[k][1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(low[k], high[k]), value));
    }
}

/* The same through narrow tables; the first plane begins a quad. */
TOY_KV__INLINE_avx2 void toy_kv__score_narrow_avx2(const unsigned char *codes, int from, int to,
                                               const toy_kv__packed *head, const signed char *tables,
                                               int rows, int r, const int n, const int second,
                                               int add, toy_kv__asked *ahead, float *s)
{
    const __m256i bias = _mm256_set1_epi16((short)(-TOY_KV__ZERO_avx2 * ((to - from + 3) / 4)));
    const size_t step = (size_t)rows * 128;
    __m256i part[4][2];
    int p, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        part[k][0] = part[k][1] = bias;
    tables += (size_t)r * 128;
    for (p = from; p < to; p += TOY_KV__BUNCH_avx2, tables += TOY_KV__BUNCH_avx2 / 4 * step)
        toy_kv__score_bunch_avx2(codes + (size_t)p * (TOY_KV_BLOCK / 2),
                               to - p < TOY_KV__BUNCH_avx2 ? to - p : TOY_KV__BUNCH_avx2, tables, step,
                               n, second, ahead, part);
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__flush_avx2(part[k], head->scale[2 * (r + k) + 1], add, s + (r + k) * TOY_KV_BLOCK);
}

/* All rows of one block, through tables of planes from .. to - 1: all wide, or none; `wide` is a
 * constant. */
TOY_KV__INLINE_avx2 void toy_kv__score_planes_avx2(const unsigned char *codes, int from, int to,
                                               const toy_kv__packed *head, const signed char *tables,
                                               int rows, const int wide, int add,
                                               toy_kv__asked *ahead, float *s)
{
    int t, r;
#define TOY_KV__HALF(n, second)                                                                      \
    if (wide)                                                                                      \
        toy_kv__score_wide_avx2(codes + t, from, to, head, tables, rows, r, n, second, add, ahead,   \
                              s + t + second * (TOY_KV_BLOCK / 2));                                  \
    else                                                                                           \
        toy_kv__score_narrow_avx2(codes + t, from, to, head, tables, rows, r, n, second, add, ahead, \
                                s + t + second * (TOY_KV_BLOCK / 2))
#define TOY_KV__X(n)                                                                                 \
    do {                                                                                           \
        TOY_KV__HALF(n, 0);                                                                          \
        TOY_KV__HALF(n, 1);                                                                          \
    } while (0)
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 32)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__HALF
#undef TOY_KV__X
}

/* One block. */
TOY_KV__TARGET_avx2 static void toy_kv__score_one_avx2(const unsigned char *codes, int planes,
                                                   const toy_kv__packed *head,
                                                   const signed char *tables, int rows, int add,
                                                   toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int p, end, wide = 4 * head->wide < planes ? 4 * head->wide : planes;
    for (p = 0; p < planes; p = end, add = 1) {
        const int is_wide = p < wide, chunk = is_wide ? TOY_KV__WIDE_CHUNK_avx2 : TOY_KV__CHUNK_avx2;
        end = p - p % chunk + chunk;
        end = end < (is_wide ? wide : planes) ? end : is_wide ? wide : planes;
        if (is_wide)
            toy_kv__score_planes_avx2(codes, p, end, head, tables, rows, 1, add, &asked, s);
        else
            toy_kv__score_planes_avx2(codes, p, end, head, tables, rows, 0, add, &asked, s);
        tables += (size_t)((end - p + 3) / 4) * (size_t)rows * 128;
    }
    *ahead = asked;
}

TOY_KV__TARGET_avx2 static void toy_kv__score_bytes_avx2(const unsigned char *const *codes,
                                                     size_t offset, int blocks, int planes,
                                                     const toy_kv__packed *head,
                                                     const signed char *tables, int rows, int add,
                                                     toy_kv__asked *ahead, float *s)
{
    int b;
    for (b = 0; b < blocks; b++)
        toy_kv__score_one_avx2(codes[b] + offset, planes, head, tables, rows, add, ahead,
                             s + b * rows * TOY_KV_BLOCK);
}

TOY_KV__TARGET_avx2 static void toy_kv__pack_books_avx2(const unsigned char *book, int n,
                                                    signed char *out, float *scale)
{
    int i;
    for (i = 0; i < n; i++, book += 32) {
        __m256 square = _mm256_setzero_ps();
        float x[16], top;
        _mm256_storeu_ps(x, toy_kv__loadh_avx2(book));
        _mm256_storeu_ps(x + 8, toy_kv__loadh_avx2(book + 16));
        top = toy_kv__reach_avx2(x, &square);
        scale[i] = top / 127.0f;
        _mm_storeu_si128(
            (__m128i *)(void *)(out + i * 16),
            toy_kv__narrowed_avx2(toy_kv__sixteen_avx2(x, top > 0.0f ? 127.0f / top : 0.0f)));
    }
}

#define TOY_KV__X(name) toy_kv__##name##_avx2,
static const toy_kv__byte_ops toy_kv__byte_ops_avx2 = {
    TOY_KV__ALL_BYTE_KERNELS(TOY_KV__X, TOY_KV__X, TOY_KV__NO_KERNEL, TOY_KV__X) TOY_KV__WEIGHT_REST_avx2,
    0.02f};
#undef TOY_KV__X

#endif /* TOY_KV_BLOCK >= 64 */
/* Kernels over rebuilt tiles, and landmarks, for one instruction set, in the vocabulary of
 * kernels.h. A tile is [channels, BLOCK]: what is done to one token is done to LANES of them at
 * once, and no kernel over tiles adds up across lanes. Sizes of tables may be any; BLOCK is a
 * multiple of the lanes. */

/* Inputs and outputs that are unpacked to fp32 at a time. */
enum { TOY_KV__DEPTH_avx2 = 128, TOY_KV__STRIP_avx2 = 16 };

/* The second vector of tokens that a pass holds; the first one again where a block has no other. */
enum { TOY_KV__NEXT_avx2 = TOY_KV_BLOCK > TOY_KV__LANES_avx2 ? TOY_KV__LANES_avx2 : 0 };

/* y [m, BLOCK] += x [n, BLOCK] by m outputs' coefficients, OUTS at most, at coef[i * of_in + k *
 * of_out]. A macro, so that both strides are constants. Two vectors of tokens and OUTS outputs are
 * as many sums as registers hold: a coefficient is loaded once for both. */
#define TOY_KV__OUTPUTS(name, of_in, of_out)                                                         \
    TOY_KV__TARGET_avx2 static void name(const float *coef, int n, int m, const float *x, float *y)   \
    {                                                                                              \
        int i, t;                                                                                  \
        for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_avx2) {                                    \
            const float *c = coef, *src = x + t;                                                   \
            float *dst = y + t;                                                                    \
            TOY_KV__OUTS_avx2(TOY_KV__ZERO)                                                             \
            for (i = 0; i < n; i++, c += (of_in), src += TOY_KV_BLOCK) {                             \
                toy_kv__vf_avx2 v = toy_kv__load_avx2(src), w = toy_kv__load_avx2(src + TOY_KV__NEXT_avx2), f; \
                TOY_KV__STEP(0, of_out)                                                              \
                TOY_KV__STEP(1, of_out)                                                              \
                TOY_KV__STEP(2, of_out)                                                              \
                TOY_KV__STEP(3, of_out)                                                              \
                TOY_KV__REST_avx2(TOY_KV__STEP, of_out)                                                 \
            }                                                                                      \
            TOY_KV__OUTS_avx2(TOY_KV__KEEP)                                                             \
        }                                                                                          \
    }
#define TOY_KV__ZERO(k) toy_kv__vf_avx2 a##k = toy_kv__set1_avx2(0.0f), b##k = a##k;
#define TOY_KV__STEP(k, of_out)                                                                      \
    f = toy_kv__set1_avx2(c[(k) * (of_out)]);                                                         \
    a##k = toy_kv__fma_avx2(f, v, a##k);                                                              \
    b##k = toy_kv__fma_avx2(f, w, b##k);
#define TOY_KV__KEEP(k)                                                                              \
    if (k < m) {                                                                                   \
        float *row = dst + k * TOY_KV_BLOCK;                                                         \
        b##k = toy_kv__add_avx2(toy_kv__load_avx2(row + TOY_KV__NEXT_avx2), b##k);                          \
        toy_kv__store_avx2(row, toy_kv__add_avx2(toy_kv__load_avx2(row), a##k));                            \
        toy_kv__store_avx2(row + TOY_KV__NEXT_avx2, b##k);                                               \
    }
TOY_KV__OUTPUTS(toy_kv__outputs_down_avx2, TOY_KV__STRIP_avx2, 1)
TOY_KV__OUTPUTS(toy_kv__outputs_across_avx2, 1, TOY_KV__DEPTH_avx2)
#undef TOY_KV__OUTPUTS
#undef TOY_KV__ZERO
#undef TOY_KV__STEP
#undef TOY_KV__KEEP

/* x [n] of fp32 from binary16. */
TOY_KV__TARGET_avx2 static inline void toy_kv__widen_avx2(const unsigned char *row, int n, float *x)
{
    int j = 0;
    for (; j + TOY_KV__LANES_avx2 <= n; j += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(x + j, toy_kv__loadh_avx2(row + 2 * j));
    for (; j < n; j++)
        x[j] = toy_kv__half_at(row, (size_t)j);
}

/* x [n] of fp32 from entries of a table: the i-th on, the first of them in column `col`. */
TOY_KV__TARGET_avx2 static inline void toy_kv__unpack_avx2(const toy_kv__matrix *m, size_t i, size_t col,
                                                     int n, float *x)
{
    int j = 0;
    if (m->scale == NULL) {
        toy_kv__widen_avx2(m->values + 2 * i, n, x);
        return;
    }
    for (; j + TOY_KV__LANES_avx2 <= n; j += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(x + j, toy_kv__mul_avx2(toy_kv__loads8_avx2(m->values + i + j),
                                             toy_kv__loadh_avx2(m->scale + 2 * (col + (size_t)j))));
    for (; j < n; j++)
        x[j] = toy_kv__raw_at(m, i + (size_t)j) * toy_kv__half_at(m->scale, col + (size_t)j);
}

TOY_KV__TARGET_avx2 static void toy_kv__product_avx2(toy_kv__matrix table, size_t ld, int across, int n_in,
                                               int n_out, const float *x, float *y)
{
    float coef[TOY_KV__STRIP_avx2 * TOY_KV__DEPTH_avx2];
    int i, o, k, first;
    memset(coef, 0, sizeof coef);
    for (o = 0; o < n_out; o += TOY_KV__STRIP_avx2)
        for (first = 0; first < n_in; first += TOY_KV__DEPTH_avx2) {
            int m = n_out - o < TOY_KV__STRIP_avx2 ? n_out - o : TOY_KV__STRIP_avx2;
            int n = n_in - first < TOY_KV__DEPTH_avx2 ? n_in - first : TOY_KV__DEPTH_avx2;
            const float *src = x + (size_t)first * TOY_KV_BLOCK;
            for (k = 0; k < m && across; k++)
                toy_kv__unpack_avx2(&table, (size_t)(o + k) * ld + (size_t)first, (size_t)first, n,
                                 coef + k * TOY_KV__DEPTH_avx2);
            for (i = 0; i < n && !across; i++)
                toy_kv__unpack_avx2(&table, (size_t)(first + i) * ld + (size_t)o, (size_t)o, m,
                                 coef + i * TOY_KV__STRIP_avx2);
            for (k = 0; k < m; k += TOY_KV__N_OUTS_avx2) {
                float *dst = y + (size_t)(o + k) * TOY_KV_BLOCK;
                if (across)
                    toy_kv__outputs_across_avx2(coef + k * TOY_KV__DEPTH_avx2, n, m - k, src, dst);
                else
                    toy_kv__outputs_down_avx2(coef + k, n, m - k, src, dst);
            }
        }
}

TOY_KV__TARGET_avx2 static void toy_kv__add_scaled_avx2(size_t n, float a, const float *x, float *y)
{
    size_t i;
    toy_kv__vf_avx2 factor = toy_kv__set1_avx2(a);
    for (i = 0; i < n; i += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(y + i, toy_kv__fma_avx2(factor, toy_kv__load_avx2(x + i), toy_kv__load_avx2(y + i)));
}

TOY_KV__TARGET_avx2 static void toy_kv__affine_avx2(const float *scale, const float *shift, int rows,
                                              float *x)
{
    int t, r;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a = toy_kv__load_avx2(scale + t), b = toy_kv__load_avx2(shift + t);
        float *p = x + t;
        for (r = 0; r < rows; r++, p += TOY_KV_BLOCK)
            toy_kv__store_avx2(p, toy_kv__fma_avx2(a, toy_kv__load_avx2(p), b));
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__affine_row_avx2(int n, float scale, float shift, float *x)
{
    int i = 0;
    toy_kv__vf_avx2 a = toy_kv__set1_avx2(scale), b = toy_kv__set1_avx2(shift);
    for (; i + TOY_KV__LANES_avx2 <= n; i += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(x + i, toy_kv__fma_avx2(a, toy_kv__load_avx2(x + i), b));
    for (; i < n; i++)
        x[i] = scale * x[i] + shift;
}

TOY_KV__TARGET_avx2 static void toy_kv__from_bytes_avx2(const unsigned char *bytes, float bias,
                                                  float *dst)
{
    int t;
    toy_kv__vf_avx2 b = toy_kv__set1_avx2(bias);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(dst + t, toy_kv__add_avx2(toy_kv__loadu8_avx2(bytes + t), b));
}

TOY_KV__TARGET_avx2 static void toy_kv__from_nibbles_avx2(const unsigned char *plane,
                                                    const unsigned char *book, int width, int add,
                                                    float *dst)
{
    float words[16];
    int t, w;
    for (w = 0; w < width; w++, dst += TOY_KV_BLOCK) {
        toy_kv__vt_avx2 table;
        toy_kv__widen_avx2(book + 2 * 16 * w, 16, words);
        table = toy_kv__table_avx2(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
            toy_kv__vf_avx2 v = toy_kv__lookup_avx2(table, toy_kv__nibbles_avx2(plane, t));
            toy_kv__store_avx2(dst + t, add ? toy_kv__add_avx2(toy_kv__load_avx2(dst + t), v) : v);
        }
    }
}

/* The angle of a token is the block's and the token's own, one complex product a pair. */
TOY_KV__TARGET_avx2 static void toy_kv__turn_tile_avx2(const float *block, const float *tokens,
                                                 float direction, const float *x, float *y)
{
    int i, t;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        int first = (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i) * TOY_KV_BLOCK;
        int second = (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2) * TOY_KV_BLOCK;
        toy_kv__vf_avx2 block_cos = toy_kv__set1_avx2(block[2 * i]), c = block_cos;
        toy_kv__vf_avx2 block_sin = toy_kv__set1_avx2(direction * block[2 * i + 1]), s = block_sin;
        toy_kv__vf_avx2 sign = toy_kv__set1_avx2(direction), minus = toy_kv__set1_avx2(-1.0f);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
            toy_kv__vf_avx2 a = toy_kv__load_avx2(x + first + t), b = toy_kv__load_avx2(x + second + t);
            if (tokens != NULL) {
                const float *own = tokens + 2 * i * TOY_KV_BLOCK + t;
                toy_kv__vf_avx2 own_cos = toy_kv__load_avx2(own);
                toy_kv__vf_avx2 own_sin = toy_kv__mul_avx2(sign, toy_kv__load_avx2(own + TOY_KV_BLOCK));
                c = toy_kv__fma_avx2(toy_kv__mul_avx2(minus, block_sin), own_sin,
                                  toy_kv__mul_avx2(block_cos, own_cos));
                s = toy_kv__fma_avx2(block_sin, own_cos, toy_kv__mul_avx2(block_cos, own_sin));
            }
            toy_kv__store_avx2(y + first + t,
                            toy_kv__fma_avx2(toy_kv__mul_avx2(minus, s), b, toy_kv__mul_avx2(c, a)));
            toy_kv__store_avx2(y + second + t, toy_kv__fma_avx2(s, a, toy_kv__mul_avx2(c, b)));
        }
    }
    if (x != y)
        memcpy(y + TOY_KV_N_ROT * TOY_KV_BLOCK, x + TOY_KV_N_ROT * TOY_KV_BLOCK,
               sizeof(float) * (TOY_KV_HEAD_DIM - TOY_KV_N_ROT) * TOY_KV_BLOCK);
}

/* s [n, BLOCK] = q [n, HEAD_DIM] against a tile k. n: a constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__score_held_avx2(const float *k, const float *q, const int n,
                                                        float *s)
{
    int d, t, i;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a[4];
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            a[i] = toy_kv__set1_avx2(0.0f);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            toy_kv__vf_avx2 v = toy_kv__load_avx2(k + d * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (i = 0; i < n; i++)
                a[i] = toy_kv__fma_avx2(toy_kv__set1_avx2(q[i * TOY_KV_HEAD_DIM + d]), v, a[i]);
        }
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            toy_kv__store_avx2(s + i * TOY_KV_BLOCK + t, a[i]);
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__score_tile_avx2(const float *k, const float *q, int rows,
                                                  float *s)
{
    int r;
#define TOY_KV__X(n) toy_kv__score_held_avx2(k, q + r * TOY_KV_HEAD_DIM, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times v [BLOCK]. n: a constant, 4
 * at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__sum_held_avx2(const float *v, const float *p, const int n,
                                                      float *acc, size_t stride)
{
    toy_kv__vf_avx2 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 x = toy_kv__load_avx2(v + t);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx2(toy_kv__load_avx2(p + k * TOY_KV_BLOCK + t), x, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2, a[k]);
}

TOY_KV__TARGET_avx2 static void toy_kv__sum_tile_avx2(const float *v, const float *p, int rows,
                                                float *acc, size_t stride)
{
    int r, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_held_avx2(v, p + r * TOY_KV_BLOCK, n, acc + (size_t)r * stride * TOY_KV__LANES_avx2, stride)
    for (d = 0; d < TOY_KV_HEAD_DIM; d++, v += TOY_KV_BLOCK, acc += TOY_KV__LANES_avx2)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

TOY_KV__TARGET_avx2 static void toy_kv__distances_avx2(const unsigned char *book, int n, int width,
                                                 int count, const float *z, float *distance)
{
    int i = 0, w;
    for (; i + TOY_KV__LANES_avx2 <= count; i += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a = toy_kv__set1_avx2(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx2 d =
                toy_kv__add_avx2(toy_kv__loadh_avx2(book + 2 * ((size_t)w * (size_t)n + (size_t)i)),
                              toy_kv__set1_avx2(-z[w]));
            a = toy_kv__fma_avx2(d, d, a);
        }
        toy_kv__store_avx2(distance + i, a);
    }
    for (; i < count; i++) {
        distance[i] = 0.0f;
        for (w = 0; w < width; w++) {
            float d = toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i) - z[w];
            distance[i] += d * d;
        }
    }
}

TOY_KV__TARGET_avx2 static void toy_kv__landmark_scores_avx2(const unsigned char *codes, int n,
                                                       const float *q, int rows, float *best)
{
    toy_kv__vf_avx2 bias = toy_kv__set1_avx2(-128.0f);
    int i, r, d;
    for (i = 0; i < n; i++, codes += TOY_KV_HEAD_DIM)
        for (r = 0; r < rows; r++) {
            const float *x = q + r * TOY_KV_HEAD_DIM;
            toy_kv__vf_avx2 a = toy_kv__set1_avx2(0.0f);
            float sum;
            for (d = 0; d + TOY_KV__LANES_avx2 <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_avx2)
                a = toy_kv__fma_avx2(toy_kv__load_avx2(x + d),
                                  toy_kv__add_avx2(toy_kv__loadu8_avx2(codes + d), bias), a);
            sum = toy_kv__hsum_avx2(a);
            for (; d < TOY_KV_HEAD_DIM; d++)
                sum += x[d] * ((float)codes[d] - 128.0f);
            best[i] = r == 0 || sum > best[i] ? sum : best[i];
        }
}

#define TOY_KV__X(name) toy_kv__##name##_avx2,
static const toy_kv__dense_ops toy_kv__dense_avx2 = {TOY_KV__DENSE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Kernels of encoding for one instruction set, in the vocabulary of kernels.h and over the tiles of
 * dense.h: LANES tokens at once. Besides:
 *
 *   storeu8 (integral 0..15 to bytes)   storeh (to binary16; what is too large becomes the largest)
 *   keep_less(x, i, &least, &index): where x < least, least = x and index = i
 *   transpose(src, step, dst, step): eight by eight binary16 values, steps of rows in bytes */

/* The codewords i .. i + 3 against LANES tokens z [width, BLOCK]: least and index are what was
 * found before. book: |c|^2 / 2 [16], then -c [width, 16]; |z - c|^2 / 2 less these is the same for
 * all codewords. */
#define TOY_KV__FOUR(i)                                                                              \
    {                                                                                              \
        toy_kv__vf_avx2 a0 = toy_kv__set1_avx2(book[i]), a1 = toy_kv__set1_avx2(book[(i) + 1]);             \
        toy_kv__vf_avx2 a2 = toy_kv__set1_avx2(book[(i) + 2]), a3 = toy_kv__set1_avx2(book[(i) + 3]);       \
        for (w = 0; w < width; w++) {                                                              \
            toy_kv__vf_avx2 v = toy_kv__load_avx2(z + w * TOY_KV_BLOCK);                                   \
            const float *c = book + 16 * (w + 1) + (i);                                            \
            a0 = toy_kv__fma_avx2(toy_kv__set1_avx2(c[0]), v, a0);                                       \
            a1 = toy_kv__fma_avx2(toy_kv__set1_avx2(c[1]), v, a1);                                       \
            a2 = toy_kv__fma_avx2(toy_kv__set1_avx2(c[2]), v, a2);                                       \
            a3 = toy_kv__fma_avx2(toy_kv__set1_avx2(c[3]), v, a3);                                       \
        }                                                                                          \
        toy_kv__keep_less_avx2(a0, (float)(i), &least, &index);                                       \
        toy_kv__keep_less_avx2(a1, (float)((i) + 1), &least, &index);                                 \
        toy_kv__keep_less_avx2(a2, (float)((i) + 2), &least, &index);                                 \
        toy_kv__keep_less_avx2(a3, (float)((i) + 3), &least, &index);                                 \
    }

/* Inlined with a constant width. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__search_tile_avx2(const float *book, int width,
                                                         const float *tile, unsigned char *code)
{
    int t, w;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        const float *z = tile + t;
        toy_kv__vf_avx2 least = toy_kv__set1_avx2(3.4e38f), index = toy_kv__set1_avx2(0.0f);
        TOY_KV__FOUR(0)
        TOY_KV__FOUR(4)
        TOY_KV__FOUR(8)
        TOY_KV__FOUR(12)
        toy_kv__storeu8_avx2(code + t, index);
    }
}
#undef TOY_KV__FOUR

/* The nearest of 16 codewords, binary16 [width, 16], to each token of z [width, BLOCK], the lower
 * one on ties: a plane of nibbles. words: room for [width + 1, 16]. */
TOY_KV__TARGET_avx2 static void toy_kv__code_nibbles_avx2(const unsigned char *book, int width,
                                                    const float *z, float *words,
                                                    unsigned char *plane)
{
    unsigned char code[TOY_KV_BLOCK];
    toy_kv__vf_avx2 half = toy_kv__set1_avx2(0.5f), minus = toy_kv__set1_avx2(-1.0f);
    int i, w, t;
    for (i = 0; i < 16; i += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 norm = toy_kv__set1_avx2(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx2 c = toy_kv__loadh_avx2(book + 2 * (16 * w + i));
            norm = toy_kv__fma_avx2(toy_kv__mul_avx2(half, c), c, norm);
            toy_kv__store_avx2(words + 16 * (w + 1) + i, toy_kv__mul_avx2(minus, c));
        }
        toy_kv__store_avx2(words + i, norm);
    }
    switch (width) {
    case 1:
        toy_kv__search_tile_avx2(words, 1, z, code);
        break;
    case 2:
        toy_kv__search_tile_avx2(words, 2, z, code);
        break;
    case 4:
        toy_kv__search_tile_avx2(words, 4, z, code);
        break;
    default:
        toy_kv__search_tile_avx2(words, width, z, code);
    }
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 8) {
        uint64_t low, high;
        memcpy(&low, code + t, 8);
        memcpy(&high, code + TOY_KV_BLOCK / 2 + t, 8);
        low |= high << 4;
        memcpy(plane + t, &low, 8);
    }
}

/* z [width, BLOCK] -= the codewords of a plane of nibbles. */
TOY_KV__TARGET_avx2 static void toy_kv__leave_nibbles_avx2(const unsigned char *plane,
                                                     const unsigned char *book, int width, float *z)
{
    float words[16];
    int i, t, w;
    toy_kv__vf_avx2 minus = toy_kv__set1_avx2(-1.0f);
    for (w = 0; w < width; w++, z += TOY_KV_BLOCK) {
        toy_kv__vt_avx2 table;
        for (i = 0; i < 16; i += TOY_KV__LANES_avx2)
            toy_kv__store_avx2(words + i, toy_kv__loadh_avx2(book + 2 * (16 * w + i)));
        table = toy_kv__table_avx2(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2)
            toy_kv__store_avx2(
                z + t, toy_kv__fma_avx2(minus, toy_kv__lookup_avx2(table, toy_kv__nibbles_avx2(plane, t)),
                                     toy_kv__load_avx2(z + t)));
    }
}

/* sum [BLOCK]: of the squares of x [rows, BLOCK]. */
TOY_KV__TARGET_avx2 static void toy_kv__squares_avx2(const float *x, int rows, float *sum)
{
    int r, t, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_avx2(0.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_avx2 v = toy_kv__load_avx2(x + (size_t)(r + k) * TOY_KV_BLOCK + t);
                a[k] = toy_kv__fma_avx2(v, v, a[k]);
            }
        }
        for (; r < rows; r++) {
            toy_kv__vf_avx2 v = toy_kv__load_avx2(x + (size_t)r * TOY_KV_BLOCK + t);
            a[0] = toy_kv__fma_avx2(v, v, a[0]);
        }
        toy_kv__store_avx2(sum + t,
                        toy_kv__add_avx2(toy_kv__add_avx2(a[0], a[1]), toy_kv__add_avx2(a[2], a[3])));
    }
}

/* x [HEAD_DIM, BLOCK] from rows of binary16 [BLOCK, HEAD_DIM]. */
TOY_KV__TARGET_avx2 static void toy_kv__load_rows_avx2(const unsigned char *rows, float *x)
{
    unsigned char tile[8 * 2 * TOY_KV_BLOCK];
    int d, t, i;
    for (d = 0; d + 8 <= TOY_KV_HEAD_DIM; d += 8, x += 8 * TOY_KV_BLOCK) {
        for (t = 0; t < TOY_KV_BLOCK; t += 8)
            toy_kv__transpose_avx2(rows + 2 * (t * TOY_KV_HEAD_DIM + d), 2 * TOY_KV_HEAD_DIM, tile + 2 * t,
                                2 * TOY_KV_BLOCK);
        for (i = 0; i < 8 * TOY_KV_BLOCK; i += TOY_KV__LANES_avx2)
            toy_kv__store_avx2(x + i, toy_kv__loadh_avx2(tile + 2 * i));
    }
    for (; d < TOY_KV_HEAD_DIM; d++, x += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++)
            x[t] = toy_kv__half_at(rows, (size_t)(t * TOY_KV_HEAD_DIM + d));
}

/* A row of binary16 [n] from x [n]. */
TOY_KV__TARGET_avx2 static void toy_kv__store_row_avx2(const float *x, int n, unsigned char *row)
{
    int i = 0;
    for (; i + TOY_KV__LANES_avx2 <= n; i += TOY_KV__LANES_avx2)
        toy_kv__storeh_avx2(row + 2 * i, toy_kv__load_avx2(x + i));
    for (; i < n; i++)
        toy_kv__storeh_portable(row + 2 * i, x[i]);
}

/* Turns a head's vector x [HEAD_DIM] by cosines and sines, each [N_ROT / 2]. */
TOY_KV__TARGET_avx2 static void toy_kv__turn_row_avx2(const float *cosines, const float *sines, float *x)
{
    int i = 0, half = TOY_KV_N_ROT / 2;
    toy_kv__vf_avx2 minus = toy_kv__set1_avx2(-1.0f);
    for (; !TOY_KV_ROPE_INTERLEAVED && i + TOY_KV__LANES_avx2 <= half; i += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 c = toy_kv__load_avx2(cosines + i), s = toy_kv__load_avx2(sines + i);
        toy_kv__vf_avx2 a = toy_kv__load_avx2(x + i), b = toy_kv__load_avx2(x + half + i);
        toy_kv__store_avx2(x + i, toy_kv__fma_avx2(toy_kv__mul_avx2(minus, s), b, toy_kv__mul_avx2(c, a)));
        toy_kv__store_avx2(x + half + i, toy_kv__fma_avx2(s, a, toy_kv__mul_avx2(c, b)));
    }
    for (; i < half; i++) {
        float *first = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i);
        float *second = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + half);
        float a = *first, b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

#define TOY_KV__X(name) toy_kv__##name##_avx2,
static const toy_kv__code_ops toy_kv__code_avx2 = {TOY_KV__CODE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
TOY_KV__TARGET_avx2 static inline toy_kv__vf_avx2 toy_kv__entries_avx2(const toy_kv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? toy_kv__loads8_avx2(m->values + i) : toy_kv__loadh_avx2(m->values + 2 * i);
}

/* sum [n]: the sums over the lanes of x [n], n a constant, 4 at most; what stands behind is
 * anything.
 */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__lane_sums_avx2(const toy_kv__vf_avx2 *x, const int n,
                                                       float *sum)
{
    toy_kv__hsum4_avx2(x[0], x[n > 1 ? 1 : 0], x[n > 2 ? 2 : 0], x[n > 3 ? 3 : 0], sum);
}

/* Latents j .. j + m LANES - 1 of n queries x [n, ldx]: y [n, n_out]. n and m, 1 or 2: constants.
 */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__map_some_avx2(const toy_kv__matrix *table, const int bytes,
                                                      int n_in, int n_out, int j, const int m,
                                                      const float *x, int ldx, const int n,
                                                      float *y)
{
    const size_t next = m > 1 ? TOY_KV__LANES_avx2 : 0;
    toy_kv__vf_avx2 a[4], b[4], scale = toy_kv__set1_avx2(1.0f), more = scale;
    int d, k;
    if (bytes) {
        scale = toy_kv__loadh_avx2(table->scale + 2 * (size_t)j);
        more = toy_kv__loadh_avx2(table->scale + 2 * ((size_t)j + next));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = b[k] = toy_kv__set1_avx2(0.0f);
    for (d = 0; d < n_in; d++) {
        const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
        toy_kv__vf_avx2 u = toy_kv__entries_avx2(table, at, bytes);
        toy_kv__vf_avx2 v = m > 1 ? toy_kv__entries_avx2(table, at + next, bytes) : u;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx2 q = toy_kv__set1_avx2(x[k * ldx + d]);
            a[k] = toy_kv__fma_avx2(q, u, a[k]);
            if (m > 1)
                b[k] = toy_kv__fma_avx2(q, v, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = y + (size_t)k * (size_t)n_out + j;
        toy_kv__store_avx2(to, toy_kv__mul_avx2(scale, a[k]));
        if (m > 1)
            toy_kv__store_avx2(to + next, toy_kv__mul_avx2(more, b[k]));
    }
}

TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__map_entries_avx2(const toy_kv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_avx2(table, bytes, n_in, n_out, j, 2, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j + 2 * TOY_KV__LANES_avx2 <= n_out; j += 2 * TOY_KV__LANES_avx2)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_avx2(table, bytes, n_in, n_out, j, 1, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j < n_out && n_out >= TOY_KV__LANES_avx2; j += TOY_KV__LANES_avx2) {
        if (j + TOY_KV__LANES_avx2 > n_out) /* the last LANES, some of them once more */
            j = n_out - TOY_KV__LANES_avx2;
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
    for (; j < n_out; j++)
        for (r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (d = 0; d < n_in; d++)
                sum += x[(size_t)r * (size_t)ldx + (size_t)d] *
                       toy_kv__raw_at(table, (size_t)d * (size_t)n_out + (size_t)j);
            y[(size_t)r * (size_t)n_out + (size_t)j] =
                bytes ? sum * toy_kv__half_at(table->scale, (size_t)j) : sum;
        }
}

/* y [rows, n_out] = x [rows, n_in] * table [n_in, n_out]: the query map. */
TOY_KV__TARGET_avx2 static void toy_kv__map_avx2(toy_kv__matrix table, int n_in, int n_out, const float *x,
                                           int ldx, int rows, float *y)
{
    if (table.scale != NULL)
        toy_kv__map_entries_avx2(&table, 1, n_in, n_out, x, ldx, rows, y);
    else
        toy_kv__map_entries_avx2(&table, 0, n_in, n_out, x, ldx, rows, y);
}

/* Outputs that a pass of unmap holds sums of for four rows: as many as 32 registers hold, or 16. */
#define TOY_KV__UNMAPPED_avx2 (TOY_KV__LANES_avx2 >= 16 ? 4 : 2)

/* Outputs d .. d + m - 1 of n rows x [n, n_in], whose last LANES are `rest`, 0 where whole ones
 * end: o [n, n_out]. n_in: LANES at least. n, 4 at most, and m, 1, 2 or 4: constants; outputs share
 * what is loaded of x. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__unmap_some_avx2(const toy_kv__matrix *table, const int bytes,
                                                        int d, const int m, int n_in,
                                                        const float *x,
                                                        float (*rest)[TOY_KV__LANES_avx2], const int n,
                                                        float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in;
    const int whole = n_in / TOY_KV__LANES_avx2 * TOY_KV__LANES_avx2;
    toy_kv__vf_avx2 a[4][4]; /* [row][output] */
    float sum[4];
    int i, j, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            a[k][i] = toy_kv__set1_avx2(0.0f);
    for (j = 0; j < n_in; j += TOY_KV__LANES_avx2) {
        /* the last LANES, some of them once more, where no whole ones are left */
        const int last = j == whole, at = last ? n_in - TOY_KV__LANES_avx2 : j;
        toy_kv__vf_avx2 u[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            u[i] = toy_kv__entries_avx2(table, row + (size_t)(i * n_in + at), bytes);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx2 y = toy_kv__load_avx2(last ? rest[k] : x + k * n_in + j);
#pragma GCC unroll 4
            for (i = 0; i < m; i++)
                a[k][i] = toy_kv__fma_avx2(y, u[i], a[k][i]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = o + k * n_out + d;
        toy_kv__hsum4_avx2(a[k][0], a[k][1], a[k][2], a[k][3], sum);
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            to[i] += sum[i];
    }
}

/* All outputs of n rows. n: a constant. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__unmap_rows_avx2(const toy_kv__matrix *table, const int bytes,
                                                        int n_out, int n_in, const float *x,
                                                        float (*rest)[TOY_KV__LANES_avx2], const int n,
                                                        float *o)
{
    int d = 0;
    for (; d + TOY_KV__UNMAPPED_avx2 <= n_out; d += TOY_KV__UNMAPPED_avx2)
        toy_kv__unmap_some_avx2(table, bytes, d, TOY_KV__UNMAPPED_avx2, n_in, x, rest, n, o, n_out);
    for (; d < n_out; d++)
        toy_kv__unmap_some_avx2(table, bytes, d, 1, n_in, x, rest, n, o, n_out);
}

TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__unmap_entries_avx2(const toy_kv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[TOY_KV__MAX_ROWS][TOY_KV__LANES_avx2]; /* the last LANES of y, 0 where whole ones end */
    const int whole = n_in / TOY_KV__LANES_avx2 * TOY_KV__LANES_avx2;
    int r, j;
    if (n_in < TOY_KV__LANES_avx2) {
        toy_kv__unmap_short(table, n_out, n_in, y, rows, o);
        return;
    }
    memset(rest, 0, sizeof rest);
    for (r = 0; r < rows; r++) {
        const float *end = y + (size_t)(r + 1) * (size_t)n_in;
        for (j = whole - n_in; j < 0; j++)
            rest[r][TOY_KV__LANES_avx2 + j] = end[j];
    }
#define TOY_KV__X(n)                                                                                 \
    toy_kv__unmap_rows_avx2(table, bytes, n_out, n_in, y + (size_t)r * (size_t)n_in, rest + r, n,     \
                         o + r * n_out)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [rows, n] times scale [n], binary16. */
TOY_KV__TARGET_avx2 static inline void toy_kv__scale_latents_avx2(const unsigned char *scale, int n,
                                                            int rows, float *y)
{
    int r, j = 0;
    for (; j + TOY_KV__LANES_avx2 <= n; j += TOY_KV__LANES_avx2) {
        const toy_kv__vf_avx2 f = toy_kv__loadh_avx2(scale + 2 * j);
        for (r = 0; r < rows; r++) {
            float *x = y + (size_t)r * (size_t)n + j;
            toy_kv__store_avx2(x, toy_kv__mul_avx2(toy_kv__load_avx2(x), f));
        }
    }
    for (; j < n; j++) {
        const float f = toy_kv__half_at(scale, (size_t)j);
        for (r = 0; r < rows; r++)
            y[(size_t)r * (size_t)n + (size_t)j] *= f;
    }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
TOY_KV__TARGET_avx2 static void toy_kv__unmap_avx2(toy_kv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    if (table.scale == NULL) {
        toy_kv__unmap_entries_avx2(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    toy_kv__scale_latents_avx2(table.scale, n_in, rows, y);
    toy_kv__unmap_entries_avx2(&table, 1, n_out, n_in, y, rows, o);
}
/* Arithmetic on rows of numbers for one instruction set, in the vocabulary of kernels.h: gains and
 * softmax of scores, exact tokens, sums over lanes, angles. */

/* exp(x) for x <= 0, down to x = -87, where it stays: relative error below 2e-7 near 0 and below
 * 6e-8 |x| elsewhere, so that no sum of them errs by more than the first. A polynomial for 2^r with
 * the least relative error on [-1/2, 1/2], its terms in pairs: what waits for operands fills the
 * processor's queues, so that a long chain is slower than one product more. */
TOY_KV__TARGET_avx2 static inline toy_kv__vf_avx2 toy_kv__exp_avx2(toy_kv__vf_avx2 x)
{
    toy_kv__vf_avx2 n, r, square, low, high;
    x = toy_kv__mul_avx2(toy_kv__max_avx2(x, toy_kv__set1_avx2(-87.0f)), toy_kv__set1_avx2(1.44269504f));
    n = toy_kv__round_avx2(x);
    r = toy_kv__sub_avx2(x, n);
    square = toy_kv__mul_avx2(r, r);
    low = toy_kv__fma_avx2(toy_kv__set1_avx2(0.693147004f), r, toy_kv__set1_avx2(1.0f));
    high = toy_kv__fma_avx2(toy_kv__set1_avx2(0.0555073358f), r, toy_kv__set1_avx2(0.240222424f));
    x = toy_kv__fma_avx2(toy_kv__set1_avx2(0.00132647273f), r, toy_kv__set1_avx2(0.00967151299f));
    high = toy_kv__fma_avx2(x, square, high);
    low = toy_kv__fma_avx2(high, square, low);
    return toy_kv__scale2_avx2(low, n);
}

/* dst [rows, BLOCK] = gain [BLOCK] * src [rows, BLOCK] */
TOY_KV__TARGET_avx2 static void toy_kv__scale_rows_avx2(const float *gain, const float *src, int rows,
                                                  float *dst)
{
    int r, t;
    for (r = 0; r < rows; r++)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
            int i = r * TOY_KV_BLOCK + t;
            toy_kv__store_avx2(dst + i,
                            toy_kv__mul_avx2(toy_kv__load_avx2(gain + t), toy_kv__load_avx2(src + i)));
        }
}

/* s [rows, BLOCK] = (bias [rows], or s if NULL) + gain [BLOCK] * part [rows, BLOCK]; high [rows,
 * LANES], if not NULL, rises to the highest of each lane. */
TOY_KV__TARGET_avx2 static void toy_kv__gain_scores_avx2(const float *gain, const float *part,
                                                   const float *bias, int rows, float *s,
                                                   float *high)
{
    int r, t;
    for (r = 0; r < rows; r++, part += TOY_KV_BLOCK, s += TOY_KV_BLOCK) {
        const toy_kv__vf_avx2 base = toy_kv__set1_avx2(bias != NULL ? bias[r] : 0.0f);
        toy_kv__vf_avx2 top = toy_kv__set1_avx2(TOY_KV__MASKED);
#pragma GCC unroll 4
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
            toy_kv__vf_avx2 x = toy_kv__fma_avx2(toy_kv__load_avx2(gain + t), toy_kv__load_avx2(part + t),
                                           bias != NULL ? base : toy_kv__load_avx2(s + t));
            toy_kv__store_avx2(s + t, x);
            top = toy_kv__max_avx2(top, x);
        }
        if (high != NULL)
            toy_kv__store_avx2(high + r * TOY_KV__LANES_avx2,
                            toy_kv__max_avx2(top, toy_kv__load_avx2(high + r * TOY_KV__LANES_avx2)));
    }
}

/* gain [BLOCK]: binary16 at p, or where there is a table its entries at the bytes at p. */
TOY_KV__TARGET_avx2 static void toy_kv__gains_avx2(const unsigned char *p, const unsigned char *table,
                                             float *gain)
{
    int t;
    for (t = 0; t < TOY_KV_BLOCK && table != NULL; t += TOY_KV__GATHERED_avx2)
        toy_kv__gather_avx2(table, p + t, gain + t);
    for (t = 0; t < TOY_KV_BLOCK && table == NULL; t += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(gain + t, toy_kv__loadh_avx2(p + 2 * t));
}

/* y [n] += x * table row, binary16 [n] */
TOY_KV__TARGET_avx2 static void toy_kv__add_row_avx2(const unsigned char *row, int n, float x, float *y)
{
    int j = 0;
    toy_kv__vf_avx2 xs = toy_kv__set1_avx2(x);
    for (; j + TOY_KV__LANES_avx2 <= n; j += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(y + j,
                        toy_kv__fma_avx2(xs, toy_kv__loadh_avx2(row + 2 * j), toy_kv__load_avx2(y + j)));
    for (; j < n; j++)
        y[j] += x * toy_kv__half_at(row, (size_t)j);
}

/* x . table row, binary16 [n] */
TOY_KV__TARGET_avx2 static float toy_kv__dot_row_avx2(const unsigned char *row, int n, const float *x)
{
    int j = 0;
    float sum;
    toy_kv__vf_avx2 a = toy_kv__set1_avx2(0.0f);
    for (; j + TOY_KV__LANES_avx2 <= n; j += TOY_KV__LANES_avx2)
        a = toy_kv__fma_avx2(toy_kv__load_avx2(x + j), toy_kv__loadh_avx2(row + 2 * j), a);
    sum = toy_kv__hsum_avx2(a);
    for (; j < n; j++)
        sum += x[j] * toy_kv__half_at(row, (size_t)j);
    return sum;
}

/* The largest of s, BLOCK numbers in each of `blocks` blocks `step` apart. */
TOY_KV__TARGET_avx2 static float toy_kv__largest_avx2(const float *s, int blocks, size_t step)
{
    int b, t;
    toy_kv__vf_avx2 high = toy_kv__load_avx2(s);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2)
            high = toy_kv__max_avx2(high, toy_kv__load_avx2(s + t));
    return toy_kv__hmax_avx2(high);
}

/* The same numbers become exp(s - m); returns their sum. */
TOY_KV__TARGET_avx2 static float toy_kv__exponentials_avx2(float *s, int blocks, size_t step, float m)
{
    int b, t;
    toy_kv__vf_avx2 shift = toy_kv__set1_avx2(-m), sum = toy_kv__set1_avx2(0.0f);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
            toy_kv__vf_avx2 e = toy_kv__exp_avx2(toy_kv__add_avx2(toy_kv__load_avx2(s + t), shift));
            toy_kv__store_avx2(s + t, e);
            sum = toy_kv__add_avx2(sum, e);
        }
    return toy_kv__hsum_avx2(sum);
}

/* s [n, BLOCK] at token 0 = q [n, HEAD_DIM] . k, and at `next` tokens on = q . l, which may be k.
 * n: a constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__exact_pair_avx2(const unsigned char *k,
                                                        const unsigned char *l, const float *q,
                                                        const int n, int next, float *s)
{
    toy_kv__vf_avx2 a[4], b[4];
    float sum[2][4];
    int d, i;
#pragma GCC unroll 4
    for (i = 0; i < n; i++)
        a[i] = b[i] = toy_kv__set1_avx2(0.0f);
    for (d = 0; d + TOY_KV__LANES_avx2 <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 x = toy_kv__loadh_avx2(k + 2 * d), y = toy_kv__loadh_avx2(l + 2 * d);
#pragma GCC unroll 4
        for (i = 0; i < n; i++) {
            toy_kv__vf_avx2 query = toy_kv__load_avx2(q + i * TOY_KV_HEAD_DIM + d);
            a[i] = toy_kv__fma_avx2(query, x, a[i]);
            b[i] = toy_kv__fma_avx2(query, y, b[i]);
        }
    }
    toy_kv__lane_sums_avx2(a, n, sum[0]);
    toy_kv__lane_sums_avx2(b, n, sum[1]);
    for (; d < TOY_KV_HEAD_DIM; d++) {
        float x = toy_kv__half_at(k, (size_t)d), y = toy_kv__half_at(l, (size_t)d);
        for (i = 0; i < n; i++) {
            sum[0][i] += q[i * TOY_KV_HEAD_DIM + d] * x;
            sum[1][i] += q[i * TOY_KV_HEAD_DIM + d] * y;
        }
    }
#pragma GCC unroll 4
    for (i = 0; i < n; i++) {
        s[i * TOY_KV_BLOCK] = sum[0][i];
        s[i * TOY_KV_BLOCK + next] = sum[1][i];
    }
}

/* s [rows, BLOCK] = q [rows, HEAD_DIM] . the n rows of k, binary16 [n, HEAD_DIM]: exact tokens, two
 * at a time. */
TOY_KV__TARGET_avx2 static void toy_kv__exact_scores_avx2(const unsigned char *k, int n, const float *q,
                                                    int rows, float *s)
{
    int t, r;
    for (t = 0; t < n; t += 2) {
        const unsigned char *x = k + 2 * (size_t)t * TOY_KV_HEAD_DIM;
        int next = t + 1 < n;
        const unsigned char *y = x + 2 * next * TOY_KV_HEAD_DIM;
#define TOY_KV__X(n_rows)                                                                            \
    toy_kv__exact_pair_avx2(x, y, q + r * TOY_KV_HEAD_DIM, n_rows, next, s + r * TOY_KV_BLOCK + t)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* o [m, HEAD_DIM] += p [m, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. m: a constant, 4
 * at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__exact_add_avx2(const unsigned char *v, int n,
                                                       const float *p, const int m, float *o)
{
    int t, i, d;
    for (d = 0; d + 2 * TOY_KV__LANES_avx2 <= TOY_KV_HEAD_DIM; d += 2 * TOY_KV__LANES_avx2) {
        float *dst = o + d, *next = dst + TOY_KV__LANES_avx2;
        toy_kv__vf_avx2 a[4], b[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            a[i] = toy_kv__load_avx2(dst + i * TOY_KV_HEAD_DIM);
            b[i] = toy_kv__load_avx2(next + i * TOY_KV_HEAD_DIM);
        }
        for (t = 0; t < n; t++) {
            const unsigned char *row = v + 2 * ((size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            toy_kv__vf_avx2 x = toy_kv__loadh_avx2(row), y = toy_kv__loadh_avx2(row + 2 * TOY_KV__LANES_avx2);
#pragma GCC unroll 4
            for (i = 0; i < m; i++) {
                toy_kv__vf_avx2 w = toy_kv__set1_avx2(p[i * TOY_KV_BLOCK + t]);
                a[i] = toy_kv__fma_avx2(w, x, a[i]);
                b[i] = toy_kv__fma_avx2(w, y, b[i]);
            }
        }
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            toy_kv__store_avx2(dst + i * TOY_KV_HEAD_DIM, a[i]);
            toy_kv__store_avx2(next + i * TOY_KV_HEAD_DIM, b[i]);
        }
    }
    for (; d < TOY_KV_HEAD_DIM; d++)
        for (t = 0; t < n; t++) {
            float x = toy_kv__half_at(v, (size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            for (i = 0; i < m; i++)
                o[i * TOY_KV_HEAD_DIM + d] += p[i * TOY_KV_BLOCK + t] * x;
        }
}

/* o [rows, HEAD_DIM] += p [rows, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. */
TOY_KV__TARGET_avx2 static void toy_kv__exact_sums_avx2(const unsigned char *v, int n, const float *p,
                                                  int rows, float *o)
{
    int r;
#define TOY_KV__X(n_rows) toy_kv__exact_add_avx2(v, n, p + r * TOY_KV_BLOCK, n_rows, o + r * TOY_KV_HEAD_DIM)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [n] = sums over the lanes of acc [n, LANES] */
TOY_KV__TARGET_avx2 static void toy_kv__reduce_avx2(const float *acc, int n, float *y)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        const float *four = acc + (size_t)i * TOY_KV__LANES_avx2;
        toy_kv__hsum4_avx2(toy_kv__load_avx2(four), toy_kv__load_avx2(four + TOY_KV__LANES_avx2),
                        toy_kv__load_avx2(four + 2 * TOY_KV__LANES_avx2),
                        toy_kv__load_avx2(four + 3 * TOY_KV__LANES_avx2), y + i);
    }
    for (; i < n; i++)
        y[i] = toy_kv__hsum_avx2(toy_kv__load_avx2(acc + (size_t)i * TOY_KV__LANES_avx2));
}

/* x [n] *= factor */
TOY_KV__TARGET_avx2 static void toy_kv__shrink_avx2(float *x, size_t n, float factor)
{
    size_t i;
    toy_kv__vf_avx2 f = toy_kv__set1_avx2(factor);
    for (i = 0; i + TOY_KV__LANES_avx2 <= n; i += TOY_KV__LANES_avx2)
        toy_kv__store_avx2(x + i, toy_kv__mul_avx2(toy_kv__load_avx2(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

/* c, s [n]: cosines and sines of angles, which grow by those of dc, ds [n]. */
TOY_KV__TARGET_avx2 static void toy_kv__turn_on_avx2(const float *dc, const float *ds, int n, float *c,
                                               float *s)
{
    int i;
    for (i = 0; i + TOY_KV__LANES_avx2 <= n; i += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 x = toy_kv__load_avx2(c + i), y = toy_kv__load_avx2(s + i);
        toy_kv__vf_avx2 u = toy_kv__load_avx2(dc + i), v = toy_kv__load_avx2(ds + i);
        toy_kv__store_avx2(c + i, toy_kv__sub_avx2(toy_kv__mul_avx2(x, u), toy_kv__mul_avx2(y, v)));
        toy_kv__store_avx2(s + i, toy_kv__fma_avx2(y, u, toy_kv__mul_avx2(x, v)));
    }
    for (; i < n; i++) {
        float x = c[i], y = s[i];
        c[i] = x * dc[i] - y * ds[i];
        s[i] = y * dc[i] + x * ds[i];
    }
}
/* Kernels for one instruction set, in terms of its vector vocabulary:
 *
 *   vf: LANES floats    set1 load store loadh (from binary16) loadu8 loads8 (from bytes) add sub
 *                       mul fma max round scale2 (x * 2^n, n integral) hsum hmax
 *   vi: LANES codes     nibbles(plane, t): the 4-bit codes of tokens t .. t + LANES - 1
 *   vt: sixteen floats  table(p), lookup(table, codes)
 *   gather(table, bytes, x): binary16 values of a table at GATHERED byte codes
 *
 * A plane holds one code of each token of a block: the low nibbles are tokens 0 .. BLOCK/2 - 1, the
 * high nibbles the rest. Rows are queries that share one pass over the codes; kernels take them
 * four at a time, so that a plane is unpacked once for four queries. */

/* s [n, BLOCK] += sum over planes of lut [planes, step] at each token's code, n tables of sixteen
 * from the first on. n: a constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__score_some_avx2(const unsigned char *codes, int planes,
                                                        const float *lut, size_t step, const int n,
                                                        float *s)
{
    int t, p, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__load_avx2(s + k * TOY_KV_BLOCK + t);
        for (p = 0; p < planes; p++) {
            toy_kv__vi_avx2 code = toy_kv__nibbles_avx2(codes + p * (TOY_KV_BLOCK / 2), t);
            const float *tab = lut + (size_t)p * step;
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__add_avx2(a[k], toy_kv__lookup_avx2(toy_kv__table_avx2(tab + k * 16), code));
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_avx2(s + k * TOY_KV_BLOCK + t, a[k]);
    }
}

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
TOY_KV__TARGET_avx2 static void toy_kv__score_nibbles_avx2(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_some_avx2(codes, planes, lut + r * 16, (size_t)rows * 16, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times the codewords of one
 * channel. n: a constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__sum_some_avx2(const unsigned char *plane, const float *book,
                                                      const float *p, const int n, float *acc,
                                                      size_t stride)
{
    const toy_kv__vt_avx2 table = toy_kv__table_avx2(book);
    toy_kv__vf_avx2 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 v = toy_kv__lookup_avx2(table, toy_kv__nibbles_avx2(plane, t));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx2(toy_kv__load_avx2(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2, a[k]);
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
TOY_KV__TARGET_avx2 static void toy_kv__sum_nibbles_avx2(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, i, w;
    for (i = 0; i < planes; i++, codes += TOY_KV_BLOCK / 2)
        for (w = 0; w < width; w++, book += 16) {
            float *to = acc + (size_t)(i / stages * width + w) * TOY_KV__LANES_avx2;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_some_avx2(codes, book, p + r * TOY_KV_BLOCK, n,                                         \
                       to + (size_t)r * stride * TOY_KV__LANES_avx2, stride)
            TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
        }
}

/* Values of tokens t and on of a plane of one channel. `half`: binary16, two bytes a token; else a
 * byte a token whose value is code - 128. */
TOY_KV__TARGET_avx2 static inline toy_kv__vf_avx2 toy_kv__scalars_avx2(const unsigned char *plane, int t,
                                                              int half)
{
    return half ? toy_kv__loadh_avx2(plane + 2 * t)
                : toy_kv__add_avx2(toy_kv__loadu8_avx2(plane + t), toy_kv__set1_avx2(-128.0f));
}

/* s [n, BLOCK] at tokens t .. t + 2 LANES - 1 += q [planes, step] * value. n: a constant, 4 at
 * most. asked: NULL, or what is asked for meanwhile. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__score_values_avx2(const unsigned char *codes, int planes,
                                                          int half, int t, const float *q,
                                                          size_t step, const int n,
                                                          toy_kv__asked *asked, float *s)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    toy_kv__vf_avx2 a[4], b[4];
    int c, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        a[k] = toy_kv__load_avx2(s + k * TOY_KV_BLOCK + t);
        b[k] = toy_kv__load_avx2(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_avx2);
    }
    for (c = 0; c < planes; c++, codes += bytes, q += step) {
        toy_kv__vf_avx2 v = toy_kv__scalars_avx2(codes, t, half);
        toy_kv__vf_avx2 w = toy_kv__scalars_avx2(codes, t + TOY_KV__LANES_avx2, half);
        if (TOY_KV__LANES_avx2 >= 8 && asked != NULL)
            toy_kv__ask(asked);
        if (TOY_KV__LANES_avx2 >= 16 && half && asked != NULL)
            toy_kv__ask(asked);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx2 x = toy_kv__set1_avx2(q[k]);
            a[k] = toy_kv__fma_avx2(x, v, a[k]);
            b[k] = toy_kv__fma_avx2(x, w, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        toy_kv__store_avx2(s + k * TOY_KV_BLOCK + t, a[k]);
        toy_kv__store_avx2(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_avx2, b[k]);
    }
}

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. With four rows or more, as many
 * lines are asked for as a block of keys has together with one of values. */
TOY_KV__TARGET_avx2 static void toy_kv__score_scalars_avx2(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r, t;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_values_avx2(codes, planes, half, t, q + r, (size_t)rows, n,                         \
                           n == 4 && r == 0 ? &asked : NULL, s + r * TOY_KV_BLOCK)
    for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_avx2)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times a plane's values. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__sum_values_avx2(const unsigned char *plane, int half,
                                                        const float *p, const int n, float *acc,
                                                        size_t stride)
{
    toy_kv__vf_avx2 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 v = toy_kv__scalars_avx2(plane, t, half);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx2(toy_kv__load_avx2(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx2(acc + (size_t)k * stride * TOY_KV__LANES_avx2, a[k]);
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
TOY_KV__TARGET_avx2 static void toy_kv__sum_scalars_avx2(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    int r, c;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_values_avx2(codes, half, p + r * TOY_KV_BLOCK, n,                                       \
                         acc + (size_t)r * stride * TOY_KV__LANES_avx2, stride)
    for (c = 0; c < planes; c++, codes += bytes, acc += TOY_KV__LANES_avx2)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* lut [n, 16]: the scores of codewords with the queries y [n, stride] of a plane's channels. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_avx2 TOY_KV__INLINE void toy_kv__fill_some_avx2(const unsigned char *book, int width,
                                                       const float *y, size_t stride, const int n,
                                                       float *lut)
{
    int i, w, k;
    for (i = 0; i < 16; i += TOY_KV__LANES_avx2) {
        toy_kv__vf_avx2 a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__set1_avx2(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx2 b = toy_kv__loadh_avx2(book + 2 * (w * 16 + i));
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__fma_avx2(toy_kv__set1_avx2(y[(size_t)k * stride + (size_t)w]), b, a[k]);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_avx2(lut + k * 16 + i, a[k]);
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
TOY_KV__TARGET_avx2 static void toy_kv__fill_tables_avx2(const toy_kv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = toy_kv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
#define TOY_KV__X(n)                                                                                 \
    toy_kv__fill_some_avx2(book, run->width, q + (size_t)r * stride, stride, n, lut + r * 16)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
TOY_KV__TARGET_avx2 static int toy_kv__nearest_wide_avx2(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * TOY_KV__LANES_avx2 };
    const toy_kv__vf_avx2 one = toy_kv__set1_avx2(-1.0f);
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
        toy_kv__vf_avx2 a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_avx2(0.0f);
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            toy_kv__vf_avx2 minus = toy_kv__set1_avx2(-z[w]);
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_avx2 d =
                    toy_kv__add_avx2(toy_kv__loadh_avx2(row + 2 * k * TOY_KV__LANES_avx2), minus);
                a[k] = toy_kv__fma_avx2(d, toy_kv__mul_avx2(d, one), a[k]);
            }
        }
        if (!(toy_kv__hmax_avx2(toy_kv__max_avx2(toy_kv__max_avx2(a[0], a[1]), toy_kv__max_avx2(a[2], a[3]))) >
              top))
            continue;
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            toy_kv__store_avx2(negative + k * TOY_KV__LANES_avx2, a[k]);
        for (k = 0; k < STEP; k++)
            if (negative[k] > top) {
                top = negative[k];
                best = i + k;
            }
    }
    for (; i < n; i++) {
        float sum = 0.0f;
        for (w = 0; w < width; w++) {
            float d = z[w] - toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i);
            sum -= d * d;
        }
        if (sum > top) {
            top = sum;
            best = i;
        }
    }
    return best;
}

#define TOY_KV__X(name) toy_kv__##name##_avx2,
static const toy_kv__ops toy_kv__ops_avx2 = {TOY_KV__LANES_avx2, TOY_KV__KERNELS(TOY_KV__X) TOY_KV__BYTE_OPS_avx2,
                                        &toy_kv__dense_avx2, &toy_kv__code_avx2};
#undef TOY_KV__X
/* Vector vocabulary, AVX-512 (F, BW, VL, DQ, VBMI, VNNI): sixteen lanes. See kernels.h. */
#define TOY_KV__LANES_avx512    16
#define TOY_KV__GATHERED_avx512 32
#if TOY_KV_BLOCK >= 64
#define TOY_KV__BYTE_OPS_avx512 &toy_kv__byte_ops_avx512
#else
#define TOY_KV__BYTE_OPS_avx512 NULL
#endif
#define TOY_KV__TARGET_avx512                                                                        \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c")))
/* Where a loop's length must be a constant: gcc would not inline it by itself. */
#define TOY_KV__INLINE_avx512 TOY_KV__TARGET_avx512 static inline __attribute__((always_inline))
/* Outputs that a pass of dense.h holds sums of. */
#define TOY_KV__N_OUTS_avx512      8
#define TOY_KV__OUTS_avx512(X)     X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define TOY_KV__REST_avx512(X, of) X(4, of) X(5, of) X(6, of) X(7, of)
/* The maskz forms with a full mask cost nothing; gcc's plain forms pass an uninitialised value,
 * which g++ warns about. */
#define TOY_KV__ALL_avx512 ((__mmask16)0xffff)
typedef __m512 toy_kv__vf_avx512;
typedef __m512 toy_kv__vt_avx512;
typedef __m512i toy_kv__vi_avx512;

/* sum += products of four unsigned bytes of a with signed ones of b, and of two 16-bit words.
 * Around its own intrinsics for these gcc 12 copies every accumulator twice. */
TOY_KV__INLINE_avx512 void toy_kv__add_bytes_avx512(__m512i *sum, __m512i a, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}
TOY_KV__INLINE_avx512 void toy_kv__add_words_avx512(__m512i *sum, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
}

/* Four bytes in each lane. */
TOY_KV__INLINE_avx512 __m512i toy_kv__four_bytes_avx512(const void *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}

TOY_KV__TARGET_avx512 static inline __m512 toy_kv__set1_avx512(float x)
{
    return _mm512_set1_ps(x);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__load_avx512(const float *p)
{
    return _mm512_loadu_ps(p);
}
TOY_KV__TARGET_avx512 static inline void toy_kv__store_avx512(float *p, __m512 x)
{
    _mm512_storeu_ps(p, x);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__loadh_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtph_ps(TOY_KV__ALL_avx512,
                                 _mm256_loadu_si256((const __m256i *)(const void *)p));
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__loadu8_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtepi32_ps(
        TOY_KV__ALL_avx512, _mm512_maskz_cvtepu8_epi32(
                              TOY_KV__ALL_avx512, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__loads8_avx512(const unsigned char *p)
{
    return _mm512_maskz_cvtepi32_ps(
        TOY_KV__ALL_avx512, _mm512_maskz_cvtepi8_epi32(
                              TOY_KV__ALL_avx512, _mm_loadu_si128((const __m128i *)(const void *)p)));
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__add_avx512(__m512 a, __m512 b)
{
    return _mm512_add_ps(a, b);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__sub_avx512(__m512 a, __m512 b)
{
    return _mm512_sub_ps(a, b);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__mul_avx512(__m512 a, __m512 b)
{
    return _mm512_mul_ps(a, b);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__fma_avx512(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__max_avx512(__m512 a, __m512 b)
{
    return _mm512_maskz_max_ps(TOY_KV__ALL_avx512, a, b);
}
/* To the nearest whole number, below 2^31. Where gcc does not optimise, its roundscale is a macro
 * that warns of its own conversion. */
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__round_avx512(__m512 x)
{
#ifdef __OPTIMIZE__
    return _mm512_maskz_roundscale_ps(TOY_KV__ALL_avx512, x,
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return _mm512_maskz_cvtepi32_ps(TOY_KV__ALL_avx512,
                                    _mm512_maskz_cvtps_epi32(TOY_KV__ALL_avx512, x));
#endif
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__scale2_avx512(__m512 x, __m512 n)
{
    return _mm512_maskz_scalef_ps(TOY_KV__ALL_avx512, x, n);
}
TOY_KV__TARGET_avx512 static inline __m256 toy_kv__low_half_avx512(__m512 x)
{
    return _mm512_maskz_extractf32x8_ps((__mmask8)0xff, x, 0);
}
TOY_KV__TARGET_avx512 static inline __m256 toy_kv__high_half_avx512(__m512 x)
{
    return _mm512_maskz_extractf32x8_ps((__mmask8)0xff, x, 1);
}
TOY_KV__TARGET_avx512 static inline float toy_kv__hsum_avx512(__m512 x)
{
    return toy_kv__hsum_avx2(_mm256_add_ps(toy_kv__low_half_avx512(x), toy_kv__high_half_avx512(x)));
}
TOY_KV__TARGET_avx512 static inline __m256 toy_kv__fold_avx512(__m512 x)
{
    return _mm256_add_ps(toy_kv__low_half_avx512(x), toy_kv__high_half_avx512(x));
}
TOY_KV__TARGET_avx512 static inline void toy_kv__hsum4_avx512(__m512 a, __m512 b, __m512 c, __m512 d,
                                                          float *sum)
{
    toy_kv__hsum4_avx2(toy_kv__fold_avx512(a), toy_kv__fold_avx512(b), toy_kv__fold_avx512(c),
                     toy_kv__fold_avx512(d), sum);
}
TOY_KV__TARGET_avx512 static inline float toy_kv__hmax_avx512(__m512 x)
{
    return toy_kv__hmax_avx2(_mm256_max_ps(toy_kv__low_half_avx512(x), toy_kv__high_half_avx512(x)));
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__table_avx512(const float *p)
{
    return _mm512_loadu_ps(p);
}
/* The code is left in the low nibble; vpermps ignores the bits above it. */
TOY_KV__TARGET_avx512 static inline __m512i toy_kv__nibbles_avx512(const unsigned char *plane, int t)
{
    __m512i bytes = _mm512_maskz_cvtepu8_epi32(
        TOY_KV__ALL_avx512,
        _mm_loadu_si128((const __m128i *)(const void *)(plane + t % (TOY_KV_BLOCK / 2))));
    return t < TOY_KV_BLOCK / 2 ? bytes : _mm512_maskz_srli_epi32(TOY_KV__ALL_avx512, bytes, 4);
}
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__lookup_avx512(__m512 table, __m512i index)
{
    return _mm512_maskz_permutexvar_ps(TOY_KV__ALL_avx512, index, table);
}
/* x [32] = values of a table of 256 at byte codes. They fill eight registers: four two-register
 * permutations, of 32 codes at once, beat a gather. */
TOY_KV__INLINE_avx512 void toy_kv__gather_avx512(const unsigned char *table, const unsigned char *codes,
                                             float *x)
{
    __m512i index = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    __m512i part[4];
    int i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++)
        part[i] =
            _mm512_permutex2var_epi16(_mm512_loadu_si512((const void *)(table + 128 * i)), index,
                                      _mm512_loadu_si512((const void *)(table + 128 * i + 64)));
    part[0] = _mm512_mask_blend_epi16(bit6, part[0], part[1]);
    part[2] = _mm512_mask_blend_epi16(bit6, part[2], part[3]);
    part[0] = _mm512_mask_blend_epi16(bit7, part[0], part[2]);
    _mm512_storeu_ps(x, _mm512_maskz_cvtph_ps(TOY_KV__ALL_avx512, _mm512_castsi512_si256(part[0])));
    _mm512_storeu_ps(
        x + 16, _mm512_maskz_cvtph_ps(TOY_KV__ALL_avx512, _mm512_extracti64x4_epi64(part[0], 1)));
}
TOY_KV__TARGET_avx512 static inline void toy_kv__storeu8_avx512(unsigned char *p, __m512 x)
{
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm512_maskz_cvtepi32_epi8(TOY_KV__ALL_avx512,
                                                _mm512_maskz_cvttps_epi32(TOY_KV__ALL_avx512, x)));
}
/* The second operand is what comes out for a NaN. */
TOY_KV__TARGET_avx512 static inline void toy_kv__storeh_avx512(unsigned char *p, __m512 x)
{
    x = _mm512_maskz_min_ps(TOY_KV__ALL_avx512, x, _mm512_set1_ps(65504.0f));
    x = _mm512_maskz_max_ps(TOY_KV__ALL_avx512, x, _mm512_set1_ps(-65504.0f));
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_maskz_cvtps_ph(TOY_KV__ALL_avx512, x, _MM_FROUND_TO_NEAREST_INT));
}
TOY_KV__TARGET_avx512 static inline void toy_kv__keep_less_avx512(__m512 x, float i, __m512 *least,
                                                              __m512 *index)
{
    __mmask16 less = _mm512_cmp_ps_mask(x, *least, _CMP_LT_OQ);
    *index = _mm512_mask_mov_ps(*index, less, _mm512_set1_ps(i));
    *least = _mm512_maskz_min_ps(TOY_KV__ALL_avx512, x, *least);
}
TOY_KV__TARGET_avx512 static inline void toy_kv__transpose_avx512(const unsigned char *src,
                                                              size_t src_step, unsigned char *dst,
                                                              size_t dst_step)
{
    toy_kv__transpose_avx2(src, src_step, dst, dst_step);
}
/* The query map, AVX-512: what toy_kv__byte_ops promises (types.h). Words of 12 bits and more on both
 * sides keep the product's error far below that of score tables. Eight bits of a query would not,
 * but do for latents whose codewords meet it in 8 bits too.
 */

#if TOY_KV_BLOCK >= 64

/* The first n of 16 lanes. */
static inline __mmask16 toy_kv__first_lanes(int n)
{
    return (__mmask16)(n < 16 ? (1u << (n < 0 ? 0 : n)) - 1u : 0xffffu);
}

/* Which of columns i .. i + 15 are the basis's: the mean and what is behind it are not. */
TOY_KV__INLINE_avx512 __mmask16 toy_kv__map_real_avx512(int n_out, int i)
{
    return toy_kv__first_lanes(n_out - i);
}

/* Columns i .. i + 15 of the part's row d, without scales; the mean where they end. */
TOY_KV__INLINE_avx512 __m512 toy_kv__map_row_avx512(const toy_kv__matrix *table,
                                                const unsigned char *mean, const toy_kv__slice *slice,
                                                int d, int i)
{
    int left = slice->n_out - i;
    __mmask16 real = toy_kv__map_real_avx512(slice->n_out, i);
    size_t row = (size_t)slice->row[d];
    size_t at = row * (size_t)slice->columns + (size_t)(slice->first + i);
    __m512 x;
    if (table->scale != NULL)
        x = _mm512_maskz_cvtepi32_ps(
            TOY_KV__ALL_avx512,
            _mm512_maskz_cvtepi8_epi32(
                TOY_KV__ALL_avx512, _mm_maskz_loadu_epi8(real, (const void *)(table->values + at))));
    else
        x = _mm512_maskz_cvtph_ps(
            TOY_KV__ALL_avx512,
            _mm256_maskz_loadu_epi16(real, (const void *)(table->values + 2 * at)));
    if (left < 16 && mean != NULL)
        x = _mm512_mask_mov_ps(x, (__mmask16)(1u << left),
                               _mm512_set1_ps(toy_kv__half_at(mean, row)));
    return x;
}

TOY_KV__TARGET_avx512 static void toy_kv__map_basis_avx512(toy_kv__matrix table,
                                                       const unsigned char *mean,
                                                       const toy_kv__slice *slice, short *words,
                                                       float *scale)
{
    const int n_in = slice->n_in, n_out = slice->n_out;
    int i, d;
    for (i = 0; i <= n_out; i += 16) {
        __m512 high = _mm512_setzero_ps(), factor;
        __mmask16 some;
        /* of columns in bytes only the mean, where they end, has a largest to be looked for */
        for (d = 0; d < n_in && (table.scale == NULL || n_out - i < 16); d++)
            high =
                _mm512_max_ps(high, _mm512_abs_ps(toy_kv__map_row_avx512(&table, mean, slice, d, i)));
        if (table.scale != NULL) /* bytes are words of 16 units, exactly */
            high = _mm512_mask_mov_ps(high, toy_kv__map_real_avx512(n_out, i),
                                      _mm512_set1_ps(TOY_KV__MAP_TOP / 16.0f));
        some = _mm512_cmp_ps_mask(high, _mm512_setzero_ps(), _CMP_GT_OQ);
        factor = _mm512_maskz_div_ps(some, _mm512_set1_ps(TOY_KV__MAP_TOP), high);
        if (table.scale != NULL) {
            __mmask16 real = toy_kv__map_real_avx512(n_out, i);
            __m256i half = _mm256_maskz_loadu_epi16(
                real, (const void *)(table.scale + 2 * (slice->first + i)));
            high =
                _mm512_mask_mul_ps(high, real, high, _mm512_maskz_cvtph_ps(TOY_KV__ALL_avx512, half));
        }
        _mm512_storeu_ps(scale + i, _mm512_mul_ps(high, _mm512_set1_ps(1.0f / TOY_KV__MAP_TOP)));
        for (d = 0; d < n_in; d += 2, words += 32) {
            __m512 x = toy_kv__map_row_avx512(&table, mean, slice, d, i);
            __m512 y = toy_kv__map_row_avx512(&table, mean, slice, d + 1, i);
            __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
            __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(y, factor));
            _mm512_storeu_si512((void *)words,
                                _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_slli_epi32(b, 16)));
        }
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__to_words_avx512(const float *x, int n, float unit, short *out)
{
    __m512 factor = _mm512_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < n; i += 16) {
        __mmask16 some = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1u) : TOY_KV__ALL_avx512;
        __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor);
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + i), some, _mm512_cvtps_epi32(y));
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__turn_words_avx512(const float *x, const float *c,
                                                        const float *s, int pairs, float unit,
                                                        short *out)
{
    const __m512 factor = _mm512_set1_ps(unit > 0.0f ? 1.0f / unit : 0.0f);
    int i;
    for (i = 0; i < pairs; i += 16) {
        __mmask16 some = toy_kv__first_lanes(pairs - i);
        __m512 u = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + pairs + i), factor);
        __m512 cosine = _mm512_maskz_loadu_ps(some, c + i),
               sine = _mm512_maskz_loadu_ps(some, s + i);
        __m512 first = _mm512_fmadd_ps(v, sine, _mm512_mul_ps(u, cosine));
        __m512 second = _mm512_fmsub_ps(v, cosine, _mm512_mul_ps(u, sine));
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + i), some, _mm512_cvtps_epi32(first));
        _mm512_mask_cvtsepi32_storeu_epi16((void *)(out + pairs + i), some,
                                           _mm512_cvtps_epi32(second));
    }
}

/* y [n, stride] = what n rows and 16 `wide` columns, both constants, have added up to. */
TOY_KV__INLINE_avx512 void toy_kv__map_flush_avx512(__m512i (*sum)[4], const float *scale,
                                                const float *unit, const float *const *base,
                                                const int n, const int wide, size_t stride,
                                                float *y)
{
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < wide; i++) {
            __m512 f = _mm512_mul_ps(_mm512_loadu_ps(scale + 16 * i), _mm512_set1_ps(unit[k]));
            __m512 from = base[k] != NULL ? _mm512_loadu_ps(base[k] + 16 * i) : _mm512_setzero_ps();
            _mm512_storeu_ps(y + (size_t)k * stride + 16 * i,
                             _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[k][i]), f, from));
        }
}

/* Rows of x at distance `row`, of four bytes each step of `steps`; columns of 64 bytes a step.
 * Words by twos, or bytes by fours, with their zeros [n]: a constant like n and wide. */
TOY_KV__INLINE_avx512 void toy_kv__map_tile_avx512(const char *x, size_t row, const int32_t *zero,
                                               const char *columns, int steps, const int words,
                                               const int n, const int wide, __m512i (*sum)[4])
{
    int d, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] =
            words ? _mm512_setzero_si512() : _mm512_set1_epi32(-zero[k]);
    for (d = 0; d < steps; d++) {
        __m512i w[4];
#pragma GCC unroll 4
        for (i = 0; i < wide; i++)
            w[i] = _mm512_loadu_si512(
                (const void *)(columns + 64 * ((size_t)i * (size_t)steps + (size_t)d)));
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512i q = toy_kv__four_bytes_avx512(x + (size_t)k * row + 4 * (size_t)d);
#pragma GCC unroll 4
            for (i = 0; i < wide; i++)
                if (words)
                    toy_kv__add_words_avx512(&sum[k][i], w[i], q);
                else
                    toy_kv__add_bytes_avx512(&sum[k][i], w[i], q);
        }
    }
}

/* What map_words and map_bytes have in common; words: a constant. */
TOY_KV__INLINE_avx512 void toy_kv__map_rows_avx512(const char *x, size_t row, const int32_t *zero,
                                               int m, const char *table, int steps, const int words,
                                               const float *scale, int columns, const float *unit,
                                               int rows, const float *base, size_t stride, float *y)
{
    const float *bases[4];
    int c, r, k, step;
    float units[TOY_KV__MAX_ROWS + 3]; /* of four rows from any one on */
    __m512i sum[4][4];
    for (r = 0; r < rows + 3; r++)
        units[r] = unit[r % rows];
    for (c = 0; c < columns; c += step) {
        const char *w = table + 4 * (size_t)c * (size_t)steps;
        step = columns - c >= 64 ? 64 : 16;
        for (r = 0; r < m;) {
            const char *q = x + (size_t)r * row;
            float *dst = y + (size_t)r * stride + c;
            for (k = 0; k < 4; k++)
                bases[k] = base == NULL ? NULL : base + (size_t)((r + k) % rows) * stride + c;
#define TOY_KV__MAP(n, wide)                                                                         \
    do {                                                                                           \
        toy_kv__map_tile_avx512(q, row, words ? NULL : zero + r, w, steps, words, n, wide, sum);     \
        toy_kv__map_flush_avx512(sum, scale + c, units + r % rows, bases, n, wide, stride, dst);     \
        r += n;                                                                                    \
    } while (0)
            if (m - r >= 4 && step == 64)
                TOY_KV__MAP(4, 4);
            else if (m - r >= 4)
                TOY_KV__MAP(4, 1);
            else if (step == 64)
                TOY_KV__MAP(1, 4);
            else
                TOY_KV__MAP(1, 1);
#undef TOY_KV__MAP
        }
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__map_words_avx512(const short *x, int m, int n_in,
                                                       const short *words, const float *scale,
                                                       int columns, const float *unit, int rows,
                                                       const float *base, size_t stride, float *y)
{
    toy_kv__map_rows_avx512((const char *)x, 2 * (size_t)n_in, NULL, m, (const char *)words, n_in / 2,
                          1, scale, columns, unit, rows, base, stride, y);
}

TOY_KV__TARGET_avx512 static void toy_kv__byte_basis_avx512(toy_kv__matrix table,
                                                        const toy_kv__slice *slice,
                                                        unsigned char *bytes, float *scale)
{
    int i, d, k;
    for (i = 0; i < slice->n_out; i += 16) {
        const __mmask16 real = toy_kv__map_real_avx512(slice->n_out, i);
        _mm512_storeu_ps(
            scale + i,
            _mm512_maskz_cvtph_ps(TOY_KV__ALL_avx512,
                                  _mm256_maskz_loadu_epi16(
                                      real, (const void *)(table.scale + 2 * (slice->first + i)))));
        for (d = 0; d < slice->n_in; d += 4, bytes += 64) {
            __m512i four = _mm512_setzero_si512();
            for (k = 0; k < 4 && d + k < slice->n_in; k++) {
                const unsigned char *row = table.values +
                                           (size_t)slice->row[d + k] * (size_t)slice->columns +
                                           (size_t)(slice->first + i);
                __m512i x = _mm512_maskz_cvtepu8_epi32(
                    TOY_KV__ALL_avx512, _mm_maskz_loadu_epi8(real, (const void *)row));
                four = _mm512_or_si512(four, _mm512_slli_epi32(x, (unsigned)(8 * k)));
            }
            _mm512_storeu_si512((void *)bytes,
                                _mm512_xor_si512(four, _mm512_set1_epi8((char)-128)));
        }
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__to_bytes_avx512(const short *x, int m, int n_in,
                                                      const short *steps, int rows,
                                                      signed char *bytes, int32_t *zero)
{
    const __m512i ones = _mm512_set1_epi16(1);
    int r, i;
    for (r = 0; r < m; r++, x += n_in, bytes += TOY_KV__BYTE_ROWS(n_in)) {
        const __m512i factor = _mm512_set1_epi16(steps[r % rows]);
        __m512i sum = _mm512_setzero_si512();
        for (i = 0; i < n_in; i += 32) {
            const __mmask32 real = n_in - i < 32 ? (1u << (n_in - i)) - 1u : 0xffffffffu;
            const int room = TOY_KV__BYTE_ROWS(n_in) - i;
            const __mmask32 some = room < 32 ? (1u << room) - 1u : 0xffffffffu;
            __m512i y =
                _mm512_mulhrs_epi16(_mm512_maskz_loadu_epi16(real, (const void *)(x + i)), factor);
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(y, ones));
            _mm256_mask_storeu_epi8((void *)(bytes + i), some, _mm512_cvtepi16_epi8(y));
        }
        zero[r] = 128 * _mm512_reduce_add_epi32(sum);
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__map_bytes_avx512(const signed char *x, const int32_t *zero,
                                                       int m, int n_in, const unsigned char *bytes,
                                                       const float *scale, int columns,
                                                       const float *unit, int rows,
                                                       const float *base, size_t stride, float *y)
{
    toy_kv__map_rows_avx512((const char *)x, TOY_KV__BYTE_ROWS((size_t)n_in), zero, m,
                          (const char *)bytes, TOY_KV__BYTE_ROWS(n_in) / 4, 0, scale, columns, unit,
                          rows, base, stride, y);
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Scores of codes whose codewords meet the query, AVX-512: what toy_kv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, and meet the query in a dot product: one lookup serves
 * every row, and no table has to be filled for a query. A group is what one 32-bit lane adds up:
 * two channels in 16 bits, or four in 8 bits where codes of more channels make larger errors. */

#if TOY_KV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps, 8-bit ones 128 more than they are. Words
 * of queries are rounded so that no sum leaves 32 bits. */
#define TOY_KV__DOT_WORD_TOP 2047.0f
#define TOY_KV__DOT_BYTE_TOP 127.0f

static inline float toy_kv__dot_top(const toy_kv__run *run)
{
    return run->words ? TOY_KV__DOT_WORD_TOP : TOY_KV__DOT_BYTE_TOP;
}

/* Channels of a run, counted plane by plane; groups may have room for more. */
static inline int toy_kv__dot_channels(const toy_kv__run *run)
{
    return run->planes * run->width;
}

/* Sixteen codewords of a channel in steps of *scale; 0 where there is no such channel. */
TOY_KV__INLINE_avx512 __m512i toy_kv__dot_codewords_avx512(const unsigned char *book, float limit,
                                                       float *scale)
{
    __m512 x = book != NULL ? toy_kv__loadh_avx512(book) : _mm512_setzero_ps();
    const float top = _mm512_reduce_max_ps(_mm512_abs_ps(x));
    *scale = top / limit;
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(top > 0.0f ? limit / top : 0.0f)));
}

/* table [groups, 64]: sixteen codewords of each channel, of a code of two channels in turn; scale
 * [4 * groups] of each. */
TOY_KV__TARGET_avx512 static void toy_kv__dot_books_avx512(const toy_kv__run *run, unsigned char *table,
                                                       float *scale)
{
    const int words = run->words, room = (words ? 2 : 4) * toy_kv__dot_groups(run);
    const float limit = toy_kv__dot_top(run);
    __m512i first = _mm512_setzero_si512(); /* of two channels */
    int c = 0, p, w;
    for (p = 0; c < room; p++) {
        const unsigned char *book = p < run->planes
                                        ? toy_kv__table(run->book + p / run->stages * run->book_step +
                                                      p % run->stages * run->width * 16)
                                        : NULL;
        for (w = 0; w < run->width && c < room; w++, c++) {
            __m512i x =
                toy_kv__dot_codewords_avx512(book != NULL ? book + 32 * w : NULL, limit, scale + c);
            if (words && run->width == 1)
                _mm256_storeu_si256((__m256i *)(void *)(table + 32 * c), _mm512_cvtepi32_epi16(x));
            else if (words && c % 2 == 0)
                first = x;
            else if (words)
                _mm512_storeu_si512(
                    (void *)(table + 32 * (c - 1)),
                    _mm512_mask_blend_epi16(0xaaaaaaaau, first, _mm512_slli_epi32(x, 16)));
            else
                _mm_storeu_si128((__m128i *)(void *)(table + 16 * c),
                                 _mm512_cvtepi32_epi8(_mm512_add_epi32(x, _mm512_set1_epi32(128))));
        }
    }
}

/* Channels c .. c + 15 of a row's latents, `real` of them there, times their scales. plain: codes
 * of one stage, a constant. */
TOY_KV__INLINE_avx512 __m512 toy_kv__dot_latents_avx512(const toy_kv__run *run, const float *scale,
                                                    const float *y, int c, __mmask16 real,
                                                    const int plain)
{
    float lane[16];
    int k;
    if (plain && real == TOY_KV__ALL_avx512)
        return _mm512_mul_ps(_mm512_loadu_ps(scale + c), _mm512_loadu_ps(y + c));
    if (plain)
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(real, scale + c),
                             _mm512_maskz_loadu_ps(real, y + c));
    for (k = 0; k < 16; k++)
        lane[k] = real >> k & 1
                      ? y[(c + k) / run->width / run->stages * run->width + (c + k) % run->width]
                      : 0.0f;
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(real, scale + c), _mm512_loadu_ps(lane));
}

/* Sums, or the largest, over the lanes of four registers. */
TOY_KV__TARGET_avx512 static inline __m128i toy_kv__four_sums_avx512(const __m512i *x)
{
    __m256i a[4];
    int k;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++)
        a[k] = _mm256_add_epi32(_mm512_castsi512_si256(x[k]), _mm512_extracti64x4_epi64(x[k], 1));
    a[0] = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(a[0]), _mm256_extracti128_si256(a[0], 1));
}
TOY_KV__TARGET_avx512 static inline __m128 toy_kv__four_tops_avx512(const __m512 *x)
{
    __m256 a[4], low, high;
    int k;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++)
        a[k] = _mm256_max_ps(toy_kv__low_half_avx512(x[k]), toy_kv__high_half_avx512(x[k]));
    low = _mm256_max_ps(_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]));
    high = _mm256_max_ps(_mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3]));
    low = _mm256_max_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    return _mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
}

/* The largest and the mean square of channels i .. i + 15 of n rows, times their scales. */
TOY_KV__INLINE_avx512 void toy_kv__dot_reach_avx512(const toy_kv__run *run, const float *scale,
                                                const float *y, size_t stride, int i,
                                                __mmask16 real, const int n, const int plain,
                                                __m512 *high, __m512 *square)
{
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512 x = toy_kv__dot_latents_avx512(run, scale, y + (size_t)k * stride, i, real, plain);
        high[k] = _mm512_max_ps(high[k], _mm512_abs_ps(x));
        square[k] = _mm512_fmadd_ps(x, x, square[k]);
    }
}

/* Those channels, `real` of them there and `some` with room, in steps of 1 / factor to lanes, which
 * are `bytes` apart from row to row; sum of them all. */
TOY_KV__INLINE_avx512 void toy_kv__dot_steps_avx512(const toy_kv__run *run, const float *scale,
                                                const float *y, size_t stride, int i,
                                                __mmask16 real, __mmask16 some, const int n,
                                                const int words, const int plain,
                                                const float *factor, int bytes,
                                                unsigned char *lanes, __m512i *sum)
{
    int k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        unsigned char *to = lanes + k * bytes + (words ? 2 : 1) * i;
        __m512 x = toy_kv__dot_latents_avx512(run, scale, y + (size_t)k * stride, i, real, plain);
        __m512i step = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor[k])));
        if (some != TOY_KV__ALL_avx512 && words)
            _mm512_mask_cvtepi32_storeu_epi16((void *)to, some, step);
        else if (some != TOY_KV__ALL_avx512)
            _mm512_mask_cvtepi32_storeu_epi8((void *)to, some, step);
        else if (words)
            _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(step));
        else
            _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(step));
        if (!words)
            sum[k] = _mm512_add_epi32(sum[k], step);
    }
}

/* Rows r .. r + n - 1 of queries in lanes; n is at most four. */
TOY_KV__INLINE_avx512 void toy_kv__dot_four_queries_avx512(const toy_kv__run *run, const float *scale,
                                                       const float *y, size_t stride, const int n,
                                                       const int words, const int plain,
                                                       unsigned char *lanes, float *unit,
                                                       float *energy)
{
    const int channels = toy_kv__dot_channels(run), whole = channels / 16 * 16;
    const int bytes = 4 * toy_kv__dot_groups(run), room = words ? bytes / 2 : bytes;
    /* Products of words, of at most DOT_WORD_TOP * limit, stay below 2^31. */
    const float most = 1048576.0f / (float)room;
    const float limit = !words ? TOY_KV__DOT_BYTE_TOP : most < 32767.0f ? most : 32767.0f;
    const __mmask16 real = toy_kv__first_lanes(channels - whole);
    const __mmask16 some = toy_kv__first_lanes(room - whole);
    __m512 high[4], square[4];
    __m512i sum[4];
    float top[4], factor[4], squares[4];
    int zero[4], k, i;
#pragma GCC unroll 4
    for (k = 0; k < 4; k++) {
        high[k] = square[k] = _mm512_setzero_ps();
        sum[k] = _mm512_setzero_si512();
    }
    for (i = 0; i < whole; i += 16)
        toy_kv__dot_reach_avx512(run, scale, y, stride, i, TOY_KV__ALL_avx512, n, plain, high, square);
    if (real != 0)
        toy_kv__dot_reach_avx512(run, scale, y, stride, i, real, n, plain, high, square);
    _mm_storeu_ps(top, toy_kv__four_tops_avx512(high));
    for (k = 0; k < 4; k++)
        factor[k] = top[k] > 0.0f ? limit / top[k] : 0.0f;
    for (i = 0; i < whole; i += 16)
        toy_kv__dot_steps_avx512(run, scale, y, stride, i, TOY_KV__ALL_avx512, TOY_KV__ALL_avx512, n,
                               words, plain, factor, bytes, lanes, sum);
    if (some != 0)
        toy_kv__dot_steps_avx512(run, scale, y, stride, i, real, some, n, words, plain, factor, bytes,
                               lanes, sum);
    if (!words)
        _mm_storeu_si128((__m128i *)(void *)zero, toy_kv__four_sums_avx512(sum));
    for (k = 0; k < n; k++) {
        unit[2 * k] = top[k] / limit;
        unit[2 * k + 1] = words ? 0.0f : 128.0f * (float)zero[k];
    }
    if (energy == NULL)
        return;
    toy_kv__hsum4_avx512(square[0], square[1], square[2], square[3], squares);
    for (k = 0; k < n; k++)
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        energy[k] += squares[k] * (toy_kv__dot_top(run) * toy_kv__dot_top(run) / 7.0f);
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 4] and
 * unit [rows, 2]. */
TOY_KV__TARGET_avx512 static void toy_kv__dot_queries_avx512(const toy_kv__run *run, const float *scale,
                                                         const float *y, size_t stride, int rows,
                                                         unsigned char *lanes, float *unit,
                                                         float *energy)
{
    const int bytes = 4 * toy_kv__dot_groups(run), words = run->words, plain = run->stages == 1;
    int r, n;
#define TOY_KV__QUERIES_OF(n, words, plain)                                                          \
    toy_kv__dot_four_queries_avx512(run, scale, y, stride, n, words, plain, lanes, unit + 2 * r,     \
                                  energy != NULL ? energy + r : NULL)
    for (r = 0; r < rows; r += n, y += (size_t)n * stride, lanes += n * bytes) {
        n = plain && r + 4 <= rows ? 4 : plain && r + 2 <= rows ? 2 : 1;
        if (n == 4 && words)
            TOY_KV__QUERIES_OF(4, 1, 1);
        else if (n == 4)
            TOY_KV__QUERIES_OF(4, 0, 1);
        else if (n == 2 && words)
            TOY_KV__QUERIES_OF(2, 1, 1);
        else if (n == 2)
            TOY_KV__QUERIES_OF(2, 0, 1);
        else if (plain && words)
            TOY_KV__QUERIES_OF(1, 1, 1);
        else if (plain)
            TOY_KV__QUERIES_OF(1, 0, 1);
        else if (words)
            TOY_KV__QUERIES_OF(1, 1, 0);
        else
            TOY_KV__QUERIES_OF(1, 0, 0);
    }
#undef TOY_KV__QUERIES_OF
}

/* dst [16] = (add ? dst : 0) + f * sum */
TOY_KV__INLINE_avx512 void toy_kv__flush_avx512(__m512i sum, __m512 f, int add, float *dst)
{
    __m512 x = _mm512_cvtepi32_ps(sum);
    if (add)
        _mm512_storeu_ps(dst, _mm512_fmadd_ps(x, f, _mm512_loadu_ps(dst)));
    else
        _mm512_storeu_ps(dst, _mm512_mul_ps(x, f));
}

/* 32 bytes of each of two planes. */
TOY_KV__INLINE_avx512 __m512i toy_kv__two_planes_avx512(const unsigned char *a, const unsigned char *b)
{
    __m512i x;
    if (b == a + 32) /* blocks of 64: they lie side by side */
        return _mm512_loadu_si512((const void *)a);
    x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a));
    return _mm512_inserti64x4(x, _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
}

/* In lane i of 16, four bytes: i times `step`, plus those of `first`. */
TOY_KV__TARGET_avx512 static inline __m512i toy_kv__dot_pick_avx512(int step, int first)
{
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(step)),
                            _mm512_set1_epi32(first));
}

/* Adds the codewords v, 16 tokens in each, times the queries' lanes of one group. */
TOY_KV__INLINE_avx512 void toy_kv__dot_group_avx512(const __m512i *v, const unsigned char *lanes,
                                                int row, const int n, const int words,
                                                __m512i (*sum)[4])
{
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512i y = toy_kv__four_bytes_avx512(lanes + k * row);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            if (words)
                toy_kv__add_words_avx512(&sum[k][i], v[i], y);
            else
                toy_kv__add_bytes_avx512(&sum[k][i], v[i], y);
    }
}

/* Bytes x with codes in low nibbles, and the codes half a block later in high ones, picked to v
 * [4] and made indices: what base adds, which says whose codeword. */
TOY_KV__INLINE_avx512 void toy_kv__dot_codes_avx512(__m512i x, __m512i pick0, __m512i pick1,
                                                __m512i nibble, __m512i base, __m512i *v)
{
    v[0] = _mm512_permutexvar_epi8(pick0, x);
    v[1] = _mm512_permutexvar_epi8(pick1, x);
    v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[0], 4), nibble, base, 0xea);
    v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(v[1], 4), nibble, base, 0xea);
    v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
    v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
}

/* Codes of one channel or of an even number, two channels to a lane. n rows, a constant where it is
 * called, and tokens of a chunk of each plane: 32 and, half a block later, 32 more. */
TOY_KV__INLINE_avx512 void toy_kv__dot_words_avx512(const unsigned char *codes, const toy_kv__run *run,
                                                const unsigned char *table,
                                                const unsigned char *lanes, const int n,
                                                const int one, toy_kv__asked *ahead,
                                                __m512i (*sum)[4])
{
    const int bytes = TOY_KV_BLOCK / 2, groups = toy_kv__dot_groups(run);
    const __m512i nibble = _mm512_set1_epi32(0x000f000f), second = _mm512_set1_epi32(0x00100000);
    /* Byte 0 of a lane from the low half of a register, byte 2 from the high half. */
    const __m512i pick0 = toy_kv__dot_pick_avx512(0x00010001, 0x00200000);
    const __m512i pick1 = toy_kv__dot_pick_avx512(0x00010001, 0x00300010);
    int g, i;
    for (g = 0; g < groups; g++, table += 64) {
        const __m512i t = _mm512_loadu_si512((const void *)table);
        const unsigned char *a = codes + (one ? 2 * g : 2 * g / run->width) * bytes;
        __m512i v[4];
        toy_kv__ask(ahead);
        if (one) {
            toy_kv__dot_codes_avx512(
                toy_kv__two_planes_avx512(a, 2 * g + 1 < run->planes ? a + bytes : a), pick0, pick1,
                nibble, second, v);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                v[i] = _mm512_permutexvar_epi16(v[i], t);
        } else {
            v[0] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)a));
            v[1] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(a + 16)));
            v[2] = _mm512_srli_epi32(v[0], 4);
            v[3] = _mm512_srli_epi32(v[1], 4);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) /* bits above the low four do not count */
                v[i] = _mm512_permutexvar_epi32(v[i], t);
        }
        toy_kv__dot_group_avx512(v, lanes + 4 * g, 4 * groups, n, 1, sum);
    }
}

/* Codes of a multiple of four channels, or of two, whose planes go by twos; four channels to a
 * lane.
 */
TOY_KV__INLINE_avx512 void toy_kv__dot_bytes_avx512(const unsigned char *codes, const toy_kv__run *run,
                                                const unsigned char *table,
                                                const unsigned char *lanes, const int n,
                                                const int two, toy_kv__asked *ahead,
                                                __m512i (*sum)[4])
{
    const int bytes = TOY_KV_BLOCK / 2, groups = toy_kv__dot_groups(run);
    const int each = two ? 1 : run->width / 4; /* groups of the same codes */
    const __m512i nibble = _mm512_set1_epi8(15), channel = _mm512_set1_epi32(0x30201000);
    /* The code of one plane for all four bytes of a lane, or of two planes, which stand in the low
     * and in the high half of a register, for two each. */
    const __m512i pick0 = toy_kv__dot_pick_avx512(0x01010101, two ? 0x20200000 : 0);
    const __m512i pick1 = toy_kv__dot_pick_avx512(0x01010101, two ? 0x30301010 : 0x10101010);
    int g, e, i;
    for (g = 0; g < groups; g += each, codes += two ? 2 * bytes : bytes) {
        __m512i codes_of[4], v[4];
        toy_kv__ask(ahead);
        toy_kv__dot_codes_avx512(
            two ? toy_kv__two_planes_avx512(codes, 2 * g + 1 < run->planes ? codes + bytes : codes)
                : _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)codes)),
            pick0, pick1, nibble, channel, codes_of);
        for (e = g; e < g + each; e++, table += 64) {
            const __m512i t = _mm512_loadu_si512((const void *)table);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                v[i] = _mm512_permutexvar_epi8(codes_of[i], t);
            toy_kv__dot_group_avx512(v, lanes + 4 * e, 4 * groups, n, 0, sum);
        }
    }
}

/* n rows from row r on, tokens of chunk c. */
TOY_KV__INLINE_avx512 void toy_kv__dot_rows_avx512(const unsigned char *codes, const toy_kv__run *run,
                                               const unsigned char *table,
                                               const unsigned char *lanes, const float *unit, int r,
                                               const int n, int c, int add, toy_kv__asked *ahead,
                                               float *s)
{
    __m512i sum[4][4];
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] =
            _mm512_set1_epi32(-(int)unit[2 * (r + k) + 1]);
    codes += 32 * c;
    lanes += r * 4 * toy_kv__dot_groups(run);
    if (run->width == 1)
        toy_kv__dot_words_avx512(codes, run, table, lanes, n, 1, ahead, sum);
    else if (run->words)
        toy_kv__dot_words_avx512(codes, run, table, lanes, n, 0, ahead, sum);
    else if (run->width == 2)
        toy_kv__dot_bytes_avx512(codes, run, table, lanes, n, 1, ahead, sum);
    else
        toy_kv__dot_bytes_avx512(codes, run, table, lanes, n, 0, ahead, sum);
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512 f = _mm512_set1_ps(unit[2 * (r + k)]);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            toy_kv__flush_avx512(sum[k][i], f, add,
                               s + (r + k) * TOY_KV_BLOCK + i / 2 * (TOY_KV_BLOCK / 2) + 32 * c +
                                   i % 2 * 16);
    }
}

TOY_KV__TARGET_avx512 static void
toy_kv__dot_scores_avx512(const unsigned char *const *codes, size_t offset, int blocks,
                        const toy_kv__run *run, const unsigned char *table,
                        const unsigned char *lanes, const float *unit, int rows, int add,
                        toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int b, c, r;
#define TOY_KV__DOT(n)                                                                               \
    toy_kv__dot_rows_avx512(codes[b] + offset, run, table, lanes, unit, r, n, c, add, &asked, s)
    for (b = 0; b < blocks; b++, s += rows * TOY_KV_BLOCK)
        for (c = 0; c < TOY_KV_BLOCK / 64; c++) {
            TOY_KV__BY_ROWS(r, rows, TOY_KV__DOT);
        }
#undef TOY_KV__DOT
    *ahead = asked;
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Sums of values in bytes, AVX-512: what toy_kv__byte_ops promises (types.h).
 *
 * A plane's codes become 8-bit codewords by a byte permutation, and a dot product adds codeword
 * times weight over tokens, for four channels and four rows at once. */

#if TOY_KV_BLOCK >= 64

/* Rows r .. r + n - 1 of weights p * gain in 8 bits: a `top` becomes 254. n is a constant. */
TOY_KV__INLINE_avx512 void toy_kv__pack_rows_avx512(const float *p, const float *gain, int blocks,
                                                int rows, int r, const int n, unsigned char *out,
                                                unsigned char *rest, float *scale)
{
    /* Thresholds spread evenly over (0, 1): small weights are not all rounded away, however large
     * the row's largest is; on average over positions, rounding keeps the sum. */
    const __m512 dither =
        _mm512_mul_ps(_mm512_set_ps(31, 15, 23, 7, 27, 11, 19, 3, 29, 13, 21, 5, 25, 9, 17, 1),
                      _mm512_set1_ps(1.0f / 32.0f));
    const int step = rows * TOY_KV_BLOCK;
    __m512 high[4], factor[4];
    int b, t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        high[k] = _mm512_setzero_ps();
    for (b = 0; b < blocks; b++)
        for (t = 0; t < TOY_KV_BLOCK; t += 16) {
            const float *x = p + b * step + r * TOY_KV_BLOCK + t;
            __m512 g = _mm512_loadu_ps(gain + b * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                high[k] = toy_kv__max_avx512(high[k],
                                           _mm512_mul_ps(g, _mm512_loadu_ps(x + k * TOY_KV_BLOCK)));
        }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float top = toy_kv__hmax_avx512(high[k]);
        scale[r + k] = top / 254.0f;
        factor[k] = _mm512_set1_ps(top > 0.0f ? 254.0f / top : 0.0f);
    }
    for (b = 0; b < blocks; b++)
        for (t = 0; t < TOY_KV_BLOCK; t += 16) {
            size_t at = (size_t)(b * step + r * TOY_KV_BLOCK + t);
            __m512 g = _mm512_loadu_ps(gain + b * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512 x = _mm512_mul_ps(g, _mm512_loadu_ps(p + at + k * TOY_KV_BLOCK));
                __m512 y =
                    _mm512_fmadd_ps(x, factor[k], rest == NULL ? dither : _mm512_setzero_ps());
                __m512i i = _mm512_cvttps_epi32(y);
                _mm_storeu_si128((__m128i *)(void *)(out + at + k * TOY_KV_BLOCK),
                                 _mm512_cvtusepi32_epi8(i));
                if (rest == NULL)
                    continue;
                y = _mm512_mul_ps(_mm512_sub_ps(y, _mm512_cvtepi32_ps(i)), _mm512_set1_ps(255.0f));
                _mm_storeu_si128((__m128i *)(void *)(rest + at + k * TOY_KV_BLOCK),
                                 _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(y)));
            }
        }
}

TOY_KV__TARGET_avx512 static void toy_kv__pack_weights_avx512(const float *p, const float *gain,
                                                          int blocks, int rows, unsigned char *out,
                                                          unsigned char *rest, float *scale)
{
    int r;
#define TOY_KV__X(n) toy_kv__pack_rows_avx512(p, gain, blocks, rows, r, n, out, NULL, scale)
    if (rest == NULL)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    for (r = 0; r < rows && rest != NULL; r++)
        toy_kv__pack_rows_avx512(p, gain, blocks, rows, r, 1, out, rest, scale);
}

/* The codes of tokens t .. t + 63 of a plane, in low nibbles; bits above them are anything. */
TOY_KV__INLINE_avx512 __m512i toy_kv__plane_codes_avx512(const unsigned char *plane, int t)
{
    __m512i x;
#if TOY_KV_BLOCK == 64
    (void)t;
    x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)plane));
    return _mm512_mask_srli_epi16(x, 0xffff0000u, x, 4);
#else
    x = _mm512_loadu_si512((const void *)(plane + t % (TOY_KV_BLOCK / 2)));
    return t < TOY_KV_BLOCK / 2 ? x : _mm512_srli_epi16(x, 4);
#endif
}

/* Where four channels lie: the first token of their planes in a block, and their latents. */
typedef struct toy_kv__four {
    size_t plane[4];
    size_t latent[4];
} toy_kv__four;

/* Channels c .. c + 3 of the run's n, counted plane by plane; behind the last it stands again. By a
 * pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void toy_kv__four_of(const toy_kv__run *run, size_t offset, int c, int n,
                                 toy_kv__four *four)
{
    int i;
    for (i = 0; i < 4; i++) {
        int channel = c + i < n ? c + i : n - 1, plane = channel, latent = channel;
        if (run->width == 2)
            plane = channel / 2;
        else if (run->width > 2)
            plane = channel / run->width;
        if (run->stages > 1)
            latent = plane / run->stages * run->width + channel - plane * run->width;
        four->plane[i] = offset + (size_t)plane * (TOY_KV_BLOCK / 2);
        four->latent[i] = (size_t)latent;
    }
}

/* Sums over each of four lanes that lie side by side: in lane 4 j + i of lanes 4 j .. 4 j + 3 of
 * x[i]. */
TOY_KV__INLINE_avx512 __m512i toy_kv__fold_lanes_avx512(const __m512i *x)
{
    const __m512i a = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(TOY_KV__ALL_avx512, x[0], x[1]),
                                       _mm512_maskz_unpackhi_epi32(TOY_KV__ALL_avx512, x[0], x[1]));
    const __m512i b = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(TOY_KV__ALL_avx512, x[2], x[3]),
                                       _mm512_maskz_unpackhi_epi32(TOY_KV__ALL_avx512, x[2], x[3]));
    return _mm512_add_epi32(_mm512_maskz_unpacklo_epi64((__mmask8)0xff, a, b),
                            _mm512_maskz_unpackhi_epi64((__mmask8)0xff, a, b));
}

/* The 128-bit parts of a and b, each half of one added to the other half: a's, then b's. */
TOY_KV__INLINE_avx512 __m512i toy_kv__fold_parts_avx512(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_maskz_shuffle_i32x4(TOY_KV__ALL_avx512, a, b, 0x44),
                            _mm512_maskz_shuffle_i32x4(TOY_KV__ALL_avx512, a, b, 0xee));
}

/* sums [n, stride] += what lanes of sum [n, 4] add up to, times f [n] and the channels' scales. */
TOY_KV__INLINE_avx512 void toy_kv__keep_sums_avx512(__m512i (*sum)[4], const int n,
                                                const toy_kv__four *four, int real,
                                                const float *book_scale, const float *f,
                                                float *sums, size_t stride)
{
    const __m128 scale = _mm_maskz_loadu_ps((__mmask8)toy_kv__first_lanes(real), book_scale);
    float left[4];
    __m128 x[4];
    int k, i;
    if (n == 4) {
        const __m512i a = toy_kv__fold_parts_avx512(toy_kv__fold_lanes_avx512(sum[0]),
                                                  toy_kv__fold_lanes_avx512(sum[1]));
        const __m512i b = toy_kv__fold_parts_avx512(toy_kv__fold_lanes_avx512(sum[2]),
                                                  toy_kv__fold_lanes_avx512(sum[3]));
        const __m512 all = _mm512_maskz_cvtepi32_ps(
            TOY_KV__ALL_avx512,
            _mm512_add_epi32(_mm512_maskz_shuffle_i32x4(TOY_KV__ALL_avx512, a, b, 0x88),
                             _mm512_maskz_shuffle_i32x4(TOY_KV__ALL_avx512, a, b, 0xdd)));
        x[0] = _mm512_castps512_ps128(all);
        x[1] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 1);
        x[2] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 2);
        x[3] = _mm512_maskz_extractf32x4_ps((__mmask8)15, all, 3);
    } else {
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            x[k] = _mm_cvtepi32_ps(toy_kv__four_sums_avx512(sum[k]));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = sums + (size_t)k * stride;
        x[k] = _mm_mul_ps(x[k], _mm_mul_ps(_mm_set1_ps(f[k]), scale));
        if (four->latent[3] == four->latent[0] + 3) {
            to += four->latent[0];
            _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), x[k]));
            continue;
        }
        _mm_storeu_ps(left, x[k]);
        for (i = 0; i < real; i++)
            to[four->latent[i]] += left[i];
    }
}

/* Four channels, `each` of them of one plane, `real` of them there, for n rows from row r on; each
 * and n are constants. The codewords of a channel stand four times in a register, so that bits
 * above a nibble do not count. */
TOY_KV__INLINE_avx512 void toy_kv__sum_rows_avx512(const unsigned char *const *codes, int blocks,
                                               const toy_kv__four *four, const int each, int real,
                                               const signed char *book, const float *book_scale,
                                               const unsigned char *weights, const float *scale,
                                               int rows, int r, const int n, toy_kv__asked *ahead,
                                               float *sums, size_t stride)
{
    __m512i sum[4][4], table[4];
    const unsigned char *w = weights + (size_t)r * TOY_KV_BLOCK;
    int b, k, t, i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        table[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(
            (const __m128i *)(const void *)(book + 16 * (i < real ? i : real - 1))));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = _mm512_setzero_si512();
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * TOY_KV_BLOCK) {
        toy_kv__ask_far(ahead);
        for (t = 0; t < TOY_KV_BLOCK; t += 64) {
            __m512i x = toy_kv__plane_codes_avx512(codes[b] + four->plane[0], t), v[4];
            v[0] = _mm512_permutexvar_epi8(x, table[0]);
#pragma GCC unroll 4
            for (i = 1; i < 4; i++) {
                if (i % each == 0)
                    x = toy_kv__plane_codes_avx512(codes[b] + four->plane[i], t);
                v[i] = _mm512_permutexvar_epi8(x, table[i]);
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                __m512i p = _mm512_loadu_si512((const void *)(w + k * TOY_KV_BLOCK + t));
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    toy_kv__add_bytes_avx512(&sum[k][i], p, v[i]);
            }
        }
    }
    toy_kv__keep_sums_avx512(sum, n, four, real, book_scale, scale + r, sums + (size_t)r * stride,
                           stride);
}

/* All channels of a run, `each` of every four of one plane. */
TOY_KV__INLINE_avx512 void toy_kv__sum_run_avx512(const unsigned char *const *codes, size_t offset,
                                              int blocks, const toy_kv__run *run, const int each,
                                              const signed char *book, const float *book_scale,
                                              const unsigned char *weights, const float *scale,
                                              int rows, toy_kv__asked *ahead, float *sums,
                                              size_t stride)
{
    toy_kv__asked asked = *ahead;
    int c, r, n = run->planes * run->width;
    for (c = 0; c < n; c += 4, book += 64, book_scale += 4) {
        toy_kv__four four;
        int real = n - c < 4 ? n - c : 4;
        toy_kv__four_of(run, offset, c, n, &four);
#define TOY_KV__SUM(n_rows)                                                                          \
    toy_kv__sum_rows_avx512(codes, blocks, &four, each, real, book, book_scale, weights, scale,      \
                          rows, r, n_rows, &asked, sums, stride)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__SUM);
#undef TOY_KV__SUM
    }
    *ahead = asked;
}

TOY_KV__TARGET_avx512 static void
toy_kv__sum_bytes_avx512(const unsigned char *const *codes, size_t offset, int blocks,
                       const toy_kv__run *run, const signed char *book, const float *book_scale,
                       const unsigned char *weights, const float *scale, int rows,
                       toy_kv__asked *ahead, float *sums, size_t stride)
{
#define TOY_KV__X(each)                                                                              \
    toy_kv__sum_run_avx512(codes, offset, blocks, run, each, book, book_scale, weights, scale, rows, \
                         ahead, sums, stride)
    if (run->width % 4 == 0)
        TOY_KV__X(4);
    else if (run->width == 2)
        TOY_KV__X(2);
    else
        TOY_KV__X(1);
#undef TOY_KV__X
}

#endif /* TOY_KV_BLOCK >= 64 */
/* Byte kernels, AVX-512 with VBMI and VNNI: what toy_kv__byte_ops promises (types.h).
 *
 * Scores: the planes of four codes are interleaved in registers, so that one byte permutation looks
 * up four planes of sixteen tokens and one dot product adds them, each entry times the step of its
 * plane. Where 8 bits are too few, a second table adds what the first one's rounding has left. */

#if TOY_KV_BLOCK >= 64

/* A quad of planes from `plane` on, 32 tokens and 32 half a block later of each: [4, 32] bytes in
 * two registers. Anything stands where no plane is: its table is 0. */
TOY_KV__INLINE_avx512 void toy_kv__quad_planes_avx512(const unsigned char *codes, int plane, int planes,
                                                  __m512i *low, __m512i *high)
{
    const int bytes = TOY_KV_BLOCK / 2;
    const unsigned char *p = codes + plane * bytes;
#if TOY_KV_BLOCK == 64 /* planes lie side by side */
    if (plane + 4 <= planes) {
        *low = _mm512_loadu_si512((const void *)p);
        *high = _mm512_loadu_si512((const void *)(p + 64));
        return;
    }
#endif
    *low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    *low = _mm512_inserti64x4(
        *low,
        _mm256_loadu_si256((const __m256i *)(const void *)(plane + 1 < planes ? p + bytes : p)), 1);
    p = plane + 2 < planes ? p + 2 * bytes : p;
    *high = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p));
    *high = _mm512_inserti64x4(
        *high,
        _mm256_loadu_si256((const __m256i *)(const void *)(plane + 3 < planes ? p + bytes : p)), 1);
}

/* The interleaving of bytes first .. first + 15 of four planes: byte 4 t + i is plane i's. */
TOY_KV__TARGET_avx512 static inline __m512i toy_kv__interleave_avx512(int first)
{
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    lane = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x01010101));
    return _mm512_add_epi8(lane,
                           _mm512_set1_epi32((int)(0x60402000u + 0x01010101u * (unsigned)first)));
}

/* v [4]: where the entries of a quad's codes stand in a table of four times sixteen: 16 tokens in
 * each, 32 and, half a block later, 32 more. */
TOY_KV__INLINE_avx512 void toy_kv__quad_avx512(const unsigned char *codes, int plane, int planes,
                                           __m512i *v)
{
    const __m512i nibble = _mm512_set1_epi8(15), base = _mm512_set1_epi32(0x30201000);
    __m512i a, b;
    toy_kv__quad_planes_avx512(codes, plane, planes, &a, &b);
    v[0] = _mm512_permutex2var_epi8(a, toy_kv__interleave_avx512(0), b);
    v[1] = _mm512_permutex2var_epi8(a, toy_kv__interleave_avx512(16), b);
    v[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[0], 4), nibble, base, 0xea);
    v[3] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v[1], 4), nibble, base, 0xea);
    v[0] = _mm512_ternarylogic_epi32(v[0], nibble, base, 0xea);
    v[1] = _mm512_ternarylogic_epi32(v[1], nibble, base, 0xea);
}

/* Adds the entries that one table has for each row at the indices v, 16 tokens in each, times its
 * steps. tables: [rows, 64] entries, then the steps [rows, 4]; from row r on. */
TOY_KV__INLINE_avx512 void toy_kv__score_quad_avx512(const __m512i *v, const signed char *tables,
                                                 int rows, int r, const int n, __m512i (*sum)[4])
{
    const signed char *t = tables + (size_t)r * 64;
    const signed char *step = tables + (size_t)rows * 64 + (size_t)r * 4;
    int k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        __m512i e = _mm512_loadu_si512((const void *)(t + k * 64));
        __m512i steps = toy_kv__four_bytes_avx512(step + k * 4);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            toy_kv__add_bytes_avx512(&sum[k][i], _mm512_permutexvar_epi8(v[i], e), steps);
    }
}

/* Scores of n rows, a constant where it is called, from row r on, 64 tokens at a time. */
TOY_KV__INLINE_avx512 void toy_kv__score_rows_avx512(const unsigned char *codes, int planes,
                                                 const toy_kv__packed *head,
                                                 const signed char *tables, int rows, int r,
                                                 const int n, int add, toy_kv__asked *ahead, float *s)
{
    const size_t bytes = (size_t)rows * 64 + 4 * TOY_KV__MAX_ROWS;
    int c, q, k, i;
    for (c = 0; c < TOY_KV_BLOCK / 64; c++, codes += 32) {
        const signed char *t = tables;
        __m512i sum[4][4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = _mm512_set1_epi32(-head->offset[r + k]);
        for (q = 0; q < head->wide; q++, t += 2 * bytes) {
            __m512i v[4];
            toy_kv__quad_avx512(codes, 4 * q, planes, v);
            toy_kv__ask(ahead);
            toy_kv__ask(ahead);
            toy_kv__score_quad_avx512(v, t, rows, r, n, sum);
            toy_kv__score_quad_avx512(v, t + bytes, rows, r, n, sum);
        }
        for (; q < (planes + 3) / 4; q++, t += bytes) {
            __m512i v[4];
            toy_kv__quad_avx512(codes, 4 * q, planes, v);
            toy_kv__ask(ahead);
            toy_kv__ask(ahead);
            toy_kv__score_quad_avx512(v, t, rows, r, n, sum);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            __m512 f = _mm512_set1_ps(head->scale[2 * (r + k) + 1]);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++)
                toy_kv__flush_avx512(sum[k][i], f, add,
                                   s + (r + k) * TOY_KV_BLOCK + i / 2 * (TOY_KV_BLOCK / 2) + 32 * c +
                                       i % 2 * 16);
        }
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__score_bytes_avx512(const unsigned char *const *codes,
                                                         size_t offset, int blocks, int planes,
                                                         const toy_kv__packed *head,
                                                         const signed char *tables, int rows,
                                                         int add, toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int b, r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_rows_avx512(codes[b] + offset, planes, head, tables, rows, r, n, add, &asked, s)
    for (b = 0; b < blocks; b++, s += rows * TOY_KV_BLOCK) {
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
    *ahead = asked;
}

/* The table of plane p for row r in lut [planes, rows, 16]; 0 behind the last plane. */
TOY_KV__TARGET_avx512 static inline __m512 toy_kv__lut_avx512(const float *lut, int p, int planes,
                                                          int rows, int r)
{
    return p < planes ? _mm512_loadu_ps(lut + ((size_t)p * (size_t)rows + (size_t)r) * 16)
                      : _mm512_setzero_ps();
}

/* The largest magnitude in each of a quad's tables for row r. */
TOY_KV__TARGET_avx512 static __m128 toy_kv__reaches_avx512(const float *lut, int q, int planes,
                                                       int rows, int r)
{
    __m512 x[4], low, high;
    __m256 half;
    int i;
    for (i = 0; i < 4; i++)
        x[i] = _mm512_abs_ps(toy_kv__lut_avx512(lut, 4 * q + i, planes, rows, r));
    low = toy_kv__max_avx512(_mm512_maskz_unpacklo_ps(TOY_KV__ALL_avx512, x[0], x[1]),
                           _mm512_maskz_unpackhi_ps(TOY_KV__ALL_avx512, x[0], x[1]));
    high = toy_kv__max_avx512(_mm512_maskz_unpacklo_ps(TOY_KV__ALL_avx512, x[2], x[3]),
                            _mm512_maskz_unpackhi_ps(TOY_KV__ALL_avx512, x[2], x[3]));
    low = toy_kv__max_avx512(_mm512_maskz_shuffle_ps(TOY_KV__ALL_avx512, low, high, 0x44),
                           _mm512_maskz_shuffle_ps(TOY_KV__ALL_avx512, low, high, 0xee));
    half = _mm256_max_ps(toy_kv__low_half_avx512(low), toy_kv__high_half_avx512(low));
    return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* The sum and the largest of four numbers >= 0. */
TOY_KV__TARGET_avx512 static inline float toy_kv__sum_of_four(__m128 x)
{
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
TOY_KV__TARGET_avx512 static inline float toy_kv__top_of_four(__m128 x)
{
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Chooses the wide quads of tables lut [planes, rows, 16], which rows share: from the last quad on,
 * as many with one table as keep every row's rounding error within the tolerance. top [rows]: the
 * largest magnitude. */
TOY_KV__TARGET_avx512 static int toy_kv__wide_quads_avx512(const float *lut, int planes, int rows,
                                                       const float *energy, float *top)
{
    int q, r, p, wide = (planes + 3) / 4, full = 0;
    float limit[TOY_KV__MAX_ROWS], noise[TOY_KV__MAX_ROWS];
    for (r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (p = 0; p < planes; p++) {
            __m512 x = toy_kv__lut_avx512(lut, p, planes, rows, r);
            sum = _mm512_fmadd_ps(x, x, sum);
        }
        /* of the mean square of a score; rounding of a plane adds its reach^2 / 127^2 / 12 */
        limit[r] = TOY_KV__TABLE_ERROR * TOY_KV__TABLE_ERROR * 127.0f * 127.0f * 12.0f *
                   (energy[r] + toy_kv__hsum_avx512(sum) / 16.0f);
        noise[r] = top[r] = 0.0f;
    }
    for (q = wide - 1; q >= 0; q--) {
        for (r = 0; r < rows; r++) {
            __m128 reach = toy_kv__reaches_avx512(lut, q, planes, rows, r);
            float m = toy_kv__top_of_four(reach);
            noise[r] += toy_kv__sum_of_four(_mm_mul_ps(reach, reach));
            full |= noise[r] > limit[r];
            top[r] = m > top[r] ? m : top[r];
        }
        wide = full ? wide : q;
    }
    return wide;
}

/* Where a table's parts go: 128 more than its entries are [rows, 64], its steps [rows, 4]; those of
 * one row. */
typedef struct toy_kv__narrow {
    signed char *out, *step;
} toy_kv__narrow;

/* Sixteen entries of a quad's i-th plane. */
TOY_KV__TARGET_avx512 static inline void toy_kv__put_entries_avx512(toy_kv__narrow to, int i, __m512i x,
                                                                int step)
{
    x = _mm512_xor_si512(x, _mm512_set1_epi32(128));
    _mm_storeu_si128((__m128i *)(void *)(to.out + 16 * i), _mm512_cvtepi32_epi8(x));
    to.step[i] = (signed char)step;
}

/* A quad of row r: entries count 1 .. 127 times scale, and what rounding left of them, if rest is
 * not NULL, once. Returns what they make the sum larger. */
TOY_KV__TARGET_avx512 static int toy_kv__pack_quad_avx512(const float *lut, int q, int planes, int rows,
                                                      int r, float scale, toy_kv__narrow to,
                                                      const toy_kv__narrow *rest)
{
    const float unit = scale > 0.0f ? 1.0f / scale : 0.0f;
    __m128 reach = toy_kv__reaches_avx512(lut, q, planes, rows, r);
    __m128i steps = _mm_cvttps_epi32(_mm_mul_ps(reach, _mm_set1_ps(unit / 127.0f)));
    float inverse[4];
    int i, steps_of[4], more = 0;
    steps = _mm_min_epi32(_mm_add_epi32(steps, _mm_set1_epi32(1)), _mm_set1_epi32(127));
    _mm_storeu_si128((__m128i *)(void *)steps_of, steps);
    _mm_storeu_ps(inverse, _mm_div_ps(_mm_set1_ps(1.0f), _mm_cvtepi32_ps(steps)));
    for (i = 0; i < 4; i++) {
        __m512 x =
            _mm512_mul_ps(toy_kv__lut_avx512(lut, 4 * q + i, planes, rows, r), _mm512_set1_ps(unit));
        __m512i e = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[i])));
        toy_kv__put_entries_avx512(to, i, e, steps_of[i]);
        more += 128 * steps_of[i];
        if (rest == NULL)
            continue;
        x = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(e), _mm512_set1_ps((float)steps_of[i]), x);
        toy_kv__put_entries_avx512(*rest, i, _mm512_cvtps_epi32(x), 1);
        more += 128;
    }
    return more;
}

TOY_KV__TARGET_avx512 static void toy_kv__pack_tables_avx512(const float *lut, int planes, int rows,
                                                         const float *energy, toy_kv__packed *head,
                                                         signed char *out)
{
    const signed char *start = out;
    const size_t bytes = (size_t)rows * 64 + 4 * TOY_KV__MAX_ROWS;
    int q, r, wide;
    float top[TOY_KV__MAX_ROWS];
    head->wide = toy_kv__wide_quads_avx512(lut, planes, rows, energy, top);
    for (r = 0; r < rows; r++) {
        head->scale[2 * r + 1] = top[r] / (127.0f * 127.0f);
        head->offset[r] = 0;
    }
    for (q = 0; q < (planes + 3) / 4; q++, out += wide ? 2 * bytes : bytes) {
        wide = q < head->wide;
        for (r = 0; r < rows; r++) {
            const toy_kv__narrow to = {out + 64 * r, out + 64 * rows + 4 * r};
            const toy_kv__narrow rest = {to.out + bytes, to.step + bytes};
            head->offset[r] += toy_kv__pack_quad_avx512(
                lut, q, planes, rows, r, head->scale[2 * r + 1], to, wide ? &rest : NULL);
        }
    }
    head->bytes = (int)((out - start + 63) / 64 * 64);
}

TOY_KV__TARGET_avx512 static void toy_kv__pack_books_avx512(const unsigned char *book, int n,
                                                        signed char *out, float *scale)
{
    int i, k, m;
    for (i = 0; i < n; i += m, book += 32 * m, out += 16 * m, scale += m) {
        __m512 x[4], size[4];
        float top[4];
        m = n - i < 4 ? n - i : 4;
        for (k = 0; k < 4; k++) {
            x[k] = toy_kv__loadh_avx512(book + 32 * (k < m ? k : 0));
            size[k] = _mm512_abs_ps(x[k]);
        }
        _mm_storeu_ps(top, toy_kv__four_tops_avx512(size));
        for (k = 0; k < m; k++) {
            const __m512 f = _mm512_set1_ps(top[k] > 0.0f ? 127.0f / top[k] : 0.0f);
            scale[k] = top[k] / 127.0f;
            _mm_storeu_si128((__m128i *)(void *)(out + 16 * k),
                             _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x[k], f))));
        }
    }
}

#define TOY_KV__X(name) toy_kv__##name##_avx512,
static const toy_kv__byte_ops toy_kv__byte_ops_avx512 = {
    TOY_KV__ALL_BYTE_KERNELS(TOY_KV__X, TOY_KV__X, TOY_KV__X, TOY_KV__NO_KERNEL) 255.0f, 0.05f};
#undef TOY_KV__X

#endif /* TOY_KV_BLOCK >= 64 */
/* Kernels over rebuilt tiles, and landmarks, for one instruction set, in the vocabulary of
 * kernels.h. A tile is [channels, BLOCK]: what is done to one token is done to LANES of them at
 * once, and no kernel over tiles adds up across lanes. Sizes of tables may be any; BLOCK is a
 * multiple of the lanes. */

/* Inputs and outputs that are unpacked to fp32 at a time. */
enum { TOY_KV__DEPTH_avx512 = 128, TOY_KV__STRIP_avx512 = 16 };

/* The second vector of tokens that a pass holds; the first one again where a block has no other. */
enum { TOY_KV__NEXT_avx512 = TOY_KV_BLOCK > TOY_KV__LANES_avx512 ? TOY_KV__LANES_avx512 : 0 };

/* y [m, BLOCK] += x [n, BLOCK] by m outputs' coefficients, OUTS at most, at coef[i * of_in + k *
 * of_out]. A macro, so that both strides are constants. Two vectors of tokens and OUTS outputs are
 * as many sums as registers hold: a coefficient is loaded once for both. */
#define TOY_KV__OUTPUTS(name, of_in, of_out)                                                         \
    TOY_KV__TARGET_avx512 static void name(const float *coef, int n, int m, const float *x, float *y)   \
    {                                                                                              \
        int i, t;                                                                                  \
        for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_avx512) {                                    \
            const float *c = coef, *src = x + t;                                                   \
            float *dst = y + t;                                                                    \
            TOY_KV__OUTS_avx512(TOY_KV__ZERO)                                                             \
            for (i = 0; i < n; i++, c += (of_in), src += TOY_KV_BLOCK) {                             \
                toy_kv__vf_avx512 v = toy_kv__load_avx512(src), w = toy_kv__load_avx512(src + TOY_KV__NEXT_avx512), f; \
                TOY_KV__STEP(0, of_out)                                                              \
                TOY_KV__STEP(1, of_out)                                                              \
                TOY_KV__STEP(2, of_out)                                                              \
                TOY_KV__STEP(3, of_out)                                                              \
                TOY_KV__REST_avx512(TOY_KV__STEP, of_out)                                                 \
            }                                                                                      \
            TOY_KV__OUTS_avx512(TOY_KV__KEEP)                                                             \
        }                                                                                          \
    }
#define TOY_KV__ZERO(k) toy_kv__vf_avx512 a##k = toy_kv__set1_avx512(0.0f), b##k = a##k;
#define TOY_KV__STEP(k, of_out)                                                                      \
    f = toy_kv__set1_avx512(c[(k) * (of_out)]);                                                         \
    a##k = toy_kv__fma_avx512(f, v, a##k);                                                              \
    b##k = toy_kv__fma_avx512(f, w, b##k);
#define TOY_KV__KEEP(k)                                                                              \
    if (k < m) {                                                                                   \
        float *row = dst + k * TOY_KV_BLOCK;                                                         \
        b##k = toy_kv__add_avx512(toy_kv__load_avx512(row + TOY_KV__NEXT_avx512), b##k);                          \
        toy_kv__store_avx512(row, toy_kv__add_avx512(toy_kv__load_avx512(row), a##k));                            \
        toy_kv__store_avx512(row + TOY_KV__NEXT_avx512, b##k);                                               \
    }
TOY_KV__OUTPUTS(toy_kv__outputs_down_avx512, TOY_KV__STRIP_avx512, 1)
TOY_KV__OUTPUTS(toy_kv__outputs_across_avx512, 1, TOY_KV__DEPTH_avx512)
#undef TOY_KV__OUTPUTS
#undef TOY_KV__ZERO
#undef TOY_KV__STEP
#undef TOY_KV__KEEP

/* x [n] of fp32 from binary16. */
TOY_KV__TARGET_avx512 static inline void toy_kv__widen_avx512(const unsigned char *row, int n, float *x)
{
    int j = 0;
    for (; j + TOY_KV__LANES_avx512 <= n; j += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(x + j, toy_kv__loadh_avx512(row + 2 * j));
    for (; j < n; j++)
        x[j] = toy_kv__half_at(row, (size_t)j);
}

/* x [n] of fp32 from entries of a table: the i-th on, the first of them in column `col`. */
TOY_KV__TARGET_avx512 static inline void toy_kv__unpack_avx512(const toy_kv__matrix *m, size_t i, size_t col,
                                                     int n, float *x)
{
    int j = 0;
    if (m->scale == NULL) {
        toy_kv__widen_avx512(m->values + 2 * i, n, x);
        return;
    }
    for (; j + TOY_KV__LANES_avx512 <= n; j += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(x + j, toy_kv__mul_avx512(toy_kv__loads8_avx512(m->values + i + j),
                                             toy_kv__loadh_avx512(m->scale + 2 * (col + (size_t)j))));
    for (; j < n; j++)
        x[j] = toy_kv__raw_at(m, i + (size_t)j) * toy_kv__half_at(m->scale, col + (size_t)j);
}

TOY_KV__TARGET_avx512 static void toy_kv__product_avx512(toy_kv__matrix table, size_t ld, int across, int n_in,
                                               int n_out, const float *x, float *y)
{
    float coef[TOY_KV__STRIP_avx512 * TOY_KV__DEPTH_avx512];
    int i, o, k, first;
    memset(coef, 0, sizeof coef);
    for (o = 0; o < n_out; o += TOY_KV__STRIP_avx512)
        for (first = 0; first < n_in; first += TOY_KV__DEPTH_avx512) {
            int m = n_out - o < TOY_KV__STRIP_avx512 ? n_out - o : TOY_KV__STRIP_avx512;
            int n = n_in - first < TOY_KV__DEPTH_avx512 ? n_in - first : TOY_KV__DEPTH_avx512;
            const float *src = x + (size_t)first * TOY_KV_BLOCK;
            for (k = 0; k < m && across; k++)
                toy_kv__unpack_avx512(&table, (size_t)(o + k) * ld + (size_t)first, (size_t)first, n,
                                 coef + k * TOY_KV__DEPTH_avx512);
            for (i = 0; i < n && !across; i++)
                toy_kv__unpack_avx512(&table, (size_t)(first + i) * ld + (size_t)o, (size_t)o, m,
                                 coef + i * TOY_KV__STRIP_avx512);
            for (k = 0; k < m; k += TOY_KV__N_OUTS_avx512) {
                float *dst = y + (size_t)(o + k) * TOY_KV_BLOCK;
                if (across)
                    toy_kv__outputs_across_avx512(coef + k * TOY_KV__DEPTH_avx512, n, m - k, src, dst);
                else
                    toy_kv__outputs_down_avx512(coef + k, n, m - k, src, dst);
            }
        }
}

TOY_KV__TARGET_avx512 static void toy_kv__add_scaled_avx512(size_t n, float a, const float *x, float *y)
{
    size_t i;
    toy_kv__vf_avx512 factor = toy_kv__set1_avx512(a);
    for (i = 0; i < n; i += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(y + i, toy_kv__fma_avx512(factor, toy_kv__load_avx512(x + i), toy_kv__load_avx512(y + i)));
}

TOY_KV__TARGET_avx512 static void toy_kv__affine_avx512(const float *scale, const float *shift, int rows,
                                              float *x)
{
    int t, r;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a = toy_kv__load_avx512(scale + t), b = toy_kv__load_avx512(shift + t);
        float *p = x + t;
        for (r = 0; r < rows; r++, p += TOY_KV_BLOCK)
            toy_kv__store_avx512(p, toy_kv__fma_avx512(a, toy_kv__load_avx512(p), b));
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__affine_row_avx512(int n, float scale, float shift, float *x)
{
    int i = 0;
    toy_kv__vf_avx512 a = toy_kv__set1_avx512(scale), b = toy_kv__set1_avx512(shift);
    for (; i + TOY_KV__LANES_avx512 <= n; i += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(x + i, toy_kv__fma_avx512(a, toy_kv__load_avx512(x + i), b));
    for (; i < n; i++)
        x[i] = scale * x[i] + shift;
}

TOY_KV__TARGET_avx512 static void toy_kv__from_bytes_avx512(const unsigned char *bytes, float bias,
                                                  float *dst)
{
    int t;
    toy_kv__vf_avx512 b = toy_kv__set1_avx512(bias);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(dst + t, toy_kv__add_avx512(toy_kv__loadu8_avx512(bytes + t), b));
}

TOY_KV__TARGET_avx512 static void toy_kv__from_nibbles_avx512(const unsigned char *plane,
                                                    const unsigned char *book, int width, int add,
                                                    float *dst)
{
    float words[16];
    int t, w;
    for (w = 0; w < width; w++, dst += TOY_KV_BLOCK) {
        toy_kv__vt_avx512 table;
        toy_kv__widen_avx512(book + 2 * 16 * w, 16, words);
        table = toy_kv__table_avx512(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
            toy_kv__vf_avx512 v = toy_kv__lookup_avx512(table, toy_kv__nibbles_avx512(plane, t));
            toy_kv__store_avx512(dst + t, add ? toy_kv__add_avx512(toy_kv__load_avx512(dst + t), v) : v);
        }
    }
}

/* The angle of a token is the block's and the token's own, one complex product a pair. */
TOY_KV__TARGET_avx512 static void toy_kv__turn_tile_avx512(const float *block, const float *tokens,
                                                 float direction, const float *x, float *y)
{
    int i, t;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        int first = (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i) * TOY_KV_BLOCK;
        int second = (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2) * TOY_KV_BLOCK;
        toy_kv__vf_avx512 block_cos = toy_kv__set1_avx512(block[2 * i]), c = block_cos;
        toy_kv__vf_avx512 block_sin = toy_kv__set1_avx512(direction * block[2 * i + 1]), s = block_sin;
        toy_kv__vf_avx512 sign = toy_kv__set1_avx512(direction), minus = toy_kv__set1_avx512(-1.0f);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
            toy_kv__vf_avx512 a = toy_kv__load_avx512(x + first + t), b = toy_kv__load_avx512(x + second + t);
            if (tokens != NULL) {
                const float *own = tokens + 2 * i * TOY_KV_BLOCK + t;
                toy_kv__vf_avx512 own_cos = toy_kv__load_avx512(own);
                toy_kv__vf_avx512 own_sin = toy_kv__mul_avx512(sign, toy_kv__load_avx512(own + TOY_KV_BLOCK));
                c = toy_kv__fma_avx512(toy_kv__mul_avx512(minus, block_sin), own_sin,
                                  toy_kv__mul_avx512(block_cos, own_cos));
                s = toy_kv__fma_avx512(block_sin, own_cos, toy_kv__mul_avx512(block_cos, own_sin));
            }
            toy_kv__store_avx512(y + first + t,
                            toy_kv__fma_avx512(toy_kv__mul_avx512(minus, s), b, toy_kv__mul_avx512(c, a)));
            toy_kv__store_avx512(y + second + t, toy_kv__fma_avx512(s, a, toy_kv__mul_avx512(c, b)));
        }
    }
    if (x != y)
        memcpy(y + TOY_KV_N_ROT * TOY_KV_BLOCK, x + TOY_KV_N_ROT * TOY_KV_BLOCK,
               sizeof(float) * (TOY_KV_HEAD_DIM - TOY_KV_N_ROT) * TOY_KV_BLOCK);
}

/* s [n, BLOCK] = q [n, HEAD_DIM] against a tile k. n: a constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__score_held_avx512(const float *k, const float *q, const int n,
                                                        float *s)
{
    int d, t, i;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a[4];
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            a[i] = toy_kv__set1_avx512(0.0f);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            toy_kv__vf_avx512 v = toy_kv__load_avx512(k + d * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (i = 0; i < n; i++)
                a[i] = toy_kv__fma_avx512(toy_kv__set1_avx512(q[i * TOY_KV_HEAD_DIM + d]), v, a[i]);
        }
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            toy_kv__store_avx512(s + i * TOY_KV_BLOCK + t, a[i]);
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__score_tile_avx512(const float *k, const float *q, int rows,
                                                  float *s)
{
    int r;
#define TOY_KV__X(n) toy_kv__score_held_avx512(k, q + r * TOY_KV_HEAD_DIM, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times v [BLOCK]. n: a constant, 4
 * at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__sum_held_avx512(const float *v, const float *p, const int n,
                                                      float *acc, size_t stride)
{
    toy_kv__vf_avx512 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 x = toy_kv__load_avx512(v + t);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx512(toy_kv__load_avx512(p + k * TOY_KV_BLOCK + t), x, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512, a[k]);
}

TOY_KV__TARGET_avx512 static void toy_kv__sum_tile_avx512(const float *v, const float *p, int rows,
                                                float *acc, size_t stride)
{
    int r, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_held_avx512(v, p + r * TOY_KV_BLOCK, n, acc + (size_t)r * stride * TOY_KV__LANES_avx512, stride)
    for (d = 0; d < TOY_KV_HEAD_DIM; d++, v += TOY_KV_BLOCK, acc += TOY_KV__LANES_avx512)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

TOY_KV__TARGET_avx512 static void toy_kv__distances_avx512(const unsigned char *book, int n, int width,
                                                 int count, const float *z, float *distance)
{
    int i = 0, w;
    for (; i + TOY_KV__LANES_avx512 <= count; i += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a = toy_kv__set1_avx512(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx512 d =
                toy_kv__add_avx512(toy_kv__loadh_avx512(book + 2 * ((size_t)w * (size_t)n + (size_t)i)),
                              toy_kv__set1_avx512(-z[w]));
            a = toy_kv__fma_avx512(d, d, a);
        }
        toy_kv__store_avx512(distance + i, a);
    }
    for (; i < count; i++) {
        distance[i] = 0.0f;
        for (w = 0; w < width; w++) {
            float d = toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i) - z[w];
            distance[i] += d * d;
        }
    }
}

TOY_KV__TARGET_avx512 static void toy_kv__landmark_scores_avx512(const unsigned char *codes, int n,
                                                       const float *q, int rows, float *best)
{
    toy_kv__vf_avx512 bias = toy_kv__set1_avx512(-128.0f);
    int i, r, d;
    for (i = 0; i < n; i++, codes += TOY_KV_HEAD_DIM)
        for (r = 0; r < rows; r++) {
            const float *x = q + r * TOY_KV_HEAD_DIM;
            toy_kv__vf_avx512 a = toy_kv__set1_avx512(0.0f);
            float sum;
            for (d = 0; d + TOY_KV__LANES_avx512 <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_avx512)
                a = toy_kv__fma_avx512(toy_kv__load_avx512(x + d),
                                  toy_kv__add_avx512(toy_kv__loadu8_avx512(codes + d), bias), a);
            sum = toy_kv__hsum_avx512(a);
            for (; d < TOY_KV_HEAD_DIM; d++)
                sum += x[d] * ((float)codes[d] - 128.0f);
            best[i] = r == 0 || sum > best[i] ? sum : best[i];
        }
}

#define TOY_KV__X(name) toy_kv__##name##_avx512,
static const toy_kv__dense_ops toy_kv__dense_avx512 = {TOY_KV__DENSE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Kernels of encoding for one instruction set, in the vocabulary of kernels.h and over the tiles of
 * dense.h: LANES tokens at once. Besides:
 *
 *   storeu8 (integral 0..15 to bytes)   storeh (to binary16; what is too large becomes the largest)
 *   keep_less(x, i, &least, &index): where x < least, least = x and index = i
 *   transpose(src, step, dst, step): eight by eight binary16 values, steps of rows in bytes */

/* The codewords i .. i + 3 against LANES tokens z [width, BLOCK]: least and index are what was
 * found before. book: |c|^2 / 2 [16], then -c [width, 16]; |z - c|^2 / 2 less these is the same for
 * all codewords. */
#define TOY_KV__FOUR(i)                                                                              \
    {                                                                                              \
        toy_kv__vf_avx512 a0 = toy_kv__set1_avx512(book[i]), a1 = toy_kv__set1_avx512(book[(i) + 1]);             \
        toy_kv__vf_avx512 a2 = toy_kv__set1_avx512(book[(i) + 2]), a3 = toy_kv__set1_avx512(book[(i) + 3]);       \
        for (w = 0; w < width; w++) {                                                              \
            toy_kv__vf_avx512 v = toy_kv__load_avx512(z + w * TOY_KV_BLOCK);                                   \
            const float *c = book + 16 * (w + 1) + (i);                                            \
            a0 = toy_kv__fma_avx512(toy_kv__set1_avx512(c[0]), v, a0);                                       \
            a1 = toy_kv__fma_avx512(toy_kv__set1_avx512(c[1]), v, a1);                                       \
            a2 = toy_kv__fma_avx512(toy_kv__set1_avx512(c[2]), v, a2);                                       \
            a3 = toy_kv__fma_avx512(toy_kv__set1_avx512(c[3]), v, a3);                                       \
        }                                                                                          \
        toy_kv__keep_less_avx512(a0, (float)(i), &least, &index);                                       \
        toy_kv__keep_less_avx512(a1, (float)((i) + 1), &least, &index);                                 \
        toy_kv__keep_less_avx512(a2, (float)((i) + 2), &least, &index);                                 \
        toy_kv__keep_less_avx512(a3, (float)((i) + 3), &least, &index);                                 \
    }

/* Inlined with a constant width. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__search_tile_avx512(const float *book, int width,
                                                         const float *tile, unsigned char *code)
{
    int t, w;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        const float *z = tile + t;
        toy_kv__vf_avx512 least = toy_kv__set1_avx512(3.4e38f), index = toy_kv__set1_avx512(0.0f);
        TOY_KV__FOUR(0)
        TOY_KV__FOUR(4)
        TOY_KV__FOUR(8)
        TOY_KV__FOUR(12)
        toy_kv__storeu8_avx512(code + t, index);
    }
}
#undef TOY_KV__FOUR

/* The nearest of 16 codewords, binary16 [width, 16], to each token of z [width, BLOCK], the lower
 * one on ties: a plane of nibbles. words: room for [width + 1, 16]. */
TOY_KV__TARGET_avx512 static void toy_kv__code_nibbles_avx512(const unsigned char *book, int width,
                                                    const float *z, float *words,
                                                    unsigned char *plane)
{
    unsigned char code[TOY_KV_BLOCK];
    toy_kv__vf_avx512 half = toy_kv__set1_avx512(0.5f), minus = toy_kv__set1_avx512(-1.0f);
    int i, w, t;
    for (i = 0; i < 16; i += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 norm = toy_kv__set1_avx512(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx512 c = toy_kv__loadh_avx512(book + 2 * (16 * w + i));
            norm = toy_kv__fma_avx512(toy_kv__mul_avx512(half, c), c, norm);
            toy_kv__store_avx512(words + 16 * (w + 1) + i, toy_kv__mul_avx512(minus, c));
        }
        toy_kv__store_avx512(words + i, norm);
    }
    switch (width) {
    case 1:
        toy_kv__search_tile_avx512(words, 1, z, code);
        break;
    case 2:
        toy_kv__search_tile_avx512(words, 2, z, code);
        break;
    case 4:
        toy_kv__search_tile_avx512(words, 4, z, code);
        break;
    default:
        toy_kv__search_tile_avx512(words, width, z, code);
    }
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 8) {
        uint64_t low, high;
        memcpy(&low, code + t, 8);
        memcpy(&high, code + TOY_KV_BLOCK / 2 + t, 8);
        low |= high << 4;
        memcpy(plane + t, &low, 8);
    }
}

/* z [width, BLOCK] -= the codewords of a plane of nibbles. */
TOY_KV__TARGET_avx512 static void toy_kv__leave_nibbles_avx512(const unsigned char *plane,
                                                     const unsigned char *book, int width, float *z)
{
    float words[16];
    int i, t, w;
    toy_kv__vf_avx512 minus = toy_kv__set1_avx512(-1.0f);
    for (w = 0; w < width; w++, z += TOY_KV_BLOCK) {
        toy_kv__vt_avx512 table;
        for (i = 0; i < 16; i += TOY_KV__LANES_avx512)
            toy_kv__store_avx512(words + i, toy_kv__loadh_avx512(book + 2 * (16 * w + i)));
        table = toy_kv__table_avx512(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512)
            toy_kv__store_avx512(
                z + t, toy_kv__fma_avx512(minus, toy_kv__lookup_avx512(table, toy_kv__nibbles_avx512(plane, t)),
                                     toy_kv__load_avx512(z + t)));
    }
}

/* sum [BLOCK]: of the squares of x [rows, BLOCK]. */
TOY_KV__TARGET_avx512 static void toy_kv__squares_avx512(const float *x, int rows, float *sum)
{
    int r, t, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_avx512(0.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_avx512 v = toy_kv__load_avx512(x + (size_t)(r + k) * TOY_KV_BLOCK + t);
                a[k] = toy_kv__fma_avx512(v, v, a[k]);
            }
        }
        for (; r < rows; r++) {
            toy_kv__vf_avx512 v = toy_kv__load_avx512(x + (size_t)r * TOY_KV_BLOCK + t);
            a[0] = toy_kv__fma_avx512(v, v, a[0]);
        }
        toy_kv__store_avx512(sum + t,
                        toy_kv__add_avx512(toy_kv__add_avx512(a[0], a[1]), toy_kv__add_avx512(a[2], a[3])));
    }
}

/* x [HEAD_DIM, BLOCK] from rows of binary16 [BLOCK, HEAD_DIM]. */
TOY_KV__TARGET_avx512 static void toy_kv__load_rows_avx512(const unsigned char *rows, float *x)
{
    unsigned char tile[8 * 2 * TOY_KV_BLOCK];
    int d, t, i;
    for (d = 0; d + 8 <= TOY_KV_HEAD_DIM; d += 8, x += 8 * TOY_KV_BLOCK) {
        for (t = 0; t < TOY_KV_BLOCK; t += 8)
            toy_kv__transpose_avx512(rows + 2 * (t * TOY_KV_HEAD_DIM + d), 2 * TOY_KV_HEAD_DIM, tile + 2 * t,
                                2 * TOY_KV_BLOCK);
        for (i = 0; i < 8 * TOY_KV_BLOCK; i += TOY_KV__LANES_avx512)
            toy_kv__store_avx512(x + i, toy_kv__loadh_avx512(tile + 2 * i));
    }
    for (; d < TOY_KV_HEAD_DIM; d++, x += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++)
            x[t] = toy_kv__half_at(rows, (size_t)(t * TOY_KV_HEAD_DIM + d));
}

/* A row of binary16 [n] from x [n]. */
TOY_KV__TARGET_avx512 static void toy_kv__store_row_avx512(const float *x, int n, unsigned char *row)
{
    int i = 0;
    for (; i + TOY_KV__LANES_avx512 <= n; i += TOY_KV__LANES_avx512)
        toy_kv__storeh_avx512(row + 2 * i, toy_kv__load_avx512(x + i));
    for (; i < n; i++)
        toy_kv__storeh_portable(row + 2 * i, x[i]);
}

/* Turns a head's vector x [HEAD_DIM] by cosines and sines, each [N_ROT / 2]. */
TOY_KV__TARGET_avx512 static void toy_kv__turn_row_avx512(const float *cosines, const float *sines, float *x)
{
    int i = 0, half = TOY_KV_N_ROT / 2;
    toy_kv__vf_avx512 minus = toy_kv__set1_avx512(-1.0f);
    for (; !TOY_KV_ROPE_INTERLEAVED && i + TOY_KV__LANES_avx512 <= half; i += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 c = toy_kv__load_avx512(cosines + i), s = toy_kv__load_avx512(sines + i);
        toy_kv__vf_avx512 a = toy_kv__load_avx512(x + i), b = toy_kv__load_avx512(x + half + i);
        toy_kv__store_avx512(x + i, toy_kv__fma_avx512(toy_kv__mul_avx512(minus, s), b, toy_kv__mul_avx512(c, a)));
        toy_kv__store_avx512(x + half + i, toy_kv__fma_avx512(s, a, toy_kv__mul_avx512(c, b)));
    }
    for (; i < half; i++) {
        float *first = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i);
        float *second = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + half);
        float a = *first, b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

#define TOY_KV__X(name) toy_kv__##name##_avx512,
static const toy_kv__code_ops toy_kv__code_avx512 = {TOY_KV__CODE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
TOY_KV__TARGET_avx512 static inline toy_kv__vf_avx512 toy_kv__entries_avx512(const toy_kv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? toy_kv__loads8_avx512(m->values + i) : toy_kv__loadh_avx512(m->values + 2 * i);
}

/* sum [n]: the sums over the lanes of x [n], n a constant, 4 at most; what stands behind is
 * anything.
 */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__lane_sums_avx512(const toy_kv__vf_avx512 *x, const int n,
                                                       float *sum)
{
    toy_kv__hsum4_avx512(x[0], x[n > 1 ? 1 : 0], x[n > 2 ? 2 : 0], x[n > 3 ? 3 : 0], sum);
}

/* Latents j .. j + m LANES - 1 of n queries x [n, ldx]: y [n, n_out]. n and m, 1 or 2: constants.
 */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__map_some_avx512(const toy_kv__matrix *table, const int bytes,
                                                      int n_in, int n_out, int j, const int m,
                                                      const float *x, int ldx, const int n,
                                                      float *y)
{
    const size_t next = m > 1 ? TOY_KV__LANES_avx512 : 0;
    toy_kv__vf_avx512 a[4], b[4], scale = toy_kv__set1_avx512(1.0f), more = scale;
    int d, k;
    if (bytes) {
        scale = toy_kv__loadh_avx512(table->scale + 2 * (size_t)j);
        more = toy_kv__loadh_avx512(table->scale + 2 * ((size_t)j + next));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = b[k] = toy_kv__set1_avx512(0.0f);
    for (d = 0; d < n_in; d++) {
        const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
        toy_kv__vf_avx512 u = toy_kv__entries_avx512(table, at, bytes);
        toy_kv__vf_avx512 v = m > 1 ? toy_kv__entries_avx512(table, at + next, bytes) : u;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx512 q = toy_kv__set1_avx512(x[k * ldx + d]);
            a[k] = toy_kv__fma_avx512(q, u, a[k]);
            if (m > 1)
                b[k] = toy_kv__fma_avx512(q, v, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = y + (size_t)k * (size_t)n_out + j;
        toy_kv__store_avx512(to, toy_kv__mul_avx512(scale, a[k]));
        if (m > 1)
            toy_kv__store_avx512(to + next, toy_kv__mul_avx512(more, b[k]));
    }
}

TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__map_entries_avx512(const toy_kv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_avx512(table, bytes, n_in, n_out, j, 2, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j + 2 * TOY_KV__LANES_avx512 <= n_out; j += 2 * TOY_KV__LANES_avx512)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_avx512(table, bytes, n_in, n_out, j, 1, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j < n_out && n_out >= TOY_KV__LANES_avx512; j += TOY_KV__LANES_avx512) {
        if (j + TOY_KV__LANES_avx512 > n_out) /* the last LANES, some of them once more */
            j = n_out - TOY_KV__LANES_avx512;
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
    for (; j < n_out; j++)
        for (r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (d = 0; d < n_in; d++)
                sum += x[(size_t)r * (size_t)ldx + (size_t)d] *
                       toy_kv__raw_at(table, (size_t)d * (size_t)n_out + (size_t)j);
            y[(size_t)r * (size_t)n_out + (size_t)j] =
                bytes ? sum * toy_kv__half_at(table->scale, (size_t)j) : sum;
        }
}

/* y [rows, n_out] = x [rows, n_in] * table [n_in, n_out]: the query map. */
TOY_KV__TARGET_avx512 static void toy_kv__map_avx512(toy_kv__matrix table, int n_in, int n_out, const float *x,
                                           int ldx, int rows, float *y)
{
    if (table.scale != NULL)
        toy_kv__map_entries_avx512(&table, 1, n_in, n_out, x, ldx, rows, y);
    else
        toy_kv__map_entries_avx512(&table, 0, n_in, n_out, x, ldx, rows, y);
}

/* Outputs that a pass of unmap holds sums of for four rows: as many as 32 registers hold, or 16. */
#define TOY_KV__UNMAPPED_avx512 (TOY_KV__LANES_avx512 >= 16 ? 4 : 2)

/* Outputs d .. d + m - 1 of n rows x [n, n_in], whose last LANES are `rest`, 0 where whole ones
 * end: o [n, n_out]. n_in: LANES at least. n, 4 at most, and m, 1, 2 or 4: constants; outputs share
 * what is loaded of x. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__unmap_some_avx512(const toy_kv__matrix *table, const int bytes,
                                                        int d, const int m, int n_in,
                                                        const float *x,
                                                        float (*rest)[TOY_KV__LANES_avx512], const int n,
                                                        float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in;
    const int whole = n_in / TOY_KV__LANES_avx512 * TOY_KV__LANES_avx512;
    toy_kv__vf_avx512 a[4][4]; /* [row][output] */
    float sum[4];
    int i, j, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            a[k][i] = toy_kv__set1_avx512(0.0f);
    for (j = 0; j < n_in; j += TOY_KV__LANES_avx512) {
        /* the last LANES, some of them once more, where no whole ones are left */
        const int last = j == whole, at = last ? n_in - TOY_KV__LANES_avx512 : j;
        toy_kv__vf_avx512 u[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            u[i] = toy_kv__entries_avx512(table, row + (size_t)(i * n_in + at), bytes);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx512 y = toy_kv__load_avx512(last ? rest[k] : x + k * n_in + j);
#pragma GCC unroll 4
            for (i = 0; i < m; i++)
                a[k][i] = toy_kv__fma_avx512(y, u[i], a[k][i]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = o + k * n_out + d;
        toy_kv__hsum4_avx512(a[k][0], a[k][1], a[k][2], a[k][3], sum);
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            to[i] += sum[i];
    }
}

/* All outputs of n rows. n: a constant. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__unmap_rows_avx512(const toy_kv__matrix *table, const int bytes,
                                                        int n_out, int n_in, const float *x,
                                                        float (*rest)[TOY_KV__LANES_avx512], const int n,
                                                        float *o)
{
    int d = 0;
    for (; d + TOY_KV__UNMAPPED_avx512 <= n_out; d += TOY_KV__UNMAPPED_avx512)
        toy_kv__unmap_some_avx512(table, bytes, d, TOY_KV__UNMAPPED_avx512, n_in, x, rest, n, o, n_out);
    for (; d < n_out; d++)
        toy_kv__unmap_some_avx512(table, bytes, d, 1, n_in, x, rest, n, o, n_out);
}

TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__unmap_entries_avx512(const toy_kv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[TOY_KV__MAX_ROWS][TOY_KV__LANES_avx512]; /* the last LANES of y, 0 where whole ones end */
    const int whole = n_in / TOY_KV__LANES_avx512 * TOY_KV__LANES_avx512;
    int r, j;
    if (n_in < TOY_KV__LANES_avx512) {
        toy_kv__unmap_short(table, n_out, n_in, y, rows, o);
        return;
    }
    memset(rest, 0, sizeof rest);
    for (r = 0; r < rows; r++) {
        const float *end = y + (size_t)(r + 1) * (size_t)n_in;
        for (j = whole - n_in; j < 0; j++)
            rest[r][TOY_KV__LANES_avx512 + j] = end[j];
    }
#define TOY_KV__X(n)                                                                                 \
    toy_kv__unmap_rows_avx512(table, bytes, n_out, n_in, y + (size_t)r * (size_t)n_in, rest + r, n,     \
                         o + r * n_out)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [rows, n] times scale [n], binary16. */
TOY_KV__TARGET_avx512 static inline void toy_kv__scale_latents_avx512(const unsigned char *scale, int n,
                                                            int rows, float *y)
{
    int r, j = 0;
    for (; j + TOY_KV__LANES_avx512 <= n; j += TOY_KV__LANES_avx512) {
        const toy_kv__vf_avx512 f = toy_kv__loadh_avx512(scale + 2 * j);
        for (r = 0; r < rows; r++) {
            float *x = y + (size_t)r * (size_t)n + j;
            toy_kv__store_avx512(x, toy_kv__mul_avx512(toy_kv__load_avx512(x), f));
        }
    }
    for (; j < n; j++) {
        const float f = toy_kv__half_at(scale, (size_t)j);
        for (r = 0; r < rows; r++)
            y[(size_t)r * (size_t)n + (size_t)j] *= f;
    }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
TOY_KV__TARGET_avx512 static void toy_kv__unmap_avx512(toy_kv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    if (table.scale == NULL) {
        toy_kv__unmap_entries_avx512(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    toy_kv__scale_latents_avx512(table.scale, n_in, rows, y);
    toy_kv__unmap_entries_avx512(&table, 1, n_out, n_in, y, rows, o);
}
/* Arithmetic on rows of numbers for one instruction set, in the vocabulary of kernels.h: gains and
 * softmax of scores, exact tokens, sums over lanes, angles. */

/* exp(x) for x <= 0, down to x = -87, where it stays: relative error below 2e-7 near 0 and below
 * 6e-8 |x| elsewhere, so that no sum of them errs by more than the first. A polynomial for 2^r with
 * the least relative error on [-1/2, 1/2], its terms in pairs: what waits for operands fills the
 * processor's queues, so that a long chain is slower than one product more. */
TOY_KV__TARGET_avx512 static inline toy_kv__vf_avx512 toy_kv__exp_avx512(toy_kv__vf_avx512 x)
{
    toy_kv__vf_avx512 n, r, square, low, high;
    x = toy_kv__mul_avx512(toy_kv__max_avx512(x, toy_kv__set1_avx512(-87.0f)), toy_kv__set1_avx512(1.44269504f));
    n = toy_kv__round_avx512(x);
    r = toy_kv__sub_avx512(x, n);
    square = toy_kv__mul_avx512(r, r);
    low = toy_kv__fma_avx512(toy_kv__set1_avx512(0.693147004f), r, toy_kv__set1_avx512(1.0f));
    high = toy_kv__fma_avx512(toy_kv__set1_avx512(0.0555073358f), r, toy_kv__set1_avx512(0.240222424f));
    x = toy_kv__fma_avx512(toy_kv__set1_avx512(0.00132647273f), r, toy_kv__set1_avx512(0.00967151299f));
    high = toy_kv__fma_avx512(x, square, high);
    low = toy_kv__fma_avx512(high, square, low);
    return toy_kv__scale2_avx512(low, n);
}

/* dst [rows, BLOCK] = gain [BLOCK] * src [rows, BLOCK] */
TOY_KV__TARGET_avx512 static void toy_kv__scale_rows_avx512(const float *gain, const float *src, int rows,
                                                  float *dst)
{
    int r, t;
    for (r = 0; r < rows; r++)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
            int i = r * TOY_KV_BLOCK + t;
            toy_kv__store_avx512(dst + i,
                            toy_kv__mul_avx512(toy_kv__load_avx512(gain + t), toy_kv__load_avx512(src + i)));
        }
}

/* s [rows, BLOCK] = (bias [rows], or s if NULL) + gain [BLOCK] * part [rows, BLOCK]; high [rows,
 * LANES], if not NULL, rises to the highest of each lane. */
TOY_KV__TARGET_avx512 static void toy_kv__gain_scores_avx512(const float *gain, const float *part,
                                                   const float *bias, int rows, float *s,
                                                   float *high)
{
    int r, t;
    for (r = 0; r < rows; r++, part += TOY_KV_BLOCK, s += TOY_KV_BLOCK) {
        const toy_kv__vf_avx512 base = toy_kv__set1_avx512(bias != NULL ? bias[r] : 0.0f);
        toy_kv__vf_avx512 top = toy_kv__set1_avx512(TOY_KV__MASKED);
#pragma GCC unroll 4
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
            toy_kv__vf_avx512 x = toy_kv__fma_avx512(toy_kv__load_avx512(gain + t), toy_kv__load_avx512(part + t),
                                           bias != NULL ? base : toy_kv__load_avx512(s + t));
            toy_kv__store_avx512(s + t, x);
            top = toy_kv__max_avx512(top, x);
        }
        if (high != NULL)
            toy_kv__store_avx512(high + r * TOY_KV__LANES_avx512,
                            toy_kv__max_avx512(top, toy_kv__load_avx512(high + r * TOY_KV__LANES_avx512)));
    }
}

/* gain [BLOCK]: binary16 at p, or where there is a table its entries at the bytes at p. */
TOY_KV__TARGET_avx512 static void toy_kv__gains_avx512(const unsigned char *p, const unsigned char *table,
                                             float *gain)
{
    int t;
    for (t = 0; t < TOY_KV_BLOCK && table != NULL; t += TOY_KV__GATHERED_avx512)
        toy_kv__gather_avx512(table, p + t, gain + t);
    for (t = 0; t < TOY_KV_BLOCK && table == NULL; t += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(gain + t, toy_kv__loadh_avx512(p + 2 * t));
}

/* y [n] += x * table row, binary16 [n] */
TOY_KV__TARGET_avx512 static void toy_kv__add_row_avx512(const unsigned char *row, int n, float x, float *y)
{
    int j = 0;
    toy_kv__vf_avx512 xs = toy_kv__set1_avx512(x);
    for (; j + TOY_KV__LANES_avx512 <= n; j += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(y + j,
                        toy_kv__fma_avx512(xs, toy_kv__loadh_avx512(row + 2 * j), toy_kv__load_avx512(y + j)));
    for (; j < n; j++)
        y[j] += x * toy_kv__half_at(row, (size_t)j);
}

/* x . table row, binary16 [n] */
TOY_KV__TARGET_avx512 static float toy_kv__dot_row_avx512(const unsigned char *row, int n, const float *x)
{
    int j = 0;
    float sum;
    toy_kv__vf_avx512 a = toy_kv__set1_avx512(0.0f);
    for (; j + TOY_KV__LANES_avx512 <= n; j += TOY_KV__LANES_avx512)
        a = toy_kv__fma_avx512(toy_kv__load_avx512(x + j), toy_kv__loadh_avx512(row + 2 * j), a);
    sum = toy_kv__hsum_avx512(a);
    for (; j < n; j++)
        sum += x[j] * toy_kv__half_at(row, (size_t)j);
    return sum;
}

/* The largest of s, BLOCK numbers in each of `blocks` blocks `step` apart. */
TOY_KV__TARGET_avx512 static float toy_kv__largest_avx512(const float *s, int blocks, size_t step)
{
    int b, t;
    toy_kv__vf_avx512 high = toy_kv__load_avx512(s);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512)
            high = toy_kv__max_avx512(high, toy_kv__load_avx512(s + t));
    return toy_kv__hmax_avx512(high);
}

/* The same numbers become exp(s - m); returns their sum. */
TOY_KV__TARGET_avx512 static float toy_kv__exponentials_avx512(float *s, int blocks, size_t step, float m)
{
    int b, t;
    toy_kv__vf_avx512 shift = toy_kv__set1_avx512(-m), sum = toy_kv__set1_avx512(0.0f);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
            toy_kv__vf_avx512 e = toy_kv__exp_avx512(toy_kv__add_avx512(toy_kv__load_avx512(s + t), shift));
            toy_kv__store_avx512(s + t, e);
            sum = toy_kv__add_avx512(sum, e);
        }
    return toy_kv__hsum_avx512(sum);
}

/* s [n, BLOCK] at token 0 = q [n, HEAD_DIM] . k, and at `next` tokens on = q . l, which may be k.
 * n: a constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__exact_pair_avx512(const unsigned char *k,
                                                        const unsigned char *l, const float *q,
                                                        const int n, int next, float *s)
{
    toy_kv__vf_avx512 a[4], b[4];
    float sum[2][4];
    int d, i;
#pragma GCC unroll 4
    for (i = 0; i < n; i++)
        a[i] = b[i] = toy_kv__set1_avx512(0.0f);
    for (d = 0; d + TOY_KV__LANES_avx512 <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 x = toy_kv__loadh_avx512(k + 2 * d), y = toy_kv__loadh_avx512(l + 2 * d);
#pragma GCC unroll 4
        for (i = 0; i < n; i++) {
            toy_kv__vf_avx512 query = toy_kv__load_avx512(q + i * TOY_KV_HEAD_DIM + d);
            a[i] = toy_kv__fma_avx512(query, x, a[i]);
            b[i] = toy_kv__fma_avx512(query, y, b[i]);
        }
    }
    toy_kv__lane_sums_avx512(a, n, sum[0]);
    toy_kv__lane_sums_avx512(b, n, sum[1]);
    for (; d < TOY_KV_HEAD_DIM; d++) {
        float x = toy_kv__half_at(k, (size_t)d), y = toy_kv__half_at(l, (size_t)d);
        for (i = 0; i < n; i++) {
            sum[0][i] += q[i * TOY_KV_HEAD_DIM + d] * x;
            sum[1][i] += q[i * TOY_KV_HEAD_DIM + d] * y;
        }
    }
#pragma GCC unroll 4
    for (i = 0; i < n; i++) {
        s[i * TOY_KV_BLOCK] = sum[0][i];
        s[i * TOY_KV_BLOCK + next] = sum[1][i];
    }
}

/* s [rows, BLOCK] = q [rows, HEAD_DIM] . the n rows of k, binary16 [n, HEAD_DIM]: exact tokens, two
 * at a time. */
TOY_KV__TARGET_avx512 static void toy_kv__exact_scores_avx512(const unsigned char *k, int n, const float *q,
                                                    int rows, float *s)
{
    int t, r;
    for (t = 0; t < n; t += 2) {
        const unsigned char *x = k + 2 * (size_t)t * TOY_KV_HEAD_DIM;
        int next = t + 1 < n;
        const unsigned char *y = x + 2 * next * TOY_KV_HEAD_DIM;
#define TOY_KV__X(n_rows)                                                                            \
    toy_kv__exact_pair_avx512(x, y, q + r * TOY_KV_HEAD_DIM, n_rows, next, s + r * TOY_KV_BLOCK + t)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* o [m, HEAD_DIM] += p [m, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. m: a constant, 4
 * at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__exact_add_avx512(const unsigned char *v, int n,
                                                       const float *p, const int m, float *o)
{
    int t, i, d;
    for (d = 0; d + 2 * TOY_KV__LANES_avx512 <= TOY_KV_HEAD_DIM; d += 2 * TOY_KV__LANES_avx512) {
        float *dst = o + d, *next = dst + TOY_KV__LANES_avx512;
        toy_kv__vf_avx512 a[4], b[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            a[i] = toy_kv__load_avx512(dst + i * TOY_KV_HEAD_DIM);
            b[i] = toy_kv__load_avx512(next + i * TOY_KV_HEAD_DIM);
        }
        for (t = 0; t < n; t++) {
            const unsigned char *row = v + 2 * ((size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            toy_kv__vf_avx512 x = toy_kv__loadh_avx512(row), y = toy_kv__loadh_avx512(row + 2 * TOY_KV__LANES_avx512);
#pragma GCC unroll 4
            for (i = 0; i < m; i++) {
                toy_kv__vf_avx512 w = toy_kv__set1_avx512(p[i * TOY_KV_BLOCK + t]);
                a[i] = toy_kv__fma_avx512(w, x, a[i]);
                b[i] = toy_kv__fma_avx512(w, y, b[i]);
            }
        }
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            toy_kv__store_avx512(dst + i * TOY_KV_HEAD_DIM, a[i]);
            toy_kv__store_avx512(next + i * TOY_KV_HEAD_DIM, b[i]);
        }
    }
    for (; d < TOY_KV_HEAD_DIM; d++)
        for (t = 0; t < n; t++) {
            float x = toy_kv__half_at(v, (size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            for (i = 0; i < m; i++)
                o[i * TOY_KV_HEAD_DIM + d] += p[i * TOY_KV_BLOCK + t] * x;
        }
}

/* o [rows, HEAD_DIM] += p [rows, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. */
TOY_KV__TARGET_avx512 static void toy_kv__exact_sums_avx512(const unsigned char *v, int n, const float *p,
                                                  int rows, float *o)
{
    int r;
#define TOY_KV__X(n_rows) toy_kv__exact_add_avx512(v, n, p + r * TOY_KV_BLOCK, n_rows, o + r * TOY_KV_HEAD_DIM)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [n] = sums over the lanes of acc [n, LANES] */
TOY_KV__TARGET_avx512 static void toy_kv__reduce_avx512(const float *acc, int n, float *y)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        const float *four = acc + (size_t)i * TOY_KV__LANES_avx512;
        toy_kv__hsum4_avx512(toy_kv__load_avx512(four), toy_kv__load_avx512(four + TOY_KV__LANES_avx512),
                        toy_kv__load_avx512(four + 2 * TOY_KV__LANES_avx512),
                        toy_kv__load_avx512(four + 3 * TOY_KV__LANES_avx512), y + i);
    }
    for (; i < n; i++)
        y[i] = toy_kv__hsum_avx512(toy_kv__load_avx512(acc + (size_t)i * TOY_KV__LANES_avx512));
}

/* x [n] *= factor */
TOY_KV__TARGET_avx512 static void toy_kv__shrink_avx512(float *x, size_t n, float factor)
{
    size_t i;
    toy_kv__vf_avx512 f = toy_kv__set1_avx512(factor);
    for (i = 0; i + TOY_KV__LANES_avx512 <= n; i += TOY_KV__LANES_avx512)
        toy_kv__store_avx512(x + i, toy_kv__mul_avx512(toy_kv__load_avx512(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

/* c, s [n]: cosines and sines of angles, which grow by those of dc, ds [n]. */
TOY_KV__TARGET_avx512 static void toy_kv__turn_on_avx512(const float *dc, const float *ds, int n, float *c,
                                               float *s)
{
    int i;
    for (i = 0; i + TOY_KV__LANES_avx512 <= n; i += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 x = toy_kv__load_avx512(c + i), y = toy_kv__load_avx512(s + i);
        toy_kv__vf_avx512 u = toy_kv__load_avx512(dc + i), v = toy_kv__load_avx512(ds + i);
        toy_kv__store_avx512(c + i, toy_kv__sub_avx512(toy_kv__mul_avx512(x, u), toy_kv__mul_avx512(y, v)));
        toy_kv__store_avx512(s + i, toy_kv__fma_avx512(y, u, toy_kv__mul_avx512(x, v)));
    }
    for (; i < n; i++) {
        float x = c[i], y = s[i];
        c[i] = x * dc[i] - y * ds[i];
        s[i] = y * dc[i] + x * ds[i];
    }
}
/* Kernels for one instruction set, in terms of its vector vocabulary:
 *
 *   vf: LANES floats    set1 load store loadh (from binary16) loadu8 loads8 (from bytes) add sub
 *                       mul fma max round scale2 (x * 2^n, n integral) hsum hmax
 *   vi: LANES codes     nibbles(plane, t): the 4-bit codes of tokens t .. t + LANES - 1
 *   vt: sixteen floats  table(p), lookup(table, codes)
 *   gather(table, bytes, x): binary16 values of a table at GATHERED byte codes
 *
 * A plane holds one code of each token of a block: the low nibbles are tokens 0 .. BLOCK/2 - 1, the
 * high nibbles the rest. Rows are queries that share one pass over the codes; kernels take them
 * four at a time, so that a plane is unpacked once for four queries. */

/* s [n, BLOCK] += sum over planes of lut [planes, step] at each token's code, n tables of sixteen
 * from the first on. n: a constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__score_some_avx512(const unsigned char *codes, int planes,
                                                        const float *lut, size_t step, const int n,
                                                        float *s)
{
    int t, p, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__load_avx512(s + k * TOY_KV_BLOCK + t);
        for (p = 0; p < planes; p++) {
            toy_kv__vi_avx512 code = toy_kv__nibbles_avx512(codes + p * (TOY_KV_BLOCK / 2), t);
            const float *tab = lut + (size_t)p * step;
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__add_avx512(a[k], toy_kv__lookup_avx512(toy_kv__table_avx512(tab + k * 16), code));
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_avx512(s + k * TOY_KV_BLOCK + t, a[k]);
    }
}

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
TOY_KV__TARGET_avx512 static void toy_kv__score_nibbles_avx512(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_some_avx512(codes, planes, lut + r * 16, (size_t)rows * 16, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times the codewords of one
 * channel. n: a constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__sum_some_avx512(const unsigned char *plane, const float *book,
                                                      const float *p, const int n, float *acc,
                                                      size_t stride)
{
    const toy_kv__vt_avx512 table = toy_kv__table_avx512(book);
    toy_kv__vf_avx512 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 v = toy_kv__lookup_avx512(table, toy_kv__nibbles_avx512(plane, t));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx512(toy_kv__load_avx512(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512, a[k]);
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
TOY_KV__TARGET_avx512 static void toy_kv__sum_nibbles_avx512(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, i, w;
    for (i = 0; i < planes; i++, codes += TOY_KV_BLOCK / 2)
        for (w = 0; w < width; w++, book += 16) {
            float *to = acc + (size_t)(i / stages * width + w) * TOY_KV__LANES_avx512;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_some_avx512(codes, book, p + r * TOY_KV_BLOCK, n,                                         \
                       to + (size_t)r * stride * TOY_KV__LANES_avx512, stride)
            TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
        }
}

/* Values of tokens t and on of a plane of one channel. `half`: binary16, two bytes a token; else a
 * byte a token whose value is code - 128. */
TOY_KV__TARGET_avx512 static inline toy_kv__vf_avx512 toy_kv__scalars_avx512(const unsigned char *plane, int t,
                                                              int half)
{
    return half ? toy_kv__loadh_avx512(plane + 2 * t)
                : toy_kv__add_avx512(toy_kv__loadu8_avx512(plane + t), toy_kv__set1_avx512(-128.0f));
}

/* s [n, BLOCK] at tokens t .. t + 2 LANES - 1 += q [planes, step] * value. n: a constant, 4 at
 * most. asked: NULL, or what is asked for meanwhile. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__score_values_avx512(const unsigned char *codes, int planes,
                                                          int half, int t, const float *q,
                                                          size_t step, const int n,
                                                          toy_kv__asked *asked, float *s)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    toy_kv__vf_avx512 a[4], b[4];
    int c, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        a[k] = toy_kv__load_avx512(s + k * TOY_KV_BLOCK + t);
        b[k] = toy_kv__load_avx512(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_avx512);
    }
    for (c = 0; c < planes; c++, codes += bytes, q += step) {
        toy_kv__vf_avx512 v = toy_kv__scalars_avx512(codes, t, half);
        toy_kv__vf_avx512 w = toy_kv__scalars_avx512(codes, t + TOY_KV__LANES_avx512, half);
        if (TOY_KV__LANES_avx512 >= 8 && asked != NULL)
            toy_kv__ask(asked);
        if (TOY_KV__LANES_avx512 >= 16 && half && asked != NULL)
            toy_kv__ask(asked);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_avx512 x = toy_kv__set1_avx512(q[k]);
            a[k] = toy_kv__fma_avx512(x, v, a[k]);
            b[k] = toy_kv__fma_avx512(x, w, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        toy_kv__store_avx512(s + k * TOY_KV_BLOCK + t, a[k]);
        toy_kv__store_avx512(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_avx512, b[k]);
    }
}

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. With four rows or more, as many
 * lines are asked for as a block of keys has together with one of values. */
TOY_KV__TARGET_avx512 static void toy_kv__score_scalars_avx512(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r, t;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_values_avx512(codes, planes, half, t, q + r, (size_t)rows, n,                         \
                           n == 4 && r == 0 ? &asked : NULL, s + r * TOY_KV_BLOCK)
    for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_avx512)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times a plane's values. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__sum_values_avx512(const unsigned char *plane, int half,
                                                        const float *p, const int n, float *acc,
                                                        size_t stride)
{
    toy_kv__vf_avx512 a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 v = toy_kv__scalars_avx512(plane, t, half);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_avx512(toy_kv__load_avx512(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_avx512(acc + (size_t)k * stride * TOY_KV__LANES_avx512, a[k]);
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
TOY_KV__TARGET_avx512 static void toy_kv__sum_scalars_avx512(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    int r, c;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_values_avx512(codes, half, p + r * TOY_KV_BLOCK, n,                                       \
                         acc + (size_t)r * stride * TOY_KV__LANES_avx512, stride)
    for (c = 0; c < planes; c++, codes += bytes, acc += TOY_KV__LANES_avx512)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* lut [n, 16]: the scores of codewords with the queries y [n, stride] of a plane's channels. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_avx512 TOY_KV__INLINE void toy_kv__fill_some_avx512(const unsigned char *book, int width,
                                                       const float *y, size_t stride, const int n,
                                                       float *lut)
{
    int i, w, k;
    for (i = 0; i < 16; i += TOY_KV__LANES_avx512) {
        toy_kv__vf_avx512 a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__set1_avx512(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_avx512 b = toy_kv__loadh_avx512(book + 2 * (w * 16 + i));
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__fma_avx512(toy_kv__set1_avx512(y[(size_t)k * stride + (size_t)w]), b, a[k]);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_avx512(lut + k * 16 + i, a[k]);
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
TOY_KV__TARGET_avx512 static void toy_kv__fill_tables_avx512(const toy_kv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = toy_kv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
#define TOY_KV__X(n)                                                                                 \
    toy_kv__fill_some_avx512(book, run->width, q + (size_t)r * stride, stride, n, lut + r * 16)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
TOY_KV__TARGET_avx512 static int toy_kv__nearest_wide_avx512(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * TOY_KV__LANES_avx512 };
    const toy_kv__vf_avx512 one = toy_kv__set1_avx512(-1.0f);
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
        toy_kv__vf_avx512 a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_avx512(0.0f);
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            toy_kv__vf_avx512 minus = toy_kv__set1_avx512(-z[w]);
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_avx512 d =
                    toy_kv__add_avx512(toy_kv__loadh_avx512(row + 2 * k * TOY_KV__LANES_avx512), minus);
                a[k] = toy_kv__fma_avx512(d, toy_kv__mul_avx512(d, one), a[k]);
            }
        }
        if (!(toy_kv__hmax_avx512(toy_kv__max_avx512(toy_kv__max_avx512(a[0], a[1]), toy_kv__max_avx512(a[2], a[3]))) >
              top))
            continue;
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            toy_kv__store_avx512(negative + k * TOY_KV__LANES_avx512, a[k]);
        for (k = 0; k < STEP; k++)
            if (negative[k] > top) {
                top = negative[k];
                best = i + k;
            }
    }
    for (; i < n; i++) {
        float sum = 0.0f;
        for (w = 0; w < width; w++) {
            float d = z[w] - toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i);
            sum -= d * d;
        }
        if (sum > top) {
            top = sum;
            best = i;
        }
    }
    return best;
}

#define TOY_KV__X(name) toy_kv__##name##_avx512,
static const toy_kv__ops toy_kv__ops_avx512 = {TOY_KV__LANES_avx512, TOY_KV__KERNELS(TOY_KV__X) TOY_KV__BYTE_OPS_avx512,
                                        &toy_kv__dense_avx512, &toy_kv__code_avx512};
#undef TOY_KV__X
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#endif

#ifdef TOY_KV__ARM
/* Vector vocabulary, NEON (AArch64): four lanes. See kernels.h. */
#define TOY_KV__GATHERED_neon 4
#define TOY_KV__LANES_neon    4
#define TOY_KV__BYTE_OPS_neon NULL
#define TOY_KV__TARGET_neon
/* Outputs that a pass of dense.h holds sums of. */
#define TOY_KV__N_OUTS_neon      8
#define TOY_KV__OUTS_neon(X)     X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define TOY_KV__REST_neon(X, of) X(4, of) X(5, of) X(6, of) X(7, of)
typedef float32x4_t toy_kv__vf_neon;
typedef uint32x4_t toy_kv__vi_neon;
typedef uint8x16x4_t toy_kv__vt_neon; /* sixteen floats as the bytes of four registers */

static inline float32x4_t toy_kv__set1_neon(float x)
{
    return vdupq_n_f32(x);
}
static inline float32x4_t toy_kv__load_neon(const float *p)
{
    return vld1q_f32(p);
}
static inline void toy_kv__store_neon(float *p, float32x4_t x)
{
    vst1q_f32(p, x);
}
static inline float32x4_t toy_kv__loadh_neon(const unsigned char *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
static inline float32x4_t toy_kv__loadu8_neon(const unsigned char *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}
static inline float32x4_t toy_kv__loads8_neon(const unsigned char *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
static inline float32x4_t toy_kv__add_neon(float32x4_t a, float32x4_t b)
{
    return vaddq_f32(a, b);
}
static inline float32x4_t toy_kv__sub_neon(float32x4_t a, float32x4_t b)
{
    return vsubq_f32(a, b);
}
static inline float32x4_t toy_kv__mul_neon(float32x4_t a, float32x4_t b)
{
    return vmulq_f32(a, b);
}
static inline float32x4_t toy_kv__fma_neon(float32x4_t a, float32x4_t b, float32x4_t c)
{
    return vfmaq_f32(c, a, b);
}
static inline float32x4_t toy_kv__max_neon(float32x4_t a, float32x4_t b)
{
    return vmaxq_f32(a, b);
}
static inline float32x4_t toy_kv__round_neon(float32x4_t x)
{
    return vrndnq_f32(x);
}
static inline float32x4_t toy_kv__scale2_neon(float32x4_t x, float32x4_t n)
{
    return vmulq_f32(
        x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
static inline float toy_kv__hsum_neon(float32x4_t x)
{
    return vaddvq_f32(x);
}
static inline void toy_kv__hsum4_neon(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d,
                                    float *sum)
{
    vst1q_f32(sum, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
static inline float toy_kv__hmax_neon(float32x4_t x)
{
    return vmaxvq_f32(x);
}
static inline uint8x16x4_t toy_kv__table_neon(const float *p)
{
    uint8x16x4_t t;
    t.val[0] = vreinterpretq_u8_f32(vld1q_f32(p));
    t.val[1] = vreinterpretq_u8_f32(vld1q_f32(p + 4));
    t.val[2] = vreinterpretq_u8_f32(vld1q_f32(p + 8));
    t.val[3] = vreinterpretq_u8_f32(vld1q_f32(p + 12));
    return t;
}
/* Byte positions 4 c .. 4 c + 3 of code c's float, for a byte table lookup. */
static inline uint32x4_t toy_kv__nibbles_neon(const unsigned char *plane, int t)
{
    uint32_t four;
    uint32x4_t code;
    memcpy(&four, plane + t % (TOY_KV_BLOCK / 2), 4);
    if (t >= TOY_KV_BLOCK / 2)
        four >>= 4;
    four &= 0x0f0f0f0fu;
    code = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    return vmlaq_n_u32(vdupq_n_u32(0x03020100u), code, 0x04040404u);
}
static inline float32x4_t toy_kv__lookup_neon(uint8x16x4_t table, uint32x4_t index)
{
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(index)));
}
static inline void toy_kv__gather_neon(const unsigned char *table, const unsigned char *codes,
                                     float *x)
{
    uint16_t h[4];
    int i;
    for (i = 0; i < 4; i++)
        memcpy(&h[i], table + 2 * (size_t)codes[i], 2);
    vst1q_f32(x, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h))));
}
static inline void toy_kv__storeu8_neon(unsigned char *p, float32x4_t x)
{
    uint16x4_t words = vmovn_u32(vcvtq_u32_f32(x));
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &four, 4);
}
static inline void toy_kv__storeh_neon(unsigned char *p, float32x4_t x)
{
    x = vmaxnmq_f32(vminnmq_f32(x, vdupq_n_f32(65504.0f)), vdupq_n_f32(-65504.0f));
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
static inline void toy_kv__keep_less_neon(float32x4_t x, float i, float32x4_t *least,
                                        float32x4_t *index)
{
    *index = vbslq_f32(vcltq_f32(x, *least), vdupq_n_f32(i), *index);
    *least = vminq_f32(x, *least);
}
static inline void toy_kv__transpose_neon(const unsigned char *src, size_t src_step,
                                        unsigned char *dst, size_t dst_step)
{
    uint32x4_t row[8];
    int i, j;
    for (i = 0; i < 8; i += 2, src += 2 * src_step) {
        uint16x8_t a = vreinterpretq_u16_u8(vld1q_u8(src));
        uint16x8_t b = vreinterpretq_u16_u8(vld1q_u8(src + src_step));
        row[i] = vreinterpretq_u32_u16(vzip1q_u16(a, b));
        row[i + 1] = vreinterpretq_u32_u16(vzip2q_u16(a, b));
    }
    for (i = 0; i < 2; i++) /* columns 4 i .. 4 i + 3: rows 0 .. 3, then 4 .. 7 */
        for (j = 0; j < 2; j++, dst += 2 * dst_step) {
            uint32x4_t low =
                j == 0 ? vzip1q_u32(row[i], row[i + 2]) : vzip2q_u32(row[i], row[i + 2]);
            uint32x4_t high =
                j == 0 ? vzip1q_u32(row[i + 4], row[i + 6]) : vzip2q_u32(row[i + 4], row[i + 6]);
            uint64x2_t a = vreinterpretq_u64_u32(low), b = vreinterpretq_u64_u32(high);
            vst1q_u8(dst, vreinterpretq_u8_u64(vzip1q_u64(a, b)));
            vst1q_u8(dst + dst_step, vreinterpretq_u8_u64(vzip2q_u64(a, b)));
        }
}
/* Kernels over rebuilt tiles, and landmarks, for one instruction set, in the vocabulary of
 * kernels.h. A tile is [channels, BLOCK]: what is done to one token is done to LANES of them at
 * once, and no kernel over tiles adds up across lanes. Sizes of tables may be any; BLOCK is a
 * multiple of the lanes. */

/* Inputs and outputs that are unpacked to fp32 at a time. */
enum { TOY_KV__DEPTH_neon = 128, TOY_KV__STRIP_neon = 16 };

/* The second vector of tokens that a pass holds; the first one again where a block has no other. */
enum { TOY_KV__NEXT_neon = TOY_KV_BLOCK > TOY_KV__LANES_neon ? TOY_KV__LANES_neon : 0 };

/* y [m, BLOCK] += x [n, BLOCK] by m outputs' coefficients, OUTS at most, at coef[i * of_in + k *
 * of_out]. A macro, so that both strides are constants. Two vectors of tokens and OUTS outputs are
 * as many sums as registers hold: a coefficient is loaded once for both. */
#define TOY_KV__OUTPUTS(name, of_in, of_out)                                                         \
    TOY_KV__TARGET_neon static void name(const float *coef, int n, int m, const float *x, float *y)   \
    {                                                                                              \
        int i, t;                                                                                  \
        for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_neon) {                                    \
            const float *c = coef, *src = x + t;                                                   \
            float *dst = y + t;                                                                    \
            TOY_KV__OUTS_neon(TOY_KV__ZERO)                                                             \
            for (i = 0; i < n; i++, c += (of_in), src += TOY_KV_BLOCK) {                             \
                toy_kv__vf_neon v = toy_kv__load_neon(src), w = toy_kv__load_neon(src + TOY_KV__NEXT_neon), f; \
                TOY_KV__STEP(0, of_out)                                                              \
                TOY_KV__STEP(1, of_out)                                                              \
                TOY_KV__STEP(2, of_out)                                                              \
                TOY_KV__STEP(3, of_out)                                                              \
                TOY_KV__REST_neon(TOY_KV__STEP, of_out)                                                 \
            }                                                                                      \
            TOY_KV__OUTS_neon(TOY_KV__KEEP)                                                             \
        }                                                                                          \
    }
#define TOY_KV__ZERO(k) toy_kv__vf_neon a##k = toy_kv__set1_neon(0.0f), b##k = a##k;
#define TOY_KV__STEP(k, of_out)                                                                      \
    f = toy_kv__set1_neon(c[(k) * (of_out)]);                                                         \
    a##k = toy_kv__fma_neon(f, v, a##k);                                                              \
    b##k = toy_kv__fma_neon(f, w, b##k);
#define TOY_KV__KEEP(k)                                                                              \
    if (k < m) {                                                                                   \
        float *row = dst + k * TOY_KV_BLOCK;                                                         \
        b##k = toy_kv__add_neon(toy_kv__load_neon(row + TOY_KV__NEXT_neon), b##k);                          \
        toy_kv__store_neon(row, toy_kv__add_neon(toy_kv__load_neon(row), a##k));                            \
        toy_kv__store_neon(row + TOY_KV__NEXT_neon, b##k);                                               \
    }
TOY_KV__OUTPUTS(toy_kv__outputs_down_neon, TOY_KV__STRIP_neon, 1)
TOY_KV__OUTPUTS(toy_kv__outputs_across_neon, 1, TOY_KV__DEPTH_neon)
#undef TOY_KV__OUTPUTS
#undef TOY_KV__ZERO
#undef TOY_KV__STEP
#undef TOY_KV__KEEP

/* x [n] of fp32 from binary16. */
TOY_KV__TARGET_neon static inline void toy_kv__widen_neon(const unsigned char *row, int n, float *x)
{
    int j = 0;
    for (; j + TOY_KV__LANES_neon <= n; j += TOY_KV__LANES_neon)
        toy_kv__store_neon(x + j, toy_kv__loadh_neon(row + 2 * j));
    for (; j < n; j++)
        x[j] = toy_kv__half_at(row, (size_t)j);
}

/* x [n] of fp32 from entries of a table: the i-th on, the first of them in column `col`. */
TOY_KV__TARGET_neon static inline void toy_kv__unpack_neon(const toy_kv__matrix *m, size_t i, size_t col,
                                                     int n, float *x)
{
    int j = 0;
    if (m->scale == NULL) {
        toy_kv__widen_neon(m->values + 2 * i, n, x);
        return;
    }
    for (; j + TOY_KV__LANES_neon <= n; j += TOY_KV__LANES_neon)
        toy_kv__store_neon(x + j, toy_kv__mul_neon(toy_kv__loads8_neon(m->values + i + j),
                                             toy_kv__loadh_neon(m->scale + 2 * (col + (size_t)j))));
    for (; j < n; j++)
        x[j] = toy_kv__raw_at(m, i + (size_t)j) * toy_kv__half_at(m->scale, col + (size_t)j);
}

TOY_KV__TARGET_neon static void toy_kv__product_neon(toy_kv__matrix table, size_t ld, int across, int n_in,
                                               int n_out, const float *x, float *y)
{
    float coef[TOY_KV__STRIP_neon * TOY_KV__DEPTH_neon];
    int i, o, k, first;
    memset(coef, 0, sizeof coef);
    for (o = 0; o < n_out; o += TOY_KV__STRIP_neon)
        for (first = 0; first < n_in; first += TOY_KV__DEPTH_neon) {
            int m = n_out - o < TOY_KV__STRIP_neon ? n_out - o : TOY_KV__STRIP_neon;
            int n = n_in - first < TOY_KV__DEPTH_neon ? n_in - first : TOY_KV__DEPTH_neon;
            const float *src = x + (size_t)first * TOY_KV_BLOCK;
            for (k = 0; k < m && across; k++)
                toy_kv__unpack_neon(&table, (size_t)(o + k) * ld + (size_t)first, (size_t)first, n,
                                 coef + k * TOY_KV__DEPTH_neon);
            for (i = 0; i < n && !across; i++)
                toy_kv__unpack_neon(&table, (size_t)(first + i) * ld + (size_t)o, (size_t)o, m,
                                 coef + i * TOY_KV__STRIP_neon);
            for (k = 0; k < m; k += TOY_KV__N_OUTS_neon) {
                float *dst = y + (size_t)(o + k) * TOY_KV_BLOCK;
                if (across)
                    toy_kv__outputs_across_neon(coef + k * TOY_KV__DEPTH_neon, n, m - k, src, dst);
                else
                    toy_kv__outputs_down_neon(coef + k, n, m - k, src, dst);
            }
        }
}

TOY_KV__TARGET_neon static void toy_kv__add_scaled_neon(size_t n, float a, const float *x, float *y)
{
    size_t i;
    toy_kv__vf_neon factor = toy_kv__set1_neon(a);
    for (i = 0; i < n; i += TOY_KV__LANES_neon)
        toy_kv__store_neon(y + i, toy_kv__fma_neon(factor, toy_kv__load_neon(x + i), toy_kv__load_neon(y + i)));
}

TOY_KV__TARGET_neon static void toy_kv__affine_neon(const float *scale, const float *shift, int rows,
                                              float *x)
{
    int t, r;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a = toy_kv__load_neon(scale + t), b = toy_kv__load_neon(shift + t);
        float *p = x + t;
        for (r = 0; r < rows; r++, p += TOY_KV_BLOCK)
            toy_kv__store_neon(p, toy_kv__fma_neon(a, toy_kv__load_neon(p), b));
    }
}

TOY_KV__TARGET_neon static void toy_kv__affine_row_neon(int n, float scale, float shift, float *x)
{
    int i = 0;
    toy_kv__vf_neon a = toy_kv__set1_neon(scale), b = toy_kv__set1_neon(shift);
    for (; i + TOY_KV__LANES_neon <= n; i += TOY_KV__LANES_neon)
        toy_kv__store_neon(x + i, toy_kv__fma_neon(a, toy_kv__load_neon(x + i), b));
    for (; i < n; i++)
        x[i] = scale * x[i] + shift;
}

TOY_KV__TARGET_neon static void toy_kv__from_bytes_neon(const unsigned char *bytes, float bias,
                                                  float *dst)
{
    int t;
    toy_kv__vf_neon b = toy_kv__set1_neon(bias);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon)
        toy_kv__store_neon(dst + t, toy_kv__add_neon(toy_kv__loadu8_neon(bytes + t), b));
}

TOY_KV__TARGET_neon static void toy_kv__from_nibbles_neon(const unsigned char *plane,
                                                    const unsigned char *book, int width, int add,
                                                    float *dst)
{
    float words[16];
    int t, w;
    for (w = 0; w < width; w++, dst += TOY_KV_BLOCK) {
        toy_kv__vt_neon table;
        toy_kv__widen_neon(book + 2 * 16 * w, 16, words);
        table = toy_kv__table_neon(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
            toy_kv__vf_neon v = toy_kv__lookup_neon(table, toy_kv__nibbles_neon(plane, t));
            toy_kv__store_neon(dst + t, add ? toy_kv__add_neon(toy_kv__load_neon(dst + t), v) : v);
        }
    }
}

/* The angle of a token is the block's and the token's own, one complex product a pair. */
TOY_KV__TARGET_neon static void toy_kv__turn_tile_neon(const float *block, const float *tokens,
                                                 float direction, const float *x, float *y)
{
    int i, t;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        int first = (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i) * TOY_KV_BLOCK;
        int second = (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2) * TOY_KV_BLOCK;
        toy_kv__vf_neon block_cos = toy_kv__set1_neon(block[2 * i]), c = block_cos;
        toy_kv__vf_neon block_sin = toy_kv__set1_neon(direction * block[2 * i + 1]), s = block_sin;
        toy_kv__vf_neon sign = toy_kv__set1_neon(direction), minus = toy_kv__set1_neon(-1.0f);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
            toy_kv__vf_neon a = toy_kv__load_neon(x + first + t), b = toy_kv__load_neon(x + second + t);
            if (tokens != NULL) {
                const float *own = tokens + 2 * i * TOY_KV_BLOCK + t;
                toy_kv__vf_neon own_cos = toy_kv__load_neon(own);
                toy_kv__vf_neon own_sin = toy_kv__mul_neon(sign, toy_kv__load_neon(own + TOY_KV_BLOCK));
                c = toy_kv__fma_neon(toy_kv__mul_neon(minus, block_sin), own_sin,
                                  toy_kv__mul_neon(block_cos, own_cos));
                s = toy_kv__fma_neon(block_sin, own_cos, toy_kv__mul_neon(block_cos, own_sin));
            }
            toy_kv__store_neon(y + first + t,
                            toy_kv__fma_neon(toy_kv__mul_neon(minus, s), b, toy_kv__mul_neon(c, a)));
            toy_kv__store_neon(y + second + t, toy_kv__fma_neon(s, a, toy_kv__mul_neon(c, b)));
        }
    }
    if (x != y)
        memcpy(y + TOY_KV_N_ROT * TOY_KV_BLOCK, x + TOY_KV_N_ROT * TOY_KV_BLOCK,
               sizeof(float) * (TOY_KV_HEAD_DIM - TOY_KV_N_ROT) * TOY_KV_BLOCK);
}

/* s [n, BLOCK] = q [n, HEAD_DIM] against a tile k. n: a constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__score_held_neon(const float *k, const float *q, const int n,
                                                        float *s)
{
    int d, t, i;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a[4];
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            a[i] = toy_kv__set1_neon(0.0f);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            toy_kv__vf_neon v = toy_kv__load_neon(k + d * TOY_KV_BLOCK + t);
#pragma GCC unroll 4
            for (i = 0; i < n; i++)
                a[i] = toy_kv__fma_neon(toy_kv__set1_neon(q[i * TOY_KV_HEAD_DIM + d]), v, a[i]);
        }
#pragma GCC unroll 4
        for (i = 0; i < n; i++)
            toy_kv__store_neon(s + i * TOY_KV_BLOCK + t, a[i]);
    }
}

TOY_KV__TARGET_neon static void toy_kv__score_tile_neon(const float *k, const float *q, int rows,
                                                  float *s)
{
    int r;
#define TOY_KV__X(n) toy_kv__score_held_neon(k, q + r * TOY_KV_HEAD_DIM, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times v [BLOCK]. n: a constant, 4
 * at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__sum_held_neon(const float *v, const float *p, const int n,
                                                      float *acc, size_t stride)
{
    toy_kv__vf_neon a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon x = toy_kv__load_neon(v + t);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_neon(toy_kv__load_neon(p + k * TOY_KV_BLOCK + t), x, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon, a[k]);
}

TOY_KV__TARGET_neon static void toy_kv__sum_tile_neon(const float *v, const float *p, int rows,
                                                float *acc, size_t stride)
{
    int r, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_held_neon(v, p + r * TOY_KV_BLOCK, n, acc + (size_t)r * stride * TOY_KV__LANES_neon, stride)
    for (d = 0; d < TOY_KV_HEAD_DIM; d++, v += TOY_KV_BLOCK, acc += TOY_KV__LANES_neon)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

TOY_KV__TARGET_neon static void toy_kv__distances_neon(const unsigned char *book, int n, int width,
                                                 int count, const float *z, float *distance)
{
    int i = 0, w;
    for (; i + TOY_KV__LANES_neon <= count; i += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a = toy_kv__set1_neon(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_neon d =
                toy_kv__add_neon(toy_kv__loadh_neon(book + 2 * ((size_t)w * (size_t)n + (size_t)i)),
                              toy_kv__set1_neon(-z[w]));
            a = toy_kv__fma_neon(d, d, a);
        }
        toy_kv__store_neon(distance + i, a);
    }
    for (; i < count; i++) {
        distance[i] = 0.0f;
        for (w = 0; w < width; w++) {
            float d = toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i) - z[w];
            distance[i] += d * d;
        }
    }
}

TOY_KV__TARGET_neon static void toy_kv__landmark_scores_neon(const unsigned char *codes, int n,
                                                       const float *q, int rows, float *best)
{
    toy_kv__vf_neon bias = toy_kv__set1_neon(-128.0f);
    int i, r, d;
    for (i = 0; i < n; i++, codes += TOY_KV_HEAD_DIM)
        for (r = 0; r < rows; r++) {
            const float *x = q + r * TOY_KV_HEAD_DIM;
            toy_kv__vf_neon a = toy_kv__set1_neon(0.0f);
            float sum;
            for (d = 0; d + TOY_KV__LANES_neon <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_neon)
                a = toy_kv__fma_neon(toy_kv__load_neon(x + d),
                                  toy_kv__add_neon(toy_kv__loadu8_neon(codes + d), bias), a);
            sum = toy_kv__hsum_neon(a);
            for (; d < TOY_KV_HEAD_DIM; d++)
                sum += x[d] * ((float)codes[d] - 128.0f);
            best[i] = r == 0 || sum > best[i] ? sum : best[i];
        }
}

#define TOY_KV__X(name) toy_kv__##name##_neon,
static const toy_kv__dense_ops toy_kv__dense_neon = {TOY_KV__DENSE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Kernels of encoding for one instruction set, in the vocabulary of kernels.h and over the tiles of
 * dense.h: LANES tokens at once. Besides:
 *
 *   storeu8 (integral 0..15 to bytes)   storeh (to binary16; what is too large becomes the largest)
 *   keep_less(x, i, &least, &index): where x < least, least = x and index = i
 *   transpose(src, step, dst, step): eight by eight binary16 values, steps of rows in bytes */

/* The codewords i .. i + 3 against LANES tokens z [width, BLOCK]: least and index are what was
 * found before. book: |c|^2 / 2 [16], then -c [width, 16]; |z - c|^2 / 2 less these is the same for
 * all codewords. */
#define TOY_KV__FOUR(i)                                                                              \
    {                                                                                              \
        toy_kv__vf_neon a0 = toy_kv__set1_neon(book[i]), a1 = toy_kv__set1_neon(book[(i) + 1]);             \
        toy_kv__vf_neon a2 = toy_kv__set1_neon(book[(i) + 2]), a3 = toy_kv__set1_neon(book[(i) + 3]);       \
        for (w = 0; w < width; w++) {                                                              \
            toy_kv__vf_neon v = toy_kv__load_neon(z + w * TOY_KV_BLOCK);                                   \
            const float *c = book + 16 * (w + 1) + (i);                                            \
            a0 = toy_kv__fma_neon(toy_kv__set1_neon(c[0]), v, a0);                                       \
            a1 = toy_kv__fma_neon(toy_kv__set1_neon(c[1]), v, a1);                                       \
            a2 = toy_kv__fma_neon(toy_kv__set1_neon(c[2]), v, a2);                                       \
            a3 = toy_kv__fma_neon(toy_kv__set1_neon(c[3]), v, a3);                                       \
        }                                                                                          \
        toy_kv__keep_less_neon(a0, (float)(i), &least, &index);                                       \
        toy_kv__keep_less_neon(a1, (float)((i) + 1), &least, &index);                                 \
        toy_kv__keep_less_neon(a2, (float)((i) + 2), &least, &index);                                 \
        toy_kv__keep_less_neon(a3, (float)((i) + 3), &least, &index);                                 \
    }

/* Inlined with a constant width. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__search_tile_neon(const float *book, int width,
                                                         const float *tile, unsigned char *code)
{
    int t, w;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        const float *z = tile + t;
        toy_kv__vf_neon least = toy_kv__set1_neon(3.4e38f), index = toy_kv__set1_neon(0.0f);
        TOY_KV__FOUR(0)
        TOY_KV__FOUR(4)
        TOY_KV__FOUR(8)
        TOY_KV__FOUR(12)
        toy_kv__storeu8_neon(code + t, index);
    }
}
#undef TOY_KV__FOUR

/* The nearest of 16 codewords, binary16 [width, 16], to each token of z [width, BLOCK], the lower
 * one on ties: a plane of nibbles. words: room for [width + 1, 16]. */
TOY_KV__TARGET_neon static void toy_kv__code_nibbles_neon(const unsigned char *book, int width,
                                                    const float *z, float *words,
                                                    unsigned char *plane)
{
    unsigned char code[TOY_KV_BLOCK];
    toy_kv__vf_neon half = toy_kv__set1_neon(0.5f), minus = toy_kv__set1_neon(-1.0f);
    int i, w, t;
    for (i = 0; i < 16; i += TOY_KV__LANES_neon) {
        toy_kv__vf_neon norm = toy_kv__set1_neon(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_neon c = toy_kv__loadh_neon(book + 2 * (16 * w + i));
            norm = toy_kv__fma_neon(toy_kv__mul_neon(half, c), c, norm);
            toy_kv__store_neon(words + 16 * (w + 1) + i, toy_kv__mul_neon(minus, c));
        }
        toy_kv__store_neon(words + i, norm);
    }
    switch (width) {
    case 1:
        toy_kv__search_tile_neon(words, 1, z, code);
        break;
    case 2:
        toy_kv__search_tile_neon(words, 2, z, code);
        break;
    case 4:
        toy_kv__search_tile_neon(words, 4, z, code);
        break;
    default:
        toy_kv__search_tile_neon(words, width, z, code);
    }
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 8) {
        uint64_t low, high;
        memcpy(&low, code + t, 8);
        memcpy(&high, code + TOY_KV_BLOCK / 2 + t, 8);
        low |= high << 4;
        memcpy(plane + t, &low, 8);
    }
}

/* z [width, BLOCK] -= the codewords of a plane of nibbles. */
TOY_KV__TARGET_neon static void toy_kv__leave_nibbles_neon(const unsigned char *plane,
                                                     const unsigned char *book, int width, float *z)
{
    float words[16];
    int i, t, w;
    toy_kv__vf_neon minus = toy_kv__set1_neon(-1.0f);
    for (w = 0; w < width; w++, z += TOY_KV_BLOCK) {
        toy_kv__vt_neon table;
        for (i = 0; i < 16; i += TOY_KV__LANES_neon)
            toy_kv__store_neon(words + i, toy_kv__loadh_neon(book + 2 * (16 * w + i)));
        table = toy_kv__table_neon(words);
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon)
            toy_kv__store_neon(
                z + t, toy_kv__fma_neon(minus, toy_kv__lookup_neon(table, toy_kv__nibbles_neon(plane, t)),
                                     toy_kv__load_neon(z + t)));
    }
}

/* sum [BLOCK]: of the squares of x [rows, BLOCK]. */
TOY_KV__TARGET_neon static void toy_kv__squares_neon(const float *x, int rows, float *sum)
{
    int r, t, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_neon(0.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_neon v = toy_kv__load_neon(x + (size_t)(r + k) * TOY_KV_BLOCK + t);
                a[k] = toy_kv__fma_neon(v, v, a[k]);
            }
        }
        for (; r < rows; r++) {
            toy_kv__vf_neon v = toy_kv__load_neon(x + (size_t)r * TOY_KV_BLOCK + t);
            a[0] = toy_kv__fma_neon(v, v, a[0]);
        }
        toy_kv__store_neon(sum + t,
                        toy_kv__add_neon(toy_kv__add_neon(a[0], a[1]), toy_kv__add_neon(a[2], a[3])));
    }
}

/* x [HEAD_DIM, BLOCK] from rows of binary16 [BLOCK, HEAD_DIM]. */
TOY_KV__TARGET_neon static void toy_kv__load_rows_neon(const unsigned char *rows, float *x)
{
    unsigned char tile[8 * 2 * TOY_KV_BLOCK];
    int d, t, i;
    for (d = 0; d + 8 <= TOY_KV_HEAD_DIM; d += 8, x += 8 * TOY_KV_BLOCK) {
        for (t = 0; t < TOY_KV_BLOCK; t += 8)
            toy_kv__transpose_neon(rows + 2 * (t * TOY_KV_HEAD_DIM + d), 2 * TOY_KV_HEAD_DIM, tile + 2 * t,
                                2 * TOY_KV_BLOCK);
        for (i = 0; i < 8 * TOY_KV_BLOCK; i += TOY_KV__LANES_neon)
            toy_kv__store_neon(x + i, toy_kv__loadh_neon(tile + 2 * i));
    }
    for (; d < TOY_KV_HEAD_DIM; d++, x += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++)
            x[t] = toy_kv__half_at(rows, (size_t)(t * TOY_KV_HEAD_DIM + d));
}

/* A row of binary16 [n] from x [n]. */
TOY_KV__TARGET_neon static void toy_kv__store_row_neon(const float *x, int n, unsigned char *row)
{
    int i = 0;
    for (; i + TOY_KV__LANES_neon <= n; i += TOY_KV__LANES_neon)
        toy_kv__storeh_neon(row + 2 * i, toy_kv__load_neon(x + i));
    for (; i < n; i++)
        toy_kv__storeh_portable(row + 2 * i, x[i]);
}

/* Turns a head's vector x [HEAD_DIM] by cosines and sines, each [N_ROT / 2]. */
TOY_KV__TARGET_neon static void toy_kv__turn_row_neon(const float *cosines, const float *sines, float *x)
{
    int i = 0, half = TOY_KV_N_ROT / 2;
    toy_kv__vf_neon minus = toy_kv__set1_neon(-1.0f);
    for (; !TOY_KV_ROPE_INTERLEAVED && i + TOY_KV__LANES_neon <= half; i += TOY_KV__LANES_neon) {
        toy_kv__vf_neon c = toy_kv__load_neon(cosines + i), s = toy_kv__load_neon(sines + i);
        toy_kv__vf_neon a = toy_kv__load_neon(x + i), b = toy_kv__load_neon(x + half + i);
        toy_kv__store_neon(x + i, toy_kv__fma_neon(toy_kv__mul_neon(minus, s), b, toy_kv__mul_neon(c, a)));
        toy_kv__store_neon(x + half + i, toy_kv__fma_neon(s, a, toy_kv__mul_neon(c, b)));
    }
    for (; i < half; i++) {
        float *first = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i : i);
        float *second = x + (TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + half);
        float a = *first, b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

#define TOY_KV__X(name) toy_kv__##name##_neon,
static const toy_kv__code_ops toy_kv__code_neon = {TOY_KV__CODE_KERNELS(TOY_KV__X)};
#undef TOY_KV__X
/* Bases, for one instruction set, in the vocabulary of kernels.h: queries into latents, sums of
 * latents back to channels. */

/* LANES entries of a table from the i-th on, without scales. `bytes`: a constant. */
TOY_KV__TARGET_neon static inline toy_kv__vf_neon toy_kv__entries_neon(const toy_kv__matrix *m, size_t i,
                                                              const int bytes)
{
    return bytes ? toy_kv__loads8_neon(m->values + i) : toy_kv__loadh_neon(m->values + 2 * i);
}

/* sum [n]: the sums over the lanes of x [n], n a constant, 4 at most; what stands behind is
 * anything.
 */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__lane_sums_neon(const toy_kv__vf_neon *x, const int n,
                                                       float *sum)
{
    toy_kv__hsum4_neon(x[0], x[n > 1 ? 1 : 0], x[n > 2 ? 2 : 0], x[n > 3 ? 3 : 0], sum);
}

/* Latents j .. j + m LANES - 1 of n queries x [n, ldx]: y [n, n_out]. n and m, 1 or 2: constants.
 */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__map_some_neon(const toy_kv__matrix *table, const int bytes,
                                                      int n_in, int n_out, int j, const int m,
                                                      const float *x, int ldx, const int n,
                                                      float *y)
{
    const size_t next = m > 1 ? TOY_KV__LANES_neon : 0;
    toy_kv__vf_neon a[4], b[4], scale = toy_kv__set1_neon(1.0f), more = scale;
    int d, k;
    if (bytes) {
        scale = toy_kv__loadh_neon(table->scale + 2 * (size_t)j);
        more = toy_kv__loadh_neon(table->scale + 2 * ((size_t)j + next));
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = b[k] = toy_kv__set1_neon(0.0f);
    for (d = 0; d < n_in; d++) {
        const size_t at = (size_t)d * (size_t)n_out + (size_t)j;
        toy_kv__vf_neon u = toy_kv__entries_neon(table, at, bytes);
        toy_kv__vf_neon v = m > 1 ? toy_kv__entries_neon(table, at + next, bytes) : u;
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_neon q = toy_kv__set1_neon(x[k * ldx + d]);
            a[k] = toy_kv__fma_neon(q, u, a[k]);
            if (m > 1)
                b[k] = toy_kv__fma_neon(q, v, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = y + (size_t)k * (size_t)n_out + j;
        toy_kv__store_neon(to, toy_kv__mul_neon(scale, a[k]));
        if (m > 1)
            toy_kv__store_neon(to + next, toy_kv__mul_neon(more, b[k]));
    }
}

TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__map_entries_neon(const toy_kv__matrix *table, const int bytes,
                                                         int n_in, int n_out, const float *x,
                                                         int ldx, int rows, float *y)
{
    int r, j = 0, d;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_neon(table, bytes, n_in, n_out, j, 2, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j + 2 * TOY_KV__LANES_neon <= n_out; j += 2 * TOY_KV__LANES_neon)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
#define TOY_KV__X(n)                                                                                 \
    toy_kv__map_some_neon(table, bytes, n_in, n_out, j, 1, x + (size_t)r * (size_t)ldx, ldx, n,       \
                       y + (size_t)r * (size_t)n_out)
    for (; j < n_out && n_out >= TOY_KV__LANES_neon; j += TOY_KV__LANES_neon) {
        if (j + TOY_KV__LANES_neon > n_out) /* the last LANES, some of them once more */
            j = n_out - TOY_KV__LANES_neon;
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
    for (; j < n_out; j++)
        for (r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (d = 0; d < n_in; d++)
                sum += x[(size_t)r * (size_t)ldx + (size_t)d] *
                       toy_kv__raw_at(table, (size_t)d * (size_t)n_out + (size_t)j);
            y[(size_t)r * (size_t)n_out + (size_t)j] =
                bytes ? sum * toy_kv__half_at(table->scale, (size_t)j) : sum;
        }
}

/* y [rows, n_out] = x [rows, n_in] * table [n_in, n_out]: the query map. */
TOY_KV__TARGET_neon static void toy_kv__map_neon(toy_kv__matrix table, int n_in, int n_out, const float *x,
                                           int ldx, int rows, float *y)
{
    if (table.scale != NULL)
        toy_kv__map_entries_neon(&table, 1, n_in, n_out, x, ldx, rows, y);
    else
        toy_kv__map_entries_neon(&table, 0, n_in, n_out, x, ldx, rows, y);
}

/* Outputs that a pass of unmap holds sums of for four rows: as many as 32 registers hold, or 16. */
#define TOY_KV__UNMAPPED_neon (TOY_KV__LANES_neon >= 16 ? 4 : 2)

/* Outputs d .. d + m - 1 of n rows x [n, n_in], whose last LANES are `rest`, 0 where whole ones
 * end: o [n, n_out]. n_in: LANES at least. n, 4 at most, and m, 1, 2 or 4: constants; outputs share
 * what is loaded of x. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__unmap_some_neon(const toy_kv__matrix *table, const int bytes,
                                                        int d, const int m, int n_in,
                                                        const float *x,
                                                        float (*rest)[TOY_KV__LANES_neon], const int n,
                                                        float *o, int n_out)
{
    const size_t row = (size_t)d * (size_t)n_in;
    const int whole = n_in / TOY_KV__LANES_neon * TOY_KV__LANES_neon;
    toy_kv__vf_neon a[4][4]; /* [row][output] */
    float sum[4];
    int i, j, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++)
            a[k][i] = toy_kv__set1_neon(0.0f);
    for (j = 0; j < n_in; j += TOY_KV__LANES_neon) {
        /* the last LANES, some of them once more, where no whole ones are left */
        const int last = j == whole, at = last ? n_in - TOY_KV__LANES_neon : j;
        toy_kv__vf_neon u[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            u[i] = toy_kv__entries_neon(table, row + (size_t)(i * n_in + at), bytes);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_neon y = toy_kv__load_neon(last ? rest[k] : x + k * n_in + j);
#pragma GCC unroll 4
            for (i = 0; i < m; i++)
                a[k][i] = toy_kv__fma_neon(y, u[i], a[k][i]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        float *to = o + k * n_out + d;
        toy_kv__hsum4_neon(a[k][0], a[k][1], a[k][2], a[k][3], sum);
#pragma GCC unroll 4
        for (i = 0; i < m; i++)
            to[i] += sum[i];
    }
}

/* All outputs of n rows. n: a constant. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__unmap_rows_neon(const toy_kv__matrix *table, const int bytes,
                                                        int n_out, int n_in, const float *x,
                                                        float (*rest)[TOY_KV__LANES_neon], const int n,
                                                        float *o)
{
    int d = 0;
    for (; d + TOY_KV__UNMAPPED_neon <= n_out; d += TOY_KV__UNMAPPED_neon)
        toy_kv__unmap_some_neon(table, bytes, d, TOY_KV__UNMAPPED_neon, n_in, x, rest, n, o, n_out);
    for (; d < n_out; d++)
        toy_kv__unmap_some_neon(table, bytes, d, 1, n_in, x, rest, n, o, n_out);
}

TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__unmap_entries_neon(const toy_kv__matrix *table,
                                                           const int bytes, int n_out, int n_in,
                                                           const float *y, int rows, float *o)
{
    float rest[TOY_KV__MAX_ROWS][TOY_KV__LANES_neon]; /* the last LANES of y, 0 where whole ones end */
    const int whole = n_in / TOY_KV__LANES_neon * TOY_KV__LANES_neon;
    int r, j;
    if (n_in < TOY_KV__LANES_neon) {
        toy_kv__unmap_short(table, n_out, n_in, y, rows, o);
        return;
    }
    memset(rest, 0, sizeof rest);
    for (r = 0; r < rows; r++) {
        const float *end = y + (size_t)(r + 1) * (size_t)n_in;
        for (j = whole - n_in; j < 0; j++)
            rest[r][TOY_KV__LANES_neon + j] = end[j];
    }
#define TOY_KV__X(n)                                                                                 \
    toy_kv__unmap_rows_neon(table, bytes, n_out, n_in, y + (size_t)r * (size_t)n_in, rest + r, n,     \
                         o + r * n_out)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [rows, n] times scale [n], binary16. */
TOY_KV__TARGET_neon static inline void toy_kv__scale_latents_neon(const unsigned char *scale, int n,
                                                            int rows, float *y)
{
    int r, j = 0;
    for (; j + TOY_KV__LANES_neon <= n; j += TOY_KV__LANES_neon) {
        const toy_kv__vf_neon f = toy_kv__loadh_neon(scale + 2 * j);
        for (r = 0; r < rows; r++) {
            float *x = y + (size_t)r * (size_t)n + j;
            toy_kv__store_neon(x, toy_kv__mul_neon(toy_kv__load_neon(x), f));
        }
    }
    for (; j < n; j++) {
        const float f = toy_kv__half_at(scale, (size_t)j);
        for (r = 0; r < rows; r++)
            y[(size_t)r * (size_t)n + (size_t)j] *= f;
    }
}

/* o [rows, n_out] += table [n_out, n_in] times y [rows, n_in]: latents back to channels. What y
 * holds is scaled on the way. */
TOY_KV__TARGET_neon static void toy_kv__unmap_neon(toy_kv__matrix table, int n_out, int n_in, float *y,
                                             int rows, float *o)
{
    if (table.scale == NULL) {
        toy_kv__unmap_entries_neon(&table, 0, n_out, n_in, y, rows, o);
        return;
    }
    toy_kv__scale_latents_neon(table.scale, n_in, rows, y);
    toy_kv__unmap_entries_neon(&table, 1, n_out, n_in, y, rows, o);
}
/* Arithmetic on rows of numbers for one instruction set, in the vocabulary of kernels.h: gains and
 * softmax of scores, exact tokens, sums over lanes, angles. */

/* exp(x) for x <= 0, down to x = -87, where it stays: relative error below 2e-7 near 0 and below
 * 6e-8 |x| elsewhere, so that no sum of them errs by more than the first. A polynomial for 2^r with
 * the least relative error on [-1/2, 1/2], its terms in pairs: what waits for operands fills the
 * processor's queues, so that a long chain is slower than one product more. */
TOY_KV__TARGET_neon static inline toy_kv__vf_neon toy_kv__exp_neon(toy_kv__vf_neon x)
{
    toy_kv__vf_neon n, r, square, low, high;
    x = toy_kv__mul_neon(toy_kv__max_neon(x, toy_kv__set1_neon(-87.0f)), toy_kv__set1_neon(1.44269504f));
    n = toy_kv__round_neon(x);
    r = toy_kv__sub_neon(x, n);
    square = toy_kv__mul_neon(r, r);
    low = toy_kv__fma_neon(toy_kv__set1_neon(0.693147004f), r, toy_kv__set1_neon(1.0f));
    high = toy_kv__fma_neon(toy_kv__set1_neon(0.0555073358f), r, toy_kv__set1_neon(0.240222424f));
    x = toy_kv__fma_neon(toy_kv__set1_neon(0.00132647273f), r, toy_kv__set1_neon(0.00967151299f));
    high = toy_kv__fma_neon(x, square, high);
    low = toy_kv__fma_neon(high, square, low);
    return toy_kv__scale2_neon(low, n);
}

/* dst [rows, BLOCK] = gain [BLOCK] * src [rows, BLOCK] */
TOY_KV__TARGET_neon static void toy_kv__scale_rows_neon(const float *gain, const float *src, int rows,
                                                  float *dst)
{
    int r, t;
    for (r = 0; r < rows; r++)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
            int i = r * TOY_KV_BLOCK + t;
            toy_kv__store_neon(dst + i,
                            toy_kv__mul_neon(toy_kv__load_neon(gain + t), toy_kv__load_neon(src + i)));
        }
}

/* s [rows, BLOCK] = (bias [rows], or s if NULL) + gain [BLOCK] * part [rows, BLOCK]; high [rows,
 * LANES], if not NULL, rises to the highest of each lane. */
TOY_KV__TARGET_neon static void toy_kv__gain_scores_neon(const float *gain, const float *part,
                                                   const float *bias, int rows, float *s,
                                                   float *high)
{
    int r, t;
    for (r = 0; r < rows; r++, part += TOY_KV_BLOCK, s += TOY_KV_BLOCK) {
        const toy_kv__vf_neon base = toy_kv__set1_neon(bias != NULL ? bias[r] : 0.0f);
        toy_kv__vf_neon top = toy_kv__set1_neon(TOY_KV__MASKED);
#pragma GCC unroll 4
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
            toy_kv__vf_neon x = toy_kv__fma_neon(toy_kv__load_neon(gain + t), toy_kv__load_neon(part + t),
                                           bias != NULL ? base : toy_kv__load_neon(s + t));
            toy_kv__store_neon(s + t, x);
            top = toy_kv__max_neon(top, x);
        }
        if (high != NULL)
            toy_kv__store_neon(high + r * TOY_KV__LANES_neon,
                            toy_kv__max_neon(top, toy_kv__load_neon(high + r * TOY_KV__LANES_neon)));
    }
}

/* gain [BLOCK]: binary16 at p, or where there is a table its entries at the bytes at p. */
TOY_KV__TARGET_neon static void toy_kv__gains_neon(const unsigned char *p, const unsigned char *table,
                                             float *gain)
{
    int t;
    for (t = 0; t < TOY_KV_BLOCK && table != NULL; t += TOY_KV__GATHERED_neon)
        toy_kv__gather_neon(table, p + t, gain + t);
    for (t = 0; t < TOY_KV_BLOCK && table == NULL; t += TOY_KV__LANES_neon)
        toy_kv__store_neon(gain + t, toy_kv__loadh_neon(p + 2 * t));
}

/* y [n] += x * table row, binary16 [n] */
TOY_KV__TARGET_neon static void toy_kv__add_row_neon(const unsigned char *row, int n, float x, float *y)
{
    int j = 0;
    toy_kv__vf_neon xs = toy_kv__set1_neon(x);
    for (; j + TOY_KV__LANES_neon <= n; j += TOY_KV__LANES_neon)
        toy_kv__store_neon(y + j,
                        toy_kv__fma_neon(xs, toy_kv__loadh_neon(row + 2 * j), toy_kv__load_neon(y + j)));
    for (; j < n; j++)
        y[j] += x * toy_kv__half_at(row, (size_t)j);
}

/* x . table row, binary16 [n] */
TOY_KV__TARGET_neon static float toy_kv__dot_row_neon(const unsigned char *row, int n, const float *x)
{
    int j = 0;
    float sum;
    toy_kv__vf_neon a = toy_kv__set1_neon(0.0f);
    for (; j + TOY_KV__LANES_neon <= n; j += TOY_KV__LANES_neon)
        a = toy_kv__fma_neon(toy_kv__load_neon(x + j), toy_kv__loadh_neon(row + 2 * j), a);
    sum = toy_kv__hsum_neon(a);
    for (; j < n; j++)
        sum += x[j] * toy_kv__half_at(row, (size_t)j);
    return sum;
}

/* The largest of s, BLOCK numbers in each of `blocks` blocks `step` apart. */
TOY_KV__TARGET_neon static float toy_kv__largest_neon(const float *s, int blocks, size_t step)
{
    int b, t;
    toy_kv__vf_neon high = toy_kv__load_neon(s);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon)
            high = toy_kv__max_neon(high, toy_kv__load_neon(s + t));
    return toy_kv__hmax_neon(high);
}

/* The same numbers become exp(s - m); returns their sum. */
TOY_KV__TARGET_neon static float toy_kv__exponentials_neon(float *s, int blocks, size_t step, float m)
{
    int b, t;
    toy_kv__vf_neon shift = toy_kv__set1_neon(-m), sum = toy_kv__set1_neon(0.0f);
    for (b = 0; b < blocks; b++, s += step)
        for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
            toy_kv__vf_neon e = toy_kv__exp_neon(toy_kv__add_neon(toy_kv__load_neon(s + t), shift));
            toy_kv__store_neon(s + t, e);
            sum = toy_kv__add_neon(sum, e);
        }
    return toy_kv__hsum_neon(sum);
}

/* s [n, BLOCK] at token 0 = q [n, HEAD_DIM] . k, and at `next` tokens on = q . l, which may be k.
 * n: a constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__exact_pair_neon(const unsigned char *k,
                                                        const unsigned char *l, const float *q,
                                                        const int n, int next, float *s)
{
    toy_kv__vf_neon a[4], b[4];
    float sum[2][4];
    int d, i;
#pragma GCC unroll 4
    for (i = 0; i < n; i++)
        a[i] = b[i] = toy_kv__set1_neon(0.0f);
    for (d = 0; d + TOY_KV__LANES_neon <= TOY_KV_HEAD_DIM; d += TOY_KV__LANES_neon) {
        toy_kv__vf_neon x = toy_kv__loadh_neon(k + 2 * d), y = toy_kv__loadh_neon(l + 2 * d);
#pragma GCC unroll 4
        for (i = 0; i < n; i++) {
            toy_kv__vf_neon query = toy_kv__load_neon(q + i * TOY_KV_HEAD_DIM + d);
            a[i] = toy_kv__fma_neon(query, x, a[i]);
            b[i] = toy_kv__fma_neon(query, y, b[i]);
        }
    }
    toy_kv__lane_sums_neon(a, n, sum[0]);
    toy_kv__lane_sums_neon(b, n, sum[1]);
    for (; d < TOY_KV_HEAD_DIM; d++) {
        float x = toy_kv__half_at(k, (size_t)d), y = toy_kv__half_at(l, (size_t)d);
        for (i = 0; i < n; i++) {
            sum[0][i] += q[i * TOY_KV_HEAD_DIM + d] * x;
            sum[1][i] += q[i * TOY_KV_HEAD_DIM + d] * y;
        }
    }
#pragma GCC unroll 4
    for (i = 0; i < n; i++) {
        s[i * TOY_KV_BLOCK] = sum[0][i];
        s[i * TOY_KV_BLOCK + next] = sum[1][i];
    }
}

/* s [rows, BLOCK] = q [rows, HEAD_DIM] . the n rows of k, binary16 [n, HEAD_DIM]: exact tokens, two
 * at a time. */
TOY_KV__TARGET_neon static void toy_kv__exact_scores_neon(const unsigned char *k, int n, const float *q,
                                                    int rows, float *s)
{
    int t, r;
    for (t = 0; t < n; t += 2) {
        const unsigned char *x = k + 2 * (size_t)t * TOY_KV_HEAD_DIM;
        int next = t + 1 < n;
        const unsigned char *y = x + 2 * next * TOY_KV_HEAD_DIM;
#define TOY_KV__X(n_rows)                                                                            \
    toy_kv__exact_pair_neon(x, y, q + r * TOY_KV_HEAD_DIM, n_rows, next, s + r * TOY_KV_BLOCK + t)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* o [m, HEAD_DIM] += p [m, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. m: a constant, 4
 * at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__exact_add_neon(const unsigned char *v, int n,
                                                       const float *p, const int m, float *o)
{
    int t, i, d;
    for (d = 0; d + 2 * TOY_KV__LANES_neon <= TOY_KV_HEAD_DIM; d += 2 * TOY_KV__LANES_neon) {
        float *dst = o + d, *next = dst + TOY_KV__LANES_neon;
        toy_kv__vf_neon a[4], b[4];
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            a[i] = toy_kv__load_neon(dst + i * TOY_KV_HEAD_DIM);
            b[i] = toy_kv__load_neon(next + i * TOY_KV_HEAD_DIM);
        }
        for (t = 0; t < n; t++) {
            const unsigned char *row = v + 2 * ((size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            toy_kv__vf_neon x = toy_kv__loadh_neon(row), y = toy_kv__loadh_neon(row + 2 * TOY_KV__LANES_neon);
#pragma GCC unroll 4
            for (i = 0; i < m; i++) {
                toy_kv__vf_neon w = toy_kv__set1_neon(p[i * TOY_KV_BLOCK + t]);
                a[i] = toy_kv__fma_neon(w, x, a[i]);
                b[i] = toy_kv__fma_neon(w, y, b[i]);
            }
        }
#pragma GCC unroll 4
        for (i = 0; i < m; i++) {
            toy_kv__store_neon(dst + i * TOY_KV_HEAD_DIM, a[i]);
            toy_kv__store_neon(next + i * TOY_KV_HEAD_DIM, b[i]);
        }
    }
    for (; d < TOY_KV_HEAD_DIM; d++)
        for (t = 0; t < n; t++) {
            float x = toy_kv__half_at(v, (size_t)t * TOY_KV_HEAD_DIM + (size_t)d);
            for (i = 0; i < m; i++)
                o[i * TOY_KV_HEAD_DIM + d] += p[i * TOY_KV_BLOCK + t] * x;
        }
}

/* o [rows, HEAD_DIM] += p [rows, BLOCK] times the n rows of v, binary16 [n, HEAD_DIM]. */
TOY_KV__TARGET_neon static void toy_kv__exact_sums_neon(const unsigned char *v, int n, const float *p,
                                                  int rows, float *o)
{
    int r;
#define TOY_KV__X(n_rows) toy_kv__exact_add_neon(v, n, p + r * TOY_KV_BLOCK, n_rows, o + r * TOY_KV_HEAD_DIM)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* y [n] = sums over the lanes of acc [n, LANES] */
TOY_KV__TARGET_neon static void toy_kv__reduce_neon(const float *acc, int n, float *y)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        const float *four = acc + (size_t)i * TOY_KV__LANES_neon;
        toy_kv__hsum4_neon(toy_kv__load_neon(four), toy_kv__load_neon(four + TOY_KV__LANES_neon),
                        toy_kv__load_neon(four + 2 * TOY_KV__LANES_neon),
                        toy_kv__load_neon(four + 3 * TOY_KV__LANES_neon), y + i);
    }
    for (; i < n; i++)
        y[i] = toy_kv__hsum_neon(toy_kv__load_neon(acc + (size_t)i * TOY_KV__LANES_neon));
}

/* x [n] *= factor */
TOY_KV__TARGET_neon static void toy_kv__shrink_neon(float *x, size_t n, float factor)
{
    size_t i;
    toy_kv__vf_neon f = toy_kv__set1_neon(factor);
    for (i = 0; i + TOY_KV__LANES_neon <= n; i += TOY_KV__LANES_neon)
        toy_kv__store_neon(x + i, toy_kv__mul_neon(toy_kv__load_neon(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

/* c, s [n]: cosines and sines of angles, which grow by those of dc, ds [n]. */
TOY_KV__TARGET_neon static void toy_kv__turn_on_neon(const float *dc, const float *ds, int n, float *c,
                                               float *s)
{
    int i;
    for (i = 0; i + TOY_KV__LANES_neon <= n; i += TOY_KV__LANES_neon) {
        toy_kv__vf_neon x = toy_kv__load_neon(c + i), y = toy_kv__load_neon(s + i);
        toy_kv__vf_neon u = toy_kv__load_neon(dc + i), v = toy_kv__load_neon(ds + i);
        toy_kv__store_neon(c + i, toy_kv__sub_neon(toy_kv__mul_neon(x, u), toy_kv__mul_neon(y, v)));
        toy_kv__store_neon(s + i, toy_kv__fma_neon(y, u, toy_kv__mul_neon(x, v)));
    }
    for (; i < n; i++) {
        float x = c[i], y = s[i];
        c[i] = x * dc[i] - y * ds[i];
        s[i] = y * dc[i] + x * ds[i];
    }
}
/* Kernels for one instruction set, in terms of its vector vocabulary:
 *
 *   vf: LANES floats    set1 load store loadh (from binary16) loadu8 loads8 (from bytes) add sub
 *                       mul fma max round scale2 (x * 2^n, n integral) hsum hmax
 *   vi: LANES codes     nibbles(plane, t): the 4-bit codes of tokens t .. t + LANES - 1
 *   vt: sixteen floats  table(p), lookup(table, codes)
 *   gather(table, bytes, x): binary16 values of a table at GATHERED byte codes
 *
 * A plane holds one code of each token of a block: the low nibbles are tokens 0 .. BLOCK/2 - 1, the
 * high nibbles the rest. Rows are queries that share one pass over the codes; kernels take them
 * four at a time, so that a plane is unpacked once for four queries. */

/* s [n, BLOCK] += sum over planes of lut [planes, step] at each token's code, n tables of sixteen
 * from the first on. n: a constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__score_some_neon(const unsigned char *codes, int planes,
                                                        const float *lut, size_t step, const int n,
                                                        float *s)
{
    int t, p, k;
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__load_neon(s + k * TOY_KV_BLOCK + t);
        for (p = 0; p < planes; p++) {
            toy_kv__vi_neon code = toy_kv__nibbles_neon(codes + p * (TOY_KV_BLOCK / 2), t);
            const float *tab = lut + (size_t)p * step;
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__add_neon(a[k], toy_kv__lookup_neon(toy_kv__table_neon(tab + k * 16), code));
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_neon(s + k * TOY_KV_BLOCK + t, a[k]);
    }
}

/* s [rows, BLOCK] += sum over planes of lut [planes, rows, 16] at each token's code. */
TOY_KV__TARGET_neon static void toy_kv__score_nibbles_neon(const unsigned char *codes, int planes,
                                                     const float *lut, int rows, float *s)
{
    int r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_some_neon(codes, planes, lut + r * 16, (size_t)rows * 16, n, s + r * TOY_KV_BLOCK)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times the codewords of one
 * channel. n: a constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__sum_some_neon(const unsigned char *plane, const float *book,
                                                      const float *p, const int n, float *acc,
                                                      size_t stride)
{
    const toy_kv__vt_neon table = toy_kv__table_neon(book);
    toy_kv__vf_neon a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon v = toy_kv__lookup_neon(table, toy_kv__nibbles_neon(plane, t));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_neon(toy_kv__load_neon(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon, a[k]);
}

/* acc [rows, stride] of LANES floats each: acc[r][c] += p[r] * codeword, over the tokens of a
 * block. book: [planes, width, 16]; plane i adds to latents i / stages * width and on. */
TOY_KV__TARGET_neon static void toy_kv__sum_nibbles_neon(const unsigned char *codes, int planes,
                                                   int stages, int width, const float *book,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    int r, i, w;
    for (i = 0; i < planes; i++, codes += TOY_KV_BLOCK / 2)
        for (w = 0; w < width; w++, book += 16) {
            float *to = acc + (size_t)(i / stages * width + w) * TOY_KV__LANES_neon;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_some_neon(codes, book, p + r * TOY_KV_BLOCK, n,                                         \
                       to + (size_t)r * stride * TOY_KV__LANES_neon, stride)
            TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
        }
}

/* Values of tokens t and on of a plane of one channel. `half`: binary16, two bytes a token; else a
 * byte a token whose value is code - 128. */
TOY_KV__TARGET_neon static inline toy_kv__vf_neon toy_kv__scalars_neon(const unsigned char *plane, int t,
                                                              int half)
{
    return half ? toy_kv__loadh_neon(plane + 2 * t)
                : toy_kv__add_neon(toy_kv__loadu8_neon(plane + t), toy_kv__set1_neon(-128.0f));
}

/* s [n, BLOCK] at tokens t .. t + 2 LANES - 1 += q [planes, step] * value. n: a constant, 4 at
 * most. asked: NULL, or what is asked for meanwhile. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__score_values_neon(const unsigned char *codes, int planes,
                                                          int half, int t, const float *q,
                                                          size_t step, const int n,
                                                          toy_kv__asked *asked, float *s)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    toy_kv__vf_neon a[4], b[4];
    int c, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        a[k] = toy_kv__load_neon(s + k * TOY_KV_BLOCK + t);
        b[k] = toy_kv__load_neon(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_neon);
    }
    for (c = 0; c < planes; c++, codes += bytes, q += step) {
        toy_kv__vf_neon v = toy_kv__scalars_neon(codes, t, half);
        toy_kv__vf_neon w = toy_kv__scalars_neon(codes, t + TOY_KV__LANES_neon, half);
        if (TOY_KV__LANES_neon >= 8 && asked != NULL)
            toy_kv__ask(asked);
        if (TOY_KV__LANES_neon >= 16 && half && asked != NULL)
            toy_kv__ask(asked);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            toy_kv__vf_neon x = toy_kv__set1_neon(q[k]);
            a[k] = toy_kv__fma_neon(x, v, a[k]);
            b[k] = toy_kv__fma_neon(x, w, b[k]);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++) {
        toy_kv__store_neon(s + k * TOY_KV_BLOCK + t, a[k]);
        toy_kv__store_neon(s + k * TOY_KV_BLOCK + t + TOY_KV__LANES_neon, b[k]);
    }
}

/* s [rows, BLOCK] += q [planes, rows] * value, one channel a plane. With four rows or more, as many
 * lines are asked for as a block of keys has together with one of values. */
TOY_KV__TARGET_neon static void toy_kv__score_scalars_neon(const unsigned char *codes, int planes,
                                                     int half, const float *q, int rows,
                                                     toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r, t;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_values_neon(codes, planes, half, t, q + r, (size_t)rows, n,                         \
                           n == 4 && r == 0 ? &asked : NULL, s + r * TOY_KV_BLOCK)
    for (t = 0; t < TOY_KV_BLOCK; t += 2 * TOY_KV__LANES_neon)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

/* acc [n, stride] of LANES floats each: acc[k][0] += p [n, BLOCK] times a plane's values. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__sum_values_neon(const unsigned char *plane, int half,
                                                        const float *p, const int n, float *acc,
                                                        size_t stride)
{
    toy_kv__vf_neon a[4];
    int t, k;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        a[k] = toy_kv__load_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon);
    for (t = 0; t < TOY_KV_BLOCK; t += TOY_KV__LANES_neon) {
        toy_kv__vf_neon v = toy_kv__scalars_neon(plane, t, half);
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__fma_neon(toy_kv__load_neon(p + k * TOY_KV_BLOCK + t), v, a[k]);
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__store_neon(acc + (size_t)k * stride * TOY_KV__LANES_neon, a[k]);
}

/* acc[r][c] += p[r] * value, one channel a plane, as above. */
TOY_KV__TARGET_neon static void toy_kv__sum_scalars_neon(const unsigned char *codes, int planes, int half,
                                                   const float *p, int rows, float *acc,
                                                   size_t stride)
{
    const size_t bytes = half ? 2 * TOY_KV_BLOCK : TOY_KV_BLOCK;
    int r, c;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__sum_values_neon(codes, half, p + r * TOY_KV_BLOCK, n,                                       \
                         acc + (size_t)r * stride * TOY_KV__LANES_neon, stride)
    for (c = 0; c < planes; c++, codes += bytes, acc += TOY_KV__LANES_neon)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
}

/* lut [n, 16]: the scores of codewords with the queries y [n, stride] of a plane's channels. n: a
 * constant, 4 at most. */
TOY_KV__TARGET_neon TOY_KV__INLINE void toy_kv__fill_some_neon(const unsigned char *book, int width,
                                                       const float *y, size_t stride, const int n,
                                                       float *lut)
{
    int i, w, k;
    for (i = 0; i < 16; i += TOY_KV__LANES_neon) {
        toy_kv__vf_neon a[4];
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            a[k] = toy_kv__set1_neon(0.0f);
        for (w = 0; w < width; w++) {
            toy_kv__vf_neon b = toy_kv__loadh_neon(book + 2 * (w * 16 + i));
#pragma GCC unroll 4
            for (k = 0; k < n; k++)
                a[k] = toy_kv__fma_neon(toy_kv__set1_neon(y[(size_t)k * stride + (size_t)w]), b, a[k]);
        }
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            toy_kv__store_neon(lut + k * 16 + i, a[k]);
    }
}

/* lut [planes, rows, 16]: the score of each of a plane's codewords with the queries y [rows,
 * stride] of the run's channels. */
TOY_KV__TARGET_neon static void toy_kv__fill_tables_neon(const toy_kv__run *run, const float *y,
                                                   size_t stride, int rows, float *lut)
{
    int p, r;
    for (p = 0; p < run->planes; p++, lut += rows * 16) {
        const float *q = y + p / run->stages * run->width;
        const unsigned char *book = toy_kv__table(run->book + p / run->stages * run->book_step +
                                                p % run->stages * run->width * 16);
#define TOY_KV__X(n)                                                                                 \
    toy_kv__fill_some_neon(book, run->width, q + (size_t)r * stride, stride, n, lut + r * 16)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

/* Of n codewords, binary16 [width, n], the nearest to z [width], the lower one on ties. */
TOY_KV__TARGET_neon static int toy_kv__nearest_wide_neon(const unsigned char *book, int n, int width,
                                                   const float *z)
{
    enum { STEP = 4 * TOY_KV__LANES_neon };
    const toy_kv__vf_neon one = toy_kv__set1_neon(-1.0f);
    float negative[STEP], top = -3.4e38f; /* of negative distances */
    int i, k, w, best = 0;
    for (i = 0; i + STEP <= n; i += STEP) {
        toy_kv__vf_neon a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = toy_kv__set1_neon(0.0f);
        for (w = 0; w < width; w++) {
            const unsigned char *row = book + 2 * ((size_t)w * (size_t)n + (size_t)i);
            toy_kv__vf_neon minus = toy_kv__set1_neon(-z[w]);
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                toy_kv__vf_neon d =
                    toy_kv__add_neon(toy_kv__loadh_neon(row + 2 * k * TOY_KV__LANES_neon), minus);
                a[k] = toy_kv__fma_neon(d, toy_kv__mul_neon(d, one), a[k]);
            }
        }
        if (!(toy_kv__hmax_neon(toy_kv__max_neon(toy_kv__max_neon(a[0], a[1]), toy_kv__max_neon(a[2], a[3]))) >
              top))
            continue;
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            toy_kv__store_neon(negative + k * TOY_KV__LANES_neon, a[k]);
        for (k = 0; k < STEP; k++)
            if (negative[k] > top) {
                top = negative[k];
                best = i + k;
            }
    }
    for (; i < n; i++) {
        float sum = 0.0f;
        for (w = 0; w < width; w++) {
            float d = z[w] - toy_kv__half_at(book, (size_t)w * (size_t)n + (size_t)i);
            sum -= d * d;
        }
        if (sum > top) {
            top = sum;
            best = i;
        }
    }
    return best;
}

#define TOY_KV__X(name) toy_kv__##name##_neon,
static const toy_kv__ops toy_kv__ops_neon = {TOY_KV__LANES_neon, TOY_KV__KERNELS(TOY_KV__X) TOY_KV__BYTE_OPS_neon,
                                        &toy_kv__dense_neon, &toy_kv__code_neon};
#undef TOY_KV__X
/* What the byte kernels for NEON with dot products have in common: codes and entries that a table
 * instruction looks up, dot products, sums. Few of them need more than NEON; those have a target.
 */

#if defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_QRDMX)
#define TOY_KV__TARGET_dot
#elif defined(__clang__)
#define TOY_KV__TARGET_dot __attribute__((target("dotprod,rdm")))
#elif __GNUC__ >= 8 && !defined(__ARM_FEATURE_SVE) && !defined(__ARM_FEATURE_COMPLEX)
/* Not "+dotprod", which assemblers refuse below ARMv8.2. What the command line may have enabled has
 * to stay, or what it was enabled for would not be inlined. */
#define TOY_KV__TARGET_dot __attribute__((target("arch=armv8.2-a+crypto+fp16+dotprod")))
#endif

#if TOY_KV_BLOCK >= 64
#define TOY_KV__BYTE_OPS_dot &toy_kv__byte_ops_neon
#else
#define TOY_KV__BYTE_OPS_dot NULL
#endif

#if defined(TOY_KV__TARGET_dot) && TOY_KV_BLOCK >= 64

#define TOY_KV__INLINE_neon TOY_KV__TARGET_dot static inline __attribute__((always_inline))

/* Planes whose scores are summed in 16 bits. */
#define TOY_KV__CHUNK_neon 64

/* sum += products of bytes, four to a lane. Compilers hide the intrinsics of what the command line
 * does not enable. */
TOY_KV__INLINE_neon void toy_kv__add_bytes_neon(uint32x4_t *sum, uint8x16_t a, uint8x16_t b)
{
    __asm__("udot %0.4s, %1.16b, %2.16b" : "+w"(*sum) : "w"(a), "w"(b));
}

/* sum += the rounded high halves of twice the products of words a and word `lane` of b. */
#define TOY_KV__ADD_WORDS_neon(sum, a, b, lane)                                                      \
    __asm__("sqrdmlah %0.8h, %1.8h, %2.h[" #lane "]" : "+w"(sum) : "w"(a), "x"(b))

/* Codes of 16 tokens of a plane, low nibbles or (`second`) high ones. */
TOY_KV__INLINE_neon uint8x16_t toy_kv__codes_neon(uint8x16_t x, const int second)
{
    return second ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(15));
}

/* Indices for tables of twice sixteen bytes: of the 32 tokens of a piece of plane a, low nibbles
 * first, eight in each, an index into the first sixteen and one of plane b's into the second. */
TOY_KV__INLINE_neon void toy_kv__pairs_neon(uint8x16_t a, uint8x16_t b, uint8x16_t *index)
{
    const uint8x16_t base = vdupq_n_u8(16);
    const uint8x16_t b0 = vorrq_u8(toy_kv__codes_neon(b, 0), base);
    const uint8x16_t b1 = vorrq_u8(toy_kv__codes_neon(b, 1), base);
    index[0] = vzip1q_u8(toy_kv__codes_neon(a, 0), b0);
    index[1] = vzip2q_u8(toy_kv__codes_neon(a, 0), b0);
    index[2] = vzip1q_u8(toy_kv__codes_neon(a, 1), b1);
    index[3] = vzip2q_u8(toy_kv__codes_neon(a, 1), b1);
}

/* Such a table, and the words that one of sixteen low and sixteen high bytes has for a piece. */
TOY_KV__INLINE_neon uint8x16x2_t toy_kv__two_neon(const signed char *p)
{
    return vld1q_u8_x2((const unsigned char *)p);
}
TOY_KV__INLINE_neon void toy_kv__words_neon(uint8x16_t x, const signed char *p, int16x8_t *word)
{
    const uint8x16x2_t t = toy_kv__two_neon(p);
    uint8x16_t index[4];
    int i;
    toy_kv__pairs_neon(x, x, index);
#pragma GCC unroll 4
    for (i = 0; i < 4; i++)
        word[i] = vreinterpretq_s16_u8(vqtbl2q_u8(t, index[i]));
}

/* As toy_kv__ask(), which may not be inlined here. */
TOY_KV__INLINE_neon void toy_kv__ask_neon(toy_kv__asked *a)
{
    TOY_KV__PREFETCH(a->keys, 3);
    TOY_KV__PREFETCH(a->values, 2);
    a->keys += a->keys < a->keys_end ? 64 : 0;
    a->values += a->values < a->values_end ? 64 : 0;
}

/* Scores of a piece, s [16] and half a block later = (add ? s : 0) + scale * words. */
TOY_KV__INLINE_neon void toy_kv__flush_neon(const int16x8_t *words, float scale, int add, float *s)
{
    int i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        float *to = s + i / 2 * (TOY_KV_BLOCK / 2) + i % 2 * 8;
        float32x4_t a = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words[i])));
        float32x4_t b = vcvtq_f32_s32(vmovl_high_s16(words[i]));
        vst1q_f32(to, add ? vfmaq_n_f32(vld1q_f32(to), a, scale) : vmulq_n_f32(a, scale));
        vst1q_f32(to + 4, add ? vfmaq_n_f32(vld1q_f32(to + 4), b, scale) : vmulq_n_f32(b, scale));
    }
}

/* Eight floats times factor, rounded to words. */
static inline int16x8_t toy_kv__eight_neon(const float *x, float factor)
{
    int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), factor));
    int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), factor));
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
}

/* Sixteen floats times factor, rounded to bytes. */
static inline void toy_kv__sixteen_neon(const float *x, float factor, signed char *out)
{
    vst1q_s8(out, vcombine_s8(vqmovn_s16(toy_kv__eight_neon(x, factor)),
                              vqmovn_s16(toy_kv__eight_neon(x + 8, factor))));
}

/* The same rounded to words, of which the sixteen low bytes lie before the high ones. */
static inline void toy_kv__split_neon(const float *x, float factor, signed char *out)
{
    int8x16_t a = vreinterpretq_s8_s16(toy_kv__eight_neon(x, factor));
    int8x16_t b = vreinterpretq_s8_s16(toy_kv__eight_neon(x + 8, factor));
    vst1q_s8(out, vuzp1q_s8(a, b));
    vst1q_s8(out + 16, vuzp2q_s8(a, b));
}

/* The largest magnitude of sixteen floats. */
static inline float toy_kv__reach_neon(const float *x)
{
    float32x4_t a = vmaxq_f32(vabsq_f32(vld1q_f32(x)), vabsq_f32(vld1q_f32(x + 4)));
    float32x4_t b = vmaxq_f32(vabsq_f32(vld1q_f32(x + 8)), vabsq_f32(vld1q_f32(x + 12)));
    return vmaxvq_f32(vmaxq_f32(a, b));
}

#endif
/* Sums of values in bytes, NEON with dot products: what toy_kv__byte_ops promises (types.h).
 *
 * A plane's codes become 8-bit codewords by a table lookup, and a dot product adds codeword times
 * weight over four tokens a lane, both unsigned: codewords are 128 more than they are, for which
 * sums begin lower. 64 tokens of a channel take four rows 28 instructions where codes have four
 * channels or more, 35 where they have one: 16 dot products, 4 lookups, and the rest, which is
 * loads and the cutting of codes, shared by four channels or four rows. In fp32 they take 450.
 */

#if defined(TOY_KV__TARGET_dot) && TOY_KV_BLOCK >= 64

/* The largest weight, which a threshold is added to; and what is left of one counts so much less.
 */
#define TOY_KV__MOST_WEIGHT_neon 254.0f
#define TOY_KV__WEIGHT_REST_neon 255.0f

/* Sixteen numbers below 256 to bytes, rounded down. */
static inline uint8x16_t toy_kv__floor_neon(const float32x4_t *x)
{
    uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(vcvtq_u32_f32(x[0])),
                                vreinterpretq_u16_u32(vcvtq_u32_f32(x[1])));
    uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(vcvtq_u32_f32(x[2])),
                                 vreinterpretq_u16_u32(vcvtq_u32_f32(x[3])));
    return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

/* Sixteen weights p * gain * factor; rest, if not NULL, gets what is left of them. */
static inline void toy_kv__pack_sixteen_neon(const float *p, const float *gain, float factor,
                                           unsigned char *out, unsigned char *rest)
{
    /* Thresholds spread evenly over (0, 1): small weights are not all rounded away, however large
     * the row's largest is; on average over positions, rounding keeps the sum. */
    static const float dither[16] = {0.03125f, 0.53125f, 0.28125f, 0.78125f, 0.15625f, 0.65625f,
                                     0.40625f, 0.90625f, 0.09375f, 0.59375f, 0.34375f, 0.84375f,
                                     0.21875f, 0.71875f, 0.46875f, 0.96875f};
    float32x4_t x[4];
    int i;
    for (i = 0; i < 4; i++) {
        float32x4_t w = vmulq_f32(vld1q_f32(p + 4 * i), vld1q_f32(gain + 4 * i));
        x[i] = rest == NULL ? vfmaq_n_f32(vld1q_f32(dither + 4 * i), w, factor)
                            : vmulq_n_f32(w, factor);
    }
    vst1q_u8(out, toy_kv__floor_neon(x));
    if (rest == NULL)
        return;
    for (i = 0; i < 4; i++) /* to the nearest: half a step more, rounded down */
        x[i] = vfmaq_n_f32(vdupq_n_f32(0.5f), vsubq_f32(x[i], vrndmq_f32(x[i])),
                           TOY_KV__WEIGHT_REST_neon);
    vst1q_u8(rest, toy_kv__floor_neon(x));
}

static void toy_kv__pack_weights_neon(const float *p, const float *gain, int blocks, int rows,
                                    unsigned char *out, unsigned char *rest, float *scale)
{
    const size_t step = (size_t)rows * TOY_KV_BLOCK;
    int b, r, t;
    for (r = 0; r < rows; r++, p += TOY_KV_BLOCK, out += TOY_KV_BLOCK) {
        float32x4_t high = vdupq_n_f32(0.0f);
        float top, factor;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < TOY_KV_BLOCK; t += 4)
                high = vmaxq_f32(high, vmulq_f32(vld1q_f32(p + (size_t)b * step + t),
                                                 vld1q_f32(gain + b * TOY_KV_BLOCK + t)));
        top = vmaxvq_f32(high);
        scale[r] = top / TOY_KV__MOST_WEIGHT_neon;
        factor = top > 0.0f ? TOY_KV__MOST_WEIGHT_neon / top : 0.0f;
        for (b = 0; b < blocks; b++)
            for (t = 0; t < TOY_KV_BLOCK; t += 16) {
                const size_t at = (size_t)b * step + (size_t)t;
                toy_kv__pack_sixteen_neon(p + at, gain + b * TOY_KV_BLOCK + t, factor, out + at,
                                        rest == NULL ? NULL : rest + at);
            }
        rest += rest != NULL ? TOY_KV_BLOCK : 0;
    }
}

static void toy_kv__pack_books_neon(const unsigned char *book, int n, signed char *out, float *scale)
{
    int i, k;
    for (i = 0; i < n; i++, book += 32) {
        float x[16], top;
        for (k = 0; k < 16; k += 4)
            vst1q_f32(x + k, toy_kv__loadh_neon(book + 2 * k));
        top = toy_kv__reach_neon(x);
        scale[i] = top / 127.0f;
        toy_kv__sixteen_neon(x, top > 0.0f ? 127.0f / top : 0.0f, out + i * 16);
    }
}

/* Four channels of a run: the first token of their planes in a block, and their latents. */
typedef struct toy_kv__four {
    size_t plane[4], latent[4];
} toy_kv__four;

/* Channels c .. c + 3 of the run's n, counted plane by plane; behind the last it stands again. By a
 * pointer: a copy would load at once what has just been stored in parts, and wait for it. */
static inline void toy_kv__four_of(const toy_kv__run *run, size_t offset, int c, int n,
                                 toy_kv__four *four)
{
    int i;
    for (i = 0; i < 4; i++) {
        const int channel = c + i < n ? c + i : n - 1, plane = channel / run->width;
        four->plane[i] = offset + (size_t)plane * (TOY_KV_BLOCK / 2);
        four->latent[i] = (size_t)(plane / run->stages * run->width + channel - plane * run->width);
    }
}

/* zero [4]: what sums of a row's weights times codewords begin with. */
TOY_KV__TARGET_dot static void toy_kv__zero_neon(const unsigned char *weights, int blocks, size_t step,
                                             uint32_t *zero)
{
    uint32x4_t sum = vdupq_n_u32(0);
    int b, t;
    for (b = 0; b < blocks; b++, weights += step)
        for (t = 0; t < TOY_KV_BLOCK; t += 16)
            toy_kv__add_bytes_neon(&sum, vld1q_u8(weights + t), vdupq_n_u8(128));
    vst1q_u32(zero, vsubq_u32(vdupq_n_u32(0), sum));
}

/* Four channels, `each` of them of one plane, `real` of them there, for n rows from row r on; each
 * and n are constants. */
TOY_KV__INLINE_neon void toy_kv__sum_four_neon(const unsigned char *const *codes, int blocks,
                                           const toy_kv__four *four, const int each, int real,
                                           const signed char *book, const float *book_scale,
                                           const unsigned char *weights, const uint32_t *zero,
                                           const float *scale, int rows, int r, const int n,
                                           float *sums, size_t stride)
{
    const unsigned char *w = weights + (size_t)r * TOY_KV_BLOCK;
    uint32x4_t sum[4][4];
    uint8x16_t table[4];
    int b, i, k, t;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        table[i] = veorq_u8(vreinterpretq_u8_s8(vld1q_s8(book + 16 * (i < real ? i : 0))),
                            vdupq_n_u8(128));
#pragma GCC unroll 4
        for (k = 0; k < n; k++)
            sum[k][i] = vld1q_u32(zero + 4 * (r + k));
    }
    for (b = 0; b < blocks; b++, w += (size_t)rows * TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK / 2; t += 16) {
            uint8x16_t x = vld1q_u8(codes[b] + four->plane[0] + t), low[4], high[4];
            if (t % 32 == 0) /* for the next ones */
                TOY_KV__PREFETCH(codes[b] + four->plane[3] + t + TOY_KV_BLOCK, 3);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                if (i > 0 && i % each == 0)
                    x = vld1q_u8(codes[b] + four->plane[i] + t);
                low[i] = vqtbl1q_u8(table[i], toy_kv__codes_neon(x, 0));
                high[i] = vqtbl1q_u8(table[i], toy_kv__codes_neon(x, 1));
            }
#pragma GCC unroll 4
            for (k = 0; k < n; k++) {
                const uint8x16_t p = vld1q_u8(w + k * TOY_KV_BLOCK + t);
                const uint8x16_t q = vld1q_u8(w + k * TOY_KV_BLOCK + t + TOY_KV_BLOCK / 2);
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    toy_kv__add_bytes_neon(&sum[k][i], p, low[i]);
#pragma GCC unroll 4
                for (i = 0; i < 4; i++)
                    toy_kv__add_bytes_neon(&sum[k][i], q, high[i]);
            }
        }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) {
            const float x = (float)(int32_t)vaddvq_u32(sum[k][i]);
            if (i < real)
                sums[(size_t)(r + k) * stride + four->latent[i]] +=
                    x * (scale[r + k] * book_scale[i]);
        }
}

/* All channels of a run, `each` of every four of one plane. */
TOY_KV__INLINE_neon void toy_kv__sum_run_neon(const unsigned char *const *codes, size_t offset,
                                          int blocks, const toy_kv__run *run, const int each,
                                          const signed char *book, const float *book_scale,
                                          const unsigned char *weights, const uint32_t *zero,
                                          const float *scale, int rows, float *sums, size_t stride)
{
    const int n = run->planes * run->width;
    int c, r;
    for (c = 0; c < n; c += 4, book += 64, book_scale += 4) {
        toy_kv__four four;
        const int real = n - c < 4 ? n - c : 4;
        toy_kv__four_of(run, offset, c, n, &four);
#define TOY_KV__X(n_rows)                                                                            \
    toy_kv__sum_four_neon(codes, blocks, &four, each, real, book, book_scale, weights, zero, scale,  \
                        rows, r, n_rows, sums, stride)
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    }
}

TOY_KV__TARGET_dot static void toy_kv__sum_bytes_neon(const unsigned char *const *codes, size_t offset,
                                                  int blocks, const toy_kv__run *run,
                                                  const signed char *book, const float *book_scale,
                                                  const unsigned char *weights, const float *scale,
                                                  int rows, toy_kv__asked *ahead, float *sums,
                                                  size_t stride)
{
    uint32_t zero[4 * TOY_KV__MAX_ROWS];
    int r;
    (void)ahead; /* little is to be gained where sums take so long */
    for (r = 0; r < rows; r++)
        toy_kv__zero_neon(weights + r * TOY_KV_BLOCK, blocks, (size_t)rows * TOY_KV_BLOCK, zero + 4 * r);
#define TOY_KV__X(each)                                                                              \
    toy_kv__sum_run_neon(codes, offset, blocks, run, each, book, book_scale, weights, zero, scale,   \
                       rows, sums, stride)
    if (run->width % 4 == 0)
        TOY_KV__X(4);
    else if (run->width == 2)
        TOY_KV__X(2);
    else
        TOY_KV__X(1);
#undef TOY_KV__X
}

#endif
/* Scores of codes of one channel, NEON with dot products: what toy_kv__byte_ops promises (types.h).
 *
 * The codewords themselves are looked up, low and high bytes side by side, which one lookup does
 * for every row, and meet the query in products of words whose high halves are added: units are
 * such that no sum of them leaves 16 bits. A group is two channels. 64 tokens of a channel take
 * four rows 78 instructions: 32 products, 8 lookups, and the rest for indices, loads and
 * prefetches. In fp32 they take 460.
 */

#if defined(TOY_KV__TARGET_dot) && TOY_KV_BLOCK >= 64

/* The largest codeword of a channel counts so many steps. */
#define TOY_KV__DOT_TOP_neon 32767.0f

/* table [groups, 64]: sixteen low and sixteen high bytes of each channel; scale [4 * groups]. */
static void toy_kv__dot_books_neon(const toy_kv__run *run, unsigned char *table, float *scale)
{
    const int room = 4 * toy_kv__dot_groups(run);
    int c, i;
    for (c = 0; c < room; c++) {
        float book[16] = {0.0f}, top;
        if (c < run->planes) {
            const unsigned char *from =
                toy_kv__table(run->book + c / run->stages * run->book_step + c % run->stages * 16);
            for (i = 0; i < 16; i += 4)
                vst1q_f32(book + i, toy_kv__loadh_neon(from + 2 * i));
        }
        top = toy_kv__reach_neon(book);
        scale[c] = top / TOY_KV__DOT_TOP_neon;
        if (c < 2 * toy_kv__dot_groups(run)) /* the table has room for two a group */
            toy_kv__split_neon(book, top > 0.0f ? TOY_KV__DOT_TOP_neon / top : 0.0f,
                             (signed char *)table + 32 * c);
    }
}

/* Channels c .. c + 7 of a row's latents y times their scales; 0 behind the last. */
static inline void toy_kv__dot_latents_neon(const toy_kv__run *run, const float *y, const float *scale,
                                          int c, float *x)
{
    int i;
    if (run->stages == 1 && c + 8 <= run->planes) {
        vst1q_f32(x, vmulq_f32(vld1q_f32(y + c), vld1q_f32(scale + c)));
        vst1q_f32(x + 4, vmulq_f32(vld1q_f32(y + c + 4), vld1q_f32(scale + c + 4)));
        return;
    }
    for (i = 0; i < 8; i++)
        x[i] = c + i < run->planes ? y[(c + i) / run->stages] * scale[c + i] : 0.0f;
}

/* y [rows, stride]: queries in latents, from the run's first on; to lanes [rows, groups, 2] words
 * and unit [rows, 2], of which the second stays unused. */
static void toy_kv__dot_queries_neon(const toy_kv__run *run, const float *scale, const float *y,
                                   size_t stride, int rows, unsigned char *lanes, float *unit,
                                   float *energy)
{
    const int room = 2 * toy_kv__dot_groups(run);
    float x[8];
    int r, c;
    for (r = 0; r < rows; r++, y += stride, lanes += 2 * room) {
        float32x4_t square = vdupq_n_f32(0.0f);
        float most = 0.0f, sum = 0.0f, factor;
        for (c = 0; c < room; c += 8) {
            float32x4_t a, b;
            toy_kv__dot_latents_neon(run, y, scale, c, x);
            a = vld1q_f32(x);
            b = vld1q_f32(x + 4);
            square = vfmaq_f32(vfmaq_f32(square, a, a), b, b);
            sum = (c % TOY_KV__CHUNK_neon == 0 ? 0.0f : sum) +
                  vaddvq_f32(vaddq_f32(vabsq_f32(a), vabsq_f32(b)));
            most = sum > most ? sum : most;
        }
        /* Rounding of a channel's word, and of its products, may add half a unit each. */
        unit[2 * r] = most * (32768.0f / (32767.0f - TOY_KV__CHUNK_neon));
        unit[2 * r + 1] = 0.0f;
        /* The mean square of a codebook is taken to be a seventh of its largest square, as it is
         * for Gaussian channels. */
        if (energy != NULL)
            energy[r] += vaddvq_f32(square) * (TOY_KV__DOT_TOP_neon * TOY_KV__DOT_TOP_neon / 7.0f);
        factor = most > 0.0f ? 32768.0f / unit[2 * r] : 0.0f;
        for (c = 0; c < room; c += 8) {
            short words[8];
            toy_kv__dot_latents_neon(run, y, scale, c, x);
            vst1q_s16(words, toy_kv__eight_neon(x, factor));
            memcpy(lanes + 2 * c, words, 2 * (size_t)(room - c < 8 ? room - c : 8));
        }
    }
}

/* Scores of 32 tokens, a piece of sixteen bytes of each plane, for n rows from row r on: planes
 * from .. to - 1, at most CHUNK. queries [channels, 4 rows]; n is a constant. */
TOY_KV__INLINE_neon void toy_kv__dot_rows_neon(const unsigned char *codes, int from, int to,
                                           const signed char *table, const short *queries,
                                           const float *unit, int r, const int n, int add,
                                           toy_kv__asked *ahead, float *s)
{
    int16x8_t sum[4][4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = vdupq_n_s16(0);
    for (p = from; p < to; p++) {
        const int16x8_t q = vcombine_s16(vld1_s16(queries + 4 * p), vdup_n_s16(0));
        int16x8_t word[4];
        toy_kv__words_neon(vld1q_u8(codes + (size_t)p * (TOY_KV_BLOCK / 2)), table + 32 * p, word);
        if ((p - from) % 4 == 0)
            toy_kv__ask_neon(ahead);
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) {
            TOY_KV__ADD_WORDS_neon(sum[0][i], word[i], q, 0);
            if (n > 1)
                TOY_KV__ADD_WORDS_neon(sum[1][i], word[i], q, 1);
            if (n > 2)
                TOY_KV__ADD_WORDS_neon(sum[2][i], word[i], q, 2);
            if (n > 3)
                TOY_KV__ADD_WORDS_neon(sum[3][i], word[i], q, 3);
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__flush_neon(sum[k], unit[2 * (r + k)], add, s + (r + k) * TOY_KV_BLOCK);
}

/* Some blocks for n rows from row r on, a constant. */
TOY_KV__INLINE_neon void toy_kv__dot_blocks_neon(const unsigned char *const *codes, size_t offset,
                                             int blocks, const toy_kv__run *run,
                                             const unsigned char *table, const unsigned char *lanes,
                                             const float *unit, int rows, int r, const int n,
                                             int add, toy_kv__asked *ahead, float *s)
{
    const size_t bytes = 4 * (size_t)toy_kv__dot_groups(run);
    short queries[8 * TOY_KV__MAX_DOT_GROUPS];
    int b, k, p, t, from, to;
    for (p = 0; p < run->planes; p++)
        for (k = 0; k < 4; k++)
            memcpy(&queries[4 * p + k],
                   lanes + (size_t)(r + (k < n ? k : 0)) * bytes + 2 * (size_t)p, 2);
    for (b = 0; b < blocks; b++, s += rows * TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK / 2; t += 16)
            for (from = 0; from < run->planes; from = to) {
                to = run->planes - from < TOY_KV__CHUNK_neon ? run->planes : from + TOY_KV__CHUNK_neon;
                toy_kv__dot_rows_neon(codes[b] + offset + t, from, to, (const signed char *)table,
                                    queries, unit, r, n, add || from > 0, ahead, s + t);
            }
}

TOY_KV__TARGET_dot static void toy_kv__dot_scores_neon(const unsigned char *const *codes, size_t offset,
                                                   int blocks, const toy_kv__run *run,
                                                   const unsigned char *table,
                                                   const unsigned char *lanes, const float *unit,
                                                   int rows, int add, toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int r = 0;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__dot_blocks_neon(codes, offset, blocks, run, table, lanes, unit, rows, r, n, add, &asked, \
                          s)
    TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
#undef TOY_KV__X
    *ahead = asked;
}

#endif
/* Score tables in bytes, NEON with dot products: what toy_kv__byte_ops promises (types.h); and the
 * operations of that instruction set.
 *
 * A lookup in two registers takes eight tokens of two times sixteen bytes. For a wide plane these
 * are the low and the high bytes of its entries: what it finds are words. For two narrow planes
 * they are the entries of both: neighbours are added as words. Either way sums are words, and 64
 * tokens take four rows 110 instructions for a wide plane, 65 for a narrow one: 64 or 32 lookups
 * and sums, and the rest for indices, loads and prefetches. In fp32 a plane takes 460.
 */

#if defined(TOY_KV__TARGET_dot) && TOY_KV_BLOCK >= 64

/* Narrow planes whose scores are summed in 16 bits. */
#define TOY_KV__NARROW_CHUNK_neon 256

/* The table of plane p for row r in lut [planes, rows, 16]. */
static inline const float *toy_kv__lut_neon(const float *lut, int p, int rows, int r)
{
    return lut + ((size_t)p * (size_t)rows + (size_t)r) * 16;
}

/* Wide planes: from the last plane on, as many narrow ones as keep every row's rounding error
 * within the tolerance. top [rows]: the largest entries of narrow planes. */
static int toy_kv__wide_planes_neon(const float *lut, int planes, int rows, const float *energy,
                                  float *top)
{
    int p, r, i, wide = 0;
    for (r = 0; r < rows; r++) {
        float32x4_t square = vdupq_n_f32(0.0f);
        float limit, most = 0.0f;
        for (p = 0; p < planes; p++)
            for (i = 0; i < 16; i += 4) {
                const float32x4_t x = vld1q_f32(toy_kv__lut_neon(lut, p, rows, r) + i);
                square = vfmaq_f32(square, x, x);
            }
        /* A narrow plane adds (top / 127)^2 / 12 to the mean square of an error. Half the
         * tolerance: rounding of wide planes is seen as well. */
        limit = 0.25f * TOY_KV__TABLE_ERROR * TOY_KV__TABLE_ERROR * 127.0f * 127.0f * 12.0f *
                (energy[r] + vaddvq_f32(square) / 16.0f);
        for (p = planes - 1; p >= wide; p--) {
            float m = toy_kv__reach_neon(toy_kv__lut_neon(lut, p, rows, r));
            most = m > most ? m : most;
            if (most * most * (float)(planes - p) > limit)
                wide = p + 1;
        }
    }
    for (r = 0; r < rows; r++)
        for (top[r] = 0.0f, p = wide; p < planes; p++) {
            float m = toy_kv__reach_neon(toy_kv__lut_neon(lut, p, rows, r));
            top[r] = m > top[r] ? m : top[r];
        }
    return wide;
}

/* What an entry of row r counts in wide planes. */
static float toy_kv__wide_scale_neon(const float *lut, int wide, int rows, int r)
{
    float sum = 0.0f, most = 0.0f;
    int p;
    for (p = 0; p < wide; p++) {
        sum = (p % TOY_KV__CHUNK_neon == 0 ? 0.0f : sum) +
              toy_kv__reach_neon(toy_kv__lut_neon(lut, p, rows, r));
        most = sum > most ? sum : most;
    }
    return most / (32767.0f - TOY_KV__CHUNK_neon); /* rounding may add half a unit a plane */
}

static void toy_kv__pack_tables_neon(const float *lut, int planes, int rows, const float *energy,
                                   toy_kv__packed *head, signed char *out)
{
    const signed char *start = out;
    float top[TOY_KV__MAX_ROWS], factor[2 * TOY_KV__MAX_ROWS];
    int p, r, i;
    head->wide = toy_kv__wide_planes_neon(lut, planes, rows, energy, top);
    for (r = 0; r < rows; r++) {
        head->scale[2 * r] = toy_kv__wide_scale_neon(lut, head->wide, rows, r);
        head->scale[2 * r + 1] = top[r] / 127.0f;
        for (i = 2 * r; i < 2 * r + 2; i++)
            factor[i] = head->scale[i] > 0.0f ? 1.0f / head->scale[i] : 0.0f;
    }
    for (p = 0; p < head->wide; p++)
        for (r = 0; r < rows; r++, out += 32)
            toy_kv__split_neon(toy_kv__lut_neon(lut, p, rows, r), factor[2 * r], out);
    for (; p < planes; p += 2)
        for (r = 0; r < rows; r++, out += 32) {
            toy_kv__sixteen_neon(toy_kv__lut_neon(lut, p, rows, r), factor[2 * r + 1], out);
            if (p + 1 < planes)
                toy_kv__sixteen_neon(toy_kv__lut_neon(lut, p + 1, rows, r), factor[2 * r + 1],
                                   out + 16);
            else
                memset(out + 16, 0, 16);
        }
    head->bytes = (int)((out - start + 63) / 64 * 64);
}

/* Scores of 32 tokens, a piece of sixteen bytes of each plane, for n rows from row r on: planes
 * from .. to - 1, all of them wide, or none, of which a table has two; tables: those of plane from.
 * n and `wide` are constants. */
TOY_KV__INLINE_neon void toy_kv__score_piece_neon(const unsigned char *codes, int from, int to,
                                              const toy_kv__packed *head, const signed char *tables,
                                              int rows, int r, const int n, const int wide, int add,
                                              toy_kv__asked *ahead, float *s)
{
    int16x8_t sum[4][4];
    int p, k, i;
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        sum[k][0] = sum[k][1] = sum[k][2] = sum[k][3] = vdupq_n_s16(0);
    tables += 32 * r;
    for (p = from; p < to; p += wide ? 1 : 2, tables += 32 * rows) {
        const unsigned char *plane = codes + (size_t)p * (TOY_KV_BLOCK / 2);
        const uint8x16_t x = vld1q_u8(plane);
        uint8x16_t index[4];
        toy_kv__pairs_neon(x, wide || p + 1 == to ? x : vld1q_u8(plane + TOY_KV_BLOCK / 2), index);
        if ((p - from) % 4 == 0)
            toy_kv__ask_neon(ahead);
#pragma GCC unroll 4
        for (k = 0; k < n; k++) {
            const uint8x16x2_t t = toy_kv__two_neon(tables + 32 * k);
#pragma GCC unroll 4
            for (i = 0; i < 4; i++) {
                const int8x16_t e = vreinterpretq_s8_u8(vqtbl2q_u8(t, index[i]));
                sum[k][i] =
                    wide ? vaddq_s16(sum[k][i], vreinterpretq_s16_s8(e)) : vpadalq_s8(sum[k][i], e);
            }
        }
    }
#pragma GCC unroll 4
    for (k = 0; k < n; k++)
        toy_kv__flush_neon(sum[k], head->scale[2 * (r + k) + !wide], add, s + (r + k) * TOY_KV_BLOCK);
}

/* All rows of one block, by planes that are all wide, or not; `wide` is a constant. */
TOY_KV__INLINE_neon void toy_kv__score_planes_neon(const unsigned char *codes, int from, int to,
                                               const toy_kv__packed *head, const signed char *tables,
                                               int rows, const int wide, int add,
                                               toy_kv__asked *ahead, float *s)
{
    int t, r;
#define TOY_KV__X(n)                                                                                 \
    toy_kv__score_piece_neon(codes + t, from, to, head, tables, rows, r, n, wide, add, ahead, s + t)
    for (t = 0; t < TOY_KV_BLOCK / 2; t += 16) {
        TOY_KV__BY_ROWS(r, rows, TOY_KV__X);
    }
#undef TOY_KV__X
}

TOY_KV__TARGET_dot static void toy_kv__score_bytes_neon(const unsigned char *const *codes,
                                                    size_t offset, int blocks, int planes,
                                                    const toy_kv__packed *head,
                                                    const signed char *tables, int rows, int add,
                                                    toy_kv__asked *ahead, float *s)
{
    toy_kv__asked asked = *ahead;
    int b, p, end, more;
    for (b = 0; b < blocks; b++, s += rows * TOY_KV_BLOCK) {
        const signed char *t = tables;
        more = add;
        for (p = 0; p < head->wide; p = end, more = 1, t += 32 * rows * TOY_KV__CHUNK_neon) {
            end = head->wide - p < TOY_KV__CHUNK_neon ? head->wide : p + TOY_KV__CHUNK_neon;
            toy_kv__score_planes_neon(codes[b] + offset, p, end, head, t, rows, 1, more, &asked, s);
        }
        t = tables + 32 * rows * head->wide;
        for (; p < planes; p = end, more = 1, t += 32 * rows * (TOY_KV__NARROW_CHUNK_neon / 2)) {
            end = planes - p < TOY_KV__NARROW_CHUNK_neon ? planes : p + TOY_KV__NARROW_CHUNK_neon;
            toy_kv__score_planes_neon(codes[b] + offset, p, end, head, t, rows, 0, more, &asked, s);
        }
    }
    *ahead = asked;
}

/* No batches: where every block has a frame of its own, what needs score tables is scored in fp32.
 */
#define TOY_KV__X(name) toy_kv__##name##_neon,
static const toy_kv__byte_ops toy_kv__byte_ops_neon = {
    TOY_KV__ALL_BYTE_KERNELS(TOY_KV__X, TOY_KV__NO_KERNEL, TOY_KV__NO_KERNEL, TOY_KV__NO_KERNEL)
        TOY_KV__WEIGHT_REST_neon,
    0.05f};
#undef TOY_KV__X

#endif

#ifdef TOY_KV__TARGET_dot
#define TOY_KV__X(name) toy_kv__##name##_neon,
static const toy_kv__ops toy_kv__ops_neon_dot = {TOY_KV__LANES_neon,
                                             TOY_KV__KERNELS(TOY_KV__X) TOY_KV__BYTE_OPS_dot,
                                             &toy_kv__dense_neon, &toy_kv__code_neon};
#undef TOY_KV__X
#endif
#endif

/* Which instruction set to use. Nothing is cached: a cache asks once, when it is made. */

#ifdef TOY_KV__ARM
static int toy_kv__has_dot(void)
{
#ifndef TOY_KV__TARGET_dot
    return 0;
#elif defined(__ARM_FEATURE_DOTPROD)
    return 1; /* this program runs nowhere else */
#elif defined(__linux__)
    return (int)(getauxval(AT_HWCAP) >> 20 & 1); /* HWCAP_ASIMDDP, which not every libc names */
#else
    return 0;
#endif
}
#endif

static int toy_kv__has(toy_kv_isa isa)
{
    switch (isa) {
    case TOY_KV_ISA_AUTO:
    case TOY_KV_ISA_PORTABLE:
        return 1;
#ifdef TOY_KV__X86
    case TOY_KV_ISA_AVX2:
        /* Every processor with AVX2 and FMA has F16C, which clang's builtin does not know. */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case TOY_KV_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef TOY_KV__ARM
    case TOY_KV_ISA_NEON:
        return 1; /* part of AArch64 */
    case TOY_KV_ISA_NEON_DOT:
        return toy_kv__has_dot();
#endif
    default:
        return 0;
    }
}

static toy_kv_isa toy_kv__best(void)
{
    if (toy_kv__has(TOY_KV_ISA_AVX512))
        return TOY_KV_ISA_AVX512;
    if (toy_kv__has(TOY_KV_ISA_AVX2))
        return TOY_KV_ISA_AVX2;
    if (toy_kv__has(TOY_KV_ISA_NEON_DOT))
        return TOY_KV_ISA_NEON_DOT;
    return toy_kv__has(TOY_KV_ISA_NEON) ? TOY_KV_ISA_NEON : TOY_KV_ISA_PORTABLE;
}

static const toy_kv__ops *toy_kv__select(toy_kv_isa isa)
{
    switch (isa) {
#ifdef TOY_KV__X86
    case TOY_KV_ISA_AVX512:
        return &toy_kv__ops_avx512;
    case TOY_KV_ISA_AVX2:
        return &toy_kv__ops_avx2;
#endif
#ifdef TOY_KV__ARM
    case TOY_KV_ISA_NEON:
        return &toy_kv__ops_neon;
#ifdef TOY_KV__TARGET_dot
    case TOY_KV_ISA_NEON_DOT:
        return &toy_kv__ops_neon_dot;
#endif
#endif
    default:
        return &toy_kv__ops_portable;
    }
}

/* Codes of 1 to 16 bits but 4: codebooks of any size, over any number of channels.
 *
 * A plane holds one code of each token of a block in BLOCK * bits / 8 bytes: for each whole byte of
 * a code BLOCK of them, low ones first, then the bits that are left, packed token behind token from
 * the lowest bit up. Scores are looked up in a table with one entry a codeword; probabilities are
 * added up in bins, one a codeword, and meet the codewords only once, behind the last token: no
 * vector is rebuilt. Tables and bins of one row are contiguous, plane behind plane. */

static inline size_t toy_kv__wide_bytes(const toy_kv__run *run)
{
    return (size_t)(TOY_KV_BLOCK / 8) * run->bits;
}

/* Codewords of one plane: binary16 [width, 2^bits]. */
static inline int toy_kv__wide_book(const toy_kv__run *run, int plane)
{
    return run->book + plane / run->stages * run->book_step +
           plane % run->stages * (run->width << run->bits);
}

/* Into a plane that is zero at token t. */
static void toy_kv__write_wide(unsigned char *plane, int bits, int t, int code)
{
    int whole = bits / 8, rest = bits % 8, shift = t * rest % 8, i;
    unsigned char *p = plane + whole * TOY_KV_BLOCK + t * rest / 8;
    for (i = 0; i < whole; i++, code >>= 8)
        plane[i * TOY_KV_BLOCK + t] = (unsigned char)(code & 255);
    if (rest == 0)
        return;
    *p = (unsigned char)(*p | (code << shift & 255));
    if (shift + rest > 8)
        p[1] = (unsigned char)(p[1] | code >> (8 - shift));
}

/* bytes [BLOCK]: the bits of a plane's codes above the whole bytes. */
static void toy_kv__unpack_rest(const unsigned char *plane, int bits, unsigned char *bytes)
{
    int t, i, rest = bits % 8;
    const unsigned char *p = plane + bits / 8 * TOY_KV_BLOCK;
    /* Eight codes fill `rest` bytes. Of each half, quarter and eighth in turn, the lower one stays
     * and the upper one moves to where its bytes begin. */
    uint64_t halves = (1ull << 4 * rest) - 1;
    uint64_t quarters = ((1ull << 2 * rest) - 1) * 0x0000000100000001u;
    uint64_t eighths = ((1ull << rest) - 1) * 0x0001000100010001u;
    for (t = 0; t < TOY_KV_BLOCK; t += 8, p += rest) {
        uint64_t word = 0;
        for (i = 0; i < rest; i++)
            word |= (uint64_t)p[i] << 8 * i;
        word = (word & halves) | (word << (32 - 4 * rest) & halves << 32);
        word = (word & quarters) | (word << (16 - 2 * rest) & quarters << 16);
        word = (word & eighths) | (word << (8 - rest) & eighths << 8);
        memcpy(bytes + t, &word, 8);
    }
}

/* code [BLOCK] of a plane. */
static void toy_kv__unpack_wide(const unsigned char *plane, int bits, unsigned short *code)
{
    int t, whole = bits / 8;
    unsigned char bytes[TOY_KV_BLOCK] = {0};
    if (bits % 8 != 0)
        toy_kv__unpack_rest(plane, bits, bytes);
    for (t = 0; t < TOY_KV_BLOCK; t++)
        code[t] = (unsigned short)(bytes[t] << 8 * whole);
    for (t = 0; t < TOY_KV_BLOCK && whole > 0; t++)
        code[t] = (unsigned short)(code[t] | plane[t]);
    for (t = 0; t < TOY_KV_BLOCK && whole > 1; t++)
        code[t] = (unsigned short)(code[t] | plane[TOY_KV_BLOCK + t] << 8);
}

/* table [2^bits] of each plane = query . codeword, for one row's latents y; returns its end. */
static float *toy_kv__fill_wide(const toy_kv__ops *ops, const toy_kv__run *run, const float *y,
                              float *table)
{
    int p, w, n = 1 << run->bits;
    for (p = 0; p < run->planes; p++, table += n) {
        const float *q = y + run->first + p / run->stages * run->width;
        memset(table, 0, sizeof(float) * (size_t)n);
        for (w = 0; w < run->width; w++)
            ops->add_row(toy_kv__table(toy_kv__wide_book(run, p) + w * n), n, q[w], table);
    }
    return table;
}

/* s [rows, BLOCK] += the entries at the codes of each plane; tables of rows at distance
 * MAX_WIDE_LUT.
 */
static void toy_kv__score_wide(const toy_kv__run *run, const unsigned char *codes, const float *table,
                             int rows, float *s)
{
    unsigned short code[TOY_KV_BLOCK];
    int p, r, t;
    for (p = 0; p < run->planes; p++, table += (size_t)1 << run->bits) {
        toy_kv__unpack_wide(codes + (size_t)p * toy_kv__wide_bytes(run), run->bits, code);
        for (r = 0; r < rows; r++) {
            const float *row = table + (size_t)r * TOY_KV__MAX_WIDE_LUT;
            for (t = 0; t < TOY_KV_BLOCK; t++)
                s[r * TOY_KV_BLOCK + t] += row[code[t]];
        }
    }
}

/* bins at the codes of each plane += p [rows, BLOCK]; bins of rows at distance MAX_WIDE_BINS. */
static void toy_kv__sum_wide(const toy_kv__run *run, const unsigned char *codes, const float *p,
                           int rows, float *bins)
{
    unsigned short code[TOY_KV_BLOCK];
    int i, r, t;
    for (i = 0; i < run->planes; i++, bins += (size_t)1 << run->bits) {
        toy_kv__unpack_wide(codes + (size_t)i * toy_kv__wide_bytes(run), run->bits, code);
        for (r = 0; r < rows; r++) {
            float *row = bins + (size_t)r * TOY_KV__MAX_WIDE_BINS;
            for (t = 0; t < TOY_KV_BLOCK; t++)
                row[code[t]] += p[r * TOY_KV_BLOCK + t];
        }
    }
}

/* y [n_latents] += codewords * bins of one row; returns the end of the run's bins. */
static const float *toy_kv__collect_wide(const toy_kv__ops *ops, const toy_kv__run *run,
                                       const float *bins, float *y)
{
    int p, w, n = 1 << run->bits;
    for (p = 0; p < run->planes; p++, bins += n) {
        float *dst = y + run->first + p / run->stages * run->width;
        for (w = 0; w < run->width; w++)
            dst[w] += ops->dot_row(toy_kv__table(toy_kv__wide_book(run, p) + w * n), n, bins);
    }
    return bins;
}

/* Decoding: from the codes of a block to latents and vectors. Tiles are [channels, BLOCK]. */

static inline float *toy_kv__row(float *tile, int row)
{
    return tile + (size_t)row * TOY_KV_BLOCK;
}

/* The gains of one group for all tokens of a block. NSN has two planes for each group. */
static void toy_kv__read_gains(const toy_kv__ops *ops, const toy_kv__stream *s,
                             const unsigned char *codes, int group, float *gain)
{
    int t;
    if (s->gain != TOY_KV__NO_GAIN)
        ops->gains(codes + group * TOY_KV_BLOCK * s->gain_bytes,
                   s->gain_bytes == 1 ? toy_kv__table(s->gain_table) : NULL, gain);
    else
        for (t = 0; t < TOY_KV_BLOCK; t++)
            gain[t] = 1.0f;
}

/* Offset and step of a gain group for the i-th tokens that share them: two binary16. */
static inline unsigned char *toy_kv__range_at(const toy_kv__stream *s, unsigned char *codes, int group,
                                            int i)
{
    return codes + (group * (TOY_KV_BLOCK / s->gain_tokens) + i) * 4;
}

/* The shifts of all latents for the i-th tokens that share them: binary16 [n_latents]. */
static inline unsigned char *toy_kv__shift_at(const toy_kv__stream *s, unsigned char *codes, int i)
{
    return codes + s->n_gains * 4 * TOY_KV_BLOCK + i * s->n_latents * 2;
}

/* x [width, BLOCK], or what is added to it, = codewords of a plane of another width than 4 bits. */
static void toy_kv__decode_wide(const toy_kv__ops *ops, const toy_kv__run *run,
                              const unsigned char *plane, const unsigned char *book, int add,
                              float *x)
{
    unsigned char bytes[TOY_KV_BLOCK];
    unsigned short code[TOY_KV_BLOCK];
    float words[TOY_KV_BLOCK];
    int w, t;
    if (run->bits < 8)
        toy_kv__unpack_rest(plane, run->bits, bytes);
    else if (run->bits > 8)
        toy_kv__unpack_wide(plane, run->bits, code);
    for (w = 0; w < run->width; w++, x += TOY_KV_BLOCK, book += (size_t)2 << run->bits) {
        float *dst = add ? words : x;
        if (run->bits <= 8)
            ops->gains(run->bits < 8 ? bytes : plane, book, dst);
        else
            for (t = 0; t < TOY_KV_BLOCK; t++)
                dst[t] = toy_kv__half_at(book, code[t]);
        if (add)
            ops->dense->add_scaled(TOY_KV_BLOCK, 1.0f, words, x);
    }
}

/* x [groups * width, BLOCK]: the codewords of one run. */
static void toy_kv__decode_run(const toy_kv__ops *ops, const toy_kv__run *run, const unsigned char *codes,
                             float *x)
{
    unsigned char bytes[TOY_KV_BLOCK];
    int p;
    size_t size = toy_kv__wide_bytes(run);
    for (p = 0; p < run->planes; p++, codes += size) {
        float *dst = toy_kv__row(x, p / run->stages * run->width);
        int add = p % run->stages != 0;
        const unsigned char *book = toy_kv__table(toy_kv__wide_book(run, p));
        if (run->coder == TOY_KV__HALVES) {
            ops->gains(codes, NULL, dst);
        } else if (run->coder == TOY_KV__BYTES) {
            ops->dense->from_bytes(codes, -128.0f, dst);
        } else if (run->coder == TOY_KV__NIBBLES) {
            ops->dense->from_nibbles(codes, book, run->width, add, dst);
        } else if (run->uniform) {
            toy_kv__unpack_rest(codes, run->bits, bytes);
            ops->dense->from_bytes(bytes, -(float)(1 << (run->bits - 1)), dst);
        } else {
            toy_kv__decode_wide(ops, run, codes, book, add, dst);
        }
    }
}

/* z^ = o + s w of one gain group. Codewords of uniform codes count from their middle, `middle`,
 * offsets from code 0. */
static void toy_kv__apply_range(const toy_kv__ops *ops, const toy_kv__stream *s,
                              const unsigned char *codes, int group, float middle, float *z)
{
    float step[TOY_KV_BLOCK], offset[TOY_KV_BLOCK];
    int i, t, c, n = TOY_KV_BLOCK / s->gain_tokens;
    for (i = 0; i < n; i++) {
        const unsigned char *p = toy_kv__range_at(s, (unsigned char *)(uintptr_t)codes, group, i);
        float scale = toy_kv__half_at(p, 1), shift = toy_kv__half_at(p, 0) + scale * middle;
        if (s->gain_tokens >= 16)
            for (c = 0; c < s->gain_width; c++)
                ops->dense->affine_row(s->gain_tokens, scale, shift,
                                       toy_kv__row(z, c) + i * s->gain_tokens);
        else
            for (t = i * s->gain_tokens; t < (i + 1) * s->gain_tokens; t++) {
                step[t] = scale;
                offset[t] = shift;
            }
    }
    if (s->gain_tokens < 16)
        ops->dense->affine(step, offset, s->gain_width, z);
}

/* z^ = s1 (m + s2 w) of one gain group. */
static void toy_kv__apply_shifts(const toy_kv__ops *ops, const toy_kv__stream *s,
                               const unsigned char *codes, int group, float *z)
{
    float outer[TOY_KV_BLOCK], inner[TOY_KV_BLOCK], shift[TOY_KV_BLOCK];
    int c, t;
    toy_kv__read_gains(ops, s, codes, 2 * group, outer);
    toy_kv__read_gains(ops, s, codes, 2 * group + 1, inner);
    for (c = 0; c < s->gain_width; c++) {
        for (t = 0; t < TOY_KV_BLOCK; t++)
            shift[t] = toy_kv__half_at(
                toy_kv__shift_at(s, (unsigned char *)(uintptr_t)codes, t / s->gain_tokens),
                (size_t)(group * s->gain_width + c));
        ops->dense->affine(inner, shift, 1, toy_kv__row(z, c));
    }
    ops->scale_rows(outer, z, s->gain_width, z);
}

static void toy_kv__apply_gains(const toy_kv__ops *ops, const toy_kv__stream *s,
                              const unsigned char *codes, float *z)
{
    float gain[TOY_KV_BLOCK];
    const toy_kv__run *run = &toy_kv__runs[s->first_run];
    int group;
    for (group = 0; group < s->n_gains; group++) {
        int first = group * s->gain_width;
        float *rows = toy_kv__row(z, first);
        while (run->first + run->planes / run->stages * run->width <= first)
            run++;
        if (s->gain == TOY_KV__RANGE) {
            float middle = run->uniform ? (float)(1 << (run->bits - 1)) : 0.0f;
            toy_kv__apply_range(ops, s, codes, group, middle, rows);
        } else if (s->gain == TOY_KV__NSN) {
            toy_kv__apply_shifts(ops, s, codes, group, rows);
        } else {
            toy_kv__read_gains(ops, s, codes, group, gain);
            ops->scale_rows(gain, rows, s->gain_width, rows);
        }
    }
}

static inline int toy_kv__index_bytes(const toy_kv__stream *s)
{
    return s->n_latents <= 256 ? 1 : 2;
}

/* Puts kept latents where they belong: for each slot BLOCK of binary16, then BLOCK indices, which
 * may be anything where a saved cache was tampered with. */
static void toy_kv__place_outliers(const toy_kv__stream *s, const unsigned char *codes, float *z)
{
    int i, t, wide = toy_kv__index_bytes(s) == 2;
    const unsigned char *values = codes + s->kept;
    for (i = 0; i < s->outliers; i++) {
        const unsigned char *index = values + 2 * TOY_KV_BLOCK;
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            int c = wide ? index[2 * t] | index[2 * t + 1] << 8 : index[t];
            if (c < s->n_latents)
                toy_kv__row(z, c)[t] = toy_kv__half_at(values, (size_t)t);
        }
        values = index + (wide ? 2 : 1) * TOY_KV_BLOCK;
    }
}

/* In-place orthonormal Walsh-Hadamard transform of every token of x [n, BLOCK]. */
static void toy_kv__hadamard_tile(const toy_kv__ops *ops, float *x, int n)
{
    int step, i, j, t;
    for (step = 1; step < n; step *= 2)
        for (i = 0; i < n; i += 2 * step)
            for (j = i; j < i + step; j++) {
                float *a = toy_kv__row(x, j), *b = toy_kv__row(x, j + step);
                for (t = 0; t < TOY_KV_BLOCK; t++) {
                    float low = a[t], high = b[t];
                    a[t] = low + high;
                    b[t] = low - high;
                }
            }
    ops->shrink(x, (size_t)n * TOY_KV_BLOCK, 1.0f / sqrtf((float)n));
}

/* z [n_latents, BLOCK] of a stream's block; what a Hadamard transform mixed is unmixed already. */
static void toy_kv__decode_latents(const toy_kv__ops *ops, const toy_kv__stream *s,
                                 const unsigned char *codes, float *z)
{
    int i;
    for (i = 0; i < s->n_runs; i++) {
        const toy_kv__run *run = &toy_kv__runs[s->first_run + i];
        toy_kv__decode_run(ops, run, codes + run->codes, toy_kv__row(z, run->first));
    }
    toy_kv__apply_gains(ops, s, codes, z);
    toy_kv__place_outliers(s, codes, z);
    if (s->transform == TOY_KV__HADAMARD)
        toy_kv__hadamard_tile(ops, z, s->n_in);
}

/* out [HEAD_DIM, BLOCK] += sign * one member's share of a stream with latents z, which carry the
 * sign already where there is a basis. */
static void toy_kv__add_member(const toy_kv__ops *ops, const toy_kv__stream *s, int member, float sign,
                             const float *z, float *out)
{
    int d, row = member * TOY_KV_HEAD_DIM;
    if (s->transform == TOY_KV__BASIS)
        ops->dense->product(toy_kv__basis(s, s->dec, member), (size_t)s->n_latents, 1, s->n_latents,
                            TOY_KV_HEAD_DIM, z, out);
    else
        ops->dense->add_scaled((size_t)TOY_KV_HEAD_DIM * TOY_KV_BLOCK, sign,
                               z + (size_t)row * TOY_KV_BLOCK, out);
    for (d = 0; d < TOY_KV_HEAD_DIM && s->mean >= 0; d++)
        ops->dense->affine_row(TOY_KV_BLOCK, 1.0f,
                               sign * toy_kv__half_at(toy_kv__table(s->mean), (size_t)(row + d)),
                               toy_kv__row(out, d));
}

/* The exact list: vectors of coded tokens that their codes say too badly, kept in binary16. A chain
 * for each head of each block holds them by ascending token; indices count from 1, 0 ends. */

#define TOY_KV__KEPT_BYTES (sizeof(toy_kv__link) + 2 * (size_t)TOY_KV_HEAD_DIM)

/* Adds a vector in front of a chain; there is a free place. */
static void toy_kv__put_kept(toy_kv *kv, int slot, int block, int token, const unsigned char *row)
{
    int32_t *first = toy_kv__kept_first(kv, slot, block);
    int32_t i = kv->kept_free;
    toy_kv__link *link = toy_kv__kept_link(kv, i);
    kv->kept_free = link->next;
    kv->n_kept++;
    memcpy(toy_kv__kept_row(kv, i), row, 2 * (size_t)TOY_KV_HEAD_DIM);
    link->token = token;
    link->next = *first;
    *first = i;
}

/* Empties the chains of a block. */
static void toy_kv__drop_kept(toy_kv *kv, int block)
{
    int slot;
    for (slot = 0; slot < TOY_KV__SLOTS; slot++) {
        int32_t *first = toy_kv__kept_first(kv, slot, block);
        while (*first != 0) {
            int32_t i = *first;
            toy_kv__link *link = toy_kv__kept_link(kv, i);
            *first = link->next;
            link->next = kv->kept_free;
            kv->kept_free = i;
            kv->n_kept--;
        }
    }
}

static int toy_kv__count_kept(const toy_kv *kv, int block)
{
    int slot, n = 0;
    int32_t i;
    for (slot = 0; slot < TOY_KV__SLOTS && TOY_KV__KEEPS; slot++)
        for (i = *toy_kv__kept_first(kv, slot, block); i != 0; i = toy_kv__kept_link(kv, i)->next)
            n++;
    return n;
}

/* Writes the kept vectors of one head into x [HEAD_DIM, BLOCK]. */
static void toy_kv__place_kept(const toy_kv *kv, int part, int layer, int head, int block, float *x)
{
    int32_t i = *toy_kv__kept_first(kv, toy_kv__slot(part, layer, head), block);
    int d;
    for (; i != 0; i = toy_kv__kept_link(kv, i)->next) {
        const unsigned char *row = toy_kv__kept_row(kv, i);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            x[d * TOY_KV_BLOCK + toy_kv__kept_link(kv, i)->token] = toy_kv__half_at(row, (size_t)d);
    }
}

/* Puts the scores of kept keys into s [rows, BLOCK]: q [rows, HEAD_DIM]. */
static void toy_kv__score_kept(const toy_kv *kv, const toy_kv__ops *ops, int layer, int head, int block,
                             const float *q, int rows, float *s)
{
    int32_t i = *toy_kv__kept_first(kv, toy_kv__slot(TOY_KV_KEY, layer, head), block);
    int r;
    for (; i != 0; i = toy_kv__kept_link(kv, i)->next)
        for (r = 0; r < rows; r++)
            s[r * TOY_KV_BLOCK + toy_kv__kept_link(kv, i)->token] =
                ops->dot_row(toy_kv__kept_row(kv, i), TOY_KV_HEAD_DIM, q + r * TOY_KV_HEAD_DIM);
}

/* Moves the weights of kept values out of s [rows, BLOCK] and coded [rows] into o [rows, HEAD_DIM].
 */
static void toy_kv__sum_kept(const toy_kv *kv, const toy_kv__ops *ops, int layer, int head, int block,
                           int rows, float *s, float *coded, float *o)
{
    int32_t i = *toy_kv__kept_first(kv, toy_kv__slot(TOY_KV_VALUE, layer, head), block);
    int r;
    for (; i != 0; i = toy_kv__kept_link(kv, i)->next)
        for (r = 0; r < rows; r++) {
            float *weight = &s[r * TOY_KV_BLOCK + toy_kv__kept_link(kv, i)->token];
            ops->add_row(toy_kv__kept_row(kv, i), TOY_KV_HEAD_DIM, *weight, o + r * TOY_KV_HEAD_DIM);
            coded[r] -= *weight;
            *weight = 0.0f;
        }
}

/* Rebuilding blocks: K and V as they are, for attention that cannot be absorbed, for reading, and
 * for what later streams and layers are coded against.
 *
 * A node's vectors are what its prediction says plus what its streams hold. Predictions make
 * chains down the layers: every node that the wanted ones rest on is rebuilt in its turn, in a slot
 * of the scratch that is given to another node as soon as nothing needs it any more. So a walk
 * takes time in proportion to the layers below, but memory of TOY_KV__N_SLOTS tiles only. */

#define TOY_KV__WIDTH       (TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM) /* channels of a node */
#define TOY_KV__NODE_FLOATS ((size_t)TOY_KV__WIDTH * TOY_KV_BLOCK)
#define TOY_KV__HEAD_FLOATS ((size_t)TOY_KV_HEAD_DIM * TOY_KV_BLOCK)
/* Slots, latents of a stream, and what passes through a map of reduced rank. */
#define TOY_KV__REBUILD_FLOATS                                                                       \
    (TOY_KV__N_SLOTS * TOY_KV__NODE_FLOATS +                                                           \
     ((size_t)TOY_KV__MAX_LATENTS + (size_t)TOY_KV__MAX_RANK) * TOY_KV_BLOCK)

/* Room for one walk; parts lie behind each other. */
typedef struct toy_kv__room {
    float *slots;  /* [N_SLOTS, WIDTH, BLOCK] */
    float *z;      /* [MAX_LATENTS, BLOCK] */
    float *hidden; /* [MAX_RANK, BLOCK] */
    int have;      /* stream whose latents are in z; -1: none */
} toy_kv__room;

static toy_kv__room toy_kv__make_room(float *floats)
{
    toy_kv__room room;
    room.slots = floats;
    room.z = room.slots + TOY_KV__N_SLOTS * TOY_KV__NODE_FLOATS;
    room.hidden = room.z + (size_t)TOY_KV__MAX_LATENTS * TOY_KV_BLOCK;
    room.have = -1;
    return room;
}

static inline float *toy_kv__slot_of(const toy_kv__room *room, int node)
{
    return room->slots + (size_t)toy_kv__nodes[node].slot * TOY_KV__NODE_FLOATS;
}

/* out [n_heads, HEAD_DIM, BLOCK]: what the sources, in their slots, say of some heads of a node. */
static void toy_kv__predict(const toy_kv__ops *ops, const toy_kv__room *room, int prediction, int head,
                          int n_heads, float *out)
{
    const toy_kv__prediction *p = &toy_kv__predictions[prediction];
    int s, h, d, first = head * TOY_KV_HEAD_DIM, n = n_heads * TOY_KV_HEAD_DIM;
    for (d = 0; d < n; d++) {
        float b = toy_kv__half_at(toy_kv__table(p->bias), (size_t)(first + d)),
              *row = toy_kv__row(out, d);
        for (s = 0; s < TOY_KV_BLOCK; s++)
            row[s] = b;
    }
    memset(room->hidden, 0, sizeof(float) * (size_t)p->rank * TOY_KV_BLOCK);
    for (s = 0; s < p->n_sources; s++) {
        const float *x = toy_kv__slot_of(room, p->source[s]);
        size_t row = (size_t)s * TOY_KV__WIDTH;
        for (h = head; h < head + n_heads && p->per_head; h++)
            ops->dense->product(
                toy_kv__halves(p->map, (row + (size_t)h * TOY_KV_HEAD_DIM) * TOY_KV_HEAD_DIM),
                TOY_KV_HEAD_DIM, 0, TOY_KV_HEAD_DIM, TOY_KV_HEAD_DIM, x + (size_t)h * TOY_KV__HEAD_FLOATS,
                out + (size_t)(h - head) * TOY_KV__HEAD_FLOATS);
        if (p->rank > 0)
            ops->dense->product(toy_kv__halves(p->map, row * (size_t)p->rank), (size_t)p->rank, 0,
                                TOY_KV__WIDTH, p->rank, x, room->hidden);
        else if (!p->per_head)
            ops->dense->product(toy_kv__halves(p->map, row * TOY_KV__WIDTH + (size_t)first),
                                TOY_KV__WIDTH, 0, TOY_KV__WIDTH, n, x, out);
    }
    if (p->rank > 0)
        ops->dense->product(toy_kv__halves(p->out, (size_t)first), TOY_KV__WIDTH, 0, p->rank, n,
                            room->hidden, out);
}

/* out [HEAD_DIM, BLOCK] += sign * what one stream holds of a head. */
static void toy_kv__add_use(const toy_kv *kv, const toy_kv__ops *ops, int block, toy_kv__use use,
                          float sign, toy_kv__room *room, float *out)
{
    const toy_kv__stream *s = &toy_kv__streams[use.stream];
    int have = sign < 0.0f ? -2 - use.stream : use.stream; /* negative latents are others */
    if (room->have != have) {
        toy_kv__decode_latents(ops, s, toy_kv__codes(kv, use.stream, block), room->z);
        if (sign < 0.0f && s->transform == TOY_KV__BASIS)
            ops->shrink(room->z, (size_t)s->n_latents * TOY_KV_BLOCK, -1.0f);
        room->have = have;
    }
    toy_kv__add_member(ops, s, use.member, sign, room->z, out);
}

/* Some heads of a node, in their slot: keys in the frame that they were coded in. Streams outside,
 * heads inside, so that latents which several heads share are decoded once. */
static void toy_kv__rebuild_node(const toy_kv *kv, const toy_kv__ops *ops, int block, int node, int head,
                               int n_heads, toy_kv__room *room)
{
    const toy_kv__node *n = &toy_kv__nodes[node];
    float *out = toy_kv__slot_of(room, node) + (size_t)head * TOY_KV__HEAD_FLOATS;
    int u, h, n_uses, more = 1;
    if (n->prediction >= 0)
        toy_kv__predict(ops, room, n->prediction, head, n_heads, out);
    else
        memset(out, 0, sizeof(float) * (size_t)n_heads * TOY_KV__HEAD_FLOATS);
    for (u = 0; more; u++) {
        more = 0;
        for (h = 0; h < n_heads; h++) {
            const toy_kv__use *use = toy_kv__uses_of(n->part, n->layer, head + h, &n_uses);
            if (u < n_uses)
                toy_kv__add_use(kv, ops, block, use[u], 1.0f, room,
                              out + (size_t)h * TOY_KV__HEAD_FLOATS);
            more |= u + 1 < n_uses;
        }
    }
}

/* The frame that the keys of a layer's head were coded in. */
static inline int toy_kv__frame_of(int part, int layer, int head)
{
    int n;
    return toy_kv__streams[toy_kv__uses_of(part, layer, head, &n)[0].stream].frame;
}

/* x [HEAD_DIM, BLOCK] of a block's head from its frame into rotation by the tokens' positions
 * (direction 1) or back (-1); y may be x. */
static void toy_kv__turn_tile(const toy_kv *kv, const toy_kv__ops *ops, int frame, int position,
                            float direction, const float *x, float *y)
{
    float cs[TOY_KV_N_ROT + 1] = {0.0f};
    if (frame != TOY_KV__POST) {
        toy_kv__frame_angles(frame, position, cs);
        ops->dense->turn_tile(cs, frame == TOY_KV__PRE ? toy_kv__turns(kv) : NULL, direction, x, y);
    } else if (x != y) {
        memcpy(y, x, sizeof(float) * TOY_KV__HEAD_FLOATS);
    }
}

/* Takes some heads of a node that is in its slot to out [n_heads, HEAD_DIM, BLOCK], keys rotated,
 * and what is on the exact list as it is there. */
static void toy_kv__hand_out(const toy_kv *kv, const toy_kv__ops *ops, toy_kv__entry entry, int node,
                           int head, int n_heads, const toy_kv__room *room, float *out)
{
    const toy_kv__node *n = &toy_kv__nodes[node];
    int h;
    for (h = head; h < head + n_heads; h++, out += TOY_KV__HEAD_FLOATS) {
        toy_kv__turn_tile(kv, ops, toy_kv__frame_of(n->part, n->layer, h), entry.position, 1.0f,
                        toy_kv__slot_of(room, node) + (size_t)h * TOY_KV__HEAD_FLOATS, out);
        if (TOY_KV__KEEPS)
            toy_kv__place_kept(kv, n->part, n->layer, h, entry.block, out);
    }
}

/* K and V of some heads of one layer and block: k, v [n_heads, HEAD_DIM, BLOCK], keys rotated by
 * their positions; either may be NULL. floats: [REBUILD_FLOATS]. */
static void toy_kv__rebuild(const toy_kv *kv, const toy_kv__ops *ops, toy_kv__entry entry, int layer,
                          int head, int n_heads, float *floats, float *k, float *v)
{
    enum { N = 2 * TOY_KV_N_LAYERS, WANTED = 1, SOURCE = 2 };
    unsigned char need[N] = {0};
    toy_kv__room room = toy_kv__make_room(floats);
    int i, s, top = -1;
    for (i = 0; i < N; i++)
        if (toy_kv__nodes[i].layer == layer && (toy_kv__nodes[i].part == TOY_KV_KEY ? k : v) != NULL) {
            need[i] = WANTED;
            top = i;
        }
    for (i = top; i >= 0; i--) {
        const toy_kv__prediction *p = &toy_kv__predictions[0];
        if (need[i] == 0 || toy_kv__nodes[i].prediction < 0)
            continue;
        p += toy_kv__nodes[i].prediction;
        for (s = 0; s < p->n_sources; s++)
            need[p->source[s]] |= SOURCE;
    }
    for (i = 0; i <= top; i++) {
        float *out = toy_kv__nodes[i].part == TOY_KV_KEY ? k : v;
        if (need[i] & SOURCE)
            toy_kv__rebuild_node(kv, ops, entry.block, i, 0, TOY_KV_N_KV_HEADS, &room);
        else if (need[i] != 0)
            toy_kv__rebuild_node(kv, ops, entry.block, i, head, n_heads, &room);
        if (need[i] & WANTED)
            toy_kv__hand_out(kv, ops, entry, i, head, n_heads, &room, out);
    }
}

/* Encoding what is kept beside the codes: outliers, gains, ranges and shifts. Each function leaves
 * in z [n_latents, BLOCK] what its successor sees; in the end the quotients that coders take. */

/* Which latents of a token are outliers, and so no part of means and extremes: [n_latents, BLOCK],
 * or NULL where a stream keeps none. */
typedef const unsigned char *toy_kv__outs;

static inline int toy_kv__is_out(toy_kv__outs mask, int c, int t)
{
    return mask != NULL && mask[(size_t)c * TOY_KV_BLOCK + (size_t)t];
}

static inline float toy_kv__store_half(unsigned char *p, float x)
{
    uint16_t half = toy_kv__to_half(x);
    memcpy(p, &half, 2);
    return toy_kv__from_half(half);
}

/* rank [n_latents, BLOCK]: how far latents are from their centres; centre [BLOCK]: of tokens, where
 * there is no table. */
static void toy_kv__rank_latents(const toy_kv__stream *s, const float *z, float *rank, float *centre)
{
    double sum[TOY_KV_BLOCK] = {0.0};
    const unsigned char *table = s->spread >= 0 ? toy_kv__table(s->spread) : NULL;
    int c, t;
    for (c = 0; c < s->n_latents; c++)
        for (t = 0; t < TOY_KV_BLOCK; t++)
            sum[t] += (double)z[(size_t)c * TOY_KV_BLOCK + (size_t)t];
    for (t = 0; t < TOY_KV_BLOCK; t++)
        centre[t] = (float)(sum[t] / s->n_latents);
    for (c = 0; c < s->n_latents; c++) {
        const float *x = z + (size_t)c * TOY_KV_BLOCK;
        float middle = table != NULL ? toy_kv__half_at(table, (size_t)c) : 0.0f;
        float inverse =
            table != NULL ? toy_kv__half_at(table, (size_t)s->n_latents + (size_t)c) : 1.0f;
        for (t = 0; t < TOY_KV_BLOCK; t++)
            toy_kv__row(rank, c)[t] = fabsf(x[t] - (table != NULL ? middle : centre[t])) * inverse;
    }
}

/* Keeps the outliers of every token and puts their centres in their place. rank: room for
 * [n_latents, BLOCK]. */
static void toy_kv__encode_outliers(const toy_kv__stream *s, unsigned char *codes, float *z,
                                  unsigned char *mask, float *rank)
{
    float centre[TOY_KV_BLOCK], top[TOY_KV_BLOCK];
    int index[TOY_KV_BLOCK], wide = toy_kv__index_bytes(s) == 2, i, c, t;
    unsigned char *values = codes + s->kept;
    memset(mask, 0, (size_t)s->n_latents * TOY_KV_BLOCK);
    toy_kv__rank_latents(s, z, rank, centre);
    for (i = 0; i < s->outliers; i++) {
        unsigned char *place = values + 2 * TOY_KV_BLOCK;
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            top[t] = -1.0f;
            index[t] = 0;
        }
        for (c = 0; c < s->n_latents; c++)
            for (t = 0; t < TOY_KV_BLOCK; t++)
                if (toy_kv__row(rank, c)[t] > top[t]) {
                    top[t] = toy_kv__row(rank, c)[t];
                    index[t] = c;
                }
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            float *x = &toy_kv__row(z, index[t])[t];
            toy_kv__store_half(values + 2 * t, *x);
            *x = s->spread >= 0 ? toy_kv__half_at(toy_kv__table(s->spread), (size_t)index[t])
                                : centre[t];
            toy_kv__row(rank, index[t])[t] = -2.0f;
            mask[(size_t)index[t] * TOY_KV_BLOCK + (size_t)t] = 1;
            place[wide ? 2 * t : t] = (unsigned char)(index[t] & 255);
            if (wide)
                place[2 * t + 1] = (unsigned char)(index[t] >> 8);
        }
        values = place + (wide ? 2 : 1) * TOY_KV_BLOCK;
    }
}

/* rms [BLOCK] of every token's group of latents. */
static void toy_kv__group_rms(const toy_kv__ops *ops, const toy_kv__stream *s, int group, const float *z,
                            toy_kv__outs mask, float *rms)
{
    double sum[TOY_KV_BLOCK] = {0.0};
    int left[TOY_KV_BLOCK] = {0}, c, t;
    if (mask == NULL) {
        ops->code->squares(z + (size_t)(group * s->gain_width) * TOY_KV_BLOCK, s->gain_width, rms);
        for (t = 0; t < TOY_KV_BLOCK; t++)
            rms[t] = sqrtf(rms[t] / (float)s->gain_width);
        return;
    }
    for (c = group * s->gain_width; c < (group + 1) * s->gain_width; c++)
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            double x = (double)z[(size_t)c * TOY_KV_BLOCK + (size_t)t];
            int in = !toy_kv__is_out(mask, c, t);
            sum[t] += in ? x * x : 0.0;
            left[t] += in;
        }
    for (t = 0; t < TOY_KV_BLOCK; t++)
        rms[t] = left[t] > 0 ? (float)sqrt(sum[t] / left[t]) : 0.0f;
}

/* top [BLOCK]: the first latent of largest magnitude in every token's group. */
static void toy_kv__group_top(const toy_kv__stream *s, int group, const float *z, toy_kv__outs mask,
                            float *top)
{
    int c, t;
    memset(top, 0, sizeof(float) * TOY_KV_BLOCK);
    for (c = group * s->gain_width; c < (group + 1) * s->gain_width; c++)
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            float x = z[(size_t)c * TOY_KV_BLOCK + (size_t)t];
            if (fabsf(x) > fabsf(top[t]) && !toy_kv__is_out(mask, c, t))
                top[t] = x;
        }
}

/* About where gain stands among the 256 values of a stream's table, 0 .. 254. */
static int toy_kv__guess_gain(const toy_kv__stream *s, const unsigned char *values, float gain)
{
    /* The last value, where gains take one byte. A constant instead makes gcc warn of headers whose
     * tables are shorter, since none of their streams comes here. */
    size_t end = (size_t)s->gain_bytes * 255;
    float first = (float)toy_kv__to_bits(toy_kv__half_at(values, 0));
    float last = (float)toy_kv__to_bits(toy_kv__half_at(values, end));
    float at = ((float)toy_kv__to_bits(gain) - first) / (last - first) * 255.0f;
    return !(at > 0.0f) ? 0 : at < 254.0f ? (int)at : 254;
}

/* Quantizes and stores one gain; returns what it will be read as. */
static float toy_kv__store_gain(const toy_kv__stream *s, unsigned char *p, float gain)
{
    const unsigned char *values = toy_kv__table(s->gain_table);
    int low, high;
    if (s->gain_bytes == 2)
        return toy_kv__store_half(p, gain);
    /* The 256 values ascend, nearly in steps of equal ratio, so the bits of a float, nearly its
     * logarithm, say where to begin. Take the nearest by ratio. */
    low = toy_kv__guess_gain(s, values, gain);
    while (low < 254 && toy_kv__half_at(values, (size_t)low + 1) <= gain)
        low++;
    while (low > 0 && toy_kv__half_at(values, (size_t)low) > gain)
        low--;
    high = low + 1;
    if (gain * gain > toy_kv__half_at(values, (size_t)low) * toy_kv__half_at(values, (size_t)high))
        low = high;
    *p = (unsigned char)low;
    return toy_kv__half_at(values, (size_t)low);
}

static inline float toy_kv__inverse(float x)
{
    return x != 0.0f ? 1.0f / x : 0.0f;
}

/* RMS, and gains by the largest magnitude; levels: codewords of the group's uniform coder. */
static void toy_kv__encode_plain(const toy_kv__ops *ops, const toy_kv__stream *s, unsigned char *codes,
                               int group, int levels, float *z, toy_kv__outs mask)
{
    float gain[TOY_KV_BLOCK], inverse[TOY_KV_BLOCK], *rows = toy_kv__row(z, group * s->gain_width);
    int t;
    if (s->gain == TOY_KV__RMS)
        toy_kv__group_rms(ops, s, group, z, mask, gain);
    else
        toy_kv__group_top(s, group, z, mask, gain);
    for (t = 0; t < TOY_KV_BLOCK; t++) {
        float exact = s->gain == TOY_KV__RMS      ? gain[t]
                      : s->gain == TOY_KV__ABSMAX ? fabsf(gain[t]) / (float)(levels / 2 - 1)
                                                : gain[t] / -(float)(levels / 2);
        float kept = toy_kv__store_gain(s, codes + (group * TOY_KV_BLOCK + t) * s->gain_bytes, exact);
        inverse[t] = s->gain == TOY_KV__RMS ? toy_kv__inverse(kept)
                     : kept != 0.0f       ? toy_kv__inverse(exact)
                                          : 0.0f;
    }
    ops->scale_rows(inverse, rows, s->gain_width, rows);
}

/* levels: codewords of uniform codes; 0: others. */
static void toy_kv__encode_range(const toy_kv__stream *s, unsigned char *codes, int group, int levels,
                               float *z, toy_kv__outs mask)
{
    int first = group * s->gain_width, i, c, t;
    for (i = 0; i < TOY_KV_BLOCK / s->gain_tokens; i++) {
        float low = 0.0f, high = 0.0f, offset, step;
        int left = 0, from = i * s->gain_tokens, to = from + s->gain_tokens;
        unsigned char *p = toy_kv__range_at(s, codes, group, i);
        for (c = first; c < first + s->gain_width; c++)
            for (t = from; t < to; t++) {
                float x = toy_kv__row(z, c)[t];
                if (toy_kv__is_out(mask, c, t))
                    continue;
                low = left == 0 || x < low ? x : low;
                high = left == 0 || x > high ? x : high;
                left = 1;
            }
        offset = levels > 0 ? low : (low + high) / 2.0f;
        step = levels > 0 ? (high - low) / (float)(levels - 1) : (high - low) / 2.0f;
        offset = toy_kv__store_half(p, offset);
        step = toy_kv__store_half(p + 2, step);
        /* True quotients: with offsets that are latents, halves between two codes are common. */
        for (c = first; c < first + s->gain_width; c++)
            for (t = from; t < to; t++) {
                float *x = &toy_kv__row(z, c)[t];
                *x = step != 0.0f ? (*x - offset) / step : 0.0f;
            }
    }
}

/* Stores one of the two planes of gains of NSN and divides by it. */
static void toy_kv__divide_rms(const toy_kv__ops *ops, const toy_kv__stream *s, unsigned char *plane,
                             int group, float *z, toy_kv__outs mask)
{
    float gain[TOY_KV_BLOCK], *rows = toy_kv__row(z, group * s->gain_width);
    int t;
    toy_kv__group_rms(ops, s, group, z, mask, gain);
    for (t = 0; t < TOY_KV_BLOCK; t++)
        gain[t] = toy_kv__inverse(toy_kv__store_half(plane + 2 * t, gain[t]));
    ops->scale_rows(gain, rows, s->gain_width, rows);
}

static void toy_kv__encode_shifts(const toy_kv__ops *ops, const toy_kv__stream *s, unsigned char *codes,
                                int group, float *z, toy_kv__outs mask)
{
    int first = group * s->gain_width, i, c, t;
    unsigned char *planes = codes + group * 4 * TOY_KV_BLOCK;
    toy_kv__divide_rms(ops, s, planes, group, z, mask);
    for (c = first; c < first + s->gain_width; c++)
        for (i = 0; i < TOY_KV_BLOCK / s->gain_tokens; i++) {
            float *x = toy_kv__row(z, c), shift;
            double sum = 0.0;
            int left = 0, from = i * s->gain_tokens, to = from + s->gain_tokens;
            for (t = from; t < to; t++)
                if (!toy_kv__is_out(mask, c, t)) {
                    sum += (double)x[t];
                    left++;
                }
            shift = toy_kv__store_half(toy_kv__shift_at(s, codes, i) + 2 * c,
                                     left > 0 ? (float)(sum / left) : 0.0f);
            for (t = from; t < to; t++)
                x[t] -= shift;
        }
    toy_kv__divide_rms(ops, s, planes + 2 * TOY_KV_BLOCK, group, z, mask);
}

static void toy_kv__encode_gains(const toy_kv__ops *ops, const toy_kv__stream *s, unsigned char *codes,
                               float *z, toy_kv__outs mask)
{
    const toy_kv__run *run = &toy_kv__runs[s->first_run];
    int group;
    for (group = 0; group < s->n_gains; group++) {
        int levels = 0;
        while (run->first + run->planes / run->stages * run->width <= group * s->gain_width)
            run++;
        if (run->uniform)
            levels = 1 << run->bits;
        if (s->gain == TOY_KV__RANGE)
            toy_kv__encode_range(s, codes, group, levels, z, mask);
        else if (s->gain == TOY_KV__NSN)
            toy_kv__encode_shifts(ops, s, codes, group, z, mask);
        else
            toy_kv__encode_plain(ops, s, codes, group, levels, z, mask);
    }
}

/* Encoding a block, stream by stream, on any instruction set. Tiles are [channels, BLOCK]. */

/* x as a code 0 .. last; a NaN gives 0. */
static inline int toy_kv__clamp(float x, int last)
{
    return !(x > 0.0f) ? 0 : x < (float)last ? (int)x : last;
}

/* Into a plane that is zero at token t. */
static inline void toy_kv__write_code(const toy_kv__run *run, unsigned char *plane, int t, int code)
{
    unsigned char *p = plane + t % (TOY_KV_BLOCK / 2);
    if (run->coder == TOY_KV__NIBBLES)
        *p = (unsigned char)(*p | code << t / (TOY_KV_BLOCK / 2) * 4);
    else
        toy_kv__write_wide(plane, run->bits, t, code);
}

/* A sum of codewords, one a stage, that a beam keeps: the codes, and its squared distance. */
typedef struct toy_kv__candidate {
    float distance;
    int parent;
    unsigned short code[TOY_KV__MAX_STAGES];
} toy_kv__candidate;

/* Puts a sum among the *n best, which ascend; a tie goes behind. */
static void toy_kv__keep_best(toy_kv__candidate *best, int *n, int beam, float distance, int parent,
                            int stage, int code)
{
    int i = *n < beam ? (*n)++ : beam - 1;
    for (; i > 0 && distance < best[i - 1].distance; i--) {
        best[i].distance = best[i - 1].distance;
        best[i].parent = best[i - 1].parent;
        best[i].code[stage] = best[i - 1].code[stage];
    }
    best[i].distance = distance;
    best[i].parent = parent;
    best[i].code[stage] = (unsigned short)code;
}

/* What the codes of earlier stages have left of z [width]. */
static void toy_kv__leave_rest(const toy_kv__run *run, int plane, int stages,
                             const unsigned short *code, const float *z, float *rest)
{
    int stage, w;
    memcpy(rest, z, sizeof(float) * run->width);
    for (stage = 0; stage < stages; stage++) {
        const unsigned char *book = toy_kv__table(toy_kv__wide_book(run, plane + stage));
        for (w = 0; w < run->width; w++)
            rest[w] -= toy_kv__half_at(book, ((size_t)w << run->bits) + code[stage]);
    }
}

/* code [stages] of the best sum of codewords by a beam over the stages that begin at `plane`. */
static void toy_kv__search_beam(const toy_kv__ops *ops, const toy_kv__run *run, int plane, const float *z,
                              unsigned short *code)
{
    enum { CHUNK = 256 };
    toy_kv__candidate kept[2][TOY_KV__MAX_BEAM];
    float rest[TOY_KV__MAX_WIDTH], distance[CHUNK];
    int stage, i, j, first, n_kept = 1, n_codes = 1 << run->bits, now = 0;
    for (stage = 0; stage < run->stages; stage++, now ^= 1) {
        const unsigned char *book = toy_kv__table(toy_kv__wide_book(run, plane + stage));
        toy_kv__candidate *old = kept[now], *best = kept[now ^ 1];
        int n = 0, chunk = n_codes < CHUNK ? n_codes : CHUNK;
        for (i = 0; i < n_kept; i++) {
            toy_kv__leave_rest(run, plane, stage, old[i].code, z, rest);
            for (first = 0; first < n_codes; first += chunk) {
                ops->dense->distances(book + 2 * first, n_codes, run->width, chunk, rest, distance);
                for (j = 0; j < chunk; j++)
                    if (n < run->beam || distance[j] < best[n - 1].distance)
                        toy_kv__keep_best(best, &n, run->beam, distance[j], i, stage, first + j);
            }
        }
        for (i = 0; i < n; i++)
            memcpy(best[i].code, old[best[i].parent].code, sizeof *code * (size_t)stage);
        n_kept = n;
    }
    memcpy(code, kept[now][0].code, sizeof *code * run->stages);
}

/* The same where only the nearest is kept; rest [width] is destroyed. */
static void toy_kv__search_greedy(const toy_kv__ops *ops, const toy_kv__run *run, int plane, float *rest,
                                unsigned short *code)
{
    int stage, w;
    for (stage = 0; stage < run->stages; stage++) {
        const unsigned char *book = toy_kv__table(toy_kv__wide_book(run, plane + stage));
        int best = ops->nearest_wide(book, 1 << run->bits, run->width, rest);
        for (w = 0; w < run->width; w++)
            rest[w] -= toy_kv__half_at(book, ((size_t)w << run->bits) + (size_t)best);
        code[stage] = (unsigned short)best;
    }
}

/* Codes z [groups * width, BLOCK] by codebooks of sixteen, all tokens at once; z is destroyed where
 * there are several stages. */
static void toy_kv__encode_nibbles(const toy_kv__ops *ops, const toy_kv__run *run, unsigned char *codes,
                                 float *z)
{
    float words[(TOY_KV__MAX_WIDTH + 1) * 16];
    int plane;
    for (plane = 0; plane < run->planes; plane++, codes += TOY_KV_BLOCK / 2) {
        const unsigned char *book = toy_kv__table(toy_kv__wide_book(run, plane));
        float *rest = toy_kv__row(z, plane / run->stages * run->width);
        ops->code->code_nibbles(book, run->width, rest, words, codes);
        if (plane % run->stages != run->stages - 1)
            ops->code->leave_nibbles(codes, book, run->width, rest);
    }
}

/* The same token by token: codebooks of any size, and beams. */
static void toy_kv__encode_books(const toy_kv__ops *ops, const toy_kv__run *run, unsigned char *codes,
                               const float *z)
{
    unsigned short code[TOY_KV__MAX_STAGES];
    float x[TOY_KV__MAX_WIDTH];
    int plane, t, w, stage;
    size_t size = toy_kv__wide_bytes(run);
    for (plane = 0; plane < run->planes; plane += run->stages, z += run->width * TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            for (w = 0; w < run->width; w++)
                x[w] = z[w * TOY_KV_BLOCK + t];
            if (run->beam > 1)
                toy_kv__search_beam(ops, run, plane, x, code);
            else
                toy_kv__search_greedy(ops, run, plane, x, code);
            for (stage = 0; stage < run->stages; stage++)
                toy_kv__write_code(run, codes + (size_t)(plane + stage) * size, t, code[stage]);
        }
}

/* Codes z [groups, BLOCK] by uniform levels. */
static void toy_kv__encode_levels(const toy_kv__stream *s, const toy_kv__run *run, unsigned char *codes,
                                const float *z)
{
    int p, t, last = (1 << run->bits) - 1;
    float half = s->gain == TOY_KV__RANGE ? 0.0f : (float)(1 << (run->bits - 1));
    size_t size = toy_kv__wide_bytes(run);
    for (p = 0; p < run->planes; p++, codes += size, z += TOY_KV_BLOCK)
        for (t = 0; t < TOY_KV_BLOCK; t++) {
            float level =
                s->gain == TOY_KV__SIGNMAX ? floorf(z[t] + (half + 0.5f)) : roundf(z[t]) + half;
            toy_kv__write_code(run, codes, t, toy_kv__clamp(level, last));
        }
}

static void toy_kv__encode_run(const toy_kv__ops *ops, const toy_kv__stream *s, const toy_kv__run *run,
                             unsigned char *codes, float *z)
{
    int i;
    if (run->coder == TOY_KV__HALVES)
        for (i = 0; i < run->planes * TOY_KV_BLOCK; i++)
            toy_kv__store_half(codes + 2 * i, z[i]);
    else if (run->uniform)
        toy_kv__encode_levels(s, run, codes, z);
    else if (run->bits == 4 && run->beam <= 1)
        toy_kv__encode_nibbles(ops, run, codes, z);
    else
        toy_kv__encode_books(ops, run, codes, z);
}

/* What encoding a block needs besides: in the cache's own memory. */
typedef struct toy_kv__coding {
    toy_kv *kv;
    const toy_kv__ops *ops;
    int seq, token, block; /* first token of the block, its place in the pool */
    float pre[TOY_KV_N_ROT + 1], blockwise[TOY_KV_N_ROT + 1]; /* angles that keys turn back by */
    float *x, *z;        /* [MAX_IN, BLOCK], [MAX_LATENTS, BLOCK] */
    float *predicted;    /* [WIDTH, BLOCK] */
    unsigned char *mask; /* [MAX_LATENTS, BLOCK] where outliers are kept */
    toy_kv__room room;
    int n_rebuilt; /* nodes behind us that later ones are predicted from are in their slots */
    int of;        /* the node in `predicted`; -1: none */
} toy_kv__coding;

#define TOY_KV__MASK_FLOATS ((size_t)TOY_KV__MAX_OUT_LATENTS * TOY_KV_BLOCK / 4)
#define TOY_KV__WORK_FLOATS                                                                          \
    (((size_t)TOY_KV__MAX_IN + (size_t)TOY_KV__MAX_LATENTS) * TOY_KV_BLOCK +                             \
     (TOY_KV__N_PREDICTIONS > 0 ? TOY_KV__NODE_FLOATS : 0) + TOY_KV__MASK_FLOATS + TOY_KV__REBUILD_FLOATS)

/* x [HEAD_DIM, BLOCK]: one member's exact vectors of the block, in the frame. The tokens of a block
 * are neighbours in memory. */
static void toy_kv__load_member(const toy_kv__coding *c, const toy_kv__member *m, int frame, float *x)
{
    c->ops->code->load_rows(toy_kv__exact(c->kv, c->seq, m->layer, m->part, m->head, c->token), x);
    if (m->part == TOY_KV_KEY && frame != TOY_KV__POST)
        c->ops->dense->turn_tile(frame == TOY_KV__PRE ? c->pre : c->blockwise,
                                 frame == TOY_KV__PRE ? toy_kv__turns(c->kv) : NULL, -1.0f, x, x);
}

/* Brings the prediction of a stream's node into c->predicted. Nodes are rebuilt in their order,
 * each once a block, when the first stream comes that is coded against a later one. */
static void toy_kv__bring_prediction(toy_kv__coding *c, int stream, int node)
{
    int i;
    if (c->of == node)
        return;
    for (; toy_kv__nodes[c->n_rebuilt].last_stream < stream; c->n_rebuilt++) {
        i = c->n_rebuilt;
        if (toy_kv__nodes[i].source)
            toy_kv__rebuild_node(c->kv, c->ops, c->block, i, 0, TOY_KV_N_KV_HEADS, &c->room);
    }
    toy_kv__predict(c->ops, &c->room, toy_kv__nodes[node].prediction, 0, TOY_KV_N_KV_HEADS, c->predicted);
    c->of = node;
}

/* c->x: what is left of a stream's members for it to code. */
static void toy_kv__gather_rest(toy_kv__coding *c, int stream)
{
    const toy_kv__stream *s = &toy_kv__streams[stream];
    int i, u, d, n_uses;
    for (i = 0; i < s->n_members; i++) {
        const toy_kv__member *m = &toy_kv__members[s->first_member + i];
        const toy_kv__use *use = toy_kv__uses_of(m->part, m->layer, m->head, &n_uses);
        float *x = c->x + (size_t)i * TOY_KV__HEAD_FLOATS;
        int node = toy_kv__node_at[m->part * TOY_KV_N_LAYERS + m->layer];
        toy_kv__load_member(c, m, s->frame, x);
        if (toy_kv__nodes[node].prediction >= 0) {
            toy_kv__bring_prediction(c, stream, node);
            c->ops->dense->add_scaled(TOY_KV__HEAD_FLOATS, -1.0f,
                                      c->predicted + (size_t)m->head * TOY_KV__HEAD_FLOATS, x);
        }
        for (u = 0; u < n_uses && use[u].stream < stream; u++)
            toy_kv__add_use(c->kv, c->ops, c->block, use[u], -1.0f, &c->room, x);
    }
    for (d = 0; d < s->n_in && s->mean >= 0; d++)
        c->ops->dense->affine_row(TOY_KV_BLOCK, 1.0f, -toy_kv__half_at(toy_kv__table(s->mean), (size_t)d),
                                  toy_kv__row(c->x, d));
}

static void toy_kv__encode_stream(toy_kv__coding *c, int stream)
{
    const toy_kv__stream *s = &toy_kv__streams[stream];
    unsigned char *codes = toy_kv__codes(c->kv, stream, c->block);
    float *z = s->transform == TOY_KV__BASIS ? c->z : c->x;
    int i;
    memset(codes, 0, (size_t)s->bytes);
    toy_kv__gather_rest(c, stream);
    if (s->transform == TOY_KV__BASIS) {
        memset(z, 0, sizeof(float) * (size_t)s->n_latents * TOY_KV_BLOCK);
        for (i = 0; i < s->n_members; i++)
            c->ops->dense->product(toy_kv__basis(s, s->enc, i), (size_t)s->n_latents, 0,
                                   TOY_KV_HEAD_DIM, s->n_latents,
                                   c->x + (size_t)i * TOY_KV__HEAD_FLOATS, z);
    } else if (s->transform == TOY_KV__HADAMARD) {
        toy_kv__hadamard_tile(c->ops, z, s->n_in);
    }
    if (s->outliers > 0) {
        toy_kv__encode_outliers(s, codes, z, c->mask, c->room.z);
        c->room.have = -1;
    }
    toy_kv__encode_gains(c->ops, s, codes, z, s->outliers > 0 ? c->mask : NULL);
    for (i = 0; i < s->n_runs; i++) {
        const toy_kv__run *run = &toy_kv__runs[s->first_run + i];
        toy_kv__encode_run(c->ops, s, run, codes + run->codes, toy_kv__row(z, run->first));
    }
}

/* Encodes the block that starts at `token` into pool block `block`. Streams are encoded in order:
 * what predictions and earlier ones say of a member is taken off first. */
static void toy_kv__encode_tokens(toy_kv *kv, const toy_kv__ops *ops, int seq, int token, int block)
{
    toy_kv__coding c;
    float *room = toy_kv__work(kv);
    int stream;
    memset(&c, 0, sizeof c);
    c.kv = kv;
    c.ops = ops;
    c.seq = seq;
    c.token = token;
    c.block = block;
    c.of = -1;
    toy_kv__frame_angles(TOY_KV__PRE, token, c.pre);
    toy_kv__frame_angles(TOY_KV__BLOCKWISE, token, c.blockwise);
    c.x = room;
    c.z = c.x + (size_t)TOY_KV__MAX_IN * TOY_KV_BLOCK;
    c.predicted = c.z + (size_t)TOY_KV__MAX_LATENTS * TOY_KV_BLOCK;
    room = c.predicted + (TOY_KV__N_PREDICTIONS > 0 ? TOY_KV__NODE_FLOATS : 0);
    c.mask = (unsigned char *)room;
    c.room = toy_kv__make_room(room + TOY_KV__MASK_FLOATS);
    for (stream = 0; stream < TOY_KV__N_STREAMS; stream++)
        toy_kv__encode_stream(&c, stream);
}

/* Puts the vectors of one head that x [HEAD_DIM, BLOCK] says too badly on the exact list; 0 if it
 * has no room for one. The bound is held a little closer than stated, so that it still holds where
 * another instruction set rounds otherwise. From the last token down: chains grow in front. */
static int toy_kv__keep_head(toy_kv *kv, int seq, const toy_kv__node *n, int head, toy_kv__entry entry,
                           const float *x)
{
    const float limit = TOY_KV_MAX_ERROR * TOY_KV_MAX_ERROR * 0.9998f;
    int t, d;
    for (t = TOY_KV_BLOCK - 1; t >= 0; t--) {
        const unsigned char *row =
            toy_kv__exact(kv, seq, n->layer, n->part, head, entry.position + t);
        float error = 0.0f, norm = 0.0f;
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            float exact = toy_kv__half_at(row, (size_t)d), off = exact - x[d * TOY_KV_BLOCK + t];
            error += off * off;
            norm += exact * exact;
        }
        if (error <= limit * norm)
            continue;
        if (kv->kept_free == 0)
            return 0;
        toy_kv__put_kept(kv, toy_kv__slot(n->part, n->layer, head), entry.block, t, row);
    }
    return 1;
}

/* The same for all heads of a block that has just been encoded: decodes it. */
static int toy_kv__keep_bad(toy_kv *kv, const toy_kv__ops *ops, int seq, toy_kv__entry entry)
{
    float *x = toy_kv__work(kv);
    toy_kv__room room = toy_kv__make_room(x + TOY_KV__HEAD_FLOATS);
    int node, head;
    for (node = 0; node < 2 * TOY_KV_N_LAYERS; node++) {
        toy_kv__rebuild_node(kv, ops, entry.block, node, 0, TOY_KV_N_KV_HEADS, &room);
        for (head = 0; head < TOY_KV_N_KV_HEADS; head++) {
            toy_kv__hand_out(kv, ops, entry, node, head, 1, &room, x);
            if (!toy_kv__keep_head(kv, seq, &toy_kv__nodes[node], head, entry, x))
                return 0;
        }
    }
    return 1;
}

/* Landmarks: a mean of the exact keys of every chunk of tokens, so that attention can pick the
 * chunks that matter before it reads any codes (ShadowKV, section 4.1). Chunks with a key that is
 * far from their mean are told by it badly; the worst of them are attended always.
 *
 * A block has for each layer and KV head: means as bytes that count from 128 [CHUNKS, HEAD_DIM],
 * binary16 scales [CHUNKS], and the least cosine of a key to its chunk's mean as a byte [CHUNKS],
 * 0 for -1 to 255 for 1. */

/* A chunk of coded tokens, counted from the end of the sinks. */
typedef struct toy_kv__pick {
    float score;
    int32_t chunk;
} toy_kv__pick;

/* The chunks that one pass of queries attends to, in their order. */
typedef struct toy_kv__choice {
    int32_t n, all; /* all: nothing is left out, picks mean nothing */
    toy_kv__pick picks[TOY_KV_MAX_OUTLIER_CHUNKS + TOY_KV_MAX_TOP_TOKENS / TOY_KV__CHUNK];
} toy_kv__choice;

/* ---- writing ---- */

/* cos [0, 255] of the two, 128 where one is zero. */
static unsigned char toy_kv__likeness(const float *x, const float *y)
{
    float xx = 0.0f, yy = 0.0f, xy = 0.0f;
    int d;
    for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
        xx += x[d] * x[d];
        yy += y[d] * y[d];
        xy += x[d] * y[d];
    }
    xy = xx > 0.0f && yy > 0.0f ? xy / (sqrtf(xx) * sqrtf(yy)) : 0.0f;
    xy = xy < -1.0f ? -1.0f : xy > 1.0f ? 1.0f : xy;
    return (unsigned char)(int)(127.5f * (xy + 1.0f) + 0.5f);
}

/* One chunk: keys [CHUNK], binary16 [HEAD_DIM] each. */
static void toy_kv__write_landmark(const toy_kv__ops *ops, const unsigned char *keys,
                                 unsigned char *means, unsigned char *scale, unsigned char *least)
{
    float mean[TOY_KV_HEAD_DIM], key[TOY_KV_HEAD_DIM], top = 0.0f, step;
    int t, d;
    memset(mean, 0, sizeof mean);
    for (t = 0; t < TOY_KV__CHUNK; t++)
        ops->add_row(keys + (size_t)t * TOY_KV_HEAD_DIM * 2, TOY_KV_HEAD_DIM, 1.0f / TOY_KV__CHUNK, mean);
    *least = 255;
    for (t = 0; t < TOY_KV__CHUNK; t++) {
        unsigned char like;
        memset(key, 0, sizeof key);
        ops->add_row(keys + (size_t)t * TOY_KV_HEAD_DIM * 2, TOY_KV_HEAD_DIM, 1.0f, key);
        like = toy_kv__likeness(key, mean);
        *least = like < *least ? like : *least;
    }
    for (d = 0; d < TOY_KV_HEAD_DIM; d++)
        top = fabsf(mean[d]) > top ? fabsf(mean[d]) : top;
    toy_kv__store_half(scale, top / 127.0f);
    step = toy_kv__half_at(scale, 0);
    for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
        float code = step > 0.0f ? roundf(mean[d] / step) : 0.0f;
        code = code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code;
        means[d] = (unsigned char)((int)code + 128);
    }
}

/* Of the block whose exact tokens begin at `token`. */
static void toy_kv__write_landmarks(const toy_kv *kv, const toy_kv__ops *ops, int seq, int token,
                                  int block)
{
    int layer, head, c;
    for (layer = 0; layer < TOY_KV_N_LAYERS; layer++)
        for (head = 0; head < TOY_KV_N_KV_HEADS; head++) {
            unsigned char *means = toy_kv__landmarks(kv, layer, head, block);
            unsigned char *scales = means + TOY_KV__CHUNKS * TOY_KV_HEAD_DIM;
            for (c = 0; c < TOY_KV__CHUNKS; c++) /* a block has no end of the ring inside */
                toy_kv__write_landmark(
                    ops, toy_kv__exact(kv, seq, layer, TOY_KV_KEY, head, token + c * TOY_KV__CHUNK),
                    means + c * TOY_KV_HEAD_DIM, scales + 2 * c, scales + 2 * TOY_KV__CHUNKS + c);
        }
}

/* ---- choosing ---- */

/* The order of a heap: the worst score on top (of equal ones the latest chunk), or where it is
 * being sorted the latest chunk. */
static inline int toy_kv__above(const toy_kv__pick *a, const toy_kv__pick *b, int by_chunk)
{
    if (!by_chunk && a->score != b->score)
        return a->score < b->score;
    return a->chunk > b->chunk;
}

static void toy_kv__sift(toy_kv__pick *heap, int n, int i, int by_chunk)
{
    toy_kv__pick moved = heap[i];
    int child;
    for (; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && toy_kv__above(&heap[child + 1], &heap[child], by_chunk))
            child++;
        if (!toy_kv__above(&heap[child], &moved, by_chunk))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* Puts a chunk among the `most` best. */
static void toy_kv__offer(toy_kv__pick *heap, int *n, int most, float score, int chunk)
{
    toy_kv__pick pick;
    int i;
    pick.score = score;
    pick.chunk = chunk;
    if (*n < most) {
        heap[(*n)++] = pick;
        for (i = *n / 2 - 1; i >= 0 && *n == most; i--)
            toy_kv__sift(heap, *n, i, 0);
    } else if (most > 0 && toy_kv__above(&heap[0], &pick, 0)) {
        heap[0] = pick;
        toy_kv__sift(heap, *n, 0, 0);
    }
}

static void toy_kv__sort_picks(toy_kv__pick *picks, int n)
{
    int i;
    for (i = n / 2 - 1; i >= 0; i--)
        toy_kv__sift(picks, n, i, 1);
    for (i = n - 1; i > 0; i--) {
        toy_kv__pick last = picks[i];
        picks[i] = picks[0];
        picks[0] = last;
        toy_kv__sift(picks, i, 0, 1);
    }
}

/* What a choice is made among: chunks low .. high - 1 of one head, in blocks of a sequence. */
typedef struct toy_kv__chunks {
    const toy_kv *kv;
    const toy_kv__entry *blocks;
    int layer, head, low, high;
} toy_kv__chunks;

/* The n chunks with the least likeness, sorted. */
static int toy_kv__pick_outliers(const toy_kv__chunks *c, int most, toy_kv__pick *picks)
{
    int chunk, n = 0;
    for (chunk = c->low; chunk < c->high && most > 0; chunk++) {
        const unsigned char *least =
            toy_kv__landmarks(c->kv, c->layer, c->head, c->blocks[chunk / TOY_KV__CHUNKS].block) +
            TOY_KV__CHUNKS * (TOY_KV_HEAD_DIM + 2);
        toy_kv__offer(picks, &n, most, -(float)least[chunk % TOY_KV__CHUNKS], chunk);
    }
    toy_kv__sort_picks(picks, n);
    return n;
}

/* The best of the others, for queries q [rows, HEAD_DIM], behind the n_outliers that picks holds.
 */
static int toy_kv__pick_best(const toy_kv__chunks *c, const toy_kv__ops *ops, const float *q, int rows,
                           int n_outliers, int most, toy_kv__pick *picks)
{
    float best[TOY_KV__CHUNKS];
    int j, i, n = 0, skip = 0;
    for (j = c->low / TOY_KV__CHUNKS; j * TOY_KV__CHUNKS < c->high; j++) {
        const unsigned char *means = toy_kv__landmarks(c->kv, c->layer, c->head, c->blocks[j].block);
        ops->dense->landmark_scores(means, TOY_KV__CHUNKS, q, rows, best);
        for (i = 0; i < TOY_KV__CHUNKS; i++) {
            int chunk = j * TOY_KV__CHUNKS + i;
            if (chunk < c->low || chunk >= c->high)
                continue;
            if (skip < n_outliers && picks[skip].chunk == chunk) {
                skip++;
                continue;
            }
            toy_kv__offer(picks + n_outliers, &n, most,
                        best[i] * toy_kv__half_at(means + TOY_KV__CHUNKS * TOY_KV_HEAD_DIM, (size_t)i),
                        chunk);
        }
    }
    return n;
}

/* Chooses for `rows` queries q [rows, HEAD_DIM] among the coded tokens first .. last - 1. */
static void toy_kv__choose(toy_kv__chunks *c, const toy_kv__ops *ops, const toy_kv__seq *seq,
                         const float *q, int rows, int first, int last, int n_top, int n_outliers,
                         toy_kv__choice *choice)
{
    int coded = toy_kv__n_coded(seq);
    first = first < TOY_KV_N_SINK ? TOY_KV_N_SINK : first;
    last = last > coded ? coded : last;
    c->low = (first - TOY_KV_N_SINK) / TOY_KV__CHUNK;
    c->high = last < TOY_KV_N_SINK ? 0 : (last - TOY_KV_N_SINK + TOY_KV__CHUNK - 1) / TOY_KV__CHUNK;
    choice->all = n_top + n_outliers >= c->high - c->low;
    choice->n = 0;
    if (choice->all)
        return;
    choice->n = toy_kv__pick_outliers(c, n_outliers, choice->picks);
    choice->n += toy_kv__pick_best(c, ops, q, rows, choice->n, n_top, choice->picks);
    toy_kv__sort_picks(choice->picks, choice->n);
}

/* ---- what was chosen ---- */

/* Index of the first pick that is no chunk before block j. */
static int toy_kv__first_pick(const toy_kv__choice *choice, int j)
{
    int low = 0, high = choice->n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (choice->picks[middle].chunk < j * TOY_KV__CHUNKS)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether any chunk of block j is attended. */
static int toy_kv__picked(const toy_kv__choice *choice, int j)
{
    int i = toy_kv__first_pick(choice, j);
    return i < choice->n && choice->picks[i].chunk < (j + 1) * TOY_KV__CHUNKS;
}

/* Masks what is left out of the scores s [BLOCK] of block j. */
static void toy_kv__mask_chunks(const toy_kv__choice *choice, int j, float *s)
{
    int c, t, i = toy_kv__first_pick(choice, j);
    for (c = 0; c < TOY_KV__CHUNKS; c++) {
        if (i < choice->n && choice->picks[i].chunk == j * TOY_KV__CHUNKS + c) {
            i++;
            continue;
        }
        for (t = c * TOY_KV__CHUNK; t < (c + 1) * TOY_KV__CHUNK; t++)
            s[t] = TOY_KV__MASKED;
    }
}

/* One pass of attention for a few queries: its state in the scratch, the online softmax, and tokens
 * that are exact. */

/* The state of up to TOY_KV__MAX_ROWS queries of one KV head. All pointers lie in the scratch. A tile
 * is TOY_KV__TILE blocks: scores of all of them, one softmax, sums. Rows of a tile lie block by
 * block: [blocks, rows, BLOCK]. */
#define TOY_KV__TILE       (2048 / TOY_KV_BLOCK)
#define TOY_KV__MAP_BLOCKS (TOY_KV__TILE < 8 ? TOY_KV__TILE : 8)

/* What kernels are to ask for, piece by piece: [0] near, codes of keys that are few enough for the
 * first-level cache, [1] far, the rest. */
typedef struct toy_kv__ahead {
    toy_kv__asked now; /* the streams at hand */
    int n[2], next[2];
    const unsigned char *first[2][TOY_KV__ASKED], *last[2][TOY_KV__ASKED];
} toy_kv__ahead;

/* What takes the scores of K runs. */
enum toy_kv__kernel {
    TOY_KV__BY_DOTS,    /* codewords meet the query */
    TOY_KV__BY_FILLED,  /* score tables in bytes, of codewords in words */
    TOY_KV__BY_PACKED,  /* score tables in bytes, of those in fp32 */
    TOY_KV__BY_TABLES,  /* score tables in fp32 */
    TOY_KV__BY_SCALARS, /* values meet the query in fp32 */
    TOY_KV__BY_WIDE     /* score tables of codes of other than 4 bits */
};

/* Where lies what K runs meet codes with: each kernel's share of it, run behind run. */
typedef struct toy_kv__scoring {
    float *lut;           /* score tables */
    char *packed;         /* the same in bytes: toy_kv__packed, then tables, for each of planes */
    float *wide;          /* [rows, MAX_WIDE_LUT] score tables of wide codes, from here on */
    unsigned char *table; /* codewords of runs that toy_kv__dots() says: [groups, 64] */
    float *scale;         /* of their channels [4 * groups] */
    unsigned char *lanes; /* the queries in their units: [rows, groups, 4] */
    float *unit;          /* [runs, rows, 2] */
} toy_kv__scoring;

/* One kernel's share of the scores of a block. */
typedef struct toy_kv__step {
    const toy_kv__run *run; /* the first of n_runs */
    const toy_kv__stream *stream;
    int use, n_runs, planes; /* use: which of the head's K streams */
    unsigned char kernel, band;
    unsigned char first, last; /* of those that share a gain */
    toy_kv__scoring at;          /* what the kernel meets codes with begins there */
} toy_kv__step;

/* Where a stream's latents are among those that queries were mapped to: the first n_words of them,
 * and the mean behind, at column `words` and on, the others at `bytes` and on. */
typedef struct toy_kv__columns {
    int n_words, words, bytes;
} toy_kv__columns;

/* Bases of all K streams of a head: some of their channels to some of their latents. */
typedef struct toy_kv__map {
    short *words;         /* [columns / 16, n_in / 2, 32] */
    unsigned char *bytes; /* [byte_columns / 16, BYTE_ROWS(n_in) / 4, 64] */
    float *scale;         /* [columns], [byte_columns] */
    int n_in, columns, byte_columns;
    toy_kv__columns at[TOY_KV__MAX_USES];
} toy_kv__map;

/* Queries in latents of one stream, rows `stride` apart: latents `before` and on, n_words of them
 * at `words`, the others at `bytes`. */
typedef struct toy_kv__mapped {
    const float *words, *bytes;
    int before, n_words;
    size_t stride;
} toy_kv__mapped;

typedef struct toy_kv__pass {
    const toy_kv *kv;
    const toy_kv__ops *ops;
    const toy_kv__entry *blocks;
    int seq, layer, head, rows, first, last; /* tokens first .. last - 1 */
    int position[TOY_KV__MAX_ROWS];            /* of each query */
    float soft_cap;
    int window, coded; /* coded: some block was attended, so there are sums */
    int in_bytes;      /* V streams are summed by byte kernels */
    int k_bytes; /* and K streams scored: not where packing tables for each block costs more */
    const toy_kv__use *k_uses, *v_uses;
    const unsigned char *k_codes[TOY_KV__MAX_USES], *v_codes[TOY_KV__MAX_USES]; /* of block 0 */
    toy_kv__step *steps;     /* [n_steps] of K streams */
    int n_steps, packs[2]; /* packs: of a band some tables are packed, which wants energies */
    int n_k_uses, n_v_uses, k_frame;
    float *q;                 /* [rows, HEAD_DIM], scaled */
    float *turned;            /* [rows, HEAD_DIM], in the frame of the block at hand */
    float *y;                 /* [rows, MAX_LATENTS] query in latents */
    toy_kv__scoring scoring[2]; /* where what scores are taken with begins: steady runs, turning */
    float *bins;        /* [rows, MAX_WIDE_BINS] sums of probability * gain for each wide code */
    toy_kv__map map[2];   /* of steady channels to all latents, of turning ones to turning runs */
    float *map_base;    /* [rows, columns] what steady channels make of the latter */
    short *map_queries; /* [MAP_BLOCKS, rows, HEAD_DIM] turned queries of a batch of blocks */
    signed char *byte_queries; /* the same in bytes, if latents are mapped so */
    float *mapped;             /* [MAP_BLOCKS, rows, columns + byte_columns] the same in latents */
    float *ordered;            /* [rows, HEAD_DIM] queries, channels in the order of toy_kv__order */
    int batches;               /* queries are mapped in batches */
    int steady_number;         /* of the span that steady runs are ready for, -1: none */
    float map_unit[TOY_KV__MAX_ROWS], byte_unit[TOY_KV__MAX_ROWS]; /* what a word and a byte count */
    short byte_steps[TOY_KV__MAX_ROWS];                          /* bytes that make 32768 words */
    float *book; /* codewords of all V streams of the head: fp32, or bytes and scales */
    float *acc;  /* [rows, MAX_SUM_LATENTS, lanes] sums of probability * codeword * gain, in fp32 */
    float *sums; /* [rows, MAX_SUM_LATENTS] the same of what byte kernels sum */
    int in_lanes;         /* acc is in use */
    float *s, *part;      /* [TILE, rows, BLOCK] */
    float *gain;          /* [TILE, BLOCK] */
    unsigned char *bytes; /* [2, TILE, rows, BLOCK] weights in 8 bits, and what is left of them */
    float *step, *cs; /* angles of one block [N_ROT / 2, 2], of the one at hand [2, N_ROT / 2] */
    const float *k_tile, *v_tile; /* blocks tile_first and on, rebuilt; NULL: absorbed */
    int tile_first;
    toy_kv__ahead ahead; /* codes, asked for while blocks are scored */
    toy_kv__ahead later; /* what is needed behind the coded blocks, while the last ones are summed in
                          bytes; kernels of AVX-512 ask for it */
    int asks;          /* kernels ask for it; else it is asked for before them */
    toy_kv__entry tile[TOY_KV__TILE]; /* the coded blocks at hand, their numbers, their first tokens */
    int tile_block[TOY_KV__TILE], tile_token[TOY_KV__TILE];
    const toy_kv__choice *choice;      /* of chunks; NULL: all are attended */
    float bias[TOY_KV__MAX_ROWS];      /* q . mean of the coded keys */
    float high[TOY_KV__MAX_ROWS * 16]; /* [rows, lanes] the highest scores of a tile */
    float m[TOY_KV__MAX_ROWS], l[TOY_KV__MAX_ROWS], l_coded[TOY_KV__MAX_ROWS];
    float *o; /* [rows, HEAD_DIM] */
} toy_kv__pass;

/* Floats of scratch, in the order of carve() below; each part is rounded up to 16 floats. */
#define TOY_KV__ROOM(n) (((size_t)(n) + 15u) / 16u * 16u)
/* Each run of planes has a head and up to three planes to fill a quad; an entry takes two bytes,
 * and two steps of a plane are shared by its sixteen. */
#define TOY_KV__PACKED_ROOM                                                                          \
    ((size_t)TOY_KV__MAX_RUNS * (sizeof(toy_kv__packed) / 4 + (size_t)TOY_KV__MAX_ROWS * 24 + 64) +      \
     (size_t)TOY_KV__MAX_ROWS * (TOY_KV__MAX_LUT / 2 + TOY_KV__MAX_LUT / 16))
/* Inputs of bases in bytes: steady channels and turning ones are padded apart. */
#define TOY_KV__BYTE_MAP_ROWS (TOY_KV__BYTE_ROWS(TOY_KV_HEAD_DIM) + 4)
/* Tables and bins of wide codes may be large: so many rows share a pass that they stay within 1 MiB
 * where one row does. */
#define TOY_KV__MAX_WIDE (TOY_KV__MAX_WIDE_LUT + TOY_KV__MAX_WIDE_BINS)
#define TOY_KV__PASS_ROWS                                                                            \
    (TOY_KV__MAX_WIDE <= (1 << 18) / TOY_KV__MAX_ROWS ? TOY_KV__MAX_ROWS                                 \
     : TOY_KV__MAX_WIDE <= 1 << 16                  ? 4                                              \
     : TOY_KV__MAX_WIDE <= 1 << 17                  ? 2                                              \
                                                  : 1)
#define TOY_KV__TILE_FLOATS ((size_t)TOY_KV__TILE * TOY_KV__MAX_ROWS * TOY_KV_BLOCK)
#define TOY_KV__PASS_FLOATS                                                                          \
    (TOY_KV__ROOM(TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM) * 3 +                                              \
     TOY_KV__ROOM(TOY_KV__MAX_ROWS * TOY_KV__MAX_LATENTS) + TOY_KV__ROOM(TOY_KV__MAX_ROWS * TOY_KV__MAX_LUT) + \
     TOY_KV__ROOM((size_t)TOY_KV__PASS_ROWS * TOY_KV__MAX_WIDE_LUT) +                                    \
     TOY_KV__ROOM((size_t)TOY_KV__PASS_ROWS * TOY_KV__MAX_WIDE_BINS) + TOY_KV__ROOM(TOY_KV__PACKED_ROOM) +   \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_DOT_GROUPS * 16) +                                               \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_DOT_GROUPS * 4) +                                                \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_DOT_GROUPS * TOY_KV__MAX_ROWS) +                                   \
     TOY_KV__ROOM(2 * TOY_KV__MAX_ROWS * TOY_KV__MAX_RUNS) +                                             \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_COLUMNS * TOY_KV_HEAD_DIM / 2) +                                   \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_COLUMNS * TOY_KV__BYTE_MAP_ROWS / 4) +                             \
     TOY_KV__ROOM((size_t)TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS * TOY_KV__BYTE_MAP_ROWS / 4) +             \
     TOY_KV__ROOM(2 * TOY_KV__MAX_COLUMNS) + TOY_KV__ROOM(TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM) +              \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_COLUMNS) +                                      \
     TOY_KV__ROOM(TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM / 2) +                           \
     TOY_KV__ROOM((size_t)TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS * TOY_KV__MAX_COLUMNS) +                   \
     TOY_KV__ROOM(TOY_KV__MAX_BOOK) +                                                                  \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_SUM_LATENTS * 16) +                             \
     TOY_KV__ROOM((size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_SUM_LATENTS) +                                  \
     TOY_KV__ROOM(TOY_KV__TILE_FLOATS) * 2 + TOY_KV__ROOM(TOY_KV__TILE * TOY_KV_BLOCK) +                     \
     TOY_KV__ROOM(TOY_KV__TILE_FLOATS / 2) + TOY_KV__ROOM(TOY_KV_N_ROT + 1) * 2 +                          \
     TOY_KV__ROOM(TOY_KV__MAX_RUNS * sizeof(toy_kv__step) / 4))

static float *toy_kv__take(float **room, size_t n)
{
    float *p = *room;
    *room += TOY_KV__ROOM(n);
    return p;
}

static void toy_kv__carve(toy_kv__pass *a, void *scratch)
{
    float *room = (float *)scratch;
    a->q = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM);
    a->turned = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM);
    a->o = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM);
    a->y = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV__MAX_LATENTS);
    a->scoring[0].lut = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV__MAX_LUT);
    a->scoring[0].wide = toy_kv__take(&room, (size_t)TOY_KV__PASS_ROWS * TOY_KV__MAX_WIDE_LUT);
    a->bins = toy_kv__take(&room, (size_t)TOY_KV__PASS_ROWS * TOY_KV__MAX_WIDE_BINS);
    a->scoring[0].packed = (char *)toy_kv__take(&room, TOY_KV__PACKED_ROOM);
    a->scoring[0].table = (unsigned char *)toy_kv__take(&room, (size_t)TOY_KV__MAX_DOT_GROUPS * 16);
    a->scoring[0].scale = toy_kv__take(&room, (size_t)TOY_KV__MAX_DOT_GROUPS * 4);
    a->scoring[0].lanes =
        (unsigned char *)toy_kv__take(&room, (size_t)TOY_KV__MAX_DOT_GROUPS * TOY_KV__MAX_ROWS);
    a->scoring[0].unit = toy_kv__take(&room, 2 * TOY_KV__MAX_ROWS * TOY_KV__MAX_RUNS);
    a->map[0].words = (short *)toy_kv__take(&room, (size_t)TOY_KV__MAX_COLUMNS * TOY_KV_HEAD_DIM / 2);
    a->map[0].bytes =
        (unsigned char *)toy_kv__take(&room, (size_t)TOY_KV__MAX_COLUMNS * TOY_KV__BYTE_MAP_ROWS / 4);
    a->byte_queries = (signed char *)toy_kv__take(&room, (size_t)TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS *
                                                           TOY_KV__BYTE_MAP_ROWS / 4);
    a->map[0].scale = toy_kv__take(&room, 2 * TOY_KV__MAX_COLUMNS);
    a->ordered = toy_kv__take(&room, TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM);
    a->map_base = toy_kv__take(&room, (size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_COLUMNS);
    a->map_queries =
        (short *)toy_kv__take(&room, TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS * TOY_KV_HEAD_DIM / 2);
    a->mapped = toy_kv__take(&room, (size_t)TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS * TOY_KV__MAX_COLUMNS);
    a->book = toy_kv__take(&room, TOY_KV__MAX_BOOK);
    a->acc = toy_kv__take(&room, (size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_SUM_LATENTS * 16);
    a->sums = toy_kv__take(&room, (size_t)TOY_KV__MAX_ROWS * TOY_KV__MAX_SUM_LATENTS);
    a->s = toy_kv__take(&room, TOY_KV__TILE_FLOATS);
    a->part = toy_kv__take(&room, TOY_KV__TILE_FLOATS);
    a->gain = toy_kv__take(&room, TOY_KV__TILE * TOY_KV_BLOCK);
    a->bytes = (unsigned char *)toy_kv__take(&room, TOY_KV__TILE_FLOATS / 2);
    a->step = toy_kv__take(&room, TOY_KV_N_ROT + 1);
    a->cs = toy_kv__take(&room, TOY_KV_N_ROT + 1);
    a->steps = (toy_kv__step *)(void *)toy_kv__take(&room, TOY_KV__MAX_RUNS * sizeof(toy_kv__step) / 4);
}

/* Which of the n tokens from `token` on a row sees: *from .. *to - 1, counted from `token`. */
static void toy_kv__seen(const toy_kv__pass *a, int r, int token, int n, int *from, int *to)
{
    *from = a->first;
    *to = a->last;
    if (a->window > 0 && *from < a->position[r] - a->window + 1)
        *from = a->position[r] - a->window + 1;
    if (*to > a->position[r] + 1)
        *to = a->position[r] + 1;
    *from = *from < token ? 0 : *from - token;
    *to = *to > token + n ? n : *to - token;
}

/* Soft cap and masks on one block of a row; tokens from .. to - 1 of it are seen. */
static void toy_kv__mask(const toy_kv__pass *a, float *s, int from, int to)
{
    int t;
    from = from < 0 ? 0 : from > TOY_KV_BLOCK ? TOY_KV_BLOCK : from;
    to = to < from ? from : to > TOY_KV_BLOCK ? TOY_KV_BLOCK : to;
    if (a->soft_cap > 0.0f)
        for (t = from; t < to; t++)
            s[t] = a->soft_cap * tanhf(s[t] / a->soft_cap);
    for (t = 0; t < from; t++)
        s[t] = TOY_KV__MASKED;
    for (t = to; t < TOY_KV_BLOCK; t++)
        s[t] = TOY_KV__MASKED;
}

/* Soft cap and masks on all blocks of row r, s; returns whether it sees anything of them. */
static int toy_kv__mask_row(const toy_kv__pass *a, int r, int blocks, int n, int coded, float *s)
{
    int b, from, to, seen = 0;
    for (b = 0; b < blocks; b++, s += a->rows * TOY_KV_BLOCK) {
        toy_kv__seen(a, r, a->tile_token[b], n, &from, &to);
        seen |= from < to;
        if (a->soft_cap > 0.0f || from > 0 || to < TOY_KV_BLOCK)
            toy_kv__mask(a, s, from, to);
        if (coded && a->choice != NULL)
            toy_kv__mask_chunks(a->choice, a->tile_block[b], s);
    }
    return seen;
}

/* A part of a row's sum that is lost in the rounding of its output: values need not be read. */
#define TOY_KV__NOTHING 3e-8f

/* Whether every row sees all of the tile's coded blocks, as they were scored. */
static int toy_kv__open(const toy_kv__pass *a, int blocks)
{
    int r, from, to;
    if (a->k_tile != NULL || TOY_KV__KEEPS || a->choice != NULL || a->soft_cap > 0.0f)
        return 0;
    for (r = 0; r < a->rows; r++) {
        toy_kv__seen(a, r, a->tile_token[0], TOY_KV_BLOCK, &from, &to);
        if (from > 0)
            return 0;
        toy_kv__seen(a, r, a->tile_token[blocks - 1], TOY_KV_BLOCK, &from, &to);
        if (to < TOY_KV_BLOCK)
            return 0;
    }
    return 1;
}

/* The highest score of a row in an open tile. */
static float toy_kv__top(const toy_kv__pass *a, int r)
{
    const float *high = a->high + r * a->ops->lanes;
    float top = high[0];
    int i;
    for (i = 1; i < a->ops->lanes; i++)
        top = high[i] > top ? high[i] : top;
    return top;
}

/* Shrinks what is summed of coded values for row r. */
static void toy_kv__shrink_sums(const toy_kv__pass *a, int r, float shrink)
{
    const size_t n = TOY_KV__MAX_SUM_LATENTS, row = (size_t)r, lanes = (size_t)a->ops->lanes;
    a->ops->shrink(a->sums + row * n, n, shrink);
    if (a->in_lanes)
        a->ops->shrink(a->acc + row * n * lanes, n * lanes, shrink);
    a->ops->shrink(a->bins + row * TOY_KV__MAX_WIDE_BINS, TOY_KV__MAX_WIDE_BINS, shrink);
}

/* Softmax of a->s over the tile's blocks, n tokens in each; open: all of them are seen, and their
 * highest scores in a->high. What was summed before is shrunk where a row's maximum rises. Returns
 * 0 if no row sees any of them, or none for which they are more than nothing (their probabilities
 * are in the sums all the same), 2 if some probability is so large a part of its row's sum that
 * rounding it to 8 bits would show, else 1. */
static int toy_kv__soft_max(toy_kv__pass *a, int blocks, int n, int coded, int open)
{
    float fine = a->ops->bytes != NULL ? a->ops->bytes->fine : 1.0f;
    int r, b, seen = 0;
    for (r = 0; r < a->rows; r++) {
        float *s = a->s + r * TOY_KV_BLOCK, top = TOY_KV__MASKED, sum, shrink = 1.0f;
        int step = a->rows * TOY_KV_BLOCK;
        if (open)
            top = toy_kv__top(a, r);
        else if (toy_kv__mask_row(a, r, blocks, n, coded, s))
            top = a->ops->largest(s, blocks, (size_t)step);
        if (top <= TOY_KV__MASKED) { /* a choice may leave nothing that this row sees */
            for (b = 0; b < blocks; b++)
                memset(s + b * step, 0, sizeof(float) * TOY_KV_BLOCK);
            continue;
        }
        if (top > a->m[r]) {
            shrink = a->m[r] > TOY_KV__MASKED ? expf(a->m[r] - top) : 0.0f;
            a->m[r] = top;
        }
        sum = a->ops->exponentials(s, blocks, (size_t)step, a->m[r]);
        if (shrink != 1.0f) {
            a->ops->shrink(a->o + r * TOY_KV_HEAD_DIM, TOY_KV_HEAD_DIM, shrink);
            if (a->coded)
                toy_kv__shrink_sums(a, r, shrink);
        }
        a->l[r] = a->l[r] * shrink + sum;
        a->l_coded[r] = a->l_coded[r] * shrink + (coded ? sum : 0.0f);
        if (sum > TOY_KV__NOTHING * a->l[r])
            seen = seen > 1 || expf(top - a->m[r]) > fine * a->l[r] ? 2 : 1;
    }
    return seen;
}

/* Exact tokens token .. token + n - 1, n <= BLOCK and contiguous in memory. */
static void toy_kv__attend_exact(toy_kv__pass *a, int token, int n)
{
    int i;
    const unsigned char *k = toy_kv__exact(a->kv, a->seq, a->layer, TOY_KV_KEY, a->head, token);
    const unsigned char *v = toy_kv__exact(a->kv, a->seq, a->layer, TOY_KV_VALUE, a->head, token);
    for (i = 0; i < n * TOY_KV_HEAD_DIM * 2; i += 64)
        TOY_KV__PREFETCH(v + i, 3);
    a->ops->exact_scores(k, n, a->q, a->rows, a->s);
    a->tile_token[0] = token;
    if (toy_kv__soft_max(a, 1, n, 0, 0))
        a->ops->exact_sums(v, n, a->s, a->rows, a->o);
}

/* Queries of coded blocks: turned into the frame of a block and mapped into latents. Where every
 * block has a frame of its own, this is done for a batch of blocks at once, one product of all
 * their queries with the basis; and of channels that keep their turn for longer once for many
 * batches. */

/* Cosines and sines of the angles that queries turn back by for a block at `position`, in a->cs [2,
 * N_ROT / 2]: of the pairs that toy_kv__pairs has at from .. to - 1. Where it lies `unit` tokens
 * behind `previous`, pairs whose span begins go on by one complex product; all start afresh every
 * 64 units. */
static void toy_kv__turn_angles(toy_kv__pass *a, int from, int to, int position, int previous, int unit)
{
    float *c = a->cs, *s = a->cs + TOY_KV_N_ROT / 2;
    const float *step = a->step;
    int i, j, goes_on = previous >= 0 && position == previous + unit && position / unit % 64 != 0;
    for (i = from; i < to && !goes_on; i++) {
        int pair = toy_kv__pairs[i];
        double angle = toy_kv__base_of(pair, position) * toy_kv__rope_freq(pair);
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    for (; i < to; i = j) { /* mostly pairs of one span lie side by side */
        int pair = toy_kv__pairs[i], span = toy_kv__spans[pair];
        for (j = i + 1; j < to && toy_kv__spans[toy_kv__pairs[j]] == span;)
            j++;
        if (toy_kv__base_of(pair, position) != toy_kv__base_of(pair, previous))
            a->ops->turn_on(step + i, step + TOY_KV_N_ROT / 2 + i, j - i, c + i, s + i);
    }
}

/* Cosines and sines [2, N_ROT / 2] of the angles that pairs turn by over their spans, in the order
 * of toy_kv__pairs. */
static void toy_kv__span_angles(float *cs)
{
    int i;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        double angle = toy_kv__spans[toy_kv__pairs[i]] * toy_kv__rope_freq(toy_kv__pairs[i]);
        cs[i] = (float)cos(angle);
        cs[TOY_KV_N_ROT / 2 + i] = (float)sin(angle);
    }
}

/* y [HEAD_DIM] = x turned back by those angles. */
static void toy_kv__turn_back(const float *cs, const float *x, float *y)
{
    enum { PAIRS = TOY_KV_N_ROT / 2 };
    int i;
    for (i = TOY_KV_N_ROT; i < TOY_KV_HEAD_DIM; i++)
        y[i] = x[i];
    for (i = 0; i < PAIRS; i++) {
        int pair = toy_kv__pairs[i];
        int k = TOY_KV_ROPE_INTERLEAVED ? 2 * pair : pair;
        int l = TOY_KV_ROPE_INTERLEAVED ? k + 1 : k + PAIRS;
        float c = cs[i], s = cs[PAIRS + i];
        y[k] = x[k] * c + x[l] * s;
        y[l] = x[l] * c - x[k] * s;
    }
}

/* Turns the queries into the frame of one block. */
static void toy_kv__turn_queries(toy_kv__pass *a, int position, int previous)
{
    int r;
    toy_kv__turn_angles(a, 0, TOY_KV_N_ROT / 2, position, previous, TOY_KV_BLOCK);
    for (r = 0; r < a->rows; r++)
        toy_kv__turn_back(a->cs, a->q + r * TOY_KV_HEAD_DIM, a->turned + r * TOY_KV_HEAD_DIM);
}

/* Whether queries are mapped for many blocks at once. */
static int toy_kv__maps_batches(const toy_kv__pass *a)
{
    int u;
    if (a->ops->bytes == NULL || a->ops->bytes->map_words == NULL ||
        a->k_frame != TOY_KV__BLOCKWISE || TOY_KV_HEAD_DIM % 2 != 0)
        return 0;
    for (u = 0; u < a->n_k_uses; u++)
        if (toy_kv__streams[a->k_uses[u].stream].transform != TOY_KV__BASIS)
            return 0;
    return 1;
}

/* ---- bands: steady runs of keys, 0, and turning ones, 1; the latter are all where queries are not
 * mapped in batches ---- */

static inline int toy_kv__band(const toy_kv__pass *a, const toy_kv__run *run)
{
    return !(a->batches && run->steady);
}

/* Latents of a stream in front of those that queries are mapped to for a band: for steady runs to
 * all, since steady channels count for every latent. */
static inline int toy_kv__before(const toy_kv__pass *a, const toy_kv__stream *s, int band)
{
    return a->batches && band ? s->n_steady : 0;
}

/* How many latents of a stream, `before` and on, queries are mapped to in words: all but those of
 * its last runs for which 8 bits do (words: 0). */
static int toy_kv__word_latents(const toy_kv__pass *a, const toy_kv__stream *s, int before)
{
    int i = s->first_run + s->n_runs;
    if (a->ops->bytes->map_bytes == NULL || s->basis_bytes != 1)
        return s->n_latents - before;
    while (i > s->first_run && toy_kv__runs[i - 1].first >= before && !toy_kv__runs[i - 1].words)
        i--;
    return (i < s->first_run + s->n_runs ? toy_kv__runs[i].first : s->n_latents) - before;
}

/* Where the latents of all K streams go in a band's map. */
static void toy_kv__place_columns(toy_kv__pass *a, int band)
{
    toy_kv__map *map = &a->map[band];
    int u;
    map->columns = map->byte_columns = 0;
    for (u = 0; u < a->n_k_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        map->at[u].n_words = toy_kv__word_latents(a, s, toy_kv__before(a, s, band));
        map->at[u].words = map->columns;
        map->columns += TOY_KV__COLUMNS(map->at[u].n_words);
    }
    for (u = 0; u < a->n_k_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        int n = s->n_latents - toy_kv__before(a, s, band) - map->at[u].n_words;
        map->at[u].bytes = map->columns + map->byte_columns;
        map->byte_columns += TOY_KV__BYTE_COLUMNS(n);
    }
}

/* The bases of all K streams, of a band's channels to its latents, in words and in bytes. */
static void toy_kv__fill_bases(toy_kv__pass *a, int band)
{
    const toy_kv__map *map = &a->map[band];
    toy_kv__slice slice;
    int u;
    slice.row = toy_kv__order + (band ? TOY_KV__STEADY_DIMS : 0);
    slice.n_in = map->n_in;
    for (u = 0; u < a->n_k_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        const toy_kv__columns *at = &map->at[u];
        const toy_kv__matrix basis = toy_kv__basis(s, s->dec, a->k_uses[u].member);
        int row = a->k_uses[u].member * TOY_KV_HEAD_DIM;
        slice.columns = s->n_latents;
        slice.first = toy_kv__before(a, s, band);
        slice.n_out = at->n_words;
        a->ops->bytes->map_basis(basis, s->mean < 0 ? NULL : toy_kv__table(s->mean + row), &slice,
                                 map->words + (size_t)at->words * (size_t)map->n_in,
                                 map->scale + at->words);
        slice.first += at->n_words;
        slice.n_out = s->n_latents - slice.first;
        if (slice.n_out > 0)
            a->ops->bytes->byte_basis(basis, &slice,
                                      map->bytes + (size_t)(at->bytes - map->columns) *
                                                       TOY_KV__BYTE_ROWS((size_t)map->n_in),
                                      map->scale + at->bytes);
    }
}

/* What a word and a byte of each query count. Turning leaves the length of a pair as it is, so that
 * holds for every block. */
static void toy_kv__fill_units(toy_kv__pass *a)
{
    /* HEAD_DIM products of a word of the basis and one of a query stay below 2^31. */
    const float most = 2147483648.0f / (TOY_KV__MAP_TOP * TOY_KV_HEAD_DIM) - 1.0f;
    const float limit = most < 32767.0f ? most : 32767.0f;
    int r, i;
    for (r = 0; r < a->rows; r++) {
        const float *x = a->q + r * TOY_KV_HEAD_DIM;
        float square = 0.0f, top = 0.0f, steps; /* top: of the largest pair, or channel without */
        for (i = 0; i < TOY_KV_HEAD_DIM; i++) {
            square += x[i] * x[i];
            top = i >= TOY_KV_N_ROT && x[i] * x[i] > top ? x[i] * x[i] : top;
            a->ordered[r * TOY_KV_HEAD_DIM + i] = x[toy_kv__order[i]];
        }
        for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
            const float u = x[TOY_KV_ROPE_INTERLEAVED ? 2 * i : i];
            const float v = x[TOY_KV_ROPE_INTERLEAVED ? 2 * i + 1 : i + TOY_KV_N_ROT / 2];
            top = u * u + v * v > top ? u * u + v * v : top;
        }
        a->map_unit[r] = sqrtf(square) / limit;
        /* A word times byte_steps / 32768 is at most 127. Steps that are too large, or no number
         * where a query has none, are as good as any. */
        steps = 127.0f * 32768.0f * a->map_unit[r] / sqrtf(top);
        a->byte_steps[r] = (short)(!(steps >= 1.0f) ? 1.0f : steps < 32767.0f ? steps : 32767.0f);
        a->byte_unit[r] = a->map_unit[r] * 32768.0f / (float)a->byte_steps[r];
    }
}

/* Makes ready for batches: bases of steady channels and of turning ones, units, and the queries in
 * the order of toy_kv__order. */
static void toy_kv__fill_maps(toy_kv__pass *a)
{
    toy_kv__map *steady = &a->map[0], *turning = &a->map[1];
    steady->n_in = TOY_KV__STEADY_DIMS;
    turning->n_in = TOY_KV_HEAD_DIM - TOY_KV__STEADY_DIMS;
    toy_kv__place_columns(a, 0);
    toy_kv__place_columns(a, 1);
    turning->words = steady->words + (size_t)steady->columns * (size_t)steady->n_in;
    turning->bytes =
        steady->bytes + (size_t)steady->byte_columns * TOY_KV__BYTE_ROWS((size_t)steady->n_in);
    turning->scale = steady->scale + steady->columns + steady->byte_columns;
    toy_kv__fill_bases(a, 0);
    toy_kv__fill_bases(a, 1);
    toy_kv__fill_units(a);
    /* what lies behind the mean of a stream is never set, but added */
    memset(a->map_base, 0,
           sizeof(float) * (size_t)(a->rows * (turning->columns + turning->byte_columns)));
}

/* The channels of a band of the queries, turned back by the angles at hand, in words [rows, n]:
 * first channels of its `pairs` pairs, second channels, and those that never turn. c, s: of its
 * pairs; at: of its first channel. */
static void toy_kv__turn_band(toy_kv__pass *a, const float *c, const float *s, int pairs, int at, int n,
                            short *words)
{
    int r;
    for (r = 0; r < a->rows; r++, words += n) {
        const float *x = a->ordered + r * TOY_KV_HEAD_DIM + at;
        a->ops->bytes->turn_words(x, c, s, pairs, a->map_unit[r], words);
        if (n > 2 * pairs)
            a->ops->bytes->to_words(x + 2 * pairs, n - 2 * pairs, a->map_unit[r],
                                    words + 2 * pairs);
    }
}

/* Floats from row to row of queries in the latents of a band. */
static inline size_t toy_kv__map_stride(const toy_kv__pass *a, int band)
{
    return (size_t)(a->map[band].columns + a->map[band].byte_columns);
}

/* y [m, map_stride]: the m queries in a->map_queries, of a band's channels, in latents; what the
 * other channels make of them, base [rows, map_stride], is added. */
static void toy_kv__map_band(toy_kv__pass *a, int band, int m, const float *base, float *y)
{
    const toy_kv__map *map = &a->map[band];
    const size_t stride = toy_kv__map_stride(a, band);
    int32_t zero[TOY_KV__MAP_BLOCKS * TOY_KV__MAX_ROWS];
    a->ops->bytes->map_words(a->map_queries, m, map->n_in, map->words, map->scale, map->columns,
                             a->map_unit, a->rows, base, stride, y);
    if (map->byte_columns == 0)
        return;
    a->ops->bytes->to_bytes(a->map_queries, m, map->n_in, a->byte_steps, a->rows, a->byte_queries,
                            zero);
    a->ops->bytes->map_bytes(a->byte_queries, zero, m, map->n_in, map->bytes,
                             map->scale + map->columns, map->byte_columns, a->byte_unit, a->rows,
                             base == NULL ? NULL : base + map->columns, stride, y + map->columns);
}

/* The latents of K stream `use` among mapped queries [rows, map_stride]. */
static toy_kv__mapped toy_kv__mapped_of(const toy_kv__pass *a, int band, int use, const float *mapped)
{
    const toy_kv__columns *at = &a->map[band].at[use];
    toy_kv__mapped m;
    m.words = mapped + at->words;
    m.bytes = mapped + at->bytes;
    m.before = toy_kv__before(a, &toy_kv__streams[a->k_uses[use].stream], band);
    m.n_words = at->n_words;
    m.stride = toy_kv__map_stride(a, band);
    return m;
}

/* Those of a run, rows `stride` apart. */
static inline const float *toy_kv__latents_of(const toy_kv__mapped *m, const toy_kv__run *run)
{
    int i = run->first - m->before;
    return i < m->n_words ? m->words + i : m->bytes + (i - m->n_words);
}

/* a->y [rows, n_latents] = dec' q for one member of a stream, and a->bias += q . mean. */
static void toy_kv__map_one(toy_kv__pass *a, const toy_kv__stream *s, int member)
{
    int r, d, row = member * TOY_KV_HEAD_DIM;
    for (r = 0; r < a->rows && s->mean >= 0; r++)
        a->bias[r] += a->ops->dot_row(toy_kv__table(s->mean + row), TOY_KV_HEAD_DIM,
                                      a->turned + r * TOY_KV_HEAD_DIM);
    if (s->transform == TOY_KV__BASIS) {
        a->ops->map(toy_kv__basis(s, s->dec, member), TOY_KV_HEAD_DIM, s->n_latents, a->turned,
                    TOY_KV_HEAD_DIM, a->rows, a->y);
        return;
    }
    memset(a->y, 0, sizeof(float) * (size_t)a->rows * (size_t)s->n_latents);
    for (r = 0; r < a->rows; r++) {
        float *y = a->y + (size_t)r * (size_t)s->n_latents;
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            y[row + d] = a->turned[r * TOY_KV_HEAD_DIM + d];
        if (s->transform == TOY_KV__HADAMARD)
            toy_kv__hadamard(y, s->n_in);
    }
}

/* What scores of one head's keys are made of: which kernel takes which runs. Planned once a pass;
 * queries.h fills what each kernel wants, absorbed.h calls them for every block. */

/* Whether K streams are scored in bytes and words at all: not where packing tables for every block
 * would cost more than it saves. What fills them in bytes does so for queries that are mapped in
 * batches; others come in fp32, and are as quickly scored in it. */
static int toy_kv__scores_bytes(const toy_kv__pass *a)
{
    const toy_kv__byte_ops *ops = a->ops->bytes;
    if (ops == NULL || a->k_frame != TOY_KV__BLOCKWISE)
        return ops != NULL;
    return a->batches || (ops->map_words != NULL && ops->fill_bytes == NULL);
}

/* Whether a K run's codewords meet the query themselves instead of through score tables. With a
 * query of its own for each block, tables in fp32 cost more to fill than they save. */
static int toy_kv__dots(const toy_kv__pass *a, const toy_kv__run *run)
{
    int turns = a->k_frame == TOY_KV__BLOCKWISE && toy_kv__band(a, run);
    if (a->ops->bytes == NULL || a->ops->bytes->dot_books == NULL || run->coder != TOY_KV__NIBBLES)
        return 0;
    if (turns && !a->k_bytes)
        return 0;
    return run->width == 1 || (turns && run->width % 2 == 0 && a->ops->bytes->fill_bytes == NULL);
}

/* Whether its score tables are filled from codewords in words, for every block anew. */
static int toy_kv__fills(const toy_kv__pass *a, const toy_kv__run *run)
{
    return a->k_bytes && a->ops->bytes->fill_bytes != NULL && a->k_frame == TOY_KV__BLOCKWISE &&
           toy_kv__band(a, run) && toy_kv__fillable(run);
}

static int toy_kv__kernel_of(const toy_kv__pass *a, const toy_kv__run *run)
{
    return run->coder == TOY_KV__WIDE      ? TOY_KV__BY_WIDE
           : run->coder != TOY_KV__NIBBLES ? TOY_KV__BY_SCALARS
           : toy_kv__dots(a, run)          ? TOY_KV__BY_DOTS
           : toy_kv__fills(a, run)         ? TOY_KV__BY_FILLED
           : a->k_bytes                  ? TOY_KV__BY_PACKED
                                         : TOY_KV__BY_TABLES;
}

/* a->steps: those of all K streams of the head, runs in their order; a->packs: which bands have
 * packed tables. Neighbouring runs that share a gain and a band are one step where packed tables
 * take them. */
static void toy_kv__plan_steps(toy_kv__pass *a)
{
    toy_kv__step *step = a->steps;
    int u, i;
    a->packs[0] = a->packs[1] = 0;
    for (u = 0; u < a->n_k_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        for (i = 0; i < s->n_runs; i++) {
            const toy_kv__run *run = &toy_kv__runs[s->first_run + i];
            const int kernel = toy_kv__kernel_of(a, run), band = toy_kv__band(a, run);
            const int first = i == 0 || run[-1].gain != run->gain;
            const int last = i == s->n_runs - 1 || run[1].gain != run->gain;
            a->packs[band] |= kernel == TOY_KV__BY_PACKED;
            if (!first && kernel == TOY_KV__BY_PACKED && step[-1].kernel == kernel &&
                step[-1].band == band) {
                step[-1].n_runs++;
                step[-1].planes += run->planes;
                step[-1].last = (unsigned char)last;
                continue;
            }
            step->run = run;
            step->stream = s;
            step->use = u;
            step->n_runs = 1;
            step->planes = run->planes;
            step->kernel = (unsigned char)kernel;
            step->band = (unsigned char)band;
            step->first = (unsigned char)first;
            step->last = (unsigned char)last;
            step++;
        }
    }
    a->n_steps = (int)(step - a->steps);
}

/* Whether the kernels ask for codes by and by; the others have them asked for before they begin. */
static int toy_kv__asks(const toy_kv__pass *a)
{
    int i;
    for (i = 0; i < a->n_steps; i++)
        if (a->steps[i].kernel <= TOY_KV__BY_PACKED)
            return 1;
    return a->n_steps > 0 && a->steps[0].kernel == TOY_KV__BY_SCALARS && a->ops->lanes >= 8 &&
           a->rows >= 4;
}

/* What queries in latents meet codes with: lanes for codewords, or score tables. Of steady runs
 * that lasts for many blocks, of turning ones for one. */

/* The codewords of K runs that meet queries themselves. */
static void toy_kv__fill_dots(toy_kv__pass *a)
{
    toy_kv__scoring at = a->scoring[0];
    int band, i;
    for (band = 0; band < 2; band++) {
        a->scoring[band].table = at.table;
        a->scoring[band].scale = at.scale;
        for (i = 0; i < a->n_steps; i++) {
            const toy_kv__step *step = &a->steps[i];
            if (step->kernel > TOY_KV__BY_FILLED || step->band != band)
                continue;
            a->ops->bytes->dot_books(step->run, at.table, at.scale);
            at.table += 64 * toy_kv__dot_groups(step->run);
            at.scale += 4 * toy_kv__dot_groups(step->run);
        }
    }
}

/* Score tables in fp32 of one run for queries in latents y [rows, stride]; returns their end. */
static float *toy_kv__fill_run(toy_kv__pass *a, const toy_kv__run *run, const float *y, size_t stride,
                             float *lut)
{
    int p, r;
    if (run->coder == TOY_KV__NIBBLES) {
        a->ops->fill_tables(run, y, stride, a->rows, lut);
        return lut + run->planes * a->rows * 16;
    }
    for (p = 0; p < run->planes; p++)
        for (r = 0; r < a->rows; r++)
            *lut++ = y[(size_t)r * stride + (size_t)(p / run->stages * run->width)];
    return lut;
}

/* What the runs of one step meet codes with, for queries in latents y: from *to on, which goes on
 * behind it. energy [rows]: mean squares of the scores of its gain so far. */
static void toy_kv__fill_step(toy_kv__pass *a, toy_kv__step *step, const toy_kv__mapped *y, float *energy,
                            toy_kv__scoring *to)
{
    const toy_kv__run *run = step->run, *end = run + step->n_runs;
    const toy_kv__byte_ops *ops = a->ops->bytes;
    float *lut = to->lut;
    int r, n;
    step->at = *to;
    switch (step->kernel) {
    case TOY_KV__BY_DOTS:
        n = 4 * toy_kv__dot_groups(run);
        ops->dot_queries(run, to->scale, toy_kv__latents_of(y, run), y->stride, a->rows, to->lanes,
                         to->unit, a->packs[step->band] ? energy : NULL);
        to->table += 64 * toy_kv__dot_groups(run);
        to->scale += n;
        to->lanes += a->rows * n;
        to->unit += 2 * a->rows;
        return;
    case TOY_KV__BY_WIDE:
        for (r = 0; r < a->rows; r++)
            toy_kv__fill_wide(a->ops, run,
                            toy_kv__latents_of(y, run) - run->first + (size_t)r * y->stride,
                            to->wide + (size_t)r * TOY_KV__MAX_WIDE_LUT);
        to->wide += (size_t)run->planes << run->bits;
        return;
    case TOY_KV__BY_FILLED: {
        toy_kv__packed *head = (toy_kv__packed *)(void *)to->packed;
        to->packed += sizeof *head;
        ops->fill_bytes(run, to->table, to->scale, toy_kv__latents_of(y, run), y->stride, a->rows,
                        energy, head, (signed char *)to->packed);
        to->packed += head->bytes;
        to->table += 64 * toy_kv__dot_groups(run);
        to->scale += 4 * toy_kv__dot_groups(run);
        return;
    }
    case TOY_KV__BY_PACKED: {
        toy_kv__packed *head = (toy_kv__packed *)(void *)to->packed;
        for (; run < end; run++)
            lut = toy_kv__fill_run(a, run, toy_kv__latents_of(y, run), y->stride, lut);
        to->packed += sizeof *head;
        ops->pack_tables(to->lut, step->planes, a->rows, energy, head, (signed char *)to->packed);
        to->packed += head->bytes;
        return;
    }
    default:
        to->lut = toy_kv__fill_run(a, run, toy_kv__latents_of(y, run), y->stride, lut);
    }
}

/* The same for all steps of a band, of mapped queries [rows, map_stride]; returns what lies behind
 * it all. */
static toy_kv__scoring toy_kv__fill_band(toy_kv__pass *a, int band, const float *mapped)
{
    toy_kv__scoring to = a->scoring[band];
    float energy[TOY_KV__MAX_ROWS];
    int i;
    memset(energy, 0, sizeof energy);
    for (i = 0; i < a->n_steps; i++) {
        toy_kv__step *step = &a->steps[i];
        const toy_kv__mapped y = toy_kv__mapped_of(a, band, step->use, mapped);
        if (step->first)
            memset(energy, 0, sizeof energy);
        if (step->band == band)
            toy_kv__fill_step(a, step, &y, energy, &to);
    }
    return to;
}

/* a->map_base [rows, map_stride] = what steady channels make of the latents of turning runs, and of
 * means: from their part of the queries in all latents. */
static void toy_kv__keep_base(toy_kv__pass *a, const float *mapped)
{
    const size_t to_stride = toy_kv__map_stride(a, 1), from_stride = toy_kv__map_stride(a, 0);
    int u, r;
    for (u = 0; u < a->n_k_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        const toy_kv__columns *to = &a->map[1].at[u], *from = &a->map[0].at[u];
        const int before = toy_kv__before(a, s, 1), n = s->n_latents - before - to->n_words;
        for (r = 0; r < a->rows; r++) {
            float *base = a->map_base + (size_t)r * to_stride;
            const float *y = mapped + (size_t)r * from_stride;
            memcpy(base + to->words, y + from->words + before, sizeof(float) * (size_t)to->n_words);
            base[to->words + to->n_words] = y[from->words + from->n_words]; /* the mean */
            memcpy(base + to->bytes, y + from->bytes + (before + to->n_words - from->n_words),
                   sizeof(float) * (size_t)n);
        }
    }
}

/* The number of the span of steady channels that a block at `position` is in. */
static inline int toy_kv__steady_number(int position)
{
    return (position - TOY_KV_N_SINK) / TOY_KV__STEADY_SPAN;
}

/* Makes steady runs ready for a block at `position`, if they are not, and the place behind them for
 * turning ones. */
static void toy_kv__fill_steady(toy_kv__pass *a, int position)
{
    const int pairs = TOY_KV__STEADY_PAIRS, unit = TOY_KV__STEADY_SPAN;
    int number = toy_kv__steady_number(position), last = a->steady_number;
    toy_kv__scoring end;
    if (TOY_KV__STEADY_DIMS == 0 || number == last)
        return;
    toy_kv__turn_angles(a, 0, pairs, TOY_KV_N_SINK + number * unit,
                      last < 0 ? -1 : TOY_KV_N_SINK + last * unit, unit);
    toy_kv__turn_band(a, a->cs, a->cs + TOY_KV_N_ROT / 2, pairs, 0, a->map[0].n_in, a->map_queries);
    toy_kv__map_band(a, 0, a->rows, NULL, a->mapped);
    toy_kv__keep_base(a, a->mapped);
    end = toy_kv__fill_band(a, 0, a->mapped);
    end.table = a->scoring[1].table; /* codewords are there already */
    end.scale = a->scoring[1].scale;
    a->scoring[1] = end;
    a->steady_number = number;
}

/* The queries of some of the n blocks from `entries` on in latents of turning runs: a->mapped.
 * Returns their number, which is MAP_BLOCKS at most; their steady channels are in one span, for
 * which steady runs are made ready too. */
static int toy_kv__map_batch(toy_kv__pass *a, const toy_kv__entry *entries, int n, int previous)
{
    const int first = TOY_KV__STEADY_PAIRS, all = TOY_KV_N_ROT / 2, n_in = a->map[1].n_in;
    const float *c = a->cs + first;
    int b;
    toy_kv__fill_steady(a, entries[0].position);
    for (b = 0; b < n && b < TOY_KV__MAP_BLOCKS; b++) {
        if (TOY_KV__STEADY_DIMS > 0 && toy_kv__steady_number(entries[b].position) != a->steady_number)
            break;
        toy_kv__turn_angles(a, first, all, entries[b].position, previous, TOY_KV_BLOCK);
        toy_kv__turn_band(a, c, c + all, all - first, TOY_KV__STEADY_DIMS, n_in,
                        a->map_queries + (size_t)(b * a->rows) * (size_t)n_in);
        previous = entries[b].position;
    }
    toy_kv__map_band(a, 1, b * a->rows, TOY_KV__STEADY_DIMS > 0 ? a->map_base : NULL, a->mapped);
    return b;
}

/* What scores of one block are taken with, for queries mapped in a batch. */
static void toy_kv__fill_mapped(toy_kv__pass *a, const float *mapped)
{
    const size_t stride = toy_kv__map_stride(a, 1);
    int u, r;
    for (r = 0; r < a->rows; r++) {
        a->bias[r] = 0.0f;
        for (u = 0; u < a->n_k_uses; u++)
            a->bias[r] += mapped[(size_t)r * stride +
                                 (size_t)(a->map[1].at[u].words + a->map[1].at[u].n_words)];
    }
    toy_kv__fill_band(a, 1, mapped);
}

/* The same for the queries as turned, mapped here. */
static void toy_kv__fill_tables(toy_kv__pass *a)
{
    toy_kv__scoring to = a->scoring[1];
    toy_kv__mapped y = {a->y, NULL, 0, 0, 0};
    float energy[TOY_KV__MAX_ROWS];
    int i;
    memset(a->bias, 0, sizeof a->bias);
    for (i = 0; i < a->n_steps; i++) {
        toy_kv__step *step = &a->steps[i];
        if (i == 0 || step->use != step[-1].use)
            toy_kv__map_one(a, step->stream, a->k_uses[step->use].member);
        y.n_words = step->stream->n_latents;
        y.stride = (size_t)y.n_words;
        if (step->first)
            memset(energy, 0, sizeof energy);
        toy_kv__fill_step(a, step, &y, energy, &to);
    }
}

/* Coded blocks whose vectors are never rebuilt: scores are looked up for queries in latents,
 * probabilities are summed in latents and mapped back once. */

/* Whether the head's V streams are summed in bytes: weights must not be negative then, as they are
 * with q4_0's gains. */
static int toy_kv__sums_bytes(const toy_kv__pass *a)
{
    int u;
    for (u = 0; u < a->n_v_uses; u++)
        if (toy_kv__streams[a->v_uses[u].stream].gain == TOY_KV__SIGNMAX)
            return 0;
    return a->ops->bytes != NULL;
}

/* Whether some of them are summed in fp32, lane by lane. */
static int toy_kv__sums_lanes(const toy_kv__pass *a)
{
    int u, i;
    for (u = 0; u < a->n_v_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        for (i = s->first_run; i < s->first_run + s->n_runs; i++)
            if (toy_kv__runs[i].coder != TOY_KV__WIDE &&
                !(a->in_bytes && toy_kv__runs[i].coder == TOY_KV__NIBBLES))
                return 1;
    }
    return a->v_tile != NULL;
}

/* Makes room for sums of coded values: nothing is summed yet. */
static void toy_kv__begin_sums(const toy_kv__pass *a)
{
    const size_t rows = sizeof(float) * (size_t)a->rows;
    memset(a->sums, 0, rows * TOY_KV__MAX_SUM_LATENTS);
    if (a->in_lanes)
        memset(a->acc, 0, rows * TOY_KV__MAX_SUM_LATENTS * (size_t)a->ops->lanes);
    memset(a->bins, 0, rows * TOY_KV__MAX_WIDE_BINS);
}

/* The codewords of every V stream of the head as the sums want them: fp32, or bytes with a scale
 * for each sixteen, which begin at a->book + MAX_BOOK / 2. */
static void toy_kv__fill_books(toy_kv__pass *a)
{
    int u, i, p, n;
    float *book = a->book, *scale = a->book + TOY_KV__MAX_BOOK / 2;
    signed char *bytes = (signed char *)a->book;
    for (u = 0; u < a->n_v_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        for (i = 0; i < s->n_runs; i++) {
            const toy_kv__run *run = &toy_kv__runs[s->first_run + i];
            /* planes whose codewords lie side by side are taken together */
            const int each = run->book_step == run->stages * run->width * 16 ? run->planes : 1;
            for (p = 0; p < run->planes && run->coder == TOY_KV__NIBBLES; p += each) {
                const unsigned char *from =
                    toy_kv__table(run->book + p / run->stages * run->book_step +
                                p % run->stages * run->width * 16);
                n = each * run->width;
                if (a->in_bytes) {
                    a->ops->bytes->pack_books(from, n, bytes, scale);
                    bytes += n * 16;
                    scale += n;
                    continue;
                }
                memset(book, 0, sizeof(float) * (size_t)(n * 16));
                a->ops->add_row(from, n * 16, 1.0f, book);
                book += n * 16;
            }
        }
    }
}

/* Goes on to the next streams where all of one is asked for. */
static void toy_kv__go_ahead(toy_kv__ahead *q)
{
    if (q->now.keys >= q->now.keys_end && q->next[0] < q->n[0]) {
        q->now.keys = q->first[0][q->next[0]];
        q->now.keys_end = q->last[0][q->next[0]++];
    }
    if (q->now.values >= q->now.values_end && q->next[1] < q->n[1]) {
        q->now.values = q->first[1][q->next[1]];
        q->now.values_end = q->last[1][q->next[1]++];
    }
}

/* Scores of one step that no byte kernel takes, added to a->part [n, rows, BLOCK]. */
static void toy_kv__score_run(toy_kv__pass *a, const unsigned char *const *codes, int n,
                            const toy_kv__run *run, const float *lut)
{
    int b, nibbles = run->coder == TOY_KV__NIBBLES;
    float *s = a->part;
    for (b = 0; b < n; b++, s += a->rows * TOY_KV_BLOCK) {
        if (nibbles)
            a->ops->score_nibbles(codes[b] + run->codes, run->planes, lut, a->rows, s);
        else
            a->ops->score_scalars(codes[b] + run->codes, run->planes, run->coder == TOY_KV__HALVES,
                                  lut, a->rows, &a->ahead.now, s);
        toy_kv__go_ahead(&a->ahead);
    }
}

/* The gains of n blocks for one group of latents of a stream: a->gain [n, BLOCK]. */
static void toy_kv__read_tile(toy_kv__pass *a, const toy_kv__stream *s, const unsigned char *const *codes,
                            int n, int group)
{
    int b;
    for (b = 0; b < n; b++)
        toy_kv__read_gains(a->ops, s, codes[b], group, a->gain + b * TOY_KV_BLOCK);
}

/* Where a stream's codes of n blocks begin, those of block 0 at `from`. */
static inline void toy_kv__codes_of(const unsigned char *from, const toy_kv__stream *s,
                                  const toy_kv__entry *entries, int n, const unsigned char **codes)
{
    int b;
    for (b = 0; b < n; b++)
        codes[b] = from + (size_t)s->bytes * (size_t)entries[b].block;
}

/* scores [n, rows, BLOCK] of n blocks through the same score tables. What runs of one gain add up
 * to is set by the first of them, or begins at 0 where its kernel can only add. */
static void toy_kv__score_blocks(toy_kv__pass *a, const toy_kv__entry *entries, int n, float *scores)
{
    int b, add = 0;
    const int size = a->rows * TOY_KV_BLOCK;
    const float *bias = a->bias;
    const toy_kv__byte_ops *ops = a->ops->bytes;
    const toy_kv__step *step, *end = a->steps + a->n_steps;
    const unsigned char *codes[TOY_KV__TILE];
    for (step = a->steps; step < end; step++) {
        const toy_kv__run *run = step->run;
        const toy_kv__scoring *by = &step->at;
        if (step->first) {
            add = 0;
            toy_kv__codes_of(a->k_codes[step->use], step->stream, entries, n, codes);
        }
        if (!add && step->kernel > TOY_KV__BY_PACKED)
            memset(a->part, 0, sizeof(float) * (size_t)(n * size));
        switch (step->kernel) {
        case TOY_KV__BY_DOTS:
            ops->dot_scores(codes, (size_t)run->codes, n, run, by->table, by->lanes, by->unit,
                            a->rows, add, &a->ahead.now, a->part);
            toy_kv__go_ahead(&a->ahead);
            break;
        case TOY_KV__BY_FILLED:
        case TOY_KV__BY_PACKED: {
            const toy_kv__packed *head = (const toy_kv__packed *)(const void *)by->packed;
            ops->score_bytes(codes, (size_t)run->codes, n, step->planes, head,
                             (const signed char *)(head + 1), a->rows, add, &a->ahead.now, a->part);
            toy_kv__go_ahead(&a->ahead);
            break;
        }
        case TOY_KV__BY_WIDE:
            for (b = 0; b < n; b++)
                toy_kv__score_wide(run, codes[b] + run->codes, by->wide, a->rows, a->part + b * size);
            break;
        default:
            toy_kv__score_run(a, codes, n, run, by->lut);
        }
        add = 1;
        if (!step->last)
            continue;
        toy_kv__read_tile(a, step->stream, codes, n, run->gain);
        for (b = 0; b < n; b++)
            a->ops->gain_scores(a->gain + b * TOY_KV_BLOCK, a->part + b * size, bias, a->rows,
                                scores + b * size, step + 1 < end ? NULL : a->high);
        bias = NULL;
    }
}

/* One run of a V stream over a tile, in fp32. p: weights [n, rows, BLOCK]. */
static void toy_kv__sum_run(toy_kv__pass *a, const unsigned char *const *codes, int n,
                          const toy_kv__run *run, const float *book, const float *p, float *acc)
{
    int b;
    for (b = 0; b < n; b++, p += a->rows * TOY_KV_BLOCK) {
        if (run->coder == TOY_KV__NIBBLES)
            a->ops->sum_nibbles(codes[b] + run->codes, run->planes, run->stages, run->width, book,
                                p, a->rows, acc, TOY_KV__MAX_SUM_LATENTS);
        else
            a->ops->sum_scalars(codes[b] + run->codes, run->planes, run->coder == TOY_KV__HALVES, p,
                                a->rows, acc, TOY_KV__MAX_SUM_LATENTS);
    }
}

/* a->part [n, rows, BLOCK] = the probabilities times the gains at hand. */
static void toy_kv__scale_tile(toy_kv__pass *a, int n)
{
    int b, step = a->rows * TOY_KV_BLOCK;
    for (b = 0; b < n; b++)
        a->ops->scale_rows(a->gain + b * TOY_KV_BLOCK, a->s + b * step, a->rows, a->part + b * step);
}

/* Adds probability * value of the n blocks of a tile, in latents. a->s holds the probabilities;
 * fine: one of them is so large that 8 bits would not do. */
static void toy_kv__sum_tile(toy_kv__pass *a, const toy_kv__entry *entries, int n, int fine)
{
    const toy_kv__byte_ops *ops = a->ops->bytes;
    const unsigned char *codes[TOY_KV__TILE];
    float scale[TOY_KV__MAX_ROWS], rest_scale[TOY_KV__MAX_ROWS];
    const float *book = a->book, *book_scale = a->book + TOY_KV__MAX_BOOK / 2;
    const signed char *book_bytes = (const signed char *)a->book;
    unsigned char *rest = a->bytes + TOY_KV__TILE_FLOATS;
    float *bins = a->bins;
    size_t first = 0;                       /* latent of the stream at hand */
    int u, i, b, r, packed = 0, scaled = 0; /* the weights at hand are in a->bytes, in a->part */
    for (u = 0; u < a->n_v_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        toy_kv__codes_of(a->v_codes[u], s, entries, n, codes);
        for (i = 0; i < s->n_runs; i++) {
            const toy_kv__run *run = &toy_kv__runs[s->first_run + i];
            const size_t latent = first + (size_t)run->first;
            int in_bytes = run->coder == TOY_KV__NIBBLES && a->in_bytes;
            if (i == 0 || run[-1].gain != run->gain) {
                toy_kv__read_tile(a, s, codes, n, run->gain);
                packed = scaled = 0;
            }
            if (!in_bytes && !scaled) {
                toy_kv__scale_tile(a, n);
                scaled = 1;
            }
            if (run->coder == TOY_KV__WIDE) {
                for (b = 0; b < n; b++)
                    toy_kv__sum_wide(run, codes[b] + run->codes, a->part + b * a->rows * TOY_KV_BLOCK,
                                   a->rows, bins);
                bins += (size_t)run->planes << run->bits;
                continue;
            }
            if (!in_bytes) {
                toy_kv__sum_run(a, codes, n, run, book, a->part,
                              a->acc + latent * (size_t)a->ops->lanes);
                book += run->coder == TOY_KV__NIBBLES ? run->planes * run->width * 16 : 0;
                continue;
            }
            if (!packed) {
                ops->pack_weights(a->s, a->gain, n, a->rows, a->bytes, fine ? rest : NULL, scale);
                for (r = 0; r < a->rows; r++)
                    rest_scale[r] = scale[r] / ops->rest;
                packed = 1;
            }
            ops->sum_bytes(codes, (size_t)run->codes, n, run, book_bytes, book_scale, a->bytes,
                           scale, a->rows, &a->later.now, a->sums + latent, TOY_KV__MAX_SUM_LATENTS);
            toy_kv__go_ahead(&a->later);
            if (fine)
                ops->sum_bytes(codes, (size_t)run->codes, n, run, book_bytes, book_scale, rest,
                               rest_scale, a->rows, &a->later.now, a->sums + latent,
                               TOY_KV__MAX_SUM_LATENTS);
            book_bytes += run->planes * run->width * 16;
            book_scale += run->planes * run->width;
        }
        first += (size_t)s->n_latents;
    }
}

/* y [rows, n_latents] = what was summed of one V stream, whose sums begin at latent `first` and bin
 * `bin`; returns the bin behind it. */
static size_t toy_kv__collect_latents(toy_kv__pass *a, const toy_kv__stream *s, size_t first, size_t bin)
{
    const float *end = a->bins + bin;
    int r, i;
    for (r = 0; r < a->rows; r++) {
        float *y = a->y + (size_t)r * (size_t)s->n_latents;
        const float *bins = a->bins + (size_t)r * TOY_KV__MAX_WIDE_BINS + bin;
        const size_t at = (size_t)r * TOY_KV__MAX_SUM_LATENTS + first;
        if (a->in_lanes)
            a->ops->reduce(a->acc + at * (size_t)a->ops->lanes, s->n_latents, y);
        for (i = 0; i < s->n_latents; i++)
            y[i] = a->sums[at + (size_t)i] + (a->in_lanes ? y[i] : 0.0f);
        for (i = s->first_run; i < s->first_run + s->n_runs; i++)
            if (toy_kv__runs[i].coder == TOY_KV__WIDE)
                bins = toy_kv__collect_wide(a->ops, &toy_kv__runs[i], bins, y);
        if (s->transform == TOY_KV__HADAMARD)
            toy_kv__hadamard(y, s->n_in);
        if (r == 0)
            end = bins;
    }
    return (size_t)(end - a->bins);
}

/* Adds dec * acc + mean of every V stream to o. */
static void toy_kv__collect(toy_kv__pass *a)
{
    int u, r, d;
    size_t first = 0, bin = 0;
    for (u = 0; u < a->n_v_uses; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        int row = a->v_uses[u].member * TOY_KV_HEAD_DIM;
        bin = toy_kv__collect_latents(a, s, first, bin);
        first += (size_t)s->n_latents;
        if (s->transform == TOY_KV__BASIS)
            a->ops->unmap(toy_kv__basis(s, s->dec, a->v_uses[u].member), TOY_KV_HEAD_DIM, s->n_latents,
                          a->y, a->rows, a->o);
        for (r = 0; r < a->rows; r++) {
            float *o = a->o + r * TOY_KV_HEAD_DIM;
            const float *y = a->y + (size_t)r * (size_t)s->n_latents + row;
            for (d = 0; d < TOY_KV_HEAD_DIM && s->transform != TOY_KV__BASIS; d++)
                o[d] += y[d];
            if (s->mean >= 0)
                a->ops->add_row(toy_kv__table(s->mean + row), TOY_KV_HEAD_DIM, a->l_coded[r], o);
        }
    }
}

/* Attention over sinks, coded blocks and the exact window in one pass of an online softmax. */

/* Blocks of rebuilt vectors that attention holds at once: what is absorbed of the other part is
 * collected as often, so not too few; and all heads of them should stay in a cache. */
#define TOY_KV__HELD_MOST (((size_t)1 << 18) / TOY_KV__NODE_FLOATS)
#define TOY_KV__HELD                                                                                 \
    (TOY_KV__HELD_MOST < 1 ? 1 : TOY_KV__HELD_MOST < TOY_KV__TILE ? (int)TOY_KV__HELD_MOST : TOY_KV__TILE)
/* Blocks that are scored together where they have the same score tables: few enough that their
 * scores stay in the first-level cache. */
#define TOY_KV__TOGETHER 2
/* The last tiles: what comes behind them is asked for while their values are summed in bytes. */
#define TOY_KV__LATER 3
/* Bytes of a stream's block that are asked for into the first-level cache: more would push out what
 * is at work. */
#define TOY_KV__MAX_NEAR 8192
/* Queries that meet a block while it is held. */
#define TOY_KV__QUERIES      32
#define TOY_KV__STATE_FLOATS TOY_KV__ROOM(2 * TOY_KV__QUERIES * TOY_KV_N_HEADS)
#define TOY_KV__HELD_FLOATS  (2 * (size_t)TOY_KV__HELD * TOY_KV__NODE_FLOATS)
/* Where chunks are chosen so many queries at a time that a head has one pass, and passes that a
 * head has, more than one where a group is larger than a pass. */
#define TOY_KV__CHOOSERS (TOY_KV__PASS_ROWS / TOY_KV_GROUP > 0 ? TOY_KV__PASS_ROWS / TOY_KV_GROUP : 1)
#define TOY_KV__CHOICES  ((TOY_KV__CHOOSERS * TOY_KV_GROUP + TOY_KV__PASS_ROWS - 1) / TOY_KV__PASS_ROWS)
#define TOY_KV__CHOICE_FLOATS                                                                        \
    (TOY_KV_LANDMARKS > 0                                                                            \
         ? TOY_KV__ROOM(sizeof(toy_kv__choice) / 4 * TOY_KV_N_KV_HEADS * (size_t)TOY_KV__CHOICES)          \
         : 0)
#define TOY_KV__CHOICE_AT                                                                            \
    (TOY_KV__PASS_FLOATS + TOY_KV__STATE_FLOATS +                                                      \
     (TOY_KV__REBUILDS ? TOY_KV__ROOM(TOY_KV__HELD_FLOATS + TOY_KV__REBUILD_FLOATS) : 0))
#define TOY_KV__ATTEND_FLOATS (TOY_KV__CHOICE_AT + TOY_KV__CHOICE_FLOATS)
#define TOY_KV__READ_FLOATS   (TOY_KV__HEAD_FLOATS + TOY_KV__REBUILD_FLOATS)
#define TOY_KV__SCRATCH_FLOATS                                                                       \
    (TOY_KV__ATTEND_FLOATS > TOY_KV__READ_FLOATS ? TOY_KV__ATTEND_FLOATS : TOY_KV__READ_FLOATS)

/* Whether any row may see tokens of block j. */
static int toy_kv__reaches(const toy_kv__pass *a, int j)
{
    int token = TOY_KV_N_SINK + j * TOY_KV_BLOCK;
    if (token + TOY_KV_BLOCK <= a->first || token >= a->last)
        return 0;
    return a->window <= 0 || token + TOY_KV_BLOCK > a->position[0] - a->window + 1;
}

/* Gathers the next blocks from *j on that some row attends to into the tile; returns their number,
 * 0 behind the last. */
static int toy_kv__next_tile(toy_kv__pass *a, int n_sealed, int *j)
{
    int n = 0;
    for (; *j < n_sealed && n < TOY_KV__TILE; (*j)++) {
        if (!toy_kv__reaches(a, *j) || (a->choice != NULL && !toy_kv__picked(a->choice, *j)))
            continue;
        a->tile[n] = a->blocks[*j];
        a->tile_block[n] = *j;
        a->tile_token[n++] = TOY_KV_N_SINK + *j * TOY_KV_BLOCK;
    }
    return n;
}

/* Queues some bytes, if there is room. */
static inline int toy_kv__piece(toy_kv__ahead *q, int list, const unsigned char *p, int bytes)
{
    if (q->n[list] == TOY_KV__ASKED)
        return 0;
    q->first[list][q->n[list]] = p;
    q->last[list][q->n[list]++] = p + bytes;
    return 1;
}

/* An empty queue. */
static inline void toy_kv__ask_nothing(const toy_kv__pass *a, toy_kv__ahead *q)
{
    const unsigned char *none = (const unsigned char *)a->s; /* any line will do */
    q->n[0] = q->n[1] = q->next[0] = q->next[1] = 0;
    q->now.keys = q->now.keys_end = q->now.values = q->now.values_end = none;
}

/* Queues what comes behind the coded blocks: the bases that sums are mapped back with, and the
 * exact tokens from `coded` on, which lie side by side, so that the hardware sees them coming where
 * there was no time to ask for all. */
static void toy_kv__queue_later(toy_kv__pass *a, int coded, int n_tokens)
{
    int t, n, u, part;
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        if (s->transform == TOY_KV__BASIS)
            toy_kv__piece(&a->later, 1, toy_kv__basis(s, s->dec, a->v_uses[u].member).values,
                        TOY_KV_HEAD_DIM * s->n_latents * s->basis_bytes);
    }
    for (t = coded; t < n_tokens && t < a->last; t += n) {
        n = n_tokens - t > TOY_KV_BLOCK ? TOY_KV_BLOCK : n_tokens - t; /* t is at a block's start */
        for (part = 0; part < 2; part++)
            toy_kv__piece(
                &a->later, 1,
                toy_kv__exact(a->kv, a->seq, a->layer, part ? TOY_KV_VALUE : TOY_KV_KEY, a->head, t),
                n * TOY_KV_HEAD_DIM * 2);
    }
    toy_kv__go_ahead(&a->later);
}

/* Queues the codes of a block. Streams lie apart, and where the next block lies only the block
 * table knows, so no hardware sees it coming. What the queue has no room for is asked for at once.
 */
TOY_KV__INLINE void toy_kv__queue(toy_kv__pass *a, const toy_kv__use *uses, int n,
                              const unsigned char *const *codes, int block, int far)
{
    toy_kv__ahead *q = &a->ahead;
    int u, i;
    for (u = 0; u < n; u++) {
        const int bytes = toy_kv__streams[uses[u].stream].bytes;
        const unsigned char *p = codes[u] + (size_t)bytes * (size_t)block;
        const int list = far || bytes > TOY_KV__MAX_NEAR;
        if (toy_kv__piece(q, list, p, bytes))
            continue;
        for (i = 0; i < bytes; i += 64)
            TOY_KV__PREFETCH(p + i, 2);
    }
}

/* Queues what comes next while blocks b .. b + m - 1 of the tile's n are scored: codes of keys some
 * blocks ahead, and those of these blocks' values. Inlined as well. */
TOY_KV__INLINE void toy_kv__queue_blocks(toy_kv__pass *a, int b, int m, int n, int n_sealed)
{
    toy_kv__ask_nothing(a, &a->ahead);
    for (; m > 0; m--, b++) {
        /* behind the tile the next blocks are a guess, right unless chunks were chosen */
        int over = b + TOY_KV__AHEAD - (n - 1);
        int ahead = over > 0 ? a->tile_block[n - 1] + over : a->tile_block[b + TOY_KV__AHEAD];
        if (a->k_tile == NULL && ahead < n_sealed)
            toy_kv__queue(a, a->k_uses, a->n_k_uses, a->k_codes, a->blocks[ahead].block, 0);
        if (a->v_tile == NULL)
            toy_kv__queue(a, a->v_uses, a->n_v_uses, a->v_codes, a->tile[b].block, 1);
    }
    toy_kv__go_ahead(&a->ahead);
}

/* Asks for what the kernels have left in the queue. */
TOY_KV__INLINE void toy_kv__ask_rest(toy_kv__ahead *q)
{
    toy_kv__asked now = q->now;
    for (; now.keys < now.keys_end || now.values < now.values_end; now = q->now) {
        for (; now.keys < now.keys_end; now.keys += 64)
            TOY_KV__PREFETCH(now.keys, 3);
        for (; now.values < now.values_end; now.values += 64)
            TOY_KV__PREFETCH(now.values, 2);
        q->now = now;
        toy_kv__go_ahead(q);
    }
}

/* A rebuilt block: [HEAD_DIM, BLOCK]. */
static inline const float *toy_kv__held(const toy_kv__pass *a, const float *tile, int j)
{
    return tile + (size_t)(j - a->tile_first) * TOY_KV__NODE_FLOATS;
}

/* Adds the sums over rebuilt values to o. */
static void toy_kv__collect_held(toy_kv__pass *a)
{
    int r, d;
    for (r = 0; r < a->rows; r++) {
        const float *acc = a->acc + (size_t)r * TOY_KV__MAX_SUM_LATENTS * (size_t)a->ops->lanes;
        a->ops->reduce(acc, TOY_KV_HEAD_DIM, a->turned);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            a->o[r * TOY_KV_HEAD_DIM + d] += a->turned[d];
    }
}

static void toy_kv__attend_blocks(toy_kv__pass *a, int n_sealed, int n_tokens)
{
    int j = 0, b, k, m, n, previous = -1, ready = 0, seen, batch = 0, batch_end, later = 0;
    toy_kv__ask_nothing(a, &a->later);
    while ((n = toy_kv__next_tile(a, n_sealed, &j)) > 0) {
        batch_end = 0;
        if (!a->coded) {
            toy_kv__begin_sums(a);
            if (a->v_tile == NULL)
                toy_kv__fill_books(a);
            if (a->k_tile == NULL)
                toy_kv__fill_dots(a);
            if (a->batches)
                toy_kv__fill_maps(a);
        }
        a->coded = 1;
        for (b = 0; b < a->rows * a->ops->lanes; b++)
            a->high[b] = TOY_KV__MASKED;
        for (b = 0; b < n; b += m) {
            toy_kv__entry entry = a->tile[b];
            float *scores = a->s + b * a->rows * TOY_KV_BLOCK;
            m = a->k_frame == TOY_KV__BLOCKWISE || a->k_tile != NULL ? 1
                : n - b < TOY_KV__TOGETHER                           ? n - b
                                                                   : TOY_KV__TOGETHER;
            toy_kv__queue_blocks(a, b, m, n, n_sealed);
            if (a->k_tile != NULL) {
                a->ops->dense->score_tile(toy_kv__held(a, a->k_tile, a->tile_block[b]), a->q, a->rows,
                                          scores);
                toy_kv__ask_rest(&a->ahead);
                continue;
            }
            if (a->batches) {
                if (b >= batch_end) {
                    batch = b;
                    batch_end = b + toy_kv__map_batch(a, a->tile + b, n - b, previous);
                    previous = a->tile[batch_end - 1].position;
                }
                toy_kv__fill_mapped(a, a->mapped +
                                         (size_t)((b - batch) * a->rows) * toy_kv__map_stride(a, 1));
            } else if (a->k_frame == TOY_KV__BLOCKWISE || !ready) {
                if (a->k_frame == TOY_KV__BLOCKWISE)
                    toy_kv__turn_queries(a, entry.position, previous);
                toy_kv__fill_tables(a);
                previous = entry.position;
            }
            if (!a->asks)
                toy_kv__ask_rest(&a->ahead);
            toy_kv__score_blocks(a, a->tile + b, m, scores);
            toy_kv__ask_rest(&a->ahead);
            for (k = 0; k < m && TOY_KV__KEEPS; k++)
                toy_kv__score_kept(a->kv, a->ops, a->layer, a->head, a->tile[b + k].block, a->q,
                                 a->rows, scores + k * a->rows * TOY_KV_BLOCK);
            ready = 1;
        }
        if (!later && n_sealed - j <= TOY_KV__LATER * TOY_KV__TILE) {
            toy_kv__queue_later(a, TOY_KV_N_SINK + n_sealed * TOY_KV_BLOCK, n_tokens);
            later = 1;
        }
        seen = toy_kv__soft_max(a, n, TOY_KV_BLOCK, 1, toy_kv__open(a, n));
        for (b = 0; b < n && seen && a->v_tile == NULL && TOY_KV__KEEPS; b++)
            toy_kv__sum_kept(a->kv, a->ops, a->layer, a->head, a->tile[b].block, a->rows,
                           a->s + b * a->rows * TOY_KV_BLOCK, a->l_coded, a->o);
        for (b = 0; b < n && seen && a->v_tile != NULL; b++)
            a->ops->dense->sum_tile(toy_kv__held(a, a->v_tile, a->tile_block[b]),
                                    a->s + b * a->rows * TOY_KV_BLOCK, a->rows, a->acc,
                                    TOY_KV__MAX_SUM_LATENTS);
        if (seen && a->v_tile == NULL)
            toy_kv__sum_tile(a, a->tile, n, seen == 2);
    }
}

/* Where the codes of the head's streams begin, of those that are absorbed. */
static void toy_kv__find_codes(toy_kv__pass *a)
{
    int u;
    for (u = 0; u < a->n_k_uses && a->k_tile == NULL; u++)
        a->k_codes[u] = toy_kv__codes(a->kv, a->k_uses[u].stream, 0);
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++)
        a->v_codes[u] = toy_kv__codes(a->kv, a->v_uses[u].stream, 0);
}

TOY_KV__INLINE void toy_kv__ask_bytes(const unsigned char *p, int n)
{
    int i;
    for (i = 0; i < n; i += 64)
        TOY_KV__PREFETCH(p + i, 2);
}

/* Asks for what the pass begins with: the bases that queries are mapped with, the codebooks of
 * values. Inlined, or gcc takes it for a function without effects. */
TOY_KV__INLINE void toy_kv__ask_tables(const toy_kv__pass *a)
{
    int u, i;
    for (u = 0; u < a->n_k_uses && a->k_tile == NULL; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->k_uses[u].stream];
        if (s->transform == TOY_KV__BASIS)
            toy_kv__ask_bytes(toy_kv__basis(s, s->dec, a->k_uses[u].member).values,
                            TOY_KV_HEAD_DIM * s->n_latents * s->basis_bytes);
    }
    for (u = 0; u < a->n_v_uses && a->v_tile == NULL; u++) {
        const toy_kv__stream *s = &toy_kv__streams[a->v_uses[u].stream];
        for (i = s->first_run; i < s->first_run + s->n_runs; i++) {
            const toy_kv__run *run = &toy_kv__runs[i];
            if (run->coder == TOY_KV__NIBBLES)
                toy_kv__ask_bytes(toy_kv__table(run->book),
                                (run->book_step != 0 ? run->planes : run->stages) * run->width *
                                    32);
        }
    }
}

/* One pass for a->rows queries whose a->q, positions and range are set. */
static void toy_kv__attend_rows(toy_kv__pass *a)
{
    const toy_kv__seq *q = toy_kv__sequence(a->kv, a->seq);
    int r, t, n, coded = toy_kv__n_coded(q), n_tokens = q->n_tokens[a->layer];
    for (r = 0; r < a->rows; r++) {
        a->m[r] = TOY_KV__MASKED;
        a->l[r] = a->l_coded[r] = 0.0f;
    }
    memset(a->o, 0, sizeof(float) * (size_t)a->rows * TOY_KV_HEAD_DIM);
    memcpy(a->turned, a->q, sizeof(float) * (size_t)a->rows * TOY_KV_HEAD_DIM);
    a->blocks = toy_kv__blocks(a->kv, a->seq);
    a->k_uses = toy_kv__uses_of(TOY_KV_KEY, a->layer, a->head, &a->n_k_uses);
    a->v_uses = toy_kv__uses_of(TOY_KV_VALUE, a->layer, a->head, &a->n_v_uses);
    a->in_bytes = toy_kv__sums_bytes(a);
    a->in_lanes = toy_kv__sums_lanes(a);
    a->k_frame = toy_kv__streams[a->k_uses[0].stream].frame;
    a->batches = a->k_tile == NULL && toy_kv__maps_batches(a);
    a->k_bytes = toy_kv__scores_bytes(a);
    a->steady_number = -1;
    toy_kv__find_codes(a);
    if (q->n_sealed > 0 && a->first < coded)
        toy_kv__ask_tables(a);
    if (a->k_tile == NULL)
        toy_kv__plan_steps(a);
    a->asks = toy_kv__asks(a);
    a->scoring[1] = a->scoring[0];
    a->coded = 0;
    if (a->k_frame == TOY_KV__BLOCKWISE)
        toy_kv__span_angles(a->step);
    for (t = 0; t < TOY_KV_N_SINK && t < n_tokens; t += n) {
        n = (TOY_KV_N_SINK < n_tokens ? TOY_KV_N_SINK : n_tokens) - t;
        n = n > TOY_KV_BLOCK ? TOY_KV_BLOCK : n;
        if (t < a->last && t + n > a->first)
            toy_kv__attend_exact(a, t, n);
    }
    toy_kv__attend_blocks(a, q->n_sealed, n_tokens);
    for (t = coded; t < n_tokens; t += n) {
        n = n_tokens - t > TOY_KV_BLOCK ? TOY_KV_BLOCK : n_tokens - t; /* t is at a block's start */
        if (t < a->last && t + n > a->first)
            toy_kv__attend_exact(a, t, n);
    }
    if (a->coded && a->v_tile != NULL)
        toy_kv__collect_held(a);
    else if (a->coded)
        toy_kv__collect(a);
}

/* Attention as engines ask for it: heads, ranges of tokens and queries, pass by pass. */

/* Queries skip .. skip + n - 1 of the latest n_q tokens of a layer, over tokens first .. last - 1.
 */
typedef struct toy_kv__job {
    const toy_kv *kv;
    const toy_kv__ops *ops;
    int seq, layer, n_q, skip, n, n_tokens, first, last, window;
    int n_top, n_outliers; /* chunks to choose; n_top 0: all are attended */
    float scale, soft_cap;
    const float *q; /* [n_q, N_HEADS, HEAD_DIM] */
    float *scratch;
} toy_kv__job;

/* Where partial results go: those of query i and the g-th head of its group at index i * step + g.
 */
typedef struct toy_kv__result {
    float *m, *l, *o;
    size_t step;
} toy_kv__result;

static inline size_t toy_kv__result_row(const toy_kv__result *out, int row)
{
    return (size_t)(row / TOY_KV_GROUP) * out->step + (size_t)(row % TOY_KV_GROUP);
}

/* How many chunks to choose. Fails for arguments that are out of range. */
static toy_kv_status toy_kv__limit_chunks(toy_kv__job *job, const toy_kv_attention *attention)
{
    int top = attention != NULL ? attention->top_tokens : 0, first, last;
    if (top == 0)
        return TOY_KV_OK;
    if (TOY_KV_LANDMARKS == 0 || top < 0 || top > TOY_KV_MAX_TOP_TOKENS ||
        attention->outlier_chunks > TOY_KV_MAX_OUTLIER_CHUNKS)
        return TOY_KV_E_ARGUMENT;
    job->n_top = (top + TOY_KV__CHUNK - 1) / TOY_KV__CHUNK;
    first = job->first < TOY_KV_N_SINK ? TOY_KV_N_SINK : job->first;
    last = toy_kv__n_coded(toy_kv__sequence(job->kv, job->seq));
    last = last < job->last ? last : job->last;
    if (job->n_top * TOY_KV__CHUNK >= last - first) {
        job->n_top = 0; /* nothing to choose */
        return TOY_KV_OK;
    }
    job->n_outliers = attention->outlier_chunks;
    if (job->n_outliers < 0)
        job->n_outliers = 0;
    else if (job->n_outliers == 0)
        job->n_outliers = job->n_top * 3 / 16;
    if (job->n_outliers > TOY_KV_MAX_OUTLIER_CHUNKS)
        job->n_outliers = TOY_KV_MAX_OUTLIER_CHUNKS;
    return TOY_KV_OK;
}

/* Fails for arguments that are out of range. */
static toy_kv_status toy_kv__make_job(toy_kv__job *job, const toy_kv *kv, int seq, int layer, int n_q,
                                  const float *q, int first, int count,
                                  const toy_kv_attention *attention, void *scratch,
                                  size_t scratch_bytes)
{
    int n_tokens;
    if (kv == NULL || q == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= TOY_KV_N_LAYERS || first < 0 || count < 0)
        return TOY_KV_E_ARGUMENT;
    n_tokens = toy_kv__sequence(kv, seq)->n_tokens[layer];
    if (n_q < 1 || n_q > n_tokens)
        return TOY_KV_E_ARGUMENT;
    if (scratch == NULL || scratch_bytes < toy_kv_scratch_size())
        return TOY_KV_E_SIZE;
    if ((uintptr_t)scratch % 64 != 0)
        return TOY_KV_E_ALIGNMENT;
    memset(job, 0, sizeof *job);
    job->kv = kv;
    job->ops = toy_kv__select(kv->config.isa);
    job->seq = seq;
    job->layer = layer;
    job->n_q = job->n = n_q;
    job->n_tokens = n_tokens;
    job->first = first;
    job->last = first > n_tokens || count > n_tokens - first ? n_tokens : first + count;
    job->scale =
        attention != NULL && attention->scale != 0.0f ? attention->scale : TOY_KV_ATTENTION_SCALE;
    job->soft_cap = attention != NULL ? attention->soft_cap : 0.0f;
    job->window = attention != NULL ? attention->sliding_window : 0;
    job->q = q;
    job->scratch = (float *)scratch;
    return toy_kv__limit_chunks(job, attention);
}

/* The position of the i-th query of a job. */
static inline int toy_kv__position(const toy_kv__job *job, int i)
{
    return job->n_tokens - job->n_q + job->skip + i;
}

/* Adds one partial row to another. */
static void toy_kv__merge_row(float *m, float *l, float *x, float m_more, float l_more,
                            const float *y)
{
    int d;
    float top = *m > m_more ? *m : m_more, a, b;
    if (*l == 0.0f && *m <= TOY_KV__MASKED) { /* there is nothing of it yet */
        *m = m_more;
        *l = l_more;
        memcpy(x, y, sizeof(float) * TOY_KV_HEAD_DIM);
        return;
    }
    a = expf(*m - top);
    b = expf(m_more - top);
    *m = top;
    *l = *l * a + l_more * b;
    for (d = 0; d < TOY_KV_HEAD_DIM; d++)
        x[d] = x[d] * a + y[d] * b;
}

/* The queries of one pass: those of a KV head from `row` on. */
static void toy_kv__load_rows(const toy_kv__job *job, toy_kv__pass *a, int head, int row)
{
    int r, rows = job->n * TOY_KV_GROUP;
    a->head = head;
    a->rows = rows - row < TOY_KV__PASS_ROWS ? rows - row : TOY_KV__PASS_ROWS;
    for (r = 0; r < a->rows; r++) {
        int query = job->skip + (row + r) / TOY_KV_GROUP;
        const float *src = job->q + ((size_t)query * TOY_KV_N_HEADS +
                                     (size_t)(head * TOY_KV_GROUP + (row + r) % TOY_KV_GROUP)) *
                                        TOY_KV_HEAD_DIM;
        a->position[r] = toy_kv__position(job, (row + r) / TOY_KV_GROUP);
        memcpy(a->q + r * TOY_KV_HEAD_DIM, src, sizeof(float) * TOY_KV_HEAD_DIM);
    }
    job->ops->shrink(a->q, (size_t)a->rows * TOY_KV_HEAD_DIM, job->scale);
}

/* What the passes of one head attend to, over all of the job's tokens: choices [CHOICES]. */
static void toy_kv__choose_rows(const toy_kv__job *job, toy_kv__pass *a, int head, toy_kv__choice *choices)
{
    const toy_kv__seq *q = toy_kv__sequence(job->kv, job->seq);
    toy_kv__chunks among;
    int row, first, last;
    among.kv = job->kv;
    among.blocks = toy_kv__blocks(job->kv, job->seq);
    among.layer = job->layer;
    among.head = head;
    for (row = 0; row < job->n * TOY_KV_GROUP; row += a->rows) {
        toy_kv__load_rows(job, a, head, row);
        first = job->first;
        if (job->window > 0 && first < a->position[0] - job->window + 1)
            first = a->position[0] - job->window + 1;
        last = a->position[a->rows - 1] + 1;
        toy_kv__choose(&among, job->ops, q, a->q, a->rows, first, last < job->last ? last : job->last,
                     job->n_top, job->n_outliers, choices++);
    }
}

/* All rows of one KV head over a range of tokens, added to what `out` holds of them. choices
 * [CHOICES] of its passes, or NULL. */
static void toy_kv__attend_head(const toy_kv__job *job, toy_kv__pass *a, int head,
                              const toy_kv__choice *choices, const toy_kv__result *out)
{
    int row, r, rows = job->n * TOY_KV_GROUP, last = a->last;
    for (row = 0; row < rows; row += a->rows) {
        toy_kv__load_rows(job, a, head, row);
        a->choice = choices == NULL || choices->all ? NULL : choices;
        if (choices != NULL)
            choices++;
        if (a->position[a->rows - 1] < last)
            a->last = a->position[a->rows - 1] + 1;
        toy_kv__attend_rows(a);
        a->last = last;
        for (r = 0; r < a->rows; r++) {
            size_t at = toy_kv__result_row(out, row + r);
            toy_kv__merge_row(out->m + at, out->l + at, out->o + at * TOY_KV_HEAD_DIM, a->m[r], a->l[r],
                            a->o + r * TOY_KV_HEAD_DIM);
        }
    }
}

/* Whether any pass of n_heads heads attends to block j: choices as toy_kv__attend_job() has them. */
static int toy_kv__wanted(const toy_kv__job *job, const toy_kv__choice *choices, int n_heads, int j)
{
    int h, i, passes = (job->n * TOY_KV_GROUP + TOY_KV__PASS_ROWS - 1) / TOY_KV__PASS_ROWS;
    if (choices == NULL)
        return 1;
    for (h = 0; h < n_heads; h++)
        for (i = 0; i < passes; i++) {
            const toy_kv__choice *one = &choices[h * TOY_KV__CHOICES + i];
            if (one->all || toy_kv__picked(one, j))
                return 1;
        }
    return 0;
}

/* Rebuilds the blocks from j on that some query of the job sees, for n_heads heads; returns their
 * number. */
static int toy_kv__hold_blocks(const toy_kv__job *job, toy_kv__pass *a, const toy_kv__choice *choices,
                             int j, int n_sealed, int head, int n_heads, float *k, float *v)
{
    int b, n = 0;
    float *room = job->scratch + TOY_KV__PASS_FLOATS + TOY_KV__STATE_FLOATS + TOY_KV__HELD_FLOATS;
    a->position[0] = toy_kv__position(job, 0);
    a->tile_first = j;
    for (b = 0; b < TOY_KV__HELD && j + b < n_sealed; b++) {
        size_t at = (size_t)b * TOY_KV__NODE_FLOATS;
        if (!toy_kv__reaches(a, j + b) || !toy_kv__wanted(job, choices, n_heads, j + b))
            continue;
        toy_kv__rebuild(job->kv, job->ops, toy_kv__blocks(job->kv, job->seq)[j + b], job->layer, head,
                      n_heads, room, k == NULL ? NULL : k + at, v == NULL ? NULL : v + at);
        n++;
    }
    return n;
}

/* Some heads of a layer. Where its vectors must be rebuilt that is done once for all heads and
 * queries: blocks outside, heads inside. */
static void toy_kv__attend_job(const toy_kv__job *job, int head, int n_heads, toy_kv__result out)
{
    toy_kv__pass a;
    float *k = job->scratch + TOY_KV__PASS_FLOATS + TOY_KV__STATE_FLOATS;
    float *v = k + (size_t)TOY_KV__HELD * TOY_KV__NODE_FLOATS;
    toy_kv__choice *choices =
        job->n_top == 0 ? NULL : (toy_kv__choice *)(void *)(job->scratch + TOY_KV__CHOICE_AT);
    int j, h, row, last = toy_kv__position(job, job->n - 1) + 1;
    int n_sealed = toy_kv__sequence(job->kv, job->seq)->n_sealed, step = TOY_KV__HELD;
    if (!toy_kv__nodes[toy_kv__node_at[TOY_KV_KEY * TOY_KV_N_LAYERS + job->layer]].rebuilt)
        k = NULL;
    if (!toy_kv__nodes[toy_kv__node_at[TOY_KV_VALUE * TOY_KV_N_LAYERS + job->layer]].rebuilt)
        v = NULL;
    if (k == NULL && v == NULL)
        step = n_sealed + 1;
    last = last < job->last ? last : job->last;
    memset(&a, 0, sizeof a);
    a.kv = job->kv;
    a.ops = job->ops;
    a.seq = job->seq;
    a.layer = job->layer;
    a.soft_cap = job->soft_cap;
    a.window = job->window;
    toy_kv__carve(&a, job->scratch);
    for (h = 0; h < n_heads; h++)
        for (row = 0; row < job->n * TOY_KV_GROUP; row++) {
            size_t at = toy_kv__result_row(&out, row) + (size_t)(h * TOY_KV_GROUP);
            out.m[at] = TOY_KV__MASKED;
            out.l[at] = 0.0f;
            memset(out.o + at * TOY_KV_HEAD_DIM, 0, sizeof(float) * TOY_KV_HEAD_DIM);
        }
    for (h = 0; h < n_heads && choices != NULL; h++)
        toy_kv__choose_rows(job, &a, head + h, choices + h * TOY_KV__CHOICES);
    for (j = 0; j == 0 || j < n_sealed; j += step) {
        int from = TOY_KV_N_SINK + j * TOY_KV_BLOCK, to = from + step * TOY_KV_BLOCK;
        a.first = j == 0 || from < job->first ? job->first : from;
        a.last = j + step >= n_sealed || to > last ? last : to;
        if (a.first >= a.last)
            continue;
        if ((k != NULL || v != NULL) &&
            toy_kv__hold_blocks(job, &a, choices, j, n_sealed, head, n_heads, k, v) == 0 && j > 0 &&
            j + step < n_sealed)
            continue; /* no exact tokens either */
        for (h = 0; h < n_heads; h++) {
            toy_kv__result rows = out;
            rows.m += h * TOY_KV_GROUP;
            rows.l += h * TOY_KV_GROUP;
            rows.o += (size_t)(h * TOY_KV_GROUP) * TOY_KV_HEAD_DIM;
            a.k_tile = k == NULL ? NULL : k + (size_t)h * TOY_KV__HEAD_FLOATS;
            a.v_tile = v == NULL ? NULL : v + (size_t)h * TOY_KV__HEAD_FLOATS;
            toy_kv__attend_head(job, &a, head + h,
                              choices == NULL ? NULL : choices + h * TOY_KV__CHOICES, &rows);
        }
    }
}

/* ---- what engines call ---- */

toy_kv_status toy_kv_attend_part(const toy_kv *kv, int seq, int layer, int kv_head, int n_q,
                             const float *q, int first, int count, const toy_kv_attention *attention,
                             toy_kv_partial *partial, void *scratch, size_t scratch_bytes)
{
    toy_kv__job job;
    toy_kv__result out;
    toy_kv_status status;
    int i, step = 1;
    if (partial == NULL || kv_head < 0 || kv_head >= TOY_KV_N_KV_HEADS)
        return TOY_KV_E_ARGUMENT;
    status = toy_kv__make_job(&job, kv, seq, layer, n_q, q, first, count, attention, scratch,
                            scratch_bytes);
    if (status != TOY_KV_OK)
        return status;
    out.m = partial->m;
    out.l = partial->l;
    out.o = partial->o;
    out.step = TOY_KV_GROUP;
    for (i = 0; i < n_q; i += step) {
        step = job.n_top > 0 ? TOY_KV__CHOOSERS : n_q;
        job.skip = i;
        job.n = n_q - i < step ? n_q - i : step;
        toy_kv__attend_job(&job, kv_head, 1, out);
        out.m += job.n * TOY_KV_GROUP;
        out.l += job.n * TOY_KV_GROUP;
        out.o += (size_t)(job.n * TOY_KV_GROUP) * TOY_KV_HEAD_DIM;
    }
    return TOY_KV_OK;
}

void toy_kv_merge(toy_kv_partial *into, const toy_kv_partial *from, int rows)
{
    int r;
    for (r = 0; r < rows; r++)
        toy_kv__merge_row(into->m + r, into->l + r, into->o + (size_t)r * TOY_KV_HEAD_DIM, from->m[r],
                        from->l[r], from->o + (size_t)r * TOY_KV_HEAD_DIM);
}

/* What sums of a row are multiplied by in the end: one over l and the sink's share; 0 where the row
 * saw nothing. */
static float toy_kv__row_factor(float m, float l, const float *sink)
{
    float shrink = 1.0f;
    if (sink != NULL) {
        float top = m > *sink ? m : *sink;
        shrink = expf(m - top);
        l = l * shrink + expf(*sink - top);
    }
    return l > 0.0f ? shrink / l : 0.0f;
}

void toy_kv_finish(const toy_kv_partial *partial, int kv_head, int n_q, const toy_kv_attention *attention,
                 float *out)
{
    int row, d;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    for (row = 0; row < n_q * TOY_KV_GROUP; row++) {
        int head = kv_head * TOY_KV_GROUP + row % TOY_KV_GROUP;
        size_t at = (size_t)(row / TOY_KV_GROUP) * TOY_KV_N_HEADS + (size_t)head;
        const float *o = partial->o + (size_t)row * TOY_KV_HEAD_DIM;
        float *dst = out + at * TOY_KV_HEAD_DIM;
        float f =
            toy_kv__row_factor(partial->m[row], partial->l[row], sinks != NULL ? sinks + head : NULL);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            dst[d] = f > 0.0f ? o[d] * f : 0.0f;
    }
}

toy_kv_status toy_kv_attend(const toy_kv *kv, int seq, int layer, int n_q, const float *q, float *out,
                        const toy_kv_attention *attention, void *scratch, size_t scratch_bytes)
{
    toy_kv__job job;
    toy_kv_status status;
    const float *sinks = attention != NULL ? attention->sink_logits : NULL;
    int i, step = 1;
    if (out == NULL)
        return TOY_KV_E_ARGUMENT;
    status = toy_kv__make_job(&job, kv, seq, layer, n_q, q, 0, INT32_MAX, attention, scratch,
                            scratch_bytes);
    for (i = 0; i < n_q && status == TOY_KV_OK; i += step) {
        toy_kv__result rows;
        int row;
        job.skip = i;
        step = job.n_top > 0 ? TOY_KV__CHOOSERS : TOY_KV__QUERIES;
        job.n = n_q - i < step ? n_q - i : step;
        rows.m = job.scratch + TOY_KV__PASS_FLOATS;
        rows.l = rows.m + TOY_KV__QUERIES * TOY_KV_N_HEADS;
        rows.o = out + (size_t)i * TOY_KV_N_HEADS * TOY_KV_HEAD_DIM;
        rows.step = TOY_KV_N_HEADS;
        toy_kv__attend_job(&job, 0, TOY_KV_N_KV_HEADS, rows);
        for (row = 0; row < job.n * TOY_KV_N_HEADS; row++) {
            float *o = rows.o + (size_t)row * TOY_KV_HEAD_DIM;
            float f = toy_kv__row_factor(rows.m[row], rows.l[row],
                                       sinks != NULL ? sinks + row % TOY_KV_N_HEADS : NULL);
            if (f > 0.0f)
                job.ops->shrink(o, TOY_KV_HEAD_DIM, f);
            else
                memset(o, 0, sizeof(float) * TOY_KV_HEAD_DIM);
        }
    }
    return status;
}

/* Appending tokens: they are kept exact until every layer has a block of them, then encoded. */

/* ---- blocks ---- */

static int toy_kv__take_block(toy_kv *kv)
{
    int32_t *references = toy_kv__references(kv);
    int i = kv->next;
    while (references[i] != 0) /* n_free > 0: there is one */
        i = i + 1 < kv->config.n_blocks ? i + 1 : 0;
    references[i] = 1;
    kv->n_free--;
    kv->next = i + 1 < kv->config.n_blocks ? i + 1 : 0;
    return i;
}

static void toy_kv__release_block(toy_kv *kv, int block)
{
    if (--toy_kv__references(kv)[block] > 0)
        return;
    if (TOY_KV__KEEPS)
        toy_kv__drop_kept(kv, block);
    kv->n_free++;
}

/* The fewest tokens that a layer holds. */
static int toy_kv__least(const toy_kv__seq *q)
{
    int i, n = q->n_tokens[0];
    for (i = 1; i < TOY_KV_N_LAYERS; i++)
        if (q->n_tokens[i] < n)
            n = q->n_tokens[i];
    return n;
}

static int toy_kv__in_step(const toy_kv__seq *q)
{
    int i;
    for (i = 1; i < TOY_KV_N_LAYERS; i++)
        if (q->n_tokens[i] != q->n_tokens[0])
            return 0;
    return 1;
}

/* Blocks that are full and have left the exact window. */
static int toy_kv__due(const toy_kv__seq *q)
{
    int uncoded = q->n_tokens[0] - toy_kv__n_coded(q) - TOY_KV_N_RECENT;
    return uncoded < TOY_KV_BLOCK ? 0 : uncoded / TOY_KV_BLOCK;
}

/* Encodes the oldest uncoded tokens of a sequence; where that takes more room on the exact list
 * than there is, nothing has changed. */
static toy_kv_status toy_kv__encode_block(toy_kv *kv, int seq)
{
    const toy_kv__ops *ops = toy_kv__select(kv->config.isa);
    toy_kv__seq *q = toy_kv__sequence(kv, seq);
    int token = toy_kv__n_coded(q), block = toy_kv__take_block(kv);
    toy_kv__entry *entry = &toy_kv__blocks(kv, seq)[q->n_sealed];
    toy_kv__encode_tokens(kv, ops, seq, token, block);
    if (TOY_KV_LANDMARKS > 0)
        toy_kv__write_landmarks(kv, ops, seq, token, block);
    entry->block = block;
    entry->position = token;
    if (TOY_KV__KEEPS && !toy_kv__keep_bad(kv, ops, seq, *entry)) {
        toy_kv__release_block(kv, block);
        return TOY_KV_E_FULL;
    }
    q->n_sealed++;
    return TOY_KV_OK;
}

/* ---- append ---- */

static inline size_t toy_kv__type_bytes(toy_kv_type type)
{
    return type == TOY_KV_F32 ? 4 : 2;
}

/* By the exponents, since an engine's compiler may assume that numbers are finite; eight bytes at a
 * time: one added to an exponent of ones carries into the bit of the sign, which is masked. */
static int toy_kv__all_finite(const void *src, toy_kv_type type, size_t n)
{
    static const uint64_t exponents[] = {0x7f8000007f800000u, 0x7c007c007c007c00u,
                                         0x7f807f807f807f80u};
    static const uint64_t ones[] = {0x0080000000800000u, 0x0400040004000400u, 0x0080008000800080u};
    const unsigned char *p = (const unsigned char *)src;
    uint64_t mask = exponents[type], one = ones[type], bad = 0, word = 0;
    size_t i, bytes = n * toy_kv__type_bytes(type);
    for (i = 0; i + 8 <= bytes; i += 8) {
        memcpy(&word, p + i, 8);
        bad |= (word & mask) + one;
    }
    word = 0;
    memcpy(&word, p + i, bytes - i);
    bad |= (word & mask) + one;
    return !(bad & ~mask & (mask << 1));
}

/* x [HEAD_DIM] of `type`, to fp32. */
static void toy_kv__read_input(const toy_kv__ops *ops, const unsigned char *src, toy_kv_type type,
                             float *x)
{
    int d;
    if (type == TOY_KV_F32) {
        memcpy(x, src, sizeof(float) * TOY_KV_HEAD_DIM);
    } else if (type == TOY_KV_F16) {
        memset(x, 0, sizeof(float) * TOY_KV_HEAD_DIM);
        ops->add_row(src, TOY_KV_HEAD_DIM, 1.0f, x);
    } else {
        for (d = 0; d < TOY_KV_HEAD_DIM; d++) {
            uint16_t h;
            memcpy(&h, src + 2 * d, 2);
            x[d] = toy_kv__from_bits((uint32_t)h << 16);
        }
    }
}

/* Angles of one token after the other. */
typedef struct toy_kv__turning {
    double at[TOY_KV_N_ROT + 1], step[TOY_KV_N_ROT + 1]; /* cosine and sine of each pair */
    float cosines[TOY_KV_N_ROT / 2 + 1], sines[TOY_KV_N_ROT / 2 + 1];
} toy_kv__turning;

static void toy_kv__exact_angles(double position, double *cs)
{
    int i;
    for (i = 0; i < TOY_KV_N_ROT / 2; i++) {
        cs[2 * i] = cos(position * toy_kv__rope_freq(i));
        cs[2 * i + 1] = sin(position * toy_kv__rope_freq(i));
    }
}

/* To the i-th of n tokens from `first` on, in order. Each 64th has its own sines; those between
 * turn on by one token, in double, which is exact enough for any fp32 and many times quicker. */
static void toy_kv__turn_on(toy_kv__turning *a, int first, int i, int n)
{
    int j;
    if (i == 0 && n > 1)
        toy_kv__exact_angles(1.0, a->step);
    if (i % 64 == 0)
        toy_kv__exact_angles(first + i, a->at);
    for (j = 0; j < TOY_KV_N_ROT / 2; j++) {
        double c = a->at[2 * j], s = a->at[2 * j + 1];
        if (i % 64 != 0) {
            a->at[2 * j] = c * a->step[2 * j] - s * a->step[2 * j + 1];
            a->at[2 * j + 1] = c * a->step[2 * j + 1] + s * a->step[2 * j];
        }
        a->cosines[j] = (float)a->at[2 * j] * TOY_KV__ROPE_SCALE;
        a->sines[j] = (float)a->at[2 * j + 1] * TOY_KV__ROPE_SCALE;
    }
}

/* All heads of one token of a layer; `turning`: of keys that come without their rotation, or NULL.
 */
static void toy_kv__store_token(toy_kv *kv, const toy_kv__ops *ops, int seq, int layer, int token,
                              const unsigned char *src, toy_kv_type type, int part,
                              const toy_kv__turning *turning)
{
    float x[TOY_KV_HEAD_DIM];
    int head;
    for (head = 0; head < TOY_KV_N_KV_HEADS; head++, src += TOY_KV_HEAD_DIM * toy_kv__type_bytes(type)) {
        unsigned char *dst = toy_kv__exact(kv, seq, layer, part, head, token);
        if (type == TOY_KV_F16 && turning == NULL) {
            memcpy(dst, src, 2 * TOY_KV_HEAD_DIM);
            continue;
        }
        toy_kv__read_input(ops, src, type, x);
        if (turning != NULL)
            ops->code->turn_row(turning->cosines, turning->sines, x);
        ops->code->store_row(x, TOY_KV_HEAD_DIM, dst);
    }
}

toy_kv_status toy_kv_append(toy_kv *kv, int seq, int layer, int n, const void *k, const void *v,
                        toy_kv_type type, toy_kv_keys keys)
{
    size_t row = (size_t)TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM, bytes;
    const toy_kv__ops *ops;
    toy_kv__turning turning;
    toy_kv_status status = TOY_KV_OK;
    toy_kv__seq *q;
    int i, held;
    if (kv == NULL || k == NULL || v == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= TOY_KV_N_LAYERS || n < 1 || (unsigned)type > TOY_KV_BF16 ||
        (unsigned)keys > TOY_KV_KEYS_UNROTATED)
        return TOY_KV_E_ARGUMENT;
    if (n > kv->config.max_batch)
        return TOY_KV_E_BATCH;
    q = toy_kv__sequence(kv, seq);
    held = q->n_tokens[layer];
    if (n > kv->config.n_ctx - held)
        return TOY_KV_E_CONTEXT;
    if (!toy_kv__all_finite(k, type, (size_t)n * row) || !toy_kv__all_finite(v, type, (size_t)n * row))
        return TOY_KV_E_VALUE;
    if (toy_kv__in_step(q)) {
        if (toy_kv__due(q) > kv->n_free)
            return TOY_KV_E_FULL;
        while (status == TOY_KV_OK && toy_kv__due(q) > 0)
            status = toy_kv__encode_block(kv, seq);
        if (status != TOY_KV_OK)
            return status;
        q->target = held + n;
    } else if (held + n != q->target) {
        return TOY_KV_E_ORDER;
    }
    ops = toy_kv__select(kv->config.isa);
    bytes = row * toy_kv__type_bytes(type);
    for (i = 0; i < n; i++) {
        if (keys == TOY_KV_KEYS_UNROTATED)
            toy_kv__turn_on(&turning, held, i, n);
        toy_kv__store_token(kv, ops, seq, layer, held + i,
                          (const unsigned char *)k + (size_t)i * bytes, type, TOY_KV_KEY,
                          keys == TOY_KV_KEYS_UNROTATED ? &turning : NULL);
        toy_kv__store_token(kv, ops, seq, layer, held + i,
                          (const unsigned char *)v + (size_t)i * bytes, type, TOY_KV_VALUE, NULL);
    }
    q->n_tokens[layer] = held + n;
    return TOY_KV_OK;
}

/* The cache itself: memory, trim, fork, read. */

const char *toy_kv_status_text(toy_kv_status status)
{
    switch (status) {
#define TOY_KV__X(name, words)                                                                       \
    case TOY_KV_##name:                                                                              \
        return words;
        TOY_KV_STATUS_LIST(TOY_KV__X)
#undef TOY_KV__X
    }
    return "unknown status";
}

size_t toy_kv_scratch_size(void)
{
    return TOY_KV__SCRATCH_FLOATS * sizeof(float);
}

/* The exact list of a cache with c->n_blocks blocks: its default length, its place at *at. */
static void toy_kv__lay_out_kept(toy_kv_config *c, toy_kv *kv, uint64_t *at)
{
    uint64_t vectors = (uint64_t)c->n_blocks * TOY_KV_BLOCK * (uint64_t)TOY_KV__SLOTS, n;
    n = (uint64_t)((double)vectors * TOY_KV__KEPT_SHARE) + (uint64_t)TOY_KV__SLOTS;
    if (c->n_exact == 0)
        c->n_exact = n < vectors && n < (1u << 30) ? (int)n
                     : vectors < (1u << 30)        ? (int)vectors
                                                   : 1 << 30;
    if (!TOY_KV__KEEPS)
        c->n_exact = 0;
    kv->kept_firsts = *at;
    *at += TOY_KV__ALIGNED((uint64_t)TOY_KV__CHAIN_BYTES * (uint64_t)c->n_blocks);
    kv->kept_links = *at;
    *at += TOY_KV__ALIGNED(sizeof(toy_kv__link) * (uint64_t)c->n_exact);
    kv->kept_rows = *at;
    *at += TOY_KV__ALIGNED((uint64_t)TOY_KV_HEAD_DIM * 2 * (uint64_t)c->n_exact);
}

/* Fills in defaults and offsets; fails where a size would overflow. */
static toy_kv_status toy_kv__lay_out(const toy_kv_config *config, toy_kv *kv)
{
    toy_kv_config c;
    uint64_t at = TOY_KV__ALIGNED(sizeof(toy_kv)), limit = (uint64_t)(SIZE_MAX / 2), row;
    if (config == NULL || config->n_ctx < 1 || config->n_ctx > (1 << 28) || config->n_seq < 0 ||
        config->n_seq > (1 << 20) || config->max_batch < 0 || config->max_batch > (1 << 24) ||
        config->n_blocks < 0 || config->n_blocks > (1 << 28) || config->n_exact < 0 ||
        config->n_exact > (1 << 30))
        return TOY_KV_E_ARGUMENT;
    c = *config;
    if (c.n_seq == 0)
        c.n_seq = 1;
    if (c.max_batch == 0)
        c.max_batch = 256;
    if (c.isa == TOY_KV_ISA_AUTO)
        c.isa = toy_kv__best();
    if (!toy_kv__has(c.isa))
        return TOY_KV_E_CPU;
    memset(kv, 0, sizeof *kv);
    kv->seq_blocks = c.n_ctx / TOY_KV_BLOCK + 1;
    if (c.n_blocks == 0) {
        if ((int64_t)c.n_seq * kv->seq_blocks > (1 << 28))
            return TOY_KV_E_ARGUMENT;
        c.n_blocks = c.n_seq * kv->seq_blocks;
    }
    /* A step of max_batch tokens begins with less than n_recent + block uncoded ones. */
    kv->ring =
        (TOY_KV_N_RECENT + TOY_KV_BLOCK + c.max_batch + TOY_KV_BLOCK - 1) / TOY_KV_BLOCK * TOY_KV_BLOCK;
    kv->n_free = c.n_blocks;
    kv->magic = TOY_KV__MAGIC;
    kv->seqs = at;
    at += TOY_KV__ALIGNED(sizeof(toy_kv__seq) * (uint64_t)c.n_seq);
    kv->tables = at;
    at += TOY_KV__ALIGNED(sizeof(toy_kv__entry) * (uint64_t)c.n_seq * (uint64_t)kv->seq_blocks);
    kv->references = at;
    at += TOY_KV__ALIGNED(sizeof(int32_t) * (uint64_t)c.n_blocks);
    kv->work = at;
    at += TOY_KV__ALIGNED((uint64_t)TOY_KV__WORK_FLOATS * sizeof(float));
    kv->turns = at;
    at += TOY_KV__ALIGNED((uint64_t)TOY_KV__TURN_FLOATS * sizeof(float));
    toy_kv__lay_out_kept(&c, kv, &at);
    kv->config = c;
    kv->exact = at;
    row = (uint64_t)TOY_KV_N_LAYERS * 2 * TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM * 2;
    if (row * (uint64_t)(TOY_KV_N_SINK + kv->ring) > limit / 4 / (uint64_t)c.n_seq)
        return TOY_KV_E_ARGUMENT;
    at += TOY_KV__ALIGNED(row * (uint64_t)(TOY_KV_N_SINK + kv->ring) * (uint64_t)c.n_seq);
    kv->pool = at;
    if ((uint64_t)c.n_blocks > limit / 4 / TOY_KV__POOL_BYTES)
        return TOY_KV_E_ARGUMENT;
    kv->bytes = at + (uint64_t)c.n_blocks * TOY_KV__POOL_BYTES;
    if (kv->bytes > limit)
        return TOY_KV_E_ARGUMENT;
    return TOY_KV_OK;
}

/* The angles of every offset in a block. */
static void toy_kv__fill_turns(toy_kv *kv)
{
    float cs[TOY_KV_N_ROT + 1] = {0.0f}, *turns = toy_kv__turns(kv);
    int t, i;
    for (t = 0; t < TOY_KV_BLOCK && TOY_KV__TURN_FLOATS > 0; t++) {
        toy_kv__angles(t, cs);
        for (i = 0; i < TOY_KV_N_ROT; i++)
            turns[i * TOY_KV_BLOCK + t] = cs[i];
    }
}

toy_kv_status toy_kv_size(const toy_kv_config *config, size_t *bytes)
{
    toy_kv kv;
    toy_kv_status status = bytes == NULL ? TOY_KV_E_ARGUMENT : toy_kv__lay_out(config, &kv);
    if (status == TOY_KV_OK)
        *bytes = (size_t)kv.bytes;
    return status;
}

toy_kv_status toy_kv_init(toy_kv **kv, const toy_kv_config *config, void *memory, size_t bytes)
{
    toy_kv laid;
    int32_t i;
    toy_kv_status status = toy_kv__lay_out(config, &laid);
    if (status != TOY_KV_OK)
        return status;
    if (kv == NULL || memory == NULL)
        return TOY_KV_E_ARGUMENT;
    if (bytes < laid.bytes)
        return TOY_KV_E_SIZE;
    if ((uintptr_t)memory % 64 != 0)
        return TOY_KV_E_ALIGNMENT;
    memset(memory, 0, (size_t)laid.pool);
    memcpy(memory, &laid, sizeof laid);
    *kv = (toy_kv *)memory;
    for (i = (*kv)->config.n_exact; i > 0; i--) {
        toy_kv__kept_link(*kv, i)->next = (*kv)->kept_free;
        (*kv)->kept_free = i;
    }
    toy_kv__fill_turns(*kv);
    return TOY_KV_OK;
}

toy_kv_isa toy_kv_isa_in_use(const toy_kv *kv)
{
    return kv->config.isa;
}

int toy_kv_n_tokens(const toy_kv *kv, int seq)
{
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq)
        return -1;
    return toy_kv__least(toy_kv__sequence(kv, seq));
}

/* ---- trim and fork ---- */

/* x [HEAD_DIM, BLOCK]: the exact vectors of one head from `token` on. */
static void toy_kv__store_exact(toy_kv *kv, int seq, const toy_kv__node *n, int head, int token,
                              const float *x)
{
    int t, d;
    for (t = 0; t < TOY_KV_BLOCK; t++) {
        unsigned char *dst = toy_kv__exact(kv, seq, n->layer, n->part, head, token + t);
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            toy_kv__store_half(dst + 2 * d, x[d * TOY_KV_BLOCK + t]);
    }
}

/* Decodes the last block of a sequence back into the exact window and gives the block up. */
static void toy_kv__reopen_block(toy_kv *kv, int seq)
{
    const toy_kv__ops *ops = toy_kv__select(kv->config.isa);
    toy_kv__seq *q = toy_kv__sequence(kv, seq);
    toy_kv__entry entry = toy_kv__blocks(kv, seq)[q->n_sealed - 1];
    float *x = toy_kv__work(kv);
    toy_kv__room room = toy_kv__make_room(x + TOY_KV__HEAD_FLOATS);
    int node, head, token = toy_kv__n_coded(q) - TOY_KV_BLOCK;
    for (node = 0; node < 2 * TOY_KV_N_LAYERS; node++) {
        toy_kv__rebuild_node(kv, ops, entry.block, node, 0, TOY_KV_N_KV_HEADS, &room);
        for (head = 0; head < TOY_KV_N_KV_HEADS; head++) {
            toy_kv__hand_out(kv, ops, entry, node, head, 1, &room, x);
            toy_kv__store_exact(kv, seq, &toy_kv__nodes[node], head, token, x);
        }
    }
    toy_kv__release_block(kv, entry.block);
    q->n_sealed--;
}

toy_kv_status toy_kv_trim(toy_kv *kv, int seq, int n_keep)
{
    toy_kv__seq *q;
    int i;
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq || n_keep < 0)
        return TOY_KV_E_ARGUMENT;
    q = toy_kv__sequence(kv, seq);
    if (n_keep > toy_kv__least(q))
        return TOY_KV_E_ARGUMENT;
    while (q->n_sealed > 0 && toy_kv__n_coded(q) - TOY_KV_BLOCK >= n_keep) {
        toy_kv__release_block(kv, toy_kv__blocks(kv, seq)[q->n_sealed - 1].block);
        q->n_sealed--;
    }
    if (q->n_sealed > 0 && toy_kv__n_coded(q) > n_keep)
        toy_kv__reopen_block(kv, seq);
    for (i = 0; i < TOY_KV_N_LAYERS; i++)
        q->n_tokens[i] = n_keep;
    q->target = n_keep;
    return TOY_KV_OK;
}

toy_kv_status toy_kv_fork(toy_kv *kv, int from, int to)
{
    int i;
    size_t bytes;
    toy_kv__seq *source;
    if (kv == NULL || from < 0 || from >= kv->config.n_seq || to < 0 || to >= kv->config.n_seq)
        return TOY_KV_E_ARGUMENT;
    source = toy_kv__sequence(kv, from);
    if (!toy_kv__in_step(source))
        return TOY_KV_E_ORDER;
    if (from == to)
        return TOY_KV_OK;
    toy_kv_trim(kv, to, 0);
    for (i = 0; i < source->n_sealed; i++) {
        toy_kv__blocks(kv, to)[i] = toy_kv__blocks(kv, from)[i];
        toy_kv__references(kv)[toy_kv__blocks(kv, from)[i].block]++;
    }
    *toy_kv__sequence(kv, to) = *source;
    bytes =
        (size_t)(TOY_KV_N_SINK + kv->ring) * TOY_KV_N_LAYERS * 2 * TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM * 2;
    memcpy(toy_kv__base(kv) + kv->exact + (size_t)to * bytes,
           toy_kv__base(kv) + kv->exact + (size_t)from * bytes, bytes);
    return TOY_KV_OK;
}

/* ---- reading ---- */

toy_kv_status toy_kv_read(const toy_kv *kv, int seq, int layer, int kv_head, toy_kv_part part, int first,
                      int n, float *dst, void *scratch, size_t scratch_bytes)
{
    const toy_kv__ops *ops;
    const toy_kv__seq *q;
    float *tile = (float *)scratch;
    int t, d, coded, have = -1;
    if (kv == NULL || dst == NULL || seq < 0 || seq >= kv->config.n_seq || layer < 0 ||
        layer >= TOY_KV_N_LAYERS || kv_head < 0 || kv_head >= TOY_KV_N_KV_HEADS ||
        (part != TOY_KV_KEY && part != TOY_KV_VALUE) || first < 0 || n < 0)
        return TOY_KV_E_ARGUMENT;
    q = toy_kv__sequence(kv, seq);
    if (n > q->n_tokens[layer] - first)
        return TOY_KV_E_ARGUMENT;
    if (scratch == NULL || scratch_bytes < toy_kv_scratch_size())
        return TOY_KV_E_SIZE;
    if ((uintptr_t)scratch % 64 != 0)
        return TOY_KV_E_ALIGNMENT;
    ops = toy_kv__select(kv->config.isa);
    coded = toy_kv__n_coded(q);
    for (t = first; t < first + n; t++, dst += TOY_KV_HEAD_DIM) {
        int block = (t - TOY_KV_N_SINK) / TOY_KV_BLOCK;
        if (t < TOY_KV_N_SINK || t >= coded) {
            const unsigned char *row = toy_kv__exact(kv, seq, layer, (int)part, kv_head, t);
            for (d = 0; d < TOY_KV_HEAD_DIM; d++)
                dst[d] = toy_kv__half_at(row, (size_t)d);
            continue;
        }
        if (block != have)
            toy_kv__rebuild(kv, ops, toy_kv__blocks(kv, seq)[block], layer, kv_head, 1,
                          tile + TOY_KV__HEAD_FLOATS, part == TOY_KV_KEY ? tile : NULL,
                          part == TOY_KV_KEY ? NULL : tile);
        have = block;
        for (d = 0; d < TOY_KV_HEAD_DIM; d++)
            dst[d] = tile[d * TOY_KV_BLOCK + (t - TOY_KV_N_SINK) % TOY_KV_BLOCK];
    }
    return TOY_KV_OK;
}

size_t toy_kv_bytes_used(const toy_kv *kv)
{
    size_t bytes, token = (size_t)TOY_KV_N_LAYERS * 2 * TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM * 2;
    int seq;
    if (kv == NULL)
        return 0;
    bytes =
        (size_t)(kv->config.n_blocks - kv->n_free) * ((size_t)TOY_KV__POOL_BYTES + TOY_KV__CHAIN_BYTES);
    bytes += (size_t)kv->n_kept * TOY_KV__KEPT_BYTES;
    for (seq = 0; seq < kv->config.n_seq; seq++) {
        const toy_kv__seq *q = toy_kv__sequence(kv, seq);
        int exact = toy_kv__least(q) - q->n_sealed * TOY_KV_BLOCK;
        bytes += (size_t)exact * token + (size_t)q->n_sealed * sizeof(toy_kv__entry);
    }
    return bytes;
}

toy_kv_status toy_kv_get_stats(const toy_kv *kv, toy_kv_stats *stats)
{
    if (kv == NULL || stats == NULL)
        return TOY_KV_E_ARGUMENT;
    stats->bytes = toy_kv_bytes_used(kv);
    stats->n_blocks = kv->config.n_blocks;
    stats->blocks_used = kv->config.n_blocks - kv->n_free;
    stats->n_exact = kv->config.n_exact;
    stats->exact_used = kv->n_kept;
    return TOY_KV_OK;
}

/* Saving and loading one sequence. Layout, little-endian:
 *   toy_kv__saved, then n_sealed times the streams' block contents in stream order and the landmarks
 * of each layer and head, then the exact list, n_kept times toy_kv__saved_vector and binary16
 *   [TOY_KV_HEAD_DIM], ascending, then the exact tokens: for each layer, part and head, binary16
 *   [tokens, TOY_KV_HEAD_DIM]. */

typedef struct toy_kv__saved {
    char magic[8];     /* "VQKVSAVE" */
    uint32_t version;  /* TOY_KV_ABI_VERSION */
    uint32_t n_sealed; /* blocks */
    uint64_t n_tokens;
    uint64_t n_kept;   /* vectors on the exact list */
    uint64_t bytes;    /* of everything, this header included */
    char codec[32];    /* TOY_KV_CODEC: identity of the tables */
    uint64_t checksum; /* of all bytes, with this field zero */
} toy_kv__saved;

/* Where a vector of the exact list belongs. */
typedef struct toy_kv__saved_vector {
    uint32_t token; /* counted from the end of the sinks */
    uint32_t slot;  /* part, layer and head: toy_kv__slot() */
} toy_kv__saved_vector;

#define TOY_KV__SAVED_VECTOR (sizeof(toy_kv__saved_vector) + 2 * (size_t)TOY_KV_HEAD_DIM)

/* Mixes 8 bytes at a time by xor, multiply and rotate; guards against damage, not malice. */
static uint64_t toy_kv__checksum(uint64_t sum, const unsigned char *p, size_t n)
{
    uint64_t word;
    size_t i;
    for (i = 0; i + 8 <= n; i += 8) {
        memcpy(&word, p + i, 8);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    for (; i < n; i++) {
        sum = (sum ^ p[i]) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

/* n_kept is no more than the vectors in n_sealed blocks, so nothing overflows. */
static uint64_t toy_kv__saved_bytes(uint64_t n_tokens, uint64_t n_sealed, uint64_t n_kept)
{
    uint64_t token = (uint64_t)TOY_KV_N_LAYERS * 2 * TOY_KV_N_KV_HEADS * TOY_KV_HEAD_DIM * 2;
    return sizeof(toy_kv__saved) + n_sealed * TOY_KV__POOL_BYTES + n_kept * TOY_KV__SAVED_VECTOR +
           (n_tokens - n_sealed * TOY_KV_BLOCK) * token;
}

static uint64_t toy_kv__kept_of(const toy_kv *kv, int seq)
{
    int j;
    uint64_t n = 0;
    for (j = 0; j < toy_kv__sequence(kv, seq)->n_sealed && TOY_KV__KEEPS; j++)
        n += (uint64_t)toy_kv__count_kept(kv, toy_kv__blocks(kv, seq)[j].block);
    return n;
}

size_t toy_kv_save_size(const toy_kv *kv, int seq)
{
    const toy_kv__seq *q;
    if (kv == NULL || seq < 0 || seq >= kv->config.n_seq)
        return 0;
    q = toy_kv__sequence(kv, seq);
    return (size_t)toy_kv__saved_bytes((uint64_t)toy_kv__least(q), (uint64_t)q->n_sealed,
                                     toy_kv__kept_of(kv, seq));
}

/* Moves the exact tokens of a sequence out to bytes (out) or in; returns the end of the bytes. */
static unsigned char *toy_kv__move_exact(const toy_kv *kv, int seq, int out, unsigned char *bytes)
{
    const toy_kv__seq *q = toy_kv__sequence(kv, seq);
    int layer, part, head, t, coded = toy_kv__n_coded(q), n_tokens = q->n_tokens[0];
    for (layer = 0; layer < TOY_KV_N_LAYERS; layer++)
        for (part = 0; part < 2; part++)
            for (head = 0; head < TOY_KV_N_KV_HEADS; head++)
                for (t = 0; t < n_tokens; t++) {
                    unsigned char *row;
                    if (t >= TOY_KV_N_SINK && t < coded)
                        continue;
                    row = toy_kv__exact(kv, seq, layer, part, head, t);
                    memcpy(out ? bytes : row, out ? row : bytes, TOY_KV_HEAD_DIM * 2);
                    bytes += TOY_KV_HEAD_DIM * 2;
                }
    return bytes;
}

/* Moves the contents of a block of the pool out to bytes (out) or in; returns the end of the bytes.
 */
static unsigned char *toy_kv__move_block(const toy_kv *kv, int block, int out, unsigned char *bytes)
{
    int stream, head;
    for (stream = 0; stream < TOY_KV__N_STREAMS; stream++) {
        size_t n = (size_t)toy_kv__streams[stream].bytes;
        unsigned char *codes = toy_kv__codes(kv, stream, block);
        memcpy(out ? bytes : codes, out ? codes : bytes, n);
        bytes += n;
    }
    for (head = 0; head < TOY_KV_N_LAYERS * TOY_KV_N_KV_HEADS && TOY_KV_LANDMARKS > 0; head++) {
        unsigned char *marks = toy_kv__landmarks(kv, 0, head, block);
        memcpy(out ? bytes : marks, out ? marks : bytes, (size_t)TOY_KV__LANDMARK_BYTES);
        bytes += TOY_KV__LANDMARK_BYTES;
    }
    return bytes;
}

/* Writes the exact list of one block, the j-th of its sequence; returns the end of the bytes. */
static unsigned char *toy_kv__save_kept(const toy_kv *kv, int block, int j, unsigned char *bytes)
{
    toy_kv__saved_vector head;
    int slot;
    int32_t i;
    for (slot = 0; slot < TOY_KV__SLOTS && TOY_KV__KEEPS; slot++)
        for (i = *toy_kv__kept_first(kv, slot, block); i != 0; i = toy_kv__kept_link(kv, i)->next) {
            head.token = (uint32_t)(j * TOY_KV_BLOCK + toy_kv__kept_link(kv, i)->token);
            head.slot = (uint32_t)slot;
            memcpy(bytes, &head, sizeof head);
            memcpy(bytes + sizeof head, toy_kv__kept_row(kv, i), 2 * (size_t)TOY_KV_HEAD_DIM);
            bytes += TOY_KV__SAVED_VECTOR;
        }
    return bytes;
}

toy_kv_status toy_kv_save(const toy_kv *kv, int seq, void *dst, size_t bytes)
{
    toy_kv__saved head;
    unsigned char *p = (unsigned char *)dst;
    const toy_kv__seq *q;
    int j;
    if (kv == NULL || dst == NULL || seq < 0 || seq >= kv->config.n_seq)
        return TOY_KV_E_ARGUMENT;
    q = toy_kv__sequence(kv, seq);
    if (!toy_kv__in_step(q))
        return TOY_KV_E_ORDER;
    if (bytes < toy_kv_save_size(kv, seq))
        return TOY_KV_E_SIZE;
    memset(&head, 0, sizeof head);
    memcpy(head.magic, "VQKVSAVE", 8);
    head.version = TOY_KV_ABI_VERSION;
    head.n_tokens = (uint64_t)q->n_tokens[0];
    head.n_sealed = (uint32_t)q->n_sealed;
    head.n_kept = toy_kv__kept_of(kv, seq);
    head.bytes = toy_kv__saved_bytes(head.n_tokens, head.n_sealed, head.n_kept);
    memcpy(head.codec, TOY_KV_CODEC, 32);
    p += sizeof head;
    for (j = 0; j < q->n_sealed; j++)
        p = toy_kv__move_block(kv, toy_kv__blocks(kv, seq)[j].block, 1, p);
    for (j = 0; j < q->n_sealed; j++)
        p = toy_kv__save_kept(kv, toy_kv__blocks(kv, seq)[j].block, j, p);
    toy_kv__move_exact(kv, seq, 1, p);
    memcpy(dst, &head, sizeof head);
    head.checksum = toy_kv__checksum(1, (const unsigned char *)dst, (size_t)head.bytes);
    memcpy(dst, &head, sizeof head);
    return TOY_KV_OK;
}

/* Whether the n vectors of a saved exact list are in order and in blocks. */
static int toy_kv__kept_in_order(const unsigned char *p, uint64_t n, uint32_t n_sealed)
{
    uint64_t i, before = 0;
    for (i = 0; i < n; i++, p += TOY_KV__SAVED_VECTOR) {
        toy_kv__saved_vector head;
        uint64_t at;
        memcpy(&head, p, sizeof head);
        if (head.token / TOY_KV_BLOCK >= n_sealed || head.slot >= TOY_KV__SLOTS)
            return 0;
        /* by block, slot, token; from 1 up */
        at = ((uint64_t)(head.token / TOY_KV_BLOCK) * TOY_KV__SLOTS + head.slot) * TOY_KV_BLOCK +
             head.token % TOY_KV_BLOCK + 1;
        if (at <= before)
            return 0;
        before = at;
    }
    return 1;
}

/* Everything about a saved sequence that can be known before it is loaded. */
static toy_kv_status toy_kv__check_saved(const toy_kv *kv, int seq, const unsigned char *src,
                                     size_t bytes, toy_kv__saved *head)
{
    uint64_t sum, stored, uncoded;
    if (bytes < sizeof *head)
        return TOY_KV_E_FORMAT;
    memcpy(head, src, sizeof *head);
    if (memcmp(head->magic, "VQKVSAVE", 8) != 0)
        return TOY_KV_E_FORMAT;
    if (head->version != TOY_KV_ABI_VERSION || memcmp(head->codec, TOY_KV_CODEC, 32) != 0)
        return TOY_KV_E_VERSION;
    if (head->n_tokens > (uint64_t)kv->config.n_ctx)
        return TOY_KV_E_CONTEXT;
    if (head->n_sealed > 0 && (uint64_t)head->n_sealed * TOY_KV_BLOCK + TOY_KV_N_SINK > head->n_tokens)
        return TOY_KV_E_FORMAT;
    if (head->n_kept > (TOY_KV__KEEPS ? (uint64_t)head->n_sealed * TOY_KV_BLOCK * TOY_KV__SLOTS : 0) ||
        head->bytes != toy_kv__saved_bytes(head->n_tokens, head->n_sealed, head->n_kept) ||
        bytes < head->bytes)
        return TOY_KV_E_FORMAT;
    uncoded = head->n_tokens - (uint64_t)head->n_sealed * TOY_KV_BLOCK;
    if (uncoded > (uint64_t)(TOY_KV_N_SINK + kv->ring))
        return TOY_KV_E_BATCH;
    stored = head->checksum;
    head->checksum = 0;
    sum = toy_kv__checksum(1, (const unsigned char *)head, sizeof *head);
    sum = toy_kv__checksum(sum, src + sizeof *head, (size_t)head->bytes - sizeof *head);
    if (sum != stored)
        return TOY_KV_E_CHECKSUM;
    if (!toy_kv__kept_in_order(src + sizeof *head + head->n_sealed * (size_t)TOY_KV__POOL_BYTES,
                             head->n_kept, head->n_sealed))
        return TOY_KV_E_FORMAT;
    {
        /* What the sequence gives up on being replaced counts as free. */
        int j, free_blocks = kv->n_free, free_kept = kv->config.n_exact - kv->n_kept;
        const toy_kv__entry *blocks = toy_kv__blocks(kv, seq);
        for (j = 0; j < toy_kv__sequence(kv, seq)->n_sealed; j++)
            if (toy_kv__references(kv)[blocks[j].block] == 1) {
                free_blocks++;
                free_kept += toy_kv__count_kept(kv, blocks[j].block);
            }
        if (head->n_sealed > (uint32_t)free_blocks || head->n_kept > (uint64_t)free_kept)
            return TOY_KV_E_FULL;
    }
    return TOY_KV_OK;
}

toy_kv_status toy_kv_load(toy_kv *kv, int seq, const void *src, size_t bytes)
{
    toy_kv__saved head;
    toy_kv__seq *q;
    const unsigned char *p = (const unsigned char *)src;
    toy_kv_status status;
    uint64_t kept;
    int i;
    if (kv == NULL || src == NULL || seq < 0 || seq >= kv->config.n_seq)
        return TOY_KV_E_ARGUMENT;
    status = toy_kv__check_saved(kv, seq, p, bytes, &head);
    if (status != TOY_KV_OK)
        return status;
    q = toy_kv__sequence(kv, seq);
    for (i = 0; i < q->n_sealed; i++)
        toy_kv__release_block(kv, toy_kv__blocks(kv, seq)[i].block);
    p += sizeof head;
    for (i = 0; i < (int)head.n_sealed; i++) {
        toy_kv__entry *entry = &toy_kv__blocks(kv, seq)[i];
        entry->block = toy_kv__take_block(kv);
        entry->position = TOY_KV_N_SINK + i * TOY_KV_BLOCK;
        p = toy_kv__move_block(kv, entry->block, 0, (unsigned char *)(uintptr_t)p);
    }
    p += head.n_kept * TOY_KV__SAVED_VECTOR;
    for (kept = 1; kept <= head.n_kept; kept++) { /* backwards: chains grow in front */
        const unsigned char *at = p - kept * TOY_KV__SAVED_VECTOR;
        toy_kv__saved_vector place;
        memcpy(&place, at, sizeof place);
        toy_kv__put_kept(kv, (int)place.slot, toy_kv__blocks(kv, seq)[place.token / TOY_KV_BLOCK].block,
                       (int)(place.token % TOY_KV_BLOCK), at + sizeof place);
    }
    q->n_sealed = (int32_t)head.n_sealed;
    q->target = (int32_t)head.n_tokens;
    for (i = 0; i < TOY_KV_N_LAYERS; i++)
        q->n_tokens[i] = (int32_t)head.n_tokens;
    toy_kv__move_exact(kv, seq, 0, (unsigned char *)(uintptr_t)p);
    return TOY_KV_OK;
}

#endif /* TOY_KV_IMPLEMENTATION */
