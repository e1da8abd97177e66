/* The backward pass of a stage (stage.h). */

#include "stage.h"

#define BLOCK 64 /* pixels summed in REAL before the sum is added in double */

/* Sums over pixels of grad and of grad * (y - mean): (2, channels). Returns 0, or 1 if there is no
   memory. */
int gradient_sums(int64_t n_pixels, int64_t channels, const REAL *grad, const REAL *y,
                  const REAL *mean, REAL *sums) {
    const int64_t wide = padded(channels);
    double *parts = calloc((size_t)(N_CHUNKS * 2 * wide), sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
        double *part = parts + chunk * 2 * wide;
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
                    part[c + k] += sum[k];
                    part[wide + c + k] += products[k];
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

/* The gradient of y is a * grad + b * (y - mean) + c. Rows a, b, c, mean: (4, padded channels). */
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

ALWAYS_INLINE void gradient_in_y_as(const int is_whole, const Stage *s, const Layout *l,
                                    int64_t first, int64_t n_pixels, const REAL *rows,
                                    REAL *restrict out) {
    const int64_t n = s->out_channels, wide = l->out_channels;
    const REAL *grad = s->grad + first * n, *y = s->y + first * n;
    for (int64_t p = 0; p < n_pixels; p++)
        for (int64_t c = 0; c < n; c += LANES) {
            const int64_t left = is_whole ? LANES : n - c;
            vec v = load(y + p * n + c, left) - *(const vec *)(rows + Y_MEAN * wide + c);
            *(vec *)(out + p * wide + c) =
                *(const vec *)(rows + OF_GRAD * wide + c) * load(grad + p * n + c, left) +
                *(const vec *)(rows + OF_Y * wide + c) * v +
                *(const vec *)(rows + CONSTANT * wide + c);
        }
}

/* For `n_pixels` pixels of the batch from `first` on. */
static void gradient_in_y(const Stage *s, const Layout *l, int64_t first, int64_t n_pixels,
                          const REAL *rows, REAL *out) {
    if (s->out_channels == l->out_channels)
        gradient_in_y_as(1, s, l, first, n_pixels, rows, out);
    else gradient_in_y_as(0, s, l, first, n_pixels, rows, out);
}

/* The gradient of x from the gradient of a, for rows of an image; adds it to `sums`. */
ALWAYS_INLINE void gradient_in_x_as(const int has_sums, const int has_skip, const int is_whole,
                                    const Stage *s, const Layout *l, int64_t image, int64_t row,
                                    int64_t n_rows, const REAL *a, const REAL *a_grad,
                                    int64_t grad_row, double *sums) {
    const int64_t n = s->channels;
    for (int64_t i = 0; i < n_rows; i++) {
        const int64_t first = (image * s->height + row + i) * s->width * n;
        const REAL *a_row = a + (row + i + l->padding) * l->in_row + l->padding * l->channels;
        for (int64_t c = 0; c < n; c += LANES) {
            const int64_t left = is_whole ? LANES : n - c;
            const vec centre = has_sums ? load(s->x_norm + MEAN * n + c, left) : (vec){0};
            vec sum = {0}, products = {0};
            for (int64_t j = 0; j < s->width; j++) {
                const int64_t at = first + j * n + c, from = j * l->channels + c;
                vec g = *(const vec *)(a_grad + i * grad_row + from);
                g = where_positive(*(const vec *)(a_row + from), g);
                if (has_skip) g += *s->skip * load(s->skip_grad + at, left);
                store(s->x_grad + at, g, left);
                if (has_sums) {
                    sum += g;
                    products += g * (load(s->x + at, left) - centre);
                }
            }
            for (int64_t k = 0; has_sums && k < LANES; k++) {
                sums[c + k] += sum[k];
                sums[l->channels + c + k] += products[k];
            }
        }
    }
}

static void gradient_in_x(const Stage *s, const Layout *l, int64_t image, int64_t row,
                          int64_t n_rows, const REAL *a, const REAL *a_grad, int64_t grad_row,
                          double *sums) {
#define CALL(...) gradient_in_x_as(__VA_ARGS__, s, l, image, row, n_rows, a, a_grad, grad_row, sums)
    if (s->channels != l->channels) CALL(sums != NULL, s->skip != NULL, 0);
    else if (sums) CALL(1, 0, 1);
    else if (s->skip) CALL(0, 1, 1);
    else CALL(0, 0, 1);
#undef CALL
}

/* Buffers of a thread, and sums of a chunk. */
typedef struct {
    REAL *a, *d, *y_grad, *d_grad, *a_grad;
    REAL *depthwise, *pointwise; /* gradients: (kernel, kernel, channels), (channels, out_channels) */
    double *x_sums;
} Work;

typedef struct {
    REAL *depthwise, *turned, *pointwise, *rows;
} Packed;

/* The gradients of the 1x1 convolution and of d, or of x without a depthwise convolution. */
static void band_backward(const Stage *s, const Layout *l, const Packed *packed, const Work *w,
                          int64_t image, int64_t row) {
    const Window window = forward_window(s, l, row);
    const int64_t n_rows = window.out_height, n_pixels = n_rows * s->out_width;
    const int64_t wide = l->out_channels;
    const REAL *d = w->a + row * s->stride * l->in_row;
    if (s->depthwise) {
        convolve(&window, d, packed->depthwise, w->d);
        d = w->d;
    }
    gradient_in_y(s, l, image * l->n_out + row * s->out_width, n_pixels, packed->rows, w->y_grad);
    if (s->pointwise_grad)
        multiply(d, 1, l->channels, w->y_grad, wide, w->pointwise, wide, l->channels, wide,
                 n_pixels, 1);
    if (!s->x_grad && !s->depthwise_grad) return;
    if (!s->depthwise) {
        multiply(w->y_grad, wide, 1, packed->pointwise, l->channels, w->a_grad, l->channels,
                 n_pixels, l->channels, wide, 0);
        gradient_in_x(s, l, image, row, n_rows, w->a, w->a_grad, l->in_row, w->x_sums);
        return;
    }
    REAL *d_grad = w->d_grad + (l->grad_padding + row) * l->grad_row;
    d_grad += l->grad_padding * l->channels;
    for (int64_t i = 0; i < n_rows; i++)
        multiply(w->y_grad + i * s->out_width * wide, wide, 1, packed->pointwise, l->channels,
                 d_grad + i * l->grad_row, l->channels, s->out_width, l->channels, wide, 0);
}

static void image_backward(const Stage *s, const Layout *l, const Packed *packed, const Work *w,
                           int64_t image) {
    activate(s, l, s->x + image * l->n_in * s->channels, w->a);
    for (int64_t row = 0; row < s->out_height; row += l->band)
        band_backward(s, l, packed, w, image, row);
    if (!s->depthwise) return;
    const REAL *d_grad = w->d_grad + l->grad_padding * (l->grad_row + l->channels);
    Window back = forward_window(s, l, 0);
    back.out_row = l->grad_row;
    back.out_height = s->out_height;
    if (s->depthwise_grad) correlate(&back, w->a, d_grad, w->depthwise);
    if (!s->x_grad) return;
    if (s->stride > 1) {
        memset(w->a_grad, 0, (size_t)l->in_size * sizeof(REAL));
        scatter(&back, w->a_grad, packed->depthwise, d_grad);
        gradient_in_x(s, l, image, 0, s->height, w->a,
                      w->a_grad + l->padding * (l->in_row + l->channels), l->in_row, w->x_sums);
        return;
    }
    for (int64_t row = 0; row < s->height; row += l->band) { /* with the rotated kernel */
        Window turned = forward_window(s, l, row);
        turned.in_row = l->grad_row;
        convolve(&turned, w->d_grad + row * l->grad_row, packed->turned, w->a_grad);
        gradient_in_x(s, l, image, row, turned.out_height, w->a, w->a_grad, turned.out_row,
                      w->x_sums);
    }
}

/* Adds up the sums of the chunks. */
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

/* The gradients that are not NULL in the stage. Returns 0, or 1 if there is no memory. */
int separable_backward(const Stage *s) {
    const Layout l = layout_of(s);
    const int64_t n_depthwise = l.kernel_size * l.channels, n_pointwise = l.channels * l.out_channels;
    const int64_t size = n_depthwise + n_pointwise;
    const int64_t n_buffer =
        2 * l.in_size + l.grad_size + l.n_band * (l.channels + l.out_channels);
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
            w.y_grad = w.d + l.n_band * l.channels;
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
