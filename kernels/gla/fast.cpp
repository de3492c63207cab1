// Gated linear attention as it reads, a head's state in the first-level cache. Forward and backward are one sweep in four roles:
//     S <- diag(d) S + left right^T,  out = S^T read
//     y  = sweep(key, value; query)    rows: key channels, lanes: value channels
//     dq = sweep(value, key; dy)       the same states, transposed, so that no sum goes across lanes
//     dv = sweep(query, dy; key)       backwards in time: S is the gradient of the state
//     dk = sweep(dy, query; value)     the same, transposed
// No state is kept between the passes. The decay's gradient needs none either: that of the log decay before token i is that before token
// i + 1 plus query dq - key dk of token i, channel by channel, up to the document's end. So that such sums do not drift, each SECTION of
// tokens begins with their exact value, decay times the product of state and gradient.
#include <vector>

#include "../documents.h"
#include "../sweep.h"

constexpr int64_t SECTION = 32;

struct Shape {
    int64_t b, t, h, k, v;
};

// One head of one row of the batch: where its numbers lie, and rows and slices of them, zero at padding.
struct Head {
    Shape s;
    int64_t b, h;
    std::vector<Kind> kind;
    const float* log_decay;
    Head(const Shape& shape, int64_t unit, const int32_t* document, const uint8_t* goes_on, const float* decay)
        : s(shape), b(unit / shape.h), h(unit % shape.h), kind(kinds(document + b * s.t, s.t, goes_on && goes_on[b])), log_decay(decay) {}
    int64_t key(int64_t i) const { return ((b * s.t + i) * s.h + h) * s.k; }
    int64_t value(int64_t i) const { return ((b * s.t + i) * s.h + h) * s.v; }
    int64_t state() const { return (b * s.h + h) * s.k * s.v; }

    template <class T>
    auto keys(const T* from, int64_t first, int64_t count) const {
        return [=](int64_t i, float* to) {
            if (kind[i]) fill(to, from + key(i) + first, count, 1.0f);
            else clear(to, count);
        };
    }
    template <class T>
    auto values(const T* from, int64_t first, int64_t count) const {
        return [=](int64_t i, float* to) {
            if (kind[i]) fill(to, from + value(i) + first, count, 1.0f);
            else clear(to, count);
        };
    }
    // What the state is multiplied with before token i is taken in: 0 where a document begins, 1 at padding and after the last token.
    auto decays(int64_t first, int64_t count) const {
        return [=](int64_t i, float* to) {
            const float* from = log_decay + key(i) + first;
            bool inside = i < s.t && kind[i] == INSIDE;
            V same = splat(i < s.t && kind[i] == FRESH ? 0.0f : 1.0f);
            lanes(count, [&](int64_t l, auto part) { store(to + l, inside ? exp(at(from + l, part)) : same); });
        };
    }
};

// Tokens forwards from `begin`, or backwards from the one before `end`; later: what belongs to the one after it.
template <class Each>
static auto onwards(int64_t begin, Each each) {
    return [=](int64_t i, auto* part) { each(begin + i, part); };
}
template <class Each>
static auto backwards(int64_t end, Each each) {
    return [=](int64_t i, auto* part) { each(end - 1 - i, part); };
}
template <class Each>
static auto later(int64_t end, Each each) {
    return [=](int64_t i, auto* part) { each(end - i, part); };
}

template <class T>
static void forward(const T* query, const T* key, const T* value, const float* decay, const int32_t* document, const uint8_t* goes_on,
                    const float* initial, T* y, float* last, Shape s, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.h; unit++) {
        Head head(s, unit, document, goes_on, decay);
        std::vector<float> state(s.k * 4 * LANES);
        in_slices(s.v, [&](int64_t first, int64_t count, auto width) {
            using W = decltype(width);
            clear(state.data(), s.k * W::lanes);
            if (initial) move<false, false>(initial + head.state(), state.data(), s.k, first, count, W::lanes, s.v);
            sweep<W::vectors, W::block, Decay::ROWS>(
                s.t, s.k, state.data(), head.keys(key, 0, s.k), head.values(value, first, count), head.keys(query, 0, s.k),
                head.decays(0, s.k), [&](int64_t i, const float* from) {
                    T* to = y + head.value(i) + first;
                    lanes(count, [&](int64_t l, auto part) { put(to + l, head.kind[i] ? at(from + l, part) : V{}, part); });
                });
            move<false, true>(last + head.state(), state.data(), s.k, first, count, W::lanes, s.v);
        });
    }
}

template <class T>
static void backward(const T* query, const T* key, const T* value, const float* decay, const int32_t* document, const uint8_t* goes_on,
                     const float* initial, const T* dy, const float* dlast, T* dquery, T* dkey, T* dvalue, float* ddecay, float* dinitial,
                     Shape s, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.h; unit++) {
        Head head(s, unit, document, goes_on, decay);
        const auto& kind = head.kind;
        std::vector<float> state((s.k > s.v ? s.k : s.v) * 4 * LANES);
        int64_t sections = (s.t + SECTION - 1) / SECTION;
        std::vector<float> begins((sections + 1) * s.v * 4 * LANES);  // the states before the sections and after the last
        in_slices(s.k, [&](int64_t first, int64_t count, auto width) {
            using W = decltype(width);
            int64_t size = s.v * W::lanes;
            auto length = [&](int64_t c) { return c + 1 < sections ? SECTION : s.t - c * SECTION; };
            auto decays = head.decays(first, count);
            clear(state.data(), size);
            if (initial) move<true, false>(initial + head.state(), state.data(), s.v, first, count, W::lanes, s.v);
            for (int64_t c = 0; c < sections; c++) {
                memcpy(begins.data() + c * size, state.data(), size * sizeof(float));
                int64_t begin = c * SECTION;
                sweep<W::vectors, W::block, Decay::LANES>(
                    length(c), s.v, state.data(), onwards(begin, head.values(value, 0, s.v)), onwards(begin, head.keys(key, first, count)),
                    onwards(begin, head.values(dy, 0, s.v)), onwards(begin, decays), onwards(begin, [&](int64_t i, const float* part) {
                        int64_t place = head.key(i) + first;
                        lanes(count, [&](int64_t l, auto some) {
                            V dq = kind[i] ? at(part + l, some) : V{};
                            put(dquery + place + l, dq, some);
                            put(ddecay + place + l, kind[i] ? dq * at(query + place + l, some) : V{}, some);  // for the way back
                        });
                    }));
            }
            memcpy(begins.data() + sections * size, state.data(), size * sizeof(float));
            clear(state.data(), size);
            if (dlast) move<true, false>(dlast + head.state(), state.data(), s.v, first, count, W::lanes, s.v);
            float onward[W::lanes], factor[W::lanes];  // the gradient of the log decay before the token after the one at hand
            auto product = [&](int64_t c) {
                for (int64_t l = 0; l < W::lanes; l += LANES) {
                    V total = V{};
                    for (int64_t r = 0; r < s.v; r++)
                        total += load(state.data() + r * W::lanes + l) * load(begins.data() + c * size + r * W::lanes + l);
                    store(onward + l, total);
                }
            };
            product(sections);
            for (int64_t c = sections - 1; c >= 0; c--) {
                int64_t begin = c * SECTION, end = begin + length(c);
                sweep<W::vectors, W::block, Decay::LANES>(
                    length(c), s.v, state.data(), backwards(end, head.values(dy, 0, s.v)), backwards(end, head.keys(query, first, count)),
                    backwards(end, head.values(value, 0, s.v)), later(end, decays), backwards(end, [&](int64_t i, const float* part) {
                        int64_t place = head.key(i) + first;
                        lanes(count, [&](int64_t l, auto some) {
                            V dk = kind[i] ? at(part + l, some) : V{};
                            put(dkey + place + l, dk, some);
                            V now = kind[i] ? load(onward + l) + at(ddecay + place + l, some) - dk * at(key + place + l, some)
                                            : load(onward + l);
                            store(onward + l, kind[i] == FRESH ? V{} : now);
                            put(ddecay + place + l, kind[i] == INSIDE ? now : V{}, some);
                        });
                    }));
                product(c);
                decays(begin, factor);
                lanes(count, [&](int64_t l, auto some) {
                    V now = load(onward + l) * load(factor + l);
                    store(onward + l, now);
                    if (kind[begin] == INSIDE) put(ddecay + head.key(begin) + first + l, now, some);
                });
            }
        });
        in_slices(s.v, [&](int64_t first, int64_t count, auto width) {
            using W = decltype(width);
            clear(state.data(), s.k * W::lanes);
            if (dlast) move<false, false>(dlast + head.state(), state.data(), s.k, first, count, W::lanes, s.v);
            sweep<W::vectors, W::block, Decay::ROWS>(
                s.t, s.k, state.data(), backwards(s.t, head.keys(query, 0, s.k)), backwards(s.t, head.values(dy, first, count)),
                backwards(s.t, head.keys(key, 0, s.k)), later(s.t, head.decays(0, s.k)), backwards(s.t, [&](int64_t i, const float* part) {
                    T* to = dvalue + head.value(i) + first;
                    lanes(count, [&](int64_t l, auto some) { put(to + l, kind[i] ? at(part + l, some) : V{}, some); });
                }));
            if (!dinitial) return;
            std::vector<float> factor(whole(s.k), 1.0f);
            if (s.t) head.decays(0, s.k)(0, factor.data());
            for (int64_t r = 0; r < s.k; r++)
                for (int64_t l = 0; l < W::lanes; l++) state[r * W::lanes + l] *= factor[r];
            move<false, true>(dinitial + head.state(), state.data(), s.k, first, count, W::lanes, s.v);
        });
    }
}

#define BOTH(T, letter)                                                                                                                  \
    extern "C" void forward_##letter(const T* query, const T* key, const T* value, const float* decay, const int32_t* doc,               \
                                     const uint8_t* goes_on, const float* initial, T* y, float* last, int64_t b, int64_t t, int64_t h,   \
                                     int64_t k, int64_t v, int threads) {                                                                \
        forward(query, key, value, decay, doc, goes_on, initial, y, last, Shape{b, t, h, k, v}, threads);                                \
    }                                                                                                                                    \
    extern "C" void backward_##letter(const T* query, const T* key, const T* value, const float* decay, const int32_t* doc,              \
                                      const uint8_t* goes_on, const float* initial, const T* dy, const float* dlast, T* dquery, T* dkey, \
                                      T* dvalue, float* ddecay, float* dinitial, int64_t b, int64_t t, int64_t h, int64_t k, int64_t v,  \
                                      int threads) {                                                                                     \
        backward(query, key, value, decay, doc, goes_on, initial, dy, dlast, dquery, dkey, dvalue, ddecay, dinitial,                     \
                 Shape{b, t, h, k, v}, threads);                                                                                         \
    }
BOTH(float, f)
BOTH(bf16, b)
