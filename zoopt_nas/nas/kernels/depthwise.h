/* Depthwise convolutions of one image in a buffer, and their gradients. */

#pragma once

#include "vectors.h"

typedef struct {
    int64_t kernel, stride, dilation, channels, in_row, out_row, out_height, out_width;
} Window;

/* `n` pixels of LANES channels; `weights` has an entry of the kernel every `tap` numbers. */
ALWAYS_INLINE void convolve_pixels(const int n, const Window w, const REAL *in,
                                   const REAL *weights, int64_t tap, REAL *out) {
    vec sums[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i < w.kernel; i++)
        for (int64_t j = 0; j < w.kernel; j++) {
            const vec weight = *(const vec *)(weights + (i * w.kernel + j) * tap);
            for (int q = 0; q < n; q++) {
                const int64_t column = (q * w.stride + j * w.dilation) * w.channels;
                sums[q] += *(const vec *)(in + i * w.dilation * w.in_row + column) * weight;
            }
        }
    for (int q = 0; q < n; q++) *(vec *)(out + q * w.channels) = sums[q];
}

ALWAYS_INLINE void convolve_row(const Window w, const REAL *in, const REAL *weights, int64_t tap,
                                REAL *out) {
    int64_t j = 0;
    for (; j + 4 <= w.out_width; j += 4)
        convolve_pixels(4, w, in + j * w.stride * w.channels, weights, tap, out + j * w.channels);
    for (; j < w.out_width; j++)
        convolve_pixels(1, w, in + j * w.stride * w.channels, weights, tap, out + j * w.channels);
}

/* The compiler unrolls loops with constant bounds. The window is a copy, so that no store can alias
   it. Nine weights of LANES channels stay in registers for a row. */
ALWAYS_INLINE void convolve_as(const int64_t kernel, const int64_t stride, const int64_t dilation,
                               Window w, const REAL *in, const REAL *weights, REAL *out) {
    w.kernel = kernel, w.stride = stride, w.dilation = dilation;
    for (int64_t i = 0; i < w.out_height; i++)
        for (int64_t c = 0; c < w.channels; c += LANES) {
            const REAL *from = in + i * w.stride * w.in_row + c;
            REAL *to = out + i * w.out_row + c;
            if (kernel == 3) {
                vec nine[9];
                for (int64_t t = 0; t < 9; t++)
                    nine[t] = *(const vec *)(weights + t * w.channels + c);
                convolve_row(w, from, (const REAL *)nine, LANES, to);
            } else convolve_row(w, from, weights + c, w.channels, to);
        }
}

static void convolve(const Window *w, const REAL *in, const REAL *weights, REAL *out) {
    const int64_t s = w->stride, d = w->dilation;
    if (w->kernel == 3 && s == 1 && d == 1) convolve_as(3, 1, 1, *w, in, weights, out);
    else if (w->kernel == 3 && s == 1 && d == 2) convolve_as(3, 1, 2, *w, in, weights, out);
    else if (w->kernel == 3) convolve_as(3, s, d, *w, in, weights, out);
    else if (w->kernel == 5) convolve_as(5, s, d, *w, in, weights, out);
    else convolve_as(w->kernel, s, d, *w, in, weights, out);
}

/* Adds the gradient of the input to `in`. */
static void scatter(const Window *w, REAL *in, const REAL *weights, const REAL *grad) {
    for (int64_t i = 0; i < w->out_height; i++)
        for (int64_t j = 0; j < w->out_width; j++)
            for (int64_t c = 0; c < w->channels; c += LANES) {
                vec g = *(const vec *)(grad + i * w->out_row + j * w->channels + c);
                for (int64_t k = 0; k < w->kernel; k++)
                    for (int64_t l = 0; l < w->kernel; l++) {
                        REAL *p = in + (i * w->stride + k * w->dilation) * w->in_row;
                        p += (j * w->stride + l * w->dilation) * w->channels + c;
                        *(vec *)p += g * *(const vec *)(weights + (k * w->kernel + l) * w->channels + c);
                    }
            }
}

/* Adds the gradient of `rows` rows of the kernel from `row` on to `out`. */
ALWAYS_INLINE void correlate_rows(const int64_t kernel, const int rows, int64_t row,
                                  const Window *w, const REAL *in, const REAL *grad, REAL *out) {
    const int64_t tap = w->dilation * w->channels;
    for (int64_t c = 0; c < w->channels; c += LANES) {
        vec sums[9];
        for (int t = 0; t < rows * kernel; t++) sums[t] = (vec){0};
        for (int64_t i = 0; i < w->out_height; i++) {
            const REAL *from = in + (i * w->stride + row * w->dilation) * w->in_row + c;
            const REAL *g = grad + i * w->out_row + c;
            for (int64_t j = 0; j < w->out_width; j++) {
                vec value = *(const vec *)(g + j * w->channels);
                const REAL *p = from + j * w->stride * w->channels;
                for (int k = 0; k < rows; k++)
                    for (int64_t l = 0; l < kernel; l++)
                        sums[k * kernel + l] +=
                            *(const vec *)(p + k * w->dilation * w->in_row + l * tap) * value;
            }
        }
        for (int t = 0; t < rows * kernel; t++)
            *(vec *)(out + (row * kernel + t) * w->channels + c) += sums[t];
    }
}

static void correlate(const Window *w, const REAL *in, const REAL *grad, REAL *out) {
    if (w->kernel == 3) correlate_rows(3, 3, 0, w, in, grad, out);
    else
        for (int64_t row = 0; row < w->kernel; row++)
            if (w->kernel == 5) correlate_rows(5, 1, row, w, in, grad, out);
            else correlate_rows(w->kernel, 1, row, w, in, grad, out);
}
