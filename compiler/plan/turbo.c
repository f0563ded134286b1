#include "plan/baselines.h"

#include <math.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "plan/higgs.h"
#include "plan/preset_parts.h"

enum { SEED = 1, STREAM_ROTATION = 201 };

/* Orthonormal columns q [d, d], a column a row, from normal numbers (Gram and Schmidt, twice, for
 * accuracy): a rotation drawn evenly from all of them, or a reflection. */
static void random_rotation(int d, double *q)
{
    vqkvc_rng rng = vqkvc_rng_make(SEED, STREAM_ROTATION);
    for (int j = 0; j < d; j++) {
        double *x = q + (size_t)j * (size_t)d, norm = 0;
        for (int i = 0; i < d; i++)
            x[i] = vqkvc_rng_normal(&rng);
        for (int k = 0; k < 2 * j; k++) {
            const double *y = q + (size_t)(k % j) * (size_t)d;
            double dot = 0;
            for (int i = 0; i < d; i++)
                dot += x[i] * y[i];
            for (int i = 0; i < d; i++)
                x[i] -= dot * y[i];
        }
        for (int i = 0; i < d; i++)
            norm += x[i] * x[i];
        for (int i = 0; i < d; i++)
            x[i] /= sqrt(norm);
    }
}

/* The table of the rotation, [head_dim, head_dim]; its index, or -1. */
static int add_rotation(vqkvc_plan *plan, vqkvc_err *err)
{
    int d = plan->geometry.head_dim;
    double *q = vqkvc_alloc((size_t)d * (size_t)d, sizeof *q, err);
    int table = q == NULL ? -1 : vqkvc_plan_add_table(plan, d, d, err, "random rotation");
    if (table >= 0) {
        random_rotation(d, q);
        for (int i = 0; i < d * d; i++)
            plan->tables[table].f16[i] = vqkvc_f32_to_f16((float)q[i % d * d + i / d]);
    }
    free(q);
    return table;
}

typedef struct turbo {
    int rotation;
    vqkvc_higgs_grid levels;
} turbo;

static vqkvc_code fill(vqkvc_plan *plan, vqkvc_stream *s, const void *how, vqkvc_err *err)
{
    const turbo *t = how;
    s->transform = VQKVC_TRANSFORM_BASIS;
    s->enc = s->dec = t->rotation;
    return vqkvc_higgs_code(plan, s, &t->levels, err);
}

vqkvc_code vqkvc_build_turbo(vqkvc_plan *plan, int bits, vqkvc_err *err)
{
    turbo t = {.rotation = add_rotation(plan, err), .levels = {.width = 1, .bits = bits}};
    if (t.rotation < 0)
        return err->code;
    VQKVC_TRY(vqkvc_higgs_add_grid(plan, &t.levels, err));
    return vqkvc_preset_heads(plan, fill, &t, err);
}
