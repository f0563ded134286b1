/* nodes.h - in which order, and in how many slots, K and V of all layers can be rebuilt. */
#ifndef GEN_NODES_H
#define GEN_NODES_H

#include "gen/lower.h"

/* Fills in the nodes and predictions of low. table_first: offsets of the plan's tables. */
vqkvc_code gen_lower_nodes(const vqkvc_plan *plan, const int *table_first, gen_lowered *low,
                           vqkvc_err *err);

#endif
