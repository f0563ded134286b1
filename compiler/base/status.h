/* status.h - how every function of the tool reports failure.
 *
 * A function that can fail returns a vqkvc_code and takes a `vqkvc_err *err` as its last
 * parameter. On failure it calls vqkvc_fail(), which records the code and one sentence that names
 * the file and offset, or the layer and head. The first error wins: later calls of vqkvc_fail() on
 * the same err leave it alone, so clean-up code may fail freely. Only vqkvc.c exits. */
#ifndef VQKVC_BASE_STATUS_H
#define VQKVC_BASE_STATUS_H

/* name, exit status of the program, words */
#define VQKVC_CODE_LIST(X)                                                                         \
    X(OK, 0, "ok")                                                                                 \
    X(E_FAILED, 1, "failed")                                                                       \
    X(E_USAGE, 2, "wrong usage")                                                                   \
    X(E_INFEASIBLE, 2, "limits that cannot be kept together")                                      \
    X(E_IO, 3, "input or output error")                                                            \
    X(E_FORMAT, 4, "malformed input")                                                              \
    X(E_UNSUPPORTED, 5, "unsupported input")                                                       \
    X(E_MEMORY, 6, "out of memory")                                                                \
    X(E_NUMERIC, 7, "numerical failure")                                                           \
    X(E_STORE, 8, "store error")                                                                   \
    X(E_INTERRUPTED, 130, "interrupted")

typedef enum vqkvc_code {
#define X(name, exit_status, words) VQKVC_##name,
    VQKVC_CODE_LIST(X)
#undef X
} vqkvc_code;

typedef struct vqkvc_err {
    vqkvc_code code; /* VQKVC_OK until the first failure */
    char msg[1024];  /* one line, no trailing newline */
} vqkvc_err;

/* Records a failure in *err unless one is recorded already; returns err->code. */
vqkvc_code vqkvc_fail(vqkvc_err *err, vqkvc_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " before the recorded message, for callers that know the file or the layer. */
void vqkvc_err_prefix(vqkvc_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Short words for a code, and the exit status that the program ends with. */
const char *vqkvc_code_words(vqkvc_code code);
int vqkvc_exit_status(vqkvc_code code);

/* Propagates a failure to the caller. Use only where nothing has to be released. */
#define VQKVC_TRY(expr)                                                                            \
    do {                                                                                           \
        vqkvc_code try_code_ = (expr);                                                             \
        if (try_code_ != VQKVC_OK)                                                                 \
            return try_code_;                                                                      \
    } while (0)

#endif
