/* Landmarks: a mean of the exact keys of every chunk of tokens, so that attention can pick the
 * chunks that matter before it reads any codes (ShadowKV, section 4.1). Chunks with a key that is
 * far from their mean are told by it badly; the worst of them are attended always.
 *
 * A block has for each layer and KV head: means as bytes that count from 128 [CHUNKS, HEAD_DIM],
 * binary16 scales [CHUNKS], and the least cosine of a key to its chunk's mean as a byte [CHUNKS],
 * 0 for -1 to 255 for 1. */

/* A chunk of coded tokens, counted from the end of the sinks. */
typedef struct vqkv__pick {
    float score;
    int32_t chunk;
} vqkv__pick;

/* The chunks that one pass of queries attends to, in their order. */
typedef struct vqkv__choice {
    int32_t n, all; /* all: nothing is left out, picks mean nothing */
    vqkv__pick picks[VQKV_MAX_OUTLIER_CHUNKS + VQKV_MAX_TOP_TOKENS / VQKV__CHUNK];
} vqkv__choice;

/* ---- writing ---- */

/* cos [0, 255] of the two, 128 where one is zero. */
static unsigned char vqkv__likeness(const float *x, const float *y)
{
    float xx = 0.0f, yy = 0.0f, xy = 0.0f;
    int d;
    for (d = 0; d < VQKV_HEAD_DIM; d++) {
        xx += x[d] * x[d];
        yy += y[d] * y[d];
        xy += x[d] * y[d];
    }
    xy = xx > 0.0f && yy > 0.0f ? xy / (sqrtf(xx) * sqrtf(yy)) : 0.0f;
    xy = xy < -1.0f ? -1.0f : xy > 1.0f ? 1.0f : xy;
    return (unsigned char)(int)(127.5f * (xy + 1.0f) + 0.5f);
}

/* One chunk: keys [CHUNK], binary16 [HEAD_DIM] each. */
static void vqkv__write_landmark(const vqkv__ops *ops, const unsigned char *keys,
                                 unsigned char *means, unsigned char *scale, unsigned char *least)
{
    float mean[VQKV_HEAD_DIM], key[VQKV_HEAD_DIM], top = 0.0f, step;
    int t, d;
    memset(mean, 0, sizeof mean);
    for (t = 0; t < VQKV__CHUNK; t++)
        ops->add_row(keys + (size_t)t * VQKV_HEAD_DIM * 2, VQKV_HEAD_DIM, 1.0f / VQKV__CHUNK, mean);
    *least = 255;
    for (t = 0; t < VQKV__CHUNK; t++) {
        unsigned char like;
        memset(key, 0, sizeof key);
        ops->add_row(keys + (size_t)t * VQKV_HEAD_DIM * 2, VQKV_HEAD_DIM, 1.0f, key);
        like = vqkv__likeness(key, mean);
        *least = like < *least ? like : *least;
    }
    for (d = 0; d < VQKV_HEAD_DIM; d++)
        top = fabsf(mean[d]) > top ? fabsf(mean[d]) : top;
    vqkv__store_half(scale, top / 127.0f);
    step = vqkv__half_at(scale, 0);
    for (d = 0; d < VQKV_HEAD_DIM; d++) {
        float code = step > 0.0f ? roundf(mean[d] / step) : 0.0f;
        code = code < -127.0f ? -127.0f : code > 127.0f ? 127.0f : code;
        means[d] = (unsigned char)((int)code + 128);
    }
}

/* Of the block whose exact tokens begin at `token`. */
static void vqkv__write_landmarks(const vqkv *kv, const vqkv__ops *ops, int seq, int token,
                                  int block)
{
    int layer, head, c;
    for (layer = 0; layer < VQKV_N_LAYERS; layer++)
        for (head = 0; head < VQKV_N_KV_HEADS; head++) {
            unsigned char *means = vqkv__landmarks(kv, layer, head, block);
            unsigned char *scales = means + VQKV__CHUNKS * VQKV_HEAD_DIM;
            for (c = 0; c < VQKV__CHUNKS; c++) /* a block has no end of the ring inside */
                vqkv__write_landmark(
                    ops, vqkv__exact(kv, seq, layer, VQKV_KEY, head, token + c * VQKV__CHUNK),
                    means + c * VQKV_HEAD_DIM, scales + 2 * c, scales + 2 * VQKV__CHUNKS + c);
        }
}

/* ---- choosing ---- */

/* The order of a heap: the worst score on top (of equal ones the latest chunk), or where it is
 * being sorted the latest chunk. */
static inline int vqkv__above(const vqkv__pick *a, const vqkv__pick *b, int by_chunk)
{
    if (!by_chunk && a->score != b->score)
        return a->score < b->score;
    return a->chunk > b->chunk;
}

static void vqkv__sift(vqkv__pick *heap, int n, int i, int by_chunk)
{
    vqkv__pick moved = heap[i];
    int child;
    for (; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && vqkv__above(&heap[child + 1], &heap[child], by_chunk))
            child++;
        if (!vqkv__above(&heap[child], &moved, by_chunk))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* Puts a chunk among the `most` best. */
static void vqkv__offer(vqkv__pick *heap, int *n, int most, float score, int chunk)
{
    vqkv__pick pick;
    int i;
    pick.score = score;
    pick.chunk = chunk;
    if (*n < most) {
        heap[(*n)++] = pick;
        for (i = *n / 2 - 1; i >= 0 && *n == most; i--)
            vqkv__sift(heap, *n, i, 0);
    } else if (most > 0 && vqkv__above(&heap[0], &pick, 0)) {
        heap[0] = pick;
        vqkv__sift(heap, *n, 0, 0);
    }
}

static void vqkv__sort_picks(vqkv__pick *picks, int n)
{
    int i;
    for (i = n / 2 - 1; i >= 0; i--)
        vqkv__sift(picks, n, i, 1);
    for (i = n - 1; i > 0; i--) {
        vqkv__pick last = picks[i];
        picks[i] = picks[0];
        picks[0] = last;
        vqkv__sift(picks, i, 0, 1);
    }
}

/* What a choice is made among: chunks low .. high - 1 of one head, in blocks of a sequence. */
typedef struct vqkv__chunks {
    const vqkv *kv;
    const vqkv__entry *blocks;
    int layer, head, low, high;
} vqkv__chunks;

/* The n chunks with the least likeness, sorted. */
static int vqkv__pick_outliers(const vqkv__chunks *c, int most, vqkv__pick *picks)
{
    int chunk, n = 0;
    for (chunk = c->low; chunk < c->high && most > 0; chunk++) {
        const unsigned char *least =
            vqkv__landmarks(c->kv, c->layer, c->head, c->blocks[chunk / VQKV__CHUNKS].block) +
            VQKV__CHUNKS * (VQKV_HEAD_DIM + 2);
        vqkv__offer(picks, &n, most, -(float)least[chunk % VQKV__CHUNKS], chunk);
    }
    vqkv__sort_picks(picks, n);
    return n;
}

/* The best of the others, for queries q [rows, HEAD_DIM], behind the n_outliers that picks holds.
 */
static int vqkv__pick_best(const vqkv__chunks *c, const vqkv__ops *ops, const float *q, int rows,
                           int n_outliers, int most, vqkv__pick *picks)
{
    float best[VQKV__CHUNKS];
    int j, i, n = 0, skip = 0;
    for (j = c->low / VQKV__CHUNKS; j * VQKV__CHUNKS < c->high; j++) {
        const unsigned char *means = vqkv__landmarks(c->kv, c->layer, c->head, c->blocks[j].block);
        ops->dense->landmark_scores(means, VQKV__CHUNKS, q, rows, best);
        for (i = 0; i < VQKV__CHUNKS; i++) {
            int chunk = j * VQKV__CHUNKS + i;
            if (chunk < c->low || chunk >= c->high)
                continue;
            if (skip < n_outliers && picks[skip].chunk == chunk) {
                skip++;
                continue;
            }
            vqkv__offer(picks + n_outliers, &n, most,
                        best[i] * vqkv__half_at(means + VQKV__CHUNKS * VQKV_HEAD_DIM, (size_t)i),
                        chunk);
        }
    }
    return n;
}

/* Chooses for `rows` queries q [rows, HEAD_DIM] among the coded tokens first .. last - 1. */
static void vqkv__choose(vqkv__chunks *c, const vqkv__ops *ops, const vqkv__seq *seq,
                         const float *q, int rows, int first, int last, int n_top, int n_outliers,
                         vqkv__choice *choice)
{
    int coded = vqkv__n_coded(seq);
    first = first < VQKV_N_SINK ? VQKV_N_SINK : first;
    last = last > coded ? coded : last;
    c->low = (first - VQKV_N_SINK) / VQKV__CHUNK;
    c->high = last < VQKV_N_SINK ? 0 : (last - VQKV_N_SINK + VQKV__CHUNK - 1) / VQKV__CHUNK;
    choice->all = n_top + n_outliers >= c->high - c->low;
    choice->n = 0;
    if (choice->all)
        return;
    choice->n = vqkv__pick_outliers(c, n_outliers, choice->picks);
    choice->n += vqkv__pick_best(c, ops, q, rows, choice->n, n_top, choice->picks);
    vqkv__sort_picks(choice->picks, choice->n);
}

/* ---- what was chosen ---- */

/* Index of the first pick that is no chunk before block j. */
static int vqkv__first_pick(const vqkv__choice *choice, int j)
{
    int low = 0, high = choice->n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (choice->picks[middle].chunk < j * VQKV__CHUNKS)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether any chunk of block j is attended. */
static int vqkv__picked(const vqkv__choice *choice, int j)
{
    int i = vqkv__first_pick(choice, j);
    return i < choice->n && choice->picks[i].chunk < (j + 1) * VQKV__CHUNKS;
}

/* Masks what is left out of the scores s [BLOCK] of block j. */
static void vqkv__mask_chunks(const vqkv__choice *choice, int j, float *s)
{
    int c, t, i = vqkv__first_pick(choice, j);
    for (c = 0; c < VQKV__CHUNKS; c++) {
        if (i < choice->n && choice->picks[i].chunk == j * VQKV__CHUNKS + c) {
            i++;
            continue;
        }
        for (t = c * VQKV__CHUNK; t < (c + 1) * VQKV__CHUNK; t++)
            s[t] = VQKV__MASKED;
    }
}
