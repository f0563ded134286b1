/* memory.h - checked allocation and an arena.
 *
 * The arena owns everything that lives as long as one plan, one model or one command: it hands out
 * zeroed memory, grows by chunks and is released in one call. Memory that comes and goes inside a
 * loop is taken with vqkvc_alloc() and released with free(). */
#ifndef VQKVC_BASE_MEMORY_H
#define VQKVC_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* n * size zeroed bytes aligned to 64, or NULL with *err set (overflow or no memory). n == 0 gives
 * a valid pointer. The caller releases it with free(). */
void *vqkvc_alloc(size_t n, size_t size, vqkvc_err *err);

typedef struct vqkvc_arena {
    struct vqkvc_chunk *head; /* newest chunk first */
} vqkvc_arena;

/* As vqkvc_alloc(), but owned by the arena. An arena starts as {0}. */
void *vqkvc_arena_alloc(vqkvc_arena *arena, size_t n, size_t size, vqkvc_err *err);
/* A copy of the first n bytes of s with a NUL behind it. */
char *vqkvc_arena_strndup(vqkvc_arena *arena, const char *s, size_t n, vqkvc_err *err);
char *vqkvc_arena_printf(vqkvc_arena *arena, vqkvc_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void vqkvc_arena_free(vqkvc_arena *arena);

/* A growing byte string; starts as {0}, released with free(buf.data). The bytes are always followed
 * by a NUL that len does not count. Appending after a failure does nothing: check once at the end
 * (failed != 0 means out of memory). */
typedef struct vqkvc_buf {
    char *data;
    size_t len, cap;
    int failed;
} vqkvc_buf;

void vqkvc_buf_put(vqkvc_buf *buf, const void *bytes, size_t n);
void vqkvc_buf_puts(vqkvc_buf *buf, const char *s);
void vqkvc_buf_printf(vqkvc_buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
