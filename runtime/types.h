/* Private types: descriptors of the codec, and the layout of the caller's memory. */

#define VQKV__MASKED   (-1e30f) /* the score of a token that a query does not see */
#define VQKV__MAX_ROWS 8        /* queries that share one pass over the codes */

#ifdef __GNUC__
#define VQKV__PREFETCH(p, locality) __builtin_prefetch(p, 0, locality)
#define VQKV__INLINE                static inline __attribute__((always_inline))
#else
#define VQKV__PREFETCH(p, locality) (void)(p)
#define VQKV__INLINE                static inline
#endif

/* Calls F(n) for rows r .. r + n - 1 until `rows` are done: by fours, then for those that are left.
 * n is a constant there, so that kernels keep n rows in registers. */
#define VQKV__BY_ROWS(r, rows, F)                                                                  \
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

#define VQKV__AHEAD 3 /* blocks that codes of keys are asked for in advance */
#define VQKV__ASKED 8 /* pieces that are asked for by and by, near ones and far ones */

enum vqkv__coder { VQKV__NIBBLES, VQKV__BYTES, VQKV__HALVES, VQKV__WIDE };
enum vqkv__frame { VQKV__PRE, VQKV__POST, VQKV__BLOCKWISE };
enum vqkv__transform { VQKV__IDENTITY, VQKV__HADAMARD, VQKV__BASIS };
enum vqkv__gain { VQKV__NO_GAIN, VQKV__RMS, VQKV__ABSMAX, VQKV__SIGNMAX, VQKV__RANGE, VQKV__NSN };

/* Groups of channels with one coder. Offsets into the constant tables are in binary16 values. */
typedef struct vqkv__run {
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
} vqkv__run;

typedef struct vqkv__stream {
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
} vqkv__stream;

typedef struct vqkv__member {
    short part, layer, head;
} vqkv__member;

/* A stream that holds a given head, and which of its members the head is. */
typedef struct vqkv__use {
    short stream, member;
} vqkv__use;

/* K or V of one layer, all its heads. Nodes are in an order in which everything that one is
 * predicted from stands before it. */
typedef struct vqkv__node {
    short part, layer;
    short rebuilt;     /* attention needs its vectors themselves */
    short source;      /* others are predicted from it */
    short slot;        /* of the scratch where it is rebuilt; kept until the last that needs it */
    short prediction;  /* -1: none */
    short last_stream; /* that holds something of it */
} vqkv__node;

typedef struct vqkv__prediction {
    int n_sources, source[2]; /* nodes */
    int per_head, rank;       /* rank 0: one full map */
    int bias, map, out;       /* offsets of tables */
} vqkv__prediction;

/* Entries of a constant table: binary16, or bytes that count the scale of their column each. */
typedef struct vqkv__matrix {
    const unsigned char *values, *scale; /* scale: binary16 [columns], NULL: entries are binary16 */
} vqkv__matrix;

/* How score tables of consecutive planes were packed. AVX-512: for each quad of planes [rows, 64]
 * entries of 8 bits and behind them [MAX_ROWS, 4] bytes, how many times scale[2 row + 1] an entry
 * of each plane counts; of the first `wide` quads a second such table, which adds to the first.
 * AVX2: for each of the first `wide` quads [rows, 2, 64] high and low bytes of 16-bit entries,
 * which count scale[2 row], for each quad behind them as many bytes of narrow ones, scale[2 row +
 * 1]. NEON: for each of the first `wide` planes [rows, 2, 16] low and high bytes of such entries,
 * for each two planes behind them [rows, 2, 16] entries of 8 bits. */
typedef struct vqkv__packed {
    int wide;
    int bytes;                      /* of the tables */
    int32_t offset[VQKV__MAX_ROWS]; /* what entries of 8 bits add up to more than they should */
    float scale[2 * VQKV__MAX_ROWS];
    char pad[64 - (2 * sizeof(int) + (sizeof(int32_t) + 2 * sizeof(float)) * VQKV__MAX_ROWS) % 64];
} vqkv__packed;

/* The rounding error of packed score tables, as a fraction of the stream's scores (both root mean
 * square, codes taken as equally likely). */
#define VQKV__TABLE_ERROR 0.0018f

/* Bases in words: the largest of a column is MAP_TOP; columns lie in sixteens, each [n_in / 2]
 * pairs of inputs [16, 2]. */
#define VQKV__MAP_TOP    2047.0f
#define VQKV__COLUMNS(n) (((n) + 16) / 16 * 16)
/* Bases in bytes: columns in sixteens, each [BYTE_ROWS(n_in) / 4] fours of inputs [16, 4]. */
#define VQKV__BYTE_COLUMNS(n) (((n) + 15) / 16 * 16)
#define VQKV__BYTE_ROWS(n)    (((n) + 3) / 4 * 4)

/* Columns first .. first + n_out - 1, rows row[0 .. n_in - 1], of a matrix of `columns`. */
typedef struct vqkv__slice {
    const short *row;
    int n_in, first, n_out, columns;
} vqkv__slice;

/* Groups of a run's channels that meet a query together in a 32-bit lane. */
static inline int vqkv__dot_groups(const vqkv__run *run)
{
    const int each = run->words ? 2 : 4;
    return (run->planes * run->width + each - 1) / each;
}

/* Whether score tables of a run can be filled by fill_bytes. */
static inline int vqkv__fillable(const vqkv__run *run)
{
    return run->coder == VQKV__NIBBLES && (run->width == 2 || run->width == 4 || run->width == 8);
}

/* What kernels ask the memory for, a line now and then: all at once would fill the queue of misses,
 * and what is at work would wait for its end. Codes that come next: `keys` into the first-level
 * cache, `values` and keys that would fill it into the second. Kernels hold it in registers. */
typedef struct vqkv__asked {
    const unsigned char *keys, *keys_end, *values, *values_end;
} vqkv__asked;

/* Inlined, or gcc takes it for a function without effects. */
VQKV__INLINE void vqkv__ask(vqkv__asked *a)
{
    VQKV__PREFETCH(a->keys, 3);
    VQKV__PREFETCH(a->values, 2);
    a->keys += a->keys < a->keys_end ? 64 : 0;
    a->values += a->values < a->values_end ? 64 : 0;
}

/* One line of values alone. */
VQKV__INLINE void vqkv__ask_far(vqkv__asked *a)
{
    VQKV__PREFETCH(a->values, 2);
    a->values += a->values < a->values_end ? 64 : 0;
}

/* ---- kernels ----
 *
 * A kernel's name is vqkv__ <verb> [ _ <operand> ] _ <instruction set>:
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
#define VQKV__KERNELS(X)                                                                           \
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
#define VQKV__MAP_KERNELS(X)      X(map_basis) X(to_words) X(turn_words) X(map_words)
#define VQKV__BYTE_MAP_KERNELS(X) X(byte_basis) X(to_bytes) X(map_bytes)
#define VQKV__DOT_KERNELS(X)      X(dot_books) X(dot_queries) X(dot_scores)
#define VQKV__FILL_KERNELS(X)     X(fill_bytes)
#define VQKV__BYTE_KERNELS(X)                                                                      \
    X(pack_tables) X(score_bytes) X(pack_books) X(pack_weights) X(sum_bytes)
/* All of vqkv__byte_ops; MAP, BYTE_MAP, FILL: X, or NO_KERNEL where an instruction set has none of
 * those. */
#define VQKV__ALL_BYTE_KERNELS(X, MAP, BYTE_MAP, FILL)                                             \
    VQKV__MAP_KERNELS(MAP)                                                                         \
    VQKV__BYTE_MAP_KERNELS(BYTE_MAP)                                                               \
    VQKV__DOT_KERNELS(X) VQKV__FILL_KERNELS(FILL) VQKV__BYTE_KERNELS(X)
#define VQKV__NO_KERNEL(name) NULL,
#define VQKV__DENSE_KERNELS(X)                                                                     \
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
#define VQKV__CODE_KERNELS(X)                                                                      \
    X(code_nibbles) X(leave_nibbles) X(squares) X(load_rows) X(store_row) X(turn_row)

/* Kernels in 8-bit and 16-bit arithmetic, for blocks of 64 tokens and more. */
typedef struct vqkv__byte_ops {
    /* The next four may be NULL, all of them: queries are mapped in fp32 then. */
    /* Some rows of a basis and of its mean, binary16 or NULL, which is one more column: words and
     * the scale of each column; COLUMNS(n_out) of them. */
    void (*map_basis)(vqkv__matrix, const unsigned char *, const vqkv__slice *, short *, float *);
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
    void (*byte_basis)(vqkv__matrix, const vqkv__slice *, unsigned char *, float *);
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
    void (*dot_books)(const vqkv__run *, unsigned char *, float *);
    /* Queries in latents [rows, stride], from the run's first on, to lanes [rows, groups, 4] bytes
     * and units [rows, 2]: what a step of a score is worth, and the sum that stands for 0. Adds to
     * energy [rows], if not NULL, the mean square that the run's scores will have. */
    void (*dot_queries)(const vqkv__run *, const float *, const float *, size_t, int,
                        unsigned char *, float *, float *);
    /* s [blocks, rows, BLOCK] = (add ? s : 0) + the scores of a run: block pointers, offset of the
     * run in each, table, lanes, units; what to ask for meanwhile. */
    void (*dot_scores)(const unsigned char *const *, size_t, int, const vqkv__run *,
                       const unsigned char *, const unsigned char *, const float *, int, int,
                       vqkv__asked *, float *);
    /* May be NULL: where queries turn, codes of an even number of channels meet them themselves
     * then. Packed score tables of such a run, of which vqkv__fillable() says so: what dot_books
     * left, queries in latents [rows, stride], from the run's first on; adds to energy. */
    void (*fill_bytes)(const vqkv__run *, const unsigned char *, const float *, const float *,
                       size_t, int, float *, vqkv__packed *, signed char *);
    /* Packs score tables [planes, rows, 16] of fp32; energy [rows]: the mean square of scores that
     * are added to theirs. */
    void (*pack_tables)(const float *, int, int, const float *, vqkv__packed *, signed char *);
    /* s [blocks, rows, BLOCK] = (add ? s : 0) + the scores of consecutive planes: block pointers,
     * offset of the first plane in each. */
    void (*score_bytes)(const unsigned char *const *, size_t, int, int, const vqkv__packed *,
                        const signed char *, int, int, vqkv__asked *, float *);
    /* Codewords [n, 16] of binary16 to 8 bits, and the scale of each sixteen. */
    void (*pack_books)(const unsigned char *, int, signed char *, float *);
    /* Weights p [blocks, rows, BLOCK] * gain [blocks, BLOCK] >= 0 of fp32 to 8 bits with a scale a
     * row; if `rest` is not NULL, it gets what is left, in units of scale / rest. */
    void (*pack_weights)(const float *, const float *, int, int, unsigned char *, unsigned char *,
                         float *);
    /* sums [rows, stride] += weight * codeword of one run, over the tokens of `blocks` blocks:
     * block pointers, offset of the run in each; what to ask for meanwhile. */
    void (*sum_bytes)(const unsigned char *const *, size_t, int, const vqkv__run *,
                      const signed char *, const float *, const unsigned char *, const float *, int,
                      vqkv__asked *, float *, size_t);
    float rest; /* what is left of a weight counts scale / rest */
    /* A probability above this part of its row's sum so far is worth the rest as well. */
    float fine;
} vqkv__byte_ops;

/* Kernels over tiles of a block: rows are channels, each of BLOCK tokens. */
typedef struct vqkv__dense_ops {
    /* y [n_out, BLOCK] += x [n_in, BLOCK] through a table: input i counts for output o by its entry
     * i * ld + o, or o * ld + i if `across`. */
    void (*product)(vqkv__matrix, size_t, int, int, int, const float *, float *);
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
} vqkv__dense_ops;

/* Kernels of encoding. */
typedef struct vqkv__code_ops {
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
} vqkv__code_ops;

typedef struct vqkv__ops {
    int lanes;
    void (*score_nibbles)(const unsigned char *, int, const float *, int, float *);
    void (*sum_nibbles)(const unsigned char *, int, int, int, const float *, const float *, int,
                        float *, size_t);
    void (*score_scalars)(const unsigned char *, int, int, const float *, int, vqkv__asked *,
                          float *);
    void (*sum_scalars)(const unsigned char *, int, int, const float *, int, float *, size_t);
    void (*scale_rows)(const float *, const float *, int, float *);
    void (*gain_scores)(const float *, const float *, const float *, int, float *, float *);
    void (*gains)(const unsigned char *, const unsigned char *, float *);
    void (*add_row)(const unsigned char *, int, float, float *);
    float (*dot_row)(const unsigned char *, int, const float *);
    void (*map)(vqkv__matrix, int, int, const float *, int, int, float *);
    void (*unmap)(vqkv__matrix, int, int, float *, int, float *);
    void (*fill_tables)(const vqkv__run *, const float *, size_t, int, float *);
    float (*largest)(const float *, int, size_t);
    float (*exponentials)(float *, int, size_t, float);
    void (*exact_scores)(const unsigned char *, int, const float *, int, float *);
    void (*exact_sums)(const unsigned char *, int, const float *, int, float *);
    void (*reduce)(const float *, int, float *);
    void (*shrink)(float *, size_t, float);
    void (*turn_on)(const float *, const float *, int, float *, float *);
    int (*nearest_wide)(const unsigned char *, int, int, const float *);
    const vqkv__byte_ops *bytes; /* NULL: none */
    const vqkv__dense_ops *dense;
    const vqkv__code_ops *code;
} vqkv__ops;

/* A vector on the exact list (exceptions.h): the next of its chain, its token in the block. */
typedef struct vqkv__link {
    int32_t next, token;
} vqkv__link;

/* Where a block of a sequence lies in the pool, and the position of its first token. */
typedef struct vqkv__entry {
    int32_t block, position;
} vqkv__entry;

typedef struct vqkv__seq {
    int32_t n_sealed; /* encoded blocks */
    int32_t target;   /* tokens of every layer when the step in progress is complete */
    int32_t n_tokens[VQKV_N_LAYERS];
} vqkv__seq;

struct vqkv {
    uint64_t magic;
    vqkv_config config;
    int32_t ring;         /* tokens of the exact window behind the sinks, a multiple of the block */
    int32_t seq_blocks;   /* entries of a sequence's block table */
    int32_t n_free, next; /* free blocks; where to look for the next one */
    int32_t n_kept, kept_free; /* vectors on the exact list; the first free place, 0: none */
    /* offsets from here */
    uint64_t seqs, tables, references, kept_firsts, kept_links, kept_rows, exact, pool;
    uint64_t work, turns, bytes;
};

/* Tokens that share a landmark, and their number in a block; without landmarks a whole block. */
#define VQKV__CHUNK  (VQKV_LANDMARKS > 0 ? VQKV_LANDMARKS : VQKV_BLOCK)
#define VQKV__CHUNKS (VQKV_BLOCK / VQKV__CHUNK)
/* Of one layer and KV head in a block (landmarks.h). */
#define VQKV__LANDMARK_BYTES (VQKV_LANDMARKS > 0 ? VQKV__CHUNKS * (VQKV_HEAD_DIM + 3) : 0)
/* Whether vectors are kept exactly where their error is too large (exceptions.h). */
#define VQKV__KEEPS (VQKV_MAX_ERROR > 0.0f)
#define VQKV__SLOTS (2 * VQKV_N_LAYERS * VQKV_N_KV_HEADS) /* heads with keys or values */
/* Of a block in the pool, and what heads its chains on the exact list. */
#define VQKV__POOL_BYTES                                                                           \
    ((uint64_t)VQKV__BLOCK_BYTES +                                                                 \
     (uint64_t)VQKV_N_LAYERS * VQKV_N_KV_HEADS * (uint64_t)VQKV__LANDMARK_BYTES)
#define VQKV__CHAIN_BYTES (VQKV__KEEPS ? sizeof(int32_t) * (size_t)VQKV__SLOTS : 0)

#define VQKV__MAGIC      0x31766b7176716b76u
#define VQKV__ALIGNED(n) (((uint64_t)(n) + 63u) / 64u * 64u)
