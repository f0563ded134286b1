/* describe.h - geometry and costs in words and JSON, as several commands print them. */
#ifndef VQKVC_COMMAND_DESCRIBE_H
#define VQKVC_COMMAND_DESCRIBE_H

#include <jansson.h>

#include "base/geometry.h"
#include "base/memory.h"
#include "base/status.h"
#include "plan/plan.h"

/* New references; NULL only without memory. Text that is no UTF-8 becomes "?". */
json_t *vqkvc_geometry_to_json(const vqkvc_geometry *g);
json_t *vqkvc_cost_to_json(const vqkvc_cost *cost);
json_t *vqkvc_text_to_json(const char *text);

/* Appends the value, indented, with a newline; takes the reference, also of NULL (which is a
 * failure for want of memory). */
vqkvc_code vqkvc_put_json(json_t *value, vqkvc_buf *out, vqkvc_err *err);

#endif
