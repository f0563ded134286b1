#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64u
#define CHUNK ((size_t)1 << 16)

struct vqkvc_chunk {
    struct vqkvc_chunk *next;
    size_t used, cap; /* bytes behind this header, which is padded to ALIGN */
};

#define CHUNK_HEADER ((sizeof(struct vqkvc_chunk) + ALIGN - 1) / ALIGN * ALIGN)

/* n * size rounded up to ALIGN and never 0; SIZE_MAX on overflow. */
static size_t padded_size(size_t n, size_t size)
{
    if (size != 0 && n > (SIZE_MAX / 2 - ALIGN) / size)
        return SIZE_MAX;
    size_t bytes = n * size;
    return bytes == 0 ? ALIGN : (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void *vqkvc_alloc(size_t n, size_t size, vqkvc_err *err)
{
    size_t bytes = padded_size(n, size);
    void *p = bytes == SIZE_MAX ? NULL : aligned_alloc(ALIGN, bytes);
    if (p == NULL) {
        vqkvc_fail(err, VQKVC_E_MEMORY, "cannot allocate %zu x %zu bytes", n, size);
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

void *vqkvc_arena_alloc(vqkvc_arena *arena, size_t n, size_t size, vqkvc_err *err)
{
    size_t bytes = padded_size(n, size);
    if (bytes == SIZE_MAX) {
        vqkvc_fail(err, VQKVC_E_MEMORY, "cannot allocate %zu x %zu bytes", n, size);
        return NULL;
    }
    struct vqkvc_chunk *c = arena->head;
    if (c == NULL || c->cap - c->used < bytes) {
        size_t cap = bytes > CHUNK ? bytes : CHUNK;
        c = vqkvc_alloc(CHUNK_HEADER + cap, 1, err);
        if (c == NULL)
            return NULL;
        c->cap = cap;
        c->next = arena->head;
        arena->head = c;
    }
    void *p = (char *)c + CHUNK_HEADER + c->used;
    c->used += bytes;
    return p;
}

char *vqkvc_arena_strndup(vqkvc_arena *arena, const char *s, size_t n, vqkvc_err *err)
{
    char *copy = vqkvc_arena_alloc(arena, n + 1, 1, err);
    if (copy != NULL)
        memcpy(copy, s, n);
    return copy;
}

char *vqkvc_arena_printf(vqkvc_arena *arena, vqkvc_err *err, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = n < 0 ? NULL : vqkvc_arena_alloc(arena, (size_t)n + 1, 1, err);
    if (s != NULL)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

void vqkvc_arena_free(vqkvc_arena *arena)
{
    while (arena->head != NULL) {
        struct vqkvc_chunk *c = arena->head;
        arena->head = c->next;
        free(c);
    }
}

/* Makes room for n more bytes and the NUL; 0 on failure. */
static int buf_reserve(vqkvc_buf *buf, size_t n)
{
    if (buf->failed)
        return 0;
    if (n >= SIZE_MAX / 2 - buf->len) {
        buf->failed = 1;
        return 0;
    }
    if (buf->len + n + 1 > buf->cap) {
        size_t cap = (buf->len + n + 1) * 2;
        char *grown = realloc(buf->data, cap);
        if (grown == NULL) {
            buf->failed = 1;
            return 0;
        }
        buf->data = grown;
        buf->cap = cap;
    }
    return 1;
}

void vqkvc_buf_put(vqkvc_buf *buf, const void *bytes, size_t n)
{
    if (!buf_reserve(buf, n))
        return;
    if (n != 0)
        memcpy(buf->data + buf->len, bytes, n);
    buf->len += n;
    buf->data[buf->len] = '\0';
}

void vqkvc_buf_puts(vqkvc_buf *buf, const char *s)
{
    vqkvc_buf_put(buf, s, strlen(s));
}

void vqkvc_buf_printf(vqkvc_buf *buf, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && buf_reserve(buf, (size_t)n)) {
        vsnprintf(buf->data + buf->len, (size_t)n + 1, fmt, again);
        buf->len += (size_t)n;
    }
    va_end(again);
}
