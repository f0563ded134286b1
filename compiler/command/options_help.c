/* The help of a command, made from its tables. */
#include "command/options.h"

#include "command/schemes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 92, INDENT = 26, SCHEME_INDENT = 14 };

/* Words of text, wrapped at WIDTH and begun at `indent`; the cursor stands in column `at`. */
static void put_wrapped(vqkvc_buf *out, const char *text, int at, int indent)
{
    if (at < indent)
        vqkvc_buf_printf(out, "%*s", indent - at, "");
    at = at < indent ? indent : at;
    for (int first = 1; *text != '\0'; first = 0) {
        int n = (int)strcspn(text, " ");
        if (!first && at + 1 + n > WIDTH) {
            vqkvc_buf_printf(out, "\n%*s", indent, "");
            at = indent;
        } else if (!first) {
            vqkvc_buf_puts(out, " ");
            at++;
        }
        vqkvc_buf_put(out, text, (size_t)n);
        at += n;
        text += n;
        text += strspn(text, " ");
    }
    vqkvc_buf_puts(out, "\n");
}

static void put_option(const vqkvc_option *opt, vqkvc_buf *out)
{
    vqkvc_buf text = {0};
    size_t start = out->len;
    if (opt->letter != '\0')
        vqkvc_buf_printf(out, "  -%c, --%s", opt->letter, opt->name);
    else
        vqkvc_buf_printf(out, "      --%s", opt->name);
    if (opt->arg != NULL)
        vqkvc_buf_printf(out, " %s", opt->arg);
    int at = (int)(out->len - start);
    if (at + 2 > INDENT) {
        vqkvc_buf_puts(out, "\n");
        at = 0;
    }
    vqkvc_buf_puts(&text, opt->help);
    if (opt->fallback != NULL)
        vqkvc_buf_printf(&text, " (default: %s)", opt->fallback);
    put_wrapped(out, text.failed ? opt->help : text.data, at, INDENT);
    free(text.data);
}

/* Text whose lines are paragraphs. */
static void put_paragraphs(vqkvc_buf *out, const char *text)
{
    while (*text != '\0') {
        char line[1024];
        size_t n = strcspn(text, "\n");
        snprintf(line, sizeof line, "%.*s", (int)n, text);
        put_wrapped(out, line, 0, 0);
        text += n;
        text += *text == '\n';
    }
}

/* The table of schemes: name, what it is, the options that are its own. */
static void put_schemes(vqkvc_buf *out)
{
    vqkvc_buf_puts(out, "\nschemes [and the options that are theirs]:\n");
    for (int i = 0; vqkvc_scheme_at(i) != NULL; i++) {
        const vqkvc_scheme *s = vqkvc_scheme_at(i);
        vqkvc_buf text = {0};
        int n = 0;
        vqkvc_buf_puts(&text, s->summary);
        if (s->calibrated)
            vqkvc_buf_puts(&text, "; calibrated");
        for (const vqkvc_option *opt = vqkvc_options_scheme; opt->name != NULL; opt++)
            if ((opt->mark & s->takes) != 0)
                vqkvc_buf_printf(&text, "%s--%s", n++ == 0 ? " [" : " ", opt->name);
        if (n > 0)
            vqkvc_buf_puts(&text, "]");
        vqkvc_buf_printf(out, "  %s", s->name);
        put_wrapped(out, text.failed ? s->summary : text.data, 2 + (int)strlen(s->name),
                    SCHEME_INDENT);
        free(text.data);
    }
}

void vqkvc_options_help(const vqkvc_command *command, vqkvc_buf *out)
{
    vqkvc_buf_printf(out, "usage: vqkvc %s %s\n\n", command->name, command->usage);
    put_paragraphs(out, command->about);
    vqkvc_buf_puts(out, "\noptions:\n");
    for (int g = 0; command->groups[g] != NULL; g++)
        for (const vqkvc_option *opt = command->groups[g]; opt->name != NULL; opt++)
            put_option(opt, out);
    for (int g = 0; command->groups[g] != NULL; g++)
        if (command->groups[g] == vqkvc_options_scheme)
            put_schemes(out);
    vqkvc_buf_printf(out, "\nexamples:\n%s", command->examples);
}
