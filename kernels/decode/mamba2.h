// Mamba-2: one decay a head.
//
// A row of `wide` holds [z | x, B, C | step]; x, B, C are convolved. The state of a head is [state channels][padded head channels], so that
// neither the update nor the output sums across lanes.
#pragma once
#include "short_conv.h"

struct Mamba2 : Recurrence {
    enum Vector { CONV_WEIGHT, CONV_BIAS, STEP_BIAS, DECAY, SKIP, NORM, VECTORS };
    struct Shape {
        int64_t heads, head_size, states, groups, taps, norm_groups;
        float min_step, max_step, norm_eps;
        explicit Shape(Reader& in)
            : heads(in.next()), head_size(in.next()), states(in.next()), groups(in.next()), taps(in.next()), norm_groups(in.next()),
              min_step(in.next_real()), max_step(in.next_real()), norm_eps(in.next_real()) {}
        int64_t inner() const { return heads * head_size; }
        int64_t convolved() const { return inner() + 2 * groups * states; }
        int64_t padded() const { return round_up(head_size, LANES); }
    };
    Shape z;
    Product input, out;

    Mamba2(Pass& pass_, Reader& in) : Mamba2(pass_, Shape(in)) {}
    Mamba2(Pass& pass_, const Shape& shape_)
        : Recurrence(pass_, VECTORS, ShortConv(shape_.convolved(), shape_.taps), shape_.inner(), shape_.heads * shape_.states * shape_.padded()),
          z(shape_) {
        shape_input(input, z.inner() + z.convolved() + z.heads, &pass.wide);
        shape_output(out, z.inner(), &pass.mixed);
    }
    void ready() override { conv.set(vectors[CONV_WEIGHT], vectors[CONV_BIAS]); }

    void read() override {
        pass.plan(input);
        plan_convolution();
        pass.plan(this, SCAN, pass.runs.size() * z.heads);
        if (keep()) pass.plan(this, FINISH, Pass::blocks(pass.live));
    }
    void write() override { pass.plan(out); }
    void work(int step, int64_t chunk, Scratch&) override {
        if (step == CONVOLVE) return convolve(chunk);
        if (step == SCAN) return scan(pass.runs[chunk / z.heads], chunk % z.heads);
        const int64_t end = std::min(results(), (chunk + 1) * ROWS_AT_ONCE);
        for (int64_t i = chunk * ROWS_AT_ONCE; i < end; i++) norm(out.input(i));
    }

    int64_t recurrent_floats() const override { return z.heads * z.head_size * z.states; }
    void put_recurrent(float* to, const float* from) const override { to_lanes(to, from, z.heads, z.head_size, z.states, z.padded()); }
    void get_recurrent(const float* from, float* to) const override { from_lanes(to, from, z.heads, z.head_size, z.states, z.padded()); }

  private:
    void scan(const Run& run, int64_t head) {
        float* held = state(run.sequence) + head * z.states * z.padded();
        for (int64_t row = run.begin; row < run.end; row++) {
            const float *gate = wide(row), *x = gate + z.inner(), *key = x + z.inner() + head / (z.heads / z.groups) * z.states;
            const float* query = key + z.groups * z.states;
            const float raw = x[z.convolved() + head] + vectors[STEP_BIAS][head];
            const float step = std::min(std::max(raw > 20 ? raw : std::log1p(std::exp(raw)), z.min_step), z.max_step);
            const float kept_share = std::exp(step * vectors[DECAY][head]);
            const int64_t result = result_of(row), first = head * z.head_size;
            float* y = result < 0 ? nullptr : out.input(result) + first;
            for (int64_t i = 0, n; i < z.head_size; i += n) {
                const bool four = z.padded() - i >= 4 * LANES;
                n = std::min(z.head_size - i, four ? 4 * LANES : LANES);
                const auto some = four ? &Mamba2::advance<4> : &Mamba2::advance<1>;
                (this->*some)(held + i, x + first + i, gate + first + i, key, query, step, kept_share, vectors[SKIP][head], n, y ? y + i : y);
            }
        }
    }

    // h <- a h + step x B;  y = (h C + skip x) silu(z), for n channels of a head in J vectors.
    template <int J>
    void advance(float* held, const float* x, const float* gate, const float* key, const float* query, float step, float kept_share, float skip,
                 int64_t n, float* y) const {
        V enters[J] = {}, sums[J] = {};
        lanes(n, [&](int64_t i, auto part) { enters[i / LANES] = at(x + i, part) * step; });
        for (int64_t s = 0; s < z.states; s++, held += z.padded())
            for (int j = 0; j < J; j++) {
                const V h = load(held + j * LANES) * kept_share + enters[j] * key[s];
                store(held + j * LANES, h);
                sums[j] += h * query[s];
            }
        if (!y) return;
        lanes(n, [&](int64_t i, auto part) {
            const V g = at(gate + i, part);
            put(y + i, (sums[i / LANES] + at(x + i, part) * skip) * (g * sigmoid(g)), part);
        });
    }

    void norm(float* y) const {
        const int64_t n = z.inner() / z.norm_groups;
        for (int64_t group = 0; group < z.norm_groups; group++, y += n) {
            const float inverse = 1 / std::sqrt(sum_of_squares(y, n) / n + z.norm_eps);
            const float* weight = &vectors[NORM][group * n];
            lanes(n, [&](int64_t i, auto part) { put(y + i, at(y + i, part) * inverse * at(weight + i, part), part); });
        }
    }
};
