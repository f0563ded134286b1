/* time_store.h - the cost model of attention on this machine: measured once for a shape of head,
 * then found in the store. */
#ifndef VQKVC_COMMAND_TIME_STORE_H
#define VQKVC_COMMAND_TIME_STORE_H

#include "calib_db/kvdb.h"
#include "command/options.h"
#include "command/pipeline.h"
#include "plan/time_model.h"

/* What is measured; zero means the default. */
typedef struct vqkvc_time_shape {
    int head_dim, group; /* query heads of a KV head */
    vqkvc_isa isa;
    int context; /* as in vqkvc_calibration */
    uint64_t seed;
} vqkvc_time_shape;

/* Measures the model, or finds what was measured on such a machine (processor, instruction set,
 * compiler) with the same kernels in db (may be NULL). Takes seconds. With only_find it measures
 * nothing: *found says whether there was one. recipe_hash (or NULL): of the artifact. */
vqkvc_code vqkvc_time_find(kvdb *db, const vqkvc_time_shape *shape, int only_find,
                           const vqkvc_log *log, vqkvc_time_model *m, int *found,
                           vqkvc_hash *recipe_hash, vqkvc_err *err);

/* Reads --cost-model and checks that it is of this geometry. */
vqkvc_code vqkvc_time_given(const char *text, const vqkvc_geometry *g, vqkvc_time_model *m,
                            vqkvc_err *err);

#endif
