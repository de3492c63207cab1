// Softmax attention over sequences of any lengths, forward and backward, in blocks of queries and keys (FlashAttention-2, arXiv:2307.08691).
//
// Scores are computed transposed, keys by queries: the lanes of a vector are queries, so no maximum, sum or delta crosses lanes, and in the
// backward pass probabilities and their gradients are left factors of the products for keys and values as they come. A unit of work is one
// sequence and one key head; its keys and values are laid out once for all query heads that share them.
#include <cmath>
#include <limits>

#include "factors.h"

constexpr float LOG2_E = 1.44269504f;
constexpr int64_t QUERIES = 128, KEYS = 128, FORWARD_QUERIES = 32;  // of a block

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

// 2^x within 1e-7, exactly 1 for 0; 0 for -infinity.
INLINE V power_of_two(V x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    V y = (V)_mm512_max_ps((__m512)x, _mm512_set1_ps(-1000.0f));
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

INLINE V tanh(V x) {
    V size = x < 0.0f ? -x : x;
    V e = exp(size * -2.0f);
    V y = (1.0f - e) * reciprocal(1.0f + e);
    y = x < 0.0f ? -y : y;
    return size < 0.02f ? x * (1.0f - x * x * (1.0f / 3.0f)) : y;
}

INLINE void fill(float* data, int64_t count) { memset(data, 0, count * sizeof(float)); }
INLINE void copy(const float* from, float* to, int64_t n) { memcpy(to, from, n * sizeof(float)); }
INLINE void copy(const bf16* from, bf16* to, int64_t n) { memcpy(to, from, n * sizeof(bf16)); }
INLINE void copy(const bf16* from, float* to, int64_t n) {
    lanes(n, [&](int64_t i, auto part) { put(to + i, at(from + i, part), part); });
}

// Rows first .. first + count as a left factor [tiles x depth], zeros beyond.
template <class E, class X>
static void gather(const Rows<const X>& x, int64_t first, int64_t count, int64_t channels, Tiles<typename E::T> left, int64_t tiles) {
    typedef typename E::T T;
    const int64_t depth = ceil_div(channels, E::DEPTH);
    for (int64_t i = 0; i < 16 * tiles; i++) {
        const X* from = i < count ? x[first + i] : nullptr;
        for (int64_t d = 0; d < depth; d++) {
            T* to = left.at(i / 16, d) + i % 16 * E::DEPTH;
            const int64_t n = i < count ? std::min(E::DEPTH, channels - d * E::DEPTH) : 0;
            if (n == E::DEPTH) {
                copy(from + d * E::DEPTH, to, E::DEPTH);
                continue;
            }
            memset(static_cast<void*>(to), 0, 64);
            if (n) copy(from + d * E::DEPTH, to, n);
        }
    }
}
// Left factor of X [rows x channels] -> right factor of X^T, tile by tile.
template <class T>
static void turn(Tiles<T> from, Tiles<T> to, int64_t tiles, int64_t depth) {
    for (int64_t i = 0; i < tiles; i++)
        for (int64_t d = 0; d < depth; d++) transpose(from.words(i, d), to.words(i, d));
}
// Left factor of X [rows x channels] -> right factor of X itself: over channels, along rows. turned: left factor of X^T instead.
template <class E, bool TURNED>
static void lay_below(Tiles<typename E::T> from, Tiles<typename E::T> to, int64_t row_steps, int64_t channels) {
    typedef typename E::T T;
    alignas(64) T tile[Tiles<T>::SIZE];
    for (int64_t step = 0; step < row_steps; step++)
        for (int64_t c = 0; c < ceil_div(channels, 16); c++) {
            const T* tiles[2] = {from.at(step * E::PAIR, c / E::PAIR), from.at(step * E::PAIR + E::PAIR - 1, c / E::PAIR)};
            E::pair(tiles, c % E::PAIR, TURNED ? tile : to.at(c, step));
            if constexpr (TURNED) transpose(reinterpret_cast<float*>(tile), to.words(c, step));
        }
}
// A tile of 16 rows, as many as `count`, channels first ...
template <class X>
INLINE void scatter(const float* tile, const Rows<X>& x, int64_t row, int64_t count, int64_t channel, int64_t channels) {
    const int64_t n = std::min<int64_t>(16, channels - channel);
    for (int64_t i = 0; i < std::min<int64_t>(16, count); i++) {
        X* to = x[row + i] + channel;
        if (n == 16) store(to, load(tile + 16 * i));
        else put(to, load(tile + 16 * i), Some{n});
    }
}

// How a tile of scores is seen: not at all, in part, or by every query.
enum Sight { HIDDEN, PART, WHOLE };

// The scores of one head of one sequence.
struct Scores {
    const Problem& p;
    Sequence s;
    const uint8_t* mask;
    float slope, scale;
    int64_t offset;

    Scores(const Problem& problem, const Sequence& sequence, int64_t head)
        : p(problem), s(sequence), mask(sequence.mask ? sequence.mask + head * problem.mask_head : nullptr),
          slope(problem.slopes ? problem.slopes[head] : 0.0f), scale(problem.scale * LOG2_E), offset(sequence.keys - sequence.queries) {}

    // Keys begin to end can be seen by queries first .. last.
    int64_t begin(int64_t first) const { return p.window && !p.sinks ? std::max<int64_t>(0, first + offset - p.window + 1) : 0; }
    int64_t end(int64_t last) const { return s.causal ? std::min(s.keys, last + offset + 1) : s.keys; }

    Sight sight(int64_t key, int64_t keys, int64_t query, int64_t queries) const {
        const int64_t first = query + offset, last = first + queries - 1, end = key + keys;
        if (key >= s.keys || query >= s.queries || (s.causal && last < key)) return HIDDEN;
        if (p.window && first - (end - 1) >= p.window && key >= p.sinks) return HIDDEN;
        const bool near = !p.window || last - key < p.window || end <= p.sinks;
        return mask || end > s.keys || (s.causal && first < end - 1) || !near ? PART : WHOLE;
    }
};

// What decides over a score, in powers of two: scaled, capped, with the distance taken off; minus infinity where unseen.
template <bool WHOLE_TILE>
INLINE V score(const Scores& of, V raw, int64_t key, int64_t query, V* bend) {
    const Problem& p = of.p;
    V z = raw * of.scale;
    if (p.cap > 0) {
        const V y = tanh(raw * (p.scale / p.cap));
        *bend = 1.0f - y * y;
        z = y * (p.cap * LOG2_E);
    }
    if (WHOLE_TILE && of.slope == 0) return z;
    const I distance = I{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(query + of.offset - key);
    if (of.slope != 0) {
        const V far = __builtin_convertvector(distance, V);
        z -= (far < 0.0f ? -far : far) * (of.slope * LOG2_E);
    }
    if constexpr (WHOLE_TILE) return z;
    if (key >= of.s.keys) return splat(-INFINITY);
    constexpr int32_t ANY = std::numeric_limits<int32_t>::max();
    const int32_t low = of.s.causal ? 0 : -ANY, high = p.window && key >= p.sinks ? static_cast<int32_t>(p.window) : ANY;
    I seen = (distance >= low) & (distance < high);
    if (of.mask) {
        typedef uint8_t B __attribute__((vector_size(16)));
        B bytes{};
        memcpy(&bytes, of.mask + key * of.s.mask_key + query, std::clamp<int64_t>(of.s.queries - query, 0, 16));
        seen &= __builtin_convertvector(bytes, I) != 0;
    }
    return seen ? z : splat(-INFINITY);
}

template <class E>
struct Sizes {
    int64_t keys, key_steps, channel_steps, channel_tiles, value_steps, value_tiles;
    explicit Sizes(const Problem& p, int64_t longest)
        : keys(round_up(longest, E::DEPTH) / 16), key_steps(ceil_div(longest, E::DEPTH)), channel_steps(ceil_div(p.channels, E::DEPTH)),
          channel_tiles(ceil_div(p.channels, 16)), value_steps(ceil_div(p.values, E::DEPTH)), value_tiles(ceil_div(p.values, 16)) {}
};

template <class E, class X>
static void forward_unit(const Problem& p, const Sequence& s, int64_t group, Room& room) {
    typedef typename E::T T;
    const Sizes<E> size(p, s.keys);
    const int64_t steps = std::max(size.channel_steps, size.value_steps), shared = p.heads / p.groups;
    constexpr int64_t TILES = FORWARD_QUERIES / 16, BLOCK_STEPS = KEYS / E::DEPTH;
    room.reset(1024 * (size.keys * size.channel_steps + size.key_steps * size.value_tiles + E::PAIR * steps + TILES * (2 * size.channel_steps + size.value_tiles) +
                       KEYS / 16 * TILES + BLOCK_STEPS * TILES));
    auto k_left = room.tiles<T>(size.keys, size.channel_steps);
    Tiles<T> v_below{room.take<T>(size.key_steps * size.value_tiles * Tiles<T>::SIZE), 1, size.value_tiles};  // left factor of V^T
    auto raw = room.tiles<T>(E::PAIR, steps);
    auto q_left = room.tiles<T>(TILES, size.channel_steps), q_right = room.tiles<T>(TILES, size.channel_steps);
    auto sums = room.tiles<float>(size.value_tiles, TILES), scores = room.tiles<float>(KEYS / 16, TILES);
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
        for (int64_t query = 0; query < s.queries; query += FORWARD_QUERIES) {
            const int64_t count = std::min(FORWARD_QUERIES, s.queries - query), tiles = ceil_div(count, 16);
            gather<E, X>(q, query, count, p.channels, q_left, tiles);
            turn(q_left, q_right, tiles, size.channel_steps);
            V top[TILES], total[TILES];
            for (int64_t j = 0; j < TILES; j++) top[j] = splat(-INFINITY), total[j] = V{};
            fill(sums.data, size.value_tiles * TILES * WORDS);
            const int64_t end = of.end(query + count - 1);
            for (int64_t key = of.begin(query) / E::DEPTH * E::DEPTH; key < end; key += KEYS) {
                const int64_t depth = ceil_div(std::min(KEYS, end - key), E::DEPTH), key_tiles = depth * E::PAIR;
                Sight sights[KEYS / 16][TILES];
                bool any = false;
                for (int64_t i = 0; i < key_tiles; i++)
                    for (int64_t j = 0; j < tiles; j++) any |= (sights[i][j] = of.sight(key + 16 * i, 16, query + 16 * j, 16)) != HIDDEN;
                if (!any) continue;
                multiply<E, false>(scores, k_left.from(key / 16, 0), q_right, key_tiles, tiles, size.channel_steps);
                for (int64_t j = 0; j < tiles; j++) {
                    V high = top[j];
                    for (int64_t i = 0; i < key_tiles; i++) {
                        float* tile = scores.at(i, j);
                        const auto settle = [&](auto whole) {
                            for (int64_t r = 0; r < 16; r++) {
                                V bend, z = score<decltype(whole)::value>(of, load(tile + 16 * r), key + 16 * i + r, query + 16 * j, &bend);
                                high = larger(high, z);
                                store(tile + 16 * r, z);
                            }
                        };
                        if (sights[i][j] == WHOLE) settle(std::true_type{});
                        else settle(std::false_type{});
                    }
                    const V shift = high == -INFINITY ? V{} : high, shrink = power_of_two(top[j] - shift);
                    top[j] = high;
                    total[j] *= shrink;
                    for (int64_t c = 0; c < size.value_tiles; c++)
                        for (int64_t r = 0; r < 16; r++) store(sums.at(c, j) + 16 * r, load(sums.at(c, j) + 16 * r) * shrink);
                    for (int64_t d = 0; d < depth; d++)
                        for (int64_t r = 0; r < E::DEPTH; r += E::PAIR) {
                            V pair[E::PAIR];
                            for (int64_t side = 0; side < E::PAIR; side++) {
                                const int64_t row = d * E::DEPTH + r + side;
                                pair[side] = power_of_two(load(scores.at(row / 16, j) + row % 16 * 16) - shift);
                                total[j] += pair[side];
                            }
                            E::put_right(powers.at(j, d) + r / E::PAIR * 16 * E::PAIR, pair);
                        }
                }
                multiply<E, true>(sums, v_below.from(0, key / E::DEPTH), powers, size.value_tiles, tiles, depth);
            }
            for (int64_t j = 0; j < tiles; j++) {
                const int64_t left = count - 16 * j;
                V inverse, logarithm;
                for (int64_t i = 0; i < 16; i++) {
                    inverse[i] = total[j][i] > 0 ? 1.0f / total[j][i] : 0.0f;
                    logarithm[i] = total[j][i] > 0 ? top[j][i] + std::log2(total[j][i]) : INFINITY;  // sees nothing: all powers are 0
                }
                if (left >= 16) store(log_sum + query + 16 * j, logarithm);
                else store_some(log_sum + query + 16 * j, logarithm, left);
                for (int64_t c = 0; c < size.value_tiles; c++) {
                    alignas(64) float tile[WORDS];
                    for (int64_t r = 0; r < 16; r++) store(sums.at(c, j) + 16 * r, load(sums.at(c, j) + 16 * r) * inverse);
                    transpose(sums.at(c, j), tile);
                    scatter(tile, y, query + 16 * j, left, 16 * c, p.values);
                }
            }
        }
    }
}

template <class E, class X>
static void backward_unit(const Problem& p, const Sequence& s, int64_t group, Room& room) {
    typedef typename E::T T;
    const Sizes<E> size(p, s.keys);
    const int64_t steps = std::max(size.channel_steps, size.value_steps), shared = p.heads / p.groups;
    constexpr int64_t TILES = QUERIES / 16, PARTS = QUERIES / E::DEPTH, STRIPS = KEYS / E::DEPTH;  // parts and strips: DEPTH queries, keys
    room.reset(1024 * (size.keys * (size.channel_steps + size.value_steps) + size.key_steps * size.channel_tiles +
                       size.keys * (size.channel_tiles + size.value_tiles) + TILES * (2 * steps + size.channel_steps + size.value_steps) +
                       PARTS * (size.channel_tiles + size.value_tiles) + size.channel_tiles * TILES + 2 * E::PAIR * TILES + 2 * E::PAIR * PARTS +
                       TILES * STRIPS) + 8 * QUERIES);
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
            for (int64_t i = 0; i < 16 * tiles; i++) {
                V pull = V{};
                if (i < count)
                    lanes(p.values, [&](int64_t c, auto part) { pull += at(y[query + i] + c, part) * at(dy[query + i] + c, part); });
                delta[i] = sum(pull);
                log_sum[i] = i < count ? kept[query + i] : INFINITY;
            }
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
                    const int64_t from_tile = from * E::PAIR, row = first / 16;
                    multiply<E, false>(scores.from(0, from_tile), k_left.from(row, 0), q_right.from(from_tile, 0), E::PAIR, (to - from) * E::PAIR,
                                       size.channel_steps);
                    multiply<E, false>(slopes.from(0, from_tile), v_left.from(row, 0), dy_right.from(from_tile, 0), E::PAIR,
                                       (to - from) * E::PAIR, size.value_steps);
                    for (int64_t part = from; part < to; part++) {
                        const auto differentiate = [&](auto whole) {
                            for (int64_t r = 0; r < E::DEPTH; r += E::PAIR) {
                                V powers[E::PAIR][E::PAIR], turned[E::PAIR][E::PAIR];
                                for (int64_t side = 0; side < E::PAIR; side++) {
                                    const int64_t i = r + side, place = i % 16 * 16;
                                    V straight[E::PAIR];
                                    for (int64_t half = 0; half < E::PAIR; half++) {
                                        const int64_t j = part * E::PAIR + half;
                                        V bend, z = score<decltype(whole)::value>(of, load(scores.at(i / 16, j) + place), first + i, query + 16 * j, &bend);
                                        V power = power_of_two(z - load(log_sum + 16 * j));
                                        V d = power * (load(slopes.at(i / 16, j) + place) - load(delta + 16 * j)) * p.scale;
                                        if (p.cap > 0) d *= bend;
                                        powers[side][half] = power;
                                        straight[half] = turned[half][side] = d;
                                    }
                                    E::put_left(p_left.at(i / 16, part) + i % 16 * E::DEPTH, powers[side]);
                                    E::put_left(d_left.at(i / 16, part) + i % 16 * E::DEPTH, straight);
                                }
                                for (int64_t half = 0; half < E::PAIR; half++)
                                    E::put_right(d_right.at(part * E::PAIR + half, strip) + r / E::PAIR * 16 * E::PAIR, turned[half]);
                            }
                        };
                        if (sights[part] == WHOLE) differentiate(std::true_type{});
                        else differentiate(std::false_type{});
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
                        multiply<E, true>(dq.from(0, part * E::PAIR), k_below.from(0, key / E::DEPTH + strip), d_right.from(part * E::PAIR, strip),
                                          size.channel_tiles, E::PAIR, after - strip);
                    }
            }
            for (int64_t j = 0; j < tiles; j++)
                for (int64_t c = 0; c < size.channel_tiles; c++) {
                    alignas(64) float tile[WORDS];
                    transpose(dq.at(c, j), tile);
                    scatter(tile, dq_rows, query + 16 * j, count - 16 * j, 16 * c, p.channels);
                }
        }
    }
    const auto dk_rows = rows<X>(p, p.dk, s.row, s.first_key, group), dv_rows = rows<X>(p, p.dv, s.row, s.first_key, group);
    for (int64_t i = 0; i < size.keys; i++) {
        for (int64_t c = 0; c < size.channel_tiles; c++) scatter(dk.at(i, c), dk_rows, 16 * i, s.keys - 16 * i, 16 * c, p.channels);
        for (int64_t c = 0; c < size.value_tiles; c++) scatter(dv.at(i, c), dv_rows, 16 * i, s.keys - 16 * i, 16 * c, p.values);
    }
}

template <class E, class X>
static void run(const Problem& p, bool forward, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Room room;
        E::begin();
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < p.count * p.groups; unit++) {
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
    run<Exact, bf16>(p, forward, threads);
}

extern "C" void forward_f(const Problem* p, int threads) { run<Exact, float>(*p, true, threads); }
extern "C" void backward_f(const Problem* p, int threads) { run<Exact, float>(*p, false, threads); }
extern "C" void forward_b(const Problem* p, int threads) { run_bf16(*p, true, threads); }
extern "C" void backward_b(const Problem* p, int threads) { run_bf16(*p, false, threads); }
