// Product blocks with int4 weights. Included by gemm/gemm.cpp only.
#pragma once

#include "gemm/blocks/byte_sums.h"

namespace smoe {
namespace SMOE_ISA {

struct Int4Block {
    static constexpr int FORMAT = INT4;
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : LANES == 8 || SMOE_MATRIX_PRODUCTS ? 4 : 2;

    // What add_in_parts() asks for; a block is a group.
    static constexpr int NUMBERS = GROUP, FIRST_WORD = 0, BLOCKS = 16, ROW_WORDS = INT4_ROW_WORDS,
                         PANEL_WORDS = INT4_PANEL_WORDS;

    template <int ROWS>
    static constexpr int COLUMNS_OF = COLUMNS;

    // Add the products of some groups to out[ROWS][PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int groups, float* out) {
        Vec totals[ROWS][2];
        load_sums(out, column, totals);
        const uint32_t* ahead = share_of_next(panel, PANEL_WORDS * groups, column);
        for (; groups; --groups) {
            add_group<true>(totals, x, stride, panel, column, ahead);
            x += ROW_WORDS * stride;
            panel += PANEL_WORDS;
            ahead += PANEL_WORDS / 2;
        }
        store_sums(out, column, totals);
    }

    // Make results of the totals of all groups.
    static void scale(int rows, const uint32_t* tile, const uint32_t*, int64_t groups, float* out) {
        const uint32_t* x_scales = tile + groups * ROW_WORDS * rows;
        for (int m = 0; m < rows; ++m, out += PANEL)
            for (int column = 0; column < PANEL; column += LANES)
                store(out + column, load(out + column) * broadcast(float_of(x_scales[m])));
    }

    template <int ROWS, int VECTORS>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out) {
        Vec totals[ROWS][VECTORS] = {};
        for (int64_t group = ceil_div(K, GROUP); group; --group) {
            add_group<false>(totals, x, stride, panel, column, panel);
            x += INT4_ROW_WORDS * stride;
            panel += INT4_PANEL_WORDS;
        }
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
            for (int part = 0; part < VECTORS; ++part) totals[m][part] *= broadcast(float_of(x[m]));
        store_sums(out, column, totals);
    }

  private:
    using GroupSum = ByteSum<15>;
    static_assert(GroupSum::CAPACITY >= GROUP / 4);

    // True if a group's sums begin at the row's number instead of zero.
    template <int ROWS>
    static constexpr bool STARTS_IN_SUMS = !SUMS_OF_16_BITS && !IN_PAIRS<ROWS>;

    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void start_sums(GroupSum (&sums)[ROWS][VECTORS], const uint32_t* x) {
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
            for (int part = 0; part < VECTORS; ++part) sums[m][part].sum = broadcast_word(x[m]);
    }

    template <bool IN_PARTS, int WORDS, int VECTORS>
    [[gnu::always_inline]] static inline void prefetch(const uint32_t* w, int column, const uint32_t*& ahead) {
        if constexpr (!IN_PARTS) return prefetch_words<WORDS, VECTORS>(w, column);
        prefetch_in_place(ahead);
        ahead += LINE_WORDS;
    }

    // Unrolled for 8 lanes, GCC computes all addresses first and keeps them in memory.
    static constexpr int UNROLLED_PAIRS = LANES == 8 ? 1 : 4;

    // IN_PARTS: prefetch 5 lines from `ahead` on.
    template <bool IN_PARTS, int ROWS, int VECTORS>
    static inline void add_group(Vec (&totals)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* panel,
                                 int column, const uint32_t* ahead) {
        GroupSum sums[ROWS][VECTORS];
        if constexpr (STARTS_IN_SUMS<ROWS>) start_sums(sums, x);
        const uint32_t *w = panel + PANEL / 2, *units = x + stride;
        prefetch<IN_PARTS, PANEL / 2, VECTORS>(panel, column, ahead);
        if constexpr (IN_PAIRS<ROWS>) {
            multiply_in_pairs(sums, units, stride, w, column);
        } else {
            if constexpr (STARTS_SUMS) {
                prefetch<IN_PARTS, PANEL, VECTORS>(w, column, ahead);
                add_pair<true>(sums, units, stride, w + column);
                units += 2 * stride;
                w += PANEL;
            }
#pragma GCC unroll UNROLLED_PAIRS
            for (int pair = STARTS_SUMS; pair < GROUP / 8; ++pair) {
                prefetch<IN_PARTS, PANEL, VECTORS>(w, column, ahead);
                add_pair<false>(sums, units, stride, w + column);
                units += 2 * stride;
                w += PANEL;
            }
        }
        const auto* scales = reinterpret_cast<const uint16_t*>(panel) + column;
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) {
            const Vec scale = load(scales + part * LANES);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) {
                Words sum = sums[m][part].sum;
                if constexpr (!STARTS_IN_SUMS<ROWS>) sum = add_unscaled(broadcast_word(x[m]), sum);
                totals[m][part] += to_float(sum) * scale;
            }
        }
    }

    // Compute the sums of a group, with both units of a word in one instruction.
    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void multiply_in_pairs(GroupSum (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                                int stride, const uint32_t* w, int column) {
        PairedSums<Words, ROWS, VECTORS> paired;
#pragma GCC unroll 4
        for (int pair = 0; pair < GROUP / 8; ++pair) {
            prefetch_words<PANEL, VECTORS>(w, column);
            Words low[VECTORS], high[VECTORS];
#pragma GCC unroll 2
            for (int part = 0; part < VECTORS; ++part) {
                const Words word = load_words(w + column + part * LANES);
                low[part] = word & 0x0f0f0f0fu;
                high[part] = word >> 4 & 0x0f0f0f0fu;
            }
            paired.add(x, stride, low, high);
            x += 2 * stride;
            w += PANEL;
        }
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int part = 0; part < VECTORS; ++part) sums[m][part].sum = paired.row(m, part);
    }

    // Add the products of two units: the low and the high half bytes of w. Or start the sums with them.
    template <bool STARTS, int ROWS, int VECTORS>
    static inline void add_pair(GroupSum (&sums)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* w) {
        Words units[VECTORS];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) units[part] = load_words(w + part * LANES) & 0x0f0f0f0fu;
        add_products<STARTS>(sums, x, units);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) units[part] = load_words(w + part * LANES) >> 4 & 0x0f0f0f0fu;
        add_products<false>(sums, x + stride, units);
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
