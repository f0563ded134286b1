/* parts.h - the text of runtime/, as it is spliced into headers. */
#ifndef GEN_PARTS_H
#define GEN_PARTS_H

#include "base/memory.h"

/* Appends the named part ("api", "types", "kernels", ...) with vqkv_ and VQKV_ replaced by prefix,
 * and the suffix _ISA by _isa if isa is not NULL. */
void gen_part(vqkvc_buf *out, const char *name, const char *prefix, const char *isa);
/* Appends text of the user or the model to what gen_text() will be given: as it is there, but for
 * characters that could end a comment or a line. */
void gen_put_user(vqkvc_buf *out, const char *s);
/* The same replacement for text of one's own. */
void gen_text(vqkvc_buf *out, const char *text, size_t n, const char *prefix, const char *isa);
/* Whether the parts use the word themselves, or one that begins with it and '_': as a prefix it
 * would give two things one name. */
int gen_word_is_taken(const char *word);

#endif
