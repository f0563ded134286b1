/* blob.h - a capture as bytes: parts that a store can hold one by one, or all in one.
 *
 * Part 0 holds geometry, counts, positions, value_metric and residual_ms; part 1 + kind * n_layers
 * + layer holds statistics of one kind in one layer and, but for queries, the sample. Every part is
 * "vqkvccap", u32 version 2, u32 part, u64 payload bytes, payload, 32 hex digits: the hash of all
 * that is in front of them, little-endian. A capture that was read gives the bytes that it was read
 * from. Bytes are not trusted: every length is checked before it is used, so that a damaged or
 * hostile part is an error (VQKVC_E_FORMAT, with part and byte offset) and no more. */
#ifndef VQKVC_CAPTURE_BLOB_H
#define VQKVC_CAPTURE_BLOB_H

#include <stddef.h>

#include "capture/capture.h"

/* 1 + 3 n_layers */
int vqkvc_capture_n_parts(const vqkvc_geometry *g);

/* Appends one part to buf. */
vqkvc_code vqkvc_capture_part_write(const vqkvc_capture *c, int part, vqkvc_buf *buf,
                                    vqkvc_err *err);

/* Reads part 0 into *c, which it initialises, or another part into a *c that part 0 initialised.
 * Parts that are not read stay empty (see vqkvc_capture_alloc_layer()), so that one layer can be
 * had without the others. The caller frees c, after a failure too; *c must be initialised ({0})
 * before part 0 is read. */
vqkvc_code vqkvc_capture_part_read(vqkvc_capture *c, int part, const void *bytes, size_t n,
                                   vqkvc_err *err);

/* All parts, one behind the other. */
vqkvc_code vqkvc_capture_write(const vqkvc_capture *c, vqkvc_buf *buf, vqkvc_err *err);
vqkvc_code vqkvc_capture_load(vqkvc_capture *c, const void *bytes, size_t n, vqkvc_err *err);

#endif
