// Product blocks with int4 weights where products of bytes are added up in 16 bits: a sum of a group's half bytes fits,
// one of int8's bytes does not. Included by gemm/gemm.cpp only.
#pragma once

#include "gemm/blocks/byte_sums.h"
#include "gemm/int4/int4_weights.h"

namespace smoe {
namespace SMOE_ISA {

// Sums of products with s (q - z): per block s0 sum(q x) + s1 sum(q x) of its groups, and (s0 z0, s1 z1) times the
// row's word (-sum(x), -sum(x)).
struct Int4GroupSums {
    static constexpr int FORMAT = INT4;
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : 4;

    // What add_in_parts() asks for.
    static constexpr int NUMBERS = INT4_BLOCK, FIRST_WORD = 0, BLOCKS = 8, ROW_WORDS = 1 + INT4_UNITS,
                         PANEL_WORDS = INT4_BLOCK_WORDS;

    template <int ROWS>
    static constexpr int COLUMNS_OF = COLUMNS;

    // Add the products of some blocks to sums: integers, in the place of the floats of out[ROWS][PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int blocks, float* out) {
        Words totals[ROWS][2];
        load_sums(out, column, totals);
        const uint32_t* ahead = share_of_next(panel, PANEL_WORDS * blocks, column);
        for (; blocks; --blocks) {
            add_block<true>(totals, x, stride, panel, column, ahead);
            x += ROW_WORDS * stride;
            panel += PANEL_WORDS;
            ahead += PANEL_WORDS / 2;
        }
        store_sums(out, column, totals);
    }

    template <int ROWS, int VECTORS>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out) {
        Words totals[ROWS][VECTORS] = {};
        for (int64_t block = int4_blocks(K); block; --block) {
            add_block<false>(totals, x, stride, panel, column, panel);
            x += ROW_WORDS * stride;
            panel += PANEL_WORDS;
        }
        store_scaled(totals, x, x, panel, column, out);
    }

  private:
    using GroupSum = ByteSum<15>;
    static_assert(GroupSum::CAPACITY >= GROUP / 4);

    // Unrolled for 8 lanes, GCC computes all addresses first and keeps them in memory.
    static constexpr int UNROLLED_PAIRS = LANES == 8 ? 1 : 4;

    // IN_PARTS: prefetch 9 lines from `ahead` on.
    template <bool IN_PARTS, int ROWS, int VECTORS>
    static inline void add_block(Words (&totals)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* block,
                                 int column, const uint32_t* ahead) {
        prefetch<IN_PARTS, PANEL / 2, VECTORS>(block, column, ahead);
        const uint32_t* units = x + stride;
        add_group<IN_PARTS, 0>(totals, units, stride, block, column, ahead);
        add_group<IN_PARTS, 1>(totals, units + INT4_UNITS / 2 * stride, stride, block, column, ahead);
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) {
            const Words factors = factor_pairs(block, column + part * LANES);
            const Words products = multiply_halves(factors & 0x000f000fu, factors >> 4 & 0x000f000fu);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) totals[m][part] = add_pairs(totals[m][part], products, broadcast_word(x[m]));
        }
    }

    template <bool IN_PARTS, int HALF, int ROWS, int VECTORS>
    static inline void add_group(Words (&totals)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* block,
                                 int column, const uint32_t*& ahead) {
        GroupSum sums[ROWS][VECTORS];
        const uint32_t* w = words_of_group<HALF>(block);
        if constexpr (STARTS_SUMS) {
            prefetch<IN_PARTS, PANEL, VECTORS>(w, column, ahead);
            add_pair<true>(sums, x, stride, w + column);
            x += 2 * stride;
            w += PANEL;
        }
#pragma GCC unroll UNROLLED_PAIRS
        for (int pair = STARTS_SUMS; pair < WORDS_OF_GROUP; ++pair) {
            prefetch<IN_PARTS, PANEL, VECTORS>(w, column, ahead);
            add_pair<false>(sums, x, stride, w + column);
            x += 2 * stride;
            w += PANEL;
        }
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) {
            const Words s = repeat_half<HALF>(factor_pairs(block, column + part * LANES) & 0x000f000fu);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) totals[m][part] = add_pairs(totals[m][part], sums[m][part].sum, s);
        }
    }

    // s + 16 z of both groups, in the halves of each lane.
    static inline Words factor_pairs(const uint32_t* block, int column) {
        const Words bytes = load_factors(block, column);
        return (bytes | bytes << 8) & 0x00ff00ffu;
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
