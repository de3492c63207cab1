// Keys and values of all sequences, and attention of one query row to one of its key heads.
//
// A block belongs to one layer, sequence and key head. Its keys are a packed matrix of tokens (forms.h): 16 tokens side by side, so that
// scores come out 16 at a time. Its values are [token group][channels][tokens of the group], so that the weighted sum is the same dot.
#pragma once
#include "pages.h"
#include "panels.h"

constexpr int NEAR = 1024;  // bytes to prefetch ahead in the cache, whose runs are short

struct Block {
    char *keys, *values;
};

struct Sequences {
    int64_t batch = 0, tokens = 0;  // room
    std::vector<int64_t> length;    // tokens of each sequence
};

template <class F>
struct Cache : Sequences {
    int64_t layers = 0, heads = 0, head_size = 0, groups = 0, channels = 0;  // groups of a key, padded channels of a value
    Pages memory;

    Cache(int64_t layers_, int64_t heads_, int64_t head_size_) : layers(layers_), heads(heads_), head_size(head_size_) {
        groups = round_up(round_up(head_size, F::GROUP) / F::GROUP, 4);
        channels = round_up(head_size, LANES);
    }

    static int64_t key_bytes(int64_t tokens, int64_t groups) { return tokens / LANES * groups * 64; }
    int64_t block_bytes(int64_t tokens_) const { return key_bytes(tokens_, groups) + tokens_ / F::GROUP * channels * 4; }

    Block at(int64_t layer, int64_t sequence, int64_t head) const {
        char* keys = memory.data + ((layer * batch + sequence) * heads + head) * block_bytes(tokens);
        return {keys, keys + key_bytes(tokens, groups)};
    }

    // Sequence i of the new cache is sequence from[i] of the old one; from is null where nothing is kept.
    void remake(int64_t batch_, int64_t tokens_, const int64_t* from) {
        Cache fresh(layers, heads, head_size);
        fresh.batch = batch_, fresh.tokens = round_up(std::max<int64_t>(tokens_, LANES), LANES);
        fresh.length.assign(batch_, 0);
        fresh.memory = Pages(layers * batch_ * heads * block_bytes(fresh.tokens));
        for (int64_t i = 0; from && i < batch_; i++) {
            fresh.length[i] = length[from[i]];
            const int64_t kept = round_up(fresh.length[i], LANES);
            for (int64_t layer = 0; layer < layers; layer++)
                for (int64_t head = 0; head < heads; head++) {
                    const Block to = fresh.at(layer, i, head), old = at(layer, from[i], head);
                    memcpy(to.keys, old.keys, key_bytes(kept, groups));
                    memcpy(to.values, old.values, kept / F::GROUP * channels * 4);
                }
        }
        *this = std::move(fresh);
    }

    // key: head_size channels in the form of F (one row of Activations); value: floats.
    void put(const Block& block, int64_t token, const uint32_t* key, const float* value) const {
        char* column = block.keys + token / LANES * groups * 64 + token % LANES * 4;
        for (int64_t i = 0; i < groups; i++) memcpy(column + i * 64, &key[i], 4);
        if (F::GROUP == 1) {
            memcpy(block.values + token * channels * 4, value, head_size * 4);
        } else {
            char* words = block.values + token / 2 * channels * 4;
            int64_t i = 0;
            for (; i + LANES <= head_size; i += LANES) {
                IntLanes bits = bf16_bits(load(value + i));
                IntLanes pair = token % 2 ? (load_bits(words + i * 4) & 0xffff) | (bits << 16) : bits;  // an even token clears its partner
                memcpy(words + i * 4, &pair, 64);
            }
            for (; i < head_size; i++) {
                const uint16_t pair[2] = {to_bf16(value[i]), 0};
                memcpy(words + i * 4 + token % 2 * 2, pair, token % 2 ? 2 : 4);
            }
        }
    }
};

struct Scratch {
    Activations input, query, weights;
    std::vector<float> normed, scores;
    std::vector<char> room;
};

// M rows of weights p times J * 16 channels of the values.
template <class F, int M, int J>
void mix_lanes(const Cache<F>& c, const char* values, int64_t groups, const uint32_t* p, int64_t stride, const float* scale, float* out) {
    constexpr int UNROLL = M * J <= 4 ? 4 : M * J <= 8 ? 2 : 1;  // enough sums at once to hide the time that one takes
    const int64_t step = c.channels * 4;
    Lanes acc[UNROLL][M][J] = {};
    int64_t t = 0;
    for (; t + UNROLL <= groups; t += UNROLL)
        for (int u = 0; u < UNROLL; u++)
            for (int j = 0; j < J; j++) {
                const char* at = values + (t + u) * step + j * 64;
                __builtin_prefetch(at + NEAR, 0, 2);
                IntLanes v = load_bits(at);
                for (int m = 0; m < M; m++) acc[u][m][j] = F::dot(acc[u][m][j], v, p[m * stride + t + u]);
            }
    for (; t < groups; t++)
        for (int j = 0; j < J; j++)
            for (int m = 0; m < M; m++) acc[0][m][j] = F::dot(acc[0][m][j], load_bits(values + t * step + j * 64), p[m * stride + t]);
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) {
            for (int u = 1; u < UNROLL; u++) acc[0][m][j] += acc[u][m][j];
            store(out + m * c.channels + j * LANES, acc[0][m][j] * scale[m]);
        }
}

template <class F, int M>
void mix_values(const Cache<F>& c, const char* values, int64_t groups, const uint32_t* p, int64_t stride, const float* scale, float* out) {
    int64_t j = 0;
    for (const int64_t n = c.channels / LANES; j < n;) {
        const char* at = values + j * 64;
        if (n - j >= 4) mix_lanes<F, M, 4>(c, at, groups, p, stride, scale, out + j * LANES), j += 4;
        else mix_lanes<F, M, 1>(c, at, groups, p, stride, scale, out + j * LANES), j += 1;
    }
}

// softmax(scale q K^T) V for the `rows` query heads that share a key head, over tokens [start, length).
// q: [rows][head_size]; y: [rows][head_size].
template <class F>
void attend(const Cache<F>& c, const Block& block, Scratch& s, const float* q, int rows, int64_t start, int64_t length, float scale, float* y) {
    const int64_t first = start / LANES, last = (length + LANES - 1) / LANES, span = (last - first) * LANES;
    s.query.reserve(rows, c.groups);
    s.weights.reserve(rows, span);
    if (static_cast<int64_t>(s.scores.size()) < rows * span) s.scores.resize(2 * rows * span);
    for (int m = 0; m < rows; m++) set_row<F>(s.query, m, q + m * c.head_size, c.head_size, c.groups);
    for (int64_t p = first; p < last; p++)
        for (int m = 0, n; m < rows; m += n) {
            n = rows_at_once(rows - m);
            Lanes out[VECTOR_ROWS];
            panel_rows<F>(n, block.keys + p * c.groups * 64, c.groups, s.query.data + m * c.groups, c.groups, NEAR, out);
            for (int i = 0; i < n; i++) store(&s.scores[(m + i) * span + (p - first) * LANES], out[i] * scale);
        }
    const char* values = block.values + first * LANES / F::GROUP * c.channels * 4;
    fetch(values, NEAR);
    const int64_t stride = span / F::GROUP, groups = (length - first * LANES + F::GROUP - 1) / F::GROUP;
    std::vector<float>& out = s.normed;
    if (static_cast<int64_t>(out.size()) < rows * (c.channels + 1)) out.resize(rows * (c.channels + 1));
    float* inverse = out.data() + rows * c.channels;
    for (int m = 0; m < rows; m++) {
        float* score = &s.scores[m * span];
        for (int64_t i = first * LANES; i < start; i++) score[i - first * LANES] = -INFINITY;
        for (int64_t i = length; i < last * LANES; i++) score[i - first * LANES] = -INFINITY;
        Lanes tops = load(score), totals = {};
        for (int64_t i = LANES; i < span; i += LANES) tops = larger(load(score + i), tops);
        const float top = largest(tops);
        for (int64_t i = 0; i < span; i += LANES) {
            Lanes p = exp_lanes(load(score + i) - top);
            totals += p;
            uint32_t* to = s.weights.data + m * stride;
            if (F::GROUP == 1) store(reinterpret_cast<float*>(to) + i, p);
            else store_bf16(reinterpret_cast<uint16_t*>(to) + i, p);
        }
        inverse[m] = 1 / sum(totals);
    }
    for (int m = 0, n; m < rows; m += n) {
        n = rows - m >= 4 ? 4 : rows - m >= 2 ? 2 : 1;
        const auto mix = n == 4 ? mix_values<F, 4> : n == 2 ? mix_values<F, 2> : mix_values<F, 1>;
        mix(c, values, groups, s.weights.data + m * stride, stride, inverse + m, out.data() + m * c.channels);
    }
    for (int m = 0; m < rows; m++) memcpy(y + m * c.head_size, out.data() + m * c.channels, c.head_size * 4);
}
