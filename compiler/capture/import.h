/* import.h - a capture from an engine's dump of keys, values and queries.
 *
 * The dump is a safetensors file; docs/capture-format.md lays it down. */
#ifndef VQKVC_CAPTURE_IMPORT_H
#define VQKVC_CAPTURE_IMPORT_H

#include "capture/source.h"

/* Reads the dump at path into *c, which the caller frees, after a failure too. Of params it uses
 * n_tokens (0: all tokens of the dump), n_sample, n_skip and seed. Rotated keys and queries are
 * rotated back. The dump is read through its mapping, 256 tokens of one layer at a time.
 * VQKVC_E_FORMAT names file and field, VQKVC_E_NUMERIC layer, head and token. */
vqkvc_code vqkvc_capture_import(const char *path, const vqkvc_capture_params *params,
                                const vqkvc_log *log, vqkvc_capture *c, vqkvc_err *err);

#endif
