#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

vqkvc_code vqkvc_fail(vqkvc_err *err, vqkvc_code code, const char *fmt, ...)
{
    if (err->code != VQKVC_OK)
        return err->code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    err->code = code;
    return code;
}

void vqkvc_err_prefix(vqkvc_err *err, const char *fmt, ...)
{
    char old[sizeof err->msg], prefix[256];
    memcpy(old, err->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, ap);
    va_end(ap);
    snprintf(err->msg, sizeof err->msg, "%s: %.*s", prefix,
             (int)(sizeof err->msg - sizeof prefix - 3), old);
}

const char *vqkvc_code_words(vqkvc_code code)
{
    switch (code) {
#define X(name, exit_status, words)                                                                \
    case VQKVC_##name:                                                                             \
        return words;
        VQKVC_CODE_LIST(X)
#undef X
    }
    return "unknown status";
}

int vqkvc_exit_status(vqkvc_code code)
{
    switch (code) {
#define X(name, exit_status, words)                                                                \
    case VQKVC_##name:                                                                             \
        return exit_status;
        VQKVC_CODE_LIST(X)
#undef X
    }
    return 1;
}
