// e^x in float32. libm's results differ between machines; these do not. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

#if defined(__AVX512F__)

inline Vec nearest_integer(Vec x) {
    return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec times_power_of_two(Vec x, Vec n) { return (Vec)_mm512_scalef_ps((__m512)x, (__m512)n); }

#else

constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

// Round to nearest, ties to even; |x| < 2^22.
inline Vec nearest_integer(Vec x) { return (x + SHIFT) - SHIFT; }

// x * 2^n for integer n, -256 <= n < 256, as two factors, because n can slightly exceed the range of an exponent.
inline Vec times_power_of_two(Vec x, Vec n) {
    // n + 256 is positive, also in the bits of the sum with SHIFT.
    const Words shifted = bits(n + (SHIFT + 256.0f)) & 0x1ffu;
    const Words half = shifted >> 1;
    const Vec low = from_bits((half + (127u - 128u)) << 23);
    const Vec high = from_bits((shifted - half + (127u - 128u)) << 23);
    return x * low * high;
}

#endif

// e^x within 2 units in the last place; 0 below -104, infinity above 88.73, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts: Cody & Waite 1980), e^r by its Taylor polynomial of degree 7.
inline Vec exp(Vec x) {
    x = smaller(broadcast(89.0f), larger(broadcast(-104.0f), x));
    const Vec n = nearest_integer(x * 1.44269504088896341f);
    const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
    Vec p = broadcast(1.0f / 5040);
    p = fma(p, r, broadcast(1.0f / 720));
    p = fma(p, r, broadcast(1.0f / 120));
    p = fma(p, r, broadcast(1.0f / 24));
    p = fma(p, r, broadcast(1.0f / 6));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return times_power_of_two(p, n);
}

inline float exp_one(float x) {
    Vec e = exp(broadcast(x));
    return e[0];
}

}  // namespace SMOE_ISA
}  // namespace smoe
