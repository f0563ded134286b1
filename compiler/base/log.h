/* log.h - diagnostics and progress, on stderr. stdout belongs to results.
 *
 * The level is passed, never global. On a terminal, progress is one line that is redrawn, with rate
 * and time left; elsewhere it is a plain line every 10 seconds at most and one at the end. */
#ifndef VQKVC_BASE_LOG_H
#define VQKVC_BASE_LOG_H

#include <stdint.h>

typedef struct vqkvc_log {
    int level; /* -1 quiet (errors only), 0 normal, 1 verbose */
} vqkvc_log;

/* A line on stderr if log->level >= level. */
void vqkvc_say(const vqkvc_log *log, int level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

typedef struct vqkvc_progress {
    const vqkvc_log *log;
    const char *what, *unit; /* borrowed; "capture", "tokens" */
    uint64_t total;
    double started, shown; /* seconds on a monotonic clock */
} vqkvc_progress;

void vqkvc_progress_begin(vqkvc_progress *p, const vqkvc_log *log, const char *what,
                          const char *unit, uint64_t total);
/* Call as often as convenient; draws at most 10 times a second. */
void vqkvc_progress_step(vqkvc_progress *p, uint64_t done);
void vqkvc_progress_end(vqkvc_progress *p, uint64_t done);

/* Seconds on a monotonic clock. */
double vqkvc_seconds(void);

/* Ctrl-C: vqkvc_catch_interrupts() makes SIGINT and SIGTERM set a flag; long loops ask
 * vqkvc_interrupted() and return VQKVC_E_INTERRUPTED. A second signal ends the program at once. */
void vqkvc_catch_interrupts(void);
int vqkvc_interrupted(void);

#endif
