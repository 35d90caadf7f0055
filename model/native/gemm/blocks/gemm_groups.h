// Formats of groups of 32, 64 or 128 numbers, for SmallBlocks. Included by kernel files only.
#pragma once

#include "gemm/blocks/gemm_small_blocks.h"

namespace smoe {
namespace SMOE_ISA {

// Numbers of 4 bits: unit i of a group's first half is in the low half bytes of word i, that of the second half in the
// high ones.
template <int FORMAT>
struct GroupsOf4 {
    static constexpr int UNITS = block_layout(FORMAT).numbers / 4, PANEL_WORDS = block_layout(FORMAT).panel_words;
    static constexpr int UNITS_AT = PANEL_WORDS - UNITS / 2 * PANEL, HEADER_WORDS = UNITS_AT;
    static constexpr int MIN_UNPACKED_ROWS = UNITS > 8 ? MANY_TO_UNPACK : NEVER;
    static constexpr bool SHARES_WORDS = true, IS_UNPACKED = false, ADDS_FIRST = false;

    using Sum = ByteSum<15>;

    static inline Words total(Words total, Words part) { return add_unscaled(total, part); }

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return load_words(block + UNITS_AT + i * PANEL) >> 4 * HALF & 0x0f0f0f0fu;
    }
};

// Numbers of 8 bits. Where Int8Unit is not biased, sums are those of (q - 128) p.
template <int FORMAT>
struct GroupsOf8 {
    static constexpr int UNITS = block_layout(FORMAT).numbers / 4, PANEL_WORDS = block_layout(FORMAT).panel_words;
    static constexpr int UNITS_AT = PANEL_WORDS - UNITS * PANEL, HEADER_WORDS = UNITS_AT;
    static constexpr int MIN_UNPACKED_ROWS = NEVER;
    static constexpr bool SHARES_WORDS = false, IS_UNPACKED = false, ADDS_FIRST = false;

    using Sum = BiasedByteSum;

    static inline Words total(Words total, Words part) { return total + part; }

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return Int8Unit::prepare(load_words(block + UNITS_AT + (UNITS / 2 * HALF + i) * PANEL));
    }
};

// Load one number of type Number per lane.
template <class Number>
inline Words load_numbers(const uint32_t* words, int column) {
    typedef Number Numbers __attribute__((vector_size(LANES * sizeof(Number))));
    Numbers numbers;
    std::memcpy(&numbers, reinterpret_cast<const Number*>(words) + column, sizeof numbers);
    return __builtin_convertvector(numbers, Words);
}

// A zero point per group and output: y += s d (I - z P). z is the low half of a pair, minus P the low half of `first`:
// both fit into 16 bits.
template <class Groups, class Zero, int BASE>
struct WithZeros : Groups {
    struct Columns {
        Vec d;
        Words z;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        const Words z = load_numbers<Zero>(block + PANEL, column);
        return {from_bits(load_words(block + column)), (z - BASE) & 0xffffu};
    }

    static inline Vec value(Words sum, uint32_t first, const Columns& columns) {
        return to_float(add_pairs(sum, columns.z, broadcast_word(first))) * columns.d;
    }
};

// A minimum per group and output: y += s (d I + m P). `first` is P.
template <class Groups, int BASE>
struct WithMinima : Groups {
    struct Columns {
        Vec d, m;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        return {from_bits(load_words(block + column)), from_bits(load_words(block + PANEL + column))};
    }

    static inline Vec value(Words sum, uint32_t first, const Columns& columns) {
        const auto total = static_cast<int32_t>(first);
        return to_float(sum + broadcast_word(BASE * first)) * columns.d + static_cast<float>(total) * columns.m;
    }
};

constexpr int BASE_OF_8 = Int8Unit::IS_BIASED ? 0 : 128;  // subtracted from the numbers of GroupsOf8

template <int FORMAT>
using Int4Group = WithZeros<GroupsOf4<FORMAT>, uint8_t, 0>;
template <int FORMAT>
using Int8Group = WithZeros<GroupsOf8<FORMAT>, uint16_t, BASE_OF_8>;
template <int FORMAT>
using Affine4Group = WithMinima<GroupsOf4<FORMAT>, 0>;
template <int FORMAT>
using Affine8Group = WithMinima<GroupsOf8<FORMAT>, BASE_OF_8>;

}  // namespace SMOE_ISA
}  // namespace smoe
