// Products of packed matrices with a few vectors: plain vectors below TILES_FROM_ROWS of them, AMX tiles above where there are any.
#pragma once
#include "forms.h"

#if HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int TILE_ROWS = 16;
constexpr int TILES_FROM_ROWS = 4;  // below, plain vectors are as fast
constexpr int PREFETCH = 8192;      // bytes ahead in weights; without it one core reads them half as fast from beyond the third cache level
#if defined(__AVX512F__)
constexpr int VECTOR_ROWS = 8;
#else
constexpr int VECTOR_ROWS = 4;
#endif

// M vectors times one panel.
template <class F, int M>
INLINE void panel_vector(const char* w, int64_t groups, const uint32_t* x, int64_t stride, int ahead, typename F::Sum* out) {
    constexpr int SUMS = M <= VECTOR_ROWS / 2 ? 4 : 2;
    typename F::Sum acc[M][SUMS] = {};
    constexpr int STEP = F::BYTES < VECTOR_BYTES ? 4 : SUMS;  // no sum twice in a step, or the compiler regroups what it adds
    for (int64_t k = 0; k < groups; k += STEP, w += STEP * F::BYTES) {
        IntLanes v[STEP];
        for (int i = 0; i < STEP * F::BYTES; i += 64) __builtin_prefetch(w + i + ahead, 0, 2);
        if constexpr (F::BYTES < VECTOR_BYTES) F::expand(w, v);
        else for (int u = 0; u < STEP; u++) v[u] = load_bits(w + u * VECTOR_BYTES);
        for (int u = 0; u < STEP; u++)
            for (int m = 0; m < M; m++) acc[m][u % SUMS] = F::dot(acc[m][u % SUMS], v[u], x[m * stride + k + u]);
    }
    for (int m = 0; m < M; m++) {
        for (int u = 1; u < SUMS; u++) acc[m][0] += acc[m][u];
        out[m] = acc[m][0];
    }
}

// As many rows as one call takes of `rows`: the panel comes from the first cache level for the rest.
INLINE int rows_at_once(int64_t rows) {
    return rows >= 8 && VECTOR_ROWS == 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

template <class F>
void panel_rows(int rows, const char* w, int64_t groups, const uint32_t* x, int64_t stride, int ahead, typename F::Sum* out) {
    switch (rows) {
        case 1: return panel_vector<F, 1>(w, groups, x, stride, ahead, out);
        case 2: return panel_vector<F, 2>(w, groups, x, stride, ahead, out);
        case 4: return panel_vector<F, 4>(w, groups, x, stride, ahead, out);
#if defined(__AVX512F__)
        case 8: return panel_vector<F, 8>(w, groups, x, stride, ahead, out);
#endif
    }
}

#if HAS_AMX
struct TileConfig {
    uint8_t palette = 1, start_row = 0, zero[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Linux lends the tile registers to a process that asks.
INLINE bool tiles_granted() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return granted;
}
INLINE void tiles_begin() {
    alignas(64) static const TileConfig config;
    _tile_loadconfig(&config);
}
INLINE void tiles_end() { _tile_release(); }

#define MULTIPLY(c, a, b)                                                             \
    do {                                                                              \
        if (F::GROUP == 2) _tile_dpbf16ps(c, a, b);                                   \
        else _tile_dpbusd(c, a, b);                                                   \
    } while (0)

// Sixteen groups of 12-bit weights as a tile of bf16.
INLINE void expand_tile(const char* from, char* to) {
    for (int k = 0; k < TILE_GROUPS; k += 4) {
        IntLanes v[4];
        Bf12::expand(from + k * Bf12::BYTES, v);
        memcpy(to + k * 64, v, 256);
    }
}

// 16 or 32 vectors times one or two panels; out: [panel][32][16]. IN_PLACE: the panels are tiles; else they are brought back from 12 bits
// two tiles ahead of their use.
template <class F, bool IN_PLACE, bool TWO_PANELS, bool TWO_BLOCKS>
void panel_tiles(const char* w, int64_t panel_bytes, int64_t groups, const uint32_t* x, int64_t stride, int ahead,
                 typename F::Sum (*out)[32]) {
    constexpr int BYTES = IN_PLACE ? 1024 : TILE_GROUPS * Bf12::BYTES, AHEAD = 2;
    alignas(64) char ring[IN_PLACE ? 1 : 4][2][1024];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const char* second = w + panel_bytes;
    const int64_t tiles = groups / TILE_GROUPS;
    for (int64_t t = IN_PLACE ? 0 : -AHEAD; t < tiles; t++) {
        const int64_t next = IN_PLACE ? t : t + AHEAD;
        for (int i = 0; ahead && i < BYTES; i += 64) {
            __builtin_prefetch(w + next * BYTES + i + ahead, 0, 2);
            if (TWO_PANELS) __builtin_prefetch(second + next * BYTES + i + ahead, 0, 2);
        }
        if (!IN_PLACE && next < tiles) {
            expand_tile(w + next * BYTES, ring[next % 4][0]);
            if (TWO_PANELS) expand_tile(second + next * BYTES, ring[next % 4][1]);
        }
        if (t < 0) continue;
        const char *left = IN_PLACE ? w + t * BYTES : ring[t % 4][0], *right = IN_PLACE ? second + t * BYTES : ring[t % 4][1];
        _tile_loadd(4, x + t * TILE_GROUPS, stride * 4);
        _tile_loadd(6, left, 64);
        MULTIPLY(0, 4, 6);
        if (TWO_PANELS) {
            _tile_loadd(7, right, 64);
            MULTIPLY(1, 4, 7);
        }
        if (TWO_BLOCKS) {
            _tile_loadd(5, x + 16 * stride + t * TILE_GROUPS, stride * 4);
            MULTIPLY(2, 5, 6);
            if (TWO_PANELS) MULTIPLY(3, 5, 7);
        }
    }
    _tile_stored(0, &out[0][0], 64);
    if (TWO_PANELS) _tile_stored(1, &out[1][0], 64);
    if (TWO_BLOCKS) _tile_stored(2, &out[0][16], 64);
    if (TWO_BLOCKS && TWO_PANELS) _tile_stored(3, &out[1][16], 64);
}

// Any number of vectors up to 32.
template <class F, bool IN_PLACE>
void multiply_tiles(int64_t rows, bool two, const char* w, int64_t bytes, int64_t groups, const uint32_t* x, int64_t stride,
                    int ahead, typename F::Sum (*out)[32]) {
    const auto call = rows > 16 ? (two ? panel_tiles<F, IN_PLACE, true, true> : panel_tiles<F, IN_PLACE, false, true>)
                                : (two ? panel_tiles<F, IN_PLACE, true, false> : panel_tiles<F, IN_PLACE, false, false>);
    call(w, bytes, groups, x, stride, ahead, out);
}
#undef MULTIPLY
#else
INLINE bool tiles_granted() { return false; }
INLINE void tiles_begin() {}
INLINE void tiles_end() {}
#endif

INLINE Lanes scaled(const Matrix& m, int64_t panel, Lanes acc, float) {
    return m.scale.empty() ? acc : acc * load(&m.scale[panel * LANES]);
}
INLINE Lanes scaled(const Matrix& m, int64_t panel, IntLanes acc, float scale) {
    const IntLanes exact = acc - load_bits(&m.offset[panel * LANES]);
    return __builtin_convertvector(exact, Lanes) * (load(&m.scale[panel * LANES]) * scale);
}

#if HAS_AMX
// Two panels of 12-bit weights as tiles, for use by more than 32 vectors.
INLINE const char* expand_panels(const Matrix& m, const char* w, bool two, std::vector<char>& room) {
    if (static_cast<int64_t>(room.size()) < 2 * m.groups * 64 + 64) room.resize(2 * m.groups * 64 + 64);
    char* to = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(room.data()), 64));
    for (int64_t k = 0; k < m.groups * (two ? 2 : 1); k += TILE_GROUPS) {
        fetch(w + k * Bf12::BYTES + PREFETCH, TILE_GROUPS * Bf12::BYTES);
        expand_tile(w + k * Bf12::BYTES, to + k * 64);
    }
    return to;
}
#endif

// What becomes of a product's results.
struct Target {
    enum Way { STORE, ADD, ACTIVATE, GATE } way;  // GATE: even panels are gates of the odd ones, and y has half as many channels
    float* y;
    int64_t stride;
    int activation = 0;
    float scale = 1;
    const int64_t* row = nullptr;  // row of y for each vector, if not the same

    void take(int64_t panel, int64_t vector, Lanes left, Lanes right, bool two) const {
        float* to = y + (row ? row[vector] : vector) * stride + panel / (way == GATE ? 2 : 1) * LANES;
        switch (way) {
            case STORE: left *= scale, right *= scale; break;
            case ADD: left += load(to), right += two ? load(to + LANES) : Lanes{}; break;
            case ACTIVATE: left = activate(activation, left), right = activate(activation, right); break;
            case GATE: left = activate(activation, left) * right, two = false; break;
        }
        store(to, left);
        if (two) store(to + LANES, right);
    }
};

// Panels [first, last) times all vectors.
template <class F>
void multiply(const Matrix& m, const Activations& a, int64_t vectors, int64_t first, int64_t last, bool tiles, std::vector<char>& room,
              const Target& target) {
    typedef typename F::Sum Sum;
    alignas(64) Sum out[2][32];
    const int64_t planes = F::GROUP == 4 ? m.planes : 1, rows = vectors * planes;
    for (int64_t p = first; p < last; p += 2) {
        const char* w = m.data + p * m.panel_bytes;
        const bool two = p + 1 < last;
#if HAS_AMX
        const bool expanded = F::BYTES < VECTOR_BYTES && tiles && rows > 32;
        const char* tile = expanded ? expand_panels(m, w, two, room) : nullptr;
#endif
        for (int64_t r = 0, block; r < rows; r += block) {
            const uint32_t* x = a.data + r * a.stride;
#if HAS_AMX
            if (F::TILES && tiles) {
                block = std::min<int64_t>(32, rows - r);
                if constexpr (F::BYTES < VECTOR_BYTES) {
                    if (expanded) multiply_tiles<Bf16, true>(block, two, tile, m.groups * 64, m.groups, x, a.stride, 0, out);
                    else multiply_tiles<F, false>(block, two, w, m.panel_bytes, m.groups, x, a.stride, PREFETCH, out);
                } else if constexpr (F::TILES) {
                    multiply_tiles<F, true>(block, two, w, m.panel_bytes, m.groups, x, a.stride, r == 0 ? PREFETCH : 0, out);
                }
            } else
#endif
            {
                block = rows_at_once(rows - r);
                panel_rows<F>(block, w, m.groups, x, a.stride, PREFETCH, out[0]);
                if (two) panel_rows<F>(block, w + m.panel_bytes, m.groups, x, a.stride, PREFETCH, out[1]);
            }
            for (int64_t i = 0; i < block; i += planes) {
                Lanes both[2] = {};
                for (int64_t side = 0; side < (two ? 2 : 1); side++) {
                    for (int64_t plane = 0; plane < planes; plane++)
                        both[side] += scaled(m, p + side, out[side][i + plane], F::GROUP == 4 ? a.scale[r + i + plane] : 1.0f);
                    if (!m.bias.empty()) both[side] += load(&m.bias[(p + side) * LANES]);
                }
                target.take(p, (r + i) / planes, both[0], both[1], two);
            }
        }
    }
    (void)tiles, (void)room;
}
