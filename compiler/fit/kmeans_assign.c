/* kmeans_assign.c - the nearest centroid of every point.
 *
 * Short vectors: distances are summed directly, many points side by side in vector registers. Long
 * vectors: a BLAS product gives |c|^2 - 2 x.c roughly, and every centroid that rounding leaves in
 * question is measured again in double. So the outcome does not depend on how BLAS rounds, which
 * differs from machine to machine. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/matrix.h"
#include "fit/fit.h"
#include "fit/kmeans_impl.h"

/* Rows and centroids of one product. */
enum { ROWS = 128, COLS = 256 };

/* Shapes up to these are faster without BLAS (measured: n 16384, k 16 and 256, d 8 to 128). */
enum { DIRECT_MAX_D = 32, DIRECT_MAX_D_FEW = 128, FEW = 32 };

/* Multiply-adds below which starting threads costs more than it saves. */
static const double PARALLEL_WORK = 1 << 22;

void vqkvc_kmeans_tile(int rows, int d, const float *x, size_t ldx, float *tile)
{
    if (rows < VQKVC_TILE)
        memset(tile, 0, (size_t)d * VQKVC_TILE * sizeof *tile);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < d; j++)
            tile[j * VQKVC_TILE + i] = x[(size_t)i * ldx + (size_t)j];
}

/* ---- short vectors ---- */

/* label [VQKVC_TILE] = nearest of centroids [k, d] to each column of tile. Inlined with a constant
 * d where that pays. */
static inline __attribute__((always_inline)) void
nearest_in_tile(int d, const float *tile, int k, const float *centroids, int32_t *label)
{
    const vqkvc_lanes *t = (const vqkvc_lanes *)tile;
    const int stride = VQKVC_TILE / VQKVC_LANES;
    for (int p = 0; p < stride; p += 2) {
        vqkvc_lanes best0 = {0}, best1 = {0};
        vqkvc_lanes_i index0 = {0}, index1 = {0};
        best0 = best0 + INFINITY;
        best1 = best1 + INFINITY;
        const float *centroid = centroids;
        for (int c = 0; c < k; c++, centroid += d) {
            vqkvc_lanes sum0 = {0}, sum1 = {0};
            for (int j = 0; j < d; j++) {
                vqkvc_lanes e0 = t[j * stride + p] - centroid[j];
                vqkvc_lanes e1 = t[j * stride + p + 1] - centroid[j];
                sum0 += e0 * e0;
                sum1 += e1 * e1;
            }
            vqkvc_lanes_i less0 = sum0 < best0, less1 = sum1 < best1;
            best0 = (vqkvc_lanes)((less0 & (vqkvc_lanes_i)sum0) | (~less0 & (vqkvc_lanes_i)best0));
            best1 = (vqkvc_lanes)((less1 & (vqkvc_lanes_i)sum1) | (~less1 & (vqkvc_lanes_i)best1));
            index0 = (less0 & c) | (~less0 & index0);
            index1 = (less1 & c) | (~less1 & index1);
        }
        memcpy(label + p * VQKVC_LANES, &index0, sizeof index0);
        memcpy(label + (p + 1) * VQKVC_LANES, &index1, sizeof index1);
    }
}

VQKVC_CLONES static void assign_tile(int d, const float *tile, int k, const float *centroids,
                                     int32_t *label)
{
    switch (d) {
    case 1:
        nearest_in_tile(1, tile, k, centroids, label);
        break;
    case 2:
        nearest_in_tile(2, tile, k, centroids, label);
        break;
    case 4:
        nearest_in_tile(4, tile, k, centroids, label);
        break;
    case 8:
        nearest_in_tile(8, tile, k, centroids, label);
        break;
    default:
        nearest_in_tile(d, tile, k, centroids, label);
    }
}

static void assign_direct(int n, int d, const float *x, size_t ldx, int k, const float *centroids,
                          int32_t *assign)
{
    int tiles = n / VQKVC_TILE + (n % VQKVC_TILE != 0);
#pragma omp parallel for schedule(static) if ((double)n * k * d > PARALLEL_WORK)
    for (int i = 0; i < tiles; i++) {
        _Alignas(32) float tile[DIRECT_MAX_D_FEW * VQKVC_TILE];
        int32_t label[VQKVC_TILE];
        size_t begin = (size_t)i * VQKVC_TILE;
        int rows = n - i * VQKVC_TILE < VQKVC_TILE ? n - i * VQKVC_TILE : VQKVC_TILE;
        vqkvc_kmeans_tile(rows, d, x + begin * ldx, ldx, tile);
        assign_tile(d, tile, k, centroids, label);
        memcpy(assign + begin, label, (size_t)rows * sizeof *label);
    }
}

/* ---- long vectors ---- */

static double exact_distance(int d, const float *x, const float *c)
{
    double sum = 0;
    for (int j = 0; j < d; j++) {
        double e = (double)x[j] - c[j];
        sum += e * e;
    }
    return sum;
}

/* Everything about the centroids that the blocks of rows share; moved by their mean, so that a
 * common offset of the data does not eat the precision of the products. */
typedef struct codebook {
    int k, d;
    const float *centroids; /* [k, d] */
    float *shift;           /* [d] */
    float *moved;           /* [k, d] -2 (centroid - shift) */
    float *norm;            /* [k] |centroid - shift|^2 */
    double reach;           /* the largest |centroid - shift| */
} codebook;

/* Takes room for the codebook and for `threads` blocks from one allocation; NULL without memory. */
static float *codebook_alloc(codebook *book, int threads)
{
    size_t k = (size_t)book->k, d = (size_t)book->d;
    size_t need = d + k * d + k + (size_t)threads * (ROWS * d + ROWS * COLS);
    float *memory = malloc(need * sizeof *memory);
    if (!memory)
        return NULL;
    book->shift = memory;
    book->moved = memory + d;
    book->norm = memory + d + k * d;
    return book->norm + k;
}

static void codebook_fill(codebook *book)
{
    size_t d = (size_t)book->d;
    for (size_t j = 0; j < d; j++) {
        double sum = 0;
        for (size_t c = 0; c < (size_t)book->k; c++)
            sum += book->centroids[c * d + j];
        book->shift[j] = (float)(sum / book->k);
    }
    book->reach = 0;
    for (size_t c = 0; c < (size_t)book->k; c++) {
        double norm = 0;
        for (size_t j = 0; j < d; j++) {
            float v = book->centroids[c * d + j] - book->shift[j];
            norm += (double)v * v;
            book->moved[c * d + j] = -2 * v;
        }
        book->norm[c] = (float)norm;
        book->reach = fmax(book->reach, sqrt(norm));
    }
}

/* product [cols] += norm [cols]; returns the least. */
VQKVC_CLONES static float add_norms(int cols, const float *norm, float *product)
{
    vqkvc_lanes lowest = {0};
    lowest = lowest + INFINITY;
    int c = 0;
    for (; c + VQKVC_LANES <= cols; c += VQKVC_LANES) {
        vqkvc_lanes v, u;
        memcpy(&v, product + c, sizeof v);
        memcpy(&u, norm + c, sizeof u);
        v += u;
        memcpy(product + c, &v, sizeof v);
        vqkvc_lanes_i less = v < lowest;
        lowest = (vqkvc_lanes)((less & (vqkvc_lanes_i)v) | (~less & (vqkvc_lanes_i)lowest));
    }
    float least = INFINITY;
    for (int j = 0; j < VQKVC_LANES; j++)
        least = lowest[j] < least ? lowest[j] : least;
    for (; c < cols; c++) {
        product[c] += norm[c];
        least = product[c] < least ? product[c] : least;
    }
    return least;
}

typedef struct nearest {
    double distance; /* exact */
    float rough;     /* least |c|^2 - 2 x.c so far */
    float margin;    /* bound on how wrong the difference of two rough values is */
    int32_t index;
} nearest;

/* Looks through one stretch of centroids; rough [cols] their rough values. */
static void examine(nearest *best, int cols, int first, const float *rough, float least,
                    const float *x, const codebook *book)
{
    if (!(least <= best->rough + best->margin))
        return;
    best->rough = least < best->rough ? least : best->rough;
    float limit = best->rough + best->margin;
    for (int c = 0; c < cols; c++)
        if (rough[c] <= limit) {
            size_t row = (size_t)(first + c) * (size_t)book->d;
            double distance = exact_distance(book->d, x, book->centroids + row);
            if (distance < best->distance) {
                best->distance = distance;
                best->index = first + c;
            }
        }
}

/* |x| after moving; moved [d]. */
static double move_row(int d, const float *x, const float *shift, float *moved)
{
    double norm = 0;
    for (int j = 0; j < d; j++) {
        moved[j] = x[j] - shift[j];
        norm += (double)moved[j] * moved[j];
    }
    return sqrt(norm);
}

/* assign [rows]; scratch [ROWS, d] and behind it [ROWS, COLS]. */
static void assign_block(int rows, const float *x, size_t ldx, const codebook *book, float *scratch,
                         int32_t *assign)
{
    nearest best[ROWS];
    size_t d = (size_t)book->d;
    float *moved = scratch, *product = scratch + ROWS * d;
    for (int i = 0; i < rows; i++) {
        double size = move_row(book->d, x + (size_t)i * ldx, book->shift, moved + (size_t)i * d);
        /* A product of d terms is off by at most d u |x| |c| (Higham, section 3.1), moving and
         * adding |c|^2 by a few u (|x| + |c|)^2; u = 2^-24, and two values are compared. */
        double margin = (2 * book->d + 16) * 0x1p-24 * (size + book->reach) * (size + book->reach);
        best[i] = (nearest){INFINITY, INFINITY, (float)margin, 0};
    }
    for (int first = 0; first < book->k; first += COLS) {
        int cols = book->k - first < COLS ? book->k - first : COLS;
        vqkvc_sgemm_nt(rows, cols, book->d, moved, d, book->moved + (size_t)first * d, d, product,
                       COLS);
        for (int i = 0; i < rows; i++) {
            float *rough = product + i * COLS;
            float least = add_norms(cols, book->norm + first, rough);
            examine(&best[i], cols, first, rough, least, x + (size_t)i * ldx, book);
        }
    }
    for (int i = 0; i < rows; i++)
        assign[i] = best[i].index;
}

/* The way out when memory is short: plain double loops, without any. */
static void assign_plainly(int n, int d, const float *x, size_t ldx, int k, const float *centroids,
                           int32_t *assign)
{
    for (int i = 0; i < n; i++) {
        double least = INFINITY;
        assign[i] = 0;
        for (int c = 0; c < k; c++) {
            double distance =
                exact_distance(d, x + (size_t)i * ldx, centroids + (size_t)c * (size_t)d);
            if (distance < least) {
                least = distance;
                assign[i] = c;
            }
        }
    }
}

void vqkvc_kmeans_assign(int n, int d, const float *x, size_t ldx, int k, const float *centroids,
                         int32_t *assign)
{
    if (d <= DIRECT_MAX_D || (d <= DIRECT_MAX_D_FEW && k <= FEW)) {
        assign_direct(n, d, x, ldx, k, centroids, assign);
        return;
    }
    codebook book = {.k = k, .d = d, .centroids = centroids};
    float *scratch = codebook_alloc(&book, omp_get_max_threads());
    if (!scratch) {
        assign_plainly(n, d, x, ldx, k, centroids, assign);
        return;
    }
    codebook_fill(&book);
    int blocks = n / ROWS + (n % ROWS != 0);
    size_t share = ROWS * (size_t)d + ROWS * COLS;
#pragma omp parallel for schedule(dynamic) if ((double)n * k * d > PARALLEL_WORK)
    for (int b = 0; b < blocks; b++) {
        int rows = n - b * ROWS < ROWS ? n - b * ROWS : ROWS;
        assign_block(rows, x + (size_t)b * ROWS * ldx, ldx, &book,
                     scratch + (size_t)omp_get_thread_num() * share, assign + (size_t)b * ROWS);
    }
    free(book.shift);
}
