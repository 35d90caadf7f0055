// Dot products of integers in one instruction: VNNI. SMOE_VNNI says whether the instruction set has it. Included by
// kernel files only.
#pragma once

#include "simd/vec.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define SMOE_VNNI 1
#else
#define SMOE_VNNI 0
#endif

namespace smoe {
namespace SMOE_ISA {

#if SMOE_VNNI

// Return sums + the products of four unsigned bytes of w and four signed bytes of x per lane.
inline Words dot_bytes(Words sums, Words w, Words x) {
#if defined(__AVX512VNNI__)
    return (Words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#else
    return (Words)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)w, (__m256i)x);
#endif
}

// Return sums + the products of two signed 16-bit integers per lane.
inline Words dot_pairs(Words sums, Words a, Words b) {
#if defined(__AVX512VNNI__)
    return (Words)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
    return (Words)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#endif
}

#endif

}  // namespace SMOE_ISA
}  // namespace smoe
