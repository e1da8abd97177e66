/* A depthwise separable convolution with the ReLU in front and the BatchNorm around it, for a CPU.

   PyTorch runs ReLU, depthwise convolution, 1x1 convolution and BatchNorm one after the other over
   the whole batch, and each reads and writes all of it. Here all of them go over one image before
   the next, in buffers that stay in a core's cache; what lies between the convolutions is never
   stored. Compiled once for float and once for double (REAL) by ``compiler.py``.

   A stage computes, for an input x that is a node of a cell, or the y of the stage before it,

       a = relu(N_x(x))             N_x: the BatchNorm between two stages; none in front of the first
       d = depthwise convolution of a
       y = d P                      1x1 convolution
       N_y: (y - mean) * multiplier + shift, which the next stage or `add_normalized` applies.

   Arrays are (batch, height, width, channels), contiguous. In buffers a pixel has its channels
   padded to a multiple of LANES by zeros, and images have the convolution's zeros around them.
   Sums over a batch are sums over N_CHUNKS parts of it in a fixed order, so that they do not depend
   on the number of threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define N_CHUNKS 16
#define BLOCK 64 /* pixels whose products are summed up before the next ones are read */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((vec){0} < (vec){0}) mask;

/* Rows of a BatchNorm's (4, channels). */
enum { MEAN, INVERSE_STD, MULTIPLIER, SHIFT, N_ROWS };

typedef struct {
    int64_t batch, channels, out_channels, height, width, out_height, out_width;
    int64_t kernel, stride, dilation;
    const REAL *x;            /* (batch, height, width, channels) */
    const REAL *x_norm;       /* N_x: (4, channels), NULL = none */
    const REAL *depthwise;    /* (channels, kernel, kernel) */
    const REAL *pointwise;    /* (out_channels, channels) */
    REAL *y;                  /* (batch, out_height, out_width, out_channels) */
    REAL *norm;               /* N_y: (4, out_channels) */
    /* Only for the backward pass: */
    const REAL *grad;         /* in N_y(y) */
    const REAL *grad_sums;    /* (2, out_channels): of grad, of grad * (y - mean); NULL = N_y fixed */
    REAL *x_grad;             /* in N_x(x), or in x without N_x; NULL = not needed */
    REAL *x_sums;             /* (2, channels): of x_grad, of x_grad * (x - mean); NULL = not needed */
    REAL *depthwise_grad;     /* as the weights */
    REAL *pointwise_grad;
} Stage;

typedef struct {
    int64_t channels, out_channels; /* padded */
    int64_t padding, in_row, in_size; /* numbers in a row and in an image with its zeros */
    int64_t grad_padding, grad_row, grad_size; /* of the gradient in d */
    int64_t n_in, n_out;            /* pixels */
    int64_t kernel_size;            /* entries */
} Layout;

static int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

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
    l.kernel_size = s->kernel * s->kernel;
    return l;
}

/* A buffer of the calling thread, which keeps it for its next call. */
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

ALWAYS_INLINE vec load(const REAL *p, int64_t n) {
    if (n >= LANES) return *(const vec *)p;
    vec v = {0};
    memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
}

ALWAYS_INLINE void store(REAL *p, vec v, int64_t n) {
    if (n >= LANES) *(vec *)p = v;
    else memcpy(p, &v, (size_t)n * sizeof(REAL));
}

/* NaN stays NaN, and its gradient passes, as in PyTorch. */
ALWAYS_INLINE vec relu(vec v) { return (vec)((mask)v & ~(v < 0)); }
ALWAYS_INLINE vec where_positive(vec of, vec v) { return (vec)((mask)v & ~(of <= 0)); }

/* --- Products of matrices: C (+)= A B, with A[m, k] at A[m * am + k * ak] ---------------------- */

ALWAYS_INLINE void tile(const int rows, const int columns, const REAL *A, int64_t am, int64_t ak,
                        const REAL *B, int64_t b_row, REAL *C, int64_t c_row, int64_t n_k,
                        int accumulate) {
    vec sums[4][2];
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

static void multiply(const REAL *A, int64_t am, int64_t ak, const REAL *B, int64_t b_row, REAL *C,
                     int64_t c_row, int64_t n_m, int64_t n_n, int64_t n_k, int accumulate) {
    for (int64_t n = 0; n < n_n; n += 2 * LANES) {
        int is_wide = n + 2 * LANES <= n_n;
        for (int64_t m = 0; m < n_m;) {
            const REAL *a = A + m * am, *b = B + n;
            REAL *c = C + m * c_row + n;
            if (m + 4 <= n_m) {
                if (is_wide) tile(4, 2, a, am, ak, b, b_row, c, c_row, n_k, accumulate);
                else tile(4, 1, a, am, ak, b, b_row, c, c_row, n_k, accumulate);
                m += 4;
            } else {
                if (is_wide) tile(1, 2, a, am, ak, b, b_row, c, c_row, n_k, accumulate);
                else tile(1, 1, a, am, ak, b, b_row, c, c_row, n_k, accumulate);
                m += 1;
            }
        }
    }
}

/* --- Depthwise convolutions of one image that has its zeros around it -------------------------- */

typedef struct {
    int64_t kernel, stride, dilation, channels, in_row, out_row, out_height, out_width;
} Window;

ALWAYS_INLINE void convolve_pixels(const int n, const int64_t kernel, const Window *w,
                                   const REAL *in, const REAL *weights, REAL *out) {
    const int64_t step = w->stride * w->channels, tap = w->dilation * w->channels;
    for (int64_t c = 0; c < w->channels; c += LANES) {
        vec sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t i = 0; i < kernel; i++)
            for (int64_t j = 0; j < kernel; j++) {
                const REAL *p = in + i * w->dilation * w->in_row + j * tap + c;
                vec weight = *(const vec *)(weights + (i * kernel + j) * w->channels + c);
                for (int q = 0; q < n; q++) sums[q] += *(const vec *)(p + q * step) * weight;
            }
        for (int q = 0; q < n; q++) *(vec *)(out + q * w->channels + c) = sums[q];
    }
}

ALWAYS_INLINE void convolve_kernel(const int64_t kernel, const Window *w, const REAL *in,
                                   const REAL *weights, REAL *out) {
    for (int64_t i = 0; i < w->out_height; i++)
        for (int64_t j = 0; j < w->out_width;) {
            const REAL *from = in + i * w->stride * w->in_row + j * w->stride * w->channels;
            REAL *to = out + i * w->out_row + j * w->channels;
            int is_wide = j + 4 <= w->out_width;
            if (is_wide) convolve_pixels(4, kernel, w, from, weights, to);
            else convolve_pixels(1, kernel, w, from, weights, to);
            j += is_wide ? 4 : 1;
        }
}

/* Kernel sizes that are constants of the compiler are unrolled. */
static void convolve(const Window *w, const REAL *in, const REAL *weights, REAL *out) {
    if (w->kernel == 3) convolve_kernel(3, w, in, weights, out);
    else if (w->kernel == 5) convolve_kernel(5, w, in, weights, out);
    else convolve_kernel(w->kernel, w, in, weights, out);
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

/* --- What both passes share --------------------------------------------------------------------- */

/* (channels, kernel, kernel) to (kernel, kernel, padded channels), as it is or turned round. */
static void pack_depthwise(const Stage *s, const Layout *l, REAL *weights, REAL *turned) {
    memset(weights, 0, (size_t)(l->kernel_size * l->channels) * sizeof(REAL));
    for (int64_t t = 0; t < l->kernel_size; t++)
        for (int64_t c = 0; c < s->channels; c++)
            weights[t * l->channels + c] = s->depthwise[c * l->kernel_size + t];
    if (!turned) return;
    for (int64_t t = 0; t < l->kernel_size; t++)
        memcpy(turned + (l->kernel_size - 1 - t) * l->channels, weights + t * l->channels,
               (size_t)l->channels * sizeof(REAL));
}

/* relu(N_x(x)) of an image into its buffer. */
static void activate(const Stage *s, const Layout *l, const REAL *x, REAL *a) {
    const REAL *norm = s->x_norm;
    const int64_t n = s->channels;
    for (int64_t i = 0; i < s->height; i++) {
        REAL *to = a + (i + l->padding) * l->in_row + l->padding * l->channels;
        for (int64_t j = 0; j < s->width; j++, x += n, to += l->channels)
            for (int64_t c = 0; c < n; c += LANES) {
                vec v = load(x + c, n - c);
                if (norm)
                    v = (v - load(norm + MEAN * n + c, n - c)) *
                            load(norm + MULTIPLIER * n + c, n - c) +
                        load(norm + SHIFT * n + c, n - c);
                *(vec *)(to + c) = relu(v);
            }
    }
}

static Window forward_window(const Stage *s, const Layout *l) {
    return (Window){s->kernel, s->stride, s->dilation, l->channels, l->in_row,
                    s->out_width * l->channels, s->out_height, s->out_width};
}

static int64_t first_of(int64_t chunk, int64_t batch) { return chunk * batch / N_CHUNKS; }

/* --- Forward ------------------------------------------------------------------------------------ */

/* Mean and sum of squared deviations of an image's channels, joined to those of `count` pixels. */
static void add_statistics(const REAL *y, int64_t row, int64_t channels, int64_t n_pixels,
                           double count, double *mean, double *squares) {
    for (int64_t c = 0; c < channels; c += LANES) {
        vec sum = {0}, own = {0};
        for (int64_t p = 0; p < n_pixels; p++) sum += *(const vec *)(y + p * row + c);
        vec centre = sum / (REAL)n_pixels;
        for (int64_t p = 0; p < n_pixels; p++) {
            vec v = *(const vec *)(y + p * row + c) - centre;
            own += v * v;
        }
        for (int64_t k = 0; k < LANES; k++) {
            double difference = centre[k] - mean[c + k], total = count + n_pixels;
            squares[c + k] += own[k] + difference * difference * count * n_pixels / total;
            mean[c + k] += difference * n_pixels / total;
        }
    }
}

/* y, and if ``statistics`` is not NULL the mean and the variance (biased) of its channels there,
   (2, out_channels). Returns 0, or 1 without memory. */
int separable_forward(const Stage *s, REAL *statistics) {
    const Layout l = layout_of(s);
    const int64_t size = l.in_size + l.n_out * (l.channels + l.out_channels);
    const int64_t n_weights = (l.kernel_size + l.out_channels) * l.channels;
    REAL *weights = calloc((size_t)n_weights, sizeof(REAL));
    double *sums = calloc((size_t)(N_CHUNKS * 2 * l.out_channels), sizeof(double));
    int failed = !weights || !sums;
    if (!failed) {
        REAL *pointwise = weights + l.kernel_size * l.channels; /* (channels, out_channels) */
        pack_depthwise(s, &l, weights, NULL);
        for (int64_t n = 0; n < s->out_channels; n++)
            for (int64_t c = 0; c < s->channels; c++)
                pointwise[c * l.out_channels + n] = s->pointwise[n * s->channels + c];
        const Window window = forward_window(s, &l);
        const int is_padded = l.out_channels != s->out_channels;
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
            REAL *a = buffer(size);
            if (!a) { failed = 1; continue; }
            REAL *d = a + l.in_size, *own = d + l.n_out * l.channels;
            double *mean = sums + chunk * 2 * l.out_channels, *squares = mean + l.out_channels;
            memset(a, 0, (size_t)l.in_size * sizeof(REAL));
            const int64_t first = first_of(chunk, s->batch);
            for (int64_t b = first; b < first_of(chunk + 1, s->batch); b++) {
                REAL *to = s->y + b * l.n_out * s->out_channels;
                REAL *y = is_padded ? own : to;
                activate(s, &l, s->x + b * l.n_in * s->channels, a);
                convolve(&window, a, weights, d);
                multiply(d, l.channels, 1, pointwise, l.out_channels, y, l.out_channels, l.n_out,
                         l.out_channels, l.channels, 0);
                if (is_padded)
                    for (int64_t p = 0; p < l.n_out; p++)
                        memcpy(to + p * s->out_channels, y + p * l.out_channels,
                               (size_t)s->out_channels * sizeof(REAL));
                if (statistics)
                    add_statistics(y, l.out_channels, l.out_channels, l.n_out,
                                   (double)((b - first) * l.n_out), mean, squares);
            }
        }
    }
    if (!failed && statistics)
        for (int64_t c = 0; c < s->out_channels; c++) {
            double count = 0, mean = 0, squares = 0;
            for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
                const double *own = sums + chunk * 2 * l.out_channels + c;
                int64_t n_images = first_of(chunk + 1, s->batch) - first_of(chunk, s->batch);
                double n = (double)(n_images * l.n_out), difference = own[0] - mean;
                if (n_images == 0) continue;
                squares += own[l.out_channels] + difference * difference * count * n / (count + n);
                mean += difference * n / (count + n);
                count += n;
            }
            statistics[c] = (REAL)mean;
            statistics[s->out_channels + c] = (REAL)(squares / count);
        }
    free(weights);
    free(sums);
    return failed;
}

/* out = base + (y - mean) * multiplier + shift, for (n_pixels, channels); base may be NULL. */
void add_normalized(int64_t n_pixels, int64_t channels, const REAL *y, const REAL *norm,
                    const REAL *base, REAL *out) {
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++)
        for (int64_t p = first_of(chunk, n_pixels); p < first_of(chunk + 1, n_pixels); p++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t n = channels - c, at = p * channels + c;
                vec v = (load(y + at, n) - load(norm + MEAN * channels + c, n)) *
                            load(norm + MULTIPLIER * channels + c, n) +
                        load(norm + SHIFT * channels + c, n);
                if (base) v += load(base + at, n);
                store(out + at, v, n);
            }
}

/* --- Backward ----------------------------------------------------------------------------------- */

/* Sums over pixels of grad and of grad * (y - mean): (2, channels). Returns 0, or 1 without
   memory. */
int gradient_sums(int64_t n_pixels, int64_t channels, const REAL *grad, const REAL *y,
                  const REAL *mean, REAL *sums) {
    const int64_t wide = padded(channels);
    double *parts = calloc((size_t)(N_CHUNKS * 2 * wide), sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
        double *own = parts + chunk * 2 * wide;
        const int64_t last = first_of(chunk + 1, n_pixels);
        for (int64_t first = first_of(chunk, n_pixels); first < last; first += BLOCK)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t n = channels - c, end = first + BLOCK < last ? first + BLOCK : last;
                const vec centre = load(mean + c, n);
                vec sum = {0}, products = {0};
                for (int64_t p = first; p < end; p++) {
                    vec g = load(grad + p * channels + c, n);
                    sum += g;
                    products += g * (load(y + p * channels + c, n) - centre);
                }
                for (int64_t k = 0; k < LANES; k++) {
                    own[c + k] += sum[k];
                    own[wide + c + k] += products[k];
                }
            }
    }
    for (int64_t row = 0; row < 2; row++)
        for (int64_t c = 0; c < channels; c++) {
            double total = 0;
            for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++)
                total += parts[(chunk * 2 + row) * wide + c];
            sums[row * channels + c] = (REAL)total;
        }
    free(parts);
    return 0;
}

/* The gradient in y is a * grad + b * (y - mean) + c; rows of (4, padded channels), a mean last. */
enum { OF_GRAD, OF_Y, CONSTANT, Y_MEAN };

static void gradient_coefficients(const Stage *s, const Layout *l, REAL *rows) {
    const double count = (double)(s->batch * l->n_out);
    const int64_t n = s->out_channels, wide = l->out_channels;
    memset(rows, 0, (size_t)(4 * wide) * sizeof(REAL));
    for (int64_t c = 0; c < n; c++) {
        const double scale = s->norm[MULTIPLIER * n + c], inverse = s->norm[INVERSE_STD * n + c];
        rows[OF_GRAD * wide + c] = (REAL)scale;
        rows[Y_MEAN * wide + c] = s->norm[MEAN * n + c];
        if (!s->grad_sums) continue;
        rows[OF_Y * wide + c] = (REAL)(-scale * inverse * inverse * s->grad_sums[n + c] / count);
        rows[CONSTANT * wide + c] = (REAL)(-scale * s->grad_sums[c] / count);
    }
}

static void gradient_in_y(const Stage *s, const Layout *l, int64_t image, const REAL *rows,
                          REAL *out) {
    const int64_t n = s->out_channels, wide = l->out_channels;
    const REAL *grad = s->grad + image * l->n_out * n, *y = s->y + image * l->n_out * n;
    for (int64_t p = 0; p < l->n_out; p++)
        for (int64_t c = 0; c < n; c += LANES) {
            vec v = load(y + p * n + c, n - c) - *(const vec *)(rows + Y_MEAN * wide + c);
            *(vec *)(out + p * wide + c) =
                *(const vec *)(rows + OF_GRAD * wide + c) * load(grad + p * n + c, n - c) +
                *(const vec *)(rows + OF_Y * wide + c) * v +
                *(const vec *)(rows + CONSTANT * wide + c);
        }
}

/* The gradient in x from that in a, through the ReLU; adds to its sums. */
static void gradient_in_x(const Stage *s, const Layout *l, int64_t image, const REAL *a,
                          const REAL *a_grad, int64_t grad_row, double *sums) {
    const int64_t n = s->channels;
    const REAL *x = s->x + image * l->n_in * n;
    REAL *to = s->x_grad + image * l->n_in * n;
    for (int64_t c = 0; c < n; c += LANES) {
        const int64_t left = n - c;
        const vec centre = s->x_norm ? load(s->x_norm + MEAN * n + c, left) : (vec){0};
        vec sum = {0}, products = {0};
        for (int64_t i = 0; i < s->height; i++) {
            const REAL *own = a + (i + l->padding) * l->in_row + l->padding * l->channels + c;
            for (int64_t j = 0; j < s->width; j++) {
                const int64_t at = (i * s->width + j) * n + c;
                vec g = *(const vec *)(a_grad + i * grad_row + j * l->channels + c);
                g = where_positive(*(const vec *)(own + j * l->channels), g);
                store(to + at, g, left);
                if (!sums) continue;
                sum += g;
                products += g * (load(x + at, left) - centre);
            }
        }
        if (sums)
            for (int64_t k = 0; k < LANES; k++) {
                sums[c + k] += sum[k];
                sums[l->channels + c + k] += products[k];
            }
    }
}

/* Buffers of a thread, and the sums of a chunk. */
typedef struct {
    REAL *a, *d, *y_grad, *d_grad, *a_grad;
    REAL *depthwise, *pointwise; /* gradients: (kernel, kernel, channels), (channels, out_channels) */
    double *x_sums;
} Work;

typedef struct {
    REAL *depthwise, *turned, *pointwise, *rows;
} Packed;

static void image_backward(const Stage *s, const Layout *l, const Packed *packed, const Work *w,
                           int64_t image) {
    const Window window = forward_window(s, l);
    activate(s, l, s->x + image * l->n_in * s->channels, w->a);
    convolve(&window, w->a, packed->depthwise, w->d);
    gradient_in_y(s, l, image, packed->rows, w->y_grad);
    if (s->pointwise_grad)
        for (int64_t p = 0; p < l->n_out; p += BLOCK)
            multiply(w->d + p * l->channels, 1, l->channels, w->y_grad + p * l->out_channels,
                     l->out_channels, w->pointwise, l->out_channels, l->channels, l->out_channels,
                     p + BLOCK < l->n_out ? BLOCK : l->n_out - p, 1);
    if (!s->x_grad && !s->depthwise_grad) return;
    const int64_t corner = l->grad_padding * (l->grad_row + l->channels);
    for (int64_t i = 0; i < s->out_height; i++)
        multiply(w->y_grad + i * s->out_width * l->out_channels, l->out_channels, 1,
                 packed->pointwise, l->channels, w->d_grad + corner + i * l->grad_row, l->channels,
                 s->out_width, l->channels, l->out_channels, 0);
    Window back = window;
    back.out_row = l->grad_row;
    if (s->depthwise_grad) correlate(&back, w->a, w->d_grad + corner, w->depthwise);
    if (!s->x_grad) return;
    if (s->stride == 1) { /* a convolution with the kernel turned round */
        Window turned = {s->kernel, 1, s->dilation, l->channels, l->grad_row,
                         s->width * l->channels, s->height, s->width};
        convolve(&turned, w->d_grad, packed->turned, w->a_grad);
        gradient_in_x(s, l, image, w->a, w->a_grad, turned.out_row, w->x_sums);
    } else {
        memset(w->a_grad, 0, (size_t)l->in_size * sizeof(REAL));
        scatter(&back, w->a_grad, packed->depthwise, w->d_grad);
        gradient_in_x(s, l, image, w->a, w->a_grad + l->padding * (l->in_row + l->channels),
                      l->in_row, w->x_sums);
    }
}

/* Adds up what the chunks have. */
static void reduce(const Stage *s, const Layout *l, const REAL *parts, int64_t size,
                   const double *x_sums) {
    const REAL *pointwise = parts + l->kernel_size * l->channels;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < s->channels; c++) {
        for (int64_t t = 0; s->depthwise_grad && t < l->kernel_size; t++) {
            double total = 0;
            for (int64_t k = 0; k < N_CHUNKS; k++) total += parts[k * size + t * l->channels + c];
            s->depthwise_grad[c * l->kernel_size + t] = (REAL)total;
        }
        for (int64_t n = 0; s->pointwise_grad && n < s->out_channels; n++) {
            double total = 0;
            for (int64_t k = 0; k < N_CHUNKS; k++)
                total += pointwise[k * size + c * l->out_channels + n];
            s->pointwise_grad[n * s->channels + c] = (REAL)total;
        }
        for (int64_t row = 0; s->x_sums && row < 2; row++) {
            double total = 0;
            for (int64_t k = 0; k < N_CHUNKS; k++)
                total += x_sums[(k * 2 + row) * l->channels + c];
            s->x_sums[row * s->channels + c] = (REAL)total;
        }
    }
}

/* The gradients that a stage asks for. Returns 0, or 1 without memory. */
int separable_backward(const Stage *s) {
    const Layout l = layout_of(s);
    const int64_t n_depthwise = l.kernel_size * l.channels, n_pointwise = l.channels * l.out_channels;
    const int64_t size = n_depthwise + n_pointwise;
    const int64_t n_buffer =
        2 * l.in_size + l.grad_size + l.n_out * (l.channels + l.out_channels);
    REAL *weights = calloc((size_t)(2 * n_depthwise + n_pointwise + 4 * l.out_channels), sizeof(REAL));
    REAL *parts = calloc((size_t)(N_CHUNKS * size), sizeof(REAL));
    double *x_sums = calloc((size_t)(N_CHUNKS * 2 * l.channels), sizeof(double));
    int failed = !weights || !parts || !x_sums;
    if (!failed) {
        Packed packed = {.depthwise = weights, .turned = weights + n_depthwise};
        packed.pointwise = packed.turned + n_depthwise; /* (out_channels, channels) */
        packed.rows = packed.pointwise + n_pointwise;
        pack_depthwise(s, &l, packed.depthwise, packed.turned);
        for (int64_t n = 0; n < s->out_channels; n++)
            memcpy(packed.pointwise + n * l.channels, s->pointwise + n * s->channels,
                   (size_t)s->channels * sizeof(REAL));
        gradient_coefficients(s, &l, packed.rows);
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
            Work w = {.a = buffer(n_buffer)};
            if (!w.a) { failed = 1; continue; }
            w.a_grad = w.a + l.in_size;
            w.d_grad = w.a_grad + l.in_size;
            w.d = w.d_grad + l.grad_size;
            w.y_grad = w.d + l.n_out * l.channels;
            w.depthwise = parts + chunk * size;
            w.pointwise = w.depthwise + n_depthwise;
            w.x_sums = s->x_sums ? x_sums + chunk * 2 * l.channels : NULL;
            memset(w.a, 0, (size_t)l.in_size * sizeof(REAL));
            memset(w.d_grad, 0, (size_t)l.grad_size * sizeof(REAL));
            for (int64_t b = first_of(chunk, s->batch); b < first_of(chunk + 1, s->batch); b++)
                image_backward(s, &l, &packed, &w, b);
        }
    }
    if (!failed) reduce(s, &l, parts, size, x_sums);
    free(weights);
    free(parts);
    free(x_sums);
    return failed;
}
