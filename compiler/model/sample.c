#include <math.h>
#include <stdlib.h>

#include "model/model.h"

typedef struct candidate {
    double weight; /* exp((logit - max) / temperature) */
    int32_t id;
} candidate;

/* Heaviest first; equal weights by id, so that the order is the same everywhere. */
static int compare_candidates(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t largest_logit(const float *logits, int vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best] || isnan(logits[best]))
            best = i;
    return best;
}

/* How many of the candidates (sorted, if there is a limit) stay, and their total weight in *sum. */
static int restrict_to(const candidate *c, int n, int top_k, float top_p, double *sum)
{
    double all = 0;
    if (top_k > 0 && top_k < n)
        n = top_k;
    for (int i = 0; i < n; i++)
        all += c[i].weight;
    if (!(top_p < 1)) {
        *sum = all;
        return n;
    }
    int kept = 0;
    *sum = 0;
    do
        *sum += c[kept++].weight;
    while (kept < n && *sum < top_p * all);
    return kept;
}

int32_t vqkvc_sample_token(const float *logits, int vocab, float temperature, int top_k,
                           float top_p, double uniform)
{
    int32_t best = largest_logit(logits, vocab);
    candidate *c = temperature > 0 ? malloc((size_t)vocab * sizeof *c) : NULL;
    if (c == NULL) /* greedy; also the answer when memory is out, for lack of an error to give */
        return best;
    for (int32_t i = 0; i < vocab; i++) {
        double weight = exp(((double)logits[i] - logits[best]) / temperature);
        c[i] = (candidate){isnan(weight) ? 0 : weight, i};
    }
    /* Any order serves an unrestricted draw: sorting the vocabulary is most of the cost. */
    if ((top_k > 0 && top_k < vocab) || top_p < 1)
        qsort(c, (size_t)vocab, sizeof *c, compare_candidates);
    double sum;
    int kept = restrict_to(c, vocab, top_k, top_p, &sum);
    double left = uniform * sum;
    int pick = 0;
    while (pick < kept - 1 && left >= c[pick].weight)
        left -= c[pick++].weight;
    int32_t id = sum > 0 ? c[pick].id : best; /* no weight at all: logits that are not numbers */
    free(c);
    return id;
}
