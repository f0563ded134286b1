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

void vqkvc_table_csv(const vqkvc_table_info *info, const vqkvc_row *rows, int n, int head,
                     vqkvc_buf *out)
{
    if (head)
        vqkvc_buf_puts(out, "text,context,windows,step,scheme,codes,stored,total,scan,kl,"
                            "ppl_ratio,top1,worst_kl\n");
    for (int i = 0; i < n; i++) {
        const vqkvc_row *r = &rows[i];
        put_field(out, info->text);
        vqkvc_buf_printf(out, ",%d,%d,%d,", info->context, info->n_windows, info->step);
        put_field(out, r->scheme);
        if (r->cost != NULL)
            vqkvc_buf_printf(out, ",%.4f,%.4f,%.4f,%.4f", r->cost->code_bits,
                             r->cost->code_bits + r->cost->gain_bits, r->cost->total_bits,
                             r->cost->scan_bits);
        else
            vqkvc_buf_puts(out, ",,,,");
        if (r->measured != NULL)
            vqkvc_buf_printf(out, ",%.3e,%.5f,%.4f,%.2e\n", r->measured->late.kl,
                             r->measured->late.ppl_ratio, r->measured->late.top1,
                             r->measured->late.worst_kl);
        else
            vqkvc_buf_puts(out, ",,,,\n");
    }
}
