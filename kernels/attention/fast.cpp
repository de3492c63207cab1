// Softmax attention over sequences of any lengths, forward and backward, in blocks of queries and keys
// (FlashAttention-2, arXiv:2307.08691).
//
// Scores are computed transposed, keys by queries: the lanes of a vector are queries, so no maximum, sum or delta crosses lanes, and in the
// backward pass probabilities and their gradients are left factors of the products for keys and values as they come. A unit of work is one
// sequence and one key head; its keys and values are laid out once for all query heads that share them.
#include <cmath>
#include <limits>

#include "factors.h"

constexpr float LOG2_E = 1.44269504f;
constexpr int64_t QUERIES = 64, KEYS = 64;  // of a block

// One operand [rows, tokens, heads, channels]: strides in elements, the last axis without gaps.
struct Heads {
    void* data;
    int64_t row, token, head;
};

// Sequence n as a plan tells it; its log sums lie at first * heads.
struct Planned {
    int64_t first, length, mask, mask_key;  // first: token in the order; mask: its first byte, -1 for none
};

struct Sequence {
    int64_t row, first_query, queries, first_key, keys, log_sum;
    const uint8_t* mask;
    int64_t mask_key;
    bool causal;
};

struct Problem {
    Heads q, k, v, y, dy, dq, dk, dv;
    const Planned* planned;  // null: each row is a sequence
    const int64_t* order;    // place of each token of the sequences in the operands' one row; null: as they lie
    const uint8_t* mask;     // the queries of a key without gaps
    const float* slopes;     // one a query head, or null
    float* log_sum;          // of powers of two
    int64_t count, heads, groups, channels, values, queries, keys;
    int64_t mask_row, mask_head, mask_key, causal, window, sinks, tiles;  // window 0: none; tiles: AMX where there is any
    float scale, cap;                                              // cap 0: none

    Sequence sequence(int64_t n) const {
        if (!planned)
            return {n, 0, queries, 0, keys, n * queries * heads, mask ? mask + n * mask_row : nullptr, mask_key, causal != 0};
        const Planned& s = planned[n];
        const bool masked = s.mask >= 0;
        return {0, s.first, s.length, s.first, s.length, s.first * heads, masked ? mask + s.mask : nullptr, s.mask_key, causal && !masked};
    }
};

// Rows of channels of one head of a sequence.
template <class X>
struct Rows {
    X* data;
    int64_t token;
    const int64_t* order;
    X* operator[](int64_t i) const { return data + (order ? order[i] : i) * token; }
};
template <class X>
INLINE Rows<X> rows(const Problem& p, const Heads& x, int64_t row, int64_t first, int64_t head) {
    X* data = static_cast<X*>(x.data) + row * x.row + head * x.head;
    return p.order ? Rows<X>{data, x.token, p.order + first} : Rows<X>{data + first * x.token, x.token, nullptr};
}

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// 2^x within 1e-7, exactly 1 for 0; 0 for -infinity, NaN for NaN.
INLINE V power_of_two(V x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    V y = (V)_mm512_max_ps(_mm512_set1_ps(-1000.0f), (__m512)x);  // the bound stands first: where x is NaN, the second operand is taken
    V part = (V)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    V y = x < -126.0f ? splat(-126.0f) : x;
    I whole = __builtin_convertvector(y, I);
    whole -= (I)(__builtin_convertvector(whole, V) > y) & 1;
    V part = y - __builtin_convertvector(whole, V);
#endif
    V p = splat(1.867130076e-3f);
    p = p * part + 9.017030305e-3f;
    p = p * part + 5.579991312e-2f;
    p = p * part + 2.401644501e-1f;
    p = p * part + 6.931513118e-1f;
    p = p * part + 1.0f;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return (V)_mm512_scalef_ps((__m512)p, (__m512)y);
#else
    return x < -126.0f ? V{} : p * (V)((whole + 127) << 23);
#endif
}

// The logarithm to base 2 of normal x, within 1e-7 of it or of 1.
APART V log_two(V x) {
    I exponent = ((I)x - 0x3f3504f3) >> 23;  // of x over a number within sqrt(1/2) and sqrt(2)
    V m = (V)((I)x - (exponent << 23));
    V t = (m - 1.0f) / (m + 1.0f), square = t * t;
    V series = ((square * (1.0f / 7) + (1.0f / 5)) * square + (1.0f / 3)) * square + 1.0f;
    return __builtin_convertvector(exponent, V) + t * series * (2 * LOG2_E);
}

INLINE V tanh(V x) {
    V size = x < 0.0f ? -x : x;
    V e = exp(size * -2.0f);
    V y = (1.0f - e) * reciprocal(1.0f + e);
    y = x < 0.0f ? -y : y;
    return size < 0.02f ? x * (1.0f - x * x * (1.0f / 3.0f)) : y;
}

INLINE void fill(float* data, int64_t count) { memset(data, 0, count * sizeof(float)); }
INLINE void copy(const float* from, float* to) { memcpy(to, from, sizeof(V)); }
INLINE void copy(const bf16* from, bf16* to) { memcpy(to, from, 64); }
INLINE void copy(const bf16* from, float* to) { store(to, load(from)); }

// Rows lie far apart, which the hardware does not foresee.
constexpr int64_t AHEAD = 8;
template <int WRITE, class X>
INLINE void prefetch(const X* row, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 64 / sizeof(X)) __builtin_prefetch(row + c, WRITE, 3);
}

// Rows first .. first + count as a left factor [tiles x depth], zeros beyond.
template <class E, class X>
APART void gather(const Rows<const X>& x, int64_t first, int64_t count, int64_t channels, Tiles<typename E::T> left, int64_t tiles) {
    typedef typename E::T T;
    const int64_t depth = ceil_div(channels, E::DEPTH);
    for (int64_t i = 0; i < LANES * tiles; i++) {
        const X* from = i < count ? x[first + i] : nullptr;
        if (i + AHEAD < count) prefetch<0>(x[first + i + AHEAD], channels);
        for (int64_t d = 0; d < depth; d++) {
            T* to = left.at(i / LANES, d) + i % LANES * E::DEPTH;
            const int64_t n = i < count ? channels - d * E::DEPTH : 0;
            if (n >= E::DEPTH) {
                copy(from + d * E::DEPTH, to);
                continue;
            }
            for (int64_t c = 0; c < E::DEPTH; c += LANES) {
                const int64_t some = std::min<int64_t>(LANES, n - c);
                store(to + c, some > 0 ? load_some(from + d * E::DEPTH + c, some) : V{});
            }
        }
    }
}
// Left factor of X [rows x channels] -> right factor of X^T, tile by tile.
template <class T>
APART void turn(Tiles<T> from, Tiles<T> to, int64_t tiles, int64_t depth) {
    for (int64_t i = 0; i < tiles; i++)
        for (int64_t d = 0; d < depth; d++) transpose(from.words(i, d), to.words(i, d));
}
// Left factor of X [rows x channels] -> right factor of X itself: over channels, along rows. turned: left factor of X^T instead.
template <class E, bool TURNED>
APART void lay_below(Tiles<typename E::T> from, Tiles<typename E::T> to, int64_t row_steps, int64_t channels) {
    typedef typename E::T T;
    alignas(64) T tile[Tiles<T>::SIZE];
    for (int64_t step = 0; step < row_steps; step++)
        for (int64_t c = 0; c < ceil_div(channels, LANES); c++) {
            const T* tiles[2] = {from.at(step * E::PAIR, c / E::PAIR), from.at(step * E::PAIR + E::PAIR - 1, c / E::PAIR)};
            E::pair(tiles, c % E::PAIR, TURNED ? tile : to.at(c, step));
            if constexpr (TURNED) transpose(reinterpret_cast<float*>(tile), to.words(c, step));
        }
}
// Rows of a run of tiles side by side, `step` tiles apart: LANES, or as many as `count`.
template <class X>
APART void scatter(const float* tiles, int64_t step, const Rows<X>& x, int64_t row, int64_t count, int64_t channels) {
    for (int64_t i = 0; i < std::min<int64_t>(LANES, count); i++) {
        X* to = x[row + i];
        if (i + AHEAD < count) prefetch<1>(x[row + i + AHEAD], channels);
        const float* from = tiles + LANES * i;
        lanes(channels, [&](int64_t c, auto part) {
            put(to + c, load(from), part);
            from += step * WORDS;
        });
    }
}

typedef uint8_t Bytes __attribute__((vector_size(LANES)));
INLINE bool any(Bytes x) {
    uint64_t halves[2] = {};
    memcpy(halves, &x, LANES);
    return halves[0] | halves[1];
}

// How a tile of scores is seen: not at all, in part, or by every query.
enum Sight { HIDDEN, PART, WHOLE };

// How the scores of one head of one sequence are made of products, and which of them are seen. Held by value where loops run: what is
// written in between can then not be one of its fields.
struct Scores {
    int64_t queries, keys, offset, causal, window, sinks, mask_key;  // offset: where the first query stands among the keys
    const uint8_t* mask;
    float scale, to_cap, from_cap, slope;  // powers are of two, so scores are times log2(e)
    bool plain;                                         // neither caps nor slopes

    Scores(const Problem& p, const Sequence& s, int64_t head)
        : queries(s.queries), keys(s.keys), offset(s.keys - s.queries), causal(s.causal), window(p.window), sinks(p.sinks),
          mask_key(s.mask_key), mask(s.mask ? s.mask + head * p.mask_head : nullptr), scale(p.scale * LOG2_E),
          to_cap(p.cap > 0 ? p.scale / p.cap : 0.0f), from_cap(p.cap * LOG2_E), slope(p.slopes ? p.slopes[head] * LOG2_E : 0.0f),
          plain(!p.slopes && !(p.cap > 0)) {}

    // Keys begin to end can be seen by queries first .. last.
    int64_t begin(int64_t first) const { return window && !sinks ? std::max<int64_t>(0, first + offset - window + 1) : 0; }
    int64_t end(int64_t last) const { return causal ? std::min(keys, last + offset + 1) : keys; }

    Sight sight(int64_t key, int64_t count, int64_t query, int64_t query_count) const {
        const int64_t first = query + offset, last = first + query_count - 1, end = key + count;
        if (key >= keys || query >= queries || (causal && last < key)) return HIDDEN;
        if (window && first - (end - 1) >= window && key >= sinks) return HIDDEN;
        const bool near = !window || last - key < window || end <= sinks;
        const Sight told = mask ? by_mask(key, std::min(end, keys), query, query_count) : WHOLE;
        return told == WHOLE && (end > keys || (causal && first < end - 1) || !near) ? PART : told;
    }
    // What the mask says of keys key .. end: what is causal in part, or sees its own time alone, hides most tiles.
    Sight by_mask(int64_t key, int64_t end, int64_t query, int64_t query_count) const {
        Bytes some{}, all = ~some;
        for (; key < end; key++)
            for (int64_t at = query; at < std::min(query + query_count, queries); at += LANES) {
                const Bytes seen = seen_of(key, at);
                some |= seen, all &= seen;
            }
        return !any(some) ? HIDDEN : any(all == 0) ? PART : WHOLE;
    }
    // Of LANES queries from here on whether they see the key by the mask; not 0 for yes, 0 beyond the last.
    Bytes seen_of(int64_t key, int64_t query) const {
        Bytes bytes{};
        const uint8_t* from = mask + key * mask_key + query;
        if (query + LANES <= queries) memcpy(&bytes, from, LANES);
        else memcpy(&bytes, from, std::max<int64_t>(0, queries - query));
        return bytes;
    }
};

// What decides over a score: scaled, capped, with the distance taken off; minus infinity where unseen. bend: the slope of the cap.
template <bool ALL_SEEN, bool PLAIN>
INLINE V score(const Scores& of, V raw, int64_t key, int64_t query, V* bend) {
    V z = raw * of.scale;
    if constexpr (ALL_SEEN && PLAIN) return z;
    const I distance = numbered() + static_cast<int32_t>(query + of.offset - key);
    if constexpr (!PLAIN) {
        *bend = splat(1.0f);
        if (of.to_cap > 0) {
            const V y = tanh(raw * of.to_cap);
            *bend = 1.0f - y * y;
            z = y * of.from_cap;
        }
        const V far = __builtin_convertvector(distance, V);
        z -= (far < 0.0f ? -far : far) * of.slope;
    }
    if constexpr (ALL_SEEN) return z;
    constexpr int32_t ANY = std::numeric_limits<int32_t>::max();
    const int32_t low = of.causal ? 0 : -ANY, high = of.window && key >= of.sinks ? static_cast<int32_t>(of.window) : ANY;
    I seen = (distance >= low) & (distance < high) & (key < of.keys ? -1 : 0);
    if (of.mask && key < of.keys) seen &= __builtin_convertvector(of.seen_of(key, query), I) != 0;
    return seen ? z : splat(-INFINITY);
}
template <class F>
INLINE void looking(Sight sight, bool plain, F run) {
    if (sight == WHOLE) plain ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
    else plain ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
}

template <class E>
struct Sizes {
    int64_t keys, key_steps, channel_steps, channel_tiles, value_steps, value_tiles;
    explicit Sizes(const Problem& p, int64_t longest)
        : keys(round_up(longest, E::DEPTH) / LANES), key_steps(ceil_div(longest, E::DEPTH)), channel_steps(ceil_div(p.channels, E::DEPTH)),
          channel_tiles(ceil_div(p.channels, LANES)), value_steps(ceil_div(p.values, E::DEPTH)), value_tiles(ceil_div(p.values, LANES)) {}
};

// Scores of a tile in place of products; returns the highest of each query.
template <bool ALL_SEEN, bool PLAIN>
APART V settle(const Scores of, float* tile, int64_t key, int64_t query) {
    V high = splat(-INFINITY), bend;
    for (int64_t r = 0; r < LANES; r++) {
        V z = score<ALL_SEEN, PLAIN>(of, load(tile + LANES * r), key + r, query, &bend);
        high = larger(high, z);
        store(tile + LANES * r, z);
    }
    return high;
}
// Whether a maximum has grown so far that sums over powers above the old one should be scaled down.
INLINE bool rises(V high, V top) { return largest((high > top + 8.0f) ? splat(1.0f) : V{}) > 0; }
INLINE V finite(V x) { return x == -INFINITY ? V{} : x; }
APART void scale_rows(float* tile, V factor) {
    for (int64_t r = 0; r < LANES; r++) store(tile + LANES * r, load(tile + LANES * r) * factor);
}
// Powers of DEPTH keys' scores as a tile of a right factor; returns their sum.
template <class E>
APART V raise(Tiles<float> scores, typename E::T* to, V shift) {
    V sums[2] = {};
    for (int64_t r = 0; r < E::DEPTH; r += E::PAIR) {
        V pair[E::PAIR];
        for (int64_t side = 0; side < E::PAIR; side++) {
            pair[side] = power_of_two(load(scores.at((r + side) / LANES, 0) + (r + side) % LANES * LANES) - shift);
            sums[E::PAIR == 2 ? side : r % 2] += pair[side];
        }
        E::put_right(to + r / E::PAIR * LANES * E::PAIR, pair);
    }
    return sums[0] + sums[1];
}

template <class E, class X>
static void forward_unit(const Problem& p, const Sequence& s, int64_t group, Room& room) {
    typedef typename E::T T;
    const Sizes<E> size(p, s.keys);
    const int64_t steps = std::max(size.channel_steps, size.value_steps), shared = p.heads / p.groups;
    constexpr int64_t TILES = QUERIES / LANES, BLOCK_STEPS = KEYS / E::DEPTH;
    room.reset();
    auto k_left = room.tiles<T>(size.keys, size.channel_steps);
    Tiles<T> v_below{room.take<T>(size.key_steps * size.value_tiles * Tiles<T>::SIZE), 1, size.value_tiles};  // left factor of V^T
    auto raw = room.tiles<T>(E::PAIR, steps);
    auto q_left = room.tiles<T>(TILES, size.channel_steps), q_right = room.tiles<T>(TILES, size.channel_steps);
    auto sums = room.tiles<float>(size.value_tiles, TILES), scores = room.tiles<float>(KEYS / LANES, TILES);
    auto powers = room.tiles<T>(TILES, BLOCK_STEPS);

    gather<E, X>(rows<const X>(p, p.k, s.row, s.first_key, group), 0, s.keys, p.channels, k_left, size.keys);
    const auto v = rows<const X>(p, p.v, s.row, s.first_key, group);
    for (int64_t step = 0; step < size.key_steps; step++) {
        gather<E, X>(v, step * E::DEPTH, std::min(E::DEPTH, s.keys - step * E::DEPTH), p.values, raw, E::PAIR);
        lay_below<E, true>(raw, v_below.from(0, step), 1, p.values);
    }
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        const auto q = rows<const X>(p, p.q, s.row, s.first_query, head);
        const auto y = rows<X>(p, p.y, s.row, s.first_query, head);
        float* log_sum = p.log_sum + s.log_sum + head * s.queries;
        const Scores of(p, s, head);
        for (int64_t query = 0; query < s.queries; query += QUERIES) {
            const int64_t count = std::min(QUERIES, s.queries - query), tiles = ceil_div(count, LANES);
            gather<E, X>(q, query, count, p.channels, q_left, tiles);
            turn(q_left, q_right, tiles, size.channel_steps);
            V top[TILES], total[TILES];
            for (int64_t j = 0; j < TILES; j++) top[j] = splat(-INFINITY), total[j] = V{};
            fill(sums.data, size.value_tiles * TILES * WORDS);
            const int64_t end = of.end(query + count - 1);
            for (int64_t key = of.begin(query) / E::DEPTH * E::DEPTH; key < end; key += KEYS) {
                Sight sights[KEYS / LANES][TILES];
                int64_t first = KEYS / E::DEPTH, last = -1;  // of the steps of which something is seen
                for (int64_t i = 0; i < ceil_div(std::min(KEYS, end - key), E::DEPTH) * E::PAIR; i++)
                    for (int64_t j = 0; j < tiles; j++)
                        if ((sights[i][j] = of.sight(key + LANES * i, LANES, query + LANES * j, LANES)) != HIDDEN)
                            first = std::min(first, i / E::PAIR), last = i / E::PAIR;
                if (first > last) continue;
                const int64_t depth = last - first + 1, key_tiles = depth * E::PAIR, skipped = first * E::PAIR;
                const int64_t from = key + first * E::DEPTH;
                multiply<E, false>(scores, k_left.from(from / LANES, 0), q_right, key_tiles, tiles, size.channel_steps);
                for (int64_t j = 0; j < tiles; j++) {
                    V high = top[j];
                    for (int64_t i = 0; i < key_tiles; i++)
                        looking(sights[skipped + i][j], of.plain, [&](auto all_seen, auto plain) {
                            auto* run = settle<decltype(all_seen)::value, decltype(plain)::value>;
                            high = larger(high, run(of, scores.at(i, j), from + LANES * i, query + LANES * j));
                        });
                    if (rises(high, top[j])) {
                        const V shrink = power_of_two(top[j] - finite(high));
                        top[j] = high;
                        total[j] *= shrink;
                        for (int64_t c = 0; c < size.value_tiles; c++) scale_rows(sums.at(c, j), shrink);
                    }
                    const V shift = finite(top[j]);
                    for (int64_t d = 0; d < depth; d++) total[j] += raise<E>(scores.from(d * E::PAIR, j), powers.at(j, d), shift);
                }
                multiply<E, true>(sums, v_below.from(0, from / E::DEPTH), powers, size.value_tiles, tiles, depth);
            }
            for (int64_t j = 0; j < tiles; j++) {
                const int64_t left = count - LANES * j;
                const I empty = total[j] <= 0.0f;
                const V inverse = empty ? V{} : 1.0f / total[j];
                const V logarithm = empty ? splat(INFINITY) : top[j] + log_two(total[j]);  // infinity: all powers will be 0
                if (left >= LANES) store(log_sum + query + LANES * j, logarithm);
                else store_some(log_sum + query + LANES * j, logarithm, left);
                for (int64_t c = 0; c < size.value_tiles; c++) {
                    scale_rows(sums.at(c, j), inverse);
                    transpose(sums.at(c, j), sums.at(c, j));
                }
                scatter(sums.at(0, j), TILES, y, query + LANES * j, left, p.values);
            }
        }
    }
}

// sum over channels of y dy, which is that of the powers times their slopes.
template <class X>
APART void pulls(const Rows<const X>& y, const Rows<const X>& dy, int64_t first, int64_t count, int64_t channels, float* to) {
    for (int64_t i = 0; i < count; i++) {
        const X *a = y[first + i], *b = dy[first + i];
        if (i + AHEAD < count) prefetch<0>(y[first + i + AHEAD], channels);
        V pull = V{};
        lanes(channels, [&](int64_t c, auto part) { pull += at(a + c, part) * at(b + c, part); });
        to[i] = sum(pull);
    }
    for (int64_t i = count; i < round_up(count, 32); i++) to[i] = 0.0f;
}

// DEPTH keys by DEPTH queries: products and the slopes of the powers become powers p and the slopes of the products,
// p (slope - delta) scale, the latter as a left and as a right factor.
template <class E, bool ALL_SEEN, bool PLAIN>
APART void differentiate(const Scores of, const float scale, int64_t key, int64_t query, Tiles<float> scores, Tiles<float> slopes,
                          const float* log_sums, const float* deltas, Tiles<typename E::T> p_left, Tiles<typename E::T> d_left,
                          Tiles<typename E::T> d_right) {
    V log_sum[E::PAIR], delta[E::PAIR];
    for (int64_t half = 0; half < E::PAIR; half++) log_sum[half] = load(log_sums + LANES * half), delta[half] = load(deltas + LANES * half);
    for (int64_t r = 0; r < E::DEPTH; r += E::PAIR) {
        V turned[E::PAIR][E::PAIR];
        for (int64_t side = 0; side < E::PAIR; side++) {
            const int64_t i = r + side, tile = i / LANES, row = i % LANES;
            V power[E::PAIR], straight[E::PAIR];
            for (int64_t half = 0; half < E::PAIR; half++) {
                V bend, z = score<ALL_SEEN, PLAIN>(of, load(scores.at(tile, half) + LANES * row), key + i, query + LANES * half, &bend);
                power[half] = power_of_two(z - log_sum[half]);
                V d = power[half] * (load(slopes.at(tile, half) + LANES * row) - delta[half]) * scale;
                if constexpr (!PLAIN) d *= bend;
                straight[half] = turned[half][side] = d;
            }
            E::put_left(p_left.at(tile, 0) + row * E::DEPTH, power);
            E::put_left(d_left.at(tile, 0) + row * E::DEPTH, straight);
        }
        for (int64_t half = 0; half < E::PAIR; half++) E::put_right(d_right.at(half, 0) + r / E::PAIR * LANES * E::PAIR, turned[half]);
    }
}

template <class E, class X>
static void backward_unit(const Problem& p, const Sequence& s, int64_t group, Room& room) {
    typedef typename E::T T;
    const Sizes<E> size(p, s.keys);
    const int64_t steps = std::max(size.channel_steps, size.value_steps), shared = p.heads / p.groups;
    constexpr int64_t TILES = QUERIES / LANES, PARTS = QUERIES / E::DEPTH, STRIPS = KEYS / E::DEPTH;  // parts and strips: DEPTH queries, keys
    room.reset();
    auto k_left = room.tiles<T>(size.keys, size.channel_steps), v_left = room.tiles<T>(size.keys, size.value_steps);
    Tiles<T> k_below{room.take<T>(size.key_steps * size.channel_tiles * Tiles<T>::SIZE), 1, size.channel_tiles};  // left factor of K^T
    auto dk = room.tiles<float>(size.keys, size.channel_tiles), dv = room.tiles<float>(size.keys, size.value_tiles);
    auto raw = room.tiles<T>(TILES, steps), raw_dy = room.tiles<T>(TILES, steps);
    auto q_right = room.tiles<T>(TILES, size.channel_steps), dy_right = room.tiles<T>(TILES, size.value_steps);  // of Q^T, dY^T
    auto q_below = room.tiles<T>(size.channel_tiles, PARTS), dy_below = room.tiles<T>(size.value_tiles, PARTS);  // of Q, dY
    auto dq = room.tiles<float>(size.channel_tiles, TILES);                                                     // transposed
    auto scores = room.tiles<float>(E::PAIR, TILES), slopes = room.tiles<float>(E::PAIR, TILES);
    auto p_left = room.tiles<T>(E::PAIR, PARTS), d_left = room.tiles<T>(E::PAIR, PARTS);
    auto d_right = room.tiles<T>(TILES, STRIPS);
    float *log_sum = room.take<float>(QUERIES), *delta = room.take<float>(QUERIES);

    gather<E, X>(rows<const X>(p, p.k, s.row, s.first_key, group), 0, s.keys, p.channels, k_left, size.keys);
    lay_below<E, true>(k_left, k_below, size.key_steps, p.channels);
    gather<E, X>(rows<const X>(p, p.v, s.row, s.first_key, group), 0, s.keys, p.values, v_left, size.keys);
    fill(dk.data, size.keys * size.channel_tiles * WORDS);
    fill(dv.data, size.keys * size.value_tiles * WORDS);
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        const auto q = rows<const X>(p, p.q, s.row, s.first_query, head), y = rows<const X>(p, p.y, s.row, s.first_query, head);
        const auto dy = rows<const X>(p, p.dy, s.row, s.first_query, head);
        const auto dq_rows = rows<X>(p, p.dq, s.row, s.first_query, head);
        const float* kept = p.log_sum + s.log_sum + head * s.queries;
        const Scores of(p, s, head);
        for (int64_t query = 0; query < s.queries; query += QUERIES) {
            const int64_t count = std::min(QUERIES, s.queries - query), parts = ceil_div(count, E::DEPTH), tiles = parts * E::PAIR;
            gather<E, X>(q, query, count, p.channels, raw, tiles);
            turn(raw, q_right, tiles, size.channel_steps);
            lay_below<E, false>(raw, q_below, parts, p.channels);
            gather<E, X>(dy, query, count, p.values, raw_dy, tiles);
            turn(raw_dy, dy_right, tiles, size.value_steps);
            lay_below<E, false>(raw_dy, dy_below, parts, p.values);
            pulls<X>(y, dy, query, count, p.values, delta);
            for (int64_t i = 0; i < LANES * tiles; i++) log_sum[i] = i < count ? kept[query + i] : INFINITY;
            fill(dq.data, size.channel_tiles * TILES * WORDS);
            const int64_t end = of.end(query + count - 1);
            for (int64_t key = of.begin(query) / E::DEPTH * E::DEPTH; key < end; key += KEYS) {
                const int64_t strips = ceil_div(std::min(KEYS, end - key), E::DEPTH);
                int64_t begins[STRIPS], ends[STRIPS];  // of the parts that see something of a strip
                for (int64_t strip = 0; strip < strips; strip++) {
                    const int64_t first = key + strip * E::DEPTH;
                    Sight sights[PARTS];
                    int64_t from = parts, to = 0;
                    for (int64_t part = 0; part < parts; part++)
                        if ((sights[part] = of.sight(first, E::DEPTH, query + part * E::DEPTH, E::DEPTH)) != HIDDEN) {
                            from = std::min(from, part);
                            to = part + 1;
                        }
                    begins[strip] = from, ends[strip] = to;
                    if (from >= to) continue;
                    const int64_t from_tile = from * E::PAIR, row = first / LANES;
                    const int64_t seen_tiles = (to - from) * E::PAIR;
                    multiply<E, false>(scores.from(0, from_tile), k_left.from(row, 0), q_right.from(from_tile, 0), E::PAIR, seen_tiles,
                                       size.channel_steps);
                    multiply<E, false>(slopes.from(0, from_tile), v_left.from(row, 0), dy_right.from(from_tile, 0), E::PAIR, seen_tiles,
                                       size.value_steps);
                    for (int64_t part = from; part < to; part++) {
                        const int64_t j = part * E::PAIR;
                        looking(sights[part], of.plain, [&](auto all_seen, auto plain) {
                            differentiate<E, decltype(all_seen)::value, decltype(plain)::value>(
                                of, p.scale, first, query + LANES * j, scores.from(0, j), slopes.from(0, j), log_sum + LANES * j, delta + LANES * j,
                                p_left.from(0, part), d_left.from(0, part), d_right.from(j, strip));
                        });
                    }
                    multiply<E, true>(dv.from(row, 0), p_left.from(0, from), dy_below.from(0, from), E::PAIR, size.value_tiles, to - from);
                    multiply<E, true>(dk.from(row, 0), d_left.from(0, from), q_below.from(0, from), E::PAIR, size.channel_tiles, to - from);
                }
                for (int64_t part = 0; part < parts; part++)
                    for (int64_t strip = 0, after; strip < strips; strip = after) {  // runs of strips that the part sees
                        after = strip + 1;
                        const auto sees = [&](int64_t i) { return begins[i] <= part && part < ends[i]; };
                        if (!sees(strip)) continue;
                        while (after < strips && sees(after)) after++;
                        multiply<E, true>(dq.from(0, part * E::PAIR), k_below.from(0, key / E::DEPTH + strip),
                                          d_right.from(part * E::PAIR, strip), size.channel_tiles, E::PAIR, after - strip);
                    }
            }
            for (int64_t j = 0; j < tiles; j++) {
                for (int64_t c = 0; c < size.channel_tiles; c++) transpose(dq.at(c, j), dq.at(c, j));
                scatter(dq.at(0, j), TILES, dq_rows, query + LANES * j, count - LANES * j, p.channels);
            }
        }
    }
    const auto dk_rows = rows<X>(p, p.dk, s.row, s.first_key, group), dv_rows = rows<X>(p, p.dv, s.row, s.first_key, group);
    for (int64_t i = 0; i < size.keys; i++) {
        scatter(dk.at(i, 0), 1, dk_rows, LANES * i, s.keys - LANES * i, p.channels);
        scatter(dv.at(i, 0), 1, dv_rows, LANES * i, s.keys - LANES * i, p.values);
    }
}

template <class E, class X>
static void run(const Problem& p, bool forward, int threads) {
    const int64_t units = p.count * p.groups, share = threads > 1 ? ceil_div(units, 16 * threads) : units;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Room room;
        E::begin();
#pragma omp for schedule(dynamic, share)
        for (int64_t unit = 0; unit < units; unit++) {
            const Sequence s = p.sequence(unit / p.groups);
            if (forward) forward_unit<E, X>(p, s, unit % p.groups, room);
            else backward_unit<E, X>(p, s, unit % p.groups, room);
        }
        E::end();
    }
}

static void run_bf16(const Problem& p, bool forward, int threads) {
#if defined(HAS_TILES)
    if (p.tiles && Amx::granted()) return run<Amx, bf16>(p, forward, threads);
#endif
#if defined(__AVX512BF16__)
    run<Paired, bf16>(p, forward, threads);
#else
    run<Exact, bf16>(p, forward, threads);
#endif
}

extern "C" void forward_f(const Problem* p, int threads) { run<Exact, float>(*p, true, threads); }
extern "C" void backward_f(const Problem* p, int threads) { run<Exact, float>(*p, false, threads); }
extern "C" void forward_b(const Problem* p, int threads) { run_bf16(*p, true, threads); }
extern "C" void backward_b(const Problem* p, int threads) { run_bf16(*p, false, threads); }
