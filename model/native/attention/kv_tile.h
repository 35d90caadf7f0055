// Layout of the KV caches in tiles: KV_TILE positions of one KV head in the order in which attention multiplies them.
// Included by kernel files only.
//
// Slots are cut into tiles; the tiles lie as [num_blocks * block_size / KV_TILE, G]. A tile of keys is [K / 2, KV_TILE]
// pairs of neighbouring dims, a tile of values [KV_TILE / 2, K] pairs of neighbouring positions; the even one of a pair
// comes first. In int8 the float32 scales of the positions, [KV_TILE], follow; numbers and scales are those of
// attention/kv_row.h.
#pragma once

#include <cstring>

#include "attention/attention.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Write count numbers to every second place. Leaves the others alone: another thread may be writing them.
template <class Number>
inline void write_to_pairs(Number* to, const Number* numbers, int64_t count) {
    int64_t k = 0;
#if defined(__AVX512BW__)
    for (; k + 2 * LANES <= count; k += 2 * LANES) {
        if constexpr (sizeof(Number) == 1) {
            const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + k));
            _mm512_mask_storeu_epi8(to + 2 * k, 0x5555555555555555u, _mm512_cvtepu8_epi16(loaded));
        } else {
            for (int64_t half = k; half < k + 2 * LANES; half += LANES) {
                const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + half));
                _mm512_mask_storeu_epi16(to + 2 * half, 0x55555555u, _mm512_cvtepu16_epi32(loaded));
            }
        }
    }
#endif
    for (; k < count; ++k) to[2 * k] = numbers[k];
}

// Write one row of attention/kv_row.h to its place in a tile, as keys or as values.
template <class Number>
void write_to_tile(char* tile, int64_t place, const char* row, int64_t head_dim, bool is_keys) {
    auto* to = reinterpret_cast<Number*>(tile);
    const auto* numbers = reinterpret_cast<const Number*>(row);
    if (is_keys)
        for (int64_t k = 0; k < head_dim; k += 2)
            std::memcpy(to + k * KV_TILE + 2 * place, numbers + k, 2 * sizeof(Number));
    else
        write_to_pairs(to + place / 2 * 2 * head_dim + place % 2, numbers, head_dim);
    if constexpr (sizeof(Number) == 1)
        std::memcpy(tile + KV_TILE * head_dim + place * sizeof(float), row + head_dim, sizeof(float));
}

// The first and the second numbers of LANES pairs.
struct PairVecs {
    Vec first, second;
};

inline PairVecs load_pairs(const uint16_t* pairs) {
    Words words;
    std::memcpy(&words, pairs, sizeof words);
    return {from_bits(words << 16), from_bits(words & 0xffff0000u)};
}

inline PairVecs load_pairs(const int8_t* pairs) {
    Halves halves;
    std::memcpy(&halves, pairs, sizeof halves);
    const Ints words = sign_extended(halves);
    return {__builtin_convertvector((Ints)((Words)words << 24) >> 24, Vec), __builtin_convertvector(words >> 8, Vec)};
}

// Load the first n pairs and zeros after them; LANES pairs if n >= LANES.
template <class Number>
inline PairVecs load_first_pairs(const Number* pairs, int64_t n) {
    if (n >= LANES) return load_pairs(pairs);
    Number padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * n; ++i) padded[i] = pairs[i];
    return load_pairs(padded);
}

}  // namespace SMOE_ISA
}  // namespace smoe
