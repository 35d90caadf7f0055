// Reading int4 weights (gemm/quant_formats.h). Included by kernel files only.
#pragma once

#include "gemm/gemm_int8.h"
#include "simd/lane_parts.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int INT4_UNITS = INT4_BLOCK / 4;
constexpr int WORDS_OF_GROUP = GROUP / 8;  // of an output

// The words of the first (HALF = 0) or second group of a block: [WORDS_OF_GROUP][PANEL].
template <int HALF>
inline const uint32_t* words_of_group(const uint32_t* block) {
    return block + PANEL / 2 + HALF * WORDS_OF_GROUP * PANEL;
}

// Load s + 16 z of both groups of a block, in the low two bytes of each lane.
inline Words load_factors(const uint32_t* block, int column) {
    Halves halves;
    std::memcpy(&halves, reinterpret_cast<const uint16_t*>(block) + column, sizeof halves);
    return zero_extended(halves);
}

// Make int8's bytes of half bytes q: s (q - z) + 128 = s q + (128 - s z), of which no byte reaches 256.
struct ByteFactors {
    Words s, at_zero;  // s in both halves of a lane; 128 - s z, the byte of q = 0, in its four bytes

    // The unit in the low half bytes of the words, in int8.
    [[gnu::always_inline]] inline Words unit(Words words) const {
        return multiply_halves(words & 0x0f0f0f0fu, s) + at_zero;
    }
};

template <int HALF>
[[gnu::always_inline]] inline ByteFactors byte_factors(const uint32_t* block, int column) {
    const Words bytes = repeat_byte<HALF>(load_factors(block, column)), s = bytes & 0x000f000fu;
    return {s, 0x80808080u - multiply_halves(s, bytes >> 4 & 0x0f0f0f0fu)};
}

// Prefetch WORDS words that the loop reads some kilobytes later; IN_PARTS: a line from `ahead` on.
template <bool IN_PARTS, int WORDS, int VECTORS>
[[gnu::always_inline]] inline void prefetch(const uint32_t* w, int column, const uint32_t*& ahead) {
    if constexpr (!IN_PARTS) return prefetch_words<WORDS, VECTORS>(w, column);
    prefetch_in_place(ahead);
    ahead += LINE_WORDS;
}

// Unpack a group of a block to int8's units [GROUP / 4][PANEL], and prefetch the words some kilobytes later.
template <int HALF>
inline void unpack_group(const uint32_t* block, uint32_t* units) {
    constexpr int VECTORS = PANEL / LANES;
    ByteFactors factors[VECTORS];
    for (int part = 0; part < VECTORS; ++part) factors[part] = byte_factors<HALF>(block, part * LANES);
    const uint32_t* w = words_of_group<HALF>(block);
    for (int pair = 0; pair < WORDS_OF_GROUP; ++pair, w += PANEL, units += 2 * PANEL) {
        prefetch_words<PANEL, VECTORS>(w, 0);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) {
            const Words word = load_words(w + part * LANES);
            store_words(units + part * LANES, factors[part].unit(word));
            store_words(units + PANEL + part * LANES, factors[part].unit(word >> 4));
        }
    }
}

// Unpack a block to units [INT4_UNITS][PANEL].
inline void unpack_block(const uint32_t* block, uint32_t* units) {
    prefetch_words<PANEL / 2, PANEL / LANES>(block, 0);
    unpack_group<0>(block, units);
    unpack_group<1>(block, units + INT4_UNITS / 2 * PANEL);
}

}  // namespace SMOE_ISA
}  // namespace smoe
