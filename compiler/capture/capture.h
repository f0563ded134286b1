/* capture.h - what calibration keeps of a model's run over text.
 *
 * Keys, values and queries are taken before rotation (after biases and norms), per layer. Two
 * things are kept: mergeable statistics of every token (count, mean, second moments), and of keys
 * and values a seeded uniform sample of tokens in fp16, with their positions. Queries are not
 * sampled: all that planning asks of them follows from their second moments, and they would take
 * as much again as keys and values together, or twice that.
 *
 * Memory bound while capturing (stated in `vqkvc capture --help`): statistics
 * 8 * n_layers * (2 d^2 + 2 d) bytes with d = n_kv_heads * head_dim, plus
 * 8 * n_layers * n_heads * head_dim^2 for queries; sample
 * 4 * n_sample * n_layers * head_dim * n_kv_heads bytes; plus one batch. While a
 * model runs, the statistics are held twice (the shard in flight and the sum), and 256 tokens of
 * all layers wait in fp32. It does not grow with the length of the text, but for 4 bytes a token.
 */
#ifndef VQKVC_CAPTURE_CAPTURE_H
#define VQKVC_CAPTURE_CAPTURE_H

#include <stdint.h>

#include "base/geometry.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/status.h"

typedef enum vqkvc_kind { VQKVC_KEY, VQKVC_VALUE, VQKVC_QUERY } vqkvc_kind;

/* Statistics of one kind in one layer over all captured tokens. For keys and values the vector is
 * all KV heads joined (width = n_kv_heads * head_dim) and second moments are of joined vectors; for
 * queries they are per head: moment [n_heads, head_dim, head_dim]. */
typedef struct vqkvc_stats {
    uint64_t n;
    double *mean;   /* [width] */
    double *moment; /* raw second moment E[x x'], not centred */
} vqkvc_stats;

typedef struct vqkvc_capture {
    vqkvc_arena arena; /* owns what follows */
    vqkvc_geometry geometry;
    char source[256]; /* printable: "self", a file's base name, "import" */
    vqkvc_hash source_hash;
    uint64_t seed;
    uint64_t n_tokens;     /* seen */
    int n_sample;          /* kept; at most what was asked for and at most n_tokens */
    int cap_sample;        /* room in the sample's arrays; n_sample <= cap_sample */
    int32_t *pos;          /* [n_sample] position of each sampled token in its sequence */
    int32_t *doc;          /* [n_sample] sequence it came from */
    vqkvc_stats *stats[3]; /* [kind][layer] */
    uint16_t **sample[3];  /* [kind][layer] -> fp16 [n_sample, width of kind]; queries: NULL */
    /* The output projections' Gram matrices, averaged over the query heads of a KV head:
     * Wo_h' Wo_h [n_layers, n_kv_heads, head_dim, head_dim]; NULL for an imported dump. */
    float *value_metric;
    /* Mean square of the residual stream that each layer's attention adds to, [n_layers]; a scale
     * for value_metric across layers. NULL for an imported dump. */
    float *residual_ms;
} vqkvc_capture;

/* n_heads or n_kv_heads times head_dim. */
int vqkvc_kind_width(const vqkvc_geometry *g, vqkvc_kind kind);

/* "key", "value", "query" for messages. */
const char *vqkvc_kind_name(vqkvc_kind kind);

/* An empty capture with room for cap_sample tokens: tables, pos and doc, but no layer's arrays yet.
 * The geometry is copied. The caller frees with vqkvc_capture_free(), after a failure too. */
vqkvc_code vqkvc_capture_init(vqkvc_capture *c, const vqkvc_geometry *g, int cap_sample,
                              vqkvc_err *err);
/* Zeroed statistics and sample of one kind in one layer; nothing happens if they are there. A
 * layer without them (queries of a dump that has none, a part not loaded) has n 0 and NULLs. */
vqkvc_code vqkvc_capture_alloc_layer(vqkvc_capture *c, vqkvc_kind kind, int layer, vqkvc_err *err);
/* vqkvc_capture_init() and every kind of every layer. */
vqkvc_code vqkvc_capture_alloc(vqkvc_capture *c, const vqkvc_geometry *g, int cap_sample,
                               vqkvc_err *err);

/* Adds src behind dst, which has room for it: counts and statistics as one run over both would
 * have them (to rounding), samples concatenated. VQKVC_E_USAGE if geometries differ, if room is
 * missing, or if only one of two non-empty captures has a layer's vectors or residual_ms.
 * value_metric is left alone. After a failure dst holds no meaning. */
vqkvc_code vqkvc_capture_merge(vqkvc_capture *dst, const vqkvc_capture *src, vqkvc_err *err);

/* Whether a layer has vectors of this kind. */
int vqkvc_capture_has(const vqkvc_capture *c, vqkvc_kind kind, int layer);

/* Sampled keys or values first .. first + n - 1 of one layer, widened: dst [n, width]; zeros where
 * the layer has none. */
void vqkvc_capture_read(const vqkvc_capture *c, vqkvc_kind kind, int layer, int first, int n,
                        float *dst);

void vqkvc_capture_free(vqkvc_capture *c);

#endif
