// One call a token: a whole decoding step of a decoder of attention, recurrences and feed-forwards, for a batch of sequences of different
// lengths. Here are the three forms of its numbers and the C interface, which fast.py binds.
#include "cache.h"
#include "decoder.h"

namespace {

template <class W, class C>
struct Typed : Numbers {
    void shape(Matrix& m, int64_t rows, int64_t inner, bool fine) const override { m.template shape<W>(rows, inner, fine); }
    bool pack(Matrix& m, int64_t to, const float* row) const override { return pack_row<W>(m, to, row); }
    void unpack(const Matrix& m, int64_t from, float* row) const override { unpack_row<W>(m, from, row); }
    void set_input(Activations& a, int64_t vector, const float* from, const Matrix& m) const override { set_vector<W>(a, vector, from, m); }
    void multiply(const Matrix& m, const Activations& a, int64_t vectors, int64_t first, int64_t last, bool use_tiles, Scratch& s,
                  const Target& target) const override {
        ::multiply<W>(m, a, vectors, first, last, use_tiles, s.room, target);
    }
    std::unique_ptr<KeyValues> key_values(int64_t heads, int64_t head_size) const override {
        return std::unique_ptr<KeyValues>(new Cache<C>(heads, head_size));
    }
    bool can_tile() const override { return W::TILES; }
    bool halves() const override { return W::GROUP > 1; }
};

// form: 0 float32, 1 bf16 in 12 bits, 2 int8, 3 bf16.
std::unique_ptr<Numbers> numbers_of(int64_t form) {
    switch (form) {
        case 0: return std::unique_ptr<Numbers>(new Typed<Float32, Float32>);
        case 1: return std::unique_ptr<Numbers>(new Typed<Bf12, Bf16>);
        case 3: return std::unique_ptr<Numbers>(new Typed<Bf16, Bf16>);
        default: return std::unique_ptr<Numbers>(new Typed<Int8, Int8>);
    }
}

template <class Call>
int64_t guarded(Call call) {
    try {
        return call();
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

Decoder& decoder(void* d) { return *static_cast<Decoder*>(d); }

}  // namespace

extern "C" {

// whole, real: all numbers of the spec, in the order in which the decoder and its layers read them. twin: a decoder of the same ones, whose
// weights are used, or null. Null where memory is short.
void* decoder_create(const int64_t* whole, const float* real, int64_t form, const void* twin) {
    Reader in{whole, real};
    try {
        return new Decoder(in, numbers_of(form), static_cast<const Decoder*>(twin));
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void decoder_destroy(void* d) { delete static_cast<Decoder*>(d); }
void decoder_set_rows(void* d, int64_t layer, int64_t side, int64_t index, int64_t first, int64_t count, const float* data) {
    decoder(d).set_rows(layer, side, index, first, count, data);
}
void decoder_set_bias(void* d, int64_t layer, int64_t side, int64_t index, const float* data, int64_t n) {
    decoder(d).set_bias(layer, side, index, data, n);
}
void decoder_set_vector(void* d, int64_t layer, int64_t side, int64_t index, const float* data, int64_t n) {
    decoder(d).set_vector(layer, side, index, data, n);
}
void decoder_ready(void* d) { decoder(d).ready(); }
int64_t decoder_misfits(void* d) { return decoder(d).misfits; }
int64_t decoder_remake(void* d, int64_t batch, int64_t tokens, const int64_t* from) {
    return guarded([&] { return decoder(d).remake(batch, tokens, from), static_cast<int64_t>(FINE); });
}
int64_t decoder_room(void* d) { return decoder(d).pass.sequences.tokens; }
void decoder_get_lengths(void* d, int64_t* to) {
    const auto& lengths = decoder(d).pass.sequences.length;
    std::copy(lengths.begin(), lengths.end(), to);
}
void decoder_set_lengths(void* d, const int64_t* from) { decoder(d).set_lengths(from); }
// Marks of all tokens, -1 for none; width: of a row, at least the longest length. They are set for the lengths set before.
void decoder_get_marks(void* d, int64_t* to, int64_t width) {
    const auto& sequences = decoder(d).pass.sequences;
    for (int64_t b = 0; b < sequences.batch; b++)
        for (int64_t i = 0; i < width; i++)
            to[b * width + i] = sequences.mark.empty() || i >= sequences.length[b] ? -1 : sequences.mark[b][i];
}
void decoder_set_marks(void* d, const int64_t* from, int64_t width) {
    auto& sequences = decoder(d).pass.sequences;
    for (int64_t b = 0; b < sequences.batch; b++)
        for (int64_t i = 0; i < sequences.length[b]; i++) sequences.set_mark(b, i, from[b * width + i]);
}
// Tensor `which` of the states of a layer, for the lengths set before; tokens: of its axis of tokens, if it has one.
void decoder_put_state(void* d, int64_t layer, int64_t which, const float* from, int64_t tokens) {
    decoder(d).layers[layer].mixer->put_state(static_cast<int>(which), from, tokens, decoder(d).scratch[0]);
}
void decoder_get_state(void* d, int64_t layer, int64_t which, float* to, int64_t tokens) {
    decoder(d).layers[layer].mixer->get_state(static_cast<int>(which), to, tokens);
}
int64_t decoder_extend(void* d, const int64_t* counts, const int64_t* ids, const float* embedded, const int64_t* position, const int64_t* mark,
                       const int64_t* reach, float* logits, int64_t first, int64_t last, float* hidden) {
    const Given given{position, mark, reach};
    return guarded([&] { return static_cast<int64_t>(decoder(d).extend(counts, ids, embedded, given, logits, first, last, hidden)); });
}
int64_t decoder_greedy(void* d, const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits, float* hidden,
                       int64_t* out, float* scores) {
    return guarded([&] { return decoder(d).greedy(ids, steps, stops, num_stops, logits, hidden, out, scores); });
}
}
