#include "command/options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 64, LONG_BASE = 256, MAX_TYPED = 64 };

/* What a command accepts, gathered from its groups. */
typedef struct accepted {
    const char *command;
    int n;
    const vqkvc_option *at[MAX_OPTIONS];
} accepted;

const char *vqkvc_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* ---- did you mean ---- */

/* Insertions, deletions, replacements and swaps of neighbours between a and b (Damerau's distance,
 * optimal string alignment); words longer than MAX_TYPED are far from everything. */
static int distance(const char *a, const char *b)
{
    int rows[3][MAX_TYPED + 1], n = (int)strlen(b);
    int *before = rows[0], *above = rows[1], *row = rows[2];
    if (n > MAX_TYPED || strlen(a) > MAX_TYPED)
        return MAX_TYPED;
    for (int j = 0; j <= n; j++)
        above[j] = before[j] = j;
    for (int i = 1; a[i - 1] != '\0'; i++) {
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = above[j - 1] + (a[i - 1] != b[j - 1]);
            best = above[j] + 1 < best ? above[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
        int *free_row = before;
        before = above;
        above = row;
        row = free_row;
    }
    return above[n];
}

const char *vqkvc_nearest(const char *typed, const char *(*get)(const void *list, int i),
                          const void *list)
{
    const char *nearest = NULL, *word;
    int limit = 1 + (int)strlen(typed) / 4, least = limit + 1;
    for (int i = 0; (word = get(list, i)) != NULL; i++) {
        int d = distance(typed, word);
        if (d < least) {
            least = d;
            nearest = word;
        }
    }
    return nearest;
}

static const char *accepted_name(const void *list, int i)
{
    const accepted *all = list;
    return i < all->n ? all->at[i]->name : NULL;
}

/* ---- values ---- */

/* The i-th word of "one|two", copied to word [MAX_TYPED]; 0 behind the last. */
static int choice_word(const char *choices, int i, char *word)
{
    for (; i > 0 && choices != NULL; i--) {
        choices = strchr(choices, '|');
        choices = choices != NULL ? choices + 1 : NULL;
    }
    if (choices == NULL)
        return 0;
    snprintf(word, MAX_TYPED, "%.*s", (int)strcspn(choices, "|"), choices);
    return 1;
}

static vqkvc_code set_choice(const accepted *all, const vqkvc_option *opt, const char *text,
                             const char **out, vqkvc_err *err)
{
    const char *choices = opt->choices != NULL ? opt->choices : opt->arg;
    char word[MAX_TYPED], nearest[MAX_TYPED] = "";
    int least = 2 + (int)strlen(text) / 4;
    for (int i = 0; choice_word(choices, i, word); i++) {
        int d = distance(text, word);
        if (d == 0) {
            *out = text;
            return VQKVC_OK;
        }
        if (d < least) {
            least = d;
            memcpy(nearest, word, sizeof nearest);
        }
    }
    return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s is '%.60s', not one of %s%s%s%s", all->command,
                      opt->name, text, choices, nearest[0] != '\0' ? "; did you mean '" : "",
                      nearest, nearest[0] != '\0' ? "'?" : "");
}

/* Whole words alone: strtoll() and its kin pass over leading space and stop at what they do not
 * know. */
static int is_number(const char *text, const char *end)
{
    return errno == 0 && end != text && *end == '\0' && strchr(" \t\n\v\f\r+", text[0]) == NULL;
}

static vqkvc_code bad_number(const accepted *all, const vqkvc_option *opt, const char *text,
                             const char *what, vqkvc_err *err)
{
    return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s is '%.60s', not %s from %.10g to %.10g",
                      all->command, opt->name, text, what, opt->low, opt->high);
}

static vqkvc_code set_integer(const accepted *all, const vqkvc_option *opt, const char *text,
                              void *out, vqkvc_err *err)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (!is_number(text, end) || (double)n < opt->low || (double)n > opt->high)
        return bad_number(all, opt, text, "an integer", err);
    if (opt->type == VQKVC_OPT_INT)
        *(int *)out = (int)n;
    else
        *(int64_t *)out = n;
    return VQKVC_OK;
}

static vqkvc_code set_unsigned(const accepted *all, const vqkvc_option *opt, const char *text,
                               uint64_t *out, vqkvc_err *err)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    if (!is_number(text, end) || text[0] == '-')
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: --%s is '%.60s', not an integer from 0 to 2^64 - 1", all->command,
                          opt->name, text);
    return VQKVC_OK;
}

static vqkvc_code set_number(const accepted *all, const vqkvc_option *opt, const char *text,
                             double *out, vqkvc_err *err)
{
    char *end;
    errno = 0;
    *out = 0;
    if (opt->zero != NULL && strcmp(text, opt->zero) == 0)
        return VQKVC_OK;
    *out = strtod(text, &end);
    if (!is_number(text, end) || !(*out >= opt->low && *out <= opt->high))
        return bad_number(all, opt, text, "a number", err);
    return VQKVC_OK;
}

static vqkvc_code add_word(const accepted *all, const vqkvc_option *opt, const char *text,
                           vqkvc_words *words, vqkvc_err *err)
{
    if (words->n == VQKVC_MAX_WORDS)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s more than %d times", all->command,
                          opt->name, VQKVC_MAX_WORDS);
    words->at[words->n++] = text;
    return VQKVC_OK;
}

/* text: NULL for a flag. */
static vqkvc_code set_value(const accepted *all, const vqkvc_option *opt, const char *text,
                            vqkvc_options *o, vqkvc_err *err)
{
    void *out = (char *)o + opt->offset;
    if (text != NULL && text[0] == '\0')
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s is empty", all->command, opt->name);
    switch (opt->type) {
    case VQKVC_OPT_FLAG:
        *(int *)out = 1;
        return VQKVC_OK;
    case VQKVC_OPT_INT:
    case VQKVC_OPT_INT64:
        return set_integer(all, opt, text, out, err);
    case VQKVC_OPT_UINT64:
        return set_unsigned(all, opt, text, out, err);
    case VQKVC_OPT_NUMBER:
        return set_number(all, opt, text, out, err);
    case VQKVC_OPT_TEXT:
        *(const char **)out = text;
        return VQKVC_OK;
    case VQKVC_OPT_CHOICE:
        return set_choice(all, opt, text, out, err);
    case VQKVC_OPT_WORDS:
        return add_word(all, opt, text, out, err);
    }
    return VQKVC_OK;
}

/* ---- parsing ---- */

static void gather(const vqkvc_command *command, accepted *all)
{
    *all = (accepted){.command = command->name};
    for (int g = 0; command->groups[g] != NULL; g++)
        for (const vqkvc_option *opt = command->groups[g]; opt->name != NULL; opt++)
            if (all->n < MAX_OPTIONS)
                all->at[all->n++] = opt;
}

/* getopt's own tables: long options are LONG_BASE plus their index. The ':' in front makes it tell
 * a missing argument from an unknown option. */
static void getopt_tables(const accepted *all, struct option *longs, char *shorts)
{
    *shorts++ = ':';
    for (int i = 0; i < all->n; i++) {
        const vqkvc_option *opt = all->at[i];
        int has_arg = opt->type == VQKVC_OPT_FLAG ? no_argument : required_argument;
        longs[i] = (struct option){opt->name, has_arg, NULL, LONG_BASE + i};
        if (opt->letter != '\0')
            *shorts++ = opt->letter;
        if (opt->letter != '\0' && has_arg == required_argument)
            *shorts++ = ':';
    }
    longs[all->n] = (struct option){0};
    *shorts = '\0';
}

static const vqkvc_option *by_getopt(const accepted *all, int c)
{
    if (c >= LONG_BASE && c < LONG_BASE + all->n)
        return all->at[c - LONG_BASE];
    for (int i = 0; i < all->n; i++)
        if (all->at[i]->letter != '\0' && all->at[i]->letter == c)
            return all->at[i];
    return NULL;
}

/* How many options begin like the word: getopt takes an unambiguous beginning. */
static int count_beginning(const accepted *all, const char *word)
{
    int n = 0;
    for (int i = 0; i < all->n; i++)
        n += strncmp(all->at[i]->name, word, strlen(word)) == 0;
    return n;
}

static vqkvc_code refuse(const accepted *all, int c, const char *word, vqkvc_err *err)
{
    const vqkvc_option *opt = by_getopt(all, optopt);
    char typed[MAX_TYPED];
    if (opt != NULL && c == ':')
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s wants an argument: %s", all->command,
                          opt->name, opt->arg);
    if (opt != NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --%s takes no argument", all->command,
                          opt->name);
    if (optopt != 0)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: unknown option -%c; `vqkvc %s --help` lists them", all->command,
                          optopt, all->command);
    word += strspn(word, "-");
    snprintf(typed, sizeof typed, "%.*s", (int)strcspn(word, "="), word);
    if (count_beginning(all, typed) > 1)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: option --%s is ambiguous", all->command, typed);
    const char *nearest = vqkvc_nearest(typed, accepted_name, all);
    if (nearest != NULL)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: unknown option --%s; did you mean --%s?",
                          all->command, typed, nearest);
    return vqkvc_fail(err, VQKVC_E_USAGE, "%s: unknown option --%s; `vqkvc %s --help` lists them",
                      all->command, typed, all->command);
}

static vqkvc_code set_fallbacks(const accepted *all, vqkvc_options *o, vqkvc_err *err)
{
    *o = (vqkvc_options){0};
    for (int i = 0; i < all->n; i++)
        if (all->at[i]->fallback != NULL)
            VQKVC_TRY(set_value(all, all->at[i], all->at[i]->fallback, o, err));
    return VQKVC_OK;
}

static vqkvc_code check_arguments(const vqkvc_command *command, const vqkvc_options *o,
                                  vqkvc_err *err)
{
    if (o->n_args > command->max_args)
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "%s: unexpected argument '%.200s'; usage: vqkvc %s %s", command->name,
                          o->args[command->max_args], command->name, command->usage);
    if (o->n_args < command->min_args)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: something is missing; usage: vqkvc %s %s",
                          command->name, command->name, command->usage);
    if (o->quiet && o->verbose)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --quiet and --verbose exclude each other",
                          command->name);
    if (o->db != NULL && o->no_db)
        return vqkvc_fail(err, VQKVC_E_USAGE, "%s: --db and --no-db exclude each other",
                          command->name);
    return VQKVC_OK;
}

vqkvc_code vqkvc_options_parse(const vqkvc_command *command, int argc, char **argv,
                               vqkvc_options *o, vqkvc_err *err)
{
    accepted all;
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 2];
    int c;
    gather(command, &all);
    getopt_tables(&all, longs, shorts);
    VQKVC_TRY(set_fallbacks(&all, o, err));
    opterr = 0;
    optind = 0; /* glibc: start over */
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const vqkvc_option *opt = c == '?' || c == ':' ? NULL : by_getopt(&all, c);
        if (opt == NULL)
            return refuse(&all, c, argv[optind - 1], err);
        VQKVC_TRY(set_value(&all, opt, opt->type == VQKVC_OPT_FLAG ? NULL : optarg, o, err));
        o->given |= opt->mark;
        if (o->help)
            return VQKVC_OK;
    }
    o->n_args = argc - optind;
    o->args = argv + optind;
    return check_arguments(command, o, err);
}

/* ---- the canonical command line ---- */

void vqkvc_options_canonical_word(const char *word, vqkvc_buf *out)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "._-+,:=@%";
    vqkvc_buf_puts(out, " ");
    if (strspn(word, plain) == strlen(word)) {
        vqkvc_buf_puts(out, word);
        return;
    }
    vqkvc_buf_puts(out, "'");
    for (; *word != '\0'; word++)
        vqkvc_buf_put(out, *word == '\'' ? "'\\''" : word, *word == '\'' ? 4 : 1);
    vqkvc_buf_puts(out, "'");
}

static void put_option(const vqkvc_option *opt, const char *value, vqkvc_buf *out)
{
    vqkvc_buf_printf(out, " --%s", opt->name);
    if (value == NULL)
        return;
    vqkvc_options_canonical_word(opt->is_file ? vqkvc_base_name(value) : value, out);
}

/* The value as text in number [32], or NULL if it is that of a fresh vqkvc_options. */
static const char *value_text(const vqkvc_option *opt, const void *value, char *number)
{
    switch (opt->type) {
    case VQKVC_OPT_INT:
        snprintf(number, 32, "%d", *(const int *)value);
        break;
    case VQKVC_OPT_INT64:
        snprintf(number, 32, "%lld", (long long)*(const int64_t *)value);
        break;
    case VQKVC_OPT_UINT64:
        snprintf(number, 32, "%llu", (unsigned long long)*(const uint64_t *)value);
        break;
    case VQKVC_OPT_NUMBER:
        snprintf(number, 32, "%.9g", *(const double *)value);
        break;
    case VQKVC_OPT_TEXT:
    case VQKVC_OPT_CHOICE:
        return *(const char *const *)value;
    case VQKVC_OPT_FLAG:
    case VQKVC_OPT_WORDS:
        return NULL;
    }
    return strcmp(number, "0") == 0 && opt->fallback == NULL ? NULL : number;
}

static void put_canonical(const vqkvc_option *opt, const void *value, vqkvc_buf *out)
{
    char number[32];
    if (opt->type == VQKVC_OPT_FLAG) {
        if (*(const int *)value)
            put_option(opt, NULL, out);
    } else if (opt->type == VQKVC_OPT_WORDS) {
        const vqkvc_words *words = value;
        for (int i = 0; i < words->n; i++)
            put_option(opt, words->at[i], out);
    } else {
        const char *text = value_text(opt, value, number);
        if (text != NULL &&
            (opt->always || opt->fallback == NULL || strcmp(text, opt->fallback) != 0))
            put_option(opt, text, out);
    }
}

void vqkvc_options_canonical(const vqkvc_options *o, const vqkvc_option *group, unsigned without,
                             vqkvc_buf *out)
{
    for (const vqkvc_option *opt = group; opt->name != NULL; opt++)
        if ((opt->mark & without) == 0)
            put_canonical(opt, (const char *)o + opt->offset, out);
}

void vqkvc_options_values(const vqkvc_options *o, const vqkvc_option *group, unsigned without,
                          vqkvc_buf *out)
{
    for (const vqkvc_option *opt = group; opt->name != NULL; opt++) {
        const void *value = (const char *)o + opt->offset;
        char number[32];
        const char *text;
        if ((opt->mark & without) != 0)
            continue;
        if (opt->type == VQKVC_OPT_FLAG)
            text = *(const int *)value ? "1" : NULL;
        else
            text = value_text(opt, value, number);
        vqkvc_buf_printf(out, ";%s=%s", opt->name, text != NULL ? text : "");
    }
}
