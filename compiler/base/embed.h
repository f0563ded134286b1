/* embed.h - a file of the source tree inside the program, through the assembler's .incbin.
 *
 * VQKVC_EMBED(name, "path/from/the/repository/root") defines
 *   const char name[];           the bytes, followed by a NUL
 *   const char name_end[];       the NUL's address: name_end - name is the length
 * Paths are relative to the directory that make runs in; list them as prerequisites in Makefile. */
#ifndef VQKVC_BASE_EMBED_H
#define VQKVC_BASE_EMBED_H

#define VQKVC_EMBED(name, path)                                                                    \
    __asm__(".pushsection .rodata\n"                                                               \
            ".global " #name "\n.balign 16\n" #name ":\n"                                          \
            ".incbin \"" path "\"\n"                                                               \
            ".global " #name "_end\n" #name "_end:\n.byte 0\n"                                     \
            ".popsection\n");                                                                      \
    extern const char name[], name##_end[]

#endif
