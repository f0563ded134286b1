/* fuzz.h - what a fuzz target shares with the driver; the contract stands in fuzz_driver.c. */
#ifndef VQKVC_TESTS_FUZZ_H
#define VQKVC_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(int i, uint8_t *dst, size_t cap);

/* An unnamed file in memory with the given bytes. Its path, which an open() accepts until the
 * descriptor is closed, goes to path; returns the descriptor, which the caller closes. */
static inline int fuzz_file(const uint8_t *data, size_t size, char path[64])
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    for (size_t done = 0; fd >= 0 && done < size;) {
        ssize_t n = write(fd, data + done, size - done);
        if (n <= 0)
            abort();
        done += (size_t)n;
    }
    if (fd < 0)
        abort();
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

/* Keeps the compiler from dropping a computation whose result nobody wants: reading is the test. */
static inline void fuzz_use(const void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

#endif
