/* fuzz_driver.c - runs a fuzz target without libFuzzer, so that gcc and its sanitizers are enough.
 *
 *     fuzz_xyz [-seconds N] [-seed S] [-only I] [seed files...]
 *
 * Contract of a target (tests/fuzz_xyz.c, which includes fuzz.h and is linked with this file):
 * - int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size): tries one input, returns 0, keeps
 *   no state between calls, leaks nothing, and aborts when a promise is broken that the sanitizers
 *   cannot see. It works under libFuzzer as well (clang -fsanitize=fuzzer, without this file).
 * - size_t fuzz_seed(int i, uint8_t *dst, size_t cap): writes the valid input number i, returns its
 *   size, 0 when there are no more. Used when no seed file is given: no binaries in the tree.
 *
 * Every seed runs unchanged first (inputs 0, 1, ...). Each later input I is a seed after 1 to 8
 * mutations, all drawn from the pair (S, I) alone: an input that kills the target is made again by
 * -seed S -only I, which the driver prints when it dies. An input that takes over 30 s is killed by
 * SIGALRM and reported likewise. N is 10 and S is 1 unless given; N = 0 runs the seeds only. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/rng.h"
#include "fuzz.h"

#define MAX_SEEDS   64
#define MAX_INPUT   ((size_t)1 << 20)
#define HANG_SECOND 30

/* ASan and UBSan call this before they end the process; absent in builds without them. */
extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

typedef struct seed_input {
    uint8_t *data;
    size_t size;
} seed_input;

typedef struct driver {
    uint64_t seed;
    int n_seeds;
    seed_input seeds[MAX_SEEDS];
    uint8_t *input; /* [MAX_INPUT] */
} driver;

/* What is being tried: signal handlers and death callbacks take no argument. */
static volatile uint64_t current_seed, current_input;

static void report_death(void)
{
    char line[160];
    int n = snprintf(line, sizeof line,
                     "fuzz: died in input %llu; again: -seed %llu -only %llu [same seed files]\n",
                     (unsigned long long)current_input, (unsigned long long)current_seed,
                     (unsigned long long)current_input);
    if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
        return;
}

static void on_signal(int number)
{
    report_death();
    signal(number, SIG_DFL);
    raise(number);
}

static void watch_for_death(void)
{
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(report_death);
        return;
    }
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGFPE, on_signal);
}

/* A number at which length checks tend to break: near a power of two, its negative, or the size of
 * the input. */
static uint64_t interesting(vqkvc_rng *rng, size_t size)
{
    uint64_t kind = vqkvc_rng_below(rng, 8);
    uint64_t v = kind == 0 ? size : (uint64_t)1 << vqkvc_rng_below(rng, 64);
    v += vqkvc_rng_below(rng, 3) - 1;
    return kind == 1 || kind == 2 ? 0 - v : v;
}

static void overwrite_number(driver *d, size_t size, vqkvc_rng *rng)
{
    size_t width = (size_t)1 << vqkvc_rng_below(rng, 4);
    uint64_t v = interesting(rng, size);
    if (size < width)
        return;
    size_t at = vqkvc_rng_below(rng, size - width + 1);
    for (size_t i = 0; i < width; i++)
        d->input[at + i] = (uint8_t)(v >> 8 * i);
}

/* Replaces a run of decimal digits, for formats with a textual header; keeps the input's size by
 * filling with spaces, or grows it. */
static size_t overwrite_decimal(driver *d, size_t size, vqkvc_rng *rng)
{
    char digits[24];
    size_t at = size == 0 ? 0 : vqkvc_rng_below(rng, size), old = 0;
    while (at < size && (d->input[at] < '0' || d->input[at] > '9'))
        at++;
    while (at + old < size && d->input[at + old] >= '0' && d->input[at + old] <= '9')
        old++;
    const char *sign = vqkvc_rng_below(rng, 4) == 0 ? "-" : "";
    uint64_t v = interesting(rng, size);
    size_t n = (size_t)snprintf(digits, sizeof digits, "%s%llu", sign, (unsigned long long)v);
    if (old == 0 || (n > old && size + (n - old) > MAX_INPUT))
        return size;
    if (n < old) {
        memset(d->input + at, ' ', old);
        old = n;
    }
    memmove(d->input + at + n, d->input + at + old, size - at - old);
    memcpy(d->input + at, digits, n);
    return size + n - old;
}

/* Copies a piece of some seed over, or into, the input. */
static size_t splice(driver *d, size_t size, vqkvc_rng *rng)
{
    const seed_input *from = &d->seeds[vqkvc_rng_below(rng, (uint64_t)d->n_seeds)];
    if (from->size == 0)
        return size;
    size_t at = vqkvc_rng_below(rng, size + 1), src = vqkvc_rng_below(rng, from->size);
    size_t longest = from->size - src < 256 ? from->size - src : 256;
    size_t n = 1 + vqkvc_rng_below(rng, longest), room = MAX_INPUT - size;
    if (vqkvc_rng_below(rng, 2) == 0 && n <= room) {
        memmove(d->input + at + n, d->input + at, size - at);
        size += n;
    } else if (n > size - at) {
        n = size - at;
    }
    memcpy(d->input + at, from->data + src, n);
    return size;
}

static size_t remove_piece(driver *d, size_t size, vqkvc_rng *rng)
{
    if (size == 0)
        return 0;
    size_t at = vqkvc_rng_below(rng, size), n = 1 + vqkvc_rng_below(rng, 64);
    if (n > size - at)
        n = size - at;
    memmove(d->input + at, d->input + at + n, size - at - n);
    return size - n;
}

/* Applies one random change to d->input; returns the new size. */
static size_t mutate(driver *d, size_t size, vqkvc_rng *rng)
{
    switch (vqkvc_rng_below(rng, 8)) {
    case 0:
        return size == 0 ? 0 : vqkvc_rng_below(rng, size); /* truncated */
    case 1:
        return remove_piece(d, size, rng);
    case 2:
        return splice(d, size, rng);
    case 3:
        return overwrite_decimal(d, size, rng);
    case 4:
    case 5:
        overwrite_number(d, size, rng);
        return size;
    default:
        if (size != 0)
            d->input[vqkvc_rng_below(rng, size)] ^= (uint8_t)(1u << vqkvc_rng_below(rng, 8));
        return size;
    }
}

/* Makes input number `index` from (seed, index) alone and runs it. */
static void run_input(driver *d, uint64_t index)
{
    vqkvc_rng rng = vqkvc_rng_make(d->seed, index);
    int plain = index < (uint64_t)d->n_seeds;
    uint64_t from = plain ? index : vqkvc_rng_below(&rng, (uint64_t)d->n_seeds);
    size_t size = d->seeds[from].size;
    memcpy(d->input, d->seeds[from].data, size);
    uint64_t changes = plain ? 0 : 1 + vqkvc_rng_below(&rng, 8);
    for (uint64_t i = 0; i < changes; i++)
        size = mutate(d, size, &rng);
    /* An exact copy on the heap lets ASan see a read behind the last byte. */
    uint8_t *exact = malloc(size == 0 ? 1 : size);
    if (exact == NULL)
        abort();
    memcpy(exact, d->input, size);
    current_input = index;
    alarm(HANG_SECOND);
    LLVMFuzzerTestOneInput(exact, size);
    alarm(0);
    free(exact);
}

static void add_seed(driver *d, const void *data, size_t size)
{
    seed_input *s = &d->seeds[d->n_seeds];
    s->data = malloc(size == 0 ? 1 : size);
    if (s->data == NULL)
        abort();
    memcpy(s->data, data, size);
    s->size = size;
    d->n_seeds++;
}

static int add_seed_file(driver *d, const char *path)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    if (d->n_seeds == MAX_SEEDS)
        return fprintf(stderr, "fuzz: more than %d seeds\n", MAX_SEEDS), 0;
    if (vqkvc_read_file(path, MAX_INPUT, &buf, &err) != VQKVC_OK)
        fprintf(stderr, "fuzz: %s\n", err.msg);
    else
        add_seed(d, buf.data, buf.len);
    free(buf.data);
    return err.code == VQKVC_OK;
}

static void add_own_seeds(driver *d)
{
    size_t n;
    while (d->n_seeds < MAX_SEEDS && (n = fuzz_seed(d->n_seeds, d->input, MAX_INPUT)) != 0)
        add_seed(d, d->input, n);
}

/* A decimal number; ends the program if s is none. */
static uint64_t parse_number(const char *s)
{
    char *end = NULL;
    errno = 0;
    uint64_t v = s == NULL ? 0 : strtoull(s, &end, 10);
    if (s == NULL || errno != 0 || end == s || *end != '\0') {
        fprintf(stderr, "usage: [-seconds N] [-seed S] [-only I] [seed files...]\n");
        exit(2);
    }
    return v;
}

static uint64_t run_for(driver *d, double seconds)
{
    double stop = vqkvc_seconds() + seconds;
    uint64_t n = 0;
    while (n < (uint64_t)d->n_seeds || vqkvc_seconds() < stop)
        run_input(d, n++);
    return n;
}

int main(int argc, char **argv)
{
    driver d = {.seed = 1, .input = malloc(MAX_INPUT)};
    uint64_t seconds = 10, only = UINT64_MAX, n = 1;
    int ok = d.input != NULL;
    for (int i = 1; i < argc && ok; i++) {
        if (strcmp(argv[i], "-seconds") == 0)
            seconds = parse_number(argv[++i]);
        else if (strcmp(argv[i], "-seed") == 0)
            d.seed = parse_number(argv[++i]);
        else if (strcmp(argv[i], "-only") == 0)
            only = parse_number(argv[++i]);
        else
            ok = add_seed_file(&d, argv[i]);
    }
    if (ok && d.n_seeds == 0)
        add_own_seeds(&d);
    ok = ok && d.n_seeds != 0;
    if (ok) {
        current_seed = d.seed;
        watch_for_death();
        if (only != UINT64_MAX)
            run_input(&d, only);
        else
            n = run_for(&d, (double)seconds);
        printf("%llu inputs run\n", (unsigned long long)n);
    }
    for (int i = 0; i < d.n_seeds; i++)
        free(d.seeds[i].data);
    free(d.input);
    return ok ? 0 : 1;
}
