// What the quantisation of rows and of weights share. Included by kernel files only.
#pragma once

#include <limits>

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// x ~ scale * round(x * inverse).
struct Scale {
    float scale, inverse;
};

// For numbers up to `largest` in magnitude: -127 .. 127. Numbers that are all next to nothing become zeros.
inline Scale scale_of(float largest) {
    if (!(largest < std::numeric_limits<float>::infinity())) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (largest < 1e-30f) return {0, 0};
    return {largest / 127, 127 / largest};
}

constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, ties to even

// Words whose low bits are the integer; their difference to those of 0 is the integer.
inline Words round_to_integers(Vec x) { return bits(x + TO_INTEGER); }

}  // namespace SMOE_ISA
}  // namespace smoe
