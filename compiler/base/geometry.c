#include "base/geometry.h"

#include <math.h>

void vqkvc_rope_rotate(const vqkvc_geometry *g, double position, float *x, int n_heads)
{
    double all[VQKVC_MAX_HEAD_DIM / 2];
    for (int i = 0; i < g->n_rot / 2; i++)
        all[i] = position;
    vqkvc_rope_rotate_pairs(g, all, x, n_heads);
}

void vqkvc_rope_rotate_pairs(const vqkvc_geometry *g, const double *position, float *x, int n_heads)
{
    if (g->rope_layout == VQKVC_ROPE_NONE)
        return;
    int half = g->n_rot / 2, interleaved = g->rope_layout == VQKVC_ROPE_INTERLEAVED;
    for (int i = 0; i < half; i++) {
        float c = (float)cos(position[i] * g->rope_freq[i]);
        float s = (float)sin(position[i] * g->rope_freq[i]);
        int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
        for (int h = 0; h < n_heads; h++) {
            float *v = x + (long)h * g->head_dim;
            float va = v[a], vb = v[b];
            v[a] = va * c - vb * s;
            v[b] = va * s + vb * c;
        }
    }
}
