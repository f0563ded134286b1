/* auto.h - the scheme of our own: a learned basis in the metric of what errors do, streams shared
 * over groups of layers and streams of each layer for what is left, one gain a token, every code a
 * nibble, nibbles allocated by dynamic programming. */
#ifndef VQKVC_PLAN_AUTO_H
#define VQKVC_PLAN_AUTO_H

#include "base/log.h"
#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "plan/calibration.h"
#include "plan/plan.h"
#include "plan/time_model.h"

/* Bits a value that may be asked for, at most. */
enum { VQKVC_MOST_BITS = 9 };

/* Of the pairs of keys in frame BLOCK (frame.h); each takes less time than the one before, and
 * loses more. */
typedef enum vqkvc_spans {
    VQKVC_SPANS_BLOCK, /* every pair turns back by the first token of the block */
    VQKVC_SPANS_LONG,  /* slow pairs by that of a longer span, fast ones never */
    VQKVC_SPANS_BANDS  /* the same, and latents of their own for steady and for turning channels */
} vqkvc_spans;

typedef struct vqkvc_auto_params {
    double bits;     /* a value: codes and gains together; 0: 2 */
    double max_scan; /* bits a value that attention may read; 0: 5.5; negative: no limit */
    double max_ns;   /* nanoseconds that attention may take per cached token and KV head, by the
                        cost model; 0: no limit */
    const vqkvc_time_model *time; /* NULL: none, and no limit of time */
    int any_frame;     /* with max_ns: of block frames of 64, 128 and 256 tokens, with every kind of
                          spans, and of keys rotated by their positions, what loses least; frame, spans
                          and block are not looked at */
    int layers_shared; /* layers that share a stream, at most 1024 / head_dim; 0: chosen; 1: none */
    int separate_heads; /* no stream over several heads */
    int no_gain;        /* no gains */
    int no_metric;      /* errors count alike in all channels of a head */
    int tables_at;      /* tokens that tables are spread over to count as bits; 0: they do not */
    vqkvc_frame frame;  /* of keys; PRE: attention rebuilds them */
    vqkvc_spans spans;  /* of frame BLOCK */
    /* Of frame BLOCK, as in vqkvc_plan, and the part of a head's channels that are then steady
     * (frame.h); vqkvc_plan_auto() does not look at what is given here. */
    uint8_t stretch[VQKVC_MAX_HEAD_DIM / 2];
    double steady;
    vqkvc_window window;
    uint64_t seed;
    const vqkvc_sensitivity *sensitivity; /* NULL: the closed form of the metrics alone */
    vqkvc_hash probes;                    /* recipe hash of the sensitivities */
} vqkvc_auto_params;

static inline vqkvc_key_frame vqkvc_auto_frame(const vqkvc_auto_params *p)
{
    return (vqkvc_key_frame){p->frame, p->window.block, p->stretch, p->spans == VQKVC_SPANS_BANDS};
}

/* Refuses with VQKVC_E_USAGE, before any capture, what no capture of this geometry can give. */
vqkvc_code vqkvc_auto_check(const vqkvc_auto_params *params, const vqkvc_geometry *g,
                            vqkvc_err *err);

/* Fits and freezes a plan from a capture. Fitted streams are looked up in and put into db (may be
 * NULL) under recipes that begin with capture_recipe, so that a build that was interrupted goes on
 * where it was. parent: the recipe hash of the capture. Fails with VQKVC_E_INFEASIBLE if no plan
 * keeps bits, max_scan and max_ns. */
vqkvc_code vqkvc_plan_auto(vqkvc_plan *plan, const vqkvc_capture *capture,
                           const vqkvc_auto_params *params, kvdb *db, const vqkvc_hash *parent,
                           const vqkvc_log *log, vqkvc_err *err);

#endif
