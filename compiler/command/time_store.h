/* time_store.h - the cost model of attention on this machine: measured once for a shape of head,
 * then found in the store. */
#ifndef VQKVC_COMMAND_TIME_STORE_H
#define VQKVC_COMMAND_TIME_STORE_H

#include "calib_db/kvdb.h"
#include "command/options.h"
#include "command/pipeline.h"
#include "plan/time_model.h"

/* What is measured. */
typedef struct vqkvc_time_shape {
    int head_dim, group; /* query heads of a KV head */
    vqkvc_isa isa;
    int context; /* tokens */
    uint64_t seed;
} vqkvc_time_shape;

/* The shape of a model's heads, on the best instruction set there is. */
vqkvc_time_shape vqkvc_time_shape_of(const vqkvc_geometry *g);

/* Measures the model, or finds what was measured on such a machine (processor, instruction set,
 * compiler) with the same kernels in db (may be NULL). Takes seconds. With only_find it measures
 * nothing: *found says whether there was one. recipe_hash (or NULL): of the artifact. */
vqkvc_code vqkvc_time_find(kvdb *db, const vqkvc_time_shape *shape, int only_find,
                           const vqkvc_log *log, vqkvc_time_model *m, int *found,
                           vqkvc_hash *recipe_hash, vqkvc_err *err);

/* Reads --cost-model and checks that it is of this geometry, if that is known (not NULL). */
vqkvc_code vqkvc_time_given(const char *text, const vqkvc_geometry *g, vqkvc_time_model *m,
                            vqkvc_err *err);

/* Nanoseconds per cached token and KV head that --cost-model predicts for a plan, or what db holds
 * of this machine, without measuring anything; negative where neither is there, or the model does
 * not say. What keeps db from being looked up is said on the log, and no failure. */
vqkvc_code vqkvc_time_of_plan(kvdb *db, const vqkvc_options *o, const vqkvc_plan *plan,
                              const vqkvc_log *log, double *ns, vqkvc_err *err);

#endif
