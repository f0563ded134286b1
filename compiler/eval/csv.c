/* The table for machines that keep it: comma-separated, fixed formats, so that two runs compare
 * line by line. */
#include "eval/table.h"

#include <string.h>

/* In quotes where the text holds what the format gives a meaning (RFC 4180). */
static void put_field(vqkvc_buf *out, const char *text)
{
    if (strpbrk(text, ",\"\r\n") == NULL) {
        vqkvc_buf_puts(out, text);
        return;
    }
    vqkvc_buf_puts(out, "\"");
    for (; *text != '\0'; text++) {
        if (*text == '"')
            vqkvc_buf_puts(out, "\"");
        vqkvc_buf_put(out, text, 1);
    }
    vqkvc_buf_puts(out, "\"");
}

/* A word that may be unknown. */
static void put_word(vqkvc_buf *out, const char *word)
{
    vqkvc_buf_puts(out, ",");
    if (word != NULL)
        put_field(out, word);
}

static void put_figures(vqkvc_buf *out, const vqkvc_row *r)
{
    if (r->cost != NULL)
        vqkvc_buf_printf(out, ",%.4f,%.4f,%.4f,%.4f", r->cost->code_bits,
                         vqkvc_cost_stored(r->cost), r->cost->total_bits, r->cost->scan_bits);
    else
        vqkvc_buf_puts(out, ",,,,");
    if (r->measured != NULL)
        vqkvc_buf_printf(out, ",%.3e,%.3f,%.4f,%.2e", r->measured->late.kl,
                         100 * (r->measured->late.ppl_ratio - 1), r->measured->late.top1,
                         r->measured->late.worst_kl);
    else
        vqkvc_buf_puts(out, ",,,,");
    if (r->factor > 0)
        vqkvc_buf_printf(out, ",%.3f\n", r->factor);
    else
        vqkvc_buf_puts(out, ",\n");
}

void vqkvc_table_csv(const vqkvc_table_info *info, const vqkvc_row *rows, int n, int head,
                     vqkvc_buf *out)
{
    if (head)
        vqkvc_buf_puts(out, "text,context,windows,step,scheme,calibration,vectors,codes,stored,"
                            "total,scan,kl,ppl_percent,top1,worst_kl,factor\n");
    for (int i = 0; i < n; i++) {
        put_field(out, info->text);
        vqkvc_buf_printf(out, ",%d,%d,%d", info->context, info->n_windows, info->step);
        put_word(out, rows[i].scheme);
        put_word(out, rows[i].calibration);
        put_word(out, rows[i].vectors);
        put_figures(out, &rows[i]);
    }
}
