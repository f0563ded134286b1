/* One pass of attention for a few queries: its state in the scratch, the online softmax, and tokens
 * that are exact. */

/* The state of up to VQKV__MAX_ROWS queries of one KV head. All pointers lie in the scratch. A tile
 * is VQKV__TILE blocks: scores of all of them, one softmax, sums. Rows of a tile lie block by
 * block: [blocks, rows, BLOCK]. */
#define VQKV__TILE       (2048 / VQKV_BLOCK)
#define VQKV__MAP_BLOCKS (VQKV__TILE < 8 ? VQKV__TILE : 8)

/* What kernels are to ask for, piece by piece: [0] near, codes of keys that are few enough for the
 * first-level cache, [1] far, the rest. */
typedef struct vqkv__ahead {
    vqkv__asked now; /* the streams at hand */
    int n[2], next[2];
    const unsigned char *first[2][VQKV__ASKED], *last[2][VQKV__ASKED];
} vqkv__ahead;

/* What takes the scores of K runs. */
enum vqkv__kernel {
    VQKV__BY_DOTS,    /* codewords meet the query */
    VQKV__BY_FILLED,  /* score tables in bytes, of codewords in words */
    VQKV__BY_PACKED,  /* score tables in bytes, of those in fp32 */
    VQKV__BY_TABLES,  /* score tables in fp32 */
    VQKV__BY_SCALARS, /* values meet the query in fp32 */
    VQKV__BY_WIDE     /* score tables of codes of other than 4 bits */
};

/* Where lies what K runs meet codes with: each kernel's share of it, run behind run. */
typedef struct vqkv__scoring {
    float *lut;           /* score tables */
    char *packed;         /* the same in bytes: vqkv__packed, then tables, for each of planes */
    float *wide;          /* [rows, MAX_WIDE_LUT] score tables of wide codes, from here on */
    unsigned char *table; /* codewords of runs that vqkv__dots() says: [groups, 64] */
    float *scale;         /* of their channels [4 * groups] */
    unsigned char *lanes; /* the queries in their units: [rows, groups, 4] */
    float *unit;          /* [runs, rows, 2] */
} vqkv__scoring;

/* One kernel's share of the scores of a block. */
typedef struct vqkv__step {
    const vqkv__run *run; /* the first of n_runs */
    const vqkv__stream *stream;
    int use, n_runs, planes; /* use: which of the head's K streams */
    unsigned char kernel, band;
    unsigned char first, last; /* of those that share a gain */
    vqkv__scoring at;          /* what the kernel meets codes with begins there */
} vqkv__step;

/* Where a stream's latents are among those that queries were mapped to: the first n_words of them,
 * and the mean behind, at column `words` and on, the others at `bytes` and on. */
typedef struct vqkv__columns {
    int n_words, words, bytes;
} vqkv__columns;

/* Bases of all K streams of a head: some of their channels to some of their latents. */
typedef struct vqkv__map {
    short *words;         /* [columns / 16, n_in / 2, 32] */
    unsigned char *bytes; /* [byte_columns / 16, BYTE_ROWS(n_in) / 4, 64] */
    float *scale;         /* [columns], [byte_columns] */
    int n_in, columns, byte_columns;
    vqkv__columns at[VQKV__MAX_USES];
} vqkv__map;

/* Queries in latents of one stream, rows `stride` apart: latents `before` and on, n_words of them
 * at `words`, the others at `bytes`. */
typedef struct vqkv__mapped {
    const float *words, *bytes;
    int before, n_words;
    size_t stride;
} vqkv__mapped;

typedef struct vqkv__pass {
    const vqkv *kv;
    const vqkv__ops *ops;
    const vqkv__entry *blocks;
    int seq, layer, head, rows, first, last; /* tokens first .. last - 1 */
    int position[VQKV__MAX_ROWS];            /* of each query */
    float soft_cap;
    int window, coded; /* coded: some block was attended, so there are sums */
    int in_bytes;      /* V streams are summed by byte kernels */
    int k_bytes; /* and K streams scored: not where packing tables for each block costs more */
    const vqkv__use *k_uses, *v_uses;
    const unsigned char *k_codes[VQKV__MAX_USES], *v_codes[VQKV__MAX_USES]; /* of block 0 */
    vqkv__step *steps;     /* [n_steps] of K streams */
    int n_steps, packs[2]; /* packs: of a band some tables are packed, which wants energies */
    int n_k_uses, n_v_uses, k_frame;
    float *q;                 /* [rows, HEAD_DIM], scaled */
    float *turned;            /* [rows, HEAD_DIM], in the frame of the block at hand */
    float *y;                 /* [rows, MAX_LATENTS] query in latents */
    vqkv__scoring scoring[2]; /* where what scores are taken with begins: steady runs, turning */
    float *bins;        /* [rows, MAX_WIDE_BINS] sums of probability * gain for each wide code */
    vqkv__map map[2];   /* of steady channels to all latents, of turning ones to turning runs */
    float *map_base;    /* [rows, columns] what steady channels make of the latter */
    short *map_queries; /* [MAP_BLOCKS, rows, HEAD_DIM] turned queries of a batch of blocks */
    signed char *byte_queries; /* the same in bytes, if latents are mapped so */
    float *mapped;             /* [MAP_BLOCKS, rows, columns + byte_columns] the same in latents */
    float *ordered;            /* [rows, HEAD_DIM] queries, channels in the order of vqkv__order */
    int batches;               /* queries are mapped in batches */
    int steady_number;         /* of the span that steady runs are ready for, -1: none */
    float map_unit[VQKV__MAX_ROWS], byte_unit[VQKV__MAX_ROWS]; /* what a word and a byte count */
    short byte_steps[VQKV__MAX_ROWS];                          /* bytes that make 32768 words */
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
    vqkv__ahead ahead; /* codes, asked for while blocks are scored */
    vqkv__ahead later; /* what is needed behind the coded blocks, while the last ones are summed in
                          bytes; kernels of AVX-512 ask for it */
    int asks;          /* kernels ask for it; else it is asked for before them */
    vqkv__entry tile[VQKV__TILE]; /* the coded blocks at hand, their numbers, their first tokens */
    int tile_block[VQKV__TILE], tile_token[VQKV__TILE];
    const vqkv__choice *choice;      /* of chunks; NULL: all are attended */
    float bias[VQKV__MAX_ROWS];      /* q . mean of the coded keys */
    float high[VQKV__MAX_ROWS * 16]; /* [rows, lanes] the highest scores of a tile */
    float m[VQKV__MAX_ROWS], l[VQKV__MAX_ROWS], l_coded[VQKV__MAX_ROWS];
    float *o; /* [rows, HEAD_DIM] */
} vqkv__pass;

/* Floats of scratch, in the order of carve() below; each part is rounded up to 16 floats. */
#define VQKV__ROOM(n) (((size_t)(n) + 15u) / 16u * 16u)
/* Each run of planes has a head and up to three planes to fill a quad; an entry takes two bytes,
 * and two steps of a plane are shared by its sixteen. */
#define VQKV__PACKED_ROOM                                                                          \
    ((size_t)VQKV__MAX_RUNS * (sizeof(vqkv__packed) / 4 + (size_t)VQKV__MAX_ROWS * 24 + 64) +      \
     (size_t)VQKV__MAX_ROWS * (VQKV__MAX_LUT / 2 + VQKV__MAX_LUT / 16))
/* Inputs of bases in bytes: steady channels and turning ones are padded apart. */
#define VQKV__BYTE_MAP_ROWS (VQKV__BYTE_ROWS(VQKV_HEAD_DIM) + 4)
/* Tables and bins of wide codes may be large: so many rows share a pass that they stay within 1 MiB
 * where one row does. */
#define VQKV__MAX_WIDE (VQKV__MAX_WIDE_LUT + VQKV__MAX_WIDE_BINS)
#define VQKV__PASS_ROWS                                                                            \
    (VQKV__MAX_WIDE <= (1 << 18) / VQKV__MAX_ROWS ? VQKV__MAX_ROWS                                 \
     : VQKV__MAX_WIDE <= 1 << 16                  ? 4                                              \
     : VQKV__MAX_WIDE <= 1 << 17                  ? 2                                              \
                                                  : 1)
#define VQKV__TILE_FLOATS ((size_t)VQKV__TILE * VQKV__MAX_ROWS * VQKV_BLOCK)
#define VQKV__PASS_FLOATS                                                                          \
    (VQKV__ROOM(VQKV__MAX_ROWS * VQKV_HEAD_DIM) * 3 +                                              \
     VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LATENTS) + VQKV__ROOM(VQKV__MAX_ROWS * VQKV__MAX_LUT) + \
     VQKV__ROOM((size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_LUT) +                                    \
     VQKV__ROOM((size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_BINS) + VQKV__ROOM(VQKV__PACKED_ROOM) +   \
     VQKV__ROOM((size_t)VQKV__MAX_DOT_GROUPS * 16) +                                               \
     VQKV__ROOM((size_t)VQKV__MAX_DOT_GROUPS * 4) +                                                \
     VQKV__ROOM((size_t)VQKV__MAX_DOT_GROUPS * VQKV__MAX_ROWS) +                                   \
     VQKV__ROOM(2 * VQKV__MAX_ROWS * VQKV__MAX_RUNS) +                                             \
     VQKV__ROOM((size_t)VQKV__MAX_COLUMNS * VQKV_HEAD_DIM / 2) +                                   \
     VQKV__ROOM((size_t)VQKV__MAX_COLUMNS * VQKV__BYTE_MAP_ROWS / 4) +                             \
     VQKV__ROOM((size_t)VQKV__MAP_BLOCKS * VQKV__MAX_ROWS * VQKV__BYTE_MAP_ROWS / 4) +             \
     VQKV__ROOM(2 * VQKV__MAX_COLUMNS) + VQKV__ROOM(VQKV__MAX_ROWS * VQKV_HEAD_DIM) +              \
     VQKV__ROOM((size_t)VQKV__MAX_ROWS * VQKV__MAX_COLUMNS) +                                      \
     VQKV__ROOM(VQKV__MAP_BLOCKS * VQKV__MAX_ROWS * VQKV_HEAD_DIM / 2) +                           \
     VQKV__ROOM((size_t)VQKV__MAP_BLOCKS * VQKV__MAX_ROWS * VQKV__MAX_COLUMNS) +                   \
     VQKV__ROOM(VQKV__MAX_BOOK) +                                                                  \
     VQKV__ROOM((size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16) +                             \
     VQKV__ROOM((size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS) +                                  \
     VQKV__ROOM(VQKV__TILE_FLOATS) * 2 + VQKV__ROOM(VQKV__TILE * VQKV_BLOCK) +                     \
     VQKV__ROOM(VQKV__TILE_FLOATS / 2) + VQKV__ROOM(VQKV_N_ROT + 1) * 2 +                          \
     VQKV__ROOM(VQKV__MAX_RUNS * sizeof(vqkv__step) / 4))

static float *vqkv__take(float **room, size_t n)
{
    float *p = *room;
    *room += VQKV__ROOM(n);
    return p;
}

static void vqkv__carve(vqkv__pass *a, void *scratch)
{
    float *room = (float *)scratch;
    a->q = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->turned = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->o = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->y = vqkv__take(&room, VQKV__MAX_ROWS * VQKV__MAX_LATENTS);
    a->scoring[0].lut = vqkv__take(&room, VQKV__MAX_ROWS * VQKV__MAX_LUT);
    a->scoring[0].wide = vqkv__take(&room, (size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_LUT);
    a->bins = vqkv__take(&room, (size_t)VQKV__PASS_ROWS * VQKV__MAX_WIDE_BINS);
    a->scoring[0].packed = (char *)vqkv__take(&room, VQKV__PACKED_ROOM);
    a->scoring[0].table = (unsigned char *)vqkv__take(&room, (size_t)VQKV__MAX_DOT_GROUPS * 16);
    a->scoring[0].scale = vqkv__take(&room, (size_t)VQKV__MAX_DOT_GROUPS * 4);
    a->scoring[0].lanes =
        (unsigned char *)vqkv__take(&room, (size_t)VQKV__MAX_DOT_GROUPS * VQKV__MAX_ROWS);
    a->scoring[0].unit = vqkv__take(&room, 2 * VQKV__MAX_ROWS * VQKV__MAX_RUNS);
    a->map[0].words = (short *)vqkv__take(&room, (size_t)VQKV__MAX_COLUMNS * VQKV_HEAD_DIM / 2);
    a->map[0].bytes =
        (unsigned char *)vqkv__take(&room, (size_t)VQKV__MAX_COLUMNS * VQKV__BYTE_MAP_ROWS / 4);
    a->byte_queries = (signed char *)vqkv__take(&room, (size_t)VQKV__MAP_BLOCKS * VQKV__MAX_ROWS *
                                                           VQKV__BYTE_MAP_ROWS / 4);
    a->map[0].scale = vqkv__take(&room, 2 * VQKV__MAX_COLUMNS);
    a->ordered = vqkv__take(&room, VQKV__MAX_ROWS * VQKV_HEAD_DIM);
    a->map_base = vqkv__take(&room, (size_t)VQKV__MAX_ROWS * VQKV__MAX_COLUMNS);
    a->map_queries =
        (short *)vqkv__take(&room, VQKV__MAP_BLOCKS * VQKV__MAX_ROWS * VQKV_HEAD_DIM / 2);
    a->mapped = vqkv__take(&room, (size_t)VQKV__MAP_BLOCKS * VQKV__MAX_ROWS * VQKV__MAX_COLUMNS);
    a->book = vqkv__take(&room, VQKV__MAX_BOOK);
    a->acc = vqkv__take(&room, (size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS * 16);
    a->sums = vqkv__take(&room, (size_t)VQKV__MAX_ROWS * VQKV__MAX_SUM_LATENTS);
    a->s = vqkv__take(&room, VQKV__TILE_FLOATS);
    a->part = vqkv__take(&room, VQKV__TILE_FLOATS);
    a->gain = vqkv__take(&room, VQKV__TILE * VQKV_BLOCK);
    a->bytes = (unsigned char *)vqkv__take(&room, VQKV__TILE_FLOATS / 2);
    a->step = vqkv__take(&room, VQKV_N_ROT + 1);
    a->cs = vqkv__take(&room, VQKV_N_ROT + 1);
    a->steps = (vqkv__step *)(void *)vqkv__take(&room, VQKV__MAX_RUNS * sizeof(vqkv__step) / 4);
}

/* Which of the n tokens from `token` on a row sees: *from .. *to - 1, counted from `token`. */
static void vqkv__seen(const vqkv__pass *a, int r, int token, int n, int *from, int *to)
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
static void vqkv__mask(const vqkv__pass *a, float *s, int from, int to)
{
    int t;
    from = from < 0 ? 0 : from > VQKV_BLOCK ? VQKV_BLOCK : from;
    to = to < from ? from : to > VQKV_BLOCK ? VQKV_BLOCK : to;
    if (a->soft_cap > 0.0f)
        for (t = from; t < to; t++)
            s[t] = a->soft_cap * tanhf(s[t] / a->soft_cap);
    for (t = 0; t < from; t++)
        s[t] = VQKV__MASKED;
    for (t = to; t < VQKV_BLOCK; t++)
        s[t] = VQKV__MASKED;
}

/* Soft cap and masks on all blocks of row r, s; returns whether it sees anything of them. */
static int vqkv__mask_row(const vqkv__pass *a, int r, int blocks, int n, int coded, float *s)
{
    int b, from, to, seen = 0;
    for (b = 0; b < blocks; b++, s += a->rows * VQKV_BLOCK) {
        vqkv__seen(a, r, a->tile_token[b], n, &from, &to);
        seen |= from < to;
        if (a->soft_cap > 0.0f || from > 0 || to < VQKV_BLOCK)
            vqkv__mask(a, s, from, to);
        if (coded && a->choice != NULL)
            vqkv__mask_chunks(a->choice, a->tile_block[b], s);
    }
    return seen;
}

/* A part of a row's sum that is lost in the rounding of its output: values need not be read. */
#define VQKV__NOTHING 3e-8f

/* Whether every row sees all of the tile's coded blocks, as they were scored. */
static int vqkv__open(const vqkv__pass *a, int blocks)
{
    int r, from, to;
    if (a->k_tile != NULL || VQKV__KEEPS || a->choice != NULL || a->soft_cap > 0.0f)
        return 0;
    for (r = 0; r < a->rows; r++) {
        vqkv__seen(a, r, a->tile_token[0], VQKV_BLOCK, &from, &to);
        if (from > 0)
            return 0;
        vqkv__seen(a, r, a->tile_token[blocks - 1], VQKV_BLOCK, &from, &to);
        if (to < VQKV_BLOCK)
            return 0;
    }
    return 1;
}

/* The highest score of a row in an open tile. */
static float vqkv__top(const vqkv__pass *a, int r)
{
    const float *high = a->high + r * a->ops->lanes;
    float top = high[0];
    int i;
    for (i = 1; i < a->ops->lanes; i++)
        top = high[i] > top ? high[i] : top;
    return top;
}

/* Shrinks what is summed of coded values for row r. */
static void vqkv__shrink_sums(const vqkv__pass *a, int r, float shrink)
{
    const size_t n = VQKV__MAX_SUM_LATENTS, row = (size_t)r, lanes = (size_t)a->ops->lanes;
    a->ops->shrink(a->sums + row * n, n, shrink);
    if (a->in_lanes)
        a->ops->shrink(a->acc + row * n * lanes, n * lanes, shrink);
    a->ops->shrink(a->bins + row * VQKV__MAX_WIDE_BINS, VQKV__MAX_WIDE_BINS, shrink);
}

/* Softmax of a->s over the tile's blocks, n tokens in each; open: all of them are seen, and their
 * highest scores in a->high. What was summed before is shrunk where a row's maximum rises. Returns
 * 0 if no row sees any of them, or none for which they are more than nothing (their probabilities
 * are in the sums all the same), 2 if some probability is so large a part of its row's sum that
 * rounding it to 8 bits would show, else 1. */
static int vqkv__soft_max(vqkv__pass *a, int blocks, int n, int coded, int open)
{
    float fine = a->ops->bytes != NULL ? a->ops->bytes->fine : 1.0f;
    int r, b, seen = 0;
    for (r = 0; r < a->rows; r++) {
        float *s = a->s + r * VQKV_BLOCK, top = VQKV__MASKED, sum, shrink = 1.0f;
        int step = a->rows * VQKV_BLOCK;
        if (open)
            top = vqkv__top(a, r);
        else if (vqkv__mask_row(a, r, blocks, n, coded, s))
            top = a->ops->largest(s, blocks, (size_t)step);
        if (top <= VQKV__MASKED) { /* a choice may leave nothing that this row sees */
            for (b = 0; b < blocks; b++)
                memset(s + b * step, 0, sizeof(float) * VQKV_BLOCK);
            continue;
        }
        if (top > a->m[r]) {
            shrink = a->m[r] > VQKV__MASKED ? expf(a->m[r] - top) : 0.0f;
            a->m[r] = top;
        }
        sum = a->ops->exponentials(s, blocks, (size_t)step, a->m[r]);
        if (shrink != 1.0f) {
            a->ops->shrink(a->o + r * VQKV_HEAD_DIM, VQKV_HEAD_DIM, shrink);
            if (a->coded)
                vqkv__shrink_sums(a, r, shrink);
        }
        a->l[r] = a->l[r] * shrink + sum;
        a->l_coded[r] = a->l_coded[r] * shrink + (coded ? sum : 0.0f);
        if (sum > VQKV__NOTHING * a->l[r])
            seen = seen > 1 || expf(top - a->m[r]) > fine * a->l[r] ? 2 : 1;
    }
    return seen;
}

/* Exact tokens token .. token + n - 1, n <= BLOCK and contiguous in memory. */
static void vqkv__attend_exact(vqkv__pass *a, int token, int n)
{
    int i;
    const unsigned char *k = vqkv__exact(a->kv, a->seq, a->layer, VQKV_KEY, a->head, token);
    const unsigned char *v = vqkv__exact(a->kv, a->seq, a->layer, VQKV_VALUE, a->head, token);
    for (i = 0; i < n * VQKV_HEAD_DIM * 2; i += 64)
        VQKV__PREFETCH(v + i, 3);
    a->ops->exact_scores(k, n, a->q, a->rows, a->s);
    a->tile_token[0] = token;
    if (vqkv__soft_max(a, 1, n, 0, 0))
        a->ops->exact_sums(v, n, a->s, a->rows, a->o);
}
