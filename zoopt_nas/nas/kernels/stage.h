/* A depthwise separable convolution with the ReLU in front and the BatchNorm around it, for a CPU.

   PyTorch runs ReLU, depthwise convolution, 1x1 convolution and BatchNorm one after the other over
   the whole batch, and each reads and writes all of it. Here all of them go over one image before
   the next, and most of them over a band of its rows before the next, in buffers that stay in a
   core's caches; what lies between the convolutions is never stored. Compiled once for float and
   once for double (REAL) by ``library.py``.

   A stage computes, for an input x that is a node of a cell, or the y of the stage before it,

       a = relu(N_x(x))             N_x: the BatchNorm between two stages; none in front of the first
       d = depthwise convolution of a
       y = d P                      1x1 convolution
       N_y: (y - mean) * multiplier + shift, which the next stage or `add_normalized` applies.

   Arrays are (batch, height, width, channels), contiguous. In buffers a pixel has its channels
   padded to a multiple of LANES by zeros, and images have the convolution's zeros around them.
   Sums over a batch are sums over N_CHUNKS parts of it in a fixed order, so that they do not depend
   on the number of threads.

   Here are a stage's arguments, its buffers, and the part of it that both passes begin with. */

#pragma once

#include "depthwise.h"
#include "vectors.h"

#define N_CHUNKS 16
#define BAND 128 /* pixels, or more, that go through a stage before the next ones */

/* Rows of a BatchNorm's (4, channels). */
enum { MEAN, INVERSE_STD, MULTIPLIER, SHIFT, N_ROWS };

typedef struct {
    int64_t batch, channels, out_channels, height, width, out_height, out_width;
    int64_t kernel, stride, dilation;
    const REAL *x;            /* (batch, height, width, channels) */
    const REAL *x_norm;       /* N_x: (4, channels), NULL = none */
    const REAL *depthwise;    /* (channels, kernel, kernel); NULL = none, and d is a */
    const REAL *pointwise;    /* (out_channels, channels) */
    REAL *y;                  /* (batch, out_height, out_width, out_channels) */
    REAL *norm;               /* N_y: (4, out_channels) */
    /* Only for the forward pass, how N_y is made: */
    int64_t takes_batch;      /* statistics of the batch, or the running ones */
    double momentum, eps;
    REAL *running_mean, *running_variance; /* (out_channels), NULL = none */
    const REAL *scale, *shift; /* (out_channels), NULL = 1 and 0 */
    int64_t scale_step;       /* 0: scale is a single number */
    /* Only for the backward pass: */
    const REAL *grad;         /* in N_y(y) */
    const REAL *grad_sums;    /* (2, out_channels): of grad, of grad * (y - mean); NULL = N_y fixed */
    REAL *x_grad;             /* in N_x(x), or in x without N_x; NULL = not needed */
    REAL *x_sums;             /* (2, channels): of x_grad, of x_grad * (x - mean); NULL = not needed */
    const REAL *skip;         /* (): skip * skip_grad is added to x_grad; NULL = 0 */
    const REAL *skip_grad;    /* as x */
    REAL *depthwise_grad;     /* as the weights */
    REAL *pointwise_grad;
} Stage;

typedef struct {
    int64_t channels, out_channels; /* padded */
    int64_t padding, in_row, in_size; /* numbers in a row and in an image with its zeros */
    int64_t grad_padding, grad_row, grad_size; /* of the gradient in d */
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

/* (channels, kernel, kernel) to (kernel, kernel, padded channels), as it is or turned round. */
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

/* relu(N_x(x)) of an image into its buffer. What is constant where it is called, is not asked for
   each vector: whether there is a norm, and whether all vectors are whole. */
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

/* From row `row` of the output on, for a band of rows. */
static Window forward_window(const Stage *s, const Layout *l, int64_t row) {
    const int64_t left = s->out_height - row;
    return (Window){s->kernel, s->stride, s->dilation, l->channels, l->in_row,
                    s->out_width * l->channels, left < l->band ? left : l->band, s->out_width};
}

static int64_t first_of(int64_t chunk, int64_t batch) { return chunk * batch / N_CHUNKS; }
