/* A depthwise separable convolution with ReLU and BatchNorm, for a CPU.

   PyTorch's operators each read and write the whole batch. These kernels run all operations on one
   image at a time, most of them on one band of rows at a time, in buffers that stay in the cache of
   a core. ``library.py`` compiles them for float and for double (REAL).

   For an input x, a node of a cell or the y of the previous stage, a stage computes

       a = relu(N_x(x))             N_x: BatchNorm of the previous stage; none in the first stage
       d = depthwise convolution of a
       y = d P                      1x1 convolution
       N_y: (y - mean) * multiplier + shift, applied by the next stage or `add_normalized`.

   Arrays are contiguous (batch, height, width, channels). Buffers pad the channels to a multiple of
   LANES, and images by the padding of the convolution, with zeros. Sums over a batch add N_CHUNKS
   parts in a fixed order, so they do not depend on the number of threads. */

#pragma once

#include "depthwise.h"
#include "vectors.h"

#define N_CHUNKS 16
#define BAND 128 /* least number of pixels in a band of rows */

/* Rows of a BatchNorm's (4, channels). */
enum { MEAN, INVERSE_STD, MULTIPLIER, SHIFT, N_ROWS };

typedef struct {
    int64_t batch, channels, out_channels, height, width, out_height, out_width;
    int64_t kernel, stride, dilation;
    const REAL *x;            /* (batch, height, width, channels) */
    const REAL *x_norm;       /* N_x: (4, channels), NULL = none */
    const REAL *depthwise;    /* (channels, kernel, kernel); NULL = none, then d = a */
    const REAL *pointwise;    /* (out_channels, channels) */
    REAL *y;                  /* (batch, out_height, out_width, out_channels) */
    REAL *norm;               /* N_y: (4, out_channels) */
    /* Only for the forward pass, to make N_y: */
    int64_t takes_batch;      /* whether to use the statistics of the batch */
    double momentum, eps;
    REAL *running_mean, *running_variance; /* (out_channels), NULL = none */
    const REAL *scale, *shift; /* (out_channels), NULL = 1 and 0 */
    int64_t scale_step;       /* 0: scale is a single number */
    /* Only for the backward pass: */
    const REAL *grad;         /* gradient of N_y(y) */
    const REAL *grad_sums;    /* (2, out_channels): of grad, of grad * (y - mean); NULL = N_y fixed */
    REAL *x_grad;             /* gradient of N_x(x), or of x without N_x; NULL = not needed */
    REAL *x_sums;             /* (2, channels): of x_grad, of x_grad * (x - mean); NULL = not needed */
    const REAL *skip;         /* (): skip * skip_grad is added to x_grad; NULL = 0 */
    const REAL *skip_grad;    /* as x */
    REAL *depthwise_grad;     /* as the weights */
    REAL *pointwise_grad;
} Stage;

typedef struct {
    int64_t channels, out_channels; /* padded */
    int64_t padding, in_row, in_size; /* numbers in a row and in an image, padded */
    int64_t grad_padding, grad_row, grad_size; /* for the gradient of d */
    int64_t n_in, n_out;            /* pixels */
    int64_t band, n_band;           /* of the output: rows, and their pixels */
    int64_t kernel_size;            /* entries */
} Layout;

static Layout layout_of(const Stage *s) {
    Layout l = {.channels = padded(s->channels), .out_channels = padded(s->out_channels)};
    l.padding = s->dilation * (s->kernel / 2);
    l.in_row = (s->width + 2 * l.padding) * l.channels;
    l.in_size = (s->height + 2 * l.padding) * l.in_row;
    l.grad_padding = s->stride == 1 ? l.padding : 0;
    l.grad_row = (s->out_width + 2 * l.grad_padding) * l.channels;
    l.grad_size = (s->out_height + 2 * l.grad_padding) * l.grad_row;
    l.n_in = s->height * s->width;
    l.n_out = s->out_height * s->out_width;
    l.band = (BAND + s->out_width - 1) / s->out_width;
    l.n_band = l.band * s->out_width;
    l.kernel_size = s->kernel * s->kernel;
    return l;
}

/* (channels, kernel, kernel) to (kernel, kernel, padded channels), as it is and rotated. */
static void pack_depthwise(const Stage *s, const Layout *l, REAL *weights, REAL *turned) {
    if (!s->depthwise) return;
    memset(weights, 0, (size_t)(l->kernel_size * l->channels) * sizeof(REAL));
    for (int64_t t = 0; t < l->kernel_size; t++)
        for (int64_t c = 0; c < s->channels; c++)
            weights[t * l->channels + c] = s->depthwise[c * l->kernel_size + t];
    if (!turned) return;
    for (int64_t t = 0; t < l->kernel_size; t++)
        memcpy(turned + (l->kernel_size - 1 - t) * l->channels, weights + t * l->channels,
               (size_t)l->channels * sizeof(REAL));
}

/* relu(N_x(x)) of an image into its buffer. The compiler specializes it for the constants
   `has_norm` and `is_whole`, whether all vectors are full. */
ALWAYS_INLINE void activate_as(const int has_norm, const int is_whole, const Stage *s,
                               const Layout *l, const REAL *restrict x, REAL *restrict a) {
    const REAL *norm = s->x_norm;
    const int64_t n = s->channels;
    for (int64_t i = 0; i < s->height; i++) {
        REAL *to = a + (i + l->padding) * l->in_row + l->padding * l->channels;
        for (int64_t j = 0; j < s->width; j++, x += n, to += l->channels)
            for (int64_t c = 0; c < n; c += LANES) {
                const int64_t left = is_whole ? LANES : n - c;
                vec v = load(x + c, left);
                if (has_norm)
                    v = (v - load(norm + MEAN * n + c, left)) *
                            load(norm + MULTIPLIER * n + c, left) +
                        load(norm + SHIFT * n + c, left);
                *(vec *)(to + c) = relu(v);
            }
    }
}

static void activate(const Stage *s, const Layout *l, const REAL *x, REAL *a) {
    const int is_whole = s->channels == l->channels;
    if (s->x_norm && is_whole) activate_as(1, 1, s, l, x, a);
    else if (s->x_norm) activate_as(1, 0, s, l, x, a);
    else if (is_whole) activate_as(0, 1, s, l, x, a);
    else activate_as(0, 0, s, l, x, a);
}

/* The window of the band of output rows from `row` on. */
static Window forward_window(const Stage *s, const Layout *l, int64_t row) {
    const int64_t left = s->out_height - row;
    return (Window){s->kernel, s->stride, s->dilation, l->channels, l->in_row,
                    s->out_width * l->channels, left < l->band ? left : l->band, s->out_width};
}

static int64_t first_of(int64_t chunk, int64_t batch) { return chunk * batch / N_CHUNKS; }
