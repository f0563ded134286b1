/* The way back from an evaluation's JSON, so that what was measured once need not be again. */
#include "eval/table.h"

#include <jansson.h>

/* Integers and reals; *bad is set for anything else. */
static double number(const json_t *object, const char *key, int *bad)
{
    const json_t *value = json_object_get(object, key);
    *bad |= !json_is_number(value);
    return json_number_value(value);
}

static vqkvc_fidelity read_fidelity(const json_t *o, int *bad)
{
    vqkvc_fidelity f = {.kl = number(o, "kl", bad),
                        .ppl_exact = number(o, "ppl_exact", bad),
                        .ppl = number(o, "ppl", bad),
                        .ppl_ratio = number(o, "ppl_ratio", bad),
                        .top1 = number(o, "top1", bad),
                        .worst_kl = number(o, "worst_kl", bad)};
    const char *const counts[] = {"positions", "worst_window", "worst_position"};
    for (int i = 0; i < 3; i++)
        *bad |= !json_is_integer(json_object_get(o, counts[i]));
    f.n = (uint64_t)json_integer_value(json_object_get(o, counts[0]));
    f.worst_window = (int)json_integer_value(json_object_get(o, counts[1]));
    f.worst_pos = (int)json_integer_value(json_object_get(o, counts[2]));
    return f;
}

vqkvc_code vqkvc_table_read(const char *json, vqkvc_measured *measured, vqkvc_err *err)
{
    json_t *all = json_loads(json, 0, NULL), *schemes = json_object_get(all, "schemes");
    const json_t *f = json_object_get(json_array_get(schemes, 0), "fidelity");
    int bad = json_array_size(schemes) != 1;
    *measured = (vqkvc_measured){.late = read_fidelity(json_object_get(f, "late"), &bad),
                                 .all = read_fidelity(json_object_get(f, "all"), &bad),
                                 .stored_bits = number(f, "stored_bits", &bad),
                                 .used_bits = number(f, "used_bits", &bad),
                                 .worst_error = number(f, "worst_error", &bad),
                                 .kept_rate = number(f, "kept_rate", &bad),
                                 .seconds = number(f, "forward_seconds", &bad)};
    json_decref(all);
    if (bad)
        return vqkvc_fail(err, VQKVC_E_FORMAT, "an evaluation is not as vqkvc writes it");
    return VQKVC_OK;
}
