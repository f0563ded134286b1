#include "base/log.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

void vqkvc_say(const vqkvc_log *log, int level, const char *fmt, ...)
{
    if (log->level < level)
        return;
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

double vqkvc_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void draw(const vqkvc_progress *p, uint64_t done, double now, int last)
{
    double spent = now - p->started, rate = spent > 0 ? (double)done / spent : 0;
    double left = rate > 0 && p->total > done ? (double)(p->total - done) / rate : 0;
    int tty = isatty(2);
    char line[256], bar[25];
    size_t filled = p->total > 0 ? (size_t)(24.0 * (double)done / (double)p->total) : 24;
    memset(bar, '.', 24);
    memset(bar, '#', filled > 24 ? 24 : filled);
    bar[24] = '\0';
    if (last)
        snprintf(line, sizeof line, "%s: %llu %s in %.1f s (%.0f/s)", p->what,
                 (unsigned long long)done, p->unit, spent, rate);
    else if (!tty)
        snprintf(line, sizeof line, "%s: %llu of %llu %s, %.0f/s, %.0f s left", p->what,
                 (unsigned long long)done, (unsigned long long)p->total, p->unit, rate, left);
    else
        snprintf(line, sizeof line, "%s [%s] %llu/%llu %s, %.0f/s, %.0f s left", p->what, bar,
                 (unsigned long long)done, (unsigned long long)p->total, p->unit, rate, left);
    fprintf(stderr, tty ? "\r%s\033[K%s" : "%s%s", line, tty && !last ? "" : "\n");
    fflush(stderr);
}

void vqkvc_progress_begin(vqkvc_progress *p, const vqkvc_log *log, const char *what,
                          const char *unit, uint64_t total)
{
    *p = (vqkvc_progress){.log = log, .what = what, .unit = unit, .total = total};
    p->started = p->shown = vqkvc_seconds();
}

void vqkvc_progress_step(vqkvc_progress *p, uint64_t done)
{
    double now = vqkvc_seconds();
    if (p->log->level < 0 || now - p->shown < (isatty(2) ? 0.1 : 10.0))
        return;
    p->shown = now;
    draw(p, done, now, 0);
}

void vqkvc_progress_end(vqkvc_progress *p, uint64_t done)
{
    if (p->log->level >= 0)
        draw(p, done, vqkvc_seconds(), 1);
}

static void on_signal(int sig)
{
    if (interrupted)
        _exit(128 + sig);
    interrupted = 1;
}

void vqkvc_catch_interrupts(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int vqkvc_interrupted(void)
{
    return interrupted;
}
