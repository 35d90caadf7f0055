// Products with packed weights: the tiles that linear, ffn, moe and head are made of.
//
// A packed [O, K] matrix is a row of panels of PANEL outputs, each [depth][PANEL] units, where a unit is one float32
// or two bfloat16 of neighbouring k. Rows of x are packed by tiles: [depth][rows] units. So a tile's product with a
// panel reads both in order. An odd K is filled up with a zero.
//
// One accumulator per output, k ascending, whatever the number of rows beside it: a row's result is its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace smoe {

constexpr int PANEL = 32;
constexpr int MAX_TILE_ROWS = 12;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Units along k.
inline int64_t depth_of(int dtype, int64_t K) { return dtype == BFLOAT16 ? ceil_div(K, 2) : K; }

inline int64_t panel_units(int dtype, int64_t K) { return depth_of(dtype, K) * PANEL; }

// weight [O, K] -> packed; dtype as in smoe_native.h.
void pack(Pool& pool, int dtype, const void* weight, void* packed, int64_t O, int64_t K);
// w1, w3 [F, K] -> their panels in turns: w1's first, w3's first, w1's second, ...
void pack_pair(Pool& pool, int dtype, const void* w1, const void* w3, void* packed, int64_t F, int64_t K);
// Rows row_ids[0] .. row_ids[rows - 1] of x [.., K] -> tile.
void pack_tile(int dtype, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile);

// out[rows][PANEL] = tile times panel, in float32; rows <= MAX_TILE_ROWS.
SMOE_PER_ISA(void multiply(int dtype, int rows, const uint32_t* tile, const uint32_t* panel, int64_t depth, float* out))
SMOE_PER_ISA(void linear(Pool& pool, int dtype, const void* x, const void* packed, void* y, int64_t T, int64_t O,
                         int64_t K, bool wide_output))

}  // namespace smoe
