/* The simulated capture has the structure it promises, and the metric of keys, which comes from
 * moments of queries alone, is what turning every query by every distance would give. */
#include <math.h>
#include <string.h>

#include <criterion/criterion.h>
#include <omp.h>

#include "base/matrix.h"
#include "capture/blob.h"
#include "capture/simulate.h"
#include "plan/calibration.h"

static const vqkvc_log quiet = {.level = -1};

static vqkvc_capture simulate(const char *shape, int n_tokens, int n_sample)
{
    vqkvc_err err = {0};
    vqkvc_geometry g;
    vqkvc_capture c;
    vqkvc_capture_params params = {.n_tokens = n_tokens, .n_sample = n_sample, .window = 256};
    vqkvc_matrix_init();
    cr_assert_eq(vqkvc_simulate_geometry(shape, &g, &err), VQKVC_OK, "%s", err.msg);
    cr_assert_eq(vqkvc_capture_simulate(&g, &params, &quiet, &c, &err), VQKVC_OK, "%s", err.msg);
    return c;
}

Test(simulate, shapes_are_checked)
{
    static const char *const bad[] = {"",          "32",           "32x32x8",     "32x32x8x128x1",
                                      "0x32x8x64", "32x30x8x128",  "2x2x2x63",    "2x2x2x1024",
                                      "-1x2x2x64", "9999x2x2x64",  "2 x2x2x64",   "2xx2x64",
                                      "2x2x2x64 ", "0x1p3x2x2x64", "2x2x2x9e9999"};
    vqkvc_geometry g;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        vqkvc_err err = {0};
        cr_expect_eq(vqkvc_simulate_geometry(bad[i], &g, &err), VQKVC_E_USAGE, "'%s'", bad[i]);
    }
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_simulate_geometry("32x32x8x128", &g, &err), VQKVC_OK);
    cr_assert(g.n_layers == 32 && g.n_heads == 32 && g.n_kv_heads == 8 && g.head_dim == 128);
}

Test(simulate, bytes_do_not_depend_on_threads)
{
    vqkvc_hash hash[2];
    for (int i = 0; i < 2; i++) {
        vqkvc_err err = {0};
        vqkvc_buf bytes = {0};
        omp_set_num_threads(1 + 2 * i);
        vqkvc_capture c = simulate("3x4x2x16", 700, 300);
        cr_assert_eq(c.n_sample, 300);
        cr_assert_eq(c.stats[VQKVC_QUERY][2].n, 700);
        cr_assert_eq(vqkvc_capture_write(&c, &bytes, &err), VQKVC_OK);
        hash[i] = vqkvc_hash_bytes(bytes.data, bytes.len);
        free(bytes.data);
        vqkvc_capture_free(&c);
    }
    cr_assert_str_eq(hash[0].hex, hash[1].hex);
}

/* Correlation of the logarithms of the lengths of values in two layers. */
static double length_correlation(const vqkvc_capture *c, int a, int b)
{
    enum { N = 512, W = 64 };
    static float x[N * W], y[N * W];
    double sx = 0, sy = 0, xx = 0, yy = 0, xy = 0;
    vqkvc_capture_read(c, VQKVC_VALUE, a, 0, N, x);
    vqkvc_capture_read(c, VQKVC_VALUE, b, 0, N, y);
    for (int i = 0; i < N; i++) {
        double u = 0, v = 0;
        for (int j = 0; j < W; j++) {
            u += (double)x[i * W + j] * x[i * W + j];
            v += (double)y[i * W + j] * y[i * W + j];
        }
        u = log(u), v = log(v);
        sx += u, sy += v, xx += u * u, yy += v * v, xy += u * v;
    }
    return (N * xy - sx * sy) / sqrt((N * xx - sx * sx) * (N * yy - sy * sy));
}

Test(simulate, layers_share_tokens_lengths_and_keys_have_outliers)
{
    vqkvc_capture c = simulate("4x4x2x32", 2048, 512);
    cr_assert(length_correlation(&c, 0, 1) > 0.7, "%g", length_correlation(&c, 0, 1));
    cr_assert(length_correlation(&c, 0, 3) > 0.6, "%g", length_correlation(&c, 0, 3));
    for (int layer = 0; layer < 4; layer++)
        for (int head = 0; head < 2; head++) {
            int large = 0;
            for (int i = 0; i < 32; i++)
                large += fabs(c.stats[VQKVC_KEY][layer].mean[head * 32 + i]) > 4;
            cr_assert(large == 1 || large == 2);
        }
    vqkvc_capture_free(&c);
}

/* ---- the metric of keys ---- */

/* E[q q'] [dim, dim] of one KV head over every distance below g->n_ctx_train. */
static void turned_moment(const vqkvc_capture *c, int layer, int head, double *moment)
{
    vqkvc_geometry g = c->geometry;
    int dim = g.head_dim, group = g.n_heads / g.n_kv_heads;
    size_t block = (size_t)dim * (size_t)dim;
    memset(moment, 0, block * sizeof *moment);
    for (int d = 0; d < g.n_ctx_train; d++) {
        /* Columns of R, then R M R'. */
        static float turn[64 * 64];
        for (int i = 0; i < dim; i++) {
            memset(turn + i * dim, 0, (size_t)dim * sizeof *turn);
            turn[i * dim + i] = 1;
            vqkvc_rope_rotate(&g, d, turn + i * dim, 1);
            for (int j = 0; j < g.n_rot; j++)
                turn[i * dim + j] *= g.rope_mscale;
        }
        for (int h = head * group; h < (head + 1) * group; h++)
            for (int a = 0; a < dim; a++)
                for (int b = 0; b < dim; b++) {
                    double m = c->stats[VQKVC_QUERY][layer]
                                   .moment[(size_t)h * block + (size_t)(a * dim + b)];
                    for (int i = 0; i < dim; i++)
                        for (int j = 0; j < dim && turn[a * dim + i] != 0; j++)
                            moment[i * dim + j] += m * (double)turn[a * dim + i] *
                                                   (double)turn[b * dim + j] /
                                                   (group * g.n_ctx_train);
                }
    }
}

static void check_key_metric(vqkvc_capture *c)
{
    vqkvc_err err = {0};
    vqkvc_arena arena = {0};
    vqkvc_metrics m;
    double expected[64 * 64], scale = 0;
    int dim = c->geometry.head_dim;
    cr_assert_eq(vqkvc_sample_metrics(c, &arena, &m, &err), VQKVC_OK, "%s", err.msg);
    turned_moment(c, 1, 1, expected);
    const double *got = m.k[c->geometry.n_kv_heads + 1];
    double times = got[0] / expected[0];
    for (int i = 0; i < dim; i++)
        scale = fmax(scale, expected[i * dim + i]);
    for (int i = 0; i < dim * dim; i++)
        cr_assert_float_eq(got[i] / times, expected[i], 1e-5 * scale, "entry %d: %g, not %g", i,
                           got[i] / times, expected[i]);
    vqkvc_arena_free(&arena);
}

Test(simulate, metric_of_keys_is_the_mean_over_all_distances)
{
    vqkvc_capture c = simulate("2x4x2x16", 600, 64);
    c.geometry.n_ctx_train = 37;
    check_key_metric(&c);
    c.geometry.rope_layout = VQKVC_ROPE_HALVES;
    check_key_metric(&c);
    c.geometry.n_rot = 10; /* six channels that do not turn */
    c.geometry.rope_mscale = 1.25f;
    check_key_metric(&c);
    c.geometry.rope_layout = VQKVC_ROPE_NONE;
    c.geometry.n_rot = 0;
    check_key_metric(&c);
    vqkvc_capture_free(&c);
}
