/* Depthwise convolutions of one image, in buffers, and their gradients. */

#pragma once

#include "vectors.h"

typedef struct {
    int64_t kernel, stride, dilation, channels, in_row, out_row, out_height, out_width;
} Window;

/* `n` pixels of all channels. Each vector of the input is read once for all pixels and entries of
   the kernel that it meets, where the compiler knows the kernel, the stride and the dilation. */
ALWAYS_INLINE void convolve_pixels(const int n, const Window w, const vec *weights,
                                   const REAL *in, REAL *out) {
    vec sums[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i < w.kernel; i++)
        for (int64_t j = 0; j < w.kernel; j++)
            for (int q = 0; q < n; q++)
                sums[q] += *(const vec *)(in + i * w.dilation * w.in_row +
                                          (q * w.stride + j * w.dilation) * w.channels) *
                           weights[i * w.kernel + j];
    for (int q = 0; q < n; q++) *(vec *)(out + q * w.channels) = sums[q];
}

ALWAYS_INLINE void convolve_as(const Window w, const REAL *in, const REAL *weights, REAL *out) {
    for (int64_t i = 0; i < w.out_height; i++)
        for (int64_t c = 0; c < w.channels; c += LANES) {
            vec own[w.kernel*w.kernel];
            for (int64_t t = 0; t < w.kernel * w.kernel; t++)
                own[t] = *(const vec *)(weights + t * w.channels + c);
            const REAL *from = in + i * w.stride * w.in_row + c;
            REAL *to = out + i * w.out_row + c;
            int64_t j = 0;
            for (; j + 4 <= w.out_width; j += 4)
                convolve_pixels(4, w, own, from + j * w.stride * w.channels, to + j * w.channels);
            for (; j < w.out_width; j++)
                convolve_pixels(1, w, own, from + j * w.stride * w.channels, to + j * w.channels);
        }
}

/* Calls `function` with a window of which the compiler knows the usual numbers. */
#define WITH_CONSTANTS(function, w, ...)                                                          \
    do {                                                                                          \
        Window known = *(w);                                                                      \
        if (known.kernel == 3 && known.stride == 1 && known.dilation == 1) {                      \
            known.kernel = 3, known.stride = known.dilation = 1;                                  \
            function(known, __VA_ARGS__);                                                         \
        } else if (known.kernel == 3 && known.dilation == 1) {                                    \
            known.kernel = 3, known.dilation = 1;                                                 \
            function(known, __VA_ARGS__);                                                         \
        } else if (known.kernel == 3) {                                                           \
            known.kernel = 3;                                                                     \
            function(known, __VA_ARGS__);                                                         \
        } else if (known.kernel == 5) {                                                           \
            known.kernel = 5;                                                                     \
            function(known, __VA_ARGS__);                                                         \
        } else {                                                                                  \
            function(known, __VA_ARGS__);                                                         \
        }                                                                                         \
    } while (0)

static void convolve(const Window *w, const REAL *in, const REAL *weights, REAL *out) {
    WITH_CONSTANTS(convolve_as, w, in, weights, out);
}

/* The gradient in the input, added to it: what `convolve` reads is written. */
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

/* The gradient in `rows` rows of the kernel from `row` on, added to what is there. */
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
