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
    for (; i < to; i = j) { /* mostly pairs of one span lie side by side */
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

/* How many latents of a stream, `before` and on, queries are mapped to in words: all but those of
 * its last runs for which 8 bits do (words: 0). */
static int vqkv__word_latents(const vqkv__pass *a, const vqkv__stream *s, int before)
{
    int i = s->first_run + s->n_runs;
    if (a->ops->bytes->map_bytes == NULL || s->basis_bytes != 1)
        return s->n_latents - before;
    while (i > s->first_run && vqkv__runs[i - 1].first >= before && !vqkv__runs[i - 1].words)
        i--;
    return (i < s->first_run + s->n_runs ? vqkv__runs[i].first : s->n_latents) - before;
}

/* Where the latents of all K streams go in a band's map. */
static void vqkv__place_columns(vqkv__pass *a, int band)
{
    vqkv__map *map = &a->map[band];
    int u;
    map->columns = map->byte_columns = 0;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        map->at[u].n_words = vqkv__word_latents(a, s, vqkv__before(a, s, band));
        map->at[u].words = map->columns;
        map->columns += VQKV__COLUMNS(map->at[u].n_words);
    }
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        int n = s->n_latents - vqkv__before(a, s, band) - map->at[u].n_words;
        map->at[u].bytes = map->columns + map->byte_columns;
        map->byte_columns += VQKV__BYTE_COLUMNS(n);
    }
}

/* The bases of all K streams, of a band's channels to its latents, in words and in bytes. */
static void vqkv__fill_bases(vqkv__pass *a, int band)
{
    const vqkv__map *map = &a->map[band];
    vqkv__slice slice;
    int u;
    slice.row = vqkv__order + (band ? VQKV__STEADY_DIMS : 0);
    slice.n_in = map->n_in;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        const vqkv__columns *at = &map->at[u];
        const vqkv__matrix basis = vqkv__basis(s, s->dec, a->k_uses[u].member);
        int row = a->k_uses[u].member * VQKV_HEAD_DIM;
        slice.columns = s->n_latents;
        slice.first = vqkv__before(a, s, band);
        slice.n_out = at->n_words;
        a->ops->bytes->map_basis(basis, s->mean < 0 ? NULL : vqkv__table(s->mean + row), &slice,
                                 map->words + (size_t)at->words * (size_t)map->n_in,
                                 map->scale + at->words);
        slice.first += at->n_words;
        slice.n_out = s->n_latents - slice.first;
        if (slice.n_out > 0)
            a->ops->bytes->byte_basis(basis, &slice,
                                      map->bytes + (size_t)(at->bytes - map->columns) *
                                                       VQKV__BYTE_ROWS((size_t)map->n_in),
                                      map->scale + at->bytes);
    }
}

/* What a word and a byte of each query count. Turning leaves the length of a pair as it is, so that
 * holds for every block. */
static void vqkv__fill_units(vqkv__pass *a)
{
    /* HEAD_DIM products of a word of the basis and one of a query stay below 2^31. */
    const float most = 2147483648.0f / (VQKV__MAP_TOP * VQKV_HEAD_DIM) - 1.0f;
    const float limit = most < 32767.0f ? most : 32767.0f;
    int r, i;
    for (r = 0; r < a->rows; r++) {
        const float *x = a->q + r * VQKV_HEAD_DIM;
        float square = 0.0f, top = 0.0f, steps; /* top: of the largest pair, or channel without */
        for (i = 0; i < VQKV_HEAD_DIM; i++) {
            square += x[i] * x[i];
            top = i >= VQKV_N_ROT && x[i] * x[i] > top ? x[i] * x[i] : top;
            a->ordered[r * VQKV_HEAD_DIM + i] = x[vqkv__order[i]];
        }
        for (i = 0; i < VQKV_N_ROT / 2; i++) {
            const float u = x[VQKV_ROPE_INTERLEAVED ? 2 * i : i];
            const float v = x[VQKV_ROPE_INTERLEAVED ? 2 * i + 1 : i + VQKV_N_ROT / 2];
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
 * the order of vqkv__order. */
static void vqkv__fill_maps(vqkv__pass *a)
{
    vqkv__map *steady = &a->map[0], *turning = &a->map[1];
    steady->n_in = VQKV__STEADY_DIMS;
    turning->n_in = VQKV_HEAD_DIM - VQKV__STEADY_DIMS;
    vqkv__place_columns(a, 0);
    vqkv__place_columns(a, 1);
    turning->words = steady->words + (size_t)steady->columns * (size_t)steady->n_in;
    turning->bytes =
        steady->bytes + (size_t)steady->byte_columns * VQKV__BYTE_ROWS((size_t)steady->n_in);
    turning->scale = steady->scale + steady->columns + steady->byte_columns;
    vqkv__fill_bases(a, 0);
    vqkv__fill_bases(a, 1);
    vqkv__fill_units(a);
    /* what lies behind the mean of a stream is never set, but added */
    memset(a->map_base, 0,
           sizeof(float) * (size_t)(a->rows * (turning->columns + turning->byte_columns)));
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

/* Floats from row to row of queries in the latents of a band. */
static inline size_t vqkv__map_stride(const vqkv__pass *a, int band)
{
    return (size_t)(a->map[band].columns + a->map[band].byte_columns);
}

/* y [m, map_stride]: the m queries in a->map_queries, of a band's channels, in latents; what the
 * other channels make of them, base [rows, map_stride], is added. */
static void vqkv__map_band(vqkv__pass *a, int band, int m, const float *base, float *y)
{
    const vqkv__map *map = &a->map[band];
    const size_t stride = vqkv__map_stride(a, band);
    int32_t zero[VQKV__MAP_BLOCKS * VQKV__MAX_ROWS];
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
static vqkv__mapped vqkv__mapped_of(const vqkv__pass *a, int band, int use, const float *mapped)
{
    const vqkv__columns *at = &a->map[band].at[use];
    vqkv__mapped m;
    m.words = mapped + at->words;
    m.bytes = mapped + at->bytes;
    m.before = vqkv__before(a, &vqkv__streams[a->k_uses[use].stream], band);
    m.n_words = at->n_words;
    m.stride = vqkv__map_stride(a, band);
    return m;
}

/* Those of a run, rows `stride` apart. */
static inline const float *vqkv__latents_of(const vqkv__mapped *m, const vqkv__run *run)
{
    int i = run->first - m->before;
    return i < m->n_words ? m->words + i : m->bytes + (i - m->n_words);
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
