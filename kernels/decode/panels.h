// Matrices packed once into panels of 16 rows, and their products with a few vectors.
//
// A panel holds 16 rows of the matrix, the inner channels in groups of 4 bytes: 1 float, 2 bf16 or 4 int8. One 64-byte load is a group of
// all 16 rows, so a product needs no sum across lanes, and 16 groups are an AMX tile. Inner channels and rows are padded to whole tiles,
// activations with zeros, so there are no tails.
//
// Decoding waits for memory, so bf16 weights are stored in 12 bits: each row is scaled by a power of two to a largest size within 1 to 2, and
// then 4 bits of exponent hold every weight down to 2^-15 of the largest without loss; smaller ones become 2^-15 of it, a hundredth of what
// the rounding to bf16 costs. Four groups (4 x 64 bytes) lie in three loads, and 11 bit operations bring them back.
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_AMX 0
#endif

constexpr int TILE_GROUPS = 16;
constexpr int TILE_ROWS = 16;
constexpr int PREFETCH = 8192;  // bytes ahead in weights; without it one core reaches half the bandwidth beyond the third cache level
#if defined(__AVX512F__)
constexpr int VECTOR_ROWS = 8;
#else
constexpr int VECTOR_ROWS = 4;
#endif

struct Float32 {
    static constexpr int BYTES = 64;  // of a group of 16 rows
    static constexpr int GROUP = 1;
    typedef Lanes Sum;
    static constexpr bool TILES = false;
    INLINE Sum dot(Sum acc, IntLanes w, uint32_t x) {
        float value;
        memcpy(&value, &x, 4);
        return acc + (Lanes)w * value;
    }
};

struct Bf16 {
    static constexpr int BYTES = 64;
    static constexpr int GROUP = 2;
    typedef Lanes Sum;
    static constexpr bool TILES = HAS_AMX;
    INLINE Sum dot(Sum acc, IntLanes w, uint32_t x) {
#if defined(__AVX512BF16__)
        return (Lanes)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)splat_bits(x));
#else
        float even = from_bf16(static_cast<uint16_t>(x)), odd = from_bf16(static_cast<uint16_t>(x >> 16));
        acc += (Lanes)(w << 16) * even;
        return acc + (Lanes)(w & static_cast<int32_t>(0xffff0000)) * odd;
#endif
    }
};

// bf16 weights in 12 bits; see above.
struct Bf12 : Bf16 {
    static constexpr int BYTES = 48;
    INLINE void expand(const char* at, IntLanes* group) {
        const IntLanes a = load_bits(at), b = load_bits(at + 64), c = load_bits(at + 128);
        const IntLanes top = splat_bits(0x38003800), keep = splat_bits(0x87ff87ff);
        group[0] = (a & keep) | top;
        group[1] = (b & keep) | top;
        group[2] = (c & keep) | top;
        group[3] = top | ((a >> 4) & 0x07800780) | ((b >> 8) & 0x00780078) | ((c << 1) & splat_bits(0x80008000)) | ((c >> 11) & 0x00070007);
    }
    // 8 channels of one row in its four bytes of three loads, as 12 bits each: sign, exponent, mantissa.
    static void put(char* at, const uint16_t* field) {
        for (int half = 0; half < 2; half++) {
            const uint16_t *f = field + half, last = f[6];
            const uint16_t word[3] = {static_cast<uint16_t>(spread(f[0]) | (last >> 7 & 15) << 11),
                                      static_cast<uint16_t>(spread(f[2]) | (last >> 3 & 15) << 11),
                                      static_cast<uint16_t>(spread(f[4]) | (last >> 11 << 3 | (last & 7)) << 11)};
            for (int i = 0; i < 3; i++) memcpy(at + 64 * i + 2 * half, &word[i], 2);
        }
    }
    static uint16_t spread(uint16_t field) { return static_cast<uint16_t>((field & 0x800) << 4 | (field & 0x7ff)); }
};

// Weights are signed; activations are stored plus 128 as unsigned bytes, which the row's `offset` takes back.
struct Int8 {
    static constexpr int BYTES = 64;  // of a group of 16 rows
    static constexpr int GROUP = 4;
    typedef IntLanes Sum;
    static constexpr bool TILES = HAS_AMX;
    INLINE Sum dot(Sum acc, IntLanes w, uint32_t x) {
#if defined(__AVX512VNNI__)
        return (IntLanes)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)splat_bits(x), (__m512i)w);
#else
        for (int i = 0; i < 4; i++) acc += ((w << (24 - 8 * i)) >> 24) * static_cast<int32_t>((x >> (8 * i)) & 255);
        return acc;
#endif
    }
};

struct Matrix {
    char* data = nullptr;
    int64_t rows = 0, inner = 0, panels = 0, groups = 0, panel_bytes = 0;  // groups: of one row, padded
    std::vector<float> scale, bias;                                        // by padded row; either may be empty
    std::vector<int32_t> offset;                                           // 128 * sum of the row, int8 only
    int64_t bytes() const { return panels * panel_bytes; }
    template <class F>
    void shape(int64_t rows_, int64_t inner_) {
        rows = rows_, inner = inner_;
        panels = round_up(rows, LANES) / LANES;
        groups = round_up(round_up(inner, F::GROUP) / F::GROUP, TILE_GROUPS);
        panel_bytes = groups * F::BYTES;
        if (F::GROUP == 4 || F::BYTES == 48) scale.assign(panels * LANES, 0);
        if (F::GROUP == 4) offset.assign(panels * LANES, 0);
    }
};

INLINE float largest_size(const float* row, int64_t n) {
    float top = 0;
    for (int64_t k = 0; k < n; k++) {
        if (!std::isfinite(row[k])) return NAN;
        top = std::max(top, std::fabs(row[k]));
    }
    return top;
}

// Row `to` of the packed matrix becomes the given row; one that is not finite gives products that are NaN.
template <class F>
void pack_row(Matrix& m, int64_t to, const float* row) {
    char* base = m.data + (to / LANES) * m.panel_bytes + (to % LANES) * 4;
    if (F::BYTES == 48) {
        const float top = largest_size(row, m.inner);
        int exponent = 0;
        if (top > 0) {
            std::frexp(top, &exponent);
            if (from_bf16(to_bf16(std::ldexp(top, 1 - exponent))) >= 2) exponent++;  // rounded up to the next power
        }
        m.scale[to] = top > 0 ? std::ldexp(1.0f, exponent - 1) : top;  // 0 and NaN stay
        for (int64_t k = 0; k < m.groups * 2; k += 8) {
            uint16_t field[8];
            for (int64_t i = 0; i < 8; i++) {
                const float w = k + i < m.inner && top > 0 ? std::ldexp(row[k + i], 1 - exponent) : 0;
                const uint16_t bits = to_bf16(w), power = bits >> 7 & 255;
                field[i] = power < 112 ? (w < 0 || (w == 0 && i % 2)) << 11 : (bits >> 15) << 11 | (bits & 0x7ff);
            }
            Bf12::put(base + k / 8 * 192, field);
        }
        return;
    }
    float inverse = 0;
    if (F::GROUP == 4) {
        const float top = largest_size(row, m.inner);
        m.scale[to] = top / 127, inverse = top > 0 ? 127 / top : 0;
    }
    int32_t total = 0;
    for (int64_t k = 0; k < m.inner; k++) {
        char* at = base + (k / F::GROUP) * 64;
        if (F::GROUP == 1) memcpy(at, &row[k], 4);
        if (F::GROUP == 4) {
            const int8_t q = static_cast<int8_t>(std::lrint(row[k] * inverse));
            reinterpret_cast<int8_t*>(at)[k % 4] = q;
            total += q;
        }
    }
    if (F::GROUP == 4) m.offset[to] = 128 * total;
}

template <class F>
void unpack_row(const Matrix& m, int64_t from, float* row) {
    const char* base = m.data + (from / LANES) * m.panel_bytes + (from % LANES) * 4;
    for (int64_t k = 0; k < m.inner; k++) {
        const char* at = base + (k / F::GROUP) * 64;
        if (F::GROUP == 1) memcpy(&row[k], at, 4);
        if (F::GROUP == 4) row[k] = m.scale[from] * reinterpret_cast<const int8_t*>(at)[k % 4];
    }
    if (F::BYTES != 48) return;
    for (int64_t k = 0; k < m.groups * 2; k += 8) {
        IntLanes word[3] = {}, group[4];
        for (int i = 0; i < 3; i++) memcpy(&word[i], base + k / 8 * 192 + 64 * i, 4);
        Bf12::expand(reinterpret_cast<const char*>(word), group);
        for (int64_t i = 0; i < 8 && k + i < m.inner; i++) {
            const uint32_t pair = static_cast<uint32_t>(group[i / 2][0]);
            row[k + i] = m.scale[from] * from_bf16(static_cast<uint16_t>(i % 2 ? pair >> 16 : pair));
        }
    }
}

// Vectors in the form that a product takes: row r starts at data + r * stride groups.
struct Activations {
    std::vector<uint32_t> memory;
    uint32_t* data = nullptr;
    int64_t stride = 0;
    std::vector<float> scale;  // int8 only
    void reserve(int64_t rows, int64_t groups) {
        const int64_t size = rows * groups + 16;
        if (static_cast<int64_t>(memory.size()) < size) memory.assign(size + size / 2, 0);
        if (static_cast<int64_t>(scale.size()) < rows) scale.assign(rows, 0);
        data = reinterpret_cast<uint32_t*>(round_up(reinterpret_cast<int64_t>(memory.data()), 64));
    }
};

template <class F>
void set_row(Activations& a, int64_t row, const float* x, int64_t n, int64_t groups) {
    a.stride = groups;
    uint32_t* to = a.data + row * groups;
    if (F::GROUP == 1) {
        memcpy(to, x, n * 4);
        memset(to + n, 0, (groups - n) * 4);
    } else if (F::GROUP == 2) {
        uint16_t* half = reinterpret_cast<uint16_t*>(to);
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) store_bf16(half + i, load(x + i));
        for (; i < n; i++) half[i] = to_bf16(x[i]);
        memset(half + n, 0, groups * 4 - n * 2);
    } else {
        Lanes tops = {};
        IntLanes bad = {};
        int64_t whole = n / LANES * LANES;
        for (int64_t i = 0; i < whole; i += LANES) {
            Lanes v = load(x + i);
            tops = larger(tops, v < Lanes{} ? -v : v);
            bad |= not_finite(v);
        }
        float top = largest(tops);
        bool finite = !any(bad);
        for (int64_t i = whole; i < n; i++) top = std::max(top, std::fabs(x[i])), finite &= std::isfinite(x[i]);
        const float inverse = top > 0 ? 127 / top : 0;
        uint8_t* byte = reinterpret_cast<uint8_t*>(to);
        for (int64_t i = 0; i < n; i++) byte[i] = static_cast<uint8_t>(static_cast<int32_t>(x[i] * inverse + 128.5f));
        memset(byte + n, 0, groups * 4 - n);
        a.scale[row] = finite ? top / 127 : NAN;
    }
}

// M vectors times one panel.
template <class F, int M>
INLINE void panel_vector(const char* w, int64_t groups, const uint32_t* x, int64_t stride, int ahead, typename F::Sum* out) {
    constexpr int SUMS = M <= VECTOR_ROWS / 2 ? 4 : 2;
    typename F::Sum acc[M][SUMS] = {};
    for (int64_t k = 0; k < groups; k += 4, w += 4 * F::BYTES) {
        IntLanes v[4];
        for (int i = 0; i < 4 * F::BYTES; i += 64) __builtin_prefetch(w + i + ahead, 0, 2);
        if constexpr (F::BYTES == 48) F::expand(w, v);
        else for (int u = 0; u < 4; u++) v[u] = load_bits(w + u * 64);
        for (int u = 0; u < 4; u++)
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
void panel_tiles(const char* w, int64_t panel_bytes, int64_t groups, const uint32_t* x, int64_t stride, typename F::Sum (*out)[32]) {
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
        for (int i = 0; i < BYTES && (!IN_PLACE || F::BYTES == 64); i += 64) {
            __builtin_prefetch(w + next * BYTES + i + PREFETCH, 0, 2);
            if (TWO_PANELS) __builtin_prefetch(second + next * BYTES + i + PREFETCH, 0, 2);
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
                    typename F::Sum (*out)[32]) {
    const auto call = rows > 16 ? (two ? panel_tiles<F, IN_PLACE, true, true> : panel_tiles<F, IN_PLACE, false, true>)
                                : (two ? panel_tiles<F, IN_PLACE, true, false> : panel_tiles<F, IN_PLACE, false, false>);
    call(w, bytes, groups, x, stride, out);
}
#undef MULTIPLY
#else
INLINE bool tiles_granted() { return false; }
INLINE void tiles_begin() {}
INLINE void tiles_end() {}
#endif

constexpr int TILES_FROM_ROWS = 4;  // below, plain vectors are as fast

INLINE Lanes finished(const Matrix& m, int64_t panel, Lanes acc, float) {
    if (!m.scale.empty()) acc *= load(&m.scale[panel * LANES]);
    return m.bias.empty() ? acc : acc + load(&m.bias[panel * LANES]);
}
INLINE Lanes finished(const Matrix& m, int64_t panel, IntLanes acc, float scale) {
    IntLanes exact = acc - load_bits(&m.offset[panel * LANES]);
    Lanes y = __builtin_convertvector(exact, Lanes) * (load(&m.scale[panel * LANES]) * scale);
    return m.bias.empty() ? y : y + load(&m.bias[panel * LANES]);
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
void multiply(const Matrix& m, const Activations& a, int64_t rows, int64_t first, int64_t last, bool tiles, std::vector<char>& room,
              const Target& target) {
    typedef typename F::Sum Sum;
    alignas(64) Sum out[2][32];
    for (int64_t p = first; p < last; p += 2) {
        const char* w = m.data + p * m.panel_bytes;
        const bool two = p + 1 < last;
#if HAS_AMX
        const bool expanded = F::BYTES == 48 && tiles && rows > 32;
        const char* tile = expanded ? expand_panels(m, w, two, room) : w;
#endif
        for (int64_t r = 0, block; r < rows; r += block) {
            const uint32_t* x = a.data + r * a.stride;
#if HAS_AMX
            if (F::TILES && tiles) {
                block = std::min<int64_t>(32, rows - r);
                if (F::BYTES == 64 || expanded) multiply_tiles<F, true>(block, two, tile, m.groups * 64, m.groups, x, a.stride, out);
                else multiply_tiles<F, false>(block, two, w, m.panel_bytes, m.groups, x, a.stride, out);
            } else
#endif
            {
                block = rows_at_once(rows - r);
                panel_rows<F>(block, w, m.groups, x, a.stride, PREFETCH, out[0]);
                if (two) panel_rows<F>(block, w + m.panel_bytes, m.groups, x, a.stride, PREFETCH, out[1]);
            }
            for (int64_t i = 0; i < block; i++) {
                const float scale = F::GROUP == 4 ? a.scale[r + i] : 1.0f;
                Lanes left = finished(m, p, out[0][i], scale);
                Lanes right = two ? finished(m, p + 1, out[1][i], scale) : Lanes{};
                target.take(p, r + i, left, right, two);
            }
        }
    }
    (void)tiles, (void)room;
}
