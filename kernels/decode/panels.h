// Matrices packed once into panels of 16 rows, and their products with a few vectors.
//
// A panel holds 16 rows of the matrix, the inner channels in groups of 4 bytes: 1 float, 2 bf16 or 4 int8. One 64-byte load is a group of
// all 16 rows, so a product needs no sum across lanes, and the same bytes are an AMX tile of 16 groups. Inner channels and rows are padded
// with zeros to whole tiles; activations likewise, so there are no tails.
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
constexpr int PREFETCH = 4096;  // bytes ahead; without it one core reaches half the bandwidth beyond the third cache level
#if defined(__AVX512F__)
constexpr int VECTOR_ROWS = 8;
#else
constexpr int VECTOR_ROWS = 4;
#endif

struct Float32 {
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

// Weights are signed; activations are stored plus 128 as unsigned bytes, which the row's `offset` takes back.
struct Int8 {
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
    int64_t rows = 0, inner = 0, panels = 0, groups = 0;  // groups: of one row, padded
    std::vector<float> scale, bias;                       // by padded row; scale of int8 only, bias may be empty
    std::vector<int32_t> offset;                          // 128 * sum of the row, int8 only
    int64_t panel_bytes() const { return groups * 64; }
    int64_t bytes() const { return panels * panel_bytes(); }
    void shape(int64_t rows_, int64_t inner_, int group) {
        rows = rows_, inner = inner_;
        panels = round_up(rows, LANES) / LANES;
        groups = round_up(round_up(inner, group) / group, TILE_GROUPS);
    }
};

// Row `to` of the packed matrix becomes the given row.
template <class F>
void pack_row(Matrix& m, int64_t to, const float* row) {
    char* base = m.data + (to / LANES) * m.panel_bytes() + (to % LANES) * 4;
    float top = 0;
    if (F::GROUP == 4) {
        bool finite = true;
        for (int64_t k = 0; k < m.inner; k++) top = std::max(top, std::fabs(row[k])), finite &= std::isfinite(row[k]);
        m.scale[to] = finite ? top / 127 : NAN;
    }
    const float inverse = top > 0 ? 127 / top : 0;
    int32_t total = 0;
    for (int64_t k = 0; k < m.inner; k++) {
        char* at = base + (k / F::GROUP) * 64;
        if (F::GROUP == 1) memcpy(at, &row[k], 4);
        if (F::GROUP == 2) reinterpret_cast<uint16_t*>(at)[k % 2] = to_bf16(row[k]);
        if (F::GROUP == 4) {
            int8_t q = static_cast<int8_t>(std::lrint(row[k] * inverse));
            reinterpret_cast<int8_t*>(at)[k % 4] = q;
            total += q;
        }
    }
    if (F::GROUP == 4) m.offset[to] = 128 * total;
}

template <class F>
void unpack_row(const Matrix& m, int64_t from, float* row) {
    const char* base = m.data + (from / LANES) * m.panel_bytes() + (from % LANES) * 4;
    for (int64_t k = 0; k < m.inner; k++) {
        const char* at = base + (k / F::GROUP) * 64;
        if (F::GROUP == 1) memcpy(&row[k], at, 4);
        if (F::GROUP == 2) row[k] = from_bf16(reinterpret_cast<const uint16_t*>(at)[k % 2]);
        if (F::GROUP == 4) row[k] = m.scale[from] * reinterpret_cast<const int8_t*>(at)[k % 4];
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
INLINE void panel_vector(const char* w, int64_t groups, const uint32_t* x, int64_t stride, typename F::Sum* out) {
    constexpr int UNROLL = M <= VECTOR_ROWS / 2 ? 4 : 2;
    typename F::Sum acc[M][UNROLL] = {};
    for (int64_t k = 0; k < groups; k += UNROLL)
        for (int u = 0; u < UNROLL; u++) {
            const char* at = w + (k + u) * 64;
            __builtin_prefetch(at + PREFETCH, 0, 2);
            IntLanes v = load_bits(at);
            for (int m = 0; m < M; m++) acc[m][u] = F::dot(acc[m][u], v, x[m * stride + k + u]);
        }
    for (int m = 0; m < M; m++) {
        for (int u = 1; u < UNROLL; u++) acc[m][0] += acc[m][u];
        out[m] = acc[m][0];
    }
}

// As many rows as one call takes of `rows`: the panel comes from the first cache level for the rest.
INLINE int rows_at_once(int64_t rows) {
    return rows >= 8 && VECTOR_ROWS == 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

template <class F>
void panel_rows(int rows, const char* w, int64_t groups, const uint32_t* x, int64_t stride, typename F::Sum* out) {
    switch (rows) {
        case 1: return panel_vector<F, 1>(w, groups, x, stride, out);
        case 2: return panel_vector<F, 2>(w, groups, x, stride, out);
        case 4: return panel_vector<F, 4>(w, groups, x, stride, out);
#if defined(__AVX512F__)
        case 8: return panel_vector<F, 8>(w, groups, x, stride, out);
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

// 16 or 32 vectors times one or two panels; out: [panel][32][16].
template <class F, bool TWO_PANELS, bool TWO_BLOCKS>
void panel_tiles(const char* w, int64_t panel_bytes, int64_t groups, const uint32_t* x, int64_t stride, typename F::Sum (*out)[32]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const char* second = w + panel_bytes;
    for (int64_t k = 0; k < groups; k += TILE_GROUPS) {
        for (int i = 0; i < TILE_GROUPS; i++) {
            __builtin_prefetch(w + (k + i) * 64 + PREFETCH, 0, 2);
            if (TWO_PANELS) __builtin_prefetch(second + (k + i) * 64 + PREFETCH, 0, 2);
        }
        _tile_loadd(4, x + k, stride * 4);
        _tile_loadd(6, w + k * 64, 64);
        MULTIPLY(0, 4, 6);
        if (TWO_PANELS) {
            _tile_loadd(7, second + k * 64, 64);
            MULTIPLY(1, 4, 7);
        }
        if (TWO_BLOCKS) {
            _tile_loadd(5, x + 16 * stride + k, stride * 4);
            MULTIPLY(2, 5, 6);
            if (TWO_PANELS) MULTIPLY(3, 5, 7);
        }
    }
    _tile_stored(0, &out[0][0], 64);
    if (TWO_PANELS) _tile_stored(1, &out[1][0], 64);
    if (TWO_BLOCKS) _tile_stored(2, &out[0][16], 64);
    if (TWO_BLOCKS && TWO_PANELS) _tile_stored(3, &out[1][16], 64);
}
#undef MULTIPLY
#else
INLINE bool tiles_granted() { return false; }
INLINE void tiles_begin() {}
INLINE void tiles_end() {}
#endif

constexpr int TILES_FROM_ROWS = 4;  // below, plain vectors are as fast

INLINE Lanes finished(const Matrix& m, int64_t panel, Lanes acc, float) {
    return m.bias.empty() ? acc : acc + load(&m.bias[panel * LANES]);
}
INLINE Lanes finished(const Matrix& m, int64_t panel, IntLanes acc, float scale) {
    IntLanes exact = acc - load_bits(&m.offset[panel * LANES]);
    Lanes y = __builtin_convertvector(exact, Lanes) * (load(&m.scale[panel * LANES]) * scale);
    return m.bias.empty() ? y : y + load(&m.bias[panel * LANES]);
}

// Panels [first, last) times all vectors. `take` gets (panel, row, its 16 results, those of the next panel, whether there is a next one).
template <class F, class Take>
void multiply(const Matrix& m, const Activations& a, int64_t rows, int64_t first, int64_t last, bool tiles, Take take) {
    typedef typename F::Sum Sum;
    alignas(64) Sum out[2][32];
    for (int64_t p = first; p < last; p += 2) {
        const char* w = m.data + p * m.panel_bytes();
        const bool two = p + 1 < last;
        for (int64_t r = 0, block; r < rows; r += block) {
            const uint32_t* x = a.data + r * a.stride;
#if HAS_AMX
            if (F::TILES && tiles) {
                block = std::min<int64_t>(32, rows - r);
                auto* call = block > 16 ? (two ? panel_tiles<F, true, true> : panel_tiles<F, false, true>)
                                        : (two ? panel_tiles<F, true, false> : panel_tiles<F, false, false>);
                call(w, m.panel_bytes(), m.groups, x, a.stride, out);
            } else
#endif
            {
                block = rows_at_once(rows - r);
                panel_rows<F>(block, w, m.groups, x, a.stride, out[0]);
                if (two) panel_rows<F>(block, w + m.panel_bytes(), m.groups, x, a.stride, out[1]);
            }
            for (int64_t i = 0; i < block; i++) {
                const float scale = F::GROUP == 4 ? a.scale[r + i] : 1.0f;
                Lanes left = finished(m, p, out[0][i], scale);
                Lanes right = two ? finished(m, p + 1, out[1][i], scale) : Lanes{};
                take(p, r + i, left, right, two);
            }
        }
    }
    (void)tiles;
}
