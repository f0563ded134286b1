/* The fewest bits that keep a loss: a secant search over plans that are built and measured. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "command/fit_auto.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "model/attend_f16.h"
#include "eval/measure.h"

enum { WINDOWS = 2, CONTEXT = 1024, FIRST_COUNTED = 128, STEP = 8, MOST_BUILDS = 9 };

/* Bits are tried in whole multiples of this. The slope is that of ln(KL) over bits which most plans
 * have, for the first step. */
static const double grain = 0.05, slope = -1.5;

typedef struct seeker {
    const vqkvc_scheme_input *in;
    vqkvc_arena arena;
    int context;
    int32_t *windows; /* [WINDOWS, context] */
    vqkvc_hash text;
    double most; /* bits that are tried */
} seeker;

typedef struct loss {
    double kl, ppl; /* nats; percent */
} loss;

static vqkvc_code measure(const seeker *s, const vqkvc_plan *plan, const vqkvc_buf *header,
                          loss *out, vqkvc_err *err)
{
    vqkvc_codec codec = {0};
    vqkvc_measured measured;
    vqkvc_measure_options options = {.context = s->context,
                                     .n_windows = WINDOWS,
                                     .step = STEP,
                                     .first_counted = FIRST_COUNTED,
                                     .log = s->in->log};
    VQKVC_TRY(vqkvc_codec_load(&codec, plan->scheme, header->data, header->len, err));
    const vqkvc_subject subject = {plan->scheme, &codec, 0};
    if (vqkvc_measure(s->in->model, s->windows, 1, &subject, &options, &measured, err) == VQKVC_OK)
        *out = (loss){measured.late.kl, 100 * (measured.late.ppl_ratio - 1)};
    vqkvc_codec_free(&codec);
    return err->code;
}

/* Figures depend on the kernels in the last digits: the header's hash holds their version, and the
 * best instruction set is another on another machine. */
static const char *loss_recipe(seeker *s, const vqkvc_buf *header, vqkvc_err *err)
{
    vqkvc_hash hash = vqkvc_hash_bytes(header->data, header->len);
    return vqkvc_arena_printf(&s->arena, err, "loss v2;header=%s;text=%s;step=%d;first=%d;isa=%s",
                              hash.hex, s->text.hex, STEP, FIRST_COUNTED, vqkvc_attend_f16_isa());
}

/* The loss of an emitted plan, from the store if it is there. */
static vqkvc_code find_loss(seeker *s, const vqkvc_plan *plan, const vqkvc_buf *header, loss *out,
                            vqkvc_err *err)
{
    int found;
    vqkvc_buf buf = {0};
    const char *recipe = loss_recipe(s, header, err);
    if (recipe == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_store_fetch(s->in->db, "loss", recipe, s->in->log, &buf, &found, err));
    if (found && buf.len == sizeof *out) {
        memcpy(out, buf.data, sizeof *out);
    } else if (measure(s, plan, header, out, err) == VQKVC_OK) {
        buf.len = 0;
        vqkvc_buf_put(&buf, out, sizeof *out);
        vqkvc_store_keep(s->in->db, "loss", recipe, &s->in->geometry->weights_hash, 1,
                         s->in->parent, &buf, err);
    }
    free(buf.data);
    return err->code;
}

/* Builds the plan of some parameters and finds what it costs. */
static vqkvc_code try_plan(seeker *s, const vqkvc_auto_params *p, loss *out, vqkvc_err *err)
{
    const vqkvc_scheme_input *in = s->in;
    const char *prefix;
    vqkvc_plan plan = {0};
    vqkvc_buf header = {0};
    if (vqkvc_plan_auto(&plan, in->capture, p, in->db, in->parent, in->log, err) == VQKVC_OK &&
        vqkvc_emit_plan(&plan, "vqkvc build", "seek_kv", &s->arena, &prefix, &header, err) ==
            VQKVC_OK &&
        find_loss(s, &plan, &header, out, err) == VQKVC_OK)
        vqkvc_say(in->log, 0, "seek: %.4g bits cost %.3g nats, perplexity %+.3f %%", p->bits,
                  out->kl, out->ppl);
    free(header.data);
    vqkvc_plan_free(&plan);
    return err->code;
}

/* ln of the loss over what it may be; 0 is just allowed. */
static double excess(const vqkvc_options *o, const loss *l)
{
    double worst = -20;
    if (o->max_kl > 0)
        worst = fmax(worst, log(fmax(l->kl, 1e-9) / o->max_kl));
    if (o->max_ppl > 0)
        worst = fmax(worst, log(fmax(l->ppl, 1e-6) / o->max_ppl));
    return worst;
}

static double on_grain(const seeker *s, double bits)
{
    return fmin(fmax(ceil(bits / grain - 1e-6) * grain, 2 * grain), s->most);
}

/* What is known: too few bits and enough of them, with their excess; 0 bits: none yet. */
typedef struct bracket {
    double low, low_excess, high, high_excess;
} bracket;

/* The bits to try next, or 0 when there is nothing left between. */
static double next_bits(const seeker *s, const bracket *b)
{
    if (b->high == 0)
        return b->low >= s->most ? 0 : on_grain(s, b->low + fmax(b->low_excess / -slope, grain));
    if (b->low == 0) {
        double bits = on_grain(s, b->high + fmin(b->high_excess / -slope, -grain));
        return bits >= b->high - grain / 2 ? 0 : bits;
    }
    if (b->high - b->low < 1.5 * grain)
        return 0;
    double share = b->low_excess / (b->low_excess - b->high_excess);
    double bits = on_grain(s, b->low + fmin(fmax(share, 0.1), 0.9) * (b->high - b->low));
    return bits >= b->high - grain / 2 ? b->high - grain : bits;
}

/* Tries one rate and narrows the bracket. A rate without a plan has too few bits; by how much, no
 * loss says: the excess is one that makes the next rate the middle of the bracket. */
static vqkvc_code narrow(seeker *s, const vqkvc_auto_params *p, bracket *b, loss *l, vqkvc_err *err)
{
    vqkvc_err own = {0};
    double e = b->high > 0 ? fmax(-b->high_excess, 1) : 1;
    if (try_plan(s, p, l, &own) == VQKVC_OK)
        e = excess(s->in->options, l);
    else if (own.code == VQKVC_E_INFEASIBLE)
        vqkvc_say(s->in->log, 0, "seek: %.4g bits are too few: %s", p->bits, own.msg);
    else
        return vqkvc_fail(err, own.code, "%s", own.msg);
    if (e > 0)
        b->low = p->bits, b->low_excess = e;
    else
        b->high = p->bits, b->high_excess = e;
    return VQKVC_OK;
}

/* Builds and measures plans until no bits are left to try; *bits: the fewest that do. */
static vqkvc_code close_in(seeker *s, const vqkvc_auto_params *params, double *bits, vqkvc_err *err)
{
    bracket b = {0};
    vqkvc_auto_params p = *params;
    loss l = {INFINITY, INFINITY};
    p.bits = on_grain(s, params->bits > 0 ? params->bits : 2);
    for (int i = 0; i < MOST_BUILDS && p.bits > 0; i++) {
        VQKVC_TRY(narrow(s, &p, &b, &l, err));
        p.bits = next_bits(s, &b);
    }
    *bits = b.high;
    if (b.high == 0 && isinf(l.kl))
        return vqkvc_fail(err, VQKVC_E_INFEASIBLE,
                          "no plan of up to %.4g bits keeps the other limits", b.low);
    if (b.high == 0)
        return vqkvc_fail(err, VQKVC_E_INFEASIBLE,
                          "no plan of up to %.4g bits keeps the loss: it is %.3g nats and %.3f %% "
                          "of perplexity there",
                          b.low, l.kl, l.ppl);
    return VQKVC_OK;
}

/* Text that neither the calibration nor an evaluation sees. */
static vqkvc_code find_text(seeker *s, vqkvc_err *err)
{
    int found = 0;
    size_t n = WINDOWS * (size_t)s->context;
    s->windows = vqkvc_arena_alloc(&s->arena, n, sizeof *s->windows, err);
    if (s->windows == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_source_spare(s->in->source, WINDOWS, s->context, s->windows, &found, err));
    if (!found && s->in->source->ids != NULL)
        vqkvc_say(s->in->log, 0,
                  "seek: calibration leaves fewer than %d windows of %d tokens of %s: the loss is "
                  "measured on text that the model samples",
                  WINDOWS, s->context, s->in->source->name);
    if (!found)
        VQKVC_TRY(vqkvc_own_text(s->in, VQKVC_TEXT_SEEK, WINDOWS, s->context, s->windows, err));
    s->text = vqkvc_hash_bytes(s->windows, n * sizeof *s->windows);
    return VQKVC_OK;
}

vqkvc_code vqkvc_seek_bits(const vqkvc_scheme_input *in, const vqkvc_auto_params *params,
                           vqkvc_plan *plan, vqkvc_err *err)
{
    int trained = in->geometry->n_ctx_train;
    seeker s = {.in = in, .context = trained > 0 && trained < CONTEXT ? trained : CONTEXT};
    vqkvc_auto_params p = *params;
    if (in->model == NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--max-kl and --max-ppl are measured in the model, which a dump lacks");
    /* A plan reads no fewer bits than it stores. */
    s.most = params->max_scan > 0
                 ? fmin(VQKVC_MOST_BITS, fmax(floor(params->max_scan / grain), 2) * grain)
                 : VQKVC_MOST_BITS;
    if (find_text(&s, err) == VQKVC_OK && close_in(&s, params, &p.bits, err) == VQKVC_OK)
        vqkvc_plan_auto(plan, in->capture, &p, in->db, in->parent, in->log, err);
    vqkvc_arena_free(&s.arena);
    return err->code;
}
