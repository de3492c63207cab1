// down(act(gate x) * up x), or down(act(up x)).
#pragma once
#include "layer.h"

struct FeedForward : Part {
    int64_t inner;
    bool gated;
    Product up, down;

    FeedForward(Pass& pass_, Reader& in) : Part(pass_, 0) {
        inner = in.next(), gated = in.next();
        const int activation = static_cast<int>(in.next());
        shape_input(up, gated ? 2 * round_up(inner, LANES) : inner, &pass.hidden);
        up.way = gated ? Target::GATE : Target::ACTIVATE, up.activation = activation;
        up.to_stride = round_up(inner, LANES);
        shape_output(down, inner, &pass.hidden);
    }

    void read() override { pass.plan(up); }
    void write() override { pass.plan(down); }
    void work(int, int64_t, Scratch&) override {}
    int64_t place(const Product* product, int64_t row) const override { return product == &up && gated ? interleaved(row, inner) : row; }

    // Rows of gate and up lie in alternate panels, so that one call has both halves of 16 hidden channels.
    static int64_t interleaved(int64_t row, int64_t inner) {
        const bool is_up = row >= inner;
        const int64_t channel = is_up ? row - inner : row;
        return (channel / LANES * 2 + is_up) * LANES + channel % LANES;
    }
};
