/* tables.h - prints the constant tables and descriptors of a lowered plan. */
#ifndef GEN_TABLES_H
#define GEN_TABLES_H

#include "gen/lower.h"

/* Appends C definitions in the runtime's own names (vqkv_, VQKV_): the caller renames. */
void gen_print_tables(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out);

/* Appends what else the C header's queries go by. */
void gen_print_turning(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out);

#endif
