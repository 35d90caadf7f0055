// Products of many rows with blocks whose numbers were unpacked to bytes. Included by kernel files only.
//
// On AVX2 a pass has at most 4 rows by 16 columns, so putting a number together from its bits can take as many
// instructions as its products; on AVX-512 it takes about half as many. With many rows a part of a panel is unpacked
// once, in the first-level cache, and all passes multiply the copy: a block of another format, whose units are bytes as
// they are multiplied (decision 106).
#pragma once

#include <algorithm>
#include <utility>

#include "gemm/blocks/gemm_small_blocks.h"
#include "gemm/blocks/gemm_superblocks.h"
#include "gemm/panel_parts.h"

namespace smoe {
namespace SMOE_ISA {

// True if the passes over a part prefetch the next one; else unpacking does. By measurement: with 8 lanes unpacking
// takes longer, and looking up codes does with any (decisions 106 and 114).
constexpr bool PASSES_PREFETCH = LANES == 16;

// Prefetch two lines of the part after this one: its share of unit `unit`, or a little more.
inline void prefetch_share(const uint32_t* next, int unit) {
    if constexpr (!PASSES_PREFETCH) prefetch_lines<2 * LINE_WORDS>(next + unit * 2 * LINE_WORDS);
}

// A block of Format as [header; factors of each group [PANEL]; units [PANEL]].
template <class Format>
struct UnpackedSuperblock : Format {
    static constexpr bool IS_UNPACKED = true, PASSES_PREFETCH = SMOE_ISA::PASSES_PREFETCH;
    static constexpr int MAX_ROWS_OF_8_LANES = 4;
    static constexpr int FACTORS_AT = Format::HEADER_WORDS, UNITS_AT = FACTORS_AT + 2 * Format::PAIRS * PANEL;
    static constexpr int PANEL_WORDS = UNITS_AT + 64 * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return load_words(block + UNITS_AT + ((2 * PAIR + HALF) * Format::UNITS + i) * PANEL);
    }

    template <int GROUP>
    static inline Words factors(const uint32_t* block, int column) {
        return load_words(block + FACTORS_AT + GROUP * PANEL + column);
    }

    static void unpack(const uint32_t* block, uint32_t* unpacked) {
        std::memcpy(unpacked, block, Format::HEADER_WORDS * 4);
        unpack_pairs(block, unpacked, std::make_integer_sequence<int, Format::PAIRS>());
    }

  private:
    template <int... PAIRS>
    static void unpack_pairs(const uint32_t* block, uint32_t* unpacked, std::integer_sequence<int, PAIRS...>) {
        (unpack_group<PAIRS, 0>(block, unpacked), ...);
        (unpack_group<PAIRS, 1>(block, unpacked), ...);
    }

    template <int PAIR, int HALF>
    static void unpack_group(const uint32_t* block, uint32_t* unpacked) {
        constexpr int GROUP = 2 * PAIR + HALF;
        for (int column = 0; column < PANEL; column += LANES)
            store_words(unpacked + FACTORS_AT + GROUP * PANEL + column,
                        load_factor<Format, HALF>(scales_of<Format, PAIR>(block, column)));
        uint32_t* units = unpacked + UNITS_AT + GROUP * Format::UNITS * PANEL;
#pragma GCC unroll 1
        for (int i = 0; i < Format::UNITS; ++i) {
            prefetch_share(block + Format::PANEL_WORDS, GROUP * Format::UNITS + i);
#pragma GCC unroll 4
            for (int column = 0; column < PANEL; column += LANES)
                store_words(units + i * PANEL + column, Format::template unit<PAIR, HALF>(block + column, i));
        }
    }
};

// A block of Format as [header; units [PANEL]].
template <class Format>
struct UnpackedSmallBlock : Format {
    static constexpr bool IS_UNPACKED = true, SHARES_WORDS = false, PASSES_PREFETCH = SMOE_ISA::PASSES_PREFETCH;
    static constexpr int UNITS_AT = Format::HEADER_WORDS, PANEL_WORDS = UNITS_AT + Format::UNITS * PANEL;

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return load_words(block + UNITS_AT + (Format::UNITS / 2 * HALF + i) * PANEL);
    }

    static void unpack(const uint32_t* block, uint32_t* unpacked) {
        std::memcpy(unpacked, block, Format::HEADER_WORDS * 4);
        unpack_half<0>(block, unpacked + UNITS_AT);
        unpack_half<1>(block, unpacked + UNITS_AT + Format::UNITS / 2 * PANEL);
    }

  private:
    template <int HALF>
    static void unpack_half(const uint32_t* block, uint32_t* units) {
#pragma GCC unroll 1
        for (int i = 0; i < Format::UNITS / 2; ++i) {
            prefetch_share(block + blocks_per_call(Format::UNITS) * Format::PANEL_WORDS, Format::UNITS / 2 * HALF + i);
#pragma GCC unroll 4
            for (int column = 0; column < PANEL; column += LANES)
                store_words(units + i * PANEL + column, Format::template unit<HALF>(block + column, i));
        }
    }
};

// out[rows][PANEL] = tile times panel, whose blocks are unpacked part by part.
template <template <class> class Kernel, template <class> class Unpacked, class Format>
void multiply_unpacked(int rows, const uint32_t* tile, const uint32_t* panel, int64_t num_blocks, float* out) {
    using Passes = Kernel<Unpacked<Format>>;
    alignas(64) uint32_t part[Passes::BLOCKS * Passes::PANEL_WORDS];
    std::fill(out, out + rows * PANEL, 0.0f);
    for (; num_blocks > 0; num_blocks -= Passes::BLOCKS) {
        const auto blocks = static_cast<int>(std::min<int64_t>(Passes::BLOCKS, num_blocks));
        for (int block = 0; block < blocks; ++block, panel += Format::PANEL_WORDS)
            Unpacked<Format>::unpack(panel, part + block * Passes::PANEL_WORDS);
        add_part<Passes>(rows, tile, part, blocks, out, panel,
                         Unpacked<Format>::PASSES_PREFETCH ? blocks * Format::PANEL_WORDS : 0);
        tile += Passes::BLOCKS * Passes::ROW_WORDS * rows;
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
