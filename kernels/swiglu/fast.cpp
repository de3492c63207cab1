// silu(gate) * up of rows [gate | up], forward and backward.
#include "../lanes.h"

template <class T>
static void forward(const T* x, T* y, int64_t n, int64_t f, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < n; row++) {
        const T *gate = x + row * 2 * f, *up = gate + f;
        lanes(f, [&](int64_t i, auto part) {
            V g = at(gate + i, part);
            put(y + row * f + i, g * sigmoid(g) * at(up + i, part), part);
        });
    }
}

template <class T>
static void backward(const T* x, const T* dy, T* dx, int64_t n, int64_t f, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < n; row++) {
        const T *gate = x + row * 2 * f, *up = gate + f;
        T *dgate = dx + row * 2 * f, *dup = dgate + f;
        lanes(f, [&](int64_t i, auto part) {
            V g = at(gate + i, part), s = sigmoid(g), slope = at(dy + row * f + i, part);
            put(dup + i, slope * g * s, part);
            put(dgate + i, slope * at(up + i, part) * (s + g * s * (1.0f - s)), part);
        });
    }
}

#define BOTH(T, letter)                                                                                       \
    extern "C" void forward_##letter(const T* x, T* y, int64_t n, int64_t f, int threads) {                   \
        forward(x, y, n, f, threads);                                                                         \
    }                                                                                                         \
    extern "C" void backward_##letter(const T* x, const T* dy, T* dx, int64_t n, int64_t f, int threads) {    \
        backward(x, dy, dx, n, f, threads);                                                                   \
    }
BOTH(float, f)
BOTH(bf16, b)
