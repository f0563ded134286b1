/* What scores of one head's keys are made of: which kernel takes which runs. Planned once a pass;
 * queries.h fills what each kernel wants, absorbed.h calls them for every block. */

/* Whether K streams are scored in bytes and words at all: not where packing tables for every block
 * would cost more than it saves. What fills them in bytes does so for queries that are mapped in
 * batches; others come in fp32, and are as quickly scored in it. */
static int vqkv__scores_bytes(const vqkv__pass *a)
{
    const vqkv__byte_ops *ops = a->ops->bytes;
    if (ops == NULL || a->k_frame != VQKV__BLOCKWISE)
        return ops != NULL;
    return a->batches || (ops->map_words != NULL && ops->fill_bytes == NULL);
}

/* Whether a K run's codewords meet the query themselves instead of through score tables. With a
 * query of its own for each block, tables in fp32 cost more to fill than they save. */
static int vqkv__dots(const vqkv__pass *a, const vqkv__run *run)
{
    int turns = a->k_frame == VQKV__BLOCKWISE && vqkv__band(a, run);
    if (a->ops->bytes == NULL || a->ops->bytes->dot_books == NULL || run->coder != VQKV__NIBBLES)
        return 0;
    if (turns && !a->k_bytes)
        return 0;
    return run->width == 1 || (turns && run->width % 2 == 0 && a->ops->bytes->fill_bytes == NULL);
}

/* Whether its score tables are filled from codewords in words, for every block anew. */
static int vqkv__fills(const vqkv__pass *a, const vqkv__run *run)
{
    return a->k_bytes && a->ops->bytes->fill_bytes != NULL && a->k_frame == VQKV__BLOCKWISE &&
           vqkv__band(a, run) && vqkv__fillable(run);
}

static int vqkv__kernel_of(const vqkv__pass *a, const vqkv__run *run)
{
    return run->coder == VQKV__WIDE      ? VQKV__BY_WIDE
           : run->coder != VQKV__NIBBLES ? VQKV__BY_SCALARS
           : vqkv__dots(a, run)          ? VQKV__BY_DOTS
           : vqkv__fills(a, run)         ? VQKV__BY_FILLED
           : a->k_bytes                  ? VQKV__BY_PACKED
                                         : VQKV__BY_TABLES;
}

/* a->steps: those of all K streams of the head, runs in their order; a->packs: which bands have
 * packed tables. Neighbouring runs that share a gain and a band are one step where packed tables
 * take them. */
static void vqkv__plan_steps(vqkv__pass *a)
{
    vqkv__step *step = a->steps;
    int u, i;
    a->packs[0] = a->packs[1] = 0;
    for (u = 0; u < a->n_k_uses; u++) {
        const vqkv__stream *s = &vqkv__streams[a->k_uses[u].stream];
        for (i = 0; i < s->n_runs; i++) {
            const vqkv__run *run = &vqkv__runs[s->first_run + i];
            const int kernel = vqkv__kernel_of(a, run), band = vqkv__band(a, run);
            const int first = i == 0 || run[-1].gain != run->gain;
            const int last = i == s->n_runs - 1 || run[1].gain != run->gain;
            a->packs[band] |= kernel == VQKV__BY_PACKED;
            if (!first && kernel == VQKV__BY_PACKED && step[-1].kernel == kernel &&
                step[-1].band == band) {
                step[-1].n_runs++;
                step[-1].planes += run->planes;
                step[-1].last = (unsigned char)last;
                continue;
            }
            step->run = run;
            step->stream = s;
            step->use = u;
            step->n_runs = 1;
            step->planes = run->planes;
            step->kernel = (unsigned char)kernel;
            step->band = (unsigned char)band;
            step->first = (unsigned char)first;
            step->last = (unsigned char)last;
            step++;
        }
    }
    a->n_steps = (int)(step - a->steps);
}

/* Whether the kernels ask for codes by and by; the others have them asked for before they begin. */
static int vqkv__asks(const vqkv__pass *a)
{
    int i;
    for (i = 0; i < a->n_steps; i++)
        if (a->steps[i].kernel <= VQKV__BY_PACKED)
            return 1;
    return a->n_steps > 0 && a->steps[0].kernel == VQKV__BY_SCALARS && a->ops->lanes >= 8 &&
           a->rows >= 4;
}
