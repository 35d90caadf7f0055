// The int8 and int4 formats: integer weights, multiplied by rows of x that are quantized to int8 on the fly.
//
// A row of x has scale = max |x| / 127 and x ~ scale * q with q in -127 .. 127. It depends on the row alone. A unit is
// four q of neighbouring k; K is zero-padded.
//
// int8: one scale per output, w ~ scale * q. Weights are stored as q + 128, because VNNI's dot products need an
// unsigned first operand; so a sum starts at -128 * (sum of the row's q). Sums are exact, in 32 bits for K < 133,000.
//   row: [start of the sums, units ..., scale]          panel: units [depth][PANEL], then scales [PANEL] float32
// int4: groups of GROUP k with a bfloat16 scale per output and group, q in -8 .. 7 stored as q + 8. A group's sum is
// exact; the groups are added up in float32, in ascending order.
//   row: per group [start of the sum, 8 units], then the scale
//   panel: per group scales [PANEL] bfloat16, then [4][PANEL] words: low half bytes are unit 2i, high ones unit 2i + 1
//
// A row of x, or a row or group of weights, that contains NaN or infinity has the scale NaN.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// True if rows of x are quantized before they are multiplied; block formats are too.
inline bool is_quantized(int format) { return format >= INT8; }

constexpr int GROUP = 32;
constexpr int INT4_ROW_WORDS = 1 + GROUP / 4;
constexpr int INT4_PANEL_WORDS = 32 / 2 + 32 * GROUP / 8;

// Quantize outputs first .. first + 31 of weight [O, K] of dtype into a panel; zeros past the last output.
SMOE_PER_ISA(void quantize_panel(int dtype, int format, const void* weight, int64_t first, int64_t O, int64_t K,
                                 uint32_t* panel))

}  // namespace smoe
