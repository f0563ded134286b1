/* test_matrix.c - properties of base/matrix.h and base/geometry.h. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include <criterion/criterion.h>

#include "base/geometry.h"
#include "base/matrix.h"
#include "base/memory.h"
#include "base/rng.h"

/* ---- products -------------------------------------------------------------------------------- */

/* Odd sizes, one, and sizes that cross the borders of the tiles (128 rows, 256 columns). */
static const struct {
    int m, n, k;
} shapes[] = {{1, 1, 1},   {3, 5, 7},     {1, 257, 9},   {129, 1, 33},
              {17, 31, 1}, {130, 259, 3}, {257, 513, 65}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, PAD = 3 };

typedef void sgemm(int, int, int, const float *, size_t, const float *, size_t, float *, size_t);
typedef void dgemm(int, int, int, const double *, size_t, const double *, size_t, double *, size_t);

static const struct {
    const char *name;
    int a_transposed, b_transposed;
    sgemm *single;
    dgemm *wide;
} products[] = {{"nn", 0, 0, vqkvc_sgemm_nn, vqkvc_dgemm_nn},
                {"nt", 0, 1, vqkvc_sgemm_nt, vqkvc_dgemm_nt},
                {"tn", 1, 0, vqkvc_sgemm_tn, vqkvc_dgemm_tn}};
enum { N_PRODUCTS = sizeof products / sizeof *products };

/* Operands of one product in both precisions, rows PAD longer than they need be; c holds -7. */
typedef struct operands {
    vqkvc_arena arena;
    int m, n, k;
    size_t lda, ldb, ldc, a_size, b_size, c_size;
    double *a, *b, *c;
    float *as, *bs, *cs;
} operands;

static void *take(vqkvc_arena *arena, size_t n, size_t size)
{
    vqkvc_err err = {0};
    void *p = vqkvc_arena_alloc(arena, n, size, &err);
    cr_assert_not_null(p);
    return p;
}

static void clear_result(operands *o)
{
    for (size_t i = 0; i < o->c_size; i++) {
        o->c[i] = -7;
        o->cs[i] = -7;
    }
}

static operands make_operands(int product, int shape)
{
    operands o = {.m = shapes[shape].m, .n = shapes[shape].n, .k = shapes[shape].k};
    int at = products[product].a_transposed, bt = products[product].b_transposed;
    vqkvc_rng rng = vqkvc_rng_make(21, (uint64_t)(product * 100 + shape));
    o.lda = (size_t)(at ? o.m : o.k) + PAD;
    o.ldb = (size_t)(bt ? o.k : o.n) + PAD;
    o.ldc = (size_t)o.n + PAD;
    o.a_size = o.lda * (size_t)(at ? o.k : o.m);
    o.b_size = o.ldb * (size_t)(bt ? o.n : o.k);
    o.c_size = o.ldc * (size_t)o.m;
    o.a = take(&o.arena, o.a_size, sizeof *o.a);
    o.as = take(&o.arena, o.a_size, sizeof *o.as);
    o.b = take(&o.arena, o.b_size, sizeof *o.b);
    o.bs = take(&o.arena, o.b_size, sizeof *o.bs);
    o.c = take(&o.arena, o.c_size, sizeof *o.c);
    o.cs = take(&o.arena, o.c_size, sizeof *o.cs);
    for (size_t i = 0; i < o.a_size; i++)
        o.a[i] = o.as[i] = (float)vqkvc_rng_normal(&rng);
    for (size_t i = 0; i < o.b_size; i++)
        o.b[i] = o.bs[i] = (float)vqkvc_rng_normal(&rng);
    clear_result(&o);
    return o;
}

static void multiply(int product, operands *o)
{
    products[product].single(o->m, o->n, o->k, o->as, o->lda, o->bs, o->ldb, o->cs, o->ldc);
    products[product].wide(o->m, o->n, o->k, o->a, o->lda, o->b, o->ldb, o->c, o->ldc);
}

/* Any order of summation of k products errs by at most k eps sum |a b| (Higham, section 3.1). */
static void check_product(int product, const operands *o)
{
    size_t a_row = products[product].a_transposed ? 1 : o->lda;
    size_t a_col = products[product].a_transposed ? o->lda : 1;
    size_t b_row = products[product].b_transposed ? 1 : o->ldb;
    size_t b_col = products[product].b_transposed ? o->ldb : 1;
    for (int i = 0; i < o->m; i++) {
        for (int j = 0; j < o->n; j++) {
            double sum = 0, size = 0, c = o->c[i * o->ldc + j], cs = o->cs[i * o->ldc + j];
            for (int l = 0; l < o->k; l++) {
                double term = o->a[i * a_row + l * a_col] * o->b[l * b_row + j * b_col];
                sum += term;
                size += fabs(term);
            }
            cr_assert_leq(fabs(c - sum), 2 * o->k * DBL_EPSILON * size);
            cr_assert_leq(fabs(cs - sum), o->k * (double)FLT_EPSILON * size);
        }
        for (size_t j = (size_t)o->n; j < o->ldc; j++)
            cr_assert(o->c[i * o->ldc + j] == -7 && o->cs[i * o->ldc + j] == -7,
                      "padding was written");
    }
}

Test(matrix, products_equal_the_plain_sum)
{
    vqkvc_matrix_init();
    for (int product = 0; product < N_PRODUCTS; product++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            operands o = make_operands(product, shape);
            multiply(product, &o);
            check_product(product, &o);
            vqkvc_arena_free(&o.arena);
        }
    }
}

Test(matrix, products_are_the_same_bytes_for_any_thread_count)
{
    vqkvc_matrix_init();
    for (int product = 0; product < N_PRODUCTS; product++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            operands o = make_operands(product, shape);
            double *c = take(&o.arena, o.c_size, sizeof *c);
            float *cs = take(&o.arena, o.c_size, sizeof *cs);
            omp_set_num_threads(1);
            multiply(product, &o);
            memcpy(c, o.c, o.c_size * sizeof *c);
            memcpy(cs, o.cs, o.c_size * sizeof *cs);
            for (int threads = 2; threads <= 3; threads++) {
                omp_set_num_threads(threads);
                clear_result(&o);
                multiply(product, &o);
                cr_assert(memcmp(c, o.c, o.c_size * sizeof *c) == 0, "double %s, %d threads",
                          products[product].name, threads);
                cr_assert(memcmp(cs, o.cs, o.c_size * sizeof *cs) == 0, "float %s, %d threads",
                          products[product].name, threads);
            }
            vqkvc_arena_free(&o.arena);
        }
    }
}

Test(matrix, a_sum_of_nothing_is_zero)
{
    float a[4] = {1, 2, 3, 4}, c[4] = {9, 9, 9, 9};
    vqkvc_matrix_init();
    vqkvc_sgemm_nn(2, 2, 0, a, 2, a, 2, c, 2);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(c[i], 0.0f);
}

/* ---- decompositions -------------------------------------------------------------------------- */

/* A random symmetric matrix [n, n]; with `definite`, plus n on the diagonal of a Gram matrix. */
static void random_symmetric(int n, int definite, uint64_t stream, double *a)
{
    vqkvc_arena arena = {0};
    vqkvc_rng rng = vqkvc_rng_make(22, stream);
    double *x = take(&arena, (size_t)n * n, sizeof *x);
    for (int i = 0; i < n * n; i++)
        x[i] = vqkvc_rng_normal(&rng);
    if (definite)
        vqkvc_dgemm_tn(n, n, n, x, (size_t)n, x, (size_t)n, a, (size_t)n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (definite)
                a[i * n + j] += i == j ? n : 0;
            else
                a[i * n + j] = x[i * n + j] + x[j * n + i];
    vqkvc_arena_free(&arena);
}

static void check_eigen(int n, const double *a, const double *v, const double *w)
{
    double scale = n * fabs(w[0]) + n * fabs(w[n - 1]) + 1;
    for (int i = 0; i < n; i++) {
        double largest = 0;
        cr_assert(i == 0 || w[i - 1] >= w[i], "eigenvalues are not descending");
        for (int j = 0; j < n; j++) {
            double sum = 0, dot = 0;
            for (int l = 0; l < n; l++) {
                sum += v[l * n + i] * w[l] * v[l * n + j];
                dot += v[i * n + l] * v[j * n + l];
            }
            cr_assert_float_eq(sum, a[i * n + j], 1e-14 * scale, "A is not V' W V");
            cr_assert_float_eq(dot, i == j, 1e-13 * n, "V is not orthonormal");
            if (fabs(v[i * n + j]) > fabs(largest))
                largest = v[i * n + j];
        }
        cr_assert_gt(largest, 0, "the sign of eigenvector %d is not fixed", i);
    }
}

Test(matrix, eigenvectors_rebuild_the_matrix)
{
    static const int sizes[] = {1, 2, 3, 17, 64, 131};
    vqkvc_matrix_init();
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        vqkvc_arena arena = {0};
        vqkvc_err err = {0};
        double *a = take(&arena, (size_t)n * n, sizeof *a), *w = take(&arena, (size_t)n, sizeof *w);
        double *v = take(&arena, (size_t)n * n, sizeof *v);
        random_symmetric(n, 0, (uint64_t)n, a);
        memcpy(v, a, (size_t)n * n * sizeof *v);
        cr_assert_eq(vqkvc_eigen_symmetric(n, v, w, &err), VQKVC_OK, "%s", err.msg);
        check_eigen(n, a, v, w);
        vqkvc_arena_free(&arena);
    }
}

/* n is no multiple of a tile; below the diagonal lies what must not be read. */
Test(matrix, gram_and_eigenvalues_need_the_upper_triangle_only)
{
    enum { SIZE = 300, ROWS = 40 };
    static double a[ROWS * SIZE], c[SIZE * SIZE], whole[SIZE * SIZE], w[SIZE], expected[SIZE];
    vqkvc_rng rng = vqkvc_rng_make(12, 0);
    vqkvc_err err = {0};
    for (int i = 0; i < ROWS * SIZE; i++)
        a[i] = vqkvc_rng_normal(&rng);
    for (int i = 0; i < SIZE; i++)
        c[i * SIZE + i] = i;
    vqkvc_dgemm_gram_add(SIZE, ROWS, a, SIZE, c, SIZE);
    vqkvc_dgemm_tn(SIZE, SIZE, ROWS, a, SIZE, a, SIZE, whole, SIZE);
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            whole[i * SIZE + j] += i == j ? i : 0;
            if (j >= i)
                cr_assert_float_eq(c[i * SIZE + j], whole[i * SIZE + j], 1e-9);
            else
                c[i * SIZE + j] = NAN;
        }
    cr_assert_eq(vqkvc_eigen_symmetric(SIZE, whole, expected, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_eigenvalues_symmetric(SIZE, c, w, &err), VQKVC_OK);
    for (int i = 0; i < SIZE; i++)
        cr_assert_float_eq(w[i], expected[i], 1e-9 * expected[0]);
}

Test(matrix, eigenvectors_of_what_is_no_number_fail)
{
    vqkvc_err err = {0};
    double a[4] = {1, NAN, NAN, 1}, w[2];
    cr_assert_eq(vqkvc_eigen_symmetric(2, a, w, &err), VQKVC_E_NUMERIC);
}

Test(matrix, a_solution_solves)
{
    static const struct {
        int n, m;
    } cases[] = {{1, 1}, {2, 5}, {33, 1}, {64, 7}};
    vqkvc_matrix_init();
    for (size_t s = 0; s < sizeof cases / sizeof *cases; s++) {
        int n = cases[s].n, m = cases[s].m;
        vqkvc_arena arena = {0};
        vqkvc_err err = {0};
        vqkvc_rng rng = vqkvc_rng_make(23, s);
        double *a = take(&arena, (size_t)n * n, sizeof *a);
        double *work = take(&arena, (size_t)n * n, sizeof *work);
        double *b = take(&arena, (size_t)n * m, sizeof *b);
        double *x = take(&arena, (size_t)n * m, sizeof *x);
        random_symmetric(n, 1, s, a);
        memcpy(work, a, (size_t)n * n * sizeof *a);
        for (int i = 0; i < n * m; i++)
            x[i] = b[i] = vqkvc_rng_normal(&rng);
        cr_assert_eq(vqkvc_solve_spd(n, m, work, x, &err), VQKVC_OK, "%s", err.msg);
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < m; j++) {
                double sum = 0;
                for (int l = 0; l < n; l++)
                    sum += a[i * n + l] * x[l * m + j];
                cr_assert_float_eq(sum, b[i * m + j], 1e-12);
            }
        }
        vqkvc_arena_free(&arena);
    }
}

Test(matrix, an_indefinite_system_fails)
{
    vqkvc_err err = {0};
    double a[4] = {1, 2, 2, 1}, b[2] = {1, 1};
    cr_assert_eq(vqkvc_solve_spd(2, 1, a, b, &err), VQKVC_E_NUMERIC);
    cr_assert(strstr(err.msg, "2 x 2") != NULL);
}

/* ---- geometry -------------------------------------------------------------------------------- */

enum { HEADS = 3, HEAD_DIM = 24 };

static vqkvc_geometry make_geometry(vqkvc_rope_layout layout, int n_rot)
{
    vqkvc_geometry g = {.head_dim = HEAD_DIM, .rope_layout = layout, .n_rot = n_rot};
    for (int i = 0; i < n_rot / 2; i++)
        g.rope_freq[i] = pow(10000, -2.0 * i / n_rot);
    return g;
}

static void random_vectors(uint64_t stream, float *x, int n)
{
    vqkvc_rng rng = vqkvc_rng_make(24, stream);
    for (int i = 0; i < n; i++)
        x[i] = (float)vqkvc_rng_normal(&rng);
}

static const vqkvc_rope_layout layouts[] = {VQKVC_ROPE_INTERLEAVED, VQKVC_ROPE_HALVES};
static const int rotated[] = {2, 10, HEAD_DIM};

Test(geometry, turning_back_is_the_identity)
{
    float x[HEADS * HEAD_DIM], y[HEADS * HEAD_DIM];
    for (int l = 0; l < 2; l++) {
        for (int r = 0; r < 3; r++) {
            vqkvc_geometry g = make_geometry(layouts[l], rotated[r]);
            for (int position = 0; position < 200000; position = position * 3 + 1) {
                random_vectors((uint64_t)position, x, HEADS * HEAD_DIM);
                memcpy(y, x, sizeof y);
                vqkvc_rope_rotate(&g, position, y, HEADS);
                vqkvc_rope_rotate(&g, -position, y, HEADS);
                for (int i = 0; i < HEADS * HEAD_DIM; i++)
                    cr_assert_float_eq(x[i], y[i], 2e-6);
            }
        }
    }
}

/* The definition, pair by pair, in double; channels from n_rot on stay as they are, to the bit. */
Test(geometry, each_pair_turns_by_its_own_angle)
{
    float x[HEADS * HEAD_DIM], y[HEADS * HEAD_DIM];
    random_vectors(1, x, HEADS * HEAD_DIM);
    for (int l = 0; l < 2; l++) {
        for (int r = 0; r < 3; r++) {
            int n_rot = rotated[r], halves = layouts[l] == VQKVC_ROPE_HALVES;
            vqkvc_geometry g = make_geometry(layouts[l], n_rot);
            memcpy(y, x, sizeof y);
            vqkvc_rope_rotate(&g, 37, y, HEADS);
            for (int h = 0; h < HEADS; h++) {
                const float *u = x + h * HEAD_DIM, *v = y + h * HEAD_DIM;
                for (int i = 0; i < n_rot / 2; i++) {
                    int a = halves ? i : 2 * i, b = halves ? i + n_rot / 2 : 2 * i + 1;
                    double angle = 37 * g.rope_freq[i], c = cos(angle), s = sin(angle);
                    cr_assert_float_eq(v[a], c * (double)u[a] - s * (double)u[b], 1e-6);
                    cr_assert_float_eq(v[b], s * (double)u[a] + c * (double)u[b], 1e-6);
                }
                cr_assert(memcmp(u + n_rot, v + n_rot, sizeof *u * (HEAD_DIM - n_rot)) == 0);
            }
        }
    }
}

static double dot(const float *x, const float *y)
{
    double sum = 0;
    for (int i = 0; i < HEAD_DIM; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* What RoPE is for: the score depends on the distance alone. */
Test(geometry, scores_depend_on_the_distance_alone)
{
    for (int l = 0; l < 2; l++) {
        vqkvc_geometry g = make_geometry(layouts[l], 16);
        float q[HEAD_DIM], k[HEAD_DIM], q_far[HEAD_DIM], k_far[HEAD_DIM];
        random_vectors(2, q, HEAD_DIM);
        random_vectors(3, k, HEAD_DIM);
        memcpy(q_far, q, sizeof q);
        memcpy(k_far, k, sizeof k);
        vqkvc_rope_rotate(&g, 5, q, 1);
        vqkvc_rope_rotate(&g, 2, k, 1);
        vqkvc_rope_rotate(&g, 100005, q_far, 1);
        vqkvc_rope_rotate(&g, 100002, k_far, 1);
        cr_assert_float_eq(dot(q, k), dot(q_far, k_far), 1e-5);
    }
}

Test(geometry, without_rope_nothing_moves)
{
    float x[HEADS * HEAD_DIM], y[HEADS * HEAD_DIM];
    vqkvc_geometry g = make_geometry(VQKVC_ROPE_NONE, 0);
    random_vectors(4, x, HEADS * HEAD_DIM);
    memcpy(y, x, sizeof y);
    vqkvc_rope_rotate(&g, 99, y, HEADS);
    cr_assert(memcmp(x, y, sizeof x) == 0);
}
