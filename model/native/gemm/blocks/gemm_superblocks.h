// Product blocks with the block formats of 256 numbers. Included by kernel files only.
//
// A pair of groups shares a word of scales. A group of 32 numbers has 8 units (Q4_K, Q5_K, IQ4_XS), one of 16 has 4
// (Q2_K, Q3_K, Q6_K). A half block of 128 numbers has 4 pairs of such groups of 16. A block's first HEADER_WORDS are
// its scales and minima; from MIN_UNPACKED_ROWS on the rest is unpacked before it is multiplied
// (gemm/blocks/unpacked_blocks.h).
#pragma once

#include <utility>

#include "gemm/block_formats.h"
#include "gemm/blocks/byte_sums.h"
#include "gemm/blocks/iq4_values.h"
#include "gemm/paired_sums.h"
#include "simd/byte_table.h"
#include "simd/float16.h"

namespace smoe {
namespace SMOE_ISA {

// What most formats have in common: scales and minima are pairs of bytes as they lie.
template <class ProductSum>
struct SuperblockFormat {
    using Sum = ProductSum;
    static constexpr bool HAS_MIN = false;
    static constexpr int OFFSET = 0, FACTOR = 1;  // a number is SCALE (FACTOR q - OFFSET), if the format has no minima
    static constexpr float SCALE = 1.0f;          // a power of two, by which d is multiplied
    static constexpr int MAX_ROWS_OF_8_LANES = 4;
    static constexpr int MIN_UNPACKED_ROWS = FEW_TO_UNPACK;
    static constexpr bool HAS_STARTS = false, IS_UNPACKED = false;
    static constexpr int GROUP_WORDS = 0;  // from a group to the next, where all lie alike: a loop multiplies them

    static inline Words scale_pairs(Words pairs) { return pairs; }
    static inline Words min_pairs(Words pairs) { return pairs; }
};

// Word i of a pair holds unit i of its first group in the low half bytes, and of its second group in the high ones.
struct Q4KBlock : SuperblockFormat<ByteSum<15, IS_FOR_INTEL>> {
    static constexpr bool HAS_MIN = true;
    static constexpr int MIN_UNPACKED_ROWS = MANY_TO_UNPACK;
    static constexpr int PAIRS = 4, UNITS = 8, SHARING = 2;
    static constexpr int PANEL_WORDS = block_layout(Q4_K).panel_words;
    static constexpr int SCALES_AT = PANEL, MINS_AT = 3 * PANEL, UNITS_AT = 5 * PANEL;
    static constexpr int HEADER_WORDS = 5 * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return load_words(block + UNITS_AT + (PAIR * UNITS + i) * PANEL) >> 4 * HALF & 0x0f0f0f0fu;
    }
};

// Bit g of each byte of word i of the plane is the fifth bit of unit i of group g.
struct Q5KBlock : SuperblockFormat<ByteSum<31>> {
    static constexpr bool HAS_MIN = true;
    static constexpr int PAIRS = 4, UNITS = 8, SHARING = 2;
    static constexpr int PANEL_WORDS = block_layout(Q5_K).panel_words;
    static constexpr int SCALES_AT = PANEL, MINS_AT = 3 * PANEL, PLANE_AT = 5 * PANEL, UNITS_AT = 13 * PANEL;
    static constexpr int HEADER_WORDS = 5 * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const Words low = load_words(block + UNITS_AT + (PAIR * UNITS + i) * PANEL);
        const Words plane = load_words(block + PLANE_AT + i * PANEL);
        return merge(low >> 4 * HALF, 0x0f0f0f0fu, shift_left<4 - (2 * PAIR + HALF)>(plane), 0x10101010u);
    }
};

// Pairs r and r + 2 of a half block share words of 4 bits; all four share the words of the plane, which holds two bits
// of each.
struct Q6KBlock : SuperblockFormat<ByteSum<has_starts(Q6_K) ? 32 : 63, IS_FOR_INTEL>> {
    static constexpr int OFFSET = 32, MAX_ROWS_OF_8_LANES = 3;  // with 4, a quarter slower
    static constexpr int PAIRS = 8, UNITS = 4, SHARING = 4;
    static constexpr int PANEL_WORDS = block_layout(Q6_K).panel_words;
    static constexpr int SCALES_AT = PANEL / 2, MINS_AT = SCALES_AT;
    static constexpr int UNITS_AT = SCALES_AT + 4 * PANEL, PLANE_AT = UNITS_AT + 32 * PANEL;
    static constexpr int HEADER_WORDS = SCALES_AT + 4 * PANEL;

    // Sums that start at -32 P are those of q - 32 in the end. So they fit into 16 bits, whatever overflows meanwhile:
    // two sums of a whole group, or one of half a group.
    static constexpr bool HAS_STARTS = has_starts(Q6_K);

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        constexpr int HALF_BLOCK = PAIR / 4, R = PAIR % 4;
        const int u = HALF * UNITS + i;
        const Words low = load_words(block + UNITS_AT + (HALF_BLOCK * 16 + R % 2 * 8 + u) * PANEL);
        const Words plane = load_words(block + PLANE_AT + (HALF_BLOCK * 8 + u) * PANEL);
        return merge(low >> R / 2 * 4, 0x0f0f0f0fu, shift_left<4 - 2 * R>(plane), 0x30303030u);
    }
};

// The four pairs of a half block share words of 2 bits. Scales are the low half bytes, minima the high ones.
struct Q2KBlock : SuperblockFormat<ByteSum<3, true>> {
    static constexpr bool HAS_MIN = true;
    static constexpr int MIN_UNPACKED_ROWS = MANY_TO_UNPACK;
    static constexpr int PAIRS = 8, UNITS = 4;
    static constexpr int PANEL_WORDS = block_layout(Q2_K).panel_words;
    static constexpr int SCALES_AT = PANEL, MINS_AT = SCALES_AT, UNITS_AT = 5 * PANEL;
    static constexpr int HEADER_WORDS = 5 * PANEL;

    static inline Words scale_pairs(Words pairs) { return pairs & 0x000f000fu; }
    static inline Words min_pairs(Words pairs) { return pairs >> 4 & 0x000f000fu; }

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const int word = PAIR / 4 * 8 + HALF * UNITS + i;
        return load_words(block + UNITS_AT + word * PANEL) >> PAIR % 4 * 2 & 0x03030303u;
    }
};

// The four pairs of a half block share words of 2 bits. All pairs share the words of the plane: bit p of each byte is
// the third bit of a number of pair p.
struct Q3KBlock : SuperblockFormat<ByteSum<7, true>> {
    static constexpr int OFFSET = 4, MAX_ROWS_OF_8_LANES = 3;  // as Q6_K
    static constexpr int PAIRS = 8, UNITS = 4;
    static constexpr int PANEL_WORDS = block_layout(Q3_K).panel_words;
    static constexpr int SCALES_AT = PANEL / 2, MINS_AT = SCALES_AT;
    static constexpr int PLANE_AT = SCALES_AT + 4 * PANEL, UNITS_AT = PLANE_AT + 8 * PANEL;
    static constexpr int HEADER_WORDS = SCALES_AT + 4 * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const int word = HALF * UNITS + i;
        const Words low = load_words(block + UNITS_AT + (PAIR / 4 * 8 + word) * PANEL);
        const Words plane = load_words(block + PLANE_AT + word * PANEL);
        return merge(low >> PAIR % 4 * 2, 0x03030303u, shift_left<2 - PAIR>(plane), 0x04040404u);
    }
};

// Indices of values, which are bytes q + 128: unit i < 4 of a group is in the low half bytes of its word i, the others
// in the high half bytes of word i - 4.
struct Iq4XsBlock : SuperblockFormat<BiasedByteSum> {
    static constexpr int OFFSET = Int8Unit::IS_BIASED ? 128 : 0;
    static constexpr int PAIRS = 4, UNITS = 8;
    static constexpr int PANEL_WORDS = block_layout(IQ4_XS).panel_words;
    static constexpr int SCALES_AT = PANEL / 2, MINS_AT = SCALES_AT, UNITS_AT = SCALES_AT + 2 * PANEL;
    static constexpr int HEADER_WORDS = SCALES_AT + 2 * PANEL;

    template <int PAIR, int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const int word = (PAIR * 2 + HALF) * 4 + i % 4;
        const Words indices = load_words(block + UNITS_AT + word * PANEL) >> i / 4 * 4;
        return Int8Unit::prepare(look_up(IQ4_VALUES, indices & 0x0f0f0f0fu));
    }
};

// Prefetch a line of a later block; an unpacked one is in the first-level cache.
template <class Format>
[[gnu::always_inline]] inline void prefetch(const uint32_t* line) {
    if constexpr (!Format::IS_UNPACKED) prefetch_in_place(line);
}

// Factors of a pair's group HALF, for LANES columns; `scales` points at theirs.
template <class Format, int HALF>
[[gnu::always_inline]] inline Words load_factor(const uint16_t* scales) {
    return Format::Sum::template factor<HALF>(Format::scale_pairs(load_byte_pairs(scales)));
}

// The scales of a pair, of the columns from `column` on.
template <class Format, int PAIR>
[[gnu::always_inline]] inline const uint16_t* scales_of(const uint32_t* panel, int column) {
    return reinterpret_cast<const uint16_t*>(panel + Format::SCALES_AT) + PAIR * PANEL + column;
}

template <class Format>
struct Superblocks {
    static constexpr int FEW_ROWS = LANES == 8 ? Format::MAX_ROWS_OF_8_LANES : SMOE_MATRIX_PRODUCTS ? 4 : 2;
    static constexpr int MAX_ROWS = LANES == 16 ? (Format::IS_UNPACKED ? 6 : 8) : FEW_ROWS;
    static constexpr int BLOCKS = 1;  // per call of add()
    // Words of a row's block after the units: the starts of each group, or the sums of a pair of groups.
    static constexpr int STARTS = Format::HAS_STARTS ? 2 * Format::PAIRS * STARTS_PER_GROUP : 0,
                         SUMS = STARTS ? 0 : Format::PAIRS;
    static constexpr int ROW_WORDS = 64 + STARTS + SUMS + 1, PANEL_WORDS = Format::PANEL_WORDS;
    // Memory is asked for at an even rate, a line with each unit, and in the order of its addresses: in bursts a row
    // loses a fifth of the bandwidth (decision 53), with two lines of a group before the others a third (decision 102).
    static constexpr int WORDS_AHEAD = 112 * LINE_WORDS, LINES = PANEL_WORDS / LINE_WORDS;

    template <int ROWS>
    static constexpr int COLUMNS_OF = VECTORS_OF<ROWS> * LANES;

    // Add the products of one block to out[ROWS][COLUMNS_OF<ROWS> of PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int, float* out) {
        Words totals[ROWS][VECTORS_OF<ROWS>] = {};
        if constexpr (Format::GROUP_WORDS > 0)
            add_groups(totals, x, stride, panel, column);
        else
            add_pairs_of_groups(totals, x, stride, panel, column, std::make_integer_sequence<int, Format::PAIRS>());
        finish(totals, x + 64 * stride, stride, panel, column, out);
    }

    // Subtract what the minima contribute, and add the block's products to out. x points at the words after the units.
    // HAS_ALL: the totals already contain the format's factor and what its offset contributes.
    template <bool HAS_ALL = false, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void finish(const Words (&totals)[ROWS][VECTORS], const uint32_t* x,
                                                     int64_t stride, const uint32_t* panel, int column, float* out) {
        Words mins[ROWS][VECTORS] = {};
        const auto* pairs = reinterpret_cast<const uint16_t*>(panel + Format::MINS_AT) + column;
        constexpr int PAIRS = HAS_ALL ? 0 : SUMS;
        x += (STARTS + SUMS - PAIRS) * stride;
        for (int pair = 0; pair < PAIRS; ++pair) {
            Words columns[VECTORS];
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part)
                columns[part] = Format::min_pairs(load_byte_pairs(pairs + part * LANES));
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; ++m) {
                const Words sums = broadcast_word(x[m]);
#pragma GCC unroll 4
                for (int part = 0; part < VECTORS; ++part)
                    mins[m][part] = add_pairs(mins[m][part], columns[part], sums);
            }
            pairs += PANEL;
            x += stride;
        }
        const auto* d = reinterpret_cast<const uint16_t*>(panel) + column;
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part, d += LANES) {
            const Vec scale = load_float16(d);
            const Vec min_scale = Format::HAS_MIN ? load_float16(d + PANEL) : Vec{};
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; ++m) {
                float* to = out + m * PANEL + column + part * LANES;
                const Vec value = HAS_ALL ? to_float(totals[m][part]) * (Format::SCALE * scale)
                                          : difference(totals[m][part], mins[m][part], scale, min_scale);
                store(to, load(to) + value * broadcast(float_of(x[m])));
            }
        }
    }

  private:
    // Units between two reductions of sums. Q5_K's are a loop on AVX2: unrolled, the code of a block is slower.
    static constexpr int CHUNK = std::min(Format::UNITS, Format::Sum::CAPACITY);
    static_assert(!Format::HAS_STARTS || CHUNK * STARTS_PER_GROUP == Format::UNITS);
    static constexpr int UNROLLED_CHUNKS = LANES == 8 ? 1 : 4;
    static constexpr bool LOOPS_OVER_CHUNKS = STARTS_SUMS && Format::UNITS == 8 && CHUNK == 4;

    // Lines of a later block that are asked for before group `group` of this one.
    static constexpr int lines_before(int group) { return LINES * group / (2 * Format::PAIRS); }

    // One group's code for all of them: code for each takes GCC minutes.
    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_groups(Words (&totals)[ROWS][VECTORS], const uint32_t* x,
                                                         int64_t stride, const uint32_t* panel, int column) {
#pragma GCC unroll 1
        for (int group = 0; group < 2 * Format::PAIRS; ++group, panel += Format::GROUP_WORDS) {
            add_group<0, 0>(totals, x, x, stride, panel, column);
            x += Format::UNITS * stride;
        }
    }

    template <int ROWS, int VECTORS, int... PAIRS>
    [[gnu::always_inline]] static inline void add_pairs_of_groups(Words (&totals)[ROWS][VECTORS], const uint32_t* x,
                                                                  int64_t stride, const uint32_t* panel, int column,
                                                                  std::integer_sequence<int, PAIRS...>) {
        (add_pair<PAIRS>(totals, x + 2 * PAIRS * Format::UNITS * stride,
                         x + (64 + 2 * PAIRS * STARTS_PER_GROUP) * stride, stride, panel, column),
         ...);
    }

    // totals += the products of two groups times their scales.
    template <int PAIR, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_pair(Words (&totals)[ROWS][VECTORS], const uint32_t* x,
                                                       const uint32_t* starts, int64_t stride, const uint32_t* panel,
                                                       int column) {
        add_group<PAIR, 0>(totals, x, starts, stride, panel, column);
        add_group<PAIR, 1>(totals, x + Format::UNITS * stride, starts + STARTS_PER_GROUP * stride, stride, panel,
                           column);
    }

    // Factors of a pair's group HALF.
    template <int PAIR, int HALF, int VECTORS>
    [[gnu::always_inline]] static inline void load_factors(Words (&factors)[VECTORS], const uint32_t* panel,
                                                           int column) {
        const uint16_t* scales = scales_of<Format, PAIR>(panel, column);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part)
            if constexpr (Format::IS_UNPACKED)
                factors[part] = Format::template factors<2 * PAIR + HALF>(panel, column + part * LANES);
            else
                factors[part] = load_factor<Format, HALF>(scales + part * LANES);
    }

    // totals += factor * (sum of the products of a pair's group HALF).
    template <int PAIR, int HALF, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_group(Words (&totals)[ROWS][VECTORS], const uint32_t* x,
                                                        const uint32_t* starts, int64_t stride, const uint32_t* panel,
                                                        int column) {
        constexpr int FIRST_LINE = lines_before(2 * PAIR + HALF), END_LINE = lines_before(2 * PAIR + HALF + 1);
        constexpr int CHUNK_LINES = ((END_LINE - FIRST_LINE) * CHUNK + Format::UNITS - 1) / Format::UNITS;
        const uint32_t *block = panel + column, *ahead = block + WORDS_AHEAD + FIRST_LINE * LINE_WORDS;
        if constexpr (IN_PAIRS<ROWS>)
            return add_group_in_pairs<PAIR, HALF, END_LINE - FIRST_LINE>(totals, x, stride, panel, column, ahead);
#pragma GCC unroll UNROLLED_CHUNKS
        for (int first = 0; first < Format::UNITS; first += CHUNK) {
            if constexpr (LOOPS_OVER_CHUNKS) asm("" : "+r"(first));  // hides how often the loop runs
            typename Format::Sum sums[ROWS][VECTORS];
            if constexpr (Format::HAS_STARTS) {
                start_sums(sums, starts);
                starts += stride;
            } else if constexpr (STARTS_SUMS) {
                prefetch<Format>(ahead);
                add_unit<PAIR, HALF, true>(sums, x, block, first);
                x += stride;
            }
// A loop: unrolled, GCC computes all addresses first and keeps them in memory.
#pragma GCC unroll 1
            for (int i = STARTS_SUMS && !Format::HAS_STARTS; i < CHUNK; ++i) {
                prefetch<Format>(ahead + i * LINE_WORDS);
                add_unit<PAIR, HALF, false>(sums, x, block, first + i);
                x += stride;
            }
#pragma GCC unroll 4
            for (int i = CHUNK; i < CHUNK_LINES; ++i) prefetch<Format>(ahead + i * LINE_WORDS);
            ahead += CHUNK_LINES * LINE_WORDS;
            Words factors[VECTORS];
            load_factors<PAIR, HALF>(factors, panel, column);
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
                for (int part = 0; part < VECTORS; ++part)
                    totals[m][part] = Format::Sum::add_scaled(totals[m][part], sums[m][part].sum, factors[part]);
        }
    }

    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void start_sums(typename Format::Sum (&sums)[ROWS][VECTORS],
                                                         const uint32_t* starts) {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part) sums[m][part].sum = broadcast_word(starts[m]);
    }

    // Add the products of unit i, or start the sums with them.
    template <int PAIR, int HALF, bool STARTS, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_unit(typename Format::Sum (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                       const uint32_t* block, int i) {
        Words w[VECTORS];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) w[part] = Format::template unit<PAIR, HALF>(block + part * LANES, i);
        add_products<STARTS>(sums, x, w);
    }

    // The same, with two units in one instruction.
    template <int PAIR, int HALF, int GROUP_LINES, int ROWS>
    [[gnu::always_inline]] static inline void add_group_in_pairs(Words (&totals)[ROWS][2], const uint32_t* x,
                                                                 int64_t stride, const uint32_t* panel, int column,
                                                                 const uint32_t* ahead) {
        PairedSums<Words, ROWS, 2> paired;
#pragma GCC unroll 1
        for (int i = 0; i < Format::UNITS; i += 2) {
            prefetch<Format>(ahead + i * LINE_WORDS);
            prefetch<Format>(ahead + (i + 1) * LINE_WORDS);
            Words units[2][2];
#pragma GCC unroll 2
            for (int u = 0; u < 2; ++u) {
                units[u][0] = Format::template unit<PAIR, HALF>(panel + column, i + u);
                units[u][1] = Format::template unit<PAIR, HALF>(panel + column + LANES, i + u);
            }
            paired.add(x, stride, units[0], units[1]);
            x += 2 * stride;
        }
#pragma GCC unroll 4
        for (int i = Format::UNITS; i < GROUP_LINES; ++i) prefetch<Format>(ahead + i * LINE_WORDS);
        Words factors[2];
        load_factors<PAIR, HALF>(factors, panel, column);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) {
            totals[m][0] = Format::Sum::add_scaled(totals[m][0], paired.row(m, 0), factors[0]);
            totals[m][1] = Format::Sum::add_scaled(totals[m][1], paired.row(m, 1), factors[1]);
        }
    }

    static inline Vec difference(Words total, Words min, Vec scale, Vec min_scale) {
        if constexpr (Format::HAS_MIN) return to_float(total) * scale - to_float(min) * min_scale;
        return to_float(Format::FACTOR * total - Format::OFFSET * min) * (Format::SCALE * scale);
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
