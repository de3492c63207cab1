// The decoder but for the forms of its numbers: sizes, norms, rotation, the phases of a step, prompts and greedy search.
//
// The equations are in reference.py. A pass takes up to PASS_ROWS tokens of any sequences through the layers together. In the last layer
// only the tokens whose logits are wanted go on after their keys and values are in the cache.
#pragma once
#include "cache.h"
#include "team.h"

struct Sizes {  // in the order of fast.py
    int64_t vocabulary, width, layers, heads, kv_heads, head_size, hidden, gated, activation, layer_norm, parallel, qk_norm, positions, tied,
        rope_pairs, threads;
};
struct Reals {
    float norm_eps, qk_norm_eps, attention_scale, embedding_scale, logit_scale, rope_scale;
};
enum MatrixId { QKV, OUT, UP, DOWN, HEAD, EMBEDDING, POSITIONS };
enum VectorId { NORM1, NORM1_BIAS, NORM2, NORM2_BIAS, Q_NORM, K_NORM, BIAS_QKV, BIAS_OUT, BIAS_UP, BIAS_DOWN, FINAL, FINAL_BIAS, BIAS_HEAD };
enum Kind { DO_QKV, DO_APPEND, DO_KEEP, DO_ATTEND, DO_OUT, DO_UP, DO_DOWN, DO_HEAD, PREPARE = 16 };
enum Fault { FINE = 0, BAD_ID = -1, BAD_POSITION = -2, NO_MEMORY = -3, NOT_FINITE = -4 };

constexpr int64_t PASS_ROWS = 128;            // tokens that go through the layers together
constexpr int64_t CHUNK_BYTES = 64 << 10;     // of weights, for one thread at a time
constexpr int64_t TOGETHER_BYTES = 4 << 20;   // of weights times rows / 16: below, about 0.2 ms of work, one thread is enough

struct Layer {
    Matrix matrix[4];
    std::vector<float> vector[FINAL];
    int64_t window = 0;
};

struct Row {
    int64_t sequence, position, token, at;  // at: its place among the ids of the call
};

struct Decoder {
    Sizes z;
    Reals r;
    std::vector<Layer> layers;
    Matrix head;
    std::vector<float> final_norm, final_bias, frequencies, positions;
    std::vector<Scratch> scratch;  // one a thread
    Activations shared;
    Team team;

    int64_t x_stride, qkv_stride, attended_stride, hidden_stride;
    std::vector<float> x, qkv, attended, h, cosine, sine;
    std::vector<Row> rows;
    std::vector<int64_t> out_rows, out_sequences;  // rows of the pass whose logits are wanted
    float *logits = nullptr, *hidden_out = nullptr;
    int64_t first_panel = 0, last_panel = 0, weight_bytes = 0, misfits = 0;  // misfits: rows that the form of the weights cannot hold
    bool alone = true;   // no two rows of this pass belong to one sequence
    bool tiles = false;  // this pass uses AMX

    // What depends on the forms of weights and cache.
    virtual Sequences& sequences() = 0;
    virtual void remake(int64_t batch, int64_t tokens, const int64_t* from) = 0;
    virtual bool pack(Matrix& m, int64_t to, const float* row) = 0;
    virtual void set_embedding(int64_t row, const float* data) = 0;
    virtual void embedding(int64_t id, float* to) const = 0;
    virtual bool can_tile() const = 0;
    virtual void set_input(Activations& a, int64_t row, const float* from, int64_t n, int64_t groups) = 0;
    virtual void product(const Matrix& m, const Activations& a, int64_t vectors, int64_t first, int64_t last, bool use_tiles, Scratch& s,
                         const Target& target) = 0;
    virtual void put(int64_t layer, int64_t sequence, int64_t g, int64_t token, const float* key, const float* value, Scratch& s) = 0;
    virtual void fetch_keys(int64_t layer, int64_t sequence, int64_t g) const = 0;
    virtual void attend_to(int64_t layer, int64_t sequence, int64_t g, const float* q, int64_t start, int64_t length, Scratch& s, float* y) = 0;
    virtual ~Decoder() {}

    Decoder(const Sizes& sizes, const Reals& reals, const int64_t* windows, const float* f)
        : z(sizes), r(reals), layers(sizes.layers), frequencies(f, f + sizes.rope_pairs), scratch(sizes.threads),
          team(static_cast<int>(sizes.threads), static_cast<int>(sizes.layers * 10 + 4),
               [this](int kind, int layer, int chunk, int thread, bool first) { work(kind, layer, chunk, thread, first); },
               [this](int, bool begin) {
                   if (tiles) begin ? tiles_begin() : tiles_end();
               }) {
        for (int64_t i = 0; i < z.layers; i++) layers[i].window = windows[i];
        x_stride = round_up(z.width, LANES);
        qkv_stride = round_up((z.heads + 2 * z.kv_heads) * z.head_size, LANES);
        attended_stride = round_up(z.heads * z.head_size, LANES);
        hidden_stride = round_up(z.hidden, LANES);
    }

    void set_rows(int64_t layer, int id, int64_t first, int64_t count, const float* data) {
        if (id == POSITIONS) {
            positions.resize(z.positions * z.width);
            memcpy(&positions[first * z.width], data, count * z.width * 4);
            return;
        }
        for (int64_t i = 0; i < count; i++) {
            if (id == EMBEDDING) {
                set_embedding(first + i, data + i * z.width);
                continue;
            }
            Matrix& m = id == HEAD ? head : layers[layer].matrix[id];
            misfits += !pack(m, place(id, first + i), data + i * m.inner);
        }
    }

    // Rows of gate and up lie in alternate panels, so that one call has both halves of 16 hidden channels.
    int64_t place(int id, int64_t row) const {
        if (id != UP || !z.gated) return row;
        const bool up = row >= z.hidden;
        const int64_t channel = up ? row - z.hidden : row;
        return (channel / LANES * 2 + up) * LANES + channel % LANES;
    }

    void set_vector(int64_t layer, int id, const float* data, int64_t n) {
        if (id == FINAL) final_norm.assign(data, data + n);
        else if (id == FINAL_BIAS) final_bias.assign(data, data + n);
        else if (id >= BIAS_QKV) {
            const int which = id == BIAS_HEAD ? HEAD : id - BIAS_QKV + QKV;
            Matrix& m = id == BIAS_HEAD ? head : layers[layer].matrix[which];
            m.bias.assign(m.panels * LANES, 0);
            for (int64_t i = 0; i < n; i++) m.bias[place(which, i)] = data[i];
        } else layers[layer].vector[id].assign(data, data + n);
    }

    void norm(const float* from, const std::vector<float>& weight, const std::vector<float>& bias, float* to) const {
        const int64_t n = z.width;
        float mean = 0, square = 0;
        if (z.layer_norm) {
            for (int64_t i = 0; i < n; i++) mean += from[i];
            mean /= n;
        }
        for (int64_t i = 0; i < n; i++) square += (from[i] - mean) * (from[i] - mean);
        const float inverse = 1 / std::sqrt(square / n + r.norm_eps);
        if (bias.empty()) for (int64_t i = 0; i < n; i++) to[i] = (from[i] - mean) * inverse * weight[i];
        else for (int64_t i = 0; i < n; i++) to[i] = (from[i] - mean) * inverse * weight[i] + bias[i];
    }

    // RMS norm of one head, and its rotation by the row's angles.
    void turn(float* head_k, const std::vector<float>& weight, int64_t row) const {
        if (z.qk_norm) {
            float square = 0;
            for (int64_t i = 0; i < z.head_size; i++) square += head_k[i] * head_k[i];
            const float inverse = 1 / std::sqrt(square / z.head_size + r.qk_norm_eps);
            for (int64_t i = 0; i < z.head_size; i++) head_k[i] *= inverse * weight[i];
        }
        const int64_t n = z.rope_pairs;
        const float *c = cosine.data() + row * n, *s = sine.data() + row * n;
        for (int64_t i = 0; i < n; i++) {
            const float left = head_k[i], right = head_k[i + n];
            head_k[i] = left * c[i] - right * s[i];
            head_k[i + n] = right * c[i] + left * s[i];
        }
    }

    void append(int64_t layer, int64_t row, int64_t g, Scratch& s) {
        const int64_t k = z.head_size, group = z.heads / z.kv_heads;
        float* base = &qkv[row * qkv_stride];
        float* key = base + (z.heads + g) * k;
        for (int64_t i = 0; i < group; i++) turn(base + (g * group + i) * k, layers[layer].vector[Q_NORM], row);
        turn(key, layers[layer].vector[K_NORM], row);
        put(layer, rows[row].sequence, g, rows[row].position, key, key + z.kv_heads * k, s);
    }

    // y: the row that takes the result; in the last layer only the rows that have logits remain, moved together.
    void attend_row(int64_t layer, int64_t y, int64_t g, Scratch& s) {
        const int64_t row = layer == z.layers - 1 ? out_rows[y] : y, sequence = rows[row].sequence;
        fetch_keys(layer, sequence, g);
        if (alone) append(layer, row, g, s);
        const int64_t at = z.heads / z.kv_heads * g * z.head_size, window = layers[layer].window;
        const int64_t length = rows[row].position + 1, start = window > 0 ? std::max<int64_t>(0, length - window) : 0;
        attend_to(layer, sequence, g, &qkv[row * qkv_stride + at], start, length, s, &attended[y * attended_stride + at]);
    }

    // The vectors that a product reads, in its own form.
    void prepare(int kind, int64_t layer, int64_t first, int64_t last, Activations& a, Scratch& s) {
        if (static_cast<int64_t>(s.normed.size()) < z.width) s.normed.resize(z.width);
        for (int64_t i = first; i < last; i++) {
            const float* from = nullptr;
            int64_t n = z.width, groups = head.groups;
            if (kind == DO_OUT) from = &attended[i * attended_stride], n = z.heads * z.head_size, groups = layers[layer].matrix[OUT].groups;
            else if (kind == DO_DOWN) from = &h[i * hidden_stride], n = z.hidden, groups = layers[layer].matrix[DOWN].groups;
            else {
                if (kind == DO_HEAD) norm(&x[i * x_stride], final_norm, final_bias, s.normed.data());
                else {
                    const auto& v = layers[layer].vector;
                    const bool second = kind == DO_UP && !v[NORM2].empty();
                    norm(&x[i * x_stride], v[second ? NORM2 : NORM1], v[second ? NORM2_BIAS : NORM1_BIAS], s.normed.data());
                }
                from = s.normed.data();
            }
            set_input(a, i, from, n, groups);
        }
    }

    Matrix& matrix(int kind, int64_t layer) {
        if (kind == DO_HEAD) return head;
        return layers[layer].matrix[kind == DO_QKV ? QKV : kind == DO_OUT ? OUT : kind == DO_UP ? UP : DOWN];
    }

    int64_t vectors_of(int kind, int64_t layer) const {
        return static_cast<int64_t>(kind == DO_HEAD || (kind > DO_KEEP && layer == z.layers - 1) ? out_rows.size() : rows.size());
    }

    int64_t panels_per_chunk(const Matrix& m) const {
        if (team.size() == 1) return round_up(m.panels, 2);
        const int64_t fair = m.panels / (8 * team.size()), fit = CHUNK_BYTES / m.panel_bytes;
        return std::max<int64_t>(2, std::min(fair, fit) / 2 * 2);
    }

    // One chunk of one phase.
    void work(int kind, int64_t layer, int64_t chunk, int thread, bool first_chunk) {
        Scratch& s = scratch[thread];
        if (kind == DO_KEEP) {
            for (size_t i = 0; i < out_rows.size(); i++) memmove(&x[i * x_stride], &x[out_rows[i] * x_stride], x_stride * 4);
            return;
        }
        if (kind == DO_APPEND) {  // one sequence and key head, its rows in order
            const int64_t sequence = chunk / z.kv_heads;
            for (size_t i = 0; i < rows.size(); i++)
                if (rows[i].sequence == sequence) append(layer, i, chunk % z.kv_heads, s);
            return;
        }
        if (kind == DO_ATTEND) return attend_row(layer, chunk / z.kv_heads, chunk % z.kv_heads, s);
        const int64_t vectors = vectors_of(kind % PREPARE, layer);
        if (kind >= PREPARE) return prepare(kind - PREPARE, layer, chunk * 16, std::min<int64_t>(vectors, chunk * 16 + 16), shared, s);
        const bool own = vectors <= 16;
        const Matrix& m = matrix(kind, layer);
        if (own && first_chunk) {
            fetch(m.data + PREFETCH, PREFETCH);
            prepare(kind, layer, 0, vectors, s.input, s);
        }
        const int64_t per = panels_per_chunk(m), begin = kind == DO_HEAD ? first_panel : 0, end = kind == DO_HEAD ? last_panel : m.panels;
        const int64_t first = begin + chunk * per, last = std::min(first + per, end);
        const Activations& a = own ? s.input : shared;
        const bool use_tiles = tiles && vectors >= TILES_FROM_ROWS;
        const int activation = static_cast<int>(z.activation);
        const Target target = kind == DO_QKV    ? Target{Target::STORE, qkv.data(), qkv_stride}
                              : kind == DO_UP   ? Target{z.gated ? Target::GATE : Target::ACTIVATE, h.data(), hidden_stride, activation}
                              : kind == DO_HEAD ? Target{Target::STORE, logits, m.panels * LANES, 0, r.logit_scale, out_sequences.data()}
                                                : Target{Target::ADD, x.data(), x_stride};
        product(m, a, vectors, first, last, use_tiles, s, target);
    }

    void embed(const float* embedded) {
        for (size_t i = 0; i < rows.size(); i++) {
            float* to = &x[i * x_stride];
            if (embedded) memcpy(to, embedded + rows[i].at * z.width, z.width * 4);
            else embedding(rows[i].token, to);
            if (!embedded) for (int64_t k = 0; k < z.width; k++) to[k] *= r.embedding_scale;
            if (z.positions) for (int64_t k = 0; k < z.width; k++) to[k] += positions[rows[i].position * z.width + k];
            for (int64_t k = z.width; k < x_stride; k++) to[k] = 0;
            for (int64_t j = 0; j < z.rope_pairs; j++) {
                const float angle = static_cast<float>(rows[i].position) * frequencies[j];
                cosine[i * z.rope_pairs + j] = std::cos(angle) * r.rope_scale;
                sine[i * z.rope_pairs + j] = std::sin(angle) * r.rope_scale;
            }
        }
    }

    void plan_product(int kind, int64_t layer) {
        const int64_t vectors = vectors_of(kind, layer);
        if (vectors > 16) team.add(kind + PREPARE, static_cast<int>(layer), static_cast<int>((vectors + 15) / 16));
        const Matrix& m = matrix(kind, layer);
        const int64_t panels = kind == DO_HEAD ? last_panel - first_panel : m.panels, per = panels_per_chunk(m);
        team.add(kind, static_cast<int>(layer), static_cast<int>((panels + per - 1) / per));
    }

    void pass(const float* embedded) {
        const int64_t count = static_cast<int64_t>(rows.size());
        const int64_t widest = std::max(std::max(layers.empty() ? 0 : layers[0].matrix[DOWN].groups, head.groups),
                                        layers.empty() ? 0 : layers[0].matrix[OUT].groups);
        const auto grow = [](std::vector<float>& v, int64_t n) {
            if (static_cast<int64_t>(v.size()) < n) v.assign(n, 0);
        };
        grow(x, count * x_stride), grow(qkv, count * qkv_stride), grow(attended, count * attended_stride), grow(h, count * hidden_stride);
        grow(cosine, count * z.rope_pairs), grow(sine, count * z.rope_pairs);
        for (Scratch& s : scratch) s.input.reserve(2 * TILE_ROWS, widest);
        if (count > 16) shared.reserve(round_up(count, 2 * TILE_ROWS), widest);
        tiles = can_tile() && count >= TILES_FROM_ROWS && tiles_granted();
        embed(embedded);
        team.clear();
        for (int64_t layer = 0; layer < z.layers; layer++) {
            plan_product(DO_QKV, layer);
            if (!alone) team.add(DO_APPEND, static_cast<int>(layer), static_cast<int>(sequences().batch * z.kv_heads));
            if (layer == z.layers - 1) {
                if (out_rows.empty()) break;
                if (out_rows.size() < rows.size()) team.add(DO_KEEP, static_cast<int>(layer), 1);
            }
            team.add(DO_ATTEND, static_cast<int>(layer), static_cast<int>(vectors_of(DO_ATTEND, layer) * z.kv_heads));
            if (z.parallel) plan_product(DO_UP, layer), plan_product(DO_OUT, layer);
            else plan_product(DO_OUT, layer), plan_product(DO_UP, layer);
            plan_product(DO_DOWN, layer);
        }
        if (!out_rows.empty() && last_panel > first_panel) plan_product(DO_HEAD, 0);
        team.run(weight_bytes * std::max<int64_t>(1, count / 16) >= TOGETHER_BYTES);
        for (const Row& row : rows) sequences().length[row.sequence]++;
        for (size_t i = 0; i < out_rows.size(); i++)
            norm(&x[i * x_stride], final_norm, final_bias, hidden_out + out_sequences[i] * z.width);
    }

    int extend(const int64_t* counts, const int64_t* ids, const float* embedded, float* logits_, int64_t first, int64_t last,
               float* hidden_) {
        int64_t longest = 0, total = 0;
        for (int64_t b = 0; b < sequences().batch; b++) {
            if (counts[b] > 0) longest = std::max(longest, sequences().length[b] + counts[b]);
            total += counts[b];
        }
        for (int64_t i = 0; !embedded && i < total; i++)
            if (ids[i] < 0 || ids[i] >= z.vocabulary) return BAD_ID;
        if (z.positions && longest > z.positions) return BAD_POSITION;
        if (longest > sequences().tokens) {
            std::vector<int64_t> same(sequences().batch);
            for (int64_t b = 0; b < sequences().batch; b++) same[b] = b;
            remake(sequences().batch, std::max(longest, 2 * sequences().tokens), same.data());
        }
        logits = logits_, hidden_out = hidden_;
        first_panel = first / LANES / 2 * 2, last_panel = std::min(head.panels, round_up(last, 2 * LANES) / LANES);
        if (last <= first) last_panel = first_panel;
        rows.clear(), out_rows.clear(), out_sequences.clear();
        alone = true;
        const std::vector<int64_t> before = sequences().length;
        for (int64_t b = 0, at = 0; b < sequences().batch; b++)
            for (int64_t i = 0; i < counts[b]; i++, at++) {
                if (!rows.empty() && rows.back().sequence == b) alone = false;
                rows.push_back({b, before[b] + i, embedded ? 0 : ids[at], at});
                if (i == counts[b] - 1) out_rows.push_back(static_cast<int64_t>(rows.size()) - 1), out_sequences.push_back(b);
                if (static_cast<int64_t>(rows.size()) == PASS_ROWS) {
                    pass(embedded);
                    rows.clear(), out_rows.clear(), out_sequences.clear();
                    alone = true;
                }
            }
        if (!rows.empty()) pass(embedded);
        return FINE;
    }

    static int64_t best(const float* values, int64_t n) {
        Lanes tops = splat(-INFINITY);
        IntLanes bad = {};
        int64_t whole = n / LANES * LANES;
        for (int64_t i = 0; i < whole; i += LANES) {
            tops = larger(load(values + i), tops);
            bad |= not_finite(load(values + i));
        }
        float top = largest(tops);
        bool finite = !any(bad);
        for (int64_t i = whole; i < n; i++) top = std::max(top, values[i]), finite &= std::isfinite(values[i]);
        if (!finite) return NOT_FINITE;
        int64_t i = 0;
        while (values[i] != top) i++;
        return i;
    }

    // log of the sum of e^values, whose largest is top.
    static float log_sum(const float* values, int64_t n, float top) {
        Lanes sums = {};
        const int64_t whole = n / LANES * LANES;
        for (int64_t i = 0; i < whole; i += LANES) sums += exp(load(values + i) - top);
        double total = sum(sums);
        for (int64_t i = whole; i < n; i++) total += std::exp(values[i] - top);
        return top + static_cast<float>(std::log(total));
    }

    // out: [batch][steps], -1 after a sequence has stopped; scores: [batch], sum of the log-probabilities of what is written. Returns the
    // steps taken.
    int64_t greedy(const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits_, float* hidden_, int64_t* out,
                   float* scores) {
        std::vector<int64_t> counts(sequences().batch, 1), next(ids, ids + sequences().batch), packed;
        int64_t step = 0, live = sequences().batch;
        for (; step < steps && live; step++) {
            packed.clear();
            for (int64_t b = 0; b < sequences().batch; b++)
                if (counts[b]) packed.push_back(next[b]);
            const int fault = extend(counts.data(), packed.data(), nullptr, logits_, 0, z.vocabulary, hidden_);
            if (fault) return fault;
            for (int64_t b = 0; b < sequences().batch; b++) {
                int64_t& to = out[b * steps + step];
                to = -1;
                if (!counts[b]) continue;
                const float* values = logits_ + b * head.panels * LANES;
                const int64_t id = best(values, z.vocabulary);
                if (id < 0) return id;
                to = next[b] = id;
                scores[b] += values[id] - log_sum(values, z.vocabulary, values[id]);
                if (std::find(stops, stops + num_stops, id) != stops + num_stops) counts[b] = 0, live--;
            }
        }
        return step;
    }
};

