/* One line a figure, "name value unit": what scripts and people that follow a number read. */
#include "eval/table.h"

#include <string.h>

static void put(vqkvc_buf *out, const char *name, const char *scheme, double value,
                const char *unit)
{
    vqkvc_buf_printf(out, "%s.%s %.9g %s\n", name, scheme, value, unit);
}

void vqkvc_table_figures(const vqkvc_table_info *info, const vqkvc_row *rows, int n, vqkvc_buf *out)
{
    for (int i = 0; i < n; i++) {
        const vqkvc_row *r = &rows[i];
        if (r->measured != NULL) {
            put(out, "fidelity.kl", r->scheme, r->measured->late.kl, "nats");
            put(out, "fidelity.ppl_ratio", r->scheme, r->measured->late.ppl_ratio, "ratio");
            put(out, "fidelity.ppl", r->scheme, 100 * (r->measured->late.ppl_ratio - 1), "percent");
            put(out, "fidelity.top1", r->scheme, r->measured->late.top1, "fraction");
            put(out, "fidelity.worst_kl", r->scheme, r->measured->late.worst_kl, "nats");
        }
        if (r->cost != NULL) {
            put(out, "bits", r->scheme, vqkvc_cost_stored(r->cost), "bits/value");
            put(out, "bits.total", r->scheme, r->cost->total_bits, "bits/value");
            put(out, "scan", r->scheme, r->cost->scan_bits, "bits/value");
        }
        if (r->timing != NULL && r->timing->ns > 0) {
            put(out, "speed.attend_ns", r->scheme, r->timing->ns, "ns/token/head");
            put(out, "speed.memory_floor_ns", r->scheme, r->timing->floor_ns, "ns/token/head");
        }
        if (r->codec != NULL) {
            put(out, "header.bytes", r->scheme, (double)r->codec->header_bytes, "bytes");
            put(out, "header.compile_seconds", r->scheme, r->codec->compile_seconds, "s");
        }
    }
    if (info->speed != NULL) {
        put(out, "speed.attend_ns", "f16_in_tree", info->speed->f16.ns, "ns/token/head");
        put(out, "speed", "bandwidth", info->speed->bandwidth * 1e-9, "GB/s");
    }
}
