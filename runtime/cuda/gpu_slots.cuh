/* Nibbles as tensor cores take them. A slot is one channel of one stage of a code: a plane and 16
 * codewords in 8 bits with a scale. The slots of a gain group fill sixteens, the depth of a product
 * with queries and the height of one with weights. Queries and weights have 15 bits: two columns of
 * a product each, which count 128 and 1. */

constexpr int unit_tokens = 64; /* of a plane's codes that a warp meets at once: 32 bytes */
constexpr int units = tile_tokens / unit_tokens, warp_units = units / warps;
constexpr int block_units = block / unit_tokens;
constexpr float top_word = 127.0f * 128.0f;

/* Sixteen slots: their stream and gain group there, that group's number in the head, and
 * whether it ends here. */
struct sixteen {
    short stream, gain, row, last;
};

constexpr int stage_bit = 12, latent_mask = (1 << stage_bit) - 1;
constexpr int no_stage = 15; /* of an empty slot */
static_assert(VQKV__CUDA_K_LATENTS <= 1 << stage_bit && VQKV__CUDA_V_STAGES < no_stage,
              "latents and stages of slots");

/* Slots of a head, in the order in which a lane takes them. */
template <int sixteens> struct slot_list {
    alignas(16) uint4 table[sixteens * 16];    /* codewords */
    alignas(16) uint32_t plane[sixteens * 16]; /* offset in the stream's part of a block, bytes */
    float scale[sixteens * 16];                /* of the codewords; 0: the slot is empty */
    unsigned short latent[sixteens * 16];      /* of the head, and the stage in four bits above */
    sixteen of[sixteens];
    int n;
};

#ifdef __CUDACC__
/* Bytes of y : x by the nibbles of the selector's lower half; from 8 on the sign of byte n - 8 (PTX
 * ISA, prmt; __byte_perm() promises three bits only). */
__device__ inline uint32_t permute(uint32_t x, uint32_t y, uint32_t selector)
{
    uint32_t to;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(to) : "r"(x), "r"(y), "r"(selector));
    return to;
}

/* d [16, 8] += a [16, 32] * b [32, 8] by the 32 lanes of a warp. Lane 4 g + i has four neighbouring
 * columns of a, from 4 i on, in rows g and g + 8 (a0, a1), the same rows of column g of b (b0), all
 * of this 16 further (a2, a3, b1), and columns 2 i and 2 i + 1 of d in rows g and g + 8 (PTX ISA,
 * "Matrix Fragments for mma.m16n8k32"). */
__device__ inline void multiply(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, "
                 "%7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

/* The codewords of eight tokens, of a word of a plane: in x[k][0] those of the low and of the high
 * nibble of bytes 0 and 1, in x[k][1] of bytes 2 and 3, in four bytes each. They are the sums over
 * k of two look-ups, by codes below 8 and by others, since products are linear and adding them up
 * there is cheaper than to choose. A look-up by a nibble of 8 and more gives the sign of the byte,
 * which round_book() allows for. */
__device__ inline void look_up(const uint4 &table, uint32_t word, uint32_t (&x)[2][2])
{
    uint32_t other = word ^ 0x88888888u;
    x[0][0] = permute(table.x, table.y, word);
    x[0][1] = permute(table.x, table.y, word >> 16);
    x[1][0] = permute(table.z, table.w, other);
    x[1][1] = permute(table.z, table.w, other >> 16);
}

/* Four numbers of at most top_word in magnitude, times `by`, as 128 * high + low in bytes. The sum
 * with 1.5 * 2^23 has the nearest whole number in its last bits. */
__device__ inline void split_words(const float (&x)[4], float by, uint32_t *high, uint32_t *low)
{
    uint32_t h[4], l[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int word = static_cast<int>(__float_as_uint(fmaf(x[k], by, 12582912.0f)) - 0x4b400000u);
        int top = (word + 64) >> 7;
        h[k] = static_cast<uint32_t>(top);
        l[k] = static_cast<uint32_t>(word - top * 128);
    }
    *high = permute(permute(h[0], h[1], 0x0040), permute(h[2], h[3], 0x0040), 0x5410);
    *low = permute(permute(l[0], l[1], 0x0040), permute(l[2], l[3], 0x0040), 0x5410);
}

/* The bytes for codewords k and k + 8 as look_up() wants them. What either gets from the other
 * look-up is -1 where the other's byte is negative, so it is stored one higher then; but -1 would
 * become 0 by that, which is not negative. */
__device__ inline void pair_up(int *low, int *high)
{
    *low += *high < (*low < 0 ? -1 : 0);
    *high += *low < 0;
}

/* Codewords in 8 bits as look_up() wants them; their scale. Uniform codes are exact. */
__device__ inline float round_book(const vqkv__run &run, int book, uint4 *to)
{
    float top = 0.0f;
    for (int k = 0; k < 16; k++)
        top = fmaxf(top, fabsf(table_at(book, k)));
    float scale = run.uniform ? 1.0f : top / 126.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int low = static_cast<int>(rintf(table_at(book, k) * inverse));
        int high = static_cast<int>(rintf(table_at(book, k + 8) * inverse));
        pair_up(&low, &high);
        words[k / 4] |= static_cast<uint32_t>(low & 255) << k % 4 * 8;
        words[2 + k / 4] |= static_cast<uint32_t>(high & 255) << k % 4 * 8;
    }
    *to = uint4{words[0], words[1], words[2], words[3]};
    return scale;
}

/* Slot i of a run. */
template <int sixteens>
__device__ inline void put_slot(slot_list<sixteens> &to, int at, const vqkv__run &run, int i,
                                int latent)
{
    int stage = i % run.stages, w = i / run.stages % run.width;
    int channels = i / run.stages / run.width, plane = channels * run.stages + stage;
    to.plane[at] = static_cast<uint32_t>(run.codes + plane * columns);
    to.scale[at] = round_book(run, book_of(run, plane) + w * 16, &to.table[at]);
    to.latent[at] = static_cast<unsigned short>((latent + run.first + channels * run.width + w) |
                                                stage << stage_bit);
}

/* Lists the slots of a head; place(i) is where the i-th of a sixteen stands. All threads, but no
 * barrier. */
template <int sixteens, class F>
__device__ void list_slots(slot_list<sixteens> &to, int which, int layer, int head, F place)
{
    int n_uses;
    const vqkv__use *use = uses_of(which, layer, head, &n_uses);
    each(sixteens * 16, [&](int i) {
        int at = i / 16 * 16 + place(i % 16), end = 0, row = 0, latent = 0;
        to.table[at] = uint4{0, 0, 0, 0};
        to.plane[at] = 0;
        to.scale[at] = 0.0f;
        to.latent[at] = no_stage << stage_bit;
        for (int u = 0; u < n_uses; u++) {
            const vqkv__stream &s = vqkv__streams[use[u].stream];
            for (int r = s.first_run, g; r < s.first_run + s.n_runs; row++) {
                int from = end;
                for (g = vqkv__runs[r].gain; r < s.first_run + s.n_runs && vqkv__runs[r].gain == g;
                     r++) {
                    int n = vqkv__runs[r].planes * vqkv__runs[r].width;
                    if (i >= end && i < end + n)
                        put_slot(to, at, vqkv__runs[r], i - end, latent);
                    end += n;
                }
                end = (end + 15) / 16 * 16;
                if (i >= from && i < end && i % 16 == 0)
                    to.of[i / 16] =
                        sixteen{use[u].stream, static_cast<short>(g), static_cast<short>(row),
                                static_cast<short>(i + 16 == end)};
            }
            latent += s.n_latents;
        }
        if (i == 0)
            to.n = end / 16;
    });
}

/* Where the slots of keys, columns of a product, and of values, its rows, stand. */
__device__ constexpr int place_of_column(int i)
{
    return i % 4 * 4 + i / 4;
}
__device__ constexpr int place_of_row(int i)
{
    return i % 8 * 2 + i / 8;
}

/* 64 tokens of a tile: in which block of the pool, that block's number in the tile, and how many
 * bytes into a plane their codes begin. */
struct unit_at {
    int where, b, offset;
};

__device__ inline unit_at find_unit(const attend_job &job, const pass &a, int j, int unit)
{
    int b = unit / block_units;
    return unit_at{entry_of(job.v, a.seq, j + b).block, b, unit % block_units * (unit_tokens / 2)};
}

/* The tile's token of a unit's first low nibble. */
__device__ constexpr int token_of(int unit)
{
    return unit / block_units * block + unit % block_units * (unit_tokens / 2);
}
