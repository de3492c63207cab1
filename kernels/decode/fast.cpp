// One call a token: a whole decoding step of a Llama-like or GPT-2-like decoder, for a batch of sequences of different lengths.
// Here are the three forms of its numbers and the C interface, which fast.py binds.
#include "decoder.h"

namespace {

template <class W, class C>
struct TypedDecoder : Decoder {
    Pages arena;
    Cache<C> cache;
    std::vector<float> embedding_float;
    std::vector<uint16_t> embedding_half;

    TypedDecoder(const Sizes& sizes, const Reals& reals, const int64_t* windows, const float* f)
        : Decoder(sizes, reals, windows, f), cache(z.layers, z.kv_heads, z.head_size) {
        const int64_t q = z.heads * z.head_size, up = z.gated ? 2 * round_up(z.hidden, LANES) : z.hidden;
        std::vector<Matrix*> all;  // in the order of use, so that reading ahead of one reads the next
        for (Layer& layer : layers) {
            layer.matrix[QKV].template shape<W>(q + 2 * z.kv_heads * z.head_size, z.width);
            layer.matrix[OUT].template shape<W>(z.width, q);
            layer.matrix[UP].template shape<W>(up, z.width);
            layer.matrix[DOWN].template shape<W>(z.width, z.hidden);
            for (Matrix& m : layer.matrix) all.push_back(&m);
        }
        head.template shape<W>(z.vocabulary, z.width);
        all.push_back(&head);
        for (Matrix* m : all) weight_bytes += m->bytes();
        arena = Pages(weight_bytes);
        char* at = arena.data;
        for (Matrix* m : all) m->data = at, at += m->bytes();
        if (z.tied) return;
        if (W::GROUP == 1) embedding_float.resize(z.vocabulary * z.width);
        else embedding_half.resize(z.vocabulary * z.width);
    }

    Sequences& sequences() override { return cache; }
    void remake(int64_t batch, int64_t tokens, const int64_t* from) override { cache.remake(batch, tokens, from); }
    bool pack(Matrix& m, int64_t to, const float* row) override { return pack_row<W>(m, to, row); }
    bool can_tile() const override { return W::TILES; }

    void set_embedding(int64_t row, const float* data) override {
        for (int64_t i = 0; i < z.width; i++)
            if (W::GROUP == 1) embedding_float[row * z.width + i] = data[i];
            else embedding_half[row * z.width + i] = to_bf16(data[i]);
    }
    void embedding(int64_t id, float* to) const override {
        if (z.tied) return unpack_row<W>(head, id, to);
        for (int64_t i = 0; i < z.width; i++)
            to[i] = W::GROUP == 1 ? embedding_float[id * z.width + i] : from_bf16(embedding_half[id * z.width + i]);
    }
    void set_input(Activations& a, int64_t row, const float* from, int64_t n, int64_t groups) override { set_row<W>(a, row, from, n, groups); }
    void product(const Matrix& m, const Activations& a, int64_t vectors, int64_t first, int64_t last, bool use_tiles, Scratch& s,
                 const Target& target) override {
        multiply<W>(m, a, vectors, first, last, use_tiles, s.room, target);
    }
    void put(int64_t layer, int64_t sequence, int64_t g, int64_t token, const float* key, const float* value, Scratch& s) override {
        cache.put(cache.at(layer, sequence, g), token, key, value, s.query);
    }
    void fetch_keys(int64_t layer, int64_t sequence, int64_t g) const override { fetch(cache.at(layer, sequence, g).keys, NEAR); }
    void attend_to(int64_t layer, int64_t sequence, int64_t g, const float* q, int64_t start, int64_t length, Scratch& s, float* y) override {
        const int group = static_cast<int>(z.heads / z.kv_heads);
        attend(cache, cache.at(layer, sequence, g), s, q, group, start, length, r.attention_scale, y);
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

// form: 0 float32, 1 bf16 in 12 bits, 2 int8, 3 bf16. Null where memory is short.
void* decoder_create(const int64_t* sizes, const float* reals, const int64_t* windows, const float* frequencies, int64_t form) {
    Sizes z;
    Reals r;
    memcpy(&z, sizes, sizeof z);
    memcpy(&r, reals, sizeof r);
    try {
        if (form == 0) return static_cast<Decoder*>(new TypedDecoder<Float32, Float32>(z, r, windows, frequencies));
        if (form == 1) return static_cast<Decoder*>(new TypedDecoder<Bf12, Bf16>(z, r, windows, frequencies));
        if (form == 3) return static_cast<Decoder*>(new TypedDecoder<Bf16, Bf16>(z, r, windows, frequencies));
        return static_cast<Decoder*>(new TypedDecoder<Int8, Int8>(z, r, windows, frequencies));
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
int64_t decoder_misfits(void* d) { return static_cast<Decoder*>(d)->misfits; }
int64_t decoder_remake(void* d, int64_t batch, int64_t tokens, const int64_t* from) {
    return guarded([&] { return static_cast<Decoder*>(d)->remake(batch, tokens, from), static_cast<int64_t>(FINE); });
}
int64_t decoder_room(void* d) { return static_cast<Decoder*>(d)->sequences().tokens; }
void decoder_get_lengths(void* d, int64_t* to) {
    const auto& lengths = static_cast<Decoder*>(d)->sequences().length;
    std::copy(lengths.begin(), lengths.end(), to);
}
void decoder_set_lengths(void* d, const int64_t* from) {
    auto& lengths = static_cast<Decoder*>(d)->sequences().length;
    std::copy(from, from + lengths.size(), lengths.begin());
}
// keys, values: [batch][kv_heads][tokens][head_size] of one layer.
void decoder_fill(void* d, int64_t layer, const float* keys, const float* values, int64_t tokens, const int64_t* lengths) {
    Decoder& decoder = *static_cast<Decoder*>(d);
    const int64_t heads = decoder.z.kv_heads, size = decoder.z.head_size;
    for (int64_t unit = 0; unit < decoder.sequences().batch * heads; unit++)
        for (int64_t t = 0; t < lengths[unit / heads]; t++) {
            const int64_t from = (unit * tokens + t) * size;
            decoder.put(layer, unit / heads, unit % heads, t, keys + from, values + from, decoder.scratch[0]);
        }
}
int64_t decoder_extend(void* d, const int64_t* counts, const int64_t* ids, const float* embedded, float* logits, int64_t first, int64_t last,
                       float* hidden) {
    return guarded([&] {
        return static_cast<int64_t>(static_cast<Decoder*>(d)->extend(counts, ids, embedded, logits, first, last, hidden));
    });
}
int64_t decoder_greedy(void* d, const int64_t* ids, int64_t steps, const int64_t* stops, int64_t num_stops, float* logits, float* hidden,
                       int64_t* out, float* scores) {
    return guarded([&] { return static_cast<Decoder*>(d)->greedy(ids, steps, stops, num_stops, logits, hidden, out, scores); });
}
}
