/* stream.h - coding one stream in double: what the reference of a whole plan is made of. */
#ifndef VQKVC_PLAN_STREAM_H
#define VQKVC_PLAN_STREAM_H

#include "plan/plan.h"

/* The codebooks of a stream, by table index. */
typedef struct vqkvc_books {
    int n;
    double **table; /* [n]: NULL where the stream does not use the table */
} vqkvc_books;

/* What one gain group of one token was divided by. */
typedef struct vqkvc_norm {
    double scale;  /* s^; of NSN s1^ */
    double offset; /* of RANGE */
    double inner;  /* s2^ of NSN */
} vqkvc_norm;

/* What coding up to n tokens of a stream needs. */
typedef struct vqkvc_stream_work {
    vqkvc_books books;
    double *mean;      /* [n_in] or NULL */
    double *enc;       /* [n_in, n_latents], only of BASIS in double */
    double *dec;       /* the same */
    double *spread;    /* [2, n_latents]: centres and inverses, or NULL */
    double *z, *z_hat; /* [n, n_latents] */
    vqkvc_norm *norm;  /* [n, n_groups] or NULL */
    double *shift;     /* of NSN: [token groups, n_latents] or NULL */
    int32_t *outlier;  /* [n, outliers]: indices, by rank */
    double *kept;      /* [n, outliers]: values */
    uint8_t *out;      /* [n, n_latents]: whether a latent is an outlier; NULL without any */
    int32_t *codes;    /* [n, n_codes] */
    int n_codes, n_groups;
} vqkvc_stream_work;

/* For blocks of n tokens at most; with basis_in_double the tables of a BASIS are loaded. */
vqkvc_code vqkvc_stream_work_init(vqkvc_stream_work *w, const vqkvc_plan *plan,
                                  const vqkvc_stream *s, int n, int basis_in_double,
                                  vqkvc_err *err);
void vqkvc_stream_work_free(vqkvc_stream_work *w);

/* x [n, n_in], in the stream's frame, becomes its reconstruction; codes are left in w->codes. */
void vqkvc_stream_code_block(const vqkvc_plan *plan, const vqkvc_stream *s,
                             const vqkvc_stream_work *w, int n, double *x);

/* The binary16 values of table `index` as doubles or floats, or NULL with *err; the caller frees
 * them. */
double *vqkvc_table_f64(const vqkvc_plan *plan, int index, vqkvc_err *err);
float *vqkvc_table_f32(const vqkvc_plan *plan, int index, vqkvc_err *err);

/* ---- the steps between the transforms ---- */

/* gains.c: tokens first .. first + n - 1 of w->z, one token group: latents become what is coded. */
void vqkvc_gains_take(const vqkvc_stream *s, const vqkvc_stream_work *w, int first, int n);
/* coders.c: token t of w->z, which is destroyed, becomes codes and the codewords, in w->z_hat. */
void vqkvc_code_token(const vqkvc_plan *plan, const vqkvc_stream *s, const vqkvc_stream_work *w,
                      int t);
/* gains.c: codewords of token t become latents, in w->z_hat. */
void vqkvc_gains_put(const vqkvc_stream *s, const vqkvc_stream_work *w, int t);

#endif
