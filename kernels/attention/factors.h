// Factors of matrix products in tiles of as many rows as a vector has lanes, each a vector long (16 of 64 bytes with AVX-512, 8 of 32 with
// AVX), and three ways to multiply them: bfloat16 by AMX or by vectors of pairs (AVX512-BF16), and float by vectors.
//
//   left factor   [rows x depth]      a tile holds LANES rows of DEPTH elements
//   right factor  [depth x columns]   a tile row holds the PAIR elements that lie one below the other, of LANES columns
//   product       [rows x columns]    tiles of LANES x LANES floats
//
// A tile whose 32-bit words are transposed turns from a left factor of X into a right factor of X^T, and the other way round.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "../lanes.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int64_t WORDS = LANES * LANES;  // of a tile

// Loop bodies compiled once, not into each of their callers.
#define APART static __attribute__((noinline))

// In place too.
APART void transpose(const float* from, float* to) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + 16 * i);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
            a[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        __m512 even = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88), even_below = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd), odd_below = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
        _mm512_storeu_ps(to + 16 * i, _mm512_shuffle_f32x4(even, even_below, 0x88));
        _mm512_storeu_ps(to + 16 * (4 + i), _mm512_shuffle_f32x4(odd, odd_below, 0x88));
        _mm512_storeu_ps(to + 16 * (8 + i), _mm512_shuffle_f32x4(even, even_below, 0xdd));
        _mm512_storeu_ps(to + 16 * (12 + i), _mm512_shuffle_f32x4(odd, odd_below, 0xdd));
    }
#elif defined(__AVX__)
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from + 8 * i);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + 8 * i, _mm256_permute2f128_ps(a[i], a[4 + i], 0x20));
        _mm256_storeu_ps(to + 8 * (4 + i), _mm256_permute2f128_ps(a[i], a[4 + i], 0x31));
    }
#else
    float copy[WORDS];
    memcpy(copy, from, sizeof copy);
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) to[LANES * j + i] = copy[LANES * i + j];
#endif
}

// Tiles of a factor or product: where the first lies, and tiles from one to the next over rows (or columns) and along the other axis.
template <class T>
struct Tiles {
    T* data;
    int64_t over, along;
    static constexpr int64_t SIZE = WORDS * 4 / sizeof(T);
    T* at(int64_t i, int64_t j) const { return data + (i * over + j * along) * SIZE; }
    Tiles from(int64_t i, int64_t j) const { return {at(i, j), over, along}; }
    float* words(int64_t i, int64_t j) const { return reinterpret_cast<float*>(at(i, j)); }
};

// float, by vectors: of a column of tiles 16 sums at a time where there are 32 registers, of one or two columns 4 rows at a time elsewhere.
struct Exact {
    typedef float T;
    static constexpr int64_t PAIR = 1, DEPTH = LANES;
    static void begin() {}
    static void end() {}
    // x[0 .. PAIR) as one row of a left factor
    INLINE void put_left(T* row, const V* x) { store(row, x[0]); }
    // x[0 .. PAIR), of rows one below the other, as one row of a right factor
    INLINE void put_right(T* row, const V* x) { store(row, x[0]); }
    // LANES columns from two tiles that hold DEPTH rows as a left factor does -> a tile of a right factor
    INLINE void pair(const T* const* tiles, int64_t, T* to) { memcpy(to, tiles[0], 4 * WORDS); }

    template <bool ADD, int ROWS, int COLUMNS>
    static void multiply(const Tiles<float>& product, const Tiles<T>& left, const Tiles<T>& right, int64_t depth) {
        constexpr int AT_ONCE = LANES == 16 ? 16 : 4, BESIDE = LANES == 16 ? 1 : COLUMNS;
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j += BESIDE)
                for (int row = 0; row < LANES; row += AT_ONCE)
                    multiply_rows<ADD, AT_ONCE, BESIDE>(row, product.from(i, j), left.from(i, 0), right.from(j, 0), depth);
    }
    template <bool ADD, int AT_ONCE, int BESIDE>
    APART void multiply_rows(int first, Tiles<float> product, Tiles<T> left, Tiles<T> right, int64_t depth) {
        V sums[BESIDE][AT_ONCE];
        for (int j = 0; j < BESIDE; j++)
#pragma GCC unroll 16
            for (int row = 0; row < AT_ONCE; row++) sums[j][row] = ADD ? load(product.at(0, j) + LANES * (first + row)) : V{};
        for (int64_t d = 0; d < depth; d++) {
            const float *a = left.at(0, d) + LANES * first, *b[BESIDE];
            for (int j = 0; j < BESIDE; j++) b[j] = right.at(j, d);
            for (int k = 0; k < LANES; k++)
#pragma GCC unroll 2
                for (int j = 0; j < BESIDE; j++) {
                    V below = load(b[j] + LANES * k);
#pragma GCC unroll 16
                    for (int row = 0; row < AT_ONCE; row++) sums[j][row] += a[LANES * row + k] * below;
                }
        }
        for (int j = 0; j < BESIDE; j++)
#pragma GCC unroll 16
            for (int row = 0; row < AT_ONCE; row++) store(product.at(0, j) + LANES * (first + row), sums[j][row]);
    }
};

#if defined(__AVX512BF16__)
// How factors of bfloat16 are laid: two of the depth side by side.
struct Pairs {
    typedef bf16 T;
    static constexpr int64_t PAIR = 2, DEPTH = 32;
    INLINE void put_left(T* row, const V* x) {
        _mm512_storeu_si512(row, (__m512i)_mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]));
    }
    INLINE void put_right(T* row, const V* x) { _mm512_storeu_si512(row, woven((__m512i)_mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]))); }
    // half: 0 or 1, which 16 of the tiles' 32 columns
    INLINE void pair(const T* const* tiles, int64_t half, T* to) {
        for (int row = 0; row < 16; row++) {
            const T* from = tiles[row / 8] + 64 * (row % 8) + 16 * half;
            __m256i upper, lower;
            memcpy(&upper, from, 32);
            memcpy(&lower, from + 32, 32);
            _mm512_storeu_si512(to + 32 * row, woven(_mm512_inserti64x4(_mm512_castsi256_si512(upper), lower, 1)));
        }
    }
    // 0 16 1 17 2 18 ...
    INLINE __m512i woven(__m512i x) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                                               3, 18, 2, 17, 1, 16, 0);
        return _mm512_permutexvar_epi16(order, x);
    }
};

// bfloat16, by vectors of pairs.
struct Paired : Pairs {
    static void begin() {}
    static void end() {}
    template <bool ADD, int ROWS, int COLUMNS>
    static void multiply(const Tiles<float>& product, const Tiles<T>& left, const Tiles<T>& right, int64_t depth) {
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j++) multiply_tile<ADD>(product.at(i, j), left.from(i, 0), right.from(j, 0), depth);
    }
    template <bool ADD>
    APART void multiply_tile(float* to, Tiles<T> left, Tiles<T> right, int64_t depth) {
        __m512 sums[16];
#pragma GCC unroll 16
        for (int row = 0; row < 16; row++) sums[row] = ADD ? _mm512_loadu_ps(to + 16 * row) : _mm512_setzero_ps();
        for (int64_t d = 0; d < depth; d++) {
            const int32_t* a = reinterpret_cast<const int32_t*>(left.at(0, d));
            const T* b = right.at(0, d);
            for (int k = 0; k < 16; k++) {
                const __m512bh below = (__m512bh)_mm512_loadu_si512(b + 32 * k);
#pragma GCC unroll 16
                for (int row = 0; row < 16; row++)
                    sums[row] = _mm512_dpbf16_ps(sums[row], (__m512bh)_mm512_set1_epi32(a[16 * row + k]), below);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < 16; row++) _mm512_storeu_ps(to + 16 * row, sums[row]);
    }
};
#endif

#if defined(HAS_TILES)
// bfloat16, by AMX.
struct Amx : Pairs {
    // Linux lends the tile registers to a process that asks.
    static bool granted() {
        static const bool answer = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
        return answer;
    }
    static void begin() {
        alignas(64) static const struct {
            uint8_t palette = 1, first_row = 0, zero[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    static void end() { _tile_release(); }

    template <bool ADD, int ROWS, int COLUMNS>
    static void multiply(const Tiles<float>& product, const Tiles<T>& left, const Tiles<T>& right, int64_t depth) {
        constexpr bool R = ROWS == 2, C = COLUMNS == 2;
        if constexpr (ADD) {
            _tile_loadd(0, product.at(0, 0), 64);
            if constexpr (C) _tile_loadd(1, product.at(0, 1), 64);
            if constexpr (R) _tile_loadd(2, product.at(1, 0), 64);
            if constexpr (R && C) _tile_loadd(3, product.at(1, 1), 64);
        } else {
            _tile_zero(0);
            if constexpr (C) _tile_zero(1);
            if constexpr (R) _tile_zero(2);
            if constexpr (R && C) _tile_zero(3);
        }
        for (int64_t d = 0; d < depth; d++) {
            _tile_loadd(4, left.at(0, d), 64);
            _tile_loadd(6, right.at(0, d), 64);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (C) {
                _tile_loadd(7, right.at(1, d), 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if constexpr (R) {
                _tile_loadd(5, left.at(1, d), 64);
                _tile_dpbf16ps(2, 5, 6);
            }
            if constexpr (R && C) _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, product.at(0, 0), 64);
        if constexpr (C) _tile_stored(1, product.at(0, 1), 64);
        if constexpr (R) _tile_stored(2, product.at(1, 0), 64);
        if constexpr (R && C) _tile_stored(3, product.at(1, 1), 64);
    }
};
#endif

// product [rows x columns tiles] = or += left * right over a depth, all counted in tiles. The factors' `over` goes from one row of the left
// (column of the right) to the next, `along` the depth; the product's from row to row and from column to column.
template <class E, bool ADD>
APART void multiply(Tiles<float> product, Tiles<typename E::T> left, Tiles<typename E::T> right, int64_t rows, int64_t columns,
                    int64_t depth) {
    for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = 0; j < columns; j += 2) {
            auto run = i + 1 < rows ? (j + 1 < columns ? E::template multiply<ADD, 2, 2> : E::template multiply<ADD, 2, 1>)
                                    : (j + 1 < columns ? E::template multiply<ADD, 1, 2> : E::template multiply<ADD, 1, 1>);
            run(product.from(i, j), left.from(i, 0), right.from(j, 0), depth);
        }
}

// Memory of a thread: the same pieces in the same order at every use, kept from use to use and grown where they are too small.
class Room {
   public:
    ~Room() {
        for (const Piece& piece : pieces) free(piece.data);
    }
    void reset() { next = 0; }
    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(piece((count * sizeof(T) + 63) / 64 * 64));
    }
    template <class T>
    Tiles<T> tiles(int64_t over, int64_t along) {
        return {take<T>(over * along * Tiles<T>::SIZE), along, 1};
    }

   private:
    struct Piece {
        void* data;
        int64_t bytes;
    };
    __attribute__((noinline)) void* piece(int64_t bytes) {
        if (next == pieces.size()) pieces.push_back({nullptr, 0});
        Piece& found = pieces[next++];
        if (bytes > found.bytes) {
            free(found.data);
            found = {aligned_alloc(64, bytes), bytes};
        }
        return found.data;
    }
    std::vector<Piece> pieces;
    size_t next = 0;
};
