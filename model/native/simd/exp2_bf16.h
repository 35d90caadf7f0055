// 2^x for results that are rounded to bfloat16. Included by kernel files only.
#pragma once

#if defined(__AVX512DQ__)

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// 2^x within a relative error of 9e-5, a fortieth of bfloat16's largest rounding; 1 for 0, 0 for minus infinity, NaN
// for NaN.
//
// x = n + r with n the largest integer that is not above x, 2^r by a minimax polynomial of degree 3 over 0 .. 1 that is
// 1 at 0.
inline Vec exp2_bf16(Vec x) {
    const Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = broadcast(0.07706704f);
    p = fma(p, r, broadcast(0.227644995f));
    p = fma(p, r, broadcast(0.695116758f));
    p = fma(p, r, broadcast(1.0f));
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
