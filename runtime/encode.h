/* Encoding a block, stream by stream, on any instruction set. Tiles are [channels, BLOCK]. */

/* x as a code 0 .. last; a NaN gives 0. */
static inline int vqkv__clamp(float x, int last)
{
    return !(x > 0.0f) ? 0 : x < (float)last ? (int)x : last;
}

/* Into a plane that is zero at token t. */
static inline void vqkv__write_code(const vqkv__run *run, unsigned char *plane, int t, int code)
{
    unsigned char *p = plane + t % (VQKV_BLOCK / 2);
    if (run->coder == VQKV__NIBBLES)
        *p = (unsigned char)(*p | code << t / (VQKV_BLOCK / 2) * 4);
    else
        vqkv__write_wide(plane, run->bits, t, code);
}

/* A sum of codewords, one a stage, that a beam keeps: the codes, and its squared distance. */
typedef struct vqkv__candidate {
    float distance;
    int parent;
    unsigned short code[VQKV__MAX_STAGES];
} vqkv__candidate;

/* Puts a sum among the *n best, which ascend; a tie goes behind. */
static void vqkv__keep_best(vqkv__candidate *best, int *n, int beam, float distance, int parent,
                            int stage, int code)
{
    int i = *n < beam ? (*n)++ : beam - 1;
    for (; i > 0 && distance < best[i - 1].distance; i--) {
        best[i].distance = best[i - 1].distance;
        best[i].parent = best[i - 1].parent;
        best[i].code[stage] = best[i - 1].code[stage];
    }
    best[i].distance = distance;
    best[i].parent = parent;
    best[i].code[stage] = (unsigned short)code;
}

/* What the codes of earlier stages have left of z [width]. */
static void vqkv__leave_rest(const vqkv__run *run, int plane, int stages,
                             const unsigned short *code, const float *z, float *rest)
{
    int stage, w;
    memcpy(rest, z, sizeof(float) * run->width);
    for (stage = 0; stage < stages; stage++) {
        const unsigned char *book = vqkv__table(vqkv__wide_book(run, plane + stage));
        for (w = 0; w < run->width; w++)
            rest[w] -= vqkv__half_at(book, ((size_t)w << run->bits) + code[stage]);
    }
}

/* code [stages] of the best sum of codewords by a beam over the stages that begin at `plane`. */
static void vqkv__search_beam(const vqkv__ops *ops, const vqkv__run *run, int plane, const float *z,
                              unsigned short *code)
{
    enum { CHUNK = 256 };
    vqkv__candidate kept[2][VQKV__MAX_BEAM];
    float rest[VQKV__MAX_WIDTH], distance[CHUNK];
    int stage, i, j, first, n_kept = 1, n_codes = 1 << run->bits, now = 0;
    for (stage = 0; stage < run->stages; stage++, now ^= 1) {
        const unsigned char *book = vqkv__table(vqkv__wide_book(run, plane + stage));
        vqkv__candidate *old = kept[now], *best = kept[now ^ 1];
        int n = 0, chunk = n_codes < CHUNK ? n_codes : CHUNK;
        for (i = 0; i < n_kept; i++) {
            vqkv__leave_rest(run, plane, stage, old[i].code, z, rest);
            for (first = 0; first < n_codes; first += chunk) {
                ops->dense->distances(book + 2 * first, n_codes, run->width, chunk, rest, distance);
                for (j = 0; j < chunk; j++)
                    if (n < run->beam || distance[j] < best[n - 1].distance)
                        vqkv__keep_best(best, &n, run->beam, distance[j], i, stage, first + j);
            }
        }
        for (i = 0; i < n; i++)
            memcpy(best[i].code, old[best[i].parent].code, sizeof *code * (size_t)stage);
        n_kept = n;
    }
    memcpy(code, kept[now][0].code, sizeof *code * run->stages);
}

/* The same where only the nearest is kept; rest [width] is destroyed. */
static void vqkv__search_greedy(const vqkv__ops *ops, const vqkv__run *run, int plane, float *rest,
                                unsigned short *code)
{
    int stage, w;
    for (stage = 0; stage < run->stages; stage++) {
        const unsigned char *book = vqkv__table(vqkv__wide_book(run, plane + stage));
        int best = ops->nearest_wide(book, 1 << run->bits, run->width, rest);
        for (w = 0; w < run->width; w++)
            rest[w] -= vqkv__half_at(book, ((size_t)w << run->bits) + (size_t)best);
        code[stage] = (unsigned short)best;
    }
}

/* Codes z [groups * width, BLOCK] by codebooks of sixteen, all tokens at once; z is destroyed where
 * there are several stages. */
static void vqkv__encode_nibbles(const vqkv__ops *ops, const vqkv__run *run, unsigned char *codes,
                                 float *z)
{
    float words[(VQKV__MAX_WIDTH + 1) * 16];
    int plane;
    for (plane = 0; plane < run->planes; plane++, codes += VQKV_BLOCK / 2) {
        const unsigned char *book = vqkv__table(vqkv__wide_book(run, plane));
        float *rest = vqkv__row(z, plane / run->stages * run->width);
        ops->code->code_nibbles(book, run->width, rest, words, codes);
        if (plane % run->stages != run->stages - 1)
            ops->code->leave_nibbles(codes, book, run->width, rest);
    }
}

/* The same token by token: codebooks of any size, and beams. */
static void vqkv__encode_books(const vqkv__ops *ops, const vqkv__run *run, unsigned char *codes,
                               const float *z)
{
    unsigned short code[VQKV__MAX_STAGES];
    float x[VQKV__MAX_WIDTH];
    int plane, t, w, stage;
    size_t size = vqkv__wide_bytes(run);
    for (plane = 0; plane < run->planes; plane += run->stages, z += run->width * VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK; t++) {
            for (w = 0; w < run->width; w++)
                x[w] = z[w * VQKV_BLOCK + t];
            if (run->beam > 1)
                vqkv__search_beam(ops, run, plane, x, code);
            else
                vqkv__search_greedy(ops, run, plane, x, code);
            for (stage = 0; stage < run->stages; stage++)
                vqkv__write_code(run, codes + (size_t)(plane + stage) * size, t, code[stage]);
        }
}

/* Codes z [groups, BLOCK] by uniform levels. */
static void vqkv__encode_levels(const vqkv__stream *s, const vqkv__run *run, unsigned char *codes,
                                const float *z)
{
    int p, t, last = (1 << run->bits) - 1;
    float half = s->gain == VQKV__RANGE ? 0.0f : (float)(1 << (run->bits - 1));
    size_t size = vqkv__wide_bytes(run);
    for (p = 0; p < run->planes; p++, codes += size, z += VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK; t++) {
            float level =
                s->gain == VQKV__SIGNMAX ? floorf(z[t] + (half + 0.5f)) : roundf(z[t]) + half;
            vqkv__write_code(run, codes, t, vqkv__clamp(level, last));
        }
}

static void vqkv__encode_run(const vqkv__ops *ops, const vqkv__stream *s, const vqkv__run *run,
                             unsigned char *codes, float *z)
{
    int i;
    if (run->coder == VQKV__HALVES)
        for (i = 0; i < run->planes * VQKV_BLOCK; i++)
            vqkv__store_half(codes + 2 * i, z[i]);
    else if (run->uniform)
        vqkv__encode_levels(s, run, codes, z);
    else if (run->bits == 4 && run->beam <= 1)
        vqkv__encode_nibbles(ops, run, codes, z);
    else
        vqkv__encode_books(ops, run, codes, z);
}

/* What encoding a block needs besides: in the cache's own memory. */
typedef struct vqkv__coding {
    vqkv *kv;
    const vqkv__ops *ops;
    int seq, token, block; /* first token of the block, its place in the pool */
    float pre[VQKV_N_ROT + 1], blockwise[VQKV_N_ROT + 1]; /* angles that keys turn back by */
    float *x, *z;        /* [MAX_IN, BLOCK], [MAX_LATENTS, BLOCK] */
    float *predicted;    /* [WIDTH, BLOCK] */
    unsigned char *mask; /* [MAX_LATENTS, BLOCK] where outliers are kept */
    vqkv__room room;
    int n_rebuilt; /* nodes behind us that later ones are predicted from are in their slots */
    int of;        /* the node in `predicted`; -1: none */
} vqkv__coding;

#define VQKV__MASK_FLOATS ((size_t)VQKV__MAX_OUT_LATENTS * VQKV_BLOCK / 4)
#define VQKV__WORK_FLOATS                                                                          \
    (((size_t)VQKV__MAX_IN + (size_t)VQKV__MAX_LATENTS) * VQKV_BLOCK +                             \
     (VQKV__N_PREDICTIONS > 0 ? VQKV__NODE_FLOATS : 0) + VQKV__MASK_FLOATS + VQKV__REBUILD_FLOATS)

/* x [HEAD_DIM, BLOCK]: one member's exact vectors of the block, in the frame. The tokens of a block
 * are neighbours in memory. */
static void vqkv__load_member(const vqkv__coding *c, const vqkv__member *m, int frame, float *x)
{
    c->ops->code->load_rows(vqkv__exact(c->kv, c->seq, m->layer, m->part, m->head, c->token), x);
    if (m->part == VQKV_KEY && frame != VQKV__POST)
        c->ops->dense->turn_tile(frame == VQKV__PRE ? c->pre : c->blockwise,
                                 frame == VQKV__PRE ? vqkv__turns(c->kv) : NULL, -1.0f, x, x);
}

/* Brings the prediction of a stream's node into c->predicted. Nodes are rebuilt in their order,
 * each once a block, when the first stream comes that is coded against a later one. */
static void vqkv__bring_prediction(vqkv__coding *c, int stream, int node)
{
    int i;
    if (c->of == node)
        return;
    for (; vqkv__nodes[c->n_rebuilt].last_stream < stream; c->n_rebuilt++) {
        i = c->n_rebuilt;
        if (vqkv__nodes[i].source)
            vqkv__rebuild_node(c->kv, c->ops, c->block, i, 0, VQKV_N_KV_HEADS, &c->room);
    }
    vqkv__predict(c->ops, &c->room, vqkv__nodes[node].prediction, 0, VQKV_N_KV_HEADS, c->predicted);
    c->of = node;
}

/* c->x: what is left of a stream's members for it to code. */
static void vqkv__gather_rest(vqkv__coding *c, int stream)
{
    const vqkv__stream *s = &vqkv__streams[stream];
    int i, u, d, n_uses;
    for (i = 0; i < s->n_members; i++) {
        const vqkv__member *m = &vqkv__members[s->first_member + i];
        const vqkv__use *use = vqkv__uses_of(m->part, m->layer, m->head, &n_uses);
        float *x = c->x + (size_t)i * VQKV__HEAD_FLOATS;
        int node = vqkv__node_at[m->part * VQKV_N_LAYERS + m->layer];
        vqkv__load_member(c, m, s->frame, x);
        if (vqkv__nodes[node].prediction >= 0) {
            vqkv__bring_prediction(c, stream, node);
            c->ops->dense->add_scaled(VQKV__HEAD_FLOATS, -1.0f,
                                      c->predicted + (size_t)m->head * VQKV__HEAD_FLOATS, x);
        }
        for (u = 0; u < n_uses && use[u].stream < stream; u++)
            vqkv__add_use(c->kv, c->ops, c->block, use[u], -1.0f, &c->room, x);
    }
    for (d = 0; d < s->n_in && s->mean >= 0; d++)
        c->ops->dense->affine_row(VQKV_BLOCK, 1.0f, -vqkv__half_at(vqkv__table(s->mean), (size_t)d),
                                  vqkv__row(c->x, d));
}

static void vqkv__encode_stream(vqkv__coding *c, int stream)
{
    const vqkv__stream *s = &vqkv__streams[stream];
    unsigned char *codes = vqkv__codes(c->kv, stream, c->block);
    float *z = s->transform == VQKV__BASIS ? c->z : c->x;
    int i;
    memset(codes, 0, (size_t)s->bytes);
    vqkv__gather_rest(c, stream);
    if (s->transform == VQKV__BASIS) {
        memset(z, 0, sizeof(float) * (size_t)s->n_latents * VQKV_BLOCK);
        for (i = 0; i < s->n_members; i++)
            c->ops->dense->product(vqkv__basis(s, s->enc, i), (size_t)s->n_latents, 0,
                                   VQKV_HEAD_DIM, s->n_latents,
                                   c->x + (size_t)i * VQKV__HEAD_FLOATS, z);
    } else if (s->transform == VQKV__HADAMARD) {
        vqkv__hadamard_tile(c->ops, z, s->n_in);
    }
    if (s->outliers > 0) {
        vqkv__encode_outliers(s, codes, z, c->mask, c->room.z);
        c->room.have = -1;
    }
    vqkv__encode_gains(c->ops, s, codes, z, s->outliers > 0 ? c->mask : NULL);
    for (i = 0; i < s->n_runs; i++) {
        const vqkv__run *run = &vqkv__runs[s->first_run + i];
        vqkv__encode_run(c->ops, s, run, codes + run->codes, vqkv__row(z, run->first));
    }
}

/* Encodes the block that starts at `token` into pool block `block`. Streams are encoded in order:
 * what predictions and earlier ones say of a member is taken off first. */
static void vqkv__encode_tokens(vqkv *kv, const vqkv__ops *ops, int seq, int token, int block)
{
    vqkv__coding c;
    float *room = vqkv__work(kv);
    int stream;
    memset(&c, 0, sizeof c);
    c.kv = kv;
    c.ops = ops;
    c.seq = seq;
    c.token = token;
    c.block = block;
    c.of = -1;
    vqkv__frame_angles(VQKV__PRE, token, c.pre);
    vqkv__frame_angles(VQKV__BLOCKWISE, token, c.blockwise);
    c.x = room;
    c.z = c.x + (size_t)VQKV__MAX_IN * VQKV_BLOCK;
    c.predicted = c.z + (size_t)VQKV__MAX_LATENTS * VQKV_BLOCK;
    room = c.predicted + (VQKV__N_PREDICTIONS > 0 ? VQKV__NODE_FLOATS : 0);
    c.mask = (unsigned char *)room;
    c.room = vqkv__make_room(room + VQKV__MASK_FLOATS);
    for (stream = 0; stream < VQKV__N_STREAMS; stream++)
        vqkv__encode_stream(&c, stream);
}

/* Puts the vectors of one head that x [HEAD_DIM, BLOCK] says too badly on the exact list; 0 if it
 * has no room for one. The bound is held a little closer than stated, so that it still holds where
 * another instruction set rounds otherwise. From the last token down: chains grow in front. */
static int vqkv__keep_head(vqkv *kv, int seq, const vqkv__node *n, int head, vqkv__entry entry,
                           const float *x)
{
    const float limit = VQKV_MAX_ERROR * VQKV_MAX_ERROR * 0.9998f;
    int t, d;
    for (t = VQKV_BLOCK - 1; t >= 0; t--) {
        const unsigned char *row =
            vqkv__exact(kv, seq, n->layer, n->part, head, entry.position + t);
        float error = 0.0f, norm = 0.0f;
        for (d = 0; d < VQKV_HEAD_DIM; d++) {
            float exact = vqkv__half_at(row, (size_t)d), off = exact - x[d * VQKV_BLOCK + t];
            error += off * off;
            norm += exact * exact;
        }
        if (error <= limit * norm)
            continue;
        if (kv->kept_free == 0)
            return 0;
        vqkv__put_kept(kv, vqkv__slot(n->part, n->layer, head), entry.block, t, row);
    }
    return 1;
}

/* The same for all heads of a block that has just been encoded: decodes it. */
static int vqkv__keep_bad(vqkv *kv, const vqkv__ops *ops, int seq, vqkv__entry entry)
{
    float *x = vqkv__work(kv);
    vqkv__room room = vqkv__make_room(x + VQKV__HEAD_FLOATS);
    int node, head;
    for (node = 0; node < 2 * VQKV_N_LAYERS; node++) {
        vqkv__rebuild_node(kv, ops, entry.block, node, 0, VQKV_N_KV_HEADS, &room);
        for (head = 0; head < VQKV_N_KV_HEADS; head++) {
            vqkv__hand_out(kv, ops, entry, node, head, 1, &room, x);
            if (!vqkv__keep_head(kv, seq, &vqkv__nodes[node], head, entry, x))
                return 0;
        }
    }
    return 1;
}
