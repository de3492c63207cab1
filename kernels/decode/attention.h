// Softmax attention over the cached tokens of a sequence, with grouped key heads. A position is the count of the tokens before; what a token
// is turned by, and which marked tokens it sees, may be given.
#pragma once
#include "layer.h"

struct Attention : Part {
    enum Step { APPEND, ATTEND };
    enum Vector { Q_NORM, K_NORM, VECTORS };
    int64_t heads, kv_heads, head_size, window;
    bool head_norm, gated;
    float head_norm_eps, scale;
    const Rotation* rotation;
    Product qkv, out;  // with a gate, as many more rows as queries
    std::unique_ptr<KeyValues> cache, fresh;

    Attention(Pass& pass_, Reader& in) : Part(pass_, VECTORS) {
        heads = in.next(), kv_heads = in.next(), head_size = in.next(), window = in.next(), head_norm = in.next(), gated = in.next();
        const int64_t pairs = in.next();
        scale = in.next_real(), head_norm_eps = in.next_real();
        const float rotation_scale = in.next_real();
        rotation = pass.rotation(in.real, pairs, rotation_scale);
        in.real += pairs;
        shape_input(qkv, ((gated ? 2 : 1) * heads + 2 * kv_heads) * head_size, &pass.wide);
        shape_output(out, heads * head_size, &pass.mixed);
        cache = pass.numbers.key_values(kv_heads, head_size);
    }

    void read() override {
        pass.plan(qkv);
        if (!pass.alone()) pass.plan(this, APPEND, pass.runs.size() * kv_heads);
        if (keep()) pass.plan(this, ATTEND, pass.live * kv_heads);
    }
    void write() override { pass.plan(out); }

    void work(int step, int64_t chunk, Scratch& s) override {
        const int64_t g = chunk % kv_heads;
        if (step == ATTEND) return attend(chunk / kv_heads, g, s);
        const Run& run = pass.runs[chunk / kv_heads];
        for (int64_t row = run.begin; row < run.end; row++) append(row, g, s);
    }

    void remake(int64_t batch, int64_t tokens, const int64_t* from) override {
        fresh = cache->remade(batch, tokens, from, pass.sequences.length);
    }
    void commit() override { cache = std::move(fresh); }

    // Keys (0) or values (1): [batch][kv_heads][tokens][head_size]. Values come after the keys of the same tokens.
    void put_state(int which, const float* from, int64_t tokens, Scratch& s) override {
        if (which == 0) {
            given.assign(from, from + pass.sequences.batch * kv_heads * tokens * head_size);
            return;
        }
        each(tokens, [&](int64_t sequence, int64_t g, int64_t t, int64_t place) { cache->put(sequence, g, t, &given[place], from + place, s); });
        given.clear();
    }
    void get_state(int which, float* to, int64_t tokens) const override {
        std::vector<float> other(head_size);
        each(tokens, [&](int64_t sequence, int64_t g, int64_t t, int64_t place) {
            cache->get(sequence, g, t, which ? other.data() : to + place, which ? to + place : other.data());
        });
    }

  private:
    std::vector<float> given;  // keys that wait for their values

    template <class F>
    void each(int64_t tokens, F f) const {
        for (int64_t unit = 0; unit < pass.sequences.batch * kv_heads; unit++)
            for (int64_t t = 0; t < pass.sequences.length[unit / kv_heads]; t++)
                f(unit / kv_heads, unit % kv_heads, t, (unit * tokens + t) * head_size);
    }

    float* projected(int64_t row) const { return &pass.wide.memory[row * qkv.to_stride]; }

    void turn(float* head, const std::vector<float>& weight, int64_t row) const {
        if (head_norm) {
            const float inverse = 1 / std::sqrt(sum_of_squares(head, head_size) / head_size + head_norm_eps);
            for (int64_t i = 0; i < head_size; i++) head[i] *= inverse * weight[i];
        }
        rotation->turn(head, row);
    }

    void append(int64_t row, int64_t g, Scratch& s) {
        const int64_t group = heads / kv_heads;
        float *base = projected(row), *key = base + (heads + g) * head_size;
        for (int64_t i = 0; i < group; i++) turn(base + (g * group + i) * head_size, vectors[Q_NORM], row);
        turn(key, vectors[K_NORM], row);
        cache->put(pass.rows[row].sequence, g, pass.rows[row].position, key, key + kv_heads * head_size, s);
    }

    void attend(int64_t result, int64_t g, Scratch& s) {
        const int64_t row = last ? pass.out_rows[result] : result, sequence = pass.rows[row].sequence;
        cache->approach(sequence, g);
        if (pass.alone()) append(row, g, s);
        const int64_t group = heads / kv_heads, at_head = g * group * head_size, n = group * head_size;
        const int64_t length = pass.rows[row].position + 1, start = window > 0 ? std::max<int64_t>(0, length - window) : 0;
        float* y = &pass.mixed.memory[result * out.from_stride + at_head];
        const Row& query = pass.rows[row];
        const auto& mark = pass.sequences.mark;
        const Hidden hidden{mark.empty() ? nullptr : mark[sequence].data(), query.reach[0], query.reach[1]};
        cache->attend(sequence, g, projected(row) + at_head, static_cast<int>(group), start, length, hidden, scale, s, y);
        if (!gated) return;
        const float* gate = projected(row) + (heads + 2 * kv_heads) * head_size + at_head;
        lanes(n, [&](int64_t i, auto part) { put(y + i, at(y + i, part) * sigmoid(at(gate + i, part)), part); });
    }
};
