// Transpose of a square of numbers in registers. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

#if defined(__AVX512F__)
#define SMOE_ZIP(a, b, i)                                                                                       \
    __builtin_shufflevector(a, b, i, 16 + i, i + 1, 17 + i, i + 2, 18 + i, i + 3, 19 + i, i + 4, 20 + i, i + 5, \
                            21 + i, i + 6, 22 + i, i + 7, 23 + i)
#elif defined(__AVX2__)
#define SMOE_ZIP(a, b, i) __builtin_shufflevector(a, b, i, 8 + i, i + 1, 9 + i, i + 2, 10 + i, i + 3, 11 + i)
#else
#define SMOE_ZIP(a, b, i) __builtin_shufflevector(a, b, i, 4 + i, i + 1, 5 + i)
#endif

// Interleave the first halves of a and b, or their second halves.
// Example, 4 lanes: a = 0 1 2 3 and b = 4 5 6 7 give 0 4 1 5 and 2 6 3 7.
inline Vec zip_low(Vec a, Vec b) { return SMOE_ZIP(a, b, 0); }
inline Vec zip_high(Vec a, Vec b) { return SMOE_ZIP(a, b, (LANES / 2)); }

#undef SMOE_ZIP

// Transpose in place: rows[i][j] becomes rows[j][i]. Zipping row i with row i + LANES / 2, log2(LANES) times, is a
// transpose.
inline void transpose(Vec (&rows)[LANES]) {
#pragma GCC unroll 4
    for (int stage = 1; stage < LANES; stage *= 2) {
        Vec zipped[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            zipped[2 * i] = zip_low(rows[i], rows[i + LANES / 2]);
            zipped[2 * i + 1] = zip_high(rows[i], rows[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = zipped[i];
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
