/* Rebuilding blocks: K and V as they are, for attention that cannot be absorbed, for reading, and
 * for what later streams and layers are coded against.
 *
 * A node's vectors are what its prediction says plus what its streams hold. Predictions make
 * chains down the layers: every node that the wanted ones rest on is rebuilt in its turn, in a slot
 * of the scratch that is given to another node as soon as nothing needs it any more. So a walk
 * takes time in proportion to the layers below, but memory of VQKV__N_SLOTS tiles only. */

#define VQKV__WIDTH       (VQKV_N_KV_HEADS * VQKV_HEAD_DIM) /* channels of a node */
#define VQKV__NODE_FLOATS ((size_t)VQKV__WIDTH * VQKV_BLOCK)
#define VQKV__HEAD_FLOATS ((size_t)VQKV_HEAD_DIM * VQKV_BLOCK)
/* Slots, latents of a stream, and what passes through a map of reduced rank. */
#define VQKV__REBUILD_FLOATS                                                                       \
    (VQKV__N_SLOTS * VQKV__NODE_FLOATS +                                                           \
     ((size_t)VQKV__MAX_LATENTS + (size_t)VQKV__MAX_RANK) * VQKV_BLOCK)

/* Room for one walk; parts lie behind each other. */
typedef struct vqkv__room {
    float *slots;  /* [N_SLOTS, WIDTH, BLOCK] */
    float *z;      /* [MAX_LATENTS, BLOCK] */
    float *hidden; /* [MAX_RANK, BLOCK] */
    int have;      /* stream whose latents are in z; -1: none */
} vqkv__room;

static vqkv__room vqkv__make_room(float *floats)
{
    vqkv__room room;
    room.slots = floats;
    room.z = room.slots + VQKV__N_SLOTS * VQKV__NODE_FLOATS;
    room.hidden = room.z + (size_t)VQKV__MAX_LATENTS * VQKV_BLOCK;
    room.have = -1;
    return room;
}

static inline float *vqkv__slot_of(const vqkv__room *room, int node)
{
    return room->slots + (size_t)vqkv__nodes[node].slot * VQKV__NODE_FLOATS;
}

/* out [n_heads, HEAD_DIM, BLOCK]: what the sources, in their slots, say of some heads of a node. */
static void vqkv__predict(const vqkv__ops *ops, const vqkv__room *room, int prediction, int head,
                          int n_heads, float *out)
{
    const vqkv__prediction *p = &vqkv__predictions[prediction];
    int s, h, d, first = head * VQKV_HEAD_DIM, n = n_heads * VQKV_HEAD_DIM;
    for (d = 0; d < n; d++) {
        float b = vqkv__half_at(vqkv__table(p->bias), (size_t)(first + d)),
              *row = vqkv__row(out, d);
        for (s = 0; s < VQKV_BLOCK; s++)
            row[s] = b;
    }
    memset(room->hidden, 0, sizeof(float) * (size_t)p->rank * VQKV_BLOCK);
    for (s = 0; s < p->n_sources; s++) {
        const float *x = vqkv__slot_of(room, p->source[s]);
        size_t row = (size_t)s * VQKV__WIDTH;
        for (h = head; h < head + n_heads && p->per_head; h++)
            ops->dense->product(
                vqkv__halves(p->map, (row + (size_t)h * VQKV_HEAD_DIM) * VQKV_HEAD_DIM),
                VQKV_HEAD_DIM, 0, VQKV_HEAD_DIM, VQKV_HEAD_DIM, x + (size_t)h * VQKV__HEAD_FLOATS,
                out + (size_t)(h - head) * VQKV__HEAD_FLOATS);
        if (p->rank > 0)
            ops->dense->product(vqkv__halves(p->map, row * (size_t)p->rank), (size_t)p->rank, 0,
                                VQKV__WIDTH, p->rank, x, room->hidden);
        else if (!p->per_head)
            ops->dense->product(vqkv__halves(p->map, row * VQKV__WIDTH + (size_t)first),
                                VQKV__WIDTH, 0, VQKV__WIDTH, n, x, out);
    }
    if (p->rank > 0)
        ops->dense->product(vqkv__halves(p->out, (size_t)first), VQKV__WIDTH, 0, p->rank, n,
                            room->hidden, out);
}

/* out [HEAD_DIM, BLOCK] += sign * what one stream holds of a head. */
static void vqkv__add_use(const vqkv *kv, const vqkv__ops *ops, int block, vqkv__use use,
                          float sign, vqkv__room *room, float *out)
{
    const vqkv__stream *s = &vqkv__streams[use.stream];
    int have = sign < 0.0f ? -2 - use.stream : use.stream; /* negative latents are others */
    if (room->have != have) {
        vqkv__decode_latents(ops, s, vqkv__codes(kv, use.stream, block), room->z);
        if (sign < 0.0f && s->transform == VQKV__BASIS)
            ops->shrink(room->z, (size_t)s->n_latents * VQKV_BLOCK, -1.0f);
        room->have = have;
    }
    vqkv__add_member(ops, s, use.member, sign, room->z, out);
}

/* Some heads of a node, in their slot: keys in the frame that they were coded in. Streams outside,
 * heads inside, so that latents which several heads share are decoded once. */
static void vqkv__rebuild_node(const vqkv *kv, const vqkv__ops *ops, int block, int node, int head,
                               int n_heads, vqkv__room *room)
{
    const vqkv__node *n = &vqkv__nodes[node];
    float *out = vqkv__slot_of(room, node) + (size_t)head * VQKV__HEAD_FLOATS;
    int u, h, n_uses, more = 1;
    if (n->prediction >= 0)
        vqkv__predict(ops, room, n->prediction, head, n_heads, out);
    else
        memset(out, 0, sizeof(float) * (size_t)n_heads * VQKV__HEAD_FLOATS);
    for (u = 0; more; u++) {
        more = 0;
        for (h = 0; h < n_heads; h++) {
            const vqkv__use *use = vqkv__uses_of(n->part, n->layer, head + h, &n_uses);
            if (u < n_uses)
                vqkv__add_use(kv, ops, block, use[u], 1.0f, room,
                              out + (size_t)h * VQKV__HEAD_FLOATS);
            more |= u + 1 < n_uses;
        }
    }
}

/* The frame that the keys of a layer's head were coded in. */
static inline int vqkv__frame_of(int part, int layer, int head)
{
    int n;
    return vqkv__streams[vqkv__uses_of(part, layer, head, &n)[0].stream].frame;
}

/* x [HEAD_DIM, BLOCK] of a block's head from its frame into rotation by the tokens' positions
 * (direction 1) or back (-1); y may be x. */
static void vqkv__turn_tile(const vqkv *kv, const vqkv__ops *ops, int frame, int position,
                            float direction, const float *x, float *y)
{
    float cs[VQKV_N_ROT + 1] = {0.0f};
    if (frame != VQKV__POST) {
        vqkv__frame_angles(frame, position, cs);
        ops->dense->turn_tile(cs, frame == VQKV__PRE ? vqkv__turns(kv) : NULL, direction, x, y);
    } else if (x != y) {
        memcpy(y, x, sizeof(float) * VQKV__HEAD_FLOATS);
    }
}

/* Takes some heads of a node that is in its slot to out [n_heads, HEAD_DIM, BLOCK], keys rotated,
 * and what is on the exact list as it is there. */
static void vqkv__hand_out(const vqkv *kv, const vqkv__ops *ops, vqkv__entry entry, int node,
                           int head, int n_heads, const vqkv__room *room, float *out)
{
    const vqkv__node *n = &vqkv__nodes[node];
    int h;
    for (h = head; h < head + n_heads; h++, out += VQKV__HEAD_FLOATS) {
        vqkv__turn_tile(kv, ops, vqkv__frame_of(n->part, n->layer, h), entry.position, 1.0f,
                        vqkv__slot_of(room, node) + (size_t)h * VQKV__HEAD_FLOATS, out);
        if (VQKV__KEEPS)
            vqkv__place_kept(kv, n->part, n->layer, h, entry.block, out);
    }
}

/* K and V of some heads of one layer and block: k, v [n_heads, HEAD_DIM, BLOCK], keys rotated by
 * their positions; either may be NULL. floats: [REBUILD_FLOATS]. */
static void vqkv__rebuild(const vqkv *kv, const vqkv__ops *ops, vqkv__entry entry, int layer,
                          int head, int n_heads, float *floats, float *k, float *v)
{
    enum { N = 2 * VQKV_N_LAYERS, WANTED = 1, SOURCE = 2 };
    unsigned char need[N] = {0};
    vqkv__room room = vqkv__make_room(floats);
    int i, s, top = -1;
    for (i = 0; i < N; i++)
        if (vqkv__nodes[i].layer == layer && (vqkv__nodes[i].part == VQKV_KEY ? k : v) != NULL) {
            need[i] = WANTED;
            top = i;
        }
    for (i = top; i >= 0; i--) {
        const vqkv__prediction *p = &vqkv__predictions[0];
        if (need[i] == 0 || vqkv__nodes[i].prediction < 0)
            continue;
        p += vqkv__nodes[i].prediction;
        for (s = 0; s < p->n_sources; s++)
            need[p->source[s]] |= SOURCE;
    }
    for (i = 0; i <= top; i++) {
        float *out = vqkv__nodes[i].part == VQKV_KEY ? k : v;
        if (need[i] & SOURCE)
            vqkv__rebuild_node(kv, ops, entry.block, i, 0, VQKV_N_KV_HEADS, &room);
        else if (need[i] != 0)
            vqkv__rebuild_node(kv, ops, entry.block, i, head, n_heads, &room);
        if (need[i] & WANTED)
            vqkv__hand_out(kv, ops, entry, i, head, n_heads, &room, out);
    }
}
