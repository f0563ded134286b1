/* stream.h - coding one stream in double: what the reference of a whole plan is made of. */
#ifndef VQKVC_PLAN_STREAM_H
#define VQKVC_PLAN_STREAM_H

#include "plan/plan.h"

/* The codebooks of a stream, by table index. */
typedef struct vqkvc_books {
    int n;
    double **table; /* [n]: NULL where the stream does not use the table */
} vqkvc_books;

/* What coding up to n tokens of a stream needs. */
typedef struct vqkvc_stream_work {
    vqkvc_books books;
    double *mean;      /* [n_in] or NULL */
    double *enc;       /* [n_in, n_latents], only of BASIS in double */
    double *dec;       /* the same */
    double *z, *z_hat; /* [n, n_latents] */
    int32_t *codes;    /* [n, n_codes] */
    int n_codes;
} vqkvc_stream_work;

/* For blocks of n tokens at most; with basis_in_double the tables of a BASIS are loaded. */
vqkvc_code vqkvc_stream_work_init(vqkvc_stream_work *w, const vqkvc_plan *plan,
                                  const vqkvc_stream *s, int n, int basis_in_double,
                                  vqkvc_err *err);
void vqkvc_stream_work_free(vqkvc_stream_work *w);

/* x [n, n_in], in the stream's frame, becomes its reconstruction; codes are left in w->codes. */
void vqkvc_stream_code_block(const vqkvc_plan *plan, const vqkvc_stream *s,
                             const vqkvc_stream_work *w, int n, double *x);

#endif
