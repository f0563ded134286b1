#include "eval/compare.h"

#include <math.h>
#include <stddef.h>

/* The index of the largest logit, the first of equals. */
static int top_of(const float *logits, int vocab)
{
    int top = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[top])
            top = i;
    return top;
}

double vqkvc_point_exact(const float *logits, int vocab, int32_t next, double *p,
                         vqkvc_point *point)
{
    double sum = 0;
    int top = top_of(logits, vocab);
    for (int i = 0; i < vocab; i++) {
        p[i] = exp((double)logits[i] - (double)logits[top]);
        sum += p[i];
    }
    for (int i = 0; i < vocab; i++)
        p[i] /= sum;
    double lse = (double)logits[top] + log(sum);
    *point = (vqkvc_point){
        .kl = lse - lse, .nll = next >= 0 ? lse - (double)logits[next] : 0, .top = top};
    return lse;
}

void vqkvc_point_codec(const float *exact, const double *p, double exact_lse, const float *logits,
                       int vocab, int32_t next, vqkvc_point *point)
{
    /* KL = sum p (log p - log q) = sum p (l - l') - lse + lse': differences of logits keep more
     * digits than differences of logarithms. */
    double sum = 0, kl = 0;
    int top = top_of(logits, vocab);
    for (int i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - (double)logits[top]);
        kl += p[i] * ((double)exact[i] - (double)logits[i]);
    }
    double lse = (double)logits[top] + log(sum);
    kl += lse - exact_lse;
    *point = (vqkvc_point){.kl = kl < 0 ? 0 : kl, /* rounding */
                           .nll = next >= 0 ? lse - (double)logits[next] : 0,
                           .top = top};
}

void vqkvc_fidelity_sum(const vqkvc_point *exact, const vqkvc_point *codec, int n_windows,
                        int context, int first, vqkvc_fidelity *f)
{
    double kl = 0, nll_exact = 0, nll = 0;
    uint64_t same = 0, targets = 0;
    *f = (vqkvc_fidelity){.worst_kl = -1};
    for (int w = 0; w < n_windows; w++)
        for (int pos = first; pos < context; pos++) {
            const vqkvc_point *e = &exact[(size_t)w * context + pos];
            const vqkvc_point *c = &codec[(size_t)w * context + pos];
            kl += c->kl;
            nll_exact += e->nll;
            nll += c->nll;
            same += e->top == c->top;
            targets += pos + 1 < context;
            f->n++;
            if (c->kl > f->worst_kl) {
                f->worst_kl = c->kl;
                f->worst_window = w;
                f->worst_pos = pos;
            }
        }
    if (f->n == 0 || targets == 0)
        return;
    f->kl = kl / (double)f->n;
    f->ppl_exact = exp(nll_exact / (double)targets);
    f->ppl = exp(nll / (double)targets);
    f->ppl_ratio = exp((nll - nll_exact) / (double)targets);
    f->top1 = (double)same / (double)f->n;
}
