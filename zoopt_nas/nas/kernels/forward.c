/* The forward pass of a stage (stage.h), and the sum of its output with other terms. */

#include <math.h>

#include "stage.h"

/* The sum over pixels of (y - centre)^power, power 1 or 2, of LANES channels, in four independent
   sums to avoid stalls. */
ALWAYS_INLINE vec sum_of(const int power, const REAL *y, vec centre, int64_t channels,
                         int64_t n_pixels) {
    vec sums[4] = {{0}, {0}, {0}, {0}};
    int64_t p = 0;
    for (; p + 4 <= n_pixels; p += 4)
        for (int64_t q = 0; q < 4; q++) {
            vec v = *(const vec *)(y + (p + q) * channels) - centre;
            if (power == 1) sums[q] += v;
            else sums[q] += v * v;
        }
    for (; p < n_pixels; p++) {
        vec v = *(const vec *)(y + p * channels) - centre;
        if (power == 1) sums[0] += v;
        else sums[0] += v * v;
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

/* Adds pixels to the mean and the squared deviations of `count` pixels. */
static void add_statistics(const REAL *y, int64_t channels, int64_t n_pixels, double count,
                           double *mean, double *squares) {
    const double weight = n_pixels / (count + n_pixels);
    for (int64_t c = 0; c < channels; c += LANES) {
        const vec centre = sum_of(1, y + c, (vec){0}, channels, n_pixels) / (REAL)n_pixels;
        const vec deviations = sum_of(2, y + c, centre, channels, n_pixels);
        for (int64_t k = 0; k < LANES; k++) {
            const double difference = centre[k] - mean[c + k];
            squares[c + k] += deviations[k] + difference * difference * count * weight;
            mean[c + k] += difference * weight;
        }
    }
}

/* N_y, from the means and squared deviations of the chunks. */
static void make_norm(const Stage *s, const Layout *l, const double *chunks) {
    const int64_t n = s->out_channels;
    for (int64_t c = 0; c < n; c++) {
        double count = 0, mean = 0, squares = 0, variance;
        for (int64_t chunk = 0; s->takes_batch && chunk < N_CHUNKS; chunk++) {
            const double *part = chunks + chunk * 2 * l->out_channels + c;
            const int64_t n_images = first_of(chunk + 1, s->batch) - first_of(chunk, s->batch);
            const double part_count = (double)(n_images * l->n_out), difference = part[0] - mean;
            if (n_images == 0) continue;
            count += part_count;
            squares += part[l->out_channels] +
                       difference * difference * (count - part_count) * part_count / count;
            mean += difference * part_count / count;
        }
        if (!s->takes_batch) {
            mean = s->running_mean[c];
            variance = s->running_variance[c];
        } else {
            variance = squares / count;
            if (s->running_mean) {
                const double unbiased = squares / (count - 1), kept = 1 - s->momentum;
                s->running_mean[c] = (REAL)(kept * s->running_mean[c] + s->momentum * mean);
                s->running_variance[c] =
                    (REAL)(kept * s->running_variance[c] + s->momentum * unbiased);
            }
        }
        const double inverse = 1 / sqrt(variance + s->eps);
        s->norm[MEAN * n + c] = (REAL)mean;
        s->norm[INVERSE_STD * n + c] = (REAL)inverse;
        s->norm[MULTIPLIER * n + c] =
            (REAL)(s->scale ? inverse * s->scale[c * s->scale_step] : inverse);
        s->norm[SHIFT * n + c] = s->shift ? s->shift[c] : 0;
    }
}

/* y of an image. `a` is followed by buffers for d and y of a band. Adds the image to `statistics`,
   the mean and squared deviations (2, out_channels) of n_before images. */
static void image_forward(const Stage *s, const Layout *l, const REAL *depthwise,
                          const REAL *pointwise, REAL *a, int64_t image, int64_t n_before,
                          double *statistics) {
    const int64_t n = s->out_channels, wide = l->out_channels;
    REAL *d = a + l->in_size, *y_buffer = d + l->n_band * l->channels;
    activate(s, l, s->x + image * l->n_in * s->channels, a);
    for (int64_t row = 0; row < s->out_height; row += l->band) {
        const Window window = forward_window(s, l, row);
        const int64_t first = row * s->out_width, n_pixels = window.out_height * s->out_width;
        const REAL *from = a + row * s->stride * l->in_row;
        REAL *to = s->y + (image * l->n_out + first) * n, *y = n == wide ? to : y_buffer;
        if (s->depthwise) convolve(&window, from, depthwise, d);
        multiply(s->depthwise ? d : from, l->channels, 1, pointwise, wide, y, wide, n_pixels, wide,
                 l->channels, 0);
        for (int64_t p = 0; y != to && p < n_pixels; p++)
            for (int64_t c = 0; c < n; c += LANES)
                store(to + p * n + c, *(const vec *)(y + p * wide + c), n - c);
        if (s->takes_batch)
            add_statistics(y, wide, n_pixels, (double)(n_before * l->n_out + first), statistics,
                           statistics + wide);
    }
}

/* Computes y and N_y. Returns 0, or 1 if there is no memory. */
int separable_forward(const Stage *s) {
    const Layout l = layout_of(s);
    const int64_t size = l.in_size + l.n_band * (l.channels + l.out_channels);
    const int64_t n_weights = (l.kernel_size + l.out_channels) * l.channels;
    REAL *weights = calloc((size_t)n_weights, sizeof(REAL));
    double *chunks = calloc((size_t)(N_CHUNKS * 2 * l.out_channels), sizeof(double));
    int failed = !weights || !chunks;
    if (!failed) {
        REAL *pointwise = weights + l.kernel_size * l.channels; /* (channels, out_channels) */
        pack_depthwise(s, &l, weights, NULL);
        for (int64_t n = 0; n < s->out_channels; n++)
            for (int64_t c = 0; c < s->channels; c++)
                pointwise[c * l.out_channels + n] = s->pointwise[n * s->channels + c];
#pragma omp parallel for schedule(static) reduction(| : failed)
        for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
            REAL *a = buffer(size);
            if (!a) { failed = 1; continue; }
            double *mean = chunks + chunk * 2 * l.out_channels;
            memset(a, 0, (size_t)l.in_size * sizeof(REAL));
            const int64_t first = first_of(chunk, s->batch);
            for (int64_t b = first; b < first_of(chunk + 1, s->batch); b++)
                image_forward(s, &l, weights, pointwise, a, b, b - first, mean);
        }
    }
    if (!failed) make_norm(s, &l, chunks);
    free(weights);
    free(chunks);
    return failed;
}

/* out = base + skip * x + (y - mean) * multiplier + shift, for (n_pixels, channels). The number
   skip and base may be NULL; base may equal out. */
void add_normalized(int64_t n_pixels, int64_t channels, const REAL *y, const REAL *norm,
                    const REAL *base, const REAL *skip, const REAL *x, REAL *out) {
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++)
        for (int64_t p = first_of(chunk, n_pixels); p < first_of(chunk + 1, n_pixels); p++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t n = channels - c, at = p * channels + c;
                vec v = (load(y + at, n) - load(norm + MEAN * channels + c, n)) *
                            load(norm + MULTIPLIER * channels + c, n) +
                        load(norm + SHIFT * channels + c, n);
                if (base) v += load(base + at, n);
                if (skip) v += *skip * load(x + at, n);
                store(out + at, v, n);
            }
}
