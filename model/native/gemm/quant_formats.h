// The int8 and int4 formats: integer weights, multiplied by rows of x that are quantized to int8 on the fly.
//
// A row of x has scale = max |x| / 127 and x ~ scale * q with q in -127 .. 127. It depends on the row alone. A unit is
// four q of neighbouring k; K is zero-padded.
//
// int8: one scale per output, w ~ scale * q. Weights are stored as q + 128, because VNNI's dot products need an
// unsigned first operand; so a sum starts at -128 * (sum of the row's q). Sums are exact, in 32 bits for K < 133,000.
//   row: [start of the sums, units ..., scale]          panel: units [depth][PANEL], then scales [PANEL] float32
// int4: w ~ d s (q - z), with a float32 d per output, and per output and group of GROUP k a whole number s, 1 .. 15,
// and a zero point z, 0 .. 15; q in 0 .. 15. s (q - z) lies in -128 .. 127: these are weights of int8, in half the
// bytes, and sums are as exact. A block is two groups.
//   row: as int8's, zero-padded to whole blocks; where bytes' products are added up in 16 bits (SUMS_OF_16_BITS,
//   simd/integer_dot_products.h) per block [minus the sum of the row's q in each group, two int16, the first in the low
//   half; 16 units], then the scale
//   panel: per block s + 16 z of both groups [PANEL][2] bytes, then words [2 groups][4][PANEL]: low half bytes are unit
//   2i, high ones unit 2i + 1; after the blocks d [PANEL] float32
//
// A row of x or of weights that contains NaN or infinity has the scale NaN.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// True if rows of x are quantized before they are multiplied; block formats are too.
inline bool is_quantized(int format) { return format >= INT8 && format != CODED_BFLOAT16; }

// The format of the rows of x that a matrix of this format multiplies.
constexpr int row_format(int format) { return format == CODED_BFLOAT16 ? BFLOAT16 : format; }

constexpr int GROUP = 32;
constexpr int INT4_BLOCK = 2 * GROUP;
constexpr int INT4_BLOCK_WORDS = 32 / 2 + 32 * INT4_BLOCK / 8;  // of a panel

inline int64_t int4_blocks(int64_t K) { return ceil_div(K, INT4_BLOCK); }

// Quantize outputs first .. first + 31 of weight [O, K] of dtype into a panel; zeros past the last output.
SMOE_PER_ISA(void quantize_panel(int dtype, int format, const void* weight, int64_t first, int64_t O, int64_t K,
                                 uint32_t* panel))

}  // namespace smoe
