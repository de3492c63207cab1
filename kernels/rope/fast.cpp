// Rotary positions of the heads of one tensor, read with any strides, written without gaps.
#include "../lanes.h"

// x, y: [b, t, h, k]; strides in elements, the last axis without gaps. cos, sin: [b or 1, t, pairs]; sign -1 turns back.
template <class T>
static void turn(const T* x, T* y, const float* cosine, const float* sine, const int64_t* strides, int64_t b, int64_t t, int64_t h, int64_t k,
                 int64_t pairs, int64_t angle_stride, float sign, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < b * t; row++) {
        int64_t bi = row / t, ti = row % t;
        const float* c = cosine + bi * angle_stride + ti * pairs;
        const float* s = sine + bi * angle_stride + ti * pairs;
        for (int64_t head = 0; head < h; head++) {
            const T* from = x + bi * strides[0] + ti * strides[1] + head * strides[2];
            T* to = y + (row * h + head) * k;
            lanes(pairs, [&](int64_t i, auto part) {
                V left = at(from + i, part), right = at(from + pairs + i, part), ci = at(c + i, part), si = at(s + i, part) * sign;
                put(to + i, left * ci - right * si, part);
                put(to + pairs + i, right * ci + left * si, part);
            });
            if (2 * pairs < k) memcpy(to + 2 * pairs, from + 2 * pairs, (k - 2 * pairs) * sizeof(T));
        }
    }
}

#define TURN(T, letter)                                                                                                                \
    extern "C" void turn_##letter(const T* x, T* y, const float* c, const float* s, const int64_t* strides, int64_t b, int64_t t,      \
                                  int64_t h, int64_t k, int64_t pairs, int64_t angle_stride, float sign, int threads) {                \
        turn(x, y, c, s, strides, b, t, h, k, pairs, angle_stride, sign, threads);                                                     \
    }
TURN(float, f)
TURN(bf16, b)
