/* The emitted header from top to bottom: banner, declarations, implementation. */
#include "gen/gen.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "gen/facts.h"
#include "gen/lower.h"
#include "gen/parts.h"
#include "gen/tables.h"

static void print_banner(const vqkvc_plan *plan, const gen_options *o, const vqkvc_hash *hash,
                         vqkvc_buf *out)
{
    vqkvc_buf_puts(out, "/* vqkv.h - a compressed KV cache for the model \"");
    gen_put_user(out, plan->geometry.name);
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
    gen_print_facts(plan, o, hash, out);
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
    gen_print_geometry(plan, hash, &text);
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
    gen_part(out, "maps", prefix, "portable");
    gen_part(out, "rows", prefix, "portable");
    gen_part(out, "kernels", prefix, "portable");
    gen_text(out, x86, sizeof x86 - 1, prefix, NULL);
    gen_part(out, "vec_avx2", prefix, NULL);
    gen_part(out, "lookup_avx2", prefix, NULL);
    gen_part(out, "maps_avx2", prefix, NULL);
    gen_part(out, "sums_avx2", prefix, NULL);
    gen_part(out, "dots_avx2", prefix, NULL);
    gen_part(out, "fill_avx2", prefix, NULL);
    gen_part(out, "bytes_avx2", prefix, NULL);
    gen_part(out, "dense", prefix, "avx2");
    gen_part(out, "codes", prefix, "avx2");
    gen_part(out, "maps", prefix, "avx2");
    gen_part(out, "rows", prefix, "avx2");
    gen_part(out, "kernels", prefix, "avx2");
    gen_part(out, "vec_avx512", prefix, NULL);
    gen_part(out, "maps_avx512", prefix, NULL);
    gen_part(out, "dots_avx512", prefix, NULL);
    gen_part(out, "sums_avx512", prefix, NULL);
    gen_part(out, "bytes_avx512", prefix, NULL);
    gen_part(out, "dense", prefix, "avx512");
    gen_part(out, "codes", prefix, "avx512");
    gen_part(out, "maps", prefix, "avx512");
    gen_part(out, "rows", prefix, "avx512");
    gen_part(out, "kernels", prefix, "avx512");
    gen_text(out, pop, sizeof pop - 1, prefix, NULL);
    gen_text(out, end, sizeof end - 1, prefix, NULL);
    gen_text(out, arm, sizeof arm - 1, prefix, NULL);
    gen_part(out, "vec_neon", prefix, NULL);
    gen_part(out, "dense", prefix, "neon");
    gen_part(out, "codes", prefix, "neon");
    gen_part(out, "maps", prefix, "neon");
    gen_part(out, "rows", prefix, "neon");
    gen_part(out, "kernels", prefix, "neon");
    gen_part(out, "lookup_neon", prefix, NULL);
    gen_part(out, "sums_neon", prefix, NULL);
    gen_part(out, "dots_neon", prefix, NULL);
    gen_part(out, "bytes_neon", prefix, NULL);
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
        "#define VQKV__ARM\n#include <arm_neon.h>\n"
        "#ifdef __linux__\n#include <sys/auxv.h>\n#endif\n#endif\n\n";
    static const char close[] = "\n#endif /* VQKV_IMPLEMENTATION */\n";
    static const char *const rest[] = {
        "dispatch", "wide",      "decode", "exceptions", "rebuild", "gains",
        "encode",   "landmarks", "pass",   "query_map",  "steps",   "queries",
        "absorbed", "attend",    "jobs",   "append",     "kvcache", "save"};
    vqkvc_buf text = {0};
    gen_text(out, open, sizeof open - 1, prefix, NULL);
    gen_part(out, "types", prefix, NULL);
    gen_print_tables(plan, low, &text);
    gen_print_turning(plan, low, &text);
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
    VQKVC_TRY(gen_check_prefix(options->prefix, err));
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
