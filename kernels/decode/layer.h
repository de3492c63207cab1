// What the kinds of layers are made of: products with packed matrices, work of their own between these, and what they keep of the tokens.
//
// A layer is a mixer, a feed-forward or both; each is a `Part`. For every pass a part lists its stages: `read` those that leave the
// residual stream as it is, `write` those that add to it, so that parallel parts of a layer can both read before one writes. Between
// stages, rows of floats lie in three buffers that all layers share: `wide` for what an input projection gives, `mixed` for what goes into
// an output projection, `hidden` for what is inside a part.
#pragma once
#include <functional>
#include <memory>

#include "pages.h"
#include "panels.h"
#include "team.h"

constexpr int64_t CHUNK_BYTES = 64 << 10;  // of weights, for one thread at a time
constexpr int64_t ROWS_AT_ONCE = 16;       // of activations, for one thread at a time

struct Row {
    int64_t sequence, position, token, at;  // at: its place among the ids of the call
    int64_t turned;                         // the position by which it is turned; `position` is the count of the tokens before
    int64_t reach[2];                       // first and last mark that it sees
};
struct Run {  // rows of one sequence, in order
    int64_t sequence, begin, end;
};

struct Sequences {
    int64_t batch = 0, tokens = 0;  // room
    std::vector<int64_t> length;    // tokens of each sequence
    // Numbers of tokens for rows that do not see all, -1 for none: [batch][tokens], or nothing where no token has ever had one.
    std::vector<std::vector<int64_t>> mark;

    void set_mark(int64_t sequence, int64_t place, int64_t value) {
        if (mark.empty() && value < 0) return;
        if (mark.empty()) mark.assign(batch, std::vector<int64_t>(tokens, -1));
        mark[sequence][place] = value;
    }
};

struct Hidden {  // which of a sequence's tokens a row does not see; mark is null where it sees all
    const int64_t* mark;
    int64_t first, last;
};

struct Scratch {  // of one thread
    Activations input, query, weights;
    std::vector<float> normed, scores;
    std::vector<char> room;
};

// Numbers of a layer in the order of spec.py.
struct Reader {
    const int64_t* whole;
    const float* real;
    int64_t next() { return *whole++; }
    float next_real() { return *real++; }
};

// Sum over a row of f(x), a vector of numbers at a time.
template <class F>
INLINE float sum_over(const float* x, int64_t n, F f) {
    V total = {};
    lanes(n, [&](int64_t i, auto part) { total += within(f(at(x + i, part)), part, 0); });
    return sum(total);
}
INLINE float sum_of_squares(const float* x, int64_t n) {
    return sum_over(x, n, [](V v) { return v * v; });
}

struct Norm {
    bool centred = false;
    float eps = 0;
    std::vector<float> weight, bias;
    void operator()(const float* from, float* to) const {
        const int64_t n = static_cast<int64_t>(weight.size());
        const float mean = centred ? sum_over(from, n, [](V v) { return v; }) / n : 0;
        const float inverse = 1 / std::sqrt(sum_over(from, n, [&](V v) { return (v - mean) * (v - mean); }) / n + eps);
        lanes(n, [&](int64_t i, auto part) {
            V y = (at(from + i, part) - mean) * inverse * at(&weight[i], part);
            put(to + i, bias.empty() ? y : y + at(&bias[i], part), part);
        });
    }
};

// Angles of a rotation at every row of a pass, for all layers that turn alike.
struct Rotation {
    std::vector<float> frequencies, cosine, sine;
    float scale;
    void fill(const std::vector<Row>& rows) {
        const size_t n = frequencies.size();
        if (cosine.size() < rows.size() * n) cosine.resize(rows.size() * n), sine.resize(rows.size() * n);
        for (size_t i = 0; i < rows.size(); i++)
            for (size_t j = 0; j < n; j++) {
                const float angle = static_cast<float>(rows[i].turned) * frequencies[j];
                cosine[i * n + j] = std::cos(angle) * scale;
                sine[i * n + j] = std::sin(angle) * scale;
            }
    }
    void turn(float* head, int64_t row) const {  // channel i with channel i + n
        const size_t n = frequencies.size();
        const float *c = cosine.data() + row * n, *s = sine.data() + row * n;
        for (size_t i = 0; i < n; i++) {
            const float left = head[i], right = head[i + n];
            head[i] = left * c[i] - right * s[i];
            head[i + n] = right * c[i] + left * s[i];
        }
    }
};

// Rows of floats; each user has a stride of its own.
struct Buffer {
    std::vector<float> memory;
    int64_t stride = 0;  // the largest that is used
    void use(int64_t floats) { stride = std::max(stride, floats); }
    void grow(int64_t rows) {
        if (static_cast<int64_t>(memory.size()) < rows * stride) memory.assign(rows * stride, 0);
    }
};

// rows [., inner] of a buffer (or of the normed residual stream) times a matrix, into a buffer or added to the residual stream.
struct Product {
    Matrix matrix;
    const Norm* norm = nullptr;
    Buffer* from = nullptr;
    int64_t from_stride = 0;
    Buffer* to = nullptr;
    int64_t to_stride = 0, to_column = 0;
    Target::Way way = Target::STORE;
    int activation = 0;
    float* input(int64_t row) const { return &from->memory[row * from_stride]; }
};

// Keys and values of one layer, in some form of numbers.
struct KeyValues {
    // A cache for other sequences: sequence i is from[i] of this one; from is null where nothing is kept.
    virtual std::unique_ptr<KeyValues> remade(int64_t batch, int64_t tokens, const int64_t* from, const std::vector<int64_t>& length) const = 0;
    virtual void put(int64_t sequence, int64_t head, int64_t token, const float* key, const float* value, Scratch& s) = 0;
    virtual void get(int64_t sequence, int64_t head, int64_t token, float* key, float* value) const = 0;
    virtual void approach(int64_t sequence, int64_t head) const = 0;  // brings the first keys near
    virtual void attend(int64_t sequence, int64_t head, const float* q, int rows, int64_t start, int64_t length, Hidden hidden, float scale,
                        Scratch& s, float* y) const = 0;
    virtual ~KeyValues() {}
};

// What depends on the forms of weights and keys.
struct Numbers {
    virtual void shape(Matrix& m, int64_t rows, int64_t inner, bool fine) const = 0;  // fine: activations of 16 bits, not 8
    virtual bool pack(Matrix& m, int64_t to, const float* row) const = 0;  // false if the form cannot hold the row
    virtual void unpack(const Matrix& m, int64_t from, float* row) const = 0;
    virtual void set_input(Activations& a, int64_t vector, const float* from, const Matrix& m) const = 0;
    virtual void multiply(const Matrix& m, const Activations& a, int64_t vectors, int64_t first, int64_t last, bool use_tiles, Scratch& s,
                          const Target& target) const = 0;
    virtual std::unique_ptr<KeyValues> key_values(int64_t heads, int64_t head_size) const = 0;
    virtual bool can_tile() const = 0;
    virtual bool halves() const = 0;  // weights have fewer bits than float32
    virtual ~Numbers() {}
};

struct Part;

// One thing after which all threads meet: a chunk of a product, its inputs (prepare), or work of a part.
struct Stage {
    Part* part;
    int step;
    Product* product;
    bool prepare;
    int64_t vectors, first_panel, last_panel;
};

// The tokens that go through the layers together, and everything that the layers share.
struct Pass {
    const Numbers& numbers;
    Team& team;
    Sequences sequences;
    int64_t width, x_stride;
    std::vector<Row> rows;
    std::vector<Run> runs;
    std::vector<int64_t> out_rows, out_sequences;  // rows whose logits are wanted
    std::vector<int64_t> out_of;                   // row -> its place among out_rows, or -1
    Buffer x, wide, mixed, hidden;
    std::vector<std::unique_ptr<Rotation>> rotations;
    std::vector<Stage> stages;
    Activations shared;
    int64_t widest = 0;  // groups of an input
    int64_t live = 0;    // rows that go on from here
    bool tiles = false;  // this pass uses AMX

    Pass(const Numbers& numbers_, Team& team_, int64_t width_)
        : numbers(numbers_), team(team_), width(width_), x_stride(round_up(width_, LANES)) {
        x.use(x_stride);
    }

    void clear() { rows.clear(), runs.clear(), out_rows.clear(), out_sequences.clear(); }

    // All rows go on to the end, so no two belong to one sequence.
    bool alone() const { return out_rows.size() == rows.size(); }

    const Rotation* rotation(const float* frequencies, int64_t pairs, float scale) {
        std::vector<float> wanted(frequencies, frequencies + pairs);
        for (const auto& one : rotations)
            if (one->frequencies == wanted && one->scale == scale) return one.get();
        rotations.emplace_back(new Rotation{wanted, {}, {}, scale});
        return rotations.back().get();
    }

    void plan(Part* part, int step, int64_t chunks) { add({part, step, nullptr, false, live, 0, 0}, chunks); }
    void plan(Product& product) { plan(product, 0, product.matrix.panels); }
    void plan(Product& product, int64_t first_panel, int64_t last_panel) {
        if (live > ROWS_AT_ONCE) add({nullptr, 0, &product, true, live, 0, 0}, blocks(live));
        const int64_t per = panels_per_chunk(product.matrix);
        add({nullptr, 0, &product, false, live, first_panel, last_panel}, (last_panel - first_panel + per - 1) / per);
    }
    static int64_t blocks(int64_t rows_) { return (rows_ + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE; }

    int64_t panels_per_chunk(const Matrix& m) const {
        if (team.size() == 1) return round_up(m.panels, 2);
        const int64_t fair = m.panels / (8 * team.size()), fit = CHUNK_BYTES / m.panel_bytes;
        return std::max<int64_t>(2, std::min(fair, fit) / 2 * 2);
    }

    // The vectors that a product reads, in its own form.
    void prepare(const Product& p, int64_t first, int64_t last, Activations& a, Scratch& s) const {
        if (static_cast<int64_t>(s.normed.size()) < width) s.normed.resize(width);
        for (int64_t i = first; i < last; i++) {
            if (p.norm) (*p.norm)(&x.memory[i * x_stride], s.normed.data());
            numbers.set_input(a, i, p.norm ? s.normed.data() : p.input(i), p.matrix);
        }
    }

    void multiply(const Stage& stage, int64_t chunk, bool first_chunk, Scratch& s, const Target& target) {
        const Product& p = *stage.product;
        const bool own = stage.vectors <= ROWS_AT_ONCE;
        if (own && first_chunk) {
            fetch(p.matrix.data + PREFETCH, PREFETCH);
            prepare(p, 0, stage.vectors, s.input, s);
        }
        const int64_t per = panels_per_chunk(p.matrix), first = stage.first_panel + chunk * per, last = std::min(first + per, stage.last_panel);
        numbers.multiply(p.matrix, own ? s.input : shared, stage.vectors, first, last, tiles && stage.vectors >= TILES_FROM_ROWS, s, target);
    }

  private:
    void add(const Stage& stage, int64_t chunks) {
        stages.push_back(stage);
        team.add(static_cast<int>(chunks));
    }
};

// One mixer or feed-forward.
struct Part {
    Pass& pass;
    Norm own_norm;
    std::vector<Product*> products;           // in the order of spec.py
    std::vector<std::vector<float>> vectors;  // the same
    bool fine = false;                        // its products have fine activations
    bool last = false;                        // the last part that keeps anything: behind it only the rows with logits go on

    Part(Pass& pass_, int64_t num_vectors, bool fine_ = false) : pass(pass_), vectors(num_vectors), fine(fine_) {}
    virtual ~Part() {}

    virtual void read() = 0;
    virtual void write() = 0;
    virtual void work(int step, int64_t chunk, Scratch& s) = 0;
    virtual int64_t place(const Product*, int64_t row) const { return row; }  // where a row of a matrix lies
    virtual void ready() {}                                                    // all weights are there

    // States: sequence i of the new ones is from[i] of the old (from null: all new); `commit` puts the new ones into use.
    virtual void remake(int64_t, int64_t, const int64_t*) {}
    virtual void commit() {}
    virtual void forget(int64_t) {}  // the tokens of a sequence
    // Tensor `which` of a part's state, [batch, ...] as the layers keep it; tokens: of its axis of tokens, if it has one.
    virtual void put_state(int, const float*, int64_t, Scratch&) {}
    virtual void get_state(int, float*, int64_t) const {}

    // A row's place among the results that go on, or -1.
    int64_t result_of(int64_t row) const { return last ? pass.out_of[row] : row; }
    int64_t results() const { return last ? static_cast<int64_t>(pass.out_rows.size()) : static_cast<int64_t>(pass.rows.size()); }

    // To be called when a part's states have taken all tokens in; false if nothing goes on.
    bool keep();

  protected:
    void shape(Product& p, int64_t rows, int64_t inner, const Norm* norm, Buffer* from, int64_t from_stride, Buffer* to, int64_t to_stride,
               Target::Way way) {
        pass.numbers.shape(p.matrix, rows, inner, fine);
        p.norm = norm, p.from = from, p.from_stride = from_stride, p.to = to, p.to_stride = to_stride, p.way = way;
        pass.widest = std::max(pass.widest, p.matrix.groups);
        if (from) from->use(from_stride);
        to->use(to_stride);
        products.push_back(&p);
    }
    void shape_input(Product& p, int64_t rows, Buffer* to) {
        shape(p, rows, pass.width, &own_norm, nullptr, 0, to, round_up(rows, LANES), Target::STORE);
    }
    void shape_output(Product& p, int64_t inner, Buffer* from) {
        shape(p, pass.width, inner, nullptr, from, round_up(inner, LANES), &pass.x, pass.x_stride, Target::ADD);
    }
};

constexpr int KEEP = -1;  // the step that moves the rows which go on together

inline bool Part::keep() {
    if (!last) return true;
    if (pass.out_rows.empty()) return false;
    if (pass.out_rows.size() < pass.rows.size()) pass.plan(this, KEEP, 1);
    pass.live = static_cast<int64_t>(pass.out_rows.size());
    return true;
}

// What a recurrence keeps of each sequence: `size` floats, zero at first.
struct Kept {
    int64_t size = 0, batch = 0;
    Pages memory, fresh;
    int64_t fresh_batch = 0;

    float* of(int64_t sequence) const { return reinterpret_cast<float*>(memory.data) + sequence * size; }
    void remake(int64_t batch_, const int64_t* from) {
        fresh = Pages(batch_ * size * 4), fresh_batch = batch_;
        for (int64_t i = 0; from && i < batch_; i++) memcpy(fresh.data + i * size * 4, of(from[i]), size * 4);
    }
    void commit() { memory = std::move(fresh), fresh = Pages(), batch = fresh_batch; }
    void forget(int64_t sequence) { memset(of(sequence), 0, size * 4); }
};
