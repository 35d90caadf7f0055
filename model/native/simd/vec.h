// Vectors of float32 as wide as the instruction set's registers. Included by kernel files only.
//
// GCC's vector extension supplies the arithmetic; this file adds what it lacks (fused multiply-add, bfloat16).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace smoe {
namespace SMOE_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// The sets of AVX-512 that `--isa auto` takes on Intel's CPUs only: all of AMD's that have AVX-512 and VNNI have BF16
// too, and no AMX.
#if defined(__AVX512F__) && (!defined(__AVX512BF16__) || defined(__AMX_TILE__))
constexpr bool IS_FOR_INTEL = true;
#else
constexpr bool IS_FOR_INTEL = false;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));  // bfloat16

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec broadcast(float x) { return x - Vec{}; }

// a * b + c, rounded once where the instruction set has fused multiply-add.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// sum = a * b + sum, rounded as fma() does. Where sums fill the registers, GCC moves them to memory and back unless an
// instruction leaves them where they are.
inline void add_product(Vec& sum, Vec a, Vec b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
    sum = fma(a, b, sum);
#endif
}

inline Words bits(Vec v) { return (Words)v; }
inline Vec from_bits(Words w) { return (Vec)w; }

inline Words load_words(const uint32_t* p) {
    Words words;
    std::memcpy(&words, p, sizeof words);
    return words;
}

inline void store_words(uint32_t* p, Words words) { std::memcpy(p, &words, sizeof words); }

// Store the low byte of each word. Written with intrinsics because GCC splits the words one by one in unrolled loops.
inline void store_low_bytes(uint8_t* p, Words words) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)words);
#elif defined(__AVX2__)
    const __m256i low = _mm256_set1_epi32(0x0c080400);
    const __m256i quads = _mm256_shuffle_epi8((__m256i)words, low);  // four bytes of each half, four times
    const auto bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1))[0];
#else
    const Bytes bytes = __builtin_convertvector(words, Bytes);
#endif
    std::memcpy(p, &bytes, LANES);
}

inline Words broadcast_word(uint32_t word) { return word - Words{}; }

inline float float_of(uint32_t word) {
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
}

inline uint32_t word_of(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    return word;
}

inline float widen(uint16_t x) {
    const uint32_t word = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &word, sizeof wide);
    return wide;
}

// Round to bfloat16: to nearest, ties to even; NaN stays NaN.
inline uint16_t narrow(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(word >> 16 | 0x40u);
    return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

// Extend each number with zeros, or with copies of its sign. Written with intrinsics because GCC widens in two halves.
inline Words zero_extended(Halves halves) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
    return __builtin_convertvector(halves, Words);
#endif
}

inline Ints sign_extended(Halves halves) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepi16_epi32((__m256i)halves);
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi16_epi32((__m128i)halves);
#else
    return (Ints)(__builtin_convertvector(halves, Words) << 16) >> 16;
#endif
}

inline Vec load(const uint16_t* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return from_bits(zero_extended(h) << 16);
}

inline void store(uint16_t* p, Vec v) {
    const Words word = bits(v);
    const Words rounded = (word + 0x7fffu + (word >> 16 & 1u)) >> 16;
    const Words is_nan = (Words)((word & 0x7fffffffu) > 0x7f800000u);
    const Words chosen = (is_nan & (word >> 16 | 0x40u)) | (~is_nan & rounded);
    const Halves h = __builtin_convertvector(chosen, Halves);
    std::memcpy(p, &h, sizeof h);
}

inline float load_one(const float* p) { return *p; }
inline float load_one(const uint16_t* p) { return widen(*p); }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(uint16_t* p, float x) { *p = narrow(x); }

// a > b ? a : b in each lane, so b where one of them is NaN.
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// a < b ? a : b in each lane, so b where one of them is NaN.
inline Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// Combine the lanes into one by repeated halving: lane i of the lower half with lane i of the upper half. Without
// shuffles GCC would keep v in memory from its first addition on.
template <class Combine>
inline float halved(Vec v, Combine&& combine) {
#if defined(__AVX512F__)
    const auto eight = combine(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#elif defined(__AVX2__)
    const Vec eight = v;
#endif
#if defined(__AVX2__)
    const auto four =
        combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
    const Vec four = v;
#endif
    return combine(combine(four[0], four[2]), combine(four[1], four[3]));
}

inline float sum(Vec v) {
    return halved(v, [](auto a, auto b) { return a + b; });
}

inline float largest(Vec v) {
    return halved(v, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace SMOE_ISA
}  // namespace smoe
