/* What queries in latents meet codes with: lanes for codewords, or score tables. Of steady runs
 * that lasts for many blocks, of turning ones for one. */

/* Whether a K run's codewords meet the query themselves instead of through score tables. With a
 * query of its own for each block, tables cost more to fill than they save; but where such queries
 * are mapped in fp32 they are scored in fp32. */
static int vqkv__dots(const vqkv__pass *a, const vqkv__run *run)
{
    int turns = a->k_frame == VQKV__BLOCKWISE && vqkv__band(a, run);
    if (a->ops->bytes == NULL || a->ops->bytes->dot_books == NULL || run->coder != VQKV__NIBBLES)
        return 0;
    if (turns && a->ops->bytes->map_words == NULL)
        return 0;
    return run->width == 1 || (turns && run->width % 2 == 0);
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
