// Product blocks with the block formats of 32 numbers; gemm/gemm_groups.h has the formats of groups. Included by
// gemm/gemm_blocks.cpp only.
#pragma once

#include "gemm/block_formats.h"
#include "gemm/byte_sums.h"
#include "gemm/iq4_values.h"
#include "simd/byte_table.h"
#include "simd/float16.h"

namespace smoe {
namespace SMOE_ISA {

// A format says how to read a unit, and what a block's sum I adds to y / s: value(I, first word of the row, columns),
// with Columns the scales of LANES outputs.

inline const uint16_t* halves_of(const uint32_t* block) { return reinterpret_cast<const uint16_t*>(block); }

// 4-bit numbers, and with PLANE a fifth bit of each: unit u < 4 is in the low half bytes of word u, the others in the
// high half bytes of word u - 4. Bit u of each byte of the plane belongs to unit u.
template <int FORMAT, bool MIN, bool PLANE>
struct Gguf32 {
    static constexpr int UNITS = 8, PANEL_WORDS = block_layout(FORMAT).panel_words;
    static constexpr int PLANE_AT = MIN ? PANEL : PANEL / 2;  // after d, m
    static constexpr int UNITS_AT = PLANE_AT + (PLANE ? PANEL : 0);

    using Sum = ByteSum<PLANE ? 31 : 15>;
    struct Columns {
        Vec d, m;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        const uint16_t* d = halves_of(block) + column;
        return {load_float16(d), MIN ? load_float16(d + PANEL) : Vec{}};
    }

    static inline Vec value(Words sum, uint32_t first, const Columns& columns) {
        if constexpr (!MIN) return to_float(sum + broadcast_word(first)) * columns.d;
        return to_float(sum) * columns.d + static_cast<float>(static_cast<int32_t>(first)) * columns.m;
    }

    static inline Words total(Words total, Words part) { return add_unscaled(total, part); }

    static inline Words unit(const uint32_t* block, int u) {
        const Words word = load_words(block + UNITS_AT + u % 4 * PANEL);
        const Words low = (u < 4 ? word : word >> 4) & 0x0f0f0f0fu;
        if constexpr (!PLANE) return low;
        return low | (load_words(block + PLANE_AT) >> u & 0x01010101u) << 4;
    }
};

// Bytes q + 128, as in int8.
struct GgufQ8 {
    static constexpr int UNITS = 8, PANEL_WORDS = block_layout(Q8_0).panel_words;

    using Sum = BiasedByteSum;
    struct Columns {
        Vec d;
    };

    static inline Columns columns(const uint32_t* block, int column) {
        return {load_float16(halves_of(block) + column)};
    }

    static inline Vec value(Words sum, uint32_t first, const Columns& columns) {
        return to_float(sum + broadcast_word(Int8Unit::IS_BIASED ? first : 0)) * columns.d;
    }

    static inline Words total(Words total, Words part) { return total + part; }

    static inline Words unit(const uint32_t* block, int u) {
        return Int8Unit::prepare(load_words(block + PANEL / 2 + u * PANEL));
    }
};

// Indices of values, which are bytes q + 128.
struct GgufIq4 : GgufQ8 {
    static constexpr int PANEL_WORDS = block_layout(IQ4_NL).panel_words;

    static inline Words unit(const uint32_t* block, int u) {
        const Words word = load_words(block + PANEL / 2 + u % 4 * PANEL);
        return Int8Unit::prepare(look_up(IQ4_VALUES, (u < 4 ? word : word >> 4) & 0x0f0f0f0fu));
    }
};

template <class Format>
struct SmallBlocks {
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : LANES == 8 ? 3 : 2;
    // Per call of add(): few enough to stay in the first-level cache for all columns.
    static constexpr int BLOCKS = 64 / Format::UNITS;
    static constexpr int ROW_WORDS = Format::UNITS + 2;

    // Add the products of `blocks` blocks to out[ROWS][COLUMNS of PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int stride, const uint32_t* panel, int column, int blocks, float* out) {
        Vec totals[ROWS][2];
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m) {
            totals[m][0] = load(out + m * PANEL + column);
            totals[m][1] = load(out + m * PANEL + column + LANES);
        }
        for (; blocks; --blocks) {
            add_block(totals, x, stride, panel, column);
            x += ROW_WORDS * stride;
            panel += Format::PANEL_WORDS;
        }
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m) {
            store(out + m * PANEL + column, totals[m][0]);
            store(out + m * PANEL + column + LANES, totals[m][1]);
        }
    }

  private:
    template <int ROWS>
    static inline void add_block(Vec (&totals)[ROWS][2], const uint32_t* x, int stride, const uint32_t* block,
                                 int column) {
        Words sums[ROWS][2] = {};
        add_units(sums, x + stride, stride, block + column);
        const auto columns0 = Format::columns(block, column), columns1 = Format::columns(block, column + LANES);
        const uint32_t* scales = x + (Format::UNITS + 1) * stride;
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m) {
            const Vec scale = broadcast(float_of(scales[m]));
            totals[m][0] += Format::value(sums[m][0], x[m], columns0) * scale;
            totals[m][1] += Format::value(sums[m][1], x[m], columns1) * scale;
        }
    }

    // Fetch word `at` of the block that follows `BLOCKS` blocks later.
    static inline void prefetch(const uint32_t* block, int at) {
        if (at >= Format::PANEL_WORDS) return;
        __builtin_prefetch(block + Format::PANEL_WORDS * BLOCKS + at);
        if constexpr (LANES == 16) __builtin_prefetch(block + Format::PANEL_WORDS * BLOCKS + at + LANES);
    }

    template <int ROWS>
    static inline void add_units(Words (&sums)[ROWS][2], const uint32_t* x, int stride, const uint32_t* block) {
        constexpr int CHUNK = Format::Sum::CAPACITY;
#pragma GCC unroll 4
        for (int first = 0; first < Format::UNITS; first += CHUNK) {
            typename Format::Sum parts[ROWS][2];
#pragma GCC unroll 8
            for (int u = first; u < first + CHUNK; ++u) {
                prefetch(block, u * PANEL);
                const Words w0 = Format::unit(block, u), w1 = Format::unit(block + LANES, u);
#pragma GCC unroll 6
                for (int m = 0; m < ROWS; ++m) {
                    const Words row = broadcast_word(x[u * stride + m]);
                    parts[m][0].add(row, w0);
                    parts[m][1].add(row, w1);
                }
            }
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                sums[m][0] = Format::total(sums[m][0], parts[m][0].sum);
                sums[m][1] = Format::total(sums[m][1], parts[m][1].sum);
            }
        }
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
