// A softmax over all tokens so far in each channel:  z <- log(e^z + e^k),  weight = e^(k - z),  decay = z before - z.
// With d = k - z before, decay is -softplus(d), which keeps the digits of small results, and weight e^(d - softplus(d)). z is a compensated
// sum of the softplus, as it would otherwise stop growing where rows are long. Backwards, r is the gradient of z from this token on:
//     r <- r - weight dweight - ddecay;   dk = weight (dweight + r);   r <- e^decay r + ddecay
#include "../documents.h"
#include "../lanes.h"

constexpr int64_t SLICE = 4 * LANES;

struct Shape {
    int64_t b, t, i;
};

template <class Each>
static void in_slices(Shape s, int threads, Each each) {
    int64_t slices = (s.i + SLICE - 1) / SLICE;
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * slices; unit++) {
        int64_t first = unit % slices * SLICE;
        each(unit / slices, first, s.i - first < SLICE ? s.i - first : SLICE);
    }
}

template <class T>
static void forward(const T* logits, const float* initial, const int32_t* document, const uint8_t* goes_on, float* weight, float* decay,
                    float* last, Shape s, int threads) {
    in_slices(s, threads, [&](int64_t b, int64_t first, int64_t count) {
        auto kind = kinds(document + b * s.t, s.t, goes_on && goes_on[b]);
        float z[SLICE] = {}, lost[SLICE] = {};
        if (initial) memcpy(z, initial + b * s.i + first, count * sizeof(float));
        for (int64_t t = 0; t < s.t; t++) {
            int64_t place = (b * s.t + t) * s.i + first;
            lanes(count, [&](int64_t l, auto part) {
                V k = kind[t] ? at(logits + place + l, part) : V{}, before = load(z + l);
                if (kind[t] != INSIDE) {
                    put(weight + place + l, splat(kind[t] == FRESH ? 1.0f : 0.0f), part);
                    put(decay + place + l, V{}, part);
                    if (kind[t] == FRESH) store(z + l, k), store(lost + l, V{});
                    return;
                }
                V d = k - before, grown = softplus(d), step = grown - load(lost + l), now = before + step;
                put(weight + place + l, exp(d - grown), part);
                put(decay + place + l, -grown, part);
                store(lost + l, (now - before) - step);
                store(z + l, now);
            });
        }
        memcpy(last + b * s.i + first, z, count * sizeof(float));
    });
}

template <class T>
static void backward(const int32_t* document, const uint8_t* goes_on, const float* weight, const float* decay, const float* dweight,
                     const float* ddecay, const float* dlast, T* dlogits, float* dinitial, Shape s, int threads) {
    in_slices(s, threads, [&](int64_t b, int64_t first, int64_t count) {
        auto kind = kinds(document + b * s.t, s.t, goes_on && goes_on[b]);
        float r[SLICE] = {};
        if (dlast) memcpy(r, dlast + b * s.i + first, count * sizeof(float));
        for (int64_t t = s.t - 1; t >= 0; t--) {
            int64_t place = (b * s.t + t) * s.i + first;
            lanes(count, [&](int64_t l, auto part) {
                V now = load(r + l);
                if (kind[t] != INSIDE) {
                    put(dlogits + place + l, kind[t] == FRESH ? now : V{}, part);
                    if (kind[t] == FRESH) store(r + l, V{});
                    return;
                }
                V w = at(weight + place + l, part), dw = dweight ? at(dweight + place + l, part) : V{};
                V dd = ddecay ? at(ddecay + place + l, part) : V{};
                now -= w * dw + dd;
                put(dlogits + place + l, w * (dw + now), part);
                store(r + l, exp(at(decay + place + l, part)) * now + dd);
            });
        }
        if (dinitial) memcpy(dinitial + b * s.i + first, r, count * sizeof(float));
    });
}

#define BOTH(T, letter)                                                                                                                  \
    extern "C" void forward_##letter(const T* logits, const float* initial, const int32_t* doc, const uint8_t* goes_on, float* weight,   \
                                     float* decay, float* last, int64_t b, int64_t t, int64_t i, int threads) {                          \
        forward(logits, initial, doc, goes_on, weight, decay, last, Shape{b, t, i}, threads);                                            \
    }                                                                                                                                    \
    extern "C" void backward_##letter(const int32_t* doc, const uint8_t* goes_on, const float* weight, const float* decay,               \
                                      const float* dweight, const float* ddecay, const float* dlast, T* dlogits, float* dinitial,        \
                                      int64_t b, int64_t t, int64_t i, int threads) {                                                    \
        backward(doc, goes_on, weight, decay, dweight, ddecay, dlast, dlogits, dinitial, Shape{b, t, i}, threads);                       \
    }
BOTH(float, f)
BOTH(bf16, b)
