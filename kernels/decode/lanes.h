// What a decoding step needs beside the lanes that all kernels share: bits, prefetching, activations and single bf16 numbers.
#pragma once
#include "../lanes.h"

typedef V Lanes;
typedef I IntLanes;
typedef int32_t LooseIntLanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
constexpr int64_t VECTOR_BYTES = sizeof(V);

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE IntLanes load_bits(const void* p) { return *reinterpret_cast<const LooseIntLanes*>(p); }
INLINE IntLanes splat_bits(uint32_t v) { return static_cast<int32_t>(v) - IntLanes{}; }

// Bring bytes near while something else is computed, so that memory does not rest.
INLINE void fetch(const char* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

INLINE IntLanes not_finite(Lanes v) { return ((IntLanes)v & 0x7f800000) == 0x7f800000; }
INLINE bool any(IntLanes v) {
    int32_t all = 0;
    for (int i = 0; i < LANES; i++) all |= v[i];
    return all != 0;
}

enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU_SQUARED = 4 };

// erf: Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
INLINE Lanes erf_lanes(Lanes x) {
    Lanes size = x < Lanes{} ? -x : x;
    Lanes t = 1.0f / (1.0f + 0.3275911f * size);
    Lanes p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    Lanes y = 1.0f - p * exp(-size * size);
    return x < Lanes{} ? -y : y;
}

INLINE Lanes activate(int kind, Lanes x) {
    switch (kind) {
        case SILU: return x / (1.0f + exp(-x));
        case GELU: return 0.5f * x * (1.0f + erf_lanes(x * 0.70710678f));
        case GELU_TANH: {
            Lanes e = exp(1.5957691216f * (x + 0.044715f * x * x * x));  // tanh(u) = 1 - 2 / (e^2u + 1)
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
INLINE IntLanes bf16_bits(Lanes v) { return __builtin_convertvector(narrow(v), IntLanes); }
INLINE void store_bf16(uint16_t* p, Lanes v) { store(reinterpret_cast<bf16*>(p), v); }
