/* Vectors of LANES numbers, buffers, and products of small matrices. */

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((vec){0} < (vec){0}) mask;

static int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

/* A buffer of the calling thread, kept for its next call. */
static REAL *buffer(int64_t n) {
    static _Thread_local REAL *kept = NULL;
    static _Thread_local int64_t size = 0;
    if (n > size) {
        free(kept);
        kept = aligned_alloc(64, ((size_t)n * sizeof(REAL) + 63) / 64 * 64);
        size = kept ? n : 0;
    }
    return kept;
}

/* The first n numbers of a vector. Four by their places: the compiler makes it one move, while a
   copy goes through memory and waits for it. */
ALWAYS_INLINE vec load(const REAL *p, int64_t n) {
    if (n >= LANES) return *(const vec *)p;
    if (n == 4) return (vec){p[0], p[1], p[2], p[3]};
    vec v = {0};
    memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
}

ALWAYS_INLINE void store(REAL *p, vec v, int64_t n) {
    if (n >= LANES) *(vec *)p = v;
    else if (n == 4)
        for (int64_t k = 0; k < 4; k++) p[k] = v[k];
    else memcpy(p, &v, (size_t)n * sizeof(REAL));
}

/* As in PyTorch, NaN stays NaN, and its gradient passes. */
ALWAYS_INLINE vec relu(vec v) { return (vec)((mask)v & ~(v < 0)); }
ALWAYS_INLINE vec where_positive(vec of, vec v) { return (vec)((mask)v & ~(of <= 0)); }

/* Rows of a product to compute at once: the registers hold two vectors of each, and the factors. */
#ifdef __AVX512VL__
#define ROWS 8
#else
#define ROWS 6
#endif

/* --- Products of matrices: C (+)= A B, with A[m, k] at A[m * am + k * ak] ---------------------- */

ALWAYS_INLINE void tile(const int rows, const int columns, const REAL *A, int64_t am, int64_t ak,
                        const REAL *B, int64_t b_row, REAL *C, int64_t c_row, int64_t n_k,
                        int accumulate) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            sums[r][c] = accumulate ? *(vec *)(C + r * c_row + c * LANES) : (vec){0};
    for (int64_t k = 0; k < n_k; k++) {
        vec b[2];
        for (int c = 0; c < columns; c++) b[c] = *(const vec *)(B + k * b_row + c * LANES);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) sums[r][c] += A[r * am + k * ak] * b[c];
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) *(vec *)(C + r * c_row + c * LANES) = sums[r][c];
}

ALWAYS_INLINE void tiles(const int rows, const REAL *A, int64_t am, int64_t ak, const REAL *B,
                         int64_t b_row, REAL *C, int64_t c_row, int64_t n_k, int accumulate,
                         int is_wide) {
    if (is_wide) tile(rows, 2, A, am, ak, B, b_row, C, c_row, n_k, accumulate);
    else tile(rows, 1, A, am, ak, B, b_row, C, c_row, n_k, accumulate);
}

/* ROWS rows of two vectors at a time, and four at the end: fewer rows would stall on their sums. */
static void multiply(const REAL *A, int64_t am, int64_t ak, const REAL *B, int64_t b_row, REAL *C,
                     int64_t c_row, int64_t n_m, int64_t n_n, int64_t n_k, int accumulate) {
    for (int64_t n = 0; n < n_n; n += 2 * LANES) {
        const int is_wide = n + 2 * LANES <= n_n;
        for (int64_t m = 0, rows; m < n_m; m += rows) {
            const int64_t left = n_m - m;
            const REAL *a = A + m * am, *b = B + n;
            REAL *c = C + m * c_row + n;
            rows = left >= ROWS && left != ROWS + 2 ? ROWS : left >= 4 ? 4 : 1;
            if (rows == ROWS) tiles(ROWS, a, am, ak, b, b_row, c, c_row, n_k, accumulate, is_wide);
            else if (rows == 4) tiles(4, a, am, ak, b, b_row, c, c_row, n_k, accumulate, is_wide);
            else tiles(1, a, am, ak, b, b_row, c, c_row, n_k, accumulate, is_wide);
        }
    }
}
