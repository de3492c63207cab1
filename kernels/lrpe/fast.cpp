// y = [x cos, x sin] for rows of k channels, and its gradients; rows of cosines and sines serve all of the batch where there is one set.
#include "../lanes.h"

// x: [b, units, k], cos and sin: [rows, units, k] with rows b or 1, y: [b, units, 2 k].
template <class X, class Y>
static void apart(const X* x, const float* cos, const float* sin, Y* y, int64_t b, int64_t rows, int64_t units, int64_t k, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t n = 0; n < b * units; n++) {
        int64_t angle = (rows == 1 ? n % units : n) * k;
        lanes(k, [&](int64_t i, auto part) {
            V value = at(x + n * k + i, part);
            put(y + 2 * n * k + i, value * at(cos + angle + i, part), part);
            put(y + (2 * n + 1) * k + i, value * at(sin + angle + i, part), part);
        });
    }
}

// dangle: [rows, units, k], what is in it kept where `added` says so.
template <class X, class Y>
static void together(const X* x, const float* cos, const float* sin, const Y* dy, X* dx, float* dangle, int64_t b, int64_t rows,
                     int64_t units, int64_t k, int64_t added, int threads) {
    int64_t shared = b / rows;
    ROWS_IN_PARALLEL(threads)
    for (int64_t a = 0; a < rows * units; a++) {
        lanes(k, [&](int64_t i, auto part) {
            V c = at(cos + a * k + i, part), s = at(sin + a * k + i, part), total = added ? at(dangle + a * k + i, part) : V{};
            for (int64_t row = 0; row < shared; row++) {
                int64_t n = a + row * units;
                V value = at(x + n * k + i, part), left = at(dy + 2 * n * k + i, part), right = at(dy + (2 * n + 1) * k + i, part);
                put(dx + n * k + i, left * c + right * s, part);
                total += value * (right * c - left * s);
            }
            put(dangle + a * k + i, total, part);
        });
    }
}

#define BOTH(X, Y, letters)                                                                                                              \
    extern "C" void apart_##letters(const X* x, const float* cos, const float* sin, Y* y, int64_t b, int64_t rows, int64_t units,        \
                                    int64_t k, int threads) {                                                                            \
        apart(x, cos, sin, y, b, rows, units, k, threads);                                                                               \
    }                                                                                                                                    \
    extern "C" void together_##letters(const X* x, const float* cos, const float* sin, const Y* dy, X* dx, float* dangle, int64_t b,     \
                                       int64_t rows, int64_t units, int64_t k, int64_t added, int threads) {                             \
        together(x, cos, sin, dy, dx, dangle, b, rows, units, k, added, threads);                                                        \
    }
BOTH(float, float, ff)
BOTH(float, bf16, fb)
BOTH(bf16, float, bf)
BOTH(bf16, bf16, bb)
