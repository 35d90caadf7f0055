// float16 numbers as float32 vectors. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Load LANES float16 numbers; exact, subnormal numbers, infinities and NaN too.
inline Vec load_float16(const uint16_t* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps((__m128i)halves);
#else
    // With the exponent bits in place a number is 2^112 times too small; products by powers of two are exact.
    const Words words = __builtin_convertvector(halves, Words);
    const Vec finite = from_bits((words & 0x7fffu) << 13) * 0x1p112f;
    const Words is_special = (Words)((words & 0x7c00u) == 0x7c00u);
    return from_bits(bits(finite) | (words & 0x8000u) << 16 | (is_special & 0x7f800000u));
#endif
}

}  // namespace SMOE_ISA
}  // namespace smoe
