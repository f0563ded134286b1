/* Queries of coded blocks: turned into the frame of a block, mapped into latents, made into what
 * scores are looked up with. Where every block has a frame of its own, this is done for a batch of
 * blocks at once: one product of all their queries with the basis. */

/* Cosines and sines of the angles that queries turn back by for a block at `position`, in a->cs [2,
 * N_ROT / 2]: of the pairs that vqkv__pairs has at from .. to - 1. Where it lies `unit` tokens
 * behind `previous`, pairs whose span begins go on by one complex product; all start afresh every
 * 64 units. */
static void vqkv__turn_angles(vqkv__pass *a, int from, int to, int position, int previous, int unit)
{
    float *c = a->cs, *s = a->cs + VQKV_N_ROT / 2;
    int i, goes_on = previous >= 0 && position == previous + unit && position / unit % 64 != 0;
    for (i = from; i < to; i++) {
        int pair = vqkv__pairs[i], base = vqkv__base_of(pair, position);
        float x = c[i], y = s[i];
        if (!goes_on) {
            double angle = base * vqkv__rope_freq(pair);
            c[i] = (float)cos(angle);
            s[i] = (float)sin(angle);
        } else if (base != vqkv__base_of(pair, previous)) {
            c[i] = x * a->step[2 * i] - y * a->step[2 * i + 1];
            s[i] = y * a->step[2 * i] + x * a->step[2 * i + 1];
        }
    }
}

/* The angles that pairs turn by over their spans, in the order of vqkv__pairs. */
static void vqkv__span_angles(float *cs)
{
    int i;
    for (i = 0; i < VQKV_N_ROT / 2; i++) {
        double angle = vqkv__spans[vqkv__pairs[i]] * vqkv__rope_freq(vqkv__pairs[i]);
        cs[2 * i] = (float)cos(angle);
        cs[2 * i + 1] = (float)sin(angle);
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

/* Whether a K run's codewords meet the query themselves instead of through score tables. With a
 * query of its own for each block, tables cost more to fill than they save. */
static int vqkv__dots(const vqkv__pass *a, const vqkv__run *run)
{
    int turns = a->k_frame == VQKV__BLOCKWISE && vqkv__band(a, run);
    return a->ops->bytes != NULL && a->ops->bytes->dot_books != NULL &&
           run->coder == VQKV__NIBBLES && (run->width == 1 || (turns && run->width % 2 == 0));
}

/* Whether run i of a K stream goes on from the one before: the same band and gain, and tables of
 * nibbles both. */
static int vqkv__continues(const vqkv__pass *a, const vqkv__stream *s, int i)
{
    const vqkv__run *run = &vqkv__runs[s->first_run + i];
    return i > 0 && i < s->n_runs && run[-1].gain == run->gain && run->coder == VQKV__NIBBLES &&
           run[-1].coder == VQKV__NIBBLES && !vqkv__dots(a, run) && !vqkv__dots(a, run - 1) &&
           vqkv__band(a, run) == vqkv__band(a, run - 1);
}

/* The codewords of K runs that meet queries themselves. */
static void vqkv__fill_dots(vqkv__pass *a)
{
    vqkv__scoring at = a->scoring[0];
    int band, u, i;
    for (band = 0; band < 2; band++) {
        a->scoring[band].table = at.table;
        a->scoring[band].scale = at.scale;
        for (u = 0; u < a->n_k_uses; u++) {
            const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
            for (i = s->first_run; i < s->first_run + s->n_runs; i++) {
                const vqkv__run *run = &vqkv__runs[i];
                if (!vqkv__dots(a, run) || vqkv__band(a, run) != band)
                    continue;
                a->ops->bytes->dot_books(run, at.table, at.scale);
                at.table += 64 * vqkv__dot_groups(run);
                at.scale += 4 * vqkv__dot_groups(run);
            }
        }
    }
}

/* Score tables in fp32 of one run for queries in latents y [rows, stride]; returns their end. */
static float *vqkv__fill_run(vqkv__pass *a, const vqkv__run *run, const float *y, size_t stride,
                             float *lut)
{
    int p, r;
    if (run->coder == VQKV__NIBBLES) {
        a->ops->fill_tables(run, y, stride, a->rows, lut);
        return lut + run->planes * a->rows * 16;
    }
    for (p = 0; p < run->planes; p++)
        for (r = 0; r < a->rows; r++)
            *lut++ = y[(size_t)r * stride + (size_t)(p / run->stages * run->width)];
    return lut;
}

/* What the runs of one K stream in a band meet codes with, for queries in its latents of that band
 * y [rows, stride]: from *to on, which goes on behind it. Nibbles end up in to->packed where there
 * are byte kernels, else in to->lut like the others. */
static void vqkv__fill_stream(vqkv__pass *a, const vqkv__stream *s, int band, const float *y,
                              size_t stride, vqkv__scoring *to)
{
    float energy[VQKV__MAX_ROWS], *start = to->lut;
    const int before = vqkv__before(a, s, band);
    int i, r, planes = 0;
    memset(energy, 0, sizeof energy);
    for (i = 0; i < s->n_runs; i++) {
        const vqkv__run *run = &vqkv__runs[s->first_run + i];
        const float *from = y + run->first - before;
        if (vqkv__band(a, run) != band)
            continue;
        if (i > 0 && run[-1].gain != run->gain)
            memset(energy, 0, sizeof energy);
        if (!vqkv__continues(a, s, i)) {
            start = to->lut;
            planes = 0;
        }
        if (vqkv__dots(a, run)) {
            int n = 4 * vqkv__dot_groups(run);
            a->ops->bytes->dot_queries(run, to->scale, from, stride, a->rows, to->lanes, to->unit,
                                       energy);
            to->scale += n;
            to->lanes += a->rows * n;
            to->unit += 2 * a->rows;
            continue;
        }
        if (run->coder == VQKV__WIDE) {
            for (r = 0; r < a->rows; r++)
                vqkv__fill_wide(a->ops, run, y - before + (size_t)r * stride,
                                to->wide + (size_t)r * VQKV__MAX_WIDE_LUT);
            to->wide += (size_t)run->planes << run->bits;
            continue;
        }
        to->lut = vqkv__fill_run(a, run, from, stride, to->lut);
        planes += run->planes;
        if (a->k_bytes && run->coder == VQKV__NIBBLES && !vqkv__continues(a, s, i + 1)) {
            vqkv__packed *head = (vqkv__packed *)(void *)to->packed;
            to->packed += sizeof *head;
            a->ops->bytes->pack_tables(start, planes, a->rows, energy, head,
                                       (signed char *)to->packed);
            to->packed += head->bytes;
            to->lut = start;
        }
    }
}

/* The same for all K streams of the head, of mapped queries [rows, columns]; returns what lies
 * behind it all. */
static vqkv__scoring vqkv__fill_band(vqkv__pass *a, int band, const float *mapped)
{
    vqkv__scoring to = a->scoring[band];
    int u;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        vqkv__fill_stream(a, s, band, mapped, (size_t)a->map[band].columns, &to);
        mapped += VQKV__COLUMNS(s->n_latents - vqkv__before(a, s, band));
    }
    return to;
}

/* a->map_base [rows, columns] = what steady channels make of the latents of turning runs, and of
 * means: from their part of the queries in all latents. */
static void vqkv__keep_base(vqkv__pass *a, const float *mapped)
{
    float *base = a->map_base;
    int u, r;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        int before = vqkv__before(a, s, 1), n = s->n_latents - before + 1;
        for (r = 0; r < a->rows; r++)
            memcpy(base + (size_t)(r * a->map[1].columns),
                   mapped + (size_t)(r * a->map[0].columns + before), sizeof(float) * (size_t)n);
        base += VQKV__COLUMNS(n - 1);
        mapped += VQKV__COLUMNS(s->n_latents);
    }
}

/* The number of the span of steady channels that a block at `position` is in. */
static inline int vqkv__steady_number(int position)
{
    return (position - VQKV_N_SINK) / VQKV__STEADY_SPAN;
}

/* Makes steady runs ready for a block at `position`, if they are not, and the place behind them for
 * turning ones. */
static void vqkv__fill_steady(vqkv__pass *a, int position)
{
    const int pairs = VQKV__STEADY_PAIRS, unit = VQKV__STEADY_SPAN;
    int number = vqkv__steady_number(position), last = a->steady_number;
    vqkv__scoring end;
    if (VQKV__STEADY_DIMS == 0 || number == last)
        return;
    vqkv__turn_angles(a, 0, pairs, VQKV_N_SINK + number * unit,
                      last < 0 ? -1 : VQKV_N_SINK + last * unit, unit);
    vqkv__turn_band(a, a->cs, a->cs + VQKV_N_ROT / 2, pairs, 0, a->map[0].n_in, a->map_queries);
    vqkv__map_band(a, 0, a->rows, NULL, a->mapped);
    vqkv__keep_base(a, a->mapped);
    end = vqkv__fill_band(a, 0, a->mapped);
    end.table = a->scoring[1].table; /* codewords are there already */
    end.scale = a->scoring[1].scale;
    a->scoring[1] = end;
    a->steady_number = number;
}

/* The queries of some of the n blocks from `entries` on in latents of turning runs: a->mapped.
 * Returns their number, which is MAP_BLOCKS at most; their steady channels are in one span, for
 * which steady runs are made ready too. */
static int vqkv__map_batch(vqkv__pass *a, const vqkv__entry *entries, int n, int previous)
{
    const int first = VQKV__STEADY_PAIRS, all = VQKV_N_ROT / 2, n_in = a->map[1].n_in;
    const float *c = a->cs + first;
    int b;
    vqkv__fill_steady(a, entries[0].position);
    for (b = 0; b < n && b < VQKV__MAP_BLOCKS; b++) {
        if (VQKV__STEADY_DIMS > 0 && vqkv__steady_number(entries[b].position) != a->steady_number)
            break;
        vqkv__turn_angles(a, first, all, entries[b].position, previous, VQKV_BLOCK);
        vqkv__turn_band(a, c, c + all, all - first, VQKV__STEADY_DIMS, n_in,
                        a->map_queries + (size_t)(b * a->rows) * (size_t)n_in);
        previous = entries[b].position;
    }
    vqkv__map_band(a, 1, b * a->rows, VQKV__STEADY_DIMS > 0 ? a->map_base : NULL, a->mapped);
    return b;
}

/* What scores of one block are taken with, for queries mapped in a batch. */
static void vqkv__fill_mapped(vqkv__pass *a, const float *mapped)
{
    const float *y = mapped;
    int u, r;
    memset(a->bias, 0, sizeof a->bias);
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        int n = s->n_latents - vqkv__before(a, s, 1);
        for (r = 0; r < a->rows; r++)
            a->bias[r] += y[(size_t)(r * a->map[1].columns + n)];
        y += VQKV__COLUMNS(n);
    }
    vqkv__fill_band(a, 1, mapped);
}

/* The same for the queries as turned, mapped here. */
static void vqkv__fill_tables(vqkv__pass *a)
{
    vqkv__scoring to = a->scoring[1];
    int u;
    memset(a->bias, 0, sizeof a->bias);
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        vqkv__map_one(a, s, a->k_uses[u].member);
        vqkv__fill_stream(a, s, 1, a->y, (size_t)s->n_latents, &to);
    }
}
