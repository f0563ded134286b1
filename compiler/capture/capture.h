/* capture.h - what calibration keeps of a model's run over text.
 *
 * Keys, values and queries are taken before rotation (after biases and norms), per layer. Two
 * things are kept: mergeable statistics of every token (count, mean, second moments), and a seeded
 * uniform sample of tokens in fp16, with their positions.
 *
 * Memory bound while capturing (stated in `vqkvc capture --help`): statistics
 * 8 * n_layers * (2 d^2 + 2 d) bytes with d = n_kv_heads * head_dim, plus
 * 8 * n_layers * n_heads * head_dim^2 for queries; sample
 * 2 * n_sample * n_layers * head_dim * (n_heads + 2 n_kv_heads) bytes; plus one batch. It does not
 * grow with the length of the text. */
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
    uint64_t n_tokens; /* seen */
    int n_sample;      /* kept; at most what was asked for and at most n_tokens */
    int32_t *pos;      /* [n_sample] position of each sampled token in its sequence */
    int32_t *doc;      /* [n_sample] sequence it came from */
    vqkvc_stats *stats[3]; /* [kind][layer] */
    uint16_t **sample[3];  /* [kind][layer] -> fp16 [n_sample, width of kind] */
    /* The output projections' Gram matrices, averaged over the query heads of a KV head:
     * Wo_h' Wo_h [n_layers, n_kv_heads, head_dim, head_dim]; NULL for an imported dump. */
    float *value_metric;
    /* Mean square of the residual stream that each layer's attention adds to, [n_layers]; a scale
     * for value_metric across layers. NULL for an imported dump. */
    float *residual_ms;
} vqkvc_capture;

/* n_heads or n_kv_heads times head_dim. */
int vqkvc_kind_width(const vqkvc_geometry *g, vqkvc_kind kind);

/* Sampled vectors first .. first + n - 1 of one layer, widened: dst [n, width]. */
void vqkvc_capture_read(const vqkvc_capture *c, vqkvc_kind kind, int layer, int first, int n,
                        float *dst);

void vqkvc_capture_free(vqkvc_capture *c);

#endif
