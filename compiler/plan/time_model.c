#include "plan/time_model.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/frame.h"

static const char *const words[] = {
#define X(name, word) word,
    VQKVC_TIME_LIST(X)
#undef X
};

/* ---- what a stream has attention do ---- */

static int rebuilt(const vqkvc_time_readers *r)
{
    return r->part == VQKVC_PART_K && r->frame == VQKVC_FRAME_PRE;
}

static int turns(vqkvc_part part, vqkvc_frame frame)
{
    return part == VQKVC_PART_K && frame == VQKVC_FRAME_BLOCK;
}

/* log2 of a width; -1 for one that nibbles do not have. */
static int width_index(int width)
{
    return width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : width == 8 ? 3 : -1;
}

/* Tokens of a context that are exact: a block leaves the window when it is full. */
static double exact_tokens(const vqkvc_window *w, int context)
{
    int least = w->n_sink + w->n_recent;
    return context <= least ? context : least + (context - least) % w->block;
}

/* exact: part of the tokens. */
static void add_heads(vqkvc_frame frame, int block, double exact, int heads, double *terms)
{
    terms[VQKVC_TIME_TOKEN] += heads;
    terms[VQKVC_TIME_EXACT] += heads * exact;
    if (turns(VQKVC_PART_K, frame))
        terms[VQKVC_TIME_BLOCK] += heads / (double)block;
    if (frame == VQKVC_FRAME_PRE)
        terms[VQKVC_TIME_REBUILT] += heads;
}

static void add_stream(const vqkvc_time_readers *r, double *terms)
{
    if (!rebuilt(r))
        terms[r->part == VQKVC_PART_K ? VQKVC_TIME_K_STREAM : VQKVC_TIME_V_STREAM] += r->members;
}

/* `planes` nibbles for `groups` groups of `width` channels. */
static void add_codes(const vqkvc_time_readers *r, int width, int groups, int planes, double *terms)
{
    int at = width_index(width);
    if (rebuilt(r)) {
        terms[VQKVC_TIME_DECODE] += (double)r->layers * planes;
        terms[VQKVC_TIME_PRODUCT] += (double)r->members * groups * width;
        return;
    }
    double all = (double)r->members * planes,
           turning = turns(r->part, r->frame) ? 1 - r->steady_latents : 0;
    if (r->part == VQKVC_PART_V) {
        terms[VQKVC_TIME_V1 + at] += all;
    } else if (at == 0) {
        terms[VQKVC_TIME_K1] += all;
    } else {
        terms[VQKVC_TIME_KD] += all * turning * (width > 4 ? width / 4 : 1);
        terms[VQKVC_TIME_K2] += all * (1 - turning);
    }
    double mapped = turning * (1 - r->steady_channels);
    if (turns(r->part, r->frame)) /* turning channels every block, the others once in a while */
        terms[VQKVC_TIME_MAP1 + at] += all * (mapped / r->block + (1 - mapped) / VQKVC_STEADY_SPAN);
}

static double time_of(const vqkvc_time_model *m, const double *terms)
{
    double ns = 0;
    for (int i = 0; i < VQKVC_TIME_TERMS; i++)
        ns += m->ns[i] * terms[i];
    return ns;
}

double vqkvc_time_stream(const vqkvc_time_model *m, const vqkvc_time_readers *r)
{
    double terms[VQKVC_TIME_TERMS] = {0};
    add_stream(r, terms);
    return time_of(m, terms);
}

void vqkvc_time_groups(const vqkvc_time_model *m, const vqkvc_time_readers *r, double *each)
{
    for (int o = 0; o < VQKVC_LAYOUT_RUNS; o++) {
        double terms[VQKVC_TIME_TERMS] = {0};
        vqkvc_layout_run group = vqkvc_allocate_option(o);
        add_codes(r, group.width, 1, group.stages, terms);
        each[o] = time_of(m, terms);
    }
}

double vqkvc_time_heads(const vqkvc_time_model *m, vqkvc_frame frame, const vqkvc_window *window,
                        int heads)
{
    double terms[VQKVC_TIME_TERMS] = {0}, exact = exact_tokens(window, VQKVC_TIME_CONTEXT);
    add_heads(frame, window->block, exact / VQKVC_TIME_CONTEXT, heads, terms);
    return time_of(m, terms);
}

/* ---- what a plan does ---- */

/* Whether the model says how long a stream takes. */
static int known(const vqkvc_stream *s)
{
    if ((s->gain != VQKVC_GAIN_NONE && s->gain != VQKVC_GAIN_RMS) || s->outliers > 0)
        return 0;
    for (int i = 0; i < s->n_runs; i++)
        if (s->runs[i].coder != VQKVC_CODER_VQ || s->runs[i].bits != 4 ||
            width_index(s->runs[i].width) < 0)
            return 0;
    return 1;
}

/* layer < 0: all. */
static void add_plan_stream(const vqkvc_plan *plan, const vqkvc_stream *s, int layer, double *terms)
{
    const vqkvc_key_frame frame = {s->frame, plan->block, plan->stretch, 0};
    vqkvc_time_readers r = {.part = s->members[0].part,
                            .frame = s->frame,
                            .block = plan->block,
                            .steady_channels =
                                s->transform == VQKVC_TRANSFORM_BASIS
                                    ? 1 - vqkvc_frame_turning_share(&plan->geometry, &frame)
                                    : 0};
    int steady = vqkvc_frame_steady_runs(plan, s);
    for (int m = 0; m < s->n_members; m++) { /* ordered by layer */
        if (layer >= 0 && s->members[m].layer != layer)
            continue;
        r.layers += r.members == 0 || s->members[m].layer != s->members[m - 1].layer;
        r.members++;
    }
    if (r.members == 0)
        return;
    add_stream(&r, terms);
    for (int i = 0; i < s->n_runs; i++) {
        const vqkvc_run *run = &s->runs[i];
        r.steady_latents = i < steady;
        add_codes(&r, run->width, run->groups, run->groups * run->stages, terms);
    }
}

/* The frame of the keys of a head, on which all its streams agree. */
static vqkvc_frame frame_of(const vqkvc_plan *plan, int layer, int head)
{
    for (int i = 0; i < plan->n_streams; i++)
        for (int m = 0; m < plan->streams[i].n_members; m++) {
            const vqkvc_member *member = &plan->streams[i].members[m];
            if (member->part == VQKVC_PART_K && member->layer == layer && member->head == head)
                return plan->streams[i].frame;
        }
    return VQKVC_FRAME_POST;
}

int vqkvc_time_terms(const vqkvc_plan *plan, int layer, int context, double *terms)
{
    const vqkvc_geometry *g = &plan->geometry;
    const vqkvc_window window = {plan->n_sink, plan->n_recent, plan->block};
    double exact = exact_tokens(&window, context) / context;
    memset(terms, 0, VQKVC_TIME_TERMS * sizeof *terms);
    if (plan->n_predictions > 0)
        return 0;
    for (int l = layer < 0 ? 0 : layer; l < (layer < 0 ? g->n_layers : layer + 1); l++)
        for (int head = 0; head < g->n_kv_heads; head++)
            add_heads(frame_of(plan, l, head), plan->block, exact, 1, terms);
    for (int i = 0; i < plan->n_streams; i++) {
        if (!known(&plan->streams[i]))
            return 0;
        add_plan_stream(plan, &plan->streams[i], layer, terms);
    }
    return 1;
}

double vqkvc_time_predict(const vqkvc_time_model *m, const vqkvc_plan *plan)
{
    double terms[VQKVC_TIME_TERMS];
    const vqkvc_geometry *g = &plan->geometry;
    if (!vqkvc_time_terms(plan, -1, VQKVC_TIME_CONTEXT, terms))
        return -1;
    return time_of(m, terms) / ((double)g->n_layers * g->n_kv_heads);
}

/* ---- text ---- */

#define FIGURE "%.4g"

void vqkvc_time_print(const vqkvc_time_model *m, vqkvc_buf *out)
{
    vqkvc_buf_printf(out, "isa=%s,head_dim=%d,group=%d", m->isa, m->head_dim, m->group);
    for (int i = 0; i < VQKVC_TIME_TERMS; i++)
        vqkvc_buf_printf(out, ",%s=" FIGURE, words[i], m->ns[i]);
}

/* Moves *at behind "name=", which must stand there; 0 if it does not. */
static int skip_name(const char **at, const char *name)
{
    size_t n = strlen(name);
    if (strncmp(*at, name, n) != 0 || (*at)[n] != '=')
        return 0;
    *at += n + 1;
    return 1;
}

/* The number at *at, low .. high, which a comma or the text's end follows; 0 if there is none. */
static int read_number(const char **at, double low, double high, double *value)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)**at))
        return 0;
    *value = strtod(*at, &end);
    if (errno != 0 || (*end != ',' && *end != '\0') || !(*value >= low && *value <= high))
        return 0;
    *at = end + (*end == ',');
    return 1;
}

static int read_whole(const char **at, const char *name, int *value)
{
    double x;
    if (!skip_name(at, name) || !read_number(at, 1, 1024, &x) || x != floor(x))
        return 0;
    *value = (int)x;
    return 1;
}

/* The first field that is wrong, or NULL; *at is where reading stopped. */
static const char *parse(const char **at, vqkvc_time_model *m)
{
    if (!skip_name(at, "isa"))
        return "isa";
    size_t n = strcspn(*at, ",");
    if (n == 0 || n >= sizeof m->isa || (*at)[n] != ',' ||
        strspn(*at, "abcdefghijklmnopqrstuvwxyz0123456789") != n)
        return "isa";
    memcpy(m->isa, *at, n);
    *at += n + 1;
    if (!read_whole(at, "head_dim", &m->head_dim))
        return "head_dim";
    if (!read_whole(at, "group", &m->group))
        return "group";
    for (int i = 0; i < VQKVC_TIME_TERMS; i++)
        if (!skip_name(at, words[i]) || !read_number(at, 0, 1e9, &m->ns[i]))
            return words[i];
    return **at != '\0' ? "the end" : NULL;
}

vqkvc_code vqkvc_time_parse(const char *text, vqkvc_time_model *m, vqkvc_err *err)
{
    const char *at = text;
    *m = (vqkvc_time_model){0};
    const char *field = parse(&at, m);
    if (field == NULL)
        return VQKVC_OK;
    return vqkvc_fail(err, VQKVC_E_USAGE,
                      "cost model: offset %zu: wanted %s%s, as `vqkvc bench --calibrate` prints it",
                      (size_t)(at - text), field, strcmp(field, "the end") == 0 ? "" : "=value");
}

/* ---- measuring ---- */

enum { SWEEPS = 20000 };

/* Minimises |A x - b|^2 for x >= 0 by coordinates, given A' A (g) and A' b (h): slow but sure, and
 * the same on every machine. */
static void descend(const double *g, const double *h, double *x)
{
    enum { N = VQKVC_TIME_TERMS };
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (int i = 0; i < N; i++) {
            double slope = h[i];
            for (int j = 0; j < N; j++)
                slope -= g[i * N + j] * x[j];
            if (g[i * N + i] > 0)
                x[i] = fmax(0, x[i] + slope / g[i * N + i]);
        }
}

vqkvc_code vqkvc_time_fit(int n, const double *terms, const double *ns, vqkvc_time_model *m,
                          double *worst, vqkvc_err *err)
{
    enum { N = VQKVC_TIME_TERMS };
    double g[N * N] = {0}, h[N] = {0};
    vqkvc_buf text = {0};
    for (int r = 0; r < n; r++) {
        const double *row = terms + (size_t)r * N;
        if (!(ns[r] > 0))
            return vqkvc_fail(err, VQKVC_E_NUMERIC, "cost model: measurement %d is %g ns", r,
                              ns[r]);
        for (int i = 0; i < N; i++) {
            h[i] += row[i] / ns[r]; /* of relative errors: b is 1 */
            for (int j = 0; j < N; j++)
                g[i * N + j] += row[i] * row[j] / (ns[r] * ns[r]);
        }
    }
    memset(m->ns, 0, sizeof m->ns);
    descend(g, h, m->ns);
    /* As the text has it, so that a model is the same whether it was measured or read. */
    vqkvc_time_print(m, &text);
    if (text.failed)
        vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory for a cost model");
    else
        vqkvc_time_parse(text.data, m, err);
    free(text.data);
    *worst = 0;
    for (int r = 0; r < n && err->code == VQKVC_OK; r++)
        *worst = fmax(*worst, fabs(time_of(m, terms + (size_t)r * N) / ns[r] - 1));
    return err->code;
}
