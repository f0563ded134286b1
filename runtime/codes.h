/* Kernels of encoding for one instruction set, in the vocabulary of kernels.h and over the tiles of
 * dense.h: LANES tokens at once. Besides:
 *
 *   storeu8 (integral 0..15 to bytes)   storeh (to binary16; what is too large becomes the largest)
 *   keep_less(x, i, &least, &index): where x < least, least = x and index = i
 *   transpose(src, step, dst, step): eight by eight binary16 values, steps of rows in bytes */

/* The codewords i .. i + 3 against LANES tokens z [width, BLOCK]: least and index are what was
 * found before. book: |c|^2 / 2 [16], then -c [width, 16]; |z - c|^2 / 2 less these is the same for
 * all codewords. */
#define VQKV__FOUR(i)                                                                              \
    {                                                                                              \
        vqkv__vf_ISA a0 = vqkv__set1_ISA(book[i]), a1 = vqkv__set1_ISA(book[(i) + 1]);             \
        vqkv__vf_ISA a2 = vqkv__set1_ISA(book[(i) + 2]), a3 = vqkv__set1_ISA(book[(i) + 3]);       \
        for (w = 0; w < width; w++) {                                                              \
            vqkv__vf_ISA v = vqkv__load_ISA(z + w * VQKV_BLOCK);                                   \
            const float *c = book + 16 * (w + 1) + (i);                                            \
            a0 = vqkv__fma_ISA(vqkv__set1_ISA(c[0]), v, a0);                                       \
            a1 = vqkv__fma_ISA(vqkv__set1_ISA(c[1]), v, a1);                                       \
            a2 = vqkv__fma_ISA(vqkv__set1_ISA(c[2]), v, a2);                                       \
            a3 = vqkv__fma_ISA(vqkv__set1_ISA(c[3]), v, a3);                                       \
        }                                                                                          \
        vqkv__keep_less_ISA(a0, (float)(i), &least, &index);                                       \
        vqkv__keep_less_ISA(a1, (float)((i) + 1), &least, &index);                                 \
        vqkv__keep_less_ISA(a2, (float)((i) + 2), &least, &index);                                 \
        vqkv__keep_less_ISA(a3, (float)((i) + 3), &least, &index);                                 \
    }

/* Inlined with a constant width. */
VQKV__TARGET_ISA VQKV__INLINE void vqkv__search_tile_ISA(const float *book, int width,
                                                         const float *tile, unsigned char *code)
{
    int t, w;
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        const float *z = tile + t;
        vqkv__vf_ISA least = vqkv__set1_ISA(3.4e38f), index = vqkv__set1_ISA(0.0f);
        VQKV__FOUR(0)
        VQKV__FOUR(4)
        VQKV__FOUR(8)
        VQKV__FOUR(12)
        vqkv__storeu8_ISA(code + t, index);
    }
}
#undef VQKV__FOUR

/* The nearest of 16 codewords, binary16 [width, 16], to each token of z [width, BLOCK], the lower
 * one on ties: a plane of nibbles. words: room for [width + 1, 16]. */
VQKV__TARGET_ISA static void vqkv__code_nibbles_ISA(const unsigned char *book, int width,
                                                    const float *z, float *words,
                                                    unsigned char *plane)
{
    unsigned char code[VQKV_BLOCK];
    vqkv__vf_ISA half = vqkv__set1_ISA(0.5f), minus = vqkv__set1_ISA(-1.0f);
    int i, w, t;
    for (i = 0; i < 16; i += VQKV__LANES_ISA) {
        vqkv__vf_ISA norm = vqkv__set1_ISA(0.0f);
        for (w = 0; w < width; w++) {
            vqkv__vf_ISA c = vqkv__loadh_ISA(book + 2 * (16 * w + i));
            norm = vqkv__fma_ISA(vqkv__mul_ISA(half, c), c, norm);
            vqkv__store_ISA(words + 16 * (w + 1) + i, vqkv__mul_ISA(minus, c));
        }
        vqkv__store_ISA(words + i, norm);
    }
    switch (width) {
    case 1:
        vqkv__search_tile_ISA(words, 1, z, code);
        break;
    case 2:
        vqkv__search_tile_ISA(words, 2, z, code);
        break;
    case 4:
        vqkv__search_tile_ISA(words, 4, z, code);
        break;
    default:
        vqkv__search_tile_ISA(words, width, z, code);
    }
    for (t = 0; t < VQKV_BLOCK / 2; t += 8) {
        uint64_t low, high;
        memcpy(&low, code + t, 8);
        memcpy(&high, code + VQKV_BLOCK / 2 + t, 8);
        low |= high << 4;
        memcpy(plane + t, &low, 8);
    }
}

/* z [width, BLOCK] -= the codewords of a plane of nibbles. */
VQKV__TARGET_ISA static void vqkv__leave_nibbles_ISA(const unsigned char *plane,
                                                     const unsigned char *book, int width, float *z)
{
    float words[16];
    int i, t, w;
    vqkv__vf_ISA minus = vqkv__set1_ISA(-1.0f);
    for (w = 0; w < width; w++, z += VQKV_BLOCK) {
        vqkv__vt_ISA table;
        for (i = 0; i < 16; i += VQKV__LANES_ISA)
            vqkv__store_ISA(words + i, vqkv__loadh_ISA(book + 2 * (16 * w + i)));
        table = vqkv__table_ISA(words);
        for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA)
            vqkv__store_ISA(
                z + t, vqkv__fma_ISA(minus, vqkv__lookup_ISA(table, vqkv__nibbles_ISA(plane, t)),
                                     vqkv__load_ISA(z + t)));
    }
}

/* sum [BLOCK]: of the squares of x [rows, BLOCK]. */
VQKV__TARGET_ISA static void vqkv__squares_ISA(const float *x, int rows, float *sum)
{
    int r, t, k;
    for (t = 0; t < VQKV_BLOCK; t += VQKV__LANES_ISA) {
        vqkv__vf_ISA a[4];
#pragma GCC unroll 4
        for (k = 0; k < 4; k++)
            a[k] = vqkv__set1_ISA(0.0f);
        for (r = 0; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
            for (k = 0; k < 4; k++) {
                vqkv__vf_ISA v = vqkv__load_ISA(x + (size_t)(r + k) * VQKV_BLOCK + t);
                a[k] = vqkv__fma_ISA(v, v, a[k]);
            }
        }
        for (; r < rows; r++) {
            vqkv__vf_ISA v = vqkv__load_ISA(x + (size_t)r * VQKV_BLOCK + t);
            a[0] = vqkv__fma_ISA(v, v, a[0]);
        }
        vqkv__store_ISA(sum + t,
                        vqkv__add_ISA(vqkv__add_ISA(a[0], a[1]), vqkv__add_ISA(a[2], a[3])));
    }
}

/* x [HEAD_DIM, BLOCK] from rows of binary16 [BLOCK, HEAD_DIM]. */
VQKV__TARGET_ISA static void vqkv__load_rows_ISA(const unsigned char *rows, float *x)
{
    unsigned char tile[8 * 2 * VQKV_BLOCK];
    int d, t, i;
    for (d = 0; d + 8 <= VQKV_HEAD_DIM; d += 8, x += 8 * VQKV_BLOCK) {
        for (t = 0; t < VQKV_BLOCK; t += 8)
            vqkv__transpose_ISA(rows + 2 * (t * VQKV_HEAD_DIM + d), 2 * VQKV_HEAD_DIM, tile + 2 * t,
                                2 * VQKV_BLOCK);
        for (i = 0; i < 8 * VQKV_BLOCK; i += VQKV__LANES_ISA)
            vqkv__store_ISA(x + i, vqkv__loadh_ISA(tile + 2 * i));
    }
    for (; d < VQKV_HEAD_DIM; d++, x += VQKV_BLOCK)
        for (t = 0; t < VQKV_BLOCK; t++)
            x[t] = vqkv__half_at(rows, (size_t)(t * VQKV_HEAD_DIM + d));
}

/* A row of binary16 [n] from x [n]. */
VQKV__TARGET_ISA static void vqkv__store_row_ISA(const float *x, int n, unsigned char *row)
{
    int i = 0;
    for (; i + VQKV__LANES_ISA <= n; i += VQKV__LANES_ISA)
        vqkv__storeh_ISA(row + 2 * i, vqkv__load_ISA(x + i));
    for (; i < n; i++)
        vqkv__storeh_portable(row + 2 * i, x[i]);
}

/* Turns a head's vector x [HEAD_DIM] by cosines and sines, each [N_ROT / 2]. */
VQKV__TARGET_ISA static void vqkv__turn_row_ISA(const float *cosines, const float *sines, float *x)
{
    int i = 0, half = VQKV_N_ROT / 2;
    vqkv__vf_ISA minus = vqkv__set1_ISA(-1.0f);
    for (; !VQKV_ROPE_INTERLEAVED && i + VQKV__LANES_ISA <= half; i += VQKV__LANES_ISA) {
        vqkv__vf_ISA c = vqkv__load_ISA(cosines + i), s = vqkv__load_ISA(sines + i);
        vqkv__vf_ISA a = vqkv__load_ISA(x + i), b = vqkv__load_ISA(x + half + i);
        vqkv__store_ISA(x + i, vqkv__fma_ISA(vqkv__mul_ISA(minus, s), b, vqkv__mul_ISA(c, a)));
        vqkv__store_ISA(x + half + i, vqkv__fma_ISA(s, a, vqkv__mul_ISA(c, b)));
    }
    for (; i < half; i++) {
        float *first = x + (VQKV_ROPE_INTERLEAVED ? 2 * i : i);
        float *second = x + (VQKV_ROPE_INTERLEAVED ? 2 * i + 1 : i + half);
        float a = *first, b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

#define VQKV__X(name) vqkv__##name##_ISA,
static const vqkv__code_ops vqkv__code_ISA = {VQKV__CODE_KERNELS(VQKV__X)};
#undef VQKV__X
