// Keys and values of one layer, and attention of one query row to one of its key heads.
//
// A block belongs to one sequence and key head. Its keys are a packed matrix of tokens (forms.h): as many tokens side by side as a vector
// has lanes, so that scores come out as many at a time. Its values are [token group][channels][tokens of the group], so that the weighted
// sum is the same dot.
// In int8 each key and each value has a scale of its own. The scales of the values go into the weights of the sum, which are then rounded
// to 16 bits of the largest and multiplied as two planes of bytes: with 8 bits a long tail of small weights would be lost.
#pragma once
#include "layer.h"

constexpr int NEAR = 1024;  // bytes to prefetch ahead in the cache, whose runs are short

struct Block {
    char *keys, *values;
    float *key_scale, *value_scale;  // by token, int8 only; key_offset too: 128 * sum of the key
    int32_t* key_offset;
};

template <class F>
struct Cache;
template <class F>
void attend_block(const Cache<F>& c, const Block& block, Scratch& s, const float* q, int rows, int64_t start, int64_t length, Hidden hidden,
                  float scale, float* y);

template <class F>
struct Cache : KeyValues {
    int64_t batch = 0, tokens = 0;
    int64_t heads = 0, head_size = 0, groups = 0, channels = 0;  // groups of a key, padded channels of a value
    Pages memory;

    Cache(int64_t heads_, int64_t head_size_) : heads(heads_), head_size(head_size_) {
        groups = round_up(round_up(head_size, F::GROUP) / F::GROUP, 4);
        channels = round_up(head_size, LANES);
    }

    int64_t key_bytes(int64_t n) const { return n / LANES * groups * VECTOR_BYTES; }  // of n tokens
    int64_t value_bytes(int64_t n) const { return n / F::GROUP * channels * 4; }
    int64_t block_bytes() const { return key_bytes(tokens) + value_bytes(tokens) + (F::GROUP == 4 ? 3 * 4 * tokens : 0); }

    Block at(int64_t sequence, int64_t head) const {
        char* keys = memory.data + (sequence * heads + head) * block_bytes();
        char* values = keys + key_bytes(tokens);
        float* scales = reinterpret_cast<float*>(values + value_bytes(tokens));
        return {keys, values, scales, scales + tokens, reinterpret_cast<int32_t*>(scales + 2 * tokens)};
    }

    std::unique_ptr<KeyValues> remade(int64_t batch_, int64_t tokens_, const int64_t* from, const std::vector<int64_t>& length) const override {
        std::unique_ptr<Cache> fresh(new Cache(heads, head_size));
        fresh->batch = batch_, fresh->tokens = tokens_;
        fresh->memory = Pages(batch_ * heads * fresh->block_bytes());
        for (int64_t i = 0; from && i < batch_; i++) {
            const int64_t kept = round_up(length[from[i]], LANES);
            for (int64_t head = 0; head < heads; head++) {
                const Block to = fresh->at(i, head), old = at(from[i], head);
                memcpy(to.keys, old.keys, key_bytes(kept));
                memcpy(to.values, old.values, value_bytes(kept));
                if (F::GROUP != 4) continue;
                memcpy(to.key_scale, old.key_scale, kept * 4);
                memcpy(to.value_scale, old.value_scale, kept * 4);
                memcpy(to.key_offset, old.key_offset, kept * 4);
            }
        }
        return fresh;
    }

    void put(int64_t sequence, int64_t head, int64_t token, const float* key, const float* value, Scratch& s) override {
        const Block block = at(sequence, head);
        Activations& room = s.query;
        room.reserve(2, std::max(groups, channels));
        set_row<F>(room, 0, key, head_size, groups);
        if (F::GROUP == 4) {
            block.key_scale[token] = room.scale[0];
            block.key_offset[token] = 128 * make_signed(room.data);
        }
        char* column = block.keys + token / LANES * groups * VECTOR_BYTES + token % LANES * 4;
        for (int64_t i = 0; i < groups; i++) memcpy(column + i * VECTOR_BYTES, &room.data[i], 4);
        char* values = block.values + token / F::GROUP * channels * 4;
        if (F::GROUP == 1) memcpy(values, value, head_size * 4);
        if (F::GROUP == 2) put_half(values, token % 2, value);
        if (F::GROUP == 4) {
            set_row<F>(room, 0, value, head_size, channels);
            make_signed(room.data);
            block.value_scale[token] = room.scale[0];
            const char* bytes = reinterpret_cast<const char*>(room.data);
            for (int64_t i = 0; i < head_size; i++) values[i * 4 + token % 4] = bytes[i];
        }
    }

    void get(int64_t sequence, int64_t head, int64_t token, float* key, float* value) const override {
        const Block block = at(sequence, head);
        const char* column = block.keys + token / LANES * groups * VECTOR_BYTES + token % LANES * 4;
        const char* values = block.values + token / F::GROUP * channels * 4;
        for (int64_t i = 0; i < head_size; i++) {
            key[i] = number(column + i / F::GROUP * VECTOR_BYTES, i % F::GROUP);
            value[i] = number(values + i * 4, token % F::GROUP);
            if (F::GROUP == 4) key[i] *= block.key_scale[token], value[i] *= block.value_scale[token];
        }
    }

    void approach(int64_t sequence, int64_t head) const override { fetch(at(sequence, head).keys, NEAR); }
    void attend(int64_t sequence, int64_t head, const float* q, int rows, int64_t start, int64_t length, Hidden hidden, float scale, Scratch& s,
                float* y) const override {
        attend_block(*this, at(sequence, head), s, q, rows, start, length, hidden, scale, y);
    }

  private:
    // One number of a group.
    static float number(const char* group, int64_t i) {
        if (F::GROUP == 4) return reinterpret_cast<const int8_t*>(group)[i];
        if (F::GROUP == 2) return from_bf16(reinterpret_cast<const uint16_t*>(group)[i]);
        float value;
        memcpy(&value, group, 4);
        return value;
    }

    // Bytes plus 128 to signed bytes; their sum.
    int32_t make_signed(uint32_t* data) const {
        int8_t* bytes = reinterpret_cast<int8_t*>(data);
        int32_t total = 0;
        for (int64_t i = 0; i < head_size; i++) {
            bytes[i] = static_cast<int8_t>(bytes[i] ^ -128);
            total += bytes[i];
        }
        return total;
    }

    void put_half(char* words, int64_t odd, const float* value) const {
        int64_t i = 0;
        for (; i + LANES <= head_size; i += LANES) {
            IntLanes bits = bf16_bits(load(value + i));
            IntLanes pair = odd ? (load_bits(words + i * 4) & 0xffff) | (bits << 16) : bits;  // an even token clears its partner, which is
            memcpy(words + i * 4, &pair, VECTOR_BYTES);                                       // read with weight 0 before it is written
        }
        for (; i < head_size; i++) {
            const uint16_t pair[2] = {to_bf16(value[i]), 0};
            memcpy(words + i * 4 + odd * 2, pair, odd ? 2 : 4);
        }
    }
};

INLINE Lanes as_float(Lanes v) { return v; }
INLINE Lanes as_float(IntLanes v) { return __builtin_convertvector(v, Lanes); }

// Scores of a vector of tokens.
INLINE Lanes as_scores(const Block&, int64_t, Lanes acc, float scale) { return acc * scale; }
INLINE Lanes as_scores(const Block& block, int64_t token, IntLanes acc, float scale) {
    return as_float(acc - load_bits(block.key_offset + token)) * (load(block.key_scale + token) * scale);
}

// M rows of weights p times J vectors of channels of the values.
template <class F, int M, int J>
void mix_lanes(const Cache<F>& c, const char* values, int64_t groups, const uint32_t* p, int64_t stride, const float* scale, float* out) {
    constexpr int UNROLL = M * J <= 4 ? 4 : M * J <= 8 ? 2 : 1;  // enough sums at once to hide the time that one takes
    const int64_t step = c.channels * 4;
    typename F::Sum acc[UNROLL][M][J] = {};
    int64_t t = 0;
    for (; t + UNROLL <= groups; t += UNROLL)
        for (int u = 0; u < UNROLL; u++)
            for (int j = 0; j < J; j++) {
                const char* at = values + (t + u) * step + j * VECTOR_BYTES;
                __builtin_prefetch(at + NEAR, 0, 2);
                IntLanes v = load_bits(at);
                for (int m = 0; m < M; m++) acc[u][m][j] = F::dot(acc[u][m][j], v, p[m * stride + t + u]);
            }
    for (; t < groups; t++)
        for (int j = 0; j < J; j++)
            for (int m = 0; m < M; m++) acc[0][m][j] = F::dot(acc[0][m][j], load_bits(values + t * step + j * VECTOR_BYTES), p[m * stride + t]);
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) {
            for (int u = 1; u < UNROLL; u++) acc[0][m][j] += acc[u][m][j];
            store(out + m * c.channels + j * LANES, as_float(acc[0][m][j]) * scale[m]);
        }
}

template <class F, int M>
void mix_values(const Cache<F>& c, const char* values, int64_t groups, const uint32_t* p, int64_t stride, const float* scale, float* out) {
    int64_t j = 0;
    for (const int64_t n = c.channels / LANES; j < n;) {
        const char* at = values + j * VECTOR_BYTES;
        if (n - j >= 4) mix_lanes<F, M, 4>(c, at, groups, p, stride, scale, out + j * LANES), j += 4;
        else mix_lanes<F, M, 1>(c, at, groups, p, stride, scale, out + j * LANES), j += 1;
    }
}

// The weights of the sum in the form of F, from scores; returns the factor that undoes their scale.
template <class F>
float softmax(const Block& block, float* score, int64_t first_token, int64_t span, uint32_t* to) {
    Lanes tops = load(score), totals = {};
    for (int64_t i = LANES; i < span; i += LANES) tops = larger(load(score + i), tops);
    const float top = largest(tops);
    if constexpr (F::GROUP < 4) {
        for (int64_t i = 0; i < span; i += LANES) {
            const Lanes p = exp(load(score + i) - top);
            totals += p;
            if (F::GROUP == 1) store(reinterpret_cast<float*>(to) + i, p);
            else store_bf16(reinterpret_cast<uint16_t*>(to) + i, p);
        }
        return 1 / sum(totals);
    } else {
        IntLanes bad = {};
        tops = Lanes{};
        for (int64_t i = 0; i < span; i += LANES) {
            const Lanes p = exp(load(score + i) - top), scaled = p > Lanes{} ? p * load(block.value_scale + first_token + i) : p;
            totals += p;
            tops = larger(scaled, tops);
            bad |= not_finite(scaled);
            store(score + i, scaled);
        }
        const float most = largest(tops), inverse = most > 0 ? 65535 / most : 0;
        uint8_t *high = reinterpret_cast<uint8_t*>(to), *low = high + span;
        for (int64_t i = 0; i < span; i++) {
            const int32_t w = static_cast<int32_t>(score[i] * inverse + 0.5f);
            high[i] = static_cast<uint8_t>(w >> 8), low[i] = static_cast<uint8_t>(w);
        }
        return any(bad) ? NAN : most / 65535 / sum(totals);
    }
}

// softmax(scale q K^T) V for the `rows` query heads that share a key head, over tokens [start, length) that are not hidden; 0 without any.
// q: [rows][head_size]; y: [rows][head_size].
template <class F>
void attend_block(const Cache<F>& c, const Block& block, Scratch& s, const float* q, int rows, int64_t start, int64_t length, Hidden hidden,
                  float scale, float* y) {
    constexpr int PLANES = F::GROUP == 4 ? 2 : 1;
    constexpr int64_t SEGMENT = F::GROUP == 4 ? 16384 : INT64_MAX;  // token groups until a sum in int32 could run over
    const int64_t first = start / LANES, last = (length + LANES - 1) / LANES, span = (last - first) * LANES, channels = c.channels;
    s.query.reserve(rows, c.groups);
    s.weights.reserve(rows * PLANES, span / F::GROUP);
    if (static_cast<int64_t>(s.scores.size()) < rows * span) s.scores.resize(2 * rows * span);
    for (int m = 0; m < rows; m++) set_row<F>(s.query, m, q + m * c.head_size, c.head_size, c.groups);
    for (int64_t p = first; p < last; p++)
        for (int m = 0, n; m < rows; m += n) {
            n = rows_at_once(rows - m);
            typename F::Sum out[VECTOR_ROWS];
            panel_rows<F>(n, block.keys + p * c.groups * VECTOR_BYTES, c.groups, s.query.data + m * c.groups, c.groups, NEAR, out);
            for (int i = 0; i < n; i++) {
                const float by = F::GROUP == 4 ? scale * s.query.scale[m + i] : scale;
                store(&s.scores[(m + i) * span + (p - first) * LANES], as_scores(block, p * LANES, out[i], by));
            }
        }
    const char* values = block.values + c.value_bytes(first * LANES);
    fetch(values, NEAR);
    const int64_t stride = span / F::GROUP, groups = (length - first * LANES + F::GROUP - 1) / F::GROUP;
    std::vector<float>& out = s.normed;
    const int64_t planes = rows * PLANES;
    if (static_cast<int64_t>(out.size()) < planes * (channels + 1)) out.resize(planes * (channels + 1));
    float* undo = out.data() + planes * channels;
    for (int m = 0; m < rows; m++) {
        float* score = &s.scores[m * span];
        for (int64_t i = first * LANES; i < start; i++) score[i - first * LANES] = -INFINITY;
        for (int64_t i = length; i < last * LANES; i++) score[i - first * LANES] = -INFINITY;
        if (hidden.mark) {
            int64_t seen = 0;
            for (int64_t i = start; i < length; i++) {
                const bool sees = hidden.mark[i] < 0 || (hidden.first <= hidden.mark[i] && hidden.mark[i] <= hidden.last);
                if (!sees) score[i - first * LANES] = -INFINITY;
                seen += sees;
            }
            if (!seen) {
                memset(s.weights.data + m * PLANES * stride, 0, PLANES * stride * 4);
                for (int plane = 0; plane < PLANES; plane++) undo[m * PLANES + plane] = 0;
                continue;
            }
        }
        const float factor = softmax<F>(block, score, first * LANES, span, s.weights.data + m * PLANES * stride);
        undo[m * PLANES] = PLANES == 2 ? 256 * factor : factor;
        if (PLANES == 2) undo[m * 2 + 1] = factor;
    }
    for (int m = 0; m < rows; m++) memset(y + m * c.head_size, 0, c.head_size * 4);
    for (int64_t at = 0; at < groups; at += SEGMENT) {
        const int64_t now = std::min(SEGMENT, groups - at);
        for (int64_t m = 0, n; m < planes; m += n) {
            n = planes - m >= 4 ? 4 : planes - m >= 2 ? 2 : 1;
            const auto mix = n == 4 ? mix_values<F, 4> : n == 2 ? mix_values<F, 2> : mix_values<F, 1>;
            mix(c, values + at * channels * 4, now, s.weights.data + m * stride + at, stride, undo + m, out.data() + m * channels);
        }
        for (int64_t m = 0; m < planes; m++)
            for (int64_t i = 0; i < c.head_size; i++) y[m / PLANES * c.head_size + i] += out[m * channels + i];
        if (SEGMENT == INT64_MAX) break;
    }
}
