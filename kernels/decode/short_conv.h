// The causal depthwise convolution of a recurrent mixer, silu behind it, one token after the other in place.
//
// A tail holds the last taps - 1 inputs of a sequence, oldest first: [taps - 1][channels]; outside it is [channels][taps - 1].
#pragma once
#include "layer.h"

struct ShortConv {
    static constexpr int64_t BLOCK = 16 * LANES;  // channels for one thread at a time
    int64_t channels = 0, taps = 0, padded = 0;
    std::vector<float> weight, bias;  // [taps][padded]

    ShortConv(int64_t channels_, int64_t taps_) : channels(channels_), taps(taps_), padded(round_up(channels_, LANES)) {}

    int64_t tail_floats() const { return (taps - 1) * padded; }
    int64_t chunks() const { return (channels + BLOCK - 1) / BLOCK; }

    // weight: [channels][taps]; bias may be empty.
    void set(const std::vector<float>& weight_, const std::vector<float>& bias_) {
        weight.assign(taps * padded, 0);
        for (int64_t c = 0; c < channels; c++)
            for (int64_t k = 0; k < taps; k++) weight[k * padded + c] = weight_[c * taps + k];
        bias = bias_;
        bias.resize(padded, 0);
    }

    // One block of channels of the rows of a sequence: x + row * stride.
    void work(float* x, int64_t stride, int64_t rows, float* tail, int64_t chunk) const {
        const int64_t begin = chunk * BLOCK, n = std::min(channels - begin, BLOCK);
        for (int64_t row = 0; row < rows; row++, x += stride)
            lanes(n, [&](int64_t i, auto part) {
                const int64_t c = begin + i;
                const V entering = at(x + c, part);
                V y = load(&bias[c]) + load(&weight[(taps - 1) * padded + c]) * entering;
                for (int64_t k = 0; k + 1 < taps; k++) {
                    float* place = tail + k * padded + c;
                    const V held = load(place);
                    y += load(&weight[k * padded + c]) * held;
                    store(place, k + 2 < taps ? load(place + padded) : within(entering, part, 0));
                }
                put(x + c, y * sigmoid(y), part);
            });
    }

    void put_tail(float* tail, const float* from) const {
        for (int64_t c = 0; c < channels; c++)
            for (int64_t k = 0; k + 1 < taps; k++) tail[k * padded + c] = from[c * (taps - 1) + k];
    }
    void get_tail(const float* tail, float* to) const {
        for (int64_t c = 0; c < channels; c++)
            for (int64_t k = 0; k + 1 < taps; k++) to[c * (taps - 1) + k] = tail[k * padded + c];
    }
};

// A mixer that keeps a convolution's tail and a recurrent state of each sequence, in this order: tensors 0 and 1.
struct Recurrence : Part {
    enum Step { CONVOLVE, SCAN, FINISH };
    ShortConv conv;
    int64_t conv_column;  // of the convolved channels in the rows of `wide`
    Kept kept;

    Recurrence(Pass& pass_, int64_t num_vectors, const ShortConv& conv_, int64_t conv_column_, int64_t state_floats)
        : Part(pass_, num_vectors, true), conv(conv_), conv_column(conv_column_) {
        kept.size = conv.tail_floats() + round_up(state_floats, LANES);
    }

    float* state(int64_t sequence) const { return kept.of(sequence) + conv.tail_floats(); }
    float* wide(int64_t row) const { return &pass.wide.memory[row * products[0]->to_stride]; }
    void convolve(int64_t chunk) {
        const Run& run = pass.runs[chunk / conv.chunks()];
        conv.work(wide(run.begin) + conv_column, products[0]->to_stride, run.end - run.begin, kept.of(run.sequence), chunk % conv.chunks());
    }
    void plan_convolution() { pass.plan(this, CONVOLVE, pass.runs.size() * conv.chunks()); }

    void remake(int64_t batch, int64_t, const int64_t* from) override { kept.remake(batch, from); }
    void commit() override { kept.commit(); }
    void forget(int64_t sequence) override { kept.forget(sequence); }
    void put_state(int which, const float* from, int64_t, Scratch&) override {
        for (int64_t b = 0; b < kept.batch; b++)
            if (which == 0) conv.put_tail(kept.of(b), from + b * conv.channels * (conv.taps - 1));
            else put_recurrent(state(b), from + b * recurrent_floats());
    }
    void get_state(int which, float* to, int64_t) const override {
        for (int64_t b = 0; b < kept.batch; b++)
            if (which == 0) conv.get_tail(kept.of(b), to + b * conv.channels * (conv.taps - 1));
            else get_recurrent(state(b), to + b * recurrent_floats());
    }

    // The state as the layers keep it.
    virtual int64_t recurrent_floats() const = 0;
    virtual void put_recurrent(float* state, const float* from) const = 0;
    virtual void get_recurrent(const float* state, float* to) const = 0;
};

// [units][rows][columns] as [units][columns][padded rows], and back: lanes go over the rows.
INLINE void to_lanes(float* to, const float* from, int64_t units, int64_t rows, int64_t columns, int64_t padded) {
    for (int64_t u = 0; u < units; u++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) to[(u * columns + c) * padded + r] = from[(u * rows + r) * columns + c];
}
INLINE void from_lanes(float* to, const float* from, int64_t units, int64_t rows, int64_t columns, int64_t padded) {
    for (int64_t u = 0; u < units; u++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) to[(u * rows + r) * columns + c] = from[(u * columns + c) * padded + r];
}
