/* header_isa.h - which instruction set emitted headers choose on this machine. */
#ifndef VQKVC_EVAL_HEADER_ISA_H
#define VQKVC_EVAL_HEADER_ISA_H

#include "eval/cache_header.h"

/* What a header asked for VQKVC_ISA_AUTO uses here, without compiling one: the tests are those of
 * runtime/dispatch.h, which test_eval.c compares with. Never VQKVC_ISA_AUTO. */
vqkvc_isa vqkvc_header_isa_best(void);

/* "portable", "avx2", "avx512", "neon", "neon-dot"; of VQKVC_ISA_AUTO, that of the best. */
const char *vqkvc_header_isa_word(vqkvc_isa isa);

#endif
