/* gen.h - from a plan to the bytes of one C header. A pure function: no clock, no environment, no
 * files; the same plan and options give the same bytes. */
#ifndef GEN_GEN_H
#define GEN_GEN_H

#include "base/memory.h"
#include "base/status.h"
#include "plan/plan.h"

enum { GEN_ABI_VERSION = 2 }; /* of emitted headers and of the caches that they save */

typedef struct gen_options {
    const char *prefix;  /* of every symbol: a C identifier in lower case, such as "ref7m_kv" */
    const char *command; /* that rebuilds the header, for the banner; no paths of this machine */
} gen_options;

/* Appends the header to out. Fails with VQKVC_E_UNSUPPORTED for what the runtime cannot code yet,
 * naming stream and run. */
vqkvc_code gen_header(const vqkvc_plan *plan, const gen_options *options, vqkvc_buf *out,
                      vqkvc_err *err);
/* Appends the CUDA header of the same plan: the same storage, kernels in the namespace
 * PREFIX_cuda. Fails with VQKVC_E_UNSUPPORTED, naming streams, for a bound on errors (max_error)
 * and for tables that a GPU's shared memory cannot hold. */
vqkvc_code gen_cuda(const vqkvc_plan *plan, const gen_options *options, vqkvc_buf *out,
                    vqkvc_err *err);

#endif
