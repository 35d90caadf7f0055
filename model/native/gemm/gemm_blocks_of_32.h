// Product blocks with the block formats of 32 numbers. Included by gemm/gemm_blocks.cpp only.
#pragma once

#include "gemm/block_formats.h"
#include "gemm/byte_sums.h"
#include "gemm/gemm_int8.h"
#include "simd/float16.h"

namespace smoe {
namespace SMOE_ISA {

// 4-bit numbers, and with PLANE a fifth bit of each: unit u < 4 is in the low half bytes of word u, the others in the
// high half bytes of word u - 4. Bit u of each byte of the plane belongs to unit u.
template <int FORMAT, bool MIN, bool PLANE>
struct SmallBlock {
    static constexpr bool HAS_MIN = MIN;
    static constexpr int PANEL_WORDS = block_layout(FORMAT).panel_words;
    static constexpr int PLANE_AT = MIN ? PANEL : PANEL / 2;  // after d, m
    static constexpr int UNITS_AT = PLANE_AT + (PLANE ? PANEL : 0);
    static constexpr bool START_COUNTS = true;

    using Sum = ByteSum<PLANE ? 31 : 15>;

    static inline Words total(Words total, Words part) { return add_unscaled(total, part); }

    static inline Words unit(const uint32_t* block, int u) {
        const Words word = load_words(block + UNITS_AT + u % 4 * PANEL);
        const Words low = (u < 4 ? word : word >> 4) & 0x0f0f0f0fu;
        if constexpr (!PLANE) return low;
        return low | (load_words(block + PLANE_AT) >> u & 0x01010101u) << 4;
    }
};

// Bytes q + 128, as in int8.
struct Q8Block {
    static constexpr bool HAS_MIN = false;
    static constexpr int PANEL_WORDS = block_layout(Q8_0).panel_words;
    static constexpr bool START_COUNTS = Int8Unit::IS_BIASED;

    struct Sum {
        static constexpr int CAPACITY = 8;
        Words sum = {};
        inline void add(Words x, Words w) { sum = Int8Unit::add(sum, x, w); }
    };

    static inline Words total(Words total, Words part) { return total + part; }

    static inline Words unit(const uint32_t* block, int u) {
        return Int8Unit::prepare(load_words(block + PANEL / 2 + u * PANEL));
    }
};

template <class Format>
struct BlocksOf32 {
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : LANES == 8 ? 3 : 2;
    static constexpr int BLOCKS = 8;  // per call of add(): few enough to stay in the first-level cache for all columns
    static constexpr int UNITS = 8;
    static constexpr int ROW_WORDS = UNITS + 2;

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
        const auto* d = reinterpret_cast<const uint16_t*>(block) + column;
        const Vec d0 = load_float16(d), d1 = load_float16(d + LANES);
        const uint32_t* scales = x + (UNITS + 1) * stride;
        if constexpr (Format::HAS_MIN) {
            const Vec m0 = load_float16(d + PANEL), m1 = load_float16(d + PANEL + LANES);
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                const Vec sum = broadcast(static_cast<float>(static_cast<int32_t>(x[m])));
                const Vec scale = broadcast(float_of(scales[m]));
                totals[m][0] += (to_float(sums[m][0]) * d0 + sum * m0) * scale;
                totals[m][1] += (to_float(sums[m][1]) * d1 + sum * m1) * scale;
            }
        } else {
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                const Words start = broadcast_word(Format::START_COUNTS ? x[m] : 0);
                const Vec scale = broadcast(float_of(scales[m]));
                totals[m][0] += to_float(sums[m][0] + start) * d0 * scale;
                totals[m][1] += to_float(sums[m][1] + start) * d1 * scale;
            }
        }
    }

    template <int ROWS>
    static inline void add_units(Words (&sums)[ROWS][2], const uint32_t* x, int stride, const uint32_t* block) {
        constexpr int CHUNK = std::min(UNITS, Format::Sum::CAPACITY);
#pragma GCC unroll 8
        for (int first = 0; first < UNITS; first += CHUNK) {
            typename Format::Sum parts[ROWS][2];
#pragma GCC unroll 8
            for (int u = first; u < first + CHUNK; ++u) {
                __builtin_prefetch(block + Format::PANEL_WORDS * BLOCKS + u * PANEL);
                if constexpr (LANES == 16) __builtin_prefetch(block + Format::PANEL_WORDS * BLOCKS + u * PANEL + LANES);
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
