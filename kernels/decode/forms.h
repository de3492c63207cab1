// The forms of numbers, and matrices packed once into panels of as many rows as a vector has lanes: 16 with AVX-512.
//
// A panel holds these rows of the matrix, the inner channels in groups of 4 bytes: 1 float, 2 bf16 or 4 int8. One load is a group of all
// rows, so a product needs no sum across lanes, and 16 groups of 16 rows are an AMX tile. Inner channels and rows are padded to whole tiles,
// activations with zeros, so there are no tails.
//
// Activations of int8 products have 8 bits, or 16 as two planes of bytes where a few large numbers among many small ones must not cost the
// small ones: what a recurrent mixer reads and writes. The weights are read once for both planes.
//
// Decoding waits for memory, so bf16 weights are stored in 12 bits: each row is scaled by a power of two to a largest size within 1 to 2, and
// then 4 bits of exponent hold every weight down to 2^-15 of the largest without loss; smaller ones, and zero, become 2^-15 of it. A matrix
// with a row where that would cost more than the rounding to bf16 does (`fits_12_bits`) is refused, and the decoder is made with 16 bits.
// Four groups lie in three loads, and 11 bit operations bring them back.
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

constexpr int TILE_GROUPS = 16;

struct Float32 {
    static constexpr int BYTES = VECTOR_BYTES;  // of a group of a panel's rows
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
    static constexpr int BYTES = VECTOR_BYTES;
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
    static constexpr int BYTES = VECTOR_BYTES * 3 / 4;
    INLINE void expand(const char* at, IntLanes* group) {
        const IntLanes a = load_bits(at), b = load_bits(at + VECTOR_BYTES), c = load_bits(at + 2 * VECTOR_BYTES);
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
            for (int i = 0; i < 3; i++) memcpy(at + VECTOR_BYTES * i + 2 * half, &word[i], 2);
        }
    }
    static uint16_t spread(uint16_t field) { return static_cast<uint16_t>((field & 0x800) << 4 | (field & 0x7ff)); }
};

// Weights are signed; activations are stored plus 128 as unsigned bytes, which the row's `offset` takes back.
struct Int8 {
    static constexpr int BYTES = VECTOR_BYTES;  // of a group of a panel's rows
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
    int64_t planes = 1;                                                    // of the activations
    std::vector<float> scale, bias;                                        // by padded row; either may be empty
    std::vector<int32_t> offset;                                           // 128 * sum of the row, int8 only
    int64_t bytes() const { return panels * panel_bytes; }
    void take(const Matrix& other) { scale = other.scale, bias = other.bias, offset = other.offset; }
    template <class F>
    void shape(int64_t rows_, int64_t inner_, bool fine) {
        rows = rows_, inner = inner_, planes = fine && F::GROUP == 4 ? 2 : 1;
        panels = round_up(rows, LANES) / LANES;
        groups = round_up(round_up(inner, F::GROUP) / F::GROUP, TILE_GROUPS);
        panel_bytes = groups * F::BYTES;
        if (F::GROUP == 4 || F::BYTES < VECTOR_BYTES) scale.assign(panels * LANES, 0);
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

// Whether the weights of a row that 12 bits cannot hold err by less, all in all, than 2^-9 of the row's common size (the median's power).
INLINE bool fits_12_bits(const float* row, int64_t n, float top) {
    if (!(top > 0)) return true;
    int64_t of_power[256] = {}, small = 0, sized = 0, seen = 0;
    for (int64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &row[k], 4);
        const int power = bits >> 23 & 255;
        small += std::fabs(row[k]) < top * 0x1p-15f;
        if (power) of_power[power]++, sized++;
    }
    int median = 0;
    while (seen * 2 < sized) seen += of_power[++median];
    const double error = top * 0x1p-15, common = std::ldexp(1.0, median - 127);
    return small * error * error <= sized * common * common * 0x1p-18;
}

// Row `to` of the packed matrix becomes the given row; one that is not finite gives products that are NaN.
// False if the form cannot hold the row.
template <class F>
bool pack_row(Matrix& m, int64_t to, const float* row) {
    char* base = m.data + (to / LANES) * m.panel_bytes + (to % LANES) * 4;
    if (F::BYTES < VECTOR_BYTES) {
        const float top = largest_size(row, m.inner);
        if (!fits_12_bits(row, m.inner, top)) return false;
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
            Bf12::put(base + k / 8 * 3 * VECTOR_BYTES, field);
        }
        return true;
    }
    float inverse = 0;
    if (F::GROUP == 4) {
        const float top = largest_size(row, m.inner);
        m.scale[to] = top / 127, inverse = top > 0 ? 127 / top : 0;
    }
    int32_t total = 0;
    for (int64_t k = 0; k < m.inner; k++) {
        char* at = base + (k / F::GROUP) * VECTOR_BYTES;
        if (F::GROUP == 1) memcpy(at, &row[k], 4);
        if (F::GROUP == 2) reinterpret_cast<uint16_t*>(at)[k % 2] = to_bf16(row[k]);
        if (F::GROUP == 4) {
            const int8_t q = static_cast<int8_t>(std::lrint(row[k] * inverse));
            reinterpret_cast<int8_t*>(at)[k % 4] = q;
            total += q;
        }
    }
    if (F::GROUP == 4) m.offset[to] = 128 * total;
    return true;
}

template <class F>
void unpack_row(const Matrix& m, int64_t from, float* row) {
    const char* base = m.data + (from / LANES) * m.panel_bytes + (from % LANES) * 4;
    for (int64_t k = 0; k < m.inner; k++) {
        const char* at = base + (k / F::GROUP) * VECTOR_BYTES;
        if (F::GROUP == 1) memcpy(&row[k], at, 4);
        if (F::GROUP == 2 && F::BYTES == VECTOR_BYTES) row[k] = from_bf16(reinterpret_cast<const uint16_t*>(at)[k % 2]);
        if (F::GROUP == 4) row[k] = m.scale[from] * reinterpret_cast<const int8_t*>(at)[k % 4];
    }
    if (F::BYTES == VECTOR_BYTES) return;
    for (int64_t k = 0; k < m.groups * 2; k += 8) {
        IntLanes word[3] = {}, group[4];
        for (int i = 0; i < 3; i++) memcpy(&word[i], base + k / 8 * 3 * VECTOR_BYTES + VECTOR_BYTES * i, 4);
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

// The largest size in a row, NaN if one is not finite.
INLINE float finite_top(const float* x, int64_t n) {
    Lanes tops = {};
    IntLanes bad = {};
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        const Lanes v = load(x + i);
        tops = larger(tops, v < Lanes{} ? -v : v);
        bad |= not_finite(v);
    }
    float top = largest(tops);
    bool finite = !any(bad);
    for (int64_t i = whole; i < n; i++) top = std::max(top, std::fabs(x[i])), finite &= std::isfinite(x[i]);
    return finite ? top : NAN;
}

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
        const float top = finite_top(x, n);
        const float inverse = top > 0 ? 127 / top : 0;
        uint8_t* byte = reinterpret_cast<uint8_t*>(to);
        for (int64_t i = 0; i < n; i++) byte[i] = static_cast<uint8_t>(static_cast<int32_t>(x[i] * inverse + 128.5f));
        memset(byte + n, 0, groups * 4 - n);
        a.scale[row] = top / 127;
    }
}

// A vector as a product with m reads it.
template <class F>
void set_vector(Activations& a, int64_t vector, const float* x, const Matrix& m) {
    if (m.planes == 1) return set_row<F>(a, vector, x, m.inner, m.groups);
    a.stride = m.groups;
    const float top = finite_top(x, m.inner), inverse = top > 0 ? 127 * 256 / top : 0;
    uint8_t *high = reinterpret_cast<uint8_t*>(a.data + 2 * vector * m.groups), *low = high + m.groups * 4;
    for (int64_t i = 0; i < m.inner; i++) {
        const int32_t q = static_cast<int32_t>(x[i] * inverse + 32768.5f) - 32768, upper = (q + 128) >> 8;
        high[i] = static_cast<uint8_t>(upper + 128), low[i] = static_cast<uint8_t>(q - 256 * upper + 128);
    }
    memset(high + m.inner, 0, m.groups * 4 - m.inner);
    memset(low + m.inner, 0, m.groups * 4 - m.inner);
    a.scale[2 * vector] = top / 127, a.scale[2 * vector + 1] = top / (127 * 256);
}

