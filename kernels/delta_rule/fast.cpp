// The delta rule as it reads, a head's state in the first-level cache. With a_t the decay, 0 where a document begins, and 1, k = q = 0 at
// padding, token t does
//     S' = a S;   w = v - S'^T k;   u = beta w;   S = S' + k u^T;   y = S^T q
// and backwards, with X the gradient of S that comes from later tokens:
//     G = X + q dy^T;   du = G^T k;   dr = -beta du;   dbeta = du w;   dv = -dr;   X <- a (G + k dr^T)
//     dk = G u + S' dr;   dq = S dy
// BLOCK tokens share one pass over a state: what each of them reads of the state before the block is found in the pass that takes the block
// before in, and what they see of one another follows from products of their vectors. Where rows of S would have to be summed across lanes,
// the transposed state is carried along as well (Z beside X, T = S^T in the last sweep). No state is kept between the passes, only w.
// The decay's gradient needs none either: the gradient of log a_t is that of log a_{t+1} plus q dq - v dv, both of token t. So that such
// sums do not drift, each SECTION of blocks begins with their exact value, the product of state and gradient.
#include <vector>

#include "../documents.h"
#include "../lanes.h"

constexpr int BLOCK = 4;
constexpr int64_t SECTION = 8, SLICE = 2 * LANES;

struct Shape {
    int64_t b, t, h, k, g, v;
};

// A kind for each token and the padding that fills the last block.
static std::vector<Kind> kinds_in_blocks(const int32_t* document, int64_t t, bool goes_on) {
    auto kind = kinds(document, t, goes_on);
    kind.resize((t + BLOCK - 1) / BLOCK * BLOCK, PADDING);
    return kind;
}

INLINE int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
// A row of n numbers as floats, padded to whole lanes with zeros.
template <class T>
INLINE void fill(float* to, const T* from, int64_t n) {
    lanes(n, [&](int64_t i, auto part) { store(to + i, at(from + i, part)); });
}
INLINE void scale(float* to, const float* from, int64_t padded, float factor) {
    for (int64_t i = 0; i < padded; i += LANES) store(to + i, load(from + i) * factor);
}
INLINE void clear(float* to, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store(to + i, V{});
}
INLINE float dot(const float* a, const float* b, int64_t padded) {
    V total = V{};
    for (int64_t i = 0; i < padded; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

// state <- decay state + sum over writes of write_row write_lane;   result = read_row state, for slices of W vectors of a state's lanes.
// Rows of numbers lie `stride` apart, lanes `padded`.
template <int WRITES, int READS, int W>
INLINE void pass_slice(int64_t rows, float* state, float decay, const float* write_rows, const float* write_lanes, const float* read_rows,
                       int64_t stride, float* result, int64_t padded) {
    V lane[WRITES + 1][W], found[READS + 1][W];
    for (int n = 0; n < WRITES; n++)
        for (int w = 0; w < W; w++) lane[n][w] = load(write_lanes + n * padded + w * LANES);
    for (int n = 0; n < READS; n++)
        for (int w = 0; w < W; w++) found[n][w] = V{};
    for (int64_t r = 0; r < rows; r++) {
        V s[W];
        for (int w = 0; w < W; w++) s[w] = load(state + (r * W + w) * LANES);
        if constexpr (WRITES > 0) {
            for (int w = 0; w < W; w++) s[w] *= decay;
            for (int n = 0; n < WRITES; n++)
                for (int w = 0; w < W; w++) s[w] += lane[n][w] * write_rows[n * stride + r];
            for (int w = 0; w < W; w++) store(state + (r * W + w) * LANES, s[w]);
        }
        for (int n = 0; n < READS; n++)
            for (int w = 0; w < W; w++) found[n][w] += s[w] * read_rows[n * stride + r];
    }
    for (int n = 0; n < READS; n++)
        for (int w = 0; w < W; w++) store(result + n * padded + w * LANES, found[n][w]);
}

// A state of rows x columns, its columns in slices of at most SLICE lanes that lie one after the other.
struct State {
    int64_t rows, columns, padded, stride;
    std::vector<float> numbers;
    State(int64_t rows, int64_t columns)
        : rows(rows), columns(columns), padded(whole(columns)), stride(whole(rows)), numbers(rows * padded) {}

    template <int WRITES, int READS>
    void pass(float decay, const float* write_rows, const float* write_lanes, const float* read_rows, float* result) {
        for (int64_t first = 0; first < padded; first += SLICE) {
            float* slice = numbers.data() + rows * first;
            if (padded - first >= SLICE)
                pass_slice<WRITES, READS, 2>(rows, slice, decay, write_rows, write_lanes + first, read_rows, stride, result + first, padded);
            else
                pass_slice<WRITES, READS, 1>(rows, slice, decay, write_rows, write_lanes + first, read_rows, stride, result + first, padded);
        }
    }
    // To or from memory, where neighbours in a row lie by_column apart and neighbours in a column by_row.
    template <class Each>
    void each(int64_t by_row, int64_t by_column, Each act) {
        for (int64_t column = 0; column < columns; column++) {
            int64_t first = column / SLICE * SLICE, width = padded - first < SLICE ? LANES : SLICE;
            float* slice = numbers.data() + rows * first + column - first;
            for (int64_t r = 0; r < rows; r++) act(slice[r * width], r * by_row + column * by_column);
        }
    }
    void read(const float* memory, int64_t by_row, int64_t by_column) {
        clear(numbers.data(), numbers.size());
        if (memory) each(by_row, by_column, [&](float& number, int64_t place) { number = memory[place]; });
    }
    void write(float* memory, int64_t by_row, int64_t by_column) {
        each(by_row, by_column, [&](float& number, int64_t place) { memory[place] = number; });
    }
};

// One head of one row of the batch: where its numbers lie, and what its state is multiplied with before each token is taken in.
struct Head {
    Shape s;
    int64_t b, h, group;
    const Kind* kind;
    std::vector<float> factor;
    Head(const Shape& shape, int64_t row, int64_t head, const std::vector<Kind>& kinds, const float* decay)
        : s(shape), b(row), h(head), group(head / (shape.h / shape.g)), kind(kinds.data()), factor(kinds.size(), 1.0f) {
        if (decay) {
            for (int64_t i = 0; i < s.t; i++) factor[i] = kind[i] == INSIDE ? decay[token(i)] : 0.0f;
            lanes(s.t, [&](int64_t i, auto part) { put(&factor[i], exp(at(&factor[i], part)), part); });
        }
        for (int64_t i = 0; i < s.t; i++)
            if (kind[i] == FRESH) factor[i] = 0.0f;
    }
    int64_t blocks() const { return static_cast<int64_t>(factor.size()) / BLOCK; }
    int64_t key(int64_t i) const { return ((b * s.t + i) * s.g + group) * s.k; }
    int64_t token(int64_t i) const { return (b * s.t + i) * s.h + h; }
    int64_t value(int64_t i) const { return token(i) * s.v; }
    int64_t state() const { return (b * s.h + h) * s.k * s.v; }
    // BLOCK rows of n numbers each, zero at padding; place gives where a token's row lies, times what it is multiplied with.
    template <class T, class Token, class Place>
    void rows(float* to, const T* from, int64_t n, Token token, Place place) const {
        for (int j = 0; j < BLOCK; j++) {
            if (kind[token(j)]) fill(to + j * whole(n), from + place(token(j)), n);
            else clear(to + j * whole(n), whole(n));
        }
    }
};

// What lies between the tokens of a block, in the order they are taken: between[j][i] for i <= j, the factors after i up to and with j, or,
// in a sweep backwards in time, from i to the one before j; before[j] the same from the block's start; [BLOCK]: to its end.
struct Factors {
    float between[BLOCK + 1][BLOCK], before[BLOCK + 1];
};
static Factors forwards(const float* factor) {
    Factors f;
    for (int j = 0; j < BLOCK; j++) {
        f.before[j] = j ? f.before[j - 1] * factor[j] : factor[j];
        for (int i = 0; i < j; i++) f.between[j][i] = f.between[j - 1][i] * factor[j];
        f.between[j][j] = 1.0f;
    }
    f.before[BLOCK] = f.before[BLOCK - 1];
    memcpy(f.between[BLOCK], f.between[BLOCK - 1], sizeof f.between[0]);
    return f;
}
static Factors backwards(const float* factor) {
    Factors f;
    f.before[0] = 1.0f;
    for (int j = 0; j < BLOCK; j++) f.before[j + 1] = f.before[j] * factor[BLOCK - 1 - j];
    for (int i = 0; i < BLOCK; i++) {
        f.between[i][i] = 1.0f;
        for (int j = i; j < BLOCK; j++) f.between[j + 1][i] = f.between[j][i] * factor[BLOCK - 1 - j];
    }
    return f;
}
struct Products {
    float of[BLOCK][BLOCK];
};
// left_j right_i between_ji for i < j, or i <= j
INLINE Products products(const float* left, const float* right, int64_t padded, const Factors& f, bool with_itself) {
    Products found;
    for (int j = 0; j < BLOCK; j++)
        for (int i = 0; i < j + with_itself; i++) found.of[j][i] = dot(left + j * padded, right + i * padded, padded) * f.between[j][i];
    return found;
}
INLINE void scale_rows(float* to, const float* from, int64_t padded, const Factors& f) {
    for (int j = 0; j < BLOCK; j++) scale(to + j * padded, from + j * padded, padded, f.between[BLOCK][j]);
}

template <class T>
static void forward(const T* query, const T* key, const T* value, const float* beta, const float* decay, const int32_t* document,
                    const uint8_t* goes_on, const float* initial, T* y, float* last, float* errors, Shape s, int threads) {
    int64_t padded_k = whole(s.k), padded_v = whole(s.v);
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.h; unit++) {
        int64_t b = unit / s.h, h = unit % s.h;
        auto kind = kinds_in_blocks(document + b * s.t, s.t, goes_on && goes_on[b]);
        Head head(s, b, h, kind, decay);
        State state(s.k, s.v);
        state.read(initial ? initial + head.state() : nullptr, s.v, 1);
        std::vector<float> buffer(BLOCK * (3 * padded_k + 3 * padded_v));
        float *keys = buffer.data(), *queries = keys + BLOCK * padded_k, *written = queries + BLOCK * padded_k;  // read: keys and queries
        float *read = written + BLOCK * padded_k, *corrections = read + 2 * BLOCK * padded_v;
        auto take = [&](int64_t n) {
            auto token = [&](int j) { return n * BLOCK + j; };
            head.rows(keys, key, s.k, token, [&](int64_t i) { return head.key(i); });
            head.rows(queries, query, s.k, token, [&](int64_t i) { return head.key(i); });
        };
        if (head.blocks()) {
            take(0);
            state.pass<0, 2 * BLOCK>(1.0f, nullptr, read, keys, read);
        }
        for (int64_t n = 0; n < head.blocks(); n++) {
            Factors f = forwards(&head.factor[n * BLOCK]);
            Products kk = products(keys, keys, padded_k, f, false), qk = products(queries, keys, padded_k, f, true);
            lanes(s.v, [&](int64_t l, auto part) {
                V u[BLOCK];
                for (int j = 0; j < BLOCK; j++) {
                    int64_t i = n * BLOCK + j;
                    V old = load(read + j * padded_v + l) * f.before[j], out = load(read + (BLOCK + j) * padded_v + l) * f.before[j];
                    for (int m = 0; m < j; m++) {
                        old += u[m] * kk.of[j][m];
                        out += u[m] * qk.of[j][m];
                    }
                    V w = kind[i] ? at(value + head.value(i) + l, part) - old : V{};
                    u[j] = kind[i] ? w * beta[head.token(i)] : V{};
                    store(corrections + j * padded_v + l, u[j]);
                    if (i >= s.t) continue;
                    put(y + head.value(i) + l, kind[i] ? out + u[j] * qk.of[j][j] : V{}, part);
                    if (errors) put(errors + head.value(i) + l, w, part);
                }
            });
            scale_rows(written, keys, padded_k, f);
            if (n + 1 < head.blocks()) {
                take(n + 1);
                state.pass<BLOCK, 2 * BLOCK>(f.before[BLOCK], written, corrections, keys, read);
            } else {
                state.pass<BLOCK, 0>(f.before[BLOCK], written, corrections, nullptr, read);
            }
        }
        state.write(last + head.state(), s.v, 1);
    }
}

// dquery, dkey: [shares, b, t, g, k], zero before, added up after; each share holds some of a group's heads.
template <class T>
static void backward(const T* query, const T* key, const T* value, const float* beta, const float* decay, const int32_t* document,
                     const uint8_t* goes_on, const float* initial, const float* errors, const T* dy, const float* dlast, float* dquery,
                     float* dkey, T* dvalue, float* dbeta, float* ddecay, float* dinitial, Shape s, int64_t shares, int threads) {
    int64_t together = s.h / s.g, in_share = (together + shares - 1) / shares;
    int64_t padded_k = whole(s.k), padded_v = whole(s.v);
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * s.g * shares; unit++) {
        int64_t share = unit % shares, group = unit / shares % s.g, b = unit / shares / s.g;
        int64_t begin = share * in_share, end = begin + in_share < together ? begin + in_share : together;
        auto kind = kinds_in_blocks(document + b * s.t, s.t, goes_on && goes_on[b]);
        float *dkey_share = dkey + share * s.b * s.t * s.g * s.k, *dquery_share = dquery + share * s.b * s.t * s.g * s.k;
        std::vector<float> buffer(BLOCK * (6 * padded_k + 6 * padded_v));
        float *keys = buffer.data(), *queries = keys + BLOCK * padded_k, *scaled_k = queries + BLOCK * padded_k;
        float *read_k = scaled_k + 2 * BLOCK * padded_k, *outs = read_k + 2 * BLOCK * padded_k, *reads = outs + BLOCK * padded_v;
        float *corrections = reads + BLOCK * padded_v, *scaled_v = corrections + BLOCK * padded_v, *read_v = scaled_v + BLOCK * padded_v;
        // outs: dy, reads: dr; the two lie one after the other, as do keys and queries
        for (int64_t h = group * together + begin; h < group * together + end; h++) {
            Head head(s, b, h, kind, decay);
            int64_t blocks = head.blocks(), sections = (blocks + SECTION - 1) / SECTION;
            std::vector<float> kept(blocks * BLOCK * padded_v);  // dr of all tokens
            std::vector<double> change(blocks * BLOCK), exact(sections + 1);
            auto by_key = [&](int64_t i) { return head.key(i); };
            auto by_value = [&](int64_t i) { return head.value(i); };
            auto add = [&](float* to, V x, auto part) { put(to, at(to, part) + x, part); };
            auto corrections_of = [&](auto token) {
                head.rows(corrections, errors, s.v, token, by_value);
                for (int j = 0; j < BLOCK; j++)
                    if (kind[token(j)]) scale(corrections + j * padded_v, corrections + j * padded_v, padded_v, beta[head.token(token(j))]);
            };

            State x(s.k, s.v), z(s.v, s.k);
            x.read(dlast ? dlast + head.state() : nullptr, s.v, 1);
            z.read(dlast ? dlast + head.state() : nullptr, 1, s.v);
            std::vector<float> borders(decay ? sections * z.numbers.size() : 0);  // z before the first token of each section
            auto take = [&](int64_t n) {
                auto token = [&](int j) { return n * BLOCK + BLOCK - 1 - j; };
                head.rows(keys, key, s.k, token, by_key);
                corrections_of(token);
            };
            if (blocks) {
                take(blocks - 1);
                x.pass<0, BLOCK>(1.0f, nullptr, read_v, keys, read_v);
                z.pass<0, BLOCK>(1.0f, nullptr, read_k, corrections, read_k);
            }
            for (int64_t n = blocks - 1; n >= 0; n--) {
                auto token = [&](int j) { return n * BLOCK + BLOCK - 1 - j; };
                Factors f = backwards(&head.factor[n * BLOCK]);
                head.rows(queries, query, s.k, token, by_key);
                head.rows(outs, dy, s.v, token, by_value);
                Products kk = products(keys, keys, padded_k, f, false), kq = products(keys, queries, padded_k, f, true);
                V into_beta[BLOCK] = {}, through_value[BLOCK] = {};
                lanes(s.v, [&](int64_t l, auto part) {
                    V out[BLOCK], dr[BLOCK];
                    for (int j = 0; j < BLOCK; j++) {
                        int64_t i = token(j);
                        out[j] = load(outs + j * padded_v + l);
                        V du = load(read_v + j * padded_v + l) * f.before[j] + out[j] * kq.of[j][j];
                        for (int m = 0; m < j; m++) du += out[m] * kq.of[j][m] + dr[m] * kk.of[j][m];
                        dr[j] = kind[i] ? du * -beta[head.token(i)] : V{};
                        store(reads + j * padded_v + l, dr[j]);
                        store(&kept[i * padded_v + l], dr[j]);
                        if (i >= s.t) continue;
                        put(dvalue + head.value(i) + l, -dr[j], part);
                        if (!kind[i]) continue;
                        into_beta[j] += du * at(errors + head.value(i) + l, part);
                        through_value[j] += dr[j] * at(value + head.value(i) + l, part);
                    }
                });
                for (int j = 0; j < BLOCK; j++) {
                    change[token(j)] = sum(through_value[j]);
                    if (token(j) < s.t) dbeta[head.token(token(j))] = sum(into_beta[j]);
                }
                Products uy = products(corrections, outs, padded_v, f, true), ur = products(corrections, reads, padded_v, f, false);
                lanes(s.k, [&](int64_t l, auto part) {
                    for (int j = 0; j < BLOCK; j++) {
                        V dk = load(read_k + j * padded_k + l) * f.before[j] + load(queries + j * padded_k + l) * uy.of[j][j];
                        for (int m = 0; m < j; m++)
                            dk += load(queries + m * padded_k + l) * uy.of[j][m] + load(keys + m * padded_k + l) * ur.of[j][m];
                        if (kind[token(j)]) add(dkey_share + head.key(token(j)) + l, dk, part);
                    }
                });
                scale_rows(scaled_k, queries, padded_k, f);
                scale_rows(scaled_k + BLOCK * padded_k, keys, padded_k, f);
                if (n > 0) {
                    take(n - 1);
                    x.pass<2 * BLOCK, BLOCK>(f.before[BLOCK], scaled_k, outs, keys, read_v);
                    z.pass<2 * BLOCK, BLOCK>(f.before[BLOCK], outs, scaled_k, corrections, read_k);
                } else {
                    x.pass<2 * BLOCK, 0>(f.before[BLOCK], scaled_k, outs, nullptr, read_v);
                    z.pass<2 * BLOCK, 0>(f.before[BLOCK], outs, scaled_k, nullptr, read_k);
                }
                if (decay && n % SECTION == 0)
                    memcpy(&borders[n / SECTION * z.numbers.size()], z.numbers.data(), z.numbers.size() * sizeof(float));
            }
            if (dinitial) x.write(dinitial + head.state(), s.v, 1);

            State state(s.v, s.k);
            state.read(initial ? initial + head.state() : nullptr, 1, s.v);
            auto take_onward = [&](int64_t n) {
                auto token = [&](int j) { return n * BLOCK + j; };
                memcpy(reads, &kept[n * BLOCK * padded_v], BLOCK * padded_v * sizeof(float));
                head.rows(outs, dy, s.v, token, by_value);
            };
            if (blocks) {
                take_onward(0);
                state.pass<0, 2 * BLOCK>(1.0f, nullptr, read_k, outs, read_k);
            }
            for (int64_t n = 0; n < blocks; n++) {
                auto token = [&](int j) { return n * BLOCK + j; };
                Factors f = forwards(&head.factor[n * BLOCK]);
                if (decay && n % SECTION == 0)
                    exact[n / SECTION] = dot(&borders[n / SECTION * z.numbers.size()], state.numbers.data(), state.numbers.size());
                head.rows(keys, key, s.k, token, by_key);
                head.rows(queries, query, s.k, token, by_key);
                corrections_of(token);
                Products yu = products(outs, corrections, padded_v, f, true), ru = products(reads, corrections, padded_v, f, false);
                V through_query[BLOCK] = {};
                lanes(s.k, [&](int64_t l, auto part) {
                    for (int j = 0; j < BLOCK; j++) {
                        if (!kind[token(j)]) continue;
                        V own = load(keys + j * padded_k + l);
                        V dq = load(read_k + j * padded_k + l) * f.before[j] + own * yu.of[j][j];
                        V dk = load(read_k + (BLOCK + j) * padded_k + l) * f.before[j];
                        for (int m = 0; m < j; m++) {
                            dq += load(keys + m * padded_k + l) * yu.of[j][m];
                            dk += load(keys + m * padded_k + l) * ru.of[j][m];
                        }
                        through_query[j] += dq * load(queries + j * padded_k + l);
                        add(dquery_share + head.key(token(j)) + l, dq, part);
                        add(dkey_share + head.key(token(j)) + l, dk, part);
                    }
                });
                for (int j = 0; j < BLOCK; j++) change[token(j)] += sum(through_query[j]);
                scale_rows(scaled_v, corrections, padded_v, f);
                if (n + 1 < blocks) {
                    take_onward(n + 1);
                    state.pass<BLOCK, 2 * BLOCK>(f.before[BLOCK], scaled_v, keys, outs, read_k);
                } else {
                    state.pass<BLOCK, 0>(f.before[BLOCK], scaled_v, keys, nullptr, read_k);
                }
            }
            if (!decay) continue;
            z.read(dlast ? dlast + head.state() : nullptr, 1, s.v);
            double onward = dot(z.numbers.data(), state.numbers.data(), state.numbers.size());
            for (int64_t i = blocks * BLOCK - 1; i >= 0; i--) {
                onward += change[i];
                if (i % (SECTION * BLOCK) == 0) onward = exact[i / (SECTION * BLOCK)];
                if (kind[i] == FRESH) onward = 0;
                if (i < s.t) ddecay[head.token(i)] = kind[i] == INSIDE ? float(onward) : 0.0f;
            }
        }
    }
}

#define BOTH(T, letter)                                                                                                                   \
    extern "C" void forward_##letter(const T* query, const T* key, const T* value, const float* beta, const float* decay,                 \
                                     const int32_t* doc, const uint8_t* goes_on, const float* initial, T* y, float* last, float* errors,  \
                                     int64_t b, int64_t t, int64_t h, int64_t k, int64_t g, int64_t v, int threads) {                     \
        forward(query, key, value, beta, decay, doc, goes_on, initial, y, last, errors, Shape{b, t, h, k, g, v}, threads);                \
    }                                                                                                                                     \
    extern "C" void backward_##letter(const T* query, const T* key, const T* value, const float* beta, const float* decay,                \
                                      const int32_t* doc, const uint8_t* goes_on, const float* initial, const float* errors, const T* dy, \
                                      const float* dlast, float* dquery, float* dkey, T* dvalue, float* dbeta, float* ddecay,             \
                                      float* dinitial, int64_t b, int64_t t, int64_t h, int64_t k, int64_t g, int64_t v, int64_t shares,  \
                                      int threads) {                                                                                      \
        backward(query, key, value, beta, decay, doc, goes_on, initial, errors, dy, dlast, dquery, dkey, dvalue, dbeta, ddecay, dinitial, \
                 Shape{b, t, h, k, g, v}, shares, threads);                                                                               \
    }
BOTH(float, f)
BOTH(bf16, b)
