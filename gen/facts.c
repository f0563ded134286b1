#include "gen/facts.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gen/parts.h"

/* Keywords of C or C++ that the parts do not happen to use, where the prefix is a name by itself.
 */
static int is_keyword(const char *word)
{
    static const char words[] =
        " alignas alignof and asm auto bool bitand bitor catch class compl concept constexpr "
        "decltype delete do double explicit export extern false final friend goto long mutable "
        "namespace new noexcept not nullptr operator or private protected public register "
        "requires restrict short signed static_assert template this thread_local throw true try "
        "typeid typename union using virtual volatile while xor ";
    size_t n = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at++)
        if (at[-1] == ' ' && at[n] == ' ')
            return 1;
    return 0;
}

vqkvc_code gen_check_prefix(const char *prefix, vqkvc_err *err)
{
    int good =
        islower((unsigned char)prefix[0]) && strlen(prefix) <= 48 && strstr(prefix, "__") == NULL;
    for (const char *p = prefix; *p != '\0'; p++)
        good = good && (islower((unsigned char)*p) || isdigit((unsigned char)*p) || *p == '_');
    if (!good)
        return vqkvc_fail(
            err, VQKVC_E_USAGE,
            "prefix '%s': wanted a C identifier in lower case, without '__', of at most "
            "48 characters",
            prefix);
    if (gen_word_is_taken(prefix) || is_keyword(prefix))
        return vqkvc_fail(err, VQKVC_E_USAGE,
                          "prefix '%s': the header uses this word itself; take another, such as "
                          "'my_%s'",
                          prefix, prefix);
    return VQKVC_OK;
}

void gen_print_facts(const vqkvc_plan *plan, const gen_options *o, const vqkvc_hash *hash,
                     vqkvc_buf *out)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_cost cost;
    vqkvc_plan_cost(plan, 4096, &cost);
    vqkvc_buf_printf(
        out,
        " * MODEL. %d layers, %d query heads, %d KV heads of %d channels; rotary embedding "
        "on %d\n * channels, %s.\n *\n",
        g->n_layers, g->n_heads, g->n_kv_heads, g->head_dim, g->n_rot,
        g->rope_layout == VQKVC_ROPE_INTERLEAVED ? "pairs (2 i, 2 i + 1)"
        : g->rope_layout == VQKVC_ROPE_HALVES    ? "pairs (i, i + half)"
                                                 : "none");
    vqkvc_buf_printf(
        out,
        " * COST, bits a value (one of %d a token): codes %.3f + gains%s %.3f = %.3f stored; "
        "attention\n"
        " * reads %.3f. With the exact window (first %d tokens, latest %d to %d) and %zu bytes of\n"
        " * tables, at a context of %d tokens: %.3f. A block of %d tokens is encoded at once, in "
        "the\n"
        " * append that begins the step after it has left the exact window.\n *\n",
        2 * g->n_layers * g->n_kv_heads * g->head_dim, cost.code_bits,
        plan->landmarks > 0 || plan->max_error > 0 ? ", landmarks, exact list" : "",
        vqkvc_cost_stored(&cost) - cost.code_bits, vqkvc_cost_stored(&cost), cost.scan_bits,
        plan->n_sink, plan->n_recent, plan->n_recent + plan->block - 1, cost.table_bytes,
        cost.context, cost.total_bits, plan->block);
    vqkvc_buf_printf(out,
                     " * FROM. weights %s\n *       calibration %s\n *       plan %s\n *       ",
                     g->weights_hash.hex[0] != '\0' ? g->weights_hash.hex : "unknown",
                     plan->calibration.hex[0] != '\0' ? plan->calibration.hex : "none", hash->hex);
    gen_put_user(out, o->command);
    vqkvc_buf_puts(out, "\n *\n * STREAMS\n");
    vqkvc_buf text = {0};
    vqkvc_plan_print(plan, &text);
    for (char *line = text.data; line != NULL && *line != '\0';) {
        size_t n = strcspn(line, "\n");
        char *end = line + n, saved = *end;
        *end = '\0';
        vqkvc_buf_puts(out, " *   ");
        gen_put_user(out, line);
        vqkvc_buf_puts(out, "\n");
        *end = saved;
        line = saved == '\0' ? end : end + 1;
    }
    out->failed |= text.failed;
    free(text.data);
    vqkvc_buf_puts(out, " */\n");
}

void gen_print_geometry(const vqkvc_plan *plan, const vqkvc_hash *hash, vqkvc_buf *out)
{
    const vqkvc_geometry *g = &plan->geometry;
    const struct {
        const char *name;
        int value;
        const char *why;
    } constants[] = {
        {"ABI_VERSION", GEN_ABI_VERSION, "of this interface and of saved caches"},
        {"N_LAYERS", g->n_layers, ""},
        {"N_HEADS", g->n_heads, "query heads"},
        {"N_KV_HEADS", g->n_kv_heads, ""},
        {"GROUP", g->n_heads / g->n_kv_heads, "query heads that share a KV head"},
        {"HEAD_DIM", g->head_dim, ""},
        {"N_ROT", g->rope_layout == VQKVC_ROPE_NONE ? 0 : g->n_rot, "rotated channels of a head"},
        {"ROPE_INTERLEAVED", g->rope_layout == VQKVC_ROPE_INTERLEAVED,
         "1: pairs (2 i, 2 i + 1); 0: (i, i + N_ROT / 2)"},
        {"BLOCK", plan->block, "tokens that are encoded together"},
        {"N_SINK", plan->n_sink, "first tokens, exact for ever"},
        {"N_RECENT", plan->n_recent, "latest tokens, exact at least"},
        {"LANDMARKS", plan->landmarks, "tokens that share a landmark; 0: none, and no top_tokens"},
    };
    vqkvc_buf_puts(out, "\n");
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        vqkvc_buf_printf(out, "#define VQKV_%s %d%s%s%s\n", constants[i].name, constants[i].value,
                         constants[i].why[0] != '\0' ? " /* " : "", constants[i].why,
                         constants[i].why[0] != '\0' ? " */" : "");
    vqkvc_buf_printf(out, "#define VQKV_ATTENTION_SCALE %.9ef /* 1 / sqrt(HEAD_DIM) */\n",
                     1.0 / sqrt((double)g->head_dim));
    vqkvc_buf_printf(out,
                     "#define VQKV_MAX_ERROR %.9ef /* of every vector, a part of its length; 0: no "
                     "bound */\n",
                     (double)plan->max_error);
    vqkvc_buf_printf(out, "#define VQKV_CODEC \"%s\" /* hash of the plan and all tables */\n\n",
                     hash->hex);
}
