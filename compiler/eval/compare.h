/* compare.h - one next-token distribution against another, in double. */
#ifndef VQKVC_EVAL_COMPARE_H
#define VQKVC_EVAL_COMPARE_H

#include <stdint.h>

/* What is kept of one position of one codec's (or the exact) run. */
typedef struct vqkvc_point {
    double kl;  /* KL(exact || codec), nats; for the exact run 0, or NaN with its logits */
    double nll; /* -log probability of the token that follows, nats; 0 where none follows */
    int top;    /* the likeliest token, the first of equals */
} vqkvc_point;

/* The exact row: p [vocab] = softmax(logits), and its point; returns the log of the sum of
 * exponentials. next: the token that follows, or -1. */
double vqkvc_point_exact(const float *logits, int vocab, int32_t next, double *p,
                         vqkvc_point *point);

/* A codec's row against the exact one. A logit that is no finite number gives a KL that is none. */
void vqkvc_point_codec(const float *exact, const double *p, double exact_lse, const float *logits,
                       int vocab, int32_t next, vqkvc_point *point);

/* A set of positions, summed up. */
typedef struct vqkvc_fidelity {
    uint64_t n;            /* positions */
    double kl;             /* mean KL(exact || codec), nats */
    double ppl_exact, ppl; /* perplexities on the true next tokens */
    double ppl_ratio;      /* ppl / ppl_exact */
    double top1;           /* share of positions with the same likeliest token */
    double worst_kl;       /* nats */
    int worst_window, worst_pos;
} vqkvc_fidelity;

/* exact, codec: [n_windows, context]. Positions from `first` on count. Summed in order. */
void vqkvc_fidelity_sum(const vqkvc_point *exact, const vqkvc_point *codec, int n_windows,
                        int context, int first, vqkvc_fidelity *f);

#endif
