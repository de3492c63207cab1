// The decoder but for the kinds of its layers and the forms of its numbers: embedding, the way of a pass through the layers, prompts and greedy
// search.
//
// The equations are in reference.py. A pass takes up to PASS_ROWS tokens of any sequences through the layers together. From the last part
// that keeps anything of a token, only the tokens whose logits are wanted go on.
#pragma once
#include "attention.h"
#include "delta.h"
#include "experts.h"
#include "feed_forward.h"
#include "mamba1.h"
#include "mamba2.h"

enum Kind { NOTHING, ATTENTION, MAMBA1, MAMBA2, DELTANET, FEED_FORWARD, EXPERTS };  // in the order of spec.py
enum Fault { FINE = 0, BAD_ID = -1, BAD_POSITION = -2, NO_MEMORY = -3, NOT_FINITE = -4 };

constexpr int64_t PASS_ROWS = 128;           // tokens that go through the layers together
constexpr int64_t TOGETHER_BYTES = 4 << 20;  // of weights times rows / 16: below, about 0.2 ms of work, one thread is enough
constexpr int64_t MOST_LANES = 16;           // of any machine: logits and room for tokens come in as many, so that sizes are equal on all
constexpr int64_t STAGES_OF_A_LAYER = 24;    // at most

struct Sizes {  // in the order of fast.py
    int64_t vocabulary, width, layers, layer_norm, positions, tied, threads;
    explicit Sizes(Reader& in)
        : vocabulary(in.next()), width(in.next()), layers(in.next()), layer_norm(in.next()), positions(in.next()), tied(in.next()),
          threads(in.next()) {}
};
struct Given {  // what new tokens carry besides ids; null for what follows from their places
    const int64_t *position, *mark, *reach;
};
struct Layer {
    bool parallel = false;
    std::unique_ptr<Part> mixer, feed_forward;
};

struct Decoder {
    Sizes z;
    float norm_eps, embedding_scale, logit_scale;
    std::unique_ptr<Numbers> numbers;
    Team team;
    Pass pass;
    std::vector<Layer> layers;
    std::vector<Part*> parts;  // in the order of use
    Norm final_norm;
    Product head;
    std::shared_ptr<Pages> arena;  // the packed matrices and an embedding of its own, which twins share
    std::vector<float> positions;
    float* embedding_float = nullptr;
    uint16_t* embedding_half = nullptr;
    std::vector<Scratch> scratch;  // one a thread
    float *logits = nullptr, *hidden_out = nullptr;
    int64_t first_panel = 0, last_panel = 0, weight_bytes = 0, misfits = 0;  // misfits: rows that the form of the weights cannot hold

    // twin: another one of the same numbers and form, which has all its weights; they are shared, and the cache is new.
    Decoder(Reader& in, std::unique_ptr<Numbers> numbers_, const Decoder* twin = nullptr)
        : z(in), norm_eps(in.next_real()), embedding_scale(in.next_real()), logit_scale(in.next_real()), numbers(std::move(numbers_)),
          team(static_cast<int>(z.threads), static_cast<int>(z.layers * STAGES_OF_A_LAYER + 4),
               [this](int stage, int chunk, int thread, bool first) { work(pass.stages[stage], chunk, scratch[thread], first); },
               [this](int, bool begin) {
                   if (pass.tiles) begin ? tiles_begin() : tiles_end();
               }),
          pass(*numbers, team, z.width), layers(z.layers), scratch(z.threads) {
        std::vector<Matrix*> all;  // in the order of use, so that reading ahead of one reads the next
        for (Layer& layer : layers) {
            layer.parallel = in.next();
            layer.mixer = part(in), layer.feed_forward = part(in);
            for (Part* one : {layer.mixer.get(), layer.feed_forward.get()}) {
                if (!one) continue;
                parts.push_back(one);
                one->own_norm.centred = z.layer_norm, one->own_norm.eps = norm_eps;
                for (Product* product : one->products) all.push_back(&product->matrix);
            }
        }
        for (Layer& layer : layers)
            if (layer.mixer) last_mixer = layer.mixer.get();
        if (last_mixer) last_mixer->last = true;
        final_norm.centred = z.layer_norm, final_norm.eps = norm_eps;
        numbers->shape(head.matrix, z.vocabulary, z.width, false);
        head.norm = &final_norm;
        pass.widest = std::max(pass.widest, head.matrix.groups);
        all.push_back(&head.matrix);
        for (Matrix* m : all) weight_bytes += m->bytes();
        const int64_t matrices = round_up(weight_bytes, 64), own = z.tied ? 0 : z.vocabulary * z.width * (numbers->halves() ? 2 : 4);
        arena = twin ? twin->arena : std::make_shared<Pages>(matrices + own);
        char* at = arena->data;
        for (Matrix* m : all) m->data = at, at += m->bytes();
        if (numbers->halves()) embedding_half = reinterpret_cast<uint16_t*>(arena->data + matrices);
        else embedding_float = reinterpret_cast<float*>(arena->data + matrices);
        if (twin) take(*twin);
    }

    // What of the weights lies outside of the arena.
    void take(const Decoder& other) {
        for (size_t i = 0; i < parts.size(); i++) {
            parts[i]->own_norm = other.parts[i]->own_norm, parts[i]->vectors = other.parts[i]->vectors;
            for (size_t j = 0; j < parts[i]->products.size(); j++) parts[i]->products[j]->matrix.take(other.parts[i]->products[j]->matrix);
        }
        final_norm = other.final_norm, positions = other.positions, misfits = other.misfits;
        head.matrix.take(other.head.matrix);
        ready();
    }

    std::unique_ptr<Part> part(Reader& in) {
        switch (in.next()) {
            case ATTENTION: return std::unique_ptr<Part>(new Attention(pass, in));
            case MAMBA1: return std::unique_ptr<Part>(new Mamba1(pass, in));
            case MAMBA2: return std::unique_ptr<Part>(new Mamba2(pass, in));
            case DELTANET: return std::unique_ptr<Part>(new DeltaNet(pass, in));
            case FEED_FORWARD: return std::unique_ptr<Part>(new FeedForward(pass, in));
            case EXPERTS: return std::unique_ptr<Part>(new Experts(pass, in));
            default: return nullptr;
        }
    }
    int64_t logits_stride() const { return round_up(z.vocabulary, MOST_LANES); }  // from one sequence to the next
    Part* part_of(int64_t layer, int64_t side) { return (side ? layers[layer].feed_forward : layers[layer].mixer).get(); }

    // Rows of matrix `index` of a part, or of the decoder itself (layer -1): head, embedding, positions.
    void set_rows(int64_t layer, int64_t side, int64_t index, int64_t first, int64_t count, const float* data) {
        if (layer < 0 && index > 0) {
            if (index == 2) positions.resize(z.positions * z.width);
            for (int64_t i = first * z.width; i < (first + count) * z.width; i++) {
                const float value = data[i - first * z.width];
                if (index == 2) positions[i] = value;
                else if (numbers->halves()) embedding_half[i] = to_bf16(value);
                else embedding_float[i] = value;
            }
            return;
        }
        Part* owner = layer < 0 ? nullptr : part_of(layer, side);
        Product* product = owner ? owner->products[index] : &head;
        Matrix& m = product->matrix;
        for (int64_t i = 0; i < count; i++)
            misfits += !numbers->pack(m, owner ? owner->place(product, first + i) : first + i, data + i * m.inner);
    }

    void set_bias(int64_t layer, int64_t side, int64_t index, const float* data, int64_t n) {
        Part* owner = layer < 0 ? nullptr : part_of(layer, side);
        Product* product = owner ? owner->products[index] : &head;
        Matrix& m = product->matrix;
        m.bias.assign(m.panels * LANES, 0);
        for (int64_t i = 0; i < n; i++) m.bias[owner ? owner->place(product, i) : i] = data[i];
    }

    // Vector `index` of a part, or a part of its norm: -2 weight, -1 bias; layer -1: the final norm.
    void set_vector(int64_t layer, int64_t side, int64_t index, const float* data, int64_t n) {
        Part* owner = layer < 0 ? nullptr : part_of(layer, side);
        Norm& norm = owner ? owner->own_norm : final_norm;
        (index == -2 ? norm.weight : index == -1 ? norm.bias : owner->vectors[index]).assign(data, data + n);
    }

    void ready() {
        for (Layer& layer : layers)
            if (layer.parallel && layer.feed_forward->own_norm.weight.empty()) layer.feed_forward->own_norm = layer.mixer->own_norm;
        for (Part* one : parts) one->ready();
    }

    void embedding(int64_t id, float* to) const {
        if (z.tied) return numbers->unpack(head.matrix, id, to);
        for (int64_t i = 0; i < z.width; i++)
            to[i] = numbers->halves() ? from_bf16(embedding_half[id * z.width + i]) : embedding_float[id * z.width + i];
    }

    // Sequence i becomes what from[i] was; from is null where nothing is kept.
    void remake(int64_t batch, int64_t tokens, const int64_t* from) {
        tokens = round_up(std::max<int64_t>(tokens, MOST_LANES), MOST_LANES);
        for (Part* one : parts) one->remake(batch, tokens, from);
        for (Part* one : parts) one->commit();
        Sequences& now = pass.sequences;
        const std::vector<int64_t> before = now.length;
        now.batch = batch, now.tokens = tokens;
        now.length.assign(batch, 0);
        for (int64_t i = 0; from && i < batch; i++) now.length[i] = before[from[i]];
        const auto marks = std::move(now.mark);
        now.mark.clear();
        for (int64_t i = 0; from && !marks.empty() && i < batch; i++) {
            now.mark.push_back(marks[from[i]]);
            now.mark.back().resize(tokens, -1);
        }
    }

    void set_lengths(const int64_t* to) {
        for (int64_t b = 0; b < pass.sequences.batch; b++) {
            pass.sequences.length[b] = to[b];
            for (Part* one : parts)
                if (to[b] == 0) one->forget(b);
        }
        if (std::all_of(to, to + pass.sequences.batch, [](int64_t length) { return length == 0; })) pass.sequences.mark.clear();
    }

    // One chunk of one stage.
    void work(const Stage& stage, int64_t chunk, Scratch& s, bool first_chunk) {
        if (stage.part && stage.step != KEEP) return stage.part->work(stage.step, chunk, s);
        if (stage.part) {
            const auto& out = pass.out_rows;
            for (size_t i = 0; i < out.size(); i++) memmove(&pass.x.memory[i * pass.x_stride], &pass.x.memory[out[i] * pass.x_stride], pass.x_stride * 4);
            return;
        }
        const Product& p = *stage.product;
        if (stage.prepare) return pass.prepare(p, chunk * ROWS_AT_ONCE, std::min(stage.vectors, (chunk + 1) * ROWS_AT_ONCE), pass.shared, s);
        const Target target = &p == &head ? Target{Target::STORE, logits, logits_stride(), 0, logit_scale, pass.out_sequences.data()}
                                          : Target{p.way, p.to->memory.data() + p.to_column, p.to_stride, p.activation};
        pass.multiply(stage, chunk, first_chunk, s, target);
    }

    void embed(const float* embedded) {
        for (size_t i = 0; i < pass.rows.size(); i++) {
            const Row& row = pass.rows[i];
            float* to = &pass.x.memory[i * pass.x_stride];
            if (embedded) memcpy(to, embedded + row.at * z.width, z.width * 4);
            else embedding(row.token, to);
            if (!embedded) for (int64_t k = 0; k < z.width; k++) to[k] *= embedding_scale;
            if (z.positions) for (int64_t k = 0; k < z.width; k++) to[k] += positions[row.turned * z.width + k];
            for (int64_t k = z.width; k < pass.x_stride; k++) to[k] = 0;
        }
        for (auto& rotation : pass.rotations) rotation->fill(pass.rows);
    }

    void go(const float* embedded) {
        const int64_t count = static_cast<int64_t>(pass.rows.size());
        for (Buffer* buffer : {&pass.x, &pass.wide, &pass.mixed, &pass.hidden}) buffer->grow(count);
        for (Scratch& s : scratch) s.input.reserve(2 * TILE_ROWS, pass.widest);  // two planes of ROWS_AT_ONCE
        if (count > ROWS_AT_ONCE) pass.shared.reserve(round_up(2 * count, 2 * TILE_ROWS), pass.widest);
        pass.tiles = numbers->can_tile() && count >= TILES_FROM_ROWS && tiles_granted();
        pass.out_of.assign(count, -1);
        for (size_t i = 0; i < pass.out_rows.size(); i++) pass.out_of[pass.out_rows[i]] = static_cast<int64_t>(i);
        embed(embedded);
        team.clear();
        pass.stages.clear();
        pass.live = count;
        for (Layer& layer : layers) {
            if (layer.mixer) layer.mixer->read();
            if (layer.mixer.get() == last_mixer && pass.out_rows.empty()) break;
            if (layer.parallel) layer.feed_forward->read();
            if (layer.mixer) layer.mixer->write();
            if (!layer.feed_forward) continue;
            if (!layer.parallel) layer.feed_forward->read();
            layer.feed_forward->write();
        }
        if (!pass.out_rows.empty() && last_panel > first_panel) pass.plan(head, first_panel, last_panel);
        team.run(weight_bytes * std::max<int64_t>(1, count / 16) >= TOGETHER_BYTES);
        for (const Row& row : pass.rows) pass.sequences.length[row.sequence]++;
        for (size_t i = 0; i < pass.out_rows.size(); i++)
            final_norm(&pass.x.memory[i * pass.x_stride], hidden_out + pass.out_sequences[i] * z.width);
        pass.clear();
    }

    // positions, marks: of the new tokens, null for those that follow and for none; reach: first and last mark that each sees, null for all.
    int extend(const int64_t* counts, const int64_t* ids, const float* embedded, const Given& given, float* logits_, int64_t first, int64_t last,
               float* hidden_) {
        Sequences& now = pass.sequences;
        int64_t longest = 0, total = 0;
        for (int64_t b = 0; b < now.batch; b++) {
            if (counts[b] > 0) longest = std::max(longest, now.length[b] + counts[b]);
            total += counts[b];
        }
        for (int64_t i = 0; !embedded && i < total; i++)
            if (ids[i] < 0 || ids[i] >= z.vocabulary) return BAD_ID;
        if (z.positions && !given.position && longest > z.positions) return BAD_POSITION;
        for (int64_t i = 0; given.position && z.positions && i < total; i++)
            if (given.position[i] < 0 || given.position[i] >= z.positions) return BAD_POSITION;
        if (longest > now.tokens) {
            std::vector<int64_t> same(now.batch);
            for (int64_t b = 0; b < now.batch; b++) same[b] = b;
            remake(now.batch, std::max(longest, 2 * now.tokens), same.data());
        }
        logits = logits_, hidden_out = hidden_;
        first_panel = first / LANES / 2 * 2, last_panel = std::min(head.matrix.panels, round_up(last, 2 * LANES) / LANES);
        if (last <= first) last_panel = first_panel;
        pass.clear();  // a call that ran out of memory has left its rows
        const std::vector<int64_t> before = now.length;
        for (int64_t b = 0, at = 0; b < now.batch; b++)
            for (int64_t i = 0; i < counts[b]; i++, at++) {
                const int64_t row = static_cast<int64_t>(pass.rows.size());
                if (pass.runs.empty() || pass.runs.back().sequence != b) pass.runs.push_back({b, row, row});
                pass.runs.back().end++;
                const int64_t place = before[b] + i, turned = given.position ? given.position[at] : place;
                const bool sees_all = !given.reach;
                pass.rows.push_back({b, place, embedded ? 0 : ids[at], at, turned,
                                     {sees_all ? 0 : given.reach[2 * at], sees_all ? INT64_MAX : given.reach[2 * at + 1]}});
                now.set_mark(b, place, given.mark ? given.mark[at] : -1);
                if (i == counts[b] - 1) pass.out_rows.push_back(row), pass.out_sequences.push_back(b);
                if (row + 1 == PASS_ROWS) go(embedded);
            }
        if (!pass.rows.empty()) go(embedded);
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

    // out: [batch][steps], -1 after a sequence has stopped; scores: [batch][steps], the log-probability of what is written. Returns the
    // steps taken.
    int64_t greedy(const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits_, float* hidden_, int64_t* out,
                   float* scores) {
        std::vector<int64_t> counts(pass.sequences.batch, 1), next(ids, ids + pass.sequences.batch), packed;
        int64_t step = 0, live = pass.sequences.batch;
        for (; step < steps && live; step++) {
            packed.clear();
            for (int64_t b = 0; b < pass.sequences.batch; b++)
                if (counts[b]) packed.push_back(next[b]);
            const int fault = extend(counts.data(), packed.data(), nullptr, {nullptr, nullptr, nullptr}, logits_, 0, z.vocabulary, hidden_);
            if (fault) return fault;
            for (int64_t b = 0; b < pass.sequences.batch; b++) {
                int64_t& to = out[b * steps + step];
                to = -1;
                if (!counts[b]) continue;
                const float* values = logits_ + b * logits_stride();
                const int64_t id = best(values, z.vocabulary);
                if (id < 0) return id;
                to = next[b] = id;
                scores[b * steps + step] = values[id] - log_sum(values, z.vocabulary, values[id]);
                if (std::find(stops, stops + num_stops, id) != stops + num_stops) counts[b] = 0, live--;
            }
        }
        return step;
    }

  private:
    Part* last_mixer = nullptr;
};

