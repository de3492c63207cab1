// A matrix recurrence, its state in the first-level cache:  S <- d S + left right^T,  out = S^T read   with S: [rows, lanes]
// d is one number a token, or one a row or a lane of the state. Backwards in time the same sweep carries the gradient of the state.
#pragma once
#include <functional>
#include <vector>

#include "lanes.h"

// One row of n numbers as floats, times a factor; n is padded to whole lanes with zeros.
template <class T>
INLINE void fill(float* to, const T* from, int64_t n, float factor) {
    lanes(n, [&](int64_t i, auto part) { store(to + i, at(from + i, part) * factor); });
}
INLINE void clear(float* to, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store(to + i, V{});
}
INLINE int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// `steps` tokens with a state of rows x (LANES lanes_v). left and read fill rows numbers of a token, right fills the lanes, out takes them;
// decay fills what S is multiplied with before the token is taken in: one number, or those of rows or lanes. BLOCK tokens share one pass
// over S.
using Fill = std::function<void(int64_t, float*)>;
using Take = std::function<void(int64_t, const float*)>;
enum class Decay { ONE, ROWS, LANES };
template <int LANES_V, int BLOCK, Decay KIND>
static void sweep(int64_t steps, int64_t rows, float* state, const Fill& left, const Fill& right, const Fill& read, const Fill& decay,
                  const Take& out) {
    int64_t padded = whole(rows);
    std::vector<float> buffer(3 * BLOCK * padded);
    float *left_rows = buffer.data(), *read_rows = left_rows + BLOCK * padded, *decay_rows = read_rows + BLOCK * padded;
    for (int64_t first = 0; first < steps; first += BLOCK) {
        V lane[BLOCK][LANES_V], result[BLOCK][LANES_V], factor[BLOCK][KIND == Decay::LANES ? LANES_V : 1];
        for (int j = 0; j < BLOCK; j++) {
            float part[LANES_V * LANES] = {}, factors[KIND == Decay::LANES ? LANES_V * LANES : 1] = {1.0f};
            float* decays = KIND == Decay::ROWS ? decay_rows + j * padded : factors;
            if (first + j < steps) {
                left(first + j, left_rows + j * padded);
                read(first + j, read_rows + j * padded);
                right(first + j, part);
                decay(first + j, decays);
            } else {  // beyond the end: S stays
                clear(left_rows + j * padded, padded);
                clear(read_rows + j * padded, padded);
                int64_t count = KIND == Decay::ROWS ? rows : KIND == Decay::LANES ? LANES_V * LANES : 1;
                for (int64_t i = 0; i < count; i++) decays[i] = 1.0f;
            }
            if constexpr (KIND == Decay::ONE) factor[j][0] = splat(factors[0]);
            if constexpr (KIND == Decay::LANES)
                for (int v = 0; v < LANES_V; v++) factor[j][v] = load(factors + v * LANES);
            for (int v = 0; v < LANES_V; v++) lane[j][v] = load(part + v * LANES), result[j][v] = V{};
        }
        for (int64_t r = 0; r < rows; r++) {
            float* s = state + r * LANES_V * LANES;
            for (int v = 0; v < LANES_V; v++) {
                V value = load(s + v * LANES);
                for (int j = 0; j < BLOCK; j++) {
                    if constexpr (KIND == Decay::ROWS) value *= decay_rows[j * padded + r];
                    else value *= factor[j][KIND == Decay::LANES ? v : 0];
                    value += lane[j][v] * left_rows[j * padded + r];
                    result[j][v] += value * read_rows[j * padded + r];
                }
                store(s + v * LANES, value);
            }
        }
        for (int j = 0; j < BLOCK && first + j < steps; j++) {
            float part[LANES_V * LANES];
            for (int v = 0; v < LANES_V; v++) store(part + v * LANES, result[j][v]);
            out(first + j, part);
        }
    }
}

// Call each(first lane, count, width) for slices of at most four vectors; width is the number of vectors, known when compiling.
template <int N>
struct Width {
    static constexpr int vectors = N, lanes = N * LANES, block = N == 4 ? 2 : 4;
};
template <class Each>
static void in_slices(int64_t total, Each each) {
    for (int64_t first = 0; first < total; first += 4 * LANES) {
        int64_t count = total - first < 4 * LANES ? total - first : 4 * LANES;
        if (count <= LANES) each(first, count, Width<1>{});
        else if (count <= 2 * LANES) each(first, count, Width<2>{});
        else each(first, count, Width<4>{});
    }
}

// Copy between a head's state [p, n] in memory and a slice of it: lanes of p with rows of n, or the other way round.
template <bool P_LANES, bool WRITE, class M>
static void move(M* memory, float* slice, int64_t rows, int64_t first, int64_t count, int64_t width, int64_t n, float factor = 1.0f) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t l = 0; l < count; l++) {
            int64_t place = P_LANES ? (first + l) * n + r : r * n + first + l;
            if constexpr (WRITE) memory[place] = slice[r * width + l] * factor;
            else slice[r * width + l] = memory[place];
        }
}

template <class T>
INLINE float dot(const float* a, const T* b, int64_t n) {
    V total = V{};
    lanes(n, [&](int64_t i, auto part) { total += at(a + i, part) * at(b + i, part); });
    return sum(total);
}
