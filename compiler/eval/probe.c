#include "eval/probe.h"

#include <stdlib.h>

#include "base/memory.h"

typedef struct probe_cache {
    const vqkvc_cache *exact, *codecs, *plain;
    int n_codecs, n_layers, n_seq, step, first_counted;
    size_t token; /* n_heads * head_dim */
    float *out;   /* [n_seq, 2, step, n_heads, head_dim] a codec's answer, and in portable C */
    vqkvc_probe_sum *sums; /* [n_seq, n_codecs, n_layers] */
} probe_cache;

static vqkvc_probe_sum *sum_of(const probe_cache *p, int seq, int codec, int layer)
{
    return p->sums + ((size_t)seq * p->n_codecs + codec) * p->n_layers + layer;
}

static vqkvc_code probe_append(void *self, int seq, int layer, int pos, int n, const float *k,
                               const float *v, vqkvc_err *err)
{
    const probe_cache *p = self;
    VQKVC_TRY(p->exact->append(p->exact->self, seq, layer, pos, n, k, v, err));
    for (int c = 0; c < p->n_codecs; c++) {
        VQKVC_TRY(p->codecs[c].append(p->codecs[c].self, seq, layer, pos, n, k, v, err));
        VQKVC_TRY(p->plain[c].append(p->plain[c].self, seq, layer, pos, n, k, v, err));
    }
    return VQKVC_OK;
}

/* A sequence is attended by one thread at a time, in order of its positions: so are its sums. */
static vqkvc_code probe_attend(void *self, int seq, int layer, int pos, int n, const float *q,
                               float *out, float scale, vqkvc_err *err)
{
    const probe_cache *p = self;
    VQKVC_TRY(p->exact->attend(p->exact->self, seq, layer, pos, n, q, out, scale, err));
    if (seq >= p->n_seq || n > p->step)
        return vqkvc_fail(err, VQKVC_E_USAGE, "probe: sequence %d of %d, %d tokens of %d", seq,
                          p->n_seq, n, p->step);
    float *answer = p->out + 2 * (size_t)seq * p->step * p->token;
    float *plain = answer + p->step * p->token;
    size_t skip = pos < p->first_counted ? (size_t)(p->first_counted - pos) : 0;
    for (int c = 0; c < p->n_codecs; c++) {
        VQKVC_TRY(
            p->codecs[c].attend(p->codecs[c].self, seq, layer, pos, n, q, answer, scale, err));
        VQKVC_TRY(p->plain[c].attend(p->plain[c].self, seq, layer, pos, n, q, plain, scale, err));
        vqkvc_probe_sum *sum = sum_of(p, seq, c, layer);
        for (size_t i = skip * p->token; i < (size_t)n * p->token; i++) {
            double e = (double)answer[i] - (double)out[i];
            double rounding = (double)answer[i] - (double)plain[i];
            sum->error += e * e;
            sum->kernels += rounding * rounding;
            sum->reference += (double)out[i] * (double)out[i];
        }
    }
    return VQKVC_OK;
}

static vqkvc_code probe_trim(void *self, int seq, int n_keep, vqkvc_err *err)
{
    const probe_cache *p = self;
    VQKVC_TRY(p->exact->trim(p->exact->self, seq, n_keep, err));
    for (int c = 0; c < p->n_codecs; c++) {
        VQKVC_TRY(p->codecs[c].trim(p->codecs[c].self, seq, n_keep, err));
        VQKVC_TRY(p->plain[c].trim(p->plain[c].self, seq, n_keep, err));
    }
    return VQKVC_OK;
}

static size_t probe_bytes(void *self)
{
    const probe_cache *p = self;
    return p->exact->bytes(p->exact->self);
}

static void probe_free(void *self)
{
    probe_cache *p = self;
    free(p->out);
    free(p->sums);
    free(p);
}

vqkvc_code vqkvc_probe_make(vqkvc_cache *probe, const vqkvc_cache *exact, const vqkvc_cache *codecs,
                            const vqkvc_cache *plain, int n_codecs, const vqkvc_geometry *g,
                            int n_seq, int step, int first_counted, vqkvc_err *err)
{
    *probe = (vqkvc_cache){0};
    probe_cache *p = vqkvc_alloc(1, sizeof *p, err);
    if (p == NULL)
        return err->code;
    *p = (probe_cache){.exact = exact,
                       .codecs = codecs,
                       .plain = plain,
                       .n_codecs = n_codecs,
                       .n_layers = g->n_layers,
                       .n_seq = n_seq,
                       .step = step,
                       .first_counted = first_counted,
                       .token = (size_t)g->n_heads * g->head_dim};
    p->out = vqkvc_alloc(2 * (size_t)n_seq * step * p->token, sizeof *p->out, err);
    p->sums = vqkvc_alloc((size_t)n_seq * n_codecs * g->n_layers, sizeof *p->sums, err);
    if (err->code != VQKVC_OK) {
        probe_free(p);
        return err->code;
    }
    *probe = (vqkvc_cache){p, probe_append, probe_attend, probe_trim, probe_bytes, probe_free};
    return VQKVC_OK;
}

void vqkvc_probe_add(const vqkvc_cache *probe, int codec, int layer, vqkvc_probe_sum *sum)
{
    const probe_cache *p = probe->self;
    for (int s = 0; s < p->n_seq; s++) {
        const vqkvc_probe_sum *seen = sum_of(p, s, codec, layer);
        sum->error += seen->error;
        sum->kernels += seen->kernels;
        sum->reference += seen->reference;
    }
}
