/* The fewest bits that keep a loss: a secant search over plans that are built and measured. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "command/fit_auto.h"
#include "command/keep.h"
#include "command/pipeline.h"
#include "eval/measure.h"

enum { WINDOWS = 2, CONTEXT = 1024, FIRST_COUNTED = 128, PURPOSE_SEEK = 2, MOST_BUILDS = 9 };

/* Bits are tried in whole multiples of this. The slope is that of ln(KL) over bits which most plans
 * have, for the first step. */
static const double grain = 0.05, slope = -1.5;

typedef struct seeker {
    const vqkvc_scheme_input *in;
    vqkvc_arena arena;
    int context;
    int32_t *windows; /* [WINDOWS, context] */
    vqkvc_hash text;
} seeker;

typedef struct loss {
    double kl, ppl; /* nats; percent */
} loss;

static vqkvc_code run_plan(const seeker *s, const vqkvc_plan *plan, loss *out, vqkvc_err *err)
{
    const char *prefix;
    vqkvc_arena arena = {0};
    vqkvc_buf header = {0};
    vqkvc_codec codec = {0};
    vqkvc_measured measured;
    vqkvc_measure_options options = {.context = s->context,
                                     .n_windows = WINDOWS,
                                     .step = 8,
                                     .first_counted = FIRST_COUNTED,
                                     .log = s->in->log};
    if (vqkvc_emit_plan(plan, "vqkvc build", "seek_kv", &arena, &prefix, &header, err) ==
            VQKVC_OK &&
        vqkvc_codec_load(&codec, plan->scheme, header.data, header.len, err) == VQKVC_OK) {
        const vqkvc_subject subject = {plan->scheme, &codec, 0};
        if (vqkvc_measure(s->in->model, s->windows, 1, &subject, &options, &measured, err) ==
            VQKVC_OK)
            *out = (loss){measured.late.kl, 100 * (measured.late.ppl_ratio - 1)};
        vqkvc_codec_free(&codec);
    }
    free(header.data);
    vqkvc_arena_free(&arena);
    return err->code;
}

/* The loss of a plan, from the store if it is there. */
static vqkvc_code find_loss(seeker *s, const vqkvc_plan *plan, loss *out, vqkvc_err *err)
{
    int found;
    vqkvc_hash hash;
    vqkvc_buf buf = {0};
    VQKVC_TRY(vqkvc_plan_hash(plan, &hash, err));
    const char *recipe =
        vqkvc_arena_printf(&s->arena, err, "loss v1;plan=%s;text=%s", hash.hex, s->text.hex);
    if (recipe == NULL)
        return err->code;
    VQKVC_TRY(vqkvc_store_fetch(s->in->db, "loss", recipe, s->in->log, &buf, &found, err));
    if (found && buf.len == sizeof *out) {
        memcpy(out, buf.data, sizeof *out);
    } else if (run_plan(s, plan, out, err) == VQKVC_OK) {
        buf.len = 0;
        vqkvc_buf_put(&buf, out, sizeof *out);
        vqkvc_store_keep(s->in->db, "loss", recipe, &s->in->geometry->weights_hash, 1,
                         s->in->parent, &buf, err);
    }
    free(buf.data);
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

static double on_grain(double bits)
{
    return fmin(fmax(ceil(bits / grain - 1e-6) * grain, 2 * grain), 8);
}

/* What is known: too few bits and enough of them, with their excess; 0 bits: none yet. */
typedef struct bracket {
    double low, low_excess, high, high_excess;
} bracket;

/* The bits to try next, or 0 when there is nothing left between. */
static double next_bits(const bracket *b)
{
    if (b->high == 0)
        return b->low >= 8 ? 0 : on_grain(b->low + fmax(b->low_excess / -slope, grain));
    if (b->low == 0) {
        double bits = on_grain(b->high + fmin(b->high_excess / -slope, -grain));
        return bits >= b->high - grain / 2 ? 0 : bits;
    }
    if (b->high - b->low < 1.5 * grain)
        return 0;
    double share = b->low_excess / (b->low_excess - b->high_excess);
    double bits = on_grain(b->low + fmin(fmax(share, 0.1), 0.9) * (b->high - b->low));
    return bits >= b->high - grain / 2 ? b->high - grain : bits;
}

/* Builds and measures plans until no bits are left to try; *bits: the fewest that do. */
static vqkvc_code close_in(seeker *s, const vqkvc_auto_params *params, double *bits, vqkvc_err *err)
{
    bracket b = {0};
    vqkvc_auto_params p = *params;
    loss l = {0};
    p.bits = on_grain(params->bits > 0 ? params->bits : 2);
    for (int i = 0; i < MOST_BUILDS && p.bits > 0; i++) {
        vqkvc_plan plan = {0};
        if (vqkvc_plan_auto(&plan, s->in->capture, &p, s->in->db, s->in->parent, s->in->log, err) ==
            VQKVC_OK)
            find_loss(s, &plan, &l, err);
        vqkvc_plan_free(&plan);
        VQKVC_TRY(err->code);
        vqkvc_say(s->in->log, 0, "seek: %.4g bits cost %.3g nats, perplexity %+.3f %%", p.bits,
                  l.kl, l.ppl);
        double e = excess(s->in->options, &l);
        if (e > 0)
            b.low = p.bits, b.low_excess = e;
        else
            b.high = p.bits, b.high_excess = e;
        p.bits = next_bits(&b);
    }
    *bits = b.high;
    if (b.high == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "no plan of up to %.4g bits keeps the loss: it is %.3g nats and %.3f %% "
                          "of perplexity there",
                          b.low, l.kl, l.ppl);
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
    size_t n = WINDOWS * (size_t)s.context;
    s.windows = vqkvc_alloc(n, sizeof *s.windows, err);
    if (s.windows != NULL &&
        vqkvc_side_text(in, PURPOSE_SEEK, WINDOWS, s.context, s.windows, err) == VQKVC_OK) {
        s.text = vqkvc_hash_bytes(s.windows, n * sizeof *s.windows);
        if (close_in(&s, params, &p.bits, err) == VQKVC_OK)
            vqkvc_plan_auto(plan, in->capture, &p, in->db, in->parent, in->log, err);
    }
    free(s.windows);
    vqkvc_arena_free(&s.arena);
    return err->code;
}
