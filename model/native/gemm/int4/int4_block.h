// Product blocks with int4 weights, made into int8's bytes as they are read. Included by gemm/gemm.cpp only.
#pragma once

#include "gemm/gemm_int8.h"
#include "gemm/int4/int4_weights.h"

namespace smoe {
namespace SMOE_ISA {

struct Int4Block {
    static constexpr int FORMAT = INT4;
    // The products of ARM's I8MM leave registers for fewer sums beside the factors.
    static constexpr int MAX_ROWS = SMOE_MATRIX_PRODUCTS ? 8 : Int8Block::MAX_ROWS;

    // What add_in_parts() asks for.
    static constexpr int NUMBERS = INT4_BLOCK, FIRST_WORD = 1, BLOCKS = 8, ROW_WORDS = INT4_UNITS,
                         PANEL_WORDS = INT4_BLOCK_WORDS;

    template <int ROWS>
    static constexpr int COLUMNS_OF = COLUMNS;

    // Add the products of some blocks to sums: integers, in the place of the floats of out[ROWS][PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int blocks, float* out) {
        Words sums[ROWS][2];
        load_sums(out, column, sums);
        const uint32_t* ahead = share_of_next(panel, PANEL_WORDS * blocks, column);
        for (; blocks; --blocks) {
            add_block<true>(sums, x, stride, panel, column, ahead);
            x += ROW_WORDS * stride;
            panel += PANEL_WORDS;
            ahead += PANEL_WORDS / 2;
        }
        store_sums(out, column, sums);
    }

    template <int ROWS, int VECTORS>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out) {
        const uint32_t* starts = x;
        x += stride;
        Words sums[ROWS][VECTORS] = {};
        if constexpr (IN_PAIRS<ROWS>) {
            multiply_in_pairs(sums, x, stride, panel, column, K);
            x += INT4_UNITS * int4_blocks(K) * stride;
            panel += INT4_BLOCK_WORDS * int4_blocks(K);
        } else {
            for (int64_t block = int4_blocks(K); block; --block) {
                add_block<false>(sums, x, stride, panel, column, panel);
                x += INT4_UNITS * stride;
                panel += INT4_BLOCK_WORDS;
            }
        }
        store_scaled(sums, starts, x, panel, column, out);
    }

  private:
    static constexpr int UNROLLED_PAIRS = LANES == 16 ? 4 : 1;

    // IN_PARTS: prefetch 9 lines from `ahead` on.
    template <bool IN_PARTS, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_block(Words (&sums)[ROWS][VECTORS], const uint32_t* x, int stride,
                                                        const uint32_t* block, int column, const uint32_t* ahead) {
        prefetch<IN_PARTS, PANEL / 2, VECTORS>(block, column, ahead);
        add_group<IN_PARTS, 0>(sums, x, stride, block, column, ahead);
        add_group<IN_PARTS, 1>(sums, x + INT4_UNITS / 2 * stride, stride, block, column, ahead);
    }

    template <bool IN_PARTS, int HALF, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_group(Words (&sums)[ROWS][VECTORS], const uint32_t* x, int stride,
                                                        const uint32_t* block, int column, const uint32_t*& ahead) {
        ByteFactors factors[VECTORS];
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) factors[part] = byte_factors<HALF>(block, column + part * LANES);
        const uint32_t* w = words_of_group<HALF>(block) + column;
#pragma GCC unroll UNROLLED_PAIRS
        for (int pair = 0; pair < WORDS_OF_GROUP; ++pair) {
            prefetch<IN_PARTS, PANEL, VECTORS>(w - column, column, ahead);
            add_units<0>(sums, x, w, factors);
            add_units<4>(sums, x + stride, w, factors);
            x += 2 * stride;
            w += PANEL;
        }
    }

    // Add the products of the units in the low (SHIFT = 0) or the high half bytes of w.
    template <int SHIFT, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_units(Words (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                        const uint32_t* w, const ByteFactors (&factors)[VECTORS]) {
        Words units[VECTORS];
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part)
            units[part] = Int8Unit::prepare(factors[part].unit(load_words(w + part * LANES) >> SHIFT));
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Words row = broadcast_word(x[m]);
#pragma GCC unroll 8
            for (int part = 0; part < VECTORS; ++part) sums[m][part] = Int8Unit::add(sums[m][part], row, units[part]);
        }
    }

#if SMOE_MATRIX_PRODUCTS
    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void multiply_in_pairs(Words (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                                int stride, const uint32_t* panel, int column,
                                                                int64_t K) {
        PairedSums<Words, ROWS, VECTORS> paired;
        for (int64_t block = int4_blocks(K); block; --block) {
            prefetch_words<PANEL / 2, VECTORS>(panel, column);
            add_group_in_pairs<0>(paired, x, stride, panel, column);
            add_group_in_pairs<1>(paired, x + INT4_UNITS / 2 * stride, stride, panel, column);
            x += INT4_UNITS * stride;
            panel += INT4_BLOCK_WORDS;
        }
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part) sums[m][part] = paired.row(m, part);
    }

    template <int HALF, int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void add_group_in_pairs(PairedSums<Words, ROWS, VECTORS>& paired,
                                                                 const uint32_t* x, int stride, const uint32_t* block,
                                                                 int column) {
        ByteFactors factors[VECTORS];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) factors[part] = byte_factors<HALF>(block, column + part * LANES);
        const uint32_t* w = words_of_group<HALF>(block);
#pragma GCC unroll UNROLLED_PAIRS
        for (int pair = 0; pair < WORDS_OF_GROUP; ++pair) {
            prefetch_words<PANEL, VECTORS>(w, column);
            Words low[VECTORS], high[VECTORS];
#pragma GCC unroll 4
            for (int part = 0; part < VECTORS; ++part) {
                const Words word = load_words(w + column + part * LANES);
                low[part] = Int8Unit::prepare(factors[part].unit(word));
                high[part] = Int8Unit::prepare(factors[part].unit(word >> 4));
            }
            paired.add(x, stride, low, high);
            x += 2 * stride;
            w += PANEL;
        }
    }
#endif
};

}  // namespace SMOE_ISA
}  // namespace smoe
