// Causal depthwise convolution with SiLU, rows of channels at a time. A window holds the last inputs of the document, so borders, padding
// and the carried state need no mask: what is not there is a row of zeros.
#include <vector>

#include "many_taps.h"

struct Shape {
    int64_t b, t, c, taps, stride_b, stride_t;  // strides of x in elements; y, dy and dx have no gaps
};

// One input in the window: its numbers, the gradient gathered for it, and what it is: token >= 0, state column -1 - token, or NOTHING.
template <class T>
struct Slot {
    const T* x;
    float* gradient;
    int64_t token;
};
constexpr int64_t NOTHING = INT64_MIN;

// The window over a row of the batch. The last slot is the current token's.
template <class T>
struct Window {
    std::vector<T> store;
    std::vector<float> gradients;
    std::vector<Slot<T>> slots;
    int64_t taps, width;
    Window(int64_t taps_, int64_t width_) : store(taps_ * width_), gradients(taps_ * width_), slots(taps_), taps(taps_), width(width_) {}

    // The columns of state [c, taps - 1] of one row of the batch, or zeros.
    void begin(const T* state) {
        std::fill(gradients.begin(), gradients.end(), 0.0f);
        for (int64_t j = 0; j < taps; j++) {
            T* row = store.data() + j * width;
            for (int64_t c = 0; c < width; c++) row[c] = state && j + 1 < taps ? state[c * (taps - 1) + j] : T{};
            slots[j] = {row, gradients.data() + j * width, state && j + 1 < taps ? -1 - j : NOTHING};
        }
    }
    const T* zeros() const { return store.data() + (taps - 1) * width; }
    // Nothing before the current token counts; flush(slot) is called for what leaves.
    template <class Flush>
    void forget(Flush flush) {
        for (int64_t j = 0; j + 1 < taps; j++) {
            flush(slots[j]);
            slots[j].x = zeros();
            slots[j].token = NOTHING;
        }
    }
    template <class Flush>
    void advance(Flush flush) {
        flush(slots[0]);
        float* reused = slots[0].gradient;
        for (int64_t j = 0; j + 1 < taps; j++) slots[j] = slots[j + 1];
        memset(reused, 0, width * sizeof(float));
        slots[taps - 1] = {zeros(), reused, NOTHING};
    }
};

// Walk over a row of the batch: token(i) for each that is not padding, after the window was brought up to date.
template <class T, class Token, class Padding, class Flush>
static void walk(Window<T>& window, const T* x, const int32_t* document, bool goes_on, const Shape& s, Token token, Padding padding,
                 Flush flush) {
    int32_t current = 0;
    for (int64_t i = 0; i < s.t; i++) {
        if (document[i] <= 0) {
            padding(i);
            continue;
        }
        if (current ? document[i] != current : !goes_on) window.forget(flush);
        current = document[i];
        window.slots[window.taps - 1].x = x + i * s.stride_t;
        window.slots[window.taps - 1].token = i;
        token(i);
        window.advance(flush);
    }
}

// The window's addresses in variables of their own, which the compiler need not read again after each store. Four taps, as everybody has;
// other numbers of them take the way of many_taps.h.
constexpr int64_t TAPS = 4;
template <class T>
struct Taps {
    const T* x[TAPS];
    float *gradient[TAPS], *slope[TAPS];
    const float* weight[TAPS];
    Taps(const Window<T>& window, const float* weights, float* slopes) {
        for (int64_t j = 0; j < TAPS; j++) {
            x[j] = window.slots[j].x;
            gradient[j] = window.slots[j].gradient;
            weight[j] = weights + j * window.width;
            slope[j] = slopes + j * window.width;
        }
    }
    template <class P>
    __attribute__((always_inline)) V convolve(const float* bias, int64_t c, P part) const {
        V z = bias ? at(bias + c, part) : V{};
        for (int64_t j = 0; j < TAPS; j++) z += at(x[j] + c, part) * at(weight[j] + c, part);
        return z;
    }
};

template <class T>
static void columns(const Window<T>& window, T* last) {  // the inputs kept for what follows: the slots before the current one
    for (int64_t c = 0; c < window.width; c++)
        for (int64_t j = 0; j + 1 < window.taps; j++) last[c * (window.taps - 1) + j] = window.slots[j].x[c];
}

// weight: [taps, c] with the channels of this call; all pointers stand at its first channel
template <class T>
static void forward(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state, const uint8_t* goes_on,
                    T* y, T* last, int silu, const Shape& s, int64_t width) {
    Window<T> window(s.taps, width);
    for (int64_t b = 0; b < s.b; b++) {
        int64_t held = b * s.c * (s.taps - 1);
        window.begin(state ? state + held : nullptr);
        walk(
            window, x + b * s.stride_b, document + b * s.t, goes_on && goes_on[b], s,
            [&](int64_t i) {
                T* row = y + (b * s.t + i) * s.c;
                const Taps<T> taps(window, weight, nullptr);
                lanes(width, [=](int64_t c, auto part) {
                    V z = taps.convolve(bias, c, part);
                    put(row + c, silu ? z * sigmoid(z) : z, part);
                });
            },
            [&](int64_t i) { memset(static_cast<void*>(y + (b * s.t + i) * s.c), 0, width * sizeof(T)); }, [](const Slot<T>&) {});
        columns(window, last + held);
    }
}

// slopes: [taps + 1, c], those of the weight and then of the bias, added to
template <class T>
static void backward(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state, const uint8_t* goes_on,
                     const T* dy, const T* dlast, T* dx, float* slopes, T* dstate, int silu, const Shape& s, int64_t width) {
    Window<T> window(s.taps, width);
    for (int64_t b = 0; b < s.b; b++) {
        int64_t held = b * s.c * (s.taps - 1);
        auto flush = [&](const Slot<T>& slot) {
            if (slot.token >= 0) {
                T* row = dx + (b * s.t + slot.token) * s.c;
                lanes(width, [&](int64_t c, auto part) { put(row + c, at(slot.gradient + c, part), part); });
            } else if (slot.token != NOTHING && dstate) {
                for (int64_t c = 0; c < width; c++) store_some(dstate + held + c * (s.taps - 1) - 1 - slot.token, splat(slot.gradient[c]), 1);
            }
        };
        window.begin(state ? state + held : nullptr);
        walk(
            window, x + b * s.stride_b, document + b * s.t, goes_on && goes_on[b], s,
            [&](int64_t i) {
                const T* dy_row = dy + (b * s.t + i) * s.c;
                const Taps<T> taps(window, weight, slopes);
                float* bias_slope = slopes + s.taps * width;
                lanes(width, [=](int64_t c, auto part) {
                    V slope = at(dy_row + c, part);
                    if (silu) {
                        V z = taps.convolve(bias, c, part), p = sigmoid(z);
                        slope *= p + z * p * (1.0f - p);
                    }
                    for (int64_t j = 0; j < TAPS; j++) {
                        float *g = taps.gradient[j] + c, *w = taps.slope[j] + c;
                        put(g, at(g, part) + slope * at(taps.weight[j] + c, part), part);
                        put(w, at(w, part) + slope * at(taps.x[j] + c, part), part);
                    }
                    put(bias_slope + c, at(bias_slope + c, part) + slope, part);
                });
            },
            [&](int64_t i) { memset(static_cast<void*>(dx + (b * s.t + i) * s.c), 0, width * sizeof(T)); }, flush);
        if (dlast)
            for (int64_t j = 0; j + 1 < s.taps; j++)
                for (int64_t c = 0; c < width; c++)
                    window.slots[j].gradient[c] += load_some(dlast + held + c * (s.taps - 1) + j, 1)[0];
        window.forget(flush);
    }
}

// Channels in parts: each part is worked on alone, by one thread, with its own columns of weight and slopes.
template <class F>
static void in_parts(int64_t channels, int threads, F each) {
    int64_t size = (channels / threads + LANES - 1) / LANES * LANES;
    size = size < LANES ? LANES : (size > 512 ? 512 : size);
    int64_t parts = (channels + size - 1) / size;
    ROWS_IN_PARALLEL(threads)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = part * size;
        each(first, channels - first < size ? channels - first : size);
    }
}
static std::vector<float> own_columns(const float* weight, int64_t taps, int64_t channels, int64_t first, int64_t width) {
    std::vector<float> own(taps * width);
    for (int64_t j = 0; j < taps; j++) memcpy(own.data() + j * width, weight + j * channels + first, width * sizeof(float));
    return own;
}

// A vector of channels at a time of every row of the batch.
template <class T, class F>
static void in_blocks(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state, const uint8_t* goes_on,
                      const Shape& s, int threads, F each) {
    std::vector<Runs> runs(s.b);
    for (int64_t b = 0; b < s.b; b++) runs[b].find(document + b * s.t, s.t, goes_on && goes_on[b]);
    ROWS_IN_PARALLEL(threads)
    for (int64_t first = 0; first < s.c; first += LANES) {
        int64_t width = s.c - first < LANES ? s.c - first : LANES, past = s.taps - 1;
        std::vector<float> own(s.taps * LANES, 0.0f);
        for (int64_t j = 0; j < s.taps; j++) memcpy(own.data() + j * LANES, weight + j * s.c + first, width * sizeof(float));
        Block<T> block{nullptr, nullptr, own.data(), bias ? bias + first : nullptr, width, s.taps, past, {}, {}, {}, {}, {}};
        each(block, runs, first);
    }
}

template <class T>
static void forward_all(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state, const uint8_t* goes_on,
                        T* y, T* last, int silu, Shape s, int threads) {
    if (s.taps != TAPS) {
        in_blocks(x, weight, bias, document, state, goes_on, s, threads, [&](Block<T>& block, const std::vector<Runs>& runs, int64_t first) {
            for (int64_t b = 0; b < s.b; b++) {
                int64_t held = (b * s.c + first) * (s.taps - 1);
                block.x = x + b * s.stride_b + first;
                block.state = state ? state + held : nullptr;
                forward_many(block, runs[b], y + b * s.t * s.c + first, last + held, silu, s.t, s.c, s.stride_t, document + b * s.t);
            }
        });
        return;
    }
    in_parts(s.c, threads, [&](int64_t first, int64_t width) {
        auto own = own_columns(weight, s.taps, s.c, first, width);
        forward(x + first, own.data(), bias ? bias + first : nullptr, document, state ? state + first * (s.taps - 1) : nullptr, goes_on,
                y + first, last + first * (s.taps - 1), silu, s, width);
    });
}
template <class T>
static void backward_all(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state,
                         const uint8_t* goes_on, const T* dy, const T* dlast, T* dx, float* slopes, T* dstate, int silu, Shape s,
                         int threads) {
    if (s.taps != TAPS) {
        in_blocks(x, weight, bias, document, state, goes_on, s, threads, [&](Block<T>& block, const std::vector<Runs>& runs, int64_t first) {
            std::vector<float> mine((s.taps + 1) * LANES, 0.0f);
            for (int64_t b = 0; b < s.b; b++) {
                int64_t held = (b * s.c + first) * (s.taps - 1), at = b * s.t * s.c + first;
                block.x = x + b * s.stride_b + first;
                block.state = state ? state + held : nullptr;
                backward_many(block, runs[b], dy + at, dlast ? dlast + held : nullptr, dx + at, mine.data(), dstate ? dstate + held : nullptr,
                              silu, s.t, s.c, s.stride_t, document + b * s.t);
            }
            for (int64_t j = 0; j <= s.taps; j++) memcpy(slopes + j * s.c + first, mine.data() + j * LANES, block.width * sizeof(float));
        });
        return;
    }
    in_parts(s.c, threads, [&](int64_t first, int64_t width) {
        auto own = own_columns(weight, s.taps, s.c, first, width);
        std::vector<float> mine((s.taps + 1) * width);
        int64_t held = first * (s.taps - 1);
        backward(x + first, own.data(), bias ? bias + first : nullptr, document, state ? state + held : nullptr, goes_on, dy + first,
                 dlast ? dlast + held : nullptr, dx + first, mine.data(), dstate ? dstate + held : nullptr, silu, s, width);
        for (int64_t j = 0; j <= s.taps; j++) memcpy(slopes + j * s.c + first, mine.data() + j * width, width * sizeof(float));
    });
}

#define BOTH(T, letter)                                                                                                                    \
    extern "C" void forward_##letter(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state,          \
                                     const uint8_t* goes_on, T* y, T* last, int silu, int64_t b, int64_t t, int64_t c, int64_t taps,       \
                                     int64_t stride_b, int64_t stride_t, int threads) {                                                    \
        forward_all(x, weight, bias, document, state, goes_on, y, last, silu, Shape{b, t, c, taps, stride_b, stride_t}, threads);          \
    }                                                                                                                                      \
    extern "C" void backward_##letter(const T* x, const float* weight, const float* bias, const int32_t* document, const T* state,         \
                                      const uint8_t* goes_on, const T* dy, const T* dlast, T* dx, float* slopes, T* dstate, int silu,      \
                                      int64_t b, int64_t t, int64_t c, int64_t taps, int64_t stride_b, int64_t stride_t, int threads) {    \
        backward_all(x, weight, bias, document, state, goes_on, dy, dlast, dx, slopes, dstate, silu,                                       \
                     Shape{b, t, c, taps, stride_b, stride_t}, threads);                                                                   \
    }
BOTH(float, f)
BOTH(bf16, b)
