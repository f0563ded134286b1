#include "command/schemes.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/fit_auto.h"
#include "command/report.h"
#include "plan/anchor.h"
#include "plan/aqua.h"
#include "plan/kvquant.h"
#include "plan/svdq.h"
#include "plan/vqkv.h"

/* ---- makers, and checks of what they will be given ---- */

static vqkvc_window window_of(const vqkvc_options *o)
{
    return (vqkvc_window){.n_sink = o->sink, .n_recent = o->recent, .block = o->block};
}

static vqkvc_code no_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    (void)o;
    (void)g;
    (void)err;
    return VQKVC_OK;
}

static vqkvc_code make_preset(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_window window = window_of(in->options);
    return vqkvc_plan_preset(plan, in->geometry, in->options->scheme, &window, err);
}

/* The two whole numbers of "56,16" for K and V; NULL leaves them as they are. */
static vqkvc_code read_pair(const char *name, const char *text, int *pair, vqkvc_err *err)
{
    int end = 0;
    if (text == NULL)
        return VQKVC_OK;
    if (strspn(text, "0123456789,") != strlen(text) || strlen(text) > 9 ||
        sscanf(text, "%d,%d%n", &pair[0], &pair[1], &end) != 2 || text[end] != '\0' ||
        pair[0] < 1 || pair[1] < 1)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "--%s is '%.40s': wanted a number for keys and one for values, as in "
                          "56,16",
                          name, text);
    return VQKVC_OK;
}

static vqkvc_code vqkv_params(const vqkvc_options *o, vqkvc_vqkv_params *params, vqkvc_err *err)
{
    *params = (vqkvc_vqkv_params){.share = strcmp(o->share, "model") == 0   ? VQKVC_SHARE_MODEL
                                           : strcmp(o->share, "layer") == 0 ? VQKVC_SHARE_LAYER
                                                                            : VQKVC_SHARE_HEAD,
                                  .beam = o->beam,
                                  .branches = o->branches,
                                  .window = window_of(o),
                                  .seed = o->seed};
    VQKVC_TRY(read_pair("stages", o->stages, params->stages, err));
    return read_pair("stage-bits", o->stage_bits, params->bits, err);
}

static vqkvc_code check_vqkv(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_vqkv_params params;
    VQKVC_TRY(vqkv_params(o, &params, err));
    return vqkvc_vqkv_check(&params, g, err);
}

static vqkvc_code make_vqkv(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_vqkv_params params;
    VQKVC_TRY(vqkv_params(in->options, &params, err));
    return vqkvc_plan_vqkv(plan, in->capture, &params, in->db, in->parent, in->log, err);
}

static vqkvc_svdq_params svdq_params(const vqkvc_options *o)
{
    return (vqkvc_svdq_params){
        .schedule = o->schedule, .values = o->values, .group = o->group, .window = window_of(o)};
}

static vqkvc_code check_svdq(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_svdq_params params = svdq_params(o);
    return vqkvc_svdq_check(&params, g, err);
}

static vqkvc_code make_svdq(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_svdq_params params = svdq_params(in->options);
    int n = in->geometry->n_layers;
    params.claims = vqkvc_alloc((size_t)n, sizeof *params.claims, err);
    if (params.claims != NULL &&
        vqkvc_plan_svdq(plan, in->capture, &params, in->db, in->parent, in->log, err) == VQKVC_OK)
        vqkvc_report_claims(params.claims, n, in->report);
    free(params.claims);
    return err->code;
}

static vqkvc_code make_kvquant(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    const vqkvc_options *o = in->options;
    vqkvc_kvquant_params params = {.bits = o->scheme[strlen("kvquant")] - '0',
                                   .outliers = o->outliers,
                                   .window = window_of(o),
                                   .seed = o->seed};
    return vqkvc_plan_kvquant(plan, in->capture, &params, in->db, in->parent, in->log, err);
}

/* --bits must be a whole number. */
static vqkvc_code check_whole_bits(const vqkvc_options *o, vqkvc_err *err)
{
    if (o->bits != 2 && o->bits != 3 && o->bits != 4)
        return vqkvc_fail(err, VQKVC_E_USAGE, "--bits is %.9g, but %s has 2, 3 or 4", o->bits,
                          o->scheme);
    return VQKVC_OK;
}

static vqkvc_aqua_params aqua_params(const vqkvc_options *o)
{
    return (vqkvc_aqua_params){.bits = (int)o->bits,
                               .grid = o->grid,
                               .rank = o->rank,
                               .per_head = o->per_head,
                               .window = window_of(o)};
}

static vqkvc_code check_aqua(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_aqua_params params = aqua_params(o);
    VQKVC_TRY(check_whole_bits(o, err));
    return vqkvc_aqua_check(&params, g, err);
}

static vqkvc_code make_aqua(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_aqua_params params = aqua_params(in->options);
    int n = 2 * in->geometry->n_layers;
    params.report = vqkvc_alloc((size_t)n, sizeof *params.report, err);
    if (params.report != NULL &&
        vqkvc_plan_aqua(plan, in->capture, &params, in->db, in->parent, in->log, err) == VQKVC_OK)
        vqkvc_report_explained(params.report, n, in->report);
    free(params.report);
    return err->code;
}

static vqkvc_anchor_params anchor_params(const vqkvc_options *o)
{
    return (vqkvc_anchor_params){.every = o->anchor_every,
                                 .bits = (int)o->bits,
                                 .anchor_bits = o->anchor_bits,
                                 .per_head = o->per_head,
                                 .window = window_of(o),
                                 .seed = o->seed};
}

static vqkvc_code check_anchor(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    vqkvc_anchor_params params = anchor_params(o);
    (void)g;
    VQKVC_TRY(check_whole_bits(o, err));
    return vqkvc_anchor_check(&params, err);
}

static vqkvc_code make_anchor(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_anchor_params params = anchor_params(in->options);
    int n = 2 * in->geometry->n_layers;
    params.report = vqkvc_alloc((size_t)n, sizeof *params.report, err);
    if (params.report != NULL &&
        vqkvc_plan_anchor(plan, in->capture, &params, in->db, in->parent, in->log, err) == VQKVC_OK)
        vqkvc_report_explained(params.report, n, in->report);
    free(params.report);
    return err->code;
}

/* ---- the table ---- */

#define X(name, rate, calibrated, takes, make, check, summary)                                     \
    {name, rate, calibrated, takes, make, check, summary},
static const vqkvc_scheme schemes[] = {VQKVC_SCHEME_LIST(X, X)};
#undef X

enum { N_SCHEMES = sizeof schemes / sizeof schemes[0] };

const vqkvc_scheme *vqkvc_scheme_at(int i)
{
    return i < N_SCHEMES ? &schemes[i] : NULL;
}

const vqkvc_scheme *vqkvc_scheme_of(const vqkvc_options *o)
{
    for (int i = 0; i < N_SCHEMES; i++)
        if (strcmp(schemes[i].name, o->scheme) == 0)
            return &schemes[i];
    return &schemes[0];
}

/* ---- words of lists ---- */

static const char *name_at(const void *list, int i)
{
    (void)list;
    return i < N_SCHEMES ? schemes[i].name : NULL;
}

/* The value of the option --`name` of a scheme, from a word; 0 if it is none. */
static int parse_value(const char *name, const char *text, double *value)
{
    for (const vqkvc_option *opt = vqkvc_options_scheme; opt->name != NULL; opt++)
        if (strcmp(opt->name, name) == 0) {
            char *end;
            errno = 0;
            *value = strtod(text, &end);
            return errno == 0 && end != text && *end == '\0' && text[0] >= '0' && text[0] <= '9' &&
                   *value >= opt->low && *value <= opt->high;
        }
    return 0;
}

static const struct {
    const char *rate, *schedule;
} svdq_rates[] = {{"1.25", "4,2,2,1,1,0,0,0"}, {"2", "8,4,2,1,1,0,0,0"}};

/* The rate of n characters behind a scheme's name; 0 if it means nothing. */
static int take_rate(const vqkvc_scheme *s, const char *rate, size_t n, vqkvc_options *o)
{
    char text[16];
    if (n == 0 || (strlen(s->rate) == n && strncmp(rate, s->rate, n) == 0))
        return 1;
    if (n >= sizeof text)
        return 0;
    memcpy(text, rate, n);
    text[n] = '\0';
    for (size_t i = 0; (s->takes & VQKVC_GIVEN_SVDQ) != 0 && i < 2; i++)
        if (strcmp(text, svdq_rates[i].rate) == 0) {
            o->schedule = svdq_rates[i].schedule;
            return 1;
        }
    return (s->takes & VQKVC_GIVEN_BITS) != 0 && parse_value("bits", text, &o->bits);
}

/* What stands behind a hyphen; 0 if it means nothing. */
static int take_suffix(const vqkvc_scheme *s, const char *suffix, vqkvc_options *o)
{
    if ((s->takes & VQKVC_GIVEN_KVQUANT) != 0)
        return parse_value("outliers", suffix, &o->outliers);
    for (int i = 0; (s->takes & VQKVC_GIVEN_SVDQ) != 0 && i < N_SCHEMES; i++)
        if (!schemes[i].calibrated && strcmp(schemes[i].name, suffix) == 0) {
            o->values = schemes[i].name;
            return 1;
        }
    return 0;
}

/* Takes what follows a scheme's name in a word; 0 if it means nothing. */
static int take_rest(const vqkvc_scheme *s, const char *rest, vqkvc_options *o)
{
    size_t n = strcspn(rest, "-");
    return take_rate(s, rest, n, o) && (rest[n] == '\0' || take_suffix(s, rest + n + 1, o));
}

vqkvc_code vqkvc_scheme_apply(const char *word, vqkvc_options *o, vqkvc_err *err)
{
    for (int i = 0; i < N_SCHEMES; i++) {
        size_t n = strlen(schemes[i].name);
        if (strncmp(word, schemes[i].name, n) == 0 && take_rest(&schemes[i], word + n, o)) {
            o->scheme = schemes[i].name;
            return schemes[i].check(o, NULL, err);
        }
    }
    const char *nearest = vqkvc_nearest(word, name_at, NULL);
    return vqkvc_fail(err, VQKVC_E_USAGE, "no scheme is named %.40s%s%s%s", word,
                      nearest != NULL ? "; did you mean '" : "", nearest != NULL ? nearest : "",
                      nearest != NULL ? "'?" : "");
}

/* ---- options ---- */

/* Appends " --a, --b" for the options whose marks meet `marks`. */
static void put_names(unsigned marks, vqkvc_buf *out)
{
    int n = 0;
    for (const vqkvc_option *opt = vqkvc_options_scheme; opt->name != NULL; opt++)
        if ((opt->mark & marks) != 0)
            vqkvc_buf_printf(out, "%s --%s", n++ > 0 ? "," : "", opt->name);
}

static vqkvc_code check_owners(const vqkvc_options *o, vqkvc_err *err)
{
    unsigned foreign = o->given & VQKVC_GIVEN_SCHEME & ~vqkvc_scheme_of(o)->takes;
    vqkvc_buf names = {0}, owners = {0};
    if (foreign == 0)
        return VQKVC_OK;
    foreign &= -foreign; /* one is enough to say */
    put_names(foreign, &names);
    for (int i = 0; i < N_SCHEMES; i++)
        if ((schemes[i].takes & foreign) != 0)
            vqkvc_buf_printf(&owners, "%s %s", owners.len > 0 ? "," : "", schemes[i].name);
    if (names.failed || owners.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a message");
    else
        vqkvc_fail(err, VQKVC_E_USAGE, "%s belong%s to%s, not to %s", names.data + 1,
                   strchr(names.data, ',') != NULL ? "" : "s", owners.data, o->scheme);
    free(names.data);
    free(owners.data);
    return err->code;
}

vqkvc_code vqkvc_scheme_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err)
{
    VQKVC_TRY(check_owners(o, err));
    return vqkvc_scheme_of(o)->check(o, g, err);
}

void vqkvc_scheme_recipe(const vqkvc_options *o, vqkvc_buf *out)
{
    const vqkvc_scheme *s = vqkvc_scheme_of(o);
    vqkvc_options_values(o, vqkvc_options_scheme, VQKVC_GIVEN_SCHEME & ~s->takes, out);
    if (s->calibrated)
        vqkvc_buf_printf(out, ";seed=%llu", (unsigned long long)o->seed);
}

void vqkvc_scheme_canonical(const vqkvc_options *o, vqkvc_buf *out)
{
    vqkvc_options_canonical(o, vqkvc_options_scheme,
                            VQKVC_GIVEN_SCHEME & ~vqkvc_scheme_of(o)->takes, out);
}
