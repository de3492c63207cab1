// Softmax over a block of attention scores and its gradient, in place.
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "../lanes.h"

struct Block {
    int64_t n, heads, queries, keys, first_query, first_key;  // first_query: where the block's first query stands among the keys
    int64_t causal, window, mask_n, mask_head, mask_query;    // window 0: none; strides of the mask, whose last axis has no gaps
    float scale, cap;
};

INLINE V tanh(V x) {
    V size = x < 0.0f ? -x : x;
    V e = exp(size * -2.0f);
    V y = (1.0f - e) * reciprocal(1.0f + e);
    y = x < 0.0f ? -y : y;
    return size < 0.02f ? x * (1.0f - x * x * (1.0f / 3.0f)) : y;
}

// Keys begin to end are visible to a query but for what the mask hides.
struct Range {
    int64_t begin, end;
};
INLINE Range visible(const Block& s, int64_t query) {
    int64_t place = s.first_query + query - s.first_key;
    int64_t begin = s.window && place - s.window + 1 > 0 ? place - s.window + 1 : 0;
    int64_t end = s.causal && place + 1 < s.keys ? place + 1 : s.keys;
    return {begin < end ? begin : end, end > 0 ? end : 0};
}
INLINE const uint8_t* mask_row(const uint8_t* mask, const Block& s, int64_t n, int64_t head, int64_t query) {
    return mask + n * s.mask_n + head * s.mask_head + query * s.mask_query;
}
template <bool MASKED, class P>
INLINE V hidden(V x, const uint8_t* mask, P part, float instead) {
    if constexpr (!MASKED) return x;
    typedef uint8_t B __attribute__((vector_size(16)));
    B bytes{};
    if constexpr (std::is_same_v<P, All>) memcpy(&bytes, mask, sizeof bytes);
    else memcpy(&bytes, mask, part.count);
    return __builtin_convertvector(bytes, I) != 0 ? x : splat(instead);
}

template <bool MASKED, bool CAPPED, class T>
static void softmax(T* scores, const uint8_t* mask, float* log_sum, int64_t log_n, int64_t log_head, const Block& s, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.n * s.heads; unit++) {
        int64_t n = unit / s.heads, head = unit % s.heads;
        std::vector<float> powers(s.keys);
        for (int64_t query = 0; query < s.queries; query++) {
            T* row = scores + (unit * s.queries + query) * s.keys;
            Range range = visible(s, query);
            T* from = row + range.begin;
            int64_t count = range.end - range.begin;
            const uint8_t* seen = MASKED ? mask_row(mask, s, n, head, query) + range.begin : nullptr;
            float* e = powers.data();
            V high = splat(-INFINITY), total = V{};
            lanes(count, [&](int64_t i, auto part) {
                V z = at(from + i, part) * s.scale;
                if constexpr (CAPPED) z = s.cap * tanh(z / s.cap);
                z = within(hidden<MASKED>(z, seen + i, part, -INFINITY), part, -INFINITY);
                put(e + i, z, part);
                high = larger(high, z);
            });
            float top = largest(high), shift = top == -INFINITY ? 0.0f : top;
            lanes(count, [&](int64_t i, auto part) {
                V p = exp(at(e + i, part, -INFINITY) - shift);
                put(e + i, p, part);
                total += p;
            });
            float all = sum(total), inverse = all > 0.0f ? 1.0f / all : 0.0f;
            log_sum[n * log_n + head * log_head + query] = shift + std::log(all);
            lanes(count, [&](int64_t i, auto part) { put(from + i, at(e + i, part) * inverse, part); });
            memset(static_cast<void*>(row), 0, range.begin * sizeof(T));
            memset(static_cast<void*>(row + range.end), 0, (s.keys - range.end) * sizeof(T));
        }
    }
}

// scores become probabilities p, slopes (dp) the gradient of the raw scores: p (dp - sum p dp) scale, times the slope of the cap
template <bool MASKED, bool CAPPED, class T>
static void differentiate(T* scores, T* slopes, const uint8_t* mask, const float* log_sum, int64_t log_n, int64_t log_head, const Block& s,
                          int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.n * s.heads; unit++) {
        int64_t n = unit / s.heads, head = unit % s.heads;
        std::vector<float> bends(CAPPED ? s.keys : 0);
        for (int64_t query = 0; query < s.queries; query++) {
            int64_t place = (unit * s.queries + query) * s.keys;
            Range range = visible(s, query);
            int64_t count = range.end - range.begin;
            T *p_row = scores + place + range.begin, *d_row = slopes + place + range.begin;
            const uint8_t* seen = MASKED ? mask_row(mask, s, n, head, query) + range.begin : nullptr;
            float logarithm = log_sum[n * log_n + head * log_head + query];
            float shift = logarithm == -INFINITY ? INFINITY : logarithm;  // a query that sees nothing: all probabilities are zero
            V pull = V{};
            lanes(count, [&](int64_t i, auto part) {
                V z = at(p_row + i, part) * s.scale;
                if constexpr (CAPPED) {
                    V bend = tanh(z / s.cap);
                    put(&bends[i], 1.0f - bend * bend, part);
                    z = s.cap * bend;
                }
                V p = hidden<MASKED>(exp(z - shift), seen + i, part, 0.0f);
                put(p_row + i, p, part);
                pull += p * at(d_row + i, part);
            });
            float delta = sum(pull);
            lanes(count, [&](int64_t i, auto part) {
                V d = at(p_row + i, part) * (at(d_row + i, part) - delta) * s.scale;
                if constexpr (CAPPED) d *= at(&bends[i], part);
                put(d_row + i, d, part);
            });
            for (T* whole : {scores + place, slopes + place}) {
                memset(static_cast<void*>(whole), 0, range.begin * sizeof(T));
                memset(static_cast<void*>(whole + range.end), 0, (s.keys - range.end) * sizeof(T));
            }
        }
    }
}

#define BOTH(T, letter)                                                                                                                   \
    extern "C" void softmax_##letter(T* scores, const uint8_t* mask, float* log_sum, int64_t log_n, int64_t log_head, const Block* block, \
                                     int threads) {                                                                                       \
        auto run = mask ? (block->cap > 0 ? softmax<true, true, T> : softmax<true, false, T>)                                             \
                        : (block->cap > 0 ? softmax<false, true, T> : softmax<false, false, T>);                                          \
        run(scores, mask, log_sum, log_n, log_head, *block, threads);                                                                     \
    }                                                                                                                                     \
    extern "C" void differentiate_##letter(T* scores, T* slopes, const uint8_t* mask, const float* log_sum, int64_t log_n,                \
                                           int64_t log_head, const Block* block, int threads) {                                           \
        auto run = mask ? (block->cap > 0 ? differentiate<true, true, T> : differentiate<true, false, T>)                                 \
                        : (block->cap > 0 ? differentiate<false, true, T> : differentiate<false, false, T>);                              \
        run(scores, slopes, mask, log_sum, log_n, log_head, *block, threads);                                                             \
    }
BOTH(float, f)
BOTH(bf16, b)
