/* Queries of coded blocks: turned into the frame of a block and mapped into latents. Where every
 * block has a frame of its own, this is done for a batch of blocks at once, one product of all
 * their queries with the basis; and of channels that keep their turn for longer once for many
 * batches. */

/* Cosines and sines of the angles that queries turn back by for a block at `position`, in a->cs [2,
 * N_ROT / 2]: of the pairs that vqkv__pairs has at from .. to - 1. Where it lies `unit` tokens
 * behind `previous`, pairs whose span begins go on by one complex product; all start afresh every
 * 64 units. */
static void vqkv__turn_angles(vqkv__pass *a, int from, int to, int position, int previous, int unit)
{
    float *c = a->cs, *s = a->cs + VQKV_N_ROT / 2;
    const float *step = a->step;
    int i, j, goes_on = previous >= 0 && position == previous + unit && position / unit % 64 != 0;
    for (i = from; i < to && !goes_on; i++) {
        int pair = vqkv__pairs[i];
        double angle = vqkv__base_of(pair, position) * vqkv__rope_freq(pair);
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    for (; i < to; i = j) { /* pairs of one span lie side by side */
        int pair = vqkv__pairs[i], span = vqkv__spans[pair];
        for (j = i + 1; j < to && vqkv__spans[vqkv__pairs[j]] == span;)
            j++;
        if (vqkv__base_of(pair, position) != vqkv__base_of(pair, previous))
            a->ops->turn_on(step + i, step + VQKV_N_ROT / 2 + i, j - i, c + i, s + i);
    }
}

/* Cosines and sines [2, N_ROT / 2] of the angles that pairs turn by over their spans, in the order
 * of vqkv__pairs. */
static void vqkv__span_angles(float *cs)
{
    int i;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        double angle = vqkv__spans[vqkv__pairs[i]] * vqkv__rope_freq(vqkv__pairs[i]);
        cs[i] = (float)cos(angle);
        cs[VQKV_N_ROT / 2 + i] = (float)sin(angle);
    }
}

/* y [HEAD_DIM] = x turned back by those angles. */
static void vqkv__turn_back(const float *cs, const float *x, float *y)
{
    enum { PAIRS = VQKV_N_ROT / 2 };
    int i;
    for (i = VQKV_N_ROT; i < VQKV_HEAD_DIM; i++)
        y[i] = x[i];
    for (i = 0; i < PAIRS; i++) {
        int pair = vqkv__pairs[i];
        int k = VQKV_ROPE_INTERLEAVED ? 2 * pair : pair;
        int l = VQKV_ROPE_INTERLEAVED ? k + 1 : k + PAIRS;
        float c = cs[i], s = cs[PAIRS + i];
        y[k] = x[k] * c + x[l] * s;
        y[l] = x[l] * c - x[k] * s;
    }
}

/* Turns the queries into the frame of one block. */
static void vqkv__turn_queries(vqkv__pass *a, int position, int previous)
{
    int r;
    vqkv__turn_angles(a, 0, VQKV_N_ROT / 2, position, previous, VQKV_BLOCK);
    for (r = 0; r < a->rows; r++)
        vqkv__turn_back(a->cs, a->q + r * VQKV_HEAD_DIM, a->turned + r * VQKV_HEAD_DIM);
}

/* Whether queries are mapped for many blocks at once. */
static int vqkv__maps_batches(const vqkv__pass *a)
{
    int u;
    if (a->ops->bytes == NULL || a->ops->bytes->map_words == NULL ||
        a->k_frame != VQKV__BLOCKWISE || VQKV_HEAD_DIM % 2 != 0)
        return 0;
    for (u = 0; u < a->n_k_uses; u++)
        if (vqkv__streams[a->k_uses[u].stream].transform != VQKV__BASIS)
            return 0;
    return 1;
}

/* ---- bands: steady runs of keys, 0, and turning ones, 1; the latter are all where queries are not
 * mapped in batches ---- */

static inline int vqkv__band(const vqkv__pass *a, const vqkv__run *run)
{
    return !(a->batches && run->steady);
}

/* Latents of a stream in front of those that queries are mapped to for a band: for steady runs to
 * all, since steady channels count for every latent. */
static inline int vqkv__before(const vqkv__pass *a, const vqkv__stream *s, int band)
{
    return a->batches && band ? s->n_steady : 0;
}

/* Makes ready for batches: the bases of all K streams in words, of steady channels and of turning
 * ones, columns behind each other, with the mean as the last column of each; the queries in the
 * order of vqkv__order; and what a word of each counts. Turning leaves the length of a pair as it
 * is, so that holds for every block. */
static void vqkv__fill_maps(vqkv__pass *a)
{
    /* HEAD_DIM products of a word of the basis and one of a query stay below 2^31. */
    const float most = 2147483648.0f / (VQKV__MAP_TOP * VQKV_HEAD_DIM) - 1.0f;
    const float limit = most < 32767.0f ? most : 32767.0f;
    int band, u, r, i;
    for (band = 0; band < 2; band++) {
        vqkv__map *map = &a->map[band];
        vqkv__slice slice;
        slice.row = vqkv__order + (band ? VQKV__STEADY_DIMS : 0);
        slice.n_in = map->n_in = band ? VQKV_HEAD_DIM - VQKV__STEADY_DIMS : VQKV__STEADY_DIMS;
        map->columns = 0;
        if (band) {
            map->words = a->map[0].words + (size_t)a->map[0].columns * (size_t)a->map[0].n_in;
            map->scale = a->map[0].scale + a->map[0].columns;
        }
        for (u = 0; u < a->n_k_uses; u++) {
            const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
            int row = a->k_uses[u].member * VQKV_HEAD_DIM;
            slice.first = vqkv__before(a, s, band);
            slice.n_out = s->n_latents - slice.first;
            slice.columns = s->n_latents;
            a->ops->bytes->map_basis(vqkv__basis(s, s->dec, a->k_uses[u].member),
                                     s->mean < 0 ? NULL : vqkv__table(s->mean + row), &slice,
                                     map->words + (size_t)map->columns * (size_t)slice.n_in,
                                     map->scale + map->columns);
            map->columns += VQKV__COLUMNS(slice.n_out);
        }
    }
    /* what lies behind the mean of a stream is never set, but added */
    memset(a->map_base, 0, sizeof(float) * (size_t)(a->rows * a->map[1].columns));
    for (r = 0; r < a->rows; r++) {
        const float *x = a->q + r * VQKV_HEAD_DIM;
        float top = 0.0f;
        for (i = 0; i < VQKV_HEAD_DIM; i++) {
            a->ordered[r * VQKV_HEAD_DIM + i] = x[vqkv__order[i]];
            top += x[i] * x[i];
        }
        a->map_unit[r] = sqrtf(top) / limit;
    }
}

/* The channels of a band of the queries, turned back by the angles at hand, in words [rows, n]:
 * first channels of its `pairs` pairs, second channels, and those that never turn. c, s: of its
 * pairs; at: of its first channel. */
static void vqkv__turn_band(vqkv__pass *a, const float *c, const float *s, int pairs, int at, int n,
                            short *words)
{
    int r;
    for (r = 0; r < a->rows; r++, words += n) {
        const float *x = a->ordered + r * VQKV_HEAD_DIM + at;
        a->ops->bytes->turn_words(x, c, s, pairs, a->map_unit[r], words);
        if (n > 2 * pairs)
            a->ops->bytes->to_words(x + 2 * pairs, n - 2 * pairs, a->map_unit[r],
                                    words + 2 * pairs);
    }
}

/* y [m, columns]: the m queries in a->map_queries, of a band's channels, in latents; what the other
 * channels make of them, base [rows, columns], is added. */
static void vqkv__map_band(vqkv__pass *a, int band, int m, const float *base, float *y)
{
    const vqkv__map *map = &a->map[band];
    a->ops->bytes->map_words(a->map_queries, m, map->n_in, map->words, map->scale, map->columns,
                             a->map_unit, a->rows, base, y);
}

/* a->y [rows, n_latents] = dec' q for one member of a stream, and a->bias += q . mean. */
static void vqkv__map_one(vqkv__pass *a, const vqkv__stream *s, int member)
{
    int r, d, row = member * VQKV_HEAD_DIM;
    for (r = 0; r < a->rows && s->mean >= 0; r++)
        a->bias[r] += a->ops->dot_row(vqkv__table(s->mean + row), VQKV_HEAD_DIM,
                                      a->turned + r * VQKV_HEAD_DIM);
    if (s->transform == VQKV__BASIS) {
        a->ops->map(vqkv__basis(s, s->dec, member), VQKV_HEAD_DIM, s->n_latents, a->turned,
                    VQKV_HEAD_DIM, a->rows, a->y);
        return;
    }
    memset(a->y, 0, sizeof(float) * (size_t)a->rows * (size_t)s->n_latents);
    for (r = 0; r < a->rows; r++) {
        float *y = a->y + (size_t)r * (size_t)s->n_latents;
        for (d = 0; d < VQKV_HEAD_DIM; d++)
            y[row + d] = a->turned[r * VQKV_HEAD_DIM + d];
        if (s->transform == VQKV__HADAMARD)
            vqkv__hadamard(y, s->n_in);
    }
}
