// Operations on the bytes and the 16-bit halves of lanes. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Multiply 16-bit integers; the low 16 bits of each product.
inline Words multiply_halves(Words a, Words b) {
    typedef uint16_t Parts __attribute__((vector_size(LANES * 4)));
    return (Words)((Parts)a * (Parts)b);
}

// Return byte BYTE of each lane, four times.
template <int BYTE>
inline Words repeat_byte(Words words) {
#if defined(__AVX2__)
    constexpr int ORDER = 0x01010101 * BYTE;  // of the first lane
    const __m128i order = _mm_setr_epi32(ORDER, ORDER + 0x04040404, ORDER + 0x08080808, ORDER + 0x0c0c0c0c);
#if defined(__AVX512BW__)
    return (Words)_mm512_shuffle_epi8((__m512i)words, _mm512_broadcast_i32x4(order));
#else
    return (Words)_mm256_shuffle_epi8((__m256i)words, _mm256_broadcastsi128_si256(order));
#endif
#else
    return (words >> 8 * BYTE & 0xffu) * 0x01010101u;
#endif
}

}  // namespace SMOE_ISA
}  // namespace smoe
