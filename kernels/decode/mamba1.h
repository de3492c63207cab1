// Mamba-1: every channel has its own time step and every state its own decay.
//
// A row of `wide` holds [x | z], x convolved; a row of `hidden` what depends on it: [low-rank step, B, C | step]. The state is [states]
// [padded channels].
#pragma once
#include "short_conv.h"

struct Mamba1 : Recurrence {
    enum Vector { CONV_WEIGHT, CONV_BIAS, STEP_BIAS, DECAY, SKIP, VECTORS };
    static constexpr int64_t BLOCK = 4 * LANES;  // channels for one thread at a time
    struct Shape {
        int64_t inner, states, rank, taps, negative;
        explicit Shape(Reader& in) : inner(in.next()), states(in.next()), rank(in.next()), taps(in.next()), negative(in.next()) {}
        int64_t padded() const { return round_up(inner, LANES); }
        int64_t selected() const { return round_up(rank + 2 * states, LANES); }
    };
    Shape z;
    Product input, select, step, out;
    std::vector<float> rate;  // [states][padded], times log2(e)

    Mamba1(Pass& pass_, Reader& in) : Mamba1(pass_, Shape(in)) {}
    Mamba1(Pass& pass_, const Shape& shape_)
        : Recurrence(pass_, VECTORS, ShortConv(shape_.inner, shape_.taps), 0, shape_.states * shape_.padded()), z(shape_) {
        const int64_t stride = z.selected() + z.padded();
        shape_input(input, 2 * z.inner, &pass.wide);
        shape(select, z.rank + 2 * z.states, z.inner, nullptr, &pass.wide, input.to_stride, &pass.hidden, stride, Target::STORE);
        shape(step, z.inner, z.rank, nullptr, &pass.hidden, stride, &pass.hidden, stride, Target::STORE);
        step.to_column = z.selected();
        shape_output(out, z.inner, &pass.mixed);
    }
    void ready() override {
        conv.set(vectors[CONV_WEIGHT], vectors[CONV_BIAS]);
        rate.assign(z.states * z.padded(), 0);
        put_recurrent(rate.data(), vectors[DECAY].data());
        for (float& r : rate) r *= LOG2E;
    }

    void read() override {
        pass.plan(input);
        plan_convolution();
        pass.plan(select);
        pass.plan(step);
        pass.plan(this, SCAN, pass.runs.size() * blocks());
        keep();
    }
    void write() override { pass.plan(out); }
    void work(int step_, int64_t chunk, Scratch&) override {
        if (step_ == CONVOLVE) return convolve(chunk);
        const int64_t begin = chunk % blocks() * BLOCK;
        const Run& run = pass.runs[chunk / blocks()];
        lanes(std::min(z.inner - begin, BLOCK), [&](int64_t i, auto part) { scan(run, begin + i, part); });
    }

    int64_t recurrent_floats() const override { return z.inner * z.states; }
    void put_recurrent(float* to, const float* from) const override { to_lanes(to, from, 1, z.inner, z.states, z.padded()); }
    void get_recurrent(const float* from, float* to) const override { from_lanes(to, from, 1, z.inner, z.states, z.padded()); }

  private:
    int64_t blocks() const { return (z.inner + BLOCK - 1) / BLOCK; }

    // h <- a h + step x B;  y = (h C + skip x) silu(z), for a vector of channels from i.
    template <class P>
    void scan(const Run& run, int64_t i, P part) {
        const V bias = at(&vectors[STEP_BIAS][i], part), skip = at(&vectors[SKIP][i], part);
        for (int64_t row = run.begin; row < run.end; row++) {
            const float *selected = &pass.hidden.memory[row * select.to_stride], *key = selected + z.rank, *query = key + z.states;
            float* held = state(run.sequence) + i;
            const V x = at(wide(row) + i, part), time = softplus(at(selected + z.selected() + i, part) + bias), enters = time * x;
            V y = skip * x;
            for (int64_t s = 0; s < z.states; s++, held += z.padded()) {
                const V e = exp2(time * load(&rate[s * z.padded() + i])), a = z.negative ? e + e - 1.0f : e;
                const V h = a * load(held) + enters * key[s];
                store(held, within(h, part, 0));
                y += h * query[s];
            }
            const int64_t result = result_of(row);
            if (result < 0) continue;
            const V gate = at(wide(row) + z.inner + i, part);
            put(out.input(result) + i, y * (gate * sigmoid(gate)), part);
        }
    }
};
