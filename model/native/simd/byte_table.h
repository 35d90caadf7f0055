// Look up bytes in a table of 16. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Replace each byte of the words, 0 .. 15, by table[byte].
inline Words look_up(const uint8_t (&table)[16], Words indices) {
#if defined(__AVX2__)
    __m128i entries;
    std::memcpy(&entries, table, sizeof entries);
#if defined(__AVX512BW__)
    return (Words)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), (__m512i)indices);
#else
    return (Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), (__m256i)indices);
#endif
#elif defined(__aarch64__)
    return (Words)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)indices);
#else
    uint8_t bytes[sizeof(Words)];
    std::memcpy(bytes, &indices, sizeof bytes);
    for (uint8_t& byte : bytes) byte = table[byte];
    std::memcpy(&indices, bytes, sizeof bytes);
    return indices;
#endif
}

}  // namespace SMOE_ISA
}  // namespace smoe
