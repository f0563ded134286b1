/* fit_stream.h - fits one stream of a plan to samples: basis, gain, codebooks; through the store.
 */
#ifndef VQKVC_PLAN_FIT_STREAM_H
#define VQKVC_PLAN_FIT_STREAM_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "plan/frame.h"

/* What the recipes of all fitted parts begin with. To be raised with any change that makes other
 * bytes from the same samples and parameters, anywhere in fit/ or plan/: what stores hold of an
 * earlier version is then fitted again, not taken for the new. */
#define VQKVC_FIT_VERSION "fit v6"

/* Where fitted parts are kept, and what they were made from. db may be NULL. */
typedef struct vqkvc_fit_store {
    kvdb *db;
    vqkvc_hash model;
    vqkvc_hash parent;    /* recipe hash of the capture */
    const char *settings; /* what the samples depend on: goes into every recipe */
    const vqkvc_log *log;
} vqkvc_fit_store;

/* Looks an artifact up; *found. One that is damaged, or not of the size that the recipe implies, is
 * said on the log and not found: making it again mends the store. */
vqkvc_code vqkvc_fit_find(const vqkvc_fit_store *store, const char *kind, const char *recipe,
                          size_t bytes, void *dst, int *found, vqkvc_err *err);
/* Keeps one, with its error in the words of `measure`. */
vqkvc_code vqkvc_fit_keep(const vqkvc_fit_store *store, const char *kind, const char *recipe,
                          const vqkvc_hash *parent, const char *measure, double error,
                          const void *bytes, size_t n, vqkvc_err *err);

typedef struct vqkvc_stream_spec {
    const char *name;
    const vqkvc_member *members;
    int n_members;
    vqkvc_key_frame frame; /* POST of values */
    int n_nibbles;         /* of a token */
    int tables_at;         /* as in vqkvc_auto_params */
    int gain_bits;         /* 0: none; 8 */
    vqkvc_hash residual;   /* of the codebooks that were taken off x before, "" for none */
} vqkvc_stream_spec;

/* Adds a stream fitted to x [n, n_members * head_dim] in the metric (block-diagonal, one
 * [head_dim, head_dim] matrix a member). Groups of channels follow the dynamic programme of
 * allocate.h; codebooks come from k-means on latents over their gains, weighted by squared gains,
 * so that what is minimised is the error in the metric. *codebooks: the hash of what was fitted,
 * for the residual of later streams. */
vqkvc_code vqkvc_fit_stream(vqkvc_plan *plan, const vqkvc_stream_spec *spec, int n, const float *x,
                            const double *const *metric, uint64_t seed,
                            const vqkvc_fit_store *store, vqkvc_hash *codebooks, vqkvc_err *err);

#endif
