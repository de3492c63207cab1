// One call a token: a whole decoding step of a Llama-like or GPT-2-like decoder, for a batch of sequences of different lengths.
// The equations are in reference.py; the C interface at the end is bound by fast.py.
#include "cache.h"
#include "team.h"

namespace {

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
    virtual ~Decoder() {}
    virtual void set_rows(int64_t layer, int id, int64_t first, int64_t count, const float* data) = 0;
    virtual void set_vector(int64_t layer, int id, const float* data, int64_t n) = 0;
    virtual int extend(const int64_t* counts, const int64_t* ids, const float* embedded, float* logits, int64_t first, int64_t last,
                       float* hidden) = 0;
    virtual int64_t greedy(const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits, float* hidden,
                           int64_t* out) = 0;
    virtual void fill(int64_t layer, const float* keys, const float* values, int64_t tokens, const int64_t* lengths) = 0;
    virtual void remake(int64_t batch, int64_t tokens, const int64_t* from) = 0;
    virtual int64_t room() = 0;
    virtual std::vector<int64_t>& lengths() = 0;
};

template <class W, class C>
struct TypedDecoder : Decoder {
    Sizes z;
    Reals r;
    std::vector<Layer> layers;
    Matrix head;
    std::vector<float> final_norm, final_bias, frequencies, positions, embedding_float;
    std::vector<uint16_t> embedding_half;
    Cache<C> cache;
    Pages arena;
    int64_t arena_bytes = 0;
    bool tiles = false;
    std::vector<Scratch> scratch;
    Activations shared;
    Team team;

    int64_t x_stride, qkv_stride, attended_stride, hidden_stride;
    std::vector<float> x, qkv, attended, h, cosine, sine;
    std::vector<Row> rows;
    std::vector<int64_t> out_rows, out_sequences;  // rows of the pass whose logits are wanted
    float *logits = nullptr, *hidden_out = nullptr;
    int64_t first_panel = 0, last_panel = 0;
    bool alone = true;  // no two rows of this pass belong to one sequence

    TypedDecoder(const Sizes& sizes, const Reals& reals, const int64_t* windows, const float* f)
        : z(sizes), r(reals), layers(sizes.layers), frequencies(f, f + sizes.rope_pairs), cache(z.layers, z.kv_heads, z.head_size),
          scratch(sizes.threads),
          team(static_cast<int>(sizes.threads), static_cast<int>(sizes.layers * 10 + 4),
               [this](int kind, int layer, int chunk, int chunks, int thread, bool first) { work(kind, layer, chunk, chunks, thread, first); },
               [this](int, bool begin) {
                   if (tiles) begin ? tiles_begin() : tiles_end();
               }) {
        const int64_t q = z.heads * z.head_size, kv = z.kv_heads * z.head_size;
        const int64_t up = z.gated ? 2 * round_up(z.hidden, LANES) : z.hidden;
        std::vector<Matrix*> all;
        for (int64_t i = 0; i < z.layers; i++) {
            Layer& layer = layers[i];
            layer.window = windows[i];
            layer.matrix[QKV].template shape<W>(q + 2 * kv, z.width);
            layer.matrix[OUT].template shape<W>(z.width, q);
            layer.matrix[UP].template shape<W>(up, z.width);
            layer.matrix[DOWN].template shape<W>(z.width, z.hidden);
            for (Matrix& m : layer.matrix) all.push_back(&m);
        }
        head.template shape<W>(z.vocabulary, z.width);
        all.push_back(&head);
        for (Matrix* m : all) arena_bytes += m->bytes();
        arena = Pages(arena_bytes);
        char* at = arena.data;
        for (Matrix* m : all) m->data = at, at += m->bytes();
        x_stride = round_up(z.width, LANES);
        qkv_stride = round_up(q + 2 * kv, LANES);
        attended_stride = round_up(q, LANES);
        hidden_stride = round_up(z.hidden, LANES);
        if (z.tied) return;
        if (W::GROUP == 1) embedding_float.resize(z.vocabulary * z.width);
        else embedding_half.resize(z.vocabulary * z.width);
    }

    void set_rows(int64_t layer, int id, int64_t first, int64_t count, const float* data) override {
        if (id == POSITIONS) {
            positions.resize(z.positions * z.width);
            memcpy(&positions[first * z.width], data, count * z.width * 4);
        } else if (id == EMBEDDING) {
            for (int64_t i = 0; i < count * z.width; i++)
                if (W::GROUP == 1) embedding_float[first * z.width + i] = data[i];
                else embedding_half[first * z.width + i] = to_bf16(data[i]);
        } else {
            Matrix& m = id == HEAD ? head : layers[layer].matrix[id];
            for (int64_t i = 0; i < count; i++) pack_row<W>(m, place(id, first + i), data + i * m.inner);
        }
    }

    // Rows of gate and up lie in alternate panels, so that one call has both halves of 16 hidden channels.
    int64_t place(int id, int64_t row) const {
        if (id != UP || !z.gated) return row;
        const bool up = row >= z.hidden;
        const int64_t channel = up ? row - z.hidden : row;
        return (channel / LANES * 2 + up) * LANES + channel % LANES;
    }

    void set_vector(int64_t layer, int id, const float* data, int64_t n) override {
        if (id == FINAL) final_norm.assign(data, data + n);
        else if (id == FINAL_BIAS) final_bias.assign(data, data + n);
        else if (id >= BIAS_QKV) {
            const int which = id == BIAS_HEAD ? HEAD : id - BIAS_QKV + QKV;
            Matrix& m = id == BIAS_HEAD ? head : layers[layer].matrix[which];
            m.bias.assign(m.panels * LANES, 0);
            for (int64_t i = 0; i < n; i++) m.bias[place(which, i)] = data[i];
        } else layers[layer].vector[id].assign(data, data + n);
    }

    void remake(int64_t batch, int64_t tokens, const int64_t* from) override { cache.remake(batch, tokens, from); }
    int64_t room() override { return cache.tokens; }
    std::vector<int64_t>& lengths() override { return cache.length; }

    void fill(int64_t layer, const float* keys, const float* values, int64_t tokens, const int64_t* lengths) override {
        Scratch& s = scratch[0];
        s.query.reserve(1, cache.groups);
        for (int64_t b = 0; b < cache.batch; b++)
            for (int64_t g = 0; g < z.kv_heads; g++) {
                const Block block = cache.at(layer, b, g);
                for (int64_t t = 0; t < lengths[b]; t++) {
                    const int64_t from = ((b * z.kv_heads + g) * tokens + t) * z.head_size;
                    set_row<C>(s.query, 0, keys + from, z.head_size, cache.groups);
                    cache.put(block, t, s.query.data, values + from);
                }
            }
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
        float *key = base + (z.heads + g) * k, *value = base + (z.heads + z.kv_heads + g) * k;
        for (int64_t i = 0; i < group; i++) turn(base + (g * group + i) * k, layers[layer].vector[Q_NORM], row);
        turn(key, layers[layer].vector[K_NORM], row);
        s.query.reserve(1, cache.groups);
        set_row<C>(s.query, 0, key, k, cache.groups);
        cache.put(cache.at(layer, rows[row].sequence, g), rows[row].position, s.query.data, value);
    }

    // y: the row that takes the result; in the last layer only the rows that have logits remain, moved together.
    void attend_row(int64_t layer, int64_t y, int64_t g, Scratch& s) {
        const int64_t row = layer == z.layers - 1 ? out_rows[y] : y;
        fetch(cache.at(layer, rows[row].sequence, g).keys, NEAR);
        if (alone) append(layer, row, g, s);
        const int64_t group = z.heads / z.kv_heads, at = g * group * z.head_size, window = layers[layer].window;
        const int64_t length = rows[row].position + 1, start = window > 0 ? std::max<int64_t>(0, length - window) : 0;
        attend(cache, cache.at(layer, rows[row].sequence, g), s, &qkv[row * qkv_stride + at], static_cast<int>(group), start, length,
               r.attention_scale, &attended[y * attended_stride + at]);
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
            set_row<W>(a, i, from, n, groups);
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
    void work(int kind, int64_t layer, int64_t chunk, int64_t, int thread, bool first_chunk) {
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
            fetch(m.data, PREFETCH);
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
        multiply<W>(m, a, vectors, first, last, use_tiles, s.room, target);
    }

    void embed(const float* embedded) {
        for (size_t i = 0; i < rows.size(); i++) {
            float* to = &x[i * x_stride];
            const int64_t at = rows[i].token * z.width;
            if (embedded) memcpy(to, embedded + rows[i].at * z.width, z.width * 4);
            else if (z.tied) unpack_row<W>(head, rows[i].token, to);
            else if (W::GROUP == 1) memcpy(to, &embedding_float[at], z.width * 4);
            else for (int64_t k = 0; k < z.width; k++) to[k] = from_bf16(embedding_half[at + k]);
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
        tiles = W::TILES && count >= TILES_FROM_ROWS && tiles_granted();
        embed(embedded);
        team.clear();
        for (int64_t layer = 0; layer < z.layers; layer++) {
            plan_product(DO_QKV, layer);
            if (!alone) team.add(DO_APPEND, static_cast<int>(layer), static_cast<int>(cache.batch * z.kv_heads));
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
        team.run(arena_bytes * std::max<int64_t>(1, count / 16) >= TOGETHER_BYTES);
        for (const Row& row : rows) cache.length[row.sequence]++;
        for (size_t i = 0; i < out_rows.size(); i++)
            norm(&x[i * x_stride], final_norm, final_bias, hidden_out + out_sequences[i] * z.width);
    }

    int extend(const int64_t* counts, const int64_t* ids, const float* embedded, float* logits_, int64_t first, int64_t last,
               float* hidden_) override {
        int64_t longest = 0, total = 0;
        for (int64_t b = 0; b < cache.batch; b++) {
            if (counts[b] > 0) longest = std::max(longest, cache.length[b] + counts[b]);
            total += counts[b];
        }
        for (int64_t i = 0; !embedded && i < total; i++)
            if (ids[i] < 0 || ids[i] >= z.vocabulary) return BAD_ID;
        if (z.positions && longest > z.positions) return BAD_POSITION;
        if (longest > cache.tokens) {
            std::vector<int64_t> same(cache.batch);
            for (int64_t b = 0; b < cache.batch; b++) same[b] = b;
            cache.remake(cache.batch, std::max(longest, 2 * cache.tokens), same.data());
        }
        logits = logits_, hidden_out = hidden_;
        first_panel = first / LANES / 2 * 2, last_panel = std::min(head.panels, round_up(last, 2 * LANES) / LANES);
        if (last <= first) last_panel = first_panel;
        rows.clear(), out_rows.clear(), out_sequences.clear();
        alone = true;
        const std::vector<int64_t> before = cache.length;
        for (int64_t b = 0, at = 0; b < cache.batch; b++)
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

    // out: [batch][steps], -1 after a sequence has stopped. Returns the steps taken.
    int64_t greedy(const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits_, float* hidden_,
                   int64_t* out) override {
        std::vector<int64_t> counts(cache.batch, 1), next(ids, ids + cache.batch), packed;
        int64_t step = 0, live = cache.batch;
        for (; step < steps && live; step++) {
            packed.clear();
            for (int64_t b = 0; b < cache.batch; b++)
                if (counts[b]) packed.push_back(next[b]);
            const int fault = extend(counts.data(), packed.data(), nullptr, logits_, 0, z.vocabulary, hidden_);
            if (fault) return fault;
            for (int64_t b = 0; b < cache.batch; b++) {
                int64_t& to = out[b * steps + step];
                to = -1;
                if (!counts[b]) continue;
                const int64_t id = best(logits_ + b * head.panels * LANES, z.vocabulary);
                if (id < 0) return id;
                to = next[b] = id;
                if (std::find(stops, stops + num_stops, id) != stops + num_stops) counts[b] = 0, live--;
            }
        }
        return step;
    }
};

template <class Call>
int64_t guarded(Call call) {
    try {
        return call();
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

}  // namespace

extern "C" {

// precision: 0 float32, 1 bf16, 2 int8. Null where memory is short.
void* decoder_create(const int64_t* sizes, const float* reals, const int64_t* windows, const float* frequencies, int64_t precision) {
    Sizes z;
    Reals r;
    memcpy(&z, sizes, sizeof z);
    memcpy(&r, reals, sizeof r);
    try {
        if (precision == 0) return static_cast<Decoder*>(new TypedDecoder<Float32, Float32>(z, r, windows, frequencies));
        if (precision == 1) return static_cast<Decoder*>(new TypedDecoder<Bf12, Bf16>(z, r, windows, frequencies));
        return static_cast<Decoder*>(new TypedDecoder<Int8, Bf16>(z, r, windows, frequencies));
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void decoder_destroy(void* d) { delete static_cast<Decoder*>(d); }
void decoder_set_rows(void* d, int64_t layer, int64_t id, int64_t first, int64_t count, const float* data) {
    static_cast<Decoder*>(d)->set_rows(layer, static_cast<int>(id), first, count, data);
}
void decoder_set_vector(void* d, int64_t layer, int64_t id, const float* data, int64_t n) {
    static_cast<Decoder*>(d)->set_vector(layer, static_cast<int>(id), data, n);
}
int64_t decoder_remake(void* d, int64_t batch, int64_t tokens, const int64_t* from) {
    return guarded([&] { return static_cast<Decoder*>(d)->remake(batch, tokens, from), static_cast<int64_t>(FINE); });
}
int64_t decoder_room(void* d) { return static_cast<Decoder*>(d)->room(); }
void decoder_get_lengths(void* d, int64_t* to) {
    const auto& lengths = static_cast<Decoder*>(d)->lengths();
    std::copy(lengths.begin(), lengths.end(), to);
}
void decoder_set_lengths(void* d, const int64_t* from) {
    auto& lengths = static_cast<Decoder*>(d)->lengths();
    std::copy(from, from + lengths.size(), lengths.begin());
}
void decoder_fill(void* d, int64_t layer, const float* keys, const float* values, int64_t tokens, const int64_t* lengths) {
    static_cast<Decoder*>(d)->fill(layer, keys, values, tokens, lengths);
}
int64_t decoder_extend(void* d, const int64_t* counts, const int64_t* ids, const float* embedded, float* logits, int64_t first, int64_t last,
                       float* hidden) {
    return guarded([&] {
        return static_cast<int64_t>(static_cast<Decoder*>(d)->extend(counts, ids, embedded, logits, first, last, hidden));
    });
}
int64_t decoder_greedy(void* d, const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits, float* hidden,
                       int64_t* out) {
    return guarded([&] { return static_cast<Decoder*>(d)->greedy(ids, steps, stops, num_stops, logits, hidden, out); });
}
}
