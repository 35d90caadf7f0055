// exp of our own: what libm computes differs between machines. Included by kernel files only.
#pragma once

#include "vec.h"

namespace smoe {
namespace SMOE_ISA {

// e^x within 2 units of the last place; 0 below -104, infinity above 88.73, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts: Cody & Waite 1980), e^r by its Taylor polynomial of degree 7,
// 2^n in two factors, since n can leave the range of an exponent by a little.
inline Vec exp(Vec x) {
    x = x < -104.0f ? broadcast(-104.0f) : x;
    x = x > 89.0f ? broadcast(89.0f) : x;
    constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    const Vec n = (x * 1.44269504088896341f + TO_INTEGER) - TO_INTEGER;
    const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
    Vec p = broadcast(1.0f / 5040);
    p = fma(p, r, broadcast(1.0f / 720));
    p = fma(p, r, broadcast(1.0f / 120));
    p = fma(p, r, broadcast(1.0f / 24));
    p = fma(p, r, broadcast(1.0f / 6));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    // n + 256 is positive, also in the bits of the sum with TO_INTEGER.
    const Words shifted = bits(n + (TO_INTEGER + 256.0f)) & 0x1ffu;
    const Words half = shifted >> 1;
    const Vec low = from_bits((half + (127u - 128u)) << 23);
    const Vec high = from_bits((shifted - half + (127u - 128u)) << 23);
    return p * low * high;
}

inline float exp_one(float x) {
    Vec e = exp(broadcast(x));
    return e[0];
}

}  // namespace SMOE_ISA
}  // namespace smoe
