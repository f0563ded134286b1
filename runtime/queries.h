/* What queries in latents meet codes with: lanes for codewords, or score tables. Of steady runs
 * that lasts for many blocks, of turning ones for one. */

/* The codewords of K runs that meet queries themselves. */
static void vqkv__fill_dots(vqkv__pass *a)
{
    vqkv__scoring at = a->scoring[0];
    int band, i;
    for (band = 0; band < 2; band++) {
        a->scoring[band].table = at.table;
        a->scoring[band].scale = at.scale;
        for (i = 0; i < a->n_steps; i++) {
            const vqkv__step *step = &a->steps[i];
            if (step->kernel > VQKV__BY_FILLED || step->band != band)
                continue;
            a->ops->bytes->dot_books(step->run, at.table, at.scale);
            at.table += 64 * vqkv__dot_groups(step->run);
            at.scale += 4 * vqkv__dot_groups(step->run);
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

/* What the runs of one step meet codes with, for queries in latents y: from *to on, which goes on
 * behind it. energy [rows]: mean squares of the scores of its gain so far. */
static void vqkv__fill_step(vqkv__pass *a, vqkv__step *step, const vqkv__mapped *y, float *energy,
                            vqkv__scoring *to)
{
    const vqkv__run *run = step->run, *end = run + step->n_runs;
    const vqkv__byte_ops *ops = a->ops->bytes;
    float *lut = to->lut;
    int r, n;
    step->at = *to;
    switch (step->kernel) {
    case VQKV__BY_DOTS:
        n = 4 * vqkv__dot_groups(run);
        ops->dot_queries(run, to->scale, vqkv__latents_of(y, run), y->stride, a->rows, to->lanes,
                         to->unit, a->packs[step->band] ? energy : NULL);
        to->table += 64 * vqkv__dot_groups(run);
        to->scale += n;
        to->lanes += a->rows * n;
        to->unit += 2 * a->rows;
        return;
    case VQKV__BY_WIDE:
        for (r = 0; r < a->rows; r++)
            vqkv__fill_wide(a->ops, run,
                            vqkv__latents_of(y, run) - run->first + (size_t)r * y->stride,
                            to->wide + (size_t)r * VQKV__MAX_WIDE_LUT);
        to->wide += (size_t)run->planes << run->bits;
        return;
    case VQKV__BY_FILLED: {
        vqkv__packed *head = (vqkv__packed *)(void *)to->packed;
        to->packed += sizeof *head;
        ops->fill_bytes(run, to->table, to->scale, vqkv__latents_of(y, run), y->stride, a->rows,
                        energy, head, (signed char *)to->packed);
        to->packed += head->bytes;
        to->table += 64 * vqkv__dot_groups(run);
        to->scale += 4 * vqkv__dot_groups(run);
        return;
    }
    case VQKV__BY_PACKED: {
        vqkv__packed *head = (vqkv__packed *)(void *)to->packed;
        for (; run < end; run++)
            lut = vqkv__fill_run(a, run, vqkv__latents_of(y, run), y->stride, lut);
        to->packed += sizeof *head;
        ops->pack_tables(to->lut, step->planes, a->rows, energy, head, (signed char *)to->packed);
        to->packed += head->bytes;
        return;
    }
    default:
        to->lut = vqkv__fill_run(a, run, vqkv__latents_of(y, run), y->stride, lut);
    }
}

/* The same for all steps of a band, of mapped queries [rows, map_stride]; returns what lies behind
 * it all. */
static vqkv__scoring vqkv__fill_band(vqkv__pass *a, int band, const float *mapped)
{
    vqkv__scoring to = a->scoring[band];
    float energy[VQKV__MAX_ROWS];
    int i;
    memset(energy, 0, sizeof energy);
    for (i = 0; i < a->n_steps; i++) {
        vqkv__step *step = &a->steps[i];
        const vqkv__mapped y = vqkv__mapped_of(a, band, step->use, mapped);
        if (step->first)
            memset(energy, 0, sizeof energy);
        if (step->band == band)
            vqkv__fill_step(a, step, &y, energy, &to);
    }
    return to;
}

/* a->map_base [rows, map_stride] = what steady channels make of the latents of turning runs, and of
 * means: from their part of the queries in all latents. */
static void vqkv__keep_base(vqkv__pass *a, const float *mapped)
{
    const size_t to_stride = vqkv__map_stride(a, 1), from_stride = vqkv__map_stride(a, 0);
    int u, r;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        const vqkv__columns *to = &a->map[1].at[u], *from = &a->map[0].at[u];
        const int before = vqkv__before(a, s, 1), n = s->n_latents - before - to->n_words;
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
    const size_t stride = vqkv__map_stride(a, 1);
    int u, r;
    for (r = 0; r < a->rows; r++) {
        a->bias[r] = 0.0f;
        for (u = 0; u < a->n_k_uses; u++)
            a->bias[r] += mapped[(size_t)r * stride +
                                 (size_t)(a->map[1].at[u].words + a->map[1].at[u].n_words)];
    }
    vqkv__fill_band(a, 1, mapped);
}

/* The same for the queries as turned, mapped here. */
static void vqkv__fill_tables(vqkv__pass *a)
{
    vqkv__scoring to = a->scoring[1];
    vqkv__mapped y = {a->y, NULL, 0, 0, 0};
    float energy[VQKV__MAX_ROWS];
    int i;
    memset(a->bias, 0, sizeof a->bias);
    for (i = 0; i < a->n_steps; i++) {
        vqkv__step *step = &a->steps[i];
        if (i == 0 || step->use != step[-1].use)
            vqkv__map_one(a, step->stream, a->k_uses[step->use].member);
        y.n_words = step->stream->n_latents;
        y.stride = (size_t)y.n_words;
        if (step->first)
            memset(energy, 0, sizeof energy);
        vqkv__fill_step(a, step, &y, energy, &to);
    }
}
