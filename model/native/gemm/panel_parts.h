// Passes of integer kernels over a panel. Included by kernel files only.
//
// A pass multiplies a few rows by some columns: those whose sums fit into registers. With 8 lanes several passes share
// a panel, so each multiplies a part of it before they all go on: memory is read once, and while they all multiply.
// In int8 and int4, and where blocks were unpacked on AVX-512, each prefetches its share of the next part, in the order
// of the addresses (decisions 104 and 114).
#pragma once

#include <algorithm>
#include <utility>

#include "gemm/gemm.h"
#include "simd/prefetch.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// With 16 lanes one pass computes all columns; parts were not measured with 4 lanes.
constexpr bool HAS_PARTS = LANES == 8;

// Add the products of `blocks` blocks and of some columns, from `column` on, to out[rows][PANEL].
using Add = void (*)(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int blocks, float* out);

struct AddColumns {
    Add add;
    int columns;  // per call
};

// Table of functions for 1, 2, .. MAX_ROWS rows.
template <class Kernel, int... ROWS>
AddColumns add_of(int rows, std::integer_sequence<int, ROWS...>) {
    static constexpr AddColumns of_rows[] = {
        {Kernel::template add<ROWS + 1>, Kernel::template COLUMNS_OF<ROWS + 1>}...};
    return of_rows[rows - 1];
}

// Where the pass from `column` on prefetches while it multiplies a part of `words` words: its share of the next one.
inline const uint32_t* share_of_next(const uint32_t* part, int words, int column) {
    return part + words + words * column / PANEL;
}

// Add the products of a tile's rows with some blocks to out[rows][PANEL], pass by pass. Before each, prefetch its share
// of the `words` words from `ahead` on.
template <class Kernel>
[[gnu::always_inline]] inline void add_part(int rows, const uint32_t* tile, const uint32_t* part, int blocks,
                                            float* out, const uint32_t* ahead = nullptr, int64_t words = 0) {
    for (int first = 0, count; first < rows; first += count) {
        const int left = rows - first;
        count = static_cast<int>(ceil_div(left, ceil_div(left, Kernel::MAX_ROWS)));  // 5 rows: 3 + 2, not 4 + 1
        for (int64_t at = words * first / rows; at < words * (first + count) / rows; at += LINE_WORDS)
            prefetch_in_place(ahead + at + NEARER_WORDS);
        const auto [add, columns] = add_of<Kernel>(count, std::make_integer_sequence<int, Kernel::MAX_ROWS>());
        for (int column = 0; column < PANEL; column += columns)
            add(tile + first, rows, part, column, blocks, out + first * PANEL);
    }
}

// Add the products of a tile's rows with a panel to out[rows][PANEL]: all passes over a part of the blocks, then over
// the next. Parts are even, at most Kernel::BLOCKS blocks: a short one would prefetch little of the next panel.
template <class Kernel>
void add_in_parts(int rows, const uint32_t* tile, const uint32_t* panel, int64_t num_blocks, float* out) {
    if (!num_blocks) return;
    const int64_t part = ceil_div(num_blocks, ceil_div(num_blocks, Kernel::BLOCKS));
    for (; num_blocks > 0; num_blocks -= part) {
        const auto blocks = static_cast<int>(std::min(part, num_blocks));
        add_part<Kernel>(rows, tile, panel, blocks, out);
        tile += part * Kernel::ROW_WORDS * rows;
        panel += part * Kernel::PANEL_WORDS;
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
