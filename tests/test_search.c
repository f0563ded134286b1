/* The search for a plan and its store: limits, tables that count, parts that are damaged. */
#include <math.h>

#include "base/matrix.h"
#include "capture/simulate.h"
#include "kvdb_fixture.h"
#include "plan/allocate.h"
#include "plan/auto.h"

static const vqkvc_log quiet_log = {.level = -1};

static vqkvc_capture simulate(const char *shape)
{
    vqkvc_err err = {0};
    vqkvc_geometry g;
    vqkvc_capture c;
    vqkvc_capture_params params = {.n_tokens = 2048, .n_sample = 1024, .seed = 1};
    vqkvc_matrix_init();
    OK(vqkvc_simulate_geometry(shape, &g, &err));
    OK(vqkvc_capture_simulate(&g, &params, &quiet_log, &c, &err));
    return c;
}

static vqkvc_code plan_of(const vqkvc_capture *c, const vqkvc_auto_params *p, kvdb *db,
                          vqkvc_plan *plan, vqkvc_err *err)
{
    vqkvc_hash parent = kvdb_recipe_hash("capture", "r");
    return vqkvc_plan_auto(plan, c, p, db, &parent, &quiet_log, err);
}

/* The curve of a stream that changes nothing for its first `flat` nibbles. */
static void late_curve(int flat, int n_max, double *curve)
{
    for (int j = 0; j <= n_max; j++)
        curve[j] = j <= flat ? 100 : 100 * exp2(-(j - flat) / 4.0);
}

Test(search, a_stream_begins_however_much_its_beginning_takes)
{
    enum { N = 200 };
    vqkvc_err err = {0};
    double late[N + 1], slow[N + 1];
    const double *const curves[] = {late, slow};
    for (int j = 0; j <= N; j++)
        slow[j] = 10 - 0.01 * j;
    for (int flat = 0; flat <= 60; flat += 10) {
        int share[2] = {0};
        late_curve(flat, N, late);
        OK(vqkvc_allocate_shares(2, N, curves, 100, share, &err));
        cr_expect_gt(share[0], flat, "flat for %d nibbles: %d and %d", flat, share[0], share[1]);
        cr_expect_eq(share[0] + share[1], 100);
    }
}

/* Eight layers of 64 channels that are alike: sharing pays, whether tables count or not. */
Test(search, tables_that_count_leave_wide_sharing)
{
    vqkvc_err err = {0};
    vqkvc_capture c = simulate("8x2x1x64");
    for (int part = VQKVC_KEY; part <= VQKVC_VALUE; part++)
        for (int layer = 1; layer < 8; layer++)
            memcpy(c.sample[part][layer], c.sample[part][0],
                   (size_t)c.n_sample * 64 * sizeof(uint16_t));
    for (int counted = 0; counted < 2; counted++) {
        vqkvc_plan plan;
        int widest = 0;
        vqkvc_auto_params p = {
            .bits = 2, .max_scan = -1, .frame = VQKVC_FRAME_PRE, .tables_at = counted ? 1024 : 0};
        OK(plan_of(&c, &p, NULL, &plan, &err));
        for (int i = 0; i < plan.n_streams; i++)
            widest = plan.streams[i].n_in > widest ? plan.streams[i].n_in : widest;
        cr_expect_eq(widest, 512, "%d channels share%s", widest, counted ? ", tables counted" : "");
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&c);
}

/* At rates that barely pay for a stream's tables, no stream is left without a channel. */
Test(search, streams_that_pay_for_their_tables_code_something)
{
    vqkvc_err err = {0};
    vqkvc_capture c = simulate("2x4x4x32");
    for (int tenths = 1; tenths <= 7; tenths += 2) {
        vqkvc_plan plan;
        vqkvc_auto_params p = {.bits = tenths / 10.0, .max_scan = 5.5, .tables_at = 256};
        vqkvc_code code = plan_of(&c, &p, NULL, &plan, &err);
        if (code == VQKVC_E_INFEASIBLE) {
            err = (vqkvc_err){0};
            continue;
        }
        OK(code);
        vqkvc_plan_free(&plan);
    }
    vqkvc_capture_free(&c);
}

Test(search, impossible_limits_are_told_apart_from_wrong_ones)
{
    vqkvc_plan plan;
    vqkvc_capture c = simulate("2x2x1x64");
    vqkvc_err few = {0}, wide = {0};
    vqkvc_auto_params p = {.bits = 0.05, .max_scan = -1, .layers_shared = 1};
    cr_expect_eq(plan_of(&c, &p, NULL, &plan, &few), VQKVC_E_INFEASIBLE);
    cr_expect(strstr(few.msg, "0.05 bits") != NULL && strstr(few.msg, "reads") == NULL, "%s",
              few.msg);
    vqkvc_capture_free(&c);
    vqkvc_geometry g = {.n_layers = 32, .n_kv_heads = 1, .head_dim = 128};
    p = (vqkvc_auto_params){.bits = 2, .layers_shared = 16};
    cr_expect_eq(vqkvc_auto_check(&p, &g, &wide), VQKVC_E_USAGE);
    cr_expect_not_null(strstr(wide.msg, "8 layers"), "%s", wide.msg);
    p.layers_shared = 8;
    cr_expect_eq(vqkvc_auto_check(&p, &g, &(vqkvc_err){0}), VQKVC_OK);
}

/* Parts that are damaged are fitted again, and the store is whole then. */
Test(kvdb, damaged_fitted_parts_are_made_again)
{
    vqkvc_err err = {0};
    vqkvc_capture c = simulate("2x2x1x16");
    vqkvc_plan plan, again;
    vqkvc_hash before, after;
    vqkvc_auto_params p = {.bits = 2, .max_scan = -1, .layers_shared = 2};
    kvdb *db = open_store(KVDB_READ_WRITE);
    OK(kvdb_put_model(db, &(kvdb_model){c.geometry.weights_hash, "m", "a", "{}"}, &err));
    OK(kvdb_put_artifact(
        db, &(kvdb_artifact){.kind = "capture", .recipe = "r", .model = c.geometry.weights_hash},
        "x", 1, &err));
    OK(plan_of(&c, &p, db, &plan, &err));
    kvdb_close(db);
    run_sql("UPDATE blob_chunk SET bytes = zeroblob(length(bytes))");
    db = open_store(KVDB_READ_WRITE);
    OK(plan_of(&c, &p, db, &again, &err));
    OK(vqkvc_plan_hash(&plan, &before, &err));
    OK(vqkvc_plan_hash(&again, &after, &err));
    cr_expect_str_eq(before.hex, after.hex);
    OK(kvdb_put_artifact(
        db, &(kvdb_artifact){.kind = "capture", .recipe = "r", .model = c.geometry.weights_hash},
        "x", 1, &err));
    expect_clean(db);
    kvdb_close(db);
    vqkvc_plan_free(&plan);
    vqkvc_plan_free(&again);
    vqkvc_capture_free(&c);
}
