// e^x and ln x in float64, with the same results on every machine. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int WIDE_LANES = LANES / 2;
typedef double Wide __attribute__((vector_size(LANES * 4)));
typedef uint64_t WideWords __attribute__((vector_size(LANES * 4)));
typedef float Narrow __attribute__((vector_size(LANES * 2)));

inline Wide load_wide(const float* p) {
    Narrow v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Wide);
}

// e^x for x <= 0 within 2 units in the last place; 0 below -700.
//
// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts: Cody & Waite 1980), e^r by its Taylor polynomial of
// degree 13.
inline Wide exp(Wide x) {
    const Wide given = x;
    x = x < -700.0 ? Wide{} - 700.0 : x;
    constexpr double TO_INTEGER = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const Wide shifted = x * 1.44269504088896340736 + TO_INTEGER;
    const Wide n = shifted - TO_INTEGER;
    const Wide r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    Wide p = Wide{} + 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const Wide power = (Wide)(((WideWords)shifted + 1023) << 52);  // 2^n: the low bits hold n
    return given < -700.0 ? Wide{} : p * power;
}

// ln x of a finite x >= 1: x = m 2^n with m in [0.7, 1.41), ln m = 2 artanh((m - 1) / (m + 1)) by its series.
inline double log_one(double x) {
    uint64_t word;
    std::memcpy(&word, &x, sizeof word);
    auto n = static_cast<int64_t>(word >> 52) - 1023;
    word = (word & 0xfffffffffffffu) | 0x3ff0000000000000u;
    double m;
    std::memcpy(&m, &word, sizeof m);
    if (m > 1.4142135623730951) m *= 0.5, ++n;
    const double s = (m - 1.0) / (m + 1.0), square = s * s;
    double series = 0.0;
    for (int k = 23; k >= 1; k -= 2) series = series * square + 1.0 / k;
    return static_cast<double>(n) * 0.69314718055994530942 + 2.0 * s * series;
}

}  // namespace SMOE_ISA
}  // namespace smoe
