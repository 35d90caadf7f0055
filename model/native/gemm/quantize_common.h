// Quantization code shared by activations and weights. Included by kernel files only.
#pragma once

#include <limits>

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// x ~ scale * round(x * inverse).
struct Scale {
    float scale, inverse;
};

// Scale for numbers up to `largest` in magnitude, mapped to -127 .. 127. A row of negligible numbers is mapped to
// zeros.
inline Scale scale_of(float largest) {
    if (!(largest < std::numeric_limits<float>::infinity())) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (largest < 1e-30f) return {0, 0};
    return {largest / 127, 127 / largest};
}

constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even

// Round to integers: the low bits of each word hold the integer, as the difference to the word of 0.
inline Words round_to_integers(Vec x) { return bits(x + TO_INTEGER); }

}  // namespace SMOE_ISA
}  // namespace smoe
