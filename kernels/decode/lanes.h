// Sixteen lanes of float and int, the conversions and the few functions that a decoding step needs.
// GCC and clang lower the vector types to whatever the machine has; intrinsics stand behind #ifdef.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE static inline __attribute__((always_inline))

constexpr int LANES = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef float LooseLanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t LooseIntLanes __attribute__((vector_size(64), aligned(4), may_alias));

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE Lanes load(const float* p) { return *reinterpret_cast<const LooseLanes*>(p); }
INLINE IntLanes load_bits(const void* p) { return *reinterpret_cast<const LooseIntLanes*>(p); }
INLINE void store(float* p, Lanes v) { *reinterpret_cast<LooseLanes*>(p) = v; }
INLINE Lanes splat(float v) { return v - Lanes{}; }
INLINE IntLanes splat_bits(uint32_t v) { return static_cast<int32_t>(v) - IntLanes{}; }
INLINE Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

// Bring bytes near while something else is computed, so that memory does not rest.
INLINE void fetch(const char* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

INLINE float sum(Lanes v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
INLINE float largest(Lanes v) {
    float top = v[0];
    for (int i = 1; i < LANES; i++) top = v[i] > top ? v[i] : top;
    return top;
}

// By bits, since -fassociative-math may fold arithmetic that would carry a NaN along.
INLINE IntLanes not_finite(Lanes v) { return ((IntLanes)v & 0x7f800000) == 0x7f800000; }
INLINE bool any(IntLanes v) {
    int32_t all = 0;
    for (int i = 0; i < LANES; i++) all |= v[i];
    return all != 0;
}

// e^x within 2 units in the last place; exactly 0 below -87, where float leaves its normal range.
INLINE Lanes exp_lanes(Lanes x) {
    const Lanes low = splat(-87.0f), high = splat(88.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds
    Lanes y = x < low ? low : (x > high ? high : x);
    Lanes n = (y * 1.44269504f + magic);
    IntLanes power = (IntLanes)n << 23;
    n = __builtin_convertvector((IntLanes)n - (IntLanes)magic, Lanes);
    Lanes r = y - n * 0.693359375f + n * 2.12194440e-4f;
    Lanes p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Lanes result = (Lanes)((IntLanes)p + power);
    return x < low ? Lanes{} : (x != x ? x : result);
}

enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU_SQUARED = 4 };

// erf: Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
INLINE Lanes erf_lanes(Lanes x) {
    Lanes size = x < Lanes{} ? -x : x;
    Lanes t = 1.0f / (1.0f + 0.3275911f * size);
    Lanes p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    Lanes y = 1.0f - p * exp_lanes(-size * size);
    return x < Lanes{} ? -y : y;
}

INLINE Lanes activate(int kind, Lanes x) {
    switch (kind) {
        case SILU: return x / (1.0f + exp_lanes(-x));
        case GELU: return 0.5f * x * (1.0f + erf_lanes(x * 0.70710678f));
        case GELU_TANH: {
            Lanes e = exp_lanes(1.5957691216f * (x + 0.044715f * x * x * x));  // tanh(u) = 1 - 2 / (e^2u + 1)
            return x - x / (e + 1.0f);
        }
        case RELU: return x < Lanes{} ? Lanes{} : x;
        default: return x < Lanes{} ? Lanes{} : x * x;
    }
}

INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE float from_bf16(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// bf16 in the low half of each lane.
INLINE IntLanes bf16_bits(Lanes v) {
#if defined(__AVX512BF16__)
    typedef uint16_t Half __attribute__((vector_size(32)));
    return __builtin_convertvector((Half)_mm512_cvtneps_pbh((__m512)v), IntLanes);
#else
    typedef uint32_t Bits __attribute__((vector_size(64)));
    Bits bits = (Bits)v;
    IntLanes rounded = (IntLanes)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return v != v ? splat_bits(0x7fc0) : rounded;
#endif
}

INLINE void store_bf16(uint16_t* p, Lanes v) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &half, 32);
#else
    IntLanes bits = bf16_bits(v);
    for (int i = 0; i < LANES; i++) p[i] = static_cast<uint16_t>(bits[i]);
#endif
}
