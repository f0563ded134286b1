/* Rotary embedding: the table that a file's keys give, and what rotation must preserve. The toy
 * models of test_forward.c compare the same tables with an independent implementation. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "gguf_writer.h"
#include "model/rope_scaling.h"

enum { N_ROT = 64 };

/* Reads the scaling of a file with the keys that w holds; removes the file. */
static vqkvc_code read_scaling(gw *w, vqkvc_rope_scaling *s, vqkvc_err *err)
{
    char path[] = "/tmp/vqkvc_rope_XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    gw_write(w, path);
    vqkvc_gguf gguf;
    vqkvc_code code = vqkvc_gguf_open(&gguf, path, err);
    cr_assert_eq(code, VQKVC_OK, "%s", err->msg);
    code = vqkvc_rope_scaling_read(&gguf, "llama", 4096, s, err);
    vqkvc_gguf_close(&gguf);
    unlink(path);
    return code;
}

/* The table of a file with these keys. */
static vqkvc_geometry table_of(gw *w, const float *factors)
{
    vqkvc_rope_scaling s;
    vqkvc_err err = {0};
    vqkvc_geometry g = {.head_dim = N_ROT, .n_rot = N_ROT};
    cr_assert_eq(read_scaling(w, &s, &err), VQKVC_OK, "%s", err.msg);
    vqkvc_rope_scaling_apply(&s, factors, &g);
    return g;
}

static double plain_freq(int i, double base)
{
    return exp(-2.0 * i / N_ROT * log(base));
}

Test(rope, defaults_are_the_plain_table)
{
    gw w = gw_make(3, 32);
    vqkvc_geometry g = table_of(&w, NULL);
    for (int i = 0; i < N_ROT / 2; i++)
        cr_assert_float_eq(g.rope_freq[i], plain_freq(i, 10000), 1e-15);
    cr_assert_eq(g.rope_mscale, 1.0f);
}

Test(rope, linear_scaling_and_the_legacy_key_divide_every_frequency)
{
    static const char *const keys[] = {"llama.rope.scaling.factor", "llama.rope.scale_linear"};
    for (int k = 0; k < 2; k++) {
        gw w = gw_make(3, 32);
        gw_f32(&w, "llama.rope.freq_base", 500000);
        gw_f32(&w, keys[k], 4);
        vqkvc_geometry g = table_of(&w, NULL);
        for (int i = 0; i < N_ROT / 2; i++)
            cr_assert_float_eq(g.rope_freq[i] * 4, plain_freq(i, 500000), 1e-14);
        cr_assert_eq(g.rope_mscale, 1.0f);
    }
}

Test(rope, type_none_ignores_the_factor)
{
    gw w = gw_make(3, 32);
    gw_str(&w, "llama.rope.scaling.type", "none");
    gw_f32(&w, "llama.rope.scaling.factor", 4);
    vqkvc_geometry g = table_of(&w, NULL);
    cr_assert_float_eq(g.rope_freq[5], plain_freq(5, 10000), 1e-15);
}

Test(rope, factors_divide_pair_by_pair)
{
    float factors[N_ROT / 2];
    for (int i = 0; i < N_ROT / 2; i++)
        factors[i] = 1 + 0.25f * (float)i;
    gw w = gw_make(3, 32);
    vqkvc_geometry g = table_of(&w, factors);
    for (int i = 0; i < N_ROT / 2; i++)
        cr_assert_float_eq(g.rope_freq[i] * (double)factors[i], plain_freq(i, 10000), 1e-14);
}

/* Pairs that turn more than beta_fast times over the original context stay, those that turn less
 * than beta_slow times are interpolated, and the share falls in between. */
Test(rope, yarn_keeps_fast_pairs_and_interpolates_slow_ones)
{
    gw w = gw_make(3, 32);
    gw_str(&w, "llama.rope.scaling.type", "yarn");
    gw_f32(&w, "llama.rope.scaling.factor", 8);
    gw_u32(&w, "llama.rope.scaling.original_context_length", 4096);
    vqkvc_geometry g = table_of(&w, NULL);
    double last = 1;
    int kept = 0, interpolated = 0;
    for (int i = 0; i < N_ROT / 2; i++) {
        double plain = plain_freq(i, 10000), share = g.rope_freq[i] / plain;
        double turns = plain * 4096 / (2 * acos(-1));
        cr_assert_leq(share, last + 1e-12);
        cr_assert(share >= 0.125 - 1e-12);
        if (turns > 45) /* the ramp's ends are whole pairs: one pair is a factor of 1.33 */
            cr_assert_float_eq(share, 1, 1e-12);
        if (turns < 0.7)
            cr_assert_float_eq(share, 0.125, 1e-12);
        kept += share > 0.999;
        interpolated += share < 0.126;
        last = share;
    }
    cr_assert_gt(kept, 4);
    cr_assert_gt(interpolated, 4);
    cr_assert_lt(kept + interpolated, N_ROT / 2);
    cr_assert_float_eq((double)g.rope_mscale, 1 + 0.1 * log(8), 1e-6);
}

Test(rope, nonsense_is_refused_with_its_key)
{
    static const struct {
        const char *key;
        float value;
    } cases[] = {
        {"llama.rope.freq_base", 0},
        {"llama.rope.freq_base", NAN},
        {"llama.rope.scaling.factor", -2},
        {"llama.rope.scaling.factor", INFINITY},
        {"llama.rope.scaling.original_context_length", -1},
        {"llama.rope.scaling.yarn_beta_fast", 0},
        {"llama.rope.scaling.attn_factor", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vqkvc_rope_scaling s;
        vqkvc_err err = {0};
        gw w = gw_make(3, 32);
        gw_f32(&w, cases[i].key, cases[i].value);
        cr_assert_eq(read_scaling(&w, &s, &err), VQKVC_E_FORMAT, "%s", cases[i].key);
        cr_assert_not_null(strstr(err.msg, cases[i].key), "%s", err.msg);
    }
}

Test(rope, longrope_is_refused_by_name)
{
    vqkvc_rope_scaling s;
    vqkvc_err err = {0};
    gw w = gw_make(3, 32);
    gw_str(&w, "llama.rope.scaling.type", "longrope");
    cr_assert_eq(read_scaling(&w, &s, &err), VQKVC_E_UNSUPPORTED);
    cr_assert_not_null(strstr(err.msg, "longrope"), "%s", err.msg);
}

static float product(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

/* What rotary embedding is for: scores depend on the distance alone, in both layouts. */
Test(rope, scores_depend_on_the_distance_alone)
{
    static const vqkvc_rope_layout layouts[] = {VQKVC_ROPE_INTERLEAVED, VQKVC_ROPE_HALVES};
    for (int l = 0; l < 2; l++) {
        gw w = gw_make(3, 32);
        vqkvc_geometry g = table_of(&w, NULL);
        vqkvc_rng rng = vqkvc_rng_make(7, (uint64_t)l);
        float q[2][N_ROT], k[2][N_ROT];
        g.rope_layout = layouts[l];
        for (int i = 0; i < N_ROT; i++) {
            q[0][i] = q[1][i] = (float)vqkvc_rng_normal(&rng);
            k[0][i] = k[1][i] = (float)vqkvc_rng_normal(&rng);
        }
        float plain = product(q[0], k[0], N_ROT);
        for (int i = 0; i < 2; i++) {
            vqkvc_rope_rotate(&g, 37 + 500 * i, q[i], 1);
            vqkvc_rope_rotate(&g, 12 + 500 * i, k[i], 1);
        }
        cr_assert_float_eq(product(q[0], k[0], N_ROT), product(q[1], k[1], N_ROT), 1e-4f);
        cr_assert_gt(fabsf(product(q[0], k[0], N_ROT) - plain), 0.1f);
    }
}

Test(rope, partial_rotation_leaves_the_rest_and_undoes_itself)
{
    gw w = gw_make(3, 32);
    vqkvc_geometry g = table_of(&w, NULL);
    float x[2 * 80], before[2 * 80];
    g.head_dim = 80;
    g.rope_layout = VQKVC_ROPE_HALVES;
    for (int i = 0; i < 160; i++)
        x[i] = before[i] = (float)(i % 17) - 8;
    vqkvc_rope_rotate(&g, 100, x, 2);
    for (int h = 0; h < 2; h++)
        cr_assert_arr_eq(x + 80 * h + N_ROT, before + 80 * h + N_ROT, 16 * sizeof *x);
    cr_assert(fabsf(x[0] - before[0]) > 0.01f);
    vqkvc_rope_rotate(&g, -100, x, 2);
    for (int i = 0; i < 160; i++)
        cr_assert_float_eq(x[i], before[i], 1e-5f);
}
