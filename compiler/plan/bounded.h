/* bounded.h - how often a plan with a bound on every error will keep a vector exactly. */
#ifndef VQKVC_PLAN_BOUNDED_H
#define VQKVC_PLAN_BOUNDED_H

#include "capture/capture.h"
#include "plan/plan.h"

/* Sets plan->max_error to max_error > 0, and plan->kept_rate to the part of the sampled keys and
 * values whose reconstruction is farther off. Up to 1024 sampled tokens are coded, in blocks; they
 * are no neighbours, so for schemes that share ranges between tokens the rate is on the high side.
 * The same for any number of threads. */
vqkvc_code vqkvc_plan_bound(vqkvc_plan *plan, const vqkvc_capture *c, float max_error,
                            vqkvc_err *err);

#endif
