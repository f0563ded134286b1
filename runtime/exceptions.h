/* The exact list: vectors of coded tokens that their codes say too badly, kept in binary16. A chain
 * for each head of each block holds them by ascending token; indices count from 1, 0 ends. */

#define VQKV__KEPT_BYTES (sizeof(vqkv__link) + 2 * (size_t)VQKV_HEAD_DIM)

/* Adds a vector in front of a chain; there is a free place. */
static void vqkv__put_kept(vqkv *kv, int slot, int block, int token, const unsigned char *row)
{
    int32_t *first = vqkv__kept_first(kv, slot, block);
    int32_t i = kv->kept_free;
    vqkv__link *link = vqkv__kept_link(kv, i);
    kv->kept_free = link->next;
    kv->n_kept++;
    memcpy(vqkv__kept_row(kv, i), row, 2 * (size_t)VQKV_HEAD_DIM);
    link->token = token;
    link->next = *first;
    *first = i;
}

/* Empties the chains of a block. */
static void vqkv__drop_kept(vqkv *kv, int block)
{
    int slot;
    for (slot = 0; slot < VQKV__SLOTS; slot++) {
        int32_t *first = vqkv__kept_first(kv, slot, block);
        while (*first != 0) {
            int32_t i = *first;
            vqkv__link *link = vqkv__kept_link(kv, i);
            *first = link->next;
            link->next = kv->kept_free;
            kv->kept_free = i;
            kv->n_kept--;
        }
    }
}

static int vqkv__count_kept(const vqkv *kv, int block)
{
    int slot, n = 0;
    int32_t i;
    for (slot = 0; slot < VQKV__SLOTS && VQKV__KEEPS; slot++)
        for (i = *vqkv__kept_first(kv, slot, block); i != 0; i = vqkv__kept_link(kv, i)->next)
            n++;
    return n;
}

/* Writes the kept vectors of one head into x [HEAD_DIM, BLOCK]. */
static void vqkv__place_kept(const vqkv *kv, int part, int layer, int head, int block, float *x)
{
    int32_t i = *vqkv__kept_first(kv, vqkv__slot(part, layer, head), block);
    int d;
    for (; i != 0; i = vqkv__kept_link(kv, i)->next) {
        const unsigned char *row = vqkv__kept_row(kv, i);
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            x[d * VQKV_BLOCK + vqkv__kept_link(kv, i)->token] = vqkv__half_at(row, (size_t)d);
    }
}

/* Puts the scores of kept keys into s [rows, BLOCK]: q [rows, HEAD_DIM]. */
static void vqkv__score_kept(const vqkv *kv, const vqkv__ops *ops, int layer, int head, int block,
                             const float *q, int rows, float *s)
{
    int32_t i = *vqkv__kept_first(kv, vqkv__slot(VQKV_KEY, layer, head), block);
    int r;
    for (; i != 0; i = vqkv__kept_link(kv, i)->next)
        for (r = 0; r < rows; r++)
            s[r * VQKV_BLOCK + vqkv__kept_link(kv, i)->token] =
                ops->dot_row(vqkv__kept_row(kv, i), VQKV_HEAD_DIM, q + r * VQKV_HEAD_DIM);
}

/* Moves the weights of kept values out of s [rows, BLOCK] and coded [rows] into o [rows, HEAD_DIM].
 */
static void vqkv__sum_kept(const vqkv *kv, const vqkv__ops *ops, int layer, int head, int block,
                           int rows, float *s, float *coded, float *o)
{
    int32_t i = *vqkv__kept_first(kv, vqkv__slot(VQKV_VALUE, layer, head), block);
    int r;
    for (; i != 0; i = vqkv__kept_link(kv, i)->next)
        for (r = 0; r < rows; r++) {
            float *weight = &s[r * VQKV_BLOCK + vqkv__kept_link(kv, i)->token];
            ops->add_row(vqkv__kept_row(kv, i), VQKV_HEAD_DIM, *weight, o + r * VQKV_HEAD_DIM);
            coded[r] -= *weight;
            *weight = 0.0f;
        }
}
