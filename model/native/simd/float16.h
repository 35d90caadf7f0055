// float16 numbers as float32 vectors. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// A float16 number in memory; a plain uint16_t is bfloat16.
struct Float16 {
    uint16_t bits;
};

// Load LANES float16 numbers; exact, subnormal numbers, infinities and NaN too.
inline Vec load_float16(const uint16_t* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps((__m128i)halves);
#elif defined(__aarch64__)
    return (Vec)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)halves));
#else
    // With the exponent bits in place a number is 2^112 times too small; products by powers of two are exact.
    const Words words = __builtin_convertvector(halves, Words);
    const Vec finite = from_bits((words & 0x7fffu) << 13) * 0x1p112f;
    const Words is_special = (Words)((words & 0x7c00u) == 0x7c00u);
    return from_bits(bits(finite) | (words & 0x8000u) << 16 | (is_special & 0x7f800000u));
#endif
}

inline Vec load(const Float16* p) { return load_float16(&p->bits); }

// Round to float16: to nearest, ties to even, subnormal numbers too. Numbers from 65,520 on become infinite; NaN stays
// NaN.
inline void store(Float16* p, Vec v) {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    const __m128i halves = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
#else
    const Words magnitude = bits(v) & 0x7fffffffu;
    const Words normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Adding 1/2 rounds a magnitude below 2^-14 to multiples of 2^-24, which are float16's subnormal numbers.
    const Words subnormal = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const Words is_subnormal = (Words)(magnitude < 0x38800000u), is_large = (Words)(magnitude >= 0x477ff000u);
    const Words is_nan = (Words)(magnitude > 0x7f800000u);
    const Words finite = (is_subnormal & subnormal) | (~is_subnormal & normal);
    const Words rounded = (is_large & (0x7c00u | (is_nan & 0x200u))) | (~is_large & finite);
    const Halves halves = __builtin_convertvector(rounded | (bits(v) >> 16 & 0x8000u), Halves);
#endif
    std::memcpy(p, &halves, sizeof halves);
}

}  // namespace SMOE_ISA
}  // namespace smoe
