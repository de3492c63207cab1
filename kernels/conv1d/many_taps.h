// The convolution for any number of taps: a vector of channels of one document is laid beside one another, with what
// precedes them in front, and both directions are the same product sum_a A[a] X[r + a], held in registers for eight r at a time:
//   outputs    A = taps, X = inputs      gradient of inputs    A = taps backwards, X = gradient with zeros on both sides
//   gradient of taps    A = gradient, X = inputs
#pragma once
#include <vector>

#include "../lanes.h"

constexpr int64_t FEW = 8;          // outputs held in registers
constexpr int64_t IN_CACHE = 256;   // of A at a time, so that what it meets stays in the first cache

INLINE V row_at(const float* x, int64_t i) { return load(x + i * LANES); }

template <int R>
static void correlate_some(float* out, const float* a, int64_t count, const float* x) {
    V sums[R];
    for (int r = 0; r < R; r++) sums[r] = row_at(out, r);
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        V seen[R + 3];
        for (int r = 0; r < R + 3; r++) seen[r] = row_at(x, i + r);
        for (int k = 0; k < 4; k++) {
            V factor = row_at(a, i + k);
            for (int r = 0; r < R; r++) sums[r] += factor * seen[r + k];
        }
    }
    for (; i < count; i++)
        for (int r = 0; r < R; r++) sums[r] += row_at(a, i) * row_at(x, i + r);
    for (int r = 0; r < R; r++) store(out + r * LANES, sums[r]);
}

// out[r] += sum_a a[a] x[r + a] for r below `outputs`, rows of LANES; x has outputs + count - 1 rows
static void correlate(float* out, int64_t outputs, const float* a, int64_t count, const float* x) {
    for (int64_t first = 0; first < count; first += IN_CACHE) {
        int64_t some = count - first < IN_CACHE ? count - first : IN_CACHE;
        const float *part = a + first * LANES, *seen = x + first * LANES;
        int64_t r = 0;
        for (; r + FEW <= outputs; r += FEW) correlate_some<FEW>(out + r * LANES, part, some, seen + r * LANES);
        for (; r < outputs; r++) correlate_some<1>(out + r * LANES, part, some, seen + r * LANES);
    }
}

// Runs of tokens of one document in a row of the batch, padding left out.
struct Runs {
    std::vector<int64_t> token, start;  // places of the tokens; where in `token` each run begins, and the end
    bool first_goes_on = false;
    void find(const int32_t* document, int64_t t, bool goes_on) {
        token.clear();
        start.clear();
        int32_t current = 0;
        for (int64_t i = 0; i < t; i++) {
            if (document[i] <= 0) continue;
            if (document[i] != current) start.push_back(static_cast<int64_t>(token.size()));
            current = document[i];
            token.push_back(i);
        }
        start.push_back(static_cast<int64_t>(token.size()));
        first_goes_on = goes_on;
    }
    int64_t count() const { return static_cast<int64_t>(start.size()) - 1; }
};

// LANES channels (or the `width` that are left) of the tensors, from their first channel on.
template <class T>
struct Block {
    const T *x, *state;
    const float *weight, *bias;  // weight [taps, LANES]
    int64_t width, taps, past;
    std::vector<float> inputs, sums, slopes_in, slopes_out, turned;

    // Inputs of a run with what precedes it: the state [c, taps - 1] or zeros.
    void gather(const Runs& runs, int64_t run, int64_t stride_t) {
        int64_t n = runs.start[run + 1] - runs.start[run];
        inputs.assign((past + n) * LANES, 0.0f);
        if (run == 0 && runs.first_goes_on && state)
            for (int64_t j = 0; j < past; j++)
                for (int64_t c = 0; c < width; c++) inputs[j * LANES + c] = load_some(state + c * past + j, 1)[0];
        for (int64_t i = 0; i < n; i++)
            store(inputs.data() + (past + i) * LANES, load_row(x + runs.token[runs.start[run] + i] * stride_t));
    }
    template <class N>
    V load_row(const N* p) const {
        return width == LANES ? load(p) : load_some(p, width);
    }
    void put_row(T* p, V value) const {
        if (width == LANES) store(p, value);
        else store_some(p, value, width);
    }
    // The convolution of the gathered run, before the activation.
    void convolve(int64_t n) {
        sums.resize(n * LANES);
        V begin = bias ? load_row(bias) : V{};
        for (int64_t i = 0; i < n; i++) store(sums.data() + i * LANES, begin);
        correlate(sums.data(), n, weight, taps, inputs.data());
    }
};

template <class T>
static void forward_many(Block<T>& block, const Runs& runs, T* y, T* last, int silu, int64_t t, int64_t c, int64_t stride_t,
                         const int32_t* document) {
    for (int64_t i = 0; i < t; i++)
        if (document[i] <= 0) block.put_row(y + i * c, V{});
    if (!runs.count())
        for (int64_t k = 0; k < block.width * block.past; k++) last[k] = block.state ? block.state[k] : T{};
    for (int64_t run = 0; run < runs.count(); run++) {
        int64_t begin = runs.start[run], n = runs.start[run + 1] - begin;
        block.gather(runs, run, stride_t);
        block.convolve(n);
        for (int64_t i = 0; i < n; i++) {
            V z = row_at(block.sums.data(), i);
            block.put_row(y + runs.token[begin + i] * c, silu ? z * sigmoid(z) : z);
        }
        if (run + 1 == runs.count())
            for (int64_t j = 0; j < block.past; j++)
                for (int64_t k = 0; k < block.width; k++) store_some(last + k * block.past + j, splat(block.inputs[(n + j) * LANES + k]), 1);
    }
}

// slopes: [taps + 1, LANES], those of the weight and then of the bias, added to
template <class T>
static void backward_many(Block<T>& block, const Runs& runs, const T* dy, const T* dlast, T* dx, float* slopes, T* dstate, int silu, int64_t t,
                          int64_t c, int64_t stride_t, const int32_t* document) {
    const int64_t past = block.past, taps = block.taps;
    for (int64_t i = 0; i < t; i++)
        if (document[i] <= 0) block.put_row(dx + i * c, V{});
    if (!runs.count() && dstate && dlast) memcpy(static_cast<void*>(dstate), dlast, block.width * past * sizeof(T));
    block.turned.resize(taps * LANES);
    for (int64_t j = 0; j < taps; j++) store(block.turned.data() + j * LANES, row_at(block.weight, taps - 1 - j));
    for (int64_t run = 0; run < runs.count(); run++) {
        int64_t begin = runs.start[run], n = runs.start[run + 1] - begin;
        block.gather(runs, run, stride_t);
        if (silu) block.convolve(n);
        block.slopes_out.assign((n + 2 * past) * LANES, 0.0f);
        float* gradient = block.slopes_out.data() + past * LANES;
        V total = row_at(slopes, taps);
        for (int64_t i = 0; i < n; i++) {
            V slope = block.load_row(dy + runs.token[begin + i] * c);
            if (silu) {
                V z = row_at(block.sums.data(), i), p = sigmoid(z);
                slope *= p + z * p * (1.0f - p);
            }
            total += slope;
            store(gradient + i * LANES, slope);
        }
        store(slopes + taps * LANES, total);
        correlate(slopes, taps, gradient, n, block.inputs.data());
        bool to_state = run == 0 && runs.first_goes_on && dstate, kept = run + 1 == runs.count() && dlast;
        block.slopes_in.assign((past + n) * LANES, 0.0f);
        if (kept)
            for (int64_t j = 0; j < past; j++)
                for (int64_t k = 0; k < block.width; k++) block.slopes_in[(n + j) * LANES + k] = load_some(dlast + k * past + j, 1)[0];
        int64_t skipped = to_state ? 0 : past;
        correlate(block.slopes_in.data() + skipped * LANES, past + n - skipped, block.turned.data(), taps,
                  block.slopes_out.data() + skipped * LANES);
        for (int64_t i = 0; i < n; i++) block.put_row(dx + runs.token[begin + i] * c, row_at(block.slopes_in.data(), past + i));
        if (to_state)
            for (int64_t j = 0; j < past; j++)
                for (int64_t k = 0; k < block.width; k++) store_some(dstate + k * past + j, splat(block.slopes_in[j * LANES + k]), 1);
    }
}
