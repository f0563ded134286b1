/* The emitted header from top to bottom: banner, declarations, implementation. */
#include "gen/gen.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "gen/lower.h"
#include "gen/parts.h"
#include "gen/tables.h"

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

static vqkvc_code check_prefix(const char *prefix, vqkvc_err *err)
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

static void print_banner(const vqkvc_plan *plan, const gen_options *o, const vqkvc_hash *hash,
                         vqkvc_buf *out)
{
    const vqkvc_geometry *g = &plan->geometry;
    vqkvc_cost cost;
    vqkvc_plan_cost(plan, 4096, &cost);
    vqkvc_buf_puts(out, "/* vqkv.h - a compressed KV cache for the model \"");
    gen_put_user(out, g->name);
    vqkvc_buf_puts(out, "\", scheme ");
    gen_put_user(out, plan->scheme);
    vqkvc_buf_printf(
        out,
        ".\n * Made by vqkvc " VQKVC_VERSION ", ABI %d. Do not edit: run the "
        "command below again.\n *\n"
        " * USE. In one C or C++ file:\n"
        " *     #define VQKV_IMPLEMENTATION\n"
        " *     #include \"vqkv.h\"\n"
        " * elsewhere only the #include. Link with -lm. Then:\n"
        " *     vqkv_config config = {0};\n"
        " *     config.n_ctx = 8192;\n"
        " *     vqkv_size(&config, &bytes);                // memory is yours\n"
        " *     vqkv_init(&kv, &config, memory, bytes);    // aligned to 64\n"
        " *     for each layer:\n"
        " *         vqkv_append(kv, 0, layer, n, k, v, VQKV_F32, VQKV_KEYS_ROTATED);\n"
        " *         vqkv_attend(kv, 0, layer, n, q, out, NULL, scratch, scratch_bytes);\n"
        " * Calls that can fail return a status (vqkv_status_text). Nothing is allocated, printed "
        "or\n"
        " * kept in globals. #define VQKV_NO_SIMD leaves only portable C.\n *\n",
        GEN_ABI_VERSION);
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

static void print_geometry(const vqkvc_plan *plan, const vqkvc_hash *hash, vqkvc_buf *out)
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

static void print_declarations(const vqkvc_plan *plan, const vqkvc_hash *hash, const char *prefix,
                               vqkvc_buf *out)
{
    static const char open[] = "\n#ifndef VQKV_H\n#define VQKV_H\n\n#include <stddef.h>\n"
                               "#include <stdint.h>\n";
    static const char guard[] = "#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n";
    static const char close[] = "\n#ifdef __cplusplus\n}\n#endif\n\n#endif /* VQKV_H */\n";
    vqkvc_buf text = {0};
    vqkvc_buf_puts(&text, open);
    print_geometry(plan, hash, &text);
    vqkvc_buf_puts(&text, guard);
    gen_text(out, text.data != NULL ? text.data : "", text.len, prefix, NULL);
    gen_part(out, "api", prefix, NULL);
    gen_text(out, close, sizeof close - 1, prefix, NULL);
    out->failed |= text.failed;
    free(text.data);
}

static void print_vectors(const char *prefix, vqkvc_buf *out)
{
    /* gcc 12 takes the undefined operands inside its own intrinsics for mistakes of ours. */
    static const char x86[] = "\n#ifdef VQKV__X86\n"
                              "#ifndef __clang__\n#pragma GCC diagnostic push\n"
                              "#pragma GCC diagnostic ignored \"-Wuninitialized\"\n"
                              "#pragma GCC diagnostic ignored \"-Wmaybe-uninitialized\"\n#endif\n",
                      pop[] = "#ifndef __clang__\n#pragma GCC diagnostic pop\n#endif\n",
                      arm[] = "\n#ifdef VQKV__ARM\n", end[] = "#endif\n";
    gen_part(out, "vec_portable", prefix, NULL);
    gen_part(out, "dense", prefix, "portable");
    gen_part(out, "codes", prefix, "portable");
    gen_part(out, "kernels", prefix, "portable");
    gen_text(out, x86, sizeof x86 - 1, prefix, NULL);
    gen_part(out, "vec_avx2", prefix, NULL);
    gen_part(out, "bytes_avx2", prefix, NULL);
    gen_part(out, "dense", prefix, "avx2");
    gen_part(out, "codes", prefix, "avx2");
    gen_part(out, "kernels", prefix, "avx2");
    gen_part(out, "vec_avx512", prefix, NULL);
    gen_part(out, "maps_avx512", prefix, NULL);
    gen_part(out, "dots_avx512", prefix, NULL);
    gen_part(out, "sums_avx512", prefix, NULL);
    gen_part(out, "bytes_avx512", prefix, NULL);
    gen_part(out, "dense", prefix, "avx512");
    gen_part(out, "codes", prefix, "avx512");
    gen_part(out, "kernels", prefix, "avx512");
    gen_text(out, pop, sizeof pop - 1, prefix, NULL);
    gen_text(out, end, sizeof end - 1, prefix, NULL);
    gen_text(out, arm, sizeof arm - 1, prefix, NULL);
    gen_part(out, "vec_neon", prefix, NULL);
    gen_part(out, "dense", prefix, "neon");
    gen_part(out, "codes", prefix, "neon");
    gen_part(out, "kernels", prefix, "neon");
    gen_text(out, end, sizeof end - 1, prefix, NULL);
}

static void print_implementation(const vqkvc_plan *plan, const gen_lowered *low, const char *prefix,
                                 vqkvc_buf *out)
{
    static const char open[] =
        "\n#if defined(VQKV_IMPLEMENTATION) && !defined(VQKV__IMPLEMENTED)\n"
        "#define VQKV__IMPLEMENTED\n\n#include <math.h>\n#include <string.h>\n\n"
        "#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__\n"
        "#error \"vqkv.h: tables and saved caches are little-endian; this machine is "
        "not\"\n#endif\n\n"
        "#if !defined(VQKV_NO_SIMD) && defined(__GNUC__) && defined(__x86_64__)\n"
        "#define VQKV__X86\n#include <immintrin.h>\n"
        "#elif !defined(VQKV_NO_SIMD) && defined(__GNUC__) && defined(__aarch64__)\n"
        "#define VQKV__ARM\n#include <arm_neon.h>\n#endif\n\n";
    static const char close[] = "\n#endif /* VQKV_IMPLEMENTATION */\n";
    static const char *const rest[] = {"dispatch", "wide",   "decode",    "exceptions", "rebuild",
                                       "gains",    "encode", "landmarks", "pass",       "queries",
                                       "absorbed", "attend", "jobs",      "kvcache",    "save"};
    vqkvc_buf text = {0};
    gen_text(out, open, sizeof open - 1, prefix, NULL);
    gen_part(out, "types", prefix, NULL);
    gen_print_tables(plan, low, &text);
    gen_text(out, text.data != NULL ? text.data : "", text.len, prefix, NULL);
    vqkvc_buf_puts(out, "\n");
    gen_part(out, "core", prefix, NULL);
    print_vectors(prefix, out);
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        vqkvc_buf_puts(out, "\n");
        gen_part(out, rest[i], prefix, NULL);
    }
    gen_text(out, close, sizeof close - 1, prefix, NULL);
    out->failed |= text.failed;
    free(text.data);
}

vqkvc_code gen_header(const vqkvc_plan *plan, const gen_options *options, vqkvc_buf *out,
                      vqkvc_err *err)
{
    vqkvc_hash hash;
    gen_lowered low = {0};
    vqkvc_buf banner = {0};
    VQKVC_TRY(check_prefix(options->prefix, err));
    VQKVC_TRY(vqkvc_plan_validate(plan, err));
    VQKVC_TRY(vqkvc_plan_hash(plan, &hash, err));
    if (gen_lower(plan, &low, err) == VQKVC_OK) {
        print_banner(plan, options, &hash, &banner);
        gen_text(out, banner.data != NULL ? banner.data : "", banner.len, options->prefix, NULL);
        print_declarations(plan, &hash, options->prefix, out);
        print_implementation(plan, &low, options->prefix, out);
        if (out->failed || banner.failed)
            vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory while printing the header");
    }
    free(banner.data);
    vqkvc_arena_free(&low.arena);
    return err->code;
}
