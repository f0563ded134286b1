#include "base/hash.h"

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

vqkvc_hash vqkvc_hash_bytes(const void *bytes, size_t n)
{
    XXH128_hash_t h = XXH3_128bits(bytes, n);
    vqkvc_hash out;
    snprintf(out.hex, sizeof out.hex, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
    return out;
}

vqkvc_hash vqkvc_hash_text(const char *text)
{
    return vqkvc_hash_bytes(text, strlen(text));
}
