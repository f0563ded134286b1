/* hash.h - content hashes: XXH3, 128 bits, from libxxhash, printed as 32 hex digits.
 *
 * They name artifacts and detect damage; they are no defence against somebody who wants two files
 * to collide. */
#ifndef VQKVC_BASE_HASH_H
#define VQKVC_BASE_HASH_H

#include <stddef.h>

#define VQKVC_HASH_CHARS 33 /* 32 hex digits and a NUL */

typedef struct vqkvc_hash {
    char hex[VQKVC_HASH_CHARS];
} vqkvc_hash;

vqkvc_hash vqkvc_hash_bytes(const void *bytes, size_t n);
/* The hash of a NUL-terminated text, such as a recipe "kind=pca;layer=3;from=<hash>". */
vqkvc_hash vqkvc_hash_text(const char *text);

#endif
