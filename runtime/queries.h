/* Queries of coded blocks: turned into the frame of a block, mapped into latents, made into what
 * scores are looked up with. Where every block has a frame of its own, this is done for a batch of
 * blocks at once: one product of all their queries with the basis. */

/* Cosines [N_ROT / 2] and sines of the angles that queries turn back by for a block at `position`.
 * Where the block follows the one at `previous`, pairs whose span begins go on by one complex
 * product; all start afresh every 64 blocks.
 */
static void vqkv__block_angles(vqkv__pass *a, int position, int previous)
{
    enum { PAIRS = VQKV_N_ROT / 2 };
    float *c = a->cs, *s = a->cs + PAIRS, both[VQKV_N_ROT + 1];
    int i;
    if (previous >= 0 && position == previous + VQKV_BLOCK && position / VQKV_BLOCK % 64 != 0) {
        for (i = 0; i < PAIRS; i++) {
            float x = c[i], y = s[i];
            if (vqkv__base_of(i, position) != position)
                continue;
            c[i] = x * a->step[2 * i] - y * a->step[2 * i + 1];
            s[i] = y * a->step[2 * i] + x * a->step[2 * i + 1];
        }
        return;
    }
    vqkv__frame_angles(VQKV__BLOCKWISE, position, both);
    for (i = 0; i < PAIRS; i++) {
        c[i] = both[2 * i];
        s[i] = both[2 * i + 1];
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
        int k = VQKV_ROPE_INTERLEAVED ? 2 * i : i, l = VQKV_ROPE_INTERLEAVED ? k + 1 : i + PAIRS;
        float c = cs[i], s = cs[PAIRS + i];
        y[k] = x[k] * c + x[l] * s;
        y[l] = x[l] * c - x[k] * s;
    }
}

/* Turns the queries into the frame of one block. */
static void vqkv__turn_queries(vqkv__pass *a, int position, int previous)
{
    int r;
    vqkv__block_angles(a, position, previous);
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

/* Makes ready for batches: the bases of all K streams in words, columns behind each other, with the
 * mean as the last column of each; and what a word of each query counts. Turning leaves the length
 * of a pair as it is, so that holds for every block. */
static void vqkv__fill_maps(vqkv__pass *a)
{
    /* HEAD_DIM products of a word of the basis and one of a query stay below 2^31. */
    const float most = 2147483648.0f / (VQKV__MAP_TOP * VQKV_HEAD_DIM) - 1.0f;
    const float limit = most < 32767.0f ? most : 32767.0f;
    int u, r, i;
    a->map_columns = 0;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        int row = a->k_uses[u].member * VQKV_HEAD_DIM;
        a->ops->bytes->map_basis(
            vqkv__basis(s, s->dec, a->k_uses[u].member),
            s->mean < 0 ? NULL : vqkv__table(s->mean + row), VQKV_HEAD_DIM, s->n_latents,
            a->map_words + (size_t)a->map_columns * VQKV_HEAD_DIM, a->map_scale + a->map_columns);
        a->map_columns += VQKV__COLUMNS(s->n_latents);
    }
    for (r = 0; r < a->rows; r++) {
        const float *x = a->q + r * VQKV_HEAD_DIM;
        float top = 0.0f;
        for (i = 0; i < VQKV_HEAD_DIM; i++)
            top += x[i] * x[i];
        a->map_unit[r] = sqrtf(top) / limit;
    }
}

/* Queries of n blocks from `entries` on, n <= MAP_BLOCKS, into latents: a->mapped. */
static void vqkv__map_batch(vqkv__pass *a, const vqkv__entry *entries, int n, int previous)
{
    int b, r;
    for (b = 0; b < n; b++) {
        vqkv__turn_queries(a, entries[b].position, previous);
        for (r = 0; r < a->rows; r++)
            a->ops->bytes->to_words(a->turned + r * VQKV_HEAD_DIM, VQKV_HEAD_DIM, a->map_unit[r],
                                    a->map_queries + (size_t)(b * a->rows + r) * VQKV_HEAD_DIM);
        previous = entries[b].position;
    }
    a->ops->bytes->map_words(a->map_queries, n * a->rows, VQKV_HEAD_DIM, a->map_words, a->map_scale,
                             a->map_columns, a->map_unit, a->rows, a->mapped);
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
    return a->ops->bytes != NULL && a->ops->bytes->dot_books != NULL &&
           run->coder == VQKV__NIBBLES &&
           (run->width == 1 || (a->k_frame == VQKV__BLOCKWISE && run->width % 2 == 0));
}

/* Whether run i of a K stream goes on from the one before: the same gain, and tables of nibbles
 * both. */
static int vqkv__continues(const vqkv__pass *a, const vqkv__stream *s, int i)
{
    const vqkv__run *run = &vqkv__runs[s->first_run + i];
    return i > 0 && i < s->n_runs && run[-1].gain == run->gain && run->coder == VQKV__NIBBLES &&
           run[-1].coder == VQKV__NIBBLES && !vqkv__dots(a, run) && !vqkv__dots(a, run - 1);
}

/* The codewords of K runs that meet queries themselves. */
static void vqkv__fill_dots(vqkv__pass *a)
{
    unsigned char *table = a->dot_table;
    float *scale = a->dot_scale;
    int u, i;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        for (i = s->first_run; i < s->first_run + s->n_runs; i++) {
            if (!vqkv__dots(a, &vqkv__runs[i]))
                continue;
            a->ops->bytes->dot_books(&vqkv__runs[i], table, scale);
            table += 64 * vqkv__dot_groups(&vqkv__runs[i]);
            scale += 4 * vqkv__dot_groups(&vqkv__runs[i]);
        }
    }
}

/* Score tables in fp32 of one run for queries in latents y [rows, stride]; returns their end. */
static float *vqkv__fill_run(vqkv__pass *a, const vqkv__run *run, const float *y, size_t stride,
                             float *lut)
{
    int p, r;
    y += run->first;
    if (run->coder == VQKV__NIBBLES) {
        a->ops->fill_tables(run, y, stride, a->rows, lut);
        return lut + run->planes * a->rows * 16;
    }
    for (p = 0; p < run->planes; p++)
        for (r = 0; r < a->rows; r++)
            *lut++ = y[(size_t)r * stride + (size_t)(p / run->stages * run->width)];
    return lut;
}

/* Score tables of every K stream of the head, also bias: for the queries as turned, or those of a
 * batch's block `mapped` if it is not NULL. Nibbles end up in a->packed where there are byte
 * kernels, else in a->lut like the others. */
static void vqkv__fill_tables(vqkv__pass *a, const float *mapped)
{
    int u, i, r, planes = 0;
    float *lut = a->lut, *start = a->lut;
    size_t wide = 0;
    char *packed = (char *)a->packed;
    unsigned char *lanes = a->dot_lanes;
    float *unit = a->dot_unit, energy[VQKV__MAX_ROWS];
    const float *scale = a->dot_scale;
    for (r = 0; r < a->rows; r++)
        a->bias[r] = 0.0f;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        size_t stride = mapped != NULL ? (size_t)a->map_columns : (size_t)s->n_latents;
        const float *y = mapped != NULL ? mapped : a->y;
        if (mapped == NULL)
            vqkv__map_one(a, s, a->k_uses[u].member);
        for (r = 0; r < a->rows && mapped != NULL; r++)
            a->bias[r] += y[(size_t)r * stride + (size_t)s->n_latents];
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            if (i == 0 || run[-1].gain != run->gain)
                memset(energy, 0, sizeof energy);
            if (!vqkv__continues(a, s, i)) {
                start = lut;
                planes = 0;
            }
            if (vqkv__dots(a, run)) {
                int n = 4 * vqkv__dot_groups(run);
                a->ops->bytes->dot_queries(run, scale, y + run->first, stride, a->rows, lanes, unit,
                                           energy);
                scale += n;
                lanes += a->rows * n;
                unit += 2 * a->rows;
                continue;
            }
            if (run->coder == VQKV__WIDE) {
                for (r = 0; r < a->rows; r++)
                    vqkv__fill_wide(a->ops, run, y + (size_t)r * stride,
                                    a->wide + (size_t)r * VQKV__MAX_WIDE_LUT + wide);
                wide += (size_t)run->planes << run->bits;
                continue;
            }
            lut = vqkv__fill_run(a, run, y, stride, lut);
            planes += run->planes;
            if (a->k_bytes && run->coder == VQKV__NIBBLES && !vqkv__continues(a, s, i + 1)) {
                vqkv__packed *head = (vqkv__packed *)(void *)packed;
                packed += sizeof *head;
                a->ops->bytes->pack_tables(start, planes, a->rows, energy, head,
                                           (signed char *)packed);
                packed += head->bytes;
                lut = start;
            }
        }
        if (mapped != NULL)
            mapped += VQKV__COLUMNS(s->n_latents);
    }
}
