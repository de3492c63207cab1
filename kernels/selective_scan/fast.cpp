// The selective scan as it reads, channels in the lanes of a vector: no sum over state channels goes across lanes. Tokens go in
// chunks of at most CHUNK; within one, a few state channels at a time stay in registers. The states at the beginnings of chunks are kept for
// the backward pass, which goes from the last chunk to the first and computes the states within each again. With e = 2^(s rate) and g the
// gradient of the state after a token, it is
//     g += dy query;   d query += dy h;   d key += g s x;   d(s x) += g key;   d(s decay) = g h_before e;   g <- g a
#include <algorithm>
#include <vector>

#include "../documents.h"
#include "../lanes.h"

constexpr int64_t CHUNK = 16;

struct Shape {
    int64_t b, t, i, n, gate_b, gate_t;  // gate_b, gate_t: strides of the gate in elements; everything else has no gaps
    float shift;                         // a = (1 + shift) e - shift: 1 for decays within -1 and 1, else 0
    int64_t blocks() const { return (i + LANES - 1) / LANES; }
    int64_t chunks() const { return (t + CHUNK - 1) / CHUNK; }
};
struct alignas(4 * LANES) Lane {
    V v = {};
};

// Between [i, n] in memory and the n vectors of one block of channels.
static void gather(Lane* to, const float* from, int64_t block, const Shape& s, float factor = 1.0f) {
    for (int64_t i = block * LANES; i < s.i && i < (block + 1) * LANES; i++)
        for (int64_t n = 0; n < s.n; n++) to[n].v[i % LANES] = from[i * s.n + n] * factor;
}
static void scatter(float* to, const Lane* from, int64_t block, const Shape& s) {
    for (int64_t i = block * LANES; i < s.i && i < (block + 1) * LANES; i++)
        for (int64_t n = 0; n < s.n; n++) to[i * s.n + n] = from[n].v[i % LANES];
}

template <class T>
struct Inputs {
    const T *x, *step, *gate, *key, *query;
    const float *bias, *decay, *skip, *initial;
    const int32_t* document;
    const uint8_t* goes_on;
};

// Neighbouring tokens of a chunk; before a fresh one the state is zero.
struct Run {
    int64_t begin, end;
    bool fresh;
};

// One row of the batch, opened at one chunk.
template <class T>
struct Row {
    const Inputs<T>& in;
    const Shape& s;
    int64_t b, first = 0, count = 0;
    std::vector<Kind> kind;
    std::vector<Run> runs;
    std::vector<float> key, query;
    Row(const Inputs<T>& inputs, const Shape& shape, int64_t row)
        : in(inputs), s(shape), b(row), kind(kinds(in.document + row * s.t, s.t, in.goes_on && in.goes_on[row])), key(CHUNK * s.n),
          query(CHUNK * s.n) {}

    void open(int64_t chunk) {
        first = chunk * CHUNK;
        count = s.t - first < CHUNK ? s.t - first : CHUNK;
        runs.clear();
        for (int64_t k = 0; k < count; k++) {
            if (!k || kind[first + k] == FRESH) runs.push_back({k, k, kind[first + k] == FRESH});
            runs.back().end = k + 1;
        }
        for (int64_t k = 0; k < count * s.n; k++) key[k] = query[k] = 0.0f;
        for (int64_t k = 0; k < count; k++)
            if (kind[first + k]) {
                int64_t place = (b * s.t + first + k) * s.n;
                lanes(s.n, [&](int64_t n, auto part) {
                    put(&key[k * s.n + n], at(in.key + place + n, part), part);
                    put(&query[k * s.n + n], at(in.query + place + n, part), part);
                });
            }
    }
    int64_t place(int64_t k, int64_t i) const { return (b * s.t + first + k) * s.i + i; }
    const T* gate(int64_t k, int64_t i) const { return in.gate + b * s.gate_b + (first + k) * s.gate_t + i; }
    bool real(int64_t k) const { return kind[first + k] != PADDING; }
    // each(first channel, tag for `at`) for a block
    template <class Each>
    void channels(int64_t block, Each each) const {
        int64_t i = block * LANES;
        if (i + LANES <= s.i) each(i, All{});
        else each(i, Some{s.i - i});
    }
};

// One block of channels over a chunk: inputs, what enters the state (step * x) and outputs, which begin as skip * x. At padding the step
// is 0, so that the state passes.
struct Tokens {
    V x[CHUNK], step[CHUNK], enters[CHUNK], y[CHUNK];
    template <class T>
    void read(const Row<T>& row, int64_t block) {
        row.channels(block, [&](int64_t i, auto part) {
            V bias = at(row.in.bias + i, part), skip = at(row.in.skip + i, part);
            for (int64_t k = 0; k < row.count; k++) {
                if (!row.real(k)) {
                    x[k] = step[k] = enters[k] = y[k] = V{};
                    continue;
                }
                x[k] = at(row.in.x + row.place(k, i), part);
                step[k] = softplus(at(row.in.step + row.place(k, i), part) + bias);
                enters[k] = step[k] * x[k];
                y[k] = skip * x[k];
            }
        });
    }
};

// call(n, number of state channels known when compiling) until all are served
template <int MANY>
struct Many {
    static constexpr int count = MANY;
};
template <class Call>
INLINE void in_groups(int64_t n, Call call) {
    int64_t k = 0;
    for (; k + 4 <= n; k += 4) call(k, Many<4>{});
    for (; k < n; k++) call(k, Many<1>{});
}

// Over the tokens of a chunk with state channels from `at_n`; state: [n]. With KEEP, e is written to [k, n] and states to [k + 1, n].
template <bool KEEP, int MANY, class T>
static void go_through(const Row<T>& row, Tokens& tokens, Lane* state, const Lane* rate, int64_t at_n, Lane* kept_e, Lane* kept_h) {
    int64_t n = row.s.n;
    V h[MANY], rates[MANY], shift = splat(row.s.shift), scale = shift + 1.0f;
    for (int j = 0; j < MANY; j++) h[j] = state[at_n + j].v, rates[j] = rate[at_n + j].v;
    for (const Run& run : row.runs) {
        if (run.fresh)
            for (int j = 0; j < MANY; j++) h[j] = V{};
        for (int64_t k = run.begin; k < run.end; k++) {
            const float *key = &row.key[k * n + at_n], *query = &row.query[k * n + at_n];
            V step = tokens.step[k], enters = tokens.enters[k], y = tokens.y[k];
            for (int j = 0; j < MANY; j++) {
                V e = exp2(step * rates[j]) * scale;
                h[j] = (e - shift) * h[j] + enters * key[j];
                y += h[j] * query[j];
                if (KEEP) kept_e[k * n + at_n + j].v = e, kept_h[(k + 1) * n + at_n + j].v = h[j];
            }
            tokens.y[k] = y;
        }
    }
    for (int j = 0; j < MANY; j++) state[at_n + j].v = h[j];
}

// Back through the tokens of a chunk. gradient: of the state [n], after the chunk and then before it.
struct Gradients {
    V y[CHUNK], step[CHUNK], enters[CHUNK];  // of outputs before the gate, of the step in a (times LOG2E), of step * x
};
template <int MANY, class T>
static void go_back(const Row<T>& row, const Tokens& tokens, Gradients& d, Lane* gradient, Lane* drate, const Lane* rate, int64_t at_n,
                    const Lane* kept_e, const Lane* kept_h, const Lane* zeros, Lane* dkey, Lane* dquery) {
    int64_t n = row.s.n;
    V g[MANY], rates[MANY], slope[MANY], shift = splat(row.s.shift);
    for (int j = 0; j < MANY; j++) g[j] = gradient[at_n + j].v, rates[j] = rate[at_n + j].v, slope[j] = drate[at_n + j].v;
    for (auto run = row.runs.rbegin(); run != row.runs.rend(); ++run) {
        for (int64_t k = run->end - 1; k >= run->begin; k--) {
            const float *key = &row.key[k * n + at_n], *query = &row.query[k * n + at_n];
            const Lane *e = kept_e + k * n + at_n, *before = (run->fresh && k == run->begin ? zeros : kept_h + k * n) + at_n,
                       *after = kept_h + (k + 1) * n + at_n;
            Lane *to_key = dkey + k * n + at_n, *to_query = dquery + k * n + at_n;
            V y = d.y[k], step = tokens.step[k], enters = tokens.enters[k], dstep = d.step[k], denters = d.enters[k];
            for (int j = 0; j < MANY; j++) {
                g[j] += y * query[j];
                to_query[j].v += y * after[j].v;
                to_key[j].v += g[j] * enters;
                denters += g[j] * key[j];
                V pull = g[j] * before[j].v * e[j].v;
                slope[j] += pull * step;
                dstep += pull * rates[j];
                g[j] *= e[j].v - shift;
            }
            d.step[k] = dstep, d.enters[k] = denters;
        }
        if (run->fresh)
            for (int j = 0; j < MANY; j++) g[j] = V{};
    }
    for (int j = 0; j < MANY; j++) gradient[at_n + j].v = g[j], drate[at_n + j].v = slope[j];
}

// Call each(row of the batch, share, first block, last block + 1) for all rows, their channels in `shares` parts.
template <class Each>
static void in_shares(const Shape& s, int64_t shares, int threads, Each each) {
    int64_t size = (s.blocks() + shares - 1) / shares;
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < s.b * shares; unit++) {
        int64_t share = unit % shares, end = (share + 1) * size;
        each(unit / shares, share, share * size, end < s.blocks() ? end : s.blocks());
    }
}

template <class T>
static void forward(const Inputs<T>& in, T* y, float* last, float* begins, const Shape& s, int64_t shares, int threads) {
    in_shares(s, shares, threads, [&](int64_t b, int64_t, int64_t begin, int64_t end) {
        if (begin >= end) return;
        Row<T> row(in, s, b);
        std::vector<Lane> rate((end - begin) * s.n), state((end - begin) * s.n);
        for (int64_t block = begin; block < end; block++) {
            gather(&rate[(block - begin) * s.n], in.decay, block, s, LOG2E);
            if (in.initial) gather(&state[(block - begin) * s.n], in.initial + b * s.i * s.n, block, s);
        }
        Tokens tokens;
        for (int64_t c = 0; c < s.chunks(); c++) {
            row.open(c);
            for (int64_t block = begin; block < end; block++) {
                Lane* h = &state[(block - begin) * s.n];
                if (begins) memcpy(begins + ((b * s.chunks() + c) * s.blocks() + block) * s.n * LANES, h, s.n * sizeof(Lane));
                tokens.read(row, block);
                in_groups(s.n, [&](int64_t n, auto many) {
                    go_through<false, many.count>(row, tokens, h, &rate[(block - begin) * s.n], n, nullptr, nullptr);
                });
                row.channels(block, [&](int64_t i, auto part) {
                    for (int64_t k = 0; k < row.count; k++) {
                        V out = tokens.y[k];
                        if (in.gate && row.real(k)) {
                            V z = at(row.gate(k, i), part);
                            out *= z * sigmoid(z);
                        }
                        put(y + row.place(k, i), out, part);
                    }
                });
            }
        }
        for (int64_t block = begin; block < end; block++) scatter(last + b * s.i * s.n, &state[(block - begin) * s.n], block, s);
    });
}

// ddecay: [b, i, n], dbias and dskip: [b, i], dkey and dquery: [shares, b, t, n]
template <class T>
struct Outputs {
    T *x, *step, *gate;
    float *bias, *decay, *key, *query, *skip, *initial;
};

template <class T>
static void backward(const Inputs<T>& in, const float* begins, const T* dy, const float* dlast, const Outputs<T>& out, const Shape& s,
                     int64_t shares, int threads) {
    in_shares(s, shares, threads, [&](int64_t b, int64_t share, int64_t begin, int64_t end) {
        if (begin >= end) return;
        Row<T> row(in, s, b);
        int64_t blocks = end - begin, n = s.n;
        std::vector<Lane> rate(blocks * n), state_gradient(blocks * n), drate(blocks * n), dbias(blocks), dskip(blocks);
        std::vector<Lane> kept_e(CHUNK * n), kept_h((CHUNK + 1) * n), zeros(n), dkey(CHUNK * n), dquery(CHUNK * n), state(n);
        for (int64_t block = begin; block < end; block++) {
            gather(&rate[(block - begin) * n], in.decay, block, s, LOG2E);
            if (dlast) gather(&state_gradient[(block - begin) * n], dlast + b * s.i * n, block, s);
        }
        Tokens tokens;
        Gradients d;
        for (int64_t c = s.chunks() - 1; c >= 0; c--) {
            row.open(c);
            std::fill(dkey.begin(), dkey.end(), Lane{});
            std::fill(dquery.begin(), dquery.end(), Lane{});
            for (int64_t block = begin; block < end; block++) {
                int64_t own = (block - begin) * n;
                memcpy(static_cast<void*>(kept_h.data()), begins + ((b * s.chunks() + c) * s.blocks() + block) * n * LANES, n * sizeof(Lane));
                std::copy(kept_h.begin(), kept_h.begin() + n, state.begin());
                tokens.read(row, block);
                in_groups(n, [&](int64_t at_n, auto many) {
                    go_through<true, many.count>(row, tokens, state.data(), &rate[own], at_n, kept_e.data(), kept_h.data());
                });
                V bias_sum = dbias[block - begin].v, skip_sum = dskip[block - begin].v;
                row.channels(block, [&](int64_t i, auto part) {
                    for (int64_t k = 0; k < row.count; k++) {
                        d.y[k] = d.step[k] = d.enters[k] = V{};
                        if (row.real(k)) d.y[k] = at(dy + row.place(k, i), part);
                        if (in.gate) {
                            V slope = {};
                            if (row.real(k)) {
                                V z = at(row.gate(k, i), part), sig = sigmoid(z);
                                slope = d.y[k] * tokens.y[k] * sig * (1.0f + z * (1.0f - sig));
                                d.y[k] *= z * sig;
                            }
                            put(out.gate + row.place(k, i), slope, part);
                        }
                        skip_sum += d.y[k] * tokens.x[k];
                    }
                });
                in_groups(n, [&](int64_t at_n, auto many) {
                    go_back<many.count>(row, tokens, d, &state_gradient[own], &drate[own], &rate[own], at_n, kept_e.data(), kept_h.data(),
                                        zeros.data(), dkey.data(), dquery.data());
                });
                row.channels(block, [&](int64_t i, auto part) {
                    V bias = at(in.bias + i, part), skip = at(in.skip + i, part);
                    for (int64_t k = 0; k < row.count; k++) {
                        V dx = {}, dstep = {};
                        if (row.real(k)) {
                            V raw = at(in.step + row.place(k, i), part) + bias;
                            dx = d.y[k] * skip + d.enters[k] * tokens.step[k];
                            dstep = within((d.step[k] * LN2 + d.enters[k] * tokens.x[k]) * sigmoid(raw), part, 0.0f);
                        }
                        bias_sum += dstep;
                        put(out.x + row.place(k, i), dx, part);
                        put(out.step + row.place(k, i), dstep, part);
                    }
                });
                dbias[block - begin].v = bias_sum, dskip[block - begin].v = skip_sum;
            }
            int64_t place = ((share * s.b + b) * s.t + row.first) * n;
            for (int64_t k = 0; k < row.count * n; k++) out.key[place + k] = sum(dkey[k].v), out.query[place + k] = sum(dquery[k].v);
        }
        for (int64_t block = begin; block < end; block++) {
            int64_t own = block - begin;
            scatter(out.decay + b * s.i * n, &drate[own * n], block, s);
            if (out.initial) scatter(out.initial + b * s.i * n, &state_gradient[own * n], block, s);
            row.channels(block, [&](int64_t i, auto part) {
                put(out.bias + b * s.i + i, dbias[own].v, part);
                put(out.skip + b * s.i + i, dskip[own].v, part);
            });
        }
    });
}

// Floats that `forward` keeps for `backward`.
extern "C" int64_t kept(int64_t b, int64_t t, int64_t i, int64_t n) {
    Shape s{b, t, i, n, 0, 0, 0};
    return b * s.chunks() * s.blocks() * n * LANES;
}

#define BOTH(T, letter)                                                                                                                    \
    extern "C" void forward_##letter(const T* x, const T* step, const T* gate, const T* key, const T* query, const float* bias,            \
                                     const float* decay, const float* skip, const float* initial, const int32_t* document,                 \
                                     const uint8_t* goes_on, float* begins, T* y, float* last, int64_t b, int64_t t, int64_t i, int64_t n, \
                                     int64_t gate_b, int64_t gate_t, float shift, int64_t shares, int threads) {                           \
        Inputs<T> in{x, step, gate, key, query, bias, decay, skip, initial, document, goes_on};                                            \
        forward(in, y, last, begins, Shape{b, t, i, n, gate_b, gate_t, shift}, shares, threads);                                           \
    }                                                                                                                                      \
    extern "C" void backward_##letter(const T* x, const T* step, const T* gate, const T* key, const T* query, const float* bias,           \
                                      const float* decay, const float* skip, const float* initial, const int32_t* document,                \
                                      const uint8_t* goes_on, const float* begins, const T* dy, const float* dlast, T* dx, T* dstep,       \
                                      T* dgate, float* dbias, float* ddecay, float* dkey, float* dquery, float* dskip, float* dinitial,    \
                                      int64_t b, int64_t t, int64_t i, int64_t n, int64_t gate_b, int64_t gate_t, float shift,             \
                                      int64_t shares, int threads) {                                                                       \
        Inputs<T> in{x, step, gate, key, query, bias, decay, skip, initial, document, goes_on};                                            \
        Outputs<T> out{dx, dstep, dgate, dbias, ddecay, dkey, dquery, dskip, dinitial};                                                    \
        backward(in, begins, dy, dlast, out, Shape{b, t, i, n, gate_b, gate_t, shift}, shares, threads);                                   \
    }
BOTH(float, f)
BOTH(bf16, b)
