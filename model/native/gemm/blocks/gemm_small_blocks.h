// Product blocks with the block formats of 32 numbers; gemm/blocks/gemm_groups.h has the formats of groups. Included by
// kernel files only.
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

// A format says how to read unit i of a block's first or second HALF, and what a block's sum I adds to y / s: value(I,
// first word of the row, columns), with Columns the scales of LANES outputs. With SHARES_WORDS unit i of both halves is
// in the same words. With ADDS_FIRST the row's first word, -ZERO P, is added to I. A block's first HEADER_WORDS are its
// scales, zeros and minima; from MIN_UNPACKED_ROWS on the rest is unpacked before it is multiplied
// (gemm/blocks/unpacked_blocks.h).

// Blocks per call of SmallBlocks::add(): few enough to stay in the first-level cache for all columns.
constexpr int blocks_per_call(int units) { return 64 / units; }

inline const uint16_t* halves_of(const uint32_t* block) { return reinterpret_cast<const uint16_t*>(block); }

// 4-bit numbers, and with PLANE a fifth bit of each: unit u < 4 is in the low half bytes of word u, the others in the
// high half bytes of word u - 4. Bit u of each byte of the plane belongs to unit u.
template <int FORMAT, bool MIN, bool PLANE>
struct Gguf32 {
    static constexpr int UNITS = 8, PANEL_WORDS = block_layout(FORMAT).panel_words;
    static constexpr int PLANE_AT = MIN ? PANEL : PANEL / 2;  // after d, m
    static constexpr int HEADER_WORDS = PLANE_AT, UNITS_AT = PLANE_AT + (PLANE ? PANEL : 0);
    static constexpr int MIN_UNPACKED_ROWS = PLANE ? FEW_TO_UNPACK : NEVER;
    static constexpr bool SHARES_WORDS = true, IS_UNPACKED = false, ADDS_FIRST = !MIN;
    static constexpr int ZERO = PLANE ? 16 : 8;

    using Sum = ByteSum<PLANE ? 31 : 15>;
    struct Columns {
        Vec d, m;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        const uint16_t* d = halves_of(block) + column;
        return {load_float16(d), MIN ? load_float16(d + PANEL) : Vec{}};
    }

    static inline Vec value(Words sum, uint32_t first, const Columns& columns) {
        if constexpr (!MIN) return to_float(sum) * columns.d;
        return to_float(sum) * columns.d + static_cast<float>(static_cast<int32_t>(first)) * columns.m;
    }

    static inline Words total(Words total, Words part) { return add_unscaled(total, part); }

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const Words low = load_words(block + UNITS_AT + i * PANEL) >> 4 * HALF;
        if constexpr (!PLANE) return low & 0x0f0f0f0fu;
        return merge(low, 0x0f0f0f0fu, load_words(block + PLANE_AT) >> (4 * HALF + i) << 4, 0x10101010u);
    }
};

// Bytes q + 128, as in int8.
struct GgufQ8 {
    static constexpr int UNITS = 8, PANEL_WORDS = block_layout(Q8_0).panel_words, UNITS_AT = PANEL / 2;
    static constexpr int HEADER_WORDS = UNITS_AT, MIN_UNPACKED_ROWS = NEVER;
    static constexpr bool SHARES_WORDS = false, IS_UNPACKED = false, ADDS_FIRST = Int8Unit::IS_BIASED;
    static constexpr int ZERO = 128;

    using Sum = BiasedByteSum;
    struct Columns {
        Vec d;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        return {load_float16(halves_of(block) + column)};
    }

    static inline Vec value(Words sum, uint32_t, const Columns& columns) { return to_float(sum) * columns.d; }

    static inline Words total(Words total, Words part) { return total + part; }

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        return Int8Unit::prepare(load_words(block + UNITS_AT + (4 * HALF + i) * PANEL));
    }
};

// Indices of values, which are bytes q + 128.
struct GgufIq4 : GgufQ8 {
    static constexpr int PANEL_WORDS = block_layout(IQ4_NL).panel_words, MIN_UNPACKED_ROWS = FEW_TO_UNPACK;
    static constexpr bool SHARES_WORDS = true;

    template <int HALF>
    static inline Words unit(const uint32_t* block, int i) {
        const Words word = load_words(block + UNITS_AT + i * PANEL);
        return Int8Unit::prepare(look_up(IQ4_VALUES, word >> 4 * HALF & 0x0f0f0f0fu));
    }
};

template <class Format>
struct SmallBlocks {
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : LANES == 8 || SMOE_MATRIX_PRODUCTS ? 4 : 2;
    static constexpr int BLOCKS = blocks_per_call(Format::UNITS);
    static constexpr int ROW_WORDS = Format::UNITS + 2, PANEL_WORDS = Format::PANEL_WORDS;

    template <int ROWS>
    static constexpr int COLUMNS_OF = VECTORS_OF<ROWS> * LANES;

    // Add the products of `blocks` blocks to out[ROWS][COLUMNS_OF<ROWS> of PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int blocks, float* out) {
        constexpr int VECTORS = VECTORS_OF<ROWS>;
        Vec totals[ROWS][VECTORS];
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part) totals[m][part] = load(out + m * PANEL + column + part * LANES);
        for (; blocks; --blocks) {
            add_block(totals, x, stride, panel, column);
            x += ROW_WORDS * stride;
            panel += Format::PANEL_WORDS;
        }
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part) store(out + m * PANEL + column + part * LANES, totals[m][part]);
    }

  private:
    // Units between two reductions of sums, and units of a loop: all in one half of the block.
    static constexpr int CHUNK = std::min(Format::UNITS, Format::Sum::CAPACITY);
    static constexpr int RUN = std::min(Format::UNITS / 2, CHUNK);

    // True if sums begin at the row's first word instead of zero.
    template <int ROWS>
    static constexpr bool STARTS_AT_FIRST = Format::ADDS_FIRST && !SUMS_OF_16_BITS && !IN_PAIRS<ROWS>;

    template <int ROWS>
    static constexpr int WORDS_AHEAD = LANES == 8 && ROWS == 1 ? WORDS_AHEAD_IN_ORDER : Format::PANEL_WORDS * BLOCKS;

    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_block(Vec (&totals)[ROWS][VECTORS], const uint32_t* x, int64_t stride,
                                                        const uint32_t* block, int column) {
        Words sums[ROWS][VECTORS] = {};
        if constexpr (!Format::IS_UNPACKED) prefetch_lines<Format::UNITS_AT>(block + WORDS_AHEAD<ROWS>);
        if constexpr (IN_PAIRS<ROWS>) {
            multiply_in_pairs(sums, x + stride, stride, block + column);
        } else {
            typename Format::Sum parts[ROWS][VECTORS] = {};
            if constexpr (STARTS_AT_FIRST<ROWS>) {
#pragma GCC unroll 6
                for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
                    for (int part = 0; part < VECTORS; ++part) parts[m][part].sum = broadcast_word(x[m]);
            }
            add_units(sums, parts, x + stride, stride, block + column,
                      std::make_integer_sequence<int, Format::UNITS / RUN>());
        }
        const uint32_t* scales = x + (Format::UNITS + 1) * stride;
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) {
            const auto columns = Format::columns(block, column + part * LANES);
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                if constexpr (Format::ADDS_FIRST && !STARTS_AT_FIRST<ROWS>) sums[m][part] += broadcast_word(x[m]);
                totals[m][part] += Format::value(sums[m][part], x[m], columns) * broadcast(float_of(scales[m]));
            }
        }
    }

    // Compute the sums of a block, unit i of both halves in one instruction.
    template <int ROWS>
    [[gnu::always_inline]] static inline void multiply_in_pairs(Words (&sums)[ROWS][2], const uint32_t* x,
                                                                int64_t stride, const uint32_t* block) {
        PairedSums<Words, ROWS, 2> paired;
#pragma GCC unroll 1
        for (int i = 0; i < Format::UNITS / 2; ++i) {
            prefetch_unit<0, ROWS>(block, i);
            prefetch_unit<1, ROWS>(block, i);
            const Words first[] = {Format::template unit<0>(block, i), Format::template unit<0>(block + LANES, i)};
            const Words second[] = {Format::template unit<1>(block, i), Format::template unit<1>(block + LANES, i)};
            paired.add(x + i * stride, Format::UNITS / 2 * stride, first, second);
        }
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) {
            sums[m][0] = paired.row(m, 0);
            sums[m][1] = paired.row(m, 1);
        }
    }

    template <int ROWS, int VECTORS, int... RUNS>
    [[gnu::always_inline]] static inline void add_units(Words (&sums)[ROWS][VECTORS],
                                                        typename Format::Sum (&parts)[ROWS][VECTORS], const uint32_t* x,
                                                        int64_t stride, const uint32_t* block,
                                                        std::integer_sequence<int, RUNS...>) {
        (add_run<RUNS>(sums, parts, x + RUNS * RUN * stride, stride, block), ...);
    }

    // parts += the products of a run of units; at the end of a chunk they are added to the sums.
    template <int INDEX, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_run(Words (&sums)[ROWS][VECTORS],
                                                      typename Format::Sum (&parts)[ROWS][VECTORS], const uint32_t* x,
                                                      int64_t stride, const uint32_t* block) {
        constexpr int HALF = INDEX * RUN / (Format::UNITS / 2), FIRST = INDEX * RUN % (Format::UNITS / 2);
        constexpr bool STARTS = STARTS_SUMS && INDEX * RUN % CHUNK == 0;
        if constexpr (STARTS) {
            prefetch_unit<HALF, ROWS>(block, FIRST);
            add_unit<HALF, true>(parts, x, block, FIRST);
            x += stride;
        }
// A loop: unrolled, GCC computes all addresses first and keeps them in memory.
#pragma GCC unroll 1
        for (int i = FIRST + STARTS; i < FIRST + RUN; ++i) {
            prefetch_unit<HALF, ROWS>(block, i);
            add_unit<HALF, false>(parts, x, block, i);
            x += stride;
        }
        if constexpr ((INDEX + 1) * RUN % CHUNK == 0) {
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
                for (int part = 0; part < VECTORS; ++part) {
                    sums[m][part] = Format::total(sums[m][part], parts[m][part].sum);
                    parts[m][part] = {};
                }
        }
    }

    // Prefetch the words of unit i of a later block, if they are read for the first time; with all columns at once, an
    // even share of the lines with every unit.
    template <int HALF, int ROWS>
    [[gnu::always_inline]] static inline void prefetch_unit(const uint32_t* block, int i) {
        if constexpr (Format::IS_UNPACKED) return;
        const uint32_t* words = block + Format::UNITS_AT + WORDS_AHEAD<ROWS>;
        const int unit = HALF * Format::UNITS / 2 + i;
        if constexpr (COLUMNS_OF<ROWS> == PANEL && LANES == 8 && Format::SHARES_WORDS)
            prefetch_in_place(words + unit * LINE_WORDS);
        else if constexpr (!HALF || !Format::SHARES_WORDS)
            prefetch_lines<COLUMNS_OF<ROWS>>(words + unit * PANEL);
    }

    // Add the products of unit i of a HALF, or start the sums with them.
    template <int HALF, bool STARTS, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_unit(typename Format::Sum (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                       const uint32_t* block, int i) {
        Words w[VECTORS];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) w[part] = Format::template unit<HALF>(block + part * LANES, i);
        add_products<STARTS>(sums, x, w);
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
