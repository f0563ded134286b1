/* file.h - files: read-only mappings with checked access, and writes that are whole or absent. */
#ifndef VQKVC_BASE_FILE_H
#define VQKVC_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"

typedef struct vqkvc_map {
    const char *path; /* borrowed: must outlive the map */
    const uint8_t *data;
    size_t size;
} vqkvc_map;

/* Maps a regular file read-only. An empty file gives size 0 and data NULL. */
vqkvc_code vqkvc_map_open(vqkvc_map *map, const char *path, vqkvc_err *err);
void vqkvc_map_close(vqkvc_map *map);

/* A whole file into buf (emptied first). max_bytes guards against surprises. */
vqkvc_code vqkvc_read_file(const char *path, size_t max_bytes, vqkvc_buf *buf, vqkvc_err *err);

/* Writes n bytes to a temporary name beside path, checks every step, syncs, renames: after a full
 * disk or an interruption, path is either the old file or the whole new one. "-" is stdout; a
 * device or a pipe is written directly. */
vqkvc_code vqkvc_write_file(const char *path, const void *bytes, size_t n, vqkvc_err *err);

#endif
