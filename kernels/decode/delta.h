// The delta rule: DeltaNet, gated DeltaNet and DeltaProduct.
//
// A row of `wide` holds [q, k of each micro-step, v of each micro-step | gate | beta of each micro-step | step of the decay]; q, k, v are
// convolved. The state of a head is [key channels][padded value channels], so that no sum over key channels goes across lanes.
#pragma once
#include "short_conv.h"

struct DeltaNet : Recurrence {
    enum Vector { CONV_WEIGHT, CONV_BIAS, STEP_BIAS, DECAY, NORM, VECTORS };
    enum Gate { NONE, SILU_GATE, SIGMOID_GATE };
    struct Shape {
        int64_t heads, key_heads, key_size, value_size, micro_steps, taps, decays, negative, gate;
        float norm_eps;
        explicit Shape(Reader& in)
            : heads(in.next()), key_heads(in.next()), key_size(in.next()), value_size(in.next()), micro_steps(in.next()), taps(in.next()),
              decays(in.next()), negative(in.next()), gate(in.next()), norm_eps(in.next_real()) {}
        int64_t keys() const { return key_heads * key_size; }
        int64_t values() const { return heads * value_size; }
        int64_t convolved() const { return keys() + micro_steps * (keys() + values()); }
        int64_t padded() const { return round_up(value_size, LANES); }
    };
    Shape z;
    Product input, out;

    DeltaNet(Pass& pass_, Reader& in) : DeltaNet(pass_, Shape(in)) {}
    DeltaNet(Pass& pass_, const Shape& shape_)
        : Recurrence(pass_, VECTORS, ShortConv(shape_.convolved(), shape_.taps), 0, shape_.heads * shape_.key_size * shape_.padded()), z(shape_) {
        shape_input(input, z.convolved() + (z.gate ? z.values() : 0) + z.heads * (z.micro_steps + z.decays), &pass.wide);
        shape_output(out, z.values(), &pass.mixed);
    }
    void ready() override { conv.set(vectors[CONV_WEIGHT], vectors[CONV_BIAS]); }

    void read() override {
        pass.plan(input);
        plan_convolution();
        pass.plan(this, SCAN, pass.runs.size() * z.heads);
        keep();
    }
    void write() override { pass.plan(out); }
    void work(int step, int64_t chunk, Scratch& s) override {
        if (step == CONVOLVE) return convolve(chunk);
        scan(pass.runs[chunk / z.heads], chunk % z.heads, s);
    }

    int64_t recurrent_floats() const override { return z.heads * z.key_size * z.value_size; }
    void put_recurrent(float* to, const float* from) const override {
        for (int64_t i = 0; i < z.heads * z.key_size; i++) memcpy(to + i * z.padded(), from + i * z.value_size, z.value_size * 4);
    }
    void get_recurrent(const float* from, float* to) const override {
        for (int64_t i = 0; i < z.heads * z.key_size; i++) memcpy(to + i * z.value_size, from + i * z.padded(), z.value_size * 4);
    }

  private:
    void scan(const Run& run, int64_t head, Scratch& s) {
        const int64_t key_head = head / (z.heads / z.key_heads), padded = z.padded();
        if (static_cast<int64_t>(s.normed.size()) < 2 * z.key_size + 2 * padded) s.normed.resize(2 * z.key_size + 2 * padded);
        float *query = s.normed.data(), *key = query + z.key_size, *change = key + z.key_size, *y = change + padded;
        float* held = state(run.sequence) + head * z.key_size * padded;
        for (int64_t row = run.begin; row < run.end; row++) {
            const float *q = wide(row) + key_head * z.key_size, *k = q + z.keys(), *v = wide(row) + (1 + z.micro_steps) * z.keys();
            const float *gate = wide(row) + z.convolved(), *beta = gate + (z.gate ? z.values() : 0), *step = beta + z.micro_steps * z.heads;
            unit(q, query, 1 / std::sqrt(static_cast<float>(z.key_size)));
            float kept_share = 1;
            if (z.decays) {
                const float raw = step[head] + vectors[STEP_BIAS][head];
                kept_share = std::exp(vectors[DECAY][head] * (raw > 20 ? raw : std::log1p(std::exp(raw))));
            }
            for (int64_t m = 0; m < z.micro_steps; m++, kept_share = 1) {
                unit(k + m * z.keys(), key, 1);
                const float strength = (z.negative ? 2 : 1) / (1 + std::exp(-beta[m * z.heads + head]));
                const float* value = v + m * z.values() + head * z.value_size;
                const bool reads = m == z.micro_steps - 1;
                for (int64_t i = 0, n; i < z.value_size; i += n) {
                    const bool four = padded - i >= 4 * LANES;
                    n = std::min(z.value_size - i, four ? 4 * LANES : LANES);
                    const auto some = four ? &DeltaNet::advance<4> : &DeltaNet::advance<1>;
                    (this->*some)(held + i, key, reads ? query : nullptr, value + i, n, kept_share, strength, y + i);
                }
            }
            const int64_t result = result_of(row);
            if (result >= 0) finish(y, gate + head * z.value_size, out.input(result) + head * z.value_size);
        }
    }

    void unit(const float* from, float* to, float scale) const {
        const float inverse = scale / std::sqrt(sum_of_squares(from, z.key_size) + 1e-6f);
        lanes(z.key_size, [&](int64_t i, auto part) { put(to + i, at(from + i, part) * inverse, part); });
    }

    // S <- a S;  S <- S + k (beta (v - S^T k))^T;  y = S^T q where q is given, for n value channels in J vectors.
    template <int J>
    void advance(float* held, const float* key, const float* query, const float* value, int64_t n, float kept_share, float strength,
                 float* y) const {
        V found[J] = {}, change[J] = {}, sums[J] = {};
        const float* at_key = held;
        for (int64_t k = 0; k < z.key_size; k++, at_key += z.padded())
            for (int j = 0; j < J; j++) found[j] += load(at_key + j * LANES) * key[k];
        lanes(n, [&](int64_t i, auto part) { change[i / LANES] = at(value + i, part); });
        for (int j = 0; j < J; j++) change[j] = (change[j] - found[j] * kept_share) * strength;
        for (int64_t k = 0; k < z.key_size; k++, held += z.padded())
            for (int j = 0; j < J; j++) {
                const V s = load(held + j * LANES) * kept_share + change[j] * key[k];
                store(held + j * LANES, s);
                if (query) sums[j] += s * query[k];
            }
        for (int j = 0; query && j < J; j++) store(y + j * LANES, sums[j]);
    }

    void finish(const float* y, const float* gate, float* to) const {
        const int64_t n = z.value_size;
        const float inverse = vectors[NORM].empty() ? 1 : 1 / std::sqrt(sum_of_squares(y, n) / n + z.norm_eps);
        lanes(n, [&](int64_t i, auto part) {
            V v = at(y + i, part) * inverse;
            if (!vectors[NORM].empty()) v *= at(&vectors[NORM][i], part);
            if (z.gate) {
                const V g = at(gate + i, part);
                v *= z.gate == SILU_GATE ? g * sigmoid(g) : sigmoid(g);
            }
            put(to + i, v, part);
        });
    }
};
