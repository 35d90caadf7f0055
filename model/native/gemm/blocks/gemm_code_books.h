// Product blocks with GGUF's code books. Included by kernel files only.
//
// A block is unpacked to bytes in the first-level cache, whatever the number of rows: codes are looked up one by one,
// signs are applied to a vector of units at a time. The copy is multiplied as a block of 256 numbers
// (gemm/blocks/gemm_superblocks.h).
#pragma once

#include "gemm/block_formats.h"
#include "gemm/blocks/code_books.h"
#include "gemm/blocks/gemm_superblocks.h"
#include "gemm/blocks/unpacked_blocks.h"

namespace smoe {
namespace SMOE_ISA {

// Where the further bits of a group's codes are.
enum class HighBits { NONE, PLANE, BYTES };

// Layout of a block in a panel, and of the block that is multiplied: [d; 2 n + 1 in pairs; factors; units].
template <int FORMAT, int GROUP_LEN, int CODE_LEN, HighBits HIGH, class ProductSum>
struct CodeBookFormat : SuperblockFormat<ProductSum> {
    static constexpr int UNITS = GROUP_LEN / 4, PAIRS = 128 / GROUP_LEN;
    static constexpr int PANEL_WORDS = block_layout(FORMAT).panel_words;

    static constexpr int NUMBERS_OF_CODE = CODE_LEN, CODES = 32 / CODE_LEN;  // of 32 numbers
    static constexpr HighBits HIGH_BITS = HIGH;
    // Places of signs in a plane hold other bits: of codes, or the scale.
    static constexpr bool SCALES_IN_PLANES = FORMAT == IQ3_XXS || FORMAT == IQ2_XXS;
    static constexpr bool OMITS_SIGNS = SCALES_IN_PLANES || HIGH == HighBits::PLANE;
    static constexpr int SCALES_AT = PANEL / 2, PLANES_AT = SCALES_AT + (SCALES_IN_PLANES ? 0 : PAIRS * PANEL / 4);
    static constexpr int CODES_AT = PLANES_AT + 8 * PANEL, HIGH_AT = CODES_AT + 8 * CODES * PANEL / 4;

    // Of the block that is multiplied.
    static constexpr int MINS_AT = SCALES_AT, HEADER_WORDS = SCALES_AT + PAIRS * PANEL / 2;
};

typedef int8_t SignedBytes __attribute__((vector_size(LANES * 4)));

// All bits of the bytes of unit `unit` whose sign is minus.
inline Words minus_of(Words plane, int unit) { return (Words)((SignedBytes)(plane << (7 - unit)) < 0); }

// Bytes ZERO + g, or ZERO - g where the sign is minus.
template <uint32_t ZERO>
inline Words signed_from(Words magnitudes, Words minus) {
    const auto numbers = (SignedBytes)(magnitudes ^ minus) - (SignedBytes)minus;
    return (Words)(numbers + (SignedBytes)broadcast_word(0x01010101u * ZERO));
}

struct Iq3SBlock : CodeBookFormat<IQ3_S, 32, 4, HighBits::BYTES, ByteSum<15, IS_FOR_INTEL>> {
    static constexpr int OFFSET = 15, FACTOR = 2;
    static constexpr const auto& BOOK = IQ3_S_BOOK;

    // Minus g is 15 - q.
    static inline Words with_signs(Words units, Words minus) { return units ^ (minus & 0x0f0f0f0fu); }
};

struct Iq3XxsBlock : CodeBookFormat<IQ3_XXS, 32, 4, HighBits::NONE, ByteSum<63>> {
    static constexpr int OFFSET = 32;
    static constexpr float SCALE = 0.5f;
    static constexpr const auto& BOOK = IQ3_XXS_BOOK;

    static inline Words with_signs(Words units, Words minus) { return signed_from<OFFSET>(units, minus); }
};

template <int FORMAT, int GROUP_LEN, HighBits HIGH>
struct Iq2Block : CodeBookFormat<FORMAT, GROUP_LEN, 8, HIGH, ByteSum<64 + 43>> {
    static constexpr int OFFSET = 64;
    static constexpr float SCALE = 0.125f;

    static inline Words with_signs(Words units, Words minus) { return signed_from<OFFSET>(units, minus); }
};

struct Iq2SBlock : Iq2Block<IQ2_S, 16, HighBits::BYTES> {
    static constexpr const auto& BOOK = IQ2_S_BOOK;
};

struct Iq2XsBlock : Iq2Block<IQ2_XS, 16, HighBits::PLANE> {
    static constexpr const auto& BOOK = IQ2_XS_BOOK;
};

struct Iq2XxsBlock : Iq2Block<IQ2_XXS, 32, HighBits::NONE> {
    static constexpr const auto& BOOK = IQ2_XXS_BOOK;
};

// The four bits in the places of omitted signs.
inline uint32_t rest_of(uint32_t plane) {
    uint32_t bits = plane >> 25 & 0x55u;
    bits = (bits | bits >> 1) & 0x33u;
    return (bits | bits >> 2) & 0x0fu;
}

// The plane with the omitted signs: those with which an even number of every eight signs is minus.
inline Words with_all_signs(Words plane) {
    plane &= 0x55ffffffu;
    Words ones = plane ^ plane >> 16;  // of the four signs of each unit, then of two units
    ones ^= ones >> 8;
    ones ^= ones >> 1;
    return plane | (ones & 0x55u) << 25;
}

// Entries of LANES indices: a unit of each, or two.
template <class Index, int... LANE>
[[gnu::always_inline]] inline Words entries_of(const uint32_t* book, const Index* indices,
                                               std::integer_sequence<int, LANE...>) {
    return Words{book[indices[LANE]]...};
}

template <class Index>
[[gnu::always_inline]] inline void load_entries(const uint32_t* book, const Index* indices, Words (&units)[1]) {
    units[0] = entries_of(book, indices, std::make_integer_sequence<int, LANES>());
}

// Eight bytes that are moved as a double, because x86 loads the upper half of a vector of these in one operation.
typedef double EightBytes __attribute__((may_alias));
typedef double Doubles __attribute__((vector_size(LANES * 4)));

template <class Index, int... LANE>
[[gnu::always_inline]] inline Words long_entries_of(const uint64_t* book, const Index* indices,
                                                    std::integer_sequence<int, LANE...>) {
    const auto* entries = reinterpret_cast<const EightBytes*>(book);
    return (Words)Doubles{entries[indices[LANE]]...};
}

template <int FIRST, int... LANE>
[[gnu::always_inline]] inline Words every_second(Words low, Words high, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(low, high, (2 * LANE + FIRST)...);
}

template <class Index>
[[gnu::always_inline]] inline void load_entries(const uint64_t* book, const Index* indices, Words (&units)[2]) {
    constexpr auto LANES_OF_LONG_WORDS = std::make_integer_sequence<int, LANES / 2>();
    const Words low = long_entries_of(book, indices, LANES_OF_LONG_WORDS);
    const Words high = long_entries_of(book, indices + LANES / 2, LANES_OF_LONG_WORDS);
    units[0] = every_second<0>(low, high, std::make_integer_sequence<int, LANES>());
    units[1] = every_second<1>(low, high, std::make_integer_sequence<int, LANES>());
}

// A block of Format as [header; for each group its factors [PANEL], and its units [PANEL]].
template <class Format>
struct UnpackedCodes : UnpackedSuperblock<Format> {
    static constexpr bool PASSES_PREFETCH = false;
    static constexpr int GROUPS_AT = Format::HEADER_WORDS, GROUP_WORDS = (1 + Format::UNITS) * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return load_words(block + GROUPS_AT + (2 * PAIR + HALF) * GROUP_WORDS + (1 + i) * PANEL);
    }

    template <int GROUP>
    static inline Words factors(const uint32_t* block, int column) {
        return load_words(block + GROUPS_AT + GROUP * GROUP_WORDS + column);
    }

    static void unpack(const uint32_t* block, uint32_t* unpacked) {
        std::memcpy(unpacked, block, PANEL / 2 * 4);
        unpack_scales(block, reinterpret_cast<uint16_t*>(unpacked + Format::SCALES_AT));
        store_factors(unpacked, std::make_integer_sequence<int, Format::PAIRS>());
        for (int g = 0; g < 8; ++g) unpack_group(block, g, unpacked + GROUPS_AT + g * 8 / Format::UNITS * GROUP_WORDS);
    }

  private:
    static constexpr int CODES = Format::CODES;
    static constexpr int VECTORS = PANEL / LANES;  // of columns
    static constexpr int LINES = Format::PANEL_WORDS / LINE_WORDS;

    // Scales 2 n + 1 of a pair of groups, as two bytes per output.
    static void unpack_scales(const uint32_t* block, uint16_t* pairs) {
        for (int pair = 0; pair < Format::PAIRS; ++pair, pairs += PANEL)
            for (int n = 0; n < PANEL; ++n) pairs[n] = static_cast<uint16_t>(half_bytes(block, pair, n) * 2 + 0x0101u);
    }

    // The n of a pair of groups, one in each byte.
    static inline uint32_t half_bytes(const uint32_t* block, int pair, int n) {
        if constexpr (Format::SCALES_IN_PLANES) {
            const uint32_t* planes = block + Format::PLANES_AT + 2 * pair * PANEL + n;
            return rest_of(planes[0]) | rest_of(planes[PANEL]) << 8;
        } else {
            const uint32_t both = reinterpret_cast<const uint8_t*>(block + Format::SCALES_AT)[pair * PANEL + n];
            return (both | both << 4) & 0x0f0fu;
        }
    }

    template <int... PAIR>
    static void store_factors(uint32_t* unpacked, std::integer_sequence<int, PAIR...>) {
        for (int column = 0; column < PANEL; column += LANES)
            ((store_factor<PAIR, 0>(unpacked, column), store_factor<PAIR, 1>(unpacked, column)), ...);
    }

    template <int PAIR, int HALF>
    static inline void store_factor(uint32_t* unpacked, int column) {
        store_words(unpacked + GROUPS_AT + (2 * PAIR + HALF) * GROUP_WORDS + column,
                    load_factor<Format, HALF>(scales_of<Format, PAIR>(unpacked, column)));
    }

    // Write 32 numbers of each output: the units of a group, or of two.
    static void unpack_group(const uint32_t* block, int group, uint32_t* groups) {
        const auto* codes = reinterpret_cast<const uint8_t*>(block + Format::CODES_AT) + group * CODES * PANEL;
        if constexpr (Format::HIGH_BITS == HighBits::NONE) {
            look_up_group(block, group, codes, groups);
        } else {
            constexpr int STEP = 8 / CODES;  // bits from those of a code to those of the next
            constexpr uint16_t HIGH = Format::HIGH_BITS == HighBits::PLANE ? 0x100 : ((1 << STEP) - 1) << 8;
            uint16_t high[PANEL], indices[CODES * PANEL];
            for (int n = 0; n < PANEL; ++n) high[n] = high_bits(block, group, n);
            for (int i = 0; i < CODES; ++i)
                for (int n = 0; n < PANEL; ++n)
                    indices[i * PANEL + n] = codes[i * PANEL + n] | (high[n] << (8 - STEP * i) & HIGH);
            look_up_group(block, group, indices, groups);
        }
    }

    // Further bits of a group's codes, those of the first one lowest.
    static inline uint16_t high_bits(const uint32_t* block, int group, int n) {
        if constexpr (Format::HIGH_BITS == HighBits::PLANE)
            return static_cast<uint16_t>(block[Format::PLANES_AT + group * PANEL + n] >> 25);
        return reinterpret_cast<const uint8_t*>(block + Format::HIGH_AT)[group * PANEL + n];
    }

    // `indices` [CODES][PANEL]: of the book's entries. A share of the next block is prefetched meanwhile.
    template <class Index>
    static inline void look_up_group(const uint32_t* block, int group, const Index* indices, uint32_t* groups) {
        const uint32_t* planes = block + Format::PLANES_AT + group * PANEL;
        for (int part = 0; part < VECTORS; ++part) {
            const int step = group * VECTORS + part, column = part * LANES;
            for (int line = LINES * step / (8 * VECTORS); line < LINES * (step + 1) / (8 * VECTORS); ++line)
                prefetch_in_place(block + Format::PANEL_WORDS + line * LINE_WORDS + NEARER_WORDS);
            Words signs = load_words(planes + column);
            if constexpr (Format::OMITS_SIGNS) signs = with_all_signs(signs);
#pragma GCC unroll 8
            for (int i = 0; i < CODES; ++i) {
                Words entries[8 / CODES];
                load_entries(Format::BOOK.data(), indices + i * PANEL + column, entries);
                for (int u = 0; u < 8 / CODES; ++u) {
                    const int unit = i * (8 / CODES) + u;
                    uint32_t* to = groups + unit / Format::UNITS * GROUP_WORDS + (1 + unit % Format::UNITS) * PANEL;
                    store_words(to + column, Format::with_signs(entries[u], minus_of(signs, unit)));
                }
            }
        }
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
