// As many floats at once as a register of the machine holds, from float or bfloat16 memory: sixteen with AVX-512, eight with AVX, else four,
// as compilers keep wider vectors in memory. Intrinsics stand behind #ifdef. Every loop fixes the order of its sums, so the same number of
// threads gives the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE static inline __attribute__((always_inline))
#define ROWS_IN_PARALLEL(threads) _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

INLINE V splat(float x) { return V{} + x; }

INLINE V load(const float* p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE V load(const bf16* p) {
    H half;
    memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (V)(__builtin_convertvector(half, U) << 16);
#endif
}
INLINE void store(float* p, V x) { memcpy(p, &x, sizeof x); }
INLINE H narrow(V x) {
#if defined(__AVX512BF16__)
    return (H)_mm512_cvtneps_pbh((__m512)x);
#else
    U bits = (U)x;
    U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    U quiet = (bits >> 16) | 0x40u;
    return __builtin_convertvector((U)(x != x ? (I)quiet : (I)rounded), H);
#endif
}
INLINE void store(bf16* p, V x) {
    H half = narrow(x);
    memcpy(p, &half, sizeof half);
}

// The same for the last `count` (below LANES) elements of a row; lanes beyond them are `rest`.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define MASKED_LANES 1
INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
INLINE V load_some(const float* p, int64_t count, float rest = 0) {
    return (V)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first_lanes(count), p);
}
INLINE V load_some(const bf16* p, int64_t count, float rest = 0) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
    return (V)_mm512_mask_mov_ps(_mm512_set1_ps(rest), first_lanes(count), (__m512)_mm512_slli_epi32(bits, 16));
}
INLINE void store_some(float* p, V x, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)x); }
INLINE void store_some(bf16* p, V x, int64_t count) { _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)narrow(x)); }
#else
template <class T>
INLINE V load_some(const T* p, int64_t count, float rest = 0) {
    T part[LANES];
    memcpy(part, p, count * sizeof(T));
    V x = load(part);
    for (int64_t i = count; i < LANES; i++) x[i] = rest;
    return x;
}
template <class T>
INLINE void store_some(T* p, V x, int64_t count) {
    T part[LANES];
    store(part, x);
    memcpy(p, part, count * sizeof(T));
}
#endif

// A row of n in steps of LANES: each(i, all) for the full steps, each(i, some) for what is left; at and put take the tag.
struct All {};
struct Some {
    int64_t count;
};
template <class F>
INLINE void lanes(int64_t n, F each) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) each(i, All{});
    if (i < n) each(i, Some{n - i});
}
template <class T>
INLINE V at(const T* p, All, float = 0) {
    return load(p);
}
template <class T>
INLINE V at(const T* p, Some some, float rest = 0) {
    return load_some(p, some.count, rest);
}
// x with `rest` in the lanes beyond a row's end.
INLINE V within(V x, All, float) { return x; }
INLINE V within(V x, Some some, float rest) {
#if defined(MASKED_LANES)
    return (V)_mm512_mask_mov_ps(_mm512_set1_ps(rest), first_lanes(some.count), (__m512)x);
#endif
    float part[LANES];
    memcpy(part, &x, sizeof part);
    return load_some(part, some.count, rest);
}
template <class T>
INLINE void put(T* p, V x, All) {
    store(p, x);
}
template <class T>
INLINE void put(T* p, V x, Some some) {
    store_some(p, x, some.count);
}

// The lanes added in a fixed order: halves, quarters, ...
INLINE float sum(V x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float part[LANES];
    memcpy(part, &x, sizeof part);
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
#endif
}
INLINE I numbered() {  // 0 1 2 ...
    I x;
    for (int32_t i = 0; i < LANES; i++) x[i] = i;
    return x;
}
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE float largest(V x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float part[LANES];
    memcpy(part, &x, sizeof part);
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
    return part[0];
#endif
}

// e^x to 2 units in the last place; 0 below -104, infinity above 88.7, NaN for NaN.
INLINE V exp(V x) {
#if defined(__AVX512F__)
    // the bound stands first: where x is NaN, the second operand is taken
    V y = (V)_mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), (__m512)x));
    V n = (V)_mm512_roundscale_ps((__m512)(y * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    V y = x < -104.0f ? splat(-104.0f) : (x > 89.0f ? splat(89.0f) : x);
    V turns = y * 1.44269504f;
    V n = __builtin_convertvector(__builtin_convertvector(turns + (turns < 0.0f ? splat(-0.5f) : splat(0.5f)), I), V);
#endif
    V r = y - n * 0.693359375f + n * 2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
    return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors: n goes from -150 to 128, which one float exponent does not
    I half = __builtin_convertvector(n, I) >> 1;
    I rest = __builtin_convertvector(n, I) - half;
    p = p * (V)((half + 127) << 23) * (V)((rest + 127) << 23);
    return x != x ? x : p;
#endif
}

// 1 / x to 2 units in the last place, for normal x.
INLINE V reciprocal(V x) {
#if defined(__AVX512F__)
    V y = (V)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
#else
    return 1.0f / x;
#endif
}
INLINE V sigmoid(V x) {
    V s = reciprocal(1.0f + exp(x < -87.0f ? splat(87.0f) : -x));
    return x < -87.0f ? V{} : s;
}

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

// 2^x, which is 1 for 0 exactly: the error near 0 goes with x, so that slow decays do not drift over long rows.
INLINE V exp2(V x) {
#if defined(__AVX512F__)
    V n = (V)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    V r = x - n;
    V p = splat(1.5353360600e-4f);
    p = p * r + 1.3398874861e-3f;
    p = p * r + 9.6184373665e-3f;
    p = p * r + 5.5503324697e-2f;
    p = p * r + 2.4022647913e-1f;
    p = p * r + 6.9314720286e-1f;
    p = p * r + 1.0f;
    return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return exp(x * LN2);
#endif
}

// log(1 + e^x) with all digits of small results: log(1 + u) = 2 artanh(u / (2 + u)), whose series ends early for u within 0 and 1.
INLINE V softplus(V x) {
    V u = exp(x < 0.0f ? x : -x);
    V w = u * reciprocal(2.0f + u), square = w * w;
    V p = splat(1.0f / 15);
    for (float odd : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f, 1.0f}) p = p * square + 1.0f / odd;
    return (x > 0.0f ? x : V{}) + 2.0f * w * p;
}
