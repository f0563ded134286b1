#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Opens path for reading and checks that it is a regular file; the descriptor, or -1 with *err. */
static int open_regular(const char *path, struct stat *st, vqkvc_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, st) != 0) {
        vqkvc_fail(err, VQKVC_E_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(st->st_mode)) {
        vqkvc_fail(err, VQKVC_E_IO, "%s: not a regular file", path);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

vqkvc_code vqkvc_map_open(vqkvc_map *map, const char *path, vqkvc_err *err)
{
    struct stat st;
    *map = (vqkvc_map){.path = path};
    int fd = open_regular(path, &st, err);
    if (fd < 0)
        return err->code;
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            close(fd);
            return vqkvc_fail(err, VQKVC_E_IO, "%s: cannot map: %s", path, strerror(errno));
        }
        map->data = p;
        map->size = (size_t)st.st_size;
    }
    close(fd);
    return VQKVC_OK;
}

void vqkvc_map_close(vqkvc_map *map)
{
    if (map->data != NULL)
        munmap((void *)(uintptr_t)map->data, map->size);
    map->data = NULL;
    map->size = 0;
}

vqkvc_code vqkvc_read_file(const char *path, size_t max_bytes, vqkvc_buf *buf, vqkvc_err *err)
{
    struct stat st;
    char chunk[1 << 16];
    ssize_t n;
    int fd = open_regular(path, &st, err);
    if (fd < 0)
        return err->code;
    buf->len = 0;
    vqkvc_buf_put(buf, "", 0);
    while ((n = read(fd, chunk, sizeof chunk)) > 0 && buf->len <= max_bytes)
        vqkvc_buf_put(buf, chunk, (size_t)n);
    int read_errno = errno;
    close(fd);
    if (n < 0)
        return vqkvc_fail(err, VQKVC_E_IO, "%s: %s", path, strerror(read_errno));
    if (buf->len > max_bytes)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "%s: larger than %zu bytes", path, max_bytes);
    if (buf->failed)
        return vqkvc_fail(err, VQKVC_E_MEMORY, "%s: out of memory", path);
    return VQKVC_OK;
}

static int write_all(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

/* A pipe, a terminal or a device is written as it is: renaming over it would replace it. */
static vqkvc_code write_special(const char *path, const void *bytes, size_t n, vqkvc_err *err)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write_all(fd, bytes, n) != 0)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot write: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) != 0)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot write: %s", path, strerror(errno));
    return err->code;
}

vqkvc_code vqkvc_write_file(const char *path, const void *bytes, size_t n, vqkvc_err *err)
{
    struct stat st;
    if (strcmp(path, "-") == 0) {
        if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0)
            return vqkvc_fail(err, VQKVC_E_IO, "standard output: %s", strerror(errno));
        return VQKVC_OK;
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return write_special(path, bytes, n, err);
    size_t len = strlen(path);
    char *temporary = vqkvc_alloc(len + 8, 1, err);
    if (temporary == NULL)
        return err->code;
    memcpy(temporary, path, len);
    memcpy(temporary + len, ".XXXXXX", 8);
    int fd = mkstemp(temporary);
    if (fd < 0) {
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot create: %s", path, strerror(errno));
        free(temporary);
        return err->code;
    }
    mode_t mask = umask(0);
    umask(mask);
    int bad = write_all(fd, bytes, n) != 0 || fchmod(fd, 0666 & ~mask) != 0 || fsync(fd) != 0;
    if (bad)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot write: %s", path, strerror(errno));
    if (close(fd) != 0 && !bad)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot write: %s", path, strerror(errno));
    if (err->code == VQKVC_OK && rename(temporary, path) != 0)
        vqkvc_fail(err, VQKVC_E_IO, "%s: cannot rename into place: %s", path, strerror(errno));
    if (err->code != VQKVC_OK)
        unlink(temporary);
    free(temporary);
    return err->code;
}
