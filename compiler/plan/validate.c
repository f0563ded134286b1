/* What a plan must be before anything relies on it: whatever a file says, the rest of the compiler
 * computes with counts and offsets that were checked here. */
#include "plan/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bounds that keep every product of counts inside an int, whatever a file says, and what the index
 * of an outlier holds. */
enum { MAX_WINDOW = 1 << 20, MAX_ROWS_COLS = 1 << 28, MAX_INDEX = 1 << 16 };

#define REQUIRE(condition, ...)                                                                    \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return vqkvc_fail(err, VQKVC_E_FORMAT, __VA_ARGS__);                                   \
    } while (0)

/* A range check of an integer field that names it. */
#define REQUIRE_RANGE(value, lo, hi, what)                                                         \
    REQUIRE((value) >= (lo) && (value) <= (hi), what " is %d, not in %d..%d", (int)(value),        \
            (int)(lo), (int)(hi))

static int hash_is_sound(const vqkvc_hash *hash)
{
    size_t n = strnlen(hash->hex, sizeof hash->hex);
    return n == 0 || (n == 32 && strspn(hash->hex, "0123456789abcdef") == 32);
}

static vqkvc_code check_rope(const vqkvc_geometry *g, vqkvc_err *err)
{
    REQUIRE((int)g->rope_layout >= VQKVC_ROPE_NONE && g->rope_layout <= VQKVC_ROPE_HALVES,
            "geometry: rope_layout is %d", (int)g->rope_layout);
    REQUIRE_RANGE(g->n_rot, 0, g->head_dim, "geometry: n_rot");
    REQUIRE(g->n_rot % 2 == 0, "geometry: n_rot is odd (%d)", g->n_rot);
    for (int i = 0; i < g->n_rot / 2; i++)
        REQUIRE(isfinite(g->rope_freq[i]), "geometry: rope_freq[%d] is not finite", i);
    REQUIRE(isfinite(g->rope_mscale) && g->rope_mscale > 0,
            "geometry: rope_mscale is %g, not positive", (double)g->rope_mscale);
    return VQKVC_OK;
}

static vqkvc_code check_geometry(const vqkvc_geometry *g, vqkvc_err *err)
{
    REQUIRE(memchr(g->name, 0, sizeof g->name) != NULL, "geometry: name has no end");
    REQUIRE(memchr(g->arch, 0, sizeof g->arch) != NULL, "geometry: arch has no end");
    REQUIRE_RANGE(g->n_layers, 1, VQKVC_MAX_LAYERS, "geometry: n_layers");
    REQUIRE(g->d_model >= 0, "geometry: d_model is negative");
    REQUIRE_RANGE(g->n_heads, 1, VQKVC_MAX_HEADS, "geometry: n_heads");
    REQUIRE_RANGE(g->n_kv_heads, 1, VQKVC_MAX_HEADS, "geometry: n_kv_heads");
    REQUIRE(g->n_heads % g->n_kv_heads == 0,
            "geometry: n_heads (%d) is no multiple of n_kv_heads (%d)", g->n_heads, g->n_kv_heads);
    REQUIRE_RANGE(g->head_dim, 1, VQKVC_MAX_HEAD_DIM, "geometry: head_dim");
    VQKVC_TRY(check_rope(g, err));
    REQUIRE(g->sliding_window >= 0, "geometry: sliding_window is negative");
    REQUIRE(g->n_ctx_train >= 0, "geometry: n_ctx_train is negative");
    REQUIRE(hash_is_sound(&g->weights_hash), "geometry: weights_hash is no hash");
    return VQKVC_OK;
}

static vqkvc_code check_head(const vqkvc_plan *plan, vqkvc_err *err)
{
    REQUIRE(memchr(plan->scheme, 0, sizeof plan->scheme) != NULL && plan->scheme[0] != '\0',
            "scheme has no name");
    VQKVC_TRY(check_geometry(&plan->geometry, err));
    REQUIRE_RANGE(plan->n_sink, 0, MAX_WINDOW, "n_sink");
    REQUIRE_RANGE(plan->n_recent, 0, MAX_WINDOW, "n_recent");
    REQUIRE_RANGE(plan->block, 16, 256, "block");
    REQUIRE((plan->block & (plan->block - 1)) == 0, "block (%d) is no power of two", plan->block);
    for (int i = 0; i < VQKVC_MAX_HEAD_DIM / 2; i++) {
        REQUIRE(plan->stretch[i] <= VQKVC_MAX_STRETCH || plan->stretch[i] == VQKVC_STRETCH_ENDLESS,
                "stretch of pair %d is %d, not 0..%d or %d", i, plan->stretch[i], VQKVC_MAX_STRETCH,
                VQKVC_STRETCH_ENDLESS);
        REQUIRE(plan->stretch[i] == 0 || i < plan->geometry.n_rot / 2,
                "stretch of pair %d is %d, but there are %d pairs", i, plan->stretch[i],
                plan->geometry.n_rot / 2);
    }
    REQUIRE(plan->landmarks == 0 || plan->landmarks == 8 || plan->landmarks == 16 ||
                plan->landmarks == 32,
            "landmarks (%d): wanted 0, 8, 16 or 32", plan->landmarks);
    REQUIRE(plan->landmarks <= plan->block, "landmarks (%d) are longer than a block (%d)",
            plan->landmarks, plan->block);
    REQUIRE(plan->max_error == 0 || (plan->max_error >= 0.01f && plan->max_error <= 16),
            "max_error (%g) is not in 0.01..16", (double)plan->max_error);
    REQUIRE(plan->kept_rate >= 0 && plan->kept_rate <= 1, "kept_rate (%g) is not in 0..1",
            plan->kept_rate);
    REQUIRE(hash_is_sound(&plan->calibration), "calibration is no hash");
    return VQKVC_OK;
}

static vqkvc_code check_table(const vqkvc_table *t, vqkvc_err *err)
{
    REQUIRE(t->name != NULL, "it has no name");
    REQUIRE(t->rows >= 1 && t->cols >= 1 && (int64_t)t->rows * t->cols <= MAX_ROWS_COLS &&
                (t->f16 != NULL) != (t->bytes != NULL),
            "shape [%d, %d] is out of range", t->rows, t->cols);
    size_t n = (size_t)t->rows * t->cols;
    if (t->bytes != NULL) {
        REQUIRE(t->scale_rows >= 1 && t->rows % t->scale_rows == 0 && t->scale != NULL,
                "scale_rows (%d) do not divide %d rows", t->scale_rows, t->rows);
        n /= (size_t)t->scale_rows;
    } else {
        REQUIRE(t->scale_rows == 0, "scale_rows is %d, but values are binary16", t->scale_rows);
    }
    const uint16_t *words = t->bytes != NULL ? t->scale : t->f16;
    for (size_t i = 0; i < n; i++)
        REQUIRE((words[i] & 0x7c00u) != 0x7c00u, "%s [%zu, %zu] is not finite",
                t->bytes != NULL ? "scale" : "value", i / (size_t)t->cols, i % (size_t)t->cols);
    return VQKVC_OK;
}

/* The index names a table of exactly this shape, -1 none if it is optional. */
static vqkvc_code check_rows_cols(const vqkvc_plan *plan, int index, int optional, int64_t rows,
                                  int64_t cols, const char *what, vqkvc_err *err)
{
    if (index == -1 && optional)
        return VQKVC_OK;
    REQUIRE(index >= 0 && index < plan->n_tables, "%s: table %d does not exist", what, index);
    const vqkvc_table *t = &plan->tables[index];
    REQUIRE(t->rows == rows && t->cols == cols, "%s: table %s is [%d, %d], not [%lld, %lld]", what,
            t->name, t->rows, t->cols, (long long)rows, (long long)cols);
    return VQKVC_OK;
}

/* The same of a table in binary16. */
static vqkvc_code check_shape(const vqkvc_plan *plan, int index, int optional, int64_t rows,
                              int64_t cols, const char *what, vqkvc_err *err)
{
    VQKVC_TRY(check_rows_cols(plan, index, optional, rows, cols, what, err));
    REQUIRE(index < 0 || plan->tables[index].bytes == NULL,
            "%s: table %s is in bytes, as only bases are", what, plan->tables[index].name);
    return VQKVC_OK;
}

/* The bases of a stream: alike, and with scales of their own for each member if in bytes. */
static vqkvc_code check_bases(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_err *err)
{
    VQKVC_TRY(check_rows_cols(plan, s->enc, 0, s->n_in, s->n_latents, "enc", err));
    VQKVC_TRY(check_rows_cols(plan, s->dec, 0, s->n_in, s->n_latents, "dec", err));
    int enc = plan->tables[s->enc].scale_rows, dec = plan->tables[s->dec].scale_rows;
    REQUIRE(enc == dec, "enc has scales for %d rows, dec for %d", enc, dec);
    REQUIRE(enc == 0 || enc == plan->geometry.head_dim,
            "enc: scales are for %d rows, not for a head of %d", enc, plan->geometry.head_dim);
    return VQKVC_OK;
}

/* Frames of all members seen so far: 0 or 1 + frame, [2, n_layers, n_kv_heads]. */
static uint8_t *slot_of(const vqkvc_plan *plan, uint8_t *slots, const vqkvc_member *m)
{
    const vqkvc_geometry *g = &plan->geometry;
    return &slots[((size_t)(m->part == VQKVC_PART_V) * g->n_layers + m->layer) * g->n_kv_heads +
                  m->head];
}

static vqkvc_code check_members(const vqkvc_plan *plan, const vqkvc_stream *s, uint8_t *slots,
                                vqkvc_err *err)
{
    REQUIRE((int)s->frame >= 0 && vqkvc_frame_word(s->frame) != NULL, "frame is %d", (int)s->frame);
    REQUIRE(s->n_members >= 1 && s->members != NULL, "it has no members");
    for (int i = 0; i < s->n_members; i++) {
        const vqkvc_member *m = &s->members[i], *before = i == 0 ? NULL : m - 1;
        REQUIRE(m->part == VQKVC_PART_K || m->part == VQKVC_PART_V, "member %d: part is %d", i,
                (int)m->part);
        REQUIRE(m->part == s->members[0].part, "member %d: K and V are mixed", i);
        REQUIRE(m->layer >= 0 && m->layer < plan->geometry.n_layers, "member %d: layer %d of %d", i,
                m->layer, plan->geometry.n_layers);
        REQUIRE(m->head >= 0 && m->head < plan->geometry.n_kv_heads, "member %d: head %d of %d", i,
                m->head, plan->geometry.n_kv_heads);
        REQUIRE(before == NULL || m->layer > before->layer ||
                    (m->layer == before->layer && m->head > before->head),
                "member %d: layer %d head %d is out of order or named twice", i, m->layer, m->head);
        REQUIRE(m->part == VQKVC_PART_K || s->frame == VQKVC_FRAME_POST,
                "frame of values is %s, not post", vqkvc_frame_word(s->frame));
        uint8_t *slot = slot_of(plan, slots, m);
        REQUIRE(*slot == 0 || *slot == (uint8_t)(1 + s->frame),
                "frame is %s, but an earlier stream codes K of layer %d head %d in frame %s",
                vqkvc_frame_word(s->frame), m->layer, m->head, vqkvc_frame_word(*slot - 1));
        *slot = (uint8_t)(1 + s->frame);
    }
    return VQKVC_OK;
}

static vqkvc_code check_transform(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_err *err)
{
    REQUIRE(s->n_in == (int64_t)s->n_members * plan->geometry.head_dim,
            "n_in is %d, but %d members have %d channels each", s->n_in, s->n_members,
            plan->geometry.head_dim);
    REQUIRE_RANGE(s->n_latents, 1, s->n_in, "n_latents");
    VQKVC_TRY(check_shape(plan, s->mean, 1, 1, s->n_in, "mean", err));
    switch (s->transform) {
    case VQKVC_TRANSFORM_BASIS:
        return check_bases(plan, s, err);
    case VQKVC_TRANSFORM_HADAMARD:
        REQUIRE((s->n_in & (s->n_in - 1)) == 0,
                "transform is hadamard, but n_in (%d) is no power of two", s->n_in);
        break;
    case VQKVC_TRANSFORM_IDENTITY:
        break;
    default:
        return vqkvc_fail(err, VQKVC_E_FORMAT, "transform is %d", (int)s->transform);
    }
    REQUIRE(s->n_latents == s->n_in, "transform is %s, but n_latents (%d) is not n_in (%d)",
            vqkvc_transform_word(s->transform), s->n_latents, s->n_in);
    REQUIRE(s->enc == -1 && s->dec == -1, "transform is %s, but has enc or dec tables",
            vqkvc_transform_word(s->transform));
    return VQKVC_OK;
}

/* Whether a gain is of several tokens, with an offset or a shift beside it. */
static int is_range(vqkvc_gain gain)
{
    return gain == VQKVC_GAIN_RANGE || gain == VQKVC_GAIN_NSN;
}

static vqkvc_code check_gain(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_err *err)
{
    REQUIRE((int)s->gain >= 0 && vqkvc_gain_word(s->gain) != NULL, "gain is %d", (int)s->gain);
    REQUIRE_RANGE(s->gain_tokens, 1, is_range(s->gain) ? plan->block : 1, "gain_tokens");
    REQUIRE(plan->block % s->gain_tokens == 0, "gain_tokens (%d) does not divide the block (%d)",
            s->gain_tokens, plan->block);
    if (s->gain == VQKVC_GAIN_NONE)
        return VQKVC_OK;
    REQUIRE(s->gain_bits == 8 || s->gain_bits == 16, "gain_bits is %d, not 8 or 16", s->gain_bits);
    REQUIRE_RANGE(s->gain_width, 1, s->n_latents, "gain_width");
    REQUIRE(s->n_latents % s->gain_width == 0, "gain_width (%d) does not divide n_latents (%d)",
            s->gain_width, s->n_latents);
    if (s->gain_bits == 16)
        return VQKVC_OK;
    REQUIRE(s->gain != VQKVC_GAIN_SIGNMAX, "gain signmax has a sign, which 8 bits do not hold");
    REQUIRE(!is_range(s->gain), "gain %s takes 16 bits, not 8", vqkvc_gain_word(s->gain));
    /* All 256 gains are normal floats. */
    REQUIRE(s->gain_step > 0 && s->gain_lo >= -100 && s->gain_lo + 255 * s->gain_step <= 100,
            "gain_lo %g and gain_step %g are out of range", (double)s->gain_lo,
            (double)s->gain_step);
    return VQKVC_OK;
}

static vqkvc_code check_outliers(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_err *err)
{
    REQUIRE_RANGE(s->outliers, 0, s->n_latents, "outliers");
    REQUIRE(s->outliers == 0 || s->n_latents <= MAX_INDEX,
            "outliers of %d latents, %d at most have an index", s->n_latents, MAX_INDEX);
    REQUIRE(s->outliers > 0 || s->spread == -1, "spread: there are no outliers");
    return check_shape(plan, s->spread, 1, 2, s->n_latents, "spread", err);
}

static vqkvc_code check_book(const vqkvc_plan *plan, const vqkvc_run *r, vqkvc_err *err)
{
    REQUIRE(r->book >= 0 && r->book < plan->n_tables, "book: table %d does not exist", r->book);
    const vqkvc_table *t = &plan->tables[r->book];
    int64_t cols = (int64_t)r->width << r->bits, rows = (int64_t)r->groups * r->stages;
    REQUIRE(t->cols == cols && (t->rows == rows || t->rows == r->stages),
            "book: table %s is [%d, %d], not [%lld, %lld] or [%d, %lld]", t->name, t->rows, t->cols,
            (long long)rows, (long long)cols, r->stages, (long long)cols);
    return VQKVC_OK;
}

static vqkvc_code check_coder(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_run *r,
                              vqkvc_err *err)
{
    int max_gain = s->gain == VQKVC_GAIN_ABSMAX || s->gain == VQKVC_GAIN_SIGNMAX;
    REQUIRE(!max_gain || r->coder == VQKVC_CODER_UNI, "gain %s is for coder uni only",
            vqkvc_gain_word(s->gain));
    if (r->coder == VQKVC_CODER_VQ) {
        REQUIRE_RANGE(r->bits, 1, 16, "bits");
        REQUIRE_RANGE(r->stages, 1, VQKVC_MAX_STAGES, "stages");
        REQUIRE_RANGE(r->beam, 0, VQKVC_MAX_BEAM, "beam");
        REQUIRE(r->beam <= 1 || r->width <= VQKVC_MAX_BEAM_WIDTH,
                "beam is for groups of %d channels at most, not %d", VQKVC_MAX_BEAM_WIDTH,
                r->width);
        return check_book(plan, r, err);
    }
    REQUIRE(s->gain != VQKVC_GAIN_NSN, "gain nsn is for coder vq only");
    REQUIRE(r->width == 1 && r->stages == 1 && r->book == -1 && r->beam >= 0 && r->beam <= 1,
            "coder %s has width 1, 1 stage, no beam and no book", vqkvc_coder_word(r->coder));
    if (r->coder == VQKVC_CODER_F16) {
        REQUIRE(r->bits == 16, "bits of coder f16 is %d, not 16", r->bits);
        REQUIRE(s->gain == VQKVC_GAIN_NONE, "coder f16 takes no gain");
        return VQKVC_OK;
    }
    REQUIRE_RANGE(r->bits, 1, 8, "bits");
    REQUIRE(s->gain != VQKVC_GAIN_ABSMAX || r->bits >= 2, "gain absmax takes 2 bits at least");
    return VQKVC_OK;
}

static vqkvc_code check_run(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_run *r,
                            int first, vqkvc_err *err)
{
    REQUIRE((int)r->coder >= 0 && vqkvc_coder_word(r->coder) != NULL, "coder is %d", (int)r->coder);
    REQUIRE(r->first == first, "first is %d, but the run before ends at %d", r->first, first);
    REQUIRE_RANGE(r->groups, 1, s->n_latents, "groups");
    REQUIRE_RANGE(r->width, 1, s->n_latents, "width");
    int64_t end = first + (int64_t)r->groups * r->width;
    REQUIRE(end <= s->n_latents, "it ends at latent %lld of %d", (long long)end, s->n_latents);
    REQUIRE(s->gain == VQKVC_GAIN_NONE || first / s->gain_width == (end - 1) / s->gain_width,
            "latents %d..%lld are in two gain groups (gain_width %d)", first, (long long)end - 1,
            s->gain_width);
    return check_coder(plan, s, r, err);
}

static vqkvc_code check_runs(const vqkvc_plan *plan, const vqkvc_stream *s, vqkvc_err *err)
{
    REQUIRE(s->n_runs >= 1 && s->runs != NULL, "it has no runs");
    int first = 0;
    for (int i = 0; i < s->n_runs; i++) {
        const vqkvc_run *r = &s->runs[i];
        if (check_run(plan, s, r, first, err) != VQKVC_OK) {
            vqkvc_err_prefix(err, "run %d", i);
            return err->code;
        }
        /* The divisor of these gains follows from coder and bits, which one group shares. */
        int divided = s->gain == VQKVC_GAIN_ABSMAX || s->gain == VQKVC_GAIN_SIGNMAX ||
                      s->gain == VQKVC_GAIN_RANGE;
        int inside = divided && first % s->gain_width != 0;
        REQUIRE(!inside || r->coder == r[-1].coder, "run %d: coders differ inside a gain group", i);
        REQUIRE(!inside || r->coder == VQKVC_CODER_VQ || r->bits == r[-1].bits,
                "run %d: bits differ inside a gain group", i);
        first += r->groups * r->width;
    }
    REQUIRE(first == s->n_latents, "runs cover %d of %d latents", first, s->n_latents);
    return VQKVC_OK;
}

static vqkvc_code check_stream(const vqkvc_plan *plan, const vqkvc_stream *s, uint8_t *slots,
                               vqkvc_err *err)
{
    REQUIRE(s->name != NULL, "it has no name");
    VQKVC_TRY(check_members(plan, s, slots, err));
    VQKVC_TRY(check_transform(plan, s, err));
    VQKVC_TRY(check_gain(plan, s, err));
    VQKVC_TRY(check_outliers(plan, s, err));
    return check_runs(plan, s, err);
}

static vqkvc_code check_coverage(const vqkvc_plan *plan, uint8_t *slots, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    for (int part = VQKVC_PART_K; part <= VQKVC_PART_V; part++)
        for (int layer = 0; layer < g->n_layers; layer++)
            for (int head = 0; head < g->n_kv_heads; head++) {
                vqkvc_member m = {(vqkvc_part)part, layer, head};
                REQUIRE(*slot_of(plan, slots, &m) != 0, "no stream holds %s of layer %d head %d",
                        vqkvc_part_word(part), layer, head);
            }
    return VQKVC_OK;
}

static vqkvc_code check_streams(const vqkvc_plan *plan, uint8_t *slots, vqkvc_err *err)
{
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        if (check_stream(plan, s, slots, err) != VQKVC_OK) {
            vqkvc_err_prefix(err, "stream %d (%.100s)", i, s->name == NULL ? "" : s->name);
            return err->code;
        }
    }
    return check_coverage(plan, slots, err);
}

/* First and last stream of every part of every layer. */
typedef struct places {
    int first[2][VQKVC_MAX_LAYERS], last[2][VQKVC_MAX_LAYERS];
} places;

static void find_places(const vqkvc_plan *plan, places *at)
{
    for (int i = plan->n_streams - 1; i >= 0; i--) {
        const vqkvc_stream *s = &plan->streams[i];
        for (int m = 0; m < s->n_members; m++)
            at->first[s->members[m].part][s->members[m].layer] = i;
    }
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        for (int m = 0; m < s->n_members; m++)
            at->last[s->members[m].part][s->members[m].layer] = i;
    }
}

static vqkvc_code check_sources(const vqkvc_plan *plan, const vqkvc_prediction *p, const places *at,
                                vqkvc_err *err)
{
    REQUIRE_RANGE(p->n_sources, 1, 2, "n_sources");
    for (int i = 0; i < p->n_sources; i++) {
        const vqkvc_prediction_source *from = &p->sources[i];
        REQUIRE(from->part == VQKVC_PART_K || from->part == VQKVC_PART_V, "source %d: part is %d",
                i, (int)from->part);
        REQUIRE(from->layer >= 0 && from->layer < plan->geometry.n_layers,
                "source %d: layer %d of %d", i, from->layer, plan->geometry.n_layers);
        REQUIRE(i == 0 || from->part != from[-1].part || from->layer != from[-1].layer,
                "source 1 is source 0 again");
        REQUIRE(at->last[from->part][from->layer] < at->first[p->part][p->layer],
                "source %d: stream %d of %s of layer %d is not before stream %d of the target", i,
                at->last[from->part][from->layer], vqkvc_part_word(from->part), from->layer,
                at->first[p->part][p->layer]);
    }
    return VQKVC_OK;
}

static vqkvc_code check_maps(const vqkvc_plan *plan, const vqkvc_prediction *p, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    int d = g->n_kv_heads * g->head_dim, rows = p->n_sources * d;
    REQUIRE(p->per_head == 0 || p->per_head == 1, "per_head is %d", p->per_head);
    VQKVC_TRY(check_shape(plan, p->bias, 0, 1, d, "bias", err));
    if (p->per_head) {
        REQUIRE(p->out == -1, "out: it is predicted per head, in full rank");
        return check_shape(plan, p->map, 0, rows, g->head_dim, "map", err);
    }
    if (p->out == -1)
        return check_shape(plan, p->map, 0, rows, d, "map", err);
    REQUIRE(p->out >= 0 && p->out < plan->n_tables, "out: table %d does not exist", p->out);
    int rank = plan->tables[p->out].rows;
    REQUIRE(rank <= d, "out: table %s has rank %d, over %d", plan->tables[p->out].name, rank, d);
    VQKVC_TRY(check_shape(plan, p->out, 0, rank, d, "out", err));
    return check_shape(plan, p->map, 0, rows, rank, "map", err);
}

/* `before` is NULL or the prediction that stands before it. */
static vqkvc_code check_prediction(const vqkvc_plan *plan, const vqkvc_prediction *p,
                                   const vqkvc_prediction *before, const places *at, vqkvc_err *err)
{
    REQUIRE(p->part == VQKVC_PART_K || p->part == VQKVC_PART_V, "part is %d", (int)p->part);
    REQUIRE(p->layer >= 0 && p->layer < plan->geometry.n_layers, "layer %d of %d", p->layer,
            plan->geometry.n_layers);
    REQUIRE(before == NULL || before->layer < p->layer ||
                (before->layer == p->layer && before->part < p->part),
            "%s of layer %d is out of order or named twice", vqkvc_part_word(p->part), p->layer);
    VQKVC_TRY(check_sources(plan, p, at, err));
    for (int i = at->first[p->part][p->layer]; i <= at->last[p->part][p->layer]; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        int holds = 0, others = 0;
        for (int m = 0; m < s->n_members; m++) {
            int same = s->members[m].part == p->part && s->members[m].layer == p->layer;
            holds |= same;
            others |= !same;
        }
        REQUIRE(!holds || !others, "stream %d (%.100s) of the target holds other layers too", i,
                s->name);
    }
    return check_maps(plan, p, err);
}

static vqkvc_code check_predictions(const vqkvc_plan *plan, vqkvc_err *err)
{
    const vqkvc_prediction *before = NULL;
    places at;
    REQUIRE_RANGE(plan->n_predictions, 0, 2 * plan->geometry.n_layers, "n_predictions");
    if (plan->n_predictions == 0)
        return VQKVC_OK;
    for (int i = 0; i < plan->n_streams; i++) {
        const vqkvc_stream *s = &plan->streams[i];
        REQUIRE(s->members[0].part == VQKVC_PART_V || s->frame == VQKVC_FRAME_PRE,
                "stream %d (%.100s): frame is %s, but predictions take keys in frame pre", i,
                s->name, vqkvc_frame_word(s->frame));
    }
    find_places(plan, &at);
    for (int i = 0; i < plan->n_predictions; i++) {
        if (check_prediction(plan, &plan->predictions[i], before, &at, err) != VQKVC_OK) {
            vqkvc_err_prefix(err, "prediction %d", i);
            return err->code;
        }
        before = &plan->predictions[i];
    }
    return VQKVC_OK;
}

vqkvc_code vqkvc_plan_validate(const vqkvc_plan *plan, vqkvc_err *err)
{
    VQKVC_TRY(check_head(plan, err));
    REQUIRE(plan->n_tables >= 0 && (plan->n_tables == 0 || plan->tables != NULL), "no tables");
    for (int i = 0; i < plan->n_tables; i++)
        if (check_table(&plan->tables[i], err) != VQKVC_OK) {
            const char *name = plan->tables[i].name;
            vqkvc_err_prefix(err, "table %d (%.100s)", i, name == NULL ? "" : name);
            return err->code;
        }
    REQUIRE(plan->n_streams >= 1 && plan->streams != NULL, "the plan has no streams");
    const vqkvc_geometry *g = &plan->geometry;
    uint8_t *slots = vqkvc_alloc((size_t)2 * g->n_layers * g->n_kv_heads, 1, err);
    if (slots == NULL)
        return err->code;
    vqkvc_code code = check_streams(plan, slots, err);
    free(slots);
    return code == VQKVC_OK ? check_predictions(plan, err) : code;
}
