// RMSNorm over rows, with the addition to the residual stream where there is one, forward and backward.
#include "../lanes.h"

// sum = x + residual;  y = sum * inverse * weight,  inverse = 1 / sqrt(mean(sum^2) + eps)
template <class S, class Y>
INLINE float norm_row(const S* s, const float* weight, Y* y, int64_t d, float eps) {
    V squares = V{};
    lanes(d, [&](int64_t i, auto part) {
        V v = at(s + i, part);
        squares += v * v;
    });
    float inverse = 1.0f / std::sqrt(sum(squares) / d + eps);
    lanes(d, [&](int64_t i, auto part) { put(y + i, at(s + i, part) * inverse * at(weight + i, part), part); });
    return inverse;
}

template <class X, class R, class Y>
static void forward(const X* x, const R* residual, R* sums, const float* weight, Y* y, float* inverse, int64_t n, int64_t d, float eps,
                    int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < n; row++) {
        const X* x_row = x + row * d;
        if (!residual) {
            inverse[row] = norm_row(x_row, weight, y + row * d, d, eps);
            continue;
        }
        const R* residual_row = residual + row * d;
        R* sum_row = sums + row * d;
        lanes(d, [&](int64_t i, auto part) { put(sum_row + i, at(x_row + i, part) + at(residual_row + i, part), part); });
        inverse[row] = norm_row(sum_row, weight, y + row * d, d, eps);
    }
}

// dx = inverse (weight dy - s mean(weight dy s) inverse^2) + dsum;  dweight = sum over rows of dy s inverse, in one part a thread
template <class S, class Y>
static void backward(const S* s, const float* weight, const float* inverse, const Y* dy, const S* dsum, S* dx, float* dweight, int64_t n,
                     int64_t d, int threads) {
    int64_t share = (n + threads - 1) / threads;
    ROWS_IN_PARALLEL(threads)
    for (int64_t thread = 0; thread < threads; thread++) {
        float* slope = dweight + thread * d;
        for (int64_t row = thread * share; row < (thread + 1) * share && row < n; row++) {
            const S* s_row = s + row * d;
            const Y* dy_row = dy + row * d;
            S* dx_row = dx + row * d;
            float scale = inverse[row];
            V dot = V{};
            lanes(d, [&](int64_t i, auto part) {
                V product = at(dy_row + i, part) * at(s_row + i, part);
                dot += product * at(weight + i, part);
                put(slope + i, at(slope + i, part) + product * scale, part);
            });
            float pull = sum(dot) / d * scale * scale;
            if (dsum)
                lanes(d, [&](int64_t i, auto part) {
                    V g = scale * (at(weight + i, part) * at(dy_row + i, part) - at(s_row + i, part) * pull);
                    put(dx_row + i, g + at(dsum + row * d + i, part), part);
                });
            else
                lanes(d, [&](int64_t i, auto part) {
                    put(dx_row + i, scale * (at(weight + i, part) * at(dy_row + i, part) - at(s_row + i, part) * pull), part);
                });
        }
    }
}

#define FORWARD(name, X, R, Y)                                                                                                            \
    extern "C" void name(const X* x, const R* residual, R* sums, const float* weight, Y* y, float* inverse, int64_t n, int64_t d, float e, \
                         int threads) {                                                                                                   \
        forward(x, residual, sums, weight, y, inverse, n, d, e, threads);                                                                 \
    }
#define BACKWARD(name, S, Y)                                                                                                            \
    extern "C" void name(const S* s, const float* weight, const float* inverse, const Y* dy, const S* dsum, S* dx, float* dw, int64_t n, \
                         int64_t d, int threads) {                                                                                      \
        backward(s, weight, inverse, dy, dsum, dx, dw, n, d, threads);                                                                  \
    }
// forward_<x><residual><y>, backward_<sum><y>: f float, b bfloat16
FORWARD(forward_fff, float, float, float)
FORWARD(forward_ffb, float, float, bf16)
FORWARD(forward_bff, bf16, float, float)
FORWARD(forward_bfb, bf16, float, bf16)
FORWARD(forward_bbf, bf16, bf16, float)
FORWARD(forward_bbb, bf16, bf16, bf16)
BACKWARD(backward_ff, float, float)
BACKWARD(backward_fb, float, bf16)
BACKWARD(backward_bf, bf16, float)
BACKWARD(backward_bb, bf16, bf16)
