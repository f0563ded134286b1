/* The emitted CUDA header from top to bottom.
 *
 * It is the C header's plan, lowered once (gen/lower.c) and printed by the same functions: the same
 * streams, runs and tables, and so the same bytes of every block, behind kernels that are written
 * in runtime/cuda/. Those are real CUDA C++ 17 and read everything that a plan fixes from constants
 * and constant tables in front of them; sizes of arrays in registers and in shared memory, how many
 * queries share a pass and how many blocks a tile are worked out by the compiler from these.
 *
 *     banner, geometry          as in the C header
 *     gpu_api                   declarations; everything is in a namespace, so that both headers of
 *                               a plan can be included by one file, and neither needs the other
 *     types, tables             descriptors of the codec in device memory
 *     core, decode, rebuild     codes to vectors; reading back; what cannot be absorbed
 *     gains, encode, landmarks  exact tokens to codes, a block and an independent set of streams
 *                               (gen/cuda_layout.c) at a time
 *     pass, absorbed, attend    attention on codes; the merging of its parts; between them
 *     slots, tensor             codes on tensor cores, where all of them are nibbles, or
 *     lookup                    by plain arithmetic
 *     launch                    host side */
#include "gen/cuda.h"

#include <stdlib.h>
#include <string.h>

#include "base/embed.h"
#include "gen/facts.h"
#include "gen/parts.h"
#include "gen/tables.h"

#define CUDA_PART_LIST(X)                                                                          \
    X(core)                                                                                        \
    X(decode)                                                                                      \
    X(rebuild)                                                                                     \
    X(gains)                                                                                       \
    X(encode)                                                                                      \
    X(landmarks)                                                                                   \
    X(pass)                                                                                        \
    X(absorbed)

/* One of two ways to attend absorbed codes. */
#define CUDA_LOOKUP_LIST(X) X(lookup)
#define CUDA_TENSOR_LIST(X)                                                                        \
    X(slots)                                                                                       \
    X(tensor)

#define CUDA_REST_LIST(X)                                                                          \
    X(attend)                                                                                      \
    X(launch)

#define X(name) VQKVC_EMBED(gen_gpu_##name, "runtime/cuda/gpu_" #name ".cuh");
CUDA_PART_LIST(X)
CUDA_LOOKUP_LIST(X)
CUDA_TENSOR_LIST(X)
CUDA_REST_LIST(X)
X(api)
X(types)
#undef X

static void print_cuda_banner(const vqkvc_plan *plan, const gen_options *o, const vqkvc_hash *hash,
                              vqkvc_buf *out)
{
    vqkvc_buf_puts(out, "/* vqkv.cuh - kernels for a compressed KV cache for the model \"");
    gen_put_user(out, plan->geometry.name);
    vqkvc_buf_puts(out, "\", scheme ");
    gen_put_user(out, plan->scheme);
    vqkvc_buf_printf(
        out,
        ".\n * Made by vqkvc " VQKVC_VERSION ", ABI %d. Do not edit: run the "
        "command below again.\n *\n"
        " * USE. CUDA C++ 17. In one file of nvcc's:\n"
        " *     #define VQKV_CUDA_IMPLEMENTATION\n"
        " *     #include \"vqkv.cuh\"\n"
        " * elsewhere only the #include; the C header of the same plan may be included beside it.\n"
        " * Kernels: the arrays of a cache are the engine's, on the device; a block table says\n"
        " * which block of the pool holds which tokens of a sequence.\n"
        " *     namespace kv = vqkv_cuda;\n"
        " *     kv::view v{};                    // numbers, then arrays of kv::pool_bytes(v), "
        "...\n"
        " *     kv::attend(v, layer, seqs, n_seqs, 1, q, out, kv::type::f16, nullptr, {}, 0,\n"
        " *                workspace, bytes, stream);\n"
        " * Engine: a step of n tokens for n_seqs sequences, all in one stream or graph:\n"
        " *     jobs of kv::blocks_due(tokens, sealed) blocks each, from the engine's free list\n"
        " *     kv::seal(v, jobs, n_jobs, {}, workspace, bytes, stream);\n"
        " *     for each layer:\n"
        " *         kv::append(v, layer, seqs, n_seqs, n, nullptr, k, v_, kv::type::f16,\n"
        " *                    kv::keys::rotated, {}, stream);\n"
        " *         kv::attend(v, layer, seqs, n_seqs, n, q, out, ...);\n"
        " * A cache of the C header is used as it is: copy its memory to the device, then\n"
        " *     kv::open_image(&v, memory, bytes, device_memory);\n"
        " * Nothing is allocated, copied or waited for; every call returns a status.\n *\n",
        GEN_ABI_VERSION);
    gen_print_facts(plan, o, hash, out);
}

/* The tables of the C header, in device memory. */
static void print_device_tables(const vqkvc_plan *plan, const gen_lowered *low, vqkvc_buf *out)
{
    static const char before[] = "static const ";
    vqkvc_buf text = {0};
    gen_print_tables(plan, low, &text);
    for (const char *line = text.data; line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n');
        size_t n = end == NULL ? strlen(line) : (size_t)(end - line) + 1;
        if (strncmp(line, before, sizeof before - 1) == 0) {
            vqkvc_buf_puts(out, "static __device__ const ");
            line += sizeof before - 1;
            n -= sizeof before - 1;
        }
        vqkvc_buf_put(out, line, n);
        line += n;
    }
    out->failed |= text.failed;
    free(text.data);
}

static void print_ints(const char *type, const char *name, int n, const int *values, vqkvc_buf *out)
{
    vqkvc_buf_printf(out, "static __device__ const %s vqkv__%s[] = {", type, name);
    for (int i = 0; i < n || i == 0; i++)
        vqkvc_buf_printf(out, "%s%d,", i % 16 == 0 ? "\n    " : " ", n > 0 ? values[i] : 0);
    vqkvc_buf_puts(out, "\n};\n");
}

static void print_layout(const vqkvc_plan *plan, const gen_lowered *low,
                         const gen_cuda_layout *layout, vqkvc_buf *out)
{
    int n_layers = plan->geometry.n_layers;
    const struct {
        const char *name;
        int value;
    } sizes[] = {
        {"N_COMPONENTS", layout->n_components},
        {"CUDA_K_LATENTS", layout->k_latents},
        {"CUDA_K_PLANES", layout->k_planes},
        {"CUDA_K_GAINS", layout->k_gains},
        {"CUDA_V_GAINS", layout->v_gains},
        {"CUDA_V_STAGES", layout->v_stages},
        {"CUDA_BLOCKWISE", layout->blockwise},
        {"CUDA_WORDS", layout->words},
        {"CUDA_TENSOR", layout->tensor},
        {"CUDA_K_SIXTEENS", layout->k_sixteens},
        {"CUDA_V_SIXTEENS", layout->v_sixteens},
        {"CUDA_SHARED", (int)gen_cuda_shared_bytes(plan, low, layout)},
    };
    vqkvc_buf_puts(out, "\n/* Independent sets of streams; the most of an absorbed head; shared "
                        "memory for a query. */\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        vqkvc_buf_printf(out, "#define VQKV__%s %d\n", sizes[i].name, sizes[i].value);
    vqkvc_buf_puts(out, "static __device__ const vqkv__component vqkv__components[] = {");
    for (int i = 0; i < layout->n_components; i++) {
        const gen_component *c = &layout->components[i];
        vqkvc_buf_printf(out, "%s{%d, %d, %d, %d},", i % 6 == 0 ? "\n    " : " ", c->first, c->n,
                         c->first_head, c->last_head);
    }
    vqkvc_buf_puts(out, "\n};\nstatic constexpr short vqkv__component_heads[][2] = {");
    for (int i = 0; i < layout->n_components; i++)
        vqkvc_buf_printf(out, "%s{%d, %d},", i % 10 == 0 ? "\n    " : " ",
                         layout->components[i].first_head, layout->components[i].last_head);
    vqkvc_buf_puts(out, "\n};\nstatic constexpr bool vqkv__rebuilt[] = {");
    for (int i = 0; i < 2 * n_layers; i++)
        vqkvc_buf_printf(out, "%s%s,", i % 12 == 0 ? "\n    " : " ",
                         low->nodes[low->node_at[i]].rebuilt ? "true" : "false");
    vqkvc_buf_puts(out, "\n};\n");
    print_ints("short", "component_streams", plan->n_streams, layout->streams, out);
    print_ints("short", "node_component", 2 * n_layers, layout->node_component, out);
    vqkvc_buf_puts(out, "\n/* What predictions rest on, by part and layer */\n");
    print_ints("int", "walk_first", 2 * n_layers + 1, layout->walk_first, out);
    print_ints("short", "walk", layout->n_walk, layout->walk, out);
}

static void print_cuda(const vqkvc_plan *plan, const gen_lowered *low,
                       const gen_cuda_layout *layout, const vqkvc_hash *hash, const char *prefix,
                       vqkvc_buf *out)
{
    static const char open[] = "\n#ifndef VQKV_CUDA_H\n#define VQKV_CUDA_H\n\n"
                               "#include <cuda_runtime.h>\n#include <stddef.h>\n"
                               "#include <stdint.h>\n",
                      begin[] = "namespace vqkv_cuda {\n\n", end[] = "\n} // namespace vqkv_cuda\n",
                      middle[] = "\n#endif /* VQKV_CUDA_H */\n\n"
                                 "#if defined(VQKV_CUDA_IMPLEMENTATION) && "
                                 "!defined(VQKV_CUDA__IMPLEMENTED)\n"
                                 "#define VQKV_CUDA__IMPLEMENTED\n\n"
                                 "#include <cuda_fp16.h>\n#include <math.h>\n"
                                 "#include <string.h>\n\n",
                      close[] = "\n#endif /* VQKV_CUDA_IMPLEMENTATION */\n";
    vqkvc_buf text = {0};
    vqkvc_buf_puts(&text, open);
    gen_print_geometry(plan, hash, &text);
    vqkvc_buf_puts(&text, begin);
    vqkvc_buf_put(&text, gen_gpu_api, (size_t)(gen_gpu_api_end - gen_gpu_api));
    vqkvc_buf_puts(&text, end);
    vqkvc_buf_puts(&text, middle);
    vqkvc_buf_puts(&text, begin);
    vqkvc_buf_put(&text, gen_gpu_types, (size_t)(gen_gpu_types_end - gen_gpu_types));
    print_device_tables(plan, low, &text);
    print_layout(plan, low, layout, &text);
#define X(name)                                                                                    \
    vqkvc_buf_puts(&text, "\n");                                                                   \
    vqkvc_buf_put(&text, gen_gpu_##name, (size_t)(gen_gpu_##name##_end - gen_gpu_##name));
    CUDA_PART_LIST(X)
    if (layout->tensor > 0) {
        CUDA_TENSOR_LIST(X)
    } else {
        CUDA_LOOKUP_LIST(X)
    }
    CUDA_REST_LIST(X)
#undef X
    vqkvc_buf_puts(&text, end);
    vqkvc_buf_puts(&text, close);
    gen_text(out, text.data != NULL ? text.data : "", text.len, prefix, NULL);
    out->failed |= text.failed;
    free(text.data);
}

vqkvc_code gen_cuda(const vqkvc_plan *plan, const gen_options *options, vqkvc_buf *out,
                    vqkvc_err *err)
{
    vqkvc_hash hash;
    gen_lowered low = {0};
    gen_cuda_layout layout;
    vqkvc_buf banner = {0};
    VQKVC_TRY(gen_check_prefix(options->prefix, err));
    VQKVC_TRY(vqkvc_plan_validate(plan, err));
    VQKVC_TRY(vqkvc_plan_hash(plan, &hash, err));
    if (gen_lower(plan, &low, err) == VQKVC_OK &&
        gen_lay_out_cuda(plan, &low, &layout, err) == VQKVC_OK &&
        gen_check_cuda(plan, &low, &layout, err) == VQKVC_OK) {
        print_cuda_banner(plan, options, &hash, &banner);
        gen_text(out, banner.data != NULL ? banner.data : "", banner.len, options->prefix, NULL);
        print_cuda(plan, &low, &layout, &hash, options->prefix, out);
        if (out->failed || banner.failed)
            vqkvc_fail(err, VQKVC_E_MEMORY, "out of memory while printing the header");
    }
    free(banner.data);
    vqkvc_arena_free(&low.arena);
    return err->code;
}
