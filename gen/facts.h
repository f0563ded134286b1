/* facts.h - what every emitted header says of its plan, whatever it is written for. */
#ifndef GEN_FACTS_H
#define GEN_FACTS_H

#include "base/hash.h"
#include "gen/gen.h"

vqkvc_code gen_check_prefix(const char *prefix, vqkvc_err *err);
/* The banner's lines on model, cost, origin and streams, and the end of its comment. */
void gen_print_facts(const vqkvc_plan *plan, const gen_options *o, const vqkvc_hash *hash,
                     vqkvc_buf *out);
/* Macros of the geometry and the window. */
void gen_print_geometry(const vqkvc_plan *plan, const vqkvc_hash *hash, vqkvc_buf *out);

#endif
