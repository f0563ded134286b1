#include "plan/svdq.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "fit/fit.h"
#include "plan/calibration.h"
#include "plan/fit_stream.h"
#include "plan/preset_parts.h"

static const char published_schedule[] = "4,2,2,1,1,0,0,0"; /* sums to 10: 1.25 bits */
static const vqkvc_window usual = {.n_sink = 4, .n_recent = 32, .block = 64};

enum { DEFAULT_GROUP = 32, MAX_BITS = 8 };

/* What all layers share. */
typedef struct svdq {
    const vqkvc_capture *capture;
    const vqkvc_log *log;
    const vqkvc_fit_store *store;
    uint8_t bits[VQKVC_SVDQ_GROUPS];
    int group;
    float *x, *x_hat; /* [n_sample, d]: keys of one layer, un-rotated, and coded */
} svdq;

vqkvc_code vqkvc_svdq_schedule(const char *text, uint8_t *bits, vqkvc_err *err)
{
    int n = 0, sum = 0;
    const char *at = text;
    for (; n < VQKVC_SVDQ_GROUPS && at[0] >= '0' && at[0] <= '0' + MAX_BITS; n++) {
        bits[n] = (uint8_t)(at[0] - '0');
        sum += bits[n];
        at += at[1] == ',' && n + 1 < VQKVC_SVDQ_GROUPS ? 2 : 1;
    }
    if (n < VQKVC_SVDQ_GROUPS || *at != '\0' || strlen(text) != 2 * VQKVC_SVDQ_GROUPS - 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "schedule '%.40s': wanted the bits of %d groups, 0 to %d each, as in %s",
                          text, VQKVC_SVDQ_GROUPS, MAX_BITS, published_schedule);
    if (sum == 0)
        return vqkvc_fail(err, VQKVC_E_USAGE, "schedule '%.40s' drops every latent", text);
    return VQKVC_OK;
}

/* ---- the basis ---- */

/* mean [d], then the unit vectors u [d, d] as columns, by falling variance; all binary16. */
static vqkvc_code fit_basis(int n, int d, const float *x, uint16_t *mean_u, double *left,
                            vqkvc_err *err)
{
    vqkvc_basis basis = {0};
    double *mean = vqkvc_alloc((size_t)d, sizeof *mean, err);
    double *cov = vqkvc_alloc((size_t)d * (size_t)d, sizeof *cov, err);
    if (err->code == VQKVC_OK &&
        vqkvc_fit_moments(n, d, x, (size_t)d, NULL, mean, cov, err) == VQKVC_OK &&
        vqkvc_fit_basis(d, d, cov, NULL, 0, &basis, err) == VQKVC_OK) {
        double total = 0, head = 0;
        for (int i = 0; i < d; i++) {
            mean_u[i] = vqkvc_f32_to_f16((float)mean[i]);
            total += basis.lambda[i];
            head += i < d / 4 ? basis.lambda[i] : 0;
        }
        for (size_t i = 0; i < (size_t)d * (size_t)d; i++)
            mean_u[(size_t)d + i] = vqkvc_f32_to_f16((float)basis.enc[i]);
        *left = total > 0 ? 1 - head / total : 0;
    }
    vqkvc_basis_free(&basis);
    free(mean);
    free(cov);
    return err->code;
}

/* The same from the store, if it is there; kept there otherwise, and noted as a parent. */
static vqkvc_code basis_of(const svdq *q, vqkvc_plan *plan, int layer, uint16_t *mean_u,
                           vqkvc_err *err)
{
    int d = plan->geometry.n_kv_heads * plan->geometry.head_dim, found;
    size_t bytes = ((size_t)d + (size_t)d * (size_t)d) * sizeof *mean_u;
    char recipe[160];
    double left = 0;
    snprintf(recipe, sizeof recipe, VQKVC_FIT_VERSION " svdq basis layer=%d from=%s", layer,
             q->store->parent.hex);
    VQKVC_TRY(vqkvc_fit_find(q->store, "basis", recipe, bytes, mean_u, &found, err));
    if (!found) {
        VQKVC_TRY(fit_basis(q->capture->n_sample, d, q->x, mean_u, &left, err));
        VQKVC_TRY(vqkvc_fit_keep(q->store, "basis", recipe, &q->store->parent,
                                 "variance outside the first quarter of the latents", left, mean_u,
                                 bytes, err));
    }
    vqkvc_hash fitted = kvdb_recipe_hash("basis", recipe);
    return vqkvc_plan_add_parent(plan, &fitted, err);
}

/* ---- one layer ---- */

/* The columns of u whose group has bits become the tables of the stream; widths [d] out. */
static vqkvc_code add_tables(const svdq *q, vqkvc_plan *plan, vqkvc_stream *s, int layer,
                             const uint16_t *mean_u, uint8_t *widths, vqkvc_err *err)
{
    int d = s->n_in, n = 0;
    for (int c = 0; c < d; c++)
        if (q->bits[c / (d / VQKVC_SVDQ_GROUPS)] > 0)
            widths[n++] = q->bits[c / (d / VQKVC_SVDQ_GROUPS)];
    s->n_latents = n;
    s->mean = vqkvc_plan_add_table(plan, 1, d, err, "mean K %d", layer);
    s->enc = s->dec = vqkvc_plan_add_table(plan, d, n, err, "basis K %d", layer);
    if (err->code != VQKVC_OK)
        return err->code;
    memcpy(plan->tables[s->mean].f16, mean_u, (size_t)d * sizeof *mean_u);
    uint16_t *to = plan->tables[s->enc].f16;
    for (int row = 0; row < d; row++)
        for (int c = 0; c < d; c++)
            if (q->bits[c / (d / VQKVC_SVDQ_GROUPS)] > 0)
                *to++ = mean_u[(size_t)d + (size_t)row * (size_t)d + (size_t)c];
    return VQKVC_OK;
}

static vqkvc_code add_keys(const svdq *q, vqkvc_plan *plan, int layer, vqkvc_err *err)
{
    vqkvc_stream *s = vqkvc_preset_joined(plan, VQKVC_PART_K, layer, err);
    if (s == NULL)
        return err->code;
    size_t d = (size_t)s->n_in;
    uint16_t *mean_u = vqkvc_alloc(d + d * d, sizeof *mean_u, err);
    uint8_t *widths = vqkvc_alloc(d, 1, err);
    s->frame = VQKVC_FRAME_PRE;
    s->transform = VQKVC_TRANSFORM_BASIS;
    if (err->code == VQKVC_OK && basis_of(q, plan, layer, mean_u, err) == VQKVC_OK &&
        add_tables(q, plan, s, layer, mean_u, widths, err) == VQKVC_OK)
        vqkvc_preset_centres(plan, s, 1, q->group, widths, err);
    free(mean_u);
    free(widths);
    return err->code;
}

/* ---- the claim ---- */

void vqkvc_svdq_claim_text(const vqkvc_svdq_claim *claim, int layer, char *dst, size_t size)
{
    snprintf(dst, size,
             "K %d: %.2f bits leave %.2f %% of the variance, uniform channels %.2f %%: %.2fx "
             "(claimed: 0.1x at most)",
             layer, claim->bits, 100 * claim->error, 100 * claim->per_channel,
             claim->per_channel > 0 ? claim->error / claim->per_channel : 1);
}

/* |x - x^|^2 over |x - mean|^2 of the sample. */
static double relative_error(const svdq *q, int d)
{
    double left = 0, spread = 0;
    int n = q->capture->n_sample;
    for (int c = 0; c < d; c++) {
        double sum = 0, square = 0;
        for (int i = 0; i < n; i++) {
            size_t at = (size_t)i * (size_t)d + (size_t)c;
            double x = (double)q->x[at], e = x - (double)q->x_hat[at];
            sum += x;
            square += x * x;
            left += e * e;
        }
        spread += square - sum * sum / n;
    }
    return spread > 0 ? left / spread : 0;
}

/* The error of uniform levels of each channel, `bits` a code. */
static vqkvc_code error_per_channel(const svdq *q, const vqkvc_geometry *g, int bits, double *error,
                                    vqkvc_err *err)
{
    vqkvc_plan plan = {.geometry = *g};
    int d = g->n_kv_heads * g->head_dim;
    uint8_t *widths = vqkvc_alloc((size_t)d, 1, err);
    vqkvc_stream *s = vqkvc_preset_joined(&plan, VQKVC_PART_K, 0, err);
    if (err->code == VQKVC_OK) {
        memset(widths, bits, (size_t)d);
        if (vqkvc_preset_centres(&plan, s, 1, q->group, widths, err) == VQKVC_OK &&
            vqkvc_stream_apply(&plan, s, q->capture->n_sample, q->x, q->x_hat, NULL, err) ==
                VQKVC_OK)
            *error = relative_error(q, d);
    }
    free(widths);
    vqkvc_plan_free(&plan);
    return err->code;
}

static vqkvc_code check_claim(const svdq *q, const vqkvc_plan *plan, int layer,
                              vqkvc_svdq_claim *claim, vqkvc_err *err)
{
    const vqkvc_stream *s = &plan->streams[plan->n_streams - 1];
    char text[160];
    double below = 1, above; /* with no bits the mean is what is left */
    claim->bits = vqkvc_stream_code_bits(s) / s->n_in;
    int whole = (int)floor(claim->bits);
    VQKVC_TRY(vqkvc_stream_apply(plan, s, q->capture->n_sample, q->x, q->x_hat, NULL, err));
    claim->error = relative_error(q, s->n_in);
    if (whole > 0)
        VQKVC_TRY(error_per_channel(q, &plan->geometry, whole, &below, err));
    claim->per_channel = below;
    if (claim->bits > whole) {
        VQKVC_TRY(error_per_channel(q, &plan->geometry, whole + 1, &above, err));
        claim->per_channel = above > 0 ? below * pow(above / below, claim->bits - whole) : 0;
    }
    vqkvc_svdq_claim_text(claim, layer, text, sizeof text);
    vqkvc_say(q->log, 0, "svdq: %s", text);
    return VQKVC_OK;
}

/* ---- the plan ---- */

static int group_of(const vqkvc_svdq_params *params)
{
    return params->group > 0 ? params->group : DEFAULT_GROUP;
}

static const char *schedule_of(const vqkvc_svdq_params *params)
{
    return params->schedule != NULL ? params->schedule : published_schedule;
}

vqkvc_code vqkvc_svdq_check(const vqkvc_svdq_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err)
{
    uint8_t bits[VQKVC_SVDQ_GROUPS];
    int block = params->window.block > 0 ? params->window.block : usual.block;
    VQKVC_TRY(vqkvc_svdq_schedule(schedule_of(params), bits, err));
    if (block % group_of(params) != 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "svdq: %d tokens share a range, which does not divide a block of %d",
                          group_of(params), block);
    if (g != NULL && g->n_kv_heads * g->head_dim % VQKVC_SVDQ_GROUPS != 0)
        return vqkvc_fail(err, VQKVC_E_UNSUPPORTED,
                          "svdq: %d channels cannot be cut into %d groups",
                          g->n_kv_heads * g->head_dim, VQKVC_SVDQ_GROUPS);
    return VQKVC_OK;
}

static vqkvc_code check(const vqkvc_capture *c, const vqkvc_svdq_params *params, vqkvc_err *err)
{
    VQKVC_TRY(vqkvc_svdq_check(params, &c->geometry, err));
    if (c->n_sample < 256)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%d sampled tokens are too few to fit a basis (wanted 256 or more)",
                          c->n_sample);
    return VQKVC_OK;
}

static vqkvc_code build_keys(svdq *q, vqkvc_plan *plan, vqkvc_svdq_claim *claims, vqkvc_err *err)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_member members[VQKVC_MAX_HEADS];
    for (int layer = 0; layer < g->n_layers; layer++) {
        vqkvc_svdq_claim claim;
        for (int head = 0; head < g->n_kv_heads; head++)
            members[head] = (vqkvc_member){VQKVC_PART_K, layer, head};
        if (vqkvc_interrupted())
            return vqkvc_fail(err, VQKVC_E_INTERRUPTED, "interrupted while fitting");
        VQKVC_TRY(vqkvc_sample_members(q->capture, members, g->n_kv_heads,
                                       &(vqkvc_key_frame){.frame = VQKVC_FRAME_PRE}, 0, q->x, err));
        VQKVC_TRY(add_keys(q, plan, layer, err));
        VQKVC_TRY(check_claim(q, plan, layer, &claim, err));
        if (claims != NULL)
            claims[layer] = claim;
    }
    return VQKVC_OK;
}

static vqkvc_code add_values(vqkvc_plan *plan, const char *preset, vqkvc_err *err)
{
    vqkvc_plan from;
    vqkvc_window window = {.block = plan->block};
    if (vqkvc_plan_preset(&from, &plan->geometry, preset, &window, err) == VQKVC_OK)
        vqkvc_preset_copy(plan, &from, VQKVC_PART_V, err);
    vqkvc_plan_free(&from);
    return err->code;
}

/* "svdq" as published, "svdq2" at other rates, "svdq-higgs2" with other values. */
static void name_scheme(const svdq *q, const char *values, vqkvc_plan *plan)
{
    char rate[12] = "", suffix[12] = "";
    int sum = 0;
    for (int i = 0; i < VQKVC_SVDQ_GROUPS; i++)
        sum += q->bits[i];
    if (sum != 10)
        snprintf(rate, sizeof rate, "%.4g", (double)sum / VQKVC_SVDQ_GROUPS);
    if (strcmp(values, "f16") != 0)
        snprintf(suffix, sizeof suffix, "-%.10s", values);
    snprintf(plan->scheme, sizeof plan->scheme, "svdq%s%s", rate, suffix);
}

vqkvc_code vqkvc_plan_svdq(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_svdq_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err)
{
    const vqkvc_geometry *g = &capture->geometry;
    const char *values = params->values != NULL ? params->values : "f16";
    vqkvc_fit_store store = {
        .db = db, .model = g->weights_hash, .parent = *parent, .settings = "frame=pre", .log = log};
    svdq q = {.capture = capture, .log = log, .store = &store, .group = group_of(params)};
    size_t size = (size_t)capture->n_sample * (size_t)vqkvc_kind_width(g, VQKVC_KEY);
    vqkvc_preset_begin(plan, g, "svdq", &usual, &params->window);
    plan->calibration = *parent;
    if (check(capture, params, err) == VQKVC_OK &&
        vqkvc_svdq_schedule(schedule_of(params), q.bits, err) == VQKVC_OK) {
        name_scheme(&q, values, plan);
        q.x = vqkvc_alloc(size, sizeof *q.x, err);
        q.x_hat = vqkvc_alloc(size, sizeof *q.x_hat, err);
    }
    if (err->code == VQKVC_OK && build_keys(&q, plan, params->claims, err) == VQKVC_OK &&
        add_values(plan, values, err) == VQKVC_OK)
        vqkvc_plan_validate(plan, err);
    free(q.x);
    free(q.x_hat);
    if (err->code != VQKVC_OK)
        vqkvc_plan_free(plan);
    return err->code;
}
