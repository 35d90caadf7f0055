// bfloat16 weights in 12 bits, without loss. Rows of x are those of bfloat16, and so are the bits of results.
//
// The low byte of a weight (the last bit of its exponent, and the mantissa) is stored as it is. The high byte (the
// sign, and the upper bits of the exponent) has a code of 4 bits: its place in the panel's table, which holds the eight
// most frequent upper bits with either sign. They cover 16 exponents. Trained weights rarely have others (DFloat11,
// arXiv 2504.11651, counts 2.6 bits of information in an exponent); those weights have patches, with their high bytes,
// of which a panel holds one per 128 weights.
//
// A pair is two neighbouring units, four neighbouring k of each output; K is zero-padded to whole pairs.
//   panel: table [16] bytes, number of patches [1] and zeros [11], patches [patch_words()], pairs [coded_pairs()]
//   patch: number of the weight in [depth][PANEL][2], times 256, plus the high byte; ascending
//   pair: codes [64] bytes, of the first unit in the low half bytes and of the second in the high ones; then low bytes
//   [2 units][64]. Of each 16 codes or low bytes the first 8 belong to outputs 4 i .. 4 i + 3 and the other 8 to
//   outputs 16 + 4 i .. 16 + 4 i + 3, i = 0 .. 3.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gemm/quant_formats.h"

namespace smoe {

constexpr int PAIR_WORDS = 3 * 16;
constexpr int PATCH_COUNT_AT = 4;  // word of the panel
constexpr int FIRST_PATCH_AT = 16;

inline int64_t coded_pairs(int64_t K) { return ceil_div(K, 4); }
inline int64_t patch_words(int64_t K) { return ceil_div(K, 64) * 16; }
inline int64_t first_pair_at(int64_t K) { return FIRST_PATCH_AT + patch_words(K); }
inline int64_t coded_panel_words(int64_t K) { return first_pair_at(K) + coded_pairs(K) * PAIR_WORDS; }

// Pack outputs first .. first + 31 of a bfloat16 weight [O, K] into a coded panel; zeros past the last output. Returns
// false if the panel has no room for all patches, or more than 2^24 weights.
bool encode_panel(const uint16_t* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel);

}  // namespace smoe
