// The Mamba-2 recurrence as it reads, a head's state in the first-level cache. Forward and backward are one sweep in four roles:
//     S <- d S + left right^T,  out = S^T read        S: [rows, lanes]
//     y  = sweep(key, x; query)        rows: state channels, lanes: head channels
//     dC = sweep(x, key; dy)           the same states, transposed, so that no sum goes across lanes
//     dX = sweep(query, dy; key)       backwards in time: S is the gradient of the state
//     dB = sweep(dy, query; x)         the same, transposed
// with x standing for step * x. No state is kept between the passes. The decay's gradient needs none either: with s the running sum of
// log decays, ds_t = query_t dC_t - X_t dX_t, and the gradient of a log decay is the sum of ds from there to the document's end. So that
// such sums do not drift, each SECTION of tokens begins with their exact value, decay times the product of state and gradient.
#include <vector>

#include "../documents.h"
#include "../sweep.h"

constexpr int64_t SECTION = 32;

struct Shape {
    int64_t b, t, h, p, g, n;
};

// One head of one row of the batch: where its numbers lie.
struct Head {
    Shape s;
    int64_t b, h, group;
    Head(const Shape& shape, int64_t row, int64_t head) : s(shape), b(row), h(head), group(head / (shape.h / shape.g)) {}
    int64_t x(int64_t i) const { return ((b * s.t + i) * s.h + h) * s.p; }
    int64_t key(int64_t i) const { return ((b * s.t + i) * s.g + group) * s.n; }
    int64_t step(int64_t i) const { return (b * s.t + i) * s.h + h; }
    int64_t state() const { return (b * s.h + h) * s.p * s.n; }
};

// What the state is multiplied with before each token is taken in: 0 where a document begins, 1 at padding.
static std::vector<float> decays(const Head& at_head, const float* step, float rate, const std::vector<Kind>& kind) {
    int64_t t = at_head.s.t;
    std::vector<float> decay(t);
    for (int64_t i = 0; i < t; i++) decay[i] = kind[i] == INSIDE ? step[at_head.step(i)] * rate : 0.0f;
    lanes(t, [&](int64_t i, auto part) { put(&decay[i], exp(at(&decay[i], part)), part); });
    for (int64_t i = 0; i < t; i++)
        if (kind[i] == FRESH) decay[i] = 0.0f;
    return decay;
}

template <class T>
static void forward(const T* x, const float* step, const float* rate, const T* key, const T* query, const int32_t* document,
                    const uint8_t* goes_on, const float* initial, T* y, float* last, Shape s, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.h; unit++) {
        Head head(s, unit / s.h, unit % s.h);
        auto kind = kinds(document + head.b * s.t, s.t, goes_on && goes_on[head.b]);
        auto decay = decays(head, step, rate[head.h], kind);
        std::vector<float> state(s.n * 4 * LANES);
        auto row = [&](const T* from) {
            return [=, &kind, &head](int64_t i, float* to) {
                if (kind[i]) fill(to, from + head.key(i), s.n, 1.0f);
                else clear(to, s.n);
            };
        };
        in_slices(s.p, [&](int64_t first, int64_t count, auto width) {
            using W = decltype(width);
            clear(state.data(), s.n * W::lanes);
            if (initial) move<true, false>(initial + head.state(), state.data(), s.n, first, count, W::lanes, s.n);
            sweep<W::vectors, W::block, Decay::ONE>(
                s.t, s.n, state.data(), row(key),
                [&](int64_t i, float* to) {
                    if (kind[i]) fill(to, x + head.x(i) + first, count, step[head.step(i)]);
                },
                row(query), [&](int64_t i, float* to) { *to = decay[i]; },
                [&](int64_t i, const float* from) {
                    T* to = y + head.x(i) + first;
                    lanes(count, [&](int64_t l, auto part) { put(to + l, kind[i] ? at(from + l, part) : V{}, part); });
                });
            move<true, true>(last + head.state(), state.data(), s.n, first, count, W::lanes, s.n);
        });
    }
}

// dkey, dquery: [shares, b, t, g, n], zero before, added up after; each share holds some of a group's heads.
template <class T>
static void backward(const T* x, const float* step, const float* rate, const T* key, const T* query, const int32_t* document,
                     const uint8_t* goes_on, const float* initial, const T* dy, const float* dlast, T* dx, float* dstep, float* drate,
                     float* dkey, float* dquery, float* dinitial, Shape s, int64_t shares, int threads) {
    int64_t together = s.h / s.g, in_share = (together + shares - 1) / shares;
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.g * shares; unit++) {
        int64_t share = unit % shares, group = unit / shares % s.g, b = unit / shares / s.g;
        int64_t begin = share * in_share, end = begin + in_share < together ? begin + in_share : together;
        auto kind = kinds(document + b * s.t, s.t, goes_on && goes_on[b]);
        float *dkey_share = dkey + share * s.b * s.t * s.g * s.n, *dquery_share = dquery + share * s.b * s.t * s.g * s.n;
        std::vector<float> state((s.n > s.p ? s.n : s.p) * 4 * LANES);
        for (int64_t h = group * together + begin; h < group * together + end; h++) {
            Head head(s, b, h);
            auto decay = decays(head, step, rate[h], kind);
            std::vector<float> ds(s.t), pull(s.t);
            int64_t sections = (s.t + SECTION - 1) / SECTION;
            std::vector<float> begins((sections + 1) * s.p * 4 * LANES);  // the states before the sections and after the last
            std::vector<double> exact(sections);
            double ends = 0;
            auto length = [&](int64_t c) { return c + 1 < sections ? SECTION : s.t - c * SECTION; };
            auto row_n = [&](const T* from) {
                return [=, &kind, &head](int64_t i, float* to) {
                    if (kind[i]) fill(to, from + head.key(i), s.n, 1.0f);
                    else clear(to, s.n);
                };
            };
            auto row_p = [&](const T* from, bool scaled) {
                return [=, &kind, &head](int64_t i, float* to) {
                    if (kind[i]) fill(to, from + head.x(i), s.p, scaled ? step[head.step(i)] : 1.0f);
                    else clear(to, s.p);
                };
            };
            auto slice_n = [&](const T* from, int64_t first, int64_t count) {
                return [=, &kind, &head](int64_t i, float* to) {
                    if (kind[i]) fill(to, from + head.key(i) + first, count, 1.0f);
                };
            };
            auto add = [&](float* to, const float* from, int64_t count) {
                lanes(count, [&](int64_t l, auto part) { put(to + l, at(to + l, part) + at(from + l, part), part); });
            };
            // a section forwards, and tokens backwards from the one before `end`, with the decay between each and the one after it
            auto from = [](int64_t begin, auto each) { return [=](int64_t i, auto* part) { each(begin + i, part); }; };
            auto before = [](int64_t end, auto each) { return [=](int64_t k, auto* part) { each(end - 1 - k, part); }; };
            auto later = [&](int64_t end) {
                return [&decay, end, t = s.t](int64_t k, float* to) { *to = end - k < t ? decay[end - k] : 1.0f; };
            };

            in_slices(s.n, [&](int64_t first, int64_t count, auto width) {
                using W = decltype(width);
                clear(state.data(), s.p * W::lanes);
                if (initial) move<false, false>(initial + head.state(), state.data(), s.p, first, count, W::lanes, s.n);
                int64_t size = s.p * W::lanes;
                for (int64_t c = 0; c < sections; c++) {
                    memcpy(begins.data() + c * size, state.data(), size * sizeof(float));
                    int64_t i0 = c * SECTION;
                    sweep<W::vectors, W::block, Decay::ONE>(
                        length(c), s.p, state.data(), from(i0, row_p(x, true)), from(i0, slice_n(key, first, count)),
                        from(i0, row_p(dy, false)), [&](int64_t i, float* to) { *to = decay[i0 + i]; }, from(i0, [&](int64_t i, const float* part) {
                            if (!kind[i]) return;
                            add(dquery_share + head.key(i) + first, part, count);
                            ds[i] += dot(part, query + head.key(i) + first, count);
                        }));
                }
                memcpy(begins.data() + sections * size, state.data(), size * sizeof(float));
                clear(state.data(), size);
                if (dlast) move<false, false>(dlast + head.state(), state.data(), s.p, first, count, W::lanes, s.n);
                ends += dot(state.data(), begins.data() + sections * size, size);
                for (int64_t c = sections - 1; c >= 0; c--) {
                    int64_t end = c * SECTION + length(c);
                    sweep<W::vectors, W::block, Decay::ONE>(
                        length(c), s.p, state.data(), before(end, row_p(dy, false)), before(end, slice_n(query, first, count)),
                        before(end, row_p(x, true)), later(end), before(end, [&](int64_t i, const float* part) {
                            if (kind[i]) add(dkey_share + head.key(i) + first, part, count);
                        }));
                    exact[c] += decay[c * SECTION] * dot(state.data(), begins.data() + c * size, size);
                }
            });
            in_slices(s.p, [&](int64_t first, int64_t count, auto width) {
                using W = decltype(width);
                clear(state.data(), s.n * W::lanes);
                if (dlast) move<true, false>(dlast + head.state(), state.data(), s.n, first, count, W::lanes, s.n);
                sweep<W::vectors, W::block, Decay::ONE>(
                    s.t, s.n, state.data(), before(s.t, row_n(query)), before(s.t, [&](int64_t i, float* to) {
                        if (kind[i]) fill(to, dy + head.x(i) + first, count, 1.0f);
                    }),
                    before(s.t, row_n(key)), later(s.t), before(s.t, [&](int64_t i, const float* found) {
                        T* to = dx + head.x(i) + first;
                        float factor = kind[i] ? step[head.step(i)] : 0.0f;
                        lanes(count, [&](int64_t l, auto part) { put(to + l, kind[i] ? at(found + l, part) * factor : V{}, part); });
                        if (kind[i]) pull[i] += dot(found, x + head.x(i) + first, count);
                    }));
                if (dinitial)
                    move<true, true>(dinitial + head.state(), state.data(), s.n, first, count, W::lanes, s.n, s.t ? decay[0] : 1.0f);
            });
            double onward = ends, total = 0;  // the gradient of the log decay before token i
            for (int64_t i = s.t - 1; i >= 0; i--) {
                float now = step[head.step(i)];
                onward += double(ds[i]) - double(now) * pull[i];
                if (i % SECTION == 0) onward = exact[i / SECTION];
                if (kind[i] == FRESH) onward = 0;
                dstep[head.step(i)] = kind[i] ? float(pull[i] + onward * rate[h]) : 0.0f;
                total += kind[i] ? onward * now : 0;
            }
            drate[b * s.h + h] = float(total);
        }
    }
}

#define BOTH(T, letter)                                                                                                                   \
    extern "C" void forward_##letter(const T* x, const float* step, const float* rate, const T* key, const T* query, const int32_t* doc,  \
                                     const uint8_t* goes_on, const float* initial, T* y, float* last, int64_t b, int64_t t, int64_t h,    \
                                     int64_t p, int64_t g, int64_t n, int threads) {                                                      \
        forward(x, step, rate, key, query, doc, goes_on, initial, y, last, Shape{b, t, h, p, g, n}, threads);                             \
    }                                                                                                                                     \
    extern "C" void backward_##letter(const T* x, const float* step, const float* rate, const T* key, const T* query, const int32_t* doc, \
                                      const uint8_t* goes_on, const float* initial, const T* dy, const float* dlast, T* dx, float* dstep, \
                                      float* drate, float* dkey, float* dquery, float* dinitial, int64_t b, int64_t t, int64_t h,         \
                                      int64_t p, int64_t g, int64_t n, int64_t shares, int threads) {                                     \
        backward(x, step, rate, key, query, doc, goes_on, initial, dy, dlast, dx, dstep, drate, dkey, dquery, dinitial,                   \
                 Shape{b, t, h, p, g, n}, shares, threads);                                                                               \
    }
BOTH(float, f)
BOTH(bf16, b)
