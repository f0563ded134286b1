/* load.h - compiles an emitted header into a shared object and loads it, so that what is measured
 * is the emitted code itself.
 *
 * The compiler is $CC, else cc; it runs without a shell, in a private temporary directory ($TMPDIR,
 * else /tmp) that is gone when the call returns, whatever happened. A header is code: load only one
 * that you would also compile and run. */
#ifndef VQKVC_EVAL_LOAD_H
#define VQKVC_EVAL_LOAD_H

#include <stddef.h>

#include "base/geometry.h"
#include "base/status.h"
#include "eval/codec_table.h"

typedef struct vqkvc_codec {
    const struct vqkvc_codec_table *table; /* valid until vqkvc_codec_free() */
    void *handle;                          /* of dlopen */
    size_t header_bytes;
    double compile_seconds;
} vqkvc_codec;

/* Compiles and loads a header of n bytes; `name` is used in messages only. Fails with E_FORMAT for
 * what is no emitted header or does not compile (the message holds the compiler's words), and with
 * E_UNSUPPORTED for an ABI version that this tool does not know. After a failure *codec is empty.
 */
vqkvc_code vqkvc_codec_load(vqkvc_codec *codec, const char *name, const void *header, size_t n,
                            vqkvc_err *err);
vqkvc_code vqkvc_codec_load_file(vqkvc_codec *codec, const char *path, vqkvc_err *err);
/* Fails with E_USAGE, naming the field, if the codec was made for another shape of model. */
vqkvc_code vqkvc_codec_check(const vqkvc_codec *codec, const char *name, const vqkvc_geometry *g,
                             vqkvc_err *err);
/* The first line that the compiler says of itself into text [size]; cut where it does not fit. */
vqkvc_code vqkvc_compiler_version(char *text, size_t size, vqkvc_err *err);
/* Unloads the code; caches over it must be gone. */
void vqkvc_codec_free(vqkvc_codec *codec);

#endif
