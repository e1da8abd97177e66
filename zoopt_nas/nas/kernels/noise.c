/* Standard normal noise that is never stored: added, or multiplied and summed up, as it is drawn.

   Number i of a seed is always the same, whoever computes it: Philox-4x32-10 (Salmon et al., 2011,
   "Parallel random numbers: as easy as 1, 2, 3") of the number of its block, and Box-Muller. Noise
   is drawn in float, and converted where REAL is double. */

#include <math.h>
#include <stdint.h>

#define LANES 8
#define BLOCK (4 * LANES) /* numbers that are drawn together */
#define N_CHUNKS 16       /* parts of a sum, whatever the number of threads */

typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint64_t wide __attribute__((vector_size(8 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES), may_alias));

static inline words high_product(words a, uint32_t b, words *low) {
    wide product = __builtin_convertvector(a, wide) * b;
    *low = __builtin_convertvector(product, words);
    return __builtin_convertvector(product >> 32, words);
}

/* The four words of LANES counters from `first` on. */
static inline void philox(uint64_t seed, uint64_t first, words out[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    wide counter = first + (wide){0, 1, 2, 3, 4, 5, 6, 7};
    words c0 = __builtin_convertvector(counter, words);
    words c1 = __builtin_convertvector(counter >> 32, words), c2 = {0}, c3 = {0};
    for (int round = 0; round < 10; round++) {
        words low0, low1;
        words high0 = high_product(c0, 0xD2511F53u, &low0);
        words high1 = high_product(c2, 0xCD9E8D57u, &low1);
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* ln u for u in (0, 1], to about 1e-7: ln(2^e m) with m in [sqrt(1/2), sqrt(2)), and
   ln m = 2 artanh(s), s = (m - 1) / (m + 1), as a series in s. */
static inline floats logarithm(floats u) {
    integers bits = (integers)u - 0x3F3504F3; /* so that m begins at sqrt(1/2) */
    floats exponent = __builtin_convertvector(bits >> 23, floats);
    floats m = (floats)((bits & 0x007FFFFF) + 0x3F3504F3);
    floats s = (m - 1) / (m + 1), q = s * s;
    floats series = 1 + q * (1.0f / 3 + q * (1.0f / 5 + q * (1.0f / 7 + q * (1.0f / 9))));
    return exponent * 0.693147180559945f + 2 * s * series;
}

/* Two normals for each lane, from two uniform words. */
static inline void box_muller(words radius_word, words angle_word, floats *one, floats *two) {
    /* (0, 1]; what is near 0, the tails, has all its digits. */
    floats u = (__builtin_convertvector(radius_word, floats) + 1) * 0x1p-32f;
    floats square = -2 * logarithm(u), radius = square;
    for (int k = 0; k < LANES; k++) radius[k] = sqrtf(square[k]);
    /* An angle in [-pi/4, pi/4), then by two bits one of the four quarters of the circle. */
    floats angle = __builtin_convertvector((integers)(angle_word << 2), floats) *
                   (float)(0x1p-31 * 0.78539816339744831);
    floats q = angle * angle;
    floats sine = angle * (1 + q * (-1.0f / 6 + q * (1.0f / 120 + q * (-1.0f / 5040))));
    floats cosine = 1 + q * (-1.0f / 2 + q * (1.0f / 24 + q * (-1.0f / 720 + q * (1.0f / 40320))));
    integers swap = (integers)(angle_word << 1) >> 31; /* 0, or all ones */
    integers sign = (integers)(angle_word & 0x80000000u);
    floats x = (floats)(((integers)cosine & ~swap) | ((integers)sine & swap));
    floats y = (floats)(((integers)sine & ~swap) | ((integers)cosine & swap));
    *one = (floats)((integers)(radius * x) ^ sign);
    *two = (floats)((integers)(radius * y) ^ sign);
}

static inline void draw(uint64_t seed, int64_t block, floats out[4]) {
    words w[4];
    philox(seed, (uint64_t)block * LANES, w);
    box_muller(w[0], w[1], &out[0], &out[1]);
    box_muller(w[2], w[3], &out[2], &out[3]);
}

/* out = base + scale * noise, n numbers; base may be NULL, and may be out. */
void add_noise(int64_t n, uint64_t seed, double scale, const REAL *base, REAL *out) {
    const int64_t n_blocks = (n + BLOCK - 1) / BLOCK;
    const REAL factor = (REAL)scale;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n_blocks; block++) {
        floats drawn[4];
        draw(seed, block, drawn);
        const float *noise = (const float *)drawn;
        const int64_t first = block * BLOCK, size = n - first < BLOCK ? n - first : BLOCK;
        for (int64_t i = 0; i < size; i++)
            out[first + i] = (base ? base[first + i] : 0) + factor * (REAL)noise[i];
    }
}

/* The sum of grad * noise over n numbers. */
double noise_product(int64_t n, uint64_t seed, const REAL *grad) {
    const int64_t n_blocks = (n + BLOCK - 1) / BLOCK;
    double parts[N_CHUNKS] = {0}, total = 0;
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
        const int64_t end = (chunk + 1) * n_blocks / N_CHUNKS;
        for (int64_t block = chunk * n_blocks / N_CHUNKS; block < end; block++) {
            floats noise[4];
            draw(seed, block, noise);
            const float *own = (const float *)noise;
            const int64_t first = block * BLOCK, size = n - first < BLOCK ? n - first : BLOCK;
            double sum = 0;
            for (int64_t i = 0; i < size; i++) sum += (double)grad[first + i] * own[i];
            parts[chunk] += sum;
        }
    }
    for (int chunk = 0; chunk < N_CHUNKS; chunk++) total += parts[chunk];
    return total;
}
