// A mixture of experts: each row goes to its best experts, and only their weights are read. Which these are is computed in float32 whatever
// the form of the weights.
//
// A row of `wide` holds the normed input; each (row, choice) has a row of `hidden`: the inner channels, then what the expert gives.
#pragma once
#include "feed_forward.h"

struct Experts : Part {
    enum Step { CHOOSE, RUN, SUM };
    enum Vector { ROUTER, VECTORS };
    int64_t experts, top, shared, inner, choices, stride;
    bool renormalize;
    std::vector<Product> ups, downs;
    std::vector<int64_t> chosen;  // [row][choice], shared experts last
    std::vector<float> share;

    Experts(Pass& pass_, Reader& in) : Part(pass_, VECTORS) {
        experts = in.next(), top = in.next(), shared = in.next(), inner = in.next(), renormalize = in.next();
        choices = top + shared, stride = round_up(inner, LANES) + pass.x_stride;
        ups.resize(experts + shared), downs.resize(experts + shared);
        for (int64_t e = 0; e < experts + shared; e++) {
            shape(ups[e], 2 * round_up(inner, LANES), pass.width, nullptr, &pass.wide, pass.x_stride, &pass.hidden, stride, Target::GATE);
            shape(downs[e], pass.width, inner, nullptr, &pass.hidden, stride, &pass.hidden, stride, Target::STORE);
            downs[e].to_column = round_up(inner, LANES);
        }
        pass.hidden.use(choices * stride);
    }
    int64_t place(const Product* product, int64_t row) const override {
        return product >= ups.data() && product < ups.data() + ups.size() ? FeedForward::interleaved(row, inner) : row;
    }

    void read() override {
        chosen.resize(std::max<size_t>(chosen.size(), pass.live * choices)), share.resize(chosen.size());
        rows = pass.live;
        pass.plan(this, CHOOSE, Pass::blocks(rows));
        pass.plan(this, RUN, experts + shared);
    }
    void write() override { pass.plan(this, SUM, Pass::blocks(rows)); }
    void work(int step, int64_t chunk, Scratch& s) override {
        if (step == RUN) return run(chunk, s);
        for (int64_t row = chunk * ROWS_AT_ONCE; row < std::min(rows, (chunk + 1) * ROWS_AT_ONCE); row++)
            if (step == CHOOSE) choose(row, s);
            else add(row);
    }

  private:
    int64_t rows = 0;

    void choose(int64_t row, Scratch& s) {
        float* x = ups[0].input(row);
        own_norm(&pass.x.memory[row * pass.x_stride], x);
        if (static_cast<int64_t>(s.scores.size()) < experts) s.scores.resize(experts);
        float* score = s.scores.data();
        for (int64_t e = 0; e < experts; e++) {
            const float* weight = &vectors[ROUTER][e * pass.width];
            V total = {};
            lanes(pass.width, [&](int64_t i, auto part) { total += within(at(x + i, part) * at(weight + i, part), part, 0); });
            score[e] = sum(total);
        }
        const float best = *std::max_element(score, score + experts);
        float all = 0, taken = 0;
        for (int64_t e = 0; e < experts; e++) all += score[e] = std::exp(score[e] - best);
        int64_t* to = &chosen[row * choices];
        float* part = &share[row * choices];
        for (int64_t c = 0; c < top; c++) {
            to[c] = std::max_element(score, score + experts) - score;
            taken += part[c] = score[to[c]];
            score[to[c]] = -1;
        }
        for (int64_t c = 0; c < top; c++) part[c] /= renormalize ? taken : all;
        for (int64_t c = top; c < choices; c++) to[c] = experts + c - top, part[c] = 1;
    }

    void run(int64_t expert, Scratch& s) {
        std::vector<int64_t> members;  // row * choices + choice
        for (int64_t i = 0; i < rows * choices; i++)
            if (chosen[i] == expert) members.push_back(i);
        if (members.empty()) return;
        s.input.reserve(round_up(members.size(), 2 * TILE_ROWS), pass.widest);
        feed(ups[expert], members, choices, s);
        feed(downs[expert], members, 1, s);
    }

    // each: how many members share a row of the input.
    void feed(const Product& p, const std::vector<int64_t>& members, int64_t each, Scratch& s) {
        const int64_t n = static_cast<int64_t>(members.size());
        fetch(p.matrix.data, PREFETCH);
        for (int64_t i = 0; i < n; i++) pass.numbers.set_input(s.input, i, p.input(members[i] / each), p.matrix);
        const Target target{p.way, p.to->memory.data() + p.to_column, p.to_stride, SILU, 1, members.data()};
        pass.numbers.multiply(p.matrix, s.input, n, 0, p.matrix.panels, pass.tiles && n >= TILES_FROM_ROWS, s, target);
    }

    void add(int64_t row) {
        float* x = &pass.x.memory[row * pass.x_stride];
        for (int64_t c = 0; c < choices; c++) {
            const float* y = downs[0].input(row * choices + c) + downs[0].to_column;
            const float part = share[row * choices + c];
            for (int64_t i = 0; i < pass.x_stride; i += LANES) store(x + i, load(x + i) + load(y + i) * part);
        }
    }
};
