// Products of a single row with Q4_K, Q5_K and Q6_K. Included by gemm/blocks/gemm_blocks.cpp only.
//
// One row reads a panel from memory, many rows multiply it from the cache. So here a word is read once, for all the
// groups that share it, and memory is asked for in the order of its addresses at an even rate: a line with each word,
// in straight code. Sums of integers are exact in any order and the float32 part is that of Superblocks, so the bits
// are the same.
#pragma once

#include <algorithm>
#include <utility>

#include "gemm/blocks/gemm_superblocks.h"

namespace smoe {
namespace SMOE_ISA {

template <class Format>
struct SuperblockRow {
    // With 8 lanes Superblocks reads as fast (decision 102).
    static constexpr bool IS_FASTER = LANES == 16;

    // out[PANEL] = the products of a row's blocks.
    static void multiply(const uint32_t* x, const uint32_t* panel, int64_t num_blocks, float* out) {
        std::fill(out, out + PANEL, 0.0f);
        for (; num_blocks; --num_blocks) {
            for (int column = 0; column < PANEL; column += COLUMNS) add(x, panel, column, out);
            x += Superblocks<Format>::ROW_WORDS;
            panel += Format::PANEL_WORDS;
        }
    }

  private:
    // out[COLUMNS of PANEL] += the products of a block.
    static void add(const uint32_t* x, const uint32_t* panel, int column, float* out) {
        Words totals[1][2] = {};
        const uint32_t* ahead = panel + WORDS_AHEAD + column / COLUMNS * (PASS_LINES * LINE_WORDS);
        add_sets(totals[0], x, panel, ahead, column, std::make_integer_sequence<int, SETS>());
        Superblocks<Format>::finish(totals, x + 2 * Format::PAIRS * UNITS, 1, panel, column, out);
    }

    using Sum = typename Format::Sum;
    static constexpr int UNITS = Format::UNITS, CHUNK = std::min(UNITS, Sum::CAPACITY);
    static constexpr int SHARING = Format::SHARING, SETS = 2 * Format::PAIRS / SHARING;  // of groups that share words
    static constexpr int WORDS_AHEAD = 4096;
    static constexpr int STEPS = SETS * UNITS * SHARING;  // products of a pass over some columns of a block
    static constexpr int PASS_LINES = (Format::PANEL_WORDS / LINE_WORDS * COLUMNS + PANEL - 1) / PANEL;

    template <int... NUMBERS>
    using Numbers = std::integer_sequence<int, NUMBERS...>;

    // Number of a set's group: neighbours share words, or those of one half of four pairs.
    static constexpr int group(int set, int member) {
        return SHARING == 4 ? set / 2 * 8 + set % 2 + 2 * member : set * SHARING + member;
    }

    template <int... SET>
    [[gnu::always_inline]] static inline void add_sets(Words (&totals)[2], const uint32_t* x, const uint32_t* panel,
                                                       const uint32_t* ahead, int column, Numbers<SET...>) {
        (add_set<SET>(totals, x, panel, ahead, column, std::make_integer_sequence<int, SHARING>(),
                      std::make_integer_sequence<int, UNITS / CHUNK>()),
         ...);
    }

    // totals += the products of a set's groups times their scales.
    template <int SET, int... MEMBER, int... CHUNKS>
    [[gnu::always_inline]] static inline void add_set(Words (&totals)[2], const uint32_t* x, const uint32_t* panel,
                                                      const uint32_t* ahead, int column, Numbers<MEMBER...> members,
                                                      Numbers<CHUNKS...>) {
        Words factors[SHARING][2];
        (load_factors<group(SET, MEMBER)>(factors[MEMBER], panel, column), ...);
        (add_chunk<SET, CHUNKS * CHUNK>(totals, factors, x, panel + column, ahead, members,
                                        std::make_integer_sequence<int, CHUNK>()),
         ...);
    }

    template <int GROUP>
    [[gnu::always_inline]] static inline void load_factors(Words (&factors)[2], const uint32_t* panel, int column) {
        const auto* scales = reinterpret_cast<const uint16_t*>(panel + Format::SCALES_AT) + GROUP / 2 * PANEL + column;
        for (int part = 0; part < 2; ++part)
            factors[part] =
                Sum::template factor<GROUP % 2>(Format::scale_pairs(load_byte_pairs(scales + part * LANES)));
    }

    // Units FIRST .. FIRST + CHUNK - 1 of each group.
    template <int SET, int FIRST, int... MEMBER, int... UNIT>
    [[gnu::always_inline]] static inline void add_chunk(Words (&totals)[2], const Words (&factors)[SHARING][2],
                                                        const uint32_t* x, const uint32_t* block, const uint32_t* ahead,
                                                        Numbers<MEMBER...> members, Numbers<UNIT...>) {
        Sum sums[SHARING][2];
        if constexpr (Format::HAS_STARTS) (start_sums<FIRST>(sums[MEMBER], x, group(SET, MEMBER)), ...);
        (add_unit<SET, FIRST + UNIT>(sums, x, block, ahead, members), ...);
        for (int part = 0; part < 2; ++part)
            ((totals[part] = Sum::add_scaled(totals[part], sums[MEMBER][part].sum, factors[MEMBER][part])), ...);
    }

    template <int FIRST>
    [[gnu::always_inline]] static inline void start_sums(Sum (&sums)[2], const uint32_t* x, int group) {
        sums[0].sum = sums[1].sum = broadcast_word(x[64 + group * STARTS_PER_GROUP + FIRST / CHUNK]);
    }

    template <int SET, int UNIT, int... MEMBER>
    [[gnu::always_inline]] static inline void add_unit(Sum (&sums)[SHARING][2], const uint32_t* x,
                                                       const uint32_t* block, const uint32_t* ahead,
                                                       Numbers<MEMBER...>) {
        (add_product<group(SET, MEMBER), UNIT, (SET * UNITS + UNIT) * SHARING + MEMBER>(sums[MEMBER], x, block, ahead),
         ...);
    }

    template <int GROUP, int UNIT, int STEP>
    [[gnu::always_inline]] static inline void add_product(Sum (&sums)[2], const uint32_t* x, const uint32_t* block,
                                                          const uint32_t* ahead) {
        for (int line = PASS_LINES * STEP / STEPS; line < PASS_LINES * (STEP + 1) / STEPS; ++line)
            prefetch_in_place(ahead + line * LINE_WORDS);
        const Words row = broadcast_word(x[GROUP * UNITS + UNIT]);
        sums[0].add(row, Format::template unit<GROUP / 2, GROUP % 2>(block, UNIT));
        sums[1].add(row, Format::template unit<GROUP / 2, GROUP % 2>(block + LANES, UNIT));
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
